"""Mentions in a message, such as ``@run:run_2026-...`` and ``@file:src/a.py#L10-L25``: the spelling.

What they stand for is looked up by ``targets.py``. Mentions are computed from the text
whenever they are needed and stored nowhere: beside a ciphertext they would give it away.

A value ends at a blank, a quote, ``,`` or ``;``, and what ends a sentence or closes a
bracket is not part of it; anything else goes into quotes, ``@user:"Jane Doe"``. A mail
address is no mention, nor is what follows a word, a slash or a backslash directly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

Kind = Literal["run", "thread", "trace", "user", "commit", "branch", "file"]
KINDS: dict[Kind, str] = {
    "run": "an operation that was executed",
    "thread": "a conversation",
    "trace": "a recorded session",
    "user": "a person",
    "commit": "a commit, by its first hex digits",
    "branch": "a branch",
    "file": "a file of the repository, lines as #L10-L25",
}
MAX_VALUE = 512
MAX_LABEL = 120

# Scripts written without blanks: a mention may follow such a letter directly.
_UNSPACED = r"\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff"
# Controls, characters that hide or reorder text, and lone surrogates.
_UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
_LINES = r"#L(?P<first>[1-9][0-9]{0,8})(?:-L?(?P<last>[1-9][0-9]{0,8}))?"
_MENTION = re.compile(
    rf"(?<![^\W{_UNSPACED}])(?<![@./\\])"
    rf"@(?P<kind>(?ai:{'|'.join(KINDS)})):"
    rf'(?:"(?P<quoted>(?:[^"\\{_UNPRINTABLE}]|\\["\\])+)"(?:{_LINES})?'
    rf'|(?P<plain>[^\s"`<>|,;{_UNPRINTABLE}]+))'
)
_LINES_BEHIND = re.compile(rf"(?:{_LINES}|:(?P<n>[1-9][0-9]{{0,8}})(?:-(?P<m>[1-9][0-9]{{0,8}}))?)$")
_ESCAPED = re.compile(r'\\(["\\])')
_QUOTABLE = re.compile(rf"[^{_UNPRINTABLE}]+")
_ENDS_A_SENTENCE = frozenset(
    ".:!?'*~\u2026\u2019\u201d\u00bb\u3002\u3001\uff0c\uff01\uff1f\uff1b\uff1a\uff09"
)
_BRACKETS = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True, slots=True)
class Mention:
    """Something that a message speaks of; its ``str`` is how it is written in a text.

    ``label`` (one line) and ``detail`` say what it is, if it ``exists``. Both may hold
    what anybody wrote: neutralise or escape them where they are shown.
    """

    kind: Kind
    id: str
    lines: tuple[int, int] | None = None
    label: str = ""
    detail: str = ""
    exists: bool = False

    def __str__(self) -> str:
        behind = "" if self.lines is None else f"#L{self.lines[0]}"
        if self.lines and self.lines[1] != self.lines[0]:
            behind += f"-L{self.lines[1]}"
        plain = f"@{self.kind}:{self.id}{behind}"
        # In brackets, too: what opens one itself would swallow the one that closes them.
        read = [(start, end, found.id, found.lines) for start, end, found in spans(f"({plain})")]
        if not self.id or read == [(1, 1 + len(plain), self.id, self.lines)]:
            return plain
        escaped = self.id.replace("\\", "\\\\").replace('"', '\\"')
        return f'@{self.kind}:"{escaped}"{behind}'

    def found(self, label: str, *details: str) -> Mention:
        """The same, which exists; what there is to say about it as one line each."""
        detail = ", ".join(line for line in map(one_line, details) if line)
        return replace(self, exists=True, label=one_line(label) or self.id, detail=detail)


def spans(text: str) -> Iterator[tuple[int, int, Mention]]:
    """Every mention in a text with the places where it begins and ends."""
    for match in _MENTION.finditer(text):
        kind = cast(Kind, match["kind"].lower())
        if match["quoted"] is not None:
            value = _ESCAPED.sub(r"\1", match["quoted"])
            end, lines = match.end(), _range(match["first"], match["last"])
            if lines and kind != "file":
                end, lines = match.end("quoted") + 1, None
        else:
            value = _trimmed(match["plain"]) if len(match["plain"]) <= 2 * MAX_VALUE else ""
            end = match.start("plain") + len(value)
            value, lines = _without_lines(value) if kind == "file" else (value, None)
        if value.strip() and len(value) <= MAX_VALUE:
            yield match.start(), end, Mention(kind, value, lines, label=value)


def parse(text: str) -> list[Mention]:
    """The different mentions of a text, in the order in which they first appear."""
    return list(dict.fromkeys(mention for _, _, mention in spans(text)))


def is_spellable(id: str) -> bool:
    """Whether a mention can be written of something with this name, and be read again."""
    return 0 < len(id) <= MAX_VALUE and id.strip() != "" and _QUOTABLE.fullmatch(id) is not None


def one_line(text: str) -> str:
    """The text on one line, without what hides or reorders it, cut at a length that fits beside others."""
    text = " ".join(re.sub(f"[{_UNPRINTABLE}]", " ", text).split())
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 3].rstrip() + "..."


def _trimmed(value: str) -> str:
    """Without the punctuation and the brackets that belong to the sentence around it."""
    count = Counter(char for char in value if char in "()[]{}")
    end = len(value)
    while end:
        last = value[end - 1]
        opener = _BRACKETS.get(last)
        if opener and count[last] > count[opener]:
            count[last] -= 1
        elif last not in _ENDS_A_SENTENCE:
            break
        end -= 1
    value = value[:end]
    return value[:-2] if value.endswith(("'s", "\u2019s")) else value


def _without_lines(value: str) -> tuple[str, tuple[int, int] | None]:
    match = _LINES_BEHIND.search(value)
    if match is None or match.start() == 0:
        return value, None
    lines = _range(match["first"] or match["n"], match["last"] or match["m"])
    return value[: match.start()], lines


def _range(first: str | None, last: str | None) -> tuple[int, int] | None:
    if first is None:
        return None
    one, other = int(first), int(last or first)
    return min(one, other), max(one, other)
