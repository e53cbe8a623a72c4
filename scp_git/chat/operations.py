"""What can be done to messages and threads, as values that the writer applies to a transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from scp_git.chat.queries import load_message
from scp_git.codec import MAX_PART_BYTES, MAX_RECORD_BYTES, JsonObject, dump_compact, dump_pretty, same_json
from scp_git.errors import AlreadyExists, NotAllowed, NotFound, RecordTooLarge
from scp_git.git.anchors import find_run, read_record
from scp_git.git.conversation import Change, Conversation, Line
from scp_git.git.lines import Key, parse_line, revision
from scp_git.git.runchat import RunChat
from scp_git.git.transaction import Transaction
from scp_git.ids import check_id, is_valid_id, now_iso
from scp_git.layout import GENERAL, THREAD_FILE, deleted_path, thread_dir
from scp_git.models import ChatMessage, Thread

_GENERAL_THREAD = Thread(thread_id=GENERAL, title="General", created_at="1970-01-01T00:00:00Z")
"""The same in every clone, whoever says the first word."""


class Sent(NamedTuple):
    """A message as it is stored, and whether it was not there before."""

    message: ChatMessage
    new: bool


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Afterwards the message is stored with its run, in its thread, or both: the same line in both."""

    message: ChatMessage
    line: bytes
    size: int

    @classmethod
    def prepare(cls, message: ChatMessage, *, user: str) -> SendMessage:
        """Validate and encode outside the gate; the caller's object stays as it is.

        A message that names neither run nor thread goes to ``general``. Raises
        ``InvalidId``, ``RecordTooLarge``, pydantic's ``ValidationError`` or ``TypeError``.
        """
        if not isinstance(message, ChatMessage):
            raise TypeError(f"message must be a ChatMessage, not {type(message).__name__}")
        check_id("message", message.id)
        check_place(message.run_id, message.thread_id)
        message = ChatMessage.model_validate(message.model_dump())
        message.user = message.user or user
        if message.run_id is None and message.thread_id is None:
            message.thread_id = GENERAL
        line = dump_compact(message.model_dump()).encode()
        if len(line) >= MAX_PART_BYTES:
            raise RecordTooLarge("message", message.id, len(line) + 1, MAX_PART_BYTES)
        return cls(message, line, 2 * len(line))

    def apply(self, tx: Transaction) -> Sent:
        message = self.message
        if tx.is_deleted("message", message.id):
            raise AlreadyExists("message", message.id, deleted=True)
        line = Key(message.ts, message.id), self.line
        names = _named(message.run_id, message.thread_id)
        taken = [self._add(tx, *name, line) for name in names]
        if any(present and not same_json(parse_line(present), parse_line(self.line)) for present in taken):
            raise AlreadyExists("message", message.id)
        if all(taken):
            return Sent(message, new=False)
        tx.subjects.append(f"chat: {message.id} about {' and '.join(id for _, id in names)}")
        return Sent(message, new=True)

    def _add(self, tx: Transaction, kind: str, id: str, line: Line) -> bytes | None:
        place = _place(tx, kind, id)
        if place is None and id == GENERAL and kind == "thread":
            _put_thread(tx, _GENERAL_THREAD)
            place = _place(tx, kind, id)
        if place is None:
            raise NotFound(kind, id)
        return place.add(line)


@dataclass(frozen=True, slots=True)
class CreateThread:
    """Afterwards there is a thread with this title; gives the thread as it is stored."""

    thread: Thread
    size: int

    @classmethod
    def prepare(cls, thread: Thread, *, user: str) -> CreateThread:
        """Validate outside the gate; the caller's object stays as it is.

        Raises ``InvalidId``, ``RecordTooLarge``, pydantic's ``ValidationError`` or ``TypeError``.
        """
        if not isinstance(thread, Thread):
            raise TypeError(f"thread must be a Thread, not {type(thread).__name__}")
        check_id("thread", thread.thread_id)
        check_place(thread.anchor_run, None)
        thread = Thread.model_validate(thread.model_dump())
        thread.created_by = thread.created_by or user
        length = len(dump_pretty(thread.model_dump()))
        if length > MAX_RECORD_BYTES:
            raise RecordTooLarge("thread", thread.thread_id, length, MAX_RECORD_BYTES)
        return cls(thread, length)

    def apply(self, tx: Transaction) -> Thread:
        thread = self.thread
        if tx.is_deleted("thread", thread.thread_id):
            raise AlreadyExists("thread", thread.thread_id, deleted=True)
        if thread.anchor_run is not None and find_run(tx, thread.anchor_run) is None:
            raise NotFound("run", thread.anchor_run)
        present = read_record(tx.ledger, f"{thread_dir(thread.thread_id)}/{THREAD_FILE}")
        if present is None:
            _put_thread(tx, thread)
        elif not same_json(present, parse_line(dump_compact(thread.model_dump()).encode())):
            raise AlreadyExists("thread", thread.thread_id)
        return thread


