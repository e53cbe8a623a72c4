"""What the command line shows: stored text cannot act on a terminal, and output may go anywhere."""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
import sys
import termios
import time
import unicodedata
from pathlib import Path
from typing import Any

import pygit2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scp_git import Run, RunEvent, Store, __version__
from scp_git.cli.terminal import neutralise

PROJECT = Path(__file__).resolve().parents[1]
CLI = [sys.executable, "-m", "scp_git.cli"]
HOSTILE = [
    "\x1b]0;title\x07",
    "\x1b[2J",
    "\x9b31m",
    "\x1b]52;c;aGk=\x07",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\",
    "over\rwritten",
    "back\b\b\b\bspace",
    "\u202etxt.exe",
    "\u2066isolated\u2069",
    "zero\u200bwidth\ufeff",
    "two\nlines",
    "two\u2028lines\u2029more\x85",
    "a\ttab",
    "tag\U000e0041",
    "del\x7f",
    "nul\0",
]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def hostile(repo: Path) -> Path:
    """A repository with a run for each hostile text, in every field that is shown, and one for all."""
    texts = {f"run-{number:02d}": text for number, text in enumerate(HOSTILE)} | {"all": " ".join(HOSTILE)}
    with Store.open(repo) as store:
        for run_id, text in texts.items():
            labels = dict.fromkeys(("type", "subtype", "user", "environment", "summary"), text)
            run = Run(run_id=run_id, metadata={text: text, "tail": [text, "x"]}, **labels)
            store.record_run(run, [RunEvent(type=text, target=text, detail={text: text})])
    return repo


def scp(cwd: Path, *args: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*CLI, *args], cwd=cwd, capture_output=True, timeout=60, **options)


def on_terminal(
    cwd: Path, *args: str, columns: int = 200, env: dict[str, str] | None = None
) -> tuple[int, str]:
    """The exit code, and what a terminal of that width is sent."""
    screen, slave = os.openpty()
    termios.tcsetwinsize(screen, (24, columns))
    process = subprocess.Popen(
        [*CLI, *args], cwd=cwd, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, **(env or {})}
    )
    os.close(slave)
    seen = b""
    end = time.monotonic() + 60
    with selectors.DefaultSelector() as selector:
        selector.register(screen, selectors.EVENT_READ)
        while selector.select(max(0, end - time.monotonic())):
            try:
                data = os.read(screen, 65536)
            except OSError:
                break
            if not data:
                break
            seen += data
    os.close(screen)
    return process.wait(60), seen.decode(errors="replace").replace("\r\n", "\n")


COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def acts(text: str) -> set[str]:
    """The characters of ``text`` that are more than something to see."""
    return {char for char in text if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}


# ---------------------------------------------------------------- neutralise


@pytest.mark.parametrize("text", [*HOSTILE, "lone\ud800"])
def test_hostile_text_is_made_harmless(text: str) -> None:
    shown = neutralise(text)
    assert not acts(shown)
    assert "\\" in shown
    shown.encode()


def test_escapes_can_be_read() -> None:
    assert neutralise("a\x1b\x9b\n\t\r\u202e\U000e0041\ud800z") == r"a\x1b\x9b\n\t\r\u202e\U000e0041\ud800z"
    assert neutralise("one\ntwo\x1b", keep_newlines=True) == "one\ntwo\\x1b"


def test_ordinary_text_stays_as_it_is() -> None:
    for text in ("plain", "C:\\path", "Ünïcödé", "日本語", "🚀", "a\u00a0b", "e\u0301", "[bold]x[/]", ""):
        assert neutralise(text) == text


def test_a_pile_of_marks_is_cut() -> None:
    assert neutralise("a" + "\u0301" * 10_000 + "b") == "a" + "\u0301" * 8 + "b"


@given(st.text(st.characters()))
def test_nothing_shown_acts(text: str) -> None:
    shown = neutralise(text)
    assert not acts(shown)
    assert neutralise(shown) == shown
    assert not acts(neutralise(text, keep_newlines=True)) - {"\n"}


# ---------------------------------------------------------------- tables for people


def test_a_table_of_hostile_text_is_harmless(hostile: Path) -> None:
    code, seen = on_terminal(hostile, "ledger", "list", "-n", "100", columns=400)
    assert code == 0
    plain = COLOURS.sub("", seen)
    assert acts(plain) == {"\n"}
    assert len(plain.splitlines()) == len(HOSTILE) + 2
    assert plain.startswith("id ")


