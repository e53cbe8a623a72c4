"""The writer thread: what shares a commit, who gets which error, and when the thread is there."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import anyio
import pygit2
import pytest
from pydantic import ValidationError
from pygit2.enums import FileMode

import scp_git.aio.core
from scp_git import (
    AlreadyExists,
    AsyncStore,
    InvalidId,
    RecordTooLarge,
    RepositoryBusy,
    Run,
    Settings,
    StorageFailed,
    Store,
    UnsupportedRepository,
    open_store,
)
from scp_git.ticket import State, Ticket
from tests.sight import gate_held, ids

QUICK = Settings(durability="os")


def messages(root: Path) -> list[str]:
    """The commit messages of the ledger branch, newest first."""
    repository = pygit2.Repository(root)
    return [
        commit.message for commit in repository.walk(repository.references["refs/heads/scp-ledger"].target)
    ]


def writer_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "scp-git-writer"}


def wait_until(holds: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def queued(store: Store) -> int:
    return sum(ticket.state is State.QUEUED for ticket in store._writer._queue)


# ---------------------------------------------------------------- batches


async def test_a_thousand_concurrent_calls_take_few_commits(repo: Path) -> None:
    async with open_store(repo, QUICK) as store, anyio.create_task_group() as group:
        for number in range(1000):
            group.start_soon(store.record_run, Run(run_id=f"r{number}", type="x"))
    assert Counter(ids(repo)) == Counter(f"r{number}" for number in range(1000))
    assert len(messages(repo)) <= 50


async def test_what_waits_together_shares_one_commit(repo: Path) -> None:
    async with open_store(repo, QUICK) as store, anyio.create_task_group() as group:
        await store.record_run(Run(run_id="first", type="x"))
        with gate_held(repo):
            before = len(messages(repo))
            for number in range(150):
                group.start_soon(store.record_run, Run(run_id=f"r{number}", type="x"))
            await anyio.sleep(0.1)
            while queued(store.store) < 150:
                await anyio.sleep(0.01)
    newest, *_ = messages(repo)
    assert len(messages(repo)) == before + 1
    assert newest.startswith("ledger: 150 changes\n\n")
    assert newest.endswith("\nScp-Git: 1\n")
    assert newest.count("\n") < 110
    assert len(ids(repo)) == 151


@pytest.mark.parametrize(
    ("settings", "callers", "commits"),
    [
        (Settings(durability="os", max_batch=10), 35, 4),
        (Settings(durability="os", max_batch=1), 5, 5),
        (Settings(durability="os", max_batch_bytes=1), 5, 5),
        (Settings(durability="os", max_batch_bytes=10**9), 35, 1),
    ],
)
def test_a_batch_is_bounded_by_count_and_bytes(
    repo: Path, settings: Settings, callers: int, commits: int
) -> None:
    store = Store.open(repo, settings)
    with ThreadPoolExecutor(callers) as pool:
        with gate_held(repo):
            before = len(messages(repo))
            calls = [pool.submit(store.record_run, Run(run_id=f"r{n}", type="x")) for n in range(callers)]
            wait_until(lambda: queued(store) == callers)
        assert sorted(call.result(20) for call in calls) == sorted(f"r{n}" for n in range(callers))
    assert len(messages(repo)) == before + commits
    assert len(ids(repo)) == callers


def test_writes_happen_in_the_order_of_the_calls(repo: Path) -> None:
    store = Store.open(repo, Settings(durability="os", max_batch=1))
    with ThreadPoolExecutor(8) as pool:
        with gate_held(repo):
            calls: list[Future[str]] = []
            for number in range(8):
                calls.append(pool.submit(store.record_run, Run(run_id=f"r{number}", type="x")))
                wait_until(lambda: queued(store) == len(calls))
        for call in calls:
            call.result(20)
    subjects = [message.partition("\n")[0] for message in messages(repo)]
    assert subjects[:8] == [f"ledger: x r{number}" for number in range(7, -1, -1)]


async def test_a_loop_is_woken_once_for_a_batch(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[int] = []
    wake = scp_git.aio.core.LoopWaiter.wake

    def counting(waiter: scp_git.aio.core.LoopWaiter, tickets: list[Ticket]) -> None:
        woken.append(len(tickets))
        wake(waiter, tickets)

    monkeypatch.setattr(scp_git.aio.core.LoopWaiter, "wake", counting)
    async with open_store(repo, QUICK) as store, anyio.create_task_group() as group:
        with gate_held(repo):
            for number in range(40):
                group.start_soon(store.record_run, Run(run_id=f"r{number}", type="x"))
            await anyio.sleep(0.1)
    assert woken == [40]


# ---------------------------------------------------------------- errors


async def test_a_bad_one_fails_alone(repo: Path) -> None:
    taken, bad_id = Run(run_id="taken", type="x"), Run(type="x")
    bad_id.run_id = "../x"
    outcomes: dict[str, object] = {}

    async def attempt(name: str, run: object, events: object = None) -> None:
        try:
            outcomes[name] = await store.record_run(run, events)  # type: ignore[arg-type]
        except Exception as exc:
            outcomes[name] = type(exc)

    async with open_store(repo, QUICK) as store:
        await store.record_run(taken)
        await store.record_run(Run(run_id="gone", type="x"))
        await store.delete_run("gone")
        with gate_held(repo):
            before = len(messages(repo))
        async with anyio.create_task_group() as group:
            with gate_held(repo):
                for number in range(5):
                    group.start_soon(attempt, f"good{number}", Run(run_id=f"good{number}", type="x"))
                    group.start_soon(attempt, f"taken{number}", Run(run_id="taken", type="y"))
                group.start_soon(attempt, "gone", Run(run_id="gone", type="x"))
                group.start_soon(attempt, "bad id", bad_id)
                group.start_soon(attempt, "no run", {"type": "x"})
                group.start_soon(attempt, "NaN", Run(type="x"), [{"x": float("nan")}])
                group.start_soon(attempt, "large", Run(type="x"), [{"x": "x" * 5_000_000}])
                group.start_soon(attempt, "same", taken)
                await anyio.sleep(0.3)
    good = {f"good{number}": f"good{number}" for number in range(5)}
    assert outcomes == {
        **good,
        **{f"taken{number}": AlreadyExists for number in range(5)},
        "gone": AlreadyExists,
        "bad id": InvalidId,
        "no run": TypeError,
        "NaN": ValidationError,
        "large": RecordTooLarge,
        "same": "taken",
    }
    assert sorted(ids(repo)) == sorted([*good, "taken"])
    assert len(messages(repo)) == before + 1


async def test_two_that_contradict_each_other_in_one_batch(repo: Path) -> None:
    outcomes: list[object] = []

    async def attempt(summary: str) -> None:
        try:
            outcomes.append(await store.record_run(Run(run_id="same", type="x", summary=summary)))
        except AlreadyExists as exc:
            outcomes.append(exc)

    async with open_store(repo, QUICK) as store, anyio.create_task_group() as group:
        with gate_held(repo):
            for summary in ("one", "other", "third"):
                group.start_soon(attempt, summary)
            await anyio.sleep(0.2)
    assert outcomes.count("same") == 1
    assert len(outcomes) == 3
    assert ids(repo) == ["same"]


def errors_of_a_batch(store: Store, spoil: Callable[[], None], count: int = 5) -> list[BaseException | None]:
    """What ``count`` callers of one batch get when the repository is spoilt before it is written."""
    with ThreadPoolExecutor(count) as pool:
        with gate_held(store.root):
            calls = [pool.submit(store.record_run, Run(run_id=f"r{n}", type="x")) for n in range(count)]
            wait_until(lambda: queued(store) == count)
            spoil()
        return [call.exception(20) for call in calls]


def test_every_caller_gets_an_error_of_its_own(repo: Path) -> None:
    def begin_a_later_format() -> None:
        repository = pygit2.Repository(repo)
        tree = repository.TreeBuilder()
        tree.insert("FORMAT", repository.create_blob(b"2\n"), FileMode.BLOB)
        ada = repository.default_signature
        ledger = repository.references["refs/heads/scp-ledger"]
        repository.create_commit(ledger.name, ada, ada, "later", tree.write(), [ledger.target])

    store = Store.open(repo, QUICK)
    store.ensure_ledger()
    tip = pygit2.Repository(repo).references["refs/heads/scp-ledger"].target
    errors = errors_of_a_batch(store, begin_a_later_format)
    assert {type(error) for error in errors} == {UnsupportedRepository}
    assert len({id(error) for error in errors}) == 5
    assert len({str(error) for error in errors}) == 1
    for error in errors:
        assert isinstance(error, UnsupportedRepository)
        assert error.path == repo
    pygit2.Repository(repo).references["refs/heads/scp-ledger"].set_target(tip)
    assert store.record_run(Run(run_id="r0", type="x")) == "r0"


def test_a_system_error_keeps_its_number_for_every_caller(repo: Path) -> None:
    store = Store.open(repo, QUICK)
    store.ensure_ledger()
    gate = repo / ".git/scp/gate"
    gate.unlink()
    gate.mkdir()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(store.record_run, Run(run_id=f"r{n}", type="x")) for n in range(4)]
        errors = [call.exception(20) for call in calls]
    for error in errors:
        assert isinstance(error, StorageFailed)
        assert isinstance(error.__cause__, OSError)
        assert error.errno == error.__cause__.errno is not None
    assert len({id(error) for error in errors}) == 4
    gate.rmdir()
    assert store.record_run(Run(run_id="r0", type="x")) == "r0"
    assert ids(repo) == ["r0"]


def test_an_operation_that_breaks_unexpectedly_fails_alone(repo: Path) -> None:
    class Broken:
        size = 1

        def apply(self, tx: object) -> None:
            raise RuntimeError("a mistake of ours")

    store = Store.open(repo, QUICK)
    with ThreadPoolExecutor(2) as pool:
        with gate_held(repo):
            good = pool.submit(store.record_run, Run(run_id="good", type="x"))
            bad = pool.submit(store._wait, Ticket(Broken, size=1))  # type: ignore[arg-type]
            wait_until(lambda: queued(store) == 2)
        assert good.result(20) == "good"
        assert isinstance(bad.exception(20), StorageFailed)
    assert ids(repo) == ["good"]


# ---------------------------------------------------------------- the queue


def test_a_full_queue_refuses_at_once(repo: Path) -> None:
    store = Store.open(repo, Settings(durability="os", queue_bytes=200_000, lock_timeout_s=20))
    run = [Run(run_id=f"r{n}", type="x", summary="x" * 20_000) for n in range(20)]
    with ThreadPoolExecutor(20) as pool:
        with gate_held(repo):
            calls = [pool.submit(store.record_run, each) for each in run]
            wait_until(lambda: sum(call.done() for call in calls) + queued(store) == 20)
            refused = [call for call in calls if call.done()]
            assert {type(call.exception()) for call in refused} == {RepositoryBusy}
            assert 10 <= len(refused) <= 18
        stored = [call.result(20) for call in calls if call not in refused]
    assert sorted(ids(repo)) == sorted(stored)
    assert store.record_run(run[0]) == "r0"


def test_one_write_may_be_larger_than_the_queue(repo: Path) -> None:
    store = Store.open(repo, Settings(durability="os", queue_bytes=1))
    assert store.record_run(Run(run_id="large", type="x", summary="x" * 100_000)) == "large"


async def test_what_was_withdrawn_makes_room(repo: Path) -> None:
    settings = Settings(durability="os", queue_bytes=50_000, lock_timeout_s=20)
    async with open_store(repo, settings) as store:
        with gate_held(repo):
            for attempt in range(20):
                with anyio.move_on_after(0.01):
                    await store.record_run(Run(run_id=f"r{attempt}", type="x", summary="x" * 10_000))
            assert queued(store.store) == 0
        assert await store.record_run(Run(run_id="after", type="x")) == "after"
    assert ids(repo) == ["after"]


def test_what_was_withdrawn_is_let_go_of(repo: Path) -> None:
    """While another process holds the gate for hours, callers come and give up; they must not pile up."""

    class Payload:
        pass

    store = Store.open(repo, QUICK)
    with gate_held(repo):
        held = []
        for _ in range(10):
            payload, run = Payload(), Run(type="x")
            held.append(weakref.ref(payload))
            ticket = Ticket(lambda payload=payload, run=run: store.prepared(run, None), size=10)  # type: ignore[misc]
            store.submit(ticket)
            assert store.withdraw(ticket)
            del payload, ticket
        time.sleep(0.1)
        gc.collect()
        assert sum(reference() is not None for reference in held) <= 1
    store.flush()
    assert ids(repo) == []


def test_withdrawing_is_for_what_was_not_taken(repo: Path) -> None:
    store, run = Store.open(repo, QUICK), Run(run_id="r", type="x")
    with gate_held(repo):
        ticket = store.submit(store.recording(run, lambda: store.prepared(run, None), size=10))
        assert ticket.state is State.QUEUED
        assert store.withdraw(ticket) is True
        assert store.withdraw(ticket) is False
        assert ticket.state is State.WITHDRAWN
        store.flush()
    done = store.submit(store.recording(run, lambda: store.prepared(run, None), size=10))
    store.flush()
    assert done.state is State.DONE
    assert done.outcome() is True
    assert store.withdraw(done) is False
    assert ids(repo) == ["r"]


def test_flush_waits_for_what_is_queued(repo: Path) -> None:
    store = Store.open(repo, QUICK)
    runs = [Run(run_id=f"r{n}", type="x") for n in range(50)]
    for run in runs:
        store.submit(store.recording(run, lambda run=run: store.prepared(run, None), size=10))  # type: ignore[misc]
    store.flush()
    assert len(ids(repo)) == 50


def test_draining_writes_what_is_queued_also_without_the_thread(repo: Path) -> None:
    store = Store.open(repo, Settings(durability="os", idle_s=0.05))
    run = Run(run_id="r", type="x")
    writer = store._writer
    writer._start = lambda: None  # type: ignore[method-assign] # as when the interpreter is ending
    store.submit(store.recording(run, lambda: store.prepared(run, None), size=10))
    assert ids(repo) == []
    writer.drain(time.monotonic() + 20)
    assert ids(repo) == ["r"]
    began = time.monotonic()
    writer.drain(time.monotonic() + 20)
    assert time.monotonic() - began < 1


# ---------------------------------------------------------------- the thread


def test_the_thread_ends_when_idle_and_starts_again(repo: Path) -> None:
    before = writer_threads()
    store = Store.open(repo, Settings(durability="os", idle_s=0.5))
    assert writer_threads() <= before, "opening starts no thread"
    for number in range(2):
        store.record_run(Run(run_id=f"r{number}", type="x"))
        [thread] = writer_threads() - before
        assert thread.daemon
        thread.join(10)
        assert not thread.is_alive()
    assert len(ids(repo)) == 2


def test_a_thread_that_is_just_ending_loses_nothing(repo: Path) -> None:
    store = Store.open(repo, Settings(durability="os", idle_s=0.001))
    for number in range(100):
        store.record_run(Run(run_id=f"r{number}", type="x"))
        time.sleep(0.0005 * (number % 5))
    assert len(ids(repo)) == 100


def test_one_repository_has_one_writer_however_it_is_opened(repo: Path) -> None:
    one, other = Store.open(repo), Store.open(f"{repo}/")
    assert one._writer is other._writer
    assert AsyncStore(one).store._writer is one._writer
    assert Store.open(repo, Settings(max_batch=7))._writer is not one._writer


def test_a_writer_goes_with_its_last_store(repo: Path) -> None:
    settings = Settings(durability="os", idle_s=0.05)
    store = Store.open(repo, settings)
    store.record_run(Run(type="x"))
    gone = weakref.ref(store._writer)
    del store
    wait_until(lambda: gc.collect() >= 0 and gone() is None)


def test_a_store_dropped_with_writes_queued_still_writes_them(repo: Path) -> None:
    store, run = Store.open(repo, Settings(durability="os", max_batch=3)), Run(run_id="r", type="x")
    writer = store._writer
    with gate_held(repo):
        store.submit(store.recording(run, lambda store=store: store.prepared(run, None), size=10))  # type: ignore[misc]
        del store
        gc.collect()
    assert writer.flush(20)
    assert ids(repo) == ["r"]
