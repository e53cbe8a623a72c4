"""``scp-git trace`` and ``scp-git watch``: what is listed, drawn, exported, and told as it happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from scp_git import Run, SessionTrace, Settings, Store, TraceEvent
from scp_git.cli.timeline import draw
from tests.test_cli_ledger import out, refused, scp
from tests.test_cli_terminal import COLOURS, HOSTILE, acts, on_terminal

PROJECT = Path(__file__).resolve().parents[1]
CLI = [sys.executable, "-m", "scp_git.cli"]
START = "2026-02-17T20:45:00.000000+00:00"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def at(second: int) -> str:
    return f"2026-02-17T20:45:{second:02}.000000+00:00"


EVENTS = [
    TraceEvent(seq=1, ts=at(1), type="cache:done", target="web", result="ok"),
    TraceEvent(seq=2, ts=at(20), type="k8s:apply", target="web", result="ok", duration_ms=15_000),
    TraceEvent(seq=3, ts=at(25), type="k8s:apply", target="db", result="failed", duration_ms=2_500),
    TraceEvent(seq=4, ts=at(40), type="vault:lock", result="skipped", detail={"why": "locked"}),
]


def session(trace_id: str = "t1", **fields: Any) -> SessionTrace:
    given = {"name": "deploy", "started_at": START, "ended_at": at(40), "events": EVENTS, "user": "ada"}
    return SessionTrace(trace_id=trace_id, **{**given, **fields})


@pytest.fixture
def store(repo: Path) -> Store:
    store = Store.open(repo, Settings(durability="os"))
    store.save_trace(session())
    return store


# ---------------------------------------------------------------- the drawing


def drawn(trace: SessionTrace, events: list[TraceEvent], width: int = 80, unicode: bool = True) -> list[str]:
    lines = list(draw(trace, events, width=width, unicode=unicode))
    return ["".join(text for text, _ in line) for line in lines]


def test_a_bar_is_where_the_event_was_as_long_as_it_took_and_coloured_by_its_result() -> None:
    lines = list(draw(session(), EVENTS, width=100, unicode=True))
    bars, styles = [line[-1][0] for line in lines], [line[-1][1] for line in lines]
    assert styles == ["green", "green", "red", "dim"]
    room = len(bars[3])
    assert bars[3].strip() == "·" and bars[0].strip() == "·"
    apply = bars[1]
    assert set(apply.strip()) == {"━"}
    assert abs(len(apply.strip()) - room * 15 / 40) <= 2
    assert abs(len(apply) - room * 20 / 40) <= 2
    assert set(bars[2].strip()) == {"✗"}
    assert "".join(text for text, _ in lines[1]).startswith(" +20.0 k8s:apply web")


def test_the_page_shows_what_is_drawn() -> None:
    page = (PROJECT / "docs" / "cli.md").read_text()
    assert "\n".join(f"    {line.rstrip()}" for line in drawn(session(), EVENTS, 78)) in page


@pytest.mark.parametrize("width", [20, 40, 80, 200, 400])
@pytest.mark.parametrize("unicode", [True, False])
def test_it_fits_any_width_and_needs_no_unicode(width: int, unicode: bool) -> None:
    lines = drawn(session(), EVENTS, width, unicode)
    assert all(cell_len(line) <= width for line in lines)
    assert all(line.isascii() for line in lines) or unicode
    bars = [line for line in lines if set(line) & set("━=✗x·.")]
    assert len(bars) == len(EVENTS)
    if width >= 40:
        assert "k8s:appl" in lines[1]
    if width >= 80:
        assert "15.0 s" in lines[1] and "failed" in lines[2]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
STRANGE = st.builds(
    TraceEvent,
    seq=st.integers(0, 9),
    ts=st.datetimes().map(lambda moment: moment.isoformat()) | st.just(""),
    type=TEXT,
    target=TEXT,
    result=TEXT | st.just("failed"),
    duration_ms=st.integers(0, 9) | st.integers(0, 2**63 - 1),
)


@given(st.lists(STRANGE, max_size=4), st.datetimes().map(lambda m: m.isoformat()), st.integers(20, 250))
def test_whatever_was_recorded_is_drawn(events: list[TraceEvent], started: str, width: int) -> None:
    lines = drawn(session(started_at=started, ended_at=None, events=events), events, width)
    assert len(lines) == len(events)
    assert all(cell_len(line) <= max(width, 20) for line in lines)
    assert not acts("".join(lines))


# ---------------------------------------------------------------- list, show


def test_list_for_people_and_for_programs(store: Store) -> None:
    store.save_trace(session("t2", name="", ended_at=None, started_at=at(50), classification="setup"))
    lines = [line.split("\t") for line in out(store.root, "trace", "list").splitlines()]
    assert [line[0] for line in lines] == ["t2", "t1"]
    assert lines[1][:7] == ["t1", START, at(40), "", "ada", "4", "deploy"]
    assert [line[0] for line in lines[:1]] == out(store.root, "trace", "list", "-n1").split("\t")[:1]
    found = json.loads(out(store.root, "trace", "list", "--json"))
    assert [(each["trace_id"], each["event_count"]) for each in found] == [("t2", 4), ("t1", 4)]
    code, shown = on_terminal(store.root, "trace", "list")
    assert code == 0
    assert "unfinished" in shown and "40.0 s" in shown and "deploy" in shown


def test_show_draws_the_timeline_on_a_terminal(store: Store) -> None:
    code, shown = on_terminal(store.root, "trace", "show", "t1", columns=100)
    assert code == 0
    plain = COLOURS.sub("", shown)
    assert "━━━━" in plain and "✗" in plain
    assert "\x1b[31m" in shown
    assert [line for line in plain.splitlines() if "k8s:apply db" in line]
    _, plain = on_terminal(store.root, "trace", "show", "t1", env={"NO_COLOR": "1"})
    assert "━━━━" in plain and "\x1b[31m" not in plain
    _, plain = on_terminal(store.root, "trace", "show", "t1", env={"PYTHONIOENCODING": "ascii"})
    assert "====" in plain and plain.isascii()


@pytest.mark.parametrize("columns", [40, 200])
def test_show_keeps_within_the_terminal(store: Store, columns: int) -> None:
    _, shown = on_terminal(store.root, "trace", "show", "t1", columns=columns)
    timeline = COLOURS.sub("", shown).split("\n\n")[1].splitlines()
    assert len(timeline) == 4
    assert all(cell_len(line) <= columns for line in timeline)


def test_show_of_a_long_session_says_how_many_events_are_left_out(store: Store) -> None:
    store.save_trace(session("long", events=[TraceEvent(seq=n, ts=at(n % 60), type="x") for n in range(250)]))
    _, shown = on_terminal(store.root, "trace", "show", "long")
    assert "... and 150 more events; -n 250 shows them all" in shown
    _, shown = on_terminal(store.root, "trace", "show", "long", "-n", "250")
    assert "more events" not in shown
    assert (
        len([line for line in out(store.root, "trace", "show", "long").splitlines() if "\tx\t" in line])
        == 250
    )


def test_show_for_programs(store: Store) -> None:
    lines = [line.split("\t") for line in out(store.root, "trace", "show", "t1").splitlines()]
    assert ["name", "deploy"] in lines
    events = [line for line in lines if line[0] == "event"]
    assert events[2] == ["event", "3", at(25), "k8s:apply", "db", "failed", "2500", ""]
    assert json.loads(events[3][-1]) == {"why": "locked"}
    found = json.loads(out(store.root, "trace", "show", "t1", "--json"))
    assert [event["seq"] for event in found["events"]] == [1, 2, 3, 4]
    assert found["trace"]["trace_id"] == "t1" and "events" not in found["trace"]


def test_hostile_text_is_harmless_everywhere(store: Store, repo: Path) -> None:
    text = " ".join(HOSTILE)
    event = TraceEvent(seq=1, ts=at(1), type=text, target=text, result=text, detail={text: text})
    store.save_trace(
        session("h1", name=text, user=text, classification=text, events=[event], auto_summary=text)
    )
    run = Run(run_id="h2", type=text, subtype=text, user=text, summary=text)
    store.record_run(run)
    store.send_message(text, user=text, run_id="h2")
    store.create_thread(text, user=text)
    for command in (["trace", "list"], ["trace", "show", "h1"], ["watch", "--since", "", "--once"]):
        assert acts(out(repo, *command)) <= {"\n", "\t"}
        _, shown = on_terminal(repo, *command)
        assert acts(COLOURS.sub("", shown)) <= {"\n"}
    for line in out(repo, "watch", "--since", "", "--once", "--jsonl").splitlines():
        assert line.isascii() and not acts(line)


@pytest.mark.parametrize("command", ["show", "delete", "export"])
def test_a_session_that_is_not_there(repo: Path, command: str) -> None:
    more = ["--ndjson"] if command == "export" else []
    refused(scp(repo, "trace", command, "nothing", *more), 3, "no trace 'nothing'")
    refused(scp(repo, "trace", command, "../x", *more), 2, "not a valid trace id")


# ---------------------------------------------------------------- export, recover, delete


def test_export_as_otlp_and_as_json_lines(store: Store) -> None:
    documents = [json.loads(line) for line in out(store.root, "trace", "export", "t1", "--otlp").splitlines()]
    assert [list(document) for document in documents] == [
        ["resourceSpans"],
        ["resourceLogs"],
        ["resourceSpans"],
    ]
    logs = out(store.root, "trace", "export", "t1", "--otlp", "--signal", "logs").splitlines()
    assert [list(json.loads(line)) for line in logs] == [["resourceLogs"]]
    head, *events = out(store.root, "trace", "export", "t1", "--ndjson").splitlines()
    assert json.loads(head)["trace_id"] == "t1"
    assert [TraceEvent.model_validate_json(line) for line in events] == EVENTS


def test_export_wants_one_format(store: Store) -> None:
    refused(scp(store.root, "trace", "export", "t1"), 2, "--otlp", "--ndjson")
    refused(scp(store.root, "trace", "export", "t1", "--otlp", "--ndjson"), 2)
    refused(scp(store.root, "trace", "export", "t1", "--ndjson", "--signal", "logs"), 2, "--signal")


def test_recover_saves_what_a_dead_process_left_and_prints_the_ids(repo: Path) -> None:
    script = """
        import os, signal, sys, time
        from scp_git import Store, bus
        store = Store.open(sys.argv[1])
        print(store.start_recording(name="crashed"), flush=True)
        for number in range(50):
            bus.publish("step:done", data={"n": number})
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(repo)]
    trace_id = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    assert out(repo, "trace", "recover") == f"{trace_id}\n"
    assert out(repo, "trace", "recover") == ""
    shown = json.loads(out(repo, "trace", "show", trace_id, "--json"))
    assert (shown["trace"]["name"], len(shown["events"])) == ("crashed", 50)


