"""Reading refs as git keeps them: loose files, ``packed-refs`` and HEAD. Thread-safe.

Own code rather than libgit2's, as it is ten times quicker and does not hold the
GIL. Moving refs is ``publish.py``'s.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path

from scp_git.errors import StorageFailed
from scp_git.git.objects import is_oid

_PER_WORKTREE = ("refs/bisect/", "refs/worktree/", "refs/rewritten/")
_MAX_SYMBOLIC = 5
_STRIDE = 4096
_MANY = 64
_PLACES_MAX = 16 * 1024
PackedVersion = tuple[int, int, int] | None
"""Inode, size and time of change of a ``packed-refs``; None where there is none."""
PACKED_HEADER = b"# pack-refs with: peeled fully-peeled sorted \n"


def packed_line(ref: bytes, oid: str, peeled: str | None) -> bytes:
    """One ref as it stands in ``packed-refs``."""
    line = oid.encode() + b" " + ref + b"\n"
    return line + b"^" + peeled.encode() + b"\n" if peeled else line


class PackedRefs:
    """One version of the file ``packed-refs``."""

    def __init__(self, data: bytes | mmap.mmap = b"", version: PackedVersion = None) -> None:
        self.version = version
        # Only a file that somebody edited does not end like that.
        self._data = data if data[-1:] in (b"", b"\n") else data[:] + b"\n"
        first = data[: max(data.find(b"\n"), 0)]
        self._sorted = b" sorted" in first
        self._marks: tuple[list[bytes], list[int]] = ([], [])
        self._places: dict[bytes, int] = {}
        self._last = b""

    def prepare(self) -> PackedRefs:
        """Be ready to look up many refs, and each several times.

        The name and place of one every few kilobytes is noted, and what was found.
        """
        if not self._sorted or self._marks[0]:
            return self
        names: list[bytes] = []
        places: list[int] = []
        place = self._next_ref(0)
        while place < len(self._data):
            end = self._data.find(b"\n", place)
            names.append(bytes(self._data[place + 41 : end if end > 0 else len(self._data)]))
            places.append(place)
            place = self._next_ref(place + _STRIDE)
        for name, _, _ in self._lines(places[-1]) if places else ():
            self._last = name
        self._marks = names, places
        return self

    def get(self, name: str) -> str | None:
        """The object a ref names; by binary search where the file says that it is sorted."""
        wanted = name.encode()
        start = self._lower_bound(wanted) if self._sorted else 0
        for ref, oid, _ in self._lines(start):
            if ref == wanted:
                return oid.decode("ascii", "replace")
            if self._sorted and ref > wanted:
                break
        return None

    def below(self, name: str) -> str | None:
        """A ref for which ``name`` would be a folder."""
        folder = f"{name}/".encode()
        if self._sorted:
            # From the name itself, which is looked up as well: seldom does anything lie between the two.
            following = next(self._lines(self._lower_bound(name.encode())), None)
            if following is None or (following[0] > folder and not following[0].startswith(folder)):
                return None
        return next((found for found, _, _ in self.entries(f"{name}/")), None)

    def entries(self, prefix: str = "") -> Iterator[tuple[str, str, str | None]]:
        """Name, object and peeled object of every ref below ``prefix``."""
        start = prefix.encode()
        for ref, oid, peeled in self._lines(self._lower_bound(start) if self._sorted and prefix else 0):
            if ref.startswith(start):
                yield ref.decode("utf-8", "surrogateescape"), oid.decode(), peeled
            elif self._sorted and ref > start:
                break

    def spliced(self, changes: Mapping[str, tuple[str, str | None] | None]) -> Iterator[bytes]:
        """The file with refs set (object and peeled object) or removed (None), in pieces.

        What does not change is copied, not parsed: so a hundred thousand refs are
        rewritten in the time that the disk takes.
        """
        encoded = {name.encode("utf-8", "surrogateescape"): row for name, row in changes.items()}
        if not self._sorted:
            rows = {ref: (oid.decode(), peeled) for ref, oid, peeled in self._lines(0)}
            encoded = {**rows, **encoded}
        data = self._data if self._sorted else b""
        position = 0
        if not data:
            yield PACKED_HEADER
        elif len(encoded) >= _MANY:
            self.prepare()
        for ref, row in sorted(encoded.items()):
            start = self._lower_bound(ref) if data else 0
            yield data[position:start]
            position = self._end_of(ref, start) if data else 0
            if row is not None:
                yield packed_line(ref, *row)
        yield data[position:]

    def _next_ref(self, position: int) -> int:
        """The start of the first ref line that begins at ``position`` or later."""
        data = self._data
        if position:
            position = data.find(b"\n", position - 1) + 1 or len(data)
        while data[position : position + 1] in (b"#", b"^"):
            position = data.find(b"\n", position) + 1 or len(data)
        return position

    def _end_of(self, ref: bytes, start: int) -> int:
        """Where the ref's line ends, with its peeled line; ``start`` if it is not there."""
        data = self._data
        end = data.find(b"\n", start) + 1 or len(data)
        if data[start + 41 : end].rstrip(b"\n") != ref:
            return start
        if data[end : end + 1] == b"^":
            end = data.find(b"\n", end) + 1 or len(data)
        return end

    def _lines(self, position: int) -> Iterator[tuple[bytes, bytes, str | None]]:
        data, size = self._data, len(self._data)
        while position < size:
            end = data.find(b"\n", position)
            end = size if end < 0 else end
            line = bytes(data[position:end])
            position = end + 1
            if len(line) < 42 or line[:1] in b"#^":
                continue
            peeled = None
            if data[position : position + 1] == b"^":
                peeled = bytes(data[position + 1 : position + 41]).decode("ascii", "replace")
            yield line[41:], line[:40], peeled

    def _lower_bound(self, wanted: bytes) -> int:
        """The start of the first ref line whose name is not below ``wanted``."""
        names, places = self._marks
        if not names:
            return self._search(wanted, 0, len(self._data))
        place = self._places.get(wanted)
        if place is None and wanted > self._last:
            return len(self._data)
        if place is None:
            after = bisect_left(names, wanted)
            high = places[after] if after < len(places) else len(self._data)
            place = self._search(wanted, places[after - 1] if after else 0, high)
            if len(self._places) >= _PLACES_MAX:
                self._places.clear()
            self._places[wanted] = place
        return place

    def _search(self, wanted: bytes, low: int, high: int) -> int:
        data = self._data
        while low < high:
            middle = (low + high) // 2
            start = data.rfind(b"\n", low, middle) + 1 or low
            end = data.find(b"\n", start)
            end = len(data) if end < 0 else end
            line = bytes(data[start:end])
            if line[:1] == b"^" and start > low:  # belongs to the line before
                start = data.rfind(b"\n", low, start - 1) + 1 or low
                line = bytes(data[start : data.find(b"\n", start)])
            if line[:1] in (b"#", b"^") or line[41:] < wanted:
                low = end + 1
            else:
                high = start
        return low


