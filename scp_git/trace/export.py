"""Traces in the formats of others: OpenTelemetry's OTLP/JSON, and JSON lines.

In OTLP a session is a root span; an event that took time is a child span that ends at the
event's time, any other is a log record of the root span. All ids derive from the trace's id
and the events' numbers: exporting twice gives the same, and a receiver can tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal

from scp_git.codec import JsonObject, dump_compact
from scp_git.ids import parse_time
from scp_git.models import SessionTrace, TraceEvent

Signal = Literal["traces", "logs"]

_PER_DOCUMENT = 500
_INTERNAL = 1
_ERROR = 2
_INFO_SEVERITY, _ERROR_SEVERITY = (9, "INFO"), (17, "ERROR")
_EPOCH = parse_time("1970-01-01T00:00:00Z")
_MAX_NS = 2**64 - 1
_TEXT_MAX = 1000


def trace_to_otlp(trace: SessionTrace) -> JsonObject:
    """One OTLP/JSON document with the spans and the log records of ``trace.events``.

    It holds ``resourceSpans`` and ``resourceLogs``; a receiver of either signal passes over the
    other. For a trace with more events than it carries, ``otlp_lines`` takes them as they come.
    """
    documents = list(_documents(trace, trace.events, None))
    spans = [span for kind, records in documents if kind == "traces" for span in records]
    logs = [record for kind, records in documents if kind == "logs" for record in records]
    return {**_document("traces", spans), **(_document("logs", logs) if logs else {})}


def otlp_lines(
    trace: SessionTrace, events: Iterable[TraceEvent], signal: Signal | None = None
) -> Iterator[str]:
    """An OTLP file: one document a line, each of one signal, so that any number of events may pass.

    The root span comes last, as only then it is known when an unfinished session ended.
    ``signal`` chooses one of the two, as for a file that a collector's exporter would write.
    """
    for kind, records in _documents(trace, events, signal):
        yield dump_compact(_document(kind, records)) + "\n"


def ndjson_lines(trace: SessionTrace, events: Iterable[TraceEvent]) -> Iterator[str]:
    """The trace without its events in the first line, then an event in each."""
    yield dump_compact(trace.model_dump(exclude={"events"})) + "\n"
    for event in events:
        yield dump_compact(event.model_dump()) + "\n"


# ---------------------------------------------------------------- documents


def _documents(
    trace: SessionTrace, events: Iterable[TraceEvent], signal: Signal | None
) -> Iterator[tuple[Signal, list[JsonObject]]]:
    """Some hundred records of one signal at a time; the root span last."""
    made = _Records(trace)
    coming = iter(events)
    while batch := list(islice(coming, _PER_DOCUMENT)):
        spans, logs = made.of(batch)
        if spans and signal != "logs":
            yield "traces", spans
        if logs and signal != "traces":
            yield "logs", logs
    if signal != "logs":
        yield "traces", [made.root()]


def _document(signal: Signal, records: list[JsonObject]) -> JsonObject:
    scope = {"name": "scp_git"}
    resource = {"attributes": _attributes({"service.name": "scp-git"})}
    if signal == "traces":
        return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": records}]}]}
    return {"resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": scope, "logRecords": records}]}]}


class _Records:
    """Makes spans and log records of one trace's events, in their order."""

    def __init__(self, trace: SessionTrace) -> None:
        self.trace = trace
        self.trace_id = _hash(trace.trace_id, 16)
        self.root_id = _hash(f"{trace.trace_id}/root", 8)
        self.start = _nanoseconds(trace.started_at)
        self.end = self.start
        self._last_seq = 0
        self._count = 0

    def of(self, events: list[TraceEvent]) -> tuple[list[JsonObject], list[JsonObject]]:
        spans, logs = [], []
        for event in events:
            self._count += 1
            at = _nanoseconds(event.ts) if event.ts else self.end
            self.end = max(self.end, at)
            if event.duration_ms:
                spans.append(self._span(event, at))
            else:
                logs.append(self._log(event, at))
            self._last_seq = max(self._last_seq, event.seq)
        return spans, logs

    def root(self) -> JsonObject:
        trace = self.trace
        attributes = {
            "scp.trace.id": trace.trace_id,
            "scp.trace.classification": trace.classification,
            "scp.trace.event_count": max(trace.event_count, self._count),
            "scp.trace.open": True if trace.ended_at is None else None,
            "scp.summary": trace.auto_summary,
            "scp.audit_refs": list(trace.audit_refs),
            "user.name": trace.user,
            "vcs.ref.head.revision": trace.code_ref,
        }
        end = _nanoseconds(trace.ended_at) if trace.ended_at else self.end
        return {
            "traceId": self.trace_id,
            "spanId": self.root_id,
            "name": (trace.name or trace.classification or "session")[:_TEXT_MAX],
            "kind": _INTERNAL,
            "startTimeUnixNano": str(self.start),
            "endTimeUnixNano": str(max(end, self.start)),
            "attributes": _attributes(attributes),
            "status": {},
        }

    def _span(self, event: TraceEvent, at: int) -> JsonObject:
        # A number that comes twice (others may have written it) is made another by its place.
        name = str(event.seq) if event.seq > self._last_seq else f"{event.seq}#{self._count}"
        return {
            "traceId": self.trace_id,
            "spanId": _hash(f"{self.trace.trace_id}/{name}", 8),
            "parentSpanId": self.root_id,
            "name": event.type[:_TEXT_MAX] or "event",
            "kind": _INTERNAL,
            "startTimeUnixNano": str(max(at - min(event.duration_ms, 2**43) * 1_000_000, 0)),
            "endTimeUnixNano": str(at),
            "attributes": _attributes(_facts(event)),
            "status": _status(event),
        }

    def _log(self, event: TraceEvent, at: int) -> JsonObject:
        severity, text = _ERROR_SEVERITY if event.result == "failed" else _INFO_SEVERITY
        return {
            "timeUnixNano": str(at),
            "observedTimeUnixNano": str(at),
            "severityNumber": severity,
            "severityText": text,
            "eventName": event.type[:_TEXT_MAX],
            "body": {"stringValue": " ".join(filter(None, (event.type, event.target, error_of(event))))},
            "attributes": _attributes(_facts(event)),
            "traceId": self.trace_id,
            "spanId": self.root_id,
        }


