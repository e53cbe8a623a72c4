"""What was committed, told record by record: ledger, chat and traces, live and from a token."""

from __future__ import annotations

import asyncio
import base64
import random
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pygit2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pygit2.enums import FileMode

import scp_git
from scp_git import (
    AsyncStore,
    Change,
    ChatMessage,
    NotARepository,
    Run,
    SessionTrace,
    Settings,
    Store,
    TraceEvent,
    bus,
)
from scp_git.codec import dump_lines, dump_pretty
from scp_git.feed import Feed
from scp_git.feed.history import tree_of
from scp_git.feed.records import rows_between
from scp_git.feed.tokens import NOTHING, Position, Tips
from scp_git.git.anchors import anchored_tag
from scp_git.git.healing import BRANCHES
from scp_git.git.objects import COMMIT, Kind, ObjectStore, encode_commit
from scp_git.git.snapshot import Snapshot
from scp_git.git.tree import TreeEditor
from scp_git.layout import archived_run_dir, deleted_path, note_path, run_chat_dir, run_dir
from tests.load import Waiting
from tests.sight import collector_at_rest

AT = "2026-02-17T20:45:00.000000+00:00"


def told(changes: list[Change]) -> list[tuple[str, str, str]]:
    return [(change.kind, change.action, change.id) for change in changes]


def since(root: Path, token: str | None) -> list[Change]:
    """Everything from a token to the present."""
    return list(Store.open(root).changes(since=token, follow=False))


async def take(changes: AsyncIterator[Change], count: int) -> list[Change]:
    found: list[Change] = []
    with anyio.fail_after(10):
        while len(found) < count:
            found.append(await anext(changes))
    return found


# ---------------------------------------------------------------- tokens

OIDS = st.none() | st.binary(min_size=20, max_size=20).map(bytes.hex)
TIPS = st.builds(Tips, OIDS, OIDS, OIDS)


@given(TIPS, st.none() | TIPS, st.integers(1, 2**32 - 1))
def test_a_token_gives_its_position_back_and_is_safe_in_urls(told: Tips, to: Tips | None, n: int) -> None:
    position = Position(told, to, n if to else 0)
    token = position.token()
    assert Position.parse(token) == position
    assert token.replace("-", "").replace("_", "").isalnum() and len(token) < 200


def test_the_empty_token_stands_before_everything() -> None:
    assert Position.parse("") == Position(NOTHING)


def _altered(token: str) -> str:
    return ("B" if token[10] == "A" else "A").join((token[:10], token[11:]))


GOOD = Position(Tips("5" * 40, None, "6" * 40)).token()
HOSTILE = [
    " ", "x", "\0", "é", "../../etc/passwd", "HEAD", "A" * 64, "A" * 10_000_000, GOOD[:-1], GOOD + "A",
    GOOD + "\n", GOOD * 2, _altered(GOOD), GOOD.swapcase(),
    "-" * 91, base64.b64encode(b"\1" + b"\0" * 67).decode(),
]  # fmt: skip


@pytest.mark.parametrize("token", HOSTILE, ids=range(len(HOSTILE)))
def test_text_that_is_no_token_is_a_clear_error_at_once(token: str, repo: Path) -> None:
    store = Store.open(repo)
    for call in (
        lambda: store.changes(since=token),
        lambda: AsyncStore(store).changes(since=token),
        lambda: scp_git.changes(repo, since=token),
    ):
        with pytest.raises(ValueError, match="not a token") as caught:
            call()
        assert len(str(caught.value)) < 300


@given(st.text(max_size=200))
def test_no_text_at_all_is_more_than_refused(text: str) -> None:
    try:
        Position.parse(text)
    except ValueError:
        return
    assert text == ""


def test_a_token_of_another_type_is_a_type_error(repo: Path) -> None:
    with pytest.raises(TypeError, match="text, not int"):
        scp_git.changes(repo, since=7)  # type: ignore[arg-type]


# ---------------------------------------------------------------- what differs between two states


class NoObjects:
    """A database that holds nothing: all objects are those of the store."""

    def read(self, oid: str, *, limit: int | None = None) -> tuple[Kind, bytes] | None:
        return None

    def kind(self, oid: str) -> Kind | None:
        return None


Files = dict[str, bytes]


class States:
    """Commits made of plain dictionaries."""

    def __init__(self) -> None:
        self.store = ObjectStore(NoObjects())

    def tip(self, files: Files) -> str | None:
        if not files:
            return None
        editor = TreeEditor(self.store)
        for path, data in files.items():
            editor.put(path, data)
        return self.store.add(COMMIT, encode_commit(editor.write(), [], "A <a> 1 +0000", "x"))

    def tips(
        self, ledger: Files | None = None, notes: Files | None = None, archive: Files | None = None
    ) -> Tips:
        return Tips(*(self.tip(files or {}) for files in (notes, ledger, archive)))

    def editor(self, tip: str | None) -> TreeEditor:
        return TreeEditor(self.store, tree_of(self.store, tip))

    def rows(self, old: Tips, new: Tips) -> list[tuple[str, str, str]]:
        return sorted((row.kind, row.action, row.id) for row in rows_between(self.store, old, new))


def run_file(run_id: str, **fields: Any) -> bytes:
    return dump_pretty({"run_id": run_id, "type": "x", "started_at": AT, **fields})


def message(id: str, **fields: Any) -> dict[str, Any]:
    return {"id": id, "ts": AT, "user": "ada", "text": f"text of {id}", **fields}


