"""Objects made ahead of a transaction, in any thread or process: a folder of files, and tags.

A transaction then only has to graft them, which takes the gate for microseconds
instead of milliseconds a run.
"""

from __future__ import annotations

from collections.abc import Mapping

from scp_git.git.entries import PackEntry, encode_entry
from scp_git.git.objects import BLOB, TREE, Kind, hash_object
from scp_git.git.tree import DIR, FILE, encode_name


def made_object(kind: Kind, data: bytes) -> PackEntry:
    """An object, hashed and deflated."""
    return encode_entry(hash_object(kind, data), kind, data)


def made_folder(name: str, files: Mapping[str, bytes]) -> tuple[bytes, list[PackEntry]]:
    """The raw entry of a folder with these files; its tree, and the files' blobs in the order given."""
    blobs = {file: made_object(BLOB, data) for file, data in files.items()}
    rows = [_row(FILE, file, blobs[file].oid) for file in sorted(blobs)]
    tree = made_object(TREE, b"".join(rows))
    return _row(DIR, name, tree.oid), [tree, *blobs.values()]


def _row(mode: bytes, name: str, oid: str) -> bytes:
    return mode + b" " + encode_name(name) + b"\0" + bytes.fromhex(oid)
