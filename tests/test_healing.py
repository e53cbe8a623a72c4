"""Whatever a person does to our refs and files: the next write loses no run and leaves one clean history."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from scp_git import Run, Settings, Store
from scp_git.git.committer import Committer
from scp_git.git.handle import Repository
from scp_git.git.notes import append_note, read_note
from scp_git.git.transaction import Transaction
from scp_git.layout import run_tag_ref
from scp_git.ledger.queries import snapshot

Git = Callable[..., str]
MakeRepo = Callable[..., Path]
QUICK = Settings(durability="os", lock_timeout_s=10)
LEDGER, ARCHIVE, NOTES = "refs/heads/scp-ledger", "refs/heads/scp-ledger-archive", "refs/notes/scp-chat"


def opened(root: Path, number: int = 0) -> Store:
    """A store; each number has a writer of its own, which knows nothing of the others."""
    return Store.open(root, QUICK.model_copy(update={"idle_s": 5.0 + number}))


def record(store: Store, run_id: str) -> str:
    return store.record_run(Run(run_id=run_id, type="apply", summary=f"of {run_id}"), [{"type": "x"}])


@dataclass
class Bench:
    """A repository with a few runs, one of them deleted, and a person at work in it."""

    root: Path
    git: Git
    expected: set[str]

    @property
    def view(self) -> Path:
        return self.root / ".scp-ledger"

    def tip(self, ref: str = LEDGER) -> str:
        return self.git(self.root, "rev-parse", "-q", "--verify", ref).strip()

    def commit(self, message: str) -> None:
        """Everything in the view, as a person does it."""
        self.git(self.view, "add", "-A")
        self.git(self.view, "commit", "-q", "-m", message)

    def count(self, ref: str = LEDGER) -> int:
        return int(self.git(self.root, "rev-list", "--count", ref))

    def ancestors(self) -> set[str]:
        return set(self.git(self.root, "rev-list", LEDGER).split())

    def paths(self, ref: str = LEDGER) -> set[str]:
        return set(self.git(self.root, "ls-tree", "-r", "--name-only", ref).splitlines())

    def show(self, path: str) -> str:
        return self.git(self.root, "show", f"{LEDGER}:{path}")

    def settle(self, number: int = 0, *, others: tuple[str, ...] = ()) -> Store:
        """The next write, and two more: nothing is lost, all is clean, nothing goes back and forth."""
        store = opened(self.root, number)
        self.expected.add(record(store, f"next-{number}-{len(self.expected)}"))
        self.check(store, others=others)
        for again in range(2):
            before = self.count(), self.count(ARCHIVE) if self.expected else 0
            self.expected.add(record(opened(self.root, again), f"later-{again}-{len(self.expected)}"))
            assert self.count() == before[0] + 1, "exactly one commit, no merging back and forth"
            assert self.count(ARCHIVE) == before[1]
        self.check(store, others=others)
        return store

    def check(self, store: Store, *, others: tuple[str, ...] = ()) -> None:
        listed = {run.run_id: run for run in store.list_runs(n=1000)}
        assert set(listed) == self.expected
        for run_id, run in listed.items():
            assert run.summary == f"of {run_id}"
            assert [event["type"] for event in store.get_run_events(run_id)] == ["x"]
        assert store.get_run("gone") is None, "what was deleted stays deleted"
        assert any(path.endswith("/gone") for path in self.paths(ARCHIVE))
        on_disk = {
            str(path.relative_to(self.view))
            for path in self.view.rglob("*")
            if (path.is_file() or path.is_symlink()) and path != self.view / ".git"
        }
        assert on_disk - set(others) == self.paths()
        status = self.git(self.view, "status", "--porcelain", "-uall").splitlines()
        assert status == [f"?? {path}" for path in sorted(others)]
        self.check_tags()

    def check_tags(self) -> None:
        """Every tag says what run.json says."""
        fields = "%(refname:lstrip=4)%00%(contents)%00"
        parts = self.git(self.root, "for-each-ref", f"--format={fields}", "refs/tags/scp/run/").split("\0")
        for name, message in zip(parts[:-1:2], parts[1::2], strict=True):
            stored = json.loads(self.show(f"ledger/runs/{name.strip()}/run.json"))
            stored.pop("anchor")
            assert json.loads(message) == stored

    def tags(self) -> set[str]:
        return set(self.git(self.root, "tag", "-l", "scp/run/*").replace("scp/run/", "").split())


@pytest.fixture
def bench(make_repo: MakeRepo, git: Git) -> Bench:
    root = make_repo(commits=2)
    store = opened(root)
    record(store, "gone")
    store.delete_run("gone")
    return Bench(root, git, {record(store, f"r{n}") for n in range(5)})


# ---------------------------------------------------------------- commits of a person


@pytest.mark.referee
def test_a_commit_with_a_stale_index(bench: Bench) -> None:
    """The index is that of three runs ago, so the commit takes the last three runs out of the tree."""
    bench.git(bench.view, "read-tree", "HEAD~3")
    (bench.view / "mine.txt").write_text("mine\n")
    bench.git(bench.view, "add", "mine.txt")
    bench.git(bench.view, "commit", "-q", "-m", "a person's")
    theirs = bench.tip()
    assert not [path for path in bench.paths() if path.startswith("ledger/runs/r4/")]
    bench.settle()
    assert theirs in bench.ancestors()
    assert bench.show("mine.txt") == "mine\n"
    assert bench.git(bench.root, "rev-list", "--merges", "--count", LEDGER).strip() == "0", "linear"


@pytest.mark.referee
@pytest.mark.parametrize("number", [0, 1])
def test_a_commit_of_own_files(bench: Bench, number: int) -> None:
    own = {"README.md": "# ours\n", "docs/deep/page.md": "page\n", "chat/notes.txt": "n\n"}
    for path, text in own.items():
        (bench.view / path).parent.mkdir(parents=True, exist_ok=True)
        (bench.view / path).write_text(text)
    bench.commit("own files")
    theirs, before = bench.tip(), bench.count()
    bench.settle(number)
    assert theirs in bench.ancestors()
    assert {path: bench.show(path) for path in own} == own
    assert bench.count() == before + 3, "one commit for each write, and none for the merge"
    (bench.view / "README.md").write_text("# edited\n")
    (bench.view / "chat/notes.txt").unlink()
    bench.commit("edited, and one removed")
    bench.settle(number)
    assert "README.md" in bench.paths() and "chat/notes.txt" in bench.paths(), "absence never deletes"


@pytest.mark.referee
@pytest.mark.parametrize("trailer", ["", "\n\nScp-Git: 1"])
def test_what_a_person_added_and_took_away_again(bench: Bench, trailer: str) -> None:
    """Every commit back to ours counts, also where the last one bears our trailer."""
    (bench.view / "mine.txt").write_text("mine\n")
    bench.commit("add")
    bench.git(bench.view, "rm", "-q", "mine.txt")
    bench.git(bench.view, "commit", "-q", "-m", f"remove{trailer}")
    bench.settle()
    assert bench.show("mine.txt") == "mine\n"


@pytest.mark.referee
def test_own_files_inside_the_folder_of_a_run(bench: Bench) -> None:
    own = ("ledger/runs/r2/log.txt", "ledger/runs/r2/attachments/deep/picture.bin")
    for path in own:
        (bench.view / path).parent.mkdir(parents=True, exist_ok=True)
        (bench.view / path).write_text("mine\n")
    bench.commit("beside a run")
    bench.settle()
    assert set(own) <= bench.paths()


@pytest.mark.referee
def test_a_commit_that_removes_runs(bench: Bench) -> None:
    bench.git(bench.view, "rm", "-rq", "ledger/runs/r1", "ledger/runs/r3", "FORMAT")
    bench.git(bench.view, "commit", "-q", "-m", "tidy up")
    bench.settle()


@pytest.mark.referee
@pytest.mark.parametrize("change", ["nothing", "a file", "runs removed", "message"])
def test_an_amended_commit(bench: Bench, change: str) -> None:
    """It keeps our trailer, so it looks like ours, but is not."""
    old = bench.tip()
    if change == "a file":
        (bench.view / "mine.txt").write_text("mine\n")
        bench.git(bench.view, "add", "mine.txt")
    elif change == "runs removed":
        bench.git(bench.view, "rm", "-rq", "ledger/runs")
    extra = ["-m", "other words"] if change == "message" else ["--no-edit", "--date=2001-02-03T04:05:06"]
    bench.git(bench.view, "commit", "-q", "--amend", "--allow-empty", *extra)
    amended = bench.tip()
    assert amended != old
    bench.settle()
    assert {old, amended} <= bench.ancestors()
    assert change != "a file" or bench.show("mine.txt") == "mine\n"


@pytest.mark.referee
@pytest.mark.parametrize("back", [1, 3, 6])
def test_a_branch_that_was_reset(bench: Bench, back: int) -> None:
    old = bench.tip()
    bench.git(bench.view, "reset", "-q", "--hard", f"HEAD~{back}")
    bench.settle()
    assert old in bench.ancestors()
    assert bench.git(bench.root, "rev-list", "--merges", "--count", LEDGER).strip() == "0"


@pytest.mark.referee
def test_a_branch_that_was_reset_and_committed_to(bench: Bench) -> None:
    old = bench.tip()
    bench.git(bench.view, "reset", "-q", "--hard", "HEAD~3")
    (bench.view / "mine.txt").write_text("mine\n")
    bench.commit("on an old state")
    theirs = bench.tip()
    bench.settle()
    assert {old, theirs} <= bench.ancestors()
    assert bench.show("mine.txt") == "mine\n"


@pytest.mark.referee
def test_a_commit_that_was_reverted(bench: Bench) -> None:
    bench.git(bench.view, "revert", "--no-edit", "HEAD~1")
    bench.settle()


@pytest.mark.referee
def test_history_that_was_squashed(bench: Bench) -> None:
    tree = bench.git(bench.root, "rev-parse", f"{LEDGER}~2^{{tree}}").strip()
    squashed = bench.git(bench.root, "commit-tree", "-m", "squashed", tree).strip()
    bench.git(bench.root, "update-ref", LEDGER, squashed)
    bench.settle()


@pytest.mark.referee
@pytest.mark.parametrize("refs", [[LEDGER], [ARCHIVE], [LEDGER, ARCHIVE]])
@pytest.mark.parametrize("number", [0, 1])
def test_a_branch_that_was_deleted(bench: Bench, refs: list[str], number: int) -> None:
    tips = {ref: bench.tip(ref) for ref in refs}
    for ref in refs:
        bench.git(bench.root, "update-ref", "-d", ref)
    bench.settle(number)
    for ref, old in tips.items():
        assert old in bench.git(bench.root, "rev-list", ref).split()


@pytest.mark.referee
def test_branches_deleted_and_everything_packed(bench: Bench) -> None:
    bench.git(bench.root, "pack-refs", "--all")
    bench.git(bench.root, "update-ref", "-d", LEDGER)
    bench.git(bench.root, "gc", "-q")
    bench.settle()


@pytest.mark.referee
def test_a_branch_replaced_by_an_unrelated_one(bench: Bench) -> None:
    old, other = bench.tip(), bench.tip("main")
    bench.git(bench.root, "update-ref", LEDGER, other)
    bench.settle(1)
    assert {old, other} <= bench.ancestors()
    assert "file.txt" in bench.paths()
    assert bench.git(bench.root, "rev-list", "--merges", "--count", LEDGER).strip() == "1"


@pytest.mark.referee
@pytest.mark.parametrize("content", ["", "garbage\n", "0" * 40 + "\n", "12" * 20 + "\n"])
def test_a_branch_whose_file_is_damaged(bench: Bench, content: str) -> None:
    old = bench.tip()
    (bench.root / ".git" / LEDGER).write_text(content)
    bench.settle(1)
    assert old in bench.ancestors()


@pytest.mark.referee
def test_a_branch_that_became_symbolic_is_a_clear_error(bench: Bench) -> None:
    bench.git(bench.root, "update-ref", "refs/heads/elsewhere", bench.tip())
    bench.git(bench.root, "symbolic-ref", LEDGER, "refs/heads/elsewhere")
    before = bench.git(bench.root, "for-each-ref")
    with pytest.raises(OSError, match="symbolic"):
        record(opened(bench.root, 1), "x")
    assert bench.git(bench.root, "for-each-ref") == before
    bench.git(bench.root, "symbolic-ref", "-d", LEDGER)
    bench.settle(1)


@pytest.mark.referee
def test_a_merge_of_a_person(bench: Bench) -> None:
    """``main`` merged into the ledger, as somebody may do who wants its files beside."""
    bench.git(bench.view, "merge", "-q", "--no-edit", "--allow-unrelated-histories", "main")
    bench.settle()
    assert "file.txt" in bench.paths()


# ---------------------------------------------------------------- odd content


@pytest.mark.referee
def test_an_edited_run_becomes_another_run(bench: Bench) -> None:
    path = "ledger/runs/r2/run.json"
    edited = json.loads((bench.view / path).read_text())
    edited["summary"] = "zz edited by hand"
    (bench.view / path).write_text(json.dumps(edited, indent=2) + "\n")
    bench.commit("edit")
    store = opened(bench.root)
    bench.expected.add(record(store, "next"))
    runs = {run.run_id: run.summary for run in store.list_runs(n=100)}
    (other,) = set(runs) - bench.expected
    assert runs["r2"] == "of r2" and runs[other] == "zz edited by hand"
    assert other.startswith("r2-") and len(other) == len("r2-") + 8
    assert store.get_run_events(other) and store.get_run_events("r2")
    before = bench.count()
    record(store, "later")
    assert bench.count() == before + 1
    assert len(store.list_runs(n=100)) == len(bench.expected) + 2
    bench.check_tags()


@pytest.mark.referee
@pytest.mark.parametrize("text", ["not json\n", "", "[]\n", None])
def test_a_run_that_was_damaged_by_hand(bench: Bench, text: str | None) -> None:
    if text is None:
        (bench.view / "ledger/runs/r2/run.json").unlink()
    else:
        (bench.view / "ledger/runs/r2/run.json").write_text(text)
    (bench.view / "ledger/runs/r2/events.jsonl").write_text('{"seq":1,"type":"x"\nnot json\n')
    bench.commit("damage")
    store = opened(bench.root)
    record(store, "next")
    runs = {run.run_id: run.summary for run in store.list_runs(n=100)}
    assert set(runs) == bench.expected | {"next"}
    folders = bench.git(bench.root, "ls-tree", "--name-only", f"{LEDGER}:ledger/runs").split()
    assert set(folders) == set(runs), "nothing is made up for what is no run"
    assert runs["r2"] == "of r2" and [e["type"] for e in store.get_run_events("r2")] == ["x"]
    before = bench.count()
    record(store, "later")
    assert bench.count() == before + 1


@pytest.mark.referee
def test_added_events_are_kept(bench: Bench) -> None:
    with (bench.view / "ledger/runs/r2/events.jsonl").open("a") as file:
        file.write('{"seq":7,"ts":"t","type":"by hand"}\n')
    bench.commit("one more event")
    store = opened(bench.root)
    record(store, "next")
    assert [event["type"] for event in store.get_run_events("r2")] == ["x", "by hand"]


@pytest.mark.referee
@pytest.mark.parametrize("place", ["link", "ledger/runs/r1/link", "ledger/runs/link"])
def test_a_symlink_is_not_taken_over(bench: Bench, place: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("outside\n")
    (bench.view / place).symlink_to(tmp_path / "outside")
    bench.commit("a link")
    theirs = bench.tip()
    store = opened(bench.root)
    bench.expected.add(record(store, "next"))
    assert place not in bench.paths()
    (bench.view / place).unlink(missing_ok=True)
    bench.check(store)
    assert (tmp_path / "outside").read_text() == "outside\n"
    assert theirs in bench.ancestors(), "history keeps it"
    before = bench.count()
    record(store, "later")
    assert bench.count() == before + 1


@pytest.mark.untidy("hostile trees, which stay in history", skip=["fsck"])
@pytest.mark.referee
def test_entries_that_no_checkout_should_follow(bench: Bench) -> None:
    """A tree as only a hostile program writes it; none of it reaches the ledger or the disk."""
    good = bench.git(bench.root, "rev-parse", f"{LEDGER}:FORMAT").strip()
    main = bench.tip("main")
    rows = [f"100644 blob {good}\tFORMAT", f"160000 commit {main}\tsubmodule", f"120000 blob {good}\tlink"]
    rows += [
        f"100644 blob {good}\t{name}" for name in ("con:aux", "back\\slash", "git~1", ".gitmodules", "a.")
    ]
    tree = bench.git(bench.root, "mktree", input="\n".join([*rows, ""])).strip()
    evil = bench.git(bench.root, "commit-tree", "-p", LEDGER, "-m", "evil", tree).strip()
    bench.git(bench.root, "update-ref", LEDGER, evil)
    store = opened(bench.root, 1)
    bench.expected.add(record(store, "next"))
    assert {path for path in bench.paths() if not path.startswith("ledger/")} == {"FORMAT"}
    bench.check(store)


@pytest.mark.untidy("a person's file that is not taken over stays in the view", skip=["view"])
@pytest.mark.referee
def test_a_run_with_an_id_that_breaks_the_rule_is_not_taken_over(bench: Bench) -> None:
    path = "ledger/runs/bad..id/run.json"
    (bench.view / path).parent.mkdir()
    (bench.view / path).write_text('{"run_id": "bad..id", "type": "t"}\n')
    bench.commit("a bad id")
    bench.settle(others=(path,))
    assert path not in bench.paths()


# ---------------------------------------------------------------- tags


@pytest.mark.referee
@pytest.mark.parametrize("packed", [False, True])
def test_deleted_tags_come_back(bench: Bench, packed: bool) -> None:
    ids = bench.git(bench.root, "for-each-ref", "refs/tags/scp/run/")
    if packed:
        bench.git(bench.root, "pack-refs", "--all")
    bench.git(bench.root, "tag", "-d", "scp/run/r1", "scp/run/r3")
    store = opened(bench.root, 1)
    store.ensure_ledger()
    assert bench.git(bench.root, "for-each-ref", "refs/tags/scp/run/") == ids, "with the same ids"
    bench.git(bench.root, "tag", "-d", "scp/run/r1")
    again = store.get_run("r1")
    assert again is not None
    store.record_run(again, store.get_run_events("r1"))
    assert bench.git(bench.root, "for-each-ref", "refs/tags/scp/run/") == ids
    bench.settle()


@pytest.mark.referee
@pytest.mark.untidy("a tag of a person", skip=["tags"])
def test_a_tag_that_no_anchor_explains_is_left_alone(bench: Bench) -> None:
    bench.git(bench.root, "tag", "-d", "scp/run/r1", "scp/run/r2")
    bench.git(bench.root, "tag", "scp/run/r1", "main~1")
    bench.git(bench.root, "tag", "-a", "-m", "mine", "scp/run/own")
    bench.git(bench.root, "tag", "-a", "-m", "mine", "scp/run/r2")
    theirs = bench.git(bench.root, "for-each-ref", "refs/tags/scp/run/r1", "refs/tags/scp/run/r2")
    store = opened(bench.root, 1)
    store.ensure_ledger()
    record(store, "own")
    for run_id in ("r1", "r2"):
        again = store.get_run(run_id)
        assert again is not None and store.record_run(again, store.get_run_events(run_id)) == run_id
    assert bench.git(bench.root, "for-each-ref", "refs/tags/scp/run/r1", "refs/tags/scp/run/r2") == theirs
    assert bench.git(bench.root, "tag", "-l", "--format=%(contents)", "scp/run/own").strip() == "mine"
    assert {run.run_id for run in store.list_runs()} == bench.expected | {"own"}
    store.delete_run("r1")
    assert "r1" not in bench.tags()


@pytest.mark.referee
@pytest.mark.untidy("a tag of a person", skip=["tags"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["scp/run/next/below", "scp/run", "scp"])
def test_a_tag_in_the_way_of_ours_does_not_stop_the_ledger(bench: Bench, name: str, packed: bool) -> None:
    """Names that are a folder of each other's cannot both be refs."""
    ours = bench.tags()
    if name in ("scp", "scp/run"):
        bench.git(bench.root, "tag", "-d", *(f"scp/run/{run_id}" for run_id in ours))
    bench.git(bench.root, "tag", name, "main~1")
    if packed:
        bench.git(bench.root, "pack-refs", "--all")
    theirs = bench.git(bench.root, "for-each-ref", f"refs/tags/{name}")
    store = opened(bench.root, 1)
    for run_id in ("next", "other"):
        bench.expected.add(record(store, run_id))
    assert {run.run_id for run in store.list_runs(n=100)} == bench.expected
    assert bench.git(bench.root, "for-each-ref", f"refs/tags/{name}") == theirs
    bench.git(bench.root, "tag", "-d", name)
    bench.settle()