def test_a_shown_run_of_hostile_text_is_harmless(hostile: Path) -> None:
    code, seen = on_terminal(hostile, "ledger", "show", "all", columns=400)
    assert code == 0
    assert acts(COLOURS.sub("", seen)) == {"\n"}
    assert seen.count("\\x1b]0;title") > 5


def test_lines_for_programs_are_harmless_too(hostile: Path) -> None:
    text = scp(hostile, "ledger", "list", "-n", "100").stdout.decode()
    assert acts(text) == {"\n", "\t"}
    assert {line.count("\t") for line in text.splitlines()} == {8}
    assert len(text.splitlines()) == len(HOSTILE) + 1
    shown = scp(hostile, "ledger", "show", "run-00").stdout.decode()
    assert acts(shown) == {"\n", "\t"}


def test_messages_are_one_harmless_line(repo: Path) -> None:
    for args in (["ledger", "show", "\x1b[2J"], ["\x1b[2J\n"], ["-C", "\x1b[2J\nx", "ledger", "list"]):
        result = scp(repo, *args)
        assert result.returncode in (1, 2)
        assert acts(result.stderr.decode()) == {"\n"} and result.stderr.count(b"\n") == 1


def test_brackets_are_not_markup(repo: Path) -> None:
    with Store.open(repo) as store:
        store.record_run(Run(type="x", summary="[bold red]x[/] :rocket: https://host"))
    _, seen = on_terminal(repo, "ledger", "list")
    assert "[bold red]x[/] :rocket: https://host" in seen


def test_colours_and_no_color(repo: Path) -> None:
    with Store.open(repo) as store:
        store.record_run(Run(type="x", status="failed"))
    assert "\x1b[31mfailed" in on_terminal(repo, "ledger", "list")[1]
    _, seen = on_terminal(repo, "ledger", "list", env={"NO_COLOR": "1"})
    assert "failed" in seen and not re.search(r"\x1b\[[0-9;]*3[0-9]", seen)
    assert "\x1b" not in on_terminal(repo, "ledger", "list", env={"TERM": "dumb"})[1]


@pytest.mark.parametrize("columns", [1, 10, 40, 80])
def test_a_narrow_terminal_gets_no_line_that_is_too_long(hostile: Path, columns: int) -> None:
    with Store.open(hostile) as store:
        store.record_run(Run(type="wide", summary="日本語 🚀 " * 50, user="u" * 300))
    code, seen = on_terminal(hostile, "ledger", "list", "-n", "5", columns=columns)
    assert code == 0
    lines = COLOURS.sub("", seen).splitlines()
    if columns > 20:
        assert len(lines) == 6 and all(len(line) <= columns for line in lines)


def test_at_eighty_columns_id_status_and_summary_can_be_read(repo: Path) -> None:
    run = Run(type="deploy", subtype="k8s", environment="production", summary="a longer summary " * 5)
    with Store.open(repo) as store:
        store.record_run(run)
    narrow = COLOURS.sub("", on_terminal(repo, "ledger", "list", columns=80)[1])
    assert run.run_id in narrow and " ok " in narrow and "a longer summary" in narrow
    wide = COLOURS.sub("", on_terminal(repo, "ledger", "list", columns=160)[1])
    assert re.search(r"deploy +k8s +Ada Tester +production", wide)


def test_columns_that_are_empty_everywhere_are_left_out(repo: Path) -> None:
    with Store.open(repo) as store:
        store.record_run(Run(type="x"))
    header = COLOURS.sub("", on_terminal(repo, "ledger", "list")[1]).splitlines()[0]
    assert "environment" not in header and "subtype" not in header and "user" in header


def test_what_is_shown_of_a_run(repo: Path) -> None:
    metadata = {"command": ["make", "all"], "tail": ["first line", "second line"]}
    with Store.open(repo) as store:
        run = Run(run_id="one", type="x", summary="two\nlines", duration_ms=61_000, metadata=metadata)
        store.record_run(run, [RunEvent(type="step", target="web", detail={"n": 1})])
    seen = COLOURS.sub("", on_terminal(repo, "ledger", "show", "one")[1])
    assert re.search(r"^summary +two\n +lines$", seen, re.MULTILINE)
    assert re.search(r"^metadata.tail +first line\n +second line$", seen, re.MULTILINE)
    assert re.search(r'^1 .* step .* web .* \{"n":1\}', seen, re.MULTILINE)
    assert "environment" not in seen.partition("\n\n")[0]
    assert "1 min 1 s" in on_terminal(repo, "ledger", "list")[1]


