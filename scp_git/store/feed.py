"""Following what is committed, synchronous."""

from __future__ import annotations

import time
from collections.abc import Iterator

from scp_git.feed import LOOK_EVERY_S, Change, Feed, present_token
from scp_git.store.core import StoreCore


class FeedVerbs(StoreCore):
    """What was committed, by whichever process, thread or clone."""

    def changes(self, *, since: str | None = None, follow: bool = True) -> Iterator[Change]:
        """Iterate over what is committed to runs, messages, threads and traces, one record at a time.

        Local writes come in the order of their commits, whichever process made them; what a pull or
        a merge brought in by (``time``, id). After a change that was told, its token takes up the thread
        again: nothing is lost, nothing comes twice. Housekeeping gives nothing.

        Args:
            since: a token that a change bore; ``""`` begins with all that is there; ``None`` with
                what is committed after the iteration has begun. Raises ``ValueError`` for other text.
            follow: wait for more at the end, for ever. Otherwise the iteration ends there.
        """
        return _follow(self.feed(since), follow)

    def change_token(self) -> str:
        """The token of the present state, for ``changes(since=...)``: take it, list, then follow."""
        return present_token(self._repository)

    def feed(self, since: str | None) -> Feed:
        """What the async facade reads from."""
        return Feed(self._repository, since)


def _follow(feed: Feed, follow: bool) -> Iterator[Change]:
    while True:
        more = feed.fill()
        while feed.ahead:
            yield feed.ahead.popleft()
        if not more:
            if not follow:
                return
            time.sleep(LOOK_EVERY_S)
