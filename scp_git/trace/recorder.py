"""All recordings of this process: one sink on the bus, one encoding of each event, a thread for each spool.

The sink only appends. The threads of the recordings encode what was appended, each event once for
all of them, and then write, each to its own spool: an event is on the disk within 100 ms.

A publisher that is faster than they are encodes a few events itself with each further one: so
nothing is lost but to a disk that stands still, and memory stays bounded.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from contextlib import ExitStack
from pathlib import Path

from scp_git.broadcast import Bus, Event, bus
from scp_git.errors import NotFound
from scp_git.models import SessionTrace
from scp_git.trace.encoding import Line
from scp_git.trace.recording import Phase, Recording

log = logging.getLogger(__name__)

GATHER_S = 0.02
"""So long a thread lets events come together before it encodes and writes them."""
_PENDING_EVENTS = 8192
_PENDING_BYTES = 16 * 1024 * 1024
_SLICE = 128
"""So many events are encoded before others get a turn."""
_HELP = 64
"""So many events a publisher encodes when the threads do not keep up."""
_YIELD_S = 0.00005
_RETRY_S = 0.25
_LOCK_S = 1.0
_KEPT_MAX = 256
"""So many recordings that were stopped and not saved are kept from being recovered."""


class Recorder:
    """The recordings of one bus. Thread-safe."""

    def __init__(self, source: Bus) -> None:
        self.bus = source
        self._reset()

    def _reset(self) -> None:
        self._changing = threading.Lock()
        """Held while recordings come and go; never by the sink."""
        self._encoding = threading.Lock()
        """Held while events are encoded; whoever holds it calls nothing that may publish or log."""
        self._turn = threading.Lock()
        """Held by the thread that encodes for all."""
        self._pending: deque[Event] = deque()
        self._came = self._went = 0
        """Characters in the events that came and that were encoded, about; each has one writer at a time."""
        self._recordings: tuple[Recording, ...] = ()
        """Those that take events."""
        self._asleep: set[Recording] = set()
        self._started: dict[str, Recording] = {}
        """Those that were not stopped, or whose result nobody got."""
        self._kept: OrderedDict[str, Recording] = OrderedDict()
        """Those that were stopped and not saved."""
        self._attached: ExitStack | None = None

    # ------------------------------------------------------------ the sink

    def _sink(self, event: Event) -> None:
        self._pending.append(event)
        for value in event.data.values():
            if type(value) is str:
                self._came += len(value)
        if self._asleep:
            self._wake()
        if len(self._pending) > _PENDING_EVENTS or self._came - self._went > _PENDING_BYTES:
            self._encode(_HELP)

    def _wake(self) -> None:
        while self._asleep:
            try:
                self._asleep.pop().wake.put(None)
            except KeyError:
                return

    def _encode(self, limit: int) -> bool:
        """Hand up to ``limit`` events to the recordings; False if there are no more."""
        # With a limit: a finalizer or signal handler may publish in the thread that holds the lock.
        if not self._encoding.acquire(timeout=_LOCK_S):
            return False
        try:
            more = self._encode_locked(limit)
        finally:
            self._encoding.release()
        # Who fell asleep while its events were neither here nor there has lines to write now.
        self._wake()
        return more

    def _encode_locked(self, limit: int) -> bool:
        came = self._came
        events = [self._pending.popleft() for _ in range(min(limit, len(self._pending)))]
        if len(events) < limit:
            self._went = came
        lines: list[Line | None] = [None] * len(events)
        for recording in self._recordings:
            recording.take(events, lines)
        return len(events) == limit

    def _encode_waiting(self) -> None:
        """Encode what waits now, and no more: under a flood of events this would never end."""
        for _ in range(0, len(self._pending), _SLICE):
            if not self._encode(_SLICE):
                break
            time.sleep(_YIELD_S)  # the publisher's loop gets its turn

    def _encode_in_turn(self) -> None:
        """Encode what waits, unless another thread is at it: two would only keep the loop waiting."""
        if self._turn.acquire(blocking=False):
            try:
                self._encode_waiting()
            finally:
                self._turn.release()

    # ------------------------------------------------------------ the threads

    def _run(self, recording: Recording) -> None:
        while recording.phase in (Phase.ACTIVE, Phase.ENDING):
            self._asleep.add(recording)
            if self._pending or not recording.idle:
                self._asleep.discard(recording)
            else:
                recording.wake.get()
            time.sleep(GATHER_S)
            try:
                self._encode_in_turn()
                if recording.write_out():
                    continue
            except Exception:  # a dead thread would be worse than any of them
                log.exception("recording %s met an unexpected error", recording.trace_id)
            time.sleep(_RETRY_S)

    # ------------------------------------------------------------ beginning and end

    def start(self, recording: Recording) -> None:
        """Begin a recording: it takes every event that is published from now on."""
        recording.begin()
        with self._changing:
            if self._attached is None:
                self._attached = self.bus.attach(self._sink)
            recording.after = self.bus.statistics().published
            recording.phase = Phase.ACTIVE
            self._started[recording.trace_id] = recording
            with self._encoding:
                self._recordings += (recording,)
        thread = threading.Thread(target=self._run, args=(recording,), name="scp-git-recording", daemon=True)
        thread.start()
        if recording.unwanted:
            self.discard(recording.trace_id)

    def stop(self, trace_id: str) -> Recording:
        """End a recording; every event published before is in it, and on the disk.

        It may be stopped again until it was ``delivered``. Raises ``NotFound``, or
        ``StorageFailed``: then it goes on.
        """
        recording = self._started.get(trace_id)
        if recording is None:
            raise NotFound("recording", trace_id)
        return self.finish(recording)

    def finish(self, recording: Recording) -> Recording:
        """See ``stop``; of a stopped recording it is a no-op."""
        with recording.finishing:
            self._encode_waiting()
            recording.write_out_or_raise()
            self._leave(recording)
            recording.close()
            recording.wake.put(None)
        return recording

    def _leave(self, recording: Recording) -> None:
        """The recording takes what was published so far, and nothing more."""
        with self._changing:
            if recording.phase is not Phase.ACTIVE:
                return
            with self._encoding:
                self._encode_locked(len(self._pending))
                self._recordings = tuple(each for each in self._recordings if each is not recording)
                recording.end()
            if not self._recordings and self._attached is not None:
                self._attached.close()
                self._attached = None
        self._wake()

    def delivered(self, recording: Recording) -> bool:
        """The caller of ``stop`` has the session; its spool is kept, and alive, until that is saved.

        False if somebody else had it before.
        """
        with self._changing:
            if self._started.pop(recording.trace_id, None) is None:
                return False
            self._kept[recording.trace_id] = recording
            surplus = [self._kept.popitem(last=False)[1] for _ in range(len(self._kept) - _KEPT_MAX)]
        for each in surplus:  # a descriptor each
            log.warning(
                "recording %s was stopped long ago and never saved; it can be recovered", each.trace_id
            )
            each.release()
        return True

    def unwanted(self, recording: Recording) -> None:
        """Whoever asked for it was cancelled: throw it away, or see to it that it never goes on."""
        recording.unwanted = True
        if recording.phase is Phase.ACTIVE:
            threading.Thread(target=self.discard, args=(recording.trace_id,), daemon=True).start()

    def discard(self, trace_id: str) -> bool:
        """Throw away what was recorded; a recording that goes on is ended. False if it is unknown."""
        recording = self._forget(trace_id)
        if recording is None:
            return False
        self._leave(recording)
        recording.remove()
        return True

    def abandon(self, recording: Recording) -> None:
        """End a recording that cannot be stopped or saved; what is on the disk can be recovered."""
        self._forget(recording.trace_id)
        self._leave(recording)
        recording.write_out()
        recording.release()

    def settle(self, trace_id: str) -> None:
        """The trace is stored: the spool of a stopped recording is not needed any more."""
        recording = self._kept.get(trace_id) or self._started.get(trace_id)
        if recording is not None and recording.phase is Phase.STOPPED:
            self._forget(trace_id)
            recording.remove()

    def _forget(self, trace_id: str) -> Recording | None:
        with self._changing:
            return self._kept.pop(trace_id, None) or self._started.pop(trace_id, None)

    def active(self, folder: Path) -> list[SessionTrace]:
        """The recordings with spools in ``folder`` that go on, the oldest first, without events."""
        with self._changing:
            started = list(self._started.values())
        return [
            each.snapshot() for each in started if each.phase is Phase.ACTIVE and each.path.parent == folder
        ]

    # ------------------------------------------------------------ the process's end, and its children

    def drain(self) -> None:
        """Write what waits, as the interpreter ends; the spools stay for whoever recovers them."""
        self._encode_waiting()
        for recording in list(self._started.values()):
            recording.write_out()

    def after_fork(self) -> None:
        """In the child: the parent's recordings are none of ours."""
        attached = self._attached
        self._reset()
        if attached is not None:
            attached.close()


recorder = Recorder(bus)
"""The recordings of this process."""

# The bus was told of forks before, so that its lock is free by then.
os.register_at_fork(after_in_child=recorder.after_fork)
# Runs while threads still work; plain atexit runs later, and is what remains where the other is gone.
getattr(threading, "_register_atexit", atexit.register)(recorder.drain)
