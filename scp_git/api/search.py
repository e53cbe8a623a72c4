"""The module-level search: a read, so on failure it returns nothing, logs and publishes."""

from __future__ import annotations

from collections.abc import Iterable

from scp_git.api.core import Root, guarded
from scp_git.models import SearchHit, SearchKind


async def search(
    project_root: Root, query: str, *, kinds: Iterable[SearchKind] | None = None, n: int = 20
) -> list[SearchHit]:
    """The newest ``n`` runs, messages, traces and threads that hold every word of the query."""
    return await guarded(project_root, "search", [], lambda store: store.search(query, kinds=kinds, n=n))
