"""A run that is being made: what ``track_run`` yields."""

from __future__ import annotations

import time
from typing import Any

from scp_git.ids import clock, format_time, now_iso
from scp_git.models import Run, Status

_SUMMARY_MAX = 500


class TrackedRun:
    """The work in progress; set ``status``, ``summary`` and the rest as it goes on.

    ``code_ref`` is HEAD when the block began.
    """

    def __init__(
        self,
        type: str,
        *,
        subtype: str = "",
        user: str = "",
        environment: str = "",
        summary: str = "",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        made = Run(type=type, subtype=subtype, user=user, environment=environment)
        self.run_id = made.run_id
        self.status: Status = "ok"
        self.summary = summary
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.modules_affected: list[str] = []
        self.code_ref = ""
        self._made = made
        self._started = time.monotonic()
        self._events: list[dict[str, Any]] = []
        self._finished: Run | None = None

    def event(self, type: str, **fields: Any) -> None:
        """Add one event, with the present time; ``fields`` are stored as given."""
        self._events.append({"seq": len(self._events) + 1, "ts": now_iso(), "type": type, **fields})

    def failed(self, exc: BaseException, *, cancelled: bool = False) -> None:
        """The block raised: the run failed, and its summary is the exception's."""
        self.status = "failed"
        self.summary = "cancelled" if cancelled else _one_line(_described(exc))

    def finish(self) -> tuple[Run, list[dict[str, Any]]]:
        """The run and its events as they are to be recorded; the same each time it is asked."""
        if self._finished is None:
            self._finished = self._made.model_copy(
                update={
                    "status": self.status,
                    "summary": self.summary,
                    "metadata": self.metadata,
                    "modules_affected": self.modules_affected,
                    "code_ref": self.code_ref,
                    "ended_at": format_time(clock.now()),
                    "duration_ms": int((time.monotonic() - self._started) * 1000),
                }
            )
        return self._finished, self._events


def _described(exc: BaseException) -> str:
    name = exc.__class__.__name__
    try:
        return f"{name}: {exc}".rstrip(": ")
    except Exception:  # its __str__ may do anything, and must not hide the exception itself
        return name


def _one_line(text: str) -> str:
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    return text if len(text) <= _SUMMARY_MAX else text[: _SUMMARY_MAX - 3] + "..."
