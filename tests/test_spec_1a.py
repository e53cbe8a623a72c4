"""The users' acceptance list for the ledger (SPEC 1A.8, "Must Have"): one test per line, named after it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pygit2
import pytest

import scp_git
from scp_git import Run
from scp_git.git.worktree import (
    create_run_tag,
    ensure_worktree,
    list_run_tags,
    notes_append,
    notes_show,
    read_tag_message,
    worktree_path,
)

SOURCES = Path(scp_git.__file__).parents[1]
MakeRepo = Callable[..., Path]
UNREACHABLE = "https://192.0.2.1/nobody/nothing.git"


def ignored_by(repo: Path) -> list[str]:
    return [line for line in (repo / ".gitignore").read_text().splitlines() if ".scp-ledger" in line]


def on_branch(repo: Path, path: str) -> bytes:
    return bytes(pygit2.Repository(repo).revparse_single(f"refs/heads/scp-ledger:{path}").data)


# ---- `ensure_worktree()` creates `scp-ledger` orphan branch + `.scp-ledger/` worktree if missing


def test_ensure_worktree_creates_an_orphan_branch_and_a_worktree_if_missing(repo: Path) -> None:
    assert ensure_worktree(repo) == worktree_path(repo) == repo / ".scp-ledger"
    main, ledger = pygit2.Repository(repo), pygit2.Repository(repo / ".scp-ledger")
    tip = main.references["refs/heads/scp-ledger"].peel(pygit2.Commit)
    assert tip.parents == []
    assert main.merge_base(tip.id, main.head.target) is None
    assert ledger.head.name == "refs/heads/scp-ledger"
    assert main.list_worktrees() == ["scp-ledger"]
    shutil.rmtree(repo / ".scp-ledger")
    ensure_worktree(repo)
    assert (repo / ".scp-ledger/FORMAT").read_text() == "1\n"
    assert main.references["refs/heads/scp-ledger"].target == tip.id


# ---- `ensure_worktree()` adds `.scp-ledger/` to `.gitignore` if not already there


def test_ensure_worktree_adds_the_worktree_to_gitignore_if_not_already_there(make_repo: MakeRepo) -> None:
    fresh, own = make_repo(), make_repo()
    (own / ".gitignore").write_text("*.pyc\n/.scp-ledger\n")
    for _ in range(2):
        ensure_worktree(fresh)
        ensure_worktree(own)
    assert ignored_by(fresh) == [".scp-ledger/"]
    assert ignored_by(own) == ["/.scp-ledger"]


# ---- `record_run()` writes `run.json` + optional `events.jsonl` to `.scp-ledger/`, commits


async def test_record_run_writes_run_json_and_optional_events_and_commits(repo: Path) -> None:
    run_id = await scp_git.record_run(repo, Run(type="x", summary="with"), [{"type": "a"}, {"type": "b"}])
    without = await scp_git.record_run(repo, Run(type="x", summary="without"))
    runs = repo / ".scp-ledger/ledger/runs"
    assert json.loads((runs / run_id / "run.json").read_text())["summary"] == "with"
    assert len((runs / run_id / "events.jsonl").read_text().splitlines()) == 2
    assert [path.name for path in (runs / without).iterdir()] == ["run.json"]
    for path in (f"{run_id}/run.json", f"{run_id}/events.jsonl", f"{without}/run.json"):
        assert on_branch(repo, f"ledger/runs/{path}") == (runs / path).read_bytes()
    assert pygit2.Repository(repo / ".scp-ledger").status() == {}


async def test_record_run_leaves_the_users_branch_index_and_files_alone(repo: Path) -> None:
    (repo / "file.txt").write_text("edited")
    (repo / "staged.txt").write_text("staged")
    repository = pygit2.Repository(repo)
    repository.index.add("staged.txt")
    repository.index.write()
    before = (repo / ".git/index").read_bytes(), (repo / ".git/HEAD").read_text(), repository.head.target
    await scp_git.record_run(repo, Run(type="x"))
    after = (repo / ".git/index").read_bytes(), (repo / ".git/HEAD").read_text(), repository.head.target
    assert after == before
    assert (repo / "file.txt").read_text() == "edited"
    repository.index.remove("staged.txt")
    repository.index.write()
    (repo / "staged.txt").unlink()
    repository.checkout_head(strategy=pygit2.enums.CheckoutStrategy.FORCE)


# ---- `record_run()` creates annotated tag `scp/run/<run_id>` pointing to current HEAD on main


async def test_record_run_creates_an_annotated_tag_pointing_to_current_head(repo: Path) -> None:
    run = Run(type="x", summary="one line")
    await scp_git.record_run(repo, run)
    repository = pygit2.Repository(repo)
    tag = repository[repository.references[f"refs/tags/scp/run/{run.run_id}"].target]
    assert isinstance(tag, pygit2.Tag)
    assert (tag.target, tag.name) == (repository.head.target, f"scp/run/{run.run_id}")
    assert (tag.tagger.name, tag.tagger.email) == ("Ada Tester", "ada@example.org")
    got = await scp_git.get_run(repo, run.run_id)
    assert got is not None
    assert json.loads(tag.message) == got.model_dump()
    assert tag.message.count("\n") == 1


# ---- `list_runs()` returns runs from tags, newest-first
# ---- (they are read from the branches; the tags hold the same)


async def test_list_runs_returns_the_runs_newest_first(repo: Path) -> None:
    made = [await scp_git.record_run(repo, Run(type="x")) for _ in range(25)]
    listed = await scp_git.list_runs(repo)
    assert [run.run_id for run in listed] == made[:4:-1]
    assert [run.run_id for run in await scp_git.list_runs(repo, n=2)] == made[:-3:-1]
    assert sorted(list_run_tags(repo)) == sorted(f"scp/run/{run_id}" for run_id in made)
    for run in listed:
        assert Run.model_validate_json(read_tag_message(repo, f"scp/run/{run.run_id}")) == run


# ---- `get_run()` reads a single run's metadata from its tag


async def test_get_run_reads_a_single_runs_metadata(repo: Path) -> None:
    run = Run(type="x", metadata={"a": [1]}, summary="s")
    await scp_git.record_run(repo, run)
    got = await scp_git.get_run(repo, run.run_id)
    assert got is not None
    assert (got.metadata, got.summary, got.started_at) == ({"a": [1]}, "s", run.started_at)
    assert await scp_git.get_run(repo, "run_none") is None


# ---- `get_run_events()` reads events.jsonl from `.scp-ledger/ledger/runs/<id>/`


async def test_get_run_events_reads_the_events(repo: Path) -> None:
    run_id = await scp_git.record_run(repo, Run(type="x"), [{"type": "a"}, {"type": "b", "extra": [1]}])
    events = await scp_git.get_run_events(repo, run_id)
    lines = (repo / ".scp-ledger/ledger/runs" / run_id / "events.jsonl").read_text().splitlines()
    assert events == [json.loads(line) for line in lines]
    assert [(event["seq"], event["type"]) for event in events] == [(1, "a"), (2, "b")]
    assert await scp_git.get_run_events(repo, "run_none") == []


# ---- `push_ledger()` pushes branch + tags to origin; `pull_ledger()` pulls branch + tags from origin


async def test_push_ledger_pushes_branch_and_tags_to_origin_and_pull_ledger_pulls_them(
    make_repo: MakeRepo,
) -> None:
    one, two, origin = make_repo(), make_repo(), make_repo(bare=True, commits=0)
    for root in (one, two):
        pygit2.Repository(root).remotes.create("origin", str(origin))
    pygit2.Repository(one).remotes["origin"].push(["refs/heads/main:refs/heads/main"])
    run_id = await scp_git.record_run(one, Run(type="x"))
    assert await scp_git.push_ledger(one) is True
    assert list(pygit2.Repository(origin).references) == [
        "refs/heads/main",
        "refs/heads/scp-ledger",
        f"refs/tags/scp/run/{run_id}",
    ]
    assert await scp_git.pull_ledger(two) is True
    assert [run.run_id for run in await scp_git.list_runs(two)] == [run_id]
    assert list_run_tags(two) == list_run_tags(one) == [f"scp/run/{run_id}"]


# ---- All functions return errors gracefully (no exceptions to callers)


async def test_all_functions_return_errors_gracefully(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "none", str(tmp_path / "none")):
        assert await scp_git.ensure_ledger(root) is None
        assert await scp_git.record_run(root, Run(type="x")) == ""
        assert await scp_git.list_runs(root) == []
        assert await scp_git.get_run(root, "run_1") is None
        assert await scp_git.get_run_events(root, "run_1") == []
        assert await scp_git.delete_run(root, "run_1") is False
        assert await scp_git.prune_runs(root, older_than_days=1) == 0
        assert await scp_git.push_ledger(root) is False
        assert await scp_git.pull_ledger(root) is False
        async with scp_git.track_run(root, "x") as run:
            run.summary = "done"
    assert list(tmp_path.iterdir()) == []


# ---- Works in a repo with no remote (push/pull skip gracefully)


async def test_works_in_a_repo_with_no_remote(repo: Path) -> None:
    assert len(pygit2.Repository(repo).remotes) == 0
    run_id = await scp_git.record_run(repo, Run(type="x"))
    assert await scp_git.push_ledger(repo) is False
    assert await scp_git.pull_ledger(repo) is False
    assert [run.run_id for run in await scp_git.list_runs(repo)] == [run_id]


# ---- Works in a fresh repo (no commits yet - deferred until first commit)


async def test_works_in_a_fresh_repo_with_no_commits_yet(make_repo: MakeRepo) -> None:
    root = make_repo(commits=0)
    assert await scp_git.ensure_ledger(root) == root / ".scp-ledger"
    early = await scp_git.record_run(root, Run(type="early"))
    assert [run.run_id for run in await scp_git.list_runs(root)] == [early]
    assert list_run_tags(root) == []
    repository = pygit2.Repository(root)
    ada = repository.default_signature
    commit = repository.create_commit("HEAD", ada, ada, "first", repository.TreeBuilder().write(), [])
    late = await scp_git.record_run(root, Run(type="late"))
    assert list_run_tags(root) == sorted(f"scp/run/{run_id}" for run_id in (early, late))
    assert repository.references[f"refs/tags/scp/run/{early}"].peel().id == commit


# ---- Unit tests for worktree/tag/notes helpers (isolated git repo in tmp)


def test_the_helpers_for_tags_and_notes_work_together(repo: Path) -> None:
    commit = str(pygit2.Repository(repo).head.target)
    create_run_tag(repo, "scp/run/mine", commit, message='{"run_id":"mine"}')
    assert list_run_tags(repo) == ["scp/run/mine"]
    assert read_tag_message(repo, "scp/run/mine") == '{"run_id":"mine"}\n'
    tag = str(pygit2.Repository(repo).references["refs/tags/scp/run/mine"].target)
    assert notes_show(repo, "scp-chat", tag) is None
    notes_append(repo, "scp-chat", tag, '{"id":"msg_1"}')
    notes_append(repo, "refs/notes/scp-chat", "scp/run/mine", '{"id":"msg_2"}\n')
    assert notes_show(repo, "scp-chat", tag) == '{"id":"msg_1"}\n{"id":"msg_2"}\n'


# ---- Integration test: ensure_worktree -> record_run -> list_runs -> get_run -> verify


@pytest.mark.referee
async def test_from_ensure_worktree_to_get_run(repo: Path, git: Callable[..., str]) -> None:
    view = ensure_worktree(repo)
    run_id = await scp_git.record_run(repo, Run(type="apply", summary="whole"), [{"type": "a"}])
    [listed] = await scp_git.list_runs(repo)
    got = await scp_git.get_run(repo, run_id)
    assert got == listed
    assert got is not None and got.summary == "whole"
    assert git(view, "status", "--porcelain") == ""
    assert git(view, "log", "-1", "--format=%s").strip() == f"ledger: apply {run_id}"
    assert git(repo, "tag", "-l", "scp/run/*").split() == [f"scp/run/{run_id}"]
    assert git(repo, "cat-file", "-t", f"scp/run/{run_id}").strip() == "tag"
    assert git(repo, "fsck", "--strict") == ""


# ---- Nothing here talks to a network

EVERYTHING = """
import anyio, sys, scp_git
from scp_git import Run, Store
root = sys.argv[1]

