"""``scp-git run``: its arguments. What it does is in ``recorded``, imported when it is called."""

from __future__ import annotations

import click

_LINES = click.IntRange(1, 100_000)


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option("--type", "type_", default="command", show_default=True, help="What kind of run this is.")
@click.option("--subtype", default="", help="Default: the name of the command.")
@click.option("--environment", default="", help="Where it acts, e.g. production.")
@click.option("--summary", default="", help="Default: the command line, masked.")
@click.option("--tail", "tail_lines", metavar="N", type=_LINES, help="Store the last N lines of output.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def run(
    path: str | None,
    type_: str,
    subtype: str,
    environment: str,
    summary: str,
    tail_lines: int | None,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND and record how it went.

    COMMAND has stdin, stdout, stderr and the terminal as if called directly, in the current folder, and its
    exit code becomes ours: 128+n when signal n ended it, 127 when it is not found, 126 when it cannot be
    executed. If the ledger fails, a warning on stderr says so and nothing else changes.

    Stored are the command line, exit code, duration, folder and host; output only with --tail. Values of
    arguments that look like passwords, tokens, secrets or keys, and user info in URLs, are replaced by ***.
    """
    from scp_git.cli.recorded import Labels, run_recorded

    return run_recorded(command, Labels(type_, subtype, environment, summary), path, tail_lines)
