"""Messages and threads: where they go, what comes back, and what stock git sees of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from scp_git import (
    AlreadyExists,
    ChatMessage,
    InvalidId,
    MessageFlags,
    NotAllowed,
    NotFound,
    RecordTooLarge,
    Run,
    Settings,
    Store,
    Thread,
    bus,
)
from scp_git.broadcast import Event
from scp_git.layout import note_path
from tests.sight import ids

Git = Callable[..., str]


@pytest.fixture
def store(repo: Path) -> Store:
    return Store.open(repo, Settings(durability="os"))


@pytest.fixture
def run_id(store: Store) -> str:
    return store.record_run(Run(type="apply"))


def texts(messages: list[ChatMessage]) -> list[str]:
    return [message.text for message in messages]


def lines(root: Path, path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / ".scp-ledger" / path).read_text("utf-8").split("\n") if line]


def note(git: Git, root: Path, run_id: str) -> str:
    return git(root, "notes", "--ref=scp-chat", "show", f"refs/tags/scp/run/{run_id}")


# ---------------------------------------------------------------- where messages go


def test_a_message_about_a_run_is_a_line_of_its_note(store: Store, run_id: str, git: Git) -> None:
    first = store.send_message("Deployed to staging", run_id=run_id)
    second = store.send_message("Health checks passed", run_id=run_id, user="Bob")
    said = [json.loads(line) for line in note(git, store.root, run_id).splitlines()]
    assert said == [first.model_dump(), second.model_dump()]
    assert list(said[0]) == ["id", "ts", "user", "text", "thread_id", "run_id", "source", "flags"]
    assert (first.user, second.user) == ("Ada Tester", "Bob")
    tag = git(store.root, "rev-parse", f"refs/tags/scp/run/{run_id}").strip()
    assert note_path(tag) in git(store.root, "ls-tree", "-r", "--name-only", "refs/notes/scp-chat")
    assert not (store.root / ".scp-ledger/chat").exists()


def test_a_message_in_a_thread_is_a_line_of_its_file(store: Store) -> None:
    thread = store.create_thread("Roll-out")
    sent = store.send_message("hello", thread_id=thread.thread_id)
    assert lines(store.root, f"chat/threads/{thread.thread_id}/messages.jsonl") == [sent.model_dump()]
    assert sent.thread_id == thread.thread_id and sent.run_id is None


def test_a_message_in_both_is_the_same_line_in_one_commit(store: Store, run_id: str, git: Git) -> None:
    thread = store.create_thread("Roll-out")
    before = int(git(store.root, "rev-list", "--count", "scp-ledger"))
    sent = store.send_message("hello", thread_id=thread.thread_id, run_id=run_id)
    path = f".scp-ledger/chat/threads/{thread.thread_id}/messages.jsonl"
    assert note(git, store.root, run_id) == (store.root / path).read_text()
    assert int(git(store.root, "rev-list", "--count", "scp-ledger")) == before + 1
    assert store.list_messages(run_id=run_id, thread_id=thread.thread_id) == [sent]


def test_a_message_that_names_nothing_goes_to_general(store: Store) -> None:
    assert store.list_messages() == [] and store.list_threads() == []
    sent = store.send_message("hello")
    assert sent.thread_id == "general"
    assert store.list_messages() == store.list_messages(thread_id="general") == [sent]
    (general,) = store.list_threads()
    assert general == Thread(thread_id="general", title="General", created_at="1970-01-01T00:00:00Z")
    stored = json.loads((store.root / ".scp-ledger/chat/threads/general/thread.json").read_text())
    assert stored["created_at"] == "1970-01-01T00:00:00.000000+00:00"


def test_an_unknown_run_or_thread_is_not_found_and_nothing_is_stored(store: Store, run_id: str) -> None:
    thread = store.create_thread("x")
    for place in (
        {"run_id": "r"},
        {"thread_id": "t"},
        {"run_id": run_id, "thread_id": "t"},
        {"run_id": "r", "thread_id": thread.thread_id},
        {"run_id": "r", "thread_id": "general"},
    ):
        with pytest.raises(NotFound):
            store.send_message("hello", **place)
    with pytest.raises(NotFound, match="run 'r'"):
        store.create_thread("about", anchor_run="r")
    assert store.list_messages(run_id=run_id, thread_id=thread.thread_id) == []
    assert store.list_threads() == [thread]


def test_a_deleted_run_or_thread_is_not_found(store: Store, run_id: str) -> None:
    thread = store.create_thread("x")
    assert store.delete_run(run_id) and store.delete_thread(thread.thread_id)
    for place in ({"run_id": run_id}, {"thread_id": thread.thread_id}):
        with pytest.raises(NotFound):
            store.send_message("hello", **place)
        assert store.list_messages(**place) == []


@pytest.mark.parametrize("id", ["", "../x", "a/b", "x.lock", "con", "a" * 129, "-x"])
def test_a_bad_id_is_refused(store: Store, id: str) -> None:
    for call in (
        lambda: store.send_message("x", run_id=id),
        lambda: store.send_message("x", thread_id=id),
        lambda: store.list_messages(run_id=id),
        lambda: store.list_messages(thread_id=id),
        lambda: store.list_messages(before=id),
        lambda: store.create_thread("x", anchor_run=id),
        lambda: store.delete_message(id),
        lambda: store.delete_message("m", run_id=id),
        lambda: store.delete_thread(id),
        lambda: store.set_message_flags(id, publish=True),
        lambda: store.set_message_flags("m", publish=True, thread_id=id),
    ):
        with pytest.raises(InvalidId):
            call()
    assert store.list_threads() == []


# ---------------------------------------------------------------- runs without tag or anchor


def test_a_run_without_its_tag_keeps_its_messages(store: Store, run_id: str, git: Git) -> None:
    store.send_message("one", run_id=run_id)
    git(store.root, "tag", "-d", f"scp/run/{run_id}")
    assert texts(store.list_messages(run_id=run_id)) == ["one"]
    store.send_message("two", run_id=run_id)
    store.ensure_ledger()
    assert [json.loads(line)["text"] for line in note(git, store.root, run_id).splitlines()] == ["one", "two"]


def test_messages_before_the_first_commit_stay_when_the_run_gets_its_anchor(
    make_repo: Callable[..., Path], git: Git
) -> None:
    root = make_repo(commits=0)
    store = Store.open(root, Settings(durability="os"))
    run_id = store.record_run(Run(type="apply"))
    early = store.send_message("early", run_id=run_id)
    assert lines(root, f"chat/runs/{run_id}/messages.jsonl") == [early.model_dump()]
    git(root, "commit", "--quiet", "--allow-empty", "--message", "first")
    late = store.send_message("late", run_id=run_id)
    assert json.loads(note(git, root, run_id)) == late.model_dump()
    assert lines(root, f"chat/runs/{run_id}/messages.jsonl") == [early.model_dump()]
    assert store.list_messages(run_id=run_id) == [late, early]


def test_the_note_on_a_tag_of_that_name_counts_while_there_is_no_anchor(
    make_repo: Callable[..., Path], git: Git
) -> None:
    root = make_repo()
    store = Store.open(root, Settings(durability="os"))
    store.ensure_ledger()
    view = root / ".scp-ledger/ledger/runs/old"
    view.mkdir(parents=True)
    record = {"run_id": "old", "type": "x", "started_at": "2026-02-17T20:45:00Z", "ended_at": ""}
    (view / "run.json").write_text(json.dumps(record))
    git(root / ".scp-ledger", "add", ".")
    git(root / ".scp-ledger", "commit", "--quiet", "--message", "a run of the earlier program")
    git(root, "tag", "--annotate", "scp/run/old", "--message", json.dumps(record))
    theirs = ChatMessage(text="theirs").model_dump_json()
    git(root, "notes", "--ref=scp-chat", "add", "--message", theirs, "refs/tags/scp/run/old")
    ours = store.send_message("ours", run_id="old")
    assert texts(store.list_messages(run_id="old")) == ["ours", "theirs"]
    assert lines(root, "chat/runs/old/messages.jsonl") == [ours.model_dump()]
    assert store.delete_message(json.loads(theirs)["id"], run_id="old")
    assert texts(store.list_messages(run_id="old")) == ["ours"]


# ---------------------------------------------------------------- reading


def test_messages_come_newest_first_a_page_at_a_time(store: Store, run_id: str) -> None:
    sent = [store.send_message(str(n), run_id=run_id) for n in range(7)]
    newest = sent[::-1]
    assert store.list_messages(run_id=run_id) == newest
    assert store.list_messages(run_id=run_id, n=3) == newest[:3]
    assert store.list_messages(run_id=run_id, n=3, before=newest[2].id) == newest[3:6]
    assert store.list_messages(run_id=run_id, n=3, before=newest[5].id) == newest[6:]
    assert store.list_messages(run_id=run_id, before=newest[6].id) == []
    assert store.list_messages(run_id=run_id, before="msg_unknown") == []
    assert store.list_messages(run_id=run_id, n=0) == store.list_messages(run_id=run_id, n=-1) == []


def test_both_places_are_merged_without_duplicates(store: Store, run_id: str) -> None:
    thread = store.create_thread("x").thread_id
    sent = [
        store.send_message("run", run_id=run_id),
        store.send_message("thread", thread_id=thread),
        store.send_message("both", run_id=run_id, thread_id=thread),
        store.send_message("run again", run_id=run_id),
    ]
    assert store.list_messages(run_id=run_id, thread_id=thread) == sent[::-1]
    assert store.list_messages(run_id=run_id, thread_id=thread, n=2) == sent[:1:-1]
    assert texts(store.list_messages(run_id=run_id)) == ["run again", "both", "run"]
    assert texts(store.list_messages(thread_id=thread)) == ["both", "thread"]


def test_what_does_not_exist_reads_as_empty(repo: Path) -> None:
    store = Store.open(repo)
    assert store.list_messages(run_id="r") == store.list_messages(thread_id="t") == []
    assert store.list_messages() == [] and store.list_threads() == []
    assert not store.delete_message("m") and not store.delete_thread("t")
    with pytest.raises(NotFound, match="message 'm'"):
        store.set_message_flags("m", publish=True)


def test_threads_come_newest_first(store: Store, run_id: str) -> None:
    made = [store.create_thread(f"t{n}", user="Bob", anchor_run=run_id, tags=["a", "b"]) for n in range(3)]
    assert store.list_threads() == made[::-1]
    assert made[0].created_by == "Bob" and made[0].anchor_run == run_id and made[0].tags == ["a", "b"]
    assert store.create_thread("x").created_by == "Ada Tester"


# ---------------------------------------------------------------- deleting, and flags


def test_deleting_a_message_covers_every_copy(store: Store, run_id: str, git: Git) -> None:
    thread = store.create_thread("x").thread_id
    for place in ({"run_id": run_id}, {"thread_id": thread}, {"run_id": run_id, "thread_id": thread}):
        kept = store.send_message("kept", run_id=run_id, thread_id=thread)
        gone = store.send_message("gone", run_id=run_id, thread_id=thread)
        assert store.delete_message(gone.id, **place)
        assert not store.delete_message(gone.id, **place)
        assert texts(store.list_messages(run_id=run_id)) == texts(store.list_messages(thread_id=thread))
        assert "gone" not in texts(store.list_messages(run_id=run_id))
        assert f"/{gone.id}" in git(store.root, "ls-tree", "-r", "--name-only", "scp-ledger-archive")
        assert kept in store.list_messages(run_id=run_id)


def test_a_deleted_message_is_refused_when_it_is_stored_again(store: Store) -> None:
    sent = store.send_message("x")
    assert store.delete_message(sent.id)
    ticket = store.sending(lambda: store.addressed(sent), size=100)
    with pytest.raises(AlreadyExists, match="was deleted"):
        store._wait(ticket)


def test_the_same_message_is_stored_once(store: Store, run_id: str) -> None:
    message = ChatMessage(text="x", run_id=run_id, thread_id="general")
    for new in (True, False):
        assert store._wait(store.sending(lambda: store.addressed(message), size=100)).new is new
    store.send_message("y", run_id=run_id)
    assert not store._wait(store.sending(lambda: store.addressed(message), size=100)).new
    assert texts(store.list_messages(run_id=run_id)) == ["y", "x"]
    other = message.model_copy(update={"text": "z"})
    with pytest.raises(AlreadyExists, match="other content"):
        store._wait(store.sending(lambda: store.addressed(other), size=100))
    assert texts(store.list_messages(run_id=run_id)) == ["y", "x"]


def test_the_last_message_leaves_no_empty_file(store: Store, run_id: str, git: Git) -> None:
    sent = store.send_message("x", run_id=run_id, thread_id="general")
    assert store.delete_message(sent.id)
    assert git(store.root, "notes", "--ref=scp-chat", "list") == ""
    assert [path.name for path in (store.root / ".scp-ledger/chat/threads/general").iterdir()] == [
        "thread.json"
    ]


def test_deleting_a_thread_keeps_what_lies_with_runs(store: Store, run_id: str) -> None:
    thread = store.create_thread("x").thread_id
    sent = store.send_message("both", run_id=run_id, thread_id=thread)
    assert store.delete_thread(thread) and not store.delete_thread(thread)
    assert store.list_threads() == [] and store.list_messages(thread_id=thread) == []
    assert store.list_messages(run_id=run_id) == [sent]
    assert not (store.root / ".scp-ledger/chat").exists()


def test_general_cannot_be_deleted(store: Store) -> None:
    store.send_message("x")
    with pytest.raises(NotAllowed, match="'general'"):
        store.delete_thread("general")
    assert texts(store.list_messages()) == ["x"]


def test_flags_are_set_in_every_copy_and_raise_the_revision(store: Store, run_id: str, git: Git) -> None:
    sent = store.send_message("x", run_id=run_id, thread_id="general")
    flagged = store.set_message_flags(sent.id, publish=True, run_id=run_id)
    assert flagged.flags == MessageFlags(publish=True) and flagged.model_extra == {"rev": 1}
    assert store.list_messages(run_id=run_id) == store.list_messages() == [flagged]
    assert store.set_message_flags(sent.id, publish=True) == flagged
    cleared = store.set_message_flags(sent.id, publish=False)
    assert cleared.model_extra == {"rev": 2} and not cleared.flags.publish
    assert (
        note(git, store.root, run_id)
        == (store.root / ".scp-ledger/chat/threads/general/messages.jsonl").read_text()
    )


# ---------------------------------------------------------------- any text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n",
        "\r",
        "\0",
        "é 😀 \u2028\u2029\x85",
        "ENC:v1:not:really:encrypted",
        '{"id":"x"}',
        "x" * 2**20,
    ],
    ids=range(9),
)
def test_any_text_comes_back_as_it_was(store: Store, run_id: str, text: str) -> None:
    sent = store.send_message(text, run_id=run_id, thread_id="general")
    assert sent.text == text and not sent.flags.encrypted
    assert store.list_messages(run_id=run_id) == store.list_messages() == [sent]


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", b"bytes", None, 5])
def test_what_is_no_text_is_refused_without_showing_it(store: Store, text: Any) -> None:
    for encrypt in (False, True):
        with pytest.raises(ValidationError) as caught:
            store.send_message(text, encrypt=encrypt)
        assert repr(text) not in str(caught.value)
    assert store.list_threads() == []


def test_a_message_too_large_for_a_line_is_refused(store: Store) -> None:
    with pytest.raises(RecordTooLarge, match="message"):
        store.send_message("x" * 4 * 2**20)
    assert store.list_threads() == []


@pytest.mark.parametrize("title", ["", "two\nlines", "\x1b[31mred", 'quo"te\\', "😀", "x" * 2**20])
def test_any_title_comes_back_as_it_was(store: Store, git: Git, title: str) -> None:
    assert store.list_threads() == [] == [store.create_thread(title)][1:]
    assert [thread.title for thread in store.list_threads()] == [title]
    assert "\x1b" not in git(store.root, "log", "scp-ledger")


def test_arguments_of_the_wrong_type_raise_at_once(store: Store) -> None:
    with pytest.raises(ValidationError):
        store.send_message("x", source="robot")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        store.send_message("x", publish="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="encrypt"):
        store.send_message("x", encrypt="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="publish"):
        store.set_message_flags("m", publish=1)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        store.create_thread("x", tags="abc")  # type: ignore[arg-type]
    assert ids(store.root) == []


# ---------------------------------------------------------------- events


def test_events_are_published_after_the_commit(store: Store, run_id: str) -> None:
    seen: list[Event] = []
    with bus.attach(seen.append):
        thread = store.create_thread("Roll-out")
        sent = store.send_message("x" * 100, run_id=run_id, thread_id=thread.thread_id, user="Bob")
        store.delete_message(sent.id, run_id=run_id)
        store.delete_message(sent.id, run_id=run_id)
        store.delete_thread(thread.thread_id)
        with pytest.raises(NotFound):
            store.send_message("x", run_id="unknown")
    ours = [event for event in seen if event.meta.get("root") == str(store.root)]
    place = {"thread_id": thread.thread_id, "run_id": run_id}
    said = {"user": "Bob", **place, "source": "manual", "encrypted": False, "preview": "x" * 80}
    assert [(event.type, event.key, event.data) for event in ours] == [
        ("chat:thread", thread.thread_id, {"title": "Roll-out"}),
        ("chat:message", sent.id, said),
        ("chat:deleted", sent.id, place),
        ("chat:deleted", thread.thread_id, {"thread_id": thread.thread_id, "run_id": None}),
    ]


# ---------------------------------------------------------------- the view


def test_what_a_power_cut_left_of_a_deleted_thread_goes_from_the_view(store: Store, run_id: str) -> None:
    thread = store.create_thread("x").thread_id
    store.send_message("x", thread_id=thread)
    folder = store.root / f".scp-ledger/chat/threads/{thread}"
    left = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert store.delete_thread(thread) and not folder.exists()
    folder.mkdir(parents=True)
    for name, data in left.items():
        (folder / name).write_bytes(data)
    store.ensure_ledger()
    assert not folder.exists()
