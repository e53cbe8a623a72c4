"""Runs recorded before there was a commit: they wait, by id, for the first one to be anchored to."""

from __future__ import annotations

import os
from pathlib import Path

from scp_git.codec import dump_pretty
from scp_git.git.anchors import find_run, read_record, run_tag
from scp_git.git.files import sync_dir, unlink, write_all
from scp_git.git.objects import Anchor
from scp_git.git.publish import SCRATCH_PREFIX
from scp_git.git.transaction import Transaction
from scp_git.ids import is_valid_id
from scp_git.layout import RUN_FILE


class Deferred:
    """The ids in ``scp/deferred``; used under the gate only."""

    def __init__(self, folder: Path, *, sync: bool) -> None:
        self.path = folder / "deferred"
        self._sync = sync

    def read(self) -> set[str]:
        try:
            lines = self.path.read_bytes().decode("ascii", "replace").split("\n")
        except FileNotFoundError:
            return set()
        return {line for line in lines if is_valid_id(line)}

    def write(self, run_ids: set[str]) -> None:
        """Replace the ids.

        New ones are written before their runs are published, settled ones taken out
        afterwards: an id without a run, or of an anchored run, is harmless.
        """
        temporary = self.path.with_name(f"{SCRATCH_PREFIX}deferred")
        unlink(temporary)
        with open(temporary, "xb") as file:
            write_all(file.fileno(), "".join(f"{run_id}\n" for run_id in sorted(run_ids)).encode())
            if self._sync:
                os.fsync(file.fileno())
        temporary.replace(self.path)
        if self._sync:
            sync_dir(self.path.parent)

    def settle(self, tx: Transaction) -> set[str]:
        """Anchor and tag the waiting runs if there is a commit now; returns those that still wait.

        ``code_ref`` stays as it was recorded.
        """
        waiting = self.read()
        head = tx.repository.head() if waiting else None
        if head is None or not tx.has_commit(head):
            return waiting
        for run_id in sorted(waiting):
            found = find_run(tx, run_id)
            record = read_record(found[0], f"{found[1]}/{RUN_FILE}") if found else None
            if found is None or record is None or "anchor" in record:
                continue
            anchor = Anchor(head, tx.identity.stamp(tx.seconds))
            found[0].put(f"{found[1]}/{RUN_FILE}", dump_pretty({**record, "anchor": anchor.to_json()}))
            if tx.tag(run_id) is None:
                tx.set_tag(run_id, run_tag(run_id, record, anchor), head)
            tx.subjects.append(f"ledger: anchor {run_id}")
        return set()
