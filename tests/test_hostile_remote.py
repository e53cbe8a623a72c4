"""What a hostile remote can put into its branches: taken out and reported, and what is good comes in."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pygit2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pygit2.enums import ObjectType

from scp_git import Counts, Run, Store
from scp_git.codec import MAX_RECORD_BYTES, dump_pretty, load_object
from scp_git.errors import RemoteError, UnsupportedRepository
from scp_git.git import difference, validate
from scp_git.git.handle import Repository
from scp_git.git.history import History
from scp_git.git.merge import merge_states
from scp_git.git.names import is_plain_path
from scp_git.git.objects import Kind, ObjectStore, hash_object
from scp_git.git.remote import Remote
from scp_git.git.snapshot import Snapshot, snapshot
from scp_git.git.tree import TreeEditor, raw_mode
from scp_git.git.validate import Fetched, Skipped, fetched_state
from scp_git.layout import ARCHIVE_REF, LEDGER_REF, NOTES_REF, archived_run_dir, deleted_path, run_dir
from tests.servers import Server, git_daemon

# What was fetched lies in the object database, and fsck looks at everything there.
pytestmark = pytest.mark.untidy("the objects of a hostile remote are here", skip=["fsck"])

Entry = tuple[bytes, bytes, str]
"""Mode, name and object id, as they stand in a tree."""
FILE, LINK, MODULE, FOLDER = b"100644", b"120000", b"160000", b"40000"
NOTE = "c" * 40


class Hostile:
    """A bare repository whose objects are written byte by byte."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repo = pygit2.init_repository(path, bare=True)

    def blob(self, data: bytes) -> str:
        return str(self.repo.odb.write(ObjectType.BLOB, data))

    def tree(self, entries: Iterable[Entry], *, sort: bool = True) -> str:
        rows = [mode + b" " + name + b"\0" + bytes.fromhex(oid) for mode, name, oid in entries]
        return str(self.repo.odb.write(ObjectType.TREE, b"".join(sorted(rows, key=_order) if sort else rows)))

    def files(self, files: dict[str, bytes | Entry]) -> str:
        """A tree of paths; an ``Entry`` instead of bytes is put there as it is."""
        here: dict[str, Entry] = {}
        below: dict[str, dict[str, bytes | Entry]] = {}
        for path, data in files.items():
            head, slash, rest = path.partition("/")
            if slash:
                below.setdefault(head, {})[rest] = data
            else:
                here[head] = data if isinstance(data, tuple) else (FILE, head.encode(), self.blob(data))
        folders = [(FOLDER, name.encode(), self.files(inside)) for name, inside in below.items()]
        return self.tree([*here.values(), *folders])

    def publish(self, ref: str, tree: str, message: str = "hello") -> str:
        who = "Eve <eve@example.org> 1700000000 +0000"
        data = f"tree {tree}\nauthor {who}\ncommitter {who}\n\n{message}\n\nScp-Git: 1\n".encode()
        oid = str(self.repo.odb.write(ObjectType.COMMIT, data))
        (self.path / ref).parent.mkdir(parents=True, exist_ok=True)
        (self.path / ref).write_text(oid + "\n")
        return oid


def _order(row: bytes) -> bytes:
    name = row.partition(b"\0")[0].partition(b" ")[2]
    return name + b"/" if row.startswith(FOLDER) else name


def run_json(run_id: str, **more: object) -> bytes:
    started = "2026-02-17T20:45:00.000000+00:00"
    return dump_pretty({"run_id": run_id, "type": "apply", "started_at": started, "status": "ok", **more})


GOOD: dict[str, bytes | Entry] = {"FORMAT": b"1\n", f"{run_dir('good')}/run.json": run_json("good")}


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    return Hostile(tmp_path / "hostile.git")


def fetched(root: Path, hostile: Hostile) -> tuple[Fetched, Snapshot, ObjectStore]:
    """What comes out of the remote's branches, beside what is here."""
    repository = Repository.open(root)
    remote = Remote(str(hostile.path), name="origin", git_dir=repository.common_dir, timeout_s=10)
    there = remote.refs()
    refs = {
        ref: ref.replace("refs/", "refs/scp/remotes/origin/") for ref in (LEDGER_REF, ARCHIVE_REF, NOTES_REF)
    }
    remote.fetch([f"+{ref}:{here}" for ref, here in refs.items() if ref in there])
    odb = repository.open_odb()
    ours = snapshot(repository, odb)
    store = ObjectStore(odb)
    for editor in (ours.ledger, ours.archive, ours.notes):
        editor.store = store
    history = History(store)
    tips = {ref: repository.refs.read(here) for ref, here in refs.items()}
    trees = {ref: history.tree(tip) for ref, tip in tips.items() if tip}
    return fetched_state(store, trees, ours, remote="origin"), ours, store


