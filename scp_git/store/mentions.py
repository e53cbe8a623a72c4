"""The verbs for mentions, synchronous."""

from __future__ import annotations

from scp_git.chat.mentions import Mention
from scp_git.chat.targets import MentionReader
from scp_git.store.core import StoreCore


class MentionVerbs(StoreCore):
    """What a message speaks of: runs, threads, traces, users, commits, branches and files."""

    def resolve_mentions(self, text: str) -> list[Mention]:
        """The different mentions in ``text`` in their order, with label, detail and whether each exists.

        Files are those of HEAD's commit. Beyond 200 nothing is looked up any more.
        """
        return MentionReader(self._repository).resolve(text)

    def complete_mention(self, prefix: str, *, n: int = 20) -> list[Mention]:
        """What ``prefix``, from its ``@`` on, may become: at most ``n``, the newest first.

        Before the colon these are the kinds; after it the things whose id begins with what was
        typed, or whose label and detail hold all its words. ``str`` gives the spelling of each.
        """
        return MentionReader(self._repository).complete(prefix, n)
