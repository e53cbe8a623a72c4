"""``scp-git run``: the command as without us, and what is stored of it. Drives the real program."""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pygit2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_git.cli.masking import MASK, Secrets, mask_argv, mask_output
from scp_git.cli.place import find_root, within
from scp_git.cli.tail import LINE_BYTES, TOTAL_BYTES, Assembler, Tail

PROJECT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
CLI = [PYTHON, "-m", "scp_git.cli"]
TAILS = pytest.mark.parametrize("tail", [[], ["--tail", "5"]], ids=["plain", "tail"])


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))


def scp(cwd: Path, *args: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*CLI, *args], cwd=cwd, capture_output=True, timeout=60, **options)


def stored(root: Path) -> list[dict[str, Any]]:
    result = scp(root, "ledger", "list", "--json", "-n", "1000")
    assert result.returncode == 0, result.stderr
    return list(json.loads(result.stdout))


def only_run(root: Path) -> dict[str, Any]:
    (run,) = stored(root)
    return run


def python(code: str) -> list[str]:
    return [PYTHON, "-c", code]


# ---------------------------------------------------------------- exit codes and the record


@TAILS
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["no-such-command-here"], 127),
        (["/"], 126),
    ],
)
def test_the_exit_code_is_that_of_the_command(
    repo: Path, command: list[str], code: int, tail: list[str]
) -> None:
    result = scp(repo, "run", *tail, "--", *command)
    assert result.returncode == code
    run = only_run(repo)
    assert run["metadata"]["exit_code"] == code
    assert run["status"] == ("ok" if code == 0 else "failed")
    assert run["metadata"]["command"] == command


def test_a_file_that_is_not_executable_is_126_and_a_script_without_a_first_line_runs(repo: Path) -> None:
    script = repo.parent / "script"
    script.write_text("exit 9\n")
    assert scp(repo, "run", "--", "../script").returncode == 126
    script.chmod(0o755)
    assert scp(repo, "run", "--", "../script").returncode == 9
    assert sorted(run["metadata"]["exit_code"] for run in stored(repo)) == [9, 126]


def test_what_is_recorded(repo: Path) -> None:
    folder = repo / "a" / "b"
    folder.mkdir(parents=True)
    before = time.time()
    result = scp(folder, "run", "--", "sh", "-c", "sleep 0.2; exit 3")
    assert (result.returncode, result.stdout, result.stderr) == (3, b"", b"")
    run = only_run(repo)
    assert run["type"] == "command"
    assert run["subtype"] == "sh"
    assert run["status"] == "failed"
    assert run["summary"] == "sh -c 'sleep 0.2; exit 3'"
    assert 200 <= run["duration_ms"] < 1000 * (time.time() - before)
    assert run["started_at"] < run["ended_at"]
    assert run["metadata"] == {
        "command": ["sh", "-c", "sleep 0.2; exit 3"],
        "exit_code": 3,
        "cwd": "a/b",
        "host": os.uname().nodename,
    }


def test_a_signal_is_recorded_by_name(repo: Path) -> None:
    scp(repo, "run", "--", "sh", "-c", "kill -9 $$")
    assert only_run(repo)["metadata"]["signal"] == "SIGKILL"


def test_labels_are_stored_and_options_of_the_command_are_its_own(repo: Path) -> None:
    labels = ["--type", "deploy", "--subtype", "k8s", "--environment", "prod", "--summary", "went out"]
    assert scp(repo, "run", *labels, "sh", "-c", "exit 0", "--tail", "x").returncode == 0
    run = only_run(repo)
    assert [run[name] for name in ("type", "subtype", "environment", "summary")] == [
        "deploy",
        "k8s",
        "prod",
        "went out",
    ]
    assert run["metadata"]["command"][-2:] == ["--tail", "x"]


def test_without_a_command_it_is_wrong_usage(repo: Path) -> None:
    result = scp(repo, "run")
    assert result.returncode == 2
    assert result.stderr.startswith(b"scp-git: ") and result.stderr.count(b"\n") == 1


def test_the_summary_is_one_line_and_a_huge_command_line_is_cut(repo: Path) -> None:
    assert scp(repo, "run", "--", "echo", "one\ntwo", *["x" * 1000] * 500).returncode == 0
    run = only_run(repo)
    assert "\n" not in run["summary"] and len(run["summary"]) <= 500
    assert run["metadata"]["command"][-1].startswith("... and ")
    assert len(json.dumps(run)) < 100_000


