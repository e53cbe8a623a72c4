"""Where the key for encrypted text comes from: the environment, then ``.env``, however odd."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from scp_git import KeyMissing
from scp_git.chat import encrypt_text, keys
from scp_git.chat.keys import KEY_NAME, MAX_ENV_BYTES, find_key, require_key

SECRET = "canary-key-7f3a"

FILES: dict[str, tuple[bytes, str | None]] = {
    "plain": (b"CONTENT_VAULT_ENC_KEY=s3cret\n", "s3cret"),
    "no final newline": (b"CONTENT_VAULT_ENC_KEY=s3cret", "s3cret"),
    "among others": (b"A=1\n# x\n\nCONTENT_VAULT_ENC_KEY=s3cret\nB=2\n", "s3cret"),
    "export": (b"export CONTENT_VAULT_ENC_KEY=s3cret\n", "s3cret"),
    "blanks around the sign": (b"  CONTENT_VAULT_ENC_KEY =  s3cret  \n", "s3cret"),
    "double quotes": (b'CONTENT_VAULT_ENC_KEY="s3 cret"\n', "s3 cret"),
    "single quotes": (b"CONTENT_VAULT_ENC_KEY='s3 cret'\n", "s3 cret"),
    "quoted blanks": (b"CONTENT_VAULT_ENC_KEY=' s3cret '\n", " s3cret "),
    "an equals sign in the value": (b"CONTENT_VAULT_ENC_KEY=YWJj=ZA==\n", "YWJj=ZA=="),
    "a comment behind it": (b"CONTENT_VAULT_ENC_KEY=s3cret # the vault\n", "s3cret"),
    "a number sign in the value": (b"CONTENT_VAULT_ENC_KEY=s3#cret\n", "s3#cret"),
    "a dollar sign in the value": (b"CONTENT_VAULT_ENC_KEY=s3${HOME}$x\n", "s3${HOME}$x"),
    "CRLF": (b"A=1\r\nCONTENT_VAULT_ENC_KEY=s3cret\r\n", "s3cret"),
    "a byte order mark": (b"\xef\xbb\xbfCONTENT_VAULT_ENC_KEY=s3cret\n", "s3cret"),
    "twice, the last counts": (b"CONTENT_VAULT_ENC_KEY=one\nCONTENT_VAULT_ENC_KEY=two\n", "two"),
    "twice, the last is empty": (b"CONTENT_VAULT_ENC_KEY=one\nCONTENT_VAULT_ENC_KEY=\n", None),
    "not ASCII": ("CONTENT_VAULT_ENC_KEY=schlüssel\n".encode(), "schlüssel"),
    "not UTF-8 elsewhere": (b"NAME=Ren\xe9\nCONTENT_VAULT_ENC_KEY=s3cret\n", "s3cret"),
    "not UTF-8 in the key": (b"CONTENT_VAULT_ENC_KEY=s3cr\xe9t\n", None),
    "NUL in the key": (b"CONTENT_VAULT_ENC_KEY=s3\0cret\n", None),
    "empty": (b"CONTENT_VAULT_ENC_KEY=\n", None),
    "empty quotes": (b'CONTENT_VAULT_ENC_KEY=""\n', None),
    "blank": (b"CONTENT_VAULT_ENC_KEY='  '\n", None),
    "no sign at all": (b"CONTENT_VAULT_ENC_KEY\n", None),
    "commented out": (b"# CONTENT_VAULT_ENC_KEY=s3cret\n", None),
    "another name": (b"OLD_CONTENT_VAULT_ENC_KEY=s3cret\nCONTENT_VAULT_ENC_KEY_2=x\n", None),
    "inside another value": (b"A='\nCONTENT_VAULT_ENC_KEY=s3cret\n'\n", None),
    "an empty file": (b"", None),
    "no text at all": (bytes(range(256)) * 8, None),
}


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_warned", set())


def write_env(root: Path, data: bytes, mode: int = 0o600) -> Path:
    path = root / ".env"
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(("data", "key"), FILES.values(), ids=FILES)
def test_an_env_file_gives_the_key(tmp_path: Path, data: bytes, key: str | None) -> None:
    write_env(tmp_path, data)
    assert find_key(tmp_path) == find_key(str(tmp_path)) == key


def test_the_environment_comes_first_and_an_empty_value_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_env(tmp_path, b"CONTENT_VAULT_ENC_KEY=from-file\n")
    monkeypatch.setenv(KEY_NAME, "from-environment")
    assert require_key(tmp_path) == "from-environment"
    for empty in ("", "  "):
        monkeypatch.setenv(KEY_NAME, empty)
        assert require_key(tmp_path) == "from-file"


def test_the_key_is_looked_up_at_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_key(tmp_path) is None
    write_env(tmp_path, b"CONTENT_VAULT_ENC_KEY=one\n")
    assert find_key(tmp_path) == "one"
    write_env(tmp_path, b"CONTENT_VAULT_ENC_KEY=two\n")
    assert find_key(tmp_path) == "two"
    monkeypatch.setenv(KEY_NAME, "three")
    assert find_key(tmp_path) == "three"
    monkeypatch.delenv(KEY_NAME)
    (tmp_path / ".env").unlink()
    with pytest.raises(KeyMissing, match=KEY_NAME):
        require_key(tmp_path)


def test_an_environment_that_is_not_utf_8_is_refused_and_the_file_does_not_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_env(tmp_path, b"CONTENT_VAULT_ENC_KEY=from-file\n")
    monkeypatch.setitem(os.environb, KEY_NAME.encode(), b"s3cr\xe9t")  # type: ignore[misc]
    assert find_key(tmp_path) is None


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".env")
    found: list[str | None] = ["unset"]
    thread = threading.Thread(target=lambda: found.__setitem__(0, find_key(tmp_path)), daemon=True)
    thread.start()
    thread.join(10)
    assert found == [None]


def test_a_file_that_fails_when_it_is_read_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(fd: int, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    write_env(tmp_path, b"CONTENT_VAULT_ENC_KEY=s3cret\n")
    with monkeypatch.context() as patch:
        patch.setattr(keys.os, "read", fail)
        assert find_key(tmp_path) is None
    assert len(caplog.messages) == 1


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = write_env(tmp_path, b"CONTENT_VAULT_ENC_KEY=s3cret\n")
    os.truncate(path, 10**9)
    assert find_key(tmp_path) is None
    os.truncate(path, MAX_ENV_BYTES + 1)
    assert find_key(tmp_path) is None
    write_env(tmp_path, b"#" * (MAX_ENV_BYTES - 30) + b"\nCONTENT_VAULT_ENC_KEY=s3cret\n")
    assert find_key(tmp_path) == "s3cret"


def test_a_symlink_is_followed_to_a_file_and_to_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"CONTENT_VAULT_ENC_KEY=s3cret\n")
    for target, key in (("elsewhere", "s3cret"), ("missing", None), (".env", None), ("/dev/zero", None)):
        (tmp_path / ".env").symlink_to(target)
        assert find_key(tmp_path) == key
        (tmp_path / ".env").unlink()
    (tmp_path / ".env").mkdir()
    assert find_key(tmp_path) is None
    assert find_key(tmp_path / "elsewhere") is None
    assert find_key(tmp_path / "no such folder") is None


def test_a_file_that_everybody_may_read_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_env(tmp_path, f"CONTENT_VAULT_ENC_KEY={SECRET}\n".encode(), 0o640)
    find_key(tmp_path)
    assert caplog.messages == []
    (tmp_path / ".env").chmod(0o644)
    for _ in range(3):
        assert find_key(tmp_path) == SECRET
    (message,) = caplog.messages
    assert "chmod 600" in message
    assert str(tmp_path) in message


def test_a_public_file_without_the_key_is_nobodys_business(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_env(tmp_path, b"DEBUG=1\n", 0o644)
    assert find_key(tmp_path) is None
    assert caplog.messages == []


@pytest.mark.parametrize("data", [value for value, _ in FILES.values()], ids=FILES)
def test_nothing_that_is_said_holds_a_value(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    write_env(tmp_path, data.replace(b"s3", SECRET.encode()) + f'\nBROKEN="{SECRET}\n'.encode(), 0o644)
    key = find_key(tmp_path)
    if key is None:
        with pytest.raises(KeyMissing) as missing:
            encrypt_text("x", tmp_path)
        assert SECRET not in f"{missing.value!r} {vars(missing.value)}"
    else:
        encrypt_text("x", tmp_path)
    assert SECRET not in caplog.text
