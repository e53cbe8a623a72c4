"""The view: whatever happens to ``.scp-ledger``, the next write makes it right, and files of others stay."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pygit2
import pytest

from scp_git import Run, Settings, StorageFailed, Store

Git = Callable[..., str]
MakeRepo = Callable[..., Path]
Watch = Callable[[Path], Path]
QUICK = Settings(durability="os", lock_timeout_s=10)


def opened(root: Path, number: int = 0) -> Store:
    """A store that knows nothing of what another one did: each number has a writer of its own."""
    return Store.open(root, QUICK.model_copy(update={"idle_s": 5.0 + number}))


def run(run_id: str) -> Run:
    return Run(run_id=run_id, type="apply", summary=f"summary of {run_id}")


def shown(root: Path) -> dict[str, bytes]:
    """The files of the view that the ledger branch explains, or could."""
    view = root / ".scp-ledger"
    return {
        str(path.relative_to(view)): path.read_bytes()
        for path in view.rglob("*")
        if path.is_file() and not path.is_symlink() and path != view / ".git"
    }


def committed(root: Path) -> dict[str, bytes]:
    """The files of the ledger branch."""
    repo = pygit2.Repository(str(root))
    found: dict[str, bytes] = {}

    def walk(tree: pygit2.Tree, prefix: str) -> None:
        for entry in tree:
            if isinstance(entry, pygit2.Tree):
                walk(entry, f"{prefix}{entry.name}/")
            elif isinstance(entry, pygit2.Blob):
                found[f"{prefix}{entry.name}"] = entry.data

    walk(repo.references["refs/heads/scp-ledger"].peel(pygit2.Tree), "")
    repo.free()
    return found


def check_view(root: Path, git: Git, *run_ids: str, others: tuple[str, ...] = ()) -> None:
    """The view shows the branch, these runs are on it, and stock git agrees."""
    view = root / ".scp-ledger"
    present = {path: data for path, data in shown(root).items() if path not in others}
    assert present == committed(root)
    assert {path.split("/")[2] for path in present if path.startswith("ledger/runs/")} >= set(run_ids)
    assert all((view / path).stat().st_mode & 0o777 == 0o644 for path in present)
    status = git(view, "status", "--porcelain", "--untracked-files=all").splitlines()
    assert sorted(status) == sorted(f"?? {path}" for path in others)
    assert git(view, "rev-parse", "--abbrev-ref", "HEAD").strip() == "scp-ledger"
    blocks = git(root, "worktree", "list", "--porcelain").split("\n\n")
    (block,) = [block for block in blocks if f"worktree {view.resolve()}" in block.splitlines()]
    assert "branch refs/heads/scp-ledger" in block.splitlines()
    assert "prunable" not in block
    assert git(root, "worktree", "prune", "-n", "-v") == ""


# ---------------------------------------------------------------- every state that a view may be in


def admin(root: Path) -> Path:
    return root / ".git" / "worktrees" / "scp-ledger"


def delete_view(root: Path, git: Git) -> None:
    shutil.rmtree(root / ".scp-ledger")


def delete_admin(root: Path, git: Git) -> None:
    shutil.rmtree(admin(root))


def delete_both(root: Path, git: Git) -> None:
    delete_view(root, git)
    shutil.rmtree(root / ".git" / "worktrees")


def delete_git_file(root: Path, git: Git) -> None:
    (root / ".scp-ledger" / ".git").unlink()


def garble_git_file(root: Path, git: Git) -> None:
    (root / ".scp-ledger" / ".git").write_text("gitdir: /nowhere/at/all\n")


def delete_index(root: Path, git: Git) -> None:
    (admin(root) / "index").unlink()


def empty_index(root: Path, git: Git) -> None:
    (admin(root) / "index").write_bytes(b"")


def garble_index(root: Path, git: Git) -> None:
    (admin(root) / "index").write_bytes(b"DIRC\0\0\0\2\xff\xff\xff\xff" + b"garbage" * 20)


def cut_index(root: Path, git: Git) -> None:
    content = (admin(root) / "index").read_bytes()
    (admin(root) / "index").write_bytes(content[: len(content) // 2])


def index_version_4(root: Path, git: Git) -> None:
    git(root / ".scp-ledger", "update-index", "--index-version", "4")


def index_in_two_files(root: Path, git: Git) -> None:
    git(root / ".scp-ledger", "update-index", "--split-index")


def unmerged_index(root: Path, git: Git) -> None:
    view = root / ".scp-ledger"
    oid = git(view, "rev-parse", "HEAD:FORMAT").strip()
    rows = "".join(f"100644 {oid} {stage}\tFORMAT\n" for stage in (1, 2, 3))
    git(view, "update-index", "--index-info", input=f"0 {'0' * 40}\tFORMAT\n{rows}")


def stale_index_lock(root: Path, git: Git) -> None:
    lock = admin(root) / "index.lock"
    lock.write_bytes(b"")
    os.utime(lock, (time.time() - 7300, time.time() - 7300))


def delete_head(root: Path, git: Git) -> None:
    (admin(root) / "HEAD").unlink()


def empty_head(root: Path, git: Git) -> None:
    (admin(root) / "HEAD").write_text("")


def garble_head(root: Path, git: Git) -> None:
    (admin(root) / "HEAD").write_bytes(b"\xff\0garbage")


def detach(root: Path, git: Git) -> None:
    git(root / ".scp-ledger", "checkout", "-q", "--detach", "HEAD~1")


def check_out_another_branch(root: Path, git: Git) -> None:
    git(root / ".scp-ledger", "checkout", "-q", "-B", "other", "main")
    assert not (root / ".scp-ledger" / "ledger").exists()


def delete_gitdir(root: Path, git: Git) -> None:
    (admin(root) / "gitdir").unlink()


def garble_commondir(root: Path, git: Git) -> None:
    (admin(root) / "commondir").write_text("../../../elsewhere\n")


def empty_folder_in_the_way(root: Path, git: Git) -> None:
    delete_both(root, git)
    (root / ".scp-ledger").mkdir()


def half_made_admin(root: Path, git: Git) -> None:
    """What libgit2's ``add_worktree`` leaves when the folder exists."""
    delete_both(root, git)
    admin(root).mkdir(parents=True)
    (admin(root) / "HEAD").write_text("")


