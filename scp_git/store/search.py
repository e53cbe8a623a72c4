"""The verbs for searching and counting, synchronous."""

from __future__ import annotations

from collections.abc import Iterable

from scp_git.git.handle import Repository
from scp_git.index.search import SearchIndex
from scp_git.index.stats import LedgerStats, gather
from scp_git.models import SearchHit, SearchKind
from scp_git.settings import Settings
from scp_git.store.ledger import LedgerVerbs


class SearchVerbs(LedgerVerbs):
    """Finding runs, messages, traces and threads by their words, and counting them."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        super().__init__(repository, settings)
        self._search = SearchIndex(repository)

    def search(
        self, query: str, *, kinds: Iterable[SearchKind] | None = None, n: int = 20
    ) -> list[SearchHit]:
        """The newest ``n`` records that hold every word and ``"phrase"`` of the query.

        ``word*`` stands for all words that begin so; case, accents and punctuation do not
        count, and nothing that is typed is an error. Encrypted messages are never found.
        Raises ``ValueError`` for a kind that there is not.
        """
        return self._search.search(query, kinds, n)

    def stats(self) -> LedgerStats:
        """How many runs, messages, threads and traces there are, and the room they take on the disk."""
        return gather(self._repository, self._index, self._search)
