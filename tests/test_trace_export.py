"""Traces in the formats of others: what OpenTelemetry's own library takes, and JSON lines."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status, TracesData

import scp_git
from scp_git import SessionTrace, TraceEvent
from scp_git.trace.export import ndjson_lines, otlp_lines, trace_to_otlp

START = "2026-02-17T20:45:00.000000+00:00"
START_NS = 1_771_361_100 * 10**9


def in_base64(value: Any) -> Any:
    """OTLP spells ids in hex, where protobuf's JSON has base64."""
    if isinstance(value, list):
        return [in_base64(item) for item in value]
    if isinstance(value, dict):
        ids = {"traceId", "spanId", "parentSpanId"}
        return {
            key: base64.b64encode(bytes.fromhex(item)).decode() if key in ids else in_base64(item)
            for key, item in value.items()
        }
    return value


def parsed(document: dict[str, Any]) -> tuple[TracesData, LogsData]:
    """What OpenTelemetry's library reads; a name or a type that it does not know is an error."""
    spans = {key: value for key, value in document.items() if key == "resourceSpans"}
    logs = {key: value for key, value in document.items() if key == "resourceLogs"}
    assert {**spans, **logs} == document
    traces = json_format.ParseDict(in_base64(spans), TracesData())
    return traces, json_format.ParseDict(in_base64(logs), LogsData())


def spans_of(traces: TracesData) -> list[Span]:
    return [span for each in traces.resource_spans for scope in each.scope_spans for span in scope.spans]


def logs_of(logs: LogsData) -> list[Any]:
    return [log for each in logs.resource_logs for scope in each.scope_logs for log in scope.log_records]


def values(record: Any) -> dict[str, Any]:
    return {each.key: each.value for each in record.attributes}


def trace(*events: TraceEvent, **fields: Any) -> SessionTrace:
    given = {"trace_id": "trace_1", "name": "deploy", "started_at": START, **fields}
    return SessionTrace(**given, events=list(events))


def at(second: int) -> str:
    return START.replace(":00.", f":{second:02}.")


DEPLOY = trace(
    TraceEvent(seq=1, ts=at(1), type="cache:done", target="web", result="ok", detail={"hits": 3}),
    TraceEvent(seq=2, ts=at(5), type="k8s:apply", target="web", result="ok", duration_ms=2500),
    TraceEvent(
        seq=3,
        ts=at(6),
        type="k8s:apply",
        result="failed",
        duration_ms=10,
        detail={"error": "timed out", "try": {"n": 2, "hosts": ["a", None, 1.5, True]}},
    ),
    TraceEvent(seq=4, ts=at(7), type="vault:lock", result="failed"),
    ended_at=at(9),
    user="ada",
    code_ref="5" * 40,
    classification="deployment",
    audit_refs=["r1", "r2"],
    auto_summary="two failed",
)


def test_opentelemetrys_own_library_takes_a_trace() -> None:
    """Session = root span, events with a duration = child spans, others = log records."""
    traces, logs = parsed(trace_to_otlp(DEPLOY))
    *children, root = spans_of(traces)
    assert (root.name, root.parent_span_id) == ("deploy", b"")
    assert (root.start_time_unix_nano, root.end_time_unix_nano) == (START_NS, START_NS + 9 * 10**9)
    facts = values(root)
    assert facts["user.name"].string_value == "ada"
    assert facts["vcs.ref.head.revision"].string_value == "5" * 40
    assert [each.string_value for each in facts["scp.audit_refs"].array_value.values] == ["r1", "r2"]
    assert facts["scp.trace.event_count"].int_value == 4
    assert "scp.trace.open" not in facts

    assert [span.name for span in children] == ["k8s:apply", "k8s:apply"]
    for span in children:
        assert (span.trace_id, span.parent_span_id) == (root.trace_id, root.span_id)
    first, second = children
    assert first.end_time_unix_nano == START_NS + 5 * 10**9
    assert first.end_time_unix_nano - first.start_time_unix_nano == 2_500_000_000
    assert (first.status.code, second.status.code) == (Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR)
    assert second.status.message == "timed out"
    tried = {each.key: each.value for each in values(second)["scp.detail.try"].kvlist_value.values}
    assert tried["n"].int_value == 2
    assert [each.WhichOneof("value") for each in tried["hosts"].array_value.values] == [
        "string_value",
        None,
        "double_value",
        "bool_value",
    ]

    one, other = logs_of(logs)
    assert (one.event_name, one.severity_text, one.time_unix_nano) == ("cache:done", "INFO", START_NS + 10**9)
    assert (other.event_name, other.severity_text) == ("vault:lock", "ERROR")
    assert (one.trace_id, one.span_id) == (root.trace_id, root.span_id)
    assert values(one)["scp.detail.hits"].int_value == 3
    assert one.body.string_value == "cache:done web"