def locked_and_gone(root: Path, git: Git) -> None:
    (admin(root) / "locked").write_text("on a disk that is away\n")
    delete_view(root, git)


def delete_branch(root: Path, git: Git) -> None:
    git(root, "update-ref", "-d", "refs/heads/scp-ledger")


def pruned(root: Path, git: Git) -> None:
    delete_view(root, git)
    git(root, "worktree", "prune", "--expire=now")


def added_by_stock_git(root: Path, git: Git) -> None:
    remove_worktrees(root, git)
    git(root, "worktree", "add", "-q", ".scp-ledger", "scp-ledger")
    assert not admin(root).exists(), "git gives it a name of its own"


def added_by_stock_git_under_another_name(root: Path, git: Git) -> None:
    remove_worktrees(root, git)
    git(root, "worktree", "add", "-q", "some-name", "scp-ledger")
    git(root, "worktree", "move", "some-name", ".scp-ledger")
    assert (root / ".git" / "worktrees" / "some-name").exists()


def added_by_libgit2_under_the_name_with_a_dot(root: Path, git: Git) -> None:
    remove_worktrees(root, git)
    repo = pygit2.Repository(str(root))
    branch = repo.references["refs/heads/scp-ledger"]
    repo.add_worktree(".scp-ledger", str(root / ".scp-ledger"), branch)
    repo.free()
    assert (root / ".git" / "worktrees" / ".scp-ledger").exists()


