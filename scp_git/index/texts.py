"""From the files of the three branches to the texts that a search looks through.

One file gives any number of rows: a run, a trace, a thread's title, or the messages of one
part. A row without words stands for what must not be found but hides other copies of the
same record: an encrypted message, a damaged run on the ledger branch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scp_git.chat.queries import load_message
from scp_git.codec import MAX_RECORD_BYTES, JsonObject, load_object
from scp_git.errors import StorageFailed
from scp_git.git.anchors import run_tag
from scp_git.git.conversation import MAX_READ_BYTES
from scp_git.git.lines import message_lines, parse_line, revision
from scp_git.git.objects import BLOB, TAG, Anchor, ObjectStore, hash_object
from scp_git.layout import ARCHIVE_REF, RUN_FILE, THREAD_FILE, TRACE_FILE, is_part, record_of
from scp_git.ledger.queries import load_run
from scp_git.models import Thread
from scp_git.trace.queries import load_trace

log = logging.getLogger(__name__)

MAX_TEXT = 256 * 1024
"""Of one record so many characters are looked through."""
_SEALED = "ENC:v1:"


@dataclass(slots=True)
class Row:
    """One record as a search knows it; of those with one ``kind`` and ``id`` the highest ``rank`` counts."""

    kind: str
    id: str
    time: str
    title: str = ""
    body: str = ""
    user: str = ""
    run_id: str | None = None
    thread_id: str | None = None
    rank: int = 0
    line: bytes | None = None
    """A message as it is stored: of two with equal rank the lesser counts."""
    noted: str | None = None
    """The object that the note with this message is on; of a run, the object that its notes are on."""


def rows_of(store: ObjectStore, ref: str, path: str, blob: str) -> Iterator[Row]:
    """What is to be found in one file; nothing, if the file is none of ours."""
    owner = record_of(ref, path)
    if owner is None:
        return
    kind, id = owner
    name = path.rpartition("/")[2]
    if kind == "note" or (kind in ("thread", "run-chat") and is_part("messages", name)):
        yield from _messages(store, blob, kind, id)
    elif kind == "run" and path.endswith(f"/{id}/{RUN_FILE}"):
        yield _run(_record(store, blob), id, archived=ref == ARCHIVE_REF)
    elif kind == "trace" and path.endswith(f"/{id}/{TRACE_FILE}"):
        yield from _trace(_record(store, blob), id)
    elif kind == "thread" and path.endswith(f"/{id}/{THREAD_FILE}"):
        yield from _thread(_record(store, blob), id)


def _record(store: ObjectStore, blob: str) -> JsonObject:
    try:
        data = store.find(blob, BLOB, limit=MAX_RECORD_BYTES)
        return load_object(data) if data else {}
    except (ValueError, StorageFailed):
        return {}


def _run(record: JsonObject, id: str, *, archived: bool) -> Row:
    # Readers take the copy on the ledger branch, sound or not.
    row = Row("run", id, "", run_id=id, rank=0 if archived else 1, noted=_tag(record, id))
    run = load_run(record)
    if run is not None and run.run_id == id:
        row.time, row.user = run.started_at, run.user
        row.title = _cut([run.summary or run.subtype or run.type])
        words = [run.type, run.subtype, run.status, run.user, run.environment, id]
        row.body = _cut([*words, *run.modules_affected, *_leaves(run.metadata)])
    return row


def _tag(record: JsonObject, id: str) -> str | None:
    """The object that the run's notes are on, if it has an anchor."""
    anchor = Anchor.parse(record.get("anchor"))
    try:
        return hash_object(TAG, run_tag(id, record, anchor)) if anchor else None
    except ValueError:  # a foreign record that cannot be spelled in UTF-8
        return None


def _trace(record: JsonObject, id: str) -> Iterator[Row]:
    trace = load_trace(record) if record else None
    if trace is not None and trace.trace_id == id:
        row = Row("trace", id, trace.started_at, user=trace.user)
        row.title = _cut([trace.name or trace.auto_summary])
        row.body = _cut([trace.auto_summary, trace.classification, trace.user, id])
        yield row


def _thread(record: JsonObject, id: str) -> Iterator[Row]:
    try:
        thread = Thread.model_validate(record) if record.get("created_at") else None
    except ValueError:
        return
    if thread is not None and thread.thread_id == id:
        row = Row("thread", id, thread.created_at, user=thread.created_by, thread_id=id)
        row.title = _cut([thread.title])
        row.body = _cut([*thread.tags, thread.created_by, id])
        row.run_id = thread.anchor_run
        yield row


def _messages(store: ObjectStore, blob: str, kind: str, owner: str) -> Iterator[Row]:
    try:
        data = store.find(blob, BLOB, limit=MAX_READ_BYTES) or b""
    except StorageFailed as exc:
        log.warning("messages are left out: %s", exc)
        return
    for key, line in message_lines([data]):
        record = parse_line(line) if all(key) else {}
        message = load_message(record) if record else None
        if message is None:
            continue
        sealed = message.flags.encrypted or message.text.startswith(_SEALED)
        row = Row("message", message.id, message.ts, user=message.user)
        # As of two versions in one place: the higher revision, then the encrypted one.
        row.rank = 2 * revision(record) + sealed
        if not sealed:
            row.title, row.body, row.line = _cut([message.user]), _cut([message.text]), line
        row.noted = owner if kind == "note" else None
        # What a message in a note says of its run is only believed where the run agrees.
        row.run_id = owner if kind == "run-chat" else message.run_id if kind == "note" else None
        row.thread_id = owner if kind == "thread" else None
        yield row


def _leaves(value: Any) -> Iterator[str]:
    """The keys and values of plain JSON as texts."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _cut(texts: list[str]) -> str:
    """The texts in lines, without what SQLite would take for their end, or a search for its mark."""
    return "\n".join(text for text in texts if text)[:MAX_TEXT].translate({0: " ", 1: " "})
