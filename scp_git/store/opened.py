"""The stores that the module-level functions use: one for each root, opened on first use."""

from __future__ import annotations

import os
from collections.abc import Callable

from scp_git.store import Store

_MAX_OPENED = 256
_opened: dict[str, Store] = {}
"""What the module-level functions have used, the oldest first; beyond the limit it is opened again."""


def opened_store(root: str | os.PathLike[str]) -> Store | None:
    """The process's store for a root if it was used before; touches no disk."""
    return _opened.get(os.path.abspath(root))


def opener(root: str | os.PathLike[str]) -> Callable[[], Store]:
    """What opens the process's store for a root; a relative path is that of this moment."""
    key = os.path.abspath(root)

    def open_it() -> Store:
        store = _opened.setdefault(key, Store.open(key))
        while len(_opened) > _MAX_OPENED:
            _opened.pop(next(iter(_opened)), None)
        return store

    return open_it
