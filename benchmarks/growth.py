"""What writing costs as runs are added, the library beside itself; and the room that a run takes.

Recording beside git is in ``record.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter

from benchmarks.harness import Benchmark, Plan, Result, flush_journal, summarise
from benchmarks.repositories import Shelf, sample_run
from benchmarks.tables import Line, markdown, thousands
from scp_git import Store

WRITE = "write"
ROOM = "room"


def write(plan: Plan) -> Iterator[Result]:
    """One durable write at a time, with so many runs present, after a few to warm up."""
    for present in plan.present:
        if present:
            store = Store.open(Shelf(plan.folder).copy(present))
            newest, oldest = _ends(store, present)
            writes: dict[str, Callable[[], object]] = {
                "record_run": _recording(store),
                "send_message, about the newest run": _saying(store, newest),
                "send_message, about the oldest run": _saying(store, oldest),
                "send_message, in a thread": _saying(store, None),
            }
            for name, call in writes.items():
                yield summarise(WRITE, name, present, "full", list(_seconds(call, plan)))
            store.close()


def _ends(store: Store, present: int) -> tuple[str, str]:
    ids = [run.run_id for run in store.list_runs(n=present)]
    return ids[0], ids[-1]


def _recording(store: Store) -> Callable[[], object]:
    return lambda: store.record_run(*sample_run(0))


def _saying(store: Store, run_id: str | None) -> Callable[[], object]:
    return lambda: store.send_message("Health checks passed", run_id=run_id)


def _seconds(call: Callable[[], object], plan: Plan) -> Iterator[float]:
    for number in range(plan.samples + 3):
        flush_journal(plan.folder)
        start = perf_counter()
        call()
        if number >= 3:
            yield perf_counter() - start


def room(plan: Plan) -> Iterator[Result]:
    """Bytes a run in the repository (without what is local), in the indexes, and of the view."""
    for present in plan.present:
        if present:
            root = Shelf(plan.folder).copy(present)
            store = Store.open(root)
            start = perf_counter()
            store.search("anything")
            store.list_runs()
            result = summarise(ROOM, "scp_git", present, "none", [perf_counter() - start])
            local, view = _bytes(root / ".git/scp"), _bytes(root / ".scp-ledger")
            result.extra = {
                "git_bytes_per_run": round((_bytes(root / ".git") - local) / present, 1),
                "index_bytes_per_run": round(local / present, 1),
                "view_bytes": float(view),
            }
            yield result


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _table(lines: Sequence[Line]) -> str:
    keys = ("git_bytes_per_run", "index_bytes_per_run", "view_bytes")
    head = ["runs", ".git without scp/, bytes a run", "indexes, bytes a run", "view, bytes"]
    return markdown(
        head, [[thousands(line["present"]), *(thousands(line[key]) for key in keys)] for line in lines]
    )


BENCHMARKS = (
    Benchmark(
        WRITE, "One durable write, as runs are added", write, curve="One durable write, over the runs present"
    ),
    Benchmark(ROOM, "The room that runs take", room, _table),
)
