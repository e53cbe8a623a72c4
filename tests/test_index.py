"""The index says what a full scan says, whatever happens to it, to the repository, or in between."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pygit2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scp_git import Run, Settings, Store
from scp_git.errors import StorageFailed
from scp_git.git.handle import Odb, Repository
from scp_git.index import database
from scp_git.index.listing import ListedRun, list_at_once
from scp_git.index.runs import RunIndex
from scp_git.layout import archived_run_dir
from scp_git.ledger.archive import ArchiveRuns
from scp_git.ledger.filters import RunFilter
from scp_git.ledger.queries import RunReader
from scp_git.ticket import Ticket
from tests.sight import put_files

SOURCES = Path(__file__).parents[1]
QUICK = Settings(durability="os", hot_max=3, hot_min=2)
ARCHIVE = "refs/heads/scp-ledger-archive"


@pytest.fixture
def store(repo: Path) -> Store:
    return Store.open(repo, QUICK)


def files(root: Path) -> list[Path]:
    """The database itself, without SQLite's own files beside it."""
    return sorted((root / ".git/scp").glob("index-runs-*.db"))


def fill(store: Store, count: int = 6) -> list[str]:
    """Record runs in the past; returns their ids, newest first."""
    runs = [a_run(number) for number in range(count)]
    return [store.record_run(run) for run in runs][::-1]


def a_run(number: int, **fields: Any) -> Run:
    at = (datetime(2026, 2, 1, 10, tzinfo=UTC) + timedelta(days=number % 200)).isoformat()
    chosen = {"type": ("apply", "detect")[number % 2], "user": ("ada", "bob", "eve")[number % 3], **fields}
    return Run(run_id=f"run_{at[:10]}T100000_x_{number:04}", started_at=at, **chosen)


def listed(store: Store, **filters: Any) -> list[str]:
    return [run.run_id for run in store.list_runs(**{"n": 10**6, **filters})]


def scanned(root: Path, **filters: Any) -> list[Run]:
    asked: dict[str, Any] = {"n": 10**6, "before": None, "only": RunFilter(), **filters}
    return RunReader(Repository.open(root)).newest(**asked)


# ---------------------------------------------------------------- the same answers

FILTERS = [
    RunFilter(),
    RunFilter(type="apply"),
    RunFilter(status="failed", user="ada"),
    RunFilter(environment=""),
    RunFilter(since="2026-02-03T10:00:00.000000+00:00", until="2026-02-05T10:00:00.000000+00:00"),
    RunFilter(user="nobody\0"),
    RunFilter(user="\ud800"),
]
NUMBERS = st.integers(0, 7)
STEPS = st.one_of(
    st.tuples(st.just("record"), NUMBERS, st.sampled_from(["ok", "failed"])),
    st.tuples(st.just("delete"), NUMBERS),
    st.tuples(st.just("archive"), NUMBERS),
    st.tuples(st.just("prune"), st.just(0)),
    st.tuples(st.just("put"), NUMBERS, st.sampled_from(["torn", "other", "foreign", "timeless", "big"])),
    st.tuples(st.just("copy"), NUMBERS, st.sampled_from(["torn", "other", "foreign"])),
    st.tuples(st.just("remove"), NUMBERS),
    st.tuples(st.just("lose"), st.just(0)),
    st.tuples(st.just("look"), st.booleans()),
)


def by_hand(number: int, kind: str) -> bytes:
    """A record as somebody else, or nobody in his senses, may have written it."""
    run = a_run(number, summary="by hand", environment="staging")
    record = run.model_dump()
    if kind == "timeless":
        del record["started_at"]
    if kind == "foreign":
        record = {
            "run_id": run.run_id,
            "type": "apply",
            "started_at": "2026-02-04T12:00:00+02:00",
            "odd": [1],
        }
    if kind == "other":
        record["run_id"] = "another"
    if kind == "big":
        record["summary"] = "x" * 70_000
    data = json.dumps(record).encode()
    return data[:20] if kind == "torn" else data


