"""The verb that publishes messages, synchronous."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scp_git.git.snapshot import snapshot
from scp_git.ledger.queries import stored_run
from scp_git.models import ChatMessage, Run
from scp_git.store.chat import ChatVerbs

if TYPE_CHECKING:
    from scp_git.chat.publish import Place, PublishReport


class PublishVerbs(ChatVerbs):
    """Publishing what may be published; otherwise as ``ChatVerbs``."""

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
        threads = {thread.thread_id: thread for thread in self.list_threads()}
        runs: dict[str, Run] = {}
        said: dict[Place, list[ChatMessage]] = {}
        with self._repository.odb() as odb:
            state = snapshot(self._repository, odb)
            for thread_id in threads:
                said["thread", thread_id] = self._chat.everything(state, None, thread_id)
            for run_id in sorted(runs_spoken_of(state)):
                run = stored_run(state, run_id)
                if run is not None:
                    runs[run_id] = run
                    said["run", run_id] = self._chat.everything(state, run_id, None)
        site = Site.build(said, threads, runs, title=title, base_url=base_url)
        replace_site(out, site.files())
        return site.report()
