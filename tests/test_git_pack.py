"""Packs: what we write is what stock git would, and merging them loses no object and disturbs nobody."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_git import Run, Settings, StorageFailed, Store
from scp_git.git.deltas import make_delta
from scp_git.git.entries import PackEntry, encode_entry, entry_header
from scp_git.git.handle import Odb, Repository
from scp_git.git.maintenance import MERGE_FROM, merge_packs
from scp_git.git.objects import (
    BLOB,
    COMMIT,
    TAG,
    Kind,
    ObjectStore,
    encode_commit,
    encode_tag,
    hash_object,
)
from scp_git.git.pack import (
    OUR_PREFIX,
    Pack,
    PackIndex,
    remove_stale,
    write_pack,
)
from scp_git.git.tree import TreeEditor

Git = Callable[..., str]
MakeRepo = Callable[..., Path]
Objects = dict[str, tuple[Kind, bytes]]
ADA = "Ada Tester <ada@example.org> 1700000000 +0000"


def entries_of(objects: Objects) -> list[PackEntry]:
    return [encode_entry(oid, kind, data) for oid, (kind, data) in objects.items()]


def blobs(*contents: bytes) -> Objects:
    return {hash_object(BLOB, data): (BLOB, data) for data in contents}


def everything(root: Path, git: Git) -> Objects:
    """Every object of the repository by way of stock git: id, kind and bytes."""
    rows = git(root, "cat-file", "--batch-check", "--batch-all-objects").splitlines()
    oids = sorted({row.split(" ")[0] for row in rows})
    out = subprocess.run(
        ["git", "-C", str(root), "cat-file", "--batch"],
        input="\n".join(oids).encode() + b"\n",
        capture_output=True,
        check=True,
    ).stdout
    found: Objects = {}
    at = 0
    for oid in oids:
        end = out.index(b"\n", at)
        _, kind, size = out[at:end].decode().split(" ")
        data = out[end + 1 : end + 1 + int(size)]
        assert hash_object(kind, data) == oid  # type: ignore[arg-type]
        found[oid] = (kind, data)  # type: ignore[assignment]
        at = end + int(size) + 2
    return found


def packs(root: Path, prefix: str = OUR_PREFIX) -> list[Path]:
    folder = (root / ".git" if (root / ".git").is_dir() else root) / "objects" / "pack"
    return sorted(path for path in folder.glob("*.pack") if path.name.startswith(prefix))


# ---------------------------------------------------------------- writing


@pytest.mark.referee
def test_a_pack_of_every_kind_and_size_is_what_git_would_write(
    make_repo: MakeRepo, git: Git, tmp_path: Path
) -> None:
    root = make_repo()
    store, chance = ObjectStore(Repository.open(root).open_odb()), random.Random(1)
    editor = TreeEditor(store)
    for size in (0, 1, 15, 16, 17, 127, 128, 2047, 2048, 4096, 65_536, 300_000):
        editor.put(f"plain/{size}", b"x" * size)
        editor.put(f"noise/{size}", chance.randbytes(size))
    for n in range(2000):  # a tree of more than 4096 bytes is stored as it is
        editor.put(f"wide/{n:04}", b"%d\n" % (n % 7))
    editor.put("large", chance.randbytes(5_000_000))
    for n in range(12_000):  # a tree of more than half a megabyte is compressed
        editor.put(f"wider/{'name' * 4}{n:06}", b"same\n")
    commit = store.add(COMMIT, encode_commit(editor.write(), [], ADA, "all sizes\n"))
    tag = store.add(TAG, encode_tag("sizes", commit, ADA, b"{}\n"))
    pack = write_pack(root / ".git", entries_of(store.added), sync=True)
    git(root, "update-ref", "refs/tags/sizes", tag)
    pack.release()
    assert pack.name.startswith(OUR_PREFIX) and len(pack.name) == len("pack-") + 40
    idx, body = pack.stem.with_suffix(".idx"), pack.stem.with_suffix(".pack")
    listed = git(root, "verify-pack", "-v", str(idx)).splitlines()
    assert {line[:40] for line in listed if line[40:41] == " "} == set(store.added)
    assert idx.stat().st_mode & 0o777 == body.stat().st_mode & 0o777 == 0o444
    assert len(store.added) > 30
    copy = Path(shutil.copy(body, tmp_path / "copy.pack"))
    git(root, "index-pack", "-o", str(tmp_path / "theirs.idx"), str(copy))
    assert (tmp_path / "theirs.idx").read_bytes() == idx.read_bytes()
    assert {oid: everything(root, git)[oid] for oid in store.added} == store.added
    assert "5000000" in git(root, "cat-file", "-s", "sizes:large")


def test_objects_that_are_read_when_they_are_written_never_lie_in_memory_together(repo: Path) -> None:
    store = ObjectStore(Repository.open(repo).open_odb())
    editor, wanted = TreeEditor(store), {}
    for n in range(12):
        wanted[f"stream/{n}"] = hash_object("blob", random_part(n, seed=1))
        editor.put_later(f"stream/{n}", wanted[f"stream/{n}"], partial(random_part, n, seed=1))
    assert editor.read("stream/3") == random_part(3, seed=1)
    root = editor.write()
    tracemalloc.start()
    try:
        entries = store.entries()
        write_pack(repo / ".git", entries, count=store.count(), sync=False).release()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24_000_000, "the stream has 48 MB"
    stored = TreeEditor(ObjectStore(Odb(repo / ".git")), root)
    assert {path: stored.blob(path) for path in wanted} == wanted
    assert stored.read("stream/3") == random_part(3, seed=1)


def random_part(n: int, *, seed: int) -> bytes:
    return random.Random(seed + n).randbytes(4_000_000)


def test_what_changed_before_it_was_written_is_refused_and_nothing_is_left(repo: Path) -> None:
    store = ObjectStore(Repository.open(repo).open_odb())
    store.add_later(hash_object("blob", b"before"), "blob", lambda: b"after")
    with pytest.raises(StorageFailed, match="changed"):
        write_pack(repo / ".git", store.entries(), count=1, sync=False)
    assert list((repo / ".git/objects/pack").iterdir()) == []


@pytest.mark.referee
def test_a_pack_of_many_objects(repo: Path, git: Git) -> None:
    objects = blobs(*(b"object %d\n" % n for n in range(30_000)))
    pack = write_pack(repo / ".git", entries_of(objects), sync=False)
    pack.release()
    counts = dict(line.split(": ") for line in git(repo, "count-objects", "-v").splitlines())
    assert counts["in-pack"] == "30000" and counts["garbage"] == "0"
    git(repo, "verify-pack", str(pack.stem.with_suffix(".idx")))
    odb = Odb(repo / ".git")
    assert all(odb.read(oid) == objects[oid] for oid in list(objects)[::1000])


def test_an_index_with_offsets_beyond_two_gigabytes() -> None:
    """As `git help format-pack`_ has it: 31 bits in place, else the position in a table of 64 bits."""
    offsets = [12, 2**31 - 1, 2**31, 2**31 + 5, 2**40, 77]
    rows = sorted((hashlib.sha1(b"%d" % n).hexdigest(), n * 1001, o) for n, o in enumerate(offsets))
    index = PackIndex()
    for row in reversed(rows):
        index.add(*row)
    data = index.encode(b"t" * 20)
    count = len(rows)
    assert data[:8] == b"\xfftOc\0\0\0\2"
    fan_out = struct.unpack_from(">256I", data, 8)
    assert all(fan_out[b] == sum(int(oid[:2], 16) <= b for oid, _, _ in rows) for b in range(256))
    at = 8 + 1024
    assert [data[at + 20 * n : at + 20 * n + 20].hex() for n in range(count)] == [oid for oid, _, _ in rows]
    at += 20 * count
    assert struct.unpack_from(f">{count}I", data, at) == tuple(crc for _, crc, _ in rows)
    short = struct.unpack_from(f">{count}I", data, at + 4 * count)
    table = at + 8 * count
    read = [o if o < 2**31 else struct.unpack_from(">Q", data, table + 8 * (o - 2**31))[0] for o in short]
    assert read == [offset for _, _, offset in rows]
    assert data[-40:-20] == b"t" * 20
    assert data[-20:] == hashlib.sha1(data[:-20]).digest()
    assert len(data) == table + 3 * 8 + 40


def test_a_pack_is_kept_until_it_is_released(repo: Path) -> None:
    pack = write_pack(repo / ".git", entries_of(blobs(b"one")), sync=False)
    keep = pack.stem.with_suffix(".keep")
    assert keep.read_text() == "scp-git\n"
    pack.release()
    assert not keep.exists() and pack.stem.with_suffix(".idx").exists()
    pack.discard()
    assert not packs(repo)


DIE = """
import os, sys
from pathlib import Path
from scp_git.git.objects import hash_object
from scp_git.git.entries import encode_entry
from scp_git.git.pack import write_pack

