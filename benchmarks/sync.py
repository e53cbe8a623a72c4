"""Sync: merging two large states, pulling many runs, pushing one run where many tags are.

Each peer has repositories of its own, which are copies of the same. git does what a
script would do instead: ``merge-tree``, ``fetch`` and ``push`` with explicit refspecs.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import pygit2

from benchmarks.harness import Benchmark, Plan, Result, flush_journal, summarise
from benchmarks.peers import has_git
from benchmarks.repositories import Shelf, create, sample_run
from benchmarks.tables import Line, markdown, ratio, thousands
from scp_git import Run, RunEvent, Settings, Store
from scp_git.git.handle import Repository
from scp_git.git.merge import merge_states
from scp_git.git.objects import ObjectStore, parse_commit
from scp_git.git.tree import TreeEditor
from scp_git.layout import ARCHIVE_REF, LEDGER_REF, NOTES_REF, RUN_TAG_PREFIX

MERGE, PULL, PUSH = "sync_merge", "sync_pull", "sync_push"
_SETTINGS = Settings(durability="os", lock_timeout_s=3600)
_OWN = 100
"""So many runs each side has that the other has not."""
_BRANCHES = (LEDGER_REF, ARCHIVE_REF)


# ---- merging two states


def merge(plan: Plan) -> Iterator[Result]:
    """Two states that share ``plan.merged`` runs, and 100 runs on each side that the other lacks."""
    one = _filled(plan, plan.merged)
    other = _copy(one, Shelf(plan.folder).place())
    for number, root in enumerate((one, other)):
        _import(root, _OWN, first=plan.merged + number * _OWN)
    _git_dir_fetch(one, other)
    repository = Repository.open(one)
    seconds = [_timed(plan, lambda: _merge_once(repository)) for _ in range(plan.sync_samples)]
    results = [summarise(MERGE, "scp_git", plan.merged, "none", seconds)]
    if has_git():
        seconds = [_timed(plan, lambda: _merge_tree(one)) for _ in range(plan.sync_samples)]
        results.append(summarise(MERGE, "git merge-tree", plan.merged, "none", seconds))
    yield from _compared(results)


def _merge_once(repository: Repository) -> None:
    store = ObjectStore(repository.open_odb())
    ours, theirs = _State(repository, store, "{}"), _State(repository, store, "refs/other/{}")
    merge_states(ours, theirs, kept=True)
    for editor in (ours.ledger, ours.archive, ours.notes):
        editor.write()


class _State:
    def __init__(self, repository: Repository, store: ObjectStore, place: str) -> None:
        def editor(ref: str) -> TreeEditor:
            tip = repository.refs.read(place.format(ref))
            return TreeEditor(store, parse_commit(store.read(tip, "commit")).tree if tip else None)

        self.ledger, self.archive, self.notes = map(editor, (LEDGER_REF, ARCHIVE_REF, NOTES_REF))


def _merge_tree(root: Path) -> None:
    refs = Repository.open(root).refs
    for ref in _BRANCHES:
        if refs.read(ref) and refs.read(f"refs/other/{ref}"):
            _git(root, "merge-tree", "--write-tree", "--allow-unrelated-histories", ref, f"refs/other/{ref}")


def _git_dir_fetch(root: Path, other: Path) -> None:
    """The other side's branches, under ``refs/other/``."""
    repo = pygit2.Repository(root)
    repo.remotes.create_anonymous(str(other)).fetch([f"+{ref}:refs/other/{ref}" for ref in _BRANCHES])


# ---- pulling many runs


