"""Power loss, simulated: from a trace of system calls, the trees that a cut could leave behind.

Every file knows its data now and as of its last fsync, every folder its names now and as of its last
fsync, with the steps between. A cut keeps of the unsynced part what the ``Loss`` says. Only what lies below
one folder is followed; a call that this model does not know and that changes something there is an error.
"""

from __future__ import annotations

import os
import random
import re
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.faults.tracing import MUTATING, Call

TRACED = (
    *MUTATING,
    *"read pread64 lseek close dup dup2 dup3 fcntl mmap chdir fchdir io_uring_setup".split(),
)
HARMLESS = "chmod fchmod fchmodat fchmodat2 utimensat utimes utime futimesat flock pread64 mmap".split()
Loss = Literal["data", "names", "both", "nothing", "mixed"]
LOSSES: tuple[Loss, ...] = ("data", "names", "both", "nothing")
"""Unsynced data gone; unsynced names gone; both; nothing (a kill). The seeded mix also tears data."""

Change = dict[str, "Node | None"]
Image = dict[str, tuple[int, bytes | None]]
"""relative path -> mode and data; data is None for a folder"""


@dataclass(eq=False)
class Node:
    """A file or a folder."""

    mode: int
    data: bytes = b""
    durable: bytes = b""
    names: dict[str, Node] = field(default_factory=dict)
    durable_names: dict[str, Node] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)
    """What was done to the names since the last fsync, oldest first."""

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def change(self, change: Change) -> None:
        _apply(self.names, change)
        self.pending.append(change)

    def sync(self) -> None:
        self.durable = self.data
        self.durable_names = dict(self.names)
        self.pending.clear()


def _apply(names: dict[str, Node], change: Change) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def load(path: Path) -> Node:
    """A tree as it is on the disk, all of it durable."""
    status = path.lstat()
    assert stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode), f"{path}: neither file nor folder"
    node = Node(status.st_mode)
    if node.is_folder:
        node.names = {entry.name: load(entry) for entry in path.iterdir()}
    else:
        node.data = path.read_bytes()
    node.sync()
    return node


# ---- following the calls


@dataclass
class OpenFile:
    """What descriptors point at; ``node`` is None for what lies elsewhere."""

    node: Node | None
    path: str
    offset: int = 0
    appends: bool = False


_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


