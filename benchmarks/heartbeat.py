"""How long the event loop is away while many callers record.

A ticker sleeps 1 ms at a time on the same loop; a gap is the time between two of
its wake-ups. Beside it the same number of callers that await a no-op in a
thread: what they cost is the price of that many tasks, not of recording.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Awaitable, Callable, Iterator, Sequence
from time import perf_counter

import anyio
from anyio import CapacityLimiter, to_thread

import scp_git
from benchmarks.harness import Benchmark, Plan, Result, quantile
from benchmarks.repositories import Shelf, sample_run
from benchmarks.tables import Line, markdown
from scp_git import Run, RunEvent

HEARTBEAT = "heartbeat"
BACKENDS = ("asyncio", "trio")
_TICK_S = 0.001
_CALLS = 3
"""Calls of each caller, one after the other: the second and third come when the loop wakes everybody."""

Call = Callable[[int], Awaitable[None]]


def heartbeat(plan: Plan) -> Iterator[Result]:
    """Gaps of the ticker with ``plan.callers`` recording, and with as many no-ops, on both event loops."""
    for backend in BACKENDS:
        yield from anyio.run(_measure, plan, backend, backend=backend)


async def _measure(plan: Plan, backend: str) -> list[Result]:
    present = plan.present[min(1, len(plan.present) - 1)]
    root = await to_thread.run_sync(Shelf(plan.folder).copy, present)
    limiter = CapacityLimiter(1)
    jobs: list[tuple[Run, list[RunEvent]]] = []
    recording: list[list[float]] = []
    idling: list[list[float]] = []
    async with scp_git.open_store(root) as store:
        await store.record_run(*sample_run(0))

        async def record(number: int) -> None:
            await store.record_run(*jobs[number])

        async def idle(_: int) -> None:
            await to_thread.run_sync(_nothing, limiter=limiter)

        for _ in range(plan.beats):
            # Building the models is the callers' own work, and not what is measured.
            jobs[:] = [sample_run(number) for number in range(plan.callers * _CALLS)]
            idling.append(await _gaps(plan.callers, idle))
            recording.append(await _gaps(plan.callers, record))
    return _compared(
        _result(f"{backend} record_run", present, plan.callers, recording),
        _result(f"{backend} no-op", present, plan.callers, idling),
    )


async def _gaps(callers: int, call: Call) -> list[float]:
    """Every gap of the ticker, in seconds, from before the callers start until after they are done."""
    # Without this most of the gap is the collector going through models that this module prepared.
    gc.collect()
    gc.freeze()
    gaps: list[float] = []
    done = False

    async def tick() -> None:
        last = perf_counter()
        while not done:
            await anyio.sleep(_TICK_S)
            now = perf_counter()
            gaps.append(now - last)
            last = now

    async def work(number: int) -> None:
        for turn in range(_CALLS):
            await call(number * _CALLS + turn)

    async with anyio.create_task_group() as ticker:
        ticker.start_soon(tick)
        await anyio.sleep(5 * _TICK_S)
        async with anyio.create_task_group() as group:
            for number in range(callers):
                group.start_soon(work, number)
        await anyio.sleep(5 * _TICK_S)
        done = True
    gc.unfreeze()
    return gaps


def _nothing() -> None:
    return None


def _result(peer: str, present: int, callers: int, rounds: Sequence[Sequence[float]]) -> Result:
    gaps = [gap for gaps in rounds for gap in gaps]
    worst = [max(gaps) for gaps in rounds]
    spent = sum(gaps)
    result = Result(
        name=HEARTBEAT,
        peer=peer,
        n=len(gaps),
        present=present,
        durability="full" if peer.endswith("record_run") else "none",
        median_ms=_ms(statistics.median(gaps)),
        p95_ms=_ms(quantile(gaps, 0.95)),
        per_s=round(callers * _CALLS * len(rounds) / spent, 1),
    )
    # One bad moment of a shared machine decides the maximum, so rounds are compared by their median worst.
    result.extra = {
        "callers": callers,
        "p99_ms": _ms(quantile(gaps, 0.99)),
        "worst_ms": _ms(statistics.median(worst)),
        "max_ms": _ms(max(worst)),
    }
    return result


def _compared(recording: Result, idling: Result) -> list[Result]:
    recording.extra["worst_beyond_noop_ms"] = round(recording.extra["worst_ms"] - idling.extra["worst_ms"], 3)
    recording.ratios = {"noop": round(idling.extra["worst_ms"] / recording.extra["worst_ms"], 3)}
    return [recording, idling]


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


# ---- shown


def _table(lines: Sequence[Line]) -> str:
    head = [
        "loop and callers",
        "callers",
        "p99 ms",
        "worst ms (median round)",
        "max ms",
        "beyond the no-ops ms",
    ]
    rows = [
        [
            line["peer"],
            str(line["callers"]),
            f"{line['p99_ms']:.1f}",
            f"{line['worst_ms']:.1f}",
            f"{line['max_ms']:.1f}",
            f"{line['worst_beyond_noop_ms']:.1f}" if "worst_beyond_noop_ms" in line else "",
        ]
        for line in lines
    ]
    return markdown(head, rows)


BENCHMARKS = (
    Benchmark(
        HEARTBEAT,
        "Gaps of a 1 ms ticker on the event loop, callers recording beside callers awaiting a no-op",
        heartbeat,
        _table,
    ),
)
