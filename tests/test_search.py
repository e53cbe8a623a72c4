"""A search finds what readers would show and nothing else, whatever is asked and whatever happened before."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pygit2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import scp_git
from scp_git import Run, SearchHit, SessionTrace, Settings, Store
from scp_git.index import search as search_module
from scp_git.index.grammar import parse_query, split_words
from scp_git.layout import note_path
from scp_git.ledger.archive import ArchiveRuns
from scp_git.ticket import Ticket
from tests.sight import put_files

QUICK = Settings(durability="os", hot_max=3, hot_min=2)
NOTES = "refs/notes/scp-chat"
SECRET = "zebra crossing"


@pytest.fixture
def store(repo: Path) -> Store:
    return Store.open(repo, QUICK)


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTENT_VAULT_ENC_KEY", "correct horse battery staple")


def files(root: Path) -> list[Path]:
    return sorted((root / ".git/scp").glob("index-search-*.db"))


def found(store: Store, query: str, **options: Any) -> list[str]:
    return [hit.id for hit in store.search(query, **options)]


# ---------------------------------------------------------------- what is found


def test_a_hit_says_what_it_is_and_where(store: Store) -> None:
    run = Run(
        type="apply",
        subtype="k8s:apply",
        user="ada",
        summary="Rolled out the gateway",
        metadata={"a": ["b7"]},
    )
    store.record_run(run)
    title = "Rolled out the gateway"
    assert store.search("gateway") == [
        SearchHit(
            kind="run", id=run.run_id, title=title, snippet=title, time=run.started_at, user="ada",
            run_id=run.run_id,
        )
    ]  # fmt: skip
    assert store.search("b7 rolled")[0].snippet.startswith("apply k8s:apply ok ada run_")
    thread = store.create_thread("Gateway trouble", user="bob", anchor_run=run.run_id)
    message = store.send_message(
        "the gateway answers slowly since noon", user="eve", run_id=run.run_id, thread_id=thread.thread_id
    )
    trace = SessionTrace(name="Gateway debugging", user="ada", auto_summary="3 events")
    store.save_trace(trace)
    hits = {hit.kind: hit for hit in store.search("GATEWAY")}
    assert hits.keys() == {"run", "thread", "message", "trace"}
    assert hits["message"].id == message.id
    assert (hits["message"].title, hits["message"].snippet) == (
        "eve",
        "the gateway answers slowly since noon",
    )
    assert (hits["message"].run_id, hits["message"].thread_id) == (run.run_id, thread.thread_id)
    assert (hits["thread"].id, hits["thread"].title) == (thread.thread_id, "Gateway trouble")
    assert (hits["trace"].id, hits["trace"].title) == (trace.trace_id, "Gateway debugging")
    assert [hit.kind for hit in store.search("gateway", kinds=["thread", "trace"])] == ["trace", "thread"]
    assert [hit.kind for hit in store.search("gateway", n=1)] == ["trace"]


def test_words_and_phrases(store: Store) -> None:
    texts = {
        "full": "the disk of web-1 is full", "other": "full moon, no disk", "accent": "Café déjà-vu ÜBER",
        "code": "k8s:apply failed with exit_code=137", "deploys": "three deployments", "cjk": "部署 完成",
        "nul": "a\0b", "quotes": 'he said "stop" twice',
    }  # fmt: skip
    ids = {name: store.send_message(text).id for name, text in texts.items()}

    def names(query: str) -> set[str]:
        return {name for name, id in ids.items() if id in found(store, query)}

    assert names("disk full") == {"full", "other"}
    assert names('"disk of" full') == {"full"}
    assert names('"full disk"') == set()
    assert names('"is full') == {"full"}
    assert names("web-1") == names('"WEB 1"') == {"full"}
    assert names("cafe deja") == names("CAFÉ") == names("über") == {"accent"}
    assert names("k8s:apply") == names("exit_code") == names("137") == {"code"}
    assert names("deplo*") == {"deploys"}
    assert names("deplo") == set()
    assert names("部署") == names("完*") == {"cjk"}
    assert names("b") == {"nul"}
    assert names("stop") == {"quotes"}
    assert names("") == names("... --- !!!") == names('"') == names("*") == set()
    assert names("disk :: ((") == {"full", "other"}


def test_the_newest_come_first_and_n_counts_records(store: Store) -> None:
    at = "2026-02-17T20:45:00Z"
    early = [store.record_run(Run(run_id=f"r{n}", type="tick", started_at=at)) for n in range(5)]
    late = store.record_run(Run(type="tick"))
    assert found(store, "tick") == [late, *early[::-1]]
    assert found(store, "tick", n=3) == [late, "r4", "r3"]
    run = store.record_run(Run(type="x"))
    message = store.send_message("twice tick", run_id=run, thread_id="general")
    assert found(store, "tick", n=2) == [message.id, late]
    assert found(store, "tick", n=0) == found(store, "tick", n=-1) == []
    assert len(found(store, "tick", n=2**70)) == 7


def test_an_encrypted_message_is_never_found_nor_kept(store: Store, repo: Path, key: None) -> None:
    run_id = store.record_run(Run(type="x"))
    store.send_message(SECRET, run_id=run_id, user="ada", encrypt=True)
    secret = store.send_message(SECRET, encrypt=True)
    # As somebody may paste it, without the flag.
    store.send_message(secret.text)
    for query in ("zebra", "ENC", "ENC:v1", secret.text, secret.text[7:30], "ada"):
        assert found(store, query, kinds=["message"]) == [], query
    store.close()
    stored = b"".join(path.read_bytes() for path in (repo / ".git/scp").glob("index-search*"))
    assert b"zebra" not in stored
    assert secret.text[7:27].encode() not in stored


@pytest.mark.untidy("a file put beside the view", skip=["view"])
def test_a_plain_copy_of_a_message_that_is_encrypted_elsewhere_is_not_found(store: Store, repo: Path) -> None:
    message = store.send_message("plain zebra")
    assert found(store, "zebra") == [message.id]
    sealed = message.model_dump() | {
        "text": "ENC:v1:AAAA:AAAA:AAAA",
        "flags": {"encrypted": True, "publish": False},
    }
    put_files(repo, {"chat/threads/other/messages.jsonl": json.dumps(sealed).encode() + b"\n"})
    assert found(store, "zebra") == []


def test_what_is_deleted_is_no_longer_found(store: Store) -> None:
    run_id = store.record_run(Run(type="alpha"))
    thread = store.create_thread("beta")
    trace = SessionTrace(name="gamma")
    store.save_trace(trace)
    noted = store.send_message("delta", run_id=run_id)
    said = store.send_message("epsilon", thread_id=thread.thread_id)
    words = ("alpha", "beta", "gamma", "delta", "epsilon")
    assert [len(found(store, word)) for word in words] == [1] * 5
    store.delete_message(said.id, thread_id=thread.thread_id)
    assert [len(found(store, word)) for word in words] == [1, 1, 1, 1, 0]
    store.delete_run(run_id)
    assert noted.id not in found(store, "delta")
    store.delete_thread(thread.thread_id)
    store.delete_trace(trace.trace_id)
    assert [found(store, word) for word in words] == [[]] * 5


def test_a_note_written_by_stock_git_is_found(store: Store, repo: Path, git: Callable[..., str]) -> None:
    run_id = store.record_run(Run(type="x"))
    line = '{"id":"msg_1","ts":"2026-02-17T20:45:00+00:00","text":"by hand"}'
    git(repo, "notes", "--ref=scp-chat", "add", "-m", f"{line}\nnonsense\n", f"scp/run/{run_id}")
    assert [(hit.id, hit.run_id) for hit in store.search("hand")] == [("msg_1", run_id)]


def test_a_note_on_something_else_is_not_found(store: Store, repo: Path, git: Callable[..., str]) -> None:
    store.record_run(Run(type="x"))
    line = '{"id":"msg_1","ts":"2026-02-17T20:45:00+00:00","text":"elsewhere"}'
    git(repo, "notes", "--ref=scp-chat", "add", "-m", line, "HEAD")
    assert store.search("elsewhere") == []


def test_in_a_repository_without_a_commit(make_repo: Callable[..., Path]) -> None:
    store = Store.open(make_repo(commits=0), QUICK)
    assert store.search("x") == []
    run_id = store.record_run(Run(type="x"))
    message = store.send_message("unanchored", run_id=run_id)
    assert [(hit.id, hit.run_id) for hit in store.search("unanchored")] == [(message.id, run_id)]


# ---------------------------------------------------------------- hostile queries

HOSTILE = [
    '"', '""', '" "', "'", "a AND", "NOT", "NEAR(a b", "a NEAR/2 b", "title:a", "{title body}:a", "a:b:c",
    "^a", "a^", "-a", "a -b", "+a", "a*b*", "***", "(a", ")", "a;DROP TABLE docs", "\0", "a\0b", "\ud800",
    "a\ud800b", "\x1b[2J", "%", "_", "\\", "a" * 1_000_000, "a " * 500_000, '"' * 100_000,
    '"a b" ' * 100_000, "*" * 10_000, "\u202e\u200b", "e\u0301" * 600, "\N{ZERO WIDTH JOINER}",
    "\N{WHITE FLAG}\N{ZERO WIDTH JOINER}\N{RAINBOW}", "ß", "İ", "ﬁ", "²", "٣", "א*", "\x85", "\u2028",
]  # fmt: skip


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    root = tmp_path_factory.mktemp("search") / "repo"
    repository = pygit2.init_repository(root, initial_head="main")
    repository.config["user.name"], repository.config["user.email"] = "Ada", "ada@example.org"
    store = Store.open(root, QUICK)
    store.record_run(Run(type="apply", summary="a b c ﬁle ß ² ٣ İ 🏳️‍🌈"))
    store.send_message("a NEAR b AND title NOT docs")
    yield store
    store.close()


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_that_is_typed_is_an_error(
    filled: Store, query: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(filled.search(query), list)
    assert not caplog.records, "the index was dropped or done without"


@given(st.text(max_size=40) | st.text('"*():^-+{} abANDORNEAR\0', max_size=40))
@example('"a" *')
def test_no_text_is_an_error(filled: Store, query: str) -> None:
    assert isinstance(filled.search(query), list)


@given(st.text(max_size=30), st.text(max_size=30))
def test_parsed_terms_hold_no_syntax(one: str, other: str) -> None:
    for term in parse_query(f'{one}"{other}'):
        assert term.words and '"' not in term.text
        assert term.matches(list(term.words))


def test_wrong_arguments(store: Store) -> None:
    with pytest.raises(ValueError, match="kinds are message, run, thread, trace"):
        store.search("x", kinds=["nonsense"])  # type: ignore[list-item]
    assert store.search("x", kinds=[]) == []


# ---------------------------------------------------------------- the same as readers say

WORDS = ["alpha", "beta", "gamma"]
WORD = st.sampled_from(WORDS)
NUMBERS = st.integers(0, 4)
PLACES = st.sampled_from(["run", "thread", "both", "general"])
STEPS = st.one_of(
    st.tuples(st.just("record"), NUMBERS, WORD),
    st.tuples(st.just("delete_run"), NUMBERS),
    st.tuples(st.just("archive"), NUMBERS),
    st.tuples(st.just("send"), NUMBERS, PLACES, WORD, st.booleans()),
    st.tuples(st.just("delete_message"), st.integers(0, 9)),
    st.tuples(st.just("publish"), st.integers(0, 9)),
    st.tuples(st.just("thread"), NUMBERS, WORD),
    st.tuples(st.just("delete_thread"), NUMBERS),
    st.tuples(st.just("trace"), NUMBERS, WORD),
    st.tuples(st.just("delete_trace"), NUMBERS),
    st.tuples(st.just("damage"), NUMBERS),
    st.tuples(st.just("note_by_hand"), NUMBERS, WORD),
    st.tuples(st.just("lose"), st.just(0)),
    st.tuples(st.just("look"), st.just(False)),
)


class Scene:
    """One repository in which everything happens, and a store that searches it again and again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store.open(root, QUICK)
        self.sent: list[scp_git.ChatMessage] = []

    def do(self, step: tuple[Any, ...]) -> None:
        try:
            getattr(self, step[0])(*step[1:])
        except (ValueError, LookupError):  # it is there, it is not, or it was deleted
            pass

    def record(self, number: int, word: str) -> None:
        at = f"2026-02-{number + 1:02}T10:00:00Z"
        self.store.record_run(Run(run_id=f"run-{number}", type="x", summary=word, started_at=at))

    def delete_run(self, number: int) -> None:
        self.store.delete_run(f"run-{number}")

    def archive(self, number: int) -> None:
        ids = tuple(f"run-{other}" for other in range(number + 1))
        self.store._wait(Ticket(lambda: ArchiveRuns(ids, False), size=1024))

    def send(self, number: int, place: str, word: str, encrypt: bool) -> None:
        run_id = f"run-{number}" if place in ("run", "both") else None
        thread_id = self.thread_ids[number] if place in ("thread", "both") else None
        self.sent.append(self.store.send_message(word, run_id=run_id, thread_id=thread_id, encrypt=encrypt))

    @property
    def thread_ids(self) -> list[str]:
        return [thread.thread_id for thread in self.store.list_threads()]

    def delete_message(self, number: int) -> None:
        message = self.sent[number]
        self.store.delete_message(message.id, run_id=message.run_id, thread_id=message.thread_id)

    def publish(self, number: int) -> None:
        message = self.sent[number]
        self.store.set_message_flags(
            message.id, publish=True, run_id=message.run_id, thread_id=message.thread_id
        )

    def thread(self, number: int, word: str) -> None:
        self.store.create_thread(f"{word} {number}")

    def delete_thread(self, number: int) -> None:
        self.store.delete_thread(self.thread_ids[number])

    def trace(self, number: int, word: str) -> None:
        self.store.save_trace(SessionTrace(trace_id=f"trace-{number}", name=word))

    def delete_trace(self, number: int) -> None:
        self.store.delete_trace(f"trace-{number}")

    def damage(self, number: int) -> None:
        put_files(self.root, {f"ledger/runs/run-{number}/run.json": b'{"run_id": "'})

    def note_by_hand(self, number: int, word: str) -> None:
        """Beside what is there, at another fan-out, as stock git may have it."""
        tag = pygit2.Repository(self.root).references.get(f"refs/tags/scp/run/run-{number}")
        if tag is not None:
            line = {"id": f"msg_hand_{number}", "ts": "2026-01-01T00:00:00+00:00", "text": word}
            path = note_path(str(tag.target)).replace("/", "")
            put_files(self.root, {path: json.dumps(line).encode()}, NOTES)

    def lose(self, _: int) -> None:
        for path in files(self.root):
            path.unlink()

    def look(self, last: bool) -> None:
        expected = self.readable()
        stores = [self.store, *([Store.open(self.root)] if last else [])]
        for each in stores:
            for word in WORDS:
                hits = [(hit.kind, hit.id) for hit in each.search(word, n=1000)]
                assert sorted(hits) == sorted(
                    key for key, text in expected.items() if word in split_words(text)
                )
                times = [hit.time for hit in each.search(word, n=1000)]
                assert times == sorted(times, reverse=True)
                assert [(hit.kind, hit.id) for hit in each.search(word, n=2)] == hits[:2]

    def readable(self) -> dict[tuple[str, str], str]:
        """The words of everything that the other verbs show, but for encrypted messages."""
        shown: dict[tuple[str, str], str] = {}
        messages: dict[str, scp_git.ChatMessage] = {}
        for run in self.store.list_runs(n=1000):
            shown["run", run.run_id] = run.summary
        for trace in self.store.list_traces(n=1000):
            shown["trace", trace.trace_id] = trace.name
        for thread in self.store.list_threads():
            shown["thread", thread.thread_id] = thread.title
        stored = self.store._chat
        for run_id in [f"run-{number}" for number in range(5)]:
            messages |= {m.id: m for m in stored.newest(run_id, None, n=1000, before=None)}
        for thread_id in {*self.thread_ids, "general"}:
            messages |= {m.id: m for m in stored.newest(None, thread_id, n=1000, before=None)}
        shown |= {("message", id): m.text for id, m in messages.items() if not m.flags.encrypted}
        return shown


