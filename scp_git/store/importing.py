"""One import under way: memory is bounded, and one batch is written while the next is made ready."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from pydantic import ValidationError

from scp_git.broadcast import bus
from scp_git.errors import AlreadyExists, InvalidId, RecordTooLarge
from scp_git.git.handle import Repository
from scp_git.git.objects import COMMIT, is_oid
from scp_git.ledger.importing import Events, ImportReport, ImportRuns, MadeRun, Unreadable, reason
from scp_git.models import Run
from scp_git.ticket import ThreadWaiter, Ticket

BATCH_RUNS = 4096
BATCH_BYTES = 16 * 1024 * 1024
SLICE = 256
"""So many runs are made ready in one go."""

Item = Run | tuple[Run, Events | None] | Unreadable
Source = Iterable[Item] | AsyncIterable[Item]
Progress = Callable[[ImportReport], object]
_BAD = (ValidationError, InvalidId, RecordTooLarge, ValueError)


class Import:
    """Takes runs slice by slice; ``finish`` stores the rest. One thread at a time.

    The newest ``hot_min`` runs met so far are held back, as they go to the ledger
    branch; all others go straight to the archive.
    """

    def __init__(
        self,
        repository: Repository,
        submit: Callable[[Ticket, ThreadWaiter], object],
        outcome: Callable[[Ticket, ThreadWaiter], Any],
        *,
        hot_max: int,
        hot_min: int,
        strict: bool,
        meta: dict[str, str],
    ) -> None:
        self._repository = repository
        self._submit = submit
        self._outcome = outcome
        self._archives = hot_max > 0
        self._hot_min = min(hot_min, hot_max)
        self._strict = strict
        self._meta = meta
        self.report = ImportReport()
        self._position = 0
        self._identity = repository.identity()
        self._head = repository.head()
        self._has_commit = lru_cache(4096)(self._is_commit)
        self._newest: list[tuple[tuple[str, str], MadeRun]] = []
        self._held: dict[str, MadeRun] = {}
        self._batch: list[MadeRun] = []
        self._size = 0
        self._flying: tuple[Ticket, ThreadWaiter, Sequence[MadeRun]] | None = None

    def feed(self, items: Iterator[Item]) -> bool:
        """Take up to ``SLICE`` items; False when there are no more. Raises what makes the import fail."""
        taken = 0
        for item in islice(items, SLICE):
            taken += 1
            self._position += 1
            self._take(item)
        return taken == SLICE

    def finish(self) -> ImportReport:
        """Store what was held back, and wait until all of it is there."""
        self._send(hot=not self._archives)
        self._batch = [run for _, run in sorted(self._newest, key=lambda pair: pair[0])]
        self._newest, self._held = [], {}
        self._send(hot=True)
        self._land()
        self.report.rejected.sort()
        return self.report

    # ------------------------------------------------------------ making

    def _take(self, item: Item) -> None:
        if isinstance(item, Unreadable):
            self._refuse(item.run_id, ValueError(item.reason))
            return
        run, events = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        if not isinstance(run, Run):
            raise TypeError(f"import_runs takes Run or (Run, events), not {type(item).__name__}")
        try:
            made = MadeRun.make(
                self._position,
                run,
                events,
                identity=self._identity,
                head=self._head,
                has_commit=self._has_commit,
            )
        except _BAD as exc:
            self._refuse(run.run_id, exc)
            return
        self._place(made)

    def _refuse(self, run_id: str, exc: Exception) -> None:
        if self._strict:
            raise exc
        self.report.reject(self._position, run_id[:200], reason(exc))

    def _is_commit(self, oid: str) -> bool:
        with self._repository.odb() as odb:
            return is_oid(oid) and odb.kind(oid) == COMMIT

    def _place(self, run: MadeRun) -> None:
        """Hold it back if it is one of the newest so far; what gives way to it goes to the archive."""
        twin = self._held.get(run.run_id)
        if twin is not None:
            if run.folder == twin.folder or run.given.same_as(twin.given):
                self.report.unchanged += 1
            else:
                self._refuse(run.run_id, AlreadyExists("run", run.run_id))
            return
        if self._archives and self._hot_min:
            heapq.heappush(self._newest, (run.key, run))
            self._held[run.run_id] = run
            if len(self._newest) <= self._hot_min:
                return
            run = heapq.heappop(self._newest)[1]
            del self._held[run.run_id]
        self._batch.append(run)
        self._size += run.given.size
        if len(self._batch) >= BATCH_RUNS or self._size >= BATCH_BYTES:
            self._send(hot=not self._archives)

    # ------------------------------------------------------------ storing

    def _send(self, *, hot: bool) -> None:
        """Hand the batch to the writer once the one before it is stored."""
        self._land()
        batch, self._batch = tuple(self._batch), []
        size, self._size = self._size, 0
        if batch:
            operation = ImportRuns(batch, hot, self._strict, size)
            waiter = ThreadWaiter()
            ticket = Ticket(lambda: operation, size=size, after=self._announce)
            self._submit(ticket, waiter)
            self._flying = ticket, waiter, batch

    def _land(self) -> None:
        if self._flying is None:
            return
        (ticket, waiter, batch), self._flying = self._flying, None
        outcomes: list[bool | str] = self._outcome(ticket, waiter)
        for run, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, str):
                self.report.reject(run.position, run.run_id, outcome)
            elif outcome:
                self.report.added += 1
            else:
                self.report.unchanged += 1

    def _announce(self, outcomes: list[bool | str]) -> None:
        added = outcomes.count(True)
        if added:
            bus.publish("ledger:imported", data={"added": added}, meta=self._meta)
