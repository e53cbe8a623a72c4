"""Copying objects from one repository to another on the same machine, into a transaction's pack.

libgit2 cannot push to a repository that is not bare, does not compare and swap when
it pushes to a path, and makes broken links when it pushes from a shallow clone. What
is small is copied here instead, commit by commit, each tree against its parents'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from scp_git.errors import StorageFailed
from scp_git.git.history import History
from scp_git.git.objects import BLOB, COMMIT, TREE, Kind, ObjectStore, Reader
from scp_git.git.tree import EMPTY_TREE

_ROW = re.compile(rb"(\d{5,6}) ([^\0]+)\0(.{20})", re.DOTALL)
_GITLINK = b"160000"
_LARGE = 256 * 1024


class Joined:
    """What a transaction has and another repository's objects, as one database."""

    def __init__(self, store: ObjectStore, other: Reader) -> None:
        self._store = store
        self._other = other

    def read(self, oid: str, *, limit: int | None = None) -> tuple[Kind, bytes] | None:
        found = self._store.added.get(oid) or self._store.base.read(oid, limit=limit)
        return found or self._other.read(oid, limit=limit)

    def kind(self, oid: str) -> Kind | None:
        return self._store.kind(oid) or self._other.kind(oid)

    def header(self, oid: str) -> tuple[Kind, int] | None:
        return self._store.header(oid) or self._other.header(oid)


def copy_history(
    source: Reader, into: ObjectStore, tips: Iterable[str], known: Iterable[str], *, limit: int
) -> bool:
    """Add ``tips`` and all that they need to ``into``, unless ``known`` commits of its database have it.

    False, and nothing was added, if that is more than ``limit`` commits or a shallow history.
    """
    history = History(ObjectStore(Joined(into, source)))
    known = [oid for oid in known if history.get(oid)]
    chosen: dict[str, None] = {}
    for tip in tips:
        missing = history.missing(tip, known, limit=limit)
        if missing is None:
            return False
        chosen.update(dict.fromkeys(missing))
    copier = _Copier(history.store, into)
    for oid in chosen:
        commit = history.get(oid)
        assert commit is not None
        parents = (history.get(parent) for parent in commit.parents)
        copier.tree(commit.tree, [parent.tree for parent in parents if parent])
        copier.object(oid, COMMIT)
    return True


def copy_tree(source: Reader, into: ObjectStore, tree: str, present: Iterable[str]) -> None:
    """Add a tree with all that is in it, unless it is in one of the trees ``present``."""
    _Copier(ObjectStore(Joined(into, source)), into).tree(tree, list(present))


class _Copier:
    def __init__(self, source: ObjectStore, into: ObjectStore) -> None:
        self._source = source
        self._into = into
        self._done: set[str] = set()

    def tree(self, oid: str, present: list[str]) -> None:
        """A tree, but for what the trees ``present`` have at the same places."""
        if oid == EMPTY_TREE:
            self._into.add(TREE, b"")
        elif oid not in present and oid not in self._done:
            others = [dict(self._rows(other)) for other in present]
            for name, (mode, child) in self._rows(oid):
                there = [rows[name] for rows in others if name in rows]
                if mode in (b"40000", b"040000"):
                    self.tree(child, [tree for kind, tree in there if kind == mode])
                elif mode != _GITLINK and (mode, child) not in there:
                    self.object(child, BLOB)
            self.object(oid, TREE)

    def object(self, oid: str, kind: Kind) -> None:
        if oid in self._done:
            return
        self._done.add(oid)
        header = self._source.header(oid) if kind == BLOB else None
        if kind == BLOB and (header is None or header[0] != BLOB):
            raise StorageFailed(f"copying blob {oid[:10]}", "the object is missing")
        if header is not None and header[1] > _LARGE:  # read when the pack is written
            self._into.add_later(oid, kind, lambda: self._source.read(oid, kind), size=header[1])
        elif self._into.add(kind, self._source.read(oid, kind)) != oid:
            raise StorageFailed(f"copying {kind} {oid[:10]}", "its bytes are not what its name says")

    def _rows(self, oid: str) -> Iterator[tuple[bytes, tuple[bytes, str]]]:
        data = b"" if oid == EMPTY_TREE else self._source.read(oid, TREE)
        for mode, name, raw in _ROW.findall(data):
            yield name, (mode, raw.hex())
