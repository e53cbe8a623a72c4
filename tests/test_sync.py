"""Push and pull between clones and a repository at a path: no conflict, nothing lost, nothing undone."""

from __future__ import annotations

import inspect
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pygit2
import pytest

import scp_git
from scp_git import Counts, RefState, RemoteError, Run, Settings, Store, SyncReport
from scp_git.git.notes import list_notes
from scp_git.git.snapshot import snapshot
from scp_git.layout import ARCHIVE_REF, LEDGER_REF, NOTES_REF, run_tag_ref
from tests.sight import ids, tagged

MakeRepo = Callable[..., Path]
Git = Callable[..., str]
QUICK = Settings(durability="os")


def opened(root: Path) -> Store:
    return Store.open(root, QUICK)


def record(root: Path, *run_ids: str, **fields: str) -> None:
    for run_id in run_ids:
        run = Run(run_id=run_id, type="apply", summary=f"of {run_id}", **fields)
        opened(root).record_run(run, [{"type": "x", "detail": {"of": run_id}}])


def trees(root: Path) -> dict[str, str]:
    """The tree of each of our branches."""
    repo = pygit2.Repository(root)
    present = [ref for ref in (LEDGER_REF, ARCHIVE_REF, NOTES_REF) if ref in repo.references]
    return {ref: str(repo.references[ref].peel(pygit2.Commit).tree.id) for ref in present}


def tip(root: Path, ref: str = LEDGER_REF) -> str | None:
    repo = pygit2.Repository(root)
    return str(repo.references[ref].target) if ref in repo.references else None


def merges(git: Git, root: Path) -> str:
    return git(root, "rev-list", "--merges", LEDGER_REF).strip()


@pytest.fixture
def server(make_repo: MakeRepo, tmp_path: Path) -> Path:
    return make_repo(tmp_path / "server.git", commits=0, bare=True)


@pytest.fixture
def clone(server: Path, tmp_path: Path, git: Git, watch: Callable[[Path], Path]) -> Callable[[str], Path]:
    """Call it with a name to get a clone of the server, whose branch ``main`` has one commit."""

    def clone(name: str, *options: str) -> Path:
        top = tmp_path / name
        git(tmp_path, "clone", "-q", *options, str(server), str(top))
        if not git(top, "for-each-ref", "refs/remotes/origin/main").strip():
            (top / "file.txt").write_text("line\n")
            git(top, "checkout", "-q", "-B", "main")
            git(top, "add", "-A")
            git(top, "commit", "-q", "-m", "first")
            git(top, "push", "-q", "origin", "main")
        return watch(top)

    return clone


# ---------------------------------------------------------------- there and back


def test_a_run_goes_there_and_comes_back(clone: Callable[[str], Path], server: Path) -> None:
    a, b = clone("a"), clone("b")
    record(a, "r1")
    sent = opened(a).push()
    assert sent.in_step and sent.state(LEDGER_REF) is RefState.PUSHED
    assert sent.sent == Counts(runs=1)
    received = opened(b).pull()
    assert received.in_step and received.state(LEDGER_REF) is RefState.UPDATED
    assert received.received == Counts(runs=1)
    assert ids(b) == ["r1"] and tagged(b) == tagged(server) == {"r1"}
    assert tip(a) == tip(b) == tip(server)
    assert opened(b).get_run_events("r1")[0]["detail"] == {"of": "r1"}
    assert (b / ".scp-ledger/ledger/runs/r1/run.json").exists(), "the view shows it"


def test_work_on_both_sides_is_merged_into_one_line_of_commits(
    clone: Callable[[str], Path], server: Path, git: Git
) -> None:
    a, b = clone("a"), clone("b")
    record(a, "a1", "a2")
    record(b, "b1", "b2")
    assert opened(a).sync().state(LEDGER_REF) is RefState.PUSHED
    report = opened(b).sync()
    assert {result.state for result in report.pulled if result.ref == LEDGER_REF} == {RefState.MERGED}
    assert (report.received, report.sent) == (Counts(runs=2), Counts(runs=2))
    assert opened(a).sync().state(LEDGER_REF) is RefState.UP_TO_DATE
    assert set(ids(a)) == set(ids(b)) == {"a1", "a2", "b1", "b2"} == tagged(server)
    assert tip(a) == tip(b) == tip(server)
    assert not merges(git, server)


