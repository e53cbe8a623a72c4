"""What every test gets: a home of its own, real repositories, and stock git looking over its shoulder.

Repositories are built with pygit2, so that all but the referee's part runs where no
``git`` is installed. Nothing here is mocked.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pygit2
import pytest
from pygit2.enums import CheckoutStrategy, ConfigLevel, FileMode

SHORT_S = 60
FULL_S = 1800
FOREIGN = {
    "EMAIL",
    "CONTENT_VAULT_ENC_KEY",
    "SCP_GIT_USERNAME",
    "SCP_GIT_TOKEN",
    "SCP_GIT_SSH_KEY",
    "SSH_AUTH_SOCK",
    *(name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")),
}
"""Variables of whoever runs the tests that must not reach them, beside those of git."""
NO_SKIP = os.environ.get("SCP_GIT_NO_SKIP") == "1"
GIT_CONFIG = """\
[user]
\tname = Ada Tester
\temail = ada@example.org
[init]
\tdefaultBranch = main
[gc]
\tauto = 0
[maintenance]
\tauto = false
"""

# A shared disk may take any time for one example, and a build must give the same answer twice.
hypothesis.settings.register_profile("scp-git", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("scp-git")

# ---------------------------------------------------------------- options, markers, time limit


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the long forms (tests marked 'full')")


_stderr = pytest.StashKey[int]()
_passed = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    # pytest captures descriptor 2, and a process that ends by the time limit never shows what was captured.
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        config.stash[_stderr] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _stderr in config.stash:
        os.close(config.stash[_stderr])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    long = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in set(long)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End the whole run, with the test's name and every thread's stack on stderr, when one takes too long."""
    limit_s, stderr = FULL_S if item.get_closest_marker("full") else SHORT_S, item.config.stash[_stderr]
    # The stacks of an async test do not show its name. The alarm gives it, if Python still runs at all.
    name = f"\n{item.nodeid} takes longer than {limit_s} s\n".encode()
    before = signal.signal(signal.SIGALRM, lambda *_: os.write(stderr, name))
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    faulthandler.dump_traceback_later(limit_s + 0.5, file=stderr, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    needed = [name for marker in item.iter_markers("system") for name in marker.args]
    needed += ["git" for _ in item.iter_markers("referee")]
    for name in needed:
        if not _installed(name):
            pytest.skip(f"needs {name}, which is not installed")


def _installed(program: str) -> bool:
    # Debian keeps mkfs and its like off the PATH of ordinary users; git is only git where PATH says so.
    path = os.environ.get("PATH", "")
    return shutil.which(program, path=path if program == "git" else f"{path}:/usr/sbin:/sbin") is not None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    if report.when == "call":
        item.stash[_passed] = report.passed
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}; SCP_GIT_NO_SKIP=1 makes a skip a failure"


# ---------------------------------------------------------------- a home of its own


@pytest.fixture(scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for the session, as libgit2's search path must not move while a thread may be reading it."""
    home, empty = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("no-config")
    for level in (ConfigLevel.SYSTEM, ConfigLevel.XDG, ConfigLevel.PROGRAMDATA):
        pygit2.settings.search_path[level] = str(empty)
    pygit2.settings.search_path[ConfigLevel.GLOBAL] = str(home)
    pygit2.settings.homedir = str(home)  # libgit2 looks for .ssh/known_hosts there
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("GIT_") or name in FOREIGN]:
            patch.delenv(name)
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
        patch.setenv("LC_ALL", "C.UTF-8")
        yield home


@pytest.fixture(autouse=True)
def home(_home: Path) -> Path:
    """``$HOME``, holding nothing but a ``.gitconfig`` that says who Ada Tester is."""
    for entry in _home.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (_home / ".gitconfig").write_text(GIT_CONFIG)
    return _home


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ---------------------------------------------------------------- real repositories


@pytest.fixture
def _watched() -> list[Path]:
    return []


@pytest.fixture
def watch(_watched: list[Path]) -> Callable[[Path], Path]:
    """Have stock git look at a repository that ``make_repo`` did not make; returns the path."""

    def watch(top: Path) -> Path:
        _watched.append(Path(top))
        return Path(top)

    return watch


@pytest.fixture
def make_repo(tmp_path: Path, watch: Callable[[Path], Path]) -> Callable[..., Path]:
    """Call it to get the top of a new repository on branch ``main`` with that many commits."""
    names = (f"repo{number or ''}" for number in range(1000))

    def make_repo(path: str | os.PathLike[str] | None = None, commits: int = 1, bare: bool = False) -> Path:
        top = Path(path) if path is not None else tmp_path / next(names)
        _build(top, commits, bare)
        return watch(top)

    return make_repo


@pytest.fixture
def repo(make_repo: Callable[..., Path]) -> Path:
    """The top of a repository with one commit."""
    return make_repo()


def _build(top: Path, commits: int, bare: bool) -> None:
    repo = pygit2.init_repository(top, bare=bare, initial_head="main")
    try:
        parents: list[pygit2.Oid] = []
        for number in range(1, commits + 1):
            tree = repo.TreeBuilder()
            tree.insert("file.txt", repo.create_blob(f"line {number}\n".encode()), FileMode.BLOB)
            ada = pygit2.Signature("Ada Tester", "ada@example.org", 1_700_000_000 + number, 60)
            message = f"commit {number}\n"
            parents = [repo.create_commit("refs/heads/main", ada, ada, message, tree.write(), parents)]
        if commits and not bare:
            repo.checkout_head(strategy=CheckoutStrategy.FORCE)
    finally:
        repo.free()


