"""Encrypted messages from end to end: what is stored, and what lists show with and without the key."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import anyio
import pygit2
import pytest

import scp_git
from scp_git import ChatMessage, KeyMissing, Run, Store, open_store
from scp_git.chat import crypto, decrypt_text
from scp_git.chat.keys import KEY_NAME
from scp_git.codec import dump_lines
from scp_git.git.transaction import Transaction
from scp_git.models import MessageFlags
from scp_git.ticket import Ticket

KEY = "correct horse battery staple"
TEXT = "Der Schlüssel liegt unter der Matte"
HIDDEN = "[encrypted]"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)
    monkeypatch.setattr(crypto, "_derived", crypto.DerivedKeys())


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Deriving is cheap; the salts for which it was done."""
    salts: list[bytes] = []

    def derive(key: str, salt: bytes) -> bytes:
        salts.append(salt)
        return (key.encode() + salt).ljust(32, b"\0")[-32:]

    monkeypatch.setattr(crypto, "_derive", derive)
    return salts


class PutMessages:
    """Lines of a thread, as anybody who may write to the repository can put them there."""

    size = 1024

    def __init__(self, thread_id: str, messages: list[ChatMessage]) -> None:
        self.path = f"chat/threads/{thread_id}/messages.jsonl"
        self.data = dump_lines(message.model_dump() for message in messages)

    def apply(self, tx: Transaction) -> None:
        tx.ledger.put(self.path, self.data)
        tx.subjects.append("test: messages")


def planted(store: Store, texts: list[str], *, encrypted: bool = True) -> str:
    """A thread that holds messages with these very texts."""
    thread = store.create_thread("Planted").thread_id
    flags = MessageFlags(encrypted=encrypted)
    messages = [ChatMessage(text=text, thread_id=thread, flags=flags) for text in texts]
    store._wait(Ticket(lambda: PutMessages(thread, messages), size=0))
    return thread


def shown(store: Store, thread: str, n: int = 10_000) -> list[str]:
    """What a list shows, the oldest first."""
    return [message.text for message in reversed(store.list_messages(thread_id=thread, n=n))]


def tips(root: Path) -> dict[str, str]:
    git = pygit2.Repository(root)
    return {name: str(git.references[name].target) for name in git.references}


# ---------------------------------------------------------------- sending and listing


async def test_an_encrypted_message_is_stored_sealed_and_listed_in_plain(repo: Path) -> None:
    run = await scp_git.record_run(repo, Run(type="x"))
    thread = (await scp_git.create_thread(repo, "T")).thread_id
    sent = await scp_git.send_message(repo, TEXT, run_id=run, thread_id=thread, encrypt=True)
    assert sent.flags.encrypted
    assert sent.text.startswith("ENC:v1:")
    assert decrypt_text(sent.text, repo) == TEXT
    for place in ({"run_id": run}, {"thread_id": thread}, {"run_id": run, "thread_id": thread}):
        (listed,) = await scp_git.list_messages(repo, **place)
        assert listed.text == TEXT
        assert listed.model_copy(update={"text": sent.text}) == sent
    stored = (repo / f".scp-ledger/chat/threads/{thread}/messages.jsonl").read_text()
    assert sent.text in stored
    assert TEXT not in stored


