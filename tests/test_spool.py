"""Spools: whatever is in one, recovering gives its whole lines, numbered, and gaps for the others."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scp_git
from scp_git import AlreadyExists, SessionTrace, Settings, Store, TraceEvent, bus
from scp_git.codec import load_lines
from scp_git.trace.spool import SpoolFile, event_parts, read_header, read_lines

TOP = Path(__file__).parents[1]
OS = Settings(durability="os")
HEADER = {
    "spool": 1,
    "trace_id": "t",
    "name": "n",
    "started_at": "2026-02-17T20:45:00.000000+00:00",
    "types": [],
}


@pytest.fixture
def store(repo: Path) -> Store:
    return Store.open(repo, OS)


def line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def event(number: int, target: str = "") -> bytes:
    fields = {
        "seq": number,
        "ts": "2026-02-17T20:45:01.000000+00:00",
        "type": "a:x",
        "target": target or f"{number}",
    }
    return line({**fields, "result": "ok", "duration_ms": 1, "detail": {}})


def leave(store: Store, *lines: bytes, name: str = "t") -> Path:
    """A spool as a dead process left it."""
    folder = store.root / ".git/scp/recordings"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def recovered(store: Store) -> SessionTrace:
    [trace] = store.recover_recordings()
    assert [each.seq for each in trace.events] == list(range(1, trace.event_count + 1))
    assert store.get_trace(trace.trace_id) == trace
    assert store.recover_recordings() == []
    assert os.listdir(store.root / ".git/scp/recordings") == []
    return trace


def shown(trace: SessionTrace) -> list[str]:
    return [
        each.target if each.type != "trace:gap" else f"gap {each.detail['missed']}" for each in trace.events
    ]


# ---------------------------------------------------------------- damage


def test_an_intact_spool_is_recovered_whole(store: Store) -> None:
    leave(store, line(HEADER), event(1), line({"run": "r1"}), event(2), line({"run": "r1"}))
    trace = recovered(store)
    assert shown(trace) == ["1", "2"]
    assert (trace.name, trace.started_at, trace.audit_refs) == ("n", HEADER["started_at"], ["r1"])
    assert (trace.ended_at, trace.auto_summary) == (None, "2 events: 2 a; 2 ok; 1 ms")


def test_one_that_was_stopped_and_never_saved_knows_its_end(store: Store) -> None:
    ended = "2026-02-17T20:46:00.000000+00:00"
    leave(store, line(HEADER), event(1), line({"stopped": ended, "returned": 1}))
    assert recovered(store).ended_at == ended


DAMAGE = {
    "a torn last line": ([line(HEADER), event(1), event(2)[:-9]], ["1"]),
    "a line without its newline": ([line(HEADER), event(1), event(2)[:-1]], ["1"]),
    "a broken line": ([line(HEADER), event(1), b'{"seq":2,"ty\n', event(3)], ["1", "gap 1", "3"]),
    "zeros": ([line(HEADER), event(1), bytes(5000) + b"\n", event(3)], ["1", "gap 1", "3"]),
    "two lines in one": ([line(HEADER), event(1)[:-1] + event(2), event(3), event(4)], ["gap 1", "3", "4"]),
    "a line missing": ([line(HEADER), event(1), event(3), event(4)], ["1", "3", "4"]),
    "a line twice": ([line(HEADER), event(1), event(1), event(2)], ["1", "1", "2"]),
    "blank lines": ([line(HEADER), b"\n", event(1), b" \r\n", event(2)], ["1", "2"]),
    "no type": ([line(HEADER), event(1), line({"seq": 2}), event(3)], ["1", "gap 1", "3"]),
    "a wrong field": ([line(HEADER), line({"seq": 1, "type": 7}), event(2)], ["gap 1", "2"]),
    "another order": ([line(HEADER), line({"type": "a", "seq": 1}), event(2)], ["gap 1", "2"]),
    "a huge line": ([line(HEADER), event(1), b"x" * 9_000_000 + b"\n", event(3)], ["1", "gap 1", "3"]),
    "no event at all": ([line(HEADER)], []),
    "a broken header": ([line(HEADER)[5:], event(1)], ["gap 1", "1"]),
    "an odd header": ([line({"spool": 1, "name": 7, "started_at": "x"}), event(1)], ["1"]),
}


@pytest.mark.parametrize(("lines", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_damage_hides_nothing_and_is_visible(store: Store, lines: list[bytes], expected: list[str]) -> None:
    leave(store, *lines)
    trace = recovered(store)
    assert shown(trace) == expected
    assert trace.trace_id == "t"


@pytest.mark.parametrize("lines", [[], [b"\n"], [line(HEADER)[:-1]]])
def test_one_that_holds_nothing_is_removed(store: Store, lines: list[bytes]) -> None:
    leave(store, *lines)
    assert store.recover_recordings() == []
    assert os.listdir(store.root / ".git/scp/recordings") == []


def test_what_is_no_spool_is_left_alone(store: Store) -> None:
    for name in ("../../x", ".hidden", "a b", "notes"):
        path = leave(store, event(1), name="t").with_name(f"{name.replace('/', '_')}.txt")
        path.write_bytes(b"mine")
    (store.root / ".git/scp/recordings/t.jsonl").rename(store.root / ".git/scp/recordings/a b.jsonl")
    assert store.recover_recordings() == []
    assert len(os.listdir(store.root / ".git/scp/recordings")) == 5
    shutil.rmtree(store.root / ".git/scp/recordings")


# ---------------------------------------------------------------- saved, deleted, alive


def test_what_was_saved_before_its_process_died_is_not_saved_again(store: Store) -> None:
    store.save_trace(SessionTrace(trace_id="t", events=[TraceEvent(type="redacted")]))
    leave(store, line(HEADER), event(1))
    assert store.recover_recordings() == []
    assert [each.type for each in store.iter_trace_events("t")] == ["redacted"]
    assert os.listdir(store.root / ".git/scp/recordings") == []


def test_what_was_deleted_does_not_come_back(store: Store) -> None:
    store.save_trace(SessionTrace(trace_id="t"))
    store.delete_trace("t")
    leave(store, line(HEADER), event(1))
    assert store.recover_recordings() == []
    assert store.list_traces() == []
    with pytest.raises(AlreadyExists):
        store.save_trace(SessionTrace(trace_id="t"))


def test_what_a_dead_process_left_can_be_thrown_away(store: Store) -> None:
    leave(store, line(HEADER), event(1))
    assert store.delete_trace("t")
    assert store.recover_recordings() == store.list_traces() == []


def test_one_is_alive_while_its_lock_is_held_whoever_holds_it(store: Store) -> None:
    path = leave(store, line(HEADER), event(1))
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert store.recover_recordings() == []
        assert not store.delete_trace("t")
        assert path.exists()
    assert shown(recovered(store)) == ["1"]


def test_two_that_recover_at_once_save_it_once(store: Store) -> None:
    for number in range(8):
        leave(store, line(HEADER), event(1), name=f"t{number}")
    code = "import sys, scp_git; print(len(scp_git.Store.open(sys.argv[1]).recover_recordings()))"
    environment = os.environ | {"PYTHONPATH": str(Path(scp_git.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(store.root)]
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    assert sum(int(run.communicate()[0]) for run in runs) == 8
    assert len(store.list_traces(n=100)) == 8
    assert os.listdir(store.root / ".git/scp/recordings") == []


def test_several_bring_at_most_so_many_events_along_as_one_would(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scp_git.store.recordings.EVENTS_LIMIT", 3)
    for name in ("t1", "t2", "t3"):
        leave(store, line(HEADER), event(1), event(2), name=name)
    found = store.recover_recordings()
    assert [(len(trace.events), trace.event_count) for trace in found] == [(2, 2), (1, 2), (0, 2)]
    assert len(list(store.iter_trace_events("t3"))) == 2


def test_what_cannot_be_saved_now_is_saved_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(store, line(HEADER), event(1))

    def refuse(*_: object) -> None:
        raise scp_git.StorageFailed("writing", "no room")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_wait", refuse)
        with pytest.raises(scp_git.StorageFailed):
            store.recover_recordings()
    assert shown(recovered(store)) == ["1"]


def test_a_spool_that_vanishes_while_it_is_looked_for_is_no_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leave(store, line(HEADER), event(1))
    real = SpoolFile.take

    def vanish(cls: type[SpoolFile], path: Path) -> SpoolFile | None:
        path.unlink(missing_ok=True)
        return real(path)

    monkeypatch.setattr(SpoolFile, "take", classmethod(vanish))
    assert store.recover_recordings() == []
    assert not path.exists()


def test_a_process_that_ends_leaves_all_that_was_published(repo: Path) -> None:
    code = """
