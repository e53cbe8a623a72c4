"""Every error that leaves this package, and the data each one speaks of.

One base class, ``ScpGitError``, with a stable ``code``; each family also inherits
the builtin a caller would expect, so ``except LookupError`` or ``except TimeoutError``
work as well. A message says what happened, to which object, and what to do; it
never carries message text, keys or environment values.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class ScpGitError(Exception):
    """Base of all errors of this package."""

    code = "scp-error"

    def __init__(self, message: str) -> None:
        # Not super(): OSError and its kin would take the arguments apart.
        Exception.__init__(self, message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        state = self.__dict__.copy()
        if isinstance(self, OSError):  # kept by OSError itself, not in __dict__
            state["errno"] = self.errno
        return _rebuild, (type(self), state)


def _rebuild(kind: type[ScpGitError], state: dict[str, Any]) -> ScpGitError:
    error = kind.__new__(kind)
    for name, value in state.items():
        setattr(error, name, value)
    error.args = (state["message"],)
    return error


class NotFound(ScpGitError, LookupError):
    """A run, thread, message or trace that should exist does not."""

    code = "not-found"

    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"there is no {kind} {id!r} in this ledger")
        self.kind = kind
        self.id = id


class InvalidId(ScpGitError, ValueError):
    """An id that may not become a path and a ref name."""

    code = "invalid-id"

    def __init__(self, kind: str, id: object) -> None:
        shown = repr(id)
        shown = shown if len(shown) <= 160 else shown[:157] + "..."
        super().__init__(
            f"{shown} is not a valid {kind} id: use 1 to 128 of A-Z a-z 0-9 . _ -, starting with a "
            "letter or digit, without '..', not ending in '.' or '.lock', not a Windows device name"
        )
        self.kind = kind
        self.id = id


class AlreadyExists(ScpGitError, ValueError):
    """The id is taken by other content, or was deleted and stays deleted."""

    code = "already-exists"

    def __init__(self, kind: str, id: str, *, deleted: bool = False) -> None:
        why = "was deleted, and a deleted id is never used again" if deleted else "exists with other content"
        super().__init__(f"{kind} {id!r} {why}; nothing was stored, choose another id")
        self.kind = kind
        self.id = id
        self.deleted = deleted


class NotAllowed(ScpGitError, ValueError):
    """Something that must stay as it is."""

    code = "not-allowed"

    def __init__(self, doing: str, reason: str) -> None:
        super().__init__(f"{doing} is not allowed: {reason}; nothing was changed")
        self.doing = doing
        self.reason = reason


class RecordTooLarge(ScpGitError, ValueError):
    """A record or a line beyond the stated limit."""

    code = "record-too-large"

    def __init__(self, kind: str, id: str, size: int, limit: int) -> None:
        super().__init__(
            f"{kind} {id!r} takes {size} bytes, the limit is {limit}; nothing was stored, "
            "keep bulky output elsewhere and store a reference to it"
        )
        self.kind = kind
        self.id = id
        self.size = size
        self.limit = limit


class KeyMissing(ScpGitError, ValueError):
    """Something is to be encrypted or decrypted, and there is no key."""

    code = "key-missing"

    def __init__(self) -> None:
        super().__init__(
            "CONTENT_VAULT_ENC_KEY is not set in the environment or in .env; "
            "nothing is encrypted or decrypted without it"
        )


class DecryptFailed(ScpGitError, ValueError):
    """The text could not be decrypted: wrong key or altered bytes."""

    code = "decrypt-failed"

    def __init__(self) -> None:
        super().__init__("decryption failed: wrong key or altered text")


class NotARepository(ScpGitError):
    """The path is not the top of a git working tree, nor a bare repository."""

    code = "not-a-repository"

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = Path(path)
        self.reason = reason


class UnsupportedRepository(ScpGitError):
    """A repository that this version must not write, or cannot read."""

    code = "unsupported-repository"

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = Path(path)
        self.reason = reason


class RepositoryBusy(ScpGitError, TimeoutError):
    """Somebody else held a lock for longer than ``lock_timeout_s``; nothing was stored."""

    code = "repository-busy"

    def __init__(self, what: str, waited_s: float) -> None:
        super().__init__(
            f"{what} was held by another process for {waited_s:.1f} s; nothing was stored, try again"
        )
        self.what = what
        self.waited_s = waited_s


class StorageFailed(ScpGitError, OSError):
    """The disk or the object database refused; ``errno`` is set when the system gave one."""

    code = "storage-failed"

    def __init__(self, doing: str, cause: BaseException | str) -> None:
        text = cause if isinstance(cause, str) else _describe(cause)
        super().__init__(f"{doing} failed: {text}")
        self.doing = doing
        if isinstance(cause, OSError) and cause.errno is not None:
            self.errno = cause.errno


class OutputRefused(ScpGitError, ValueError):
    """A folder that must not be written to: it holds what is not ours, or is a symlink."""

    code = "output-refused"

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)} {reason}; nothing was written")
        self.path = Path(path)
        self.reason = reason


class RemoteError(ScpGitError, ConnectionError):
    """A remote could not be reached or refused."""

    code = "remote-error"

    def __init__(self, remote: str, reason: str) -> None:
        super().__init__(f"remote {remote!r}: {reason}")
        self.remote = remote
        self.reason = reason


class AuthFailed(RemoteError):
    """A remote did not accept the credentials."""

    code = "auth-failed"


class TransferCancelled(RemoteError):
    """The caller did not want to wait for the remote any longer."""

    code = "transfer-cancelled"


def _describe(cause: BaseException) -> str:
    if isinstance(cause, OSError) and cause.strerror:
        where = f" ({cause.filename})" if cause.filename else ""
        return f"{cause.strerror}{where}"
    return str(cause) or type(cause).__name__
