"""One command, run as if we were not there: same descriptors, same process group, same terminal.

Runs on the main thread, as signal handlers do. Signals from the terminal reach the
command directly, for it is in our process group; we only must not die of them.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from scp_git.cli.streams import Streams

NOT_FOUND = 127
NOT_EXECUTABLE = 126

_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
_STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_ENDING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
_LAST_WORD_S = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended; ``exit_code`` is what a shell would report."""

    exit_code: int
    started_at: datetime
    duration_ms: int
    signal: str = ""
    problem: str = ""
    """Why it could not be started, empty if it was."""


class SignalKeeper:
    """Keeps this process alive while the command runs, and hands on what only we were sent.

    Handlers, not ``SIG_IGN``: a handler is reset by exec, so the command starts with
    what our caller had chosen; what was ignored before (nohup) stays ignored.
    """

    def __init__(self) -> None:
        self._pid: int | None = None
        self._early: list[int] = []
        self._is_over = False
        self._streams: Streams | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (*_FROM_TERMINAL, *_FORWARDED, *_STOPS, signal.SIGWINCH):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, _interrupt)
        # With SIGCHLD ignored the system would throw the exit code away.
        self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def started(self, pid: int, streams: Streams | None) -> None:
        self._pid, self._streams = pid, streams
        for number in self._early:
            self._hand_on(number)

    def ended(self) -> None:
        """From now on a signal gives what is left to do one more second, then ``KeyboardInterrupt``."""
        self._pid, self._streams, self._is_over = None, None, True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_over:
            if number in _ENDING:
                signal.setitimer(signal.ITIMER_REAL, _LAST_WORD_S)
        elif number == signal.SIGWINCH:
            if self._streams is not None:
                self._streams.resize()
        elif number in _STOPS:
            # The command decides whether it stops; then so do we, see _wait.
            pass
        elif self._pid is None:
            self._early.append(number)
        elif number not in _FROM_TERMINAL or not _is_foreground():
            self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        if self._pid is not None:
            # It may have just ended, or run as somebody else whom we may not signal.
            with suppress(OSError):
                os.kill(self._pid, number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _is_foreground() -> bool:
    """Whether the terminal's Ctrl-C goes to our process group, hence to the command without our doing."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def run_command(argv: Sequence[str], keeper: SignalKeeper, streams: Streams | None = None) -> Outcome:
    """Start ``argv``, wait until it has ended, and say how; never raises for what the command does."""
    started_at, clock = datetime.now(UTC), time.monotonic()
    problem, status = "", 0
    try:
        process = _spawn(argv, streams)
    except OSError as exc:
        code = NOT_FOUND if isinstance(exc, FileNotFoundError) else NOT_EXECUTABLE
        problem = "command not found" if code == NOT_FOUND else exc.strerror or "cannot be started"
    else:
        keeper.started(process.pid, streams)
        if streams is not None:
            streams.start()
        status = _wait(process.pid)
        process.returncode = code = _shell_code(status)
    keeper.ended()
    duration_ms = round((time.monotonic() - clock) * 1000)
    if streams is not None:
        # Told to leave while a reader is slow: output still on its way is given up, the exit code is not.
        with suppress(KeyboardInterrupt):
            streams.finish()
    return Outcome(code, started_at, duration_ms, _signal_name(status), problem)


def _spawn(argv: Sequence[str], streams: Streams | None) -> subprocess.Popen[bytes]:
    stdout, stderr = streams.child_ends if streams is not None else (None, None)
    try:
        return subprocess.Popen(argv, stdout=stdout, stderr=stderr, close_fds=False)
    except OSError as exc:
        script = shutil.which(argv[0])
        if exc.errno != errno.ENOEXEC or script is None or not _is_text(script):
            raise
    # A script without "#!": shells and execvp run it with sh, so we do.
    return subprocess.Popen(["/bin/sh", script, *argv[1:]], stdout=stdout, stderr=stderr, close_fds=False)


def _is_text(path: str) -> bool:
    with open(path, "rb") as file:
        return b"\0" not in file.read(512)


def _wait(pid: int) -> int:
    """Wait for the end of ``pid``; when Ctrl-Z stops it, stop as well, so that the shell notices."""
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return status
        # Somebody who sent SIGSTOP to the command alone will continue it alone.
        if os.WSTOPSIG(status) in _STOPS:
            os.kill(os.getpid(), signal.SIGSTOP)


def _shell_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _signal_name(status: int) -> str:
    if not os.WIFSIGNALED(status):
        return ""
    number = os.WTERMSIG(status)
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