def test_syncs_come_to_rest(clone: Callable[[str], Path], server: Path) -> None:
    """Once all have synced, nobody makes another commit, whoever syncs and how often."""
    clones = [clone(name) for name in "abc"]
    for number, root in enumerate(clones):
        record(root, f"r{number}")
    for _ in range(2):
        for root in clones:
            opened(root).sync()
    before = [tip(root) for root in (*clones, server)]
    assert len(set(before)) == 1
    for root in reversed(clones):
        report = opened(root).sync()
        assert {result.state for result in report.pushed} <= {RefState.UP_TO_DATE}
        assert not report.received and not report.sent
    assert [tip(root) for root in (*clones, server)] == before


def test_a_deleted_run_is_gone_everywhere_and_loses_its_tag(
    clone: Callable[[str], Path], server: Path
) -> None:
    a, b = clone("a"), clone("b")
    record(a, "r1", "r2")
    opened(a).sync()
    opened(b).sync()
    opened(b).delete_run("r1")
    record(a, "r3")
    opened(a).sync()
    opened(b).sync()
    opened(a).sync()
    for root in (a, b, server):
        assert set(ids(root)) == tagged(root) == {"r2", "r3"}
    assert trees(a) == trees(b) == trees(server)


def test_a_branch_stands_on_the_remotes_tip(clone: Callable[[str], Path], git: Git) -> None:
    a, b = clone("a"), clone("b")
    record(a, "a1", "a2", "a3")
    record(b, "b1", "b2", "b3")
    opened(a).push()
    theirs = tip(a)
    opened(b).pull()
    parents = git(b, "rev-list", "--parents", "-n", "1", LEDGER_REF).split()[1:]
    assert parents == [theirs]
    record(b, "b4")
    assert git(b, "rev-list", "--count", f"{theirs}..{LEDGER_REF}").strip() == "2"
    opened(b).push()
    assert tip(b) == tip(Path(git(b, "remote", "get-url", "origin").strip()))


# ---------------------------------------------------------------- tags


def test_a_tag_waits_for_its_commit(clone: Callable[[str], Path], server: Path, git: Git) -> None:
    a, b = clone("a"), clone("b")
    (a / "file.txt").write_text("secret\n")
    git(a, "commit", "-qam", "unpublished")
    head = git(a, "rev-parse", "HEAD").strip()
    record(a, "r1")
    report = opened(a).sync()
    assert report.in_step
    assert [(waiting.run_id, waiting.commit) for waiting in report.waiting] == [("r1", head)]
    assert report.state("refs/tags/scp/run/*") is RefState.WAITING
    assert head not in pygit2.Repository(server), "nothing of the user's was uploaded"
    opened(b).pull()
    assert ids(b) == ["r1"] and not tagged(b) and opened(b).get_run_events("r1")
    git(a, "push", "-q", "origin", "main")
    assert not opened(a).sync().waiting
    assert tagged(server) == {"r1"}
    git(b, "pull", "-q", "--no-tags")
    record(b, "r2")
    assert tagged(b) == {"r1", "r2"}, "made from its anchor with the next write"
    assert git(b, "rev-parse", "scp/run/r1") == git(a, "rev-parse", "scp/run/r1")


def test_commits_are_published_with_their_tags_on_request(
    clone: Callable[[str], Path], server: Path, git: Git
) -> None:
    a = clone("a")
    git(a, "commit", "-q", "--allow-empty", "-m", "unpublished")
    record(a, "r1")
    report = opened(a).push(publish_commits=True)
    assert not report.waiting and tagged(server) == {"r1"}
    assert git(server, "rev-parse", "scp/run/r1^{commit}") == git(a, "rev-parse", "HEAD")


def test_only_run_tags_are_pushed(clone: Callable[[str], Path], server: Path, git: Git) -> None:
    a = clone("a")
    git(a, "tag", "v-private")
    record(a, "r1")
    opened(a).push()
    assert git(server, "tag", "-l").split() == ["scp/run/r1"]


# ---------------------------------------------------------------- kinds of repositories


def test_a_remote_with_a_working_tree_follows(clone: Callable[[str], Path], git: Git) -> None:
    a, b = clone("a"), clone("b")
    git(a, "remote", "add", "other", f"file://{b}")
    record(b, "b1")
    record(a, "a1")
    assert opened(a).sync("other").in_step
    assert set(ids(a)) == set(ids(b)) == {"a1", "b1"}
    assert (b / ".scp-ledger/ledger/runs/a1/run.json").exists()
    assert tip(a) == tip(b)
    record(b, "b2")
    assert opened(a).pull("other").received == Counts(runs=1)
    assert tip(a) == tip(b)


