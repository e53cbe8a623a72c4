"""Real git servers on loopback, each on a free port, started by the test that needs them and ended by pid.

``git daemon``, ``sshd`` and nginx with ``git http-backend`` serve the bare repositories
of one folder; a few small sockets misbehave on purpose.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

LOOPBACK = "127.0.0.1"
USER = "ada"
PASSWORD = "correct-horse-7Q"
_START_S = 15
_PORTS_TRIED = 3


@dataclass(slots=True)
class Server:
    """A running server and the folder whose bare repositories it serves."""

    folder: Path
    base: str
    """What comes before ``<name>.git`` in a URL."""
    port: int
    host_key: str = ""
    """A line for known_hosts."""
    user_key: Path | None = None
    ca_file: Path | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def url(self, name: str) -> str:
        return f"{self.base}{name}.git"

    def repository(self, name: str, **config: str) -> Path:
        """A new bare repository that may be pushed to; ``receive__denyDeletes="true"`` sets config."""
        path = self.folder / f"{name}.git"
        make_bare(path, http__receivepack="true", **config)
        return path


def make_bare(path: Path, **config: str) -> Path:
    """A new bare repository with git config; ``__`` stands for the dot."""
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True)
    for name, value in config.items():
        setting = ["git", "-C", str(path), "config", name.replace("__", "."), value]
        subprocess.run(setting, check=True)
    return path


def set_hook(repository: Path, name: str, script: str) -> None:
    """Install a shell script as a hook."""
    hook = repository / "hooks" / name
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{script}\n")
    hook.chmod(0o755)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------- processes


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    assert found is not None, name
    return found


def _git_program(name: str) -> str:
    done = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True)
    return str(Path(done.stdout.strip()) / name)


@contextlib.contextmanager
def _running(command: list[str], log: Path, ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own group, from when it is ready until the block ends."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + _START_S
        while not ready():
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, f"{command[0]} does not start:\n{log.read_text(errors='replace')}"
            time.sleep(0.02)
        assert process.poll() is None, f"another {command[0]} answers"
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started: its group is its own."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


@contextlib.contextmanager
def _on_a_port(
    command: Callable[[int], list[str]], log: Path
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A process that listens on a free port; on another one if somebody else was quicker."""
    with contextlib.ExitStack() as stack:
        for attempt in range(_PORTS_TRIED):
            port = free_port()
            try:
                process = stack.enter_context(_running(command(port), log, _answers(port)))
                break
            except AssertionError:
                if attempt == _PORTS_TRIED - 1:
                    raise
        yield port, process


def _answers(port: int) -> Callable[[], bool]:
    def probe() -> bool:
        with socket.socket() as client:
            client.settimeout(1)
            return client.connect_ex((LOOPBACK, port)) == 0

    return probe


@contextlib.contextmanager
def git_daemon(folder: Path) -> Iterator[Server]:
    """``git://``, anonymous, writable."""
    served = folder / "git"
    served.mkdir(parents=True)

    def command(port: int) -> list[str]:
        options = ["--export-all", "--reuseaddr", "--enable=receive-pack", f"--base-path={served}"]
        return [_git_program("git-daemon"), f"--listen={LOOPBACK}", f"--port={port}", *options, str(served)]

    with _on_a_port(command, folder / "git-daemon.log") as (port, process):
        yield Server(served, f"git://{LOOPBACK}:{port}/", port, processes=[process])


# ---------------------------------------------------------------- ssh


