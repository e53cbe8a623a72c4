"""Conversations as sets of messages and of split keys: bounded parts, one union, nothing read in vain."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scp_git import Run, Settings, StorageFailed, Store
from scp_git.chat.queries import ChatReader
from scp_git.codec import dump_compact, dump_lines
from scp_git.git import chatmerge, conversation, runchat
from scp_git.git.chatmerge import merge_conversation
from scp_git.git.conversation import Conversation, Line
from scp_git.git.handle import Repository
from scp_git.git.lines import FIRST, Key, key_of, message_lines
from scp_git.git.objects import ObjectStore
from scp_git.git.tree import TreeEditor
from scp_git.ids import format_time, parse_time
from scp_git.layout import messages_part, split_key
from tests.test_merge import NoObjects

SMALL = 400
"""Bytes of a part in these tests: four messages or so."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (conversation, runchat):
        monkeypatch.setattr(module, "PART_BYTES", SMALL)


def line(number: int, text: str = "x" * 20, **fields: Any) -> Line:
    """The message of this number; two of one number differ only in what is given."""
    ts = f"2026-02-17T20:{number // 60:02}:{number % 60:02}.000000+00:00"
    id = f"msg_2026-02-17T20{number // 60:02}{number % 60:02}_{number:04}"
    return Key(ts, id), dump_compact({"id": id, "ts": ts, "text": text, **fields}).encode()


def empty(folder: str = "chat/threads/t") -> Conversation:
    return Conversation(TreeEditor(ObjectStore(NoObjects())), folder)


def made(numbers: list[int], **fields: Any) -> Conversation:
    found = empty()
    for number in numbers:
        found.add(line(number, **fields))
    return found


def files(talk: Conversation) -> dict[str, bytes]:
    return {part.name: talk.read(part) for part in talk.parts()}


def numbers(talk: Conversation) -> list[int]:
    return [int(json.loads(each)["id"][-4:]) for data in files(talk).values() for each in data.splitlines()]


def check_parts(talk: Conversation, limit: int) -> None:
    """Every message lies where the keys say, in order, and no part is longer than the limit."""
    parts = talk.parts()
    for part, after in pairwise([*parts, None]):
        data = talk.read(part)
        keys = [key for key, _ in message_lines([data])]
        assert data == b"".join(each + b"\n" for _, each in message_lines([data]))
        assert all(part.start <= key and (after is None or key < after.start) for key in keys)
        assert len(data) <= limit or len(keys) == 1


def keys(talk: Conversation) -> set[Key]:
    return {part.start for part in talk.parts()} - {FIRST}


NUMBERS = st.lists(st.integers(0, 200), max_size=60)

# ---------------------------------------------------------------- names and keys


@given(st.datetimes(), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}[a-z]", fullmatch=True))
def test_the_name_of_a_part_gives_its_key(moment: Any, id: str) -> None:
    key = (format_time(moment), id)
    name = messages_part(*key)
    assert split_key(name) in (key, None if ".." in id or id.endswith(".lock") else key)
    assert not set(name) & set(':+/\\*?"<>|')


@pytest.mark.parametrize(
    "name",
    [
        "events.jsonl",
        "messages.json",
        "messages-0002.jsonl",
        "messages-x-y.jsonl",
        "messages-2026-02-17T204500-x.jsonl",
        "messages-2026-02-17T204500.000000-.jsonl",
        "messages-2026-02-17T204500.000000-a..b.jsonl",
    ],
)
def test_other_names_give_no_key(name: str) -> None:
    assert split_key(name) is None


def test_a_key_has_its_time_spelled_as_it_is_stored() -> None:
    assert key_of({"id": "m", "ts": "2026-02-17T21:45:00+01:00"}) == Key(
        "2026-02-17T20:45:00.000000+00:00", "m"
    )
    assert key_of({"id": "m", "ts": "soon"}) == key_of({"id": "m"}) == Key("", "m")
    assert key_of({"id": "../m", "ts": "2026-02-17"}) == key_of({"ts": "2026-02-17"}) == key_of({}) == FIRST


