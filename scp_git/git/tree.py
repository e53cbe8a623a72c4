"""Editing trees in memory: loaded lazily, undone on failure, written once.

A tree is kept as the raw bytes of its entries, so that one new entry among
thousands costs a join, not a parse. Only what was touched is written again.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping

from scp_git.errors import StorageFailed
from scp_git.git.objects import BLOB, TREE, ObjectStore, hash_object

DIR = b"40000"
FILE = b"100644"
REGULAR = (FILE, b"100755")
EMPTY_TREE = hash_object(TREE, b"")
_KEPT_TREES = 4096
"""So many opened trees are kept from one transaction to the next; an archive has many more."""
_CACHED_ENTRIES = 20_000
_ENTRY = re.compile(rb"(\d{5,6} ([^\0]+)\0.{20})", re.DOTALL)


def encode_name(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def decode_name(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


class Tree:
    """One folder: entries by name, and the subfolders that were opened."""

    __slots__ = ("_keys", "_raw", "_rows", "_shared", "children", "oid")

    def __init__(self, oid: str, data: bytes) -> None:
        self.oid: str | None = oid
        """None while there are changes that were not written."""
        entries = _ENTRY.findall(data)
        self._raw: dict[bytes, bytes] = {name: raw for raw, name in entries}
        self.children: dict[bytes, Tree] = {}
        if sum([len(raw) for raw, _ in entries]) != len(data):
            raise StorageFailed(f"reading tree {oid[:10]}", "it is damaged")
        # Made when needed: whoever only reads needs no order, and it takes longer than parsing.
        self._keys: list[bytes] | None = None
        self._rows: list[bytes] = []
        self._shared = False

    def twin(self) -> Tree:
        """The same tree once more, nothing opened yet; neither sees what is done to the other."""
        twin = Tree(EMPTY_TREE, b"")
        twin.oid, twin._raw = self.oid, self._raw
        twin._shared = self._shared = True
        return twin

    def _own(self) -> None:
        if self._shared:
            self._raw, self._shared = dict(self._raw), False

    def __len__(self) -> int:
        return len(self._raw)

    def names(self) -> list[bytes]:
        return list(self._raw)

    def raw(self, name: bytes) -> bytes | None:
        return self._raw.get(name)

    def raw_items(self) -> dict[bytes, bytes]:
        return self._raw

    def put(self, name: bytes, raw: bytes | None, child: Tree | None) -> tuple[bytes | None, Tree | None]:
        """Set or remove (``raw`` None) an entry; returns what was there, for undoing."""
        self._own()
        keys, rows = self._order()
        old, old_child = self._raw.pop(name, None), self.children.pop(name, None)
        if old is not None:
            place = bisect_left(keys, _sort_key(name, old))
            del keys[place], rows[place]
        if raw is not None:
            key = _sort_key(name, raw)
            place = bisect_left(keys, key)
            keys.insert(place, key)
            rows.insert(place, raw)
            self._raw[name] = raw
        if child is not None:
            self.children[name] = child
        self.oid = None
        return old, old_child

    def has(self, name: bytes, raw: bytes) -> bool:
        """Whether an entry of another tree equals ours; an opened subtree of ours may have changed."""
        child = self.children.get(name)
        return child.oid == raw_oid(raw) if child is not None else self._raw.get(name) == raw

    def revise(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Set or remove (None) many entries at once."""
        self._own()
        for name, raw in changes.items():
            self.children.pop(name, None)
            if raw is None:
                self._raw.pop(name, None)
            else:
                self._raw[name] = raw
        self._keys = None
        self.oid = None

    def _order(self) -> tuple[list[bytes], list[bytes]]:
        """The entries, sorted as git does it (a folder as if its name ended in a slash), after their keys."""
        if self._keys is None:
            order = sorted((_sort_key(name, raw), raw) for name, raw in self._raw.items())
            self._keys = [key for key, _ in order]
            self._rows = [raw for _, raw in order]
        return self._keys, self._rows

    def is_canonical(self) -> bool:
        """Whether git would write it as it was read: sorted, no name twice."""
        return self.oid == hash_object(TREE, b"".join(self._order()[1]))

    def write(self, store: ObjectStore) -> str:
        """Add this tree and its changed subtrees to the store; returns its id."""
        if self.oid is not None:
            return self.oid
        for name, child in [item for item in self.children.items() if item[1].oid is None]:
            self.put(name, DIR + b" " + name + b"\0" + bytes.fromhex(child.write(store)), child)
        self.oid = store.add(TREE, b"".join(self._order()[1]))
        return self.oid


def _sort_key(name: bytes, raw: bytes) -> bytes:
    return name + b"/" if raw.startswith(b"40000 ") else name


def is_dir(raw: bytes) -> bool:
    return raw.startswith(b"40000 ")


def raw_oid(raw: bytes) -> str:
    return raw[-20:].hex()


