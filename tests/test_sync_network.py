"""Push and pull over real servers: every refusal is reported, nothing is half published, nobody gives up."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pygit2
import pytest

import scp_git
from scp_git import AsyncStore, Counts, RefState, RemoteError, Run, Settings, Store, TransferCancelled
from scp_git.git.anchors import read_record
from scp_git.git.snapshot import snapshot
from scp_git.layout import ARCHIVE_REF, LEDGER_REF, NOTES_REF, run_dir, run_tag_ref
from tests import servers
from tests.servers import PASSWORD, USER, Server
from tests.sight import ids, tagged

MakeRepo = Callable[..., Path]
Git = Callable[..., str]
Join = Callable[[str], Path]
QUICK = Settings(durability="os", network_timeout_s=10)
TAGS = "refs/tags/scp/run/*"

pytestmark = pytest.mark.system("git")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.git_daemon(tmp_path_factory.mktemp("servers") / "daemon") as server:
        yield server


@pytest.fixture
def there(daemon: Server, request: pytest.FixtureRequest, watch: Callable[[Path], Path]) -> Path:
    """The bare repository that the test's clones sync with."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return watch(daemon.repository(name))


@pytest.fixture
def join(there: Path, daemon: Server, make_repo: MakeRepo, tmp_path: Path) -> Join:
    """Call it with a name to get a repository whose ``origin`` is ``there``, and its main published."""

    def join(name: str) -> Path:
        root = make_repo(tmp_path / name)
        repo = pygit2.Repository(root)
        repo.remotes.create("origin", daemon.url(there.stem))
        repo.remotes["origin"].push(["refs/heads/main:refs/heads/main"])
        return root

    return join


def opened(root: Path) -> Store:
    return Store.open(root, QUICK)


def record(root: Path, *run_ids: str) -> None:
    for run_id in run_ids:
        opened(root).record_run(Run(run_id=run_id, type="apply", summary=f"of {run_id}"), [{"type": "x"}])


def tips(root: Path) -> dict[str, str]:
    repo = pygit2.Repository(root)
    return {name: str(repo.references[name].target) for name in repo.references if "scp" in name}


def published(root: Path) -> dict[str, str]:
    return {name: oid for name, oid in tips(root).items() if not name.startswith("refs/scp/")}


# ---------------------------------------------------------------- there and back


def test_runs_go_there_and_come_back(join: Join, there: Path) -> None:
    a, b = join("a"), join("b")
    record(a, "a1", "a2")
    record(b, "b1")
    sent = opened(a).sync()
    assert sent.in_step and sent.sent == Counts(runs=2) and not sent.waiting
    both = opened(b).sync()
    assert (both.received, both.sent) == (Counts(runs=2), Counts(runs=1))
    assert opened(a).pull().received == Counts(runs=1)
    for root in (a, b):
        assert set(ids(root)) == {"a1", "a2", "b1"} == tagged(root) == tagged(there)
    assert published(a) == published(b) == tips(there)
    for root in (b, a):
        report = opened(root).sync()
        assert {result.state for result in report.pushed} == {RefState.UP_TO_DATE}


def test_everything_else_comes_along(join: Join) -> None:
    a, b = join("a"), join("b")
    record(a, "r1")
    store = opened(a)
    thread = store.create_thread("Release")
    store.send_message("on the run", run_id="r1")
    store.send_message("in the thread", thread_id=thread.thread_id)
    report = store.push()
    assert report.sent == Counts(runs=1, messages=2)
    assert opened(b).pull().received == Counts(runs=1, messages=2)
    opened(b).send_message("an answer", run_id="r1")
    assert opened(b).sync().sent == Counts(messages=1)
    opened(a).pull()
    assert [message.text for message in opened(a).list_messages(run_id="r1")] == ["an answer", "on the run"]


