"""What happens in one simulation, as its seed decides, and what must hold whatever happens.

Clients work while the node is killed, loses its power, is stopped, snapshots, fills its disk, fails to write
and to sync. At the end everything heals, the node crashes once more, and everything owed is looked for.

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

from simulation.clients import BitClient, Client, ModelClient, Promises
from simulation.disk import MemoryDisk
from simulation.loop import World
from simulation.network import Network
from simulation.node import DIRECTORY, Node

from karma.core.buckets import items
from karma.core.idempotency import Records
from karma.service import write_path
from karma.storage import recovery

_MAX_SECONDS = 3_600.0
"""Of the simulation's time: what still runs then, hangs."""


class History:
    """One node, its clients, and what befalls them."""

    def __init__(self, seed: int) -> None:
        self.world = world = World(seed)
        self.random = random = world.random
        self.network = Network(world)
        self.network.slowest_seconds = random.choice((0.0, 0.001, 0.05))
        self.network.high_bytes = random.choice((300, 64 << 10))
        self.is_synced = random.random() < 0.85
        self.node = Node(
            world,
            self.network,
            "a",
            wal_fsync=self.is_synced,
            wal_segment_bytes=random.choice((600, 4_000, 64 << 20)),
            wal_batch_size=random.choice((1, 3, 1024)),
            wal_batch_wait_us=random.choice((0, 0, 500)),
            snapshot_wal_bytes=random.choice((0, 0, 3_000)),
            snapshot_interval_seconds=random.choice((0, 0, 2)),
            dump_retention_per_tree=random.choice((1, 2, 5)),
            max_clients=random.choice((2, 100, 100)),
        )
        # Else a thread would sync for more clients only than there are here.
        self.inline_sync_clients = random.choice((0, 8))
        self.node.on_end = self._ended
        self.promises = Promises(world, self.is_synced)
        self.bits = [self._client(BitClient, f"bits{n}", self.promises) for n in range(random.randint(1, 3))]
        self.models = [self._client(ModelClient, f"model{n}") for n in range(random.randint(1, 2))]
        for client in self.models:
            client.past = None if self.is_synced else []
        self.admin = self._client(Client, "admin")
        self.log: dict[int, Any] = {}
        """What each LSN was seen to name."""
        self.figures: Counter[str] = Counter()
        self.is_over = False
        self._heals = False

    def _client(self, kind: type[Any], name: str, *more: Any) -> Any:
        return kind(name, self.world, self.network, "a", *more)

    # -- The course of things --------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Run to the end; returns what was broken, nothing if all is well."""
        with patch.object(write_path, "INLINE_SYNC_CLIENTS", self.inline_sync_clients):
            self._start()
            self._let(self._work())
            if not self.world.bugs:
                self._let(self._settle())
            if not self.world.bugs:
                self._compare()
        if self.node.is_running:
            self.node.on_end = lambda: None
            self.node.crash(power=False)
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
        chaos.cancel()
        await asyncio.gather(chaos, return_exceptions=True)

    async def _settle(self) -> None:
        """Heal, crash once more, and look for everything that is owed."""
        self._heals = True
        if self.node.is_running:
            self._heal()
            self._crash(power=self.random.random() < 0.7)
        for client in self.models:
            while len(client.states) > 1:
                before = len(client.states)
                await client.look()
                if len(client.states) == before:
                    break
            await client.look()
            client.leave()
        await self._audit()
        await self._read_log()
        reply = await self.admin.ask("snapshot.verify", {})
        if not reply["success"]:
            self.world.fail(f"snapshot.verify is answered {reply}")
        self.is_over = True
        self.node.stop()
        while self.node.is_running:  # noqa: ASYNC110 - time costs nothing here
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
        after = self.random.choice([0, max(self.log, default=0), *self.log])
        (reply,) = await self.admin.exchange([("replication.entries", {"after_lsn": after, "limit": 50})])
        if reply is None or not reply["success"]:
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

    # -- Faults ------------------------------------------------------------------------------------------

    async def _chaos(self) -> None:
        random = self.random
        while True:
            await asyncio.sleep(random.random() * random.choice((0.1, 1.0, 4.0)))
            if not self.node.is_ready:
                continue
            fault = random.choice(_FAULTS)
            self.figures[fault.__name__.strip("_")] += 1
            await fault(self)

    async def _kill(self) -> None:
        self._crash(power=False)

    async def _cut_power(self) -> None:
        self._crash(power=True)

    def _crash(self, *, power: bool) -> None:
        self.node.crash(power=power)

    async def _stop(self) -> None:
        self.node.stop()

    async def _fill_disk(self) -> None:
        await self._trouble("is_full", True, False)

    async def _fail_writes(self) -> None:
        await self._trouble("error_rate", 0.3, 0.0)

    async def _fail_syncs(self) -> None:
        await self._trouble("sync_failure_rate", 0.05, 0.0)

    async def _slow_syncs(self) -> None:
        await self._trouble("slowest_sync_seconds", 0.2, 0.0)

    async def _trouble(self, name: str, value: Any, healthy: Any) -> None:
        disk = self.node.disk
        self.world.note("disk", name, value)
        setattr(disk, name, value)
        await asyncio.sleep(self.random.random() * 2)
        setattr(disk, name, healthy)

    def _heal(self) -> None:
        disk = self.node.disk
        disk.is_full, disk.error_rate, disk.sync_failure_rate, disk.slowest_sync_seconds = (
            False,
            0.0,
            0.0,
            0.0,
        )

    async def _snapshot(self) -> None:
        request = self.random.choice(
            (
                ("snapshot.create_all", {}),
                ("snapshot.create", {"series": self.random.choice("ab")}),
                ("snapshot.verify", {}),
                ("replication.checksum", {}),
            )
        )
        (reply,) = await self.admin.exchange([request], wait=self.random.random() > 0.2)
        if reply is not None and reply["error_code"] not in (
            None,
            "storage_error",
            "not_found",
            "overloaded",
        ):
            self.world.fail(f"{request[0]} is answered {reply}")

    async def _tail(self) -> None:
        await self._read_log()

    # -- Ends and starts ---------------------------------------------------------------------------------

    def _start(self) -> None:
        self.node.start()
        if not self._heals and self.random.random() < 0.1:
            # Starts must stand bad disks, too; the next one gets a good one.
            self.node.disk.error_rate = self.random.choice((0.05, 0.5))
            self.network.outside.call_later(1.0, setattr, self.node.disk, "error_rate", 0.0)

    def _ended(self) -> None:
        node = self.node
        if self.is_over:
            return
        self.figures["ends"] += 1
        if node.was_refused is not None:
            self.figures["refused starts"] += 1
            if not node.disk.faults:
                self.world.fail(f"the node does not start again: {node.was_refused}")
                return
            self._heals_once()
        if not self.is_synced and node.platter.has_lost:
            self.promises.forget()
            for client in self.models:
                client.forget()
            self.log.clear()
        node.platter.has_lost = False
        self.network.outside.call_later(self.random.random() * 2, self._start)

    def _heals_once(self) -> None:
        self.node.disk.error_rate = 0.0


Fault = Callable[[History], Coroutine[Any, Any, None]]
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
