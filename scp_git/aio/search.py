"""The verb for searching, awaited."""

from __future__ import annotations

from collections.abc import Iterable

from scp_git.aio.core import AsyncCore, offload
from scp_git.models import SearchHit, SearchKind


class AsyncSearchVerbs(AsyncCore):
    """Finding runs, messages, traces and threads by their words."""

    async def search(
        self, query: str, *, kinds: Iterable[SearchKind] | None = None, n: int = 20
    ) -> list[SearchHit]:
        """The newest ``n`` records that hold every word and ``"phrase"`` of the query."""
        return await offload(self.store.search, query, kinds=kinds, n=n)
