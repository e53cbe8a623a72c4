"""What scp_git does, in a repository of its own that is thrown away afterwards: ``make demo``.

Every step is headed by the command line that it runs. Nothing talks to a network.
The exit code is 1 if anything is not as it should be.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

import pygit2

import scp_git
from scp_git import bus

TOKEN = "hunter2-do-not-share"
KEY = "a passphrase of this demo"
TEST = """import unittest

import prices


class Prices(unittest.TestCase):
    def test_total(self):
        self.assertEqual(prices.total([1, 2]), 3)
"""
DEPLOY = """import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--host")
parser.add_argument("--token")
print("deploying to", parser.parse_args().host)
"""
COMMITS = [
    ("Add prices", {"prices.py": "def total(items):\n    return sum(items)\n"}),
    ("Test prices", {"test_prices.py": TEST}),
    ("Add a deploy script", {"deploy.py": DEPLOY, "draft.py": "def unfinished(:\n"}),
]


async def release(root: Path) -> str:
    """The small async program of this demo."""
    async with scp_git.track_run(root, "release", subtype="pip:release", environment="staging") as run:
        for step in ("build", "sign", "upload"):
            started = time.monotonic()
            await asyncio.sleep(0.02)  # the real work
            run.event(f"step:{step}", status="ok", duration_ms=round((time.monotonic() - started) * 1000))
        run.metadata["version"] = "1.4.2"
        run.summary = "Released 1.4.2 in 3 steps"
    return run.run_id


async def rollout(root: Path) -> str:
    """A session: what passes on the bus while it is recorded."""
    async with scp_git.record(root, name="rollout", classification="deployment", post=True) as recording:
        for host in ("web-1", "web-2"):
            bus.publish("host:drain", key=host, data={"status": "ok"}, duration_s=0.4)
            bus.publish("host:upgrade", key=host, data={"status": "ok", "to": "1.4.2"}, duration_s=1.9)
        bus.publish("host:health", key="web-2", error="503 for 2 s")
    return recording.trace_id


class Demo:
    """One repository, the shell's view of it, and what turned out to be wrong."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "shop"
        self.wrong: list[str] = []
        programs = _programs(folder / "bin")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self._environment = inherited | {
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(Path(scp_git.__file__).parents[1]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": str(shutil.get_terminal_size((140, 40)).columns),
            "TERM": os.environ.get("TERM", "xterm"),
        }

    def shell(self, *command: str, shown: str = "", expected: int = 0, terminal: bool = False) -> str:
        """Run a command in the repository, show it and what it says; returns what it said."""
        print(f"\n$ {shown or shlex.join(command)}", flush=True)
        code, said = (self._on_terminal if terminal else self._in_pipe)(command)
        print(said, end="", flush=True)
        self.check(code == expected, f"{shown or ' '.join(command)}: exit code {code}")
        self.check(TOKEN not in said, "the token was printed")
        return said

    def _in_pipe(self, command: Sequence[str]) -> tuple[int, str]:
        done = subprocess.run(
            command, cwd=self.root, env=self._environment, text=True, stdout=PIPE, stderr=STDOUT, check=False
        )
        return done.returncode, done.stdout

    def _on_terminal(self, command: Sequence[str]) -> tuple[int, str]:
        """As a person sees it: with a table where a pipe gets bare lines."""
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            command, cwd=self.root, env=self._environment, stdin=DEVNULL, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        said = b"".join(iter(lambda: _read(ours), b""))
        os.close(ours)
        text = said.decode().replace("\r\n", "\n")
        return process.wait(), text if sys.stdout.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", text)

    def check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)
            print(f"WRONG: {otherwise}", flush=True)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""  # how Linux says that the other side is closed


def _programs(folder: Path) -> Path:
    """``python`` and ``scp-git`` as the reader would call them, whatever is installed here."""
    folder.mkdir()
    for name, module in (("python", ""), ("scp-git", "-m scp_git.cli ")):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
        program.chmod(0o755)
    return folder


