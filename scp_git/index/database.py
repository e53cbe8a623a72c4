"""A disposable SQLite database beside the repository: it answers for the tips it was told of, or not at all.

It lies at ``<common git dir>/scp/index-<name>-<version>-<time made>.db`` and is never the
truth: whatever is wrong with it, it is dropped and made again, or ``Unusable`` sends the
reader to the objects themselves. A file that was dropped never gets its name back, since
SQLite, closing the old one, would remove the journal of the new one with it.

Imports nothing of git, so that a command can look at an index without it.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scp_git.errors import ScpGitError

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Tips = tuple[str, ...]
"""The commits of the refs that a database is made from, "" for an absent one; a new database has no tips."""

_BUSY_S = 5.0
_AVOID_S = 30.0
"""So long a database is left alone after somebody had held it for ``_BUSY_S``, or it could not be made."""
_POOL_SIZE = 4
_UNFINISHED_NS = 60 * 10**9
"""A database that was not finished after so long has nobody who makes it any more."""
_KEY_TABLE = "CREATE TABLE key (tips TEXT NOT NULL)"
_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})


class Unusable(Exception):
    """The index cannot answer; what it would have said must be read from the objects."""


class Damaged(Exception):
    """What the index says does not fit the repository: it is to be made again."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a database is called and holds; ``version`` changes with the meaning of what is in it."""

    name: str
    version: int
    statements: tuple[str, ...]

    def newest(self, folder: Path) -> Path | None:
        """The present file of this database, if there is one."""
        present = [
            name for name, version, ending in self._files(folder) if (version, ending) == (self.version, "db")
        ]
        return folder / max(present) if present else None

    def new_path(self, folder: Path) -> Path:
        """A name that no file ever had."""
        return folder / f"index-{self.name}-{self.version}-{time.time_ns():016x}.db"

    def outdated(self, folder: Path, present: Path) -> list[Path]:
        """The files that nobody needs beside ``present``; those of later versions are somebody's."""
        unfinished = f"{time.time_ns() - _UNFINISHED_NS:016x}"
        return [
            folder / name
            for name, version, ending in self._files(folder)
            if (ending == "new" and name.rpartition("-")[2] < unfinished)
            or (
                ending == "db"
                and (version < self.version or (version == self.version and name < present.name))
            )
        ]

    def _files(self, folder: Path) -> list[tuple[str, int, str]]:
        pattern = re.compile(rf"index-{self.name}-(\d{{1,9}})-[0-9a-f]{{16}}\.(db|new)")
        try:
            names = os.listdir(folder)
        except OSError:
            return []
        return [(name, int(found[1]), found[2]) for name in names if (found := pattern.fullmatch(name))]


