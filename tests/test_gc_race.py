"""``git gc --prune=now`` in a loop beside writers: it takes nothing that was acknowledged."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults import git, new_repository, problems
from tests.faults.tracing import read_to_end, run_worker, start_worker

pytestmark = [pytest.mark.referee]


def race(root: Path, seconds: float) -> None:
    new_repository(root)
    git(root, "config", "gc.pruneExpire", "now")
    assert run_worker(root, [["record", "first"]]).acked == ["first"]
    jobs = [json.dumps({"root": str(root), "steps": [["stream", [f"w{n}-", seconds]]]}) for n in range(2)]
    began = time.monotonic()
    writers = [start_worker("run", job) for job in jobs]
    collected = 0
    while any(writer.poll() is None for writer in writers) and time.monotonic() < began + seconds:
        done = subprocess.run(["git", "-C", str(root), "gc", "-q", "--prune=now"], capture_output=True)
        collected += done.returncode == 0
    outcomes = [read_to_end(writer, began, seconds + 60) for writer in writers]
    for writer in writers:
        writer.__exit__(None, None, None)
    acked = ["first", *(run_id for outcome in outcomes for run_id in outcome.acked)]
    assert [outcome.errors + outcome.bugs for outcome in outcomes] == [[], []]
    assert collected >= 3 and len(acked) > 20, f"no race: {collected} times gc, {len(acked)} runs"
    after = run_worker(root, [["record", "after"], ["list", 100_000]])
    assert not problems(root, acked=[*acked, "after"], listed=after.listed)


def test_gc_beside_an_import_loses_nothing(tmp_path: Path) -> None:
    root = new_repository(tmp_path / "repo")
    git(root, "config", "gc.pruneExpire", "now")
    began = time.monotonic()
    job = {"root": str(root), "steps": [["import", ["m", 1500]]], "small_batches": 100}
    with start_worker("run", json.dumps(job)) as importer:
        collected = 0
        while importer.poll() is None:
            done = subprocess.run(["git", "-C", str(root), "gc", "-q", "--prune=now"], capture_output=True)
            collected += done.returncode == 0
        outcome = read_to_end(importer, began, 60)
    assert (outcome.errors, outcome.bugs) == ([], [])
    assert len(outcome.acked) == 1500 and collected >= 2
    after = run_worker(root, [["record", "after"], ["list", 100_000]])
    assert not problems(root, acked=[*outcome.acked, "after"], listed=after.listed)


def test_gc_beside_writers_loses_nothing(tmp_path: Path) -> None:
    race(tmp_path / "repo", seconds=6)


@pytest.mark.full
def test_gc_beside_writers_loses_nothing_in_two_minutes(tmp_path: Path) -> None:
    race(tmp_path / "repo", seconds=120)
