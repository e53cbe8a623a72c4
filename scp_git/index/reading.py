"""Reading objects for an index: what cannot be read just now must not be remembered as not being there."""

from __future__ import annotations

from scp_git.errors import StorageFailed
from scp_git.git.handle import Odb
from scp_git.git.objects import Kind, ObjectStore
from scp_git.index.database import Unusable


class WholeStore(ObjectStore):
    """Objects of which each must be there; else the index is left as it is, with ``Unusable``.

    Other readers pass over what is missing. They look again the next time, an index does not.
    """

    def __init__(self, odb: Odb) -> None:
        super().__init__(odb)
        self._odb = odb

    def find(self, oid: str, kind: Kind, *, limit: int | None = None) -> bytes | None:
        try:
            found = self._odb.read(oid, limit=limit)
        except StorageFailed as exc:
            if limit is not None and self._odb.size(oid) > limit:
                raise  # it is too large for good
            raise Unusable(str(exc)) from exc
        if found is None:
            raise Unusable(f"the object {oid[:10]} is missing")
        return found[1] if found[0] == kind else None
