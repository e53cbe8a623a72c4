"""The program under fault: does the steps of a job on one repository and says what was acknowledged.

``worker.py run JOB`` does one job (JSON) in this process; ``worker.py serve`` reads jobs from stdin and does
each in a forked child, so that a kill point does not pay for the start of Python. It answers in lines:

    PID <pid>              the process that does the job
    THREAD <tid> <name>    a thread began
    READY <tid>            waiting for a line before going on (a tracer attaches meanwhile)
    ACK <run id>           record_run returned; DEL <run id> and ENSURED for the other writes
    ERR <code> <message>   a ScpGitError came out; BUG <type> <message> for any other exception
    RETURNED <value>       what the module-level record_run returned
    SENT <name>            send_message returned
    SAID <json>            the names of the messages of a place, oldest first
    LIST <json>            what reads return: {run id: [summary, number of events]}
    EXIT <status>          (serve) how the child ended
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any

import scp_git
from scp_git import Run, ScpGitError, SessionTrace, Settings, Store, TraceEvent, open_store
from scp_git.git import maintenance
from scp_git.store import importing

EVENTS_PER_RUN = 3
LONG_AGO = "2026-02-17T20:45:00.000000+00:00"
MAIN = "main"


_input = os.dup(0)
"""Where orders come from; a child of ``multiprocessing`` loses descriptor 0."""


def say(text: str) -> None:
    os.write(1, text.encode("utf-8", "backslashreplace") + b"\n")


def wait_for_line() -> bytes:
    line = b""
    while (byte := os.read(_input, 1)) not in (b"", b"\n"):
        line += byte
    return line if byte else b""


def summary_of(run_id: str) -> str:
    return f"summary of {run_id}"


def make_run(run_id: str) -> Run:
    return Run(run_id=run_id, type="apply", summary=summary_of(run_id), metadata={"id": run_id})


def make_events(run_id: str) -> list[dict[str, Any]]:
    return [{"type": "step", "target": f"{run_id}/{n}"} for n in range(EVENTS_PER_RUN)]


# ---- where a tracer may attach


def pause() -> None:
    say(f"READY {threading.get_native_id()}")
    wait_for_line()


def watch_threads(stop: str) -> None:
    """Say which threads start; the first one named ``stop`` waits for a tracer of its own."""
    waiting = [stop]

    def on_first_call(frame: FrameType, event: str, arg: object) -> None:
        sys.settrace(None)
        name = threading.current_thread().name
        say(f"THREAD {threading.get_native_id()} {name}")
        if name in waiting:
            waiting.clear()
            pause()

    threading.settrace(on_first_call)


# ---- steps


def record(store: Store, run_id: str) -> None:
    store.record_run(make_run(run_id), make_events(run_id))
    say(f"ACK {run_id}")


def delete(store: Store, run_id: str) -> None:
    store.delete_run(run_id)
    say(f"DEL {run_id}")


def send(store: Store, arg: tuple[str, dict[str, str], int]) -> None:
    """Send a message whose text is its name and so much padding."""
    name, place, padding = arg
    store.send_message(f"{name} {'x' * padding}", **place)  # type: ignore[arg-type]
    say(f"SENT {name}")


def said(store: Store, place: dict[str, str]) -> None:
    messages = store.list_messages(n=10**6, **place)  # type: ignore[arg-type]
    say("SAID " + json.dumps([message.text.split(" ")[0] for message in reversed(messages)]))


def ensure(store: Store, _: object) -> None:
    store.ensure_ledger()
    say("ENSURED")


def show(store: Store, n: int) -> None:
    runs = store.list_runs(n=n)
    say("LIST " + json.dumps({r.run_id: [r.summary, len(store.get_run_events(r.run_id))] for r in runs}))


def save_trace(store: Store, trace_id: str) -> None:
    """A trace of two parts, and the message about it."""
    events = [TraceEvent(seq=n, type="step", detail={"text": "x" * 1_500_000}) for n in range(1, 4)]
    made = SessionTrace(trace_id=trace_id, started_at="2026-01-01", ended_at="2026-01-02", events=events)
    store.save_trace(made, post=True)
    say(f"ACK {trace_id}")


def delete_trace(store: Store, trace_id: str) -> None:
    store.delete_trace(trace_id)
    say(f"DEL {trace_id}")


def leave_spool(store: Store, trace_id: str) -> None:
    """What a process leaves that is killed while it records."""
    folder = store.root / ".git/scp/recordings"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"spool": 1}] + [
        {"seq": n, "ts": "", "type": "step", "detail": {"text": "x" * 1_500_000}} for n in range(1, 4)
    ]
    (folder / f"{trace_id}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def recover(store: Store, _: object) -> None:
    for trace in store.recover_recordings():
        say(f"ACK {trace.trace_id}")


def stream(store: Store, arg: tuple[str, float]) -> None:
    prefix, seconds = arg
    until = time.monotonic() + seconds
    number = 0
    while time.monotonic() < until:
        attempt(record, store, f"{prefix}{number:05d}")
        number += 1


def batch(store: Store, arg: tuple[str, str, int]) -> None:
    """Record several runs in one transaction: all of them wait before the writer gets the gate."""
    root, prefix, count = arg
    gate = os.open(os.path.join(root, ".git", "scp", "gate"), os.O_RDONLY)
    fcntl.flock(gate, fcntl.LOCK_EX)
    callers = [threading.Thread(target=attempt, args=(record, store, f"{prefix}{n}")) for n in range(count)]
    for caller in callers:
        caller.start()
    time.sleep(0.15)
    os.close(gate)
    for caller in callers:
        caller.join()


def take_in(store: Store, arg: tuple[str, int]) -> None:
    """Import runs; those of one prefix are acknowledged together."""
    prefix, count = arg
    made = [f"{prefix}{number}" for number in range(count)]
    runs = [make_run(run_id).model_copy(update={"started_at": LONG_AGO}) for run_id in made]
    report = store.import_runs((run, make_events(run.run_id)) for run in runs)
    assert not report.rejected_count, report
    for run_id in made:
        say(f"ACK {run_id}")


def archive(store: Store, _: object) -> None:
    store.archive_runs(older_than_days=0)


def part(store: Store, _: object) -> None:
    """Another repository, a copy of this one, goes its own way; each has the other as its ``origin``."""
    there = store.root.with_name("there")
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(store.root, there, ignore=shutil.ignore_patterns(".scp-ledger", "worktrees"))
    other = Store.open(there)
    for run_id in ("far-1", "far-2"):
        other.record_run(make_run(run_id), make_events(run_id))
    other.delete_run("run-2")
    for root, remote in ((store.root, there), (there, store.root)):
        subprocess.run(["git", "-C", str(root), "remote", "add", "origin", str(remote)], check=True)


def pull(store: Store, _: object) -> None:
    store.pull()


def receive(store: Store, _: object) -> None:
    """The other repository pushes to this one."""
    Store.open(store.root.with_name("there")).push()


def settle(store: Store, _: object) -> None:
    """Let work go to its end that nobody waits for."""
    store.flush()
    time.sleep(0.2)
    for thread in threading.enumerate():
        if thread.name == "scp-git-packs":
            thread.join()


def maintain(store: Store, arg: tuple[int, int, int]) -> None:
    """Housekeeping that finds much where there is little."""
    maintenance._LOOSE_MANY, maintenance._TAGS_AT_ONCE, maintenance._FILES_AT_ONCE = arg
    done = store.maintain()
    say(f"MAINTAINED {done.packs_merged} {done.tags_packed}")


def limit(_: Store, arg: tuple[str, int]) -> None:
    kind = getattr(resource, f"RLIMIT_{arg[0]}")
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (hard if arg[1] < 0 else arg[1], hard))


def public(store: Store, arg: tuple[str, str]) -> None:
    root, run_id = arg
    say(f"RETURNED {asyncio.run(scp_git.record_run(root, make_run(run_id), make_events(run_id)))!r}")


STEPS = {
    "public": public,
    "record": record,
    "delete": delete,
    "save trace": save_trace,
    "delete trace": delete_trace,
    "leave spool": leave_spool,
    "recover": recover,
    "send": send,
    "said": said,
    "ensure": ensure,
    "list": show,
    "stream": stream,
    "batch": batch,
    "import": take_in,
    "archive": archive,
    "part": part,
    "pull": pull,
    "receive": receive,
    "settle": settle,
    "maintain": maintain,
    "limit": limit,
    "sleep": lambda store, seconds: time.sleep(seconds),
    "pause": lambda store, _: pause(),
}


def attempt(step: Any, store: Store, arg: Any) -> None:
    try:
        step(store, arg)
    except ScpGitError as exc:
        say(f"ERR {exc.code} {exc}".replace("\n", " "))


async def talk(
    root: str, settings: Settings, prefix: str, tasks: int, count: int, places: list[dict[str, str]]
) -> None:
    async with open_store(root, settings=settings) as store:

        async def one(where: int, task: int) -> None:
            for n in range(count):
                name = f"{prefix}-{where}-{task}-{n}"
                await store.send_message(name, **places[where])  # type: ignore[arg-type]
                say(f"SENT {name}")

        await asyncio.gather(*(one(where, task) for where in range(len(places)) for task in range(tasks)))


async def crowd(root: str, settings: Settings, prefix: str, tasks: int, count: int) -> None:
    async with open_store(root, settings=settings) as store:

        async def one(task: int) -> None:
            for n in range(count):
                run_id = f"{prefix}-{task}-{n}"
                await store.record_run(make_run(run_id), make_events(run_id))
                say(f"ACK {run_id}")

        await asyncio.gather(*(one(task) for task in range(tasks)))


# ---- jobs


def pretend_reboot(boot_id: str) -> None:
    """Let the library believe that the machine was started anew."""
    users = [m for name, m in sys.modules.items() if name.startswith("scp_git.") and hasattr(m, "boot_id")]
    assert users, "nothing asks for the boot id any more"
    for module in users:
        setattr(module, "boot_id", lambda: boot_id)  # noqa: B010


def do(job: dict[str, Any]) -> None:
    say(f"PID {os.getpid()}")
    if "boot_id" in job:
        pretend_reboot(job["boot_id"])
    if "trace" in job:
        watch_threads(job["trace"])
        if job["trace"] == MAIN:
            pause()
    if "small_batches" in job:
        importing.BATCH_RUNS = job["small_batches"]
    settings = Settings(**job.get("settings", {}))
    try:
        if "crowd" in job:
            asyncio.run(crowd(job["root"], settings, *job["crowd"]))
            return
        if "talk" in job:
            asyncio.run(talk(job["root"], settings, *job["talk"]))
            return
        with Store.open(job["root"], settings) as store:
            for verb, arg in job["steps"]:
                attempt(STEPS[verb], store, arg)
    except ScpGitError as exc:
        say(f"ERR {exc.code} {exc}".replace("\n", " "))
    except Exception as exc:
        traceback.print_exc()
        say(f"BUG {type(exc).__name__} {exc}".replace("\n", " "))


def serve() -> None:
    # Its children end as programs do, but do not take the interpreter apart, which costs more than the job.
    fork = multiprocessing.get_context("fork")
    while line := wait_for_line():
        child = fork.Process(target=do, args=(json.loads(line),))
        child.start()
        child.join()
        say(f"EXIT {child.exitcode}")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        do(json.loads(sys.argv[2]))
