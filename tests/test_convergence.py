"""Whoever syncs, in whatever order, killed or not: all come to the same, with all that was said and done."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import pygit2
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from scp_git import Run, Settings, Store
from scp_git.layout import ARCHIVE_REF, LEDGER_REF, NOTES_REF
from tests import servers
from tests.servers import Server
from tests.sight import ids, tagged

MakeRepo = Callable[..., Path]
QUICK = Settings(durability="os", hot_max=6, hot_min=3)


def trees(root: Path) -> dict[str, str]:
    repo = pygit2.Repository(root)
    present = [ref for ref in (LEDGER_REF, ARCHIVE_REF, NOTES_REF) if ref in repo.references]
    return {ref: str(repo.references[ref].peel(pygit2.Commit).tree.id) for ref in present}


def bring_together(clones: list[Path], remotes: list[str]) -> None:
    """Two rounds: what the last one had is known to the first one afterwards."""
    for _ in range(2):
        for root in clones:
            for remote in remotes:
                assert Store.open(root, QUICK).sync(remote).in_step


@dataclass
class Expected:
    """What must be there in the end."""

    runs: set[str] = field(default_factory=set)
    gone_runs: set[str] = field(default_factory=set)
    messages: dict[str, str] = field(default_factory=dict)
    """Message id to the run it is about, or ``general``."""
    gone_messages: set[str] = field(default_factory=set)
    maybe: set[str] = field(default_factory=set)
    """What was under way when a process was killed."""

    def check(self, root: Path) -> None:
        store = Store.open(root, QUICK)
        present, certain = set(ids(root)), self.runs - self.gone_runs
        assert certain - self.maybe <= present <= certain | self.maybe
        assert not present & self.gone_runs
        for place in ("general", *present):
            about: dict[str, Any] = {"thread_id": place} if place == "general" else {"run_id": place}
            heard = {message.id for message in store.list_messages(n=1000, **about)}
            said = {id for id, where in self.messages.items() if where == place}
            assert said - self.gone_messages - self.maybe <= heard <= (said - self.gone_messages) | self.maybe


def check_alike(roots: list[Path], expected: Expected) -> None:
    assert len({json.dumps(trees(root), sort_keys=True) for root in roots}) == 1
    for root in roots:
        expected.check(root)
        assert tagged(root) <= set(ids(root)), "a deleted run has no tag"


# ---------------------------------------------------------------- in one process, any order


class Clones(RuleBasedStateMachine):
    """Three clones, a server and a second one that only two of them know."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.expected = Expected()
        self.made = 0

    @initialize()
    def begin(self) -> None:
        self.servers = [self.folder / "one.git", self.folder / "two.git"]
        for server in self.servers:
            pygit2.init_repository(server, bare=True)
        self.clones = [self.folder / name for name in "abc"]
        for number, root in enumerate(self.clones):
            repo = pygit2.init_repository(root, initial_head="main")
            ada = pygit2.Signature("Ada", "ada@example.org", 1_700_000_000, 0)
            repo.create_commit("HEAD", ada, ada, "first\n", repo.TreeBuilder().write(), [])
            repo.remotes.create("origin", str(self.servers[0]))
            repo.remotes.create("second", str(self.servers[1] if number else self.clones[1]))
        repo.remotes["origin"].push(["refs/heads/main:refs/heads/main"])

    def store(self, clone: int) -> Store:
        return Store.open(self.clones[clone], QUICK)

    def any_of(self, data: st.DataObject, clone: int) -> str | None:
        present = sorted(ids(self.clones[clone]))
        return data.draw(st.sampled_from(present)) if present else None

    @rule(clone=st.integers(0, 2), events=st.integers(0, 2))
    def record(self, clone: int, events: int) -> None:
        self.made += 1
        run = Run(run_id=f"r{self.made}", type="x")
        self.expected.runs.add(self.store(clone).record_run(run, [{"type": "e"}] * events))

    @rule(clone=st.integers(0, 2), data=st.data())
    def say(self, clone: int, data: st.DataObject) -> None:
        run_id = self.any_of(data, clone)
        message = self.store(clone).send_message("hi", run_id=run_id)
        self.expected.messages[message.id] = run_id or "general"

    @rule(clone=st.integers(0, 2), data=st.data())
    def delete_run(self, clone: int, data: st.DataObject) -> None:
        run_id = self.any_of(data, clone)
        if run_id and self.store(clone).delete_run(run_id):
            self.expected.gone_runs.add(run_id)

    @rule(clone=st.integers(0, 2), data=st.data(), delete=st.booleans())
    def change_message(self, clone: int, data: st.DataObject, delete: bool) -> None:
        run_id = self.any_of(data, clone)
        store, about = self.store(clone), {"run_id": run_id} if run_id else {"thread_id": "general"}
        said = store.list_messages(**about)
        if said and delete:
            store.delete_message(said[0].id, **about)
            self.expected.gone_messages.add(said[0].id)
        elif said:
            store.set_message_flags(said[0].id, publish=True, **about)

    @rule(clone=st.integers(0, 2), remote=st.sampled_from(["origin", "second"]), pull=st.booleans())
    def sync(self, clone: int, remote: str, pull: bool) -> None:
        store = self.store(clone)
        report = store.pull(remote) if pull else store.sync(remote)
        assert report.in_step

    def teardown(self) -> None:
        try:
            if hasattr(self, "clones"):
                bring_together(self.clones, ["origin", "second"])
                bring_together(self.clones, ["origin"])
                check_alike([*self.clones, self.servers[0]], self.expected)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def explore(examples: int, steps: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Clones,
        settings=hypothesis.settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=[phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain],
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )


