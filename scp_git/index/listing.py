"""What the index of runs holds. Imports neither pydantic nor git, so that a list can start quickly."""

from __future__ import annotations

from scp_git.index.database import Schema

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
