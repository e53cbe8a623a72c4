"""The synchronous library: one repository, all verbs, thread-safe.

Writes are handed to the repository's writer thread and waited for; reads open the
objects in the calling thread. Errors are raised; absence is a value.
"""

from __future__ import annotations

from scp_git.store.archive import ArchiveVerbs
from scp_git.store.feed import FeedVerbs
from scp_git.store.mentions import MentionVerbs
from scp_git.store.publish import PublishVerbs
from scp_git.store.recordings import RecordingVerbs
from scp_git.store.search import SearchVerbs
from scp_git.store.sync import SyncVerbs


class Store(
    ArchiveVerbs,
    FeedVerbs,
    MentionVerbs,
    PublishVerbs,
    RecordingVerbs,
    SearchVerbs,
    SyncVerbs,
):
    """One repository's ledger, opened with ``Store.open``. It needs no closing; a ``with`` block flushes."""
