"""The helpers of SPEC 1A.5, each refereed by stock git where it is there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pygit2
import pytest

from scp_git.errors import AlreadyExists, InvalidId, NotFound, UnsupportedRepository
from scp_git.git.worktree import (
    create_run_tag,
    ensure_worktree,
    list_run_tags,
    notes_append,
    notes_show,
    read_tag_message,
    worktree_path,
)

Git = Callable[..., str]
REF = "refs/notes/scp-chat"


def head(root: Path) -> str:
    return str(pygit2.Repository(str(root)).head.target)


def test_ensure_worktree_creates_branch_view_and_ignore_rule_once(repo: Path) -> None:
    path = ensure_worktree(repo)
    assert path == worktree_path(repo) == repo / ".scp-ledger"
    assert (path / "FORMAT").read_text() == "1\n"
    tip = pygit2.Repository(str(repo)).references["refs/heads/scp-ledger"].target
    assert ensure_worktree(repo) == path
    after = pygit2.Repository(str(repo))
    assert after.references["refs/heads/scp-ledger"].target == tip, "a second call adds no commit"
    assert after[tip].parents == [], "the branch is an orphan"
    assert (repo / ".gitignore").read_text() == ".scp-ledger/\n"


def test_a_bare_repository_has_no_worktree(make_repo: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedRepository):
        ensure_worktree(make_repo(bare=True))


def test_run_tags_are_created_listed_and_read(repo: Path, git: Git) -> None:
    message = json.dumps({"run_id": "one", "summary": "héllo"}, ensure_ascii=False)
    create_run_tag(repo, "scp/run/one", head(repo), message=message)
    create_run_tag(repo, "scp/run/two", head(repo), message=message)
    assert list_run_tags(repo) == ["scp/run/one", "scp/run/two"]
    assert read_tag_message(repo, "scp/run/one") == message + "\n"
    assert git(repo, "tag", "-l", "--format=%(contents)", "scp/run/one").strip() == message
    assert git(repo, "cat-file", "-t", "scp/run/one").strip() == "tag"
    assert git(repo, "rev-parse", "scp/run/one^{commit}").strip() == head(repo)


def test_the_same_tag_twice_is_one_and_another_is_refused(repo: Path) -> None:
    create_run_tag(repo, "scp/run/one", head(repo), message="{}")
    create_run_tag(repo, "scp/run/one", head(repo), message="{}")
    with pytest.raises(AlreadyExists):
        create_run_tag(repo, "scp/run/one", head(repo), message="[]")
    assert read_tag_message(repo, "scp/run/one") == "{}\n"


@pytest.mark.parametrize(
    "name", ["v1", "scp/run/", "scp/run/../x", "scp/run/a/b", "scp/run/a.lock", "scp/run/-x"]
)
def test_a_tag_outside_the_run_namespace_is_refused(repo: Path, name: str) -> None:
    with pytest.raises(InvalidId):
        create_run_tag(repo, name, head(repo), message="{}")
    assert list_run_tags(repo) == []


def test_a_tag_needs_a_commit_of_this_repository(repo: Path) -> None:
    for target in ("0" * 40, "f" * 40, "main", ""):
        with pytest.raises(NotFound):
            create_run_tag(repo, "scp/run/one", target, message="{}")


def test_an_unknown_tag_is_not_found(repo: Path) -> None:
    with pytest.raises(NotFound):
        read_tag_message(repo, "scp/run/none")


def test_notes_are_appended_as_lines_and_read_by_stock_git(repo: Path, git: Git) -> None:
    create_run_tag(repo, "scp/run/one", head(repo), message="{}")
    notes_append(repo, REF, "scp/run/one", '{"id":"1"}')
    notes_append(repo, "scp-chat", "scp/run/one", '{"id":"2"}\n')
    expected = '{"id":"1"}\n{"id":"2"}\n'
    assert notes_show(repo, REF, "scp/run/one") == expected
    assert git(repo, "notes", "--ref=scp-chat", "show", "scp/run/one") == expected
    git(repo, "notes", "--ref=scp-chat", "append", "-m", '{"id":"3"}', "scp/run/one")
    assert notes_show(repo, REF, "scp/run/one") == expected + '\n{"id":"3"}\n'
    notes_append(repo, REF, "scp/run/one", '{"id":"4"}')
    shown = git(repo, "notes", "--ref=scp-chat", "show", "scp/run/one")
    assert [line for line in shown.split("\n") if line] == [f'{{"id":"{n}"}}' for n in range(1, 5)]


def test_a_missing_note_is_none(repo: Path) -> None:
    assert notes_show(repo, REF, head(repo)) is None
    assert notes_show(repo, REF, "scp/run/none") is None
    with pytest.raises(NotFound):
        notes_append(repo, REF, "scp/run/none", "x")


@pytest.mark.parametrize("ref", ["../heads/main", "a..b", "a//b", "x.lock", "a b", ""])
def test_a_bad_notes_ref_is_refused(repo: Path, ref: str) -> None:
    with pytest.raises(InvalidId):
        notes_append(repo, ref, head(repo), "x")


def test_processes_appending_at_once_lose_nothing(repo: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from scp_git.git.worktree import notes_append\n"
        "for n in range(10): notes_append(Path(sys.argv[1]), 'scp-chat', sys.argv[2], f'{sys.argv[3]}-{n}')\n"
    )
    target = head(repo)
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(repo), target, str(number)])
        for number in range(4)
    ]
    assert [worker.wait() for worker in workers] == [0] * 4
    text = notes_show(repo, REF, target)
    assert text is not None
    assert sorted(text.split()) == sorted(f"{w}-{n}" for w in range(4) for n in range(10))
