"""``track_run``: what it records of a block, whichever way the block ends, and that it never breaks it."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pygit2
import pytest
from pydantic import ValidationError

import scp_git
from scp_git import AsyncStore, Event, Run, Store, TrackedRun, bus

MakeRepo = Callable[..., Path]
Track = Callable[..., AbstractAsyncContextManager[TrackedRun]]


@pytest.fixture(autouse=True)
def unsynced(home: Path) -> None:
    """No fsync: these tests are not about power loss, and the disk is shared."""
    with (home / ".gitconfig").open("a") as config:
        config.write("[scp]\n\tdurability = os\n")


@pytest.fixture
def errors() -> Iterator[list[Event]]:
    """The ``scp:error`` events of the test."""
    seen: list[Event] = []
    with bus.attach(lambda event: seen.append(event) if event.type == "scp:error" else None):
        yield seen


FACES = [("asyncio", "Store"), ("asyncio", "AsyncStore"), ("trio", "module")]
AWAITED = [(backend, layer) for backend in ("asyncio", "trio") for layer in ("AsyncStore", "module")]
on_every_loop = pytest.mark.parametrize("face", AWAITED, ids="-".join, indirect=True)


@pytest.fixture(params=FACES, ids="-".join)
def face(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The event loop and the layer that a test runs on."""
    backend, layer = request.param
    return backend, layer


@pytest.fixture
def anyio_backend(face: tuple[str, str]) -> str:
    return face[0]


@pytest.fixture
def track(face: tuple[str, str]) -> Track:
    """``track_run(root, type, ...)`` of each layer, to be entered in one way."""
    if face[1] == "module":
        return scp_git.track_run

    @asynccontextmanager
    async def track(root: Path, type: str, **fields: Any) -> AsyncIterator[TrackedRun]:
        store = Store.open(root)
        if face[1] == "Store":
            with store.track_run(type, **fields) as run:
                yield run
        else:
            async with AsyncStore(store).track_run(type, **fields) as run:
                yield run

    return track


@contextmanager
def gate_held(root: Path) -> Iterator[None]:
    """As if another process were writing; nothing can be written meanwhile."""
    Store.open(root).ensure_ledger()
    with (root / ".git/scp/gate").open("rb") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        yield


def only_run(root: Path) -> Run:
    [run] = Store.open(root).list_runs()
    return run


def head(root: Path) -> str:
    return str(pygit2.Repository(root).head.target)


# ---------------------------------------------------------------- how a block ends


async def test_a_block_is_timed_and_recorded(repo: Path, track: Track, errors: list[Event]) -> None:
    async with track(
        repo, "apply", subtype="k8s:apply", user="Zoë", environment="prod", summary="begun", metadata={"a": 1}
    ) as run:
        assert isinstance(run, TrackedRun)
        assert (run.status, run.summary, run.metadata, run.modules_affected) == ("ok", "begun", {"a": 1}, [])
        assert Store.open(repo).list_runs() == []
        await anyio.sleep(0.12)
        run.event("adapter:execute", adapter="shell", status="ok", duration_ms=142)
        run.event("done", detail={"n": 1}, colour="red")
        run.summary = "Applied 3 resources"
        run.metadata["b"] = [2]
        run.modules_affected.append("web")
    got = only_run(repo)
    assert got.run_id == run.run_id
    assert (got.type, got.subtype, got.user, got.environment) == ("apply", "k8s:apply", "Zoë", "prod")
    assert (got.status, got.summary) == ("ok", "Applied 3 resources")
    assert (got.metadata, got.modules_affected) == ({"a": 1, "b": [2]}, ["web"])
    assert got.code_ref == head(repo)
    assert 120 <= got.duration_ms < 5000
    between = datetime.fromisoformat(got.ended_at) - datetime.fromisoformat(got.started_at)
    assert abs(between.total_seconds() * 1000 - got.duration_ms) < 1000
    events = Store.open(repo).get_run_events(run.run_id)
    times = [datetime.fromisoformat(event.pop("ts")) for event in events]
    assert events == [
        {"seq": 1, "type": "adapter:execute", "adapter": "shell", "status": "ok", "duration_ms": 142},
        {"seq": 2, "type": "done", "detail": {"n": 1}, "colour": "red"},
    ]
    assert datetime.fromisoformat(got.started_at) < times[0] < times[1] < datetime.fromisoformat(got.ended_at)
    assert errors == []


