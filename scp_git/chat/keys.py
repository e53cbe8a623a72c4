"""Where the key for encrypted text comes from.

The process environment first, then ``<project_root>/.env``, which python-dotenv reads:
of several lines for one name the last counts, ``export`` and quotes are understood, and
nothing in a value is expanded. An empty value is none. It is looked up at every call, so
that a key which was taken away opens nothing any more.
"""

from __future__ import annotations

import io
import logging
import os
import stat

from scp_git.errors import KeyMissing

log = logging.getLogger(__name__)

KEY_NAME = "CONTENT_VAULT_ENC_KEY"
MAX_ENV_BYTES = 256 * 1024
_MAX_WARNED = 256
_warned: set[str] = set()
"""Files about which something was said already: once in a process is enough."""


def find_key(project_root: str | os.PathLike[str]) -> str | None:
    """The key that holds at this moment for ``project_root``, or ``None``."""
    value = os.environ.get(KEY_NAME, "")
    return _usable(value, "the environment") if value.strip() else _from_file(os.fspath(project_root))


def require_key(project_root: str | os.PathLike[str]) -> str:
    """The key, or ``KeyMissing``."""
    key = find_key(project_root)
    if key is None:
        raise KeyMissing
    return key


def _from_file(project_root: str) -> str | None:
    path = os.path.join(project_root, ".env")
    data, mode = _read(path)
    if KEY_NAME.encode() not in data:
        return None
    from dotenv import dotenv_values

    # Bytes that are not UTF-8 may stand elsewhere in the file; in the key they are refused below.
    text = data.decode("utf-8-sig", "surrogateescape")
    key = _usable(dotenv_values(stream=io.StringIO(text), interpolate=False).get(KEY_NAME) or "", path)
    if key and mode & stat.S_IROTH:
        _warn_once(path, "%s holds %s and every user of this machine may read it: chmod 600 it")
    return key


def _read(path: str) -> tuple[bytes, int]:
    """The bytes and the mode of a regular file of reasonable size; else no bytes.

    A symlink is followed. Opening does not wait, which it else would for a pipe.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            mode = os.fstat(fd).st_mode
            data = os.read(fd, MAX_ENV_BYTES + 1) if stat.S_ISREG(mode) else b""
        finally:
            os.close(fd)
    except FileNotFoundError:
        return b"", 0
    except OSError:
        _warn_once(path, "%s cannot be read; %s is not taken from it")
        return b"", 0
    if not stat.S_ISREG(mode):
        _warn_once(path, "%s is no regular file; %s is not taken from it")
    elif len(data) > MAX_ENV_BYTES:
        _warn_once(path, f"%s has more than {MAX_ENV_BYTES} bytes; %s is not taken from it")
    else:
        return data, mode
    return b"", 0


def _usable(value: str, source: str) -> str | None:
    """The value as it is, unless it is blank or no environment could hold it."""
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        _warn_once(source, "%s has a value for %s that holds NUL or is not UTF-8; it is not used")
        return None
    return value if value.strip() else None


def _warn_once(source: str, message: str) -> None:
    if source not in _warned and len(_warned) < _MAX_WARNED:
        _warned.add(source)
        log.warning(message, source, KEY_NAME)
