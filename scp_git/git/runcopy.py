"""One side's copy of a run, as a merge looks at it."""

from __future__ import annotations

from scp_git.codec import JsonObject, dump_pretty, tag_message
from scp_git.git.anchors import run_tag
from scp_git.git.lines import parse_line
from scp_git.git.objects import BLOB, TAG, Anchor, hash_object
from scp_git.layout import RUN_FILE, is_run_file


class RunCopy:
    """Its files by name, what its run.json says, and the tags that it had."""

    def __init__(self, run_id: str, files: dict[str, bytes], *, archived: bool, ours: bool) -> None:
        self.run_id = run_id
        self.files = files
        self.archived = archived
        self.ours = ours
        self.raw: bytes | None = None
        """The tree entry of its folder, where that can be taken over as it is."""
        record = parse_line(files.get(RUN_FILE, b""))
        sound = all(isinstance(record.get(name), str) for name in ("run_id", "type", "started_at"))
        self.record: JsonObject = record if sound else {}
        """Empty where run.json is missing or damaged: then this is no run of its own."""
        try:
            self.message = tag_message(self.record)
        except ValueError:
            self.message = ""
        self.started_at = str(self.record.get("started_at", "~"))
        own = self.tag_id()
        self.tags: set[str] = {own} if own else set()

    def renamed(self, run_id: str) -> RunCopy:
        """The same run under another id; its present tag is one that it had."""
        files = {**self.files, RUN_FILE: dump_pretty({**self.record, "run_id": run_id})}
        copy = RunCopy(run_id, files, archived=self.archived, ours=self.ours)
        copy.tags |= self.tags
        return copy

    def others(self) -> list[str]:
        """The names of its files but run.json and events."""
        return [name for name in self.files if not is_run_file(name)]

    def tag_id(self) -> str | None:
        """The id of the tag object that its anchor gives."""
        anchor = Anchor.parse(self.record.get("anchor"))
        try:
            return hash_object(TAG, run_tag(self.run_id, self.record, anchor)) if anchor else None
        except ValueError:
            return None

    def order(self) -> tuple[str, str]:
        """Of two runs with one id the smaller keeps it."""
        return self.started_at, self.message

    def rank(self) -> tuple[bool, bool, str, str, str]:
        """Sound before damaged, with an anchor before without, then the smaller anchor, the smaller blob id.

        Of two anchors not that with the smaller tag: the tag's id changes when the run
        gets another id, so the order of merges would decide.
        """
        anchor = Anchor.parse(self.record.get("anchor")) or _NO_ANCHOR
        blob = hash_object(BLOB, self.files.get(RUN_FILE, b""))
        return not self.record, anchor is _NO_ANCHOR, anchor.target, anchor.tagger, blob


_NO_ANCHOR = Anchor("", "")


def other_id(run_id: str, digest: str) -> str:
    """The id of a run that had to give up its own: a function of what it says."""
    return f"{run_id[:119]}-{digest[:8]}"
