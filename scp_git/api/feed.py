"""Following what is committed, without a store at hand. Raises what the store raises."""

from __future__ import annotations

from collections.abc import AsyncIterator

from scp_git.aio.feed import Changes
from scp_git.api.core import Root, store_of
from scp_git.feed import Change, Feed, check_token


def changes(project_root: Root, *, since: str | None = None, follow: bool = True) -> AsyncIterator[Change]:
    """Iterate over what is committed in a repository; see ``Store.changes``."""
    check_token(since)

    async def open() -> Feed:
        return (await store_of(project_root)).store.feed(since)

    return Changes(open, follow)


async def change_token(project_root: Root) -> str:
    """The token of the present state, for ``changes(since=...)``."""
    return await (await store_of(project_root)).change_token()
