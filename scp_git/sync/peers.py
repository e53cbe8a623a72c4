"""The other side of a sync: a repository at a path of this machine, or a remote over the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scp_git.errors import NotARepository, RemoteError, ScpGitError
from scp_git.git.handle import Repository
from scp_git.git.healing import BRANCHES
from scp_git.git.remote import Remote
from scp_git.git.tagplan import Present, reachable
from scp_git.git.tracking import tracked, tracking_ref
from scp_git.layout import ARCHIVE_REF, LEDGER_REF, NOTES_REF, RUN_TAG_PREFIX

IN_READING_ORDER = (LEDGER_REF, NOTES_REF, ARCHIVE_REF)
"""A run moves from the ledger to the archive: whoever reads in this order misses none."""


def own_branches(repository: Repository) -> dict[str, str]:
    """The tips of a repository's branches at this moment."""
    found = {ref: repository.refs.read(ref) for ref in IN_READING_ORDER}
    return {ref: oid for ref, oid in found.items() if oid}


def open_at(name: str, path: Path) -> Repository:
    """The repository at a path as git understands it: its top, its git dir, or either without ``.git``."""
    tops = [path.parent] if path.name == ".git" else []
    for candidate in (*tops, path, path.with_name(path.name + ".git")):
        try:
            return Repository.open(candidate)
        except NotARepository:
            continue
        except ScpGitError as exc:
            raise RemoteError(name, str(exc)) from exc
    raise RemoteError(name, f"there is no git repository at {path}; check its URL")


class NetworkPeer:
    """A remote that is reached by libgit2."""

    def __init__(self, repository: Repository, remote: Remote) -> None:
        self.repository = repository
        self.remote = remote
        self.refs: dict[str, str] = {}
        """What it advertised when it was last asked."""

    @property
    def name(self) -> str:
        return self.remote.name

    def branches(self) -> dict[str, str]:
        """Ask it what it has; the tips of its branches."""
        self.refs = self.remote.refs()
        return {ref: self.refs[ref] for ref in BRANCHES if ref in self.refs}

    def fetch(self, branches: Mapping[str, str]) -> dict[str, str]:
        """Bring these branches' objects here; returns their tips, which may be newer ones by now."""
        known = tracked(self.repository, self.name)
        if any(known.get(ref) != oid for ref, oid in branches.items()):
            self.remote.fetch([f"+{ref}:{tracking_ref(self.name, ref)}" for ref in branches])
        known = tracked(self.repository, self.name)
        return {ref: known[ref] for ref in branches if ref in known}

    def present(self) -> Present:
        """Tells which commits it is known to have: those that its branches and tags lead to, if here."""
        repository, refs = self.repository, self.refs

        def present(commits: set[str]) -> set[str]:
            tips = [
                oid
                for ref, oid in refs.items()
                if ref.startswith(("refs/heads/", "refs/tags/"))
                and not ref.startswith(RUN_TAG_PREFIX)
                and ref not in BRANCHES
            ]
            found = reachable(repository, commits, tips)
            if commits - found:  # perhaps a tag that it has holds one of them
                rows = repository.refs.packed().entries(RUN_TAG_PREFIX)
                found |= {oid for ref, tag, oid in rows if oid in commits and refs.get(ref) == tag}
            return found

        return present


class PathPeer:
    """Another repository of this machine; objects are copied, and it is written under its own gate."""

    def __init__(self, remote: Remote, other: Repository) -> None:
        self.remote = remote
        self.other = other

    @property
    def name(self) -> str:
        return self.remote.name

    def branches(self) -> dict[str, str]:
        return own_branches(self.other)

    def tags(self) -> dict[str, str]:
        return self.other.refs.list(RUN_TAG_PREFIX)

    def present(self) -> Present:
        """Tells which commits it has."""

        def present(commits: set[str]) -> set[str]:
            with self.other.odb() as odb:
                return {oid for oid in commits if odb.kind(oid) == "commit"}

        return present
