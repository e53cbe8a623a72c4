"""Which repository a command means, and opening it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scp_git.cli.terminal import complain

if TYPE_CHECKING:
    from scp_git.store import Store


def open_store(root: str, *, quiet: bool = False) -> Store:
    """The store at ``root``. What the library warns of is shown line by line; with ``quiet`` it is not."""
    from scp_git.store import Store

    logger = logging.getLogger("scp_git")
    logger.propagate = False
    logger.handlers = [logging.NullHandler() if quiet else _Lines(logging.WARNING)]
    return Store.open(root)


@contextmanager
def opened(path: str | None) -> Iterator[Store]:
    """The store of the repository that ``-C`` gives, or the current folder; on leaving it is flushed."""
    with open_store(here(path)) as store:
        yield store


def here(path: str | None) -> str:
    """The top of the repository that ``-C`` gives, or that holds the current folder."""
    return find_root(path, os.getcwd())


class _Lines(logging.Handler):
    """Log records as one line each, without the tracebacks that some carry."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


def find_root(path: str | None, cwd: str) -> str:
    """The top of the working tree (or the bare repository) that holds ``path``, as ``-C`` gives it.

    Walks up like git does. Where nothing is found it is ``path`` itself, and
    ``Store.open`` will say what is wrong with that.
    """
    start = os.path.realpath(os.path.join(cwd, path or ""))
    here = start
    while os.path.isdir(start):
        if os.path.exists(os.path.join(here, ".git")) or _is_bare(here):
            return here
        parent = os.path.dirname(here)
        if parent == here:
            break
        here = parent
    return start


def _is_bare(path: str) -> bool:
    # Inside ".git" the working tree above is meant.
    if os.path.basename(path) == ".git":
        return False
    return os.path.isfile(os.path.join(path, "HEAD")) and all(
        os.path.isdir(os.path.join(path, name)) for name in ("objects", "refs")
    )


def within(path: str, root: str) -> str:
    """``path`` relative to ``root`` if it lies in there, else as it is."""
    path = os.path.realpath(path)
    return os.path.relpath(path, root) if os.path.commonpath([path, root]) == root else path
