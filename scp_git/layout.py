"""Every ref name and every path in our trees, as functions in both directions.

See docs/format.md. Nothing here touches a repository.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Literal

from scp_git.ids import is_valid_id

FORMAT = 1
FORMAT_PATH = "FORMAT"
FORMAT_BYTES = f"{FORMAT}\n".encode()
TRAILER = f"Scp-Git: {FORMAT}"

LEDGER_REF = "refs/heads/scp-ledger"
ARCHIVE_REF = "refs/heads/scp-ledger-archive"
NOTES_REF = "refs/notes/scp-chat"
RUN_TAG_PREFIX = "refs/tags/scp/run/"
REMOTES_PREFIX = "refs/scp/remotes/"

VIEW_DIR = ".scp-ledger"
VIEW_ADMIN_NAME = "scp-ledger"
IGNORE_RULE = ".scp-ledger/"

RUNS = "ledger/runs"
TRACES = "ledger/traces"
THREADS = "chat/threads"
RUN_CHAT = "chat/runs"
ARCHIVED_RUNS = "runs"
DELETED = "deleted"

RUN_FILE = "run.json"
TRACE_FILE = "trace.json"
THREAD_FILE = "thread.json"
GENERAL = "general"
"""The id of the thread that is always there."""
MESSAGES_FILE = "messages.jsonl"

RecordKind = Literal[
    "run", "trace", "thread", "run-chat", "note",
    "deleted-run", "deleted-trace", "deleted-thread", "deleted-message",
]  # fmt: skip
"""What a file can belong to; ``run-chat`` is what was said about a run beside its note."""

_LEDGER_FOLDERS: dict[str, RecordKind] = {
    RUNS: "run",
    TRACES: "trace",
    THREADS: "thread",
    RUN_CHAT: "run-chat",
}
_DELETIONS: dict[str, RecordKind] = {
    "run": "deleted-run",
    "trace": "deleted-trace",
    "thread": "deleted-thread",
    "message": "deleted-message",
}
_DATE_IN_ID = re.compile(r"run_(\d{4})-(\d{2})-(\d{2})T")
_HEX = frozenset("0123456789abcdef")
RECORD_FOLDERS = {RUNS: "run", TRACES: "trace", THREADS: "thread", RUN_CHAT: "run"}
"""The folders of the ledger that hold a folder for each record, and the records' kind."""

_SPLIT = re.compile(r"messages-(\d{4}-\d{2}-\d{2}T)(\d{2})(\d{2})(\d{2}\.\d{6})-(.+)\.jsonl")
_PART = re.compile(r"(events|messages)(?:-[A-Za-z0-9._-]+)?\.jsonl")


def run_dir(run_id: str) -> str:
    return f"{RUNS}/{run_id}"


def trace_dir(trace_id: str) -> str:
    return f"{TRACES}/{trace_id}"


def archived_run_dir(run_id: str) -> str:
    """``runs/<YYYY/MM/DD | other>/<2 hex of sha1(run_id)>/<run_id>``: a function of the id alone."""
    match = _DATE_IN_ID.match(run_id)
    day = "/".join(match.groups()) if match else "other"
    return f"{ARCHIVED_RUNS}/{day}/{_shard(run_id)}/{run_id}"


def archived_run_id(path: str) -> str | None:
    """The run that a file on the archive branch belongs to."""
    parts = path.split("/")
    place = 3 if parts[1:2] == ["other"] else 5
    run_id = parts[place] if len(parts) > place + 1 else ""
    return run_id if path.startswith(f"{archived_run_dir(run_id)}/") else None


def deleted_path(kind: str, id: str) -> str:
    """Where the deletion of a run, trace, thread or message is recorded, on the archive branch."""
    return f"{DELETED}/{kind}/{_shard(id)}/{id}"


def run_chat_dir(run_id: str) -> str:
    return f"{RUN_CHAT}/{run_id}"


def thread_dir(thread_id: str) -> str:
    return f"{THREADS}/{thread_id}"


def run_tag_ref(run_id: str) -> str:
    return RUN_TAG_PREFIX + run_id


def run_tag_name(run_id: str) -> str:
    """The tag's short name, as it stands inside the tag object."""
    return f"scp/run/{run_id}"


def run_id_of_tag(ref: str) -> str | None:
    """The run id of a full ref name, or ``None`` if it is no run tag with a valid id."""
    run_id = ref.removeprefix(RUN_TAG_PREFIX)
    return run_id if run_id != ref and is_valid_id(run_id) else None


def part_name(stem: str, number: int) -> str:
    """``events.jsonl``, ``events-0002.jsonl``, ...: the parts of one stream, counted from 1."""
    return f"{stem}.jsonl" if number == 1 else f"{stem}-{number:04d}.jsonl"


def is_part(stem: str, name: str) -> bool:
    """Whether a file of a folder belongs to the stream ``events`` or ``messages``."""
    match = _PART.fullmatch(name)
    return match is not None and match[1] == stem


def messages_part(ts: str, id: str) -> str:
    """The part of a conversation that begins with the message of this (stored) time and id."""
    return f"messages-{ts[:26].replace(':', '')}-{id}.jsonl" if id else MESSAGES_FILE


def split_key(name: str) -> tuple[str, str] | None:
    """The time and id that a part's name gives, empty for the first part; ``None`` for any other name."""
    if name == MESSAGES_FILE:
        return "", ""
    match = _SPLIT.fullmatch(name)
    if match is None or not is_valid_id(match[5]):
        return None
    day, hours, minutes, seconds, id = match.groups()
    return f"{day}{hours}:{minutes}:{seconds}+00:00", id


def is_record_file(name: str) -> bool:
    """Whether a file in the folder of a run, a trace or a thread is one that we write."""
    return name in (RUN_FILE, TRACE_FILE, THREAD_FILE) or is_part("events", name) or is_part("messages", name)


def is_run_file(name: str) -> bool:
    """Whether a file in a run's folder is one that we write."""
    return name == RUN_FILE or is_part("events", name)


def note_path(object_id: str) -> str:
    """Where we write the note on an object: one fan-out level, 2/38."""
    return f"{object_id[:2]}/{object_id[2:]}"


def note_target(path: str) -> str | None:
    """The object that a path in a notes tree stands for, or ``None`` if it is no note."""
    name = path.replace("/", "")
    return name if len(name) == 40 and _HEX.issuperset(name) else None


def record_of(ref: str, path: str) -> tuple[RecordKind, str] | None:
    """The record that a file of one of our three refs belongs to, and its id; ``None`` if to none.

    The messages of a thread belong to the thread. A note's id is that of the object it is on.
    """
    if ref == NOTES_REF:
        target = note_target(path)
        return ("note", target) if target else None
    parts = path.split("/")
    if ref == LEDGER_REF and len(parts) > 3:
        kind = _LEDGER_FOLDERS.get("/".join(parts[:2]))
        return (kind, parts[2]) if kind and is_valid_id(parts[2]) else None
    if ref == ARCHIVE_REF and parts[0] == DELETED and len(parts) == 4:
        kind = _DELETIONS.get(parts[1])
        sound = kind and is_valid_id(parts[3]) and path == deleted_path(parts[1], parts[3])
        return (kind, parts[3]) if kind and sound else None
    if ref == ARCHIVE_REF and parts[0] == ARCHIVED_RUNS:
        run_id = archived_run_id(path)
        return ("run", run_id) if run_id and is_valid_id(run_id) else None
    return None


@lru_cache(8192)
def _shard(id: str) -> str:
    return hashlib.sha1(id.encode(), usedforsecurity=False).hexdigest()[:2]
