"""Runs as they are recorded, listed, read and deleted, and the bytes in which they lie in the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pygit2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pygit2.enums import ObjectType

import scp_git
from scp_git import (
    AlreadyExists,
    InvalidId,
    RecordTooLarge,
    Run,
    RunEvent,
    Settings,
    Store,
    UnsupportedRepository,
    open_store,
)
from tests.sight import put_files

SOURCES = Path(scp_git.__file__).parents[1]
MakeRepo = Callable[..., Path]
Git = Callable[..., str]
PART = 4 * 1024 * 1024


@pytest.fixture(autouse=True)
def unsynced(home: Path) -> None:
    """No fsync: these tests are not about power loss, and the disk is shared."""
    with (home / ".gitconfig").open("a") as config:
        config.write("[scp]\n\tdurability = os\n")


@pytest.fixture
def store(repo: Path) -> Store:
    return Store.open(repo)


# ---- what lies in the repository, without the library


def read_file(root: Path, path: str, branch: str = "scp-ledger") -> bytes | None:
    """The bytes of a file on one of the branches."""
    repository = pygit2.Repository(root)
    if f"refs/heads/{branch}" not in repository.references:
        return None
    tree = repository.references[f"refs/heads/{branch}"].peel(pygit2.Tree)
    return bytes(tree[path].data) if path in tree else None


def names(root: Path, folder: str, branch: str = "scp-ledger") -> list[str]:
    tree = pygit2.Repository(root).references[f"refs/heads/{branch}"].peel(pygit2.Tree)
    return sorted(entry.name for entry in tree[folder]) if folder in tree else []


def stored(root: Path, run_id: str) -> dict[str, Any]:
    data = read_file(root, f"ledger/runs/{run_id}/run.json")
    assert data is not None
    value: dict[str, Any] = json.loads(data)
    return value


def tag_oid(root: Path, run_id: str) -> str | None:
    repository = pygit2.Repository(root)
    name = f"refs/tags/scp/run/{run_id}"
    return str(repository.references[name].target) if name in repository.references else None


def tag_bytes(root: Path, run_id: str) -> bytes:
    oid = tag_oid(root, run_id)
    assert oid is not None
    kind, data = pygit2.Repository(root).odb.read(oid)
    assert kind == ObjectType.TAG
    return bytes(data)


def head(root: Path) -> str:
    return str(pygit2.Repository(root).head.target)


def add_commit(root: Path, message: str = "more") -> str:
    repository = pygit2.Repository(root)
    ada = pygit2.Signature("Ada Tester", "ada@example.org")
    parents = [] if repository.head_is_unborn else [repository.head.target]
    tree = repository.TreeBuilder().write() if not parents else repository[parents[0]].tree_id
    return str(repository.create_commit("HEAD", ada, ada, message, tree, parents))


def elsewhere(code: str, *args: str | Path) -> str:
    """Run a few lines in another process; ``sys.argv[1:]`` are the arguments. Returns what they print."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nfrom scp_git import *\n{code}", *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- there and back


def test_a_run_comes_back_as_it_was_given(store: Store) -> None:
    run = Run(
        run_id="run_1",
        type="apply",
        subtype="k8s:apply",
        status="partial",
        user="Zoë\n\0",
        code_ref="v1.2",
        started_at="2026-02-17T20:45:00Z",
        ended_at="2026-02-17T21:45:00+01:00",
        duration_ms=142,
        environment="prod",
        modules_affected=["a", "b"],
        summary="three resources \u2028 \U0001f600",
        metadata={"n": 1, "x": 1.0, "none": None, "deep": [{"a": [True]}], "anchor": {"target": "mine"}},
        colour="red",  # type: ignore[call-arg]
    )
    before = run.model_dump()
    assert store.record_run(run) == "run_1"
    assert run.model_dump() == before
    got = store.get_run("run_1")
    assert got == run
    assert repr(got) == repr(run)
    assert store.list_runs() == [run]
    assert store.get_run_events("run_1") == []
    assert not hasattr(got, "anchor")


def test_what_was_left_empty_is_filled_in_what_is_stored_only(store: Store, repo: Path) -> None:
    run = Run(type="apply")
    before = datetime.now(UTC)
    store.record_run(run)
    assert (run.user, run.code_ref, run.ended_at, run.duration_ms) == ("", "", "", 0)
    got = store.get_run(run.run_id)
    assert got is not None
    assert (got.user, got.code_ref) == ("Ada Tester", head(repo))
    assert before <= datetime.fromisoformat(got.ended_at) <= datetime.now(UTC)
    elapsed = datetime.fromisoformat(got.ended_at) - datetime.fromisoformat(got.started_at)
    assert got.duration_ms == int(elapsed.total_seconds() * 1000)


def test_an_end_is_computed_from_the_duration_and_a_duration_from_the_end(store: Store) -> None:
    start = "2026-02-17T20:45:00.000000+00:00"
    one = store.record_run(Run(type="x", started_at=start, duration_ms=1500))
    two = store.record_run(Run(type="x", started_at=start, ended_at="2026-02-17T20:45:02.0015Z"))
    three = store.record_run(Run(type="x", started_at=start, ended_at="2026-02-17T20:44:00Z"))
    far = store.record_run(Run(type="x", started_at="9999-12-31T23:59:59Z", duration_ms=2**63 - 1))
    ends = [run.ended_at for run in map(store.get_run, (one, two, three)) if run]
    assert ends[0] == "2026-02-17T20:45:01.500000+00:00"
    durations = [run.duration_ms for run in map(store.get_run, (one, two, three, far)) if run]
    assert durations == [1500, 2001, 0, 2**63 - 1]


