"""Looking at a repository from outside, and standing in its writers' way."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pygit2

from scp_git import Store


@contextmanager
def gate_held(root: Path) -> Iterator[None]:
    """As if another process were writing; nothing can be written meanwhile."""
    Store.open(root).ensure_ledger()
    with (root / ".git/scp/gate").open("rb") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        yield


def ids(root: Path) -> list[str]:
    """The ids of all runs, newest first."""
    return [run.run_id for run in Store.open(root).list_runs(n=10**6)]


def tagged(root: Path) -> set[str]:
    """The ids of all runs that have a tag."""
    prefix = "refs/tags/scp/run/"
    return {
        name.removeprefix(prefix) for name in pygit2.Repository(root).references if name.startswith(prefix)
    }
