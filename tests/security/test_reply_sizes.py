"""What every tool asks first is answered however much there is: its size does not depend on data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import Server, until

from karma_client import connect

SMALL_BYTES = 64 << 10
"""What a node may be configured to answer at most, and must still be operable."""
SOURCES, SERIES, CLIENTS, FOLLOWERS = 2_500, 300, 100, 64
DAY = 20260505
VITAL: tuple[tuple[str, dict[str, Any]], ...] = (
    # What topology, doctor, check, playbooks, the dashboard and health probes stand on.
    ("system.ping", {}),
    ("system.health", {}),
    ("system.stats", {}),
    ("system.latency", {}),
    ("system.metrics", {}),
    ("system.clients", {"limit": CLIENTS}),
    ("replication.status", {}),
    ("replication.entries", {"after_lsn": SERIES, "handshake": True, "node_id": "n0"}),
    ("replication.wait", {"acks": 1, "timeout_ms": 0}),
    ("replication.checksum", {}),
    ("recovery.status", {"limit": 50}),
    ("recovery.status", {"source": "source 2499"}),
    ("replication.pause", {"ttl_ms": 1}),
    ("replication.resume", {}),
    ("replication.fence", {"epoch": 2, "reason": "r" * 512}),
    ("replication.promote", {}),
)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node with many series, snapshots, checkpoints, followers and connections."""
    directory = tmp_path_factory.mktemp("sizes") / "data"
    directory.mkdir()
    checkpoints = [
        # As a Karma 1.0 left them, which had no bound.
        {"source": f"source {n}", "offset": "o" * 200, "event_id": None, "updated_at_unix": 1_700_000_000 + n}
        for n in range(SOURCES)
    ]
    (directory / "recovery.json").write_text(json.dumps({"checkpoints": checkpoints}))
    options: dict[str, Any] = {"max_request_bytes": 65_536, "wal_fsync": False, "read_timeout": 0}
    with Server(directory, **options) as server, ExitStack() as connections:
        with server.connect() as connection:
            for number in range(SERIES):
                connection.ask("counter.increment", series=f"{number:03}" + "n" * 197, key=1, bucket=DAY)
            connection.ask("snapshot.create_all")
            for number in range(FOLLOWERS):
                connection.ask("replication.entries", after_lsn=SERIES, node_id=f"n{number}", acked_lsn=0)
        assert server.stop() == 0
        server.restart(max_response_bytes=SMALL_BYTES)
        for _ in range(CLIENTS):
            connections.enter_context(server.connect()).ask("system.ping")
        yield server


@pytest.mark.parametrize(("op", "fields"), VITAL, ids=[op for op, _ in VITAL])
def test_a_vital_reply_is_small_however_much_there_is(full: Server, op: str, fields: dict[str, Any]) -> None:
    with full.connect() as connection:
        reply = connection.call(op, **fields)
    assert reply["error_code"] is None, reply["response"]


def test_status_counts_everything_and_names_the_newest(full: Server) -> None:
    status = full.ask("replication.status")
    assert status["latest_snapshot_count"] == SERIES
    assert len(status["latest_snapshots"]) == 8
    assert status["recovery_checkpoint_count"] == status["recovery"]["checkpoint_count"]
    newest = [checkpoint["source"] for checkpoint in status["recovery"]["checkpoints"]]
    assert newest == [f"source {number}" for number in range(SOURCES - 8, SOURCES)]


def test_pages_of_checkpoints_hold_each_once(full: Server) -> None:
    names: list[str] = []
    cursor: str | None = None
    with full.connect() as connection:
        count = connection.ask("replication.status")["recovery_checkpoint_count"]
        while True:
            more = {} if cursor is None else {"cursor": cursor}
            page = connection.ask("recovery.status", limit=150, **more)
            assert page["checkpoint_count"] == count
            names += [checkpoint["source"] for checkpoint in page["checkpoints"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
    assert len(names) == len(set(names)) == count
    assert names == sorted(names)


def test_connections_are_listed_in_parts(full: Server) -> None:
    ids: list[int] = []
    with full.connect() as connection:
        while clients := connection.ask("system.clients", limit=30, after_id=ids[-1] if ids else 0):
            ids += [client["id"] for client in clients]
    assert len(ids) == len(set(ids)) == CLIENTS + 1


def test_a_new_source_beyond_the_bound_drops_those_set_longest_ago(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    checkpoints = [
        {"source": f"s{number}", "offset": number, "event_id": None, "updated_at_unix": 1_000 + number}
        for number in range(1_200)
    ]
    (directory / "recovery.json").write_text(json.dumps({"checkpoints": checkpoints}))
    options: dict[str, Any] = {"wal_fsync": False}
    with Server(directory, **options) as server, server.connect() as connection:
        assert connection.ask("recovery.status")["checkpoint_count"] == 1_200, "all of a Karma 1.0's are read"
        with Server(
            tmp_path / "slave",
            role="slave",
            replication_source_host="127.0.0.1",
            replication_source_port=server.port,
            **options,
        ) as slave:
            connection.ask("recovery.checkpoint", source="new", offset=1)
            kept = connection.ask("recovery.status")["checkpoints"]
            assert [found["source"] for found in kept] == [*(f"s{n}" for n in range(201, 1_200)), "new"]
            server.wait_for_event("checkpoints_dropped")
            digest = connection.ask("replication.checksum")
            until(lambda: slave.ask("replication.checksum") == digest)
        assert server.stop() == 0
        server.restart()
        assert server.ask("recovery.status")["checkpoint_count"] == 1_000


def test_the_client_gets_all_of_a_listing_that_no_reply_could_hold(full: Server) -> None:
    with connect(f"127.0.0.1:{full.port}") as client:
        found = client.recovery_status()
        assert len(found) == full.ask("replication.status")["recovery_checkpoint_count"]
        assert [checkpoint.source for checkpoint in client.recovery_status("source 7")] == ["source 7"]
