"""Chat on event loops: cancelled whole or not at all, never in the loop's way, and what fails how."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import ValidationError

import scp_git
from scp_git import (
    AsyncStore,
    InvalidId,
    KeyMissing,
    NotAllowed,
    NotARepository,
    NotFound,
    RepositoryBusy,
    Run,
    Settings,
    Store,
    bus,
    open_store,
)
from scp_git.broadcast import Event
from tests.sight import gate_held

KEY = "CONTENT_VAULT_ENC_KEY"
SECRET = "a word that nobody else may see"
pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def unsynced(home: Path) -> None:
    with (home / ".gitconfig").open("a") as config:
        config.write("[scp]\n\tdurability = os\n")


@pytest.fixture
async def store(repo: Path) -> AsyncIterator[AsyncStore]:
    async with open_store(repo) as store:
        yield store


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "a passphrase")


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


# ---------------------------------------------------------------- the verbs


async def test_every_verb_on_a_loop(store: AsyncStore) -> None:
    run_id = await store.record_run(Run(type="x"))
    thread = await store.create_thread("t", anchor_run=run_id)
    one = await store.send_message("one", run_id=run_id, thread_id=thread.thread_id)
    two = await store.send_message("two " * 50_000, thread_id=thread.thread_id)
    assert await store.list_messages(thread_id=thread.thread_id) == [two, one]
    assert await store.list_messages(run_id=run_id) == [one]
    flagged = await store.set_message_flags(one.id, publish=True, run_id=run_id)
    assert await store.list_messages(thread_id=thread.thread_id, n=1, before=two.id) == [flagged]
    assert await store.delete_message(one.id, run_id=run_id)
    assert await store.list_threads() == [thread]
    assert await store.delete_thread(thread.thread_id) and await store.list_threads() == []


async def test_many_tasks_talk_at_once(store: AsyncStore) -> None:
    run_id = await store.record_run(Run(type="x"))
    sent: list[str] = []

    async def talk(task: int) -> None:
        for n in range(10):
            message = await store.send_message(f"{task}/{n}", run_id=run_id, thread_id="general")
            sent.append(message.id)

    await store.send_message("first")
    async with anyio.create_task_group() as group:
        for task in range(20):
            group.start_soon(talk, task)
    about_run = await store.list_messages(run_id=run_id, n=1000)
    assert sorted(message.id for message in about_run) == sorted(sent)
    assert len(await store.list_messages(n=1000)) == 201
    order = [(message.ts, message.id) for message in about_run]
    assert order == sorted(order, reverse=True)
    for task in range(20):
        own = [message.text for message in about_run if message.text.startswith(f"{task}/")]
        assert own == [f"{task}/{n}" for n in range(10)][::-1], "in the order in which a task said it"


# ---------------------------------------------------------------- cancelling


async def test_a_cancelled_message_that_waits_is_never_stored(repo: Path, store: AsyncStore) -> None:
    with gate_held(repo):
        with anyio.move_on_after(0.1) as scope:
            await store.send_message("too late")
        assert scope.cancelled_caught
    await store.send_message("later")
    assert [message.text for message in await store.list_messages()] == ["later"]


async def test_of_many_cancelled_messages_each_is_in_both_places_or_in_none(store: AsyncStore) -> None:
    run_id = await store.record_run(Run(type="x"))
    returned: list[str] = []

    async def say(number: int) -> None:
        returned.append((await store.send_message(str(number), run_id=run_id, thread_id="general")).text)

    for turn in range(10):
        with anyio.move_on_after(0.002 * turn):
            async with anyio.create_task_group() as group:
                for number in range(10):
                    group.start_soon(say, turn * 10 + number)
    await store.flush()
    about_run = await store.list_messages(run_id=run_id, n=1000)
    assert about_run == await store.list_messages(n=1000)
    heard = [message.text for message in about_run]
    assert len(heard) == len(set(heard)) and set(returned) <= set(heard)


async def test_a_message_that_waits_too_long_is_withdrawn(repo: Path) -> None:
    async with open_store(repo, Settings(lock_timeout_s=0.1, durability="os")) as store:
        with gate_held(repo), pytest.raises(RepositoryBusy):
            await store.send_message("x")
        assert await store.list_messages() == []


# ---------------------------------------------------------------- encryption


async def test_an_encrypted_message_shows_its_text_nowhere_but_to_who_has_the_key(
    repo: Path,
    store: AsyncStore,
    key: None,
    git: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[Event] = []
    with bus.attach(seen.append):
        run_id = await store.record_run(Run(type="x"))
        sent = await store.send_message(SECRET, run_id=run_id, thread_id=None, encrypt=True)
        both = await store.send_message(SECRET, run_id=run_id, thread_id="general", encrypt=True)
        flagged = await store.set_message_flags(both.id, publish=True)
        shown = await store.list_messages(run_id=run_id)
        assert [message.text for message in shown] == [SECRET, SECRET]
        assert flagged.text == both.text and SECRET not in sent.text
        monkeypatch.setenv(KEY, "another")
        hidden = await store.list_messages(run_id=run_id)
        assert [(message.text, message.flags.encrypted) for message in hidden] == [("[encrypted]", True)] * 2
    assert SECRET not in "".join(str(event) for event in seen) + caplog.text
    assert SECRET not in git(repo, "log", "--all", "--patch")
    for path in repo.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


async def test_the_flag_decides_what_is_a_ciphertext_not_the_text(store: AsyncStore, key: None) -> None:
    secret = await store.send_message(SECRET, encrypt=True)
    quoted = await store.send_message(secret.text)
    shown = await store.list_messages()
    assert [message.text for message in shown] == [quoted.text, SECRET]


async def test_without_a_key_nothing_is_stored(store: AsyncStore, no_key: None) -> None:
    for place in ({}, {"thread_id": "unknown"}):
        with pytest.raises(KeyMissing) as caught:
            await store.send_message(SECRET, encrypt=True, **place)
        assert SECRET not in str(caught.value)
    assert await store.list_threads() == []


async def test_cheap_checks_come_before_any_key_is_derived(
    store: AsyncStore, key: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scp_git.chat import crypto

    monkeypatch.setattr(crypto, "_derive", lambda *args: pytest.fail("a key was derived"))
    with pytest.raises(InvalidId):
        await store.send_message(SECRET, encrypt=True, run_id="../x")
    with pytest.raises(ValidationError) as caught:
        await store.send_message(SECRET + "\ud800", encrypt=True)
    assert SECRET not in str(caught.value)
    with pytest.raises(ValidationError):
        await store.send_message(SECRET, encrypt=True, source="robot")  # type: ignore[arg-type]


async def test_a_damaged_ciphertext_hides_no_other_message(store: AsyncStore, key: None, git: Any) -> None:
    sent = [await store.send_message(f"{SECRET} {n}", encrypt=True) for n in range(3)]
    path = store.root / ".scp-ledger/chat/threads/general/messages.jsonl"
    path.write_text(path.read_text().replace(sent[1].text, sent[1].text[:-5] + "AAAA="))
    git(store.root / ".scp-ledger", "commit", "--quiet", "--all", "--message", "by hand")
    shown = [message.text for message in await store.list_messages()]
    assert shown == [f"{SECRET} 2", "[encrypted]", f"{SECRET} 0"]


@pytest.mark.alone
async def test_encrypting_and_large_texts_leave_the_loop_free(store: AsyncStore, key: None) -> None:
    await store.send_message("warm", encrypt=True)
    gaps: list[float] = []

    async def beat() -> None:
        while True:
            before = time.perf_counter()
            await anyio.sleep(0.002)
            gaps.append(time.perf_counter() - before)

    async with anyio.create_task_group() as group:
        group.start_soon(beat)
        for _ in range(5):
            await store.send_message(SECRET, encrypt=True)
            await store.send_message("x" * 2**20)
            await store.list_messages(n=20)
        group.cancel_scope.cancel()
    assert sorted(gaps)[len(gaps) // 2] < 0.05


# ---------------------------------------------------------------- the failure policy

Call = Callable[[Path], Any]
WRITES: dict[str, Call] = {
    "send_message": lambda root: scp_git.send_message(root, "x"),
    "create_thread": lambda root: scp_git.create_thread(root, "x"),
    "delete_message": lambda root: scp_git.delete_message(root, "m"),
    "delete_thread": lambda root: scp_git.delete_thread(root, "t"),
    "set_message_flags": lambda root: scp_git.set_message_flags(root, "m", publish=True),
}
READS: dict[str, Call] = {"list_messages": scp_git.list_messages, "list_threads": scp_git.list_threads}


@pytest.mark.parametrize("name", WRITES)
async def test_module_level_chat_writes_raise(tmp_path: Path, name: str) -> None:
    seen: list[Event] = []
    with bus.attach(seen.append), pytest.raises(NotARepository):
        await WRITES[name](tmp_path / "none")
    assert seen == []


@pytest.mark.parametrize("name", READS)
async def test_module_level_chat_reads_return_the_empty_value_log_and_announce(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Event] = []
    with bus.attach(seen.append):
        assert await READS[name](tmp_path / "none") == []
    (event,) = seen
    assert (event.type, event.data["code"], event.data["operation"]) == (
        "scp:error",
        "not-a-repository",
        name,
    )
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_module_level_bad_ids(repo: Path) -> None:
    assert await scp_git.list_messages(repo, run_id="../x") == []
    for call in (
        scp_git.send_message(repo, "x", run_id="../x"),
        scp_git.delete_message(repo, "../x"),
        scp_git.delete_thread(repo, "../x"),
        scp_git.set_message_flags(repo, "../x", publish=True),
    ):
        with pytest.raises(InvalidId):
            await call
    with pytest.raises(NotAllowed):
        await scp_git.delete_thread(repo, "general")
    with pytest.raises(NotFound):
        await scp_git.set_message_flags(repo, "m", publish=True)


async def test_the_whole_of_chat_at_module_level(repo: Path, git: Any) -> None:
    run_id = await scp_git.record_run(repo, Run(type="x"))
    sent = await scp_git.send_message(repo, "x", run_id=run_id, publish=True)
    assert sent == (await scp_git.list_messages(repo, run_id=run_id))[0]
    assert json.loads(git(repo, "notes", "--ref=scp-chat", "show", f"scp/run/{run_id}")) == sent.model_dump()
    await scp_git.flush(repo)
    assert Store.open(repo).list_messages(run_id=run_id) == [sent]
    assert await scp_git.delete_message(repo, sent.id, run_id=run_id) is True
