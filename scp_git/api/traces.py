"""The module-level functions for traces. Writes raise; reads never raise a ``ScpGitError``."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from scp_git.api.core import Root, guarded, store_of
from scp_git.errors import ScpGitError
from scp_git.models import SessionTrace, TraceEvent
from scp_git.store.core import report_failure


async def save_trace(project_root: Root, trace: SessionTrace) -> None:
    """The trace is stored durably with its events as given. Raises on failure."""
    await (await store_of(project_root)).save_trace(trace)


async def delete_trace(project_root: Root, trace_id: str) -> bool:
    """The trace is gone from the present state and stays gone; False if there was none. Raises on failure."""
    return await (await store_of(project_root)).delete_trace(trace_id)


async def get_trace(project_root: Root, trace_id: str) -> SessionTrace | None:
    """The trace with its first 250 000 events; ``None`` if there is none, and on failure."""
    return await guarded(project_root, "get_trace", None, lambda store: store.get_trace(trace_id))


async def list_traces(project_root: Root, *, n: int = 20) -> list[SessionTrace]:
    """The newest ``n`` traces, newest first, without their events; empty on failure."""
    return await guarded(project_root, "list_traces", [], lambda store: store.list_traces(n=n))


async def iter_trace_events(project_root: Root, trace_id: str) -> AsyncIterator[TraceEvent]:
    """All events of a trace in order, however many; on failure it ends."""
    try:
        async for event in (await store_of(project_root)).iter_trace_events(trace_id):
            yield event
    except ScpGitError as exc:
        report_failure("iter_trace_events", exc, root=os.fspath(project_root))
