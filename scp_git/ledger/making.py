"""Making runs ready in a process of its own, for another that imports them.

The two speak over pipes, in frames: eight bytes that say how long it is, then a
value as ``marshal`` spells it, which both ends write and read within one import.
"""

from __future__ import annotations

import marshal
import os
import signal
import sys
from typing import Any, BinaryIO

from scp_git.codec import JsonObject
from scp_git.git.handle import Identity
from scp_git.ledger.importing import MadeRun

HEAD_BYTES = 8


def frame(value: Any) -> bytes:
    """A value as it goes over a pipe; ``ValueError`` for what is not made of builtin types."""
    data = marshal.dumps(value)
    return len(data).to_bytes(HEAD_BYTES, "big") + data


def pack(given: tuple[Any, ...]) -> bytes:
    """The arguments of ``MadeRun.make`` but the identity, as they are at this moment."""
    return marshal.dumps(given)


def unpack(packed: bytes) -> tuple[JsonObject, list[JsonObject], str]:
    """What was packed."""
    record, events, target = marshal.loads(packed)
    return record, events, target


def serve() -> None:
    """Answer frames on the standard input until it ends: for each packed run of it the run made ready.

    ``None`` stands for one that was refused: whoever asked makes it again to learn why.
    The first frame gives the identity; the first answer says that this process is there.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that imports
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anybody prints is no answer
    identity = Identity(*_read(source))
    answer: Any = None
    while True:
        sink.write(frame(answer))
        sink.flush()
        packed = _read(source)
        if packed is None:
            return
        answer = [_plain(run, identity) for run in packed]


def _read(source: BinaryIO) -> Any:
    head = source.read(HEAD_BYTES)
    return marshal.loads(source.read(int.from_bytes(head, "big"))) if head else None


def _plain(packed: bytes, identity: Identity) -> tuple[Any, ...] | None:
    try:
        made = MadeRun.make(*unpack(packed), identity)
    except Exception:
        return None
    objects: list[Any] = [tuple(entry) for entry in made.objects]
    return tuple(made._replace(objects=objects))