def test_events_come_back_with_exactly_the_keys_given(store: Store) -> None:
    event = RunEvent(type="c", detail={"n": 1})
    event.status = "ok"
    event.detail["later"] = [True]
    mutated = RunEvent(type="d")
    mutated.detail["only"] = "in place"
    events = [
        {"type": "a", "colour": "red", "ts": "2026-02-17T21:45:00+01:00", "seq": 7},
        {"anything": {"nested": [1, 1.5, None]}, "\u2028": "\n"},
        event,
        mutated,
    ]
    run = Run(type="x")
    store.record_run(run, events)
    got = store.get_run_events(run.run_id)
    assert [each.pop("seq") for each in got] == [7, 8, 9, 10]
    times = [each.pop("ts") for each in got]
    assert times[0] == "2026-02-17T20:45:00.000000+00:00"
    assert all(one < other for one, other in pairwise(times))
    assert got == [
        {"type": "a", "colour": "red"},
        {"anything": {"nested": [1, 1.5, None]}, "\u2028": "\n"},
        {"type": "c", "status": "ok", "detail": {"n": 1, "later": [True]}},
        {"type": "d", "detail": {"only": "in place"}},
    ]


def test_events_are_ordered_by_seq(store: Store) -> None:
    run = Run(type="x")
    store.record_run(run, ({"seq": seq, "type": str(seq)} for seq in (3, 1, 2)))
    assert [event["type"] for event in store.get_run_events(run.run_id)] == ["1", "2", "3"]


def test_any_iterable_of_events_will_do(store: Store) -> None:
    for events in ([], (), iter([{"type": "a"}]), ({"type": t} for t in "a"), [RunEvent(type="a")], None):
        run = Run(type="x")
        store.record_run(run, events)
        assert len(store.get_run_events(run.run_id)) in (0, 1)
    assert names(store.root, f"ledger/runs/{run.run_id}") == ["run.json"]


def test_what_is_not_there_is_a_value(store: Store, make_repo: MakeRepo) -> None:
    for each in (store, Store.open(make_repo(commits=0)), Store.open(make_repo(bare=True))):
        assert each.list_runs() == []
        assert each.get_run("run_none") is None
        assert each.get_run_events("run_none") == []
        assert each.delete_run("run_none") is False
        assert each.prune_runs(older_than_days=0) == 0
        each.flush()


def test_reading_writes_nothing(repo: Path) -> None:
    def files() -> list[str]:
        return sorted(str(path) for path in repo.rglob("*"))

    before = files()
    with Store.open(repo) as store:
        assert (store.list_runs(), store.get_run("a"), store.get_run_events("a")) == ([], None, [])
    assert files() == before


# ---------------------------------------------------------------- the same run twice


def test_the_same_run_twice_is_one_run(store: Store, repo: Path) -> None:
    run = Run(type="x", metadata={"pair": (1, 2), "odd": -0.0})
    events = [{"type": "a"}, {"type": "b", "ts": "2026-02-17T20:45:00Z", "pair": (1, 2)}, RunEvent(type="c")]
    store.record_run(run, events)
    tip = pygit2.Repository(repo).references["refs/heads/scp-ledger"].target
    got, got_events = store.get_run(run.run_id), store.get_run_events(run.run_id)
    assert got is not None
    again = Run.model_validate(run.model_dump())
    for repeated, with_events in ((run, events), (again, events), (got, got_events), (got, events)):
        assert store.record_run(repeated, with_events) == run.run_id
    assert pygit2.Repository(repo).references["refs/heads/scp-ledger"].target == tip
    assert (store.list_runs(), store.get_run_events(run.run_id)) == ([got], got_events)


def test_the_same_run_from_another_commit_and_user_is_the_same(store: Store, repo: Path, home: Path) -> None:
    run = Run(type="x")
    store.record_run(run)
    before = store.get_run(run.run_id)
    add_commit(repo)
    (home / ".gitconfig").write_text("[user]\nname = Grace\nemail = g@example.org\n")
    assert Store.open(repo).record_run(run) == run.run_id
    assert store.get_run(run.run_id) == before


OTHER: list[dict[str, Any]] = [
    {"type": "y"}, {"summary": "other"}, {"status": "failed"}, {"user": "somebody else"}, {"code_ref": "v2"},
    {"duration_ms": 99_999_999}, {"ended_at": "2030-01-01T00:00:00Z"}, {"metadata": {"a": 1}},
    {"modules_affected": ["a"]}, {"started_at": "2020-01-01T00:00:00Z"}, {"colour": "red"}, {"events": None},
    {"events": [{"type": "a"}, {"type": "b"}]}, {"events": [{"type": "b"}]},
    {"events": [{"type": "a", "ts": "2020-01-01T00:00:00Z"}]}, {"events": [{"type": "a", "seq": 2}]},
    {"events": [{"type": "a", "more": None}]}, {"metadata": {"a": False}}, {"metadata": {"a": 0.0}},
]  # fmt: skip


def test_other_content_under_the_same_id_is_refused(store: Store) -> None:
    run, events = Run(type="x", metadata={"a": 0}), [{"type": "a"}]
    store.record_run(run, events)

    def state() -> tuple[object, ...]:
        return store.get_run(run.run_id), store.get_run_events(run.run_id), tag_bytes(store.root, run.run_id)

    before = state()
    for change in OTHER:
        other = Run.model_validate({**run.model_dump(), **{k: v for k, v in change.items() if k != "events"}})
        with pytest.raises(AlreadyExists) as caught:
            store.record_run(other, change.get("events", events))
        assert (caught.value.id, caught.value.deleted) == (run.run_id, False)
        assert state() == before
    store.record_run(run, events)


def test_a_repeated_run_mends_its_missing_tag(store: Store) -> None:
    run = Run(type="x")
    store.record_run(run)
    oid = tag_oid(store.root, run.run_id)
    pygit2.Repository(store.root).references.delete(f"refs/tags/scp/run/{run.run_id}")
    store.record_run(run)
    assert tag_oid(store.root, run.run_id) == oid