@dataclass(frozen=True, slots=True)
class DeleteMessage:
    """Afterwards every copy of the message is gone, and its id stays deleted; gives what was there.

    It is looked for with the run, in the thread, or in ``general`` where neither is
    given; the message itself names where its other copy lies.
    """

    message_id: str
    run_id: str | None
    thread_id: str | None
    size: int = 1024

    def apply(self, tx: Transaction) -> JsonObject | None:
        copies = _copies(tx, self.message_id, self.run_id, self.thread_id)
        if not copies:
            return None
        for place, _ in copies:
            place.edit(self.message_id, lambda record: None)
        deletion = {"id": self.message_id, "ts": now_iso(), "user": tx.identity.name}
        tx.archive.put(deleted_path("message", self.message_id), dump_pretty(deletion))
        tx.subjects.append(f"chat: delete {self.message_id}")
        return copies[0][1]


@dataclass(frozen=True, slots=True)
class DeleteThread:
    """Afterwards the thread and its messages are gone, and its id stays deleted; True if it was there.

    Copies of its messages that lie with runs stay. ``general`` is refused.
    """

    thread_id: str
    size: int = 1024

    @classmethod
    def prepare(cls, thread_id: str) -> DeleteThread:
        """Raises ``InvalidId``, and ``NotAllowed`` for ``general``."""
        if check_id("thread", thread_id) == GENERAL:
            raise NotAllowed(f"deleting the thread {GENERAL!r}", "it takes what names neither run nor thread")
        return cls(thread_id)

    def apply(self, tx: Transaction) -> bool:
        if not tx.ledger.remove(thread_dir(self.thread_id)):
            return False
        deletion = {"id": self.thread_id, "ts": now_iso(), "user": tx.identity.name}
        tx.archive.put(deleted_path("thread", self.thread_id), dump_pretty(deletion))
        tx.subjects.append(f"chat: delete {self.thread_id}")
        return True


@dataclass(frozen=True, slots=True)
class SetMessageFlags:
    """Afterwards every copy of the message has this ``publish`` flag, and a higher ``rev`` if it changed."""

    message_id: str
    publish: bool
    run_id: str | None
    thread_id: str | None
    size: int = 4096

    def apply(self, tx: Transaction) -> ChatMessage:
        copies = _copies(tx, self.message_id, self.run_id, self.thread_id)
        newest = max((record for _, record in copies), key=revision, default={})
        message = load_message(newest)
        if message is None:
            raise NotFound("message", self.message_id)
        if all(_publish(record) == self.publish for _, record in copies):
            return message
        changed = {**newest, "flags": {**newest.get("flags", {}), "publish": self.publish}}
        changed["rev"] = revision(newest) + 1
        line = dump_compact(changed).encode()
        for place, _ in copies:
            place.edit(self.message_id, lambda record: line)
        tx.subjects.append(f"chat: {'publish' if self.publish else 'unpublish'} {self.message_id}")
        return ChatMessage.model_validate(changed)


def _publish(record: JsonObject) -> bool:
    flags = record.get("flags")
    return isinstance(flags, dict) and flags.get("publish") is True


# ---------------------------------------------------------------- where messages lie


class Place(Protocol):
    """A conversation: a thread's, or a run's."""

    def add(self, line: Line) -> bytes | None: ...

    def find(self, id: str) -> JsonObject | None: ...

    def edit(self, id: str, change: Change) -> list[JsonObject]: ...


def check_place(run_id: str | None, thread_id: str | None) -> None:
    """Raise ``InvalidId`` for an id that is given and breaks the rule."""
    for kind, id in (("run", run_id), ("thread", thread_id)):
        if id is not None:
            check_id(kind, id)


def _place(tx: Transaction, kind: str, id: str) -> Place | None:
    """The conversation of a run or a thread, or ``None`` if there is no such run or thread."""
    if kind == "run":
        return RunChat(tx, id, tx.tag(id)) if find_run(tx, id) else None
    found = tx.ledger.blob(f"{thread_dir(id)}/{THREAD_FILE}")
    return Conversation(tx.ledger, thread_dir(id)) if found else None


def _named(run_id: object, thread_id: object) -> list[tuple[str, str]]:
    named = (("run", run_id), ("thread", thread_id))
    return [(kind, id) for kind, id in named if isinstance(id, str) and is_valid_id(id)]


def _copies(
    tx: Transaction, id: str, run_id: str | None, thread_id: str | None
) -> list[tuple[Place, JsonObject]]:
    """Every copy of a message: where it is looked for, and where the copies found say that others are."""
    names = _named(run_id, thread_id) or [("thread", GENERAL)]
    found = []
    for name in names:  # grows while it is walked
        place = _place(tx, *name)
        record = place.find(id) if place else None
        if place is not None and record is not None:
            found.append((place, record))
            others = _named(record.get("run_id"), record.get("thread_id"))
            names += [other for other in others if other not in names]
    return found


def _put_thread(tx: Transaction, thread: Thread) -> None:
    record = dump_pretty(thread.model_dump())
    tx.ledger.put(f"{thread_dir(thread.thread_id)}/{THREAD_FILE}", record)
    tx.subjects.append(f"chat: thread {thread.thread_id}")
