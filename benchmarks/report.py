"""Turns JSON lines into Markdown tables, and keeps the ones in docs/performance.md up to date.

python -m benchmarks --out results.jsonl
python -m benchmarks.report results.jsonl docs/performance.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

START = "<!-- benchmarks: written by `make bench` -->"
END = "<!-- /benchmarks -->"
_EMPTY_PAGE = f"# Performance\n\n{START}\n{END}\n"

Line = dict[str, Any]

_TITLES = {
    "record_run": "One at a time",
    "record_run_at_once": "Many callers at once",
    "heartbeat": "Gaps of a 1 ms ticker on the event loop, callers recording beside callers awaiting a no-op",
    "send_message": "A message, durable, with so many messages present",
    "send_message_among_notes": "A message about one of so many runs that each have a note",
    "list_messages": "The newest messages",
    "sync_merge": "Merging two states, each with 100 runs that the other lacks",
    "sync_pull": "Pulling runs with their tags from a path into a repository that has none",
    "sync_push": "Pushing one new run, with so many runs and tags on both sides",
    "bus": "Events from one publisher to all subscribers, in one process",
    "recorder": "Events until they are in the files of all recordings; what 64 of them take of the loop",
}
_PEERS = {
    "scp_git": "scp_git",
    "git": "git add, commit, tag",
    "git_fsync": "the same, `core.fsync=all`",
    "sqlite": "SQLite WAL, `synchronous=FULL`",
}
_DURABLE = {"full": "yes", "os": "no", "none": "no"}


def read(text: str) -> list[Line]:
    """The results among the lines of ``text``; anything that is no JSON object is passed over."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def render(lines: Sequence[Line]) -> str:
    """All tables and a sentence about the machine, as Markdown that is readable as it stands."""
    parts: list[str] = []
    for name, title in _TITLES.items():
        chosen = [line for line in lines if line["name"] == name]
        if chosen:
            parts += [f"**{title}**", _TABLES.get(name, _record_table)(chosen)]
    if lines:
        parts.append(_machine(lines[-1]["versions"]))
    return "\n\n".join(parts)


def write_into(page: Path, lines: Sequence[Line]) -> None:
    """Replace what stands between the markers of ``page``; raises ``ValueError`` where there are none."""
    text = page.read_text() if page.exists() else _EMPTY_PAGE
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{page} has no lines {START} and {END}")
    page.write_text(f"{before}{START}\n\n{render(lines)}\n\n{END}{after}")


# ---- tables


def _record_table(lines: Sequence[Line]) -> str:
    head = ["runs present", "peer", "durable", "callers", "median ms", "p95 ms", "runs/s"]
    against = [peer for peer in ("git", "git_fsync", "sqlite") if any(f"ratio_{peer}" in x for x in lines)]
    head += [f"x {peer.replace('_', ' ')}" for peer in against]
    rows = [
        [
            f"{line['present']:,}".replace(",", " "),
            str(_PEERS.get(line["peer"], line["peer"])),
            _DURABLE[line["durability"]],
            str(line.get("callers", 1)),
            f"{line['median_ms']:.2f}",
            f"{line['p95_ms']:.2f}",
            f"{line['per_s']:.0f}",
            *(_ratio(line.get(f"ratio_{peer}")) for peer in against),
        ]
        for line in lines
    ]
    return _markdown(head, rows)


def _heartbeat_table(lines: Sequence[Line]) -> str:
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
    return _markdown(head, rows)


def _bus_table(lines: Sequence[Line]) -> str:
    head = ["subscribers", "peer", "events/s", "x memory stream", "latency p50 ms", "p99 ms"]
    rows = [
        [
            str(line["present"]),
            line["peer"],
            f"{line['per_s']:.0f}",
            _ratio(line["ratio_memory_stream"]),
            f"{line['median_ms']:.3f}",
            f"{line['p99_ms']:.3f}",
        ]
        for line in lines
    ]
    return _markdown(head, rows)


def _recorder_table(lines: Sequence[Line]) -> str:
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
            _ratio(line.get("ratio_json_and_flush")),
            f"{line['median_ms']:.3f}",
            f"{line['p95_ms']:.3f}",
            f"{line['worst_ms']:.1f}" if "worst_ms" in line else "",
            f"{line['more_mb']:.0f}" if "more_mb" in line else "",
            f"{line['lost']:.0f}" if "lost" in line else "",
        ]
        for line in lines
    ]
    return _markdown(head, rows)


def _chat_table(lines: Sequence[Line]) -> str:
    head = ["present", "what", "durable", "median ms", "p95 ms"]
    against = [peer for peer in ("git", "git_fsync") if any(f"ratio_{peer}" in line for line in lines)]
    head += [f"x {peer.replace('_', ' ')}" for peer in against]
    rows = [
        [
            f"{line['present']:,}".replace(",", " "),
            line["peer"],
            _DURABLE[line["durability"]] if line["name"] != "list_messages" else "",
            f"{line['median_ms']:.2f}",
            f"{line['p95_ms']:.2f}",
            *(_ratio(line.get(f"ratio_{peer}")) for peer in against),
        ]
        for line in lines
    ]
    return _markdown(head, rows)


def _sync_table(lines: Sequence[Line]) -> str:
    against = list(dict.fromkeys(key for line in lines for key in line if key.startswith("ratio_")))
    head = ["runs", "peer", "median ms", "p95 ms"]
    head += [f"x {key.removeprefix('ratio_').replace('_', ' ')}" for key in against]
    rows = [
        [
            f"{line['present']:,}".replace(",", " "),
            line["peer"],
            f"{line['median_ms']:.1f}",
            f"{line['p95_ms']:.1f}",
            *(_ratio(line.get(key)) for key in against),
        ]
        for line in lines
    ]
    return _markdown(head, rows)


_CHAT = dict.fromkeys(("send_message", "send_message_among_notes", "list_messages"), _chat_table)
_SYNC = dict.fromkeys(("sync_merge", "sync_pull", "sync_push"), _sync_table)
_TABLES = {
    **_CHAT,
    **_SYNC,
    "heartbeat": _heartbeat_table,
    "bus": _bus_table,
    "recorder": _recorder_table,
}


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _machine(versions: dict[str, str]) -> str:
    return "Measured with " + "; ".join(f"{name}: {value}" for name, value in versions.items()) + "."


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in [list(head), *body]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(head), rule, *(line(row) for row in body)])


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
