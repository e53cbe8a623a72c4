"""Housekeeping: packs are merged and loose tags packed, unasked and on request, and nobody waits for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import scp_git
from scp_git import Maintenance, NotARepository, Run, Settings, Store, open_store
from scp_git.git import maintenance
from tests.sight import ids, tagged
from tests.test_archive import SMALL, fill, old_run
from tests.test_cli_ledger import PROJECT, out

OS = Settings(durability="os")


def packs(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".git/objects/pack").glob("*.pack"))


def loose_tags(root: Path) -> int:
    folder = root / ".git/refs/tags/scp/run"
    return len(os.listdir(folder)) if folder.is_dir() else 0


def test_small_packs_become_one_and_nothing_else_is_touched(repo: Path, git: Callable[..., str]) -> None:
    git(repo, "repack", "-q", "-a", "-d")
    (foreign,) = packs(repo)
    store = Store.open(repo, OS)
    made = fill(store, 7)
    assert len(packs(repo)) == 8
    assert store.maintain() == Maintenance(packs_merged=6)
    assert len(packs(repo)) == 2 and foreign in packs(repo)
    assert ids(repo) == made[::-1]
    assert store.maintain() == Maintenance()


def test_a_big_pack_and_a_small_one_stay_as_they_are(repo: Path) -> None:
    store = Store.open(repo, OS)
    store.import_runs(old_run(number) for number in range(50))
    (big,) = packs(repo)
    store.record_run(Run(type="x"))
    assert store.maintain() == Maintenance()
    assert len(packs(repo)) == 2 and big in packs(repo)


def test_packs_beyond_a_size_are_left_alone(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(repo, OS)
    fill(store, 4)
    monkeypatch.setattr(maintenance, "_BIG_BYTES", 100)
    assert store.maintain() == Maintenance()
    assert len(packs(repo)) == 4


def test_many_loose_tags_are_packed(
    repo: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_LOOSE_MANY", 5)
    monkeypatch.setattr(maintenance, "_TAGS_AT_ONCE", 4)
    store = Store.open(repo, OS)
    made = fill(store, 11)
    git(repo, "tag", "mine")
    before = git(repo, "for-each-ref")
    assert store.maintain().tags_packed == 8
    assert loose_tags(repo) == 3
    assert git(repo, "for-each-ref") == before
    assert tagged(repo) == set(made)


def test_the_writer_packs_loose_tags_step_by_step(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scp_git.git.committer.LOOSE_MAX", 20)
    monkeypatch.setattr(maintenance, "_TAGS_AT_ONCE", 8)
    monkeypatch.setattr("scp_git.writer._TAGS_EVERY", 4)
    store = Store.open(repo, OS)
    made = fill(store, 40)
    assert loose_tags(repo) <= 24
    assert tagged(repo) == set(made)


def test_the_intent_of_a_dead_process_is_left_for_the_next_write(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_LOOSE_MANY", 1)
    store = Store.open(repo, OS)
    fill(store, 3)
    intent = store._writer.committer.publisher.intent
    intent.write({"refs": [], "locks": []}, sync=False)
    assert store.maintain().tags_packed == 0
    assert intent.read()
    intent.clear()
    assert store.maintain().tags_packed == 3


def test_missing_tags_of_archived_runs_are_made_on_request(repo: Path, git: Callable[..., str]) -> None:
    store = Store.open(repo, SMALL)
    made = fill(store, 9)
    before = git(repo, "for-each-ref", "refs/tags")
    store.archive_runs(older_than_days=1, drop_tags=True)
    store.ensure_ledger()
    assert tagged(repo) == set()
    assert store.maintain().tags_made == 0
    assert store.maintain(tags=True).tags_made == 9
    assert git(repo, "for-each-ref", "refs/tags") == before
    assert tagged(repo) == set(made)


def test_where_nothing_was_written_there_is_nothing_to_do(repo: Path, tmp_path: Path) -> None:
    assert Store.open(repo).maintain() == Maintenance()
    assert not (repo / ".git/scp").exists()


def test_writers_do_not_wait_for_a_merge(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(repo, OS)
    fill(store, 6)
    held, go = threading.Event(), threading.Event()
    entries = maintenance._Source.entries

    def slow(self: maintenance._Source) -> object:
        held.set()
        go.wait(10)
        return entries(self)

    monkeypatch.setattr(maintenance._Source, "entries", slow)
    keeper = threading.Thread(target=store.maintain)
    keeper.start()
    assert held.wait(10)
    began = time.monotonic()
    run_id = store.record_run(Run(type="x"))
    took = time.monotonic() - began
    go.set()
    keeper.join()
    assert took < 2 and run_id in ids(repo)


async def test_the_awaited_verb_and_the_function_do_the_same(repo: Path, tmp_path: Path) -> None:
    async with open_store(repo, OS) as store:
        for number in range(4):
            await store.record_run(old_run(number))
        assert (await store.maintain()).packs_merged == 3
    assert await scp_git.maintain(repo) == Maintenance()
    with pytest.raises(NotARepository):
        await scp_git.maintain(tmp_path)


def test_the_command_says_what_it_did(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    store = Store.open(repo, OS)
    fill(store, 3)
    store.archive_runs(older_than_days=1, drop_tags=True)
    assert out(repo, "maintain", "--tags") == "packs merged 4, tags packed 0, tags made 3\n"
    assert out(repo, "maintain") == "packs merged 0, tags packed 0, tags made 0\n"