async def main():
    assert await scp_git.ensure_ledger(root)
    run_id = await scp_git.record_run(root, Run(type="x"), [{"type": "a"}])
    async with scp_git.track_run(root, "y"):
        pass
    assert len(await scp_git.list_runs(root)) == 2
    assert await scp_git.get_run(root, run_id) and await scp_git.get_run_events(root, run_id)
    assert await scp_git.delete_run(root, run_id)
    assert await scp_git.prune_runs(root, older_than_days=0) == 1
    await scp_git.flush()

anyio.run(main)
with Store.open(root) as store:
    store.record_run(Run(type="z"))
    assert len(store.list_runs()) == 1
print("done")
"""
SPEAKING = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"


def works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run([*command, sys.executable, "-c", ""], capture_output=True).returncode == 0


def do_everything(repo: Path, *command: str) -> None:
    repository = pygit2.Repository(repo)
    repository.remotes.create("origin", UNREACHABLE)
    done = subprocess.run(
        [*command, sys.executable, "-c", EVERYTHING, str(repo)],
        env=os.environ | {"PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def network_calls(trace: str) -> list[str]:
    return re.findall(r"^.*\bAF_INET6?\b.*$|^.*\bAF_(?:NETLINK|PACKET)\b.*$", trace, re.MULTILINE)


def test_nothing_but_push_and_pull_talks_to_a_network(repo: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "-o", str(trace), "-e", "trace=%network"]
    if works(*strace):
        subprocess.run([*strace, sys.executable, "-c", SPEAKING], check=True)
        assert len(network_calls(trace.read_text())) >= 2
        do_everything(repo, *strace)
        assert network_calls(trace.read_text()) == []
    elif works("unshare", "-rn"):
        do_everything(repo, "unshare", "-rn")
    else:
        pytest.skip("needs strace or unshare, and neither works here")
