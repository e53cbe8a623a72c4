"""The verbs for mentions, awaited."""

from __future__ import annotations

from scp_git.aio.core import AsyncCore, offload
from scp_git.chat.mentions import Mention


class AsyncMentionVerbs(AsyncCore):
    """What a message speaks of: runs, threads, traces, users, commits, branches and files."""

    async def resolve_mentions(self, text: str) -> list[Mention]:
        """The different mentions in ``text``, with label, detail and whether each exists."""
        return await offload(self.store.resolve_mentions, text)

    async def complete_mention(self, prefix: str, *, n: int = 20) -> list[Mention]:
        """What ``prefix``, from its ``@`` on, may become: at most ``n``, the newest first."""
        return await offload(self.store.complete_mention, prefix, n=n)
