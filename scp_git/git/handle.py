"""Opening a repository: where its folders are, who the user is, and reading objects.

pygit2 objects never cross threads: a handle is borrowed for one operation and
returned to a small pool. Nothing of pygit2, and no ``KeyError`` or ``OSError``,
leaves this package.
"""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import pygit2
from pygit2.enums import RepositoryOpenFlag

from scp_git.errors import NotARepository, ScpGitError, StorageFailed, UnsupportedRepository
from scp_git.git.objects import BLOB, COMMIT, TAG, TREE, Kind
from scp_git.git.refs import Refs
from scp_git.git.tree import TreeCache

Value = TypeVar("Value")

_POOL_SIZE = 4
# libgit2 keeps deleted packs mapped, so a handle is not used for ever.
_HANDLE_USES = 200
_HEADER_CRUD = ".,:;<>\"\\' \t\r\n\0"


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn what pygit2 and the system raise into ``StorageFailed``; errors of ours pass through."""
    try:
        yield
    except ScpGitError:
        raise
    except (pygit2.GitError, KeyError, OSError, MemoryError) as exc:
        raise StorageFailed(doing, exc) from exc


_moment: ContextVar[dict[tuple[str, Path], Any] | None] = ContextVar("scp_git_moment", default=None)


@contextmanager
def one_moment() -> Iterator[None]:
    """Within this block HEAD and the identity are read once per working tree."""
    token = _moment.set({})
    try:
        yield
    finally:
        _moment.reset(token)


def _once(name: str, git_dir: Path, read: Callable[[], Value]) -> Value:
    memory = _moment.get()
    if memory is None:
        return read()
    if (name, git_dir) not in memory:
        memory[name, git_dir] = read()
    return cast(Value, memory[name, git_dir])


@dataclass(frozen=True, slots=True)
class Identity:
    """A name and an address that are safe inside a commit header."""

    name: str
    email: str

    def stamp(self, seconds: int) -> str:
        """``Name <mail> <seconds> +0000``, as in a commit, a tag and an anchor."""
        return f"{self.name} <{self.email}> {min(max(seconds, 0), 2**32 - 1)} +0000"


class Odb:
    """Reads objects and git config of one repository; for one thread at a time."""

    _KINDS: dict[int, Kind] = {1: COMMIT, 2: TREE, 3: BLOB, 4: TAG}

    def __init__(self, git_dir: Path) -> None:
        self._repo = pygit2.Repository(str(git_dir), RepositoryOpenFlag.NO_SEARCH)
        self._odb = self._repo.odb
        self.config = self._repo.config
        """Git config; libgit2 looks at the files again at each access."""
        self.uses = 0

    def read(self, oid: str, *, limit: int | None = None) -> tuple[Kind, bytes] | None:
        """The object's kind and bytes, or ``None`` if it is not here.

        With ``limit`` the size is asked for first, so that a small file cannot
        fill the memory: more than ``limit`` bytes is ``StorageFailed``.
        """
        if limit is not None:
            found = self.header(oid)
            if found is not None and found[1] > limit:
                raise StorageFailed(f"reading object {oid[:10]}", f"{found[1]} bytes, limit {limit}")
        try:  # not "translated": an index that is made reads every object
            kind, data = self._odb.read(oid)
        except (KeyError, ValueError):
            return None
        except (pygit2.GitError, OSError, MemoryError) as exc:
            raise StorageFailed(f"reading object {oid[:10]}", exc) from exc
        return self._KINDS[int(kind)], data

    def kind(self, oid: str) -> Kind | None:
        """What kind of object this is, or ``None`` if it is not here."""
        found = self.header(oid)
        return found[0] if found else None

    def header(self, oid: str) -> tuple[Kind, int] | None:
        """What kind of object this is and its size, without reading it; ``None`` if it is not here."""
        try:  # not "translated": a sync asks for the header of every new object
            kind, size = self._odb.read_header(oid)
        except (KeyError, ValueError):
            return None
        except (pygit2.GitError, OSError, MemoryError) as exc:
            raise StorageFailed(f"reading object {oid[:10]}", exc) from exc
        return self._KINDS[int(kind)], int(size)

    def size(self, oid: str) -> int:
        """How many bytes an object has; 0 if it is not here."""
        with translated(f"reading object {oid[:10]}"):
            try:
                return int(self._odb.read_header(oid)[1])
            except (KeyError, ValueError):
                return 0

    def expand(self, digits: str) -> str | None:
        """The id of the only object that begins with these hex digits; reads no object."""
        with translated(f"looking for {digits[:10]}"):
            try:
                return str(self._repo.expand_id(digits))
            except (KeyError, ValueError):
                return None


class Repository:
    """One repository as seen from ``root``: its folders, refs, identity and objects. Thread-safe.

    ``main_root`` is the top of the main working tree, whichever working tree
    ``root`` is, or ``None`` in a bare repository.
    """

    def __init__(self, root: Path, git_dir: Path, common_dir: Path, main_root: Path | None) -> None:
        self.root = root
        self.git_dir = git_dir
        self.common_dir = common_dir
        self.main_root = main_root
        self.refs = Refs(common_dir)
        self.trees = TreeCache()
        self._pool: list[Odb] = []
        self._pool_pid = os.getpid()

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> Repository:
        """Open the repository whose working tree's top, or whose bare folder, is ``root``.

        Raises:
            NotARepository: there is none, or ``root`` lies inside one.
            UnsupportedRepository: sha256, reftable, another extension, or a foreign owner.
        """
        path = Path(os.path.realpath(os.fspath(root)))
        try:
            repo = pygit2.Repository(str(path), RepositoryOpenFlag.NO_SEARCH)
        except (pygit2.GitError, KeyError, ValueError, OSError) as exc:
            raise _refusal(path, exc) from exc
        if repo.is_bare:
            if Path(repo.path).resolve() != path:
                raise NotARepository(path, f"is part of the bare repository {repo.path}; pass that path")
        elif Path(repo.workdir).resolve() != path:
            raise NotARepository(path, f"is inside a repository; pass its top, {repo.workdir}")
        git_dir = Path(repo.path).resolve()
        common_dir = _common_dir(git_dir)
        main = not repo.is_bare and git_dir == common_dir
        return cls(path, git_dir, common_dir, path if main else _main_root(common_dir))

    def head(self) -> str | None:
        """The commit that HEAD of ``root`` names, or ``None`` before the first commit."""
        return _once("head", self.git_dir, lambda: self.refs.read_head(self.git_dir))

    @contextmanager
    def odb(self) -> Iterator[Odb]:
        """Borrow an object reader for one operation."""
        if self._pool_pid != os.getpid():  # a forked child must not share its parent's handles
            self._pool, self._pool_pid = [], os.getpid()
            self.trees = TreeCache()
        try:
            odb = self._pool.pop()
        except IndexError:
            odb = self.open_odb()
        yield odb
        odb.uses += 1
        if odb.uses < _HANDLE_USES and len(self._pool) < _POOL_SIZE:
            self._pool.append(odb)

    def open_odb(self) -> Odb:
        """An object reader of one's own."""
        with translated(f"opening {self.git_dir}"):
            return Odb(self.git_dir)

    def identity(self) -> Identity:
        """``user.name`` and ``user.email`` of git config; what is missing comes from the system's user."""
        return _once("identity", self.git_dir, self._identity)

    def _identity(self) -> Identity:
        name, email = (_clean(self._config_value(key)) for key in ("user.name", "user.email"))
        if not name or not email:
            login, full = _system_user()
            name = name or _clean(full) or _clean(login) or "unknown"
            email = email or f"{_clean(login) or 'unknown'}@{_clean(socket.gethostname()) or 'localhost'}"
        return Identity(name, email)

    def config(self, prefix: str) -> dict[str, str]:
        """The git config values below ``prefix`` (lower-case, with its dot), keyed by the name's rest."""
        return dict(self.config_entries(prefix))

    def config_entries(self, prefix: str) -> list[tuple[str, str]]:
        """As ``config``, but every value of a name that has several, in the order of the files."""
        with self.odb() as odb, translated("reading git config"):
            entries = [(_text(entry.raw_name), _text(entry.raw_value)) for entry in odb.config]
        return [(name[len(prefix) :], value) for name, value in entries if name.startswith(prefix)]

    def _config_value(self, name: str) -> str:
        with self.odb() as odb, translated("reading git config"):
            try:
                return str(odb.config[name])
            except KeyError:
                return ""
            except UnicodeDecodeError:
                found = [_text(entry.raw_value) for entry in odb.config if _text(entry.raw_name) == name]
                return found[-1] if found else ""

    def ignores(self, path: str) -> bool:
        """Whether the main working tree's ignore rules cover ``path``."""
        with translated("reading ignore rules"):
            repo = pygit2.Repository(str(self.main_root), RepositoryOpenFlag.NO_SEARCH)
            return bool(repo.path_is_ignored(path))


