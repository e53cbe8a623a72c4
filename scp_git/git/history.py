"""Looking at commits: which are ours, which came before which."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from enum import Enum

from scp_git.errors import StorageFailed
from scp_git.git.objects import COMMIT, Commit, ObjectStore, parse_commit
from scp_git.layout import TRAILER

_MAX_WALK = 10_000
_MAX_COMMIT_BYTES = 1024 * 1024


class Relation(Enum):
    """How one commit stands to another."""

    SAME = "same"
    AHEAD = "ahead"
    """The other one is among its ancestors."""
    BEHIND = "behind"
    """It is among the ancestors of the other one."""
    APART = "apart"


class History:
    """Commits, as far as healing and merging need to look at them."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._known: dict[str, Commit | None] = {}

    def get(self, oid: str | None) -> Commit | None:
        """The commit, or ``None`` if it is missing or damaged."""
        if oid is None:
            return None
        if oid not in self._known:
            try:
                data = self.store.find(oid, COMMIT, limit=_MAX_COMMIT_BYTES)
                self._known[oid] = parse_commit(data) if data else None
            except (ValueError, StorageFailed):
                self._known[oid] = None
        return self._known[oid]

    def tree(self, oid: str) -> str:
        """The tree of a commit that must be there."""
        commit = self.get(oid)
        if commit is None:
            raise StorageFailed(f"reading commit {oid[:10]}", "it is missing or damaged")
        return commit.tree

    def is_ours(self, oid: str) -> bool:
        commit = self.get(oid)
        return commit is not None and commit.has_line(TRAILER)

    def contains(self, tip: str, wanted: str, *, through_ours_only: bool = False) -> bool:
        """Whether ``wanted`` is ``tip`` or one of its ancestors."""
        seen, queue = {tip}, deque([tip])
        while queue and len(seen) < _MAX_WALK:
            oid = queue.popleft()
            if oid == wanted:
                return True
            commit = self.get(oid)
            if commit is None or (through_ours_only and not commit.has_line(TRAILER)):
                continue
            fresh = [parent for parent in commit.parents if parent not in seen]
            seen.update(fresh)
            queue.extend(fresh)
        return False

    def foreign(self, tip: str, trusted: str | None) -> list[str]:
        """``tip`` and its ancestors back to, and including, the nearest commits of ours."""
        seen, queue = [tip], deque([tip])
        while queue and len(seen) < _MAX_WALK:
            oid = queue.popleft()
            commit = self.get(oid)
            if commit is None or oid == trusted or (oid != tip and commit.has_line(TRAILER)):
                continue
            fresh = [parent for parent in commit.parents if parent not in seen]
            seen += fresh
            queue.extend(fresh)
        return [oid for oid in seen if oid != trusted]

    def is_whole(self, tip: str) -> bool:
        """Whether all ancestors are here, as far as they are looked at; in a shallow clone they are not."""
        marks = self._paint([tip], [])
        return all(self.get(oid) is not None for oid in marks)

    def relation(self, one: str, other: str) -> Relation:
        """How ``one`` stands to ``other``. Where their histories are too long to tell, apart.

        Both are walked at once, newest first, so the cost is that of what they do
        not have in common.
        """
        if one == other:
            return Relation.SAME
        marks = self._paint([one], [other])
        if marks[other] == _BOTH:
            return Relation.AHEAD
        return Relation.BEHIND if marks[one] == _BOTH else Relation.APART

    def missing(self, tip: str, known: Iterable[str], *, limit: int) -> list[str] | None:
        """``tip`` and its ancestors that no commit of ``known`` has, the oldest first.

        ``None`` if they are more than ``limit``, or if one of them is not here: then
        the history is a shallow clone's.
        """
        marks = self._paint([tip], list(known))
        found = [oid for oid, mark in marks.items() if mark == _FIRST]
        if len(found) > limit or any(self.get(oid) is None for oid in found):
            return None
        inside, order, done = set(found), [], set[str]()
        stack = [(tip, False)] if tip in inside else []
        while stack:
            oid, expanded = stack.pop()
            if expanded:
                order.append(oid)
            elif oid not in done:
                done.add(oid)
                stack.append((oid, True))
                commit = self.get(oid)
                parents = commit.parents if commit else ()
                stack += [(parent, False) for parent in parents if parent in inside]
        return order

    def _paint(self, first: list[str], second: list[str]) -> dict[str, int]:
        """Every commit that was met, and from which side it is reached.

        The queue is by time, yet clocks that went wrong cost steps, not truth: a
        commit that gets a new mark passes it on again.
        """
        marks: dict[str, int] = {}
        queue: list[tuple[int, str]] = []
        steps = 0

        def mark(oid: str, side: int) -> None:
            if marks.get(oid, 0) | side != marks.get(oid):
                marks[oid] = marks.get(oid, 0) | side
                commit = self.get(oid)
                heapq.heappush(queue, (-(commit.time if commit else 0), oid))

        for oid in first:
            mark(oid, _FIRST)
        for oid in second:
            mark(oid, _SECOND)
        while steps < 2 * _MAX_WALK and any(marks[oid] != _BOTH for _, oid in queue):
            _, oid = heapq.heappop(queue)
            steps += 1
            commit = self.get(oid)
            for parent in commit.parents if commit else ():
                mark(parent, marks[oid])
        return marks


_FIRST, _SECOND, _BOTH = 1, 2, 3