# ---------------------------------------------------------------- nothing else changes


@TAILS
def test_stdin_is_passed_on(repo: Path, tail: list[str]) -> None:
    result = scp(repo, "run", *tail, "--", "cat", input=b"\x00\xffab\r\nc")
    assert result.stdout == b"\x00\xffab\r\nc"


@TAILS
def test_bytes_pass_unchanged(repo: Path, tail: list[str]) -> None:
    size = 5 * 1024 * 1024
    code = f"import sys; sys.stdout.buffer.write(bytes(range(256)) * {size // 256})"
    result = scp(repo, "run", *tail, "--", *python(code))
    assert result.stdout == bytes(range(256)) * (size // 256)
    assert result.stderr == b""


@TAILS
def test_stdout_and_stderr_stay_apart(repo: Path, tail: list[str]) -> None:
    result = scp(repo, "run", *tail, "--", "sh", "-c", "echo out; echo err >&2")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


@TAILS
def test_stdout_and_stderr_in_one_pipe_keep_their_order(repo: Path, tail: list[str]) -> None:
    code = "import os\nfor n in range(500): os.write(1 + n % 2, b'%d\\n' % n)"
    command = [*CLI, "run", *tail, "--", *python(code)]
    result = subprocess.run(command, cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    assert result.stdout == b"".join(b"%d\n" % n for n in range(500))


@TAILS
def test_output_is_not_held_back(repo: Path, tail: list[str]) -> None:
    code = "import os, sys\nos.write(1, b'no newline'); sys.stdin.read()"
    command = [*CLI, "run", *tail, "--", *python(code)]
    with subprocess.Popen(command, cwd=repo, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert os.read(process.stdout.fileno(), 100) == b"no newline"
        process.stdin.close()
        assert process.wait(30) == 0


def test_other_descriptors_and_the_environment_are_inherited(repo: Path) -> None:
    read, write = os.pipe()
    code = f"import os; os.write({write}, os.environ['MARK'].encode())"
    scp(repo, "run", "--", *python(code), pass_fds=[write], env={**os.environ, "MARK": "here"})
    os.close(write)
    with os.fdopen(read, "rb") as file:
        assert file.read() == b"here"


@TAILS
@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_stream_is_closed_for_the_command_too(repo: Path, tail: list[str], closed: int) -> None:
    code = f"import os, sys\ntry: os.fstat({closed})\nexcept OSError: sys.exit(42)"
    line = f"exec {shlex.join([*CLI, 'run', *tail, '--', *python(code)])} {closed}>&-"
    result = subprocess.run(["sh", "-c", line], cwd=repo, capture_output=True, timeout=60)
    assert result.returncode == 42
    assert only_run(repo)["metadata"]["exit_code"] == 42


@TAILS
def test_a_reader_that_leaves_ends_the_command_as_usual(repo: Path, tail: list[str]) -> None:
    line = f"{{ {shlex.join([*CLI, 'run', *tail, '--', 'yes'])}; echo $? >&2; }} | head -n 1"
    result = subprocess.run(["bash", "-c", line], cwd=repo, capture_output=True, timeout=60)
    assert result.stdout == b"y\n"
    assert result.stderr == b"141\n"
    assert only_run(repo)["metadata"]["signal"] == "SIGPIPE"


@TAILS
def test_ignored_signals_stay_ignored_and_others_are_as_by_default(repo: Path, tail: list[str]) -> None:
    code = "import re; print(re.search(r'SigIgn:\\s*(\\w+)', open('/proc/self/status').read())[1])"
    # The outer shell ignores SIGHUP, as nohup does. Python in the command itself ignores SIGPIPE and SIGXFSZ.
    line = f"trap '' HUP; exec {shlex.join([*CLI, 'run', *tail, '--', *python(code)])}"
    bare = f"trap '' HUP; exec {shlex.join(python(code))}"
    ours = subprocess.run(["sh", "-c", line], cwd=repo, capture_output=True, timeout=60)
    theirs = subprocess.run(["sh", "-c", bare], cwd=repo, capture_output=True, timeout=60)
    # 32 and 33 belong to the C library, which sets them as it likes when it starts a process.
    ours_ignored, theirs_ignored = (int(result.stdout, 16) & ~(3 << 31) for result in (ours, theirs))
    assert ours_ignored == theirs_ignored
    assert ours_ignored & 1


@TAILS
def test_a_process_left_in_the_background_is_not_waited_for_and_its_output_still_arrives(
    repo: Path, tail: list[str]
) -> None:
    flag = repo.parent / "flag"
    left = f"while ! [ -e {flag} ]; do sleep 0.05; done; echo late; sleep 0.1; echo later"
    command = [*CLI, "run", *tail, "--", "sh", "-c", f"echo early; ({left}) & exit 4"]
    with subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE) as process:
        assert process.wait(30) == 4
        flag.touch()
        assert process.stdout is not None
        assert process.stdout.read() == b"early\nlate\nlater\n"
    assert only_run(repo)["metadata"].get("tail", ["early"]) == ["early"]


def test_a_command_that_cannot_be_recorded_runs_all_the_same(tmp_path: Path, repo: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = scp(elsewhere, "run", "--", "sh", "-c", "echo hello; exit 5")
    assert (result.returncode, result.stdout) == (5, b"hello\n")
    assert result.stderr.startswith(b"scp-git: the run was not recorded: ")
    assert result.stderr.count(b"\n") == 1
    missing = scp(elsewhere, "-C", str(tmp_path / "missing"), "run", "--", "true")
    assert missing.returncode == 0 and missing.stderr.count(b"\n") == 1


def test_nothing_of_ours_is_looked_at_before_the_command_ended(tmp_path: Path, repo: Path) -> None:
    """The command itself makes the repository that it is recorded in."""
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    code = (
        "import pygit2; r = pygit2.init_repository('.'); r.config['user.name'] = r.config['user.email'] = 'x'"
    )
    result = scp(fresh, "run", "--", *python(code))
    assert (result.returncode, result.stderr) == (0, b"")
    assert only_run(fresh)["status"] == "ok"


def test_a_folder_that_vanished_is_no_hindrance(tmp_path: Path, repo: Path) -> None:
    gone = tmp_path / "gone"
    line = f"mkdir {gone}; cd {gone}; rmdir {gone}; exec {shlex.join([*CLI, '-C', str(repo), 'run', 'true'])}"
    result = subprocess.run(["sh", "-c", line], capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert only_run(repo)["metadata"]["cwd"] == str(gone)


# ---------------------------------------------------------------- signals


def wait_for(path: Path, timeout_s: float = 30) -> str:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text()
        time.sleep(0.01)
    raise AssertionError(f"{path} did not appear")


@TAILS
@pytest.mark.parametrize("name", ["TERM", "HUP", "USR1"])
def test_a_signal_sent_to_us_reaches_the_command(repo: Path, tail: list[str], name: str) -> None:
    ready = repo.parent / "ready"
    script = f"trap 'exit 33' {name}; echo > {ready}; while :; do sleep 0.05; done"
    with subprocess.Popen([*CLI, "run", *tail, "--", "sh", "-c", script], cwd=repo) as process:
        wait_for(ready)
        process.send_signal(signal.Signals[f"SIG{name}"])
        assert process.wait(30) == 33
    assert only_run(repo)["metadata"]["exit_code"] == 33


def test_a_command_ended_by_a_forwarded_signal_is_128_and_recorded(repo: Path) -> None:
    ready = repo.parent / "ready"
    script = f"echo > {ready}; exec sleep 60"
    with subprocess.Popen([*CLI, "run", "--", "sh", "-c", script], cwd=repo) as process:
        wait_for(ready)
        process.terminate()
        assert process.wait(30) == 143
    run = only_run(repo)
    assert (run["status"], run["metadata"]["signal"]) == ("failed", "SIGTERM")


def test_sigint_without_a_terminal_reaches_the_command(repo: Path) -> None:
    """With a terminal the keyboard reaches it directly; here nobody else would tell it."""
    ready = repo.parent / "ready"
    script = f"trap 'exit 44' INT; echo > {ready}; while :; do sleep 0.05; done"
    command = [*CLI, "run", "--", "sh", "-c", script]
    with subprocess.Popen(command, cwd=repo, start_new_session=True) as process:
        wait_for(ready)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 44


# ---------------------------------------------------------------- a real terminal

_JOB_SHELL = """
# The one job of a shell that matters here: run a job in its own group, notice when it stops, continue it.
import fcntl, os, signal, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    os.tcsetpgrp(0, os.getpid())
    if not os.WIFSTOPPED(status):
        os.write(1, b"[exit %d]" % os.waitstatus_to_exitcode(status))
        sys.exit(0)
    os.write(1, b"[stopped]")
    os.read(0, 100)
    os.tcsetpgrp(0, job)
    os.killpg(job, signal.SIGCONT)
"""


class Terminal:
    """A person at a terminal, whose shell runs one command."""

    def __init__(self, command: list[str], cwd: Path, size: tuple[int, int] = (24, 80)) -> None:
        self.keyboard, slave = os.openpty()
        termios.tcsetwinsize(self.keyboard, size)
        self.process = subprocess.Popen(
            [PYTHON, "-c", _JOB_SHELL, *command], cwd=cwd, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self.seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self.keyboard, keys)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, text: bytes, timeout_s: float = 30) -> bytes:
        """Read on until ``text`` shows; returns all seen so far."""
        end = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.keyboard, selectors.EVENT_READ)
            while text not in self.seen:
                assert selector.select(max(0, end - time.monotonic())), self.seen
                self.seen += os.read(self.keyboard, 4096)
        return self.seen

    def exit_code(self) -> int:
        self.until(b"[exit ")
        self.until(b"]")
        return int(self.seen.rpartition(b"[exit ")[2].partition(b"]")[0])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.keyboard)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def at_terminal(terminals: list[Terminal], repo: Path, tail: list[str], *command: str) -> Terminal:
    terminals.append(Terminal([*CLI, "run", *tail, "--", *command], repo))
    return terminals[-1]


@TAILS
def test_the_command_sees_the_terminal(repo: Path, terminals: list[Terminal], tail: list[str]) -> None:
    code = (
        "import os; print([os.isatty(n) for n in range(3)], *os.get_terminal_size(1)); "
        "tty = os.open('/dev/tty', os.O_RDWR); print('leads', os.tcgetpgrp(tty) == os.getpgrp())"
    )
    terminal = at_terminal(terminals, repo, tail, *python(code))
    assert terminal.exit_code() == 0
    assert terminal.seen.startswith(b"[True, True, True] 80 24\r\nleads True\r\n")


@TAILS
def test_only_the_streams_that_are_terminals_look_like_one(
    repo: Path, terminals: list[Terminal], tail: list[str]
) -> None:
    code = "import os; os.write(2, repr([os.isatty(n) for n in range(3)]).encode()); os.write(1, b'a\\nb')"
    line = shlex.join([*CLI, "run", *tail, "--", *python(code)])
    terminals.append(Terminal(["sh", "-c", f"{line} > ../out"], repo))
    assert terminals[0].exit_code() == 0
    assert terminals[0].seen.startswith(b"[True, False, True]")
    assert (repo.parent / "out").read_bytes() == b"a\nb"


@TAILS
def test_ctrl_c_gives_130_and_a_failed_run(repo: Path, terminals: list[Terminal], tail: list[str]) -> None:
    terminal = at_terminal(terminals, repo, tail, "sh", "-c", "echo ready; exec sleep 60")
    terminal.until(b"ready")
    terminal.type(b"\x03")
    assert terminal.exit_code() == 130
    run = only_run(repo)
    assert (run["status"], run["metadata"]["signal"]) == ("failed", "SIGINT")
    assert b"Traceback" not in terminal.seen


@TAILS
def test_ctrl_c_is_told_to_the_command_once(repo: Path, terminals: list[Terminal], tail: list[str]) -> None:
    code = (
        "import signal, sys, time\nhits = []\nsignal.signal(signal.SIGINT, lambda *a: hits.append(1))\n"
        "print('ready', flush=True)\nwhile len(hits) < 20: time.sleep(0.01)\n"
        "time.sleep(0.3)\nprint('hits', len(hits))\nsys.exit(6)"
    )
    terminal = at_terminal(terminals, repo, tail, *python(code))
    terminal.until(b"ready")
    # Two that come together count as one, so one attempt would show little.
    for _ in range(20):
        terminal.type(b"\x03")
        time.sleep(0.05)
    assert terminal.exit_code() == 6
    assert b"hits 20\r\n" in terminal.seen


@TAILS
def test_ctrl_backslash(repo: Path, terminals: list[Terminal], tail: list[str]) -> None:
    terminal = at_terminal(terminals, repo, tail, "sh", "-c", "ulimit -c 0; echo ready; exec sleep 60")
    terminal.until(b"ready")
    terminal.type(b"\x1c")
    assert terminal.exit_code() == 131


@TAILS
def test_ctrl_z_stops_and_the_shell_can_go_on(repo: Path, terminals: list[Terminal], tail: list[str]) -> None:
    terminal = at_terminal(terminals, repo, tail, "sh", "-c", "echo ready; read line; echo got $line; exit 3")
    terminal.until(b"ready")
    for _ in range(3):
        terminal.seen = b""
        terminal.type(b"\x1a")
        terminal.until(b"[stopped]")
        terminal.type(b"fg\n")
        time.sleep(0.1)
    terminal.type(b"word\n")
    terminal.until(b"got word")
    assert terminal.exit_code() == 3


@TAILS
def test_a_command_that_ignores_ctrl_z_goes_on(
    repo: Path, terminals: list[Terminal], tail: list[str]
) -> None:
    terminal = at_terminal(terminals, repo, tail, "sh", "-c", "trap '' TSTP; echo ready; read line; exit 3")
    terminal.until(b"ready")
    terminal.type(b"\x1a")
    time.sleep(0.1)
    terminal.type(b"word\n")
    assert terminal.exit_code() == 3
    assert b"[stopped]" not in terminal.seen


@TAILS
def test_a_new_window_size_reaches_the_command(
    repo: Path, terminals: list[Terminal], tail: list[str]
) -> None:
    """Told by SIGWINCH, also to a grandchild; at the latest call the size is right."""
    code = (
        "import os, signal, time\nsizes = []\n"
        "signal.signal(signal.SIGWINCH, lambda *a: sizes.append(os.get_terminal_size(1)))\n"
        "print('ready', flush=True)\nend = time.time() + 20\n"
        "while (100, 40) not in sizes and time.time() < end: time.sleep(0.01)\n"
        "print('size', *sizes[-1])"
    )
    terminal = at_terminal(terminals, repo, tail, "sh", "-c", f"{shlex.join(python(code))}; exit 0")
    terminal.until(b"ready")
    terminal.resize(40, 100)
    terminal.until(b"size 100 40")
    assert terminal.exit_code() == 0


@TAILS
def test_modes_set_through_stdout_hold_for_the_keyboard(
    repo: Path, terminals: list[Terminal], tail: list[str]
) -> None:
    """As curses does: without echo, keys one by one; and back at the end."""
    code = (
        "import os, termios, tty\nold = termios.tcgetattr(1)\ntty.setcbreak(1)\n"
        "os.write(1, b'ready')\nkey = os.read(0, 1)\n"
        "termios.tcsetattr(1, termios.TCSANOW, old)\nos.write(1, b'<' + key + b'>')"
    )
    terminal = at_terminal(terminals, repo, tail, *python(code))
    terminal.until(b"ready")
    time.sleep(0.05)
    terminal.type(b"x")
    assert terminal.exit_code() == 0
    assert terminal.seen.startswith(b"ready<x>")
    assert termios.tcgetattr(terminal.keyboard)[3] & termios.ECHO


@TAILS
def test_output_to_a_terminal_arrives_byte_for_byte(
    repo: Path, terminals: list[Terminal], tail: list[str]
) -> None:
    """But for "\\n", which a terminal makes "\\r\\n": once."""
    code = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 2000 + b'END')"
    terminal = at_terminal(terminals, repo, tail, *python(code))
    assert terminal.exit_code() == 0
    assert terminal.seen.partition(b"END")[0] == bytes(range(256)).replace(b"\n", b"\r\n") * 2000