class Scene:
    """One repository, one store that lists again and again, and what is done to them in between."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store.open(root, QUICK)
        self.index = RunIndex(Repository.open(root), RunReader(Repository.open(root)))

    def do(self, step: tuple[Any, ...]) -> None:
        getattr(self, step[0])(*step[1:])

    def record(self, number: int, status: str) -> None:
        try:
            self.store.record_run(a_run(number, status=status))
        except ValueError:  # it is there, or was deleted
            pass

    def delete(self, number: int) -> None:
        self.store.delete_run(a_run(number).run_id)

    def archive(self, number: int) -> None:
        """Everything up to that day goes to the archive."""
        ids = tuple(a_run(other).run_id for other in range(number + 1))
        self.store._wait(Ticket(lambda: ArchiveRuns(ids, False), size=1024))

    def prune(self, _: int) -> None:
        self.store.prune_runs(older_than_days=10_000)

    def put(self, number: int, kind: str) -> None:
        self._by_hand({f"ledger/runs/{a_run(number).run_id}/run.json": by_hand(number, kind)})

    def copy(self, number: int, kind: str) -> None:
        self._by_hand({f"{archived_run_dir(a_run(number).run_id)}/run.json": by_hand(number, kind)}, ARCHIVE)

    def remove(self, number: int) -> None:
        path = f"ledger/runs/{a_run(number).run_id}/run.json"
        repository = pygit2.Repository(self.root)
        tip = repository.references.get("refs/heads/scp-ledger")
        if tip is not None and path in repository[tip.target].tree:
            self._by_hand({path: None})

    def _by_hand(self, changed: dict[str, bytes | None], ref: str = "refs/heads/scp-ledger") -> None:
        put_files(self.root, changed, ref)

    def lose(self, _: int) -> None:
        for path in files(self.root):
            path.unlink()

    def look(self, again: bool) -> None:
        """Every question has the same answer from the index, from a scan, and from an index made anew."""
        index = RunIndex(Repository.open(self.root), RunReader(Repository.open(self.root)))
        readers = [RunReader(Repository.open(self.root)), self.index, *([index] if again else [])]
        everything = readers[0].newest(n=99, before=None, only=RunFilter())
        pages = [None, "nothing", *(run.run_id for run in everything[::2])]
        for only in FILTERS:
            for n, before in [(99, None), (2, None), *((2, page) for page in pages)]:
                expected, *others = (each.newest(n=n, before=before, only=only) for each in readers)
                for found in others:
                    assert [run.model_dump() for run in found] == [run.model_dump() for run in expected]
        for limit in ("2026-02-04T10:00:00.000000+00:00", "9999"):
            for archived in (True, False):
                expected_ids, *ids = (each.ids_before(limit, archived=archived) for each in readers)  # type: ignore[attr-defined]
                assert all(found == expected_ids for found in ids)
        assert self.index.counts() == self.index._scanned_counts()
        index.close()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=3, max_size=14))
@pytest.mark.untidy("records written by hand need not be tidy", skip=["tags", "view", "status"])
def test_index_answers_equal_a_full_scan_after_any_sequence_of_operations(
    make_repo: Callable[..., Path], steps: list[tuple[Any, ...]]
) -> None:
    scene = Scene(make_repo())
    for step in [*steps, ("look", True)]:
        scene.do(step)
    scene.index.close()


@pytest.mark.full
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=3, max_size=30))
@pytest.mark.untidy("too many repositories to look at", skip=["tags", "view", "status", "fsck"])
def test_index_answers_equal_a_full_scan_after_many_sequences(
    make_repo: Callable[..., Path], steps: list[tuple[Any, ...]]
) -> None:
    scene = Scene(make_repo())
    for step in [*steps, ("look", True)]:
        scene.do(step)
    scene.index.close()


def test_a_list_does_not_look_at_every_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a list after a write, a foreign commit or a chat message: only what changed is read."""
    made = fill(store, 8)
    assert listed(store) == made
    monkeypatch.setattr(RunReader, "_rows", lambda self, state: pytest.fail("everything was read"))
    made.insert(0, store.record_run(Run(type="x")))
    assert listed(store) == made
    put_files(store.root, {f"ledger/runs/{made[1]}/run.json": by_hand(7, "torn"), "README": b"x\n"})
    assert listed(store) == made[:1] + made[2:]
    assert store.prune_runs(older_than_days=0) == 8


def test_a_rewritten_history_is_read_from_scratch(store: Store, repo: Path, git: Callable[..., str]) -> None:
    """The commit that the index was made from is gone: somebody cut the history and collected the garbage."""
    made = fill(store, 3)
    assert listed(store) == made
    tree = git(repo, "rev-parse", "scp-ledger^{tree}").strip()
    git(repo, "update-ref", "refs/heads/scp-ledger", git(repo, "commit-tree", tree, "-m", "cut").strip())
    git(repo, "-c", "gc.reflogExpire=now", "gc", "-q", "--prune=now")
    assert listed(store) == listed(Store.open(repo)) == made


