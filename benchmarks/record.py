"""``record_run``: one at a time, and many callers at once.

The peers take turns, one run each, and before each turn the file system's journal
is flushed: what a peer leaves behind when its write is not durable would otherwise
be paid for by the next fsync, which is somebody else's.
"""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

import anyio

import scp_git
from benchmarks.harness import Benchmark, Plan, Result, flush_journal, summarise
from benchmarks.peers import Git, Library, Peer, Sqlite, has_git
from benchmarks.repositories import Shelf, sample_run
from benchmarks.tables import Line, markdown, ratio, thousands
from scp_git import Settings

ONE = "record_run"
BURST = "record_run_at_once"
_PEERS = {
    "scp_git": "scp_git",
    "git": "git add, commit, tag",
    "git_fsync": "the same, `core.fsync=all`",
    "sqlite": "SQLite WAL, `synchronous=FULL`",
}
_DURABLE = {"full": "yes", "os": "no", "none": "no"}


def one_at_a_time(plan: Plan) -> Iterator[Result]:
    """A durable run's cost as a caller meets it, with 0 to 10 000 runs present."""
    for present in plan.present:
        yield from anyio.run(_one, plan, present)


def at_once(plan: Plan) -> Iterator[Result]:
    """Runs per second when ``plan.callers`` tasks each record one run at the same moment."""
    for present in plan.present:
        yield from anyio.run(_burst, plan, present)


# ---- one at a time


async def _one(plan: Plan, present: int) -> list[Result]:
    async with _peers(Shelf(plan.folder), present) as peers:
        seconds: dict[tuple[str, str], list[float]] = {_key(peer): [] for peer in peers}
        for peer in peers:
            await _timed(peer, -1, plan.folder)
        for number in range(plan.samples):
            for peer in peers:
                if _takes_part(peer, number, plan):
                    seconds[_key(peer)].append(await _timed(peer, number, plan.folder))
        results = [summarise(ONE, p.name, present, p.durability, seconds[_key(p)]) for p in peers]
    return _compared(results, lambda result: 1 / result.median_ms)


async def _timed(peer: Peer, number: int, folder: Path) -> float:
    run, events = sample_run(number)
    flush_journal(folder)
    start = perf_counter()
    await peer.record(run, events)
    return perf_counter() - start


def _takes_part(peer: Peer, number: int, plan: Plan) -> bool:
    """git's turns are spread evenly over everybody's."""
    if not isinstance(peer, Git):
        return True
    return number % max(1, plan.samples // plan.git_samples) == 0


# ---- many at once


async def _burst(plan: Plan, present: int) -> list[Result]:
    waits: dict[tuple[str, str], list[float]] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    # A copy of 10 000 runs takes its time, and growing by a tenth is no other situation.
    rounds_per_copy = plan.rounds if present > 5 * plan.callers else 1
    for _ in range(plan.rounds // rounds_per_copy):
        async with _peers(Shelf(plan.folder), present) as peers:
            for peer in peers * rounds_per_copy:
                await _timed(peer, -1, plan.folder)
                waited, rate = await _burst_round(plan, peer)
                waits.setdefault(_key(peer), []).extend(waited)
                rates.setdefault(_key(peer), []).append(rate)
    results = []
    for (name, durability), rate_of_rounds in rates.items():
        rate = statistics.median(rate_of_rounds)
        results.append(summarise(BURST, name, present, durability, waits[name, durability], rate))
        results[-1].extra["callers"] = plan.callers if name == Library.name else 1
    return _compared(results, lambda result: result.per_s)


async def _burst_round(plan: Plan, peer: Peer) -> tuple[list[float], float]:
    """The wait of each caller, and runs per second over all of them.

    git and SQLite admit one writer at a time, so theirs come one after the other;
    git's rate is taken from a few.
    """
    count = plan.git_samples if isinstance(peer, Git) else plan.callers
    jobs = [sample_run(number) for number in range(count)]
    waits: list[float] = []

    async def call(number: int) -> None:
        start = perf_counter()
        await peer.record(*jobs[number])
        waits.append(perf_counter() - start)

    flush_journal(plan.folder)
    start = perf_counter()
    if isinstance(peer, Library):
        async with anyio.create_task_group() as callers:
            for number in range(count):
                callers.start_soon(call, number)
    else:
        for number in range(count):
            await call(number)
    return waits, count / (perf_counter() - start)


# ---- the peers


@asynccontextmanager
async def _peers(shelf: Shelf, present: int) -> AsyncIterator[list[Peer]]:
    """Everybody, each with a repository of its own that holds ``present`` runs."""
    async with AsyncExitStack() as stack:
        peers: list[Peer] = []
        for settings in (Settings(durability="full"), Settings(durability="os")):
            root = await anyio.to_thread.run_sync(shelf.copy, present)
            store = await stack.enter_async_context(scp_git.open_store(root, settings))
            await store.ensure_ledger()
            peers.append(Library(store, settings.durability))
        if has_git():
            root = await anyio.to_thread.run_sync(partial(shelf.copy, present, archive=False))
            peers += [Git(root, fsync=False), Git(root, fsync=True)]
        database = Sqlite(shelf.place() / "runs.sqlite", [sample_run(number) for number in range(present)])
        stack.callback(database.close)
        yield [*peers, database]


def _key(peer: Peer) -> tuple[str, str]:
    return peer.name, peer.durability


def _compared(results: Sequence[Result], speed: Callable[[Result], float]) -> list[Result]:
    """Add to the library's results how many times faster than each other peer they are."""
    others = [result for result in results if result.peer != Library.name]
    for result in results:
        if result.peer == Library.name:
            result.ratios = {other.peer: round(speed(result) / speed(other), 2) for other in others}
    return list(results)


# ---- shown


def _table(lines: Sequence[Line]) -> str:
    head = ["runs present", "peer", "durable", "callers", "median ms", "p95 ms", "runs/s"]
    against = [peer for peer in ("git", "git_fsync", "sqlite") if any(f"ratio_{peer}" in x for x in lines)]
    head += [f"x {peer.replace('_', ' ')}" for peer in against]
    rows = [
        [
            thousands(line["present"]),
            str(_PEERS.get(line["peer"], line["peer"])),
            _DURABLE[line["durability"]],
            str(line.get("callers", 1)),
            f"{line['median_ms']:.2f}",
            f"{line['p95_ms']:.2f}",
            f"{line['per_s']:.0f}",
            *(ratio(line.get(f"ratio_{peer}")) for peer in against),
        ]
        for line in lines
    ]
    return markdown(head, rows)


BENCHMARKS = (
    Benchmark(ONE, "One at a time", one_at_a_time, _table, curve="Recording one run, over the runs present"),
    Benchmark(BURST, "Many callers at once", at_once, _table),
)
