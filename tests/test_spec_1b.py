"""The users' acceptance list for chat (SPEC 1B.7, "Must Have"): one test per line, named after it.

The line about push and pull is in ``test_spec_1b_sync.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pygit2
import pytest

import scp_git
from scp_git import ChatMessage, KeyMissing, NotFound, Run, Thread, bus
from scp_git.chat import decrypt_text, is_encrypted
from scp_git.git.worktree import notes_append, notes_show, worktree_path

MakeRepo = Callable[..., Path]
KEY = "CONTENT_VAULT_ENC_KEY"
NOTES = "refs/notes/scp-chat"
pytestmark = pytest.mark.anyio


def tag(run_id: str) -> str:
    return f"scp/run/{run_id}"


def on_branch(repo: Path, path: str) -> bytes:
    return bytes(pygit2.Repository(repo).revparse_single(f"refs/heads/scp-ledger:{path}").data)


def lines(text: str | None) -> list[ChatMessage]:
    return [ChatMessage.model_validate_json(line) for line in (text or "").splitlines() if line]


# ---- `send_message()` with `run_id` writes JSONL to git notes on the run tag


async def test_send_message_with_run_id_writes_jsonl_to_git_notes_on_the_run_tag(repo: Path) -> None:
    run_id = await scp_git.record_run(repo, Run(type="x"))
    sent = [await scp_git.send_message(repo, text, run_id=run_id) for text in ("one", "two")]
    said = notes_show(repo, NOTES, tag(run_id))
    assert said is not None and said.count("\n") == 2
    assert lines(said) == sent
    target = pygit2.Repository(repo).references[f"refs/tags/{tag(run_id)}"].target
    assert isinstance(pygit2.Repository(repo)[target], pygit2.Tag), "on the tag object, not on its commit"


# ---- `send_message()` with `thread_id` writes JSONL to thread's messages.jsonl


async def test_send_message_with_thread_id_writes_jsonl_to_the_threads_messages_jsonl(repo: Path) -> None:
    thread = await scp_git.create_thread(repo, "Roll-out")
    sent = [await scp_git.send_message(repo, text, thread_id=thread.thread_id) for text in ("one", "two")]
    path = f"chat/threads/{thread.thread_id}/messages.jsonl"
    assert lines(on_branch(repo, path).decode()) == sent
    assert (worktree_path(repo) / path).read_bytes() == on_branch(repo, path)


# ---- `list_messages(run_id=...)` reads from git notes


async def test_list_messages_of_a_run_reads_from_git_notes(repo: Path) -> None:
    run_id = await scp_git.record_run(repo, Run(type="x"))
    by_hand = ChatMessage(text="by hand", run_id=run_id, user="somebody")
    notes_append(repo, NOTES, tag(run_id), by_hand.model_dump_json())
    ours = await scp_git.send_message(repo, "ours", run_id=run_id)
    assert await scp_git.list_messages(repo, run_id=run_id) == [ours, by_hand]
    assert await scp_git.list_messages(repo, run_id=run_id, n=1) == [ours]


# ---- `list_messages(thread_id=...)` reads from thread files


async def test_list_messages_of_a_thread_reads_from_thread_files(repo: Path) -> None:
    thread = await scp_git.create_thread(repo, "Roll-out")
    sent = [await scp_git.send_message(repo, str(n), thread_id=thread.thread_id) for n in range(60)]
    assert await scp_git.list_messages(repo, thread_id=thread.thread_id) == sent[:9:-1]
    assert await scp_git.list_messages(repo, thread_id=thread.thread_id, n=2) == sent[:-3:-1]


# ---- `create_thread()` creates thread.json on ledger branch


async def test_create_thread_creates_thread_json_on_the_ledger_branch(repo: Path) -> None:
    run_id = await scp_git.record_run(repo, Run(type="x"))
    thread = await scp_git.create_thread(repo, "Roll-out", user="Bob", anchor_run=run_id, tags=["prod"])
    stored = json.loads(on_branch(repo, f"chat/threads/{thread.thread_id}/thread.json"))
    assert list(stored) == ["thread_id", "title", "created_at", "created_by", "anchor_run", "tags"]
    assert Thread.model_validate(stored) == thread
    assert (stored["title"], stored["created_by"], stored["anchor_run"]) == ("Roll-out", "Bob", run_id)
    assert thread.thread_id.startswith("thread_2")


# ---- `list_threads()` scans .scp-ledger/chat/threads/*/thread.json


async def test_list_threads_finds_every_thread(repo: Path) -> None:
    made = [await scp_git.create_thread(repo, f"t{n}") for n in range(3)]
    await scp_git.send_message(repo, "to general")
    listed = await scp_git.list_threads(repo)
    assert listed[:3] == made[::-1]
    assert [thread.thread_id for thread in listed[3:]] == ["general"]
    found = {path.parent.name for path in worktree_path(repo).glob("chat/threads/*/thread.json")}
    assert found == {thread.thread_id for thread in listed}


# ---- `encrypt=True` encrypts text using `CONTENT_VAULT_ENC_KEY`


@pytest.mark.parametrize("where", ["environment", ".env"])
async def test_encrypt_encrypts_text_using_the_key(
    repo: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.delenv(KEY, raising=False)
    if where == ".env":
        (repo / ".git/info/exclude").write_text(".env\n")
        (repo / ".env").write_text(f"{KEY}='a passphrase'\n")
    else:
        monkeypatch.setenv(KEY, "a passphrase")
    run_id = await scp_git.record_run(repo, Run(type="x"))
    sent = await scp_git.send_message(repo, "the secret", run_id=run_id, thread_id=None, encrypt=True)
    assert sent.flags.encrypted and sent.text.startswith("ENC:v1:") and is_encrypted(sent.text)
    assert decrypt_text(sent.text, repo) == "the secret"
    assert lines(notes_show(repo, NOTES, tag(run_id))) == [sent]
    (shown,) = await scp_git.list_messages(repo, run_id=run_id)
    assert shown == sent.model_copy(update={"text": "the secret"})
    monkeypatch.delenv(KEY, raising=False)
    (repo / ".env").unlink(missing_ok=True)
    (hidden,) = await scp_git.list_messages(repo, run_id=run_id)
    assert (hidden.text, hidden.flags.encrypted) == ("[encrypted]", True)


# ---- `encrypt=True` errors if `CONTENT_VAULT_ENC_KEY` not set


async def test_encrypt_errors_if_the_key_is_not_set(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(KeyMissing, match=f"{KEY} is not set"):
        await scp_git.send_message(repo, "the secret", encrypt=True)
    assert await scp_git.list_messages(repo) == [] == await scp_git.list_threads(repo)


# ---- `publish=True` sets the flag


async def test_publish_sets_the_flag(repo: Path) -> None:
    sent = await scp_git.send_message(repo, "for everybody", publish=True)
    kept = await scp_git.send_message(repo, "for us")
    assert [message.flags.publish for message in (sent, kept)] == [True, False]
    assert await scp_git.list_messages(repo) == [kept, sent]


# ---- All functions handle missing refs/notes/files gracefully


async def test_all_functions_handle_missing_refs_notes_and_files(make_repo: MakeRepo) -> None:
    for root in (make_repo(commits=0), make_repo(), make_repo(bare=True)):
        for place in ({}, {"run_id": "r"}, {"thread_id": "t"}, {"run_id": "r", "thread_id": "t"}):
            assert await scp_git.list_messages(root, **place) == []
            assert await scp_git.delete_message(root, "m", **place) is False
        assert await scp_git.list_threads(root) == []
        assert await scp_git.delete_thread(root, "t") is False
        with pytest.raises(NotFound):
            await scp_git.send_message(root, "x", run_id="r")
        run_id = await scp_git.record_run(root, Run(type="x"))
        assert await scp_git.list_messages(root, run_id=run_id) == []
        sent = await scp_git.send_message(root, "x", run_id=run_id)
        repository = pygit2.Repository(root)
        for ref in (f"refs/tags/{tag(run_id)}", NOTES):
            if ref in repository.references:
                repository.references.delete(ref)
        await scp_git.ensure_ledger(root)
        assert await scp_git.list_messages(root, run_id=run_id) == [sent]


# ---- `chat:message` event published to event bus on send


async def test_chat_message_is_published_to_the_event_bus_on_send(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "a passphrase")
    run_id = await scp_git.record_run(repo, Run(type="x"))
    async with bus.subscribe("chat:*", root=repo) as events:
        sent = await scp_git.send_message(repo, "é" * 100, user="Bob", run_id=run_id, source="system")
        secret = await scp_git.send_message(repo, "the secret", encrypt=True)
        plain, hidden = [await anext(events) for _ in range(2)]
    assert (plain.type, plain.key, plain.meta) == ("chat:message", sent.id, {"root": str(repo)})
    said = {"user": "Bob", "thread_id": None, "run_id": run_id, "source": "system"}
    assert plain.data == {**said, "encrypted": False, "preview": "é" * 80}
    assert hidden.key == secret.id
    assert (hidden.data["encrypted"], hidden.data["preview"]) == (True, "[encrypted]")
