"""What can be done to runs, as values that the writer applies to a transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from scp_git.codec import (
    MAX_PART_BYTES,
    MAX_RECORD_BYTES,
    JsonObject,
    cut_parts,
    dump_compact,
    dump_pretty,
    load_lines,
    load_object,
    same_json,
)
from scp_git.errors import AlreadyExists, RecordTooLarge
from scp_git.git.anchors import find_run, read_record, run_tag
from scp_git.git.deletions import tags_and_digest
from scp_git.git.notes import remove_note
from scp_git.git.objects import Anchor
from scp_git.git.transaction import Transaction
from scp_git.git.tree import TreeEditor
from scp_git.ids import check_id, clock, format_time, is_valid_id, now_iso, parse_time
from scp_git.layout import (
    RUN_FILE,
    RUNS,
    archived_run_dir,
    deleted_path,
    is_part,
    part_name,
    run_chat_dir,
    run_dir,
)
from scp_git.models import Run, RunEvent
from scp_git.soundness import file_of, line_of, surely_event, surely_run

_UNSET_EVENT = RunEvent().model_dump()
_ANCHOR_BYTES = 1024
_SURELY_SMALL = 64 * 1024
_FILLED = ("user", "code_ref", "ended_at", "duration_ms")


@dataclass(frozen=True, slots=True)
class EnsureLedger:
    """Afterwards the branch, the view and the tags of all hot runs are as they should be."""

    size: int = 0

    def apply(self, tx: Transaction) -> None:
        tx.start_ledger = True
        tx.verify_view = True
        tx.survey_tags()
        for run_id in tx.ledger.names(RUNS):
            if is_valid_id(run_id) and tx.tag(run_id) is None:
                tx.project_tag(run_id)


@dataclass(frozen=True, slots=True)
class RecordRun:
    """Afterwards the run is stored with its events, anchored to a commit and tagged."""

    run_id: str
    record: JsonObject
    """The run as it is stored, without its anchor."""
    message: bytes
    """The same as the message of its tag."""
    filled: frozenset[str]
    """The fields that the caller left empty; they do not count when a run is recorded twice."""
    parts: tuple[bytes, ...]
    """The events as JSONL, cut into parts."""
    timeless: frozenset[int]
    """Positions of the events whose ``ts`` the caller left out."""
    head: str | None
    """HEAD of the caller's root."""
    size: int

    @classmethod
    def prepare(
        cls,
        run: Run,
        events: Iterable[RunEvent | Mapping[str, Any]] | None,
        *,
        user: str,
        head: str | None,
    ) -> RecordRun:
        """Validate and encode everything outside the gate; the caller's objects stay as they are.

        Raises ``InvalidId``, ``RecordTooLarge``, pydantic's ``ValidationError`` or ``TypeError``.
        """
        if not isinstance(run, Run):
            raise TypeError(f"run must be a Run, not {type(run).__name__}")
        check_id("run", run.run_id)
        return cls.of(run.model_dump(), given_events(events), user=user, head=head, past=False)

    @classmethod
    def of(
        cls, record: JsonObject, events: Sequence[JsonObject], *, user: str, head: str | None, past: bool
    ) -> RecordRun:
        """As ``prepare``, from the fields of a run and of its events, which it takes over.

        Of a run of the ``past`` nothing is filled that only the present would know:
        times come from the run itself, ``user`` and ``code_ref`` stay as they are.
        """
        if not surely_run(record):
            record = Run.model_validate(record).model_dump()
        filled = frozenset([name for name in _FILLED if not record[name]])
        if not past:
            record["user"] = record["user"] or user
            record["code_ref"] = record["code_ref"] or head or ""
        _fill_times(record, past=past)
        message = line_of(record)
        length = _file_length(record, message)
        if length > MAX_RECORD_BYTES:
            raise RecordTooLarge("run", record["run_id"], length, MAX_RECORD_BYTES)
        stored, timeless = _stored_events(events, record["started_at"] if past else None)
        lines = list(map(line_of, stored))
        longest = max(map(len, lines), default=0)
        if longest > MAX_PART_BYTES:
            raise RecordTooLarge("an event of run", record["run_id"], longest, MAX_PART_BYTES)
        parts = tuple(cut_parts(lines))
        size = 3 * length + sum(map(len, parts))
        return cls(record["run_id"], record, message, filled, parts, timeless, head, size)

    def apply(self, tx: Transaction) -> bool:
        """True if the run was stored, False if it was there already with the same content."""
        if tx.is_deleted("run", self.run_id):
            raise AlreadyExists("run", self.run_id, deleted=True)
        found = find_run(tx, self.run_id)
        if found is not None:
            if not self.same(*found):
                raise AlreadyExists("run", self.run_id)
            tx.project_tag(self.run_id)
            return False
        record = dict(self.record)
        anchor = self._anchor(tx)
        if anchor is None:
            tx.deferred.add(self.run_id)
        else:
            if tx.tag(self.run_id) is None:
                tx.set_tag(self.run_id, run_tag(self.run_id, record, anchor), anchor.target)
            record["anchor"] = anchor.to_json()
        folder = run_dir(self.run_id)
        tx.ledger.put(f"{folder}/{RUN_FILE}", file_of(record))
        for number, part in enumerate(self.parts, 1):
            tx.ledger.put(f"{folder}/{part_name('events', number)}", part)
        tx.recorded.append((self.run_id, str(record["started_at"])))
        tx.subjects.append(f"ledger: {record['type'][:40]} {self.run_id}")
        return True

    def _anchor(self, tx: Transaction) -> Anchor | None:
        """The commit that the run names if it is here, else HEAD; none before the first commit."""
        for target in (str(self.record["code_ref"]), self.head):
            if target and tx.has_commit(target):
                return Anchor(target, tx.identity.stamp(tx.seconds))
        return None

    def same(self, editor: TreeEditor, folder: str) -> bool:
        """Whether what is stored is what the caller gave."""
        stored = read_record(editor, f"{folder}/{RUN_FILE}")
        return self._same_record(stored) and self._same_events(read_events(editor, folder))

    def same_as(self, other: RecordRun) -> bool:
        """Whether another run, not stored yet, is what the caller gave."""
        events = [event for part in other.parts for event in load_lines(part)]
        return self._same_record(dict(other.record)) and self._same_events(events)

    def _same_record(self, stored: JsonObject | None) -> bool:
        if stored is None:
            return False
        # Through JSON, which knows no tuples.
        given = load_object(dump_compact(self.record).encode())
        for name in (*self.filled, "anchor"):
            given.pop(name, None)
            stored.pop(name, None)
        return same_json(given, stored)

    def _same_events(self, stored: Sequence[JsonObject | None]) -> bool:
        given = [event for part in self.parts for event in load_lines(part)]
        if len(given) != len(stored):
            return False
        for position in self.timeless:
            for event in (given[position], stored[position]):
                (event or {}).pop("ts", None)
        return same_json(given, stored)


