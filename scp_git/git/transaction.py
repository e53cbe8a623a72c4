"""What an operation sees: the present state, to be edited in memory, all or nothing.

An *operation* is a small value with ``apply(tx)``. It may be applied more than
once (the state is built again when somebody else moved a ref), so it keeps
nothing between calls and looks at nothing but the transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from scp_git.errors import ScpGitError, StorageFailed
from scp_git.git.anchors import find_run, read_record, run_tag
from scp_git.git.deletions import texts_of
from scp_git.git.handle import Identity, Repository
from scp_git.git.mergereport import MergeReport
from scp_git.git.objects import COMMIT, TAG, Anchor, ObjectStore, is_oid
from scp_git.git.publish import RefChange
from scp_git.git.refs import Refs, Survey
from scp_git.git.tree import TreeEditor
from scp_git.layout import RUN_FILE, RUN_TAG_PREFIX, deleted_path, run_tag_ref

log = logging.getLogger(__name__)

Result = TypeVar("Result", covariant=True)


class Operation(Protocol[Result]):
    """One write. ``size`` is about how many bytes it adds; ``head`` the HEAD of the caller's root."""

    @property
    def size(self) -> int: ...

    def apply(self, tx: Transaction) -> Result: ...


@dataclass(frozen=True, slots=True)
class Footing:
    """What a branch's next commit stands on."""

    parents: tuple[str, ...]
    candidates: Mapping[str, str]
    """Trees that need no new commit, and the commit that has them."""


@dataclass(frozen=True, slots=True)
class Together:
    """Several operations as one: all of them are applied, or none. Gives their results, in order."""

    operations: tuple[Operation[Any], ...]

    @property
    def size(self) -> int:
        return sum(operation.size for operation in self.operations)

    def apply(self, tx: Transaction) -> list[Any]:
        return [operation.apply(tx) for operation in self.operations]


