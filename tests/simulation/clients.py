"""Clients of a simulation, each of whom remembers what the server owes to it.

`BitClient` adds a different power of two with each of its writes, so that any value read tells which writes
are in it, and how often. `ModelClient` has series of its own, and keeps every state that they may be in: a
lost reply leaves two, the next read one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from property.model import Model, Refused
from simulation.loop import World
from simulation.network import Network
from simulation.node import PORT, Caller, line_of

PATIENCE_SECONDS = 120.0
"""No request may go unanswered longer on a connection that stays open: every timeout is below."""
DAY = 20261121
_BITS = 62
Reply = dict[str, Any] | None
_TRY_AGAIN = ("storage_error", "overloaded", "forbidden")
"""What a refused write may be answered: the disk, too many clients, a node that is no master."""


@dataclass
class Cell:
    """A key that several clients add to; each number is a set of bits, one for each write."""

    used: int = 0
    acked: int = 0
    refused: int = 0
    shown: int = 0


@dataclass
class Promises:
    """What the server owes to all `BitClient`s together."""

    world: World
    is_synced: bool
    """Whether what was acknowledged, and what was shown, survives a power cut."""
    cells: dict[tuple[str, int], Cell] = field(default_factory=dict)
    batches: list[list[tuple[Cell, int]]] = field(default_factory=list)
    """The bits of each write that has several: all are there, or none."""
    acked: int = 0
    lost: int = 0
    reads: int = 0
    times_forgotten: int = 0

    def add(self, name: str, key: int) -> tuple[Cell, int]:
        """Return a cell and a bit of it that nobody has used."""
        cell = self.cells.setdefault((name, key), Cell())
        bit = 1 << cell.used.bit_length()
        cell.used |= bit
        return cell, bit

    def is_full(self, name: str, key: int) -> bool:
        """Return whether a cell has no bits left."""
        cell = self.cells.get((name, key))
        return cell is not None and cell.used.bit_length() >= _BITS

    def show(self, who: str, cell: Cell, value: int, owed: int) -> None:
        """Take note of a value that was read; `owed` must be in it."""
        self.reads += 1
        if owed & ~value:
            self.world.fail(f"{who} reads {value:b}, without {owed & ~value:b}, which was there before")
        if value & (cell.refused | ~cell.used):
            self.world.fail(
                f"{who} reads {value:b}, with {value & (cell.refused | ~cell.used):b}, never written"
            )
        cell.shown |= value

    def forget(self) -> None:
        """Expect nothing more of what was not synced: the power was cut under a server that does not sync."""
        self.times_forgotten += 1
        for cell in self.cells.values():
            # What was cut off the log after a refusal was not synced either, and may be back.
            cell.acked = cell.shown = cell.refused = 0


class Client:
    """A connection that comes back, and what is sent over it."""

    def __init__(self, name: str, world: World, network: Network, host: str) -> None:
        self.name = name
        self.world = world
        self.random = world.random
        self.network = network
        self.host = host
        self.caller: Caller | None = None

    async def connect(self) -> Caller:
        """Return an open connection, as soon as there is a server to connect to."""
        while self.caller is None or self.caller.is_lost or self.caller.transport.is_closing():
            host = self.host
            try:
                _, self.caller = await self.network.outside.create_connection(Caller, host, PORT)
            except OSError:
                await asyncio.sleep(0.05 + self.random.random())
                continue
            if host != self.host:
                # Moved meanwhile. A master that was left behind acknowledges what no failover will keep.
                self.caller.transport.abort()
        return self.caller

    async def exchange(
        self, requests: Sequence[tuple[str, dict[str, Any]]], *, wait: bool = True
    ) -> list[Reply]:
        """Send requests at once, and return their replies, None for each that was lost."""
        caller = await self.connect()
        self.world.note(self.name, "sends", *[op for op, _ in requests])
        futures = caller.send([line_of(op, fields) for op, fields in requests])
        if not wait:
            caller.transport.abort()
        _, pending = await asyncio.wait(futures, timeout=PATIENCE_SECONDS)
        if pending:
            self.world.fail(f"{self.name}: {len(pending)} of {[op for op, _ in requests]} are not answered")
            caller.transport.abort()
        replies = [future.result() if future.done() else None for future in futures]
        self.world.note(self.name, "gets", *[_code(reply) for reply in replies])
        if caller.surplus:
            self.world.fail(f"{self.name} gets replies that it did not ask for: {caller.surplus}")
        for reply in replies:
            if reply is not None and reply["error_code"] == "internal_error":
                self.world.fail(f"{self.name}: {reply['response']}")
        return replies

    async def ask(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Send a request that changes nothing until it is answered."""
        while True:
            (reply,) = await self.exchange([(op, fields)])
            if reply is not None and reply["error_code"] != "overloaded":
                return reply
            await asyncio.sleep(0.5)

    def move(self, host: str) -> None:
        """Use another node from now on."""
        self.host = host
        if self.caller is not None:
            self.caller.transport.abort()

    def leave(self) -> None:
        """Make room for others."""
        if self.caller is not None:
            self.caller.transport.close()

    async def disturb(self) -> None:
        """Be one of those clients that no server likes."""
        random = self.random
        caller = await self.connect()
        match random.randrange(4):
            case 0:
                caller.transport.write(b'{"v":2,"op":"counter.incr')
                caller.transport.close()
            case 1:
                (future,) = caller.send([b"what is this\n"])
                await asyncio.wait([future], timeout=PATIENCE_SECONDS)
                if (
                    future.done()
                    and (reply := future.result())
                    and reply["error_code"]
                    not in (
                        "invalid_json",
                        "overloaded",
                    )
                ):
                    self.world.fail(f"{self.name}: nonsense is answered {reply}")
            case 2:
                caller.transport.pause_reading()
                await asyncio.sleep(random.random() * 7)
                caller.transport.resume_reading()
            case 3:
                await asyncio.sleep(random.random() * 7)


