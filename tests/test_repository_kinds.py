"""Every kind of repository is either served as it is, or refused with a clear error and left untouched."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pygit2
import pytest
from pygit2.enums import ConfigLevel

from scp_git import NotARepository, Run, Settings, Store, UnsupportedRepository
from scp_git.git.handle import Repository

Git = Callable[..., str]
MakeRepo = Callable[..., Path]
Watch = Callable[[Path], Path]
QUICK = Settings(durability="os")


def record(root: Path, run_id: str) -> Store:
    store = Store.open(root, QUICK)
    assert store.record_run(Run(run_id=run_id, type="t"), [{"type": "x"}]) == run_id
    assert {run.run_id for run in store.list_runs(n=100)} >= {run_id}
    return store


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(path: Path, kind: type[Exception], match: str) -> None:
    """Opening is refused with that error, which names the path; nothing is written anywhere near."""
    before = files(path) if path.is_dir() else {}
    with pytest.raises(kind, match=match) as caught:
        Store.open(path)
    assert str(path) in str(caught.value)
    assert (files(path) if path.is_dir() else {}) == before


# ---------------------------------------------------------------- paths that are none


def test_a_folder_inside_a_repository_is_refused_with_its_top(repo: Path) -> None:
    (repo / "src" / "deep").mkdir(parents=True)
    refused(repo / "src", NotARepository, rf"is inside a repository; pass its top, {repo}")
    refused(repo / "src" / "deep", NotARepository, rf"pass its top, {repo}")


def test_the_git_folder_itself_is_refused(repo: Path) -> None:
    refused(repo / ".git", NotARepository, rf"pass its top, {repo}")
    refused(repo / ".git" / "refs", NotARepository, rf"pass its top, {repo}")


def test_the_view_is_not_a_root(repo: Path) -> None:
    """It is a working tree, so it may be opened; but its runs are those of the one ledger."""
    record(repo, "r1")
    store = Store.open(repo / ".scp-ledger", QUICK)
    assert store.ensure_ledger() == repo / ".scp-ledger"
    assert not (repo / ".scp-ledger" / ".scp-ledger").exists()
    assert [run.run_id for run in store.list_runs()] == ["r1"]


@pytest.mark.parametrize("kind", ["folder", "missing", "file", "empty .git"])
def test_what_is_no_repository_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "place"
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("text\n")
    elif kind == "empty .git":
        (path / ".git").mkdir(parents=True)
    match = "does not exist" if kind == "missing" else "is not a git repository"
    refused(path, NotARepository, match)


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/.", "{}/../{name}", "relative"])
def test_any_spelling_of_the_top_will_do(repo: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    monkeypatch.chdir(repo.parent)
    text = repo.name if spelling == "relative" else spelling.format(repo, name=repo.name)
    store = Store.open(text, QUICK)
    store.record_run(Run(run_id="r", type="t"))
    assert store.ensure_ledger() == repo / ".scp-ledger"


def test_a_symlink_to_the_top_will_do(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(repo)
    record(tmp_path / "link", "r1")
    assert {run.run_id for run in record(repo, "r2").list_runs()} == {"r1", "r2"}


@pytest.mark.parametrize("name", ["with blanks", "ünï✓", "quote'\"$(x)", "-dash", "line\nbreak"])
def test_odd_names_of_the_folder(make_repo: MakeRepo, tmp_path: Path, name: str) -> None:
    root = make_repo(tmp_path / name)
    record(root, "r1")
    assert Store.open(root, QUICK).ensure_ledger() == root / ".scp-ledger"


@pytest.mark.referee
def test_a_path_that_is_not_utf8(git: Git, tmp_path: Path, watch: Watch) -> None:
    root = watch(tmp_path / os.fsdecode(b"caf\xe9"))
    root.mkdir()
    git(root, "init", "-q")
    git(root, "commit", "-q", "--allow-empty", "-m", "x")
    record(root, "r1")
    assert git(root, "tag", "-l", "scp/run/*").split() == ["scp/run/r1"]
    assert (root / ".scp-ledger" / "ledger" / "runs" / "r1" / "run.json").exists()


def test_git_dir_in_the_environment_is_ignored(make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = make_repo(), make_repo()
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / "index"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(one))
    record(one, "r1")
    assert (one / ".scp-ledger").is_dir() and not (other / ".scp-ledger").exists()
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name)


# ---------------------------------------------------------------- kinds that are served


@pytest.mark.referee
def test_a_bare_repository_has_no_view(make_repo: MakeRepo, git: Git, tmp_path: Path) -> None:
    root = make_repo(tmp_path / "bare.git", bare=True)
    store = record(root, "r1")
    assert store.ensure_ledger() is None
    assert not (root / ".scp-ledger").exists() and not (root / "worktrees").exists()
    assert not (tmp_path / ".scp-ledger").exists() and not (root / ".gitignore").exists()
    assert git(root, "rev-parse", "scp/run/r1^{commit}") == git(root, "rev-parse", "main")
    refused(root / "refs", NotARepository, "bare.git")


@pytest.mark.referee
def test_a_linked_worktree_shares_the_ledger_of_the_main_one(
    make_repo: MakeRepo, git: Git, watch: Watch, tmp_path: Path
) -> None:
    root = make_repo(commits=2)
    git(root, "worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"), "HEAD~1")
    linked = watch(tmp_path / "linked")
    store = Store.open(linked, QUICK)
    assert store.ensure_ledger() == root / ".scp-ledger"
    record(linked, "in-linked")
    record(root, "in-main")
    assert not (linked / ".scp-ledger").exists()
    assert not (linked / ".gitignore").exists()
    runs = {run.run_id: run.code_ref for run in store.list_runs()}
    side, main = git(linked, "rev-parse", "HEAD").strip(), git(root, "rev-parse", "HEAD").strip()
    assert runs == {"in-linked": side, "in-main": main} and side != main
    assert git(root, "rev-parse", "scp/run/in-linked^{commit}").strip() == side
    git(linked, "checkout", "-q", "--detach", "HEAD")
    git(linked, "commit", "-q", "--allow-empty", "-m", "detached")
    record(linked, "detached")
    run = store.get_run("detached")
    assert run is not None and run.code_ref == git(linked, "rev-parse", "HEAD").strip()


@pytest.mark.referee
def test_a_linked_worktree_of_a_bare_repository_has_no_view(
    make_repo: MakeRepo, git: Git, tmp_path: Path, watch: Watch
) -> None:
    root = make_repo(tmp_path / "bare.git", bare=True)
    git(root, "worktree", "add", "-q", str(tmp_path / "linked"), "main")
    linked = watch(tmp_path / "linked")
    assert record(linked, "r1").ensure_ledger() is None
    assert [run.run_id for run in Store.open(root, QUICK).list_runs()] == ["r1"]


@pytest.mark.referee
def test_a_submodule_has_a_ledger_of_its_own(
    make_repo: MakeRepo, git: Git, tmp_path: Path, watch: Watch
) -> None:
    inner, outer = make_repo(tmp_path / "inner"), make_repo(tmp_path / "outer")
    git(outer, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner), "sub")
    git(outer, "commit", "-q", "-m", "with a submodule")
    sub = watch(outer / "sub")
    record(sub, "in-sub")
    record(outer, "in-outer")
    assert Store.open(sub, QUICK).ensure_ledger() == sub / ".scp-ledger"
    assert [run.run_id for run in Store.open(sub).list_runs()] == ["in-sub"]
    assert [run.run_id for run in Store.open(outer).list_runs()] == ["in-outer"]
    assert git(sub / ".scp-ledger", "status", "--porcelain") == ""
    assert git(outer, "submodule", "status").split()[0] == git(sub, "rev-parse", "HEAD").strip()
    git(sub, "add", ".gitignore")
    git(sub, "commit", "-q", "-m", "ignore")
    git(outer, "commit", "-q", "-am", "sub")


@pytest.mark.referee
def test_a_git_folder_that_lies_elsewhere(git: Git, tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "place" / "work").mkdir(parents=True)
    work, store_dir = watch(tmp_path / "place" / "work"), tmp_path / "gits" / "repo.git"
    store_dir.parent.mkdir()
    git(work, "init", "-q", f"--separate-git-dir={store_dir}", ".")
    git(work, "commit", "-q", "--allow-empty", "-m", "x")
    store = record(work, "r1")
    assert store.ensure_ledger() == work / ".scp-ledger"
    assert sorted(os.listdir(tmp_path / "gits")) == ["repo.git"], "nothing is put beside the git folder"
    assert git(work / ".scp-ledger", "status", "--porcelain") == ""


@pytest.mark.referee
def test_a_working_tree_set_by_core_worktree(git: Git, tmp_path: Path) -> None:
    """As with ``git --git-dir``, which some keep their home folder with."""
    git(tmp_path, "init", "-q", "--bare", "dots.git")
    (tmp_path / "home").mkdir()
    git(tmp_path / "dots.git", "config", "core.bare", "false")
    git(tmp_path / "dots.git", "config", "core.worktree", str(tmp_path / "home"))
    with pytest.raises(NotARepository):
        Store.open(tmp_path / "home")
    assert os.listdir(tmp_path / "home") == []


@pytest.mark.referee
def test_a_shallow_clone(make_repo: MakeRepo, git: Git, tmp_path: Path, watch: Watch) -> None:
    root = make_repo(commits=5)
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{root}", "shallow")
    shallow = watch(tmp_path / "shallow")
    store = record(shallow, "r1")
    assert store.ensure_ledger() == shallow / ".scp-ledger"
    assert git(shallow, "rev-list", "--count", "HEAD").strip() == "1"
    old = git(root, "rev-parse", "HEAD~3").strip()
    store.record_run(Run(run_id="old", type="t", code_ref=old))
    assert git(shallow, "rev-parse", "scp/run/old^{commit}") == git(shallow, "rev-parse", "HEAD")
    stored = store.get_run("old")
    assert stored is not None and stored.code_ref == old


@pytest.mark.referee
def test_a_partial_clone(make_repo: MakeRepo, git: Git, tmp_path: Path, watch: Watch) -> None:
    root = make_repo(commits=3)
    git(root, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", "--filter=blob:none", "--no-checkout", f"file://{root}", "partial")
    partial = tmp_path / "partial"
    store = record(partial, "r1")
    assert store.ensure_ledger() == partial / ".scp-ledger"
    git(watch(partial), "checkout", "-q", "main")


@pytest.mark.referee
def test_a_clone_with_borrowed_objects(make_repo: MakeRepo, git: Git, tmp_path: Path, watch: Watch) -> None:
    root = make_repo(commits=3)
    git(tmp_path, "clone", "-q", "--shared", str(root), "shared")
    shared = watch(tmp_path / "shared")
    record(shared, "r1")
    assert git(shared, "rev-parse", "scp/run/r1^{commit}") == git(root, "rev-parse", "HEAD")


@pytest.mark.referee
@pytest.mark.parametrize("extension", ["worktreeConfig", "preciousObjects", "noop"])
def test_harmless_extensions(repo: Path, git: Git, extension: str) -> None:
    git(repo, "config", "core.repositoryFormatVersion", "1")
    git(repo, "config", f"extensions.{extension}", "true")
    record(repo, "r1")


def test_before_the_first_commit(make_repo: MakeRepo) -> None:
    root = make_repo(commits=0)
    store = record(root, "r1")
    run = store.get_run("r1")
    assert run is not None and run.code_ref == ""
    assert store.ensure_ledger() == root / ".scp-ledger"


# ---------------------------------------------------------------- kinds that are refused


@pytest.mark.referee
def test_sha256_is_refused(git: Git, tmp_path: Path) -> None:
    root = tmp_path / "sha256"
    git(tmp_path, "init", "-q", "--object-format=sha256", str(root))
    git(root, "commit", "-q", "--allow-empty", "-m", "x")
    refused(root, UnsupportedRepository, "uses sha256 object names")


CONFIGS = {
    "refstorage": ("[extensions]\n\trefstorage = reftable\n", "reftable"),
    "compatobjectformat": ("[extensions]\n\tcompatobjectformat = sha256\n", "compatobjectformat"),
    "unknown": ("[extensions]\n\tfrombeyond = yes\n", "frombeyond"),
    "partialclone": ("[extensions]\n\tpartialclone = origin\n", "partialclone"),
}


@pytest.mark.untidy("stock git may not know the extension either")
@pytest.mark.parametrize("name", CONFIGS)
def test_extensions_that_change_the_format_are_refused(repo: Path, name: str) -> None:
    section, match = CONFIGS[name]
    config = repo / ".git" / "config"
    text = config.read_text().replace("repositoryformatversion = 0", "repositoryformatversion = 1")
    config.write_text(f"{text}{section}")
    refused(repo, UnsupportedRepository, match)


@pytest.mark.untidy("stock git does not know version 2")
def test_a_later_format_version_is_refused(repo: Path) -> None:
    config = repo / ".git" / "config"
    config.write_text(
        config.read_text().replace("repositoryformatversion = 0", "repositoryformatversion = 2")
    )
    refused(repo, UnsupportedRepository, "version 2")


@pytest.fixture
def foreign(repo: Path) -> Iterator[Path]:
    """A repository that belongs to somebody else."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a folder to another user")
    everything = [repo, *repo.rglob("*")]
    for path in everything:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    yield repo
    for path in [repo, *repo.rglob("*")]:
        os.chown(path, 0, 0, follow_symlinks=False)


