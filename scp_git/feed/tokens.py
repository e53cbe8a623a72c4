"""Where a reader of the feed is: three tips, spelled as opaque text."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from scp_git.git.handle import Repository
from scp_git.layout import ARCHIVE_REF, LEDGER_REF, NOTES_REF

_VERSION = b"\x01"
_CHECK = 4
_MAX_TEXT = 400


class Tips(NamedTuple):
    """The commits of the three branches; ``None`` where there is no branch."""

    notes: str | None = None
    ledger: str | None = None
    archive: str | None = None


NOTHING = Tips()


def present_tips(repository: Repository) -> Tips:
    """The present tips, read in the order in which records move: note, ledger, archive."""
    return Tips(*(repository.refs.read(ref) for ref in (NOTES_REF, LEDGER_REF, ARCHIVE_REF)))


@dataclass(frozen=True, slots=True)
class Position:
    """``told`` is known to the reader, and so are the first ``count`` changes from there to ``towards``."""

    told: Tips
    towards: Tips | None = None
    count: int = 0

    def token(self) -> str:
        """The position as text that is safe in a URL and in a header."""
        body = _VERSION + _spell(self.told)
        if self.towards is not None and self.count:
            body += _spell(self.towards) + self.count.to_bytes(4)
        return base64.urlsafe_b64encode(body + _checksum(body)).rstrip(b"=").decode()

    @classmethod
    def parse(cls, token: str) -> Position:
        """Read a token; the empty text stands before everything. ``ValueError`` for what is none."""
        if not isinstance(token, str):
            raise TypeError(f"a token is text, not {type(token).__name__}")
        if not token:
            return cls(NOTHING)
        body = _decode(token)
        if body[:1] != _VERSION or len(body) not in (64, 64 + 63 + 4):
            raise _refusal(token)
        told, rest = _read(body[1:64]), body[64:]
        if not rest:
            return cls(told)
        return cls(told, _read(rest[:63]), int.from_bytes(rest[63:]))


def _decode(token: str) -> bytes:
    try:
        if len(token) > _MAX_TEXT or not token.isascii():
            raise _refusal(token)
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise _refusal(token) from None
    body, check = data[:-_CHECK], data[-_CHECK:]
    if _checksum(body) != check:
        raise _refusal(token)
    return body


def _refusal(token: str) -> ValueError:
    return ValueError(f"{token[:40]!r} is not a token of a change; use one as it was given, or none")


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECK]


def _spell(tips: Tips) -> bytes:
    return b"".join(b"\0" * 21 if tip is None else b"\1" + bytes.fromhex(tip) for tip in tips)


def _read(data: bytes) -> Tips:
    parts = [data[start : start + 21] for start in range(0, 63, 21)]
    return Tips(*(part[1:].hex() if part[0] else None for part in parts))


def check_token(since: str | None) -> None:
    """Raise ``ValueError`` for text that is no token; touches nothing."""
    if since is not None:
        Position.parse(since)
