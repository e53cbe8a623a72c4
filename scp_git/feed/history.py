"""The way from one state to a later one, transaction by transaction where there is such a way.

A transaction makes at most one commit on each of the three branches, all with one committer
stamp and one message; so commits that share both are taken together. What a pull brought is one
jump, and so is the whole way where a branch did not simply grow (a merge put local work on top of
a remote's, a branch was reset).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

from scp_git.feed.tokens import NOTHING, Tips
from scp_git.git.objects import COMMIT, ObjectStore, parse_commit

MAX_COMMITS = 4096
"""A reader further behind than so many commits gets the difference in one piece."""

Transaction = tuple[str, str]
FirstTime = Callable[[Tips, Tips], str]
"""Tells the earliest time of a record that changed between two states."""


@dataclass(frozen=True, slots=True)
class Step:
    """One commit: the transaction that it belongs to, and when that was."""

    oid: str
    transaction: Transaction
    seconds: int


def tree_of(store: ObjectStore, tip: str | None) -> str | None:
    """The tree of a branch's tip; ``None`` where there is no commit, or a damaged one."""
    data = store.find(tip, COMMIT) if tip else None
    try:
        return parse_commit(data).tree if data else None
    except ValueError:
        return None


def way(
    store: ObjectStore, old: Tips, new: Tips, first: FirstTime, shared: Callable[[], Container[str]]
) -> Iterator[Tips]:
    """Yield the states to pass from ``old`` to ``new``, the last of them ``new`` itself.

    What a remote has, as far as is known here (``shared`` gives the tips), is one jump: that is
    how a pull brought it.
    """
    chains = [_chain(store, one, other) for one, other in zip(old, new, strict=True)]
    grown = [chain for chain in chains if chain is not None]
    if old == NOTHING or len(grown) < len(chains):
        if old != new:
            yield new
        return
    here = old
    if sum(map(len, grown)) > 1:
        known = shared()
        here = Tips(*(_pass(chain, tip, known) for chain, tip in zip(grown, old, strict=True)))
        if here != old:
            yield here
    yield from _in_step(here, grown, first)


def _pass(chain: deque[Step], tip: str | None, known: Container[str]) -> str | None:
    """Go along a chain up to the last commit that a remote has; returns where that is."""
    last = max((number for number, step in enumerate(chain, 1) if step.oid in known), default=0)
    for _ in range(last):
        tip = chain.popleft().oid
    return tip


def _chain(store: ObjectStore, old: str | None, new: str | None) -> deque[Step] | None:
    """The commits after ``old`` up to ``new``, oldest first; ``None`` if there is no such chain."""
    chain: deque[Step] = deque()
    oid = new
    while oid != old:
        data = store.find(oid, COMMIT) if oid and len(chain) < MAX_COMMITS else None
        if oid is None or data is None:
            return None
        try:
            commit = parse_commit(data)
        except ValueError:
            return None
        stamp = _committer(data)
        chain.appendleft(Step(oid, (stamp, commit.message), _seconds(stamp)))
        oid = commit.parents[0] if commit.parents else None
    return chain


def _committer(data: bytes) -> str:
    header = data.partition(b"\n\n")[0]
    lines = [line for line in header.split(b"\n") if line.startswith(b"committer ")]
    return lines[0].decode("utf-8", "replace") if lines else ""


def _seconds(stamp: str) -> int:
    digits = stamp.rpartition("> ")[2].split(" ")[0]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 12 else 0


def _in_step(here: Tips, chains: list[deque[Step]], first: FirstTime) -> Iterator[Tips]:
    """Merge the chains: each in its own order, shared transactions together, the earlier ones first."""
    ahead = [Counter(step.transaction for step in chain) for chain in chains]
    while any(chains):
        heads = dict.fromkeys(chain[0] for chain in chains if chain)
        ready = {step.transaction: step.seconds for step in heads if _all_met(step, chains, ahead)}
        ready = ready or {step.transaction: step.seconds for step in heads}
        earliest = min(ready.values())
        states = {
            transaction: _after(here, chains, transaction)
            for transaction, seconds in ready.items()
            if seconds == earliest
        }
        if len(states) > 1:  # git's clock has seconds, the records' a finer one
            chosen = min(states, key=lambda transaction: first(here, states[transaction]))
        else:
            chosen = next(iter(states))
        for chain, counts in zip(chains, ahead, strict=True):
            if chain and chain[0].transaction == chosen:
                chain.popleft()
                counts[chosen] -= 1
        here = states[chosen]
        yield here


def _all_met(step: Step, chains: list[deque[Step]], ahead: list[Counter[Transaction]]) -> bool:
    """Whether no chain has commits to pass before it comes to the same transaction."""
    return all(
        not counts[step.transaction] or chain[0].transaction == step.transaction
        for chain, counts in zip(chains, ahead, strict=True)
    )


def _after(here: Tips, chains: list[deque[Step]], transaction: Transaction) -> Tips:
    tips = [
        chain[0].oid if chain and chain[0].transaction == transaction else tip
        for tip, chain in zip(here, chains, strict=True)
    ]
    return Tips(*tips)
