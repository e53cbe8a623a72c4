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
from scp_git.git.folder import Folder
from scp_git.git.handle import Repository, translated
from scp_git.git.index import IndexFile
from scp_git.git.locks import INDEX_LOCK_STALE_S, LockFile, heal_lock
from scp_git.git.names import stays_inside
from scp_git.git.objects import BLOB, hash_object
from scp_git.layout import IGNORE_RULE, LEDGER_REF, VIEW_ADMIN_NAME, VIEW_DIR, is_record_file

log = logging.getLogger(__name__)

ReadBlob = Callable[[str], bytes]
_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


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

    def _own_files(self) -> dict[Path, bytes]:
        # gitdir stays absolute: git before 2.48 lists a relative one as prunable.
        return {
            self.admin / "commondir": b"../..\n",
            self.admin / "gitdir": os.fsencode(f"{self.path}/.git\n"),
            self.admin / "HEAD": f"ref: {LEDGER_REF}\n".encode(),
            self.path / ".git": os.fsencode(f"gitdir: {self.admin}\n"),
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
        for path, data in self._own_files().items():
            try:
                if path.is_symlink() or path.read_bytes() != data:
                    return False
            except OSError:
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
            for path, data in self._own_files().items():
                if path.is_symlink() or not path.is_file() or path.read_bytes() != data:
                    _replace(path, data)
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
        if (self.path / ".git").is_dir() or self._is_of_another_repository():
            raise StorageFailed(f"creating {VIEW_DIR}", f"{self.path} holds another repository; move it away")

    def _is_of_another_repository(self) -> bool:
        """Whether the folder is a living worktree of another repository; a copied project's is not."""
        link = self.path / ".git"
        if not link.is_file():
            return False
        admin = Path(_line(link).removeprefix("gitdir: "))
        common, back = admin / "commondir", admin / "gitdir"
        if admin == self.admin or not admin.is_absolute() or not common.is_file() or not back.is_file():
            return False
        elsewhere = (admin / _line(common)).resolve() != self.repository.common_dir
        return elsewhere and os.path.normpath(_line(back)) == str(link)

    def _adopt(self) -> None:
        """Take the folder over from a worktree of another name (``git worktree add``, the earlier program).

        Two names for one folder would confuse git, and a name with a leading dot makes fsck fail.
        """
        ours = f"{self.path}/.git"
        for other in self.admin.parent.glob("*") if self.admin.parent.is_dir() else ():
            gitdir = other / "gitdir"
            if other == self.admin or other.is_symlink() or not gitdir.is_file():
                continue
            if os.path.normpath(_line(gitdir)) == ours:
                log.warning("taking %s over from the worktree %s", VIEW_DIR, other.name)
                shutil.rmtree(other)

    def ignore(self) -> None:
        """See to it that git ignores the view: once, in ``.gitignore``, or else in ``info/exclude``."""
        gitignore = self.main_root / ".gitignore"
        # git does not read a .gitignore that is a symlink; libgit2 does.
        if not gitignore.is_symlink():
            if self.repository.ignores(IGNORE_RULE):
                return
            try:
                _append_line(gitignore, IGNORE_RULE)
                if self.repository.ignores(IGNORE_RULE):
                    return
            except OSError as exc:
                log.warning("%s cannot be written (%s); using info/exclude", gitignore.name, exc.strerror)
        with translated("writing info/exclude"):
            exclude = self.repository.common_dir / "info" / "exclude"
            exclude.parent.mkdir(exist_ok=True)
            if not exclude.exists() or IGNORE_RULE not in exclude.read_text(errors="replace").split("\n"):
                _append_line(exclude, IGNORE_RULE)

    # ------------------------------------------------------------ its files

    def lock(self, scratch: Path) -> LockFile | None:
        """The index lock, to be taken before the refs move; ``None`` where it cannot even be prepared."""
        try:
            return LockFile(self.index.path, scratch, (), sync=False)
        except OSError as exc:
            log.warning("the view cannot be locked: %s", exc)
            return None

    def apply(self, changes: Mapping[str, str | None], read: ReadBlob, lock: LockFile) -> None:
        """Write the changed files (path to blob id, None = removed) and the index, under ``lock``."""
        self.index.load()
        with Folder(self.path) as folder:
            for path, oid in changes.items():
                name = os.fsencode(path)
                self.index.remove(name)
                if not stays_inside(path):  # somebody's branch must not lead out of the view
                    log.warning("not shown in the view, where its name leads out of it: %r", path)
                elif oid is None:
                    folder.remove(path)
                else:
                    self._write(folder, path, oid, read)
        self._commit(lock)

    def _write(self, folder: Folder, path: str, oid: str, read: ReadBlob) -> None:
        try:
            stat = folder.write(path, read(oid))
        except OSError as exc:
            if exc.errno not in _IN_THE_WAY:
                raise
            log.warning("%s is left out of the view, something of others is in the way", path)
        else:
            self.index.put(os.fsencode(path), oid, stat)

    def compare(
        self,
        files: Iterable[tuple[str, str]],
        read: ReadBlob,
        lock: LockFile,
        *,
        deep: bool,
        shown: Callable[[str], bool],
        gone: Iterable[str] = (),
    ) -> None:
        """Make the view show exactly ``files`` (path and blob id); other people's files are left alone.

        With ``deep`` every file's state is looked at, else only what the index says.
        What a person only staged leaves the index and stays on the disk: removed is
        what was ``shown`` before, and our files in the folders ``gone``.
        """
        wanted = dict(files)
        self.index.load()
        surplus = [name for name in self.index.paths() if os.fsdecode(name) not in wanted]
        for name in surplus:
            self.index.remove(name)
        removed = [os.fsdecode(name) for name in surplus if shown(os.fsdecode(name))]
        changes: dict[str, str | None] = dict.fromkeys(removed)
        with Folder(self.path) as folder:
            stale = (
                (path, oid)
                for path, oid in wanted.items()
                if self.index.oid(os.fsencode(path)) != oid or (deep and not self._intact(folder, path, oid))
            )
            changes.update(stale)
            for path in gone:
                changes.update(
                    {f"{path}/{file}": None for file in folder.names(path) if is_record_file(file)}
                )
        self.apply(changes, read, lock)

    def names(self, path: str) -> list[str]:
        """The names in a folder of the view as it lies on the disk."""
        try:
            with Folder(self.path) as folder:
                return folder.names(path)
        except OSError:
            return []

    def _intact(self, folder: Folder, path: str, oid: str) -> bool:
        stat = folder.stat(path)
        if stat is None or stat.st_mode & 0o111:
            return False
        if self.index.matches(os.fsencode(path), stat):
            return True
        data = folder.read(path)
        if data is None or hash_object(BLOB, data) != oid:
            return False
        self.index.put(os.fsencode(path), oid, stat)
        return True

    def _commit(self, lock: LockFile) -> None:
        lock.fill((self.index.encode(),), sync=False)
        lock.commit()
        self.index.written()


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = os.lstat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _line(path: Path) -> str:
    """The one line of a small file that names a path."""
    return os.fsdecode(path.read_bytes().replace(b"\0", b"")).strip()


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