class Database:
    """One such database. Thread-safe; shared by any number of processes.

    Connections are kept between reads, one thread uses one at a time. They are closed
    before a fork, as SQLite's must not be carried into a child.
    """

    def __init__(self, folder: Path, schema: Schema) -> None:
        self.folder = folder
        self.schema = schema
        self._idle: list[_Connection] = []
        self._updating = threading.Lock()
        self._pid = os.getpid()
        self._avoid_until = 0.0
        self._said = ""
        _databases.add(self)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that nobody uses just now; the next read opens them again."""
        while self._idle:
            try:
                self._idle.pop().db.close()
            except (IndexError, sqlite3.Error):
                continue

    def answer(
        self,
        read_tips: Callable[[], Tips],
        update: Callable[[sqlite3.Connection, Tips, Tips], None],
        query: Callable[[sqlite3.Connection], Answer],
    ) -> Answer:
        """What ``query`` finds in the database as it is for the tips that were read last.

        ``update(db, old, new)`` brings it from one state to the other; ``old`` is empty
        for a new database. ``Unusable`` where the database cannot be had.
        """
        if time.monotonic() < self._avoid_until:
            raise Unusable("it is left alone for a while")
        try:
            answer = self._twice(read_tips, update, query)
        except (sqlite3.Error, OSError, Damaged) as exc:
            if getattr(exc, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                self._avoid_until = time.monotonic() + _AVOID_S
            self._say(str(exc))
            raise Unusable(str(exc)) from exc
        except Unusable as exc:  # trying again with every read would cost as much as each of them
            self._avoid_until = time.monotonic() + _AVOID_S
            self._say(str(exc))
            raise
        except ScpGitError:
            raise
        except Exception as exc:  # a defect of the index must not keep anybody from reading
            log.exception("the index met an unexpected error")
            raise Unusable(str(exc)) from exc
        self._said = ""
        return answer

    def _twice(
        self,
        read_tips: Callable[[], Tips],
        update: Callable[[sqlite3.Connection, Tips, Tips], None],
        query: Callable[[sqlite3.Connection], Answer],
    ) -> Answer:
        for last in (False, True):
            path = None
            try:
                with self._borrowed() as connection:
                    path = connection.path
                    return self._answer(connection.db, read_tips, update, query)
            except (sqlite3.DatabaseError, Damaged) as exc:
                if path is None or not _means_broken(exc):
                    raise
                log.warning("an index is dropped and made again: %s", exc)
                self._drop(path)
                if last:
                    raise
        raise AssertionError("unreachable")

    def _answer(
        self,
        db: sqlite3.Connection,
        read_tips: Callable[[], Tips],
        update: Callable[[sqlite3.Connection, Tips, Tips], None],
        query: Callable[[sqlite3.Connection], Answer],
    ) -> Answer:
        with transaction(db, "BEGIN"):
            if key_of(db) == read_tips():
                return query(db)
        # One brings it up to date while the others wait for just that: threads here, processes in SQLite.
        with self._update_lock(), transaction(db, "BEGIN IMMEDIATE"):
            old, new = key_of(db), read_tips()
            if old != new:
                update(db, old, new)
                db.execute("UPDATE key SET tips = ?", (" ".join(new),))
            return query(db)

    @contextmanager
    def _update_lock(self) -> Iterator[None]:
        taken = self._updating.acquire(timeout=2 * _BUSY_S)
        try:
            yield
        finally:
            if taken:
                self._updating.release()

    # ------------------------------------------------------------ connections

    @contextmanager
    def _borrowed(self) -> Iterator[_Connection]:
        if self._pid != os.getpid():
            self._updating, self._pid = threading.Lock(), os.getpid()
        connection = self._take()
        try:
            yield connection
        except BaseException:
            connection.db.close()
            raise
        if len(self._idle) < _POOL_SIZE:
            self._idle.append(connection)
        else:
            connection.db.close()

    def _take(self) -> _Connection:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            if connection.is_current():
                return connection
            connection.db.close()
        path = self.schema.newest(self.folder)
        if path is None or path.is_symlink():
            path = self._create()
        return _Connection(path)

    def _create(self) -> Path:
        """Make an empty database; complete before it has its name, as others look for that."""
        self.folder.mkdir(exist_ok=True)
        path = self.schema.new_path(self.folder)
        unfinished = path.with_suffix(".new")
        try:
            db = sqlite3.connect(unfinished, isolation_level=None)
            try:
                db.execute("PRAGMA synchronous = OFF")
                with transaction(db, "BEGIN"):
                    for statement in (_KEY_TABLE, "INSERT INTO key VALUES ('')", *self.schema.statements):
                        db.execute(statement)
                db.execute("PRAGMA journal_mode = WAL")
            finally:
                db.close()
            os.rename(unfinished, path)
        except BaseException:
            _remove(unfinished)
            raise
        for old in self.schema.outdated(self.folder, path):
            _remove(old)
        return path

    def _drop(self, path: Path) -> None:
        self.close()
        _remove(path)

    def _say(self, reason: str) -> None:
        """Warn once of what keeps the index from being used, not with every read."""
        if reason != self._said:
            log.warning("the index cannot be used, everything is read from git instead: %s", reason)
        self._said = reason


class _Connection:
    """An open database and the file that it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = connect(path)
        self._inode = os.stat(path).st_ino

    def is_current(self) -> bool:
        """Whether the file still bears its name; it lost that if somebody dropped it."""
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError:
            return False


def connect(path: Path) -> sqlite3.Connection:
    """Open a database that is there. What is stored in it runs nothing: it may be a stranger's file."""
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=_BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")
    return db


@contextmanager
def transaction(db: sqlite3.Connection, begin: str) -> Iterator[None]:
    """Committed at the end, undone by an error."""
    db.execute(begin)
    try:
        yield
    except BaseException:
        try:
            db.execute("ROLLBACK")
        except sqlite3.Error:  # SQLite has rolled back already, or the connection goes anyway
            log.debug("no transaction is left to roll back")
        raise
    db.execute("COMMIT")


def key_of(db: sqlite3.Connection) -> Tips:
    """The tips that a database was made from."""
    row = db.execute("SELECT tips FROM key").fetchone()
    if row is None or not isinstance(row[0], str):
        raise Damaged("it does not say what it was made from")
    return tuple(row[0].split(" ")) if row[0] else ()


def _means_broken(exc: Exception) -> bool:
    if isinstance(exc, Damaged):
        return True
    code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    # SQLITE_ERROR is what a foreign database says, which lacks our tables; a short read, a truncated file.
    return code & 0xFF in _BROKEN or code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_IOERR_SHORT_READ)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        try:
            os.unlink(f"{path}{suffix}")
        except OSError:
            continue


_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _before_fork() -> None:
    for database in list(_databases):
        database.close()


os.register_at_fork(before=_before_fork)