left, real = int(sys.argv[2]), os.rename
def rename(*args, **kwargs):
    global left
    if not left:
        os._exit(7)
    left -= 1
    real(*args, **kwargs)
os.rename = rename
write_pack(Path(sys.argv[1]), [encode_entry(hash_object("blob", b"one"), "blob", b"one")], sync=False)
"""


@pytest.mark.parametrize("moves", [0, 1])
def test_what_a_dead_writer_left_is_removed_and_nothing_else(repo: Path, moves: int) -> None:
    folder = repo / ".git" / "objects" / "pack"
    whole = write_pack(repo / ".git", entries_of(blobs(b"two")), sync=False)
    done = subprocess.run([sys.executable, "-c", DIE, str(repo / ".git"), str(moves)], capture_output=True)
    assert done.returncode == 7, done.stderr.decode()
    others = [
        folder / f"pack-{'ab' * 20}.keep",
        folder / f"pack-{'cd' * 20}.pack",
        folder / "tmp_pack_Xyz123",
    ]
    for path in others:
        path.write_bytes(b"theirs")
    remove_stale(repo / ".git")
    assert all(path.read_bytes() == b"theirs" for path in others)
    for path in others:
        path.unlink()
    assert sorted(os.listdir(folder)) == [f"{whole.name}.idx", f"{whole.name}.pack"]


# ---------------------------------------------------------------- deltas


def read_size(delta: bytes, at: int) -> tuple[int, int]:
    size = shift = 0
    while True:
        byte = delta[at]
        size |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return size, at


def apply_delta(base: bytes, delta: bytes) -> bytes:
    """What a git delta makes of its base, after the description in git's ``pack-format``."""
    base_size, at = read_size(delta, 0)
    target_size, at = read_size(delta, at)
    assert base_size == len(base)
    out = bytearray()
    while at < len(delta):
        op = delta[at]
        at += 1
        if op & 0x80:
            fields = []
            for bit in range(7):
                fields.append(delta[at] if op & (1 << bit) else 0)
                at += bool(op & (1 << bit))
            offset = int.from_bytes(bytes(fields[:4]), "little")
            size = int.from_bytes(bytes(fields[4:]), "little") or 0x10000
            assert offset + size <= len(base)
            out += base[offset : offset + size]
        else:
            assert op, "the operation 0 is reserved"
            out += delta[at : at + op]
            at += op
    assert len(out) == target_size
    return bytes(out)


