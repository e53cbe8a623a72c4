"""Any writes with tiny hot windows read like a plain dictionary; clones with different windows agree."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scp_git import AlreadyExists, Run, Settings, Store
from scp_git.git.merge import merge_states
from scp_git.git.objects import ObjectStore
from scp_git.git.tree import TreeEditor
from scp_git.ids import clock
from scp_git.layout import RUNS, archived_run_id, run_dir
from scp_git.ledger.archive import HotWindow
from tests.sight import ids, tagged
from tests.test_archive import LONG_AGO, archived, hot, old_run
from tests.test_git_trees import NoObjects

numbers = st.integers(0, 11)
windows = st.sampled_from([(0, 0), (1, 0), (1, 1), (2, 1), (3, 1), (4, 4), (5, 9)])
steps = st.lists(
    st.tuples(st.sampled_from(["record", "import", "other", "delete"]), numbers)
    | st.tuples(st.just("archive"), numbers, st.booleans())
    | st.tuples(st.just("prune"), st.integers(0, 3)),
    max_size=14,
)


class Model:
    """What the ledger should say."""

    def __init__(self) -> None:
        self.runs: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.untagged: set[str] = set()

    def record(self, run: Run) -> bool:
        if run.run_id in self.deleted or self.runs.get(run.run_id, run.summary) != run.summary:
            return False
        self.runs[run.run_id] = run.summary
        self.untagged.discard(run.run_id)
        return True

    def delete(self, run_ids: list[str]) -> int:
        there = [run_id for run_id in run_ids if self.runs.pop(run_id, None) is not None]
        self.deleted.update(there)
        return len(there)


def days(number: int) -> float:
    """So many days ago the run of this number, and none before it, counts as older."""
    return (clock.now() - LONG_AGO).total_seconds() / 86_400 - (number - 0.5) / 24


def numbered(below: int) -> list[str]:
    return [old_run(number).run_id for number in range(below)]


def play(store: Store, model: Model, step: tuple[Any, ...]) -> None:
    verb, number = step[0], step[1]
    if verb in ("record", "import", "other"):
        run = old_run(number, summary="two" if verb == "other" else "one", user="Ada", code_ref="f" * 40)
        run.ended_at = run.started_at
        if verb == "import":
            assert bool(store.import_runs([run]).rejected) != model.record(run)
            return
        try:
            store.record_run(run)
        except AlreadyExists:
            assert not model.record(run)
        else:
            assert model.record(run)
    elif verb == "delete":
        assert store.delete_run(old_run(number).run_id) == bool(model.delete([old_run(number).run_id]))
    elif verb == "archive":
        store.archive_runs(older_than_days=days(number), drop_tags=step[2])
        model.untagged |= set(numbered(number)) & model.runs.keys() if step[2] else set()
    else:
        assert store.prune_runs(older_than_days=days(number)) == model.delete(numbered(number))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.lists(windows, min_size=1, max_size=3))
def test_any_sequence_reads_like_a_dictionary(
    make_repo: Callable[..., Path],
    git: Callable[..., str],
    steps: list[tuple[Any, ...]],
    windows: list[tuple[int, int]],
) -> None:
    repo = make_repo(tempfile.mkdtemp())
    stores = [
        Store.open(repo, Settings(durability="os", hot_max=most, hot_min=least)) for most, least in windows
    ]
    model = Model()
    for number, step in enumerate(steps):
        play(stores[number % len(stores)], model, step)
    reader = stores[0]
    reader.ensure_ledger()
    assert ids(repo) == sorted(model.runs, reverse=True)
    assert {run.run_id: run.summary for run in reader.list_runs(n=100)} == model.runs
    for run_id in numbered(12):
        run = reader.get_run(run_id)
        assert (run.summary if run else None) == model.runs.get(run_id)
    placed = hot(repo, git) + archived(repo, git)
    assert sorted(placed) == sorted(model.runs), "each run is in one place"
    assert tagged(repo) == model.runs.keys() - (model.untagged & set(archived(repo, git)))


# ---------------------------------------------------------------- clones with different windows

STORE = ObjectStore(NoObjects())


class Clone:
    """A state with its own hot window, as far as roll-over and merging look at it."""

    def __init__(self, hot_max: int, hot_min: int) -> None:
        self.ledger, self.archive, self.notes = (TreeEditor(STORE) for _ in range(3))
        self.window = HotWindow(hot_max, hot_min)
        self.recorded: list[tuple[str, str]] = []
        self.subjects: list[str] = []

    def record(self, number: int) -> None:
        run = old_run(number)
        if run.run_id in self.runs():
            return
        self.ledger.put(f"{run_dir(run.run_id)}/run.json", run.model_dump_json().encode())
        self.recorded = [(run.run_id, run.started_at)]
        self._finish()

    def pull(self, other: Clone) -> None:
        merge_states(self, other)
        self.recorded = []
        self._finish()

    def _finish(self) -> None:
        as_transaction: Any = self
        self.window.apply(as_transaction)

    def ids(self) -> tuple[str, ...]:
        return self.ledger.write(), self.archive.write(), self.notes.write()

    def runs(self) -> set[str]:
        return set(self.ledger.names(RUNS)) | set(map(archived_run_id, dict(self.archive.files())))  # type: ignore[arg-type]


moves = st.lists(st.tuples(st.booleans(), st.none() | numbers), max_size=12)


@given(moves, windows, windows)
def test_clones_with_different_hot_windows_come_to_rest_and_read_the_same(
    moves: list[tuple[bool, int | None]], one: tuple[int, int], two: tuple[int, int]
) -> None:
    a, b = Clone(*one), Clone(*two)
    written = set()
    for first, number in moves:
        mine, other = (a, b) if first else (b, a)
        if number is None:
            mine.pull(other)
        else:
            mine.record(number)
            written.add(old_run(number).run_id)
    a.pull(b)
    b.pull(a)
    settled = a.ids()
    assert b.ids() == settled, "one exchange is enough"
    a.pull(b)
    b.pull(a)
    assert (a.ids(), b.ids()) == (settled, settled), "and nothing goes to and fro"
    assert a.runs() == b.runs() == written