# ---- the steps


def make_repository(demo: Demo) -> None:
    print(f"# A repository with {len(COMMITS)} commits.")
    repository = pygit2.init_repository(demo.root, initial_head="main")
    author = pygit2.Signature("Ann Example", "ann@example.org")
    repository.config["user.name"] = author.name
    repository.config["user.email"] = author.email
    for message, files in COMMITS:
        for name, text in files.items():
            (demo.root / name).write_text(text)
        repository.index.add_all()
        repository.index.write()
        parents = [] if repository.head_is_unborn else [repository.head.target]
        tree = repository.index.write_tree()
        commit = repository.create_commit("refs/heads/main", author, author, message, tree, parents)
        print(f"{str(commit)[:7]} {message}")


def record_commands(demo: Demo) -> None:
    print("\n# Any command, recorded. Its output and its exit code are its own.")
    demo.shell("scp-git", "run", "--type", "test", "--", "python", "-m", "unittest")
    lint = "scp-git run --type lint --tail 5 -- python -m py_compile draft.py"
    demo.shell(*lint.split(), expected=1)
    print("\n# What looks like a secret is masked before it is stored: this history will be shared.")
    deploy = "scp-git run --type deploy -- python deploy.py --host staging --token"
    demo.shell(*deploy.split(), TOKEN, shown=f"{deploy} ****")


def record_from_python(demo: Demo) -> str:
    print("\n# From a program: one `async with`.\n")
    print(inspect.getsource(release))
    print("$ python release.py", flush=True)
    run_id = asyncio.run(release(demo.root))
    print(run_id)
    return run_id


def read_back(demo: Demo, run_id: str) -> None:
    print("\n# What was recorded.")
    demo.shell("scp-git", "ledger", "list", terminal=True)
    demo.shell("scp-git", "ledger", "show", run_id, terminal=True)
    deploys = demo.shell("scp-git", "ledger", "list", "--type", "deploy", "--json")
    demo.check('"--token"' in deploys and '"***"' in deploys, "the masked argument is not to be seen")
    with scp_git.Store.open(demo.root) as store:
        found = {run.type: run for run in store.list_runs()}
        stored = json.dumps([run.model_dump() for run in found.values()])
        steps = [event["type"] for event in store.get_run_events(run_id)]
    status = {kind: run.status for kind, run in found.items()}
    expected = {"test": "ok", "lint": "failed", "deploy": "ok", "release": "ok"}
    demo.check(status == expected, f"expected {expected}, found {status}")
    demo.check(TOKEN not in stored, "the token was stored")
    demo.check(steps == ["step:build", "step:sign", "step:upload"], f"the events of {run_id} are {steps}")


def talk(demo: Demo, run_id: str) -> None:
    print("\n# What people say about it lies with it: in git notes, and in threads.")
    demo.shell("scp-git", "chat", "send", "--run", run_id, "Went out at noon, see @file:deploy.py#L4")
    key = demo.root / ".env"
    key.touch(mode=0o600)
    key.write_text(f"CONTENT_VAULT_ENC_KEY={KEY}\n")
    secret = ("scp-git", "chat", "send", "--run", run_id, "--encrypt")
    text = "the old password was "
    demo.shell(*secret, text + TOKEN, shown=f"{shlex.join(secret)} '{text}****'")
    print("\n# Whoever has the key reads it, nobody else; the repository holds ciphertext.")
    key.unlink()
    listed = demo.shell("scp-git", "chat", "list", "--run", run_id, terminal=True)
    demo.check("[encrypted]" in listed and "Went out at noon" in listed, "the messages are not as expected")


