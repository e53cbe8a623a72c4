"""A report in the making."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scp_git.git.receive import Received
from scp_git.sync.report import TAGS, Counts, RefResult, RefState, Skipped, SyncReport, WaitingTag


@dataclass(slots=True)
class Tally:
    """A report in the making."""

    remote: str
    pulled: dict[str, RefResult] = field(default_factory=dict)
    pushed: dict[str, RefResult] = field(default_factory=dict)
    received: Counts = field(default_factory=Counts)
    sent: Counts = field(default_factory=Counts)
    waiting: dict[str, str] = field(default_factory=dict)
    skipped: dict[Skipped, None] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    tries: int = 1

    def pull(self, ref: str, state: RefState) -> None:
        """Note what a pull did; of several pulls the one that did something counts."""
        if ref not in self.pulled or state not in (RefState.UP_TO_DATE, RefState.ABSENT):
            self.pulled[ref] = RefResult(ref=ref, state=state)

    def push(self, ref: str, state: RefState, detail: str = "") -> None:
        before = self.pushed.get(ref)
        if before is None or before.state is not RefState.PUSHED or state is RefState.REJECTED:
            self.pushed[ref] = RefResult(ref=ref, state=state, detail=detail)

    def skip(self, received: Received) -> None:
        """Note what was not taken over, and why."""
        for each in received.skipped:
            self.skipped[Skipped(ref=each.ref, path=each.path, reason=each.reason, kept=each.kept)] = None
        for path in received.report.refused:
            self.skipped[Skipped(ref="", path=path, reason="it is not ours")] = None

    def tags(self, *, pushed: bool, refused: Mapping[str, str] | None = None) -> None:
        """Note what became of the run tags, all together unless some were refused."""
        for ref, words in (refused or {}).items():
            self.push(ref, RefState.REJECTED, words)
        if not refused:
            idle = RefState.WAITING if self.waiting else RefState.UP_TO_DATE
            self.push(TAGS, RefState.PUSHED if pushed else idle)

    def finish(self) -> SyncReport:
        return SyncReport(
            remote=self.remote,
            pulled=tuple(self.pulled.values()),
            pushed=tuple(self.pushed.values()),
            received=self.received,
            sent=self.sent,
            waiting=tuple(WaitingTag(run_id=id, commit=oid) for id, oid in sorted(self.waiting.items())),
            skipped=tuple(self.skipped),
            renamed=self.renamed,
            tries=self.tries,
        )