# ---------------------------------------------------------------- notes


@dataclass(frozen=True)
class Say:
    """An operation that appends one message to the note on a run's tag."""

    run_id: str
    id: str
    size: int = 100

    def apply(self, tx: Transaction) -> None:
        tag = tx.tag(self.run_id)
        assert tag is not None
        append_note(tx.notes, tag, b'{"id":"%s","ts":"%s"}\n' % (self.id.encode(), self.id.encode()))


class Chat:
    """Writes messages as the library does, and reads them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.repository = Repository.open(bench.root)
        self.committer = Committer(self.repository, durability="os", lock_timeout_s=10)

    def say(self, run_id: str, id: str) -> None:
        self.committer.take_gate()
        try:
            assert self.committer.run([Say(run_id, id)]) == [None]
        finally:
            self.committer.release_gate()

    def ids(self, run_id: str) -> list[str]:
        """The message ids that stock git shows on a run's tag."""
        done = subprocess.run(
            ["git", "-C", str(self.bench.root), "notes", "--ref=scp-chat", "show", f"scp/run/{run_id}"],
            capture_output=True,
            text=True,
        )
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        return [json.loads(line)["id"] for line in lines] if done.returncode == 0 else []


@pytest.fixture
def chat(bench: Bench) -> Chat:
    chat = Chat(bench)
    for run_id, id in (("r0", "m1"), ("r0", "m2"), ("r1", "m3")):
        chat.say(run_id, id)
    assert (chat.ids("r0"), chat.ids("r1")) == (["m1", "m2"], ["m3"])
    return chat


