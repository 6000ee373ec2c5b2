"""What happens in one simulation, as its seed decides, and what must hold whatever happens.

Clients work while nodes are killed, lose their power, are stopped, snapshot, fill their disks, fail to write
and to sync; slaves are cut off and promoted. At the end everything heals, all nodes crash once more, and
everything owed is looked for.

Run as a script it repeats seeds:  python tests/simulation/history.py --seed 7 --trace
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from simulation.clients import BitClient, Client, ModelClient, Promises, Reply
from simulation.disk import MemoryDisk
from simulation.loop import World
from simulation.network import Network
from simulation.node import DIRECTORY, PORT, Node

from karma.core.buckets import items
from karma.core.idempotency import Records
from karma.service import write_path
from karma.storage import recovery

_MAX_SECONDS = 3_600.0
"""Of the simulation's time: what still runs then, hangs."""


class History:
    """One node or a few, their clients, and what befalls them."""

    def __init__(self, seed: int) -> None:
        self.world = world = World(seed)
        self.random = random = world.random
        self.network = Network(world)
        self.network.slowest_seconds = random.choice((0.0, 0.001, 0.05))
        self.network.high_bytes = random.choice((300, 64 << 10))
        self.network.slowest_job_seconds = random.choice((0.001, 0.01, 0.3))
        size = random.choice((1, 1, 1, 2, 3))
        self.is_synced = size > 1 or random.random() < 0.8
        options = {
            "wal_fsync": self.is_synced,
            "wal_segment_bytes": random.choice((600, 4_000, 64 << 20)),
            "wal_batch_size": random.choice((1, 3, 1024)),
            "wal_batch_wait_us": random.choice((0, 0, 500)),
            "wal_keep_bytes": random.choice((0, 2_000, 64 << 20)),
            "snapshot_wal_bytes": random.choice((0, 0, 3_000)),
            "snapshot_interval_seconds": random.choice((0, 0, 2)),
            "dump_retention_per_tree": random.choice((1, 2, 5)),
            "max_clients": random.choice((2, 100, 100)) if size == 1 else 100,
            "replication_batch_size": random.choice((2, 1000)),
        }
        self.nodes = [
            self._node(host, options, random.choice("ab"[: max(n, 1)])) for n, host in enumerate("abc"[:size])
        ]
        self.node = self.nodes[0]
        """The master that clients write to."""
        # Else a thread would sync for more clients only than there are here.
        self.inline_sync_clients = random.choice((0, 8))
        self.promises = Promises(world, self.is_synced)
        self.bits = [self._client(BitClient, f"bits{n}", self.promises) for n in range(random.randint(1, 3))]
        self.models = [
            self._client(ModelClient, f"model{n}") for n in range(random.randint(1, 2) if size == 1 else 0)
        ]
        for client in self.models:
            client.past = None if self.is_synced else []
        self.admin: Client = self._client(Client, "admin")
        self.log: dict[int, Any] = {}
        """What each LSN was seen to name."""
        self.figures: Counter[str] = Counter({"nodes": size})
        self.is_over = False
        self._heals = self._is_calm = False

    def _node(self, host: str, options: dict[str, Any], source: str) -> Node:
        if host != "a":
            options = {
                **options,
                "role": "slave",
                "replication_source_host": source,
                "replication_source_port": PORT,
            }
        node = Node(self.world, self.network, host, **options)
        node.on_end = lambda: self._ended(node)
        return node

    def _client(self, kind: type[Any], name: str, *more: Any) -> Any:
        return kind(name, self.world, self.network, "a", *more)

    # -- The course of things --------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Run to the end; returns what was broken, nothing if all is well."""
        with patch.object(write_path, "INLINE_SYNC_CLIENTS", self.inline_sync_clients):
            for node in self.nodes:
                self._start(node)
            self._let(self._work())
            if not self.world.bugs:
                self._let(self._settle())
            if not self.world.bugs:
                self._compare()
        self.is_over = True
        for node in self.nodes:
            node.crash(power=False)
        self.network.outside.abandon()
        self.figures.update(
            writes=self.promises.acked, reads=self.promises.reads, unanswered=self.promises.lost
        )
        return self.world.bugs

    def _let(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.network.outside.create_task(work)
        in_time = self.world.run(lambda: task.done() or bool(self.world.bugs), self.world.now + _MAX_SECONDS)
        if not in_time:
            self.world.fail(f"something hangs: {work!r} is not done after {_MAX_SECONDS:g} s")
        elif task.done():
            task.result()

    async def _work(self) -> None:
        clients = [client.run(self.random.randint(3, 12)) for client in (*self.bits, *self.models)]
        chaos = asyncio.ensure_future(self._chaos())
        await asyncio.gather(*clients)
        # Never in the middle of an order: whoever gave it has to know what came of it.
        self._is_calm = True
        await chaos

    async def _settle(self) -> None:
        """Heal, crash once more, and look for everything that is owed."""
        self._heals = True
        self.network.cut.clear()
        for node in self.nodes:
            if node.is_running:
                self._heal(node)
                node.crash(power=self.random.random() < 0.7)
        for client in self.models:
            while len(client.states) > 1:
                before = len(client.states)
                await client.look()
                if len(client.states) == before:
                    break
            await client.look()
            client.leave()
        if len(self.nodes) > 1:
            await self._unite()
        await self._audit()
        await self._read_log()
        reply = await self.admin.ask("snapshot.verify", {})
        if not reply["success"]:
            self.world.fail(f"snapshot.verify is answered {reply}")
        self.is_over = True
        for node in self.nodes:
            node.stop()
        while any(node.is_running for node in self.nodes):  # noqa: ASYNC110 - time costs nothing here
            await asyncio.sleep(0.1)

    async def _audit(self) -> None:
        """Read every cell: what was acknowledged is there once, what was refused not, batches are whole."""
        values: dict[int, int] = {}
        for (name, key), cell in self.promises.cells.items():
            owed = cell.acked | cell.shown
            reply = await self.admin.ask("counter.sum", {"series": name, "key": key})
            if not reply["success"]:
                if owed or reply["error_code"] != "not_found":
                    self.world.fail(f"{name} is answered {reply} at the end, where {owed:b} is owed")
                continue
            values[id(cell)] = reply["response"]
            self.promises.show("the end", cell, reply["response"], owed)
        for bits in self.promises.batches:
            there = {bool(values.get(id(cell), 0) & bit) for cell, bit in bits}
            if len(there) > 1:
                self.world.fail(f"of the batch {[f'{bit:b}' for _, bit in bits]} only a part is there")

    async def _read_log(self) -> None:
        """Read the log as a tail does: no LSN ever names two entries that anybody could have seen."""
        master = self.node
        after = self.random.choice([0, max(self.log, default=0), *self.log])
        (reply,) = await self.admin.exchange([("replication.entries", {"after_lsn": after, "limit": 50})])
        if reply is None or not reply["success"] or self.node is not master:
            return
        for found in reply["response"]["entries"]:
            entry = self.log.setdefault(found["lsn"], found["entry"])
            if entry != found["entry"]:
                self.world.fail(f"LSN {found['lsn']} named {entry}, and names {found['entry']}")

    def _compare(self) -> None:
        """Restore what the node left behind, aside: nothing is there but what was served."""
        disk = MemoryDisk(self.node.platter)
        found = recovery.read(disk, DIRECTORY, Records(), int(self.world.unix()))
        if found.log_entries:
            self.world.fail(f"{found.log_entries} log entries are left after a clean end")
        store = self.node.server.engine.store
        stored, served = (
            {
                name: {key: list(items(counter)) for key, counter in series.counters.items()}
                for name, series in one.series.items()
            }
            for one in (found.store, store)
        )
        if stored != served or list(stored) != list(served):
            self.world.fail("a clean end stored something else than was served")

    # -- Several nodes ---------------------------------------------------------------------------------

    async def _order(self, node: Node, op: str, fields: dict[str, Any] | None = None) -> Reply:
        """Send an operator's order to a node."""
        client = Client("operator", self.world, self.network, node.host)
        (reply,) = await client.exchange([(op, fields or {})])
        client.leave()
        return reply

    async def _status(self, node: Node) -> dict[str, Any]:
        while True:
            reply = await self._order(node, "replication.status")
            if reply is not None and reply["success"]:
                status: dict[str, Any] = reply["response"]
                return status
            await asyncio.sleep(0.5)

    async def _promote(self, _node: Node) -> None:
        """Make a slave the master: behind a fence with nothing lost, or at once, as after a disaster."""
        slaves = [node for node in self.nodes if node is not self.node and node.is_ready]
        if not slaves:
            return
        heir, lsn, epoch = self.random.choice(slaves), None, 0
        master: dict[str, Any] = {}
        before = await self._status(heir)
        if before["cluster_id"] is None or (before["role"] == "master" and before["fenced_by"] is None):
            # It has met nobody yet, or is a master that was not told yet: no operator would.
            return
        if before["role"] == "slave" and before["master"] != f"{self.node.host}:{PORT}":
            # The last of a chain that has not met its source since its start: it could not tell the master.
            return
        if self.node.is_ready and self.random.random() < 0.5:
            master = await self._status(self.node)
            epoch = master["epoch"]
            fence = {"epoch": epoch, "reason": "a switchover"}
            reply = await self._order(self.node, "replication.fence", fence)
            lsn = reply["response"]["wal_current_lsn"] if reply is not None and reply["success"] else None
        is_whole = False
        if lsn is not None and await self._reaches(heir, lsn, 30.0):
            # The same LSN tells nothing of one that is on another branch.
            found = await self._status(heir)
            is_whole = found["role"] == "slave" and _epoch(found) == _epoch(master)
        reply = await self._order(heir, "replication.promote")
        # Without a reply it may have been promoted or not: an operator looks.
        if (await self._status(heir))["role"] == "master" if reply is None else reply["success"]:
            self.world.note("operator", heir.host, "is master", "without loss" if is_whole else "with loss")
            self.figures["switchovers" if is_whole else "failovers"] += 1
            if not is_whole:
                self.promises.forget()
            self.log.clear()
            self.node = heir
            for client in (*self.bits, self.admin):
                client.move(heir.host)
        elif lsn is not None:
            await self._order(self.node, "replication.unfence", {"epoch": epoch})

    async def _reaches(self, node: Node, lsn: int, seconds: float) -> bool:
        until = self.world.now + seconds
        while self.world.now < until:
            if (await self._status(node))["wal_current_lsn"] >= lsn:
                return True
            await asyncio.sleep(0.2)
        return False

    async def _unite(self) -> None:
        """Let all nodes follow the master: they end with its data. Who was master before takes no writes."""
        others = [node for node in self.nodes if node is not self.node]
        master = await self._status(self.node)
        if master["role"] != "master" or master["fenced_by"] is not None:
            await self._order(self.node, "replication.promote")
        for node in others:
            until = self.world.now + 120
            status = await self._status(node)
            while status["role"] == "master" and status["fenced_by"] is None:
                if self.world.now > until:
                    self.world.fail(f"{node.host} is still a master, beside {self.node.host}")
                    return
                await asyncio.sleep(1)
                status = await self._status(node)
            source = {"host": self.node.host, "port": PORT, "rebuild": True}
            if self.figures["switchovers"] + self.figures["failovers"]:
                while not (
                    (reply := await self._order(node, "replication.follow", source)) and reply["success"]
                ):
                    await asyncio.sleep(1)
                    if self.world.now > until + 120:
                        self.world.fail(f"{node.host} cannot follow {self.node.host}: {reply}")
                        return
        mine = await self._order(self.node, "replication.checksum")
        for node in others:
            until, theirs = self.world.now + 300, None
            while mine is None or theirs is None or theirs["response"] != mine["response"]:
                if self.world.now > until:
                    self.world.fail(f"{node.host} holds {theirs}, the master {mine}")
                    return
                await asyncio.sleep(0.5)
                theirs = await self._order(node, "replication.checksum")

    async def _cut_link(self, _node: Node) -> None:
        pair = frozenset(node.host for node in self.random.sample(self.nodes, 2))
        self.world.note("cut", *sorted(pair))
        self.network.cut.add(pair)
        self.network.outside.call_later(self.random.random() * 20, self.network.cut.discard, pair)

    async def _read_slave(self, _node: Node) -> None:
        """What a slave shows is durable at its master, and so will be there until a failover gives it up."""
        slave = self.random.choice(self.nodes)
        known = sorted(self.promises.cells)
        if slave is self.node or not known or not slave.is_ready or self.figures["failovers"]:
            return
        (name, key), forgotten = self.random.choice(known), self.promises.times_forgotten
        reply = await self._order(slave, "counter.sum", {"series": name, "key": key})
        if reply is not None and reply["success"] and forgotten == self.promises.times_forgotten:
            self.figures["reads of slaves"] += 1
            self.promises.show(slave.host, self.promises.cells[name, key], reply["response"], 0)

    # -- Faults ----------------------------------------------------------------------------------------

    async def _chaos(self) -> None:
        random = self.random
        while not self._is_calm:
            await asyncio.sleep(random.random() * random.choice((0.05, 0.5, 2.0)))
            fault = random.choice(_FAULTS if len(self.nodes) == 1 else _CLUSTER_FAULTS)
            node = random.choice(self.nodes)
            if not node.is_ready:
                continue
            self.figures[fault.__name__.strip("_")] += 1
            await fault(self, node)

    async def _kill(self, node: Node) -> None:
        node.crash(power=False)

    async def _cut_power(self, node: Node) -> None:
        node.crash(power=True)

    async def _stop(self, node: Node) -> None:
        node.stop()

    async def _fill_disk(self, node: Node) -> None:
        await self._trouble(node.disk, "is_full", True, False)

    async def _fail_writes(self, node: Node) -> None:
        await self._trouble(node.disk, "error_rate", 0.3, 0.0)

    async def _fail_syncs(self, node: Node) -> None:
        await self._trouble(node.disk, "sync_failure_rate", 0.05, 0.0)

    async def _slow_syncs(self, node: Node) -> None:
        await self._trouble(node.disk, "slowest_sync_seconds", 0.2, 0.0)

    async def _trouble(self, disk: MemoryDisk, name: str, value: Any, healthy: Any) -> None:
        self.world.note("disk", name, value)
        setattr(disk, name, value)
        await asyncio.sleep(self.random.random() * 2)
        setattr(disk, name, healthy)

    def _heal(self, node: Node) -> None:
        disk = node.disk
        disk.is_full = False
        disk.error_rate = disk.sync_failure_rate = disk.slowest_sync_seconds = 0.0

    async def _snapshot(self, node: Node) -> None:
        op, fields = self.random.choice(
            (
                ("snapshot.create_all", {}),
                ("snapshot.create", {"series": self.random.choice("ab")}),
                ("snapshot.verify", {}),
                ("replication.checksum", {}),
            )
        )
        if node is self.node:
            (reply,) = await self.admin.exchange([(op, fields)], wait=self.random.random() > 0.2)
        else:
            reply = await self._order(node, op, fields)
        expected = (None, "storage_error", "not_found", "overloaded")
        if reply is not None and reply["error_code"] not in expected:
            self.world.fail(f"{op} is answered {reply}")

    async def _tail(self, _node: Node) -> None:
        await self._read_log()

    # -- Ends and starts -------------------------------------------------------------------------------

    def _start(self, node: Node) -> None:
        node.start()
        if not self._heals and self.random.random() < 0.1:
            # Starts must stand bad disks, too; the next one gets a good one.
            node.disk.error_rate = self.random.choice((0.05, 0.5))
            self.network.outside.call_later(1.0, setattr, node.disk, "error_rate", 0.0)

    def _ended(self, node: Node) -> None:
        if self.is_over:
            return
        self.figures["ends"] += 1
        if node.was_refused is not None:
            self.figures["refused starts"] += 1
            if not node.disk.faults:
                self.world.fail(f"{node.host} does not start again: {node.was_refused}")
                return
        if not self.is_synced and node.platter.has_lost:
            self.promises.forget()
            for client in self.models:
                client.forget()
            self.log.clear()
        node.platter.has_lost = False
        self.network.outside.call_later(self.random.random() * 2, self._start, node)


def _epoch(status: dict[str, Any]) -> tuple[int, str]:
    return status["epoch"], status["epoch_node_id"]


Fault = Callable[[History, Node], Coroutine[Any, Any, None]]
_FAULTS: tuple[Fault, ...] = (
    History._kill,
    History._cut_power,
    History._cut_power,
    History._stop,
    History._fill_disk,
    History._fail_writes,
    History._fail_syncs,
    History._slow_syncs,
    History._snapshot,
    History._snapshot,
    History._snapshot,
    History._tail,
    History._tail,
)
_CLUSTER_FAULTS: tuple[Fault, ...] = (
    *_FAULTS,
    History._cut_link,
    History._cut_link,
    History._promote,
    History._read_slave,
    History._read_slave,
    History._read_slave,
)


def simulate(seed: int) -> History:
    """Run the history of a seed; what was broken stands in `world.bugs`."""
    history = History(seed)
    try:
        history.run()
    except Exception as error:  # noqa: BLE001 - an assertion of the simulation, or a bug that stopped it
        history.world.fail(f"{type(error).__name__}: {error}")
    return history


def _outcome(seed: int) -> tuple[int, list[str], Counter[str]]:
    history = simulate(seed)
    return seed, history.world.bugs, history.figures


def main() -> int:
    """Run the seeds that the command line names; returns 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed (1)")
    parser.add_argument("--cycles", type=int, default=1, help="how many, each next adds 1 (1)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work (1)")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.cycles)
    started, broken, figures = time.monotonic(), [], Counter[str]()
    if options.trace:
        for seed in seeds:
            history = simulate(seed)
            sys.stdout.write("\n".join([*history.world.trace, *history.world.bugs, ""]))
    with multiprocessing.Pool(options.jobs) as pool:
        for seed, bugs, found in pool.imap_unordered(_outcome, seeds, chunksize=20):
            figures.update(found)
            if bugs:
                broken.append(seed)
                sys.stdout.write(f"seed {seed}: {bugs[0]}\n")
    seconds = time.monotonic() - started
    counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in sorted(figures.items()))
    sys.stdout.write(f"{len(seeds)} seeds in {seconds:.0f} s, {len(broken)} broken: {counts}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
