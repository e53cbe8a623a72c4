"""Helper processes that make runs ready for a long import, while this one stores them.

Making a run ready is pure computing, of which one process does one at a time.
Helpers are programs of their own, not forks: a fork of a process with threads may
hang. Nothing depends on them: what a helper does not answer is made here.
"""

from __future__ import annotations

import fcntl
import logging
import marshal
import os
import select
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scp_git.codec import JsonObject
from scp_git.git.handle import Identity
from scp_git.ledger.importing import MadeRun
from scp_git.ledger.making import HEAD_BYTES, frame, unpack

log = logging.getLogger(__name__)

_WAITING_MAX = 8
"""So many slices wait for one helper; what comes beyond is made here."""
_WAIT_MS = 50
_PIPE_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from scp_git.ledger.making import serve; serve()"


@dataclass(slots=True)
class Given:
    """A run that was taken from a source, and what became of it."""

    position: int
    run_id: str
    packed: bytes = b""
    outcome: MadeRun | Exception | None = None
    """The run made ready, or why it was refused; ``None`` while that is not known."""

    def make(self, identity: Identity) -> None:
        """Find out what becomes of it, here."""
        if self.outcome is None:
            self.make_now(*unpack(self.packed), identity)

    def make_now(self, record: JsonObject, events: list[JsonObject], target: str, identity: Identity) -> None:
        """As ``make``, for a run that is not packed."""
        try:
            self.outcome = MadeRun.make(record, events, target, identity)
        except Exception as exc:
            self.outcome = exc


Slice = list[Given]


def usable() -> int:
    """How many helpers this process could have: none on one core, or where Python cannot be started."""
    python = Path(sys.executable or "").name.lower().startswith("python")
    if not python or getattr(sys, "frozen", False) or not hasattr(os, "sched_getaffinity"):
        return 0
    return len(os.sched_getaffinity(0)) - 1


class Makers:
    """A few helpers; for one thread at a time, but that any may close it."""

    def __init__(self, identity: Identity, count: int) -> None:
        self._lock = threading.Lock()
        self._identity = identity
        self._helpers: list[_Helper] = []
        for _ in range(count):
            try:
                self._helpers.append(_Helper(identity))
            except OSError as exc:
                log.info("an import goes on without a helper: %s", exc)

    def offer(self, runs: Slice) -> bool:
        """Have a slice made ready by a helper, if one has time for it."""
        with self._lock:
            free = [one for one in self._helpers if one.ready and len(one.waiting) < _WAITING_MAX]
            if not free:
                return False
            min(free, key=lambda one: len(one.waiting)).ask(runs)
            return True

    def move(self, *, wait: bool = False) -> None:
        """Pass on what can be passed on, both ways; with ``wait`` until something could be."""
        answered: list[Slice] = []
        with self._lock:
            if wait and self._helpers:
                poll = select.poll()  # not select, which knows descriptors below 1024 only
                for one in self._helpers:
                    poll.register(one.answers, select.POLLIN)
                    if one.unsent:
                        poll.register(one.questions, select.POLLOUT)
                poll.poll(_WAIT_MS)
            for helper in list(self._helpers):
                try:
                    helper.move()
                except (OSError, EOFError, ValueError, TypeError) as exc:
                    log.warning("an import goes on without one of its helpers: %s", exc)
                    self._helpers.remove(helper)
                    helper.close()
                answered += helper.answered()
        for runs in answered:
            for run in runs:
                run.make(self._identity)

    def close(self) -> None:
        """End the helpers, whatever they are doing."""
        with self._lock:
            while self._helpers:
                self._helpers.pop().close()


class _Helper:
    """One process: it is asked slices, and answers them in order."""

    def __init__(self, identity: Identity) -> None:
        command = [sys.executable, "-c", _PROGRAM, *sys.path]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, bufsize=0)
        assert self._process.stdin and self._process.stdout
        self.questions, self.answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        for fd in (self.questions, self.answers):
            os.set_blocking(fd, False)
            with suppress(AttributeError, OSError):  # smaller pipes do as well
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.waiting: deque[Slice] = deque()
        self.unsent: deque[memoryview] = deque([memoryview(frame((identity.name, identity.email)))])
        self.ready = False
        self._done: list[Slice] = []
        self._received = bytearray()

    def ask(self, runs: Slice) -> None:
        self.unsent.append(memoryview(frame([run.packed for run in runs if run.outcome is None])))
        self.waiting.append(runs)

    def answered(self) -> list[Slice]:
        """The slices that were dealt with; what is still open in them was not answered."""
        done, self._done = self._done, []
        return done

    def move(self) -> None:
        """Send and receive what does not block. ``OSError`` or ``EOFError`` when the process is gone."""
        with suppress(BlockingIOError):
            while self.unsent:
                sent = os.write(self.questions, self.unsent[0])
                self.unsent[0] = self.unsent[0][sent:]
                if not self.unsent[0]:
                    self.unsent.popleft()
        with suppress(BlockingIOError):
            while data := os.read(self.answers, _READ_BYTES):
                self._received += data
                self._take_answers()
            raise EOFError("a helper has ended")

    def _take_answers(self) -> None:
        received = self._received
        while len(received) >= HEAD_BYTES:
            end = HEAD_BYTES + int.from_bytes(received[:HEAD_BYTES], "big")
            if len(received) < end:
                return
            answer = marshal.loads(received[HEAD_BYTES:end])
            del received[:end]
            if not self.ready:
                self.ready = True
                continue
            runs = self.waiting.popleft()
            self._done.append(runs)
            asked = [run for run in runs if run.outcome is None]
            for run, made in zip(asked, answer, strict=True):
                run.outcome = MadeRun._make(made) if made is not None else None

    def close(self) -> None:
        self._done += self.waiting
        self.waiting.clear()
        with self._process:  # closes the pipes, and waits
            self._process.kill()
