"""Git objects as bytes: hashing, commits, tags, and the objects that a transaction adds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from scp_git.errors import StorageFailed
from scp_git.git.entries import TYPES, decode_entry, encode_entry, entry_type

Kind = Literal["commit", "tree", "blob", "tag"]
COMMIT: Kind = "commit"
TREE: Kind = "tree"
BLOB: Kind = "blob"
TAG: Kind = "tag"

_KINDS: dict[int, Kind] = {TYPES[kind]: kind for kind in (COMMIT, TREE, BLOB, TAG)}
_OID = re.compile(r"[0-9a-f]{40}")
_TAGGER = re.compile(r"[^<>\n\0]+ <[^<>\n\0]*> \d{1,10} [+-]\d{4}")


class Reader(Protocol):
    """What can give an object's kind and bytes, or ``None``."""

    def read(self, oid: str, *, limit: int | None = None) -> tuple[Kind, bytes] | None: ...

    def kind(self, oid: str) -> Kind | None: ...

    def header(self, oid: str) -> tuple[Kind, int] | None: ...


def is_oid(value: object) -> bool:
    """Whether ``value`` is 40 lower-case hex digits."""
    return isinstance(value, str) and _OID.fullmatch(value) is not None


def hash_object(kind: Kind, data: bytes) -> str:
    """The object's id."""
    header = f"{kind} {len(data)}\0".encode()
    return hashlib.sha1(header + data, usedforsecurity=False).hexdigest()


class ObjectStore:
    """Objects of the repository and, before they are published, those that a transaction adds.

    What is added is written even where the same object lies in the database
    already: there it may be unreachable, and gone by the next ``git gc``.
    """

    def __init__(self, base: Reader) -> None:
        self.base = base
        self.added: dict[str, tuple[Kind, bytes]] = {}
        self.later: dict[str, tuple[Kind, Callable[[], bytes]]] = {}
        self._sizes: dict[str, int] = {}
        self.made: dict[str, bytes] = {}
        """Those that came as entries for the pack."""

    def add(self, kind: Kind, data: bytes) -> str:
        oid = hash_object(kind, data)
        self.added[oid] = (kind, data)
        return oid

    def add_later(self, oid: str, kind: Kind, read: Callable[[], bytes], *, size: int | None = None) -> None:
        """Add an object that is read when it is written: a long stream never lies in memory as a whole."""
        self.later[oid] = (kind, read)
        if size is not None:
            self._sizes[oid] = size

    def count(self) -> int:
        """How many objects are to be written."""
        return len(self.made) + len(self.added.keys() - self.made.keys()) + len(self._late())

    def entries(self) -> Iterator[tuple[str, bytes]]:
        """What is to be written, one pack entry at a time."""
        yield from self.made.items()
        for oid, (kind, data) in self.added.items():
            if oid not in self.made:
                yield encode_entry(oid, kind, data)
        for oid in self._late():
            yield encode_entry(oid, *self._read_now(oid))

    def _late(self) -> list[str]:
        return [oid for oid in self.later if oid not in self.added and oid not in self.made]

    def _read_now(self, oid: str) -> tuple[Kind, bytes]:
        kind, read = self.later[oid]
        data = read()
        if hash_object(kind, data) != oid:
            raise StorageFailed(f"reading what becomes {kind} {oid[:10]}", "it has changed meanwhile")
        return kind, data

    def adopt(self, entries: Iterable[tuple[str, bytes]]) -> None:
        """Add objects that were hashed and deflated before."""
        self.made.update(entries)

    def _find_added(self, oid: str) -> tuple[Kind, bytes] | None:
        if oid in self.made:
            entry = self.made[oid]
            return _KINDS[entry_type(entry)], decode_entry(entry)
        return self.added.get(oid) or (self._read_now(oid) if oid in self.later else None)

    def find(self, oid: str, kind: Kind, *, limit: int | None = None) -> bytes | None:
        """The bytes of an object, or ``None`` if it is missing or of another kind."""
        found = self._find_added(oid) or self.base.read(oid, limit=limit)
        return found[1] if found is not None and found[0] == kind else None

    def kind(self, oid: str) -> Kind | None:
        """What kind of object this is, or ``None`` if it is missing."""
        if oid in self.made:
            return _KINDS[entry_type(self.made[oid])]
        found = self.added.get(oid) or self.later.get(oid)
        return found[0] if found else self.base.kind(oid)

    def header(self, oid: str) -> tuple[Kind, int] | None:
        """What kind of object this is and its size, without reading it; ``None`` if it is not here."""
        if oid in self._sizes and oid not in self.added:
            return self.later[oid][0], self._sizes[oid]
        found = self._find_added(oid)
        return (found[0], len(found[1])) if found else self.base.header(oid)

    def read(self, oid: str, kind: Kind) -> bytes:
        """The bytes of an object that must be there."""
        data = self.find(oid, kind)
        if data is None:
            raise StorageFailed(f"reading {kind} {oid[:10]}", "the object is missing")
        return data


