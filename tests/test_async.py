"""Event loops, threads, forks and the interpreter's end, at once and in turn, all on one repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path

import anyio
import anyio.to_thread
import pygit2
import pytest

import scp_git
from scp_git import AsyncStore, NotARepository, Run, Settings, Store, open_store
from tests.sight import gate_held, ids, tagged

SOURCES = Path(scp_git.__file__).parents[1]
MakeRepo = Callable[..., Path]


@pytest.fixture(autouse=True)
def unsynced(home: Path) -> None:
    """No fsync: these tests are not about power loss, and the disk is shared."""
    with (home / ".gitconfig").open("a") as config:
        config.write("[scp]\n\tdurability = os\n")


async def record(root: Path, prefix: str, count: int) -> None:
    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(scp_git.record_run, root, Run(run_id=f"{prefix}{number}", type="x"))


def expected(prefixes: str, count: int) -> list[str]:
    return sorted(f"{prefix}{number}" for prefix in prefixes for number in range(count))


# ---------------------------------------------------------------- the verbs, awaited


async def test_an_open_store_has_every_verb(repo: Path) -> None:
    async with open_store(repo, Settings(durability="os")) as store:
        assert isinstance(store, AsyncStore)
        assert (store.root, store.store.settings.durability) == (repo, "os")
        assert await store.ensure_ledger() == repo / ".scp-ledger"
        run = Run(type="x")
        assert await store.record_run(run, [{"type": "a"}]) == run.run_id
        got = await store.get_run(run.run_id)
        assert got is not None and got.user == "Ada Tester"
        assert await store.list_runs(type="x") == [got]
        assert [event["type"] for event in await store.get_run_events(run.run_id)] == ["a"]
        async with store.track_run("y") as tracked:
            tracked.event("b")
        assert [each.type for each in await store.list_runs()] == ["y", "x"]
        assert await store.delete_run(run.run_id) is True
        assert await store.delete_run(run.run_id) is False
        assert await store.prune_runs(older_than_days=0) == 1
        await store.flush()


async def test_the_module_has_every_verb(repo: Path) -> None:
    assert await scp_git.ensure_ledger(str(repo)) == repo / ".scp-ledger"
    run = Run(type="x")
    assert await scp_git.record_run(repo, run, ({"type": t} for t in "ab")) == run.run_id
    got = await scp_git.get_run(f"{repo}/", run.run_id)
    assert got is not None
    assert await scp_git.list_runs(repo, n=1, type="x") == [got]
    assert [event["type"] for event in await scp_git.get_run_events(repo, run.run_id)] == ["a", "b"]
    async with scp_git.track_run(repo, "y") as tracked:
        tracked.event("c")
    assert [each.type for each in await scp_git.list_runs(repo)] == ["y", "x"]
    assert await scp_git.delete_run(repo, run.run_id) is True
    assert await scp_git.prune_runs(repo, older_than_days=0) == 1
    await scp_git.flush(repo)
    await scp_git.flush()


async def test_a_bare_repository_works_as_well(make_repo: MakeRepo) -> None:
    root = make_repo(bare=True, commits=1)
    assert await scp_git.ensure_ledger(root) is None
    assert await scp_git.record_run(root, Run(run_id="r", type="x")) == "r"
    assert tagged(root) == {"r"}


async def test_many_events_are_encoded_apart_from_the_writer(repo: Path) -> None:
    events = [{"type": "step", "target": "x" * 100} for _ in range(3000)]
    runs = [Run(type="x") for _ in range(4)]
    async with open_store(repo) as store, anyio.create_task_group() as group:
        for run in runs:
            group.start_soon(store.record_run, run, events if run is not runs[0] else iter(events))
    for run in runs:
        assert len(Store.open(repo).get_run_events(run.run_id)) == 3000


async def test_what_the_caller_does_to_its_run_afterwards_does_not_matter(repo: Path) -> None:
    run = Run(type="x", summary="as given")
    async with open_store(repo) as store, anyio.create_task_group() as group:
        with gate_held(repo):
            group.start_soon(store.record_run, run)
            await anyio.sleep(0.05)
            run.summary = "changed"
    got = Store.open(repo).get_run(run.run_id)
    assert got is not None and got.summary == "as given"


async def test_open_store_refuses_what_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(NotARepository):
        async with open_store(tmp_path):
            raise AssertionError("the block was entered")


async def test_a_repository_made_anew_at_the_same_place_is_another_one(
    tmp_path: Path, make_repo: MakeRepo
) -> None:
    root = make_repo(tmp_path / "again")
    await record(root, "a", 5)
    shutil.rmtree(root)
    assert await scp_git.record_run(root, Run(run_id="lost", type="x")) == ""
    assert not root.exists()
    make_repo(root, commits=2)
    assert await scp_git.list_runs(root) == []
    await record(root, "b", 5)
    assert sorted(ids(root)) == expected("b", 5)
    assert tagged(root) == set(expected("b", 5))


# ---------------------------------------------------------------- flush


@pytest.mark.parametrize("whose", ["all", "root", "store"])
async def test_flush_waits_for_what_was_handed_over(repo: Path, whose: str) -> None:
    async def flush() -> None:
        if whose == "store":
            await AsyncStore(Store.open(repo)).flush()
        else:
            await scp_git.flush(repo if whose == "root" else None)

    flushed = anyio.Event()

    async def flush_and_say() -> None:
        await flush()
        flushed.set()

    async with anyio.create_task_group() as group:
        with gate_held(repo):
            with anyio.move_on_after(0.05):
                async with scp_git.track_run(repo, "x"):
                    await anyio.sleep(60)
            group.start_soon(flush_and_say)
            await anyio.sleep(0.1)
            assert not flushed.is_set()
        with anyio.fail_after(20):
            await flushed.wait()
        assert [run.summary for run in Store.open(repo).list_runs()] == ["cancelled"]


async def test_leaving_an_open_store_waits_for_what_was_handed_over(repo: Path) -> None:
    async with open_store(repo) as store:
        with anyio.move_on_after(0.05):
            async with store.track_run("x"):
                await anyio.sleep(60)
    assert len(ids(repo)) == 1


async def test_flush_of_no_repository_raises(tmp_path: Path) -> None:
    with pytest.raises(NotARepository):
        await scp_git.flush(tmp_path)


# ---------------------------------------------------------------- loops one after the other, and at once


def test_one_loop_after_the_other_in_one_process(repo: Path) -> None:
    for prefix, backend in zip("abcd", ["asyncio", "trio", "asyncio", "trio"], strict=True):
        anyio.run(record, repo, prefix, 20, backend=backend)
        assert len(anyio.run(scp_git.list_runs, repo, backend=backend)) == 20
    assert sorted(ids(repo)) == expected("abcd", 20)
    assert tagged(repo) == set(expected("abcd", 20))


def test_one_store_serves_one_loop_after_the_other(repo: Path) -> None:
    store = AsyncStore(Store.open(repo))
    for number, backend in enumerate(["asyncio", "trio", "asyncio"]):
        anyio.run(store.record_run, Run(run_id=f"r{number}", type="x"), backend=backend)
    assert ids(repo) == ["r2", "r1", "r0"]


def at_once(*works: Callable[[], object]) -> None:
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result(50)


def test_asyncio_trio_and_threads_at_once(repo: Path) -> None:
    def by_hand(prefix: str) -> None:
        store = Store.open(repo)
        for number in range(25):
            store.record_run(Run(run_id=f"{prefix}{number}", type="x"), [{"type": "a"}])

    at_once(
        lambda: anyio.run(record, repo, "a", 25, backend="asyncio"),
        lambda: anyio.run(record, repo, "b", 25, backend="trio"),
        lambda: anyio.run(record, repo, "c", 25, backend="asyncio"),
        lambda: by_hand("d"),
        lambda: by_hand("e"),
    )
    assert sorted(ids(repo)) == expected("abcde", 25)
    assert tagged(repo) == set(expected("abcde", 25))


def test_several_loops_in_several_threads_share_one_store(repo: Path) -> None:
    store = AsyncStore(Store.open(repo))

    async def write_and_read(prefix: str) -> None:
        async def one(number: int) -> None:
            run_id = f"{prefix}{number}"
            await store.record_run(Run(run_id=run_id, type="x"))
            got = await store.get_run(run_id)
            assert got is not None and got.run_id == run_id
            assert run_id in {run.run_id for run in await store.list_runs(n=1000)}

        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(one, number)

    backends = ["asyncio", "trio"] * 3
    at_once(
        *(
            lambda prefix=prefix, backend=backend: anyio.run(write_and_read, prefix, backend=backend)  # type: ignore[misc]
            for prefix, backend in zip("abcdef", backends, strict=True)
        )
    )
    assert sorted(ids(repo)) == expected("abcdef", 10)


def test_deleting_recording_and_reading_at_once(repo: Path) -> None:
    store = Store.open(repo)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            for run in store.list_runs(n=1000):
                assert run.type == "x"
                assert len(store.get_run_events(run.run_id)) in (0, 1)  # 0 once it is deleted

    def write(prefix: str) -> None:
        for number in range(30):
            store.record_run(Run(run_id=f"{prefix}{number}", type="x"), [{"type": "a"}])
            if number % 3 == 0:
                assert store.delete_run(f"{prefix}{number}")

    with ThreadPoolExecutor(3) as pool:
        reading = pool.submit(read)
        for writing in [pool.submit(write, prefix) for prefix in "ab"]:
            writing.result(50)
        stop.set()
        reading.result(50)
    assert sorted(ids(repo)) == sorted(f"{p}{n}" for p in "ab" for n in range(30) if n % 3)


# ---------------------------------------------------------------- the loop stays free


async def worst_gap(work: Callable[[], Awaitable[object]], callers: int) -> float:
    """The longest time, in seconds, that a task sleeping 1 ms at a time was kept from running."""
    gaps: list[float] = []

    async def tick() -> None:
        before = time.perf_counter()
        while True:
            await anyio.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - before)
            before = now

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await anyio.sleep(0.01)
        async with anyio.create_task_group() as callers_group:
            for _ in range(callers):
                callers_group.start_soon(work)
        group.cancel_scope.cancel()
    return max(gaps)


@pytest.mark.alone
async def test_the_loop_stays_free_while_300_callers_record(repo: Path) -> None:
    async with open_store(repo) as store:
        await store.record_run(Run(type="x"))

        async def nothing() -> None:
            await anyio.to_thread.run_sync(lambda: None)

        async def write() -> None:
            await store.record_run(Run(type="x", metadata={"a": ["b"] * 20}), [{"type": "step"}] * 5)

        measured = []
        for _ in range(10):  # others use this machine, too: the best of ten
            idle, busy = await worst_gap(nothing, 300), await worst_gap(write, 300)
            measured.append((busy, idle))
            if busy <= 4 * idle + 0.05:
                break
        else:
            raise AssertionError(f"gaps in seconds (recording, doing nothing): {measured}")
    assert len(ids(repo)) == 1 + 300 * len(measured)


@pytest.mark.alone
async def test_reading_and_opening_do_not_hold_up_the_loop_either(repo: Path) -> None:
    await record(repo, "r", 300)
    gap = min([await worst_gap(lambda: scp_git.list_runs(repo, n=5), 50) for _ in range(3)])
    assert gap < 0.25


# ---------------------------------------------------------------- inside a hook


async def test_the_environment_of_a_hook_misleads_nobody(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    user, ours = make_repo(), make_repo(commits=2)
    index = tmp_path / "index"
    shutil.copy(user / ".git/index", index)

    def state() -> list[object]:
        return [
            {str(path): path.read_bytes() for path in sorted(user.rglob("*")) if path.is_file()},
            index.read_bytes(),
            (ours / ".git/index").read_bytes(),
        ]

    before = state()
    with monkeypatch.context() as patch:
        patch.chdir(user)
        for name, value in {
            "GIT_DIR": user / ".git",
            "GIT_INDEX_FILE": index,
            "GIT_WORK_TREE": user,
            "GIT_OBJECT_DIRECTORY": user / ".git/objects",
            "GIT_COMMON_DIR": user / ".git",
            "GIT_NAMESPACE": "other",
            "GIT_CEILING_DIRECTORIES": "/",
            "GIT_PREFIX": "sub/",
        }.items():
            patch.setenv(name, str(value))
        run_id = await scp_git.record_run(ours, Run(type="x"), [{"type": "a"}])
        assert run_id
        with Store.open(ours) as store:
            store.ensure_ledger()
            run = store.list_runs()[0]
            assert (run.run_id, len(store.get_run_events(run_id))) == (run_id, 1)
        assert not (user / ".scp-ledger").exists()
    assert state() == before
    assert run.code_ref == str(pygit2.Repository(ours).head.target)
    assert tagged(ours) == {run_id}
    assert tagged(user) == set()
    assert pygit2.Repository(ours / ".scp-ledger").status() == {}


# ---------------------------------------------------------------- the interpreter's end


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Call it with a program and its arguments; what still runs after the test is killed."""
    with ExitStack() as stack:

        def start(code: str, *args: object) -> subprocess.Popen[str]:
            script = tmp_path / "script.py"
            script.write_text(code)
            process = subprocess.Popen(
                # From 3.12 on, fork warns of threads.
                [sys.executable, "-W", "ignore::DeprecationWarning", str(script), *map(str, args)],
                env=os.environ | {"PYTHONPATH": str(SOURCES)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def finish(process: subprocess.Popen[str], timeout_s: float = 40) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


ENDS = {
    "normal": ("", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "exception": ("raise RuntimeError('unhandled')", 1, "unhandled"),
    "interrupt": ("raise KeyboardInterrupt", -2, "KeyboardInterrupt"),
}
HANDED_OVER = """
import asyncio, sys, anyio, scp_git
root, backend, begun = sys.argv[1], sys.argv[2], []

async def work(number):
    async with scp_git.track_run(root, f"t{number}") as run:
        run.event("begun")
        begun.append(number)
        await anyio.sleep(60)

async def all_begun():
    while len(begun) < 20:
        await anyio.sleep(0.01)

async def main():
    if backend == "asyncio":
        tasks = [asyncio.create_task(work(number)) for number in range(20)]
        await all_begun()
    else:
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(work, number)
            await all_begun()
            group.cancel_scope.cancel()

anyio.run(main, backend=backend)
print("main is over", flush=True)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("end", ENDS)
def test_what_was_handed_over_is_there_after_the_process_ended(
    repo: Path, start: Start, backend: str, end: str
) -> None:
    last_line, status, said = ENDS[end]
    with gate_held(repo):
        process = start(HANDED_OVER + last_line, repo, backend)
        assert process.stdout is not None
        assert process.stdout.readline() == "main is over\n"
        time.sleep(0.1)
        assert process.poll() is None, "the process did not wait for its writer"
        assert ids(repo) == []
    returncode, _, err = finish(process)
    assert returncode == status
    assert err.rstrip().endswith(said) if said else err == ""
    runs = Store.open(repo).list_runs(n=100)
    assert sorted(run.type for run in runs) == sorted(f"t{number}" for number in range(20))
    assert {(run.status, run.summary) for run in runs} == {("failed", "cancelled")}
    assert len(Store.open(repo).get_run_events(runs[0].run_id)) == 1
    assert len(tagged(repo)) == 20


@pytest.mark.parametrize("end", ENDS)
def test_tasks_that_end_with_the_loop_are_recorded_whole_or_not_at_all(
    repo: Path, start: Start, end: str
) -> None:
    last_line, status, _ = ENDS[end]
    code = f"""
import asyncio, sys, scp_git
from scp_git import Run
tasks = []
async def main():
    await scp_git.ensure_ledger(sys.argv[1])
    for number in range(200):
        run = Run(run_id=f"r{{number}}", type="x")
        tasks.append(asyncio.create_task(scp_git.record_run(sys.argv[1], run, [{{"type": "a"}}])))
    await asyncio.sleep(0.02)
asyncio.run(main())
for number, task in enumerate(tasks):
    print(*[f"r{{number}}"] if not task.cancelled() and task.result() else [])
{last_line}
"""
    returncode, out, _ = finish(start(code, repo))
    assert returncode == status
    store, present = Store.open(repo), ids(repo)
    assert set(out.split()) <= set(present)
    assert len(present) == len(set(present)) <= 200
    assert tagged(repo) == set(present)
    assert all(len(store.get_run_events(run_id)) == 1 for run_id in present)


def test_threads_that_still_wait_at_the_end_get_their_runs_stored(repo: Path, start: Start) -> None:
    code = """
import sys, threading, time
from scp_git import Run, Store
store = Store.open(sys.argv[1])
for number in range(5):
    run = Run(run_id=f"r{number}", type="x")
    threading.Thread(target=store.record_run, args=(run,), daemon=True).start()
time.sleep(0.3)
print("main is over", flush=True)
"""
    with gate_held(repo):
        process = start(code, repo)
        assert process.stdout is not None
        assert process.stdout.readline() == "main is over\n"
        time.sleep(0.2)
    assert finish(process)[0] == 0
    assert sorted(ids(repo)) == [f"r{number}" for number in range(5)]


def test_the_end_of_the_process_waits_no_longer_than_the_deadline(repo: Path, start: Start) -> None:
    code = """
import sys, threading, time
from scp_git import Run, Settings, Store
store = Store.open(sys.argv[1], Settings(lock_timeout_s=1))
run = Run(type="x")
store.submit(store.recording(run, lambda: store.prepared(run, None), size=0))
print("main is over", flush=True)
"""
    with gate_held(repo):
        began = time.monotonic()
        returncode, _, _ = finish(start(code, repo))
        assert returncode == 0
        assert time.monotonic() - began < 15
    assert ids(repo) == []


def test_an_atexit_function_may_still_record(repo: Path, start: Start) -> None:
    code = """
import atexit, sys
from scp_git import Run, Settings, Store
store = Store.open(sys.argv[1], Settings(lock_timeout_s=5))
atexit.register(lambda: store.record_run(Run(run_id="last", type="x")))
store.record_run(Run(run_id="first", type="x"))
"""
    returncode, _, err = finish(start(code, repo))
    assert (returncode, err) == (0, "")
    assert ids(repo) == ["last", "first"]


def test_an_idle_store_does_not_keep_the_process(repo: Path, start: Start) -> None:
    pygit2.Repository(repo).config["scp.idleS"] = "60"
    code = "import sys; from scp_git import *; Store.open(sys.argv[1]).record_run(Run(type='x'))"
    began = time.monotonic()
    assert finish(start(code, repo)) == (0, "", "")
    assert time.monotonic() - began < 20, "the writer thread was waited for until it was idle"


# ---------------------------------------------------------------- fork and spawn

FORK = """
import asyncio, faulthandler, os, sys, threading, time, traceback, scp_git
from scp_git import Run, Store
root, children = sys.argv[1], int(sys.argv[2])
store = Store.open(root)
store.record_run(Run(run_id="before", type="x"))
asyncio.run(scp_git.record_run(root, Run(run_id="before-async", type="x")))
stop = threading.Event()

def keep_writing(name):
    number = 0
    while not stop.is_set():
        store.record_run(Run(run_id=f"{name}{number}", type="x"))
        os.write(1, f"{name}{number}\\n".encode())
        number += 1

threads = [threading.Thread(target=keep_writing, args=(name,)) for name in ("a", "b")]
for thread in threads:
    thread.start()
pids = []
for number in range(children):
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(12, exit=True)
        status = 1
        try:
            store.record_run(Run(run_id=f"child{number}", type="x"))
            assert asyncio.run(scp_git.record_run(root, Run(run_id=f"child-async{number}", type="x")))
            assert len(store.list_runs(n=3)) == 3
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    pids.append(pid)
    store.record_run(Run(run_id=f"parent{number}", type="x"))
    time.sleep(0.02)
statuses = [os.waitpid(pid, 0)[1] for pid in pids]
stop.set()
for thread in threads:
    thread.join()
assert statuses == [0] * children, statuses
"""


def check_fork(repo: Path, start: Start, children: int) -> None:
    returncode, out, err = finish(start(FORK, repo, children), 100)
    assert returncode == 0, err
    assert err == ""
    due = ["before", "before-async", *out.split()]
    due += [f"{who}{number}" for who in ("child", "child-async", "parent") for number in range(children)]
    assert Counter(ids(repo)) == Counter(due)
    assert tagged(repo) == set(due)


def test_parent_and_children_record_after_a_fork(repo: Path, start: Start) -> None:
    check_fork(repo, start, 10)


@pytest.mark.full
@pytest.mark.parametrize("attempt", range(10))
def test_parent_and_many_children_record_after_a_fork(repo: Path, start: Start, attempt: int) -> None:
    check_fork(repo, start, 40)


FORK_AND_STAY = """
import os, signal, sys, threading, time
from scp_git import Run, Store
store, moment = Store.open(sys.argv[1]), sys.argv[2]
store.record_run(Run(run_id="before", type="x"))
print("ready", flush=True)
sys.stdin.readline()
writing = threading.Thread(target=store.record_run, args=(Run(run_id="during", type="x"),))
if moment == "holding the gate":
    run = store._writer.committer.run
    store._writer.committer.run = lambda operations: time.sleep(0.5) or run(operations)
if moment != "idle":
    writing.start()
    time.sleep(0.25)
pid = os.fork()
if pid == 0:
    time.sleep(60)
    os._exit(0)
print("forked", flush=True)
sys.stdin.readline()
began = time.monotonic()
store.record_run(Run(run_id="after", type="x"))
print(time.monotonic() - began, flush=True)
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
"""


@pytest.mark.parametrize("moment", ["idle", "waiting for the gate", "holding the gate"])
def test_a_forked_child_does_not_keep_the_gate(repo: Path, start: Start, moment: str) -> None:
    process = start(FORK_AND_STAY, repo, moment)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with gate_held(repo) if moment == "waiting for the gate" else nullcontext():
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "forked\n"
    process.stdin.write("\n")
    returncode, out, err = finish(process)
    assert (returncode, err) == (0, "")
    assert float(out) < 10
    assert set(ids(repo)) == {"before", "after", *(["during"] if moment != "idle" else [])}


FORK_OFTEN = """
import os, sys, threading
from pathlib import Path
from scp_git.git.locks import Gate
gate, stop = Gate(Path(sys.argv[1])), threading.Event()

def take_and_release():
    while not stop.is_set():
        gate.take()
        gate.release()

def is_gate(fd):
    try:
        return os.path.samestat(os.fstat(fd), os.stat(gate.path))
    except OSError:
        return False

spin = lambda: [0 for _ in iter(stop.is_set, True)]
threads = [threading.Thread(target=target) for target in (take_and_release, spin)]
for thread in threads:
    thread.start()
statuses = []
for _ in range(60):
    pid = os.fork()
    if pid == 0:
        os._exit(any(map(is_gate, range(64))))
    statuses.append(os.waitpid(pid, 0)[1])
stop.set()
print(sum(map(bool, statuses)))
"""


def test_no_child_inherits_the_gate(tmp_path: Path, start: Start) -> None:
    """Whatever the moment of the fork: a descriptor in the child would keep the gate as long as it lives."""
    assert finish(start(FORK_OFTEN, tmp_path)) == (0, "0\n", "")


SPAWN = """
import asyncio, multiprocessing, sys, scp_git
from scp_git import Run, Store

def work(root, number):
    Store.open(root).record_run(Run(run_id=f"r{number}", type="x"))
    return asyncio.run(scp_git.record_run(root, Run(run_id=f"s{number}", type="x")))

if __name__ == "__main__":
    Store.open(sys.argv[1]).record_run(Run(run_id="p0", type="x"))
    with multiprocessing.get_context(sys.argv[2]).Pool(3) as pool:
        print(*pool.starmap(work, [(sys.argv[1], number) for number in range(6)]))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_processes_of_a_pool_record(repo: Path, start: Start, method: str) -> None:
    returncode, out, err = finish(start(SPAWN, repo, method))
    assert (returncode, err) == (0, "")
    assert out.split() == expected("s", 6)
    assert sorted(ids(repo)) == sorted(["p0", *expected("rs", 6)])