def pull(plan: Plan) -> Iterator[Result]:
    """``plan.pulled`` runs with their tags from a repository at a path, into one that has none."""
    shelf = Shelf(plan.folder)
    base = create(shelf.place() / "repository")
    source = _copy(base, shelf.place())
    _import(source, plan.pulled)

    def ours() -> Callable[[], object]:
        store = Store.open(_with_remote(_copy(base, shelf.place()), str(source)), _SETTINGS)
        return store.pull

    def git() -> Callable[[], object]:
        root = _with_remote(_copy(base, shelf.place()), str(source))
        specs = ["+refs/heads/scp-*:refs/remotes/origin/scp-*", f"{RUN_TAG_PREFIX}*:{RUN_TAG_PREFIX}*"]
        return lambda: _git(root, "fetch", "-q", "origin", *specs)

    makers = {"scp_git": ours, **({"git fetch": git} if has_git() else {})}
    results = []
    for peer, make in makers.items():
        seconds = [_timed(plan, make()) for _ in range(max(2, plan.sync_samples // 3))]
        results.append(summarise(PULL, peer, plan.pulled, "os", seconds, plan.pulled / min(seconds)))
    yield from _compared(results)


# ---- pushing one run


def push(plan: Plan) -> Iterator[Result]:
    """One new run with its tag, with ``plan.tags`` runs and tags on both sides already."""
    for present in plan.tags:
        with _daemon(plan.folder) as base_url:
            yield from _compared(_push(plan, present, base_url))


def _push(plan: Plan, present: int, base_url: str | None) -> list[Result]:
    origin = _filled(plan, present)
    results = []
    peers: dict[str, tuple[bool, Callable[[Path, str], object]]] = {
        "scp_git, path": (False, lambda root, run_id: Store.open(root, _SETTINGS).push())
    }
    if base_url:
        peers = {
            "scp_git": (True, lambda root, run_id: Store.open(root, _SETTINGS).push()),
            **peers,
            "git push, one tag": (True, lambda root, run_id: _git_push(root, run_id)),
            "git push, all run tags": (True, lambda root, run_id: _git_push(root, "*")),
        }
    for peer, (by_url, send) in peers.items():
        place = Shelf(plan.folder).place()
        server = _bare(origin, plan.folder / "served" / f"{place.name}.git")
        root = _with_remote(_copy(origin, place), f"{base_url}{server.name}" if by_url else str(server))
        seconds = []
        for number in range(plan.sync_samples + 1):
            run_id = Store.open(root, _SETTINGS).record_run(*sample_run(number))
            seconds.append(_timed(plan, lambda: send(root, run_id)))  # noqa: B023
        results.append(summarise(PUSH, peer, present, "os", seconds[1:]))
    return results


def _git_push(root: Path, tags: str) -> None:
    branches = [ref for ref in _BRANCHES if Repository.open(root).refs.read(ref)]
    _git(root, "push", "-q", "origin", *branches, RUN_TAG_PREFIX + tags)


@contextmanager
def _daemon(folder: Path) -> Iterator[str | None]:
    """``git daemon`` on loopback for the bare repositories in ``served``; ``None`` where there is no git."""
    served = folder / "served"
    served.mkdir(exist_ok=True)
    if not has_git():
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder_of_git = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True)
    command = [
        str(Path(folder_of_git.stdout.strip()) / "git-daemon"),
        "--listen=127.0.0.1",
        f"--port={port}",
        f"--base-path={served}",
        "--export-all",
        "--reuseaddr",
        "--enable=receive-pack",
        str(served),
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield f"git://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


# ---- repositories


def _filled(plan: Plan, present: int) -> Path:
    root = create(Shelf(plan.folder).place() / "repository")
    _import(root, present)
    return root


def _import(root: Path, count: int, *, first: int = 0) -> None:
    def runs() -> Iterator[tuple[Run, list[RunEvent]]]:
        return (sample_run(first + number) for number in range(count))

    store = Store.open(root, _SETTINGS)
    store.import_runs(runs())
    store.ensure_ledger()


def _copy(root: Path, place: Path) -> Path:
    copy = place / "copy"
    shutil.copytree(root, copy, symlinks=True)
    shutil.rmtree(copy / ".scp-ledger", ignore_errors=True)
    shutil.rmtree(copy / ".git/worktrees", ignore_errors=True)
    Store.open(copy, _SETTINGS).ensure_ledger()
    return copy


def _bare(root: Path, path: Path) -> Path:
    shutil.copytree(root / ".git", path, ignore=shutil.ignore_patterns("worktrees", "scp", "index", "logs"))
    pygit2.Config(str(path / "config"))["core.bare"] = "true"
    return path


def _with_remote(root: Path, url: str) -> Path:
    pygit2.Repository(root).remotes.create("origin", url)
    return root


def _git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True)


# ---- measuring


def _timed(plan: Plan, work: Callable[[], object]) -> float:
    flush_journal(plan.folder)
    start = perf_counter()
    work()
    return perf_counter() - start


def _compared(results: list[Result]) -> list[Result]:
    """Add to the library's results how many times faster than each of git's they are."""
    others = [result for result in results if not result.peer.startswith("scp_git")]
    for result in results:
        if result not in others:
            ratios = {other.peer: round(other.median_ms / result.median_ms, 2) for other in others}
            result.ratios = {peer.replace(" ", "_").replace(",", ""): ratio for peer, ratio in ratios.items()}
    return results


# ---- shown


def _table(lines: Sequence[Line]) -> str:
    against = list(dict.fromkeys(key for line in lines for key in line if key.startswith("ratio_")))
    head = ["runs", "peer", "median ms", "p95 ms"]
    head += [f"x {key.removeprefix('ratio_').replace('_', ' ')}" for key in against]
    rows = [
        [
            thousands(line["present"]),
            line["peer"],
            f"{line['median_ms']:.1f}",
            f"{line['p95_ms']:.1f}",
            *(ratio(line.get(key)) for key in against),
        ]
        for line in lines
    ]
    return markdown(head, rows)


BENCHMARKS = (
    Benchmark(MERGE, "Merging two states, each with 100 runs that the other lacks", merge, _table),
    Benchmark(PULL, "Pulling runs with their tags from a path into a repository that has none", pull, _table),
    Benchmark(PUSH, "Pushing one new run, with so many runs and tags on both sides", push, _table),
)