# ---------------------------------------------------------------- order, filters, pages


def test_the_newest_comes_first_also_when_nothing_but_microseconds_differ(store: Store) -> None:
    runs = [Run(type="x") for _ in range(30)]
    for run in runs[::2] + runs[1::2]:
        store.record_run(run)
    assert [run.run_id for run in store.list_runs(n=100)] == [run.run_id for run in reversed(runs)]


def test_runs_of_one_moment_are_ordered_by_id(store: Store) -> None:
    for run_id in ("b", "C", "a", "c", "10", "9"):
        store.record_run(Run(run_id=run_id, type="x", started_at="2026-02-17T20:45:00Z"))
    assert [run.run_id for run in store.list_runs()] == ["c", "b", "a", "C", "9", "10"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Run]]:
    """A store with 40 runs of all sorts, and these runs, newest first."""
    root = tmp_path_factory.mktemp("many")
    repository = pygit2.init_repository(root)
    repository.config["user.name"], repository.config["user.email"] = "Ada", "ada@example.org"
    runs = [
        Run(
            run_id=f"run_{n}",
            type=["apply", "detect", "plan"][n % 3],
            status=["ok", "failed", "partial", "ok"][n % 4],  # type: ignore[arg-type]
            user=["ann", "bob"][n % 2],
            environment=["", "prod"][n // 5 % 2],
            started_at=f"2026-02-{n // 2 + 1:02}T00:00:00Z",
            code_ref="none",
        )
        for n in range(40)
    ]
    store = Store.open(root)
    for run in runs:
        store.record_run(run)
    stored_runs = [run for run in map(store.get_run, (run.run_id for run in runs)) if run]
    return store, sorted(stored_runs, key=lambda run: (run.started_at, run.run_id), reverse=True)


def maybe(values: Any) -> st.SearchStrategy[Any]:
    return st.none() | st.sampled_from(values)


days = [datetime(2026, 2, day, tzinfo=UTC) for day in (1, 2, 11, 20, 28)]
spellings = [
    *days,
    *(day.isoformat() for day in days),
    *(day.astimezone(timezone(timedelta(hours=-7))) for day in days),
    "2026-02-11",
    "2026-02-11T00:00:00Z",
    datetime(2026, 2, 11),  # noqa: DTZ001
]


def moment(value: str | datetime | None) -> datetime | None:
    value = datetime.fromisoformat(value) if isinstance(value, str) else value
    return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


@given(
    n=st.integers(-1, 50),
    before=maybe([f"run_{n}" for n in range(40)]),
    fields=st.fixed_dictionaries(
        {
            "type": maybe(["apply", "detect", "none", ""]),
            "status": maybe(["ok", "failed", "other"]),
            "user": maybe(["ann", "bob", "eve"]),
            "environment": maybe(["", "prod", "dev"]),
        }
    ),
    since=maybe(spellings),
    until=maybe(spellings),
)
@settings(max_examples=200)
def test_a_list_is_what_the_filters_say(
    many: tuple[Store, list[Run]],
    n: int,
    before: str | None,
    fields: dict[str, str | None],
    since: str | datetime | None,
    until: str | datetime | None,
) -> None:
    store, runs = many
    expected = [run for run in runs if all(v is None or getattr(run, k) == v for k, v in fields.items())]
    first, end = moment(since), moment(until)
    expected = [
        run
        for run in expected
        if (first is None or first <= datetime.fromisoformat(run.started_at))
        and (end is None or datetime.fromisoformat(run.started_at) < end)
    ]
    if before is not None:
        place = [run.run_id for run in runs].index(before)
        expected = [run for run in expected if run in runs[place + 1 :]]
    assert store.list_runs(n=n, before=before, since=since, until=until, **fields) == expected[: max(n, 0)]


def test_none_is_listed_for_zero_and_twenty_for_nothing(many: tuple[Store, list[Run]]) -> None:
    store, runs = many
    assert store.list_runs(n=0) == []
    assert store.list_runs() == runs[:20]
    assert store.list_runs(n=10**9) == runs


def test_pages_show_every_run_once(many: tuple[Store, list[Run]]) -> None:
    store, runs = many
    seen: list[Run] = []
    page = store.list_runs(n=7, user="ann")
    while page:
        seen += page
        page = store.list_runs(n=7, user="ann", before=page[-1].run_id)
    assert seen == [run for run in runs if run.user == "ann"]


def test_before_a_run_that_is_not_there_is_nothing(many: tuple[Store, list[Run]]) -> None:
    assert many[0].list_runs(before="run_none") == []


@pytest.mark.parametrize("field", ["since", "until"])
@pytest.mark.parametrize("value", ["yesterday", "", "2026-02-30", "0001-01-01T00:00:00+05:00"])
def test_a_filter_that_is_no_time_is_refused(store: Store, field: str, value: str) -> None:
    with pytest.raises(ValueError, match="ISO 8601"):
        store.list_runs(**{field: value})  # type: ignore[arg-type]


# ---------------------------------------------------------------- deleting


def test_a_deleted_run_is_gone_and_stays_gone(store: Store, repo: Path) -> None:
    run, other = Run(type="x"), Run(type="y")
    store.record_run(run, [{"type": "a"}])
    store.record_run(other)
    tag = tag_oid(repo, run.run_id)
    assert store.delete_run(run.run_id) is True
    for each in (store, Store.open(repo)):
        assert each.get_run(run.run_id) is None
        assert each.get_run_events(run.run_id) == []
        assert [listed.run_id for listed in each.list_runs()] == [other.run_id]
        assert each.list_runs(before=run.run_id) == []
        assert each.delete_run(run.run_id) is False
        with pytest.raises(AlreadyExists) as caught:
            each.record_run(run, [{"type": "a"}])
        assert caught.value.deleted
    assert tag_oid(repo, run.run_id) is None
    assert names(repo, "ledger/runs") == [other.run_id]
    assert not (repo / ".scp-ledger/ledger/runs" / run.run_id).exists()
    shard = next(name for name in names(repo, "deleted/run", "scp-ledger-archive"))
    deletion = json.loads(read_file(repo, f"deleted/run/{shard}/{run.run_id}", "scp-ledger-archive") or b"")
    assert (deletion["id"], deletion["user"]) == (run.run_id, "Ada Tester")
    assert tag in deletion["tags"] and len(deletion["tags"]) == 2, "that of its other id, too"
    assert len(deletion["digests"]) == 1
    assert datetime.fromisoformat(deletion["ts"]) <= datetime.now(UTC)


@pytest.mark.referee
def test_stock_git_sees_no_trace_of_a_deleted_run(store: Store, repo: Path, git: Git) -> None:
    run_id = store.record_run(Run(type="x"), [{"type": "a"}])
    assert git(repo, "tag", "-l", "scp/run/*").split() == [f"scp/run/{run_id}"]
    assert store.delete_run(run_id)
    assert git(repo, "tag", "-l", "scp/run/*") == ""
    assert git(repo, "ls-tree", "-r", "--name-only", "scp-ledger").split() == ["FORMAT"]


def test_the_note_and_the_chat_of_a_deleted_run_go_with_it(store: Store, repo: Path) -> None:
    runs = [Run(type="x"), Run(type="y")]
    for run in runs:
        store.record_run(run)
    repository = pygit2.Repository(repo)
    ada = repository.default_signature
    tags = [str(tag_oid(repo, run.run_id)) for run in runs]
    for tag in tags:
        repository.create_note('{"id":"msg_1"}\n', ada, ada, tag, "refs/notes/scp-chat")
    put_files(repo, {f"chat/runs/{run.run_id}/messages.jsonl": b'{"id":"msg_2"}\n' for run in runs})
    store.delete_run(runs[0].run_id)
    assert [str(note.annotated_id) for note in repository.notes("refs/notes/scp-chat")] == tags[1:]
    assert names(repo, "chat/runs") == [runs[1].run_id]


def test_a_run_without_its_tag_is_deleted_with_the_note_on_it(store: Store, repo: Path) -> None:
    run_id = store.record_run(Run(type="x"))
    repository = pygit2.Repository(repo)
    ada = repository.default_signature
    repository.create_note("{}\n", ada, ada, str(tag_oid(repo, run_id)), "refs/notes/scp-chat")
    repository.references.delete(f"refs/tags/scp/run/{run_id}")
    assert store.delete_run(run_id)
    assert list(repository.notes("refs/notes/scp-chat")) == []


def test_pruning_deletes_what_started_long_ago(store: Store, repo: Path) -> None:
    now = datetime.now(UTC)
    ages = {"old": 10, "older": 400, "edge": 5.01, "young": 4.99, "new": 0}
    for name, age in ages.items():
        store.record_run(Run(run_id=name, type="x", started_at=now - timedelta(days=age)))  # type: ignore[arg-type]
    assert store.prune_runs(older_than_days=5) == 3
    assert [run.run_id for run in store.list_runs()] == ["new", "young"]
    assert store.prune_runs(older_than_days=5) == 0
    assert store.prune_runs(older_than_days=1e300) == 0
    assert store.prune_runs(older_than_days=float("inf")) == 0
    with pytest.raises(AlreadyExists):
        store.record_run(Run(run_id="old", type="x"))
    assert store.prune_runs(older_than_days=0.5) == 1
    assert store.prune_runs(older_than_days=0) == 1
    assert names(repo, "ledger/runs") == []


@pytest.mark.parametrize("days", [-1, float("nan"), -0.001, float("-inf")])
def test_pruning_by_a_negative_age_is_refused(store: Store, days: float) -> None:
    store.record_run(Run(type="x"))
    with pytest.raises(ValueError, match="older_than_days"):
        store.prune_runs(older_than_days=days)
    assert len(store.list_runs()) == 1


@pytest.mark.full
async def test_pruning_a_thousand_runs(repo: Path) -> None:
    async with open_store(repo) as store, anyio.create_task_group() as group:
        for n in range(1100):
            group.start_soon(store.record_run, Run(run_id=f"r{n}", type="x", started_at="2020-01-01"))
    assert Store.open(repo).prune_runs(older_than_days=1) == 1100
    assert Store.open(repo).list_runs() == []


# ---------------------------------------------------------------- before the first commit


def test_before_the_first_commit_runs_are_stored_and_tagged_later(make_repo: MakeRepo) -> None:
    root = make_repo(commits=0)
    store = Store.open(root)
    early = [store.record_run(Run(type="early"), [{"type": "a"}]) for _ in range(3)]
    assert [run.run_id for run in store.list_runs()] == early[::-1]
    assert [(stored(root, run_id)["code_ref"], tag_oid(root, run_id)) for run_id in early] == [("", None)] * 3
    assert all("anchor" not in stored(root, run_id) for run_id in early)
    before = store.list_runs()

    commit = add_commit(root)
    assert tag_oid(root, early[0]) is None
    late = store.record_run(Run(type="late"))
    for run_id in early:
        assert stored(root, run_id)["anchor"]["target"] == commit
        assert stored(root, run_id)["code_ref"] == ""
        assert f"object {commit}\n".encode() in tag_bytes(root, run_id)
    assert stored(root, late)["code_ref"] == commit
    assert store.list_runs()[1:] == before
    assert store.get_run_events(early[0])[0]["type"] == "a"


@pytest.mark.parametrize("verb", ["store.ensure_ledger()", "store.record_run(Run(type='late'))"])
def test_another_process_tags_them_as_well(make_repo: MakeRepo, verb: str) -> None:
    root = make_repo(commits=0)
    early = Store.open(root).record_run(Run(type="early"))
    commit = add_commit(root)
    elsewhere(f"store = Store.open(sys.argv[1])\n{verb}", root)
    assert stored(root, early)["anchor"]["target"] == commit
    assert tag_oid(root, early) is not None
    assert len((root / ".git/scp/deferred").read_text()) == 0


def test_only_the_repository_that_recorded_them_anchors_them(
    make_repo: MakeRepo, tmp_path: Path, watch: Callable[[Path], Path]
) -> None:
    root = make_repo(commits=0)
    early = Store.open(root).record_run(Run(type="early"))
    pygit2.clone_repository(str(root), str(tmp_path / "clone"), checkout_branch="scp-ledger")
    clone = watch(tmp_path / "clone")
    other = pygit2.Repository(clone)
    other.set_head("refs/heads/main")
    other.references.delete("refs/heads/scp-ledger")
    for path in (clone / "FORMAT", clone / "ledger"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    other.index.clear()
    other.index.write()
    add_commit(clone)
    there = Store.open(clone)
    there.record_run(Run(type="late"))
    assert {run.type for run in there.list_runs()} == {"early", "late"}
    assert "anchor" not in stored(clone, early)
    assert tag_oid(clone, early) is None


def test_a_run_deleted_before_the_first_commit_is_not_tagged(make_repo: MakeRepo) -> None:
    root = make_repo(commits=0)
    store = Store.open(root)
    early = store.record_run(Run(type="early"))
    assert store.delete_run(early)
    add_commit(root)
    store.record_run(Run(type="late"))
    assert tag_oid(root, early) is None
    assert early not in names(root, "ledger/runs")


def test_a_waiting_run_recorded_again_stays_one_run(make_repo: MakeRepo) -> None:
    root = make_repo(commits=0)
    store, run = Store.open(root), Run(type="early")
    store.record_run(run)
    store.record_run(run)
    add_commit(root)
    store.record_run(run)
    assert len(store.list_runs()) == 1
    assert tag_oid(root, run.run_id) is not None
    assert stored(root, run.run_id)["code_ref"] == ""


# ---------------------------------------------------------------- anchors and tags


def test_the_tag_points_at_the_commit_that_the_run_names(make_repo: MakeRepo) -> None:
    root = make_repo(commits=3)
    store = Store.open(root)
    first = str(pygit2.Repository(root).revparse_single("HEAD~2").id)
    blob = str(pygit2.Repository(root).revparse_single("HEAD:file.txt").id)
    targets = {first: first, "": head(root), "main": head(root), "0" * 40: head(root), blob: head(root)}
    targets |= {first[:10]: head(root), first.upper(): head(root), "f" * 40: head(root), "": head(root)}
    for code_ref, target in targets.items():
        run_id = store.record_run(Run(type="x", code_ref=code_ref))
        assert tag_bytes(root, run_id).startswith(f"object {target}\ntype commit\n".encode())
        assert stored(root, run_id)["code_ref"] == (code_ref or target)
        assert stored(root, run_id)["anchor"]["target"] == target


def test_the_tag_is_rebuilt_from_the_file_byte_for_byte(store: Store, repo: Path) -> None:
    metadata = {"float": 1.0, "big": 1e22, "text": 'é\u2028"\\/\x7f\0', "n": 2**63 - 1, "anchor": 1}
    run_id = store.record_run(Run(type="x", metadata=metadata, colour=[None]))  # type: ignore[call-arg]
    record = stored(repo, run_id)
    anchor = record.pop("anchor")
    message = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    header = f"object {anchor['target']}\ntype commit\ntag scp/run/{run_id}\ntagger {anchor['tagger']}\n"
    assert tag_bytes(repo, run_id) == f"{header}\n{message}\n".encode()
    assert anchor["tagger"].startswith("Ada Tester <ada@example.org> ")


@pytest.mark.referee
def test_stock_git_would_make_the_same_tag(
    store: Store, repo: Path, git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = store.record_run(Run(type="x", summary="# no comment\u2028 é", user="  two  "))
    record = stored(repo, run_id)
    anchor = record.pop("anchor")
    message = tmp_path / "message"
    message.write_text(json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n")
    shutil.copytree(repo, tmp_path / "copy")
    monkeypatch.setenv("GIT_COMMITTER_DATE", "@" + anchor["tagger"].rpartition("> ")[2])
    git(
        tmp_path / "copy",
        "tag",
        "-f",
        "-a",
        "--cleanup=verbatim",
        "-F",
        str(message),
        f"scp/run/{run_id}",
        "main",
    )
    assert git(tmp_path / "copy", "rev-parse", f"refs/tags/scp/run/{run_id}").strip() == tag_oid(repo, run_id)


@pytest.mark.referee
def test_stock_git_shows_a_run(store: Store, repo: Path, git: Git) -> None:
    run_id = store.record_run(Run(type="x", summary="shown"), [{"type": "a"}])
    assert (
        json.loads(git(repo, "tag", "-l", "--format=%(contents)", f"scp/run/{run_id}"))["summary"] == "shown"
    )
    assert json.loads(git(repo, "show", f"scp-ledger:ledger/runs/{run_id}/run.json"))["summary"] == "shown"
    log = git(repo, "log", "--format=%an <%ae>|%cn|%s|%(trailers:key=Scp-Git)", "scp-ledger")
    assert log.strip() == f"Ada Tester <ada@example.org>|Ada Tester|ledger: x {run_id}|Scp-Git: 1"
    assert git(repo, "rev-parse", f"scp/run/{run_id}^{{commit}}").strip() == head(repo)


# ---------------------------------------------------------------- bytes

GOLDEN = """\
{{
  "run_id": "run_2026-02-17T204500_apply_x1y2",
  "type": "apply",
  "subtype": "k8s:apply",
  "status": "ok",
  "user": "Zoë",
  "code_ref": "{target}",
  "started_at": "2026-02-17T20:45:00.000000+00:00",
  "ended_at": "2026-02-17T20:45:01.500000+00:00",
  "duration_ms": 1500,
  "environment": "",
  "modules_affected": [
    "web",
    "db"
  ],
  "summary": "Applied 3 \\"resources\\"\\n\u2028 \U0001f600",
  "metadata": {{
    "b": 1.0,
    "a": [],
    "c": {{}},
    "d": null
  }},
  "colour": "red",
  "anchor": {{
    "target": "{target}",
    "tagger": "Ada Tester <ada@example.org> {seconds} +0000"
  }}
}}
"""
GOLDEN_EVENTS = """\
{"seq":1,"ts":"2026-02-17T20:45:00.100000+00:00","type":"adapter:execute","status":"ok","détail":{"b":1,"a":"\u2028"}}
{"seq":3,"ts":"2026-02-17T20:45:00.200000+00:00","type":"run:complete","duration_ms":0}
"""


def test_the_files_of_a_run_byte_for_byte(store: Store, repo: Path) -> None:
    run = Run(
        colour="red",  # type: ignore[call-arg]
        metadata={"b": 1.0, "a": [], "c": {}, "d": None},
        summary='Applied 3 "resources"\n\u2028 \U0001f600',
        modules_affected=["web", "db"],
        duration_ms=1500,
        started_at="2026-02-17T21:45:00+01:00",
        code_ref=head(repo),
        user="Zoë",
        subtype="k8s:apply",
        type="apply",
        run_id="run_2026-02-17T204500_apply_x1y2",
    )
    events = [
        {"type": "run:complete", "ts": "2026-02-17T20:45:00.2Z", "duration_ms": 0, "seq": 3},
        {"type": "adapter:execute", "seq": 1, "status": "ok", "ts": "2026-02-17T20:45:00.1Z"},
    ]
    events[1]["détail"] = {"b": 1, "a": "\u2028"}
    store.record_run(run, events)
    folder = f"ledger/runs/{run.run_id}"
    seconds = stored(repo, run.run_id)["anchor"]["tagger"].split()[-2]
    files = {
        "run.json": GOLDEN.format(target=head(repo), seconds=seconds).encode(),
        "events.jsonl": GOLDEN_EVENTS.encode(),
    }
    assert names(repo, folder) == sorted(files)
    for name, expected in files.items():
        assert read_file(repo, f"{folder}/{name}") == expected
        assert (repo / ".scp-ledger" / folder / name).read_bytes() == expected
    assert abs(int(seconds) - datetime.now(UTC).timestamp()) < 60
    assert read_file(repo, "FORMAT") == b"1\n"


def record_many_events(store: Store, count: int) -> None:
    run, stamp = Run(type="x"), "2026-02-17T20:45:00.000000+00:00"
    events = [
        {"seq": n, "ts": stamp, "type": "step", "target": f"é{n}", "status": "x" * 120}
        for n in range(1, count + 1)
    ]
    store.record_run(run, events)
    assert store.get_run_events(run.run_id) == events
    store.record_run(run, events)
    folder = f"ledger/runs/{run.run_id}"
    parts = [name for name in names(store.root, folder) if name != "run.json"]
    sizes = [len(read_file(store.root, f"{folder}/{name}") or b"") for name in parts]
    assert len(parts) >= 2
    assert parts[-1] == "events.jsonl"
    assert parts[:-1] == [f"events-{n:04}.jsonl" for n in range(2, len(parts) + 1)]
    assert max(sizes) <= PART
    assert sorted(sizes)[1] > PART - 1024
    assert (read_file(store.root, f"{folder}/events.jsonl") or b"").startswith(b'{"seq":1,')


def test_thirty_thousand_events_lie_in_parts(store: Store) -> None:
    record_many_events(store, 30_000)


@pytest.mark.full
def test_two_hundred_thousand_events_lie_in_parts(store: Store) -> None:
    record_many_events(store, 200_000)


# ---------------------------------------------------------------- clones, bare repositories, other formats


@pytest.mark.referee
@pytest.mark.parametrize("tags", ["--tags", "--no-tags"])
def test_a_fresh_clone_begins_with_the_branches_of_origin(
    make_repo: MakeRepo, tmp_path: Path, git: Git, watch: Callable[[Path], Path], tags: str
) -> None:
    root = make_repo(commits=2)
    store = Store.open(root)
    run_ids = [store.record_run(Run(type="x"), [{"type": "a"}]) for _ in range(3)]
    gone = store.record_run(Run(type="x"))
    store.delete_run(gone)
    runs = store.list_runs()
    git(tmp_path, "clone", "-q", tags, str(root), "clone")
    root.rename(tmp_path / "moved away")
    clone = watch(tmp_path / "clone")

    there = Store.open(clone)
    assert there.ensure_ledger() == clone / ".scp-ledger"
    assert there.list_runs() == runs
    assert (
        git(clone, "rev-parse", "scp-ledger").strip() == git(clone, "rev-parse", "origin/scp-ledger").strip()
    )
    for run_id in run_ids:
        assert tag_oid(clone, run_id) == tag_oid(tmp_path / "moved away", run_id)
        assert (clone / ".scp-ledger/ledger/runs" / run_id / "events.jsonl").is_file()
    with pytest.raises(AlreadyExists):
        there.record_run(Run(run_id=gone, type="x"))
    there.record_run(Run(type="y"))
    assert [run.type for run in there.list_runs()] == ["y", "x", "x", "x"]


def test_a_bare_repository_has_a_ledger_but_no_view(make_repo: MakeRepo) -> None:
    root = make_repo(bare=True, commits=1)
    store = Store.open(root)
    assert store.ensure_ledger() is None
    run_id = store.record_run(Run(type="x"), [{"type": "a"}])
    assert [run.run_id for run in store.list_runs()] == [run_id]
    assert tag_oid(root, run_id) is not None
    assert read_file(root, "FORMAT") == b"1\n"
    assert store.delete_run(run_id)
    assert not list(root.glob("**/.scp-ledger"))
    assert not (root / "worktrees").exists()


def test_a_ledger_of_a_later_format_is_left_alone(store: Store, repo: Path) -> None:
    for text in (b"2\n", b"10\n", b"99999999999999999999\n", b"1.1\n", b"x\n", b"-1\n"):
        put_files(repo, {"FORMAT": text, "ledger/runs/r/run.json": b'{"run_id":"r","type":"x"}\n'})
        tip = pygit2.Repository(repo).references["refs/heads/scp-ledger"].target
        for call in (
            lambda: store.record_run(Run(type="x")),
            store.list_runs,
            lambda: store.get_run("r"),
            lambda: store.get_run_events("r"),
            lambda: store.delete_run("r"),
            lambda: store.prune_runs(older_than_days=0),
            store.ensure_ledger,
        ):
            with pytest.raises(UnsupportedRepository) as caught:
                call()
            assert caught.value.path == repo
            assert "upgrade" in str(caught.value)
        assert pygit2.Repository(repo).references["refs/heads/scp-ledger"].target == tip
        assert not (repo / ".scp-ledger").exists()


DAMAGED = {
    "torn": b'{"run_id": "damaged", "ty',
    "empty": b"",
    "a list": b"[]",
    "no type": b'{"run_id": "damaged"}',
    "another id": b'{"run_id": "r1", "type": "x", "started_at": "2026-01-01T00:00:00Z"}',
    "bad id": b'{"run_id": "../x", "type": "x"}',
    "NaN": b'{"run_id": "damaged", "type": "x", "metadata": {"a": NaN}}',
    "twice": b'{"run_id": "damaged", "type": "x", "type": "x"}',
    "status": b'{"run_id": "damaged", "type": "x", "status": "done"}',
    "time": b'{"run_id": "damaged", "type": "x", "started_at": "yesterday"}',
    "deep": b'{"run_id": "damaged", "type": "x", "metadata": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}",
    "UTF-16": '{"run_id": "damaged", "type": "x"}'.encode("utf-16"),
    "surrogate": b'{"run_id": "damaged", "type": "\\ud800"}',
    "conflict": b'<<<<<<< HEAD\n{"run_id": "damaged"}\n',
}


def test_a_damaged_run_is_left_out_and_hides_no_other(
    store: Store, repo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [store.record_run(Run(run_id=f"r{n}", type="x")) for n in range(3)]
    damaged = {f"damaged-{name.replace(' ', '-')}": data for name, data in DAMAGED.items()}
    put_files(repo, {f"ledger/runs/{run_id}/run.json": data for run_id, data in damaged.items()})
    put_files(repo, {"ledger/runs/nothing/events.jsonl": b"{}\n"})
    for each in (store, Store.open(repo)):
        caplog.clear()
        assert [run.run_id for run in each.list_runs()] == good[::-1]
        for run_id in damaged:
            assert f"'{run_id}'" in caplog.text
            assert each.get_run(run_id) is None, run_id
        assert each.get_run("nothing") is None
    assert store.record_run(Run(run_id="r3", type="x")) == "r3"
    assert [run.run_id for run in store.list_runs()] == ["r3", *good[::-1]]
    for run_id in damaged:
        assert store.delete_run(run_id) is True
    assert names(repo, "ledger/runs") == ["nothing", *good, "r3"]


def test_a_run_too_large_to_read_hides_no_other(store: Store, repo: Path) -> None:
    good = store.record_run(Run(type="x"))
    put_files(repo, {"ledger/runs/large/run.json": b'{"run_id":"large","type":"x"}' + b" " * 17_000_000})
    assert [run.run_id for run in store.list_runs()] == [good]
    store.ensure_ledger()


def test_a_damaged_event_line_hides_no_other(store: Store, repo: Path) -> None:
    run_id = store.record_run(Run(type="x"), [{"type": "a", "ts": "2026-01-01T00:00:00Z"}])
    first = read_file(repo, f"ledger/runs/{run_id}/events.jsonl") or b""
    mixed = first + b'\r\n\nnonsense\n[]\n{"seq":2,"type":"b"}\n{"type":"last"}\n{"seq":3,"torn'
    put_files(repo, {f"ledger/runs/{run_id}/events.jsonl": mixed})
    put_files(repo, {f"ledger/runs/{run_id}/events-other.jsonl": b'{"seq":0,"type":"0"}'})
    assert [event["type"] for event in store.get_run_events(run_id)] == ["0", "a", "b", "last"]
    store.ensure_ledger()


def test_a_foreign_anchor_must_be_well_formed(store: Store, repo: Path) -> None:
    evil = "Eve <e@x> 1 +0000\nobject " + "0" * 40
    for n, anchor in enumerate(["x", {"target": "HEAD"}, {"target": head(repo), "tagger": evil}, None, 5]):
        record = {"run_id": f"r{n}", "type": "x", "started_at": "2026-01-01T00:00:00Z", "anchor": anchor}
        put_files(repo, {f"ledger/runs/r{n}/run.json": json.dumps(record).encode()})
    store.ensure_ledger()
    assert len(store.list_runs()) == 5
    assert [tag_oid(repo, f"r{n}") for n in range(5)] == [None] * 5
    assert all(store.delete_run(f"r{n}") for n in range(5))


def test_a_foreign_anchor_with_text_that_is_not_unicode_harms_nobody(store: Store, repo: Path) -> None:
    run_id = store.record_run(Run(type="x"))
    record = {**stored(repo, run_id), "run_id": "odd", "summary": "\ud800"}
    put_files(repo, {"ledger/runs/odd/run.json": json.dumps(record).encode()})
    store.ensure_ledger()
    assert [run.run_id for run in store.list_runs()] == [run_id]
    assert store.delete_run("odd") is True
    assert names(repo, "ledger/runs") == [run_id]


# ---------------------------------------------------------------- runs of the earlier program

OLD = {
    "run_id": "run_2026-02-18T101500_vault-unlock_ab12",
    "type": "vault",
    "subtype": "vault:unlock",
    "status": "ok",
    "user": "Old User",
    "code_ref": "",
    "started_at": "2026-02-18T10:15:00+00:00",
    "ended_at": "2026-02-18T10:15:01+00:00",
    "duration_ms": 1000,
    "environment": "",
    "modules_affected": [],
    "summary": "Vault unlocked",
    "metadata": {},
}


@pytest.fixture
def old(repo: Path) -> Path:
    """A repository with a run as the earlier program wrote it: no FORMAT, no anchor, a tag by stock git."""
    folder = f"ledger/runs/{OLD['run_id']}"
    files = {
        f"{folder}/run.json": json.dumps(OLD, indent=2).encode(),
        f"{folder}/events.jsonl": b'{"seq": 1, "ts": "2026-02-18T10:15:00+00:00", "type": "run:complete"}\n',
    }
    put_files(repo, files)  # type: ignore[arg-type]
    repository = pygit2.Repository(repo)
    ada = repository.default_signature
    message = json.dumps(OLD, separators=(",", ":")) + "\n"
    repository.create_tag(f"scp/run/{OLD['run_id']}", repository.head.target, ObjectType.COMMIT, ada, message)
    return repo


def test_a_run_of_the_earlier_program_is_read(old: Path) -> None:
    store, tag = Store.open(old), tag_oid(old, OLD["run_id"])
    [run] = store.list_runs()
    assert run.model_dump() == {
        **OLD,
        "started_at": "2026-02-18T10:15:00.000000+00:00",
        "ended_at": "2026-02-18T10:15:01.000000+00:00",
    }
    assert store.get_run(OLD["run_id"]) == run
    assert [event["type"] for event in store.get_run_events(OLD["run_id"])] == ["run:complete"]
    new = store.record_run(Run(type="x"))
    assert [each.run_id for each in store.list_runs()] == [new, OLD["run_id"]]
    assert tag_oid(old, OLD["run_id"]) == tag
    assert "anchor" not in stored(old, OLD["run_id"])
    assert read_file(old, "FORMAT") == b"1\n"


def test_a_run_of_the_earlier_program_is_deleted_with_its_tag(old: Path) -> None:
    store = Store.open(old)
    assert store.delete_run(OLD["run_id"]) is True
    assert (store.list_runs(), tag_oid(old, OLD["run_id"])) == ([], None)
    with pytest.raises(AlreadyExists):
        store.record_run(Run.model_validate(OLD))


# ---------------------------------------------------------------- arbitrary runs

text = st.text(max_size=20)
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | text
metadata = st.dictionaries(text, plain.filter(lambda v: v not in (float("inf"), float("-inf"))), max_size=4)
events_given = st.lists(
    st.dictionaries(text.filter(lambda k: k not in RunEvent.model_fields), text), max_size=4
)


@given(metadata=metadata, events=events_given, extra=text)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_content_comes_back_exactly(
    store: Store, metadata: dict[str, Any], events: list[dict[str, str]], extra: str
) -> None:
    run = Run(type="x", metadata=metadata, extra=extra)  # type: ignore[call-arg]
    store.record_run(run, events)
    store.record_run(run, events)
    got = store.get_run(run.run_id)
    assert got is not None
    assert (repr(got.metadata), got.model_extra) == (repr(metadata), {"extra": extra})
    assert [
        {k: v for k, v in e.items() if k not in ("seq", "ts")} for e in store.get_run_events(run.run_id)
    ] == events


# ---------------------------------------------------------------- sizes


def test_the_limit_of_a_record_is_what_is_written(store: Store) -> None:
    wide = {"wide": [1] * 1_900_000}  # 4 MB on one line, 17 MB in run.json
    with pytest.raises(RecordTooLarge) as caught:
        store.record_run(Run(run_id="wide", type="x", metadata=wide))
    assert (caught.value.id, caught.value.limit) == ("wide", 16 * 1024 * 1024)
    assert store.get_run("wide") is None
    run = Run(type="x", summary="x" * (16 * 1024 * 1024 - 4000))
    store.record_run(run)
    got = store.get_run(run.run_id)
    assert got is not None and got.summary == run.summary
    assert len(store.list_runs()) == 1


def test_a_store_with_other_settings_sees_and_writes_the_same(repo: Path) -> None:
    stores = [Store.open(repo), Store.open(repo, Settings(durability="os")), Store.open(f"{repo}/")]
    for number, store in enumerate(stores * 3):
        store.record_run(Run(run_id=f"r{number}", type="x"))
    assert all(
        [run.run_id for run in store.list_runs()] == [f"r{8 - n}" for n in range(9)] for store in stores
    )


def test_ids_are_checked_before_anything_is_read(store: Store) -> None:
    for call in (store.get_run, store.get_run_events, store.delete_run):
        with pytest.raises(InvalidId):
            call("../x")
    with pytest.raises(InvalidId):
        store.list_runs(before="../x")
