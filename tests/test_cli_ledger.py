"""``scp-git ledger``: what is listed, shown, recorded and deleted, and with which exit code."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scp_git import Run, Store

PROJECT = Path(__file__).resolve().parents[1]
CLI = [sys.executable, "-m", "scp_git.cli"]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))


def scp(cwd: Path, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *args], cwd=cwd, capture_output=True, encoding="utf-8", timeout=60, **options
    )


def out(cwd: Path, *args: str, **options: Any) -> str:
    result = scp(cwd, *args, **options)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line on stderr that says why, and the right exit code."""
    assert result.returncode == code
    assert result.stdout == ""
    assert result.stderr.startswith("scp-git: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


# ---------------------------------------------------------------- record and show


def test_a_recorded_run_is_shown_with_everything(repo: Path) -> None:
    events = '{"type": "step", "target": "web", "detail": {"n": 1}}\n\n{"type": "step", "more": "kept"}\n'
    (repo.parent / "events.jsonl").write_text(events)
    given = {
        "--type": "deploy",
        "--subtype": "k8s",
        "--status": "partial",
        "--user": "Ada",
        "--environment": "prod",
        "--summary": "two of three",
        "--metadata": '{"ticket": 7, "nested": {"a": [1.5, null]}}',
        "--events": "../events.jsonl",
        "--run-id": "mine.1",
        "--started-at": "2026-02-17T20:45:00Z",
        "--ended-at": "2026-02-17T20:46:00+00:00",
        "--duration-ms": "60000",
    }
    args = [word for pair in given.items() for word in pair]
    assert out(repo, "ledger", "record", *args, "--module", "web", "--module", "db") == "mine.1\n"

    shown = json.loads(out(repo, "ledger", "show", "mine.1", "--json"))
    run = shown["run"]
    assert run["modules_affected"] == ["web", "db"]
    assert run["metadata"] == {"ticket": 7, "nested": {"a": [1.5, None]}}
    assert run["started_at"] == "2026-02-17T20:45:00.000000+00:00"
    assert [run[name] for name in ("type", "status", "user", "duration_ms")] == [
        "deploy",
        "partial",
        "Ada",
        60000,
    ]
    assert len(run["code_ref"]) == 40
    assert [event["seq"] for event in shown["events"]] == [1, 2]
    assert shown["events"][1]["more"] == "kept"
    with Store.open(repo) as store:
        stored = store.get_run("mine.1")
        assert stored is not None and stored.model_dump() == run


def test_a_run_needs_only_a_type(repo: Path) -> None:
    run_id = out(repo, "ledger", "record", "--type", "note").strip()
    run = json.loads(out(repo, "ledger", "show", run_id, "--json"))["run"]
    assert (run["type"], run["status"], run["user"]) == ("note", "ok", "Ada Tester")


def test_events_come_from_stdin(repo: Path) -> None:
    run_id = out(repo, "ledger", "record", "--type", "x", "--events", "-", input='{"type": "a"}\n').strip()
    assert [
        event["type"] for event in json.loads(out(repo, "ledger", "show", run_id, "--json"))["events"]
    ] == ["a"]


def test_show_for_programs_is_one_field_a_line(repo: Path) -> None:
    args = ["--type", "x", "--run-id", "one", "--metadata", '{"tail": ["a", "b"]}', "--events", "-"]
    out(repo, "ledger", "record", *args, input='{"type": "step", "other": 1}\n')
    lines = [line.split("\t") for line in out(repo, "ledger", "show", "one").splitlines()]
    assert ["run_id", "one"] in lines
    assert [line for line in lines if line[0] == "metadata.tail"] == [
        ["metadata.tail", "a"],
        ["metadata.tail", "b"],
    ]
    (event,) = [line for line in lines if line[0] == "event"]
    assert event[1] == "1" and event[3] == "step" and json.loads(event[-1]) == {"other": 1}


def test_the_same_again_is_fine_and_other_content_is_refused(repo: Path) -> None:
    same = ["ledger", "record", "--type", "x", "--run-id", "one", "--started-at", "2026-01-01"]
    assert out(repo, *same) == out(repo, *same) == "one\n"
    refused(scp(repo, *same, "--summary", "other"), 1, "'one'")


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--metadata", "{"], "metadata"),
        (["--metadata", "[]"], "object"),
        (["--metadata", '{"a": NaN}'], "NaN"),
        (["--metadata", '{"a": 1, "a": 2}'], "twice"),
        (["--started-at", "yesterday"], "started_at"),
        (["--duration-ms", "-1"], "duration-ms"),
        (["--status", "great"], "great"),
        (["--run-id", "../up"], "../up"),
        (["--run-id", "x.lock"], "x.lock"),
        (["--events", "missing.jsonl"], "missing.jsonl"),
        (["--summary", b"\xff".decode("utf-8", "surrogateescape")], "surrogate"),
        (["--metadata", "[" * 5000], "metadata"),
    ],
)
def test_what_cannot_be_recorded_is_wrong_usage(repo: Path, args: list[str], word: str) -> None:
    refused(scp(repo, "ledger", "record", "--type", "x", *args), 2, word)
    assert out(repo, "ledger", "list") == ""


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"seq": "one"}', '{"a": Infinity}', "\xff"])
def test_events_that_are_none_store_nothing(repo: Path, line: str) -> None:
    args = ["ledger", "record", "--type", "x", "--events", "-"]
    result = scp(repo, *args, input='{"type": "a"}\n' + line + "\n")
    refused(result, 2)
    assert out(repo, "ledger", "list") == ""


