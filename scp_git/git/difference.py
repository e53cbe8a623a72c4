"""The files that differ between two states of one branch.

The cost is that of what changed: equal subtrees are never opened, and of two versions
of a wide folder only the rows that differ are looked at one by one. Memory holds the
differing rows of the folders on the way down, whatever the trees hold.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

from scp_git.errors import StorageFailed
from scp_git.git.objects import TREE, ObjectStore
from scp_git.git.tree import EMPTY_TREE, decode_name, is_dir, raw_oid

log = logging.getLogger(__name__)

Difference = tuple[str, str | None, str | None]
"""A path, the id of its blob before, and the id of its blob afterwards."""

_MAX_DEPTH = 64
"""No layout of ours, nor any fan-out of notes, is half as deep; a hostile tree may be."""
MAX_ROWS = 4_000_000
"""So many differing rows are looked at; a few trees that repeat one another can stand for any number."""
_MAX_STEPS = 1024
"""Beyond so many differing rows of one folder it is quicker to parse the rest of it."""
_ROW = re.compile(rb"\d{5,6} ([^\0]+)\0.{20}", re.DOTALL)
# Possessive, as 100 000 rows would otherwise be 100 000 points to go back to.
_ROWS = re.compile(rb"(?:\d{5,6} [^\0]++\0.{20})*+", re.DOTALL)
_FIRST_LOOK = 64

_Row = tuple[str, bytes | None, bytes | None]


def differing_files(
    store: ObjectStore, old: str | None, new: str | None, *, gone: bool = True
) -> Iterator[Difference]:
    """Yield every file that was added, changed or removed between two trees, folder by folder.

    ``None`` stands for no tree at all, as of a branch that is not there. A folder that is missing
    or damaged counts as empty, which is what readers make of it, and is logged. A file that only
    became executable, or ceased to be, has not changed. Without ``gone`` a folder that ``new``
    lacks as a whole is passed over: what is in it may be anything.
    """
    levels = [_differing_rows(store, "", old, new)]
    rows = 0
    while levels:
        for path, before, after in levels[-1]:
            rows += 1
            if rows > MAX_ROWS:
                log.warning("more than %d rows differ; the rest is not compared", MAX_ROWS)
                return
            old_file, new_file = _blob(before), _blob(after)
            if old_file != new_file:
                yield path, old_file, new_file
            old_folder, new_folder = _tree(before), _tree(after)
            if old_folder != new_folder and (gone or new_folder):
                levels.append(_differing_rows(store, f"{path}/", old_folder, new_folder))
                break
        else:
            levels.pop()
        if len(levels) > _MAX_DEPTH:
            log.warning("not compared, as it lies too deep: %r", path[:200])
            levels.pop()


def _blob(raw: bytes | None) -> str | None:
    return raw_oid(raw) if raw and not is_dir(raw) else None


def _tree(raw: bytes | None) -> str | None:
    return raw_oid(raw) if raw and is_dir(raw) else None


def _differing_rows(store: ObjectStore, prefix: str, old: str | None, new: str | None) -> Iterator[_Row]:
    """The entries of one folder that differ: path, raw entry before, raw entry afterwards."""
    if old == new:
        return
    gone, come = _compare(_read(store, old, prefix), _read(store, new, prefix))
    for name in sorted(gone.keys() | come.keys()):
        yield prefix + decode_name(name), gone.get(name), come.get(name)


def _read(store: ObjectStore, oid: str | None, prefix: str) -> bytes:
    """The bytes of a tree, known to be whole rows."""
    if oid is None or oid == EMPTY_TREE:
        return b""
    try:
        data = store.find(oid, TREE)
    except StorageFailed as exc:
        log.warning("the folder %r counts as empty: %s", prefix, exc)
        return b""
    if data is None or _ROWS.fullmatch(data) is None:
        log.warning("the folder %r counts as empty: its tree is missing or damaged", prefix)
        return b""
    return data


def _compare(old: bytes, new: bytes) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """The rows that are only in ``old`` and those only in ``new``, by name.

    Walks through both in step. Git keeps rows sorted; where a damaged tree does not, more rows
    than need be are found to differ, and the comparison by name sorts that out.
    """
    gone: dict[bytes, bytes] = {}
    come: dict[bytes, bytes] = {}
    here, there, steps = 0, 0, 0
    while here < len(old) and there < len(new) and steps < _MAX_STEPS:
        steps += 1
        same = _common_rows(old, here, new, there)
        here, there = here + same, there + same
        one, other = _ROW.match(old, here), _ROW.match(new, there)
        if one is None or other is None:  # the end of either
            break
        if _key(one) <= _key(other):
            gone[one[1]] = one[0]
            here = one.end()
        if _key(one) >= _key(other):
            come[other[1]] = other[0]
            there = other.end()
    gone.update((row[1], row[0]) for row in _ROW.finditer(old, here))
    come.update((row[1], row[0]) for row in _ROW.finditer(new, there))
    for name in [name for name, raw in gone.items() if come.get(name) == raw]:
        del gone[name], come[name]
    return gone, come


def _key(row: re.Match[bytes]) -> bytes:
    return row[1] + b"/" if is_dir(row[0]) else row[1]


def _common_rows(old: bytes, here: int, new: bytes, there: int) -> int:
    """The length of the whole rows that both have in common from these places on."""
    length, look = 0, _FIRST_LOOK
    while True:
        one = old[here + length : here + length + look]
        other = new[there + length : there + length + look]
        if one != other or not one:
            break
        length += len(one)
        look *= 2
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    whole = _ROWS.match(old, here, here + length + low)
    return whole.end() - here if whole else 0
