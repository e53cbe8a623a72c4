"""One recording: what it takes of the bus, its lines on their way to the disk, its end.

Lines are given to it by the recorder, in the order of the bus; a thread of its own writes
them, so that a disk that stands still holds up no other recording.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from sys import intern

from scp_git.broadcast import Event
from scp_git.codec import dump_compact
from scp_git.errors import StorageFailed
from scp_git.ids import is_valid_id, now_iso
from scp_git.models import SessionTrace, TraceEvent
from scp_git.patterns import matcher
from scp_git.trace.encoding import Line, encode_event, gap_line
from scp_git.trace.queries import EVENTS_LIMIT
from scp_git.trace.spool import SpoolFile, read_events, spool_path
from scp_git.trace.summary import Tally

log = logging.getLogger(__name__)

BUFFER_BYTES = 48 * 1024 * 1024
"""So much may wait for the disk; with what waits to be encoded a recording holds at most 64 MiB."""
RUNS_MAX = 10_000
"""So many runs are named in ``audit_refs``; more would crowd out the trace itself."""
_LINE_BYTES = 64
"""What a line costs in memory beside its bytes."""
_WRITE_BYTES = 1024 * 1024
_FIELDS = set(TraceEvent.model_fields)
_PAUSES_S = (0.05, 0.1, 0.25, 0.5)
STOP_TRIES_S = 5.0
"""How long ``stop_recording`` tries to write before it gives up."""
OWN_TYPES = frozenset({"trace:start", "trace:stop", "trace:saved", "trace:deleted"})
"""What recorders say about themselves; like ``sys:*`` it is left out unless a pattern asks for it."""


class Phase(Enum):
    NEW = "new"
    ACTIVE = "active"
    ENDING = "ending"
    """It takes no further events; not all may have reached the disk."""
    STOPPED = "stopped"


@lru_cache(maxsize=1024)
def _wanted_by_default(type: str) -> bool:
    return type not in OWN_TYPES and type != "sys" and not type.startswith("sys:")


class Recording:
    """A session that is being recorded; made without touching the disk, begun by the recorder."""

    def __init__(self, trace: SessionTrace, root: Path, common_dir: Path, types: Iterable[str]) -> None:
        self.trace = trace
        """The session as far as it is known; without its events."""
        self.root = root
        self.path = spool_path(common_dir, trace.trace_id)
        self.types = (types,) if isinstance(types, str) else tuple(types)
        self.phase = Phase.NEW
        self.unwanted = False
        """Whoever asked for it was cancelled before it began."""
        self.after = 0
        """The bus number of the last event before the recording began."""
        self.wake: SimpleQueue[None] = SimpleQueue()
        self.spool: SpoolFile | None = None
        self._root = str(root)
        self._matches: Callable[[str], bool] = matcher(*self.types) if self.types else _wanted_by_default
        self._lines: deque[bytes] = deque()
        self._appended = self._taken = 0
        """Bytes put into and taken out of ``_lines``; each has one writer at a time, and needs no lock."""
        self._unwritten = b""
        self._writing = threading.Lock()
        self.finishing = threading.Lock()
        self._lost = self._lost_in_all = 0
        self._seq = 0
        self._tally = Tally()
        self._runs: dict[str, None] = {}
        self._failure: OSError | None = None

    @property
    def trace_id(self) -> str:
        return self.trace.trace_id

    # ------------------------------------------------------------ taking events; the recorder's lock is held

    def take(self, events: Sequence[Event], lines: list[Line | None]) -> None:
        """Add those of ``events`` that are wanted; what was encoded is in ``lines``, for all recordings.

        What is lost while too much waits for the disk is counted.
        """
        matches, count, append = self._matches, self._tally.count, self._lines.append
        first = last = None
        for place, event in enumerate(events):
            if event.seq <= self.after or (event.meta and not self._is_ours(event.meta)):
                continue
            if event.type == "ledger:run":
                self._take_run(event.key)
            if not matches(event.type):
                continue
            line = lines[place]
            if line is None:
                line = lines[place] = encode_event(event)
            if self._appended - self._taken + len(line.body) > BUFFER_BYTES:
                self._lost += 1
                continue
            if self._lost:
                self._add_gap(line.ts)
            self._seq += 1
            data = b'{"seq":%d,%b' % (self._seq, line.body)
            append(data)
            self._appended += len(data) + _LINE_BYTES
            count(line.kind)
            first, last = first or line, line
        if first and last:
            self._tally.span(first.ts, first.duration_ms, last.ts)

    def _is_ours(self, meta: Mapping[str, object]) -> bool:
        try:
            root = meta.get("root")
            return root is None or root == self._root or _real(root) in ("", self._root)
        except Exception:  # a stranger's class; whatever it means, it is no path of ours
            return False

    def _take_run(self, run_id: str) -> None:
        """A run was recorded meanwhile."""
        if is_valid_id(run_id) and run_id not in self._runs and len(self._runs) < RUNS_MAX:
            self._runs[run_id] = None
            self._append(f"{dump_compact({'run': run_id})}\n".encode())

    def _add_gap(self, ts: str) -> None:
        missed, self._lost = self._lost, 0
        self._lost_in_all += missed
        gap = gap_line(missed, ts)
        self._seq += 1
        self._append(b'{"seq":%d,%b' % (self._seq, gap.body))
        self._tally.add(gap.kind, gap.ts, 0)

    def _append(self, data: bytes) -> None:
        self._appended += len(data) + _LINE_BYTES
        self._lines.append(data)

    # ------------------------------------------------------------ writing

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._lines and not self._unwritten

    def write_out(self) -> bool:
        """Write what waits; False if the disk refused, and it goes on waiting."""
        if not self._writing.acquire(timeout=STOP_TRIES_S):
            self._failure = OSError(errno.ETIMEDOUT, "the disk stands still", str(self.path))
            return False
        try:
            while self._next_chunk() and self.spool is not None:
                self._unwritten = self._unwritten[self.spool.write(self._unwritten) :]
            self._failure = None
        except OSError as exc:
            if self._failure is None:
                log.error("recording %s cannot be written, it is tried again: %s", self.trace_id, exc)
            self._failure = exc
            return False
        finally:
            self._writing.release()
        return True

    def _next_chunk(self) -> bytes:
        """What to write next; it is held until it was written."""
        if self.spool is None:  # thrown away
            return b""
        if not self._unwritten and self._lines:
            chunk, size = [], 0
            while self._lines and size < _WRITE_BYTES:
                chunk.append(self._lines.popleft())
                size += len(chunk[-1])
            self._unwritten = b"".join(chunk)
            self._taken += size + _LINE_BYTES * len(chunk)
        return self._unwritten

    def write_out_or_raise(self) -> None:
        """Write what waits, trying for a while; raises ``StorageFailed``."""
        deadline, turn = time.monotonic() + STOP_TRIES_S, 0
        while not self.write_out():
            if time.monotonic() > deadline:
                failure = self._failure
                raise StorageFailed(
                    f"writing recording {self.trace_id}, which goes on,", failure or "unknown"
                ) from failure
            time.sleep(_PAUSES_S[min(turn, len(_PAUSES_S) - 1)])
            turn += 1

    # ------------------------------------------------------------ beginning and end

    def begin(self) -> None:
        """Make the spool."""
        header = self.trace.model_dump(
            exclude={"events", "event_count", "ended_at", "auto_summary", "audit_refs"}
        )
        self.spool = SpoolFile.create(self.path, {**header, "types": list(self.types)})

    def end(self) -> None:
        """No further events come; the recorder's lock is held."""
        self.phase = Phase.ENDING
        self.trace.ended_at = now_iso()
        if self._lost:
            self._add_gap(self.trace.ended_at)

    def close(self) -> None:
        """Everything is on the disk, marked as complete. Raises ``StorageFailed``; may be repeated."""
        self.write_out_or_raise()
        if self.phase is Phase.ENDING:
            self.trace.event_count = self._seq
            self.trace.auto_summary = self._tally.text()
            self.trace.audit_refs = list(self._runs)
            returned = min(self._seq, EVENTS_LIMIT)
            footer = {"stopped": self.trace.ended_at, "returned": returned}
            self._append(f"{dump_compact(footer)}\n".encode())
            self.phase = Phase.STOPPED
        self.write_out_or_raise()
        if self._lost_in_all:
            log.warning("recording %s lost %d events", self.trace_id, self._lost_in_all)

    def release(self) -> None:
        """Let others recover it."""
        self._end_spool(SpoolFile.release)

    def remove(self) -> None:
        """Throw the spool away."""
        self._end_spool(SpoolFile.remove)

    def _end_spool(self, how: Callable[[SpoolFile], None]) -> None:
        self.phase = Phase.STOPPED
        with self._writing:  # a late write must not hit a descriptor that is somebody else's by then
            self._lines.clear()
            self._unwritten = b""
            spool, self.spool = self.spool, None
        self.wake.put(None)
        if spool is not None:
            how(spool)

    def result(self) -> SessionTrace:
        """The stopped session with its first events."""
        trace = self.trace.model_copy()
        trace.audit_refs = list(self.trace.audit_refs)
        trace.events = [
            # Checked when it was written. Shared, as a set for each would take a third of the memory.
            TraceEvent.model_construct(_FIELDS, **{**event, "type": intern(event["type"])})
            for event in read_events(self.path, EVENTS_LIMIT)
        ]
        return trace

    def snapshot(self) -> SessionTrace:
        """The session as it is now, without its events."""
        return self.trace.model_copy(update={"event_count": self._seq, "audit_refs": list(self._runs)})


def _real(root: object) -> str:
    """The real path of a root as a publisher may give it, empty if there is none in it."""
    return _real_path(os.fsdecode(root)) if isinstance(root, str | bytes | os.PathLike) else "?"


@lru_cache(maxsize=256)
def _real_path(path: str) -> str:
    return os.path.realpath(path) if path else ""
