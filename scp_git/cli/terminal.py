"""What reaches a terminal: stored text made harmless, quiet when nobody reads, plain when piped.

Imports rich only to print a table on a terminal.
"""

from __future__ import annotations

import os
import select
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_MARKS = frozenset({"Mn", "Me"})
_MAX_MARKS = 8
_MIN_WIDTH = 20
_LAST_COLUMN = 24
_GAP = 2
_STATUS_STYLES = {"ok": "green", "failed": "red", "partial": "yellow"}


def neutralise(text: str, *, keep_newlines: bool = False) -> str:
    """``text`` as one printable line: nothing in it can move a cursor, hide or reorder what is read.

    Escaped as ``\\x1b`` or ``\\u202e`` are the controls (C0, DEL, C1), format characters (bidi, zero width,
    tags), line separators and lone surrogates; of a pile of combining marks eight stay.
    With ``keep_newlines`` the newline alone passes.
    """
    if text.isascii() and text.isprintable():
        return text
    out: list[str] = []
    marks = 0
    for char in text:
        category = unicodedata.category(char)
        marks = marks + 1 if category in _MARKS else 0
        if marks > _MAX_MARKS:
            continue
        harmless = category not in _ESCAPED_CATEGORIES or (char == "\n" and keep_newlines)
        out.append(char if harmless else _escape(char))
    return "".join(out)


def _escape(char: str) -> str:
    if char in _NAMED:
        return _NAMED[char]
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


# ---------------------------------------------------------------- writing


def complain(message: str) -> None:
    """One line on standard error, if there is one to write to."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(f"scp-git: {neutralise(message.strip())}\n")
            sys.stderr.flush()
    except (OSError, ValueError):
        pass


def emit(text: str) -> None:
    """Write to standard output; a closed output or a reader that went away is no error.

    Raises ``click.ClickException`` for any other failure, such as a full disk.
    """
    if sys.stdout is None or not text:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError as exc:
        import click

        _discard_output()
        raise click.ClickException(f"cannot write to standard output: {exc.strerror}") from None


def reader_left() -> bool:
    """Whether nobody can read standard output any more."""
    if sys.stdout is None or _discarded:
        return True
    pipe = select.poll()
    pipe.register(1, 0)  # what cannot be left out is always told: that the other end was closed
    return bool(pipe.poll(0))


_discarded = False


def _discard_output() -> None:
    """What is still buffered goes nowhere, so the interpreter does not fail on it at exit."""
    global _discarded
    _discarded = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def on_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


def confirmed(question: str) -> bool:
    """Whether a person says yes; where standard input is no terminal nobody is asked, and it is yes."""
    if sys.stdin is None or not sys.stdin.isatty():
        return True
    if sys.stderr is not None:
        sys.stderr.write(f"{neutralise(question)} [y/N] ")
        sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def styled(text: str, style: str) -> str:
    """The text in a style of rich's, if it goes to a terminal that has such; it must be harmless already."""
    if not on_terminal():
        return text
    from rich.console import Console
    from rich.text import Text

    console = Console(markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(Text(text, style), end="", soft_wrap=True)
    return captured.get()


Piece = tuple[str, str]
"""Text, and a style of rich's for it."""


def print_lines(lines: Iterable[Sequence[Piece]]) -> None:
    """Lines made of styled pieces: on a terminal cut at its width, else plain and whole."""
    harmless = [[(neutralise(text), style) for text, style in line] for line in lines]
    if not on_terminal():
        emit("".join("".join(text for text, _ in line) + "\n" for line in harmless))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        for line in harmless:
            console.print(Text.assemble(*line), no_wrap=True, overflow="crop", crop=True)
    emit(captured.get())


def terminal_width() -> int:
    """How many cells a line of standard output has, at least 20."""
    from rich.console import Console

    return max(Console().width, _MIN_WIDTH)


def speaks_unicode() -> bool:
    """Whether standard output can show more than ASCII."""
    return (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")


# ---------------------------------------------------------------- tables


def print_rows(header: Sequence[str], rows: Iterable[Sequence[str]], *, optional: Sequence[str] = ()) -> None:
    """A table on a terminal, else one line per row: cells apart by TAB, no header, nothing cut.

    Columns in ``optional`` are left out of a table where they are empty, and one
    after the other, first named first, where it would be too wide. The last column is cut.
    """
    harmless = [[neutralise(cell) for cell in row] for row in rows]
    if on_terminal():
        if harmless:
            emit(_table(header, harmless, optional))
    else:
        emit("".join("\t".join(row) + "\n" for row in harmless))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], optional: Sequence[str]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, emoji=False, highlight=False)
    console.width = max(console.width, _MIN_WIDTH)
    overflow: Literal["ellipsis", "crop"] = "ellipsis" if console.encoding.startswith("utf") else "crop"
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    kept = _fitting(columns, optional, console.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in kept:
        table.add_column(name, no_wrap=name != header[-1], overflow=overflow)
    for cells in zip(*(columns[name] for name in kept), strict=True):
        # Text, never a string: rich would read [brackets] in stored text as markup.
        styles = (_style(name, cell) for name, cell in zip(kept, cells, strict=True))
        table.add_row(*map(partial(Text, no_wrap=True, overflow=overflow), cells, styles))
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _fitting(columns: Mapping[str, Sequence[str]], optional: Sequence[str], room: int) -> list[str]:
    """The names of the columns to show in ``room`` cells; of the last one 24 are enough."""
    from rich.cells import cell_len

    widths = {name: max(map(cell_len, (name, *cells))) + _GAP for name, cells in columns.items()}
    last = list(columns)[-1]
    widths[last] = min(widths[last], _LAST_COLUMN)
    kept = [name for name in columns if name not in optional or any(columns[name])]
    for name in optional:
        if sum(widths[name] for name in kept) <= room:
            break
        kept = [other for other in kept if other != name]
    return kept


def _style(column: str, cell: str) -> str:
    return _STATUS_STYLES.get(cell, "") if column == "status" else ""
