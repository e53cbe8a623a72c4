"""The files that differ between two trees, and the records they belong to."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scp_git import Run, Store
from scp_git.git.difference import differing_files
from scp_git.git.handle import Repository
from scp_git.git.objects import BLOB, TREE, Kind, ObjectStore, hash_object
from scp_git.git.tree import EMPTY_TREE, TreeEditor
from scp_git.layout import (
    ARCHIVE_REF,
    LEDGER_REF,
    NOTES_REF,
    archived_run_dir,
    deleted_path,
    note_path,
    record_of,
    run_chat_dir,
    run_dir,
)

Files = dict[str, bytes]


class NoObjects:
    """A database that holds nothing: all objects are those of the store."""

    def read(self, oid: str, *, limit: int | None = None) -> tuple[Kind, bytes] | None:
        return None

    def kind(self, oid: str) -> Kind | None:
        return None


class Counting(ObjectStore):
    """Counts the trees that are read."""

    def __init__(self) -> None:
        super().__init__(NoObjects())
        self.trees = 0

    def find(self, oid: str, kind: Kind, *, limit: int | None = None) -> bytes | None:
        self.trees += kind == TREE
        return super().find(oid, kind, limit=limit)


def build(store: ObjectStore, files: Files) -> str:
    editor = TreeEditor(store)
    for path, data in files.items():
        editor.put(path, data)
    return editor.write()


def row(name: bytes, oid: str, mode: bytes = b"40000") -> bytes:
    return mode + b" " + name + b"\0" + bytes.fromhex(oid)


def model(old: Files, new: Files) -> dict[str, tuple[str | None, str | None]]:
    def blob(files: Files, path: str) -> str | None:
        return hash_object(BLOB, files[path]) if path in files else None

    return {
        path: (blob(old, path), blob(new, path))
        for path in old.keys() | new.keys()
        if old.get(path) != new.get(path)
    }


def found(store: ObjectStore, old: str | None, new: str | None) -> dict[str, tuple[str | None, str | None]]:
    rows = list(differing_files(store, old, new))
    assert len({path for path, _, _ in rows}) == len(rows), "a path is told once"
    return {path: (before, after) for path, before, after in rows}


# ---------------------------------------------------------------- the model: two dictionaries

# Names that sort on either side of "a/", and folders where the other side has a file.
PATHS = st.sampled_from("a a.b a0 a/a a/a.b a/b a/a/a a/a/b a-b/a a-b/a/é a-b/b Z/a/a b/c/d/e".split())
FILES = st.dictionaries(PATHS, st.sampled_from([b"", b"1\n", b"2\n"]), max_size=9)


def possible(files: Files) -> Files:
    """Without files that another path needs as a folder."""
    return {p: d for p, d in files.items() if not any(other.startswith(p + "/") for other in files)}


@given(FILES, FILES)
def test_what_differs_is_what_differs_between_two_dictionaries(old: Files, new: Files) -> None:
    old, new, store = possible(old), possible(new), ObjectStore(NoObjects())
    assert found(store, build(store, old), build(store, new)) == model(old, new)


WIDE = st.sets(st.integers(0, 300), max_size=120)


@given(WIDE, WIDE, WIDE)
def test_wide_folders_that_share_most_of_their_rows(some: set[int], less: set[int], other: set[int]) -> None:
    base = {f"runs/r{number:03}/run.json": b"%d" % number for number in range(0, 300, 2)}
    old = base | {f"runs/r{number:03}/run.json": b"x" for number in some}
    new = base | {f"runs/r{number:03}/run.json": b"y" for number in other}
    for number in less:
        new.pop(f"runs/r{number:03}/run.json", None)
    store = ObjectStore(NoObjects())
    assert found(store, build(store, old), build(store, new)) == model(old, new)


def test_many_differing_rows_are_found_as_well_as_few() -> None:
    store = ObjectStore(NoObjects())
    old = {f"r{number:05}": b"" for number in range(6000)}
    new = {path: b"new" if number % 3 else b"" for number, path in enumerate(old) if number % 7}
    assert found(store, build(store, old), build(store, new)) == model(old, new)


def test_files_come_in_the_order_of_paths_and_a_folders_files_together() -> None:
    store = ObjectStore(NoObjects())
    new = {f"runs/{run}/{name}": b"" for run in ("b", "a") for name in ("run.json", "events.jsonl")}
    paths = [path for path, _, _ in differing_files(store, None, build(store, new))]
    assert paths == ["runs/a/events.jsonl", "runs/a/run.json", "runs/b/events.jsonl", "runs/b/run.json"]


def test_no_tree_and_the_empty_tree_are_the_same() -> None:
    store = ObjectStore(NoObjects())
    tree = build(store, {"a/b": b"1"})
    for nothing in (None, EMPTY_TREE):
        assert found(store, nothing, tree) == {"a/b": (None, hash_object(BLOB, b"1"))}
        assert found(store, tree, nothing) == {"a/b": (hash_object(BLOB, b"1"), None)}
        assert found(store, nothing, None) == {}


def test_equal_subtrees_are_not_opened() -> None:
    store = Counting()
    files = {f"runs/{number:03}/run.json": b"%d" % number for number in range(500)}
    old, new = build(store, files), build(store, files | {"runs/007/run.json": b"new"})
    store.trees = 0
    assert list(found(store, old, new)) == ["runs/007/run.json"]
    assert store.trees == 6  # root, runs and 007, of both


def test_one_change_among_a_hundred_thousand_rows_takes_milliseconds() -> None:
    """The folder is read once for each side, and only the row that differs is looked at."""
    store = ObjectStore(NoObjects())
    names = sorted(b"run_%06d" % number for number in range(100_000))
    rows = [row(name, os.urandom(20).hex(), b"100644") for name in names]
    old = store.add(TREE, b"".join(rows))
    rows[77_777] = row(names[77_777], "5" * 40, b"100644")
    new = store.add(TREE, b"".join(rows))
    took = []
    for _ in range(5):
        started = time.perf_counter()
        assert [path for path, _, after in differing_files(store, old, new)] == ["run_077777"]
        took.append(time.perf_counter() - started)
    assert min(took) < 0.15  # 0.02 on a quiet machine; parsing and sorting both sides takes half a second


# ---------------------------------------------------------------- what others may have written


def test_a_missing_or_damaged_folder_counts_as_empty_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    store = ObjectStore(NoObjects())
    good = build(store, {"run.json": b"1"})
    cut = store.add(TREE, store.read(good, TREE)[:-1])
    blob = store.add(BLOB, b"no tree")
    old = store.add(TREE, row(b"a", good))
    for damaged in (cut, blob, "5" * 40):
        new = store.add(TREE, row(b"a", damaged) + row(b"b", good))
        one = hash_object(BLOB, b"1")
        assert found(store, old, new) == {"a/run.json": (one, None), "b/run.json": (None, one)}
        assert found(store, new, old) == {"a/run.json": (None, one), "b/run.json": (one, None)}
        assert found(store, damaged, good) == {"run.json": (None, one)}
    assert "the folder 'a/' counts as empty" in caplog.text


def test_rows_out_of_order_and_twice_are_each_told_once() -> None:
    store = ObjectStore(NoObjects())
    one, two = (store.add(BLOB, data) for data in (b"1", b"2"))
    sorted_rows = [row(name, one, b"100644") for name in (b"a", b"b", b"c")]
    old = store.add(TREE, b"".join(sorted_rows))
    assert found(store, old, store.add(TREE, b"".join(reversed(sorted_rows)))) == {}
    twice = store.add(TREE, b"".join([*sorted_rows, row(b"a", two, b"100644")]))
    assert found(store, old, twice)["a"][1] == two


def test_a_mode_is_no_change_but_a_kind_is() -> None:
    store = ObjectStore(NoObjects())
    one = store.add(BLOB, b"1")
    plain = store.add(TREE, row(b"a", one, b"100644"))
    assert found(store, plain, store.add(TREE, row(b"a", one, b"100755"))) == {}
    folder = store.add(TREE, row(b"a", build(store, {"b": b"1"})))
    assert found(store, plain, folder) == {"a": (one, None), "a/b": (None, one)}
    assert found(store, folder, plain) == {"a": (None, one), "a/b": (one, None)}


def test_a_tree_deeper_than_any_of_ours_ends(caplog: pytest.LogCaptureFixture) -> None:
    store = ObjectStore(NoObjects())
    tree = build(store, {"file": b"1"})
    for _ in range(5000):
        tree = store.add(TREE, row(b"a", tree))
    top = store.add(TREE, row(b"a", tree) + row(b"z", store.add(BLOB, b"1"), b"100644"))
    with caplog.at_level(logging.WARNING):
        assert list(found(store, None, top)) == ["z"]
    assert "too deep" in caplog.text


def test_names_that_are_no_utf8_are_passed_on() -> None:
    store = ObjectStore(NoObjects())
    tree = store.add(TREE, row(b"\xff", store.add(BLOB, b"1"), b"100644"))
    assert list(found(store, None, tree)) == ["\udcff"]


# ---------------------------------------------------------------- records


@pytest.mark.parametrize("run_id", ["run_2026-02-17T204500_apply_x1y2", "r", "other", "run_2026-99"])
def test_every_path_of_the_layout_leads_back_to_its_record(run_id: str) -> None:
    for name in ("run.json", "events.jsonl", "artifacts/plan.txt"):
        assert record_of(LEDGER_REF, f"{run_dir(run_id)}/{name}") == ("run", run_id)
        assert record_of(ARCHIVE_REF, f"{archived_run_dir(run_id)}/{name}") == ("run", run_id)
    assert record_of(LEDGER_REF, f"{run_chat_dir(run_id)}/messages.jsonl") == ("run-chat", run_id)
    assert record_of(LEDGER_REF, f"ledger/traces/{run_id}/trace.json") == ("trace", run_id)
    assert record_of(LEDGER_REF, f"chat/threads/{run_id}/messages-0002.jsonl") == ("thread", run_id)
    for kind in ("run", "trace", "thread", "message"):
        assert record_of(ARCHIVE_REF, deleted_path(kind, run_id)) == (f"deleted-{kind}", run_id)


@pytest.mark.parametrize("fan_out", [0, 1, 2])
def test_a_note_belongs_to_the_object_it_is_on(fan_out: int) -> None:
    target = hash_object(BLOB, b"1")
    parts = [target[2 * n : 2 * n + 2] for n in range(fan_out)] + [target[2 * fan_out :]]
    assert record_of(NOTES_REF, "/".join(parts)) == ("note", target)
    assert record_of(NOTES_REF, note_path(target)) == ("note", target)


@pytest.mark.parametrize(
    ("ref", "path"),
    [
        (LEDGER_REF, "FORMAT"),
        (LEDGER_REF, "README.md"),
        (LEDGER_REF, "ledger/runs/stray.json"),
        (LEDGER_REF, "ledger/runs/-r/run.json"),
        (LEDGER_REF, "ledger/other/r/run.json"),
        (LEDGER_REF, archived_run_dir("r") + "/run.json"),
        (LEDGER_REF, deleted_path("run", "r")),
        (ARCHIVE_REF, "FORMAT"),
        (ARCHIVE_REF, run_dir("r") + "/run.json"),
        (ARCHIVE_REF, archived_run_dir("r")),
        (ARCHIVE_REF, "runs/other/00/r/run.json"),
        (ARCHIVE_REF, "runs/x"),
        (ARCHIVE_REF, "deleted/run/00/r"),
        (ARCHIVE_REF, "deleted/branch/" + deleted_path("run", "r").split("/")[2] + "/r"),
        (ARCHIVE_REF, deleted_path("run", "r") + "/more"),
        (ARCHIVE_REF, deleted_path("run", "..")),
        (NOTES_REF, "README"),
        (NOTES_REF, "5" * 41),
        ("refs/heads/main", run_dir("r") + "/run.json"),
    ],
)
def test_what_lies_elsewhere_belongs_to_no_record(ref: str, path: str) -> None:
    assert record_of(ref, path) is None


def test_between_two_commits_of_a_real_ledger(repo: Path, git: Callable[..., str]) -> None:
    with Store.open(repo) as store:
        for run_id in ("r1", "r2", "r3"):
            store.record_run(Run(run_id=run_id, type="x"), [{"type": "y"}])
        store.delete_run("r1")
    repository = Repository.open(repo)
    trees = git(repo, "log", "--format=%T", "scp-ledger").split()
    with repository.odb() as odb:
        rows = list(differing_files(ObjectStore(odb), trees[-2], trees[0]))
    stock = git(repo, "diff-tree", "-r", trees[-2], trees[0]).splitlines()
    assert [path for path, _, _ in rows] == [line.split("\t")[1] for line in stock]
    none = "0" * 40
    assert [(old or none, new or none) for _, old, new in rows] == [tuple(s.split()[2:4]) for s in stock]
    records = dict.fromkeys(record_of(LEDGER_REF, path) for path, _, _ in rows)
    assert list(records) == [("run", "r1"), ("run", "r3")]
