"""Refs: read as stock git reads them, and moved all together or not at all beside stock git."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pygit2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pygit2.enums import ObjectType

from scp_git.errors import RepositoryBusy, StorageFailed
from scp_git.git.files import boot_time
from scp_git.git.handle import Repository
from scp_git.git.healing import recover
from scp_git.git.locks import LockFile, heal_lock
from scp_git.git.objects import encode_tag
from scp_git.git.publish import Publisher, RefChange, RefMoved
from scp_git.git.refs import PACKED_HEADER, PackedRefs, Refs

Git = Callable[..., str]
MakeRepo = Callable[..., Path]
Rows = dict[str, tuple[str, str | None]]

# ---------------------------------------------------------------- the file packed-refs

OIDS = st.integers(0, 2**160 - 1).map(lambda number: f"{number:040x}")
NAMES = st.builds(
    "refs/{}{}".format,
    st.sampled_from(["heads/", "tags/", "tags/scp/run/", "tags/scp/run-", "notes/"]),
    st.text("ab-/.é", min_size=1, max_size=4),
)
ROWS = st.dictionaries(NAMES, st.tuples(OIDS, st.none() | OIDS), max_size=12)


def encode(rows: Rows, *, header: bytes = PACKED_HEADER, last_newline: bool = True) -> bytes:
    lines = [header]
    for name, (oid, peeled) in sorted(rows.items(), key=lambda row: row[0].encode()):
        lines.append(f"{oid} {name}\n".encode() + (f"^{peeled}\n".encode() if peeled else b""))
    data = b"".join(lines)
    return data if last_newline else data.removesuffix(b"\n")


@settings(max_examples=200)
@given(ROWS, st.lists(NAMES, max_size=5), st.booleans())
def test_lookup_equals_a_linear_scan(rows: Rows, others: list[str], last_newline: bool) -> None:
    packed = PackedRefs(encode(rows, last_newline=last_newline))
    for name in [*rows, *others, "", "refs/", "zzz", *(name[:-1] for name in rows), *(n + "0" for n in rows)]:
        assert packed.get(name) == rows.get(name, (None, None))[0], name


@settings(max_examples=200)
@given(ROWS, NAMES)
def test_entries_equal_a_linear_scan(rows: Rows, other: str) -> None:
    packed = PackedRefs(encode(rows))
    for prefix in ["", "refs/", "refs/tags/", "refs/tags/scp/run/", other, "a", "zzz"]:
        found = {name: (oid, peeled) for name, oid, peeled in packed.entries(prefix)}
        assert found == {name: row for name, row in rows.items() if name.startswith(prefix)}, prefix


@settings(max_examples=60)
@given(ROWS, st.randoms(use_true_random=False))
def test_a_file_that_does_not_say_it_is_sorted_is_read_from_end_to_end(rows: Rows, chance: object) -> None:
    assert hasattr(chance, "shuffle")
    mixed = list(rows.items())
    chance.shuffle(mixed)
    lines = [b"# pack-refs with: peeled fully-peeled \n"]
    lines += [encode({name: row}, header=b"") for name, row in mixed]
    packed = PackedRefs(b"".join(lines))
    assert {name: (oid, peeled) for name, oid, peeled in packed.entries()} == rows
    assert {name: packed.get(name) for name in rows} == {name: row[0] for name, row in rows.items()}


def test_a_file_without_header_is_not_searched_by_halving() -> None:
    one, two = "1" * 40, "2" * 40
    packed = PackedRefs(f"{one} refs/tags/z\n{two} refs/tags/a\n".encode())
    assert (packed.get("refs/tags/z"), packed.get("refs/tags/a")) == (one, two)
    assert list(packed.entries("refs/tags/a")) == [("refs/tags/a", two, None)]


# ---------------------------------------------------------------- beside stock git


def for_each_ref(git: Git, root: Path) -> dict[str, str]:
    lines = git(root, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    return {line.split(" ")[0]: line.split(" ")[1] for line in lines}


def commits(root: Path) -> list[str]:
    """The commits of ``main``, oldest first."""
    repo = pygit2.Repository(str(root))
    found = [str(commit.id) for commit in repo.walk(repo.head.target)]
    repo.free()
    return found[::-1]


@pytest.mark.untidy("run tags that are not annotated", skip=["tags"])
@pytest.mark.referee
def test_refs_are_what_stock_git_says(make_repo: MakeRepo, git: Git) -> None:
    root = make_repo(commits=3)
    refs, oids = Refs(root / ".git"), commits(root)
    for n in range(12):
        git(root, "tag", *(["-a", "-m", "x"] if n % 2 else []), f"scp/run/{n}", oids[n % 3])
    git(root, "branch", "zz/deep/branch")
    assert refs.list("refs/") == for_each_ref(git, root)
    git(root, "pack-refs", "--all")
    assert not list((root / ".git" / "refs" / "tags").rglob("[0-9]*"))
    git(root, "tag", "-f", "scp/run/7", oids[0])
    git(root, "tag", "-d", "scp/run/8")
    git(root, "tag", "new")
    git(root, "update-ref", "--create-reflog", "refs/notes/scp-chat", oids[1])
    expected = for_each_ref(git, root)
    assert len(expected) == 12 - 1 + 4
    assert refs.list("refs/") == expected
    assert {name: refs.read(name) for name in expected} == expected
    assert {name: refs.read_direct(name) for name in expected} == expected
    assert refs.read("refs/tags/scp/run/8") is None
    below = {name: oid for name, oid in expected.items() if name.startswith("refs/tags/scp/run/")}
    assert refs.list("refs/tags/scp/run/") == below
    assert refs.list("refs/tags/none/") == {}
    peeled = {name: commit for name, _, commit in refs.packed().entries("refs/tags/") if commit}
    assert peeled["refs/tags/scp/run/1"] == oids[1]


@pytest.mark.referee
def test_a_new_packed_refs_is_noticed(repo: Path, git: Git) -> None:
    refs = Refs(repo / ".git")
    (oid,) = commits(repo)
    for n in range(5):
        git(repo, "tag", f"t{n}")
        git(repo, "pack-refs", "--all")
        assert refs.read(f"refs/tags/t{n}") == oid
        git(repo, "tag", "-d", f"t{n}")
        assert refs.read(f"refs/tags/t{n}") is None


# ---------------------------------------------------------------- HEAD and odd ref files


def test_head_before_the_first_commit(make_repo: MakeRepo) -> None:
    root = make_repo(commits=0)
    assert Refs(root / ".git").read_head(root / ".git") is None
    assert Repository.open(root).head() is None


def test_head_on_a_branch_and_detached(make_repo: MakeRepo) -> None:
    root = make_repo(commits=2)
    first, second = commits(root)
    refs = Refs(root / ".git")
    assert refs.read_head(root / ".git") == second
    pygit2.Repository(str(root)).set_head(pygit2.Oid(hex=first))
    assert refs.read_head(root / ".git") == first


def test_head_by_way_of_a_symbolic_ref(repo: Path) -> None:
    (oid,) = commits(repo)
    (repo / ".git" / "refs" / "heads" / "alias").write_text("ref: refs/heads/main\n")
    (repo / ".git" / "HEAD").write_text("ref: refs/heads/alias\n")
    refs = Refs(repo / ".git")
    assert refs.read_head(repo / ".git") == oid
    assert refs.read("refs/heads/alias") == oid
    with pytest.raises(StorageFailed, match="symbolic"):
        refs.read_direct("refs/heads/alias")


NOWHERE = [
    *("", "\n", "ref:", "ref: refs/heads/loop", "ref: refs/heads/../../../secret", "ref: /etc/passwd"),
    *("f" * 39, "g" * 40, "\0" * 41, "ref: refs/heads/none", "ref: secret"),
]


@pytest.mark.untidy("HEAD is damaged on purpose")
@pytest.mark.parametrize("text", NOWHERE)
def test_a_head_that_leads_nowhere(repo: Path, text: str) -> None:
    (oid,) = commits(repo)
    (repo / "secret").write_text(oid)
    (repo / ".git" / "secret").write_text(oid)
    (repo / ".git" / "refs" / "heads" / "loop").write_text("ref: refs/heads/loop\n")
    (repo / ".git" / "HEAD").write_text(text)
    assert Refs(repo / ".git").read_head(repo / ".git") is None


@pytest.mark.referee
def test_head_of_a_linked_worktree_is_its_own(make_repo: MakeRepo, git: Git, tmp_path: Path) -> None:
    root = make_repo(commits=2)
    first, second = commits(root)
    git(root, "worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"), first)
    linked = Repository.open(tmp_path / "linked")
    assert linked.head() == first
    assert Repository.open(root).head() == second
    git(root, "pack-refs", "--all")
    assert linked.head() == first
    git(tmp_path / "linked", "update-ref", "refs/worktree/mine", second)
    (linked.git_dir / "HEAD").write_text("ref: refs/worktree/mine\n")
    assert linked.head() == second, "refs/worktree/ belongs to the linked worktree"
    git(tmp_path / "linked", "switch", "-q", "side")


@pytest.mark.untidy("a ref is damaged on purpose")
@pytest.mark.parametrize("damage", [b"", b"\0" * 41, b"12345\n", b"z" * 40 + b"\n", b"\xff\xfe" * 30])
def test_a_damaged_ref_file_reads_as_absent(repo: Path, damage: bytes) -> None:
    refs = Refs(repo / ".git")
    (repo / ".git" / "refs" / "heads" / "broken").write_bytes(damage)
    assert refs.read("refs/heads/broken") is None
    assert refs.read_direct("refs/heads/broken") is None
    assert set(refs.list("refs/heads/")) == {"refs/heads/main"}


def test_a_folder_and_a_lock_are_no_refs(repo: Path) -> None:
    refs = Refs(repo / ".git")
    (repo / ".git" / "refs" / "tags" / "folder").mkdir(parents=True)
    lock = repo / ".git" / "refs" / "tags" / "x.lock"
    lock.write_text(commits(repo)[0])
    assert refs.read("refs/tags/folder") is None
    assert refs.read("refs/heads/main/below") is None
    assert refs.list("refs/tags/") == {}
    lock.unlink()


# ---------------------------------------------------------------- moving refs

TAG = "refs/tags/scp/run/"


class Bench:
    """A publisher on a real repository with a few commits and a tag object for each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dir = root / ".git"
        (self.dir / "scp").mkdir()
        self.refs = Refs(self.dir)
        self.publisher = Publisher(self.dir, self.refs, sync=False)
        self.oids = commits(root)

    def publish(self, *changes: RefChange, wait_s: float = 5.0) -> None:
        self.publisher.publish(changes, time.monotonic() + wait_s)

    def finish(self, *changes: RefChange) -> None:
        self.publish(*changes)
        self.publisher.done()

    def tag(self, name: str, n: int = 0) -> RefChange:
        """A new annotated tag ``scp/run/<name>``."""
        target = self.oids[n]
        data = encode_tag(f"scp/run/{name}", target, "Ada <ada@example.org> 1700000000 +0000", b"{}\n")
        repo = pygit2.Repository(str(self.root))
        oid = str(repo.odb.write(ObjectType.TAG, data))
        repo.free()
        return RefChange(TAG + name, None, oid, target)

    def move(self, name: str, old: int | None, new: int | None) -> RefChange:
        return RefChange(
            name, None if old is None else self.oids[old], None if new is None else self.oids[new]
        )

    def scratch(self) -> list[str]:
        """What the publisher left in its folder but the intent."""
        return [name for name in os.listdir(self.dir / "scp") if name != "intent"]

    def locks(self) -> list[str]:
        return [path.name for path in self.dir.rglob("*.lock")]

    def settled(self) -> bool:
        return not self.scratch() and not self.locks() and not self.publisher.intent.read()


