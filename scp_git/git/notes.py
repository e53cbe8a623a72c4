"""Git notes in a tree editor: read at any fan-out, written at one level (2/38).

Neither ``git notes`` nor libgit2's ``create_note`` may write them for us: both move
the ref without a compare, and lose updates.
"""

from __future__ import annotations

from collections.abc import Iterator

from scp_git.errors import StorageFailed
from scp_git.git.tree import TreeEditor, is_dir
from scp_git.layout import note_path
from scp_git.layout import note_target as note_target

MAX_NOTE_BYTES = 64 * 1024 * 1024


def find_notes(notes: TreeEditor, target: str) -> list[str]:
    """The paths of all notes on an object; more than one only where fan-outs were mixed."""
    return list(_find(notes, "", target))


def _find(notes: TreeEditor, folder: str, rest: str) -> Iterator[str]:
    tree = notes.folder(folder)
    if tree is None:
        return
    prefix = folder + "/" if folder else ""
    raw = tree.raw(rest.encode())
    if raw is not None and not is_dir(raw):
        yield prefix + rest
    deeper = tree.raw(rest[:2].encode())
    if len(rest) > 2 and deeper is not None and is_dir(deeper):
        yield from _find(notes, prefix + rest[:2], rest[2:])


def read_note(notes: TreeEditor, target: str, *, limit: int | None = MAX_NOTE_BYTES) -> bytes | None:
    """The bytes of the note on an object (joined where there are several), or ``None``.

    Raises ``StorageFailed`` for a note beyond ``limit``, or whose object is missing; without a limit
    (when merging) what is missing is left out.
    """
    found = [notes.read(path, limit=limit) for path in find_notes(notes, target)]
    if None in found and limit is not None:
        raise StorageFailed(f"reading the note on {target[:10]}", "the object is missing")
    parts = [_ended(data) for data in found if data]
    return b"".join(parts) if found else None


def append_note(notes: TreeEditor, target: str, data: bytes) -> None:
    """Append whole lines to the note on an object; afterwards it lies at one path."""
    before = read_note(notes, target)
    write_note(notes, target, _ended(before or b"") + data)


def write_note(notes: TreeEditor, target: str, data: bytes) -> None:
    """Replace the note on an object."""
    path = note_path(target)
    for other in find_notes(notes, target):
        if other != path:
            notes.remove(other)
    notes.put(path, data)


def remove_note(notes: TreeEditor, target: str) -> bool:
    """Remove the note on an object; False if there is none."""
    return bool([notes.remove(path) for path in find_notes(notes, target)])


def list_notes(notes: TreeEditor) -> dict[str, str]:
    """All notes: target to blob id of (one of) its notes."""
    found = {}
    for path, raw in notes.files():
        target = note_target(path)
        if target:
            found[target] = raw[-20:].hex()
    return found


def _ended(data: bytes) -> bytes:
    return data if not data or data.endswith(b"\n") else data + b"\n"
