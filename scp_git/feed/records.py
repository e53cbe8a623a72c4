"""The records that differ between two states, in the order of their times.

What is compared is what readers see: a run that moved to the archive, an anchor that was
added, a note that was sealed are no changes. While a difference is taken, memory holds one
short row for each record and the messages of one conversation; what a record says is read
when its turn comes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from scp_git.codec import MAX_RECORD_BYTES, JsonObject, load_object, same_json
from scp_git.errors import StorageFailed
from scp_git.feed.history import tree_of
from scp_git.feed.tokens import Tips
from scp_git.git.conversation import Conversation
from scp_git.git.difference import Difference, differing_files
from scp_git.git.notes import MAX_NOTE_BYTES
from scp_git.git.objects import BLOB, TREE, ObjectStore
from scp_git.git.runchat import RunChat
from scp_git.git.snapshot import Snapshot
from scp_git.git.tree import Tree, TreeEditor, encode_name, is_dir, raw_oid
from scp_git.ids import format_time, is_valid_id, parse_time
from scp_git.layout import (
    ARCHIVE_REF,
    LEDGER_REF,
    NOTES_REF,
    RUN_FILE,
    THREAD_FILE,
    TRACE_FILE,
    RecordKind,
    archived_run_dir,
    deleted_path,
    is_part,
    record_of,
    run_dir,
    thread_dir,
)

log = logging.getLogger(__name__)

Kind = Literal["run", "message", "thread", "trace", "state"]
Action = Literal["added", "changed", "deleted", "reset"]

_RECORD_FILES: dict[str, tuple[Kind, str]] = {
    "run": ("run", RUN_FILE),
    "trace": ("trace", TRACE_FILE),
    "thread": ("thread", THREAD_FILE),
}
_TIMES = {"run": "started_at", "trace": "started_at", "thread": "created_at", "message": "ts"}
_DELETED: dict[str, Kind] = {
    "deleted-run": "run",
    "deleted-trace": "trace",
    "deleted-thread": "thread",
    "deleted-message": "message",
}
_SHOWN: dict[str, tuple[str, ...]] = {
    "run": ("type", "subtype", "status", "user", "summary"),
    "trace": ("name", "classification", "user"),
    "thread": ("title",),
    "message": ("user", "thread_id", "run_id", "source"),
}
_TEXT_MAX = 400
_PREVIEW_MAX = 80


@dataclass(frozen=True, slots=True)
class Change:
    """One record that was added, changed or deleted; pass ``token`` as ``since`` to go on after it.

    ``time`` is the record's own (``started_at``, ``ts``, ``created_at``; of a deletion, when it was
    deleted), empty where it has none. ``data`` says the little that a list would show, as the bus
    event of the same change does: the text of an encrypted message is ``[encrypted]``.

    ``state`` / ``reset`` means that what came before the token is not here any more: forget what
    you know, the whole state follows.
    """

    kind: Kind
    action: Action
    id: str
    time: str
    data: Mapping[str, Any]
    token: str


class Row(NamedTuple):
    """A change and the place of its record: a blob, and the number of the line in it."""

    time: str
    id: str
    kind: Kind
    action: Action
    blob: str
    line: int


def rows_between(store: ObjectStore, old: Tips, new: Tips) -> Iterator[Row]:
    """The records that differ between two states, unordered."""
    return _Comparison(store, old, new).rows()


class _Comparison:
    def __init__(self, store: ObjectStore, old: Tips, new: Tips) -> None:
        self.store = store
        self.old = Tips(*(tree_of(store, tip) for tip in old))
        self.new = Tips(*(tree_of(store, tip) for tip in new))
        self._before = Snapshot(*(_editor(store, tree) for tree in self.old))
        self._deletions = _editor(store, self.new.archive)
        self._moved: dict[str, bytes] = {}
        """Messages that are gone from where they were, and their lines: they may turn up elsewhere."""
        self._told: set[str] = set()
        """Messages that may be met again, as they lie in a thread and with a run."""

    def rows(self) -> Iterator[Row]:
        # Notes first: it is from there that messages move to the ledger.
        for ref, old, new in (
            (NOTES_REF, self.old.notes, self.new.notes),
            (ARCHIVE_REF, self.old.archive, self.new.archive),
            (LEDGER_REF, self.old.ledger, self.new.ledger),
        ):
            for record, files in _by_record(ref, differing_files(self.store, old, new)):
                for row in self._rows_of(ref, *record, files):
                    if row.action == "deleted" or not self._is_deleted(row.kind, row.id):
                        yield row

    def _rows_of(self, ref: str, kind: str, id: str, files: list[Difference]) -> Iterator[Row]:
        if kind in _DELETED:
            yield from self._deletion(_DELETED[kind], id, files[0])
        if kind in _RECORD_FILES:
            yield from self._record(ref, *_RECORD_FILES[kind], id, files)
        if kind in ("note", "run-chat", "thread"):
            yield from self._messages(kind, id, files)

    def _is_deleted(self, kind: str, id: str) -> bool:
        return self._deletions.blob(deleted_path(kind, id)) is not None

    def _deletion(self, kind: Kind, id: str, file: Difference) -> Iterator[Row]:
        _, old, new = file
        if old is None and new is not None:
            record = _read(self.store, new) or {}
            yield Row(_time(record.get("ts")), id, kind, "deleted", new, 0)

    # ------------------------------------------------------------ runs, traces, threads

    def _record(self, ref: str, kind: Kind, name: str, id: str, files: list[Difference]) -> Iterator[Row]:
        own = [file for file in files if file[0].endswith(f"/{id}/{name}")]
        others = [file for file in files if file not in own and not _is_chat(kind, file)]
        folder = files[0][0].partition(f"/{id}/")[0] + f"/{id}"
        if own:
            _, old, new = own[0]
        elif others:  # only the events of it
            tree = self.new.archive if ref == ARCHIVE_REF else self.new.ledger
            old = new = _file_at(self.store, tree, f"{folder}/{name}")
        else:
            return
        if new is None:  # moved or gone; if it was deleted, a record says so
            return
        if old is None and kind == "run":
            old = self._elsewhere_before(ref, id)
            others = []
        record = _read(self.store, new)
        if record is None or record.get(f"{kind}_id") != id:
            log.warning("the record of %s %r is damaged and is left out", kind, id)
            return
        if old is None:
            action: Action = "added"
        elif others or not self._same(old, new, record):
            action = "changed"
        else:
            return
        yield Row(_time(record.get(_TIMES[kind])), id, kind, action, new, 0)

    def _elsewhere_before(self, ref: str, run_id: str) -> str | None:
        """The run.json of a run that was there before, but on the other branch."""
        if ref == ARCHIVE_REF:
            return self._before.ledger.blob(f"{run_dir(run_id)}/{RUN_FILE}")
        return _file_at(self.store, self.old.archive, f"{archived_run_dir(run_id)}/{RUN_FILE}")

    def _same(self, old: str, new: str, record: JsonObject) -> bool:
        """Whether two versions of a record say the same; an anchor says nothing about the run."""
        if old == new:
            return True
        before = _read(self.store, old) or {}
        return same_json(_without_anchor(before), _without_anchor(record))

    # ------------------------------------------------------------ messages

    def _messages(self, kind: str, owner: str, files: list[Difference]) -> Iterator[Row]:
        """Messages of one conversation: lines that are new, and lines that are other than they were."""
        parts = [file for file in files if kind == "note" or is_part("messages", _leaf(file[0]))]
        before = {line for _, old, _ in parts for line in _lines(self.store, old)}
        after = {
            line: (new, number)
            for _, _, new in parts
            if new is not None
            for number, line in enumerate(_lines(self.store, new))
        }
        gone = {id: line for line in before - after.keys() if (id := _message_id(line))}
        if kind != "thread":
            self._moved |= gone
        noted: dict[str, bytes] | None = None
        for line in after.keys() - before:
            id, record, (blob, number) = _message_id(line), _parse(line), after[line]
            if not id or self._is_told(id, record):
                continue
            known = gone.get(id) or self._moved.get(id)
            if known is None and kind == "run-chat":
                noted = self._noted_before(owner) if noted is None else noted
                known = noted.get(id)
            if kind == "note" and self._was_in_thread(id, record):
                continue
            if known != line:
                action: Action = "changed" if known else "added"
                yield Row(_time(record.get("ts")), id, "message", action, blob, number)

    def _is_told(self, id: str, record: JsonObject) -> bool:
        """Whether a message that lies in a thread and with a run was told of its other copy."""
        if not (record.get("run_id") and record.get("thread_id")):
            return False
        told = id in self._told
        self._told.add(id)
        return told

    # The ledger moves before the notes do: a state may have been seen that lies between.

    def _was_in_thread(self, id: str, record: JsonObject) -> bool:
        """Whether the copy in the thread said the same before."""
        thread_id = record.get("thread_id")
        if not is_valid_id(thread_id):
            return False
        found = Conversation(self._before.ledger, thread_dir(str(thread_id))).find(id)
        return found is not None and same_json(found, record)

    def _noted_before(self, run_id: str) -> dict[str, bytes]:
        """The messages in the note of a run, as it was: they move from there, and the note follows."""
        lines = RunChat(self._before, run_id, None).note().split(b"\n")
        return {id: line for line in lines if (id := _message_id(line))}


# ---------------------------------------------------------------- what a change says


class Teller:
    """Makes changes of rows; the blob read last is kept, as neighbours often share it."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._last: tuple[str, list[bytes]] = ("", [])

    def change(self, row: Row, token: str) -> Change:
        return Change(row.kind, row.action, row.id, row.time, MappingProxyType(self._data(row)), token)

    def _data(self, row: Row) -> JsonObject:
        if row.kind == "message" and row.action != "deleted":
            if self._last[0] != row.blob:
                self._last = row.blob, list(_lines(self._store, row.blob))
            return _message_data(_parse(self._last[1][row.line]) if row.line < len(self._last[1]) else {})
        record = _read(self._store, row.blob) or {}
        if row.action == "deleted":
            return _texts(record, ("user",))
        data = _texts(record, _SHOWN[row.kind])
        if row.kind == "trace":
            count = record.get("event_count")
            data["event_count"] = count if isinstance(count, int) else 0
        return data


