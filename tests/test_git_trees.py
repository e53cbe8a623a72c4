"""Trees edited in memory: equal to a plain dictionary at every step, and to what stock git reads."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pygit2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_git.errors import StorageFailed
from scp_git.git.entries import encode_entry
from scp_git.git.objects import BLOB, TREE, Kind, ObjectStore, hash_object
from scp_git.git.pack import write_pack
from scp_git.git.tree import EMPTY_TREE, TreeCache, TreeEditor, is_dir, raw_mode, raw_oid

Files = dict[str, bytes]


class NoObjects:
    """A database that holds nothing: all objects are those of the store."""

    def read(self, oid: str, *, limit: int | None = None) -> tuple[Kind, bytes] | None:
        return None

    def kind(self, oid: str) -> Kind | None:
        return None


def files_of(editor: TreeEditor) -> Files:
    found = {}
    for path, raw in editor.files():
        data = editor.read(path)
        assert data is not None and not is_dir(raw) and raw_oid(raw) == hash_object(BLOB, data)
        found[path] = data
    return found


def reopened(editor: TreeEditor) -> TreeEditor:
    return TreeEditor(editor.store, editor.write())


def build(files: Files, store: ObjectStore | None = None) -> TreeEditor:
    editor = TreeEditor(store or ObjectStore(NoObjects()))
    for path, data in files.items():
        editor.put(path, data)
    editor.write()
    editor.start()
    return editor


# ---------------------------------------------------------------- the model: a dictionary

# Few paths, in each other's way, and names that sort on either side of "a/".
PATHS = st.sampled_from("a a.b a0 a/a a/a.b a/b a/a/a a/a/b a-b/a a-b/a/é a-b/b Z/a/a".split())
DATA = st.sampled_from([b"", b"1\n", b"2\n", b"\0\n"])
FILES = st.dictionaries(PATHS, DATA, max_size=8)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), PATHS, DATA),
        st.tuples(st.just("graft"), PATHS, PATHS),
        st.tuples(st.just("remove"), PATHS, st.none()),
        st.tuples(st.just("mark"), st.none(), st.none()),
        st.tuples(st.just("rollback"), st.none(), st.none()),
        st.tuples(st.just("write"), st.none(), st.none()),
    ),
    max_size=14,
)


def below(files: Files, path: str) -> Files:
    return {name: data for name, data in files.items() if name.startswith(path + "/")}


def model_put(files: Files, path: str, new: Files) -> Files:
    """``files`` after everything at, below and in the way of ``path`` gave place to ``new``."""
    parts = path.split("/")
    above = {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}
    kept = {n: d for n, d in files.items() if n not in above and not n.startswith(path + "/")}
    return {**kept, **new}


def model_remove(files: Files, path: str) -> Files:
    return {n: d for n, d in files.items() if n != path and not n.startswith(path + "/")}


def graft(editor: TreeEditor, source: TreeEditor, files: Files, path: str, wanted: str) -> Files:
    """Take file or folder ``wanted`` of ``source`` over as ``path``; the model's files afterwards."""
    head, _, leaf = wanted.rpartition("/")
    folder = source.folder(head)
    raw = folder.raw(leaf.encode()) if folder else None
    if raw is None:
        return files
    editor.graft(path, raw)
    taken = files_of(source)
    single = {path: taken[wanted]} if wanted in taken else {}
    many = {path + name.removeprefix(wanted): data for name, data in below(taken, wanted).items()}
    return model_put(files, path, single or many)


def play(editor: TreeEditor, source: TreeEditor, files: Files, steps: list[tuple[str, str, object]]) -> Files:
    marks: list[tuple[tuple[int, int], Files]] = []
    for step, path, value in steps:
        if step == "put":
            assert isinstance(value, bytes)
            assert editor.put(path, value) == hash_object(BLOB, value)
            files = model_put(files, path, {path: value})
        elif step == "graft":
            files = graft(editor, source, files, path, str(value))
        elif step == "remove":
            after = model_remove(files, path)
            assert editor.remove(path) == (after != files)
            files = after
        elif step == "mark":
            marks.append((editor.mark(), dict(files)))
        elif step == "rollback" and marks:
            mark, files = marks.pop()
            editor.rollback(mark)
        elif step == "write":
            editor.write()
        assert files_of(editor) == files, (step, path, value)
    return files


@settings(max_examples=200)
@given(FILES, FILES, STEPS)
def test_any_sequence_of_edits_equals_the_same_on_a_dictionary(
    before: Files, other: Files, steps: list[tuple[str, str, object]]
) -> None:
    before, other = files_of(build(before)), files_of(build(other))
    editor = build(before)
    source = build(other, editor.store)
    after = play(editor, source, before, steps)
    assert editor.write() == build(after).write(), "the tree's id depends on how it came about"
    assert files_of(reopened(editor)) == after
    touched = editor.touched()
    told = {path: data for path, data in before.items() if path not in touched}
    told |= {path: after[path] for path, oid in touched.items() if oid is not None}
    assert told == after, "what was touched does not lead from the first state to the last"
    assert all(oid in (None, hash_object(BLOB, after.get(path, b"?"))) for path, oid in touched.items())


