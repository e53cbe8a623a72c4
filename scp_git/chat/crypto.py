"""Encrypted text: ``ENC:v1:<salt>:<iv>:<ciphertext and tag>``, fields in padded standard base64.

AES-256-GCM under a key of its own for every text, which PBKDF2-HMAC-SHA256 derives from
the passphrase and the text's salt. Deriving is what takes time (about 20 ms), so derived
keys are remembered, by passphrase and salt: another passphrase, or none, finds nothing.

What this protects and what not: docs/security.md.
"""

from __future__ import annotations

import base64
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from scp_git.chat.keys import find_key, require_key
from scp_git.codec import MAX_PART_BYTES
from scp_git.errors import DecryptFailed, RecordTooLarge

PREFIX = "ENC:v1:"
HIDDEN = "[encrypted]"
"""What is shown of a text that cannot be decrypted."""
MAX_ENCRYPTED = MAX_PART_BYTES
"""Characters; more would not fit into a line of a stored message either."""
MAX_DERIVATIONS = 200
"""So many keys does one ``reveal`` derive; a hostile sender must not make a list take minutes."""

# Fixed by the format: what was encrypted with other values could not be read back.
_ITERATIONS = 100_000
_SALT_BYTES = 16
_IV_BYTES = 12
_TAG_BYTES = 16
_KEY_BYTES = 32

_MAX_REMEMBERED = 4096
_MAX_HELPERS = 3

_random = os.urandom


@dataclass(frozen=True, slots=True)
class Sealed:
    """The fields of an encrypted text."""

    salt: bytes
    iv: bytes
    ciphertext: bytes

    @classmethod
    def parse(cls, text: object) -> Sealed | None:
        """The fields, or ``None`` unless ``text`` is spelled exactly as we would spell it."""
        if not isinstance(text, str) or len(text) > MAX_ENCRYPTED or not text.isascii():
            return None
        fields = text.split(":", 5)
        if len(fields) != 5 or not text.startswith(PREFIX):
            return None
        salt, iv, ciphertext = map(_from_base64, fields[2:])
        if salt is None or iv is None or ciphertext is None:
            return None
        if (len(salt), len(iv)) != (_SALT_BYTES, _IV_BYTES) or len(ciphertext) < _TAG_BYTES:
            return None
        return cls(salt, iv, ciphertext)

    def __str__(self) -> str:
        fields = (self.salt, self.iv, self.ciphertext)
        return PREFIX + ":".join(base64.b64encode(field).decode() for field in fields)

    def open(self, derived: bytes) -> str | None:
        """The plaintext, or ``None`` if the key is another or anything was altered."""
        try:
            return AESGCM(derived).decrypt(self.iv, self.ciphertext, None).decode()
        except (InvalidTag, UnicodeDecodeError):
            return None


def encrypt_text(plaintext: str, project_root: str | os.PathLike[str]) -> str:
    """Encrypt with the key of ``project_root``; no two results are alike.

    Raises ``KeyMissing``; ``RecordTooLarge`` beyond about 3 MB; ``ValueError`` for lone surrogates.
    """
    if not isinstance(plaintext, str):
        raise TypeError(f"text must be str, not {type(plaintext).__name__}")
    data = _to_utf8(plaintext)
    if data is None:
        raise ValueError("text holds a lone surrogate, which is not Unicode")
    key = require_key(project_root)
    salt, iv = _random(_SALT_BYTES), _random(_IV_BYTES)
    size = _encrypted_length(len(data))
    if size > MAX_ENCRYPTED:
        raise RecordTooLarge("encrypted text", "ENC:v1", size, MAX_ENCRYPTED)
    return str(Sealed(salt, iv, AESGCM(_derived.key(key, salt)).encrypt(iv, data, None)))


def decrypt_text(enc_text: str, project_root: str | os.PathLike[str]) -> str:
    """The plaintext of what ``encrypt_text`` gave.

    Raises ``KeyMissing``, or ``DecryptFailed`` whatever else is wrong: the key, the
    spelling, a single bit.
    """
    key = require_key(project_root)
    sealed = Sealed.parse(enc_text)
    plaintext = sealed.open(_derived.key(key, sealed.salt)) if sealed else None
    if plaintext is None:
        raise DecryptFailed
    return plaintext


