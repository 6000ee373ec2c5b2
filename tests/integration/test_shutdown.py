"""Signals: the drain, the snapshot at the end, and the one in between."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from harness import Connection, Server, request

DAY = 20260505


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_snapshots_and_exits_with_0(tmp_path: Path, number: signal.Signals) -> None:
    with Server(tmp_path / "data") as server:
        server.ask("series.batch_add", series="a", items=[[key, DAY, 2] for key in range(100)])
        assert server.stop(number) == 0
        assert len(list(server.directory.glob("*_a.tree"))) == 1
        assert (server.directory / "karma.wal").read_bytes() == b""
        server.restart()
        assert server.ask("tree.summary", series="a")["total"] == 200


def test_requests_that_run_at_the_signal_are_answered(tmp_path: Path) -> None:
    keys = 200_000
    with Server(
        tmp_path / "data", max_request_bytes=1_000_000, max_response_bytes=0, query_timeout_ms=0
    ) as server:
        with server.connect() as busy, server.connect() as idle:
            for first in range(0, keys, 10_000):
                busy.ask(
                    "series.batch_add",
                    series="large",
                    items=[[key, DAY, 1] for key in range(first, first + 10_000)],
                )
            busy.send(
                request("counter.increment", series="other", key=1)
                + request("tree.series", series="large", range={"from": DAY, "to": DAY})
                + request("counter.increment", series="other", key=2, value=7)
            )
            assert busy.read()["response"] == 1
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_event("stopping")
            assert len(busy.read()["response"]) == keys
            assert busy.read()["response"] == 7
            assert busy.is_ended()
            assert idle.is_ended()
        assert server.process.wait(20) == 0
        server.restart()
        assert server.ask("counter.batch_sum", series="other", keys=[1, 2]) == [
            {"key": 1, "value": 1},
            {"key": 2, "value": 7},
        ]


def test_every_acknowledged_write_is_there_after_a_stop_under_load(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        with server.connect() as connection:
            connection.send(request("counter.increment", series="a", key=1) * 20_000)
            acknowledged = 0
            assert connection.read()["response"] == 1
            acknowledged += 1
            server.process.send_signal(signal.SIGTERM)
            try:
                while connection.read_line():
                    acknowledged += 1
            except ConnectionError:
                pass
        assert server.process.wait(20) == 0
        server.restart()
        assert acknowledged <= server.ask("counter.sum", series="a", key=1) <= 20_000


def test_a_client_that_does_not_read_cannot_hold_the_shutdown_up(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "max_request_bytes": 1_000_000,
        "max_response_bytes": 0,
        "shutdown_timeout": 0.5,
        "write_timeout": 0,
    }
    with Server(tmp_path / "data", **options) as server, server.connect() as deaf:
        keys = list(range(10_000))
        deaf.ask("series.batch_add", series="large", items=[[key, DAY, 10**15] for key in keys])
        deaf.send(request("counter.batch_sum", series="large", keys=keys) * 20)
        assert server.ask("system.ping") == "pong"
        assert server.stop(timeout_seconds=10) == 0


def test_sigusr1_snapshots_everything_and_goes_on(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        connection.ask("counter.increment", series="a", key=1, bucket=DAY)
        connection.ask("counter.increment", series="b", key=1, bucket=DAY)
        server.process.send_signal(signal.SIGUSR1)
        event = server.wait_for_event("snapshot")
        assert event["lsn"] == 2
        assert connection.ask("snapshot.info")["dump_count"] == 2
        assert connection.ask("counter.increment", series="a", key=1, bucket=DAY) == 1
        server.kill()
        server.restart()
        assert server.ask("counter.sum", series="a", key=1) == 2


def test_a_second_signal_does_not_cut_the_first_short(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        server.ask("counter.increment", series="a", key=1, bucket=DAY)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)
        assert server.stop(signal.SIGINT) == 0
        assert len(list(server.directory.glob("*_a.tree"))) == 1


def test_new_connections_are_refused_while_stopping(tmp_path: Path) -> None:
    with Server(
        tmp_path / "data",
        shutdown_timeout=20,
        write_timeout=0,
        max_request_bytes=1_000_000,
        max_response_bytes=0,
    ) as server:
        with server.connect() as deaf:
            keys = list(range(10_000))
            deaf.ask("series.batch_add", series="large", items=[[key, DAY, 10**15] for key in keys])
            # Replies that nobody takes keep the drain waiting.
            deaf.send(request("counter.batch_sum", series="large", keys=keys) * 20)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_event("stopping")
            try:
                late: Connection | None = server.connect()
            except ConnectionError:
                late = None
            if late is not None:
                with late:
                    assert late.is_ended() or late.read()["error_code"] == "overloaded"
        assert server.process.wait(20) == 0
