"""The archive: older runs leave the wide tree of the ledger branch, so that a write costs the same for ever.

Moving a run grafts its folder's tree entry onto the archive branch; none of its
files is read or written. Readers look in both places.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from scp_git.errors import StorageFailed
from scp_git.git.anchors import anchored_tag, read_record
from scp_git.git.transaction import Transaction
from scp_git.git.tree import decode_name, is_dir
from scp_git.ids import is_valid_id
from scp_git.layout import RUN_FILE, RUNS, archived_run_dir, run_dir

log = logging.getLogger(__name__)

_MORE_THAN_ADDED = 64
_KNOWN_MORE = 1024


class HotWindow:
    """The last step of every transaction: above ``hot_max`` hot runs, the oldest are archived.

    Down to ``hot_min``, but at most 64 more than the transaction added, so that no
    write pays for a long past. A transaction that added none (a merge, a deletion)
    moves none: clones with different windows would never come to rest otherwise.

    When runs started is kept by their tree entries, which name the content: so it is
    never out of date, and a write reads no run but its own.
    """

    size = 0

    def __init__(self, hot_max: int, hot_min: int) -> None:
        self.hot_max = hot_max
        self.hot_min = min(hot_min, hot_max)
        self._started: dict[bytes, str] = {}

    def apply(self, tx: Transaction) -> int:
        """How many runs were moved."""
        if not self.hot_max or not tx.recorded:
            return 0
        for run_id, started_at in tx.recorded:
            raw = tx.ledger.raw(run_dir(run_id))
            if raw is not None:
                self._started[raw] = started_at
        hot = tx.ledger.folder(RUNS)
        if hot is None:
            return 0
        if len(self._started) > 2 * len(hot) + _KNOWN_MORE:
            self._forget(tx)
        if len(hot) <= self.hot_max:
            return 0
        count = min(len(hot) - self.hot_min, len(tx.recorded) + _MORE_THAN_ADDED)
        oldest = heapq.nsmallest(count, self._keys(tx))
        moved = sum(archive_run(tx, run_id) for _, run_id in oldest)
        if moved:
            self._forget(tx)
            tx.subjects.append(f"ledger: archive {moved} runs")
        return moved

    def _keys(self, tx: Transaction) -> Iterator[tuple[str, str]]:
        """(``started_at``, id) of every hot run; a damaged one counts as the oldest."""
        hot = tx.ledger.folder(RUNS)
        for name, raw in list(hot.raw_items().items()) if hot else ():
            run_id = decode_name(name)
            if is_dir(raw) and is_valid_id(run_id):
                started_at = self._started.get(raw)
                if started_at is None:
                    started_at = self._started[raw] = _read_start(tx, run_id)
                yield started_at, run_id

    def _forget(self, tx: Transaction) -> None:
        """Keep what is known of runs that are hot, no more."""
        hot = tx.ledger.folder(RUNS)
        known, self._started = self._started, {}
        for raw in hot.raw_items().values() if hot else ():
            if raw in known:
                self._started[raw] = known[raw]


def _read_start(tx: Transaction, run_id: str) -> str:
    try:
        record = read_record(tx.ledger, f"{run_dir(run_id)}/{RUN_FILE}") or {}
    except StorageFailed:
        return ""
    return str(record.get("started_at", ""))


def archive_run(tx: Transaction, run_id: str) -> bool:
    """The run lies on the archive branch only; False if it was not hot, or must stay.

    It stays where the archive holds another version of it already: the next merge
    makes one of both.
    """
    raw = tx.ledger.raw(run_dir(run_id))
    if raw is None or not is_dir(raw):
        return False
    place = archived_run_dir(run_id)
    present = tx.archive.raw(place)
    if present is not None and present != raw:
        log.warning("run %s stays hot: the archive holds another version of it", run_id)
        return False
    tx.archive.graft(place, raw, whole=True)
    tx.ledger.remove(run_dir(run_id))
    return True


@dataclass(frozen=True, slots=True)
class ArchiveRuns:
    """Afterwards the runs lie in the archive and, if wished, have no tag; gives the ids of those it changed.

    A tag that its run's anchor does not explain is left: it could not be made again.
    """

    run_ids: tuple[str, ...]
    drop_tags: bool
    size: int = 1024

    def apply(self, tx: Transaction) -> list[str]:
        changed = [run_id for run_id in self.run_ids if self._archive(tx, run_id)]
        if changed:
            tx.subjects.append(f"ledger: archive {len(changed)} runs")
        return changed

    def _archive(self, tx: Transaction, run_id: str) -> bool:
        moved = archive_run(tx, run_id)
        return (self.drop_tags and _drop_tag(tx, run_id)) or moved


def _drop_tag(tx: Transaction, run_id: str) -> bool:
    tag = tx.tag(run_id)
    if tag is None or anchored_tag(tx, run_id) != tag:
        return False
    tx.remove_tag(run_id)
    return True


@dataclass(frozen=True, slots=True)
class ProjectTags:
    """Afterwards the runs have their tags, as far as their anchors allow; gives how many were made."""

    run_ids: tuple[str, ...]
    size: int = 1024

    def apply(self, tx: Transaction) -> int:
        missing = [run_id for run_id in self.run_ids if tx.tag(run_id) is None]
        for run_id in missing:
            tx.project_tag(run_id)
        return sum(tx.tag(run_id) is not None for run_id in missing)
