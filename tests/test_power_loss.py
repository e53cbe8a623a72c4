"""The power is cut at every moment of some writes: nothing acknowledged is lost, nothing is half there."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scp_git.git.maintenance import MERGE_FROM
from tests.faults import new_repository, problems
from tests.faults.replay import TRACED, Disk, State, before_boot, materialise, states
from tests.faults.tracing import ROOT, SYNCING, Server, Steps, read_trace, select_calls, why_no_strace

pytestmark = [pytest.mark.referee, pytest.mark.system("strace")]

HEAL_S = 10.0
ENOUGH = 30
SEED = 20260217
MANY = [f"m{n}" for n in range(14)]
"""So many that their tags go to ``packed-refs``."""


@dataclass(frozen=True)
class Series:
    """Jobs that come first, a process each, and the steps during which the power is cut."""

    prepare: Sequence[Sequence[Any]]
    attack: Sequence[Sequence[Any]]
    maybe: Sequence[str]
    """Runs that are recorded or deleted in ``attack``."""
    gone: Sequence[str] = ()
    """Runs that are deleted there."""


BOTH = {"run_id": "r", "thread_id": "general"}
PLACES = [{key: id} for key, id in BOTH.items()]
SERIES = {
    "first writes": Series([], [["record", "a"], ["record", "b"]], "ab"),
    "writes": Series([["record", "old"]], [["record", "a"], ["record", "b"], ["record", "c"]], "abc"),
    "delete": Series(
        [["record", "old"], ["record", "x"]], [["record", "a"], ["delete", "x"], ["record", "b"]], "abx", "x"
    ),
    "many at once": Series(
        [["record", "old"]],
        [["batch", [ROOT, "m", 14]], ["delete", "m3"], ["record", "b"]],
        [*MANY, "b"],
        ["m3"],
    ),
    "messages": Series(
        [["record", "r"]],
        [*(["send", [name, BOTH, padding]] for name, padding in (("m1", 5), ("m2", 40_000), ("m3", 40_000)))],
        "",
    ),
    "pull": Series(
        [["record", "old"], ["record", "run-2"], ["part", None], ["record", "near"]],
        [["pull", None], ["record", "a"]],
        ["far-1", "far-2", "run-2", "a"],
        ["run-2"],
    ),
    "packs are merged": Series(
        [["record", f"old-{n}"] for n in range(MERGE_FROM - 1)],
        [*(["record", run_id] for run_id in "abcd"), ["settle", None], ["record", "e"]],
        "abcde",
    ),
    "tags are packed": Series(
        [["record", "old"], ["batch", [ROOT, "m", 6]]],
        [["record", "a"], ["maintain", [2, 5, 3]], ["record", "b"]],
        "ab",
    ),
}


@pytest.fixture(autouse=True)
def _needs_strace() -> None:
    if reason := why_no_strace():
        pytest.skip(reason)


def record_states(
    root: Path, trace: Path, server: Server, series: Series, mixes: int, **job: Any
) -> tuple[list[str], list[State]]:
    """What was acknowledged before the trace began, and every state a cut could leave."""
    new_repository(root)
    known = []
    for step in series.prepare:
        before = server.run(root, [step])
        assert before.status == 0 and not before.errors and not before.bugs, before
        known += before.acked
    disk = Disk(root)
    options = ["-xx", "-s", "16000000", "-o", str(trace), "-e", select_calls(TRACED)]
    outcome = server.run(root, series.attack, strace=options, timeout_s=120, **job)
    assert outcome.status == 0 and not outcome.errors and not outcome.bugs, outcome
    found = states(disk, read_trace(trace), seed=SEED, mixes=mixes)
    # Threads that say it at the same time are not always heard in the order in which they were traced.
    said = [line for line in outcome.lines if line.startswith(("ACK ", "DEL ", "SENT "))]
    assert sorted(disk.acked) == sorted(said)
    return known, found


def check_state(state: State, known: Sequence[str], series: Series, server: Server, root: Path) -> list[str]:
    """What is wrong when the machine comes up with ``state`` and writes on."""
    shutil.rmtree(root)
    materialise(state.image, root, before_boot())
    steps: Steps = [["ensure", None], ["record", "after"], ["list", 100], *(["said", at] for at in PLACES)]
    healed = server.run(root, steps, boot_id="another", timeout_s=2 * HEAL_S)
    if healed.errors or healed.bugs or healed.acked != ["after"]:
        return [f"the next write failed: {healed.lines}"]
    said = [line.split(" ") for line in state.acked]
    deleted = {run_id for word, run_id in said if word == "DEL"}
    acked = {*known, *(run_id for word, run_id in said if word == "ACK"), "after"} - {*series.gone}
    maybe = {*series.maybe} - deleted
    sent = [name for word, name in said if word == "SENT"]
    asked = [step[1][0] for step in series.attack if step[0] == "send"]
    heard = healed.said[0]
    if healed.said != [heard, heard] or heard not in (sent, asked[: len(sent) + 1]):
        return [f"of {asked} were heard {healed.said}, surely sent were {sent}"]
    found = [f"the next write took {healed.took_s:.1f} s"] if healed.took_s > HEAL_S else []
    return found + problems(root, acked=acked, maybe=maybe, deleted=deleted, listed=healed.listed)


def cut_everywhere(folder: Path, name: str, *, mixes: int, at_most: int = 0) -> None:
    """Check the states of a series, or ``at_most`` of them, chosen at random."""
    series, root = SERIES[name], folder / "repo"
    with Server() as server:
        known, found = record_states(root, folder / "trace", server, series, mixes)
        assert len(found) > 100, f"only {len(found)} states"
        if at_most:
            found = sorted(random.Random(SEED).sample(found, at_most), key=lambda state: state.after)
        wrong: list[str] = []
        for state in found:
            at = f"after call {state.after}, {state.loss} lost, {len(state.acked)} acknowledged"
            wrong += [f"{at}: {problem}" for problem in check_state(state, known, series, server, root)]
            if len(wrong) >= ENOUGH:
                break
    assert not wrong, f"problems in {len(found)} states:\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", SERIES)
def test_a_power_cut_loses_nothing_acknowledged(name: str, tmp_path: Path) -> None:
    cut_everywhere(tmp_path, name, mixes=1, at_most=60)


@pytest.mark.full
@pytest.mark.parametrize("name", SERIES)
def test_a_power_cut_at_any_moment_loses_nothing_acknowledged(name: str, tmp_path: Path) -> None:
    cut_everywhere(tmp_path, name, mixes=3)


def test_the_simulation_loses_what_was_not_synced(tmp_path: Path) -> None:
    """What a cut does to ``durability="os"`` shows that these tests can fail."""
    root, series = tmp_path / "repo", SERIES["writes"]
    with Server() as server:
        known, found = record_states(
            root, tmp_path / "trace", server, series, 1, settings={"durability": "os"}
        )
        last = [state for state in found if "ACK c" in state.acked]
        wrong = [line for state in last for line in check_state(state, known, series, server, root)]
    assert any("lost" in line or "fsck" in line for line in wrong)


# ---- how much is synced


def synced_per_run(folder: Path, settings: dict[str, str]) -> list[int]:
    """How many syncing calls each of three runs took, in a process that had done none before."""
    root, trace = new_repository(folder / "repo"), folder / "trace"
    with Server() as server:
        assert server.run(root, [["record", "first"]]).acked == ["first"]
        steps = [["record", run_id] for run_id in "abc"]
        options = ["-o", str(trace), "-e", select_calls([*SYNCING, "write"])]
        assert server.run(root, steps, strace=options, settings=settings).acked == ["a", "b", "c"]
    counts = [0]
    for call in read_trace(trace):
        if call.name in SYNCING:
            counts[-1] += 1
        elif call.args.startswith('1, "ACK '):
            counts.append(0)
    return counts[:3]


def test_a_durable_run_takes_at_most_8_syncs(tmp_path: Path) -> None:
    counts = synced_per_run(tmp_path, {"durability": "full"})
    assert all(0 < count <= 8 for count in counts), counts


def test_a_run_that_need_not_be_durable_takes_none(tmp_path: Path) -> None:
    assert synced_per_run(tmp_path, {"durability": "os"}) == [0, 0, 0]