def remove_worktrees(root: Path, git: Git) -> None:
    shutil.rmtree(root / ".scp-ledger")
    git(root, "worktree", "prune", "--expire=now")


STATES: list[Callable[[Path, Git], None]] = [
    *(delete_view, delete_admin, delete_both, delete_git_file, garble_git_file, pruned),
    *(delete_index, empty_index, garble_index, cut_index, index_version_4, index_in_two_files),
    *(unmerged_index, stale_index_lock, delete_head, empty_head, garble_head, detach),
    *(check_out_another_branch, delete_gitdir, garble_commondir, empty_folder_in_the_way, half_made_admin),
    *(locked_and_gone, delete_branch, added_by_stock_git, added_by_stock_git_under_another_name),
    added_by_libgit2_under_the_name_with_a_dot,
]


@pytest.mark.referee
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
@pytest.mark.parametrize("by", ["ensure_ledger", "record_run"])
def test_the_view_is_healed(repo: Path, git: Git, state: Callable[[Path, Git], None], by: str) -> None:
    """First by the store that made it, then by one that sees it for the first time."""
    store = opened(repo)
    recorded = [store.record_run(run(f"r{n}"), [{"type": "x"}]) for n in range(3)]
    for number in (0, 1):
        state(repo, git)
        store = opened(repo, number)
        if by == "ensure_ledger":
            assert store.ensure_ledger() == repo / ".scp-ledger"
        else:
            recorded.append(store.record_run(run(f"new-{number}")))
        check_view(repo, git, *recorded)


@pytest.mark.referee
@pytest.mark.parametrize("by", ["ensure_ledger", "record_run"])
def test_a_project_that_was_moved(
    make_repo: MakeRepo, git: Git, watch: Watch, tmp_path: Path, by: str
) -> None:
    root = make_repo(tmp_path / "before")
    opened(root).record_run(run("r1"))
    moved = watch(tmp_path / "after")
    root.rename(moved)
    store = opened(moved)
    if by == "ensure_ledger":
        assert store.ensure_ledger() == moved / ".scp-ledger"
    else:
        store.record_run(run("r2"))
    check_view(moved, git, "r1")


@pytest.mark.referee
def test_a_copy_of_a_project_leaves_the_first_alone(
    repo: Path, git: Git, watch: Watch, tmp_path: Path
) -> None:
    opened(repo).record_run(run("r1"))
    copy = watch(Path(shutil.copytree(repo, tmp_path / "copy", symlinks=True)))
    opened(copy).record_run(run("in-the-copy"))
    check_view(copy, git, "r1", "in-the-copy")
    check_view(repo, git, "r1")
    opened(repo).record_run(run("r2"))
    check_view(repo, git, "r1", "r2")
    check_view(copy, git, "r1", "in-the-copy")


ENSURE = """
import sys
from scp_git import Run, Settings, Store
store = Store.open(sys.argv[1], Settings(durability="os"))
sys.stdin.readline()
print(store.ensure_ledger())
"""


@pytest.mark.referee
@pytest.mark.parametrize("state", ["nothing there yet", "deleted"])
def test_four_processes_at_once(repo: Path, git: Git, state: str) -> None:
    if state == "deleted":
        opened(repo).record_run(run("r1"))
        delete_both(repo, git)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", ENSURE, str(repo)]
    workers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    time.sleep(0.5)
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    answers = [worker.communicate(timeout=30) for worker in workers]
    assert answers == [(f"{repo / '.scp-ledger'}\n", "")] * 4
    check_view(repo, git)
    assert (repo / ".gitignore").read_bytes().count(b".scp-ledger/") == 1


