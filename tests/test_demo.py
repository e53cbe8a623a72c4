"""``make demo``: it ends well, shows what it promises, and needs no git program."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import scp_git

DEMO = Path(__file__).parents[1] / "docs" / "demo.py"
SOURCES = Path(scp_git.__file__).parents[1]
TOKEN = "hunter2-do-not-share"


def run_demo(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the demo with ``folder`` as its place for temporary files."""
    folder.mkdir()
    chosen = (
        os.environ
        | {"PYTHONPATH": str(SOURCES), "TMPDIR": str(folder), "COLUMNS": "140", "TERM": "xterm"}
        | environment
    )
    return subprocess.run(
        [sys.executable, str(DEMO)], env=chosen, capture_output=True, text=True, timeout=120
    )


def cpu_s() -> float:
    """What the processes started so far have used; a busy machine does not change it much."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def headings(printed: str) -> list[str]:
    return [line[2:] for line in printed.splitlines() if line.startswith("$ ")]


def test_the_demo_shows_every_step(tmp_path: Path) -> None:
    before = cpu_s()
    said = run_demo(tmp_path / "scratch")
    assert (said.returncode, said.stderr) == (0, ""), said.stdout
    assert cpu_s() - before < 30
    shown = headings(said.stdout)
    assert shown[:4] == [
        "scp-git run --type test -- python -m unittest",
        "scp-git run --type lint --tail 5 -- python -m py_compile draft.py",
        "scp-git run --type deploy -- python deploy.py --host staging --token ****",
        "python release.py",
    ]
    assert "scp-git ledger list" in shown
    assert any(line.startswith("scp-git ledger show run_") for line in shown)
    assert "Ran 1 test in" in said.stdout
    assert "SyntaxError" in said.stdout
    assert "deploying to staging" in said.stdout
    assert "async with scp_git.track_run(" in said.stdout
    assert "Released 1.4.2 in 3 steps" in said.stdout
    assert "step:upload" in said.stdout
    assert "the old password was ****" in said.stdout
    assert "[encrypted]" in said.stdout
    assert "5 events: 5 host; 4 ok, 1 failed" in said.stdout
    assert shown.count("scp-git sync") == 2
    assert shown.count("scp-git -C ../colleague sync") == 2
    assert "scp-git ledger import --from-git-log ." in shown
    assert "scp-git search deploy" in shown
    assert "WRONG" not in said.stdout
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.referee
def test_the_demo_asks_git(tmp_path: Path) -> None:
    said = run_demo(tmp_path / "scratch")
    shown = headings(said.stdout)
    for line in (
        "git log --oneline scp-ledger",
        "git tag -l 'scp/run/*'",
        "git -C .scp-ledger status",
        "git fsck --strict --no-dangling",
    ):
        assert line in shown
    assert "On branch scp-ledger" in said.stdout
    assert "$ git fsck --strict --no-dangling\n(nothing)\n" in said.stdout
    assert TOKEN not in said.stdout


def test_the_demo_works_without_git(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    said = run_demo(tmp_path / "scratch", PATH=str(nothing))
    assert (said.returncode, said.stderr) == (0, ""), said.stdout
    assert "There is no git program here. Nothing above needed one." in said.stdout
    assert not any(line.startswith("git ") for line in headings(said.stdout))


def test_the_demo_fails_when_something_is_off(tmp_path: Path) -> None:
    """With a ledger that cannot be used, the last line and the exit code say so."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[scp]\n\tdurability = sometimes\n")
    said = run_demo(tmp_path / "scratch", HOME=str(home), XDG_CONFIG_HOME=str(home), GIT_CONFIG_GLOBAL="")
    assert said.returncode == 1
    assert "WRONG: " in said.stdout
    assert "\nFAILED in " in said.stdout
