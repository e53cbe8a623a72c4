"""Writing packs: everything that one transaction adds becomes one pack.

Format: https://git-scm.com/docs/pack-format (pack version 2, index version 2).
Our packs carry a recognisable name, so that housekeeping knows them without a
register: ``pack-5c96170d`` and 32 further hex digits.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from scp_git.git.files import make_dirs, sync_dir, unlink, write_all
from scp_git.git.locks import MAINTENANCE, TryLock

OUR_PREFIX = "pack-5c96170d"
KEEP_TEXT = b"scp-git\n"
# Not tmp_...: those git prune removes; and not ending in .idx, which git would read.
_TEMPORARY = "scp-new-"
_HELD: AbstractContextManager[object] = nullcontext()
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Pack:
    """A written pack: the path without its ending."""

    stem: Path

    @property
    def name(self) -> str:
        return self.stem.name

    def release(self) -> None:
        """Remove the ``.keep``: from now on the refs keep the objects."""
        unlink(self.stem.with_suffix(".keep"))

    def discard(self) -> None:
        """Remove the pack altogether; no ref leads to it."""
        for suffix in (".idx", ".pack", ".keep"):
            unlink(self.stem.with_suffix(suffix))


def write_pack(
    common_dir: Path,
    entries: Iterable[tuple[str, bytes]],
    *,
    sync: bool,
    count: int | None = None,
    scratch: str = "tx",
    gate: AbstractContextManager[object] = _HELD,
) -> Pack:
    """Write a pack with its index, guarded by a ``.keep`` until ``release``.

    The entries go to the disk as they come; ``count`` says how many, unless they
    are a sequence.

    The ``.keep`` comes first, so that no moment exists in which a concurrent ``git
    gc --prune=now`` sees the pack and may drop its objects. It is covered by the
    fsync of the folder; its content does not matter. Whoever does not hold the gate
    passes it, to be held while the files get their names.
    """
    folder = common_dir / "objects" / "pack"
    make_dirs(folder, sync=sync)
    if count is None:
        assert isinstance(entries, Sequence)
        count = len(entries)
    body = _Body(entries, count)
    pack = None
    suffixes = (".pack", ".idx")
    try:
        _write_file(_temporary(folder, scratch, ".pack"), body, sync)
        pack = Pack(folder / (OUR_PREFIX + body.trailer.hex()[: 45 - len(OUR_PREFIX)]))
        _write_file(_temporary(folder, scratch, ".idx"), (body.index.encode(body.trailer),), sync)
        with gate:
            _write_file(pack.stem.with_suffix(".keep"), (KEEP_TEXT,), sync=False, mode=0o644)
            for suffix in suffixes:
                os.rename(_temporary(folder, scratch, suffix), pack.stem.with_suffix(suffix))
            if sync:
                sync_dir(folder)
    except BaseException:
        for suffix in suffixes:
            unlink(_temporary(folder, scratch, suffix))
        if pack:
            pack.discard()
        raise
    return pack


def _temporary(folder: Path, scratch: str, suffix: str) -> Path:
    return folder / f"{_TEMPORARY}{scratch}-{suffix[1:]}"


class PackIndex:
    """The ids, checksums and places of a pack's entries; in arrays, as a merge has hundreds of thousands."""

    def __init__(self) -> None:
        self._oids: list[str] = []
        self._crcs = array("I")
        self._offsets = array("Q")

    def add(self, oid: str, crc: int, offset: int) -> None:
        self._oids.append(oid)
        self._crcs.append(crc)
        self._offsets.append(offset)

    def encode(self, trailer: bytes) -> bytes:
        """The ``.idx`` file, version 2, for a pack that ends in ``trailer``."""
        order = sorted(range(len(self._oids)), key=self._oids.__getitem__)
        oids = bytes.fromhex("".join([self._oids[i] for i in order]))
        counts = [0] * 256
        for first in oids[::20]:
            counts[first] += 1
        short, large = array("I"), array("Q")
        for i in order:
            offset = self._offsets[i]
            short.append(offset if offset < 2**31 else 2**31 + len(large))
            if offset >= 2**31:
                large.append(offset)
        columns = (array("I", [self._crcs[i] for i in order]), short, large)
        if sys.byteorder == "little":
            for column in columns:
                column.byteswap()
        body = b"".join(
            [
                b"\xfftOc\0\0\0\2",
                struct.pack(">256I", *accumulate(counts)),
                oids,
                *(column.tobytes() for column in columns),
                trailer,
            ]
        )
        return body + hashlib.sha1(body, usedforsecurity=False).digest()


class _Body:
    """The bytes of a pack in chunks; once they were taken, its trailer and its index."""

    def __init__(self, entries: Iterable[tuple[str, bytes]], count: int) -> None:
        self.index = PackIndex()
        self.trailer = b""
        self._entries = entries
        self._count = count

    def __iter__(self) -> Iterator[bytes]:
        header = b"PACK" + (2).to_bytes(4, "big") + self._count.to_bytes(4, "big")
        digest = hashlib.sha1(usedforsecurity=False)
        chunk, offset, held = [header], len(header), 0
        add = self.index.add
        for oid, data in self._entries:
            add(oid, zlib.crc32(data), offset)
            chunk.append(data)
            offset += len(data)
            held += len(data)
            if held >= _CHUNK_BYTES:
                for piece in chunk if len(data) >= _CHUNK_BYTES else (b"".join(chunk),):
                    digest.update(piece)
                    yield piece
                chunk, held = [], 0
        digest.update(b"".join(chunk))
        self.trailer = digest.digest()
        yield b"".join([*chunk, self.trailer])


def _write_file(path: Path, chunks: Iterable[bytes], sync: bool, mode: int = 0o444) -> None:
    unlink(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        for chunk in chunks:
            write_all(fd, chunk)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def remove_stale(common_dir: Path) -> int:
    """Remove what dead processes left: ``.keep`` files, temporary files, and packs without an index.

    Call only while holding the gate: then no living transaction has any. Returns
    how many packs of ours there are.
    """
    folder = common_dir / "objects" / "pack"
    try:
        names = set(os.listdir(folder))
    except FileNotFoundError:
        return 0
    count = 0
    for name in names:
        stem, _, suffix = name.rpartition(".")
        ours = name.startswith(OUR_PREFIX)
        count += ours and suffix == "idx"
        half = suffix == "pack" and f"{stem}.idx" not in names
        if (ours and (suffix == "keep" or half)) or name.startswith(f"{_TEMPORARY}tx-"):
            unlink(folder / name)
        elif name.startswith(f"{_TEMPORARY}merge-"):
            with TryLock(common_dir / "scp" / MAINTENANCE) as nobody_merges:
                if nobody_merges:
                    unlink(folder / name)
    return count
