"""A folder that holds what was published, and nothing of anybody else's is touched in it.

A marker file lists what we put there. A file is replaced whole, by a rename, if it
changed; what is no longer published is removed. No symlink is followed below the
folder, nor is the folder one.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from scp_git.errors import OutputRefused, StorageFailed

MARKER = ".scp-git-site"
_TEMPORARY = ".scp-git-tmp-"
_MAX_MARKER_BYTES = 64 * 1024 * 1024
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def replace_site(path: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Afterwards the folder holds these files (``name`` or ``folder/name``), and none that we made before.

    It is made if it is missing. Raises ``OutputRefused``, with nothing changed, where it is a
    symlink, or holds anything that is not ours; ``StorageFailed`` when the disk refuses.
    """
    try:
        with _opened(Path(path)) as site:
            fcntl.flock(site.fd, fcntl.LOCK_EX)  # until it is closed
            before = _ours(site)
            _refuse_foreign(site, before, files)
            folders = sorted({name.partition("/")[0] for name in files if "/" in name})
            for folder in folders:
                _make_dir(site, folder)
            _sweep(site.fd)
            # Whatever happens from here on, the marker lists all that may be ours.
            _put(site.fd, MARKER, _marker({*before, *files}))
            for folder in folders:
                with site.folder_of(f"{folder}/") as (fd, _):
                    _sweep(fd)
            for name, data in files.items():
                with site.folder_of(name) as (fd, leaf):
                    if not _holds(fd, leaf, data):
                        _put(fd, leaf, data)
            for name in sorted(before - files.keys()):
                _remove(site, name)
            _put(site.fd, MARKER, _marker(set(files)))
    except OSError as exc:
        if isinstance(exc, StorageFailed):
            raise
        raise StorageFailed("writing the site", exc) from exc


class _Site:
    """The opened folder."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd

    @contextmanager
    def folder_of(self, name: str) -> Iterator[tuple[int, str]]:
        """The folder that a file lies in, opened, and its name there."""
        folder, slash, leaf = name.rpartition("/")
        if not slash:
            yield self.fd, leaf
            return
        fd = os.open(folder, _DIR_FLAGS, dir_fd=self.fd)
        try:
            yield fd, leaf
        finally:
            os.close(fd)

    def refused(self, reason: str) -> OutputRefused:
        return OutputRefused(self.path, reason)


@contextmanager
def _opened(path: Path) -> Iterator[_Site]:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        if path.is_symlink():
            raise OutputRefused(path, "is a symlink; give the folder it leads to") from None
        if not path.is_dir():
            raise OutputRefused(path, "is no folder") from None
    fd = os.open(path, _DIR_FLAGS)
    try:
        yield _Site(path, fd)
    finally:
        os.close(fd)


def _ours(site: _Site) -> set[str]:
    """What the marker says that we made. It may say anything, so only names that we would give count."""
    names = set(os.listdir(site.fd))
    if MARKER not in names:
        if names - {name for name in names if name.startswith(_TEMPORARY)}:
            raise site.refused(
                "holds files that were not published by scp-git; give an empty or a new folder"
            )
        return set()
    try:
        fd = os.open(MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=site.fd)
    except OSError as exc:
        raise site.refused(f"{MARKER} cannot be read: {exc.strerror}") from exc
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise site.refused(f"{MARKER} is no regular file")
        data = file.read(_MAX_MARKER_BYTES)
    try:
        listed = json.loads(data)["files"]
        return {name for name in listed if isinstance(name, str) and _is_page(name)}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise site.refused(f"{MARKER} is damaged; remove the folder and publish again") from None


def _is_page(name: str) -> bool:
    """``index.html``, ``feed.json`` or a page in one folder: nothing hidden, nothing that leads elsewhere."""
    parts = name.split("/")
    return (
        len(parts) <= 2
        and all(part and not part.startswith(".") and "\0" not in part for part in parts)
        and name.endswith((".html", ".json"))
    )


def _refuse_foreign(site: _Site, before: set[str], files: Mapping[str, bytes]) -> None:
    """Nothing that we would write over is somebody else's, and every folder is a folder."""
    folders: dict[str, set[str]] = {}
    for folder in {name.partition("/")[0] for name in (*before, *files) if "/" in name}:
        try:
            fd = os.open(folder, _DIR_FLAGS, dir_fd=site.fd)
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise site.refused(f"{folder} in it is no folder, or a symlink") from exc
        folders[folder] = {f"{folder}/{name}" for name in os.listdir(fd)}
        os.close(fd)
    present = set(os.listdir(site.fd)).union(*folders.values())
    foreign = sorted((present & files.keys()) - before)
    if foreign:
        raise site.refused(f"{foreign[0]} in it was not published by scp-git")


def _make_dir(site: _Site, folder: str) -> None:
    try:
        os.mkdir(folder, dir_fd=site.fd)
    except FileExistsError:
        pass


def _holds(folder: int, leaf: str, data: bytes) -> bool:
    """Whether a file has these bytes already: then its time stays, too, for whatever copies the site on."""
    try:
        fd = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        same = stat.S_ISREG(status.st_mode) and status.st_size == len(data)
        return same and os.read(fd, len(data) + 1) == data
    finally:
        os.close(fd)


def _put(folder: int, leaf: str, data: bytes) -> None:
    """Replace one file; whoever reads it sees the old or the new one."""
    temporary = _TEMPORARY + secrets.token_hex(8)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.rename(temporary, leaf, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(temporary, dir_fd=folder)
        raise


def _sweep(folder: int) -> None:
    """Remove what a call that was killed left behind."""
    for name in os.listdir(folder):
        if name.startswith(_TEMPORARY):
            os.unlink(name, dir_fd=folder)


def _remove(site: _Site, name: str) -> None:
    try:
        with site.folder_of(name) as (fd, leaf):
            os.unlink(leaf, dir_fd=fd)
        if "/" in name:
            os.rmdir(name.partition("/")[0], dir_fd=site.fd)
    except OSError:
        # Gone already, or the folder is not empty: what lies there is of others.
        return


def _marker(names: set[str]) -> bytes:
    return (json.dumps({"files": sorted(names)}, indent=1) + "\n").encode()
