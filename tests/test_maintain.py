"""Housekeeping: packs are merged and loose tags packed, unasked and on request, and nobody waits for it."""

from __future__ import annotations

import errno
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import scp_git
from scp_git import Maintenance, NotARepository, Run, Settings, Store, open_store
from scp_git.git import locks, maintenance, pack
from scp_git.git.entries import encode_entry
from scp_git.git.files import write_all
from scp_git.git.locks import Gate, LockFile
from scp_git.git.objects import BLOB, hash_object
from scp_git.git.pack import write_pack
from scp_git.git.publish import Publisher
from scp_git.git.refs import PACKED_HEADER
from tests.sight import ids, tagged
from tests.test_archive import SMALL, fill, old_run
from tests.test_cli_ledger import PROJECT, out

OS = Settings(durability="os")


def packs(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".git/objects/pack").glob("*.pack"))


def loose_tags(root: Path) -> int:
    folder = root / ".git/refs/tags/scp/run"
    return len(os.listdir(folder)) if folder.is_dir() else 0


def test_small_packs_become_one_and_nothing_else_is_touched(repo: Path, git: Callable[..., str]) -> None:
    git(repo, "repack", "-q", "-a", "-d")
    (foreign,) = packs(repo)
    store = Store.open(repo, OS)
    made = fill(store, 7)
    assert len(packs(repo)) == 8
    assert store.maintain() == Maintenance(packs_merged=6)
    assert len(packs(repo)) == 2 and foreign in packs(repo)
    assert ids(repo) == made[::-1]
    assert store.maintain() == Maintenance()


def test_a_big_pack_and_a_small_one_stay_as_they_are(repo: Path) -> None:
    store = Store.open(repo, OS)
    store.import_runs(old_run(number) for number in range(50))
    (big,) = packs(repo)
    store.record_run(Run(type="x"))
    assert store.maintain() == Maintenance()
    assert len(packs(repo)) == 2 and big in packs(repo)


