"""The user's own history, for looking things up in it: commits, branches, authors, and the files of HEAD.

Names that somebody typed are never handed to libgit2's revision parser: a commit is
found by hex digits, a branch by its whole name.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass

from scp_git.git.handle import Odb, Repository
from scp_git.git.objects import COMMIT, ObjectStore, parse_commit
from scp_git.git.tree import TreeEditor

HEADS = "refs/heads/"
REMOTES = "refs/remotes/"
MAX_COMMIT_BYTES = 1024 * 1024

_ABBREVIATED = re.compile(r"[0-9a-f]{4,40}")
_PERSON = re.compile(r"(?P<name>[^<>]*) ?<(?P<email>[^<>]*)> (?P<seconds>\d{1,12}) [+-]\d{4}")
# As git-check-ref-format has it; libgit2's check lets NUL through.
_NOT_IN_REFS = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|$)")


@dataclass(frozen=True, slots=True)
class HistoryCommit:
    """What is shown of a commit; the times are seconds since 1970."""

    oid: str
    parents: tuple[str, ...]
    tree: str
    author: str
    email: str
    authored: int
    committed: int
    subject: str


def read_commit(odb: Odb, oid: str) -> HistoryCommit | None:
    """A commit, or ``None`` if the object is missing, no commit, damaged or unreasonably large."""
    if odb.kind(oid) != COMMIT or odb.size(oid) > MAX_COMMIT_BYTES:
        return None
    found = odb.read(oid)
    if found is None:
        return None
    try:
        commit = parse_commit(found[1])
    except ValueError:
        return None
    header = found[1].partition(b"\n\n")[0].decode("utf-8", "replace")
    author, email, authored = _person(header, "author")
    committed = _person(header, "committer")[2]
    subject = commit.message.lstrip("\n").partition("\n")[0].strip()
    return HistoryCommit(oid, commit.parents, commit.tree, author, email, authored, committed, subject)


def _person(header: str, role: str) -> tuple[str, str, int]:
    line = next((line for line in header.split("\n") if line.startswith(role + " ")), "")
    match = _PERSON.fullmatch(line.removeprefix(role + " "))
    return (match["name"].strip(), match["email"].strip(), int(match["seconds"])) if match else ("", "", 0)


def find_commit(odb: Odb, digits: str) -> HistoryCommit | None:
    """The one commit whose id begins with these 4 to 40 hex digits; ``None`` also where several do."""
    digits = digits.lower()
    oid = odb.expand(digits) if _ABBREVIATED.fullmatch(digits) else None
    return read_commit(odb, oid) if oid else None


def recent_commits(odb: Odb, tip: str | None, *, limit: int) -> Iterator[HistoryCommit]:
    """Up to ``limit`` commits reached from ``tip``, the newest first."""
    first = read_commit(odb, tip) if tip else None
    waiting = [(-first.committed, first.oid, first)] if first else []
    seen = {tip}
    for _ in range(limit):
        if not waiting:
            return
        commit = heapq.heappop(waiting)[2]
        yield commit
        for oid in commit.parents:
            parent = None if oid in seen else read_commit(odb, oid)
            seen.add(oid)
            if parent is not None:
                heapq.heappush(waiting, (-parent.committed, oid, parent))


def find_branch(repository: Repository, name: str) -> str | None:
    """The tip of a local branch, or of a remote one spelled ``origin/main``; by whole name only."""
    if not is_branch_name(name):
        return None
    tip = repository.refs.read(HEADS + name)
    return tip or (repository.refs.read(REMOTES + name) if "/" in name else None)


def is_branch_name(name: str) -> bool:
    """Whether a branch could bear this name, so that it is safe as a path below ``refs/heads``."""
    return (
        0 < len(name.encode("utf-8", "replace")) <= 250
        and not name.startswith((".", "/", "-"))
        and not name.endswith((".", "/"))
        and _NOT_IN_REFS.search(name) is None
    )


def list_branches(repository: Repository) -> dict[str, str]:
    """Name and tip of all local branches and of all remote ones."""
    found = {name.removeprefix(HEADS): tip for name, tip in repository.refs.list(HEADS).items()}
    for ref, tip in repository.refs.list(REMOTES).items():
        found.setdefault(ref.removeprefix(REMOTES), tip)
    return {name: tip for name, tip in found.items() if not name.endswith("/HEAD")}


def head_files(repository: Repository, odb: Odb) -> TreeEditor:
    """The files of HEAD's commit, as git has them: no symlink leads anywhere, and nothing lies outside."""
    head = repository.head()
    commit = read_commit(odb, head) if head else None
    return TreeEditor(ObjectStore(odb), commit.tree if commit else None)
