"""Curves as SVG: milliseconds over what is present (runs, messages), both on logarithmic scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.tables import Line, number, thousands

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 210, 40, 50
# Told apart by people who do not see all colours alike, on a light and on a dark ground.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#b8a800")

Point = tuple[float, float]


def has_curve(lines: Sequence[Line]) -> bool:
    """Whether any peer was measured at two numbers of runs or more."""
    return any(len(points) > 1 for points in _series(lines).values())


def curves(title: str, lines: Sequence[Line]) -> str:
    """The drawing: a line for each peer, its name at the end of it."""
    series = {name: points for name, points in _series(lines).items() if len(points) > 1}
    across = _Scale([x for points in series.values() for x, _ in points], _LEFT, _WIDTH - _RIGHT)
    upward = _Scale([y for points in series.values() for _, y in points], _HEIGHT - _BOTTOM, _TOP)
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    parts = [
        f'<svg {box} font-family="sans-serif" font-size="12" fill="#777">',
        f"<title>{escape(title)}</title>",
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
        f'<text x="{_LEFT}" y="{_HEIGHT - 12}">present</text>',
        f'<text x="12" y="{_TOP - 8}">ms</text>',
    ]
    for x in across.ticks:
        at = across.place(x)
        parts.append(f'<path d="M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#7773"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{thousands(x)}</text>'
        )
    for y in upward.ticks:
        at = upward.place(y)
        parts.append(f'<path d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}" stroke="#7773"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{number(y)}</text>')
    labels = _apart([(upward.place(points[-1][1]), name) for name, points in series.items()])
    for (name, points), colour in zip(series.items(), _COLOURS * len(series), strict=False):
        places = [(across.place(x), upward.place(y)) for x, y in points]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        beside = f'x="{places[-1][0] + 10:.1f}" y="{labels[name] + 4:.1f}" fill="{colour}"'
        parts.append(f"<text {beside}>{escape(name)}</text>")
    return "\n".join([*parts, "</svg>", ""])


def _series(lines: Sequence[Line]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    both = len({(line["peer"], line["durability"]) for line in lines}) > len({line["peer"] for line in lines})
    for line in lines:
        unsynced = both and line["durability"] == "os"
        name = f"{line['peer']}, not durable" if unsynced else str(line["peer"])
        if line["present"] > 0 and line["median_ms"] > 0:
            found.setdefault(name, []).append((line["present"], line["median_ms"]))
    return {name: sorted(points) for name, points in found.items()}


class _Scale:
    """From values to places on the drawing; whole powers of ten at both ends."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self._low = math.floor(math.log10(min(values)))
        self._high = max(math.ceil(math.log10(max(values))), self._low + 1)
        self._start = start
        self._end = end
        self.ticks = [10.0**power for power in range(self._low, self._high + 1)]

    def place(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)


def _apart(wanted: list[tuple[float, str]]) -> dict[str, float]:
    """Places for labels, as near as can be to where they belong, and none over another."""
    places: dict[str, float] = {}
    last = -math.inf
    for at, name in sorted(wanted):
        last = places[name] = max(at, last + 14)
    return places
