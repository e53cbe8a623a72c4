"""``scp-git watch``: what is committed, as it is committed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from scp_git.cli.place import opened
from scp_git.cli.report import short_time
from scp_git.cli.terminal import Piece, emit, on_terminal, print_lines, print_rows, reader_left

if TYPE_CHECKING:
    from scp_git.feed import Change, Feed

INTERRUPTED = 130
_KINDS = ("run", "message", "thread", "trace")
_STYLES = {"deleted": "dim", "failed": "red", "partial": "yellow", "ok": "green"}


@click.command()
@click.option("--since", metavar="TOKEN", help='Begin after the change that bore TOKEN; "" is the beginning.')
@click.option("--only", type=click.Choice(_KINDS), multiple=True, help="Only this kind; may be repeated.")
@click.option("--jsonl", is_flag=True, help="A JSON object a line, ASCII, with the token of each change.")
@click.option("--once", is_flag=True, help="End with what there is, instead of waiting for more.")
@click.pass_obj
def watch(path: str | None, since: str | None, only: Sequence[str], jsonl: bool, once: bool) -> int:
    """Show what is committed to runs, chat and sessions, by any process here or by a pull, as it comes.

    On a terminal lines for people; else TAB between kind, action, id, time and what a list would show. Ends
    with Ctrl-C, or when nobody reads any more.
    """
    with opened(path) as store:
        try:
            feed = store.feed(since)
        except ValueError as exc:
            raise click.BadParameter(str(exc), param_hint="--since") from None
        try:
            _follow(feed, set(only), jsonl, once)
        except KeyboardInterrupt:
            return INTERRUPTED
    return 0


def _follow(feed: Feed, only: set[str], jsonl: bool, once: bool) -> None:
    from scp_git.feed import LOOK_EVERY_S

    while True:
        more = feed.fill()
        changes = [feed.ahead.popleft() for _ in range(len(feed.ahead))]
        _print([change for change in changes if not only or change.kind in (*only, "state")], jsonl)
        if reader_left() or (once and not more):
            return
        if not more:
            time.sleep(LOOK_EVERY_S)


def _print(changes: list[Change], jsonl: bool) -> None:
    if jsonl:
        emit("".join(_json_line(change) for change in changes))
    elif on_terminal():
        print_lines(map(_person_line, changes))
    else:
        print_rows((), ([c.kind, c.action, c.id, c.time, _label(c)] for c in changes))


def _json_line(change: Change) -> str:
    fields = {name: getattr(change, name) for name in ("kind", "action", "id", "time")}
    return json.dumps({**fields, "data": dict(change.data), "token": change.token}, ensure_ascii=True) + "\n"


def _person_line(change: Change) -> list[Piece]:
    if change.kind == "state":
        return [("what came before is not here any more; everything there is follows", "yellow")]
    verb = change.action if change.action != "added" else ""
    status = str(change.data.get("status") or change.action)
    return [
        (f"{short_time(change.time):19} ", "dim"),
        (f"{change.kind:7} ", _STYLES.get(status, "")),
        (f"{verb} " if verb else "", "dim"),
        (change.id, "bold"),
        (f"  {_label(change)}", ""),
    ]


def _label(change: Change) -> str:
    """What a list would show of the record."""
    data = change.data
    if change.action == "deleted":
        return str(data.get("user") or "")
    if change.kind == "run":
        kind = ":".join(part for part in (data["type"], data["subtype"]) if part)
        return " ".join(part for part in (data["status"], kind, data["summary"]) if part)
    if change.kind == "message":
        places = [f"run {data['run_id']}" if data["run_id"] else ""]
        places += [f"thread {data['thread_id']}" if data["thread_id"] else ""]
        where = ", ".join(place for place in places if place)
        return f"{data['user']}: {data['preview']}" + (f"  ({where})" if where else "")
    if change.kind == "trace":
        return f"{data['name']} ({data['event_count']} events)".strip()
    return str(data.get("title") or "")
