"""``scp-git chat``: what is sent, shown, deleted and published, and with which exit code."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from scp_git import Run, Store
from scp_git.chat.keys import KEY_NAME
from scp_git.cli.entry import main

PROJECT = Path(__file__).resolve().parents[1]
HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\r\b\u202egnp.exe\u2066\ttab\u200b\u2028end"
KEEP_OUT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u202a-\u202e\u2066-\u2069]")


class Result(NamedTuple):
    code: int
    out: str
    err: str


Chat = Callable[..., Result]


@pytest.fixture
def chat(repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    """``scp-git chat ...`` within this process; ``input`` is what is piped into it."""
    monkeypatch.chdir(repo)

    def chat(*args: str, input: str | bytes = b"") -> Result:
        data = input.encode() if isinstance(input, str) else input
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        capsys.readouterr()
        code = main(["chat", *args])
        return Result(code, *capsys.readouterr())

    return chat


def sent(result: Result) -> str:
    assert (result.code, result.err) == (0, "")
    assert re.fullmatch(r"(msg|thread)_[\dT-]+_[a-z0-9]+\n", result.out)
    return result.out.strip()


def refused(result: Result, code: int, *words: str) -> None:
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("scp-git: ")
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err


def rows(result: Result) -> list[list[str]]:
    assert (result.code, result.err) == (0, "")
    return [line.split("\t") for line in result.out.splitlines()]


def texts(result: Result) -> list[str]:
    return [row[-1] for row in rows(result)]


@pytest.fixture
def run_id(repo: Path) -> str:
    return Store.open(repo).record_run(Run(run_id="run-1", type="deploy", summary="v3"))


# ---------------------------------------------------------------- sending


def test_text_comes_from_arguments_or_a_pipe(chat: Chat) -> None:
    sent(chat("send", "All", "is", "well"))
    sent(chat("send", input="piped\nlines\n\n"))
    sent(chat("send", "-", input="also piped\r\n"))
    sent(chat("send", "--", "--not-an-option"))
    sent(chat("send", "ünï\U0001f600"))
    assert texts(chat("list")) == [
        "ünï\U0001f600",
        "--not-an-option",
        "also piped",
        "piped\\nlines",
        "All is well",
    ]


def test_a_message_goes_where_it_is_told(chat: Chat, run_id: str) -> None:
    thread = sent(chat("thread", "new", "Outage", "of", "Monday", "--tag", "ops", "--run", run_id))
    sent(chat("send", "to general"))
    sent(chat("send", "to the thread", "--thread", thread))
    sent(chat("send", "to the run", "--run", run_id, "--user", "Grace"))
    sent(chat("send", "to both", "--run", run_id, "--thread", thread, "--publish"))
    assert texts(chat("list")) == ["to general"]
    assert texts(chat("list", "--thread", thread)) == ["to both", "to the thread"]
    assert texts(chat("list", "--run", run_id)) == ["to both", "to the run"]
    assert texts(chat("list", "--run", run_id, "--thread", thread)) == [
        "to both",
        "to the run",
        "to the thread",
    ]
    first, second = rows(chat("list", "--run", run_id))
    assert first[2:] == ["Ada Tester", thread, run_id, "publish", "to both"]
    assert second[2:] == ["Grace", "", run_id, "", "to the run"]
    assert rows(chat("threads"))[0][2:] == ["Ada Tester", run_id, "ops", "Outage of Monday"]


def test_what_cannot_be_sent_is_refused_and_nothing_is_stored(chat: Chat) -> None:
    refused(chat("send"), 2, "no text")
    refused(chat("send", "  ", input="x"), 2, "no text")
    refused(chat("send", input=b"\xff\xfe"), 2, "UTF-8")
    refused(chat("send", input=b"x" * (4 * 1024 * 1024 + 1)), 2, "bytes")
    refused(chat("send", "x", "--thread", "nope"), 3, "nope")
    refused(chat("send", "x", "--run", "nope"), 3, "nope")
    refused(chat("send", "x", "--thread", "../../x"), 2, "not a valid thread id")
    refused(chat("send", "canary\udcff"), 2, "surrogate")
    refused(chat("send", "canary", "--encrypt"), 1, KEY_NAME)
    assert chat("list").out == ""


def test_an_encrypted_message_is_shown_with_the_key_only(
    chat: Chat, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = chat("keygen").out
    assert re.fullmatch(rf"{KEY_NAME}=[\w-]{{43}}\n", line)
    assert chat("keygen").out != line
    (repo / ".git/env").write_text(line)
    monkeypatch.setenv(KEY_NAME, line.strip().partition("=")[2])
    shown = json.loads(chat("send", "--encrypt", "--json", input="canary").out)
    assert shown["text"].startswith("ENC:v1:")
    assert rows(chat("list"))[0][5:] == ["encrypted", "canary"]
    monkeypatch.delenv(KEY_NAME)
    assert rows(chat("list"))[0][5:] == ["encrypted", "[encrypted]"]


def test_json_is_one_ascii_document_that_holds_everything(chat: Chat) -> None:
    thread = json.loads(chat("thread", "new", "--json", f"T {HOSTILE}").out)
    message = json.loads(chat("send", "--json", "--thread", thread["thread_id"], f"é {HOSTILE}").out)
    result = chat("list", "--json", "--thread", thread["thread_id"])
    assert result.out.isascii()
    assert not KEEP_OUT.search(result.out)
    assert json.loads(result.out) == [message]
    assert message["text"] == f"é {HOSTILE}"
    assert json.loads(chat("threads", "--json").out)[0] == thread
    shown = json.loads(chat("thread", "show", "--json", thread["thread_id"]).out)
    assert shown == {"thread": thread, "messages": [message]}


def test_pages_of_a_long_conversation(chat: Chat, repo: Path) -> None:
    store = Store.open(repo)
    ids = [store.send_message(f"m{n}").id for n in range(5)]
    assert texts(chat("list", "-n", "2")) == ["m4", "m3"]
    assert texts(chat("list", "-n", "2", "--before", ids[3])) == ["m2", "m1"]
    refused(chat("list", "-n", "0"), 2)


def test_hostile_text_is_neutralised_in_every_output(chat: Chat, repo: Path) -> None:
    run = Store.open(repo).record_run(Run(run_id="r", type="x", summary=HOSTILE))
    thread = sent(chat("thread", "new", HOSTILE, "--tag", HOSTILE, "--user", HOSTILE))
    sent(chat("send", HOSTILE, "--user", HOSTILE, "--thread", thread, "--run", run))
    for args in (
        ("list", "--thread", thread),
        ("list", "--run", run),
        ("threads",),
        ("thread", "show", thread),
    ):
        result = chat(*args)
        assert not KEEP_OUT.search(result.out.replace("\t", "")), args
        assert len(result.out.splitlines()) == len(rows(result))
    assert len(rows(chat("list", "--thread", thread))[0]) == 7
    refused(chat("list", "--thread", HOSTILE), 2)
    assert not KEEP_OUT.search(chat("list", "--thread", HOSTILE).err.replace("\n", ""))


# ---------------------------------------------------------------- flags and deleting


def test_flags_are_changed(chat: Chat, run_id: str) -> None:
    message = sent(chat("send", "x", "--run", run_id))
    assert sent(chat("flags", message, "--publish", "--run", run_id)) == message
    assert rows(chat("list", "--run", run_id))[0][5] == "publish"
    shown = json.loads(chat("flags", message, "--no-publish", "--run", run_id, "--json").out)
    assert shown["flags"]["publish"] is False
    refused(chat("flags", message, "--run", run_id), 2, "--publish")
    refused(chat("flags", "msg_none", "--publish"), 3, "msg_none")


def test_messages_are_deleted_and_the_unknown_is_said(chat: Chat) -> None:
    ids = [sent(chat("send", f"m{n}")) for n in range(3)]
    assert chat("delete", ids[0], ids[1]) == Result(0, f"{ids[0]}\n{ids[1]}\n", "")
    result = chat("delete", ids[0], ids[2])
    assert (result.code, result.out) == (3, f"{ids[2]}\n")
    assert ids[0] in result.err
    assert chat("list").out == ""


def test_a_thread_is_deleted_with_its_messages(chat: Chat) -> None:
    thread = sent(chat("thread", "new", "T"))
    sent(chat("send", "x", "--thread", thread))
    assert chat("thread", "delete", thread) == Result(0, f"{thread}\n", "")
    assert [row[0] for row in rows(chat("threads"))] in ([], ["general"])
    refused(chat("thread", "show", thread), 3, thread)
    refused(chat("thread", "delete", thread), 3, thread)
    assert chat("thread", "delete", "general").code != 0


# ---------------------------------------------------------------- mentions


def test_mentions_are_completed(chat: Chat, run_id: str) -> None:
    assert [row[0] for row in rows(chat("mention", "@t"))] == ["@thread:", "@trace:"]
    assert rows(chat("mention", "@run:dep")) == [
        ["@run:run-1", "deploy: v3", rows(chat("mention", "@run:"))[0][2]]
    ]
    assert json.loads(chat("mention", "@file:", "--json").out) == [
        {"mention": "@file:file.txt", "label": "file.txt", "detail": "file"}
    ]
    assert chat("mention", "@file:", "-n", "1").out == "@file:file.txt\tfile.txt\tfile\n"
    assert chat("mention", "nothing") == Result(0, "", "")


# ---------------------------------------------------------------- publishing


def test_publishing_writes_a_site(chat: Chat, run_id: str, tmp_path: Path) -> None:
    sent(chat("send", "shown", "--publish", "--run", run_id))
    sent(chat("send", "hidden", "--run", run_id))
    out = tmp_path / "site"
    assert chat("publish", "--out", str(out)) == Result(0, "1 message, 0 threads, 1 run\n", "")
    assert "shown" in (out / f"runs/{run_id}.html").read_text()
    counts = json.loads(chat("publish", "--out", str(out), "--title", "Log", "--json").out)
    assert counts == {"messages": 1, "threads": 0, "runs": 1}
    assert "<title>Log</title>" in (out / "index.html").read_text()
    refused(chat("publish", "--out", str(tmp_path)), 1, "holds files")
    refused(chat("publish", "--out", str(out), "--base-url", "javascript:x"), 2, "base URL")
    refused(chat("publish"), 2, "--out")


# ---------------------------------------------------------------- on a terminal


def on_terminal(
    args: Sequence[str], cwd: Path, env: dict[str, str] | None = None, typed: bytes = b""
) -> tuple[int, str]:
    """The exit code and everything that a terminal would get; ``typed`` is sent once a question is asked."""
    leader, follower = pty.openpty()
    variables = {**os.environ, "PYTHONPATH": str(PROJECT), "TERM": "xterm", "COLUMNS": "200", **(env or {})}
    command = [sys.executable, "-m", "scp_git.cli", "chat", *args]
    process = subprocess.Popen(
        command, cwd=cwd, env=variables, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    got, deadline = b"", time.monotonic() + 50
    try:
        while time.monotonic() < deadline:
            if select.select([leader], [], [], 0.2)[0]:
                try:
                    data = os.read(leader, 65536)
                except OSError:
                    break
                if not data:
                    break
                got += data
                if typed and b"[y/N]" in got:
                    os.write(leader, typed)
                    typed = b""
    finally:
        os.close(leader)
    return process.wait(10), got.decode("utf-8", "replace").replace("\r\n", "\n")


def test_on_a_terminal_it_is_a_conversation_with_what_mentions_stand_for(repo: Path) -> None:
    store = Store.open(repo)
    store.record_run(Run(run_id="run-1", type="deploy", summary="v3\x1b[2J"))
    first = store.send_message("hello\nworld", publish=True)
    store.send_message(f"see @run:run-1 and @file:nope, {HOSTILE}", user=f"Eve{HOSTILE}")
    code, shown = on_terminal(["list"], repo)
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert not KEEP_OUT.search(plain)
    lines = plain.splitlines()
    assert lines[0].startswith("Ada Tester  20")
    assert lines[0].endswith(f"publish  {first.id}")
    assert "general" not in lines[0]
    assert lines[1:4] == ["  hello", "  world", ""]
    assert lines[-2:] == ["    @run:run-1: deploy: v3 [2J", "    @file:nope: does not exist here"]
    code, shown = on_terminal(["list"], repo, {"NO_COLOR": "1", "TERM": "dumb"})
    assert "\x1b" not in shown
    assert "hello" in shown


def test_without_text_an_editor_is_opened(repo: Path, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(
        f"""#!/bin/sh
