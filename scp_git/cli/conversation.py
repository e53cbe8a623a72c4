"""Messages and threads as people and programs read them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scp_git.cli.report import print_json, short_time
from scp_git.cli.terminal import emit, neutralise, on_terminal, print_rows, styled

if TYPE_CHECKING:
    from scp_git.chat.mentions import Mention
    from scp_git.chat.publish import PublishReport
    from scp_git.models import ChatMessage, Thread

Resolve = Callable[[str], "list[Mention]"]

_MESSAGE_HEADER = ("id", "time (UTC)", "user", "thread", "run", "flags", "text")
_MENTION_HEADER = ("mention", "label", "detail")
_THREAD_HEADER = ("id", "created (UTC)", "by", "run", "tags", "title")
_THREAD_OPTIONAL = ("run", "tags", "by", "created (UTC)")


def print_message(message: ChatMessage) -> None:
    print_json(message.model_dump())


def print_messages(
    messages: Sequence[ChatMessage], resolve: Resolve, *, as_json: bool, given: Collection[str | None] = ()
) -> None:
    """Newest first, as they come; on a terminal the other way round, as people read conversations.

    There the ids of threads and runs that are ``given``, as the person asked for them, are not repeated.
    """
    if as_json:
        print_json([message.model_dump() for message in messages])
    elif on_terminal():
        # All at once: looking people up in the history costs the same for one and for many.
        known = {str(mention): mention for mention in resolve("\n".join(each.text for each in messages))}
        for number, message in enumerate(reversed(messages)):
            emit("\n" * bool(number) + _shown(message, known, given))
    else:
        print_rows(_MESSAGE_HEADER, map(_row, messages))


def _row(message: ChatMessage) -> list[str]:
    places = [message.thread_id or "", message.run_id or ""]
    return [message.id, message.ts, message.user, *places, ",".join(_flags(message)), message.text]


def _flags(message: ChatMessage) -> list[str]:
    flags = [name for name in ("publish", "encrypted") if getattr(message.flags, name)]
    return flags + [message.source] * (message.source != "manual")


def _shown(message: ChatMessage, known: Mapping[str, Mention], given: Collection[str | None]) -> str:
    """One message for a person: who and when, the text indented, and what its mentions stand for."""
    from scp_git.chat.mentions import parse

    places = (("in", message.thread_id), ("about", message.run_id))
    where = [f"{relation} {id}" for relation, id in places if id and id not in given]
    about = [short_time(message.ts), *where, *_flags(message), message.id]
    head = f"{styled(neutralise(message.user) or 'unknown', 'bold')}  "
    lines = [head + styled("  ".join(neutralise(part) for part in about), "dim")]
    lines += [f"  {line}" for line in neutralise(message.text, keep_newlines=True).split("\n")]
    for spelling in map(str, parse(message.text)):
        mention = known[spelling]
        meaning = mention.label if mention.exists else "does not exist here"
        if meaning != mention.id:
            lines.append(styled(f"    {neutralise(spelling)}: {neutralise(meaning)}", "dim"))
    return "\n".join(lines) + "\n"


def print_mentions(mentions: Sequence[Mention], *, as_json: bool) -> None:
    rows = [(str(mention), mention.label, mention.detail) for mention in mentions]
    if as_json:
        print_json([dict(zip(_MENTION_HEADER, row, strict=True)) for row in rows])
    else:
        print_rows(_MENTION_HEADER, rows)


# ---------------------------------------------------------------- threads


def print_thread(thread: Thread) -> None:
    print_json(thread.model_dump())


def print_threads(threads: Sequence[Thread], *, as_json: bool) -> None:
    if as_json:
        print_json([thread.model_dump() for thread in threads])
        return
    rows = [_thread_row(thread) for thread in threads]
    if on_terminal():
        for row in rows:
            row[1] = short_time(row[1])
    print_rows(_THREAD_HEADER, rows, optional=_THREAD_OPTIONAL)


def _thread_row(thread: Thread) -> list[str]:
    created = "" if thread.thread_id == "general" else thread.created_at
    by, run, tags = thread.created_by, thread.anchor_run or "", ",".join(thread.tags)
    return [thread.thread_id, created, by, run, tags, thread.title]


def print_conversation(
    thread: Thread, messages: Sequence[ChatMessage], resolve: Resolve, *, as_json: bool
) -> None:
    if as_json:
        shown: dict[str, Any] = {"thread": thread.model_dump()}
        print_json({**shown, "messages": [message.model_dump() for message in messages]})
        return
    if on_terminal():
        emit(styled(neutralise(thread.title), "bold") + "\n")
        id, created, *others = _thread_row(thread)[:-1]
        about = [part for part in (id, short_time(created), *others) if part]
        emit(styled("  ".join(neutralise(part) for part in about), "dim") + "\n" * (1 + bool(messages)))
    print_messages(messages, resolve, as_json=False, given=[thread.thread_id])


def print_report(report: PublishReport, *, as_json: bool) -> None:
    counts = {"messages": report.messages, "threads": report.threads, "runs": report.runs}
    if as_json:
        print_json(counts)
    else:
        emit(
            ", ".join(f"{count} {name[:-1] if count == 1 else name}" for name, count in counts.items()) + "\n"
        )
