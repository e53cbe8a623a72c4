"""Older versions as deltas: of wide trees that differ in an entry or two, of files that grow at their end."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import islice

from scp_git.git.entries import decode_entry, entry_header, entry_type

TREE, BLOB, REF_DELTA = 2, 3, 7
"""Pack type numbers."""
_FROM = 512
_CANDIDATES = 4
_REMEMBERED_BYTES = 16 * 1024 * 1024
_BEGINNING = 128
"""Files that begin alike are taken for versions of one file."""
_FILE_UP_TO = 64 * 1024
_VERSIONED = 256
"""So many files are kept in memory to compare older versions with."""
_COPY_MAX = 0x10000


class Deltas:
    """Turns entries of packs, met newest first, into deltas of newer ones where that is worth it."""

    def __init__(self) -> None:
        self._trees: dict[bytes, tuple[bytes, bytes]] = {}
        """By how they begin: a folder's first entry seldom changes. The last met stands last."""
        self._tree_bytes = 0
        self._files: dict[bytes, tuple[bytes, bytes]] = {}

    def encode(self, oid: bytes, entry: bytes) -> bytes:
        """The entry as it shall lie in the new pack."""
        kind, size = entry_type(entry), len(entry)
        if kind == TREE and size >= _FROM:
            return self._tree(oid, decode_entry(entry))
        if kind == BLOB and _FROM <= size <= _FILE_UP_TO:
            return self._file(oid, decode_entry(entry)) or entry
        return entry

    def _tree(self, oid: bytes, data: bytes) -> bytes:
        first = data[: data.find(b"\0")]
        likely = [self._trees[first]] if first in self._trees else []
        likely += islice(reversed(self._trees.values()), _CANDIDATES)
        made = [(make_delta(base, data), base_oid) for base_oid, base in likely]
        delta, base_oid = min(made, key=lambda pair: len(pair[0]), default=(data, b""))
        if len(delta) < len(data) // 2:
            return _delta_entry(delta, base_oid)
        gone = self._trees.pop(first, None)
        self._trees[first] = oid, data
        self._tree_bytes += len(data) - (len(gone[1]) if gone else 0)
        while self._tree_bytes > _REMEMBERED_BYTES and len(self._trees) > 1:
            self._tree_bytes -= len(self._trees.pop(next(iter(self._trees)))[1])
        return entry_header(TREE, len(data)) + zlib.compress(data, 6)

    def _file(self, oid: bytes, data: bytes) -> bytes | None:
        """A file as a delta of the newest that begins alike; ``None`` if there is none, or too different."""
        base_oid, newest = self._files.setdefault(data[:_BEGINNING], (oid, data))
        if base_oid == oid:
            if len(self._files) > _VERSIONED:
                del self._files[next(iter(self._files))]
            return None
        delta = make_delta(newest, data)
        return _delta_entry(delta, base_oid) if 2 * len(delta) < len(data) else None


def _delta_entry(delta: bytes, base: bytes) -> bytes:
    return entry_header(REF_DELTA, len(delta)) + base + zlib.compress(delta, 6)


def make_delta(base: bytes, target: bytes) -> bytes:
    """A git delta for two versions that share their beginning and their end.

    Format: https://git-scm.com/docs/pack-format#_deltified_representation
    """
    shorter = min(len(base), len(target))
    head = _common(base, target, shorter)
    tail = _common(base[::-1], target[::-1], shorter - head)
    delta = bytearray(_varint(len(base)) + _varint(len(target)))
    delta += b"".join(_copy(0, head))
    middle = target[head : len(target) - tail]
    for start in range(0, len(middle), 127):
        piece = middle[start : start + 127]
        delta.append(len(piece))
        delta += piece
    delta += b"".join(_copy(len(base) - tail, tail))
    return bytes(delta)


def _common(a: bytes, b: bytes, limit: int) -> int:
    """How many bytes both begin with, by halving: slices compare at memory speed."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _copy(offset: int, size: int) -> Iterator[bytes]:
    while size:
        piece = min(size, _COPY_MAX)
        yield (b"\xbf" + offset.to_bytes(4, "little") + (piece & 0xFFFF).to_bytes(2, "little"))
        offset += piece
        size -= piece


def _varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
