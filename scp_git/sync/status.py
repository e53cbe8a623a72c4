"""How far a repository and one of its remotes are apart, and what waits. Nothing is changed but what is
remembered of the remote, and nobody is asked unless told to."""

from __future__ import annotations

from collections.abc import Mapping

from scp_git.errors import RemoteError
from scp_git.git.copying import Joined
from scp_git.git.deferred import Deferred
from scp_git.git.handle import Repository
from scp_git.git.history import History
from scp_git.git.objects import ObjectStore
from scp_git.git.snapshot import snapshot
from scp_git.git.tagplan import Present, plan_tags, reachable
from scp_git.git.tracking import remember, tracked
from scp_git.git.untagged import Untagged
from scp_git.git.urls import parse_url, resolve_remote
from scp_git.git.validate import fetched_state
from scp_git.layout import run_tag_ref
from scp_git.sync.counting import lacking
from scp_git.sync.engine import Syncer
from scp_git.sync.peers import PathPeer, own_branches
from scp_git.sync.report import SyncStatus, WaitingTag


def sync_status(syncer: Syncer, name: str, *, fetch: bool) -> SyncStatus | None:
    """What is only here, what is only there, and what waits; ``None`` without that remote.

    Without ``fetch`` the remote is taken to be as it was last seen.

    Raises ``RemoteError`` when it is to be asked and cannot be, or is broken.
    """
    repository = syncer.repository
    target = resolve_remote(repository, name)
    if target is None:
        return None
    theirs, advertised, present = tracked(repository, name), None, _published(repository, name)
    other = None
    if fetch:
        peer = syncer.peer(name, push=False)
        assert peer is not None
        theirs, present = peer.branches(), peer.present()
        if isinstance(peer, PathPeer):
            advertised, other = peer.tags(), peer.other
        else:
            theirs, advertised = {**theirs, **peer.fetch(theirs)}, peer.refs
            remember(repository, name, theirs)
    waiting = _waiting(repository, advertised, present)
    folder = repository.common_dir / "scp"
    with repository.odb() as odb:
        store = ObjectStore(odb) if other is None else ObjectStore(Joined(ObjectStore(odb), other.open_odb()))
        found = fetched_state(store, _trees(store, name, theirs), snapshot(repository, odb), remote=name)
        trees, ours = found.trees(), own_branches(repository)
        return SyncStatus(
            remote=name,
            url=parse_url(name, target.url).shown,
            asked=fetch,
            known=bool(theirs),
            in_step=_trees(store, name, ours) == _trees(store, name, theirs),
            ahead=lacking(store, trees, ours),
            behind=lacking(store, ours, trees),
            waiting=waiting,
            deferred=tuple(sorted(Deferred(folder, sync=False).read())),
            untagged=tuple(
                WaitingTag(run_id=run_id, commit=commit)
                for run_id, commit in sorted(Untagged(repository, folder).read().items())
                if repository.refs.read(run_tag_ref(run_id)) is None
            ),
        )


def _trees(store: ObjectStore, name: str, tips: Mapping[str, str]) -> dict[str, str]:
    history = History(store)
    for ref, tip in tips.items():
        if history.get(tip) is None:
            raise RemoteError(name, f"{ref} leads to no commit that can be read; repair it there")
    return {ref: history.tree(tip) for ref, tip in tips.items()}


def _waiting(
    repository: Repository, advertised: Mapping[str, str] | None, present: Present
) -> tuple[WaitingTag, ...]:
    with repository.odb() as odb:
        plan = plan_tags(repository, odb, snapshot(repository, odb), advertised or {}, present)
    return tuple(WaitingTag(run_id=run_id, commit=commit) for run_id, commit in sorted(plan.waiting.items()))


def _published(repository: Repository, name: str) -> Present:
    """Tells which commits the remote had, as far as its branches that were fetched by stock git say."""
    tips = list(repository.refs.list(f"refs/remotes/{name}/").values())
    return lambda commits: reachable(repository, commits, tips)
