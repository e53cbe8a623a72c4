"""The module-level functions for mentions: reads, so on failure they return nothing, log and publish."""

from __future__ import annotations

from scp_git.api.core import Root, guarded
from scp_git.chat.mentions import Mention


async def resolve_mentions(project_root: Root, text: str) -> list[Mention]:
    """The different mentions in ``text``, with label, detail and whether each exists."""
    return await guarded(project_root, "resolve_mentions", [], lambda store: store.resolve_mentions(text))


async def complete_mention(project_root: Root, prefix: str, *, n: int = 20) -> list[Mention]:
    """What ``prefix``, from its ``@`` on, may become: at most ``n``, the newest first."""
    return await guarded(
        project_root, "complete_mention", [], lambda store: store.complete_mention(prefix, n=n)
    )