def test_packs_beyond_a_size_are_left_alone(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(repo, OS)
    fill(store, 4)
    monkeypatch.setattr(maintenance, "_BIG_BYTES", 100)
    assert store.maintain() == Maintenance()
    assert len(packs(repo)) == 4


def test_many_loose_tags_are_packed(
    repo: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_LOOSE_MANY", 5)
    monkeypatch.setattr(maintenance, "_TAGS_AT_ONCE", 4)
    monkeypatch.setattr(maintenance, "_FILES_AT_ONCE", 3)
    store = Store.open(repo, OS)
    made = fill(store, 11)
    git(repo, "tag", "mine")
    before = git(repo, "for-each-ref")
    assert store.maintain().tags_packed == 8
    assert loose_tags(repo) == 3
    assert git(repo, "for-each-ref") == before
    assert tagged(repo) == set(made)


@pytest.mark.untidy("the tag is none of ours", skip=["tags"])
def test_a_tag_that_is_no_object_of_its_own_stays_loose_and_hides_no_other(
    repo: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_LOOSE_MANY", 1)
    monkeypatch.setattr(maintenance, "_TAGS_AT_ONCE", 2)
    store = Store.open(repo, OS)
    fill(store, 5)
    for number in range(3):
        git(repo, "tag", f"scp/run/light{number}")
    assert store.maintain().tags_packed == 5
    assert loose_tags(repo) == 3


def test_the_writer_packs_loose_tags_beside_its_writes(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scp_git.writer.LOOSE_MAX", 20)
    monkeypatch.setattr(maintenance, "_TAGS_AT_ONCE", 8)
    monkeypatch.setattr("scp_git.writer._TAGS_EVERY", 4)
    store = Store.open(repo, OS)
    made = fill(store, 40)
    assert store._writer._packing is not None
    store._writer._packing.join()
    assert loose_tags(repo) <= 30
    assert tagged(repo) == set(made)


def test_the_intent_of_a_dead_process_is_left_for_the_next_write(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_LOOSE_MANY", 1)
    store = Store.open(repo, OS)
    fill(store, 3)
    intent = store._writer.committer.publisher.intent
    intent.write({"refs": [], "locks": []}, sync=False)
    assert store.maintain().tags_packed == 0
    assert intent.read()
    intent.clear()
    assert store.maintain().tags_packed == 3


def test_missing_tags_of_archived_runs_are_made_on_request(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo, SMALL)
    made = fill(store, 9)
    before = git(repo, "for-each-ref", "refs/tags")
    store.archive_runs(older_than_days=1, drop_tags=True)
    store.ensure_ledger()
    assert tagged(repo) == set()
    assert store.maintain().tags_made == 0
    assert store.maintain(tags=True).tags_made == 9
    assert git(repo, "for-each-ref", "refs/tags") == before
    assert tagged(repo) == set(made)


def test_where_nothing_was_written_there_is_nothing_to_do(repo: Path, tmp_path: Path) -> None:
    assert Store.open(repo).maintain() == Maintenance()
    assert not (repo / ".git/scp").exists()


@pytest.mark.alone
def test_writers_do_not_wait_for_a_merge(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(repo, OS)
    fill(store, 6)
    held, go = threading.Event(), threading.Event()
    entries = maintenance._Source.entries

    def slow(self: maintenance._Source) -> object:
        held.set()
        go.wait(10)
        return entries(self)

    monkeypatch.setattr(maintenance._Source, "entries", slow)
    keeper = threading.Thread(target=store.maintain)
    keeper.start()
    assert held.wait(10)
    began = time.monotonic()
    run_id = store.record_run(Run(type="x"))
    took = time.monotonic() - began
    go.set()
    keeper.join()
    assert took < 2 and run_id in ids(repo)


# ---------------------------------------------------------------- how long a writer waits


@dataclass
class Hold:
    """One time that housekeeping held the gate."""

    hasty: bool
    """The gate was taken again when it had been free for less than half as long as it was held."""
    began: float
    cpu_s: float
    took_s: float = 0.0
    written: int = 0
    locks: int = 0


class Meter:
    """What housekeeping does while it holds the gate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.holds: list[Hold] = []
        self._mine = threading.local()
        meter = self

        class Measured(Gate):
            def take(self) -> None:
                wanted = time.monotonic()
                super().take()
                meter._mine.hold = Hold(
                    wanted < getattr(meter._mine, "free_until", 0.0), time.monotonic(), time.thread_time()
                )

            def release(self) -> None:
                hold, meter._mine.hold = getattr(meter._mine, "hold", None), None
                if hold is not None:
                    meter.end(hold)
                super().release()

        monkeypatch.setattr(maintenance, "Gate", Measured)
        for module in (locks, pack):
            monkeypatch.setattr(module, "write_all", self.write_all)
        monkeypatch.setattr(LockFile, "_taken", self.taken(LockFile._taken))

    def end(self, hold: Hold) -> None:
        hold.cpu_s = time.thread_time() - hold.cpu_s
        hold.took_s = time.monotonic() - hold.began
        self._mine.free_until = time.monotonic() + hold.took_s / 2
        self.holds.append(hold)

    def write_all(self, fd: int, data: bytes) -> None:
        if (hold := getattr(self._mine, "hold", None)) is not None:
            hold.written += len(data)
        write_all(fd, data)

    def taken(self, real: Callable[[LockFile], None]) -> Callable[[LockFile], None]:
        def taken(lock: LockFile) -> None:
            if (hold := getattr(self._mine, "hold", None)) is not None:
                hold.locks += 1
            real(lock)

        return taken

    def wrong(self) -> list[str]:
        """Where a writer would have waited for long; hardly by the clock, as others use the machine."""
        holds, found = self.holds, []
        found += [f"busy for {hold.cpu_s:.3f} s" for hold in holds if hold.cpu_s > LONGEST_S]
        found += [f"{hold.written} bytes written" for hold in holds if hold.written > 4096]
        found += [f"{hold.locks} locks taken" for hold in holds if hold.locks > 64]
        usual = statistics.median(hold.took_s for hold in holds)
        found += [f"usually held for {usual:.3f} s"] if usual > LONGEST_S else []
        hasty = sum(hold.hasty for hold in holds)
        return found + (
            [f"{hasty} of {len(holds)} times taken again at once"] if hasty > len(holds) / 4 else []
        )


LONGEST_S = 0.1


def crowded(root: Path, rows: int, loose: int, each: int) -> Store:
    """A repository with so many packed and loose tags, and a dozen packs of so many objects."""
    store = Store.open(root, OS)
    fill(store, 1)
    folder = root / ".git/refs/tags/scp/run"
    (tag,) = [path.read_text() for path in folder.iterdir()]
    commit = (root / ".git/refs/heads/main").read_text()
    lines = (f"{tag.strip()} refs/tags/scp/run/run_a{number:06d}\n^{commit}" for number in range(rows))
    (root / ".git/packed-refs").write_bytes(PACKED_HEADER + "".join(lines).encode())
    for number in range(loose):
        (folder / f"run_b{number:06d}").write_text(tag)
    for number in range(12):
        blobs = (b"%d of %d" % (blob, number) for blob in range(each))
        entries = [encode_entry(hash_object(BLOB, data), BLOB, data) for data in blobs]
        write_pack(root / ".git", entries, sync=False).release()
    return store


def by_request(store: Store) -> None:
    done = store.maintain()
    assert done.tags_packed > 0 and done.packs_merged > 0


def by_the_writer(store: Store) -> None:
    store.record_run(Run(type="x"))
    writer = store._writer
    with writer._changed:
        writer._changed.wait_for(lambda: not writer._busy)
    for thread in (writer._packing, writer._merging):
        assert thread is not None
        thread.join()


def housekeeping(
    root: Callable[..., Path], rows: int, loose: int, each: int, keep: Callable[[Store], None]
) -> None:
    """Measured anew when it was too long: what the library does is as long each time."""
    wrong: list[str] = []
    for _ in range(3):
        top = root()
        store = crowded(top, rows, loose, each)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("scp_git.writer._TAGS_EVERY", 1)
            meter = Meter(patch)
            keep(store)
        assert len(packs(top)) < 5 and loose_tags(top) < 512
        wrong = meter.wrong()
        if not wrong:
            break
    assert not wrong


KEEPERS = [by_request, by_the_writer]


@pytest.mark.alone
@pytest.mark.untidy("tags without runs", skip=["fsck", "tags"])
@pytest.mark.parametrize("keep", KEEPERS)
def test_housekeeping_holds_no_writer_up(
    keep: Callable[[Store], None], make_repo: Callable[..., Path]
) -> None:
    housekeeping(make_repo, 50_000, 1_500, 2_000, keep)


@pytest.mark.alone
@pytest.mark.full
@pytest.mark.untidy("tags without runs", skip=["fsck", "tags"])
@pytest.mark.parametrize("keep", KEEPERS)
def test_housekeeping_of_very_much_holds_no_writer_up(
    keep: Callable[[Store], None], make_repo: Callable[..., Path]
) -> None:
    housekeeping(make_repo, 400_000, 10_000, 20_000, keep)


# ---------------------------------------------------------------- what others do meanwhile

MEDDLING = {
    "git packs them, too": ["pack-refs", "--all"],
    "a tag is deleted": ["update-ref", "-d", "refs/tags/scp/run/{0}"],
    "a tag is moved": ["update-ref", "refs/tags/scp/run/{0}", "refs/tags/scp/run/{1}"],
    "a packed tag is deleted": ["tag", "-d", "mine"],
}


@pytest.mark.parametrize("step", ["packed_with", "replace_packed", "drop_loose"])
@pytest.mark.parametrize("name", MEDDLING)
def test_what_stock_git_does_meanwhile_stays_done(
    name: str, step: str, repo: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_LOOSE_MANY", 1)
    git(repo, "tag", "mine")
    git(repo, "pack-refs")
    store = Store.open(repo, OS)
    made = fill(store, 5)
    real, after = getattr(Publisher, step), []

    def meddled(*args: Any) -> object:
        done = real(*args)
        if not after:
            git(repo, *(word.format(*made[:2]) for word in MEDDLING[name]))
            after.append(git(repo, "for-each-ref"))
        return done

    monkeypatch.setattr(Publisher, step, meddled)
    store.maintain()
    assert after == [git(repo, "for-each-ref")]
    assert loose_tags(repo) == 0


def test_what_somebody_has_locked_is_left_alone(
    repo: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_LOOSE_MANY", 1)
    store = Store.open(repo, OS)
    made = fill(store, 5)
    locks = [repo / ".git/packed-refs.lock", repo / f".git/refs/tags/scp/run/{made[2]}.lock"]
    before = git(repo, "for-each-ref")
    for lock, packed, loose in zip(locks, (0, 4), (5, 2), strict=True):
        lock.touch()
        assert store.maintain().tags_packed == packed
        assert loose_tags(repo) == loose
        lock.unlink()
    assert store.maintain().tags_packed == 1
    assert git(repo, "for-each-ref") == before


def test_tags_are_packed_where_files_cannot_be_linked(
    repo: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(maintenance, "_LOOSE_MANY", 1)
    store = Store.open(repo, OS)
    fill(store, 5)
    before = git(repo, "for-each-ref")
    assert store.maintain().tags_packed == 5
    assert git(repo, "for-each-ref") == before


async def test_the_awaited_verb_and_the_function_do_the_same(repo: Path, tmp_path: Path) -> None:
    async with open_store(repo, OS) as store:
        for number in range(4):
            await store.record_run(old_run(number))
        assert (await store.maintain()).packs_merged == 3
    assert await scp_git.maintain(repo) == Maintenance()
    with pytest.raises(NotARepository):
        await scp_git.maintain(tmp_path)


def test_the_command_says_what_it_did(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    store = Store.open(repo, OS)
    fill(store, 3)
    store.archive_runs(older_than_days=1, drop_tags=True)
    assert out(repo, "maintain", "--tags") == "packs merged 4, tags packed 0, tags made 3\n"
    assert out(repo, "maintain") == "packs merged 0, tags packed 0, tags made 0\n"
