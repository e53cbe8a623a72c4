"""Repositories to measure in: made once per number of runs present, then copied for each peer.

Nothing is removed before the end, although it comes to a gigabyte: for some minutes
ext4 steps over every inode that was just freed, and new files cost ten times more.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pygit2

from scp_git import Run, RunEvent, Settings, Store

_VIEW = ".scp-ledger"
_ADMIN = ".git/worktrees/scp-ledger"


def sample_run(number: int) -> tuple[Run, list[RunEvent]]:
    """A run as a deployment tool would record it: about 600 bytes, three events."""
    run = Run(
        type="apply",
        subtype="k8s:apply",
        environment="staging",
        summary=f"Applied 3 resources of release {number}",
        modules_affected=["api", "worker"],
        metadata={"release": number, "cluster": "eu-1", "args": ["--prune", "--wait"]},
    )
    steps = [
        RunEvent(type="adapter:execute", adapter="shell", target=name, status="ok", duration_ms=140)
        for name in ("deployment/api", "deployment/worker", "service/api")
    ]
    return run, steps


def create(root: Path) -> Path:
    """A working tree with three commits and an identity of its own."""
    repository = pygit2.init_repository(root, initial_head="main")
    repository.config["user.name"] = "Bench Mark"
    repository.config["user.email"] = "bench@example.org"
    # git's peer would otherwise repack in the background while others are timed.
    repository.config["gc.auto"] = 0
    author = pygit2.Signature("Bench Mark", "bench@example.org")
    for number in range(3):
        (root / f"module_{number}.py").write_text(f"VERSION = {number}\n")
        repository.index.add_all()
        repository.index.write()
        parents = [] if repository.head_is_unborn else [repository.head.target]
        tree = repository.index.write_tree()
        repository.create_commit("refs/heads/main", author, author, f"Step {number}", tree, parents)
    return root


class Shelf:
    """Prepared repositories, one for each number of runs present, and the copies taken from them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def place(self) -> Path:
        """A new empty folder."""
        return Path(tempfile.mkdtemp(dir=self._folder))

    def prepared(self, present: int, *, archive: bool = True) -> Path:
        """The repository that the copies are taken from; for reading only."""
        prepared = self._folder / f"prepared-{present}{'' if archive else '-flat'}"
        if not prepared.exists():
            prepare(prepared, present, archive=archive)
        return prepared

    def copy(self, present: int, *, archive: bool = True) -> Path:
        """A new repository that holds ``present`` runs, all of it on disk.

        Without ``archive`` all of them lie on the ledger branch, as with stock git, which knows no other.
        """
        prepared = self.prepared(present, archive=archive)
        root = self.place() / "repository"
        shutil.copytree(prepared, root, symlinks=True)
        _relink_view(root)
        os.sync()
        return root


def prepare(root: Path, present: int, *, archive: bool = True) -> None:
    """Make a repository with ``present`` runs at ``root``, one an hour until now, through the library."""
    start = datetime.now(UTC) - timedelta(hours=present)

    def runs() -> Iterator[tuple[Run, list[RunEvent]]]:
        for number in range(present):
            run, events = sample_run(number)
            at = start + timedelta(hours=number)
            yield Run(**{**run.model_dump(), "run_id": "", "started_at": at, "ended_at": at}), events

    root.mkdir(parents=True)
    create(root)
    settings = Settings(durability="os", lock_timeout_s=3600)
    if not archive:
        settings = settings.model_copy(update={"hot_max": 0})
    with Store.open(root, settings) as store:
        store.ensure_ledger()
        assert store.import_runs(runs()).added == present


def _relink_view(root: Path) -> None:
    """A worktree and its admin folder name each other by absolute path; a copy still names the original."""
    (root / _VIEW / ".git").write_text(f"gitdir: {root / _ADMIN}\n")
    (root / _ADMIN / "gitdir").write_text(f"{root / _VIEW / '.git'}\n")
