"""How much there is: runs and what belongs to them, and the room that it takes on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scp_git.git.handle import Repository
from scp_git.git.pack import OUR_PREFIX
from scp_git.git.snapshot import snapshot
from scp_git.index.runs import RunIndex
from scp_git.index.search import SearchIndex
from scp_git.layout import DELETED, RUN_TAG_PREFIX, VIEW_DIR


@dataclass(frozen=True, slots=True)
class Room:
    """So many files, and what they take together."""

    files: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class LedgerStats:
    """One repository's ledger in numbers."""

    hot_runs: int = 0
    """Runs on the ledger branch; the others are archived."""
    archived_runs: int = 0
    months: dict[str, int] = field(default_factory=dict)
    """How many runs began in each month, ``2026-02``."""
    messages: int = 0
    threads: int = 0
    traces: int = 0
    deleted: int = 0
    """Records of what was deleted."""
    tags: int = 0
    loose_tags: int = 0
    """Those of them that are a file each; the others lie in ``packed-refs``."""
    our_packs: Room = Room()
    other_packs: Room = Room()
    loose_objects: Room = Room()
    packed_refs: Room = Room()
    index: Room = Room()
    """What SQLite holds; it may be removed at any time."""
    view: Room = Room()


def gather(repository: Repository, runs: RunIndex, search: SearchIndex) -> LedgerStats:
    """Count and measure; the files are looked at, not opened."""
    counted, kinds = runs.counts(), search.counts()
    with repository.odb() as odb:
        state = snapshot(repository, odb)
        deleted = sum(1 for _ in state.archive.files(DELETED))
    common = repository.common_dir
    packs = list(_files(common / "objects/pack"))
    objects = (common / "objects" / f"{number:02x}" for number in range(256))
    return LedgerStats(
        hot_runs=counted.hot,
        archived_runs=counted.archived,
        months=counted.months,
        messages=kinds.get("message", 0),
        threads=kinds.get("thread", 0),
        traces=kinds.get("trace", 0),
        deleted=deleted,
        tags=len(repository.refs.list(RUN_TAG_PREFIX)),
        loose_tags=sum(1 for _ in _files(common / RUN_TAG_PREFIX)),
        our_packs=_room(entry for entry in packs if entry.name.startswith(OUR_PREFIX)),
        other_packs=_room(entry for entry in packs if not entry.name.startswith(OUR_PREFIX)),
        loose_objects=_room(entry for folder in objects for entry in _files(folder)),
        packed_refs=_room(entry for entry in _files(common) if entry.name == "packed-refs"),
        index=_room(entry for entry in _files(common / "scp") if entry.name.startswith("index-")),
        view=_room(_below(repository.main_root / VIEW_DIR) if repository.main_root else ()),
    )


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The regular files directly in a folder; none if it is not there."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))
    except OSError:
        return


def _below(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All regular files below a folder."""
    yield from _files(folder)
    try:
        with os.scandir(folder) as entries:
            folders = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for each in folders:
        yield from _below(each)


def _room(entries: Iterator[os.DirEntry[str]] | tuple[()]) -> Room:
    files = size = 0
    for entry in entries:
        try:
            size += entry.stat(follow_symlinks=False).st_size
            files += 1
        except OSError:  # it went meanwhile
            continue
    return Room(files, size)
