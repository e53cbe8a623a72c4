"""Encrypted text: the format to the byte, and that nothing but the right key opens it."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scp_git
from scp_git import DecryptFailed, KeyMissing, RecordTooLarge
from scp_git.chat import crypto, decrypt_text, encrypt_text, is_encrypted
from scp_git.chat.crypto import HIDDEN, MAX_DERIVATIONS, MAX_ENCRYPTED, reveal
from scp_git.chat.keys import KEY_NAME

PASSPHRASE = "correct horse battery staple"
# Known answer: salt 00..0f, iv a0..ab; computed with two other implementations as well.
KNOWN = "ENC:v1:AAECAwQFBgcICQoLDA0ODw==:oKGio6Slpqeoqaqr:QZDSOSkp0xfgTXFkz7qNdU+yGZTPYPsnEiZo063K"
KNOWN_TEXT = "héllo, wörld"
ROOT = "/nonexistent"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_NAME, PASSPHRASE)
    monkeypatch.setattr(crypto, "_derived", crypto.DerivedKeys())


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """Every derivation that is made, and each is cheap."""
    made: list[tuple[str, bytes]] = []

    def derive(key: str, salt: bytes) -> bytes:
        made.append((key, salt))
        return _cheap(key, salt)

    monkeypatch.setattr(crypto, "_derive", derive)
    return made


def _cheap(key: str, salt: bytes) -> bytes:
    return (key.encode() + salt).ljust(32, b"\0")[-32:]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# ---------------------------------------------------------------- the format


def test_the_known_answer() -> None:
    assert decrypt_text(KNOWN, ROOT) == KNOWN_TEXT
    assert reveal([KNOWN], ROOT) == [KNOWN_TEXT]
    derived = crypto._derive(PASSPHRASE, bytes(range(16)))
    assert derived.hex() == "49d49c25f597846209f0d92e7770ab64e1c75e94b4ce6c509265ee67175d2a1e"
    assert derived == hashlib.pbkdf2_hmac("sha256", PASSPHRASE.encode(), bytes(range(16)), 100_000, 32)


def test_the_known_answer_is_what_we_write(monkeypatch: pytest.MonkeyPatch) -> None:
    random_bytes = {16: bytes(range(16)), 12: bytes(range(0xA0, 0xAC))}
    monkeypatch.setattr(crypto, "_random", random_bytes.__getitem__)
    assert encrypt_text(KNOWN_TEXT, ROOT) == KNOWN


@pytest.mark.parametrize(
    "text", ["", "x", "ENC:v1:", KNOWN, "😀\u2028\0\r\n", "a" * 1024 * 1024], ids=lambda text: repr(text[:9])
)
def test_what_was_encrypted_is_decrypted(text: str) -> None:
    sealed = encrypt_text(text, ROOT)
    assert sealed.startswith("ENC:v1:")
    assert is_encrypted(sealed)
    assert decrypt_text(sealed, Path(ROOT)) == text


@given(st.text())
@settings(max_examples=20)
def test_any_text_comes_back(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crypto, "_derive", _cheap)
        patch.setenv(KEY_NAME, "cheap")
        assert reveal([encrypt_text(text, ROOT)], ROOT) == [text]


def test_what_cannot_be_encrypted_is_refused_without_saying_it() -> None:
    with pytest.raises(ValueError, match="lone surrogate") as refused:
        encrypt_text("canary\ud800", ROOT)
    assert refused.value.__context__ is None
    with pytest.raises(RecordTooLarge, match=str(MAX_ENCRYPTED)):
        encrypt_text("x" * (MAX_ENCRYPTED * 3 // 4), ROOT)
    with pytest.raises(TypeError, match="bytes"):
        encrypt_text(b"x", ROOT)  # type: ignore[arg-type]


def test_the_largest_text_comes_back() -> None:
    fits = (n for n in range(MAX_ENCRYPTED * 3 // 4, 0, -1) if crypto._encrypted_length(n) <= MAX_ENCRYPTED)
    length = next(fits)
    sealed = encrypt_text("x" * length, ROOT)
    assert len(sealed) == crypto._encrypted_length(length)
    assert decrypt_text(sealed, ROOT) == "x" * length


def test_no_salt_and_no_iv_is_used_twice(derivations: list[tuple[str, bytes]]) -> None:
    sealed = [crypto.Sealed.parse(encrypt_text("x", ROOT)) for _ in range(5000)]
    assert len({each.salt for each in sealed if each}) == len({each.iv for each in sealed if each}) == 5000


@pytest.mark.full
def test_no_salt_and_no_iv_is_used_twice_in_many(derivations: list[tuple[str, bytes]]) -> None:
    sealed = [crypto.Sealed.parse(encrypt_text("x", ROOT)) for _ in range(100_000)]
    assert len({each.salt for each in sealed if each}) == len({each.iv for each in sealed if each}) == 100_000


# ---------------------------------------------------------------- strict parsing

PREFIX, VERSION, SALT, IV, CIPHERTEXT = KNOWN.split(":")
MALFORMED = {
    "empty": "",
    "the prefix only": "ENC:v1:",
    "another version": KNOWN.replace("v1", "v2"),
    "lower case": KNOWN.replace("ENC", "enc"),
    "a blank before": " " + KNOWN,
    "a newline after": KNOWN + "\n",
    "four fields": f"ENC:v1:{SALT}:{IV}",
    "six fields": KNOWN + ":",
    "an empty field": f"ENC:v1:{SALT}::{CIPHERTEXT}",
    "short salt": f"ENC:v1:{b64(bytes(15))}:{IV}:{CIPHERTEXT}",
    "long salt": f"ENC:v1:{b64(bytes(17))}:{IV}:{CIPHERTEXT}",
    "short iv": f"ENC:v1:{SALT}:{b64(bytes(8))}:{CIPHERTEXT}",
    "long iv": f"ENC:v1:{SALT}:{b64(bytes(16))}:{CIPHERTEXT}",
    "ciphertext shorter than its tag": f"ENC:v1:{SALT}:{IV}:{b64(bytes(15))}",
    "no padding": KNOWN.replace("==", ""),
    "more padding": KNOWN.replace("==", "==="),
    "unused bits set": KNOWN.replace("Dw==", "Dx=="),
    "URL-safe base64": KNOWN.replace("+", "-").replace("/", "_"),
    "junk in base64": f"ENC:v1:{SALT}:{IV}:\n{CIPHERTEXT}",
    "not ASCII": f"ENC:v1:{SALT}:{IV}:é{CIPHERTEXT}",
    "wide digits": KNOWN.replace("1", "\uff11"),
    "too long": f"ENC:v1:{SALT}:{IV}:{'A' * MAX_ENCRYPTED}",
    "many fields": ":" * 1_000_000,
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_another_spelling_is_refused_before_any_key_is_derived(
    text: str, derivations: list[tuple[str, bytes]]
) -> None:
    assert text != KNOWN
    assert not is_encrypted(text)
    with pytest.raises(DecryptFailed):
        decrypt_text(text, ROOT)
    assert reveal([text], ROOT) == [HIDDEN]
    assert derivations == []


def test_what_is_no_text_is_not_encrypted() -> None:
    for value in (None, 5, b"ENC:v1:", [KNOWN], KNOWN.encode()):
        assert not is_encrypted(value)  # type: ignore[arg-type]


def fuzz(count: int) -> None:
    chance = random.Random(7)
    alphabet = "ENCv1:AQgw=+/- \n\0é"
    for _ in range(count):
        text = "".join(chance.choices(alphabet, k=chance.randrange(120)))
        if chance.random() < 0.7:
            text = "ENC:v1:" + text
        if chance.random() < 0.3:
            place = chance.randrange(len(KNOWN))
            text = KNOWN[:place] + chance.choice(alphabet) + KNOWN[place + chance.randrange(2) :]
        parsed = crypto.Sealed.parse(text)
        assert parsed is None or str(parsed) == text


def test_the_parser_takes_random_text() -> None:
    fuzz(5_000)


@pytest.mark.full
def test_the_parser_takes_much_random_text() -> None:
    fuzz(100_000)


# ---------------------------------------------------------------- nothing else opens it


def test_no_flipped_bit_gives_text() -> None:
    """Every bit of iv, ciphertext and tag in turn; of the salt, where each costs a derivation, one a byte."""
    sealed = crypto.Sealed.parse(KNOWN)
    assert sealed is not None
    texts = []
    for name in ("iv", "ciphertext"):
        field = getattr(sealed, name)
        for bit in range(len(field) * 8):
            flipped = (int.from_bytes(field) ^ 1 << bit).to_bytes(len(field))
            changed = {"iv": sealed.iv, "ciphertext": sealed.ciphertext, name: flipped}
            texts.append(str(crypto.Sealed(sealed.salt, **changed)))
    for byte in range(16):
        salt = bytearray(sealed.salt)
        salt[byte] ^= 1 << byte % 8
        texts.append(str(crypto.Sealed(bytes(salt), sealed.iv, sealed.ciphertext)))
    assert len(texts) == (12 + 30) * 8 + 16
    assert set(reveal(texts, ROOT)) == {HIDDEN}
    for text in texts[:: len(texts) // 40]:
        with pytest.raises(DecryptFailed):
            decrypt_text(text, ROOT)


def test_no_flipped_bit_of_the_spelling_gives_text(derivations: list[tuple[str, bytes]]) -> None:
    """Every bit of every character; the salt included, as deriving is cheap here."""
    text = encrypt_text("canary", ROOT)
    spellings = [
        text[:place] + chr(ord(text[place]) ^ 1 << bit) + text[place + 1 :]
        for place in range(len(text))
        for bit in range(8)
    ]
    assert text not in spellings
    assert reveal([text], ROOT) == ["canary"]
    for start in range(0, len(spellings), 100):
        assert set(reveal(spellings[start : start + 100], ROOT)) == {HIDDEN}


def test_fields_of_two_messages_do_not_mix(derivations: list[tuple[str, bytes]]) -> None:
    one, two = (encrypt_text(text, ROOT).split(":") for text in ("canary one", "canary two"))
    mixed = []
    for chosen in range(1, 7):
        fields = [(two if chosen >> n & 1 else one)[2 + n] for n in range(3)]
        mixed.append(":".join(["ENC", "v1", *fields]))
    assert reveal(mixed, ROOT) == [HIDDEN] * 6
    assert reveal([":".join(one), ":".join(two)], ROOT) == ["canary one", "canary two"]


def test_truncated_and_extended_texts_give_nothing(derivations: list[tuple[str, bytes]]) -> None:
    sealed = crypto.Sealed.parse(encrypt_text("canary " * 9, ROOT))
    assert sealed is not None
    data = sealed.ciphertext
    changed = [data[:length] for length in range(len(data))] + [data + b"\0", b"\0" + data, data + data]
    texts = [str(crypto.Sealed(sealed.salt, sealed.iv, each)) for each in changed]
    assert set(reveal(texts, ROOT)) == {HIDDEN}


def test_bytes_that_are_no_text_are_not_shown(derivations: list[tuple[str, bytes]]) -> None:
    sealed = crypto.Sealed.parse(encrypt_text("x", ROOT))
    assert sealed is not None
    data = crypto.AESGCM(_cheap(PASSPHRASE, sealed.salt)).encrypt(sealed.iv, b"canary\xff", None)
    text = str(crypto.Sealed(sealed.salt, sealed.iv, data))
    assert reveal([text], ROOT) == [HIDDEN]
    with pytest.raises(DecryptFailed) as failed:
        decrypt_text(text, ROOT)
    assert failed.value.__context__ is None


def test_every_failure_says_the_same() -> None:
    wrong = encrypt_text("canary", ROOT)
    texts = [KNOWN[:-4] + "AAAA", "ENC:v1:x", "", wrong[:-4], MALFORMED["short salt"]]
    said = set()
    for text in texts:
        with pytest.raises(ValueError, match="decryption failed") as failed:
            decrypt_text(text, ROOT)
        said.add((type(failed.value), str(failed.value), repr(vars(failed.value))))
        assert PASSPHRASE not in "".join(traceback.format_exception(failed.value))
    assert len(said) == 1


# ---------------------------------------------------------------- the key


def test_without_a_key_encrypting_and_decrypting_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_NAME)
    for call in (encrypt_text, decrypt_text):
        with pytest.raises(KeyMissing, match=KEY_NAME) as missing:
            call(KNOWN, ROOT)
        assert isinstance(missing.value, ValueError)


def test_without_the_key_nothing_decrypts_whatever_was_derived(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = encrypt_text("canary", ROOT)
    assert reveal([sealed, KNOWN], ROOT) == ["canary", KNOWN_TEXT]
    monkeypatch.delenv(KEY_NAME)
    assert reveal([sealed, KNOWN], ROOT) == [HIDDEN, HIDDEN]
    with pytest.raises(KeyMissing):
        decrypt_text(sealed, ROOT)
    monkeypatch.setenv(KEY_NAME, "another")
    assert reveal([sealed, KNOWN], ROOT) == [HIDDEN, HIDDEN]
    with pytest.raises(DecryptFailed):
        decrypt_text(sealed, ROOT)
    monkeypatch.setenv(KEY_NAME, PASSPHRASE)
    assert reveal([sealed, KNOWN], ROOT) == ["canary", KNOWN_TEXT]


# ---------------------------------------------------------------- derived keys


def test_a_page_is_derived_once(derivations: list[tuple[str, bytes]]) -> None:
    page = [encrypt_text(f"text {n}", ROOT) for n in range(50)]
    assert len(derivations) == 50
    crypto._derived._known.clear()
    derivations.clear()
    for _ in range(3):
        assert reveal(page + page, ROOT) == [f"text {n}" for n in range(50)] * 2
    assert len(derivations) == 50
    assert decrypt_text(page[7], ROOT) == "text 7"
    assert len(derivations) == 50


def test_so_many_derivations_a_call_and_no_more(derivations: list[tuple[str, bytes]]) -> None:
    assert MAX_DERIVATIONS >= 200
    page = [encrypt_text(f"text {n}", ROOT) for n in range(MAX_DERIVATIONS + 30)]
    crypto._derived._known.clear()
    derivations.clear()
    first = reveal(page, ROOT)
    assert first[:MAX_DERIVATIONS] == [f"text {n}" for n in range(MAX_DERIVATIONS)]
    assert first[MAX_DERIVATIONS:] == [HIDDEN] * 30
    assert len(derivations) == MAX_DERIVATIONS
    assert HIDDEN not in reveal(page, ROOT)
    assert len(derivations) == MAX_DERIVATIONS + 30


def test_what_is_remembered_is_bounded(
    derivations: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crypto, "_MAX_REMEMBERED", 10)
    page = [encrypt_text(f"text {n}", ROOT) for n in range(25)]
    assert len(crypto._derived._known) == 10
    assert reveal(page, ROOT) == [f"text {n}" for n in range(25)]
    assert len(crypto._derived._known) == 10


def test_any_mixture_is_revealed_in_its_order() -> None:
    assert reveal([], ROOT) == []
    assert reveal(iter([KNOWN, "plain", KNOWN[:-4] + "AAAA", KNOWN]), ROOT) == [
        KNOWN_TEXT,
        HIDDEN,
        HIDDEN,
        KNOWN_TEXT,
    ]


def test_deriving_runs_in_parallel_and_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    together = threading.Barrier(4, timeout=20)

    def derive(key: str, salt: bytes) -> bytes:
        together.wait()  # breaks unless four are at it at once
        return _cheap(key, salt)

    monkeypatch.setattr(crypto, "_derive", derive)
    salts = [bytes([n]) * 16 for n in range(8)]
    assert len(crypto._derived.keys("key", salts)) == 8


def test_threads_that_cannot_be_had_are_done_without(
    derivations: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    page = [encrypt_text(f"text {n}", ROOT) for n in range(5)]
    crypto._derived._known.clear()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert reveal(page, ROOT) == [f"text {n}" for n in range(5)]


@pytest.mark.alone
def test_a_page_of_200_is_quick_the_second_time() -> None:
    page = [encrypt_text(f"text {n}", ROOT) for n in range(20)] * 10
    assert HIDDEN not in reveal(page, ROOT)
    took = min(_timed(lambda: reveal(page, ROOT)) for _ in range(5))
    assert took < 0.02


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_does_not_inherit_a_held_lock() -> None:
    sealed = encrypt_text("canary", ROOT)
    with crypto._derived._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if reveal([sealed, KNOWN], ROOT) == ["canary", KNOWN_TEXT] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---------------------------------------------------------------- reaching it


def test_the_functions_are_reached_after_a_plain_import_and_loaded_on_first_use() -> None:
    script = """
import sys, scp_git
assert "scp_git.chat" not in sys.modules
functions = scp_git.chat.__all__
import scp_git.chat
assert sorted(functions) == ["decrypt_text", "encrypt_text", "is_encrypted"]
assert set(functions) <= set(dir(scp_git.chat))
assert "cryptography" not in sys.modules and "dotenv" not in sys.modules
assert scp_git.chat.is_encrypted("x") is False
assert "cryptography" in sys.modules
try:
    scp_git.chat.nothing
except AttributeError as exc:
    assert "nothing" in str(exc)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(scp_git.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
