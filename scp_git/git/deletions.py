"""Records of deletions: which runs one covers, and which notes no longer have a run.

A record of a deleted run lists the ``tags`` that were known of it, and the
``digests`` of what was deleted. Another run that somebody recorded elsewhere under
the same id is not covered. A record without digests covers whatever bears the id.
"""

from __future__ import annotations

import hashlib

from scp_git.codec import JsonObject, tag_message
from scp_git.git.anchors import State, find_run, read_record, run_tag
from scp_git.git.objects import TAG, Anchor, hash_object
from scp_git.git.runcopy import other_id
from scp_git.git.tree import TreeEditor
from scp_git.layout import DELETED, RUN_FILE, deleted_path

_MAX_KNOWN = 4096
_tags_of: dict[str, frozenset[str]] = {}
"""The tags that the records in one folder name, by the folder's tree: it is read once."""


def message_digest(message: str) -> str:
    """What tells two runs of one id apart: a digest of what their tags would say."""
    return hashlib.sha1(message.encode(), usedforsecurity=False).hexdigest()


def tags_and_digest(state: State, run_id: str) -> tuple[set[str], str | None]:
    """What the record of a run's deletion holds: the tags of the run, and its digest.

    The tags are those under its id and under the other one that a merge may give it.
    No digest if the run is damaged: then its deletion covers whatever bears the id.
    """
    found = find_run(state, run_id)
    record = read_record(found[0], f"{found[1]}/{RUN_FILE}") if found else None
    try:
        digest = message_digest(tag_message(record)) if record else None
    except ValueError:
        return set(), None
    if record is None or digest is None:
        return set(), None
    return {tag for id in (run_id, other_id(run_id, digest)) if (tag := tag_under(record, id))}, digest


def tag_under(record: JsonObject, run_id: str) -> str | None:
    """The tag object that a run's anchor gives if the run bears this id."""
    anchor = Anchor.parse(record.get("anchor"))
    try:
        return hash_object(TAG, run_tag(run_id, {**record, "run_id": run_id}, anchor)) if anchor else None
    except ValueError:
        return None


def deletion_of(state: State, run_id: str) -> JsonObject | None:
    """The record that this run was deleted."""
    path = deleted_path("run", run_id)
    return (read_record(state.archive, path) or {}) if state.archive.blob(path) else None


def covers(deletion: JsonObject, message: str) -> bool:
    """Whether a run that says this under the deleted id is what was deleted; a damaged one is."""
    digests = deletion.get("digests")
    return not isinstance(digests, list) or not message or message_digest(message) in digests


def merge_deletions(mine: JsonObject, their: JsonObject) -> JsonObject:
    """The smaller (``ts``, ``user``), all known tags, all digests; without digests where one has none."""
    first = min(mine, their, key=lambda r: (str(r.get("ts", "")), str(r.get("user", "")), sorted(r)))
    merged = {name: value for name, value in first.items() if name not in ("tags", "digests")}
    tags = texts_of(mine, "tags") | texts_of(their, "tags")
    if tags:
        merged["tags"] = sorted(tags)
    if all(isinstance(record.get("digests"), list) for record in (mine, their)):
        merged["digests"] = sorted(texts_of(mine, "digests") | texts_of(their, "digests"))
    return merged


def texts_of(record: JsonObject, field: str) -> set[str]:
    """The texts in a list of a record that anybody may have written."""
    value = record.get(field)
    return {text for text in value if isinstance(text, str)} if isinstance(value, list) else set()


def tags_of_deleted(archive: TreeEditor) -> set[str]:
    """Every tag that the record of a deleted run names."""
    found: set[str] = set()
    root = f"{DELETED}/run"
    for shard in archive.names(root):
        folder = archive.folder(f"{root}/{shard}")
        if folder is None:
            continue
        known = _tags_of.get(folder.oid) if folder.oid else None
        if known is None:
            paths = (f"{root}/{shard}/{name}" for name in archive.names(f"{root}/{shard}"))
            records = (read_record(archive, path) or {} for path in paths)
            known = frozenset(tag for record in records for tag in texts_of(record, "tags"))
            if folder.oid:
                if len(_tags_of) >= _MAX_KNOWN:
                    _tags_of.clear()
                _tags_of[folder.oid] = known
        found |= known
    return found