def _facts(event: TraceEvent) -> dict[str, Any]:
    facts: dict[str, Any] = {"scp.seq": event.seq, "scp.target": event.target, "scp.result": event.result}
    if event.result == "failed":
        facts["error.type"] = "failed"
    facts |= {f"scp.{name}": value for name, value in (event.model_extra or {}).items() if name != "error"}
    return {**facts, **{f"scp.detail.{name}": value for name, value in event.detail.items()}}


def _status(event: TraceEvent) -> JsonObject:
    if event.result != "failed":
        return {}
    reason = error_of(event)
    return {"code": _ERROR, **({"message": reason[:_TEXT_MAX]} if reason else {})}


def error_of(event: TraceEvent) -> str:
    """What went wrong: the text that recorders store beside the detail, or the detail's own."""
    for value in ((event.model_extra or {}).get("error"), event.detail.get("error")):
        if isinstance(value, str) and value:
            return value
    return ""


# ---------------------------------------------------------------- values


def _attributes(values: dict[str, Any]) -> list[JsonObject]:
    """Key and value of each; empty text, empty lists and ``None`` say nothing and are left out."""
    return [
        {"key": key, "value": _any(value)} for key, value in values.items() if value not in ("", None, [])
    ]


def _any(value: Any) -> JsonObject:
    """A JSON value as OTLP's AnyValue; integers are text there, as JavaScript would round them."""
    if value is None:
        return {}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": [{"key": str(k), "value": _any(v)} for k, v in value.items()]}}
    return {"arrayValue": {"values": [_any(item) for item in value]}}


def _hash(text: str, size: int) -> str:
    return hashlib.sha256(f"scp-git/{text}".encode()).digest()[:size].hex()


def _nanoseconds(stored: str) -> int:
    """Since 1970; OTLP knows no earlier time."""
    since = parse_time(stored) - _EPOCH
    microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return min(max(microseconds, 0) * 1000, _MAX_NS)
