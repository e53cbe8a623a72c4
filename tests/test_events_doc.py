"""What docs/events.md shows is run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from scp_git import Bus, Store
from scp_git.events import Event
from scp_git.feed import Change

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "events.md").read_text()
BUS, CHANGES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


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


def test_the_page_names_every_field_and_the_capacity() -> None:
    for name in (*Event._fields, *Change.__slots__):
        assert f"`{name}`" in PAGE
    assert f"the last {Bus().capacity:,} events".replace(",", " ") in PAGE