class Disk:
    """The tree below ``root`` while the calls of a trace are done to it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.top = load(self.root)
        self.acked: list[str] = []
        """What the process had said to be done."""
        self._cwd = os.getcwd()
        self._files: dict[int, OpenFile] = {}

    def apply(self, call: Call) -> bool:
        """Do one call; True if what a power cut leaves may now differ."""
        if call.result is None or call.result < 0:
            return False
        name = {"open": "openat", "pwrite64": "pwrite"}.get(call.name, call.name)
        name = re.sub(r"^(link|rename|unlink|mkdir)(at2?|2)$", r"\1", name)
        step = getattr(self, f"_{name}", None)
        if step is None:
            return self._unknown(call)
        return bool(step(_Args(call), call.result))

    def _unknown(self, call: Call) -> bool:
        if call.name in HARMLESS:
            shared = call.name == "mmap" and "MAP_SHARED" in call.args and "PROT_WRITE" in call.args
            if not shared or _Args(call).descriptor(4) not in self._files:
                return False
        raise NotImplementedError(f"{call.name}({call.args[:200]})")

    # Each step is named after its call and gets arguments and result.

    def _openat(self, args: _Args, fd: int) -> bool:
        flags, path = args.text, self._path(args, 0)
        folder, name = self._parent(path)
        node = None if folder is None else folder.names.get(name)
        if path == str(self.root):
            node = self.top
        changed = False
        if folder is not None and node is None:
            assert "O_CREAT" in flags, f"opened {path}, which is not there"
            modes = re.findall(r", (0[0-7]{3,})\b", flags) or ["0644"]
            node = Node(stat.S_IFREG | int(modes[-1], 8) & ~0o022)
            folder.change({name: node})
            changed = True
        elif node is not None and "O_TRUNC" in flags and node.data:
            node.data, changed = b"", True
        self._files[fd] = OpenFile(node, path, appends="O_APPEND" in flags)
        return changed

    _creat = _openat

    def _close(self, args: _Args, _: int) -> bool:
        self._files.pop(args.descriptor(0), None)
        return False

    def _dup(self, args: _Args, fd: int) -> bool:
        if args.descriptor(0) in self._files:
            self._files[fd] = self._files[args.descriptor(0)]
        else:
            self._files.pop(fd, None)
        return False

    _dup2 = _dup3 = _dup

    def _fcntl(self, args: _Args, fd: int) -> bool:
        return self._dup(args, fd) if "F_DUPFD" in args.text else False

    def _read(self, args: _Args, size: int) -> bool:
        if file := self._files.get(args.descriptor(0)):
            file.offset += size
        return False

    def _lseek(self, args: _Args, offset: int) -> bool:
        if file := self._files.get(args.descriptor(0)):
            file.offset = offset
        return False

    def _write(self, args: _Args, size: int) -> bool:
        if args.descriptor(0) == 1:
            lines = args.strings[0].decode().splitlines()
            self.acked += [line for line in lines if line.startswith(("ACK ", "DEL ", "SENT "))]
            return False
        file = self._files.get(args.descriptor(0))
        if file is None or file.node is None:
            return False
        file.offset = len(file.node.data) if file.appends else file.offset
        _put(file.node, args.strings[0][:size], file.offset)
        file.offset += size
        return size > 0

    def _pwrite(self, args: _Args, size: int) -> bool:
        node = self._node(args)
        if node is not None:
            _put(node, args.strings[0][:size], int(args.last, 0))
        return node is not None

    def _ftruncate(self, args: _Args, _: int) -> bool:
        node, size = self._node(args), int(args.last, 0)
        if node is None or len(node.data) == size:
            return False
        node.data = node.data[:size].ljust(size, b"\0")
        return True

    def _fsync(self, args: _Args, _: int) -> bool:
        node = self._node(args)
        if node is not None:
            node.sync()
        return node is not None

    _fdatasync = _syncfs = _fsync

    def _mkdir(self, args: _Args, _: int) -> bool:
        folder, name = self._parent(self._path(args, 0))
        if folder is not None:
            folder.change({name: Node(stat.S_IFDIR | 0o755)})
        return folder is not None

    def _link(self, args: _Args, _: int) -> bool:
        old_folder, old = self._parent(self._path(args, 0))
        folder, name = self._parent(self._path(args, 1))
        if folder is not None:
            assert old_folder is not None
            folder.change({name: old_folder.names[old]})
        return folder is not None

    def _rename(self, args: _Args, _: int) -> bool:
        old_folder, old = self._parent(self._path(args, 0))
        folder, name = self._parent(self._path(args, 1))
        if folder is None and old_folder is None:
            return False
        assert folder is not None and old_folder is not None, f"renamed across the border: {args.text}"
        node = old_folder.names[old]
        if folder is old_folder:
            folder.change({old: None, name: node})
        else:
            folder.change({name: node})
            old_folder.change({old: None})
        return True

    def _unlink(self, args: _Args, _: int) -> bool:
        folder, name = self._parent(self._path(args, 0))
        if folder is not None:
            folder.change({name: None})
        return folder is not None

    _rmdir = _unlink

    # Where arguments point.

    def _node(self, args: _Args) -> Node | None:
        file = self._files.get(args.descriptor(0))
        return file.node if file else None

    def _path(self, args: _Args, number: int) -> str:
        """The absolute path of the call's ``number``-th path argument."""
        base = self._cwd
        at = args.folder_of(number)
        if at is not None:
            assert at in self._files, f"a folder that was opened before the trace began: {args.text}"
            base = self._files[at].path
        return os.path.normpath(os.path.join(base, os.fsdecode(args.strings[number])))

    def _parent(self, path: str) -> tuple[Node | None, str]:
        """The folder node that holds ``path``, and its name there; no node for what is outside."""
        if not path.startswith(f"{self.root}/"):
            return None, ""
        *folders, name = path[len(str(self.root)) + 1 :].split("/")
        node = self.top
        for folder in folders:
            node = node.names[folder]
        return node, name


def _put(node: Node, data: bytes, offset: int) -> None:
    node.data = node.data[:offset].ljust(offset, b"\0") + data + node.data[offset + len(data) :]


class _Args:
    """The arguments of one call as ``strace -xx`` prints them."""

    def __init__(self, call: Call) -> None:
        found = _STRING.findall(call.args)
        assert not any(cut for _, cut in found), f"strace cut a string of {call.name}"
        self.strings = [bytes.fromhex(text.replace("\\x", "")) for text, _ in found]
        self.text = _STRING.sub('""', call.args)
        self._parts = self.text.split(", ")

    @property
    def last(self) -> str:
        return self._parts[-1]

    def descriptor(self, number: int) -> int:
        return int(self._parts[number])

    def folder_of(self, number: int) -> int | None:
        """The descriptor that the ``number``-th path is relative to; None for the working folder."""
        at = [i for i, part in enumerate(self._parts) if part == '""'][number]
        before = self._parts[at - 1] if at else "AT_FDCWD"
        return int(before) if before.isdigit() else None