@settings(max_examples=60)
@given(FILES, FILES, STEPS)
def test_rollback_restores_exactly(before: Files, other: Files, steps: list[tuple[str, str, object]]) -> None:
    editor = build(before)
    source = build(other, editor.store)
    first = editor.write()
    editor.put("kept", b"kept\n")
    mark, files = editor.mark(), files_of(editor)
    touched = editor.touched()
    play(editor, source, files, [step for step in steps if step[0] not in ("mark", "rollback")])
    editor.rollback(mark)
    assert files_of(editor) == files
    assert editor.touched() == touched
    assert editor.write() == build(files).write()
    editor.rollback((0, 0))
    assert editor.write() == first


@pytest.mark.referee
@settings(max_examples=25)
@given(FILES, FILES, STEPS)
def test_stock_git_reads_the_same_tree(
    before: Files, other: Files, steps: list[tuple[str, str, object]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repo = pygit2.init_repository(folder, bare=True)
        editor = build(before)
        after = play(editor, build(other, editor.store), files_of(editor), steps)
        tree = editor.write()
        entries = [encode_entry(oid, kind, data) for oid, (kind, data) in editor.store.added.items()]
        if entries:
            write_pack(Path(folder), entries, sync=False).release()
        listed = stock_listing(folder, tree) if after else {}
        assert listed == {path: hash_object(BLOB, data) for path, data in after.items()}
        checked = run_git(folder, "fsck", "--strict", "--no-dangling")
        assert "error" not in checked and "warning" not in checked, checked
        repo.free()


def run_git(folder: str, *args: str) -> str:
    done = subprocess.run(["git", "-C", folder, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def stock_listing(folder: str, tree: str) -> dict[str, str]:
    lines = run_git(folder, "-c", "core.quotePath=false", "ls-tree", "-r", tree).splitlines()
    rows = [line.replace("\t", " ").split(" ", 3) for line in lines]
    assert all(mode == "100644" and kind == "blob" for mode, kind, _, _ in rows)
    return {path: oid for _, _, oid, path in rows}


# ---------------------------------------------------------------- single facts


def test_a_folder_sorts_as_if_its_name_ended_in_a_slash(tmp_path: Path) -> None:
    repo = pygit2.init_repository(tmp_path, bare=True)
    editor = build({"a/x": b"", "a.b": b"", "a0": b"", "a": b"file\n", "a-b": b""})
    assert editor.blob("a") is not None, "the file came last and must have replaced the folder"
    editor.put("a/x", b"")
    oid = editor.write()
    for kind, data in editor.store.added.values():
        repo.odb.write(pygit2.enums.ObjectType.TREE if kind == TREE else pygit2.enums.ObjectType.BLOB, data)
    tree = repo[oid]
    assert isinstance(tree, pygit2.Tree)
    assert [entry.name for entry in tree] == ["a-b", "a.b", "a", "a0"]
    builder = repo.TreeBuilder()
    for entry in tree:
        builder.insert(entry.name, entry.id, entry.filemode)
    assert str(builder.write()) == oid, "libgit2 sorts them in another way"


def test_a_file_that_became_a_folder_sorts_anew_also_after_rollback() -> None:
    editor = build({"a": b"", "a.b": b""})
    mark, first = editor.mark(), editor.write()
    editor.put("a/x", b"")
    editor.rollback(mark)
    assert editor.write() == first
    editor.put("a/x", b"")
    editor.remove("a")
    editor.put("a", b"")
    assert editor.write() == first


def test_empty_folders_vanish() -> None:
    editor = build({"d/e/f/file": b"", "d/other": b""})
    assert editor.remove("d/e/f/file")
    assert not editor.has_dir("d/e")
    assert editor.names("d") == ["other"]
    assert editor.remove("d/other")
    assert editor.names("") == []
    assert editor.write() == EMPTY_TREE
    assert not editor.remove("d/other")
    assert not editor.remove("never/was")


def test_a_file_in_the_way_of_a_folder_gives_place() -> None:
    editor = build({"ledger": b"a file\n", "x/y": b""})
    editor.put("ledger/runs/r/run.json", b"{}\n")
    assert files_of(editor) == {"ledger/runs/r/run.json": b"{}\n", "x/y": b""}
    assert editor.touched()["ledger"] is None
    editor.put("x", b"now a file\n")
    assert editor.touched()["x/y"] is None and editor.touched()["x"] == hash_object(BLOB, b"now a file\n")


def test_an_entry_of_any_mode_is_kept_but_a_graft_is_a_plain_file() -> None:
    store = ObjectStore(NoObjects())
    blob = bytes.fromhex(store.add(BLOB, b"target"))
    link, program = b"120000 link\0" + blob, b"100755 run.sh\0" + blob
    editor = TreeEditor(store, store.add(TREE, link + program))
    editor.put("new", b"")
    modes = {path: raw_mode(raw) for path, raw in reopened(editor).files()}
    assert modes == {"link": b"120000", "run.sh": b"100755", "new": b"100644"}
    editor.graft("copy", link)
    assert dict(editor.files())["copy"].startswith(b"100644 copy\0")


def test_names_that_are_not_utf8_survive() -> None:
    store = ObjectStore(NoObjects())
    raw = b"100644 caf\xe9\0" + bytes.fromhex(store.add(BLOB, b"x"))
    editor = TreeEditor(store, store.add(TREE, raw))
    (path,) = (path for path, _ in editor.files())
    assert editor.read(path) == b"x"
    editor.put("z", b"")
    data = store.find(editor.write(), TREE)
    assert data is not None and data.startswith(raw)


@pytest.mark.parametrize("data", [b"100644 a\0short", b"100644 a", b"x" * 40, b"100644 a\0" + b"1" * 24])
def test_a_damaged_tree_is_a_clear_error(data: bytes) -> None:
    store = ObjectStore(NoObjects())
    with pytest.raises(StorageFailed, match="damaged"):
        TreeEditor(store, store.add(TREE, data))


def test_a_missing_tree_is_a_clear_error() -> None:
    store = ObjectStore(NoObjects())
    root = store.add(TREE, b"40000 gone\0" + b"\x11" * 20)
    editor = TreeEditor(store, root)
    with pytest.raises(StorageFailed, match="missing"):
        editor.names("gone")


def test_only_what_was_touched_is_written() -> None:
    editor = build({f"wide/{n:03}/file": b"%d" % n for n in range(100)})
    editor.store.added.clear()
    source = build({f"wide/{n:03}/file": b"%d" % n for n in range(100)})
    editor.store.base = Known(source.store)
    editor = TreeEditor(editor.store, source.write())
    mark = editor.mark()
    editor.put("wide/010/file", b"new")
    editor.rollback(mark)
    editor.store.added.clear()
    editor.write()
    assert not editor.store.added, "what was undone is not written"
    editor.put("wide/050/file", b"new")
    editor.write()
    kinds = sorted(kind for kind, _ in editor.store.added.values())
    assert kinds == ["blob", "tree", "tree", "tree"], "root, wide and 050 only"


class Known(NoObjects):
    """A database that holds the objects of another store."""

    def __init__(self, store: ObjectStore) -> None:
        self.objects = dict(store.added)

    def read(self, oid: str, *, limit: int | None = None) -> tuple[Kind, bytes] | None:
        return self.objects.get(oid)


def test_grafting_many_folders_is_grafting_each() -> None:
    def graft(one_by_one: bool) -> str:
        store = ObjectStore(NoObjects())
        source = TreeEditor(store)
        for name in ("b", "a", "c-1", "c"):
            source.put(f"from/{name}/file", name.encode())
        raws = [raw for name in ("b", "a", "c-1", "c") if (raw := source.raw(f"from/{name}"))]
        target = TreeEditor(store)
        target.put("x/y/older/file", b"1")
        if one_by_one:
            for raw in raws:
                target.graft(f"x/y/{raw.split(b' ', 1)[1][:-21].decode()}", raw)
        else:
            target.graft_all({"x/y": raws})
        return target.write()

    assert graft(one_by_one=True) == graft(one_by_one=False)


def test_trees_from_a_cache_are_not_changed_by_editing_another_one() -> None:
    editor = build({"a/b/file": b"1", "a/c/file": b"2", "other": b"3"})
    root = editor.write()
    cache = TreeCache()
    one, two = (TreeEditor(editor.store, root, cache=cache) for _ in range(2))
    before = files_of(two)
    one.put("a/b/file", b"changed")
    one.remove("other")
    one.put("a/b/more", b"4")
    assert files_of(two) == before == files_of(TreeEditor(editor.store, root, cache=cache))
    assert two.write() == root
    assert reopened(one).write() == one.write() != root


def test_a_cache_of_trees_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scp_git.git.tree._CACHED_ENTRIES", 100)
    cache = TreeCache()
    store = ObjectStore(NoObjects())
    for number in range(60):
        editor = TreeEditor(store)
        for file in range(1 + number % 30):
            editor.put(f"file{file}", b"%d" % number)
        assert files_of(TreeEditor(store, editor.write(), cache=cache)) == files_of(editor)
    assert sum(map(len, cache._trees.values())) == cache._entries <= 100