PIECES = st.lists(st.sampled_from([b"a", b"ab", b"\0", b"x" * 100, b"y" * 300, b"z" * 70_000]), max_size=6)


@settings(max_examples=150)
@given(PIECES, PIECES, PIECES, PIECES)
def test_a_delta_gives_the_target(
    head: list[bytes], one: list[bytes], two: list[bytes], tail: list[bytes]
) -> None:
    base, target = b"".join([*head, *one, *tail]), b"".join([*head, *two, *tail])
    delta = make_delta(base, target)
    assert apply_delta(base, delta) == target
    assert len(delta) <= sum(map(len, two)) * 1.01 + 60 + len(base) / 0x10000 * 14


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_delta_of_unrelated_bytes(base: bytes, target: bytes) -> None:
    assert apply_delta(base, make_delta(base, target)) == target


@pytest.mark.referee
def test_stock_git_applies_our_deltas(repo: Path, git: Git) -> None:
    chance = random.Random(7)
    objects: Objects = {}
    entries: dict[str, PackEntry] = {}
    for n in range(60):
        base = chance.randbytes(chance.choice([10, 5000, 70_000, 200_000]))
        cut, more = chance.randrange(len(base)), chance.randbytes(chance.choice([0, 1, 126, 127, 128, 500]))
        target = base[:cut] + more + base[chance.randrange(cut, len(base)) :] + b"%d" % n
        old, new = (hash_object(BLOB, data) for data in (base, target))
        objects |= {old: (BLOB, base), new: (BLOB, target)}
        delta = make_delta(base, target)
        entries[old] = encode_entry(old, BLOB, base)
        data = entry_header(7, len(delta)) + bytes.fromhex(old) + zlib.compress(delta)
        entries[new] = PackEntry(new, data)
    pack = write_pack(repo / ".git", list(entries.values()), sync=False)
    pack.release()
    listed = git(repo, "verify-pack", "-v", str(pack.stem.with_suffix(".idx")))
    assert "chain length = 1: 60 objects" in listed
    found = everything(repo, git)
    assert {oid: found[oid] for oid in objects} == objects