@dataclass(frozen=True, slots=True)
class DeleteRuns:
    """Afterwards the runs are gone from the present state, and stay gone; gives the ids that were there."""

    run_ids: tuple[str, ...]
    size: int = 1024

    def apply(self, tx: Transaction) -> list[str]:
        return [run_id for run_id in self.run_ids if self._delete(tx, run_id)]

    def _delete(self, tx: Transaction, run_id: str) -> bool:
        if find_run(tx, run_id) is None:
            return False
        tags, digest = tags_and_digest(tx, run_id)
        present = tx.remove_tag(run_id)
        tags |= {present} if present else set()
        for tag in tags:
            remove_note(tx.notes, tag)
        # A crash without fsync may have left a run that was on its way to the archive in both places.
        tx.ledger.remove(run_dir(run_id))
        tx.archive.remove(archived_run_dir(run_id))
        tx.ledger.remove(run_chat_dir(run_id))
        tx.deferred.discard(run_id)
        deletion = {"id": run_id, "ts": now_iso(), "user": tx.identity.name, "tags": sorted(tags)}
        if digest:
            deletion["digests"] = [digest]
        tx.archive.put(deleted_path("run", run_id), dump_pretty(deletion))
        tx.subjects.append(f"ledger: delete {run_id}")
        return True