def test_a_repository_of_another_user_is_refused(foreign: Path) -> None:
    refused(foreign, UnsupportedRepository, "belongs to another user")
    with pytest.raises(UnsupportedRepository, match=f"safe.directory {foreign}"):
        Store.open(foreign)


def test_a_repository_of_another_user_that_is_trusted(foreign: Path, home: Path) -> None:
    with (home / ".gitconfig").open("a") as config:
        config.write(f"[safe]\n\tdirectory = {foreign}\n")
    record(foreign, "r1")
    assert Store.open(foreign, QUICK).ensure_ledger() == foreign / ".scp-ledger"


@pytest.mark.referee
@pytest.mark.parametrize("ref", ["scp-ledger", "scp-ledger-archive"])
def test_a_ledger_of_a_later_format_is_not_written(repo: Path, git: Git, ref: str) -> None:
    record(repo, "r1")
    Store.open(repo, QUICK).delete_run("r1")
    blob = git(repo, "hash-object", "-w", "--stdin", input="2\n").strip()
    tree = git(repo, "mktree", input=f"100644 blob {blob}\tFORMAT\n")
    later = git(repo, "commit-tree", "-m", "later\n\nScp-Git: 2", "-p", ref, tree.strip()).strip()
    git(repo, "update-ref", f"refs/heads/{ref}", later)
    before = git(repo, "for-each-ref")
    store = Store.open(repo, QUICK)
    with pytest.raises(UnsupportedRepository, match="format '2'"):
        store.record_run(Run(run_id="r2", type="t"))
    with pytest.raises(UnsupportedRepository, match="format '2'"):
        store.ensure_ledger()
    assert git(repo, "for-each-ref") == before
    git(repo, "update-ref", f"refs/heads/{ref}", f"{later}~1")
    record(repo, "r3")