def record_session(demo: Demo) -> None:
    print("\n# A session: everything on the bus between two moments, summed up and posted to chat.\n")
    print(inspect.getsource(rollout))
    print("$ python rollout.py", flush=True)
    trace_id = asyncio.run(rollout(demo.root))
    print(trace_id)
    shown = demo.shell("scp-git", "trace", "show", trace_id, terminal=True)
    demo.check("host:upgrade" in shown, "the timeline lacks an event")
    posted = demo.shell("scp-git", "chat", "list")
    demo.check(f"@trace:{trace_id}" in posted, "the summary was not posted")


def sync(demo: Demo) -> None:
    print("\n# Two clones, one remote, both write. Nothing can conflict.")
    remote, other = demo.root.with_name("remote.git"), demo.root.with_name("colleague")
    pygit2.init_repository(remote, bare=True, initial_head="main")
    repository = pygit2.Repository(demo.root)
    repository.remotes.create("origin", str(remote)).push(["refs/heads/main:refs/heads/main"])
    demo.shell("scp-git", "sync")
    clone = pygit2.clone_repository(str(remote), other)
    clone.config["user.name"], clone.config["user.email"] = "Ben Example", "ben@example.org"
    there = ("scp-git", "-C", "../colleague")
    demo.shell(*there, "ledger", "record", "--type", "backup", "--summary", "nightly backup")
    demo.shell(*there, "chat", "send", "I saw the rollout, looks good")
    demo.shell(*there, "sync")
    demo.shell("scp-git", "ledger", "record", "--type", "scan", "--summary", "no findings")
    demo.shell("scp-git", "sync")
    demo.shell(*there, "sync")
    listed = demo.shell("scp-git", "ledger", "list", terminal=True)
    demo.check("nightly backup" in listed and "no findings" in listed, "a run did not arrive")
    with scp_git.Store.open(demo.root) as here, scp_git.Store.open(other) as colleague:
        demo.check(here.list_runs() == colleague.list_runs(), "the clones do not have the same runs")
        demo.check(here.list_messages() == colleague.list_messages(), "nor the same messages")


def bring_in(demo: Demo) -> None:
    print("\n# History that is there already: the commits of any repository become runs. All of it is found.")
    demo.shell("scp-git", "ledger", "import", "--from-git-log", ".")
    found = demo.shell("scp-git", "search", "deploy", terminal=True)
    demo.check("Add a deploy script" in found, "the search does not find the commit")


def ask_git(demo: Demo) -> None:
    if shutil.which("git") is None:
        print("\n# There is no git program here. Nothing above needed one.")
        return
    print("\n# The same, seen by git alone: a branch, tags, a linked worktree, no complaints.")
    log = demo.shell("git", "log", "--oneline", "scp-ledger")
    demo.check(len(log.splitlines()) >= 4, "git log shows too few commits")
    tags = demo.shell("git", "tag", "-l", "scp/run/*")
    demo.check(len(tags.splitlines()) == 6 + len(COMMITS), f"expected {6 + len(COMMITS)} tags")
    status = demo.shell("git", "-C", ".scp-ledger", "status")
    demo.check("nothing to commit, working tree clean" in status, "the view is not clean")
    # Dangling is what a merge has replaced, as after any rebase.
    said = demo.shell("git", "fsck", "--strict", "--no-dangling")
    demo.check(said == "", "git fsck has something to say")
    print("(nothing)")
    print("\n# And the working tree: .gitignore has one more entry, nothing else has changed.")
    changed = demo.shell("git", "status", "--short")
    demo.check(changed == "?? .gitignore\n", "the user's tree was touched")


def main() -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="scp-git-demo-") as folder:
        demo = Demo(Path(folder))
        make_repository(demo)
        record_commands(demo)
        run_id = record_from_python(demo)
        try:
            read_back(demo, run_id)
            talk(demo, run_id)
            record_session(demo)
            sync(demo)
            bring_in(demo)
        except scp_git.ScpGitError as exc:
            demo.check(False, f"{type(exc).__name__}: {exc}")
        ask_git(demo)
    print(f"\n{'FAILED' if demo.wrong else 'Done'} in {time.monotonic() - started:.1f} s.")
    return 1 if demo.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