def test_what_recorders_store_beside_the_detail_is_exported() -> None:
    """The error's text, the key where it is not the target, and that a detail was cut."""
    more = {"key": "web", "error": "timed out", "cut": True}
    event = TraceEvent.model_validate({"seq": 1, "type": "x", "result": "failed", "duration_ms": 5, **more})
    moment = event.model_copy(update={"duration_ms": 0})
    traces, logs = parsed(trace_to_otlp(trace(event, moment)))
    span, _ = spans_of(traces)
    assert span.status.message == "timed out"
    assert values(span)["scp.key"].string_value == "web" and values(span)["scp.cut"].bool_value
    (record,) = logs_of(logs)
    assert record.body.string_value == "x timed out"
    assert [json.loads(line) for line in ndjson_lines(trace(), [event])][1].items() >= more.items()


def test_exporting_twice_gives_the_same_and_ids_are_of_the_right_length() -> None:
    assert trace_to_otlp(DEPLOY) == trace_to_otlp(DEPLOY)
    spans = spans_of(parsed(trace_to_otlp(DEPLOY))[0])
    assert {len(span.trace_id) for span in spans} == {16}
    assert len({span.span_id for span in spans}) == 3
    other = trace(TraceEvent(seq=1, type="x", duration_ms=1), trace_id="trace_2")
    assert spans[0].trace_id != spans_of(parsed(trace_to_otlp(other))[0])[0].trace_id


def test_a_session_that_did_not_end_ends_with_its_last_event() -> None:
    unfinished = trace(TraceEvent(seq=1, ts=at(3), type="x"))
    (root,) = spans_of(parsed(trace_to_otlp(unfinished))[0])
    assert root.end_time_unix_nano == START_NS + 3 * 10**9
    assert values(root)["scp.trace.open"].bool_value is True
    (root,) = spans_of(parsed(trace_to_otlp(trace()))[0])
    assert root.start_time_unix_nano == root.end_time_unix_nano == START_NS


def test_numbers_that_come_twice_still_give_spans_of_their_own() -> None:
    twice = trace(*(TraceEvent(seq=seq, ts=at(1), type="x", duration_ms=1) for seq in (0, 0, 1, 1, 2)))
    assert len({span.span_id for span in spans_of(parsed(trace_to_otlp(twice))[0])}) == 6


def test_a_long_trace_passes_in_pieces_and_says_the_same() -> None:
    events = [
        TraceEvent(seq=n, ts=at(n % 60), type=f"e:{n}", duration_ms=n % 2, detail={"n": n})
        for n in range(1, 2502)
    ]
    long, taken = trace(event_count=2501), 0

    def coming() -> Any:
        nonlocal taken
        for event in events:
            taken += 1
            yield event

    lines = otlp_lines(long, coming())
    first = next(lines)
    assert taken <= 1000
    documents = [json.loads(line) for line in (first, *lines)]
    assert {len(document) for document in documents} == {1}
    whole = parsed(trace_to_otlp(trace(*events)))
    found = [parsed(document) for document in documents]
    assert [s for traces, _ in found for s in spans_of(traces)] == spans_of(whole[0])
    assert [r for _, logs in found for r in logs_of(logs)] == logs_of(whole[1])


@pytest.mark.parametrize("signal", ["traces", "logs"])
def test_a_file_may_hold_one_signal_only(signal: Any) -> None:
    key = {"traces": "resourceSpans", "logs": "resourceLogs"}[signal]
    lines = list(otlp_lines(DEPLOY, DEPLOY.events, signal))
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    assert {name for line in lines for name in json.loads(line)} == {key}


def test_json_lines_are_the_trace_and_its_events() -> None:
    head, *rest = [json.loads(line) for line in ndjson_lines(DEPLOY, DEPLOY.events)]
    assert head == DEPLOY.model_dump(exclude={"events"})
    assert [TraceEvent.model_validate(line) for line in rest] == DEPLOY.events


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
TIMES = st.datetimes().map(lambda moment: moment.isoformat()) | st.just("")
EVENTS = st.builds(
    TraceEvent,
    seq=st.integers(0, 5) | st.just(2**63 - 1),
    ts=TIMES,
    type=TEXT,
    target=TEXT,
    result=TEXT | st.just("failed"),
    duration_ms=st.integers(0, 5) | st.just(2**63 - 1),
    detail=st.dictionaries(TEXT, JSON, max_size=3),
)


@given(st.lists(EVENTS, max_size=4), TIMES, TEXT)
def test_whatever_was_recorded_is_taken(events: list[TraceEvent], started: str, name: str) -> None:
    strange = SessionTrace(trace_id="t", name=name, started_at=started, events=events)
    traces, logs = parsed(json.loads(json.dumps(trace_to_otlp(strange))))
    spans = spans_of(traces)
    assert len(spans) + len(logs_of(logs)) == len(events) + 1
    assert len({span.span_id for span in spans}) == len(spans)
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in spans)


def test_it_is_exported() -> None:
    assert scp_git.trace_to_otlp is trace_to_otlp
