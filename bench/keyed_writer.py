"""A writer that holds a pace whatever the nodes do: keyed increments, several in flight, each until answered.

It is a process of its own, so that nothing else in the measuring program can delay it. It reads one line of
JSON from standard input (ports, writes per second), writes until a second line comes, waits until every write
is acknowledged, and prints what became of them as JSON.

Writes are due by the clock (an open loop): those of a moment in which no node takes any go out when one does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import deque

TICK_SECONDS = 0.004
"""Writes that are due go out so often, as one batch of requests: eight at 2,000 a second."""
PROBE_SECONDS = 0.002
"""How often a node is asked whether it takes writes while none does."""
DAY = 20260505
SERIES = "load"


class Node(asyncio.Protocol):
    """One node, over one connection, opened again when it breaks."""

    def __init__(self, writer: Writer, port: int) -> None:
        self.port = port
        self.in_flight: deque[int] = deque()
        self._writer = writer
        self._transport: asyncio.Transport | None = None
        self._rest = b""

    async def keep_open(self) -> None:
        """Connect, again and again."""
        loop = asyncio.get_running_loop()
        while True:
            if self._transport is None:
                with contextlib.suppress(OSError):
                    await loop.create_connection(lambda: self, "127.0.0.1", self.port)
            await asyncio.sleep(0.05)

    def send(self, keys: list[int]) -> bool:
        """Send a write for each key; False without a connection."""
        if self._transport is None:
            return False
        self.in_flight += keys
        self._transport.write(
            b"".join(
                b'{"v":2,"op":"counter.increment","series":"%s","key":%d,"bucket":%d,"idempotency_key":"k%d"}\n'
                % (SERIES.encode(), key, DAY, key)
                for key in keys
            )
        )
        return True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._rest = transport, b""

    def data_received(self, data: bytes) -> None:
        """Take replies, which come in the order of the requests."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        now = time.monotonic()
        for line in lines:
            key = self.in_flight.popleft()
            if b'"success":true' in line:
                self._writer.acknowledged(self, key, now)
            else:
                self._writer.refused(self, key)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        """Send again what was not answered."""
        self._transport = None
        for key in self.in_flight:
            self._writer.refused(self, key)
        self.in_flight.clear()


class Writer:
    """The pace, the node that takes writes as far as is known, and what was acknowledged when."""

    def __init__(self, ports: list[int], rate: int) -> None:
        self.rate = rate
        self.nodes = [Node(self, port) for port in ports]
        self.master: Node | None = self.nodes[0]
        self.again: deque[int] = deque()
        self.first: dict[int, float] = {}
        self.last: dict[int, float] = {}
        """First and last acknowledgement of each node, by port."""
        self.count = 0
        self.sent = 0
        self.most_waiting = 0
        self.slowest_seconds = 0.0
        self._due_at: dict[int, float] = {}
        self._probe = 0

    def acknowledged(self, node: Node, key: int, now: float) -> None:
        """Take in that a write is acknowledged."""
        self.master = node
        self.count += 1
        self.first.setdefault(node.port, now)
        self.last[node.port] = now
        self.slowest_seconds = max(self.slowest_seconds, now - self._due_at.pop(key))

    def refused(self, node: Node, key: int) -> None:
        """Take in that a node took no write, or that its answer was lost: the same key goes out again."""
        self.again.append(key)
        if self.master is node:
            self.master = None

    async def run(self, ending: asyncio.Event) -> float:
        """Write until the end, and until all is acknowledged; returns for how long writes were due."""
        began = time.monotonic()
        probed_at = 0.0
        over_at: float | None = None
        while over_at is None or self._due_at:
            now = time.monotonic()
            if over_at is None and ending.is_set():
                over_at = now
            if over_at is None:
                due = int((now - began) * self.rate)
                for key in range(self.sent + 1, due + 1):
                    self._due_at[key] = now
                    self.again.append(key)
                self.sent = max(due, self.sent)
            self.most_waiting = max(self.most_waiting, len(self.again))
            if self.master is not None:
                keys, self.again = list(self.again), deque()
                if keys and not self.master.send(keys):
                    self.again = deque(keys)
                    self.master = None
            elif self.again and now - probed_at >= PROBE_SECONDS:
                probed_at = now
                self._probe += 1
                node = self.nodes[self._probe % len(self.nodes)]
                if not node.in_flight and node.send([self.again[0]]):
                    self.again.popleft()
            await asyncio.sleep(TICK_SECONDS if self.master is not None else PROBE_SECONDS)
        assert over_at is not None
        return over_at - began


async def main() -> None:
    """Do what standard input says."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    about = json.loads(await lines.readline())
    writer = Writer(about["ports"], about["rate"])
    connections = [asyncio.create_task(node.keep_open()) for node in writer.nodes]
    ending = asyncio.Event()

    async def wait_for_end() -> None:
        await lines.readline()
        ending.set()

    end = asyncio.create_task(wait_for_end())
    seconds = await writer.run(ending)
    for task in (*connections, end):
        task.cancel()
    found = {
        "seconds": seconds,
        "sent": writer.sent,
        "acknowledged": writer.count,
        "first": writer.first,
        "last": writer.last,
        "most_waiting": writer.most_waiting,
        "slowest_ms": writer.slowest_seconds * 1000,
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
