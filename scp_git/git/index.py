"""The view's index file, read and written by us: the largest cost of a write otherwise.

Format: https://git-scm.com/docs/index-format, versions 2 and 3 are read, 2 is
written. Encoded entries are kept, so a new file costs one insertion, a join and a
SHA-1, not a parse of thousands.
"""

from __future__ import annotations

import hashlib
import os
import struct
from bisect import bisect_left
from pathlib import Path

_FIXED = struct.Struct(">10I20sH")
_EXTENDED = 0x4000
_STAGE = 0x3000
_MODE = 0o100644
_MASK = 0xFFFFFFFF

Signature = tuple[int, int, int]


class IndexFile:
    """One index: file paths with the blob and the file state that git recorded for them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[bytes, bytes] = {}
        self._paths: list[bytes] = []
        self._rows: list[bytes] = []
        """The entries in the order of ``_paths``."""
        self._signature: Signature | None = None

    def load(self) -> bool:
        """Read the file again if it changed; False if it is missing, damaged or of another kind."""
        signature = self._stat()
        if signature is not None and signature == self._signature:
            return True
        self._signature = None
        try:
            entries = _parse(self.path.read_bytes())
        except (OSError, ValueError, struct.error):
            self.clear()
            return False
        self._entries, self._paths = entries, sorted(entries)
        self._rows = [entries[path] for path in self._paths]
        self._signature = signature
        return True

    def paths(self) -> list[bytes]:
        return list(self._paths)

    def oid(self, path: bytes) -> str | None:
        """The blob recorded for a path."""
        entry = self._entries.get(path)
        return entry[40:60].hex() if entry else None

    def matches(self, path: bytes, stat: os.stat_result) -> bool:
        """Whether a file is as it was when its entry was made, as far as its state tells."""
        entry = self._entries.get(path)
        return entry is not None and entry[:40] == _stat_fields(stat)

    def put(self, path: bytes, oid: str, stat: os.stat_result) -> None:
        """Record a file."""
        flags = min(len(path), 0xFFF).to_bytes(2, "big")
        body = _stat_fields(stat) + bytes.fromhex(oid) + flags + path
        entry = body + b"\0" * (8 - len(body) % 8)
        place = bisect_left(self._paths, path)
        if path in self._entries:
            self._rows[place] = entry
        else:
            self._paths.insert(place, path)
            self._rows.insert(place, entry)
        self._entries[path] = entry

    def remove(self, path: bytes) -> None:
        if self._entries.pop(path, None) is not None:
            place = bisect_left(self._paths, path)
            del self._paths[place], self._rows[place]

    def clear(self) -> None:
        self._entries, self._paths, self._rows, self._signature = {}, [], [], None

    def encode(self) -> bytes:
        """The file's bytes."""
        header = b"DIRC" + struct.pack(">II", 2, len(self._rows))
        body = b"".join([header, *self._rows])
        return body + hashlib.sha1(body, usedforsecurity=False).digest()

    def written(self) -> None:
        """The file is now what ``encode`` gave."""
        self._signature = self._stat()

    def _stat(self) -> Signature | None:
        try:
            stat = os.lstat(self.path)
        except OSError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _stat_fields(stat: os.stat_result) -> bytes:
    """The first ten fields of an entry, each cut to 32 bits as git does."""
    return struct.pack(
        ">10I",
        stat.st_ctime_ns // 10**9 & _MASK,
        stat.st_ctime_ns % 10**9,
        stat.st_mtime_ns // 10**9 & _MASK,
        stat.st_mtime_ns % 10**9,
        stat.st_dev & _MASK,
        stat.st_ino & _MASK,
        _MODE,
        stat.st_uid & _MASK,
        stat.st_gid & _MASK,
        stat.st_size & _MASK,
    )


def _parse(data: bytes) -> dict[bytes, bytes]:
    """The entries of an index file; ``ValueError`` for what we rather build anew."""
    version, count = struct.unpack_from(">II", data, 4)
    if data[:4] != b"DIRC" or version not in (2, 3) or len(data) < 32:
        raise ValueError("not an index of version 2 or 3")
    body, digest = data[:-20], data[-20:]
    if digest != bytes(20) and hashlib.sha1(body, usedforsecurity=False).digest() != digest:
        raise ValueError("checksum mismatch")
    entries: dict[bytes, bytes] = {}
    position = 12
    for _ in range(count):
        flags = _FIXED.unpack_from(body, position)[11]
        start = position + _FIXED.size + (2 if flags & _EXTENDED else 0)
        end = body.index(b"\0", start)
        path = body[start:end]
        if flags & _STAGE:
            raise ValueError("an unmerged entry")
        core = body[position : position + 60] + min(len(path), 0xFFF).to_bytes(2, "big") + path
        entries[path] = core + b"\0" * (8 - len(core) % 8)
        position += (end - position + 8) & ~7
    _check_extensions(body, position)
    return entries


def _check_extensions(body: bytes, position: int) -> None:
    """Extensions with a lower-case name (split or sparse index) change what the entries mean."""
    while position + 8 <= len(body):
        if body[position : position + 1].islower():
            raise ValueError("an extension that we do not read")
        position += 8 + int.from_bytes(body[position + 4 : position + 8], "big")
