"""Nothing that was fetched is trusted: what is wrong is taken out before anything is merged.

Looked at are kinds, modes, names, places and sizes (an object's header before the
object), the number of entries and the depth of folders. Subtrees that equal ours are
passed over: they were looked at before. What is harmless but unreadable, such as a
run.json that is no JSON, is reported and kept: readers pass over it, and a sync that
dropped it would delete it for everybody (docs/decisions/0017-what-is-taken-out.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scp_git.codec import MAX_RECORD_BYTES, load_object
from scp_git.errors import RemoteError, StorageFailed, UnsupportedRepository
from scp_git.git.anchors import State
from scp_git.git.names import is_plain_name
from scp_git.git.notes import MAX_NOTE_BYTES
from scp_git.git.objects import BLOB, TREE, Kind, ObjectStore
from scp_git.git.tree import (
    EMPTY_TREE,
    FILE,
    REGULAR,
    Tree,
    TreeEditor,
    decode_name,
    is_dir,
    raw_mode,
    raw_oid,
)
from scp_git.ids import is_valid_id
from scp_git.layout import (
    ARCHIVE_REF,
    ARCHIVED_RUNS,
    DELETED,
    FORMAT,
    FORMAT_BYTES,
    FORMAT_PATH,
    LEDGER_REF,
    NOTES_REF,
    RUN_CHAT,
    RUN_FILE,
    RUNS,
    THREADS,
    TRACES,
    archived_run_dir,
    deleted_path,
    is_part,
    note_target,
)

MAX_ENTRIES = 4_000_000
MAX_BYTES = 4 * 1024**3
"""More new entries, or new files of more bytes, are refused as a whole: small packs can hold that much.
Leaving some out would delete them for everybody with the next push."""
_MAX_DEPTH = 24
_MAX_TREE_BYTES = 64 * 1024 * 1024
_MAX_DELETION_BYTES = 1024 * 1024
_MAX_REPORTED = 1000
_FAMILIES = {RUNS: "run", TRACES: "trace", THREADS: "thread", RUN_CHAT: "run"}
_FOLDERS = {*_FAMILIES, *(family.partition("/")[0] for family in _FAMILIES)}
_RECORD_FILES = {RUN_FILE, "trace.json", "thread.json"}
_KINDS = ("run", "trace", "thread", "message")
_DATE_PLACES = (re.compile(r"\d{4}|other"), re.compile(r"\d\d"), re.compile(r"\d\d"))
_HEX_PAIR = re.compile(r"[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something of a fetched state that did not come in, or came in and cannot be read."""

    ref: str
    path: str
    """Made printable."""
    reason: str
    kept: bool = False
    """It is harmless, so it stays on the branch; no reader shows it."""


@dataclass(slots=True)
class Fetched:
    """A fetched state, sifted: safe to be merged."""

    ledger: TreeEditor
    archive: TreeEditor
    notes: TreeEditor
    skipped: list[Skipped]

    def trees(self) -> dict[str, str]:
        """The ids of the three trees, by ref."""
        editors = {LEDGER_REF: self.ledger, ARCHIVE_REF: self.archive, NOTES_REF: self.notes}
        return {ref: editor.write() for ref, editor in editors.items()}


def fetched_state(store: ObjectStore, trees: Mapping[str, str], ours: State, *, remote: str) -> Fetched:
    """The state that the fetched branches' trees hold, without what is wrong in it.

    A tree that cannot be read counts as empty, and is reported.

    Raises ``UnsupportedRepository`` when its FORMAT is one that we do not know, and
    ``RemoteError`` when there is more than anybody could have recorded.
    """
    skipped: list[Skipped] = []
    editors = {
        ref: _editor(store, ref, trees.get(ref), skipped) for ref in (LEDGER_REF, ARCHIVE_REF, NOTES_REF)
    }
    state = Fetched(editors[LEDGER_REF], editors[ARCHIVE_REF], editors[NOTES_REF], skipped)
    try:
        skipped += _sift(state, ours)
    except _TooMuchError as exc:
        raise RemoteError(remote, f"its ledger holds {exc}; nothing was merged") from None
    for editor in (state.ledger, state.archive):
        reason = format_refusal(editor.read(FORMAT_PATH))
        if reason:
            raise UnsupportedRepository(remote, reason)
    return state


def _editor(store: ObjectStore, ref: str, tree: str | None, skipped: list[Skipped]) -> TreeEditor:
    reason = _size(store, tree or EMPTY_TREE, TREE, _MAX_TREE_BYTES)
    try:
        if isinstance(reason, int):
            return TreeEditor(store, tree)
    except StorageFailed:
        reason = "it is damaged"
    skipped.append(Skipped(ref, "", f"its tree cannot be used: {reason}"))
    return TreeEditor(store)


