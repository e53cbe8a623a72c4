"""The module-level functions for runs. None raises a ``ScpGitError``; see the policy in ``api.core``."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from scp_git.api.core import Root, guarded, store_of
from scp_git.errors import ScpGitError
from scp_git.ledger.tracking import TrackedRun
from scp_git.models import Run
from scp_git.store.core import report_failure
from scp_git.store.ledger import Events


async def ensure_ledger(project_root: Root) -> Path | None:
    """The ledger's branch, view and tags are there and healthy; returns the view's path.

    ``None`` in a bare repository, which has no view, and on failure.
    """
    return await guarded(project_root, "ensure_ledger", None, lambda store: store.ensure_ledger())


async def record_run(project_root: Root, run: Run, events: Events | None = None) -> str:
    """The run is stored durably with its events; returns its id, or ``""`` if it could not be stored."""
    return await guarded(project_root, "record_run", "", lambda store: store.record_run(run, events))


@asynccontextmanager
async def track_run(
    project_root: Root,
    type: str,
    *,
    subtype: str = "",
    user: str = "",
    environment: str = "",
    summary: str = "",
    metadata: dict[str, Any] | None = None,
) -> AsyncIterator[TrackedRun]:
    """Time a block and record it as a run when it ends, also when it raises or is cancelled.

    A ledger that fails, even one that cannot be opened, never breaks the tracked work.
    """
    fields: dict[str, Any] = {
        "subtype": subtype,
        "user": user,
        "environment": environment,
        "summary": summary,
        "metadata": metadata,
    }
    try:
        store = await store_of(project_root)
    except ScpGitError as exc:
        report_failure("track_run", exc, root=os.fspath(project_root))
        yield TrackedRun(type, **fields)
        return
    async with store.track_run(type, **fields) as run:
        yield run


async def list_runs(
    project_root: Root,
    *,
    n: int = 20,
    before: str | None = None,
    type: str | None = None,
    status: str | None = None,
    user: str | None = None,
    environment: str | None = None,
    since: str | datetime | None = None,
    until: str | datetime | None = None,
) -> list[Run]:
    """The newest ``n`` runs that pass the filters, newest first; empty on failure."""
    return await guarded(
        project_root,
        "list_runs",
        [],
        lambda store: store.list_runs(
            n=n,
            before=before,
            type=type,
            status=status,
            user=user,
            environment=environment,
            since=since,
            until=until,
        ),
    )


async def get_run(project_root: Root, run_id: str) -> Run | None:
    """The run as it was stored; ``None`` if there is none, and on failure."""
    return await guarded(project_root, "get_run", None, lambda store: store.get_run(run_id))


async def get_run_events(project_root: Root, run_id: str) -> list[dict[str, Any]]:
    """The run's events in the order of ``seq``; empty if there are none, and on failure."""
    return await guarded(project_root, "get_run_events", [], lambda store: store.get_run_events(run_id))


async def delete_run(project_root: Root, run_id: str) -> bool:
    """The run is gone from the present state and stays gone; False if there was none, and on failure."""
    return await guarded(project_root, "delete_run", False, lambda store: store.delete_run(run_id))


async def prune_runs(project_root: Root, *, older_than_days: float) -> int:
    """All runs that started more than so many days ago are deleted; returns how many, 0 on failure."""
    return await guarded(
        project_root, "prune_runs", 0, lambda store: store.prune_runs(older_than_days=older_than_days)
    )