def test_a_tag_waits_for_its_commit_over_a_network(join: Join, there: Path, git: Git) -> None:
    a = join("a")
    git(a, "commit", "-q", "--allow-empty", "-m", "unpublished")
    record(a, "r1", "r2")
    head = git(a, "rev-parse", "HEAD").strip()
    report = opened(a).push()
    assert report.in_step and {waiting.commit for waiting in report.waiting} == {head}
    assert report.state(TAGS) is RefState.WAITING
    assert head not in pygit2.Repository(there)
    git(a, "push", "-q", "origin", "main:elsewhere")
    assert not opened(a).push().waiting
    assert tagged(there) == {"r1", "r2"}


def test_commits_are_published_on_request(join: Join, there: Path, git: Git) -> None:
    a = join("a")
    git(a, "commit", "-q", "--allow-empty", "-m", "unpublished")
    record(a, "r1")
    assert not opened(a).push(publish_commits=True).waiting
    assert git(there, "rev-parse", "scp/run/r1^{commit}") == git(a, "rev-parse", "HEAD")


def test_a_deleted_run_loses_its_tag_on_the_server(join: Join, there: Path) -> None:
    a, b = join("a"), join("b")
    record(a, "r1", "r2")
    opened(a).sync()
    opened(b).sync()
    opened(b).delete_run("r1")
    assert opened(b).sync().state(run_tag_ref("r1")) is RefState.PUSHED
    opened(a).sync()
    for root in (a, b, there):
        assert tagged(root) == {"r2"} and ids(root) == ["r2"]


def test_a_tag_that_is_not_its_anchors_is_replaced_on_the_server(join: Join, there: Path, git: Git) -> None:
    a = join("a")
    record(a, "r1")
    git(a, "push", "-q", "origin", "main:refs/tags/scp/run/r1")
    assert opened(a).push().in_step
    repository = opened(a)._repository
    with repository.odb() as odb:
        assert read_record(snapshot(repository, odb).ledger, f"{run_dir('r1')}/run.json")
    assert tips(there)[run_tag_ref("r1")] == tips(a)[run_tag_ref("r1")]


@pytest.mark.untidy("a shallow clone has no history to check", skip=["fsck"])
def test_a_shallow_clone_over_a_network(
    join: Join, there: Path, daemon: Server, tmp_path: Path, git: Git, make_repo: MakeRepo
) -> None:
    a = join("a")
    record(a, "a1", "a2", "a3")
    opened(a).sync()
    b = tmp_path / "b"
    git(tmp_path, "clone", "-q", "--depth", "1", "--no-single-branch", daemon.url(there.stem), str(b))
    record(b, "b1")
    record(a, "a4")
    opened(a).sync()
    assert opened(b).sync().in_step
    opened(a).sync()
    assert set(ids(a)) == set(ids(b)) == set(ids(there)) == {"a1", "a2", "a3", "a4", "b1"}
    empty = daemon.repository(f"{there.stem}-empty")
    git(b, "remote", "add", "empty", daemon.url(empty.stem))
    assert opened(b).sync("empty").in_step
    assert set(ids(empty)) == set(ids(b))
    git(empty, "fsck", "--strict")
    assert opened(b).sync().in_step, "the first remote is still one"


# ---------------------------------------------------------------- what a server refuses


def test_a_server_that_refuses_all(join: Join, there: Path) -> None:
    a = join("a")
    record(a, "r1")
    servers.set_hook(there, "pre-receive", "echo closed today; exit 1")
    report = opened(a).push()
    assert not report.in_step
    assert [(result.ref, result.state, result.detail) for result in report.pushed] == [
        (LEDGER_REF, RefState.REJECTED, "pre-receive hook declined")
    ]
    assert list(tips(there)) == []


