"""Operational history kept in git: runs, chat about them, and recorded sessions.

The names below are the public interface. They are loaded on first use, so that
``import scp_git`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from scp_git import chat
    from scp_git.aio import AsyncStore, open_store
    from scp_git.api.archive import archive_runs, import_runs, maintain
    from scp_git.api.chat import (
        create_thread,
        delete_message,
        delete_thread,
        list_messages,
        list_threads,
        send_message,
        set_message_flags,
    )
    from scp_git.api.core import flush
    from scp_git.api.feed import change_token, changes
    from scp_git.api.ledger import (
        delete_run,
        ensure_ledger,
        get_run,
        get_run_events,
        list_runs,
        prune_runs,
        record_run,
        track_run,
    )
    from scp_git.api.mentions import complete_mention, resolve_mentions
    from scp_git.api.publish import publish_chat
    from scp_git.api.search import search, stats
    from scp_git.api.sync import pull_chat, pull_ledger, push_chat, push_ledger
    from scp_git.api.traces import (
        active_recordings,
        delete_trace,
        get_trace,
        iter_trace_events,
        list_traces,
        record,
        recover_recordings,
        save_trace,
        start_recording,
        stop_recording,
    )
    from scp_git.broadcast import Bus, bus
    from scp_git.chat.mentions import Mention
    from scp_git.chat.publish import PublishReport
    from scp_git.errors import (
        AlreadyExists,
        AuthFailed,
        DecryptFailed,
        InvalidId,
        KeyMissing,
        NotAllowed,
        NotARepository,
        NotFound,
        OutputRefused,
        RecordTooLarge,
        RemoteError,
        RepositoryBusy,
        ScpGitError,
        StorageFailed,
        TransferCancelled,
        UnsupportedRepository,
    )
    from scp_git.events import Event
    from scp_git.feed import Change
    from scp_git.git.credentials import Credentials
    from scp_git.git.maintenance import Maintenance
    from scp_git.git.transfer import Progress
    from scp_git.index.stats import LedgerStats, Room
    from scp_git.ledger.importing import ImportReport, Rejected
    from scp_git.ledger.tracking import TrackedRun
    from scp_git.models import (
        ChatMessage,
        MessageFlags,
        Run,
        RunEvent,
        SearchHit,
        SessionTrace,
        Thread,
        TraceEvent,
    )
    from scp_git.settings import InvalidSettings, Settings
    from scp_git.store import Store
    from scp_git.sync import Counts, RefResult, RefState, Skipped, SyncReport, SyncStatus, WaitingTag
    from scp_git.trace.export import trace_to_otlp
    from scp_git.trace.session import RecordedSession
    from scp_git.trace.summary import Suggestion, generate_summary, suggest_classification

_HOMES = {
    "scp_git.aio": ("AsyncStore", "open_store"),
    "scp_git.api.archive": ("archive_runs", "import_runs", "maintain"),
    "scp_git.api.chat": (
        "create_thread",
        "delete_message",
        "delete_thread",
        "list_messages",
        "list_threads",
        "send_message",
        "set_message_flags",
    ),
    "scp_git.api.core": ("flush",),
    "scp_git.api.feed": ("change_token", "changes"),
    "scp_git.api.ledger": (
        "delete_run",
        "ensure_ledger",
        "get_run",
        "get_run_events",
        "list_runs",
        "prune_runs",
        "record_run",
        "track_run",
    ),
    "scp_git.api.search": ("search", "stats"),
    "scp_git.api.sync": ("pull_chat", "pull_ledger", "push_chat", "push_ledger"),
    "scp_git.api.traces": (
        "active_recordings",
        "delete_trace",
        "get_trace",
        "iter_trace_events",
        "list_traces",
        "record",
        "recover_recordings",
        "save_trace",
        "start_recording",
        "stop_recording",
    ),
    "scp_git.api.mentions": ("complete_mention", "resolve_mentions"),
    "scp_git.api.publish": ("publish_chat",),
    "scp_git.broadcast": ("Bus", "bus"),
    "scp_git.chat.mentions": ("Mention",),
    "scp_git.chat.publish": ("PublishReport",),
    "scp_git.errors": (
        "AlreadyExists",
        "AuthFailed",
        "DecryptFailed",
        "InvalidId",
        "KeyMissing",
        "NotARepository",
        "NotAllowed",
        "NotFound",
        "OutputRefused",
        "RecordTooLarge",
        "RemoteError",
        "RepositoryBusy",
        "ScpGitError",
        "StorageFailed",
        "TransferCancelled",
        "UnsupportedRepository",
    ),
    "scp_git.events": ("Event",),
    "scp_git.feed": ("Change",),
    "scp_git.git.credentials": ("Credentials",),
    "scp_git.git.transfer": ("Progress",),
    "scp_git.git.maintenance": ("Maintenance",),
    "scp_git.ledger.importing": ("ImportReport", "Rejected"),
    "scp_git.index.stats": ("LedgerStats", "Room"),
    "scp_git.ledger.tracking": ("TrackedRun",),
    "scp_git.models": (
        "ChatMessage",
        "MessageFlags",
        "Run",
        "RunEvent",
        "SearchHit",
        "SessionTrace",
        "Thread",
        "TraceEvent",
    ),
    "scp_git.settings": ("InvalidSettings", "Settings"),
    "scp_git.store": ("Store",),
    "scp_git.trace.export": ("trace_to_otlp",),
    "scp_git.sync": ("Counts", "RefResult", "RefState", "Skipped", "SyncReport", "SyncStatus", "WaitingTag"),
    "scp_git.trace.session": ("RecordedSession",),
    "scp_git.trace.summary": ("Suggestion", "generate_summary", "suggest_classification"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AlreadyExists",
    "AsyncStore",
    "AuthFailed",
    "Bus",
    "Change",
    "ChatMessage",
    "Counts",
    "Credentials",
    "DecryptFailed",
    "Event",
    "ImportReport",
    "InvalidId",
    "InvalidSettings",
    "KeyMissing",
    "LedgerStats",
    "Maintenance",
    "Mention",
    "MessageFlags",
    "NotARepository",
    "NotAllowed",
    "NotFound",
    "OutputRefused",
    "Progress",
    "PublishReport",
    "RecordTooLarge",
    "RecordedSession",
    "RefResult",
    "RefState",
    "Rejected",
    "RemoteError",
    "RepositoryBusy",
    "Room",
    "Run",
    "RunEvent",
    "ScpGitError",
    "SearchHit",
    "SessionTrace",
    "Settings",
    "Skipped",
    "StorageFailed",
    "Store",
    "Suggestion",
    "SyncReport",
    "SyncStatus",
    "Thread",
    "TraceEvent",
    "TrackedRun",
    "TransferCancelled",
    "UnsupportedRepository",
    "WaitingTag",
    "__version__",
    "active_recordings",
    "archive_runs",
    "bus",
    "change_token",
    "changes",
    "chat",
    "complete_mention",
    "create_thread",
    "delete_message",
    "delete_run",
    "delete_thread",
    "delete_trace",
    "ensure_ledger",
    "flush",
    "generate_summary",
    "get_run",
    "get_run_events",
    "get_trace",
    "import_runs",
    "iter_trace_events",
    "list_messages",
    "list_runs",
    "list_threads",
    "list_traces",
    "maintain",
    "open_store",
    "prune_runs",
    "publish_chat",
    "pull_chat",
    "pull_ledger",
    "push_chat",
    "push_ledger",
    "record",
    "record_run",
    "recover_recordings",
    "resolve_mentions",
    "save_trace",
    "search",
    "send_message",
    "set_message_flags",
    "start_recording",
    "stats",
    "stop_recording",
    "suggest_classification",
    "trace_to_otlp",
    "track_run",
]


def __getattr__(name: str) -> Any:
    """Load a public name, or the package ``chat``, on first use (PEP 562)."""
    if name == "chat":
        return import_module("scp_git.chat")
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
