"""``python -m benchmarks [names...] [--quick] [--out FILE]``: JSON lines, then the same as tables."""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from benchmarks import harness, report
from benchmarks.board import ALL
from benchmarks.harness import Plan

_COUNTS = [each for each in fields(Plan) if each.name != "folder"]


def main(arguments: list[str]) -> int:
    parser = _parser()
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.names) - set(ALL)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    lines: list[str] = []
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=chosen.folder) as folder:
        plan = _plan(chosen, Path(folder).resolve())
        machine = harness.describe_machine(plan.folder)
        failed = []
        for name in chosen.names or ALL:
            try:
                for result in ALL[name].measure(plan):
                    lines.append(harness.to_line(result, machine))
                    print(lines[-1], flush=True)
            except Exception:  # the others' figures are not lost with it
                traceback.print_exc()
                failed.append(name)
    if chosen.out:
        chosen.out.write_text("".join(line + "\n" for line in lines))
    results = report.read("\n".join(lines))
    if chosen.page:
        report.write_into(chosen.page, results)
    print("\n" + report.render(results))
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(ALL)}; all if none is named")
    parser.add_argument("--quick", action="store_true", help="few samples, less than a minute")
    parser.add_argument("--full", action="store_true", help="100 to 100 000 runs, half an hour")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON lines there as well")
    parser.add_argument("--page", type=Path, help="bring the tables of this page up to date")
    # Not the system's temporary folder, which may lie in memory, where fsync costs nothing.
    parser.add_argument("--folder", type=Path, default=Path("build"), help="scratch space (default: build)")
    for each in _COUNTS:
        several = "+" if each.type.startswith("tuple") else None
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=int, nargs=several, metavar="N")
    return parser


def _plan(chosen: argparse.Namespace, folder: Path) -> Plan:
    plan = harness.quick(folder) if chosen.quick else harness.full(folder) if chosen.full else Plan(folder)
    given = {each.name: getattr(chosen, each.name) for each in _COUNTS}
    counts: dict[str, Any] = {
        name: tuple(n) if isinstance(n, list) else n for name, n in given.items() if n is not None
    }
    return replace(plan, **counts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