def test_without_a_type_it_is_wrong_usage(repo: Path) -> None:
    refused(scp(repo, "ledger", "record"), 2, "--type")
    refused(scp(repo, "ledger", "nonsense"), 2, "nonsense")
    refused(scp(repo, "ledger", "list", "--nonsense"), 2, "--nonsense")


# ---------------------------------------------------------------- list


@pytest.fixture
def filled(repo: Path) -> Path:
    with Store.open(repo) as store:
        for day in range(1, 26):
            store.record_run(
                Run(
                    run_id=f"run-{day:02d}",
                    type="deploy" if day % 2 else "test",
                    status="failed" if day % 5 == 0 else "ok",
                    user="Ada" if day % 3 else "Bob",
                    environment="prod" if day > 20 else "dev",
                    started_at=f"2026-01-{day:02d}T12:00:00Z",
                    duration_ms=day,
                    summary=f"day {day}",
                )
            )
    return repo


@pytest.mark.parametrize(
    ("args", "days"),
    [
        ([], range(25, 5, -1)),
        (["-n", "3"], [25, 24, 23]),
        (["-n", "100"], range(25, 0, -1)),
        (["--type", "test", "-n", "2"], [24, 22]),
        (["--status", "failed"], [25, 20, 15, 10, 5]),
        (["--user", "Bob", "-n", "2"], [24, 21]),
        (["--environment", "prod"], [25, 24, 23, 22, 21]),
        (["--since", "2026-01-24"], [25, 24]),
        (["--until", "2026-01-03T12:00:00Z"], [2, 1]),
        (["--since", "2026-01-03T13:00+01:00", "--until", "2026-01-05"], [4, 3]),
        (["--before", "run-03"], [2, 1]),
        (["--type", "deploy", "--status", "failed", "--before", "run-25"], [15, 5]),
        (["--type", "nothing"], []),
    ],
)
def test_the_filters(filled: Path, args: list[str], days: list[int]) -> None:
    listed = json.loads(out(filled, "ledger", "list", "--json", *args))
    assert [run["run_id"] for run in listed] == [f"run-{day:02d}" for day in days]


