"""The module-level functions: find the store of a root, call it, apply the failure policy.

The policy (docs/guarantees.md): ledger functions never raise a ``ScpGitError``;
they return the empty value of their type, log at ERROR with the code, and publish
``scp:error``. Wrong argument types and invalid models raise at once.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from scp_git.aio import AsyncStore
from scp_git.aio.core import offload
from scp_git.errors import ScpGitError
from scp_git.store.core import report_failure
from scp_git.store.opened import opened_store, opener
from scp_git.writer import flush_all

Root = str | os.PathLike[str]
Result = TypeVar("Result")


async def store_of(root: Root) -> AsyncStore:
    store = opened_store(root)
    return AsyncStore(await offload(opener(root)) if store is None else store)


async def guarded(
    root: Root, operation: str, empty: Result, call: Callable[[AsyncStore], Awaitable[Result]]
) -> Result:
    """Call the store; an error of ours becomes ``empty``, a log line and an event."""
    try:
        return await call(await store_of(root))
    except ScpGitError as exc:
        report_failure(operation, exc, root=os.fspath(root))
        return empty


async def flush(project_root: Root | None = None) -> None:
    """Every queued write of a root, or of all repositories, is stored or has failed. Raises on failure."""
    if project_root is None:
        await offload(flush_all)
    else:
        await (await store_of(project_root)).flush()
