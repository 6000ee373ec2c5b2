"""What a follower costs and how far behind it is: a master and a slave on one machine, both ours."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import servers
import workloads
from servers import BenchError, Server

RATE_PER_SECOND = 20_000
TICK_SECONDS = 0.001
CONNECTIONS = 20
"""Each sends one increment a millisecond, as so many application servers would."""
FOLLOW_TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.005
PROBE_SERIES = "__karma_bench"
PROBE_SECONDS = 0.0003
PROBE_PAUSE_SECONDS = 0.005
CLOCK_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@contextmanager
def follower(directory: Path, master: Server, *options: str) -> Iterator[Server]:
    """A slave of `master`, fsync off like it."""
    source = (
        "--role=slave",
        "--replication-source-host=127.0.0.1",
        f"--replication-source-port={master.port}",
    )
    with servers.karma(directory, *source, *options) as server:
        yield server


def wait_for(server: Server, lsn: int) -> float:
    """Waits until a node has everything up to `lsn`: the seconds it took. Raises BenchError."""
    begin = time.perf_counter()
    while servers.ask(server.port, op="system.stats")[0]["wal_current_lsn"] < lsn:
        if time.perf_counter() - begin > FOLLOW_TIMEOUT_SECONDS:
            raise BenchError(f"the follower did not reach LSN {lsn}: {servers.last_words(server.output)}")
        time.sleep(POLL_SECONDS)
    return time.perf_counter() - begin


def last_lsn(server: Server) -> int:
    """The end of a node's log."""
    return int(servers.ask(server.port, op="system.stats")[0]["wal_current_lsn"])


def cpu_seconds(server: Server) -> float:
    """CPU time that a server has used, in user and kernel."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_SECOND


def write_steadily(server: Server, seconds: float) -> int:
    """Sends increments at `RATE_PER_SECOND`, a few each millisecond; returns how many were answered.

    An open loop: a slow server does not slow it down, so a stall shows up in full in whatever is measured
    beside it. Raises BenchError when the server refuses, or answers too slowly for the rate.
    """
    per_tick = round(RATE_PER_SECOND * TICK_SECONDS)
    keys = workloads.keys(1000)
    bursts = [
        b"".join(workloads.karma_increment(keys[(at + nth) % len(keys)]) for nth in range(per_tick))
        for at in range(0, len(keys), per_tick)
    ]
    connections = [
        socket.create_connection(("127.0.0.1", server.port), timeout=servers.REPLY_TIMEOUT_SECONDS)
        for _ in range(CONNECTIONS)
    ]
    sent = answered = 0
    begin = time.perf_counter()
    while (now := time.perf_counter()) - begin < seconds:
        due = int((now - begin) / TICK_SECONDS) - sent
        for _ in range(due):
            connections[sent % CONNECTIONS].sendall(bursts[sent % len(bursts)])
            sent += 1
        answered += _read(connections)
        time.sleep(max(begin + (sent + 1) * TICK_SECONDS - time.perf_counter(), 0))
    deadline = time.perf_counter() + servers.REPLY_TIMEOUT_SECONDS
    while answered < sent * per_tick:
        if time.perf_counter() > deadline:
            raise BenchError(f"{server.name} answered {answered} of {sent * per_tick} increments")
        select.select(connections, [], [], 0.1)
        answered += _read(connections)
    for connection in connections:
        connection.close()
    return answered


def _read(connections: Sequence[socket.socket]) -> int:
    readable, _, _ = select.select(connections, [], [], 0)
    lines = 0
    for connection in readable:
        data = connection.recv(1 << 18)
        if not data or b'"success":false' in data:
            raise BenchError(f"the server refused an increment: {data[:200]!r}")
        lines += data.count(b"\n")
    return lines


class Probe:
    """Writes a mark to a master now and then, and notes how long it takes until the slave shows it.

    The clock runs from the master's reply. What is noted holds the probe's own requests to the slave, too.
    """

    def __init__(self, master: Server, slave: Server) -> None:
        self._lags_ms: list[float] = []
        self._is_over = False
        self._failure: Exception | None = None
        self._master, self._slave = _Connection(master), _Connection(slave)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> list[float]:
        """Ends the probing and returns what was noted, in milliseconds."""
        self._is_over = True
        self._thread.join()
        if self._failure is not None:
            raise BenchError(f"the probe failed: {self._failure!r}")
        return self._lags_ms

    def _run(self) -> None:
        try:
            mark = 0
            while not self._is_over:
                mark += 1
                self._master.ask("counter.increment", series=PROBE_SERIES, key=1)
                begin = time.perf_counter()
                while self._marks_seen() < mark:
                    time.sleep(PROBE_SECONDS)
                self._lags_ms.append((time.perf_counter() - begin) * 1000)
                time.sleep(PROBE_PAUSE_SECONDS)
        except Exception as error:  # noqa: BLE001 - told by stop(), in the thread that asks
            self._failure = error

    def _marks_seen(self) -> int:
        found = self._slave.ask("counter.sum", series=PROBE_SERIES, key=1)
        return found if isinstance(found, int) else 0


class _Connection:
    """One request at a time."""

    def __init__(self, server: Server) -> None:
        address = ("127.0.0.1", server.port)
        self._socket = socket.create_connection(address, timeout=servers.REPLY_TIMEOUT_SECONDS)
        self._replies = self._socket.makefile("rb")

    def ask(self, op: str, **fields: object) -> object:
        self._socket.sendall(json.dumps({"v": 2, "op": op, **fields}).encode() + b"\n")
        return json.loads(self._replies.readline())["response"]


def lag_p99_ms(master: Server, slave: Server, seconds: float) -> float:
    """The 99th percentile of the time until the slave shows what the master acknowledged."""
    servers.ask(master.port, op="tree.create", series=PROBE_SERIES)
    wait_for(slave, last_lsn(master))
    probe = Probe(master, slave)
    write_steadily(master, seconds)
    lags = sorted(probe.stop())
    return lags[len(lags) * 99 // 100]


def cpu_at_rate(master: Server, seconds: float) -> float:
    """The master's CPU time for a second of steady writes."""
    before = cpu_seconds(master)
    write_steadily(master, seconds)
    return (cpu_seconds(master) - before) / seconds