@pytest.mark.referee
def test_ensure_ledger_is_idempotent(repo: Path, git: Git) -> None:
    store = opened(repo)
    assert store.ensure_ledger() == repo / ".scp-ledger"
    check_view(repo, git)
    tip = git(repo, "rev-parse", "scp-ledger")
    for number in range(3):
        assert opened(repo, number).ensure_ledger() == repo / ".scp-ledger"
    assert git(repo, "rev-parse", "scp-ledger") == tip
    assert git(repo, "show", "scp-ledger:FORMAT") == "1\n"


@pytest.mark.referee
def test_stock_git_may_use_the_view_meanwhile(repo: Path, git: Git) -> None:
    """It rewrites the index in its own way, and ours takes that over."""
    store, view = opened(repo), repo / ".scp-ledger"
    for n in range(6):
        store.record_run(run(f"r{n}"))
        (view / "FORMAT").touch()
        git(view, "status")
        git(view, "update-index", "--refresh")
        check_view(repo, git, f"r{n}")
    git(view, "gc", "-q")
    store.record_run(run("after"))
    check_view(repo, git, "r0", "after")
    git(view, "checkout", "-q", "HEAD", "--", ".")
    git(view, "reset", "-q", "--hard")
    store.delete_run("r0")
    check_view(repo, git, "after")


@pytest.mark.referee
@pytest.mark.parametrize(
    "config",
    [{"core.autocrlf": "true"}, {"core.eol": "crlf"}, {"core.fileMode": "false"}, {"index.version": "4"}],
)
def test_settings_of_git_that_change_files(repo: Path, git: Git, config: dict[str, str]) -> None:
    for key, value in config.items():
        git(repo, "config", key, value)
    store = opened(repo)
    for n in range(3):
        store.record_run(run(f"r{n}"), [{"type": "x", "detail": {"text": "a\r\nb"}}])
        git(repo / ".scp-ledger", "status")
    check_view(repo, git, "r0", "r1", "r2")


# ---------------------------------------------------------------- files that somebody changed


def edit(view: Path) -> None:
    (view / "ledger/runs/r0/run.json").write_text("edited\n")


def delete_file(view: Path) -> None:
    (view / "ledger/runs/r1/events.jsonl").unlink()


def delete_folder(view: Path) -> None:
    shutil.rmtree(view / "ledger")


def make_executable(view: Path) -> None:
    (view / "ledger/runs/r0/run.json").chmod(0o755)


def replace_by_symlink(view: Path) -> None:
    path = view / "ledger/runs/r0/run.json"
    path.unlink()
    path.symlink_to(view / "FORMAT")


def replace_by_empty_folder(view: Path) -> None:
    path = view / "ledger/runs/r0/run.json"
    path.unlink()
    path.mkdir()


def replace_by_fifo(view: Path) -> None:
    path = view / "ledger/runs/r0/run.json"
    path.unlink()
    os.mkfifo(path)


def replace_folder_by_file(view: Path) -> None:
    shutil.rmtree(view / "ledger")
    (view / "ledger").write_text("a file\n")


def touch(view: Path) -> None:
    for path in view.rglob("*.json"):
        os.utime(path, (1, 1))


def stage_a_deletion(view: Path) -> None:
    subprocess.run(["git", "-C", str(view), "rm", "-rq", "ledger/runs/r1"], check=True)


CHANGES = [
    *(edit, delete_file, delete_folder, make_executable, replace_by_symlink, replace_by_empty_folder),
    *(replace_by_fifo, replace_folder_by_file, touch, stage_a_deletion),
]


@pytest.mark.referee
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_ensure_ledger_puts_changed_files_back(repo: Path, git: Git, change: Callable[[Path], None]) -> None:
    store = opened(repo)
    for n in range(2):
        store.record_run(run(f"r{n}"), [{"type": "x"}])
    for number in (0, 1):
        change(repo / ".scp-ledger")
        assert opened(repo, number).ensure_ledger() == repo / ".scp-ledger"
        check_view(repo, git, "r0", "r1")
    assert (repo / ".scp-ledger" / "FORMAT").read_text() == "1\n"


