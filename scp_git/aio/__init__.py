"""The async library: the verbs of ``Store``, awaited, on asyncio and trio.

Writes go straight to the writer thread, reads cost one hop to a worker thread.
Nothing of git, of the disk or of encoding happens on the event loop. No method
needs a task group, and any number of loops may use one repository at once.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from scp_git.aio.archive import AsyncArchiveVerbs
from scp_git.aio.chat import AsyncChatVerbs
from scp_git.aio.core import offload
from scp_git.aio.feed import AsyncFeedVerbs
from scp_git.aio.mentions import AsyncMentionVerbs
from scp_git.aio.publish import AsyncPublishVerbs
from scp_git.aio.recordings import AsyncRecordingVerbs
from scp_git.aio.search import AsyncSearchVerbs
from scp_git.aio.sync import AsyncSyncVerbs
from scp_git.aio.traces import AsyncTraceVerbs
from scp_git.settings import Settings
from scp_git.store import Store


class AsyncStore(
    AsyncArchiveVerbs,
    AsyncChatVerbs,
    AsyncFeedVerbs,
    AsyncMentionVerbs,
    AsyncPublishVerbs,
    AsyncRecordingVerbs,
    AsyncSyncVerbs,
    AsyncSearchVerbs,
    AsyncTraceVerbs,
):
    """``Store`` for event loops; see there for what each verb guarantees and raises."""


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
