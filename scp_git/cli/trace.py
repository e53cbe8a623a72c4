"""``scp-git trace``: list, show, export, recover and delete recorded sessions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from scp_git.cli import report
from scp_git.cli.place import opened
from scp_git.cli.terminal import (
    complain,
    emit,
    on_terminal,
    print_lines,
    print_rows,
    speaks_unicode,
    styled,
    terminal_width,
)

if TYPE_CHECKING:
    from scp_git.models import SessionTrace, TraceEvent
    from scp_git.store import Store

_HEADER = ("id", "started (UTC)", "kind", "events", "took", "user", "name")
_OPTIONAL = ("kind", "user", "took", "started (UTC)", "events")
_SHOWN = 100
_AT_ONCE = 500


@click.group()
def trace() -> None:
    """Recorded sessions: what happened, in which order, and how long it took."""


@trace.command("list")
@click.option(
    "-n", "count", metavar="N", type=click.IntRange(min=1), default=20, show_default=True, help="At most N."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document, ASCII, nothing cut.")
@click.pass_obj
def list_traces(path: str | None, count: int, as_json: bool) -> None:
    """List recorded sessions, newest first.

    On a terminal a table; else one line per session with TAB between id, start, end, classification, user,
    number of events, name and summary.
    """
    with opened(path) as store:
        traces = store.list_traces(n=count)
    if as_json:
        report.print_json([each.model_dump(exclude={"events"}) for each in traces])
    elif on_terminal():
        print_rows(_HEADER, map(_person_row, traces), optional=_OPTIONAL)
    else:
        print_rows((), map(_full_row, traces))


def _full_row(each: SessionTrace) -> list[str]:
    labels = [each.trace_id, each.started_at, each.ended_at or "", each.classification, each.user]
    return [*labels, str(each.event_count), each.name, each.auto_summary]


def _person_row(each: SessionTrace) -> list[str]:
    name = each.name if not each.auto_summary else f"{each.name}  {each.auto_summary}".strip()
    began = report.short_time(each.started_at)
    return [each.trace_id, began, each.classification, str(each.event_count), _took(each), each.user, name]


def _took(each: SessionTrace) -> str:
    from scp_git.ids import parse_time

    if not each.ended_at:
        return "unfinished"
    length = parse_time(each.ended_at) - parse_time(each.started_at)
    return report.took(max(int(length.total_seconds() * 1000), 0))


# ---------------------------------------------------------------- show


@trace.command()
@click.argument("trace_id", metavar="ID")
@click.option(
    "-n", "count", metavar="N", type=click.IntRange(min=0), help="Draw at most N events; 100 on a terminal."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document, ASCII, nothing cut.")
@click.pass_obj
def show(path: str | None, trace_id: str, count: int | None, as_json: bool) -> None:
    """Show one session and its timeline.

    On a terminal each event has a bar: where it was in the session, how long it took, and by its colour and
    sign how it ended. Else a line per field, and a line per event that begins with `event`.
    """
    with opened(path) as store:
        head = _head(store, trace_id)
        events = store.iter_trace_events(trace_id)
        if as_json:
            found = [event.model_dump() for event in islice(events, count)]
            report.print_json({"trace": head.model_dump(exclude={"events"}), "events": found})
        elif on_terminal():
            _draw(head, list(islice(events, _SHOWN if count is None else count)))
        else:
            print_rows((), report.fields_of(head.model_dump(exclude={"events"})))
            for rows in _pieces(map(_event_row, islice(events, count))):
                print_rows((), rows)


def _head(store: Store, trace_id: str) -> SessionTrace:
    from scp_git.errors import NotFound

    head = store.trace_head(trace_id)
    if head is None:
        raise NotFound("trace", trace_id)
    return head


def _draw(head: SessionTrace, events: list[TraceEvent]) -> None:
    from scp_git.cli.timeline import draw

    report.print_fields(list(report.fields_of(head.model_dump(exclude={"events"}))))
    if events:
        emit("\n")
        print_lines(draw(head, events, width=terminal_width(), unicode=speaks_unicode()))
    if len(events) < head.event_count:
        rest = f"... and {head.event_count - len(events)} more events; -n {head.event_count} shows them all"
        emit(styled(rest, "dim") + "\n")


def _event_row(event: TraceEvent) -> list[str]:
    detail = report.text_of({**(event.model_extra or {}), **event.detail})
    labels = ["event", str(event.seq), event.ts, event.type, event.target, event.result]
    return [*labels, str(event.duration_ms), detail]


# ---------------------------------------------------------------- export


@trace.command()
@click.argument("trace_id", metavar="ID")
@click.option("--otlp", is_flag=True, help="OpenTelemetry's OTLP/JSON, one document a line.")
@click.option("--ndjson", is_flag=True, help="The session in the first line, then an event in each.")
@click.option(
    "--signal",
    type=click.Choice(["traces", "logs"]),
    help="With --otlp: only spans, or only log records, as in a collector's files.",
)
@click.pass_obj
def export(path: str | None, trace_id: str, otlp: bool, ndjson: bool, signal: Any) -> None:
    """Write one session to standard output, in a format that other programs read.

    In OTLP the session is the root span, events that took time are its child spans, all others log records.
    """
    from scp_git.trace.export import ndjson_lines, otlp_lines

    if otlp == ndjson:
        raise click.UsageError("choose one of --otlp and --ndjson")
    if signal and not otlp:
        raise click.UsageError("--signal goes with --otlp")
    with opened(path) as store:
        head, events = _head(store, trace_id), store.iter_trace_events(trace_id)
        lines = otlp_lines(head, events, signal) if otlp else ndjson_lines(head, events)
        for some in _pieces(lines, 1 if otlp else _AT_ONCE):
            emit("".join(some))


def _pieces(items: Iterable[Any], size: int = _AT_ONCE) -> Iterator[list[Any]]:
    """Some at a time: a session may have millions of events."""
    coming = iter(items)
    while some := list(islice(coming, size)):
        yield some


# ---------------------------------------------------------------- recover, delete


@trace.command()
@click.pass_obj
def recover(path: str | None) -> None:
    """Save what recordings of processes that died left behind, and print the ids.

    Recordings that go on are left alone. Doing it twice changes nothing.
    """
    with opened(path) as store:
        for found in store.recover_recordings():
            emit(f"{found.trace_id}\n")


@trace.command()
@click.argument("trace_ids", metavar="ID...", nargs=-1, required=True)
@click.pass_obj
def delete(path: str | None, trace_ids: tuple[str, ...]) -> int:
    """Delete sessions and print the ids of those deleted. The ids cannot be used again.

    What git's history holds stays there: to undo the leak of a secret, change the secret.
    """
    from scp_git.errors import NotFound

    code = 0
    with opened(path) as store:
        for trace_id in trace_ids:
            if store.delete_trace(trace_id):
                emit(trace_id + "\n")
            else:
                complain(str(NotFound("trace", trace_id)))
                code = 3
    return code
