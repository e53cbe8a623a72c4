"""What is published: the messages that say so, as a static site and a JSON feed.

Only messages with ``publish`` set, never encrypted ones, whoever holds the key; only
threads and runs that have such messages, and of a run what its list shows, not its
metadata or events. A mention of anything else stays as it was typed, without a label.
The same messages give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from scp_git.chat.crypto import is_encrypted
from scp_git.chat.mentions import Mention, one_line
from scp_git.chat.pages import escape, page, plural, rich, shown_time
from scp_git.git.lines import parse_line
from scp_git.git.notes import MAX_NOTE_BYTES, note_target
from scp_git.git.objects import BLOB
from scp_git.git.snapshot import Snapshot
from scp_git.git.tree import raw_oid
from scp_git.ids import is_valid_id
from scp_git.layout import RUN_CHAT
from scp_git.models import ChatMessage, Run, Thread

Place = tuple[Literal["thread", "run"], str]
FEED_VERSION = "https://jsonfeed.org/version/1.1"
INDEX = "index.html"
FEED = "feed.json"
_FOLDERS = {"thread": "threads", "run": "runs"}
_RELATION = {"thread": "in", "run": "about"}
_EXCERPT = 160


def is_public(message: ChatMessage) -> bool:
    """Whether a message may be published. What looks encrypted never is, whatever its flags say."""
    return message.flags.publish and not message.flags.encrypted and not is_encrypted(message.text)


@dataclass(frozen=True, slots=True)
class PublishReport:
    """How much was published."""

    messages: int
    threads: int
    runs: int


@dataclass(frozen=True, slots=True)
class Site:
    """Everything that is published, and how it becomes files."""

    title: str
    base_url: str
    """Where the site will be, for the addresses in the feed; may be empty."""
    threads: dict[str, Thread]
    runs: dict[str, Run]
    said: dict[Place, list[ChatMessage]]
    """What is public in each of these threads and about each of these runs, by time."""
    messages: list[ChatMessage]
    """All of it, each message once, by time."""
    names: dict[Place, str]
    """The file of each thread's and run's page."""

    @classmethod
    def build(
        cls,
        said: Mapping[Place, Iterable[ChatMessage]],
        threads: Mapping[str, Thread],
        runs: Mapping[str, Run],
        *,
        title: str,
        base_url: str,
    ) -> Site:
        """Take what is public, and of threads and runs those where something is left.

        A message of which any copy may not be published is left out altogether.
        """
        said = {place: list(messages) for place, messages in said.items()}
        private = {each.id for messages in said.values() for each in messages if not is_public(each)}
        public = {
            place: sorted((each for each in messages if each.id not in private), key=_by_time)
            for place, messages in said.items()
            if place[1] in (threads if place[0] == "thread" else runs)
        }
        public = {place: messages for place, messages in public.items() if messages}
        once = {each.id: each for messages in public.values() for each in messages}
        return cls(
            one_line(title) or "Messages",
            base_url,
            {id: threads[id] for kind, id in public if kind == "thread"},
            {id: runs[id] for kind, id in public if kind == "run"},
            public,
            sorted(once.values(), key=_by_time),
            _page_names(public),
        )

    def report(self) -> PublishReport:
        return PublishReport(len(self.messages), len(self.threads), len(self.runs))

    def files(self) -> dict[str, bytes]:
        """Every file of the site."""
        found = {self.names["thread", id]: self._thread_page(thread) for id, thread in self.threads.items()}
        found |= {self.names["run", id]: self._run_page(run) for id, run in self.runs.items()}
        return {**found, INDEX: self._index(), FEED: self._feed()}

    # ------------------------------------------------------------ pages

    def _index(self) -> bytes:
        parts = [f'<h1 lang="">{escape(self.title)}</h1>']
        if not self.messages:
            parts.append('<p class="quiet">Nothing is published.</p>')
        else:
            counted = [plural(len(self.messages), "message")]
            counted += [
                plural(len(found), what)
                for found, what in ((self.threads, "thread"), (self.runs, "run"))
                if found
            ]
            parts.append(f'<p class="quiet">{", ".join(counted)}</p>')
        for heading, kind in (("Threads", "thread"), ("Runs", "run")):
            places = [place for place in self.said if place[0] == kind]
            # The one with the latest message first.
            places.sort(key=lambda place: (_by_time(self.said[place][-1]), place), reverse=True)
            parts += [f"<h2>{heading}</h2>"] * bool(places) + [self._card(place) for place in places]
        return page(self.title, self.title, "\n".join(parts), up="")

    def _card(self, place: Place) -> str:
        said = self.said[place]
        text = " ".join(said[-1].text.split())
        excerpt = text if len(text) <= _EXCERPT else text[:_EXCERPT].rstrip() + "\u2026"
        badge = f" {_status(self.runs[place[1]])}" if place[0] == "run" else ""
        return (
            f'<a class="card" href="{escape(self.names[place])}">'
            f'<h3 lang="">{escape(self._label(place))}{badge}</h3>'
            f'<p class="excerpt" lang="" dir="auto">{escape(excerpt)}</p>'
            f'<span class="quiet">{plural(len(said), "message")}, the last {shown_time(said[-1].ts)}</span>'
            "</a>"
        )

    def _thread_page(self, thread: Thread) -> bytes:
        made = [f"by {escape(one_line(thread.created_by))}"] if thread.created_by else []
        if thread.thread_id != "general" and thread.created_at:
            made.append(f"since {shown_time(thread.created_at)}")
        tags = "".join(f' <span class="badge">{escape(one_line(tag))}</span>' for tag in thread.tags)
        about = f'<p class="quiet">{" ".join(["Thread", *made])}{tags}</p>'
        return self._conversation(("thread", thread.thread_id), about)

    def _run_page(self, run: Run) -> bytes:
        rows = [
            ("Run", escape(run.run_id)),
            ("Started", shown_time(run.started_at)),
            ("Took", escape(_took(run.duration_ms))),
            ("By", escape(one_line(run.user))),
            ("Environment", escape(one_line(run.environment))),
            ("Commit", escape(run.code_ref[:12])),
        ]
        facts = "".join(f'<dt>{name}</dt><dd lang="">{value}</dd>' for name, value in rows if value)
        return self._conversation(
            ("run", run.run_id), f'<p class="quiet">Run {_status(run)}</p>\n<dl>{facts}</dl>'
        )

    def _conversation(self, place: Place, about: str) -> bytes:
        title = self._label(place)
        head = [f'<h1 lang="">{escape(title)}</h1>', about, "<h2>Messages</h2>"]
        said = [self._article(message, place) for message in self.said[place]]
        return page(title, self.title, "\n".join([*head, *said]), up="../")

    def _article(self, message: ChatMessage, here: Place) -> str:
        id = escape(message.id)
        badge = f'<span class="badge">{escape(message.source)}</span>' if message.source != "manual" else ""
        elsewhere = "".join(
            f'<a href="../{escape(self.names[place])}#{id}" lang="">'
            f"{_RELATION[place[0]]} {escape(self._label(place))}</a>"
            for place in self._places(message)
            if place != here
        )
        user = escape(one_line(message.user) or "unknown")
        return (
            f'<article class="card" id="{id}"><div class="meta"><b lang="">{user}</b>'
            f'<a href="#{id}">{shown_time(message.ts)}</a>{badge}{elsewhere}</div>'
            f'<p class="text" lang="" dir="auto">{rich(message.text, self._link)}</p></article>'
        )

    def _link(self, mention: Mention) -> tuple[str, str] | None:
        """The page of what a mention stands for, if that has one."""
        for place in self._known(("thread", mention.id), ("run", mention.id)):
            if place[0] == mention.kind:
                return f"../{self.names[place]}", self._label(place)
        return None

    def _places(self, message: ChatMessage) -> list[Place]:
        """The pages that a message stands on, as it says itself."""
        return self._known(("thread", message.thread_id or ""), ("run", message.run_id or ""))

    def _known(self, *places: Place) -> list[Place]:
        return [place for place in places if place in self.names]

    def _label(self, place: Place) -> str:
        if place[0] == "thread":
            return one_line(self.threads[place[1]].title) or place[1]
        run = self.runs[place[1]]
        return (
            one_line(": ".join(part for part in (run.subtype or run.type, run.summary) if part)) or place[1]
        )

    # ------------------------------------------------------------ the feed

    def _feed(self) -> bytes:
        feed: dict[str, object] = {"version": FEED_VERSION, "title": self.title}
        if self.base_url:
            feed |= {"home_page_url": self.base_url + INDEX, "feed_url": self.base_url + FEED}
        feed["items"] = [self._item(message) for message in reversed(self.messages)]
        return (json.dumps(feed, ensure_ascii=True, indent=1) + "\n").encode()

    def _item(self, message: ChatMessage) -> dict[str, object]:
        places = self._places(message)
        item: dict[str, object] = {"id": message.id}
        if self.base_url and places:
            item["url"] = f"{self.base_url}{self.names[places[0]]}#{message.id}"
        if places:
            item["title"] = self._label(places[0])
        item["content_text"] = message.text
        item["date_published"] = message.ts
        if message.user:
            item["authors"] = [{"name": message.user}]
        item["tags"] = [*(f"{kind}:{id}" for kind, id in places), f"source:{message.source}"]
        return item


def _by_time(message: ChatMessage) -> tuple[str, str]:
    return message.ts, message.id


def _page_names(places: Iterable[Place]) -> dict[Place, str]:
    """A file for each; two ids that differ in case only must not meet on a file system that ignores it."""
    places = list(places)
    folded = Counter((kind, id.casefold()) for kind, id in places)
    names = {}
    for kind, id in places:
        twin = f"-{hashlib.sha256(id.encode()).hexdigest()[:10]}" if folded[kind, id.casefold()] > 1 else ""
        names[kind, id] = f"{_FOLDERS[kind]}/{id}{twin}.html"
    return names


def _status(run: Run) -> str:
    return f'<span class="badge {run.status}">{run.status}</span>'


def _took(duration_ms: int) -> str:
    if not duration_ms:
        return ""
    seconds = duration_ms / 1000
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


# ---------------------------------------------------------------- finding it


def runs_spoken_of(state: Snapshot) -> set[str]:
    """The ids of runs about which something may be public; whether it is must be looked up.

    A note is keyed by a tag object, which does not lead to its run, so the messages are asked.
    """
    found = set(state.ledger.names(RUN_CHAT))
    for path, raw in state.notes.files():
        if note_target(path) is None:
            continue
        data = state.notes.store.find(raw_oid(raw), BLOB, limit=MAX_NOTE_BYTES) or b""
        for line in data.split(b"\n"):
            record = parse_line(line) if b"publish" in line else {}
            if isinstance(record.get("run_id"), str):
                found.add(record["run_id"])
    return {run_id for run_id in found if is_valid_id(run_id)}


def checked_base_url(url: str) -> str:
    """The address with a final slash, or empty; ``ValueError`` if it is no plain http address."""
    if url and re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?", url) is None:
        raise ValueError("the base URL must be an http or https address without query and fragment")
    return url if not url or url.endswith("/") else url + "/"