@pytest.mark.referee
@pytest.mark.untidy("a person has files in the view", skip=["view"])
def test_untracked_files_of_a_person_survive(repo: Path, git: Git) -> None:
    store, view = opened(repo), repo / ".scp-ledger"
    store.record_run(run("r0"))
    store.record_run(run("r1"))
    mine = ("notes.txt", "ledger/runs/r0/mine.txt", "own/folder/file")
    for path in mine:
        (view / path).parent.mkdir(parents=True, exist_ok=True)
        (view / path).write_text("mine\n")
    store.record_run(run("r2"))
    store.ensure_ledger()
    opened(repo, 1).ensure_ledger()
    store.delete_run("r0")
    check_view(repo, git, "r1", "r2", others=mine)
    shutil.rmtree(admin(repo))
    store.ensure_ledger()
    check_view(repo, git, "r1", "r2", others=mine)
    assert [(view / path).read_text() for path in mine] == ["mine\n"] * 3


@pytest.mark.untidy("a file of somebody is staged in the view", skip=["view"])
@pytest.mark.referee
@pytest.mark.parametrize("by", ["ensure_ledger", "record_run"])
def test_a_file_that_a_person_staged_is_not_removed(repo: Path, git: Git, by: str) -> None:
    store, view = opened(repo), repo / ".scp-ledger"
    store.record_run(run("r0"))
    (view / "draft.txt").write_text("an hour's work\n")
    git(view, "add", "draft.txt")
    git(repo, "update-ref", "-d", "refs/heads/scp-ledger")  # the whole view will be compared
    store = opened(repo, 1)
    if by == "ensure_ledger":
        store.ensure_ledger()
    else:
        store.record_run(run("r1"))
    assert (view / "draft.txt").read_text() == "an hour's work\n"
    present = {path: data for path, data in shown(repo).items() if path != "draft.txt"}
    assert present == committed(repo)


@pytest.mark.untidy("a folder of somebody stands where a file of ours belongs", skip=["view"])
def test_a_persons_folder_in_the_way_of_one_file_stops_only_that_file(repo: Path) -> None:
    store, view = opened(repo), repo / ".scp-ledger"
    store.ensure_ledger()
    theirs = view / "ledger" / "runs" / "r5" / "run.json" / "file"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs\n")
    for n in range(4, 7):
        store.record_run(run(f"r{n}"), [{"type": "x"}])
    assert {listed.run_id for listed in store.list_runs()} == {"r4", "r5", "r6"}
    assert theirs.read_text() == "theirs\n"
    expected = committed(repo)
    del expected["ledger/runs/r5/run.json"]
    found = shown(repo)
    assert found.pop("ledger/runs/r5/run.json/file") == b"theirs\n"
    assert found == expected


