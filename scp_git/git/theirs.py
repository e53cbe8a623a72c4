"""What the other side of a merge has that ours lacks, or has with other content."""

from __future__ import annotations

from collections.abc import Iterator

from scp_git.git.tree import Tree, TreeEditor, decode_name, is_dir, raw_oid


def differing(mine: TreeEditor, their: TreeEditor, root: str) -> Iterator[tuple[str, bytes]]:
    """Files of theirs that ours has not, or has with other content; equal subtrees are skipped."""
    theirs = their.folder(root)
    if theirs is None:
        return
    ours = mine.folder(root)
    for name, raw in list(theirs.raw_items().items()):
        if ours is not None and _same(ours, name, raw):
            continue
        path = f"{root}/{decode_name(name)}" if root else decode_name(name)
        if is_dir(raw):
            yield from differing(mine, their, path)
        else:
            yield path, raw


def differing_dirs(mine: TreeEditor, their: TreeEditor, root: str) -> list[str]:
    theirs, ours = their.folder(root), mine.folder(root)
    if theirs is None:
        return []
    return [
        f"{root}/{decode_name(name)}"
        for name, raw in theirs.raw_items().items()
        if is_dir(raw) and (ours is None or not _same(ours, name, raw))
    ]


def _same(ours: Tree, name: bytes, raw: bytes) -> bool:
    """Whether our entry equals theirs; an opened subtree of ours may have changed."""
    child = ours.children.get(name)
    return child.oid == raw_oid(raw) if child is not None else ours.raw(name) == raw
