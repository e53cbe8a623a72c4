"""The verbs for many runs at once, synchronous: archiving, importing, exporting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

from scp_git.git.maintenance import Maintenance, tidy
from scp_git.ledger.archive import ArchiveRuns, ProjectTags
from scp_git.ledger.exporting import export_lines, run_ids
from scp_git.ledger.importing import ImportReport
from scp_git.store.importing import Import, Progress, Source
from scp_git.store.ledger import LedgerVerbs
from scp_git.ticket import Ticket

_CHUNK = 500


class ArchiveVerbs(LedgerVerbs):
    """Moving runs to the archive and importing many; otherwise as ``LedgerVerbs``."""

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

    def import_runs(
        self, runs: Source, *, strict: bool = False, on_progress: Progress | None = None
    ) -> ImportReport:
        """Store many runs, each a ``Run`` or ``(Run, events)``; memory does not grow with their number.

        All but the newest ``hot_min`` go straight to the archive. A run is stored
        as it is given, an empty ``user`` or ``code_ref`` stays empty. Runs that are
        there already with the same content are passed over, so an import that was
        interrupted is simply repeated. What cannot be stored is counted and listed
        (invalid, deleted, id taken by other content); with ``strict`` it is raised.
        ``on_progress`` is called with the report so far, now and then. A long import
        starts helper processes (``Settings.import_helpers``), which end with it.

        An async iterable is for ``AsyncStore``. Raises ``RepositoryBusy`` or
        ``StorageFailed``; ``TypeError`` for an item that is no run.
        """
        if not isinstance(runs, Iterable):
            raise TypeError(f"runs must be an iterable, not {type(runs).__name__}")
        items = iter(runs)
        with closing(self.importing(strict=strict)) as job:
            while job.feed(items):
                if on_progress is not None:
                    on_progress(job.report)
            return job.finish()

    def maintain(self, *, tags: bool = False) -> Maintenance:
        """Merge packs and pack loose tags, as far as that is worth it; returns what was done.

        Writers go on meanwhile. Writes do the same in small steps by themselves, so
        this is never needed. With ``tags`` missing tags are made from their anchors,
        also those of archived runs. Repeat it to go on where a crash ended it.
        """
        made = 0
        for chosen in chunks(run_ids(self._repository) if tags else []):
            made += self._wait(Ticket(partial(ProjectTags, chosen), size=1024))
        done = tidy(self._repository)
        self._writer.committer.forget_objects()
        return replace(done, tags_made=made)

    def export_lines(self) -> Iterator[bytes]:
        """Every run with its events as a line of JSON, oldest first, as ``scp-git ledger import`` reads it.

        Read from one state, while others may be writing. What is damaged is left out and logged.
        """
        return export_lines(self._repository)

    def importing(self, *, strict: bool) -> Import:
        """An import to be fed, for the async facade too."""
        return Import(
            self._repository,
            self.submit,
            self._outcome,
            hot_max=self.settings.hot_max,
            hot_min=self.settings.hot_min,
            helpers=self.settings.import_helpers,
            strict=strict,
            meta=self._meta,
        )


def chunks(ids: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """A few hundred at a time, so that other writers get their turns."""
    for start in range(0, len(ids), _CHUNK):
        yield tuple(ids[start : start + _CHUNK])