@pytest.mark.parametrize("refused", [ARCHIVE_REF, LEDGER_REF, NOTES_REF])
def test_a_server_that_refuses_one_branch(join: Join, there: Path, refused: str) -> None:
    """Nothing that comes after it is pushed, so nothing there speaks of what is not there."""
    a = join("a")
    record(a, "r1", "r2")
    opened(a).delete_run("r2")
    opened(a).send_message("x", run_id="r1")
    servers.set_hook(there, "update", f'[ "$1" != {refused} ] || exit 1')
    report = opened(a).push()
    assert not report.in_step and report.state(refused) is RefState.REJECTED
    order = [ARCHIVE_REF, LEDGER_REF, NOTES_REF]
    assert sorted(tips(there)) == sorted(order[: order.index(refused)])
    (there / "hooks/update").unlink()
    assert opened(a).push().in_step
    assert tips(there) == published(a)


def test_a_server_that_lets_no_tag_go(join: Join, there: Path) -> None:
    a = join("a")
    record(a, "r1")
    opened(a).push()
    servers.set_hook(there, "update", 'case "$1 $3" in refs/tags/*0000000000) exit 1;; esac')
    opened(a).delete_run("r1")
    report = opened(a).push()
    assert report.in_step, "the deletion itself is there"
    assert report.state(run_tag_ref("r1")) is RefState.KEPT
    assert tagged(there) == {"r1"} and ids(there) == []


def test_a_strict_server(daemon: Server, make_repo: MakeRepo, git: Git) -> None:
    strict = {
        "receive__denyDeletes": "true",
        "receive__denyNonFastForwards": "true",
        "receive__fsckObjects": "true",
    }
    daemon.repository("strict", **strict)
    clones = [make_repo(), make_repo()]
    for number, root in enumerate(clones):
        git(root, "remote", "add", "origin", daemon.url("strict"))
        git(root, "push", "-q", "origin", "main")
        record(root, f"r{number}", f"gone{number}")
        opened(root).send_message("x", run_id=f"r{number}")
    for root in (*clones, *clones):
        assert opened(root).sync().in_step
    for number, root in enumerate(clones):
        opened(root).delete_run(f"gone{number}")
    for root in (*clones, *clones):
        assert opened(root).sync().in_step
    assert published(clones[0]) == published(clones[1])
    assert set(ids(daemon.folder / "strict.git")) == {"r0", "r1"}


@pytest.mark.anyio
async def test_a_refusal_makes_the_functions_say_false(
    join: Join, there: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a = join("a")
    record(a, "r1")
    opened(a).send_message("x", run_id="r1")
    servers.set_hook(there, "update", f'[ "$1" != {NOTES_REF} ] || exit 1')
    async with scp_git.bus.subscribe("scp:error") as events:
        assert await scp_git.push_chat(a) is False
        event = await anext(events)
    assert event.data["code"] == "remote-error" and "hook declined" in event.data["detail"]
    assert await scp_git.push_ledger(a) is True, "it does not push notes"
    assert await scp_git.pull_chat(a) is True


# ---------------------------------------------------------------- cancellation and progress


@pytest.mark.anyio
async def test_a_cancelled_push_stops_and_a_second_one_works(
    anyio_backend: str, join: Join, there: Path
) -> None:
    a = join("a")
    record(a, "r1")
    servers.set_hook(there, "pre-receive", "sleep 3")
    store = AsyncStore(opened(a))
    with anyio.fail_after(10):
        with anyio.move_on_after(0.5) as scope:
            await store.push()
        assert scope.cancelled_caught
    (there / "hooks/pre-receive").unlink()
    assert (await store.push()).in_step
    assert tips(there) == published(a)


def test_progress_is_told_and_may_end_it(join: Join, there: Path) -> None:
    a = join("a")
    record(a, "r1")
    told = []
    assert opened(a).push(on_progress=told.append).in_step
    assert told and told[-1].sending and told[-1].objects == told[-1].total_objects > 0


# ---------------------------------------------------------------- many at once

WRITER = """
import sys
from pathlib import Path
from scp_git import Run, Settings, Store
root, number, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = Store.open(root, Settings(durability="os", retry_timeout_s=120))
tries = 0
for n in range(count):
    store.record_run(Run(run_id=f"w{number}-{n}", type="x"))
    report = store.push()
    assert report.in_step, report
    tries += report.tries
print(tries)
"""


def crowd(roots: list[Path], count: int) -> None:
    """Every writer pushes after each of its runs, and none of them gives up."""
    import sys

    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root), str(number), str(count)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, root in enumerate(roots)
    ]
    for writer in writers:
        out, err = writer.communicate(timeout=600)
        assert writer.returncode == 0, err
        assert int(out) >= count


