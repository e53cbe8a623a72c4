"""Where runs to be imported come from: JSON lines of several kinds, and the history of a repository.

Ids are functions of the source where it has none, so that importing it again finds
what is there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import IO, Any

from pydantic import ValidationError

from scp_git.codec import JsonObject, load_object
from scp_git.git.log import LogEntry
from scp_git.ids import format_time, parse_time
from scp_git.ledger.importing import Unreadable, reason
from scp_git.models import Run

MAX_LINE_BYTES = 256 * 1024 * 1024
"""A longer line is rejected, and passed over without being held in memory."""
_SUMMARY_MAX = 200
_STATUSES = {"ok": "ok", "success": "ok", "partial": "partial", "failed": "failed", "error": "failed"}

Imported = tuple[Run, list[Any] | None] | Unreadable


def read_lines(file: IO[bytes]) -> Iterator[Imported]:
    """Runs from JSON lines, one a line; blank lines are passed over.

    A line is ``{"run": {...}, "events": [...]}`` as an export writes it, the fields
    of a run (with its events in ``events``), or an entry of the earlier program's
    ``audit.ndjson``.
    """
    while line := file.readline(MAX_LINE_BYTES):
        if len(line) >= MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield Unreadable("", f"a line of more than {MAX_LINE_BYTES} bytes")
        elif line.strip():
            yield read_line(line)


def read_line(line: bytes) -> Imported:
    """One run from one line, or what is wrong with it."""
    try:
        value = load_object(line)
    except ValueError as exc:
        return Unreadable("", f"not a JSON object: {exc}")
    events: Any = None
    try:
        if value.keys() <= {"run", "events"} and isinstance(value.get("run"), dict):
            value, events = value["run"], value.get("events")
        elif "operation_type" in value and "timestamp" in value and "started_at" not in value:
            return _audited(value, line), None
        elif isinstance(value.get("events"), list):
            events = value.pop("events")
        if events is not None and not _are_objects(events):
            return Unreadable(str(value.get("run_id", "")), "events: a list of objects is wanted")
        if not value.get("run_id"):
            value["run_id"] = _made_id(value, line)
        return Run.model_validate(value), events
    except (ValidationError, ValueError) as exc:
        return Unreadable(str(value.get("run_id", "")), reason(exc))


def read_history(entries: Iterable[LogEntry]) -> Iterator[Imported]:
    """Each commit as a run of type ``commit``, at the time it was committed."""
    for entry in entries:
        try:
            yield _committed(entry), None
        except (ValueError, OverflowError) as exc:
            yield Unreadable("", f"commit {entry.oid[:12]}: {reason(exc)}")


def _committed(entry: LogEntry) -> Run:
    moment = _moment(entry.committed)
    subject, _, body = entry.message.strip().partition("\n")
    return Run(
        run_id=_id(moment, "commit", entry.oid[:12]),
        type="commit",
        subtype="merge" if entry.parents > 1 else "",
        user=entry.author,
        code_ref=entry.oid,
        started_at=format_time(moment),
        ended_at=format_time(moment),
        summary=subject[:_SUMMARY_MAX],
        metadata={
            "email": entry.email,
            **({"authored": entry.authored} if entry.authored != entry.committed else {}),
            **({"message": body.strip()} if body.strip() else {}),
        },
    )


def _audited(entry: JsonObject, line: bytes) -> Run:
    """An entry was written when its operation had ended."""
    ended = parse_time(str(entry["timestamp"]))
    duration_ms = entry.get("duration_ms", 0)
    if type(duration_ms) is not int or not 0 <= duration_ms < 10**12:
        raise ValueError("duration_ms: a number of milliseconds is wanted")
    started = ended - timedelta(milliseconds=duration_ms)
    kind = str(entry["operation_type"]) or "audit"
    errors = entry.get("errors") or []
    said = str(entry.get("status", ""))
    status = _STATUSES.get(said.lower(), "failed" if errors else "ok")
    context = entry.get("context")
    user = context.get("user") if isinstance(context, dict) else None
    used = ("timestamp", "operation_type", "automation", "environment", "modules_affected", "duration_ms")
    return Run(
        run_id=_made_id({"type": kind, "started_at": format_time(started)}, line),
        type=kind,
        subtype=str(entry.get("automation", "")),
        status=status,  # type: ignore[arg-type]  # one of the three
        user=user if isinstance(user, str) else "",
        started_at=format_time(started),
        ended_at=format_time(ended),
        duration_ms=duration_ms,
        environment=str(entry.get("environment", "")),
        modules_affected=entry.get("modules_affected") or [],
        summary=_audit_summary(entry, errors),
        metadata={
            name: value
            for name, value in entry.items()
            if name not in used
            and value not in ("", 0, [], {})
            and not (name == "status" and value == status)
        },
    )


def _audit_summary(entry: JsonObject, errors: Any) -> str:
    total, done = entry.get("actions_total", 0), entry.get("actions_succeeded", 0)
    counted = f"{done} of {total} actions succeeded" if total else ""
    first = str(errors[0]).partition("\n")[0] if isinstance(errors, list) and errors else ""
    return "; ".join(part for part in (counted, first) if part)[:_SUMMARY_MAX]


def _are_objects(events: Any) -> bool:
    return isinstance(events, list) and all(isinstance(event, dict) for event in events)


def _made_id(value: JsonObject, line: bytes) -> str:
    """An id for a run without one; the same line gives the same."""
    started = value.get("started_at")
    if not isinstance(started, str) or not started:
        raise ValueError("neither run_id nor started_at: it could not be told from others")
    digest = hashlib.sha1(line.strip(), usedforsecurity=False).hexdigest()
    return _id(parse_time(started), str(value.get("type", "")), digest[:12])


def _id(moment: datetime, label: str, suffix: str) -> str:
    stamp = f"{moment.isoformat()[:11]}{moment:%H%M%S}"
    return f"run_{stamp}_{re.sub('[^A-Za-z0-9-]', '-', label)[:30] or 'run'}_{suffix}"


def _moment(seconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
