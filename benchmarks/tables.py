"""Tables in Markdown that are readable as they stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Line = dict[str, Any]

_STANDARD = ("name", "peer", "n", "present", "durability", "median_ms", "p95_ms", "per_s", "versions")


def plain_table(lines: Sequence[Line]) -> str:
    """A row for each result, a column for whatever any of them says."""
    further = [key for key in dict.fromkeys(key for line in lines for key in line) if key not in _STANDARD]
    present = len({line["present"] for line in lines}) > 1
    head = ["present"] * present + ["peer", "median ms", "p95 ms", "per s"]
    head += [key.replace("ratio_", "x ").replace("_", " ") for key in further]
    rows = [
        [
            *[thousands(line["present"])] * present,
            str(line["peer"]),
            f"{line['median_ms']:.3f}",
            f"{line['p95_ms']:.3f}",
            f"{line['per_s']:.0f}",
            *(number(line.get(key)) for key in further),
        ]
        for line in lines
    ]
    return markdown(head, rows)


def thousands(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def number(value: Any) -> str:
    """A figure with about three digits that count."""
    if not isinstance(value, int | float):
        return "" if value is None else str(value)
    if value == int(value) or abs(value) >= 1000:
        return thousands(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in [list(head), *body]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(head), rule, *(line(row) for row in body)])
