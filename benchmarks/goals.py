"""What we set out to reach, beside what was measured in the same run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.tables import Line, markdown, number

Measured = Callable[[Sequence[Line]], float | None]


@dataclass(frozen=True)
class Goal:
    """One line of the table. ``least``: the figure is to be at least ``reach``, else at most."""

    work: str
    reach: float
    unit: str
    beside: str
    measured: Measured
    least: bool = True


def table(lines: Sequence[Line]) -> str:
    """Every goal with its figure; one that this run did not measure says so."""
    rows = []
    for goal in GOALS:
        found = goal.measured(lines)
        if found is None:
            said, held = "not measured", ""
        else:
            said = f"{number(found)} {goal.unit}"
            held = "yes" if (found >= goal.reach) == goal.least or found == goal.reach else "**no**"
        sign = "at least" if goal.least else "at most"
        rows.append([goal.work, f"{sign} {number(goal.reach)} {goal.unit}", goal.beside, said, held])
    return markdown(["work", "goal", "beside", "measured", "held"], rows)


# ---------------------------------------------------------------- finding figures


def _one(lines: Sequence[Line], key: str, **wanted: object) -> float | None:
    """The figure ``key`` of the result that fits best: with the most runs present, where several do."""
    chosen = [line for line in lines if key in line and all(line.get(k) == v for k, v in wanted.items())]
    return float(max(chosen, key=lambda line: line["present"])[key]) if chosen else None


def _figure(key: str, **wanted: object) -> Measured:
    return lambda lines: _one(lines, key, **wanted)


def _growth(name: str, peer: str, durability: str) -> Measured:
    """How many times the cost at the fewest runs it is at the most, where there were two."""

    def measured(lines: Sequence[Line]) -> float | None:
        chosen = {
            line["present"]: line["median_ms"]
            for line in lines
            if (line["name"], line["peer"], line["durability"]) == (name, peer, durability)
            and line["present"]
        }
        return chosen[max(chosen)] / chosen[min(chosen)] if len(chosen) > 1 else None

    return measured


def _worst(lines: Sequence[Line]) -> float | None:
    found = [line["worst_beyond_noop_ms"] for line in lines if "worst_beyond_noop_ms" in line]
    return max(found) if found else None


def _ratio(name: str, against: str, **wanted: object) -> Measured:
    return _figure(f"ratio_{against}", name=name, **wanted)


_GIT = "git add, commit, tag (not durable)"
_DURABLE = {"peer": "scp_git", "durability": "full", "present": 1_000}
_BUS = "scp_git, batches (asyncio)"
_STREAMS = "anyio memory object streams"
_STEADY = "scp_git, 55000 a second"
_AGAIN = {"name": "list_messages", "peer": "all, encrypted, again"}
_FIRST = "first list_runs(n=20) of a process"


def _at_least(reach: float, work: str, beside: str, measured: Measured, unit: str = "times") -> Goal:
    return Goal(work, reach, unit, beside, measured)


def _steady(key: str) -> Measured:
    return _figure(key, name="recorder", peer=_STEADY)


def _at_most(reach: float, unit: str, work: str, beside: str, measured: Measured) -> Goal:
    return Goal(work, reach, unit, beside, measured, least=False)


def _flat(work: str, measured: Measured) -> Goal:
    return _at_most(1.5, "times", f"`{work}` with the most runs present", "with the fewest", measured)


GOALS = (
    _at_least(10, "one durable `record_run`, 1 000 present", _GIT, _ratio("record_run", "git", **_DURABLE)),
    _at_least(10, "the same", "git, durable", _ratio("record_run", "git_fsync", **_DURABLE)),
    _at_least(100, "1 000 of them at once", _GIT, _ratio("record_run_at_once", "git", **_DURABLE)),
    _flat("record_run", _growth("write", "record_run", "full")),
    _flat("send_message", _growth("write", "send_message, about the newest run", "full")),
    _flat("get_run", _growth("read", "get_run", "none")),
    _flat("get_run_events", _growth("read", "get_run_events", "none")),
    _flat("list_runs(n=20)", _growth("read", "list_runs(n=20)", "none")),
    _at_most(
        1,
        "ms",
        "`list_runs(n=20)`, warm, most runs",
        "",
        _figure("median_ms", name="read", peer="list_runs(n=20)"),
    ),
    _at_most(
        100,
        "ms",
        "the first one of a process",
        "the imports",
        _figure("median_ms", name="start", peer=_FIRST),
    ),
    _at_most(
        8,
        "times",
        "`scp-git ledger list` in a new process",
        "`python -c pass`",
        _figure("x_bare_python", name="start", peer="scp-git ledger list"),
    ),
    _at_least(3, "importing runs with their tags", "`git fast-import`", _ratio("import", "git_fast_import")),
    _at_most(
        300, "MB", "peak memory of the import", "", _figure("max_rss_mb", name="import", peer="scp_git")
    ),
    _at_most(
        1_500,
        "bytes",
        "a run in `.git` after it",
        "",
        _figure("bytes_per_run", name="import", peer="scp_git"),
    ),
    _at_most(20, "ms", "worst gap of the loop, 1 000 callers record", "1 000 no-op callers", _worst),
    _at_least(
        20,
        "bus, to 10 subscribers, in batches",
        _STREAMS,
        _ratio("bus", "memory_stream", peer=_BUS, present=10),
    ),
    _at_least(
        40, "bus, to 100 subscribers", _STREAMS, _ratio("bus", "memory_stream", peer=_BUS, present=100)
    ),
    _at_least(50_000, "recorder, three recordings at once", "", _steady("per_s"), "events/s"),
    _at_most(0, "events", "lost by it", "", _steady("lost")),
    _at_most(100, "MB", "its memory", "", _steady("more_mb")),
    _at_most(20, "ms", "200 encrypted messages, listed again", "", _figure("median_ms", **_AGAIN)),
)
