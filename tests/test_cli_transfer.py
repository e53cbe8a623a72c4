"""``scp-git ledger import``, ``export`` and ``archive``."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pygit2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scp_git import Run, Settings, Store
from scp_git.ledger.sources import read_history, read_line, read_lines
from tests.sight import ids, tagged
from tests.test_archive import archived, hot, old_run
from tests.test_cli_ledger import CLI, PROJECT, out, refused, scp
from tests.test_import import item, items

OS = Settings(durability="os", hot_max=8, hot_min=4)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))


def lines_of(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


# ---------------------------------------------------------------- export and import


def test_an_export_imports_as_the_same_records(
    repo: Path, make_repo: Callable[..., Path], tmp_path: Path
) -> None:
    store = Store.open(repo, OS)
    store.import_runs(items(30))
    store.record_run(Run(run_id="mine", type="x", user="Ada", summary="with \u2028 and \x85", more={"a": 1}))
    file = tmp_path / "runs.ndjson"
    assert out(repo, "ledger", "export", str(file)) == ""
    assert out(repo, "ledger", "export").encode() == file.read_bytes()
    other = make_repo()
    assert out(other, "ledger", "import", str(file)) == "added 31, unchanged 0, rejected 0\n"
    assert (
        out(other, "ledger", "import", "-", input=file.read_text()) == "added 0, unchanged 31, rejected 0\n"
    )
    again = Store.open(other)
    assert again.list_runs(n=100) == store.list_runs(n=100)
    assert all(again.get_run_events(id) == store.get_run_events(id) for id in ids(repo))
    assert out(other, "ledger", "export").encode() == file.read_bytes()


def test_an_export_is_oldest_first_and_leaves_out_what_is_damaged(
    repo: Path, git: Callable[..., str]
) -> None:
    store = Store.open(repo, OS)
    store.import_runs(reversed(items(7)))
    view = repo / ".scp-ledger"
    bad = hot(repo, git)[0]
    (view / f"ledger/runs/{bad}/run.json").write_text("torn {")
    git(view, "commit", "-q", "-a", "-m", "a person's accident")
    written = [json.loads(line)["run"]["run_id"] for line in store.export_lines()]
    assert written == sorted({run.run_id for run, _ in items(7)} - {bad})


texts = st.text(max_size=8)
runs = st.builds(
    dict,
    type=texts,
    user=texts,
    code_ref=texts,
    status=st.sampled_from(["ok", "failed", "partial"]),
    started_at=st.datetimes().map(str),
    duration_ms=st.integers(0, 10**9),
    metadata=st.dictionaries(
        texts, st.none() | st.integers(-(2**63), 2**63 - 1) | st.lists(texts), max_size=2
    ),
    modules_affected=st.lists(texts, max_size=2),
    extra=texts,
)
events = st.lists(
    st.fixed_dictionaries({"type": texts}, optional={"ts": st.just(""), "more": texts}), max_size=3
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(runs, events), min_size=1, max_size=8))
def test_any_runs_come_through_export_and_import_unchanged(
    make_repo: Callable[..., Path], given_: list[tuple[dict[str, Any], list[dict[str, Any]]]]
) -> None:
    one, two = (Store.open(make_repo(tempfile.mkdtemp()), OS) for _ in range(2))
    made = [(Run(run_id=f"r{n}", **run), some) for n, (run, some) in enumerate(given_)]
    assert one.import_runs(made).added == len(made)
    exported = list(one.export_lines())
    assert two.import_runs(map(read_line, exported)).added == len(made)
    assert list(two.export_lines()) == exported
    assert two.list_runs(n=100) == one.list_runs(n=100)
    assert [two.get_run_events(run.run_id) for run, _ in made] == [
        one.get_run_events(run.run_id) for run, _ in made
    ]


# ---------------------------------------------------------------- other sources


def test_plain_runs_a_line_each_with_or_without_events_and_ids(repo: Path) -> None:
    started = "2026-02-17T20:45:00Z"
    given_ = lines_of(
        {"run_id": "a", "type": "x", "started_at": started},
        {"type": "a/b", "started_at": started, "events": [{"type": "step"}]},
    )
    assert out(repo, "ledger", "import", "-", input=given_ + "\n \n") == "added 2, unchanged 0, rejected 0\n"
    assert out(repo, "ledger", "import", "-", input=given_) == "added 0, unchanged 2, rejected 0\n"
    made = next(id for id in ids(repo) if id != "a")
    assert made.startswith("run_2026-02-17T204500_a-b_")
    assert [event["type"] for event in Store.open(repo).get_run_events(made)] == ["step"]


def test_bad_lines_are_named_and_the_others_are_stored(repo: Path, tmp_path: Path) -> None:
    file = tmp_path / "runs.ndjson"
    bad = [
        '{"type": "x"',
        "[]",
        '{"type": "x"}',
        '{"run_id": "../up", "type": "x", "started_at": "2026-01-01"}',
    ]
    bad += [
        '{"run": {"run_id": "e", "type": "x"}, "events": [1]}',
        '{"run_id": "s", "type": "x", "status": "?"}',
    ]
    file.write_text("\n".join([*bad, json.dumps({"run_id": "good", "type": "x"})]))
    result = scp(repo, "ledger", "import", str(file))
    assert (result.returncode, result.stdout) == (1, "added 1, unchanged 0, rejected 6\n")
    said = result.stderr.splitlines()
    assert [line.split(":")[1].split()[:2] for line in said] == [["record", str(n)] for n in range(1, 7)]
    assert "../up" in said[3] and "status" in said[5]
    assert ids(repo) == ["good"]
    refused(scp(repo, "ledger", "import", "--strict", str(file)), 1)


def test_the_audit_log_of_the_earlier_program(repo: Path) -> None:
    entry = {
        "timestamp": "2026-02-17T20:45:10.500000+00:00",
        "operation_id": "op-1",
        "operation_type": "automate",
        "automation": "lint",
        "environment": "dev",
        "modules_affected": ["api"],
        "status": "failed",
        "actions_total": 3,
        "actions_succeeded": 2,
        "actions_failed": 1,
        "duration_ms": 10_500,
        "errors": ["no such file\nat line 3"],
        "context": {"user": "ada", "why": "nightly"},
    }
    ok = {"timestamp": "2026-02-18T00:00:00", "operation_type": "detect", "operation_id": "", "status": "ok"}
    given_ = lines_of(entry, ok)
    assert out(repo, "ledger", "import", "-", input=given_) == "added 2, unchanged 0, rejected 0\n"
    assert out(repo, "ledger", "import", "-", input=given_) == "added 0, unchanged 2, rejected 0\n"
    second, first = Store.open(repo).list_runs()
    assert first.run_id.startswith("run_2026-02-17T204500_automate_")
    assert (first.started_at, first.ended_at) == (
        "2026-02-17T20:45:00.000000+00:00",
        "2026-02-17T20:45:10.500000+00:00",
    )
    assert (first.type, first.subtype, first.status, first.user) == ("automate", "lint", "failed", "ada")
    assert (first.environment, first.modules_affected, first.duration_ms) == ("dev", ["api"], 10_500)
    assert first.summary == "2 of 3 actions succeeded; no such file"
    assert first.metadata == {
        "operation_id": "op-1",
        "actions_total": 3,
        "actions_succeeded": 2,
        "actions_failed": 1,
        "errors": ["no such file\nat line 3"],
        "context": {"user": "ada", "why": "nightly"},
    }
    assert (second.type, second.status, second.metadata) == ("detect", "ok", {})


def test_the_history_of_a_repository(repo: Path, make_repo: Callable[..., Path]) -> None:
    source = make_repo(commits=3)
    assert (
        out(repo, "ledger", "import", "--from-git-log", str(source)) == "added 3, unchanged 0, rejected 0\n"
    )
    newest = Store.open(repo).list_runs()[0]
    head = str(pygit2.Repository(source).head.target)
    assert (newest.type, newest.user, newest.summary, newest.code_ref) == (
        "commit",
        "Ada Tester",
        "commit 3",
        head,
    )
    assert newest.started_at == "2023-11-14T22:13:23.000000+00:00"
    assert newest.metadata["email"] == "ada@example.org"
    again = out(repo, "ledger", "import", "--from-git-log", str(source))
    assert again == "added 0, unchanged 3, rejected 0\n"


def test_its_own_history_is_tagged_on_its_own_commits(
    make_repo: Callable[..., Path], git: Callable[..., str]
) -> None:
    repo = make_repo(commits=4)
    out(repo, "ledger", "import", "--from-git-log", ".")
    targets = git(repo, "for-each-ref", "--format=%(*objectname)", "refs/tags/scp/run").split()
    assert sorted(targets) == sorted(git(repo, "rev-list", "HEAD").split())


def test_strange_commits_do_not_stop_the_history(repo: Path, make_repo: Callable[..., Path]) -> None:
    source = make_repo(commits=1)
    git = pygit2.Repository(source)
    tree = git.head.peel().tree_id
    raw = f"tree {tree}\nparent {git.head.target}\n"
    raw += "author \xe9 <> 99999999999999 +0000\ncommitter c <d> 1 +0000\n\n"
    odd = git.odb.write(pygit2.enums.ObjectType.COMMIT, raw.encode("latin-1") + b"\xff\xfe")
    git.references.create("refs/heads/main", odd, force=True)
    assert out(repo, "ledger", "import", "--from-git-log", str(source)).startswith("added ")


@pytest.mark.parametrize("args", [[], ["-", "--from-git-log", "."]])
def test_one_source_is_wanted(repo: Path, args: list[str]) -> None:
    refused(scp(repo, "ledger", "import", *args), 2, "either FILE or --from-git-log")


def test_a_source_that_is_not_there(repo: Path, tmp_path: Path) -> None:
    assert scp(repo, "ledger", "import", "missing.ndjson").returncode == 2
    refused(scp(repo, "ledger", "import", "--from-git-log", str(tmp_path)), 1, "not a git repository")
    refused(scp(repo, "ledger", "export", "/no/such/folder/file"), 1, "cannot write")


def test_an_overlong_line_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("scp_git.ledger.sources.MAX_LINE_BYTES", 100)
    file = tmp_path / "lines"
    file.write_text("x" * 1000 + "\n" + '{"run_id": "a", "type": "x"}\n' + "y" * 500)
    with file.open("rb") as opened:
        first, second, third = read_lines(opened)
    assert isinstance(second, tuple) and second[0].run_id == "a"
    assert not isinstance(first, tuple) and not isinstance(third, tuple)


def test_a_history_is_read_lazily() -> None:
    def entries() -> Any:
        yield from ()
        raise AssertionError("nobody asked for it")

    read_history(entries())


def test_progress_is_shown_to_a_person(repo: Path, tmp_path: Path) -> None:
    file = tmp_path / "runs.ndjson"
    store = Store.open(repo, OS)
    store.import_runs(items(600))
    file.write_bytes(b"".join(store.export_lines()))
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*CLI, "ledger", "import", str(file)], cwd=repo, stdout=subprocess.PIPE, stderr=slave, env=os.environ
    ) as process:
        os.close(slave)
        assert process.stdout is not None
        assert process.stdout.read() == b"added 0, unchanged 600, rejected 0\n"
    try:
        shown = os.read(master, 65536)
    finally:
        os.close(master)
    assert b" runs, " in shown and b"/s" in shown


# ---------------------------------------------------------------- archive


def test_archiving_prints_how_many(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo, Settings(durability="os"))
    for number in range(3):
        store.record_run(*item(number))
    assert out(repo, "ledger", "archive", "--older-than-days", "30") == "3\n"
    assert len(archived(repo, git)) == 3
    assert out(repo, "ledger", "archive", "--older-than-days", "30", "--drop-tags") == "3\n"
    assert tagged(repo) == set()
    refused(scp(repo, "ledger", "archive", "--older-than-days", "nan"), 2)
    assert old_run(0).run_id in ids(repo)
