"""``scp-git sync|push|pull|status``: what they print, for people and programs, and their exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scp_git import Run, Store
from tests import servers
from tests.servers import Server
from tests.sight import ids

PROJECT = Path(__file__).resolve().parents[1]
CLI = [sys.executable, "-m", "scp_git.cli"]
LEDGER, ARCHIVE = "refs/heads/scp-ledger", "refs/heads/scp-ledger-archive"

pytestmark = pytest.mark.system("git")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.git_daemon(tmp_path_factory.mktemp("daemon")) as server:
        yield server


@pytest.fixture
def there(daemon: Server, request: pytest.FixtureRequest) -> Path:
    return daemon.repository(request.node.name)


@pytest.fixture
def clones(
    daemon: Server, there: Path, make_repo: Callable[..., Path], git: Callable[..., str]
) -> tuple[Path, Path]:
    """Two repositories with the same first commit, which the server has on main."""
    pair = make_repo(), make_repo()
    for root in pair:
        git(root, "remote", "add", "origin", daemon.url(there.stem))
    git(pair[0], "push", "-q", "origin", "main")
    for root in pair:
        git(root, "fetch", "-q", "origin")
    return pair


def scp(cwd: Path, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *args], cwd=cwd, capture_output=True, encoding="utf-8", timeout=60, **options
    )


def lines(cwd: Path, *args: str, code: int = 0) -> list[list[str]]:
    done = scp(cwd, *args)
    assert done.returncode == code, done.stderr
    assert bool(done.stderr) == bool(code)
    return [line.split("\t") for line in done.stdout.split("\n")[:-1]]


def record(root: Path, *run_ids: str) -> None:
    for run_id in run_ids:
        Store.open(root).record_run(Run(run_id=run_id, type="x"))


def test_a_run_goes_there_and_comes_back(clones: tuple[Path, Path]) -> None:
    a, b = clones
    record(a, "r1", "r2")
    assert lines(a, "push") == [
        ["ref", ARCHIVE, "absent", "", ""],
        ["ref", LEDGER, "up to date", "pushed", ""],
        ["ref", "refs/notes/scp-chat", "absent", "", ""],
        ["ref", "refs/tags/scp/run/*", "", "pushed", ""],
        ["received", "0", "0", "0"],
        ["sent", "2", "0", "0"],
    ]
    pulled = lines(b, "pull", "origin")
    assert ["ref", LEDGER, "updated", "", ""] in pulled
    assert ["received", "2", "0", "0"] in pulled
    report = json.loads(scp(b, "sync", "--json").stdout)
    assert (report["remote"], {each["state"] for each in report["pushed"]}) == ("origin", {"up to date"})
    assert set(ids(b)) == {"r1", "r2"}


def test_status_says_what_is_where_and_asks_nobody_unless_told(
    clones: tuple[Path, Path], daemon: Server
) -> None:
    a, b = clones
    record(a, "a1", "a2")
    before = lines(a, "status")
    assert before[0] == ["remote", "origin", daemon.url(Path(before[0][2]).stem)]
    assert before[1:4] == [["in step", "no"], ["ahead", "2", "0", "0"], ["behind", "0", "0", "0"]]
    Store.open(a).push()
    assert lines(a, "status")[1:] == [["in step", "yes"], ["ahead", "0", "0", "0"], ["behind", "0", "0", "0"]]

    record(b, "b1")
    assert ["behind", "0", "0", "0"] in lines(b, "status"), "nobody was asked"
    assert ["behind", "2", "0", "0"] in lines(b, "status", "--fetch")
    assert ["behind", "2", "0", "0"] in lines(b, "status"), "what was seen is remembered"
    assert ids(b) == ["b1"], "nothing was merged"
    Store.open(b).sync()
    found = json.loads(scp(a, "status", "--fetch", "--json").stdout)
    assert (found["ahead"]["runs"], found["behind"]["runs"], found["in_step"]) == (0, 1, False)


@pytest.mark.parametrize("fetch", [[], ["--fetch"]])
def test_status_says_what_waits_and_why(
    clones: tuple[Path, Path], git: Callable[..., str], fetch: list[str], make_repo: Callable[..., Path]
) -> None:
    a, b = clones
    git(a, "commit", "-q", "--allow-empty", "-m", "unpublished")
    commit = git(a, "rev-parse", "HEAD").strip()
    record(a, "waits")
    Store.open(a).push()
    assert ["waiting", "waits", commit] in lines(a, "status", *fetch)
    Store.open(b).pull()
    assert ["untagged", "waits", commit] in lines(b, "status", *fetch)
    assert ["ref", "refs/tags/scp/run/*", "", "pushed", ""] in lines(a, "push", "--publish-commits")
    if fetch:
        assert lines(a, "status", *fetch)[4:] == []

    unborn = make_repo(commits=0)
    git(unborn, "remote", "add", "origin", str(a))
    record(unborn, "early")
    assert ["deferred", "early"] in lines(unborn, "status", *fetch)


def test_a_refusal_is_exit_code_4_with_the_remotes_words(clones: tuple[Path, Path], there: Path) -> None:
    """Issue SYNC, point 7."""
    a, _ = clones
    record(a, "r1")
    servers.set_hook(there, "pre-receive", "echo closed; exit 1")
    for verb in ("push", "sync"):
        done = scp(a, verb)
        assert done.returncode == 4
        assert f"ref\t{LEDGER}\tup to date\trejected\tpre-receive hook declined\n" in done.stdout
        assert (
            done.stderr
            == "scp-git: origin did not take everything; nothing is lost, it goes with the next push\n"
        )
    (there / "hooks/pre-receive").unlink()
    assert Store.open(a).push().in_step


def test_without_that_remote(repo: Path) -> None:
    for verb in ("pull", "status"):
        done = scp(repo, verb, "elsewhere")
        assert done.returncode == 1
        assert done.stderr == (
            "scp-git: there is no remote 'elsewhere'; add one with: git remote add elsewhere URL\n"
        )


def test_a_remote_that_cannot_be_reached_is_one_line(repo: Path, git: Callable[..., str]) -> None:
    git(repo, "remote", "add", "origin", f"git://127.0.0.1:{servers.free_port()}/x.git")
    record(repo, "r1")
    for args in (["sync"], ["status", "--fetch"]):
        done = scp(repo, *args)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1 and "refused the connection" in done.stderr
    assert scp(repo, "status").returncode == 0


@pytest.mark.parametrize("args", [["push"], ["pull"], ["status", "--fetch"]])
def test_a_person_gets_sentences_and_a_bar(clones: tuple[Path, Path], args: list[str]) -> None:
    a, b = clones
    record(a, "r1")
    Store.open(a).push()
    record(b, "r2")
    shown = _on_a_terminal(b, *args)
    if args[0] == "status":
        assert "ahead by   1 run\r\n" in shown and "behind by  1 run\r\n" in shown
    else:
        assert "received 1 run\r\n" in shown
        assert ("sent 1 run\r\n" in shown) == (args[0] != "pull")
        assert "connecting" in shown or "receiving" in shown


def _on_a_terminal(cwd: Path, *args: str) -> str:
    leader, follower = pty.openpty()
    process = subprocess.Popen([*CLI, *args], cwd=cwd, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.close(leader)
    assert process.wait(30) == 0, shown
    return shown.decode()


def test_ctrl_c_ends_a_transfer_that_hangs(repo: Path, git: Callable[..., str]) -> None:
    connected = threading.Event()
    with servers.hanging(connected) as port:
        git(repo, "remote", "add", "origin", f"git://127.0.0.1:{port}/x.git")
        process = subprocess.Popen([*CLI, "pull"], cwd=repo, stderr=subprocess.PIPE, encoding="utf-8")
        assert connected.wait(30)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said.strip() == "scp-git: interrupted"
