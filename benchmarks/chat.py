"""``send_message`` and ``list_messages``, with a hundred to a hundred thousand messages present.

git's turn is what a script would do: ``git notes append`` to the note on the run's
tag, and a line appended to the thread's file with ``git add`` and ``git commit``. It
has a repository of its own, with the same messages in one note and in one file.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import anyio

import scp_git
from benchmarks.harness import Benchmark, Plan, Result, flush_journal, summarise
from benchmarks.peers import GIT_FSYNC, git_environment, has_git
from benchmarks.repositories import Shelf, create, sample_run
from benchmarks.tables import Line, markdown, ratio, thousands
from scp_git import AsyncStore, ChatMessage, Settings
from scp_git.chat import crypto

SEND = "send_message"
LIST = "list_messages"
NOTES = "send_message_among_notes"

_AT_ONCE = 1_000
_KEY = "CONTENT_VAULT_ENC_KEY"
_VIEW = ".scp-ledger"

Call = Callable[[int], Awaitable[object]]


@dataclass(frozen=True)
class Peer:
    """Something that stores one message at a time."""

    name: str
    durability: str
    send: Call
    place: str


def sample_text(number: int) -> str:
    """What somebody says in chat: about a hundred characters, a stored line of about 330 bytes."""
    return f"Release {number}: health checks passed on all pods, the old ones are drained, see the dashboard"


# ---- sending


def send(plan: Plan) -> Iterator[Result]:
    """A durable message's cost as a caller meets it, to a run, to a thread and to both."""
    for present in plan.said:
        yield from anyio.run(_send, plan, present)


async def _send(plan: Plan, present: int) -> list[Result]:
    shelf = Shelf(plan.folder)
    async with scp_git.open_store(_prepared(shelf.place()), Settings(durability="full")) as store:
        run_id, thread_id = await _talk(store, present)
        peers = [
            Peer("scp_git", "full", lambda n: store.send_message(sample_text(n), run_id=run_id), "run"),
            Peer(
                "scp_git", "full", lambda n: store.send_message(sample_text(n), thread_id=thread_id), "thread"
            ),
            Peer(
                "scp_git",
                "full",
                lambda n: store.send_message(sample_text(n), run_id=run_id, thread_id=thread_id),
                "both",
            ),
        ]
        if has_git():
            peers += _git_peers(_prepared(shelf.place()), present)
        return await _timed(plan, SEND, present, peers)