def test_a_line_for_programs_has_every_column_and_nothing_is_cut(repo: Path) -> None:
    summary = "long " * 100 + "tab\there\nnew line"
    with Store.open(repo) as store:
        store.record_run(Run(run_id="one", type="x", started_at="2026-01-02", duration_ms=5, summary=summary))
    line = "one 2026-01-02T00:00:00.000000+00:00 ok x  Ada|Tester  5".replace(" ", "\t").replace("|", " ")
    escaped = summary.replace("\t", "\\t").replace("\n", "\\n")
    assert out(repo, "ledger", "list") == f"{line}\t{escaped}\n"


def test_json_is_one_ascii_document(repo: Path) -> None:
    with Store.open(repo) as store:
        store.record_run(Run(type="x", summary="é\x1b[2J\u202e\U0001f680\n"))
    text = out(repo, "ledger", "list", "--json")
    assert text.isascii() and "\x1b" not in text
    assert json.loads(text)[0]["summary"] == "é\x1b[2J\u202e\U0001f680\n"
    assert json.loads(out(repo, "ledger", "list", "--json", "--type", "none")) == []


@pytest.mark.parametrize("args", [["-n", "0"], ["-n", "x"], ["--since", "soon"], ["--before", "a/b"]])
def test_filters_that_make_no_sense(repo: Path, args: list[str]) -> None:
    refused(scp(repo, "ledger", "list", *args), 2)


def test_reading_writes_nothing(repo: Path) -> None:
    before = sorted(path for path in repo.rglob("*"))
    assert out(repo, "ledger", "list") == ""
    refused(scp(repo, "ledger", "show", "none"), 3, "'none'")
    assert sorted(path for path in repo.rglob("*")) == before


# ---------------------------------------------------------------- delete and prune


def test_delete_prints_what_it_deleted_and_3_for_what_is_not_there(filled: Path) -> None:
    result = scp(filled, "ledger", "delete", "run-01", "run-99", "run-02")
    assert (result.returncode, result.stdout) == (3, "run-01\nrun-02\n")
    assert result.stderr.count("\n") == 1 and "'run-99'" in result.stderr
    assert scp(filled, "ledger", "show", "run-01").returncode == 3
    refused(scp(filled, "ledger", "delete", "run-01"), 3)
    refused(scp(filled, "ledger", "delete", "../up"), 2)
    again = scp(filled, "ledger", "record", "--type", "x", "--run-id", "run-01")
    refused(again, 1, "deleted")


def test_prune_without_a_terminal_does_not_ask(filled: Path) -> None:
    assert out(filled, "ledger", "record", "--type", "new", "--run-id", "new") == "new\n"
    assert out(filled, "ledger", "prune", "--older-than-days", "0.5") == "25\n"
    assert out(filled, "ledger", "list").startswith("new\t")
    assert out(filled, "ledger", "prune", "--older-than-days", "1") == "0\n"


