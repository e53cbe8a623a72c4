"""The present state of the three branches, for reading."""

from __future__ import annotations

from dataclasses import dataclass

from scp_git.git.committer import check_format
from scp_git.git.handle import Odb, Repository
from scp_git.git.objects import COMMIT, ObjectStore, parse_commit
from scp_git.git.tree import TreeEditor
from scp_git.layout import ARCHIVE_REF, FORMAT_PATH, LEDGER_REF, NOTES_REF

_ORDER = (NOTES_REF, LEDGER_REF, ARCHIVE_REF)


@dataclass(slots=True)
class Snapshot:
    """The state as it is at one moment.

    The tips are read in the order in which things move: a message from a note to the
    ledger (never back), a run from the ledger to the archive. So nothing is missed.
    """

    notes: TreeEditor
    ledger: TreeEditor
    archive: TreeEditor


def snapshot(repository: Repository, odb: Odb) -> Snapshot:
    """The present state, for reading."""
    return snapshot_at(repository, odb, tuple(repository.refs.read(ref) for ref in _ORDER))


def snapshot_at(repository: Repository, odb: Odb, tips: tuple[str | None, ...]) -> Snapshot:
    """The state at these commits of notes, ledger and archive."""
    store = ObjectStore(odb)
    state = Snapshot(*(TreeEditor(store, tree_of(store, tip), cache=repository.trees) for tip in tips))
    check_format(repository, state.ledger.read(FORMAT_PATH))
    return state


def tree_of(store: ObjectStore, tip: str | None) -> str | None:
    """The tree of a commit; ``None`` where there is no such commit."""
    data = store.find(tip, COMMIT) if tip else None
    return parse_commit(data).tree if data else None
