"""Searching and counting at module level: reads, so on failure they return nothing, log and publish."""

from __future__ import annotations

from collections.abc import Iterable

from scp_git.api.core import Root, guarded
from scp_git.index.stats import LedgerStats
from scp_git.models import SearchHit, SearchKind


async def search(
    project_root: Root, query: str, *, kinds: Iterable[SearchKind] | None = None, n: int = 20
) -> list[SearchHit]:
    """The newest ``n`` runs, messages, traces and threads that hold every word of the query."""
    return await guarded(project_root, "search", [], lambda store: store.search(query, kinds=kinds, n=n))


async def stats(project_root: Root) -> LedgerStats:
    """How many runs, messages, threads and traces there are, and the room they take; all 0 on failure."""
    return await guarded(project_root, "stats", LedgerStats(), lambda store: store.stats())
