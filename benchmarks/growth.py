"""What writing costs as runs are added, the library beside itself; and the room that a run takes.

Recording beside git is in ``record.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from time import perf_counter

from benchmarks.harness import Benchmark, Plan, Result, flush_journal, summarise
from benchmarks.repositories import Shelf, sample_run
from benchmarks.tables import Line, markdown, thousands
from scp_git import Store
from scp_git.ids import parse_time

WRITE = "write"
ROOM = "room"


def write(plan: Plan) -> Iterator[Result]:
    """One durable write at a time, with so many runs present, after a few to warm up.

    Each is done in turn with few runs present and with many, as the machine is not
    equally quick from one minute to the next.
    """
    shelf = Shelf(plan.folder)
    stores = {present: Store.open(shelf.copy(present)) for present in plan.present if present}
    calls = {present: _calls(store, present) for present, store in stores.items()}
    seconds: dict[tuple[int, str], list[float]] = {(n, name): [] for n in stores for name in _NAMES}
    for name in _NAMES:
        for number in range(plan.samples + 3):
            for present in stores:
                flush_journal(plan.folder)
                start = perf_counter()
                calls[present][name]()
                if number >= 3:
                    seconds[present, name].append(perf_counter() - start)
    for store in stores.values():
        store.close()
    for (present, name), taken in seconds.items():
        yield summarise(WRITE, name, present, "full", taken)


_NAMES = (
    "record_run",
    "send_message, about the newest run",
    "send_message, about the oldest run",
    "send_message, in a thread",
)


def _calls(store: Store, present: int) -> dict[str, Callable[[], object]]:
    newest = store.list_runs(n=1)[0]
    first = parse_time(newest.started_at) - timedelta(hours=present - 1)
    oldest = store.list_runs(n=1, until=first + timedelta(minutes=30))[0]

    def say(run_id: str | None) -> Callable[[], object]:
        return lambda: store.send_message("Health checks passed", run_id=run_id)

    calls = (lambda: store.record_run(*sample_run(0)), say(newest.run_id), say(oldest.run_id), say(None))
    return dict(zip(_NAMES, calls, strict=True))


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
