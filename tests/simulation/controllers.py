"""Two operators' machines that move the master role at the same time, through cuts, kills and stalls.

Each does what the playbooks do, with their own `Votes`: it takes leases on a majority, fences the master (a
dead one in its directory), and promotes. Now and then it stands still for longer than its leases last.
Whatever happens, at no moment do two nodes take writes, and no epoch has two owners.

Run as a script it repeats seeds:  python tests/simulation/controllers.py --seed 7 --trace
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from simulation.disk import MemoryDisk
from simulation.loop import VirtualLoop, World
from simulation.network import Network
from simulation.node import DIRECTORY, PORT, Caller, Node, line_of

from karma.errors import ConfigError, DirectoryInUseError
from karma.offline.fence import fence as fence_offline
from karma_client import KarmaError, UnreachableError
from karma_client import errors as client
from karma_playbooks.votes import Votes

HOSTS = "abc"
SECONDS = 60.0
_MAX_SECONDS = 3_600.0


class Contest:
    """Three nodes and two controllers. `run` returns what was broken, nothing if all is well."""

    def __init__(self, seed: int) -> None:
        self.world = world = World(seed)
        self.network = Network(world)
        self.network.slowest_seconds = world.random.choice((0.0, 0.01, 0.2))
        self.nodes = {host: self._node(host) for host in HOSTS}
        self.figures: Counter[str] = Counter()
        self.owners: dict[int, str] = {}
        """Who opened each epoch."""
        self.is_calm = False
        self.controllers = [Controller(self, f"ops{number}") for number in (1, 2)]

    def _node(self, host: str) -> Node:
        source = {"role": "slave", "replication_source_host": "a", "replication_source_port": PORT}
        options = {"wal_fsync": True, **({} if host == "a" else source)}
        node = Node(self.world, self.network, host, **options)
        node.on_end = lambda: self._ended(node)
        return node

    def _ended(self, node: Node) -> None:
        self.network.outside.call_later(self.world.random.random() * 5, self._start, node)

    def _start(self, node: Node) -> None:
        if not self.is_calm and not node.is_running:
            node.start()

    def run(self) -> list[str]:
        """Run to the end."""
        for node in self.nodes.values():
            node.start()
        self._let(self.network.outside, asyncio.sleep(2))
        self._chaos_task = self.network.outside.create_task(self._chaos())
        tasks = [each.loop.create_task(each.run()) for each in self.controllers]
        self.world.run(
            lambda: self._is_broken() or all(task.done() for task in tasks), self.world.now + _MAX_SECONDS
        )
        for task in tasks:
            if not self.world.bugs and not task.done():
                self.world.fail("a controller hangs")
            elif task.done():
                task.result()
        self.is_calm = True
        for node in self.nodes.values():
            node.crash(power=False)
        for each in self.controllers:
            each.loop.abandon()
        self.network.outside.abandon()
        return self.world.bugs

    def _let(self, loop: VirtualLoop, work: Coroutine[Any, Any, None]) -> None:
        task = loop.create_task(work)
        self.world.run(task.done, self.world.now + _MAX_SECONDS)

    def _is_broken(self) -> bool:
        """Look after every step of any process."""
        takers = []
        for host, node in self.nodes.items():
            if not node.is_ready:
                continue
            roles = node.server.replication.roles
            if roles.engine.refusal is None and roles.is_master:
                takers.append(host)
            current = roles.epoch
            if self.owners.setdefault(current.number, current.node_id) != current.node_id:
                self.world.fail(f"two nodes opened epoch {current.number}")
        if len(takers) > 1:
            self.world.fail(f"{' and '.join(takers)} take writes at the same time")
        return bool(self.world.bugs)

    async def _chaos(self) -> None:
        random = self.world.random
        while True:
            await asyncio.sleep(random.random() * 4)
            if random.random() < 0.25:
                node = self.nodes[random.choice(HOSTS)]
                if node.is_ready:
                    self.figures["kills"] += 1
                    node.crash(power=random.random() < 0.5)
            else:
                pair = frozenset(random.sample([*HOSTS, "ops1", "ops2"], 2))
                self.figures["cuts"] += 1
                self.world.note("cut", *sorted(pair))
                self.network.cut.add(pair)
                self.network.outside.call_later(random.random() * 15, self.network.cut.discard, pair)


class Controller:
    """One operator's machine."""

    def __init__(self, contest: Contest, name: str) -> None:
        self.contest = contest
        self.world = contest.world
        self.random = contest.world.random
        self.name = name
        self.loop = VirtualLoop(contest.world, contest.network, name)
        self._runs = 0

    async def run(self) -> None:
        """Move the role again and again."""
        until = self.world.now + SECONDS
        while self.world.now < until:
            await asyncio.sleep(self.random.random())
            self._runs += 1
            votes = Votes(
                self.ask,
                list(HOSTS),
                f"{self.name}-{self._runs}",
                self.name,
                lambda: self.world.now,
                self.random.choice((2_000, 5_000, 10_000)),
            )
            ending = await self._move(votes, self.random.choice(HOSTS))
            self.world.note(self.name, "ends", ending)
            self.contest.figures[ending] += 1
            if self.random.random() < 0.9:
                # Else it died, and its leases run out.
                await votes.release()

    async def ask(self, name: str, op: str, source: str | None = None, **fields: Any) -> Any:
        """Return a node's response. What gets no answer in time may still arrive there."""
        if source is not None:
            fields |= {"host": source, "port": PORT, "rebuild": True}
        try:
            async with asyncio.timeout(3):
                _, caller = await self.loop.create_connection(Caller, name, PORT)
        except (OSError, TimeoutError) as error:
            raise UnreachableError(str(error)) from error
        (future,) = caller.send([line_of(op, {k: v for k, v in fields.items() if v is not None})])
        await asyncio.wait([future], timeout=3)
        caller.transport.close()
        reply = future.result() if future.done() else None
        if reply is None:
            raise client.RequestTimeoutError("no answer")
        if not reply["success"]:
            kind = client.ForbiddenError if reply["error_code"] == "forbidden" else client.ReplyError
            raise kind(str(reply["response"]), detail=reply.get("error_detail"))
        return reply["response"]

    async def _stall(self) -> None:
        """Stand still, now and then for longer than leases last."""
        if self.random.random() < 0.4:
            await asyncio.sleep(self.random.random() * 15)

    async def _move(self, votes: Votes, heir: str) -> str:
        """Make a node the master; returns what came of it."""
        await votes.look()
        about = votes.statuses.get(heir, {})
        if votes.others() or about.get("role") != "slave" or about.get("cluster_id") is None:
            return "not begun"
        for host in votes.voters:
            if votes.can_lease(host) and (refusal := await votes.take(host)) is not None and refusal.run:
                return "lost the race"
        if votes.sure_until() <= self.world.now:
            return "no majority"
        await self._stall()
        epoch = max(self._known(status) for status in votes.statuses.values()) + 1
        try:
            if not await self._stop_masters(votes, heir, epoch):
                return "the master was not stopped"
            await self._stall()
            if await votes.bind(heir) is not None:
                return "the majority was lost"
            await self.ask(heir, "replication.promote", epoch=epoch, **self._order(votes, heir))
        except KarmaError:
            # It may have happened, or be on its way: from here on it comes too late.
            await votes.retake(heir)
            return "unknown"
        for host in HOSTS:
            if host != heir and votes.can_lease(host):
                order = self._order(votes, host)
                with contextlib.suppress(KarmaError):
                    await self.ask(host, "replication.follow", source=heir, **order)
        return "promoted"

    @staticmethod
    def _known(status: Any) -> int:
        fence = status.get("fenced_by")
        return max(int(status["epoch"]), int(fence["epoch"]) if fence else 0)

    @staticmethod
    def _order(votes: Votes, host: str) -> dict[str, Any]:
        lease = votes.leases.get(host)
        return {"run": votes.run, "lease": lease.number if lease else None}

    async def _stop_masters(self, votes: Votes, heir: str, epoch: int) -> bool:
        """Fence every node that is, or may be, a master: one that is down in its directory."""
        for host in HOSTS:
            status = votes.statuses.get(host)
            if host == heir or (status is not None and status["role"] == "slave"):
                continue
            if status is not None:
                order = self._order(votes, host)
                fence = status.get("fenced_by")
                # What another run left fenced is taken over under the majority, as an operator would.
                force = True if fence and fence.get("run") not in (None, votes.run) else None
                await self.ask(host, "replication.fence", epoch=epoch, reason="moved", **order, force=force)
                continue
            node = self.contest.nodes[host]
            if node.is_running:
                return False
            try:
                fence_offline(
                    MemoryDisk(node.platter), DIRECTORY, epoch, "moved", int(self.world.unix() * 1000), str
                )
            except (ConfigError, DirectoryInUseError):
                return False
            self.contest.figures["offline fences"] += 1
        return True


def simulate(seed: int) -> Contest:
    """Run the contest of a seed."""
    contest = Contest(seed)
    contest.run()
    return contest


def main() -> None:
    """Repeat a seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    contest = simulate(options.seed)
    if options.trace:
        sys.stdout.write("\n".join(contest.world.trace) + "\n")
    sys.stdout.write(f"{dict(contest.figures)} {contest.world.bugs}\n")


if __name__ == "__main__":
    main()
