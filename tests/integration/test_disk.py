"""Real disks: one that is full, a directory that is taken, data that would be ignored."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import Connection, Server, counters_of, free_port, request

DAY = 20260505


def on(tiny_disk: Path, tmp_path: Path) -> Path:
    """Return a data directory on the small disk; what the server prints goes elsewhere."""
    (tiny_disk / "data").mkdir()
    (tmp_path / "data").symlink_to(tiny_disk / "data")
    return tmp_path / "data"


def readiness(server: Server) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.options["http_port"], timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/readyz")
        return connection.getresponse().status


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (65_536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)


def test_a_full_disk_refuses_writes_serves_reads_and_recovers_by_itself(
    tiny_disk: Path, tmp_path: Path
) -> None:
    data, ballast = on(tiny_disk, tmp_path), tiny_disk / "ballast"
    with (
        Server(data, max_request_bytes=1_000_000, http_port=free_port()) as server,
        server.connect() as connection,
    ):
        for key in range(10):
            connection.ask(
                "counter.increment", series="a", key=key, bucket=DAY, value=5, idempotency_key=f"k{key}"
            )
        fill_up(ballast)
        # A page of the log may still have room; then it has not.
        items = [[key, DAY, 1] for key in range(5000)]
        refused = connection.refuse("series.batch_add", series="a", items=items)
        assert refused[0] == "storage_error"
        before = counters_of(connection)
        lsn = connection.ask("system.stats")["wal_current_lsn"]
        assert before["a"]["1"] == {str(DAY): 5}
        assert connection.refuse("series.batch_add", series="a", items=items)[0] == "storage_error"
        assert connection.refuse("snapshot.create_all")[0] == "storage_error"
        assert connection.refuse("recovery.checkpoint", source="s", offset="o" * 200)[0] == "storage_error"
        assert counters_of(connection) == before
        assert readiness(server) == 503
        health = connection.ask("system.health")
        assert (health["status"], health["storage_error"]) == ("storage_error", "No space left on device")
        retry = connection.call(
            "counter.increment", series="a", key=1, bucket=DAY, value=5, idempotency_key="k1"
        )
        assert retry["error_code"] == "storage_error" or retry["idempotent"] is True

        ballast.unlink()
        assert connection.ask("series.batch_add", series="a", items=items)["applied"] == 5000
        assert connection.ask("system.health")["status"] == "ok"
        assert readiness(server) == 200
        assert connection.ask("system.stats")["wal_current_lsn"] == lsn + 1
        assert connection.ask("snapshot.create_all") == "OK"
        assert connection.ask("recovery.checkpoint", source="s", offset="o")["offset"] == "o"
        connection.ask("counter.increment", series="a", key=1, bucket=DAY)
        expected = counters_of(connection)
        page = connection.ask("replication.entries", after_lsn=lsn + 1)
        assert [each["lsn"] for each in page["entries"]] == [lsn + 2]
        server.kill()
        server.restart()
        with server.connect() as again:
            assert counters_of(again) == expected
            assert again.ask("snapshot.verify")["status"] == "ok"


def test_a_full_disk_at_the_end_still_ends_with_everything_in_the_log(
    tiny_disk: Path, tmp_path: Path
) -> None:
    data, ballast = on(tiny_disk, tmp_path), tiny_disk / "ballast"
    with Server(data, max_request_bytes=1_000_000) as server, server.connect() as connection:
        connection.ask("series.batch_add", series="a", items=[[key, DAY, 1] for key in range(5000)])
        fill_up(ballast)
        assert server.stop() == 0
        ballast.unlink()
        server.restart()
        assert server.ask("tree.info", series="a")["total"] == 5000


def connect_soon(port: int) -> socket.socket:
    """Connect to a server that prints nothing one could wait for."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 10)
        except ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_log_output_that_nobody_can_take_stops_nothing(tmp_path: Path) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "karma.app",
        "--bind=127.0.0.1",
        f"--port={port}",
        f"--directory={tmp_path}",
    ]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(command, stdout=full, stderr=subprocess.PIPE, text=True)
    try:
        with Connection(connect_soon(port)) as connection:
            assert connection.ask("counter.increment", series="a", key=1) == 1
            assert connection.ask("snapshot.create_all") == "OK"
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=20)
        assert (process.returncode, complaints) == (0, "")
    finally:
        process.kill()
        process.communicate()