# ---------------------------------------------------------------- who the user is


def tagger(git: Git, root: Path, run_id: str) -> str:
    return git(root, "for-each-ref", "--format=%(tagger)", f"refs/tags/scp/run/{run_id}").rsplit(" ", 2)[0]


@pytest.mark.referee
def test_the_identity_is_that_of_git_config(repo: Path, git: Git) -> None:
    store = record(repo, "r1")
    assert tagger(git, repo, "r1") == "Ada Tester <ada@example.org>"
    assert git(repo, "log", "-1", "--format=%an <%ae>|%cn <%ce>", "scp-ledger").strip() == (
        "Ada Tester <ada@example.org>|Ada Tester <ada@example.org>"
    )
    run = store.get_run("r1")
    assert run is not None and run.user == "Ada Tester"
    git(repo, "config", "user.name", "Grace")
    git(repo, "config", "user.email", "grace@example.org")
    store.record_run(Run(run_id="r2", type="t"))
    assert tagger(git, repo, "r2") == "Grace <grace@example.org>", "an open store notices"
    assert Store.open(repo).get_run("r2").user == "Grace"  # type: ignore[union-attr]


@pytest.mark.referee
def test_without_any_config_the_systems_user_serves(repo: Path, git: Git, home: Path) -> None:
    (home / ".gitconfig").unlink()
    identity = Repository.open(repo).identity()
    entry = pwd.getpwuid(os.geteuid())
    assert identity.name in (entry.pw_gecos.split(",")[0].strip(), entry.pw_name)
    assert identity.email == f"{entry.pw_name}@{socket.gethostname()}"
    record(repo, "r1")
    assert tagger(git, repo, "r1") == f"{identity.name} <{identity.email}>"