def _code(reply: Reply) -> str:
    if reply is None:
        return "lost"
    return str(reply["error_code"] or reply["response"])[:40]


class BitClient(Client):
    """Adds, consumes, imports and retries, on keys that others use, too."""

    def __init__(self, name: str, world: World, network: Network, host: str, promises: Promises) -> None:
        super().__init__(name, world, network, host)
        self.promises = promises
        self._writes = 0

    async def run(self, rounds: int) -> None:
        """Do a few things."""
        for _ in range(rounds):
            match self.random.randrange(10):
                case 0:
                    await self.ingest()
                case 1:
                    await self.retry()
                case 2:
                    await self.disturb()
                case _:
                    await self.pipeline()
            if self.random.random() < 0.3:
                await asyncio.sleep(self.random.random())
        self.leave()

    def _place(self) -> tuple[str, int]:
        name, key = self.random.choice("ab"), self.random.randrange(3)
        while self.promises.is_full(name, key):
            key += 3
        return name, key

    def _unique(self) -> str:
        self._writes += 1
        return f"{self.name}-{self._writes}"

    async def pipeline(self) -> None:
        """Send some writes and reads at once; now and then do not wait for what becomes of them."""
        requests: list[tuple[str, dict[str, Any]]] = []
        checks: list[Callable[[Reply], None]] = []
        for _ in range(self.random.randint(1, 6)):
            op, fields, check = self._write() if self.random.random() < 0.6 else self._read()
            requests.append((op, fields))
            checks.append(check)
        replies = await self.exchange(requests, wait=self.random.random() > 0.05)
        for check, reply in zip(checks, replies, strict=True):
            check(reply)

    def _write(self) -> tuple[str, dict[str, Any], Callable[[Reply], None]]:
        random = self.random
        places = [self._place() for _ in range(random.randint(2, 3) if random.random() < 0.3 else 1)]
        if len(places) > 1:
            name = places[0][0]
            added = [
                (key, *self.promises.add(name, key))
                for _, key in places
                if not self.promises.is_full(name, key)
            ]
            bits = [(cell, bit) for _, cell, bit in added]
            self.promises.batches.append(bits)
            items = [[key, DAY, bit] for key, _, bit in added]
            expected: Any = {"applied": len(items), "total": sum(bit for _, bit in bits)}
            return "series.batch_add", {"series": name, "items": items}, self._answered(bits, expected)
        name, key = places[0]
        cell, bit = self.promises.add(name, key)
        fields: dict[str, Any] = {"series": name, "key": key, "bucket": DAY, "value": bit}
        if random.random() < 0.2:
            fields |= {"limit": 2**64 - 1, "window": "total"}
            return "limit.consume", fields, self._answered([(cell, bit)], None)
        if random.random() < 0.3:
            fields["idempotency_key"] = self._unique()
        return "counter.increment", fields, self._answered([(cell, bit)], bit)

    def _answered(self, bits: list[tuple[Cell, int]], expected: Any) -> Callable[[Reply], None]:
        forgotten = self.promises.times_forgotten

        def check(reply: Reply) -> None:
            if reply is None:
                self.promises.lost += 1
                return
            for cell, bit in bits:
                if reply["success"]:
                    # A reply that was on its way when what it acknowledges was lost promises nothing.
                    cell.acked |= bit if forgotten == self.promises.times_forgotten else 0
                else:
                    cell.refused |= bit
            self.promises.acked += reply["success"]
            if reply["success"] and expected is not None and reply["response"] != expected:
                self.world.fail(f"{self.name}: a write of {expected} is answered {reply['response']}")
            if not reply["success"] and reply["error_code"] not in _TRY_AGAIN:
                self.world.fail(f"{self.name}: a write is answered {reply}")

        return check

    def _read(self) -> tuple[str, dict[str, Any], Callable[[Reply], None]]:
        known = sorted(self.promises.cells)
        if not known:
            return "system.ping", {}, lambda _reply: None
        if self.random.random() < 0.1:
            # What comes behind it waits, and is answered in its turn.
            return "replication.wait", {"acks": 9, "timeout_ms": 30}, self._waited
        name, key = self.random.choice(known)
        cells = [self.promises.cells[name, key]]
        keys = [key]
        if self.random.random() < 0.3:
            keys = [each for of, each in known if of == name]
            cells = [self.promises.cells[name, each] for each in keys]
        owed, forgotten = [cell.acked | cell.shown for cell in cells], self.promises.times_forgotten

        def check(reply: Reply) -> None:
            if (
                reply is None
                or reply["error_code"] == "overloaded"
                or forgotten != self.promises.times_forgotten
            ):
                return
            if not reply["success"]:
                if any(owed) or reply["error_code"] != "not_found":
                    self.world.fail(f"{self.name}: a read is answered {reply}")
                return
            values = [each["value"] for each in reply["response"]]
            for cell, value, due in zip(cells, values, owed, strict=True):
                self.promises.show(self.name, cell, value, due)

        return "counter.batch_sum", {"series": name, "keys": keys}, check

    def _waited(self, reply: Reply) -> None:
        if reply is not None and reply["success"] and set(reply["response"]) != {"acks", "lsn"}:
            self.world.fail(f"{self.name}: replication.wait is answered {reply}")

    async def retry(self) -> None:
        """Send a write again and again until it is answered: it counts once."""
        name, key = self._place()
        cell, bit = self.promises.add(name, key)
        fields = {"series": name, "key": key, "bucket": DAY, "value": bit, "idempotency_key": self._unique()}
        request = [("counter.increment", fields)]
        await self.exchange(request, wait=self.random.random() > 0.5)
        while True:
            forgotten = self.promises.times_forgotten
            (reply,) = await self.exchange(request)
            if reply is not None and reply["success"]:
                break
            await asyncio.sleep(self.random.random())
        if forgotten == self.promises.times_forgotten:
            cell.acked |= bit
        (again,) = await self.exchange(request)
        is_repeated = again is None or not again["success"] or again["idempotent"]
        if not is_repeated and forgotten == self.promises.times_forgotten:
            self.world.fail(f"{self.name}: a retry of what was acknowledged is applied once more: {again}")

    async def ingest(self) -> None:
        """Import through a stream, whatever comes in between: each step is sent until it is answered."""
        stream, name = self._unique(), self.random.choice("ab")
        if self.promises.is_full(name, 0):
            return
        await self._insist("ingest.begin", {"stream_id": stream, "mode": "add"})
        for number in range(1, self.random.randint(2, 3)):
            cell, bit = self.promises.add(name, 0)
            chunk = {"stream_id": stream, "series": name, "chunk_seq": number, "items": [[0, DAY, bit]]}
            forgotten = self.promises.times_forgotten
            if await self._insist("ingest.chunk", chunk) and forgotten == self.promises.times_forgotten:
                cell.acked |= bit
        await self._insist("ingest.commit", {"stream_id": stream})

    async def _insist(self, op: str, fields: dict[str, Any]) -> bool:
        while True:
            (reply,) = await self.exchange([(op, fields)], wait=self.random.random() > 0.1)
            if reply is not None and reply["success"]:
                return True
            if reply is not None and reply["error_code"] not in _TRY_AGAIN:
                if not self.promises.times_forgotten:
                    self.world.fail(f"{self.name}: {op} is answered {reply}")
                return False
            await asyncio.sleep(self.random.random())


