"""Merging conversations: the union of their messages and of their split keys.

Where a message lies follows from both sets, so it does not matter who merges, or in
which order. (Only a part that a merge makes larger than 4 MiB is cut anew; the keys
that this adds are in the union from then on, too.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container

from scp_git.codec import MAX_PART_BYTES
from scp_git.git.anchors import State, anchored_tag
from scp_git.git.conversation import Conversation, Line, Part, cut, part_of
from scp_git.git.lines import Key, join_lines, message_lines, parse_line, rank
from scp_git.git.notes import read_note, remove_note, write_note
from scp_git.git.tree import TreeEditor
from scp_git.ids import is_valid_id
from scp_git.layout import (
    RUN_CHAT,
    THREADS,
    deleted_path,
    is_part,
    messages_part,
    run_chat_dir,
    split_key,
)


def merge_conversation(mine: Conversation, their: Conversation, *, kept: bool) -> None:
    """Make ``mine`` the union of both; what only one side has is taken over as it is where it fits.

    ``kept``: what they have lies in the repository to stay, and need not be written again.
    """
    ours, theirs = _blobs(mine), _blobs(their)
    if ours == theirs:
        return
    for part in theirs.keys() - ours.keys():
        _take(mine, their, part, kept)
    if not ours or not theirs:
        return
    keys, *own = (sorted({part.start for part in side}) for side in ((*ours, *theirs), ours, theirs))
    changed = [
        part
        for part in {**ours, **theirs}
        if part.name != messages_part(*part.start)
        or _ends_elsewhere(part, keys, (ours, own[0]), (theirs, own[1]))
        or (part in ours and part in theirs and ours[part] != theirs[part])
    ]
    copies = [side.read(part, merging=True) for part in changed for side in (mine, their)]
    _store(mine, keys, changed, message_lines(copies))


def is_conversation(path: str) -> bool:
    """Whether a file of the ledger is a part of a conversation."""
    folder, _, name = path.rpartition("/")
    return folder.rpartition("/")[0] in (THREADS, RUN_CHAT) and is_part("messages", name)


# ---------------------------------------------------------------- a run's note and its folder


def move_note(state: State, tag: str, run_id: str) -> None:
    """The note under a tag id that no anchor gives any more becomes messages in the run's folder."""
    note = read_note(state.notes, tag, limit=None)
    if note:
        _add(Conversation(state.ledger, run_chat_dir(run_id)), note)
    remove_note(state.notes, tag)


def settle_notes(state: State) -> None:
    """Take out of the notes what lies in the folders of their runs: there is where sealing moved it."""
    for run_id in state.ledger.names(RUN_CHAT):
        tag = anchored_tag(state, run_id)
        note = read_note(state.notes, tag, limit=None) if tag else None
        if tag and note:
            rest = _settle(Conversation(state.ledger, run_chat_dir(run_id)), note)
            if rest is None:
                continue
            if rest:
                write_note(state.notes, tag, rest)
            else:
                remove_note(state.notes, tag)


def _settle(folder: Conversation, note: bytes) -> bytes | None:
    """What is left of a note; ``None`` if it stays as it is. The better version of a message is kept."""
    parts = folder.parts()
    groups: dict[Part, list[Line]] = {}
    for line in message_lines([note]):
        groups.setdefault(part_of(parts, line[0]), []).append(line)
    rest: list[Line] = []
    better: list[Line] = []
    for part, lines in groups.items():
        present = dict(message_lines([folder.read(part, merging=True)]))
        for key, data in lines:
            if not key.id or key not in present:
                rest.append((key, data))
            elif rank(parse_line(data), data) < rank(parse_line(present[key]), present[key]):
                better.append((key, data))
    if better:
        _add(folder, join_lines(data for _, data in better))
    kept = join_lines(data for _, data in sorted(rest))
    return kept if len(rest) < sum(map(len, groups.values())) else None


# ---------------------------------------------------------------- deleted messages


def drop_deleted_messages(state: State, gone: set[str], *, everywhere: bool = False) -> None:
    """Deleted messages go from the files that were changed, or ``everywhere``; those of ``gone`` from all."""
    for editor, root in ((state.ledger, "chat"), (state.notes, "")):
        files = [path for path, _ in editor.files(root)] if gone or everywhere else []
        within = f"{root}/" if root else ""
        changed = {path for path, oid in editor.touched().items() if oid and path.startswith(within)}
        changed |= set(files) if everywhere else set()
        for path in files or sorted(changed):
            data = editor.read(path) or b""
            if path in changed or any(id.encode() in data for id in gone):
                kept = [line for line in data.split(b"\n") if not _is_deleted(state, line)]
                _replace(editor, path, data, b"\n".join(kept))


def _is_deleted(state: State, line: bytes) -> bool:
    id = parse_line(line).get("id") if line else None
    return is_valid_id(id) and state.archive.blob(deleted_path("message", str(id))) is not None


def _replace(editor: TreeEditor, path: str, before: bytes, data: bytes) -> None:
    stands_for_key = is_conversation(path) and any(split_key(path.rpartition("/")[2]) or ())
    if before and not data.strip() and not stands_for_key:
        editor.remove(path)
    elif data != before:
        editor.put(path, data)


# ---------------------------------------------------------------- parts


def _add(mine: Conversation, data: bytes) -> None:
    """Add messages that lay elsewhere; the keys stay as they are."""
    keys = sorted({part.start for part in mine.parts()})
    _store(mine, keys, [], message_lines([data]))


def _blobs(conversation: Conversation) -> dict[Part, str | None]:
    return {part: conversation.editor.blob(conversation.path(part)) for part in conversation.parts()}


def _take(mine: Conversation, their: Conversation, part: Part, kept: bool) -> None:
    path = their.path(part)
    data = their.editor.read(path)
    raw = their.editor.raw(path)
    if data is None or raw is None:  # the object is missing: there is nothing to be taken
        return
    if kept:
        mine.editor.graft(mine.path(part), raw)
    else:
        mine.editor.put(mine.path(part), data)


def _ends_elsewhere(part: Part, keys: list[Key], *sides: tuple[Container[Part], list[Key]]) -> bool:
    """Whether the union has a key inside of what is one part on a side."""
    end = _next(part.start, keys)
    return any(part in parts and _next(part.start, own) != end for parts, own in sides)


def _next(start: Key, keys: list[Key]) -> Key | None:
    place = bisect_right(keys, start)
    return keys[place] if place < len(keys) else None


def _store(mine: Conversation, keys: list[Key], changed: list[Part], lines: list[Line]) -> None:
    """Store ``lines``, which are all that the ``changed`` parts held, where the keys say."""
    parts = [Part(key, messages_part(*key)) for key in keys]
    for part in changed:
        if part not in parts:  # a name that no key explains
            mine.editor.remove(mine.path(part))
    groups: dict[Part, list[Line]] = {part: [] for part in changed if part in parts}
    for line in lines:
        groups.setdefault(part_of(parts, line[0]), []).append(line)
    for part, group in groups.items():
        if part not in changed:
            group = message_lines([mine.read(part, merging=True), join_lines(data for _, data in group)])
        size = sum(len(data) + 1 for _, data in group)
        pieces = cut(part.start, group) if size > MAX_PART_BYTES else [(part.start, group)]
        for start, piece in pieces:
            mine.put(Part(start, messages_part(*start)), join_lines(data for _, data in piece))
