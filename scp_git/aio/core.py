"""What all awaited verbs stand on: one hop to a worker thread, and waiting for the writer on any loop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from scp_git.errors import RepositoryBusy
from scp_git.store import Store
from scp_git.ticket import Ticket

Result = TypeVar("Result")

_THREADS = 8
_WOKEN_PER_TURN = 64
# Per loop, as a limiter binds to the loop that first uses it. Never the host's
# default limiter, on which web frameworks run their own work.
_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("scp_git_limiter")


async def offload(work: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Run ``work`` in a worker thread: one hop."""
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_THREADS)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(partial(work, *args, **kwargs), limiter=limiter)


class LoopWaiter:
    """Waits on an event loop; all waiters of one loop are woken by one callback."""

    def __init__(self) -> None:
        self.loop = anyio.lowlevel.current_token().native_token
        self.event = anyio.Event()

    @property
    def group(self) -> object:
        return self.loop

    def wake(self, tickets: list[Ticket]) -> None:
        """One call into the loop wakes them all, a slice in each turn: others get theirs in between."""
        waiters = deque(ticket.waiter for ticket in tickets if isinstance(ticket.waiter, LoopWaiter))
        call = getattr(self.loop, "call_soon_threadsafe", None) or getattr(self.loop, "run_sync_soon")  # noqa: B009

        def wake_some() -> None:
            for _ in range(min(_WOKEN_PER_TURN, len(waiters))):
                waiters.popleft().event.set()
            if waiters:
                call(wake_some)

        try:
            call(wake_some)
        except RuntimeError:  # the loop is closed (trio.RunFinishedError is one, too): nobody waits
            return


class AsyncCore:
    """An opened store, as event loops see it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def root(self) -> Path:
        return self.store.root

    async def flush(self) -> None:
        """Wait until every write queued for this repository is stored or has failed."""
        await offload(self.store.flush)

    # ------------------------------------------------------------ waiting

    async def _wait(self, ticket: Ticket) -> Any:
        """Queue a write and wait for it; cancellation and deadline withdraw it unless it was taken."""
        waiter = LoopWaiter()
        started = time.monotonic()
        self.store.submit(ticket, waiter)
        try:
            with anyio.move_on_after(self.store.settings.lock_timeout_s):
                await waiter.event.wait()
            if not waiter.event.is_set():
                if self.store.withdraw(ticket):
                    raise RepositoryBusy(f"the ledger of {self.root}", time.monotonic() - started)
                await waiter.event.wait()
        except BaseException:
            self.store.withdraw(ticket)
            raise
        return ticket.outcome()
