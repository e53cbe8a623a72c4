"""The command line ``scp-git``: arguments, terminal and exit codes over the synchronous ``Store``.

``import scp_git.cli`` is cheap: click, rich, pydantic and pygit2 are imported when a command needs them.
"""

from scp_git.cli.entry import main

__all__ = ["main"]
