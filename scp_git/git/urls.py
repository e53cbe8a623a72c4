"""Where a remote is: its URL from git config, checked against what we are willing to open.

Only paths, ``file``, ``git``, ``ssh``, ``http`` and ``https``; never ``ext::`` or another
helper. What is handed to libgit2 carries no password, so no error of its can show one.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from scp_git.errors import RemoteError
from scp_git.git.handle import Repository

Scheme = Literal["path", "file", "git", "ssh", "http", "https"]

_SCHEMES: dict[str, Scheme] = {
    "file": "file",
    "git": "git",
    "ssh": "ssh",
    "git+ssh": "ssh",
    "ssh+git": "ssh",
    "http": "http",
    "https": "https",
}
_PORTS = {"git": 9418, "ssh": 22, "http": 80, "https": 443}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_SCP_LIKE = re.compile(r"(?:([^@/:]+)@)?(\[[^\]/]+\]|[^@/:\[\]]+):(.+)")
_HOST = re.compile(r"[A-Za-z0-9_:%.-]+|[^\x00-\x7f]+(?:\.[^\x00-\x7f]+)*")


@dataclass(frozen=True, slots=True)
class Url:
    """One remote's URL, taken apart; its ``repr`` holds no secret."""

    scheme: Scheme
    shown: str
    """For people, logs and errors: without user, password and query."""
    plain: str = field(repr=False)
    """For libgit2: without password."""
    host: str = ""
    port: int = 0
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    path: Path | None = None
    """The other repository, where it lies on this machine."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no text may show."""
        user = self.user if self.scheme in ("http", "https") else ""
        return tuple(text for text in {self.password, quote(self.password, ""), user} if text)


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """A configured remote: where it is fetched from and pushed to."""

    name: str
    url: str = field(repr=False)
    push_url: str = field(repr=False)


def resolve_remote(repository: Repository, name: str) -> RemoteUrl | None:
    """The remote ``name`` of git config, ``url.*.insteadOf`` applied; ``None`` if there is none.

    Of several URLs the first counts. A relative path is one from the top of the working tree.

    Raises ``RemoteError`` for a name that cannot become a part of ``refs/scp/remotes/<name>``.
    """
    if not is_remote_name(name):
        raise RemoteError(name, "is no name of a remote: use letters, digits and . _ - /")
    entries = repository.config_entries("remote.")
    urls = _values(entries, f"{name}.url")
    push_urls = _values(entries, f"{name}.pushurl")
    if not urls and not push_urls:
        return None
    rules = repository.config_entries("url.")
    url = (urls or push_urls)[0]
    if push_urls:
        push_url = _rewritten(push_urls[0], rules, ".insteadof")
    else:
        push_url = _rewritten(url, rules, ".pushinsteadof")
        push_url = _rewritten(url, rules, ".insteadof") if push_url == url else push_url
    base = repository.main_root or repository.root
    return RemoteUrl(name, _absolute(_rewritten(url, rules, ".insteadof"), base), _absolute(push_url, base))


def is_remote_name(name: str) -> bool:
    """Whether a remote's name may become a part of a ref name."""
    parts = name.split("/")
    return (
        _NAME.fullmatch(name) is not None
        and len(name) <= 200
        and ".." not in name
        and not any(part.endswith((".", ".lock")) for part in parts)
    )


def _values(entries: list[tuple[str, str]], key: str) -> list[str]:
    """All values of one key; an empty one takes back those before it, as in git."""
    found: list[str] = []
    for name, value in entries:
        if name == key:
            found = [*found, value] if value else []
    return found


def _rewritten(url: str, rules: list[tuple[str, str]], kind: str) -> str:
    """``url`` with the longest prefix that a rule names replaced."""
    best, replacement = "", ""
    for name, prefix in rules:
        if name.endswith(kind) and url.startswith(prefix) and len(prefix) > len(best):
            best, replacement = prefix, name.removesuffix(kind)
    return replacement + url[len(best) :]


def _absolute(url: str, base: Path) -> str:
    if not _is_path(url):
        return url
    return str(base / os.path.expanduser(url))


def _is_path(url: str) -> bool:
    """As git decides: no scheme, and no colon before the first slash."""
    return "://" not in url and "::" not in url and ":" not in url.partition("/")[0]


# ---------------------------------------------------------------- taking apart


def parse_url(name: str, url: str) -> Url:
    """Take a URL apart; ``RemoteError``, which never quotes it, for one that we do not open."""
    if not url or not url.isprintable():
        raise RemoteError(name, "its URL is empty or holds control characters; nothing was opened")
    if _is_path(url):
        path = Path(os.path.abspath(os.path.expanduser(url)))
        return Url("path", str(path), str(path), path=path)
    scheme, separator, _ = url.partition("://")
    if not separator:
        return _parse_scp_like(name, url)
    if scheme.lower() not in _SCHEMES:
        raise RemoteError(name, "its URL has a scheme that is not supported; use https, ssh, git or a path")
    return _parse_url(name, _SCHEMES[scheme.lower()], url)


def _parse_scp_like(name: str, url: str) -> Url:
    """``user@host:path``, where path is relative to the home folder of the server."""
    match = _SCP_LIKE.fullmatch(url)
    if match is None or "::" in url.partition("[")[0]:
        raise RemoteError(name, "its URL cannot be understood; use https, ssh, git or a path")
    user, host, path = match[1] or "", match[2], match[3]
    host = host.removeprefix("[").removesuffix("]")
    port = 22
    if host.count(":") == 1:  # [host:port]:path
        host, _, digits = host.partition(":")
        port = int(digits) if digits.isascii() and digits.isdigit() else 0
    _check_ssh(name, user, path)
    _check_host(name, host, port)
    return Url("ssh", f"{match[2]}:{path}", url, host, port, user=user)


def _parse_url(name: str, scheme: Scheme, url: str) -> Url:
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(scheme, 0)
    except ValueError:
        raise RemoteError(name, "its URL cannot be understood") from None
    host = parts.hostname or ""
    if scheme == "file":
        if host not in ("", "localhost"):
            raise RemoteError(name, "its file URL names another machine; use a path of this one")
        path = Path(os.path.abspath(unquote(parts.path)))
        return Url("file", f"file://{path}", str(path), path=path)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not (user + password).isprintable():
        raise RemoteError(name, "its URL holds control characters; nothing was opened")
    if scheme == "ssh":
        _check_ssh(name, user, unquote(parts.path))
    _check_host(name, host, port)
    shown_host = f"[{host}]" if ":" in host else host
    place = shown_host + (f":{parts.port}" if parts.port else "") + parts.path
    userinfo = f"{quote(user, '')}@" if user and scheme == "ssh" else ""
    query = f"?{parts.query}" if parts.query else ""
    return Url(
        scheme,
        f"{scheme}://{place}",
        f"{scheme}://{userinfo}{place}{query}",
        host,
        port,
        user=user,
        password=password,
    )


def _check_ssh(name: str, user: str, path: str) -> None:
    """What could end up as an option or outside the quotes of a command on the server."""
    if set(path) & set("'!") or not path.isprintable():
        raise RemoteError(name, "its ssh path holds ' or ! or a control character, which is refused")
    if user.startswith("-") or path.startswith("-"):
        raise RemoteError(name, "its ssh user or path begins with '-', which is refused")


def _check_host(name: str, host: str, port: int) -> None:
    if _HOST.fullmatch(host) is None or host.startswith("-") or not 0 < port < 65536:
        raise RemoteError(name, "its URL names no usable host and port")
