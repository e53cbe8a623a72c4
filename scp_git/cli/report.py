"""Runs as people and programs read them: tables, TAB-separated lines, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scp_git.cli.terminal import emit, neutralise, on_terminal, print_rows

if TYPE_CHECKING:
    from scp_git.index.listing import ListedRun
    from scp_git.models import Run

_LIST_HEADER = ("id", "started (UTC)", "status", "type", "subtype", "user", "environment", "took", "summary")
_LIST_OPTIONAL = ("environment", "user", "subtype", "started (UTC)", "type")
_EVENT_OPTIONAL = ("duration_ms", "action_id", "adapter", "ts", "status", "target", "detail")
_EVENT_FIELDS = ("seq", "ts", "type", "adapter", "action_id", "target", "status", "duration_ms", "detail")


def print_json(value: object) -> None:
    """One document. ASCII only, so that no terminal and no locale can misread it."""
    emit(json.dumps(value, ensure_ascii=True, indent=2) + "\n")


def print_runs(runs: Sequence[Run | ListedRun]) -> None:
    if on_terminal():
        print_rows(_LIST_HEADER, [_person_row(run) for run in runs], optional=_LIST_OPTIONAL)
    else:
        print_rows(_LIST_HEADER, [_full_row(run) for run in runs])


def _full_row(run: Run | ListedRun) -> list[str]:
    labels = [run.run_id, run.started_at, run.status, run.type, run.subtype, run.user, run.environment]
    return [*labels, str(run.duration_ms), run.summary]


def _person_row(run: Run | ListedRun) -> list[str]:
    row = _full_row(run)
    row[1] = short_time(run.started_at)
    row[7] = took(run.duration_ms)
    return row


def short_time(stored: str) -> str:
    """``2026-02-17 20:45:00``; times are stored in UTC."""
    return stored[:19].replace("T", " ")


def took(duration_ms: int) -> str:
    """``142 ms``, ``2.5 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if duration_ms < 1000:
        return f"{duration_ms} ms"
    if duration_ms < 60_000:
        return f"{duration_ms / 1000:.1f} s"
    minutes, seconds = divmod(duration_ms // 1000, 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# ---------------------------------------------------------------- one run


def print_run(run: Run, events: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json({"run": run.model_dump(), "events": list(events)})
        return
    fields = list(fields_of(run.model_dump()))
    if not on_terminal():
        print_rows((), fields)
        print_rows((), (("event", *_event_row(event)) for event in events))
        return
    print_fields(fields)
    if events:
        emit("\n")
        rows = [_event_row(event) for event in events]
        for row in rows:
            row[1] = short_time(row[1])
        print_rows(_EVENT_FIELDS, rows, optional=_EVENT_OPTIONAL)


def fields_of(record: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Name and text of every field that is not empty; a list of texts gives one line each."""
    for name, value in record.items():
        if name == "metadata" and isinstance(value, Mapping):
            yield from ((f"metadata.{key}", text) for key, text in fields_of(value))
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            yield from ((name, item) for item in value)
        elif value not in ("", None, {}):
            yield name, text_of(value)


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Names in a column; a name is said once, and further lines of a value stand under its first."""
    width = max((len(neutralise(name)) for name, _ in fields), default=0)
    said = ""
    for name, text in fields:
        for line in neutralise(text, keep_newlines=True).split("\n"):
            emit(f"{neutralise(name) if name != said else '':{width}}  {line}\n")
            said = name


def _event_row(event: Mapping[str, Any]) -> list[str]:
    row = [text_of(event.get(name, "")) for name in _EVENT_FIELDS]
    others = {name: value for name, value in event.items() if name not in _EVENT_FIELDS}
    detail = event.get("detail", {})
    if others:
        row[-1] = text_of({**others, **(detail if isinstance(detail, Mapping) else {"detail": detail})})
    return row


def text_of(value: Any) -> str:
    """Text as it is, anything else as JSON; nothing for an empty object."""
    if isinstance(value, str):
        return value
    return "" if value == {} else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
