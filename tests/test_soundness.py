"""What is told to be valid without asking the model is what the model would have said."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import to_json

from scp_git import Run, RunEvent
from scp_git.codec import dump_compact, dump_pretty
from scp_git.soundness import file_of, is_plain, line_of, surely_event, surely_run

times = st.sampled_from(
    [
        "",
        "2026-02-17T20:45:00.000000+00:00",
        "2026-02-30T20:45:00.000000+00:00",
        "2026-02-17T20:45:00Z",
        "x",
        5,
    ]
) | st.datetimes().map(lambda moment: f"{moment.isoformat(timespec='microseconds')}+00:00")
texts = st.text() | st.sampled_from(["ok", "partial", "\ud800", b"x", 1, None, True])
counts = st.integers() | st.sampled_from([0, 2**63, 2**63 - 1, -1, True, 1.0, "1"])
objects = st.dictionaries(st.text() | st.integers(), st.none() | st.floats() | st.lists(st.text())) | st.just(
    []
)
RUN = dict.fromkeys("run_id type subtype status user code_ref environment summary".split(), texts) | {
    "started_at": times,
    "ended_at": times,
    "duration_ms": counts,
    "modules_affected": st.lists(texts) | st.just("x"),
    "metadata": objects,
}
EVENT = dict.fromkeys("type adapter action_id target status".split(), texts) | {
    "seq": counts,
    "ts": times,
    "duration_ms": counts,
    "detail": objects,
    "extra": texts,
}
GOOD_RUN = Run(
    run_id="r", type="x", started_at="2026-02-17T20:45:00Z", ended_at="2026-02-17T20:46:00Z"
).model_dump()


def validated(model: type[Run | RunEvent], fields: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return model.model_validate(fields).model_dump(exclude_unset=True)
    except (ValidationError, UnicodeError):
        return None


@given(st.fixed_dictionaries({}, optional=RUN))
def test_a_run_that_passes_is_one_that_the_model_takes_unchanged(changes: dict[str, Any]) -> None:
    fields = {**GOOD_RUN, **changes}
    if surely_run(fields):
        assert repr(validated(Run, fields)) == repr(fields)


@given(st.fixed_dictionaries({}, optional=EVENT))
def test_an_event_that_passes_is_one_that_the_model_takes_unchanged(fields: dict[str, Any]) -> None:
    if surely_event(fields):
        assert validated(RunEvent, fields) == fields


words = st.text(st.characters(exclude_categories=["Cs"]))
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | words,
    lambda inner: st.lists(inner) | st.dictionaries(words, inner),
)


class Name(str):
    pass


class Level(IntEnum):
    HIGH = 3


@given(plain)
def test_what_is_plain_is_spelled_as_json_spells_it(value: Any) -> None:
    assert is_plain(value)
    assert to_json(value).decode() == dump_compact(value)
    assert to_json(value, indent=2) + b"\n" == dump_pretty(value)


@pytest.mark.parametrize(
    "odd", [1.0, 1e-5, 1e16, Name("x"), Level.HIGH, (1, 2), {1: 2}, {Name("x"): 1}, b"x"]
)
def test_what_is_not_plain_is_left_to_json(odd: Any) -> None:
    for value in (odd, [odd], {"a": {"b": [odd]}}):
        assert not is_plain(value)


@given(st.recursive(plain | st.floats(allow_nan=False, allow_infinity=False), lambda inner: st.lists(inner)))
def test_any_value_becomes_the_same_line_and_file(value: Any) -> None:
    assert line_of(value) == f"{dump_compact(value)}\n".encode()
    assert file_of(value) == dump_pretty(value)


def test_ordinary_records_pass() -> None:
    assert surely_run(GOOD_RUN)
    assert surely_event({"seq": 1, "ts": "", "type": "step", "detail": {"n": [1, "two"]}})


@pytest.mark.parametrize("field", GOOD_RUN)
def test_a_field_less_or_more_is_for_the_model(field: str) -> None:
    assert not surely_run({name: value for name, value in GOOD_RUN.items() if name != field})
    assert not surely_run({**GOOD_RUN, f"{field}_": GOOD_RUN[field]})
