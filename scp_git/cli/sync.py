"""``scp-git sync``, ``push``, ``pull`` and ``status``: what went which way, ref by ref, and what waits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from scp_git.cli import progress
from scp_git.cli.place import opened
from scp_git.cli.report import print_json
from scp_git.cli.terminal import complain, emit, neutralise, on_terminal, print_rows

if TYPE_CHECKING:
    from scp_git.sync import Counts, SyncReport, SyncStatus

REFUSED = 4
NO_REMOTE = 1
_MAX_NAMED = 5
_HEADER = ("ref", "pulled", "pushed", "words of the remote")

_remote = click.argument("remote", metavar="[REMOTE]", default="origin")
_json = click.option("--json", "as_json", is_flag=True, help="One JSON document, ASCII, nothing cut.")
_publish = click.option(
    "--publish-commits",
    is_flag=True,
    help="Push the tags that wait, too, with the commits that they pin and all that those stand on.",
)


@click.command()
@_remote
@_publish
@_json
@click.pass_obj
def sync(path: str | None, remote: str, publish_commits: bool, as_json: bool) -> int:
    """Pull, then push: afterwards REMOTE (default: origin) and this repository have the same.

    It cannot conflict, and it never forces anything. Exit code 4: the remote refused something.
    """
    with opened(path) as store, progress.shown() as on_progress:
        report = store.sync(remote, publish_commits=publish_commits, on_progress=on_progress)
    return _report(report, as_json)


@click.command()
@_remote
@_publish
@_json
@click.pass_obj
def push(path: str | None, remote: str, publish_commits: bool, as_json: bool) -> int:
    """Merge what REMOTE (default: origin) has and send it what it lacks."""
    with opened(path) as store, progress.shown() as on_progress:
        report = store.push(remote, publish_commits=publish_commits, on_progress=on_progress)
    return _report(report, as_json)


@click.command()
@_remote
@_json
@click.pass_obj
def pull(path: str | None, remote: str, as_json: bool) -> int:
    """Merge what REMOTE (default: origin) has; nothing is sent."""
    with opened(path) as store, progress.shown() as on_progress:
        report = store.pull(remote, on_progress=on_progress)
    return _report(report, as_json)


def _report(report: SyncReport, as_json: bool) -> int:
    from scp_git.sync import RefState

    if as_json:
        print_json(report.model_dump(mode="json"))
    elif on_terminal():
        _tell(report)
    else:
        _list(report)
    states = {result.state for result in (*report.pulled, *report.pushed)}
    if RefState.NO_REMOTE in states:
        return _no_remote(report.remote)
    if RefState.REJECTED in states:
        complain(f"{report.remote} did not take everything; nothing is lost, it goes with the next push")
        return REFUSED
    return 0


def _no_remote(remote: str) -> int:
    complain(f"there is no remote {remote!r}; add one with: git remote add {remote} URL")
    return NO_REMOTE


# ---------------------------------------------------------------- for people


def _tell(report: SyncReport) -> None:
    for what, counts in (("received", report.received), ("sent", report.sent)):
        if counts:
            emit(f"{what} {_counted(counts)}\n")
    print_rows(_HEADER, _rows(report), optional=("words of the remote",))
    _tell_waiting("wait", [(each.run_id, each.commit) for each in report.waiting], _WAITING)
    for each in report.skipped:
        what = "unreadable, kept" if each.kept else "left out"
        emit(neutralise(f"{what}: {each.path or each.ref}: {each.reason}") + "\n")
    for new, old in report.renamed.items():
        emit(f"{new} is a run that came in under the id {old} of another run\n")


def _tell_waiting(verb: str, runs: Sequence[tuple[str, str]], why: str) -> None:
    if runs:
        emit(f"{_plural(len(runs), 'tag')} {verb if len(runs) > 1 else verb + 's'}: {why}\n")
        for run_id, commit in runs[:_MAX_NAMED]:
            emit(f"  {run_id}  {commit[:10]}\n")
        if len(runs) > _MAX_NAMED:
            emit(f"  ... and {len(runs) - _MAX_NAMED} more\n")


_WAITING = "the remote has not got the commits yet; push their branch, or use --publish-commits"
_UNTAGGED = "the commits are not here yet; they come with git fetch"


def _counted(counts: Counts) -> str:
    named = ((counts.runs, "run"), (counts.messages, "message"), (counts.traces, "trace"))
    return ", ".join(_plural(count, name) for count, name in named if count) or "nothing"


def _plural(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


# ---------------------------------------------------------------- for programs


def _rows(report: SyncReport) -> list[list[str]]:
    pulled = {result.ref: result for result in report.pulled}
    pushed = {result.ref: result for result in report.pushed}
    return [
        [
            ref,
            pulled[ref].state if ref in pulled else "",
            pushed[ref].state if ref in pushed else "",
            pushed[ref].detail if ref in pushed else "",
        ]
        for ref in {**pulled, **pushed}
    ]


def _list(report: SyncReport) -> None:
    print_rows((), (("ref", *row) for row in _rows(report)))
    print_rows((), (_count_row(name, getattr(report, name)) for name in ("received", "sent")))
    print_rows((), (("waiting", each.run_id, each.commit) for each in report.waiting))
    print_rows((), _skipped_rows(report))
    print_rows((), (("renamed", new, old) for new, old in report.renamed.items()))


def _count_row(name: str, counts: Counts) -> tuple[str, ...]:
    return (name, str(counts.runs), str(counts.messages), str(counts.traces))


def _skipped_rows(report: SyncReport) -> Iterable[tuple[str, ...]]:
    for each in report.skipped:
        yield ("kept" if each.kept else "skipped", each.ref, each.path, each.reason)


# ---------------------------------------------------------------- status


@click.command()
@_remote
@click.option("--fetch", is_flag=True, help="Ask the remote now. Without it nobody is asked.")
@_json
@click.pass_obj
def status(path: str | None, remote: str, fetch: bool, as_json: bool) -> int:
    """How far this repository and REMOTE (default: origin) are apart, and what waits.

    The remote is taken to be as it was last seen. Nothing is merged.
    """
    with opened(path) as store:
        found = store.sync_status(remote, fetch=fetch)
    if found is None:
        return _no_remote(remote)
    if as_json:
        print_json(found.model_dump(mode="json"))
    elif on_terminal():
        _tell_status(found)
    else:
        _list_status(found)
    return 0


def _tell_status(found: SyncStatus) -> None:
    when = "now" if found.asked else "when last seen (--fetch asks it)"
    emit(neutralise(f"{found.remote}  {found.url}") + "\n")
    if not found.known:
        emit(f"nothing of the ledger was there {when}\n")
    elif found.in_step:
        emit(f"in step with it, as it was {when}\n")
    else:
        emit(f"it differs, as it was {when}\n")
    if not found.in_step:
        emit(f"  ahead by   {_counted(found.ahead)}\n  behind by  {_counted(found.behind)}\n")
        if not found.ahead and not found.behind:
            emit("  the rest are edits and deletions\n")
    _tell_waiting("wait", [(each.run_id, each.commit) for each in found.waiting], _WAITING)
    _tell_waiting("wait", [(each.run_id, each.commit) for each in found.untagged], _UNTAGGED)
    if found.deferred:
        emit(f"{_plural(len(found.deferred), 'run')} without a tag, until the first commit\n")


def _list_status(found: SyncStatus) -> None:
    print_rows((), (("remote", found.remote, found.url), ("in step", "yes" if found.in_step else "no")))
    print_rows((), (_count_row(name, getattr(found, name)) for name in ("ahead", "behind")))
    print_rows((), (("waiting", each.run_id, each.commit) for each in found.waiting))
    print_rows((), (("untagged", each.run_id, each.commit) for each in found.untagged))
    print_rows((), (("deferred", run_id) for run_id in found.deferred))