# ---------------------------------------------------------------- output may go anywhere


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
)
def test_any_locale_will_do(repo: Path, locale: dict[str, str]) -> None:
    with Store.open(repo) as store:
        store.record_run(Run(run_id="one", type="x", summary="é 日本語 " * 30))
    env = {**os.environ, **locale}
    for args in (["list"], ["show", "one"], ["list", "--json"]):
        result = scp(repo, "ledger", *args, env=env)
        assert (result.returncode, result.stderr) == (0, b"")
    assert on_terminal(repo, "ledger", "list", columns=60, env=locale)[0] == 0
    assert scp(repo, "ledger", "show", "日本", env=env).returncode == 2


@pytest.mark.parametrize(
    "args", [["ledger", "list"], ["ledger", "list", "--json"], ["--help"], ["ledger", "show", "one"]]
)
def test_a_reader_that_leaves_is_no_error(repo: Path, args: list[str]) -> None:
    with Store.open(repo) as store:
        store.record_run(Run(run_id="one", type="x", summary="x" * 500_000))
    read, write = os.pipe()
    os.close(read)
    try:
        result = subprocess.run([*CLI, *args], cwd=repo, stdout=write, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (1 if args == ["--help"] else 0, b"")


def test_a_full_disk_behind_stdout_is_an_error(repo: Path) -> None:
    with Store.open(repo) as store:
        store.record_run(Run(run_id="one", type="x"))
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [*CLI, "ledger", "list"], cwd=repo, stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert result.returncode == 1
    assert result.stderr == b"scp-git: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize("closing", ["0>&-", "1>&-", "2>&-", "0>&- 1>&- 2>&-"])
def test_closed_streams_are_no_error(repo: Path, closing: str) -> None:
    line = f'"$@" {closing}'
    for args in (["ledger", "record", "--type", "x"], ["ledger", "list"], ["run", "--", "true"], ["--help"]):
        result = subprocess.run(
            ["sh", "-c", line, "sh", *CLI, *args], cwd=repo, capture_output=True, timeout=60
        )
        assert result.returncode == 0, result.stderr
    with Store.open(repo) as store:
        assert len(store.list_runs()) == 2
    result = subprocess.run(
        ["sh", "-c", line, "sh", *CLI, "ledger", "show", "none"], cwd=repo, capture_output=True, timeout=60
    )
    assert result.returncode == 3


@pytest.mark.parametrize("closing", ["0>&-", "1>&-", "2>&-", "0>&- 1>&- 2>&-"])
def test_no_file_is_opened_in_the_place_of_a_closed_stream(closing: str) -> None:
    """Else a stray message could be written into a file of the repository."""
    code = "import os\nfrom scp_git.cli import main\nmain(['--version'])\nos._exit(os.open('/dev/null', 0))"
    line = ["sh", "-c", f'"$@" {closing}', "sh", sys.executable, "-c", code]
    assert subprocess.run(line, capture_output=True, timeout=60).returncode >= 3


# ---------------------------------------------------------------- start, help, completion


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], ["completion", "bash"], ["run", "--help"], ["ledger", "list", "--help"]],
)
def test_a_call_that_reads_no_repository_imports_little(args: list[str]) -> None:
    code = (
        "import sys\nfrom scp_git.cli import main\n"
        f"code = main({args!r})\n"
        "heavy = {'pygit2', 'pydantic', 'anyio', 'rich', 'asyncio', 'trio'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_a_list_that_the_index_answers_imports_little(tmp_path: Path) -> None:
    """What takes longest at the start, the imports, is not needed where the index is up to date."""
    root = tmp_path / "repo"
    pygit2.init_repository(root)
    store = Store.open(root)
    run_id = store.record_run(Run(type="x", user="ada"))
    store.list_runs()
    code = (
        "import sys\nfrom scp_git.cli import main\n"
        f"code = main(['-C', {str(root)!r}, 'ledger', 'list', '--user', 'ada', '--since', '2020-01-01'])\n"
        "heavy = {'pygit2', 'pydantic', 'anyio', 'rich', 'asyncio', 'cryptography'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{run_id}\t")


def test_a_command_starts_before_the_library_is_imported(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom scp_git.cli import child, main\n"
        "def spawned(*args):\n"
        "    heavy = {'pygit2', 'pydantic', 'anyio', 'scp_git.store'} & set(sys.modules)\n"
        "    os.write(1, repr(sorted(heavy)).encode())\n"
        "    os._exit(0)\n"
        "child._spawn = spawned\nmain(['run', '--tail', '3', '--', 'true'])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=60)
    assert result.stdout == b"[]"


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_click_or_rich_it_says_what_to_install(tmp_path: Path, missing: str) -> None:
    block = f"import sys; sys.modules['{missing}'] = None"
    code = f"{block}\nfrom scp_git.cli import main\nsys.exit(main(['--help']))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.count(b"\n") == 1 and b'pip install "scp-git[cli]"' in result.stderr


def test_version(tmp_path: Path) -> None:
    assert scp(tmp_path, "--version").stdout.decode() == f"scp-git {__version__}\n"


def test_without_a_command_the_help_is_shown(tmp_path: Path) -> None:
    result = scp(tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(b"Usage: scp-git ")


def test_the_help_and_the_page_name_every_exit_code_and_option() -> None:
    page = (PROJECT / "docs" / "cli.md").read_text()
    overview = scp(PROJECT, "--help").stdout.decode()
    for code in ("0", "1", "2", "3", "5", "130"):
        assert re.search(rf"^ +{code} +\w", overview, re.MULTILINE)
        assert re.search(rf"^\| {code} \|", page, re.MULTILINE)
    commands = [
        ["run"],
        ["search"],
        ["stats"],
        ["completion"],
        *(["ledger", name] for name in ("list", "show", "record", "delete", "prune")),
        *(["trace", name] for name in ("list", "show", "export", "recover", "delete")),
        ["watch"],
    ]
    for command in [[], *commands]:
        text = scp(PROJECT, *command, "--help").stdout.decode()
        for option in set(re.findall(r"--[a-z][a-z-]+", text)) - {"--help"}:
            assert f"`{option}" in page, f"{command} {option} is not in docs/cli.md"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(tmp_path: Path, shell: str) -> None:
    script = scp(tmp_path, "completion", shell).stdout.decode()
    assert "_SCP_GIT_COMPLETE" in script and f"{shell}_complete" in script
    assert scp(tmp_path, "completion", "tcsh").returncode == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [("scp-git l", "ledger"), ("scp-git ledger sh", "show"), ("scp-git ledger list --st", "--status"),
     ("scp-git ledger list --status fa", "failed"), ("scp-git completion z", "zsh")],
)  # fmt: skip
def test_completion_completes(tmp_path: Path, words: str, expected: str) -> None:
    env = {**os.environ, "_SCP_GIT_COMPLETE": "bash_complete", "COMP_WORDS": words}
    result = scp(tmp_path, env={**env, "COMP_CWORD": str(words.count(" "))})
    assert f"plain,{expected}" in result.stdout.decode().splitlines()


@pytest.mark.system("bash")
def test_the_bash_script_works_in_bash(tmp_path: Path) -> None:
    """Source it, complete, and look at what bash would offer."""
    (tmp_path / "scp-git").write_text(f'#!/bin/sh\nexec {sys.executable} -m scp_git.cli "$@"\n')
    (tmp_path / "scp-git").chmod(0o755)
    script = (
        'eval "$(scp-git completion bash)"; COMP_WORDS=(scp-git ledger pr); COMP_CWORD=2; '
        '_scp_git_completion scp-git; echo "${COMPREPLY[@]}"'
    )
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", script], capture_output=True, timeout=60, env=env)
    assert result.stdout == b"prune\n", result.stderr


def test_the_json_of_show_is_one_document(hostile: Path) -> None:
    text = scp(hostile, "ledger", "show", "run-00", "--json").stdout
    assert text.isascii() and not acts(text.decode()) - {"\n"}
    assert json.loads(text)["run"]["summary"] == HOSTILE[0]


def test_the_command_is_called_scp_git_and_nothing_else() -> None:
    project = (PROJECT / "pyproject.toml").read_text()
    scripts = project.partition("[project.scripts]\n")[2].partition("\n\n")[0]
    assert scripts.splitlines() == ['scp-git = "scp_git.cli:main"']
