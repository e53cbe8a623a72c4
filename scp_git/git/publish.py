"""Moving refs: all of a transaction's, in order, by compare-and-swap, recorded in the intent.

The order is archive, ledger, notes, tags, as readers take the ledger's tip first
and the archive's last. Before any ref moves, the *intent* says what will move and
which lock files are ours; after a crash it is rolled forward or discarded
(``recovery.py``).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scp_git.errors import RepositoryBusy, StorageFailed
from scp_git.git.files import CheckedRecord, sync_dir, unlink
from scp_git.git.locks import INDEX_LOCK_STALE_S, LockFile
from scp_git.git.objects import is_oid
from scp_git.git.refs import PackedVersion, Refs
from scp_git.layout import RUN_TAG_PREFIX

log = logging.getLogger(__name__)

SCRATCH_PREFIX = "lock-"
PACKED_NEW = "packed-refs"
"""The next ``packed-refs`` while it is being written, in the folder of the gate."""
# A loose ref costs two fsyncs, packed-refs two and its size; from here on the latter is quicker.
_PACK_FROM = 12
_PACKED_BYTES_PER_LOOSE_REF = 64 * 1024


class RefMoved(Exception):
    """A ref no longer has the value that the transaction was built on; build it again."""


class RefChange(NamedTuple):
    """One ref from ``old`` to ``new``; None means absent. ``peeled`` is a tag's commit."""

    name: str
    old: str | None
    new: str | None
    peeled: str | None = None

    @classmethod
    def parse(cls, value: Any) -> RefChange:
        name, old, new, peeled = value
        if not isinstance(name, str) or not all(v is None or is_oid(v) for v in (old, new, peeled)):
            raise ValueError("not a ref change")
        return cls(name, old, new, peeled)


@dataclass(frozen=True, slots=True)
class Intent:
    """What a transaction is about to do."""

    changes: tuple[RefChange, ...]
    locks: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, value: dict[str, Any]) -> Intent:
        changes = tuple(RefChange.parse(item) for item in value["refs"])
        return cls(changes, tuple((str(path), int(inode)) for path, inode in value["locks"]))


@dataclass(frozen=True, slots=True)
class PackedNew:
    """A ``packed-refs`` that was written and is not yet in its place."""

    lock: LockFile
    version: PackedVersion
    """Of the file that it is to replace."""
    rows: Mapping[str, tuple[str, str | None]]