# ---- cutting the power


def image(top: Node, loss: Loss, chance: random.Random) -> Image:
    """The tree that is left after a cut now."""
    kept = _kept_changes(top, chance) if loss == "mixed" else {}
    found: Image = {}

    def visit(node: Node, path: str) -> None:
        if not node.is_folder:
            found[path] = (node.mode, _data(node, loss, chance))
            return
        if path:
            found[path] = (node.mode, None)
        names = node.durable_names if loss in ("names", "both") else node.names
        if id(node) in kept:
            names = dict(node.durable_names)
            for change in node.pending[: kept[id(node)]]:
                _apply(names, change)
        for name, child in names.items():
            visit(child, f"{path}/{name}" if path else name)

    visit(top, "")
    return found


def _data(node: Node, loss: Loss, chance: random.Random) -> bytes:
    if loss in ("data", "both"):
        return node.durable
    if loss == "mixed" and node.data != node.durable:
        torn = node.data[: chance.randrange(len(node.data) + 1)]
        return chance.choice((node.durable, node.data, torn, torn.ljust(len(node.data), b"\0")))
    return node.data


def _kept_changes(top: Node, chance: random.Random) -> dict[int, int]:
    """For each folder, how many of its pending changes came through.

    A file renamed from one folder to another is never lost: where it left the first it is in the second.
    """
    folders = [node for node in walk(top) if node.pending]
    kept = {id(node): chance.randrange(len(node.pending) + 1) for node in folders}
    added = {
        id(child): (id(node), number + 1)
        for node in folders
        for number, change in enumerate(node.pending)
        for child in change.values()
        if child is not None
    }
    for node in folders:
        names = dict(node.durable_names)
        for change in node.pending[: kept[id(node)]]:
            for name in change:
                where, needed = added.get(id(names.get(name)), (0, 0))
                if change[name] is None and where in kept and where != id(node):
                    kept[where] = max(kept[where], needed)
            _apply(names, change)
    return kept


def walk(top: Node) -> Iterator[Node]:
    """Every folder that is reachable now or was when last synced."""
    seen: set[int] = set()
    waiting = [top]
    while waiting:
        node = waiting.pop()
        if node.is_folder and id(node) not in seen:
            seen.add(id(node))
            waiting += [*node.names.values(), *node.durable_names.values()]
            yield node


@dataclass
class State:
    """One tree that a power cut could leave, and the most that had been said by then."""

    image: Image
    acked: list[str]
    after: int
    """How many calls of the trace had been done."""
    loss: Loss


def states(disk: Disk, calls: Iterable[Call], *, seed: int, mixes: int = 1) -> list[State]:
    """All different trees that a cut at any moment of the trace could leave.

    Equal trees are one state, with what was acknowledged at the last of them.
    """
    found: dict[frozenset[tuple[str, tuple[int, bytes | None]]], State] = {}
    losses: list[Loss] = list(LOSSES)
    losses += ["mixed"] * mixes
    chance = random.Random(seed)

    def look(done: int) -> None:
        for loss in losses:
            tree = image(disk.top, loss, chance)
            state = found.setdefault(frozenset(tree.items()), State(tree, [], done, loss))
            state.acked = list(disk.acked)

    look(0)
    for done, call in enumerate(calls, 1):
        said = len(disk.acked)
        if disk.apply(call) or len(disk.acked) != said:
            look(done)
    return list(found.values())


def materialise(tree: Image, root: Path, written_at: float) -> None:
    """Write a tree to the disk, into a folder that is not there yet."""
    root.mkdir()
    for path, (mode, data) in tree.items():
        target = root / path
        if data is None:
            target.mkdir()
        else:
            target.write_bytes(data)
            target.chmod(stat.S_IMODE(mode))
            os.utime(target, (written_at, written_at))
    # Folders last, as what is created inside moves their times.
    for path, (_, data) in tree.items():
        if data is None:
            os.utime(root / path, (written_at, written_at))


def before_boot() -> float:
    """A time before this machine was started: whatever survived a power cut is older than the next boot."""
    with open("/proc/uptime") as file:
        up_s = float(file.read().split()[0])
    return time.time() - up_s - 3600