def format_refusal(data: bytes | None) -> str | None:
    """Why a repository with this FORMAT file must not be touched; ``None`` if it may."""
    text = (data or FORMAT_BYTES).strip()
    if text.isdigit() and len(text) <= 9 and int(text) <= FORMAT:
        return None
    shown = text[:20].decode("ascii", "replace")
    return f"the ledger has format {shown!r}, this version knows {FORMAT}; upgrade scp_git"


def sift(theirs: State, ours: State) -> list[Skipped]:
    """Take out of ``theirs`` what is wrong; returns what that was, and what is unreadable but harmless.

    The editors of ``theirs`` are changed: they serve this merge only. Raises
    ``StorageFailed`` when there is more than anybody could have recorded.
    """
    try:
        return _sift(theirs, ours)
    except _TooMuchError as exc:
        raise StorageFailed("merging", f"a branch holds {exc}; reset it to an older commit") from None


def _sift(theirs: State, ours: State) -> list[Skipped]:
    sieve = _Sieve()
    sieve.branch(LEDGER_REF, theirs.ledger, ours.ledger, _ledger_rule)
    sieve.branch(ARCHIVE_REF, theirs.archive, ours.archive, _archive_rule)
    sieve.branch(NOTES_REF, theirs.notes, ours.notes, _notes_rule)
    for editor in (theirs.ledger, theirs.archive, theirs.notes):
        editor.write()
    if sieve.unnamed:
        sieve.skipped.append(Skipped("", "", f"{sieve.unnamed} further entries, not named here"))
    return sieve.skipped


def _size(store: ObjectStore, oid: str, kind: Kind, limit: int) -> int | str:
    """An object's size by its header alone, or the reason why it must not be read."""
    if oid == EMPTY_TREE and kind == TREE:  # need not be stored
        return 0
    try:
        header = store.header(oid)
    except StorageFailed:
        return "its object is damaged"
    if header is None:
        return "its object is missing"
    if header[0] != kind:
        return f"its object is a {header[0]}"
    return f"it has {header[1]} bytes, the limit is {limit}" if header[1] > limit else header[1]


# ---------------------------------------------------------------- walking


Rule = Callable[[list[str], bool], str | int]
"""Of a path's names, and whether it is a folder: why it must not be there, or a file's size limit."""


class _TooMuchError(Exception):
    """Its text says of what."""


