"""The verbs for searching and counting, awaited."""

from __future__ import annotations

from collections.abc import Iterable

from scp_git.aio.core import AsyncCore, offload
from scp_git.index.stats import LedgerStats
from scp_git.models import SearchHit, SearchKind


class AsyncSearchVerbs(AsyncCore):
    """Finding runs, messages, traces and threads by their words, and counting them."""

    async def search(
        self, query: str, *, kinds: Iterable[SearchKind] | None = None, n: int = 20
    ) -> list[SearchHit]:
        """The newest ``n`` records that hold every word and ``"phrase"`` of the query."""
        return await offload(self.store.search, query, kinds=kinds, n=n)

    async def stats(self) -> LedgerStats:
        """How many runs, messages, threads and traces there are, and the room they take on the disk."""
        return await offload(self.store.stats)
