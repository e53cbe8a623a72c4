"""The present state of the three branches, for reading."""

from __future__ import annotations

from dataclasses import dataclass

from scp_git.git.committer import check_format
from scp_git.git.handle import Odb, Repository
from scp_git.git.objects import ObjectStore, parse_commit
from scp_git.git.tree import TreeEditor
from scp_git.layout import ARCHIVE_REF, FORMAT_PATH, LEDGER_REF, NOTES_REF


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
    store = ObjectStore(odb)
    editors = []
    for ref in (NOTES_REF, LEDGER_REF, ARCHIVE_REF):
        tip = repository.refs.read(ref)
        data = store.find(tip, "commit") if tip else None
        editors.append(TreeEditor(store, parse_commit(data).tree if data else None))
    state = Snapshot(*editors)
    check_format(repository, state.ledger.read(FORMAT_PATH))
    return state