class Survey:
    """What ``Refs`` says of the refs in one folder, without asking the file system for each."""

    def __init__(self, refs: Refs, files: set[str], folders: set[str], packed: PackedRefs) -> None:
        self._refs = refs
        self._files = files
        self._folders = folders
        self._packed = packed

    def read(self, name: str) -> str | None:
        if name in self._files or name in self._folders:
            return self._refs.read(name)
        oid = self._packed.get(name)
        return oid if is_oid(oid) else None

    def read_direct(self, name: str) -> str | None:
        if name in self._files or name in self._folders:
            return self._refs.read_direct(name)
        return self.read(name)

    def below(self, name: str) -> str | None:
        return self._refs.below(name) if name in self._folders else self._packed.below(name)


class Refs:
    """The refs below one common git dir."""

    def __init__(self, common_dir: Path) -> None:
        self.common_dir = common_dir
        self._packed_path = str(common_dir / "packed-refs")
        self._cached = PackedRefs()

    def read(self, name: str) -> str | None:
        """The object id that a full ref name leads to; ``None`` if it is absent or its file is damaged."""
        return self._resolve(name, self.common_dir)

    def read_head(self, git_dir: Path) -> str | None:
        """The commit of a working tree's HEAD, or ``None`` before the first commit."""
        return self._resolve("HEAD", git_dir)

    def read_direct(self, name: str) -> str | None:
        """As ``read``, but a symbolic ref is refused: ours never are."""
        text = self._text(name, self.common_dir)
        if text is not None and text.startswith("ref:"):
            raise StorageFailed(f"reading {name}", "it is a symbolic ref; delete it, its history is kept")
        return text if is_oid(text) else None

    def packed(self) -> PackedRefs:
        """The present ``packed-refs``, read again only when the file changed."""
        try:
            version = _version(os.stat(self._packed_path))
            packed = self._cached
            if packed.version == version:
                return packed
            with open(self._packed_path, "rb") as file:
                version = _version(os.fstat(file.fileno()))
                packed = PackedRefs(file.read(), version)
        except FileNotFoundError:
            return PackedRefs()
        except OSError as exc:
            raise StorageFailed("reading packed-refs", exc) from exc
        self._cached = packed
        return packed

    def list(self, prefix: str) -> dict[str, str]:
        """All refs below ``prefix`` (a folder, with its slash): name to object id."""
        # Loose names first: git packs a ref before it removes the loose file.
        loose = dict(self.loose(prefix))
        found = {name: oid for name, oid, _ in self.packed().entries(prefix)}
        found.update(loose)
        return found

    def obstacle(self, name: str) -> str | None:
        """A ref that keeps ``name`` from being one: a folder of it, or below it."""
        return self.above(name) or self.below(name)

    def above(self, name: str) -> str | None:
        """A ref that bears the name of one of the folders of ``name``."""
        parts = name.split("/")
        folders = ("/".join(parts[:depth]) for depth in range(3, len(parts)))
        return next((folder for folder in folders if self._text(folder, self.common_dir) is not None), None)

    def below(self, name: str) -> str | None:
        """A ref for which ``name`` would be a folder."""
        return self.packed().below(name) or next((found for found, _ in self.loose(f"{name}/")), None)

    def survey(self, prefix: str) -> Survey:
        """The refs of one folder as they are at this moment, for looking up many."""
        files: set[str] = set()
        folders: set[str] = set()
        try:
            with os.scandir(self.common_dir / prefix) as entries:
                for entry in entries:
                    (folders if entry.is_dir(follow_symlinks=False) else files).add(prefix + entry.name)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as exc:
            raise StorageFailed(f"listing {prefix}", exc) from exc
        return Survey(self, files, folders, self.packed().prepare())

    def loose(self, prefix: str) -> Iterator[tuple[str, str]]:
        try:
            with os.scandir(self.common_dir / prefix) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        yield from self.loose(name + "/")
                    elif not name.endswith(".lock"):
                        oid = self._file(os.path.join(self.common_dir, name))
                        if is_oid(oid):
                            yield name, str(oid)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as exc:
            raise StorageFailed(f"listing {prefix}", exc) from exc

    def _resolve(self, name: str, folder: Path) -> str | None:
        for _ in range(_MAX_SYMBOLIC):
            text = self._text(name, folder)
            if text is None or not text.startswith("ref:"):
                return text if is_oid(text) else None
            name = text[4:].strip()
            # A file that a power cut tore may hold anything, NUL included.
            if ".." in name.split("/") or not name.startswith("refs/") or not name.isprintable():
                return None
            if not name.startswith(_PER_WORKTREE):
                folder = self.common_dir
        return None

    def read_loose(self, name: str) -> str | None:
        """The object id in the ref's own file, if it has one."""
        text = self._file(os.path.join(self.common_dir, name))
        return text if is_oid(text) else None

    def _text(self, name: str, folder: Path) -> str | None:
        text = self._file(os.path.join(folder, name))
        return text if text is not None else self.packed().get(name)

    def _file(self, path: str) -> str | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as exc:
            raise StorageFailed("reading a ref", exc) from exc
        try:
            return os.read(fd, 4096).decode("utf-8", "replace").strip()
        except IsADirectoryError:
            return None
        except OSError as exc:
            raise StorageFailed("reading a ref", exc) from exc
        finally:
            os.close(fd)


def _version(stat: os.stat_result) -> PackedVersion:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
