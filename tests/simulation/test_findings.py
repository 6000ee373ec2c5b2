"""What the simulation and the model test found, each as the few steps that show it."""

from __future__ import annotations

from typing import Any

import pytest
from simulation.loop import World
from simulation.network import Network
from simulation.node import PORT, Caller, Node, line_of

DAY = 20261121


class Bench:
    """A node and one connection to it."""

    def __init__(self, seed: int = 0, **options: Any) -> None:
        self.world = World(seed)
        self.network = Network(self.world)
        self.node = Node(self.world, self.network, "a", **options)
        self.start()

    def start(self) -> None:
        self.node.start()
        assert self.world.run(lambda: self.node.is_ready, self.world.now + 60), self.node.was_refused
        self.connect()

    def connect(self, host: str = "a") -> None:
        """Talk to a node from now on; an idle connection is closed after a while."""
        opening = self.network.outside.create_task(self.network.outside.create_connection(Caller, host, PORT))
        assert self.world.run(opening.done)
        self.caller: Caller = opening.result()[1]

    def call(self, op: str, **fields: Any) -> dict[str, Any] | None:
        """Return a reply, None when the connection ended instead."""
        (answer,) = self.caller.send([line_of(op, fields)])
        assert self.world.run(answer.done, self.world.now + 60), "no answer"
        return answer.result()

    def ask(self, op: str, **fields: Any) -> Any:
        reply = self.call(op, **fields)
        assert reply is not None
        assert reply["success"], reply
        return reply["response"]

    def add(self, key: int, value: int = 1) -> dict[str, Any] | None:
        return self.call("counter.increment", series="api", key=key, bucket=DAY, value=value)

    def end(self) -> None:
        self.node.crash(power=False)
        self.network.outside.abandon()
        assert self.world.bugs == []


def test_open_streams_survive_a_kill_within_the_first_snapshot() -> None:
    """It had replaced the idempotency snapshot, whose LSN then stood for that of the streams, too."""
    bench = Bench()
    bench.ask("ingest.begin", stream_id="s", mode="add")
    bench.node.disk.refuses = ("create /data/.karma.ingest.msgpack",)
    reply = bench.call("snapshot.create_all")
    assert reply is not None
    assert reply["error_code"] == "storage_error"
    bench.ask("ingest.chunk", stream_id="s", series="api", chunk_seq=1, items=[[1, DAY, 5]])
    bench.node.crash(power=True)
    bench.start()
    assert bench.ask("counter.sum", series="api", key=1) == 5
    assert bench.ask("ingest.begin", stream_id="s", mode="add")["last_chunk_seq"] == 1
    bench.end()


@pytest.mark.parametrize("options", [{"wal_segment_bytes": 200}, {"snapshot_interval_seconds": 1}])
def test_a_failed_sync_ends_the_process_whoever_needed_it(options: dict[str, int]) -> None:
    """In a rotation by size, and in a snapshot that no client waits for, it was logged as a bug."""
    bench = Bench(**options)
    bench.add(1)
    bench.node.disk.sync_failure_rate = 1.0
    if "wal_segment_bytes" in options:
        bench.caller.send([line_of("counter.increment", {"series": "api", "key": 2, "value": 10**9})])
    assert bench.world.run(lambda: not bench.node.is_running, bench.world.now + 60)
    bench.end()


def test_a_snapshot_on_a_full_disk_is_a_storage_error() -> None:
    """Where the rotation or the truncation of the log failed, it was an internal error."""
    for refused in ("create /data/karma.wal", "create /data/.karma.wal.lsn"):
        bench = Bench()
        bench.add(1)
        bench.node.disk.refuses = (refused,)
        reply = bench.call("snapshot.create_all")
        assert reply is not None
        assert reply["error_code"] == "storage_error"
        bench.node.disk.refuses = ()
        assert bench.ask("snapshot.create_all") == "OK"
        bench.end()


def test_a_log_that_cannot_be_renamed_back_ends_the_process() -> None:
    """Every later rotation failed, and with it every snapshot, until somebody restarted the server."""
    bench = Bench()
    bench.add(1)
    bench.node.disk.refuses = ("create /data/karma.wal", "rename /data/karma.wal.0")
    assert bench.call("snapshot.create_all") is None
    assert not bench.node.is_running
    bench.start()
    assert bench.ask("counter.sum", series="api", key=1) == 1
    assert bench.ask("snapshot.create_all") == "OK"
    bench.end()


def test_a_log_that_could_not_be_truncated_is_truncated_with_the_next_snapshot() -> None:
    """Its segment stayed, a later one went, and the next start took the hole for damage."""
    bench = Bench()
    bench.add(1)
    bench.node.disk.refuses = ("create /data/.karma.wal.lsn",)
    assert bench.call("snapshot.create_all") is not None
    bench.node.disk.refuses = ()
    bench.add(2)
    bench.ask("snapshot.create_all")
    bench.add(3)
    bench.node.crash(power=True)
    bench.start()
    assert [bench.ask("counter.sum", series="api", key=key) for key in (1, 2, 3)] == [1, 1, 1]
    bench.end()


def test_a_refused_write_does_not_come_back_after_a_power_cut() -> None:
    """The log was cut back, but nothing synced that: a power cut could bring what was cut off."""
    for seed in range(40):
        bench = Bench(seed)
        bench.add(1)
        bench.node.disk.is_full = True
        reply = bench.add(1, 2)
        assert reply is not None
        assert reply["error_code"] == "storage_error"
        bench.node.crash(power=True)
        bench.start()
        assert bench.ask("counter.sum", series="api", key=1) == 1
        bench.end()


def test_a_snapshot_that_is_loaded_twice_in_one_millisecond_counts_twice() -> None:
    """The second load found the stream of the first, and changed nothing."""
    bench = Bench()
    bench.network.slowest_job_seconds = bench.network.slowest_seconds = 0.0
    bench.add(1)
    bench.ask("snapshot.create_all")
    file = bench.ask("snapshot.list")[0].rpartition("/")[2]
    for _ in range(2):
        bench.add(1)
        bench.ask("snapshot.load", file=file)
        assert bench.ask("counter.sum", series="api", key=1) == 1
    bench.end()


def test_the_last_of_a_chain_tells_the_master_when_it_is_promoted() -> None:
    """It told its source only, which was a slave itself: the master went on, with every link whole."""
    bench = Bench()
    nodes = [bench.node]
    for host, source in (("b", "a"), ("c", "b")):
        slave = {"role": "slave", "replication_source_host": source, "replication_source_port": PORT}
        nodes.append(Node(bench.world, bench.network, host, **slave))
        nodes[-1].start()
    bench.add(1)
    bench.world.run(lambda: False, bench.world.now + 10)
    bench.connect("c")
    bench.ask("replication.promote")
    bench.world.run(lambda: False, bench.world.now + 10)
    bench.connect("a")
    assert bench.ask("replication.status")["fenced_by"]["epoch"] == 2
    for node in nodes[1:]:
        node.crash(power=False)
    bench.end()
