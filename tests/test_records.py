"""Ids, times, models and bytes: what is accepted, how it is spelled, and what is refused."""

from __future__ import annotations

import datetime as dt
import json
import re
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pygit2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

import scp_git.ids
from scp_git import InvalidId, Run, RunEvent
from scp_git.codec import (
    MAX_DEPTH,
    check_json,
    cut_parts,
    dump_compact,
    dump_lines,
    dump_pretty,
    load_lines,
    load_object,
    tag_message,
)
from scp_git.ids import Clock, check_id, clock, format_time, is_valid_id, make_id, now_iso, parse_time

AT = "2026-02-17T20:45:00.000000+00:00"

# ---------------------------------------------------------------- ids

GOOD_IDS = [
    "a", "Z", "0", "a.b", "a-b_c.d", "a--", "a__", "a-", "general", "run_2026-02-17T204500_apply_x1y2",
    "a" * 128, "HEAD", "com", "com10", "lpt", "auxiliary", "connect", "null", "nul-", "a.con", "lock",
    "a.locks",
]  # fmt: skip

BAD_IDS = [
    "", " ", "a b", "a ", " a", "-a", ".a", "_a", ".", "..", "../a", "a/../b", "a..b", "a..", "a.", "a/b",
    "a/", "/a", "/etc/passwd", "a\\b", "..\\a", "a.lock", "a.LOCK", "a.b.Lock", "a" * 129, "a\n", "\na",
    "a\r", "a\0", "a\0b", "a\x7f", "a\x1b[2J", "é", "ä" * 3, "\u0430", "a\u202e", "a\u200b", "\U0001f600",
    "\uff11", "\ud800", "@", "a@{1}", "@{-1}", "a^", "a~1", ":/a", "a:b", "a?b", "a*b", "a[b", "~", "$HOME",
    "%2e%2e", "a%2fb", "con", "CON", "Con.txt", "prn", "PRN.a.b", "aux", "aux.json", "nul", "NUL.tar.gz",
    "com0", "com1", "COM9.x", "lpt0", "LPT9", "conin$", "CONOUT$", "clock$",
]  # fmt: skip

NO_TEXT: list[object] = [None, 5, True, b"a", ["a"], ("a",), Path("a"), object()]


@pytest.mark.parametrize("value", GOOD_IDS)
def test_an_id_that_keeps_the_rule_is_accepted(value: str) -> None:
    assert is_valid_id(value)
    assert check_id("run", value) == value


@pytest.mark.parametrize("value", BAD_IDS)
def test_an_id_that_breaks_the_rule_is_refused(value: str) -> None:
    assert not is_valid_id(value)
    with pytest.raises(InvalidId) as caught:
        check_id("run", value)
    assert (caught.value.kind, caught.value.id) == ("run", value)


@pytest.mark.parametrize("value", NO_TEXT)
def test_what_is_no_text_is_no_id(value: object) -> None:
    assert not is_valid_id(value)
    with pytest.raises(InvalidId):
        check_id("run", value)


def test_the_error_of_a_long_id_is_short() -> None:
    with pytest.raises(InvalidId) as caught:
        check_id("run", "x/" * 100_000)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


@pytest.mark.referee
def test_git_takes_every_good_id_as_a_ref(tmp_path: Path, git: Callable[..., str]) -> None:
    for value in GOOD_IDS:
        assert git(tmp_path, "check-ref-format", "--normalize", f"refs/tags/scp/run/{value}").strip()


