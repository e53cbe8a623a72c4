"""What libgit2 asks and tells during one transfer: progress, answers, who the server is, who we are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pygit2
from pygit2.enums import CredentialType

from scp_git.errors import AuthFailed, RemoteError
from scp_git.git.credentials import Key, Password, ask_helper, keys, passwords
from scp_git.git.known_hosts import refusal
from scp_git.git.transfer import Progress, Pulse
from scp_git.git.wording import explain, harmless

if TYPE_CHECKING:
    from scp_git.git.remote import Remote

_HELPER_S = 10.0
_NO_FETCH_HEAD = 0
_NO_TAGS = 2


class Callbacks(pygit2.RemoteCallbacks):
    """What libgit2 asks and tells during one transfer."""

    # Its text is not ours to decode: pygit2 fails on bytes that are no UTF-8.
    sideband_progress = None  # type: ignore[assignment]

    def __init__(self, remote: Remote, repo: pygit2.Repository, pulse: Pulse) -> None:
        super().__init__()
        self._remote = remote
        self._repo = repo
        self._pulse = pulse
        self._tried: list[str] = []
        self._sources: dict[str, Iterator[Key] | Iterator[Password]] = {}
        self._answers: dict[str, str | None] = {}
        self._host = ""
        """Who showed the last certificate: the URL's host, or one that it redirected to."""

    @property
    def fetch_options(self) -> Any:
        """libgit2's options, as pygit2 builds them for a fetch."""
        return self._fetch_options

    @fetch_options.setter
    def fetch_options(self, options: Any) -> None:
        options.update_fetchhead = _NO_FETCH_HEAD
        options.download_tags = _NO_TAGS
        self._fetch_options = options

    # ------------------------------------------------------------ progress and answers

    def transfer_progress(self, stats: pygit2.remotes.TransferProgress) -> None:
        self._tell(Progress(False, stats.received_objects, stats.total_objects, stats.received_bytes))

    def push_transfer_progress(self, objects_pushed: int, total_objects: int, bytes_pushed: int) -> None:
        self._tell(Progress(True, objects_pushed, total_objects, bytes_pushed))

    def _tell(self, progress: Progress) -> None:
        self._pulse.beat()
        if self._remote.on_progress is not None:
            self._remote.on_progress(progress)

    def push_update_reference(self, refname: str, message: str | None) -> None:
        self._answers[refname] = harmless(message, self._remote.url.secrets) if message else None

    def answer(self, ref: str) -> str | None:
        return self._answers.get(ref, "the remote gave no answer for this ref")

    # ------------------------------------------------------------ who they are, and who we are

    def certificate_check(self, certificate: None, valid: bool, host: bytes) -> bool:
        self._pulse.beat()
        self._host = host.decode("utf-8", "replace").strip("[]").lower()
        remote = self._remote
        if not valid and remote.url.scheme == "ssh":
            raise RemoteError(remote.name, refusal(remote.url, _ssh_folder() / "known_hosts"))
        if not valid:
            raise RemoteError(remote.name, explain(remote.url, "certificate", remote.timeout_s))
        return True

    def credentials(
        self, url: str, username_from_url: str | None, allowed_types: CredentialType
    ) -> pygit2.credentials.Username | pygit2.UserPass | pygit2.Keypair:
        self._pulse.beat()
        if self._remote.url.scheme != "ssh" and self._host not in ("", self._remote.url.host.lower()):
            # libgit2 would send them along.
            reason = "redirects to another host, which gets no password; use the URL that it redirects to"
            raise AuthFailed(self._remote.name, f"{self._remote.url.shown} {reason}")
        user = username_from_url or self._remote.url.user or "git"
        if allowed_types & CredentialType.SSH_KEY:
            key = next(self._source("keys"), None)
            if isinstance(key, Key):
                self._tried.append(key.source)
                if key.path is None:
                    return pygit2.KeypairFromAgent(user)
                return pygit2.Keypair(user, None, str(key.path), key.passphrase)
        if allowed_types & CredentialType.USERPASS_PLAINTEXT:
            password = next(self._source("passwords"), None)
            if isinstance(password, Password):
                self._tried.append(password.source)
                return pygit2.UserPass(password.username, password.password)
        if allowed_types == CredentialType.USERNAME:
            return pygit2.Username(user)
        raise AuthFailed(self._remote.name, self._nothing_left())

    def _source(self, kind: str) -> Iterator[Key] | Iterator[Password]:
        if kind not in self._sources:
            remote, home = self._remote, _home()
            self._sources[kind] = (
                keys(remote.credentials, home=home)
                if kind == "keys"
                else passwords(remote.url, remote.credentials, home=home, helper=self._ask_helper)
            )
        return self._sources[kind]

    def _ask_helper(self) -> Password | None:
        if not any(_is_helper(entry.name) for entry in self._repo.config):
            return None
        return ask_helper(self._remote.url, self._remote.git_dir, _HELPER_S)

    def _nothing_left(self) -> str:
        shown, ssh = self._remote.url.shown, self._remote.url.scheme == "ssh"
        advice = "set SCP_GIT_TOKEN, or store them where git finds them"
        if ssh:
            advice = "add your key to the ssh agent, or name its file in SCP_GIT_SSH_KEY"
        if not self._tried:
            wanted = "a key" if ssh else "a user name and a password"
            return f"{shown} wants {wanted} and there is none; {advice}"
        return f"{shown} did not accept the credentials from {', '.join(self._tried)}; {advice}"


def _home() -> Path:
    """The home folder as libgit2 knows it, which looks for ``known_hosts`` there."""
    return Path(pygit2.settings.homedir or "/nonexistent")


def _ssh_folder() -> Path:
    return _home() / ".ssh"


def _is_helper(name: str) -> bool:
    return name.startswith("credential.") and name.endswith(".helper")
