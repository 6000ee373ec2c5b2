"""Soak: a master and a follower under mixed load for long: memory, descriptors, log and disk stay flat.

    make soak                           thirty minutes
    make soak ARGS="--minutes 120"      as long as you like

The set of keys is constant, so after a warm-up nothing has a reason to grow: what the last third of the run
shows is compared with what its first third showed. What grows by design is kept out: committed ingest
streams are remembered for ever, so streams end in an abort here. Prints a line a minute and a verdict; exits
with 1 when something grew, when a reply was not as it must be, or when the two nodes differ at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from harness import Connection, Server, request, until

KEYS = 2000
DAYS = (20260504, 20260505, 20260506)
SPAN = {"from": DAYS[0], "to": DAYS[-1]}
OPTIONS: dict[str, Any] = {
    "wal_segment_bytes": 1 << 20,
    "wal_keep_bytes": 4 << 20,
    "snapshot_interval_seconds": 5,
    "dump_retention_per_tree": 2,
    "idempotency_max_records": 2000,
    "max_request_bytes": 1 << 20,
    # A busy machine may keep anybody waiting.
    "read_timeout": 120,
    "query_timeout_ms": 60_000,
}
_CLIENT_SECONDS = 120.0
_WARM_UP_BATCHES = 450
"""Of 1000 items: they fill what a node keeps of its log in memory for followers."""
_SAMPLE_SECONDS = 0.5
_MEGABYTE = 1 << 20
_BETWEEN_SNAPSHOTS = 24 * _MEGABYTE
"""What may be written until the next snapshot is complete: a busy machine takes its time. A log that is never
truncated grows by that in half a minute."""


# -- Load ------------------------------------------------------------------------------------------------


class Load:
    """Clients in threads, each with a kind of work, until `stop`."""

    def __init__(self, master: Server, slave: Server, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.added = 0
        """What was acknowledged in the series that nobody empties."""
        self.failures: list[BaseException] = []
        self._is_over = threading.Event()
        works: list[tuple[Callable[[Connection, Random], None], Server]] = [
            (self._write, master),
            (self._write_once, master),
            (self._ingest, master),
            (self._look, master),
            (self._look, slave),
            (self._come_and_go, master),
            (self._come_and_go, slave),
        ]
        self._threads = [
            threading.Thread(target=self._run, args=(work, node, Random(f"{seed} {number}")), daemon=True)
            for number, (work, node) in enumerate(works)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all work; raises what went wrong in it."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        if self.failures:
            raise self.failures[0]

    def _run(self, work: Callable[[Connection, Random], None], node: Server, random: Random) -> None:
        try:
            while not self._is_over.wait(0.02) and not self.failures:
                # A client stays for a while and comes back.
                with node.connect(_CLIENT_SECONDS) as connection:
                    for _ in range(random.randint(1, 200)):
                        if self._is_over.wait(0.002):
                            return
                        work(connection, random)
        except Exception as error:  # noqa: BLE001 - `stop` raises it
            self.failures.append(error)

    def _exchange(self, connection: Connection, lines: list[bytes]) -> list[Any]:
        connection.send(b"".join(lines))
        replies = [connection.read() for _ in lines]
        for line, reply in zip(lines, replies, strict=True):
            assert reply["success"], (line, reply)
        self.counts["requests"] += len(lines)
        return [reply["response"] for reply in replies]

    def _write(self, connection: Connection, random: Random) -> None:
        ones = [
            {"key": random.randrange(KEYS), "bucket": random.choice(DAYS), "value": random.randint(1, 9)}
            for _ in range(40)
        ]
        lines = [request("counter.increment", series="added", **one) for one in ones]
        lines += [request("counter.increment", series="a", **one) for one in ones]
        lines += [request("counter.decrement", series="a", **one) for one in ones[:10]]
        lines += [request("limit.consume", series="limits", limit=1000, **one) for one in ones[:10]]
        lines.append(request("counter.reset", series="a", key=ones[0]["key"]))
        lines.append(request("tree.delete_range", series="limits", range=SPAN))
        items = [[random.randrange(KEYS), random.choice(DAYS), 1] for _ in range(random.choice([10, 500]))]
        lines.append(request("series.batch_add", series="added", items=items))
        lines.append(request("series.batch_set", series="b", items=items))
        self._exchange(connection, lines)
        self.added += sum(one["value"] for one in ones) + len(items)

    def _write_once(self, connection: Connection, random: Random) -> None:
        key = f"{random.getrandbits(64)}"
        line = request("counter.increment", series="once", key=random.randrange(KEYS), idempotency_key=key)
        self._exchange(connection, [line, line])
        checkpoint = request("recovery.checkpoint", source="pipeline", offset=self.counts["requests"])
        self._exchange(connection, [checkpoint])

    def _ingest(self, connection: Connection, random: Random) -> None:
        stream = f"s{random.randrange(5)}"
        mode = random.choice(["add", "set", "replace_series"])
        items = [[random.randrange(KEYS), random.choice(DAYS), 2] for _ in range(100)]
        lines = [request("ingest.begin", stream_id=stream, mode=mode)]
        lines += [
            request("ingest.chunk", stream_id=stream, series="imported", chunk_seq=number, items=items)
            for number in (1, 2)
        ]
        self._exchange(connection, [*lines, request("ingest.abort", stream_id=stream)])
        lines = [request("tree.create", series="short-lived"), request("tree.drop", series="short-lived")]
        self._exchange(connection, lines)
        self._is_over.wait(0.05)

    def _look(self, connection: Connection, random: Random) -> None:
        lines = [
            request("tree.top", series="added", limit=100),
            request("tree.summary", series="added", range=SPAN),
            request("tree.keys", series="added", limit=500),
            request("counter.batch_sum", series="added", keys=list(range(100))),
            request("system.metrics"),
            request("system.latency"),
            request("system.clients"),
            request("replication.status"),
            request("snapshot.info"),
        ]
        self._exchange(connection, random.sample(lines, 3))
        self._is_over.wait(0.05)
        if random.random() < 0.02:
            self._exchange(connection, [request("snapshot.verify"), request("replication.checksum")])

    def _come_and_go(self, connection: Connection, random: Random) -> None:
        """Connections that last a request, half of one, or none, and are reset or closed."""
        address = connection.sock.getpeername()
        line = request("counter.sum", series="added", key=random.randrange(KEYS))
        for _ in range(5):
            with (
                contextlib.suppress(ConnectionError),
                socket.create_connection(address, _CLIENT_SECONDS) as other,
            ):
                if random.random() < 0.5:
                    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sent = random.choice([b"", line[:20], line, line * 3, b"no request\n"])
                other.sendall(sent)
                if sent.endswith(b"\n") and random.random() < 0.5:
                    other.recv(1000)
                self.counts["connections"] += 1
        self._is_over.wait(0.05)


# -- What must stay flat ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a node from outside."""

    memory_bytes: int
    descriptors: int
    log_bytes: int
    disk_bytes: int