def is_encrypted(text: str) -> bool:
    """Whether ``text`` is spelled like an encrypted text. Of a message, ``flags.encrypted`` decides."""
    return Sealed.parse(text) is not None


def reveal(texts: Iterable[str], project_root: str | os.PathLike[str]) -> list[str]:
    """For each encrypted text of a page its plaintext, or ``[encrypted]``. Never raises for a text.

    Up to ``MAX_DERIVATIONS`` keys are derived, in several threads, first texts first; what
    is beyond stays ``[encrypted]`` this time. Takes its time: not for an event loop's thread.
    """
    sealed = [Sealed.parse(text) for text in texts]
    key = find_key(project_root)
    if key is None:
        return [HIDDEN] * len(sealed)
    keys = _derived.keys(key, [each.salt for each in sealed if each])
    opened = (each.open(keys[each.salt]) if each and each.salt in keys else None for each in sealed)
    return [HIDDEN if text is None else text for text in opened]


def _to_utf8(text: str) -> bytes | None:
    # Errors are raised elsewhere: as a context this one would carry the whole text along.
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None


def _from_base64(field: str) -> bytes | None:
    try:
        data = base64.b64decode(field, validate=True)
    except ValueError:
        return None
    # Bits that padding leaves unused could else differ without notice.
    return data if base64.b64encode(data).decode() == field else None


def _encrypted_length(size: int) -> int:
    return len(PREFIX) + 24 + 1 + 16 + 1 + (size + _TAG_BYTES + 2) // 3 * 4


def _derive(key: str, salt: bytes) -> bytes:
    # Releases the GIL, so threads derive in parallel.
    return PBKDF2HMAC(SHA256(), _KEY_BYTES, salt, _ITERATIONS).derive(key.encode())


def _derive_all(key: str, salts: Sequence[bytes]) -> dict[bytes, bytes]:
    """The calling thread and as many helpers as there are processors take one salt after the other."""
    waiting, made = deque(salts), dict[bytes, bytes]()

    def work() -> None:
        while True:
            try:
                salt = waiting.popleft()
            except IndexError:
                return
            made[salt] = _derive(key, salt)

    helpers = _started(work, min(len(salts), os.cpu_count() or 1, _MAX_HELPERS + 1) - 1)
    try:
        work()
    finally:
        waiting.clear()  # after an interrupt nobody goes on
        for helper in helpers:
            helper.join()
    return made


def _started(work: Callable[[], None], count: int) -> list[threading.Thread]:
    """Up to ``count`` threads at work; fewer where the system, or an interpreter that ends, gives none."""
    threads: list[threading.Thread] = []
    for _ in range(count):
        thread = threading.Thread(target=work, name="scp-git-derive")
        try:
            thread.start()
        except RuntimeError:
            break
        threads.append(thread)
    return threads


# ---------------------------------------------------------------- derived keys


class DerivedKeys:
    """The derived keys used last, by passphrase and salt. Thread-safe."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()
        self.after_fork()

    def after_fork(self) -> None:
        """In a child: a lock that another thread of the parent held would stay held for ever."""
        self._lock = threading.Lock()

    def key(self, key: str, salt: bytes) -> bytes:
        """The derived key for one salt."""
        found = self._recall(key, salt)
        if found is None:
            found = _derive(key, salt)
            self._remember(key, salt, found)
        return found

    def keys(self, key: str, salts: Sequence[bytes]) -> dict[bytes, bytes]:
        """The derived keys of these salts: all that are known, and the first ``MAX_DERIVATIONS`` others."""
        found = {salt: self._recall(key, salt) for salt in salts}
        unknown = [salt for salt, derived in found.items() if derived is None][:MAX_DERIVATIONS]
        made = _derive_all(key, unknown)
        for salt, derived in made.items():
            self._remember(key, salt, derived)
        return {salt: derived for salt, derived in (found | made).items() if derived is not None}

    def _recall(self, key: str, salt: bytes) -> bytes | None:
        with self._lock:
            found = self._known.get((key, salt))
            if found is not None:
                self._known.move_to_end((key, salt))
            return found

    def _remember(self, key: str, salt: bytes, derived: bytes) -> None:
        with self._lock:
            self._known[key, salt] = derived
            while len(self._known) > _MAX_REMEMBERED:
                self._known.popitem(last=False)


_derived = DerivedKeys()
os.register_at_fork(after_in_child=lambda: _derived.after_fork())