# ---------------------------------------------------------------- the tail


def tail_of(output: bytes, count: int = 5, secrets: Secrets | None = None, chunk: int = 7) -> list[str]:
    tail = Tail(count, secrets or Secrets())
    assembler = Assembler(tail)
    for at in range(0, len(output), chunk):
        assembler.feed(output[at : at + chunk])
    assembler.close()
    return tail.lines()


def test_the_tail_is_stored_only_when_asked_for(repo: Path) -> None:
    scp(repo, "run", "--", "echo", "word")
    assert "tail" not in only_run(repo)["metadata"]


def test_the_last_lines_of_both_streams_are_stored(repo: Path) -> None:
    script = "seq 100; sleep 0.2; echo problem >&2; sleep 0.2; printf end"
    scp(repo, "run", "--tail", "4", "--", "sh", "-c", script)
    assert only_run(repo)["metadata"]["tail"] == ["99", "100", "problem", "end"]


def test_the_tail_of_a_terminal_has_no_carriage_returns(repo: Path, terminals: list[Terminal]) -> None:
    terminal = at_terminal(
        terminals, repo, ["--tail", "3"], "sh", "-c", "echo one; printf '10%%\\r20%%\\r'; echo"
    )
    assert terminal.exit_code() == 0
    assert only_run(repo)["metadata"]["tail"] == ["one", "20%"]


