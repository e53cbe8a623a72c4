"""Traces as they are stored: saving, reading, listing, deleting; what they look like to stock git."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pygit2
import pytest
from pydantic import ValidationError

import scp_git
from scp_git import (
    AlreadyExists,
    InvalidId,
    RecordTooLarge,
    SessionTrace,
    Store,
    TraceEvent,
    generate_summary,
    suggest_classification,
)
from scp_git.codec import MAX_PART_BYTES
from scp_git.ids import format_time, parse_time

MakeRepo = Callable[..., Path]


@pytest.fixture(autouse=True)
def unsynced(home: Path) -> None:
    """No fsync: these tests are not about power loss, and the disk is shared."""
    with (home / ".gitconfig").open("a") as config:
        config.write("[scp]\n\tdurability = os\n")


def event(number: int, type: str = "step:done", **fields: object) -> TraceEvent:
    return TraceEvent.model_validate(
        {"seq": number, "ts": f"2026-02-17T20:45:{number % 60:02d}Z", "type": type, **fields}
    )


def trace(count: int = 3, **fields: object) -> SessionTrace:
    events = [event(number, target=f"t{number}", result="ok") for number in range(1, count + 1)]
    return SessionTrace.model_validate({"events": events, **fields})


def on_branch(repo: Path, path: str) -> bytes:
    return bytes(pygit2.Repository(repo).revparse_single(f"refs/heads/scp-ledger:{path}").data)


# ---------------------------------------------------------------- saving and reading


def test_a_trace_is_read_back_as_it_was_saved(repo: Path) -> None:
    store = Store.open(repo)
    saved = trace(
        name="déploy", classification="deployment", user="Ada", audit_refs=["run_1"], extra={"a": 1}
    )
    saved.events[1].detail = {"n": [1, 2.5, None], "ü": "x"}
    store.save_trace(saved)
    assert store.get_trace(saved.trace_id) == saved
    [listed] = store.list_traces()
    assert listed == saved.model_copy(update={"events": []})
    assert list(store.iter_trace_events(saved.trace_id)) == saved.events


def test_a_trace_lies_on_the_ledger_branch_as_documented(repo: Path) -> None:
    saved = trace(2, trace_id="t", name="n")
    Store.open(repo).save_trace(saved)
    record = json.loads(on_branch(repo, "ledger/traces/t/trace.json"))
    assert list(record) == [name for name in SessionTrace.model_fields if name != "events"]
    assert record["event_count"] == 2
    lines = on_branch(repo, "ledger/traces/t/events.jsonl").decode().split("\n")
    assert [json.loads(line)["seq"] for line in lines[:-1]] == [1, 2]
    assert lines[-1] == ""
    assert lines[0].startswith('{"seq":1,"ts":"2026-02-17T20:45:01.000000+00:00","type":"step:done"')


def test_a_trace_without_events_has_no_events_file(repo: Path) -> None:
    store = Store.open(repo)
    store.save_trace(SessionTrace(trace_id="t"))
    assert sorted(path.name for path in (repo / ".scp-ledger/ledger/traces/t").iterdir()) == ["trace.json"]
    assert list(store.iter_trace_events("t")) == []


def test_many_events_become_parts_of_at_most_4_mib(repo: Path) -> None:
    store, noise = Store.open(repo), random.Random(1)
    saved = trace(30, trace_id="t")
    for each in saved.events:
        each.detail = {"text": noise.randbytes(170_000).hex()}
    store.save_trace(saved)
    names = sorted(path.name for path in (repo / ".scp-ledger/ledger/traces/t").iterdir())
    assert names == ["events-0002.jsonl", "events-0003.jsonl", "events.jsonl", "trace.json"]
    assert (
        max(path.stat().st_size for path in (repo / ".scp-ledger/ledger/traces/t").iterdir())
        <= MAX_PART_BYTES
    )
    assert store.get_trace("t") == saved
    assert [each.seq for each in store.iter_trace_events("t")] == list(range(1, 31))


def test_the_count_is_that_of_the_events_given_and_seq_is_filled(repo: Path) -> None:
    store = Store.open(repo)
    saved = SessionTrace(trace_id="t", events=[TraceEvent(type="a"), TraceEvent(type="b")])
    saved.events.append(TraceEvent(seq=7, type="c"))
    saved.event_count = 1
    store.save_trace(saved)
    stored = store.get_trace("t")
    assert stored is not None
    assert stored.event_count == 3
    assert [each.seq for each in stored.events] == [1, 2, 7]
    assert [each.seq for each in saved.events] == [0, 0, 7], "the caller's objects stay as they are"


def test_the_same_trace_twice_is_stored_once_and_another_of_its_id_is_refused(repo: Path) -> None:
    store = Store.open(repo)
    store.save_trace(trace(trace_id="t", name="n", started_at="2026-01-01"))
    tip = pygit2.Repository(repo).references["refs/heads/scp-ledger"].target
    store.save_trace(trace(trace_id="t", name="n", started_at="2026-01-01"))
    again = store.get_trace("t")
    assert again is not None
    store.save_trace(again)
    assert pygit2.Repository(repo).references["refs/heads/scp-ledger"].target == tip
    for other in (trace(4, trace_id="t", name="n"), trace(trace_id="t", name="o")):
        other.started_at = again.started_at
        with pytest.raises(AlreadyExists):
            store.save_trace(other)
    assert store.get_trace("t") == again


def test_what_is_no_valid_trace_is_refused_and_nothing_is_stored(repo: Path) -> None:
    store = Store.open(repo)
    with pytest.raises(TypeError):
        store.save_trace({"trace_id": "t"})  # type: ignore[arg-type]
    with pytest.raises(InvalidId):
        store.save_trace(SessionTrace(trace_id="../x"))
    broken = trace(trace_id="t")
    broken.events[0].detail = {"x": float("nan")}
    with pytest.raises(ValidationError):
        store.save_trace(broken)
    huge = trace(trace_id="t")
    huge.events[0].detail = {"x": "x" * MAX_PART_BYTES}
    with pytest.raises(RecordTooLarge):
        store.save_trace(huge)
    assert not (repo / ".git/refs/heads/scp-ledger").exists()


# ---------------------------------------------------------------- lists


def test_traces_are_listed_newest_first(repo: Path) -> None:
    store = Store.open(repo)
    for number in (3, 1, 2):
        store.save_trace(trace(1, trace_id=f"t{number}", started_at=f"2026-01-0{number}"))
    assert [each.trace_id for each in store.list_traces()] == ["t3", "t2", "t1"]
    assert [each.trace_id for each in store.list_traces(n=2)] == ["t3", "t2"]
    assert store.list_traces(n=0) == []
    store.delete_trace("t2")
    assert [each.trace_id for each in store.list_traces()] == ["t3", "t1"]


def damage(repo: Path, files: dict[str, bytes]) -> None:
    """What a stranger may commit to the ledger."""
    repository = pygit2.Repository(repo / ".scp-ledger")
    for path, data in files.items():
        place = repo / ".scp-ledger" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        repository.index.add(path)
    repository.index.write()
    ada = repository.default_signature
    tree = repository.index.write_tree()
    repository.create_commit("HEAD", ada, ada, "by hand", tree, [repository.head.target])


def test_damaged_records_never_hide_the_good_ones(repo: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store.open(repo)
    store.save_trace(trace(trace_id="good"))
    events = on_branch(repo, "ledger/traces/good/events.jsonl")
    damage(
        repo,
        {
            "ledger/traces/torn/trace.json": b'{"trace_id":',
            "ledger/traces/other/trace.json": b'{"trace_id": "good"}',
            "ledger/traces/list/trace.json": b"[]",
            "ledger/traces/alone/events.jsonl": events,
            "ledger/traces/good/events.jsonl": b"\n" + events.replace(b'"seq":2', b'"seq":"2"') + b'{"seq":4',
        },
    )
    assert [each.trace_id for each in store.list_traces()] == ["good"]
    found = store.get_trace("good")
    assert found is not None and [each.seq for each in found.events] == [1, 3]
    assert store.get_trace("torn") is store.get_trace("other") is store.get_trace("alone") is None
    assert list(store.iter_trace_events("alone")) == []
    assert "damaged" in caplog.text
    store.save_trace(trace(trace_id="next"))
    assert {each.trace_id for each in store.list_traces()} == {"good", "next"}


# ---------------------------------------------------------------- deleting


def test_a_deleted_trace_is_gone_and_its_id_is_refused(repo: Path) -> None:
    store = Store.open(repo)
    assert store.delete_trace("t") is False
    store.save_trace(trace(trace_id="t"))
    assert store.delete_trace("t") is True
    assert store.delete_trace("t") is False
    assert store.get_trace("t") is None
    assert not (repo / ".scp-ledger/ledger/traces/t").exists()
    with pytest.raises(AlreadyExists) as caught:
        store.save_trace(trace(trace_id="t"))
    assert caught.value.deleted
    archive = pygit2.Repository(repo).revparse_single("refs/heads/scp-ledger-archive:deleted/trace/8e/t")
    assert json.loads(archive.data).keys() == {"id", "ts", "user"}
    with pytest.raises(InvalidId):
        store.delete_trace("../t")


# ---------------------------------------------------------------- module level: the policy


async def test_writes_raise_and_reads_return_the_empty_value(tmp_path: Path, repo: Path) -> None:
    with pytest.raises(scp_git.NotARepository):
        await scp_git.save_trace(tmp_path, trace())
    with pytest.raises(scp_git.NotARepository):
        await scp_git.delete_trace(tmp_path, "t")
    assert await scp_git.get_trace(tmp_path, "t") is None
    assert await scp_git.list_traces(tmp_path) == []
    assert [each async for each in scp_git.iter_trace_events(tmp_path, "t")] == []
    assert await scp_git.get_trace(repo, "../x") is None


async def test_the_module_and_async_store_do_the_same(repo: Path) -> None:
    saved = trace(2500, trace_id="t")
    await scp_git.save_trace(repo, saved)
    async with scp_git.open_store(repo) as store:
        assert await store.get_trace("t") == await scp_git.get_trace(repo, "t") == saved
        assert await store.list_traces() == await scp_git.list_traces(repo)
        assert [each async for each in store.iter_trace_events("t")] == saved.events
        assert await store.delete_trace("t")
        await store.save_trace(trace(trace_id="u"))
    assert [each async for each in scp_git.iter_trace_events(repo, "t")] == []
    assert await scp_git.delete_trace(repo, "u")


async def test_events_tell_what_was_stored(repo: Path) -> None:
    seen: list[scp_git.Event] = []
    with scp_git.bus.attach(lambda each: seen.append(each) if each.type.startswith("trace:") else None):
        await scp_git.save_trace(repo, trace(2, trace_id="t", name="n", started_at="2026-01-01"))
        await scp_git.save_trace(repo, trace(2, trace_id="t", name="n", started_at="2026-01-01"))
        await scp_git.delete_trace(repo, "t")
        await scp_git.delete_trace(repo, "t")
    assert [(each.type, each.key, dict(each.data)) for each in seen] == [
        ("trace:saved", "t", {"name": "n", "event_count": 2}),
        ("trace:deleted", "t", {}),
    ]
    assert {each.meta["root"] for each in seen} == {str(repo)}


# ---------------------------------------------------------------- summaries


def test_a_summary_says_domains_outcomes_and_duration() -> None:
    events = [
        event(1, "vault:unlock", result="ok", duration_ms=500),
        event(2, "k8s:apply", result="failed"),
        event(3, "k8s:apply", result="ok"),
        event(4, "note"),
        event(5, "odd\nname:" + "x" * 50, result="re\x00try"),
    ]
    text = generate_summary(SessionTrace(events=events))
    assert text == "5 events: 2 k8s, 1 note, 1 odd name, 1 vault; 2 ok, 1 failed, 1 re try; 4.5 s"
    assert generate_summary(SessionTrace(events=events[:1])) == "1 event: 1 vault; 1 ok; 500 ms"
    assert generate_summary(SessionTrace()) == "no events"
    assert generate_summary(SessionTrace(events=[event(3, "note")])) == "1 event: 1 note"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0004, "1 ms"),
        (0.25, "250 ms"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (9000, "2 h 30 min"),
    ],
)
def test_durations_are_said_in_one_way(seconds: float, said: str) -> None:
    last = format_time(
        parse_time("2026-01-01") + (parse_time("2026-01-02") - parse_time("2026-01-01")) * (seconds / 86400)
    )
    events = [TraceEvent(ts="2026-01-01", type="a"), TraceEvent(ts=last, type="b")]
    assert generate_summary(SessionTrace(events=events)).endswith(f"; {said}")


def test_many_domains_are_cut_short() -> None:
    events = [event(number, f"d{number:02d}:x") for number in range(1, 21)]
    assert generate_summary(SessionTrace(events=events)).startswith("20 events: 1 d01, ")
    assert ", 1 d08, 12 more" in generate_summary(SessionTrace(events=events))


@pytest.mark.parametrize(
    ("types", "kind", "reason"),
    [
        (["k8s:apply", "k8s:apply", "git:push", "vault:unlock"], "deployment", "2 events with 'apply'"),
        (["vault:unlock", "config:set", "vault:lock"], "config", "2 events with 'vault'"),
        (["wizard:step", "project:create"], "setup", "1 event with 'create'"),
        (["search:done", "files:list"], "exploration", "1 event with 'list'"),
        (["logs:tail", "pod:restart"], "debugging", "1 event with 'logs'"),
        (["tick"], "", None),
        ([], "", None),
    ],
)
def test_a_classification_is_suggested_by_fixed_rules(
    types: list[str], kind: str, reason: str | None
) -> None:
    events = [event(number, type) for number, type in enumerate(types, 1)]
    suggestion = suggest_classification(SessionTrace(events=events))
    assert suggestion.classification == kind
    assert suggestion.reasons[:1] == ((reason,) if reason else ())


def test_failures_speak_for_debugging() -> None:
    events = [event(number, "k8s:apply", result="failed" if number == 1 else "ok") for number in range(1, 6)]
    suggestion = suggest_classification(SessionTrace(events=events))
    assert (suggestion.classification, suggestion.reasons) == ("debugging", ("1 of 5 events failed",))
    assert suggest_classification(SessionTrace(events=events[1:])).classification == "deployment"
