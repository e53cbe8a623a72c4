"""Runs and their tags: where a run lies, and the tag object that its anchor gives.

A run exists when it is on a branch; its tag is a projection, made only from the
anchor in run.json, so that it has the same id in every clone.
"""

from __future__ import annotations

from typing import Any, Protocol

from scp_git.codec import MAX_RECORD_BYTES, JsonObject, load_object, tag_message
from scp_git.git.objects import TAG, Anchor, encode_tag, hash_object
from scp_git.git.tree import TreeEditor
from scp_git.layout import RUN_FILE, archived_run_dir, run_dir, run_tag_name


class State(Protocol):
    """The three trees that make up the present state."""

    @property
    def ledger(self) -> TreeEditor: ...
    @property
    def archive(self) -> TreeEditor: ...
    @property
    def notes(self) -> TreeEditor: ...


def find_run(state: State, run_id: str) -> tuple[TreeEditor, str] | None:
    """The branch and folder that hold a run, or ``None`` if there is no such run."""
    if state.ledger.blob(f"{run_dir(run_id)}/{RUN_FILE}"):
        return state.ledger, run_dir(run_id)
    if state.archive.blob(f"{archived_run_dir(run_id)}/{RUN_FILE}"):
        return state.archive, archived_run_dir(run_id)
    return None


def read_record(editor: TreeEditor, path: str) -> JsonObject | None:
    """A JSON file of a tree, or ``None`` if it is missing, too large or damaged."""
    data = editor.read(path, limit=MAX_RECORD_BYTES)
    try:
        return load_object(data) if data is not None else None
    except ValueError:
        return None


def run_tag(run_id: str, record: dict[str, Any], anchor: Anchor) -> bytes:
    """The run's tag object, byte for byte; ``ValueError`` if the record cannot be spelled."""
    return encode_tag(run_tag_name(run_id), anchor.target, anchor.tagger, tag_message(record).encode())


def anchored_tag(state: State, run_id: str) -> str | None:
    """The id of the tag object that a run's anchor gives, whether or not the object is here.

    ``None`` where there is no such run, or it has no anchor yet.
    """
    found = find_run(state, run_id)
    record = read_record(found[0], f"{found[1]}/{RUN_FILE}") if found else None
    anchor = Anchor.parse(record.get("anchor")) if record else None
    if record is None or anchor is None:
        return None
    try:
        return hash_object(TAG, run_tag(run_id, record, anchor))
    except ValueError:  # a foreign record that cannot be spelled in UTF-8
        return None
