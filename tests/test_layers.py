"""The layers of DESIGN.md section 3, held by reading every import of every module.

Imports inside functions, under ``TYPE_CHECKING`` and through ``import_module`` count too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "scp_git"

LAYERS = {
    0: ("errors", "ids", "models", "layout", "codec", "soundness", "settings", "patterns", "events"),
    1: ("git",),
    2: ("ledger", "chat", "trace"),
    3: ("sync", "index", "feed"),
    4: ("store", "writer", "ticket"),
    5: ("aio", "api"),
    6: ("cli", "web", "__main__"),
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names}
# The bus stands beside the layers: it knows the records, and git does not know it.
LAYER["broadcast"] = 1
# The names of the package itself are all of layer 5 and below; only the faces take them from there.
LAYER[""] = 5

STRANGERS = ({"ledger", "chat", "trace"}, {"git", "broadcast"}, {"aio", ""}, {"api", ""})
"""Of one layer, yet they must not import one another; ``""`` itself imports them to pass them on."""

CONFINED = {"pygit2": "git", "click": "cli", "rich": "cli"}
"""Third-party packages and the only part of ours that imports them."""

READS_ENVIRONMENT = {
    "cli": "the terminal and its user's choices",
    "web": "how a server is started",
    "chat.keys": "the key for encrypted text",
    "git.credentials": "where users put tokens and keys, and what a credential helper inherits",
}
"""Parts and modules that may read the process environment, each with the reason."""

_ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}
_EVERYTHING = {"Exception", "BaseException"}


def violations(module: str, source: str, known: set[str]) -> list[str]:
    """What ``module`` (``scp_git.git.refs``) does against the rules; ``known`` are all modules' names."""
    tree = ast.parse(source)
    imported = set(_imports(tree, _package_of(module, known)))
    found = _against_layers(module, {_owner(name, known) for name in imported if _is_ours(name)})
    found += _against_confinement(module, {name.split(".")[0] for name in imported})
    if not {_part(module), module.removeprefix("scp_git.")} & READS_ENVIRONMENT.keys():
        found += [f"line {line}: reads the environment" for line in _environment_reads(tree)]
    found += [f"line {line}: swallows every exception" for line in _swallowed(tree)]
    return [f"{module}: {what}" for what in found]


def _against_layers(module: str, imported: set[str]) -> list[str]:
    own = _part(module)
    if own not in LAYER:
        return [f"{own!r} is in no layer: add it to the table"]
    found = []
    for other in sorted({_part(name) for name in imported} - {own}):
        called = other or "the package root"
        if other not in LAYER:
            found.append(f"imports {called}, which is in no layer")
        elif LAYER[other] > LAYER[own]:
            found.append(f"imports {called} of layer {LAYER[other]} from layer {LAYER[own]}")
        elif own and any({own, other} <= group for group in STRANGERS):
            found.append(f"imports {called} sideways")
    return found


def _against_confinement(module: str, imported: set[str]) -> list[str]:
    return [
        f"imports {name}, which belongs to scp_git.{home}"
        for name, home in CONFINED.items()
        if name in imported and _part(module) != home
    ]


def _part(module: str) -> str:
    """``git`` of ``scp_git.git.refs``; the empty string for the package itself."""
    return [*module.split("."), ""][1]


def _is_ours(name: str) -> bool:
    return name.split(".")[0] == "scp_git"


def _owner(name: str, known: set[str]) -> str:
    """The module that an imported name comes from: the longest known beginning, else the name as it is."""
    parts = name.split(".")
    beginnings = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((beginning for beginning in beginnings if beginning in known), name)


def _package_of(module: str, known: set[str]) -> str:
    is_package = any(name.startswith(module + ".") for name in known)
    return module if is_package else module.rpartition(".")[0]


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"} and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value if not name.value.startswith(".") else package + name.value


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _environment_reads(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if (isinstance(node, ast.Attribute) and node.attr in _ENVIRONMENT) or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and any(alias.name in _ENVIRONMENT for alias in node.names)
        ):
            yield node.lineno


def _swallowed(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or _names(node.type) & _EVERYTHING
            silent = all(map(_does_nothing, node.body))
        else:
            broad = isinstance(node, ast.Call) and any(_names(kind) & _EVERYTHING for kind in node.args)
            silent = isinstance(node, ast.Call) and _called(node) == "suppress"
        if broad and silent:
            yield node.lineno


def _names(node: ast.expr) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _does_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass | ast.Continue) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


