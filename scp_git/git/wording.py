"""What a remote or libgit2 said, made safe to show, and what to do about it.

libgit2 tells failures apart by text only, so its words are matched here and nowhere else.
"""

from __future__ import annotations

import unicodedata

from scp_git.git.urls import Url

_MAX_WORDS = 300
_MOVED = ("non-fastforwardable", "that are not present locally")
_TIMED_OUT = ("timed out", "timeout", "temporarily unavailable")  # the last is what TLS makes of it

_KNOWN = (
    # what libgit2 says, what happened, what to do
    ("proxy returned", "cannot be reached through the proxy", "check http.proxy and the proxy variables"),
    ("connection refused", "refused the connection", "check that the server runs and the port is right"),
    ("resolve address", "has a host name that cannot be resolved", "check the URL and the network"),
    ("no route to host", "cannot be reached", "check the network"),
    ("network is unreachable", "cannot be reached", "check the network"),
    ("status code: 401", "wants a user name and a password", "see docs/sync.md for where to put them"),
    ("status code: 403", "does not allow this (403)", "ask for access, or check which account is used"),
    ("status code: 404", "has no repository there (404)", "check the URL, and that you may see it"),
    ("status code: 413", "does not take so much at once (413)", "have the server's limit raised"),
    ("status code: 429", "was asked too often (429)", "wait and try again"),
    ("status code: 5", "failed inside (5xx)", "try again later"),
    ("too many redirect", "redirects or asks for a password again and again", "check URL and credentials"),
    ("certificate", "has a certificate that is not trusted", "give its authority in http.sslCAInfo"),
    ("early eof", "cut the line", "try again; nothing was lost"),
    ("unexpected disconnection", "cut the line", "try again; nothing was lost"),
    ("connection reset", "cut the line", "try again; nothing was lost"),
    ("eof", "cut the line", "try again; nothing was lost"),
    ("unsupported url protocol", "is not there", "check the path"),
    ("could not find repository", "is not a repository", "check the path"),
    ("failed to resolve path", "is not there", "check the path"),
    ("not owned by", "belongs to another user", "git config --global --add safe.directory <its path>"),
)


def harmless(text: str, secrets: tuple[str, ...] = (), *, limit: int = _MAX_WORDS) -> str:
    """One line without controls, escapes, direction marks and secrets, cut to ``limit`` characters."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = text[: 4 * limit].encode("utf-8", "replace").decode()
    kept = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def has_moved(said: str) -> bool:
    """Whether libgit2 refused a push before sending anything, as the remote has what we do not know."""
    return any(words in said for words in _MOVED)


def is_full_disk(said: str) -> bool:
    """Whether libgit2 failed to write here."""
    return "no space left" in said.lower()


def explain(url: Url, said: str, timeout_s: float) -> str:
    """Why a transfer failed, for the message of a ``RemoteError``."""
    lower = said.lower()
    if any(words in lower for words in _TIMED_OUT):
        return f"{url.shown} did not answer within {timeout_s:g} s; try again, or raise scp.networkTimeoutS"
    for words, what, advice in _KNOWN:
        if words in lower:
            return f"{url.shown} {what}; {advice}"
    return f"{url.shown} could not be used: {harmless(said, url.secrets) or 'no reason was given'}"
