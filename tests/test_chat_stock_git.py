"""Chat and stock git: it reads what we write, and we read what it, or anybody else, wrote."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scp_git import ChatMessage, Run, Settings, StorageFailed, Store
from scp_git.chat import queries

Git = Callable[..., str]
REF = "--ref=scp-chat"
pytestmark = pytest.mark.referee


@pytest.fixture
def store(repo: Path) -> Store:
    return Store.open(repo, Settings(durability="os"))


@pytest.fixture
def run_id(store: Store) -> str:
    return store.record_run(Run(type="apply"))


def tag(run_id: str) -> str:
    return f"refs/tags/scp/run/{run_id}"


def texts(store: Store, **place: Any) -> list[str]:
    return [message.text for message in store.list_messages(**place)]


def by_hand(text: str, **fields: Any) -> str:
    return json.dumps({**ChatMessage(text=text, user="Bob").model_dump(), **fields})


# ---------------------------------------------------------------- stock git reads ours


def test_git_notes_and_git_log_show_what_was_said(store: Store, run_id: str, git: Git) -> None:
    sent = [store.send_message(text, run_id=run_id) for text in ("one", "two")]
    oid = git(store.root, "rev-parse", tag(run_id)).strip()
    assert git(store.root, "notes", REF, "list").split()[1] == oid
    assert git(store.root, "notes", REF, "list", tag(run_id)).strip()
    shown = git(store.root, "notes", REF, "show", tag(run_id))
    assert [json.loads(line) for line in shown.splitlines()] == [message.model_dump() for message in sent]
    subjects = git(store.root, "log", "--format=%s", "refs/notes/scp-chat").splitlines()
    assert subjects == [f"chat: {message.id} about {run_id}" for message in reversed(sent)]
    assert "Scp-Git: 1" in git(store.root, "log", "-1", "--format=%B", "refs/notes/scp-chat")
    store.send_message("three", thread_id="general")
    assert "chat/threads/general/messages.jsonl" in git(store.root, "log", "-1", "--name-only", "scp-ledger")


def test_titles_and_texts_do_not_appear_in_commit_messages(store: Store, run_id: str, git: Git) -> None:
    thread = store.create_thread("a title")
    sent = store.send_message("a text", run_id=run_id, thread_id=thread.thread_id)
    store.set_message_flags(sent.id, publish=True, run_id=run_id)
    store.delete_message(sent.id, run_id=run_id)
    store.delete_thread(thread.thread_id)
    said = git(store.root, "log", "--all", "--format=%B")
    assert "a title" not in said and "a text" not in said and f"chat: publish {sent.id}" in said


# ---------------------------------------------------------------- we read theirs


def test_git_notes_append_and_we_take_turns(store: Store, run_id: str, git: Git) -> None:
    expected = []
    for number in range(4):
        store.send_message(f"ours {number}", run_id=run_id)
        git(store.root, "notes", REF, "append", "--message", by_hand(f"theirs {number}"), tag(run_id))
        expected += [f"ours {number}", f"theirs {number}"]
        assert texts(store, run_id=run_id) == expected[::-1]
    shown = git(store.root, "notes", REF, "show", tag(run_id))
    assert [json.loads(line)["text"] for line in shown.splitlines() if line] == expected


@pytest.mark.parametrize("split", [(), (2,), (2, 2), (2, 2, 2)], ids=["flat", "2/38", "2/2/36", "2/2/2/34"])
def test_notes_at_any_fan_out_are_read_and_added_to(
    store: Store, run_id: str, git: Git, split: tuple[int, ...]
) -> None:
    oid = git(store.root, "rev-parse", tag(run_id)).strip()
    path, rest = "", oid
    for length in split:
        path, rest = f"{path}{rest[:length]}/", rest[length:]
    blob = git(store.root, "hash-object", "-w", "--stdin", input=by_hand("theirs") + "\n").strip()
    other = hashlib.sha1(b"another object").hexdigest()
    tree = git(store.root, "mktree", input=f"100644 blob {blob}\t{rest}\n").strip()
    for name in reversed(path.split("/")[:-1]):
        tree = git(store.root, "mktree", input=f"040000 tree {tree}\t{name}\n").strip()
    commit = git(store.root, "commit-tree", tree, "-m", "by hand").strip()
    git(store.root, "update-ref", "refs/notes/scp-chat", commit)
    assert texts(store, run_id=run_id) == ["theirs"]
    store.send_message("ours", run_id=run_id)
    assert texts(store, run_id=run_id) == ["ours", "theirs"]
    assert len(git(store.root, "notes", REF, "list").splitlines()) == 1
    assert other not in git(store.root, "notes", REF, "list")


def test_blank_broken_and_doubled_lines_hide_nothing(store: Store, run_id: str, git: Git) -> None:
    good, newer = by_hand("good", colour="red"), by_hand("newer")
    no_id, no_time = by_hand("no id", id=""), by_hand("no time", ts="yesterday")
    odd = [
        "",
        good,
        "",
        "{broken",
        good,
        "[]",
        "5",
        no_id,
        no_time,
        newer.replace("}", ',"id":"x"}'),
        "\u2028",
        newer,
    ]
    git(store.root, "notes", REF, "add", "--file=-", tag(run_id), input="\n".join(odd) + "\n")
    for _ in range(2):
        assert texts(store, run_id=run_id) == ["newer", "good"]
        store.ensure_ledger()
    store.send_message("ours", run_id=run_id)
    assert texts(store, run_id=run_id) == ["ours", "newer", "good"]
    shown = git(store.root, "notes", REF, "show", tag(run_id))
    for line in ("{broken", "[]", "5", no_id, no_time):
        assert line in shown.split("\n"), "what cannot be read is kept"


def test_unknown_fields_are_kept_and_written_back(store: Store, run_id: str, git: Git) -> None:
    theirs = by_hand(
        "theirs", colour="red", rev=4, flags={"publish": False, "encrypted": False, "pinned": True}
    )
    git(store.root, "notes", REF, "add", "--message", theirs, tag(run_id))
    (message,) = store.list_messages(run_id=run_id)
    assert message.model_extra == {"colour": "red", "rev": 4}
    flagged = store.set_message_flags(message.id, publish=True, run_id=run_id)
    stored = json.loads(git(store.root, "notes", REF, "show", tag(run_id)))
    assert stored == flagged.model_dump()
    assert stored["rev"] == 5 and stored["colour"] == "red"
    assert stored["flags"] == {"publish": True, "encrypted": False, "pinned": True}


def test_a_thread_made_by_hand_in_the_view(store: Store, git: Git) -> None:
    store.ensure_ledger()
    view = store.root / ".scp-ledger"
    folder = view / "chat/threads/by-hand"
    folder.mkdir(parents=True)
    (folder / "thread.json").write_text('{"thread_id":"by-hand","title":"By hand","created_at":"2020-01-01"}')
    (folder / "messages.jsonl").write_text(by_hand("one") + "\n\nbroken\n" + by_hand("two"))
    git(view, "add", ".")
    git(view, "commit", "--quiet", "--message", "by hand")
    assert [thread.title for thread in store.list_threads()] == ["By hand"]
    assert texts(store, thread_id="by-hand") == ["two", "one"]
    store.send_message("ours", thread_id="by-hand")
    assert texts(store, thread_id="by-hand") == ["ours", "two", "one"]
    assert "broken" in (folder / "messages.jsonl").read_text().split("\n")


def test_a_thread_of_the_earlier_program_without_its_record_is_taken_over_by_general(
    store: Store, git: Git
) -> None:
    store.ensure_ledger()
    view = store.root / ".scp-ledger"
    folder = view / "chat/threads/general"
    folder.mkdir(parents=True)
    (folder / "messages.jsonl").write_text(by_hand("theirs") + "\n")
    git(view, "add", ".")
    git(view, "commit", "--quiet", "--message", "by hand")
    assert texts(store) == ["theirs"]
    store.send_message("ours")
    assert texts(store) == ["ours", "theirs"]
    assert [thread.thread_id for thread in store.list_threads()] == ["general"]


def test_damaged_threads_hide_no_other(store: Store, git: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store.create_thread("kept")
    view = store.root / ".scp-ledger"
    damaged = {
        "broken": "{",
        "other-id": '{"thread_id":"x","created_at":"2020-01-01"}',
        "no-time": '{"thread_id":"no-time"}',
        "not-text": '{"thread_id":"not-text","title":5,"created_at":"2020-01-01"}',
        "empty": "",
    }
    for name, text in damaged.items():
        (view / f"chat/threads/{name}").mkdir()
        (view / f"chat/threads/{name}/thread.json").write_text(text)
    git(view, "add", ".")
    git(view, "commit", "--quiet", "--message", "by hand")
    assert store.list_threads() == [kept]
    monkeypatch.setattr("scp_git.git.anchors.MAX_RECORD_BYTES", 3)
    assert queries.ChatReader(store._repository).threads() == []
    assert store.list_threads() == []


def test_a_message_is_not_written_over_what_is_missing(store: Store, run_id: str, git: Git) -> None:
    for number in range(2):
        store.send_message(str(number), run_id=run_id)
        store.send_message(str(number))
    store.flush()
    oid = git(store.root, "rev-parse", tag(run_id)).strip()
    names = ("scp-ledger:chat/threads/general/messages.jsonl", f"refs/notes/scp-chat:{oid[:2]}/{oid[2:]}")
    blobs = [git(store.root, "rev-parse", name).strip() for name in names]
    folder, away = store.root / ".git/objects", store.root.parent / "away"
    away.mkdir()
    for pack in list((folder / "pack").glob("pack-*.pack")):  # every object in a file of its own
        pack.rename(away / pack.name)
        pack.with_suffix(".idx").unlink()
        with (away / pack.name).open("rb") as data:
            subprocess.run(["git", "-C", str(store.root), "unpack-objects", "-q"], stdin=data, check=True)
    for blob in blobs:
        (folder / blob[:2] / blob[2:]).rename(away / blob)
    other = Store.open(store.root, Settings(durability="os", idle_s=1))
    for place in ({"run_id": run_id}, {"thread_id": "general"}):
        with pytest.raises(StorageFailed, match="missing"):
            other.send_message("x", **place)
        assert texts(other, **place) == []
    for blob in blobs:
        (away / blob).rename(folder / blob[:2] / blob[2:])
    fresh = Store.open(store.root, Settings(durability="os", idle_s=2))
    assert texts(fresh) == texts(fresh, run_id=run_id) == ["1", "0"]
