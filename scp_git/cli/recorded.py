"""A command as without us, and a record of it afterwards.

Before the command starts nothing of the ledger is imported, opened or looked for;
whatever fails on our side is one line on stderr.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from scp_git.cli.child import Outcome, SignalKeeper, run_command
from scp_git.cli.masking import Secrets, mask_argv, readable
from scp_git.cli.place import find_root, open_store, within
from scp_git.cli.terminal import complain, neutralise

if TYPE_CHECKING:
    from scp_git.cli.streams import Streams
    from scp_git.cli.tail import Tail
    from scp_git.models import Run

_SUMMARY_CHARS = 500
_COMMAND_CHARS = 64 * 1024


@dataclass(frozen=True, slots=True)
class Labels:
    """What the caller chose to store; empty means the default."""

    type: str
    subtype: str = ""
    environment: str = ""
    summary: str = ""


def run_recorded(command: Sequence[str], labels: Labels, path: str | None, tail_lines: int | None) -> int:
    """Run ``command`` and record it in the repository that holds ``path``; its exit code, come what may."""
    cwd = _current_folder()
    with SignalKeeper() as keeper:
        record = _prepare(command, labels, tail_lines)
        outcome = run_command(command, keeper, record.streams if record is not None else None)
        if outcome.problem:
            complain(f"{command[0]}: {outcome.problem}")
        if record is not None:
            _try_to_store(record, outcome, path, cwd)
    return outcome.exit_code


@dataclass(frozen=True, slots=True)
class _Record:
    """What is known of a run before it starts."""

    labels: Labels
    masked: list[str]
    secrets: Secrets
    tail: Tail | None = None
    streams: Streams | None = None


def _prepare(command: Sequence[str], labels: Labels, tail_lines: int | None) -> _Record | None:
    try:
        masked, secrets = mask_argv(command)
    except Exception as exc:
        complain(f"the run will not be recorded: {type(exc).__name__} while masking secrets")
        return None
    if tail_lines is None:
        return _Record(labels, masked, secrets)
    from scp_git.cli.streams import Streams
    from scp_git.cli.tail import Tail

    tail = Tail(tail_lines, secrets)
    try:
        return _Record(labels, masked, secrets, tail, Streams(tail))
    except OSError as exc:
        complain(f"the output will not be stored: {exc.strerror}")
        return _Record(labels, masked, secrets)


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        # Removed under our feet; the command may not mind.
        return os.environ.get("PWD", "/")


def _try_to_store(record: _Record, outcome: Outcome, path: str | None, cwd: str) -> None:
    try:
        _store(record, outcome, find_root(path, cwd), cwd)
    except KeyboardInterrupt:
        complain("the run was not recorded: interrupted")
        # Not an orderly exit, which would wait for the writer we were told not to wait for.
        os._exit(outcome.exit_code)
    except Exception as exc:
        complain(f"the run was not recorded: {record.secrets.redact(_reason(exc))}")


def _reason(exc: Exception) -> str:
    from scp_git.cli.entry import explain

    explained = explain(exc)
    return explained[1] if explained is not None else f"{type(exc).__name__}: {exc}"


def _store(record: _Record, outcome: Outcome, root: str, cwd: str) -> None:
    run = _as_run(record, outcome, _metadata(record, outcome, within(cwd, root)))
    # Quiet, as stderr is the command's: at most one line there is ours.
    store = open_store(root, quiet=True)
    store.record_run(run)
    store.close()


def _metadata(record: _Record, outcome: Outcome, folder: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "command": _bounded(record.masked),
        "exit_code": outcome.exit_code,
        "cwd": record.secrets.redact(readable(folder)),
        "host": os.uname().nodename,
    }
    if outcome.signal:
        metadata["signal"] = outcome.signal
    if record.tail is not None:
        metadata["tail"] = record.tail.lines()
    return metadata


def _as_run(record: _Record, outcome: Outcome, metadata: dict[str, Any]) -> Run:
    from scp_git.models import Run

    labels, secrets = record.labels, record.secrets
    command_line = neutralise(shlex.join(record.masked))
    return Run(
        type=readable(labels.type),
        subtype=secrets.redact(readable(labels.subtype)) or os.path.basename(record.masked[0]),
        status="ok" if outcome.exit_code == 0 else "failed",
        environment=readable(labels.environment),
        summary=secrets.redact(readable(labels.summary)) or _shortened(command_line, _SUMMARY_CHARS),
        started_at=outcome.started_at.isoformat(),
        ended_at=(outcome.started_at + timedelta(milliseconds=outcome.duration_ms)).isoformat(),
        duration_ms=outcome.duration_ms,
        metadata=metadata,
    )


def _bounded(masked: Sequence[str]) -> list[str]:
    """The arguments up to 64 KiB of text; a last entry says what is missing."""
    kept: list[str] = []
    room = _COMMAND_CHARS
    for arg in masked:
        if room <= 0:
            return [*kept, f"... and {len(masked) - len(kept)} more arguments"]
        kept.append(_shortened(arg, max(room, 2)))
        room -= len(arg)
    return kept


def _shortened(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"
