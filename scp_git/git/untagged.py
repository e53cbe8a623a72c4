"""Runs whose tag waits, as the commit that it names is not here yet.

A run that was recorded elsewhere is complete without its tag, which is made as soon
as the commit has arrived. Commits of others arrive by a fetch, and every fetch
writes ``FETCH_HEAD``: so nothing is looked at until that file is newer than ours.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from scp_git.git.files import unlink
from scp_git.git.handle import Repository
from scp_git.git.objects import is_oid
from scp_git.git.publish import SCRATCH_PREFIX
from scp_git.git.transaction import Transaction
from scp_git.ids import is_valid_id

log = logging.getLogger(__name__)


class Untagged:
    """The runs in ``scp/untagged``, one a line with its commit; a hint, used under the gate only.

    Where it is lost, ``ensure_ledger`` makes the tags of the runs on the ledger branch.
    """

    def __init__(self, repository: Repository, folder: Path) -> None:
        self.path = folder / "untagged"
        self._fetched = [top / "FETCH_HEAD" for top in (repository.common_dir, repository.git_dir)]
        self._left: dict[str, str] | None = None
        """What still waits, when the file is to be written anew."""

    def read(self) -> dict[str, str]:
        """Run id to commit."""
        try:
            text = self.path.read_bytes().decode("ascii", "replace")
        except FileNotFoundError:
            return {}
        pairs = [line.partition(" ")[::2] for line in text.split("\n")]
        return {run_id: target for run_id, target in pairs if is_valid_id(run_id) and is_oid(target)}

    def settle(self, tx: Transaction) -> None:
        """Make the tags whose commit has arrived since this was last done."""
        self._left = None
        looked = _changed(self.path)
        if not looked or max(map(_changed, self._fetched)) < looked:
            return
        waiting = self.read()
        for run_id, target in waiting.items():
            if tx.has_commit(target):
                tx.project_tag(run_id)
        self._left = {run_id: target for run_id, target in waiting.items() if not tx.has_commit(target)}

    def keep(self, added: Mapping[str, str]) -> None:
        """Note what waits from now on. The write has succeeded already: a failure is no failure of it."""
        left, self._left = self._left, None
        try:
            if left is not None:
                self._replace({**left, **added})
            elif added:
                with open(self.path, "ab") as file:
                    file.write(_lines(added))
        except OSError as exc:
            log.warning("%d tags are left to ensure_ledger: %s", len(added), exc)

    def _replace(self, waiting: Mapping[str, str]) -> None:
        if not waiting:
            unlink(self.path)
            return
        temporary = self.path.with_name(f"{SCRATCH_PREFIX}untagged")
        unlink(temporary)
        temporary.write_bytes(_lines(waiting))
        os.replace(temporary, self.path)


def _lines(waiting: Mapping[str, str]) -> bytes:
    return "".join(f"{run_id} {target}\n" for run_id, target in waiting.items()).encode()


def _changed(path: Path) -> int:
    """When a file was last written, 0 if it is not there."""
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0