import sys
from scp_git import Store, bus
trace_id = Store.open(sys.argv[1]).start_recording(name="ends")
for number in range(5000):
    bus.publish("a:x", key=str(number))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(scp_git.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code, str(repo)], env=environment, check=True)
    [trace] = Store.open(repo, OS).recover_recordings()
    assert [each.target for each in trace.events] == [str(n) for n in range(5000)]


def test_a_full_disk_stops_no_process_and_loses_only_what_was_never_written(repo: Path) -> None:
    code = """
import resource, signal, sys, time
from scp_git import Store, StorageFailed, bus
from scp_git.trace import recording
recording.STOP_TRIES_S = 0.2
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store.open(sys.argv[1])
trace_id = store.start_recording()
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
for number in range(1000):
    bus.publish("a:x", key=str(number))
try:
    store.stop_recording(trace_id)
except StorageFailed as exc:
    print(exc.errno)
time.sleep(0.5)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
trace = store.stop_recording(trace_id)
print([event.target for event in trace.events] == [str(n) for n in range(1000)])
"""
    environment = os.environ | {"PYTHONPATH": str(Path(scp_git.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(repo)], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "27\nTrue\n", done.stderr


# ---------------------------------------------------------------- the format, by properties


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


JUNK = st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"") + b"\n")
EVENTS = st.integers(0, 50).map(event)
LINES = st.lists(st.one_of(EVENTS, EVENTS, JUNK, st.just(line({"run": "r"})), st.just(b"\n")), max_size=30)