@pytest.mark.parametrize("chunk", [1, 3, 10, 10_000])
def test_lines_are_the_same_however_they_arrive(chunk: int) -> None:
    output = b"".join(b"line %d\n" % n for n in range(100)) + b"\n\nprogress 1\rprogress 2\r\nlast"
    assert tail_of(output, 5, chunk=chunk) == ["line 99", "", "", "progress 2", "last"]


def test_long_lines_and_long_tails_are_cut() -> None:
    (line,) = tail_of(b"x" * 10_000_000, chunk=65_536)
    assert len(line.encode()) <= LINE_BYTES and line.startswith("xxx") and line.endswith("…")
    (wide,) = tail_of("é".encode() * 10_000)
    assert LINE_BYTES - 8 < len(wide.encode()) <= LINE_BYTES
    many = tail_of(b"".join(b"%06d " % n + b"y" * 2000 + b"\n" for n in range(1000)), 1000, chunk=65_536)
    assert sum(len(line) for line in many) <= TOTAL_BYTES
    assert many[-1].startswith("000999") and len(many) > 100


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert tail_of(b"a\xff\xfeb\n") == ["a\ufffd\ufffdb"]


def test_a_flood_of_lines_costs_little() -> None:
    flood = b"y\n" * 32_768
    tail = Tail(10, Secrets())
    assembler = Assembler(tail)
    start = time.process_time()
    for _ in range(200):
        assembler.feed(flood)
    assert time.process_time() - start < 2
    assert tail.lines() == ["y"] * 10


