"""Where a user's name, password, token and keys are looked for; each place is tried once.

https: the caller's, the URL's, ``SCP_GIT_USERNAME`` and ``SCP_GIT_TOKEN``,
``~/.git-credentials``, ``.netrc``, git's credential helper. ssh: the caller's key or
``SCP_GIT_SSH_KEY``, the agent, the key files of ``~/.ssh``. Nothing is looked for
before a server asks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from scp_git.git.urls import Url

Ask = Callable[[str], tuple[str, str] | None]
"""Called with the URL, without secrets; returns user name and password."""

_KEY_FILES = ("id_ed25519", "id_ecdsa", "id_rsa")
_MAX_FILE_BYTES = 1024 * 1024
_ANY_USER = "x-access-token"
"""Servers that take a token do not look at the name, but it must not be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a caller gives; what is left out comes from the environment. The ``repr`` shows no secret."""

    username: str = ""
    token: str = field(default="", repr=False)
    ask: Ask | None = field(default=None, repr=False)
    ssh_key: Path | None = None
    ssh_passphrase: str = field(default="", repr=False)
    ca_file: Path | None = None
    """Certificate authorities to trust besides the system's. libgit2 trusts them for the whole process."""
    agent: bool = True
    """Whether the ssh agent is asked."""
    helper: bool = True
    """Whether the credential helper of git config may be run; it is the one program that is started."""

    def with_environment(self) -> Credentials:
        """These, and from the process environment what they leave open."""
        environment = os.environ
        key, authorities = environment.get("SCP_GIT_SSH_KEY"), environment.get("GIT_SSL_CAINFO")
        found = self
        if not self.token:
            user, token = environment.get("SCP_GIT_USERNAME", ""), environment.get("SCP_GIT_TOKEN", "")
            found = replace(found, username=self.username or user, token=token)
        return replace(
            found,
            ssh_key=self.ssh_key or (Path(key).expanduser() if key else None),
            ca_file=self.ca_file or (Path(authorities).expanduser() if authorities else None),
            agent=self.agent and "SSH_AUTH_SOCK" in environment,
        )


@dataclass(frozen=True, slots=True)
class Password:
    """A user name and a password, and where they come from."""

    source: str
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Key:
    """A private key file; ``path`` is None for whatever the agent holds."""

    source: str
    path: Path | None = None
    passphrase: str = field(default="", repr=False)


# ---------------------------------------------------------------- https


def passwords(
    url: Url, given: Credentials, *, home: Path, helper: Callable[[], Password | None]
) -> Iterator[Password]:
    """Every user name and password to be tried, the most explicit first; none comes twice."""
    tried: set[tuple[str, str]] = set()
    for found in _passwords(url, given, home, helper):
        if (found.username, found.password) not in tried:
            tried.add((found.username, found.password))
            yield found


def _passwords(
    url: Url, given: Credentials, home: Path, helper: Callable[[], Password | None]
) -> Iterator[Password]:
    asked = given.ask(url.shown) if given.ask else None
    if asked:
        yield Password("the caller", *asked)
    if url.password:
        yield Password("the URL", url.user or _ANY_USER, url.password)
    if given.token:
        yield Password("SCP_GIT_TOKEN", given.username or url.user or _ANY_USER, given.token)
    elif url.user and not url.password and url.scheme != "ssh":
        yield Password("the URL", url.user, "")  # a token in the place of the name
    if url.scheme == "ssh":
        return
    for path in (home / ".git-credentials", home / ".config" / "git" / "credentials"):
        yield from _stored(path, url)
    yield from _netrc(home / ".netrc", url)
    helped = helper() if given.helper else None
    if helped:
        yield helped


def _stored(path: Path, url: Url) -> Iterator[Password]:
    """The lines ``https://user:password@host`` of a credential store that fit."""
    for line in _lines(path):
        try:
            parts = urlsplit(line.strip())
            same = (parts.scheme, parts.hostname, parts.port or _default_port(parts.scheme)) == (
                url.scheme,
                url.host,
                url.port,
            )
        except ValueError:
            continue
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if same and password and (not url.user or url.user == user):
            yield Password(f"~/{path.name}", user, password)


def _default_port(scheme: str) -> int:
    return {"http": 80, "https": 443}.get(scheme, 0)


def _netrc(path: Path, url: Url) -> Iterator[Password]:
    if not path.is_file():
        return
    import netrc

    try:
        found = netrc.netrc(str(path)).authenticators(url.host)
    except (netrc.NetrcParseError, OSError, ValueError):
        return
    if found and found[2] and (not url.user or url.user == found[0]):
        yield Password("~/.netrc", found[0] or _ANY_USER, found[2])


def _lines(path: Path) -> list[str]:
    try:
        if not path.is_file():  # a pipe would be waited for
            return []
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES).decode("utf-8", "replace").split("\n")
    except OSError:
        return []


def ask_helper(url: Url, git_dir: Path, timeout_s: float) -> Password | None:
    """What the credential helpers of git config know, by ``git credential fill``; it can ask nobody.

    ``None`` without a git program, without an answer within ``timeout_s``, or for a value with a newline.
    """
    import signal
    import subprocess

    place = f"{url.host}:{url.port}" if url.port != _default_port(url.scheme) else url.host
    user = f"username={url.user}\n" if url.user else ""
    asked = f"protocol={url.scheme}\nhost={place}\n{user}\n"
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "SSH_ASKPASS": "true"}
    try:
        process = subprocess.Popen(
            ["git", "--git-dir", str(git_dir), "credential", "fill"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    except OSError:
        return None
    with process:
        try:
            said, _ = process.communicate(asked.encode(), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None
    fields = dict(line.split("=", 1) for line in said.decode("utf-8", "replace").split("\n") if "=" in line)
    if process.returncode or not fields.get("password"):
        return None
    return Password("the credential helper", fields.get("username", _ANY_USER), fields["password"])


# ---------------------------------------------------------------- ssh


def keys(given: Credentials, *, home: Path) -> Iterator[Key]:
    """Every key to be tried, the most explicit first; a key file that needs a passphrase is passed over."""
    if given.ssh_key is not None:
        yield Key(str(given.ssh_key), given.ssh_key, given.ssh_passphrase)
    if given.agent:
        yield Key("the ssh agent")
    for path in _existing(home / ".ssh" / name for name in _KEY_FILES):
        if path != given.ssh_key and opens(path, given.ssh_passphrase):
            yield Key(f"~/.ssh/{path.name}", path, given.ssh_passphrase)


def _existing(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.is_file()]


def opens(path: Path, passphrase: str) -> bool:
    """Whether a private key can be used with this passphrase; libgit2 would give up on one that cannot."""
    # Late: it takes long, and few ever come here.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES)
        load = load_ssh_private_key if b"BEGIN OPENSSH" in data else load_pem_private_key
        try:
            load(data, None)
        except TypeError:  # it is encrypted
            if not passphrase:
                return False
            load(data, passphrase.encode())
    except (
        UnsupportedAlgorithm
    ):  # libgit2 may know better; cryptography alone cannot decrypt OpenSSH's format
        return True
    except (OSError, ValueError, TypeError):
        return False
    return True
