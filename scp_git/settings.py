"""What a user may choose, with the defaults and the bounds; also read from git config ``scp.*``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scp_git.errors import ScpGitError


class Settings(BaseModel):
    """How one store behaves. Frozen.

    In git config a field is spelled without underscores, e.g. ``scp.lockTimeoutS``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    durability: Literal["full", "os"] = "full"
    """``full``: what was acknowledged survives power loss. ``os``: SIGKILL only, as no fsync is issued."""
    hot_max: int = Field(default=512, ge=0)
    """Beyond so many runs on the ledger branch, a write that adds one archives the oldest; 0: never."""
    hot_min: int = Field(default=256, ge=0)
    """So many runs stay on the ledger branch then. At most 64 more are moved than were added."""
    lock_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """How long a write waits for other processes before it is withdrawn with ``RepositoryBusy``."""
    network_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """How long push and pull wait for a remote that does not answer."""
    retry_timeout_s: float = Field(default=60.0, gt=0, le=3600)
    """How long a push that others keep overtaking is begun again."""
    import_helpers: int = Field(default=2, ge=0, le=64)
    """At most so many processes help with a long import; never more than there are cores beside the first."""
    max_batch: int = Field(default=1024, ge=1, le=100_000)
    """At most so many writes share one commit."""
    max_batch_bytes: int = Field(default=8 * 1024 * 1024, ge=1)
    """A commit takes no further write once it holds so many bytes."""
    queue_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    """Waiting writes may hold so many bytes; beyond that further ones are refused (``RepositoryBusy``)."""
    idle_s: float = Field(default=5.0, gt=0)
    """The writer thread ends after so many idle seconds; the next write starts it again."""

    @classmethod
    def from_config(cls, values: Mapping[str, str]) -> Settings:
        """Build from git config ``scp.*`` (keys lower-case, without section); unknown keys are ignored."""
        fields = {name.replace("_", ""): name for name in cls.model_fields}
        chosen = {fields[key]: value for key, value in values.items() if key in fields}
        try:
            return cls.model_validate(chosen)
        except ValidationError as exc:
            first = exc.errors()[0]
            raise InvalidSettings(str(first["loc"][0]), first["msg"]) from exc


class InvalidSettings(ScpGitError, ValueError):
    """A value in git config ``scp.*`` that cannot be used."""

    code = "invalid-settings"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"git config scp.{name.replace('_', '')}: {reason}")
        self.name = name
        self.reason = reason