async def test_nothing_needs_to_be_said(repo: Path, track: Track) -> None:
    async with track(repo, "x"):
        pass
    got = only_run(repo)
    assert (got.status, got.summary, got.user, got.metadata) == ("ok", "", "Ada Tester", {})
    assert Store.open(repo).get_run_events(got.run_id) == []


async def test_the_metadata_given_is_not_changed(repo: Path, track: Track) -> None:
    given = {"a": 1}
    async with track(repo, "x", metadata=given) as run:
        run.metadata["b"] = 2
    assert given == {"a": 1}


@pytest.mark.parametrize("status", ["partial", "failed"])
async def test_a_status_can_be_set(repo: Path, track: Track, status: str) -> None:
    async with track(repo, "x") as run:
        run.status = status  # type: ignore[assignment]
        run.summary = "2 of 3"
    assert (only_run(repo).status, only_run(repo).summary) == (status, "2 of 3")


class Broken(Exception):
    pass


async def test_an_exception_passes_and_makes_the_run_failed(repo: Path, track: Track) -> None:
    error = Broken("no such file\n  or directory")

    def work(run: TrackedRun) -> None:
        run.event("begun")
        raise error

    with pytest.raises(Broken) as caught:
        async with track(repo, "x", summary="begun") as run:
            work(run)
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    got = only_run(repo)
    assert (got.status, got.summary) == ("failed", "Broken: no such file or directory")
    assert len(Store.open(repo).get_run_events(got.run_id)) == 1


SUMMARIES: list[tuple[BaseException, str]] = [
    (Broken(), "Broken"),
    (KeyError("k"), "KeyError: 'k'"),
    (Broken("x" * 10_000), "Broken: " + "x" * 489 + "..."),
    (Broken("\ud800 \n\u2028a\rb"), "Broken: ? a b"),
    (SystemExit(3), "SystemExit: 3"),
    (ExceptionGroup("some", [Broken("a")]), "ExceptionGroup: some (1 sub-exception)"),
]


async def test_the_summary_of_an_exception_is_one_short_line(repo: Path, track: Track) -> None:
    for error, _ in SUMMARIES:
        with pytest.raises(type(error)):
            async with track(repo, "x"):
                raise error
    await scp_git.flush()  # the end of the interpreter is not waited for in the block
    runs = Store.open(repo).list_runs()[::-1]
    assert [(run.status, run.summary) for run in runs] == [("failed", summary) for _, summary in SUMMARIES]


async def test_an_exception_whose_text_cannot_be_had_passes_all_the_same(
    repo: Path, track: Track, errors: list[Event]
) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    with pytest.raises(Mute):
        async with track(repo, "x"):
            raise Mute
    assert only_run(repo).status == "failed"


async def test_leaving_a_block_by_return_or_break_is_no_failure(repo: Path, track: Track) -> None:
    async def returning() -> int:
        async with track(repo, "x") as run:
            run.summary = "returned"
            return 5

    assert await returning() == 5
    for _ in range(1):
        async with track(repo, "x"):
            break
    assert {run.status for run in Store.open(repo).list_runs()} == {"ok"}


async def test_blocks_may_be_nested_and_run_at_once(repo: Path, track: Track) -> None:
    async def work(number: int) -> None:
        async with track(repo, f"outer{number}") as outer:
            async with track(repo, f"inner{number}") as inner:
                await anyio.sleep(0.01)
            outer.metadata["inner"] = inner.run_id

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(work, number)
    runs = {run.type: run for run in Store.open(repo).list_runs(n=100)}
    assert len(runs) == 20
    for number in range(10):
        assert runs[f"outer{number}"].metadata["inner"] == runs[f"inner{number}"].run_id


async def test_the_code_is_that_of_the_beginning(repo: Path, track: Track) -> None:
    before = head(repo)
    async with track(repo, "x"):
        repository = pygit2.Repository(repo)
        ada = repository.default_signature
        tree = repository.head.peel().tree_id
        repository.create_commit("HEAD", ada, ada, "meanwhile", tree, [repository.head.target])
    assert head(repo) != before
    got = only_run(repo)
    assert got.code_ref == before
    assert str(pygit2.Repository(repo).references[f"refs/tags/scp/run/{got.run_id}"].peel().id) == before