def _message_data(record: JsonObject) -> JsonObject:
    data = _texts(record, _SHOWN["message"])
    for name in ("thread_id", "run_id"):
        data[name] = data[name] if is_valid_id(data[name]) else None
    flags, text = record.get("flags"), record.get("text")
    text = text if isinstance(text, str) else ""
    encrypted = text.startswith("ENC:v1:") or (isinstance(flags, dict) and flags.get("encrypted") is True)
    data["encrypted"] = encrypted
    data["preview"] = "[encrypted]" if encrypted else text[:_PREVIEW_MAX]
    return data


def _texts(record: JsonObject, names: tuple[str, ...]) -> JsonObject:
    return {name: value[:_TEXT_MAX] if isinstance(value := record.get(name), str) else "" for name in names}


# ---------------------------------------------------------------- reading


def _by_record(
    ref: str, files: Iterator[Difference]
) -> Iterator[tuple[tuple[RecordKind, str], list[Difference]]]:
    """The files of each record together; they are neighbours."""
    for record, group in groupby(files, lambda file: record_of(ref, file[0])):
        if record is not None:
            yield record, list(group)


def _editor(store: ObjectStore, tree: str | None) -> TreeEditor:
    """For looking up files; empty where the tree is missing or damaged."""
    try:
        return TreeEditor(store, tree)
    except StorageFailed:
        return TreeEditor(store)


