"""Every door of a server has the same lock: the port of the sidecar, the files that are served, TLS."""

from __future__ import annotations

import base64
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from ctl import karmactl
from harness import Server, free_port, missing, until

from karma_sql.cache import Cache

TOKEN = "read-s3cret"
AUTHORIZED = f"Authorization: Bearer {TOKEN}"
DAY = 20260505


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("doors") / "data"
    with Server(directory, http_port=free_port(), read_auth_token=TOKEN, auth_token="write-s3cret") as server:
        yield server


def exchange(server: Server, request: bytes, context: ssl.SSLContext | None = None) -> bytes:
    """Send bytes to the sidecar and return all that comes back."""
    client = socket.create_connection(("127.0.0.1", server.options["http_port"]), 10)
    try:
        if context is not None:
            client = context.wrap_socket(client, server_hostname="127.0.0.1")
        client.sendall(request)
        with client.makefile("rb") as replies:
            return replies.read()
    finally:
        client.close()


def status_of(server: Server, *header_lines: str, line: str = "GET /metrics HTTP/1.1") -> int:
    reply = exchange(server, ("\r\n".join([line, "Host: x", *header_lines]) + "\r\n\r\n").encode("latin-1"))
    return int(reply.split(b" ", 2)[1])


# -- The sidecar -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header_lines", "status"),
    [
        ((AUTHORIZED,), 200),
        ((AUTHORIZED.replace("Bearer", "bearer"),), 200),
        ((AUTHORIZED.replace("Authorization", "AUTHORIZATION"),), 200),
        ((), 401),
        ((f"Authorization: {TOKEN}",), 401),
        ((f"Authorization: Basic {TOKEN}",), 401),
        ((f"Authorization: Bearer{TOKEN}",), 401),
        ((f"Authorization: Bearer wrong {TOKEN}",), 401),
        (("Authorization: Bearer",), 401),
        (("Authorization:",), 401),
        ((AUTHORIZED, AUTHORIZED), 400),
        (("Authorization: Bearer wrong", AUTHORIZED), 400),
        ((AUTHORIZED.replace(":", " :"),), 400),
        ((" " + AUTHORIZED,), 400),
        (("X-Folded: a", " b", AUTHORIZED), 400),
        (("no colon", AUTHORIZED), 400),
        ((": no name", AUTHORIZED), 400),
    ],
)
def test_metrics_need_one_bearer_token(guarded: Server, header_lines: tuple[str, ...], status: int) -> None:
    assert status_of(guarded, *header_lines) == status


@pytest.mark.parametrize(
    "line",
    [
        "GET /metrics",
        "GET /metrics HTTP/2.0",
        "GET /metrics FTP/1.1",
        "GET  /metrics HTTP/1.1",
        "GET /metrics HTTP/1.1 x",
        "GET /met\trics HTTP/1.1",
        "GET /m\xe9trics HTTP/1.1",
        "",
    ],
)
def test_a_request_line_of_another_form_is_malformed(guarded: Server, line: str) -> None:
    assert status_of(guarded, AUTHORIZED, line=line) == 400


def test_nothing_is_smuggled_behind_a_request(guarded: Server) -> None:
    inner = f"GET /metrics HTTP/1.1\r\n{AUTHORIZED}\r\n\r\n".encode()
    for head in (b"Content-Length: 0\r\nContent-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n", b""):
        reply = exchange(guarded, b"GET /healthz HTTP/1.1\r\n" + head + b"\r\n" + inner)
        assert reply.count(b"HTTP/1.1 ") == 1
        assert b"karma_" not in reply


def test_idle_connections_are_counted_and_hold_nobody_off(guarded: Server) -> None:
    def connections() -> int:
        with guarded.connect() as connection:
            return int(connection.ask("system.stats", token=TOKEN)["connections"])

    before = connections()
    with ExitStack() as stack:
        address = ("127.0.0.1", guarded.options["http_port"])
        for count in range(1, 101):
            stack.enter_context(socket.create_connection(address, 10)).sendall(b"GET ")
            if count == 30:
                until(lambda: connections() >= before + 20)
        assert status_of(guarded, line="GET /healthz HTTP/1.1") == 200
        assert connections() <= before + 64
    until(lambda: connections() == before)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def certificates(authority: trustme.CA, folder: Path, *, wants_clients: bool) -> dict[str, Any]:
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    files: dict[str, Any] = {"tls_cert": folder / "cert.pem", "tls_key": folder / "key.pem"}
    return files | ({"tls_ca": folder / "ca.pem"} if wants_clients else {})


