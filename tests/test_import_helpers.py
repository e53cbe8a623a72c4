"""A long import with helper processes stores what one without them does, whatever becomes of the helpers."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import scp_git
from scp_git import AlreadyExists, ImportReport, Run, RunEvent, Settings, Store
from scp_git.store import importing, makers
from tests.sight import ids, tagged
from tests.test_import import Item, item, items

WITH = Settings(durability="os", hot_max=8, hot_min=4)
WITHOUT = WITH.model_copy(update={"import_helpers": 0})


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers for short imports, on a machine with cores enough."""
    monkeypatch.setattr(importing, "_LONG", 0)
    monkeypatch.setattr(importing, "_HANDED", 4)
    monkeypatch.setattr(importing, "usable", lambda: 2)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each helper answered, in the order of the answers; all slices go to helpers."""
    counts: list[int] = []
    take = makers._Helper._take_answers
    offer = makers.Makers.offer

    def counted(helper: Any) -> None:
        before = len(helper._done)
        take(helper)
        counts.extend(len(runs) for runs in helper._done[before:])

    def offered(self: makers.Makers, runs: makers.Slice) -> bool:
        while self._helpers and not offer(self, runs):
            self.move(wait=True)
        return bool(self._helpers)

    monkeypatch.setattr(makers._Helper, "_take_answers", counted)
    monkeypatch.setattr(makers.Makers, "offer", offered)
    return counts


def odd_items() -> list[Any]:
    """What an import meets besides plain runs."""
    bad, twin, other = item(70), item(3), item(4)
    bad[0].metadata = {"n": float("nan")}
    other[0].summary = "other content"
    unmarshalled, broken = item(71), item(72)
    unmarshalled[0].metadata = {"text": Text("derived from str"), "n": 1.5e-5, "deep": [[{"ä": None}]]}
    broken[0].metadata = {"what": object()}
    unsorted = (
        Run(run_id="unsorted", type="x"),
        [{"seq": 3, "type": "b"}, {"seq": 1, "type": "a", "more": 0.1}],
    )
    named = Run(run_id="bad/id", type="x")
    return [*items(40), bad, twin, other, unmarshalled, broken, unsorted, named, Run(run_id="bare", type="x")]


class Text(str):
    pass


def trees(root: Path, git: Callable[..., str]) -> list[str]:
    tags = git(root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/tags")
    branches = ("scp-ledger", "scp-ledger-archive")
    return [tags, *(git(root, "rev-parse", f"{branch}^{{tree}}") for branch in branches)]


def test_helpers_change_nothing(repo: Path, git: Callable[..., str], answered: list[int]) -> None:
    one, other = repo, repo.with_name("other")
    shutil.copytree(one, other)
    given = odd_items()
    with Store.open(one, WITH) as store:
        report = store.import_runs(given)
    assert sum(answered) > 40
    with Store.open(other, WITHOUT) as store:
        assert store.import_runs(given) == report
    assert (report.added, report.unchanged) == (43, 1)
    assert [(row.position, row.run_id) for row in report.rejected] == [
        (41, given[40][0].run_id),
        (43, given[4][0].run_id),
        (45, given[44][0].run_id),
        (47, "bad/id"),
    ]
    assert trees(one, git) == trees(other, git)
    git(one, "fsck", "--strict")


@pytest.mark.usefixtures("answered")
def test_a_run_counts_as_it_was_when_it_was_taken(repo: Path) -> None:
    run, event = Run(run_id="none", type="x", metadata={"n": 0}), RunEvent(type="step", detail={"n": 0})

    def reused() -> Iterator[Item]:
        for number in range(30):
            run.run_id, run.metadata["n"], event.detail["n"] = f"run-{number}", number, number
            yield run, [event]

    with Store.open(repo, WITH) as store:
        assert store.import_runs(reused()).added == 30
        for number in range(30):
            stored = store.get_run(f"run-{number}")
            assert stored and stored.metadata == {"n": number}
            assert [event["detail"] for event in store.get_run_events(f"run-{number}")] == [{"n": number}]


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_a_helper_that_dies_is_done_without(repo: Path, answered: list[int], blow: signal.Signals) -> None:
    with Store.open(repo, WITH) as store, pytest.MonkeyPatch.context() as patch:
        made: list[makers.Makers] = []
        start = makers.Makers.__init__

        def noted(self: makers.Makers, *args: Any) -> None:
            start(self, *args)
            made.append(self)

        patch.setattr(makers.Makers, "__init__", noted)

        def source() -> Iterator[Item]:
            for number, one in enumerate(items(80)):
                if number == 40:
                    while not answered:
                        made[0].move(wait=True)
                    made[0]._helpers[0]._process.send_signal(blow)
                if number == 60:
                    for helper in made[0]._helpers:
                        helper._process.send_signal(blow)
                yield one

        assert store.import_runs(source()) == ImportReport(added=80)
    assert 0 < sum(answered) < 80
    assert len(ids(repo)) == len(tagged(repo)) == 80


def test_python_that_cannot_be_started_is_done_without(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for python in ("/nonexistent/python3", "/bin/false"):
        monkeypatch.setattr(sys, "executable", python)
        with Store.open(repo, WITH) as store:
            assert store.import_runs(items(50)).seen == 50
    assert len(ids(repo)) == 50


@pytest.mark.usefixtures("answered")
def test_a_process_with_very_many_descriptors_imports_as_well(repo: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2048)), hard))
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        with Store.open(repo, WITH) as store:
            assert store.import_runs(items(80)) == ImportReport(added=80)
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("executable", ["", "/usr/sbin/httpd", None])
def test_only_python_is_started(monkeypatch: pytest.MonkeyPatch, executable: str | None) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert makers.usable() == 2
    monkeypatch.setattr(sys, "executable", executable)
    assert makers.usable() == 0


@pytest.mark.usefixtures("answered")
def test_strict_raises_what_refused_the_run_and_ends_the_helpers(repo: Path) -> None:
    bad = item(30)
    bad[0].metadata = {"n": float("inf")}
    with Store.open(repo, WITH) as store:
        with pytest.raises(ValueError, match="NaN and infinity"):
            store.import_runs([*items(20), bad, *items(5, 40)], strict=True)
        with pytest.raises(AlreadyExists):
            store.import_runs([*items(20), item(19, user="somebody else")], strict=True)
        with pytest.raises(TypeError):
            store.import_runs([*items(20), "no run"])  # type: ignore[list-item]
    assert not children()


async def test_a_cancelled_import_ends_its_helpers(repo: Path) -> None:
    async with scp_git.open_store(repo, WITH) as store:
        with anyio.CancelScope() as scope:

            async def source() -> Any:
                for one in items(600):
                    yield one
                assert children()
                scope.cancel()
                await anyio.sleep_forever()

            await store.import_runs(source())
    assert scope.cancelled_caught
    assert not children()


def children() -> list[str]:
    """What was started by this process and is still there, zombies too."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=False
    )
    return [
        line for line in listed.stdout.splitlines() if "scp_git.ledger.making" in line or "defunct" in line
    ]


def test_a_helper_ends_with_the_process_that_asked() -> None:
    program = """
import os, signal
from scp_git.git.handle import Identity
from scp_git.store.makers import Makers
makers = Makers(Identity("Ada", "ada@example.org"), 1)
while not makers._helpers[0].ready:
    makers.move(wait=True)
print(makers._helpers[0]._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the helper is still there")