# ---------------------------------------------------------------- what is not ours


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder elsewhere that looks like a view."""
    folder = tmp_path / "outside"
    for path in ("FORMAT", "runs/r0/run.json", "ledger/runs/r0/run.json", ".git"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("outside\n")
    return folder


def content(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def strangers(root: Path, outside: Path, kind: str) -> None:
    """Put something that is not ours where the view belongs."""
    view = root / ".scp-ledger"
    if kind == "symlink":
        view.symlink_to(outside)
    elif kind == "dangling symlink":
        view.symlink_to(outside / "none")
    elif kind == "file":
        view.write_text("theirs\n")
    elif kind == "repository":
        pygit2.init_repository(view).free()
        (view / "FORMAT").write_text("theirs\n")
    elif kind == "worktree of another repository":
        pygit2.init_repository(outside.parent / "other").free()
        other = outside.parent / "other"
        repo = pygit2.Repository(str(other))
        ada = pygit2.Signature("Ada", "ada@example.org")
        repo.create_commit("HEAD", ada, ada, "x", repo.TreeBuilder().write(), [])
        repo.add_worktree("theirs", str(view))
        repo.free()
        (view / "FORMAT").write_text("theirs\n")


KINDS = ["symlink", "dangling symlink", "file", "repository", "worktree of another repository"]


@pytest.mark.untidy("the view is not ours", skip=["view", "status"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_ours_is_neither_followed_nor_destroyed(repo: Path, outside: Path, kind: str) -> None:
    strangers(repo, outside, kind)
    before, elsewhere = content(repo / ".scp-ledger"), content(outside.parent)
    elsewhere = {path: data for path, data in elsewhere.items() if path.startswith(("outside/", "other/"))}
    store = opened(repo)
    assert store.record_run(run("r0"), [{"type": "x"}]) == "r0"
    with pytest.raises(StorageFailed, match=r"\.scp-ledger"):
        store.ensure_ledger()
    assert store.record_run(run("r1")) == "r1"
    assert {listed.run_id for listed in store.list_runs()} == {"r0", "r1"}
    assert content(repo / ".scp-ledger") == before
    after = content(outside.parent)
    assert {path: after.get(path) for path in elsewhere} == elsewhere


@pytest.mark.referee
def test_once_it_is_taken_away_the_view_is_made(repo: Path, outside: Path, git: Git) -> None:
    (repo / ".scp-ledger").symlink_to(outside)
    store = opened(repo)
    store.record_run(run("r0"))
    (repo / ".scp-ledger").unlink()
    store.record_run(run("r1"))
    check_view(repo, git, "r0", "r1")


@pytest.mark.referee
@pytest.mark.untidy("the view is a symbolic link", skip=["view", "status", "worktrees"])
def test_a_view_that_became_a_symlink_to_itself_elsewhere(repo: Path, git: Git, tmp_path: Path) -> None:
    """The same files with the same inodes: only the link tells."""
    store, view = opened(repo), repo / ".scp-ledger"
    store.record_run(run("r0"))
    view.rename(tmp_path / "aside")
    view.symlink_to(tmp_path / "aside")
    before = content(tmp_path / "aside")
    store.record_run(run("r1"))
    with pytest.raises(StorageFailed, match="symbolic link"):
        store.ensure_ledger()
    assert content(tmp_path / "aside") == before
    view.unlink()
    store.record_run(run("r2"))
    check_view(repo, git, "r0", "r1", "r2")


@pytest.mark.referee
@pytest.mark.parametrize("place", ["ledger", "ledger/runs", "ledger/runs/r0"])
@pytest.mark.parametrize("by", ["ensure_ledger", "record_run", "delete_run"])
def test_a_symlinked_folder_in_the_view_is_not_followed(
    repo: Path, outside: Path, git: Git, place: str, by: str
) -> None:
    store, view = opened(repo), repo / ".scp-ledger"
    store.record_run(run("r0"))
    store.record_run(run("r1"))
    inside = {"ledger": "", "ledger/runs": "runs", "ledger/runs/r0": "runs/r0"}[place]
    shutil.rmtree(view / place)
    (view / place).symlink_to(outside / inside)
    before = content(outside)
    if by == "record_run":
        store.record_run(run("r2"))
    elif by == "delete_run":
        store.delete_run("r0")
    assert content(outside) == before
    store.ensure_ledger()
    assert content(outside) == before
    if (by, place) == ("delete_run", "ledger/runs/r0"):
        (view / place).unlink()  # no file of ours is below it any more, so the link is somebody's own
    check_view(repo, git, "r1")


# ---------------------------------------------------------------- somebody holds the index


@pytest.mark.referee
def test_a_held_index_delays_nothing_and_is_made_up(repo: Path, git: Git) -> None:
    store = opened(repo)
    store.record_run(run("r0"))
    lock = admin(repo) / "index.lock"
    lock.write_text("an editor of somebody")
    os.utime(lock, (time.time() - 1800, time.time() - 1800))
    before = shown(repo)
    began = time.monotonic()
    for n in range(1, 4):
        store.record_run(run(f"r{n}"))
    assert time.monotonic() - began < 3, "nobody waits for the lock of the view"
    assert {listed.run_id for listed in store.list_runs()} == {"r0", "r1", "r2", "r3"}
    assert shown(repo) == before
    assert lock.read_text() == "an editor of somebody"
    assert not [name for name in os.listdir(repo / ".git" / "scp") if name.startswith("lock-")]
    lock.unlink()
    store.record_run(run("r4"))
    check_view(repo, git, "r0", "r1", "r2", "r3", "r4")


@pytest.mark.referee
def test_a_held_index_is_made_up_by_another_process_too(repo: Path, git: Git) -> None:
    opened(repo).record_run(run("r0"))
    lock = admin(repo) / "index.lock"
    lock.write_text("")
    opened(repo).record_run(run("r1"))
    lock.unlink()
    opened(repo, 1).record_run(run("r2"))
    check_view(repo, git, "r0", "r1", "r2")


# ---------------------------------------------------------------- .gitignore


def ignored(root: Path, git: Git) -> None:
    """Stock git ignores the view and sees no change but ``.gitignore``."""
    git(root, "check-ignore", "-q", ".scp-ledger/")
    status = git(root, "status", "--porcelain", "--untracked-files=all").splitlines()
    assert [line for line in status if not line.endswith(" .gitignore")] == []


ADDED = {
    "absent": (None, b".scp-ledger/\n"),
    "empty": (b"", b".scp-ledger/\n"),
    "last newline": (b"*.o\n", b"*.o\n.scp-ledger/\n"),
    "no last newline": (b"*.o", b"*.o\n.scp-ledger/\n"),
    "CRLF": (b"*.o\r\nx\r\n", b"*.o\r\nx\r\n.scp-ledger/\r\n"),
    "CRLF without the last": (b"*.o\r\nx", b"*.o\r\nx\r\n.scp-ledger/\r\n"),
    "a comment": (b"# .scp-ledger/\n", b"# .scp-ledger/\n.scp-ledger/\n"),
    "a leading blank": (b" .scp-ledger/\n", b" .scp-ledger/\n.scp-ledger/\n"),
    "a longer name": (b"x.scp-ledger/\n", b"x.scp-ledger/\n.scp-ledger/\n"),
    "taken back later": (b".scp-ledger/\n!.scp-ledger/\n", b".scp-ledger/\n!.scp-ledger/\n.scp-ledger/\n"),
    "taken back later, glued": (b".*\n!.scp-ledger", b".*\n!.scp-ledger\n.scp-ledger/\n"),
    "not UTF-8": (b"caf\xe9/\n", b"caf\xe9/\n.scp-ledger/\n"),
    "large": (b"# x\n" * 5000, b"# x\n" * 5000 + b".scp-ledger/\n"),
}


@pytest.mark.referee
@pytest.mark.parametrize("name", ADDED)
def test_the_rule_is_added_once(repo: Path, git: Git, name: str) -> None:
    before, after = ADDED[name]
    if before is not None:
        (repo / ".gitignore").write_bytes(before)
        (repo / ".gitignore").chmod(0o600)
    for number in range(2):
        store = opened(repo, number)
        store.record_run(run(f"r{number}"))
        store.ensure_ledger()
    assert (repo / ".gitignore").read_bytes() == after
    if before is not None:
        assert (repo / ".gitignore").stat().st_mode & 0o777 == 0o600
    ignored(repo, git)


COVERED = [
    *(b".scp-ledger/\n", b".scp-ledger\n", b"/.scp-ledger/\n", b"/.scp-ledger", b"**/.scp-ledger/\n"),
    *(b".scp-*\n", b".*\n!.gitignore\n", b"*\n", b".scp-ledger/  \n", b".scp-ledger/\r\n"),
    b"\xef\xbb\xbf.scp-ledger/\n",
    b"!.scp-ledger/\n.scp-ledger/\n",
]


@pytest.mark.referee
@pytest.mark.parametrize("rule", COVERED)
def test_a_rule_that_covers_it_already_is_respected(repo: Path, git: Git, rule: bytes) -> None:
    (repo / ".gitignore").write_bytes(rule)
    opened(repo).record_run(run("r0"))
    opened(repo, 1).ensure_ledger()
    assert (repo / ".gitignore").read_bytes() == rule
    ignored(repo, git)


@pytest.mark.referee
@pytest.mark.parametrize("place", ["info/exclude", "core.excludesFile"])
def test_a_rule_elsewhere_is_respected(repo: Path, git: Git, home: Path, place: str) -> None:
    if place == "info/exclude":
        (repo / ".git" / "info").mkdir(exist_ok=True)
        (repo / ".git" / "info" / "exclude").write_text("/.scp-ledger\n")
    else:
        (home / "my-ignores").write_text(".scp-ledger\n")
        git(repo, "config", "--global", "core.excludesFile", str(home / "my-ignores"))
    opened(repo).ensure_ledger()
    assert not (repo / ".gitignore").exists()
    ignored(repo, git)


def unwritable(kind: str, root: Path, outside: Path) -> Path:
    """Something that is no file to append to in the place of ``.gitignore``."""
    path = root / ".gitignore"
    if kind == "a folder":
        path.mkdir()
        (path / "keep").write_text("kept\n")
    elif kind == "a symlink":
        path.symlink_to(outside / "FORMAT")
    elif kind == "a symlink to a file with the rule":
        (outside / "FORMAT").write_text(".scp-ledger/\n")
        path.symlink_to(outside / "FORMAT")
    elif kind == "a dangling symlink":
        path.symlink_to(outside / "none")
    return path


UNWRITABLE = ["a folder", "a symlink", "a symlink to a file with the rule", "a dangling symlink"]


@pytest.mark.referee
@pytest.mark.untidy("something odd is called .gitignore", skip=["status"])
@pytest.mark.parametrize("kind", UNWRITABLE)
def test_where_gitignore_cannot_be_written_info_exclude_serves(
    repo: Path, git: Git, outside: Path, kind: str
) -> None:
    unwritable(kind, repo, outside)
    before = content(outside), content(repo / ".gitignore")
    for number in range(2):
        opened(repo, number).record_run(run(f"r{number}"))
        opened(repo, number).ensure_ledger()
    assert (content(outside), content(repo / ".gitignore")) == before
    exclude = (repo / ".git" / "info" / "exclude").read_text().splitlines()
    assert exclude.count(".scp-ledger/") == 1
    status = git(repo, "status", "--porcelain", "--untracked-files=all").splitlines()
    assert not [line for line in status if ".scp-ledger" in line]
    check_view(repo, git, "r0", "r1")


@pytest.mark.referee
def test_the_users_branch_index_and_files_stay_as_they_are(repo: Path, git: Git) -> None:
    (repo / "file.txt").write_text("work in progress\n")
    (repo / "new.txt").write_text("staged\n")
    git(repo, "add", "new.txt")
    status, head = git(repo, "status", "--porcelain"), git(repo, "rev-parse", "HEAD", "--abbrev-ref", "HEAD")
    index = (repo / ".git" / "index").read_bytes()
    store = opened(repo)
    for n in range(3):
        store.record_run(run(f"r{n}"))
    store.delete_run("r1")
    store.ensure_ledger()
    assert (repo / ".git" / "index").read_bytes() == index
    assert git(repo, "rev-parse", "HEAD", "--abbrev-ref", "HEAD") == head
    assert git(repo, "status", "--porcelain") == status + "?? .gitignore\n"
    assert (repo / "file.txt").read_text() == "work in progress\n"
    git(repo, "reset", "-q", "--hard")
