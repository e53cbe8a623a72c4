"""Importing: all there exactly once, in bounded memory, resumable, and what cannot be stored is named."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import ValidationError

import scp_git
from scp_git import (
    AlreadyExists,
    ImportReport,
    InvalidId,
    NotARepository,
    Run,
    RunEvent,
    Settings,
    Store,
    bus,
    open_store,
)
from scp_git.store import importing
from tests.sight import gate_held, ids, tagged
from tests.test_archive import archived, hot, old_run

OS = Settings(durability="os", hot_max=8, hot_min=4)
Item = tuple[Run, list[RunEvent]]


def item(number: int, **fields: Any) -> Item:
    run = old_run(number, summary=f"number {number}", **fields)
    return run, [RunEvent(type="step", target=run.run_id), RunEvent(type="end", status="ok")]


def items(count: int, start: int = 0) -> list[Item]:
    return [item(number) for number in range(start, start + count)]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BATCH_RUNS", 10)
    monkeypatch.setattr(importing, "SLICE", 4)


def test_all_but_the_newest_hot_min_go_straight_to_the_archive(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo, OS)
    wanted = items(20)
    report = store.import_runs(reversed(wanted))
    assert report == ImportReport(added=20)
    made = [run.run_id for run, _ in wanted]
    assert (archived(repo, git), hot(repo, git)) == (made[:16], made[16:])
    assert ids(repo) == made[::-1] and tagged(repo) == set(made)
    for run, events in wanted:
        assert store.get_run(run.run_id) == run.model_copy(update={"ended_at": run.started_at})
        stored = store.get_run_events(run.run_id)
        assert [event["type"] for event in stored] == [event.type for event in events]
        assert {event["ts"] for event in stored} == {run.started_at}


@pytest.mark.usefixtures("small_batches")
def test_importing_again_changes_nothing_and_reads_no_run(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo, OS)
    assert store.import_runs(items(33)).added == 33
    before = git(repo, "for-each-ref")
    assert store.import_runs(items(33)) == ImportReport(unchanged=33)
    git(repo, "commit", "-q", "--allow-empty", "-m", "HEAD moves on")
    assert store.import_runs(items(33)) == ImportReport(unchanged=33)
    assert [line for line in git(repo, "for-each-ref").splitlines() if "main" not in line] == [
        line for line in before.splitlines() if "main" not in line
    ]


def test_what_is_stored_is_what_was_given(repo: Path) -> None:
    store = Store.open(repo, OS)
    run = Run(run_id="r", type="x", started_at="2026-01-01T00:00:00Z", duration_ms=1500, tool="other")
    store.import_runs([run])
    stored = store.get_run("r")
    assert stored is not None
    assert (stored.user, stored.code_ref) == ("", "")
    assert stored.ended_at == "2026-01-01T00:00:01.500000+00:00"
    assert stored.model_extra == {"tool": "other"}


def test_a_run_is_tagged_on_its_commit_at_its_time_else_on_head(repo: Path, git: Callable[..., str]) -> None:
    first = git(repo, "rev-parse", "HEAD").strip()
    git(repo, "commit", "-q", "--allow-empty", "-m", "second")
    second = git(repo, "rev-parse", "HEAD").strip()
    Store.open(repo, OS).import_runs([old_run(0, code_ref=first), old_run(1, code_ref="f" * 40), old_run(2)])
    targets = git(repo, "for-each-ref", "--format=%(*objectname) %(taggerdate:unix)", "refs/tags/").split()
    assert targets[::2] == [first, second, second]
    assert targets[1::2] == ["1771286400", "1771290000", "1771293600"]


def test_without_a_commit_the_runs_wait_for_one(
    make_repo: Callable[..., Path], git: Callable[..., str]
) -> None:
    repo = make_repo(commits=0)
    store = Store.open(repo, OS)
    assert store.import_runs(items(12)).added == 12
    assert tagged(repo) == set()
    git(repo, "commit", "-q", "--allow-empty", "-m", "first")
    store.ensure_ledger()
    assert tagged(repo) == {run.run_id for run, _ in items(12)}


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("hot_max", [0, 8, 1000])
def test_duplicates_and_bad_records_are_counted_and_listed(repo: Path, hot_max: int) -> None:
    store = Store.open(repo, Settings(durability="os", hot_max=hot_max, hot_min=hot_max // 2))
    store.record_run(*item(3))
    store.record_run(old_run(5, summary="another"))
    store.record_run(*item(7))
    store.delete_run(old_run(7).run_id)
    bad = old_run(100)
    bad.metadata = {"when": {1, 2}}
    outside = old_run(101)
    outside.run_id = "../up"
    stream = [*items(30), bad, outside, item(2), (old_run(2, summary="two"), None)]
    report = store.import_runs(stream)
    assert (report.added, report.unchanged, report.rejected_count) == (27, 2, 5)
    found = {rejected.position: rejected for rejected in report.rejected}
    assert set(found) == {6, 8, 31, 32, 34}
    assert "deleted" in found[8].reason and found[6].run_id == old_run(5).run_id
    assert found[31].reason.startswith("metadata: ") and found[32].run_id == "../up"
    assert report.seen == len(stream)


def test_the_list_of_rejected_runs_is_bounded(repo: Path) -> None:
    bad = Run(type="x")
    bad.run_id = ".."
    report = Store.open(repo, OS).import_runs([bad] * 1200)
    assert (report.rejected_count, len(report.rejected)) == (1200, 1000)


@pytest.mark.usefixtures("small_batches")
def test_strict_makes_the_first_bad_record_fatal(repo: Path) -> None:
    store = Store.open(repo, OS)
    store.record_run(old_run(15, summary="another"))
    with pytest.raises(AlreadyExists):
        store.import_runs(items(40), strict=True)
    bad = old_run(100)
    bad.duration_ms = -1
    with pytest.raises(ValidationError):
        store.import_runs([bad], strict=True)
    bad = Run(type="x")
    bad.run_id = "no way"
    with pytest.raises(InvalidId):
        store.import_runs([bad], strict=True)
    store.delete_run(old_run(15).run_id)
    assert set(ids(repo)) < {run.run_id for run, _ in items(40)}


@pytest.mark.parametrize("wrong", [[{"type": "x"}], ["x"], [(1, 2, 3)], [None]])
def test_what_is_no_run_at_all_is_a_type_error(repo: Path, wrong: Any) -> None:
    with pytest.raises(TypeError, match="takes Run"):
        Store.open(repo, OS).import_runs(wrong)
    with pytest.raises(TypeError, match="iterable"):
        Store.open(repo, OS).import_runs(42)  # type: ignore[arg-type]


def test_one_commit_one_pack_and_one_rewrite_of_packed_refs_a_batch(
    repo: Path, git: Callable[..., str]
) -> None:
    store = Store.open(repo, OS)
    store.ensure_ledger()
    store.import_runs(items(300))
    assert int(git(repo, "rev-list", "--count", "scp-ledger-archive")) == 1
    assert int(git(repo, "rev-list", "--count", "scp-ledger")) == 2
    assert len(git(repo, "for-each-ref", "refs/tags").splitlines()) == 300
    loose = [path for path in (repo / ".git/refs/tags").rglob("*") if path.is_file()]
    assert len(loose) <= OS.hot_min


@pytest.mark.usefixtures("small_batches")
def test_progress_is_told_and_grows(repo: Path) -> None:
    seen: list[int] = []
    report = Store.open(repo, OS).import_runs(items(50), on_progress=lambda now: seen.append(now.seen))
    assert seen == sorted(seen) and len(seen) > 5 and seen[-1] > 10
    assert report.seen == 50


def test_an_import_is_announced_by_the_batch_not_by_the_run(repo: Path) -> None:
    told: list[Any] = []
    with bus.attach(told.append):
        Store.open(repo, OS).import_runs(items(20))
    assert [(event.type, event.data) for event in told] == [
        ("ledger:imported", {"added": 16}),
        ("ledger:imported", {"added": 4}),
    ]


@pytest.mark.usefixtures("small_batches")
def test_an_import_that_failed_midway_is_repeated(repo: Path) -> None:
    store = Store.open(repo, OS)

    def breaks() -> Iterator[Item]:
        yield from items(200)
        raise ConnectionError("the source is gone")

    with pytest.raises(ConnectionError):
        store.import_runs(breaks())
    store.flush()
    there = len(ids(repo))
    assert 0 < there < 200
    report = store.import_runs(items(200))
    assert (report.added, report.unchanged) == (200 - there, there)


def test_a_busy_repository_fails_the_import_in_time(repo: Path) -> None:
    store = Store.open(repo, Settings(durability="os", lock_timeout_s=0.2))
    with gate_held(repo), pytest.raises(scp_git.RepositoryBusy):
        store.import_runs(items(5))
    assert ids(repo) == []


# ---------------------------------------------------------------- async


async def test_any_async_iterable_is_taken(repo: Path) -> None:
    async def stream() -> AsyncIterator[Item]:
        for each in items(600):
            await anyio.lowlevel.checkpoint()
            yield each

    told: list[int] = []
    here = threading.get_ident()

    def progress(report: ImportReport) -> None:
        assert threading.get_ident() == here
        told.append(report.seen)

    report = await scp_git.import_runs(repo, stream(), on_progress=progress)
    assert report.added == 600 and len(told) >= 2
    async with open_store(repo, OS) as store:
        assert await store.import_runs(items(600)) == ImportReport(unchanged=600)


async def test_the_function_raises(tmp_path: Path, repo: Path) -> None:
    with pytest.raises(NotARepository):
        await scp_git.import_runs(tmp_path, items(1))
    with pytest.raises(TypeError):
        await scp_git.import_runs(repo, 42)  # type: ignore[arg-type]


@pytest.mark.alone
async def test_the_loop_stays_free_while_importing(repo: Path) -> None:
    gaps: list[float] = []

    async def tick() -> None:
        last = anyio.current_time()
        while True:
            await anyio.sleep(0.001)
            now = anyio.current_time()
            gaps.append(now - last)
            last = now

    async with anyio.create_task_group() as tasks, open_store(repo, OS) as store:
        tasks.start_soon(tick)
        await store.import_runs(items(3000))
        tasks.cancel_scope.cancel()
    # Threads share the interpreter in turns of 5 ms; a loop that waited for a batch would stand for a second.
    assert max(gaps) < 1 and len(gaps) > 20


async def test_what_the_source_or_the_progress_raises_goes_through(repo: Path) -> None:
    async def breaks() -> AsyncIterator[Item]:
        for each in items(300):
            yield each
        raise ConnectionError("the source is gone")

    def refuse(report: ImportReport) -> None:
        raise KeyError(report.seen)

    async with open_store(repo, OS) as store:
        with pytest.raises(ConnectionError):
            await store.import_runs(breaks())
        with pytest.raises(KeyError):
            await store.import_runs(items(300), on_progress=refuse)
        assert (await store.import_runs(items(300))).seen == 300


async def test_a_cancelled_import_stops_and_keeps_what_it_stored(repo: Path) -> None:
    async with open_store(repo, OS) as store:
        with anyio.move_on_after(0.05):
            await store.import_runs(items(20_000))
            pytest.fail("it was not cancelled")
    assert len(ids(repo)) < 20_000


# ---------------------------------------------------------------- several processes

WORKER = """
import sys
from scp_git import Settings, Store
from tests.test_import import items, item
store = Store.open(sys.argv[1], Settings(hot_max=8, hot_min=4))
if sys.argv[2] == "import":
    report = store.import_runs(items(2000))
    assert not report.rejected_count
    print(report.added)
else:
    for number in range(5000, 5040):
        store.record_run(*item(number))
    print(40)
"""


def test_two_processes_import_and_one_records_and_all_are_there_once(
    repo: Path, git: Callable[..., str]
) -> None:
    command = [sys.executable, "-c", WORKER, str(repo)]
    top = str(Path(__file__).parents[1])
    workers = [
        subprocess.Popen([*command, verb], stdout=subprocess.PIPE, text=True, cwd=top)
        for verb in ("import", "import", "record")
    ]
    counts = [int(worker.communicate()[0]) for worker in workers]
    assert counts[0] + counts[1] == 2000 and counts[2] == 40
    wanted = {run.run_id for run, _ in [*items(2000), *items(40, 5000)]}
    assert set(ids(repo)) == tagged(repo) == wanted
    assert len(hot(repo, git)) + len(archived(repo, git)) == 2040
