"""Reading traces: newest first, from the ledger branch; events one part at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice

from pydantic import ValidationError

from scp_git.codec import MAX_PART_BYTES, MAX_RECORD_BYTES, JsonObject, load_lines, load_object
from scp_git.git.anchors import read_record
from scp_git.git.handle import Repository
from scp_git.git.objects import BLOB, TREE, ObjectStore
from scp_git.git.snapshot import snapshot
from scp_git.git.tree import Tree, TreeEditor, decode_name, is_dir, raw_oid
from scp_git.ids import is_valid_id
from scp_git.layout import TRACE_FILE, TRACES, is_part, part_name, trace_dir
from scp_git.models import SessionTrace, TraceEvent

log = logging.getLogger(__name__)

EVENTS_LIMIT = 250_000
"""``stop_recording`` and ``get_trace`` return so many events at most; all of them are stored."""


def load_trace(record: JsonObject) -> SessionTrace | None:
    """The model of a stored trace without events, or ``None`` if it is damaged."""
    try:
        trace = SessionTrace.model_validate({k: v for k, v in record.items() if k != "events"})
    except ValidationError:
        return None
    return trace if is_valid_id(trace.trace_id) else None


def load_event(record: JsonObject | None) -> TraceEvent | None:
    """The model of a stored event, or ``None`` if it is damaged."""
    try:
        return TraceEvent.model_validate(record) if record is not None else None
    except ValidationError:
        return None


class TraceReader:
    """Reads the traces of one repository. Thread-safe.

    What was read of a trace is kept by the id of its folder, so a list reads only what is new.
    """

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self._known: dict[str, tuple[str, str, bytes]] = {}  # folder id -> started_at, trace id, trace.json

    def get(self, trace_id: str, *, limit: int = EVENTS_LIMIT) -> SessionTrace | None:
        """The trace with its first ``limit`` events."""
        with self.repository.odb() as odb:
            ledger = snapshot(self.repository, odb).ledger
            record = read_record(ledger, f"{trace_dir(trace_id)}/{TRACE_FILE}")
            parts = _parts(ledger, trace_id)
        trace = load_trace(record) if record else None
        if trace is None or trace.trace_id != trace_id:
            if record is not None:
                log.warning("the record of trace %r is damaged; it is left out", trace_id)
            return None
        trace.events = list(islice(self._events(trace_id, parts), limit))
        return trace

    def events(self, trace_id: str) -> Iterator[TraceEvent]:
        """All events of a trace in order; holds one part at a time. Empty if there is no such trace."""
        with self.repository.odb() as odb:
            ledger = snapshot(self.repository, odb).ledger
            parts = _parts(ledger, trace_id) if ledger.blob(f"{trace_dir(trace_id)}/{TRACE_FILE}") else []
        yield from self._events(trace_id, parts)

    def _events(self, trace_id: str, parts: list[str]) -> Iterator[TraceEvent]:
        for oid in parts:
            yield from self._part(trace_id, oid)

    def _part(self, trace_id: str, oid: str) -> list[TraceEvent]:
        with self.repository.odb() as odb:
            data = ObjectStore(odb).find(oid, BLOB, limit=4 * MAX_PART_BYTES)
        found = [load_event(record) for record in load_lines(data or b"")]
        events = [event for event in found if event is not None]
        if data is None or len(events) < len(found):
            log.warning("events of trace %r are damaged and are left out", trace_id)
        return sorted(events, key=lambda event: event.seq)

    def newest(self, n: int) -> list[SessionTrace]:
        """The newest ``n`` traces by (``started_at``, id), without their events."""
        found: list[SessionTrace] = []
        for _, _, data in sorted(self._rows(), reverse=True) if n > 0 else ():
            trace = load_trace(load_object(data))
            if trace is not None:
                found.append(trace)
            if len(found) >= n:
                break
        return found

    def _rows(self) -> list[tuple[str, str, bytes]]:
        known, fresh = self._known, {}
        with self.repository.odb() as odb:
            ledger = snapshot(self.repository, odb).ledger
            for trace_id, oid in _folders(ledger.folder(TRACES)):
                row = known.get(oid) or self._read(ledger.store, trace_id, oid)
                if row is not None:
                    fresh[oid] = row
        self._known = fresh
        return list(fresh.values())

    def _read(self, store: ObjectStore, trace_id: str, oid: str) -> tuple[str, str, bytes] | None:
        try:
            tree = store.find(oid, TREE)
            raw = Tree(oid, tree).raw(TRACE_FILE.encode()) if tree else None
            if raw is None and tree:
                return None  # a merge may bring events before their trace
            data = store.find(raw_oid(raw), BLOB, limit=MAX_RECORD_BYTES) if raw else None
            trace = load_trace(load_object(data)) if data else None
        except (ValueError, OSError) as exc:
            log.warning("trace %r is damaged: %s", trace_id, exc)
            return None
        if trace is None or trace.trace_id != trace_id or data is None:
            log.warning("trace %r is damaged and is left out", trace_id)
            return None
        return trace.started_at, trace_id, data


def _folders(tree: Tree | None) -> Iterator[tuple[str, str]]:
    """Trace ids and folder ids."""
    if tree is not None:
        for name, raw in tree.raw_items().items():
            if is_dir(raw) and is_valid_id(decode_name(name)):
                yield decode_name(name), raw_oid(raw)


def _parts(ledger: TreeEditor, trace_id: str) -> list[str]:
    """The blob ids of a trace's events in order; the name of the first part has no number."""
    folder, first = trace_dir(trace_id), part_name("events", 1)
    names = [name for name in ledger.names(folder) if is_part("events", name)]
    blobs = (ledger.blob(f"{folder}/{name}") for name in sorted(names, key=lambda n: (n != first, len(n), n)))
    return [oid for oid in blobs if oid]
