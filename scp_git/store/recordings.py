"""The verbs for recordings, synchronous, and the tickets that the async facade awaits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from scp_git.broadcast import bus
from scp_git.chat.operations import SendMessage, check_place
from scp_git.errors import ScpGitError
from scp_git.git.transaction import Operation
from scp_git.ids import check_id
from scp_git.models import SessionTrace
from scp_git.store.traces import TraceVerbs
from scp_git.ticket import Ticket
from scp_git.trace.operations import SaveLeft, SaveTrace
from scp_git.trace.queries import EVENTS_LIMIT
from scp_git.trace.recorder import recorder
from scp_git.trace.recording import Recording
from scp_git.trace.recovery import left_behind, read_left
from scp_git.trace.session import RecordedSession
from scp_git.trace.spool import SpoolFile, event_parts, spool_path

_SESSION_SIZE = 64 * 1024


class RecordingVerbs(TraceVerbs):
    """Recording sessions; the verbs for traces come along, as sessions become traces."""

    def start_recording(
        self, *, name: str = "", classification: str = "", user: str = "", types: Iterable[str] = ()
    ) -> str:
        """Record from now on what passes on the bus, of this root or of none; returns the trace's id.

        ``types`` are patterns such as ``k8s:*``; without one everything is recorded but
        ``sys:*`` and what recorders say about themselves. Any number may go on at once.
        Raises ``ValueError`` for a bad pattern, ``ScpGitError`` if the spool cannot be made.
        """
        recording = self.new_recording(name=name, classification=classification, user=user, types=types)
        self.begin_recording(recording)
        return recording.trace_id

    def stop_recording(self, trace_id: str) -> SessionTrace:
        """End a recording of this process; returns the session with its first 250 000 events.

        ``event_count`` counts them all. Nothing is stored before ``save_trace``; until then the
        spool stays. Raises ``NotFound``; ``StorageFailed`` if the spool cannot be written: then
        the recording goes on.
        """
        return delivered(*stopped(trace_id))

    def active_recordings(self) -> list[SessionTrace]:
        """This process's recordings in this repository that go on, the oldest first, without events."""
        return recorder.active(spool_path(self._repository.common_dir, "x").parent)

    def recover_recordings(self) -> list[SessionTrace]:
        """Save what recordings of dead processes left, and return it; repeating it changes nothing.

        Those of living processes, stopped or not, are left alone. ``ended_at`` is ``None``
        where a recording was not stopped. All of them together bring at most 250 000 events
        along; the stored traces have them all. Raises ``RepositoryBusy`` or ``StorageFailed``.
        """
        found: list[SessionTrace] = []
        for spool in left_behind(self._repository.common_dir):
            try:
                trace_id = self._recover(spool)
            except BaseException:
                spool.release()
                raise
            room = EVENTS_LIMIT - sum(len(trace.events) for trace in found)
            trace = self._traces.get(trace_id, limit=room) if trace_id else None
            found += [trace] if trace else []
        return found

    def _recover(self, spool: SpoolFile) -> str | None:
        """Save what is in a spool and remove it; the trace's id if it was not stored before."""
        save = read_left(spool)
        stored = save is not None and self._wait(self.recovering(save))
        spool.remove()
        return save.trace_id if save and stored else None

    @contextmanager
    def record(
        self,
        *,
        name: str = "",
        classification: str = "",
        user: str = "",
        types: Iterable[str] = (),
        post: bool = False,
        thread_id: str | None = None,
    ) -> Iterator[RecordedSession]:
        """Record a block, and save its trace when it ends, also when it raises.

        A recording or a ledger that fails is logged and announced (``scp:error``); it never
        breaks the block. What was recorded can then be recovered.
        """
        new = self.new_recording(name=name, classification=classification, user=user, types=types)
        session = new_session(new, post=post, thread_id=thread_id)
        self.begin_session(session)
        try:
            yield session
        finally:
            self._save_session(session)

    def _save_session(self, session: RecordedSession) -> None:
        if session.recording is None:
            return
        try:
            operation, message = self.ended(session, session.recording)
            self._wait(self.saving(operation, message))
            session.trace = operation.trace
        except Exception as exc:
            self.abandon(session.recording, exc)

    # ------------------------------------------------------------ for the async facade too

    def new_recording(self, *, name: str, classification: str, user: str, types: Iterable[str]) -> Recording:
        """A recording that was not begun; nothing is touched."""
        trace = SessionTrace(name=name, classification=classification, user=user)
        return Recording(trace, self._repository.root, self._repository.common_dir, types)

    def begin_recording(self, recording: Recording) -> None:
        """Make the spool and listen to the bus."""
        trace = recording.trace
        trace.user = trace.user or self._repository.identity().name
        trace.code_ref = self._repository.head() or ""
        data = {"name": trace.name, "event_count": 0}
        recorder.start(recording)
        if not recording.unwanted:
            bus.publish("trace:start", key=trace.trace_id, data=data, meta=self._meta)

    def begin_session(self, session: RecordedSession) -> None:
        """Begin to record; where that fails it is announced."""
        try:
            if session.recording is not None:
                self.begin_recording(session.recording)
        except ScpGitError as exc:
            session.recording = None
            self.report("record", exc, key=session.trace_id)

    def ended(self, session: RecordedSession, recording: Recording) -> tuple[SaveTrace, SendMessage | None]:
        """End a session, and prepare to save it straight from its spool; may be repeated."""
        recorder.finish(recording)
        operation = SaveTrace.prepare(recording.trace, event_parts(recording.path))
        delivered(recording, recording.trace)
        return operation, self.posted(operation, session.thread_id) if session.post else None

    def abandon(self, recording: Recording, exc: BaseException) -> None:
        """Announce that a session could not be saved, and leave its spool to whoever recovers it."""
        self.report("record", exc, key=recording.trace_id)
        recorder.abandon(recording)

    def ending(self, session: RecordedSession, recording: Recording) -> Ticket:
        """The ticket that ends a session and stores its trace; the writer thread does all of it."""

        def prepare() -> Operation[Any]:
            saving = self.saving(*self.ended(session, recording))
            ticket.after = saving.after
            assert saving.prepare is not None
            return saving.prepare()

        ticket = Ticket(prepare, size=_SESSION_SIZE, lost=lambda exc: self.abandon(recording, exc))
        return ticket

    def recovering(self, save: SaveTrace) -> Ticket:
        """The ticket that stores what a dead process recorded, and then announces it."""
        operation = SaveLeft(save)
        return Ticket(lambda: operation, size=operation.size, after=lambda stored: self._saved(save, stored))


def new_session(recording: Recording, *, post: bool, thread_id: str | None) -> RecordedSession:
    """A session that was not begun; raises ``InvalidId`` for a thread that cannot be."""
    check_place(None, thread_id)
    return RecordedSession(recording.trace, recording, post=post, thread_id=thread_id)


def stopped(trace_id: str) -> tuple[Recording, SessionTrace]:
    """End a recording; its caller may still be cancelled before ``delivered``, and ask again."""
    recording = recorder.stop(check_id("trace", trace_id))
    return recording, recording.result()


def delivered(recording: Recording, trace: SessionTrace) -> SessionTrace:
    """The caller has the session: it is announced."""
    if recorder.delivered(recording):
        data = {"name": trace.name, "event_count": trace.event_count}
        bus.publish("trace:stop", key=trace.trace_id, data=data, meta={"root": str(recording.root)})
    return trace
