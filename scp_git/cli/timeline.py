"""A session drawn as a timeline: when each event was, how long it took, and how it ended.

Pure: it is given a width and gives lines of styled pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from scp_git.cli.report import took
from scp_git.cli.terminal import Piece, neutralise

if TYPE_CHECKING:
    from scp_git.models import SessionTrace, TraceEvent

_STYLES = {"ok": "green", "failed": "red", "partial": "yellow", "skipped": "dim"}
_UNICODE = {"bar": "━", "failed": "✗", "moment": "·"}
_ASCII = {"bar": "=", "failed": "x", "moment": "."}
_LABEL_MAX = 48
_LABEL_MIN = 8
_BAR_MIN = 8
_BAR_SHARE = 0.4


def draw(
    trace: SessionTrace, events: Sequence[TraceEvent], *, width: int, unicode: bool
) -> Iterator[list[Piece]]:
    """One line per event: since the start, what, how long and how it ended, and a bar where it was.

    The bar ends where the event was and is as long as it took; an event that took no time is a
    dot. A failed one is drawn with another sign, as colours may be missing. Where there is little
    room the result goes first, then the duration; the label is cut, the bar stays.
    """
    from rich.cells import cell_len

    scale = _Scale(trace, events)
    labels = [_label(event) for event in events]
    times = [_offset(scale.at(event)) for event in events]
    lasted = [took(event.duration_ms) if event.duration_ms else "" for event in events]
    results = [neutralise(event.result) for event in events]
    columns = {"took": lasted, "result": results}
    wide = {name: min(max(map(cell_len, cells), default=0), 12) for name, cells in columns.items()}
    first = max(map(len, times), default=0)
    bar = max(int(width * _BAR_SHARE), _BAR_MIN)
    kept = [name for name in columns if wide[name]]
    for name in ("result", "took"):
        if first + bar + _LABEL_MIN + sum(wide[each] + 1 for each in kept) + 2 > width and name in kept:
            kept.remove(name)
    needed = max(map(cell_len, labels), default=0)
    fixed = first + sum(wide[name] + 1 for name in kept) + 2
    label = max(min(needed, _LABEL_MAX, width - fixed - bar), min(_LABEL_MIN, width - fixed - 1), 1)
    room = max(width - fixed - label, 1)
    signs = _UNICODE if unicode else _ASCII
    for number, event in enumerate(events):
        style = _STYLES.get(event.result, "")
        line: list[Piece] = [
            (f"{times[number]:>{first}} ", "dim"),
            (_fitted(labels[number], label) + " ", ""),
        ]
        for name in kept:
            cell = _fitted(columns[name][number], wide[name])
            line.append((cell + " ", style if name == "result" else ""))
        yield [*line, (_bar(event, scale, room, signs), style)]


class _Scale:
    """Places moments between the session's first and last."""

    def __init__(self, trace: SessionTrace, events: Sequence[TraceEvent]) -> None:
        self._zero = _seconds(trace.started_at)
        ends = [_seconds(trace.ended_at)] if trace.ended_at else []
        ends += [self._when(event) for event in events]
        begins = [self._when(event) - event.duration_ms / 1000 for event in events]
        self.first = min([self._zero, *begins])
        self.last = max([self._zero, *ends])

    def _when(self, event: TraceEvent) -> float:
        return _seconds(event.ts) if event.ts else self._zero

    def at(self, event: TraceEvent) -> float:
        """Seconds since the session began."""
        return self._when(event) - self._zero

    def span(self, event: TraceEvent, room: int) -> tuple[int, int]:
        """The first and last of ``room`` cells that the event takes."""
        length = self.last - self.first

        def cell(moment: float) -> int:
            return min(int((moment - self.first) / length * room), room - 1) if length > 0 else 0

        when = self._when(event)
        return max(cell(when - event.duration_ms / 1000), 0), cell(when)


def _bar(event: TraceEvent, scale: _Scale, room: int, signs: dict[str, str]) -> str:
    begin, end = scale.span(event, room)
    if event.result == "failed":
        return " " * begin + signs["failed"] * (end - begin + 1)
    return " " * begin + (signs["bar"] if event.duration_ms else signs["moment"]) * (end - begin + 1)


def _label(event: TraceEvent) -> str:
    from scp_git.trace.export import error_of

    return neutralise(" ".join(filter(None, (event.type, event.target, error_of(event)))))


def _fitted(text: str, width: int) -> str:
    from rich.cells import set_cell_size

    return set_cell_size(text, width)


def _offset(seconds: float) -> str:
    """``+0.142``, ``+12.3``, ``+3:05``, ``+1:02:03``, ``+40d``."""
    sign, seconds = "-" if seconds < 0 else "+", abs(seconds)
    if seconds < 10:
        return f"{sign}{seconds:.3f}"
    if seconds < 60:
        return f"{sign}{seconds:.1f}"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{sign}{hours // 24}d"
    return f"{sign}{hours}:{minutes:02}:{rest:02}" if hours else f"{sign}{minutes}:{rest:02}"


def _seconds(stored: str) -> float:
    return datetime.fromisoformat(stored).timestamp()
