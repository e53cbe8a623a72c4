"""The verbs for runs, synchronous, and the tickets that the async facade awaits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from scp_git.broadcast import bus
from scp_git.errors import ScpGitError
from scp_git.git.handle import Repository
from scp_git.git.transaction import Operation
from scp_git.ids import check_id, clock, format_time
from scp_git.index.runs import RunIndex
from scp_git.ledger.filters import RunFilter
from scp_git.ledger.operations import DeleteRuns, EnsureLedger, RecordRun
from scp_git.ledger.queries import RunReader
from scp_git.ledger.tracking import TrackedRun
from scp_git.models import Run, RunEvent
from scp_git.settings import Settings
from scp_git.store.core import StoreCore
from scp_git.ticket import Ticket

Events = Iterable[RunEvent | Mapping[str, Any]]

_PRUNE_CHUNK = 500
_EVENT_SIZE = 200


class LedgerVerbs(StoreCore):
    """Recording, listing and deleting runs."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        super().__init__(repository, settings)
        self._runs = RunReader(repository)
        self._index = RunIndex(repository, self._runs)
        self._writer.on_calm = self._index.follow

    # ------------------------------------------------------------ writing

    def ensure_ledger(self) -> Path | None:
        """Make branch, view and missing run tags as they should be; returns the view's path.

        Idempotent. ``None`` in a bare repository, which has no view. Raises
        ``StorageFailed`` when something that is not ours stands where the view belongs.
        """
        self._wait(self.ensuring())
        return self.ensured()

    def record_run(self, run: Run, events: Events | None = None) -> str:
        """Store a run with its events, durably; returns its id.

        The same run recorded twice is stored once. Empty ``user``, ``code_ref``,
        ``ended_at`` and ``duration_ms`` are filled in what is stored.

        Raises ``InvalidId``, ``AlreadyExists`` (other content, or deleted),
        ``RecordTooLarge`` (16 MiB a run, 4 MiB an event), ``RepositoryBusy`` or
        ``StorageFailed``; ``ValidationError`` or ``TypeError`` for what is no valid run.
        """
        operation = self.prepared(run, events)
        self._wait(self.recording(run, lambda: operation, size=operation.size))
        return operation.run_id

    @contextmanager
    def track_run(
        self,
        type: str,
        *,
        subtype: str = "",
        user: str = "",
        environment: str = "",
        summary: str = "",
        metadata: dict[str, Any] | None = None,
    ) -> Iterator[TrackedRun]:
        """Time a block and record it as a run when it ends.

        An exception makes the run ``failed`` and goes on. A ledger that fails is
        logged and announced (``scp:error``); it never breaks the tracked work.
        """
        run = TrackedRun(
            type,
            subtype=subtype,
            user=user,
            environment=environment,
            summary=summary,
            metadata=metadata,
        )
        self.begin_tracking(run)
        try:
            yield run
        except BaseException as exc:
            run.failed(exc)
            raise
        finally:
            try:
                self.record_run(*run.finish())
            except Exception as exc:
                self.report("track_run", exc, key=run.run_id)

    def delete_run(self, run_id: str) -> bool:
        """Remove a run with its tag, events and chat from the present state; False if there is none.

        It stays deleted: the id is refused from then on. History keeps it.
        """
        return bool(self._wait(self.deleting([check_id("run", run_id)])))

    def prune_runs(self, *, older_than_days: float) -> int:
        """Delete all runs that started more than so many days ago; returns how many."""
        removed = 0
        run_ids = self.prunable(older_than_days)
        for start in range(0, len(run_ids), _PRUNE_CHUNK):
            removed += len(self._wait(self.deleting(run_ids[start : start + _PRUNE_CHUNK])))
        return removed

    # ------------------------------------------------------------ reading

    def list_runs(
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
        """The newest ``n`` runs by (``started_at``, id) that pass the filters, newest first.

        ``before`` is the id of a run: only older ones are listed. A damaged record is
        left out and logged. Raises ``ValueError`` for times that are none.
        """
        only = RunFilter.build(type, status, user, environment, since, until)
        if before is not None:
            check_id("run", before)
        return self._index.newest(n=max(n, 0), before=before, only=only)

    def get_run(self, run_id: str) -> Run | None:
        """The run as it was stored, or ``None`` if there is none."""
        return self._runs.get(check_id("run", run_id))

    def get_run_events(self, run_id: str) -> list[dict[str, Any]]:
        """The run's events in the order of ``seq``; empty if there is no such run."""
        return self._runs.events(check_id("run", run_id))

    # ------------------------------------------------------------ tickets, for the async facade too

    def checked(self, run_id: str) -> str:
        """The run id, or ``InvalidId``."""
        return check_id("run", run_id)

    def prepared(self, run: Run, events: Events | None) -> RecordRun:
        """Validate and encode a run; HEAD and identity are this root's at that moment."""
        return RecordRun.prepare(
            run, events, user=self._repository.identity().name, head=self._repository.head()
        )

    def recording(self, run: Run, prepare: Callable[[], Operation[Any]], *, size: int) -> Ticket:
        """The ticket that records a run and then announces it."""

        def announce(stored: bool) -> None:
            if stored:
                data = {name: getattr(run, name) for name in ("type", "subtype", "status", "summary")}
                bus.publish("ledger:run", key=run.run_id, data=data, meta=self._meta)

        return Ticket(prepare, size=size, after=announce)

    def ensuring(self) -> Ticket:
        return Ticket(EnsureLedger, size=0)

    def ensured(self) -> Path | None:
        """The view's path once it is there."""
        view = self._writer.committer.view
        if view is None:
            return None
        if not view.healthy():
            view.explain()
        return view.path

    def deleting(self, run_ids: list[str]) -> Ticket:
        def announce(removed: list[str]) -> None:
            for run_id in removed:
                bus.publish("ledger:deleted", key=run_id, data={}, meta=self._meta)

        return Ticket(lambda: DeleteRuns(tuple(run_ids)), size=256 * len(run_ids), after=announce)

    def prunable(self, older_than_days: float) -> list[str]:
        """The ids of all runs that started more than so many days ago."""
        limit = self._limit(older_than_days)
        return [] if limit is None else self._index.ids_before(limit)

    def _limit(self, older_than_days: float) -> str | None:
        """The moment so many days ago, as it is stored; ``None`` if no run can be that old."""
        if not older_than_days >= 0:
            raise ValueError("older_than_days must not be negative")
        try:
            return format_time(clock.now() - timedelta(days=older_than_days))
        except OverflowError:
            return None

    def begin_tracking(self, run: TrackedRun) -> None:
        """Note HEAD at the beginning of a tracked block."""
        try:
            run.code_ref = self._repository.head() or ""
        except ScpGitError as exc:
            self.report("track_run", exc, key=run.run_id)


def events_size(events: Events | None) -> int | None:
    """About how many bytes so many events take; ``None`` if they cannot be counted."""
    if events is None:
        return 0
    return len(events) * _EVENT_SIZE if isinstance(events, list | tuple) else None