# ---------------------------------------------------------------- the package


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["scp_git", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_every_module_keeps_to_its_layer() -> None:
    modules = _modules()
    assert {"scp_git.errors", "scp_git.models"} <= modules.keys()
    # A folder that has no __init__.py yet is a package all the same.
    known = modules.keys() | {name.rpartition(".")[0] for name in modules}
    sources = {name: path.read_text("utf-8") for name, path in modules.items()}
    found = [line for name, source in sources.items() for line in violations(name, source, known)]
    assert not found, "\n".join(found)


# ---------------------------------------------------------------- the reader of imports itself

KNOWN = {
    "scp_git", "scp_git.errors", "scp_git.git", "scp_git.git.refs", "scp_git.git.tags", "scp_git.ledger",
    "scp_git.ledger.runs", "scp_git.chat", "scp_git.store", "scp_git.aio", "scp_git.api", "scp_git.broadcast",
    "scp_git.cli", "scp_git.cli.main", "scp_git.models", "scp_git.helpers",
}  # fmt: skip

PLANTED = {
    "upward": ("git.refs", "from scp_git.ledger.runs import x", "imports ledger of layer 2 from layer 1"),
    "upward, as a submodule": ("git.refs", "from scp_git import store", "imports store"),
    "upward, relative": ("git.refs", "from ..store import Store", "imports store"),
    "upward, relative, of a package": ("git", "from .. import store", "imports store"),
    "upward, in a function": ("errors", "def f():\n import scp_git.git.refs", "imports git"),
    "upward, for types": ("errors", "if TYPE_CHECKING:\n from scp_git import git", "imports git"),
    "upward, by name": ("store", "import importlib\nimportlib.import_module('scp_git.aio')", "imports aio"),
    "the root, from below": ("store", "from scp_git import Run", "imports the package root"),
    "the root, from beside": ("aio", "import scp_git", "imports the package root sideways"),
    "sideways": ("ledger.runs", "from scp_git import chat", "imports chat sideways"),
    "the bus, from git": ("git.refs", "from scp_git.broadcast import bus", "imports broadcast sideways"),
    "pygit2": ("ledger.runs", "def f():\n from pygit2.enums import FileMode", "imports pygit2"),
    "click": ("api", "import click", "imports click"),
    "rich": ("store", "from rich.table import Table", "imports rich"),
    "environ": ("git.refs", "import os as o\no.environ['HOME']", "reads the environment"),
    "getenv": ("store", "from os import getenv", "reads the environment"),
    "except Exception": ("store", "try:\n f()\nexcept Exception:\n pass", "swallows"),
    "except, bare": ("store", "try:\n f()\nexcept:\n ...", "swallows"),
    "except, among others": ("store", "try:\n f()\nexcept (OSError, BaseException) as e:\n pass", "swallows"),
    "suppress": ("store", "with contextlib.suppress(Exception):\n f()", "swallows"),
    "a newcomer": ("helpers", "", "is in no layer"),
    "from a newcomer": ("store", "import scp_git.helpers", "which is in no layer"),
}

PERMITTED = {
    "downward": ("store", "from scp_git.git.refs import x\nfrom scp_git import ledger, errors"),
    "beside, in one part": ("git.tags", "import pygit2\nfrom scp_git.git.refs import x\nfrom . import refs"),
    "beside, in one layer": ("api", "from scp_git.aio import AsyncStore"),
    "the bus": ("broadcast", "import anyio\nfrom scp_git import models"),
    "the root passes on": ("", "from scp_git.api import record_run\nfrom scp_git.models import Run"),
    "a face": ("cli.main", "import click, os, scp_git\nfrom scp_git import __version__\nos.environ.get('X')"),
    "a narrow except": ("store", "try:\n f()\nexcept FileNotFoundError:\n pass"),
    "a broad except that acts": ("store", "try:\n f()\nexcept Exception:\n log.exception('x')"),
}


def _name(part: str) -> str:
    return f"scp_git.{part}".rstrip(".")


@pytest.mark.parametrize(("part", "source", "says"), PLANTED.values(), ids=PLANTED)
def test_a_planted_violation_is_found(part: str, source: str, says: str) -> None:
    found = violations(_name(part), source, KNOWN)
    assert len(found) == 1
    assert says in found[0]


@pytest.mark.parametrize(("part", "source"), PERMITTED.values(), ids=PERMITTED)
def test_what_is_permitted_is_not_reported(part: str, source: str) -> None:
    assert violations(_name(part), source, KNOWN) == []
