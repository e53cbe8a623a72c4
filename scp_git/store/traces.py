"""The verbs for traces, synchronous, and the tickets that the async facade awaits."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

from scp_git.broadcast import bus
from scp_git.chat.operations import SendMessage, check_place
from scp_git.errors import NotFound, ScpGitError
from scp_git.git.handle import Repository
from scp_git.git.transaction import Together
from scp_git.ids import check_id, make_id
from scp_git.layout import GENERAL
from scp_git.models import ChatMessage, SessionTrace, TraceEvent
from scp_git.settings import Settings
from scp_git.store.chat import ChatVerbs
from scp_git.ticket import Ticket
from scp_git.trace.operations import DeleteTrace, SaveTrace
from scp_git.trace.queries import TraceReader
from scp_git.trace.recorder import recorder
from scp_git.trace.spool import SpoolFile, event_parts, returned_count, spool_path

log = logging.getLogger(__name__)

_NAME_SHOWN = 200


class TraceVerbs(ChatVerbs):
    """Saving, listing and deleting traces. Some are posted, so the verbs for chat come along."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        super().__init__(repository, settings)
        self._traces = TraceReader(repository)

    # ------------------------------------------------------------ writing

    def save_trace(self, trace: SessionTrace, *, post: bool = False, thread_id: str | None = None) -> None:
        """Store a trace durably: its events as given, and the rest of a longer recording from its spool.

        ``trace.events`` may have been changed; what ``stop_recording`` did not give back follows
        if ``event_count`` says that there is more. The same trace twice is stored once. With
        ``post`` its summary becomes a message in ``thread_id``, else in ``general``, in the same
        transaction.

        Raises ``InvalidId``, ``AlreadyExists`` (other content, or deleted), ``NotFound`` (the
        thread, or the rest of the events), ``RecordTooLarge`` (16 MiB without the events, 4 MiB
        an event), ``RepositoryBusy`` or ``StorageFailed``; ``ValidationError`` or ``TypeError``
        for what is no valid trace. Nothing was stored then.
        """
        operation = self.prepared_trace(trace)
        self._wait(self.saving(operation, self.posted(operation, thread_id) if post else None))

    def delete_trace(self, trace_id: str) -> bool:
        """Remove a trace from the present state, and its recording; False if there is neither.

        A stored trace stays deleted: the id is refused from then on. History keeps it. A recording
        that goes on is ended and thrown away.
        """
        removed = bool(self._wait(self.deleting_trace(trace_id)))
        return self.discard_recording(trace_id) or removed

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

    def trace_head(self, trace_id: str) -> SessionTrace | None:
        """The trace without its events, for who reads those as they come; ``None`` if there is none."""
        return self._traces.get(check_id("trace", trace_id), limit=0)

    # ------------------------------------------------------------ for the async facade too

    def prepared_trace(self, trace: SessionTrace) -> SaveTrace:
        """Validate and encode a trace; find the rest of it."""
        if not isinstance(trace, SessionTrace):
            raise TypeError(f"trace must be a SessionTrace, not {type(trace).__name__}")
        if trace.event_count <= len(trace.events):
            return SaveTrace.prepare(trace)
        path = spool_path(self._repository.common_dir, check_id("trace", trace.trace_id))
        returned = returned_count(path)
        if returned is None:
            raise NotFound("spool with the rest of trace", trace.trace_id)
        return SaveTrace.prepare(trace, event_parts(path, after=returned))

    def posted(self, operation: SaveTrace, thread_id: str | None) -> SendMessage:
        """The message that tells of a trace: the same each time, so that posting twice is posting once."""
        check_place(None, thread_id)
        trace = operation.trace
        ts = trace.ended_at or trace.started_at
        digest = hashlib.sha1(f"{trace.trace_id} {thread_id or GENERAL}".encode(), usedforsecurity=False)
        message = ChatMessage(
            id=f"{make_id('msg', ts).rpartition('_')[0]}_{digest.hexdigest()[:8]}",
            ts=ts,
            user=trace.user,
            text=_message(trace),
            thread_id=thread_id,
            source="trace",
        )
        return self.addressed(message)

    def saving(self, operation: SaveTrace, message: SendMessage | None = None) -> Ticket:
        """The ticket that stores a trace, with the message about it, and then announces both."""
        if message is None:
            return Ticket(
                lambda: operation, size=operation.size, after=lambda stored: self._saved(operation, stored)
            )
        together = Together((operation, message))

        def announce(results: list[Any]) -> None:
            self._saved(operation, results[0])
            self.announce_message(results[1])

        return Ticket(lambda: together, size=together.size, after=announce)

    def _saved(self, operation: SaveTrace, stored: bool) -> None:
        if stored:
            data = {"name": operation.record["name"], "event_count": operation.event_count}
            bus.publish("trace:saved", key=operation.trace_id, data=data, meta=self._meta)
        try:
            recorder.settle(operation.trace_id)
        except ScpGitError as exc:
            log.warning("trace %s is saved, and its spool is still there: %s", operation.trace_id, exc)

    def deleting_trace(self, trace_id: str) -> Ticket:
        operation = DeleteTrace(check_id("trace", trace_id))

        def announce(removed: bool) -> None:
            if removed:
                bus.publish("trace:deleted", key=trace_id, data={}, meta=self._meta)

        return Ticket(lambda: operation, size=operation.size, after=announce)

    def discard_recording(self, trace_id: str) -> bool:
        """Throw a recording of ours away, or what a dead process left of one; False if there is none."""
        if recorder.discard(trace_id):
            return True
        path = spool_path(self._repository.common_dir, trace_id)
        spool = SpoolFile.take(path) if path.exists() else None
        if spool is not None:
            spool.remove()
        return spool is not None


def _message(trace: SessionTrace) -> str:
    """``Trace recorded: deploy [deployment] @trace:<id>``, and the summary in the next line."""
    kind = f"[{trace.classification[:_NAME_SHOWN]}]" if trace.classification else ""
    words = ["Trace recorded:", trace.name[:_NAME_SHOWN], kind, f"@trace:{trace.trace_id}"]
    return "\n".join([" ".join(word for word in words if word), trace.auto_summary]).strip()
