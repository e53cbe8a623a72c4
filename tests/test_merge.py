"""Merging two states: the same whoever merges and in which order, nothing lost, and deletions win."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from scp_git.codec import dump_lines, dump_pretty, tag_message
from scp_git.git.anchors import find_run, run_tag
from scp_git.git.deletions import message_digest, tag_under
from scp_git.git.lines import merge_events, merge_messages
from scp_git.git.merge import merge_states
from scp_git.git.mergereport import MergeReport
from scp_git.git.notes import list_notes, note_target, read_note, write_note
from scp_git.git.objects import TAG, Anchor, Kind, ObjectStore, hash_object
from scp_git.git.tree import TreeEditor, raw_mode
from scp_git.ids import is_valid_id
from scp_git.layout import (
    archived_run_dir,
    deleted_path,
    is_part,
    messages_part,
    run_chat_dir,
    run_dir,
)

Json = dict[str, Any]
Ids = tuple[str, str, str]
"""The trees of ledger, archive and notes: what a state is."""


class NoObjects:
    def read(self, oid: str, *, limit: int | None = None) -> tuple[Kind, bytes] | None:
        return None

    def kind(self, oid: str) -> Kind | None:
        return None


STORE = ObjectStore(NoObjects())


class State:
    """Three trees to be edited."""

    def __init__(self, ids: Ids | None = None) -> None:
        self.ledger, self.archive, self.notes = (TreeEditor(STORE, oid) for oid in ids or (None, None, None))

    def ids(self) -> Ids:
        return self.ledger.write(), self.archive.write(), self.notes.write()


def merge(ours: Ids, theirs: Ids) -> Ids:
    return merged(ours, theirs)[0]


def merged(ours: Ids, theirs: Ids) -> tuple[Ids, MergeReport]:
    mine, their = State(ours), State(theirs)
    report = merge_states(mine, their)
    assert their.ids() == theirs, "the other side is only read"
    return mine.ids(), report


# ---------------------------------------------------------------- what a state is made of

RUN_IDS = ("run_2026-02-17T204500_apply_ab12", "r2")
TARGETS = ("a" * 40, "b" * 40)
MESSAGES = ("msg_1", "msg_2", "msg_3")
TIMES = {id: f"2026-02-17T20:45:0{id[-1]}.000000+00:00" for id in MESSAGES}
THREADS = ("general", "thread_1")
TRACES = ("trace_1",)
EVENTS = [{"seq": n % 3, "ts": "t", "type": "x", "target": str(n)} for n in range(4)]
Version = tuple[int, bool, str]


@dataclass(frozen=True)
class RunCopy:
    """One run as one side has it."""

    run_id: str
    content: int = 0
    """Two copies with other content are two runs that happen to have one id."""
    anchor: int | None = None
    events: frozenset[int] = frozenset()
    archived: bool = False
    extra: str = ""

    def record(self) -> Json:
        started = ("2026-02-17T20:45:00.000000+00:00", "2026-02-17T20:44:00.000000+00:00")[self.content % 2]
        return {
            "run_id": self.run_id,
            "type": "apply",
            "started_at": started,
            "duration_ms": 1.50,
            "summary": f"content {self.content}",
            "future": {"field": None},
        }

    def anchored(self) -> Anchor | None:
        return None if self.anchor is None else Anchor(TARGETS[self.anchor], "Ada <a@b> 1700000000 +0000")

    def tag(self) -> str | None:
        anchor = self.anchored()
        return hash_object(TAG, run_tag(self.run_id, self.record(), anchor)) if anchor else None

    def tags(self) -> set[str]:
        """Under each of the ids that it may have."""
        found = (
            tag_under({**self.record(), **anchor}, id) for id in self.ids() for anchor in self._anchors()
        )
        return {tag for tag in found if tag}

    def _anchors(self) -> list[Json]:
        anchor = self.anchored()
        return [{"anchor": anchor.to_json()}] if anchor else []

    def folder(self) -> str:
        return archived_run_dir(self.run_id) if self.archived else run_dir(self.run_id)

    def ids(self) -> set[str]:
        """The ids that it may have after a merge."""
        digest = hashlib.sha1(tag_message(self.record()).encode()).hexdigest()[:8]
        return {self.run_id, f"{self.run_id[:119]}-{digest}"}


def message(id: str, version: Version) -> Json:
    rev, encrypted, text = version
    changed = {"rev": rev} if rev else {}
    return {"id": id, "ts": TIMES[id], "text": text, "flags": {"encrypted": encrypted}, **changed}


def message_lines(messages: dict[str, Version]) -> bytes:
    return merge_messages([dump_lines(message(id, version) for id, version in messages.items())])


Messages = dict[str, Version]


@dataclass
class Side:
    """What one clone holds, in words of the model."""

    runs: list[RunCopy] = field(default_factory=list)
    notes: dict[str, Messages] = field(default_factory=dict)
    """Run id to the messages in the note on its tag."""
    run_chat: dict[str, Messages] = field(default_factory=dict)
    threads: dict[str, tuple[int, str, Messages]] = field(default_factory=dict)
    traces: dict[str, tuple[int, str, frozenset[int]]] = field(default_factory=dict)
    splits: dict[str, frozenset[str]] = field(default_factory=dict)
    """Thread or run id to the messages that begin a part, whether or not they are still there."""
    own: dict[str, str] = field(default_factory=dict)
    deleted: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    """Kind and id to when and by whom."""
    knowing: bool = True
    """Whether the record of a deleted run names all tags that there ever were."""

    def is_deleted(self, kind: str, id: str) -> bool:
        return (kind, id) in self.deleted

    def contents(self, run_id: str) -> set[int]:
        """What a deletion of this id by this side took."""
        return {run.content for run in self.runs if run.run_id == run_id} or {0}

    def kept(self, messages: Messages) -> Messages:
        return {id: version for id, version in messages.items() if not self.is_deleted("message", id)}

    def present(self) -> list[RunCopy]:
        return [run for run in self.runs if not self.is_deleted("run", run.run_id)]

    def ids(self) -> Ids:
        state = State()
        state.ledger.put("FORMAT", b"1\n")
        for run in self.present():
            self._put_run(state, run)
        for run_id, messages in self.run_chat.items():
            # Chat follows its run when that gets another id, so it is only where the run is.
            if not self.is_deleted("run", run_id) and run_id in {run.run_id for run in self.present()}:
                self._put_messages(state, run_chat_dir(run_id), run_id, messages)
        for id, (rev, title, messages) in self.threads.items():
            if not self.is_deleted("thread", id):
                record = {"thread_id": id, "title": title, **({"rev": rev} if rev else {})}
                state.ledger.put(f"chat/threads/{id}/thread.json", dump_pretty(record))
                self._put_messages(state, f"chat/threads/{id}", id, messages)
        for id, (rev, name, events) in self.traces.items():
            if not self.is_deleted("trace", id):
                state.ledger.put(f"ledger/traces/{id}/trace.json", dump_pretty({"name": name, "rev": rev}))
                put_events(state.ledger, f"ledger/traces/{id}", events)
        for path, text in self.own.items():
            state.ledger.put(path, text.encode())
        for (kind, id), (ts, user) in self.deleted.items():
            record: Json = {"id": id, "ts": ts, "user": user}
            if kind == "run":
                gone = [RunCopy(id, content=content) for content in self.contents(id)]
                known = [replace(run, anchor=n) for run in gone for n in range(2)]
                copies = known if self.knowing else [run for run in self.runs if run.run_id == id]
                record["tags"] = sorted({tag for run in copies for tag in run.tags()})
                record["digests"] = sorted(message_digest(tag_message(run.record())) for run in gone)
            state.archive.put("FORMAT", b"1\n")
            state.archive.put(deleted_path(kind, id), dump_pretty(record))
        return state.ids()

    def _put_run(self, state: State, run: RunCopy) -> None:
        editor = state.archive if run.archived else state.ledger
        anchor, tag = run.anchored(), run.tag()
        record = {**run.record(), **({"anchor": anchor.to_json()} if anchor else {})}
        if run.archived:
            editor.put("FORMAT", b"1\n")
        editor.put(f"{run.folder()}/run.json", dump_pretty(record))
        put_events(editor, run.folder(), run.events)
        if run.extra:
            editor.put(f"{run.folder()}/extra.txt", run.extra.encode())
        if tag and run.run_id in self.notes:
            sealed = self.run_chat.get(run.run_id, {})
            noted = {id: version for id, version in self.notes[run.run_id].items() if id not in sealed}
            lines = message_lines(self.kept(noted))
            if lines:
                write_note(state.notes, tag, lines)

    def _put_messages(self, state: State, folder: str, id: str, messages: Messages) -> None:
        """Each message in the part that begins last before it; those that begin one are there for ever."""
        kept, starts = self.kept(messages), sorted(self.splits.get(id, ()))
        for first, end in zip(["", *starts], [*starts, "~"], strict=True):
            lines = message_lines({each: kept[each] for each in kept if first <= each < end})
            if lines or first:
                name = messages_part(TIMES[first], first) if first else "messages.jsonl"
                state.ledger.put(f"{folder}/{name}", lines)


def put_events(editor: TreeEditor, folder: str, events: frozenset[int]) -> None:
    if events:
        lines = merge_events([dump_lines(EVENTS[n] for n in events)])
        editor.put(f"{folder}/events.jsonl", b"".join(lines))


# ---------------------------------------------------------------- making states up

VERSIONS = st.tuples(st.integers(0, 2), st.booleans(), st.sampled_from(["hi", "ho"]))
SOME = st.dictionaries(st.sampled_from(MESSAGES), VERSIONS, max_size=2)
SPLITS = st.frozensets(st.sampled_from(MESSAGES), max_size=2)
EVENT_SETS = st.frozensets(st.integers(0, 3), max_size=3)


def runs(contents: int, anchors: int, extras: list[str]) -> st.SearchStrategy[list[RunCopy]]:
    copies = st.builds(
        RunCopy,
        st.sampled_from(RUN_IDS),
        content=st.integers(0, contents - 1),
        anchor=st.none() | st.integers(0, anchors - 1),
        events=EVENT_SETS,
        archived=st.booleans(),
        extra=st.sampled_from(extras),
    )
    return st.lists(copies, max_size=2, unique_by=lambda run: run.run_id)


def deletions(kinds: dict[str, tuple[str, ...]]) -> st.SearchStrategy[dict[tuple[str, str], tuple[str, str]]]:
    keys = [(kind, id) for kind, ids in kinds.items() for id in ids]
    when = st.tuples(st.sampled_from(["t1", "t2"]), st.sampled_from(["Ada", "Bob"]))
    return st.dictionaries(st.sampled_from(keys), when, max_size=2) if keys else st.just({})


def sides(
    contents: int = 1,
    anchors: int = 2,
    knowing: bool = True,
    extras: list[str] | None = None,
    deletable: tuple[str, ...] = ("run", "thread", "trace", "message"),
) -> st.SearchStrategy[Side]:
    kinds = {"run": RUN_IDS, "thread": THREADS[1:], "trace": TRACES, "message": MESSAGES[:2]}
    return st.builds(
        Side,
        runs=runs(contents, anchors, extras or [""]),
        knowing=st.just(knowing),
        notes=st.dictionaries(st.sampled_from(RUN_IDS), SOME, max_size=2),
        run_chat=st.dictionaries(st.sampled_from(RUN_IDS), SOME, max_size=1),
        threads=st.dictionaries(
            st.sampled_from(THREADS), st.tuples(st.integers(0, 2), st.sampled_from("AB"), SOME), max_size=2
        ),
        traces=st.dictionaries(
            st.sampled_from(TRACES),
            st.tuples(st.integers(0, 1), st.sampled_from("AB"), EVENT_SETS),
            max_size=1,
        ),
        splits=st.dictionaries(st.sampled_from(THREADS + RUN_IDS), SPLITS, max_size=2),
        own=st.dictionaries(st.sampled_from(["own.txt", "own", "chat/x"]), st.sampled_from("xy"), max_size=2)
        | st.just({"own/file": "z"}),
        deleted=deletions({kind: ids for kind, ids in kinds.items() if kind in deletable}),
    )


def explain(ids: Ids) -> dict[str, str]:
    """A state as text, for a failing test to show."""
    state = State(ids)
    shown = {}
    for name in ("ledger", "archive", "notes"):
        editor = getattr(state, name)
        for path, raw in editor.files():
            shown[f"{name}:{path}"] = f"{raw_mode(raw).decode()} {(editor.read(path) or b'').decode()}"
    return shown


def same(one: Ids, two: Ids) -> None:
    assert explain(one) == explain(two)
    assert one == two


# ---------------------------------------------------------------- the laws


def a_state_merged_with_itself_or_with_nothing_stays(side: Side) -> None:
    ids, empty = side.ids(), State().ids()
    same(merge(ids, ids), ids)
    same(merge(ids, empty), ids)
    same(merge(empty, ids), ids)


def it_does_not_matter_who_merges(one: Side, two: Side) -> None:
    same(merge(one.ids(), two.ids()), merge(two.ids(), one.ids()))


def the_order_of_merges_does_not_matter(one: Side, two: Side, three: Side) -> None:
    a, b, c = one.ids(), two.ids(), three.ids()
    same(merge(merge(a, b), c), merge(a, merge(b, c)))


def merging_again_what_was_merged_changes_nothing(one: Side, two: Side) -> None:
    both = merge(one.ids(), two.ids())
    same(merge(both, two.ids()), both)
    same(merge(both, one.ids()), both)
    same(merge(two.ids(), both), both)


# ---------------------------------------------------------------- nothing is lost


def stored_runs(state: State) -> dict[str, tuple[Json, set[bytes]]]:
    """Run id to its record and event lines, wherever it lies; each lies in one place."""
    found: dict[str, tuple[Json, set[bytes]]] = {}
    for editor, root in ((state.ledger, "ledger/runs/"), (state.archive, "runs/")):
        for path, _ in editor.files():
            if path.startswith(root) and path.endswith("/run.json"):
                run_id = path.split("/")[-2]
                assert run_id not in found, "a run lies in one place"
                folder = path.removesuffix("/run.json")
                assert folder == (run_dir(run_id) if root == "ledger/runs/" else archived_run_dir(run_id))
                lines = [
                    line
                    for name in editor.names(folder)
                    if is_part("events", name)
                    for line in (editor.read(f"{folder}/{name}") or b"").splitlines()
                ]
                assert len(lines) == len(set(lines))
                found[run_id] = (json.loads(editor.read(path) or b""), set(lines))
    return found


def stored_messages(state: State) -> dict[str, set[str]]:
    """Where messages lie (a folder, or a note's object) to their ids."""
    found: dict[str, set[str]] = {}
    for editor, root in ((state.ledger, "chat/"), (state.notes, "")):
        for path, _ in editor.files():
            if editor is state.notes or (path.startswith(root) and path.endswith(".jsonl")):
                place = note_target(path) if editor is state.notes else path.rpartition("/")[0]
                lines = (editor.read(path) or b"").splitlines()
                found.setdefault(str(place), set()).update(json.loads(line)["id"] for line in lines if line)
    return found


def content_of(record: Json) -> Json:
    return {key: value for key, value in record.items() if key not in ("anchor", "run_id")}


def taken_by_deletions(sides: list[Side]) -> set[tuple[str, int]]:
    """The runs that were deleted, by id and content."""
    return {
        (id, content)
        for side in sides
        for kind, id in side.deleted
        if kind == "run"
        for content in side.contents(id)
    }


def check_nothing_lost(result: State, sides: list[Side]) -> None:
    runs, messages = stored_runs(result), stored_messages(result)
    gone = {key for side in sides for key in side.deleted}
    taken = taken_by_deletions(sides)
    known: set[str] = set()
    for side in sides:
        for run in side.present():
            if (run.run_id, run.content) in taken:
                continue
            (survivor,) = [
                id for id in run.ids() if id in runs and content_of(runs[id][0]) == content_of(run.record())
            ]
            known.add(survivor)
            record, events = runs[survivor]
            assert record["run_id"] == survivor
            assert events >= {json.dumps(EVENTS[n], separators=(",", ":")).encode() for n in run.events}
            assert (run.anchor is None) or Anchor.parse(record.get("anchor")), (
                "an anchor is never given up for none"
            )
            said = set(side.kept(side.notes.get(run.run_id, {}))) if run.tag() else set()
            anchor = Anchor.parse(record.get("anchor"))
            tag = hash_object(TAG, run_tag(survivor, record, anchor)) if anchor else ""
            places = [f"chat/runs/{survivor}", tag]
            heard = set().union(*(messages.get(place, set()) for place in places))
            assert heard >= {id for id in said if ("message", id) not in gone}, "what was said about a run"
        for id, (_, _, said_there) in side.threads.items():
            if ("thread", id) not in gone and not side.is_deleted("thread", id):
                heard = messages.get(f"chat/threads/{id}", set())
                assert heard >= {m for m in said_there if ("message", m) not in gone}
        for path, text in side.own.items():
            data = result.ledger.read(path)
            assert data is not None or result.ledger.has_dir(path), path
            assert data is None or len(text) == 1
    assert set(runs) == known, "nothing is made up"


def check_deletions_win(result: State, sides: list[Side]) -> None:
    runs, messages = stored_runs(result), stored_messages(result)
    taken = taken_by_deletions(sides)
    for side in sides:
        for kind, id in side.deleted:
            assert result.archive.read(deleted_path(kind, id)), "a deletion is never removed"
            if kind == "run":
                assert id not in runs and not result.ledger.has_dir(run_chat_dir(id))
                copies = [run for other in sides for run in other.runs if run.run_id == id]
                tags = {run.tag() for run in copies if (id, run.content) in taken}
                assert not tags & set(list_notes(result.notes)), "the note on a deleted run's tag"
            elif kind == "message":
                assert not [place for place, ids in messages.items() if id in ids]
            else:
                assert not result.ledger.has_dir(f"{'chat' if kind == 'thread' else 'ledger'}/{kind}s/{id}")


def nothing_is_lost(one: Side, two: Side, three: Side) -> None:
    both = merge(one.ids(), two.ids())
    check_nothing_lost(State(both), [one, two])
    check_nothing_lost(State(merge(both, three.ids())), [one, two, three])
    check_nothing_lost(State(merge(three.ids(), both)), [one, two, three])


def deletions_win(one: Side, two: Side, three: Side) -> None:
    check_deletions_win(State(merge(merge(one.ids(), two.ids()), three.ids())), [one, two, three])


PLAIN = sides()
TWINS = sides(contents=3, anchors=2)
IGNORANT = sides(knowing=False)
EXTRAS = sides(extras=["", "x", "y"], deletable=())

LAWS: dict[str, tuple[Callable[..., None], list[st.SearchStrategy[Side]]]] = {
    "idempotent": (a_state_merged_with_itself_or_with_nothing_stays, [PLAIN]),
    "idempotent, twins": (a_state_merged_with_itself_or_with_nothing_stays, [TWINS]),
    "commutative": (it_does_not_matter_who_merges, [PLAIN, PLAIN]),
    "commutative, twins": (it_does_not_matter_who_merges, [TWINS, TWINS]),
    "commutative, extras": (it_does_not_matter_who_merges, [EXTRAS, EXTRAS]),
    "associative": (the_order_of_merges_does_not_matter, [PLAIN, PLAIN, PLAIN]),
    "associative, twins": (the_order_of_merges_does_not_matter, [TWINS, TWINS, TWINS]),
    "associative, extras": (the_order_of_merges_does_not_matter, [EXTRAS, EXTRAS, EXTRAS]),
    "absorbing": (merging_again_what_was_merged_changes_nothing, [PLAIN, PLAIN]),
    "absorbing, twins": (merging_again_what_was_merged_changes_nothing, [TWINS, TWINS]),
    "nothing lost": (nothing_is_lost, [PLAIN, PLAIN, PLAIN]),
    "nothing lost, twins": (nothing_is_lost, [TWINS, TWINS, TWINS]),
    "deletions win": (deletions_win, [PLAIN, PLAIN, PLAIN]),
    "deletions win, twins": (deletions_win, [TWINS, TWINS, TWINS]),
    "deletions win, ignorant": (deletions_win, [IGNORANT, IGNORANT, IGNORANT]),
    "commutative, ignorant": (it_does_not_matter_who_merges, [IGNORANT, IGNORANT]),
}


def examine(name: str, examples: int) -> None:
    law, arguments = LAWS[name]
    bounds = settings(
        max_examples=examples,
        deadline=None,
        phases=[phase for phase in Phase if phase is not Phase.explain],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    STORE.added.clear()
    bounds(given(*arguments)(law))()


@pytest.mark.parametrize("name", LAWS)
def test_a_law_of_merging(name: str) -> None:
    examine(name, 100)


@pytest.mark.full
@pytest.mark.parametrize("name", LAWS)
def test_a_law_of_merging_with_many_examples(name: str) -> None:
    examine(name, 2000)


# ---------------------------------------------------------------- which of two versions wins


def with_file(path: str, data: bytes, where: str = "ledger") -> Ids:
    state = State()
    getattr(state, where).put(path, data)
    return state.ids()


def merged_file(path: str, one: bytes, two: bytes, where: str = "ledger") -> bytes:
    """The file after merging, whoever merges."""
    a, b = with_file(path, one, where), with_file(path, two, where)
    results = [getattr(State(merge(*pair)), where).read(path) for pair in ((a, b), (b, a))]
    assert results[0] == results[1] and results[0] is not None
    return bytes(results[0])


def line(id: str, **fields: Any) -> bytes:
    return dump_lines([{"id": id, "ts": "t", **fields}])


PLAIN_TEXT = line("m", text="a")
MESSAGE_VERSIONS = {
    "the higher rev": (line("m", text="new", rev=2), line("m", text="a", rev=1)),
    "any rev over none": (line("m", text="z", rev=1), line("m", text="a")),
    "rev before encryption": (
        line("m", text="z", rev=1),
        line("m", text="a", flags={"encrypted": True}),
    ),
    "the encrypted one": (line("m", text="z", flags={"encrypted": True}), line("m", text="a")),
    "the smaller bytes": (line("m", text="a"), line("m", text="b")),
    "a rev that is none counts as 0": (line("m", rev="x", text="b"), line("m", rev=-5, text="a")),
}


@pytest.mark.parametrize("name", MESSAGE_VERSIONS)
@pytest.mark.parametrize("path", ["chat/threads/general/messages.jsonl", "chat/runs/r/messages.jsonl"])
def test_of_two_versions_of_a_message(name: str, path: str) -> None:
    better, worse = MESSAGE_VERSIONS[name]
    assert merged_file(path, better, worse) == better


def test_messages_are_united_sorted_and_none_hides_another() -> None:
    one = (
        line("m2", ts="2026-02-17T20:46:00Z")
        + b"\n\n"
        + line("m1", ts="2026-02-17T20:46:00Z")
        + b"not json\n"
    )
    two = line("m3", ts="2026-02-17T21:45:00+01:00") + b'{"no":"id"}\n'
    united = merged_file("chat/threads/t/messages.jsonl", one, two)
    assert united.endswith(b"\n") and b"\n\n" not in united
    assert [json.loads(text)["id"] for text in united.splitlines()[2:]] == ["m3", "m1", "m2"]
    assert {b"not json", b'{"no":"id"}'} <= set(united.splitlines()) and len(united.splitlines()) == 5


def test_of_two_versions_of_a_record_the_higher_rev_wins() -> None:
    path = "chat/threads/t/thread.json"
    new, old = dump_pretty({"title": "zz", "rev": 3}), dump_pretty({"title": "aa", "rev": 2})
    assert merged_file(path, new, old) == new
    same_rev = [dump_pretty({"title": title, "rev": 3}) for title in ("aa", "bb")]
    assert merged_file(path, *same_rev) == min(same_rev, key=lambda data: hash_object("blob", data))
    assert merged_file(path, old, b"damaged") == old


@pytest.mark.parametrize("where", ["ledger", "archive"])
def test_the_higher_format_wins(where: str) -> None:
    assert merged_file("FORMAT", b"1\n", b"2\n", where) == b"2\n"
    assert merged_file("FORMAT", b"10\n", b"9\n", where) == b"10\n"


def test_a_record_that_general_was_deleted_counts_for_nothing() -> None:
    ours, theirs = State(), State()
    ours.ledger.put("chat/threads/general/messages.jsonl", line("m1"))
    theirs.archive.put(
        deleted_path("thread", "general"), dump_pretty({"id": "general", "ts": "t", "user": "x"})
    )
    report = merge_states(ours, theirs)
    assert ours.ledger.read("chat/threads/general/messages.jsonl") == line("m1")
    assert report.refused == [deleted_path("thread", "general")]


def test_two_deletions_of_one_id() -> None:
    path = deleted_path("run", "r2")
    one = dump_pretty({"id": "r2", "ts": "t2", "user": "Ada", "tags": ["b" * 40, "c" * 40]})
    two = dump_pretty({"id": "r2", "ts": "t1", "user": "Bob", "tags": ["a" * 40, "c" * 40]})
    found = json.loads(merged_file(path, one, two, "archive"))
    assert found == {"id": "r2", "ts": "t1", "user": "Bob", "tags": ["a" * 40, "b" * 40, "c" * 40]}


# ---------------------------------------------------------------- anchors, twins, places


def test_of_two_anchors_the_smaller_one_wins_and_the_other_note_becomes_chat() -> None:
    copies = [RunCopy("r2", anchor=n) for n in (0, 1)]
    sides = [Side([copy], notes={"r2": {f"msg_{n + 1}": (0, False, "hi")}}) for n, copy in enumerate(copies)]
    first, second = copies
    ids, report = merged(sides[0].ids(), sides[1].ids())
    state = State(ids)
    assert stored_runs(state)["r2"][0]["anchor"] == first.anchored().to_json()  # type: ignore[union-attr]
    assert set(list_notes(state.notes)) == {first.tag()}
    assert report.replaced_tags == {second.tag(): "r2"}
    moved = json.loads(state.ledger.read("chat/runs/r2/messages.jsonl") or b"")
    assert moved["id"] == f"msg_{copies.index(second) + 1}"


def test_an_anchor_wins_over_none() -> None:
    for events in (frozenset({0}), frozenset[int]()):
        with_anchor, without = RunCopy("r2", anchor=1), RunCopy("r2", events=events)
        for pair in ((with_anchor, without), (without, with_anchor)):
            state = State(merge(*(Side([copy]).ids() for copy in pair)))
            record, lines = stored_runs(state)["r2"]
            assert "anchor" in record and len(lines) == len(events)


@pytest.mark.parametrize("run_id", ["r2", "r" * 128, "r" * 119, "r" * 120])
def test_two_runs_of_one_id_both_stay(run_id: str) -> None:
    early = RunCopy(run_id, content=1, anchor=0, events=frozenset({1}))
    late = RunCopy(run_id, content=0, anchor=1, events=frozenset({2}))
    said = {run_id: {"msg_1": (0, False, "hi")}}
    ids, report = merged(Side([late], notes=said).ids(), Side([early], notes=said).ids())
    state = State(ids)
    (other,) = late.ids() - {run_id}
    assert is_valid_id(other) and len(other) <= 128
    assert report.renamed == {other: run_id}
    runs = stored_runs(state)
    assert set(runs) == {run_id, other}
    assert content_of(runs[run_id][0]) == content_of(early.record())
    assert runs[other][0]["run_id"] == other and content_of(runs[other][0]) == content_of(late.record())
    assert (len(runs[run_id][1]), len(runs[other][1])) == (1, 1)
    assert report.replaced_tags == {late.tag(): other}
    assert state.ledger.read(f"chat/runs/{other}/messages.jsonl") == message_lines(said[run_id])
    assert set(list_notes(state.notes)) == {early.tag()}


def test_a_run_archived_on_one_side_is_stored_only_there() -> None:
    hot, cold = RunCopy("r2", events=frozenset({0})), RunCopy("r2", events=frozenset({1}), archived=True)
    for pair in ((hot, cold), (cold, hot)):
        state = State(merge(*(Side([copy]).ids() for copy in pair)))
        assert not state.ledger.has_dir("ledger/runs")
        assert len(stored_runs(state)["r2"][1]) == 2


def test_equal_subtrees_are_not_read() -> None:
    store = ObjectStore(Counting())
    state = State()
    for editor in (state.ledger, state.archive, state.notes):
        editor.store = store
    for n in range(300):
        state.ledger.put(f"ledger/runs/run-{n}/run.json", b'{"run_id": "run-%d"}\n' % n)
        state.archive.put(f"runs/2026/01/{n % 30:02}/{n % 7:02}/old-{n}/run.json", b"{}\n")
        state.notes.put(f"{n % 100:02}/{hashlib.sha1(b'%d' % n).hexdigest()[2:]}", b'{"id":"m"}\n')
    before = state.ids()
    state.ledger.put("ledger/runs/run-7/events.jsonl", b'{"seq":1}\n')
    after = state.ids()
    base = Counting(dict(store.added))
    sides = [State(), State()]
    for side, ids in zip(sides, (before, after), strict=True):
        editors = (TreeEditor(ObjectStore(base), oid) for oid in ids)
        side.ledger, side.archive, side.notes = editors
    merge_states(*sides)
    assert (sides[0].ledger.write(), sides[0].archive.write(), sides[0].notes.write()) == after
    assert base.reads < 30


class Counting(NoObjects):
    """A database that counts how often it is asked for an object's bytes."""

    def __init__(self, objects: dict[str, tuple[Kind, bytes]] | None = None) -> None:
        self.objects = objects or {}
        self.reads = 0

    def read(self, oid: str, *, limit: int | None = None) -> tuple[Kind, bytes] | None:
        self.reads += 1
        return self.objects.get(oid)


# ---------------------------------------------------------------- what anybody may have put there


ODD_ENTRIES = {
    "symlink": (b"120000", "link"),
    "submodule": (b"160000", "module"),
    "symlink in a run": (b"120000", "ledger/runs/r2/link"),
    "symlink for a run.json": (b"120000", "ledger/runs/r9/run.json"),
    "device name": (b"100644", "a:b"),
    "backslash": (b"100644", "a\\b"),
    ".gitmodules": (b"100644", ".gitmodules"),
    "git~1": (b"100644", "docs/GIT~1"),
    "dot at the end": (b"100644", "docs./x"),
    "control character": (b"100644", "docs/a\x07"),
    "bad run id": (b"100644", "ledger/runs/bad..id/run.json"),
    "dot dot": (b"100644", "../x"),
    ".git": (b"100644", "docs/.GIT/config"),
}


@pytest.mark.parametrize("name", ODD_ENTRIES)
@pytest.mark.parametrize("where", ["ledger", "archive", "notes"])
def test_what_is_no_plain_file_is_refused_and_the_rest_taken(name: str, where: str) -> None:
    mode, path = ODD_ENTRIES[name]
    their = State()
    run = RunCopy("r2", events=frozenset({1}))
    Side([run])._put_run(their, run)
    editor = getattr(their, where)
    editor.put("plain.txt" if where != "notes" else f"ab/{'c' * 38}", b'{"id":"m"}\n')
    put_raw(editor, path, mode)
    ids, report = merged(State().ids(), their.ids())
    state = State(ids)
    entries = [(p, raw) for e in (state.ledger, state.archive, state.notes) for p, raw in e.files()]
    assert path not in {p for p, _ in entries}
    assert all(raw_mode(raw) == b"100644" for _, raw in entries)
    if where != "archive" or not path.startswith("ledger/"):
        assert [refused for refused in report.refused if refused.startswith(path.rpartition("/")[0])]
    assert getattr(state, where).read("plain.txt" if where != "notes" else f"ab/{'c' * 38}")
    assert len(stored_runs(state)["r2"][1]) == 1


def put_raw(editor: TreeEditor, path: str, mode: bytes) -> None:
    """An entry of any mode and name, as ``git mktree`` would write it."""
    head, _, leaf = path.rpartition("/")
    editor.put(f"{head}/placeholder" if head else "placeholder", b"x")
    folder = editor.root
    for part in head.split("/") if head else ():
        folder = folder.children[part.encode()]
    oid = bytes.fromhex(editor.store.add("blob", b"target"))
    folder.put(leaf.encode(), mode + b" " + leaf.encode() + b"\0" + oid, None)
    editor.remove(f"{head}/placeholder" if head else "placeholder")


def test_an_executable_file_is_taken_as_a_plain_one() -> None:
    their = State()
    put_raw(their.ledger, "run.sh", b"100755")
    state = State(merge(State().ids(), their.ids()))
    assert [(path, raw_mode(raw)) for path, raw in state.ledger.files()] == [("run.sh", b"100644")]


DELETIONS = {
    "in another shard": ("deleted/run/00/r2", b'{"id":"r2","ts":"t"}\n'),
    "not JSON": (deleted_path("run", "r2"), b"garbage\n"),
    "too short": ("deleted/run/r2", b'{"id":"r2"}\n'),
    "bad id": (deleted_path("run", "bad..id"), b'{"id":"bad..id"}\n'),
}


@pytest.mark.parametrize("name", DELETIONS)
def test_a_deletion_that_is_none_deletes_nothing(name: str) -> None:
    path, data = DELETIONS[name]
    ours = Side([RunCopy("r2")]).ids()
    ids, report = merged(ours, with_file(path, data, "archive"))
    assert ids == ours
    assert report.refused == [path]


FAN_OUTS = [lambda t: t, lambda t: f"{t[:2]}/{t[2:]}", lambda t: f"{t[:2]}/{t[2:4]}/{t[4:]}"]
NOTE_LINES = st.lists(st.sampled_from(["m1", "m2", "m3", ""]), max_size=3)
MESSY = st.dictionaries(
    st.sampled_from([hashlib.sha1(b"%d" % n).hexdigest() for n in range(3)]),
    st.tuples(st.integers(0, 2), NOTE_LINES),
    max_size=3,
)


def messy_notes(notes: dict[str, tuple[int, list[str]]]) -> Ids:
    """Notes as stock git leaves them: any fan-out, blank lines, no order."""
    state = State()
    for target, (fan_out, ids) in notes.items():
        data = "\n".join(f'{{"id":"{id}","ts":"t"}}' if id else "" for id in ids)
        state.notes.put(FAN_OUTS[fan_out](target), data.encode())
    return state.ids()


@settings(max_examples=150, deadline=None)
@given(MESSY, MESSY)
def test_notes_of_any_fan_out_are_united(
    one: dict[str, tuple[int, list[str]]], two: dict[str, tuple[int, list[str]]]
) -> None:
    said = {
        target: {id for side in (one, two) for id in side.get(target, (0, []))[1] if id}
        for target in one.keys() | two.keys()
    }
    for ours, theirs in ((one, two), (two, one)):
        notes = State(merge(messy_notes(ours), messy_notes(theirs))).notes
        found = {target: read_note(notes, target) or b"" for target in list_notes(notes)}
        ids = {t: [json.loads(text)["id"] for text in data.split() if text] for t, data in found.items()}
        assert {target: set(held) for target, held in ids.items()} == said
        both = {target for target in one.keys() & two.keys() if one[target] != two[target]}
        assert all(len(ids[target]) == len(set(ids[target])) for target in both)
        assert len(list(notes.files())) == len(found), "each note lies at one path"


ASTRAY = [
    "runs/other/00/r2/run.json",
    "runs/r2/run.json",
    "runs/a/b",
    "runs/2026/02/17/aa/bb/run_2026-02-17T204500_apply_ab12/run.json",
    archived_run_dir(RUN_IDS[0]) + "/sub/deep.txt",
    "ledger/runs/file-instead-of-a-folder",
    "ledger/runs/r2/sub/deep.txt",
    "runs",
    "ledger/runs",
    "deleted",
    "chat/threads",
    "FORMAT/inside",
]


@pytest.mark.parametrize("path", ASTRAY)
@pytest.mark.parametrize("where", ["ledger", "archive"])
def test_files_in_odd_places_do_not_stop_a_merge(path: str, where: str) -> None:
    """Nothing of ours is there, but anybody can commit there."""
    sides = [Side([RunCopy(RUN_IDS[0], archived=True), RunCopy("r2", events=frozenset({1}))]).ids()]
    sides.append(with_file(path, b"odd\n", where))
    for ours, theirs in (sides, sides[::-1]):
        ids = merge(ours, theirs)
        found = {run_id: find_run(State(ids), run_id) for run_id in RUN_IDS}
        assert None not in found.values()
        assert merge(ids, ours) == ids and merge(ids, theirs) == ids


# ---------------------------------------------------------------- deletions, and what comes after them


def test_a_note_that_arrives_for_the_tag_of_a_deleted_run_is_not_taken() -> None:
    """``git notes append`` in a clone that knows of the deletion, or the notes alone were pushed."""
    run = RunCopy("r2", anchor=0)
    deleted = Side([run], deleted={("run", "r2"): ("t1", "Ada")}).ids()
    late = State()
    write_note(late.notes, str(run.tag()), message_lines({"msg_1": (0, False, "hi")}))
    late_ids = late.ids()
    assert merge(deleted, late_ids) == merge(late_ids, deleted)
    assert not list_notes(State(merge(deleted, late_ids)).notes)


def test_a_deletion_takes_what_was_deleted_and_no_other_run_of_that_id() -> None:
    mine, theirs = RunCopy("r2", content=0, anchor=0), RunCopy("r2", content=1, anchor=0)
    said = {"r2": {"msg_1": (0, False, "hi")}}
    deleted = Side([mine], deleted={("run", "r2"): ("t1", "Ada")}).ids()
    other = Side([theirs], notes=said, run_chat={"r2": {"msg_2": (0, False, "ho")}}).ids()
    (new_id,) = theirs.ids() - {"r2"}
    for ids in (merge(deleted, other), merge(other, deleted)):
        state = State(ids)
        assert set(stored_runs(state)) == {new_id}
        assert stored_messages(state) == {f"chat/runs/{new_id}": {"msg_1", "msg_2"}}
        again = merge(ids, Side([mine]).ids())
        assert set(stored_runs(State(again))) == {new_id}, "what was deleted does not come back"
        assert merge(again, other) == again


def test_a_deletion_finds_the_run_where_a_merge_has_put_it() -> None:
    first, second = RunCopy("r2", content=1, anchor=0), RunCopy("r2", content=0, anchor=0)
    both = merge(Side([first]).ids(), Side([second], notes={"r2": {"msg_1": (0, False, "hi")}}).ids())
    assert len(stored_runs(State(both))) == 2
    deleted = Side([second], deleted={("run", "r2"): ("t1", "Ada")}).ids()
    (moved,) = first.ids() - {"r2"}
    for ids in (merge(both, deleted), merge(deleted, both)):
        assert set(stored_runs(State(ids))) == {moved}, "the id is deleted, the other run is not"
        assert stored_messages(State(ids)) == {}


def test_a_deletion_without_digests_covers_whatever_bears_the_id() -> None:
    deletion = with_file(deleted_path("run", "r2"), dump_pretty({"id": "r2", "ts": "t"}), "archive")
    for content in (0, 1):
        ids, report = merged(Side([RunCopy("r2", content=content, anchor=0)]).ids(), deletion)
        assert not stored_runs(State(ids)) and len(report.gone_tags) == 2
