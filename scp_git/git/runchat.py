"""What was said about a run: the note on its tag object, and the folder ``chat/runs/<run_id>``.

The note is the open end of the conversation. When it has become long it is *sealed*:
its messages move into the folder, which is cut into parts like any other, and the
note begins again. A run without an anchor has no tag object of its own yet, so all
its messages go to the folder.
"""

from __future__ import annotations

from scp_git.codec import JsonObject
from scp_git.git.anchors import State, anchored_tag
from scp_git.git.conversation import PART_BYTES, Change, Conversation, Line, edit_lines, ended, last_key
from scp_git.git.lines import join_lines, message_lines
from scp_git.git.notes import read_note, remove_note, write_note
from scp_git.layout import run_chat_dir


class RunChat:
    """The messages of one run, in a state.

    ``named`` is the object that the tag of the run's name names, if there is such a
    tag; its note counts only while the run has no anchor.
    """

    def __init__(self, state: State, run_id: str, named: str | None) -> None:
        self.notes = state.notes
        self.tag = anchored_tag(state, run_id)
        self.folder = Conversation(state.ledger, run_chat_dir(run_id))
        self._noted = self.tag or named

    def note(self) -> bytes:
        return read_note(self.notes, self._noted) or b"" if self._noted else b""

    def find(self, id: str) -> JsonObject | None:
        """The message with this id."""
        found = edit_lines(self.note(), id, lambda record: None)[1]
        return found[0] if found else self.folder.find(id)

    def add(self, line: Line) -> bytes | None:
        """Add a message; where its key is taken nothing is changed, and the line that has it returned."""
        if self.tag is None:
            return self.folder.add(line)
        present = self.note()
        if not present or line[0] <= last_key(present):
            taken = dict(message_lines([present])).get(line[0]) or self.folder.get(line[0])
            if taken is not None:
                return taken
        if present and len(present) + len(line[1]) > PART_BYTES:
            self.folder.add_all(message_lines([present]))
            present = b""
        if line[0] > last_key(present):
            data = ended(present) + line[1] + b"\n"
        else:
            data = join_lines(data for _, data in sorted([*message_lines([present]), line]))
        write_note(self.notes, self.tag, data)
        return None

    def edit(self, id: str, change: Change) -> list[JsonObject]:
        """Change or remove every copy of the message with this id; returns what was found under it."""
        data, found = edit_lines(self.note(), id, change)
        if found and self._noted:
            if data.strip():
                write_note(self.notes, self._noted, data)
            else:
                remove_note(self.notes, self._noted)
        return found + self.folder.edit(id, change)
