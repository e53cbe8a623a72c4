"""The folder that a published site lies in: replaced whole, and nobody else's files are touched."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from scp_git import OutputRefused, StorageFailed
from scp_git.chat import sitefolder
from scp_git.chat.sitefolder import MARKER, replace_site

FILES = {"index.html": b"<p>index", "feed.json": b"{}", "threads/a.html": b"<p>a", "runs/b.html": b"<p>b"}


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != MARKER
    }


def marked(root: Path) -> list[str]:
    return list(json.loads((root / MARKER).read_bytes())["files"])


def test_the_folder_is_made_and_filled(tmp_path: Path) -> None:
    for out in (tmp_path / "a/b/site", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        replace_site(out, FILES)
        assert contents(out) == FILES
        assert marked(out) == sorted(FILES)


def test_a_file_that_did_not_change_is_left_as_it_is(tmp_path: Path) -> None:
    replace_site(tmp_path, FILES)
    before = {name: (tmp_path / name).stat() for name in FILES}
    replace_site(tmp_path, {**FILES, "feed.json": b"[]", "runs/b.html": b"<p>c"})
    changed = {name for name, status in before.items() if (tmp_path / name).stat() != status}
    assert changed == {"feed.json", "runs/b.html"}
    assert (tmp_path / "runs/b.html").read_bytes() == b"<p>c"


def test_what_is_no_longer_published_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    replace_site(tmp_path / "site", FILES)
    mine = {"CNAME": b"example.org", ".git/HEAD": b"ref", "threads/own.txt": b"x", "picture.png": b"y"}
    for name, data in mine.items():
        (tmp_path / "site" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "site" / name).write_bytes(data)
    after = {"index.html": b"new", "runs/c.html": b"c"}
    replace_site(tmp_path / "site", after)
    assert contents(tmp_path / "site") == {**mine, **after}
    replace_site(tmp_path / "site", {"index.html": b"none"})
    assert contents(tmp_path / "site") == {**mine, "index.html": b"none"}
    assert not (tmp_path / "site/runs").exists()


def test_a_folder_of_somebody_elses_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputRefused, match="not published by scp-git"):
        replace_site(tmp_path, FILES)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("name", ["index.html", "threads/a.html", "feed.json"])
def test_a_file_that_is_not_ours_is_never_replaced(tmp_path: Path, name: str) -> None:
    replace_site(tmp_path, {"runs/z.html": b"z"})
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(OutputRefused, match=name):
        replace_site(tmp_path, FILES)
    assert contents(tmp_path) == {name: b"mine", "runs/z.html": b"z"}


def test_a_symlink_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "site").symlink_to("real")
    with pytest.raises(OutputRefused, match="symlink"):
        replace_site(tmp_path / "site", FILES)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(OutputRefused, match="symlink"):
        replace_site(tmp_path / "dangling", FILES)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputRefused, match="no folder"):
        replace_site(tmp_path / "file", FILES)
    assert list((tmp_path / "real").iterdir()) == []
    assert not (tmp_path / "nowhere").exists()


def test_no_symlink_in_the_folder_is_followed(tmp_path: Path) -> None:
    outside, site = tmp_path / "outside", tmp_path / "site"
    outside.mkdir()
    (outside / "index.html").write_bytes(b"precious")
    (outside / "a.html").write_bytes(b"precious")
    replace_site(site, FILES)
    (site / "index.html").unlink()
    (site / "index.html").symlink_to(outside / "index.html")
    (site / "feed.json").unlink()
    (site / "feed.json").symlink_to("/dev/full")
    replace_site(site, FILES)
    assert contents(site) == FILES
    assert not (site / "index.html").is_symlink()
    (site / "threads/a.html").unlink()
    (site / "threads").rmdir()
    (site / "threads").symlink_to(outside)
    for files in (FILES, {"index.html": b"x"}):
        with pytest.raises(OutputRefused, match="threads"):
            replace_site(site, files)
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {
        "index.html": b"precious",
        "a.html": b"precious",
    }


@pytest.mark.parametrize(
    "listed",
    [
        "../precious.html",
        "/precious.html",
        "a/b/precious.html",
        ".git/config.json",
        "./precious.html",
        "x\0.html",
        "..",
        "",
    ],
)
def test_a_forged_marker_removes_nothing_outside(tmp_path: Path, listed: str) -> None:
    site = tmp_path / "site"
    (site / "a/b").mkdir(parents=True)
    (site / ".git").mkdir()
    precious = [tmp_path / "precious.html", site / "a/b/precious.html", site / ".git/config.json"]
    for path in precious:
        path.write_bytes(b"precious")
    (site / MARKER).write_text(json.dumps({"files": [listed, 5, None]}))
    replace_site(site, FILES)
    assert [path.read_bytes() for path in precious] == [b"precious"] * 3


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"files": 5}', b"\xff", b"[" * 100_000])
def test_a_damaged_marker_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MARKER).write_bytes(data)
    with pytest.raises(OutputRefused, match="damaged"):
        replace_site(tmp_path, FILES)
    assert contents(tmp_path) == {}


def test_a_marker_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MARKER)
    with pytest.raises(OutputRefused, match="regular"):
        replace_site(tmp_path, FILES)
    (tmp_path / MARKER).unlink()
    (tmp_path / MARKER).symlink_to("/dev/zero")
    with pytest.raises(OutputRefused, match=MARKER):
        replace_site(tmp_path, FILES)


def test_a_kill_at_any_step_leaves_a_folder_that_the_next_call_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = {"index.html": b"new", "threads/d.html": b"d"}
    for step in range(20):
        site = tmp_path / f"site{step}"
        replace_site(site, FILES)
        left = step

        def counted(call: Callable[..., None], *args: object, **kwargs: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            call(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(sitefolder.os, "rename", partial(counted, os.rename))
            patch.setattr(sitefolder.os, "unlink", partial(counted, os.unlink))
            try:
                replace_site(site, after)
                done = True
            except KeyboardInterrupt:
                done = False
        for name, data in contents(site).items():
            assert data in (FILES.get(name), after.get(name)) or sitefolder._TEMPORARY in name
        replace_site(site, after)
        assert contents(site) == after
        if done:
            return
    raise AssertionError("it never came to its end")


def test_a_reader_sees_the_old_or_the_new_file(tmp_path: Path) -> None:
    one, other = b"1" * 500_000, b"2" * 500_000
    replace_site(tmp_path, {"index.html": one})
    stop, seen = threading.Event(), set()

    def look() -> None:
        while not stop.is_set():
            seen.add((tmp_path / "index.html").read_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    for data in (other, one) * 20:
        replace_site(tmp_path, {"index.html": data})
    stop.set()
    thread.join()
    assert seen <= {one, other}


def test_a_disk_that_refuses_is_said_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_site(tmp_path, {"index.html": b"old"})

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sitefolder.os, "rename", full)
        with pytest.raises(StorageFailed, match="No space left"):
            replace_site(tmp_path, {"index.html": b"new"})
    assert contents(tmp_path) == {"index.html": b"old"}


def test_the_same_files_give_the_same_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        replace_site(tmp_path / name, FILES)
        replace_site(tmp_path / name, dict(reversed(FILES.items())))
    assert (tmp_path / "a" / MARKER).read_bytes() == (tmp_path / "b" / MARKER).read_bytes()
