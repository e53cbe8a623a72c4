"""Looking at a repository from outside, and standing in its writers' way."""

from __future__ import annotations

import fcntl
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pygit2
from pygit2.enums import FileMode

from scp_git import Store


def peak_memory_mb() -> int:
    """The most that this process ever held; ``ru_maxrss`` of a child begins with what its parent holds."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) // 1024


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """What thousands of tests before have left is no concern of the garbage collector's meanwhile."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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


def put_files(root: Path, files: dict[str, bytes | None], ref: str = "refs/heads/scp-ledger") -> None:
    """Change files of a branch in one commit, as somebody who does not know this library would."""
    repository = pygit2.Repository(root)
    parents = [repository.references[ref].target] if ref in repository.references else []
    index = pygit2.Index()
    if parents:
        index.read_tree(repository[parents[0]].tree)
    for path, data in files.items():
        if data is None:
            index.remove(path)
        else:
            index.add(pygit2.IndexEntry(path, repository.create_blob(data), FileMode.BLOB))
    eve = pygit2.Signature("Eve", "eve@example.org")
    repository.create_commit(ref, eve, eve, "by hand", index.write_tree(repository), parents)
