"""The writer thread: group commit.

One lazily started daemon thread per repository and process. It takes the gate,
then takes whatever is waiting, makes one transaction of it, publishes the events,
and wakes the callers of each event loop with a single callback. Load sets the
batch size; no timer is needed.

A write is *withdrawn* by cancellation or deadline until it is taken; then it was
certainly not written. A taken one is finished, whoever still waits for it.
"""

from __future__ import annotations

import atexit
import copy
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable

from scp_git.errors import RepositoryBusy, ScpGitError, StorageFailed
from scp_git.git.committer import Committer
from scp_git.git.handle import one_moment
from scp_git.git.maintenance import LOOSE_MAX, MERGE_FROM, merge_packs, pack_tags
from scp_git.settings import Settings
from scp_git.ticket import State, Ticket

log = logging.getLogger(__name__)

_PACKS_MORE = 4
"""So many new packs there are at least before they are merged again."""
_PACKS_MANY = 12
_YIELD_S = 0.1
"""How long a batch at most gives way to a merge that does not keep up."""
_CALM_S = 0.2
"""So long nothing was written when what follows the writes at leisure is brought up to date."""
_TAGS_EVERY = 64
"""Transactions between two looks at whether loose tags should be packed."""


class Writer:
    """The one way to write to a repository from this process. Thread-safe."""

    def __init__(self, committer: Committer, settings: Settings) -> None:
        self.committer = committer
        self.settings = settings
        self.on_calm: Callable[[], None] | None = None
        """Called in a thread of its own when there is nothing to write any more."""
        self._reset()
        _writers.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._busy = False  # the gate is held, or was and housekeeping goes on
        self._queue: deque[Ticket] = deque()
        self._queued_bytes = 0
        self._thread: threading.Thread | None = None
        self._open = 0  # tickets neither done nor withdrawn
        self._transactions = self._maintained = 0
        self._tags_due = False
        self._packs_left: int | None = 0
        """How many packs the last merge left; None until they were counted."""
        self._merging: threading.Thread | None = None
        self._packing: threading.Thread | None = None
        self._calming: threading.Thread | None = None
        self._calmed = 0

    # ------------------------------------------------------------ callers

    def submit(self, ticket: Ticket) -> None:
        """Queue a write. Raises ``RepositoryBusy`` when too many bytes wait already."""
        with self._lock:
            if self._queued_bytes + ticket.size > self.settings.queue_bytes and self._queue:
                raise RepositoryBusy("the writer's queue", 0.0)
            self._queue.append(ticket)
            ticket.charged = ticket.size
            self._queued_bytes += ticket.charged
            self._open += 1
            if self._thread is None or not self._thread.is_alive():
                self._start()
            self._changed.notify_all()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="scp-git-writer", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending; the exit hook does the work
            return
        self._thread = thread

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a write back; False if it was taken already and is being written."""
        with self._lock:
            if ticket.state is not State.QUEUED:
                return False
            # It leaves the queue when its turn comes, and holds nothing until then.
            ticket.state = State.WITHDRAWN
            ticket.prepare = ticket.operation = ticket.after = ticket.waiter = None
            self._queued_bytes -= ticket.charged
            self._close(1)
            return True

    def _close(self, count: int) -> None:
        self._open -= count
        self._changed.notify_all()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is queued or being written; False when ``timeout_s`` passes first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._open == 0, timeout_s)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._work_once()
                self._maintain()
            except Exception:  # whatever it is, the next callers must not wait for a dead thread
                log.exception("housekeeping met an unexpected error")
            finally:
                self._set_busy(False)

    def _set_busy(self, busy: bool) -> None:
        with self._changed:
            self._busy = busy
            self._changed.notify_all()

    def _wait_for_work(self) -> bool:
        calm_s = min(_CALM_S, self.settings.idle_s)
        with self._changed:
            if self._changed.wait_for(lambda: bool(self._queue), calm_s):
                return True
        self._follow()
        with self._changed:
            if self._changed.wait_for(lambda: bool(self._queue), self.settings.idle_s - calm_s):
                return True
            self.committer.rest()
            self._thread = None
            return False

    def _follow(self) -> None:
        """Bring up to date what follows the writes, beside the writers."""
        running = self._calming is not None and self._calming.is_alive()
        if self.on_calm is not None and self._calmed != self._transactions and not running:
            self._calmed = self._transactions
            self._calming = threading.Thread(target=self.on_calm, name="scp-git-index", daemon=True)
            try:
                self._calming.start()
            except RuntimeError as exc:  # the interpreter is ending, or there are too many threads
                log.debug("nothing follows the writes: %s", exc)

    def _work_once(self) -> None:
        """Write one batch; whatever happens, every ticket taken gets an answer."""
        self._prepare(self._waiting())
        batch: list[Ticket] = []
        try:
            self.committer.take_gate()
            try:
                self._set_busy(True)
                batch = self._take()
                self._write(batch)
            finally:
                self.committer.release_gate()
        except Exception as exc:
            batch = batch or self._take()
            self._fail(batch, exc)
        self._announce(batch)
        self._finish(batch)

    def _waiting(self) -> list[Ticket]:
        with self._lock:
            return [ticket for ticket in self._queue if ticket.state is State.QUEUED]

    def _prepare(self, tickets: Iterable[Ticket]) -> None:
        """Resolve and encode; an error is the ticket's own. All of them were queued before HEAD is read."""
        with one_moment():
            for ticket in tickets:
                self._prepare_one(ticket)

    def _prepare_one(self, ticket: Ticket) -> None:
        prepare = ticket.prepare
        if prepare is not None and ticket.operation is None and ticket.error is None:
            try:
                ticket.operation = prepare()
                ticket.size = max(ticket.operation.size, ticket.size)
            except Exception as exc:
                ticket.error = exc

    def _take(self) -> list[Ticket]:
        """Take what waits, up to the bounds of a batch; from now on nothing of it can be withdrawn."""
        batch: list[Ticket] = []
        size = 0
        with self._lock:
            while self._queue and len(batch) < self.settings.max_batch:
                ticket = self._queue[0]
                if ticket.state is State.WITHDRAWN:
                    self._queue.popleft()
                    continue
                if batch and size + ticket.size > self.settings.max_batch_bytes:
                    break
                self._queue.popleft()
                ticket.state = State.TAKEN
                self._queued_bytes -= ticket.charged
                batch.append(ticket)
                size += ticket.size
        return batch

    def _write(self, batch: list[Ticket]) -> None:
        self._prepare(batch)
        ready = [ticket for ticket in batch if ticket.error is None and ticket.operation is not None]
        if not ready:
            return
        outcomes = self.committer.run([t.operation for t in ready if t.operation is not None])
        self._transactions += 1
        for ticket, outcome in zip(ready, outcomes, strict=True):
            if isinstance(outcome, ScpGitError):
                ticket.error = outcome
            else:
                ticket.result = outcome

    def _fail(self, batch: list[Ticket], exc: Exception) -> None:
        if not isinstance(exc, ScpGitError):
            log.error("the writer met an unexpected error", exc_info=exc)
            exc = StorageFailed("writing to the ledger", exc)
        for ticket in batch:
            if ticket.error is None:
                # One object each: a traceback grows on every raise.
                ticket.error = copy.copy(exc)
                ticket.error.__cause__ = exc.__cause__

    def _announce(self, batch: list[Ticket]) -> None:
        for ticket in batch:
            try:
                if ticket.error is not None and ticket.lost is not None:
                    ticket.lost(ticket.error)
                elif ticket.error is None and ticket.after is not None:
                    ticket.after(ticket.result)
            except Exception:
                log.exception("an event could not be published")

    def _finish(self, batch: list[Ticket]) -> None:
        groups: dict[object, list[Ticket]] = {}
        with self._lock:
            done = [ticket for ticket in batch if ticket.state is State.TAKEN]
            for ticket in done:
                ticket.state = State.DONE
                if ticket.waiter is not None:
                    groups.setdefault(ticket.waiter.group, []).append(ticket)
            self._close(len(done))
        for tickets in groups.values():
            assert tickets[0].waiter is not None
            tickets[0].waiter.wake(tickets)

    def _maintain(self) -> None:
        """Now and then, between batches: have loose tags packed, and packs merged, beside the writers."""
        seen, self._maintained = self._maintained, self._transactions
        self._tags_due |= seen // _TAGS_EVERY != self._transactions // _TAGS_EVERY
        if self._tags_due and not (self._packing is not None and self._packing.is_alive()):
            self._tags_due = False
            packing = threading.Thread(target=self._pack_tags, name="scp-git-tags", daemon=True)
            packing.start()
            self._packing = packing
        packs, left = self.committer.publisher.packs, self._packs_left
        if left is None:
            left = self._packs_left = packs
        if self._merging is not None and packs >= _PACKS_MANY:
            self._merging.join(_YIELD_S)
        merging = self._merging is not None and self._merging.is_alive()
        if packs >= max(MERGE_FROM, left + _PACKS_MORE) and not merging:
            thread = threading.Thread(target=self._merge_packs, name="scp-git-packs", daemon=True)
            thread.start()
            self._merging = thread

    def _pack_tags(self) -> None:
        try:
            pack_tags(self.committer.repository, at_least=LOOSE_MAX)
        except (ScpGitError, OSError) as exc:
            log.warning("tags could not be packed, it is tried again later: %s", exc)

    def _merge_packs(self) -> None:
        try:
            # Synced whatever the settings say: it replaces packs that may have been.
            if merge_packs(self.committer.repository, sync=True):
                self.committer.forget_objects()
        except (ScpGitError, OSError, ValueError) as exc:
            log.warning("packs could not be merged, it is tried again later: %s", exc)
        self._packs_left = None

    # ------------------------------------------------------------ the process's end, and its children

    def drain(self, deadline: float) -> None:
        """Write what is still queued; used when the interpreter ends."""
        while self._waiting() and time.monotonic() < deadline:
            thread = self._thread
            if thread is not None and thread.is_alive():
                self.flush(max(deadline - time.monotonic(), 0))
            else:
                self._work_once()
                self._set_busy(False)
        self.flush(max(deadline - time.monotonic(), 0))
        with self._changed:
            self._changed.wait_for(lambda: not self._busy, max(deadline - time.monotonic(), 0))
        for thread in (self._merging, self._packing):
            if thread is not None:
                thread.join(max(deadline - time.monotonic(), 0))

    def after_fork(self) -> None:
        """In the child: the parent's queue, thread, locks and memory are not ours."""
        self._reset()
        self.committer.forget()


_writers: weakref.WeakSet[Writer] = weakref.WeakSet()
_registry: weakref.WeakValueDictionary[tuple[str, Settings], Writer] = weakref.WeakValueDictionary()
_registry_lock = threading.Lock()


def writer_for(committer: Callable[[], Committer], key: str, settings: Settings) -> Writer:
    """The process's one writer for a common git dir with these settings."""
    with _registry_lock:
        writer = _registry.get((key, settings))
        if writer is None:
            writer = _registry[key, settings] = Writer(committer(), settings)
        return writer


def flush_all() -> None:
    """Wait for the queued writes of every repository."""
    for writer in list(_writers):
        writer.flush()


def _drain_all() -> None:
    for writer in list(_writers):
        writer.drain(time.monotonic() + writer.settings.lock_timeout_s)


def _after_fork() -> None:
    global _registry_lock
    _registry_lock = threading.Lock()
    for writer in list(_writers):
        writer.after_fork()


os.register_at_fork(after_in_child=_after_fork)
# Runs while threads still work; plain atexit runs later, and is what remains where the other is gone.
getattr(threading, "_register_atexit", atexit.register)(_drain_all)
