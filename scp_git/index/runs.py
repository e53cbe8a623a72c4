"""The index of runs: lists, filters, counts and pages without looking at every run.

It knows the order, what filters compare, and the blob of each run's record; the record
itself is read from git by that id, so a list says nothing that the repository does not.
``RunReader`` reads the same without an index, and is asked whenever this one cannot answer.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from scp_git.codec import MAX_RECORD_BYTES, load_object
from scp_git.errors import ScpGitError, StorageFailed
from scp_git.git.difference import differing_files
from scp_git.git.handle import Repository
from scp_git.git.objects import BLOB, ObjectStore
from scp_git.git.snapshot import snapshot_at, tree_of
from scp_git.index.database import Answer, Damaged, Database, Tips, Unusable
from scp_git.index.listing import FIELDS, RUN_REFS, RUNS_SCHEMA, read_tips, select
from scp_git.index.reading import WholeStore
from scp_git.layout import ARCHIVE_REF, RUN_FILE, record_of
from scp_git.ledger.filters import RunFilter
from scp_git.ledger.queries import RunReader, load_run
from scp_git.models import Run

log = logging.getLogger(__name__)

_INSERT = (
    f"INSERT OR REPLACE INTO runs (run_id, hot, archived, {', '.join(FIELDS)})"
    f" VALUES (?, ?, ?{', ?' * len(FIELDS)})"
)
_DAMAGED = "SELECT run_id, coalesce(hot, archived) FROM runs WHERE started_at IS NULL LIMIT 100"
_MAX_N = 2**62


@dataclass(frozen=True, slots=True)
class RunCounts:
    """How many runs there are; ``months`` by the month of their start, ``2026-02``."""

    hot: int
    archived: int
    months: dict[str, int]


class RunIndex:
    """Answers from the index where it can, else from a full scan. Thread-safe."""

    def __init__(self, repository: Repository, scan: RunReader) -> None:
        self._repository = repository
        self._scan = scan
        self._database = Database(repository.common_dir / "scp", RUNS_SCHEMA)
        self._reported: set[tuple[str, bytes]] = set()  # damaged runs that were warned of

    # ------------------------------------------------------------ queries

    def newest(self, *, n: int, before: str | None, only: RunFilter) -> list[Run]:
        """As ``RunReader.newest``."""
        if n <= 0:
            return []
        try:
            return self._answer(lambda db: self._newest(db, min(n, _MAX_N), before, only))
        except Unusable:
            return self._scan.newest(n=n, before=before, only=only)

    def ids_before(self, started_at: str, *, archived: bool = True) -> list[str]:
        """As ``RunReader.ids_before``."""
        try:
            return self._answer(partial(_ids_before, started_at, archived))
        except Unusable:
            return self._scan.ids_before(started_at, archived=archived)

    def counts(self) -> RunCounts:
        """How many runs there are."""
        try:
            return self._answer(_counts)
        except Unusable:
            return self._scanned_counts()

    def follow(self) -> None:
        """Bring an index that is there to the present state; none is made. Never raises."""
        try:
            if RUNS_SCHEMA.newest(self._repository.common_dir / "scp") is not None:
                self._answer(lambda db: None)
        except (Unusable, ScpGitError) as exc:
            log.debug("the index is left as it is: %s", exc)

    def close(self) -> None:
        """Close what is kept open between reads."""
        self._database.close()

    def _answer(self, query: Callable[[sqlite3.Connection], Answer]) -> Answer:
        if not any(self._tips()):  # so nothing is created where no ledger is
            raise Unusable("there is no ledger")
        return self._database.answer(self._tips, self._update, query)

    def _tips(self) -> Tips:
        return read_tips(self._repository.refs)

    def _newest(self, db: sqlite3.Connection, n: int, before: str | None, only: RunFilter) -> list[Run]:
        with self._repository.odb() as odb:
            store = ObjectStore(odb)
            for damaged in db.execute(_DAMAGED):
                if damaged not in self._reported:
                    self._reported.add(damaged)
                    _warn(store, *damaged)
            rows = select(db, "run_id, coalesce(hot, archived)", n=n, before=before, only=only)
            return [_checked(store, run_id, blob, only) for run_id, blob in rows]

    def _scanned_counts(self) -> RunCounts:
        hot, archived = self._scan.started()
        months: dict[str, int] = {}
        for started_at in hot + archived:
            months[started_at[:7]] = months.get(started_at[:7], 0) + 1
        return RunCounts(len(hot), len(archived), dict(sorted(months.items())))

    # ------------------------------------------------------------ following the repository

    def _update(self, db: sqlite3.Connection, old: Tips, new: Tips) -> None:
        """Bring the rows from the old tips to the new ones; from nothing where the old are gone."""
        with self._repository.odb() as odb:
            snapshot_at(self._repository, odb, (None, new[0], None))  # refuses a later format
            before = [tree_of(ObjectStore(odb), tip) for tip in old]
            if old and all(tree or not tip for tip, tree in zip(old, before, strict=True)):
                try:
                    _follow(db, WholeStore(odb), before, new)
                    return
                except Unusable as exc:
                    log.info("the index is made from nothing: %s", exc)
            db.execute("DELETE FROM runs")
            _follow(db, WholeStore(odb), [None] * len(RUN_REFS), new)


def _follow(db: sqlite3.Connection, store: ObjectStore, before: list[str | None], new: Tips) -> None:
    place = _Place(db, store)
    for ref, earlier, tip in zip(RUN_REFS, before, new, strict=True):
        for run_id, blob in _changed_runs(store, ref, earlier, tree_of(store, tip)):
            place.put(run_id, blob, archived=ref == ARCHIVE_REF)


def _changed_runs(
    store: ObjectStore, ref: str, old: str | None, new: str | None
) -> Iterator[tuple[str, str | None]]:
    """The runs of one branch whose record differs, and the blob of it that is there now."""
    for path, _, blob in differing_files(store, old, new):
        if path.endswith(f"/{RUN_FILE}"):
            found = record_of(ref, path)
            if found and found[0] == "run" and path.endswith(f"/{found[1]}/{RUN_FILE}"):
                yield found[1], blob


class _Place:
    """Writes the row of a run: its record on the ledger branch counts before an archived one."""

    def __init__(self, db: sqlite3.Connection, store: ObjectStore) -> None:
        self._db = db
        self._store = store
        self._known: set[str] | None = None if db.execute("SELECT 1 FROM runs").fetchone() else set()
        """The ids that were put into an empty table, which need not be looked up for."""

    def put(self, run_id: str, blob: str | None, *, archived: bool) -> None:
        copies = self._copies(run_id)
        copies[archived] = bytes.fromhex(blob) if blob else None
        chosen = copies[0] or copies[1]
        if chosen is None:
            self._db.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))
            return
        fields: tuple[object, ...] = (None,) * len(FIELDS)
        try:
            run = _read(self._store, run_id, chosen.hex())
            fields = tuple(getattr(run, name) for name in FIELDS)
        except (ValueError, StorageFailed) as exc:  # readers warn of it
            log.debug("run %r is damaged: %s", run_id, exc)
        self._db.execute(_INSERT, (run_id, *copies, *fields))

    def _copies(self, run_id: str) -> list[bytes | None]:
        if self._known is not None and run_id not in self._known:
            self._known.add(run_id)
            return [None, None]
        row = self._db.execute("SELECT hot, archived FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        return list(row or (None, None))


def _read(store: ObjectStore, run_id: str, blob: str) -> Run:
    """The run in a blob; ``ValueError`` or ``StorageFailed`` if it is damaged."""
    data = store.find(blob, BLOB, limit=MAX_RECORD_BYTES)
    run = load_run(load_object(data)) if data else None
    if run is None or run.run_id != run_id:
        raise ValueError("it is no run of that id")
    return run


def _warn(store: ObjectStore, run_id: str, blob: bytes) -> None:
    try:
        _read(store, run_id, blob.hex())
    except (ValueError, StorageFailed) as exc:
        log.warning("run %r is damaged and is left out: %s", run_id, exc)


def _checked(store: ObjectStore, run_id: str, blob: bytes, only: RunFilter) -> Run:
    try:
        run = _read(store, run_id, blob.hex())
    except (ValueError, StorageFailed) as exc:
        raise Damaged(f"run {run_id!r} is not where it says: {exc}") from exc
    if not only.accepts(run):
        raise Damaged(f"what it says of run {run_id!r} is not what is stored")
    return run


# ---------------------------------------------------------------- SQL


def _ids_before(started_at: str, archived: bool, db: sqlite3.Connection) -> list[str]:
    rows = db.execute(
        "SELECT run_id FROM runs WHERE started_at < ? AND (? OR hot IS NOT NULL)"
        " ORDER BY started_at DESC, run_id DESC",
        (started_at, archived),
    )
    return [run_id for (run_id,) in rows]


def _counts(db: sqlite3.Connection) -> RunCounts:
    hot, archived = db.execute(
        "SELECT count(hot), count(*) - count(hot) FROM runs WHERE started_at IS NOT NULL"
    ).fetchone()
    months = db.execute(
        "SELECT substr(started_at, 1, 7), count(*) FROM runs WHERE started_at IS NOT NULL GROUP BY 1"
    )
    return RunCounts(hot, archived, dict(months))
