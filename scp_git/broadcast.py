"""The event bus: one ring of immutable events, read by any number of subscribers at their own pace.

Publishing is synchronous and needs no event loop; subscribers live on asyncio or trio, in any
number of loops and threads. No reader slows down a publisher: who falls behind is told in band
how much was missed. After a fork the child keeps events and sinks, and nobody waits in it.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from time import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self, cast
from weakref import WeakSet, WeakValueDictionary

from scp_git.events import NOTHING, gap, make_event, selector
from scp_git.events import Event as Event
from scp_git.patterns import matcher

if TYPE_CHECKING:
    import anyio

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BusStatistics:
    """A look at a bus; ``published``, ``missed``, ``wakeups`` and ``sink_errors`` only grow."""

    published: int
    subscribers: int
    asleep: int
    missed: int
    wakeups: int
    sinks: int
    sink_errors: int


@dataclass(slots=True, eq=False, repr=False, weakref_slot=True)
class Subscription:
    """A place in the ring that moves on as it is read: ``async with`` it, then ``async for event in`` it.

    It begins where the block is entered and ends with the block. Several tasks of the loop it was
    entered in may read from it; each event goes to one. ``missed`` counts the events lost to lag.
    """

    _bus: Bus
    _selects: Callable[[Event], bool] | None
    _since: int | None
    _end_on_lag: bool
    missed: int = 0
    _open: bool | None = None
    _cursor: int = 0
    _sleepers: int = 0
    _ahead: deque[Event] = field(default_factory=deque)
    _native: Any = None
    _checkpoint: Callable[[], Awaitable[None]] | None = None

    async def __aenter__(self) -> Self:
        import anyio.lowlevel  # late: who only publishes does not pay for it

        self._native = anyio.lowlevel.current_token().native_token
        self._checkpoint = anyio.lowlevel.checkpoint
        with self._bus._lock:
            head, since = self._bus._head, self._since
            # -1 is before all numbers: what an earlier instance had after its number is a gap.
            self._cursor = head if since is None else since if since <= head else -1
            self._open = True
            self._bus._subscribers.add(self)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with self._bus._lock:
            self._open = False
            self._ahead.clear()
            self._bus._subscribers.discard(self)
            if self._sleepers:
                self._bus._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if not self._ahead:
            self._ahead.extend(await self._next_batch(64))
        return self._ahead.popleft()

    def batches(self, max: int = 256) -> Batches:
        """Iterate over lists of 1 to ``max`` events, whatever is there; the fast way to read."""
        if max < 1:
            raise ValueError(f"a batch holds at least one event, not {max}")
        return Batches(self, max)

    async def _next_batch(self, limit: int) -> list[Event]:
        """Wait for news and take them; others get their turn in any case."""
        if self._checkpoint is None:
            raise RuntimeError("enter it first: async with bus.subscribe() as events")
        batch: list[Event] = []
        while not batch:
            loop = self._bus._fall_asleep(self)
            if loop is None:
                await self._checkpoint()
            else:
                try:
                    await loop.alarm.wait()
                finally:
                    self._bus._get_up(self, loop)
            if self._ahead:
                return [self._ahead.popleft() for _ in range(min(limit, len(self._ahead)))]
            if not self._open:
                raise StopAsyncIteration
            batch = self._take(limit)
        return batch

    def _take(self, limit: int) -> list[Event]:
        bus, behind = self._bus, None
        with bus._lock:
            first = max(self._cursor, bus._head - bus.capacity, 0) + 1
            missed = first - 1 - self._cursor
            if missed:
                # Events come along with the gap, or a fast publisher would let us see gaps only.
                limit = 0 if self._end_on_lag else limit - 1
                self._open = not self._end_on_lag
                self.missed += missed
                bus._missed += missed
                behind = gap(missed, first)
            start, count = first % bus.capacity, min(limit, bus._head + 1 - first)
            events = bus._ring[start : start + count]
            if len(events) < count:
                events += bus._ring[: count - len(events)]
            self._cursor = first - 1 + count
        if self._selects is not None:
            events = list(filter(self._selects, events))
        return [behind, *events] if behind else events


@dataclass(slots=True, eq=False)
class Batches:
    """The lists of events of one subscription; leaving the iteration leaves nothing behind."""

    subscription: Subscription
    max: int

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, list[Event]]:
        return self.subscription._next_batch(self.max)


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Loop:
    """The readers asleep in one event loop: they share an alarm, and one thread-safe call sets it off."""

    native: Any
    alarm: anyio.Event
    asleep: int = 0
    called: bool = False


class Bus:
    """Passes events on within this process; keeps the last ``capacity`` of them for who reads late.

    ``instance`` is random text, another one in each process: numbers of one mean nothing in another.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self.capacity = max(capacity, 1)
        self._ring = [cast(Event, None)] * self.capacity
        self._head = 0
        self._missed = self._wakeups = self._sink_errors = 0
        self._subscribers: WeakSet[Subscription] = WeakSet()
        self._sinks: tuple[Callable[[Event], object], ...] = ()
        self._begin_instance()
        _buses.add(self)

    def _begin_instance(self) -> None:
        self.instance = secrets.token_hex(4)
        # Reentrant: a signal handler or a finalizer may publish while its own thread does.
        self._lock = threading.RLock()
        # Weak: a closed loop takes its sleepers along. Who waits for a call yet to be made is held here.
        self._loops: WeakValueDictionary[object, _Loop] = WeakValueDictionary()
        self._uncalled: set[_Loop] = set()
        self._delivered, self._draining = self._head, 0

    def publish(
        self,
        type: str,
        *,
        key: str = "",
        data: Mapping[str, Any] | None = None,
        error: str | None = None,
        duration_s: float | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> int:
        """Store the event for all subscribers, show it to all sinks, and return its number.

        Never waits for a reader. May be called from any thread, with or without an event loop.
        """
        if not isinstance(type, str):
            raise TypeError(f"the type of an event is a str, not {type!r}")
        data = MappingProxyType(dict(data)) if data else NOTHING
        meta = MappingProxyType(dict(meta)) if meta else NOTHING
        failed: Sequence[tuple[object, Exception]] = ()
        with self._lock:
            if self._draining and self._head - self._draining >= self.capacity:
                raise RuntimeError("a sink publishes again and again; it must only append")
            seq = 0
            # Again if a signal handler published meanwhile; it cannot between this test and the store.
            while seq != self._head + 1:
                seq = self._head + 1
                event = make_event(Event, (1, time(), seq, type, key, data, error, duration_s, meta))
            self._head = seq
            self._ring[seq % self.capacity] = event
            if self._uncalled:
                self._wake()
            if self._sinks and not self._draining:
                failed = self._deliver()
        # Only now, as a log handler may publish while it holds a lock of its own.
        for sink, exc in failed:
            name = getattr(sink, "__qualname__", sink.__class__.__name__)
            log.error("bus sink %s failed and was detached", name, exc_info=exc)
        return seq

    def subscribe(
        self,
        *patterns: str,
        key: str | None = None,
        root: str | os.PathLike[str] | None = None,
        since: int | None = None,
        on_lag: Literal["report", "end"] = "report",
    ) -> Subscription:
        """Return a subscription to the events that match one of ``patterns`` (see ``matcher``; none = all).

        Args:
            root: leaves out events whose ``meta["root"]`` is another path; those without one pass.
            since: begins with what is kept after this number; one not yet given out is from another
                instance: everything kept is replayed, after a gap.
            on_lag: a reader more than ``capacity`` behind gets an event ``bus:gap``, whatever its
                filters, with ``{missed, resume_seq}`` (of all types); then it goes on, or ends.
        """
        if on_lag not in ("report", "end"):
            raise ValueError(f"on_lag is 'report' or 'end', not {on_lag!r}")
        narrowed = bool(patterns) or key is not None or root is not None
        selects = selector(matcher(*patterns), key, root) if narrowed else None
        return Subscription(self, selects, since, on_lag == "end")

    def attach(self, sink: Callable[[Event], object]) -> ExitStack:
        """Call ``sink`` with every event from now on, in order, until the returned handle is closed.

        It runs inside ``publish`` under the lock, all publishers wait for it: it must only append.
        If it raises it is detached, logged and counted; the publisher sees nothing of it. The
        handle is a context manager with ``close()``, after which the sink is not running anywhere.
        """
        handle = ExitStack()
        with self._lock:
            if not self._sinks:
                self._delivered = self._head
            self._sinks += (sink,)
        handle.callback(self._detach, sink)
        return handle

    def _detach(self, sink: Callable[[Event], object]) -> None:
        with self._lock, suppress(ValueError):
            sinks = list(self._sinks)
            sinks.remove(sink)
            self._sinks = tuple(sinks)

    def _deliver(self) -> list[tuple[object, Exception]]:
        failed: list[tuple[object, Exception]] = []
        self._draining = self._delivered + 1
        try:
            # A loop, as what this thread publishes meanwhile comes after this event in every sink.
            while self._delivered < self._head:
                self._delivered += 1
                event = self._ring[self._delivered % self.capacity]
                for sink in self._sinks:
                    try:
                        sink(event)
                    except Exception as exc:
                        self._detach(sink)
                        self._sink_errors += 1
                        failed.append((sink, exc))
        finally:
            self._draining = 0
        return failed

    def _fall_asleep(self, sub: Subscription) -> _Loop | None:
        """The loop whose alarm ``sub`` has to wait for; None if there is news, or it was closed."""
        with self._lock:
            if sub._cursor != self._head or not sub._open or sub._ahead:
                return None
            loop = self._loops.get(sub._native)
            if loop is None:
                import anyio

                # A finalizer may have made another meanwhile.
                loop = self._loops.setdefault(sub._native, _Loop(sub._native, anyio.Event()))
            loop.asleep += 1
            sub._sleepers += 1
            if not loop.called:
                self._uncalled.add(loop)
            return loop

    def _get_up(self, sub: Subscription, loop: _Loop) -> None:
        with self._lock:
            loop.asleep -= 1
            sub._sleepers -= 1
            if not loop.asleep:
                self._uncalled.discard(loop)
                self._forget(loop)

    def _wake(self) -> None:
        for loop in list(self._uncalled):
            soon = _caller(loop.native)
            with suppress(RuntimeError):  # the loop is gone; trio.RunFinishedError is one as well
                soon(self._sound, loop)
                loop.called = True
                self._wakeups += 1
            self._uncalled.discard(loop)

    def _sound(self, loop: _Loop) -> None:
        with self._lock:
            self._forget(loop)
        loop.alarm.set()

    def _forget(self, loop: _Loop) -> None:
        # By now others may be asleep there under the next alarm.
        if self._loops.get(loop.native) is loop:
            del self._loops[loop.native]

    def statistics(self) -> BusStatistics:
        """Return the present counters."""
        with self._lock:
            return BusStatistics(
                published=self._head,
                subscribers=len(self._subscribers),
                asleep=sum(loop.asleep for loop in self._loops.values()),
                missed=self._missed,
                wakeups=self._wakeups,
                sinks=len(self._sinks),
                sink_errors=self._sink_errors,
            )


def _caller(native: Any) -> Callable[..., object]:
    """What has a loop call a function soon; to one that runs a task just here it need not be sent."""
    if not hasattr(native, "call_soon_threadsafe"):
        return cast(Callable[..., object], native.run_sync_soon)
    import asyncio

    # Without a task this may be a signal handler, and the loop asleep under it.
    here = asyncio._get_running_loop() is native and asyncio.current_task(native) is not None
    return cast(Callable[..., object], native.call_soon if here else native.call_soon_threadsafe)


_buses: WeakSet[Bus] = WeakSet()


def _begin_instances() -> None:
    for each in _buses:
        each._begin_instance()


os.register_at_fork(after_in_child=_begin_instances)

bus = Bus()
