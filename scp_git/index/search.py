"""Full-text search over runs, messages, traces and threads: newest first, however many match.

The numbers of the rows rise with the time of their records, so the newest matches are found
without looking at the others. Encrypted messages are not in it, in no form.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from typing import Any, get_args

from scp_git.git.difference import differing_files
from scp_git.git.handle import Repository
from scp_git.git.objects import ObjectStore
from scp_git.git.snapshot import snapshot_at, tree_of
from scp_git.index.database import Answer, Database, Schema, Tips, Unusable
from scp_git.index.grammar import Term, parse_query, split_words, to_fts
from scp_git.index.reading import WholeStore
from scp_git.index.texts import Row, rows_of
from scp_git.layout import ARCHIVE_REF, LEDGER_REF, NOTES_REF, run_tag_ref
from scp_git.models import SearchHit, SearchKind

log = logging.getLogger(__name__)

_VERSION = 1
_REFS = (NOTES_REF, LEDGER_REF, ARCHIVE_REF)
"""In the order in which things move, see ``git/snapshot.py``."""
_SLOT_BITS = 14
_EPOCH = datetime(1, 1, 1, tzinfo=UTC)
_SNIPPET_WORDS = 16
_MATCH = "\1"
_MAX_N = 2**31
_SCHEMA = (
    """CREATE TABLE docs (
        number INTEGER PRIMARY KEY, path TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL,
        time TEXT NOT NULL, title TEXT NOT NULL, body TEXT NOT NULL, user TEXT NOT NULL,
        run_id TEXT, thread_id TEXT, rank INTEGER NOT NULL, noted TEXT, line BLOB
    )""",
    "CREATE INDEX by_path ON docs (path)",
    "CREATE INDEX by_id ON docs (kind, id)",
    "CREATE INDEX by_note ON docs (noted) WHERE kind = 'run'",
)
_WORDS = """CREATE VIRTUAL TABLE words USING fts5 (
    title, body, kind, content='docs', content_rowid='number', tokenize='unicode61 remove_diacritics 2'
)"""
_BETTER = "SELECT 1 FROM docs WHERE kind = ? AND id = ? AND (rank > ? OR rank = ? AND line < ?)"
_TAKEN = "SELECT 1 FROM docs WHERE number = ?"
_MAX_UNANCHORED = 1000
_FIELDS = ("kind", "id", "time", "title", "body", "user", "run_id", "thread_id", "rank", "noted", "line")
_INSERT = f"INSERT INTO docs (number, path, {', '.join(_FIELDS)}) VALUES (?, ?{', ?' * len(_FIELDS)})"


class SearchIndex:
    """Finds records by their words. Thread-safe."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    @cached_property
    def _fts(self) -> bool:
        return _has_fts()

    @cached_property
    def _database(self) -> Database:
        name, statements = ("search", (*_SCHEMA, _WORDS)) if self._fts else ("plain", _SCHEMA)
        return Database(self._repository.common_dir / "scp", Schema(name, _VERSION, statements))

    def search(self, query: str, kinds: Iterable[SearchKind] | None, n: int) -> list[SearchHit]:
        """The newest ``n`` records of these kinds that hold all terms of the query."""
        chosen = _checked_kinds(kinds)
        terms = parse_query(query)
        if not terms or not chosen or n <= 0 or not any(self._tips()):
            return []
        ask = _Question(self._repository, terms, chosen, min(n, _MAX_N), fts=self._fts)
        try:
            return self._database.answer(self._tips, self._update, ask.answer)
        except Unusable:
            return self._without_a_file(ask.answer)

    def counts(self) -> dict[str, int]:
        """How many records there are of each kind."""

        def count(db: sqlite3.Connection) -> dict[str, int]:
            return dict(db.execute("SELECT kind, count(DISTINCT id) FROM docs GROUP BY kind").fetchall())

        try:
            return self._database.answer(self._tips, self._update, count) if any(self._tips()) else {}
        except Unusable:
            return self._without_a_file(count)

    def close(self) -> None:
        """Close what is kept open between reads."""
        self._database.close()

    def _without_a_file(self, query: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """The same from an index that lives only for this answer."""
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
            for statement in self._database.schema.statements:
                db.execute(statement)
            with self._repository.odb() as odb:  # and from whatever can be read
                self._follow(db, ObjectStore(odb), [None] * len(_REFS), self._tips())
            return query(db)

    def _tips(self) -> Tips:
        return tuple(self._repository.refs.read(ref) or "" for ref in _REFS)

    def _update(self, db: sqlite3.Connection, old: Tips, new: Tips) -> None:
        with self._repository.odb() as odb:
            snapshot_at(self._repository, odb, (None, new[1], None))  # refuses a later format
            before = [tree_of(ObjectStore(odb), tip) for tip in old]
            if old and all(tree or not tip for tip, tree in zip(old, before, strict=True)):
                try:
                    self._follow(db, WholeStore(odb), before, new)
                    return
                except Unusable as exc:
                    log.info("the index is made from nothing: %s", exc)
            self._clear(db)
            self._follow(db, WholeStore(odb), [None] * len(_REFS), new)

    def _follow(
        self, db: sqlite3.Connection, store: ObjectStore, before: list[str | None], new: Tips
    ) -> None:
        writer = _Writer(db, fts=self._fts)
        for ref, earlier, tip in zip(_REFS, before, new, strict=True):
            for path, was, blob in differing_files(store, earlier, tree_of(store, tip)):
                if was is not None:
                    writer.remove(ref, path)
                for row in rows_of(store, ref, path, blob) if blob else ():
                    writer.add(ref, path, row)

    def _clear(self, db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM docs")
        if self._fts:
            db.execute("INSERT INTO words (words) VALUES ('delete-all')")


class _Writer:
    """Changes rows, and the words that lead to them."""

    def __init__(self, db: sqlite3.Connection, *, fts: bool) -> None:
        self._db = db
        self._fts = fts

    def add(self, ref: str, path: str, row: Row) -> None:
        number = self._number(row.time)
        values = [getattr(row, name) for name in _FIELDS]
        self._db.execute(_INSERT, (number, _place(ref, path), *values))
        if self._fts and (row.title or row.body):
            self._db.execute(
                "INSERT INTO words (rowid, title, body, kind) VALUES (?, ?, ?, ?)",
                (number, row.title, row.body, row.kind),
            )

    def remove(self, ref: str, path: str) -> None:
        place = _place(ref, path)
        if self._fts:
            self._db.execute(
                "INSERT INTO words (words, rowid, title, body, kind)"
                " SELECT 'delete', number, title, body, kind FROM docs"
                " WHERE path = ? AND title || body > ''",
                (place,),
            )
        self._db.execute("DELETE FROM docs WHERE path = ?", (place,))

    def _number(self, time: str) -> int:
        """A free number in the millisecond of ``time``; beyond 16 384 of them, in a later one."""
        first = _milliseconds(time) << _SLOT_BITS
        last = first + (1 << _SLOT_BITS) - 1
        query = "SELECT max(number) FROM docs WHERE number BETWEEN ? AND ?"
        taken = self._db.execute(query, (first, last)).fetchone()[0]
        number = first if taken is None else int(taken) + 1
        while number > last and self._db.execute(_TAKEN, (number,)).fetchone():
            number += 1
        return number


def _place(ref: str, path: str) -> str:
    # As bytes if need be: a name that is no UTF-8 is still a name.
    return f"{_REFS.index(ref)}{path}".encode("utf-8", "backslashreplace").decode()


def _milliseconds(time: str) -> int:
    return (datetime.fromisoformat(time) - _EPOCH) // timedelta(milliseconds=1) if time else 0


class _Question:
    """One search, to be asked of a database."""

    def __init__(
        self, repository: Repository, terms: list[Term], kinds: frozenset[str], n: int, *, fts: bool
    ) -> None:
        self._repository = repository
        self._terms = terms
        self._kinds = kinds
        self._n = n
        self._fts = fts

    def answer(self, db: sqlite3.Connection) -> list[SearchHit]:
        found: dict[tuple[str, str], SearchHit] = {}
        last = -1
        for row in self._candidates(db):
            slot = row[0] >> _SLOT_BITS
            if len(found) >= self._n and slot != last:
                break
            key = (row[1], row[2])
            if key in found:
                continue
            hit = self._hit(db, row)
            if hit is not None:
                found[key], last = hit, slot
        hits = sorted(found.values(), key=lambda hit: (hit.time, hit.id), reverse=True)
        return hits[: self._n]

    def _candidates(self, db: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
        """The rows that hold all terms, newest first, each with snippets of body and title at the end."""
        if self._fts:
            columns = ", ".join(f"docs.{name}" for name in ("number", *_FIELDS))
            yield from db.execute(
                f"SELECT {columns}, {_snippet(1)}, {_snippet(0)}"
                " FROM words JOIN docs ON docs.number = words.rowid WHERE words MATCH ?"
                " ORDER BY words.rowid DESC",
                (to_fts(self._terms, self._kinds),),
            )
            return
        for row in db.execute(f"SELECT number, {', '.join(_FIELDS)} FROM docs ORDER BY number DESC"):
            words = (split_words(row[4]), split_words(row[5]))
            if row[1] in self._kinds and all(any(map(term.matches, words)) for term in self._terms):
                texts = [" ".join(text.split()[:_SNIPPET_WORDS]) for text in (row[5], row[4])]
                yield (*row, *texts)

    def _hit(self, db: sqlite3.Connection, row: tuple[Any, ...]) -> SearchHit | None:
        """What is shown of a row; ``None`` if readers would not show it."""
        _, kind, id, time, title, _, user, run_id, thread_id, rank, noted, line, *snippets = row
        if db.execute(_BETTER, (kind, id, rank, rank, line)).fetchone():
            return None
        if kind == "message":
            if noted is not None:
                run_id = self._run_of_note(db, noted, run_id)
                if run_id is None:
                    return None
            elif run_id is not None and not _exists(db, run_id):
                return None
            if thread_id is None or run_id is None:
                run_id, thread_id = self._places(db, id, rank, run_id, thread_id)
        snippet = next((text for text in snippets if _MATCH in text), snippets[0]).replace(_MATCH, "")
        return SearchHit(
            kind=kind, id=id, title=title, snippet=" ".join(snippet.split()), time=time, user=user,
            run_id=run_id, thread_id=thread_id,
        )  # fmt: skip

    def _places(
        self, db: sqlite3.Connection, id: str, rank: int, run_id: str | None, thread_id: str | None
    ) -> tuple[str | None, str | None]:
        """A message may lie both with a run and in a thread."""
        others = "SELECT run_id, thread_id, noted FROM docs WHERE kind = 'message' AND id = ? AND rank = ?"
        for other_run, other_thread, noted in db.execute(others, (id, rank)).fetchall():
            thread_id = thread_id or other_thread
            if run_id is None and noted is not None:
                run_id = self._run_of_note(db, noted, other_run)
            elif run_id is None and other_run is not None and _exists(db, other_run):
                run_id = other_run
        return run_id, thread_id

    def _run_of_note(self, db: sqlite3.Connection, noted: str, said: str | None) -> str | None:
        """The run whose chat the note on this object is; ``said`` is what the message itself says."""
        query = "SELECT id, rank FROM docs WHERE kind = 'run' AND noted = ?"
        for run_id, rank in db.execute(query, (noted,)).fetchall():
            if not db.execute(_BETTER, ("run", run_id, rank, rank, None)).fetchone():
                return str(run_id)
        # A run without an anchor has the note on whatever bears its tag's name.
        query = "SELECT id FROM docs WHERE kind = 'run' AND noted IS NULL ORDER BY id <> ? LIMIT ?"
        for (run_id,) in db.execute(query, (said or "", _MAX_UNANCHORED)).fetchall():
            if self._repository.refs.read(run_tag_ref(run_id)) == noted:
                return str(run_id)
        return None


def _snippet(column: int) -> str:
    """The words around a match in one column, which is marked; the column's beginning if there is none."""
    return f"snippet(words, {column}, char({ord(_MATCH)}), '', '…', {_SNIPPET_WORDS})"


def _exists(db: sqlite3.Connection, run_id: str) -> bool:
    return db.execute("SELECT 1 FROM docs WHERE kind = 'run' AND id = ?", (run_id,)).fetchone() is not None


def _checked_kinds(kinds: Iterable[SearchKind] | None) -> frozenset[str]:
    known = frozenset(get_args(SearchKind))
    if kinds is None:
        return known
    chosen = frozenset([kinds] if isinstance(kinds, str) else kinds)
    if not chosen <= known:
        raise ValueError(f"kinds are {', '.join(sorted(known))}, not {', '.join(map(repr, chosen - known))}")
    return chosen


@cache
def _has_fts() -> bool:
    with closing(sqlite3.connect(":memory:")) as db:
        try:
            db.execute("CREATE VIRTUAL TABLE words USING fts5 (x, tokenize='unicode61 remove_diacritics 2')")
        except sqlite3.Error as exc:
            log.info("SQLite has no FTS5, so searches look at every text: %s", exc)
            return False
    return True
