"""Repositories under fault, and the referee: what stock git and the file system say about one of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVENTS_PER_RUN = 3
LEDGER, ARCHIVE, RUN_TAGS = "refs/heads/scp-ledger", "refs/heads/scp-ledger-archive", "refs/tags/scp/run/"
_LOCAL_FILES = re.compile(
    r"gate|intent|tips|deferred|maintenance|packing|index-\w+-\d+-[0-9a-f]{16}\.db(-wal|-shm)?|recordings(/.*)?"
)
_PACK_FILES = re.compile(r"(pack-[0-9a-f]{40}\.(pack|idx|rev|bitmap)|multi-pack-index(-.*)?)")


def git(root: Path, *args: str, stdin: bytes | None = None) -> bytes:
    """What stock git prints; fails the test when git fails."""
    done = subprocess.run(["git", "-C", str(root), *args], input=stdin, capture_output=True)
    assert done.returncode == 0, f"git {' '.join(args)}: {done.stderr.decode('utf-8', 'replace')}"
    return done.stdout


def new_repository(root: Path, *, commit: bool = True) -> Path:
    """A repository with its own identity and, if wished, one commit."""
    root.mkdir(parents=True)
    git(root, "init", "-q", "-b", "main", "--template=")
    for key, value in (("user.name", "Fault Bench"), ("user.email", "bench@example.org"), ("gc.auto", "0")):
        git(root, "config", key, value)
    if commit:
        add_commit(root)
    return root


def add_commit(root: Path) -> None:
    (root / "app.py").write_text("print('hello')\n")
    git(root, "add", "app.py")
    git(root, "commit", "-q", "-m", "work")


@dataclass
class Slot:
    """One place where a prepared repository is put back again and again; paths inside it stay the same."""

    root: Path

    @property
    def _saved(self) -> Path:
        return self.root.with_name(self.root.name + ".saved")

    def save(self) -> None:
        shutil.copytree(self.root, self._saved, symlinks=True)

    def restore(self) -> Path:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self._saved, self.root, symlinks=True)
        return self.root


# ---- what is stored, read with stock git


@dataclass
class Stored:
    """The ledger as stock git shows it."""

    runs: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """run id -> file name -> content, of hot and archived runs"""
    twice: list[str] = field(default_factory=list)
    """Runs that are both hot and archived."""
    tags: dict[str, bytes] = field(default_factory=dict)
    """run id -> tag object"""
    deleted: set[str] = field(default_factory=set)
    """Ids of runs and traces."""
    traces: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """trace id -> file name -> content"""
    general: dict[str, bytes] = field(default_factory=dict)
    """file name -> content, of the thread ``general``"""


def read_stored(root: Path) -> Stored:
    stored = Stored()
    wanted: list[tuple[str, dict[str, bytes], str]] = []
    listing = git(root, "for-each-ref", "--format=%(refname) %(objectname)").decode()
    refs = dict(line.split(" ") for line in listing.splitlines())
    if LEDGER in refs:
        for line in git(root, "ls-tree", "-r", LEDGER, "ledger/runs/").decode().splitlines():
            oid, path = line.split()[2], line.split("\t")[1]
            run_id, name = path.removeprefix("ledger/runs/").split("/", 1)
            wanted.append((oid, stored.runs.setdefault(run_id, {}), name))
        for line in git(root, "ls-tree", "-r", LEDGER, "ledger/traces/").decode().splitlines():
            oid, path = line.split()[2], line.split("\t")[1]
            trace_id, name = path.removeprefix("ledger/traces/").split("/", 1)
            wanted.append((oid, stored.traces.setdefault(trace_id, {}), name))
        lines = git(root, "ls-tree", "-r", LEDGER, "chat/threads/general/").decode().splitlines()
        wanted += [(line.split()[2], stored.general, line.rsplit("/", 1)[1]) for line in lines]
    if ARCHIVE in refs:
        hot = set(stored.runs)
        for line in git(root, "ls-tree", "-r", ARCHIVE, "runs/").decode().splitlines():
            oid, path = line.split()[2], line.split("\t")[1]
            run_id, name = path.split("/")[-2:]
            wanted.append((oid, stored.runs.setdefault(run_id, {}), name))
            stored.twice += [run_id] if run_id in hot else []
        folders = ("deleted/run/", "deleted/trace/")
        paths = git(root, "ls-tree", "-r", "--name-only", ARCHIVE, *folders).decode().splitlines()
        stored.deleted = {path.rsplit("/", 1)[1] for path in paths}
    for ref, oid in refs.items():
        if ref.startswith(RUN_TAGS):
            wanted.append((oid, stored.tags, ref.removeprefix(RUN_TAGS)))
    objects = _cat(root, [oid for oid, _, _ in wanted])
    for (_, place, name), content in zip(wanted, objects, strict=True):
        place[name] = content
    return stored


def _cat(root: Path, oids: list[str]) -> Iterator[bytes]:
    if not oids:
        return
    out = git(root, "cat-file", "--batch", stdin="\n".join(oids).encode() + b"\n")
    at = 0
    for _ in oids:
        end = out.index(b"\n", at)
        header = out[at:end].split(b" ")
        assert len(header) == 3, out[at:end].decode()
        size = int(header[2])
        yield out[end + 1 : end + 1 + size]
        at = end + size + 2


# ---- the referee


def problems(
    root: Path,
    *,
    acked: Collection[str] = (),
    maybe: Collection[str] = (),
    deleted: Collection[str] = (),
    anchored: bool = True,
    listed: dict[str, list[Any]] | None = None,
) -> list[str]:
    """Everything that is wrong with a repository after a call that should have healed it; empty is good.

    Args:
        acked: runs that must be there, each complete.
        maybe: runs that may be there, complete, or not at all.
        deleted: runs that must be gone, with a record that they were deleted.
        anchored: every run must have its tag (there is a commit to point at).
        listed: what the library's reads say, see ``LIST`` in ``worker.py``.
    """
    found = [*leftovers(root), *fsck(root)]
    try:
        found += view_problems(root)
        stored = read_stored(root)
    except AssertionError as exc:
        return [*found, f"stock git cannot read it: {exc}"]
    found += [f"{run_id}: both hot and archived" for run_id in stored.twice]
    for run_id in stored.runs:
        found += run_problems(run_id, stored, anchored=anchored)
    for trace_id in stored.traces:
        found += trace_problems(trace_id, stored)
    there = stored.runs.keys() | stored.traces.keys()
    found += [f"{run_id}: tag without run" for run_id in stored.tags.keys() - stored.runs.keys()]
    found += [f"{id}: acknowledged but lost" for id in set(acked) - there]
    found += [f"{id}: deleted but there" for id in set(deleted) & there]
    found += [f"{id}: no record of the deletion" for id in set(deleted) - stored.deleted]
    found += [f"{id}: nobody recorded it" for id in there - {*acked, *maybe}]
    found += [f"{id}: there and deleted" for id in there & stored.deleted]
    found += [f"{id}: posted, and not there" for id in posted(stored) - {*stored.traces, *stored.deleted}]
    if listed is not None:
        expected = {run_id: [f"summary of {run_id}", EVENTS_PER_RUN] for run_id in stored.runs}
        if listed != expected:
            odd = [run_id for run_id in {*listed, *expected} if listed.get(run_id) != expected.get(run_id)]
            found.append(f"reads differ from the branch: {sorted(odd)}")
    return found


def run_problems(run_id: str, stored: Stored, *, anchored: bool) -> list[str]:
    files = stored.runs[run_id]
    if set(files) != {"run.json", "events.jsonl"}:
        return [f"{run_id}: half a run: {sorted(files)}"]
    try:
        run = json.loads(files["run.json"])
        events = [json.loads(line) for line in files["events.jsonl"].split(b"\n")[:-1]]
    except ValueError as exc:
        return [f"{run_id}: torn: {exc}"]
    anchor = run.pop("anchor", None)
    found = []
    if (run["run_id"], run["summary"]) != (run_id, f"summary of {run_id}"):
        found.append(f"{run_id}: other content: {run}")
    if [event["seq"] for event in events] != list(range(1, EVENTS_PER_RUN + 1)):
        found.append(f"{run_id}: events {events}")
    if anchored and (anchor is None or run_id not in stored.tags):
        found.append(f"{run_id}: no {'anchor' if anchor is None else 'tag'}")
    if anchor is not None and run_id in stored.tags:
        message = json.dumps(run, ensure_ascii=False, separators=(",", ":"))
        header = f"object {anchor['target']}\ntype commit\ntag scp/run/{run_id}\ntagger {anchor['tagger']}\n"
        if stored.tags[run_id] != f"{header}\n{message}\n".encode():
            found.append(f"{run_id}: the tag is not the one of its anchor: {stored.tags[run_id]!r}")
    return found


def trace_problems(trace_id: str, stored: Stored) -> list[str]:
    """A trace is whole, and there together with the message about it."""
    files = stored.traces[trace_id]
    if set(files) != {"trace.json", "events.jsonl", "events-0002.jsonl"}:
        return [f"{trace_id}: half a trace: {sorted(files)}"]
    record = json.loads(files["trace.json"])
    lines = (files["events.jsonl"] + files["events-0002.jsonl"]).split(b"\n")[:-1]
    numbers = [json.loads(line)["seq"] for line in lines]
    if (record["trace_id"], record["event_count"], numbers) != (trace_id, 3, [1, 2, 3]):
        return [f"{trace_id}: other content: {record}, events {numbers}"]
    recovered = record["ended_at"] is None
    return [] if recovered or trace_id in posted(stored) else [f"{trace_id}: saved without its message"]


def posted(stored: Stored) -> set[str]:
    """The traces that messages speak of."""
    data = b"".join(data for name, data in stored.general.items() if name.startswith("messages"))
    texts = [json.loads(line)["text"] for line in data.split(b"\n") if line]
    return {text.partition("@trace:")[2].split("\n")[0] for text in texts if "@trace:" in text}


def leftovers(root: Path) -> list[str]:
    """Files that an interrupted write left behind."""
    base = root / ".git" if (root / ".git").is_dir() else root
    found = []
    for folder, _, names in os.walk(base):
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), base)
            if (
                name.endswith(".lock")
                or name.startswith(("tmp_", ".tmp"))
                or (path.startswith("objects/pack/") and not _PACK_FILES.fullmatch(name))
                or (path.startswith("scp/") and not _LOCAL_FILES.fullmatch(path[4:]))
            ):
                found.append(f"left behind: {path}")
    packs = base / "objects" / "pack"
    halves = {path.stem for path in packs.glob("*.pack")} ^ {path.stem for path in packs.glob("*.idx")}
    return found + [f"pack or index alone: {name}" for name in sorted(halves)]


def fsck(root: Path) -> list[str]:
    done = subprocess.run(
        ["git", "-C", str(root), "fsck", "--strict", "--no-dangling"], capture_output=True, text=True
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("notice: ")]
    return [f"fsck: {line}" for line in said or ([] if done.returncode == 0 else [f"exit {done.returncode}"])]


def view_problems(root: Path) -> list[str]:
    if not (root / ".git").exists():
        return []
    view = root / ".scp-ledger"
    if not (view / ".git").is_file():
        return ["the view is missing"]
    found = [f"view: {line}" for line in _lines(git(view, "status", "--porcelain", "--untracked-files=all"))]
    head = git(view, "symbolic-ref", "HEAD").decode().strip()
    found += [] if head == LEDGER else [f"view: HEAD is {head}"]
    changed = _lines(git(root, "status", "--porcelain", "--untracked-files=all"))
    return found + [f"working tree: {line}" for line in changed if line[3:] != ".gitignore"]


def _lines(output: bytes) -> list[str]:
    return output.decode("utf-8", "replace").splitlines()