@pytest.mark.parametrize("before", [0, LINE_BYTES - 10, LINE_BYTES, 2 * LINE_BYTES - 10, 2 * LINE_BYTES])
def test_a_secret_that_is_cut_leaves_no_piece(before: int) -> None:
    secrets = Secrets(["topsecretvalue" * 3])
    (line,) = tail_of(b"-" * before + b"topsecretvalue" * 3 + b"z" * 9000, secrets=secrets, chunk=1000)
    assert "topsecret" not in line
    for shift in range(45):
        # Masking shortens the line, so that a piece at the cut would move into the part that is kept.
        (line,) = tail_of(b"-" * shift + b"topsecretvalue" * 600, secrets=secrets, chunk=1000)
        assert line == "-" * shift + MASK * line.count(MASK) + "…"


# ---------------------------------------------------------------- masking


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("tool --password hunter2 --verbose", "tool --password *** --verbose"),
        ("tool --password=hunter2", "tool --password=***"),
        ("tool --db-password=hunter2", "tool --db-password=***"),
        ("tool --api-key hunter2", "tool --api-key ***"),
        ("tool --apiKey hunter2", "tool --apiKey ***"),
        ("tool --token hunter2 --secret s2cret9", "tool --token *** --secret ***"),
        ("tool --token --password hunter2", "tool --token --password ***"),
        ("tool -token hunter2", "tool -token ***"),
        ("tool --key k", "tool --key ***"),
        ("tool -p hunter2", "tool -p hunter2"),
        ("tool --no-password file", "tool --no-password file"),
        ("tool --keyboard us --monkeypatch x", "tool --keyboard us --monkeypatch x"),
        ("tool --tokenizer gpt --keep-going", "tool --tokenizer gpt --keep-going"),
        ("env PGPASSWORD=hunter2 psql", "env PGPASSWORD=*** psql"),
        ("env AWS_SECRET_ACCESS_KEY=hunter2 x", "env AWS_SECRET_ACCESS_KEY=*** x"),
        ("env PWD=/home KEYMAP=de x", "env PWD=/home KEYMAP=de x"),
        ("docker run -e DB_PASS=hunter2 img", "docker run -e DB_PASS=*** img"),
        ("docker run --env=API_KEY=hunter2 img", "docker run --env=API_KEY=*** img"),
        ("docker run -eTOKEN=hunter2 img", "docker run -eTOKEN=*** img"),
        ("java -Dspring.password=hunter2 x", "java -Dspring.password=*** x"),
        ("terraform apply -var db_password=hunter2", "terraform apply -var db_password=***"),
        ("helm --set a=1,db.password=hunter2", "helm --set a=1,db.password=***"),
        ("http host password:=hunter2 X-Api-Token:abcd1", "http host password:=*** X-Api-Token:***"),
        ("curl -H 'Authorization: Bearer abc.def'", "curl -H 'Authorization: Bearer ***'"),
        ("curl '-HAuthorization: Basic YWxpY2U='", "curl '-HAuthorization: Basic ***'"),
        ("curl --header='PRIVATE-TOKEN: abcd1'", "curl --header='PRIVATE-TOKEN: ***'"),
        ("curl -H 'Accept: text/plain'", "curl -H 'Accept: text/plain'"),
        ("git clone https://bob:hunter2@host/x.git", "git clone https://***@host/x.git"),
        ("git clone https://ghp_abcdef@host/x", "git clone https://***@host/x"),
        ("psql postgres://bob:a/b@host:5432/db", "psql postgres://***@host:5432/db"),
        ("get https://host:8080/pkg@1.2 https://esm.sh/react@18", "get https://host:8080/pkg@1.2 https://esm.sh/react@18"),
        ("get 'https://host/?token=hunter2&x=1'", "get 'https://host/?token=***'"),
        ("""curl -d '{"a": 1, "password": "hunter2"}'""", """curl -d '{"a": 1, "password": ***}'"""),
        ("sh -c 'TOKEN=hunter2 deploy --fast'", "sh -c TOKEN=***"),
        ("sh -c 'mysql --password hunter2 -e \"select 1\"'", "sh -c 'mysql --password *** -e \"select 1\"'"),
        ("sh -c \"export A_KEY='a b'; make\"", "sh -c 'export A_KEY=*** make'"),
        ("tool --password hunter2 log-hunter2.txt", "tool --password *** 'log-***.txt'"),
        ("tool --password '' next", "tool --password *** next"),
        ("tool --password -- next", "tool --password -- next"),
        ("git commit -m 'Rotate the token now'", "git commit -m 'Rotate the token now'"),
    ],
)  # fmt: skip
def test_masked_command_lines(argv: str, expected: str) -> None:
    masked, _ = mask_argv(shlex.split(argv))
    assert masked == shlex.split(expected)


