"""Reading the feed: where a reader is, what comes next, and when there is more."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from weakref import WeakValueDictionary

from scp_git.feed.history import tree_of, way
from scp_git.feed.records import Change, Teller, rows_between
from scp_git.feed.tokens import NOTHING, Position, Tips, present_tips
from scp_git.git.committer import check_format
from scp_git.git.files import CheckedRecord
from scp_git.git.handle import Repository
from scp_git.git.objects import TREE, Kind, ObjectStore
from scp_git.git.tree import EMPTY_TREE, TreeEditor
from scp_git.layout import ARCHIVE_REF, FORMAT_PATH, LEDGER_REF, NOTES_REF, REMOTES_PREFIX

LOOK_EVERY_S = 0.1
"""How often a reader who waits looks at the refs; this process's own writes it hears of at once."""

_AHEAD = 256
_TURN_S = 0.05
"""How long one call works at most before it lets the caller have its turn."""
_BETWEEN_REFS_S = 0.05
_LOOK_AGAIN_S = 0.005


def present_token(repository: Repository) -> str:
    """The token of the present state: with it as ``since`` one gets what is committed from now on."""
    return Position(_settled_tips(repository, NOTHING)).token()


class _Objects:
    """Reads objects with a handle borrowed for each: what follows a feed may change threads."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def read(self, oid: str, *, limit: int | None = None) -> tuple[Kind, bytes] | None:
        with self._repository.odb() as odb:
            return odb.read(oid, limit=limit)

    def kind(self, oid: str) -> Kind | None:
        with self._repository.odb() as odb:
            return odb.kind(oid)

    def header(self, oid: str) -> tuple[Kind, int] | None:
        with self._repository.odb() as odb:
            return odb.header(oid)


class _Glance:
    """The tips that a reader of a repository saw last, and when; shared, so that not all need to look."""

    def __init__(self) -> None:
        self.seen = NOTHING, -LOOK_EVERY_S


_glances: WeakValueDictionary[Path, _Glance] = WeakValueDictionary()


class Feed:
    """One reader's way through what was committed. ``fill`` blocks; it may be called from any thread.

    What ``fill`` found waits in ``ahead``, so nothing is lost when the caller is cancelled
    meanwhile. Nothing is held open between calls.
    """

    def __init__(self, repository: Repository, since: str | None) -> None:
        self.ahead: deque[Change] = deque()
        self._repository = repository
        self._store = ObjectStore(_Objects(repository))
        self._teller = Teller(self._store)
        self._position = Position.parse(since) if since is not None else None
        self._glance = _glances.setdefault(repository.common_dir, _Glance())
        self._lock = threading.Lock()
        self._coming: Iterator[Change | None] | None = None

    def is_quiet(self) -> bool:
        """Whether some reader of this process looked just now and there was nothing new; touches no disk."""
        position, (tips, when) = self._position, self._glance.seen
        return (
            self._coming is None and position == Position(tips) and time.monotonic() - when < LOOK_EVERY_S / 2
        )

    def fill(self) -> bool:
        """Put the next changes into ``ahead``, some hundred at most; False when the present is reached."""
        with self._lock:
            end = time.monotonic() + _TURN_S
            while len(self.ahead) < _AHEAD and time.monotonic() < end:
                if self._coming is None:
                    self._coming = self._next()
                try:
                    change = next(self._coming)
                except StopIteration:
                    self._coming = None
                    return False
                except BaseException:
                    self._coming = None
                    raise
                if change is not None:
                    self.ahead.append(change)
            return True

    def _next(self) -> Iterator[Change | None]:
        """The changes from the position to the present; None now and then, while it is being looked."""
        if self._position is None:
            self._position = Position(_settled_tips(self._repository, NOTHING))
        present = _settled_tips(self._repository, self._position.told)
        self._glance.seen = present, time.monotonic()
        if present == self._position.told and self._position.towards is None:
            return
        self._check_format(present)
        if not self._is_here(self._position.told):
            beginning = Position(NOTHING)
            yield Change("state", "reset", "", "", MappingProxyType({}), beginning.token())
            self._position = beginning
        if self._position.towards is not None:
            yield from self._finish_step(self._position)
        for state in way(self._store, self._position.told, present, self._first_time, self._shared):
            yield from self._step(self._position.told, state, 0)

    def _finish_step(self, position: Position) -> Iterator[Change | None]:
        """Go on in the midst of a step; if it cannot be made again, what was told of it is told once more."""
        self._position = Position(position.told)
        if position.towards is not None and self._is_here(position.towards):
            yield from self._step(position.told, position.towards, position.count)

    def _step(self, old: Tips, new: Tips, skip: int) -> Iterator[Change | None]:
        rows = []
        for row in rows_between(self._store, old, new):
            rows.append(row)
            yield None
        rows.sort()
        for number, row in enumerate(rows[skip:], skip + 1):
            position = Position(new) if number == len(rows) else Position(old, new, number)
            yield self._teller.change(row, position.token())
            self._position = position
        self._position = Position(new)

    def _first_time(self, old: Tips, new: Tips) -> str:
        return min((row.time for row in rows_between(self._store, old, new)), default="")

    def _shared(self) -> set[str]:
        """What is known of the remotes' tips."""
        return set(self._repository.refs.list(REMOTES_PREFIX).values())

    def _is_here(self, tips: Tips) -> bool:
        return all(tip is None or self._has_tree(tip) for tip in tips)

    def _has_tree(self, tip: str) -> bool:
        tree = tree_of(self._store, tip)
        return tree == EMPTY_TREE or (tree is not None and self._store.find(tree, TREE) is not None)

    def _check_format(self, tips: Tips) -> None:
        tree = tree_of(self._store, tips.ledger)
        if tree is not None:
            check_format(self._repository, TreeEditor(self._store, tree).read(FORMAT_PATH, limit=100))


def _settled_tips(repository: Repository, known: Tips) -> Tips:
    """The present tips, all of one transaction: while one is being published, it is waited for.

    Not for ever: a process may have died meanwhile, or stock git moved a branch.
    """
    end = time.monotonic() + _BETWEEN_REFS_S
    while True:
        tips = present_tips(repository)
        if tips == known or tips == _published(repository) or time.monotonic() > end:
            return tips
        time.sleep(_LOOK_AGAIN_S)


def _published(repository: Repository) -> Tips | None:
    value: object = None
    with suppress(OSError, ValueError):  # only a hint, and possibly being written just now
        value = (CheckedRecord(repository.common_dir / "scp" / "tips").read() or {}).get("refs")
    if not isinstance(value, dict):
        return None
    return Tips(*(value.get(ref) for ref in (NOTES_REF, LEDGER_REF, ARCHIVE_REF)))
