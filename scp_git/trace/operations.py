"""What can be done to traces, as values that the writer applies to a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from scp_git.codec import (
    MAX_PART_BYTES,
    MAX_RECORD_BYTES,
    JsonObject,
    cut_parts,
    dump_compact,
    dump_pretty,
    load_object,
    same_json,
)
from scp_git.errors import AlreadyExists, RecordTooLarge
from scp_git.git.anchors import read_record
from scp_git.git.objects import BLOB, hash_object
from scp_git.git.transaction import Transaction
from scp_git.ids import check_id, now_iso
from scp_git.layout import TRACE_FILE, deleted_path, is_part, part_name, trace_dir
from scp_git.models import SessionTrace, TraceEvent

_SIZE_MAX = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a trace's events, at most 4 MiB; its bytes are read when they are written."""

    oid: str
    count: int
    """How many events it holds."""
    read: Callable[[], bytes]

    @classmethod
    def of(cls, data: bytes) -> Part:
        return cls(hash_object(BLOB, data), data.count(b"\n"), lambda: data)


@dataclass(frozen=True, slots=True)
class SaveTrace:
    """Afterwards the trace is stored with all its events."""

    trace_id: str
    record: JsonObject
    """What becomes trace.json."""
    parts: tuple[Part, ...]
    size: int

    @classmethod
    def prepare(cls, trace: SessionTrace, rest: Iterable[Part] = ()) -> SaveTrace:
        """Validate and encode everything outside the gate; the caller's objects stay as they are.

        ``rest`` are the events that come after ``trace.events``. Raises ``InvalidId``,
        ``RecordTooLarge``, pydantic's ``ValidationError`` or ``TypeError``.
        """
        if not isinstance(trace, SessionTrace):
            raise TypeError(f"trace must be a SessionTrace, not {type(trace).__name__}")
        check_id("trace", trace.trace_id)
        parts = [Part.of(data) for data in cut_parts(_lines(trace))]
        given = sum(part.count for part in parts)
        parts += rest
        record = SessionTrace.model_validate(trace.model_dump(exclude={"events"})).model_dump()
        del record["events"]
        record["event_count"] = sum(part.count for part in parts)
        length = len(dump_pretty(record))
        if length > MAX_RECORD_BYTES:
            raise RecordTooLarge("trace", trace.trace_id, length, MAX_RECORD_BYTES)
        return cls(trace.trace_id, record, tuple(parts), min(3 * length + 256 * given, _SIZE_MAX))

    @property
    def event_count(self) -> int:
        return int(self.record["event_count"])

    @property
    def trace(self) -> SessionTrace:
        """The trace as it is stored, without its events."""
        return SessionTrace.model_validate(self.record)

    def apply(self, tx: Transaction) -> bool:
        """True if the trace was stored, False if it was there already with the same content."""
        if tx.is_deleted("trace", self.trace_id):
            raise AlreadyExists("trace", self.trace_id, deleted=True)
        folder = trace_dir(self.trace_id)
        if exists(tx, self.trace_id):
            if not self._same(tx, folder):
                raise AlreadyExists("trace", self.trace_id)
            return False
        tx.ledger.put(f"{folder}/{TRACE_FILE}", dump_pretty(self.record))
        for number, part in enumerate(self.parts, 1):
            tx.ledger.put_later(f"{folder}/{part_name('events', number)}", part.oid, part.read)
        tx.subjects.append(f"ledger: trace {self.trace_id}")
        return True

    def _same(self, tx: Transaction, folder: str) -> bool:
        stored = read_record(tx.ledger, f"{folder}/{TRACE_FILE}")
        given = load_object(dump_compact(self.record).encode())
        names = [name for name in tx.ledger.names(folder) if is_part("events", name)]
        present = {name: tx.ledger.blob(f"{folder}/{name}") for name in names}
        wanted = {part_name("events", number): part.oid for number, part in enumerate(self.parts, 1)}
        return stored is not None and same_json(stored, given) and present == wanted


@dataclass(frozen=True, slots=True)
class SaveLeft:
    """Afterwards what a dead process recorded is stored, unless its trace was saved or deleted before."""

    save: SaveTrace

    @property
    def size(self) -> int:
        return self.save.size

    def apply(self, tx: Transaction) -> bool:
        """True if it was stored. The process may have saved another, redacted version and died then."""
        settled = tx.is_deleted("trace", self.save.trace_id) or exists(tx, self.save.trace_id)
        return not settled and self.save.apply(tx)


@dataclass(frozen=True, slots=True)
class DeleteTrace:
    """Afterwards the trace is gone from the present state, and stays gone; False if there was none."""

    trace_id: str
    size: int = 1024

    def apply(self, tx: Transaction) -> bool:
        if not tx.ledger.remove(trace_dir(self.trace_id)):
            return False
        deletion = {"id": self.trace_id, "ts": now_iso(), "user": tx.identity.name}
        tx.archive.put(deleted_path("trace", self.trace_id), dump_pretty(deletion))
        tx.subjects.append(f"ledger: delete {self.trace_id}")
        return True


def exists(tx: Transaction, trace_id: str) -> bool:
    """Whether the trace is stored."""
    return tx.ledger.blob(f"{trace_dir(trace_id)}/{TRACE_FILE}") is not None


def _lines(trace: SessionTrace) -> Iterator[bytes]:
    """The events as they are stored; ``seq`` goes on counting where it was left out."""
    seq = 0
    for event in trace.events:
        checked = TraceEvent.model_validate(event.model_dump())
        seq = checked.seq = checked.seq or seq + 1
        line = f"{dump_compact(checked.model_dump())}\n".encode()
        if len(line) > MAX_PART_BYTES:
            raise RecordTooLarge("an event of trace", trace.trace_id, len(line), MAX_PART_BYTES)
        yield line
