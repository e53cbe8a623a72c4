"""The verb that publishes messages, awaited."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scp_git.aio.core import AsyncCore, offload

if TYPE_CHECKING:
    from scp_git.chat.publish import PublishReport


class AsyncPublishVerbs(AsyncCore):
    """Publishing what may be published."""

    async def publish_chat(
        self, out: str | os.PathLike[str], *, title: str = "", base_url: str = ""
    ) -> PublishReport:
        """Make the folder ``out`` a web site and a JSON feed of the messages that may be published."""
        return await offload(self.store.publish_chat, out, title=title, base_url=base_url)
