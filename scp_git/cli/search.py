"""``scp-git search`` and ``scp-git stats``: finding records by their words, and how much there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from scp_git.cli import report
from scp_git.cli.place import opened
from scp_git.cli.report import short_time
from scp_git.cli.terminal import on_terminal, print_rows

if TYPE_CHECKING:
    from scp_git.index.stats import LedgerStats
    from scp_git.models import SearchHit

_KINDS = click.Choice(["run", "message", "trace", "thread"])
_COUNT = click.IntRange(min=1)
_HEADER = ("kind", "id", "time (UTC)", "user", "run", "thread", "title", "text")
_OPTIONAL = ("run", "thread", "user", "time (UTC)", "title")
_BAR = 40


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, required=True)
@click.option("--kind", "kinds", type=_KINDS, multiple=True, help="Only such records; may be repeated.")
@click.option(
    "-n", "count", metavar="N", type=click.IntRange(min=1), default=20, show_default=True, help="At most N."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document, ASCII, nothing cut.")
@click.pass_obj
def search(
    path: str | None, words: tuple[str, ...], kinds: tuple[Any, ...], count: int, as_json: bool
) -> None:
    """Find runs, messages, traces and threads that hold all WORDS, newest first.

    Quoted words must occur in a row: scp-git search '"disk full"'. A word with a * at its end stands for
    all that begin so. Encrypted messages are not found.
    """
    with opened(path) as store:
        hits = store.search(" ".join(words), kinds=kinds or None, n=count)
    if as_json:
        report.print_json([hit.model_dump() for hit in hits])
    else:
        person = on_terminal()
        print_rows(_HEADER, [_row(hit, person=person) for hit in hits], optional=_OPTIONAL)


def _row(hit: SearchHit, *, person: bool) -> list[str]:
    time = short_time(hit.time) if person else hit.time
    return [hit.kind, hit.id, time, hit.user, hit.run_id or "", hit.thread_id or "", hit.title, hit.snippet]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def stats(path: str | None, as_json: bool) -> None:
    """Count what there is, by month, and say how much room it takes."""
    with opened(path) as store:
        found = store.stats()
    if as_json:
        report.print_json(asdict(found))
    elif on_terminal():
        report.print_fields(list(_fields(found)))
    else:
        print_rows((), _plain_fields(found))


def _fields(found: LedgerStats) -> Iterator[tuple[str, str]]:
    for name, value in asdict(found).items():
        label = name.replace("_", " ")
        if name == "months":
            most = max(value.values(), default=0)
            for month, count in value.items():
                yield label, f"{month}  {count:>9}  {'#' * max(round(_BAR * count / most), 1)}"
        elif isinstance(value, dict):
            yield label, f"{_size(value['bytes'])} in {value['files']} files"
        else:
            yield label, str(value)


def _plain_fields(found: LedgerStats) -> Iterator[tuple[str, str]]:
    for name, value in asdict(found).items():
        for key, number in value.items() if isinstance(value, dict) else ():
            yield f"{name}.{key}", str(number)
        if not isinstance(value, dict):
            yield name, str(value)


def _size(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
