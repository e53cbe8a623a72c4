"""The module-level functions for traces. Recordings and writes raise; reads never raise a ``ScpGitError``."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from scp_git.aio.recordings import end_recording
from scp_git.api.core import Root, guarded, store_of
from scp_git.errors import ScpGitError
from scp_git.models import SessionTrace, TraceEvent
from scp_git.store.core import report_failure
from scp_git.trace.session import RecordedSession


async def start_recording(
    project_root: Root,
    *,
    name: str = "",
    classification: str = "",
    user: str = "",
    types: Iterable[str] = (),
) -> str:
    """What passes on the bus is recorded from now on; returns the trace's id. Raises on failure.

    ``types`` are patterns such as ``k8s:*``; without one everything is recorded but ``sys:*``.
    """
    store = await store_of(project_root)
    return await store.start_recording(name=name, classification=classification, user=user, types=types)


async def stop_recording(trace_id: str) -> SessionTrace:
    """The recording is ended; returns the session with its first 250 000 events, not yet saved.

    Raises ``NotFound`` for an id that this process is not recording, and on failure.
    """
    return await end_recording(trace_id)


async def active_recordings(project_root: Root) -> list[SessionTrace]:
    """This process's recordings that go on, the oldest first, without events; empty on failure."""
    return await guarded(project_root, "active_recordings", [], lambda store: store.active_recordings())


async def recover_recordings(project_root: Root) -> list[SessionTrace]:
    """What recordings of dead processes left is saved; returns it. Raises on failure."""
    return await (await store_of(project_root)).recover_recordings()


@asynccontextmanager
async def record(
    project_root: Root,
    *,
    name: str = "",
    classification: str = "",
    user: str = "",
    types: Iterable[str] = (),
    post: bool = False,
    thread_id: str | None = None,
) -> AsyncIterator[RecordedSession]:
    """Record a block, and save its trace when it ends, also when it raises or is cancelled.

    With ``post`` the summary becomes a message in ``thread_id``, else in ``general``.

    A recording or a ledger that fails, even one that cannot be opened, is logged and announced;
    it never breaks the block.
    """
    try:
        store = await store_of(project_root)
    except ScpGitError as exc:
        report_failure("record", exc, root=os.fspath(project_root))
        yield RecordedSession(SessionTrace(name=name))
        return
    async with store.record(
        name=name,
        classification=classification,
        user=user,
        types=types,
        post=post,
        thread_id=thread_id,
    ) as session:
        yield session


async def save_trace(
    project_root: Root, trace: SessionTrace, *, post: bool = False, thread_id: str | None = None
) -> None:
    """The trace is stored durably: its events as given, the rest of a longer recording. Raises on failure.

    With ``post`` its summary becomes a message in ``thread_id``, else in ``general``, in the
    same transaction.
    """
    await (await store_of(project_root)).save_trace(trace, post=post, thread_id=thread_id)


async def delete_trace(project_root: Root, trace_id: str) -> bool:
    """The trace and its recording are gone; False if there was neither. Raises on failure."""
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