def read_events(editor: TreeEditor, folder: str) -> list[JsonObject]:
    """All events of a run in the order of ``seq``; lines that cannot be read are left out."""
    events = [
        event
        for name in sorted(editor.names(folder))
        if is_part("events", name)
        for event in load_lines(editor.read(f"{folder}/{name}", limit=4 * MAX_PART_BYTES) or b"")
        if event is not None
    ]
    return sorted(events, key=_seq)


def _seq(event: JsonObject) -> int:
    seq = event.get("seq")
    return seq if isinstance(seq, int) else 2**63


def _fill_times(record: JsonObject, *, past: bool) -> None:
    """``ended_at`` from the duration or, for a run of the present, the clock; ``duration_ms`` from both."""
    if record["ended_at"] and record["duration_ms"]:
        return
    started = parse_time(record["started_at"])
    if not record["ended_at"]:
        duration_ms = record["duration_ms"]
        end = started if past and not duration_ms else _end(started, duration_ms)
        record["ended_at"] = format_time(max(started, end))
    if not record["duration_ms"]:
        elapsed = parse_time(record["ended_at"]) - started
        record["duration_ms"] = max(int(elapsed.total_seconds() * 1000), 0)


def _end(started: datetime, duration_ms: int) -> datetime:
    try:
        return started + timedelta(milliseconds=duration_ms) if duration_ms else clock.now()
    except OverflowError:
        return clock.now()


def _file_length(record: JsonObject, message: bytes) -> int:
    """About how long run.json will be, with its anchor; exact where it matters."""
    length = len(message)
    # An indented file can be many times longer than one line.
    return length + _ANCHOR_BYTES if length < _SURELY_SMALL else len(dump_pretty(record)) + _ANCHOR_BYTES


def given_events(events: Iterable[RunEvent | Mapping[str, Any]] | None) -> list[JsonObject]:
    """The events with exactly the keys that the caller gave; ``TypeError`` for what is no event."""
    return [_given_event(event) for event in events or ()]


def _given_event(event: RunEvent | Mapping[str, Any]) -> JsonObject:
    if isinstance(event, RunEvent):
        values, chosen = event.__dict__, event.__pydantic_fields_set__
        if event.__pydantic_extra__:
            values = values | event.__pydantic_extra__
        return {
            name: value for name, value in values.items() if name in chosen or value != _UNSET_EVENT.get(name)
        }
    if isinstance(event, Mapping):
        return dict(event)
    raise TypeError(f"an event must be a RunEvent or a mapping, not {type(event).__name__}")


def _stored_events(
    events: Iterable[JsonObject], moment: str | None
) -> tuple[list[JsonObject], frozenset[int]]:
    """The events with ``seq`` and ``ts`` where they were left out, in the order of ``seq``.

    ``moment`` is the time of those without one, instead of the clock's. Says also
    which of them had none.
    """
    stored: list[JsonObject] = []
    timeless: set[int] = set()
    seq, in_order = 0, True
    for given in events:
        number, ts = given.pop("seq", 0), given.pop("ts", "")
        if not surely_event({"seq": number, "ts": ts, **given}):
            checked = RunEvent.model_validate({"seq": number, "ts": ts, **given})
            number, ts = checked.seq, checked.ts
        in_order = in_order and not 0 < number < seq
        seq = number or seq + 1
        if not ts:
            timeless.add(len(stored))
        stored.append({"seq": seq, "ts": ts or moment or now_iso(), **given})
    if in_order:
        return stored, frozenset(timeless)
    order = sorted(range(len(stored)), key=lambda position: stored[position]["seq"])
    return [stored[i] for i in order], frozenset(n for n, i in enumerate(order) if i in timeless)