def test_delete(store: Store) -> None:
    store.save_trace(session("t2"))
    result = scp(store.root, "trace", "delete", "t1", "nothing", "t2")
    assert (result.returncode, result.stdout) == (3, "t1\nt2\n")
    assert "nothing" in result.stderr
    assert out(store.root, "trace", "list") == ""


# ---------------------------------------------------------------- watch


@contextmanager
def watching(repo: Path, *args: str, **options: Any) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A running ``scp-git watch`` that has begun: it says so with a run that was recorded for that."""
    token = Store.open(repo).change_token()
    command = [*CLI, "watch", "--since", token, *args]
    process = subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout
    finally:
        process.kill()
        process.communicate()


def test_watch_tells_changes_as_they_are_committed(store: Store, repo: Path) -> None:
    with watching(repo, "--jsonl") as (_, lines):
        for run_id in ("r1", "r2"):
            store.record_run(Run(run_id=run_id, type="apply", summary="3 resources"))
            change = json.loads(lines.readline())
            assert (change["kind"], change["action"], change["id"]) == ("run", "added", run_id)
            assert change["data"]["summary"] == "3 resources"
        message = store.send_message("hello", run_id="r1")
        assert json.loads(lines.readline())["id"] == message.id
        store.delete_run("r1")
        change = json.loads(lines.readline())
        assert (change["action"], change["id"]) == ("deleted", "r1")
    token = change["token"]
    assert out(repo, "watch", "--since", token, "--once") == ""


def test_watch_chooses_kinds_and_prints_lines_for_programs_and_people(store: Store, repo: Path) -> None:
    store.record_run(Run(run_id="r1", type="apply", subtype="k8s", status="failed", summary="broken"))
    store.send_message("hello", run_id="r1", user="ada")
    lines = [line.split("\t") for line in out(repo, "watch", "--since", "", "--once").splitlines()]
    assert {line[0] for line in lines} == {"trace", "run", "message"}
    (run,) = [line for line in lines if line[0] == "run"]
    assert run[1:3] == ["added", "r1"] and run[4] == "failed apply:k8s broken"
    only = out(repo, "watch", "--since", "", "--once", "--only", "run", "--only", "trace")
    assert {line.split("\t")[0] for line in only.splitlines()} == {"trace", "run"}
    code, shown = on_terminal(repo, "watch", "--since", "", "--once")
    assert code == 0
    assert "ada: hello  (run r1)" in shown and "deploy (4 events)" in shown


def test_watch_refuses_a_bad_token(repo: Path) -> None:
    refused(scp(repo, "watch", "--since", "nonsense"), 2, "--since", "not a token")


def test_watch_ends_quietly_when_interrupted(store: Store, repo: Path) -> None:
    with watching(repo) as (process, lines):
        store.record_run(Run(run_id="r1", type="x"))
        assert "r1" in lines.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr is not None and process.stderr.read() == ""


@pytest.mark.parametrize("writing", [False, True], ids=["while nothing comes", "while changes come"])
def test_watch_ends_quietly_when_nobody_reads(store: Store, repo: Path, writing: bool) -> None:
    with watching(repo) as (process, lines):
        store.record_run(Run(run_id="r0", type="x"))
        assert "r0" in lines.readline()
        lines.close()
        process.stdout = None
        end = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < end:
            if writing:
                store.record_run(Run(type="x"))
            time.sleep(0.05)
        assert process.poll() == 0
        assert process.stderr is not None and process.stderr.read() == ""


def test_watch_in_a_repository_without_a_ledger(repo: Path) -> None:
    assert out(repo, "watch", "--once") == ""
    assert out(repo, "watch", "--once", "--since", "") == ""
    assert not (repo / ".scp-ledger").exists()
    assert os.listdir(repo / ".git").count("scp") == 0
