"""Connections of every kind: TLS, Unix sockets, slow and silent peers, and how many."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from harness import Connection, Server, request, until

DAY = 20260505
SPAN = {"from": DAY, "to": DAY}


def fill(connection: Connection, series: str, keys: int) -> None:
    """Make a series so large that reading it whole takes a while."""
    for first in range(0, keys, 10_000):
        items = [[key, DAY, 10**15] for key in range(first, min(first + 10_000, keys))]
        connection.ask("series.batch_add", series=series, items=items)


# -- TLS -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificates(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return {"tls_cert": folder / "cert.pem", "tls_key": folder / "key.pem", "tls_ca": folder / "ca.pem"}


def tls_connect(server: Server, authority: trustme.CA, client: trustme.LeafCert | None = None) -> Connection:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if client is not None:
        client.configure_cert(context)
    plain = socket.create_connection(("127.0.0.1", server.port), 20)
    try:
        return Connection(context.wrap_socket(plain, server_hostname="127.0.0.1"))
    except OSError:
        plain.close()
        raise


def is_served(server: Server, authority: trustme.CA, client: trustme.LeafCert | None) -> bool:
    # With TLS 1.3 the client learns of a refusal only when it reads.
    try:
        with tls_connect(server, authority, client) as connection:
            connection.send(request("system.ping"))
            return connection.read_line() != b""
    except OSError:
        return False


def test_tls_serves_the_protocol_and_turns_plain_text_away(
    tmp_path: Path, authority: trustme.CA, certificates: dict[str, Any]
) -> None:
    server_only = {name: path for name, path in certificates.items() if name != "tls_ca"}
    with Server(tmp_path / "data", **server_only) as server:
        with tls_connect(server, authority) as connection:
            lines = [request("counter.increment", series="a", key=key, value=key + 1) for key in range(2000)]
            connection.send(b"".join(lines))
            assert [connection.read()["response"] for _ in lines] == list(range(1, 2001))
        with server.connect() as plain:
            plain.send(request("tree.drop", series="a"))
            assert plain.is_ended() or b"protocol_version" not in plain.read_line()
        with tls_connect(server, authority) as connection:
            assert connection.ask("tree.list") == ["a"]
        assert server.stop() == 0
        assert not [line for line in server.output.read_text().splitlines() if not line.startswith("{")]


def test_with_an_authority_only_clients_with_its_certificates_are_served(
    tmp_path: Path, authority: trustme.CA, certificates: dict[str, Any]
) -> None:
    with Server(tmp_path / "data", **certificates) as server:
        with tls_connect(server, authority, authority.issue_cert("client.example")) as connection:
            assert connection.ask("system.ping") == "pong"
        for stranger in (None, trustme.CA().issue_cert("client.example")):
            assert not is_served(server, authority, stranger)


def test_a_peer_that_ends_its_input_or_never_begins_tls_costs_nothing(
    tmp_path: Path, authority: trustme.CA, certificates: dict[str, Any]
) -> None:
    server_only = {name: path for name, path in certificates.items() if name != "tls_ca"}
    with Server(tmp_path / "data", read_timeout=0.5, **server_only) as server:
        with tls_connect(server, authority) as connection:
            connection.send(request("counter.increment", series="a", key=1))
            connection.end_input()
            # Without TLS it would get its reply; with it, it is closed. The request counts either way.
            connection.read_line()
        with server.connect() as silent:
            assert silent.is_ended()
        with tls_connect(server, authority) as connection:
            assert connection.ask("counter.sum", series="a", key=1) == 1
        assert server.stop() == 0
        assert not [line for line in server.output.read_text().splitlines() if not line.startswith("{")]


def test_a_certificate_that_cannot_be_used_is_named_at_the_start(tmp_path: Path) -> None:
    with Server(
        tmp_path / "data", wait=False, tls_cert=tmp_path / "none.pem", tls_key=tmp_path / "none.pem"
    ) as server:
        assert server.process.wait(20) == 1
        text = server.output.read_text()
        assert "ERROR: --tls-cert" in text


# -- Unix sockets ----------------------------------------------------------------------------------------


def unix_connect(path: Path) -> Connection:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(path))
    return Connection(client)


def test_a_unix_socket_serves_beside_the_port_and_is_gone_after_the_end(tmp_path: Path) -> None:
    path = tmp_path / "karma.sock"
    with Server(tmp_path / "data", unix_socket=path) as server:
        with unix_connect(path) as connection:
            assert connection.ask("counter.increment", series="a", key=1, value=5) == 5
            assert connection.ask("system.clients")[0]["address"] == "unix"
        assert server.ask("counter.sum", series="a", key=1) == 5
        assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRWXO == 0
        assert server.stop() == 0
        assert not path.exists()


def test_the_socket_file_of_a_killed_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "karma.sock"
    with Server(tmp_path / "data", unix_socket=path) as server:
        server.kill()
        assert path.exists()
        server.restart()
        with unix_connect(path) as connection:
            assert connection.ask("system.ping") == "pong"


def test_a_socket_in_use_or_a_file_in_its_place_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "karma.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with Server(tmp_path / "one", wait=False, unix_socket=path) as server:
            assert server.process.wait(20) == 1
            assert "in use" in server.output.read_text()
    path.unlink()
    path.write_text("precious")
    with Server(tmp_path / "two", wait=False, unix_socket=path) as server:
        assert server.process.wait(20) == 1
        assert "--unix-socket" in server.output.read_text()
    assert path.read_text() == "precious"


def test_a_port_in_use_is_named_at_the_start(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with Server(tmp_path / "data", wait=False, port=other.getsockname()[1]) as server:
            assert server.process.wait(20) == 1
            assert "--port" in server.output.read_text()


# -- Peers that are slow or silent -----------------------------------------------------------------------


def test_a_silent_connection_is_closed_after_the_read_timeout(tmp_path: Path) -> None:
    with (
        Server(tmp_path / "data", read_timeout=0.5) as server,
        server.connect() as silent,
        server.connect() as half,
    ):
        half.send(b'{"v":2,')
        with server.connect() as busy:
            busy.sock.settimeout(5)
            while not (silent.has_data() and half.has_data()):
                assert busy.ask("system.ping") == "pong"
                time.sleep(0.02)
            assert silent.is_ended()
            assert half.is_ended()
            assert busy.ask("system.ping") == "pong"


def test_without_a_read_timeout_a_silent_connection_stays(tmp_path: Path) -> None:
    with Server(tmp_path / "data", read_timeout=0) as server, server.connect() as silent:
        # Longer than two of the sweeps that would close it.
        time.sleep(0.7)
        assert silent.ask("system.ping") == "pong"


@pytest.mark.parametrize("is_secure", [False, True])
def test_a_stall_longer_than_the_read_timeout_costs_no_request(
    tmp_path: Path, authority: trustme.CA, certificates: dict[str, Any], is_secure: bool
) -> None:
    """A process that is stopped, as with its virtual machine, hears nobody: that is not their silence."""
    options = {name: path for name, path in certificates.items() if is_secure and name != "tls_ca"}
    with Server(tmp_path / "data", read_timeout=3, **options) as server, ExitStack() as open_ones:
        clients: list[Connection] = []
        while len(clients) < 20:
            client = tls_connect(server, authority) if is_secure else server.connect()
            clients.append(open_ones.enter_context(client))
            for client in clients:
                # None of them is silent while the others connect, however busy this machine is.
                assert client.ask("system.ping") == "pong"
        server.process.send_signal(signal.SIGSTOP)
        try:
            for key, client in enumerate(clients):
                client.send(request("counter.increment", series="a", key=key))
            time.sleep(4)
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert [client.read()["response"] for client in clients] == [1] * 20
        assert [client.ask("counter.sum", series="a", key=key) for key, client in enumerate(clients)] == [
            1
        ] * 20


def test_who_waits_for_replicas_longer_than_the_read_timeout_gets_the_reply(tmp_path: Path) -> None:
    options: dict[str, Any] = {"read_timeout": 0.5, "sync_replicas": 1, "sync_timeout_ms": 2_000}
    with Server(tmp_path / "data", **options) as server, server.connect() as client:
        client.ask("counter.increment", series="a", key=1)
        assert client.ask("counter.sum", series="a", key=1) == 1


def test_clients_that_dribble_do_not_hold_every_slot(tmp_path: Path) -> None:
    line = request("counter.increment", series="a", key=1)
    with (
        Server(tmp_path / "data", read_timeout=0.5, max_clients=50, max_request_bytes=16 << 20) as server,
        ExitStack() as open_ones,
    ):
        dribbling = [open_ones.enter_context(server.connect()) for _ in range(50)]
        at = 0
        deadline = time.monotonic() + 30
        while dribbling:
            assert time.monotonic() < deadline, f"{len(dribbling)} are still there"
            for client in list(dribbling):
                try:
                    # Never silent for half a second, and never done.
                    client.send(line[at % 20 : at % 20 + 1])
                    is_over = client.has_data() and client.is_ended()
                except ConnectionError:
                    is_over = True
                if is_over:
                    dribbling.remove(client)
            at += 1
            time.sleep(0.05)
        assert server.ask("system.ping") == "pong"


def test_a_half_closed_client_gets_the_replies_it_waits_for(tmp_path: Path) -> None:
    with Server(tmp_path / "data", max_request_bytes=1_000_000, max_response_bytes=0) as server:
        with server.connect() as connection:
            fill(connection, "large", 50_000)
        with server.connect() as connection:
            connection.send(
                request("tree.series", series="large", range=SPAN)
                + request("snapshot.create_all")
                + request("counter.increment", series="small", key=1)
            )
            connection.end_input()
            assert len(connection.read()["response"]) == 50_000
            assert connection.read()["response"] == "OK"
            assert connection.read()["response"] == 1
            assert connection.is_ended()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose replies can be made larger than any socket buffer."""
    directory = tmp_path_factory.mktemp("wide") / "data"
    with Server(directory, wal_fsync=False, max_request_bytes=1_000_000, max_response_bytes=0) as server:
        with server.connect() as connection:
            fill(connection, "large", 10_000)
        yield server


