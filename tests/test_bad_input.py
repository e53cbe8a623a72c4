"""Hostile and broken input: refused with a clear error or stored unchanged, and nothing else is touched."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pygit2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import scp_git
from scp_git import AsyncStore, Event, InvalidId, RecordTooLarge, Run, RunEvent, ScpGitError, Store, bus

MAX_RECORD, MAX_EVENT = 16 * 1024 * 1024, 4 * 1024 * 1024

BAD_IDS = [
    "", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "a/b", "a/../../../x", "a\\b", "..\\x", "C:\\x",
    "-rf", "--help", ".git", ".lock", "a.lock", "a.LOCK", "a..b", "a.", "con", "NUL", "aux.json", "com1",
    "a b", "a\n", "a\0b", "a\0", "\0", "a\x7f", "\x1b]0;x\x07", "é", "\u202e", "\ud800", "@{-1}", "HEAD^",
    "a~1", ":/x", "refs/heads/main", "*", "a:b", "%2e%2e%2f", "x" * 129, "x" * 100_000, "~root", "$(id)",
    "`id`", "a'b",
]  # fmt: skip


@pytest.fixture(autouse=True)
def unsynced(home: Path) -> None:
    """No fsync: these tests are not about power loss, and the disk is shared."""
    with (home / ".gitconfig").open("a") as config:
        config.write("[scp]\n\tdurability = os\n")


@pytest.fixture
def project(make_repo: Callable[..., Path], tmp_path: Path) -> Path:
    """A repository that has a run already, between other folders that must never change."""
    for name in ("above", "etc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "passwd").write_text("untouched\n")
    root = make_repo(tmp_path / "above" / "project")
    Store.open(root).record_run(Run(run_id="first", type="x"), [{"type": "a"}])
    return root


@pytest.fixture
def store(project: Path) -> Store:
    return Store.open(project)


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file, folder and link below a folder."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"-> {os.readlink(path)}"
        else:
            found[str(path)] = path.read_bytes() if path.is_file() else "folder"
    return found


def run_with_id(run_id: str) -> Run:
    """A run whose id was changed after it was built, when no validator looks."""
    run = Run(type="x")
    run.run_id = run_id
    return run


# ---------------------------------------------------------------- ids


async def test_a_bad_id_is_refused_by_every_verb_and_touches_nothing(store: Store, tmp_path: Path) -> None:
    awaited = AsyncStore(store)
    before = snapshot(tmp_path)
    for bad in BAD_IDS:
        plain: list[Callable[[], object]] = [
            lambda: store.record_run(run_with_id(bad)),  # noqa: B023
            lambda: store.get_run(bad),  # noqa: B023
            lambda: store.get_run_events(bad),  # noqa: B023
            lambda: store.delete_run(bad),  # noqa: B023
            lambda: store.list_runs(before=bad),  # noqa: B023
        ]
        for call in plain:
            with pytest.raises(InvalidId) as caught:
                call()
            assert caught.value.id == bad
        for coroutine in (
            awaited.record_run(run_with_id(bad)),
            awaited.get_run(bad),
            awaited.get_run_events(bad),
            awaited.delete_run(bad),
            awaited.list_runs(before=bad),
        ):
            with pytest.raises(InvalidId):
                await coroutine
    assert snapshot(tmp_path) == before


async def test_a_bad_id_gives_the_empty_value_at_the_module_level(project: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    for bad in BAD_IDS:
        assert await scp_git.record_run(project, run_with_id(bad)) == ""
        assert await scp_git.get_run(project, bad) is None
        assert await scp_git.get_run_events(project, bad) == []
        assert await scp_git.delete_run(project, bad) is False
        assert await scp_git.list_runs(project, before=bad) == []
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("bad", [None, 5, b"first", ["first"], Path("first")])
async def test_an_id_that_is_no_text_is_refused(store: Store, tmp_path: Path, bad: Any) -> None:
    before = snapshot(tmp_path)
    for call in (store.get_run, store.get_run_events, store.delete_run):
        with pytest.raises((InvalidId, TypeError)):
            call(bad)
    with pytest.raises((InvalidId, TypeError)):
        await AsyncStore(store).get_run(bad)
    assert snapshot(tmp_path) == before


def test_a_planted_link_leads_nowhere(store: Store, tmp_path: Path) -> None:
    """The view is written, never read; a link that stands in its way is not followed."""
    runs = store.root / ".scp-ledger" / "ledger" / "runs"
    outside = snapshot(tmp_path / "etc")
    (runs / "linked").symlink_to(tmp_path / "etc")
    (runs / "first" / "run.json").unlink()
    (runs / "first" / "run.json").symlink_to(tmp_path / "etc" / "passwd")
    store.record_run(Run(run_id="linked", type="x"), [{"type": "a"}])
    store.ensure_ledger()
    assert snapshot(tmp_path / "etc") == outside
    assert not (runs / "linked").is_symlink()
    assert json.loads((runs / "first" / "run.json").read_text())["run_id"] == "first"
    assert {run.run_id for run in store.list_runs()} == {"first", "linked"}


# ---------------------------------------------------------------- sizes


def test_five_megabytes_of_summary_come_back(store: Store) -> None:
    run = Run(type="x", summary="é" * 2_500_000, metadata={"a": "x" * 1_000_000})
    store.record_run(run, [{"type": "a", "target": "y" * 3_000_000}])
    got = store.get_run(run.run_id)
    assert got is not None
    assert (got.summary, got.metadata) == (run.summary, run.metadata)
    assert store.list_runs(n=1)[0].summary == run.summary
    assert len(store.get_run_events(run.run_id)[0]["target"]) == 3_000_000


async def test_more_than_sixteen_megabytes_are_refused(store: Store, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    run = Run(type="x", summary="x" * MAX_RECORD)
    for attempt in (store.record_run, AsyncStore(store).record_run):
        with pytest.raises(RecordTooLarge) as caught:
            await awaited(attempt(run))
        assert (caught.value.kind, caught.value.id) == ("run", run.run_id)
        assert caught.value.size > caught.value.limit == MAX_RECORD
        assert len(str(caught.value)) < 500
    assert await scp_git.record_run(store.root, run) == ""
    assert snapshot(tmp_path) == before


async def awaited(result: Any) -> object:
    return await result if isinstance(result, Awaitable) else result


def test_an_event_of_more_than_four_megabytes_is_refused(store: Store, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    run = Run(type="x")
    with pytest.raises(RecordTooLarge) as caught:
        store.record_run(run, [{"type": "a"}, {"type": "b", "target": "x" * MAX_EVENT}])
    assert (caught.value.id, caught.value.limit) == (run.run_id, MAX_EVENT)
    assert snapshot(tmp_path) == before
    store.record_run(run, [{"type": "a"}, {"type": "b", "target": "x" * (MAX_EVENT - 200)}])
    assert len(store.get_run_events(run.run_id)) == 2


def test_the_limit_counts_bytes_not_letters(store: Store) -> None:
    with pytest.raises(RecordTooLarge):
        store.record_run(Run(type="x", summary="\U0001f600" * (MAX_RECORD // 4)))
    with pytest.raises(RecordTooLarge):
        store.record_run(Run(type="x"), [{"target": "\u20ac" * (MAX_EVENT // 3 + 1)}])


# ---------------------------------------------------------------- text


NASTY = [
    "a\nparent 1111111111111111111111111111111111111111\n", "a\0b", "\r\n", "<evil@example.org>",
    "a\n\nScp-Git: 1", "\x1b]0;title\x07\x1b[2J", "\u202e\u2066", "\u2028\u2029\x85\x0b\x0c",
    '"}\n{"seq":2', "-----BEGIN PGP SIGNATURE-----", "\ufeff", "\uffff", "e\u0301" * 100, "#comment",
    " leading and trailing ", "\U0001f600", "\x7f\x80\x9b",
]  # fmt: skip


def test_nasty_text_comes_back_and_forges_nothing(store: Store) -> None:
    for text in NASTY:
        run = Run(
            type=text, subtype=text, user=text, environment=text, summary=text, code_ref=text,
            modules_affected=[text], metadata={text: text}, **{"extra" + text: text},
        )  # fmt: skip
        store.record_run(run, [{"type": text, "target": text, text: text}])
        got = store.get_run(run.run_id)
        assert got is not None
        same = run.model_dump(exclude={"ended_at", "duration_ms"})
        assert got.model_dump(exclude={"ended_at", "duration_ms"}) == same
        [event] = store.get_run_events(run.run_id)
        assert (event["type"], event["target"], event[text]) == (text, text, text)
        tip = pygit2.Repository(store.root).references["refs/heads/scp-ledger"].peel(pygit2.Commit)
        assert (tip.author.name, tip.author.email, len(tip.parents)) == ("Ada Tester", "ada@example.org", 1)
        subject, blank, trailer, last = tip.message.split("\n")
        assert (blank, trailer, last) == ("", "Scp-Git: 1", "")
        assert subject.isprintable()
        assert subject.startswith("ledger: ")
        assert len(subject) <= 200


def test_a_nasty_git_identity_forges_nothing(store: Store, home: Path) -> None:
    name = "Eve <e@x> 1 +0000\\nparent 1111111111111111111111111111111111111111"
    (home / ".gitconfig").write_text(f'[user]\n\tname = "{name}"\n\temail = "a>b\\n<c"\n')
    run_id = store.record_run(Run(type="x"))
    tip = pygit2.Repository(store.root).references["refs/heads/scp-ledger"].peel(pygit2.Commit)
    assert len(tip.parents) == 1
    assert "\n" not in tip.author.name
    got = store.get_run(run_id)
    assert got is not None and "\n" not in got.user


SURROGATES = ["\ud800", "a\udfff", "\ud83d\ude00", "\udc80\udcff"]


def test_text_that_is_not_unicode_is_refused(store: Store, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    for text in SURROGATES:
        for field in ("subtype", "user", "environment", "summary", "code_ref", "extra"):
            with pytest.raises(ValidationError):
                Run.model_validate({"type": "x", field: text})
            run = Run(type="x")
            setattr(run, field, text)
            with pytest.raises(ValidationError):
                store.record_run(run)
        for event in ({"type": text}, {text: 1}, {"x": {"y": [text]}}, {"x": {text: 1}}):
            with pytest.raises(ValidationError):
                store.record_run(Run(type="x"), [event])
    assert snapshot(tmp_path) == before


# ---------------------------------------------------------------- values


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


endless: dict[str, Any] = {}
endless["again"] = [endless]

NOT_JSON: dict[str, Any] = {
    "NaN": float("nan"), "infinity": float("inf"), "65 bits": 2**64, "deep": nested(70),
    "1 000 deep": nested(1000), "endless": endless, "an object": object(), "bytes": b"x", "a set": {1},
    "a key": {1: 2}, "surrogate": "\ud800", "a function": len,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_what_is_not_json_is_refused_also_after_the_run_was_built(store: Store, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    for name, value in NOT_JSON.items():
        for field in ("metadata", "extra", "modules_affected"):
            run = Run(type="x")
            setattr(run, field, {"a": value} if field == "metadata" else [value])
            with pytest.raises((ValidationError, ValueError, TypeError)) as caught:
                store.record_run(run)
            assert not isinstance(caught.value, ScpGitError), name
        for event in ({"x": value}, {"detail": {"x": [value]}}, {"type": value}):
            with pytest.raises((ValidationError, TypeError)):
                store.record_run(Run(type="x"), [event])
    assert snapshot(tmp_path) == before


MADE_INVALID: list[tuple[str, Any]] = [
    ("type", None), ("status", "done"), ("status", None), ("duration_ms", -1), ("duration_ms", 2**63),
    ("duration_ms", 1.5), ("started_at", "yesterday"), ("ended_at", "\0"), ("started_at", 5), ("user", None),
    ("anchor", None), ("anchor", {"target": "0" * 40}), ("metadata", None), ("metadata", []),
    ("summary", b"x"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_run_made_invalid_is_refused(store: Store, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    for field, value in MADE_INVALID:
        run = Run(type="x")
        setattr(run, field, value)
        with pytest.raises(ValidationError):
            store.record_run(run)
    assert snapshot(tmp_path) == before


NO_EVENTS: list[Any] = [
    "abc", b"abc", 5, [5], [None], ["abc"], [["type", "a"]], {"type": "a"}, [Run(type="x")],
]  # fmt: skip


async def test_what_is_no_list_of_events_is_refused(store: Store, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    for events in NO_EVENTS:
        for attempt in (store.record_run, AsyncStore(store).record_run):
            with pytest.raises((TypeError, ValidationError)):
                await awaited(attempt(Run(type="x"), events))
        with pytest.raises((TypeError, ValidationError)):
            await scp_git.record_run(store.root, Run(type="x"), events)
    assert snapshot(tmp_path) == before


class Midway(Exception):
    pass


def broken_events() -> Iterator[dict[str, str]]:
    yield {"type": "a"}
    raise Midway


async def test_events_that_fail_while_they_are_read_store_nothing(store: Store, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(Midway):
        store.record_run(Run(type="x"), broken_events())
    with pytest.raises(Midway):
        await AsyncStore(store).record_run(Run(type="x"), broken_events())
    assert snapshot(tmp_path) == before


def test_an_invalid_event_is_refused_with_all_others(store: Store, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    for bad in (
        {"seq": -1},
        {"seq": "1"},
        {"duration_ms": True},
        {"ts": "now"},
        {"status": 5},
        {"detail": []},
    ):
        with pytest.raises(ValidationError):
            store.record_run(Run(type="x"), [{"type": "good"}, bad, RunEvent(type="good")])
    assert snapshot(tmp_path) == before


# ---------------------------------------------------------------- arbitrary text everywhere

any_text = st.text(st.characters(), max_size=30) | st.sampled_from(NASTY + SURROGATES + BAD_IDS[:-9])


@given(
    fields=st.dictionaries(
        st.sampled_from("run_id type subtype user code_ref environment summary started_at extra".split()),
        any_text,
    ),
    key=any_text,
    value=any_text,
)
@example(fields={"run_id": "first"}, key="", value="")
@example(fields={"run_id": "x.lock"}, key="", value="")
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_text_is_stored_unchanged_or_refused(
    store: Store, tmp_path: Path, fields: dict[str, str], key: str, value: str
) -> None:
    outside = snapshot(tmp_path / "etc"), (tmp_path / "above" / "passwd").read_bytes()
    known = {run.run_id for run in store.list_runs(n=10**6)}
    try:
        run = Run.model_validate({"type": "x", "metadata": {key: [value]}, **fields})
        store.record_run(run, [{"x" + key: value}])
    except (ValidationError, ScpGitError):
        assert {run.run_id for run in store.list_runs(n=10**6)} == known
    else:
        got = store.get_run(run.run_id)
        assert got is not None
        for name, text in fields.items():
            if text and name != "started_at":
                assert getattr(got, name) == text
        assert got.metadata == {key: [value]}
        [event] = store.get_run_events(run.run_id)
        assert event["x" + key] == value
        assert f"refs/tags/scp/run/{run.run_id}" in pygit2.Repository(store.root).references
    assert (snapshot(tmp_path / "etc"), (tmp_path / "above" / "passwd").read_bytes()) == outside
    assert sorted(path.name for path in tmp_path.iterdir()) == ["above", "etc"]
    assert sorted(path.name for path in (tmp_path / "above").iterdir()) == ["passwd", "project"]


def test_an_error_says_nothing_of_what_a_run_holds(store: Store) -> None:
    secret = "hunter2"
    seen: list[Event] = []
    run = Run(run_id="first", type="x", summary=secret, metadata={"key": secret})
    large = Run(type="x", summary=secret * 3_000_000)
    with bus.attach(seen.append):
        for each in (run, large, run_with_id("../x")):
            with pytest.raises(ScpGitError) as caught:
                store.record_run(each, [{"target": secret}])
            assert secret not in str(caught.value)
            assert secret not in repr(caught.value)
    assert seen == []
