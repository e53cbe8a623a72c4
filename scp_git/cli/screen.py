"""A pseudo-terminal that stands in for the terminal our output goes to.

It is not the controlling terminal of anybody: keys, Ctrl-C and job control stay
with the real one, which the command has as stdin and ``/dev/tty``. So only two
things must be carried over: the window's size, and the modes a program sets through
its stdout (curses does). Output is not processed here, the real terminal does that.
"""

from __future__ import annotations

import os
import signal
import termios
from typing import Any

_IFLAG, _OFLAG, _LFLAG, _CC = 0, 1, 3, 6


class Screen:
    """A pseudo-terminal in the image of the terminal ``real``; the caller closes ``master`` and ``slave``."""

    def __init__(self, real: int) -> None:
        self._real = real
        self._size = termios.tcgetwinsize(real)
        modes = termios.tcgetattr(real)
        self.master, self.slave = os.openpty()
        # Bytes arrive as written; "\n" becomes "\r\n" once, in the real terminal.
        modes[_OFLAG] &= ~termios.OPOST
        termios.tcsetattr(self.slave, termios.TCSANOW, modes)
        termios.tcsetwinsize(self.slave, self._size)
        self._modes: list[Any] = termios.tcgetattr(self.slave)

    def follow_size(self) -> None:
        """The window has the real size; if that is news, the command is told.

        The system told it already, but maybe before the size here was right.
        """
        try:
            size = termios.tcgetwinsize(self._real)
            if size != self._size:
                self._size = size
                termios.tcsetwinsize(self.master, size)
                os.killpg(self._foreground_group(), signal.SIGWINCH)
        except (OSError, termios.error):
            pass

    def follow_modes(self) -> None:
        """Modes that the command set through this terminal hold for the real one; not from the main thread.

        The caller blocks SIGTTOU. A command in the background must not change a terminal, so nor do we.
        """
        try:
            modes = termios.tcgetattr(self.master)
            if modes == self._modes:
                return
            self._modes = modes
            if self._foreground_group() == os.getpgrp():
                termios.tcsetattr(self._real, termios.TCSANOW, self._merged(modes))
        except (OSError, termios.error):
            pass

    def _merged(self, modes: list[Any]) -> list[Any]:
        merged = termios.tcgetattr(self._real)
        processing = merged[_OFLAG] & termios.OPOST
        for part in (_IFLAG, _LFLAG, _CC):
            merged[part] = modes[part]
        merged[_OFLAG] = (modes[_OFLAG] & ~termios.OPOST) | processing
        return merged

    def _foreground_group(self) -> int:
        """The process group that the terminal's keys and signals go to; ours if it is nobody's."""
        try:
            return os.tcgetpgrp(self._real)
        except OSError:
            return os.getpgrp()
