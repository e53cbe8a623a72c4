"""The history of any repository, newest first, read commit by commit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pygit2
from pygit2.enums import SortMode

from scp_git.git.handle import Repository, translated


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One commit: who did what, and when (seconds since 1970)."""

    oid: str
    parents: int
    author: str
    email: str
    authored: int
    committed: int
    message: str


def read_log(root: str | os.PathLike[str]) -> Iterator[LogEntry]:
    """The commits that HEAD leads to; none before the first. One thread at a time.

    Raises as ``Repository.open`` does, and ``StorageFailed`` for a history that
    cannot be read to its end.
    """
    repository = Repository.open(root)
    head = repository.head()
    if head is None:
        return
    with translated(f"reading the history of {repository.root}"):
        repo = pygit2.Repository(str(repository.git_dir))
        for commit in repo.walk(pygit2.Oid(hex=head), SortMode.TIME):
            yield LogEntry(
                str(commit.id),
                len(commit.parent_ids),
                _text(commit.author.raw_name),
                _text(commit.author.raw_email),
                commit.author.time,
                commit.commit_time,
                _text(commit.raw_message),
            )


def _text(value: bytes | None) -> str:
    """Names and messages are of any encoding, or of none."""
    return (value or b"").decode("utf-8", "replace")
