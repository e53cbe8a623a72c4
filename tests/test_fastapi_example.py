"""The application of docs/fastapi.md, run as it stands under uvicorn: nothing acknowledged is ever lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pygit2
import pytest

import scp_git
from scp_git import Run, Store

PAGE = Path(__file__).parents[1] / "docs" / "fastapi.md"
SOURCES = Path(scp_git.__file__).parents[1]
WAIT_S = 20.0


# ---- the server


class Server:
    """A uvicorn process that serves the example; ``log`` holds what it said."""

    def __init__(self, folder: Path, root: Path, *options: str) -> None:
        (folder / "app.py").write_text(example())
        self._said = folder / "server.log"
        environment = os.environ | {"PROJECT_ROOT": str(root), "PYTHONPATH": f"{folder}{os.pathsep}{SOURCES}"}
        command = [sys.executable, "-m", "uvicorn", "app:app", "--port", "0", *options]
        with self._said.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        self.url = self._wait_for_url()

    @property
    def log(self) -> str:
        return self._said.read_text()

    def _wait_for_url(self) -> str:
        wait_until(lambda: "running on" in self.log and "startup complete" in self.log, self._why_not)
        found = re.search(r"running on (http://\S+)", self.log)
        assert found
        return found[1]

    def _why_not(self) -> str:
        return f"uvicorn did not start:\n{self.log}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=WAIT_S)

    def stop(self) -> None:
        """SIGTERM, then wait; the way out must be clean."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(WAIT_S)
        assert "Traceback" not in self.log.partition("Shutting down")[2], self.log

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def example() -> str:
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1, "the page has one complete example"
    return blocks[0]


def wait_until(holds: Callable[[], bool], why: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, why()
        time.sleep(0.02)


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path, repo: Path) -> Iterator[Start]:
    """Starts servers that do not outlive the test."""
    servers: list[Server] = []

    def serve(*options: str, at: Path = repo) -> Server:
        folder = tmp_path / f"server-{len(servers)}"
        folder.mkdir()
        servers.append(Server(folder, at, *options))
        return servers[-1]

    yield serve
    for server in servers:
        server.kill()


# ---- what must hold afterwards


def stored(root: Path) -> list[Run]:
    with Store.open(root) as store:
        return store.list_runs(n=10_000)


def assert_nothing_lost(root: Path, acknowledged: list[str]) -> list[Run]:
    """Every acknowledged run is there once, with its tag. (What stock git says is asked after every test.)"""
    runs = stored(root)
    seen = Counter(run.run_id for run in runs)
    assert set(seen.values()) <= {1}
    assert len(set(acknowledged)) == len(acknowledged)
    assert set(acknowledged) <= set(seen)
    tags = pygit2.Repository(root).references
    assert {f"refs/tags/scp/run/{run_id}" for run_id in seen} == {
        x for x in tags if x.startswith("refs/tags/scp/run/")
    }
    return runs


def deployment(service: str, **more: Any) -> dict[str, Any]:
    return {"service": service, "version": "1.4.2", **more}


def post(client: httpx.Client, body: dict[str, Any]) -> str:
    answer = client.post("/deployments", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["run_id"])


WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


# ---- tests


@WORKERS
def test_normal_requests_are_recorded_once(start: Start, repo: Path, workers: str) -> None:
    server = start("--workers", workers)
    with server.client() as client, ThreadPoolExecutor(16) as pool:
        acknowledged = list(pool.map(lambda n: post(client, deployment(f"service-{n}")), range(60)))
        ci = [
            client.post("/webhooks/ci", json={"pipeline": f"p{n}", "steps": ["build", "test"]})
            for n in range(5)
        ]
        assert [answer.status_code for answer in ci] == [201] * 5
        acknowledged += [answer.json()["run_id"] for answer in ci]
    server.stop()
    runs = assert_nothing_lost(repo, acknowledged)
    assert Counter(run.type for run in runs) == {"deploy": 60, "ci": 5}
    one = next(run for run in runs if run.subtype == "service-7")
    assert (one.status, one.summary) == ("ok", "service-7 1.4.2: 3 pods")
    assert one.duration_ms >= 50


