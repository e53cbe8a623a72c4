"""Merging two states: a function of what is there on both sides, not of histories.

No merge base is needed, so unrelated and shallow histories merge as well, and the
result does not depend on who merges or in which order (DESIGN: "Merging"). Absence
never deletes; only a record under ``deleted/`` does. Equal subtrees are skipped.
What is taken over is checked: regular files with plain names only.
"""

from __future__ import annotations

import logging

from scp_git.codec import dump_pretty
from scp_git.git.anchors import State, read_record
from scp_git.git.chatmerge import (
    drop_deleted_messages,
    is_conversation,
    merge_conversation,
    move_note,
    settle_notes,
)
from scp_git.git.conversation import Conversation
from scp_git.git.deletions import merge_deletions, tags_of_deleted, texts_of
from scp_git.git.lines import merge_messages
from scp_git.git.mergereport import MergeReport
from scp_git.git.notes import find_notes, note_target, read_note, remove_note, write_note
from scp_git.git.runmerge import RunMerge
from scp_git.git.takeover import may_be_taken, put, take_file
from scp_git.git.theirs import differing
from scp_git.git.tree import REGULAR, raw_mode
from scp_git.ids import is_valid_id
from scp_git.layout import (
    ARCHIVED_RUNS,
    DELETED,
    GENERAL,
    RUN_CHAT,
    RUNS,
    THREADS,
    TRACES,
    deleted_path,
    note_path,
)

log = logging.getLogger(__name__)

_COVERED = ((THREADS, "thread"), (TRACES, "trace"), (RUN_CHAT, "run"))
"""Folders on the ledger branch that a deletion of such a record covers."""


def merge_states(ours: State, theirs: State, *, kept: bool = False, thorough: bool = False) -> MergeReport:
    """Make ``ours`` the union of both states; ``theirs`` is only read.

    ``kept``: a ref keeps all objects of ``theirs`` until ours is published, so what
    only they have is taken over as it lies there instead of being written again.
    ``thorough``: ours may hold what its own deletions cover, as its branches are not
    of one moment; that goes, too.
    """
    merge = _Merge(ours, theirs, kept)
    merge.thorough = thorough
    merge.deletions()
    merge.runs.run(merge.new("run"))
    merge.files()
    merge.notes()
    merge.apply_deletions()
    for path in merge.report.refused:
        log.warning("not merged, as it is no plain file with a plain name: %r", path)
    return merge.report


class _Merge:
    def __init__(self, ours: State, theirs: State, kept: bool) -> None:
        self.ours = ours
        self.theirs = theirs
        self.kept = kept
        self.thorough = False
        self.report = MergeReport()
        self.runs = RunMerge(ours, theirs, self.report, kept=kept)
        self.new_deletions: list[tuple[str, str]] = []

    # ------------------------------------------------------------ deletions

    def deletions(self) -> None:
        for path, _ in differing(self.ours.archive, self.theirs.archive, DELETED):
            kind, id = _deleted_key(path)
            record = read_record(self.theirs.archive, path)
            undeletable = (kind, id) == ("thread", GENERAL)
            if record is None or not is_valid_id(id) or path != deleted_path(kind, id) or undeletable:
                self.report.refused.append(path)
                continue
            mine = read_record(self.ours.archive, path)
            merged = merge_deletions(mine, record) if mine else record
            self.ours.archive.put(path, dump_pretty(merged))
            self.new_deletions.append((kind, id))

        if self.thorough:
            for root, kind in ((RUNS, "run"), *_COVERED):
                known = [id for id in self.ours.ledger.names(root) if self.deleted(kind, id)]
                self.new_deletions += [(kind, id) for id in known]

    def deleted(self, kind: str, id: str) -> bool:
        return self.ours.archive.blob(deleted_path(kind, id)) is not None

    # ------------------------------------------------------------ all other files

    def files(self) -> None:
        conversations: set[str] = set()
        for mine, their in ((self.ours.ledger, self.theirs.ledger), (self.ours.archive, self.theirs.archive)):
            for path, raw in differing(mine, their, ""):
                taken = path.startswith((f"{RUNS}/", f"{ARCHIVED_RUNS}/", f"{DELETED}/"))
                if taken or path.rpartition("/")[0] in self.runs.moved_chat:
                    continue
                if mine is self.ours.ledger and is_conversation(path) and may_be_taken(path, raw):
                    conversations.add(path.rpartition("/")[0])
                elif not take_file(mine, path, raw, their, path, kept=self.kept):
                    self.report.refused.append(path)
        for folder in sorted(conversations):
            target, source = (Conversation(side.ledger, folder) for side in (self.ours, self.theirs))
            merge_conversation(target, source, kept=self.kept)

    # ------------------------------------------------------------ notes

    def notes(self) -> None:
        mine, their = self.ours.notes, self.theirs.notes
        news = list(differing(mine, their, ""))
        gone = tags_of_deleted(self.ours.archive) if news else set()
        for path, raw in news:
            target = note_target(path)
            if target is None or raw_mode(raw) not in REGULAR:
                self.report.refused.append(path)
            elif target in gone:
                continue
            elif not find_notes(mine, target):
                data = read_note(their, target, limit=None)
                if self.kept and data and path == note_path(target) and len(find_notes(their, target)) == 1:
                    mine.graft(path, raw)
                else:
                    write_note(mine, target, data or b"")
            else:
                copies = [read_note(side, target, limit=None) for side in (mine, their)]
                lines = merge_messages(copies)
                if lines != copies[0]:
                    write_note(mine, target, lines)
        for old, run_id in self.runs.moved_notes:
            move_note(self.ours, old, run_id)
        if mine.touched() or any(path.startswith(f"{RUN_CHAT}/") for path in self.ours.ledger.touched()):
            settle_notes(self.ours)

    # ------------------------------------------------------------ what deletions cover

    def apply_deletions(self) -> None:
        for id in sorted(self.new("run") | self.runs.gone.keys()):
            self._complete(id)
        gone = self.new("message")
        changed = list(self.ours.ledger.touched())
        for root, kind in _COVERED:
            ids = {path.split("/")[2] for path in changed if path.startswith(f"{root}/")}
            for id in ids | self.new(kind):
                if self.deleted(kind, id):
                    self.ours.ledger.remove(f"{root}/{id}")
        if self.ours.archive.has_dir(f"{DELETED}/message"):
            drop_deleted_messages(self.ours, gone, everywhere=self.thorough)

    def new(self, kind: str) -> set[str]:
        """The ids of this kind whose deletion came in or grew."""
        return {id for each, id in self.new_deletions if each == kind}

    def _complete(self, run_id: str) -> None:
        """Have a deletion name the tags of all copies that were met; their notes go, too."""
        path = deleted_path("run", run_id)
        record = read_record(self.ours.archive, path) or {"id": run_id}
        known = texts_of(record, "tags")
        tags = known | self.runs.gone.get(run_id, set())
        if tags != known:
            put(self.ours.archive, path, dump_pretty({**record, "tags": sorted(tags)}))
        for tag in tags:
            remove_note(self.ours.notes, tag)
        self.report.runs.add(run_id)


def _deleted_key(path: str) -> tuple[str, str]:
    parts = path.split("/")
    return (parts[1], parts[3]) if len(parts) == 4 else ("", "")
