"""What a search query means: words and "phrases", all of which must occur. Never an error, whatever is typed.

``disk full``        both words, anywhere and in any order
``"disk full"``      these words in a row; a quote that is never closed ends with the query
``deplo*``           words that begin so

Case, accents and punctuation do not count: ``k8s:apply`` is the phrase "k8s apply". What
holds no letter and no digit is passed over. The first 1000 characters and 32 words count.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

MAX_CHARS = 1000
MAX_TERMS = 32

_TERM = re.compile(r'"([^"]*)"?|([^\s"]+)')
_TOKEN = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Term:
    """Words that occur in a row, as typed and folded; with ``prefix`` the last one may go on."""

    text: str
    words: tuple[str, ...]
    prefix: bool

    def matches(self, words: list[str]) -> bool:
        """Whether it occurs among the words of a text."""
        wanted, length = list(self.words), len(self.words)
        for start in range(len(words) - length + 1):
            found = words[start : start + length]
            if found == wanted:
                return True
            if self.prefix and found[:-1] == wanted[:-1] and found[-1].startswith(wanted[-1]):
                return True
        return False


def parse_query(query: str) -> list[Term]:
    """The terms of a query; none if nothing in it can be found."""
    terms: list[Term] = []
    for phrase, word in _TERM.findall(query[:MAX_CHARS]):
        text = phrase or word
        words = tuple(split_words(text))
        if words and len(terms) < MAX_TERMS:
            terms.append(Term(text, words, prefix=word.endswith("*")))
    return terms


def split_words(text: str) -> list[str]:
    """The words of a text as they are compared: runs of letters and digits, folded."""
    return _TOKEN.findall(fold(text))


def fold(text: str) -> str:
    """Without case and accents."""
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(char for char in plain if not unicodedata.combining(char))


def to_fts(terms: list[Term], kinds: Iterable[str]) -> str:
    """The query as FTS5 has it: only quoted texts, which hold no quotes, so nothing in it is syntax."""
    texts = (term.text.encode("utf-8", "replace").decode().replace("\0", " ") for term in terms)
    wanted = [f'"{text}"{"*" if term.prefix else ""}' for text, term in zip(texts, terms, strict=True)]
    chosen = " OR ".join(f'"{kind}"' for kind in sorted(kinds))
    return f"{{title body}} : ({' AND '.join(wanted)}) AND kind : ({chosen})"
