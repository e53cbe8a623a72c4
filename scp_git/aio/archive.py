"""The verbs for many runs at once, awaited."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing, closing

from scp_git.aio.core import offload
from scp_git.aio.ledger import AsyncLedgerVerbs
from scp_git.git.maintenance import Maintenance
from scp_git.ledger.importing import ImportReport
from scp_git.store.importing import SLICE, Import, Item, Progress, Source


class AsyncArchiveVerbs(AsyncLedgerVerbs):
    """Moving runs to the archive and importing many; otherwise as ``AsyncLedgerVerbs``."""

    async def archive_runs(self, *, older_than_days: float, drop_tags: bool = False) -> int:
        """Move all runs older than so many days to the archive; returns how many it changed."""
        return await offload(self.store.archive_runs, older_than_days=older_than_days, drop_tags=drop_tags)

    async def import_runs(
        self, runs: Source, *, strict: bool = False, on_progress: Progress | None = None
    ) -> ImportReport:
        """Store many runs from an iterable or async iterable; see ``Store.import_runs``.

        A plain iterable is iterated in a worker thread, an async one on the loop,
        where ``on_progress`` is called, too. When the call is cancelled, what was
        stored stays; import the same again to complete it.
        """
        job = await offload(self.store.importing, strict=strict)
        with closing(job):
            async with aclosing(_fed(job, runs)) as turns:
                async for _ in turns:
                    if on_progress is not None:
                        on_progress(job.report)
            return await offload(job.finish)

    async def maintain(self, *, tags: bool = False) -> Maintenance:
        """Merge packs and pack loose tags, as far as that is worth it; see ``Store.maintain``."""
        return await offload(self.store.maintain, tags=tags)


async def _fed(job: Import, runs: Source) -> AsyncGenerator[None]:
    """Feed a job slice by slice, each in one hop to a worker thread."""
    if isinstance(runs, AsyncIterable):
        items: list[Item] = []
        async for item in runs:
            items.append(item)
            if len(items) == SLICE:
                await offload(job.feed, iter(items))
                items.clear()
                yield
        await offload(job.feed, iter(items))
    elif isinstance(runs, Iterable):
        iterator = iter(runs)
        while await offload(job.feed, iterator):
            yield
    else:
        raise TypeError(f"runs must be an iterable, not {type(runs).__name__}")
