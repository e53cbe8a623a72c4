"""What a push or a pull did, ref by ref. Absence and refusal are values; only a remote that fails raises."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

TAGS = "refs/tags/scp/run/*"
"""All run tags together, as one line of a report."""


class RefState(StrEnum):
    """What became of one ref."""

    UP_TO_DATE = "up to date"
    ABSENT = "absent"
    """Neither side has it yet."""
    UPDATED = "updated"
    """Pulled: we have what the remote has."""
    MERGED = "merged"
    """Pulled: what both sides had is together here."""
    PUSHED = "pushed"
    REJECTED = "rejected"
    """The remote did not take it; ``detail`` holds its words."""
    WAITING = "waiting"
    """Run tags whose commit the remote does not have yet."""
    KEPT = "kept"
    """The remote did not let the tag of a deleted run go; the run is deleted there all the same."""
    NO_REMOTE = "no remote"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class RefResult(_Value):
    """What became of one ref, and the remote's words about it."""

    ref: str
    state: RefState
    detail: str = ""


class Counts(_Value):
    """How many records went one way: runs and traces by id, messages by id and place."""

    runs: int = 0
    messages: int = 0
    traces: int = 0

    def __bool__(self) -> bool:
        return bool(self.runs or self.messages or self.traces)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            runs=self.runs + other.runs,
            messages=self.messages + other.messages,
            traces=self.traces + other.traces,
        )


class WaitingTag(_Value):
    """A run whose tag was not pushed, as the remote has not got the commit that it pins."""

    run_id: str
    commit: str


class Skipped(_Value):
    """Something on a branch of the remote that was not taken over, or (``kept``) that no reader can show."""

    ref: str
    path: str
    reason: str
    kept: bool = False


class SyncReport(_Value):
    """What a push, a pull or a sync did."""

    remote: str
    pulled: tuple[RefResult, ...] = ()
    pushed: tuple[RefResult, ...] = ()
    received: Counts = Field(default_factory=Counts)
    sent: Counts = Field(default_factory=Counts)
    waiting: tuple[WaitingTag, ...] = ()
    """Push the branch that holds the commit, or pass ``publish_commits=True``."""
    skipped: tuple[Skipped, ...] = ()
    """What is wrong on the remote's branches. All that is good was taken over."""
    renamed: dict[str, str] = Field(default_factory=dict)
    """Runs that had the id of another run: new id to old id."""
    tries: int = 1
    """How often it was begun again because others pushed at the same time, counted from 1."""

    @property
    def in_step(self) -> bool:
        """Whether both sides have the same now; tags that wait, or are kept, do not count."""
        states = {result.state for result in (*self.pulled, *self.pushed)}
        return not states & {RefState.REJECTED, RefState.NO_REMOTE}

    def state(self, ref: str) -> RefState | None:
        """What became of a ref: of the push if it was pushed, else of the pull."""
        results = {result.ref: result.state for result in (*self.pulled, *self.pushed)}
        return results.get(ref)


class SyncStatus(_Value):
    """How far we and a remote are apart, and what waits."""

    remote: str
    url: str
    """Without user and password."""
    asked: bool
    """Whether the remote was asked just now; else all this is as of when it was last seen."""
    known: bool
    """Whether anything of ours was ever seen there."""
    in_step: bool
    """Whether both have the same trees, by which records, edits and deletions are meant."""
    ahead: Counts
    """What is only here, and the next push sends."""
    behind: Counts
    """What is only there, and the next pull brings."""
    waiting: tuple[WaitingTag, ...] = ()
    """Tags that the remote may not have yet, as it has not got the commit that they pin."""
    deferred: tuple[str, ...] = ()
    """Runs that were recorded before there was a commit: they get their tag after the first one."""
    untagged: tuple[WaitingTag, ...] = ()
    """Runs of others whose commit is not here yet: they get their tag here when it is fetched."""
