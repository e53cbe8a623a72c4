"""The gate, and git's own ``.lock`` files.

The *gate* is one blocking ``flock`` for all writers of a repository; the kernel
frees it when its holder dies. Behind it stand git's lock files, as stock git does
not know the gate. A lock file's inode is known, and named in the intent, before
the lock exists: so a lock that a killed process of ours left is told from a
living one of git's and goes at once.
"""

from __future__ import annotations

import copy
import errno
import fcntl
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from scp_git.errors import RepositoryBusy
from scp_git.git.files import boot_time, make_dirs, unlink, write_all

log = logging.getLogger(__name__)

REF_LOCK_STALE_S = 60.0
"""git holds a ref lock for milliseconds; one that stood unchanged so long has no owner."""
INDEX_LOCK_STALE_S = 2 * 3600.0
"""An editor that git has opened may hold the view's index for an hour."""
MAINTENANCE = "maintenance"
"""The lock of whoever merges packs, in the folder of the gate."""
PACKING = "packing"
"""The lock of whoever moves tags to ``packed-refs``, likewise."""
_CHUNK_BYTES = 1024 * 1024
_POLL_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS}

_gates: weakref.WeakSet[Gate | TryLock] = weakref.WeakSet()
# Held while a descriptor is opened or closed and noted: a fork in between would
# give the child one that nobody knows of, and with it the gate.
_noting = threading.Lock()


class Gate:
    """Mutual exclusion of all writers of one repository, in all processes.

    Take it in the writer thread only: it blocks without a limit, and callers'
    deadlines are waited for elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gate"
        self._fd = -1
        _gates.add(self)

    def take(self) -> None:
        """Hold the gate; blocks until it is free."""
        while True:
            # Noted before it waits: a child forked meanwhile must close it, too.
            self._fd = _open_lock_file(self)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX)
                if os.fstat(self._fd).st_nlink:
                    return
            except BaseException:
                self.release()
                raise
            self.release()  # the file was removed meanwhile; others hold another one

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *exc: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others in."""
        _close_lock_file(self)


class TryLock:
    """A lock of ours that is taken only if it is free: another process that does the same work is enough."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        _gates.add(self)

    def __enter__(self) -> bool:
        self._fd = _open_lock_file(self)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def __exit__(self, *exc: object) -> None:
        _close_lock_file(self)

    def fileno(self) -> int:
        """The descriptor of the locked file; -1 when it is closed, as in a forked child."""
        return self._fd


def _open_lock_file(lock: Gate | TryLock) -> int:
    with _noting:
        lock._fd = os.open(lock.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        return lock._fd


def _close_lock_file(lock: Gate | TryLock) -> None:
    with _noting:
        fd, lock._fd = lock._fd, -1
        if fd >= 0:
            os.close(fd)


def _after_fork_in_child() -> None:
    """Close the parent's descriptors, which would hold its gates."""
    _noting.release()
    for lock in _gates:
        _close_lock_file(lock)


os.register_at_fork(
    before=_noting.acquire, after_in_parent=_noting.release, after_in_child=_after_fork_in_child
)


class LockFile:
    """One ``<target>.lock``; its content becomes the target by ``commit``.

    The content is written to ``scratch`` at once, in pieces, before the lock exists.
    """

    def __init__(self, target: Path, scratch: Path, content: Iterable[bytes], *, sync: bool) -> None:
        self.target = target
        self.path = target.with_name(target.name + ".lock")
        self._scratch = scratch
        self._sync = sync
        self.held = False
        unlink(scratch)
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            _write_pieces(fd, content)
            if sync:
                os.fsync(fd)
            self.inode = os.fstat(fd).st_ino
        except BaseException:
            unlink(scratch)
            raise
        finally:
            os.close(fd)

    def sibling(self, target: Path, scratch: Path) -> LockFile:
        """An empty lock for another target, before this one is taken: a link, as making files is slow."""
        unlink(scratch)
        try:
            os.link(self._scratch, scratch, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in _NO_LINKS:
                raise
            return LockFile(target, scratch, (), sync=self._sync)
        lock = copy.copy(self)
        lock.target, lock.path, lock._scratch = target, target.with_name(target.name + ".lock"), scratch
        return lock

    def take(self, deadline: float, stale_after_s: float = REF_LOCK_STALE_S) -> None:
        """Create the lock, waiting until ``deadline`` (``time.monotonic``) for another holder.

        Raises ``RepositoryBusy`` when the deadline passes, ``OSError`` when it cannot be created.
        """
        started, turn = time.monotonic(), 0
        while not self._try():
            if heal_lock(self.path, stale_after_s):
                continue
            now = time.monotonic()
            if now >= deadline:
                raise RepositoryBusy(str(self.path), now - started)
            time.sleep(min(_POLL_S[min(turn, len(_POLL_S) - 1)], max(deadline - now, 0)))
            turn += 1

    def _try(self) -> bool:
        make_dirs(self.path.parent, sync=self._sync)
        try:
            os.link(self._scratch, self.path, follow_symlinks=False)
        except FileExistsError:
            return False
        except FileNotFoundError:  # git removes empty ref folders; the next turn makes it again
            if not self._scratch.exists():
                raise
            return False
        except OSError as exc:
            if exc.errno not in _NO_LINKS:
                raise
            return self._try_without_links()
        self._taken()
        return True

    def _try_without_links(self) -> bool:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self.path, flags, 0o644)
        except FileExistsError:
            return False
        os.close(fd)
        self.held = True
        os.rename(self._scratch, self.path)
        return True

    def _taken(self) -> None:
        """The lock is ours from the moment it exists, whatever happens to the scratch file."""
        self.held = True
        with suppress(OSError):
            os.unlink(self._scratch)

    def fill(self, pieces: Iterable[bytes], *, sync: bool) -> None:
        """Replace the content of a lock that is held; not all of it is in memory at once."""
        fd = os.open(self.path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _write_pieces(fd, pieces)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def commit(self) -> None:
        """Make the lock's content the target's; the folder is not synced here."""
        if self.target.is_dir():  # git leaves empty folders where refs were
            for folder, _, _ in os.walk(self.target, topdown=False):
                os.rmdir(folder)
        os.rename(self.path, self.target)
        self.held = False

    def release(self) -> None:
        """Give the lock up, and remove what is left of it."""
        if self.held:
            unlink(self.path)
            self.held = False
        with suppress(OSError):
            os.unlink(self._scratch)


def _write_pieces(fd: int, pieces: Iterable[bytes]) -> None:
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _CHUNK_BYTES:
            write_all(fd, b"".join(held))
            held, size = [], 0
    write_all(fd, b"".join(held))


def heal_lock(path: Path, stale_after_s: float) -> bool:
    """Remove a lock whose holder must be dead; True if it is gone.

    Dead is what is older than the machine's start, or unchanged for
    ``stale_after_s``. Locks of ours are judged by the intent instead.
    """
    try:
        stat = os.lstat(path)
    except FileNotFoundError:
        return True
    age = time.time() - stat.st_mtime
    if stat.st_mtime >= boot_time() - 1 and age < stale_after_s:
        return False
    log.warning("removing the stale lock %s, unchanged for %.0f s", path.name, age)
    unlink(path)
    return True


def remove_own_lock(path: Path, inode: int) -> None:
    """Remove a lock that the intent of a dead process names: it still is that one, or precedes the boot."""
    try:
        stat = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.st_ino == inode or stat.st_mtime < boot_time() - 1:
        log.warning("removing %s, left by a process that was killed", path.name)
        unlink(path)
