"""Disks that fail, fill up or are read-only: a clear error, an intact repository, and the next call works."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import Slot, git, new_repository, problems
from tests.faults.tracing import WRITER, Outcome, Point, Server, Steps, mutating_points, why_no_strace

pytestmark = [pytest.mark.referee]

ENOUGH = 30
PAGE = 4096
FAIL_THEN_GO_ON: Steps = [["record", "new"], ["pause", None], ["record", "after"], ["list", 100]]
KNOWN = ["run-1", "run-2"]
RECORD_KNOWN = [["record", run_id] for run_id in KNOWN]
SCENES: dict[str, list[list[Any]]] = {"record": RECORD_KNOWN, "first write": []}
ERRORS = {
    "openat": ("EMFILE", "EROFS"),
    "mkdir": ("ENOSPC", "EROFS"),
    "write": ("ENOSPC", "EIO"),
    "pwrite64": ("ENOSPC", "EIO"),
    "fsync": ("EIO", "ENOSPC"),
    "link": ("EIO", "EPERM"),
    "linkat": ("EIO", "EPERM"),
    "rename": ("EIO", "EROFS"),
    "unlink": ("EIO", "EROFS"),
    "flock": ("ENOLCK",),
}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def prepare(root: Path, server: Server, steps: list[list[Any]]) -> Path:
    new_repository(root)
    outcome = server.run(root, steps)
    assert outcome.acked == [run_id for _, run_id in steps], outcome
    return root


def check(root: Path, outcome: Outcome, *, acked: list[str]) -> list[str]:
    """What is wrong after a job that recorded ``new`` under a fault and ``after`` without one."""
    codes = [error.split(" ")[0] for error in outcome.errors]
    found = list(outcome.bugs)
    if "after" not in outcome.acked or outcome.status != 0:
        return [*found, f"the next write failed: {outcome.lines}, exit {outcome.status}"]
    if codes != ([] if "new" in outcome.acked else ["storage-failed"]):
        found.append(f"not a clear error: {outcome.lines}")
    if outcome.took_s > 10:
        found.append(f"took {outcome.took_s:.1f} s")
    return found + problems(root, acked=[*acked, *outcome.acked], maybe=["new"], listed=outcome.listed)


# ---- injected


def fail_at(
    point: Point, error: str, persistent: bool, slot: Slot, server: Server, acked: list[str]
) -> list[str]:
    root = slot.restore()
    strace = point.inject(f"error={error}", persistent=persistent)
    outcome = server.run(root, FAIL_THEN_GO_ON, strace=strace, only=point.only, timeout_s=30)
    return check(root, outcome, acked=acked)


def sweep(name: str, folder: Path, server: Server, every: int) -> None:
    if why_no_strace():
        pytest.skip(str(why_no_strace()))
    slot = Slot(folder / "repo")
    prepare(slot.root, server, SCENES[name])
    slot.save()
    points = mutating_points(server, slot.root, [["record", "new"]], folder / "trace")
    assert len(points) > 20, "the worker's calls were not seen"
    faults = [
        (point, error, persistent)
        for point in points
        for error in ERRORS.get(point.name, ("EIO",))
        for persistent in (False, True)
    ]
    wrong: list[str] = []
    acked = [run_id for _, run_id in SCENES[name]]
    for point, error, persistent in faults[::every]:
        at = f"{point.only} {point.name} #{point.when}{'+' if persistent else ''} {error} ({point.shown})"
        wrong += [f"{at}: {line}" for line in fail_at(point, error, persistent, slot, server, acked)]
        if len(wrong) >= ENOUGH:
            break
    assert not wrong, f"problems with {len(faults[::every])} of {len(faults)} faults:\n" + "\n".join(wrong)


@pytest.mark.system("strace")
@pytest.mark.parametrize("name", SCENES)
def test_one_call_fails_once_or_from_then_on(name: str, tmp_path: Path, server: Server) -> None:
    sweep(name, tmp_path, server, every=7)


@pytest.mark.full
@pytest.mark.system("strace")
@pytest.mark.parametrize("name", SCENES)
def test_any_call_fails_once_or_from_then_on(name: str, tmp_path: Path, server: Server) -> None:
    sweep(name, tmp_path, server, every=1)


@pytest.mark.system("strace")
@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EROFS"])
def test_every_write_fails_until_the_disk_is_back(error: str, tmp_path: Path, server: Server) -> None:
    if why_no_strace():
        pytest.skip(str(why_no_strace()))
    root = prepare(tmp_path / "repo", server, RECORD_KNOWN)
    calls = "write,pwrite64,fsync,ftruncate,mkdir,link,linkat,rename,unlink"
    strace = ["-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when=1+"]
    outcome = server.run(root, FAIL_THEN_GO_ON, strace=strace, only=WRITER)
    assert "new" not in outcome.acked
    assert not check(root, outcome, acked=KNOWN)


# ---- real: full, read-only


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """``mount(*options)`` on a new folder; skips where that is not allowed."""
    places: list[Path] = []

    def mount(*options: str) -> Path:
        place = tmp_path / f"mounted{len(places)}"
        place.mkdir()
        done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"needs permission to mount: {done.stderr.strip()}")
        places.append(place)
        return place

    yield mount
    for place in reversed(places):
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill_space(folder: Path, spare: int) -> list[Path]:
    """Leave ``spare`` pages free; returns the files to remove."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"\1" * PAGE):
                pass
        except OSError:
            file.truncate(max(0, file.tell() // PAGE - spare) * PAGE)
    return [filler]


def fill_inodes(folder: Path, spare: int) -> list[Path]:
    """Leave ``spare`` inodes free; returns the files to remove."""
    made: list[Path] = []
    try:
        while True:
            path = folder / f"filler{len(made)}"
            path.touch()
            made.append(path)
    except OSError:
        for _ in range(min(spare, len(made))):
            made.pop().unlink()
    return made


@pytest.mark.parametrize(
    ("options", "fill", "spares"),
    [
        ("size=2m", fill_space, (0, 1, 2, 3, 5, 8, 13, 21)),
        ("size=8m,nr_inodes=250", fill_inodes, (0, 1, 2, 3, 5, 8)),
    ],
    ids=["space", "inodes"],
)
def test_a_full_disk(
    options: str,
    fill: Callable[[Path, int], list[Path]],
    spares: tuple[int, ...],
    mount: Callable[..., Path],
    server: Server,
) -> None:
    disk = mount("-t", "tmpfs", "-o", options, "tmpfs")
    root = prepare(disk / "repo", server, RECORD_KNOWN)
    acked, failed = list(KNOWN), 0
    for spare in spares:
        filler = fill(disk, spare)
        outcome = server.run(root, [["record", f"full-{spare}"], ["list", 100]])
        assert not outcome.bugs
        assert all(error.startswith("storage-failed ") for error in outcome.errors), outcome.errors
        assert set(outcome.listed) >= {*acked, *outcome.acked}, "reads do not work on a full disk"
        failed += len(outcome.errors)
        for path in filler:
            path.unlink()
        after = server.run(root, [["record", f"free-{spare}"], ["list", 100]])
        assert after.acked == [f"free-{spare}"], after
        acked += outcome.acked + after.acked
        maybe = [f"full-{spare}" for spare in spares]
        assert not problems(root, acked=acked, maybe=maybe, listed=after.listed)
    assert failed, "the disk was never full"


def test_a_disk_that_fills_up_during_an_import(mount: Callable[..., Path], server: Server) -> None:
    disk = mount("-t", "tmpfs", "-o", "size=4m", "tmpfs")
    root = prepare(disk / "repo", server, RECORD_KNOWN)
    filler = fill_space(disk, spare=60)
    wanted = [f"m{number}" for number in range(300)]
    outcome = server.run(root, [["import", ["m", 300]], ["list", 1000]], small_batches=20)
    assert not outcome.bugs and not outcome.acked
    assert [error.split(" ")[0] for error in outcome.errors] == ["storage-failed"], outcome
    there = set(outcome.listed) - set(KNOWN)
    assert 0 < len(there) < 300, "it did not fill up on the way"
    for path in filler:
        path.unlink()
    after = server.run(root, [["import", ["m", 300]], ["list", 1000]], small_batches=20)
    assert after.acked == wanted
    assert not problems(root, acked=[*KNOWN, *wanted], listed=after.listed)


def test_a_read_only_disk(tmp_path: Path, mount: Callable[..., Path], server: Server) -> None:
    origin = tmp_path / "origin"
    new_repository(origin / "repo")
    place = mount("--bind", str(origin))
    root = place / "repo"
    assert server.run(root, RECORD_KNOWN).acked == KNOWN
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
    outcome = server.run(root, [["list", 100], ["record", "new"], ["delete", "run-1"], ["ensure", None]])
    assert set(outcome.listed) == set(KNOWN)
    assert not outcome.bugs
    # Everything is in place already, so ensure_ledger may say so.
    assert [error.split(" ")[0] for error in outcome.errors][:2] == ["storage-failed"] * 2, outcome
    public = server.run(root, [["public", [str(root), "new"]]])
    assert public.lines == ["RETURNED ''"]
    subprocess.run(["mount", "-o", "remount,bind,rw", str(place)], check=True)
    after = server.run(root, [["record", "after"], ["list", 100]])
    assert not problems(root, acked=[*KNOWN, "after"], listed=after.listed)


def test_a_read_only_disk_without_a_ledger(
    tmp_path: Path, mount: Callable[..., Path], server: Server
) -> None:
    origin = tmp_path / "origin"
    new_repository(origin / "repo")
    place = mount("--bind", str(origin))
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
    outcome = server.run(place / "repo", [["list", 100], ["record", "new"]])
    assert outcome.listed == {}
    assert [error.split(" ")[0] for error in outcome.errors] == ["storage-failed"], outcome


# ---- .gitignore


def _as_folder(path: Path) -> None:
    path.mkdir()


def _immutable(path: Path) -> None:
    path.write_text("*.log\n")
    done = subprocess.run(["chattr", "+i", str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"needs chattr +i: {done.stderr.strip()}")


@pytest.mark.parametrize("spoil", [_as_folder, _immutable])
def test_gitignore_that_cannot_be_written(
    spoil: Callable[[Path], None], tmp_path: Path, server: Server
) -> None:
    root = new_repository(tmp_path / "repo")
    path = root / ".gitignore"
    spoil(path)
    try:
        outcome = server.run(root, [["ensure", None], ["record", "new"], ["list", 100]])
        assert outcome.lines[:2] == ["ENSURED", "ACK new"]
        assert not problems(root, acked=["new"], listed=outcome.listed)
        assert git(root, "check-ignore", "-v", ".scp-ledger/").startswith(b".git/info/exclude:")
        assert path.is_dir() or path.read_text() == "*.log\n"
    finally:
        subprocess.run(["chattr", "-i", str(path)], capture_output=True)


# ---- limits of the process


@pytest.mark.parametrize("kind", ["NOFILE", "FSIZE"])
@pytest.mark.parametrize("name", SCENES)
def test_limits_of_the_process(kind: str, name: str, tmp_path: Path, server: Server) -> None:
    sizes = range(3, 24) if kind == "NOFILE" else (0, 1, 40, 100, 400, 1000, 4000, 100_000)
    slot = Slot(tmp_path / "repo")
    prepare(slot.root, server, SCENES[name])
    slot.save()
    acked = [run_id for _, run_id in SCENES[name]]
    outcomes = []
    for size in sizes:
        root = slot.restore()
        limited: Steps = [["limit", [kind, size]], ["record", "new"], ["limit", [kind, -1]]]
        outcome = server.run(root, [*limited, ["record", "after"], ["list", 100]], timeout_s=30)
        outcomes.append("new" in outcome.acked)
        assert not check(root, outcome, acked=acked), f"limit {size}"
    assert not outcomes[0], "the limit did nothing"
    assert outcomes[-1], "the largest limit should do"
