"""What README and docs say is run, or at least looked up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scp_git import Store

TOP = Path(__file__).resolve().parent.parent
PAGES = sorted([TOP / "README.md", *TOP.glob("docs/**/*.md")])


def test_the_example_of_the_readme_runs_as_it_stands(repo: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (TOP / "README.md").read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=repo, capture_output=True, text=True, check=True, timeout=30
    )
    (run,) = Store.open(repo).list_runs()
    assert done.stdout.split("\n")[0] == f"{run.run_id} ok Applied 3 resources"
    assert (run.type, run.subtype) == ("apply", "k8s:apply")
    assert Store.open(repo).get_run_events(run.run_id)[0]["adapter"] == "shell"


def test_the_example_of_the_page_about_chat_runs_as_it_stands(repo: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (TOP / "docs/chat.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=repo, capture_output=True, text=True, check=True, timeout=30
    )
    store = Store.open(repo)
    assert [line.split(" ", 3)[3][:6] for line in done.stdout.splitlines()] == ["Done: ", "Health"]
    assert [thread.title for thread in store.list_threads()] == ["Roll-out of 1.4", "General"]
    assert [message.text for message in store.list_messages()] == ["Good morning"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_test_that_the_guarantees_name_exists() -> None:
    named = set(re.findall(r"`(test_\w+\.py)`", (TOP / "docs" / "guarantees.md").read_text()))
    assert len(named) > 5
    assert {name for name in named if not (TOP / "tests" / name).exists()} == set()
