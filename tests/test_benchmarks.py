"""The benchmarks run, and what they print can be read by a program; their numbers are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import board, goals, report
from benchmarks.harness import quantile
from benchmarks.tables import number

TOP = Path(__file__).parents[1]
COUNTS = {
    "samples": 3,
    "git-samples": 2,
    "callers": 20,
    "rounds": 1,
    "beats": 1,
    "events": 640,
    "encrypted": 4,
    "merged": 20,
    "pulled": 10,
    "sync-samples": 1,
    "noted": 8,
    "tags": 10,
    "imported": 40,
}
TINY = ["--quick", *(f"--{name}={count}" for name, count in COUNTS.items())]
TINY += ["--present", "3", "8", "--said", "0", "8"]
FIELDS = {"name", "peer", "n", "present", "durability", "median_ms", "p95_ms", "per_s", "versions"}
PEERS = {"scp_git", "sqlite"} | ({"git", "git_fsync"} if which("git") else set())


def run(folder: Path, *arguments: str) -> Printed:
    out = folder / "results.jsonl"
    command = [sys.executable, "-m", "benchmarks", *arguments, "--folder", str(folder), "--out", str(out)]
    said = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    return said.stdout, [json.loads(line) for line in out.read_text().splitlines()]


Printed = tuple[str, list[dict[str, Any]]]
GROUPS = {
    "recording": ("record_run", "record_run_at_once", "heartbeat"),
    "events": ("bus",),
    "imports": ("import",),
    "recorders": ("recorder",),
    "chat": ("send_message", "send_message_among_notes", "list_messages"),
    "sync": ("sync_merge", "sync_pull", "sync_push"),
    "reading": ("read", "index", "start"),
    "writing": ("write", "room"),
}


@pytest.fixture(scope="module")
def results_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Printed]:
    """What the benchmarks of a group print; all are small, and they are many."""

    @cache
    def results_of(group: str) -> Printed:
        return run(tmp_path_factory.mktemp("bench"), *GROUPS[group], *TINY)

    return results_of


@pytest.fixture
def results(results_of: Callable[[str], Printed]) -> Printed:
    return results_of("recording")


@pytest.mark.parametrize("group", GROUPS)
def test_every_line_has_the_fields(results_of: Callable[[str], Printed], group: str) -> None:
    printed, lines = results_of(group)
    assert {line["name"] for line in lines} == set(GROUPS[group])
    assert report.read(printed) == lines
    for line in lines:
        assert line.keys() >= FIELDS
        assert line["n"] > 0
        assert 0 < line["median_ms"] <= line["p95_ms"]
        assert line["per_s"] > 0
        assert line["versions"].keys() >= {"cpu", "file_system", "python", "pygit2", "git", "sqlite"}


@pytest.mark.parametrize("name", ["record_run", "record_run_at_once"])
def test_all_peers_are_measured_beside_the_library(results: Printed, name: str) -> None:
    lines = [line for line in results[1] if line["name"] == name]
    for present in (3, 8):
        assert {line["peer"] for line in lines if line["present"] == present} == PEERS
    ours = [line for line in lines if line["peer"] == "scp_git"]
    assert {line["durability"] for line in ours} == {"full", "os"}
    for line in ours:
        assert {key for key in line if key.startswith("ratio_")} == {
            f"ratio_{p}" for p in PEERS - {"scp_git"}
        }


def test_the_heartbeat_is_taken_on_both_loops(results: Printed) -> None:
    lines = {line["peer"]: line for line in results[1] if line["name"] == "heartbeat"}
    assert lines.keys() == {
        f"{loop} {what}" for loop in ("asyncio", "trio") for what in ("record_run", "no-op")
    }
    for line in lines.values():
        assert line["p99_ms"] <= line["max_ms"]
        assert line["worst_ms"] <= line["max_ms"]
    assert "worst_beyond_noop_ms" in lines["trio record_run"]


def test_the_bus_is_measured_beside_those_that_are_installed(
    results_of: Callable[[str], Printed],
) -> None:
    """Events a second to 1, 10 and 100 subscribers, one by one and in batches, and the latency."""
    lines = results_of("events")[1]
    ours = {f"scp_git, {how}" for how in ("batches", "one by one")}
    always = ours | {"memory stream", "memory stream, drained"}
    others = {name for name in ("broadcaster", "pyee", "blinker") if find_spec(name)}
    for loop, peers in (("asyncio", always | others), ("trio", always)):
        for subscribers in (1, 10, 100):
            here = [line for line in lines if line["peer"].endswith(f"({loop})")]
            found = {
                line["peer"].removesuffix(f" ({loop})") for line in here if line["present"] == subscribers
            }
            assert found == peers
    for line in lines:
        assert line["ratio_memory_stream"] > 0
        assert line["median_ms"] <= line["p99_ms"]


def test_recorders_are_measured_beside_what_one_would_write_oneself(
    results_of: Callable[[str], Printed],
) -> None:
    *rates, steady = results_of("recorders")[1]
    peers = {"scp_git", "json", "json and flush", "queue and thread", "nobody records"}
    for recordings in (1, 3):
        assert {line["peer"] for line in rates if line["present"] == recordings} == peers
    assert all(line["ratio_json_and_flush"] > 0 for line in rates)
    assert (steady["peer"], steady["present"], steady["lost"]) == ("scp_git, 55000 a second", 3, 0)
    assert steady["worst_ms"] >= steady["median_ms"]


def test_chat_is_measured_beside_git(results_of: Callable[[str], Printed]) -> None:
    results = results_of("chat")
    lines = [line for line in results[1] if line["name"] == "send_message"]
    peers = {line["peer"] for line in lines if line["present"] == 8}
    ours = {f"scp_git, {place}" for place in ("run", "thread", "both")}
    others = {f"{peer}, {place}" for peer in ("git", "git_fsync") for place in ("run", "thread")}
    assert peers == ours | (others if which("git") else set())
    read = {line["peer"] for line in results[1] if line["name"] == "list_messages"}
    assert read == {
        "50 of a run",
        "50 of a thread",
        "all, encrypted, the first time",
        "all, encrypted, again",
    }
    assert [line["present"] for line in results[1] if line["name"] == "send_message_among_notes"] == [8]


@pytest.mark.system("git")
def test_syncs_are_measured_beside_stock_git(results_of: Callable[[str], Printed]) -> None:
    peers = {
        "sync_merge": {"scp_git", "git merge-tree"},
        "sync_pull": {"scp_git", "git fetch"},
        "sync_push": {"scp_git", "scp_git, path", "git push, one tag", "git push, all run tags"},
    }
    for name, expected in peers.items():
        lines = [line for line in results_of("sync")[1] if line["name"] == name]
        assert {line["peer"] for line in lines} == expected
        assert all(len(_ratios(line)) > 0 for line in lines if line["peer"].startswith("scp_git"))


def _ratios(line: dict[str, Any]) -> list[str]:
    return [key for key in line if key.startswith("ratio_git")]


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_names_this_machine(results_of: Callable[[str], Printed], group: str) -> None:
    printed, _ = results_of(group)
    assert str(TOP) not in printed
    assert str(Path.home()) not in printed


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    _, lines = run(tmp_path, "record_run", *TINY, "--page", str(tmp_path / "page.md"))
    assert {path.name for path in tmp_path.iterdir()} == {"results.jsonl", "page.md", "plots"}
    assert report.render(lines) in (tmp_path / "page.md").read_text()


def test_a_report_replaces_only_what_is_between_its_markers(results: Printed, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{report.START}\noutdated\n{report.END}\nafter\n")
    report.write_into(page, results[1])
    once = page.read_text()
    assert once.startswith("before\n")
    assert once.endswith(f"{report.END}\nafter\n")
    assert "outdated" not in once
    assert "| scp_git" in once
    report.write_into(page, results[1])
    assert page.read_text() == once


def test_a_page_without_markers_is_refused_and_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("nothing here\n")
    with pytest.raises(ValueError, match="has no lines"):
        report.write_into(page, [])
    assert page.read_text() == "nothing here\n"


def test_reading_is_measured_over_the_runs_present(
    results_of: Callable[[str], Printed], tmp_path: Path
) -> None:
    lines = results_of("reading")[1]
    assert {line["present"] for line in lines} == {3, 8}
    peers = {line["peer"] for line in lines if line["name"] == "read"}
    assert peers >= {"list_runs(n=20)", "get_run", "get_run_events", "search, one match"}
    report.write_into(tmp_path / "page.md", lines)
    page = (tmp_path / "page.md").read_text()
    for name in ("read", "index", "start"):
        drawing = tmp_path / "plots" / f"{name}.svg"
        assert f"(plots/{name}.svg)" in page
        assert ElementTree.fromstring(drawing.read_text()).tag.endswith("svg")


def test_a_goal_says_what_was_measured_and_whether_it_is_held() -> None:
    line = {"name": "start", "peer": "scp-git ledger list", "present": 10, "durability": "none"}
    for factor, held in ((3.5, "yes"), (8, "yes"), (9.25, "**no**")):
        shown = next(
            row
            for row in goals.table([{**line, "x_bare_python": factor}]).splitlines()
            if "ledger list" in row
        )
        assert [cell.strip() for cell in shown.split("|")][2:6] == [
            "at most 8 times", "`python -c pass`", f"{number(factor)} times", held,
        ]  # fmt: skip
    assert goals.table([]).count("not measured") == len(goals.GOALS)
    growth = [
        {"name": "read", "peer": "get_run", "present": n, "durability": "none", "median_ms": ms}
        for n, ms in ((100, 2.0), (1000, 9.0), (100_000, 3.0))
    ]
    assert "1.50 times" in next(row for row in goals.table(growth).splitlines() if "`get_run`" in row)


def test_every_module_that_measures_is_on_the_board() -> None:
    modules = {path.stem for path in (TOP / "benchmarks").glob("*.py")}
    silent = set(board._NOT_MEASURING) | {"__init__"}
    listed = {each.measure.__module__.rpartition(".")[2] for each in board.ALL.values()}
    assert modules - silent == listed


def test_quantiles_are_values_that_occurred() -> None:
    assert quantile([1.0], 0.99) == 1.0
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([float(n) for n in range(1, 101)], 0.95) == 95.0
    assert quantile([float(n) for n in range(1, 101)], 1.0) == 100.0


def test_an_unknown_name_is_a_usage_error() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nonsense"], cwd=TOP, capture_output=True, text=True
    )
    assert said.returncode == 2
    assert "there are record_run, record_run_at_once, heartbeat" in said.stderr


def test_an_import_is_measured_beside_gits(results_of: Callable[[str], Printed]) -> None:
    lines = {line["peer"]: line for line in results_of("imports")[1]}
    assert lines["scp_git"]["n"] == 40 and lines["scp_git"]["bytes_per_run"] > 0
    if which("git"):
        assert lines["scp_git"]["ratio_git_fast_import"] > 0
