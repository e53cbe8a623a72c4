"""The verbs for recordings, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import anyio

from scp_git.aio.core import AsyncCore, offload
from scp_git.errors import ScpGitError
from scp_git.models import SessionTrace
from scp_git.store.recordings import delivered, new_session, stopped
from scp_git.trace.recorder import recorder
from scp_git.trace.session import RecordedSession


class AsyncRecordingVerbs(AsyncCore):
    """Recording sessions. See ``Store`` for what each verb guarantees and raises."""

    async def start_recording(
        self, *, name: str = "", classification: str = "", user: str = "", types: Iterable[str] = ()
    ) -> str:
        """Record from now on what passes on the bus, of this root or of none; returns the trace's id.

        When the call is cancelled nothing goes on.
        """
        new = self.store.new_recording(name=name, classification=classification, user=user, types=types)
        try:
            await offload(self.store.begin_recording, new)
        except BaseException:
            recorder.unwanted(new)
            raise
        return new.trace_id

    async def stop_recording(self, trace_id: str) -> SessionTrace:
        """End a recording of this process; returns the session with its first 250 000 events.

        When the call is cancelled it may be repeated.
        """
        return await end_recording(trace_id)

    async def active_recordings(self) -> list[SessionTrace]:
        """This process's recordings in this repository that go on, the oldest first, without events."""
        return self.store.active_recordings()

    async def recover_recordings(self) -> list[SessionTrace]:
        """Save what recordings of dead processes left, and return it; repeating it changes nothing."""
        return await offload(self.store.recover_recordings)

    @asynccontextmanager
    async def record(
        self,
        *,
        name: str = "",
        classification: str = "",
        user: str = "",
        types: Iterable[str] = (),
        post: bool = False,
        thread_id: str | None = None,
    ) -> AsyncIterator[RecordedSession]:
        """Record a block, and save its trace when it ends, also when it raises; see ``Store.record``.

        When the task is cancelled, the trace is handed to the writer without waiting, and the
        cancellation goes on.
        """
        new = self.store.new_recording(name=name, classification=classification, user=user, types=types)
        session = new_session(new, post=post, thread_id=thread_id)
        try:
            await offload(self.store.begin_session, session)
        except BaseException:
            recorder.unwanted(new)
            raise
        try:
            yield session
        except Exception:
            await self._save_session(session)
            raise
        except BaseException:  # cancelled, or the interpreter is ending: nothing can be awaited
            self._hand_over_session(session)
            raise
        else:
            await self._save_session(session)

    async def _save_session(self, session: RecordedSession) -> None:
        if session.recording is None:
            return
        try:
            operation, message = await offload(self.store.ended, session, session.recording)
            await self._wait(self.store.saving(operation, message))
            session.trace = operation.trace
        except anyio.get_cancelled_exc_class():
            self._hand_over_session(session)
            raise
        except Exception as exc:
            await offload(self.store.abandon, session.recording, exc)

    def _hand_over_session(self, session: RecordedSession) -> None:
        """Let the writer end and save a session without waiting; saving one twice stores it once."""
        if session.recording is None:
            return
        try:
            self.store.submit(self.store.ending(session, session.recording))
        except ScpGitError as exc:
            self.store.abandon(session.recording, exc)


async def end_recording(trace_id: str) -> SessionTrace:
    """``stop_recording``, which needs no store: a recording knows its repository."""
    return delivered(*await offload(stopped, trace_id))
