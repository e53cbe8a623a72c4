"""The verbs for many runs at once, awaited."""

from __future__ import annotations

from scp_git.aio.core import offload
from scp_git.aio.ledger import AsyncLedgerVerbs


class AsyncArchiveVerbs(AsyncLedgerVerbs):
    """Moving runs to the archive; otherwise as ``AsyncLedgerVerbs``."""

    async def archive_runs(self, *, older_than_days: float, drop_tags: bool = False) -> int:
        """Move all runs older than so many days to the archive; returns how many it changed."""
        return await offload(self.store.archive_runs, older_than_days=older_than_days, drop_tags=drop_tags)
