"""Merging two states: a function of what is there on both sides, not of histories.

No merge base is needed, so unrelated and shallow histories merge as well, and the
result does not depend on who merges or in which order (DESIGN: "Merging"). Absence
never deletes; only a record under ``deleted/`` does. Equal subtrees are skipped.
What is taken over is checked: regular files with plain names only.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from scp_git.codec import JsonObject, dump_pretty
from scp_git.git.anchors import State, read_record
from scp_git.git.chatmerge import (
    drop_deleted_messages,
    is_conversation,
    merge_conversation,
    move_note,
    settle_notes,
)
from scp_git.git.conversation import Conversation
from scp_git.git.lines import merge_events, merge_messages, merge_parts, revision
from scp_git.git.names import is_plain_name, is_plain_path
from scp_git.git.notes import find_notes, note_target, read_note, remove_note, write_note
from scp_git.git.objects import BLOB, hash_object
from scp_git.git.runcopy import RunCopy, other_id
from scp_git.git.theirs import differing, differing_dirs
from scp_git.git.tree import REGULAR, TreeEditor, raw_mode, raw_oid
from scp_git.ids import is_valid_id
from scp_git.layout import (
    ARCHIVED_RUNS,
    DELETED,
    FORMAT_PATH,
    GENERAL,
    RUN_CHAT,
    RUN_FILE,
    RUNS,
    THREADS,
    TRACES,
    archived_run_dir,
    archived_run_id,
    deleted_path,
    is_part,
    note_path,
    run_chat_dir,
    run_dir,
)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class MergeReport:
    """What a merge did beyond taking things over."""

    runs: set[str] = field(default_factory=set)
    """Runs that came in or changed; their tags may be missing or must be replaced."""
    replaced_tags: dict[str, str] = field(default_factory=dict)
    """Tag object ids that no anchor gives any more, and the run they belonged to."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Runs that shared an id with another run: new id to old id."""
    refused: list[str] = field(default_factory=list)
    """Paths that were not taken over: symlinks, submodules, bad names, bad ids."""

    def add(self, other: MergeReport) -> None:
        """Take over what another merge did."""
        self.runs |= other.runs
        self.replaced_tags |= other.replaced_tags
        self.renamed |= other.renamed
        self.refused += other.refused