@pytest.mark.parametrize(
    ("answer", "option", "left"),
    [("y", [], 0), ("yes", [], 0), ("n", [], 25), ("", [], 25), ("\x04", [], 25), (None, ["--yes"], 0)],
)
def test_prune_asks_on_a_terminal(filled: Path, answer: str | None, option: list[str], left: int) -> None:
    keyboard, slave = os.openpty()
    try:
        command = [*CLI, "ledger", "prune", "--older-than-days", "1", *option]
        process = subprocess.Popen(
            command, cwd=filled, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if answer is not None:
            os.write(keyboard, f"{answer}\n".encode())
        stdout, stderr = process.communicate(timeout=60)
    finally:
        os.close(slave)
        os.close(keyboard)
    assert ("older than 1 days? [y/N]" in stderr) == (answer is not None)
    assert process.returncode == (1 if left else 0)
    assert stdout == ("" if left else "25\n")
    with Store.open(filled) as store:
        assert len(store.list_runs(n=100)) == left


@pytest.mark.parametrize("days", ["-1", "nan", "inf", "1e300", "x"])
def test_prune_wants_a_number_of_days(filled: Path, days: str) -> None:
    refused(scp(filled, "ledger", "prune", "--yes", "--older-than-days", days), 2)
    refused(scp(filled, "ledger", "prune", "--yes"), 2)
    with Store.open(filled) as store:
        assert len(store.list_runs(n=100)) == 25


# ---------------------------------------------------------------- which repository, and exit codes


def test_the_repository_is_found_from_below_and_named_by_dash_c(filled: Path, tmp_path: Path) -> None:
    below = filled / "a" / "b"
    below.mkdir(parents=True)
    listed = out(filled, "ledger", "list")
    assert out(below, "ledger", "list") == listed
    assert out(tmp_path, "-C", str(filled), "ledger", "list") == listed
    assert out(tmp_path, "-C", "repo/a", "ledger", "list") == listed


def test_a_bare_repository_will_do(make_repo: Callable[..., Path]) -> None:
    bare = make_repo(bare=True)
    run_id = out(bare, "ledger", "record", "--type", "x").strip()
    assert out(bare / "refs", "ledger", "list").startswith(run_id)


def test_outside_of_a_repository(tmp_path: Path) -> None:
    refused(scp(tmp_path, "ledger", "list"), 1, str(tmp_path))
    refused(scp(tmp_path, "-C", "missing", "ledger", "record", "--type", "x"), 1, "missing")


def test_a_busy_repository_is_5(repo: Path) -> None:
    assert out(repo, "ledger", "record", "--type", "x", "--run-id", "one") == "one\n"
    with (repo / ".git" / "config").open("a") as config:
        config.write("[scp]\n\tlockTimeoutS = 0.3\n")
    with (repo / ".git" / "scp" / "gate").open() as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        refused(scp(repo, "ledger", "record", "--type", "x"), 5)
        refused(scp(repo, "ledger", "delete", "one"), 5)
        # The lock is the writers' own affair: readers go on, and a command is not held up for ever.
        assert out(repo, "ledger", "list").startswith("one\t")
        result = scp(repo, "run", "--", "sh", "-c", "exit 9")
        assert result.returncode == 9
        assert (
            result.stderr.startswith("scp-git: the run was not recorded: ") and result.stderr.count("\n") == 1
        )


def test_a_wrong_setting_is_explained(repo: Path) -> None:
    with (repo / ".git" / "config").open("a") as config:
        config.write("[scp]\n\tlockTimeoutS = soon\n")
    refused(scp(repo, "ledger", "list"), 1, "locktimeouts")


def test_interrupted_is_130(repo: Path) -> None:
    assert out(repo, "ledger", "record", "--type", "x") != ""
    with (repo / ".git" / "scp" / "gate").open() as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [*CLI, "ledger", "record", "--type", "x", "--events", "-"],
            cwd=repo,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write('{"type": "a"}\n')
        process.stdin.flush()
        # It reads stdin once everything is imported; before that Python itself would be interrupted.
        wait_until_read(process.stdin.fileno())
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip() == "scp-git: interrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_whose_record_waits_can_be_left_with_its_exit_code(
    repo: Path, number: signal.Signals
) -> None:
    assert out(repo, "ledger", "record", "--type", "x") != ""
    with (repo / ".git" / "scp" / "gate").open() as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        command = [*CLI, "run", "--", "sh", "-c", "exit 7"]
        process = subprocess.Popen(command, cwd=repo, stderr=subprocess.PIPE, text=True)
        wait_until_locked_out(process.pid)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (7, "scp-git: the run was not recorded: interrupted\n")


def wait_until_read(pipe: int) -> None:
    """Wait until what was written into the pipe has been taken out."""
    until(lambda: fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) == bytes(4))


def wait_until_locked_out(pid: int) -> None:
    """Wait until the process waits for a lock."""
    waiting = re.compile(rf"-> FLOCK +\S+ +\S+ +{pid} ")
    until(lambda: waiting.search(Path("/proc/locks").read_text()) is not None)


def until(done: Callable[[], bool]) -> None:
    for _ in range(3000):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("that never happened")
