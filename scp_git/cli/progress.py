"""The progress of a transfer on standard error, where a person reads it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scp_git.git.transfer import Progress

_UNITS = ("B", "kB", "MB", "GB")


@contextmanager
def shown() -> Iterator[Callable[[Progress], None] | None]:
    """What to call with each step; ``None`` where standard error is no terminal. Then the bar goes."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("connecting", total=None, done="")

        def step(progress: Progress) -> None:
            bar.update(
                task,
                description="sending" if progress.sending else "receiving",
                total=progress.total_objects or None,
                completed=progress.objects,
                done=f"{progress.objects}/{progress.total_objects} objects, {size(progress.bytes)}",
            )

        yield step


def size(count: int) -> str:
    """``1.5 MB``."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} B"
