"""What a request claims of its sender counts with the token that it needs, and for no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Connection, Server, request, until

from karma.limits import MAX_KNOWN_REPLICAS
from karma.storage.node_file import NODE_NAME

TOKENS: dict[str, Any] = {"auth_token": "write", "read_auth_token": "read", "admin_auth_token": "admin"}
PEER, READER = "replication", "read"
DAY = 20260505


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "master", replication_token=PEER, wal_fsync=False, **TOKENS) as server:
        yield server


def write(connection: Connection, count: int = 1) -> None:
    for _ in range(count):
        connection.ask("counter.increment", series="a", key=1, bucket=DAY, token="write")


def claim(connection: Connection, token: str, **claims: Any) -> dict[str, Any]:
    return connection.call("replication.entries", after_lsn=0, limit=1, token=token, **claims)


def test_a_reader_gets_entries_and_leaves_no_trace(master: Server) -> None:
    node_file = master.directory / NODE_NAME
    with master.connect() as connection:
        write(connection, 3)
        before = node_file.read_bytes()
        for number in range(3):
            reply = claim(
                connection, READER, node_id=f"made-up-{number}", acked_lsn=2**64 - 1, port=1, handshake=True
            )
            assert (reply["response"]["count"], reply["response"]["is_counted"]) == (1, False)
        assert connection.ask("replication.wait", acks=1, lsn=1, timeout_ms=0, token=READER)["acks"] == 0
        assert connection.ask("replication.status", token=READER)["replicas"] == []
        # Something that does rewrite the file shows what it would say.
        connection.ask("replication.pause", ttl_ms=1, token="admin")
    assert b"made-up" not in node_file.read_bytes()
    assert b"made-up" not in before


def test_a_reader_says_no_follower_good_bye(master: Server) -> None:
    with master.connect() as connection:
        write(connection)
        claim(connection, PEER, node_id="b", acked_lsn=1)
        claim(connection, READER, node_id="b", leaving=True)
        assert len(connection.ask("replication.status", token=READER)["replicas"]) == 1
        claim(connection, PEER, node_id="b", leaving=True)
        assert connection.ask("replication.status", token=READER)["replicas"] == []


@pytest.mark.parametrize("token", [PEER, "write", "admin"])
def test_a_peer_s_acknowledgement_counts(master: Server, token: str) -> None:
    with master.connect() as connection:
        write(connection)
        assert claim(connection, token, node_id="b", acked_lsn=1, handshake=True)["response"]["is_counted"]
        assert connection.ask("replication.wait", acks=1, lsn=1, timeout_ms=0, token=READER)["acks"] == 1


@pytest.mark.parametrize(("token", "is_degraded"), [(READER, True), (PEER, False)])
def test_sync_replicas_counts_no_reader(tmp_path: Path, token: str, is_degraded: bool) -> None:
    options: dict[str, Any] = {
        "sync_replicas": 1,
        "sync_timeout_ms": 20_000,
        "replication_token": PEER,
        **TOKENS,
    }
    options["sync_timeout_ms"] = 50 if is_degraded else 20_000
    with (
        Server(tmp_path / "data", **options) as server,
        server.connect() as follower,
        server.connect() as client,
    ):
        client.send(request("counter.increment", series="a", key=1, bucket=DAY, token="write"))
        until(lambda: claim(follower, token, node_id="b", acked_lsn=1) and client.has_data())
        assert client.read()["success"]
        assert follower.ask("replication.status", token=READER)["sync_degraded"] is is_degraded


def test_ever_new_names_neither_evict_followers_nor_rewrite_the_file_each_time(master: Server) -> None:
    node_file = master.directory / NODE_NAME
    versions = set()
    with master.connect() as connection:
        write(connection)
        for number in range(4 * MAX_KNOWN_REPLICAS):
            claim(connection, PEER, node_id="real", acked_lsn=1)
            claim(connection, PEER, node_id=f"x{number}", acked_lsn=0)
            versions.add(node_file.stat().st_mtime_ns)
        replicas = connection.ask("replication.status", token=READER)["replicas"]
    assert len(replicas) == MAX_KNOWN_REPLICAS
    assert "real" in {replica["node_id"] for replica in replicas}
    # One for each follower that was remembered, and the one before.
    assert len(versions) <= MAX_KNOWN_REPLICAS + 1


@pytest.mark.parametrize(("token", "is_stopped"), [(READER, False), (PEER, True), ("write", True)])
def test_an_epoch_stops_a_master_only_with_a_token_that_may(
    master: Server, token: str, is_stopped: bool
) -> None:
    with master.connect() as connection:
        cluster_id = connection.ask("replication.status", token=READER)["cluster_id"]
        claim(connection, token, cluster_id=cluster_id, epoch=2, epoch_node_id="other")
        assert (connection.ask("system.health", token=READER)["status"] == "fenced") is is_stopped


def test_a_follower_with_a_reader_s_token_follows_and_says_that_it_does_not_count(
    master: Server, tmp_path: Path
) -> None:
    with master.connect() as connection:
        write(connection, 3)
        options: dict[str, Any] = {"role": "slave", "replication_source_host": "127.0.0.1"}
        options |= {"replication_source_port": master.port, "replication_token": READER}
        with Server(tmp_path / "slave", **options) as slave:
            slave.wait_for_event("not_counted")
            until(lambda: slave.ask("counter.sum", series="a", key=1) == 3)
        assert connection.ask("replication.status", token=READER)["replicas"] == []