def test_output_is_masked_where_it_repeats_a_value_or_shows_user_info() -> None:
    _, secrets = mask_argv(["tool", "--password", "hun ter/2", "https://bob:p%40ss@host"])
    assert mask_output("a hun ter/2 b hun%20ter%2F2 c p@ss d p%40ss", secrets) == "a *** b *** c *** d ***"
    assert mask_output("origin https://x:y@host/z", secrets) == "origin https://***@host/z"
    assert mask_output("> Authorization: Bearer abc", secrets) == "> Authorization: Bearer ***"
    assert mask_output("nothing to hide", secrets) == "nothing to hide"


def test_short_values_do_not_blot_out_the_output() -> None:
    masked, secrets = mask_argv(["sort", "--key", "2", "file2"])
    assert masked == ["sort", "--key", "***", "file2"]
    assert mask_output("2 files", secrets) == "2 files"


def test_hostile_text_is_masked_in_linear_time() -> None:
    start = time.process_time()
    for unit in ("a", "a://b:c", "token=", "token ", '"', "--key\\", "://@", "authorization:", "a.-"):
        text = unit * (40_000 // len(unit))
        mask_argv(["tool", text, f"x {text}", "--password", text])
        mask_output(text, Secrets(["aaaaab", "token"]))
    assert time.process_time() - start < 10


letters = st.characters(blacklist_categories=["Cs"], blacklist_characters="\0*")
plain = st.text(st.sampled_from("abcXYZ019._~%+,-=$é"), max_size=20)
secret_texts = st.text(letters, max_size=60).map(lambda text: "Zq78" + text + "x")
script_secrets = plain.map(lambda text: "Zq78" + text + "x")
names = st.sampled_from(["password", "db-password", "x-token", "api-key", "SECRET", "key", "AWS_SECRET_KEY"])


@st.composite
def planted(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A secret, and arguments of a command line that hand it over."""
    name = draw(names)
    if draw(st.booleans()):
        secret = draw(secret_texts)
        forms = [
            [f"--{name}", secret],
            [f"--{name}={secret}"],
            [f"{name}={secret}"],
            ["-e", f"{name}={secret}"],
            [f"--env={name}={secret}"],
            ["-H", f"Authorization: Bearer {secret}"],
            [f"https://user:{quote(secret, safe='')}@host/path"],
            [f"https://{quote(secret, safe='')}@host/path"],
            ["-d", json.dumps({"user": "bob", name: secret, "x": 1})],
        ]
    else:
        secret = draw(script_secrets)
        forms = [
            ["sh", "-c", f"run --{name} {secret} now"],
            ["sh", "-c", f"run --{name}='{secret}' now"],
            ["sh", "-c", f'{name}="{secret}" run'],
            ["sh", "-c", f'curl -H "Authorization: token {secret}" https://host'],
            ["sh", "-c", f"git clone https://me:{secret}@host/x"],
        ]
    return secret, draw(st.sampled_from(forms))


@settings(max_examples=300, deadline=None)
@given(
    planted=planted(),
    before=st.lists(plain, max_size=3),
    after=st.lists(plain, max_size=3),
    repeated=st.booleans(),
    noise=st.text(letters, max_size=30),
    padding=st.sampled_from([0, 1, LINE_BYTES - 30, LINE_BYTES - 1, 2 * LINE_BYTES - 5]),
    chunk=st.integers(1, 5000),
)
def test_a_planted_secret_never_appears_in_what_is_stored(
    planted: tuple[str, list[str]],
    before: list[str],
    after: list[str],
    repeated: bool,
    noise: str,
    padding: int,
    chunk: int,
) -> None:
    from datetime import UTC, datetime

    from scp_git.cli.child import Outcome
    from scp_git.cli.recorded import Labels, _as_run, _metadata, _Record

    secret, args = planted
    argv = ["tool", *before, *args, *([f"<{secret}>"] if repeated else []), *after]
    masked, secrets = mask_argv(argv)
    tail = Tail(100, secrets)
    assembler = Assembler(tail)
    output = f"{noise}{'.' * padding}{secret}{noise}\n{secret}\n{secret}".encode()
    for at in range(0, len(output), chunk):
        assembler.feed(output[at : at + chunk])
    assembler.close()
    record = _Record(
        Labels("command", "", "", f"with {secret} said" if repeated else ""), masked, secrets, tail
    )
    outcome = Outcome(1, datetime.now(UTC), 1)
    run = _as_run(record, outcome, _metadata(record, outcome, f"/srv/{secret}/x"))
    texts = list(all_texts(run.model_dump()))
    assert not [text for text in texts if secret in text]
    assert secret not in "\n".join(tail.lines())


def all_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from all_texts([key, item])
    elif isinstance(value, list):
        for item in value:
            yield from all_texts(item)


def test_no_object_in_the_repository_holds_a_secret(repo: Path) -> None:
    """Ends where it matters: in the bytes of every git object and file."""
    script = 'echo "using $1 and $TOKEN"; echo "fetch https://bob:Zq7inurl@host" >&2'
    command = [
        "sh",
        "-c",
        script,
        "sh",
        "--password=Zq7inoption",
        "TOKEN=Zq7inname",
        "https://a:Zq7inuser@host",
    ]
    result = scp(repo, "run", "--tail", "9", "--", *command, env={**os.environ, "TOKEN": "Zq7inname"})
    assert b"Zq7inname" in result.stdout
    tail = only_run(repo)["metadata"]["tail"]
    assert (
        tail[0] == f"using --password={MASK} and {MASK}" or tail[1] == f"using --password={MASK} and {MASK}"
    )
    repository = pygit2.Repository(repo)
    for oid in repository.odb:
        assert b"Zq7" not in repository.odb.read(oid)[1]
    files = [path for path in repo.rglob("*") if path.is_file()]
    assert not [path for path in files if b"Zq7" in path.read_bytes()]


# ---------------------------------------------------------------- which repository


def test_the_root_is_found_from_below(repo: Path, tmp_path: Path) -> None:
    below = repo / "a" / "b"
    below.mkdir(parents=True)
    bare = tmp_path / "bare.git"
    pygit2.init_repository(bare, bare=True)
    assert find_root(None, str(below)) == str(repo)
    assert find_root("b", str(repo / "a")) == str(repo)
    assert find_root(None, str(repo / ".git" / "refs")) == str(repo)
    assert find_root("refs", str(bare)) == str(bare)
    assert find_root(None, str(tmp_path)) == str(tmp_path)
    assert find_root("missing", str(repo)) == str(repo / "missing")
    assert within(str(below), str(repo)) == "a/b"
    assert within(str(tmp_path), str(repo)) == str(tmp_path)


def test_dash_c_names_the_repository_and_leaves_the_command_where_it_is(repo: Path, tmp_path: Path) -> None:
    (repo / "sub").mkdir()
    result = scp(tmp_path, "-C", "repo/sub", "run", "--", "pwd")
    assert result.stdout == f"{tmp_path}\n".encode()
    assert only_run(repo)["metadata"]["cwd"] == str(tmp_path)
