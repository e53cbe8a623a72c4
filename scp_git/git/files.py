"""Small things done to files, so that each is done in one way: synced writes and checked records."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

_TRIES = 50


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything; ``os.write`` may take less."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_dir(path: str | os.PathLike[str]) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dirs(path: Path, *, sync: bool) -> None:
    """Create a folder and those above it; durably if asked.

    git removes empty ref folders at any time, so one that vanishes meanwhile is made again.
    """
    for _ in range(_TRIES):
        if path.is_dir():
            return
        make_dirs(path.parent, sync=sync)
        try:
            path.mkdir()
            if sync:
                sync_dir(path.parent)
            return
        except (FileExistsError, FileNotFoundError):
            continue
    path.mkdir(exist_ok=True)


def unlink(path: str | os.PathLike[str]) -> None:
    """Remove a file that may be gone already."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def boot_id() -> str:
    """Tells one start of the machine from the next; empty where the system does not say (not Linux)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def boot_time() -> float:
    """When the machine was started, in seconds since 1970; 0 where the system does not say."""
    try:
        with open("/proc/stat") as file:
            return next((float(line.split()[1]) for line in file if line.startswith("btime ")), 0.0)
    except (OSError, ValueError):
        return 0.0


class CheckedRecord:
    """One JSON object in one fixed file, written in place under a checksum.

    A torn or missing record reads as ``None``. In place, as that needs one fsync
    where a rename needs two.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._pid = 0

    def read(self) -> dict[str, Any] | None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        digest, _, body = data.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return None
        value = json.loads(body)
        return value if isinstance(value, dict) else None

    def write(self, value: dict[str, Any], *, sync: bool) -> None:
        body = json.dumps(value, separators=(",", ":")).encode()
        data = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        fd = self._open()
        if os.pwrite(fd, data, 0) != len(data):
            raise OSError(28, os.strerror(28), str(self.path))  # a short write means a full disk
        os.ftruncate(fd, len(data))
        if sync:
            os.fsync(fd)

    def clear(self) -> None:
        os.ftruncate(self._open(), 0)

    def close(self) -> None:
        if self._fd >= 0 and self._pid == os.getpid():
            os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        self.close()

    def _open(self) -> int:
        if self._fd < 0 or self._pid != os.getpid():
            created = not self.path.exists()
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            self._pid = os.getpid()
            if created:
                sync_dir(self.path.parent)
        elif os.fstat(self._fd).st_nlink == 0:  # somebody removed the folder scp/
            self.close()
            return self._open()
        return self._fd
