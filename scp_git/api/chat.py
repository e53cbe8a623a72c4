"""The module-level functions for messages and threads.

Writes raise, so that nothing looks stored that is not; reads return the empty
value of their type on failure (see the policy in ``api.core``).
"""

from __future__ import annotations

from scp_git.api.core import Root, guarded, store_of
from scp_git.models import ChatMessage, Source, Thread


async def send_message(
    project_root: Root,
    text: str,
    *,
    user: str = "",
    thread_id: str | None = None,
    run_id: str | None = None,
    publish: bool = False,
    encrypt: bool = False,
    source: Source = "manual",
) -> ChatMessage:
    """The message is stored durably with its run, in its thread, or both; with neither, in ``general``.

    Returns it as it is stored: with ``encrypt`` its text is ``ENC:v1:...``. Raises if it was not
    stored: ``NotFound`` for an unknown run or thread, ``KeyMissing``, and others.
    """
    store = await store_of(project_root)
    return await store.send_message(
        text,
        user=user,
        thread_id=thread_id,
        run_id=run_id,
        publish=publish,
        encrypt=encrypt,
        source=source,
    )


async def list_messages(
    project_root: Root,
    *,
    run_id: str | None = None,
    thread_id: str | None = None,
    n: int = 50,
    before: str | None = None,
) -> list[ChatMessage]:
    """The newest ``n`` messages of a run, a thread, or both together, newest first; empty on failure.

    Encrypted texts are shown in plain, or as ``[encrypted]`` without the key.
    """
    return await guarded(
        project_root,
        "list_messages",
        [],
        lambda store: store.list_messages(run_id=run_id, thread_id=thread_id, n=n, before=before),
    )


async def create_thread(
    project_root: Root,
    title: str,
    *,
    user: str = "",
    anchor_run: str | None = None,
    tags: list[str] | None = None,
) -> Thread:
    """There is a new thread with this title. Raises if it could not be stored."""
    store = await store_of(project_root)
    return await store.create_thread(title, user=user, anchor_run=anchor_run, tags=tags)


async def list_threads(project_root: Root) -> list[Thread]:
    """All threads, the newest first; empty on failure."""
    return await guarded(project_root, "list_threads", [], lambda store: store.list_threads())


async def delete_message(
    project_root: Root, message_id: str, *, run_id: str | None = None, thread_id: str | None = None
) -> bool:
    """Every copy of the message is gone and stays gone; False if it was not found. Raises on failure."""
    store = await store_of(project_root)
    return await store.delete_message(message_id, run_id=run_id, thread_id=thread_id)


async def delete_thread(project_root: Root, thread_id: str) -> bool:
    """The thread and its messages are gone and stay gone; False if there was none. Raises on failure."""
    store = await store_of(project_root)
    return await store.delete_thread(thread_id)


async def set_message_flags(
    project_root: Root,
    message_id: str,
    *,
    publish: bool,
    run_id: str | None = None,
    thread_id: str | None = None,
) -> ChatMessage:
    """Every copy of the message has this ``publish`` flag; returns it as it is stored. Raises on failure."""
    store = await store_of(project_root)
    return await store.set_message_flags(message_id, publish=publish, run_id=run_id, thread_id=thread_id)
