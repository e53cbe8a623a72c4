"""``refs/scp/remotes/<remote>/...``: what was last seen of a remote's branches. Local only."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pygit2
from pygit2.enums import RepositoryOpenFlag

from scp_git.errors import StorageFailed
from scp_git.git.files import unlink
from scp_git.git.handle import Repository, translated
from scp_git.git.healing import BRANCHES
from scp_git.git.locks import REF_LOCK_STALE_S, heal_lock
from scp_git.git.objects import Reader
from scp_git.layout import REMOTES_PREFIX

log = logging.getLogger(__name__)


def tracking_ref(remote: str, ref: str) -> str:
    """Where a remote's branch or notes ref is kept."""
    return f"{REMOTES_PREFIX}{remote}/{ref.removeprefix('refs/')}"


def tracked(repository: Repository, remote: str) -> dict[str, str]:
    """The remote's branches as they were when they were last seen.

    What a power cut left is forgotten: a ref whose object is not here, or a torn one.
    libgit2 would not fetch beside it.
    """
    found = {ref: repository.refs.read(tracking_ref(remote, ref)) for ref in BRANCHES}
    with repository.odb() as odb:
        present = {ref: oid for ref, oid in found.items() if oid and odb.kind(oid)}
    for ref, oid in found.items():
        if ref not in present:
            _forget(repository, tracking_ref(remote, ref), oid)
    return present


def _forget(repository: Repository, ref: str, oid: str | None) -> None:
    path = repository.common_dir / ref
    if oid is None and not path.is_file():
        return
    log.warning("%s leads nowhere and is forgotten", ref)
    with translated(f"removing {ref}"):
        unlink(path)
        if repository.refs.read(ref) is not None:  # packed, too
            repo = pygit2.Repository(str(repository.common_dir), RepositoryOpenFlag.NO_SEARCH)
            try:
                repo.references.delete(ref)
            finally:
                repo.free()


def mend(repository: Repository, objects: Reader) -> None:
    """Remove what a power cut has torn: libgit2 does not sync these refs. The next sync sets them again."""
    root = repository.common_dir / REMOTES_PREFIX
    for path in [path for path in root.rglob("*") if path.is_file()]:
        if path.suffix == ".lock":
            heal_lock(path, REF_LOCK_STALE_S)
        else:
            oid = repository.refs.read(str(path.relative_to(repository.common_dir)))
            if oid is None or objects.kind(oid) is None:
                log.warning("removing the torn ref %s", path.name)
                unlink(path)


def remember(repository: Repository, remote: str, tips: Mapping[str, str]) -> None:
    """Note what a remote has now; only a hint, so a failure is no failure of the sync."""
    known = tracked(repository, remote)
    changed = {ref: oid for ref, oid in tips.items() if known.get(ref) != oid}
    if not changed:
        return
    try:
        with translated("noting what the remote has"):
            repo = pygit2.Repository(str(repository.common_dir), RepositoryOpenFlag.NO_SEARCH)
            try:
                for ref, oid in changed.items():
                    repo.references.create(tracking_ref(remote, ref), oid, force=True)
            except ValueError as exc:  # the object is not here
                raise StorageFailed("noting what the remote has", exc) from exc
            finally:
                repo.free()
    except StorageFailed as exc:
        log.warning("%s", exc)