class ModelClient(Client):
    """Uses every operation on series of its own, one request at a time."""

    def __init__(self, name: str, world: World, network: Network, host: str) -> None:
        super().__init__(name, world, network, host)
        self.states = [Model()]
        self.series = [f"{name}-x", f"{name}-y"]
        self.past: list[Model] | None = None
        """All states that ever were possible; None where only the present ones count."""
        self._has_forgotten = False

    async def run(self, rounds: int) -> None:
        """Do a few things, with a look at the outcome where that is not certain."""
        for _ in range(rounds):
            await self.do(*self._request())
            if len(self.states) > 1 and self.random.random() < 0.7:
                await self.look()
            if self.random.random() < 0.2:
                await asyncio.sleep(self.random.random())
        self.leave()

    async def look(self) -> None:
        """Read everything."""
        for name in self.series:
            for op, fields in (
                ("tree.series", {"series": name, "range": {"from": 20260101, "to": 20261231}}),
                ("tree.keys", {"series": name}),
            ):
                self._has_forgotten = False
                reply = await self.ask(op, fields)
                if not self._has_forgotten:
                    self._judge(op, fields, reply)

    async def do(self, op: str, fields: dict[str, Any]) -> None:
        """Send one request, and keep the states that its reply allows."""
        self._has_forgotten = False
        (reply,) = await self.exchange([(op, fields)])
        self._judge(op, fields, reply if not self._has_forgotten else None)

    def _judge(self, op: str, fields: dict[str, Any], reply: Reply) -> None:
        kept, now = [], self.world.unix()
        for state in self.states:
            after = state.copy()
            try:
                answer: tuple[str | None, Any] = (None, after.execute(op, fields, now))
            except Refused as refusal:
                answer = (refusal.code, None)
            if self.past is not None:
                self.past += [state, after]
            if reply is None:
                kept.append(state)
                if op not in _READS:
                    kept.append(after)
            elif answer == (reply["error_code"], reply["response"] if reply["success"] else None):
                kept.append(after)
        if reply is not None and reply["error_code"] in _TRY_AGAIN:
            return
        if not kept:
            self.world.fail(f"{self.name}: {op} {fields} is answered {reply}, which no state of it explains")
            kept = self.states
        self.states = _distinct(kept)

    def forget(self) -> None:
        """Expect any state that there ever was: the power was cut under a server that does not sync."""
        self._has_forgotten = True
        if self.past is not None:
            self.states = _distinct([*self.states, *self.past, Model()])

    def _request(self) -> tuple[str, dict[str, Any]]:
        random = self.random
        series = {"series": random.choice(self.series)}
        key = {"key": random.randrange(3)}
        span = {"range": {"from": 20261101, "to": random.choice((20261110, 20261121))}}
        items = {
            "items": [
                [random.randrange(3), random.choice((20261101, DAY)), random.randint(1, 9)]
                for _ in range(random.randint(0, 3))
            ]
        }
        keys = {"keys": [random.randrange(4) for _ in range(random.randint(0, 3))]}
        single = {**series, **key, "bucket": random.choice((20261101, DAY)), "value": random.randint(1, 9)}
        stream = {"stream_id": f"{self.name}-{random.randrange(3)}"}
        op = random.choice(_OPS)
        known: dict[str, dict[str, Any]] = {
            "counter.increment": single,
            "counter.decrement": single,
            "limit.consume": {**single, "limit": 20, "window": "total"},
            "counter.reset": {**series, **key},
            "counter.delete_range": {**series, **key, **span},
            "counter.batch_reset": {**series, **keys},
            "counter.batch_delete_range": {**series, **keys, **span},
            "series.batch_add": {**series, **items},
            "series.batch_set": {**series, **items},
            "tree.delete_range": {**series, **span},
            "series.delete_before": {**series, "before": 20261110},
            "ingest.begin": {**stream, "mode": random.choice(("add", "set", "replace_series"))},
            "ingest.chunk": {**stream, **series, **items, "chunk_seq": random.randint(1, 2)},
            "ingest.commit": stream,
            "ingest.abort": stream,
            "counter.sum": {**series, **key},
        }
        fields = known.get(op, series)
        if op in _ONCE and random.random() < 0.3:
            fields = {**fields, "idempotency_key": f"{self.name}-{random.randrange(3)}"}
        return op, fields


_ONCE = (
    "counter.increment",
    "counter.decrement",
    "limit.consume",
    "counter.reset",
    "counter.delete_range",
    "counter.batch_reset",
    "counter.batch_delete_range",
    "series.batch_add",
    "series.batch_set",
    "tree.reset",
    "tree.delete_range",
)
_READS = ("counter.sum", "tree.info", "tree.series", "tree.keys", "tree.summary", "tree.top")
_OPS = (
    *_ONCE,
    *_ONCE,
    *["counter.increment", "series.batch_add"] * 5,
    "counter.sum",
    "tree.info",
    "tree.summary",
    "tree.top",
    "tree.create",
    "tree.drop",
    "series.compact",
    "series.delete_before",
    "ingest.begin",
    "ingest.chunk",
    "ingest.chunk",
    "ingest.commit",
    "ingest.abort",
)


def _distinct(states: list[Model]) -> list[Model]:
    """Return each state once, 32 at most: so many, and reads will soon tell which."""
    found: dict[str, Model] = {}
    for state in states:
        found.setdefault(repr((state.series, state.records, state.streams)), state)
    return list(found.values())
