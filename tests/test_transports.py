"""Remotes over real servers: every transport, every refusal, every way to hang, and no secret anywhere."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pygit2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scp_git
from scp_git import Counts, Run, SessionTrace, Store, bus
from scp_git.errors import AuthFailed, RemoteError, TransferCancelled
from scp_git.git.credentials import Credentials, keys, passwords
from scp_git.git.handle import Repository
from scp_git.git.known_hosts import is_known
from scp_git.git.remote import Remote
from scp_git.git.transfer import Progress
from scp_git.git.urls import parse_url, resolve_remote
from scp_git.git.wording import explain, harmless
from scp_git.layout import LEDGER_REF, run_tag_ref
from tests import servers
from tests.servers import PASSWORD, USER, Server

PROJECT = Path(__file__).resolve().parents[1]
CANARY = "canary-5e1f0b"
MAIN = "refs/heads/main"
HERE = "refs/scp/remotes/origin/heads/main"


def remote(url: str, root: Path, *, timeout_s: float = 10, **options: object) -> Remote:
    git_dir = Repository.open(root).common_dir
    return Remote(url, name="origin", git_dir=git_dir, timeout_s=timeout_s, **options)  # type: ignore[arg-type]


def tip(root: Path, ref: str = MAIN) -> str | None:
    return Repository.open(root).refs.read(ref)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[Server]:
    with servers.git_daemon(folder / "daemon") as server:
        yield server


@pytest.fixture(scope="module")
def sshd(folder: Path) -> Iterator[Server]:
    with servers.ssh_server(folder / "ssh") as server:
        yield server


@pytest.fixture(scope="module")
def http(folder: Path) -> Iterator[Server]:
    with servers.http_server(folder / "http") as server:
        yield server


@pytest.fixture(scope="module")
def https(folder: Path) -> Iterator[Server]:
    with servers.http_server(folder / "https", tls=True) as server:
        yield server


KINDS = [
    pytest.param("daemon", marks=pytest.mark.system("git")),
    pytest.param("sshd", marks=pytest.mark.system("git", "sshd")),
    pytest.param("http", marks=pytest.mark.system("git", "nginx", "fcgiwrap")),
    pytest.param("https", marks=pytest.mark.system("git", "nginx", "fcgiwrap")),
]


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Each kind of server in turn, with all that is needed to be let in."""
    found: Server = request.getfixturevalue(request.param)
    _let_in(found, home, monkeypatch)
    return found