# ---------------------------------------------------------------- adding


@given(NUMBERS)
def test_messages_added_in_any_order_lie_in_order_in_bounded_parts(order: list[int]) -> None:
    talk = made(order)
    assert numbers(talk) == sorted(set(order))
    check_parts(talk, 2 * SMALL)


@given(NUMBERS)
def test_in_the_order_of_time_no_part_outgrows_the_bound_and_none_is_written_again(order: list[int]) -> None:
    talk = empty()
    before: dict[str, bytes] = {}
    for number in sorted(set(order)):
        talk.add(line(number))
        after = files(talk)
        changed = {name for name in after if after[name] != before.get(name)}
        assert len(changed) == 1 and before.keys() <= after.keys()
        before = after
    check_parts(talk, SMALL)


@given(NUMBERS, NUMBERS)
def test_many_at_once_are_the_same_set(one: list[int], two: list[int]) -> None:
    talk = made(one)
    talk.add_all([line(number) for number in sorted(set(two))])
    assert numbers(talk) == sorted({*one, *two})
    check_parts(talk, 2 * SMALL)


@given(NUMBERS.filter(len), st.randoms())
def test_a_taken_key_changes_nothing(order: list[int], chance: Any) -> None:
    talk = made(order)
    before, number = files(talk), chance.choice(order)
    assert talk.add(line(number, text="other")) == line(number)[1]
    assert files(talk) == before


def test_a_message_longer_than_a_part_has_one_of_its_own() -> None:
    talk = made([1])
    for number in (2, 3):
        talk.add(line(number, text="y" * 3 * SMALL))
    talk.add(line(4))
    assert [len(data.splitlines()) for data in files(talk).values()] == [1, 1, 1, 1]


# ---------------------------------------------------------------- finding and changing


@given(NUMBERS.filter(len), st.randoms())
def test_a_message_is_found_changed_and_removed_by_its_id(order: list[int], chance: Any) -> None:
    talk = made(order)
    number = chance.choice(order)
    key, data = line(number)
    assert talk.find(key.id) == json.loads(data)
    assert talk.get(key) == data
    new = line(number, rev=1)[1]
    assert talk.edit(key.id, lambda record: new) == [json.loads(data)]
    assert talk.get(key) == new
    before = keys(talk)
    assert talk.edit(key.id, lambda record: None) == [json.loads(new)]
    assert talk.find(key.id) is None and talk.get(key) is None
    assert numbers(talk) == sorted({*order} - {number})
    assert keys(talk) == before


def test_only_the_part_of_its_second_is_read_to_find_a_message_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    talk = made(list(range(200)))
    read: list[str] = []
    plain = Conversation.read

    def counted(self: Conversation, part: Any, **how: Any) -> bytes:
        read.append(part.name)
        return plain(self, part, **how)

    monkeypatch.setattr(Conversation, "read", counted)
    assert talk.find(line(17)[0].id)
    assert len(read) <= 2
    assert talk.find("msg_unknown") is None
    assert len(read) >= len(talk.parts())


# ---------------------------------------------------------------- merging


def copied(talk: Conversation) -> Conversation:
    return Conversation(TreeEditor(talk.editor.store, talk.editor.write()), talk.folder)


def merged(one: Conversation, two: Conversation) -> Conversation:
    both = copied(one)
    other = Conversation(TreeEditor(both.editor.store, moved(two, both)), two.folder)
    merge_conversation(both, other, kept=False)
    return both


def moved(talk: Conversation, to: Conversation) -> str:
    """The tree of one conversation, its objects in the store of the other."""
    oid = talk.editor.write()
    to.editor.store.added.update(talk.editor.store.added)  # type: ignore[attr-defined]
    return oid


