"""The last lines that a command printed, kept within fixed memory while bytes stream by. No I/O.

One ``Assembler`` per stream, so that lines of stdout and stderr do not run into
each other; the finished lines share one ``Tail``. Masking comes last, over whole
lines, and the cut to size after it: a secret must not survive as a piece.
"""

from __future__ import annotations

import threading
from collections import deque

from scp_git.cli.masking import Secrets, mask_output

LINE_BYTES = 4096
TOTAL_BYTES = 256 * 1024
_KEPT_BYTES = 2 * TOTAL_BYTES
# More than is stored, so that what is masked near the cut can be seen whole.
_RAW_BYTES = 2 * LINE_BYTES
_CUT_MARK = "…"


class Tail:
    """The last ``count`` lines; fed from several threads."""

    def __init__(self, count: int, secrets: Secrets) -> None:
        self.count = count
        self._secrets = secrets
        self._lines: deque[tuple[bytes, bool]] = deque(maxlen=count)
        self._size = 0
        self._lock = threading.Lock()

    def append(self, line: bytes, is_cut: bool) -> None:
        with self._lock:
            if len(self._lines) == self._lines.maxlen:
                self._size -= len(self._lines[0][0])
            self._lines.append((line, is_cut))
            self._size += len(line)
            while self._size > _KEPT_BYTES and len(self._lines) > 1:
                self._size -= len(self._lines.popleft()[0])

    def lines(self) -> list[str]:
        """The lines as they may be stored: masked, each at most 4096 bytes, together at most 256 KiB."""
        with self._lock:
            raw = list(self._lines)
        kept: deque[str] = deque()
        room = TOTAL_BYTES
        for line, is_cut in reversed(raw):
            text = self._presentable(line, is_cut)
            room -= len(text.encode())
            if room < 0:
                break
            kept.appendleft(text)
        return list(kept)

    def _presentable(self, line: bytes, is_cut: bool) -> str:
        text = line.decode("utf-8", "replace")
        if is_cut:
            text = self._secrets.drop_cut_end(self._secrets.redact(text.rstrip("\ufffd")))
        return _fit(mask_output(text, self._secrets), is_cut)


def _fit(text: str, is_cut: bool) -> str:
    data = text.encode()
    if len(data) <= LINE_BYTES and not is_cut:
        return text
    return data[: LINE_BYTES - len(_CUT_MARK.encode())].decode("utf-8", "ignore") + _CUT_MARK


class Assembler:
    """Cuts one byte stream into lines; for one thread."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self._line = b""
        self._is_cut = False

    def feed(self, data: bytes) -> None:
        # Of a flood only the end is looked at, so that we do not slow the command down.
        pieces = data.rsplit(b"\n", self._tail.count + 1)
        if len(pieces) == self._tail.count + 2:
            del pieces[0]
            self._line, self._is_cut = b"", False
        for piece in pieces[:-1]:
            self._extend(piece)
            self._finish()
        self._extend(pieces[-1])

    def close(self) -> None:
        """The last line counts also when no newline ended it."""
        if self._line:
            self._finish()

    def _extend(self, piece: bytes) -> None:
        if not piece or (self._is_cut and b"\r" not in piece):
            return
        line = self._line + piece
        body = line.rstrip(b"\r")
        # A carriage return starts the line anew, as progress bars do.
        latest = body.rpartition(b"\r")[2]
        self._is_cut = len(latest) > _RAW_BYTES or (self._is_cut and latest == body)
        self._line = latest[:_RAW_BYTES] + (b"\r" if len(body) < len(line) else b"")

    def _finish(self) -> None:
        self._tail.append(self._line.rstrip(b"\r"), self._is_cut)
        self._line = b""
        self._is_cut = False