@pytest.mark.parametrize(("key", "value"), [("name", "Solo"), ("email", "solo@example.org")])
def test_half_an_identity_is_completed(repo: Path, home: Path, key: str, value: str) -> None:
    (home / ".gitconfig").write_text(f"[user]\n\t{key} = {value}\n")
    identity = Repository.open(repo).identity()
    assert getattr(identity, key) == value
    assert identity.name and "@" in identity.email


ODD_NAMES = {
    "newline": (r"Eve\nparent 1111111111111111111111111111111111111111", "Eveparent " + "1" * 40),
    "brackets": ("Eve <x> >", "Eve x"),
    "quotes and dots": (r"\"Eve, Inc.\"", "Eve, Inc"),
    "tab and bell": ("Eve\\t\x07Adams", "EveAdams"),
    "not Latin": ("Ève 伊娃", "Ève 伊娃"),
}


@pytest.mark.referee
@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_cannot_forge_a_header(repo: Path, git: Git, home: Path, name: str) -> None:
    written, expected = ODD_NAMES[name]
    config = f'[user]\n\tname = "{written}"\n\temail = "e<v>e\\n@example.org"\n'
    (home / ".gitconfig").write_text(config, encoding="utf-8")
    record(repo, "r1")
    assert tagger(git, repo, "r1") == f"{expected} <eve@example.org>"
    assert git(repo, "log", "-1", "--format=%an", "scp-ledger").strip() == expected
    header = git(repo, "cat-file", "commit", "scp-ledger").split("\n\n")[0]
    assert [line.split(" ")[0] for line in header.splitlines()] == ["tree", "author", "committer"]


