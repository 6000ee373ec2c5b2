"""What the server says about itself: HTTP sidecar, system.clients, system.latency; and the first protocol."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Connection, Server, free_port, request
from prometheus_client.parser import text_string_to_metric_families

DAY = 20260505
TOKEN = "the-read-s3cret"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(
        tmp_path_factory.mktemp("sidecar") / "data", wal_fsync=False, http_port=free_port()
    ) as running:
        yield running


def get(
    server: Server, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.options["http_port"], timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


def sample_names(text: str) -> set[str]:
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_metrics_parse_and_hold_every_name_of_system_metrics_and_histograms(server: Server) -> None:
    with server.connect() as connection:
        for _ in range(20):
            connection.ask("counter.increment", series="a", key=1)
        plain = connection.ask("system.metrics")
    status, headers, text = get(server, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert sample_names(plain) <= sample_names(text)
    assert {
        "karma_uptime_seconds",
        "karma_wal_current_lsn",
        "karma_role",
        "karma_commands_total",
    } <= sample_names(plain)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    histogram = families["karma_request_duration_seconds"]
    assert histogram.type == "histogram"
    buckets = [
        sample.value
        for sample in histogram.samples
        if sample.name.endswith("_bucket") and sample.labels["op"] == "counter.increment"
    ]
    assert buckets == sorted(buckets)
    counts = [
        sample
        for sample in histogram.samples
        if sample.name.endswith("_count") and sample.labels["op"] == "counter.increment"
    ]
    assert counts[0].value == buckets[-1] == 20


def test_health_ready_and_what_is_not_there(server: Server) -> None:
    status, _, text = get(server, "/healthz")
    assert status == 200
    assert json.loads(text)["status"] == "ok"
    assert get(server, "/readyz")[0] == 200
    assert get(server, "/readyz?verbose=1")[0] == 200
    assert get(server, "/")[0] == 404
    assert get(server, "/metrics/../etc")[0] == 404
    for method in ("POST", "PUT", "DELETE"):
        assert get(server, "/metrics", method)[0] == 405
    status, headers, text = get(server, "/healthz", "HEAD")
    assert (status, text, int(headers["Content-Length"]) > 0) == (200, "", True)


def test_a_node_that_restores_is_alive_and_not_ready(tmp_path: Path) -> None:
    with Server(tmp_path / "data", wal_fsync=False, http_port=free_port()) as server:
        with server.connect(60) as connection:
            line = request("counter.increment", series="a", key=1, bucket=DAY)
            for _ in range(100):
                connection.send(line * 2000)
                assert all(connection.read()["success"] for _ in range(2000))
        server.kill()
        server.start(wait=False)
        seen: dict[str, tuple[int, str]] = {}
        while "ready" not in seen:
            try:
                status, _, text = get(server, "/readyz")
                alive, _, health = get(server, "/healthz")
                metrics = get(server, "/metrics")[2]
            except ConnectionRefusedError:
                continue
            if status == 503 and "restoring" in text and "restoring" not in seen:
                seen["restoring"] = (alive, health + metrics)
            elif status == 200:
                seen["ready"] = (alive, health)
    assert seen["restoring"][0] == 200
    assert "restoring" in seen["restoring"][1]
    assert "karma_restoring 1" in seen["restoring"][1]


# -- Of nodes that follow --------------------------------------------------------------------------------


def readiness(server: Server, word: str) -> None:
    """Wait until /readyz says a word; "ready" is 200, everything else 503."""
    deadline = time.monotonic() + 20
    while True:
        status, _, text = get(server, "/readyz")
        assert (status == 200) == (text == "ready\n")
        if word in text:
            return
        assert time.monotonic() < deadline, text
        time.sleep(0.01)


def slave_of(master: Server, directory: Path, **options: Any) -> Server:
    return Server(
        directory,
        role="slave",
        replication_source_host="127.0.0.1",
        replication_source_port=master.port,
        http_port=free_port(),
        **options,
    )


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "master", http_port=free_port()) as running:
        with running.connect() as connection:
            for key in range(10):
                connection.ask("counter.increment", series="a", key=key)
        yield running


def test_an_empty_slave_is_not_ready_before_its_source_was_there(tmp_path: Path) -> None:
    port = free_port()
    with Server(
        tmp_path / "slave",
        role="slave",
        replication_source_host="127.0.0.1",
        replication_source_port=port,
        http_port=free_port(),
    ) as slave:
        readiness(slave, "nothing received")
        with Server(tmp_path / "master", port=port) as master:
            master.ask("tree.create", series="a")
            readiness(slave, "ready")
        # With what it has it serves on when the source is away.
        readiness(slave, "ready")


def test_a_node_is_not_ready_while_it_is_rebuilt_and_when_it_is_fenced(
    master: Server, tmp_path: Path
) -> None:
    with slave_of(master, tmp_path / "slave") as slave:
        readiness(slave, "ready")
        slave.ask("replication.fence", epoch=1, reason="look at me")
        readiness(slave, "look at me")
        assert json.loads(get(slave, "/healthz")[2])["status"] == "fenced"
        slave.ask("replication.unfence", epoch=1)
        readiness(slave, "ready")
        slave.ask("replication.promote")
        readiness(master, "newer than this node")
        assert get(master, "/healthz")[0] == 200, "it lives"
        # Ordered to be rebuilt, it stays out until it is.
        slave.kill()
        with master.connect() as connection:
            connection.refuse("replication.follow", host="127.0.0.1", port=slave.port, rebuild=True)
        slave.restart()
        with slave.connect() as connection:
            for key in range(1000):
                connection.ask("counter.increment", series=f"s{key}", key=1)
        master.ask("replication.follow", host="127.0.0.1", port=slave.port, rebuild=True)
        status, _, text = get(master, "/readyz")
        assert (status, text) in ((503, "bootstrapping\n"), (200, "ready\n"))
        readiness(master, "ready")
        assert master.ask("counter.sum", series="s999", key=1) == 1


def test_metrics_with_replicas_parse(master: Server, tmp_path: Path) -> None:
    with (
        slave_of(master, tmp_path / "one") as one,
        slave_of(master, tmp_path / "two") as two,
        master.connect() as connection,
    ):
        for slave in (one, two):
            readiness(slave, "ready")
        connection.ask("replication.pause", ttl_ms=60_000)
        families = {
            family.name: family for family in text_string_to_metric_families(get(master, "/metrics")[2])
        }
        ids = {slave.ask("replication.status")["node_id"] for slave in (one, two)}
        for name in ("acked_lsn", "lag_entries", "lag_bytes", "lag_ms", "is_connected"):
            family = families[f"karma_replica_{name}"]
            assert family.type == "gauge"
            assert {sample.labels["node_id"] for sample in family.samples} == ids
            assert len(family.samples) == 2
        addresses = {sample.labels["address"] for sample in families["karma_replica_acked_lsn"].samples}
        assert addresses == {f"127.0.0.1:{slave.port}" for slave in (one, two)}
        values = {name: families[f"karma_{name}"].samples[0].value for name in ("paused", "fenced", "epoch")}
        assert values == {"paused": 1, "fenced": 0, "epoch": 1}
        slave_families = {
            family.name: family for family in text_string_to_metric_families(get(one, "/metrics")[2])
        }
        assert slave_families["karma_role"].samples[0].labels == {"role": "slave"}
        assert slave_families["karma_replication_lag_entries"].samples[0].value == 0


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"GET\r\n\r\n", b"x" * 10_000, b"\x00\xff\r\n\r\n"])
def test_what_is_no_http_request_is_answered_and_closed(server: Server, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.options["http_port"]), 10) as client:
        client.sendall(data)
        assert client.makefile("rb").readline().startswith(b"HTTP/1.1 400 ")
    assert get(server, "/readyz")[0] == 200


def test_metrics_want_the_bearer_token_and_health_does_not(tmp_path: Path) -> None:
    with Server(
        tmp_path / "data", http_port=free_port(), read_auth_token=TOKEN, auth_token="the-write-s3cret"
    ) as server:
        assert get(server, "/healthz")[0] == 200
        assert get(server, "/readyz")[0] == 200
        assert get(server, "/metrics")[0] == 401
        for wrong in ("Bearer ", "Bearer wrong", TOKEN.upper(), f"Basic {TOKEN}"):
            assert get(server, "/metrics", Authorization=wrong)[0] == 401
        for token in (TOKEN, "the-write-s3cret"):
            assert get(server, "/metrics", Authorization=f"Bearer {token}")[0] == 200


def test_the_sidecar_is_off_without_a_port_and_names_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with Server(tmp_path / "data", wait=False, http_port=other.getsockname()[1]) as server:
            assert server.process.wait(20) == 1
            assert "--http-port" in server.output.read_text()


def test_clients_shows_each_open_connection(server: Server) -> None:
    with server.connect() as connection, server.connect() as other:
        other.ask("counter.increment", series="a", key=1)
        other.ask("tree.list")
        other.send(b'{"v":2')
        # A pass later the unfinished line is buffered.
        clients = connection.ask("system.clients")
        while not any(client["buffered_in_bytes"] for client in clients):
            clients = connection.ask("system.clients")
        mine, theirs = sorted(clients, key=lambda client: client["last_op"])
        assert (mine["last_op"], theirs["last_op"]) == ("system.clients", "tree.list")
        assert theirs["requests"] == 2
        assert theirs["buffered_in_bytes"] == 6
        assert theirs["address"] == "{}:{}".format(*other.sock.getsockname())
        assert theirs["access"] == "admin"
        assert mine["id"] < theirs["id"]
        assert 0 <= theirs["idle_seconds"] <= theirs["age_seconds"] < 60


def test_clients_says_what_the_token_in_use_may_do(tmp_path: Path) -> None:
    tokens: dict[str, Any] = {"read_auth_token": TOKEN, "auth_token": "w", "admin_auth_token": "a"}
    with Server(tmp_path / "data", **tokens) as server, server.connect() as admin, server.connect() as reader:
        reader.ask("system.ping", token=TOKEN)
        found = {client["access"] for client in admin.ask("system.clients", token="a")}
        assert found == {"admin", "read"}
        reader.refuse("system.ping", token="wrong")
        assert "none" in {client["access"] for client in admin.ask("system.clients", token="a")}


def test_latency_has_percentiles_per_operation_under_its_own_name(tmp_path: Path) -> None:
    with Server(tmp_path / "data", wal_fsync=False) as server, server.connect() as connection:
        for _ in range(50):
            connection.ask("series.increment", series="a", key=1)
        connection.send(request("system.ping") * 500)
        for _ in range(500):
            connection.read()
        connection.refuse("tree.info", series="none")
        connection.ask("tree.info", series="a")
        connection.ask("snapshot.create_all")
        ops = connection.ask("system.latency")["ops"]
        assert ops["counter.increment"]["total"]["count"] == 50
        assert ops["system.ping"]["total"]["count"] == 500
        assert ops["tree.info"]["total"]["count"] == 2
        assert ops["snapshot.create_all"]["total"]["count"] == 1
        assert "series.increment" not in ops
        for latency in ops.values():
            assert set(latency) == {"total", "last_minute"}
            for figures in latency.values():
                assert set(figures) == {"count", "p50_us", "p95_us", "p99_us", "max_us"}
                assert 0 <= figures["p50_us"] <= figures["p95_us"] <= figures["p99_us"] <= figures["max_us"]
        assert ops["snapshot.create_all"]["total"]["max_us"] > 1000
        assert ops["counter.increment"]["last_minute"]["count"] == 50


# -- The first protocol ----------------------------------------------------------------------------------


def legacy(connection: Connection, command: str, **fields: object) -> tuple[bool, object]:
    connection.send(json.dumps({"command": command, **fields}).encode() + b"\n")
    reply = connection.read()
    assert list(reply) == ["success", "response"]
    return reply["success"], reply["response"]


def test_the_first_protocol_is_off_by_default(server: Server) -> None:
    with server.connect() as connection:
        connection.send(b'{"command":"ping"}\n')
        assert connection.read()["error_code"] == "unsupported_protocol"


def test_the_first_protocol_s_commands_work_beside_the_second(tmp_path: Path) -> None:
    with Server(tmp_path / "data", legacy_protocol=True) as server, server.connect() as connection:
        assert legacy(connection, "ping") == (True, "pong")
        assert legacy(connection, "create", tree_name="a") == (True, "OK")
        assert legacy(connection, "trees") == (True, ["a"])
        assert legacy(connection, "increment", tree_name="a", key=7) == (True, 1)
        assert legacy(connection, "increment", tree_name="a", key=7, value=4) == (True, 4)
        assert legacy(connection, "decrement", tree_name="a", key=7) == (True, 1)
        assert legacy(connection, "sum", tree_name="a", key=7) == (True, 4)
        span = {"time_from": DAY, "time_to": DAY}
        assert connection.ask("counter.increment", series="a", key=8, bucket=DAY, value=3) == 3
        assert legacy(connection, "find", tree_name="a", key=8, **span) == (True, {str(DAY): 3})
        assert legacy(connection, "sum", tree_name="a", key=8, **span) == (True, 3)
        assert legacy(connection, "dump", tree_name="a") == (True, 'Tree "a" saved')
        _, dumps = legacy(connection, "dumps")
        assert isinstance(dumps, list)
        file = str(dumps[0]).rpartition("/")[2]
        assert legacy(connection, "delete", tree_name="a", key=8, **span) == (True, True)
        assert legacy(connection, "sum", tree_name="a", key=8) == (True, 0)
        assert legacy(connection, "reset", tree_name="a", key=7) == (True, "OK")
        assert legacy(connection, "load", tree_name=file) == (True, 'Tree "a" loaded')
        assert legacy(connection, "sum", tree_name="a", key=8) == (True, 3)
        assert legacy(connection, "dump_all") == (True, "OK")
        assert legacy(connection, "drop", tree_name="a") == (True, "OK")
        assert legacy(connection, "sum", tree_name="a", key=8) == (False, 'Tree "a" not found')
        assert legacy(connection, "nonsense")[0] is False
        assert legacy(connection, "increment", key=1)[0] is False
        connection.send(b'{"command":7}\n{"command":null,"tree_name":[]}\n[]\n')
        assert [connection.read()["success"] for _ in range(3)] == [False] * 3


def test_the_first_protocol_needs_the_token_and_the_role_too(tmp_path: Path) -> None:
    with (
        Server(tmp_path / "data", legacy_protocol=True, auth_token=TOKEN) as server,
        server.connect() as connection,
    ):
        assert legacy(connection, "ping")[0] is False
        assert legacy(connection, "ping", token=TOKEN) == (True, "pong")
        assert legacy(connection, "create", tree_name="a")[0] is False
        assert connection.ask("tree.list", token=TOKEN) == []