async def test_before_the_first_commit_there_is_no_code(make_repo: MakeRepo, track: Track) -> None:
    root = make_repo(commits=0)
    async with track(root, "x"):
        pass
    assert only_run(root).code_ref == ""


# ---------------------------------------------------------------- cancelled


@on_every_loop
async def test_a_cancelled_block_is_handed_over_without_waiting(
    repo: Path, track: Track, errors: list[Event]
) -> None:
    with gate_held(repo):
        async with anyio.create_task_group() as group:

            async def work() -> None:
                async with track(repo, "x", metadata={"a": 1}) as run:
                    run.event("begun")
                    await anyio.sleep(60)

            group.start_soon(work)
            await anyio.sleep(0.2)
            began = time.monotonic()
            group.cancel_scope.cancel()
        assert time.monotonic() - began < 2, "it waited for the ledger"
        assert Store.open(repo).list_runs() == []
    await scp_git.flush()
    got = only_run(repo)
    assert (got.status, got.summary, got.metadata) == ("failed", "cancelled", {"a": 1})
    assert 100 < got.duration_ms < 10_000
    assert [event["type"] for event in Store.open(repo).get_run_events(got.run_id)] == ["begun"]
    assert errors == []


@pytest.mark.parametrize("face", AWAITED[:2], ids="-".join, indirect=True)
def test_a_natively_cancelled_task_is_handed_over_as_well(repo: Path, track: Track) -> None:
    async def work(begun: asyncio.Event) -> None:
        async with track(repo, "x"):
            begun.set()
            await asyncio.sleep(60)

    async def main() -> None:
        begun, begun_too = asyncio.Event(), asyncio.Event()
        limited = asyncio.ensure_future(asyncio.wait_for(work(begun), 0.5))
        task = asyncio.ensure_future(work(begun_too))
        with gate_held(repo):
            await begun.wait()
            await begun_too.wait()
            started = time.monotonic()
            task.cancel("enough")
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(TimeoutError):
                await limited
            assert time.monotonic() - started < 5, "they waited for the ledger"
            assert Store.open(repo).list_runs() == []
        await scp_git.flush()

    asyncio.run(main())
    assert [(run.status, run.summary) for run in Store.open(repo).list_runs()] == [
        ("failed", "cancelled")
    ] * 2


@on_every_loop
async def test_cancelled_while_the_end_is_being_recorded(
    repo: Path, track: Track, errors: list[Event]
) -> None:
    """The block was through: the run is ``ok``, stored once, and nobody reports an error."""
    with gate_held(repo), anyio.move_on_after(0.4):
        async with track(repo, "x") as run:
            run.summary = "through"
    await scp_git.flush()
    assert (only_run(repo).status, only_run(repo).summary) == ("ok", "through")
    assert errors == []


@on_every_loop
async def test_cancelled_again_and_again_it_is_recorded_once(repo: Path, errors: list[Event]) -> None:
    made: list[str] = []

    async def work(delay_s: float) -> None:
        with anyio.move_on_after(delay_s):
            async with scp_git.track_run(repo, "x") as run:
                made.append(run.run_id)

    async with anyio.create_task_group() as group:
        for number in range(60):
            group.start_soon(work, number / 1500)
    await scp_git.flush()
    assert sorted(run.run_id for run in Store.open(repo).list_runs(n=100)) == sorted(made)
    assert errors == []


