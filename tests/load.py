"""A program that publishes at a steady rate while it is recorded, and says how it went.

``load.py ROOT RATE SECONDS RECORDERS [BACKEND]`` prints ``P <published> <monotonic time>`` after
each tick, then one JSON object. ``check`` as sixth argument looks at the spools afterwards,
``save`` stops, saves and reads the traces.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import anyio

from scp_git import Settings, Store, bus
from scp_git.trace.recorder import recorder

_TICK_S = 0.001


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


class Waiting:
    """How long the threads of a process were ready to run, and no processor was free.

    That is the machine's doing: a holder of the GIL that is kept waiting keeps the loop waiting.
    """

    def __init__(self, pid: int | str = "self") -> None:
        tasks = Path(f"/proc/{pid}/task")
        self.files = [os.open(task / "schedstat", os.O_RDONLY) for task in tasks.iterdir()]
        self.waited: dict[int, int] = {}

    def seconds(self) -> float:
        for file in self.files:
            try:
                self.waited[file] = int(os.pread(file, 80, 0).split()[1])
            except ProcessLookupError:
                pass  # the thread has ended, and waits no more
        return sum(self.waited.values()) / 1e9

    def close(self) -> None:
        for file in self.files:
            os.close(file)


class Load:
    def __init__(self, root: str, rate: int, seconds: float, recorders: int) -> None:
        self.store = Store.open(root, Settings(durability="os"))
        self.rate, self.total = rate, int(rate * seconds)
        self.ids = [self.store.start_recording(name=f"r{n}", types=["load:**"]) for n in range(recorders)]
        self.published = 0
        self.gaps: list[float] = []
        self.own_gaps: list[float] = []
        self.waiting = Waiting()
        self.peak = rss_mb()

    async def run(self) -> None:
        # What was loaded before is no concern of the collector's: this is about recording.
        gc.collect()
        gc.freeze()
        async with anyio.create_task_group() as group:
            group.start_soon(self.beat)
            await self.publish()
            group.cancel_scope.cancel()

    async def publish(self) -> None:
        start, waited = time.perf_counter(), self.waiting.seconds()
        while self.published < self.total:
            due = min(
                int((time.perf_counter() - start) * self.rate), self.total, self.published + self.rate // 100
            )
            for number in range(self.published, due):
                bus.publish(
                    "load:apply:done",
                    key="x",
                    data={"target": f"pod/{number}", "status": "ok", "n": number, "text": "some text here"},
                    duration_s=0.012,
                )
            if due > self.published:
                self.published = due
                os.write(1, b"P %d %.6f\n" % (due, time.monotonic()))
            await anyio.sleep(_TICK_S)
        self.took = time.perf_counter() - start
        self.own_took = max(self.took - (self.waiting.seconds() - waited), self.total / self.rate)

    async def beat(self) -> None:
        # Asking how long was waited gives the GIL away once for each thread, so it is no part of a gap.
        waited, last = self.waiting.seconds(), time.perf_counter()
        while True:
            await anyio.sleep(_TICK_S)
            gap = time.perf_counter() - last
            total = self.waiting.seconds()
            self.gaps.append(gap)
            self.own_gaps.append(gap - (total - waited))
            waited, last = total, time.perf_counter()
            if len(self.gaps) % 50 == 0:
                self.peak = max(self.peak, rss_mb())

    def result(self) -> dict[str, Any]:
        gaps = sorted(self.gaps)
        return {
            "published": self.published,
            "rate": self.published / self.took,
            "own_rate": self.published / self.own_took,
            "peak_mb": self.peak,
            "worst_ms": gaps[-1] * 1e3,
            "own_worst_ms": max(self.own_gaps) * 1e3,
            "p99_ms": gaps[len(gaps) * 99 // 100] * 1e3,
            "cpu_s": time.process_time(),
        }

    def check(self, trace_id: str) -> dict[str, Any]:
        """What is in the spool of a recording that is ended without being returned."""
        path = recorder.stop(trace_id).path
        data = path.read_bytes()
        return {
            "seq": [int(n) for n in re.findall(rb'^{"seq":(\d+),', data, re.MULTILINE)] == self.numbers(1),
            "in_order": [int(n) for n in re.findall(rb'"n":(\d+)', data)] == self.numbers(0),
        }

    def numbers(self, first: int) -> list[int]:
        return list(range(first, first + self.published))

    def finish(self, trace_id: str) -> dict[str, Any]:
        """The same of a recording that is returned, saved and read again."""
        begun, before = time.perf_counter(), rss_mb()
        trace = self.store.stop_recording(trace_id)
        row: dict[str, Any] = {"stop_s": time.perf_counter() - begun, "count": trace.event_count}
        row["seq"] = [event.seq for event in trace.events] == self.numbers(1)[: len(trace.events)]
        row["in_order"] = [event.detail["n"] for event in trace.events] == self.numbers(0)[
            : len(trace.events)
        ]
        row["event_bytes"] = (rss_mb() - before) * 1e6 / len(trace.events)
        begun = time.perf_counter()
        self.store.save_trace(trace)
        row["save_s"] = time.perf_counter() - begun
        del trace
        # As they lie in the view; nine million models would take longer than all the rest.
        folder = self.store.root / ".scp-ledger/ledger/traces" / trace_id
        parts = sorted(
            folder.glob("events*.jsonl"), key=lambda path: (path.name != "events.jsonl", path.name)
        )
        found = (int(n) for path in parts for n in re.findall(rb'"n":(\d+)', path.read_bytes()))
        row["stored"] = sum(number == n for n, number in enumerate(found))
        return row


def main() -> None:
    root, rate, seconds, recorders, backend, *rest = sys.argv[1:]
    load = Load(root, int(rate), float(seconds), int(recorders))
    anyio.run(load.run, backend=backend)
    result = load.result()
    if rest == ["check"]:
        result["traces"] = [load.check(trace_id) for trace_id in load.ids]
    elif rest == ["save"]:
        result["traces"] = [load.finish(trace_id) for trace_id in load.ids]
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
