"""``python -m benchmarks [names...] [--quick] [--out FILE]``: JSON lines, then the same as tables."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks import bus, chat, harness, heartbeat, record, recorder, report, sync
from benchmarks.harness import Plan, Result

BENCHMARKS: dict[str, Callable[[Plan], Iterator[Result]]] = {
    record.ONE: record.one_at_a_time,
    record.BURST: record.at_once,
    heartbeat.HEARTBEAT: heartbeat.heartbeat,
    bus.BUS: bus.bus,
    recorder.RECORDER: recorder.recorder,
    chat.SEND: chat.send,
    chat.NOTES: chat.among_notes,
    chat.LIST: chat.listing,
    sync.MERGE: sync.merge,
    sync.PULL: sync.pull,
    sync.PUSH: sync.push,
}
_COUNTS = (
    "samples",
    "git_samples",
    "callers",
    "rounds",
    "beats",
    "events",
    "encrypted",
    "merged",
    "pulled",
    "sync_samples",
)


def main(arguments: list[str]) -> int:
    parser = _parser()
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    lines: list[str] = []
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=chosen.folder) as folder:
        plan = _plan(chosen, Path(folder).resolve())
        machine = harness.describe_machine(plan.folder)
        for name in chosen.names or BENCHMARKS:
            for result in BENCHMARKS[name](plan):
                lines.append(harness.to_line(result, machine))
                print(lines[-1], flush=True)
    if chosen.out:
        chosen.out.write_text("".join(line + "\n" for line in lines))
    results = report.read("\n".join(lines))
    if chosen.page:
        report.write_into(chosen.page, results)
    print("\n" + report.render(results))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(BENCHMARKS)}; all if none is named")
    parser.add_argument("--quick", action="store_true", help="few samples, less than a minute")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON lines there as well")
    parser.add_argument("--page", type=Path, help="bring the tables of this page up to date")
    # Not the system's temporary folder, which may lie in memory, where fsync costs nothing.
    parser.add_argument("--folder", type=Path, default=Path("build"), help="scratch space (default: build)")
    parser.add_argument("--present", type=int, nargs="+", metavar="N", help="numbers of runs present")
    parser.add_argument("--said", type=int, nargs="+", metavar="N", help="numbers of messages present")
    parser.add_argument("--noted", type=int, nargs="+", metavar="N", help="numbers of runs with a note")
    parser.add_argument("--tags", type=int, nargs="+", metavar="N", help="numbers of tags for a push")
    for name in _COUNTS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    return parser


def _plan(chosen: argparse.Namespace, folder: Path) -> Plan:
    plan = harness.quick(folder) if chosen.quick else Plan(folder)
    counts = {name: getattr(chosen, name) for name in _COUNTS if getattr(chosen, name) is not None}
    for name in ("present", "said", "noted", "tags"):
        if getattr(chosen, name):
            counts[name] = tuple(getattr(chosen, name))
    return replace(plan, **counts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
