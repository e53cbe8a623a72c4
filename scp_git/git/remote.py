"""One remote: what it advertises, fetching from it, pushing to it. Never a hang, never a second prompt.

Always by an anonymous libgit2 remote with explicit refspecs: a named one would follow
tags and move ``refs/remotes/``. Every failure is a ``RemoteError`` that says what
happened and what to do; no secret is in it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pygit2
from pygit2.enums import FetchPrune, RepositoryOpenFlag

from scp_git.errors import AuthFailed, RemoteError, ScpGitError, StorageFailed, TransferCancelled
from scp_git.git.callbacks import Callbacks
from scp_git.git.credentials import Credentials
from scp_git.git.files import sync_dir
from scp_git.git.handle import translated
from scp_git.git.transfer import Progress, Pulse, Stalled, Stopped, run_transfer, trust
from scp_git.git.urls import Url, parse_url
from scp_git.git.wording import explain, has_moved, is_full_disk
from scp_git.layout import LEDGER_REF

Value = TypeVar("Value")

_PLAIN_REF = re.compile(r"refs/[^\x00-\x20\x7f~^:?*\[\\]+")
_MAX_REF = 1024
_MOVED = "the remote has changed meanwhile"


class Remote:
    """A remote repository, by URL.

    ``name`` is for messages; ``git_dir`` (the common one) is where objects come from and
    go to. ``cancelled`` is asked about twenty times a second; once it is true the transfer
    ends with ``TransferCancelled``. An exception of ``on_progress`` ends it, too, and is raised.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        git_dir: Path,
        timeout_s: float,
        credentials: Credentials | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        durable: bool = True,
    ) -> None:
        self.name = name
        self.url = parse_url(name, url)
        self.git_dir = git_dir
        self.timeout_s = timeout_s
        self.credentials = (credentials or Credentials()).with_environment()
        self.on_progress = on_progress
        self.cancelled = cancelled
        self.durable = durable
        """Whether what was fetched survives a power cut when ``fetch`` returns; libgit2 syncs nothing."""

    @property
    def path(self) -> Path | None:
        """The other repository, where it lies on this machine."""
        return self.url.path

    def refs(self) -> dict[str, str]:
        """What the remote advertises now, full ref names to object ids; peeled and odd names are left out."""

        def work(remote: pygit2.Remote, callbacks: Callbacks) -> dict[str, str]:
            heads = remote.list_heads(callbacks=callbacks, proxy=True)
            return {head.name: str(head.oid) for head in heads if head.name and _is_plain(head.name)}

        return self._run(work)

    def fetch(self, refspecs: Sequence[str]) -> None:
        """Fetch exactly these refspecs; no tags follow, nothing is pruned, ``FETCH_HEAD`` is left alone."""

        def work(remote: pygit2.Remote, callbacks: Callbacks) -> None:
            folder = self.git_dir / "objects" / "pack"
            before = set(os.listdir(folder)) if folder.is_dir() else set()
            remote.fetch(list(refspecs), callbacks=callbacks, prune=FetchPrune.NO_PRUNE, proxy=True)
            if self.durable:
                with translated("syncing what was fetched"):
                    _sync_new(folder, before)

        self._run(work, fetching=True)

    def push(self, refspecs: Sequence[str]) -> dict[str, str | None]:
        """Push exactly these refspecs; returns each remote ref's answer: ``None``, or why it was refused."""

        def work(remote: pygit2.Remote, callbacks: Callbacks) -> dict[str, str | None]:
            targets = [spec.rpartition(":")[2] for spec in refspecs]
            try:
                remote.push(list(refspecs), callbacks=callbacks, proxy=True)
            except pygit2.GitError as exc:
                if has_moved(str(exc)):  # nothing was sent
                    return dict.fromkeys(targets, _MOVED)
                raise
            return {target: callbacks.answer(target) for target in targets}

        return self._run(work)

    # ------------------------------------------------------------ inside

    def _run(self, work: Callable[[pygit2.Remote, Callbacks], Value], *, fetching: bool = False) -> Value:
        def transfer(pulse: Pulse) -> Value:
            # All of pygit2's objects live and die in this thread.
            with translated("preparing a fetch"):
                git_dir = _apart(self.git_dir) if fetching else self.git_dir
            repo = pygit2.Repository(str(git_dir), RepositoryOpenFlag.NO_SEARCH)
            try:
                return work(self._open(repo), Callbacks(self, repo, pulse))
            finally:
                repo.free()

        try:
            return run_transfer(transfer, timeout_s=self.timeout_s, cancelled=self.cancelled)
        except Stopped:
            raise TransferCancelled(self.name, f"the transfer with {self.url.shown} was cancelled") from None
        except Stalled:
            raise RemoteError(self.name, explain(self.url, "timed out", self.timeout_s)) from None
        except pygit2.AuthError as exc:
            raise AuthFailed(self.name, explain(self.url, str(exc), self.timeout_s)) from None
        except ScpGitError:
            raise
        except (pygit2.GitError, KeyError, ValueError, OSError) as exc:
            if is_full_disk(str(exc)):
                raise StorageFailed(f"a transfer with {self.url.shown}", "no space left on device") from None
            # From None: libgit2's own words may quote the URL.
            raise RemoteError(self.name, explain(self.url, str(exc), self.timeout_s)) from None

    def _open(self, repo: pygit2.Repository) -> pygit2.Remote:
        remote = repo.remotes.create_anonymous(self.url.plain)
        if remote.url != self.url.plain:
            # libgit2 applies insteadOf once more, where git would not.
            again = parse_url(self.name, remote.url or "")
            if (again.scheme, again.host, again.port) != (self.url.scheme, self.url.host, self.url.port):
                raise RemoteError(self.name, "url.*.insteadOf of git config leads to another host")
        if self.url.scheme == "https":
            self._trust_authorities(repo)
        return remote

    def _trust_authorities(self, repo: pygit2.Repository) -> None:
        path = self.credentials.ca_file or _authorities(repo.config, self.url)
        if path is None:
            return
        try:
            trust(path)
        except (OSError, pygit2.GitError):
            reason = f"the certificate authorities in {path} cannot be read; see http.sslCAInfo"
            raise RemoteError(self.name, reason) from None


