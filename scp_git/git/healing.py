"""What is done under the gate before anything else: finish or forget what a dead process
began, and merge what somebody else did to our branches.

A tip is *ours* if it is the one that ``scp/tips`` names or is reached from it by
commits with our trailer. Everything else (stock git, a person's commit with a stale
index, a deleted or reset branch) is merged like a remote's state. Nothing is lost,
and nothing needs a person.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from scp_git.git.files import unlink
from scp_git.git.history import History
from scp_git.git.locks import PACKING, REF_LOCK_STALE_S, TryLock, heal_lock, remove_own_lock
from scp_git.git.merge import merge_states
from scp_git.git.mergereport import MergeReport
from scp_git.git.objects import ObjectStore, Reader
from scp_git.git.pack import remove_stale
from scp_git.git.publish import PACKED_NEW, SCRATCH_PREFIX, Intent, Publisher
from scp_git.git.refs import Refs
from scp_git.git.tree import TreeEditor
from scp_git.git.validate import sift
from scp_git.layout import ARCHIVE_REF, LEDGER_REF, NOTES_REF, RUN_TAG_PREFIX

log = logging.getLogger(__name__)

BRANCHES = (ARCHIVE_REF, LEDGER_REF, NOTES_REF)
"""In the order in which they are published."""
_ORIGIN = {
    LEDGER_REF: "refs/remotes/origin/scp-ledger",
    ARCHIVE_REF: "refs/remotes/origin/scp-ledger-archive",
}

Tips = dict[str, str | None]


@dataclass(slots=True)
class Recovered:
    """What a dead process had published before it died, or what was completed for it."""

    reached: Tips = field(default_factory=dict)
    """Branches that stand where its intent says: ``scp/tips`` may not know it yet."""
    elsewhere: Tips = field(default_factory=dict)
    """Its commits for branches that somebody else moved meanwhile: they must be merged."""


def recover(publisher: Publisher, objects: Reader, deadline: float) -> Recovered:
    """Complete or discard the intent of a dead process, and remove its locks and files."""
    recovered = Recovered()
    value = publisher.intent.read()
    if value:
        try:
            intent = Intent.parse(value)
        except (KeyError, TypeError, ValueError):
            intent = Intent((), ())
        for path, inode in intent.locks:
            remove_own_lock(publisher.common_dir / path, inode)
        recovered = _roll_forward(publisher, intent, objects, deadline)
        publisher.done()
    publisher.packs = remove_stale(publisher.common_dir)
    for name in os.listdir(publisher.folder):
        if name.startswith(SCRATCH_PREFIX):
            unlink(publisher.folder / name)
        elif name == PACKED_NEW:
            with TryLock(publisher.folder / PACKING) as nobody_packs:
                if nobody_packs:
                    unlink(publisher.folder / name)
    return recovered


def drop_old_locks(common_dir: Path) -> None:
    """Remove the locks that a power cut left to housekeeping: its intent is not synced, and may be lost."""
    folder = common_dir / RUN_TAG_PREFIX
    names = os.listdir(folder) if folder.is_dir() else []
    for path in [
        common_dir / "packed-refs.lock",
        *(folder / name for name in names if name.endswith(".lock")),
    ]:
        heal_lock(path, REF_LOCK_STALE_S)


def _roll_forward(publisher: Publisher, intent: Intent, objects: Reader, deadline: float) -> Recovered:
    present = {change.name: publisher.refs.read(change.name) for change in intent.changes}
    reached = any(present[change.name] == change.new for change in intent.changes)
    if not reached or any(change.new and objects.read(change.new) is None for change in intent.changes):
        return Recovered()
    missing = [
        change for change in intent.changes if present[change.name] == change.old and change.old != change.new
    ]
    if missing:
        log.warning("completing an interrupted write: %d of %d refs", len(missing), len(intent.changes))
        publisher.publish(missing, deadline, resume=intent)
    recovered = Recovered()
    for change in intent.changes:
        if change.name in BRANCHES:
            lost = present[change.name] not in (change.old, change.new)
            (recovered.elsewhere if lost else recovered.reached)[change.name] = change.new
    return recovered


# ---------------------------------------------------------------- the state to begin with


@dataclass(slots=True)
class Base:
    """One branch as a transaction finds it: what its next commit stands on."""

    ref: str
    current: str | None
    """The ref's value, for the compare-and-swap."""
    parents: list[str]
    candidates: dict[str, str]
    """Trees that need no new commit, and the commit that has them."""