def test_lists_and_single_runs_are_served(start: Start, repo: Path) -> None:
    server = start()
    with server.client() as client:
        made = [post(client, deployment(f"service-{n}", takes_s=0)) for n in range(5)]
        newest = client.get("/runs", params={"limit": 2}).json()
        assert [run["run_id"] for run in newest] == made[:-3:-1]
        older = client.get("/runs", params={"limit": 10, "before": made[3], "type": "deploy"}).json()
        assert [run["run_id"] for run in older] == made[2::-1]
        one = client.get(f"/runs/{made[0]}").json()
        assert one["run"]["subtype"] == "service-0"
        assert [(event["seq"], event["type"]) for event in one["events"]] == [(1, "rollout:done")]
        assert client.get("/runs/run_of_nobody").status_code == 404
        assert client.get("/runs/..lock").status_code == 404
    server.stop()
    assert_nothing_lost(repo, made)


@WORKERS
def test_remarks_about_a_run_are_there_once(start: Start, repo: Path, workers: str) -> None:
    server = start("--workers", workers)
    with server.client() as client, ThreadPoolExecutor(16) as pool:
        run_id = post(client, deployment("api", takes_s=0))
        place = f"/runs/{run_id}/messages"
        answers = list(
            pool.map(lambda n: client.post(place, json={"text": f"{n}", "user": "Bob"}), range(40))
        )
        assert [answer.status_code for answer in answers] == [201] * 40
        sent = [answer.json() for answer in answers]
        pages = client.get(place, params={"limit": 25}).json()
        pages += client.get(place, params={"limit": 25, "before": pages[-1]["id"]}).json()
        assert sorted(pages, key=lambda said: said["ts"], reverse=True) == pages
        assert sorted(said["id"] for said in pages) == sorted(said["id"] for said in sent)
        assert client.post("/runs/run_of_nobody/messages", json={"text": "x"}).status_code == 404
        assert client.post("/runs/..lock/messages", json={"text": "x"}).status_code == 422
        assert client.post(place, content=b'{"text": "\\ud800"}').status_code == 422
        assert client.get("/runs/run_of_nobody/messages").json() == []
    server.stop()
    assert len(Store.open(repo).list_messages(run_id=run_id, n=100)) == 40


@WORKERS
def test_a_handler_that_raises_leaves_a_failed_run(start: Start, repo: Path, workers: str) -> None:
    server = start("--workers", workers)
    with server.client() as client:
        good = post(client, deployment("api"))
        assert client.post("/deployments", json=deployment("web") | {"version": "broken"}).status_code == 500
    server.process.terminate()
    server.process.wait(WAIT_S)
    runs = {run.subtype: run for run in assert_nothing_lost(repo, [good])}
    assert {name: run.status for name, run in runs.items()} == {"api": "ok", "web": "failed"}
    assert "web did not become ready" in runs["web"].summary


@WORKERS
def test_runs_of_clients_that_left_are_recorded_once(start: Start, repo: Path, workers: str) -> None:
    server = start("--workers", workers)

    def impatient(number: int) -> bool:
        with httpx.Client(base_url=server.url, timeout=httpx.Timeout(WAIT_S, read=0.1)) as client:
            try:
                client.post("/deployments", json=deployment(f"left-{number}", takes_s=0.4))
            except httpx.ReadTimeout:
                return True
            return False

    with server.client() as client, ThreadPoolExecutor(12) as pool:
        leaving = [pool.submit(impatient, number) for number in range(10)]
        acknowledged = [post(client, deployment(f"stayed-{number}")) for number in range(10)]
        assert all(future.result() for future in leaving)
    server.stop()
    runs = assert_nothing_lost(repo, acknowledged)
    expected = [f"left-{n}" for n in range(10)] + [f"stayed-{n}" for n in range(10)]
    assert Counter(run.subtype for run in runs) == Counter(expected)


