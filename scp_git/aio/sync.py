"""Push, pull and sync, awaited. Cancelling one of them ends the transfer cleanly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import anyio

from scp_git.aio.core import AsyncCore, offload
from scp_git.git.credentials import Credentials
from scp_git.store.sync import Cancelled, OnProgress
from scp_git.sync import SyncReport, SyncStatus

Result = TypeVar("Result")


class AsyncSyncVerbs(AsyncCore):
    """Publishing the ledger to a remote, and taking over what the remote has.

    ``on_progress`` is called in a worker thread. When a call is cancelled, the
    transfer stops at its next step; what was merged here by then stays, and what
    was published stays published: both are whole.
    """

    async def push(
        self,
        remote: str = "origin",
        *,
        publish_commits: bool = False,
        credentials: Credentials | None = None,
        on_progress: OnProgress | None = None,
    ) -> SyncReport:
        """What is here is on the remote, and what the remote had is merged here."""
        transfer = self.store.pushing(
            remote, publish_commits=publish_commits, credentials=credentials, on_progress=on_progress
        )
        return await self.transfer(transfer)

    async def pull(
        self,
        remote: str = "origin",
        *,
        credentials: Credentials | None = None,
        on_progress: OnProgress | None = None,
    ) -> SyncReport:
        """What the remote has is merged here; nothing is sent."""
        return await self.transfer(
            self.store.pulling(remote, credentials=credentials, on_progress=on_progress)
        )

    async def sync(
        self,
        remote: str = "origin",
        *,
        publish_commits: bool = False,
        credentials: Credentials | None = None,
        on_progress: OnProgress | None = None,
    ) -> SyncReport:
        """Both sides have the same: ``pull``, then ``push``, begun again when others push meanwhile."""
        return await self.push(
            remote, publish_commits=publish_commits, credentials=credentials, on_progress=on_progress
        )

    async def sync_status(
        self, remote: str = "origin", *, fetch: bool = False, credentials: Credentials | None = None
    ) -> SyncStatus | None:
        """How far we and the remote are apart, and what waits; ``None`` without that remote."""
        return await self.transfer(self.store.looking(remote, fetch=fetch, credentials=credentials))

    async def transfer(self, transfer: Callable[[Cancelled | None], Result]) -> Result:
        """Run a transfer in a worker thread; on cancellation it is told to stop, and waited for."""
        stop, done = threading.Event(), anyio.Event()
        reports: list[Result] = []
        errors: list[Exception] = []

        async def work() -> None:
            with anyio.CancelScope(shield=True):
                try:
                    reports.append(await offload(transfer, stop.is_set))
                except Exception as exc:
                    errors.append(exc)
                finally:
                    done.set()

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            try:
                await done.wait()
            finally:
                stop.set()
        for error in errors:
            raise error
        return reports[0]
