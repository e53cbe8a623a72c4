"""Recordings that dead processes left behind: from a spool back to a trace."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from scp_git.codec import JsonObject
from scp_git.git.handle import translated
from scp_git.ids import format_time
from scp_git.models import SessionTrace
from scp_git.trace.operations import SaveTrace
from scp_git.trace.recording import RUNS_MAX
from scp_git.trace.spool import SUFFIX, SpoolFile, event_parts, read_header, spools
from scp_git.trace.summary import Tally, kind_of

log = logging.getLogger(__name__)

_FROM_HEADER = ("name", "classification", "started_at", "user", "code_ref")


def left_behind(common_dir: Path) -> Iterator[SpoolFile]:
    """The spools that are not alive, each held by us when it is given."""
    for path in spools(common_dir):
        with translated("looking at a recording"):
            spool = SpoolFile.take(path)
        if spool is not None:
            yield spool


def read_left(spool: SpoolFile) -> SaveTrace | None:
    """What saves the trace of a spool that is held; ``None`` if there is nothing in it.

    Its events are all that are whole; what could not be read shows as a gap. ``ended_at``
    stays empty unless the recording was stopped.
    """
    path, found = spool.path, _Found()
    header = read_header(path)
    parts = list(event_parts(path, checked=True, seen=found.see))
    if header is None and not parts:
        return None
    trace = _trace(path, header or {}, found)
    return SaveTrace.prepare(trace, parts)


class _Found:
    """What the lines of a spool say beside their being events."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.runs: dict[str, None] = {}
        self.stopped: object = None

    def see(self, record: JsonObject) -> None:
        if "seq" in record:
            ts, duration_ms = str(record.get("ts", "")), record.get("duration_ms", 0)
            kind = kind_of(record["type"], record.get("result", ""))
            self.tally.add(kind, ts or self.tally.last, duration_ms)
        elif isinstance(record.get("run"), str) and len(self.runs) < RUNS_MAX:
            self.runs[record["run"]] = None
        elif "stopped" in record:
            self.stopped = record["stopped"]


def _trace(path: Path, header: JsonObject, found: _Found) -> SessionTrace:
    """The trace without its events, as far as it can be told."""
    first = found.tally.first
    known = {
        "trace_id": path.name.removesuffix(SUFFIX),
        "started_at": first[0] if first and first[0] else _changed(path),
        "auto_summary": found.tally.text(),
        "audit_refs": list(found.runs),
    }
    given = {name: header[name] for name in _FROM_HEADER if name in header}
    try:
        return SessionTrace.model_validate({**known, **given, "ended_at": found.stopped})
    except ValidationError:
        log.warning("the header of recording %s is damaged", known["trace_id"])
        return SessionTrace.model_validate(known)


def _changed(path: Path) -> str:
    with translated("looking at a recording"):
        return format_time(datetime.fromtimestamp(path.stat().st_mtime, UTC))
