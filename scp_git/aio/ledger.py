"""The verbs for runs, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from scp_git.aio.core import AsyncCore, offload
from scp_git.errors import ScpGitError
from scp_git.ledger.tracking import TrackedRun
from scp_git.models import Run
from scp_git.store.ledger import Events, events_size

_ENCODE_APART = 64 * 1024


class AsyncLedgerVerbs(AsyncCore):
    """Recording, listing and deleting runs."""

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


def _is_cancellation(exc: BaseException) -> bool:
    """Whether the task was cancelled; nested task groups wrap that in exception groups."""
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(cancelled)[1] is None
    return isinstance(exc, cancelled)