def test_where_there_is_no_ledger_nothing_is_created(repo: Path) -> None:
    assert Store.open(repo).list_runs() == []
    assert not (repo / ".git/scp").exists()


def test_the_index_is_never_part_of_what_git_sees(store: Store, repo: Path, git: Callable[..., str]) -> None:
    fill(store, 2)
    listed(store)
    assert len(files(repo)) == 1
    assert git(repo, "status", "--porcelain", "--ignored").strip() in (
        "!! .scp-ledger/",
        "?? .gitignore\n!! .scp-ledger/",
    )


# ---------------------------------------------------------------- it is never in the way


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(50_000))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def truncated_within_a_page(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten_in_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 8192))


def removed(path: Path) -> None:
    path.unlink()


def another_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE something (x)")
    db.close()


def without_a_key(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM key")
    db.close()


def lying(path: Path) -> None:
    """As one that a defect made: it names blobs that are not there."""
    with sqlite3.connect(path) as db:
        db.execute("UPDATE runs SET hot = x'00', archived = NULL")
    db.close()


def lying_about_users(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE runs SET user = 'ada'")
    db.close()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_symlink(path: Path) -> None:
    target = path.with_suffix(".elsewhere")
    path.rename(target)
    path.symlink_to(target)


SPOILED = [
    garbage, truncated, truncated_within_a_page, emptied, overwritten_in_the_middle, removed,
    another_database, without_a_key, lying, lying_about_users, a_folder, a_symlink,
]  # fmt: skip


@pytest.mark.parametrize("open_meanwhile", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("spoil", SPOILED)
def test_a_spoiled_index_is_made_again(
    spoil: Callable[[Path], None], open_meanwhile: bool, store: Store, repo: Path
) -> None:
    made = fill(store, 40)
    assert listed(store) == made
    if not open_meanwhile:
        store._index.close()
    for path in files(repo):
        spoil(path)
    expected = [run.run_id for run in scanned(repo, only=RunFilter(user="ada"))]
    for each in (store, Store.open(repo)):
        assert listed(each, user="ada") == expected
        assert listed(each) == made
        made.insert(0, each.record_run(Run(type="x")))
        assert listed(each) == made
        assert listed(each, before=made[0], n=2) == made[1:3]


def test_an_index_of_another_version_is_left_or_replaced(
    store: Store, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fill(store, 3)
    folder = repo / ".git/scp"
    older = folder / "index-runs-0-0000000000000001.db"
    later = folder / "index-runs-99-0000000000000001.db"
    unfinished = folder / "index-runs-1-0000000000000001.new"
    for path in (older, later, unfinished):
        path.write_bytes(b"of a version that this one does not know")
    assert listed(store) == made
    assert not older.exists() and not unfinished.exists()
    assert later.exists()
    later.unlink()


def test_a_locked_index_holds_nobody_up_for_long(
    store: Store, repo: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "_BUSY_S", 0.2)
    made = fill(store, 3)
    assert listed(store) == made
    made.insert(0, store.record_run(Run(type="x")))
    blocker = sqlite3.connect(files(repo)[0], isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    other = Store.open(repo)
    began = time.monotonic()
    for _ in range(3):
        assert listed(other) == made
    assert time.monotonic() - began < 5
    assert caplog.text.count("the index cannot be used") == 1
    blocker.execute("ROLLBACK")
    blocker.close()
    assert listed(Store.open(repo)) == made


def test_a_full_disk_is_no_obstacle_to_reading(store: Store, repo: Path) -> None:
    made = fill(store, 60)
    code = (
        "import resource, sys\nfrom scp_git import Store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))\n"
        "store = Store.open(sys.argv[1])\n"
        "print(*(run.run_id for run in store.list_runs(n=100)))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "print(*(run.run_id for run in store.list_runs(n=100)))\n"
    )
    for limit in (0, 4096, 10_000, 30_000):
        for path in files(repo):
            path.unlink()
        first, second = elsewhere(code, repo, limit).splitlines()
        assert first.split() == second.split() == made, limit
    assert [path.name for path in (repo / ".git/scp").glob("*.new*")] == []


@pytest.mark.parametrize("standing", ["file", "folder"])
def test_where_no_index_can_be_made_everything_is_read(
    standing: str, repo: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store.open(repo, QUICK)
    made = fill(store, 3)
    monkeypatch.setattr(database.Schema, "new_path", lambda self, folder: folder / "gate" / "x.db")
    assert listed(store) == listed(store) == made
    assert caplog.text.count("the index cannot be used") == 1


# ---------------------------------------------------------------- many at once, kills, forks


def elsewhere(code: str, *args: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LISTER = """
import sys
from scp_git import Run, Settings, Store
store = Store.open(sys.argv[1], Settings(durability="os", hot_max=3, hot_min=2))
for number in range(int(sys.argv[3])):
    made = store.record_run(Run(type=sys.argv[2]))
    found = [run.run_id for run in store.list_runs(n=10**6, type=sys.argv[2])]
    assert found[0] == made and len(found) == number + 1, (made, found)
print("done")
"""


def test_two_processes_and_many_threads_update_at_once(store: Store, repo: Path) -> None:
    """Each sees its own writes with its next read, and at the end there is one index, which is right."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", LISTER, repo, name, "25"], env=os.environ | {"PYTHONPATH": str(SOURCES)}
        )
        for name in ("first", "second")
    ]
    wrong: list[object] = []

    def work(name: str) -> None:
        for number in range(10):
            made = store.record_run(Run(type=name))
            found = listed(store, type=name)
            if found[0] != made or len(found) != number + 1:
                wrong.append((name, made, found))

    threads = [threading.Thread(target=work, args=(f"thread-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.wait(60) for child in children] == [0, 0]
    assert not wrong
    assert listed(store) == [run.run_id for run in scanned(repo)]
    assert len(listed(store)) == 90
    assert len(files(repo)) == 1


KILLED = """
import os, sys
from scp_git import Store
from scp_git.index import runs
count, put = 0, runs._Place.put
def slow(self, *args, **kwargs):
    global count
    put(self, *args, **kwargs)
    count += 1
    if count == int(sys.argv[2]):
        print("here", flush=True)
        sys.stdin.read()
runs._Place.put = slow
Store.open(sys.argv[1]).list_runs()
"""


@pytest.mark.parametrize("known", [False, True], ids=["rebuild", "update"])
def test_a_process_killed_in_the_middle_of_an_update(known: bool, store: Store, repo: Path) -> None:
    store._writer.on_calm = None  # or it would be done before the child comes to it
    made = fill(store, 6)
    if known:
        assert listed(store) == made
        made = [store.record_run(Run(type="x")) for _ in range(5)][::-1] + made
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, repo, "3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(SOURCES)},
    )
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdin.close()
    child.stdout.close()
    for each in (store, Store.open(repo)):
        assert listed(each) == made


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_reads_and_writes_an_index_of_its_own_connections(store: Store, repo: Path) -> None:
    made = fill(store, 4)
    assert listed(store) == made
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            assert store._index._database._idle == []
            before = listed(store)
            new = store.record_run(Run(type="x"))
            os.write(writing, json.dumps([before, new, listed(store)]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        before, new, after = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert before == made
    assert after == listed(store) == [new, *made]


def test_an_index_that_another_process_made_anew_is_taken_up(store: Store, repo: Path) -> None:
    made = fill(store, 4)
    assert listed(store) == made
    old = files(repo)
    old[0].unlink()
    elsewhere("import sys\nfrom scp_git import Store\nStore.open(sys.argv[1]).list_runs()", repo)
    new = files(repo)
    assert new != old
    assert listed(store) == made
    assert files(repo) == new


def test_connections_are_closed_when_the_store_goes(repo: Path) -> None:
    fill(Store.open(repo, QUICK), 2)
    before = set(os.listdir("/proc/self/fd"))
    index = RunIndex(Repository.open(repo), RunReader(Repository.open(repo)))
    assert len(index.newest(n=9, before=None, only=RunFilter())) == 2
    del index
    open_now = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in set(os.listdir("/proc/self/fd")) - before
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert not [name for name in open_now if "index-runs" in name]


# ---------------------------------------------------------------- a list that starts at once


def at_once(root: Path, **filters: Any) -> list[str] | None:
    n, before = filters.pop("n", 10**6), filters.pop("before", None)
    found = list_at_once(str(root), n=n, before=before, only=RunFilter(**filters))
    return None if found is None else [run.run_id for run in found]


def test_a_list_from_the_index_alone_is_the_stores(store: Store, repo: Path, git: Callable[..., str]) -> None:
    made = fill(store, 12)
    assert at_once(repo) is None
    runs = store.list_runs(n=100)
    listed_at_once = list_at_once(str(repo), n=100, before=None, only=RunFilter())
    assert listed_at_once is not None
    for run, row in zip(runs, listed_at_once, strict=True):
        assert {name: getattr(row, name) for name in ListedRun.__slots__} == {
            name: getattr(run, name) for name in ListedRun.__slots__
        }
    for filters in (
        {"user": "ada"},
        {"type": "apply", "n": 2},
        {"before": made[3], "n": 3},
        {"before": "none"},
    ):
        assert at_once(repo, **filters) == [run.run_id for run in store.list_runs(**{"n": 100, **filters})]
    git(repo, "pack-refs", "--all")
    assert at_once(repo) == made
    git(repo, "worktree", "add", "-q", str(repo.parent / "linked"))
    assert at_once(repo.parent / "linked") == at_once(repo / ".scp-ledger") == made


@pytest.mark.untidy("a record put beside the view", skip=["view"])
def test_what_is_not_as_usual_is_left_to_the_store(
    store: Store, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fill(store, 3)
    listed(store)
    assert at_once(repo) == made
    assert at_once(tmp_path) is None
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        assert at_once(repo) is None
    store.record_run(Run(type="x"))
    assert at_once(repo) is None, "the index is not up to date"
    listed(store)
    put_files(repo, {"ledger/runs/torn/run.json": b"{"})
    listed(store)
    assert at_once(repo) is None, "a damaged run is to be warned of"
    files(repo)[-1].write_bytes(b"nonsense")
    assert at_once(repo) is None


def test_an_index_that_is_there_follows_the_writes(store: Store, repo: Path) -> None:
    """A moment after the last write a list can start from the index alone, though nobody listed meanwhile."""
    made = fill(store, 2)
    time.sleep(0.5)
    assert files(repo) == [], "nobody ever asked for a list"
    assert listed(store) == made
    made = [store.record_run(Run(type="x")) for _ in range(3)][::-1] + made
    deadline = time.monotonic() + 10
    while at_once(repo) != made:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def seconds(*args: object) -> float:
    began = time.perf_counter()
    # Compiled, as an installed package is.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, *map(str, args)], check=True, stdout=subprocess.DEVNULL, env=env)
    return time.perf_counter() - began


def test_a_list_in_a_new_process_takes_at_most_8_times_a_bare_python(store: Store, repo: Path) -> None:
    fill(store, 60)
    listed(store)
    store._index.close()
    pairs = [
        (seconds("-c", "pass"), seconds("-m", "scp_git.cli", "-C", repo, "ledger", "list")) for _ in range(8)
    ]
    bare, lists = (min(times) for times in zip(*pairs, strict=True))
    assert lists < 8 * bare, f"{lists * 1e3:.0f} ms beside {bare * 1e3:.0f} ms"


def test_a_defect_of_the_index_keeps_nobody_from_reading(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = fill(store, 3)

    def defect(*args: object) -> None:
        raise KeyError("as if something had been forgotten")

    monkeypatch.setattr("scp_git.index.runs.select", defect)
    assert listed(store) == made
    assert "the index met an unexpected error" in caplog.text


@pytest.mark.parametrize("known", [False, True], ids=["made", "followed"])
@pytest.mark.parametrize("gone", [True, False], ids=["missing", "failing"])
@pytest.mark.parametrize("kind", ["tree", "blob"])
def test_what_cannot_be_read_just_now_is_not_remembered_as_missing(
    kind: str, gone: bool, known: bool, store: Store, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a process has no descriptor left to open a pack: the next list is complete."""
    made = fill(store, 2)
    if known:
        assert listed(store) == made
    made.insert(0, store.record_run(Run(type="x", summary="findme")))
    tree = pygit2.Repository(repo).references["refs/heads/scp-ledger"].peel(pygit2.Tree)
    path = f"ledger/runs/{made[0]}"
    lost = str(tree[path if kind == "tree" else f"{path}/run.json"].id)
    read = Odb.read

    def fail(self: Odb, oid: str, *, limit: int | None = None) -> Any:
        if oid != lost:
            return read(self, oid, limit=limit)
        if gone:
            return None
        raise StorageFailed("reading", OSError(24, "Too many open files"))

    other = Store.open(repo)
    with monkeypatch.context() as patch:
        patch.setattr(Odb, "read", fail)
        for ask in (lambda: listed(other), lambda: other.search("findme")):
            try:
                ask()
            except StorageFailed:
                pass
    assert listed(other) == made
    assert [hit.id for hit in other.search("findme")] == made[:1]
