"""What was committed, by whichever process or clone, told record by record: git is the log."""

from __future__ import annotations

from scp_git.feed.following import LOOK_EVERY_S, Feed, present_token
from scp_git.feed.records import Change
from scp_git.feed.tokens import check_token

__all__ = ["LOOK_EVERY_S", "Change", "Feed", "check_token", "present_token"]
