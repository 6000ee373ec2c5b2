"""Those who are turned away leave a trace, and a reload changes who that is."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import trustme
from harness import Connection, Server, free_port, request, until

FEW = 30
"""Far fewer lines than the thousand refusals of a test."""


def traces(server: Server, event: str) -> list[dict[str, Any]]:
    return [line for line in server.events() if line["event"] == event]


def metric(server: Server, name: str, **token: Any) -> int:
    lines = server.ask("system.metrics", **token).splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"karma_{name} "))


def signal_and_wait(server: Server, event: str) -> dict[str, Any]:
    """Send SIGHUP and return the line that tells what came of it."""
    before = len(traces(server, event))
    server.process.send_signal(signal.SIGHUP)
    until(lambda: len(traces(server, event)) > before)
    return traces(server, event)[-1]


# -- Tokens ----------------------------------------------------------------------------------------------


def test_refused_tokens_are_counted_all_and_logged_now_and_then(tmp_path: Path) -> None:
    tokens: dict[str, Any] = {"auth_token": "write-s3cret", "read_auth_token": "read-s3cret"}
    with Server(tmp_path / "data", **tokens) as server, server.connect() as stranger:
        stranger.send(request("counter.sum", series="a", key=1, token="guess-s3cret") * 998)
        for _ in range(998):
            assert stranger.read()["error_code"] == "unauthorized"
        assert stranger.refuse("system.ping")[0] == "unauthorized"
        assert stranger.refuse("tree.create", series="a", token="read-s3cret")[0] == "forbidden"
        assert metric(server, "tokens_refused_total", token="read-s3cret") == 1000
        first = server.wait_for_event("token_refused")
        address = "{}:{}".format(*stranger.sock.getsockname())
        assert (first["level"], first["peer"], first["op"]) == ("warning", address, "counter.sum")
        assert 1 <= len(traces(server, "token_refused")) <= FEW
        assert "s3cret" not in server.output.read_text()


def test_a_scrape_without_the_token_leaves_a_trace(tmp_path: Path) -> None:
    port = free_port()
    with Server(tmp_path / "data", http_port=port, auth_token="write-s3cret") as server:
        bad = Request(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": "Bearer guess"})
        with pytest.raises(HTTPError, match="401"):
            urlopen(bad)
        assert server.wait_for_event("token_refused")["op"] == "GET /metrics"
        assert metric(server, "tokens_refused_total", token="write-s3cret") == 1


def test_a_reload_takes_the_tokens_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "karma.toml"
    file.write_text('auth-token = "old-s3cret"\n')
    with Server(tmp_path / "data", config=file) as server, server.connect() as client:
        assert client.ask("system.ping", token="old-s3cret") == "pong"
        file.write_text('auth-token = "new-s3cret"\nread-auth-token = "read-s3cret"\n')
        signal_and_wait(server, "reloaded")
        # On connections that are open, too.
        assert client.ask("system.ping", token="new-s3cret") == "pong"
        assert client.ask("system.ping", token="read-s3cret") == "pong"
        assert client.refuse("system.ping", token="old-s3cret")[0] == "unauthorized"
        file.write_text("auth-token = \n")
        assert "stay as they were" in signal_and_wait(server, "reload_failed")["message"]
        assert client.ask("system.ping", token="new-s3cret") == "pong"
        assert server.stop() == 0
        assert "s3cret" not in server.output.read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1])
def test_no_signal_but_those_that_ask_for_it_ends_the_server(tmp_path: Path, number: int) -> None:
    with Server(tmp_path / "data") as server:
        for _ in range(3):
            server.process.send_signal(number)
        assert server.ask("system.ping") == "pong"
        assert server.stop() == 0


# -- Certificates ----------------------------------------------------------------------------------------


def write_certificate(folder: Path, issued: trustme.LeafCert) -> dict[str, Any]:
    """Put a certificate where a server reads it."""
    key, chain = folder / "key.pem", folder / "chain.pem"
    issued.private_key_pem.write_to_path(key)
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return {"tls_cert": chain, "tls_key": key}


def connect_tls(server: Server, authority: trustme.CA, client: trustme.LeafCert | None = None) -> Connection:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if client is not None:
        client.configure_cert(context)
    plain = socket.create_connection(("127.0.0.1", server.port), 20)
    return Connection(context.wrap_socket(plain, server_hostname="127.0.0.1"))


def test_failed_handshakes_are_counted_all_and_logged_now_and_then(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = write_certificate(tmp_path, authority.issue_cert("127.0.0.1"))
    with Server(tmp_path / "data", **files) as server:
        addresses = []
        for _ in range(40):
            with server.connect() as stranger:
                addresses.append("{}:{}".format(*stranger.sock.getsockname()))
                stranger.send(b"this is not TLS\n")
                with contextlib.suppress(OSError):
                    stranger.read_line()
        with connect_tls(server, authority) as client:

            def count() -> int:
                found: int = client.ask("system.stats")["tls_failed_count"]
                return found

            until(lambda: count() == 40)
            assert "karma_tls_handshakes_failed_total 40" in client.ask("system.metrics")
        first = server.wait_for_event("tls_failed")
        assert first["level"] == "warning"
        assert first["peer"] == addresses[0]
        assert first["reason"]
        assert len(traces(server, "tls_failed")) <= FEW


def test_a_reload_takes_the_certificate_and_the_authority_of_the_files(tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    files = write_certificate(tmp_path, old.issue_cert("127.0.0.1"))
    trusted = tmp_path / "ca.pem"
    old.cert_pem.write_to_path(trusted)
    with Server(tmp_path / "data", tls_ca=trusted, **files) as server:
        with connect_tls(server, old, old.issue_cert("client.example")) as before:
            write_certificate(tmp_path, new.issue_cert("127.0.0.1"))
            new.cert_pem.write_to_path(trusted)
            signal_and_wait(server, "reloaded")
            with connect_tls(server, new, new.issue_cert("client.example")) as after:
                assert after.ask("system.ping") == "pong"
            assert before.ask("system.ping") == "pong", "open connections stay"
        with pytest.raises(ssl.SSLError):
            connect_tls(server, old)
        with connect_tls(server, new, old.issue_cert("client.example")) as stranger:
            # With TLS 1.3 the client learns of a refusal only when it reads.
            with contextlib.suppress(OSError):
                stranger.send(request("system.ping"))
            assert stranger.is_ended()
        (tmp_path / "chain.pem").write_text("no certificate\n")
        assert "--tls-cert" in signal_and_wait(server, "reload_failed")["message"]
        with connect_tls(server, new, new.issue_cert("client.example")) as after:
            assert after.ask("system.ping") == "pong"
        assert server.stop() == 0


def test_a_port_in_use_is_named_with_tls_too(tmp_path: Path) -> None:
    files = write_certificate(tmp_path, trustme.CA().issue_cert("127.0.0.1"))
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        Server(tmp_path / "data", wait=False, **files | {"port": other.getsockname()[1]}) as server,
    ):
        assert server.process.wait(20) == 1
        assert "--bind, --port" in server.output.read_text()
