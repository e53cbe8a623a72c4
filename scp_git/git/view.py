"""The view: the ledger branch checked out at ``.scp-ledger``, for people to look at.

It is a linked worktree named ``scp-ledger``, at the top of the main working tree.
It is written under the gate and never read. All files of the worktree are written
by us, as libgit2's ``add_worktree`` leaves half states that it then refuses to
repair; no symlink is ever followed or written.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from scp_git.errors import StorageFailed
from scp_git.git.files import unlink, write_all
from scp_git.git.handle import Repository, translated
from scp_git.git.index import IndexFile
from scp_git.git.locks import INDEX_LOCK_STALE_S, LockFile, heal_lock
from scp_git.git.objects import BLOB, hash_object
from scp_git.layout import IGNORE_RULE, LEDGER_REF, VIEW_ADMIN_NAME, VIEW_DIR

log = logging.getLogger(__name__)

ReadBlob = Callable[[str], bytes]
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class View:
    """The linked worktree of one repository that is not bare."""

    def __init__(self, repository: Repository, main_root: Path) -> None:
        self.repository = repository
        self.main_root = main_root
        self.path = main_root / VIEW_DIR
        self.admin = repository.common_dir / "worktrees" / VIEW_ADMIN_NAME
        self.index = IndexFile(self.admin / "index")
        self._healthy: tuple[object, ...] | None = None

    # ------------------------------------------------------------ the worktree's own files

    def _own_files(self) -> dict[Path, str]:
        # gitdir stays absolute: git before 2.48 lists a relative one as prunable.
        return {
            self.admin / "commondir": "../..\n",
            self.admin / "gitdir": f"{self.path}/.git\n",
            self.admin / "HEAD": f"ref: {LEDGER_REF}\n",
            self.path / ".git": f"gitdir: {self.admin}\n",
        }

    def healthy(self) -> bool:
        """Whether the worktree is attached; a few ``stat`` calls when nothing changed."""
        signature = self._signature()
        loaded = self.index.load()
        if loaded and None not in signature and signature == self._healthy:
            return True
        self._healthy = None
        if not loaded:
            return False
        if self.path.is_symlink():
            return False
        for path, text in self._own_files().items():
            try:
                if path.is_symlink() or path.read_text() != text:
                    return False
            except (OSError, ValueError):
                return False
        self._healthy = signature
        return True

    def _signature(self) -> tuple[object, ...]:
        return tuple(_state(path) for path in self._own_files())

    def attach(self) -> None:
        """Write the worktree's own files where they are missing or wrong; the index starts empty.

        Raises ``StorageFailed`` when something that is not ours is in the way.
        """
        try:
            self._refuse_strangers()
            self._adopt()
            self.path.mkdir(exist_ok=True)
            self.admin.mkdir(parents=True, exist_ok=True)
            for path, text in self._own_files().items():
                if path.is_symlink() or not path.is_file() or path.read_bytes() != text.encode():
                    _replace(path, text.encode())
            if not self.index.load():
                heal_lock(self.admin / "index.lock", INDEX_LOCK_STALE_S)
                self.index.clear()
        except OSError as exc:
            raise StorageFailed(f"creating {VIEW_DIR}", exc) from exc

    def explain(self) -> None:
        """Raise ``StorageFailed`` with the reason why there is no view."""
        self._refuse_strangers()
        raise StorageFailed(f"creating {VIEW_DIR}", f"{self.path} cannot be written")

    def _refuse_strangers(self) -> None:
        if self.path.is_symlink():
            raise StorageFailed(f"creating {VIEW_DIR}", f"{self.path} is a symbolic link; remove it")
        if self.path.exists() and not self.path.is_dir():
            raise StorageFailed(f"creating {VIEW_DIR}", f"{self.path} is a file; remove it")
        if (self.path / ".git").is_dir():
            raise StorageFailed(f"creating {VIEW_DIR}", f"{self.path} holds another repository; move it away")

    def _adopt(self) -> None:
        """Take the folder over from a worktree of another name (``git worktree add``, the earlier program).

        Two names for one folder would confuse git, and a name with a leading dot makes fsck fail.
        """
        ours = f"{self.path}/.git"
        for other in self.admin.parent.glob("*") if self.admin.parent.is_dir() else ():
            gitdir = other / "gitdir"
            if other == self.admin or other.is_symlink() or not gitdir.is_file():
                continue
            if os.path.normpath(gitdir.read_text(errors="replace").strip()) == ours:
                log.warning("taking %s over from the worktree %s", VIEW_DIR, other.name)
                shutil.rmtree(other)

    def ignore(self) -> None:
        """See to it that git ignores the view: once, in ``.gitignore``, or else in ``info/exclude``."""
        if self.repository.ignores(IGNORE_RULE):
            return
        gitignore = self.main_root / ".gitignore"
        try:
            _append_line(gitignore, IGNORE_RULE)
            if self.repository.ignores(IGNORE_RULE):
                return
        except OSError as exc:
            log.warning("%s cannot be written (%s); using info/exclude", gitignore.name, exc.strerror)
        with translated("writing info/exclude"):
            exclude = self.repository.common_dir / "info" / "exclude"
            exclude.parent.mkdir(exist_ok=True)
            _append_line(exclude, IGNORE_RULE)

    # ------------------------------------------------------------ its files

    def lock(self, scratch: Path) -> LockFile | None:
        """The index lock, to be taken before the refs move; ``None`` where it cannot even be prepared."""
        try:
            return LockFile(self.index.path, scratch, b"", sync=False)
        except OSError as exc:
            log.warning("the view cannot be locked: %s", exc)
            return None

    def apply(self, changes: Mapping[str, str | None], read: ReadBlob, lock: LockFile) -> None:
        """Write the changed files (path to blob id, None = removed) and the index, under ``lock``."""
        self.index.load()
        with _Folder(self.path) as folder:
            for path, oid in changes.items():
                name = os.fsencode(path)
                if oid is None:
                    folder.remove(path)
                    self.index.remove(name)
                else:
                    self.index.put(name, oid, folder.write(path, read(oid)))
        self._commit(lock)

    def compare(
        self,
        files: Iterable[tuple[str, str]],
        read: ReadBlob,
        lock: LockFile,
        *,
        deep: bool,
        gone: Iterable[str] = (),
    ) -> None:
        """Make the view show exactly ``files`` (path and blob id); other people's files are left alone.

        With ``deep`` every file's state is looked at, else only what the index says.
        The files in the folders ``gone`` are removed, whatever the index says.
        """
        wanted = dict(files)
        self.index.load()
        changes: dict[str, str | None] = {
            os.fsdecode(path): None for path in self.index.paths() if os.fsdecode(path) not in wanted
        }
        with _Folder(self.path) as folder:
            for path, oid in wanted.items():
                name = os.fsencode(path)
                if self.index.oid(name) != oid or (deep and not self._intact(folder, path, oid)):
                    changes[path] = oid
            for path in gone:
                changes.update({f"{path}/{name}": None for name in folder.names(path)})
        self.apply(changes, read, lock)

    def names(self, path: str) -> list[str]:
        """The names in a folder of the view as it lies on the disk."""
        try:
            with _Folder(self.path) as folder:
                return folder.names(path)
        except OSError:
            return []

    def _intact(self, folder: _Folder, path: str, oid: str) -> bool:
        stat = folder.stat(path)
        if stat is None:
            return False
        if self.index.matches(os.fsencode(path), stat):
            return True
        data = folder.read(path)
        if data is None or hash_object(BLOB, data) != oid:
            return False
        self.index.put(os.fsencode(path), oid, stat)
        return True

    def _commit(self, lock: LockFile) -> None:
        lock.fill(self.index.encode(), sync=False)
        lock.commit()
        self.index.written()


class _Folder:
    """Files below one folder, reached component by component without following a symlink."""

    def __init__(self, path: Path) -> None:
        self._root = os.open(path, _DIR_FLAGS)
        self._open: dict[str, int] = {"": self._root}

    def __enter__(self) -> _Folder:
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
            if not isinstance(exc, FileNotFoundError):  # a symlink or a file where a folder belongs
                _clear(leaf, parent)
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


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = os.lstat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".scp-new")
    unlink(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, data)
    finally:
        os.close(fd)
    os.replace(temporary, path)


def _append_line(path: Path, line: str) -> None:
    """Append one line in one write, in the file's own line ending, mending a missing last newline."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(fd).st_size
        tail = os.pread(fd, 4096, max(size - 4096, 0))
        end = b"\r\n" if b"\r\n" in tail else b"\n"
        glue = end if tail and not tail.endswith(b"\n") else b""
        data = glue + line.encode() + end
        if os.write(fd, data) != len(data):  # the disk is full: no half line may stay
            os.ftruncate(fd, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(fd)