def look_at(node: Server) -> Sample:
    process = Path(f"/proc/{node.process.pid}")
    pages = int((process / "statm").read_text().split()[1])
    log_bytes = disk_bytes = 0
    for path in node.directory.rglob("*"):
        # Files come and go meanwhile.
        with contextlib.suppress(OSError):
            size_bytes = path.stat().st_size if path.is_file() else 0
            disk_bytes += size_bytes
            log_bytes += size_bytes if path.name.startswith("karma.wal") else 0
    return Sample(
        pages * os.sysconf("SC_PAGE_SIZE"), len(list((process / "fd").iterdir())), log_bytes, disk_bytes
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """How a figure of the last third may differ from that of the first."""

    name: str
    figure_of: Callable[[Sequence[int]], float]
    ratio: float
    slack: float
    """Besides the ratio: what a short run shows of noise."""


RULES = {
    "memory_bytes": Rule("memory", statistics.median, 1.03, 3 * _MEGABYTE),
    "descriptors": Rule("descriptors", statistics.median, 1.0, 8),
    # Sizes go up and down with each snapshot, so their peaks are compared.
    "log_bytes": Rule("log", max, 1.25, _BETWEEN_SNAPSHOTS),
    "disk_bytes": Rule("disk", max, 1.25, _BETWEEN_SNAPSHOTS),
}


def growth(name: str, samples: Sequence[Sample]) -> list[str]:
    """Return what grew on a node, as sentences."""
    third = len(samples) // 3
    found = []
    for field, rule in RULES.items():
        values = [getattr(sample, field) for sample in samples]
        first, last = rule.figure_of(values[:third]), rule.figure_of(values[-third:])
        if last > first * rule.ratio + rule.slack:
            found.append(f"{rule.name} of the {name} grew from {first:,.0f} to {last:,.0f}")
    return found


# -- The run ---------------------------------------------------------------------------------------------


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def soak(folder: Path, minutes: float, seed: int) -> list[str]:
    """Run for so long; returns what went wrong, as sentences."""
    seconds = minutes * 60
    with contextlib.ExitStack() as running:
        master = running.enter_context(Server(folder / "master", **OPTIONS))
        source = {"role": "slave", "replication_source_host": "127.0.0.1"}
        following = {**OPTIONS, **source, "replication_source_port": master.port}
        slave = running.enter_context(Server(folder / "slave", **following))
        nodes = {"master": master, "slave": slave}
        added = fill(master)
        until(lambda: lag(slave, master) == 0, seconds=_CLIENT_SECONDS)
        at_rest = {name: look_at(node).descriptors for name, node in nodes.items()}
        load = Load(master, slave, seed)
        samples: dict[str, list[Sample]] = {name: [] for name in nodes}
        start = time.monotonic()
        warm_up = min(seconds / 4, 120)
        line_seconds = min(60, seconds / 3)
        next_line = line_seconds
        while (elapsed := time.monotonic() - start) < seconds and not load.failures:
            time.sleep(_SAMPLE_SECONDS)
            for name, node in nodes.items():
                sample = look_at(node)
                if elapsed > warm_up:
                    samples[name].append(sample)
                if elapsed >= next_line:
                    say(f"{elapsed / 60:6.1f} min  {name:6}  {describe(sample)}")
            if elapsed >= next_line:
                next_line += line_seconds
                done = ", ".join(f"{count:,} {what}" for what, count in load.counts.items())
                say(f"{'':12}{done}, {lag(slave, master):,} entries of lag")
        load.stop()
        problems = [problem for name in nodes for problem in growth(name, samples[name])]
        return problems + differences(nodes, added + load.added, at_rest)


def fill(master: Server) -> int:
    """Write every key that there will be, and more log than is kept in memory; returns what was added."""
    with master.connect() as connection:
        for series in ("added", "a", "b", "once", "limits", "imported"):
            for day in DAYS:
                for first in range(0, KEYS, 1000):
                    items = [[key, day, 1] for key in range(first, first + 1000)]
                    connection.ask("series.batch_add", series=series, items=items)
        for _ in range(_WARM_UP_BATCHES):
            items = [[key, DAYS[1], 1] for key in range(1000)]
            connection.ask("series.batch_add", series="added", items=items)
        return int(connection.ask("tree.summary", series="added")["total"])


def lag(slave: Server, master: Server) -> int:
    there = slave.ask("replication.status")["wal_current_lsn"]
    return int(master.ask("replication.status")["wal_current_lsn"]) - int(there)


def describe(sample: Sample) -> str:
    return (
        f"{sample.memory_bytes / _MEGABYTE:6.1f} MB memory {sample.descriptors:4} descriptors "
        f"{sample.log_bytes / _MEGABYTE:6.1f} MB log {sample.disk_bytes / _MEGABYTE:6.1f} MB disk"
    )


def differences(nodes: dict[str, Server], added: int, at_rest: dict[str, int]) -> list[str]:
    """Return what is wrong when the load has ended."""
    master, slave = nodes.values()
    with contextlib.suppress(AssertionError):
        until(lambda: lag(slave, master) == 0, seconds=_CLIENT_SECONDS)
    behind = lag(slave, master)
    problems = [f"the slave is {behind:,} entries behind and does not catch up"] if behind else []
    digests = {name: node.ask("replication.checksum") for name, node in nodes.items()}
    if digests["master"] != digests["slave"]:
        problems.append(f"the nodes differ: {digests}")
    for name, node in nodes.items():
        total = node.ask("tree.summary", series="added")["total"]
        if total != added:
            problems.append(f"the {name} has {total}, but {added} was acknowledged")
        with contextlib.suppress(AssertionError):
            until(partial(is_at_rest, node, at_rest[name]), seconds=_CLIENT_SECONDS)
        if not is_at_rest(node, at_rest[name]):
            left = look_at(node).descriptors
            problems.append(f"{left} descriptors of the {name} are left, of {at_rest[name]} before the load")
        if "internal_error" in node.output.read_text():
            problems.append(f"the {name} met a bug: see {node.output}")
    for name, node in nodes.items():
        if node.stop(timeout_seconds=_CLIENT_SECONDS) != 0:
            problems.append(f"the {name} did not end as it should")
    return problems


def is_at_rest(node: Server, descriptors: int) -> bool:
    return look_at(node).descriptors <= descriptors


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--seed", type=int, default=1, help="of what the clients do (1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="karma-soak-") as folder:
        problems = soak(Path(folder), options.minutes, options.seed)
    for problem in problems:
        say(f"  {problem}")
    say(f"{'FAILED' if problems else 'passed'}: {options.minutes:g} minutes, seed {options.seed}")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
