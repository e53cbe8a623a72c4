"""Ids and times: the one rule for all ids, a clock that never repeats, and their spelling.

Ids become paths and ref names, so one rule holds for all of them, whoever made
them (``check_id``). Ids of ours are ``<kind>_<UTC time>_[<label>_]<suffix>``.
"""

from __future__ import annotations

import os
import re
import secrets
import string
import threading
from datetime import UTC, datetime, timedelta

from scp_git.errors import InvalidId

_ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9]|conin\$|conout\$)(?:\..*)?", re.IGNORECASE)
_ALPHABET = string.ascii_lowercase + string.digits
_LABEL_MAX = 30


def is_valid_id(value: object) -> bool:
    """Whether ``value`` may be used as an id, hence as a path and a ref name."""
    return (
        isinstance(value, str)
        and _ALLOWED.fullmatch(value) is not None
        and ".." not in value
        and not value.endswith(".")
        and not value.lower().endswith(".lock")
        and _DEVICE.fullmatch(value) is None
    )


def check_id(kind: str, value: object) -> str:
    """Return ``value``, or raise ``InvalidId`` if it breaks the rule."""
    if isinstance(value, str) and is_valid_id(value):
        return value
    raise InvalidId(kind, value)


# ---------------------------------------------------------------- time


def format_time(moment: datetime) -> str:
    """``2026-02-17T20:45:00.000000+00:00``; a time without zone is taken as UTC.

    Raises ``ValueError`` where the UTC value leaves the years 1 to 9999.
    """
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC).isoformat(timespec="microseconds")
    except OverflowError as exc:
        raise ValueError(f"out of range in UTC: {moment}") from exc


def parse_time(text: str) -> datetime:
    """Read an ISO 8601 time; ``Z``, any offset or no zone (UTC) are accepted.

    Raises ``ValueError`` for anything else, also where the UTC value leaves years 1 to 9999.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise ValueError(f"not an ISO 8601 time: {text[:60]!r}") from exc


class Clock:
    """The wall clock in microseconds, made strictly increasing within the process.

    Two runs built one after the other sort in that order, also when the system
    clock stands still or is set back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = datetime.min.replace(tzinfo=UTC)

    def now(self) -> datetime:
        with self._lock:
            moment = datetime.now(UTC)
            if moment <= self._last:
                moment = self._last + timedelta(microseconds=1)
            self._last = moment
            return moment


clock = Clock()


def _after_fork() -> None:
    """In a child: a lock that another thread of the parent held would stay held for ever."""
    clock._lock = threading.Lock()
    _suffixes._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def now_iso() -> str:
    """The present time as it is stored; never the same twice in one process."""
    return format_time(clock.now())


# ---------------------------------------------------------------- making ids


class _Suffixes:
    """Four random characters; eight once a process makes a second id of a kind in one second.

    Four of 36 characters collide once in 1 300 pairs of 50 ids; eight never in practice.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._second: dict[str, int] = {}

    def make(self, kind: str) -> str:
        second = int(datetime.now(UTC).timestamp())
        with self._lock:
            width = 8 if self._second.get(kind) == second else 4
            self._second[kind] = second
        return "".join(secrets.choice(_ALPHABET) for _ in range(width))


_suffixes = _Suffixes()


def make_id(kind: str, at: str, label: str | None = None) -> str:
    """``<kind>_<time>_<suffix>``, or with a label ``<kind>_<time>_<label>_<suffix>``.

    ``at`` is a stored time; the label is cut to 30 characters of ``[A-Za-z0-9-]``
    and is ``run`` if nothing is left of it.
    """
    moment = parse_time(at)
    # isoformat, as strftime does not pad years below 1000.
    parts = [kind, moment.isoformat()[:11] + moment.strftime("%H%M%S")]
    if label is not None:
        parts.append(re.sub(r"[^A-Za-z0-9-]", "-", label)[:_LABEL_MAX] or "run")
    return "_".join([*parts, _suffixes.make(kind)])