TWO_NOTES = [("note_by_hand", 0, "alpha"), ("archive", 0), ("note_by_hand", 0, "beta")]


def play(root: Path, steps: list[tuple[Any, ...]]) -> None:
    scene = Scene(root)
    for step in [("thread", 0, "alpha"), ("record", 0, "beta"), *steps]:
        scene.do(step)
    scene.look(last=True)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=3, max_size=14))
@example(TWO_NOTES)
@pytest.mark.untidy("records damaged by hand", skip=["tags", "view", "status"])
def test_a_search_finds_what_the_readers_show_after_any_sequence_of_operations(
    make_repo: Callable[..., Path], key: None, steps: list[tuple[Any, ...]]
) -> None:
    play(make_repo(), steps)


@pytest.mark.full
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=3, max_size=30))
@pytest.mark.untidy("too many repositories to look at", skip=["tags", "view", "status", "fsck"])
def test_a_search_finds_what_the_readers_show_after_many_sequences(
    make_repo: Callable[..., Path], key: None, steps: list[tuple[Any, ...]]
) -> None:
    play(make_repo(), steps)


# ---------------------------------------------------------------- without a file, FTS5, or a repository


def test_a_spoiled_index_is_made_again(store: Store, repo: Path) -> None:
    made = store.record_run(Run(type="alpha"))
    assert found(store, "alpha") == [made]
    files(repo)[0].write_bytes(b"nonsense" * 1000)
    assert found(Store.open(repo), "alpha") == found(store, "alpha") == [made]


