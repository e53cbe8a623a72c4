"""Many processes, pauses and kills: what was acknowledged is there once, the rest whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults import new_repository, problems
from tests.faults.tracing import (
    WRITER,
    Outcome,
    Server,
    Steps,
    read_to_end,
    run_worker,
    start_worker,
    why_no_strace,
)

pytestmark = [pytest.mark.referee]

SEED = 1


def run_side_by_side(jobs: list[dict[str, object]], timeout_s: float) -> list[Outcome]:
    began = time.monotonic()
    workers = [start_worker("run", json.dumps(job)) for job in jobs]
    with ThreadPoolExecutor(len(workers)) as pool:
        outcomes = list(pool.map(lambda worker: read_to_end(worker, began, timeout_s), workers))
    for worker in workers:
        worker.__exit__(None, None, None)
    return outcomes


def crowd(root: Path, processes: int, tasks: int, count: int) -> None:
    new_repository(root)
    jobs: list[dict[str, object]] = [
        {"root": str(root), "crowd": [f"p{n}", tasks, count]} for n in range(processes)
    ]
    outcomes = run_side_by_side(jobs, 300)
    assert [outcome.errors + outcome.bugs for outcome in outcomes] == [[]] * processes
    acked = Counter(run_id for outcome in outcomes for run_id in outcome.acked)
    assert len(acked) == processes * tasks * count
    assert set(acked.values()) == {1}
    after = run_worker(root, [["list", 100_000]])
    assert not problems(root, acked=list(acked), listed=after.listed)


def test_a_crowd_of_processes_and_tasks(tmp_path: Path) -> None:
    crowd(tmp_path / "repo", processes=8, tasks=4, count=8)


@pytest.mark.full
def test_a_crowd_of_1600_writes(tmp_path: Path) -> None:
    crowd(tmp_path / "repo", processes=8, tasks=8, count=25)


def talkers(root: Path, processes: int, tasks: int, count: int) -> None:
    """Processes send to a run, to a thread, and to both at once: every message is there exactly once."""
    new_repository(root)
    run_worker(root, [["record", "r"]])
    run, thread = {"run_id": "r"}, {"thread_id": "general"}
    places = [run, thread, run | thread]
    jobs: list[dict[str, object]] = [
        {"root": str(root), "talk": [f"p{n}", tasks, count, places]} for n in range(processes)
    ]
    outcomes = run_side_by_side(jobs, 300)
    assert [outcome.errors + outcome.bugs for outcome in outcomes] == [[]] * processes
    sent = [name for outcome in outcomes for name in outcome.sent]
    assert len(sent) == len(set(sent)) == processes * tasks * count * len(places)
    after = run_worker(root, [["said", run], ["said", thread]])
    for said, elsewhere in zip(after.said, "10", strict=True):
        assert sorted(said) == sorted(name for name in sent if name.split("-")[1] != elsewhere)
    assert not problems(root, acked=["r"])


def test_processes_that_talk(tmp_path: Path) -> None:
    talkers(tmp_path / "repo", processes=8, tasks=1, count=4)


@pytest.mark.full
def test_eight_processes_that_send_50_messages_each(tmp_path: Path) -> None:
    talkers(tmp_path / "repo", processes=8, tasks=5, count=10)


# ---- killed at any time


def kill_at_random(root: Path, rounds: int, processes: int, seed: int) -> None:
    """Writers are killed at random moments; each may have had one write under way."""
    new_repository(root)
    chance = random.Random(seed)
    acked: list[str] = []
    maybe: list[str] = []
    for number in range(rounds):
        prefixes = [f"r{number}w{n}-" for n in range(processes)]
        jobs = [{"root": str(root), "steps": [["stream", [prefix, 60]]]} for prefix in prefixes]
        workers = [start_worker("run", json.dumps(job)) for job in jobs]
        for prefix, worker in zip(prefixes, workers, strict=True):
            assert worker.stdout is not None
            select.select([worker.stdout], [], [], 20)  # it has begun to write
            time.sleep(chance.uniform(0, 0.2))
            worker.kill()
            outcome = read_to_end(worker, time.monotonic(), 30)
            worker.__exit__(None, None, None)
            assert not outcome.errors + outcome.bugs
            acked += outcome.acked
            maybe.append(f"{prefix}{len(outcome.acked):05d}")
    assert len(acked) >= rounds * processes, "hardly anything was written"
    after = run_worker(root, [["record", "after"], ["list", 100_000]])
    assert after.acked == ["after"]
    assert after.took_s < 10
    assert not problems(root, acked=[*acked, "after"], maybe=maybe, listed=after.listed)


def test_writers_killed_at_random_moments(tmp_path: Path) -> None:
    kill_at_random(tmp_path / "repo", rounds=4, processes=3, seed=SEED)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(5))
def test_writers_killed_at_many_random_moments(seed: int, tmp_path: Path) -> None:
    kill_at_random(tmp_path / "repo", rounds=30, processes=4, seed=seed)


# ---- paused inside the critical section


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    if why_no_strace():
        pytest.skip(str(why_no_strace()))
    with Server() as one, Server() as two:
        yield [one, two]


def wait_until_stopped(server: Server, gate: Path) -> int:
    """The process that stands still while it holds the gate."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        time.sleep(0.02)
        status = Path(f"/proc/{server.child}/stat")
        if server.child and status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] in "tT":
            with gate.open("rb") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return server.child
    raise AssertionError("the writer was not stopped")


@pytest.mark.system("strace")
def test_a_writer_that_is_stopped_inside_the_gate(tmp_path: Path, servers: list[Server]) -> None:
    root = new_repository(tmp_path / "repo")
    holder, other = servers
    assert other.run(root, [["record", "first"]]).acked == ["first"]
    stop = ["-o", os.devnull, "-e", "trace=fsync", "-e", "inject=fsync:signal=STOP:when=2"]
    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(holder.run, root, [["record", "held"]], strace=stop, only=WRITER)
        pid = wait_until_stopped(holder, root / ".git" / "scp" / "gate")
        try:
            impatient = {"lock_timeout_s": 1}
            busy = other.run(root, [["record", "busy"], ["list", 100]], settings=impatient)
        finally:
            os.kill(pid, signal.SIGCONT)
        held = holding.result()
    assert [error.split(" ")[0] for error in busy.errors] == ["repository-busy"], busy
    assert set(busy.listed) == {"first"}, "reads must not wait for the gate"
    assert 0.9 < busy.took_s < 6
    assert held.acked == ["held"]
    after = other.run(root, [["record", "after"], ["list", 100]])
    assert not problems(root, acked=["first", "held", "after"], listed=after.listed)
    assert "busy" not in after.listed


def test_a_busy_store_goes_on_when_the_gate_is_free(tmp_path: Path, servers: list[Server]) -> None:
    root = new_repository(tmp_path / "repo")
    assert servers[0].run(root, [["record", "first"]]).acked == ["first"]
    with (root / ".git" / "scp" / "gate").open("rb") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        steps: Steps = [["record", "busy"], ["sleep", 3], ["record", "after"], ["list", 100]]
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(servers[0].run, root, steps, settings={"lock_timeout_s": 1})
            time.sleep(2.5)
            fcntl.flock(gate, fcntl.LOCK_UN)
            outcome = running.result()
    assert [error.split(" ")[0] for error in outcome.errors] == ["repository-busy"], outcome
    assert not problems(root, acked=["first", "after"], listed=outcome.listed)