def client_context(authority: trustme.CA, client: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if client is not None:
        client.configure_cert(context)
    return context


def is_answered(server: Server, context: ssl.SSLContext | None) -> bool:
    try:
        return b" 200 OK" in exchange(server, b"GET /healthz HTTP/1.1\r\n\r\n", context)
    except OSError:
        return False


@pytest.mark.parametrize("wants_clients", [False, True])
def test_with_tls_the_sidecar_speaks_it_too(
    tmp_path: Path, authority: trustme.CA, wants_clients: bool
) -> None:
    files = certificates(authority, tmp_path, wants_clients=wants_clients)
    known = client_context(authority, authority.issue_cert("probe.example"))
    stranger = client_context(authority, trustme.CA().issue_cert("probe.example"))
    with Server(tmp_path / "data", http_port=free_port(), **files) as server:
        assert not is_answered(server, None)
        assert is_answered(server, known)
        assert is_answered(server, client_context(authority)) is not wants_clients
        assert is_answered(server, stranger) is not wants_clients


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "is_served"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
def test_only_present_versions_of_tls_are_spoken(
    tmp_path: Path, authority: trustme.CA, version: ssl.TLSVersion, is_served: bool
) -> None:
    context = client_context(authority)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    files = certificates(authority, tmp_path, wants_clients=False)
    with Server(tmp_path / "data", http_port=free_port(), **files) as server:
        assert is_answered(server, context) is is_served


# -- Files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "link to a snapshot", "pipe", "folder"])
def test_only_regular_files_of_the_directory_are_fetched(tmp_path: Path, kind: str) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        connection.ask("counter.increment", series="a", key=1, bucket=DAY)
        connection.ask("snapshot.create_all")
        (real,) = server.directory.glob("*_a.tree")
        planted = server.directory / "1_b.tree"
        secret = tmp_path / "secret"
        secret.write_text("s3cret of another")
        match kind:
            case "link":
                planted.symlink_to(secret)
            case "link to a snapshot":
                planted.symlink_to(real)
            case "pipe":
                os.mkfifo(planted)
            case "folder":
                planted.mkdir()
        for op in ("snapshot.fetch", "snapshot.fetch_chunk"):
            code, message = connection.refuse(op, file=planted.name)
            assert code == "not_found", message
            assert base64.b64decode(connection.ask(op, file=real.name)["data_base64"]) == real.read_bytes()
        records = server.directory / "karma.idempotency.json"
        records.unlink()
        records.symlink_to(secret)
        assert connection.refuse("idempotency.snapshot_fetch_chunk")[0] == "not_found"
        assert b"s3cret" not in server.output.read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.tree",
        "/etc/passwd",
        "..\\secret.tree",
        "a/../1_a.tree",
        "karma.node.json",
        "karma.wal",
        ".tree\0",
    ],
)
def test_no_name_leaves_the_directory(tmp_path: Path, name: str) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        for op in ("snapshot.fetch", "snapshot.fetch_chunk", "snapshot.load"):
            assert connection.refuse(op, file=name)[0] in ("validation_error", "not_found")


@pytest.mark.parametrize("fault", ["owner", "mode"])
def test_a_file_of_contexts_that_strangers_may_change_is_not_used(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "karmactl" / "config.toml"
    path.parent.mkdir()
    path.write_text('[contexts.prod]\nnodes = ["127.0.0.1:1"]\n')
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    path.chmod(0o664)
    assert karmactl("context", "list", environ=environ).code == 0
    _give_away(path, fault)
    for command in (("context", "list"), ("topology", "--context", "prod")):
        ended = karmactl(*command, environ=environ)
        assert (ended.code, ended.stdout) == (2, "")
        assert "is not used" in ended.stderr


@pytest.mark.parametrize("fault", ["owner", "mode"])
def test_a_cache_that_strangers_may_change_is_not_used(tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "cache"
    mine = Cache(folder)
    mine.close()
    assert mine.scratch.is_relative_to(folder)
    _give_away(folder / "sql", fault)
    theirs = Cache(folder)
    try:
        assert not theirs.scratch.is_relative_to(folder)
        assert theirs.scratch.stat().st_mode & 0o077 == 0
    finally:
        theirs.close()


def _give_away(path: Path, fault: str) -> None:
    if fault == "mode":
        path.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(path, 12_345, -1)
    else:
        missing("needs root, to give a file to another user")


@pytest.mark.parametrize(("mode", "is_said"), [(0o700, False), (0o750, False), (0o755, True), (0o777, True)])
def test_a_directory_that_others_may_enter_is_named(tmp_path: Path, mode: int, is_said: bool) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    directory.chmod(mode)
    with Server(directory) as server:
        said = [event for event in server.events() if event["event"] == "directory_exposed"]
        assert bool(said) is is_said
        assert all(f"{mode:o}" in event["message"] for event in said)
        written = [path for path in directory.iterdir() if path.stat().st_mode & 0o007]
        assert not written, "what the server writes is not for others, whatever the folder is"


def test_a_directory_of_another_user_is_named(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("needs root, to give a folder to another user")
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    os.chown(directory, 12_345, -1)
    with Server(directory) as server:
        assert "12345" in server.wait_for_event("directory_exposed")["message"]
