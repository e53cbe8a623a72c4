"""Push, pull and sync: the only verbs that talk to a remote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scp_git.git.credentials import Credentials
from scp_git.git.handle import Repository
from scp_git.git.transaction import Operation
from scp_git.git.transfer import Progress
from scp_git.store.core import StoreCore
from scp_git.sync import EVERYTHING, Syncer, SyncReport, SyncStatus, sync_status
from scp_git.ticket import Ticket

OnProgress = Callable[[Progress], None]
Cancelled = Callable[[], bool]
Transfer = Callable[[Cancelled | None], SyncReport]
"""A sync that is ready to begin; it asks now and then whether it is to end."""


class SyncVerbs(StoreCore):
    """Publishing the ledger to a remote, and taking over what the remote has."""

    def push(
        self,
        remote: str = "origin",
        *,
        publish_commits: bool = False,
        credentials: Credentials | None = None,
        on_progress: OnProgress | None = None,
    ) -> SyncReport:
        """What is here is on the remote, and what the remote had is merged here.

        It cannot conflict. A run's tag pins a commit, so it waits until the remote has
        that commit; ``publish_commits`` pushes it with the commit and all that it
        stands on. A ref that the remote refuses is in the report, with its words.

        Raises ``RemoteError`` (not reached, timed out, cancelled), ``AuthFailed``,
        ``RepositoryBusy``, ``UnsupportedRepository`` or ``StorageFailed``; without
        that remote the report says so.
        """
        transfer = self.pushing(
            remote, publish_commits=publish_commits, credentials=credentials, on_progress=on_progress
        )
        return transfer(None)

    def pull(
        self,
        remote: str = "origin",
        *,
        credentials: Credentials | None = None,
        on_progress: OnProgress | None = None,
    ) -> SyncReport:
        """What the remote has is merged here; nothing is sent. Raises as ``push`` does."""
        return self.pulling(remote, credentials=credentials, on_progress=on_progress)(None)

    def sync(
        self,
        remote: str = "origin",
        *,
        publish_commits: bool = False,
        credentials: Credentials | None = None,
        on_progress: OnProgress | None = None,
    ) -> SyncReport:
        """Both sides have the same: ``pull``, then ``push``, begun again when others push meanwhile."""
        return self.push(
            remote, publish_commits=publish_commits, credentials=credentials, on_progress=on_progress
        )

    def sync_status(
        self, remote: str = "origin", *, fetch: bool = False, credentials: Credentials | None = None
    ) -> SyncStatus | None:
        """How far we and the remote are apart, and what waits; ``None`` without that remote.

        Nobody is asked: the remote is taken to be as it was last seen, unless ``fetch``.
        Nothing is merged. Raises ``RemoteError`` or ``AuthFailed`` when asking fails.
        """
        return self.looking(remote, fetch=fetch, credentials=credentials)(None)

    # ------------------------------------------------------------ for the async facade too

    def pushing(
        self,
        remote: str,
        *,
        refs: tuple[str, ...] = EVERYTHING,
        publish_commits: bool = False,
        credentials: Credentials | None = None,
        on_progress: OnProgress | None = None,
    ) -> Transfer:
        """A push of some of our refs."""

        def transfer(cancelled: Cancelled | None) -> SyncReport:
            syncer = self._syncer(credentials, on_progress, cancelled)
            return syncer.push(remote, refs=refs, publish_commits=publish_commits)

        return transfer

    def pulling(
        self, remote: str, *, credentials: Credentials | None = None, on_progress: OnProgress | None = None
    ) -> Transfer:
        return lambda cancelled: self._syncer(credentials, on_progress, cancelled).pull(remote)

    def looking(
        self, remote: str, *, fetch: bool, credentials: Credentials | None
    ) -> Callable[[Cancelled | None], SyncStatus | None]:
        return lambda cancelled: sync_status(self._syncer(credentials, None, cancelled), remote, fetch=fetch)

    def _syncer(
        self,
        credentials: Credentials | None,
        on_progress: OnProgress | None,
        cancelled: Cancelled | None,
    ) -> Syncer:
        return Syncer(
            self._repository,
            self.settings,
            self._write_in,
            credentials=credentials,
            on_progress=on_progress,
            cancelled=cancelled,
        )

    def _write_in(self, repository: Repository, operation: Operation[Any]) -> Any:
        """Have a repository's writer apply an operation; the remote at a path has one of its own."""
        core = self if repository is self._repository else StoreCore(repository, self.settings)
        return core._wait(Ticket(lambda: operation, size=operation.size))
