"""The specification's own helpers (SPEC 1A.5), synchronous and safe, under their own names.

They take the gate in the calling thread and make one transaction each; the library
itself goes through the writer thread instead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scp_git.errors import AlreadyExists, InvalidId, NotFound, StorageFailed, UnsupportedRepository
from scp_git.git.committer import Committer
from scp_git.git.entries import encode_entry
from scp_git.git.handle import Repository, translated
from scp_git.git.healing import recover
from scp_git.git.notes import append_note, read_note
from scp_git.git.objects import (
    COMMIT,
    TAG,
    ObjectStore,
    encode_commit,
    encode_tag,
    is_oid,
    parse_commit,
    tag_text,
)
from scp_git.git.pack import write_pack
from scp_git.git.publish import RefChange, RefMoved
from scp_git.git.transaction import Transaction
from scp_git.git.tree import TreeEditor
from scp_git.layout import RUN_TAG_PREFIX, TRAILER, VIEW_DIR, run_id_of_tag

Result = TypeVar("Result")

_LOCK_TIMEOUT_S = 30.0


def worktree_path(project_root: Path) -> Path:
    """Where the view is, or would be: ``<main working tree>/.scp-ledger``."""
    repository = Repository.open(project_root)
    if repository.main_root is None:
        raise UnsupportedRepository(project_root, "a bare repository has no working tree and no view")
    return repository.main_root / VIEW_DIR


def ensure_worktree(project_root: Path) -> Path:
    """The branch ``scp-ledger`` exists, is checked out at ``.scp-ledger``, and git ignores that folder.

    Idempotent; heals what it finds broken. No remote is asked: a fresh clone starts
    from ``refs/remotes/origin/scp-ledger``. Raises ``StorageFailed`` when something
    that is not ours stands in the way.
    """
    path = worktree_path(project_root)
    with _committer(project_root) as committer:
        _apply(committer, _Ensure())
        if committer.view is not None and not committer.view.healthy():
            committer.view.explain()
    return path


def create_run_tag(project_root: Path, tag_name: str, target_sha: str, *, message: str) -> None:
    """The annotated tag ``scp/run/<run_id>`` on a commit exists; the same tag twice is one.

    Raises ``InvalidId`` for another name, ``NotFound`` for a commit that is not here,
    ``AlreadyExists`` where the name has another target or message.
    """
    run_id = run_id_of_tag(f"refs/tags/{tag_name}")
    if run_id is None:
        raise InvalidId("tag", tag_name)
    if "\0" in message:
        raise ValueError("a tag message cannot hold NUL")
    text = message if message.endswith("\n") else message + "\n"
    with _committer(project_root) as committer:
        _apply(committer, _CreateTag(tag_name, run_id, target_sha, text))


def list_run_tags(project_root: Path) -> list[str]:
    """The names ``scp/run/...`` of all run tags, sorted."""
    refs = Repository.open(project_root).refs.list(RUN_TAG_PREFIX)
    return sorted(name.removeprefix("refs/tags/") for name in refs)


def read_tag_message(project_root: Path, tag_name: str) -> str:
    """The message of an annotated tag. Raises ``NotFound`` if there is none of that name."""
    repository = Repository.open(project_root)
    with repository.odb() as odb:
        oid = repository.refs.read(f"refs/tags/{tag_name}")
        found = odb.read(oid) if oid else None
    if found is None or found[0] != TAG:
        raise NotFound("annotated tag", tag_name)
    return tag_text(found[1])


def notes_append(project_root: Path, ref: str, target: str, content: str) -> None:
    """``content`` stands at the end of the note on ``target``, as whole lines.

    ``ref`` is a full name below ``refs/notes/`` or its last part; ``target`` an
    object id or a tag's name. Raises ``NotFound`` for an unknown target.
    """
    data = content.encode() if content.endswith("\n") else content.encode() + b"\n"
    with _committer(project_root) as committer:
        oid = _target(committer.repository, target)
        _append(committer, _notes_ref(ref), oid, data)


def notes_show(project_root: Path, ref: str, target: str) -> str | None:
    """The note on ``target``, or ``None``; stock git's notes are read at any fan-out."""
    repository = Repository.open(project_root)
    name = _notes_ref(ref)
    try:
        oid = _target(repository, target)
    except NotFound:
        return None
    with repository.odb() as odb:
        data = read_note(_notes(ObjectStore(odb), repository.refs.read(name)), oid)
    return None if data is None else data.decode("utf-8", "replace")


