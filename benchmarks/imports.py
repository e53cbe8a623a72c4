"""Importing runs, beside ``git fast-import`` of the same objects and tags.

git is given what the library made of the runs, as a stream that is ready before
the clock starts; the library is given the runs, to be checked, encoded, hashed and
deflated. git syncs nothing, the library syncs every batch.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter

import pygit2

from benchmarks.harness import Benchmark, Plan, Result, flush_journal, summarise
from benchmarks.peers import has_git
from benchmarks.repositories import Shelf, create, sample_run
from scp_git import Run, RunEvent, Settings, Store
from scp_git.ids import format_time

IMPORT = "import"
_GIT = "git_fast_import"
_PAST = datetime(2026, 1, 1, tzinfo=UTC)


def imports(plan: Plan) -> Iterator[Result]:
    """``plan.imported`` runs with three events each, into an empty ledger."""
    shelf = Shelf(plan.folder)
    root = create(shelf.place() / "repository")
    store = Store.open(root, Settings(durability="full"))
    store.ensure_ledger()
    runs = list(past_runs(plan.imported))
    gc.collect()
    gc.freeze()  # what the benchmark holds is not the library's to look through
    flush_journal(plan.folder)
    start = perf_counter()
    report = store.import_runs(runs)
    took = perf_counter() - start
    gc.unfreeze()
    assert report.added == plan.imported, report
    store.close()
    ours = _result("scp_git", plan.imported, took, "full")
    ours.extra["bytes_per_run"] = round(_size(root) / plan.imported)
    ours.extra["max_rss_mb"] = _weighed(create(shelf.place() / "repository"), plan.imported)
    if has_git():
        stream = shelf.place() / "stream"
        _write_stream(root, stream)
        other = create(shelf.place() / "repository")
        flush_journal(plan.folder)
        start = perf_counter()
        with stream.open("rb") as file:
            subprocess.run(["git", "-C", str(other), "fast-import", "--quiet"], stdin=file, check=True)
        git = _result(_GIT, plan.imported, perf_counter() - start, "none")
        git.extra["bytes_per_run"] = round(_size(other) / plan.imported)
        ours.ratios[_GIT] = round(ours.per_s / git.per_s, 2)
        yield git
    yield ours


def _weighed(root: Path, count: int) -> int:
    """Peak memory in MB of a process that imports runs as they are made, and holds none itself."""
    program = f"from benchmarks.imports import weigh; weigh({str(root)!r}, {count})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


def weigh(root: str, count: int) -> None:
    with Store.open(root, Settings(durability="os")) as store:
        store.import_runs(past_runs(count))
    # Not ru_maxrss, which in a child begins with what its parent holds.
    status = Path("/proc/self/status").read_text()
    print(int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024)


def past_runs(count: int) -> Iterator[tuple[Run, list[RunEvent]]]:
    """Runs as a log of the past gives them: one every 97 seconds, every time filled in."""
    for number in range(count):
        moment = _PAST + timedelta(seconds=97 * number)
        run, events = sample_run(number)
        fields = {
            "run_id": f"run_{moment:%Y-%m-%dT%H%M%S}_apply_{number % 10_000:04d}",
            "user": "Bench Mark",
            "started_at": moment,
            "ended_at": moment + timedelta(milliseconds=420),
            "duration_ms": 420,
        }
        for event in events:
            event.ts = format_time(moment)
        yield Run.model_validate(run.model_dump() | fields), events


def _result(peer: str, count: int, seconds: float, durability: str) -> Result:
    result = summarise(IMPORT, peer, 0, durability, [seconds / count], rate=count / seconds)
    result.n = count
    return result


def _size(root: Path) -> int:
    """What ``.git`` takes on disk, without what is local to the library."""
    git_dir, total = root / ".git", 0
    for folder, folders, names in os.walk(git_dir):
        if folder == str(git_dir):
            folders.remove("scp") if "scp" in folders else None
        total += sum(os.lstat(os.path.join(folder, name)).st_blocks * 512 for name in names)
    return total


def _write_stream(root: Path, target: Path) -> None:
    """What the ledger of ``root`` holds, as git fast-import reads it: blobs, two commits, annotated tags."""
    repository = pygit2.Repository(root)
    with target.open("wb") as stream:

        def data(content: bytes) -> None:
            stream.write(b"data %d\n%b\n" % (len(content), content))

        marks = 0
        for branch in ("scp-ledger-archive", "scp-ledger"):
            if branch not in repository.branches:  # so few runs that all of them are hot
                continue
            files: list[tuple[str, int]] = []
            tree = repository.branches[branch].peel(pygit2.Tree)
            for path, blob in _files(tree, ""):
                marks += 1
                stream.write(b"blob\nmark :%d\n" % marks)
                data(blob.data)
                files.append((path, marks))
            stream.write(b"commit refs/heads/%b\n" % branch.encode())
            stream.write(b"committer Bench Mark <bench@example.org> 1700000000 +0000\n")
            data(b"import")
            for path, mark in files:
                stream.write(b"M 100644 :%d %b\n" % (mark, path.encode()))
            stream.write(b"\n")
        stream.write(b"reset refs/heads/target\nfrom refs/heads/main^0\n\n")
        for name in repository.references:
            if name.startswith("refs/tags/scp/run/"):
                tag = repository.references[name].peel(pygit2.Tag)
                stream.write(b"tag %b\nfrom refs/heads/target\n" % name.removeprefix("refs/tags/").encode())
                stream.write(b"tagger Bench Mark <bench@example.org> %d +0000\n" % tag.tagger.time)
                data(tag.raw_message)


def _files(tree: pygit2.Tree, prefix: str) -> Iterator[tuple[str, pygit2.Blob]]:
    for entry in tree:
        if isinstance(entry, pygit2.Tree):
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif isinstance(entry, pygit2.Blob):
            yield f"{prefix}{entry.name}", entry


BENCHMARKS = (
    Benchmark(
        IMPORT,
        "Importing runs with three events each, with their tags; git is given finished objects",
        imports,
    ),
)
