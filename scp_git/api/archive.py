"""The module-level functions for many runs at once. They raise: what was not done must not look done."""

from __future__ import annotations

from scp_git.api.core import Root, store_of
from scp_git.git.maintenance import Maintenance
from scp_git.ledger.importing import ImportReport
from scp_git.store.importing import Progress, Source


async def archive_runs(project_root: Root, *, older_than_days: float, drop_tags: bool = False) -> int:
    """All runs that started more than so many days ago lie in the archive; returns how many were changed."""
    store = await store_of(project_root)
    return await store.archive_runs(older_than_days=older_than_days, drop_tags=drop_tags)


async def import_runs(
    project_root: Root, runs: Source, *, strict: bool = False, on_progress: Progress | None = None
) -> ImportReport:
    """Many runs are stored, from an iterable or async iterable; see ``Store.import_runs``."""
    return await (await store_of(project_root)).import_runs(runs, strict=strict, on_progress=on_progress)


async def maintain(project_root: Root, *, tags: bool = False) -> Maintenance:
    """Packs are merged and loose tags packed, as far as that is worth it; see ``Store.maintain``."""
    return await (await store_of(project_root)).maintain(tags=tags)
