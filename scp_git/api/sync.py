"""The module-level functions that talk to a remote. None raises a ``ScpGitError``; see ``api.core``.

They are True when both sides have the same afterwards: also when there was nothing
to do, when the remote has no ledger yet (pull), and when only tags wait. They are
False without that remote, when it could not be reached, and when it refused a ref.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from scp_git.aio import AsyncStore
from scp_git.api.core import Root, guarded
from scp_git.errors import RemoteError
from scp_git.store.core import report_failure
from scp_git.store.sync import Transfer
from scp_git.sync import CHAT, LEDGER, RefState, SyncReport

log = logging.getLogger(__name__)


async def push_ledger(project_root: Root, *, remote: str = "origin") -> bool:
    """The remote has our runs and their tags; what it had is merged here."""
    return await _in_step(project_root, "push_ledger", lambda store: store.store.pushing(remote, refs=LEDGER))


async def pull_ledger(project_root: Root, *, remote: str = "origin") -> bool:
    """What the remote has is merged here, tags included."""
    return await _in_step(project_root, "pull_ledger", lambda store: store.store.pulling(remote))


async def push_chat(project_root: Root, *, remote: str = "origin") -> bool:
    """The remote has our messages, and the runs and threads that they belong to."""
    return await _in_step(project_root, "push_chat", lambda store: store.store.pushing(remote, refs=CHAT))


async def pull_chat(project_root: Root, *, remote: str = "origin") -> bool:
    """What the remote has is merged here: messages, and the runs and threads that they belong to."""
    return await _in_step(project_root, "pull_chat", lambda store: store.store.pulling(remote))


async def _in_step(root: Root, operation: str, transfer: Callable[[AsyncStore], Transfer]) -> bool:
    async def call(store: AsyncStore) -> bool:
        report = await store.transfer(transfer(store))
        _tell(report, operation, root)
        return report.in_step

    return await guarded(root, operation, False, call)


def _tell(report: SyncReport, operation: str, root: Root) -> None:
    """A refusal is announced like an error; a missing remote is no event."""
    refused = [result for result in report.pushed if result.state is RefState.REJECTED]
    if refused:
        words = f"{refused[0].ref} was refused: {refused[0].detail}"
        report_failure(operation, RemoteError(report.remote, words), root=os.fspath(root))
    elif not report.in_step:
        log.info("%s: there is no remote %r", operation, report.remote)
