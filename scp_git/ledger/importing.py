"""Importing runs: made ready in any thread, then stored by the thousand in one transaction.

What an import stores is a function of the run, the identity and HEAD, not of the
clock: so importing the same source again finds the same tree entries, and needs
to read nothing to know it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import ValidationError

from scp_git.codec import JsonObject, load_object
from scp_git.errors import AlreadyExists, ScpGitError
from scp_git.git.anchors import find_run
from scp_git.git.entries import decode_entry
from scp_git.git.handle import Identity
from scp_git.git.made import made_folder, made_object
from scp_git.git.objects import TAG, Anchor, encode_tag
from scp_git.git.transaction import Transaction
from scp_git.ids import parse_time
from scp_git.layout import (
    DELETED,
    RUN_FILE,
    RUNS,
    archived_run_dir,
    deleted_path,
    part_name,
    run_dir,
    run_tag_name,
)
from scp_git.ledger.operations import RecordRun
from scp_git.models import RunEvent
from scp_git.soundness import file_of

LISTED_MAX = 1000
"""So many rejected runs are listed; all are counted."""

Events = Iterable[RunEvent | Mapping[str, Any]]


class Rejected(NamedTuple):
    """A run that was not imported."""

    position: int
    """Its place in what was given, counted from 1."""
    run_id: str
    """Empty where that could not be read."""
    reason: str


@dataclass(slots=True)
class ImportReport:
    """What an import did, or has done so far."""

    added: int = 0
    unchanged: int = 0
    """Runs that were there already, with the same content."""
    rejected: list[Rejected] = field(default_factory=list)
    """The first thousand of them; ``rejected_count`` counts all."""
    rejected_count: int = 0

    @property
    def seen(self) -> int:
        """How many runs were dealt with."""
        return self.added + self.unchanged + self.rejected_count

    def reject(self, position: int, run_id: str, reason: str) -> None:
        self.rejected_count += 1
        if len(self.rejected) < LISTED_MAX:
            self.rejected.append(Rejected(position, run_id, reason))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a run in a source that could not be read; it is counted as rejected."""

    run_id: str
    reason: str


class MadeRun(NamedTuple):
    """A run that only needs to be grafted: its folder, its tag object, and what they consist of.

    Of builtin types only, so that one process can make it for another.
    """

    run_id: str
    started_at: str
    place: str
    """The archive's folder for it and its like."""
    folder: bytes
    """The tree entry of the run's own folder."""
    tag: str
    """The tag object's id; empty for a run without an anchor."""
    target: str
    """The commit that the tag is on."""
    objects: Sequence[tuple[str, bytes]]
    """Pack entries: the tag's if there is one, the folder's tree, run.json, and the parts of the events."""
    filled: tuple[str, ...]
    timeless: tuple[int, ...]
    """As in ``RecordRun``."""
    size: int

    @property
    def key(self) -> tuple[str, str]:
        """The order of runs: by start, then id."""
        return self.started_at, self.run_id

    @classmethod
    def make(cls, record: JsonObject, events: list[JsonObject], target: str, identity: Identity) -> MadeRun:
        """Validate, encode, hash and deflate a run, tagged on ``target``; raises as ``RecordRun.of`` does.

        It takes over what it is given.
        """
        given = RecordRun.of(record, events, user="", head=None, past=True)
        run_id, started_at, record = given.run_id, str(given.record["started_at"]), given.record
        objects, tag = [], ""
        if target:
            anchor = Anchor(target, identity.stamp(int(parse_time(started_at).timestamp())))
            data = encode_tag(run_tag_name(run_id), target, anchor.tagger, given.message)
            objects.append(made_object(TAG, data))
            tag = objects[0].oid
            record["anchor"] = anchor.to_json()
        files = {RUN_FILE: file_of(record)}
        files |= {part_name("events", number): part for number, part in enumerate(given.parts, 1)}
        folder, inside = made_folder(run_id, files)
        objects += inside
        filled, timeless = tuple(given.filled), tuple(given.timeless)
        place = archived_run_dir(run_id).rpartition("/")[0]
        return cls(run_id, started_at, place, folder, tag, target, objects, filled, timeless, given.size)

    def given(self) -> RecordRun:
        """The run as it was given, to be compared with another of its id."""
        _, run_file, *parts = [decode_entry(entry) for _, entry in self.objects[bool(self.tag) :]]
        record = load_object(run_file)
        filled, timeless = frozenset(self.filled), frozenset(self.timeless)
        return RecordRun(self.run_id, record, b"", filled, tuple(parts), timeless, None, self.size)


