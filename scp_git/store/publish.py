"""The verb that publishes messages, synchronous."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scp_git.git.snapshot import snapshot
from scp_git.models import ChatMessage
from scp_git.store.chat import ChatVerbs
from scp_git.store.ledger import LedgerVerbs

if TYPE_CHECKING:
    from scp_git.chat.publish import Place, PublishReport

_ALL = 2**62


class PublishVerbs(ChatVerbs, LedgerVerbs):
    """Publishing what may be published; otherwise as ``ChatVerbs`` and ``LedgerVerbs``."""

    def publish_chat(
        self, out: str | os.PathLike[str], *, title: str = "", base_url: str = ""
    ) -> PublishReport:
        """Make the folder ``out`` a web site and a JSON feed of the messages that may be published.

        Those are the messages with the flag ``publish`` that are not encrypted, with their threads and
        runs. What an earlier call published there and this one does not is removed. No key is used.

        Raises ``OutputRefused``, with nothing changed, if ``out`` is a symlink or holds files of
        others; ``ValueError`` for a ``base_url`` that is none; ``StorageFailed``.
        """
        from scp_git.chat.publish import Site, checked_base_url, runs_spoken_of
        from scp_git.chat.sitefolder import replace_site

        base_url = checked_base_url(base_url)
        with self._repository.odb() as odb:
            run_ids = runs_spoken_of(snapshot(self._repository, odb))
        threads = {thread.thread_id: thread for thread in self.list_threads()}
        runs = {run_id: run for run_id in sorted(run_ids) if (run := self.get_run(run_id))}
        said: dict[Place, list[ChatMessage]] = {}
        for thread_id in threads:
            said["thread", thread_id] = self._chat.newest(None, thread_id, n=_ALL, before=None)
        for run_id in runs:
            said["run", run_id] = self._chat.newest(run_id, None, n=_ALL, before=None)
        site = Site.build(said, threads, runs, title=title, base_url=base_url)
        replace_site(out, site.files())
        return site.report()