def with_versions(order: list[int], edited: set[int]) -> Conversation:
    talk = made(order)
    for number in edited & set(order):
        new = line(number, rev=number % 3)[1]
        talk.edit(line(number)[0].id, lambda record, new=new: new)
    return talk


TALKS = st.builds(with_versions, NUMBERS, st.sets(st.integers(0, 200), max_size=20))


@given(TALKS, TALKS)
def test_merging_is_the_union_whoever_merges(one: Conversation, two: Conversation) -> None:
    both = merged(one, two)
    assert files(both) == files(merged(two, one))
    assert numbers(both) == sorted({*numbers(one), *numbers(two)})
    assert {part.start for part in both.parts()} >= {part.start for part in (*one.parts(), *two.parts())} - {
        FIRST
    }
    check_parts(both, 4 * SMALL)
    assert files(merged(both, one)) == files(merged(two, both)) == files(both)
    assert files(merged(one, one)) == files(one)


@given(TALKS, TALKS, TALKS)
def test_merging_in_any_order_gives_the_same(
    one: Conversation, two: Conversation, three: Conversation
) -> None:
    assert files(merged(merged(one, two), three)) == files(merged(one, merged(two, three)))


@given(st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), max_size=12))
def test_clones_that_go_on_writing_and_meet_now_and_then_converge(rounds: list[list[int]]) -> None:
    clones = [empty() for _ in range(3)]
    number = 0
    for speaks in rounds:
        for place, loud in enumerate(speaks):
            for _ in range(7 * loud):
                number += 1
                clones[place].add(line(number % 3600))
        first, second = sum(speaks) % 3, (sum(speaks) + 1) % 3
        clones[first] = clones[second] = merged(clones[first], clones[second])
    a, b, c = clones
    last = merged(merged(a, b), c)
    assert files(last) == files(merged(c, merged(b, a)))
    assert numbers(last) == list(range(1, number + 1))


def test_what_a_merge_makes_too_long_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chatmerge, "MAX_PART_BYTES", 3 * SMALL)
    one, two = empty(), empty()
    for talk, odd in ((one, 0), (two, 1)):
        lines = dump_lines(json.loads(line(2 * n + odd)[1]) for n in range(20))
        talk.editor.put(f"{talk.folder}/messages.jsonl", lines)
    both = merged(one, two)
    assert files(both) == files(merged(two, one))
    assert numbers(both) == list(range(40)) and len(both.parts()) > 4
    check_parts(both, 3 * SMALL)
    assert files(merged(both, one)) == files(merged(one, both)) == files(both)


def test_files_that_no_key_explains_are_read_and_taken_apart_by_a_merge() -> None:
    one, two = made([1, 2, 3]), made([9])
    one.editor.put(f"{one.folder}/messages-0002.jsonl", dump_lines([json.loads(line(7)[1])]))
    assert sorted(numbers(one)) == [1, 2, 3, 7]
    both = merged(one, two)
    assert files(both) == files(merged(two, one)) and numbers(both) == [1, 2, 3, 7, 9]
    assert "messages-0002.jsonl" not in files(both)


def test_lines_that_are_no_messages_are_kept_in_front_once() -> None:
    one, two = made(list(range(12))), made(list(range(10)))
    last = one.parts()[-1]
    one.editor.put(one.path(last), one.read(last) + b"\nnot json\n\n{}\n")
    both = merged(one, two)
    first = both.read(both.parts()[0])
    assert first.startswith(b"not json\n{}\n")
    assert b"".join(files(both).values()).count(b"not json") == 1
    assert files(both) == files(merged(two, one))


# ---------------------------------------------------------------- in a repository


@pytest.fixture
def store(repo: Path) -> Store:
    return Store.open(repo, Settings(durability="os"))


