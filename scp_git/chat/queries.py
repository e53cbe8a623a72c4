"""Reading messages and threads: newest first, and no more of a long conversation than is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from heapq import nlargest

from pydantic import ValidationError

from scp_git.codec import JsonObject
from scp_git.errors import StorageFailed
from scp_git.git.anchors import find_run, read_record
from scp_git.git.conversation import Conversation
from scp_git.git.handle import Repository
from scp_git.git.lines import Key, key_of, parse_line, rank
from scp_git.git.runchat import RunChat
from scp_git.git.snapshot import Snapshot, snapshot
from scp_git.git.tree import TreeEditor
from scp_git.ids import is_valid_id
from scp_git.layout import GENERAL, THREAD_FILE, THREADS, run_tag_ref, thread_dir
from scp_git.models import ChatMessage, Thread

log = logging.getLogger(__name__)

_AT_ONCE = 10_000
"""So many messages more than are asked for are held at most, however long a part of somebody else's is."""

Place = RunChat | Conversation
_ALL = 2**62


class ChatReader:
    """Reads the chat of one repository. Thread-safe; texts come as they are stored."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    def newest(
        self, run_id: str | None, thread_id: str | None, *, n: int, before: str | None
    ) -> list[ChatMessage]:
        """The newest ``n`` messages of a run, of a thread, or of both together, newest first.

        With neither, those of ``general``. ``before`` is the id of a message among
        them: only older ones are listed; none if it is unknown.
        """
        if n <= 0:
            return []
        with self.repository.odb() as odb:
            places = list(self._places(snapshot(self.repository, odb), run_id, thread_id))
            limit = _key(places, before) if before is not None else None
            if before is not None and limit is None:
                return []
            page = _Page(n, limit)
            page.take(places)
            while len(page.messages) < n and not page.whole:  # damaged ones took the place of others
                page = _Page(2 * page.n, limit)
                page.take(places)
        return page.messages[:n]

    def everything(self, state: Snapshot, run_id: str | None, thread_id: str | None) -> list[ChatMessage]:
        """All messages of a run or of a thread in one state, newest first."""
        page = _Page(_ALL, None)
        page.take(list(self._places(state, run_id, thread_id)))
        return page.messages

    def _places(self, state: Snapshot, run_id: str | None, thread_id: str | None) -> Iterator[Place]:
        if run_id is not None and find_run(state, run_id):
            yield RunChat(state, run_id, self.repository.refs.read(run_tag_ref(run_id)))
        if thread_id is not None or run_id is None:
            yield Conversation(state.ledger, thread_dir(thread_id or GENERAL))

    def threads(self) -> list[Thread]:
        """All threads by (``created_at``, id), newest first; a damaged one is left out and logged."""
        with self.repository.odb() as odb:
            ledger = snapshot(self.repository, odb).ledger
            ids = [name for name in ledger.names(THREADS) if is_valid_id(name)]
            threads = [thread for id in ids if (thread := _thread(ledger, id))]
        return sorted(threads, key=lambda thread: (thread.created_at, thread.thread_id), reverse=True)


class _Page:
    """The newest ``n`` messages older than ``limit``."""

    def __init__(self, n: int, limit: Key | None) -> None:
        self.n = n
        self.limit = limit
        self.whole = True
        """Whether there was nothing else to read."""
        self.messages: list[ChatMessage] = []
        self._found: dict[str, tuple[Key, JsonObject, bytes]] = {}

    def take(self, places: list[Place]) -> None:
        """Fill the page; of a long conversation only the newest parts are read."""
        for place in places:
            if isinstance(place, RunChat):
                self._take(_readable(place.note))
                self._take_conversation(place.folder)
            else:
                self._take_conversation(place)
        rows = self._newest()
        self.whole = self.whole and len(rows) == len(self._found)
        loaded = (load_message(record) for _, record, _ in rows)
        self.messages = [message for message in loaded if message is not None]

    def _take_conversation(self, conversation: Conversation) -> None:
        count = 0
        for part in conversation.newest_first(self.limit):
            if count >= self.n:
                self.whole = False
                break
            count += self._take(_readable(partial(conversation.read, part)))

    def _take(self, data: bytes) -> int:
        """Take the messages of one part; how many were not met before."""
        count = 0
        for line in data.split(b"\n"):
            record = parse_line(line) if line.strip() else {}
            key = key_of(record)
            if all(key) and (self.limit is None or key < self.limit):
                present = self._found.get(key.id)
                count += present is None
                if present is None or rank(record, line) < rank(*present[1:]):
                    self._found[key.id] = key, record, line
                if len(self._found) > 2 * self.n + _AT_ONCE:
                    self.whole = False
                    self._found = {row[0].id: row for row in self._newest()}
        return count

    def _newest(self) -> list[tuple[Key, JsonObject, bytes]]:
        return nlargest(self.n, self._found.values(), key=lambda row: row[0])


def _readable(read: Callable[[], bytes]) -> bytes:
    """A part's bytes; one that cannot be read must not hide the others."""
    try:
        return read()
    except StorageFailed as exc:
        log.warning("messages are left out: %s", exc)
        return b""


def load_message(record: JsonObject) -> ChatMessage | None:
    """The model of a stored message, or ``None`` if it is damaged."""
    if not all(key_of(record)):
        return None
    try:
        return ChatMessage.model_validate(record)
    except ValidationError:
        log.warning("message %r is damaged and is left out", record.get("id"))
        return None


def _key(places: list[Place], id: str) -> Key | None:
    """The key of the message with this id, which lies in one of the places."""
    for place in places:
        try:
            record = place.find(id)
        except StorageFailed as exc:
            log.warning("message %s is not looked for everywhere: %s", id, exc)
            continue
        if record is not None:
            return key_of(record)
    return None


def _thread(ledger: TreeEditor, id: str) -> Thread | None:
    try:
        record = read_record(ledger, f"{thread_dir(id)}/{THREAD_FILE}")
        thread = Thread.model_validate(record) if record and record.get("created_at") else None
    except (ValidationError, StorageFailed):
        thread = None
    if thread is None or thread.thread_id != id:
        log.warning("thread %r is damaged and is left out", id)
        return None
    return thread
