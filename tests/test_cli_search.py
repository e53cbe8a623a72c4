"""``scp-git search`` and ``scp-git stats``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scp_git import Run, SessionTrace, Settings, Store

HEADER = ["kind", "id", "time", "user", "run", "thread", "title", "text"]


def scp(root: Path, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "scp_git.cli", "-C", root, *args], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def store(repo: Path) -> Store:
    return Store.open(repo, Settings(durability="os", hot_max=2, hot_min=1))


def test_search_prints_a_line_for_each_hit(store: Store, repo: Path) -> None:
    run_id = store.record_run(Run(type="apply", user="ada", summary="the disk is full\x1b[2J"))
    message = store.send_message("disk\nfull again", user="bob", run_id=run_id)
    lines = [
        dict(zip(HEADER, line.split("\t"), strict=True))
        for line in scp(repo, "search", "disk", "full").splitlines()
    ]
    assert [line["id"] for line in lines] == [message.id, run_id]
    assert (lines[0]["run"], lines[0]["user"], lines[0]["text"]) == (run_id, "bob", "disk full again")
    assert lines[1]["title"] == "the disk is full\\x1b[2J"
    found = json.loads(scp(repo, "search", "--json", '"disk is"'))
    assert [(hit["kind"], hit["id"], hit["run_id"]) for hit in found] == [("run", run_id, run_id)]
    assert scp(repo, "search", "--kind", "message", "-n", "1", "disk").count("\n") == 1
    assert scp(repo, "search", "--kind", "trace", "--kind", "thread", "disk") == ""
    assert scp(repo, "search", "nothing", '"', "-x", "AND") == ""


def test_stats_count_and_measure(store: Store, repo: Path) -> None:
    for number in range(5):
        store.record_run(Run(run_id=f"r{number}", type="x", started_at=f"2026-0{number // 3 + 1}-05"))
    store.send_message("encrypted ones count, too", run_id="r4", thread_id="general")
    store.save_trace(SessionTrace(name="x"))
    store.delete_run("r3")
    stats = store.stats()
    assert stats.hot_runs + stats.archived_runs == 4 and stats.archived_runs > 0
    assert stats.months == {"2026-01": 3, "2026-02": 1}
    assert (stats.messages, stats.threads, stats.traces, stats.deleted, stats.tags) == (1, 1, 1, 1, 4)
    assert stats.our_packs.bytes > 1000 and stats.our_packs.files >= 2
    assert stats.index.bytes > 10_000 and stats.view.files > 3 and stats.loose_objects.files > 0
    assert json.loads(scp(repo, "stats", "--json"))["months"] == stats.months
    lines = dict(line.split("\t") for line in scp(repo, "stats").splitlines())
    assert (lines["months.2026-01"], lines["messages"], lines["view.files"]) == (
        "3",
        "1",
        str(stats.view.files),
    )


def test_stats_of_a_repository_without_a_ledger(repo: Path) -> None:
    stats = Store.open(repo).stats()
    assert (stats.hot_runs, stats.archived_runs, stats.months, stats.tags, stats.view.files) == (
        0,
        0,
        {},
        0,
        0,
    )
    assert "hot_runs\t0\n" in scp(repo, "stats")