def hot(run_id: str, **fields: Any) -> Files:
    return {
        f"{run_dir(run_id)}/run.json": run_file(run_id, **fields),
        f"{run_dir(run_id)}/events.jsonl": b"{}\n",
    }


def archived(run_id: str, **fields: Any) -> Files:
    folder = archived_run_dir(run_id)
    return {f"{folder}/run.json": run_file(run_id, **fields), f"{folder}/events.jsonl": b"{}\n"}


def deletion(kind: str, id: str) -> Files:
    return {deleted_path(kind, id): dump_pretty({"id": id, "ts": AT, "user": "ada"})}


NOTE = note_path("5" * 40)
CHAT = f"{run_chat_dir('r1')}/messages.jsonl"
THREAD = "chat/threads/t1/messages.jsonl"


def test_runs_that_come_and_change() -> None:
    states = States()
    one = states.tips(hot("r1") | hot("r2"))
    assert states.rows(NOTHING, one) == [("run", "added", "r1"), ("run", "added", "r2")]
    other = states.tips(hot("r1", summary="other") | hot("r2"), archive=archived("r3"))
    assert states.rows(one, other) == [("run", "added", "r3"), ("run", "changed", "r1")]
    more = hot("r2") | {f"{run_dir('r2')}/events-0002.jsonl": b"{}\n"}
    assert states.rows(one, states.tips(hot("r1") | more)) == [("run", "changed", "r2")]
    grown = archived("r3") | {f"{archived_run_dir('r3')}/events-0002.jsonl": b"{}\n"}
    assert states.rows(other, other._replace(archive=states.tip(grown))) == [("run", "changed", "r3")]


def test_a_run_that_moves_to_the_archive_is_no_change() -> None:
    states = States()
    before = states.tips(hot("r1") | hot("r2"))
    after = states.tips(hot("r2"), archive=archived("r1"))
    between = before._replace(archive=after.archive)
    for old, new in ((before, after), (before, between), (between, after)):
        assert states.rows(old, new) == []


def test_a_run_that_is_on_both_branches_for_a_while_is_told_once() -> None:
    states = States()
    both = states.tips(hot("r1"), archive=archived("r1"))
    assert states.rows(states.tips(archive=archived("r1")), both) == []
    assert states.rows(states.tips(hot("r1")), both) == []


def test_an_anchor_that_is_added_is_no_change() -> None:
    states = States()
    anchored = hot("r1", anchor={"target": "5" * 40, "tagger": "A <a> 1 +0000"})
    assert states.rows(states.tips(hot("r1")), states.tips(anchored)) == []


def test_deletions_are_told_by_their_record_and_cover_what_they_delete() -> None:
    states = States()
    notes = {NOTE: dump_lines([message("m1")])}
    before = states.tips(hot("r1"), notes)
    gone = states.tips(archive=deletion("run", "r1"))
    assert states.rows(before, gone) == [("run", "deleted", "r1")]
    # The archive's tip was read before the ledger's moved; then it was deleted again elsewhere.
    assert states.rows(before, before._replace(archive=gone.archive)) == [("run", "deleted", "r1")]
    assert states.rows(before._replace(archive=gone.archive), gone) == []
    known = {deleted_path("run", "r1"): dump_pretty({"id": "r1", "ts": AT, "user": "a", "tags": ["5" * 40]})}
    assert states.rows(gone, states.tips(archive=known)) == []
    everything = {**deletion("run", "r1"), **deletion("thread", "t1"), **deletion("trace", "s1")}
    everything |= deletion("message", "m1")
    assert states.rows(NOTHING, states.tips(hot("r1"), notes, everything)) == [
        ("message", "deleted", "m1"),
        ("run", "deleted", "r1"),
        ("thread", "deleted", "t1"),
        ("trace", "deleted", "s1"),
    ]


def test_what_vanishes_without_a_deletion_is_not_told() -> None:
    """Absence never deletes: a branch that was reset or is damaged is healed by the next write."""
    states = States()
    full = states.tips(hot("r1") | {THREAD: dump_lines([message("m1")])}, {NOTE: dump_lines([message("m2")])})
    assert states.rows(full, NOTHING) == []


def test_messages_that_come_and_change_wherever_they_lie() -> None:
    states = States()
    for place in ("notes", "ledger"):
        for path in (NOTE,) if place == "notes" else (CHAT, THREAD):
            one = states.tips(**{place: {path: dump_lines([message("m1")])}})
            two = states.tips(**{place: {path: dump_lines([message("m1"), message("m2")])}})
            edited = message("m1", rev=1, flags={"publish": True})
            three = states.tips(**{place: {path: dump_lines([edited, message("m2")])}})
            assert states.rows(NOTHING, one) == [("message", "added", "m1")]
            assert states.rows(one, two) == [("message", "added", "m2")]
            assert states.rows(two, three) == [("message", "changed", "m1")]


def test_a_note_that_is_sealed_or_moved_is_no_change() -> None:
    states = States()
    lines = [message("m1"), message("m2")]
    before = states.tips(hot("r1"), {NOTE: dump_lines(lines)})
    sealed = states.tips(hot("r1") | {CHAT: dump_lines(lines[:1])}, {NOTE: dump_lines(lines[1:])})
    assert states.rows(before, sealed) == []
    flat = states.tips(hot("r1"), {"5" * 40: dump_lines(lines)})
    assert states.rows(before, flat) == []
    parts = {CHAT.replace(".jsonl", "-0001.jsonl"): dump_lines(lines[:1]), CHAT: dump_lines(lines[1:])}
    assert states.rows(states.tips({CHAT: dump_lines(lines)}), states.tips(parts)) == []
    edited = [message("m1", rev=1, flags={"publish": True}), message("m2")]
    assert states.rows(before, states.tips(hot("r1") | {CHAT: dump_lines(edited)})) == [
        ("message", "changed", "m1")
    ]


