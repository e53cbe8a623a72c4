"""A hundred thousand runs feel like a hundred: the acceptance lines of scale, short and in the long form."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scp_git import Run, RunEvent, Settings, Store
from scp_git.ids import format_time
from tests.sight import peak_memory_mb

pytestmark = [pytest.mark.referee]
TOP = Path(__file__).parents[1]
START = datetime(2026, 1, 1, tzinfo=UTC)
STEPS = ("deployment/api", "deployment/worker", "service/api")


def past(count: int) -> Iterator[tuple[Run, list[RunEvent]]]:
    """About 600 bytes each and three events, one every 97 seconds."""
    for number in range(count):
        at = format_time(START + timedelta(seconds=97 * number))
        run = Run(
            run_id=f"run_{at[:10]}T{at[11:19].replace(':', '')}_apply_{number % 10_000:04d}",
            type="apply",
            subtype="k8s:apply",
            user="Ada",
            environment="staging",
            started_at=at,
            ended_at=at,
            duration_ms=140,
            modules_affected=["api", "worker"],
            summary=f"Applied 3 resources of release {number}",
            metadata={"release": number, "cluster": "eu-1", "args": ["--prune", "--wait"]},
        )
        yield run, [RunEvent(type="step", ts=at, adapter="shell", target=step, status="ok") for step in STEPS]


def bring(root: Path, count: int) -> int:
    """Import in a process of its own; returns its peak memory in MB."""
    program = "import sys; from tests.test_scale import importer; importer(sys.argv[1], int(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(root), str(count)], cwd=TOP, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def importer(root: str, count: int) -> None:
    with Store.open(root) as store:
        assert store.import_runs(past(count)).added == count
    print(peak_memory_mb())


def size(root: Path) -> int:
    """What ``.git`` holds without what is local."""
    total = 0
    for folder, folders, names in os.walk(root / ".git"):
        if folder == str(root / ".git"):
            folders.remove("scp")
        total += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
    return total


def spent(call: Callable[[], object], samples: int = 9) -> float:
    """The seconds of CPU time of the programs that are called; of several times the least."""
    found = []
    for _ in range(samples):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        call()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def calls(store: Store, ids: list[str]) -> dict[str, Callable[[int], object]]:
    """What shall cost alike however many runs there are; each takes a number that makes it another one."""
    return {
        "record_run": lambda _: store.record_run(Run(type="apply", summary="one more")),
        "send_message": lambda number: store.send_message("well", run_id=ids[number * 7 % len(ids)]),
        "send_message in a thread": lambda _: store.send_message("well"),
        "get_run": lambda number: store.get_run(ids[number * 7 % len(ids)]),
        "get_run_events": lambda number: store.get_run_events(ids[number * 7 % len(ids)]),
        "list_runs": lambda _: store.list_runs(n=20),
    }


def in_turn(*stores: dict[str, Callable[[int], object]], samples: int = 41) -> dict[str, list[float]]:
    """The median CPU time of each call in milliseconds in each store; in turn, as the machine is not ours."""
    medians = {}
    for name in stores[0]:
        found: list[list[float]] = [[] for _ in stores]
        for number in range(samples + 3):
            for times, store in zip(found, stores, strict=True):
                began = time.process_time()
                store[name](number)
                times.append((time.process_time() - began) * 1e3)
        medians[name] = [statistics.median(times[3:]) for times in found]
    return medians


def accept(repo: Path, make_repo: Callable[..., Path], git: Callable[..., str], count: int, mb: int) -> None:
    assert bring(repo, count) < mb, "peak memory"
    assert size(repo) / count < 1500, "bytes a run"
    settings = Settings(durability="os")
    store = Store.open(repo, settings)
    runs = list(past(count))[:: max(count // 500, 1)]
    for run, events in runs:
        stored = store.get_run(run.run_id)
        assert stored == run, run.run_id
        assert len(store.get_run_events(run.run_id)) == len(events)
    assert len(git(repo, "for-each-ref", "refs/tags/scp/run").splitlines()) == count

    few = Store.open(make_repo(), settings)
    few.import_runs(past(100))
    ids = [run.run_id for run, _ in past(100)]
    medians = in_turn(calls(few, ids), calls(store, [run.run_id for run, _ in runs]))
    assert all(most <= 1.5 * least + 0.5 for least, most in medians.values()), medians
    store.ensure_ledger()

    view = repo / ".scp-ledger"
    files = git(view, "ls-files").splitlines()
    assert len(files) <= 2 * settings.hot_max + 1, "two files a run of the hot window, and FORMAT"
    assert git(view, "--no-optional-locks", "status", "--porcelain") == ""
    assert spent(lambda: git(view, "--no-optional-locks", "status", "--porcelain")) < 0.1
    clone = repo.with_name("clone")
    subprocess.run(["git", "clone", "-q", str(repo), str(clone)], check=True)
    for branch in ("scp-ledger", "scp-ledger-archive"):
        assert git(clone, "rev-parse", f"origin/{branch}") == git(repo, "rev-parse", branch)
    assert Store.open(clone).get_run(runs[0][0].run_id) is None, (
        "nothing is there before the ledger is asked for"
    )
    Store.open(clone).ensure_ledger()
    assert Store.open(clone).get_run(runs[0][0].run_id) == runs[0][0]
    git(repo, "gc", "-q", "--prune=now")
    store.record_run(Run(run_id="after-gc", type="apply"))
    assert store.get_run("after-gc") and store.get_run(runs[-1][0].run_id) == runs[-1][0]


def test_two_thousand_runs(repo: Path, make_repo: Callable[..., Path], git: Callable[..., str]) -> None:
    accept(repo, make_repo, git, 2_000, mb=200)


@pytest.mark.full
def test_a_hundred_thousand_runs(repo: Path, make_repo: Callable[..., Path], git: Callable[..., str]) -> None:
    accept(repo, make_repo, git, 100_000, mb=300)
