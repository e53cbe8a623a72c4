"""One sync: fetch, merge, publish, and again when somebody else was quicker.

It runs in the caller's thread; what it writes goes through the writers of the
repositories concerned. No gate is held while a network is waited for.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from scp_git.errors import RemoteError, StorageFailed, TransferCancelled
from scp_git.git.credentials import Credentials
from scp_git.git.handle import Repository
from scp_git.git.healing import BRANCHES
from scp_git.git.history import History, Relation
from scp_git.git.objects import ObjectStore
from scp_git.git.receive import Receive, Received, StartAfresh
from scp_git.git.remote import Remote
from scp_git.git.snapshot import snapshot
from scp_git.git.tagplan import TagPlan, plan_tags, tag_refspecs
from scp_git.git.tracking import remember
from scp_git.git.transaction import Operation
from scp_git.git.transfer import Progress
from scp_git.git.urls import resolve_remote
from scp_git.layout import ARCHIVE_REF, LEDGER_REF, run_tag_ref
from scp_git.settings import Settings
from scp_git.sync.counting import lacking
from scp_git.sync.peers import NetworkPeer, PathPeer, open_at, own_branches
from scp_git.sync.report import TAGS, Counts, RefResult, RefState, SyncReport
from scp_git.sync.tally import Tally

log = logging.getLogger(__name__)

EVERYTHING = (*BRANCHES, TAGS)
LEDGER = (ARCHIVE_REF, LEDGER_REF, TAGS)
CHAT = BRANCHES

Write = Callable[[Repository, Operation[Any]], Any]
"""Hands an operation to the writer of a repository and waits for what it returns."""

_TAGS_AT_ONCE = 1000
_STUBBORN = 3
"""So often a refusal that looks like a race is tried again while nothing moves on the remote."""
_PAUSE_S = (0.01, 0.02, 0.05, 0.1, 0.2)
_MOVED = ("changed meanwhile", "failed to update ref", "cannot lock ref", "failed to lock", "fetch first")


class _Raced(Exception):
    """Somebody else pushed in between; nothing is lost, it is done again."""


class Syncer:
    """Syncs one repository with one of its remotes."""

    def __init__(
        self,
        repository: Repository,
        settings: Settings,
        write: Write,
        *,
        credentials: Credentials | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.repository = repository
        self.settings = settings
        self._write = write
        self._credentials = credentials
        self._on_progress = on_progress
        self._cancelled = cancelled

    def pull(self, name: str) -> SyncReport:
        """What the remote has is here, merged with ours."""
        peer = self.peer(name, push=False)
        if peer is None:
            return _no_remote(name, BRANCHES)
        tally = Tally(name)
        self._pull(peer, tally)
        return tally.finish()

    def push(
        self, name: str, *, refs: tuple[str, ...] = EVERYTHING, publish_commits: bool = False
    ) -> SyncReport:
        """What the remote has is here, and what is here is there."""
        peer = self.peer(name, push=True)
        if peer is None:
            return _no_remote(name, refs)
        tally = Tally(name)
        deadline = time.monotonic() + self.settings.retry_timeout_s
        while True:
            try:
                self._pull(peer, tally)
                if isinstance(peer, PathPeer):
                    self._publish_at(peer, tally, refs, publish_commits)
                else:
                    self._publish_over(peer, tally, refs, publish_commits)
                return tally.finish()
            except _Raced as exc:
                if time.monotonic() > deadline:
                    raise RemoteError(
                        name, f"others keep pushing at the same time ({exc}); try again"
                    ) from None
                self._pause(tally.tries)
                tally.tries += 1

    def _pause(self, tries: int) -> None:
        """Those who lose often wait less, so that nobody starves."""
        time.sleep(random.uniform(0, _PAUSE_S[max(len(_PAUSE_S) - tries, 0)]))

    def peer(self, name: str, *, push: bool) -> NetworkPeer | PathPeer | None:
        """The other side, or ``None`` without that remote."""
        target = resolve_remote(self.repository, name)
        if target is None:
            return None
        remote = Remote(
            target.push_url if push else target.url,
            name=name,
            git_dir=self.repository.common_dir,
            timeout_s=self.settings.network_timeout_s,
            credentials=self._credentials,
            on_progress=self._on_progress,
            cancelled=self._cancelled,
            durable=self.settings.durability == "full",
        )
        if remote.path is None:
            return NetworkPeer(self.repository, remote)
        other = open_at(name, remote.path)
        if other.common_dir == self.repository.common_dir:
            raise RemoteError(name, "is this repository itself")
        return PathPeer(remote, other)

    def _check_cancelled(self, name: str) -> None:
        if self._cancelled is not None and self._cancelled():
            raise TransferCancelled(name, "the sync was cancelled")

    # ------------------------------------------------------------ pulling

    def _pull(self, peer: NetworkPeer | PathPeer, tally: Tally) -> None:
        self._check_cancelled(peer.name)
        theirs, before = peer.branches(), own_branches(self.repository)
        news = self._news(theirs, before)
        received = Received()
        if news:
            if isinstance(peer, NetworkPeer):
                theirs = {**theirs, **peer.fetch(news)}
            self._check_cancelled(peer.name)
            received = self._receive(peer, {ref: theirs[ref] for ref in news})
            tally.skip(received)
            tally.renamed.update(received.report.renamed)
            tally.received += self._lacking(before, received.trees)
        remember(self.repository, peer.name, theirs)
        after = own_branches(self.repository)
        for ref in BRANCHES:
            tally.pull(ref, _pulled(theirs.get(ref), after.get(ref), ref in received.news))

    def _news(self, theirs: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
        """Those of their branches on which there is something that ours have not."""
        with self.repository.odb() as odb:
            history = History(ObjectStore(odb))
            relations = {
                ref: history.relation(ours[ref], tip) if ref in ours else Relation.BEHIND
                for ref, tip in theirs.items()
            }
        return {
            ref: theirs[ref] for ref, found in relations.items() if found in (Relation.BEHIND, Relation.APART)
        }

    def _receive(self, peer: NetworkPeer | PathPeer, tips: dict[str, str]) -> Received:
        source = peer.other if isinstance(peer, PathPeer) else None
        received: Received = self._write(self.repository, Receive(peer.name, tips, source))
        if received.too_long:
            fetched = NetworkPeer(self.repository, peer.remote).fetch(tips)
            received = self._write(self.repository, Receive(peer.name, fetched))
        return received

    def _lacking(self, mine: Mapping[str, str], theirs: Mapping[str, str]) -> Counts:
        try:
            with self.repository.odb() as odb:
                return lacking(ObjectStore(odb), mine, theirs)
        except StorageFailed as exc:  # what was sieved out of a branch of theirs is looked at here
            log.warning("what went over could not be counted: %s", exc)
            return Counts()

    # ------------------------------------------------------------ publishing at a path

    def _publish_at(self, peer: PathPeer, tally: Tally, refs: tuple[str, ...], publish_commits: bool) -> None:
        """One transaction in the other repository, under its gate: no race can be lost."""
        ours, before = own_branches(self.repository), peer.branches()
        chosen = {ref: oid for ref, oid in ours.items() if ref in refs}
        plan = self._plan(peer.tags(), peer) if TAGS in refs else TagPlan()
        commits = tuple(set(plan.waiting.values())) if publish_commits else ()
        news = {ref: oid for ref, oid in chosen.items() if before.get(ref) != oid}
        tags = (*plan.new, *(plan.waiting if commits else ()))
        if news or tags:
            operation = Receive(
                "what was pushed", chosen, self.repository, published=True, tags=tags, commits=commits
            )
            self._write(peer.other, operation)
        after = peer.branches()
        if any(after.get(ref) != oid for ref, oid in news.items()):
            self._pull(peer, tally)
        for ref in chosen:
            tally.push(ref, RefState.PUSHED if ref in news else RefState.UP_TO_DATE)
        if news:
            tally.sent += self._lacking(before, ours)
        remember(self.repository, peer.name, after)
        if TAGS in refs:
            there = peer.tags()
            tally.waiting = {
                run_id: oid for run_id, oid in plan.waiting.items() if run_tag_ref(run_id) not in there
            }
            tally.tags(pushed=any(run_tag_ref(run_id) in there for run_id in tags))

    def _plan(self, advertised: Mapping[str, str], peer: NetworkPeer | PathPeer) -> TagPlan:
        with self.repository.odb() as odb:
            state = snapshot(self.repository, odb)
            return plan_tags(self.repository, odb, state, advertised, peer.present())

    # ------------------------------------------------------------ publishing over a network

    def _publish_over(
        self, peer: NetworkPeer, tally: Tally, refs: tuple[str, ...], publish_commits: bool
    ) -> None:
        """Archive, ledger, notes, tags, each by a push of its own; after a refusal nothing later goes."""
        ours = self._whole_branches(peer)
        before = {ref: peer.refs[ref] for ref in BRANCHES if ref in peer.refs}
        sent: dict[str, str] = {}
        for ref in (ref for ref in BRANCHES if ref in refs and ref in ours):
            self._check_cancelled(peer.name)
            if before.get(ref) == ours[ref]:
                tally.push(ref, RefState.UP_TO_DATE)
                continue
            refusal = self._push_branch(peer, ref, ours[ref], tally.tries)
            if refusal is not None:
                tally.push(ref, RefState.REJECTED, refusal)
                break
            tally.push(ref, RefState.PUSHED)
            sent[ref] = ours[ref]
            remember(self.repository, peer.name, {ref: ours[ref]})
        else:
            if TAGS in refs:
                self._push_tags(peer, tally, publish_commits)
        if sent:
            tally.sent += self._lacking(before, {**before, **sent})

    def _whole_branches(self, peer: NetworkPeer) -> dict[str, str]:
        """Our tips; those of a shallow clone are made ones that a remote without them can take."""
        ours = own_branches(self.repository)
        if (self.repository.common_dir / "shallow").exists():
            with self.repository.odb() as odb:
                history = History(ObjectStore(odb))
                cut = [ref for ref, oid in ours.items() if ref not in peer.refs and not history.is_whole(oid)]
            if cut:
                self._write(self.repository, StartAfresh(tuple(cut)))
                ours = own_branches(self.repository)
        return ours

    def _push_branch(self, peer: NetworkPeer, ref: str, oid: str, tries: int) -> str | None:
        """Push one branch; returns the remote's words if it refused. Raises ``_Raced`` for a lost race."""
        with self.repository.odb() as odb:
            history = History(ObjectStore(odb))
            known = peer.refs.get(ref)
            if known is not None and history.relation(oid, known) is not Relation.AHEAD:
                raise _Raced(ref)
        answer = peer.remote.push([f"{oid}:{ref}"])[ref]
        if answer is None:
            return None
        moved = peer.remote.refs().get(ref) != known
        if moved or (tries < _STUBBORN and any(words in answer for words in _MOVED)):
            raise _Raced(ref)
        return answer

    def _push_tags(self, peer: NetworkPeer, tally: Tally, publish_commits: bool) -> None:
        plan = self._plan(peer.refs, peer)
        if publish_commits:
            plan.new |= {run_id: self._tag(run_id) for run_id in plan.waiting}
            plan.waiting.clear()
        tally.waiting = plan.waiting
        specs = tag_refspecs(plan)
        refused: dict[str, str] = {}
        for start in range(0, len(specs), _TAGS_AT_ONCE):
            self._check_cancelled(peer.name)
            answers = peer.remote.push(specs[start : start + _TAGS_AT_ONCE])
            refused |= {ref: words for ref, words in answers.items() if words is not None}
            if refused:
                break
        if refused and self._settled(peer, specs):
            refused = {}
        tally.tags(pushed=bool(specs) and not refused, refused=refused)
        if plan.removed and not refused:
            self._remove_tags(peer, tally, plan.removed)

    def _settled(self, peer: NetworkPeer, specs: list[str]) -> bool:
        """Whether others pushed the very same tags meanwhile."""
        there = peer.remote.refs()
        wanted = (spec.removeprefix("+").split(":") for spec in specs)
        return all(there.get(ref) == oid for oid, ref in wanted)

    def _tag(self, run_id: str) -> str:
        return self.repository.refs.read(run_tag_ref(run_id)) or ""

    def _remove_tags(self, peer: NetworkPeer, tally: Tally, run_ids: list[str]) -> None:
        """Take the tags of deleted runs away. A remote that keeps them has the deletions all the same."""
        for start in range(0, len(run_ids), _TAGS_AT_ONCE):
            specs = [f":{run_tag_ref(run_id)}" for run_id in run_ids[start : start + _TAGS_AT_ONCE]]
            for ref, words in peer.remote.push(specs).items():
                tally.push(ref, RefState.PUSHED if words is None else RefState.KEPT, words or "")


def _no_remote(name: str, refs: tuple[str, ...]) -> SyncReport:
    results = tuple(RefResult(ref=ref, state=RefState.NO_REMOTE) for ref in refs)
    return SyncReport(remote=name, pushed=results)


def _pulled(theirs: str | None, ours: str | None, news: bool) -> RefState:
    if news:
        return RefState.UPDATED if theirs == ours else RefState.MERGED
    return RefState.ABSENT if theirs is None and ours is None else RefState.UP_TO_DATE
