"""What each layer does on failure, as docs/guarantees.md says, and what it tells the bus and the log."""

from __future__ import annotations

import copy
import fcntl
import inspect
import logging
import pickle
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pygit2
import pytest
from pydantic import ValidationError
from pygit2.enums import FileMode

import scp_git
from scp_git import (
    AlreadyExists,
    AsyncStore,
    AuthFailed,
    DecryptFailed,
    Event,
    InvalidId,
    InvalidSettings,
    KeyMissing,
    NotAllowed,
    NotARepository,
    NotFound,
    OutputRefused,
    RecordTooLarge,
    RemoteError,
    RepositoryBusy,
    Run,
    ScpGitError,
    Settings,
    StorageFailed,
    Store,
    TransferCancelled,
    UnsupportedRepository,
    bus,
)

Call = Callable[[Path], Awaitable[object]]


@pytest.fixture(autouse=True)
def unsynced(home: Path) -> None:
    """No fsync: these tests are not about power loss, and the disk is shared."""
    with (home / ".gitconfig").open("a") as config:
        config.write("[scp]\n\tdurability = os\n")


@pytest.fixture
def seen(repo: Path) -> Iterator[list[Event]]:
    """All events from now on, but those of other repositories: late writers of other tests are not ours."""
    events: list[Event] = []

    def take(event: Event) -> None:
        if str(event.meta.get("root", repo)).startswith(str(repo.parent)):
            events.append(event)

    with bus.attach(take):
        yield events


def described(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.type, event.key) for event in events]


# ---------------------------------------------------------------- the errors themselves

ERRORS: list[tuple[ScpGitError, type[Exception], str, dict[str, object]]] = [
    (NotFound("run", "r"), LookupError, "not-found", {"kind": "run", "id": "r"}),
    (InvalidId("run", "../x"), ValueError, "invalid-id", {"kind": "run", "id": "../x"}),
    (AlreadyExists("run", "r", deleted=True), ValueError, "already-exists", {"id": "r", "deleted": True}),
    (NotAllowed("deleting it", "it stays"), ValueError, "not-allowed", {"doing": "deleting it"}),
    (RecordTooLarge("run", "r", 5, 4), ValueError, "record-too-large", {"id": "r", "size": 5, "limit": 4}),
    (KeyMissing(), ValueError, "key-missing", {}),
    (DecryptFailed(), ValueError, "decrypt-failed", {}),
    (NotARepository("/x", "is not one"), Exception, "not-a-repository", {"path": Path("/x")}),
    (UnsupportedRepository("/x", "sha256"), Exception, "unsupported-repository", {"path": Path("/x")}),
    (RepositoryBusy("the gate", 1.5), TimeoutError, "repository-busy", {"waited_s": 1.5}),
    (StorageFailed("writing", OSError(28, "No space left")), OSError, "storage-failed", {"errno": 28}),
    (StorageFailed("writing", "damaged"), OSError, "storage-failed", {"doing": "writing", "errno": None}),
    (OutputRefused("/x", "is no folder"), ValueError, "output-refused", {"path": Path("/x")}),
    (RemoteError("origin", "gone"), ConnectionError, "remote-error", {"remote": "origin"}),
    (AuthFailed("origin", "who?"), RemoteError, "auth-failed", {"remote": "origin"}),
    (TransferCancelled("origin", "enough"), RemoteError, "transfer-cancelled", {"remote": "origin"}),
    (InvalidSettings("hot_max", "no"), ValueError, "invalid-settings", {"name": "hot_max"}),
]


