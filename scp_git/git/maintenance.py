"""Housekeeping: many small packs of ours become one, beside the writers.

Nothing that is not ours is touched, no writer waits for it, and every object is
copied. Wide trees that differ in an entry or two are stored as deltas, and so are the
versions of a file that has grown line by line.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scp_git.git.files import unlink
from scp_git.git.handle import Repository
from scp_git.git.locks import MAINTENANCE, Gate, TryLock
from scp_git.git.pack import OUR_PREFIX, PackEntry, entry_header, write_pack

log = logging.getLogger(__name__)

MERGE_FROM = 10
"""Packs of ours from which on they are merged, so that no more than twenty are ever there."""
_TREE, _BLOB, _REF_DELTA = 2, 3, 7
_DELTA_FROM = 512
_CANDIDATES = 4
_BEGINNING = 128
"""Files that begin alike are taken for versions of one file."""
_DELTA_UP_TO = 64 * 1024
_VERSIONED = 256
"""So many files are kept in memory to compare older versions with."""
_COPY_MAX = 0x10000


def merge_packs(repository: Repository, *, sync: bool) -> bool:
    """Merge small packs of ours if there are many; True if some were merged.

    Like ``git repack --geometric=2``: afterwards each pack is at least twice as
    large as all smaller ones together, so an object is copied a logarithmic number
    of times.
    """
    folder = repository.common_dir / "objects" / "pack"
    if len(_mergeable(folder)) < MERGE_FROM:
        return False
    with TryLock(repository.common_dir / "scp" / MAINTENANCE) as alone:
        present = _mergeable(folder)
        packs = _chosen(present)
        if not alone or len(present) < MERGE_FROM or len(packs) < 2:
            return False
        entries = _merged([_Source(path) for path in packs])
        gate = Gate(repository.common_dir / "scp")
        merged = write_pack(repository.common_dir, entries, sync=sync, scratch="merge", gate=gate)
        merged.release()
        for path in packs:
            if path.with_suffix("") != merged.stem:
                unlink(path.with_suffix(".idx"))
                unlink(path)
        log.debug("merged %d packs of %d objects", len(packs), len(entries))
        return True


def _mergeable(folder: Path) -> list[tuple[int, Path]]:
    """Object count and path of the packs of ours that are published and complete, smallest first.

    Counted in objects, not bytes: a fresh pack holds its trees uncompressed.
    """
    names = set(os.listdir(folder))
    stems = {name.removesuffix(".pack") for name in names if name.startswith(OUR_PREFIX)}
    found = []
    for stem in stems:
        if {f"{stem}.pack", f"{stem}.idx"} <= names and f"{stem}.keep" not in names:
            try:
                with open(folder / f"{stem}.pack", "rb") as file:
                    found.append((int.from_bytes(file.read(12)[8:], "big"), folder / f"{stem}.pack"))
            except FileNotFoundError:
                continue
    return sorted(found)


def _chosen(packs: list[tuple[int, Path]]) -> list[Path]:
    """The smallest packs, so many that every other one is at least twice as large as all below it."""
    cut = len(packs)
    below = sum(count for count, _ in packs)
    while cut > 2 and packs[cut - 1][0] >= 2 * (below - packs[cut - 1][0]):
        cut -= 1
        below -= packs[cut][0]
    return [path for _, path in packs[:cut]]


# ---------------------------------------------------------------- reading packs of ours


@dataclass(slots=True)
class _Found:
    """One entry of a pack: its id, its kind (a pack type number) and its bytes as they lie there."""

    oid: str
    kind: int
    data: bytes
    payload: int
    """Where the compressed data begins."""

    def inflate(self) -> bytes:
        return zlib.decompress(self.data[self.payload :])


class _Source:
    """A pack that we wrote: full objects, and deltas that name their base by id."""

    def __init__(self, path: Path) -> None:
        self._pack = path.read_bytes()
        self._index = path.with_suffix(".idx").read_bytes()
        self.age = path.stat().st_mtime_ns

    def entries(self) -> Iterator[_Found]:
        """In the order of the pack."""
        count = int.from_bytes(self._pack[8:12], "big")
        ids, offsets = 8 + 1024, 8 + 1024 + count * 24
        column = struct.unpack_from(f">{count}I", self._index, offsets)
        table = sorted((offset, i) for i, offset in enumerate(column))
        if table and table[-1][0] >= 2**31:
            raise OSError("a pack of 2 GiB is not merged")
        ends = [offset for offset, _ in table[1:]] + [len(self._pack) - 20]
        for (start, i), end in zip(table, ends, strict=True):
            oid = self._index[ids + 20 * i : ids + 20 * i + 20].hex()
            data = self._pack[start:end]
            payload = next(n for n, byte in enumerate(data) if byte < 0x80) + 1
            kind = data[0] >> 4 & 7
            yield _Found(oid, kind, data, payload + (20 if kind == _REF_DELTA else 0))


def _merged(sources: list[_Source]) -> list[PackEntry]:
    """All entries, newest first and each object once; wide trees become deltas of a newer one."""
    result: dict[str, PackEntry] = {}
    full: list[tuple[str, bytes]] = []
    files: dict[bytes, tuple[str, bytes]] = {}
    for source in sorted(sources, key=lambda source: source.age, reverse=True):
        for found in reversed(list(source.entries())):
            if found.oid in result:
                continue
            entry = PackEntry(found.oid, found.data)
            if found.kind == _TREE and len(found.data) >= _DELTA_FROM:
                entry = _as_delta(found, full) or _compressed(found)
            elif found.kind == _BLOB and _DELTA_FROM <= len(found.data) <= _DELTA_UP_TO:
                entry = _as_older_version(found, files) or entry
            result[found.oid] = entry
    return list(result.values())


def _as_delta(found: _Found, full: list[tuple[str, bytes]]) -> PackEntry | None:
    data = found.inflate()
    best: bytes | None = None
    base = ""
    for oid, candidate in reversed(full[-_CANDIDATES:]):
        delta = make_delta(candidate, data)
        if len(delta) < len(data) // 2 and (best is None or len(delta) < len(best)):
            best, base = delta, oid
    if best is None:
        full.append((found.oid, data))
        return None
    return _delta_entry(found.oid, best, base)


def _as_older_version(found: _Found, files: dict[bytes, tuple[str, bytes]]) -> PackEntry | None:
    """A file as a delta of the newest that begins alike; ``None`` if it is the first, or too different."""
    data = found.inflate()
    base, newest = files.setdefault(data[:_BEGINNING], (found.oid, data))
    if base == found.oid:
        if len(files) > _VERSIONED:
            del files[next(iter(files))]
        return None
    delta = make_delta(newest, data)
    return _delta_entry(found.oid, delta, base) if 2 * len(delta) < len(data) else None


def _delta_entry(oid: str, delta: bytes, base: str) -> PackEntry:
    header = entry_header(_REF_DELTA, len(delta)) + bytes.fromhex(base)
    return PackEntry(oid, header + zlib.compress(delta, 6))


def _compressed(found: _Found) -> PackEntry:
    data = found.inflate()
    return PackEntry(found.oid, entry_header(_TREE, len(data)) + zlib.compress(data, 6))


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