@pytest.mark.parametrize("name", ["<>", "\\n", " ", ".,:;", '\\"\\"'])
def test_a_name_of_which_nothing_is_left(repo: Path, home: Path, name: str) -> None:
    (home / ".gitconfig").write_text(f'[user]\n\tname = "{name}"\n\temail = ada@example.org\n')
    identity = Repository.open(repo).identity()
    assert identity.name.strip() and identity.email == "ada@example.org"
    record(repo, "r1")


@pytest.mark.referee
def test_a_config_that_is_not_utf8(repo: Path, git: Git, home: Path) -> None:
    """Old ones are Latin-1; the name may suffer, nothing else."""
    (home / ".gitconfig").write_bytes(b"[user]\n\tname = J\xf6rg\n\temail = j@example.org\n[x]\n\ty = \xe9\n")
    record(repo, "r1")
    assert tagger(git, repo, "r1").endswith("rg <j@example.org>")


@pytest.mark.referee
def test_a_config_that_cannot_be_read_is_a_clear_error(repo: Path, home: Path) -> None:
    (home / ".gitconfig").write_text("[user\nname = x\n")
    with pytest.raises(Exception, match="config") as caught:
        record(repo, "r1")
    assert caught.value.__class__.__module__.startswith("scp_git")
    (home / ".gitconfig").write_text("[user]\n\tname = x\n\temail = x@example.org\n")
    record(repo, "r1")


def test_settings_come_from_git_config(repo: Path) -> None:
    config = pygit2.Repository(str(repo)).config
    config["scp.lockTimeoutS"] = "7.5"
    config["scp.durability"] = "os"
    config["scp.unknown"] = "x"
    settings = Store.open(repo).settings
    assert (settings.lock_timeout_s, settings.durability) == (7.5, "os")
    assert pygit2.settings.search_path[ConfigLevel.GLOBAL]


def test_a_repository_that_is_removed_is_not_made_again(repo: Path) -> None:
    store = record(repo, "r1")
    shutil.rmtree(repo)
    with pytest.raises(OSError, match="failed"):
        store.record_run(Run(run_id="r2", type="t"))
    assert not repo.exists()