def merge_states(ours: State, theirs: State, *, kept: bool = False) -> MergeReport:
    """Make ``ours`` the union of both states; ``theirs`` is only read.

    ``kept``: a ref keeps all objects of ``theirs`` until ours is published, so what
    only they have is taken over as it lies there instead of being written again.
    """
    merge = _Merge(ours, theirs, kept)
    merge.deletions()
    merge.runs()
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
        self.report = MergeReport()
        self.new_deletions: list[tuple[str, str]] = []
        self.moved_notes: list[tuple[str, str]] = []  # old tag id, surviving run id
        self.moved_chat: set[str] = set()  # folders of theirs that followed a run to its new id
        self.tags: dict[str, set[str]] = {}  # run id: the tag ids of all copies that were met

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
            merged = _merge_deletion(mine, record) if mine else record
            self.ours.archive.put(path, dump_pretty(merged))
            self.new_deletions.append((kind, id))

    def deleted(self, kind: str, id: str) -> bool:
        return self.ours.archive.blob(deleted_path(kind, id)) is not None

    # ------------------------------------------------------------ runs

    def runs(self) -> None:
        candidates = {_name(path) for path in differing_dirs(self.ours.ledger, self.theirs.ledger, RUNS)}
        archived = differing(self.ours.archive, self.theirs.archive, ARCHIVED_RUNS)
        candidates |= {run_id for path, _ in archived if (run_id := archived_run_id(path))}
        for run_id in sorted(candidates):
            if is_valid_id(run_id):
                self._merge_run(run_id)
            else:
                self.report.refused.append(f"{RUNS}/{run_id}")

    def _merge_run(self, run_id: str) -> None:
        copies = self._gather(run_id)
        if not copies:
            return
        sound = [copy for copy in copies if copy.record]
        first = min(sound or copies, key=RunCopy.order)
        groups: dict[str, list[RunCopy]] = {}
        for copy in copies:  # a damaged copy counts as one of the first run: its events may be sound
            groups.setdefault((copy if copy.record else first).message, []).append(copy)
        kept, *others = sorted(groups.items(), key=lambda item: min(copy.order() for copy in item[1]))
        self._store_run(run_id, kept[1])
        for message, group in others:
            other = other_id(run_id, message)
            self.report.renamed[other] = run_id
            self._move_chat(run_id, other, group)
            self._store_run(other, [copy.renamed(other) for copy in group] + self._gather(other))

    def _move_chat(self, run_id: str, other: str, copies: list[RunCopy]) -> None:
        """What a side said under the id goes where that side's run goes."""
        target = Conversation(self.ours.ledger, run_chat_dir(other))
        for state in {copy.ours: self.ours if copy.ours else self.theirs for copy in copies}.values():
            merge_conversation(target, Conversation(state.ledger, run_chat_dir(run_id)), kept=False)
            for path, raw in list(state.ledger.files(run_chat_dir(run_id))):
                if not is_conversation(path):
                    place = f"{target.folder}/{_name(path)}"
                    self._take_file(self.ours.ledger, place, path, raw, state.ledger)
        if any(copy.ours for copy in copies):
            self.ours.ledger.remove(run_chat_dir(run_id))
        if any(not copy.ours for copy in copies):
            self.moved_chat.add(run_chat_dir(run_id))

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
                    if self.kept and state is self.theirs and tree.is_plain() and len(files) == len(tree):
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

    def _store_run(self, run_id: str, copies: list[RunCopy]) -> None:
        """Store one run that all ``copies`` are copies of, with the union of their events."""
        archived = any(copy.archived for copy in copies)
        editor = self.ours.archive if archived else self.ours.ledger
        folder = archived_run_dir(run_id) if archived else run_dir(run_id)
        best = min(copies, key=RunCopy.rank)
        self.report.runs.add(run_id)
        tags = {tag for copy in copies for tag in copy.tags}
        self.tags.setdefault(run_id, set()).update(tags)
        for old in tags - {best.tag_id()}:
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

    # ------------------------------------------------------------ all other files

    def files(self) -> None:
        conversations: set[str] = set()
        for mine, their in ((self.ours.ledger, self.theirs.ledger), (self.ours.archive, self.theirs.archive)):
            for path, raw in differing(mine, their, ""):
                taken = path.startswith((f"{RUNS}/", f"{ARCHIVED_RUNS}/", f"{DELETED}/"))
                if taken or path.rpartition("/")[0] in self.moved_chat:
                    continue
                if mine is self.ours.ledger and is_conversation(path) and _is_plain(path, raw):
                    conversations.add(path.rpartition("/")[0])
                else:
                    self._take_file(mine, path, path, raw, their)
        for folder in sorted(conversations):
            target, source = (Conversation(side.ledger, folder) for side in (self.ours, self.theirs))
            merge_conversation(target, source, kept=self.kept)

    def _take_file(self, mine: TreeEditor, path: str, source: str, raw: bytes, their: TreeEditor) -> None:
        """Merge one file into ours: JSONL as a set of lines, JSON by its revision."""
        if not _is_plain(path, raw):
            self.report.refused.append(source)
            return
        present = mine.blob(path)
        if present is None and not mine.has_dir(path):
            data = their.read(source)
            if data is None:
                self.report.refused.append(source)
            elif self.kept:
                mine.graft(path, raw)
            else:
                _put(mine, path, data)
        elif present is None or present == raw_oid(raw):
            return
        elif is_part("messages", _name(path)):
            _put(mine, path, merge_messages([mine.read(path), their.read(source)]))
        elif is_part("events", _name(path)):
            _put(mine, path, b"".join(merge_events([mine.read(path), their.read(source)])))
        elif _precedence(their, source) < _precedence(mine, path):
            _put(mine, path, their.read(source) or b"")

    # ------------------------------------------------------------ notes

    def notes(self) -> None:
        mine, their = self.ours.notes, self.theirs.notes
        for path, raw in differing(mine, their, ""):
            target = note_target(path)
            if target is None or raw_mode(raw) not in REGULAR:
                self.report.refused.append(path)
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
        for old, run_id in self.moved_notes:
            move_note(self.ours, old, run_id)
        if mine.touched() or any(path.startswith(f"{RUN_CHAT}/") for path in self.ours.ledger.touched()):
            settle_notes(self.ours)

    # ------------------------------------------------------------ what deletions cover

    def apply_deletions(self) -> None:
        for kind, id in self.new_deletions:
            if kind == "run":
                self._delete_run(id)
            elif kind in ("thread", "trace"):
                root = THREADS if kind == "thread" else TRACES
                self.ours.ledger.remove(f"{root}/{id}")
        gone = {id for kind, id in self.new_deletions if kind == "message"}
        for run_id in list(self.report.runs):
            if self.deleted("run", run_id):
                self._delete_run(run_id)
        for root, kind in ((THREADS, "thread"), (TRACES, "trace"), (RUN_CHAT, "run")):
            for id in self.ours.ledger.names(root):
                if self.deleted(kind, id):
                    self.ours.ledger.remove(f"{root}/{id}")
        if self.ours.archive.has_dir(f"{DELETED}/message"):
            drop_deleted_messages(self.ours, gone)

    def _delete_run(self, run_id: str) -> None:
        """Take out the run, and complete its record by the tags of all copies met: their notes go, too."""
        met = self.tags.get(run_id, set()).union(*(copy.tags for copy in self._gather(run_id)))
        path = deleted_path("run", run_id)
        record = read_record(self.ours.archive, path) or {"id": run_id}
        known = record.get("tags")
        tags = met | {tag for tag in (known if isinstance(known, list) else ()) if isinstance(tag, str)}
        if met:
            _put(self.ours.archive, path, dump_pretty({**record, "tags": sorted(tags)}))
        for tag in tags:
            remove_note(self.ours.notes, tag)
        self.ours.ledger.remove(run_chat_dir(run_id))
        self.report.runs.add(run_id)