@pytest.mark.referee
def test_notes_that_stock_git_appended(chat: Chat, bench: Bench) -> None:
    bench.git(bench.root, "notes", "--ref=scp-chat", "append", "-m", '{"id":"m9","ts":"m9"}', "scp/run/r0")
    bench.git(bench.root, "notes", "--ref=scp-chat", "append", "-m", '{"id":"m8","ts":"m8"}', "scp/run/r2")
    chat.say("r0", "m4")
    assert sorted(chat.ids("r0")) == ["m1", "m2", "m4", "m9"]
    assert chat.ids("r2") == ["m8"]
    before = bench.count(NOTES)
    chat.say("r0", "m5")
    assert bench.count(NOTES) == before + 1
    bench.settle()
    assert bench.count(NOTES) == before + 1, "a run changes no notes"


@pytest.mark.referee
@pytest.mark.parametrize("by", ["remove", "edit", "prune", "delete the ref", "reset the ref"])
def test_notes_that_stock_git_took_away_come_back(chat: Chat, bench: Bench, by: str) -> None:
    """Absence never deletes; only a record of the deletion does."""
    old = bench.tip(NOTES)
    if by == "remove":
        bench.git(bench.root, "notes", "--ref=scp-chat", "remove", "scp/run/r0")
    elif by == "edit":
        new = '{"id":"m9","ts":"m9"}'
        bench.git(bench.root, "notes", "--ref=scp-chat", "add", "-f", "-m", new, "scp/run/r0")
    elif by == "prune":
        bench.git(bench.root, "notes", "--ref=scp-chat", "prune")
    elif by == "delete the ref":
        bench.git(bench.root, "update-ref", "-d", NOTES)
    else:
        bench.git(bench.root, "update-ref", NOTES, f"{NOTES}~2")
    chat.say("r1", "m5")
    assert set(chat.ids("r0")) >= {"m1", "m2"}
    assert chat.ids("r1") == ["m3", "m5"]
    assert by != "edit" or "m9" in chat.ids("r0")
    assert old in bench.git(bench.root, "rev-list", NOTES).split()
    before = bench.count(NOTES)
    chat.say("r1", "m6")
    assert bench.count(NOTES) == before + 1
    bench.settle()