def flood(connection: Connection) -> None:
    """Ask for 30 MB of replies in a few kilobytes, and read none: more than any socket buffer takes."""
    connection.send(request("tree.series", series="large", range=SPAN) * 100)


def test_a_client_that_never_reads_is_cut_after_the_write_timeout(wide: Server) -> None:
    assert wide.stop() == 0
    wide.restart(write_timeout=0.5, max_client_buffer_bytes=10**9)
    with wide.connect() as deaf, wide.connect() as other:
        flood(deaf)
        # Others are served while its replies pile up.
        while not any(event["event"] == "write_timeout" for event in wide.events()):
            assert other.ask("system.ping") == "pong"
            time.sleep(0.02)
        assert [client["last_op"] for client in other.ask("system.clients")] == ["system.clients"]


@pytest.mark.parametrize("maximum", [0, 10**9])
def test_a_reply_that_no_client_may_hold_is_refused_whole(wide: Server, maximum: int) -> None:
    assert wide.stop() == 0
    wide.restart(max_response_bytes=maximum, max_client_buffer_bytes=100_000)
    with wide.connect() as connection:
        code, message = connection.refuse("tree.series", series="large", range=SPAN)
        assert code == "response_too_large"
        assert "max-client-buffer-bytes allows (100000)" in message
        assert connection.ask("counter.sum", series="large", key=1) == 10**15
    wide.stop()
    wide.restart(max_response_bytes=0)


