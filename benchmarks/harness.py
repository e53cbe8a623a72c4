"""What every benchmark shares: how much to do, the statistics, and the line that reports a result."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any


@dataclass(frozen=True)
class Plan:
    """How much is done. ``folder`` is scratch space; it must lie on the disk that is to be measured."""

    folder: Path
    present: tuple[int, ...] = (100, 1_000, 10_000)
    samples: int = 60
    """Single runs, for peers that take a few milliseconds."""
    git_samples: int = 15
    """Single runs by git subprocesses, which take ten times longer; also per round of a burst."""
    callers: int = 1_000
    rounds: int = 3
    """Bursts of ``callers`` at once."""
    beats: int = 5
    """Rounds of the heartbeat, per event loop."""
    said: tuple[int, ...] = (100, 1_000)
    """Messages in a conversation; in the long form also 100 000."""
    noted: tuple[int, ...] = (10_000,)
    """Runs that each have a note."""
    encrypted: int = 200
    """Encrypted messages that are listed at once."""
    events: int = 100_000
    """Events through the bus to one subscriber; to more of them accordingly fewer."""
    merged: int = 100_000
    """Runs in each of two states that are merged."""
    pulled: int = 10_000
    """Runs that are pulled at once."""
    tags: tuple[int, ...] = (10_000, 100_000)
    """Runs and tags on both sides when one more is pushed."""
    sync_samples: int = 9
    imported: int = 20_000
    """Runs to be imported."""


def full(folder: Path) -> Plan:
    """For a quiet machine and half an hour."""
    return Plan(
        folder,
        present=(100, 1_000, 10_000, 100_000),
        samples=150,
        git_samples=30,
        rounds=5,
        said=(100, 1_000, 100_000),
        beats=60,
        imported=100_000,
    )


def quick(folder: Path) -> Plan:
    """The same measurements with so few samples that they take less than a minute."""
    return Plan(
        folder,
        present=(100, 1_000),
        samples=15,
        git_samples=5,
        callers=300,
        rounds=1,
        beats=2,
        noted=(1_000,),
        events=20_000,
        merged=2_000,
        pulled=500,
        tags=(1_000,),
        sync_samples=3,
        imported=2_000,
    )


@dataclass
class Result:
    """One peer in one situation; ``ratios`` say how many times faster the library was than others."""

    name: str
    peer: str
    n: int
    present: int
    durability: str
    median_ms: float
    p95_ms: float
    per_s: float
    ratios: dict[str, float] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """One question to the library and its peers; a module lists its own in ``BENCHMARKS``."""

    name: str
    """As every result's ``name``."""
    title: str
    measure: Callable[[Plan], Iterator[Result]]
    table: Callable[[Sequence[dict[str, Any]]], str] | None = None
    """How its results are shown; else one row each with all that they say."""
    curve: str = ""
    """What a plot of its milliseconds over what is present is called; without it there is none."""


def summarise(
    name: str, peer: str, present: int, durability: str, seconds: Sequence[float], rate: float | None = None
) -> Result:
    """Reduce ``seconds`` to a result; ``rate`` replaces runs per second where calls overlapped."""
    median = statistics.median(seconds)
    return Result(
        name=name,
        peer=peer,
        n=len(seconds),
        present=present,
        durability=durability,
        median_ms=round(median * 1e3, 3),
        p95_ms=round(quantile(seconds, 0.95) * 1e3, 3),
        per_s=round(rate if rate is not None else 1 / median, 1),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def flush_journal(folder: Path) -> None:
    """One fsync of no consequence; ``os.sync`` would wait for whatever else runs on this machine."""
    with (folder / "flush").open("w") as file:
        file.write("flush\n")
        file.flush()
        os.fsync(file.fileno())


def to_line(result: Result, machine: dict[str, str]) -> str:
    """One JSON object: ratios become ``ratio_<peer>``, extras stand beside them, versions come last."""
    fields: dict[str, Any] = asdict(result)
    ratios, extra = fields.pop("ratios"), fields.pop("extra")
    fields |= {f"ratio_{peer}": value for peer, value in ratios.items()} | extra
    return json.dumps(fields | {"versions": machine})


# ---- the machine


def describe_machine(folder: Path) -> dict[str, str]:
    """Versions and hardware, without anything that names this machine."""
    kernel = ".".join(platform.release().split(".")[:2])
    return {
        "cpu": f"{os.cpu_count()} x {_cpu_model()}",
        "system": f"{platform.system()} {kernel}",
        "file_system": _file_system(folder),
        "disk": _probe(folder),
        "python": platform.python_version(),
        **{name: _installed(name) for name in ("scp-git", "pygit2", "anyio", "trio")},
        "git": _git_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def _probe(folder: Path) -> str:
    """What the file system charges just here: on ext4, files in a crowded block group cost ten times more."""
    probe = folder / "probe"
    probe.mkdir()
    made, synced = [], []
    for number in range(100):
        start = perf_counter()
        (probe / str(number)).mkdir()
        (probe / str(number) / "file").write_text("probe")
        made.append(perf_counter() - start)
    for _ in range(20):
        start = perf_counter()
        flush_journal(folder)
        synced.append(perf_counter() - start)
    made_ms, synced_ms = (statistics.median(seconds) * 1e3 for seconds in (made, synced))
    return f"folder and file {made_ms:.2f} ms, file with fsync {synced_ms:.2f} ms"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _file_system(folder: Path) -> str:
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    path = folder.resolve()
    above = [(len(where), kind) for _, where, kind, *_ in mounts if path.is_relative_to(where)]
    return max(above)[1] if above else "unknown"


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "source tree" if name == "scp-git" else "absent"


def _git_version() -> str:
    if shutil.which("git") is None:
        return "absent"
    said = subprocess.run(["git", "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split()[2]
