"""The verbs for many runs at once, synchronous: archiving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from scp_git.ledger.archive import ArchiveRuns
from scp_git.store.ledger import LedgerVerbs
from scp_git.ticket import Ticket

_CHUNK = 500


class ArchiveVerbs(LedgerVerbs):
    """Moving runs to the archive; otherwise as ``LedgerVerbs``."""

    def archive_runs(self, *, older_than_days: float, drop_tags: bool = False) -> int:
        """Move all runs that started more than so many days ago to the archive; returns how many it changed.

        Every verb sees archived runs as before; they leave the view. With
        ``drop_tags`` their tags go, too, also those of runs archived earlier; the
        messages stay, and recording the run again, or ``maintain``, makes the tag anew.
        """
        limit = self._limit(older_than_days)
        if limit is None:
            return 0
        changed = 0
        for chosen in chunks(self._index.ids_before(limit, archived=drop_tags)):
            changed += len(self._wait(Ticket(partial(ArchiveRuns, chosen, drop_tags), size=1024)))
        return changed


def chunks(run_ids: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """A few hundred at a time, so that other writers get their turns."""
    for start in range(0, len(run_ids), _CHUNK):
        yield tuple(run_ids[start : start + _CHUNK])