@pytest.fixture
def bench(make_repo: MakeRepo) -> Bench:
    return Bench(make_repo(commits=4))


def test_refs_are_made_moved_and_removed(bench: Bench) -> None:
    a, b = "refs/heads/a", "refs/notes/b"
    bench.finish(bench.move(a, None, 0), bench.move(b, None, 1))
    assert (bench.refs.read(a), bench.refs.read(b)) == (bench.oids[0], bench.oids[1])
    bench.finish(bench.move(a, 0, 2), bench.move(b, 1, None))
    assert (bench.refs.read(a), bench.refs.read(b)) == (bench.oids[2], None)
    assert bench.settled()


@pytest.mark.untidy("run tags that are not annotated", skip=["tags"])
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("wrong", ["other value", "absent", "present"])
def test_a_ref_that_moved_changes_nothing(bench: Bench, position: int, wrong: str) -> None:
    names = ["refs/heads/a", "refs/notes/b", TAG + "c"]
    bench.finish(*(bench.move(name, None, 0) for name in names))
    changes = [bench.move(name, 0, 1) for name in names]
    name = names[position]
    if wrong == "other value":
        changes[position] = bench.move(name, 2, 1)
    elif wrong == "absent":
        bench.finish(bench.move(name, 0, None))
    else:
        changes[position] = bench.move(name, None, 1)
    before = bench.refs.list("refs/")
    with pytest.raises(RefMoved, match=name):
        bench.publish(*changes)
    assert bench.refs.list("refs/") == before
    assert bench.settled()