async def test_encrypting_without_a_key_raises_and_stores_nothing(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await scp_git.record_run(repo, Run(type="x"))
    thread = (await scp_git.create_thread(repo, "T")).thread_id
    before = tips(repo)
    monkeypatch.delenv(KEY_NAME)
    for place in ({}, {"run_id": run}, {"thread_id": thread}):
        with pytest.raises(KeyMissing, match=KEY_NAME):
            await scp_git.send_message(repo, TEXT, encrypt=True, **place)
        with pytest.raises(KeyMissing):
            Store.open(repo).send_message(TEXT, encrypt=True, **place)
        async with open_store(repo) as store:
            with pytest.raises(KeyMissing):
                await store.send_message(TEXT, encrypt=True, **place)
    assert tips(repo) == before


def test_without_the_key_and_with_another_a_list_shows_that_it_is_encrypted(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(repo)
    store.send_message("open")
    store.send_message(TEXT, encrypt=True)
    assert shown(store, "general") == ["open", TEXT]
    monkeypatch.delenv(KEY_NAME)
    assert shown(store, "general") == ["open", HIDDEN]
    assert store.list_messages()[0].flags.encrypted
    monkeypatch.setenv(KEY_NAME, "another")
    assert shown(store, "general") == ["open", HIDDEN]
    monkeypatch.setenv(KEY_NAME, KEY)
    assert shown(store, "general") == ["open", TEXT]


def test_the_key_of_the_env_file_is_that_of_the_opened_root(
    make_repo: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_NAME)
    one, other = make_repo(), make_repo()
    for root, value in ((one, "one"), (other, "two")):
        (root / ".git/info/exclude").write_text(".env\n")
        (root / ".env").write_text(f"{KEY_NAME}={value}\n")
    sealed = Store.open(one).send_message(TEXT, encrypt=True).text
    assert shown(Store.open(one), "general") == [TEXT]
    assert shown(Store.open(other), planted(Store.open(other), [sealed])) == [HIDDEN]


def test_the_flag_decides_and_not_the_prefix(repo: Path) -> None:
    store = Store.open(repo)
    sealed = store.send_message(TEXT, encrypt=True).text
    for text in ("ENC:v1:", "ENC:v1:not really", sealed):
        assert store.send_message(text).text == text
        assert store.list_messages()[0].text == text
    assert shown(store, planted(store, ["plain text", "", sealed])) == [HIDDEN, HIDDEN, TEXT]


# ---------------------------------------------------------------- altered and moved


def test_every_bit_of_a_stored_ciphertext_flipped_in_turn_shows_no_text(repo: Path) -> None:
    store = Store.open(repo)
    head, _, body = store.send_message("canary", encrypt=True).text.rpartition(":")
    data = base64.b64decode(body)
    flipped = [(int.from_bytes(data) ^ 1 << bit).to_bytes(len(data)) for bit in range(8 * len(data))]
    texts = [f"{head}:{base64.b64encode(each).decode()}" for each in flipped]
    assert shown(store, planted(store, [*texts, f"{head}:{body}"])) == [HIDDEN] * len(texts) + ["canary"]


def test_every_character_of_a_stored_text_changed_shows_no_text(repo: Path, cheap: list[bytes]) -> None:
    store = Store.open(repo)
    text = store.send_message("canary", encrypt=True).text
    changed = [
        text[:place] + other + text[place + 1 :]
        for place in range(len(text))
        for other in "A/9:=\u00e9"
        if text[place] != other
    ]
    for start in range(0, len(changed), 150):  # within what one list derives
        page = changed[start : start + 150]
        assert shown(store, planted(store, page)) == [HIDDEN] * len(page)


def test_a_whole_ciphertext_may_be_moved_as_the_documentation_says(repo: Path) -> None:
    store = Store.open(repo)
    sealed = store.send_message(TEXT, encrypt=True).text
    assert shown(store, planted(store, [sealed])) == [TEXT]
    assert "can move a whole ciphertext" in (Path(__file__).parents[1] / "docs/security.md").read_text()


# ---------------------------------------------------------------- many


def test_a_list_derives_each_key_once_and_only_for_the_page_shown(repo: Path, cheap: list[bytes]) -> None:
    store = Store.open(repo)
    texts = [crypto.encrypt_text(f"text {n}", repo) for n in range(250)]
    thread = planted(store, texts)
    crypto._derived._known.clear()
    cheap.clear()
    assert shown(store, thread, n=30) == [f"text {n}" for n in range(220, 250)]
    assert len(cheap) == 30
    assert shown(store, thread, n=30) == [f"text {n}" for n in range(220, 250)]
    assert len(cheap) == 30
    everything = shown(store, thread)
    assert len(cheap) == 30 + crypto.MAX_DERIVATIONS
    assert everything == [HIDDEN] * 20 + [f"text {n}" for n in range(20, 250)]
    assert HIDDEN not in shown(store, thread)


async def test_the_loop_stays_free_while_keys_are_derived(repo: Path) -> None:
    async with open_store(repo) as store:
        for n in range(3):
            await store.send_message(f"text {n}", encrypt=True)
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await anyio.sleep(0.002)
                beats += 1

        thread = planted(store.store, [crypto.encrypt_text("x", repo) for _ in range(30)])
        crypto._derived._known.clear()
        async with anyio.create_task_group() as group:
            group.start_soon(beat)
            before = beats
            assert len(await store.list_messages(thread_id=thread)) == 30
            assert beats - before >= 10
            group.cancel_scope.cancel()


async def test_any_number_of_tasks_list_at_once(repo: Path) -> None:
    thread = planted(Store.open(repo), [crypto.encrypt_text(f"text {n}", repo) for n in range(8)])
    crypto._derived._known.clear()
    lists: list[list[str]] = []

    async def look() -> None:
        lists.append([message.text for message in await scp_git.list_messages(repo, thread_id=thread)])

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(look)
    assert lists == [[f"text {n}" for n in reversed(range(8))]] * 10