def test_two_remotes(clone: Callable[[str], Path], make_repo: MakeRepo, tmp_path: Path, git: Git) -> None:
    a, b = clone("a"), clone("b")
    second = make_repo(tmp_path / "second.git", commits=0, bare=True)
    for root in (a, b):
        git(root, "remote", "add", "second", str(second))
    record(a, "a1")
    record(b, "b1")
    opened(a).sync("origin")
    opened(b).sync("second")
    opened(a).sync("second")
    opened(b).sync("origin")
    opened(a).delete_run("b1")
    for _ in range(2):
        for root in (a, b):
            for remote in ("origin", "second"):
                opened(root).sync(remote)
    everywhere = (a, b, second, tmp_path / "server.git")
    assert [ids(root) for root in everywhere] == [["a1"]] * 4
    assert len({json.dumps(trees(root)) for root in everywhere}) == 1
    before = [tip(root) for root in (second, tmp_path / "server.git")]
    for remote in ("origin", "second", "origin"):
        opened(a).sync(remote)
    assert [tip(root) for root in (second, tmp_path / "server.git")] == before, (
        "no commit goes back and forth"
    )
    record(a, "a2")
    for remote in ("origin", "second"):
        assert opened(a).sync(remote).sent == Counts(runs=1)


@pytest.mark.untidy("a shallow clone has no history to check", skip=["fsck"])
def test_a_shallow_clone(clone: Callable[..., Path], server: Path, make_repo: MakeRepo, git: Git) -> None:
    a = clone("a")
    record(a, "a1", "a2", "a3")
    opened(a).sync()
    b = clone("b", "--depth", "1", "--no-single-branch", "--no-local")
    assert opened(b).ensure_ledger()
    assert set(ids(b)) == {"a1", "a2", "a3"}
    record(b, "b1")
    record(a, "a4")
    opened(a).sync()
    assert opened(b).sync().in_step
    opened(a).sync()
    assert set(ids(a)) == set(ids(b)) == set(ids(server)) == {"a1", "a2", "a3", "a4", "b1"}
    empty = make_repo(server.parent / "empty.git", commits=0, bare=True)
    git(b, "remote", "add", "empty", str(empty))
    assert opened(b).sync("empty").in_step
    assert set(ids(empty)) == set(ids(b))
    assert trees(empty) == trees(b)


def test_a_fresh_clone_starts_from_what_it_cloned(clone: Callable[[str], Path], git: Git) -> None:
    a = clone("a")
    record(a, "r1", "r2")
    opened(a).delete_run("r2")
    opened(a).sync()
    b = clone("b")
    assert opened(b).ensure_ledger() == b / ".scp-ledger"
    assert ids(b) == ["r1"] and trees(a) == trees(b)
    assert tip(a) == tip(b)


# ---------------------------------------------------------------- what people do with stock git


def test_a_persons_commit_and_note_are_merged(clone: Callable[[str], Path], server: Path, git: Git) -> None:
    a, b = clone("a"), clone("b")
    record(a, "r1", "r2")
    opened(a).sync()
    opened(b).sync()
    view = b / ".scp-ledger"
    git(view, "rm", "-q", "-r", "ledger/runs/r1")
    (view / "mine.txt").write_text("mine\n")
    git(view, "add", "-A")
    git(view, "commit", "-q", "-m", "a person's")
    line = json.dumps({"id": "msg_1", "ts": "2026-02-17T20:45:00.000000+00:00", "text": "said with git"})
    git(b, "notes", "--ref=scp-chat", "append", "-m", line, "scp/run/r2")
    git(b, "push", "-q", "origin", "scp-ledger", "refs/notes/scp-chat")
    record(a, "r3")
    report = opened(a).sync()
    assert report.in_step and report.received == Counts(messages=1)
    for root in (a, server):
        assert set(ids(root)) == {"r1", "r2", "r3"}, "absence deletes nothing"
    assert (a / ".scp-ledger/mine.txt").read_text() == "mine\n"
    assert "said with git" in git(a, "notes", "--ref=scp-chat", "show", "scp/run/r2")
    opened(b).sync()
    assert trees(a) == trees(b) == trees(server)
    assert not merges(git, server)


# ---------------------------------------------------------------- True and False


