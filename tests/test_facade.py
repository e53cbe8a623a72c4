"""``Store``, ``AsyncStore`` and the module say the same, and what they say is the contract."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import scp_git
from scp_git import AsyncStore, Run, Settings, Store, TrackedRun, open_store

# Names, order and defaults are the contract (DESIGN.md 2.1).
MODULE = {
    "ensure_ledger": "(project_root)",
    "record_run": "(project_root, run, events=None)",
    "track_run": "(project_root, type, *, subtype='', user='', environment='', summary='', metadata=None)",
    "list_runs": "(project_root, *, n=20, before=None, type=None, status=None, user=None, environment=None,"
    " since=None, until=None)",
    "get_run": "(project_root, run_id)",
    "get_run_events": "(project_root, run_id)",
    "delete_run": "(project_root, run_id)",
    "prune_runs": "(project_root, *, older_than_days)",
    "maintain": "(project_root, *, tags=False)",
    "import_runs": "(project_root, runs, *, strict=False, on_progress=None)",
    "archive_runs": "(project_root, *, older_than_days, drop_tags=False)",
    "push_ledger": "(project_root, *, remote='origin')",
    "pull_ledger": "(project_root, *, remote='origin')",
    "push_chat": "(project_root, *, remote='origin')",
    "pull_chat": "(project_root, *, remote='origin')",
    "resolve_mentions": "(project_root, text)",
    "complete_mention": "(project_root, prefix, *, n=20)",
    "publish_chat": "(project_root, out, *, title='', base_url='')",
    "search": "(project_root, query, *, kinds=None, n=20)",
    "stats": "(project_root)",
    "flush": "(project_root=None)",
    "changes": "(project_root, *, since=None, follow=True)",
    "change_token": "(project_root)",
    "start_recording": "(project_root, *, name='', classification='', user='', types=())",
    "stop_recording": "(trace_id)",
    "active_recordings": "(project_root)",
    "recover_recordings": "(project_root)",
    "record": "(project_root, *, name='', classification='', user='', types=(), post=False, thread_id=None)",
    "save_trace": "(project_root, trace, *, post=False, thread_id=None)",
    "get_trace": "(project_root, trace_id)",
    "list_traces": "(project_root, *, n=20)",
    "iter_trace_events": "(project_root, trace_id)",
    "delete_trace": "(project_root, trace_id)",
    "send_message": "(project_root, text, *, user='', thread_id=None, run_id=None, publish=False,"
    " encrypt=False, source='manual')",
    "list_messages": "(project_root, *, run_id=None, thread_id=None, n=50, before=None)",
    "create_thread": "(project_root, title, *, user='', anchor_run=None, tags=None)",
    "list_threads": "(project_root)",
    "delete_message": "(project_root, message_id, *, run_id=None, thread_id=None)",
    "delete_thread": "(project_root, thread_id)",
    "set_message_flags": "(project_root, message_id, *, publish, run_id=None, thread_id=None)",
}
VERBS = [name for name in MODULE if name not in ("push_ledger", "pull_ledger", "push_chat", "pull_chat")]
RETURNS = {
    "ensure_ledger": "Path | None",
    "record_run": "str",
    "list_runs": "list[Run]",
    "get_run": "Run | None",
    "get_run_events": "list[dict[str, Any]]",
    "delete_run": "bool",
    "prune_runs": "int",
    "import_runs": "ImportReport",
    "maintain": "Maintenance",
    "archive_runs": "int",
    "push_ledger": "bool",
    "pull_ledger": "bool",
    "push_chat": "bool",
    "pull_chat": "bool",
    "resolve_mentions": "list[Mention]",
    "complete_mention": "list[Mention]",
    "publish_chat": "PublishReport",
    "search": "list[SearchHit]",
    "stats": "LedgerStats",
    "flush": "None",
    "changes": "AsyncIterator[Change]",
    "change_token": "str",
    "start_recording": "str",
    "stop_recording": "SessionTrace",
    "active_recordings": "list[SessionTrace]",
    "recover_recordings": "list[SessionTrace]",
    "save_trace": "None",
    "get_trace": "SessionTrace | None",
    "list_traces": "list[SessionTrace]",
    "iter_trace_events": "AsyncIterator[TraceEvent]",
    "delete_trace": "bool",
    "send_message": "ChatMessage",
    "list_messages": "list[ChatMessage]",
    "create_thread": "Thread",
    "list_threads": "list[Thread]",
    "delete_message": "bool",
    "delete_thread": "bool",
    "set_message_flags": "ChatMessage",
}
CONTEXTS = ("track_run", "record")
"""They give a context manager, so they are no coroutine functions."""
STREAMS = ("iter_trace_events", "changes")
"""They give an iterator: a plain one of ``Store``, async ones elsewhere."""
PLAIN = {"generate_summary": "(trace)", "suggest_classification": "(trace)", "trace_to_otlp": "(trace)"}
"""They look at nothing but their arguments: the same function for everybody."""


def parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    """The parameters without annotations, and without ``self``."""
    found = inspect.signature(function).parameters.values()
    return [each.replace(annotation=inspect.Parameter.empty) for each in found if each.name != "self"]


def spelled(function: Callable[..., object]) -> str:
    return str(inspect.Signature(parameters(function)))


def without_root(signature: str) -> str:
    return re.sub(r"^\(project_root(=None)?(, )?", "(", signature)


@pytest.mark.parametrize("name", MODULE)
def test_a_module_level_function_is_the_contracts(name: str) -> None:
    function = getattr(scp_git, name)
    assert spelled(function) == MODULE[name]
    assert name in scp_git.__all__
    if name in CONTEXTS:
        given = (".", "x") if name == "track_run" else (".",)
        assert isinstance(function(*given), AbstractAsyncContextManager)
    else:
        assert inspect.iscoroutinefunction(function) == (name not in STREAMS)
        assert inspect.signature(function).return_annotation == RETURNS[name]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_function_is_the_contracts(name: str) -> None:
    assert spelled(getattr(scp_git, name)) == PLAIN[name]
    assert name in scp_git.__all__
    assert not inspect.iscoroutinefunction(getattr(scp_git, name))


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize("kind", [Store, AsyncStore])
def test_a_method_is_the_function_without_its_root(kind: type, name: str) -> None:
    method = getattr(kind, name)
    assert spelled(method) == without_root(MODULE[name])
    assert inspect.iscoroutinefunction(method) == (kind is AsyncStore and name not in (*CONTEXTS, *STREAMS))
    if name not in CONTEXTS:
        expected = RETURNS[name].replace("AsyncIterator", "Iterator" if kind is Store else "AsyncIterator")
        assert inspect.signature(method).return_annotation == expected


@pytest.mark.parametrize("name", VERBS)
def test_annotations_agree_in_all_faces(name: str) -> None:
    def annotations(function: Callable[..., object]) -> dict[str, Any]:
        found = inspect.signature(function).parameters
        return {key: each.annotation for key, each in found.items() if key not in ("self", "project_root")}

    assert annotations(getattr(Store, name)) == annotations(getattr(AsyncStore, name))
    assert annotations(getattr(Store, name)) == annotations(getattr(scp_git, name))


def test_async_store_has_every_verb_of_store_and_no_other() -> None:
    def verbs(kind: type) -> set[str]:
        public = {name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))}
        return {name for name in public if name in scp_git.__all__}

    assert verbs(Store) == verbs(AsyncStore) == set(VERBS)


def test_stores_are_opened_alike() -> None:
    assert spelled(Store.open) == spelled(open_store) == "(root, settings=None)"
    assert isinstance(open_store("."), AbstractAsyncContextManager)


def test_a_store_is_a_context_manager_that_needs_no_closing(repo: Path) -> None:
    with Store.open(repo) as store:
        assert isinstance(store.track_run("x"), AbstractContextManager)
        assert isinstance(AsyncStore(store).track_run("x"), AbstractAsyncContextManager)
    assert store.record_run(Run(run_id="r", type="x")) == "r"
    store.close()
    assert store.delete_run("r")
    assert store.root == AsyncStore(store).root == repo


def test_settings_are_the_contracts() -> None:
    settings = Settings()
    contract = {
        "durability": "full",
        "hot_max": 512,
        "hot_min": 256,
        "lock_timeout_s": 30,
        "network_timeout_s": 30,
    }
    assert {name: getattr(settings, name) for name in contract} == contract
    with pytest.raises(ValueError, match="frozen"):
        settings.hot_max = 1
    for wrong in ({"durability": "none"}, {"lock_timeout_s": 0}, {"hot_max": -1}, {"unheard_of": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings(**wrong)  # type: ignore[arg-type]


def test_a_tracked_run_has_what_the_contract_names() -> None:
    run = TrackedRun("x")
    assert {"run_id", "status", "summary", "metadata", "modules_affected"} <= vars(run).keys()
    assert str(inspect.signature(run.event)).startswith("(type: 'str', **fields:")


def test_everything_public_is_there_and_named_once() -> None:
    assert len(set(scp_git.__all__)) == len(scp_git.__all__)
    assert {name for name in scp_git.__all__ if getattr(scp_git, name, None) is None} == set()
    assert set(scp_git.__all__) <= set(dir(scp_git))
    with pytest.raises(AttributeError, match="nothing"):
        _ = scp_git.nothing