def _put(editor: TreeEditor, path: str, data: bytes) -> None:
    """Store a file unless it is there; its blob is added, as theirs may be reachable from nowhere soon."""
    if data != editor.read(path):
        editor.put(path, data)


# ---------------------------------------------------------------- which version wins


def _precedence(editor: TreeEditor, path: str) -> tuple[object, ...]:
    """Which of two versions of a file wins: the higher format or ``rev``, then the smaller blob id."""
    oid = editor.blob(path) or "~"
    if path == FORMAT_PATH:
        data = (editor.read(path) or b"").strip()
        return -(int(data) if data.isdigit() else 0), oid
    return -revision(read_record(editor, path) or {}), oid


def _merge_deletion(mine: JsonObject, their: JsonObject) -> JsonObject:
    """The union of the known tags and the smaller (``ts``, ``user``)."""
    first = min(mine, their, key=lambda r: (str(r.get("ts", "")), str(r.get("user", ""))))
    tags = {tag for r in (mine, their) for tag in r.get("tags", ()) if isinstance(tag, str)}
    return {**first, "tags": sorted(tags)} if tags else first


def _deleted_key(path: str) -> tuple[str, str]:
    parts = path.split("/")
    return (parts[1], parts[3]) if len(parts) == 4 else ("", "")


def _is_plain(path: str, raw: bytes) -> bool:
    """Whether this is a plain file with plain names, and not in a folder where messages belong."""
    names = path.split("/")
    usurped = len(names) > 4 and is_conversation("/".join(names[:4]))
    return raw_mode(raw) in REGULAR and not usurped and all(map(is_plain_name, names))


def _name(path: str) -> str:
    return path.rpartition("/")[2]
