"""Merging runs: all copies of one run become one, and of several runs of one id each keeps a place.

Two runs of one id (what the tag message would say differs): the one with the smaller
(``started_at``, message) keeps the id, the other gets one that its content gives. A
deletion takes what was deleted; another run that somebody recorded under the same id
gets its other id, too, as the deleted one is never used again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from scp_git.codec import tag_message
from scp_git.git.anchors import State
from scp_git.git.chatmerge import is_conversation, merge_conversation
from scp_git.git.conversation import Conversation
from scp_git.git.deletions import covers, deletion_of, message_digest, tag_under, texts_of
from scp_git.git.lines import merge_parts
from scp_git.git.mergereport import MergeReport
from scp_git.git.names import is_plain_path
from scp_git.git.objects import BLOB, hash_object
from scp_git.git.runcopy import RunCopy, other_id
from scp_git.git.takeover import take_file
from scp_git.git.theirs import differing, differing_dirs
from scp_git.git.tree import FILE, REGULAR, Tree, TreeEditor, raw_mode
from scp_git.ids import is_valid_id
from scp_git.layout import (
    ARCHIVED_RUNS,
    RUN_FILE,
    RUNS,
    archived_run_dir,
    archived_run_id,
    run_chat_dir,
    run_dir,
)

_OTHER_ID = re.compile(r"(.+)-([0-9a-f]{8})")


class RunMerge:
    """Merges the runs of two states into ours, once the deletions of both are in ours."""

    def __init__(self, ours: State, theirs: State, report: MergeReport, *, kept: bool) -> None:
        self.ours = ours
        self.theirs = theirs
        self.report = report
        self.kept = kept
        self.moved_notes: list[tuple[str, str]] = []
        """Tag ids that no anchor gives any more, and the run that has what was said under them."""
        self.moved_chat: set[str] = set()
        """Folders of theirs that followed a run to its new id, or went with it."""
        self.gone: dict[str, set[str]] = {}
        """Deletions that took a run, and the tag ids of all its copies."""

    def run(self, deleted: Iterable[str]) -> None:
        """Merge every run that differs; ``deleted`` are the ids whose deletions came in or grew."""
        ours, theirs = self.ours, self.theirs
        candidates = {_name(path) for path in differing_dirs(ours.ledger, theirs.ledger, RUNS)}
        archived = differing(ours.archive, theirs.archive, ARCHIVED_RUNS)
        candidates |= {run_id for path, _ in archived if (run_id := archived_run_id(path))}
        for run_id in deleted:
            digests = texts_of(deletion_of(ours, run_id) or {}, "digests")
            candidates |= {run_id, *(other_id(run_id, digest) for digest in digests)}
        for run_id in sorted(candidates):
            if is_valid_id(run_id):
                self._settle(run_id, self._gather(run_id))
            else:
                self.report.refused.append(f"{RUNS}/{run_id}")

    def _settle(self, run_id: str, copies: list[RunCopy]) -> None:
        """Give each run among the copies of one id its place, or its end."""
        taken = deletion_of(self.ours, run_id) is not None
        for message, group in _by_run(copies):
            deletion = self._deletion(run_id, group)
            if deletion is not None:
                self._drop(deletion, run_id, group)
            elif not taken:
                self._store(run_id, group)
                taken = True
            else:
                other = other_id(run_id, message_digest(message))
                self.report.renamed[other] = run_id
                self._move_chat(run_id, other, group)
                self._settle(other, [copy.renamed(other) for copy in group] + self._gather(other))

    def _deletion(self, run_id: str, group: list[RunCopy]) -> str | None:
        """The id under which this run was deleted: its own, or the one that it had to give up."""
        sound = next((copy for copy in group if copy.record), None)
        own = deletion_of(self.ours, run_id)
        if own is not None and covers(own, sound.message if sound else ""):
            return run_id
        match = _OTHER_ID.fullmatch(run_id)
        first = match[1] if match else ""
        if sound is None or match is None or not is_valid_id(first):
            return None
        former = deletion_of(self.ours, first)
        if former is None:
            return None
        digest = message_digest(_said_as(group, first))
        return first if digest.startswith(match[2]) and digest in texts_of(former, "digests") else None

    def _drop(self, deletion: str, run_id: str, copies: list[RunCopy]) -> None:
        """Take out a deleted run; its tags under both of its ids are noted, whichever it had."""
        other = other_id(deletion, message_digest(_said_as(copies, deletion)))
        tags = {tag for copy in copies for tag in copy.tags}
        tags |= {tag for copy in copies for id in (deletion, other) if (tag := tag_under(copy.record, id))}
        self.gone.setdefault(deletion, set()).update(tags)
        self.report.gone_tags |= tags
        self.report.runs.add(run_id)
        self.moved_chat.add(run_chat_dir(run_id))
        self.ours.ledger.remove(run_chat_dir(run_id))

    def _move_chat(self, run_id: str, other: str, copies: list[RunCopy]) -> None:
        """What a side said under the id goes where that side's run goes."""
        source, target = run_chat_dir(run_id), Conversation(self.ours.ledger, run_chat_dir(other))
        for state in {copy.ours: self.ours if copy.ours else self.theirs for copy in copies}.values():
            merge_conversation(target, Conversation(state.ledger, source), kept=False)
            for path, raw in list(state.ledger.files(source)):
                if not is_conversation(path):
                    place = f"{target.folder}/{_name(path)}"
                    if not take_file(self.ours.ledger, place, raw, state.ledger, path, kept=self.kept):
                        self.report.refused.append(path)
        if any(copy.ours for copy in copies):
            self.ours.ledger.remove(source)
        if any(not copy.ours for copy in copies):
            self.moved_chat.add(source)

    # ------------------------------------------------------------ copies

    def _gather(self, run_id: str) -> list[RunCopy]:
        """All copies of a run, hot and archived, of both sides; ours are taken out."""
        copies = []
        for folder, archived in ((run_dir(run_id), False), (archived_run_dir(run_id), True)):
            for state in (self.ours, self.theirs):
                editor = state.archive if archived else state.ledger
                tree = editor.folder(folder)
                if tree is not None:
                    files = self._files_of(editor, folder)
                    copy = RunCopy(run_id, files, archived=archived, ours=state is self.ours)
                    if self.kept and state is self.theirs and _is_plain(tree) and len(files) == len(tree):
                        copy.raw = editor.raw(folder)
                    copies.append(copy)
        self.ours.ledger.remove(run_dir(run_id))
        self.ours.archive.remove(archived_run_dir(run_id))
        return copies

    def _files_of(self, editor: TreeEditor, folder: str) -> dict[str, bytes]:
        """The regular files of one run, by name."""
        files = {}
        for path, raw in editor.files(folder):
            name = path[len(folder) + 1 :]
            regular = raw_mode(raw) in REGULAR and is_plain_path(name)
            data = editor.read(path) if regular else None
            if data is None:
                self.report.refused.append(path)
            else:
                files[name] = data
        return files

    def _store(self, run_id: str, copies: list[RunCopy]) -> None:
        """Store one run that all ``copies`` are copies of, with the union of their events."""
        archived = any(copy.archived for copy in copies)
        editor = self.ours.archive if archived else self.ours.ledger
        folder = archived_run_dir(run_id) if archived else run_dir(run_id)
        best = min(copies, key=RunCopy.rank)
        self.report.runs.add(run_id)
        for old in {tag for copy in copies for tag in copy.tags} - {best.tag_id()}:
            self.report.replaced_tags[old] = run_id
            self.moved_notes.append((old, run_id))
        if len(copies) == 1 and best.raw is not None:
            editor.graft(folder, best.raw)
            return
        files = merge_parts("events", [copy.files for copy in copies])
        for name in {name for copy in copies for name in copy.others()}:
            versions = [copy.files[name] for copy in copies if name in copy.files]
            files[name] = min(versions, key=lambda data: hash_object(BLOB, data))
        if RUN_FILE in best.files:
            files[RUN_FILE] = best.files[RUN_FILE]
        for name, data in files.items():
            editor.put(f"{folder}/{name}", data)


def _said_as(group: list[RunCopy], run_id: str) -> str:
    """What the tag of a run would say if it had this id; empty if all copies are damaged."""
    records = (copy.record for copy in group if copy.record)
    return next((tag_message({**record, "run_id": run_id}) for record in records), "")


def _by_run(copies: list[RunCopy]) -> list[tuple[str, list[RunCopy]]]:
    """The copies of each run, by what its tag would say; the run that comes first keeps the id.

    A damaged copy counts as one of the first run: its events may be sound.
    """
    sound = [copy for copy in copies if copy.record]
    groups: dict[str, list[RunCopy]] = {}
    for copy in copies:
        first = copy if copy.record else min(sound or copies, key=RunCopy.order)
        groups.setdefault(first.message, []).append(copy)
    return sorted(groups.items(), key=lambda item: min(copy.order() for copy in item[1]))


def _is_plain(tree: Tree) -> bool:
    """Whether a folder is spelled as git spells it, and holds ordinary files only."""
    return all(raw_mode(raw) == FILE for raw in tree.raw_items().values()) and tree.is_canonical()


def _name(path: str) -> str:
    return path.rpartition("/")[2]