def _sync_new(folder: Path, before: set[str]) -> None:
    """Make the packs durable that were not there before."""
    new = {name for name in os.listdir(folder) if name.endswith((".pack", ".idx"))} - before
    for name in new:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    if new:
        sync_dir(folder)


def _apart(git_dir: Path) -> Path:
    """A git dir with the refs and objects of ``git_dir``, and a ``FETCH_HEAD`` of its own.

    libgit2 empties that file at each fetch, even when told not to write it.
    """
    folder = git_dir / "scp" / "transfer"
    if not (folder / "HEAD").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _place(folder / "commondir", b"../..\n")
        _place(folder / "HEAD", f"ref: {LEDGER_REF}\n".encode())
    # Where the history of a shallow clone ends, libgit2 looks up here and not in the common folder.
    try:
        _place(folder / "shallow", (git_dir / "shallow").read_bytes())
    except FileNotFoundError:
        (folder / "shallow").unlink(missing_ok=True)
    return folder


def _place(path: Path, data: bytes) -> None:
    scratch = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    scratch.write_bytes(data)
    scratch.replace(path)


def _authorities(config: pygit2.Config, url: Url) -> Path | None:
    """``http.<url>.sslCAInfo`` with the longest URL that fits, else ``http.sslCAInfo``."""
    best, found = -1, None
    for entry in config:
        if entry.name.startswith("http.") and entry.name.endswith(".sslcainfo"):
            place = entry.name[len("http.") : -len(".sslcainfo")] if entry.name.count(".") > 1 else ""
            if url.shown.startswith(place) and len(place) >= best and entry.value:
                best, found = len(place), Path(entry.value).expanduser()
    return found


def _is_plain(name: str) -> bool:
    """Whether an advertised name is a ref that git would accept."""
    return (
        len(name) <= _MAX_REF
        and _PLAIN_REF.fullmatch(name) is not None
        and ".." not in name
        and "@{" not in name
        and "//" not in name
        and not name.endswith(("/", ".", ".lock"))
        and not any(part.startswith(".") or part.endswith(".lock") for part in name.split("/"))
        and name.isprintable()
    )
