"""The verbs for traces, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import islice

from scp_git.aio.core import AsyncCore, offload
from scp_git.models import SessionTrace, TraceEvent

_READ_AT_ONCE = 1000


class AsyncTraceVerbs(AsyncCore):
    """Saving, listing and deleting traces; see ``Store`` for what each verb guarantees and raises."""

    async def save_trace(self, trace: SessionTrace) -> None:
        """Store a trace with its events as given, durably.

        When the call is cancelled the trace was either not stored, or stored completely.
        Do not change what ``trace`` holds until it returns.
        """
        operation = await offload(self.store.prepared_trace, trace)
        await self._wait(self.store.saving(operation))

    async def delete_trace(self, trace_id: str) -> bool:
        """Remove a trace from the present state; False if there is none."""
        return bool(await self._wait(self.store.deleting_trace(trace_id)))

    # ------------------------------------------------------------ reading

    async def get_trace(self, trace_id: str) -> SessionTrace | None:
        """The trace with its first 250 000 events, or ``None`` if there is none."""
        return await offload(self.store.get_trace, trace_id)

    async def list_traces(self, *, n: int = 20) -> list[SessionTrace]:
        """The newest ``n`` traces, newest first; ``events`` stays empty."""
        return await offload(self.store.list_traces, n=n)

    async def iter_trace_events(self, trace_id: str) -> AsyncIterator[TraceEvent]:
        """All events of a trace in order, however many; nothing if there is no such trace."""
        events = self.store.iter_trace_events(trace_id)
        while batch := await offload(lambda: list(islice(events, _READ_AT_ONCE))):
            for event in batch:
                yield event
