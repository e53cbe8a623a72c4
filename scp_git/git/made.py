"""Objects made ahead of a transaction, in any thread: a folder of files, and tags.

A transaction then only has to graft them, which takes the gate for microseconds
instead of milliseconds a run.
"""

from __future__ import annotations

from collections.abc import Mapping

from scp_git.git.objects import BLOB, TAG, TREE, Kind, MadeObject, hash_object
from scp_git.git.pack import encode_entry
from scp_git.git.tree import DIR, FILE, encode_name


def made_object(kind: Kind, data: bytes) -> MadeObject:
    oid = hash_object(kind, data)
    return MadeObject(oid, kind, data, encode_entry(oid, kind, data).data)


def made_tag(data: bytes) -> MadeObject:
    return made_object(TAG, data)


def made_folder(name: str, files: Mapping[str, bytes]) -> tuple[bytes, list[MadeObject]]:
    """The raw entry of a folder with these files, and the objects it consists of."""
    objects, rows = [], []
    for file in sorted(files):
        blob = made_object(BLOB, files[file])
        objects.append(blob)
        rows.append(FILE + b" " + encode_name(file) + b"\0" + bytes.fromhex(blob.oid))
    tree = made_object(TREE, b"".join(rows))
    objects.append(tree)
    return DIR + b" " + encode_name(name) + b"\0" + bytes.fromhex(tree.oid), objects
