"""Runs jobs of ``worker.py`` under ``strace``: counts system calls, kills or fails chosen ones, reads traces.

A tracer is attached only once the worker waits for it, and then either to all its threads or to one, so
the ``when=`` number of an injection means the same call in every run.
"""

from __future__ import annotations

import functools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MUTATING = (
    "open creat openat openat2 mkdir mkdirat mknod mknodat write pwrite64 writev pwritev pwritev2 ftruncate "
    "truncate fallocate copy_file_range sendfile link linkat symlink symlinkat rename renameat renameat2 "
    "unlink unlinkat rmdir fsync fdatasync sync syncfs sync_file_range msync utimensat utimes utime "
    "futimesat chmod fchmod fchmodat fchmodat2 setxattr fsetxattr flock"
).split()
Steps = Sequence[Sequence[Any]]
"""Verb and argument of each step of a job, see ``STEPS`` in ``worker.py``."""
ROOT = "{root}"
"""Stands for the repository's path in the arguments of steps."""
MAIN, WRITER, MERGER = "main", "scp-git-writer", "scp-git-packs"
"""Names of threads."""
SYNCING = ("fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync")
_WRITE_FLAGS = re.compile(r"\bO_(CREAT|WRONLY|RDWR|TRUNC)\b")
_WORKER = Path(__file__).with_name("worker.py")


def select_calls(names: Iterable[str]) -> str:
    """A ``-e trace=`` set that tolerates names this machine does not have."""
    return "trace=" + ",".join("?" + name for name in names)


@functools.cache
def why_no_strace() -> str | None:
    """The reason why calls cannot be traced here, or None."""
    if shutil.which("strace") is None:
        return "needs strace"
    probe = subprocess.run(
        ["strace", "-o", os.devnull, sys.executable, "-c", ""], capture_output=True, text=True
    )
    return None if probe.returncode == 0 else "strace may not trace processes here"


# ---- running jobs


