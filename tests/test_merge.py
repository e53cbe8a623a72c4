"""Merging two states: the same whoever merges and in which order, nothing lost, and deletions win."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from scp_git.codec import dump_lines, dump_pretty, tag_message
from scp_git.git.anchors import run_tag
from scp_git.git.lines import merge_events, merge_messages
from scp_git.git.merge import MergeReport, merge_states
from scp_git.git.notes import list_notes, note_target, write_note
from scp_git.git.objects import TAG, Anchor, Kind, ObjectStore, hash_object
from scp_git.git.tree import TreeEditor, raw_mode
from scp_git.layout import archived_run_dir, deleted_path, is_part, run_chat_dir, run_dir

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

    def folder(self) -> str:
        return archived_run_dir(self.run_id) if self.archived else run_dir(self.run_id)

    def ids(self) -> set[str]:
        """The ids that it may have after a merge."""
        digest = hashlib.sha1(tag_message(self.record()).encode()).hexdigest()[:8]
        return {self.run_id, f"{self.run_id[:119]}-{digest}"}


def message(id: str, version: Version) -> Json:
    rev, encrypted, text = version
    changed = {"rev": rev} if rev else {}
    return {"id": id, "ts": f"t{id[-1]}", "text": text, "flags": {"encrypted": encrypted}, **changed}


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
    own: dict[str, str] = field(default_factory=dict)
    deleted: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    """Kind and id to when and by whom."""
    knowing: bool = True
    """Whether the record of a deleted run names all tags that there ever were."""

    def is_deleted(self, kind: str, id: str) -> bool:
        return (kind, id) in self.deleted

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
                self._put_messages(state, f"{run_chat_dir(run_id)}/messages.jsonl", messages)
        for id, (rev, title, messages) in self.threads.items():
            if not self.is_deleted("thread", id):
                record = {"thread_id": id, "title": title, **({"rev": rev} if rev else {})}
                state.ledger.put(f"chat/threads/{id}/thread.json", dump_pretty(record))
                self._put_messages(state, f"chat/threads/{id}/messages.jsonl", messages)
        for id, (rev, name, events) in self.traces.items():
            if not self.is_deleted("trace", id):
                state.ledger.put(f"ledger/traces/{id}/trace.json", dump_pretty({"name": name, "rev": rev}))
                put_events(state.ledger, f"ledger/traces/{id}", events)
        for path, text in self.own.items():
            state.ledger.put(path, text.encode())
        for (kind, id), (ts, user) in self.deleted.items():
            copies = [RunCopy(id, anchor=n) for n in range(2)] if self.knowing else self.runs
            tags = sorted({run.tag() or "" for run in copies if run.run_id == id} - {""})
            record = {"id": id, "ts": ts, "user": user, **({"tags": tags} if kind == "run" else {})}
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
            lines = message_lines(self.kept(self.notes[run.run_id]))
            if lines:
                write_note(state.notes, tag, lines)

    def _put_messages(self, state: State, path: str, messages: Messages) -> None:
        lines = message_lines(self.kept(messages))
        if lines:
            state.ledger.put(path, lines)


def put_events(editor: TreeEditor, folder: str, events: frozenset[int]) -> None:
    if events:
        lines = merge_events([dump_lines(EVENTS[n] for n in events)])
        editor.put(f"{folder}/events.jsonl", b"".join(lines))


# ---------------------------------------------------------------- making states up

VERSIONS = st.tuples(st.integers(0, 2), st.booleans(), st.sampled_from(["hi", "ho"]))
SOME = st.dictionaries(st.sampled_from(MESSAGES), VERSIONS, max_size=2)
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
    kinds = {"run": RUN_IDS, "thread": THREADS, "trace": TRACES, "message": MESSAGES[:2]}
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
    """Where messages lie (a path, or a note's object) to their ids."""
    found: dict[str, set[str]] = {}
    for editor, root in ((state.ledger, "chat/"), (state.notes, "")):
        for path, _ in editor.files():
            if editor is state.notes or (path.startswith(root) and path.endswith(".jsonl")):
                place = note_target(path) if editor is state.notes else path
                lines = (editor.read(path) or b"").splitlines()
                found.setdefault(str(place), set()).update(json.loads(line)["id"] for line in lines if line)
    return found


def content_of(record: Json) -> Json:
    return {key: value for key, value in record.items() if key not in ("anchor", "run_id")}


def check_nothing_lost(result: State, sides: list[Side]) -> None:
    runs, messages = stored_runs(result), stored_messages(result)
    gone = {key for side in sides for key in side.deleted}
    known: set[str] = set()
    for side in sides:
        for run in side.present():
            if ("run", run.run_id) in gone:
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
            places = [f"chat/runs/{survivor}/messages.jsonl", tag]
            heard = set().union(*(messages.get(place, set()) for place in places))
            assert heard >= {id for id in said if ("message", id) not in gone}, "what was said about a run"
        for id, (_, _, said_there) in side.threads.items():
            if ("thread", id) not in gone and not side.is_deleted("thread", id):
                heard = messages.get(f"chat/threads/{id}/messages.jsonl", set())
                assert heard >= {m for m in said_there if ("message", m) not in gone}
        for path, text in side.own.items():
            data = result.ledger.read(path)
            assert data is not None or result.ledger.has_dir(path), path
            assert data is None or len(text) == 1
    assert set(runs) == known, "nothing is made up"


def check_deletions_win(result: State, sides: list[Side]) -> None:
    runs, messages = stored_runs(result), stored_messages(result)
    for side in sides:
        for kind, id in side.deleted:
            assert result.archive.read(deleted_path(kind, id)), "a deletion is never removed"
            if kind == "run":
                assert id not in runs and not result.ledger.has_dir(run_chat_dir(id))
                tags = {run.tag() for other in sides for run in other.runs if run.run_id == id}
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
# Two runs that bear one id, with two limits. A deletion names an id, not which of them; and of two anchors
# that with the smaller tag wins, which depends on the id, so on whether the run was renamed before.
TWINS = sides(contents=3, anchors=1, deletable=("thread", "trace", "message"))
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
    examine(name, 150)


@pytest.mark.full
@pytest.mark.parametrize("name", LAWS)
def test_a_law_of_merging_with_many_examples(name: str) -> None:
    examine(name, 2000)
