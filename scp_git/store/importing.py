"""One import under way: memory is bounded, and one batch is written while the next is made ready."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import Any

from pydantic import ValidationError

from scp_git.broadcast import bus
from scp_git.errors import AlreadyExists, InvalidId, RecordTooLarge
from scp_git.git.handle import Repository
from scp_git.git.objects import COMMIT, is_oid
from scp_git.ids import check_id
from scp_git.ledger.importing import Events, ImportReport, ImportRuns, MadeRun, Unreadable, reason
from scp_git.ledger.making import pack
from scp_git.ledger.operations import given_events
from scp_git.models import Run
from scp_git.store.makers import Given, Makers, Slice, usable
from scp_git.ticket import ThreadWaiter, Ticket

BATCH_RUNS = 4096
BATCH_BYTES = 16 * 1024 * 1024
SLICE = 256
"""So many runs are taken in one go."""
_HANDED = 64
"""So many runs at a time are made ready by a helper."""
_LONG = 4096
"""An import of more runs than that is worth starting helpers for."""

Item = Run | tuple[Run, Events | None] | Unreadable
Source = Iterable[Item] | AsyncIterable[Item]
Progress = Callable[[ImportReport], object]
_BAD = (ValidationError, InvalidId, RecordTooLarge, ValueError)


class Import:
    """Takes runs slice by slice; ``finish`` stores the rest, ``close`` ends it. One thread at a time.

    A long import has its runs made ready by helpers. Each run counts as it was when it
    was taken from the source, and in the order of the source. The newest ``hot_min``
    runs met so far are held back, as they go to the ledger branch; all others go
    straight to the archive.
    """

    def __init__(
        self,
        repository: Repository,
        submit: Callable[[Ticket, ThreadWaiter], object],
        outcome: Callable[[Ticket, ThreadWaiter], Any],
        *,
        hot_max: int,
        hot_min: int,
        helpers: int,
        strict: bool,
        meta: dict[str, str],
    ) -> None:
        self._repository = repository
        self._submit = submit
        self._outcome = outcome
        self._archives = hot_max > 0
        self._hot_min = min(hot_min, hot_max)
        self._strict = strict
        self._helpers = helpers
        self._makers: Makers | None = None
        self._slice: Slice = []
        self._made: deque[Slice] = deque()
        self._meta = meta
        self.report = ImportReport()
        self._position = 0
        self._identity = repository.identity()
        self._head = repository.head()
        self._has_commit = lru_cache(4096)(self._is_commit)
        self._newest: list[tuple[tuple[str, str], int, MadeRun]] = []
        self._held: dict[str, MadeRun] = {}
        self._batch: list[tuple[int, MadeRun]] = []
        self._size = 0
        self._flying: tuple[Ticket, ThreadWaiter, Sequence[tuple[int, MadeRun]]] | None = None

    def feed(self, items: Iterator[Item]) -> bool:
        """Take up to ``SLICE`` items; False when there are no more. Raises what makes the import fail."""
        if self._makers is None and self._position >= _LONG and (helpers := min(self._helpers, usable())) > 0:
            self._makers = Makers(self._identity, helpers)
        taken = 0
        for item in islice(items, SLICE):
            taken += 1
            self._position += 1
            self._take(item)
        return taken == SLICE

    def finish(self) -> ImportReport:
        """Store what was held back, and wait until all of it is there."""
        self._hand_over()
        while self._made:
            self._settle(wait=True)
        self._send(hot=not self._archives)
        self._batch = [(position, run) for _, position, run in sorted(self._newest)]
        self._newest, self._held = [], {}
        self._send(hot=True)
        self._land()
        self.report.rejected.sort()
        return self.report

    def close(self) -> None:
        """End the helpers. What was not stored by then is not."""
        if self._makers is not None:
            self._makers.close()

    # ------------------------------------------------------------ making

    def _take(self, item: Item) -> None:
        if isinstance(item, Unreadable):
            taken = Given(self._position, item.run_id, outcome=ValueError(item.reason))
        else:
            run, events = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
            if not isinstance(run, Run):
                raise TypeError(f"import_runs takes Run or (Run, events), not {type(item).__name__}")
            taken = self._given(run, events)
        if self._makers is None:
            self._settle_one(taken)
            return
        self._slice.append(taken)
        if len(self._slice) >= _HANDED:
            self._hand_over()

    def _given(self, run: Run, events: Events | None) -> Given:
        """The run as it is at this moment: the caller may use the object, and what is in it, again."""
        given = Given(self._position, run.run_id)
        try:
            check_id("run", run.run_id)
            plain = given_events(events)
            if self._makers is not None:
                with suppress(ValueError):  # not of builtin types only
                    given.packed = pack((_fields(run), plain, self._target(run.code_ref)))
                    return given
            record = run.model_dump()
        except _BAD as exc:
            given.outcome = exc
        else:
            given.make_now(record, plain, self._target(record["code_ref"]), self._identity)
        return given

    def _target(self, code_ref: object) -> str:
        """The commit that the run is tagged on, empty if there is none yet."""
        name = str(code_ref)
        return name if name and self._has_commit(name) else self._head or ""

    def _hand_over(self) -> None:
        """Have the slice made ready by a helper, or here if none has time."""
        runs, self._slice = self._slice, []
        if self._makers is not None and runs:
            self._made.append(runs)
            if not self._makers.offer(runs):
                for run in runs:
                    run.make(self._identity)
            self._settle()

    def _settle(self, *, wait: bool = False) -> None:
        """Go on with the runs that are ready, in their order."""
        assert self._makers is not None
        self._makers.move(wait=wait)
        while self._made and all(run.outcome is not None for run in self._made[0]):
            for run in self._made.popleft():
                self._settle_one(run)

    def _settle_one(self, given: Given) -> None:
        if isinstance(given.outcome, MadeRun):
            self._place(given.position, given.outcome)
        elif isinstance(given.outcome, _BAD):
            self._refuse(given.position, given.run_id, given.outcome)
        elif given.outcome is not None:
            raise given.outcome

    def _refuse(self, position: int, run_id: str, exc: Exception) -> None:
        if self._strict:
            raise exc
        self.report.reject(position, run_id[:200], reason(exc))

    def _is_commit(self, oid: str) -> bool:
        with self._repository.odb() as odb:
            return is_oid(oid) and odb.kind(oid) == COMMIT

    def _place(self, position: int, run: MadeRun) -> None:
        """Hold it back if it is one of the newest so far; what gives way to it goes to the archive."""
        twin = self._held.get(run.run_id)
        if twin is not None:
            if run.folder == twin.folder or run.given().same_as(twin.given()):
                self.report.unchanged += 1
            else:
                self._refuse(position, run.run_id, AlreadyExists("run", run.run_id))
            return
        if self._archives and self._hot_min:
            self._held[run.run_id] = run
            if len(self._newest) < self._hot_min:
                heapq.heappush(self._newest, (run.key, position, run))
                return
            _, position, run = heapq.heappushpop(self._newest, (run.key, position, run))
            del self._held[run.run_id]
        self._batch.append((position, run))
        self._size += run.size
        if len(self._batch) >= BATCH_RUNS or self._size >= BATCH_BYTES:
            self._send(hot=not self._archives)

    # ------------------------------------------------------------ storing

    def _send(self, *, hot: bool) -> None:
        """Hand the batch to the writer once the one before it is stored."""
        self._land()
        batch, self._batch = self._batch, []
        size, self._size = self._size, 0
        if batch:
            operation = ImportRuns([run for _, run in batch], hot, self._strict, size)
            waiter = ThreadWaiter()
            ticket = Ticket(lambda: operation, size=size, after=self._announce)
            self._submit(ticket, waiter)
            self._flying = ticket, waiter, batch

    def _land(self) -> None:
        if self._flying is None:
            return
        (ticket, waiter, batch), self._flying = self._flying, None
        outcomes: list[bool | str] = self._outcome(ticket, waiter)
        for (position, run), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, str):
                self.report.reject(position, run.run_id, outcome)
            elif outcome:
                self.report.added += 1
            else:
                self.report.unchanged += 1

    def _announce(self, outcomes: list[bool | str]) -> None:
        added = outcomes.count(True)
        if added:
            bus.publish("ledger:imported", data={"added": added}, meta=self._meta)


def _fields(run: Run) -> dict[str, Any]:
    """What ``model_dump`` gives, of an ordinary run without copying: packing copies."""
    plain = type(run) is Run and not run.__pydantic_extra__
    return run.__dict__ if plain else run.model_dump()