@pytest.mark.parametrize(("error", "family", "code", "data"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_is_of_its_family_and_carries_its_data(
    error: ScpGitError, family: type[Exception], code: str, data: dict[str, object]
) -> None:
    for each in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert isinstance(each, ScpGitError)
        assert isinstance(each, family)
        assert each.code == code
        assert {name: getattr(each, name) for name in data} == data
        assert str(each) == each.message == str(error)
        assert each.args == (each.message,)
        assert "\n" not in str(each)


def test_every_error_has_a_code_of_its_own_and_is_public() -> None:
    def below(kind: type[ScpGitError]) -> Iterator[type[ScpGitError]]:
        for each in kind.__subclasses__():
            yield each
            yield from below(each)

    kinds = [kind for kind in below(ScpGitError) if kind.__module__.startswith("scp_git")]
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert {kind.__name__ for kind in kinds} <= set(scp_git.__all__)
    assert {type(error) for error, *_ in ERRORS} == set(kinds)


# ---------------------------------------------------------------- the module level never raises ours

LEDGER: dict[str, tuple[Call, object]] = {
    "ensure_ledger": (scp_git.ensure_ledger, None),
    "record_run": (lambda root: scp_git.record_run(root, Run(type="x")), ""),
    "list_runs": (scp_git.list_runs, []),
    "get_run": (lambda root: scp_git.get_run(root, "run_1"), None),
    "get_run_events": (lambda root: scp_git.get_run_events(root, "run_1"), []),
    "delete_run": (lambda root: scp_git.delete_run(root, "run_1"), False),
    "prune_runs": (lambda root: scp_git.prune_runs(root, older_than_days=0), 0),
}
WRITING = ["ensure_ledger", "record_run", "delete_run"]


@contextmanager
def gate_held(root: Path) -> Iterator[None]:
    Store.open(root).ensure_ledger()
    pygit2.Repository(root).config["scp.lockTimeoutS"] = "0.1"
    with (root / ".git/scp/gate").open("rb") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        yield


@contextmanager
def later_format(root: Path) -> Iterator[None]:
    repository = pygit2.Repository(root)
    tree = repository.TreeBuilder()
    tree.insert("FORMAT", repository.create_blob(b"2\n"), FileMode.BLOB)
    ada = repository.default_signature
    repository.create_commit("refs/heads/scp-ledger", ada, ada, "later", tree.write(), [])
    yield


@contextmanager
def bad_config(root: Path) -> Iterator[None]:
    pygit2.Repository(root).config["scp.hotMax"] = "many"
    yield


@contextmanager
def not_the_top(root: Path) -> Iterator[None]:
    (root / "sub").mkdir()
    yield
    (root / "sub").rmdir()


def unhurt(root: Path) -> AbstractContextManager[None]:
    return nullcontext()


FAILURES: dict[str, tuple[Callable[[Path], AbstractContextManager[None]], str, list[str], str]] = {
    "missing": (unhurt, "none", list(LEDGER), "not-a-repository"),
    "a file": (unhurt, "file.txt", list(LEDGER), "not-a-repository"),
    "inside": (not_the_top, "sub", list(LEDGER), "not-a-repository"),
    "later format": (later_format, "", list(LEDGER), "unsupported-repository"),
    "settings": (bad_config, "", list(LEDGER), "invalid-settings"),
    "busy": (gate_held, "", WRITING, "repository-busy"),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_module_level_ledger_functions_return_the_empty_value_log_and_announce(
    repo: Path, seen: list[Event], caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    hurt, below, affected, code = FAILURES[failure]
    with hurt(repo):
        for operation in affected:
            call, empty = LEDGER[operation]
            seen.clear()
            caplog.clear()
            root = repo / below
            result = await call(root)
            assert result == empty
            assert type(result) is type(empty)
            [event] = [event for event in seen if event.type == "scp:error"]
            assert set(event.data) == {"code", "operation", "detail"}
            assert (event.data["code"], event.data["operation"]) == (code, operation)
            assert event.error == event.data["detail"]
            assert event.meta == {"root": str(root)}
            [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
            assert record.name.startswith("scp_git")
            assert record.getMessage().startswith(f"{operation} failed ({code}): {event.data['detail']}")


async def test_bad_ids_are_announced_by_the_module_level(repo: Path, seen: list[Event]) -> None:
    run = Run(type="x")
    run.run_id = "../x"
    assert await scp_git.record_run(repo, run) == ""
    assert await scp_git.get_run(repo, "../x") is None
    assert await scp_git.get_run_events(repo, "../x") == []
    assert await scp_git.delete_run(repo, "../x") is False
    assert await scp_git.list_runs(repo, before="../x") == []
    assert [event.data["code"] for event in seen] == ["invalid-id"] * 5


async def test_what_is_taken_is_announced_by_the_module_level(repo: Path, seen: list[Event]) -> None:
    run = Run(type="x", summary="secret words")
    assert await scp_git.record_run(repo, run) == run.run_id
    run.summary = "other secret words"
    assert await scp_git.record_run(repo, run) == ""
    run.summary = "x" * 17_000_000
    assert await scp_git.record_run(repo, run) == ""
    assert [event.data.get("code") for event in seen] == [None, "already-exists", "record-too-large"]
    assert all("words" not in str(event.data["detail"]) for event in seen[1:])


async def test_absence_is_no_error(repo: Path, seen: list[Event], caplog: pytest.LogCaptureFixture) -> None:
    for operation in ("list_runs", "get_run", "get_run_events", "delete_run", "prune_runs"):
        call, empty = LEDGER[operation]
        assert await call(repo) == empty
    assert (seen, caplog.records) == ([], [])


async def test_push_and_pull_never_raise(tmp_path: Path, repo: Path) -> None:
    for root in (repo, tmp_path / "none"):
        for remote in ("origin", "none", "https://192.0.2.1/x"):
            assert await scp_git.push_ledger(root, remote=remote) is False
            assert await scp_git.pull_ledger(root, remote=remote) is False


# ---------------------------------------------------------------- flush raises


async def test_the_module_level_flush_raises(tmp_path: Path, repo: Path, seen: list[Event]) -> None:
    with pytest.raises(NotARepository):
        await scp_git.flush(tmp_path / "none")
    pygit2.Repository(repo).config["scp.hotMax"] = "many"
    with pytest.raises(InvalidSettings):
        await scp_git.flush(repo)
    assert seen == []


# ---------------------------------------------------------------- Store and AsyncStore raise


async def test_stores_raise_and_say_nothing_themselves(
    repo: Path, seen: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    store = Store.open(repo, Settings(lock_timeout_s=0.1, durability="os"))
    awaited, run = AsyncStore(store), Run(type="x")
    for path, kind in ((repo / "none", NotARepository), (repo / "file.txt", NotARepository)):
        with pytest.raises(kind):
            Store.open(path)
    for bad in ("../x", ""):
        for call in (store.get_run, store.get_run_events, store.delete_run):
            with pytest.raises(InvalidId):
                call(bad)
        for coroutine in (awaited.get_run, awaited.get_run_events, awaited.delete_run):
            with pytest.raises(InvalidId):
                await coroutine(bad)
        with pytest.raises(InvalidId):
            store.list_runs(before=bad)
        with pytest.raises(InvalidId):
            await awaited.list_runs(before=bad)
    store.record_run(run)
    run.summary = "other"
    for attempt in range(2):
        with pytest.raises(AlreadyExists):
            store.record_run(run) if attempt else await awaited.record_run(run)
    with gate_held(repo):
        for _ in range(2):
            with pytest.raises(RepositoryBusy):
                store.record_run(Run(type="y"))
            with pytest.raises(RepositoryBusy):
                await awaited.record_run(Run(type="y"))
    assert described(seen) == [("ledger:run", run.run_id)]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_value_in_git_config_that_cannot_be_used_is_refused_by_name(repo: Path) -> None:
    config = pygit2.Repository(repo).config
    for name, value in (("lockTimeoutS", "0"), ("durability", "maybe"), ("maxBatch", "-1")):
        config[f"scp.{name}"] = value
        with pytest.raises(InvalidSettings, match=f"scp.{name.lower()}"):
            Store.open(repo)
        del config[f"scp.{name}"]
    config["scp.lockTimeoutS"], config["scp.unheardOf"] = "1.5", "x"
    assert Store.open(repo).settings.lock_timeout_s == 1.5


# ---------------------------------------------------------------- wrong types raise at once, everywhere

ONE_RUN = Run(type="x")
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("record_run", (None,), {}),
    ("record_run", ({"type": "x"},), {}),
    ("record_run", ("run_1",), {}),
    ("record_run", (ONE_RUN, "abc"), {}),
    ("record_run", (ONE_RUN, [5]), {}),
    ("record_run", (ONE_RUN, [None]), {}),
    ("record_run", (ONE_RUN, ["abc"]), {}),
    ("record_run", (ONE_RUN, {"type": "a"}), {}),
    ("record_run", (ONE_RUN, 5), {}),
    ("record_run", (ONE_RUN, [[("type", "a")]]), {}),
    ("record_run", (ONE_RUN, [{"type": 5}]), {}),
    ("record_run", (ONE_RUN, [{"seq": -1}]), {}),
    ("record_run", (ONE_RUN, [{"ts": "yesterday"}]), {}),
    ("record_run", (ONE_RUN, [{"detail": "x"}]), {}),
    ("record_run", (ONE_RUN, [{"x": float("nan")}]), {}),
    ("record_run", (ONE_RUN, [{"x": object()}]), {}),
    ("record_run", (ONE_RUN, [{"x": b"bytes"}]), {}),
    ("record_run", (ONE_RUN, [{"target": b"bytes"}]), {}),
    ("record_run", (ONE_RUN, [{5: "x"}]), {}),
    ("record_run", (ONE_RUN, [{"type": "good"}, {"x": "\ud800"}]), {}),
    ("list_runs", (), {"n": "5"}),
    ("list_runs", (), {"n": None}),
    ("list_runs", (), {"since": 5}),
    ("list_runs", (), {"since": "yesterday"}),
    ("prune_runs", (), {"older_than_days": "5"}),
    ("prune_runs", (), {"older_than_days": None}),
    ("prune_runs", (), {"older_than_days": -1}),
    ("prune_runs", (), {}),
]
REFUSED = (TypeError, ValidationError, ValueError)


async def test_wrong_arguments_raise_at_once_in_every_layer(repo: Path, seen: list[Event]) -> None:
    store = Store.open(repo)

    async def attempt(place: object, verb: str, *args: object, **options: object) -> None:
        result = getattr(place, verb)(*args, **options)
        result = await result if inspect.isawaitable(result) else result
        raise AssertionError(f"{verb}{args}{options} gave {result!r}")

    for verb, args, options in WRONG:
        for place, root in ((store, ()), (AsyncStore(store), ()), (scp_git, (repo,))):
            with pytest.raises(REFUSED) as caught:
                await attempt(place, verb, *root, *args, **options)
            assert not isinstance(caught.value, ScpGitError), (verb, args, options)
    assert seen == []
    assert store.list_runs() == []


@pytest.mark.parametrize("root", [None, 5, object(), ["/x"]])
async def test_a_root_that_is_no_path_raises_at_once(root: Any) -> None:
    for call, _ in LEDGER.values():
        with pytest.raises(TypeError):
            await call(root)
    with pytest.raises(TypeError):
        async with scp_git.track_run(root, "x"):
            raise AssertionError("the block was entered")
    with pytest.raises(TypeError):
        Store.open(root)


# ---------------------------------------------------------------- events after the commit


async def test_events_come_when_the_run_can_be_read(repo: Path) -> None:
    reader, found = Store.open(repo), []

    def look(event: Event) -> None:
        if event.type in ("ledger:run", "ledger:deleted") and event.meta == {"root": str(repo)}:
            run = reader.get_run(event.key)
            tag = f"refs/tags/scp/run/{event.key}" in pygit2.Repository(repo).references
            found.append((event.type, event.key, run is not None and run.summary, tag))

    run = Run(type="apply", summary="s")
    with bus.attach(look):
        await scp_git.record_run(repo, run)
        reader.record_run(Run(run_id="second", type="x", summary="t"))
        await scp_git.delete_run(repo, run.run_id)
    assert found == [
        ("ledger:run", run.run_id, "s", True),
        ("ledger:run", "second", "t", True),
        ("ledger:deleted", run.run_id, False, False),
    ]


async def test_an_event_says_what_the_contract_says(repo: Path, seen: list[Event]) -> None:
    run = Run(type="apply", subtype="k8s:apply", status="partial", summary="2 of 3", metadata={"a": 1})
    await scp_git.record_run(repo, run)
    await scp_git.delete_run(repo, run.run_id)
    recorded, deleted = seen
    assert (recorded.v, recorded.type, recorded.key) == (1, "ledger:run", run.run_id)
    assert recorded.data == {
        "type": "apply",
        "subtype": "k8s:apply",
        "status": "partial",
        "summary": "2 of 3",
    }
    assert (recorded.error, recorded.duration_s) == (None, None)
    assert (deleted.type, deleted.key, deleted.data) == ("ledger:deleted", run.run_id, {})
    assert recorded.meta == deleted.meta == {"root": str(repo)}
    assert deleted.seq > recorded.seq


async def test_what_was_not_stored_is_not_announced(repo: Path, seen: list[Event]) -> None:
    store, run = Store.open(repo, Settings(lock_timeout_s=0.1, durability="os")), Run(type="x")
    store.record_run(run)
    seen.clear()
    store.record_run(run)
    await AsyncStore(store).record_run(run)
    run.summary = "other"
    for bad in (run, Run(run_id="a" * 128, type="x", summary="x" * 17_000_000)):
        with pytest.raises(ScpGitError):
            store.record_run(bad)
    with gate_held(repo), pytest.raises(RepositoryBusy):
        store.record_run(Run(type="late"))
    store.delete_run("nothing")
    store.ensure_ledger()
    store.flush()
    assert seen == []


def test_pruning_announces_every_deleted_run(repo: Path, seen: list[Event]) -> None:
    store = Store.open(repo)
    for number in range(3):
        store.record_run(Run(run_id=f"r{number}", type="x", started_at="2020-01-01"))
    seen.clear()
    assert store.prune_runs(older_than_days=1) == 3
    assert sorted(described(seen)) == [("ledger:deleted", f"r{number}") for number in range(3)]


async def test_a_sink_that_fails_does_not_hurt_the_write(
    repo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError("no")

    with bus.attach(fail):
        assert await scp_git.record_run(repo, Run(run_id="r1", type="x")) == "r1"
        assert await scp_git.record_run(repo, Run(run_id="r2", type="x")) == "r2"
    assert [run.run_id for run in await scp_git.list_runs(repo)] == ["r2", "r1"]


async def test_the_root_of_an_event_is_one_however_it_was_given(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to(repo)
    monkeypatch.chdir(repo.parent)
    events: list[Event] = []
    with bus.attach(events.append):
        for root in (repo, f"{repo}/", link, repo.name, Path(repo.name)):
            await scp_git.record_run(root, Run(type="x"))
            await scp_git.get_run(root, "../x")
            async with scp_git.track_run(root, "x") as run:
                run.metadata["bad"] = object()
    kinds = {event.type for event in events}
    assert kinds == {"ledger:run", "scp:error"}
    for event in events:
        assert event.meta["root"] in (str(repo), str(link))
    by_kind = {kind: {event.meta["root"] for event in events if event.type == kind} for kind in kinds}
    assert by_kind["ledger:run"] == by_kind["scp:error"]


async def test_a_subscriber_sees_the_events_of_its_root_only(make_repo: Callable[..., Path]) -> None:
    one, other = make_repo(), make_repo()
    async with bus.subscribe("ledger:*", root=one) as events:
        await scp_git.record_run(other, Run(run_id="other", type="x"))
        await scp_git.record_run(one, Run(run_id="one", type="x"))
        async for event in events:
            assert event.key == "one"
            break