def test_clones_come_to_the_same_in_any_order() -> None:
    explore(examples=5, steps=12)


@pytest.mark.full
def test_clones_come_to_the_same_in_any_order_with_many_examples() -> None:
    explore(examples=60, steps=40)


# ---------------------------------------------------------------- processes, some of them killed

WORKER = """
import random, sys, uuid
from pathlib import Path
from scp_git import Run, Settings, Store
from scp_git.errors import ScpGitError
root, name, count, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)
store = Store.open(root, Settings(durability="os", hot_max=8, hot_min=4, retry_timeout_s=120))

def tell(*words):
    print(*words, flush=True)

for n in range(count):
    what = chance.choice(["record", "record", "say", "delete", "sync", "sync"])
    runs = [run.run_id for run in store.list_runs(n=1000)]
    if what == "record":
        tell("begin", what, f"{name}-{n}")
        store.record_run(Run(run_id=f"{name}-{n}", type="x"), [{"type": "e"}])
        tell("done", what, f"{name}-{n}")
    elif what == "say":
        place = chance.choice([*runs, "general"])
        about = {"thread_id": place} if place == "general" else {"run_id": place}
        message = store.send_message("hi", **about)
        tell("done", what, message.id, place)
    elif what == "delete" and runs:
        run_id = chance.choice(runs)
        tell("begin", what, run_id)
        store.delete_run(run_id)
        tell("done", what, run_id)
    else:
        report = store.sync()
        assert report.in_step, report
tell("end")
"""


def at_work(root: Path, name: str, count: int, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(root), name, str(count), str(seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def note(expected: Expected, out: str) -> None:
    """What a worker told of what it did; the last thing may be half done."""
    lines = [line.split() for line in out.splitlines()]
    under_way: set[str] = set()
    for verb, *rest in lines:
        if verb == "begin":
            under_way.add(rest[1])
        elif verb == "done":
            what, id = rest[:2]
            under_way.discard(id)
            if what == "record":
                expected.runs.add(id)
            elif what == "delete":
                expected.gone_runs.add(id)
            else:
                expected.messages[id] = rest[2]
    expected.maybe |= under_way


def turmoil(clones: list[Path], servers: list[Path], *, count: int, killed: int, seed: int) -> None:
    chance, expected = random.Random(seed), Expected()
    workers = [at_work(root, f"w{n}", count, seed + n) for n, root in enumerate(clones)]
    for worker in chance.sample(workers, killed):
        time.sleep(chance.uniform(0.5, 2))
        worker.kill()
    for number, worker in enumerate(workers):
        out, err = worker.communicate(timeout=900)
        assert worker.returncode == -9 or out.endswith("end\n"), err
        note(expected, out)
        if worker.returncode == -9:
            again = at_work(clones[number], f"again{number}", count // 2, seed + 100 + number)
            out, err = again.communicate(timeout=900)
            assert out.endswith("end\n"), err
            note(expected, out)
    bring_together(clones, ["origin"])
    # What a killed sender had not been told of may be there as well.
    known = expected.messages.keys() | expected.maybe
    for root in clones:
        store = Store.open(root, QUICK)
        heard = {message.id for message in store.list_messages(thread_id="general", n=1000)}
        heard |= {m.id for run_id in ids(root) for m in store.list_messages(run_id=run_id, n=1000)}
        extra = heard - known
        assert len(extra) <= killed, "nobody said these"
        expected.maybe |= extra
    check_alike([*clones, *servers], expected)


def joined(make_repo: MakeRepo, url: str, count: int) -> list[Path]:
    clones = [make_repo() for _ in range(count)]
    for root in clones:
        repo = pygit2.Repository(root)
        repo.remotes.create("origin", url)
    repo.remotes["origin"].push(["refs/heads/main:refs/heads/main"])
    return clones


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Server]:
    with servers.git_daemon(tmp_path / "daemon") as server:
        yield server


def test_3_clones_in_turmoil(make_repo: MakeRepo, tmp_path: Path) -> None:
    there = make_repo(tmp_path / "there.git", commits=0, bare=True)
    turmoil(joined(make_repo, str(there), 3), [there], count=8, killed=1, seed=1)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
def test_6_clones_in_turmoil(make_repo: MakeRepo, tmp_path: Path, seed: int) -> None:
    there = make_repo(tmp_path / "there.git", commits=0, bare=True)
    turmoil(joined(make_repo, str(there), 6), [there], count=30, killed=2, seed=1000 * seed)


@pytest.mark.full
@pytest.mark.system("git")
def test_6_clones_in_turmoil_over_a_network(make_repo: MakeRepo, daemon: Server) -> None:
    there = daemon.repository("there")
    turmoil(joined(make_repo, daemon.url("there"), 6), [there], count=30, killed=2, seed=7)