def test_a_locked_index_is_done_without(store: Store, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scp_git.index.database._BUSY_S", 0.1)
    made = store.record_run(Run(type="alpha"))
    assert found(store, "alpha") == [made]
    made = store.record_run(Run(type="beta"))
    blocker = sqlite3.connect(files(repo)[0], isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    assert found(Store.open(repo), "beta") == [made]
    blocker.execute("ROLLBACK")
    blocker.close()
    assert found(Store.open(repo), "beta") == [made]


def test_without_fts5_every_text_is_looked_at(repo: Path, monkeypatch: pytest.MonkeyPatch, key: None) -> None:
    monkeypatch.setattr(search_module, "_has_fts", lambda: False)
    steps = [
        ("record", 1, "alpha"), ("send", 1, "run", "beta", False), ("send", 1, "general", "beta", True),
        ("look", False), ("trace", 1, "alpha"), ("delete_run", 1), ("look", False), ("thread", 1, "gamma"),
    ]  # fmt: skip
    play(repo, steps)
    store = Store.open(repo)
    store.send_message("the disk of Café-1 is full")
    assert len(found(store, '"DISK of" cafe ful*')) == 1
    assert found(store, '"of disk"') == []
    assert files(repo) == []


def test_the_module_says_nothing_was_found_where_nothing_can_be_read(
    tmp_path: Path, repo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store.open(repo, QUICK)
    run_id = store.record_run(Run(type="alpha"))

    async def main() -> None:
        assert [hit.id for hit in await scp_git.search(repo, "alpha")] == [run_id]
        async with scp_git.open_store(repo) as opened:
            assert [hit.id for hit in await opened.search("alpha", kinds=["run"])] == [run_id]
        async with scp_git.bus.subscribe("scp:error") as events:
            assert await scp_git.search(tmp_path / "nowhere", "alpha") == []
            async for event in events:
                assert (event.data or {})["operation"] == "search"
                break

    anyio.run(main)
    assert "search failed (not-a-repository)" in caplog.text
