"""Objects as they lie in a pack: type and size, then the compressed bytes.

Format: https://git-scm.com/docs/pack-format
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

TYPES = {"commit": 1, "tree": 2, "blob": 3, "tag": 4}
# Wide trees are rewritten by every commit and turned into deltas when packs are
# merged, so their first pack does not spend a millisecond on compressing them.
_STORED_TREE_BYTES = 4096
_STORED_TREE_MAX = 512 * 1024
# zlib clears a quarter of a megabyte for each object unless told that the object is small.
_SMALL_BYTES, _SMALL_WINDOW, _SMALL_MEMORY = 4095, 12, 4
# Half of such a tree is object ids, which do not get smaller.
_TINY_TREE_BYTES = 512


class PackEntry(NamedTuple):
    """One object as it lies in a pack: its id and its header with compressed data."""

    oid: str
    data: bytes


def encode_entry(oid: str, kind: str, data: bytes) -> PackEntry:
    """An object in full."""
    return PackEntry(oid, entry_header(TYPES[kind], len(data)) + _deflate(kind, data))


def _deflate(kind: str, data: bytes) -> bytes:
    if len(data) <= _SMALL_BYTES:
        if kind == "tree" and len(data) <= _TINY_TREE_BYTES:
            return _stored(data)
        small = zlib.compressobj(1, zlib.DEFLATED, _SMALL_WINDOW, _SMALL_MEMORY)
        return small.compress(data) + small.flush()
    stored = kind == "tree" and _STORED_TREE_BYTES <= len(data) <= _STORED_TREE_MAX
    return zlib.compress(data, 0 if stored else 1)


def _stored(data: bytes) -> bytes:
    """What zlib writes at level 0 for less than 64 KiB (RFC 1950, RFC 1951 section 3.2.4)."""
    size = len(data)
    head = b"\x78\x01\x01" + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little")
    return head + data + zlib.adler32(data).to_bytes(4, "big")


def entry_header(kind: int, size: int) -> bytes:
    """Type and size of an entry: four bits of the size, then seven a byte."""
    first, size = (kind << 4) | (size & 15), size >> 4
    if size < 0x80:  # nearly all objects
        return bytes((first | 0x80, size)) if size else bytes((first,))
    header = bytearray()
    while size:
        header.append(first | 0x80)
        first, size = size & 0x7F, size >> 7
    header.append(first)
    return bytes(header)


def entry_type(entry: bytes) -> int:
    """The type number of an entry."""
    return entry[0] >> 4 & 7


def decode_entry(entry: bytes) -> bytes:
    """The data of an entry that is an object in full."""
    header = next(n for n, byte in enumerate(entry) if byte < 0x80) + 1
    return zlib.decompress(entry[header:])
