"""The verbs for traces, synchronous, and the tickets that the async facade awaits."""

from __future__ import annotations

from collections.abc import Iterator

from scp_git.broadcast import bus
from scp_git.git.handle import Repository
from scp_git.ids import check_id
from scp_git.models import SessionTrace, TraceEvent
from scp_git.settings import Settings
from scp_git.store.core import StoreCore
from scp_git.ticket import Ticket
from scp_git.trace.operations import DeleteTrace, SaveTrace
from scp_git.trace.queries import TraceReader


class TraceVerbs(StoreCore):
    """Saving, listing and deleting traces."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        super().__init__(repository, settings)
        self._traces = TraceReader(repository)

    # ------------------------------------------------------------ writing

    def save_trace(self, trace: SessionTrace) -> None:
        """Store a trace with its events as given, durably. The same trace twice is stored once.

        Raises ``InvalidId``, ``AlreadyExists`` (other content, or deleted), ``RecordTooLarge``
        (16 MiB without the events, 4 MiB an event), ``RepositoryBusy`` or ``StorageFailed``;
        ``ValidationError`` or ``TypeError`` for what is no valid trace.
        """
        self._wait(self.saving(self.prepared_trace(trace)))

    def delete_trace(self, trace_id: str) -> bool:
        """Remove a trace from the present state; False if there is none.

        It stays deleted: the id is refused from then on. History keeps it.
        """
        return bool(self._wait(self.deleting_trace(trace_id)))

    # ------------------------------------------------------------ reading

    def get_trace(self, trace_id: str) -> SessionTrace | None:
        """The trace with its first 250 000 events, or ``None`` if there is none."""
        return self._traces.get(check_id("trace", trace_id))

    def list_traces(self, *, n: int = 20) -> list[SessionTrace]:
        """The newest ``n`` traces by (``started_at``, id), newest first; ``events`` stays empty."""
        return self._traces.newest(n)

    def iter_trace_events(self, trace_id: str) -> Iterator[TraceEvent]:
        """All events of a trace in order, however many; nothing if there is no such trace."""
        return self._traces.events(check_id("trace", trace_id))

    # ------------------------------------------------------------ tickets, for the async facade too

    def prepared_trace(self, trace: SessionTrace) -> SaveTrace:
        """Validate and encode a trace."""
        return SaveTrace.prepare(trace)

    def saving(self, operation: SaveTrace) -> Ticket:
        """The ticket that stores a trace and then announces it."""

        def announce(stored: bool) -> None:
            if stored:
                data = {"name": operation.record["name"], "event_count": operation.event_count}
                bus.publish("trace:saved", key=operation.trace_id, data=data, meta=self._meta)

        return Ticket(lambda: operation, size=operation.size, after=announce)

    def deleting_trace(self, trace_id: str) -> Ticket:
        operation = DeleteTrace(check_id("trace", trace_id))

        def announce(removed: bool) -> None:
            if removed:
                bus.publish("trace:deleted", key=trace_id, data={}, meta=self._meta)

        return Ticket(lambda: operation, size=operation.size, after=announce)