async def _timed(plan: Plan, name: str, present: int, peers: list[Peer]) -> list[Result]:
    seconds: list[list[float]] = [[] for _ in peers]
    for number in range(plan.samples + 1):
        for peer, taken in zip(peers, seconds, strict=True):
            if peer.name != "scp_git" and number % max(1, plan.samples // plan.git_samples):
                continue
            flush_journal(plan.folder)
            start = perf_counter()
            await peer.send(number)
            taken.append(perf_counter() - start)
    results = []
    for peer, taken in zip(peers, seconds, strict=True):
        result = summarise(name, f"{peer.name}, {peer.place}", present, peer.durability, taken[1:])
        for other, others in zip(peers, seconds, strict=True):
            if peer.name == "scp_git" != other.name and peer.place == other.place:
                ratio = statistics.median(others[1:]) / statistics.median(taken[1:])
                result.ratios[other.name] = round(ratio, 2)
        results.append(result)
    return results


def _prepared(place: Path) -> Path:
    root = place / "repository"
    root.mkdir()
    return create(root)


async def _talk(store: AsyncStore, count: int) -> tuple[str, str]:
    """A run and a thread about which so much was said; their ids."""
    run_id = await store.record_run(*sample_run(0))
    thread_id = (await store.create_thread("Roll-out")).thread_id
    async with scp_git.open_store(store.root, Settings(durability="os", lock_timeout_s=3600)) as quick:
        for start in range(0, count, _AT_ONCE):
            async with anyio.create_task_group() as callers:
                for number in range(start, min(start + _AT_ONCE, count)):
                    for place in ({"run_id": run_id}, {"thread_id": thread_id}):
                        callers.start_soon(_say, quick, number, place)
    return run_id, thread_id


async def _say(store: AsyncStore, number: int, place: dict[str, str]) -> None:
    await store.send_message(
        sample_text(number), run_id=place.get("run_id"), thread_id=place.get("thread_id")
    )


# ---- git


def _git_peers(root: Path, present: int) -> list[Peer]:
    """The same messages in one note and in one file of a worktree, and what appends another."""
    _git(root, "tag", "-a", "run", "-m", "{}")
    _git(root, "worktree", "add", "-q", "--detach", _VIEW)
    _git(root / _VIEW, "switch", "-q", "--orphan", "chat")
    lines = "".join(_line(number) for number in range(present))
    file = root / _VIEW / "messages.jsonl"
    file.write_text(lines)
    _git(root / _VIEW, "add", "messages.jsonl")
    _git(root / _VIEW, "commit", "-q", "-m", "messages")
    if lines:
        _git(root, "notes", "--ref=chat", "add", "-F", str(file), "run")

    def to_run(*options: str) -> Call:
        async def append(number: int) -> None:
            _git(root, *options, "notes", "--ref=chat", "append", "-m", _line(number), "run")

        return append

    def to_thread(*options: str) -> Call:
        async def append(number: int) -> None:
            with file.open("a") as thread:
                thread.write(_line(number))
            _git(root / _VIEW, *options, "add", "messages.jsonl")
            _git(root / _VIEW, *options, "commit", "-q", "-m", "message")

        return append

    return [
        Peer("git", "none", to_run(), "run"),
        Peer("git", "none", to_thread(), "thread"),
        Peer("git_fsync", "full", to_run(*GIT_FSYNC), "run"),
        Peer("git_fsync", "full", to_thread(*GIT_FSYNC), "thread"),
    ]


def _line(number: int) -> str:
    return json.dumps(ChatMessage(user="Bench Mark", text=sample_text(number)).model_dump()) + "\n"


def _git(where: Path, *arguments: str) -> None:
    command = ["git", "-C", str(where), *arguments]
    subprocess.run(command, env=git_environment(), capture_output=True, check=True)


# ---- listing


def listing(plan: Plan) -> Iterator[Result]:
    """The newest 50 of many messages, and 200 encrypted ones: the first time, and again."""
    for present in plan.said:
        yield from anyio.run(_list_newest, plan, present)
    yield from anyio.run(_list_encrypted, plan)


async def _list_newest(plan: Plan, present: int) -> list[Result]:
    async with scp_git.open_store(_prepared(Shelf(plan.folder).place()), Settings(durability="os")) as store:
        run_id, thread_id = await _talk(store, present)
        places: dict[str, Call] = {
            "50 of a run": lambda _: store.list_messages(run_id=run_id),
            "50 of a thread": lambda _: store.list_messages(thread_id=thread_id),
        }
        return [await _read(plan, name, present, call) for name, call in places.items()]


async def _list_encrypted(plan: Plan) -> list[Result]:
    os.environ[_KEY] = "bench"
    try:
        root = _prepared(Shelf(plan.folder).place())
        async with scp_git.open_store(root, Settings(durability="os")) as store:
            async with anyio.create_task_group() as callers:
                for number in range(plan.encrypted):
                    callers.start_soon(lambda n: store.send_message(sample_text(n), encrypt=True), number)

            async def cold(_: int) -> None:
                crypto._derived = crypto.DerivedKeys()
                await store.list_messages(n=plan.encrypted)

            few = Plan(plan.folder, samples=3)
            return [
                await _read(few, "all, encrypted, the first time", plan.encrypted, cold),
                await _read(
                    plan,
                    "all, encrypted, again",
                    plan.encrypted,
                    lambda _: store.list_messages(n=plan.encrypted),
                ),
            ]
    finally:
        del os.environ[_KEY]


async def _read(plan: Plan, name: str, present: int, call: Call) -> Result:
    seconds = []
    for number in range(plan.samples + 1):
        start = perf_counter()
        await call(number)
        seconds.append(perf_counter() - start)
    return summarise(LIST, name, present, "none", seconds[1:])


# ---- many notes


def among_notes(plan: Plan) -> Iterator[Result]:
    """A message about one of many runs, each of which has a note already."""
    for present in plan.noted:
        yield from anyio.run(_among_notes, plan, present)


async def _among_notes(plan: Plan, present: int) -> list[Result]:
    root = await anyio.to_thread.run_sync(Shelf(plan.folder).copy, present)
    async with scp_git.open_store(root, Settings(durability="full")) as store:
        ids = [run.run_id for run in await store.list_runs(n=present)]
        async with scp_git.open_store(store.root, Settings(durability="os", lock_timeout_s=3600)) as quick:
            for start in range(0, present, _AT_ONCE):
                async with anyio.create_task_group() as callers:
                    for number in range(start, min(start + _AT_ONCE, present)):
                        callers.start_soon(_say, quick, number, {"run_id": ids[number]})
        peers = [Peer("scp_git", "full", lambda n: store.send_message(sample_text(n), run_id=ids[n]), "run")]
        return await _timed(plan, NOTES, present, peers)


# ---- shown


def _table(lines: Sequence[Line]) -> str:
    head = ["present", "what", "durable", "median ms", "p95 ms"]
    against = [peer for peer in ("git", "git_fsync") if any(f"ratio_{peer}" in line for line in lines)]
    head += [f"x {peer.replace('_', ' ')}" for peer in against]
    rows = [
        [
            thousands(line["present"]),
            line["peer"],
            ("yes" if line["durability"] == "full" else "no") if line["name"] != "list_messages" else "",
            f"{line['median_ms']:.2f}",
            f"{line['p95_ms']:.2f}",
            *(ratio(line.get(f"ratio_{peer}")) for peer in against),
        ]
        for line in lines
    ]
    return markdown(head, rows)


BENCHMARKS = (
    Benchmark(
        SEND,
        "A message, durable, with so many messages present",
        send,
        _table,
        curve="Sending one message, over the messages present",
    ),
    Benchmark(NOTES, "A message about one of so many runs that each have a note", among_notes, _table),
    Benchmark(LIST, "The newest messages", listing, _table),
)
