"""The way in and out of the process: exit codes, one line per error, no traceback for what a user can cause.

Runs on the main thread. Imports nothing beyond the standard library until a command is known.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scp_git.cli.terminal import complain

if TYPE_CHECKING:
    import click

OK = 0
ERROR = 1
USAGE = 2
NOT_FOUND = 3
BUSY = 5
INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> int:
    """The exit code of one call of ``scp-git`` with ``args`` (default: those of this process)."""
    _reserve_standard_descriptors()
    if not all(map(_is_installed, ("click", "rich"))):
        complain('the command line needs more packages: pip install "scp-git[cli]"')
        return USAGE
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _call(args)
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED


def _call(args: Sequence[str] | None) -> int:
    import click

    from scp_git.cli.app import app

    try:
        result = app.main(args=args, prog_name="scp-git", standalone_mode=False)
    except click.UsageError as exc:
        # By name, as click has it only since 8.2; before, it printed the help itself.
        if type(exc).__name__ == "NoArgsIsHelpError":
            click.echo(exc.format_message(), err=True)
        else:
            complain(exc.format_message().rstrip(".") + _hint(exc))
        return USAGE
    except click.ClickException as exc:
        complain(exc.format_message())
        return exc.exit_code
    except click.Abort:
        complain("interrupted")
        return INTERRUPTED
    except Exception as exc:
        explained = explain(exc)
        if explained is None:
            raise
        code, message = explained
        complain(message)
        return code
    return result if isinstance(result, int) else OK


def explain(exc: Exception) -> tuple[int, str] | None:
    """The exit code and the message for an error of ours; ``None`` means a defect."""
    from scp_git.errors import InvalidId, NotFound, RepositoryBusy, ScpGitError

    if isinstance(exc, ScpGitError):
        for kind, code in ((NotFound, NOT_FOUND), (RepositoryBusy, BUSY), (InvalidId, USAGE)):
            if isinstance(exc, kind):
                return code, exc.message
        return ERROR, exc.message
    # By name, so that a call which never validated anything does not import pydantic.
    if type(exc).__name__ == "ValidationError" and isinstance(exc, ValueError):
        return USAGE, describe_invalid(exc)
    return None


def describe_invalid(exc: ValueError) -> str:
    """The first complaint of a pydantic ``ValidationError``, without the value that caused it."""
    from pydantic import ValidationError

    if not isinstance(exc, ValidationError):
        return str(exc)
    first = exc.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}" if where else reason


def _hint(exc: click.UsageError) -> str:
    return f" (see {exc.ctx.command_path} --help)" if exc.ctx is not None else ""


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _reserve_standard_descriptors() -> None:
    """Descriptors 0 to 2 are open; those that were closed lead nowhere, and a command still gets them closed.

    Else a repository file could be opened as number 1 or 2, and a stray message would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken, which is this one; not inheritable.
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