@dataclass(frozen=True, slots=True)
class Commit:
    """What we need of a commit."""

    tree: str
    parents: tuple[str, ...]
    message: str
    time: int = 0
    """When it was committed, in seconds since 1970; 0 where it does not say."""

    def has_line(self, line: str) -> bool:
        return line in self.message.split("\n")


def parse_commit(data: bytes) -> Commit:
    """Read a commit; ``ValueError`` if it names no tree."""
    header, _, message = data.decode("utf-8", "replace").partition("\n\n")
    tree, parents, time = "", [], 0
    for line in header.split("\n"):
        key, _, value = line.partition(" ")
        if key == "tree" and not tree:
            tree = value
        elif key == "parent" and is_oid(value):
            parents.append(value)
        elif key == "committer":
            seconds = value.rpartition("> ")[2].partition(" ")[0]
            time = int(seconds) if seconds.isdecimal() and len(seconds) < 12 else 0
    if not is_oid(tree):
        raise ValueError("a commit without a tree")
    return Commit(tree, tuple(parents), message, time)


def encode_commit(tree: str, parents: list[str], author: str, message: str) -> bytes:
    """A commit whose author and committer are ``author`` (``Name <mail> <seconds> <zone>``)."""
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents)]
    lines += [f"author {author}", f"committer {author}", "", message]
    return "\n".join(lines).encode()


def encode_tag(name: str, target: str, tagger: str, message: bytes) -> bytes:
    """An annotated tag on a commit, byte for byte what ``git tag -a --cleanup=verbatim`` writes."""
    return f"object {target}\ntype commit\ntag {name}\ntagger {tagger}\n\n".encode() + message


def tag_target(data: bytes) -> str | None:
    """The object that a tag object names."""
    line, _, _ = data.partition(b"\n")
    oid = line.removeprefix(b"object ").decode("ascii", "replace")
    return oid if is_oid(oid) else None


def tag_text(data: bytes) -> str:
    """A tag's message, without a signature appended to it."""
    message = data.partition(b"\n\n")[2].decode("utf-8", "replace")
    return message.split("-----BEGIN ", 1)[0]


@dataclass(frozen=True, slots=True)
class Anchor:
    """What, with a run's JSON, gives the run's tag object byte for byte."""

    target: str
    tagger: str

    @classmethod
    def parse(cls, value: object) -> Anchor | None:
        """Read an anchor that may come from anybody; ``None`` unless both of its parts are well formed."""
        if not isinstance(value, dict) or not is_oid(value.get("target")):
            return None
        tagger = value.get("tagger")
        if not isinstance(tagger, str) or _TAGGER.fullmatch(tagger) is None:
            return None
        return cls(value["target"], tagger)

    def to_json(self) -> dict[str, str]:
        return {"target": self.target, "tagger": self.tagger}
