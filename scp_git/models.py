"""The records that users build and get back. Plain pydantic models, mutable, unknown fields kept.

Ids and start or creation times are made when a model is built. Times are
normalised to ``2026-02-17T20:45:00.000000+00:00``. Every value must be plain JSON
(see ``codec.check_json``); anything else is a ``ValidationError`` at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from itertools import chain
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from scp_git.codec import check_json
from scp_git.ids import format_time, make_id, now_iso, parse_time


def _normalise_time(value: object) -> object:
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, str) and value:
        return format_time(parse_time(value))
    return value


Text = Annotated[str, Field(strict=True)]
"""Text, and nothing that could be taken for it: pydantic would decode bytes."""
Time = Annotated[Text, BeforeValidator(_normalise_time)]
"""A stored time, or empty; ``datetime`` and any ISO 8601 spelling are accepted."""

Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Flag = Annotated[bool, Field(strict=True)]
Status = Literal["ok", "failed", "partial"]
Source = Literal["manual", "trace", "system"]
SearchKind = Literal["run", "message", "trace", "thread"]


class Record(BaseModel):
    """What all records share: unknown fields are kept, values are plain JSON."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _plain_json(self) -> Self:
        for name, value in chain(self.__dict__.items(), (self.__pydantic_extra__ or {}).items()):
            if isinstance(value, BaseModel) or (type(value) is str and value.isascii()):
                continue
            if isinstance(value, list) and value and isinstance(value[0], BaseModel):
                continue
            try:
                check_json(value)
            except ValueError as exc:
                raise ValueError(f"{name}: {exc}") from None
        return self


class Run(Record):
    """An operation that was executed.

    ``user`` and ``code_ref`` may stay empty: recording fills them with the git
    identity and HEAD. So may ``ended_at`` and ``duration_ms``.
    """

    run_id: Text = ""
    type: Text
    subtype: Text = ""
    status: Status = "ok"
    user: Text = ""
    code_ref: Text = ""
    started_at: Time = ""
    ended_at: Time = ""
    duration_ms: Count = 0
    environment: Text = ""
    modules_affected: list[Text] = Field(default_factory=list)
    summary: Text = ""
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _anchor_is_ours(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "anchor" in value:
            raise ValueError("'anchor' is a reserved name: it is set when the run is recorded")
        return value

    @model_validator(mode="after")
    def _identify(self) -> Self:
        # Written past __setattr__ so that what we fill does not count as set by the caller.
        if not self.started_at:
            self.__dict__["started_at"] = now_iso()
        if not self.run_id:
            self.__dict__["run_id"] = make_id("run", self.started_at, self.type)
        return self


class RunEvent(Record):
    """One step of a run; ``seq`` counts from 1 and ``ts`` is the recording time where they are left out."""

    seq: Count = 0
    ts: Time = ""
    type: Text = ""
    adapter: Text = ""
    action_id: Text = ""
    target: Text = ""
    status: Text = ""
    duration_ms: Count = 0
    detail: dict[str, Any] = Field(default_factory=dict)


class TraceEvent(Record):
    """One event of a recorded session; ``seq`` counts from 1 in each trace."""

    seq: Count = 0
    ts: Time = ""
    type: Text
    target: Text = ""
    result: Text = ""
    duration_ms: Count = 0
    detail: dict[str, Any] = Field(default_factory=dict)


class SessionTrace(Record):
    """A recorded session.

    ``event_count`` says how many events it has, of which ``events`` may hold the first
    ones only, or none in lists. ``audit_refs`` are the runs recorded meanwhile.
    """

    trace_id: Text = ""
    name: Text = ""
    classification: Text = ""
    started_at: Time = ""
    ended_at: Time | None = None
    user: Text = ""
    code_ref: Text = ""
    events: list[TraceEvent] = Field(default_factory=list)
    event_count: Count = 0
    auto_summary: Text = ""
    audit_refs: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _identify(self) -> Self:
        if not self.started_at:
            self.__dict__["started_at"] = now_iso()
        if not self.trace_id:
            self.__dict__["trace_id"] = make_id("trace", self.started_at)
        if not self.event_count:
            self.__dict__["event_count"] = len(self.events)
        return self


class MessageFlags(Record):
    """``publish``: may be rendered for everybody. ``encrypted``: the stored text is ``ENC:v1:...``."""

    publish: Flag = False
    encrypted: Flag = False


class ChatMessage(Record):
    """What somebody said about a run, in a thread, or both.

    ``user`` may stay empty: sending fills it with the git identity. ``flags.encrypted``
    alone says whether ``text`` is a ciphertext, whatever it looks like.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    id: Text = ""
    ts: Time = ""
    user: Text = ""
    text: Text = ""
    thread_id: Text | None = None
    run_id: Text | None = None
    source: Source = "manual"
    flags: MessageFlags = Field(default_factory=MessageFlags)

    @model_validator(mode="after")
    def _identify(self) -> Self:
        if not self.ts:
            self.__dict__["ts"] = now_iso()
        if not self.id:
            self.__dict__["id"] = make_id("msg", self.ts)
        return self


class Thread(Record):
    """A conversation with a title; ``anchor_run`` is the run that it is about, if any."""

    thread_id: Text = ""
    title: Text = ""
    created_at: Time = ""
    created_by: Text = ""
    anchor_run: Text | None = None
    tags: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _identify(self) -> Self:
        if not self.created_at:
            self.__dict__["created_at"] = now_iso()
        if not self.thread_id:
            self.__dict__["thread_id"] = make_id("thread", self.created_at)
        return self


class SearchHit(BaseModel):
    """A record that a search found. ``run_id`` and ``thread_id`` say what it is, or belongs to.

    ``title`` is a run's summary, a trace's name, a thread's title, or who wrote a message;
    ``snippet`` are the words around the match, ``time`` is when it started or was written.
    """

    kind: SearchKind
    id: str
    title: str
    snippet: str
    time: str
    user: str
    run_id: str | None = None
    thread_id: str | None = None
