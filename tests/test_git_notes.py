"""Notes: ours and stock git's take turns on one ref, at any fan-out, and always read the same."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pygit2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pygit2.enums import ObjectType

from scp_git.git.entries import encode_entry
from scp_git.git.handle import Repository
from scp_git.git.notes import (
    append_note,
    find_notes,
    list_notes,
    note_target,
    read_note,
    remove_note,
    write_note,
)
from scp_git.git.objects import COMMIT, ObjectStore, encode_commit, parse_commit
from scp_git.git.pack import write_pack
from scp_git.git.tree import TreeEditor
from scp_git.layout import NOTES_REF

Git = Callable[..., str]
ADA = "Ada Tester <ada@example.org> 1700000000 +0000"
FAN_OUTS = ("flat", "2/38", "2/2/36", "mixed")
REF_OPTION = "--ref=scp-chat"


def path_of(target: str, fan_out: str) -> str:
    if fan_out == "mixed":
        fan_out = FAN_OUTS[int(target[-1], 16) % 3]
    if fan_out == "flat":
        return target
    if fan_out == "2/38":
        return f"{target[:2]}/{target[2:]}"
    return f"{target[:2]}/{target[2:4]}/{target[4:]}"


def lines_of(data: bytes | None) -> list[bytes]:
    """What readers take of a note: its lines that are not blank."""
    return [line for line in (data or b"").split(b"\n") if line.strip()]


class Notes:
    """One repository whose notes ref we and stock git write in turn."""

    def __init__(self, root: Path, targets: int = 5) -> None:
        self.root = root
        repo = pygit2.Repository(str(root))
        self.dir = Path(repo.path)
        self.targets = [str(repo.odb.write(ObjectType.BLOB, b"target %d\n" % n)) for n in range(targets)]
        repo.free()

    def editor(self) -> TreeEditor:
        """The notes as they are now."""
        repository = Repository.open(self.root)
        store = ObjectStore(repository.open_odb())
        self.tip = repository.refs.read(NOTES_REF)
        data = store.read(self.tip, COMMIT) if self.tip else None
        return TreeEditor(store, parse_commit(data).tree if data else None)

    def save(self, editor: TreeEditor) -> None:
        store = editor.store
        parents = [self.tip] if self.tip else []
        tip = store.add(COMMIT, encode_commit(editor.write(), parents, ADA, "notes\n"))
        entries = [encode_entry(oid, kind, data) for oid, (kind, data) in store.added.items()]
        write_pack(self.dir, entries, sync=False).release()
        self.git("update-ref", NOTES_REF, tip)

    def build(self, fan_out: str, notes: dict[str, bytes], filler: int = 0) -> None:
        """Start with these notes, each where this fan-out has it, and some others on objects unknown here."""
        editor = self.editor()
        for n in range(filler):
            other = hashlib.sha1(b"filler %d" % n).hexdigest()
            editor.put(path_of(other, fan_out), b"filler\n")
        for target, data in notes.items():
            editor.put(path_of(target, fan_out), data)
        self.save(editor)

    def git(self, *args: str, code: int = 0) -> bytes:
        done = subprocess.run(["git", "-C", str(self.root), *args], capture_output=True)
        assert done.returncode == code, (args, done.stderr)
        return done.stdout

    def ours(self, target: str) -> list[bytes]:
        return lines_of(read_note(self.editor(), target))

    def theirs(self, target: str) -> list[bytes]:
        """What ``git notes show`` says; nothing where there is no note."""
        done = subprocess.run(
            ["git", "-C", str(self.root), "notes", REF_OPTION, "show", target], capture_output=True
        )
        return lines_of(done.stdout) if done.returncode == 0 else []

    def listed(self) -> dict[str, str]:
        rows = self.git("notes", REF_OPTION, "list").decode().splitlines()
        return {target: note for note, target in (row.split(" ") for row in rows)}


@pytest.fixture
def notes(repo: Path) -> Notes:
    return Notes(repo)


# ---------------------------------------------------------------- in turns

TARGET = st.integers(0, 4)
LINE = st.integers(0, 999).map(lambda n: b'{"id":"m%03d"}' % n)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "git append", "git append", "remove", "git remove", "git add"]),
        TARGET,
        st.lists(LINE, min_size=1, max_size=2, unique=True),
    ),
    min_size=1,
    max_size=7,
)


def take_turn(notes: Notes, step: str, target: str, lines: list[bytes]) -> None:
    text = b"\n".join(lines)
    if step == "append":
        editor = notes.editor()
        append_note(editor, target, text + b"\n")
        notes.save(editor)
    elif step == "remove":
        editor = notes.editor()
        if remove_note(editor, target):
            notes.save(editor)
    elif step == "git append":
        notes.git("notes", REF_OPTION, "append", "-m", text.decode(), target)
    elif step == "git add":
        notes.git("notes", REF_OPTION, "add", "-f", "-m", text.decode(), target)
    else:
        notes.git("notes", REF_OPTION, "remove", "--ignore-missing", target)


@pytest.mark.referee
@settings(max_examples=25)
@given(st.sampled_from(FAN_OUTS), st.lists(LINE, max_size=3, unique=True), STEPS)
def test_we_and_stock_git_in_turn(
    fan_out: str, first: list[bytes], steps: list[tuple[str, int, list[bytes]]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pygit2.init_repository(folder, bare=True).free()
        notes = Notes(Path(folder))
        notes.git("config", "user.name", "Ada")
        notes.git("config", "user.email", "ada@example.org")
        model: dict[str, list[bytes]] = {}
        if first:
            start = {target: b"\n\n".join(first) + b"\n" for target in notes.targets[:3]}
            notes.build(fan_out, start, filler=10)
            model = {target: list(first) for target in start}
        for step, number, lines in steps:
            target = notes.targets[number]
            take_turn(notes, step, target, lines)
            before = model.get(target, []) if step.endswith("append") else []
            model[target] = [] if step.endswith("remove") else [*before, *lines]
            assert notes.ours(target) == notes.theirs(target) == model[target], (step, lines)
        known = {target for target, held in model.items() if held}
        assert set(notes.listed()) & set(notes.targets) == known
        assert set(list_notes(notes.editor())) & set(notes.targets) == known
        assert len(list_notes(notes.editor())) == len(known) + (10 if first else 0)
        notes.git("fsck", "--strict")


@pytest.mark.referee
@pytest.mark.parametrize("fan_out", FAN_OUTS)
@pytest.mark.parametrize("filler", [0, 700])
def test_every_fan_out_is_read_and_written(notes: Notes, fan_out: str, filler: int) -> None:
    start = {target: b'{"id":"%d"}\n' % n for n, target in enumerate(notes.targets[:4])}
    notes.build(fan_out, start, filler)
    editor = notes.editor()
    assert {target: read_note(editor, target) for target in start} == start
    listed = notes.listed()
    assert list_notes(editor) == listed and len(listed) == filler + 4
    added, removed, fresh = notes.targets[0], notes.targets[1], notes.targets[4]
    append_note(editor, added, b'{"id":"new"}\n')
    append_note(editor, fresh, b'{"id":"fresh"}\n')
    assert remove_note(editor, removed) and not remove_note(editor, removed)
    notes.save(editor)
    assert find_notes(notes.editor(), added) == [f"{added[:2]}/{added[2:]}"], "afterwards it lies at one path"
    assert notes.theirs(added) == [b'{"id":"0"}', b'{"id":"new"}']
    assert notes.theirs(fresh) == [b'{"id":"fresh"}']
    assert notes.theirs(removed) == []
    assert notes.theirs(notes.targets[2]) == [b'{"id":"2"}']
    assert set(notes.listed()) == set(listed) - {removed} | {fresh}


@pytest.mark.referee
def test_notes_of_fast_import(notes: Notes) -> None:
    """``fast-import`` chooses its own fan-out; the targets are commits, as it asks for."""
    count = 400
    commit = b"commit refs/heads/bulk\nmark :%d\ncommitter A <a@b> %d +0000\ndata 1\nx\n"
    stream = [b"feature done\n", *(commit % (n + 1, n) for n in range(count))]
    stream.append(b"commit refs/notes/scp-chat\ncommitter A <a@b> 1 +0000\ndata 1\nn\n")
    for n in range(count):
        line = b'{"id":"%d"}\n' % n
        stream.append(b"N inline :%d\ndata %d\n%s\n" % (n + 1, len(line), line))
    done = subprocess.run(
        ["git", "-C", str(notes.root), "fast-import", "--quiet", "--date-format=raw-permissive"],
        input=b"".join([*stream, b"done\n"]),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    commits = notes.git("rev-list", "--reverse", "refs/heads/bulk").decode().split()
    editor = notes.editor()
    assert editor.names("")[0] != commits[0] and len(list_notes(editor)) == count
    assert all(lines_of(read_note(editor, oid)) == [b'{"id":"%d"}' % n] for n, oid in enumerate(commits))
    append_note(editor, commits[7], b'{"id":"more"}\n')
    remove_note(editor, commits[8])
    notes.save(editor)
    assert notes.theirs(commits[7]) == [b'{"id":"7"}', b'{"id":"more"}']
    assert set(notes.listed()) == set(commits) - {commits[8]}


@pytest.mark.referee
def test_a_note_that_lies_at_two_paths(notes: Notes) -> None:
    """Stock git joins them; so do we, and what we write lies at one path."""
    target = notes.targets[0]
    editor = notes.editor()
    editor.put(path_of(target, "flat"), b"flat\n")
    editor.put(path_of(target, "2/38"), b"two")
    editor.put(path_of(target, "2/2/36"), b"three\n")
    notes.save(editor)
    assert len(find_notes(notes.editor(), target)) == 3
    assert set(notes.ours(target)) == set(notes.theirs(target)) == {b"flat", b"two", b"three"}
    editor = notes.editor()
    append_note(editor, target, b"four\n")
    notes.save(editor)
    assert len(find_notes(notes.editor(), target)) == 1
    assert set(notes.theirs(target)) == {b"flat", b"two", b"three", b"four"}
    editor = notes.editor()
    assert remove_note(editor, target)
    notes.save(editor)
    assert notes.theirs(target) == [] and notes.listed() == {}


# ---------------------------------------------------------------- single facts


@pytest.mark.referee
def test_blank_lines_of_stock_git_stay_and_are_passed_over(notes: Notes) -> None:
    target = notes.targets[0]
    for n in range(3):
        notes.git("notes", REF_OPTION, "append", "-m", f"line {n}", target)
    editor = notes.editor()
    assert read_note(editor, target) == b"line 0\n\nline 1\n\nline 2\n"
    append_note(editor, target, b"ours\n")
    notes.save(editor)
    assert notes.git("notes", REF_OPTION, "show", target) == b"line 0\n\nline 1\n\nline 2\nours\n"


def test_a_note_without_last_newline_is_ended_before_a_line_is_appended(notes: Notes) -> None:
    editor = notes.editor()
    write_note(editor, notes.targets[0], b"no newline")
    append_note(editor, notes.targets[0], b"next\n")
    assert read_note(editor, notes.targets[0]) == b"no newline\nnext\n"


def test_an_absent_note_and_an_empty_one(notes: Notes) -> None:
    editor = notes.editor()
    assert read_note(editor, notes.targets[0]) is None
    assert not remove_note(editor, notes.targets[0])
    write_note(editor, notes.targets[0], b"")
    assert read_note(editor, notes.targets[0]) == b""
    assert remove_note(editor, notes.targets[0])
    assert list_notes(editor) == {}


def test_what_is_no_note_is_left_alone(notes: Notes) -> None:
    editor = notes.editor()
    target = notes.targets[0]
    others = ["README", f"{target[:2]}/README", target[:39], target.upper(), f"{target[:3]}/{target[3:]}x"]
    for path in others:
        editor.put(path, b"other\n")
    append_note(editor, target, b"one\n")
    assert list_notes(editor) == {target: editor.blob(f"{target[:2]}/{target[2:]}")}
    assert read_note(editor, target) == b"one\n"
    remove_note(editor, target)
    assert {path for path, _ in editor.files()} == set(others)


@pytest.mark.parametrize("fan_out", ["flat", "2/38", "2/2/36"])
def test_the_path_of_a_note_names_its_target(fan_out: str) -> None:
    target = hashlib.sha1(b"x").hexdigest()
    assert note_target(path_of(target, fan_out)) == target
    assert note_target(path_of(target, fan_out) + "0") is None
    assert note_target(path_of("g" + target[1:], fan_out)) is None


def test_an_append_writes_only_its_own_folder(notes: Notes) -> None:
    """At one fan-out level a note costs two small trees, however many there are."""
    editor = notes.editor()
    for n in range(3000):
        write_note(editor, hashlib.sha1(b"%d" % n).hexdigest(), b"x\n")
    editor.write()
    editor.store.added.clear()
    append_note(editor, notes.targets[0], b"new\n")
    editor.write()
    sizes = [len(data) for _, data in editor.store.added.values()]
    assert len(sizes) == 3 and sum(sizes) < 12_000