def test_pages_of_a_long_conversation_are_those_of_a_full_scan(store: Store) -> None:
    run_id, thread = store.record_run(Run(type="x")), store.create_thread("t").thread_id
    sent = []
    for number in range(40):
        place = [{"run_id": run_id}, {"thread_id": thread}, {"run_id": run_id, "thread_id": thread}][
            number % 3
        ]
        sent.append(store.send_message(str(number), **place))
    assert len(list((store.root / f".scp-ledger/chat/runs/{run_id}").iterdir())) > 3
    for place, kept in (
        ({"run_id": run_id}, [m for m in sent if m.run_id]),
        ({"thread_id": thread}, [m for m in sent if m.thread_id]),
        ({"run_id": run_id, "thread_id": thread}, sent),
    ):
        newest = kept[::-1]
        assert store.list_messages(**place, n=1000) == newest
        for n in (1, 3, 10):
            page, pages = store.list_messages(**place, n=n), []
            while page:
                pages += page
                page = store.list_messages(**place, n=n, before=page[-1].id)
            assert pages == newest


def test_the_newest_messages_are_read_from_the_newest_parts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        store.send_message(str(number))
    read: list[str] = []
    plain = Conversation.read
    monkeypatch.setattr(
        Conversation, "read", lambda self, part, **how: read.append(part.name) or plain(self, part, **how)
    )
    reader = ChatReader(Repository.open(store.root))
    assert len(reader.newest(None, None, n=2, before=None)) == 2
    assert len(read) <= 3


def test_damaged_messages_take_no_place_of_others(store: Store, git: Any) -> None:
    sent = [store.send_message(str(number)) for number in range(12)]
    view = store.root / ".scp-ledger/chat/threads/general"
    path = max(view.glob("messages-*.jsonl"))
    bad = {"id": "bad", "ts": "2099-01-01T00:00:00Z", "text": 5}
    huge = {"id": "worse", "ts": "2099-01-02T00:00:00Z", "flags": {"encrypted": "yes"}}
    path.write_bytes(path.read_bytes() + dump_lines([bad, huge]) + b"\nbroken\n[]\n")
    git(store.root / ".scp-ledger", "commit", "--quiet", "--all", "--message", "by hand")
    for _ in range(2):
        assert store.list_messages(n=5) == sent[:-6:-1]
        assert store.list_messages(n=100) == sent[::-1]
        store.ensure_ledger()


