"""Importing runs: made ready in any thread, then stored by the thousand in one transaction.

What an import stores is a function of the run, the identity and HEAD, not of the
clock: so importing the same source again finds the same tree entries, and needs
to read nothing to know it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import ValidationError

from scp_git.codec import dump_pretty
from scp_git.errors import AlreadyExists, ScpGitError
from scp_git.git.anchors import find_run
from scp_git.git.handle import Identity
from scp_git.git.made import made_folder, made_tag
from scp_git.git.objects import Anchor, MadeObject, encode_tag
from scp_git.git.transaction import Transaction
from scp_git.ids import parse_time
from scp_git.layout import (
    RUN_FILE,
    RUNS,
    archived_run_dir,
    deleted_path,
    part_name,
    run_dir,
    run_tag_name,
)
from scp_git.ledger.operations import RecordRun
from scp_git.models import Run, RunEvent

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


@dataclass(frozen=True, slots=True)
class MadeRun:
    """A run that only needs to be grafted: its folder, its tag object, and what they consist of."""

    position: int
    given: RecordRun
    folder: bytes
    """The folder's tree entry."""
    tag: str
    """The tag object's id; empty for a run without an anchor."""
    target: str
    objects: tuple[MadeObject, ...]

    @property
    def run_id(self) -> str:
        return self.given.run_id

    @property
    def key(self) -> tuple[str, str]:
        """The order of runs: by start, then id."""
        return str(self.given.record["started_at"]), self.given.run_id

    @classmethod
    def make(
        cls,
        position: int,
        run: Run,
        events: Events | None,
        *,
        identity: Identity,
        head: str | None,
        has_commit: Callable[[str], bool],
    ) -> MadeRun:
        """Validate, encode, hash and deflate a run; raises as ``RecordRun.prepare`` does."""
        given = RecordRun.prepare(run, events, user="", head=head, past=True)
        record, objects, tag = dict(given.record), [], ""
        code_ref = str(record["code_ref"])
        target = code_ref if code_ref and has_commit(code_ref) else head or ""
        if target:
            seconds = int(parse_time(str(record["started_at"])).timestamp())
            anchor = Anchor(target, identity.stamp(seconds))
            data = encode_tag(run_tag_name(given.run_id), target, anchor.tagger, given.message)
            objects.append(made_tag(data))
            tag = objects[0].oid
            record["anchor"] = anchor.to_json()
        files = {part_name("events", number): part for number, part in enumerate(given.parts, 1)}
        folder, inside = made_folder(given.run_id, {**files, RUN_FILE: dump_pretty(record)})
        return cls(position, given, folder, tag, target, (*objects, *inside))


@dataclass(frozen=True, slots=True)
class ImportRuns:
    """Afterwards the runs are stored and tagged; says of each True (added), False (was there) or why not.

    ``strict``: the first that cannot be stored is raised, and none is.
    """

    runs: tuple[MadeRun, ...]
    hot: bool
    """They go to the ledger branch, not to the archive."""
    strict: bool
    size: int

    def apply(self, tx: Transaction) -> list[bool | str]:
        tx.survey_tags()
        known = _Known(tx)
        new: dict[str, MadeRun] = {}
        outcomes = [self._look(tx, run, known, new) for run in self.runs]
        folders: dict[str, list[bytes]] = {}
        for run_id, run in new.items():
            tx.store.adopt(run.objects)
            if self.hot:
                tx.ledger.graft(run_dir(run_id), run.folder)
                tx.recorded.append((run_id, run.key[0]))
            else:
                folders.setdefault(archived_run_dir(run_id).rpartition("/")[0], []).append(run.folder)
            if not run.tag:
                tx.deferred.add(run_id)
            elif tx.tag(run_id) is None:
                tx.move_tag(run_id, run.tag, run.target)
        for folder, raws in folders.items():
            tx.archive.graft_into(folder, raws)
        if new:
            tx.subjects.append(f"ledger: import {len(new)} runs")
        return outcomes

    def _look(self, tx: Transaction, run: MadeRun, known: _Known, new: dict[str, MadeRun]) -> bool | str:
        """True, and noted as new, if the run is to be stored; else as ``apply`` says it."""
        run_id, twin = run.run_id, new.get(run.run_id)
        stored = known.folder_of(run_id)
        deleted = known.is_deleted(run_id)
        found = None if deleted or stored is None else find_run(tx, run_id)
        if found is None and twin is None and not deleted:
            new[run_id] = run
            return True
        if found is not None and (stored == run.folder or run.given.same(*found)):
            if tx.tag(run_id) is None:
                tx.project_tag(run_id)
            return False
        if twin is not None and (twin.folder == run.folder or run.given.same_as(twin.given)):
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

    def folder_of(self, run_id: str) -> bytes | None:
        """The tree entry of the run's folder."""
        hot = self._hot.raw(run_id.encode()) if self._hot is not None else None
        return hot if hot is not None else self._entry(archived_run_dir(run_id))

    def is_deleted(self, run_id: str) -> bool:
        return self._entry(deleted_path("run", run_id)) is not None

    def _entry(self, path: str) -> bytes | None:
        parent, _, name = path.rpartition("/")
        folder = self._archive(parent)
        return folder.raw(name.encode()) if folder is not None else None


def reason(exc: Exception) -> str:
    """Why a record was refused, in one line, without the value that caused it."""
    if isinstance(exc, ValidationError):
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        return f"{where}: {said}" if where else said
    return exc.message if isinstance(exc, ScpGitError) else str(exc)
