"""How many records one state has that another one lacks."""

from __future__ import annotations

from collections.abc import Mapping

from scp_git.errors import StorageFailed
from scp_git.git.anchors import find_run
from scp_git.git.difference import differing_files
from scp_git.git.history import History
from scp_git.git.lines import parse_line
from scp_git.git.objects import BLOB, TREE, ObjectStore
from scp_git.git.tree import TreeEditor
from scp_git.ids import is_valid_id
from scp_git.layout import ARCHIVE_REF, LEDGER_REF, NOTES_REF, deleted_path, is_part, record_of, trace_dir
from scp_git.sync.report import Counts

_CHAT = ("thread", "run-chat", "note")
_MAX_READ = 64 * 1024 * 1024


class _State:
    """The trees of three tips, for looking records up."""

    def __init__(self, store: ObjectStore, tips: Mapping[str, str]) -> None:
        self.trees = {ref: _tree(store, tips.get(ref)) for ref in (LEDGER_REF, ARCHIVE_REF, NOTES_REF)}
        self.ledger = _editor(store, self.trees[LEDGER_REF])
        self.archive = _editor(store, self.trees[ARCHIVE_REF])
        self.notes = _editor(store, self.trees[NOTES_REF])

    def deleted(self, kind: str, id: str) -> bool:
        try:
            return is_valid_id(id) and self.archive.blob(deleted_path(kind, id)) is not None
        except StorageFailed:
            return False

    def settled(self, kind: str, id: str) -> bool:
        """Whether there is nothing to be had: it is here, or was deleted."""
        if self.deleted(kind, id):
            return True
        try:
            return find_run(self, id) is not None if kind == "run" else self.ledger.has_dir(trace_dir(id))
        except StorageFailed:  # damaged, so not to be had either
            return False


def lacking(store: ObjectStore, mine: Mapping[str, str], theirs: Mapping[str, str]) -> Counts:
    """The records that the state at the tips ``theirs`` has and the one at ``mine`` lacks.

    Trees may stand for tips. ``theirs`` is our own or was sifted, ``mine`` may be anybody's.
    What was deleted in mine is not lacking. The cost is that of what differs.
    """
    have, offer = _State(store, mine), _State(store, theirs)
    records: dict[str, set[str]] = {"run": set(), "trace": set()}
    # By place, as a message that moved from one part to another is no new one.
    here: set[tuple[str, str, str]] = set()
    there: set[tuple[str, str, str]] = set()
    for ref, tree in offer.trees.items():
        for path, old, new in differing_files(store, have.trees[ref], tree, gone=False):
            kind, id = record_of(ref, path) or ("", "")
            if kind in records and new:
                records[kind].add(id)
            elif kind == "note" or (kind in _CHAT and is_part("messages", path.rpartition("/")[2])):
                here |= {(kind, id, message) for message in _ids(store, old)}
                there |= {(kind, id, message) for message in _ids(store, new)}
    messages = [place for place in there - here if not have.deleted("message", place[2])]
    return Counts(
        runs=sum(not have.settled("run", id) for id in records["run"]),
        messages=len(messages),
        traces=sum(not have.settled("trace", id) for id in records["trace"]),
    )


def _tree(store: ObjectStore, oid: str | None) -> str | None:
    if oid is None or store.kind(oid) == TREE:
        return oid
    return History(store).tree(oid)


def _editor(store: ObjectStore, tree: str | None) -> TreeEditor:
    try:
        return TreeEditor(store, tree)
    except StorageFailed:
        return TreeEditor(store)


def _ids(store: ObjectStore, oid: str | None) -> set[str]:
    try:
        data = store.find(oid, BLOB, limit=_MAX_READ) if oid else None
    except StorageFailed:
        return set()
    lines = (parse_line(line) for line in data.split(b"\n") if line.strip()) if data else ()
    return {id for line in lines if isinstance(id := line.get("id"), str) and id}
