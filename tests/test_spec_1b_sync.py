"""The users' acceptance list for chat (SPEC 1B.7): the line about push and pull."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pygit2
import pytest

import scp_git
from scp_git import Run

MakeRepo = Callable[..., Path]
pytestmark = pytest.mark.anyio


# ---- `push_chat()` / `pull_chat()` sync notes and thread files


async def test_push_chat_and_pull_chat_sync_notes_and_thread_files(make_repo: MakeRepo) -> None:
    one, two, origin = make_repo(), make_repo(), make_repo(bare=True, commits=0)
    for root in (one, two):
        pygit2.Repository(root).remotes.create("origin", str(origin))
    run_id = await scp_git.record_run(one, Run(type="x"))
    thread = await scp_git.create_thread(one, "Release")
    await scp_git.send_message(one, "on the run", run_id=run_id)
    await scp_git.send_message(one, "in the thread", thread_id=thread.thread_id)
    assert await scp_git.push_chat(one) is True
    assert "refs/notes/scp-chat" in pygit2.Repository(origin).references
    assert await scp_git.pull_chat(two) is True
    assert [found.title for found in await scp_git.list_threads(two)] == ["Release"]
    texts = [
        [message.text for message in await scp_git.list_messages(two, run_id=run_id)],
        [message.text for message in await scp_git.list_messages(two, thread_id=thread.thread_id)],
    ]
    assert texts == [["on the run"], ["in the thread"]]
    await scp_git.send_message(two, "an answer", run_id=run_id)
    assert await scp_git.push_chat(two) is True and await scp_git.pull_chat(one) is True
    heard = [message.text for message in await scp_git.list_messages(one, run_id=run_id)]
    assert heard == ["an answer", "on the run"]