# ---------------------------------------------------------------- merging packs


def small_packs(
    root: Path, count: int, *, start: int = 0, release: bool = True
) -> tuple[list[Pack], Objects]:
    """So many packs, each with a blob and the next version of one wide tree, as transactions leave them."""
    (root / ".git" / "scp").mkdir(exist_ok=True)
    editor = TreeEditor(ObjectStore(Repository.open(root).open_odb()))
    for n in range(300):
        editor.put(f"{n:040}", b"first\n")
    editor.write()
    made, objects = [], dict(editor.store.added)
    for n in range(start, start + count):
        editor.put(f"{n:040}", b"version %d\n" % n)
        editor.write()
        added = {oid: found for oid, found in editor.store.added.items() if oid not in objects or n == start}
        pack = write_pack(root / ".git", entries_of(added), sync=False)
        objects |= added
        made.append(pack)
        if release:
            pack.release()
    return made, objects


@pytest.mark.referee
def test_merging_keeps_every_object_and_stores_wide_trees_as_deltas(repo: Path, git: Git) -> None:
    _, objects = small_packs(repo, 60)
    before, size = everything(repo, git), sum(path.stat().st_size for path in packs(repo))
    assert set(objects) <= set(before)
    assert merge_packs(Repository.open(repo), sync=True)
    assert everything(repo, git) == before
    (pack,) = packs(repo)
    assert pack.stat().st_size < size / 20
    listed = git(repo, "verify-pack", "-v", str(pack)).splitlines()
    trees = [line for line in listed if line[40:46] == " tree "]
    deltas = [line for line in trees if len(line.split()) > 5]
    assert len(trees) == 61 and len(deltas) >= 50
    odb = Odb(repo / ".git")
    assert all(odb.read(oid) == found for oid, found in objects.items()), "libgit2 reads them as well"
    assert not list(pack.parent.glob("*.keep")) and not list(pack.parent.glob("tmp_*"))
    assert not merge_packs(Repository.open(repo), sync=False), "one pack needs no merging"


@pytest.mark.referee
def test_merging_stores_the_versions_of_a_growing_file_as_deltas(repo: Path, git: Git) -> None:
    (repo / ".git" / "scp").mkdir()
    versions: dict[int, bytes] = {}
    for number in range(3 * MERGE_FROM):
        which = number % 3
        line = b"".join(hashlib.sha256(b"%d %d" % (number, n)).digest() for n in range(40))
        versions[which] = versions.get(which, b"file %d\n" % which) + line
        write_pack(repo / ".git", entries_of(blobs(versions[which])), sync=False).release()
    before, size = everything(repo, git), sum(path.stat().st_size for path in packs(repo))
    assert merge_packs(Repository.open(repo), sync=False)
    assert everything(repo, git) == before
    (pack,) = packs(repo)
    listed = git(repo, "verify-pack", "-v", str(pack)).splitlines()
    full = [line for line in listed if line[40:46] == " blob " and len(line.split()) == 5]
    assert len(full) <= 3 * 2 and pack.stat().st_size < size / 2


@pytest.mark.referee
def test_merging_again_and_again(repo: Path, git: Git) -> None:
    repository, copied, most = Repository.open(repo), 0, 0
    for turn in range(20):
        small_packs(repo, MERGE_FROM, start=turn * MERGE_FROM % 280)
        before = {path.name for path in packs(repo)}
        merge_packs(repository, sync=False)
        copied += sum(path.stat().st_size for path in packs(repo) if path.name not in before)
        most = max(most, len(packs(repo)))
    found = everything(repo, git)
    git(repo, "fsck", "--strict")
    assert most <= 20 - MERGE_FROM + 3, "between two merges at most twenty packs are there"
    assert copied < 8 * sum(path.stat().st_size for path in packs(repo)), "a logarithmic number of copies"
    assert len(found) > 20 * MERGE_FROM


def test_few_packs_are_left_alone(repo: Path) -> None:
    made, _ = small_packs(repo, MERGE_FROM - 1)
    assert not merge_packs(Repository.open(repo), sync=False)
    assert len(packs(repo)) == len(made)


