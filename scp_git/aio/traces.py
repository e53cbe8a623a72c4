"""The verbs for traces, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import islice

from scp_git.aio.core import AsyncCore, offload
from scp_git.chat.operations import SendMessage
from scp_git.models import SessionTrace, TraceEvent
from scp_git.trace.operations import SaveTrace

_READ_AT_ONCE = 1000


class AsyncTraceVerbs(AsyncCore):
    """Saving, listing and deleting traces. See ``Store`` for what each verb guarantees and raises."""

    async def save_trace(
        self, trace: SessionTrace, *, post: bool = False, thread_id: str | None = None
    ) -> None:
        """Store a trace durably: its events as given, and the rest of a longer recording from its spool.

        When the call is cancelled the trace was either not stored, or stored completely.
        Do not change what ``trace`` holds until it returns.
        """

        def prepare() -> tuple[SaveTrace, SendMessage | None]:
            operation = self.store.prepared_trace(trace)
            return operation, self.store.posted(operation, thread_id) if post else None

        await self._wait(self.store.saving(*await offload(prepare)))

    async def delete_trace(self, trace_id: str) -> bool:
        """Remove a trace, and its recording if there is one; False if there is neither."""
        removed = bool(await self._wait(self.store.deleting_trace(trace_id)))
        return await offload(self.store.discard_recording, trace_id) or removed

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
