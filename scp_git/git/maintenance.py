"""Housekeeping: many small packs of ours become one, and loose run tags are packed, beside the writers.

Nothing that is not ours is touched, and no writer waits for long. Every object is
copied; older versions of wide trees and growing files are stored as deltas.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from scp_git.git.deltas import Deltas
from scp_git.git.entries import PackEntry
from scp_git.git.files import unlink
from scp_git.git.handle import Repository, translated
from scp_git.git.locks import MAINTENANCE, PACKING, Gate, TryLock
from scp_git.git.objects import TAG, tag_target
from scp_git.git.pack import OUR_PREFIX, write_pack
from scp_git.git.publish import Publisher
from scp_git.layout import RUN_TAG_PREFIX

log = logging.getLogger(__name__)

MERGE_FROM = 10
"""Packs of ours from which on they are merged, so that no more than twenty small ones are ever there."""
LOOSE_MAX = 512
"""Loose run tags from which on they are moved to ``packed-refs``."""
_LOOSE_MANY = 64
_TAGS_AT_ONCE = 512
"""Tags that one rewrite of ``packed-refs`` takes in: under the gate each is looked at once more."""
_FILES_AT_ONCE = 32
"""Loose files that are removed while the gate is held once: each needs a lock, of three system calls."""
_TRIES = 3
_BIG_BYTES = 32 * 1024 * 1024
"""Packs of that size are left as they are: copying them costs more than having them."""
_READ_BYTES = 1024 * 1024


def merge_packs(repository: Repository, *, sync: bool, at_least: int = MERGE_FROM) -> bool:
    """Merge small packs of ours if there are so many; True if some were merged.

    Like ``git repack --geometric=2``: afterwards each pack is at least twice as
    large as all smaller ones together, so an object is copied a logarithmic number
    of times. Memory holds their indexes, not the packs.
    """
    folder = repository.common_dir / "objects" / "pack"
    if len(_mergeable(folder)) < at_least:
        return False
    with TryLock(repository.common_dir / "scp" / MAINTENANCE) as alone:
        present = _mergeable(folder)
        packs = _chosen(present)
        if not alone or len(present) < at_least or not _worth_it(present, packs):
            return False
        chosen = _Chosen([_Source(path) for path in packs])
        gate = Gate(repository.common_dir / "scp")
        merged = write_pack(
            repository.common_dir, chosen, count=chosen.count, sync=sync, scratch="merge", gate=gate
        )
        merged.release()
        for path in packs:
            if path.with_suffix("") != merged.stem:
                unlink(path.with_suffix(".idx"))
                unlink(path)
        log.debug("merged %d packs of %d objects", len(packs), chosen.count)
        return True


def pack_tags(repository: Repository, *, at_least: int) -> int:
    """Move loose run tags into ``packed-refs`` if there are so many; returns how many were moved.

    What takes as long as the disk does, writing the new ``packed-refs``, is done
    without the gate; under it the file gets its name, if nothing else moved
    meanwhile. Then the loose files go, a few at a time. In between tags are in both
    places, which git allows. Synced whatever the settings say.
    """
    folder = repository.common_dir / RUN_TAG_PREFIX
    if _count_loose(folder) < at_least:
        return 0
    moved = tries = 0
    with translated("packing tags"), TryLock(repository.common_dir / "scp" / PACKING) as alone:
        packing = _Packing(repository)
        while alone and tries < _TRIES and _count_loose(folder) >= at_least:
            step = packing.some()
            moved += step
            tries = 0 if step else tries + 1
        packing.publisher.intent.close()
    return moved


def _count_loose(folder: Path) -> int:
    try:
        return len(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return 0


class _Packing:
    """The steps of moving tags."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.publisher = Publisher(repository.common_dir, repository.refs, sync=True)
        self._gate = Gate(repository.common_dir / "scp")

    def some(self) -> int:
        """Move so many as are moved at once; returns how many it were."""
        refs = self.repository.refs
        rows = dict(islice(self._annotated(), _TAGS_AT_ONCE))
        packed = refs.packed()
        new = {name: row for name, row in rows.items() if packed.get(name) != row[0]}
        if new and not self._replace(new):
            return 0
        names, moved = list(rows), 0
        for start in range(0, len(names), _FILES_AT_ONCE):
            refs.packed()  # read before the gate is taken
            with self._turn() as clean:
                if clean:
                    moved += self.publisher.drop_loose(names[start : start + _FILES_AT_ONCE])
        return moved

    def _annotated(self) -> Iterator[tuple[str, tuple[str, str | None]]]:
        with self.repository.odb() as reader:
            for name, oid in self.repository.refs.loose(RUN_TAG_PREFIX):
                found = reader.read(oid)
                if found and found[0] == TAG:
                    yield name, (oid, tag_target(found[1]))

    def _replace(self, rows: dict[str, tuple[str, str | None]]) -> bool:
        new = self.publisher.packed_with(rows)
        try:
            with self._turn() as clean:
                return clean and self.publisher.replace_packed(new)
        finally:
            new.lock.release()

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Hold the gate for one step; gives False if a dead process must be cleaned up after first.

        The next transaction does that, and its intent must not be overwritten.
        Afterwards the gate is left alone for as long as it was held: whoever takes it
        again at once comes before those that wait.
        """
        with self._gate:
            began = time.monotonic()
            yield not self.publisher.intent.read()
            took = time.monotonic() - began
        time.sleep(took)


@dataclass(frozen=True, slots=True)
class Maintenance:
    """What housekeeping did."""

    packs_merged: int = 0
    """How many packs fewer there are."""
    tags_packed: int = 0
    tags_made: int = 0


def tidy(repository: Repository) -> Maintenance:
    """Merge packs and pack loose run tags, as far as that is worth it, step by step beside the writers.

    Synced whatever the settings say, as it replaces what may have been.
    """
    with translated("housekeeping"):
        if not (repository.common_dir / "scp").is_dir():  # nothing was ever written
            return Maintenance()
        packed = pack_tags(repository, at_least=_LOOSE_MANY)
        before = _count_packs(repository)
        merge_packs(repository, sync=True, at_least=2)
    return Maintenance(packs_merged=max(before - _count_packs(repository), 0), tags_packed=packed)


def _count_packs(repository: Repository) -> int:
    names = os.listdir(repository.common_dir / "objects" / "pack")
    return sum(name.startswith(OUR_PREFIX) and name.endswith(".pack") for name in names)


def _mergeable(folder: Path) -> list[tuple[int, Path]]:
    """Object count and path of the packs of ours that are published, complete and not big, smallest first.

    Counted in objects, not bytes: a fresh pack holds its trees uncompressed.
    """
    names = set(os.listdir(folder))
    stems = {name.removesuffix(".pack") for name in names if name.startswith(OUR_PREFIX)}
    found = []
    for stem in stems:
        if {f"{stem}.pack", f"{stem}.idx"} <= names and f"{stem}.keep" not in names:
            try:
                with open(folder / f"{stem}.pack", "rb") as file:
                    if os.fstat(file.fileno()).st_size < _BIG_BYTES:
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


def _worth_it(present: list[tuple[int, Path]], chosen: list[Path]) -> bool:
    """Whether there are many packs, or a few of about one size."""
    if len(present) >= MERGE_FROM or len(chosen) != 2:
        return len(chosen) >= 2
    return present[1][0] < 2 * present[0][0]


# ---------------------------------------------------------------- reading packs of ours


class _Source:
    """A pack that we wrote: full objects, and deltas that name their base by id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.age = path.stat().st_mtime_ns
        index = path.with_suffix(".idx").read_bytes()
        count = int.from_bytes(index[8 + 1020 : 8 + 1024], "big")
        ids, offsets = 8 + 1024, 8 + 1024 + count * 24
        column = struct.unpack_from(f">{count}I", index, offsets)
        order = sorted(range(count), key=column.__getitem__)
        if order and column[order[-1]] >= 2**31:
            raise OSError("a pack of 2 GiB is not merged")
        self.oids = [index[ids + 20 * i : ids + 20 * i + 20] for i in order]
        """In the order of the pack."""
        self.offsets = array("I", [column[i] for i in order])

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Id and data of each entry, in the order of the pack."""
        with open(self.path, "rb", buffering=_READ_BYTES) as file:
            ends = [*self.offsets[1:], os.fstat(file.fileno()).st_size - 20]
            file.seek(self.offsets[0] if self.offsets else 0)
            for oid, start, end in zip(self.oids, self.offsets, ends, strict=True):
                data = file.read(end - start)
                if len(data) != end - start:
                    raise OSError(f"{self.path.name} is cut short")
                yield oid, data


class _Chosen:
    """The entries of several packs, newest pack first and each object once; older versions become deltas."""

    def __init__(self, sources: list[_Source]) -> None:
        self._sources = sorted(sources, key=lambda source: source.age, reverse=True)
        self._wanted = {oid for source in sources for oid in source.oids}
        self.count = len(self._wanted)
        self._deltas = Deltas()

    def __iter__(self) -> Iterator[PackEntry]:
        for source in self._sources:
            for oid, data in source.entries():
                if oid in self._wanted:
                    self._wanted.remove(oid)
                    yield PackEntry(oid.hex(), self._deltas.encode(oid, data))
