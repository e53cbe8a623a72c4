"""Exporting runs: every run with its events as one JSON line, oldest first."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from scp_git.codec import MAX_RECORD_BYTES, JsonObject, dump_compact, load_object
from scp_git.errors import StorageFailed
from scp_git.git.handle import Odb, Repository
from scp_git.git.objects import BLOB, TREE, ObjectStore
from scp_git.git.snapshot import snapshot
from scp_git.git.tree import Tree, TreeEditor, decode_name, is_dir, raw_oid
from scp_git.ids import is_valid_id
from scp_git.layout import ARCHIVED_RUNS, RUN_FILE, RUNS
from scp_git.ledger.operations import read_events

log = logging.getLogger(__name__)

_ARCHIVE_DEPTH = 4


def export_lines(repository: Repository) -> Iterator[bytes]:
    """The runs as they are at this moment, by start and id; what cannot be read is left out and logged.

    Only their order is held in memory. Consume it in one thread.
    """
    with repository.odb() as odb:
        folders, store = _all_folders(repository, odb)
        keys = [
            (started, run_id) for run_id, oid in folders.items() if (started := _start(store, run_id, oid))
        ]
        for _, run_id in sorted(keys):
            line = _line(store, run_id, folders[run_id])
            if line is not None:
                yield line


def run_ids(repository: Repository) -> list[str]:
    """The ids of all runs, hot and archived, damaged ones too."""
    with repository.odb() as odb:
        return sorted(_all_folders(repository, odb)[0])


def _all_folders(repository: Repository, odb: Odb) -> tuple[dict[str, str], ObjectStore]:
    """The folder of every run, hot before archived."""
    state = snapshot(repository, odb)
    store = state.ledger.store
    folders: dict[str, str] = {}
    for editor, path, depth in ((state.archive, ARCHIVED_RUNS, _ARCHIVE_DEPTH), (state.ledger, RUNS, 0)):
        raw = editor.raw(path)
        if raw is not None and is_dir(raw):
            folders.update(_folders(store, raw_oid(raw), depth))
    return folders, store


def _folders(store: ObjectStore, oid: str, depth: int) -> Iterator[tuple[str, str]]:
    """Run ids and folder ids below a tree; no tree is kept."""
    data = store.find(oid, TREE)
    for name, raw in Tree(oid, data).raw_items().items() if data is not None else ():
        text = decode_name(name)
        if not is_dir(raw):
            continue
        if depth:
            yield from _folders(store, raw_oid(raw), 1 if text == "other" else depth - 1)
        elif is_valid_id(text):
            yield text, raw_oid(raw)


def _record(store: ObjectStore, run_id: str, oid: str) -> JsonObject | None:
    try:
        data = store.find(oid, TREE)
        raw = Tree(oid, data).raw(RUN_FILE.encode()) if data is not None else None
        blob = store.find(raw_oid(raw), BLOB, limit=MAX_RECORD_BYTES) if raw else None
        record = load_object(blob) if blob is not None else {}
    except (ValueError, StorageFailed) as exc:
        log.warning("run %r is damaged and is left out: %s", run_id, exc)
        return None
    if record.get("run_id") != run_id or not isinstance(record.get("started_at"), str):
        log.warning("run %r is damaged and is left out", run_id)
        return None
    return record


def _start(store: ObjectStore, run_id: str, oid: str) -> str | None:
    record = _record(store, run_id, oid)
    return str(record["started_at"]) if record else None


def _line(store: ObjectStore, run_id: str, oid: str) -> bytes | None:
    record = _record(store, run_id, oid)
    if record is None:
        return None
    record.pop("anchor", None)
    events = read_events(TreeEditor(store, oid), "")
    return (dump_compact({"run": record, "events": events} if events else {"run": record}) + "\n").encode()
