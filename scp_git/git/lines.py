"""Merging JSONL line by line: a set of lines, in a canonical order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from scp_git.codec import JsonObject, cut_parts, load_object
from scp_git.layout import is_part, part_name


def parse_line(line: bytes) -> JsonObject:
    """The line's object, or an empty one if it cannot be read."""
    try:
        return load_object(line)
    except ValueError:
        return {}


def revision(record: JsonObject) -> int:
    """How often a record was edited; 0 where it does not say."""
    rev = record.get("rev")
    return rev if isinstance(rev, int) and 0 <= rev < 2**31 else 0


def merge_messages(copies: Iterable[bytes | None]) -> bytes:
    """The union of messages by id, sorted by (``ts``, id); lines that cannot be read are kept.

    Of two versions of one message the higher ``rev`` wins, then the encrypted one,
    then the smaller bytes.
    """
    best: dict[object, bytes] = {}
    for line in _lines(copies):
        id = parse_line(line).get("id")
        key = id if isinstance(id, str) and id else line
        if key not in best or _precedence(line) < _precedence(best[key]):
            best[key] = line
    return b"".join(line + b"\n" for line in sorted(best.values(), key=_by_time))


def merge_events(copies: Iterable[bytes | None]) -> list[bytes]:
    """The union of events as lines with their newline, sorted by ``seq``."""
    return [line + b"\n" for line in sorted(_lines(copies), key=_by_seq)]


def merge_parts(stem: str, copies: list[Mapping[str, bytes]]) -> dict[str, bytes]:
    """The union of several copies of one stream of events, each given as files by name, cut into parts."""
    streams = [{n: d for n, d in copy.items() if is_part(stem, n)} for copy in copies]
    streams = [stream for stream in streams if stream]
    if not streams or all(stream == streams[0] for stream in streams):
        return streams[0] if streams else {}
    lines = merge_events(data for stream in streams for data in stream.values())
    return {part_name(stem, number): part for number, part in enumerate(cut_parts(lines), 1)}


def _lines(copies: Iterable[bytes | None]) -> set[bytes]:
    return {line for copy in copies if copy for line in copy.split(b"\n") if line.strip()}


def _by_time(line: bytes) -> tuple[str, str, bytes]:
    record = parse_line(line)
    return str(record.get("ts", "~")), str(record.get("id", "~")), line


def _by_seq(line: bytes) -> tuple[int, bytes]:
    seq = parse_line(line).get("seq")
    return (seq if isinstance(seq, int) else 2**63), line


def _precedence(line: bytes) -> tuple[int, bool, bytes]:
    record = parse_line(line)
    flags = record.get("flags")
    encrypted = isinstance(flags, dict) and flags.get("encrypted") is True
    return -revision(record), not encrypted, line