@pytest.mark.referee
def test_packs_that_are_kept_or_foreign_are_left_alone(repo: Path, git: Git) -> None:
    kept, _ = small_packs(repo, 5, release=False)
    git(repo, "repack", "-d", "-q")
    small_packs(repo, 30, start=5)
    foreign = packs(repo, "pack-")
    foreign = [path for path in foreign if not path.name.startswith(OUR_PREFIX)]
    assert foreign
    untouched = [*foreign, *(pack.stem.with_suffix(".pack") for pack in kept)]
    untouched += [path.with_suffix(".idx") for path in untouched]
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in untouched}
    objects = everything(repo, git)
    assert merge_packs(Repository.open(repo), sync=False)
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in untouched} == before
    assert len(packs(repo)) == len(kept) + 1
    assert everything(repo, git) == objects
    for pack in kept:
        assert pack.stem.with_suffix(".keep").exists()
        pack.release()


@pytest.mark.referee
@pytest.mark.parametrize("missing", [".idx", ".pack"])
def test_half_a_pack_is_left_alone(repo: Path, git: Git, missing: str) -> None:
    made, _ = small_packs(repo, 25)
    half = made[3].stem
    half.with_suffix(missing).rename(repo / "aside")
    assert merge_packs(Repository.open(repo), sync=False)
    (repo / "aside").rename(half.with_suffix(missing))
    assert half.with_suffix(".pack").exists() and half.with_suffix(".idx").exists()
    git(repo, "verify-pack", str(half.with_suffix(".idx")))


MERGE = """
import sys
from scp_git.git.handle import Repository
from scp_git.git.maintenance import merge_packs

repository = Repository.open(sys.argv[1])
print(sum(merge_packs(repository, sync=False) for _ in range(200)))
"""


