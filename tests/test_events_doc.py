"""What docs/events.md shows is run as it stands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest

import scp_git
from scp_git import Bus, Run, Store
from scp_git.events import Event
from scp_git.feed import Change

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "events.md").read_text()
BUS, CHANGES, WEB = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(example: str, repo: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=repo, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_example_of_the_bus_runs(repo: Path) -> None:
    said = run(BUS, repo)
    (recorded,) = Store.open(repo).list_runs()
    assert said == f"ledger:run {recorded.run_id} 3 resources\n"


def test_the_example_of_changes_runs(repo: Path) -> None:
    said = run(CHANGES, repo)
    (recorded,) = Store.open(repo).list_runs()
    assert said == f"0 run added {recorded.run_id}\n"


async def test_the_example_of_a_web_page_runs(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes back with the last id gets what was committed meanwhile."""
    monkeypatch.chdir(repo)
    names: dict[str, Any] = {}
    exec(WEB, names)
    token = await scp_git.change_token(repo)
    run_id = await scp_git.record_run(repo, Run(type="deploy"))
    response = await names["live"](token)
    assert response.media_type == "text/event-stream"
    async with aclosing(response.body_iterator) as lines:
        with anyio.fail_after(10):
            first, data, *_ = (await anext(lines)).split("\n")
    assert json.loads(data.removeprefix("data: "))["id"] == run_id
    assert (await scp_git.change_token(repo)) == first.removeprefix("id: ")
    with pytest.raises(names["HTTPException"], match="not a token"):
        await names["live"]("nonsense")


def test_the_page_names_every_field_and_the_capacity() -> None:
    for name in (*Event._fields, *Change.__slots__):
        assert f"`{name}`" in PAGE
    assert f"the last {Bus().capacity:,} events".replace(",", " ") in PAGE