def test_a_second_server_on_the_directory_exits_naming_the_holder(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as holder:
        (tmp_path / "link").symlink_to(tmp_path / "data")
        with Server(tmp_path / "link", wait=False) as second:
            assert second.process.wait(30) == 1
            text = second.output.read_text()
            assert "ERROR: " in text
            assert str(holder.process.pid) in text
        assert holder.ask("counter.increment", series="a", key=1) == 1
        holder.kill()
        # The lock of a killed process is gone with it.
        holder.restart()
        assert holder.ask("counter.sum", series="a", key=1) == 1


@pytest.mark.parametrize("option", ["wal", "restore"])
def test_data_that_would_be_ignored_stops_the_start_or_is_moved_aside(tmp_path: Path, option: str) -> None:
    with Server(tmp_path / "data") as server:
        server.ask("counter.increment", series="a", key=1, bucket=DAY)
        server.kill()
        log = (server.directory / "karma.wal").read_bytes()
        server.options[option] = False
        server.start(wait=False)
        assert server.process.wait(20) == 1
        text = server.output.read_text()
        assert f"--{option}=false" in text
        assert "--discard-data=true" in text
        assert (server.directory / "karma.wal").read_bytes() == log

        server.restart(discard_data=True)
        assert server.wait_for_event("data_discarded")["level"] == "warning"
        assert server.ask("tree.list") == []
        moved = list(server.directory.glob("discarded-*/karma.wal"))
        assert [path.read_bytes() for path in moved] == [log]


def test_without_a_log_snapshots_are_all_that_a_restart_has(tmp_path: Path) -> None:
    with Server(tmp_path / "data", wal=False) as server:
        with server.connect() as connection:
            connection.ask("counter.increment", series="a", key=1, bucket=DAY, value=3)
            assert connection.ask("system.health")["wal_enabled"] is False
            assert connection.refuse("replication.entries", after_lsn=0)[0] == "replication_error"
            connection.ask("snapshot.create_all")
            connection.ask("counter.increment", series="a", key=1, bucket=DAY, value=100)
        server.kill()
        assert not (server.directory / "karma.wal").exists()
        server.restart()
        assert server.ask("counter.sum", series="a", key=1) == 3
        server.ask("counter.increment", series="a", key=1, bucket=DAY, value=4)
        assert server.stop() == 0
        server.restart()
        assert server.ask("counter.sum", series="a", key=1) == 7


def test_a_directory_that_cannot_be_made_or_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Server(tmp_path / "file", wait=False) as server:
        assert server.process.wait(20) == 1
        text = server.output.read_text()
        assert "ERROR: " in text
        assert str(tmp_path / "file") in text
        assert "Traceback" not in text


def test_writes_are_in_the_log_before_they_are_answered(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        for key in range(50):
            connection.send(request("counter.increment", series="a", key=key, bucket=DAY))
            connection.read()
            assert (server.directory / "karma.wal").read_bytes().count(b"\n") == key + 1
        server.kill()
        server.restart()
        assert server.ask("tree.info", series="a")["total"] == 50


def test_a_snapshot_ahead_of_a_log_that_lost_its_end_restores_and_goes_on(tmp_path: Path) -> None:
    with Server(tmp_path / "data", wal_fsync=False) as server:
        with server.connect() as connection:
            for series in ("old", "new"):
                connection.ask("counter.increment", series=series, key=1, bucket=DAY)
            connection.ask("snapshot.create_all")
            for series in ("old", "new", "new"):
                connection.ask("counter.increment", series=series, key=1, bucket=DAY)
            connection.ask("snapshot.create", series="new")
        server.kill()
        log = server.directory / "karma.wal"
        # What a power cut without fsync leaves: the log's end is lost, a snapshot of one series knows of it.
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:1]))
        for _ in range(2):
            server.restart()
            with server.connect() as connection:
                assert connection.ask("counter.sum", series="old", key=1) == 2
                assert connection.ask("counter.sum", series="new", key=1) == 3
            server.kill()
        server.restart()
        with server.connect() as connection:
            connection.ask("counter.increment", series="old", key=1, bucket=DAY)
            assert connection.ask("snapshot.verify")["status"] == "ok"
            entries = connection.ask("replication.entries", after_lsn=5)["entries"]
        assert [entry["lsn"] for entry in entries] == [6]
