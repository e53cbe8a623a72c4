"""What docs/tracing.md shows is run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import scp_git
from scp_git import Store

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "tracing.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_examples_run_as_they_stand(repo: Path) -> None:
    said = []
    for block in BLOCKS:
        environment = os.environ | {"PYTHONPATH": str(Path(scp_git.__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=repo, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert len(said) == 2
    second, first = Store.open(repo).list_traces()
    assert said[0] == (
        f"{first.auto_summary}\nTrace recorded: deploy [deployment] @trace:{first.trace_id}\n"
        f"{first.auto_summary}\n"
    )
    assert first.auto_summary.startswith("2 events: 1 k8s, 1 vault; 1 ok; ")
    assert (second.name, second.classification) == ("debugging", "debugging")


def test_the_numbers_on_the_page_are_those_of_the_code() -> None:
    from scp_git.trace import encoding, operations, queries, recorder, recording

    spelled = re.sub(r"(?<=\d) (?=\d{3})", "", PAGE)
    limits = (
        encoding.DETAIL_LIMIT,
        encoding.TEXT_LIMIT,
        recording.RUNS_MAX,
        queries.EVENTS_LIMIT,
        recorder._KEPT_MAX,
    )
    assert [number for number in limits if str(number) not in spelled] == []
    assert recording.BUFFER_BYTES + recorder._PENDING_BYTES == 64 * 1024 * 1024
    assert operations.MAX_PART_BYTES == 4 * 1024 * 1024
