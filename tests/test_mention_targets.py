"""What mentions stand for: labels, existence, completion, and that nothing outside is ever asked about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pygit2
import pytest

import scp_git
from scp_git import Mention, NotARepository, Run, Store
from scp_git.chat.targets import MAX_RESOLVED
from scp_git.codec import dump_pretty
from scp_git.git.lookup import find_branch, is_branch_name
from scp_git.git.objects import hash_object
from scp_git.git.transaction import Transaction
from scp_git.ticket import Ticket

MakeRepo = Callable[..., Path]
THREAD = "thread_2026-02-17T204500_ab12"
TRACE = "trace_2026-02-17T204500_cd34"


class Put:
    """Files on the ledger branch, as another part of this library, or anybody, may have put them there."""

    size = 1024

    def __init__(self, files: dict[str, dict[str, Any] | bytes]) -> None:
        self.files = files

    def apply(self, tx: Transaction) -> None:
        for path, value in self.files.items():
            tx.ledger.put(path, value if isinstance(value, bytes) else dump_pretty(value))
        tx.subjects.append("test: files")


def put(store: Store, **files: Any) -> None:
    store._wait(
        Ticket(lambda: Put({path.replace("__", "/"): value for path, value in files.items()}), size=0)
    )


def put_files(store: Store, files: dict[str, dict[str, Any] | bytes]) -> None:
    store._wait(Ticket(lambda: Put(files), size=0))


def commit(
    root: Path, files: dict[str, bytes], message: str, author: str = "Ada Tester", at: int = 1_800_000_000
) -> str:
    repo = pygit2.Repository(root)
    index = pygit2.Index()
    index.read_tree(repo.head.peel(pygit2.Tree))
    for path, data in files.items():
        mode = pygit2.enums.FileMode.LINK if path.endswith(".link") else pygit2.enums.FileMode.BLOB
        index.add(pygit2.IndexEntry(path, repo.create_blob(data), mode))
    who = pygit2.Signature(author, f"{author.split()[0].lower()}@example.org", at, 0)
    tree = index.write_tree(repo)
    made = str(repo.create_commit("HEAD", who, who, message, tree, [repo.head.target]))
    repo.reset(repo.head.target, pygit2.enums.ResetMode.HARD)
    return made


def one(store: Store, text: str) -> Mention:
    (mention,) = store.resolve_mentions(text)
    return mention


def spelled(found: list[Mention]) -> list[str]:
    return [str(mention) for mention in found]


@pytest.fixture
def store(repo: Path) -> Store:
    store = Store.open(repo)
    store.record_run(
        Run(
            run_id="run_2026-02-17T204500_apply_ab12",
            type="apply",
            subtype="k8s:apply",
            summary="Applied 3\nresources",
            user="ada",
            started_at="2026-02-17T20:45:00Z",
        )
    )
    return store


# ---------------------------------------------------------------- resolving


def test_a_run_is_labelled_with_what_it_did(store: Store) -> None:
    found = one(store, "see @run:run_2026-02-17T204500_apply_ab12.")
    assert found.exists
    assert found.label == "k8s:apply: Applied 3 resources"
    assert found.detail == "ok, 2026-02-17 20:45, ada"
    assert not one(store, "@run:run_2026-02-17T204500_apply_ab13").exists
    store.delete_run("run_2026-02-17T204500_apply_ab12")
    gone = one(store, "@run:run_2026-02-17T204500_apply_ab12")
    assert (gone.exists, gone.label, gone.detail) == (False, "run_2026-02-17T204500_apply_ab12", "")


def test_threads_and_traces_are_labelled_with_their_names(store: Store) -> None:
    put_files(
        store,
        {
            f"chat/threads/{THREAD}/thread.json": {
                "thread_id": THREAD,
                "title": "Outage\x1b[2J\u202e of Monday",
                "created_at": "2026-02-17T20:45:00.000000+00:00",
                "created_by": "Ada",
            },
            f"ledger/traces/{TRACE}/trace.json": {
                "name": "Fix",
                "auto_summary": "2 git ops",
                "started_at": 5,
            },
            "chat/threads/broken/thread.json": b"{",
            "chat/threads/odd/thread.json": {"title": ["no"], "created_at": None},
        },
    )
    thread, trace = store.resolve_mentions(f"@thread:{THREAD} @trace:{TRACE}")
    assert (thread.label, thread.detail) == ("Outage [2J of Monday", "2026-02-17 20:45, Ada")
    assert (trace.label, trace.detail) == ("Fix", "2 git ops")
    assert not one(store, "@thread:broken").exists
    assert one(store, "@thread:odd").label == "odd"
    assert one(store, "@thread:general").label == "General"


def test_a_commit_is_found_by_its_digits_and_by_nothing_else(store: Store, repo: Path) -> None:
    made = commit(repo, {"a": b"1"}, "\n  Fix the thing \n\nbody")
    for digits in (made, made[:10], made[:7].upper()):
        found = one(store, f"@commit:{digits}")
        assert found.label == f"{made[:10]} Fix the thing"
        assert found.detail == "Ada Tester, 2027-01-15"
    blob = str(pygit2.Repository(repo).create_blob(b"1"))
    for typed in (
        "HEAD",
        "HEAD~1",
        "main",
        "@{-1}",
        ":/Fix",
        made[:3],
        made + "0",
        blob,
        "deadbeef",
        "v1^{}",
    ):
        assert not one(store, f'@commit:"{typed}"').exists, typed


def test_digits_that_fit_several_objects_name_none(store: Store, repo: Path) -> None:
    git = pygit2.Repository(repo)
    head = str(git.head.target)
    assert one(store, f"@commit:{head[:4]}").exists
    texts = (f"{number}".encode() for number in range(10**6))
    git.create_blob(next(text for text in texts if hash_object("blob", text).startswith(head[:4])))
    assert not one(store, f"@commit:{head[:4]}").exists
    assert one(store, f"@commit:{head[:8]}").exists


def test_a_branch_is_found_by_its_whole_name(store: Store, repo: Path) -> None:
    git = pygit2.Repository(repo)
    git.branches.local.create("fix/é-1", git.head.peel(pygit2.Commit))
    git.references.create("refs/remotes/origin/far", git.head.target)
    tip = str(git.head.target)[:10]
    for name in ("main", "fix/é-1", "origin/far"):
        found = one(store, f"@branch:{name}")
        assert (found.exists, found.label) == (True, name)
        assert found.detail.startswith(f"{tip}, commit 1, ")
    for name in (
        "far",
        "fix",
        "MAIN2",
        "HEAD",
        "refs/heads/main",
        "../../HEAD",
        "../tags/x",
        "main/..",
        "main.lock",
    ):
        assert not one(store, f"@branch:{name}").exists, name


@pytest.mark.parametrize(
    "name",
    [
        "../../HEAD",
        "/etc/passwd",
        "a//b",
        "a\0b",
        "a b",
        "x.lock",
        "x/.git",
        "-x",
        "a..b",
        "a@{1}",
        "é" * 200,
        "",
    ],
)
def test_a_name_that_no_branch_may_bear_is_not_looked_for(repo: Path, name: str) -> None:
    assert not is_branch_name(name)
    assert find_branch(Store.open(repo)._repository, name) is None


def test_a_file_is_one_of_heads_commit(store: Store, repo: Path) -> None:
    commit(
        repo, {"src/a b.py": b"1", "src/é.py": b"2", "out.link": b"/etc/passwd", "up.link": b".."}, "files"
    )
    found = one(store, '@file:"src/a b.py"#L10-L25')
    assert (found.exists, found.label, found.detail, found.lines) == (
        True,
        "src/a b.py",
        "file, lines 10-25",
        (10, 25),
    )
    assert one(store, "@file:src/é.py:7").detail == "file, line 7"
    assert one(store, "@file:src").detail == one(store, "@file:src/").detail == "folder"
    assert one(store, "@file:out.link").detail == "symlink"
    (repo / ".git/new.py").write_text("not committed")
    for path in (
        ".git/new.py",
        "src/x.py",
        "out.link/",
        "up.link/repo",
        "up.link/file.txt",
        ".git/HEAD",
        ".git",
    ):
        assert not one(store, f"@file:{path}").exists, path


@pytest.mark.parametrize(
    "path",
    "/etc/passwd ../repo/file.txt ./file.txt src/../file.txt .. . / // file.txt/ ~/x file.txt\\ C:/x"
    " file.txt/.. FILE.TXT * file.* :(top)file.txt .scp-ledger/FORMAT".split(),
)
def test_no_path_leads_out_of_the_repository(store: Store, repo: Path, path: str) -> None:
    assert one(store, "@file:file.txt").exists
    assert not one(store, str(Mention("file", path))).exists


@pytest.mark.untidy("files of the working tree are gone", skip=["status"])
def test_the_working_tree_is_not_looked_at(store: Store, repo: Path) -> None:
    commit(repo, {"sub/a": b"1"}, "x")
    (repo / "file.txt").unlink()
    (repo / "sub/a").unlink()
    (repo / "sub").rmdir()
    (repo / "sub").symlink_to("/etc")
    assert [each.exists for each in store.resolve_mentions("@file:file.txt @file:sub/a")] == [True, True]
    assert not one(store, "@file:sub/passwd").exists
    assert spelled(store.complete_mention("@file:sub/")) == ["@file:sub/a"]


def test_a_user_is_known_or_not(store: Store, repo: Path) -> None:
    commit(repo, {"a": b"1"}, "x", author="Zoë O'Hara")
    assert one(store, '@user:"zoë o\'hara"').label == "Zoë O'Hara"
    assert one(store, "@user:zoë@example.org").detail == "zoë@example.org, 2027-01-15"
    assert one(store, '@user:"Ada Tester"').exists
    assert not one(store, "@user:Nobody").exists
    assert not one(store, "@user:Ada").exists


def test_everything_works_before_the_first_commit_and_without_a_ledger(make_repo: MakeRepo) -> None:
    for root in (make_repo(commits=0), make_repo(bare=True)):
        store = Store.open(root)
        text = "@run:a @thread:b @trace:c @user:d @commit:abcd @branch:f @file:g"
        assert [mention.exists for mention in store.resolve_mentions(text)] == [False] * 7
        for kind in ("run", "thread", "trace", "commit", "branch", "file"):
            known = [str(found) for found in store.complete_mention(f"@{kind}:")]
            assert (
                known in ([], ["@thread:general"], ["@branch:main"], ["@file:file.txt"]) or kind == "commit"
            )
        assert spelled(store.complete_mention("@user:")) == ['@user:"Ada Tester"']
        assert not (root / ".scp-ledger").exists()


def test_so_many_are_looked_up_and_no_more(store: Store) -> None:
    text = " ".join(f"@branch:b{n}" for n in range(MAX_RESOLVED)) + " @branch:main"
    found = store.resolve_mentions(text)
    assert len(found) == MAX_RESOLVED + 1
    assert not found[-1].exists


@pytest.mark.untidy("an object was removed")
def test_a_damaged_repository_hides_nothing_else(store: Store, repo: Path) -> None:
    made = commit(repo, {"sub/a": b"1"}, "x")
    sub = str(pygit2.Repository(repo)[made].peel(pygit2.Tree)["sub"].id)
    (repo / ".git/objects" / sub[:2] / sub[2:]).unlink()
    found = store.resolve_mentions("@file:sub/a @file:file.txt @branch:main")
    assert [mention.exists for mention in found] == [False, True, True]


# ---------------------------------------------------------------- completing


def test_before_the_colon_kinds_are_completed(store: Store) -> None:
    assert spelled(store.complete_mention("@")) == [
        "@run:", "@thread:", "@trace:", "@user:", "@commit:", "@branch:", "@file:"
    ]  # fmt: skip
    assert spelled(store.complete_mention("@t")) == ["@thread:", "@trace:"]
    assert spelled(store.complete_mention("@T", n=1)) == ["@thread:"]
    assert all(found.detail for found in store.complete_mention("@"))
    for nothing in ("", "run", "@x", "@x:", "x@run:", "@:"):
        assert store.complete_mention(nothing) == []
    assert store.complete_mention("@", n=0) == store.complete_mention("@", n=-1) == []


def test_runs_are_completed_by_id_and_by_words_newest_first(store: Store) -> None:
    for hour in range(10, 15):
        store.record_run(
            Run(
                run_id=f"run_2026-02-18T{hour}0000_scan_aaaa",
                type="scan",
                summary=f"Found {hour} Problems",
                started_at=f"2026-02-18T{hour}:00:00Z",
            )
        )
    scans = [f"@run:run_2026-02-18T{hour}0000_scan_aaaa" for hour in range(14, 9, -1)]
    assert spelled(store.complete_mention("@run:"))[:-1] == scans
    assert spelled(store.complete_mention("@run:", n=2)) == scans[:2]
    assert spelled(store.complete_mention("@run:run_2026-02-18T1")) == scans
    assert spelled(store.complete_mention("@run:problems 12")) == [scans[2]]
    found = store.complete_mention("@run:apply")
    assert [(each.label, each.detail) for each in found] == [
        ("k8s:apply: Applied 3 resources", "ok, 2026-02-17 20:45, ada")
    ]


def test_threads_traces_and_users_are_completed_by_words(store: Store, repo: Path) -> None:
    put_files(
        store,
        {
            f"chat/threads/{THREAD}/thread.json": {"title": "Outage of Monday"},
            "chat/threads/thread_2027-01-01T000000_zz99/thread.json": {"title": "Plans"},
            f"ledger/traces/{TRACE}/trace.json": {"name": "Fix", "classification": "debugging"},
        },
    )
    assert spelled(store.complete_mention("@thread:")) == [
        "@thread:general",
        "@thread:thread_2027-01-01T000000_zz99",
        f"@thread:{THREAD}",
    ]
    assert spelled(store.complete_mention("@thread:monday")) == [f"@thread:{THREAD}"]
    assert spelled(store.complete_mention("@trace:debug")) == [f"@trace:{TRACE}"]
    commit(repo, {"a": b"1"}, "x", author="Jane Doe", at=1_800_000_000)
    commit(repo, {"a": b"2"}, "x", author="Zed", at=1_800_000_100)
    assert spelled(store.complete_mention("@user:"))[:3] == [
        '@user:"Ada Tester"',
        "@user:Zed",
        '@user:"Jane Doe"',
    ]
    for typed in ("@user:Ja", '@user:"Jane D', '@user:"Jane Doe"', "@user:doe"):
        assert spelled(store.complete_mention(typed)) == ['@user:"Jane Doe"']


def test_commits_and_branches_are_completed_newest_first(store: Store, repo: Path) -> None:
    first = commit(repo, {"a": b"1"}, "Add search", at=1_800_000_000)
    second = commit(repo, {"a": b"2"}, "Fix search", at=1_800_000_100)
    git = pygit2.Repository(repo)
    git.branches.local.create("old", git[first].peel(pygit2.Commit))
    assert spelled(store.complete_mention("@commit:"))[:2] == [
        f"@commit:{second[:10]}",
        f"@commit:{first[:10]}",
    ]
    assert spelled(store.complete_mention("@commit:search add")) == [f"@commit:{first[:10]}"]
    assert spelled(store.complete_mention(f"@commit:{first[:6]}")) == [f"@commit:{first[:10]}"]
    assert spelled(store.complete_mention("@branch:")) == ["@branch:main", "@branch:old"]
    assert spelled(store.complete_mention("@branch:ol")) == ["@branch:old"]


def test_files_are_completed_folder_by_folder_and_by_words(store: Store, repo: Path) -> None:
    commit(
        repo,
        {"src/app/main.py": b"1", "src/app/my view.py": b"1", "src/Main.txt": b"1", "mail.py": b"1"},
        "x",
    )
    assert spelled(store.complete_mention("@file:")) == ["@file:file.txt", "@file:mail.py", "@file:src/"]
    assert spelled(store.complete_mention("@file:src/")) == ["@file:src/Main.txt", "@file:src/app/"]
    assert spelled(store.complete_mention("@file:src/app/")) == [
        "@file:src/app/main.py",
        '@file:"src/app/my view.py"',
    ]
    assert spelled(store.complete_mention("@file:ma")) == [
        "@file:mail.py",
        "@file:src/Main.txt",
        "@file:src/app/main.py",
    ]
    for nothing in ("@file:nowhere/", "@file:../", "@file:/", "@file:../../etc/pass", "@file:.git/"):
        assert store.complete_mention(nothing) == []


def test_what_cannot_be_spelled_is_not_offered(store: Store, repo: Path) -> None:
    commit(repo, {"new\nline": b"1", "hidden\u202e": b"1", 'quo"te': b"1"}, "x")
    offered = spelled(store.complete_mention("@file:"))
    assert offered == ["@file:file.txt", '@file:"quo\\"te"']
    for text in offered:
        assert one(store, text).exists


def test_what_is_offered_resolves_to_the_same(store: Store, repo: Path) -> None:
    commit(repo, {"src/my view.py": b"1"}, "Fix: it", author='Jane "JD" Doe')
    for kind in ("run", "thread", "user", "commit", "branch", "file"):
        offered = store.complete_mention(f"@{kind}:")
        assert offered
        for mention in offered:
            assert store.resolve_mentions(f"see {mention}, please.") == [mention]


# ---------------------------------------------------------------- the module-level functions


async def test_the_functions_read_and_never_raise(store: Store, repo: Path, tmp_path: Path) -> None:
    assert [each.exists for each in await scp_git.resolve_mentions(repo, "@branch:main @branch:x")] == [
        True,
        False,
    ]
    assert spelled(await scp_git.complete_mention(repo, "@branch:", n=1)) == ["@branch:main"]
    with pytest.raises(NotARepository):
        Store.open(tmp_path / "none")
    assert await scp_git.resolve_mentions(tmp_path / "none", "@branch:main") == []
    assert await scp_git.complete_mention(tmp_path / "none", "@") == []
