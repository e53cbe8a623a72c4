"""Which runs a list shows. Imports no models, as a command that only lists must start quickly."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from scp_git.ids import format_time, parse_time

if TYPE_CHECKING:
    from scp_git.models import Run


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs a list shows; an empty field does not filter. ``since <= started_at < until``."""

    type: str | None = None
    status: str | None = None
    user: str | None = None
    environment: str | None = None
    since: str | None = None
    until: str | None = None

    @classmethod
    def build(
        cls,
        type: str | None,
        status: str | None,
        user: str | None,
        environment: str | None,
        since: str | datetime | None,
        until: str | datetime | None,
    ) -> RunFilter:
        """Times may be any ISO 8601 spelling or a ``datetime``; raises ``ValueError`` for others."""
        return cls(type, status, user, environment, _time(since), _time(until))

    def accepts(self, run: Run) -> bool:
        wanted = ((self.type, run.type), (self.status, run.status), (self.user, run.user))
        return (
            all(value is None or value == found for value, found in wanted)
            and (self.environment is None or self.environment == run.environment)
            and (self.since is None or self.since <= run.started_at)
            and (self.until is None or run.started_at < self.until)
        )


def _time(value: str | datetime | None) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | datetime):
        raise TypeError(f"a time must be text or a datetime, not {type(value).__name__}")
    return format_time(value if isinstance(value, datetime) else parse_time(value))
