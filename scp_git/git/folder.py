"""Writing and removing files below one folder without ever following a symlink."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from scp_git.git.files import write_all

_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Folder:
    """Files below one folder, reached component by component without following a symlink."""

    def __init__(self, path: Path) -> None:
        self._root = os.open(path, _DIR_FLAGS)
        self._open: dict[str, int] = {"": self._root}

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *exc: object) -> None:
        for fd in self._open.values():
            os.close(fd)

    def write(self, path: str, data: bytes) -> os.stat_result:
        """Write a file, mode 0644, replacing whatever bears its name but a folder with files of others."""
        head, _, leaf = path.rpartition("/")
        parent = self._descend(head, create=True)
        assert parent is not None
        try:
            fd = os.open(leaf, _FILE_FLAGS, 0o644, dir_fd=parent)
        except OSError as exc:
            if exc.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EMLINK):
                raise
            _clear(leaf, parent)
            fd = os.open(leaf, _FILE_FLAGS, 0o644, dir_fd=parent)
        try:
            write_all(fd, data)
            stat = os.fstat(fd)
            if stat.st_mode & 0o777 != 0o644 and stat.st_mode & 0o111:
                os.fchmod(fd, 0o644)
                stat = os.fstat(fd)
            return stat
        finally:
            os.close(fd)

    def remove(self, path: str) -> None:
        """Remove a file and the folders above it that become empty."""
        while path:
            head, _, leaf = path.rpartition("/")
            parent = self._descend(head, create=False)
            if parent is None:
                return
            try:
                if path in self._open:
                    os.close(self._open.pop(path))
                    os.rmdir(leaf, dir_fd=parent)
                elif _is_dir(leaf, parent):
                    os.rmdir(leaf, dir_fd=parent)
                else:
                    os.unlink(leaf, dir_fd=parent)
            except FileNotFoundError:
                pass
            except OSError:  # not empty: something of others is in it
                return
            path = head

    def stat(self, path: str) -> os.stat_result | None:
        head, _, leaf = path.rpartition("/")
        parent = self._descend(head, create=False)
        try:
            return None if parent is None else os.stat(leaf, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def names(self, path: str) -> list[str]:
        fd = self._descend(path, create=False)
        return [] if fd is None else os.listdir(fd)

    def read(self, path: str) -> bytes | None:
        head, _, leaf = path.rpartition("/")
        parent = self._descend(head, create=False)
        if parent is None:
            return None
        try:
            fd = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            with open(fd, "rb") as file:
                return file.read()
        except OSError:
            return None

    def _descend(self, path: str, *, create: bool) -> int | None:
        known = self._open.get(path)
        if known is not None:
            return known
        head, _, leaf = path.rpartition("/")
        parent = self._descend(head, create=create)
        if parent is None:
            return None
        try:
            fd = os.open(leaf, _DIR_FLAGS, dir_fd=parent)
        except OSError as exc:
            if not create:
                return None
            if exc.errno in (errno.ENOTDIR, errno.ELOOP, errno.EMLINK):  # a file or a symlink
                _clear(leaf, parent)
            elif exc.errno != errno.ENOENT:
                raise
            os.mkdir(leaf, 0o755, dir_fd=parent)
            fd = os.open(leaf, _DIR_FLAGS, dir_fd=parent)
        if len(self._open) > 200:
            for key in [key for key in self._open if key and not path.startswith(key)]:
                os.close(self._open.pop(key))
        self._open[path] = fd
        return fd


def _clear(leaf: str, parent: int) -> None:
    """Take away what stands where something of ours belongs; a folder only if it is empty."""
    if _is_dir(leaf, parent):
        os.rmdir(leaf, dir_fd=parent)
    else:
        os.unlink(leaf, dir_fd=parent)


def _is_dir(leaf: str, parent: int) -> bool:
    mode = os.stat(leaf, dir_fd=parent, follow_symlinks=False).st_mode
    return mode & 0o170000 == 0o040000
