"""The verbs for messages and threads, synchronous, and the tickets that the async facade awaits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scp_git.broadcast import bus
from scp_git.chat.operations import (
    CreateThread,
    DeleteMessage,
    DeleteThread,
    SendMessage,
    Sent,
    SetMessageFlags,
    check_place,
)
from scp_git.chat.queries import ChatReader
from scp_git.codec import JsonObject
from scp_git.git.handle import Repository
from scp_git.git.transaction import Operation
from scp_git.ids import check_id
from scp_git.models import ChatMessage, MessageFlags, Source, Thread
from scp_git.settings import Settings
from scp_git.store.core import StoreCore
from scp_git.ticket import Ticket

HIDDEN = "[encrypted]"
_PREVIEW = 80
_SMALL = 4096


class ChatVerbs(StoreCore):
    """Sending, listing and deleting messages and threads."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        super().__init__(repository, settings)
        self._chat = ChatReader(repository)

    # ------------------------------------------------------------ writing

    def send_message(
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

        Returns it as it is stored: with ``encrypt`` its text is ``ENC:v1:...``.

        Raises ``NotFound`` for an unknown run or thread, ``KeyMissing``, ``InvalidId``,
        ``RecordTooLarge`` (4 MiB a message), ``RepositoryBusy`` or ``StorageFailed``;
        ``ValidationError`` or ``TypeError`` for what is no valid message. Nothing was stored then.
        """
        message = self.composed(
            text,
            user=user,
            thread_id=thread_id,
            run_id=run_id,
            publish=publish,
            encrypt=encrypt,
            source=source,
        )
        operation = self.addressed(message)
        sent: Sent = self._wait(self.sending(lambda: operation, size=operation.size))
        return sent.message

    def create_thread(
        self, title: str, *, user: str = "", anchor_run: str | None = None, tags: list[str] | None = None
    ) -> Thread:
        """Begin a thread; returns it as it is stored.

        Raises ``NotFound`` if ``anchor_run`` is no run, and what ``send_message`` raises.
        """
        made = self.titled(title, user=user, anchor_run=anchor_run, tags=tags)
        thread: Thread = self._wait(self.creating(made))
        return thread

    def delete_message(
        self, message_id: str, *, run_id: str | None = None, thread_id: str | None = None
    ) -> bool:
        """Remove every copy of a message from the present state; False if it is not found.

        It is looked for with the run and in the thread that are given, else in
        ``general``. It stays deleted; history keeps it.
        """
        return self._wait(self.deleting_message(message_id, run_id, thread_id)) is not None

    def delete_thread(self, thread_id: str) -> bool:
        """Remove a thread with its messages from the present state; False if there is none.

        Copies of its messages that lie with runs stay. Raises ``NotAllowed`` for ``general``.
        """
        return bool(self._wait(self.deleting_thread(thread_id)))

    def set_message_flags(
        self, message_id: str, *, publish: bool, run_id: str | None = None, thread_id: str | None = None
    ) -> ChatMessage:
        """Set or clear the ``publish`` flag of every copy of a message; returns it as it is stored.

        It is looked for as by ``delete_message``; ``NotFound`` if it is not there.
        """
        message: ChatMessage = self._wait(self.flagging(message_id, publish, run_id, thread_id))
        return message

    # ------------------------------------------------------------ reading

    def list_messages(
        self,
        *,
        run_id: str | None = None,
        thread_id: str | None = None,
        n: int = 50,
        before: str | None = None,
    ) -> list[ChatMessage]:
        """The newest ``n`` messages by (``ts``, id), newest first: of a run, a thread, or both together.

        With neither, those of ``general``. ``before`` is the id of a message there: only
        older ones are listed. Encrypted texts are shown in plain, or as ``[encrypted]``
        where the key is missing or does not fit. A damaged message is left out and logged.
        """
        check_place(run_id, thread_id)
        if before is not None:
            check_id("message", before)
        messages = self._chat.newest(run_id, thread_id, n=n, before=before)
        self._reveal([message for message in messages if message.flags.encrypted])
        return messages

    def list_threads(self) -> list[Thread]:
        """All threads, the newest first; a damaged one is left out and logged."""
        return self._chat.threads()

    def _reveal(self, messages: list[ChatMessage]) -> None:
        if messages:
            from scp_git.chat.crypto import reveal  # takes long to import, and few need it

            texts = reveal([message.text for message in messages], self.root)
            for message, text in zip(messages, texts, strict=True):
                message.text = text

    # ------------------------------------------------------------ tickets, for the async facade too

    def composed(
        self,
        text: str,
        *,
        user: str,
        thread_id: str | None,
        run_id: str | None,
        publish: bool,
        encrypt: bool,
        source: Source,
    ) -> ChatMessage:
        """The message as the caller gave it, still in plain, with an id and a time. Touches no disk."""
        check_place(run_id, thread_id)
        if not isinstance(encrypt, bool):
            raise TypeError(f"encrypt must be a bool, not {type(encrypt).__name__}")
        flags = MessageFlags(publish=publish, encrypted=encrypt)
        return ChatMessage(
            text=text, user=user, thread_id=thread_id, run_id=run_id, source=source, flags=flags
        )

    def addressed(self, message: ChatMessage) -> SendMessage:
        """Encrypt a message that says so, which takes its time; validate and encode it."""
        if message.flags.encrypted:
            from scp_git.chat.crypto import encrypt_text

            message = message.model_copy(update={"text": encrypt_text(message.text, self.root)})
        return SendMessage.prepare(message, user=self._repository.identity().name)

    def sending(self, prepare: Callable[[], Operation[Any]], *, size: int) -> Ticket:
        """The ticket that stores a message and then announces it."""
        return Ticket(prepare, size=size, after=self.announce_message)

    def announce_message(self, sent: Sent) -> None:
        """Publish ``chat:message``; of an encrypted message it shows nothing."""
        message = sent.message
        if sent.new:
            encrypted = message.flags.encrypted
            data = {name: getattr(message, name) for name in ("user", "thread_id", "run_id", "source")}
            data |= {"encrypted": encrypted, "preview": HIDDEN if encrypted else message.text[:_PREVIEW]}
            bus.publish("chat:message", key=message.id, data=data, meta=self._meta)

    def titled(self, title: str, *, user: str, anchor_run: str | None, tags: list[str] | None) -> Thread:
        """The thread as the caller gave it, with an id and a time. Touches no disk."""
        check_place(anchor_run, None)
        return Thread(title=title, created_by=user, anchor_run=anchor_run, tags=[] if tags is None else tags)

    def creating(self, thread: Thread) -> Ticket:
        def prepare() -> CreateThread:
            return CreateThread.prepare(thread, user=self._repository.identity().name)

        def announce(stored: Thread) -> None:
            bus.publish("chat:thread", key=stored.thread_id, data={"title": stored.title}, meta=self._meta)

        return Ticket(prepare, size=_SMALL, after=announce)

    def deleting_message(self, message_id: str, run_id: str | None, thread_id: str | None) -> Ticket:
        check_id("message", message_id)
        check_place(run_id, thread_id)

        def announce(record: JsonObject | None) -> None:
            if record is not None:
                data = {name: record.get(name) for name in ("thread_id", "run_id")}
                bus.publish("chat:deleted", key=message_id, data=data, meta=self._meta)

        return Ticket(lambda: DeleteMessage(message_id, run_id, thread_id), size=_SMALL, after=announce)

    def deleting_thread(self, thread_id: str) -> Ticket:
        operation = DeleteThread.prepare(thread_id)

        def announce(removed: bool) -> None:
            if removed:
                data = {"thread_id": thread_id, "run_id": None}
                bus.publish("chat:deleted", key=thread_id, data=data, meta=self._meta)

        return Ticket(lambda: operation, size=_SMALL, after=announce)

    def flagging(self, message_id: str, publish: bool, run_id: str | None, thread_id: str | None) -> Ticket:
        check_id("message", message_id)
        check_place(run_id, thread_id)
        if not isinstance(publish, bool):
            raise TypeError(f"publish must be a bool, not {type(publish).__name__}")
        return Ticket(lambda: SetMessageFlags(message_id, publish, run_id, thread_id), size=_SMALL)
