"""Reading runs: newest first, from the branches, whatever the tags say."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from pydantic import ValidationError

from scp_git.codec import MAX_RECORD_BYTES, JsonObject, load_object
from scp_git.git.anchors import State, find_run, read_record
from scp_git.git.handle import Repository
from scp_git.git.objects import BLOB, ObjectStore
from scp_git.git.snapshot import Snapshot, snapshot
from scp_git.git.tree import TreeEditor, decode_name, is_dir
from scp_git.ids import is_valid_id
from scp_git.layout import ARCHIVED_RUNS, RUN_FILE, RUNS, archived_run_dir, run_dir
from scp_git.ledger.filters import RunFilter
from scp_git.ledger.operations import read_events
from scp_git.models import Run

log = logging.getLogger(__name__)

_ARCHIVE_DEPTH = 4
"""``<YYYY/MM/DD>/<2 hex>``; of ``other`` the last alone."""


def load_run(record: JsonObject) -> Run | None:
    """The model of a stored run, or ``None`` if it is damaged."""
    if not record.get("started_at"):  # the model would put the present time, another with each reading
        return None
    try:
        run = Run.model_validate({key: value for key, value in record.items() if key != "anchor"})
    except ValidationError:
        return None
    return run if is_valid_id(run.run_id) else None


def stored_run(state: State, run_id: str) -> Run | None:
    """The run in a state, or ``None`` if there is none or it is damaged."""
    found = find_run(state, run_id)
    record = read_record(found[0], f"{found[1]}/{RUN_FILE}") if found else None
    run = load_run(record) if record else None
    if run is not None and run.run_id != run_id:
        log.warning("the record of run %r bears another id; it is left out", run_id)
        return None
    return run


class RunReader:
    """Reads the runs of one repository. Thread-safe.

    Lists look at every run: the index answers them as a rule, and must say the same. What was
    read of a run is kept by the id of its blob, so that a second list reads only what is new.
    """

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self._known: dict[str, tuple[str, str, bytes]] = {}  # blob id -> started_at, run id, run.json

    def get(self, run_id: str) -> Run | None:
        with self.repository.odb() as odb:
            return stored_run(snapshot(self.repository, odb), run_id)

    def events(self, run_id: str) -> list[JsonObject]:
        with self.repository.odb() as odb:
            found = find_run(snapshot(self.repository, odb), run_id)
            return read_events(*found) if found else []

    def newest(self, *, n: int, before: str | None, only: RunFilter) -> list[Run]:
        """The newest ``n`` runs that pass the filter, older than the run ``before`` if given."""
        limit = self._key(before) if before else None
        if n <= 0 or (before and limit is None):
            return []
        found: list[Run] = []
        for _, _, data in self._newest_first(limit):
            run = load_run(load_object(data))
            if run is not None and only.accepts(run):
                found.append(run)
            if len(found) >= n:
                break
        return found

    def ids_before(self, started_at: str, *, archived: bool = True) -> list[str]:
        """The ids of all runs that started earlier, of hot ones only unless ``archived``."""
        rows = self._newest_first(None)
        if not archived:
            with self.repository.odb() as odb:
                hot = _records(snapshot(self.repository, odb).ledger, RUNS, 0)
            rows = [row for row in rows if row[1] in hot]
        return [run_id for started, run_id, _ in rows if started < started_at]

    def started(self) -> tuple[list[str], list[str]]:
        """When the runs on the ledger branch started, and when those in the archive did."""
        with self.repository.odb() as odb:
            state = snapshot(self.repository, odb)
            hot = set(_records(state.ledger, RUNS, 0))
            rows = list(self._rows(state))
        return (
            [started for started, run_id, _ in rows if run_id in hot],
            [started for started, run_id, _ in rows if run_id not in hot],
        )

    def _key(self, run_id: str) -> tuple[str, str] | None:
        run = self.get(run_id)
        return (run.started_at, run.run_id) if run else None

    def _newest_first(self, limit: tuple[str, str] | None) -> list[tuple[str, str, bytes]]:
        with self.repository.odb() as odb:
            rows = list(self._rows(snapshot(self.repository, odb)))
        return [row for row in sorted(rows, reverse=True) if limit is None or (row[0], row[1]) < limit]

    def _rows(self, state: Snapshot) -> Iterator[tuple[str, str, bytes]]:
        """Start, id and record of every run that can be read; what is hot counts before what is archived."""
        blobs = _records(state.archive, ARCHIVED_RUNS, _ARCHIVE_DEPTH) | _records(state.ledger, RUNS, 0)
        known, fresh = self._known, {}
        for run_id, blob in blobs.items():
            row = known.get(blob)
            if row is None or row[1] != run_id:
                row = _read(state.ledger.store, run_id, blob)
            if row is not None:
                fresh[blob] = row
                yield row
        self._known = fresh


def _read(store: ObjectStore, run_id: str, blob: str) -> tuple[str, str, bytes] | None:
    try:
        data = store.find(blob, BLOB, limit=MAX_RECORD_BYTES)
        record = load_object(data) if data else None
    except (ValueError, OSError) as exc:
        log.warning("run %r is damaged: %s", run_id, exc)
        return None
    run = load_run(record) if record else None
    if run is None or run.run_id != run_id or data is None:
        log.warning("run %r is damaged and is left out", run_id)
        return None
    return run.started_at, run_id, data


def _records(editor: TreeEditor, path: str, depth: int) -> dict[str, str]:
    """Run ids and the blobs of their records below a folder whose runs lie ``depth`` folders deeper."""
    found: dict[str, str] = {}
    folder = editor.folder(path)
    for name, raw in folder.raw_items().items() if folder else ():
        run_id, below = decode_name(name), f"{path}/{decode_name(name)}"
        if depth and is_dir(raw):
            found |= _records(editor, below, 1 if run_id == "other" else depth - 1)
        elif is_dir(raw) and is_valid_id(run_id) and below in (run_dir(run_id), archived_run_dir(run_id)):
            blob = editor.blob(f"{below}/{RUN_FILE}")
            if blob:
                found[run_id] = blob
    return found
