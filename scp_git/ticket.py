"""One write on its way to the writer, and who waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

from scp_git.git.transaction import Operation


class Waiter(Protocol):
    """Somebody who waits; ``wake`` is called once for all tickets of a batch that share a ``group``."""

    @property
    def group(self) -> object: ...

    def wake(self, tickets: list[Ticket]) -> None: ...


class State(Enum):
    QUEUED = "queued"
    TAKEN = "taken"
    DONE = "done"
    WITHDRAWN = "withdrawn"


class Ticket:
    """One write on its way: ``prepare`` makes the operation, ``after`` runs once it is stored."""

    __slots__ = (
        "after",
        "charged",
        "error",
        "lost",
        "operation",
        "prepare",
        "result",
        "size",
        "state",
        "waiter",
    )

    def __init__(
        self,
        prepare: Callable[[], Operation[Any]],
        *,
        size: int,
        waiter: Waiter | None = None,
        after: Callable[[Any], None] | None = None,
        lost: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.prepare: Callable[[], Operation[Any]] | None = prepare
        self.size = size
        self.charged = 0
        """What it counts for in the bound of the queue."""
        self.waiter = waiter
        self.after = after
        self.lost = lost
        """Told of a failure that nobody waits for."""
        self.operation: Operation[Any] | None = None
        self.state = State.QUEUED
        self.result: Any = None
        self.error: BaseException | None = None

    def outcome(self) -> Any:
        """The operation's result, or its error raised."""
        if self.error is not None:
            raise self.error
        return self.result


class ThreadWaiter:
    """Waits in a plain thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def group(self) -> object:
        return self

    def wake(self, tickets: list[Ticket]) -> None:
        self._event.set()

    def wait(self, timeout_s: float | None) -> bool:
        return self._event.wait(timeout_s)
