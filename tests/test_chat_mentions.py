"""How mentions are spelled. Every line of the first table went wrong in the program before this one."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scp_git import Mention
from scp_git.chat.mentions import KINDS, MAX_VALUE, is_spellable, parse, spans


def read(text: str) -> list[tuple[str, str, tuple[int, int] | None]]:
    return [(mention.kind, mention.id, mention.lines) for mention in parse(text)]


WENT_WRONG = {
    "a full stop behind it": ("see @run:run_1.", [("run", "run_1", None)]),
    "a mail address": ("mail me@user:bob or a.b@file:c", []),
    "lines after a colon": ("@file:a.py:10-20", [("file", "a.py", (10, 20))]),
    "lines as GitHub has them": ("@file:src/main.py#L10", [("file", "src/main.py", (10, 10))]),
    "a range of lines": ("@file:src/main.py#L10-L25", [("file", "src/main.py", (10, 25))]),
    "a revision is no commit": ("@commit:HEAD~1", [("commit", "HEAD~1", None)]),
    "a name with a blank": ('@user:"Jane Doe" did', [("user", "Jane Doe", None)]),
    "a name that is not ASCII": ("@user:jean-françois", [("user", "jean-françois", None)]),
    "another case": ("@Run:run_1 @FILE:A.py", [("run", "run_1", None), ("file", "A.py", None)]),
}

SPELLINGS = {
    "nothing": ("", []),
    "no kind": ("@bob @: @:x @run @run: @run:, @nothing:x", []),
    "all kinds": (
        "@run:a @thread:b @trace:c @user:d @commit:e @branch:f @file:g",
        [(kind, id, None) for kind, id in zip(KINDS, "abcdefg", strict=True)],
    ),
    "twice": ("@run:a and @run:a", [("run", "a", None)]),
    "at the end of sentences": (
        "@run:a? @run:b! @run:c... @run:d: @run:e, @run:f; @run:g\u2026",
        [("run", id, None) for id in "abcdefg"],
    ),
    "in brackets": ("(@run:a) [@run:b] {see @run:c}. ((@run:d))", [("run", id, None) for id in "abcd"]),
    "brackets of its own": ("@file:app/(main)/[slug].py)", [("file", "app/(main)/[slug].py", None)]),
    "emphasised": ("**@run:a** *@run:b* ~~@run:c~~ `@run:d` '@run:e'", [("run", c, None) for c in "abcde"]),
    "possessive": ("@user:bob's run, @user:ann\u2019s too", [("user", "bob", None), ("user", "ann", None)]),
    "a quote inside": ("@user:O'Brien", [("user", "O'Brien", None)]),
    "escapes in quotes": (r'@user:"a \"b\" \\c"', [("user", r'a "b" \c', None)]),
    "quotes and lines": ('@file:"my file.txt"#L3-L9.', [("file", "my file.txt", (3, 9))]),
    "lines only of files": ("@branch:a#L3 @user:b:3", [("branch", "a#L3", None), ("user", "b:3", None)]),
    "lines only of quoted files": ('@branch:"a"#L3', [("branch", "a", None)]),
    "lines backwards": ("@file:a#L9-L3 @file:b#L9-3", [("file", "a", (3, 9)), ("file", "b", (3, 9))]),
    "line nought": ("@file:a#L0", [("file", "a#L0", None)]),
    "a line then a full stop": ("@file:a.py#L7.", [("file", "a.py", (7, 7))]),
    "an open quote": ('@user:"Jane Doe', []),
    "a quote over lines": ('@user:"Jane\nDoe"', []),
    "a mail address as a value": ("@user:jane@example.org.", [("user", "jane@example.org", None)]),
    "a scope in a path": ("@file:node/@types/x.ts", [("file", "node/@types/x.ts", None)]),
    "behind a slash or a backslash": (r"https://host/@user:bob \@user:bob x\@user:bob @@user:bob", []),
    "behind letters": ("x@user:bob é@user:bob 5@user:bob _@user:bob", []),
    "behind a script without blanks": ("请看@run:a 見て@run:b", [("run", "a", None), ("run", "b", None)]),
    "behind a bracket, quote, dash": ('(@run:a "@run:b -@run:c', [("run", c, None) for c in "abc"]),
    "before a bracket": ("<@run:a>|@run:b|", [("run", "a", None), ("run", "b", None)]),
    "tidy across lines": ("@run:a\n@run:b\r\n@run:c\u2028@run:d", [("run", c, None) for c in "abcd"]),
    "hidden characters end it": ("@run:a\u202eb @run:c\0d @run:e\x1b[2J", [("run", c, None) for c in "ace"]),
    "a lone surrogate": ("@run:a\ud800 @user:\ud800", [("run", "a", None)]),
    "a letter that only looks like one": ("@u\u017fer:bob", []),
    "too long": (f"@run:{'a' * 5000} @run:b", [("run", "b", None)]),
    "as long as may be": (f"@run:{'a' * MAX_VALUE}", [("run", "a" * MAX_VALUE, None)]),
    "blank in quotes": ('@user:"  "', []),
    "what leads out is only text": ("@file:../../etc/passwd", [("file", "../../etc/passwd", None)]),
}


@pytest.mark.parametrize(("text", "mentions"), WENT_WRONG.values(), ids=WENT_WRONG)
def test_what_went_wrong_before(text: str, mentions: list[tuple[str, str, tuple[int, int] | None]]) -> None:
    assert read(text) == mentions


@pytest.mark.parametrize(("text", "mentions"), SPELLINGS.values(), ids=SPELLINGS)
def test_mentions_are_found(text: str, mentions: list[tuple[str, str, tuple[int, int] | None]]) -> None:
    assert read(text) == mentions


@pytest.mark.parametrize("text", [text for text, _ in (*WENT_WRONG.values(), *SPELLINGS.values())])
def test_places_are_those_of_the_spelling(text: str) -> None:
    behind = 0
    for start, end, mention in spans(text):
        assert behind <= start < end <= len(text)
        behind = end
        assert parse(text[start:end]) == [mention]
        assert parse(f"x {mention}, y") == [mention]


@given(
    st.sampled_from(list(KINDS)),
    st.text(min_size=1, max_size=40),
    st.none()
    | st.tuples(st.integers(1, 10**9 - 1), st.integers(1, 10**9 - 1)).map(lambda pair: tuple(sorted(pair))),
)
@example("run", "(", None)
def test_what_is_spelled_is_read_again(kind: str, id: str, lines: tuple[int, int] | None) -> None:
    if not is_spellable(id):
        return
    mention = Mention(kind, id, lines if kind == "file" else None, label=id)  # type: ignore[arg-type]
    for text in (str(mention), f"({mention})", f"{mention}.", f"{mention}\n", f"x {mention}, y"):
        assert parse(text) == [mention], text


@given(st.text(alphabet='@runfileuser:".,()[]\\#L1 \n\u2028é\x00', max_size=120))
@settings(max_examples=300)
def test_any_text_is_read(text: str) -> None:
    for start, end, mention in spans(text):
        assert text[start] == "@"
        assert mention.id.strip()
        assert end <= len(text)


@pytest.mark.parametrize(
    "piece",
    ["@run:", '@user:"', "@file:a#L1", "@run:" + "(" * 500 + ")" * 500, '@user:"\\"', "@" * 50, "@file:a:1-"],
)
def test_reading_takes_time_in_proportion(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    started = time.perf_counter()
    for _ in spans(text):
        pass
    assert time.perf_counter() - started < 10