def _let_in(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if server.host_key:
        servers.trust_host(server, home)
    if server.base.startswith("http"):
        monkeypatch.setenv("SCP_GIT_USERNAME", USER)
        monkeypatch.setenv("SCP_GIT_TOKEN", PASSWORD)
    if server.ca_file:
        monkeypatch.setenv("GIT_SSL_CAINFO", str(server.ca_file))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository name that no other test of the module uses."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)


# ---------------------------------------------------------------- every transport


def test_what_is_pushed_is_listed_and_fetched(
    server: Server, name: str, make_repo: Callable[..., Path], watch: Callable[[Path], Path]
) -> None:
    watch(server.repository(name))
    one, other = make_repo(commits=3), make_repo()
    seen: list[Progress] = []
    sender = remote(server.url(name), one, on_progress=seen.append)
    assert sender.refs() == {}
    assert sender.push([f"{MAIN}:{MAIN}", f"{MAIN}:refs/tags/light"]) == {MAIN: None, "refs/tags/light": None}
    assert sender.refs() == {MAIN: tip(one), "refs/tags/light": tip(one)}
    assert sender.push([f"{MAIN}:{MAIN}"]) == {MAIN: None}
    assert sender.push([":refs/tags/light"]) == {"refs/tags/light": None}
    sent = max(seen, key=lambda progress: progress.bytes)
    assert (sent.sending, sent.objects, sent.total_objects) == (True, 9, 9)
    assert sent.bytes > 100

    (other / ".git/FETCH_HEAD").write_text("the user's own\n")
    received: list[Progress] = []
    remote(server.url(name), other, on_progress=received.append).fetch([f"+{MAIN}:{HERE}"])
    assert tip(other, HERE) == tip(one)
    assert (received[-1].sending, received[-1].objects, received[-1].total_objects) == (False, 6, 6)
    assert received[-1].bytes > 100
    assert (other / ".git/FETCH_HEAD").read_text() == "the user's own\n"


@pytest.mark.system("git", "strace")
@pytest.mark.parametrize("durable", [True, False])
def test_what_was_fetched_survives_a_power_cut(
    daemon: Server, name: str, make_repo: Callable[..., Path], tmp_path: Path, durable: bool
) -> None:
    """Acknowledged means durable: our branches will lead to these objects."""
    daemon.repository(name)
    one, other = make_repo(commits=3), make_repo()
    remote(daemon.url(name), one).push([f"{MAIN}:{MAIN}"])
    script = (
        "import sys; from pathlib import Path; from scp_git.git.remote import Remote\n"
        "Remote(sys.argv[1], name='origin', git_dir=Path(sys.argv[2]), timeout_s=10,"
        f" durable={durable}).fetch([sys.argv[3]])"
    )
    trace = tmp_path / "trace"
    strace = [
        "strace",
        "-f",
        "-qq",
        "-y",
        "-e",
        "trace=fsync",
        "-o",
        str(trace),
        sys.executable,
        "-c",
        script,
    ]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    subprocess.run(
        [*strace, daemon.url(name), str(other / ".git"), f"+{MAIN}:{HERE}"], check=True, env=environment
    )
    synced = [line.partition("<")[2].partition(">")[0] for line in trace.read_text().splitlines()]
    kinds = sorted(Path(path).suffix or Path(path).name for path in synced)
    assert kinds == ([".idx", ".pack", "pack"] if durable else [])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("left", ["", "torn", "1" * 40 + "\n", "{tip}\n"])
def test_what_a_power_cut_left_of_a_fetch_is_forgotten(
    daemon: Server,
    name: str,
    make_repo: Callable[..., Path],
    left: str,
    packed: bool,
    git: Callable[..., str],
) -> None:
    there = daemon.repository(name)
    one, other = make_repo(), make_repo()
    for root in (one, other):
        pygit2.Repository(root).remotes.create("origin", daemon.url(name))
    Store.open(one).record_run(Run(run_id="r1", type="x"))
    Store.open(one).push()
    ref = f"refs/scp/remotes/origin/{LEDGER_REF.removeprefix('refs/')}"
    text = left.format(tip=tip(there, LEDGER_REF))
    if packed and len(text) > 40:
        (other / ".git/packed-refs").write_text(
            f"# pack-refs with: peeled fully-peeled sorted \n{text[:40]} {ref}\n"
        )
    (other / ".git" / ref).parent.mkdir(parents=True)
    (other / ".git" / ref).write_text(text)
    assert Store.open(other).pull().received.runs == 1
    assert tip(other, ref) == tip(there, LEDGER_REF)
    assert git(other, "for-each-ref", ref).split()[0] == tip(there, LEDGER_REF)


@pytest.mark.parametrize("spelling", ["{}", "file://{}", "relative"])
@pytest.mark.parametrize("bare", [True, False])
def test_a_path_is_a_remote(make_repo: Callable[..., Path], spelling: str, bare: bool) -> None:
    here, there = make_repo(), make_repo(commits=2, bare=bare)
    url = os.path.relpath(there, here) if spelling == "relative" else spelling.format(there)
    pygit2.Repository(here).config["remote.origin.url"] = url
    found = resolve_remote(Repository.open(here), "origin")
    assert found is not None
    connected = remote(found.url, here)
    assert connected.path == there
    assert connected.refs() == {MAIN: tip(there)}
    connected.fetch([f"+{MAIN}:{HERE}"])
    assert tip(here, HERE) == tip(there)


def test_no_tag_follows_nothing_is_pruned(
    daemon: Server, name: str, repo: Path, git: Callable[..., str]
) -> None:
    there = daemon.repository(name)
    git(repo, "tag", "-a", "-m", "x", "private")
    assert remote(daemon.url(name), repo).push([f"{MAIN}:{MAIN}"]) == {MAIN: None}
    assert git(there, "tag", "-l") == ""

    git(repo, "config", "fetch.prune", "true")
    git(there, "tag", "-a", "-m", "x", "theirs", "main")
    git(repo, "update-ref", "refs/scp/remotes/origin/heads/gone", "HEAD")
    remote(daemon.url(name), repo).fetch([f"+{MAIN}:{HERE}", "+refs/heads/*:refs/scp/remotes/origin/heads/*"])
    assert tip(repo, "refs/scp/remotes/origin/heads/gone")
    assert git(repo, "tag", "-l") == "private\n"


def test_odd_and_peeled_names_are_not_listed(
    daemon: Server, name: str, repo: Path, git: Callable[..., str]
) -> None:
    there = daemon.repository(name)
    remote(daemon.url(name), repo).push([f"{MAIN}:{MAIN}"])
    git(there, "tag", "-a", "-m", "x", "v1", "main")
    packed = f"# pack-refs with: peeled fully-peeled sorted \n{tip(repo)} ".encode()
    (there / "packed-refs").write_bytes(packed + b"refs/heads/caf\xe9\n")
    listed = remote(daemon.url(name), repo).refs()
    assert sorted(listed) == [MAIN, "refs/tags/v1"]


# ---------------------------------------------------------------- as a whole


@pytest.fixture(params=[*KINDS, "path", "file"])
def served(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> tuple[str, Path]:
    """The URL of an empty repository behind each kind of server, and where it lies."""
    if request.param in ("path", "file"):
        there = servers.make_bare(tmp_path / "there.git")
        return (str(there) if request.param == "path" else f"file://{there}"), there
    server: Server = request.getfixturevalue(request.param)
    _let_in(server, request.getfixturevalue("home"), request.getfixturevalue("monkeypatch"))
    return server.url(name), server.repository(name)


def test_runs_chat_and_traces_go_there_and_come_back(
    served: tuple[str, Path], make_repo: Callable[..., Path], watch: Callable[[Path], Path]
) -> None:
    """Issue SYNC, point 4: every transport, as a whole."""
    url, there = served
    watch(there)
    one, other = make_repo(), make_repo()
    for root in (one, other):
        pygit2.Repository(root).remotes.create("origin", url)
    remote(url, one).push([f"{MAIN}:{MAIN}"])
    sender, receiver = Store.open(one), Store.open(other)
    sender.record_run(Run(run_id="r1", type="x"), [{"type": "step"}])
    said = sender.send_message("done", run_id="r1")
    thread = sender.create_thread("Release")
    sender.send_message("and here", thread_id=thread.thread_id)
    sender.save_trace(SessionTrace(trace_id="t1", name="session", events=[{"seq": 1, "type": "x"}]))
    sent = sender.push()
    assert sent.in_step and not sent.waiting
    assert sent.sent == Counts(runs=1, messages=2, traces=1)
    assert receiver.pull().received == Counts(runs=1, messages=2, traces=1)
    assert receiver.get_run_events("r1")[0]["type"] == "step"
    assert [message.id for message in receiver.list_messages(run_id="r1")] == [said.id]
    assert [found.title for found in receiver.list_threads() if found.thread_id == thread.thread_id]
    assert receiver.get_trace("t1") is not None
    assert tip(other, run_tag_ref("r1")) == tip(one, run_tag_ref("r1")) == tip(there, run_tag_ref("r1"))
    receiver.delete_run("r1")
    assert receiver.sync().in_step and sender.sync().in_step
    assert sender.get_run("r1") is None and tip(there, run_tag_ref("r1")) is None
    state = sender.sync_status(fetch=True)
    assert state is not None and state.in_step and not state.ahead and not state.behind


@pytest.mark.system("git", "nginx", "fcgiwrap")
async def test_no_secret_reaches_a_log_an_event_or_a_terminal(
    http: Server,
    name: str,
    home: Path,
    repo: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Issue SYNC, point 4: canaries in every place where secrets may stand."""
    http.repository(name)
    place = http.base.removeprefix("http://")
    monkeypatch.setenv("SCP_GIT_TOKEN", f"{CANARY}-token")
    (home / ".netrc").write_text(f"machine 127.0.0.1 login {USER} password {CANARY}-netrc\n")
    (home / ".git-credentials").write_text(f"http://{USER}:{CANARY}-store@{place}\n")
    git_config = pygit2.Repository(repo).config
    git_config["credential.helper"] = f"!f() {{ echo username={USER}; echo password={CANARY}-helper; }}; f"
    git_config["remote.origin.url"] = f"http://{USER}:{CANARY}-url@{place}{name}.git?key={CANARY}-query"
    git_config["remote.gone.url"] = f"http://{USER}:{CANARY}-url@127.0.0.1:{servers.free_port()}/x"
    store = Store.open(repo)
    store.record_run(Run(run_id="r1", type="x"))
    told: list[object] = []
    caplog.set_level(logging.DEBUG)
    with bus.attach(told.append):
        for where in ("origin", "gone"):
            assert not await scp_git.push_ledger(repo, remote=where)
            assert not await scp_git.pull_chat(repo, remote=where)
    shown = [repr(told), caplog.text, repr(store.sync_status())]
    command = [sys.executable, "-m", "scp_git.cli", "push"]
    done = subprocess.run(
        command, cwd=repo, env={**os.environ, "PYTHONPATH": str(PROJECT)}, capture_output=True
    )
    shown.append(f"{done.stdout!r} {done.stderr!r}")
    assert (
        b"did not accept the credentials from the URL, SCP_GIT_TOKEN, ~/.git-credentials, ~/.netrc"
        in done.stderr
    )
    assert len(told) == 4 and caplog.text
    assert [text for text in shown if CANARY in text] == []


# ---------------------------------------------------------------- who is let in


def let_in(server: Server, name: str, root: Path, **options: object) -> None:
    """The remote can be used; its repository is made if need be."""
    if not (server.folder / f"{name}.git").exists():
        server.repository(name)
    assert remote(server.url(name), root, **options).push([f"{MAIN}:{MAIN}"]) == {MAIN: None}


def kept_out(server: Server, name: str, root: Path, error: type[RemoteError], **options: object) -> str:
    """The remote cannot be used; returns why, which holds no secret."""
    if not (server.folder / f"{name}.git").exists():
        server.repository(name)
    with pytest.raises(RemoteError) as caught:
        remote(server.url(name), root, **options).push([f"{MAIN}:{MAIN}"])
    assert type(caught.value) is error
    for secret in (CANARY, PASSWORD):
        assert secret not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    return str(caught.value)


SSH = pytest.mark.system("git", "sshd")
NGINX = pytest.mark.system("git", "nginx", "fcgiwrap")


@SSH
def test_an_unknown_host_key_is_refused_and_what_to_do_said(
    sshd: Server, name: str, home: Path, repo: Path
) -> None:
    servers.trust_host(sshd, home)
    (home / ".ssh/known_hosts").unlink()
    said = kept_out(sshd, name, repo, RemoteError)
    assert "not in known_hosts" in said
    assert f"ssh-keyscan -p {sshd.port} 127.0.0.1" in said


@SSH
@pytest.mark.parametrize("hashed", [False, True])
def test_a_changed_host_key_is_refused_and_what_to_do_said(
    sshd: Server, name: str, home: Path, repo: Path, hashed: bool
) -> None:
    servers.trust_host(sshd, home)
    place, kind, _ = sshd.host_key.split()
    other = servers.make_ssh_key(home / "other").split()[1]
    (home / ".ssh/known_hosts").write_text(f"{hash_of(place) if hashed else place} {kind} {other}\n")
    said = kept_out(sshd, name, repo, RemoteError)
    assert "other than the one in known_hosts" in said
    assert f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'" in said


@SSH
def test_a_hashed_known_host_is_known(sshd: Server, name: str, home: Path, repo: Path) -> None:
    servers.trust_host(sshd, home)
    place, key = sshd.host_key.split(" ", 1)
    (home / ".ssh/known_hosts").write_text(f"{hash_of(place)} {key}")
    let_in(sshd, name, repo)


def hash_of(place: str) -> str:
    salt = b"salt of twenty bytes"
    digest = hmac.new(salt, place.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


@SSH
def test_a_key_is_taken_from_where_the_user_says(
    sshd: Server, name: str, home: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.trust_host(sshd, home)
    (home / ".ssh/id_ed25519").rename(home / "elsewhere")
    said = kept_out(sshd, name, repo, AuthFailed)
    assert "wants a key and there is none; add your key to the ssh agent" in said
    servers.make_ssh_key(home / ".ssh/id_ecdsa")
    assert "did not accept the credentials from ~/.ssh/id_ecdsa" in kept_out(sshd, name, repo, AuthFailed)
    let_in(sshd, name, repo, credentials=Credentials(ssh_key=home / "elsewhere", agent=False))
    monkeypatch.setenv("SCP_GIT_SSH_KEY", "~/elsewhere")
    let_in(sshd, name, repo)


@pytest.mark.system("git", "sshd", "ssh-keygen")
def test_a_key_with_a_passphrase(sshd: Server, name: str, home: Path, repo: Path) -> None:
    servers.trust_host(sshd, home)
    change = ["ssh-keygen", "-q", "-p", "-P", "", "-N", CANARY, "-f", str(home / ".ssh/id_ed25519")]
    subprocess.run(change, check=True, capture_output=True)
    assert "there is none" in kept_out(sshd, name, repo, AuthFailed)
    let_in(sshd, name, repo, credentials=Credentials(ssh_passphrase=CANARY, agent=False))


@pytest.mark.system("git", "sshd", "ssh-agent", "ssh-add")
def test_a_key_of_the_agent(
    sshd: Server, name: str, home: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.trust_host(sshd, home)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(home / "agent"))
    with servers.ssh_agent(home / "agent", home / ".ssh/id_ed25519"):
        (home / ".ssh/id_ed25519").unlink()
        let_in(sshd, name, repo)
    said = kept_out(sshd, f"{name}2", repo, AuthFailed)
    assert "the ssh agent" in said


@NGINX
def test_a_password_is_found_wherever_git_users_keep_it(
    http: Server, name: str, home: Path, make_repo: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo()
    assert "wants a user name and a password and there is none" in kept_out(http, name, repo, AuthFailed)

    let_in(http, name, repo, credentials=Credentials(ask=lambda url: (USER, PASSWORD)))
    let_in(http, name, repo, credentials=Credentials(username=USER, token=PASSWORD))
    place = http.base.removeprefix("http://").removesuffix("/")
    (home / ".git-credentials").write_text(
        f"not a url\nhttp://x:{CANARY}@other\nhttp://{USER}:{PASSWORD}@{place}\n"
    )
    let_in(http, name, repo)
    (home / ".git-credentials").unlink()
    (home / ".netrc").write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    let_in(http, name, repo)
    (home / ".netrc").unlink()

    helper = f"!f() {{ echo username={USER}; echo password={PASSWORD}; }}; f"
    pygit2.Repository(repo).config["credential.helper"] = helper
    let_in(http, name, repo)
    assert "there is none" in kept_out(http, name, repo, AuthFailed, credentials=Credentials(helper=False))
    pygit2.Repository(repo).config["credential.helper"] = "!exit 1"
    assert "there is none" in kept_out(http, name, repo, AuthFailed)
    monkeypatch.setenv("SCP_GIT_USERNAME", USER)
    monkeypatch.setenv("SCP_GIT_TOKEN", PASSWORD)
    let_in(http, name, repo)


@NGINX
def test_each_source_is_tried_once_and_the_next_one_may_fit(
    http: Server, name: str, home: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(url: str) -> tuple[str, str]:
        asked.append(url)
        return USER, CANARY

    monkeypatch.setenv("SCP_GIT_TOKEN", f"{CANARY}-2")
    (home / ".netrc").write_text(f"machine 127.0.0.1 login {USER} password {CANARY}-3\n")
    given = Credentials(ask=ask)
    said = kept_out(http, name, repo, AuthFailed, credentials=given)
    assert "did not accept the credentials from the caller, SCP_GIT_TOKEN, ~/.netrc" in said
    assert asked == [http.url(name)]
    (home / ".netrc").write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    let_in(http, name, repo, credentials=given)


@NGINX
def test_a_password_in_the_url_is_used_and_never_shown(http: Server, name: str, repo: Path) -> None:
    http.repository(name)
    place = http.base.removeprefix("http://")
    good = remote(f"http://{USER}:{PASSWORD}@{place}{name}.git", repo)
    assert good.push([f"{MAIN}:{MAIN}"]) == {MAIN: None}
    for userinfo in (f"{USER}:{CANARY}", CANARY, f"x:{CANARY}%21"):
        bad = remote(f"http://{userinfo}@{place}{name}.git", repo)
        with pytest.raises(AuthFailed) as caught:
            bad.refs()
        assert CANARY not in f"{caught.value} {bad.url!r} {vars(caught.value)}"
        assert "the URL" in str(caught.value)


@NGINX
def test_a_private_authority_must_be_named(
    https: Server, name: str, repo: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another process, as libgit2 does not forget an authority.
    https.repository(name)
    script = (
        "import sys; from pathlib import Path; from scp_git.git.remote import Remote\n"
        "Remote(sys.argv[1], name='origin', git_dir=Path(sys.argv[2]), timeout_s=10).refs()"
    )
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("SCP_GIT_USERNAME", USER)
    monkeypatch.setenv("SCP_GIT_TOKEN", PASSWORD)

    def look() -> str:
        command = [sys.executable, "-c", script, https.url(name), str(repo / ".git")]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    assert "certificate that is not trusted; give its authority in http.sslCAInfo" in look()
    config = pygit2.Repository(repo).config
    config["http.https://elsewhere.example/.sslCAInfo"] = str(https.ca_file)
    assert "not trusted" in look()
    config[f"http.{https.base}.sslCAInfo"] = str(https.ca_file)
    assert look() == ""
    config["http.sslCAInfo"] = str(home / "absent")
    del config[f"http.{https.base}.sslCAInfo"]
    assert "cannot be read; see http.sslCAInfo" in look()
    monkeypatch.setenv("GIT_SSL_CAINFO", str(https.ca_file))
    assert look() == ""


@NGINX
def test_a_password_does_not_follow_a_redirect_to_another_host(
    https: Server, name: str, home: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _let_in(https, home, monkeypatch)
    https.repository(name)
    at_home = remote(f"{https.base}moved/{name}.git", repo)
    assert at_home.push([f"{MAIN}:{MAIN}"]) == {MAIN: None}
    with pytest.raises(AuthFailed, match="redirects to another host, which gets no password"):
        remote(f"{https.base}elsewhere/{name}.git", repo).refs()


# ---------------------------------------------------------------- what a server refuses


def test_a_refused_ref_is_reported_with_the_servers_words_made_harmless(
    server: Server, name: str, repo: Path
) -> None:
    there = server.repository(name)
    servers.set_hook(there, "update", 'case "$1" in refs/tags/*) printf "\\033[2Jno tags\\n"; exit 1;; esac')
    answers = remote(server.url(name), repo).push([f"{MAIN}:{MAIN}", f"{MAIN}:refs/tags/t"])
    assert answers[MAIN] is None
    assert answers["refs/tags/t"] == "hook declined"
    assert remote(server.url(name), repo).refs() == {MAIN: tip(repo)}


def test_a_pre_receive_hook_refuses_all(server: Server, name: str, repo: Path) -> None:
    servers.set_hook(server.repository(name), "pre-receive", "echo closed today; exit 1")
    answers = remote(server.url(name), repo).push([f"{MAIN}:{MAIN}", f"{MAIN}:refs/tags/t"])
    assert answers == dict.fromkeys([MAIN, "refs/tags/t"], "pre-receive hook declined")
    assert remote(server.url(name), repo).refs() == {}


def test_deletions_and_rewrites_can_be_denied(daemon: Server, name: str, repo: Path) -> None:
    strict = {
        "receive__denyDeletes": "true",
        "receive__denyNonFastForwards": "true",
        "receive__fsckObjects": "true",
    }
    daemon.repository(name, **strict)
    connected = remote(daemon.url(name), repo)
    assert connected.push([f"{MAIN}:{MAIN}", f"{MAIN}:refs/heads/x"]) == {MAIN: None, "refs/heads/x": None}
    (answer,) = connected.push([":refs/heads/x"]).values()
    assert answer == "deletion prohibited"


def test_a_remote_that_moved_meanwhile_is_an_answer_not_an_error(
    daemon: Server, name: str, make_repo: Callable[..., Path]
) -> None:
    daemon.repository(name)
    one, other = make_repo(commits=3), make_repo(commits=1)
    (other / ".git/refs/heads/main").unlink()
    empty = pygit2.Repository(other)
    ada = pygit2.Signature("Ada", "ada@example.org", 1, 0)
    empty.create_commit(MAIN, ada, ada, "unrelated", empty.TreeBuilder().write(), [])
    remote(daemon.url(name), one).push([f"{MAIN}:{MAIN}"])
    answers = remote(daemon.url(name), other).push([f"{MAIN}:{MAIN}"])
    assert answers == {MAIN: "the remote has changed meanwhile"}


@pytest.mark.parametrize("answer", [b"\xff\xfe not UTF-8", b"\x1b]0;evil\x07"])
def test_a_hook_may_say_anything(daemon: Server, name: str, repo: Path, answer: bytes) -> None:
    there = daemon.repository(name)
    (there / "words").write_bytes(answer)
    servers.set_hook(there, "pre-receive", f"cat {there}/words; cat {there}/words >&2; exit 1")
    assert remote(daemon.url(name), repo).push([f"{MAIN}:{MAIN}"]) == {MAIN: "pre-receive hook declined"}


# ---------------------------------------------------------------- never a hang


def fails_within(limit_s: float, call: Callable[[], object], error: type[RemoteError] = RemoteError) -> str:
    started = time.monotonic()
    with pytest.raises(RemoteError) as caught:
        call()
    assert type(caught.value) is error
    assert time.monotonic() - started < limit_s
    return str(caught.value)


SILENT_URLS = ["git://127.0.0.1:{}/x.git", "http://127.0.0.1:{}/x.git", "https://127.0.0.1:{}/x.git"]
SILENT_URLS += ["ssh://git@127.0.0.1:{}/x.git"]


@pytest.mark.parametrize("url", SILENT_URLS)
def test_a_server_that_hangs_is_left_after_the_timeout(repo: Path, url: str) -> None:
    with servers.hanging() as port:
        said = fails_within(20, remote(url.format(port), repo, timeout_s=0.5).refs)
    assert "did not answer within 0.5 s; try again, or raise scp.networkTimeoutS" in said


def test_a_server_that_trickles_for_ever_is_left_as_well(repo: Path) -> None:
    with servers.trickling(b"ffff", b"0", every_s=0.05) as port:
        fails_within(20, remote(f"git://127.0.0.1:{port}/x.git", repo, timeout_s=0.3).refs)


@SSH
@pytest.mark.parametrize("upwards", [False, True], ids=["fetch", "push"])
@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_line_cut_in_mid_pack_is_an_error_and_a_second_try_works(
    request: pytest.FixtureRequest,
    kind: str,
    upwards: bool,
    home: Path,
    name: str,
    make_repo: Callable[..., Path],
) -> None:
    server: Server = request.getfixturevalue(kind)
    repo = make_repo()
    noise(repo, 600_000)
    there = server.repository(name)
    given = Credentials(username=USER, token=PASSWORD, ssh_key=server.user_key, agent=False)
    if not upwards:
        remote(str(there), repo).push([f"{MAIN}:{MAIN}"])
    with servers.cutting(server.port, after_bytes=200_000, upwards=upwards) as port:
        (home / ".ssh").mkdir()
        (home / ".ssh/known_hosts").write_text(server.host_key.replace(f":{server.port} ", f":{port} "))
        url = server.url(name).replace(f":{server.port}/", f":{port}/")
        here = repo if upwards else make_repo(commits=0)
        proxied = remote(url, here, timeout_s=3, credentials=given)
        said = fails_within(20, lambda: transfer(proxied, upwards))
    assert "127.0.0.1" in said
    if server.host_key:
        servers.trust_host(server, home)
    transfer(remote(server.url(name), here, credentials=given), upwards)
    assert tip(there) == tip(repo)
    assert upwards or tip(here, HERE) == tip(repo)
    assert [path.name for path in (here / ".git/objects/pack").glob("*tmp*")] == []


def transfer(connected: Remote, upwards: bool) -> None:
    if upwards:
        assert connected.push([f"{MAIN}:{MAIN}"]) == {MAIN: None}
    else:
        connected.fetch([f"+{MAIN}:{HERE}"])


def noise(root: Path, size: int) -> None:
    """A commit on main whose one new file cannot be compressed."""
    repo = pygit2.Repository(root)
    ada = pygit2.Signature("Ada Tester", "ada@example.org", 1_700_000_100, 0)
    tree = repo.TreeBuilder(repo.head.peel().tree)
    tree.insert("noise", repo.create_blob(os.urandom(size)), pygit2.enums.FileMode.BLOB)
    repo.create_commit(MAIN, ada, ada, "noise\n", tree.write(), [repo.head.target])
    repo.reset(repo.head.target, pygit2.enums.ResetMode.HARD)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "has no repository there (404)"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "does not allow this (403)"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "failed inside (5xx)"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html", "could not be used"),
        (b"\x1b[2J\x00garbage", "127.0.0.1"),
        (b"", "127.0.0.1"),
    ],
)
def test_a_server_that_says_no_or_nonsense(repo: Path, answer: bytes, says: str) -> None:
    with servers.saying(answer) as port:
        said = fails_within(20, remote(f"http://127.0.0.1:{port}/x.git", repo, timeout_s=2).refs)
    assert says in said
    assert said.isprintable()


@pytest.mark.parametrize("where", ["variable", "config"])
def test_a_proxy_is_used_for_https(repo: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    with servers.saying(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as port:
        proxy = f"http://ada:{CANARY}@127.0.0.1:{port}"
        if where == "variable":
            monkeypatch.setenv("https_proxy", proxy)
        else:
            pygit2.Repository(repo).config["http.proxy"] = proxy
        said = fails_within(20, remote("https://nobody.invalid/x.git", repo, timeout_s=2).refs)
    assert "https://nobody.invalid/x.git cannot be reached through the proxy; check http.proxy" in said
    assert CANARY not in said


def test_nobody_listens(repo: Path) -> None:
    url = f"git://127.0.0.1:{servers.free_port()}/x.git"
    assert "refused the connection" in fails_within(20, remote(url, repo, timeout_s=2).refs)
    assert "cannot be resolved" in fails_within(
        9, remote("git://nobody.invalid/x.git", repo, timeout_s=2).refs
    )
    gone = remote(str(repo / "gone"), repo)
    assert f"{repo}/gone is not there; check the path" in fails_within(20, gone.refs)


def test_the_timeouts_of_the_process_are_put_back(repo: Path) -> None:
    before = pygit2.settings.server_timeout, pygit2.settings.server_connect_timeout
    remote(str(repo), repo).refs()
    assert (pygit2.settings.server_timeout, pygit2.settings.server_connect_timeout) == before


# ---------------------------------------------------------------- stopping


@pytest.mark.parametrize("upwards", [False, True], ids=["fetch", "push"])
def test_a_transfer_is_cancelled_in_its_middle(
    daemon: Server, name: str, make_repo: Callable[..., Path], upwards: bool
) -> None:
    repo, there = make_repo(), daemon.repository(name)
    noise(repo, 3_000_000)
    if not upwards:
        remote(str(there), repo).push([f"{MAIN}:{MAIN}"])
    here = repo if upwards else make_repo(commits=0)
    began: list[Progress] = []

    def note(progress: Progress) -> None:
        began.append(progress)
        time.sleep(0.02)

    connected = remote(daemon.url(name), here, on_progress=note, cancelled=lambda: bool(began))
    fails_within(20, lambda: transfer(connected, upwards), TransferCancelled)
    assert began
    transfer(remote(daemon.url(name), here), upwards)
    assert list((here / ".git/objects/pack").glob("*tmp*")) == []


def test_cancelling_does_not_wait_for_a_server_that_hangs(repo: Path) -> None:
    with servers.hanging() as port:
        waiting = remote(f"git://127.0.0.1:{port}/x", repo, timeout_s=30, cancelled=lambda: True)
        fails_within(20, waiting.refs, TransferCancelled)


def test_what_the_progress_callback_raises_is_raised(daemon: Server, name: str, repo: Path) -> None:
    daemon.repository(name)

    def fail(progress: Progress) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        remote(daemon.url(name), repo, on_progress=fail).push([f"{MAIN}:{MAIN}"])


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ext::sh -c touch% pwned",
        "fd::17",
        "ftp://host/x",
        "javascript://host/x",
        "https://host/x\n",
        "https://host\t/x",
        "https://us\x00er@host/x",
        "https://user%0a:x@host/x",
        "https:///x",
        "https://-host/x",
        "https://host:99999/x",
        "ssh://-oProxyCommand=x/y",
        "ssh://-l@host/x",
        "ssh://host/it's",
        "ssh://host/%27x",
        "git@host:it's/x",
        "git@host:a!b",
        "git@host:-x",
        "-u@host:x",
        "file://other/x",
        "http://[::1/x",
    ],
)
def test_a_url_that_is_not_opened(url: str) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_url("origin", url)
    assert "origin" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown", "plain"),
    [
        (f"https://u:{CANARY}@h.example/a%20b.git", "https://h.example/a%20b.git", None),
        (f"https://{CANARY}@h.example:8443/x", "https://h.example:8443/x", None),
        (f"https://h.example/x?token={CANARY}", "https://h.example/x", f"https://h.example/x?token={CANARY}"),
        (f"ssh://git:{CANARY}@h.example/~/x", "ssh://h.example/~/x", "ssh://git@h.example/~/x"),
        ("git@h.example:a/b.git", "h.example:a/b.git", "git@h.example:a/b.git"),
        ("git+ssh://git@h.example/x", "ssh://h.example/x", "ssh://git@h.example/x"),
        ("HTTPS://h.example/x", "https://h.example/x", None),
        ("http://[::1]:8080/x", "http://[::1]:8080/x", None),
        ("[h.example:2222]:x", "[h.example:2222]:x", "[h.example:2222]:x"),
        ("/a/../b", "/b", None),
        ("file:///a%20b", "file:///a b", "/a b"),
    ],
)
def test_a_url_is_shown_without_user_and_password(url: str, shown: str, plain: str | None) -> None:
    found = parse_url("origin", url)
    assert (found.shown, found.plain) == (shown, plain or shown)
    assert CANARY not in repr(found)


def test_a_remote_is_resolved_as_git_does(repo: Path, git: Callable[..., str]) -> None:
    opened = Repository.open(repo)
    assert resolve_remote(opened, "origin") is None
    for key, value in {
        "remote.origin.url": "gh:a/b",
        "url.https://h.example/.insteadOf": "gh:",
        "url.https://longer.example/.insteadOf": "gh:a/",
        "url.git@h.example:.pushInsteadOf": "gh:",
        "remote.mirror.url": "gh:m",
        "remote.mirror.pushurl": "gh:a/p",
        "remote.a.b.url": "../x",
    }.items():
        git(repo, "config", key, value)
    git(repo, "config", "--add", "remote.origin.url", "second")
    found = {name: resolve_remote(opened, name) for name in ("origin", "mirror", "a.b", "a")}
    assert found["a"] is None
    urls = {name: (each.url, each.push_url) for name, each in found.items() if each}
    assert urls == {
        "origin": ("https://longer.example/b", "git@h.example:a/b"),
        "mirror": ("https://h.example/m", "https://longer.example/p"),
        "a.b": (f"{repo}/../x", f"{repo}/../x"),
    }
    for name in ("origin", "mirror", "a.b"):
        assert urls[name][0] == git(repo, "remote", "get-url", name).strip().replace("../x", f"{repo}/../x")
        pushed = git(repo, "remote", "get-url", "--push", name).strip()
        assert urls[name][1] == pushed.replace("../x", f"{repo}/../x")


@pytest.mark.parametrize(
    "name", ["", "-x", "a..b", "a/../b", ".a", "a.lock", "a b", "a\nb", "x" * 201, "ä", "a/"]
)
def test_a_name_that_cannot_be_part_of_a_ref(repo: Path, name: str) -> None:
    with pytest.raises(RemoteError, match="is no name of a remote"):
        resolve_remote(Repository.open(repo), name)


def test_no_repr_shows_a_secret(repo: Path) -> None:
    git_config = pygit2.Repository(repo).config
    git_config["remote.origin.url"] = f"https://u:{CANARY}@h.example/x"
    found = resolve_remote(Repository.open(repo), "origin")
    assert found is not None
    assert found.url.count(CANARY) == 1
    given = Credentials(token=CANARY, ssh_passphrase=CANARY, ask=lambda url: ("u", CANARY))
    assert CANARY not in f"{found!r} {given!r} {remote(found.url, repo).url!r}"


# ---------------------------------------------------------------- anything at all

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(
    TEXT,
    st.sampled_from(["", "https://", "ssh://", "git@h:", "file://", "https://u:p@", "git+ssh://u@", "ext::"]),
)
def test_any_text_is_a_url_that_can_be_shown_or_is_refused(text: str, start: str) -> None:
    try:
        found = parse_url("origin", start + text)
    except RemoteError as exc:
        found, said = None, str(exc)
    if found is None:
        assert said.isprintable()
        return
    assert found.shown.isprintable() and found.plain.isprintable()
    assert found.path is not None or (found.host and 0 < found.port < 65536)
    assert not set(found.shown) & set("'!") or found.scheme != "ssh"


@given(
    st.text("abcXYZ0189%:@/?#[]&=+$,;~ _-", min_size=6, max_size=20),
    st.sampled_from(["https", "http", "ssh", "git"]),
)
def test_no_password_is_shown_or_given_to_libgit2(password: str, scheme: str) -> None:
    secret = f"{CANARY}{password}"
    found = parse_url("origin", f"{scheme}://ada:{quote(secret, '')}@h.example/x")
    assert found.password == secret
    for text in (found.shown, found.plain, repr(found)):
        assert CANARY not in text
    said = explain(found, f"cannot open {secret} and {quote(secret, '')}", 1)
    assert CANARY not in said


@given(st.text(max_size=500))
def test_any_words_of_a_server_become_one_harmless_line(words: str) -> None:
    said = harmless(words)
    assert said.isprintable() and len(said) <= 300
    assert harmless("a\x1b[2J\x9b31m\u202e\r\nb") == "a [2J 31m b"


@given(st.binary(max_size=300))
def test_any_bytes_may_stand_in_a_users_files(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for path in (".ssh/known_hosts", ".git-credentials", ".netrc", ".ssh/id_ed25519"):
            (home / path).parent.mkdir(exist_ok=True)
            (home / path).write_bytes(data)
        is_known(home / ".ssh/known_hosts", "[h.example]:22")
        url = parse_url("origin", "https://h.example/x")
        assert list(passwords(url, Credentials(), home=home, helper=lambda: None)) is not None
        assert [key.path for key in keys(Credentials(agent=False), home=home)] == []


@pytest.mark.parametrize(
    ("line", "known"),
    [
        ("h.example ssh-ed25519 AAAA", True),
        ("H.EXAMPLE,10.0.0.1 ssh-ed25519 AAAA", True),
        ("*.example ssh-ed25519 AAAA", True),
        ("?.example ssh-ed25519 AAAA", True),
        ("*.example,!h.example ssh-ed25519 AAAA", False),
        ("[h.example]:2222 ssh-ed25519 AAAA", False),
        ("# h.example ssh-ed25519 AAAA", False),
        ("@revoked h.example ssh-ed25519 AAAA", False),
        ("h.exampleX ssh-ed25519 AAAA", False),
        ("|1|!!|x ssh-ed25519 AAAA", False),
    ],
)
def test_which_lines_of_known_hosts_are_about_a_host(tmp_path: Path, line: str, known: bool) -> None:
    (tmp_path / "known_hosts").write_text(f"other ssh-rsa AAAA\n\n{line}\n")
    assert is_known(tmp_path / "known_hosts", "h.example") == known
    assert not is_known(tmp_path / "absent", "h.example")
