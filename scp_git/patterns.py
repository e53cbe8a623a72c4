"""Patterns of event types, such as ``ledger:*`` and ``chat:**``."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache


def matcher(*patterns: str) -> Callable[[str], bool]:
    """Return a test of event types; without a pattern it accepts all.

    Patterns are compared by ``:``-separated segments: ``*`` stands for one, a final ``**`` for
    any number of them, none included. Raises ``ValueError`` for ``*`` in any other place.
    """
    regex = re.compile("|".join(map(_as_regex, patterns or ("**",))), re.DOTALL)
    return lru_cache(maxsize=1024)(lambda type: regex.fullmatch(type) is not None)


def _as_regex(pattern: str) -> str:
    head, colon, last = pattern.rpartition(":")
    if last == "**":
        return _as_regex(head) + "(?::.*)?" if colon else ".*"
    segments = pattern.split(":")
    if any("*" in segment and segment != "*" for segment in segments):
        raise ValueError(f"pattern {pattern!r}: '*' must be a whole segment, '**' the last one")
    return ":".join("[^:]*" if segment == "*" else re.escape(segment) for segment in segments)
