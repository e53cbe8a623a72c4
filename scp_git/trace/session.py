"""A block that is recorded: what ``record`` yields."""

from __future__ import annotations

from scp_git.models import SessionTrace
from scp_git.trace.recording import Recording


class RecordedSession:
    """The session in progress; whether it is to be posted may be decided until its end.

    ``trace`` is ``None`` until it is saved; its events lie in the ledger then.
    """

    def __init__(
        self,
        made: SessionTrace,
        recording: Recording | None = None,
        *,
        post: bool = False,
        thread_id: str | None = None,
    ) -> None:
        self.trace_id = made.trace_id
        self.name = made.name
        self.post = post
        self.thread_id = thread_id
        self.trace: SessionTrace | None = None
        self.recording = recording
        """``None`` where nothing could be recorded."""
