"""Turns JSON lines into Markdown tables, and keeps the ones in docs/performance.md up to date.

python -m benchmarks --out results.jsonl
python -m benchmarks.report results.jsonl docs/performance.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import board, goals, plots
from benchmarks.tables import Line, plain_table

START = "<!-- benchmarks: written by `make bench` -->"
END = "<!-- /benchmarks -->"
_EMPTY_PAGE = f"# Performance\n\n{START}\n{END}\n"


def read(text: str) -> list[Line]:
    """The results among the lines of ``text``; anything that is no JSON object is passed over."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def render(lines: Sequence[Line]) -> str:
    """The goals, all tables and a sentence about the machine, as Markdown that is readable as it stands."""
    parts = [goals.table(lines)] if lines else []
    for name, benchmark in board.ALL.items():
        chosen = [line for line in lines if line["name"] == name]
        if chosen:
            parts += [f"**{benchmark.title}**", (benchmark.table or plain_table)(chosen)]
            if benchmark.curve and plots.has_curve(chosen):
                parts.append(f"![{benchmark.curve}](plots/{name}.svg)")
    if lines:
        parts.append(_machine(lines[-1]["versions"]))
    return "\n\n".join(parts)


def write_into(page: Path, lines: Sequence[Line]) -> None:
    """Replace what stands between the markers of ``page``, and the plots beside it.

    Raises ``ValueError`` where there are no markers.
    """
    text = page.read_text() if page.exists() else _EMPTY_PAGE
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{page} has no lines {START} and {END}")
    page.write_text(f"{before}{START}\n\n{render(lines)}\n\n{END}{after}")
    for name, benchmark in board.ALL.items():
        chosen = [line for line in lines if line["name"] == name]
        if benchmark.curve and plots.has_curve(chosen):
            (page.parent / "plots").mkdir(exist_ok=True)
            (page.parent / "plots" / f"{name}.svg").write_text(plots.curves(benchmark.curve, chosen))


def _machine(versions: dict[str, str]) -> str:
    return "Measured with " + "; ".join(f"{name}: {value}" for name, value in versions.items()) + "."


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, help="a file of JSON lines")
    parser.add_argument("page", type=Path, nargs="?", help="the page to bring up to date; without it, print")
    chosen = parser.parse_args()
    lines = read(chosen.results.read_text())
    if chosen.page is None:
        print(render(lines))
    else:
        write_into(chosen.page, lines)


if __name__ == "__main__":
    main()
