"""The acceptance list for session tracing (SPEC 1C.4): one test per line of "Must Have", named after it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pygit2
import pytest

import scp_git
from scp_git import SessionTrace, TraceEvent, bus, generate_summary

# ---- `start_recording()` subscribes to event bus and captures events


async def test_start_recording_subscribes_to_the_event_bus_and_captures_events(repo: Path) -> None:
    bus.publish("vault:unlock", key="before")
    sinks = bus.statistics().sinks
    trace_id = await scp_git.start_recording(repo, name="session")
    assert bus.statistics().sinks == sinks + 1
    bus.publish("vault:unlock", key="prod", data={"status": "ok"})
    bus.publish("k8s:apply", data={"target": "web", "replicas": 3}, error="no quota", duration_s=1.5)
    bus.publish("cache:done", key="c")
    trace = await scp_git.stop_recording(trace_id)
    assert bus.statistics().sinks == sinks
    bus.publish("vault:lock", key="after")
    shown = [(e.seq, e.type, e.target, e.result, e.duration_ms, e.detail) for e in trace.events]
    assert shown == [
        (1, "vault:unlock", "prod", "ok", 0, {}),
        (2, "k8s:apply", "web", "failed", 1500, {"replicas": 3}),
        (3, "cache:done", "c", "ok", 0, {}),
    ]
    await scp_git.delete_trace(repo, trace_id)


# ---- `stop_recording()` produces a `SessionTrace` with auto-summary


async def test_stop_recording_produces_a_session_trace_with_auto_summary(repo: Path) -> None:
    trace_id = await scp_git.start_recording(repo, name="n", classification="deployment", user="Bo")
    bus.publish("k8s:apply:done", key="web")
    trace = await scp_git.stop_recording(trace_id)
    assert isinstance(trace, SessionTrace)
    assert (trace.trace_id, trace.name, trace.classification, trace.user) == (
        trace_id,
        "n",
        "deployment",
        "Bo",
    )
    assert trace.code_ref == str(pygit2.Repository(repo).head.target)
    assert trace.ended_at is not None and trace.started_at <= trace.events[0].ts <= trace.ended_at
    assert trace.auto_summary == generate_summary(trace) == "1 event: 1 k8s; 1 ok"
    with pytest.raises(scp_git.NotFound):
        await scp_git.stop_recording(trace_id)
    with pytest.raises(scp_git.NotFound):
        await scp_git.stop_recording("trace_none")
    await scp_git.delete_trace(repo, trace_id)


# ---- `save_trace()` stores trace on ledger branch


async def test_save_trace_stores_the_trace_on_the_ledger_branch(repo: Path) -> None:
    trace_id = await scp_git.start_recording(repo, name="n")
    bus.publish("git:push", key="origin", data={"status": "ok"})
    trace = await scp_git.stop_recording(trace_id)
    assert await scp_git.get_trace(repo, trace_id) is None
    await scp_git.save_trace(repo, trace)
    folder = f"refs/heads/scp-ledger:ledger/traces/{trace_id}"
    stored = json.loads(pygit2.Repository(repo).revparse_single(f"{folder}/trace.json").data)
    assert (stored["name"], stored["event_count"]) == ("n", 1)
    [line] = pygit2.Repository(repo).revparse_single(f"{folder}/events.jsonl").data.decode().splitlines()
    assert json.loads(line)["target"] == "origin"
    assert await scp_git.get_trace(repo, trace_id) == trace
    assert list((repo / ".git/scp/recordings").iterdir()) == []


# ---- Multiple concurrent recordings supported


async def test_multiple_concurrent_recordings_are_supported(repo: Path) -> None:
    first = await scp_git.start_recording(repo)
    bus.publish("a:x", key="1")
    second = await scp_git.start_recording(repo, types=["b:*"])
    bus.publish("a:x", key="2")
    bus.publish("b:x", key="3")
    third = await scp_git.start_recording(repo)
    assert [t.trace_id for t in await scp_git.active_recordings(repo)] == [first, second, third]
    one = await scp_git.stop_recording(first)
    bus.publish("b:y", key="4")
    two, three = await scp_git.stop_recording(second), await scp_git.stop_recording(third)
    assert [[e.target for e in t.events] for t in (one, two, three)] == [["1", "2", "3"], ["3", "4"], ["4"]]
    assert [[e.seq for e in t.events] for t in (one, two, three)] == [[1, 2, 3], [1, 2], [1]]
    for trace in (one, two, three):
        await scp_git.save_trace(repo, trace)
    assert {t.trace_id for t in await scp_git.list_traces(repo)} == {first, second, third}
    assert await scp_git.active_recordings(repo) == []


# ---- Summary generation is deterministic (template-based, not AI)

SUMMARY = """
import sys
from scp_git import SessionTrace, generate_summary
print(generate_summary(SessionTrace.model_validate_json(sys.stdin.read())))
"""


def test_summary_generation_is_deterministic() -> None:
    types = ["vault:unlock", "k8s:apply", "git:push", "k8s:apply", "note"]
    events = [
        TraceEvent(seq=n, ts=f"2026-02-17T20:45:{n:02d}Z", type=type, result="ok" if n % 2 else "failed")
        for n, type in enumerate(types, 1)
    ]
    expected = "5 events: 2 k8s, 1 git, 1 note, 1 vault; 3 ok, 2 failed; 4.0 s"
    assert {generate_summary(SessionTrace(events=events)) for _ in range(3)} == {expected}
    said = subprocess.run(
        [sys.executable, "-c", SUMMARY],
        env={
            "PYTHONHASHSEED": "7",
            "LC_ALL": "C",
            "TZ": "Asia/Tokyo",
            "PYTHONPATH": str(Path(scp_git.__file__).parents[1]),
        },
        input=SessionTrace(events=events).model_dump_json(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == f"{expected}\n"


# ---- Nice to have: auto-post trace summary as chat message


async def test_the_summary_is_posted_in_the_same_transaction(repo: Path) -> None:
    thread = await scp_git.create_thread(repo, "Deployments")
    trace_id = await scp_git.start_recording(repo, name="deploy", classification="deployment", user="Bo")
    bus.publish("k8s:apply:done", key="web")
    trace = await scp_git.stop_recording(trace_id)
    with pytest.raises(scp_git.NotFound):
        await scp_git.save_trace(repo, trace, post=True, thread_id="thread_none")
    assert await scp_git.get_trace(repo, trace_id) is None
    tip = pygit2.Repository(repo).references["refs/heads/scp-ledger"].peel()
    for _ in range(2):
        await scp_git.save_trace(repo, trace, post=True, thread_id=thread.thread_id)
    assert pygit2.Repository(repo).references["refs/heads/scp-ledger"].peel().parents == [tip]
    [message] = await scp_git.list_messages(repo, thread_id=thread.thread_id)
    assert message.text == f"Trace recorded: deploy [deployment] @trace:{trace_id}\n1 event: 1 k8s; 1 ok"
    assert (message.user, message.source, message.ts) == ("Bo", "trace", trace.ended_at)
    await scp_git.save_trace(repo, trace, post=True)
    assert len(await scp_git.list_messages(repo)) == 1


# ---- Nice to have: trace classification suggestions


def test_a_classification_is_suggested() -> None:
    events = [TraceEvent(type="k8s:apply"), TraceEvent(type="vault:unlock"), TraceEvent(type="git:push")]
    suggestion = scp_git.suggest_classification(SessionTrace(events=events))
    assert suggestion.classification == "deployment"
    assert suggestion.reasons == ("1 event with 'apply'", "1 event with 'k8s'", "1 event with 'push'")
