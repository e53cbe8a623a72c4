"""``scp-git ledger import``, ``export``, ``archive`` and ``scp-git maintain``: runs by the thousand."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import click

from scp_git.cli.place import find_root, open_store
from scp_git.cli.terminal import complain, emit

if TYPE_CHECKING:
    from scp_git.ledger.importing import ImportReport
    from scp_git.ledger.sources import Imported

_SHOWN = 20
"""So many rejected records are named on stderr."""
_DAYS_MAX = 36_500


@click.command("import")
@click.argument("file", type=click.File("rb"), required=False)
@click.option(
    "--from-git-log", "history", metavar="PATH", help="The commits of the repository at PATH instead."
)
@click.option("--strict", is_flag=True, help="Stop at the first record that cannot be stored.")
@click.pass_obj
def import_runs(path: str | None, file: IO[bytes] | None, history: str | None, strict: bool) -> int:
    """Import runs from FILE (- is stdin), one JSON object a line, and print how many.

    \b
    A line is one of
      {"run": {...}, "events": [...]}    as `ledger export` writes it
      {"type": ..., "started_at": ...}   the fields of a run, its events in "events"
      an entry of the audit.ndjson that the earlier program wrote

    What is there already with the same content is passed over: an import that was interrupted is simply
    repeated. Records that cannot be stored are named on stderr, and the exit code is 1.
    """
    if (file is None) == (history is None):
        raise click.UsageError("either FILE or --from-git-log is wanted")
    from scp_git.ledger.importing import reason
    from scp_git.ledger.sources import read_history, read_lines

    with open_store(find_root(path, os.getcwd())) as store:
        if file is not None:
            items: Iterator[Imported] = read_lines(file)
        else:
            from scp_git.git.log import read_log

            items = read_history(read_log(find_root(history, os.getcwd())))
        with _progress(file) as tell:
            try:
                report = store.import_runs(items, strict=strict, on_progress=tell)
            except ValueError as exc:  # the record that --strict makes fatal
                raise click.ClickException(reason(exc)) from None
    counts = (report.added, report.unchanged, report.rejected_count)
    emit("added {}, unchanged {}, rejected {}\n".format(*counts))
    for rejected in report.rejected[:_SHOWN]:
        complain(
            " ".join(filter(None, (f"record {rejected.position}", rejected.run_id))) + f": {rejected.reason}"
        )
    if report.rejected_count > _SHOWN:
        complain(f"... and {report.rejected_count - _SHOWN} more")
    return 1 if report.rejected_count else 0


@contextmanager
def _progress(file: IO[bytes] | None) -> Iterator[Callable[[ImportReport], None] | None]:
    """A bar on stderr if a person sees it: by bytes where the source has a length, else a count."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

    length = _length(file)
    columns: list[ProgressColumn] = [TextColumn("{task.fields[seen]} runs, {task.fields[rate]}/s")]
    if length:
        columns[:0] = [BarColumn()]
        columns.append(TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=length, seen=0, rate=0)

        def tell(report: ImportReport) -> None:
            elapsed = bar.tasks[0].elapsed or 0
            rate = int(report.seen / elapsed) if elapsed else 0
            done = file.tell() if file is not None and length else 0
            bar.update(task, completed=done, seen=report.seen, rate=rate)

        yield tell


def _length(file: IO[bytes] | None) -> int | None:
    """How long a file is; ``None`` for what is no file, or was not opened at its beginning."""
    try:
        return os.fstat(file.fileno()).st_size if file is not None and file.seekable() else None
    except (OSError, ValueError):
        return None


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False), default="-")
@click.pass_obj
def export_runs(path: str | None, file: str) -> None:
    """Write every run with its events to FILE (default: stdout), one JSON object a line, oldest first.

    `ledger import` reads it. Messages and tags are not part of it: tags are made again from the runs.
    """
    with open_store(find_root(path, os.getcwd())) as store:
        lines = store.export_lines()
        if file == "-":
            for line in lines:
                emit(line.decode())
            return
        try:
            with open(file, "wb") as target:
                for line in lines:
                    target.write(line)
        except OSError as exc:
            raise click.ClickException(f"cannot write {file}: {exc.strerror}") from None


@click.command()
@click.option(
    "--older-than-days",
    metavar="N",
    type=click.FloatRange(0, _DAYS_MAX),
    required=True,
    help="Runs that started more than N days ago.",
)
@click.option("--drop-tags", is_flag=True, help="Remove their tags; `maintain --tags` makes them again.")
@click.pass_obj
def archive(path: str | None, older_than_days: float, drop_tags: bool) -> None:
    """Move runs older than N days to the archive branch and print how many were changed.

    They stay where every command finds them; only the folder .scp-ledger no longer shows them. The oldest
    runs are moved anyway once there are more than scp.hotMax (512).
    """
    if older_than_days != older_than_days:
        raise click.BadParameter("a number of days is wanted", param_hint="--older-than-days")
    with open_store(find_root(path, os.getcwd())) as store:
        emit(f"{store.archive_runs(older_than_days=older_than_days, drop_tags=drop_tags)}\n")


@click.command()
@click.option("--tags", is_flag=True, help="Also make missing tags of runs again, archived ones included.")
@click.pass_obj
def maintain(path: str | None, tags: bool) -> None:
    """Merge packs of ours and pack loose tags of runs, as far as that is worth it, and print what was done.

    Nothing waits for it, and it is never needed: writes do the same in small steps.
    """
    with open_store(find_root(path, os.getcwd())) as store:
        done = store.maintain(tags=tags)
    emit(f"packs merged {done.packs_merged}, tags packed {done.tags_packed}, tags made {done.tags_made}\n")