class Publisher:
    """Moves refs below one common git dir; used under the gate only, but for ``packed_with``."""

    def __init__(self, common_dir: Path, refs: Refs, *, sync: bool) -> None:
        self.common_dir = common_dir
        self.refs = refs
        self.sync = sync
        self.folder = common_dir / "scp"
        self.intent = CheckedRecord(self.folder / "intent")
        self.packs = 0
        """How many packs of ours there were when the last transaction began."""

    def publish(
        self,
        changes: Sequence[RefChange],
        deadline: float,
        extra: Sequence[LockFile] = (),
        *,
        resume: Intent | None = None,
    ) -> None:
        """Move all refs, or none of them if one is not at ``old``.

        ``extra`` locks (the view's) are named in the intent and taken if free at
        once; whoever passed them commits or releases them. ``resume`` is the intent
        of a dead process that ``changes`` complete: it stays declared until they are.

        Raises:
            RefMoved: somebody else moved one of them; nothing was changed.
            RepositoryBusy: a lock stayed taken until ``deadline``; nothing was changed.
            OSError: before the first move nothing was changed; later ``recover`` completes it.
        """
        bulk = self._bulk(changes)
        loose = [change for change in changes if change not in bulk]
        packed = bulk | self._packed_removals(loose)
        locks: list[LockFile] = []
        refs_lock: LockFile | None = None
        moved = False
        try:
            for change in loose:
                locks.append(self._lock(change.name, len(locks), change.new))
            refs_lock = self._lock("packed-refs", len(locks), None) if packed else None
            taken = [*locks, *([refs_lock] if refs_lock else [])]
            self._declare(resume.changes if resume else changes, [*taken, *extra])
            for lock in taken:
                lock.take(deadline)
            for lock in extra:
                _take_if_free(lock)
            self._check(changes, bulk)
            moved = True
            pairs = list(zip(loose, locks, strict=True))
            self._move(pair for pair in pairs if not _is_tag(pair[0]))
            if refs_lock:
                self._rewrite_packed(refs_lock, packed)
            self._move(pair for pair in pairs if _is_tag(pair[0]))
            if self.sync:
                self._sync_folders([change.name for change in loose], bool(packed))
        finally:
            for lock in [*locks, *([refs_lock] if refs_lock else [])]:
                lock.release()
            if not moved and resume is None:
                self.done()

    def done(self) -> None:
        """Forget the intent: refs and view are as they should be."""
        try:
            self.intent.clear()
        except OSError as exc:  # it is harmless: recovery finds nothing left to do
            log.warning("the intent could not be cleared: %s", exc)

    # ------------------------------------------------------------ steps

    def _lock(self, name: str, number: int, new: str | None, *, like: LockFile | None = None) -> LockFile:
        scratch = self.folder / f"{SCRATCH_PREFIX}{number}"
        if like is not None:
            return like.sibling(self.common_dir / name, scratch)
        content = (new.encode() + b"\n",) if new else ()
        return LockFile(self.common_dir / name, scratch, content, sync=self.sync and bool(new))

    def _declare(self, changes: Sequence[RefChange], locks: Iterable[LockFile]) -> None:
        value = {
            "refs": list(changes),
            "locks": [[os.path.relpath(lock.path, self.common_dir), lock.inode] for lock in locks],
        }
        self.intent.write(value, sync=self.sync and len(changes) > 1)

    def _check(self, changes: Sequence[RefChange], bulk: set[RefChange]) -> None:
        survey = self.refs.survey(RUN_TAG_PREFIX) if bulk else None
        for change in changes:
            refs = survey if survey and change.name.startswith(RUN_TAG_PREFIX) else self.refs
            if refs.read_direct(change.name) != change.old:
                raise RefMoved(change.name)
            if change.old is None and change.new is not None and change not in bulk:
                obstacle = self.refs.obstacle(change.name)
                if obstacle:
                    raise StorageFailed(f"creating {change.name}", f"the ref {obstacle} is in the way")

    def _move(self, pairs: Iterable[tuple[RefChange, LockFile]]) -> None:
        for change, lock in pairs:
            if change.new is None:
                unlink(lock.target)
                lock.release()
            else:
                lock.commit()

    def _sync_folders(self, names: Iterable[str], packed: bool) -> None:
        for folder in dict.fromkeys(os.path.dirname(name) for name in names):
            try:
                sync_dir(self.common_dir / folder)
            except FileNotFoundError:  # git has packed the refs of this folder and removed it
                packed = True
        if packed:
            sync_dir(self.common_dir)

    # ------------------------------------------------------------ packed-refs

    def _bulk(self, changes: Sequence[RefChange]) -> set[RefChange]:
        """The new tags, if they are so many that one rewrite of ``packed-refs`` is quicker."""
        new = {change for change in changes if change.old is None and change.new and _is_tag(change)}
        size = _size(self.common_dir / "packed-refs")
        return new if len(new) >= _PACK_FROM + size // _PACKED_BYTES_PER_LOOSE_REF else set()

    def _packed_removals(self, changes: Iterable[RefChange]) -> set[RefChange]:
        removed = [change for change in changes if change.new is None]
        packed = self.refs.packed()
        return {change for change in removed if packed.get(change.name) is not None}

    def _rewrite_packed(self, lock: LockFile, changes: set[RefChange]) -> None:
        rows = {change.name: (change.new, change.peeled) if change.new else None for change in changes}
        write_packed(lock, self.refs.packed().spliced(rows), sync=self.sync)

    # ------------------------------------------------------------ housekeeping

    def packed_with(self, rows: Mapping[str, tuple[str, str | None]]) -> PackedNew:
        """A new ``packed-refs`` with these loose tags in it, written beside the present one.

        To be done without the gate, as it takes as long as the disk does; by whoever
        holds the lock ``packing``.
        """
        present = self.refs.packed()
        content = present.spliced(rows)
        path, scratch = self.common_dir / "packed-refs", self.folder / PACKED_NEW
        return PackedNew(LockFile(path, scratch, content, sync=self.sync), present.version, dict(rows))

    def replace_packed(self, new: PackedNew) -> bool:
        """Let the new ``packed-refs`` take its place; the loose tags stay, and say the same.

        False, and no change, if it is locked, or it or one of the tags moved meanwhile.
        """
        try:
            self._declare([], [new.lock])
            if not _take_at_once(new.lock) or self.refs.packed().version != new.version:
                return False
            if any(self.refs.read_direct(name) != row[0] for name, row in new.rows.items()):
                return False
            new.lock.commit()
            if self.sync:
                sync_dir(self.common_dir)
            return True
        finally:
            new.lock.release()
            self.done()

    def drop_loose(self, names: Sequence[str]) -> int:
        """Remove the loose files of tags where ``packed-refs`` says the same; returns how many went.

        Each under its lock: one that is locked stays.
        """
        dropped = 0
        locks: list[LockFile] = []
        try:
            for number, name in enumerate(names):
                locks.append(self._lock(name, number, None, like=locks[0] if locks else None))
            self._declare([], locks)
            for name, lock in zip(names, locks, strict=True):
                oid = self.refs.read_loose(name) if _take_at_once(lock) else None
                if oid is not None and oid == self.refs.packed().get(name):
                    unlink(lock.target)
                    dropped += 1
        finally:
            for lock in locks:
                lock.release()
            self.done()
        return dropped


def write_packed(lock: LockFile, pieces: Iterable[bytes], *, sync: bool) -> None:
    """Replace ``packed-refs`` under its lock."""
    lock.fill(pieces, sync=sync)
    lock.commit()


def _is_tag(change: RefChange) -> bool:
    return change.name.startswith("refs/tags/")


def _take_at_once(lock: LockFile) -> bool:
    try:
        lock.take(time.monotonic())
    except RepositoryBusy:
        return False
    return True


def _take_if_free(lock: LockFile) -> None:
    try:
        lock.take(time.monotonic(), INDEX_LOCK_STALE_S)
    except (RepositoryBusy, OSError) as exc:
        log.info("%s is taken, the view follows later: %s", lock.path.name, exc)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as exc:
        if isinstance(exc, FileNotFoundError):
            return 0
        raise StorageFailed("reading packed-refs", exc) from exc