def make_ssh_key(path: Path, passphrase: bytes = b"") -> str:
    """An ed25519 key pair at ``path``; returns the public key's line."""
    key = ed25519.Ed25519PrivateKey.generate()
    encryption = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, encryption)
    )
    path.chmod(0o600)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode()


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[Server]:
    """``ssh://`` with keys made for this server; ``user_key`` is the one that is let in."""
    served = folder / "git"
    served.mkdir(parents=True)
    host_line = make_ssh_key(folder / "host_key")
    (folder / "authorized_keys").write_text(make_ssh_key(folder / "user_key") + "\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it

    def command(port: int) -> list[str]:
        config = folder / "sshd_config"
        config.write_text(
            f"Port {port}\nListenAddress {LOOPBACK}\nHostKey {folder}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\nLogLevel INFO\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\n"
        )
        return [_program("sshd"), "-D", "-e", "-f", str(config)]

    with _on_a_port(command, folder / "sshd.log") as (port, process):
        yield Server(
            served,
            f"ssh://{getpass.getuser()}@{LOOPBACK}:{port}{served}/",
            port,
            host_key=f"[{LOOPBACK}]:{port} {host_line}\n",
            user_key=folder / "user_key",
            processes=[process],
        )


def trust_host(server: Server, home: Path) -> None:
    """Put the server's key into known_hosts and the user's key where ssh looks for it."""
    (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
    with (home / ".ssh" / "known_hosts").open("a") as file:
        file.write(server.host_key)
    assert server.user_key is not None
    shutil.copy(server.user_key, home / ".ssh" / "id_ed25519")


@contextlib.contextmanager
def ssh_agent(sock: Path, key: Path) -> Iterator[None]:
    """An agent that holds ``key``; the caller names ``sock`` in SSH_AUTH_SOCK."""
    command = [_program("ssh-agent"), "-D", "-a", str(sock)]
    with _running(command, sock.with_suffix(".log"), sock.exists):
        add = [_program("ssh-add"), "-q", str(key)]
        subprocess.run(add, check=True, env={**os.environ, "SSH_AUTH_SOCK": str(sock)})
        yield


# ---------------------------------------------------------------- http


@contextlib.contextmanager
def http_server(folder: Path, *, tls: bool = False, password: bool = True) -> Iterator[Server]:
    """nginx with ``git http-backend``: http, or https with an authority of its own; with basic auth."""
    served = folder / "git"
    served.mkdir(parents=True)
    fcgi = folder / "fcgi"
    wrapper = [_program("fcgiwrap"), "-c", "4", "-s", f"unix:{fcgi}"]
    ca_file = _make_certificates(folder) if tls else None
    (folder / "htpasswd").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")

    def command(port: int) -> list[str]:
        config = folder / "nginx.conf"
        config.write_text(_nginx(folder, served, fcgi, port, tls=tls, password=password))
        return [_program("nginx"), "-c", str(config), "-p", str(folder), "-e", str(folder / "nginx.log")]

    with (
        _running(wrapper, folder / "fcgiwrap.log", fcgi.exists) as back,
        _on_a_port(command, folder / "nginx.log") as (port, front),
    ):
        base = f"https://localhost:{port}/" if tls else f"http://{LOOPBACK}:{port}/"
        yield Server(served, base, port, ca_file=ca_file, processes=[back, front])


def _nginx(folder: Path, served: Path, fcgi: Path, port: int, *, tls: bool, password: bool) -> str:
    # Workers of a root master would be another user, who may not enter the test's folders.
    user = "user root;" if os.getuid() == 0 else ""
    listen = f"listen {LOOPBACK}:{port}{' ssl' if tls else ''};"
    if tls:
        listen += f"\nssl_certificate {folder}/server.pem;\nssl_certificate_key {folder}/server.key;"
    auth = f'auth_basic "git";\nauth_basic_user_file {folder}/htpasswd;' if password else ""
    temporary = "\n".join(
        f"{name}_temp_path {folder}/temporary-{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 64; }}
http {{
access_log {folder}/access.log;
{temporary}
client_max_body_size 0;
server {{
{listen}
location /moved/ {{ rewrite ^/moved/(.*)$ /$1 permanent; }}
location /elsewhere/ {{ rewrite ^/elsewhere/(.*)$ https://{LOOPBACK}:{port}/$1 permanent; }}
location / {{
{auth}
fastcgi_pass unix:{fcgi};
fastcgi_param SCRIPT_FILENAME {_git_program("git-http-backend")};
fastcgi_param GIT_PROJECT_ROOT {served};
fastcgi_param GIT_HTTP_EXPORT_ALL 1;
fastcgi_param REMOTE_USER $remote_user;
fastcgi_param REMOTE_ADDR $remote_addr;
fastcgi_param PATH_INFO $uri;
fastcgi_param QUERY_STRING $query_string;
fastcgi_param REQUEST_METHOD $request_method;
fastcgi_param CONTENT_TYPE $content_type;
fastcgi_param CONTENT_LENGTH $content_length;
fastcgi_param HTTP_CONTENT_ENCODING $http_content_encoding;
}} }} }}
"""


def _make_certificates(folder: Path) -> Path:
    """An authority, and a certificate of it for localhost; returns the authority's file."""
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "scp_git test authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)

    def build(name: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address(LOOPBACK))]
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(authority_key, hashes.SHA256())

    certificate = build(subject, server_key, ca=False)
    (folder / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(
        server_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    ca_file = folder / "authority.pem"
    ca_file.write_bytes(build(authority, authority_key, ca=True).public_bytes(serialization.Encoding.PEM))
    return ca_file


# ---------------------------------------------------------------- servers that misbehave


@contextlib.contextmanager
def _listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A socket that hands each connection to ``serve`` in a thread; gives the port."""
    listener = socket.create_server((LOOPBACK, 0))
    ending = threading.Event()

    def accept() -> None:
        while not ending.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_quietly, args=(serve, client), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        ending.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _quietly(serve: Callable[[socket.socket], None], client: socket.socket) -> None:
    with client, contextlib.suppress(OSError):
        serve(client)


@contextlib.contextmanager
def hanging(connected: threading.Event | None = None) -> Iterator[int]:
    """Takes connections and never says a word; ``connected`` is set with the first one."""
    ended = threading.Event()

    def serve(client: socket.socket) -> None:
        if connected is not None:
            connected.set()
        ended.wait(60)

    try:
        with _listening(serve) as port:
            yield port
    finally:
        ended.set()


@contextlib.contextmanager
def trickling(start: bytes, drop: bytes, every_s: float) -> Iterator[int]:
    """Says ``start``, and then ``drop`` again and again, slowly: no single wait is long."""
    ended = threading.Event()

    def serve(client: socket.socket) -> None:
        client.sendall(start)
        while not ended.wait(every_s):
            client.sendall(drop)

    try:
        with _listening(serve) as port:
            yield port
    finally:
        ended.set()


@contextlib.contextmanager
def saying(answer: bytes) -> Iterator[int]:
    """Reads a request, gives one answer, whatever was asked, and closes."""

    def serve(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(answer)

    with _listening(serve) as port:
        yield port


@contextlib.contextmanager
def cutting(target: int, *, after_bytes: int, upwards: bool = False) -> Iterator[int]:
    """A proxy that cuts the line after so many bytes of the server's, or (``upwards``) of the client's."""

    def serve(client: socket.socket) -> None:
        with socket.create_connection((LOOPBACK, target)) as server:
            watched, other = (client, server) if upwards else (server, client)
            threading.Thread(target=_quietly_copy, args=(other, watched), daemon=True).start()
            left = after_bytes
            while left > 0 and (data := watched.recv(min(left, 65536))):
                other.sendall(data)
                left -= len(data)
            for end in (client, server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    with _listening(serve) as port:
        yield port


def _quietly_copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