def keeps_the_rule(text: str) -> bool:
    """The rule again, in other words."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    letters_digits = set(letters + letters.upper() + "0123456789")
    if not 1 <= len(text) <= 128 or text[0] not in letters_digits:
        return False
    if set(text) - letters_digits - set("._-") or ".." in text or text[-1] == ".":
        return False
    devices = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
    return text.lower()[-5:] != ".lock" and text.lower().split(".")[0] not in devices


names = st.text("aZ0._-/@ ~:\\\n\0éconlk1", max_size=9) | st.sampled_from(GOOD_IDS + BAD_IDS)


@given(names | st.text(max_size=140))
def test_the_rule_is_the_rule_and_makes_safe_names(text: str) -> None:
    assert is_valid_id(text) == keeps_the_rule(text)
    if is_valid_id(text):
        assert pygit2.reference_is_valid_name(f"refs/tags/scp/run/{text}")
        assert Path(text).parts == (text,)
        assert len(f"{text}.lock".encode()) < 255


def test_an_id_is_made_of_kind_time_label_and_suffix() -> None:
    assert re.fullmatch(r"run_2026-02-17T204500_k8s-apply_[a-z0-9]{4,8}", make_id("run", AT, "k8s:apply"))
    assert re.fullmatch(r"msg_2026-02-17T204500_[a-z0-9]{4,8}", make_id("msg", AT))
    assert make_id("run", "2026-02-17T22:45:00+02:00", "x").startswith("run_2026-02-17T204500_x_")
    assert make_id("run", "0001-01-01T00:00:00Z", "x").startswith("run_0001-01-01T000000_x_")


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("k8s:apply", "k8s-apply"),
        ("a/b\\c\n..", "a-b-c---"),
        ("", "run"),
        ("Übung", "-bung"),
        ("a_b", "a-b"),
        ("x" * 31, "x" * 30),
        ("\U0001f600", "-"),
    ],
)
def test_a_label_is_cleaned(label: str, shown: str) -> None:
    made = make_id("run", AT, label)
    assert made.split("_")[2] == shown
    assert is_valid_id(made)


def test_the_suffix_grows_only_for_a_second_id_in_one_second() -> None:
    kind = f"k{uuid.uuid4().hex}"
    widths = [len(make_id(kind, AT).rpartition("_")[2]) for _ in range(3)]
    assert widths[0] == 4
    assert 8 in widths[1:]  # the second may end between two of them
    assert len(make_id(f"k{uuid.uuid4().hex}", AT).rpartition("_")[2]) == 4


def test_ten_thousand_ids_of_one_second_differ() -> None:
    with ThreadPoolExecutor(4) as pool:
        batches = pool.map(lambda _: [make_id("run", AT, "x") for _ in range(2500)], range(4))
        made = [run_id for batch in batches for run_id in batch]
    assert len(set(made)) == 10_000
    assert all(map(is_valid_id, made))


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("given_text", "stored"),
    [
        ("2026-02-17T20:45:00Z", AT),
        ("2026-02-17T20:45:00", AT),
        ("2026-02-17 20:45", AT),
        ("2026-02-17T22:45:00+02:00", AT),
        ("2026-02-18T02:15:00+0530", AT),
        ("2026-02-17T20:45:00.000000+00:00", AT),
        (" 2026-02-17T20:45:00Z\n", AT),
        ("2026-02-17T20:45:00.5Z", "2026-02-17T20:45:00.500000+00:00"),
        ("2026-02-17", "2026-02-17T00:00:00.000000+00:00"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000+00:00"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999+00:00"),
    ],
)
def test_a_time_is_normalised(given_text: str, stored: str) -> None:
    assert format_time(parse_time(given_text)) == stored
    assert Run(type="x", started_at=given_text).started_at == stored
    assert RunEvent(ts=given_text).ts == stored


@pytest.mark.parametrize(
    "text",
    [
        "now", "5", "1e9", "2026-13-01", "2026-02-30T00:00:00Z", "2026-02-17T25:00:00Z", " ", "\0", "\ud800",
        "2026-02-17T20:45:00+99:00", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "9" * 5000,
        "2026-02-17T", "\u0662\u0660\u0662\u0666-02-17", "17.02.2026", "2026-02-17T20:45:00Z; rm",
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an ISO 8601 time"):
        parse_time(text)
    for field in ("started_at", "ended_at"):
        with pytest.raises(ValidationError):
            Run(type="x", **{field: text})


def test_datetimes_are_taken_with_and_without_zone() -> None:
    moment = datetime(2026, 2, 17, 20, 45)  # noqa: DTZ001
    east = timezone(timedelta(hours=5, minutes=30))
    assert format_time(moment) == AT
    assert Run(type="x", started_at=moment).started_at == AT  # type: ignore[arg-type]
    assert Run(type="x", started_at=datetime(2026, 2, 18, 2, 15, tzinfo=east)).started_at == AT  # type: ignore[arg-type]


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_datetime_beyond_the_years_1_to_9999_is_refused(sign: int) -> None:
    zone = timezone(timedelta(hours=sign))
    moment = datetime.max.replace(tzinfo=zone) if sign < 0 else datetime.min.replace(tzinfo=zone)
    with pytest.raises(ValidationError):
        Run(type="x", started_at=moment)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [5, 5.0, True, None, b"2026-02-17", dt.date(2026, 2, 17), ["2026"]])
def test_what_is_neither_text_nor_datetime_is_no_time(value: Any) -> None:
    with pytest.raises(ValidationError):
        Run(type="x", started_at=value)


zones = st.timezones() | st.just(UTC)
first, last = datetime(2, 1, 1), datetime(9998, 1, 1)  # noqa: DTZ001
moments = st.datetimes(first, last, timezones=zones, allow_imaginary=False)


@given(moments, moments)
def test_stored_times_sort_as_they_happened(one: datetime, other: datetime) -> None:
    texts = format_time(one), format_time(other)
    # Compared in UTC: times of two zones in a fold are never equal (PEP 495).
    assert [parse_time(text) for text in texts] == [one.astimezone(UTC), other.astimezone(UTC)]
    assert (texts[0] < texts[1]) == (one.astimezone(UTC) < other.astimezone(UTC))
    assert {len(text) for text in texts} == {32}


def test_the_clock_never_repeats_and_never_goes_back() -> None:
    texts = [now_iso() for _ in range(10_000)]
    assert all(one < other for one, other in pairwise(texts))
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda _: [clock.now() for _ in range(2000)], range(4)))
    assert len({moment for batch in batches for moment in batch}) == 8000
    assert all(batch == sorted(batch) for batch in batches)


def test_the_clock_goes_on_when_the_system_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    system = iter([datetime(2026, 1, day, tzinfo=UTC) for day in (2, 1, 3)])

    class Stepping(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return next(system)

    monkeypatch.setattr(scp_git.ids, "datetime", Stepping)
    own = Clock.__new__(Clock)
    own._lock, own._last = clock._lock, datetime(1, 1, 1, tzinfo=UTC)
    readings = [own.now() for _ in range(3)]
    assert readings[0] == datetime(2026, 1, 2, tzinfo=UTC)
    assert readings[1] == readings[0] + timedelta(microseconds=1)
    assert readings[2] == datetime(2026, 1, 3, tzinfo=UTC)


def test_runs_built_one_after_the_other_have_increasing_times() -> None:
    times = [Run(type="x").started_at for _ in range(500)]
    assert all(one < other for one, other in pairwise(times))


# ---------------------------------------------------------------- models


def test_the_fields_and_their_order_are_the_contract() -> None:
    assert " ".join(Run.model_fields) == (
        "run_id type subtype status user code_ref started_at ended_at duration_ms environment"
        " modules_affected summary metadata"
    )
    assert " ".join(RunEvent.model_fields) == "seq ts type adapter action_id target status duration_ms detail"


def test_a_new_run_has_an_id_and_a_start_and_nothing_else() -> None:
    run = Run(type="k8s:apply")
    assert run.run_id.startswith("run_" + run.started_at[:19].replace(":", "") + "_k8s-apply_")
    rest = run.model_dump(exclude={"run_id", "type", "started_at"})
    assert rest == {
        "subtype": "", "status": "ok", "user": "", "code_ref": "", "ended_at": "", "duration_ms": 0,
        "environment": "", "modules_affected": [], "summary": "", "metadata": {},
    }  # fmt: skip


def test_what_is_given_is_kept() -> None:
    run = Run(run_id="mine", type="x", started_at="2026-02-17T20:45:00Z")
    assert (run.run_id, run.started_at) == ("mine", AT)
    assert Run(type="x", started_at=AT).run_id.startswith("run_2026-02-17T204500_x_")


def test_models_are_mutable_and_keep_unknown_fields() -> None:
    run = Run(type="x", colour="red", nested={"a": [1, None]})  # type: ignore[call-arg]
    run.summary = "later"
    assert run.model_dump()["colour"] == "red"
    assert Run.model_validate(json.loads(json.dumps(run.model_dump()))) == run
    event = RunEvent(type="y", colour="red")  # type: ignore[call-arg]
    assert event.model_dump()["colour"] == "red"


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def nested_lists(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


endless: dict[str, Any] = {}
endless["again"] = endless

NOT_JSON: dict[str, Any] = {
    "nan": float("nan"),
    "inf": float("inf"),
    "minus inf": float("-inf"),
    "65 bits": 2**63,
    "minus 65 bits": -(2**63) - 1,
    "surrogate": "a\ud800b",
    "surrogate pair": "\ud83d\ude00",
    "surrogate key": {"\udfff": 1},
    "integer key": {1: 2},
    "no key": {None: 1},
    "tuple key": {(1, 2): 1},
    "true key": {True: 1},
    "bytes": b"x",
    "object": object(),
    "set": {1},
    "time": datetime(2026, 1, 1, tzinfo=UTC),
    "decimal": Decimal(1),
    "path": Path("x"),
    "complex": 1j,
    "deep": nested(MAX_DEPTH + 1),
    "deep lists": nested_lists(MAX_DEPTH + 1),
    "1 000 deep": nested(1000),
    "endless": endless,
}
JSON_VALUES: dict[str, Any] = {
    "64 bits": 2**63 - 1,
    "minus 64 bits": -(2**63),
    "big float": 1e308,
    "tiny": 5e-324,
    "minus zero": -0.0,
    "nothing": None,
    "true": True,
    "nul": "a\0b",
    "line separator": "a\u2028b\u0085c\x0bd",
    "emoji": "\U0001f600",
    "not a character": "\uffff\ufffe",
    "deep enough": nested(MAX_DEPTH - 1),
}


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json_is_refused_wherever_it_stands(value: Any) -> None:
    for place in (value, {"a": value}, [value], {"a": [{"b": value}]}):
        with pytest.raises(ValueError, match=r"."):
            check_json(place)
        with pytest.raises(ValidationError):
            Run(type="x", metadata={"a": place})
        with pytest.raises(ValidationError):
            Run(type="x", unknown=place)  # type: ignore[call-arg]
        with pytest.raises(ValidationError):
            RunEvent(detail={"a": place})
        with pytest.raises(ValidationError):
            RunEvent(unknown=place)  # type: ignore[call-arg]


@pytest.mark.parametrize("value", JSON_VALUES.values(), ids=JSON_VALUES)
def test_what_is_json_is_taken(value: Any) -> None:
    assert Run(type="x", metadata={"a": value}).metadata == {"a": value}
    assert RunEvent(detail={"a": value}).detail == {"a": value}


def test_the_depth_limit_is_exact() -> None:
    assert Run(type="x", metadata=nested(MAX_DEPTH))
    with pytest.raises(ValidationError, match="deeper than 64"):
        Run(type="x", metadata=nested(MAX_DEPTH + 1))


@pytest.mark.parametrize("field", ["type", "subtype", "user", "code_ref", "environment", "summary", "run_id"])
def test_text_with_a_lone_surrogate_is_refused(field: str) -> None:
    with pytest.raises(ValidationError):
        Run.model_validate({"type": "x", field: "a\udc80"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", 5), ("type", None), ("type", ["x"]), ("subtype", None), ("status", "done"), ("status", ""),
        ("status", None), ("duration_ms", -1), ("duration_ms", True), ("duration_ms", "5"),
        ("duration_ms", 1.5), ("duration_ms", 2**63), ("duration_ms", None), ("modules_affected", "abc"),
        ("modules_affected", [5]), ("modules_affected", ["\ud800"]), ("metadata", []), ("metadata", None),
        ("metadata", "x"), ("user", 5), ("run_id", 5), ("run_id", None), ("anchor", None),
        ("anchor", {"target": "0" * 40}),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Run.model_validate({"type": "x", field: value})


@pytest.mark.parametrize("field", ["seq", "duration_ms"])
@pytest.mark.parametrize("value", [-1, True, "1", 1.0, 2**63, None])
def test_a_count_of_an_event_is_a_count(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        RunEvent.model_validate({field: value})


def test_a_type_is_needed() -> None:
    with pytest.raises(ValidationError):
        Run()  # type: ignore[call-arg]


def test_anchor_is_a_reserved_name_also_in_json() -> None:
    with pytest.raises(ValidationError, match="reserved"):
        Run(type="x", anchor={})  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="reserved"):
        Run.model_validate_json('{"type":"x","anchor":null}')
    assert Run(type="x", anchors=1, metadata={"anchor": 1}).metadata == {"anchor": 1}  # type: ignore[call-arg]


# ---------------------------------------------------------------- writing and reading JSON

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["\u2028", "\u2029", "\x85", "\r", "\n", "\x0b\x0c", "\0", "\ufeff"])
)
containers = lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)  # noqa: E731
values = st.recursive(scalars, containers, max_leaves=12)
objects = st.dictionaries(st.text(), values, max_size=6)


@given(objects)
def test_an_object_comes_back_exactly(value: dict[str, Any]) -> None:
    check_json(value)
    pretty, line = dump_pretty(value), dump_compact(value)
    assert repr(load_object(pretty)) == repr(load_object(line.encode())) == repr(value)
    assert pretty.endswith(b"\n")
    assert "\n" not in line
    assert dump_pretty(load_object(pretty)) == pretty
    assert pretty.decode() == json.dumps(value, ensure_ascii=False, indent=2) + "\n"


@given(st.lists(objects, max_size=5))
@example([{"a": "x\u2028y"}, {"a": "\x85"}])
def test_lines_come_back_exactly(rows: list[dict[str, Any]]) -> None:
    data = dump_lines(rows)
    assert data.count(b"\n") == len(rows)
    assert repr(list(load_lines(data))) == repr(rows)
    assert repr(list(load_lines(data.replace(b"\n", b"\r\n\n")))) == repr(rows)
    assert repr(list(load_lines(data.removesuffix(b"\n")))) == repr(rows)


def test_the_spelling_is_fixed() -> None:
    value = {"b": [1, 1.0, "é\u2028"], "a": {}}
    assert dump_compact(value) == '{"b":[1,1.0,"é\u2028"],"a":{}}'
    assert dump_pretty(value).decode() == '{\n  "b": [\n    1,\n    1.0,\n    "é\u2028"\n  ],\n  "a": {}\n}\n'
    assert tag_message({"a": 1, "anchor": {"target": "x"}, "b": "é"}) == '{"a":1,"b":"é"}\n'
    for dump in (dump_compact, dump_pretty):
        with pytest.raises(ValueError, match="Out of range"):
            dump({"a": float("nan")})


UNREADABLE = {
    "duplicate key": b'{"a":1,"a":1}',
    "duplicate key inside": b'{"a":[{"b":1,"b":2}]}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":Infinity}',
    "-Infinity": b'{"a":[-Infinity]}',
    "1e400": b'{"a":1e400}',
    "-1e400": b'{"a":-1e400}',
    "BOM": b'\xef\xbb\xbf{"a":1}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "UTF-16 without BOM": '{"a":1}'.encode("utf-16-le"),
    "UTF-32": '{"a":1}'.encode("utf-32"),
    "bad UTF-8": b'{"a":"\xff"}',
    "Latin-1": '{"a":"é"}'.encode("latin-1"),
    "overlong": b'{"a":"\xc0\xaf"}',
    "surrogate in UTF-8": b'{"a":"\xed\xa0\x80"}',
    "cut": b'{"a":"\xc3',
    "torn": b'{"a":1',
    "nested lists": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "5 000 digits": b'{"a":' + b"9" * 5000 + b"}",
    "a list": b"[1]",
    "a number": b"5",
    "null": b"null",
    "a string": b'"a"',
    "two objects": b"{}{}",
    "more": b"{} x",
    "one quote": b"{'a':1}",
    "trailing comma": b'{"a":1,}',
    "comment": b"{} // x",
    "control character": b'{"a":"\x01"}',
    "merge marker": b"<<<<<<< HEAD",
    "NUL": b"\0",
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_not_one_strict_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        load_object(data)
    good = b'{"good":1}'
    assert list(load_lines(good + b"\n" + data + b"\n" + good)) == [{"good": 1}, None, {"good": 1}]


@pytest.mark.parametrize("data", [b"", b" \n", b'{"a":"\n"}'])
def test_an_empty_file_is_no_object(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        load_object(data)


def test_blank_lines_are_passed_over() -> None:
    assert list(load_lines(b"\n\r\n \t\n{}\n\n{}\n\n")) == [{}, {}]
    assert list(load_lines(b"")) == []


@given(st.lists(st.binary(max_size=12).map(lambda text: text.replace(b"\n", b"") + b"\n")))
def test_parts_hold_whole_lines_and_keep_the_bound(lines: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scp_git.codec.MAX_PART_BYTES", 20)
        parts = cut_parts(lines)
    assert b"".join(parts) == b"".join(lines)
    assert all(part.endswith(b"\n") and len(part) <= 20 for part in parts)
    assert all(len(one) + len(other) > 20 - 13 for one, other in pairwise(parts))
