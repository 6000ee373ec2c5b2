"""A machine whose clock is set under the server: retries, pauses, followers and what is said about it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Connection, Server, free_port, until

DAY = 20260505
EIGHT_DAYS = 8 * 86_400
PROGRAM = """
import os, time
from pathlib import Path
real, ahead = time.time, Path(os.environ["CLOCK_AHEAD"])
time.time = lambda: real() + float(ahead.read_text())
from karma.app import main
main()
"""
"""A server whose wall clock is as far ahead as a file says."""


class Node:
    """A server, and the wall clock of its machine."""

    def __init__(self, directory: Path, ahead_seconds: float = 0.0, **options: Any) -> None:
        self.clock = directory.with_suffix(".clock")
        self.set(ahead_seconds)
        self.server = Server(
            directory,
            {"CLOCK_AHEAD": str(self.clock)},
            program=(sys.executable, "-c", PROGRAM),
            port=free_port(),
            **options,
        )

    def set(self, ahead_seconds: float) -> None:
        """Set the clock. The file is replaced: a reader must not meet half of it."""
        new = self.clock.with_suffix(".new")
        new.write_text(str(ahead_seconds))
        new.replace(self.clock)

    def set_running(self, ahead_seconds: float) -> dict[str, Any]:
        """Set the clock, wait until the server has noticed, and return its statistics."""
        before = self.server.ask("system.stats")["clock_step_count"]
        self.set(ahead_seconds)
        until(lambda: self.server.ask("system.stats")["clock_step_count"] > before)
        stats: dict[str, Any] = self.server.ask("system.stats")
        return stats

    def add(self, *keys: str) -> list[bool]:
        """Add 1 under each idempotency key; return which were recognised."""
        with self.server.connect() as connection:
            return [self._add(connection, key) for key in keys]

    @staticmethod
    def _add(connection: Connection, key: str) -> bool:
        reply = connection.call("counter.increment", series="a", key=1, bucket=DAY, idempotency_key=key)
        assert reply["success"], reply
        return bool(reply["idempotent"])


Start = Callable[..., Node]
KEYS = [f"k{number}" for number in range(20)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    nodes: list[Node] = []

    def start_node(name: str, of: Node | None = None, **options: Any) -> Node:
        if of is not None:
            options |= {
                "role": "slave",
                "replication_source_host": "127.0.0.1",
                "replication_source_port": of.server.port,
            }
        nodes.append(Node(tmp_path / name, **options))
        return nodes[-1]

    yield start_node
    for node in nodes:
        node.server.kill()


def caught_up(slave: Node, master: Node) -> None:
    lsn = master.server.ask("replication.status")["wal_current_lsn"]
    until(lambda: slave.server.ask("replication.status")["wal_current_lsn"] == lsn)


@pytest.mark.parametrize("step", [EIGHT_DAYS, -EIGHT_DAYS])
def test_retries_are_recognised_across_a_step_and_the_restarts_after_it(start: Start, step: float) -> None:
    node = start("a")
    assert node.add(*KEYS) == [False] * 20
    stats = node.set_running(step)
    assert (stats["clock_step_count"], stats["expiry_clock_behind_seconds"]) == (
        1,
        pytest.approx(step, abs=2),
    )
    assert node.add(*KEYS) == [True] * 20
    assert node.add("after") == [False]
    node.server.kill()
    node.server.restart()
    assert node.add(*KEYS, "after") == [True] * 21
    node.set_running(0.0)
    assert node.server.stop() == 0
    node.server.restart()
    assert node.add(*KEYS, "after") == [True] * 21
    assert node.server.ask("counter.sum", series="a", key=1) == 21


def test_a_step_is_told_in_log_and_metrics(start: Start) -> None:
    node = start("a")
    node.set_running(EIGHT_DAYS)
    event = node.server.wait_for_event("clock_step")
    assert (event["level"], event["seconds"]) == ("warning", pytest.approx(EIGHT_DAYS, abs=2))
    metrics = node.server.ask("system.metrics").splitlines()
    assert "karma_clock_steps_total 1" in metrics
    assert any(line.startswith("karma_expiry_clock_behind_seconds 6912") for line in metrics)
    status = node.server.ask("replication.status")
    assert status["clock_step_count"] == 1


def test_a_follower_whose_clock_is_days_ahead_forgets_nothing_when_it_is_promoted(start: Start) -> None:
    master = start("a")
    assert master.add(*KEYS) == [False] * 20
    # With snapshots to fetch, and with log to follow.
    master.server.ask("snapshot.create_all")
    slave = start("b", of=master, ahead_seconds=EIGHT_DAYS)
    assert master.add("later") == [False]
    caught_up(slave, master)
    master.server.kill()
    slave.server.ask("replication.promote")
    assert slave.add(*KEYS, "later") == [True] * 21
    slave.server.kill()
    slave.server.restart()
    assert slave.add(*KEYS, "later") == [True] * 21


@pytest.mark.parametrize("step", [EIGHT_DAYS, -EIGHT_DAYS])
def test_a_pause_lasts_as_long_as_it_said(start: Start, step: float) -> None:
    node = start("a")
    with node.server.connect() as connection:
        connection.ask("replication.pause", ttl_ms=3_600_000)
        node.set_running(step)
        reply = connection.call("counter.increment", series="a", key=1)
        assert 3_500_000 < reply["error_detail"]["retry_after_ms"] <= 3_600_000
        connection.ask("replication.pause", ttl_ms=100)
        until(lambda: connection.call("counter.increment", series="a", key=1)["success"])


def test_a_step_makes_no_follower_look_gone_and_no_lag(start: Start) -> None:
    master = start("a")
    slave = start("b", of=master)
    master.add("k")
    caught_up(slave, master)
    for node in (master, slave):
        node.set_running(EIGHT_DAYS)
    (replica,) = master.server.ask("replication.status")["replicas"]
    assert (replica["is_connected"], replica["lag_entries"]) == (True, 0)
    assert slave.server.ask("replication.status")["lag_ms"] < 60_000
    # Its log is kept: a snapshot lets go of none that the follower may still want.
    master.server.ask("snapshot.create_all")
    assert master.add("l") == [False]
    caught_up(slave, master)
    assert slave.server.ask("system.stats")["replication_bootstrap_attempt_count"] == 0


def test_snapshots_taken_after_a_step_back_are_the_newest(start: Start) -> None:
    node = start("a", ahead_seconds=EIGHT_DAYS, dump_retention_per_tree=1)
    node.add("k")
    node.server.ask("snapshot.create_all")
    node.set_running(0.0)
    node.add("l")
    node.server.ask("snapshot.create_all")
    node.server.kill()
    node.server.restart()
    assert node.server.ask("counter.sum", series="a", key=1) == 2
    assert node.add("k", "l") == [True, True]