class _Sieve:
    def __init__(self) -> None:
        self.skipped: list[Skipped] = []
        self.unnamed = 0
        self._entries = 0
        self._bytes = 0
        self._ref = ""
        self._rule: Rule = _ledger_rule
        self._theirs: TreeEditor
        self._ours: TreeEditor

    def branch(self, ref: str, theirs: TreeEditor, ours: TreeEditor, rule: Rule) -> None:
        self._ref, self._rule, self._theirs, self._ours = ref, rule, theirs, ours
        self._folder(theirs.root, ours.root, [])

    def _folder(self, tree: Tree, ours: Tree | None, place: list[str]) -> bool:
        """Sift one folder; returns whether it was changed, so that it must be written again."""
        changes: dict[bytes, bytes | None] = {}
        below = False
        for name, raw in tree.raw_items().items():
            if ours is not None and ours.has(name, raw):
                continue
            path = [*place, decode_name(name)]
            reason = self._reason(path, raw)
            if reason is not None:
                self._report(path, reason)
                changes[name] = None
            elif is_dir(raw):
                changed, empty = self._descend(path, ours is not None)
                below |= changed
                if empty:
                    changes[name] = None
            elif raw_mode(raw) != FILE:
                changes[name] = FILE + raw[raw.index(b" ") :]
        canonical = tree.is_canonical()
        if changes:
            tree.revise(changes)
        elif below or not canonical:
            tree.oid = None
        return tree.oid is None

    def _descend(self, path: list[str], both: bool) -> tuple[bool, bool]:
        """Sift a folder below another; returns whether it was changed, and whether nothing is left of it."""
        place = "/".join(path)
        try:
            child = self._theirs.folder(place)
        except StorageFailed:
            self._report(path, "its folder is damaged")
            return True, True
        assert child is not None
        changed = self._folder(child, self._ours.folder(place) if both else None, path)
        return changed, len(child) == 0

    def _reason(self, path: list[str], raw: bytes) -> str | None:
        """Why an entry must go; ``None`` if it may stay."""
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise _TooMuchError(f"more than {MAX_ENTRIES} new entries")
        folder = is_dir(raw)
        if not folder and raw_mode(raw) not in REGULAR:
            return {b"120000": "it is a symbolic link", b"160000": "it is a submodule"}.get(
                raw_mode(raw), "its mode is not one of a file"
            )
        if not is_plain_name(path[-1]):
            return "its name is not plain"
        if len(path) > _MAX_DEPTH:
            return f"it lies deeper than {_MAX_DEPTH} folders"
        limit = self._rule(path, folder)
        if isinstance(limit, str):
            return limit
        oid = raw_oid(raw)
        store = self._theirs.store
        size = _size(store, oid, TREE, _MAX_TREE_BYTES) if folder else _size(store, oid, BLOB, limit)
        if isinstance(size, str) or folder:
            return size if isinstance(size, str) else None
        self._bytes += size
        if self._bytes > MAX_BYTES:
            raise _TooMuchError(f"more than {MAX_BYTES} bytes that are new")
        return self._unreadable(path, oid)

    def _unreadable(self, path: list[str], oid: str) -> str | None:
        """Report a record that cannot be read; returns a reason only for one that must go."""
        deletion = self._ref == ARCHIVE_REF and path[0] == DELETED
        if not deletion and not (path[-1] in _RECORD_FILES and self._ref != NOTES_REF):
            return None
        try:
            record = load_object(self._theirs.store.find(oid, BLOB) or b"")
        except (ValueError, StorageFailed):
            if deletion:
                return "it is no record of a deletion"
            self._report(path, "it is not valid JSON", kept=True)
            return None
        if path[-1] == RUN_FILE and len(path) > 3 and record.get("run_id") != path[-2]:
            self._report(path, "it bears another id than its folder", kept=True)
        return None

    def _report(self, path: list[str], reason: str, *, kept: bool = False) -> None:
        if len(self.skipped) >= _MAX_REPORTED:
            self.unnamed += 1
            return
        shown = "/".join(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        shown = "".join(c if c.isprintable() else c.encode("unicode-escape").decode() for c in shown[:300])
        self.skipped.append(Skipped(self._ref, shown, reason, kept))


# ---------------------------------------------------------------- what may lie where


def _ledger_rule(path: list[str], folder: bool) -> str | int:
    if not folder and len(path) < 3 and "/".join(path) in _FOLDERS:
        return "it lies where a folder belongs"
    if len(path) == 3 and not (folder and is_valid_id(path[2])):
        kind = _FAMILIES.get("/".join(path[:2]))
        if kind is not None:
            return f"it is no folder of a {kind}"
    return _limit(path[-1])


def _archive_rule(path: list[str], folder: bool) -> str | int:
    if path[0] == ARCHIVED_RUNS:
        return _archived_run_rule(path, folder)
    if path[0] == DELETED:
        return _deletion_rule(path, folder)
    return _limit(path[-1])


def _archived_run_rule(path: list[str], folder: bool) -> str | int:
    """``runs/<YYYY/MM/DD | other>/<2 hex>/<run_id>/...``"""
    id_at = 3 if path[1:2] == ["other"] else 5
    if len(path) > id_at + 1:
        return _limit(path[-1])
    if not folder:
        return "it lies where only folders may"
    if len(path) == id_at + 1:
        right = is_valid_id(path[-1]) and archived_run_dir(path[-1]) == "/".join(path)
        return 0 if right else "it is no folder of a run, or lies in the wrong place"
    if len(path) > 1:
        wanted = _HEX_PAIR if len(path) == id_at else _DATE_PLACES[len(path) - 2]
        if wanted.fullmatch(path[-1]) is None:
            return "it lies in the wrong place"
    return 0


def _deletion_rule(path: list[str], folder: bool) -> str | int:
    """``deleted/<kind>/<2 hex>/<id>``"""
    if len(path) == 4 and not folder:
        right = is_valid_id(path[3]) and deleted_path(path[1], path[3]) == "/".join(path)
        return _MAX_DELETION_BYTES if right else "it is no record of a deletion, or lies in the wrong place"
    if not folder or len(path) > 3 or (len(path) > 1 and path[1] not in _KINDS):
        return "it lies in the wrong place"
    return 0


def _notes_rule(path: list[str], folder: bool) -> str | int:
    if folder:
        return 0 if _HEX_PAIR.fullmatch(path[-1]) and len(path) < 20 else "it is no folder of notes"
    return MAX_NOTE_BYTES if note_target("/".join(path)) else "it is no note"


def _limit(name: str) -> int:
    """How many bytes a file may have."""
    return MAX_NOTE_BYTES if is_part("messages", name) or is_part("events", name) else MAX_RECORD_BYTES