def test_the_intent_stays_declared_until_done(bench: Bench) -> None:
    changes = [bench.move("refs/heads/a", None, 0), bench.tag("r")]
    bench.publish(*changes)
    intent = bench.publisher.intent.read()
    assert intent is not None
    assert [RefChange.parse(row) for row in intent["refs"]] == changes
    assert [path for path, _ in intent["locks"]] == ["refs/heads/a.lock", TAG + "r.lock"]
    bench.publisher.done()
    assert bench.settled()


@pytest.mark.referee
def test_many_tags_at_once_go_through_packed_refs(bench: Bench, git: Git) -> None:
    git(bench.root, "tag", "-a", "-m", "old", "before")
    git(bench.root, "pack-refs", "--all")
    changes = [bench.tag(f"many-{n:03}", n % 4) for n in range(60)]
    bench.finish(bench.move("refs/heads/a", None, 0), *changes)
    assert not (bench.dir / TAG).exists() or not os.listdir(bench.dir / TAG)
    shown = git(bench.root, "show-ref", "--tags", "-d").splitlines()
    for change in changes:
        assert f"{change.new} {change.name}" in shown and f"{change.peeled} {change.name}^{{}}" in shown
    assert f"{git(bench.root, 'rev-parse', 'before').strip()} refs/tags/before" in shown
    assert bench.refs.read("refs/heads/a") == bench.oids[0]
    data = (bench.dir / "packed-refs").read_bytes()
    git(bench.root, "pack-refs", "--all")
    assert [line for line in data.splitlines() if b"refs/heads/a" not in line] == [
        line for line in (bench.dir / "packed-refs").read_bytes().splitlines() if b"refs/heads/a" not in line
    ], "git would write the file in another way"