# ---------------------------------------------------------------- stock git, the referee


@pytest.fixture
def git() -> Callable[..., str]:
    """``git(root, *args, input=None)``: stock git's stdout; the test fails when git does.

    Skips the test where git is not installed.
    """
    if not _installed("git"):
        pytest.skip("needs git, which is not installed")

    def git(root: str | os.PathLike[str], *args: str, input: str | None = None) -> str:
        done = _git(root, *args, input=input)
        assert done.returncode == 0, f"git {' '.join(args)}: exit {done.returncode}\n{done.stderr}"
        return done.stdout

    return git


def _git(
    root: str | os.PathLike[str], *args: str, input: str | None = None
) -> subprocess.CompletedProcess[str]:
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
    return subprocess.run(
        ["git", "-C", os.fspath(root), *args],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
        **source,
    )


@pytest.fixture
def git_complaints() -> Callable[..., list[str]]:
    """``git_complaints(root, only=...)``: what stock git objects to just now; empty is good.

    ``only`` names some of ``fsck locks view worktrees status tags``. Without git it is always empty.
    """
    return _complaints


@pytest.fixture(autouse=True)
def stock_git_is_content(request: pytest.FixtureRequest, home: Path, _watched: list[Path]) -> Iterator[None]:
    """After a test that passed, stock git has nothing against any repository it made or watched.

    ``@pytest.mark.untidy("reason")`` opts out; ``skip=["status"]`` opts out of that check only.
    """
    yield
    marker = request.node.get_closest_marker("untidy")
    skip = marker.kwargs.get("skip", list(CHECKS)) if marker else []
    checks = [name for name in CHECKS if name not in skip]
    if not request.node.stash.get(_passed, False):
        return
    for top in dict.fromkeys(_watched):
        complaints = _settled_complaints(top, checks) if _is_repository(top) else []
        assert not complaints, f"stock git about {top}:\n" + "\n".join(complaints)


def _settled_complaints(top: Path, checks: list[str]) -> list[str]:
    """The complaints that stay: a cancelled call may have left a write that is still being finished."""
    for _ in range(10):
        complaints = _complaints(top, checks)
        if not complaints:
            break
        time.sleep(0.2)
    return complaints


def _complaints(top: Path, only: list[str] | None = None) -> list[str]:
    if not _installed("git"):
        return []
    chosen = {name: check for name, check in CHECKS.items() if only is None or name in only}
    return [f"{name}: {line}" for name, check in chosen.items() for line in check(top)]


def _is_repository(top: Path) -> bool:
    return (top / ".git").exists() or (top / "HEAD").is_file()


def _has_ledger(top: Path) -> bool:
    return _git(top, "show-ref", "--verify", "--quiet", "refs/heads/scp-ledger").returncode == 0


_HARMLESS = re.compile(r"notice: (HEAD points to an unborn branch|No default references)")


def _check_fsck(top: Path) -> list[str]:
    done = _git(top, "fsck", "--strict", "--no-dangling")
    lines = [line for line in (done.stdout + done.stderr).splitlines() if not _HARMLESS.match(line)]
    return lines + ([f"exit {done.returncode}"] if done.returncode else [])


def _check_locks(top: Path) -> list[str]:
    common = top / _git(top, "rev-parse", "--git-common-dir").stdout.strip()
    return [f"left behind: {path}" for path in sorted(common.rglob("*.lock"))]


def _check_view(top: Path) -> list[str]:
    view = top / ".scp-ledger"
    if not _has_ledger(top) or not view.exists():
        return []
    return _output_or_failure(_git(view, "--no-optional-locks", "status", "--porcelain"))


def _check_worktrees(top: Path) -> list[str]:
    done = _git(top, "worktree", "list")
    return [done.stderr.strip() or f"exit {done.returncode}"] if done.returncode else []


def _check_status(top: Path) -> list[str]:
    if not _has_ledger(top) or not (top / ".git").exists():
        return []
    lines = _output_or_failure(_git(top, "--no-optional-locks", "status", "--porcelain"))
    return [line for line in lines if line[3:] != ".gitignore"]


def _check_tags(top: Path) -> list[str]:
    fields = "%(refname)%00%(objecttype)%00%(contents)%00"
    done = _git(top, "for-each-ref", f"--format={fields}", "refs/tags/scp/run/")
    parts = done.stdout.split("\0")[:-1]
    complaints = []
    for name, kind, message in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if kind != "tag":
            complaints.append(f"{name.strip()} is a {kind}, not an annotated tag")
        elif message.count("\n") != 1 or not _is_json(message):
            complaints.append(f"the message of {name.strip()} is not one line of JSON: {message[:120]!r}")
    return complaints


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return text.endswith("\n")


def _output_or_failure(done: subprocess.CompletedProcess[str]) -> list[str]:
    lines = done.stdout.splitlines()
    return lines if done.returncode == 0 else [*lines, done.stderr.strip() or f"exit {done.returncode}"]


CHECKS: dict[str, Callable[[Path], list[str]]] = {
    "fsck": _check_fsck,
    "locks": _check_locks,
    "view": _check_view,
    "worktrees": _check_worktrees,
    "status": _check_status,
    "tags": _check_tags,
}