@pytest.mark.referee
def test_two_processes_merging_at_once(repo: Path, git: Git) -> None:
    small_packs(repo, 40)
    workers = [
        subprocess.Popen([sys.executable, "-c", MERGE, str(repo)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    expected: Objects = {}
    for turn in range(8):
        expected |= small_packs(repo, 20, start=(turn * 20) % 200)[1]
    answers = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], answers
    merge_packs(Repository.open(repo), sync=False)
    found = everything(repo, git)
    assert {oid: found.get(oid) for oid in expected} == expected


# ---------------------------------------------------------------- beside the writers


def settled(root: Path, at_most: int) -> int:
    """How many packs of ours there are once the merging beside the writers had its time."""
    until = time.monotonic() + 15
    while len(packs(root)) > at_most and time.monotonic() < until:
        time.sleep(0.05)
    return len(packs(root))


def disk_usage(folder: Path) -> int:
    """Bytes on disk, as ``du`` counts them."""
    return sum(path.lstat().st_blocks * 512 for path in [folder, *folder.rglob("*")])


def sequential_runs(root: Path, git: Git, count: int) -> None:
    runs = [Run(run_id=f"run-{n:05}", type="apply", summary=f"number {n}") for n in range(count)]
    most = 0
    with Store.open(root, Settings(durability="os")) as store:
        for run in runs:
            store.record_run(run, [{"type": "step", "target": run.run_id}])
            most = max(most, len(packs(root)))
        listed = store.list_runs(n=count + 1)
    assert settled(root, 20) <= 20
    assert most < 50, "git would start its own gc"
    assert {run.run_id for run in listed} == {run.run_id for run in runs}
    check_readable(root, git)
    assert int(git(root, "rev-list", "--count", "scp-ledger")) >= count
    tags = git(root, "tag", "-l", "scp/run/*").split()
    assert len(tags) == count
    listings = [git(root, "verify-pack", "-v", str(path)) for path in packs(root)]
    chains = sum(listing.count("\nchain length = ") for listing in listings)
    assert chains, "no tree is stored as a delta"


def check_readable(root: Path, git: Git) -> None:
    """Every object that the refs lead to can be read in full."""
    oids = [line.split(" ")[0] for line in git(root, "rev-list", "--objects", "--all").splitlines()]
    lines = git(root, "cat-file", "--batch-check", input="\n".join(oids) + "\n").splitlines()
    assert len(lines) == len(oids) and not [line for line in lines if line.endswith("missing")]
    git(root, "fsck", "--strict", "--full")


@pytest.mark.referee
def test_300_sequential_runs_leave_few_packs(repo: Path, git: Git) -> None:
    sequential_runs(repo, git, 300)
    assert disk_usage(repo / ".git") < 5_000_000


@pytest.mark.full
@pytest.mark.referee
def test_2000_sequential_runs_leave_few_packs_and_15_megabytes(repo: Path, git: Git) -> None:
    sequential_runs(repo, git, 2000)
    assert disk_usage(repo / ".git") < 15_000_000


def beside_each_other(root: Path, git: Git, seconds: float) -> None:
    """A writer, two readers and a merging loop at once, on handles that stay open."""
    stop, errors, acked = threading.Event(), [], []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                while not stop.is_set():
                    work()
            except BaseException as exc:
                errors.append(exc)
                stop.set()

        return run

    writer, reader = (Store.open(root, Settings(durability="os", idle_s=s)) for s in (1, 2))
    repository, merges = Repository.open(root), []

    def write() -> None:
        acked.append(writer.record_run(Run(run_id=f"r{len(acked):05}", type="t"), [{"type": "x"}]))

    def read() -> None:
        known = list(acked)
        listed = {run.run_id for run in reader.list_runs(n=100_000)}
        assert set(known) <= listed
        if known:
            assert reader.get_run_events(known[len(known) // 2])[0]["type"] == "x"

    def merge() -> None:
        merges.append(merge_packs(repository, sync=False))
        time.sleep(0.01)

    threads = [threading.Thread(target=guarded(work)) for work in (write, read, read, merge)]
    for thread in threads:
        thread.start()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors, errors
    writer.flush()
    assert any(merges) and len(acked) > 10
    check_readable(root, git)
    assert {run.run_id for run in Store.open(root).list_runs(n=100_000)} == set(acked)


@pytest.mark.referee
def test_merging_beside_a_writer_and_readers(repo: Path, git: Git) -> None:
    beside_each_other(repo, git, 4)


@pytest.mark.full
@pytest.mark.referee
def test_merging_beside_a_writer_and_readers_for_a_minute(repo: Path, git: Git) -> None:
    beside_each_other(repo, git, 60)


@pytest.mark.referee
def test_gc_and_merging_take_nothing_from_each_other(repo: Path, git: Git) -> None:
    store = Store.open(repo, Settings(durability="os"))
    for n in range(90):
        store.record_run(Run(run_id=f"r{n:03}", type="t"))
        if n % 30 == 29:
            git(repo, "gc", "--prune=now", "-q")
    store.flush()
    check_readable(repo, git)
    assert len(store.list_runs(n=1000)) == 90


def test_a_merge_that_fails_leaves_everything(repo: Path) -> None:
    _, objects = small_packs(repo, 20)
    broken = packs(repo)[0]
    idx = broken.with_suffix(".idx")
    content = idx.read_bytes()
    idx.chmod(0o644)
    idx.write_bytes(content[:100])
    before = os.listdir(broken.parent)
    with pytest.raises((OSError, ValueError, struct.error, IndexError)):
        merge_packs(Repository.open(repo), sync=False)
    assert sorted(os.listdir(broken.parent)) == sorted(before)
    idx.write_bytes(content)
    odb = Odb(repo / ".git")
    assert all(odb.read(oid) for oid in objects)


def test_a_merged_pack_that_equals_one_of_its_sources_is_not_lost(repo: Path, tmp_path: Path) -> None:
    """Its name is made from its content, so merging may give a pack that is there already."""

    def copies(source: Path, count: int) -> None:
        for n in range(count):
            copy = source.with_name(f"{OUR_PREFIX}{n:032x}.pack")
            shutil.copy(source, copy)
            shutil.copy(source.with_suffix(".idx"), copy.with_suffix(".idx"))

    repository = Repository.open(repo)
    _, objects = small_packs(repo, 1)
    (first,) = packs(repo)
    sources, merged = {first.name}, ""
    for _ in range(4):
        saved = {path.name: path.read_bytes() for path in first.parent.glob(f"{first.stem}.*")}
        copies(first, MERGE_FROM)
        assert merge_packs(repository, sync=False)
        (first,) = packs(repo)
        merged = first.name
        if merged in sources:
            break
        sources.add(merged)
        for name, content in saved.items():
            (first.parent / name).write_bytes(content)
            os.utime(first.parent / name, (1, 1))
    assert merged in sources, "this never merged into a pack that was there"
    with repository.odb() as odb:
        assert {oid: odb.read(oid) for oid in objects} == objects


def test_only_one_merges_at_a_time(repo: Path) -> None:
    small_packs(repo, MERGE_FROM)
    before = packs(repo)
    with (repo / ".git" / "scp" / "maintenance").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not merge_packs(Repository.open(repo), sync=False)
        assert packs(repo) == before
    assert merge_packs(Repository.open(repo), sync=False)
