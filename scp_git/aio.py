"""The async library: the verbs of ``Store``, awaited, on asyncio and trio.

Writes go straight to the writer thread, reads cost one hop to a worker thread.
Nothing of git, of the disk or of encoding happens on the event loop. No method
needs a task group, and any number of loops may use one repository at once.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from scp_git.errors import RepositoryBusy, ScpGitError
from scp_git.ledger.tracking import TrackedRun
from scp_git.models import Run
from scp_git.settings import Settings
from scp_git.store import Events, Store, events_size
from scp_git.ticket import Ticket

Result = TypeVar("Result")

_THREADS = 8
_ENCODE_APART = 64 * 1024
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


class AsyncStore:
    """``Store`` for event loops; see there for what each verb guarantees and raises."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def root(self) -> Path:
        return self.store.root

    async def flush(self) -> None:
        """Wait until every write queued for this repository is stored or has failed."""
        await offload(self.store.flush)

    # ------------------------------------------------------------ writing

    async def ensure_ledger(self) -> Path | None:
        """Make branch, view and missing run tags as they should be; returns the view's path."""
        await self._wait(self.store.ensuring())
        return await offload(self.store.ensured)

    async def record_run(self, run: Run, events: Events | None = None) -> str:
        """Store a run with its events, durably; returns its id.

        When the call is cancelled the run was either not recorded, or recorded
        completely. Do not change ``events`` or what ``run`` holds until it returns.
        """
        size = events_size(events)
        if isinstance(run, Run):
            run = run.model_copy()
        if size is None or size > _ENCODE_APART:
            # So much is not encoded in the writer thread, where others would wait for it.
            operation = await offload(self.store.prepared, run, events)
            await self._wait(self.store.recording(run, lambda: operation, size=operation.size))
        else:
            prepare = partial(self.store.prepared, run, events)
            await self._wait(self.store.recording(run, prepare, size=size + 2048))
        return run.run_id

    @asynccontextmanager
    async def track_run(
        self,
        type: str,
        *,
        subtype: str = "",
        user: str = "",
        environment: str = "",
        summary: str = "",
        metadata: dict[str, Any] | None = None,
    ) -> AsyncIterator[TrackedRun]:
        """Time a block and record it as a run when it ends; see ``Store.track_run``.

        When the task is cancelled, the run (``failed``, summary ``cancelled``) is
        handed to the writer without waiting, and the cancellation goes on.
        """
        run = TrackedRun(
            type,
            subtype=subtype,
            user=user,
            environment=environment,
            summary=summary,
            metadata=metadata,
        )
        await offload(self.store.begin_tracking, run)
        try:
            yield run
        except Exception as exc:
            run.failed(exc)
            await self._record_tracked(run)
            raise
        except BaseException as exc:  # cancelled, or the interpreter is ending: nothing can be awaited
            run.failed(exc, cancelled=_is_cancellation(exc))
            self._hand_over(run)
            raise
        else:
            await self._record_tracked(run)

    async def _record_tracked(self, run: TrackedRun) -> None:
        try:
            await self.record_run(*run.finish())
        except anyio.get_cancelled_exc_class():
            self._hand_over(run)
            raise
        except Exception as exc:
            self.store.report("track_run", exc, key=run.run_id)

    def _hand_over(self, run: TrackedRun) -> None:
        """Give a run to the writer without waiting; recording one twice stores it once."""
        made, events = run.finish()
        ticket = self.store.recording(made, partial(self.store.prepared, made, events), size=2048)
        ticket.lost = partial(self.store.report, "track_run", key=run.run_id)
        try:
            self.store.submit(ticket)
        except ScpGitError as exc:
            self.store.report("track_run", exc, key=run.run_id)

    async def delete_run(self, run_id: str) -> bool:
        """Remove a run from the present state; False if there is none."""
        check = self.store.checked(run_id)
        return bool(await self._wait(self.store.deleting([check])))

    async def prune_runs(self, *, older_than_days: float) -> int:
        """Delete all runs that started more than so many days ago; returns how many."""
        return await offload(self.store.prune_runs, older_than_days=older_than_days)

    # ------------------------------------------------------------ reading

    async def list_runs(
        self,
        *,
        n: int = 20,
        before: str | None = None,
        type: str | None = None,
        status: str | None = None,
        user: str | None = None,
        environment: str | None = None,
        since: str | datetime | None = None,
        until: str | datetime | None = None,
    ) -> list[Run]:
        """The newest ``n`` runs that pass the filters, newest first."""
        return await offload(
            self.store.list_runs,
            n=n,
            before=before,
            type=type,
            status=status,
            user=user,
            environment=environment,
            since=since,
            until=until,
        )

    async def get_run(self, run_id: str) -> Run | None:
        """The run as it was stored, or ``None`` if there is none."""
        return await offload(self.store.get_run, run_id)

    async def get_run_events(self, run_id: str) -> list[dict[str, Any]]:
        """The run's events in the order of ``seq``; empty if there is no such run."""
        return await offload(self.store.get_run_events, run_id)

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


def _is_cancellation(exc: BaseException) -> bool:
    """Whether the task was cancelled; nested task groups wrap that in exception groups."""
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(cancelled)[1] is None
    return isinstance(exc, cancelled)


@asynccontextmanager
async def open_store(
    root: str | os.PathLike[str], settings: Settings | None = None
) -> AsyncIterator[AsyncStore]:
    """Open a repository's ledger; on leaving, queued writes are waited for."""
    store = AsyncStore(await offload(Store.open, root, settings))
    try:
        yield store
    finally:
        with anyio.CancelScope(shield=True):
            await store.flush()
