"""The event bus beside others: events to 1, 10 and 100 subscribers in one process, and the latency.

One publisher, every subscriber gets every event; what a subscriber does is count. Who can hand
over several events at a time is measured both ways. Peers that are not installed are left out
by name: ``pip install "scp-git[bench]"``.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import anyio
import anyio.lowlevel
from anyio.streams.memory import MemoryObjectReceiveStream

from benchmarks.harness import Benchmark, Plan, Result, quantile
from benchmarks.tables import Line, markdown, ratio
from scp_git.broadcast import Bus

BUS = "bus"
SUBSCRIBERS = (1, 10, 100)
_BURST = 64
"""So many events are published before the loop gets its turn, where publishing does not wait."""
_REFERENCE = "memory stream"

EVENT = {"n": 1}
Publish = Callable[[], Any]
"""Publishes ``EVENT`` to all; of some peers it has to be awaited."""
Heard = Callable[[int], None]
"""Told by a subscriber how many events it got."""
Peer = Callable[[int, Heard], AbstractAsyncContextManager[Publish]]


# ---------------------------------------------------------------- the peers


@asynccontextmanager
async def _ours(subscribers: int, heard: Heard) -> AsyncIterator[Publish]:
    some = Bus(capacity=4096)

    async def reader(started: anyio.Event) -> None:
        async with some.subscribe() as events:
            started.set()
            async for batch in events.batches():
                heard(len(batch))

    async with _readers(reader, subscribers):
        yield partial(some.publish, "tick", data=EVENT)


@asynccontextmanager
async def _ours_one_by_one(subscribers: int, heard: Heard) -> AsyncIterator[Publish]:
    some = Bus(capacity=4096)

    async def reader(started: anyio.Event) -> None:
        async with some.subscribe() as events:
            started.set()
            async for _ in events:
                heard(1)

    async with _readers(reader, subscribers):
        yield partial(some.publish, "tick", data=EVENT)


@asynccontextmanager
async def _memory_stream(subscribers: int, heard: Heard) -> AsyncIterator[Publish]:
    streams = [anyio.create_memory_object_stream[dict[str, int]](math.inf) for _ in range(subscribers)]
    receivers = [receive for _, receive in streams]

    async def reader(started: anyio.Event) -> None:
        receive: MemoryObjectReceiveStream[dict[str, int]] = receivers.pop()
        started.set()
        async for _ in receive:
            heard(1)

    sends = [send.send_nowait for send, _ in streams]

    def publish() -> None:
        for send in sends:
            send(EVENT)

    async with _readers(reader, subscribers):
        yield publish
    for send, receive in streams:
        send.close()
        receive.close()


@asynccontextmanager
async def _memory_stream_drained(subscribers: int, heard: Heard) -> AsyncIterator[Publish]:
    streams = [anyio.create_memory_object_stream[dict[str, int]](math.inf) for _ in range(subscribers)]
    receivers = [receive for _, receive in streams]

    async def reader(started: anyio.Event) -> None:
        receive: MemoryObjectReceiveStream[dict[str, int]] = receivers.pop()
        started.set()
        async for _ in receive:
            count = 1
            try:
                while True:
                    receive.receive_nowait()
                    count += 1
            except anyio.WouldBlock:
                heard(count)

    sends = [send.send_nowait for send, _ in streams]

    def publish() -> None:
        for send in sends:
            send(EVENT)

    async with _readers(reader, subscribers):
        yield publish
    for send, receive in streams:
        send.close()
        receive.close()


@asynccontextmanager
async def _broadcaster(subscribers: int, heard: Heard) -> AsyncIterator[Publish]:
    from broadcaster import Broadcast

    async with Broadcast("memory://") as broadcast:

        async def reader(started: anyio.Event) -> None:
            async with broadcast.subscribe(channel="tick") as events:
                started.set()
                async for _ in events:  # type: ignore[union-attr]
                    heard(1)

        async with _readers(reader, subscribers):
            yield partial(broadcast.publish, channel="tick", message=EVENT)


@asynccontextmanager
async def _pyee(subscribers: int, heard: Heard) -> AsyncIterator[Publish]:
    from pyee.asyncio import AsyncIOEventEmitter

    emitter = AsyncIOEventEmitter()

    def add() -> None:
        async def listener(event: dict[str, int]) -> None:
            heard(1)

        emitter.on("tick", listener)

    for _ in range(subscribers):
        add()
    yield partial(emitter.emit, "tick", EVENT)


@asynccontextmanager
async def _blinker(subscribers: int, heard: Heard) -> AsyncIterator[Publish]:
    from blinker import Signal

    signal, receivers = Signal(), list[Any]()

    def add() -> None:
        async def receiver(sender: object, **event: int) -> None:
            heard(1)

        receivers.append(receiver)  # the signal holds it weakly
        signal.connect(receiver)

    for _ in range(subscribers):
        add()

    yield partial(signal.send_async, None, n=1)


@asynccontextmanager
async def _readers(
    reader: Callable[[anyio.Event], Coroutine[Any, Any, None]], count: int
) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        for _ in range(count):
            started = anyio.Event()
            group.start_soon(reader, started)
            await started.wait()
        yield
        group.cancel_scope.cancel()


PEERS: dict[str, Peer] = {
    "scp_git, batches": _ours,
    "scp_git, one by one": _ours_one_by_one,
    _REFERENCE: _memory_stream,
    "memory stream, drained": _memory_stream_drained,
    "broadcaster": _broadcaster,
    "pyee": _pyee,
    "blinker": _blinker,
}
_NEEDS = {"broadcaster": "broadcaster", "pyee": "pyee", "blinker": "blinker"}
_AWAITED = ("broadcaster", "blinker")
_TRIO = ("scp_git, batches", "scp_git, one by one", _REFERENCE, "memory stream, drained")


# ---------------------------------------------------------------- measuring


def bus(plan: Plan) -> Iterator[Result]:
    """Events a second and latency of every peer, on asyncio; of those that know it, on trio as well."""
    for backend, names in (("asyncio", tuple(PEERS)), ("trio", _TRIO)):
        here = [name for name in names if find_spec(_NEEDS.get(name, "anyio"))]
        for name in sorted(set(names) - set(here)):
            print(f"left out, as it is not installed: {name}", file=sys.stderr)
        for subscribers in SUBSCRIBERS:
            rates: dict[str, list[float]] = {name: [] for name in here}
            waits: dict[str, list[float]] = {name: [] for name in here}
            for _ in range(plan.rounds):
                for name in here:  # in turn, as the machine may change its pace meanwhile
                    events = max(plan.events // _share(name, subscribers), _BURST)
                    rates[name].append(anyio.run(_rate, name, subscribers, events, backend=backend))
                    waits[name] += anyio.run(_waits, name, subscribers, plan, backend=backend)
            yield from _results(backend, subscribers, rates, waits)


def _share(name: str, subscribers: int) -> int:
    """The slow ones do a tenth of the work, or a round would take minutes."""
    return subscribers * (1 if name.startswith("scp_git") else 10) // (10 if subscribers > 1 else 1) or 1


async def _rate(name: str, subscribers: int, events: int) -> float:
    """Published events a second, from the first one until every subscriber has got the last."""
    got, wanted, done, awaited = 0, subscribers * events, anyio.Event(), name in _AWAITED

    def heard(count: int) -> None:
        nonlocal got
        got += count
        if got == wanted:
            done.set()

    async with PEERS[name](subscribers, heard) as publish:
        await anyio.lowlevel.checkpoint()
        gc.collect()
        start = perf_counter()
        for number in range(events):
            if awaited:
                await publish()
            else:
                publish()
            if number % _BURST == 0:
                await anyio.lowlevel.checkpoint()
        with anyio.fail_after(120):
            await done.wait()
        return events / (perf_counter() - start)


async def _waits(name: str, subscribers: int, plan: Plan) -> list[float]:
    """Seconds from publishing a lone event until the last subscriber has got it."""
    waits, left, done, awaited = list[float](), 0, anyio.Event(), name in _AWAITED

    def heard(count: int) -> None:
        nonlocal left
        left -= count
        if left == 0:
            done.set()

    async with PEERS[name](subscribers, heard) as publish:
        for _ in range(plan.samples):
            left, done = subscribers, anyio.Event()
            await anyio.sleep(0.0005)
            start = perf_counter()
            if awaited:
                await publish()
            else:
                publish()
            await done.wait()
            waits.append(perf_counter() - start)
    return waits


def _results(
    backend: str, subscribers: int, rates: dict[str, list[float]], waits: dict[str, list[float]]
) -> Iterator[Result]:
    per_s = {name: statistics.median(found) for name, found in rates.items()}
    for name, rate in per_s.items():
        yield Result(
            name=BUS,
            peer=f"{name} ({backend})",
            n=len(waits[name]),
            present=subscribers,
            durability="none",
            median_ms=round(statistics.median(waits[name]) * 1e3, 4),
            p95_ms=round(quantile(waits[name], 0.95) * 1e3, 4),
            per_s=round(rate, 1),
            ratios={_REFERENCE.replace(" ", "_"): round(rate / per_s[_REFERENCE], 2)},
            extra={"p99_ms": round(quantile(waits[name], 0.99) * 1e3, 4)},
        )


def _table(lines: Sequence[Line]) -> str:
    head = ["subscribers", "peer", "events/s", "x memory stream", "latency p50 ms", "p99 ms"]
    rows = [
        [
            str(line["present"]),
            line["peer"],
            f"{line['per_s']:.0f}",
            ratio(line["ratio_memory_stream"]),
            f"{line['median_ms']:.3f}",
            f"{line['p99_ms']:.3f}",
        ]
        for line in lines
    ]
    return markdown(head, rows)


BENCHMARKS = (Benchmark(BUS, "Events from one publisher to all subscribers, in one process", bus, _table),)
