"""Facts about the project's own files, which nothing else would notice going wrong."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pygit2
import pytest
from pygit2.enums import ObjectType

TOP = Path(__file__).resolve().parent.parent
PACKAGE = TOP / "scp_git"
MODULE_LINES = 400

# Written in two pieces, so that this file does not hold what it looks for.
MACHINE_PATH = re.compile(rb"(?<![\w.~)>}\]-])/" + rb"(?:work|tmp/venv)(?![\w-])")


def _project() -> dict[str, dict[str, object]]:
    return tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))


def _tracked_files() -> list[Path]:
    """What git tracks; in an unpacked archive, which has no index, every file."""
    index = TOP / ".git" / "index"
    if index.is_file():
        listed = (TOP / entry.path for entry in pygit2.Index(str(index)))
    else:
        ignored = {".git", *(line.strip("/") for line in (TOP / ".gitignore").read_text().splitlines())}
        listed = (path for path in TOP.rglob("*") if not ignored & set(path.relative_to(TOP).parts))
    return [path for path in listed if path.is_file()]


def _public() -> dict[str, object]:
    import scp_git

    return {name: getattr(scp_git, name) for name in scp_git.__all__}


# ---------------------------------------------------------------- version and pages


def test_the_version_is_said_once_and_the_changelog_agrees() -> None:
    import scp_git

    top_entry = re.search(r"^## \[?([^\s\]]+)", (TOP / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert top_entry is not None
    assert top_entry[1] == scp_git.__version__
    assert "version" not in _project()["project"]
    assert _project()["project"]["dynamic"] == ["version"]


def test_the_readme_names_the_two_commands() -> None:
    readme = (TOP / "README.md").read_text("utf-8")
    assert "make demo" in readme
    assert "make test" in readme


def test_make_alone_prints_every_target() -> None:
    makefile = (TOP / "Makefile").read_text("utf-8")
    targets = re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE)
    assert targets[0] == "help"
    assert {"demo", "test", "test-full", "lint", "type", "bench", "check", "venv", "clean"} <= set(targets)
    undescribed = [name for name in targets if not re.search(rf"^{name}:.*## \w", makefile, re.MULTILINE)]
    assert undescribed == []


def test_no_tracked_file_names_a_place_on_one_machine() -> None:
    files = _tracked_files()
    assert files
    found = [str(path.relative_to(TOP)) for path in files if MACHINE_PATH.search(path.read_bytes())]
    assert found == []


@pytest.mark.parametrize(
    ("text", "found"), [("see {}/main", True), ("'{}'", True), ("{}trees", False), ("a{}", False)]
)
def test_a_place_on_one_machine_is_found(text: str, found: bool) -> None:
    line = text.format("/" + "work").encode()
    assert (MACHINE_PATH.search(line) is not None) == found


# ---------------------------------------------------------------- the package


def test_no_module_is_too_long() -> None:
    lengths = {str(path): len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: lines for name, lines in lengths.items() if lines > MODULE_LINES} == {}


def test_every_public_function_and_class_has_a_docstring() -> None:
    documented = [obj for obj in _public().values() if inspect.isroutine(obj) or inspect.isclass(obj)]
    assert documented
    assert [obj.__name__ for obj in documented if not _own_docstring(obj)] == []


def _own_docstring(obj: object) -> str | None:
    # A class without one would show the docstring of its base.
    return vars(obj).get("__doc__") if inspect.isclass(obj) else obj.__doc__


def test_no_submodule_bears_the_name_of_a_public_object() -> None:
    submodules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert submodules & _public().keys() <= {"chat"}


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert _project()["tool"]["setuptools"]["package-data"] == {"scp_git": ["py.typed"]}


def test_importing_the_package_imports_no_face() -> None:
    code = "import sys, scp_git; print(*sorted({'click', 'rich', 'scp_git.cli'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# ---------------------------------------------------------------- the command


def test_the_only_command_is_scp_git() -> None:
    project = _project()["project"]
    assert project["scripts"] == {"scp-git": "scp_git.cli:main"}
    assert not {"gui-scripts", "entry-points"} & project.keys()
    assert "script-files" not in _project()["tool"]["setuptools"]


def test_nothing_called_scp_or_git_scp_is_installed() -> None:
    distributions = importlib.metadata.distributions(name="scp-git")
    files = [file for distribution in distributions for file in distribution.files or ()]
    assert {file.name for file in files if "bin" in file.parts} <= {"scp-git"}


# ---------------------------------------------------------------- the referee of every other test


def test_stock_git_finds_nothing_in_a_new_repository(
    make_repo: Callable[..., Path], git_complaints: Callable[..., list[str]]
) -> None:
    assert git_complaints(make_repo(commits=3)) == []
    assert git_complaints(make_repo(commits=0)) == []
    assert git_complaints(make_repo(bare=True)) == []


@pytest.mark.referee
@pytest.mark.untidy("everything that the referee looks for is planted here")
def test_the_referee_can_say_no(
    repo: Path, git: Callable[..., str], git_complaints: Callable[..., list[str]]
) -> None:
    git(repo, "worktree", "add", "-q", "-b", "scp-ledger", ".scp-ledger")
    (repo / ".gitignore").write_text(".scp-ledger/\n")
    assert git_complaints(repo) == []

    (repo / ".git" / "refs" / "heads" / "main.lock").touch()
    (repo / ".scp-ledger" / "file.txt").write_text("edited")
    (repo / "stray.txt").touch()
    git(repo, "tag", "scp/run/light")
    git(repo, "tag", "-a", "-m", "two\nlines", "scp/run/prose")
    git(repo, "tag", "-a", "-m", '{"run_id":"x"}', "scp/run/good")
    raw = pygit2.Repository(repo)
    raw.create_reference("refs/heads/bad", raw.odb.write(ObjectType.COMMIT, b"tree 0\n\nno author\n"))
    raw.free()

    complaints = "\n".join(git_complaints(repo))
    for planted in ("fsck: error", "main.lock", "view:  M file.txt", "status: ?? stray", "light", "prose"):
        assert planted in complaints
    assert "good" not in complaints


def test_ada_is_who_git_sees(repo: Path, home: Path) -> None:
    config = pygit2.Repository(repo).config
    assert config["user.email"] == "ada@example.org"
    assert (home / ".gitconfig").is_file()
    assert pygit2.Config.get_global_config()["user.name"] == "Ada Tester"
