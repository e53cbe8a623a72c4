"""The verbs for messages and threads, awaited."""

from __future__ import annotations

from functools import partial

from scp_git.aio.core import AsyncCore, offload
from scp_git.chat.operations import Sent
from scp_git.models import ChatMessage, Source, Thread

_ENCODE_APART = 64 * 1024
_SMALL = 4096


class AsyncChatVerbs(AsyncCore):
    """Sending, listing and deleting messages and threads."""

    async def send_message(
        self,
        text: str,
        *,
        user: str = "",
        thread_id: str | None = None,
        run_id: str | None = None,
        publish: bool = False,
        encrypt: bool = False,
        source: Source = "manual",
    ) -> ChatMessage:
        """Store a message with a run, in a thread, or in both; with neither, in ``general``.

        When the call is cancelled the message was either not stored, or stored in all its places.
        """
        compose = partial(
            self.store.composed,
            text,
            user=user,
            thread_id=thread_id,
            run_id=run_id,
            publish=publish,
            encrypt=encrypt,
            source=source,
        )
        if encrypt or len(text) > _ENCODE_APART:
            # Neither the loop nor the writer thread waits for the key to be derived.
            operation = await offload(lambda: self.store.addressed(compose()))
            ticket = self.store.sending(lambda: operation, size=operation.size)
        else:
            ticket = self.store.sending(partial(self.store.addressed, compose()), size=2 * len(text) + _SMALL)
        sent: Sent = await self._wait(ticket)
        return sent.message

    async def create_thread(
        self, title: str, *, user: str = "", anchor_run: str | None = None, tags: list[str] | None = None
    ) -> Thread:
        """Begin a thread; returns it as it is stored."""
        made = self.store.titled(title, user=user, anchor_run=anchor_run, tags=tags)
        thread: Thread = await self._wait(self.store.creating(made))
        return thread

    async def delete_message(
        self, message_id: str, *, run_id: str | None = None, thread_id: str | None = None
    ) -> bool:
        """Remove every copy of a message from the present state; False if it is not found."""
        return await self._wait(self.store.deleting_message(message_id, run_id, thread_id)) is not None

    async def delete_thread(self, thread_id: str) -> bool:
        """Remove a thread with its messages from the present state; False if there is none."""
        return bool(await self._wait(self.store.deleting_thread(thread_id)))

    async def set_message_flags(
        self, message_id: str, *, publish: bool, run_id: str | None = None, thread_id: str | None = None
    ) -> ChatMessage:
        """Set or clear the ``publish`` flag of every copy of a message; returns it as it is stored."""
        ticket = self.store.flagging(message_id, publish, run_id, thread_id)
        message: ChatMessage = await self._wait(ticket)
        return message

    # ------------------------------------------------------------ reading

    async def list_messages(
        self,
        *,
        run_id: str | None = None,
        thread_id: str | None = None,
        n: int = 50,
        before: str | None = None,
    ) -> list[ChatMessage]:
        """The newest ``n`` messages of a run, a thread, or both together, newest first."""
        return await offload(self.store.list_messages, run_id=run_id, thread_id=thread_id, n=n, before=before)

    async def list_threads(self) -> list[Thread]:
        """All threads, the newest first."""
        return await offload(self.store.list_threads)