@pytest.mark.referee
def test_stock_git_tags_beside_it_and_nothing_is_lost(bench: Bench) -> None:
    script = (
        "i=0; while [ $i -lt 30 ] && [ ! -e stop ]; do "
        "git tag -a -m x their-$i && echo $i && i=$((i+1)); [ $((i%7)) = 0 ] && git pack-refs --all; "
        "done; true"
    )
    theirs = subprocess.Popen(
        ["sh", "-c", script], cwd=bench.root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    ours = []
    while theirs.poll() is None or len(ours) < 100:
        changes = [bench.tag(f"r{len(ours) + n}", n % 4) for n in range(20)]
        single = bench.tag(f"s{len(ours)}")
        bench.finish(*changes)
        bench.finish(single)
        ours += [*changes, single]
        if len(ours) > 2000:
            (bench.root / "stop").touch()
    assert theirs.stdout is not None
    done = theirs.stdout.read().split()
    theirs.wait()
    theirs.stdout.close()
    (bench.root / "stop").unlink(missing_ok=True)
    found = Refs(bench.dir).list("refs/tags/")
    assert {change.name: found.get(change.name) for change in ours} == {c.name: c.new for c in ours}
    assert len(done) > 5 and {f"refs/tags/their-{n}" for n in done} <= set(found)
    assert bench.settled()


@pytest.mark.referee
@pytest.mark.parametrize("place", ["loose", "packed", "both", "mixed"])
def test_removing_tags(bench: Bench, git: Git, place: str) -> None:
    first, second, kept = bench.tag("first"), bench.tag("second", 1), bench.tag("kept", 2)
    bench.finish(first, second, kept)
    if place != "loose":
        git(bench.root, "pack-refs", "--all")
    if place == "both":
        git(bench.root, "update-ref", first.name, bench.oids[3])
        git(bench.root, "update-ref", first.name, str(first.new))
        (bench.dir / first.name).write_text(f"{first.new}\n")
    if place == "mixed":
        (bench.dir / TAG).mkdir(parents=True, exist_ok=True)
        (bench.dir / second.name).write_text(f"{second.new}\n")
    bench.finish(*(RefChange(change.name, change.new, None) for change in (first, second)))
    assert git(bench.root, "tag", "-l").split() == ["scp/run/kept"]
    assert bench.settled()


def test_removing_a_tag_that_moved_changes_nothing(bench: Bench) -> None:
    tag = bench.tag("x")
    bench.finish(tag)
    with pytest.raises(RefMoved):
        bench.publish(RefChange(tag.name, bench.oids[0], None))
    assert bench.refs.read(tag.name) == tag.new


# ---------------------------------------------------------------- what may be in the way


@pytest.mark.parametrize("inside", ["", "y", "y/z"])
def test_an_empty_folder_in_the_way_goes(bench: Bench, inside: str) -> None:
    (bench.dir / TAG / "x" / inside).mkdir(parents=True)
    bench.finish(bench.tag("x"), bench.move("refs/heads/a", None, 0))
    assert bench.refs.read(TAG + "x")
    assert bench.settled()


@pytest.mark.untidy("run tags that are not annotated", skip=["tags"])
@pytest.mark.referee
def test_a_ref_below_the_name_is_an_error_and_stays(bench: Bench, git: Git) -> None:
    git(bench.root, "tag", "scp/run/x/below")
    before = bench.refs.list("refs/")
    with pytest.raises((OSError, RefMoved)):
        bench.publish(bench.move("refs/heads/a", None, 0), bench.tag("x"))
    recover(bench.publisher, Repository.open(bench.root).open_odb(), time.monotonic() + 1)
    assert for_each_ref(git, bench.root) == before
    assert bench.settled()


@pytest.mark.untidy("run tags that are not annotated", skip=["tags"])
@pytest.mark.referee
def test_a_ref_where_a_folder_belongs_is_an_error_and_stays(bench: Bench, git: Git) -> None:
    git(bench.root, "tag", "scp/run")
    before = bench.refs.list("refs/")
    with pytest.raises((OSError, RefMoved)):
        bench.publish(bench.move("refs/heads/a", None, 0), bench.tag("x"))
    recover(bench.publisher, Repository.open(bench.root).open_odb(), time.monotonic() + 1)
    assert for_each_ref(git, bench.root) == before
    assert bench.settled()


def hold(path: Path, seconds: float) -> threading.Thread:
    """Hold a git lock for some time, as another process would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    thread = threading.Timer(seconds, path.unlink)
    thread.start()
    return thread


@pytest.mark.parametrize("name", ["refs/heads/a", TAG + "r", "packed-refs"])
def test_a_lock_held_for_a_moment_is_waited_for(bench: Bench, name: str) -> None:
    changes = [bench.move("refs/heads/a", None, 0)]
    changes += [bench.tag(f"many-{n}") for n in range(30)] if name == "packed-refs" else [bench.tag("r")]
    thread = hold(bench.dir / f"{name}.lock", 0.3)
    began = time.monotonic()
    bench.finish(*changes)
    assert time.monotonic() - began > 0.25
    thread.join()
    assert all(bench.refs.read(change.name) == change.new for change in changes)
    assert bench.settled()


@pytest.mark.parametrize("name", ["refs/heads/a", TAG + "r", "packed-refs"])
def test_a_lock_held_too_long_is_busy_and_changes_nothing(bench: Bench, name: str) -> None:
    old = bench.tag("old")
    bench.finish(old)
    changes = [bench.move("refs/heads/a", None, 0), RefChange(old.name, old.new, None)]
    changes += [bench.tag(f"many-{n}") for n in range(30)] if name == "packed-refs" else [bench.tag("r")]
    before = bench.refs.list("refs/")
    lock = bench.dir / f"{name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text("somebody's")
    with pytest.raises(RepositoryBusy, match=lock.name) as caught:
        bench.publish(*changes, wait_s=0.3)
    assert 0.2 < caught.value.waited_s < 5
    assert bench.refs.list("refs/") == before
    assert bench.locks() == [lock.name] and lock.read_text() == "somebody's"
    assert not bench.scratch() and not bench.publisher.intent.read()
    lock.unlink()
    bench.finish(*changes)
    assert bench.refs.read("refs/heads/a") == bench.oids[0]


@pytest.mark.parametrize(("age_s", "healed"), [(61, True), (50, False), (-3600, False)])
def test_a_lock_unchanged_for_a_minute_has_no_owner(bench: Bench, age_s: float, healed: bool) -> None:
    lock = bench.dir / "refs" / "heads" / "a.lock"
    lock.write_text("")
    then = time.time() - age_s
    os.utime(lock, (then, then))
    if healed:
        bench.finish(bench.move("refs/heads/a", None, 0))
        assert bench.refs.read("refs/heads/a") == bench.oids[0]
    else:
        with pytest.raises(RepositoryBusy):
            bench.publish(bench.move("refs/heads/a", None, 0), wait_s=0.1)
        lock.unlink()
    assert bench.settled()


@pytest.mark.skipif(not boot_time(), reason="the system does not say when it was started")
def test_a_lock_older_than_the_machines_start_has_no_owner(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    for seconds, gone in ((-10, True), (+10, False)):
        lock.write_text("")
        os.utime(lock, (boot_time() + seconds, boot_time() + seconds))
        assert heal_lock(lock, stale_after_s=1e9) is gone
        assert lock.exists() is not gone


def test_a_lock_file_is_never_two_peoples(tmp_path: Path) -> None:
    one = LockFile(tmp_path / "x", tmp_path / "scratch-1", [b"1"], sync=False)
    two = LockFile(tmp_path / "x", tmp_path / "scratch-2", [b"2"], sync=False)
    one.take(time.monotonic())
    with pytest.raises(RepositoryBusy):
        two.take(time.monotonic())
    two.release()
    assert (tmp_path / "x.lock").read_bytes() == b"1", "release must not touch another's lock"
    one.commit()
    assert sorted(os.listdir(tmp_path)) == ["x"]


# ---------------------------------------------------------------- after a death

DIE = """
import json, os, sys, time
from pathlib import Path
from scp_git.git.publish import Publisher, RefChange
from scp_git.git.locks import LockFile
from scp_git.git.refs import Refs

common, where, changes = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
if where == "locked":
    Publisher._check = lambda self, *_: os._exit(7)
else:
    real, left = LockFile.commit, int(where)
    def commit(self):
        global left
        if not left:
            os._exit(7)
        left -= 1
        real(self)
    LockFile.commit = commit
publisher = Publisher(common, Refs(common), sync=False)
publisher.publish([RefChange.parse(row) for row in changes], time.monotonic() + 5)
"""


def die(bench: Bench, where: str, *changes: RefChange) -> None:
    """Have another process publish, and end without a word while all locks are held, or after some moves."""
    rows = json.dumps(changes)
    done = subprocess.run([sys.executable, "-c", DIE, str(bench.dir), where, rows], capture_output=True)
    assert done.returncode == 7, done.stderr.decode()
    assert bench.locks()


def recovered(bench: Bench) -> dict[str, str | None]:
    return recover(bench.publisher, Repository.open(bench.root).open_odb(), time.monotonic() + 1).elsewhere


def test_locks_that_the_intent_names_go_at_once(bench: Bench) -> None:
    changes = [bench.move("refs/heads/a", None, 0), *(bench.tag(f"many-{n}") for n in range(30))]
    die(bench, "locked", *changes)
    assert sorted(bench.locks()) == ["a.lock", "packed-refs.lock"]
    assert recovered(bench) == {}
    assert bench.settled()
    assert bench.refs.read("refs/heads/a") is None, "nothing had moved, so nothing moves"
    bench.finish(*changes)


def test_a_lock_that_another_took_meanwhile_stays(bench: Bench) -> None:
    die(bench, "locked", bench.move("refs/heads/a", None, 0), bench.tag("r"))
    lock = bench.dir / "refs" / "heads" / "a.lock"
    other = lock.with_name("other")
    other.write_text("somebody's")
    other.replace(lock)
    recovered(bench)
    assert bench.locks() == ["a.lock"] and lock.read_text() == "somebody's"
    with pytest.raises(RepositoryBusy):
        bench.publish(bench.move("refs/heads/a", None, 0), wait_s=0.1)
    lock.unlink()


@pytest.mark.parametrize("moves", [1, 2])
def test_what_had_begun_to_move_is_completed(bench: Bench, moves: int) -> None:
    bench.finish(bench.move("refs/heads/a", None, 0))
    changes = [bench.move("refs/heads/a", 0, 1), bench.move("refs/notes/b", None, 2), bench.tag("r")]
    die(bench, str(moves), *changes)
    assert recovered(bench) == {}
    assert {change.name: bench.refs.read(change.name) for change in changes} == {
        change.name: change.new for change in changes
    }
    assert bench.settled()


def test_a_branch_that_somebody_moved_meanwhile_is_reported_to_be_merged(bench: Bench) -> None:
    ledger, archive = "refs/heads/scp-ledger", "refs/heads/scp-ledger-archive"
    changes = [bench.move(archive, None, 1), bench.move(ledger, None, 2), bench.tag("r")]
    die(bench, "2", *changes)
    (bench.dir / ledger).write_text(f"{bench.oids[3]}\n")
    assert recovered(bench) == {ledger: bench.oids[2]}
    assert bench.refs.read(ledger) == bench.oids[3]
    assert bench.refs.read(TAG + "r") == changes[2].new


def test_an_intent_whose_objects_are_missing_is_discarded(bench: Bench) -> None:
    missing = RefChange("refs/notes/b", None, "12" * 20)
    die(bench, "1", bench.move("refs/heads/a", None, 0), missing)
    assert recovered(bench) == {}
    assert bench.refs.read("refs/notes/b") is None
    assert bench.settled()


@pytest.mark.parametrize("damage", [b"", b"garbage", b"0" * 64 + b"\n{}", b"\xff" * 200])
def test_a_torn_intent_is_discarded(bench: Bench, damage: bytes) -> None:
    bench.publish(bench.move("refs/heads/a", None, 0), bench.tag("r"))
    bench.publisher.intent.path.write_bytes(damage)
    assert recovered(bench) == {}
    assert bench.refs.read("refs/heads/a") == bench.oids[0]


# ---------------------------------------------------------------- splicing


@given(
    st.dictionaries(st.sampled_from("abcdefghij"), st.booleans()),
    st.dictionaries(st.sampled_from("abcdefghijkl"), st.none() | st.booleans()),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_splicing_is_parsing_changing_and_writing(
    present: dict[str, bool], changes: dict[str, bool | None], ordered: bool, ended: bool, prepared: bool
) -> None:
    def row(peeled: bool | None) -> tuple[str, str | None]:
        return ("1" * 40, "2" * 40 if peeled else None)

    header = PACKED_HEADER if ordered else b"# pack-refs with: peeled fully-peeled \n"
    names = sorted(present) if ordered else sorted(present, reverse=True)
    body = b"".join(
        f"{oid} refs/{name}\n".encode() + (f"^{peeled}\n".encode() if peeled else b"")
        for name in names
        for oid, peeled in [row(present[name])]
    )
    data = header + body
    packed = PackedRefs(data if ended or not names else data[:-1])
    if prepared:
        packed.prepare()
    wanted = {f"refs/{name}": None if value is None else row(value) for name, value in changes.items()}
    spliced = PackedRefs(b"".join(packed.spliced(wanted)))
    expected = {f"refs/{name}": row(value) for name, value in present.items()} | wanted
    found = list(spliced.entries())
    assert found == sorted((name, *row_) for name, row_ in expected.items() if row_)
    for name, row_ in expected.items():
        assert spliced.prepare().get(name) == (row_[0] if row_ else None)