def _file_at(store: ObjectStore, tree: str | None, path: str) -> str | None:
    """The blob at a path. Nothing is kept, as there may be a hundred thousand of them."""
    *folders, leaf = path.split("/")
    oid = tree
    for name in [*folders, leaf]:
        data = store.find(oid, TREE) if oid else None
        try:
            raw = Tree(str(oid), data).raw(encode_name(name)) if data else None
        except StorageFailed:
            return None
        if raw is None or is_dir(raw) == (name is leaf):
            return None
        oid = raw_oid(raw)
    return oid


def _read(store: ObjectStore, blob: str) -> JsonObject | None:
    try:
        data = store.find(blob, BLOB, limit=MAX_RECORD_BYTES)
    except StorageFailed:
        return None
    return (_parse(data) or None) if data is not None else None


def _lines(store: ObjectStore, blob: str | None) -> Iterator[bytes]:
    try:
        data = store.find(blob, BLOB, limit=MAX_NOTE_BYTES) if blob else None
    except StorageFailed as exc:
        log.warning("messages are left out: %s", exc)
        return
    yield from (line for line in (data or b"").split(b"\n") if line.strip())


def _message_id(line: bytes) -> str:
    """The id of a message; empty for a line that is none."""
    id = _parse(line).get("id")
    return id if isinstance(id, str) and is_valid_id(id) else ""


def _parse(data: bytes) -> JsonObject:
    try:
        return load_object(data)
    except ValueError:
        return {}


def _without_anchor(record: JsonObject) -> JsonObject:
    return {name: value for name, value in record.items() if name != "anchor"}


def _time(value: object) -> str:
    try:
        return format_time(parse_time(value)) if isinstance(value, str) else ""
    except ValueError:
        return ""


def _leaf(path: str) -> str:
    return path.rpartition("/")[2]


def _is_chat(kind: str, file: Difference) -> bool:
    return kind == "thread" and is_part("messages", _leaf(file[0]))
