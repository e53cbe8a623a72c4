"""Running one libgit2 transfer so that it ends: timeouts, stopping, progress.

libgit2's timeouts are settings of the whole process, and some of its waits (a name
server, a server that sends a byte now and then) obey none. So a transfer runs in a
thread of its own, and whoever waits for it leaves when it stands still.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import pygit2

Value = TypeVar("Value")

_POLL_S = 0.05
_STOPPING_S = 1.0
_STALL_FACTOR = 4


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transfer has come; ``total_objects`` is 0 while it is not known."""

    sending: bool
    objects: int
    total_objects: int
    bytes: int


class Stopped(Exception):
    """Raised inside libgit2's callbacks, so that it ends the transfer."""


class Stalled(Exception):
    """The transfer stood still for too long, and was left behind."""


class Pulse:
    """The signs of life of one transfer, and the wish to end it. Thread-safe."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.stopping = False

    def beat(self) -> None:
        """Something happened. Raises ``Stopped`` if nobody wants the transfer any more."""
        if self.stopping:
            raise Stopped
        self.last = time.monotonic()


def run_transfer(
    work: Callable[[Pulse], Value], *, timeout_s: float, cancelled: Callable[[], bool] | None
) -> Value:
    """What ``work`` returns or raises; it runs in a thread of its own, under the timeouts.

    Raises:
        Stopped: ``cancelled()`` became true. The transfer ends at its next step, at the
            latest when the timeout is over.
        Stalled: nothing happened for four times ``timeout_s``.
    """
    transfer = _Transfer(work, timeout_s)
    try:
        while not transfer.done.wait(_POLL_S):
            if cancelled is not None and cancelled():
                raise Stopped
            if time.monotonic() - transfer.pulse.last > _STALL_FACTOR * timeout_s:
                raise Stalled
    except BaseException:  # KeyboardInterrupt, too
        transfer.pulse.stopping = True
        transfer.done.wait(_STOPPING_S)
        raise
    return transfer.result()


class _Transfer(Generic[Value]):
    def __init__(self, work: Callable[[Pulse], Value], timeout_s: float) -> None:
        self._work = work
        self._timeout_s = timeout_s
        self._value: list[Value] = []
        self._error: BaseException | None = None
        self.pulse = Pulse()
        self.done = threading.Event()
        # A daemon: the interpreter does not wait for a server that hangs.
        threading.Thread(target=self._run, name="scp-git-transfer", daemon=True).start()

    def _run(self) -> None:
        try:
            with _timeouts.held(self._timeout_s):
                self._value.append(self._work(self.pulse))
        except BaseException as exc:
            self._error = exc
        finally:
            self.done.set()

    def result(self) -> Value:
        if self._error is not None:
            raise self._error
        return self._value[0]


# ---------------------------------------------------------------- settings of the process


class _Timeouts:
    """libgit2's timeouts while transfers are under way: the longest that any of them asks for."""

    def __init__(self) -> None:
        self.start_over()

    def start_over(self) -> None:
        """Also in a forked child, where the transfers of its parent do not run."""
        self._lock = threading.Lock()
        self._wanted: list[float] = []
        self._before = (0, 0)

    @contextlib.contextmanager
    def held(self, seconds: float) -> Iterator[None]:
        with self._lock:
            if not self._wanted:
                self._before = (pygit2.settings.server_connect_timeout, pygit2.settings.server_timeout)
            self._wanted.append(seconds)
            self._apply()
        try:
            yield
        finally:
            with self._lock:
                self._wanted.remove(seconds)
                self._apply()

    def _apply(self) -> None:
        both = max(1, int(max(self._wanted) * 1000)) if self._wanted else None
        connect, answer = (both, both) if both is not None else self._before
        pygit2.settings.server_connect_timeout = connect
        pygit2.settings.server_timeout = answer


_timeouts = _Timeouts()
_authorities: set[str] = set()


os.register_at_fork(after_in_child=_timeouts.start_over)


def trust(path: Path) -> None:
    """Have libgit2 trust the certificate authorities in a file, besides those of the system.

    It does so for the whole process, and does not forget them. Raises ``OSError`` or ``pygit2.GitError``.
    """
    stat = path.stat()
    key = f"{path.resolve()} {stat.st_ino} {stat.st_mtime_ns}"
    if key not in _authorities:
        pygit2.settings.set_ssl_cert_locations(str(path), None)
        _authorities.add(key)
