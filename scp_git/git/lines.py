"""JSONL line by line: what identifies a line, and the union of lines in a canonical order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from scp_git.codec import JsonObject, cut_parts, load_object
from scp_git.ids import format_time, is_valid_id, parse_time
from scp_git.layout import is_part, part_name

_STORED_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", re.ASCII)


class Key(NamedTuple):
    """What a message is sorted and known by; a field is empty where the message has none that is valid."""

    ts: str
    id: str


FIRST = Key("", "")
"""Before all messages; lines that are no message have this key."""


def key_of(record: JsonObject) -> Key:
    """The key of a message, its time spelled as we store it."""
    ts, id = record.get("ts"), record.get("id")
    return Key(_stored_time(ts), id) if isinstance(id, str) and is_valid_id(id) else FIRST


def _stored_time(ts: object) -> str:
    if not isinstance(ts, str):
        return ""
    if _STORED_TIME.fullmatch(ts):
        return ts
    try:
        return format_time(parse_time(ts))
    except ValueError:
        return ""


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


def rank(record: JsonObject, line: bytes) -> tuple[int, bool, bytes]:
    """Of two versions of a message the smaller wins: the higher ``rev``, encrypted, the lesser bytes."""
    flags = record.get("flags")
    encrypted = isinstance(flags, dict) and flags.get("encrypted") is True
    return -revision(record), not encrypted, line


def message_lines(copies: Iterable[bytes | None]) -> list[tuple[Key, bytes]]:
    """The union of messages, each with its key and without its newline, in the order of the keys.

    Of two versions of one message the better stays (``rank``). Lines that are no
    message are kept as they are, in front.
    """
    best: dict[tuple[Key, bytes], tuple[tuple[int, bool, bytes], bytes]] = {}
    for line in _lines(copies):
        record = parse_line(line)
        key = key_of(record)
        place, its_rank = (key, b"" if key.id else line), rank(record, line)
        if place not in best or its_rank < best[place][0]:
            best[place] = its_rank, line
    return sorted((key, line) for (key, _), (_, line) in best.items())


def merge_messages(copies: Iterable[bytes | None]) -> bytes:
    """The union of messages as JSONL."""
    return join_lines(line for _, line in message_lines(copies))


def join_lines(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


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


def _by_seq(line: bytes) -> tuple[int, bytes]:
    seq = parse_line(line).get("seq")
    return (seq if isinstance(seq, int) else 2**63), line
