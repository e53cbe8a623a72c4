"""Where a repository's shared folder is, found out without libgit2, for commands that must start at once.

Only for what is as usual; anything else is ``None``, and libgit2 then says what is wrong.
"""

from __future__ import annotations

import os


def common_dir(root: str) -> str | None:
    """The folder that all working trees of the repository at ``root`` share.

    ``None`` also where it belongs to another user: whether that is to be trusted,
    git config says.
    """
    try:
        git_dir = os.path.join(root, ".git")
        if not os.path.lexists(git_dir):
            git_dir = root
        elif os.path.isfile(git_dir):
            link = _line(git_dir)
            git_dir = os.path.join(root, link.removeprefix("gitdir: ")) if link.startswith("gitdir: ") else ""
        shared = os.path.join(git_dir, "commondir")
        common = os.path.join(git_dir, _line(shared)) if os.path.exists(shared) else git_dir
        usual = all(os.path.isdir(os.path.join(common, name)) for name in ("objects", "refs"))
        owned = all(os.stat(path).st_uid == os.geteuid() for path in (root, git_dir, common))
    except (OSError, ValueError):
        return None
    return os.path.realpath(common) if usual and owned else None


def _line(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read(4096).strip()
