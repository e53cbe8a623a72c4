"""``scp-git ledger``: list, show, record, delete and prune runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import click

from scp_git.cli import report
from scp_git.cli.lazy import LazyGroup
from scp_git.cli.place import here, opened
from scp_git.cli.terminal import complain, confirmed, emit

_STATUSES = click.Choice(["ok", "failed", "partial"])
_JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="One JSON document, ASCII, nothing cut.")
_COUNT = click.IntRange(min=1)
_DAYS_MAX = 36_500


def _time(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    from scp_git.ids import format_time, parse_time

    try:
        return None if value is None else format_time(parse_time(value))
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None


def _json_object(context: click.Context, option: click.Parameter, value: str | None) -> dict[str, Any]:
    from scp_git.codec import load_object

    try:
        return {} if value is None else load_object(value.encode("utf-8", "surrogateescape"))
    except ValueError as exc:
        raise click.BadParameter(f"a JSON object is wanted: {exc}") from None


_COMMANDS = {
    "archive": "scp_git.cli.transfer:archive",
    "export": "scp_git.cli.transfer:export_runs",
    "import": "scp_git.cli.transfer:import_runs",
}


@click.group(cls=LazyGroup, homes=_COMMANDS)
def ledger() -> None:
    """The runs: what was executed, and how it ended."""


@ledger.command("list")
@click.option("-n", "count", metavar="N", type=_COUNT, default=20, show_default=True, help="At most N.")
@click.option("--type", "type_", help="Only runs of this type.")
@click.option("--status", type=_STATUSES, help="Only runs that ended like this.")
@click.option("--user", help="Only runs of this user.")
@click.option("--environment", help="Only runs in this environment.")
@click.option("--since", metavar="TIME", callback=_time, help="Started at TIME (ISO 8601; UTC) or later.")
@click.option("--until", metavar="TIME", callback=_time, help="Started before TIME.")
@click.option("--before", metavar="ID", help="Only runs older than this one: the next page.")
@_JSON_OPTION
@click.pass_obj
def list_runs(path: str | None, /, count: int, type_: str | None, as_json: bool, **filters: Any) -> None:
    """List runs, newest first.

    On a terminal a table; else one line per run with TAB between id, start, status, type, subtype, user,
    environment, milliseconds and summary.
    """
    from scp_git.ids import check_id
    from scp_git.index.listing import list_at_once
    from scp_git.ledger.filters import RunFilter

    before = filters.pop("before")
    if before is not None:
        check_id("run", before)
    if not as_json:  # all that a table shows is in the index, which needs neither libgit2 nor pydantic
        listed = list_at_once(here(path), n=count, before=before, only=RunFilter(type=type_, **filters))
        if listed is not None:
            report.print_runs(listed)
            return
    with opened(path) as store:
        runs = store.list_runs(n=count, type=type_, before=before, **filters)
    if as_json:
        report.print_json([run.model_dump() for run in runs])
    else:
        report.print_runs(runs)


@ledger.command()
@click.argument("run_id", metavar="ID")
@_JSON_OPTION
@click.pass_obj
def show(path: str | None, run_id: str, as_json: bool) -> None:
    """Show one run with its events."""
    from scp_git.errors import NotFound

    with opened(path) as store:
        run = store.get_run(run_id)
        if run is None:
            raise NotFound("run", run_id)
        events = store.get_run_events(run_id)
    report.print_run(run, events, as_json=as_json)


@ledger.command()
@click.option("--type", "type", required=True, help="What kind of run it was.")
@click.option("--subtype", help="Finer than the type.")
@click.option("--status", type=_STATUSES, help="Default: ok.")
@click.option("--user", help="Default: the git identity.")
@click.option("--environment", help="Where it acted, e.g. production.")
@click.option("--summary", help="What happened, in a line.")
@click.option("--module", "modules_affected", multiple=True, help="A module it changed; may be repeated.")
@click.option("--metadata", metavar="JSON", callback=_json_object, help="A JSON object.")
@click.option(
    "--events", metavar="FILE", type=click.File("rb"), help="Events, a JSON object a line; - is stdin."
)
@click.option("--run-id", metavar="ID", help="Default: made from the start time and the type.")
@click.option("--started-at", metavar="TIME", help="Default: now.")
@click.option("--ended-at", metavar="TIME", help="Default: the time of recording.")
@click.option("--duration-ms", metavar="MS", type=click.IntRange(min=0), help="Default: from start to end.")
@click.pass_obj
def record(path: str | None, /, events: IO[bytes] | None, **fields: Any) -> None:
    """Record one run and print its id, once it is stored for good.

    The same id with the same content may be recorded again; other content is refused.
    """
    from scp_git.models import Run

    run = Run(**{name: _plain(value) for name, value in fields.items() if value not in (None, (), {})})
    parsed = None if events is None else list(_parse_events(events))
    with opened(path) as store:
        emit(store.record_run(run, parsed) + "\n")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _parse_events(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    from scp_git.codec import load_object

    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield load_object(line)
            except ValueError as exc:
                raise click.UsageError(f"events, line {number}: {exc}") from None


@ledger.command()
@click.argument("run_ids", metavar="ID...", nargs=-1, required=True)
@click.pass_obj
def delete(path: str | None, run_ids: tuple[str, ...]) -> int:
    """Delete runs and print the ids of those deleted.

    Their tags, events and messages go as well, in every clone that pulls this. The ids cannot be used again.
    What git's history holds stays there: to undo the leak of a secret, change the secret.
    """
    from scp_git.errors import NotFound

    code = 0
    with opened(path) as store:
        for run_id in run_ids:
            if store.delete_run(run_id):
                emit(run_id + "\n")
            else:
                complain(str(NotFound("run", run_id)))
                code = 3
    return code


@ledger.command()
@click.option(
    "--older-than-days",
    metavar="N",
    type=click.FloatRange(0, _DAYS_MAX),
    required=True,
    help="Runs that started more than N days ago.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def prune(path: str | None, older_than_days: float, yes: bool) -> int:
    """Delete all runs older than N days and print how many; asks first if stdin is a terminal."""
    # NaN passes every range check.
    if older_than_days != older_than_days:
        raise click.BadParameter("a number of days is wanted", param_hint="--older-than-days")
    with opened(path) as store:
        if not yes and not confirmed(f"Delete all runs older than {older_than_days:g} days?"):
            complain("nothing was deleted")
            return 1
        emit(f"{store.prune_runs(older_than_days=older_than_days)}\n")
    return 0
