"""The module-level function that publishes messages. It raises: what was not published must not look so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scp_git.api.core import Root, store_of

if TYPE_CHECKING:
    from scp_git.chat.publish import PublishReport


async def publish_chat(
    project_root: Root, out: str | os.PathLike[str], *, title: str = "", base_url: str = ""
) -> PublishReport:
    """The folder ``out`` is a web site and a JSON feed of the messages that may be published.

    Raises ``OutputRefused``, with nothing changed, if it holds files of others.
    """
    return await (await store_of(project_root)).publish_chat(out, title=title, base_url=base_url)
