"""Following what is committed, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self

import anyio

from scp_git.aio.core import AsyncCore, offload
from scp_git.broadcast import Subscription, bus
from scp_git.feed import LOOK_EVERY_S, Change, Feed


class AsyncFeedVerbs(AsyncCore):
    """What was committed, by whichever process, thread or clone."""

    def changes(self, *, since: str | None = None, follow: bool = True) -> AsyncIterator[Change]:
        """Iterate over what is committed, one record at a time; see ``Store.changes``.

        Live within 200 ms, at once for writes of this process. Cancelling a wait loses nothing,
        and breaking out leaves nothing behind.
        """
        feed = self.store.feed(since)
        return Changes(lambda: _ready(feed), follow)

    async def change_token(self) -> str:
        """The token of the present state, for ``changes(since=...)``."""
        return await offload(self.store.change_token)


async def _ready(feed: Feed) -> Feed:
    return feed


class Changes:
    """The changes of one reader; nothing is held but the reader's place."""

    def __init__(self, open: Callable[[], Awaitable[Feed]], follow: bool) -> None:
        self._open = open
        self._follow = follow
        self._feed: Feed | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        if self._feed is None:
            self._feed = await self._open()
        if not self._feed.ahead:
            # Listening before looking: what is written in between is heard of.
            async with bus.subscribe("ledger:**", "chat:**", "trace:**") as news:
                await self._wait(self._feed, news)
        return self._feed.ahead.popleft()

    async def _wait(self, feed: Feed, news: Subscription) -> None:
        """Return when changes are there; ``StopAsyncIteration`` where none are waited for."""
        heard = True
        while True:
            more = await offload(feed.fill) if heard or not feed.is_quiet() else False
            if feed.ahead:
                return
            if not more:
                if not self._follow:
                    raise StopAsyncIteration
                with anyio.move_on_after(LOOK_EVERY_S) as timer:
                    await anext(news)
                heard = not timer.cancelled_caught