def merged(root: Path, hostile: Hostile) -> tuple[Snapshot, list[Skipped]]:
    state, ours, _ = fetched(root, hostile)
    merge_states(ours, state)
    return ours, state.skipped


def paths(state: Snapshot | Fetched) -> set[str]:
    return {path for editor in (state.ledger, state.archive, state.notes) for path, _ in editor.files()}


def planted(hostile: Hostile, entry: Entry) -> dict[str, bytes | Entry]:
    return {**GOOD, f"{run_dir('bad')}/run.json": run_json("bad"), f"{run_dir('bad')}/x": entry}


# ---------------------------------------------------------------- names and modes

NAMES = {
    "dot dot": b"..",
    "dot": b".",
    "git": b".git",
    "git, by another name": b".GIT",
    "git, by its short name": b"git~1",
    "submodules": b".gitmodules",
    "attributes": b".gitattributes",
    "a path": b"../../../../pwned",
    "a slash": b"a/b",
    "a backslash": b"a\\b",
    "a stream": b"run.json::$DATA",
    "a device's dot": b"x.",
    "an escape": b"\x1b]0;pwned\x07",
    "right to left": "\u202ejpg".encode(),
    "no UTF-8": b"\xff\xfe",
    "zero width": ".g\u200cit".encode(),
    "a newline": b"a\nb",
    "long and bad": b"x" * 5000 + b"\x00"[:0] + b"*",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_name_is_taken_out(hostile: Hostile, repo: Path, name: str) -> None:
    entry = (FILE, NAMES[name], hostile.blob(b"x"))
    hostile.publish(LEDGER_REF, hostile.files(planted(hostile, entry)))
    state, skipped = merged(repo, hostile)
    assert paths(state) == {"FORMAT", f"{run_dir('good')}/run.json", f"{run_dir('bad')}/run.json"}
    assert [(each.ref, each.reason, each.kept) for each in skipped] == [
        (LEDGER_REF, "its name is not plain", False)
    ]
    assert skipped[0].path.startswith(f"{run_dir('bad')}/")
    assert skipped[0].path.isprintable() and len(skipped[0].path) < 2000


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        (LINK, "it is a symbolic link"),
        (MODULE, "it is a submodule"),
        (b"100600", None),
        (b"100666", None),
        (b"040000", "its mode is not one of a file"),  # git itself writes 40000
        (b"060000", "its mode is not one of a file"),
    ],
)
def test_only_regular_files_come_in(hostile: Hostile, repo: Path, mode: bytes, reason: str | None) -> None:
    oid = hostile.tree([]) if mode == b"040000" else hostile.blob(b"/etc/passwd")
    for path in ("run.json", "x"):
        run = {**GOOD, f"{run_dir('bad')}/{path}": (mode, path.encode(), oid)}
        hostile.publish(LEDGER_REF, hostile.files(run))
        state, skipped = merged(repo, hostile)
        assert f"{run_dir('good')}/run.json" in paths(state)
        assert f"{run_dir('bad')}/{path}" not in paths(state)
        assert [each.reason for each in skipped] == [reason or "its mode is not one of a file"]


def test_executable_files_lose_the_bit(hostile: Hostile, repo: Path) -> None:
    path = f"{run_dir('good')}/run.json"
    hostile.publish(
        LEDGER_REF, hostile.files({path: (b"100755", b"run.json", hostile.blob(run_json("good")))})
    )
    state, skipped = merged(repo, hostile)
    assert [(each, raw_mode(raw)) for each, raw in state.ledger.files()] == [(path, b"100644")]
    assert skipped == []


def test_a_link_in_the_place_of_a_folder_is_taken_out(hostile: Hostile, repo: Path) -> None:
    link = hostile.blob(b"../..")
    for path in ("ledger", "ledger/runs", f"{run_dir('bad')}"):
        files = {"FORMAT": b"1\n", path: (LINK, path.rpartition("/")[2].encode(), link)}
        hostile.publish(LEDGER_REF, hostile.files(files))
        state, skipped = merged(repo, hostile)
        assert paths(state) == {"FORMAT"}
        assert len(skipped) == 1


# ---------------------------------------------------------------- places