def raw_mode(raw: bytes) -> bytes:
    return raw.partition(b" ")[0]


class TreeCache:
    """Trees as they were parsed last: those that lead to a run are asked for again and again. Thread-safe."""

    def __init__(self) -> None:
        self._trees: OrderedDict[str, Tree] = OrderedDict()
        self._entries = 0
        self._lock = threading.Lock()

    def load(self, oid: str, store: ObjectStore) -> Tree:
        """The tree ``oid``, for the caller alone."""
        with self._lock:
            tree = self._trees.get(oid)
            if tree is not None:
                self._trees.move_to_end(oid)
                return tree.twin()
        tree = Tree(oid, store.read(oid, TREE))
        if len(tree) <= _CACHED_ENTRIES // 4:
            with self._lock:
                self._entries += len(tree) - len(self._trees.pop(oid, ()))
                self._trees[oid] = tree.twin()
                while self._entries > _CACHED_ENTRIES:
                    self._entries -= len(self._trees.popitem(last=False)[1])
        return tree


class TreeEditor:
    """The files of one branch, by path, as they will be after the transaction.

    Every change can be undone back to a ``mark``.
    """

    def __init__(self, store: ObjectStore, oid: str | None = None, *, cache: TreeCache | None = None) -> None:
        self.store = store
        self._cache = cache
        self._opened = 0
        self.root = self._load(oid) if oid else Tree(EMPTY_TREE, b"")
        self._touched: list[tuple[str, str | None]] = []
        self._undo: list[tuple[Tree, bytes, bytes | None, Tree | None, str | None]] = []

    # ------------------------------------------------------------ reading

    def blob(self, path: str) -> str | None:
        """The blob id of a file, or ``None`` if there is no such file."""
        folder, name = self._parent(path)
        raw = folder.raw(name) if folder else None
        return raw_oid(raw) if raw is not None and not is_dir(raw) else None

    def read(self, path: str, *, limit: int | None = None) -> bytes | None:
        """A file's bytes, or ``None`` if there is no such file or its blob is missing."""
        oid = self.blob(path)
        return self.store.find(oid, BLOB, limit=limit) if oid else None

    def raw(self, path: str) -> bytes | None:
        """The raw entry of a file or folder; a folder that was changed is written first."""
        folder, name = self._parent(path)
        raw = folder.raw(name) if folder else None
        child = folder.children.get(name) if folder else None
        if folder is not None and child is not None and child.oid is None:
            raw = DIR + b" " + name + b"\0" + bytes.fromhex(child.write(self.store))
            folder.put(name, raw, child)
        return raw

    def has_dir(self, path: str) -> bool:
        return self.folder(path) is not None

    def names(self, path: str) -> list[str]:
        """The names in a folder, empty if there is none."""
        folder = self.folder(path)
        return [decode_name(name) for name in folder.names()] if folder else []

    def folder(self, path: str) -> Tree | None:
        """The folder itself; do not change it."""
        tree: Tree | None = self.root
        for part in path.split("/") if path else ():
            tree = self._child(tree, encode_name(part)) if tree else None
        return tree

    def files(self, path: str = "") -> Iterator[tuple[str, bytes]]:
        """Every file below a folder: its path and its raw entry."""
        folder = self.folder(path)
        if folder is not None:
            yield from self._files(folder, path + "/" if path else "")

    def _files(self, tree: Tree, prefix: str) -> Iterator[tuple[str, bytes]]:
        for name in tree.names():
            raw = tree.raw(name)
            assert raw is not None
            path = prefix + decode_name(name)
            if is_dir(raw):
                child = self._child(tree, name)
                if child is not None:
                    yield from self._files(child, path + "/")
            else:
                yield path, raw

    # ------------------------------------------------------------ changing

    def put(self, path: str, data: bytes) -> str:
        """Store a file; returns its blob id."""
        oid = self.store.add(BLOB, data)
        self._set(path, FILE, oid)
        return oid

    def put_later(self, path: str, oid: str, read: Callable[[], bytes]) -> None:
        """Store a file whose bytes are read when they are written; ``oid`` is their blob id."""
        self.store.add_later(oid, BLOB, read)
        self._set(path, FILE, oid)

    def graft(self, path: str, raw: bytes, *, whole: bool = False) -> None:
        """Set a file or folder that exists already, given its raw entry from another tree.

        ``whole``: the folder itself counts as touched, not each file in it, which
        then need not be looked at.
        """
        self._set(path, DIR if is_dir(raw) else FILE, raw_oid(raw), whole=whole)

    def graft_all(self, folders: Mapping[str, Iterable[bytes]]) -> None:
        """As ``graft`` with ``whole``, for many subfolders, by the folder that they are put into."""
        above: dict[str, Tree] = {"": self.root}
        for path, raws in folders.items():
            folder = self._opened_for(path, above)
            for raw in raws:
                self._put(folder, raw[raw.index(b" ") + 1 : -21], raw, None)
            self._touched.append((path, EMPTY_TREE))

    def _opened_for(self, path: str, above: dict[str, Tree]) -> Tree:
        """The folder, made where there is none; ``above`` are those marked to be written again."""
        tree = above.get(path)
        if tree is None:
            head, _, leaf = path.rpartition("/")
            parent, name = self._opened_for(head, above), encode_name(leaf)
            tree = above[path] = self._child(parent, name) or Tree(EMPTY_TREE, b"")
            raw = DIR + b" " + name + b"\0" + bytes.fromhex(tree.oid or EMPTY_TREE)
            self._put(parent, name, raw, tree)
        return tree

    def remove(self, path: str) -> bool:
        """Remove a file or a whole folder, and the folders above that become empty."""
        folder, name = self._parent(path)
        raw = folder.raw(name) if folder else None
        if folder is None or raw is None:
            return False
        gone = [file for file, _ in self.files(path)] if is_dir(raw) else [path]
        self._touched += [(file, None) for file in gone]
        self._put(folder, name, None, None)
        head = path.rpartition("/")[0]
        self._mark_above(head)
        if not len(folder) and head:
            self.remove(head)
        return True

    def _set(self, path: str, mode: bytes, oid: str, *, whole: bool = False) -> None:
        head, _, leaf = path.rpartition("/")
        folder, above = self.root, ""
        for part in head.split("/") if head else ():
            name, above = encode_name(part), f"{above}{part}/"
            child = self._child(folder, name)
            if child is None:
                if folder.raw(name) is not None:  # a file where we need a folder
                    self._touched.append((above[:-1], None))
                child = Tree(EMPTY_TREE, b"")
                self._put(folder, name, DIR + b" " + name + b"\0" + bytes.fromhex(EMPTY_TREE), child)
            folder = child
        name = encode_name(leaf)
        raw = mode + b" " + name + b"\0" + bytes.fromhex(oid)
        old = folder.raw(name)
        if raw == old and name not in folder.children:
            return
        if old is not None and (is_dir(old) or mode == DIR):
            self._touched += [(file, None) for file, _ in self.files(path)] or [(path, None)]
        self._put(folder, name, raw, None)
        self._mark_above(head)
        if mode == DIR and not whole:
            self._touched += [(file, raw_oid(entry)) for file, entry in self.files(path)]
        else:
            self._touched.append((path, oid))

    def touched(self) -> dict[str, str | None]:
        """Every file changed since ``start``: its path, and its new blob id or None."""
        return dict(self._touched)

    def rewrote(self) -> bool:
        """Whether a file was changed more than once since ``start``."""
        return len(self._touched) != len(self.touched())

    def write(self) -> str:
        """Add all changed trees to the store; returns the id of the root."""
        return self.root.write(self.store)

    # ------------------------------------------------------------ undoing

    def mark(self) -> tuple[int, int]:
        """A point to go back to."""
        return len(self._undo), len(self._touched)

    def rollback(self, mark: tuple[int, int]) -> None:
        """Undo every change since ``mark``."""
        undone, touched = mark
        del self._touched[touched:]
        while len(self._undo) > undone:
            tree, name, raw, child, oid = self._undo.pop()
            tree.put(name, raw, child)
            tree.oid = oid

    def settle(self) -> None:
        """Forget the undo history: what was changed stays."""
        self._undo.clear()

    def start(self) -> None:
        """What is here now, all of it written, is the state to begin with."""
        self.settle()
        self._touched.clear()
        if self._opened > _KEPT_TREES:
            self.root.children.clear()
            self._opened = 0

    # ------------------------------------------------------------ inside

    def _put(self, tree: Tree, name: bytes, raw: bytes | None, child: Tree | None) -> None:
        oid = tree.oid
        old, old_child = tree.put(name, raw, child)
        self._undo.append((tree, name, old, old_child, oid))

    def _mark_above(self, path: str) -> None:
        """Folders above a changed one must be written again, too."""
        tree = self.root
        for part in path.split("/") if path else ():
            name = encode_name(part)
            child = tree.children[name]
            self._put(tree, name, tree.raw(name), child)
            tree = child

    def _parent(self, path: str) -> tuple[Tree | None, bytes]:
        head, _, leaf = path.rpartition("/")
        return self.folder(head), encode_name(leaf)

    def _child(self, tree: Tree, name: bytes) -> Tree | None:
        child = tree.children.get(name)
        if child is None:
            raw = tree.raw(name)
            if raw is None or not is_dir(raw):
                return None
            child = tree.children[name] = self._load(raw_oid(raw))
        return child

    def _load(self, oid: str) -> Tree:
        self._opened += 1
        if oid == EMPTY_TREE:
            return Tree(EMPTY_TREE, b"")
        return self._cache.load(oid, self.store) if self._cache else Tree(oid, self.store.read(oid, TREE))
