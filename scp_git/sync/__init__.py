"""Push and pull that cannot conflict, cannot lose, and need no person."""

from __future__ import annotations

from scp_git.sync.engine import CHAT, EVERYTHING, LEDGER, Syncer
from scp_git.sync.report import Counts, RefResult, RefState, Skipped, SyncReport, SyncStatus, WaitingTag
from scp_git.sync.status import sync_status

__all__ = [
    "CHAT",
    "EVERYTHING",
    "LEDGER",
    "Counts",
    "RefResult",
    "RefState",
    "Skipped",
    "SyncReport",
    "SyncStatus",
    "Syncer",
    "WaitingTag",
    "sync_status",
]
