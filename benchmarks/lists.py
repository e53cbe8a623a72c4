"""What reading costs as runs are added: lists, pages, single runs, events, and searches.

Beside it what a person would do with stock git. ``first`` is a list by a process that has just
opened the store; the making of the index is timed apart.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks.harness import Benchmark, Plan, Result, summarise
from benchmarks.repositories import Shelf
from scp_git import Store

_COMPILING = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
READ = "read"
INDEX = "index"
START = "start"
_GIT_LIST = (
    "for-each-ref",
    "--count=20",
    "--sort=-creatordate",
    "--format=%(contents)",
    "refs/tags/scp/run/",
)


def read(plan: Plan) -> Iterator[Result]:
    """Milliseconds of each read with the store open, after it has been done once."""
    for present in plan.present:
        if present:
            root = Shelf(plan.folder).prepared(present)
            store = Store.open(root)
            newest = store.list_runs(n=20)
            middle = store.list_runs(n=1, before=store.list_runs(n=max(present // 2, 1))[-1].run_id)
            chosen = (middle or newest)[0]
            reads: dict[str, Callable[[], object]] = {
                "list_runs(n=20)": partial(store.list_runs, n=20),
                "list_runs(n=20, before)": partial(store.list_runs, n=20, before=chosen.run_id),
                "list_runs(n=20, type, status)": partial(store.list_runs, n=20, type="apply", status="ok"),
                "list_runs(no such user)": partial(store.list_runs, n=20, user="nobody"),
                "get_run": partial(store.get_run, chosen.run_id),
                "get_run_events": partial(store.get_run_events, chosen.run_id),
                "search, one match": partial(store.search, f"release {present // 2}"),
                "search, all match": partial(store.search, "resources"),
            }
            for name, call in reads.items():
                yield summarise(READ, name, present, "none", _seconds(call, 3 * plan.samples))
            if shutil.which("git"):
                call = partial(_git, root, *_GIT_LIST)
                yield summarise(READ, "git for-each-ref --count=20", present, "none", _seconds(call, 5))


def index(plan: Plan) -> Iterator[Result]:
    """Seconds until an index is there, and until it has followed one more run."""
    for present in plan.present:
        if present:
            root = Shelf(plan.folder).prepared(present)
            for name, ask in (("runs", _list), ("search", _search)):
                for path in (root / ".git/scp").glob(f"index-{name}-*"):
                    path.unlink()
                store = Store.open(root)
                result = summarise(
                    INDEX, f"{name}, made", present, "none", _seconds(partial(ask, store), 1, warm=0)
                )
                size = sum(path.stat().st_size for path in (root / ".git/scp").glob(f"index-{name}-*"))
                result.extra = {
                    "bytes_per_run": round(size / present, 1),
                    "per_s": round(present / _median_s(result)),
                }
                yield result


def start(plan: Plan) -> Iterator[Result]:
    """A command in a new process, beside a Python that does nothing; compiled, as an installed package is."""
    for present in plan.present:
        if present:
            root = Shelf(plan.folder).prepared(present)
            _list(Store.open(root))
            commands = {
                "python -c pass": ("-c", "pass"),
                "scp-git --version": ("-m", "scp_git.cli", "--version"),
                "scp-git ledger list": ("-m", "scp_git.cli", "-C", str(root), "ledger", "list"),
                "scp-git ledger list --json": (
                    "-m",
                    "scp_git.cli",
                    "-C",
                    str(root),
                    "ledger",
                    "list",
                    "--json",
                ),
                "first list_runs(n=20) of a process": ("-c", _FIRST_LIST, str(root)),
            }
            for arguments in commands.values():
                _process(*arguments)
            seconds: dict[str, list[float]] = {name: [] for name in commands}
            for _ in range(max(plan.samples // 3, 1)):
                for name, arguments in commands.items():
                    seconds[name].append(_process(*arguments))
            results = {
                name: summarise(START, name, present, "none", found) for name, found in seconds.items()
            }
            bare = min(seconds["python -c pass"])
            for name, result in results.items():
                result.extra = {"x_bare_python": round(min(seconds[name]) / bare, 2)}
            yield from results.values()


_FIRST_LIST = """
import sys
from time import perf_counter
from scp_git import Store
import scp_git.index.runs, scp_git.index.search
began = perf_counter()
Store.open(sys.argv[1]).list_runs(n=20)
print(perf_counter() - began)
"""


def _process(*arguments: str) -> float:
    """How long it took; what a process itself says it took, if it does."""
    began = perf_counter()
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=_COMPILING)
    took = perf_counter() - began
    return float(done.stdout) if arguments[:2] == ("-c", _FIRST_LIST) else took


def _git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", root, *arguments], capture_output=True, check=True)


def _list(store: Store) -> object:
    return store.list_runs(n=20)


def _search(store: Store) -> object:
    return store.search("resources")


def _seconds(call: Callable[[], object], count: int, warm: int = 1) -> list[float]:
    for _ in range(warm):
        call()
    found = []
    for _ in range(count):
        start = perf_counter()
        call()
        found.append(perf_counter() - start)
    return found


def _median_s(result: Result) -> float:
    return result.median_ms / 1e3


BENCHMARKS = (
    Benchmark(READ, "Reading, with the store open", read, curve="Reading, over the runs present"),
    Benchmark(
        INDEX, "Making the indexes from nothing", index, curve="Making the indexes, over the runs present"
    ),
    Benchmark(
        START, "A command in a new process", start, curve="A command in a new process, over the runs present"
    ),
)