def test_a_message_that_lies_in_a_thread_and_with_a_run_is_told_once() -> None:
    states = States()
    lines = dump_lines([message("m1", run_id="r1", thread_id="t1")])
    assert states.rows(NOTHING, states.tips({THREAD: lines}, {NOTE: lines})) == [("message", "added", "m1")]


def test_a_state_between_two_branches_tells_a_message_once() -> None:
    """Whoever dies between two refs, or is looked at there, leaves the ledger moved and the notes not yet."""
    states = States()
    anchored = hot("r1", anchor={"target": "6" * 40, "tagger": "A <a> 1 +0000"})
    target = anchored_tag(Snapshot(*map(states.editor, states.tips(anchored))), "r1")
    note = {note_path(str(target)): dump_lines([message("m1"), message("m2")])}
    before = states.tips(anchored, note)
    after = states.tips(anchored | {CHAT: dump_lines([message("m1"), message("m2")])})
    between = after._replace(notes=before.notes)
    for old, new in ((before, between), (between, after), (before, after)):
        assert states.rows(old, new) == []
    both = dump_lines([message("m3", run_id="r1", thread_id="t1")])
    before, after = states.tips(anchored), states.tips(anchored | {THREAD: both}, {NOTE: both})
    between = after._replace(notes=None)
    assert states.rows(before, between) == states.rows(before, after) == [("message", "added", "m3")]
    assert states.rows(between, after) == []


def test_threads_and_traces() -> None:
    states = States()
    thread = {"thread_id": "t1", "title": "Plans", "created_at": AT}
    trace = {"trace_id": "s1", "name": "deploy", "started_at": AT}
    one = states.tips(
        {
            "chat/threads/t1/thread.json": dump_pretty(thread),
            "ledger/traces/s1/trace.json": dump_pretty(trace),
            "ledger/traces/s1/events.jsonl": b"{}\n",
        }
    )
    assert states.rows(NOTHING, one) == [("thread", "added", "t1"), ("trace", "added", "s1")]
    two = states.tips(
        {
            "chat/threads/t1/thread.json": dump_pretty({**thread, "rev": 1, "title": "Plan"}),
            "ledger/traces/s1/trace.json": dump_pretty(trace),
            "ledger/traces/s1/events.jsonl": b"{}\n{}\n",
        }
    )
    assert states.rows(one, two) == [("thread", "changed", "t1"), ("trace", "changed", "s1")]


def test_bad_records_are_left_out_and_hide_nothing() -> None:
    states = States()
    bad = {
        f"{run_dir('r1')}/run.json": b"{",
        f"{run_dir('r2')}/run.json": run_file("r1"),
        f"{run_dir('r3')}/run.json": dump_pretty({"run_id": "r3", "type": "x", "started_at": 7}),
        "ledger/runs/..x/run.json": run_file("x"),
        THREAD: b"{\n[1]\nnull\n\n" + dump_lines([message("m1", ts="never"), message("../m2"), {"id": 7}]),
        "README": b"hello",
    }
    notes = {NOTE: b"\xff\n" + dump_lines([message("m3")]), "README": dump_lines([message("m4")])}
    rows = states.rows(NOTHING, states.tips(bad, notes))
    assert rows == [("message", "added", "m1"), ("message", "added", "m3"), ("run", "added", "r3")]


# ---------------------------------------------------------------- from a token, in a real repository


def test_every_kind_of_write_is_told_once_in_the_order_of_commits(repo: Path) -> None:
    store = Store.open(repo)
    store.ensure_ledger()
    token = store.change_token()
    # Started earlier, recorded later: the order is that of the commits.
    store.record_run(Run(run_id="late", type="apply", summary="hello", started_at="2026-02-17T21:00:00Z"))
    store.record_run(Run(run_id="early", type="plan", started_at="2026-02-17T20:00:00Z"))
    store.save_trace(SessionTrace(trace_id="t", name="deploy", events=[TraceEvent(seq=1, type="x")]))
    store.delete_run("late")
    changes = since(repo, token)
    assert told(changes) == [
        ("run", "added", "late"),
        ("run", "added", "early"),
        ("trace", "added", "t"),
        ("run", "deleted", "late"),
    ]
    assert since(repo, changes[-1].token) == []


def test_chat_is_told_in_the_order_in_which_it_was_said(repo: Path) -> None:
    """Also across branches, within one second: messages of runs are on one, runs and threads on another."""
    store = Store.open(repo, Settings(durability="os"))
    store.ensure_ledger()
    token, expected = store.change_token(), list[tuple[str, str, str]]()
    thread = store.create_thread("Plans")
    expected.append(("thread", "added", thread.thread_id))
    for number in range(4):
        run_id = store.record_run(Run(run_id=f"r{number}", type="x"))
        first = store.send_message("hello", run_id=run_id)
        both = store.send_message("hello", run_id=run_id, thread_id=thread.thread_id)
        alone = store.send_message("hello", thread_id=thread.thread_id)
        expected.append(("run", "added", run_id))
        expected += [("message", "added", each.id) for each in (first, both, alone)]
    changes = since(repo, token)
    assert told(changes) == expected
    assert dict(changes[3].data) == {
        "user": "Ada Tester",
        "thread_id": thread.thread_id,
        "run_id": "r0",
        "source": "manual",
        "encrypted": False,
        "preview": "hello",
    }
    token = changes[-1].token
    store.set_message_flags(first.id, publish=True, run_id="r3")
    store.set_message_flags(both.id, publish=True, run_id="r3")
    store.delete_message(alone.id, thread_id=thread.thread_id)
    store.delete_thread(thread.thread_id)
    assert told(since(repo, token)) == [
        ("message", "changed", first.id),
        ("message", "changed", both.id),
        ("message", "deleted", alone.id),
        ("thread", "deleted", thread.thread_id),
    ]