class Transaction:
    """The state that operations edit: three trees and the run tags."""

    def __init__(
        self,
        repository: Repository,
        store: ObjectStore,
        ledger: TreeEditor,
        archive: TreeEditor,
        notes: TreeEditor,
        *,
        seconds: int,
    ) -> None:
        self.repository = repository
        self.store = store
        self.ledger = ledger
        self.archive = archive
        self.notes = notes
        self.seconds = seconds
        """The time of the transaction, in seconds since 1970, for commits and taggers."""
        self.identity: Identity = repository.identity()
        self.tags: dict[str, RefChange] = {}
        self.subjects: list[str] = []
        self.recorded: list[tuple[str, str]] = []
        """Id and start of the runs that operations added to the ledger branch."""
        self.deferred: set[str] = set()
        """Runs that wait for a commit, to be anchored by the first write after one exists."""
        self.untagged: dict[str, str] = {}
        """Runs whose tag could not be made, as the commit that it names is not here; with that commit."""
        self.footing: dict[str, Footing] = {}
        """For each branch what its next commit stands on; only a merge of a remote's state changes it."""
        self.start_ledger = False
        self.verify_view = False
        self._tag_refs: Refs | Survey = repository.refs
        self._present_tags: dict[str, str | None] = {}
        self._commits: dict[str, bool] = {}
        self._above: str | None = None

    # ------------------------------------------------------------ tags

    def tag(self, run_id: str) -> str | None:
        """The object that the run's tag names, as it will be."""
        change = self.tags.get(run_id)
        return change.new if change else self._present_tag(run_id)

    def _present_tag(self, run_id: str) -> str | None:
        if run_id not in self._present_tags:
            self._present_tags[run_id] = self._tag_refs.read(run_tag_ref(run_id))
        return self._present_tags[run_id]

    def set_tag(self, run_id: str, data: bytes, target: str) -> str:
        """Make the run's tag from its tag object; returns the object's id.

        The tag is left out where a ref of somebody else (``scp/run``, ``scp/run/<id>/...``)
        makes it impossible: the run is complete without it.
        """
        oid = self.store.add(TAG, data)
        self.move_tag(run_id, oid, target)
        return oid

    def move_tag(self, run_id: str, oid: str, target: str) -> None:
        """As ``set_tag``, for a tag object that was added before."""
        present, ref = self._present_tag(run_id), run_tag_ref(run_id)
        obstacle = self._obstacle(ref) if present is None else None
        if obstacle:
            log.warning("run %s is not tagged, as the ref %s is in the way", run_id, obstacle)
        elif present != oid:
            self.tags[run_id] = RefChange(ref, present, oid, target)

    def _obstacle(self, ref: str) -> str | None:
        if self._above is None:  # all run tags have the same folders
            self._above = self.repository.refs.above(ref) or ""
        return self._above or self._tag_refs.below(ref)

    def survey_tags(self) -> None:
        """From now on run tags are looked up in what their folder holds at this moment."""
        self._tag_refs = self.repository.refs.survey(RUN_TAG_PREFIX)

    def remove_tag(self, run_id: str) -> str | None:
        """Remove the run's tag; returns what it named."""
        present = self._present_tag(run_id)
        self.tags.pop(run_id, None)
        if present:
            self.tags[run_id] = RefChange(run_tag_ref(run_id), present, None)
        return present

    def project_tag(self, run_id: str, *, replacing: frozenset[str] = frozenset()) -> None:
        """Make the run's tag from its anchor if its target is here and no other tag is in the way.

        A tag that is one of ``replacing`` gives way; a tag that no anchor explains is left alone.
        """
        found = find_run(self, run_id)
        record = read_record(found[0], f"{found[1]}/{RUN_FILE}") if found else None
        anchor = Anchor.parse(record.get("anchor")) if record else None
        if record is None or anchor is None:
            return
        present = self.tag(run_id)
        if present is not None and present not in replacing:
            return
        if not self.has_commit(anchor.target):
            self.untagged[run_id] = anchor.target
            return
        try:
            self.set_tag(run_id, run_tag(run_id, record, anchor), anchor.target)
        except ValueError as exc:
            log.warning("run %s cannot be tagged: %s", run_id, exc)

    def settle_tags(self, report: MergeReport) -> None:
        """After a merge: make and replace the tags of the runs that came in, remove those of deleted ones."""
        replaced = frozenset(report.replaced_tags)
        for run_id in sorted(report.runs):
            if find_run(self, run_id) is None:
                deletion = read_record(self.archive, deleted_path("run", run_id)) or {}
                if self.tag(run_id) in texts_of(deletion, "tags") | report.gone_tags:
                    self.remove_tag(run_id)
            else:
                self.project_tag(run_id, replacing=replaced)

    # ------------------------------------------------------------ looking

    def has_commit(self, oid: str | None) -> bool:
        """Whether ``oid`` is a commit of this repository."""
        if oid is None or not is_oid(oid):
            return False
        if oid not in self._commits:
            self._commits[oid] = self.store.kind(oid) == COMMIT
        return self._commits[oid]

    def is_deleted(self, kind: str, id: str) -> bool:
        """Whether a deletion of this id is recorded; it then stays deleted."""
        return self.archive.blob(deleted_path(kind, id)) is not None

    # ------------------------------------------------------------ one operation at a time

    def attempt(self, operation: Operation[Result]) -> Result | ScpGitError:
        """Apply one operation; what it changed is undone if it fails, and the error returned."""
        editors = (self.ledger, self.archive, self.notes)
        for editor in editors:
            editor.settle()
        marks = [editor.mark() for editor in editors]
        tags, deferred = dict(self.tags), set(self.deferred)
        subjects, recorded = len(self.subjects), len(self.recorded)
        untagged, footing = dict(self.untagged), dict(self.footing)
        try:
            return operation.apply(self)
        except Exception as exc:
            for editor, mark in zip(editors, marks, strict=True):
                editor.rollback(mark)
            self.tags, self.deferred = tags, deferred
            self.untagged, self.footing = untagged, footing
            del self.subjects[subjects:], self.recorded[recorded:]
            if isinstance(exc, ScpGitError):
                return exc
            log.exception("%s met an unexpected error", type(operation).__name__)
            failure = StorageFailed(f"applying {type(operation).__name__}", exc)
            failure.__cause__ = exc
            return failure
