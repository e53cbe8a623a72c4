"""Merging a file that is no run's and no conversation's: JSONL as a set of lines, JSON by its revision."""

from __future__ import annotations

from scp_git.git.anchors import read_record
from scp_git.git.chatmerge import is_conversation
from scp_git.git.lines import merge_events, merge_messages, revision
from scp_git.git.names import is_plain_path
from scp_git.git.tree import REGULAR, TreeEditor, raw_mode, raw_oid
from scp_git.layout import FORMAT_PATH, is_part


def take_file(mine: TreeEditor, path: str, raw: bytes, their: TreeEditor, source: str, *, kept: bool) -> bool:
    """Merge their file ``source`` into ours at ``path``; False if it must not be taken over.

    ``kept``: its object lies in the repository to stay, and need not be written again.
    """
    if not may_be_taken(path, raw):
        return False
    present, name = mine.blob(path), path.rpartition("/")[2]
    if present is None and not mine.has_dir(path):
        data = their.read(source)
        if data is None:
            return False
        if kept:
            mine.graft(path, raw)
        else:
            put(mine, path, data)
    elif present is None or present == raw_oid(raw):
        return True
    elif is_part("messages", name):
        put(mine, path, merge_messages([mine.read(path), their.read(source)]))
    elif is_part("events", name):
        put(mine, path, b"".join(merge_events([mine.read(path), their.read(source)])))
    elif _precedence(their, source) < _precedence(mine, path):
        put(mine, path, their.read(source) or b"")
    return True


def may_be_taken(path: str, raw: bytes) -> bool:
    """Whether this is a plain file with plain names, and not in a folder where messages belong."""
    names = path.split("/")
    usurped = len(names) > 4 and is_conversation("/".join(names[:4]))
    return raw_mode(raw) in REGULAR and not usurped and is_plain_path(path)


def put(editor: TreeEditor, path: str, data: bytes) -> None:
    """Store a file unless it is there; its blob is added, as theirs may be reachable from nowhere soon."""
    if data != editor.read(path):
        editor.put(path, data)


def _precedence(editor: TreeEditor, path: str) -> tuple[object, ...]:
    """Which of two versions of a file wins: the higher format or ``rev``, then the smaller blob id."""
    oid = editor.blob(path) or "~"
    if path == FORMAT_PATH:
        data = (editor.read(path) or b"").strip()
        return -(int(data) if data.isdigit() else 0), oid
    return -revision(read_record(editor, path) or {}), oid
