"""What mentions stand for: looked up in the present state of the ledger and in the user's own history.

Whether a file exists is what HEAD's commit says, not the working files: so nothing
outside the repository can be asked about, and no symlink is followed. Nothing typed is
used as a revision, a pattern or a path of the file system.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain, islice

from scp_git.chat.mentions import KINDS, Kind, Mention, is_spellable, parse
from scp_git.codec import JsonObject
from scp_git.errors import ScpGitError
from scp_git.git.anchors import find_run, read_record
from scp_git.git.handle import Odb, Repository
from scp_git.git.lookup import (
    HistoryCommit,
    find_branch,
    find_commit,
    head_files,
    list_branches,
    read_commit,
    recent_commits,
)
from scp_git.git.snapshot import Snapshot, snapshot
from scp_git.git.tree import TreeEditor, decode_name, encode_name, is_dir, raw_mode
from scp_git.ids import is_valid_id
from scp_git.layout import ARCHIVED_RUNS, LEDGER_REF, RUN_FILE, RUNS, THREADS, TRACES

log = logging.getLogger(__name__)

MAX_RESOLVED = 200
"""Different mentions of one text that are looked up; further ones count as not existing."""
_MAX_READ = 2000
"""Records, or commits, that completing one prefix reads."""
_MAX_FILES = 50_000
_LEDGER_BRANCHES = ("scp-ledger", "scp-ledger-archive")
_MODES = {b"120000": "symlink", b"160000": "submodule", b"40000": "folder"}


class MentionReader:
    """Resolves and completes mentions in one repository. Thread-safe."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    def resolve(self, text: str) -> list[Mention]:
        """The different mentions of a text in order, each with label, detail and whether it exists."""
        mentions = parse(text)
        if not mentions:
            return []
        with self.repository.odb() as odb:
            look = _Look(self.repository, odb)
            found = [look.up(mention) for mention in mentions[:MAX_RESOLVED]]
        return found + mentions[MAX_RESOLVED:]

    def complete(self, prefix: str, n: int) -> list[Mention]:
        """What ``prefix``, from its ``@`` on, may become: kinds before the colon, then things, newest first.

        Things are found by the beginning of their id or by words of label and detail.
        """
        if not prefix.startswith("@") or n <= 0:
            return []
        kind, colon, typed = prefix[1:].partition(":")
        kinds = [name for name in KINDS if name.startswith(kind.lower())]
        if not colon:
            return [Mention(name, "", label=name, detail=KINDS[name]) for name in kinds][:n]
        if kind.lower() not in kinds:
            return []
        typed = typed.removeprefix('"').removesuffix('"')
        with self.repository.odb() as odb:
            look = _Look(self.repository, odb)
            spellable = (each for each in look.all(kinds[0], typed) if is_spellable(each.id))
            return list(islice(spellable, n))