@WORKERS
def test_sigterm_loses_nothing_that_is_in_flight(start: Start, repo: Path, workers: str) -> None:
    server = start("--workers", workers)

    def attempt(number: int) -> tuple[str, str]:
        """The id from the answer, or an empty one when the server was gone."""
        with httpx.Client(base_url=server.url, timeout=WAIT_S) as client:
            try:
                if number % 3 == 2:
                    return "report", str(client.post("/reports").json()["run_id"])
                return "deploy", post(client, deployment(f"flight-{number}", takes_s=0.5))
            except httpx.TransportError:
                return "deploy", ""

    with ThreadPoolExecutor(24) as pool:
        flights = [pool.submit(attempt, number) for number in range(24)]
        wait_until(lambda: any(flight.done() for flight in flights), lambda: server.log)
        time.sleep(0.2)
        server.stop()
        answers = [flight.result() for flight in flights]
    acknowledged = [run_id for _, run_id in answers if run_id]
    assert Counter(kind for kind, run_id in answers if run_id)["deploy"] >= 1
    runs = assert_nothing_lost(repo, acknowledged)
    assert {run.status for run in runs} == {"ok"}


def test_requests_cut_by_the_graceful_timeout_are_recorded_as_cancelled(start: Start, repo: Path) -> None:
    server = start("--timeout-graceful-shutdown", "1")
    with ThreadPoolExecutor(1) as pool, server.client() as client:
        cut = pool.submit(client.post, "/deployments", json=deployment("slow", takes_s=60))
        quick = post(client, deployment("quick"))
        server.process.terminate()
        server.process.wait(WAIT_S)
        failed = cut.exception() is not None or cut.result().status_code == 500
    assert failed
    runs = {run.subtype: run for run in assert_nothing_lost(repo, [quick])}
    assert (runs["slow"].status, runs["slow"].summary) == ("failed", "cancelled")


def test_a_killed_worker_loses_no_acknowledged_run(start: Start, repo: Path) -> None:
    server = start()
    with server.client() as client:
        acknowledged = [post(client, deployment(f"service-{n}", takes_s=0)) for n in range(10)]
        server.kill()
    server = start()
    with server.client() as client:
        acknowledged.append(post(client, deployment("after", takes_s=0)))
    server.stop()
    assert len(assert_nothing_lost(repo, acknowledged)) == 11


def test_both_workers_write(start: Start, repo: Path) -> None:
    server = start("--workers", "2")
    acknowledged: list[str] = []

    def fresh_connection(number: int) -> str:
        with server.client() as client:
            return post(client, deployment(f"service-{number}", takes_s=0.01))

    def workers_seen() -> set[int]:
        with ThreadPoolExecutor(8) as pool:
            acknowledged.extend(pool.map(fresh_connection, range(8)))
        return {run.metadata["worker"] for run in stored(repo)}

    wait_until(lambda: len(workers_seen()) == 2, lambda: "one of the two workers served everything")
    server.stop()
    assert len(assert_nothing_lost(repo, acknowledged)) == len(acknowledged)


def test_work_goes_on_without_a_ledger(start: Start, tmp_path: Path) -> None:
    nowhere = tmp_path / "no repository"
    nowhere.mkdir()
    server = start(at=nowhere)
    with server.client() as client:
        assert post(client, deployment("api")).startswith("run_")
        assert client.post("/webhooks/ci", json={"pipeline": "p"}).status_code == 503
        assert client.get("/runs").json() == []
        assert client.get("/runs/run_of_nobody").status_code == 404
        assert client.post("/runs/r/messages", json={"text": "x"}).status_code == 503
    assert "not-a-repository" in server.log
    server.stop()
    assert list(nowhere.iterdir()) == []