WRONG_LEDGER = {
    "an id that leads out": f"ledger/runs/{'.hidden'}/run.json",
    "a device": "ledger/runs/con/run.json",
    "a lock": "chat/threads/x.lock/thread.json",
    "a file for a run": "ledger/runs/x",
    "a file for all threads": "chat/threads",
    "a file for all chat": "chat",
    "a trace with a space": "ledger/traces/a b/trace.json",
}
WRONG_ARCHIVE = {
    "in another shard": "runs/other/00/x/run.json",
    "on another day": "runs/2026/02/18/"
    + archived_run_dir("run_2026-02-17T204500_a_b").partition("17/")[2]
    + "/run.json",
    "no day": "runs/x/y/z/00/x/run.json",
    "a file for a day": "runs/2026/02/17",
    "a deletion in another shard": "deleted/run/00/good",
    "a deletion of a thing": "deleted/thing/00/x",
    "a deletion with a folder": deleted_path("run", "x") + "/y",
    "a deletion that is no JSON": deleted_path("run", "good"),
}


@pytest.mark.parametrize("name", [*WRONG_LEDGER, *WRONG_ARCHIVE])
def test_what_lies_in_the_wrong_place_is_taken_out(hostile: Hostile, repo: Path, name: str) -> None:
    hostile.publish(
        LEDGER_REF, hostile.files({**GOOD, **({WRONG_LEDGER[name]: b"{}"} if name in WRONG_LEDGER else {})})
    )
    if name in WRONG_ARCHIVE:
        hostile.publish(ARCHIVE_REF, hostile.files({"FORMAT": b"1\n", WRONG_ARCHIVE[name]: b"nonsense"}))
    state, skipped = merged(repo, hostile)
    assert paths(state) == {"FORMAT", f"{run_dir('good')}/run.json"}
    assert len(skipped) == 1 and not skipped[0].kept


def test_files_of_others_come_in_whatever_they_are_called(hostile: Hostile, repo: Path) -> None:
    others = {"README.md": b"x", "run.json": run_json("x"), "docs/trace.json": b"{", "a/b/run.json": b"{}"}
    hostile.publish(LEDGER_REF, hostile.files({**GOOD, **others}))
    state, skipped = merged(repo, hostile)
    assert paths(state) == {*GOOD, *others}
    assert [(each.path, each.kept) for each in skipped] == [("docs/trace.json", True)]


NOT_NOTES = ["x", "ab/x", f"ab/{'c' * 37}", "zz/" + "c" * 38, "ab/" * 21 + "c", f"{'A' * 40}", "readme.txt"]


@pytest.mark.parametrize("path", NOT_NOTES)
def test_what_is_no_note_is_taken_out(hostile: Hostile, repo: Path, path: str) -> None:
    hostile.publish(NOTES_REF, hostile.files({f"{NOTE[:2]}/{NOTE[2:]}": b'{"id":"m"}\n', path: b"x"}))
    state, skipped = merged(repo, hostile)
    assert paths(state) == {f"{NOTE[:2]}/{NOTE[2:]}"}
    assert len(skipped) == 1


def test_a_note_that_is_a_folder_is_taken_out(hostile: Hostile, repo: Path) -> None:
    hostile.publish(NOTES_REF, hostile.files({f"{NOTE}/x": b"x", "d" * 40: b'{"id":"m"}\n'}))
    state, skipped = merged(repo, hostile)
    assert paths(state) == {f"dd/{'d' * 38}"}
    assert [each.reason for each in skipped] == ["it is no folder of notes"]


# ---------------------------------------------------------------- objects