def test_sealing_a_long_note_tells_nothing_twice(repo: Path) -> None:
    store = Store.open(repo, Settings(durability="os"))
    store.record_run(Run(run_id="r", type="x"))
    token, sent = store.change_token(), list[str]()
    for _ in range(30):
        sent.append(store.send_message("x" * 9000, run_id="r").id)
    assert len(list((repo / ".scp-ledger/chat/runs/r").iterdir())) > 1
    assert [change.id for change in since(repo, token)] == sent
    assert sorted(change.id for change in since(repo, "")) == sorted([*sent, "r"])


def test_an_encrypted_message_shows_nothing(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTENT_VAULT_ENC_KEY", "k" * 32)
    store = Store.open(repo, Settings(durability="os"))
    store.record_run(Run(run_id="r", type="x"))
    store.send_message("the secret", run_id="r", encrypt=True)
    (change,) = [change for change in since(repo, "") if change.kind == "message"]
    assert change.data["preview"] == "[encrypted]" and change.data["encrypted"] is True
    assert "secret" not in repr(change)


def test_a_change_says_what_a_list_would_show_and_cannot_be_changed(repo: Path) -> None:
    store = Store.open(repo)
    store.record_run(Run(run_id="r", type="apply", subtype="k8s", summary="3 resources", started_at=AT))
    (change,) = since(repo, "")
    assert (change.kind, change.action, change.id, change.time) == ("run", "added", "r", AT)
    assert change.data == {
        "type": "apply",
        "subtype": "k8s",
        "status": "ok",
        "user": "Ada Tester",
        "summary": "3 resources",
    }
    with pytest.raises(AttributeError):
        change.id = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        change.data["type"] = "x"  # type: ignore[index]


def test_every_token_takes_up_the_thread_where_it_was(repo: Path) -> None:
    """Resumed after each change, with a store of its own: nothing is lost and nothing comes twice."""
    with Store.open(repo, Settings(durability="os")) as store:
        for number in range(5):
            store.record_run(Run(run_id=f"a{number}", type="x"))
        tickets = [
            store.submit(store.recording(run, lambda run=run: store.prepared(run, None), size=0))  # type: ignore[misc]
            for run in (Run(run_id=f"b{number}", type="x") for number in range(20))
        ]
        store.flush()
        assert {ticket.outcome() for ticket in tickets} == {True}
        store.delete_run("a3")
    whole = since(repo, "")
    assert len(whole) == 25
    token, found = "", list[Change]()
    while rest := since(repo, token):
        found.append(rest[0])
        token = rest[0].token
    assert told(found) == told(whole)
    start = Store.open(repo).change_token()
    assert since(repo, start) == since(repo, whole[-1].token) == []


def test_a_token_in_the_midst_of_a_step_goes_on_although_more_was_committed(repo: Path) -> None:
    store = Store.open(repo)
    for number in range(6):
        store.record_run(Run(run_id=f"a{number}", type="x"))
    first = since(repo, "")
    store.record_run(Run(run_id="b", type="x"))
    rest = since(repo, first[2].token)
    assert [change.id for change in rest] == ["a3", "a4", "a5", "b"]
    assert rest[-2].token == first[-1].token


def test_housekeeping_gives_nothing(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo, Settings(durability="os", hot_max=8, hot_min=4))
    store.ensure_ledger()
    token, ids = store.change_token(), list[str]()
    for number in range(24):
        ids.append(store.record_run(Run(run_id=f"r{number:02}", type="x"), [{"type": "y"}]))
    git(repo, "gc", "-q", "--prune=now")
    git(repo, "tag", "-d", "scp/run/r03")
    assert [change.id for change in since(repo, token)] == ids
    token = store.change_token()
    assert store.archive_runs(older_than_days=0) > 0
    store.ensure_ledger()
    git(repo, "gc", "-q", "--prune=now")
    assert since(repo, token) == []
    assert sorted(change.id for change in since(repo, "")) == ids


def test_a_run_that_waited_for_a_commit_is_told_once(make_repo: Callable[..., Path]) -> None:
    repo = make_repo(commits=0)
    store = Store.open(repo)
    store.record_run(Run(run_id="r1", type="x"))
    token = store.change_token()
    signature = pygit2.Signature("Ada", "ada@example.org")
    opened = pygit2.Repository(repo)
    tree = opened.TreeBuilder().write()
    opened.create_commit("refs/heads/main", signature, signature, "first", tree, [])
    store.record_run(Run(run_id="r2", type="x"))
    assert [change.id for change in since(repo, token)] == ["r2"]


def test_a_token_whose_objects_are_gone_gives_one_reset_and_then_everything(
    repo: Path, make_repo: Callable[..., Path]
) -> None:
    elsewhere = make_repo()
    Store.open(elsewhere).record_run(Run(run_id="other", type="x"))
    token = Store.open(elsewhere).change_token()
    store = Store.open(repo)
    for run_id in ("r1", "r2"):
        store.record_run(Run(run_id=run_id, type="x"))
    reset, *rest = since(repo, token)
    assert (reset.kind, reset.action, reset.id, dict(reset.data)) == ("state", "reset", "", {})
    assert told(rest) == [("run", "added", "r1"), ("run", "added", "r2")]
    assert told(since(repo, reset.token)) == told(rest)
    assert since(repo, rest[-1].token) == []


def test_a_token_of_the_users_own_commit_shows_nothing_of_it(repo: Path) -> None:
    head = str(pygit2.Repository(repo).head.target)
    Store.open(repo).record_run(Run(run_id="r1", type="x"))
    assert told(since(repo, Position(Tips(head, head, head)).token())) == [("run", "added", "r1")]
    blob = str(pygit2.Repository(repo).create_blob(b"1"))
    assert told(since(repo, Position(Tips(blob, None, None)).token()))[0] == ("state", "reset", "")


def test_an_empty_repository_and_a_later_format(repo: Path, git: Callable[..., str]) -> None:
    assert since(repo, None) == since(repo, "") == []
    token = Store.open(repo).change_token()
    Store.open(repo).record_run(Run(run_id="r1", type="x"))
    assert [change.id for change in since(repo, token)] == ["r1"]


def test_a_repository_that_is_none(tmp_path: Path) -> None:
    async def main() -> None:
        await anext(scp_git.changes(tmp_path))

    with pytest.raises(NotARepository):
        anyio.run(main)


@pytest.mark.untidy("a later format", skip=["view", "status"])
def test_a_ledger_of_a_later_format_is_refused(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo)
    store.record_run(Run(run_id="r1", type="x"))
    token = store.change_token()
    (repo / ".scp-ledger/FORMAT").write_text("2\n")
    git(repo / ".scp-ledger", "commit", "-qam", "later")
    with pytest.raises(scp_git.UnsupportedRepository, match="upgrade"):
        since(repo, token)


def test_from_nothing_the_whole_state_comes_by_time_and_id(repo: Path) -> None:
    store = Store.open(repo)
    for run_id, clock in {"a": "22:00", "b": "20:00", "c": "20:00", "gone": "21:00"}.items():
        store.record_run(Run(run_id=run_id, type="x", started_at=f"2026-02-17T{clock}:00Z"))
    store.delete_run("gone")
    assert told(since(repo, "")) == [
        ("run", "added", "b"),
        ("run", "added", "c"),
        ("run", "added", "a"),
        ("run", "deleted", "gone"),
    ]


def test_what_a_merge_brings_in_comes_by_time_and_id(repo: Path, git: Callable[..., str]) -> None:
    """A branch that was put on top of another history: the difference in one piece."""
    store = Store.open(repo)
    store.record_run(Run(run_id="ours", type="x"))
    token = store.change_token()
    repository = pygit2.Repository(repo)
    index = pygit2.Index()
    index.read_tree(repository.get(repository.references["refs/heads/scp-ledger"].target).tree)
    for run_id, clock in {"a": "22:00", "b": "20:00", "c": "20:00", "d": "21:00"}.items():
        blob = repository.create_blob(run_file(run_id, started_at=f"2026-02-17T{clock}:00Z"))
        index.add(pygit2.IndexEntry(f"{run_dir(run_id)}/run.json", blob, FileMode.BLOB))
    ada = pygit2.Signature("Ada Tester", "ada@example.org")
    tree = index.write_tree(repository)
    merged = repository.create_commit(None, ada, ada, "merged\n\nScp-Git: 1\n", tree, [])
    repository.references.create("refs/heads/scp-ledger", merged, force=True)
    assert [change.id for change in since(repo, token)] == ["b", "c", "d", "a"]
    store.ensure_ledger()


# ---------------------------------------------------------------- live


async def test_writes_of_this_process_are_told_at_once(repo: Path) -> None:
    async with scp_git.open_store(repo, Settings(durability="os")) as store:
        await store.ensure_ledger()
        changes, waits = store.changes(since=await store.change_token()), list[float]()
        for number in range(10):
            async with anyio.create_task_group() as group:
                found = list[Change]()

                async def read(found: list[Change] = found) -> None:
                    found += await take(changes, 1)

                group.start_soon(read)
                await anyio.sleep(0.02)
                await store.record_run(Run(run_id=f"r{number}", type="x"))
                stored = time.monotonic()
            waits.append(time.monotonic() - stored)
            assert told(found) == [("run", "added", f"r{number}")]
        assert sorted(waits)[5] < 0.05  # without the bus half of them would take longer


async def test_writes_of_another_process_are_told_within_200_ms(repo: Path) -> None:
    script = """
        import sys, time
        from scp_git import Run, Settings, Store
        store = Store.open(sys.argv[1], Settings(durability="os"))
        for number in range(8):
            run = Run(run_id=f"r{number}", type="x")
            store.record_run(run)
            print(time.time(), flush=True)
            time.sleep(0.13)
    """
    Store.open(repo).ensure_ledger()
    token, heard = await scp_git.change_token(repo), list[float]()
    command = [sys.executable, "-c", textwrap.dedent(script), str(repo)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        changes = scp_git.changes(repo, since=token)
        with anyio.fail_after(20):
            for number in range(8):
                change = await anext(changes)
                heard.append(time.time())
                assert (change.action, change.id) == ("added", f"r{number}")
        stored = [float(line) for line in (await anyio.to_thread.run_sync(child.communicate))[0].split()]
    late = sorted(after - before for before, after in zip(stored, heard, strict=True))
    assert late[len(late) // 2] < 0.2, late


async def test_none_begins_when_the_iteration_begins(repo: Path) -> None:
    async with scp_git.open_store(repo) as store:
        await store.record_run(Run(run_id="before", type="x"))
        changes = store.changes()
        with anyio.move_on_after(0.3) as scope:
            await anext(changes)
        assert scope.cancelled_caught
        await store.record_run(Run(run_id="after", type="x"))
        assert [change.id for change in await take(changes, 1)] == ["after"]
        assert [change.id async for change in store.changes(since="", follow=False)] == ["before", "after"]


async def test_cancelling_loses_nothing_and_breaking_out_leaves_nothing_behind(repo: Path) -> None:
    async with scp_git.open_store(repo, Settings(durability="os")) as store:
        token, found, tries = await store.change_token(), list[str](), 0
        changes = store.changes(since=token)

        async def write() -> None:
            for number in range(60):
                await store.record_run(Run(run_id=f"r{number:02}", type="x"))

        before = bus.statistics()
        async with anyio.create_task_group() as group:
            group.start_soon(write)
            with anyio.fail_after(30):
                while len(found) < 60:
                    tries += 1
                    with anyio.move_on_after(tries % 7 * 0.002):
                        found.append((await anext(changes)).id)
        assert found == [f"r{number:02}" for number in range(60)]
        async for change in store.changes(since=token):
            assert change.id == "r00"
            break
        after = bus.statistics()
        assert (after.subscribers, after.asleep) == (before.subscribers, before.asleep)


def test_a_native_asyncio_cancel_loses_nothing(repo: Path) -> None:
    async def main() -> None:
        store = AsyncStore(Store.open(repo, Settings(durability="os")))
        changes, found, tries = store.changes(since=""), list[str](), 0
        for number in range(40):
            await store.record_run(Run(run_id=f"r{number:02}", type="x"))
        while len(found) < 40:
            tries += 1
            try:
                found.append((await asyncio.wait_for(anext(changes), tries % 5 * 0.001)).id)
            except TimeoutError:
                await asyncio.sleep(0)
        assert sorted(set(found)) == sorted(found)

    asyncio.run(main())


def test_readers_on_two_loops_and_in_a_thread_hear_the_same(repo: Path) -> None:
    store = Store.open(repo, Settings(durability="os"))
    token, heard = store.change_token(), dict[str, list[str]]()

    def in_loop(backend: str) -> None:
        async def read() -> None:
            heard[backend] = [change.id for change in await take(scp_git.changes(repo, since=token), 30)]

        anyio.run(read, backend=backend)

    def in_thread() -> None:
        changes = Store.open(repo).changes(since=token)
        heard["thread"] = [next(changes).id for _ in range(30)]

    threads = [threading.Thread(target=in_loop, args=(name,)) for name in ("asyncio", "trio")]
    threads.append(threading.Thread(target=in_thread))
    for thread in threads:
        thread.start()
    ids = [store.record_run(Run(run_id=f"r{number:02}", type="x")) for number in range(30)]
    for thread in threads:
        thread.join(20)
    assert heard == {"asyncio": ids, "trio": ids, "thread": ids}


@pytest.mark.alone
async def test_the_loop_stays_free_while_a_large_difference_is_taken(repo: Path) -> None:
    store = AsyncStore(Store.open(repo, Settings(durability="os")))
    record_many(store.store, 2000)
    await store.change_token()  # starts the worker thread
    gaps, done, waiting = list[float](), anyio.Event(), Waiting()

    async def heartbeat() -> None:
        while not done.is_set():
            # Asking gives the GIL away once for each thread, so it is no part of the gap.
            waited, before = waiting.seconds(), time.monotonic()
            await anyio.sleep(0.002)
            gap = time.monotonic() - before
            gaps.append(gap - (waiting.seconds() - waited))

    with collector_at_rest():
        async with anyio.create_task_group() as group:
            group.start_soon(heartbeat)
            assert len([change async for change in store.changes(since="", follow=False)]) == 2000
            done.set()
    waiting.close()
    # Work on the loop itself comes in turns of 50 ms, and half of the gaps would be as long.
    assert sorted(gaps)[len(gaps) // 2] < 0.03, gaps


def record_many(store: Store, count: int) -> None:
    runs = (Run(run_id=f"r{number:05}", type="x", summary="s" * 300) for number in range(count))
    assert store.import_runs(runs).added == count


@pytest.mark.parametrize("total", [2000, pytest.param(30_000, marks=pytest.mark.full)])
def test_memory_holds_a_short_row_for_each_record(repo: Path, total: int) -> None:
    store = Store.open(repo, Settings(durability="os"))
    record_many(store, total)
    tracemalloc.start()
    try:
        changes, count = store.changes(since="", follow=False), 0
        next(changes)
        for _ in changes:
            count += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == total - 1
    assert peak < total * 700 + 2_000_000, peak


def test_waiting_costs_next_to_nothing(repo: Path) -> None:
    async def main() -> float:
        store = AsyncStore(Store.open(repo))
        await store.ensure_ledger()
        token = await store.change_token()
        began = time.process_time()
        with anyio.move_on_after(2):
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(take, store.changes(since=token), 1)
        return time.process_time() - began

    assert anyio.run(main) < 0.4  # 0.06 on a quiet machine


def _say_twice(store: Store) -> None:
    store.send_message("both", run_id="r1", thread_id="general")


def _flag_twice(store: Store) -> None:
    store.set_message_flags("m-both", publish=True, run_id="r1")


def _unsay_twice(store: Store) -> None:
    store.delete_message("m-both", run_id="r1")


def _seal(store: Store) -> None:
    store.send_message("x" * 60_000, run_id="r1")


def _forget(store: Store) -> None:
    store.delete_run("r1")


def _roll(store: Store) -> None:
    store.record_run(Run(run_id="r9", type="x", started_at="2026-02-18"))


def drained(feed: Feed) -> list[Change]:
    while feed.fill():
        pass
    found = list(feed.ahead)
    feed.ahead.clear()
    return found


@pytest.mark.parametrize("act", [_say_twice, _flag_twice, _unsay_twice, _seal, _forget, _roll])
def test_whoever_looks_between_two_refs_is_told_everything_once(
    repo: Path, act: Callable[[Store], None]
) -> None:
    """A transaction moves archive, ledger and notes in turn; its process may die after each of them."""
    store = Store.open(repo, Settings(durability="os", hot_max=4, hot_min=2))
    for number in range(1, 5):
        store.record_run(Run(run_id=f"r{number}", type="x", started_at=f"2026-02-17T2{number % 4}:00:00Z"))
    store.send_message("x" * 30_000, run_id="r1")
    both = ChatMessage(id="m-both", text="both", run_id="r1", thread_id="general")
    store._wait(store.sending(lambda: store.addressed(both), size=100))
    token, references = store.change_token(), pygit2.Repository(repo).references
    order = [ref for ref in BRANCHES if ref in references]
    before = {ref: references[ref].target for ref in order}
    act(store)
    after = {ref: references[ref].target for ref in BRANCHES if ref in references}
    expected = told(since(repo, token))
    moved = [ref for ref in BRANCHES if after.get(ref) != before.get(ref)]
    assert len(moved) > 1 and len(expected) == 1
    for count in range(1, len(moved)):
        for ref in moved[count:]:
            if ref in before:
                references.create(ref, before[ref], force=True)
            else:
                references.delete(ref)
        waiting = Store.open(repo).feed(token)
        first = drained(waiting)
        for ref in moved:
            references.create(ref, after[ref], force=True)
        assert told(first + drained(waiting)) == expected, moved[:count]
        assert told(first + since(repo, first[-1].token if first else token)) == expected
    store.ensure_ledger()


# ---------------------------------------------------------------- between machines


def test_what_a_pull_brings_is_told_once_and_local_work_is_not_told_again(
    make_repo: Callable[..., Path], tmp_path: Path
) -> None:
    """Both sides worked; the branches here are put on top of the remote's, so this comes by time and id."""
    server = make_repo(tmp_path / "server.git", commits=0, bare=True)
    stores = []
    for name in ("a", "b"):
        top = make_repo(tmp_path / name)
        pygit2.Repository(top).remotes.create("origin", str(server))
        stores.append(Store.open(top, Settings(durability="os")))
    a, b = stores
    b.record_run(Run(run_id="mine", type="x"))
    mine = b.send_message("mine", run_id="mine")
    token = b.change_token()
    for run_id, clock in {"z": "20:00", "y": "22:00", "x": "21:00"}.items():
        a.record_run(Run(run_id=run_id, type="x", started_at=f"2026-02-17T{clock}:00Z"))
    said = a.send_message("theirs", run_id="y")
    a.delete_run("x")
    a.push()
    late = b.record_run(Run(run_id="late", type="x", started_at="2026-02-17T23:00:00Z"))
    b.pull()
    assert told(since(b.root, token)) == [
        ("run", "added", "z"),
        ("run", "added", "y"),
        ("run", "added", late),
        ("message", "added", said.id),
        ("run", "deleted", "x"),
    ]
    token = b.change_token()
    b.push()
    b.pull()
    assert since(b.root, token) == []
    token = a.change_token()
    a.pull()
    assert [change.id for change in since(a.root, token)] == [late, "mine", mine.id]


def test_a_pull_that_only_adds_is_told_by_time_and_id_and_then_local_work_in_its_order(
    make_repo: Callable[..., Path], tmp_path: Path
) -> None:
    """The branches of a clone that did no work simply grow, by commits of the others."""
    server = make_repo(tmp_path / "server.git", commits=0, bare=True)
    stores = []
    for name in ("a", "b"):
        top = make_repo(tmp_path / name)
        pygit2.Repository(top).remotes.create("origin", str(server))
        stores.append(Store.open(top, Settings(durability="os")))
    a, b = stores
    a.record_run(Run(run_id="start", type="x"))
    a.push()
    b.pull()
    token = b.change_token()
    for run_id, clock in {"late": "22:00", "early": "20:00", "gone": "21:00"}.items():
        a.record_run(Run(run_id=run_id, type="x", started_at=f"2026-02-17T{clock}:00Z"))
    a.delete_run("gone")
    a.push()
    b.pull()
    for run_id, clock in {"second": "19:00", "first": "18:00"}.items():
        b.record_run(Run(run_id=run_id, type="x", started_at=f"2026-02-17T{clock}:00Z"))
    assert told(since(b.root, token)) == [
        ("run", "added", "early"),
        ("run", "added", "late"),
        ("run", "deleted", "gone"),
        ("run", "added", "second"),
        ("run", "added", "first"),
    ]


async def test_a_pull_is_told_live(make_repo: Callable[..., Path], tmp_path: Path) -> None:
    server = make_repo(tmp_path / "server.git", commits=0, bare=True)
    roots = [make_repo(tmp_path / name) for name in ("a", "b")]
    for top in roots:
        pygit2.Repository(top).remotes.create("origin", str(server))
    async with scp_git.open_store(roots[0]) as a, scp_git.open_store(roots[1]) as b:
        await a.record_run(Run(run_id="r1", type="x"))
        await a.push()
        changes = b.changes(since=await b.change_token())
        async with anyio.create_task_group() as group:
            group.start_soon(b.pull)
            assert told(await take(changes, 1)) == [("run", "added", "r1")]


# ---------------------------------------------------------------- whoever applies all changes has the state

Places = dict[str, tuple[str | None, str | None]]


class Mirror:
    """What a reader knows who only ever saw changes, and begins anew with a token now and then."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self.root = root
        self.chance = chance
        self.token = ""
        self.known: dict[str, set[str]] = {kind: set() for kind in ("run", "thread", "trace")}
        self.messages: Places = {}

    def catch_up(self, *, all: bool = False) -> None:
        for change in Store.open(self.root).changes(since=self.token, follow=False):
            self.apply(change)
            self.token = change.token
            if not all and self.chance.random() < 0.2:
                return

    def apply(self, change: Change) -> None:
        assert change.action != "reset"
        if change.kind == "message":
            if change.action == "deleted":
                self.messages.pop(change.id, None)
            else:
                assert (change.action == "changed") == (change.id in self.messages), change
                self.messages[change.id] = change.data["run_id"], change.data["thread_id"]
        elif change.action == "deleted":
            self.known[change.kind].discard(change.id)
            self.forget(change.kind, change.id)
        else:
            assert (change.action == "changed") == (change.id in self.known[change.kind]), change
            self.known[change.kind].add(change.id)

    def forget(self, kind: str, id: str) -> None:
        """A deleted run or thread covers the copies of messages that lie there."""
        for message, (run_id, thread_id) in list(self.messages.items()):
            left = (None if kind == "run" and run_id == id else run_id,
                    None if kind == "thread" and thread_id == id else thread_id)  # fmt: skip
            if left != (run_id, thread_id):
                self.messages[message] = left
                if left == (None, None):
                    del self.messages[message]


def present(store: Store) -> tuple[dict[str, set[str]], set[str]]:
    known = {
        "run": {run.run_id for run in store.list_runs(n=10**6)},
        "thread": {thread.thread_id for thread in store.list_threads()},
        "trace": {trace.trace_id for trace in store.list_traces(n=10**6)},
    }
    said = [store.list_messages(run_id=id, n=10**6) for id in known["run"]]
    said += [store.list_messages(thread_id=id, n=10**6) for id in known["thread"]]
    return known, {message.id for messages in said for message in messages}


def one_thing(store: Store, chance: random.Random) -> None:
    """Something that a user, or the housekeeping, does."""
    known, _ = present(store)
    run_id = chance.choice(sorted(known["run"])) if known["run"] else None
    thread_id = chance.choice(sorted(known["thread"])) if known["thread"] else None
    doing = chance.choice(
        "run run run say say say say both thread trace flags unsay forget drop roll".split()
    )
    if doing == "run":
        store.record_run(Run(type="x", started_at=f"2026-02-17T2{chance.randrange(4)}:00:00Z"))
    elif doing == "say":
        where = {"run_id": run_id} if chance.random() < 0.6 else {"thread_id": thread_id}
        store.send_message("x" * chance.choice([1, 9000]), **where)
    elif doing == "both" and run_id and thread_id:
        store.send_message("both", run_id=run_id, thread_id=thread_id)
    elif doing == "thread":
        store.create_thread("Plans")
    elif doing == "trace":
        store.save_trace(SessionTrace(name="deploy", events=[TraceEvent(seq=1, type="x")]))
    elif doing in ("flags", "unsay") and run_id:
        found = store.list_messages(run_id=run_id)
        if found and doing == "flags":
            chosen = chance.choice(found)
            store.set_message_flags(chosen.id, publish=not chosen.flags.publish, run_id=run_id)
        elif found:
            store.delete_message(chance.choice(found).id, run_id=run_id)
    elif doing == "forget" and run_id and len(known["run"]) > 3:
        store.delete_run(run_id)
    elif doing == "drop" and thread_id and thread_id != "general":
        store.delete_thread(thread_id)
    elif doing == "roll" and len(known["run"]) > 5:
        store.archive_runs(older_than_days=0)


@pytest.mark.parametrize("seed", [1, 2, 3, *(pytest.param(n, marks=pytest.mark.full) for n in range(4, 60))])
def test_whoever_applies_all_changes_has_the_state(
    make_repo: Callable[..., Path], tmp_path: Path, seed: int
) -> None:
    """Two clones that work, push and pull; a reader in each that resumes at tokens at random."""
    chance = random.Random(seed)
    server = make_repo(tmp_path / "server.git", commits=0, bare=True)
    stores = []
    for name in ("a", "b"):
        top = make_repo(tmp_path / name)
        pygit2.Repository(top).remotes.create("origin", str(server))
        stores.append(Store.open(top, Settings(durability="os", hot_max=6, hot_min=3)))
    mirrors = [Mirror(store.root, chance) for store in stores]
    for _ in range(45):
        store = chance.choice(stores)
        if chance.random() < 0.15:
            chance.choice((store.push, store.pull))()
        else:
            one_thing(store, chance)
        if chance.random() < 0.5:
            chance.choice(mirrors).catch_up()
    for store, mirror in zip(stores, mirrors, strict=True):
        mirror.catch_up(all=True)
        known, messages = present(store)
        assert mirror.known == known
        assert mirror.messages.keys() == messages
