"""The command's output, passed on byte for byte while a copy goes to the tail.

A stream that is a terminal becomes a pseudo-terminal (see ``screen``), any other a
pipe; stdout and stderr stay apart unless they are one and the same file. One
thread per channel, so that a slow reader of one does not hold up the other.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import sys
import termios
import threading
from dataclasses import dataclass

from scp_git.cli.screen import Screen
from scp_git.cli.tail import Assembler, Tail

_CHUNK = 64 * 1024
_QUIET_S = 0.05


@dataclass(slots=True)
class _Channel:
    source: int
    """Where the command's output arrives."""
    target: int
    """1 or 2: where it would have gone."""
    child_end: int
    assembler: Assembler
    screen: Screen | None = None
    is_open: bool = True


class Streams:
    """The way of stdout and stderr for one command. ``start`` once it runs, ``finish`` once it ended."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self._channels: list[_Channel] = []
        self._threads: list[threading.Thread] = []
        self._stop_read, self._stop_write = os.pipe()
        ends: list[int | None] = [self._open(1)]
        ends.append(ends[0] if _is_same_file(1, 2) else self._open(2))
        self.child_ends = (ends[0], ends[1])

    def _open(self, target: int) -> int | None:
        """The descriptor for the command; ``None`` where it keeps ours, as nothing can be copied."""
        if not os.get_inheritable(target):
            return None
        try:
            screen = Screen(target) if os.isatty(target) else None
            source, child_end = (screen.master, screen.slave) if screen else os.pipe()
        except (OSError, termios.error):
            return None
        self._channels.append(_Channel(source, target, child_end, Assembler(self._tail), screen))
        return child_end

    def resize(self) -> None:
        for channel in self._channels:
            if channel.screen is not None and channel.is_open:
                channel.screen.follow_size()

    def start(self) -> None:
        """The command holds its ends now: close ours, and pass on what it writes."""
        self._close_child_ends()
        for channel in self._channels:
            thread = threading.Thread(target=self._pump, args=(channel,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def finish(self) -> None:
        """Everything the command wrote has been passed on.

        What it left running in the background may still hold an end: a process of
        its own then goes on passing on, and nobody waits for it.
        """
        self._close_child_ends()
        os.close(self._stop_write)
        for thread in self._threads:
            thread.join()
        os.close(self._stop_read)
        for channel in self._channels:
            channel.assembler.close()
        _leave_behind([channel for channel in self._channels if channel.is_open])

    def _close_child_ends(self) -> None:
        for channel in self._channels:
            if channel.child_end >= 0:
                os.close(channel.child_end)
                channel.child_end = -1

    def _pump(self, channel: _Channel) -> None:
        # Signals are for the main thread, whose wait they must interrupt.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with selectors.DefaultSelector() as selector:
            selector.register(channel.source, selectors.EVENT_READ)
            selector.register(self._stop_read, selectors.EVENT_READ)
            timeout: float | None = None
            left: int | None = None
            # When the command has ended, what it left is passed on; what comes then is somebody else's.
            while channel.is_open and (left is None or left >= 0):
                ready = {key.fd for key, _ in selector.select(timeout)}
                if self._stop_read in ready:
                    selector.unregister(self._stop_read)
                    timeout, left = _QUIET_S, _waiting_bytes(channel.source)
                elif not ready:
                    return
                if channel.source in ready:
                    passed = _pass_on(channel)
                    left = None if left is None else left - passed


def _waiting_bytes(source: int) -> int:
    return int.from_bytes(fcntl.ioctl(source, termios.FIONREAD, bytes(4)), sys.byteorder)


def _pass_on(channel: _Channel) -> int:
    """Move one chunk; the channel is closed at its end, or when nobody reads what it leads to."""
    try:
        data = os.read(channel.source, _CHUNK)
    except OSError:
        # EIO: the last process left the pseudo-terminal.
        data = b""
    if channel.screen is not None:
        channel.screen.follow_size()
        channel.screen.follow_modes()
    if not data or not _write_all(channel.target, data):
        # With the source closed the command gets SIGPIPE, as it would have without us.
        channel.is_open = False
        os.close(channel.source)
    if data:
        channel.assembler.feed(data)
    return len(data)


def _write_all(target: int, data: bytes) -> bool:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(target, view) :]
        except BlockingIOError:
            with selectors.DefaultSelector() as selector:
                selector.register(target, selectors.EVENT_WRITE)
                selector.select()
        except OSError:
            return False
    return True


def _leave_behind(channels: list[_Channel]) -> None:
    if channels and os.fork() == 0:
        try:
            _pass_on_until_closed(channels)
        finally:
            os._exit(0)
    for channel in channels:
        os.close(channel.source)


def _pass_on_until_closed(channels: list[_Channel]) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_DFL)
    os.close(0)
    with selectors.DefaultSelector() as selector:
        for channel in channels:
            selector.register(channel.source, selectors.EVENT_READ, channel)
        while selector.get_map():
            for key, _ in selector.select():
                _pass_on(key.data)
                if not key.data.is_open:
                    selector.unregister(key.fileobj)


def _is_same_file(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False