@dataclass(slots=True)
class Beginning:
    """The healed state: an editor and a base for each branch, and what the merge did."""

    editors: dict[str, TreeEditor]
    bases: dict[str, Base]
    report: MergeReport | None = None
    merged: list[str] = field(default_factory=list)

    def trees(self) -> tuple[TreeEditor, TreeEditor, TreeEditor]:
        return self.ledger, self.archive, self.notes

    @property
    def ledger(self) -> TreeEditor:
        return self.editors[LEDGER_REF]

    @property
    def archive(self) -> TreeEditor:
        return self.editors[ARCHIVE_REF]

    @property
    def notes(self) -> TreeEditor:
        return self.editors[NOTES_REF]


def begin(store: ObjectStore, refs: Refs, tips: Tips, elsewhere: Tips) -> Beginning:
    """Read the three branches and merge into them whatever is not ours."""
    history = History(store)
    beginning = Beginning({}, {})
    foreign: list[tuple[str, str]] = []
    for ref in BRANCHES:
        current = refs.read_direct(ref)
        trusted = _trusted(history, current, tips.get(ref))
        base, strangers = _base(history, refs, ref, current, trusted)
        start = history.get(trusted)
        beginning.editors[ref] = TreeEditor(store, start.tree if start else None)
        beginning.bases[ref] = base
        foreign += [(ref, oid) for oid in strangers]
        if elsewhere.get(ref):
            foreign.append((ref, str(elsewhere[ref])))
    for ref, oid in foreign:
        _merge_commit(beginning, history, ref, oid)
    if beginning.report is not None:
        # After a power cut one branch may be older than another: what the archive says is deleted goes.
        nothing = Beginning({ref: TreeEditor(store) for ref in BRANCHES}, {})
        beginning.report.add(merge_states(beginning, nothing, thorough=True))
    return beginning


def _trusted(history: History, current: str | None, tip: str | None) -> str | None:
    """The newest commit of a branch that is known to be ours."""
    if tip is not None and history.get(tip):
        ours = current is not None and history.contains(current, tip, through_ours_only=True)
        return current if ours else tip
    return current if current is not None and history.is_ours(current) else None


def _base(
    history: History, refs: Refs, ref: str, current: str | None, trusted: str | None
) -> tuple[Base, list[str]]:
    """What the branch's next commit stands on, and the commits to be merged."""
    found = current if history.get(current) else None
    if found is None and trusted is None and ref in _ORIGIN:
        origin = refs.read(_ORIGIN[ref])
        found = origin if history.get(origin) else None
    if found is None or found == trusted:
        if trusted and current != trusted:
            log.warning("%s was removed or damaged; it is restored", ref)
        return Base(ref, current, *_on(history, trusted)), []
    strangers = history.foreign(found, trusted)
    if trusted is None or history.contains(found, trusted):
        return Base(ref, current, *_on(history, found)), strangers
    if history.contains(trusted, found):
        return Base(ref, current, *_on(history, trusted)), strangers
    parents, candidates = _on(history, trusted)
    return Base(ref, current, [*parents, found], candidates), strangers


def _on(history: History, oid: str | None) -> tuple[list[str], dict[str, str]]:
    commit = history.get(oid)
    return ([oid], {commit.tree: oid}) if oid and commit else ([], {})


def _merge_commit(beginning: Beginning, history: History, ref: str, oid: str) -> None:
    commit = history.get(oid)
    if commit is None:
        return
    log.info("merging %s of %s, which was not made by this library", oid[:10], ref)
    empty = {name: TreeEditor(history.store) for name in BRANCHES}
    empty[ref] = TreeEditor(history.store, commit.tree)
    theirs = Beginning(empty, {})
    for skipped in sift(theirs, beginning):
        log.warning("%s of %s: %s: %s", oid[:10], ref, skipped.path, skipped.reason)
    report = merge_states(beginning, theirs)
    beginning.merged.append(ref)
    if beginning.report is None:
        beginning.report = report
    else:
        beginning.report.add(report)
