"""Making transactions: under the gate, heal, let operations edit, publish, then show it in the view.

One committer per repository and process; it is used by one thread at a time (the
writer thread). What it remembers between transactions (parsed trees, the view's
index) is checked against the refs each time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from scp_git.errors import RepositoryBusy, ScpGitError, UnsupportedRepository
from scp_git.git.deferred import Deferred
from scp_git.git.files import CheckedRecord, boot_id, sync_dir
from scp_git.git.handle import Odb, Repository, translated
from scp_git.git.healing import BRANCHES, Beginning, Tips, begin, drop_old_locks, recover
from scp_git.git.history import History
from scp_git.git.locks import Gate, LockFile
from scp_git.git.objects import BLOB, COMMIT, TREE, ObjectStore, encode_commit
from scp_git.git.pack import Pack, write_pack
from scp_git.git.publish import SCRATCH_PREFIX, Publisher, RefChange, RefMoved
from scp_git.git.tracking import mend
from scp_git.git.transaction import Footing, Operation, Transaction
from scp_git.git.tree import EMPTY_TREE, Tree, TreeEditor, raw_oid
from scp_git.git.untagged import Untagged
from scp_git.git.validate import format_refusal
from scp_git.git.view import View
from scp_git.ids import is_valid_id
from scp_git.layout import (
    FORMAT_BYTES,
    FORMAT_PATH,
    LEDGER_REF,
    RECORD_FOLDERS,
    TRAILER,
    is_record_file,
)

log = logging.getLogger(__name__)

Outcome = Any
"""What an operation returned, or the ``ScpGitError`` with which it failed alone."""

_MAX_LISTED = 100
_ODB_USES = 500


class Committer:
    """Turns operations into transactions on one repository."""

    def __init__(
        self,
        repository: Repository,
        *,
        durability: str,
        lock_timeout_s: float,
        finish: Operation[Any] | None = None,
    ) -> None:
        self.repository = repository
        self.finish = finish
        """Applied after the operations of every transaction; where it fails, nothing of it is done."""
        self.sync = durability == "full"
        self.lock_timeout_s = lock_timeout_s
        self.folder = repository.common_dir / "scp"
        self.gate = Gate(self.folder)
        self.publisher = Publisher(repository.common_dir, repository.refs, sync=self.sync)
        self.view = View(repository, repository.main_root) if repository.main_root else None
        self.deferred = Deferred(self.folder, sync=self.sync)
        self.untagged = Untagged(repository, self.folder)
        self._tips = CheckedRecord(self.folder / "tips")
        self._odb: Odb | None = None
        self._objects_changed = False
        self._kept: tuple[Tips, Beginning] | None = None
        self._boot = boot_id()
        self._ignored = False
        self._strayed: str | None = None
        """The commit that was checked out in the view when it was found detached or on another branch."""

    # ------------------------------------------------------------ the gate

    def take_gate(self) -> None:
        """Become the one writer; blocks until the others are done."""
        with translated("taking the gate"):
            if not self.folder.is_dir():  # its parent must exist: a removed repository is not made again
                self.folder.mkdir(exist_ok=True)
                self._kept, self._ignored = None, False
                if self.sync:
                    sync_dir(self.folder.parent)
            self.gate.take()

    def release_gate(self) -> None:
        self.gate.release()

    # ------------------------------------------------------------ one transaction

    def run(self, operations: Sequence[Operation[Any]]) -> list[Outcome]:
        """Apply operations in one transaction and publish it; call with the gate held.

        Returns one outcome per operation: its result, or the ``ScpGitError`` with
        which it failed alone. An error that concerns all of them is raised.
        """
        deadline = time.monotonic() + self.lock_timeout_s
        while True:
            try:
                with translated("writing to the ledger"):
                    return self._attempt(operations, deadline)
            except RefMoved as exc:
                self._kept = None
                if time.monotonic() > deadline:
                    raise RepositoryBusy(f"the ref {exc}", self.lock_timeout_s) from exc
            except BaseException:
                self._kept = None
                raise

    def _attempt(self, operations: Sequence[Operation[Any]], deadline: float) -> list[Outcome]:
        store = ObjectStore(self._reader())
        recovered = recover(self.publisher, store.base, deadline)
        tips = self._tips.read() or {}
        tips["refs"] = {**tips.get("refs", {}), **recovered.reached}
        if tips.get("boot") != self._boot:
            mend(self.repository, store.base)
            drop_old_locks(self.repository.common_dir)
        beginning = self._begin(store, tips, recovered.elsewhere)
        tx = Transaction(self.repository, store, *beginning.trees(), seconds=int(time.time()))
        tx.footing = {
            ref: Footing(tuple(base.parents), base.candidates) for ref, base in beginning.bases.items()
        }
        self._check_format(tx)
        self._project_merged(tx, beginning)
        tx.deferred = self.deferred.settle(tx)
        self.untagged.settle(tx)
        outcomes = [tx.attempt(operation) for operation in operations]
        if self.finish is not None:
            self._finish(tx, self.finish)
        new = self._publish(tx, beginning, deadline, tips)
        self.untagged.keep(tx.untagged)
        self._keep(new, beginning)
        return outcomes

    def _finish(self, tx: Transaction, finish: Operation[Any]) -> None:
        failure = tx.attempt(finish)
        if isinstance(failure, ScpGitError):
            log.warning("%s is left to a later write: %s", type(finish).__name__, failure)

    def _reader(self) -> Odb:
        if self._odb is None or self._odb.uses >= _ODB_USES or self._objects_changed:
            self._objects_changed = False
            self._odb = self.repository.open_odb()
        self._odb.uses += 1
        return self._odb

    def forget_objects(self) -> None:
        """Open the object database anew next time: packs were merged, and libgit2 keeps old ones mapped."""
        self._objects_changed = True

    def rest(self) -> None:
        """Hold no descriptors while there is nothing to do; what is known of the trees is kept."""
        self._odb = None
        self._tips.close()
        self.publisher.intent.close()

    def forget(self) -> None:
        """In a forked child: nothing that the parent may have been changing at that moment is trusted."""
        self._odb, self._kept = None, None
        if self.view is not None:
            self.view.index.clear()

    # ------------------------------------------------------------ beginning

    def _begin(self, store: ObjectStore, tips: dict[str, Any], elsewhere: Tips) -> Beginning:
        """The healed state; the trees of the last transaction are used again if nobody wrote since."""
        known: Tips = {ref: tips.get("refs", {}).get(ref) for ref in BRANCHES}
        refs = self.repository.refs
        kept, self._kept = self._kept, None
        if kept and not elsewhere and kept[0] == known:
            beginning = kept[1]
            if all(refs.read_direct(ref) == known[ref] for ref in BRANCHES):
                for editor in beginning.editors.values():
                    editor.store = store
                    editor.start()
                return beginning
        return begin(store, refs, known, elsewhere)

    def _keep(self, tips: Tips, beginning: Beginning) -> None:
        for ref, base in beginning.bases.items():
            oid = tips[ref]
            base.current = oid
            base.parents = [oid] if oid else []
            base.candidates = {beginning.editors[ref].write(): oid} if oid else {}
        beginning.report, beginning.merged = None, []
        self._kept = tips, beginning

    def _check_format(self, tx: Transaction) -> None:
        for editor in (tx.ledger, tx.archive):
            check_format(self.repository, editor.read(FORMAT_PATH))

    def _project_merged(self, tx: Transaction, beginning: Beginning) -> None:
        """After a merge, make and replace the tags of the runs that came in; drop those of deleted ones."""
        report = beginning.report
        if report is None:
            return
        tx.settle_tags(report)
        tx.subjects.append("merge what was not written by scp_git")

    # ------------------------------------------------------------ publishing

    def _publish(self, tx: Transaction, beginning: Beginning, deadline: float, tips: dict[str, Any]) -> Tips:
        branches = self._branch_changes(tx, beginning)
        new: Tips = {change.name: change.new for change in branches}
        changes = [change for change in [*branches, *tx.tags.values()] if change.new != change.old]
        waiting = self.deferred.read()
        if not tx.deferred <= waiting:
            self.deferred.write(tx.deferred | waiting)
        mode = self._view_mode(tx, beginning, tips, new)
        if not changes and mode is None and tips.get("refs") == new and tx.deferred == waiting:
            return new
        shown = tips.get("view")
        lock = self._view_lock(mode)
        try:
            pack = self._write_pack(tx) if changes else None
            try:
                self.publisher.publish(changes, deadline, [lock] if lock else [])
            except (RefMoved, RepositoryBusy):
                if pack:
                    pack.discard()
                raise
            if pack:
                pack.release()
            if lock and lock.held and self._show(tx, lock, str(mode), shown):
                shown = new[LEDGER_REF]
        finally:
            if lock:
                lock.release()
        self._remember(new, shown)
        if tx.deferred < waiting:
            self.deferred.write(tx.deferred)
        return new

    def _remember(self, refs: Tips, shown: str | None) -> None:
        """Note what was published; only a hint, so a failure is no failure of the write."""
        try:
            self._tips.write({"boot": self._boot, "refs": refs, "view": shown}, sync=False)
        except OSError as exc:
            log.warning("scp/tips could not be written: %s", exc)
        self.publisher.done()

    def _branch_changes(self, tx: Transaction, beginning: Beginning) -> list[RefChange]:
        """One change per branch, in the order of publication; new commits are added to the store."""
        for editor in (tx.ledger, tx.archive):
            wanted = editor.touched() or (editor is tx.ledger and tx.start_ledger)
            if wanted and editor.blob(FORMAT_PATH) is None:
                editor.put(FORMAT_PATH, FORMAT_BYTES)
        changes = []
        for ref in BRANCHES:
            current, footing = beginning.bases[ref].current, tx.footing[ref]
            tree = beginning.editors[ref].write()
            nothing = tree == EMPTY_TREE and not footing.parents
            new = footing.candidates.get(tree, current if nothing else None)
            if new is None and not nothing:
                stamp = tx.identity.stamp(tx.seconds)
                data = encode_commit(tree, list(footing.parents), stamp, _message(tx.subjects))
                new = tx.store.add(COMMIT, data)
            changes.append(RefChange(ref, current, new))
        return changes

    def _write_pack(self, tx: Transaction) -> Pack | None:
        if any(editor.rewrote() for editor in (tx.ledger, tx.archive, tx.notes)):
            _drop_unused_files(tx.store)
        count = tx.store.count()
        folder = self.repository.common_dir
        return write_pack(folder, tx.store.entries(), count=count, sync=self.sync) if count else None

    # ------------------------------------------------------------ the view

    def _view_mode(
        self, tx: Transaction, beginning: Beginning, tips: dict[str, Any], new: Tips
    ) -> str | None:
        """How the view must follow: not at all, the changed files, all that the index says, or every file."""
        if self.view is None or new[LEDGER_REF] is None:
            return None
        if not self._ignored or tx.verify_view or not self.view.healthy():
            self._ignore(self.view)
        if not self._ignored and not self.view.healthy():
            return None  # no view that git would show to the user
        if not self.view.healthy() or tips.get("boot") != self._boot or tx.verify_view:
            return "deep"
        if tips.get("view") != beginning.bases[LEDGER_REF].current or LEDGER_REF in beginning.merged:
            return "all"
        return "changed" if new[LEDGER_REF] != tips.get("view") else None

    def _ignore(self, view: View) -> None:
        try:
            view.ignore()
            self._ignored = True
        except (ScpGitError, OSError) as exc:
            log.warning("git cannot be told to ignore the view: %s", exc)

    def _view_lock(self, mode: str | None) -> LockFile | None:
        if self.view is None or mode is None:
            return None
        self._strayed = None
        try:
            if not self.view.healthy():
                self._strayed = self.repository.refs.read_head(self.view.admin)
                self.view.attach()
        except ScpGitError as exc:
            log.warning("the view is not there: %s", exc)
            return None
        return self.view.lock(self.folder / f"{SCRATCH_PREFIX}view")

    def _show(self, tx: Transaction, lock: LockFile, mode: str, before: str | None) -> bool:
        """Bring the view to the new ledger. The write has succeeded already: a failure is made up later."""
        assert self.view is not None

        def read(oid: str) -> bytes:
            return tx.store.read(oid, BLOB)

        try:
            if mode == "changed":
                self.view.apply(tx.ledger.touched(), read, lock)
            else:
                files = ((path, raw_oid(raw)) for path, raw in tx.ledger.files())
                gone, shown = self._gone(tx, self.view), self._shown(tx, before)
                self.view.compare(files, read, lock, deep=mode == "deep", shown=shown, gone=gone)
        except (ScpGitError, OSError) as exc:
            log.warning("the view could not follow, a later write makes it up: %s", exc)
            self.view.index.clear()
            return False
        return True

    def _shown(self, tx: Transaction, before: str | None) -> Callable[[str], bool]:
        """Tells whether the view showed a file before; where that is not known, whether it is a record's."""
        history = History(tx.store)
        commits = [commit for commit in map(history.get, (before, self._strayed)) if commit]
        if not commits:
            folders = tuple(f"{folder}/" for folder in RECORD_FOLDERS)
            return lambda path: path.startswith(folders) and is_record_file(path.rpartition("/")[2])
        trees = [TreeEditor(tx.store, commit.tree) for commit in commits]
        return lambda path: any(tree.blob(path) for tree in trees)

    def _gone(self, tx: Transaction, view: View) -> list[str]:
        """Folders of deleted records that are in the view all the same: a power cut lost their removal."""
        return [
            f"{folder}/{name}"
            for folder, kind in RECORD_FOLDERS.items()
            for name in view.names(folder)
            if is_valid_id(name) and tx.is_deleted(kind, name)
        ]


def check_format(repository: Repository, data: bytes | None) -> None:
    """Raise ``UnsupportedRepository`` if a FORMAT file names a later format, or cannot be read."""
    reason = format_refusal(data)
    if reason:
        raise UnsupportedRepository(repository.root, reason)


def _drop_unused_files(store: ObjectStore) -> None:
    """Forget the added files that no added tree names: they were replaced again before they were written."""
    trees = [Tree(oid, data) for oid, (kind, data) in store.added.items() if kind == TREE]
    used = {raw_oid(raw) for tree in trees for raw in tree.raw_items().values()}
    for oid in [oid for oid, (kind, _) in store.added.items() if kind == BLOB and oid not in used]:
        del store.added[oid]


def _message(subjects: list[str]) -> str:
    count = len(subjects)
    lines = ["".join(c if c.isprintable() else " " for c in line)[:200] for line in subjects[:_MAX_LISTED]]
    if count <= 1:
        body = lines[0] if lines else "ledger: start"
    else:
        more = [f"... and {count - _MAX_LISTED} more"] if count > _MAX_LISTED else []
        body = "\n".join([f"ledger: {count} changes", "", *lines, *more])
    return f"{body}\n\n{TRAILER}\n"
