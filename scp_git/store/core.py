"""What all verbs of a store stand on: the repository, its writer, and waiting for it."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any, Self

from scp_git.broadcast import bus
from scp_git.errors import RepositoryBusy, ScpGitError
from scp_git.git.committer import Committer
from scp_git.git.handle import Repository
from scp_git.ledger.archive import HotWindow
from scp_git.settings import Settings
from scp_git.ticket import ThreadWaiter, Ticket, Waiter
from scp_git.writer import Writer, writer_for

log = logging.getLogger(__name__)


class StoreCore:
    """One opened repository: hands writes to its writer and waits for them."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self._repository = repository
        self.settings = settings
        self._writer: Writer = writer_for(
            lambda: Committer(
                repository,
                durability=settings.durability,
                lock_timeout_s=settings.lock_timeout_s,
                finish=HotWindow(settings.hot_max, settings.hot_min),
            ),
            str(repository.common_dir),
            settings,
        )
        self._meta = {"root": str(repository.root)}

    @classmethod
    def open(cls, root: str | os.PathLike[str], settings: Settings | None = None) -> Self:
        """Open the repository whose top is ``root``; settings default to git config ``scp.*``.

        Nothing is written. Raises ``NotARepository``, ``UnsupportedRepository`` or
        ``InvalidSettings``.
        """
        repository = Repository.open(root)
        return cls(repository, settings or Settings.from_config(repository.config("scp.")))

    @property
    def root(self) -> Path:
        """The top of the working tree, or the bare repository, that was opened."""
        return self._repository.root

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the queued writes. The store stays usable."""
        self.flush()

    def flush(self) -> None:
        """Wait until every write queued for this repository is stored or has failed."""
        self._writer.flush()

    def report(self, operation: str, exc: BaseException, *, key: str = "") -> None:
        """Log and announce a failure that must not break the caller's work."""
        report_failure(operation, exc, root=self._meta["root"], key=key)

    def submit(self, ticket: Ticket, waiter: Waiter | None = None) -> Ticket:
        ticket.waiter = waiter
        self._writer.submit(ticket)
        return ticket

    def withdraw(self, ticket: Ticket) -> bool:
        return self._writer.withdraw(ticket)

    def _wait(self, ticket: Ticket) -> Any:
        """Hand a write to the writer and wait; withdrawn with ``RepositoryBusy`` after ``lock_timeout_s``."""
        waiter = ThreadWaiter()
        self.submit(ticket, waiter)
        return self._outcome(ticket, waiter)

    def _outcome(self, ticket: Ticket, waiter: ThreadWaiter) -> Any:
        """Wait for a write that was handed over; see ``_wait``."""
        started = time.monotonic()
        try:
            if not waiter.wait(self.settings.lock_timeout_s) and self.withdraw(ticket):
                raise RepositoryBusy(f"the ledger of {self.root}", time.monotonic() - started)
            waiter.wait(None)
        except BaseException:
            self.withdraw(ticket)
            raise
        return ticket.outcome()


def report_failure(operation: str, exc: BaseException, *, root: str, key: str = "") -> None:
    """Log at ERROR with the error's code and publish ``scp:error``."""
    code = exc.code if isinstance(exc, ScpGitError) else "invalid-record"
    detail = str(exc) if isinstance(exc, ScpGitError) else exc.__class__.__name__
    log.error("%s failed (%s): %s", operation, code, detail)
    data = {"code": code, "operation": operation, "detail": detail}
    bus.publish("scp:error", key=key, data=data, error=detail, meta={"root": os.path.realpath(root)})
