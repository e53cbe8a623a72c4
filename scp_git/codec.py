"""Bytes and JSON: one spelling for writing, one strict parser for reading.

Writing refuses what another reader could not take back: NaN and infinity, lone
surrogates, integers beyond 64 bits, nesting deeper than ``MAX_DEPTH``. Reading
trusts nothing: strict UTF-8, no duplicate keys, no constants outside JSON, and
lines are split on ``\\n`` only (never ``splitlines``, which also splits on U+2028).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MAX_DEPTH = 64
MAX_RECORD_BYTES = 16 * 1024 * 1024
"""A run.json, trace.json or thread.json; larger ones are refused, and not read."""
MAX_PART_BYTES = 4 * 1024 * 1024
"""One part of a JSONL stream; a line is never larger than a part."""

JsonObject = dict[str, Any]
# Encoders are kept: json.dumps makes a new one for every call with arguments.
_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_pretty = json.JSONEncoder(ensure_ascii=False, allow_nan=False, indent=2).encode
_quoted = json.encoder.encode_basestring


def check_json(value: object, depth: int = 0) -> None:
    """Raise ``ValueError`` unless ``value`` is plain JSON that any reader takes back unchanged."""
    if value is None or value is True or value is False:
        return
    kind = type(value)
    if kind is str or isinstance(value, str):
        _check_text(value)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError("an integer needs more than 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("NaN and infinity are not JSON")
    elif depth >= MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"a key is {type(key).__name__}, JSON keys are strings")
            _check_text(key)
            check_json(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            check_json(item, depth + 1)
    else:
        raise ValueError(f"{kind.__name__} is not a JSON type")


def _check_text(value: object) -> None:
    text = str(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("text holds a lone surrogate, which is not Unicode") from None


def dump_compact(value: object) -> str:
    """One line, no spaces, as in a JSONL line and a tag message (without the newline)."""
    return _compact(value)


def dump_pretty(value: object) -> bytes:
    """A ``*.json`` file: indent 2 and a final newline."""
    return (_indented(value, "\n") + "\n").encode()


def _indented(value: Any, newline: str) -> str:
    """What ``json`` writes with indent 2, some times quicker: with an indent it has no C encoder."""
    kind = type(value)
    if kind is str:
        return _quoted(value)
    if kind is int:
        return str(value)
    inner = newline + "  "
    if kind is dict and value and all(type(key) is str for key in value):
        items = [f"{_quoted(key)}: {_indented(item, inner)}" for key, item in value.items()]
        return f"{{{inner}{f',{inner}'.join(items)}{newline}}}"
    if kind is list and value:
        return f"[{inner}{f',{inner}'.join([_indented(item, inner) for item in value])}{newline}]"
    return _pretty(value).replace("\n", newline)


def same_json(one: object, other: object) -> bool:
    """Whether two values are the same JSON; unlike ``==`` this tells 0 from False and from 0.0."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def dump_lines(values: Iterable[object]) -> bytes:
    """A JSONL file: one compact line each, ``\\n`` after every line."""
    return "".join(dump_compact(value) + "\n" for value in values).encode()


def load_object(data: bytes) -> JsonObject:
    """Parse one JSON object; ``ValueError`` for anything else."""
    try:
        text = data.decode("utf-8")
        value = _decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    if text.count("[") + text.count("{") > MAX_DEPTH:  # else it cannot be too deep
        _check_depth(value)
    return value


def _check_depth(value: JsonObject) -> None:
    """Refuse what could be read, but not written again."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner = (item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer))
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def load_lines(data: bytes) -> Iterator[JsonObject | None]:
    """Parse JSONL; ``None`` stands for a line that cannot be read, blank lines are passed over.

    A bad line never hides the good ones. ``\\r`` before the newline is tolerated.
    """
    for line in data.split(b"\n"):
        if line.strip():
            try:
                yield load_object(line)
            except ValueError:
                yield None


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is out of range")
    return number


_decode = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
).decode


# ---------------------------------------------------------------- anchors and tag messages


def tag_message(record: Mapping[str, Any]) -> str:
    """The message of a run's tag: the run.json object without its anchor, as one line.

    Raises ``ValueError`` (``UnicodeEncodeError``) where the object cannot be spelled in UTF-8.
    """
    text = dump_compact({key: value for key, value in record.items() if key != "anchor"}) + "\n"
    text.encode()
    return text


def cut_parts(lines: Iterable[bytes]) -> list[bytes]:
    """Join JSONL lines into parts of at most ``MAX_PART_BYTES``; every line ends in ``\\n``."""
    parts: list[bytes] = []
    current: list[bytes] = []
    size = 0
    for line in lines:
        if current and size + len(line) > MAX_PART_BYTES:
            parts.append(b"".join(current))
            current, size = [], 0
        current.append(line)
        size += len(line)
    if current:
        parts.append(b"".join(current))
    return parts