stat -c %a "$1" > "{tmp_path}/mode"
{{ echo "# Heading"; echo text; cat "$1"; }} > "{tmp_path}/new"
cat "{tmp_path}/new" > "$1"
"""
    )
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    code, shown = on_terminal(["send"], repo, {"EDITOR": str(editor), "VISUAL": ""})
    assert (code, shown.startswith("msg_")) == (0, True)
    assert [message.text for message in Store.open(repo).list_messages()] == ["# Heading\ntext"]
    assert (tmp_path / "mode").read_text() == "600\n"
    code, shown = on_terminal(["send"], repo, {"EDITOR": "true", "VISUAL": ""})
    assert (code, "no text" in shown) == (2, True)
    code, shown = on_terminal(["send"], repo, {"EDITOR": "false", "VISUAL": ""})
    assert code == 1
    assert len(Store.open(repo).list_messages()) == 1


def test_on_a_terminal_deleting_a_thread_is_asked_about(repo: Path) -> None:
    thread = Store.open(repo).create_thread("T").thread_id
    code, shown = on_terminal(["thread", "delete", thread], repo, typed=b"n\n")
    assert (code, "nothing was deleted" in shown) == (1, True)
    code, shown = on_terminal(["thread", "delete", thread], repo, typed=b"y\n")
    assert code == 0
    assert thread not in [each.thread_id for each in Store.open(repo).list_threads()]


def test_every_command_has_help_and_stands_in_the_documentation(chat: Chat) -> None:
    page = (PROJECT / "docs/cli.md").read_text()
    for command in (
        "send",
        "list",
        "delete",
        "flags",
        "mention",
        "threads",
        "publish",
        "keygen",
        "thread new",
        "thread show",
        "thread delete",
    ):
        result = chat(*command.split(), "--help")
        assert result.code == 0
        assert result.out.startswith("Usage: ")
        assert f"scp-git chat {command}" in page