@dataclass
class Outcome:
    """What a job said before it ended."""

    lines: list[str] = field(default_factory=list)
    status: int | None = None
    """Exit code; negative for a signal; None when the job hung and was killed."""
    took_s: float = 0.0
    pid: int = 0
    """The process that did the job."""
    threads: dict[int, str] = field(default_factory=dict)
    """Native id and name of each thread that was seen to start."""

    def _args(self, word: str) -> list[str]:
        return [line[len(word) + 1 :] for line in self.lines if line.split(" ", 1)[0] == word]

    @property
    def acked(self) -> list[str]:
        return self._args("ACK")

    @property
    def deleted(self) -> list[str]:
        return self._args("DEL")

    @property
    def sent(self) -> list[str]:
        return self._args("SENT")

    @property
    def said(self) -> list[list[str]]:
        """What the ``said`` steps read, one after the other."""
        return [json.loads(line) for line in self._args("SAID")]

    @property
    def errors(self) -> list[str]:
        return self._args("ERR")

    @property
    def bugs(self) -> list[str]:
        return self._args("BUG")

    @property
    def listed(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = json.loads(self._args("LIST")[-1])
        return found


def start_worker(*args: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen([sys.executable, str(_WORKER), *args], stdin=-1, stdout=-1, env=env, bufsize=0)


class Conversation:
    """Reads the lines of one worker, never longer than a deadline."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._rest = b""

    def line(self, deadline: float) -> str | None:
        """The next line; None at the end of the output.

        Raises:
            TimeoutError: nothing came before ``deadline`` (of ``time.monotonic``).
        """
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            if not select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                return None
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")


def run_worker(root: Path, steps: Steps, *, timeout_s: float = 60.0, **job: Any) -> Outcome:
    """Do one job in a process of its own, without a tracer."""
    began = time.monotonic()
    with start_worker("run", json.dumps({"root": str(root), "steps": steps, **job})) as process:
        return read_to_end(process, began, timeout_s)


def read_to_end(process: subprocess.Popen[bytes], began: float, timeout_s: float) -> Outcome:
    """Everything the worker still says; a worker that takes longer than ``timeout_s`` is killed."""
    talk, outcome = Conversation(process), Outcome()
    try:
        while (line := talk.line(began + timeout_s)) is not None:
            if not line.startswith("PID "):
                outcome.lines.append(line)
    except TimeoutError:
        process.kill()
    else:
        outcome.status = process.wait()
    outcome.took_s = time.monotonic() - began
    return outcome


class Server:
    """A worker that forks a child for each job; one job at a time."""

    child = 0
    """The process that does the present job."""

    def __enter__(self) -> Server:
        self._process = start_worker("serve")
        self._talk = Conversation(self._process)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(
        self,
        root: Path,
        steps: Steps,
        *,
        strace: Sequence[str] | None = None,
        only: str | None = None,
        timeout_s: float = 60.0,
        **job: Any,
    ) -> Outcome:
        """Do one job, under a tracer if ``strace`` gives options for it.

        A step ``pause`` takes the tracer away again.

        Args:
            only: trace the thread of that name alone (``MAIN`` or one that the library starts).
        """
        began = time.monotonic()
        if strace is not None:
            job["trace"] = only or MAIN
        self._talk.say(json.dumps({"root": str(root), "steps": steps, **job}).replace(ROOT, str(root)))
        outcome, tracer = Outcome(), None
        try:
            while (line := self._talk.line(began + timeout_s)) is not None and not line.startswith("EXIT "):
                word, _, rest = line.partition(" ")
                if word == "PID":
                    outcome.pid = self.child = int(rest)
                elif word == "THREAD":
                    tid, _, name = rest.partition(" ")
                    outcome.threads[int(tid)] = name
                elif word != "READY":
                    outcome.lines.append(line)
                else:
                    if tracer is not None:
                        detach(tracer)
                    elif strace is not None:
                        tracer = attach([*strace, *([] if only else ["-f"])], int(rest))
                    self._talk.say("")
            outcome.status = int(line.split()[1]) if line else None
        except TimeoutError:
            os.kill(outcome.pid or self._process.pid, signal.SIGKILL)
            self._talk.line(time.monotonic() + 10)
        finally:
            if tracer is not None:
                detach(tracer)
        outcome.took_s = time.monotonic() - began
        return outcome


def attach(options: Sequence[str], tid: int) -> subprocess.Popen[bytes]:
    """Start ``strace`` on a waiting thread; returns once every further call is seen."""
    tracer = subprocess.Popen(["strace", *options, "-p", str(tid)], stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    assert b"attached" in said, said
    return tracer


def detach(tracer: subprocess.Popen[bytes]) -> None:
    """Let the traced threads run on by themselves; does nothing the second time."""
    if tracer.returncode is not None:
        return
    with suppress(subprocess.TimeoutExpired):
        tracer.wait(0.02)
    with suppress(ProcessLookupError):
        tracer.send_signal(signal.SIGINT)
    tracer.communicate()


# ---- reading traces


@dataclass(frozen=True)
class Call:
    """One finished (or, when the process ended in it, unfinished) system call."""

    tid: int
    name: str
    args: str
    result: int | None
    entered: int
    """Line number at which it began."""

    @property
    def writes(self) -> bool:
        return self.name in MUTATING and (
            self.name not in ("open", "openat", "openat2") or bool(_WRITE_FLAGS.search(self.args))
        )


_WHOLE = re.compile(r"(?s)(\d+) +(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?).*")
_BEGUN = re.compile(r"(?s)(\d+) +(\w+)\((.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(?s)(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (-?\d+|0x[0-9a-f]+|\?).*")


def read_trace(path: Path) -> Iterator[Call]:
    """The calls of a trace written with ``-f``, in the order in which they ended."""
    begun: dict[int, tuple[str, int]] = {}
    for number, line in enumerate(path.read_text("utf-8", "surrogateescape").split("\n")):
        if match := _BEGUN.fullmatch(line):
            begun[int(match[1])] = (match[3], number)
        elif match := _RESUMED.fullmatch(line):
            args, entered = begun.pop(int(match[1]))
            yield Call(int(match[1]), match[2], args + match[3], _number(match[4]), entered)
        elif match := _WHOLE.fullmatch(line):
            yield Call(int(match[1]), match[2], match[3], _number(match[4]), number)
        elif line and not any(mark in line for mark in ("+++", "---", "???")):  # ends, signals, the unseen
            raise ValueError(f"{path}:{number + 1}: not understood: {line[:200]}")


def _number(text: str) -> int | None:
    return None if text == "?" else int(text, 0)


@dataclass(frozen=True)
class Point:
    """One call of a job: the ``when``-th of that ``name`` in the thread called ``only``."""

    only: str
    name: str
    when: int
    shown: str = field(compare=False)

    def inject(self, what: str, *, persistent: bool = False) -> list[str]:
        """Options for ``strace`` that do ``what`` (``signal=KILL``, ``error=ENOSPC``) at this call."""
        when = f"{self.when}+" if persistent else f"{self.when}"
        return ["-o", os.devnull, "-e", f"trace={self.name}", "-e", f"inject={self.name}:{what}:when={when}"]


def mutating_points(server: Server, root: Path, steps: Steps, trace: Path, **job: Any) -> list[Point]:
    """Every call of the job that changes something below ``root``, counted as an injection counts."""
    outcome = server.run(root, steps, strace=["-y", "-o", str(trace), "-e", select_calls(MUTATING)], **job)
    assert outcome.status == 0 and not outcome.errors and not outcome.bugs, outcome
    seen: Counter[tuple[int, str]] = Counter()
    points = []
    for call in sorted(read_trace(trace), key=lambda call: call.entered):
        if '"THREAD ' in call.args:  # said before a tracer of that thread alone is there
            continue
        seen[call.tid, call.name] += 1
        if call.writes and (str(root) in call.args or call.name == "sync"):
            only = outcome.threads.get(call.tid, MAIN)
            shown = call.args.replace(str(root), "")[:160]
            points.append(Point(only, call.name, seen[call.tid, call.name], shown))
    names = Counter(outcome.threads.values())
    assert all(names[point.only] < 2 for point in points), f"threads of one name write: {names}"
    return points
