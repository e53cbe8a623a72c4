"""What a merge did, for those who make the tags and tell the user."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class MergeReport:
    """What a merge did beyond taking things over."""

    runs: set[str] = field(default_factory=set)
    """Runs that came in, changed or went; their tags may be missing, or must be replaced or removed."""
    replaced_tags: dict[str, str] = field(default_factory=dict)
    """Tag object ids that no anchor gives any more, and the run they belonged to."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Runs that shared an id with another run: new id to old id."""
    gone_tags: set[str] = field(default_factory=set)
    """Tag object ids of runs that a deletion took."""
    refused: list[str] = field(default_factory=list)
    """Paths that were not taken over: symlinks, submodules, bad names, bad ids."""

    def add(self, other: MergeReport) -> None:
        """Take over what another merge did."""
        self.runs |= other.runs
        self.replaced_tags |= other.replaced_tags
        self.renamed |= other.renamed
        self.gone_tags |= other.gone_tags
        self.refused += other.refused
