"""What is certainly valid, told without pydantic: of a hundred thousand records nearly all are.

``False`` decides nothing: the model does, then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from scp_git.codec import check_json

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


_Check = Callable[[Any], object]


def _is_stored_time(value: Any) -> bool:
    return type(value) is str and _STORED_TIME.fullmatch(value) is not None


_RUN: dict[str, _Check] = {
    **dict.fromkeys("run_id type subtype user code_ref environment summary".split(), _is_text),
    **dict.fromkeys(("started_at", "ended_at"), _is_stored_time),
    "status": lambda value: type(value) is str and value in ("ok", "failed", "partial"),
    "duration_ms": _is_count,
    "modules_affected": lambda value: type(value) is list and all(map(_is_text, value)),
    "metadata": _is_object,
}
_EVENT: dict[str, _Check] = {
    **dict.fromkeys("type adapter action_id target status".split(), _is_text),
    **dict.fromkeys(("seq", "duration_ms"), _is_count),
    "ts": lambda value: value == "" or _is_stored_time(value),
    "detail": _is_object,
}


def surely_run(fields: Mapping[str, Any]) -> bool:
    """Whether ``Run`` would take these fields, which are all of its own, and change none of them."""
    return len(fields) == len(_RUN) and bool(fields.get("run_id")) and _passes(_RUN, fields)


def surely_event(fields: Mapping[str, Any]) -> bool:
    """Whether ``RunEvent`` would take these fields, some of its own, and change none of them."""
    return _passes(_EVENT, fields)


def _passes(checks: Mapping[str, _Check], fields: Mapping[str, Any]) -> bool:
    for name, value in fields.items():
        check = checks.get(name)
        if check is None or not check(value):
            return False
    return True