@pytest.mark.anyio
async def test_the_functions_say_whether_both_sides_are_in_step(
    clone: Callable[[str], Path], make_repo: MakeRepo, git: Git, caplog: pytest.LogCaptureFixture
) -> None:
    every = (scp_git.push_ledger, scp_git.pull_ledger, scp_git.push_chat, scp_git.pull_chat)
    caplog.set_level(logging.INFO)
    alone = make_repo()
    assert [await function(alone) for function in every] == [False] * 4, "there is no remote"
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    a = clone("a")
    assert await scp_git.pull_ledger(a) is True, "the remote has no ledger yet"
    assert [await function(a) for function in every] == [True] * 4, "there is nothing to do"
    record(a, "r1")
    assert [await function(a) for function in every] == [True] * 4
    git(a, "commit", "-q", "--allow-empty", "-m", "unpublished")
    record(a, "r2")
    assert [await function(a) for function in every] == [True] * 4, "only a tag waits"
    git(a, "remote", "set-url", "origin", "/nonexistent/there.git")
    assert [await function(a) for function in every] == [False] * 4, "it cannot be reached"
    assert await scp_git.push_ledger(a, remote="elsewhere") is False
    assert "/nonexistent/there.git" in caplog.text


def test_without_that_remote_the_report_says_so(make_repo: MakeRepo) -> None:
    root = make_repo()
    for report in (opened(root).push(), opened(root).pull("other")):
        assert isinstance(report, SyncReport) and not report.in_step
        assert {result.state for result in report.pushed} == {RefState.NO_REMOTE}
    assert not (root / ".scp-ledger").exists()


def test_a_remote_that_is_none_is_an_error(clone: Callable[[str], Path], git: Git, tmp_path: Path) -> None:
    a = clone("a")
    record(a, "r1")
    git(a, "remote", "add", "self", str(a))
    git(a, "remote", "add", "nowhere", str(tmp_path / "nowhere"))
    for remote, words in (("self", "itself"), ("nowhere", "no git repository")):
        with pytest.raises(RemoteError, match=words):
            opened(a).push(remote)


def test_a_later_format_is_refused(clone: Callable[[str], Path], server: Path, git: Git) -> None:
    a, b = clone("a"), clone("b")
    record(a, "r1")
    (a / ".scp-ledger/FORMAT").write_text("2\n")
    git(a / ".scp-ledger", "commit", "-qam", "later")
    git(a, "push", "-q", "origin", "scp-ledger")
    record(b, "r2")
    before = trees(b)
    with pytest.raises(scp_git.UnsupportedRepository, match="format '2'"):
        opened(b).sync()
    assert trees(b) == before


def test_runs_and_notes_of_both_sides_have_the_same_tags(clone: Callable[[str], Path], server: Path) -> None:
    """Both clones import the same log: one run, one anchor, one tag, wherever it is."""
    a, b = clone("a"), clone("b")
    fixed = {"started_at": "2026-02-17T20:45:00Z", "ended_at": "2026-02-17T20:46:00Z", "user": "ada"}
    record(a, "r1", **fixed)
    record(b, "r1", **fixed)
    for root in (a, b, a, b):
        opened(root).sync()
    assert ids(a) == ids(b) == ["r1"]
    repos = [pygit2.Repository(root) for root in (a, b, server)]
    assert len({str(repo.references[run_tag_ref("r1")].target) for repo in repos}) == 1
    assert trees(a) == trees(b) == trees(server)
    repository = opened(a)._repository
    with repository.odb() as odb:
        assert not list_notes(snapshot(repository, odb).notes)