def _common_dir(git_dir: Path) -> Path:
    link = git_dir / "commondir"
    return (git_dir / link.read_text().strip()).resolve() if link.exists() else git_dir


def _main_root(common_dir: Path) -> Path | None:
    with translated(f"opening {common_dir}"):
        repo = pygit2.Repository(str(common_dir), RepositoryOpenFlag.NO_SEARCH)
        return None if repo.is_bare or not repo.workdir else Path(repo.workdir).resolve()


def _refusal(path: Path, exc: BaseException) -> ScpGitError:
    """The clear error for a path that libgit2 would not open; it gives no codes, only texts."""
    text = str(exc)
    if "not owned by" in text:
        return UnsupportedRepository(
            path, f"belongs to another user; to trust it: git config --global --add safe.directory {path}"
        )
    if "object format" in text:
        return UnsupportedRepository(path, "uses sha256 object names, which libgit2 cannot read yet")
    if "unsupported extension" in text or "unsupported repository version" in text:
        hint = " (reftable)" if "refstorage" in text.lower() else ""
        return UnsupportedRepository(path, f"{text}{hint}; this version of libgit2 cannot read it")
    if not path.exists():
        return NotARepository(path, "does not exist")
    parent = pygit2.discover_repository(str(path))
    if parent:
        top = Path(parent).parent if Path(parent).name == ".git" else Path(parent)
        return NotARepository(path, f"is inside a repository; pass its top, {top}")
    return NotARepository(path, "is not a git repository; run 'git init' there first")


def _system_user() -> tuple[str, str]:
    try:
        entry = pwd.getpwuid(os.geteuid())  # POSIX only; Windows would ask getpass.getuser()
    except KeyError:
        return str(os.geteuid()), ""
    return entry.pw_name, entry.pw_gecos.split(",")[0]


def _text(value: bytes | None) -> str:
    """A config value; old files are not always UTF-8."""
    return (value or b"").decode("utf-8", "replace")


def _clean(text: str) -> str:
    """Without what would end or forge a header line: newlines, NUL, angle brackets, bad Unicode."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(c for c in text if c not in "<>" and ord(c) >= 32 and ord(c) != 127).strip(_HEADER_CRUD)
