"""What the index of runs holds, and lists made from nothing else.

Imports neither pydantic nor libgit2, so that a command which only lists can start quickly.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scp_git.git.plain import common_dir
from scp_git.git.refs import Refs
from scp_git.index.database import Schema, Tips, connect, key_of, transaction
from scp_git.layout import ARCHIVE_REF, LEDGER_REF
from scp_git.ledger.filters import RunFilter

RUNS_SCHEMA = Schema(
    "runs",
    1,
    (
        # The blobs of the two copies that there can be; a damaged run has no started_at.
        """CREATE TABLE runs (
            run_id TEXT NOT NULL PRIMARY KEY, hot BLOB, archived BLOB,
            started_at TEXT, type TEXT, status TEXT, user TEXT, environment TEXT,
            subtype TEXT, duration_ms INTEGER, summary TEXT
        )""",
        # All that filters compare, so that a filter which few runs pass reads no rows of the others.
        "CREATE INDEX by_time ON runs (started_at, run_id, type, status, user, environment)",
    ),
)
FIELDS = ("started_at", "type", "status", "user", "environment", "subtype", "duration_ms", "summary")
RUN_REFS = (LEDGER_REF, ARCHIVE_REF)
"""The archive last: a run that is being archived is then seen in one place at least."""


@dataclass(frozen=True, slots=True)
class ListedRun:
    """What a list shows of a run."""

    run_id: str
    started_at: str
    type: str
    status: str
    user: str
    environment: str
    subtype: str
    duration_ms: int
    summary: str


def read_tips(refs: Refs) -> Tips:
    """What an index of runs must have been made from to be up to date."""
    return tuple(refs.read(ref) or "" for ref in RUN_REFS)


def select(db: sqlite3.Connection, columns: str, *, n: int, before: str | None, only: RunFilter) -> list[Any]:
    """The rows of the newest ``n`` runs that pass the filter, older than ``before`` if given."""
    wanted = ["started_at IS NOT NULL"]
    values: list[object] = []
    if before is not None:
        limit = db.execute(
            "SELECT started_at, run_id FROM runs WHERE run_id = ? AND started_at IS NOT NULL", (before,)
        ).fetchone()
        if limit is None:
            return []
        wanted.append("(started_at, run_id) < (?, ?)")
        values += limit
    for name in ("type", "status", "user", "environment"):
        value = getattr(only, name)
        if value is not None and not _is_unicode(value):
            return []  # SQLite cannot take it, and no stored text is like it
        if value is not None:
            wanted.append(f"{name} = ?")
            values.append(value)
    for value, comparison in ((only.since, ">="), (only.until, "<")):
        if value is not None:
            wanted.append(f"started_at {comparison} ?")
            values.append(value)
    return db.execute(
        f"SELECT {columns} FROM runs WHERE {' AND '.join(wanted)}"
        " ORDER BY started_at DESC, run_id DESC LIMIT ?",
        (*values, n),
    ).fetchall()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def list_at_once(root: str, *, n: int, before: str | None, only: RunFilter) -> list[ListedRun] | None:
    """The list, if a sound index that is up to date is there; ``None`` sends the caller to the store."""
    common = common_dir(root)
    folder = Path(common, "scp") if common else None
    path = RUNS_SCHEMA.newest(folder) if folder else None
    if common is None or path is None:
        return None
    try:
        with closing(connect(path)) as db, transaction(db, "BEGIN"):
            tips = read_tips(Refs(Path(common)))
            damaged = db.execute("SELECT 1 FROM runs WHERE started_at IS NULL").fetchone()
            if key_of(db) != tips or not tips[0] or damaged:
                return None
            rows = select(db, f"run_id, {', '.join(FIELDS)}", n=n, before=before, only=only)
            return [ListedRun(*row) for row in rows]
    except (sqlite3.Error, OSError, ValueError):
        return None
