"""Neither the key nor the text of an encrypted message is anywhere but where it was asked for."""

from __future__ import annotations

import base64
import copy
import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

import scp_git
from scp_git import ChatMessage, DecryptFailed, Event, KeyMissing, RecordTooLarge, Run, Store, bus
from scp_git.chat import decrypt_text
from scp_git.chat.keys import KEY_NAME
from scp_git.cli.entry import main

KEY = "canary-key-91f2"
TEXT = "canary-text-c3b7"
SPELLINGS = [
    spelling
    for secret in (KEY, TEXT)
    for spelling in (secret.encode(), base64.b64encode(secret.encode())[:-4], secret.encode().hex().encode())
]

Git = Callable[..., str]


def assert_clean(data: bytes, where: str) -> None:
    found = [spelling for spelling in SPELLINGS if spelling in data]
    assert not found, f"{found} in {where}"


def every_object(root: Path, git: Git) -> Iterator[tuple[str, bytes]]:
    """All objects, reachable or not, as their plain bytes."""
    for line in git(root, "cat-file", "--batch-all-objects", "--batch-check").splitlines():
        oid, kind, _ = line.split()
        yield f"{kind} {oid}", git(root, "cat-file", kind, oid).encode("utf-8", "surrogateescape")


def assert_nothing_in(root: Path, git: Git) -> None:
    for name, data in every_object(root, git):
        assert_clean(data, name)
    for path in root.rglob("*"):
        assert_clean(str(path.relative_to(root)).encode(), "a file's name")
        if path.is_file() and path.name != ".env":
            assert_clean(path.read_bytes(), str(path))
    assert_clean(git(root, "for-each-ref").encode(), "refs")
    assert_clean(
        git(root, "log", "--all", "-p", "--notes=scp-chat").encode("utf-8", "surrogateescape"), "log"
    )


@pytest.fixture
def events() -> Iterator[list[Event]]:
    taken: list[Event] = []
    with bus.attach(taken.append):
        yield taken


@pytest.mark.referee
@pytest.mark.parametrize("source", ["environment", "file"])
async def test_no_canary_is_left_anywhere(
    repo: Path,
    tmp_path: Path,
    git: Git,
    source: str,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    (repo / ".git/info/exclude").write_text(".env\n")
    if source == "environment":
        monkeypatch.setenv(KEY_NAME, KEY)
    else:
        (repo / ".env").write_text(f"{KEY_NAME}={KEY}\n")
    store = Store.open(repo)
    run = store.record_run(Run(type="x"))
    early = Store.open(repo).create_thread("a thread").thread_id
    sent = [
        await scp_git.send_message(repo, TEXT, encrypt=True),
        await scp_git.send_message(repo, f"@user:{TEXT} {TEXT}" * 50, run_id=run, encrypt=True, publish=True),
        await scp_git.send_message(repo, TEXT, thread_id=early, encrypt=True),
        store.send_message(TEXT, thread_id=early, run_id=run, encrypt=True),
    ]
    for place in ({}, {"run_id": run}, {"thread_id": early}, {"thread_id": early, "run_id": run}):
        assert all(TEXT in message.text for message in await scp_git.list_messages(repo, **place))
    assert [hit for hit in store.search(TEXT) if hit.id in {message.id for message in sent}] == []
    store.resolve_mentions(f"@user:{TEXT} @file:{TEXT} @branch:{TEXT}")
    store.set_message_flags(sent[0].id, publish=True)
    store.publish_chat(tmp_path / "site")
    store.delete_message(sent[2].id, thread_id=early)
    store.ensure_ledger()
    await scp_git.flush(repo)

    assert_nothing_in(repo, git)
    for path in (tmp_path / "site").rglob("*"):
        if path.is_file():
            assert_clean(path.read_bytes(), str(path))
    assert [event.type for event in events].count("chat:message") == 4
    assert_clean(repr(events).encode(), "events")
    for event in events:
        if event.type == "chat:message":
            assert event.data["preview"] == "[encrypted]"  # type: ignore[index]
            assert event.data["encrypted"] is True  # type: ignore[index]
    assert_clean(caplog.text.encode() + repr([vars(each) for each in caplog.records]).encode(), "the log")
    assert_clean("".join(capfd.readouterr()).encode(), "what was printed")
    assert_clean(repr(store).encode() + repr(vars(store)).encode(), "the store")


def said(exc: BaseException) -> bytes:
    """Everything that an error shows or carries, and what it was raised from."""
    parts: list[object] = []
    each: BaseException | None = exc
    while each is not None:
        parts += [
            str(each),
            repr(each),
            each.args,
            vars(each),
            "".join(traceback.format_exception_only(each)),
        ]
        each = each.__cause__ or each.__context__
    return repr(parts).encode()


def test_no_error_says_or_carries_a_secret(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(repo)
    with pytest.raises(KeyMissing) as missing:
        store.send_message(TEXT, encrypt=True)
    monkeypatch.setenv(KEY_NAME, KEY)
    sealed = store.send_message(TEXT, encrypt=True).text
    errors: list[BaseException] = [missing.value]
    with pytest.raises(LookupError) as unknown:
        store.send_message(TEXT, encrypt=True, run_id="nope")
    with pytest.raises(RecordTooLarge) as large:
        store.send_message(TEXT * 400_000, encrypt=True)
    with pytest.raises(ValueError, match="surrogate") as surrogate:
        store.send_message(f"{TEXT}\ud800", encrypt=True)
    with pytest.raises((ValidationError, TypeError)) as invalid:
        store.send_message(TEXT, encrypt=True, source=5)  # type: ignore[arg-type]
    with pytest.raises(DecryptFailed) as altered:
        decrypt_text(sealed[:-4] + "AAAA", repo)
    monkeypatch.setenv(KEY_NAME, KEY + "2")
    with pytest.raises(DecryptFailed) as wrong:
        decrypt_text(sealed, repo)
    errors += [each.value for each in (unknown, large, surrogate, invalid, altered, wrong)]
    for error in errors:
        assert_clean(said(error), f"{type(error).__name__}")
        assert_clean(repr(copy.copy(error)).encode(), "a copy")
    assert_clean(pickle.dumps(altered.value), "a pickled error")


def test_the_command_line_says_no_secret_that_was_not_asked_for(
    repo: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repo)
    assert main(["chat", "send", "--encrypt", TEXT]) == 1
    monkeypatch.setenv(KEY_NAME, KEY)
    assert main(["chat", "send", "--encrypt", TEXT]) == 0
    assert main(["chat", "send", "--encrypt", "--thread", "nope", TEXT]) == 3
    assert main(["chat", "send", "--encrypt", "--json", TEXT]) == 0
    monkeypatch.delenv(KEY_NAME)
    assert main(["chat", "list"]) == main(["chat", "list", "--json"]) == 0
    printed = "".join(capfd.readouterr())
    assert printed.count("[encrypted]") == 4
    assert_clean(printed.encode(), "what was printed")


def test_a_model_of_an_encrypted_message_holds_the_ciphertext(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)
    message = Store.open(repo).send_message(TEXT, encrypt=True)
    assert isinstance(message, ChatMessage)
    assert_clean(json.dumps(message.model_dump()).encode() + repr(message).encode(), "the message")
