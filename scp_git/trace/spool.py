"""Spools: the append-only files in which recordings survive a crash.

``<common git dir>/scp/recordings/<trace id>.jsonl``: a header; then, as they come, the events,
each line as it will be stored, and ``{"run": id}`` for a run recorded meanwhile; at the end
``{"stopped": time, "returned": number of events that stop_recording gave back}``.

A spool is *alive* while somebody holds its ``flock``, whatever its process id. It may end in
a torn line. See docs/format.md.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from scp_git.codec import MAX_PART_BYTES, JsonObject, dump_compact, load_object
from scp_git.errors import StorageFailed
from scp_git.git.files import unlink, write_all
from scp_git.git.handle import translated
from scp_git.git.locks import TryLock
from scp_git.ids import is_valid_id
from scp_git.trace.encoding import GAP, gap_line
from scp_git.trace.operations import Part

FOLDER = "scp/recordings"
SUFFIX = ".jsonl"
_BLOCK = 1024 * 1024
_EVENT = b'{"seq":'
_TRIES = 100


def spool_path(common_dir: Path, trace_id: str) -> Path:
    return common_dir / FOLDER / f"{trace_id}{SUFFIX}"


def spools(common_dir: Path) -> list[Path]:
    """All spools of a repository, living and dead, by name."""
    try:
        names = sorted(os.listdir(common_dir / FOLDER))
    except (FileNotFoundError, NotADirectoryError):
        return []
    stems = (name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))
    return [spool_path(common_dir, stem) for stem in stems if is_valid_id(stem)]


# ---------------------------------------------------------------- writing


class SpoolFile:
    """A spool that is alive through us: we hold its lock."""

    def __init__(self, path: Path, lock: TryLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, path: Path, header: JsonObject) -> SpoolFile:
        """Begin a spool: it is alive before it holds anything."""
        with translated("beginning a recording"):
            path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(_TRIES):
                spool = cls.take(path)
                if spool is not None:
                    return spool._begun({"spool": 1, **header})
                time.sleep(0.005)  # somebody who recovers recordings looks into the empty file
            raise StorageFailed("beginning a recording", f"{path.name} is locked")

    def _begun(self, header: JsonObject) -> SpoolFile:
        try:
            write_all(self._lock.fileno(), f"{dump_compact(header)}\n".encode())
        except BaseException:
            self.remove()
            raise
        return self

    @classmethod
    def take(cls, path: Path) -> SpoolFile | None:
        """Hold a spool's lock; ``None`` if it is alive elsewhere, or was removed meanwhile."""
        lock = TryLock(path)
        try:
            if lock.__enter__() and os.fstat(lock.fileno()).st_nlink:
                return cls(path, lock)
        except BaseException:
            lock.__exit__()
            raise
        lock.__exit__()
        return None

    def write(self, data: bytes | memoryview) -> int:
        """Append; returns how much the disk took, as ``os.write`` does."""
        return os.write(self._lock.fileno(), data)

    def release(self) -> None:
        """It is not alive any more: ``recover_recordings`` may have it."""
        self._lock.__exit__()

    def remove(self) -> None:
        """It is not needed any more."""
        try:
            with translated("removing a spool"):
                unlink(self.path)
        finally:
            self.release()


# ---------------------------------------------------------------- reading


