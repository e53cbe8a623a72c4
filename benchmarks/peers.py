"""The same work, three ways: by the library, by git subprocesses, and as a plain SQLite insert.

A peer stores a run.json, an events.jsonl and (where it has such a thing) an
annotated tag. Encoding the JSON is part of everybody's time.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Protocol

from scp_git import AsyncStore, Run, RunEvent

GIT_FSYNC = ("-c", "core.fsync=all", "-c", "core.fsyncMethod=fsync")


class Peer(Protocol):
    """Something that stores one run at a time."""

    name: str
    durability: str

    async def record(self, run: Run, events: list[RunEvent]) -> None: ...


class Library:
    """``await store.record_run(...)``."""

    name = "scp_git"

    def __init__(self, store: AsyncStore, durability: str) -> None:
        self.durability = durability
        self._store = store

    async def record(self, run: Run, events: list[RunEvent]) -> None:
        await self._store.record_run(run, events)


class Git:
    """``git add``, ``git commit``, ``git tag -a`` in the linked worktree; the tag is on the user's HEAD."""

    def __init__(self, root: Path, *, fsync: bool) -> None:
        self.name = "git_fsync" if fsync else "git"
        self.durability = "full" if fsync else "none"
        self._options = GIT_FSYNC if fsync else ()
        self._root = root
        self._view = root / ".scp-ledger"
        self._git(self._view, "status", "--short")  # the copied index has stale stat data

    async def record(self, run: Run, events: list[RunEvent]) -> None:
        record = run.model_dump()
        folder = self._view / "ledger" / "runs" / run.run_id
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")
        (folder / "events.jsonl").write_text(_lines(events))
        self._git(self._view, "add", "--", f"ledger/runs/{run.run_id}")
        self._git(self._view, "commit", "-q", "-m", f"ledger: run {run.run_id}")
        self._git(self._root, "tag", "-a", f"scp/run/{run.run_id}", "-m", json.dumps(record), "HEAD")

    def _git(self, where: Path, *arguments: str) -> None:
        command = ["git", *self._options, "-C", str(where), *arguments]
        subprocess.run(command, env=git_environment(), capture_output=True, check=True)


class Sqlite:
    """One insert and one commit in WAL mode with ``synchronous=FULL``: what a durable insert costs here."""

    name = "sqlite"
    durability = "full"

    def __init__(self, path: Path, present: list[tuple[Run, list[RunEvent]]]) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("CREATE TABLE runs (run_id TEXT PRIMARY KEY, run TEXT, events TEXT)")
        self._connection.execute("BEGIN")
        for run, events in present:
            self._insert(run, events)
        self._connection.execute("COMMIT")

    async def record(self, run: Run, events: list[RunEvent]) -> None:
        self._insert(run, events)

    def _insert(self, run: Run, events: list[RunEvent]) -> None:
        row = (run.run_id, json.dumps(run.model_dump()), _lines(events))
        self._connection.execute("INSERT INTO runs VALUES (?, ?, ?)", row)

    def close(self) -> None:
        self._connection.close()


def has_git() -> bool:
    return shutil.which("git") is not None


def _lines(events: list[RunEvent]) -> str:
    return "".join(json.dumps(event.model_dump()) + "\n" for event in events)


def git_environment() -> dict[str, str]:
    """Neither a hook's variables nor a person's configuration change what is measured."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return inherited | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