def test_a_huge_file_is_refused_by_its_header_alone(hostile: Hostile, repo: Path) -> None:
    # 70 MB of zeros, which zlib makes 70 kB of.
    size = 70_000_000
    header = f"blob {size}\0".encode()
    squeeze, whole = zlib.compressobj(9), hashlib.sha1(header)
    packed = squeeze.compress(header)
    for _ in range(size // 1_000_000):
        packed += squeeze.compress(bytes(1_000_000))
        whole.update(bytes(1_000_000))
    oid = whole.hexdigest()
    place = hostile.path / "objects" / oid[:2] / oid[2:]
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(packed + squeeze.flush())
    paths_ = [f"{run_dir('bad')}/run.json", f"{run_dir('bad')}/events.jsonl", f"{run_dir('bad')}/other"]
    huge = {path: (FILE, path.rpartition("/")[2].encode(), oid) for path in paths_}
    hostile.publish(LEDGER_REF, hostile.files({**GOOD, **huge}))
    state, skipped = merged(repo, hostile)
    assert paths(state) == {"FORMAT", f"{run_dir('good')}/run.json"}
    assert {each.path for each in skipped} == set(paths_)
    assert all(f"it has {size} bytes, the limit is " in each.reason for each in skipped)
    assert f"limit is {MAX_RECORD_BYTES}" in skipped[-1].reason


def test_missing_and_mistyped_objects_are_taken_out(hostile: Hostile, repo: Path) -> None:
    folder, file = hostile.tree([]), hostile.blob(b"x")
    here = Repository.open(repo)
    # A server would not send a broken state, so it is planted here.
    local = Hostile(hostile.path)
    tree = local.files(GOOD)
    for entry in {
        "missing": (FILE, b"run.json", "1" * 40),
        "null": (FILE, b"run.json", "0" * 40),
        "folder for a file": (FILE, b"run.json", folder),
        "file for a folder": (FOLDER, b"events.jsonl", file),
        "missing folder": (FOLDER, b"sub", "2" * 40),
    }.values():
        bad = local.tree([entry])
        runs = local.tree([(FOLDER, b"bad", bad), *_entries(local, tree, "ledger/runs")])
        root = local.tree([(FOLDER, b"ledger", local.tree([(FOLDER, b"runs", runs)]))])
        odb = pygit2.Repository(local.path).odb
        store = ObjectStore(_OdbOf(odb))
        ours = snapshot(here, here.open_odb())
        state = fetched_state(store, {LEDGER_REF: root}, ours, remote="origin")
        assert paths(state) == {f"{run_dir('good')}/run.json"}
        assert len(state.skipped) == 1 and "its object is" in state.skipped[0].reason


class _OdbOf:
    """Reads from any libgit2 object database."""

    def __init__(self, odb: pygit2.Odb) -> None:
        from scp_git.git.handle import Odb

        self._odb = odb
        self._kinds = Odb._KINDS

    def header(self, oid: str) -> object:
        try:
            kind, size = self._odb.read_header(oid)
        except (KeyError, ValueError):
            return None
        return self._kinds[int(kind)], size

    def kind(self, oid: str) -> object:
        raise NotImplementedError

    def read(self, oid: str, *, limit: int | None = None) -> object:
        try:
            kind, data = self._odb.read(oid)
        except (KeyError, ValueError):
            return None
        return self._kinds[int(kind)], data


def _entries(hostile: Hostile, tree: str, path: str) -> list[Entry]:
    found = hostile.repo[tree] / path
    return [(FOLDER, each.name.encode(), str(each.id)) for each in found]


def test_a_tree_that_is_none_counts_as_empty(hostile: Hostile, repo: Path) -> None:
    here = Repository.open(repo)
    store = ObjectStore(_OdbOf(hostile.repo.odb))
    for oid in (hostile.blob(b"x"), "1" * 40):
        trees = {LEDGER_REF: oid, ARCHIVE_REF: hostile.files({"FORMAT": b"1\n"})}
        state = fetched_state(store, trees, snapshot(here, here.open_odb()), remote="origin")
        assert paths(state) == {"FORMAT"}
        assert [each.ref for each in state.skipped] == [LEDGER_REF]
        assert "its tree cannot be used" in state.skipped[0].reason


@pytest.mark.parametrize("kind", ["blob", "tree", "tag", "huge"])
def test_a_branch_that_leads_to_no_commit_is_an_error(hostile: Hostile, repo: Path, kind: str) -> None:
    hostile.publish(ARCHIVE_REF, hostile.files({"FORMAT": b"1\n"}))
    oid = hostile.publish(LEDGER_REF, hostile.files(GOOD))
    if kind == "blob":
        oid = hostile.blob(b"x")
    elif kind == "tree":
        oid = hostile.files(GOOD)
    elif kind == "tag":
        data = f"object {oid}\ntype commit\ntag x\n\n".encode()
        oid = str(hostile.repo.odb.write(ObjectType.TAG, data))
    else:
        oid = hostile.publish(LEDGER_REF, hostile.files(GOOD), message="x" * 2_000_000)
    (hostile.path / LEDGER_REF).write_text(oid + "\n")
    pygit2.Repository(repo).config["remote.origin.url"] = str(hostile.path)
    with pytest.raises(RemoteError, match=f"{LEDGER_REF} leads to no commit that can be read"):
        Store.open(repo).pull()


def test_a_name_that_stands_twice_and_a_wrong_order_are_mended(hostile: Hostile, repo: Path) -> None:
    first, second = hostile.blob(b"1\n"), hostile.blob(b"0\n")
    runs = hostile.files({f"{run_dir(name)}/run.json": run_json(name) for name in ("a", "b")})
    ledger = str((hostile.repo[runs] / "ledger").id)
    entries = [(FOLDER, b"ledger", ledger), (FILE, b"FORMAT", first), (FILE, b"FORMAT", second)]
    hostile.publish(LEDGER_REF, hostile.tree(entries, sort=False))
    state, ours, store = fetched(repo, hostile)
    assert state.skipped == []
    merge_states(ours, state)
    assert state.ledger.write() == ours.ledger.write()
    assert sorted(state.ledger.names("")) == ["FORMAT", "ledger"]
    assert store.added[state.ledger.write()][1].index(b"FORMAT") < 10


# ---------------------------------------------------------------- too much of everything


def test_a_tree_of_repeating_trees_is_refused_as_a_whole(
    hostile: Hostile, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "MAX_ENTRIES", 20_000)
    leaf, name = hostile.blob(b"x"), "0123456789abcdef"
    level = hostile.tree((FILE, c.encode(), leaf) for c in name)
    for _ in range(9):
        level = hostile.tree((FOLDER, c.encode(), level) for c in name)
    hostile.publish(LEDGER_REF, hostile.tree([(FOLDER, b"bomb", level)]))
    with pytest.raises(RemoteError, match="'origin': its ledger holds more than 20000 new entries"):
        fetched(repo, hostile)


def test_a_comparison_of_trees_ends_as_well(hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch's history may hold what was taken out of its state."""
    monkeypatch.setattr(difference, "MAX_ROWS", 1000)
    level = hostile.tree([(FILE, b"x", hostile.blob(b"x"))])
    for _ in range(12):
        level = hostile.tree((FOLDER, c.encode(), level) for c in "0123456789abcdef")
    store = ObjectStore(_OdbOf(hostile.repo.odb))
    assert 0 < len(list(difference.differing_files(store, None, level))) < 1000


def test_a_few_bytes_that_stand_for_many_are_refused_as_a_whole(
    hostile: Hostile, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "MAX_BYTES", 10_000_000)
    part = hostile.blob(b" " * 1_000_000)
    parts = {
        f"{run_dir('x')}/events-{n:04}.jsonl": (FILE, f"events-{n:04}.jsonl".encode(), part)
        for n in range(11)
    }
    hostile.publish(LEDGER_REF, hostile.files(parts))
    with pytest.raises(RemoteError, match="more than 10000000 bytes that are new; nothing was merged"):
        fetched(repo, hostile)


def test_what_lies_too_deep_is_taken_out(hostile: Hostile, repo: Path) -> None:
    level = hostile.tree([(FILE, b"x", hostile.blob(b"x"))])
    for _ in range(300):
        level = hostile.tree([(FOLDER, b"d", level)])
    hostile.publish(LEDGER_REF, hostile.tree([(FOLDER, b"deep", level), *_good_root(hostile)]))
    state, skipped = merged(repo, hostile)
    assert paths(state) == {"FORMAT", f"{run_dir('good')}/run.json"}
    assert [each.reason for each in skipped] == ["it lies deeper than 24 folders"]


def _good_root(hostile: Hostile) -> list[Entry]:
    return [
        (FOLDER if each.type_str == "tree" else FILE, each.name.encode(), str(each.id))
        for each in hostile.repo[hostile.files(GOOD)]
    ]


def test_of_very_many_bad_entries_a_thousand_are_named(hostile: Hostile, repo: Path) -> None:
    link = hostile.blob(b"/etc/passwd")
    entries = [(LINK, f"x{n:05}".encode(), link) for n in range(20_000)]
    hostile.publish(LEDGER_REF, hostile.tree([*entries, *_good_root(hostile)]))
    state, skipped = merged(repo, hostile)
    assert paths(state) == {"FORMAT", f"{run_dir('good')}/run.json"}
    assert len(skipped) == 1001
    assert skipped[-1].reason == "19000 further entries, not named here"


# ---------------------------------------------------------------- records

UNREADABLE = {
    "no JSON": b"{",
    "a list": b"[]\n",
    "not a number": b'{"run_id":"bad","x":NaN}\n',
    "infinite": b'{"run_id":"bad","x":1e999}\n',
    "a key twice": b'{"run_id":"bad","run_id":"good"}\n',
    "deep": b'{"run_id":"bad","x":' + b"[" * 500 + b"]" * 500 + b"}\n",
    "deeper": b'{"run_id":"bad","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "many digits": b'{"run_id":"bad","x":' + b"9" * 5000 + b"}\n",
    "UTF-16": '{"run_id":"bad"}'.encode("utf-16"),
    "a mark in front": b'\xef\xbb\xbf{"run_id":"bad"}',
    "no UTF-8": b'{"run_id":"bad","x":"\xff"}',
    "conflict markers": b'<<<<<<< ours\n{"run_id":"bad"}\n=======\n>>>>>>> theirs\n',
    "another id": run_json("good"),
    "empty": b"",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_record_is_reported_kept_and_never_shown(
    hostile: Hostile, repo: Path, name: str
) -> None:
    path = f"{run_dir('bad')}/run.json"
    hostile.publish(LEDGER_REF, hostile.files({**GOOD, path: UNREADABLE[name]}))
    state, skipped = merged(repo, hostile)
    assert [(each.path, each.kept) for each in skipped] == [(path, True)]
    assert state.ledger.read(path) == UNREADABLE[name], "a sync must not delete it for everybody"


def test_json_is_read_to_a_depth_that_can_be_written_again() -> None:
    assert load_object(b'{"x":' + b"[" * 63 + b"]" * 63 + b"}")
    assert load_object(b'{"x":[' + b"{}," * 200 + b"0]}")
    with pytest.raises(ValueError, match="nested deeper than 64"):
        load_object(b'{"x":' + b"[" * 64 + b"]" * 64 + b"}")


@pytest.mark.parametrize("format", [b"2\n", b"99999999999\n", b"-1\n", b"one\n"])
@pytest.mark.parametrize("ref", [LEDGER_REF, ARCHIVE_REF])
def test_a_higher_format_is_refused(hostile: Hostile, repo: Path, ref: str, format: bytes) -> None:
    hostile.publish(ref, hostile.files({"FORMAT": format}))
    with pytest.raises(UnsupportedRepository, match="origin: the ledger has format"):
        fetched(repo, hostile)


ANCHORS: list[object] = [
    {"target": "x" * 40, "tagger": "E <e@x> 1 +0000"},
    {"target": "--upload-pack=x", "tagger": "E <e@x> 1 +0000"},
    {"target": "a" * 40, "tagger": "E <e@x> 1 +0000\ntag v1.0"},
    {"target": "a" * 40, "tagger": "E\0 <e@x> 1 +0000"},
    {"target": "a" * 40, "tagger": "nobody"},
    {"target": "A" * 40, "tagger": "E <e@x> 1 +0000"},
    {"target": ["a" * 40], "tagger": {}},
    "a" * 40,
    [],
]


@pytest.mark.parametrize("anchor", ANCHORS)
def test_an_anchor_that_is_none_makes_no_tag(
    hostile: Hostile, repo: Path, anchor: object, git: Callable[..., str]
) -> None:
    files = {**GOOD, f"{run_dir('bad')}/run.json": run_json("bad", anchor=anchor)}
    hostile.publish(LEDGER_REF, hostile.files(files))
    git(repo, "remote", "add", "origin", str(hostile.path))
    git(repo, "fetch", "-q", "origin", f"{LEDGER_REF}:refs/remotes/origin/scp-ledger")
    store = Store.open(repo)
    store.ensure_ledger()
    assert {run.run_id for run in store.list_runs()} == {"good", "bad"}
    assert git(repo, "for-each-ref", "refs/tags") == ""


# ---------------------------------------------------------------- a pull, as a whole


def test_a_pull_takes_what_is_good_and_says_what_is_not(hostile: Hostile, repo: Path, tmp_path: Path) -> None:
    """Issue SYNC, point 5: a bad record is skipped and reported, good ones come in; no symlink is written."""
    link = hostile.blob(str(tmp_path / "outside").encode())
    bad: dict[str, bytes | Entry] = {
        f"{run_dir('linked')}/run.json": (LINK, b"run.json", link),
        f"{run_dir('broken')}/run.json": b"{",
        "ledger/traces": (LINK, b"traces", link),
        "chat/threads/..x/thread.json": b"{}",
        f"{run_dir('good')}/.git": b"gitdir: /nowhere",
    }
    hostile.publish(LEDGER_REF, hostile.files({**GOOD, **bad}))
    hostile.publish(ARCHIVE_REF, hostile.files({"FORMAT": b"1\n", deleted_path("run", "mine"): b"["}))
    hostile.publish(NOTES_REF, hostile.files({"readme": b"x", NOTE: b'{"id":"m"}\n'}))
    pygit2.Repository(repo).config["remote.origin.url"] = str(hostile.path)
    store = Store.open(repo)
    store.record_run(Run(run_id="mine", type="x"))
    report = store.pull()
    assert {(each.path, each.kept) for each in report.skipped} == {
        (f"{run_dir('linked')}/run.json", False),
        (f"{run_dir('broken')}/run.json", True),
        ("ledger/traces", False),
        ("chat/threads/..x", False),
        (f"{run_dir('good')}/.git", False),
        (deleted_path("run", "mine"), False),
        ("readme", False),
    }
    assert {run.run_id for run in store.list_runs()} == {"good", "mine"}
    assert [path for path in (repo / ".scp-ledger").rglob("*") if path.is_symlink()] == []
    assert not (tmp_path / "outside").exists()
    assert store.sync().in_step
    assert store.pull().skipped == (), "the remote was cleaned by the push"
    assert store.sync().in_step


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with git_daemon(tmp_path_factory.mktemp("daemon")) as server:
        yield server


@pytest.mark.system("git")
@pytest.mark.parametrize("kind", ["bomb", "well", "note"])
def test_what_was_taken_out_is_not_counted_either(daemon: Server, repo: Path, kind: str) -> None:
    """Counting what came in, what was sent and how far both are apart reads nothing of it."""
    hostile = Hostile(daemon.folder / f"{kind}.git")
    hostile.publish(LEDGER_REF, hostile.files(GOOD))
    level = hostile.tree([(FILE, b"x", hostile.blob(b"x"))])
    if kind == "bomb":
        for _ in range(12):
            level = hostile.tree((FOLDER, c.encode(), level) for c in "0123456789abcdef")
        chat = hostile.tree([(FOLDER, b"threads", hostile.tree([(FOLDER, b"con", level)]))])
        hostile.publish(LEDGER_REF, hostile.tree([(FOLDER, b"chat", chat), *_good_root(hostile)]))
    elif kind == "well":
        for _ in range(500):
            level = hostile.tree([(FOLDER, b"d", level)])
        hostile.publish(LEDGER_REF, hostile.tree([(FOLDER, b"deep", level), *_good_root(hostile)]))
    else:
        huge = hostile.blob(b'{"id":"m"}\n' * 7_000_000)
        hostile.publish(NOTES_REF, hostile.tree([(FILE, NOTE.encode(), huge)]))
    pygit2.Repository(repo).config["remote.origin.url"] = daemon.url(kind)
    store = Store.open(repo)
    store.record_run(Run(run_id="mine", type="x"))
    before = store.sync_status(fetch=True)
    assert before is not None and (before.ahead.runs, before.behind.runs) == (1, 1)
    report = store.sync()
    assert report.in_step and report.skipped
    assert (report.received, report.sent) == (Counts(runs=1), Counts(runs=1))
    after = store.sync_status(fetch=True)
    assert after is not None and after.in_step, "the push cleaned the remote"


def test_tags_of_the_remote_are_not_looked_at(hostile: Hostile, repo: Path, git: Callable[..., str]) -> None:
    """Issue SYNC, point 5: a tag is only ever made from its anchor."""
    here = git(repo, "rev-parse", "HEAD").strip()
    anchor = {"target": here, "tagger": "Eve <eve@example.org> 1700000000 +0000"}
    files = {**GOOD, f"{run_dir('mine')}/run.json": run_json("mine", anchor=anchor)}
    tip = hostile.publish(LEDGER_REF, hostile.files(files))
    for name in ("good", "mine", "unheard-of", "../../heads/main"):
        path = (hostile.path / "refs/tags/scp/run" / name).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{tip}\n")
    git(repo, "remote", "add", "origin", str(hostile.path))
    Store.open(repo).pull()
    shown = git(repo, "for-each-ref", "--format=%(refname) %(*objectname)", "refs/tags")
    assert shown == f"refs/tags/scp/run/mine {here}\n"


# ---------------------------------------------------------------- what never leaves the view


@pytest.mark.untidy("the branch itself is what stock git objects to")
@pytest.mark.parametrize("name", [b"..", b".git", b"../../escaped", b"link"])
def test_a_branch_that_was_fetched_by_hand_leads_nowhere(
    hostile: Hostile, repo: Path, name: bytes, git: Callable[..., str], tmp_path: Path
) -> None:
    """Also when it bears our trailer, so that it is taken for ours."""
    inner = hostile.tree([(FOLDER, b"..", hostile.tree([(FILE, b"escaped", hostile.blob(b"out"))]))])
    entries: list[Entry] = [(FILE, name, hostile.blob(b"gitdir: /nowhere\n"))]
    if name == b"..":
        entries = [(FOLDER, b"..", inner)]
    elif name == b"link":
        entries = [(LINK, b"link", hostile.blob(b"/etc/passwd"))]
    hostile.publish(LEDGER_REF, hostile.tree([*entries, *_good_root(hostile)]))
    git(repo, "fetch", "-q", str(hostile.path), f"{LEDGER_REF}:{LEDGER_REF}")
    before = set(tmp_path.iterdir())
    store = Store.open(repo)
    store.ensure_ledger()
    store.record_run(Run(run_id="mine", type="x"))
    store.delete_run("good")
    assert set(tmp_path.iterdir()) == before
    assert not (repo / "escaped").exists()
    assert (repo / ".scp-ledger/.git").read_text().startswith(f"gitdir: {repo}")
    assert not (repo / ".scp-ledger/link").is_symlink()
    assert json.loads((repo / ".scp-ledger/ledger/runs/mine/run.json").read_text())["run_id"] == "mine"
    assert os.listdir(repo / ".scp-ledger/ledger/runs") == ["mine"]


# ---------------------------------------------------------------- anything at all


class Memory:
    """An object database that holds whatever it is given."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[Kind, bytes]] = {}

    def add(self, kind: Kind, data: bytes) -> str:
        oid = hash_object(kind, data)
        self.objects[oid] = (kind, data)
        return oid

    def read(self, oid: str, *, limit: int | None = None) -> tuple[Kind, bytes] | None:
        return self.objects.get(oid)

    def kind(self, oid: str) -> Kind | None:
        return self.objects[oid][0] if oid in self.objects else None

    def header(self, oid: str) -> tuple[Kind, int] | None:
        found = self.objects.get(oid)
        return (found[0], len(found[1])) if found else None


class State:
    def __init__(self, store: ObjectStore) -> None:
        self.ledger, self.archive, self.notes = (TreeEditor(store) for _ in range(3))


GOOD_RUN = f"{run_dir('good')}/run.json"
BYTES = st.one_of(
    st.binary(max_size=20), st.sampled_from(list(UNREADABLE.values())), st.just(run_json("bad"))
)
NAME = st.one_of(
    st.sampled_from(
        [*NAMES.values(), b"run.json", b"events.jsonl", b"messages.jsonl", b"FORMAT", b"ab", b"c" * 38]
    ),
    st.sampled_from(
        [b"ledger", b"runs", b"chat", b"threads", b"traces", b"deleted", b"run", b"other", b"bad"]
    ),
    st.binary(min_size=1, max_size=8).map(lambda name: name.replace(b"\0", b"x")),
)
MODE = st.sampled_from([FILE, FILE, FILE, b"100755", LINK, MODULE, FOLDER, b"040000", b"100666", b"000000"])
GROWN = st.recursive(BYTES, lambda inner: st.lists(st.tuples(MODE, NAME, inner), max_size=5), max_leaves=25)
PLACES = st.sampled_from(
    ["", "ledger", "ledger/runs", "ledger/runs/bad", "chat/threads", "chat/runs", "runs", "deleted"]
)


@given(GROWN, PLACES, st.sampled_from([LEDGER_REF, ARCHIVE_REF, NOTES_REF]), st.booleans(), st.randoms())
def test_any_tree_is_survived_and_what_is_good_comes_in(
    grown: Any, place: str, ref: str, lose: bool, random: Random
) -> None:
    memory = Memory()

    def store_it(value: Any) -> str:
        if isinstance(value, bytes):
            return memory.add("blob", value)
        rows = [
            (FOLDER if isinstance(inner, list) and mode == FILE else mode)
            + b" "
            + name
            + b"\0"
            + bytes.fromhex(store_it(inner))
            for mode, name, inner in value
        ]
        return memory.add("tree", b"".join(rows))

    hostile = store_it(grown)
    kind = FOLDER if memory.objects[hostile][0] == "tree" else FILE
    if lose and memory.objects:
        del memory.objects[random.choice(sorted(memory.objects))]
    good = TreeEditor(ObjectStore(memory))
    good.put(GOOD_RUN, run_json("good"))
    for part in [part for part in [place] if part]:
        good.put(f"{part}/placeholder", b"x")
    folder = good.folder(place)
    assert folder is not None
    folder.put(b"odd", kind + b" odd\0" + bytes.fromhex(hostile), None)
    for depth in range(len(place.split("/")) + 1):
        above = good.folder("/".join(place.split("/")[:depth]))
        if above is not None:
            above.oid = None
    trees = {LEDGER_REF: good.write(), ref: good.write()}
    memory.objects |= good.store.added

    store = ObjectStore(memory)
    ours = State(store)
    theirs = fetched_state(store, trees, ours, remote="origin")
    assert all(each.path.isprintable() and each.reason for each in theirs.skipped)
    for kept in (False, True):
        merge_states(ours, theirs, kept=kept)
    assert ours.ledger.read(GOOD_RUN) == run_json("good")
    for editor in (ours.ledger, ours.archive, ours.notes):
        for path, raw in editor.files():
            assert is_plain_path(path) and raw_mode(raw) == FILE
            assert editor.read(path) is not None
        editor.write()
    again = fetched_state(
        store, {LEDGER_REF: ours.ledger.write(), ARCHIVE_REF: ours.archive.write()}, State(store), remote="x"
    )
    assert [each for each in again.skipped if not each.kept] == []
