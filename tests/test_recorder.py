"""Recording: what is taken, what becomes of odd events, how it ends; threads, loops, forks, cancellation."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pygit2
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import scp_git
from scp_git import (
    Bus,
    InvalidId,
    NotFound,
    Run,
    SessionTrace,
    Settings,
    StorageFailed,
    Store,
    TraceEvent,
    bus,
    generate_summary,
    open_store,
)
from scp_git.codec import load_object
from scp_git.trace import recorder as recorder_module
from scp_git.trace import recording as recording_module
from scp_git.trace.encoding import DETAIL_LIMIT, encode_event
from scp_git.trace.recorder import recorder

OS = Settings(durability="os")


@pytest.fixture(autouse=True)
def unsynced(home: Path) -> None:
    """No fsync: these tests are not about power loss, and the disk is shared."""
    with (home / ".gitconfig").open("a") as config:
        config.write("[scp]\n\tdurability = os\n")


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """No test leaves a recording, a sink or a thread behind."""
    sinks = bus.statistics().sinks
    yield
    for trace_id in [*recorder._started, *recorder._kept]:
        recorder.discard(trace_id)
    deadline = time.monotonic() + 5
    while any(t.name == "scp-git-recording" for t in threading.enumerate()):
        assert time.monotonic() < deadline, "a recording's thread goes on"
        time.sleep(0.01)
    assert bus.statistics().sinks == sinks


def spools(repo: Path) -> list[str]:
    folder = repo / ".git/scp/recordings"
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def spool_lines(repo: Path, trace_id: str) -> list[dict[str, Any]]:
    data = (repo / f".git/scp/recordings/{trace_id}.jsonl").read_bytes()
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def targets(trace: SessionTrace) -> list[str]:
    return [event.target for event in trace.events]


# ---------------------------------------------------------------- what is taken


def test_noise_is_left_out_unless_a_pattern_asks_for_it(repo: Path) -> None:
    store = Store.open(repo)
    everything, asked = store.start_recording(), store.start_recording(types=["sys:*", "trace:**"])
    for type in ("sys", "sys:heartbeat", "system:x", "trace:saved", "trace:mine", "a"):
        bus.publish(type, key=type)
    assert targets(store.stop_recording(everything)) == ["system:x", "trace:mine", "a"]
    taken = targets(store.stop_recording(asked))
    assert [t for t in taken if t not in (everything, asked)] == [
        "sys:heartbeat",
        "trace:saved",
        "trace:mine",
    ]
    assert everything in taken, "the end of the other recording"


def test_patterns_choose_and_bad_ones_are_refused(repo: Path) -> None:
    store = Store.open(repo)
    some, one = store.start_recording(types=["a:*", "b"]), store.start_recording(types="a:**")
    for type in ("a", "a:x", "a:x:y", "b", "b:x"):
        bus.publish(type, key=type)
    assert targets(store.stop_recording(some)) == ["a:x", "b"]
    assert targets(store.stop_recording(one)) == ["a", "a:x", "a:x:y"]
    with pytest.raises(ValueError, match="whole segment"):
        store.start_recording(types=["a*"])
    assert store.active_recordings() == []


def test_two_repositories_recorded_at_once_do_not_see_each_others_events(
    make_repo: Any, tmp_path: Path
) -> None:
    one, two = make_repo(), make_repo()
    (tmp_path / "link").symlink_to(one)
    first, second = Store.open(one).start_recording(), Store.open(two).start_recording()
    bus.publish("a", key="one", meta={"root": str(one)})
    bus.publish("a", key="path", meta={"root": one})
    bus.publish("a", key="link", meta={"root": str(tmp_path / "link")})
    bus.publish("a", key="two", meta={"root": str(two)})
    bus.publish("a", key="none", meta={"other": 1})
    bus.publish("a", key="empty", meta={"root": ""})
    bus.publish("a", key="odd", meta={"root": object()})
    Store.open(one, OS).record_run(Run(run_id="run-1", type="x"))
    assert targets(Store.open(two).stop_recording(second)) == ["two", "none", "empty"]
    assert targets(Store.open(one).stop_recording(first)) == ["one", "path", "link", "none", "empty", "run-1"]


def test_runs_recorded_meanwhile_are_named_whatever_the_patterns(make_repo: Any) -> None:
    repo, other = make_repo(), make_repo()
    store = Store.open(repo, OS)
    store.record_run(Run(run_id="before", type="x"))
    trace_id = store.start_recording(types=["nothing"])
    for run_id in ("r1", "r2"):
        store.record_run(Run(run_id=run_id, type="x"))
    Store.open(other, OS).record_run(Run(run_id="other", type="x"))
    bus.publish("ledger:run", key="../x")
    trace = store.stop_recording(trace_id)
    store.record_run(Run(run_id="after", type="x"))
    assert (trace.audit_refs, trace.events) == (["r1", "r2"], [])
    store.save_trace(trace)
    stored = store.get_trace(trace_id)
    assert stored is not None and stored.audit_refs == ["r1", "r2"]


def test_only_what_comes_between_start_and_stop_is_taken_in_order_from_many_threads(repo: Path) -> None:
    store = Store.open(repo)
    go, done = threading.Event(), threading.Event()

    def publish(thread: int) -> None:
        number = 0
        while not done.is_set():
            bus.publish("t:x", key=f"{thread}", data={"n": number})
            number += 1
            go.set()
            if number % 20 == 0:
                time.sleep(0.002)

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    go.wait()
    first = bus.publish("mark")
    ids = [store.start_recording(types=["t:*"]) for _ in range(2)]
    time.sleep(0.3)
    traces = [store.stop_recording(trace_id) for trace_id in ids]
    last = bus.publish("mark")
    done.set()
    for thread in threads:
        thread.join()
    assert 0 < traces[0].event_count < last - first
    for trace in traces:
        assert [event.seq for event in trace.events] == list(range(1, trace.event_count + 1))
        for thread_number in range(4):
            numbers = [e.detail["n"] for e in trace.events if e.target == str(thread_number)]
            assert numbers == list(range(numbers[0], numbers[-1] + 1)) if numbers else True


def test_start_and_stop_are_announced_once(repo: Path) -> None:
    store, seen = Store.open(repo), list[tuple[Any, ...]]()
    with bus.attach(lambda e: seen.append((e.type, e.key, dict(e.data), e.meta["root"]))):
        trace_id = store.start_recording(name="n")
        bus.publish("a", meta={"root": str(repo)})
        trace = store.stop_recording(trace_id)
        store.save_trace(trace)
    seen = [each for each in seen if each[0].startswith("trace:")]
    assert seen == [
        ("trace:start", trace_id, {"name": "n", "event_count": 0}, str(repo)),
        ("trace:stop", trace_id, {"name": "n", "event_count": 1}, str(repo)),
        ("trace:saved", trace_id, {"name": "n", "event_count": 1}, str(repo)),
    ]


# ---------------------------------------------------------------- odd events


def recorded(store: Store, **event: Any) -> TraceEvent:
    trace_id = store.start_recording()
    bus.publish("odd:done", **event)
    trace = store.stop_recording(trace_id)
    store.save_trace(trace)
    [stored] = store.iter_trace_events(trace_id)
    assert stored == trace.events[0]
    return stored


class Hostile(dict[str, int]):
    def __iter__(self) -> Any:
        raise RuntimeError("never")

    def items(self) -> Any:
        raise RuntimeError("never")


class Shown:
    def __str__(self) -> str:
        return "shown"


class Silent:
    def __str__(self) -> str:
        raise RuntimeError("never")


LOOP: list[Any] = []
LOOP.append(LOOP)
ODD = {
    "nan": ({"x": float("nan")}, {"x": "[not JSON: nan]"}),
    "infinity": ({"x": [float("-inf")]}, {"x": ["[not JSON: -inf]"]}),
    "big integer": (
        {"x": 2**63, "y": 2**63 - 1},
        {"x": "[not JSON: int 0x8000000000000000]", "y": 2**63 - 1},
    ),
    "surrogate": ({"x": "a\ud800b"}, {"x": "a?b"}),
    "object": ({"x": object(), "y": Hostile}, {"x": "[not JSON: object]", "y": "[not JSON: type]"}),
    "hostile": ({"x": Hostile(a=1)}, {"not stored": "[not JSON: RuntimeError]"}),
    "time": (
        {"x": datetime(2026, 1, 2, tzinfo=UTC)},
        {"x": "[not JSON: datetime 2026-01-02T00:00:00.000000+00:00]"},
    ),
    "path": ({"x": Path("/a")}, {"x": "[not JSON: PosixPath /a]"}),
    "bytes": ({"x": b"abc"}, {"x": "[not JSON: 3 bytes]"}),
    "set and tuple": ({"x": {1}, "y": (1, 2)}, {"x": [1], "y": [1, 2]}),
    "keys": ({"x": {1: "a", "1": "b", None: "c"}}, {"x": {"1": "a", "1'": "b", "None": "c"}}),
    "no text": ({"target": 1, "status": ["x"], "a": True}, {"target": 1, "status": ["x"], "a": True}),
    "nothing": ({}, {}),
}


@pytest.mark.parametrize(("data", "detail"), ODD.values(), ids=ODD)
def test_what_is_no_json_does_not_lose_the_event(
    repo: Path, data: dict[str, Any], detail: dict[str, Any]
) -> None:
    event = recorded(Store.open(repo), key="k", data=data)
    assert (event.detail, event.target, event.result) == (detail, "k", "ok")


def test_a_hostile_field_loses_nothing_but_itself(repo: Path) -> None:
    class NoTruth:
        def __bool__(self) -> bool:
            raise RuntimeError("never")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("never")

        __hash__ = object.__hash__

    store = Store.open(repo)
    trace_id = store.start_recording()
    bus.publish("odd:ts", key="1", duration_s=NoTruth(), error=NoTruth())  # type: ignore[arg-type]
    bus.publish("odd:root", key="2", meta={"root": NoTruth()})
    bus.publish("odd:root", key="3", meta={"root": b"/nowhere"})
    bus.publish("after", key="4")
    assert targets(store.stop_recording(trace_id)) == ["1", "4"]


def test_any_number_of_types_and_results_takes_little_memory_and_can_be_saved(repo: Path) -> None:
    store = Store.open(repo)
    trace_id = store.start_recording()
    [recording] = recorder._recordings
    bus.publish("a\ud800:" + "x" * 100_000, data={"status": "b\ud800" + "y" * 100_000})
    for number in range(9000):
        bus.publish(f"t{number % 3}:x", data={"status": f"took {number} ms"})
    trace = store.stop_recording(trace_id)
    assert len(recording._tally.kinds) <= 4097
    assert trace.auto_summary == generate_summary(trace)
    assert trace.auto_summary.startswith("9001 events: 4905 other, 1365 t0, 1365 t1, 1365 t2, 1 a?; ")
    store.save_trace(trace)
    stored = store.get_trace(trace_id)
    assert stored is not None and stored.auto_summary == trace.auto_summary


def test_a_detail_that_holds_itself_is_cut(repo: Path) -> None:
    event = recorded(Store.open(repo), data={"x": LOOP})
    assert "[cut: nested too deeply]" in str(event.detail)
    assert event.model_extra == {"cut": True}


def test_big_details_are_cut_at_the_stated_limit_and_marked(repo: Path) -> None:
    store = Store.open(repo)
    fits = recorded(store, data={"x": "y" * (DETAIL_LIMIT - 100)})
    assert fits.detail == {"x": "y" * (DETAIL_LIMIT - 100)} and fits.model_extra == {}
    text = recorded(store, data={"x": "y" * (DETAIL_LIMIT + 1), "n": 1})
    assert text.detail["x"].endswith(f"y[cut: {DETAIL_LIMIT + 1} characters]") and text.detail["n"] == 1
    many = recorded(store, data={"x": list(range(100_000)), "y": 1})
    assert many.detail["x"][-1].endswith(" more]") and many.detail["cut"] == "[cut: 1 more]"
    for event in (text, many):
        assert event.model_extra == {"cut": True}
        assert len(json.dumps(event.detail)) < 2 * DETAIL_LIMIT


def test_other_fields_are_cleaned_as_well(repo: Path) -> None:
    store = Store.open(repo)
    event = recorded(store, key=7, error=ValueError("boom"), duration_s=float("nan"))
    assert (event.target, event.result, event.duration_ms, event.model_extra) == (
        "7",
        "failed",
        0,
        {"error": "boom"},
    )
    event = recorded(store, key=Silent(), error=Shown(), duration_s=-1)
    assert event.target == "[not JSON: Silent, RuntimeError]"
    assert event.model_extra == {"error": "shown"}
    event = recorded(store, key="the key", data={"target": "t" * 5000, "status": "skipped"}, error="")
    assert event.target == "t" * 4096 + "[cut: 5000 characters]"
    assert (event.result, event.model_extra) == ("skipped", {"key": "the key"})
    assert recorded(store, key="a\ud800").target == "a?"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters()) | st.integers() | st.none(), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@given(
    data=st.dictionaries(
        st.text(st.characters(), max_size=8) | st.sampled_from(["target", "status"]), ANYTHING
    ),
    key=st.text(st.characters()),
    error=st.none() | st.text(st.characters()),
    duration_s=st.none() | st.floats() | st.integers(),
)
def test_any_event_becomes_a_line_that_every_reader_takes(
    data: dict[str, Any], key: str, error: str | None, duration_s: float | None
) -> None:
    own = Bus(1)
    own.publish("any:x", key=key, data=data, error=error, duration_s=duration_s)
    line = b'{"seq":1,' + encode_event(own._ring[0]).body
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    record = load_object(line)
    event = TraceEvent.model_validate(record)
    assert (event.seq, event.type) == (1, "any:x")
    plain = {name: value for name, value in data.items() if name not in ("target", "status")}
    try:
        same = load_object(json.dumps(plain, ensure_ascii=False, allow_nan=False).encode())
        TraceEvent(type="x", detail=same)
    except (ValueError, TypeError):
        return
    if not any(isinstance(data.get(name), str | type(None)) is False for name in ("target", "status")):
        assert event.detail == same or "'" in str(event.detail)


# ---------------------------------------------------------------- on the disk meanwhile


def test_an_event_is_in_the_spool_within_100_ms(repo: Path) -> None:
    store = Store.open(repo)
    trace_id = store.start_recording(name="n", user="Bo", types=["a:*"])
    late = []
    for number in range(5):
        time.sleep(0.05)
        bus.publish("a:x", key=str(number))
        start = time.perf_counter()
        while spool_lines(repo, trace_id)[-1].get("target") != str(number):
            time.sleep(0.001)
        late.append(time.perf_counter() - start)
    assert sorted(late)[2] < 0.1
    header = spool_lines(repo, trace_id)[0]
    assert (header["spool"], header["trace_id"], header["name"], header["user"]) == (1, trace_id, "n", "Bo")
    assert header["types"] == ["a:*"]


def test_no_event_waits_for_the_next_one(repo: Path) -> None:
    """Each recording writes what it has, also when others encode for it."""
    store = Store.open(repo)
    ids = [store.start_recording() for _ in range(3)]
    for number in range(120):
        time.sleep(0.001 * (number % 30))
        bus.publish("a:x", key=str(number))
        if number % 10 == 9:
            deadline = time.monotonic() + 5
            while {spool_lines(repo, i)[-1].get("target") for i in ids} != {str(number)}:
                assert time.monotonic() < deadline
                time.sleep(0.002)


def test_a_returned_event_takes_at_most_2_kb(repo: Path) -> None:
    store = Store.open(repo)
    trace_id = store.start_recording()
    for number in range(5000):
        data = {"target": f"pod/{number}", "status": "ok", "n": number, "text": "some text here"}
        bus.publish("load:apply:done", key="x", data=data, duration_s=0.012)
    tracemalloc.start()
    try:
        trace = store.stop_recording(trace_id)
        size = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(trace.events) == 5000
    assert size / 5000 < 2000


def test_a_spool_stays_until_its_trace_is_stored(repo: Path) -> None:
    store = Store.open(repo)
    trace_id = store.start_recording()
    bus.publish("a")
    trace = store.stop_recording(trace_id)
    assert spool_lines(repo, trace_id)[-1] == {"stopped": trace.ended_at, "returned": 1}
    assert store.recover_recordings() == [], "it is alive: its process may still save it"
    assert spools(repo) == [f"{trace_id}.jsonl"]
    trace.events[0].detail = {"redacted": True}
    store.save_trace(trace)
    assert spools(repo) == []
    stored = store.get_trace(trace_id)
    assert stored is not None and stored.events[0].detail == {"redacted": True}


def test_a_recording_can_be_thrown_away(repo: Path) -> None:
    store = Store.open(repo)
    active, stopped = store.start_recording(), store.start_recording()
    trace = store.stop_recording(stopped)
    assert store.delete_trace(active) and store.delete_trace(stopped)
    assert not store.delete_trace(active)
    assert spools(repo) == store.active_recordings() == []
    with pytest.raises(NotFound):
        store.stop_recording(active)
    store.save_trace(trace)  # it was never stored, so its id was never deleted
    assert store.delete_trace(stopped)


def test_many_that_were_stopped_and_never_saved_do_not_use_up_descriptors(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "_KEPT_MAX", 3)
    store = Store.open(repo)
    before = len(os.listdir("/proc/self/fd"))
    ids = [store.start_recording(name=str(n)) for n in range(6)]
    for trace_id in ids:
        store.stop_recording(trace_id)
    assert len(os.listdir("/proc/self/fd")) - before < 6
    assert {t.name for t in store.recover_recordings()} == {"0", "1", "2"}
    assert spools(repo) == sorted(f"{trace_id}.jsonl" for trace_id in ids[3:])


# ---------------------------------------------------------------- more than is returned


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> int:
    """At most 10 events are returned, and parts are small."""
    monkeypatch.setattr(recording_module, "EVENTS_LIMIT", 10)
    for module in ("spool", "operations"):
        monkeypatch.setattr(f"scp_git.trace.{module}.MAX_PART_BYTES", 600)
    monkeypatch.setattr("scp_git.codec.MAX_PART_BYTES", 600)
    return 10


def test_the_rest_of_a_long_recording_is_streamed_from_the_spool(repo: Path, limited: int) -> None:
    store = Store.open(repo, OS)
    trace_id = store.start_recording()
    for number in range(35):
        bus.publish("a:x", key=str(number))
        if number == 20:
            store.record_run(Run(run_id="r", type="x"))
    trace = store.stop_recording(trace_id)
    assert (len(trace.events), trace.event_count) == (limited, 36)
    assert trace.auto_summary.startswith("36 events: 35 a, 1 ledger")
    trace.events[3].target = "redacted"
    del trace.events[5]
    store.save_trace(trace)
    events = list(store.iter_trace_events(trace_id))
    seen = [e.target for e in events]
    expected = [str(n) for n in range(21)] + ["r"] + [str(n) for n in range(21, 35)]
    expected[3] = "redacted"
    del expected[5]
    assert seen == expected, "what was taken out does not come back"
    assert [e.seq for e in events] == [n for n in range(1, 37) if n != 6]
    stored = store.get_trace(trace_id)
    assert stored is not None and stored.event_count == 35
    assert spools(repo) == []
    with pytest.raises(NotFound):
        store.save_trace(trace)


def test_a_caller_who_wants_less_gets_less(repo: Path, limited: int) -> None:
    store = Store.open(repo)
    trace_id = store.start_recording()
    for number in range(20):
        bus.publish("a:x", key=str(number))
    trace = store.stop_recording(trace_id)
    trace.event_count = len(trace.events)
    store.save_trace(trace)
    assert len(list(store.iter_trace_events(trace_id))) == limited


def test_a_spool_that_changed_meanwhile_is_refused(
    repo: Path, limited: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(repo)
    trace_id = store.start_recording()
    for number in range(30):
        bus.publish("a:x", key=str(number))
    trace = store.stop_recording(trace_id)
    path = repo / f".git/scp/recordings/{trace_id}.jsonl"
    good = path.read_bytes()
    prepare = type(store).prepared_trace

    def damaged(self: Store, trace: SessionTrace) -> Any:
        operation = prepare(self, trace)
        path.write_bytes(good.replace(b'"target":"25"', b'"target":"99"'))
        return operation

    monkeypatch.setattr(type(store), "prepared_trace", damaged)
    with pytest.raises(StorageFailed, match="changed"):
        store.save_trace(trace)
    monkeypatch.undo()
    assert store.list_traces() == []
    path.write_bytes(good)
    store.save_trace(trace)
    assert [e.target for e in store.iter_trace_events(trace_id)] == [str(n) for n in range(30)]


# ---------------------------------------------------------------- a disk that fails


@contextmanager
def refusing(monkeypatch: pytest.MonkeyPatch, error: int) -> Iterator[None]:
    """No spool takes anything, or only half of it."""

    def write(self: Any, data: bytes) -> int:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr("scp_git.trace.spool.SpoolFile.write", write)
        yield


def test_a_full_disk_loses_nothing_and_a_recording_goes_on(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_module, "STOP_TRIES_S", 0.3)
    store = Store.open(repo)
    trace_id = store.start_recording()
    bus.publish("a", key="1")
    with refusing(monkeypatch, 28):
        bus.publish("a", key="2")
        with pytest.raises(StorageFailed, match=r"which goes on.*No space left"):
            store.stop_recording(trace_id)
        bus.publish("a", key="3")
        assert [t.event_count for t in store.active_recordings()] != [0]
    trace = store.stop_recording(trace_id)
    assert targets(trace) == ["1", "2", "3"]


def test_a_disk_that_takes_half_of_each_write_loses_nothing(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = recording_module.SpoolFile.write
    monkeypatch.setattr(
        recording_module.SpoolFile, "write", lambda self, data: real(self, data[: len(data) // 2 + 1])
    )
    store = Store.open(repo)
    trace_id = store.start_recording()
    for number in range(1000):
        bus.publish("a", key=str(number))
    assert targets(store.stop_recording(trace_id)) == [str(n) for n in range(1000)]


def test_what_a_standing_disk_loses_is_counted_and_visible(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_module, "BUFFER_BYTES", 20_000)
    store = Store.open(repo)
    trace_id = store.start_recording()
    with refusing(monkeypatch, 5):
        for number in range(1000):
            bus.publish("a", key=str(number))
        deadline = time.monotonic() + 5
        while recorder._pending:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    time.sleep(0.5)
    bus.publish("b", key="after")
    trace = store.stop_recording(trace_id)
    *kept, gap, after = trace.events
    assert [e.target for e in kept] == [str(n) for n in range(len(kept))]
    assert 0 < len(kept) < 200
    assert (gap.type, gap.detail) == ("trace:gap", {"missed": 1000 - len(kept)})
    assert after.target == "after"
    assert [e.seq for e in trace.events] == list(range(1, trace.event_count + 1))
    assert "1 trace" in trace.auto_summary


def test_a_disk_that_stands_still_holds_up_no_other_recording(
    make_repo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = make_repo(), make_repo()
    stuck, free = threading.Event(), threading.Event()
    real = recording_module.SpoolFile.write

    def write(self: Any, data: bytes) -> int:
        if self.path.is_relative_to(one):
            stuck.set()
            free.wait(20)
        return real(self, data)

    monkeypatch.setattr(recording_module.SpoolFile, "write", write)
    first, second = Store.open(one).start_recording(), Store.open(two).start_recording()
    bus.publish("a", key="1")
    assert stuck.wait(5)
    for number in range(2, 100):
        bus.publish("a", key=str(number))
    assert targets(Store.open(two).stop_recording(second)) == [str(n) for n in range(1, 100)]
    free.set()
    assert targets(Store.open(one).stop_recording(first)) == [str(n) for n in range(1, 100)]


def test_a_recording_that_cannot_begin_says_so(repo: Path) -> None:
    (repo / ".git/scp").mkdir()
    (repo / ".git/scp/recordings").write_text("in the way")
    store = Store.open(repo)
    with pytest.raises(StorageFailed):
        store.start_recording()
    assert store.recover_recordings() == store.active_recordings() == []
    (repo / ".git/scp/recordings").unlink()


# ---------------------------------------------------------------- bursts and memory


def test_a_burst_without_a_pause_loses_nothing_and_is_bounded(repo: Path) -> None:
    store = Store.open(repo)
    trace_id = store.start_recording()
    highest = 0
    for number in range(60_000):
        bus.publish("a:x", data={"n": number})
        highest = max(highest, len(recorder._pending))
    trace = store.stop_recording(trace_id)
    assert trace.event_count == 60_000
    assert [e.detail["n"] for e in trace.events] == list(range(60_000))
    assert highest <= recorder_module._PENDING_EVENTS + 1


def test_big_events_are_not_piled_up(repo: Path) -> None:
    store = Store.open(repo)
    trace_id = store.start_recording()
    highest = 0
    for number in range(200):
        bus.publish("a:x", data={"n": number, "text": str(number) * 1_000_000})
        highest = max(highest, recorder._came - recorder._went)
    trace = store.stop_recording(trace_id)
    assert [e.detail["n"] for e in trace.events] == list(range(200))
    assert highest < 2 * recorder_module._PENDING_BYTES


# ---------------------------------------------------------------- loops, cancellation, forks


async def test_recording_works_on_every_loop_at_once(repo: Path) -> None:
    def on_asyncio() -> SessionTrace:
        async def main() -> SessionTrace:
            trace_id = await scp_git.start_recording(repo, types=["asyncio:*"])
            for number in range(100):
                bus.publish("asyncio:x", key=str(number))
                await asyncio.sleep(0)
            return await scp_git.stop_recording(trace_id)

        return asyncio.run(main())

    def on_trio() -> SessionTrace:
        async def main() -> SessionTrace:
            trace_id = await scp_git.start_recording(repo, types=["trio:*"])
            for number in range(100):
                bus.publish("trio:x", key=str(number))
                await trio.lowlevel.checkpoint()
            return await scp_git.stop_recording(trace_id)

        return trio.run(main)

    found: list[SessionTrace] = []

    async def work(job: Any) -> None:
        found.append(await anyio.to_thread.run_sync(job))

    async with anyio.create_task_group() as group:
        for job in (on_asyncio, on_trio, on_asyncio):
            group.start_soon(work, job)
    kinds = sorted(trace.auto_summary.split("; ")[0] for trace in found)
    assert "100 events: 100 trio" in kinds
    for trace in found:
        assert [e.seq for e in trace.events] == list(range(1, trace.event_count + 1))


async def test_a_recording_may_be_stopped_on_another_loop_than_it_was_started(repo: Path) -> None:
    trace_id = await scp_git.start_recording(repo)
    bus.publish("a", key="1")
    trace = await anyio.to_thread.run_sync(lambda: trio.run(scp_git.stop_recording, trace_id))
    assert targets(trace) == ["1"]


async def test_record_saves_at_the_end(repo: Path) -> None:
    async with scp_git.record(repo, name="deploy", types=["a:*"], post=True) as recording:
        bus.publish("a:x", key="1")
        assert recording.trace is None
        assert [t.trace_id for t in await scp_git.active_recordings(repo)] == [recording.trace_id]
    assert recording.trace is not None and recording.trace.event_count == 1
    stored = await scp_git.get_trace(repo, recording.trace_id)
    assert stored is not None and targets(stored) == ["1"] and stored.name == "deploy"
    [message] = await scp_git.list_messages(repo)
    assert f"@trace:{recording.trace_id}" in message.text
    assert spools(repo) == []


def test_record_is_there_without_a_loop(repo: Path) -> None:
    store = Store.open(repo)
    with suppress(KeyError), store.record(name="n") as recording:
        bus.publish("a:x", key="1")
        raise KeyError
    stored = store.get_trace(recording.trace_id)
    assert stored is not None and targets(stored) == ["1"]


async def test_record_saves_when_the_block_raises(repo: Path) -> None:
    raised = False
    try:
        async with scp_git.record(repo) as recording:
            bus.publish("a:x", key="1")
            raise KeyError
    except KeyError:
        raised = True
    assert raised
    stored = await scp_git.get_trace(repo, recording.trace_id)
    assert stored is not None and targets(stored) == ["1"]


async def test_record_saves_when_the_block_is_cancelled(repo: Path) -> None:
    with anyio.CancelScope() as scope:
        async with scp_git.record(repo, post=True) as recording:
            bus.publish("a:x", key="1")
            scope.cancel()
            await anyio.sleep(10)
    assert scope.cancelled_caught
    await scp_git.flush(repo)
    stored = await scp_git.get_trace(repo, recording.trace_id)
    assert stored is not None and targets(stored) == ["1"]
    assert len(await scp_git.list_messages(repo)) == 1
    assert spools(repo) == []


async def test_record_breaks_no_block(tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scp_git.record(tmp_path, name="n") as recording:
        assert recording.name == "n"
    assert recording.trace is None
    (repo / ".git/scp").mkdir(exist_ok=True)
    (repo / ".git/scp/recordings").write_text("in the way")
    async with scp_git.record(repo) as recording:
        pass
    assert recording.trace is None
    (repo / ".git/scp/recordings").unlink()
    errors: list[str] = []
    with bus.attach(lambda e: errors.append(e.data["operation"]) if e.type == "scp:error" else None):
        async with scp_git.record(repo, post=True, thread_id="thread_none") as recording:
            bus.publish("a:x", key="1")
    assert (recording.trace, errors) == (None, ["record"])
    [recovered] = await scp_git.recover_recordings(repo)
    assert (recovered.trace_id, targets(recovered)) == (recording.trace_id, ["1"])
    with pytest.raises(InvalidId):
        await scp_git.record(repo, thread_id="../x").__aenter__()


def test_a_cancelled_start_leaves_nothing(repo: Path) -> None:
    async def main() -> None:
        async with open_store(repo, OS) as store:
            for number in range(60):
                task = asyncio.create_task(store.start_recording())
                await asyncio.sleep(number * 0.0002)
                task.cancel()
                try:
                    trace_id = await task
                except asyncio.CancelledError:
                    continue
                await store.delete_trace(trace_id)

    asyncio.run(main())
    deadline = time.monotonic() + 5
    while recorder._started or spools(repo):
        assert time.monotonic() < deadline, (recorder._started, spools(repo))
        time.sleep(0.01)


def test_a_cancelled_stop_may_be_repeated(repo: Path) -> None:
    async def main() -> None:
        async with open_store(repo, OS) as store:
            for number in range(40):
                trace_id = await store.start_recording()
                bus.publish("a", key=str(number))
                task = asyncio.create_task(store.stop_recording(trace_id))
                await asyncio.sleep(number * 0.0005)
                task.cancel()
                try:
                    trace = await task
                except asyncio.CancelledError:
                    trace = await store.stop_recording(trace_id)
                assert targets(trace) == [str(number)]
                with pytest.raises(NotFound):
                    await store.stop_recording(trace_id)
                await store.delete_trace(trace_id)

    asyncio.run(main())


def test_a_cancelled_record_is_saved_once_at_any_moment(repo: Path) -> None:
    ids = []

    async def session(store: Any) -> None:
        async with store.record() as recording:
            ids.append(recording.trace_id)
            bus.publish("a", key=recording.trace_id, meta={"root": str(repo)})

    async def main() -> None:
        async with open_store(repo, OS) as store:
            for number in range(40):
                task = asyncio.create_task(session(store))
                await asyncio.sleep(number * 0.001)
                task.cancel()
                await asyncio.wait([task])
            await store.flush()

    asyncio.run(main())
    store = Store.open(repo)
    store.flush()
    assert {t.trace_id for t in store.list_traces(n=100)} == set(ids)
    assert len(ids) > 10
    for trace_id in ids:
        assert trace_id in [e.target for e in store.iter_trace_events(trace_id)]


def test_a_forked_child_records_nothing_of_its_parents_and_may_record_itself(repo: Path) -> None:
    store = Store.open(repo, OS)
    trace_id = store.start_recording(name="parent")
    bus.publish("a", key="before")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            bus.publish("a", key="child")
            open_spools = [fd for fd in os.listdir("/proc/self/fd") if "recordings" in _link(fd)]
            try:
                store.stop_recording(trace_id)
                said = "stopped"
            except NotFound:
                said = "unknown"
            own = store.start_recording(name="child")
            bus.publish("a", key="own")
            trace = store.stop_recording(own)
            store.save_trace(trace)
            left = [t.name for t in store.recover_recordings()]
            os.write(write, json.dumps([open_spools, said, targets(trace), left]).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as file:
        said = json.load(file)
    os.waitpid(child, 0)
    assert said == [[], "unknown", ["own"], []]
    bus.publish("a", key="after")
    trace = store.stop_recording(trace_id)
    assert targets(trace) == ["before", "after"]
    store.save_trace(trace)
    assert {t.name for t in store.list_traces()} == {"parent", "child"}


def _link(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def test_a_child_that_lives_on_does_not_keep_its_parents_recording_alive(repo: Path) -> None:
    store = Store.open(repo, OS)
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        trace_id = store.start_recording(name="parent")
        bus.publish("a", key="1")
        time.sleep(0.2)
        if os.fork() == 0:
            os.close(write)
            time.sleep(30)
            os._exit(0)
        os.write(write, trace_id.encode())
        os.kill(os.getpid(), 9)
    os.close(write)
    with open(read) as file:
        trace_id = file.read()
    os.waitpid(parent, 0)
    [trace] = store.recover_recordings()
    assert (trace.trace_id, trace.name, targets(trace), trace.ended_at) == (trace_id, "parent", ["1"], None)
    assert trace.auto_summary == "1 event: 1 a"


def test_nothing_is_held_when_nothing_is_recorded(repo: Path) -> None:
    store = Store.open(repo)
    for _ in range(5):
        trace_id = store.start_recording()
        bus.publish("a")
        store.save_trace(store.stop_recording(trace_id))
    store.flush()
    gc.collect()
    assert not recorder._pending and not recorder._asleep and not recorder._kept
    assert pygit2.Repository(repo).status() == {".gitignore": pygit2.enums.FileStatus.WT_NEW}


# ---------------------------------------------------------------- kinds of repositories


def test_bare_repositories_and_linked_worktrees_are_recorded_as_well(
    make_repo: Any, tmp_path: Path, watch: Any
) -> None:
    bare, main = make_repo(bare=True), make_repo()
    pygit2.Repository(main).add_worktree("linked", str(tmp_path / "linked"))
    watch(tmp_path / "linked")
    linked = tmp_path / "linked"
    for root, folder in ((bare, bare), (linked, main / ".git")):
        store = Store.open(root, OS)
        trace_id = store.start_recording()
        bus.publish("a", key="root", meta={"root": str(root)})
        bus.publish("a", key="main", meta={"root": str(main)})
        assert os.listdir(folder / "scp/recordings") == [f"{trace_id}.jsonl"]
        assert [t.trace_id for t in store.active_recordings()] == [trace_id]
        trace = store.stop_recording(trace_id)
        assert targets(trace) == ["root"]
        store.save_trace(trace)
        assert store.get_trace(trace_id) == trace
    assert [t.trace_id for t in Store.open(main).list_traces()] == [trace_id]


def test_a_fresh_repository_without_a_commit_is_recorded_as_well(make_repo: Any) -> None:
    store = Store.open(make_repo(commits=0), OS)
    with store.record() as recording:
        bus.publish("a", key="1")
    assert recording.trace is not None and recording.trace.code_ref == ""


# ---------------------------------------------------------------- cancelled saves


def test_a_cancelled_save_stores_all_or_nothing(repo: Path) -> None:
    made = [SessionTrace(events=[TraceEvent(type="a")] * 50) for _ in range(40)]
    unsure = []

    async def main() -> None:
        async with open_store(repo, OS) as store:
            for number, trace in enumerate(made):
                task = asyncio.create_task(store.save_trace(trace, post=True))
                await asyncio.sleep(number * 0.0004)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                    continue
                unsure.append(trace.trace_id)
            await store.flush()

    asyncio.run(main())
    store = Store.open(repo, OS)
    stored = {t.trace_id: t.event_count for t in store.list_traces(n=100)}
    posts = "\n".join(m.text for m in store.list_messages(n=100))
    for trace in made:
        assert trace.trace_id in stored or trace.trace_id in unsure
        assert (trace.trace_id in stored) == (f"@trace:{trace.trace_id}\n" in f"{posts}\n")
    assert set(stored.values()) == {50}
    for trace in made:  # repeated, it is stored and posted once
        store.save_trace(trace, post=True)
    assert len(store.list_traces(n=100)) == len(store.list_messages(n=100)) == 40
