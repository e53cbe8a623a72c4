"""The verb for searching, synchronous."""

from __future__ import annotations

from collections.abc import Iterable

from scp_git.git.handle import Repository
from scp_git.index.search import SearchIndex
from scp_git.models import SearchHit, SearchKind
from scp_git.settings import Settings
from scp_git.store.core import StoreCore


class SearchVerbs(StoreCore):
    """Finding runs, messages, traces and threads by their words."""

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
