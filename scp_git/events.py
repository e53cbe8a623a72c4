"""What passes over the bus, and choosing among it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from time import time
from types import MappingProxyType
from typing import Any, NamedTuple

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Event(NamedTuple):
    """Something that happened; every subscriber gets the same object.

    ``ts`` is seconds since 1970; ``seq`` counts from 1 in each ``Bus``. ``data`` and ``meta`` are
    read-only views of shallow copies: what is nested in them is still shared with the publisher.
    """

    v: int
    ts: float
    seq: int
    type: str
    key: str
    data: Mapping[str, Any]
    error: str | None
    duration_s: float | None
    meta: Mapping[str, Any]

    # Two events are the same only if they are one; and data has no hash.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)


make_event: Callable[[type[Event], tuple[Any, ...]], Event] = tuple.__new__
"""``Event(...)`` by position, in half the time."""


def selector(matches: Callable[[str], bool], key: str | None, root: object) -> Callable[[Event], bool]:
    """A test of events: by type, by key, and by the root they concern; events without a root pass."""
    root = None if root is None else os.path.realpath(_path_text(root))

    def selects(event: Event) -> bool:
        return (
            (key is None or event.key == key)
            and matches(event.type)
            and (root is None or _path_text(event.meta.get("root") or root) == root)
        )

    return selects


def gap(missed: int, resume: int) -> Event:
    """The event that tells a reader how many events it missed."""
    data = MappingProxyType({"missed": missed, "resume_seq": resume})
    return Event(1, time(), resume - 1, "bus:gap", "", data, None, None, NOTHING)


def _path_text(value: object) -> str:
    return os.fsdecode(value) if isinstance(value, bytes | os.PathLike) else str(value)