@on_every_loop
async def test_a_handed_over_run_that_cannot_be_stored_is_announced(
    repo: Path, track: Track, errors: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.move_on_after(0.3):
        async with track(repo, "x") as run:
            run.metadata["bad"] = float("nan")
            await anyio.sleep(60)
    await scp_git.flush()
    assert Store.open(repo).list_runs() == []
    assert [(error.key, error.data["operation"]) for error in errors] == [(run.run_id, "track_run")]
    assert "track_run failed" in caplog.text


# ---------------------------------------------------------------- a ledger that fails


def set_(**fields: Any) -> Callable[[TrackedRun], None]:
    return lambda run: vars(run).update(fields)


SPOILERS: dict[str, Callable[[TrackedRun], None]] = {
    "an object": set_(metadata={"bad": object()}),
    "NaN": set_(metadata={"bad": [float("nan")]}),
    "no metadata": set_(metadata=None),
    "a surrogate": set_(summary="\ud800"),
    "a status": set_(status="done"),
    "modules": set_(modules_affected="web"),
    "17 MB": set_(summary="x" * 17_000_000),
    "an event": lambda run: run.event("x", detail={"bad": {1, 2}}),
    "a large event": lambda run: run.event("x", target="x" * 5_000_000),
}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
async def test_what_cannot_be_stored_never_breaks_the_block(
    repo: Path, track: Track, errors: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    for name, spoil in SPOILERS.items():
        through = False
        async with track(repo, "x") as run:
            spoil(run)
            through = True
        assert through
        code = "record-too-large" if "large" in name or "MB" in name else "invalid-record"
        assert [(error.key, error.data["code"]) for error in errors] == [(run.run_id, code)], name
        assert (errors[0].data["operation"], errors[0].meta) == ("track_run", {"root": str(repo)})
        [logged] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert code in logged.getMessage()
        errors.clear()
        caplog.clear()
    assert Store.open(repo).list_runs() == []


async def test_what_cannot_be_stored_does_not_hide_the_exception(
    repo: Path, track: Track, errors: list[Event]
) -> None:
    def spoil_and_raise(run: TrackedRun) -> None:
        run.metadata["bad"] = object()
        raise Broken("mine")

    with pytest.raises(Broken, match="mine"):
        async with track(repo, "x") as run:
            spoil_and_raise(run)
    assert [error.key for error in errors] == [run.run_id]


async def test_a_busy_ledger_never_breaks_the_block(
    repo: Path, track: Track, errors: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    pygit2.Repository(repo).config["scp.lockTimeoutS"] = "0.2"
    with gate_held(repo):
        async with track(repo, "x") as run:
            result = 5
    assert result == 5
    assert [(error.key, error.data["code"]) for error in errors] == [(run.run_id, "repository-busy")]
    assert "repository-busy" in caplog.text
    await scp_git.flush()
    assert Store.open(repo).list_runs() == []


async def test_a_repository_that_goes_away_never_breaks_the_block(
    repo: Path, track: Track, errors: list[Event]
) -> None:
    async with track(repo, "x") as run:
        shutil.rmtree(repo)
    assert not repo.exists()
    assert [(error.key, error.data["code"]) for error in errors] == [(run.run_id, "storage-failed")]


@on_every_loop
async def test_where_there_is_no_repository_the_block_runs_all_the_same(
    tmp_path: Path, errors: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    async with scp_git.track_run(tmp_path, "x", summary="s") as run:
        run.event("a")
        run.metadata["b"] = 1
        assert (run.status, run.summary) == ("ok", "s")
    with pytest.raises(Broken):
        async with scp_git.track_run(tmp_path, "x"):
            raise Broken
    with anyio.move_on_after(0.05) as scope:
        async with scp_git.track_run(tmp_path, "x"):
            await anyio.sleep(60)
    assert scope.cancelled_caught
    assert {error.data["code"] for error in errors} == {"not-a-repository"}
    assert len(errors) == 3
    assert caplog.text.count("not-a-repository") == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fields", [{"type": 5}, {"type": "x", "user": 5}, {"type": "x", "metadata": 5}])
async def test_wrong_arguments_are_refused_before_the_block(
    repo: Path, track: Track, fields: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValidationError)):
        async with track(repo, **fields):
            raise AssertionError("the block was entered")
    assert Store.open(repo).list_runs() == []


async def test_a_block_announces_its_run(repo: Path, track: Track) -> None:
    seen: list[Event] = []
    with bus.attach(lambda event: seen.append(event) if event.type == "ledger:run" else None):
        async with track(repo, "apply", subtype="s") as run:
            run.summary = "done"
    [event] = seen
    assert event.key == run.run_id
    assert event.data == {"type": "apply", "subtype": "s", "status": "ok", "summary": "done"}