class _Look:
    """One moment's view of everything that a mention may stand for; each part is read when it is needed."""

    def __init__(self, repository: Repository, odb: Odb) -> None:
        self.repository = repository
        self.odb = odb
        self._state: Snapshot | None = None
        self._files: TreeEditor | None = None
        self._people: dict[str, tuple[str, str]] | None = None

    def up(self, mention: Mention) -> Mention:
        """The mention with what is known of it; what cannot be read does not exist."""
        finders: dict[Kind, Callable[[Mention], Mention]] = {
            "run": self._run,
            "thread": self._thread,
            "trace": self._trace,
            "user": self._user,
            "commit": self._commit,
            "branch": self._branch,
            "file": self._file,
        }
        try:
            return finders[mention.kind](mention)
        except ScpGitError as exc:
            log.warning("a mention of a %s could not be looked up: %s", mention.kind, exc)
            return mention

    def all(self, kind: Kind, typed: str) -> Iterable[Mention]:
        """Everything of one kind that what was ``typed`` may become, the newest first."""
        if kind == "file":
            return self._all_files(typed)
        if kind == "commit":
            return self._all_commits(typed)
        ids = {
            "run": lambda: _newest_runs(self.state),
            "thread": lambda: iter({"general": None, **dict.fromkeys(_newest(self.state.ledger, THREADS))}),
            "trace": lambda: _newest(self.state.ledger, TRACES),
            "user": lambda: iter(self.people),
            "branch": self._newest_branches,
        }[kind]()
        looked_up = (self.up(Mention(kind, id)) for id in islice(ids, _MAX_READ))
        return (each for each in looked_up if each.exists and _matches(each, typed))

    @property
    def state(self) -> Snapshot:
        if self._state is None:
            self._state = snapshot(self.repository, self.odb)
        return self._state

    @property
    def files(self) -> TreeEditor:
        if self._files is None:
            self._files = head_files(self.repository, self.odb)
        return self._files

    @property
    def people(self) -> dict[str, tuple[str, str]]:
        """Name to mail address and day of who committed to HEAD or wrote to the ledger, the newest first."""
        if self._people is None:
            identity = self.repository.identity()
            found = {identity.name: (identity.email, "")}
            tips = (self.repository.head(), self.repository.refs.read(LEDGER_REF))
            commits = [each for tip in tips for each in recent_commits(self.odb, tip, limit=_MAX_READ // 2)]
            for commit in sorted(commits, key=lambda each: -each.committed):
                known = found.get(commit.author)
                if known is None or not known[1]:
                    found[commit.author] = (commit.email, _day(commit.authored))
            found.pop("", None)
            self._people = found
        return self._people

    # ------------------------------------------------------------ one thing

    def _run(self, mention: Mention) -> Mention:
        found = find_run(self.state, mention.id) if is_valid_id(mention.id) else None
        record = read_record(found[0], f"{found[1]}/{RUN_FILE}") if found else None
        if record is None:
            return mention
        what = _text(record, "subtype") or _text(record, "type")
        summary = _text(record, "summary")
        label = f"{what}: {summary}" if summary else what
        return mention.found(
            label, _text(record, "status"), _when(record, "started_at"), _text(record, "user")
        )

    def _thread(self, mention: Mention) -> Mention:
        record = self._record(f"{THREADS}/{mention.id}/thread.json", mention.id)
        if record is None:
            return mention.found("General") if mention.id == "general" else mention
        made = () if mention.id == "general" else (_when(record, "created_at"), _text(record, "created_by"))
        return mention.found(_text(record, "title"), *made)

    def _trace(self, mention: Mention) -> Mention:
        record = self._record(f"{TRACES}/{mention.id}/trace.json", mention.id)
        if record is None:
            return mention
        details = (
            _text(record, "classification"),
            _when(record, "started_at"),
            _text(record, "auto_summary"),
        )
        return mention.found(_text(record, "name"), *details)

    def _record(self, path: str, id: str) -> JsonObject | None:
        return read_record(self.state.ledger, path) if is_valid_id(id) else None

    def _user(self, mention: Mention) -> Mention:
        wanted = mention.id.casefold()
        for name, (email, day) in self.people.items():
            if wanted in (name.casefold(), email.casefold()):
                return mention.found(name, email, day)
        return mention

    def _commit(self, mention: Mention) -> Mention:
        commit = find_commit(self.odb, mention.id)
        return mention if commit is None else _described(mention, commit)

    def _branch(self, mention: Mention) -> Mention:
        tip = find_branch(self.repository, mention.id)
        if tip is None:
            return mention
        commit = read_commit(self.odb, tip)
        about = (commit.subject, _day(commit.committed)) if commit else ()
        return mention.found(mention.id, tip[:10], *about)

    def _file(self, mention: Mention) -> Mention:
        folder, _, leaf = mention.id.removesuffix("/").rpartition("/")
        tree = self.files.folder(folder)
        raw = tree.raw(encode_name(leaf)) if tree else None
        if raw is None or (mention.id.endswith("/") and not is_dir(raw)):
            return mention
        lines = ""
        if mention.lines is not None:
            first, last = mention.lines
            lines = f"line {first}" if first == last else f"lines {first}-{last}"
        return mention.found(mention.id, _MODES.get(raw_mode(raw), "file"), lines)

    # ------------------------------------------------------------ all of a kind

    def _newest_branches(self) -> Iterator[str]:
        tips = islice(list_branches(self.repository).items(), _MAX_READ)
        commits = {name: read_commit(self.odb, tip) for name, tip in tips if name not in _LEDGER_BRANCHES}
        yield from sorted(commits, key=lambda name: (-_committed(commits[name]), name))

    def _all_commits(self, typed: str) -> Iterator[Mention]:
        exact = find_commit(self.odb, typed)
        if exact is not None:
            yield _described(Mention("commit", exact.oid[:10]), exact)
        for commit in recent_commits(self.odb, self.repository.head(), limit=_MAX_READ // 2):
            mention = _described(Mention("commit", commit.oid[:10]), commit)
            if commit != exact and (commit.oid.startswith(typed.lower()) or _matches(mention, typed)):
                yield mention

    def _all_files(self, typed: str) -> Iterator[Mention]:
        """Entries of the folder that was typed, then files anywhere below it whose path holds the rest."""
        folder, _, leaf = typed.rpartition("/")
        tree = self.files.folder(folder)
        if tree is None or typed.startswith("/"):
            return
        above = f"{folder}/" if folder else ""
        for name in sorted(map(decode_name, tree.names())):
            if name.casefold().startswith(leaf.casefold()):
                ending = "/" if is_dir(tree.raw(encode_name(name)) or b"") else ""
                yield self._file(Mention("file", above + name + ending))
        if leaf:
            for path, _ in islice(self.files.files(folder), _MAX_FILES):
                rest = path.removeprefix(above).casefold()
                if leaf.casefold() in rest and not ("/" not in rest and rest.startswith(leaf.casefold())):
                    yield self._file(Mention("file", path))


def _described(mention: Mention, commit: HistoryCommit) -> Mention:
    label = f"{commit.oid[:10]} {commit.subject}"
    return mention.found(label, commit.author, _day(commit.authored))


def _matches(mention: Mention, typed: str) -> bool:
    """Whether the id begins with what was typed, or label and detail hold every word of it."""
    if mention.id.startswith(typed):
        return True
    text = f"{mention.id} {mention.label} {mention.detail}".casefold()
    return all(word in text for word in typed.casefold().split())


def _newest(editor: TreeEditor, folder: str) -> Iterator[str]:
    """The ids in a folder, the newest first: ours begin with their kind and time."""
    yield from sorted(filter(is_valid_id, editor.names(folder)), reverse=True)


def _newest_runs(state: Snapshot) -> Iterator[str]:
    """Ids of runs, the newest first, on the ledger and then in the archive."""
    yield from _newest(state.ledger, RUNS)

    def walk(path: str, depth: int) -> Iterator[str]:
        names = sorted(state.archive.names(path), reverse=True)
        if depth == 0:  # a day, in shards
            shards = (_newest(state.archive, f"{path}/{name}") for name in names)
            yield from sorted(chain.from_iterable(shards), reverse=True)
            return
        for name in sorted(names, key="other".__eq__):  # ids without a date are last
            yield from walk(f"{path}/{name}", 0 if name == "other" else depth - 1)

    yield from walk(ARCHIVED_RUNS, 3)


def _text(record: JsonObject, name: str) -> str:
    value = record.get(name)
    return value if isinstance(value, str) else ""


def _when(record: JsonObject, name: str) -> str:
    """``2026-02-17 20:45`` of a stored time."""
    return _text(record, name)[:16].replace("T", " ")


def _day(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return ""


def _committed(commit: HistoryCommit | None) -> int:
    return commit.committed if commit else 0
