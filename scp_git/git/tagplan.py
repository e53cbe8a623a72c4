"""Which run tags another repository lacks, and which of them may go there.

A run tag pins a commit: whoever gets the tag gets the commit, and all that it stands
on. So a tag waits until its commit is known to be there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import pygit2
from pygit2.enums import RepositoryOpenFlag

from scp_git.git.anchors import State, find_run, read_record, run_tag
from scp_git.git.handle import Odb, Repository, translated
from scp_git.git.objects import TAG, Anchor, hash_object, tag_target
from scp_git.layout import DELETED, RUN_FILE, RUN_TAG_PREFIX, deleted_path, run_id_of_tag, run_tag_ref

_MANY = 200
"""So many tags are looked up in ``packed-refs``, which is read as a whole; fewer are read one by one."""
Present = Callable[[set[str]], set[str]]
"""Of these commits, those that the other repository is known to have."""


@dataclass(slots=True)
class TagPlan:
    """What is to be done to the other repository's run tags."""

    new: dict[str, str] = field(default_factory=dict)
    """Tags that it lacks and may have: run id to tag object."""
    replaced: dict[str, str] = field(default_factory=dict)
    """Tags that name another object there than their run's anchor gives."""
    removed: list[str] = field(default_factory=list)
    """Runs that were deleted and still have a tag there."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Tags whose commit it may not have: run id to commit."""


def plan_tags(
    repository: Repository, odb: Odb, state: State, advertised: Mapping[str, str], present: Present
) -> TagPlan:
    """Compare our run tags with the refs that the other repository advertises.

    Names are compared with names, so that one new tag among 100 000 costs little more
    than the two lists; only what is missing there is looked at.
    """
    plan = TagPlan()
    ours = repository.refs.list(RUN_TAG_PREFIX)
    missing = {}
    for ref, oid in ours.items():
        there = advertised.get(ref)
        run_id = run_id_of_tag(ref) if there != oid else None
        if run_id is None:
            continue
        if there is None:
            missing[run_id] = oid
        elif _anchored(state, run_id) == oid:
            plan.replaced[run_id] = oid
    targets = _targets(repository, odb, missing)
    there_now = present(set(targets.values()))
    for run_id, target in targets.items():
        if target not in there_now:
            plan.waiting[run_id] = target
        elif find_run(state, run_id) is not None:
            plan.new[run_id] = missing[run_id]
    plan.removed = _deleted(state, advertised, ours)
    return plan


def _anchored(state: State, run_id: str) -> str | None:
    """The tag object that the run's anchor gives."""
    found = find_run(state, run_id)
    record = read_record(found[0], f"{found[1]}/{RUN_FILE}") if found else None
    anchor = Anchor.parse(record.get("anchor")) if record else None
    try:
        return hash_object(TAG, run_tag(run_id, record, anchor)) if record and anchor else None
    except ValueError:
        return None


def _targets(repository: Repository, odb: Odb, tags: Mapping[str, str]) -> dict[str, str]:
    """The commit that each tag names. A tag of anything else is left out."""
    packed = {}
    if len(tags) >= _MANY:
        rows = repository.refs.packed().entries(RUN_TAG_PREFIX)
        packed = {oid: peeled for _, oid, peeled in rows if peeled}
    found = {}
    for run_id, oid in tags.items():
        target = packed.get(oid)
        if target is None:
            read = odb.read(oid, limit=64 * 1024 * 1024)
            target = tag_target(read[1]) if read and read[0] == TAG else None
        if target is not None:
            found[run_id] = target
    return found


def _deleted(state: State, advertised: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """Deleted runs that still have a tag there."""
    folder = f"{DELETED}/run"
    strangers = [ref for ref in advertised if ref.startswith(RUN_TAG_PREFIX) and ref not in ours]
    if not strangers or not state.archive.has_dir(folder):
        return []
    known = {id for shard in state.archive.names(folder) for id in state.archive.names(f"{folder}/{shard}")}
    found = [id for ref in strangers if (id := run_id_of_tag(ref)) in known]
    return sorted(id for id in found if id and state.archive.blob(deleted_path("run", id)))


def reachable(repository: Repository, commits: set[str], tips: Iterable[str]) -> set[str]:
    """Those of ``commits`` that are among ``tips`` that are here, or among their ancestors."""
    known = {oid for oid in tips if oid}
    found = commits & known
    rest = commits - found
    if not rest:
        return found
    with translated("looking for published commits"):
        repo = pygit2.Repository(str(repository.common_dir), RepositoryOpenFlag.NO_SEARCH)
        try:
            walker = repo.walk(None)
            here = [oid for oid in rest if _is_commit(repo, oid)]
            for oid in here:
                walker.push(oid)
            for oid in known:
                commit = _peeled(repo, oid)
                if commit is not None:
                    walker.hide(commit.id)
            apart = {str(commit.id) for commit in walker} if here else set()
        finally:
            repo.free()
    return found | (set(here) - apart)


def _is_commit(repo: pygit2.Repository, oid: str) -> bool:
    return isinstance(repo.get(oid), pygit2.Commit)


def _peeled(repo: pygit2.Repository, oid: str) -> pygit2.Commit | None:
    """The commit that an advertised object is or names, if it is here."""
    found = repo.get(oid)
    try:
        return found.peel(pygit2.Commit) if found is not None else None
    except (pygit2.GitError, ValueError):
        return None


def tag_refspecs(plan: TagPlan) -> list[str]:
    """What pushes a plan's new and replaced tags."""
    new = [f"{oid}:{run_tag_ref(run_id)}" for run_id, oid in sorted(plan.new.items())]
    return new + [f"+{oid}:{run_tag_ref(run_id)}" for run_id, oid in sorted(plan.replaced.items())]