# ---------------------------------------------------------------- inside


@dataclass(frozen=True, slots=True)
class _Ensure:
    size: int = 0

    def apply(self, tx: Transaction) -> None:
        tx.start_ledger = True
        tx.verify_view = True


@dataclass(frozen=True, slots=True)
class _CreateTag:
    tag_name: str
    run_id: str
    target: str
    message: str
    size: int = 0

    def apply(self, tx: Transaction) -> None:
        if not tx.has_commit(self.target):
            raise NotFound("commit", self.target)
        present = tx.tag(self.run_id)
        if present is None:
            tagger = tx.identity.stamp(tx.seconds)
            data = encode_tag(self.tag_name, self.target, tagger, self.message.encode())
            tx.set_tag(self.run_id, data, self.target)
        elif not self._is_this(tx.store.find(present, TAG)):
            raise AlreadyExists("tag", self.tag_name)

    def _is_this(self, data: bytes | None) -> bool:
        wanted = f"object {self.target}\n".encode()
        return data is not None and data.startswith(wanted) and tag_text(data) == self.message


@contextmanager
def _committer(project_root: Path) -> Iterator[Committer]:
    """A committer that holds the gate."""
    repository = Repository.open(project_root)
    committer = Committer(repository, durability="full", lock_timeout_s=_LOCK_TIMEOUT_S)
    committer.take_gate()
    try:
        yield committer
    finally:
        committer.release_gate()


def _apply(committer: Committer, operation: _Ensure | _CreateTag) -> None:
    (outcome,) = committer.run([operation])
    if isinstance(outcome, Exception):
        raise outcome


def _append(committer: Committer, ref: str, target: str, data: bytes) -> None:
    """Append to a note of any notes ref, by compare-and-swap."""
    repository = committer.repository
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    with translated("writing a note"), repository.odb() as odb:
        recover(committer.publisher, odb, deadline)
        _retry(deadline, lambda: _append_once(committer, ObjectStore(odb), ref, target, data, deadline))


def _append_once(
    committer: Committer, store: ObjectStore, ref: str, target: str, data: bytes, deadline: float
) -> None:
    repository = committer.repository
    tip = repository.refs.read_direct(ref)
    notes = _notes(store, tip)
    append_note(notes, target, data)
    stamp = repository.identity().stamp(int(time.time()))
    message = f"notes: append to {target}\n\n{TRAILER}\n"
    commit = store.add(COMMIT, encode_commit(notes.write(), [tip] if tip else [], stamp, message))
    entries = [encode_entry(oid, kind, body) for oid, (kind, body) in store.added.items()]
    pack = write_pack(repository.common_dir, entries, sync=committer.sync)
    try:
        committer.publisher.publish([RefChange(ref, tip, commit)], deadline)
    except RefMoved:
        pack.discard()
        raise
    pack.release()
    committer.publisher.done()


def _retry(deadline: float, attempt: Callable[[], Result]) -> Result:
    while True:
        try:
            return attempt()
        except RefMoved as exc:
            if time.monotonic() > deadline:
                raise StorageFailed("writing a note", f"{exc} keeps moving") from exc


def _notes(store: ObjectStore, tip: str | None) -> TreeEditor:
    data = store.find(tip, COMMIT) if tip else None
    return TreeEditor(store, parse_commit(data).tree if data else None)


def _notes_ref(ref: str) -> str:
    name = ref if ref.startswith("refs/notes/") else f"refs/notes/{ref}"
    parts = name.split("/")
    if any(not part or part.startswith(".") or part.endswith(".lock") or ".." in part for part in parts) or (
        os.sep + os.sep in name or set(name) & set(" ~^:?*[\\\x7f") or not name.isprintable()
    ):
        raise InvalidId("notes ref", ref)
    return name


def _target(repository: Repository, target: str) -> str:
    oid = target if is_oid(target) else repository.refs.read(f"refs/tags/{target}")
    if oid is None:
        raise NotFound("object or tag", target)
    return oid
