"""What a session was, in one line, and what kind of session it seems to have been; by fixed rules.

Nothing here looks at a clock, a locale or a machine: the same events give the same text everywhere.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import timedelta

from scp_git.ids import parse_time
from scp_git.models import SessionTrace

_DOMAINS_SHOWN = 8
_NAME_MAX = 30
_KEY_MAX = 64
_KINDS_MAX = 4096
_LATE = ("", "")
_OUTCOMES = ("ok", "failed", "partial", "skipped")
"""They come first and in this order; others follow by their number."""
_FAILED_SHARE = 0.2
"""From this share of failed events on a session looks like debugging."""

# The words that may stand anywhere in the type of an event; the first kind wins a tie.
_RULES = {
    "deployment": "apply deploy deployment helm k8s kubectl kubernetes promote publish push release rollback "
    "rollout terraform upgrade",
    "setup": "bootstrap create init initialise initialize install onboarding provision scaffold setup wizard",
    "config": "config configure configuration env environment policy preferences secret secrets settings "
    "vault",
    "debugging": "debug debugger diagnose diagnosis error failure logs profile restart retry stacktrace test "
    "traceback",
    "exploration": "audit browse check detect diff get inspect list plan preview read scan search show "
    "status view",
}
_KIND_OF = {word: kind for kind, words in _RULES.items() for word in words.split()}
_WORD = re.compile(r"[a-z0-9]+")


Kind = tuple[str, str]
"""The type and the result of an event."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What kind of session a trace seems to be; both are empty where no rule applies."""

    classification: str
    reasons: tuple[str, ...]


def kind_of(type: str, result: str) -> Kind:
    """What events are counted by; cut, as anybody may choose both."""
    return type[:_KEY_MAX], result[:_KEY_MAX]


class Tally:
    """The numbers that a summary is made of; events may be counted as they come, and are not kept."""

    def __init__(self) -> None:
        self.kinds: defaultdict[Kind, int] = defaultdict(int)
        self.first: tuple[str, int] | None = None
        """Time and duration of the first event."""
        self.last = ""

    def add(self, kind: Kind, ts: str, duration_ms: int) -> None:
        """Count one event."""
        self.count(kind)
        self.span(ts, duration_ms, ts)

    def count(self, kind: Kind) -> None:
        """Count one event; beyond ``_KINDS_MAX`` kinds those that come late count as one."""
        self.kinds[kind] += 1
        if len(self.kinds) > _KINDS_MAX:
            self.kinds[_LATE] += self.kinds.pop(kind)

    def span(self, first: str, duration_ms: int, last: str) -> None:
        """Events from ``first`` to ``last`` came; ``duration_ms`` is that of the first one."""
        if self.first is None:
            self.first = first, duration_ms
        self.last = last

    def text(self) -> str:
        """``12 events: 5 vault, 4 k8s, 3 git; 10 ok, 2 failed; 8.0 s``."""
        total = sum(self.kinds.values())
        if not total:
            return "no events"
        domains: Counter[str] = Counter()
        outcomes: Counter[str] = Counter()
        for (type, result), count in self.kinds.items():
            domains[_name(type.partition(":")[0]) or "other"] += count
            outcomes[_name(result)] += count
        del outcomes[""]  # what only happened has no outcome
        parts = [
            f"{total} event{'s' if total > 1 else ''}: {_ranked(domains)}",
            _ranked(outcomes, _OUTCOMES),
            self._elapsed(),
        ]
        return "; ".join(part for part in parts if part)

    def _elapsed(self) -> str:
        """From the beginning of the first event to the end of the last one."""
        if self.first is None:
            return ""
        try:
            # An event comes when its work is done, so the first one began earlier.
            began = parse_time(self.first[0]) - timedelta(milliseconds=self.first[1])
            elapsed = parse_time(self.last) - began
        except (ValueError, OverflowError):
            return ""
        return _duration(elapsed.total_seconds()) if elapsed > timedelta(0) else ""


def generate_summary(trace: SessionTrace) -> str:
    """One line about ``trace.events``: counts by domain, outcomes, duration; the same wherever it is made."""
    tally = Tally()
    for event in trace.events:
        tally.add(kind_of(event.type, event.result), event.ts, event.duration_ms)
    return tally.text()


def suggest_classification(trace: SessionTrace) -> Suggestion:
    """The kind of session that most of ``trace.events`` speak for, with the reasons.

    One of ``deployment``, ``setup``, ``config``, ``debugging`` and ``exploration``; a fifth
    of failed events speaks for ``debugging`` more than anything else does.
    """
    events = trace.events
    scores: Counter[str] = Counter()
    words: dict[str, Counter[str]] = {kind: Counter() for kind in _RULES}
    for event in events:
        found = {word: _KIND_OF[word] for word in _WORD.findall(event.type.lower()) if word in _KIND_OF}
        for word, kind in found.items():
            words[kind][word] += 1
        scores.update(set(found.values()))
    failed = sum(event.result == "failed" for event in events)
    if events and failed >= _FAILED_SHARE * len(events):
        reason = f"{failed} of {len(events)} events failed"
        return Suggestion("debugging", (reason, *_reasons(words["debugging"])))
    if not scores:
        return Suggestion("", ())
    kind = max(_RULES, key=lambda each: scores[each])
    return Suggestion(kind, _reasons(words[kind]))


def _reasons(words: Counter[str]) -> tuple[str, ...]:
    ranked = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    return tuple(f"{count} event{'s' if count > 1 else ''} with {word!r}" for word, count in ranked)


def _ranked(counts: Counter[str], first: tuple[str, ...] = ()) -> str:
    """``5 vault, 4 k8s, 2 more``: the names in ``first`` in their order, then by number and name."""

    def place(item: tuple[str, int]) -> tuple[int, int, str]:
        name, count = item
        return (first.index(name) if name in first else len(first), -count, name)

    ordered = sorted(counts.items(), key=place)
    shown = [f"{count} {name}" for name, count in ordered[:_DOMAINS_SHOWN]]
    more = sum(count for _, count in ordered[_DOMAINS_SHOWN:])
    return ", ".join([*shown, *([f"{more} more"] if more else [])])


def _name(text: str) -> str:
    """Safe to stand in a line: anybody may have chosen it."""
    text = text.encode(errors="replace").decode()
    text = " ".join("".join(c if c >= " " and not "\x7f" <= c <= "\x9f" else " " for c in text).split())
    return text if len(text) <= _NAME_MAX else text[: _NAME_MAX - 3] + "..."


def _duration(seconds: float) -> str:
    """``140 ms``, ``8.0 s``, ``12 min 5 s``, ``3 h 20 min``."""
    if seconds < 1:
        return f"{max(round(seconds * 1000), 1)} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
