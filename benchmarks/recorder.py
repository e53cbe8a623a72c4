"""Recording the bus: events a second until all are in the files, and what it costs the publisher's loop.

Beside the library what one would write oneself: a callback that appends a line of JSON, with
and without a flush for each, and a queue with a thread behind it. All get the same events.
Then a minute's task in a few seconds: 50 000 events/s into three recordings.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import IO

import anyio
import anyio.lowlevel

from benchmarks.harness import Benchmark, Plan, Result, quantile
from benchmarks.tables import Line, markdown, ratio
from scp_git.broadcast import Bus, Event
from scp_git.models import SessionTrace
from scp_git.trace.recorder import Recorder
from scp_git.trace.recording import Recording

RECORDER = "recorder"
RECORDINGS = (1, 3)
RATE = 55_000
"""Somewhat more than the goal, as a publisher that keeps a pace never quite reaches it."""
_BURST = 64
"""So many events are published before the loop gets its turn."""
_TICK_S = 0.001
_REFERENCE = "json and flush"

Finish = Callable[[], object]
"""Returns once everything that was published is in the files."""
Peer = Callable[[Bus, list[Path]], AbstractContextManager[Finish]]


# ---------------------------------------------------------------- the peers


@contextmanager
def _ours(source: Bus, paths: list[Path]) -> Iterator[Finish]:
    recorder = Recorder(source)
    recordings = [Recording(SessionTrace(), path, path, ()) for path in paths]
    for recording in recordings:
        recorder.start(recording)

    def finish() -> None:
        for recording in recordings:
            recorder.finish(recording)

    yield finish
    for recording in recordings:
        recorder.discard(recording.trace_id)


def _written(flush: bool) -> Peer:
    @contextmanager
    def written(source: Bus, paths: list[Path]) -> Iterator[Finish]:
        with ExitStack() as stack:
            files = [stack.enter_context(_file(path)) for path in paths]
            for file in files:

                def write(event: Event, file: IO[str] = file) -> None:
                    file.write(_line(event))
                    if flush:
                        file.flush()

                stack.enter_context(source.attach(write))
            yield lambda: [file.flush() for file in files]

    return written


@contextmanager
def _queued(source: Bus, paths: list[Path]) -> Iterator[Finish]:
    with ExitStack() as stack:
        queues = []
        for path in paths:
            waiting: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
            file = stack.enter_context(_file(path))
            thread = threading.Thread(target=_drain, args=(waiting, file), daemon=True)
            thread.start()
            stack.enter_context(source.attach(waiting.put))
            queues.append((waiting, thread))

        def finish() -> None:
            for waiting, thread in queues:
                waiting.put(None)
                thread.join()

        yield finish


def _drain(waiting: queue.SimpleQueue[Event | None], file: IO[str]) -> None:
    while (event := waiting.get()) is not None:
        file.write(_line(event))
        if waiting.empty():
            file.flush()
    file.flush()


@contextmanager
def _nobody(source: Bus, paths: list[Path]) -> Iterator[Finish]:
    yield lambda: None


def _file(path: Path) -> IO[str]:
    path.mkdir(parents=True)
    return (path / "events.jsonl").open("w")


def _line(event: Event) -> str:
    fields = {"ts": event.ts, "type": event.type, "key": event.key, "data": dict(event.data)}
    return json.dumps({**fields, "duration_s": event.duration_s}, separators=(",", ":")) + "\n"


PEERS: dict[str, Peer] = {
    "scp_git": _ours,
    "json": _written(flush=False),
    _REFERENCE: _written(flush=True),
    "queue and thread": _queued,
    "nobody records": _nobody,
}


# ---------------------------------------------------------------- measuring


def recorder(plan: Plan) -> Iterator[Result]:
    """Every peer as fast as it goes, and the library at a steady rate."""
    for recordings in RECORDINGS:
        rates: dict[str, list[float]] = {name: [] for name in PEERS}
        bursts: dict[str, list[float]] = {name: [] for name in PEERS}
        for turn in range(plan.rounds):
            for name in PEERS:  # in turn, as the machine may change its pace meanwhile
                folder = plan.folder / f"{name}-{recordings}-{turn}"
                rate, took = anyio.run(_rate, PEERS[name], folder, recordings, plan.events)
                rates[name].append(rate)
                bursts[name] += took
        yield from _results(recordings, rates, bursts)
    yield anyio.run(_steady, plan)


async def _rate(peer: Peer, folder: Path, recordings: int, events: int) -> tuple[float, list[float]]:
    """Events a second until all are in all files, and the seconds that each burst of publishing took."""
    source, bursts = Bus(), []
    with peer(source, [folder / str(number) for number in range(recordings)]) as finish:
        gc.collect()
        start = perf_counter()
        for first in range(0, events, _BURST):
            began = perf_counter()
            for number in range(first, min(first + _BURST, events)):
                _publish(source, number)
            bursts.append(perf_counter() - began)
            await anyio.lowlevel.checkpoint()
        finish()
        return events / (perf_counter() - start), bursts


def _publish(source: Bus, number: int) -> None:
    data = {"target": f"pod/{number}", "status": "ok", "n": number, "text": "some text here"}
    source.publish("load:apply:done", key="x", data=data, duration_s=0.012)


def _results(
    recordings: int, rates: dict[str, list[float]], bursts: dict[str, list[float]]
) -> Iterator[Result]:
    per_s = {name: statistics.median(found) for name, found in rates.items()}
    for name, rate in per_s.items():
        yield Result(
            name=RECORDER,
            peer=name,
            n=len(bursts[name]),
            present=recordings,
            durability="none",
            median_ms=round(statistics.median(bursts[name]) * 1e3, 4),
            p95_ms=round(quantile(bursts[name], 0.95) * 1e3, 4),
            per_s=round(rate, 1),
            ratios={_REFERENCE.replace(" ", "_"): round(rate / per_s[_REFERENCE], 2)},
        )


# ---------------------------------------------------------------- a steady rate


async def _steady(plan: Plan) -> Result:
    """50 000 events/s into three recordings: the gaps between the publisher's turns, and the memory."""
    total, source, gaps = RATE * plan.beats if plan.events >= RATE else plan.events, Bus(), list[float]()
    before = peak = _memory_mb()
    paths = [plan.folder / f"steady-{number}" for number in range(3)]
    with _ours(source, paths) as finish:
        gc.collect()
        gc.freeze()
        start = last = perf_counter()
        published = 0
        while published < total:
            due = min(int((perf_counter() - start) * RATE), total, published + RATE // 100)
            for number in range(published, due):
                _publish(source, number)
            published = max(due, published)
            await anyio.sleep(_TICK_S)
            now = perf_counter()
            gaps.append(now - last)
            last = now
            if len(gaps) % 50 == 0:
                peak = max(peak, _memory_mb())
        took = perf_counter() - start
        gc.unfreeze()
        finish()
        kept = [_count(path) for path in paths]
    result = Result(
        name=RECORDER,
        peer=f"scp_git, {RATE} a second",
        n=len(gaps),
        present=3,
        durability="none",
        median_ms=round(statistics.median(gaps) * 1e3, 3),
        p95_ms=round(quantile(gaps, 0.95) * 1e3, 3),
        per_s=round(total / took, 1),
    )
    result.extra = {
        "worst_ms": round(max(gaps) * 1e3, 3),
        "peak_mb": round(peak, 1),
        "more_mb": round(peak - before, 1),
        "lost": float(max(total - count for count in kept)),
    }
    return result


def _count(path: Path) -> int:
    """The events in the spool of a recording."""
    [spool] = (path / "scp/recordings").iterdir()
    return spool.read_bytes().count(b'\n{"seq":')


def _memory_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def _table(lines: Sequence[Line]) -> str:
    head = [
        "recordings",
        "peer",
        "events/s",
        "x json and flush",
        "median ms",
        "p95 ms",
        "worst ms",
        "more MB",
        "lost",
    ]
    rows = [
        [
            str(line["present"]),
            line["peer"],
            f"{line['per_s']:.0f}",
            ratio(line.get("ratio_json_and_flush")),
            f"{line['median_ms']:.3f}",
            f"{line['p95_ms']:.3f}",
            f"{line['worst_ms']:.1f}" if "worst_ms" in line else "",
            f"{line['more_mb']:.0f}" if "more_mb" in line else "",
            f"{line['lost']:.0f}" if "lost" in line else "",
        ]
        for line in lines
    ]
    return markdown(head, rows)


BENCHMARKS = (
    Benchmark(
        RECORDER,
        "Events until they are in the files of all recordings; what 64 of them take of the loop",
        recorder,
        _table,
    ),
)