def test_what_is_wrong_is_skipped_and_reported_and_the_rest_comes_in(
    clone: Callable[[str], Path], server: Path, git: Git, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = clone("a"), clone("b")
    record(a, "r1", "r2")
    opened(a).sync()
    ledger = f"{LEDGER_REF}:ledger/runs"
    link = git(server, "hash-object", "-w", "--stdin", input="/etc/passwd").strip()
    rows = git(server, "ls-tree", ledger) + f"120000 blob {link}\tr3\n"
    runs = git(server, "mktree", input=rows).strip()
    inner = git(server, "mktree", input=f"040000 tree {runs}\truns\n").strip()
    root = git(server, "mktree", input=f"040000 tree {inner}\tledger\n").strip()
    commit = git(server, "commit-tree", root, "-p", LEDGER_REF, "-m", "evil").strip()
    git(server, "update-ref", LEDGER_REF, commit)
    report = opened(b).pull()
    assert [(each.path, each.kept) for each in report.skipped] == [("ledger/runs/r3", False)]
    assert "link" in report.skipped[0].reason
    assert set(ids(b)) == {"r1", "r2"}
    assert not (b / ".scp-ledger/ledger/runs/r3").exists()


# ---------------------------------------------------------------- runs that wait, long histories, crowds


def test_a_run_recorded_before_the_first_commit(
    make_repo: MakeRepo, clone: Callable[[str], Path], server: Path, git: Git
) -> None:
    """Only the repository that recorded it anchors it; what was said meanwhile stays with the run."""
    a, b = make_repo(commits=0), clone("b")
    git(a, "remote", "add", "origin", str(server))
    record(a, "r1")
    opened(a).sync()
    opened(b).sync()
    opened(b).send_message("said before there was a tag", run_id="r1")
    opened(b).sync()
    git(a, "commit", "-q", "--allow-empty", "-m", "first")
    record(a, "r2")
    assert tagged(a) == {"r1", "r2"}
    for root in (a, b, a):
        assert opened(root).sync().in_step
    assert trees(a) == trees(b) == trees(server)
    for root in (a, b):
        (message,) = opened(root).list_messages(run_id="r1")
        assert message.text == "said before there was a tag"
    git(b, "fetch", "-q", str(a), "HEAD")
    record(b, "r3")
    assert tagged(b) == {"r1", "r2", "r3"}


@pytest.mark.parametrize("limit", [2, 500])
def test_histories_of_any_length(
    clone: Callable[[str], Path], server: Path, git: Git, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """A long one is fetched by libgit2, and goes to a path as one commit; the state is the same."""
    monkeypatch.setattr("scp_git.git.receive.MAX_COPIED", limit)
    a, b = clone("a"), clone("b")
    record(a, "a1", "a2", "a3", "a4")
    opened(a).delete_run("a4")
    opened(a).sync()
    assert trees(a) == trees(server) and tip(a) == tip(server)
    opened(a).sync()
    record(b, "b1", "b2", "b3", "b4")
    for root in (b, a):
        assert opened(root).sync().in_step
    assert set(ids(a)) == set(ids(b)) == set(ids(server)) == {"a1", "a2", "a3", "b1", "b2", "b3", "b4"}
    assert trees(a) == trees(b) == trees(server)
    count = git(server, "rev-list", "--count", LEDGER_REF).strip()
    assert (int(count) < 4) == (limit == 2)


def test_syncs_and_writes_of_one_clone_at_the_same_time(clone: Callable[[str], Path], server: Path) -> None:
    a, b = clone("a"), clone("b")
    failed: list[BaseException] = []

    def work(root: Path, name: str) -> None:
        try:
            store = opened(root)
            for n in range(6):
                store.record_run(Run(run_id=f"{name}-{n}", type="x"))
                assert store.sync().in_step
        except BaseException as exc:
            failed.append(exc)

    workers = [
        threading.Thread(target=work, args=(root, f"{root.name}{n}")) for root in (a, b) for n in (1, 2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed
    for root in (a, b, a):
        opened(root).sync()
    expected = {f"{name}{n}-{number}" for name in "ab" for n in (1, 2) for number in range(6)}
    assert set(ids(a)) == set(ids(b)) == set(ids(server)) == expected
    assert trees(a) == trees(b) == trees(server)


def test_a_server_that_stock_git_pushes_to_as_well(
    clone: Callable[[str], Path], server: Path, git: Git
) -> None:
    a, b = clone("a"), clone("b")
    record(a, "a1")
    opened(a).sync()
    opened(b).sync()
    record(b, "b1")
    git(b, "push", "-q", "origin", LEDGER_REF, "refs/tags/scp/run/*")
    record(a, "a2")
    assert opened(a).sync().in_step
    assert opened(b).sync().in_step
    assert set(ids(a)) == set(ids(b)) == set(ids(server)) == {"a1", "a2", "b1"}
    assert tip(a) == tip(b) == tip(server) and not merges(git, server)


def test_a_linked_working_tree_syncs_the_same_repository(clone: Callable[[str], Path], git: Git) -> None:
    a = clone("a")
    side = a.parent / "side"
    git(a, "worktree", "add", "-q", str(side), "-b", "side")
    record(side, "r1")
    assert opened(side).sync().in_step
    assert opened(a).sync().state(LEDGER_REF) is RefState.UP_TO_DATE


def test_store_and_async_store_sync_alike() -> None:
    def spelled(function: Callable[..., object]) -> str:
        found = inspect.signature(function).parameters.values()
        return str([str(each) for each in found])

    for name in ("push", "pull", "sync"):
        assert spelled(getattr(Store, name)) == spelled(getattr(scp_git.AsyncStore, name))
        assert inspect.iscoroutinefunction(getattr(scp_git.AsyncStore, name))
        assert list(inspect.signature(getattr(Store, name)).parameters)[1] == "remote"