@dataclass(frozen=True, slots=True)
class ImportRuns:
    """Afterwards the runs are stored and tagged; says of each True (added), False (was there) or why not.

    ``strict``: the first that cannot be stored is raised, and none is.
    """

    runs: Sequence[MadeRun]
    hot: bool
    """They go to the ledger branch, not to the archive."""
    strict: bool
    size: int

    def apply(self, tx: Transaction) -> list[bool | str]:
        tx.survey_tags()
        known = _Known(tx)
        new: dict[str, MadeRun] = {}
        outcomes = [self._look(tx, run, known, new) for run in self.runs]
        tx.store.adopt(entry for run in new.values() for entry in run.objects)
        folders: dict[str, list[bytes]] = {}
        for run_id, run in new.items():
            if self.hot:
                tx.ledger.graft(run_dir(run_id), run.folder)
                tx.recorded.append((run_id, run.started_at))
            else:
                folders.setdefault(run.place, []).append(run.folder)
            if not run.tag:
                tx.deferred.add(run_id)
            elif tx.tag(run_id) is None:
                tx.move_tag(run_id, run.tag, run.target)
        tx.archive.graft_all(folders)
        if new:
            tx.subjects.append(f"ledger: import {len(new)} runs")
        return outcomes

    def _look(self, tx: Transaction, run: MadeRun, known: _Known, new: dict[str, MadeRun]) -> bool | str:
        """True, and noted as new, if the run is to be stored; else as ``apply`` says it."""
        run_id, twin = run.run_id, new.get(run.run_id)
        stored = known.folder_of(run)
        deleted = known.is_deleted(run_id)
        found = None if deleted or stored is None else find_run(tx, run_id)
        if found is None and twin is None and not deleted:
            new[run_id] = run
            return True
        if found is not None and (stored == run.folder or run.given().same(*found)):
            if tx.tag(run_id) is None:
                tx.project_tag(run_id)
            return False
        if twin is not None and (twin.folder == run.folder or run.given().same_as(twin.given())):
            return False
        refusal = AlreadyExists("run", run_id, deleted=deleted)
        if self.strict:
            raise refusal
        return refusal.message


class _Known:
    """What the ledger holds, asked for thousands of runs: each folder of runs is looked up once.

    Made before anything is changed, and used only until then.
    """

    def __init__(self, tx: Transaction) -> None:
        self._hot = tx.ledger.folder(RUNS)
        self._archive = lru_cache(None)(tx.archive.folder)
        self._deletes = tx.archive.has_dir(f"{DELETED}/run")

    def folder_of(self, run: MadeRun) -> bytes | None:
        """The tree entry of the run's folder."""
        name = run.run_id.encode()
        hot = self._hot.raw(name) if self._hot is not None else None
        return hot if hot is not None else self._entry(run.place, name)

    def is_deleted(self, run_id: str) -> bool:
        return self._deletes and self._entry(*_split(deleted_path("run", run_id))) is not None

    def _entry(self, folder: str, name: bytes) -> bytes | None:
        tree = self._archive(folder)
        return tree.raw(name) if tree is not None else None


def _split(path: str) -> tuple[str, bytes]:
    folder, _, name = path.rpartition("/")
    return folder, name.encode()


def reason(exc: Exception) -> str:
    """Why a record was refused, in one line, without the value that caused it."""
    if isinstance(exc, ValidationError):
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        return f"{where}: {said}" if where else said
    return exc.message if isinstance(exc, ScpGitError) else str(exc)
