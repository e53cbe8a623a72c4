"""What is certainly valid, told without the model, and certainly spelled alike, written without ``json``.

Of a hundred thousand records nearly all are. ``False`` decides nothing: the model does, then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import to_json

from scp_git.codec import check_json, dump_compact, dump_pretty

# Every time that matches exists, and is spelled as it is stored.
_STORED_TIME = re.compile(
    r"[1-9]\d{3}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])T(?:[01]\d|2[0-3])(?::[0-5]\d){2}\.\d{6}\+00:00",
    re.ASCII,
)


def _is_text(value: Any) -> bool:
    return type(value) is str and value.isascii()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_object(value: Any) -> bool:
    if type(value) is not dict:
        return False
    try:
        check_json(value)
    except ValueError:
        return False
    return True


def _is_stored_time(value: Any) -> bool:
    return type(value) is str and _STORED_TIME.fullmatch(value) is not None


_Check = Callable[[Any], object]

_RUN_TEXTS = frozenset("run_id type subtype user code_ref environment summary".split())
_RUN: dict[str, _Check] = {
    **dict.fromkeys(("started_at", "ended_at"), _is_stored_time),
    "status": lambda value: type(value) is str and value in ("ok", "failed", "partial"),
    "duration_ms": _is_count,
    "modules_affected": lambda value: type(value) is list and all(map(_is_text, value)),
    "metadata": _is_object,
}
_EVENT_TEXTS = frozenset("type adapter action_id target status".split())
_EVENT: dict[str, _Check] = {
    **dict.fromkeys(("seq", "duration_ms"), _is_count),
    "ts": lambda value: value == "" or _is_stored_time(value),
    "detail": _is_object,
}


def surely_run(fields: Mapping[str, Any]) -> bool:
    """Whether ``Run`` would take these fields, which are all of its own, and change none of them."""
    complete = len(fields) == len(_RUN_TEXTS) + len(_RUN) and bool(fields.get("run_id"))
    return complete and _passes(_RUN_TEXTS, _RUN, fields)


def surely_event(fields: Mapping[str, Any]) -> bool:
    """Whether ``RunEvent`` would take these fields, some of its own, and change none of them."""
    return _passes(_EVENT_TEXTS, _EVENT, fields)


def _passes(texts: frozenset[str], checks: Mapping[str, _Check], fields: Mapping[str, Any]) -> bool:
    for name, value in fields.items():
        if name in texts:  # _is_text, without a call for each
            if type(value) is not str or not value.isascii():
                return False
        else:
            check = checks.get(name)
            if check is None or not check(value):
                return False
    return True


# ---------------------------------------------------------------- spelling

_PLAIN = frozenset({str, int, bool, type(None)})


def is_plain(value: object) -> bool:
    """Whether pydantic's encoder spells this valid JSON value as ``json`` does: it has no number with a
    fraction, and nothing that is merely derived from a builtin type.
    """
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str or (type(item) not in _PLAIN and not is_plain(item)):
                return False
        return True
    if type(value) is list:
        return all(type(item) in _PLAIN or is_plain(item) for item in value)
    return type(value) in _PLAIN


def line_of(value: object) -> bytes:
    """``codec.dump_compact`` and a newline, some times quicker for what is plain."""
    if is_plain(value):
        return to_json(value) + b"\n"
    return f"{dump_compact(value)}\n".encode()


def file_of(value: object) -> bytes:
    """``codec.dump_pretty``, some times quicker for what is plain."""
    return to_json(value, indent=2) + b"\n" if is_plain(value) else dump_pretty(value)
