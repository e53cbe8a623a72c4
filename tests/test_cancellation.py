"""Cancelled calls and passed deadlines: a run is recorded completely or not at all; others do not notice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pygit2
import pytest

import scp_git
from scp_git import AsyncStore, RepositoryBusy, Run, Settings, Store, open_store
from tests.sight import gate_held, ids, tagged

Limited = Callable[[float, Callable[[], Awaitable[str]]], Awaitable[str | None]]
AT_ONCE = 30
EVENTS = [{"type": "a", "ts": "2026-02-17T20:45:00Z"}, {"type": "b", "ts": "2026-02-17T20:45:01Z"}]


def commits(root: Path) -> int:
    repository = pygit2.Repository(root)
    return sum(1 for _ in repository.walk(repository.references["refs/heads/scp-ledger"].target))


# ---------------------------------------------------------------- a storm of time-outs


class Storm:
    """Records many runs, each under a time-out of its own, and keeps the books."""

    def __init__(self, root: Path, count: int) -> None:
        self.root = root
        self.chance = random.Random(count)
        self.runs = [Run(run_id=f"r{n}", type="x", summary=f"summary {n}") for n in range(count)]
        self.acknowledged: list[str] = []
        self.cancelled: list[Run] = []
        self.calm: list[str] = []

    async def through(self, limited: Limited) -> None:
        """Run it; ``limited(s, call)`` gives what ``call`` returns, or ``None`` if ``s`` seconds passed."""
        async with open_store(self.root) as store:
            waiting = iter(self.runs)

            async def work() -> None:
                for run in waiting:
                    timeout_s = self.chance.choice([0, 0.0005, self.chance.uniform(0, 0.02), 10])
                    done = await limited(timeout_s, lambda run=run: store.record_run(run, EVENTS))  # type: ignore[misc]
                    if done is None:
                        self.cancelled.append(run)
                    else:
                        assert done == run.run_id
                        self.acknowledged.append(done)

            async def write_calmly(name: str) -> None:
                for number in range(20):
                    self.calm.append(await store.record_run(Run(run_id=f"{name}{number}", type="x"), EVENTS))

            async with anyio.create_task_group() as group:
                for _ in range(AT_ONCE):
                    group.start_soon(work)
                for name in ("calm-a", "calm-b"):
                    group.start_soon(write_calmly, name)
            await store.flush()
            await self.check(store)

    async def check(self, store: AsyncStore) -> None:
        assert len(self.calm) == 40
        assert len(self.acknowledged) > 5, "hardly a call was in time"
        assert len(self.cancelled) > 5, "hardly a call was cancelled"
        present = ids(self.root)
        assert max(Counter(present).values()) == 1
        assert {*self.acknowledged, *self.calm} <= set(present)
        assert set(present) <= {*self.calm, *(run.run_id for run in self.runs)}
        assert tagged(self.root) == set(present)
        for run in self.runs:
            got, events = await store.get_run(run.run_id), await store.get_run_events(run.run_id)
            if run.run_id in present:
                assert got is not None and got.summary == run.summary
                assert [event["type"] for event in events] == ["a", "b"]
            else:
                assert (got, events) == (None, [])
        for run in self.cancelled:
            assert await store.record_run(run, EVENTS) == run.run_id
        assert sorted(ids(self.root)) == sorted([*self.calm, *(run.run_id for run in self.runs)])
        assert tagged(self.root) == set(ids(self.root))


async def by_wait_for(timeout_s: float, call: Callable[[], Awaitable[str]]) -> str | None:
    try:
        return await asyncio.wait_for(call(), timeout_s)
    except TimeoutError:
        return None


async def by_task_cancel(timeout_s: float, call: Callable[[], Awaitable[str]]) -> str | None:
    task = asyncio.ensure_future(call())
    await asyncio.wait([task], timeout=timeout_s)
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.wait([task])
    return None if task.cancelled() else task.result()


async def by_scope(timeout_s: float, call: Callable[[], Awaitable[str]]) -> str | None:
    with anyio.move_on_after(timeout_s):
        return await call()
    return None


def test_a_storm_of_native_asyncio_time_outs(repo: Path) -> None:
    anyio.run(Storm(repo, 300).through, by_wait_for, backend="asyncio")


def test_a_storm_of_cancelled_tasks(repo: Path) -> None:
    anyio.run(Storm(repo, 150).through, by_task_cancel, backend="asyncio")


async def test_a_storm_of_cancel_scopes(repo: Path) -> None:
    await Storm(repo, 300).through(by_scope)


@pytest.mark.full
@pytest.mark.parametrize("limited", [by_wait_for, by_task_cancel, by_scope])
def test_a_long_storm_on_asyncio(repo: Path, limited: Limited) -> None:
    anyio.run(Storm(repo, 2000).through, limited, backend="asyncio")


@pytest.mark.full
def test_a_long_storm_on_trio(repo: Path) -> None:
    anyio.run(Storm(repo, 2000).through, by_scope, backend="trio")


async def test_every_public_coroutine_stands_a_time_out(repo: Path) -> None:
    chance = random.Random(7)
    run_ids = [f"r{n}" for n in range(60)]
    for run_id in run_ids:
        Store.open(repo).record_run(Run(run_id=run_id, type="x", started_at="2026-02-17"), EVENTS)

    async def track() -> None:
        async with scp_git.track_run(repo, "tracked"):
            await anyio.sleep(0.005)

    async def open_and_list() -> None:
        async with open_store(repo) as store:
            await store.list_runs()

    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: scp_git.ensure_ledger(repo),
        lambda: scp_git.list_runs(repo),
        lambda: scp_git.get_run(repo, "r59"),
        lambda: scp_git.get_run_events(repo, "r59"),
        lambda: scp_git.delete_run(repo, chance.choice(run_ids[:50])),
        lambda: scp_git.prune_runs(repo, older_than_days=10_000),
        lambda: scp_git.flush(repo),
        lambda: scp_git.flush(),
        open_and_list,
        track,
    ]

    async def storm() -> None:
        for call in chance.sample(calls * 4, len(calls) * 4):
            with anyio.move_on_after(chance.uniform(0, 0.01)):
                await call()

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(storm)
    await scp_git.flush()
    store, present = Store.open(repo), ids(repo)
    kept = [run_id for run_id in present if run_id in run_ids]
    assert set(run_ids[50:]) <= set(kept)
    assert tagged(repo) == set(present)
    assert all(len(store.get_run_events(run_id)) == 2 for run_id in kept)
    tracked = [run for run in store.list_runs(n=1000) if run.type == "tracked"]
    assert {(run.status, run.summary) for run in tracked} <= {("ok", ""), ("failed", "cancelled")}
    assert await scp_git.record_run(repo, Run(run_id="after", type="x")) == "after"


# ---------------------------------------------------------------- withdrawn before it was taken


async def test_a_call_cancelled_while_another_process_writes_is_never_written(repo: Path) -> None:
    async with open_store(repo) as store:
        with gate_held(repo):
            before = commits(repo)
            async with anyio.create_task_group() as group:
                for number in range(20):
                    group.start_soon(store.record_run, Run(run_id=f"r{number}", type="x"))
                await anyio.sleep(0.2)
                began = time.monotonic()
                group.cancel_scope.cancel()
            assert time.monotonic() - began < 2, "the cancelled calls waited for the gate"
        await store.flush()
        assert (ids(repo), tagged(repo), commits(repo)) == ([], set(), before)
        assert await store.record_run(Run(run_id="r0", type="x")) == "r0"


def test_a_natively_cancelled_call_is_never_written_either(repo: Path) -> None:
    async def main() -> None:
        async with open_store(repo) as store:
            with gate_held(repo):
                tasks = [
                    asyncio.ensure_future(store.record_run(Run(run_id=f"r{n}", type="x"))) for n in range(20)
                ]
                await asyncio.sleep(0.2)
                for task in tasks[::2]:
                    task.cancel()
                await asyncio.wait(tasks[::2])
            assert await asyncio.gather(*tasks[1::2]) == [f"r{n}" for n in range(1, 20, 2)]

    asyncio.run(main())
    assert sorted(ids(repo)) == sorted(f"r{n}" for n in range(1, 20, 2))
    assert tagged(repo) == set(ids(repo))


async def test_others_in_the_same_batch_are_not_affected(repo: Path) -> None:
    results: list[str] = []

    async def patient(run_id: str) -> None:
        results.append(await store.record_run(Run(run_id=run_id, type="x")))

    async with open_store(repo) as store, anyio.create_task_group() as group:
        with gate_held(repo):
            before = commits(repo)
            async with anyio.create_task_group() as hasty:
                for number in range(10):
                    group.start_soon(patient, f"patient{number}")
                    hasty.start_soon(store.record_run, Run(run_id=f"hasty{number}", type="x"))
                await anyio.sleep(0.2)
                hasty.cancel_scope.cancel()
    assert sorted(results) == sorted(ids(repo)) == [f"patient{number}" for number in range(10)]
    assert commits(repo) <= before + 2


async def test_a_deletion_cancelled_in_time_did_not_happen(repo: Path) -> None:
    async with open_store(repo) as store:
        run_id = await store.record_run(Run(type="x"))
        with gate_held(repo), anyio.move_on_after(0.1):
            await store.delete_run(run_id)
        await store.flush()
        assert await store.get_run(run_id) is not None
        assert await store.delete_run(run_id) is True


async def test_what_was_taken_is_finished_for_whoever_asks_later(repo: Path) -> None:
    """Cancelled while its batch is being written: the run is there, and the repeated call says so."""
    async with open_store(repo) as store:
        committer = store.store._writer.committer
        write, entered, go_on = committer.run, threading.Event(), threading.Event()

        def slow(operations: object) -> object:
            entered.set()
            go_on.wait(10)
            return write(operations)  # type: ignore[arg-type]

        committer.run = slow  # type: ignore[method-assign,assignment]
        run = Run(run_id="taken", type="x")
        async with anyio.create_task_group() as group:
            group.start_soon(store.record_run, run)
            while not entered.is_set():
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        assert await store.get_run("taken") is None
        go_on.set()
        await store.flush()
        assert await store.get_run("taken") is not None
        assert await store.record_run(run) == "taken"
    assert ids(repo) == ["taken"]


# ---------------------------------------------------------------- deadlines


async def test_a_deadline_withdraws_the_call(repo: Path) -> None:
    async with open_store(repo, Settings(lock_timeout_s=0.3)) as store:
        run = Run(run_id="late", type="x")
        with gate_held(repo):
            before, began = commits(repo), time.monotonic()
            with pytest.raises(RepositoryBusy) as caught:
                await store.record_run(run)
            assert 0.25 < time.monotonic() - began < 5
            assert 0.25 < caught.value.waited_s < 5
            with pytest.raises(RepositoryBusy):
                await store.ensure_ledger()
            with pytest.raises(RepositoryBusy):
                await store.delete_run("late")
        await store.flush()
        assert (ids(repo), tagged(repo), commits(repo)) == ([], set(), before)
        assert await store.record_run(run) == "late"


def test_a_deadline_withdraws_the_synchronous_call(repo: Path) -> None:
    store = Store.open(repo, Settings(lock_timeout_s=0.3))
    with gate_held(repo), ThreadPoolExecutor(10) as pool:
        began = time.monotonic()
        calls = [pool.submit(store.record_run, Run(run_id=f"r{n}", type="x")) for n in range(10)]
        errors = [call.exception(20) for call in calls]
        assert 0.25 < time.monotonic() - began < 5
    assert {type(error) for error in errors} == {RepositoryBusy}
    store.flush()
    assert ids(repo) == []
    assert store.record_run(Run(run_id="r0", type="x")) == "r0"


async def test_a_deadline_of_one_store_is_not_anothers(repo: Path) -> None:
    done: list[str] = []

    async def patient() -> None:
        async with open_store(repo) as store:
            done.append(await store.record_run(Run(run_id="patient", type="x")))

    async with anyio.create_task_group() as group:
        with gate_held(repo):
            group.start_soon(patient)
            async with open_store(repo, Settings(lock_timeout_s=0.2)) as store:
                with pytest.raises(RepositoryBusy):
                    await store.record_run(Run(run_id="hasty", type="x"))
    assert done == ids(repo) == ["patient"]


async def test_a_queued_call_is_not_late_while_others_are_written(repo: Path) -> None:
    """The deadline is for the wait; what was taken in time is finished, however long that takes."""
    async with open_store(repo, Settings(lock_timeout_s=0.3)) as store:
        committer = store.store._writer.committer
        write = committer.run
        committer.run = lambda operations: time.sleep(0.6) or write(operations)  # type: ignore[method-assign,func-returns-value]
        assert await store.record_run(Run(run_id="slow", type="x")) == "slow"
    assert ids(repo) == ["slow"]


INTERRUPTED = """
import sys
from scp_git import Run, Store
store = Store.open(sys.argv[1])
print("ready", flush=True)
try:
    store.record_run(Run(run_id="interrupted", type="x"))
except KeyboardInterrupt:
    store.flush()
    print("withdrawn", flush=True)
"""


def test_an_interrupted_call_is_withdrawn(repo: Path) -> None:
    with gate_held(repo):
        before = commits(repo)
        with subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, str(repo)],
            env=os.environ | {"PYTHONPATH": str(Path(scp_git.__file__).parents[1])},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=20)[0] == "withdrawn\n"
        assert process.returncode == 0
    assert (ids(repo), commits(repo)) == ([], before)
