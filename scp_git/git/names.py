"""Which entries of a tree are harmless wherever they are written or shown."""

from __future__ import annotations

import re

_SIMPLE = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")


def is_plain_name(name: str) -> bool:
    """Whether a file name is harmless on every system: no traversal, nothing that git treats specially."""
    return _SIMPLE.fullmatch(name) is not None or (  # nearly all names are ours
        name not in ("", ".", "..")
        and name.isprintable()
        and not name.lower().startswith((".git", "git~"))
        and not set(name) & set('\\/:*?"<>|')
        and not name.endswith((".", " "))
    )


def is_plain_path(path: str) -> bool:
    """Whether every name of a path is plain."""
    return all(map(is_plain_name, path.split("/")))


def stays_inside(path: str) -> bool:
    """Whether a path leads to a place below a working tree's top that is not git's own."""
    parts = path.lower().split("/")
    return not any(part in ("", ".", "..", ".git") or part.startswith("git~") for part in parts)
