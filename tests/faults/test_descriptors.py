"""Real servers whose descriptors are taken away while they run, and given back."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import Connection, Server, counters_of, free_port, until

DAY = 20260505
MANY_ITEMS = [[key, DAY, 1] for key in range(100)]


def open_fds(server: Server) -> set[int]:
    return {int(path.name) for path in Path(f"/proc/{server.process.pid}/fd").iterdir()}


@contextmanager
def without_descriptors(server: Server, spare: int = 0) -> Iterator[None]:
    """Let a server open nothing more, or so much: its limit is at a descriptor that is free."""
    pid = server.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    free = sorted(set(range(10_000)) - open_fds(server))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[spare], before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def metrics(connection: Connection) -> dict[str, str]:
    text = connection.ask("system.metrics")
    return dict(line.split(" ") for line in text.splitlines() if not line.startswith("#") and "{" not in line)


def segments(server: Server) -> int:
    return len(list(server.directory.glob("**/karma.wal.*.segment")))


def test_a_server_out_of_descriptors_once_needs_no_restart(
    tmp_path: Path, start: Callable[..., Server]
) -> None:
    options: dict[str, Any] = {"wal_segment_bytes": 20_000, "max_request_bytes": 65_536, "read_timeout": 0}
    master = start("master", **options)
    with master.connect() as connection:
        connection.ask("series.batch_add", series="a", items=MANY_ITEMS)
        assert connection.ask("replication.status")["wal_current_lsn"] == 1
        with without_descriptors(master):
            for _ in range(20):
                # The log passes the size at which it is rotated, and goes on in one file.
                connection.ask("series.batch_add", series="a", items=MANY_ITEMS)
            for op, fields in (
                ("snapshot.create_all", {}),
                ("snapshot.create", {"series": "a"}),
                ("snapshot.verify", {}),
                ("replication.checksum", {}),
                ("recovery.checkpoint", {"source": "s", "offset": "1"}),
                ("replication.fence", {"epoch": 9, "reason": "a test"}),
            ):
                assert connection.refuse(op, **fields)[0] == "storage_error", op
            health = connection.ask("system.health")
            assert (health["status"], "fenced_by" in health) == ("ok", False)
            assert "Too many open files" in health["snapshot_error"]
            assert "Too many open files" in health["rotation_error"]
            in_trouble = metrics(connection)
            assert in_trouble["karma_snapshots_failed_total"] == "2"
            assert in_trouble["karma_snapshot_failing"] == in_trouble["karma_rotation_failing"] == "1"
            assert connection.ask("replication.status")["wal_current_lsn"] == 21
        assert segments(master) == 0
        assert [event["event"] for event in master.events()].count("rotation_failed") == 1

        connection.ask("series.batch_add", series="a", items=MANY_ITEMS)
        assert segments(master) == 1
        follower = start("follower", source=master.port, **options)
        assert connection.ask("snapshot.create_all") == "OK"
        health, metric = connection.ask("system.health"), metrics(connection)
        assert "snapshot_error" not in health
        assert "rotation_error" not in health
        assert metric["karma_snapshot_failing"] == metric["karma_rotation_failing"] == "0"
        assert metric["karma_snapshots_failed_total"] == "2"
        connection.ask("series.batch_add", series="b", items=MANY_ITEMS)
        late = start("late", source=master.port, **options)
        checksum = connection.ask("replication.checksum")
        until(lambda: all(slave.ask("replication.checksum") == checksum for slave in (follower, late)))
        held = counters_of(connection)
    master.kill()
    master.restart()
    with master.connect() as connection:
        assert counters_of(connection) == held
        assert connection.ask("snapshot.verify")["status"] == "ok"


def test_no_more_clients_are_taken_than_there_are_descriptors_for(
    tmp_path: Path, needs: Callable[[str], Path]
) -> None:
    prefix = [str(needs("prlimit")), "--nofile=300:300"]
    with Server(tmp_path / "data", prefix=prefix, read_timeout=0, max_clients=10_000) as server:
        event = server.wait_for_event("max_clients_lowered")
        assert (event["level"], event["max_clients"]) == ("warning", 150)
        clients = [server.connect() for _ in range(150)]
        assert all(client.ask("system.ping") for client in clients)
        with server.connect() as late:
            reply = late.read()
        assert reply["error_code"] == "overloaded"
        assert "max-clients (150)" in reply["response"]
        # The reserve is what a snapshot and a rotation need.
        assert clients[0].ask("snapshot.create_all") == "OK"
        for client in clients:
            client.close()


def test_a_limit_that_fits_all_clients_is_not_worth_a_word(tmp_path: Path) -> None:
    with Server(tmp_path / "data", max_clients=10) as server:
        assert "max_clients_lowered" not in json.dumps(server.events())


def test_a_follower_out_of_descriptors_bootstraps_and_follows_once_there_are_some(
    start: Callable[..., Server],
) -> None:
    master = start("master", wal_keep_bytes=0, read_timeout=0)
    with master.connect() as connection:
        connection.ask("series.batch_add", series="a", items=MANY_ITEMS[:50])
        connection.ask("snapshot.create_all")
        connection.ask("series.batch_add", series="b", items=MANY_ITEMS[:50])
    follower = start("follower", source=free_port(), read_timeout=0)
    with follower.connect() as connection:
        assert connection.ask("snapshot.list") == []
        for spare in (0, 1, 2, 3):
            # With none it cannot even connect, with a few it gets further.
            with without_descriptors(follower, spare):
                connection.call("replication.follow", host="127.0.0.1", port=master.port, rebuild=True)
                assert connection.ask("replication.status")["role"] == "slave"
            assert follower.process.poll() is None
        connection.call("replication.follow", host="127.0.0.1", port=master.port, rebuild=True)
        checksum = master.ask("replication.checksum")
        until(lambda: connection.ask("replication.checksum") == checksum)
        assert connection.ask("snapshot.create_all") == "OK"