def check_crowd(roots: list[Path], there: Path, count: int) -> None:
    expected = {f"w{number}-{n}" for number in range(len(roots)) for n in range(count)}
    assert set(ids(there)) == expected == tagged(there)
    for root in roots:
        opened(root).sync()
        assert set(ids(root)) == expected
    assert len({str(sorted(published(root).items())) for root in (*roots, there)}) == 1


def test_writers_push_at_the_same_time_over_a_network(join: Join, there: Path) -> None:
    roots = [join(f"w{number}") for number in range(3)]
    crowd(roots, 3)
    check_crowd(roots, there, 3)


@pytest.mark.full
def test_8_writers_push_12_times_each_over_a_network(join: Join, there: Path) -> None:
    roots = [join(f"w{number}") for number in range(8)]
    crowd(roots, 12)
    check_crowd(roots, there, 12)


def at_a_path(make_repo: MakeRepo, tmp_path: Path, writers: int, git: Git) -> tuple[list[Path], Path]:
    there = make_repo(tmp_path / "there.git", commits=0, bare=True)
    roots = [make_repo() for _ in range(writers)]
    for root in roots:
        git(root, "remote", "add", "origin", str(there))
        git(root, "push", "-q", "origin", "main")
    return roots, there


def test_writers_push_at_the_same_time_to_a_path(make_repo: MakeRepo, tmp_path: Path, git: Git) -> None:
    roots, there = at_a_path(make_repo, tmp_path, 3, git)
    crowd(roots, 3)
    check_crowd(roots, there, 3)


@pytest.mark.full
def test_8_writers_push_12_times_each_to_a_path(make_repo: MakeRepo, tmp_path: Path, git: Git) -> None:
    roots, there = at_a_path(make_repo, tmp_path, 8, git)
    crowd(roots, 12)
    check_crowd(roots, there, 12)


# ---------------------------------------------------------------- the other transports

KINDS = {
    "sshd": servers.ssh_server,
    "http": servers.http_server,
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("sshd", marks=pytest.mark.system("sshd")),
        pytest.param("http", marks=pytest.mark.system("nginx", "fcgiwrap")),
    ],
)
def test_a_sync_over_each_transport(
    kind: str,
    make_repo: MakeRepo,
    tmp_path_factory: pytest.TempPathFactory,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    git: Git,
) -> None:
    with KINDS[kind](tmp_path_factory.mktemp("served") / kind) as server:
        if server.host_key:
            servers.trust_host(server, home)
        monkeypatch.setenv("SCP_GIT_USERNAME", USER)
        monkeypatch.setenv("SCP_GIT_TOKEN", PASSWORD)
        there = server.repository("over")
        clones = [make_repo(), make_repo()]
        git(there, "fetch", "-q", str(clones[0]), "main:main")
        for number, root in enumerate(clones):
            git(root, "remote", "add", "origin", server.url("over"))
            record(root, f"r{number}")
            assert opened(root).sync().in_step
        assert opened(clones[0]).sync().in_step
        assert set(ids(clones[0])) == set(ids(there)) == tagged(there) == {"r0", "r1"}


def test_an_unreachable_server_is_an_error_and_nothing_is_lost(make_repo: MakeRepo, git: Git) -> None:
    root = make_repo()
    git(root, "remote", "add", "origin", f"git://127.0.0.1:{servers.free_port()}/x.git")
    record(root, "r1")
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1"):
        opened(root).sync()
    assert ids(root) == ["r1"]
    assert issubclass(TransferCancelled, RemoteError)