def test_a_client_that_holds_too_many_bytes_is_cut(wide: Server) -> None:
    assert wide.stop() == 0
    wide.restart(write_timeout=60, max_client_buffer_bytes=1_000_000)
    with wide.connect() as deaf, wide.connect() as other:
        flood(deaf)
        wide.wait_for_event("client_buffer_full")
        assert other.ask("counter.sum", series="large", key=1) == 10**15


def test_a_client_that_reads_slowly_gets_every_reply(wide: Server) -> None:
    assert wide.stop() == 0
    wide.restart(write_timeout=60, max_client_buffer_bytes=100_000_000)
    with wide.connect() as slow:
        line = request("counter.batch_sum", series="large", keys=list(range(10_000)))
        sent = 0
        for _ in range(60):
            slow.send(line)
            sent += 1
        for _ in range(sent):
            assert len(slow.read()["response"]) == 10_000


# -- How many ---------------------------------------------------------------------------------------------


def test_connections_past_max_clients_are_told_so_and_closed(tmp_path: Path) -> None:
    with Server(tmp_path / "data", max_clients=2) as server, server.connect() as first:
        with server.connect() as second:
            assert [each.ask("system.ping") for each in (first, second)] == ["pong", "pong"]
            with server.connect() as third:
                refused = third.read()
                assert (refused["success"], refused["error_code"]) == (False, "overloaded")
                assert "max-clients" in refused["response"]
                assert third.is_ended()
            assert first.ask("system.stats")["connections_rejected"] == 1
        # The second is forgotten, which nobody announces.
        until(lambda: first.ask("system.stats")["connections"] == 1)
        assert server.ask("system.ping") == "pong"


def test_hundreds_of_connections_are_served_at_once(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(300)]
        for connection in connections:
            connection.send(request("counter.increment", series="a", key=1) * 10)
        for connection in connections:
            assert [connection.read()["response"] for _ in range(10)] == [1] * 10
        assert server.ask("counter.sum", series="a", key=1) == 3000
