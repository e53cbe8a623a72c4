"""How an event of the bus becomes a line of a trace.

Whatever an event carries, it is stored: what is no JSON is replaced by a text that says so,
what is too big is cut. Of the publisher's code nothing runs but ``str`` of odd keys and errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any, NamedTuple

from scp_git.broadcast import Event
from scp_git.codec import dump_compact
from scp_git.ids import format_time
from scp_git.trace.summary import Kind, kind_of

DETAIL_LIMIT = 64 * 1024
"""So many characters of ``detail`` are stored, about; a larger one is cut, and the event marked ``cut``."""
TEXT_LIMIT = 4096
"""A text is cut to so many characters if the detail is too large, and a ``target`` or an ``error`` anyway."""
GAP = "trace:gap"
"""The type of an event that stands for others which were lost; its detail says how many."""
_DEPTH_MAX = 60
_NODES_MAX = 10_000
_KNOWN_MAX = 64
_TAKEN = frozenset({"target", "status"})
"""What becomes a field of its own, where it is a text."""
_OVERHEAD = 4
"""What a value costs beside its characters."""


class Line(NamedTuple):
    """An event as it is stored, without its ``seq``, and what a summary needs of it."""

    body: bytes
    """To be put behind ``{"seq":1,``; with the newline."""
    kind: Kind
    ts: str
    duration_ms: int


def encode_event(event: Event) -> Line:
    """The line of an event, whatever is in it."""
    try:
        return _encode(event)
    except Exception as exc:  # a stranger's class that no test of ours foresaw
        ts, kind = _timestamp(event.ts), _quoted(str(event.type))
        head = f'"ts":"{ts}","type":{kind},"target":"","result":"","duration_ms":0,"detail":'
        body = f"{head}{_not_stored(exc)}}}\n".encode(errors="replace")
        return Line(body, kind_of(str(event.type), ""), ts, 0)


def _encode(event: Event) -> Line:
    data, type_ = event.data, event.type
    target, status = data.get("target"), data.get("status")
    key = event.key if type(event.key) is str else _text(event.key)
    more, taken = "", _TAKEN
    if type(target) is not str or not target:
        target, taken = key, taken - {"target"}
    elif key and key != target:
        more = f',"key":{_quoted(key)}'
    if type(status) is not str or not status:
        status, taken = "ok" if type_.endswith(":done") else "", taken - {"status"}
    if event.error is not None and _text(event.error):
        status = "failed"
        more += f',"error":{_quoted(_text(event.error))}'
    ts, duration_ms = _timestamp(event.ts), 0 if event.duration_s is None else _milliseconds(event.duration_s)
    head = (
        f'"ts":"{ts}","type":{_known(type_)},"target":{_quoted(target)},"result":{_quoted(status)},'
        f'"duration_ms":{duration_ms},"detail":'
    )
    try:
        body = f"{head}{_exact(data, taken)}{more}}}\n".encode()
    except (ValueError, RuntimeError):  # no JSON, too big, lone surrogates, or changed meanwhile
        text, cut = _mended({name: value for name, value in data.items() if name not in taken})
        more += ',"cut":true' if cut else ""
        body = f"{head}{text}{more}}}\n".encode(errors="replace")
    return Line(body, kind_of(type_, status), ts, duration_ms)


def gap_line(missed: int, ts: str) -> Line:
    """What stands in a trace where events were lost."""
    head = f'"ts":"{ts}","type":"{GAP}","target":"","result":"","duration_ms":0,'
    return Line(f'{head}"detail":{{"missed":{missed}}}}}\n'.encode(), (GAP, ""), ts, 0)


def _exact(data: Mapping[Any, Any], taken: frozenset[str]) -> str:
    """The detail as JSON, exactly; ``ValueError`` if it must not be stored as it is.

    By hand, as most details are small and flat: this takes half as long as checking it and
    handing it to ``json``.
    """
    left, parts = DETAIL_LIMIT, []
    for name, value in data.items():
        if type(name) is not str:
            raise ValueError("a key that is no text")
        if name in taken:
            continue
        label = _known(name) if len(name) <= _KNOWN_MAX else encode_basestring(name)
        kind = type(value)
        if kind is str:
            left -= len(name) + len(value)
            parts.append(f"{label}:{encode_basestring(value)}")
        elif kind is int and -(2**63) <= value < 2**63:
            left -= len(name)
            parts.append(f"{label}:{value}")
        elif kind is float and math.isfinite(value):
            left -= len(name)
            parts.append(f"{label}:{value!r}")
        else:
            left = _plain(value, left - len(name), 1)
            parts.append(f"{label}:{dump_compact(value)}" if left >= 0 else "")
        if left < 0:
            raise ValueError("no JSON, or too big")
    return f"{{{','.join(parts)}}}"


def _plain(value: object, left: int, depth: int) -> int:
    """How many of ``left`` characters remain after ``value``; negative if it must not be stored as it is."""
    kind = type(value)
    if kind is str:
        return left - len(value) - _OVERHEAD  # type: ignore[arg-type]
    if value is None or kind is bool:
        return left - _OVERHEAD
    if kind is int:
        return left - _OVERHEAD if -(2**63) <= value < 2**63 else -1  # type: ignore[operator]
    if kind is float:
        return left - _OVERHEAD if math.isfinite(value) else -1  # type: ignore[arg-type]
    if depth >= _DEPTH_MAX:
        return -1
    if kind is dict:
        for name, item in value.items():  # type: ignore[attr-defined]
            if type(name) is not str:
                return -1
            left = _plain(item, left - len(name) - _OVERHEAD, depth + 1)
            if left < 0:
                return -1
        return left - _OVERHEAD
    if kind is list or kind is tuple:
        for item in value:  # type: ignore[attr-defined]
            left = _plain(item, left, depth + 1)
            if left < 0:
                return -1
        return left - _OVERHEAD
    return -1


# ---------------------------------------------------------------- what cannot be stored as it is


def _mended(detail: Mapping[Any, Any]) -> tuple[str, bool]:
    """The detail as JSON text, and whether something had to be cut."""
    mender = _Mender()
    try:
        text = dump_compact(mender.value(detail, 0))
    except Exception as exc:  # a stranger's class behind an innocent look, or changed all the time
        return _not_stored(exc), False
    if len(text) > 8 * DETAIL_LIMIT:  # control characters take six each
        return dump_compact({"not stored": f"[cut: {len(text)} characters]"}), True
    return text, mender.cut


def _not_stored(exc: Exception) -> str:
    return dump_compact({"not stored": f"[not JSON: {type(exc).__name__}]"})


class _Mender:
    """Makes plain JSON of anything, within bounds."""

    def __init__(self) -> None:
        self.left = DETAIL_LIMIT
        self.nodes = _NODES_MAX
        self.cut = False

    def value(self, value: Any, depth: int) -> Any:
        self.nodes -= 1
        self.left -= _OVERHEAD
        if isinstance(value, str):
            return self.text(str(value))
        if value is None or value is True or value is False:
            return value
        if isinstance(value, int):
            return int(value) if -(2**63) <= value < 2**63 else f"[not JSON: {_digits(value)}]"
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else f"[not JSON: {float(value)!r}]"
        if isinstance(value, Mapping | list | tuple | set | frozenset):
            if depth >= _DEPTH_MAX:
                self.cut = True
                return "[cut: nested too deeply]"
            return self.mapping(value, depth) if isinstance(value, Mapping) else self.items(value, depth)
        return _named(value)

    def text(self, text: str) -> str:
        room = max(min(TEXT_LIMIT, self.left), 0)
        if len(text) > room:
            self.cut = True
            text = f"{text[:room]}[cut: {len(text)} characters]"
        self.left -= len(text)
        return text

    def mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for place, name in enumerate(list(value)):
            if self.full():
                result["cut"] = f"[cut: {len(value) - place} more]"
                break
            shown = self.text(name if type(name) is str else _text(name))
            while shown in result:  # 1 and "1" are two keys, but not in JSON
                shown += "'"
            result[shown] = self.value(value[name], depth + 1)
        return result

    def items(self, value: Any, depth: int) -> list[Any]:
        result: list[Any] = []
        for item in list(value):
            if self.full():
                result.append(f"[cut: {len(value) - len(result)} more]")
                break
            result.append(self.value(item, depth + 1))
        return result

    def full(self) -> bool:
        full = self.left <= 0 or self.nodes <= 0
        self.cut = self.cut or full
        return full


def _named(value: object) -> str:
    """What stands for a value that JSON does not know; times and what ``str`` is safe for keep their text."""
    name = type(value).__name__
    if isinstance(value, datetime):
        return f"[not JSON: {name} {format_time(value)}]"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[not JSON: {len(value)} bytes]"
    if type(value).__module__ in ("pathlib", "pathlib._local", "uuid", "decimal", "datetime", "fractions"):
        return f"[not JSON: {name} {str(value)[:TEXT_LIMIT]}]"
    return f"[not JSON: {name}]"


def _digits(value: int) -> str:
    return f"int {value:#x}"[:80]


# ---------------------------------------------------------------- the fields


def _text(value: object) -> str:
    """A text, cut to ``TEXT_LIMIT``; anything else as ``str`` shows it."""
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception as exc:
        text = f"[not JSON: {type(value).__name__}, {type(exc).__name__}]"
    return text


def _quoted(text: str) -> str:
    if len(text) > TEXT_LIMIT:
        text = f"{text[:TEXT_LIMIT]}[cut: {len(text)} characters]"
    return encode_basestring(text)


_known = lru_cache(maxsize=1024)(_quoted)
"""Types and names are few, and quoted again and again."""


def _milliseconds(duration_s: object) -> int:
    if not isinstance(duration_s, int | float) or not 0 <= duration_s < 2**50:  # NaN is neither
        return 0
    return int(duration_s * 1000)


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return format_time(datetime.fromtimestamp(seconds, UTC))[:19]


def _timestamp(ts: float) -> str:
    seconds = int(ts)
    return f"{_second(seconds)}.{int((ts - seconds) * 1_000_000):06d}+00:00"