@pytest.mark.referee
def test_two_writers_and_stock_git_on_the_notes(chat: Chat, bench: Bench) -> None:
    other = Chat(bench)
    append = 'git notes --ref=scp-chat append -m "{\\"id\\":\\"g$i\\"}" scp/run/r3'
    script = f"for i in $(seq 12); do {append} && echo g$i; done"
    theirs = subprocess.Popen(
        ["sh", "-c", script], cwd=bench.root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    ours = []
    while theirs.poll() is None or len(ours) < 20:
        id = f"o{len(ours)}"
        (chat, other)[len(ours) % 2].say("r3", id)
        ours.append(id)
    assert theirs.stdout is not None
    done = theirs.stdout.read().split()
    theirs.stdout.close()
    assert done and set(chat.ids("r3")) >= {*ours, *done}
    assert len(chat.ids("r3")) == len(set(chat.ids("r3")))


# ---------------------------------------------------------------- the local folder scp/


def scp(bench: Bench) -> Path:
    return bench.root / ".git" / "scp"


@pytest.mark.referee
@pytest.mark.parametrize("what", ["tips", "everything", "garbage"])
def test_local_files_that_were_removed(bench: Bench, what: str) -> None:
    if what == "tips":
        (scp(bench) / "tips").unlink()
    elif what == "everything":
        shutil.rmtree(scp(bench))
    else:
        for name in ("tips", "intent", "deferred"):
            (scp(bench) / name).write_bytes(b"\xff garbage \0\n" * 10)
    before = bench.count()
    bench.settle(1)
    assert bench.count() == before + 3


@pytest.mark.referee
def test_an_old_backup_of_the_local_files(bench: Bench) -> None:
    shutil.copytree(scp(bench), bench.root.parent / "backup")
    for n in range(3):
        bench.expected.add(record(opened(bench.root), f"since-{n}"))
    before = bench.count()
    shutil.rmtree(scp(bench))
    shutil.copytree(bench.root.parent / "backup", scp(bench))
    bench.settle(1)
    assert bench.count() == before + 3
    assert bench.git(bench.root, "rev-list", "--merges", "--count", LEDGER).strip() == "0"


@pytest.mark.untidy("files of a run that nothing knows any more", skip=["view"])
@pytest.mark.referee
def test_an_old_backup_of_the_whole_git_folder(bench: Bench) -> None:
    """What was recorded since is gone with the objects; what is there goes on."""
    shutil.copytree(bench.root / ".git", bench.root.parent / "backup", symlinks=True)
    record(opened(bench.root), "since")
    shutil.rmtree(bench.root / ".git")
    shutil.copytree(bench.root.parent / "backup", bench.root / ".git", symlinks=True)
    left = tuple(f"ledger/runs/since/{name}" for name in ("run.json", "events.jsonl"))
    bench.settle(1, others=left)


@pytest.mark.referee
def test_an_interrupted_write_whose_branch_a_person_moved(bench: Bench) -> None:
    """The intent of a dead process says that the ledger moves to X; a person has committed on top of Y."""
    store = opened(bench.root)
    old = bench.tip()
    bench.expected.add(record(store, "interrupted"))
    new, tag = bench.tip(), bench.tip(run_tag_ref("interrupted"))
    (bench.view / "mine.txt").write_text("mine\n")
    blob = bench.git(bench.root, "hash-object", "-w", str(bench.view / "mine.txt")).strip()
    listing = bench.git(bench.root, "ls-tree", old) + f"100644 blob {blob}\tmine.txt\n"
    tree = bench.git(bench.root, "mktree", input=listing).strip()
    theirs = bench.git(bench.root, "commit-tree", "-p", old, "-m", "a person's", tree).strip()
    bench.git(bench.root, "update-ref", LEDGER, theirs)
    committer = Committer(Repository.open(bench.root), durability="os", lock_timeout_s=10)
    rows = [[LEDGER, old, new, None], [run_tag_ref("interrupted"), None, tag, bench.tip("main")]]
    committer.publisher.intent.write({"refs": rows, "locks": []}, sync=False)
    tips = committer._tips.read()
    assert tips is not None
    tips["refs"][LEDGER] = old
    committer._tips.write(tips, sync=False)
    bench.settle(1)
    assert {old, theirs} <= bench.ancestors()
    assert bench.show("mine.txt") == "mine\n"


@pytest.mark.referee
def test_many_mishaps_one_after_the_other(bench: Bench) -> None:
    for turn in range(3):
        (bench.view / f"mine-{turn}.txt").write_text("mine\n")
        bench.commit("a person's")
        bench.git(bench.view, "reset", "-q", "--hard", "HEAD~2")
        shutil.rmtree(bench.view)
        bench.git(bench.root, "update-ref", "-d", "refs/tags/scp/run/r0")
        bench.git(bench.root, "gc", "-q", "--prune=now")
        bench.settle(turn)
    opened(bench.root).ensure_ledger()
    assert bench.tags() == bench.expected
    assert os.listdir(scp(bench))


def test_a_note_of_a_run_is_read_through_the_transaction(repo: Path) -> None:
    store = opened(repo)
    record(store, "r0")
    repository = Repository.open(repo)
    committer = Committer(repository, durability="os", lock_timeout_s=10)
    committer.take_gate()
    try:
        assert committer.run([Say("r0", "m1"), Say("r0", "m2")]) == [None, None]
    finally:
        committer.release_gate()
    with repository.odb() as odb:
        notes = snapshot(repository, odb).notes
        tag = repository.refs.read(run_tag_ref("r0"))
        assert tag is not None
        assert read_note(notes, tag) == b'{"id":"m1","ts":"m1"}\n{"id":"m2","ts":"m2"}\n'
