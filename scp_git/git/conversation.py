"""Conversations: sets of messages, cut into parts so that nothing ever rewrites a long one.

A folder holds one. It is a set of messages and a set of *split keys*: the part that
is named after a key holds the messages from it up to the next, ``messages.jsonl``
those before all keys. Both sets only grow (a part whose messages were all deleted
stays as an empty file), so clones that split at different places have one union.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from scp_git.codec import MAX_PART_BYTES, JsonObject
from scp_git.errors import StorageFailed
from scp_git.git.lines import FIRST, Key, join_lines, key_of, message_lines, parse_line
from scp_git.git.tree import REGULAR, TreeEditor, decode_name, raw_mode
from scp_git.layout import MESSAGES_FILE, is_part, messages_part, split_key

PART_BYTES = 64 * 1024
"""A part takes no further message once it holds so many bytes."""
MAX_READ_BYTES = 16 * MAX_PART_BYTES
"""A part that somebody else wrote may be larger than ours ever are; beyond this it is not read."""

_KNOWN_NAMES = 8192
_SECOND = re.compile(r"_(\d{4}-\d\d-\d\dT)(\d\d)(\d\d)(\d\d)_", re.ASCII)

Line = tuple[Key, bytes]
"""A message with its key, as the line that stores it, without the newline."""
Change = Callable[[JsonObject], bytes | None]
"""What becomes of a message: its new line, or ``None`` to remove it."""


class Part(NamedTuple):
    """One file of a conversation, and the key from which on it holds messages."""

    start: Key
    name: str


class Conversation:
    """The messages in one folder of a branch."""

    def __init__(self, editor: TreeEditor, folder: str) -> None:
        self.editor = editor
        self.folder = folder

    def parts(self) -> list[Part]:
        """The parts in the order of their keys; files that no key explains come first."""
        folder = self.editor.folder(self.folder)
        files = folder.raw_items().items() if folder else ()
        parts = (_part(name) for name, raw in files if raw_mode(raw) in REGULAR)
        return sorted(part for part in parts if part)

    def read(self, part: Part, *, merging: bool = False) -> bytes:
        """A part's bytes, empty if there is no such part.

        Raises ``StorageFailed`` beyond ``MAX_READ_BYTES``, and if the part's object is missing: what is
        not known must not be replaced. A merge takes any size, and does without what is missing.
        """
        path = self.path(part)
        data = self.editor.read(path, limit=None if merging else MAX_READ_BYTES)
        if data is None and not merging and self.editor.blob(path) is not None:
            raise StorageFailed(f"reading {path}", "the object is missing")
        return data or b""

    def newest_first(self, before: Key | None = None) -> list[Part]:
        """The parts that may hold messages older than ``before``; each is newer than the next."""
        return [part for part in reversed(self.parts()) if before is None or part.start < before]

    def find(self, id: str) -> JsonObject | None:
        """The message with this id."""
        return next((found[0] for _, _, found in self._having(id)), None)

    def get(self, key: Key) -> bytes | None:
        """The line of the message with this key."""
        parts = self.parts()
        data = self.read(part_of(parts, key)) if parts else b""
        return dict(message_lines([data])).get(key) if data else None

    # ------------------------------------------------------------ changing

    def add(self, line: Line) -> bytes | None:
        """Add a message; where its key is taken nothing is changed, and the line that has it returned.

        Only the part that the message belongs to is read and written.
        """
        parts = self.parts()
        part = part_of(parts, line[0])
        present = self.read(part)
        if part is parts[-1] and line[0] > last_key(present):
            self._append(part, present, [line])
            return None
        lines = message_lines([present])
        taken = dict(lines).get(line[0])
        if taken is None:
            self._store(part, sorted([*lines, line]))
        return taken

    def add_all(self, lines: list[Line]) -> None:
        """Add many messages, given in the order of their keys; of two versions of one the better stays."""
        parts = self.parts()
        groups: dict[Part, list[Line]] = {}
        for line in lines:
            groups.setdefault(part_of(parts, line[0]), []).append(line)
        for part, added in groups.items():
            present = self.read(part)
            if part is parts[-1] and added[0][0] > last_key(present):
                self._append(part, present, added)
            else:
                self._store(part, message_lines([present, join_lines(data for _, data in added)]))

    def edit(self, id: str, change: Change) -> list[JsonObject]:
        """Change or remove the message with this id; returns what was found under it."""
        for part, data, found in self._having(id):
            self.put(part, edit_lines(data, id, change)[0])
            return found
        return []

    def _append(self, part: Part, present: bytes, lines: list[Line]) -> None:
        """Add messages that are newer than all others."""
        for start, piece in cut(part.start, lines, size=len(present)):
            data = join_lines(data for _, data in piece)
            if start != part.start:
                self.put(Part(start, messages_part(*start)), data)
            elif data:
                self.put(part, ended(present) + data)

    def _store(self, part: Part, lines: list[Line]) -> None:
        """Store all messages of one part, as several parts once they are too many."""
        size = sum(len(data) + 1 for _, data in lines)
        pieces = cut(part.start, lines) if size > 2 * PART_BYTES else [(part.start, lines)]
        for start, piece in pieces:
            name = part.name if start == part.start else messages_part(*start)
            self.put(Part(start, name), join_lines(data for _, data in piece))

    def put(self, part: Part, data: bytes) -> None:
        """Replace a part; an empty one goes unless it stands for a split key."""
        if data.strip() or part.start != FIRST:
            self.editor.put(self.path(part), data)
        else:
            self.editor.remove(self.path(part))

    # ------------------------------------------------------------ finding

    def _having(self, id: str) -> Iterator[tuple[Part, bytes, list[JsonObject]]]:
        """The parts that hold a message with this id."""
        for part in self._likely(id):
            data = self.read(part)
            found = edit_lines(data, id, lambda record: None)[1]
            if found:
                yield part, data, found

    def _likely(self, id: str) -> list[Part]:
        """All parts; first those of the second that an id of ours names, then the newest."""
        parts = self.parts()
        match = _SECOND.search(id)
        if match is None:
            return parts[::-1]
        second = f"{match[1]}{match[2]}:{match[3]}:{match[4]}"
        starts = [part.start for part in parts]
        first = max(bisect_right(starts, Key(f"{second}.", "")) - 1, 0)
        last = bisect_right(starts, Key(f"{second}.~", ""))
        return parts[first:last] + [*parts[:first], *parts[last:]][::-1]

    def path(self, part: Part) -> str:
        return f"{self.folder}/{part.name}"


def cut(start: Key, lines: list[Line], *, size: int = 0) -> list[tuple[Key, list[Line]]]:
    """Where messages begin new parts, the first of which holds ``size`` bytes already."""
    pieces: list[tuple[Key, list[Line]]] = [(start, [])]
    for line in lines:
        key, length = line[0], len(line[1]) + 1
        if size and size + length > PART_BYTES and key.ts and key > pieces[-1][0]:
            pieces.append((key, []))
            size = 0
        pieces[-1][1].append(line)
        size += length
    return pieces


def edit_lines(data: bytes, id: str, change: Change) -> tuple[bytes, list[JsonObject]]:
    """Change or remove the messages with this id among JSONL; returns the rest and what was found."""
    if id.encode() not in data:
        return data, []
    kept, found = [], []
    for line in data.split(b"\n"):
        record = parse_line(line) if id.encode() in line else {}
        new: bytes | None = line
        if record.get("id") == id:
            found.append(record)
            new = change(record)
        if new is not None:
            kept.append(new)
    return b"\n".join(kept) if found else data, found


def ended(data: bytes) -> bytes:
    """Whole lines: with the last newline, which an editor may have taken."""
    return data if not data or data.endswith(b"\n") else data + b"\n"


@lru_cache(_KNOWN_NAMES)
def _part(name: bytes) -> Part | None:
    """The part that a file is, or ``None`` if it is none. A long conversation is asked for all its names."""
    text = decode_name(name)
    return Part(Key(*(split_key(text) or FIRST)), text) if is_part("messages", text) else None


def part_of(parts: list[Part], key: Key) -> Part:
    """The part that a message belongs to; the first one is made where there is none."""
    starts = [part.start for part in parts]
    place = bisect_right(starts, key) - 1
    if place < 0:
        parts.insert(0, Part(FIRST, MESSAGES_FILE))
        place = 0
    return parts[place]


def last_key(data: bytes) -> Key:
    """The key of the last line; that of the newest message, as far as the lines are in order."""
    last = data.rstrip().rpartition(b"\n")[2]
    return key_of(parse_line(last)) if last else FIRST
