"""Runs beyond the hot window lie in the archive, and nothing that reads can tell."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import scp_git
from scp_git import AlreadyExists, InvalidId, NotARepository, Run, RunEvent, Settings, Store, open_store
from tests.sight import ids, tagged

LONG_AGO = datetime(2026, 2, 17, tzinfo=UTC)
SMALL = Settings(durability="os", hot_max=4, hot_min=2)


def old_run(number: int, **fields: Any) -> Run:
    moment = LONG_AGO + timedelta(hours=number)
    stamp = f"{moment:%Y-%m-%dT%H%M%S}"
    return Run(
        run_id=f"run_{stamp}_apply_{number:04d}", type="apply", started_at=moment.isoformat(), **fields
    )


def fill(store: Store, count: int, start: int = 0) -> list[str]:
    runs = [old_run(number, summary=f"number {number}") for number in range(start, start + count)]
    return [store.record_run(run, [RunEvent(type="step", target=run.run_id)]) for run in runs]


def hot(root: Path, git: Callable[..., str]) -> list[str]:
    paths = git(root, "ls-tree", "-r", "--name-only", "scp-ledger", "ledger/runs/").splitlines()
    return sorted({path.split("/")[2] for path in paths})


def archived(root: Path, git: Callable[..., str]) -> list[str]:
    if not git(root, "branch", "--list", "scp-ledger-archive"):
        return []
    paths = git(root, "ls-tree", "-r", "--name-only", "scp-ledger-archive", "runs/").splitlines()
    return sorted({path.split("/")[-2] for path in paths})


def test_above_hot_max_the_oldest_are_archived_down_to_hot_min(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo, SMALL)
    made = fill(store, 4)
    assert hot(repo, git) == made
    made += fill(store, 1, start=4)
    assert hot(repo, git) == made[-2:]
    assert archived(repo, git) == made[:-2]
    assert "ledger: archive 3 runs" in git(repo, "log", "-1", "--format=%B", "scp-ledger-archive")


def test_the_oldest_are_those_that_started_first_not_those_recorded_first(
    repo: Path, git: Callable[..., str]
) -> None:
    store = Store.open(repo, SMALL)
    made = [store.record_run(old_run(number)) for number in (9, 8, 7, 6)]
    late = store.record_run(old_run(1))
    assert hot(repo, git) == sorted(made[:2])
    assert late in archived(repo, git)


def test_at_most_64_more_than_it_added_are_archived(repo: Path, git: Callable[..., str]) -> None:
    with Store.open(repo, Settings(durability="os", hot_max=0)) as everything_hot:
        fill(everything_hot, 80)
    assert len(hot(repo, git)) == 80
    fill(Store.open(repo, SMALL), 1, start=80)
    assert len(hot(repo, git)) == 81 - 65
    fill(Store.open(repo, SMALL), 1, start=81)
    assert len(hot(repo, git)) == 2


def test_a_new_process_finds_the_oldest_as_well(repo: Path, git: Callable[..., str]) -> None:
    made = fill(Store.open(repo, Settings(durability="os", hot_max=4, hot_min=1)), 4)
    made += fill(Store.open(repo, Settings(durability="os", hot_max=4, hot_min=2)), 1, start=4)
    assert hot(repo, git) == made[-2:]


def test_hot_max_0_turns_it_off(repo: Path, git: Callable[..., str]) -> None:
    made = fill(Store.open(repo, Settings(durability="os", hot_max=0, hot_min=0)), 10)
    assert hot(repo, git) == made


def test_reads_see_hot_and_archived_runs_alike(repo: Path) -> None:
    store = Store.open(repo, SMALL)
    made = fill(store, 12)
    assert ids(repo) == made[::-1]
    assert tagged(repo) == set(made)
    for number, run_id in enumerate(made):
        run = store.get_run(run_id)
        assert run is not None and run.summary == f"number {number}"
        assert [event["target"] for event in store.get_run_events(run_id)] == [run_id]
    assert [run.run_id for run in store.list_runs(n=3, before=made[4])] == made[1:4][::-1]


def test_the_view_shows_the_hot_window_only(repo: Path, git: Callable[..., str]) -> None:
    fill(Store.open(repo, SMALL), 9)
    shown = {path.name for path in (repo / ".scp-ledger/ledger/runs").iterdir()}
    assert shown == set(hot(repo, git))
    assert git(repo / ".scp-ledger", "status", "--porcelain") == ""


def test_an_archived_run_can_be_recorded_again_but_not_changed(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo, SMALL)
    made = fill(store, 9)
    before = git(repo, "rev-parse", "scp-ledger-archive", "scp-ledger")
    events = [RunEvent(type="step", target=made[0])]
    assert store.record_run(old_run(0, summary="number 0"), events) == made[0]
    assert git(repo, "rev-parse", "scp-ledger-archive", "scp-ledger") == before
    with pytest.raises(AlreadyExists):
        store.record_run(old_run(0, summary="another"), events)


def test_archived_runs_are_deleted_and_pruned_like_others(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo, SMALL)
    made = fill(store, 9)
    assert store.delete_run(made[0]) and not store.delete_run(made[0])
    assert store.get_run(made[0]) is None and made[0] not in tagged(repo)
    with pytest.raises(AlreadyExists):
        store.record_run(old_run(0))
    recent = store.record_run(Run(type="apply"))
    assert store.prune_runs(older_than_days=1) == 8
    assert ids(repo) == [recent] and tagged(repo) == {recent}
    assert archived(repo, git) == []


def test_a_run_left_in_both_places_is_one_run_and_goes_as_one(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo, SMALL)
    made = fill(store, 3)
    git(repo, "branch", "hot", "scp-ledger")
    assert store.archive_runs(older_than_days=0) == 3
    # As a power cut without fsync may leave it: the archive has moved, the ledger has not.
    git(repo, "update-ref", "refs/heads/scp-ledger", "hot")
    git(repo, "branch", "-D", "hot")
    assert ids(repo) == made[::-1]
    assert store.delete_run(made[1])
    assert ids(repo) == [made[2], made[0]]
    assert made[1] not in hot(repo, git) + archived(repo, git)


def test_archive_runs_moves_what_is_old_enough(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo, Settings(durability="os"))
    made = fill(store, 3)
    recent = store.record_run(Run(type="apply"))
    assert store.archive_runs(older_than_days=1) == 3
    assert (hot(repo, git), archived(repo, git)) == ([recent], made)
    assert store.archive_runs(older_than_days=1) == 0
    assert tagged(repo) == {*made, recent}
    assert store.archive_runs(older_than_days=10**9) == 0
    with pytest.raises(ValueError, match="negative"):
        store.archive_runs(older_than_days=-1)


def test_a_dropped_tag_is_made_again_from_its_anchor_and_its_note_fits(
    repo: Path, git: Callable[..., str]
) -> None:
    store = Store.open(repo, Settings(durability="os"))
    (run_id,) = fill(store, 1)
    tag = git(repo, "rev-parse", f"refs/tags/scp/run/{run_id}").strip()
    git(repo, "notes", "--ref=scp-chat", "add", "-m", '{"id": "msg_1", "ts": "", "text": "done"}', tag)
    assert store.archive_runs(older_than_days=1, drop_tags=True) == 1
    assert tagged(repo) == set()
    assert ids(repo) == [run_id]
    assert store.record_run(old_run(0, summary="number 0"), [RunEvent(type="step", target=run_id)]) == run_id
    assert git(repo, "rev-parse", f"refs/tags/scp/run/{run_id}").strip() == tag
    assert "done" in git(repo, "notes", "--ref=scp-chat", "show", tag)


def test_tags_of_runs_archived_earlier_are_dropped_on_request(repo: Path) -> None:
    store = Store.open(repo, SMALL)
    fill(store, 9)
    assert store.archive_runs(older_than_days=1, drop_tags=True) == 9
    assert tagged(repo) == set()
    assert store.archive_runs(older_than_days=1, drop_tags=True) == 0


def test_a_tag_that_no_anchor_explains_is_not_dropped(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo, Settings(durability="os"))
    run_id = old_run(0).run_id
    git(repo, "tag", "-a", f"scp/run/{run_id}", "-m", "{}")
    fill(store, 1)
    assert store.archive_runs(older_than_days=1, drop_tags=True) == 1
    assert tagged(repo) == {run_id}


def test_a_run_that_waits_for_the_first_commit_is_anchored_in_the_archive(
    make_repo: Callable[..., Path], git: Callable[..., str]
) -> None:
    repo = make_repo(commits=0)
    store = Store.open(repo, SMALL)
    made = fill(store, 6)
    assert tagged(repo) == set() and made[0] in archived(repo, git)
    git(repo, "commit", "--allow-empty", "-q", "-m", "first")
    made += fill(store, 1, start=6)
    assert tagged(repo) == set(made)


def test_a_damaged_run_does_not_stop_the_others(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo, SMALL)
    made = fill(store, 3)
    view = repo / ".scp-ledger"
    (view / f"ledger/runs/{made[1]}/run.json").write_text("torn {")
    git(view, "commit", "-q", "-a", "-m", "a person's accident")
    made += fill(store, 4, start=3)
    assert set(ids(repo)) == {*made} - {made[1]} or set(ids(repo)) == {*made}
    assert len(hot(repo, git)) <= SMALL.hot_max


async def test_the_awaited_verb_and_the_function_do_the_same(repo: Path) -> None:
    async with open_store(repo, Settings(durability="os")) as store:
        await store.record_run(old_run(0))
        assert await store.archive_runs(older_than_days=1) == 1
    assert await scp_git.archive_runs(repo, older_than_days=1, drop_tags=True) == 1


async def test_the_function_raises(tmp_path: Path) -> None:
    with pytest.raises(NotARepository):
        await scp_git.archive_runs(tmp_path, older_than_days=1)


def test_ids_are_checked_as_ever(repo: Path) -> None:
    with pytest.raises(InvalidId):
        Store.open(repo).get_run("../x")


def test_pruning_takes_notes_with_it_wherever_the_run_lies(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo, SMALL)
    made = fill(store, 6)
    for run_id in (made[0], made[-1]):
        store.send_message("about it", run_id=run_id)
    assert len(git(repo, "notes", "--ref=scp-chat", "list").splitlines()) == 2
    assert store.prune_runs(older_than_days=1) == 6
    assert git(repo, "notes", "--ref=scp-chat", "list") == ""
    assert (ids(repo), tagged(repo)) == ([], set())
    assert (hot(repo, git), archived(repo, git)) == ([], [])


@pytest.mark.parametrize("drop_tags", [False, True])
def test_chat_about_an_archived_run_goes_on(repo: Path, drop_tags: bool) -> None:
    store = Store.open(repo, SMALL)
    made = fill(store, 6)
    store.send_message("while hot", run_id=made[0])
    store.archive_runs(older_than_days=1, drop_tags=drop_tags)
    store.send_message("when archived", run_id=made[0])
    said = [message.text for message in store.list_messages(run_id=made[0])]
    assert said == ["when archived", "while hot"]
    store.maintain(tags=True)
    assert tagged(repo) == set(made)
    assert [message.text for message in store.list_messages(run_id=made[0])] == said