def test_a_part_too_large_to_read_hides_no_other(
    store: Store, git: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = [store.send_message(str(number)) for number in range(12)]
    monkeypatch.setattr(conversation, "MAX_READ_BYTES", 2 * SMALL)
    first = store.root / ".scp-ledger/chat/threads/general/messages.jsonl"
    first.write_bytes(first.read_bytes() * 5)
    git(store.root / ".scp-ledger", "commit", "--quiet", "--all", "--message", "by hand")
    shown = [message.text for message in store.list_messages(n=100)]
    assert shown == [message.text for message in sent[::-1]][: len(shown)] and len(shown) >= 4


def test_sealing_moves_the_note_and_keeps_every_message_once(store: Store, git: Any) -> None:
    run_id = store.record_run(Run(type="x"))
    for number in range(30):
        store.send_message(str(number), run_id=run_id)
        note = git(store.root, "notes", "--ref=scp-chat", "show", f"refs/tags/scp/run/{run_id}")
        assert len(note) <= SMALL or note.count("\n") == 1
    stored = [json.loads(each)["text"] for each in note.splitlines()]
    for path in (store.root / f".scp-ledger/chat/runs/{run_id}").iterdir():
        stored += [json.loads(each)["text"] for each in path.read_text().splitlines()]
    assert sorted(stored, key=int) == [str(number) for number in range(30)]
    assert [message.text for message in store.list_messages(run_id=run_id)] == [
        str(n) for n in range(29, -1, -1)
    ]


def test_an_older_copy_of_a_sealed_note_does_not_bring_it_back(store: Store, git: Any) -> None:
    run_id = store.record_run(Run(type="x"))
    old = [store.send_message(str(number), run_id=run_id) for number in range(2)]
    git(store.root, "branch", "before", "refs/notes/scp-chat")
    new = [store.send_message(str(number), run_id=run_id) for number in range(2, 6)]
    assert (store.root / f".scp-ledger/chat/runs/{run_id}").exists()
    git(
        store.root, "notes", "--ref=scp-chat", "append", "--message", "by hand", f"refs/tags/scp/run/{run_id}"
    )
    tip = git(store.root, "rev-parse", "refs/notes/scp-chat").strip()
    stale = git(store.root, "commit-tree", "before^{tree}", "-p", tip, "-m", "as it was").strip()
    git(store.root, "update-ref", "refs/notes/scp-chat", stale)
    store.ensure_ledger()
    note = git(store.root, "notes", "--ref=scp-chat", "show", f"refs/tags/scp/run/{run_id}")
    assert not [message.id for message in old if message.id in note]
    assert "by hand" in note
    assert store.list_messages(run_id=run_id) == [*old, *new][::-1]


def test_deleting_and_flagging_reach_sealed_messages(store: Store) -> None:
    run_id = store.record_run(Run(type="x"))
    sent = [store.send_message(str(number), run_id=run_id, thread_id="general") for number in range(20)]
    flagged = store.set_message_flags(sent[1].id, publish=True, run_id=run_id)
    assert store.delete_message(sent[2].id, thread_id="general")
    expected = [sent[0], flagged, *sent[3:]][::-1]
    assert store.list_messages(run_id=run_id) == store.list_messages() == expected


def test_a_note_that_grew_elsewhere_is_cut_into_parts_when_it_is_sealed(store: Store, git: Any) -> None:
    run_id = store.record_run(Run(type="x"))
    lines = b"".join(each + b"\n\n" for _, each in map(line, range(100)))
    git(
        store.root, "notes", "--ref=scp-chat", "add", "--file=-", f"refs/tags/scp/run/{run_id}",
        input=lines.decode(),
    )  # fmt: skip
    store.send_message("new", run_id=run_id)
    folder = store.root / f".scp-ledger/chat/runs/{run_id}"
    assert max(path.stat().st_size for path in folder.iterdir()) <= 2 * SMALL
    assert len(store.list_messages(run_id=run_id, n=1000)) == 101


def test_an_overlong_part_is_not_written_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.send_message("x")
    monkeypatch.setattr(conversation, "MAX_READ_BYTES", 10)
    with pytest.raises(StorageFailed, match="limit 10"):
        store.send_message("y")
    monkeypatch.undo()
    assert [message.text for message in store.list_messages()] == ["x"]


def test_a_message_older_than_all_others_goes_in_front(store: Store) -> None:
    sent = [store.send_message(str(number)) for number in range(12)]
    old = store.composed(
        "old", user="", thread_id=None, run_id=None, publish=False, encrypt=False, source="manual"
    ).model_copy(update={"ts": format_time(parse_time("2020-01-01")), "id": "msg_old"})
    store._wait(store.sending(lambda: store.addressed(old), size=10))
    assert [message.text for message in store.list_messages()] == [*(m.text for m in sent[::-1]), "old"]


def test_readers_miss_nothing_while_messages_are_sealed(store: Store) -> None:
    run_id = store.record_run(Run(type="x"))
    sent: list[str] = []
    missed: list[str] = []

    def talk() -> None:
        for number in range(80):
            message = store.send_message(str(number), run_id=run_id)
            sent.append(message.id)

    with ThreadPoolExecutor(1) as pool:
        talking = pool.submit(talk)
        while not talking.done():
            before = list(sent)
            heard = [message.id for message in store.list_messages(run_id=run_id, n=1000)]
            missed += set(before) - set(heard)
            assert len(heard) == len(set(heard))
        talking.result()
    assert not missed


@pytest.mark.parametrize("seed", range(3))
def test_clones_that_talk_seal_and_sync_come_to_the_same_parts(make_repo: Any, git: Any, seed: int) -> None:
    chance, origin = random.Random(seed), make_repo(bare=True, commits=0)
    roots = [make_repo(), make_repo()]
    for root in roots:
        git(root, "remote", "add", "origin", str(origin))
    clones = [Store.open(root, Settings(durability="os")) for root in roots]
    run_id = clones[0].record_run(Run(type="x"))
    clones[0].send_message("first")
    assert clones[0].sync() and clones[1].sync()
    there: dict[str, bool] = {}
    for _ in range(12):
        clone = chance.choice(clones)
        for _ in range(chance.randrange(6)):
            run, talk = chance.choice([(run_id, None), (None, "general"), (run_id, "general")])
            there[clone.send_message("x", run_id=run, thread_id=talk).id] = run is not None
        about_run = clone.list_messages(run_id=run_id)
        if about_run:
            clone.set_message_flags(chance.choice(about_run).id, publish=True, run_id=run_id)
            gone = chance.choice(about_run)
            if chance.random() < 0.3 and clone.delete_message(gone.id, run_id=run_id):
                there.pop(gone.id, None)
        clone.sync()
    for _ in range(2):
        for clone in clones:
            clone.sync()
    trees = [git(root, "rev-parse", "scp-ledger^{tree}", "refs/notes/scp-chat^{tree}") for root in roots]
    assert trees[0] == trees[1]
    for clone in clones:
        heard = {message.id for message in clone.list_messages(run_id=run_id, thread_id="general", n=1000)}
        assert heard - {clones[0].list_messages(n=1000)[-1].id} == set(there)
        about_run = {message.id for message in clone.list_messages(run_id=run_id, n=1000)}
        assert about_run == {id for id, on_run in there.items() if on_run}
    note = git(roots[0], "notes", "--ref=scp-chat", "show", f"refs/tags/scp/run/{run_id}")
    files = list((roots[0] / f".scp-ledger/chat/runs/{run_id}").glob("messages*.jsonl"))
    stored = [
        json.loads(each)["id"]
        for text in [note, *(p.read_text() for p in files)]
        for each in text.splitlines()
    ]
    assert sorted(stored) == sorted(about_run), "each lies in one place"


@pytest.mark.parametrize("count", [100, 100_000])
def test_a_message_to_many_writes_as_little_as_one_to_few(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    for module in (conversation, runchat):
        monkeypatch.setattr(module, "PART_BYTES", 64 * 1024)
    talk = empty()
    talk.add_all([long_line(number) for number in range(count)])
    talk.editor.write()
    store = talk.editor.store
    read: list[str] = []
    plain = store.find
    monkeypatch.setattr(store, "find", lambda oid, kind, **how: read.append(oid) or plain(oid, kind, **how))
    before = set(store.added)
    talk.add(long_line(count))
    talk.editor.write()
    assert sum(len(data) for oid, (_, data) in store.added.items() if oid not in before) < 2 * 64 * 1024
    assert len(read) == 1


def long_line(number: int) -> Line:
    ts = format_time(parse_time("2026-01-01") + timedelta(seconds=number))
    id = f"msg_{ts[:19].replace(':', '')}_{number:08}"
    return Key(ts, id), dump_compact({"id": id, "ts": ts, "text": "x" * 200}).encode()


def test_of_a_part_without_end_no_more_is_held_than_is_asked_for(
    store: Store, git: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scp_git.chat.queries._AT_ONCE", 5)
    run_id = store.record_run(Run(type="x"))
    lines = [json.loads(line(number)[1]) for number in range(60)]
    random.Random(1).shuffle(lines)
    git(
        store.root, "notes", "--ref=scp-chat", "add", "--file=-", f"refs/tags/scp/run/{run_id}",
        input=dump_lines(lines).decode(),
    )  # fmt: skip
    for n in (1, 7, 59, 60, 100):
        heard = [int(message.id[-4:]) for message in store.list_messages(run_id=run_id, n=n)]
        assert heard == list(range(60))[::-1][:n]