@given(LINES, st.binary(max_size=20), st.integers(300, 3000))
@settings(max_examples=60)
def test_parts_are_the_events_in_order_and_read_the_same_again(
    folder: Path, lines: list[bytes], torn: bytes, part_bytes: int
) -> None:
    path = folder / "t.jsonl"
    path.write_bytes(b"".join([line(HEADER), *lines, torn.replace(b"\n", b"")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scp_git.trace.spool.MAX_PART_BYTES", part_bytes)
        seen: list[dict[str, Any]] = []
        parts = list(event_parts(path, checked=True, seen=seen.append))
        data = [part.read() for part in parts]
    assert all(len(each) <= part_bytes for each in data)
    records = [record for each in data for record in load_lines(each)]
    assert [record["seq"] for record in records if record] == list(range(1, len(records) + 1))
    assert sum(part.count for part in parts) == len(records)
    sound = [json.loads(each)["target"] for each in lines if each.startswith(b'{"seq":') and each in VALID]
    assert [record["target"] for record in records if record and record["type"] == "a:x"] == sound
    assert sum("seq" in record for record in seen) == len(records)


VALID = {event(number) for number in range(51)}


@given(
    st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")), max_size=20),
    st.binary(max_size=9),
)
@settings(max_examples=60)
def test_lines_and_their_offsets_are_those_of_the_file(folder: Path, lines: list[bytes], torn: bytes) -> None:
    path = folder / "lines.jsonl"
    data = b"".join(each + b"\n" for each in lines)
    path.write_bytes(data + torn.replace(b"\n", b""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scp_git.trace.spool._BLOCK", 7)
        found = list(read_lines(path))
        assert [each for _, each in found] == [each + b"\n" for each in lines]
        for offset, each in found:
            assert data[offset : offset + len(each)] == each
            assert list(read_lines(path, offset, offset + len(each))) == [(offset, each)]


def test_the_header_is_the_first_line_or_there_is_none(store: Store) -> None:
    assert read_header(leave(store, line(HEADER), event(1))) == HEADER
    for lines in ([], [event(1)], [line({"spool": 2})], [line([])], [b"x\n"]):
        assert read_header(leave(store, *lines)) is None


def test_memory_stays_flat_however_long_a_recording_is(make_repo: Callable[..., Path]) -> None:
    code = """
import sys
import scp_git.store.recordings as module
from scp_git import Settings, Store
from tests.sight import peak_memory_mb
module.EVENTS_LIMIT = 10
[trace] = Store.open(sys.argv[1], Settings(durability="os")).recover_recordings()
print(trace.event_count, peak_memory_mb())
"""

    def peak(count: int) -> int:
        store = Store.open(make_repo(), OS)
        with leave(store, line(HEADER)).open("ab") as file:
            for number in range(1, count + 1):
                file.write(event(number, f"{number}{'p' * 400}"))
        done = subprocess.run(
            [sys.executable, "-c", code, str(store.root)], cwd=TOP, capture_output=True, text=True
        )
        assert done.stderr == ""
        found, mebibytes = map(int, done.stdout.split())
        assert found == count
        return mebibytes

    short, long = peak(6_000), peak(60_000)
    assert long < short + 12, f"a spool of 3 MB took {short} MiB, one of 32 MB {long} MiB"
    bus.publish("nobody:listens")
