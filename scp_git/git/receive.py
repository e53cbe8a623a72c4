"""Taking over another repository's state, as one operation: after a fetch, or in the repository at a path.

The state merge of ``merge.py`` decides what is there afterwards. Here it is decided
what the branches stand on, so that histories stay linear and clones come to rest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from scp_git.errors import RemoteError
from scp_git.git.copying import Joined, copy_history, copy_tree
from scp_git.git.handle import Repository
from scp_git.git.history import History, Relation
from scp_git.git.merge import merge_states
from scp_git.git.mergereport import MergeReport
from scp_git.git.objects import ObjectStore, Reader
from scp_git.git.transaction import Footing, Transaction
from scp_git.git.tree import TreeEditor
from scp_git.git.validate import Skipped, fetched_state
from scp_git.layout import ARCHIVE_REF, LEDGER_REF, NOTES_REF

log = logging.getLogger(__name__)

MAX_COPIED = 500
"""So many commits are copied one by one; of a longer history only the state is taken."""


@dataclass(slots=True)
class Received:
    """What came of it."""

    news: set[str] = field(default_factory=set)
    """The branches on which they had commits that we had not."""
    report: MergeReport = field(default_factory=MergeReport)
    skipped: list[Skipped] = field(default_factory=list)
    """What is wrong on their branches."""
    trees: dict[str, str] = field(default_factory=dict)
    """Their present state without that, by ref."""
    too_long: bool = False
    """Nothing was done: there are too many commits to be copied, or the history is a shallow clone's."""


@dataclass(frozen=True, slots=True)
class Receive:
    """Afterwards the state has all that theirs has.

    Pulled: our branches take their tips where nothing of ours is missing there, else
    what is ours alone becomes one commit on theirs. ``published``: this repository
    is the one that somebody publishes to, and its branches only ever move forward;
    they take the other's tips where those descend from its own.
    """

    name: str
    """What the other repository is called, for messages."""
    tips: Mapping[str, str]
    source: Repository | None = None
    """Where their objects are, unless they were fetched already."""
    published: bool = False
    tags: tuple[str, ...] = ()
    """Further runs whose tags are to be made if they can be."""
    commits: tuple[str, ...] = ()
    """Commits to be copied as well, with all of their history, so that tags can be made."""
    size: int = 0

    def apply(self, tx: Transaction) -> Received:
        received = Received()
        odb = self.source.open_odb() if self.source else None
        history = History(ObjectStore(Joined(tx.store, odb)) if odb else tx.store)
        whole = self._copy(tx, history, odb) if odb else True
        if not whole and not self.published:
            received.too_long = True
            return received
        for ref, tip in self.tips.items():
            if history.get(tip) is None:
                raise RemoteError(self.name, f"{ref} leads to no commit that can be read; repair it there")
        relations = {ref: _relation(tx.footing[ref], tip, history) for ref, tip in self.tips.items()}
        received.news = {ref for ref, relation in relations.items() if relation in _NEWS}
        for trees in self._states(tx, history, received.news):
            theirs = fetched_state(tx.store, trees, tx, remote=self.name)
            received.skipped += theirs.skipped
            received.trees = received.trees or theirs.trees()
            received.report.add(merge_states(tx, theirs, kept=True))
        tx.settle_tags(received.report)
        for run_id in self.tags:
            tx.project_tag(run_id)
        for ref in received.news:
            self._stand(tx, history, ref, whole and relations[ref] is Relation.BEHIND)
            tx.subjects.append(f"ledger: merge {self.name}")
        return received

    def _copy(self, tx: Transaction, history: History, odb: Reader) -> bool:
        """Bring their objects here; False if only their present state could be brought."""
        ours = [parent for footing in tx.footing.values() for parent in footing.parents]
        if self.commits:
            heads = tx.repository.refs.list("refs/heads/").values()
            copy_history(odb, tx.store, self.commits, heads, limit=100 * MAX_COPIED)
        if copy_history(odb, tx.store, self.tips.values(), ours, limit=MAX_COPIED):
            return True
        if self.published:
            for ref, tip in self.tips.items():
                copy_tree(odb, tx.store, history.tree(tip), [_editors(tx)[ref].write()])
        return False

    def _states(self, tx: Transaction, history: History, news: set[str]) -> Iterator[dict[str, str]]:
        """Their present state, and what others than this library did to it.

        A person's commit may come from a stale index and lack what its parents had.
        """
        yield {ref: history.tree(self.tips[ref]) for ref in news}
        for ref in sorted(news):
            tip = self.tips[ref]
            if not history.is_ours(tip):
                log.info("%s of %s was not made by this library", ref, self.name)
                trusted = next(iter(tx.footing[ref].parents), None)
                older = (oid for oid in history.foreign(tip, trusted)[1:] if history.get(oid))
                yield from ({ref: history.tree(oid)} for oid in older)

    def _stand(self, tx: Transaction, history: History, ref: str, forward: bool) -> None:
        """Decide what the branch's next commit stands on."""
        theirs, ours = self.tips[ref], tx.footing[ref]
        candidate = {history.tree(theirs): theirs}
        if not self.published:
            tx.footing[ref] = Footing((theirs,), candidate)
        elif forward:
            tx.footing[ref] = Footing(ours.parents, {**candidate, **ours.candidates})


_NEWS = (Relation.BEHIND, Relation.APART)


def _editors(tx: Transaction) -> dict[str, TreeEditor]:
    return {LEDGER_REF: tx.ledger, ARCHIVE_REF: tx.archive, NOTES_REF: tx.notes}


def _relation(ours: Footing, theirs: str, history: History) -> Relation:
    """How our branch stands to their tip; it has several parents only after a person made it diverge."""
    found = {history.relation(parent, theirs) for parent in ours.parents}
    if not found or found == {Relation.BEHIND}:
        return Relation.BEHIND
    return Relation.AHEAD if found & {Relation.SAME, Relation.AHEAD} else Relation.APART


@dataclass(frozen=True, slots=True)
class StartAfresh:
    """Afterwards these branches have the same state without a history.

    For a shallow clone that publishes to a remote which has none of it: what the
    clone lacks it cannot give, and merging needs no common history.
    """

    refs: tuple[str, ...]
    size: int = 0

    def apply(self, tx: Transaction) -> None:
        for ref in self.refs:
            tx.footing[ref] = Footing((), {})
        tx.subjects.append("ledger: the state of a shallow clone")