def read_lines(path: Path, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The complete lines with their newlines, each with its offset, of all the file or a range of it.

    A torn last line is left out. A line longer than any of ours is not given whole.
    """
    with translated("reading a spool"), open(path, "rb") as file:
        file.seek(start)
        offset, rest, dropped = start, b"", 0
        while block := file.read(_BLOCK if end is None else min(_BLOCK, end - file.tell())):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield offset, line + b"\n"
                offset += dropped + len(line) + 1
                dropped = 0
            surplus = max(len(rest) - MAX_PART_BYTES, 0)
            rest, dropped = rest[: len(rest) - surplus], dropped + surplus


def read_header(path: Path) -> JsonObject | None:
    """The first line of a spool, or ``None`` if it has none."""
    for _, line in read_lines(path):
        header = _parsed(line)
        return header if header is not None and header.get("spool") == 1 else None
    return None


def event_parts(
    path: Path,
    *,
    after: int = 0,
    checked: bool = False,
    seen: Callable[[JsonObject], None] | None = None,
) -> Iterator[Part]:
    """The events of a spool as parts for a trace, those whose number is above ``after``.

    Holds one part at a time, and so do the parts when they are read again.

    Args:
        checked: the process that wrote it died: every line is looked at, one that cannot be read
            becomes a visible gap, and what follows is numbered anew.
        seen: gets every line that is whole and is no header, as an object; only where ``checked``.
    """
    lines: list[bytes] = []
    number, size, begin, first = after, 0, 0, after
    for offset, line in read_lines(path):
        stored = _stored(line, number + 1, checked=checked, header=offset == 0, seen=seen)
        if stored is None or (not checked and _seq(line) <= after):
            continue
        if lines and size + len(stored) > MAX_PART_BYTES:
            yield _part(path, lines, begin, offset, first, checked)
            begin, first, size = offset, number, 0
            lines = []
        elif not lines:
            begin = offset
        number += 1
        size += len(stored)
        lines.append(stored)
    if lines:
        yield _part(path, lines, begin, None, first, checked)


def _part(path: Path, lines: list[bytes], begin: int, end: int | None, first: int, checked: bool) -> Part:
    made = Part.of(b"".join(lines))
    return Part(made.oid, made.count, partial(_read_part, path, begin, end, first, checked))


def _read_part(path: Path, begin: int, end: int | None, number: int, checked: bool) -> bytes:
    found = []
    for offset, line in read_lines(path, begin, end):
        stored = _stored(line, number + 1, checked=checked, header=offset == 0)
        if stored is not None:
            number += 1
            found.append(stored)
    return b"".join(found)


def _stored(
    line: bytes,
    number: int,
    *,
    checked: bool,
    header: bool = False,
    seen: Callable[[JsonObject], None] | None = None,
) -> bytes | None:
    """What a line of a spool becomes in a trace, as event ``number``; ``None`` for what is no event."""
    if not checked:
        return line if line.startswith(_EVENT) else None
    if line.isspace():
        return None
    record = _parsed(line)
    if record is not None and (header or "seq" not in record):
        if seen and not header:
            seen(record)
        return None
    if record is None or not _is_event(record):
        if seen:
            seen({"seq": number, "type": GAP})
        return b'{"seq":%d,%b' % (number, gap_line(1, "").body)
    if seen:
        seen(record)
    _, comma, rest = line.partition(b",")
    return line if record["seq"] == number else _EVENT + b"%d" % number + comma + rest


def _is_event(record: JsonObject) -> bool:
    texts = (record.get(name, "") for name in ("ts", "type", "target", "result"))
    numbers = (record.get(name, 0) for name in ("seq", "duration_ms"))
    return (
        next(iter(record)) == "seq"
        and "type" in record
        and all(isinstance(text, str) for text in texts)
        and all(type(number) is int and 0 <= number < 2**63 for number in numbers)
        and isinstance(record.get("detail", {}), dict)
    )


def _parsed(line: bytes) -> JsonObject | None:
    if len(line) > MAX_PART_BYTES:
        return None
    try:
        return load_object(line)
    except ValueError:
        return None


def _seq(line: bytes) -> int:
    number = line[len(_EVENT) : line.find(b",")]
    if not number.isdigit():
        raise StorageFailed("reading a spool", "it is damaged")
    return int(number)


def read_events(path: Path, limit: int) -> Iterator[dict[str, Any]]:
    """The first events of a spool that we wrote ourselves."""
    count = 0
    for _, line in read_lines(path):
        if line.startswith(_EVENT):
            if count == limit:
                return
            count += 1
            yield json.loads(line)


def returned_count(path: Path) -> int | None:
    """How many events ``stop_recording`` gave back; ``None`` unless it is a stopped recording's spool."""
    with translated("reading a spool"):
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return None
    last = None
    for _, line in read_lines(path, max(size - 4096, 0)):
        last = line
    footer = _parsed(last) if last else None
    returned = footer.get("returned") if footer and "stopped" in footer else None
    return returned if isinstance(returned, int) else None
