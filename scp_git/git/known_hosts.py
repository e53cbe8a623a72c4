"""What ``~/.ssh/known_hosts`` says of a host, to explain why its key was not accepted.

libgit2 compares the keys; it does not say whether a key is unknown or another one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from pathlib import Path

from scp_git.git.urls import Url

_MAX_BYTES = 16 * 1024 * 1024
_MAX_PATTERN = 300


def refusal(url: Url, known_hosts: Path | None) -> str:
    """Why the host key was not accepted, and what to do."""
    place = host_entry(url.host, url.port)
    port = f"-p {url.port} " if url.port != 22 else ""
    scan = f"ssh-keyscan {port}{url.host} >> ~/.ssh/known_hosts"
    if known_hosts is not None and is_known(known_hosts, place):
        return (
            f"{url.shown} showed a host key other than the one in known_hosts: somebody may be listening in. "
            f"If the key was changed on purpose: ssh-keygen -R '{place}', then {scan}, "
            "and compare the fingerprint with the one its owner gives"
        )
    return (
        f"{url.shown} has a host key that is not in known_hosts. Compare its fingerprint with the one its "
        f"owner gives, then: {scan}"
    )


def host_entry(host: str, port: int) -> str:
    """The host as known_hosts spells it."""
    return host if port == 22 else f"[{host}]:{port}"


def is_known(path: Path, place: str) -> bool:
    """Whether a line of the file is about this host, whatever its key."""
    try:
        with path.open("rb") as file:
            lines = file.read(_MAX_BYTES).decode("utf-8", "replace").split("\n")
    except OSError:
        return False
    return any(_is_about(line, place) for line in lines)


def _is_about(line: str, place: str) -> bool:
    fields = line.split()
    if not fields or fields[0].startswith(("#", "@")):  # @revoked and @cert-authority are no known keys
        return False
    if fields[0].startswith("|1|"):
        return _is_hash_of(fields[0], place)
    patterns = fields[0].split(",")
    if any(pattern.startswith("!") and _fits(pattern[1:], place) for pattern in patterns):
        return False
    return any(_fits(pattern, place) for pattern in patterns)


def _fits(pattern: str, place: str) -> bool:
    """Only ``*`` and ``?`` are special; brackets belong to the address."""
    regex = re.escape(pattern[:_MAX_PATTERN]).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(regex, place, re.IGNORECASE) is not None


def _is_hash_of(field: str, place: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in field[3:].split("|"))
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, place.encode(), hashlib.sha1).digest(), digest)
