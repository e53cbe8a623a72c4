"""The event bus: order, filters, replay, lag, threads and loops, sinks, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream

from scp_git.broadcast import Bus, Event, Subscription, _Loop, bus
from scp_git.patterns import matcher


async def take(sub: Subscription, count: int) -> list[Event]:
    """The next ``count`` events, one by one."""
    events: list[Event] = []
    with anyio.fail_after(10):
        while len(events) < count:
            events.append(await anext(sub))
    return events


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)


def seqs(events: list[Event]) -> list[int]:
    return [event.seq for event in events]


def at_rest(some: Bus) -> bool:
    now = some.statistics()
    return now.asleep == now.subscribers == 0 and not some._uncalled and not len(some._loops)


# ---------------------------------------------------------------- events


def test_an_event_carries_what_was_published_and_cannot_be_changed() -> None:
    some, seen = Bus(), list[Event]()
    some.attach(seen.append)
    data, before = {"status": "ok"}, time.time()
    assert (
        some.publish("ledger:run", key="r1", data=data, error="no", duration_s=0.5, meta={"root": "/r"}) == 1
    )
    assert some.publish("x") == 2
    data["status"] = "changed later"
    first, second = seen
    assert (first.v, first.seq, first.type, first.key) == (1, 1, "ledger:run", "r1")
    assert (first.data, first.error, first.duration_s, first.meta) == (
        {"status": "ok"},
        "no",
        0.5,
        {"root": "/r"},
    )
    assert before <= first.ts <= second.ts <= time.time()
    assert (second.key, second.data, second.error, second.duration_s, second.meta) == ("", {}, None, None, {})
    with pytest.raises(AttributeError):
        first.seq = 7  # type: ignore[misc]
    with pytest.raises(AttributeError):
        object.__setattr__(first, "seq", 7)
    with pytest.raises(TypeError):
        first.data["status"] = "no"  # type: ignore[index]
    assert first == first and first != first._replace() and len({first, second}) == 2


def test_publishing_wrong_types_raises_and_takes_no_number() -> None:
    some = Bus()
    with pytest.raises(TypeError):
        some.publish(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        some.publish("x", data=7)  # type: ignore[arg-type]
    assert some.publish("x") == 1


def test_publishing_needs_no_loop_and_the_process_has_one_bus() -> None:
    assert isinstance(bus, Bus)
    assert bus.publish("test:first") + 1 == bus.publish("test:second")


@pytest.mark.parametrize(
    ("pattern", "accepts", "refuses"),
    [
        ("ledger:run", ["ledger:run"], ["ledger", "ledger:run:x", "ledger-run", "Ledger:run"]),
        ("ledger:*", ["ledger:run", "ledger:"], ["ledger", "ledger:a:b", "xledger:run"]),
        ("*:run", ["ledger:run"], ["run", "a:b:run"]),
        ("a:*:c", ["a:b:c"], ["a:c", "a:b:b:c"]),
        ("a:**", ["a", "a:b", "a:b:c"], ["ab", "b:a"]),
        ("*", ["a"], ["a:b"]),
        ("**", ["a", "a:b", "", "a\n:b"], []),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_patterns_match_whole_segments(pattern: str, accepts: list[str], refuses: list[str]) -> None:
    matches = matcher(pattern)
    assert [type for type in accepts + refuses if matches(type)] == accepts


@pytest.mark.parametrize("pattern", ["led*", "a:**:b", "***", "**:a"])
def test_a_wildcard_elsewhere_is_an_error(pattern: str) -> None:
    with pytest.raises(ValueError, match="whole segment"):
        Bus().subscribe(pattern)


# ---------------------------------------------------------------- reading


async def test_every_subscriber_gets_every_event_in_order() -> None:
    some, got = Bus(), dict[str, list[int]]()

    async def one_by_one(*, task_status: TaskStatus[None]) -> None:
        async with some.subscribe() as sub:
            task_status.started()
            got["one"] = seqs(await take(sub, 1000))

    async def batches(size: int, *, task_status: TaskStatus[None]) -> None:
        got[f"by {size}"] = mine = []
        async with some.subscribe() as sub:
            task_status.started()
            async for batch in sub.batches(size):
                assert 1 <= len(batch) <= size
                mine += seqs(batch)
                if len(mine) == 1000:
                    break

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            await group.start(one_by_one)
            await group.start(batches, 1)
            await group.start(batches, 256)
            for number in range(1000):
                some.publish("tick")
                if number % 70 == 0:
                    await anyio.sleep(0)
    assert got == {key: list(range(1, 1001)) for key in ("one", "by 1", "by 256")}
    assert at_rest(some)


async def test_filters_on_pattern_key_and_root() -> None:
    some = Bus()
    async with (
        some.subscribe("ledger:*", "chat:message") as typed,
        some.subscribe(key="k2") as keyed,
        some.subscribe(root=Path("/r/1")) as rooted,
        some.subscribe("chat:**", key="k2", root="/r/1") as all_of_it,
    ):
        some.publish("ledger:run", key="k1", meta={"root": "/r/1"})
        some.publish("chat:message", key="k2", meta={"root": Path("/r/1")})
        some.publish("chat:thread", key="k2", meta={"root": b"/r/2"})
        some.publish("trace:start", key="k3", meta={"other": 1})
        some.publish("chat:message", key="k2")
        some.publish("ledger:run", key="k2", meta={"root": "/r/1"})
        assert seqs(await take(typed, 4)) == [1, 2, 5, 6]
        assert seqs(await take(keyed, 4)) == [2, 3, 5, 6]
        assert seqs(await take(rooted, 5)) == [1, 2, 4, 5, 6]
        assert seqs(await take(all_of_it, 2)) == [2, 5]


async def test_a_subscription_begins_where_it_is_entered_or_after_since() -> None:
    some = Bus(capacity=10)
    for _ in range(10):
        some.publish("x")
    async with (
        some.subscribe() as live,
        some.subscribe(since=0) as whole,
        some.subscribe(since=7) as late,
        some.subscribe(since=10) as last,
    ):
        assert seqs(await take(whole, 10)) == list(range(1, 11))
        assert seqs(await take(late, 3)) == [8, 9, 10]
        some.publish("y")
        for sub in (live, whole, late, last):
            assert seqs(await take(sub, 1)) == [11]
            assert sub.missed == 0


async def test_replay_of_what_is_gone_begins_with_a_gap() -> None:
    some = Bus(capacity=10)
    for _ in range(25):
        some.publish("x")
    async with some.subscribe(since=3) as sub:
        gap, *rest = await take(sub, 11)
    assert (gap.type, gap.data, gap.seq) == ("bus:gap", {"missed": 12, "resume_seq": 16}, 15)
    assert seqs(rest) == list(range(16, 26))


async def test_a_number_of_another_instance_replays_all_after_a_gap() -> None:
    some = Bus()
    async with some.subscribe(since=500) as sub:
        (gap,) = await take(sub, 1)
        assert (gap.type, gap.data["resume_seq"]) == ("bus:gap", 1)
        some.publish("x")
        assert seqs(await take(sub, 1)) == [1]
    async with some.subscribe("y", since=500) as sub:
        some.publish("y")
        assert [event.type for event in await take(sub, 2)] == ["bus:gap", "y"]
    assert some.instance != Bus().instance


async def test_who_falls_behind_is_told_how_much_and_goes_on() -> None:
    some = Bus(capacity=8)
    async with some.subscribe() as sub, some.subscribe("never", key="k") as filtered:
        for _ in range(20):
            some.publish("x")
        gap, *rest = await take(sub, 9)
        assert (gap.type, gap.data) == ("bus:gap", {"missed": 12, "resume_seq": 13})
        assert seqs(rest) == list(range(13, 21))
        some.publish("x")
        assert seqs(await take(sub, 1)) == [21]
        assert (await take(filtered, 1))[0].type == "bus:gap"
        assert (sub.missed, filtered.missed, some.statistics().missed) == (12, 13, 25)


async def test_who_falls_behind_may_choose_to_end() -> None:
    some = Bus(capacity=8)
    async with some.subscribe(on_lag="end") as one, some.subscribe(on_lag="end") as many:
        for _ in range(20):
            some.publish("x")
        assert [event.type async for event in one] == ["bus:gap"]
        assert [[event.type for event in batch] async for batch in many.batches()] == [["bus:gap"]]
    with pytest.raises(ValueError, match="on_lag"):
        some.subscribe(on_lag="drop")  # type: ignore[arg-type]


async def test_a_batch_with_a_gap_keeps_to_its_size() -> None:
    some = Bus(capacity=8)
    async with some.subscribe(since=0) as sub:
        for _ in range(20):
            some.publish("x")
        sizes, got = [], []
        async for batch in sub.batches(3):
            sizes.append(len(batch))
            got += seqs(batch)
            if got[-1] == 20:
                break
    assert (sizes, got) == ([3, 3, 3], list(range(12, 21)))
    with pytest.raises(ValueError, match="at least one"):
        sub.batches(0)


async def test_events_and_batches_of_one_subscription_follow_each_other() -> None:
    some = Bus()
    async with some.subscribe() as sub:
        for _ in range(200):
            some.publish("x")
        got = await take(sub, 10)
        batches = sub.batches(100)
        while len(got) < 200:
            got += await anext(batches)
    assert seqs(got) == list(range(1, 201))


async def test_each_fetch_lets_others_run_also_when_nothing_matches() -> None:
    some, turns = Bus(), 0
    for _ in range(4000):
        some.publish("noise")
    some.publish("wanted")

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group, some.subscribe("wanted", since=0) as filtered:
        group.start_soon(other)
        async with some.subscribe(since=0) as sub:
            batches = sub.batches(40)
            for _ in range(100):
                await anext(batches)
        assert turns >= 50
        turns = 0
        await take(filtered, 1)
        assert turns >= 30
        group.cancel_scope.cancel()


async def test_two_tasks_share_a_subscription_without_loss_or_doubles() -> None:
    some, got = Bus(), list[int]()

    async def reader(sub: Subscription) -> None:
        async for event in sub:
            got.append(event.seq)
            await anyio.sleep(0)

    async with anyio.create_task_group() as group, some.subscribe() as sub:
        group.start_soon(reader, sub)
        group.start_soon(reader, sub)
        for _ in range(300):
            some.publish("x")
            await anyio.sleep(0)
        await until(lambda: len(got) >= 300)
    assert sorted(got) == list(range(1, 301))


# ---------------------------------------------------------------- nothing stays behind


async def test_breaking_out_leaves_nothing_behind() -> None:
    some = Bus()
    async with some.subscribe() as sub:
        some.publish("x")
        async for _ in sub:
            break
        some.publish("x")
        async for _ in sub.batches():
            break
        assert some.statistics().asleep == 0
        for _ in range(3):
            some.publish("x")
        await take(sub, 1)
    assert [event async for event in sub] == []
    assert at_rest(some)
    trace = weakref.ref(sub)
    del sub
    gc.collect()
    assert trace() is None


async def test_cancelling_leaves_nothing_behind_and_loses_nothing() -> None:
    some = Bus()
    async with some.subscribe() as sub:
        for _ in range(3):
            with anyio.move_on_after(0.01) as scope:
                await anext(sub)
            assert scope.cancelled_caught
            assert some.statistics().asleep == 0
            assert not some._uncalled
        some.publish("x")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anext(sub)
        assert scope.cancelled_caught
        assert seqs(await take(sub, 1)) == [1]
    assert at_rest(some)


def test_a_native_asyncio_cancel_leaves_nothing_behind() -> None:
    some = Bus()

    async def reader() -> None:
        async with some.subscribe() as sub:
            async for _ in sub:
                pass

    async def main() -> None:
        tasks = [asyncio.create_task(reader()) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert some.statistics().asleep == 3
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert at_rest(some)

    asyncio.run(main())


async def test_random_cancellation_loses_and_doubles_nothing() -> None:
    some, total = Bus(capacity=64), 3000

    async def publisher() -> None:
        for number in range(total):
            some.publish("x")
            if number % 50 == 0:
                await anyio.sleep(0)

    async with anyio.create_task_group() as group, some.subscribe() as sub:
        group.start_soon(publisher)
        got, batches, tries = list[Event](), sub.batches(7), 0
        with anyio.fail_after(20):
            while not got or got[-1].seq < total:
                tries += 1
                # From none at all to 2 ms: a slow machine never gets anything done in some microseconds.
                with anyio.CancelScope(deadline=anyio.current_time() + (tries % 7) ** 3 * 1e-5):
                    got += await anext(batches)
                await anyio.sleep(0)
    real = [event for event in got if event.type == "x"]
    assert len(real) + sub.missed == total
    assert seqs(real) == sorted(set(seqs(real)))
    assert at_rest(some)


async def test_leaving_the_block_ends_the_iteration_of_another_task() -> None:
    some, ended = Bus(), False

    async def reader(sub: Subscription) -> None:
        nonlocal ended
        async for _ in sub:
            pass
        ended = True

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group, some.subscribe() as sub:
            group.start_soon(reader, sub)
            await until(lambda: some.statistics().asleep == 1)
    assert ended
    assert at_rest(some)


async def test_a_subscription_must_be_entered() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await anext(Bus().subscribe())


async def test_each_burst_wakes_a_loop_with_one_call() -> None:
    some = Bus()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            subs = [await group.start(_enter, some) for _ in range(5)]
            for sub in subs:
                group.start_soon(take, sub, 1000)
            await until(lambda: some.statistics().asleep == 5)
            for burst in range(1, 4):
                for _ in range(100):
                    some.publish("x")
                assert some.statistics().wakeups == burst
                await until(lambda seq=burst * 100: all(sub._cursor == seq for sub in subs))
                await until(lambda: some.statistics().asleep == 5)
            group.cancel_scope.cancel()
    assert at_rest(some)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio would run these steps in any order
async def test_a_loop_is_not_called_again_while_a_call_is_under_way(anyio_backend: str) -> None:
    some = Bus()

    async def publisher() -> None:
        assert some.statistics().asleep == 2
        some.publish("second")

    async with anyio.create_task_group() as group:
        group.start_soon(take, await group.start(_enter, some), 2)
        await until(lambda: some.statistics().asleep == 1)
        group.start_soon(publisher)
        some.publish("first")
        async with some.subscribe() as sub:
            # Asleep before the loop has run the first call; the second event needs no other.
            assert [event.type for event in await take(sub, 1)] == ["second"]
        assert some.statistics().wakeups == 1
        group.cancel_scope.cancel()


async def _enter(some: Bus, *, task_status: TaskStatus[Subscription]) -> None:
    async with some.subscribe() as sub:
        task_status.started(sub)
        await anyio.sleep_forever()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("called", [False, True])
def test_a_loop_closed_under_a_sleeping_reader_is_forgotten(
    called: bool, caplog: pytest.LogCaptureFixture
) -> None:
    some, loop = Bus(), asyncio.new_event_loop()

    async def reader() -> None:
        async with some.subscribe() as sub:
            await anext(sub)

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(reader())
        await asyncio.sleep(0.01)
        return task

    caplog.set_level(logging.CRITICAL, "asyncio")
    task = loop.run_until_complete(main())
    if called:
        some.publish("x")
    assert some.statistics().asleep == 1
    loop.close()
    assert some.publish("x") == 1 + called
    del task
    gc.collect()
    assert at_rest(some)


def test_a_trio_run_that_is_over_is_ignored() -> None:
    async def main() -> _Loop:
        return _Loop(trio.lowlevel.current_trio_token(), anyio.Event())

    some = Bus()
    some._uncalled.add(trio.run(main))
    assert some.publish("x") == 1
    assert not some._uncalled


# ---------------------------------------------------------------- threads, loops, signals, forks


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns a thousand times more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def start_reader(some: Bus, backend: str, total: int, got: list[Event]) -> threading.Thread:
    """A thread with a loop of its own that has subscribed when this returns."""
    subscribed = threading.Event()

    async def reader() -> None:
        with anyio.fail_after(30):
            async with some.subscribe("thread:*") as sub:
                subscribed.set()
                async for batch in sub.batches():
                    got.extend(batch)
                    if got[-1].seq >= total:
                        break

    thread = threading.Thread(target=anyio.run, args=(reader,), kwargs={"backend": backend})
    thread.start()
    assert subscribed.wait(10)
    return thread


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("capacity", [20_000, 500])
def test_threads_publish_while_an_asyncio_and_a_trio_loop_read(capacity: int) -> None:
    some, per_thread = Bus(capacity), 3000
    got: dict[str, list[Event]] = {"asyncio": [], "trio": []}
    readers = [start_reader(some, backend, 4 * per_thread, got[backend]) for backend in got]

    def publisher(name: str) -> None:
        for number in range(per_thread):
            some.publish(f"thread:{name}", data={"n": number})

    publishers = [threading.Thread(target=publisher, args=(str(name),)) for name in range(4)]
    for thread in publishers:
        thread.start()
    for thread in publishers + readers:
        thread.join(30)
        assert not thread.is_alive()
    for events in got.values():
        real = [event for event in events if event.type != "bus:gap"]
        missed = sum(event.data["missed"] for event in events if event.type == "bus:gap")
        assert len(real) + missed == 4 * per_thread
        assert seqs(real) == sorted(set(seqs(real)))
        for name in range(4):
            numbers = [event.data["n"] for event in real if event.type == f"thread:{name}"]
            assert numbers == (list(range(per_thread)) if capacity > 500 else sorted(set(numbers)))
        if capacity > 500:
            assert missed == 0
    assert at_rest(some)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("per_thread", [1500, pytest.param(60_000, marks=pytest.mark.full)])
def test_eight_threads_publish_while_subscribers_come_and_go_on_two_loops(per_thread: int) -> None:
    """Nothing is lost, doubled or reordered for any publisher, in any visit; nothing deadlocks."""
    threads, total = 8, 8 * per_thread
    some, visits, whole = Bus(capacity=1 << 20), list[int](), dict[str, list[Event]]()
    ready = threading.Barrier(3)

    def check(events: list[Event]) -> None:
        for name in range(threads):
            numbers = [event.data["n"] for event in events if event.key == str(name)]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True

    async def visitor(patience: int) -> None:
        while some.statistics().published < total:
            got = list[Event]()
            async with some.subscribe() as sub:
                with anyio.move_on_after(0.05):
                    async for batch in sub.batches(17):
                        got += batch
                        if len(got) > patience:
                            break
            assert sub.missed == 0
            check(got)
            visits.append(len(got))

    async def stay(backend: str) -> None:
        async with some.subscribe() as sub, anyio.create_task_group() as group:
            ready.wait(10)
            for patience in (3, 40, 400):
                group.start_soon(visitor, patience)
            whole[backend] = mine = []
            async for batch in sub.batches():
                mine += batch
                if mine[-1].seq >= total:
                    break

    def publisher(name: str) -> None:
        for number in range(per_thread):
            some.publish("x", key=name, data={"n": number})

    loops = [
        threading.Thread(target=anyio.run, args=(stay, backend), kwargs={"backend": backend})
        for backend in ("asyncio", "trio")
    ]
    publishers = [threading.Thread(target=publisher, args=(str(name),)) for name in range(threads)]
    for thread in loops:
        thread.start()
    ready.wait(10)
    for thread in publishers:
        thread.start()
    for thread in publishers + loops:
        thread.join(40 if per_thread < 10_000 else 600)
        assert not thread.is_alive()
    assert whole.keys() == {"asyncio", "trio"}
    for events in whole.values():
        assert seqs(events) == list(range(1, total + 1))
        check(events)
    assert len(visits) > 10
    assert at_rest(some)


async def test_an_idle_loop_is_woken_from_a_thread() -> None:
    some = Bus()
    async with some.subscribe() as sub:
        for number in range(20):
            timer = threading.Timer(0.002, some.publish, ["x"])
            timer.start()
            assert seqs(await take(sub, 1)) == [number + 1]
            timer.join()


def test_a_signal_handler_may_publish_while_its_thread_publishes() -> None:
    some, sunk, depth, deepest, calls = Bus(), list[int](), 0, 0, itertools.count()

    def sink(event: Event) -> None:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        sunk.append(event.seq)
        depth -= 1

    def publish(*_: object) -> None:
        next(calls)
        some.publish("x")

    some.attach(sink)
    before = signal.signal(signal.SIGVTALRM, publish)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0005, 0.0002)
    try:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            publish()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert sunk == list(range(1, next(calls) + 1))
    assert deepest == 1


def test_a_forked_child_publishes_although_the_lock_was_held() -> None:
    script = """
        import os, signal, threading
        from scp_git.broadcast import bus
        held, done, seen = threading.Event(), threading.Event(), []
        bus.attach(seen.append)
        def hold():
            with bus._lock:
                held.set()
                done.wait(20)
        threading.Thread(target=hold).start()
        held.wait()
        instance = bus.instance
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            first = bus.publish("child")
            os._exit(0 if (first, len(seen)) == (1, 1) and bus.instance != instance else 1)
        done.set()
        assert os.waitpid(child, 0)[1] == 0
        assert bus.instance == instance and bus.publish("parent") == 1
    """
    root = Path(__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        cwd=root,
        capture_output=True,
        timeout=30,
    )
    assert (result.returncode, result.stderr) == (0, b"")


# ---------------------------------------------------------------- sinks


@pytest.mark.usefixtures("restless")
def test_sinks_see_every_event_in_order_from_all_threads() -> None:
    some, seen = Bus(capacity=4), list[int]()
    some.publish("before")
    with some.attach(lambda event: seen.append(event.seq)):
        threads = [
            threading.Thread(target=lambda: [some.publish("x") for _ in range(1000)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert some.statistics().sinks == 1
    some.publish("after")
    assert seen == list(range(2, 4002))
    assert some.statistics().sinks == 0


def test_a_failing_sink_is_detached_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    some, first, last = Bus(), list[int](), list[int]()
    some.attach(lambda event: first.append(event.seq))

    def failing_sink(event: Event) -> None:
        if event.seq == 2:
            raise LookupError("no room")

    handle = some.attach(failing_sink)
    some.attach(lambda event: last.append(event.seq))
    assert [some.publish("x") for _ in range(3)] == [1, 2, 3]
    assert first == last == [1, 2, 3]
    assert (some.statistics().sinks, some.statistics().sink_errors) == (2, 1)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "failing_sink" in record.getMessage()
    assert record.exc_info is not None
    handle.close()
    handle.close()
    assert some.statistics().sinks == 2


def test_the_same_sink_attached_twice_is_called_twice_and_detached_once() -> None:
    some, seen = Bus(), list[int]()

    def sink(event: Event) -> None:
        seen.append(event.seq)

    some.attach(sink)
    some.attach(sink).close()
    some.publish("x")
    assert seen == [1]


def test_a_log_handler_may_publish(caplog: pytest.LogCaptureFixture) -> None:
    some = Bus()

    class Publisher(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            worker = threading.Thread(target=some.publish, args=("log",))
            worker.start()
            worker.join(5)
            assert not worker.is_alive()

    def sink(event: Event) -> None:
        raise ValueError

    handler = Publisher()
    logging.getLogger("scp_git.broadcast").addHandler(handler)
    try:
        some.attach(sink)
        some.publish("x")
    finally:
        logging.getLogger("scp_git.broadcast").removeHandler(handler)
    assert some.statistics().published == 2


def test_what_a_sink_publishes_follows_in_every_sink() -> None:
    some, seen = Bus(), list[tuple[int, str]]()
    some.attach(lambda event: event.type == "question" and some.publish("answer"))
    some.attach(lambda event: seen.append((event.seq, event.type)))
    assert some.publish("question") == 1
    assert some.publish("x") == 3
    assert seen == [(1, "question"), (2, "answer"), (3, "x")]


def test_a_sink_that_publishes_for_ever_is_detached(caplog: pytest.LogCaptureFixture) -> None:
    some, seen = Bus(capacity=100), list[int]()
    some.attach(lambda event: seen.append(event.seq))
    some.attach(lambda event: some.publish("again"))
    some.publish("x")
    assert some.statistics().sinks == 1
    assert "only append" in caplog.text
    assert seen == list(range(1, some.statistics().published + 1))


# ---------------------------------------------------------------- speed


async def test_stalled_subscribers_do_not_slow_the_publisher() -> None:
    def rate(some: Bus) -> float:
        began = time.thread_time()
        for _ in range(20_000):
            some.publish("x")
        return 20_000 / (time.thread_time() - began)

    some, stalled, alone, crowded = Bus(), list[Subscription](), list[float](), list[float]()
    async with anyio.create_task_group() as group:
        for _ in range(100):
            stalled.append(await group.start(_enter, some))
        for _ in range(5):
            alone.append(rate(Bus()))
            crowded.append(rate(some))
        gap = await anext(stalled[0])
        assert gap.data["missed"] == 100_000 - some.capacity
        group.cancel_scope.cancel()
    assert max(crowded) > max(alone) / 2, (crowded, alone)


async def test_of_a_hundred_subscribers_ten_never_read_and_the_publisher_keeps_its_speed() -> None:
    """What a publisher pays is one entry in the ring, whoever reads it or does not."""

    async def per_event(readers: int, stalled: int) -> float:
        some, spent, total = Bus(capacity=512), 0.0, 4000

        async def reader(*, task_status: TaskStatus[None]) -> None:
            async with some.subscribe() as sub:
                task_status.started()
                async for batch in sub.batches():
                    if batch[-1].seq == total:
                        break
                assert sub.missed == 0

        async with anyio.create_task_group() as group:
            for _ in range(readers):
                await group.start(reader)
            idle = [await group.start(_enter, some) for _ in range(stalled)]
            for _ in range(total // 50):
                began = time.thread_time()
                for _ in range(50):
                    some.publish("x")
                spent += time.thread_time() - began
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
            while some.statistics().subscribers > stalled:
                await anyio.sleep(0.001)
            for sub in idle:
                assert (await anext(sub)).data["missed"] == total - some.capacity
            group.cancel_scope.cancel()
        return spent / total

    alone = min([await per_event(0, 0) for _ in range(3)])
    crowded = min([await per_event(90, 10) for _ in range(3)])
    assert crowded < 2 * alone, (crowded, alone)


async def bus_rate(total: int, readers: int) -> float:
    some = Bus()

    async def reader(*, task_status: TaskStatus[None]) -> None:
        async with some.subscribe() as sub:
            task_status.started()
            async for batch in sub.batches():
                if batch[-1].seq == total:
                    break
            assert sub.missed == 0

    async with anyio.create_task_group() as group:
        for _ in range(readers):
            await group.start(reader)
        began = time.thread_time()
        for number in range(total):
            some.publish("x")
            if number % 64 == 0:
                await anyio.lowlevel.checkpoint()
    return total / (time.thread_time() - began)


async def stream_rate(total: int, readers: int) -> float:
    streams = [anyio.create_memory_object_stream[Any](float("inf")) for _ in range(readers)]

    async def reader(stream: MemoryObjectReceiveStream[Any]) -> None:
        async with stream:
            async for _ in stream:
                pass

    async with anyio.create_task_group() as group:
        for _, receive in streams:
            group.start_soon(reader, receive)
        await anyio.lowlevel.checkpoint()
        began, item = time.thread_time(), object()
        for number in range(total):
            for send, _ in streams:
                send.send_nowait(item)
            if number % 64 == 0:
                await anyio.lowlevel.checkpoint()
        for send, _ in streams:
            send.close()
    return total / (time.thread_time() - began)


async def test_ten_readers_get_at_least_five_times_the_events_of_memory_streams() -> None:
    ours, theirs = list[float](), list[float]()
    for _ in range(5):
        ours.append(await bus_rate(10_000, 10))
        theirs.append(await stream_rate(1_500, 10))
    assert max(ours) >= 5 * max(theirs), (ours, theirs)
