"""One node of a simulation: the server as `karma.app` puts it together, on a machine in memory.

A client's side is here, too: `Caller` is one connection, whose replies are futures in the order of requests.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NoReturn, cast

import orjson
from simulation.disk import MemoryDisk, Platter, ProcessEnded
from simulation.loop import VirtualLoop, World
from simulation.network import End, Network

from karma.app import Server
from karma.config import Config
from karma.machine import Machine

PORT = 7_000
DIRECTORY = Path("/data")


class Node:
    """A server that comes and goes on one disk. `options` are fields of `Config`."""

    def __init__(self, world: World, network: Network, host: str, **options: Any) -> None:
        self.world = world
        self.network = network
        self.host = host
        self.platter = Platter(world)
        self.options = options
        self.lines: list[dict[str, Any]] = []
        """What it logged."""
        self.is_running = False
        self.was_refused: str | None = None
        """Why the last start was refused."""
        self.on_end: Callable[[], None] = lambda: None
        """Called when it is down, for whatever reason."""
        self._ids = 0

    def start(self) -> None:
        """Start the server; `is_ready` tells when it takes connections."""
        self.loop = loop = VirtualLoop(self.world, self.network, self.host)
        self.disk = MemoryDisk(self.platter)
        config = Config(bind=self.host, protected_mode=False, port=PORT, directory=DIRECTORY, **self.options)
        machine = Machine(
            disk=self.disk,
            clock=self.world.unix,
            monotonic=lambda: self.world.now,
            stopwatch=lambda: self.world.now,
            random=Random(self.world.random.random()),
            new_id=self._new_id,
            write_line=lambda line: self._log(loop, line),
            run_in_child=self.disk.run_in_child,
            is_orphan=lambda _pid: False,
            # What only large series meet elsewhere, each one meets here.
            inline_keys=0,
            die=self._die,
            keep_in_memory=lambda: None,
        )
        self.world.note(self.host, "starts")
        self.server = Server(config, machine)
        self.is_running, self.was_refused = True, None
        self.task = loop.create_task(self.server.run())
        self.task.add_done_callback(self._ended)

    @property
    def is_ready(self) -> bool:
        """Whether it takes connections."""
        return self.is_running and self.server.is_ready

    def crash(self, *, power: bool) -> None:
        """End it at once: killed, or by a power cut, which takes what was not synced."""
        if not self.is_running:
            return
        self.world.note(self.host, "power" if power else "killed")
        self.is_running = False
        self.disk.is_alive = False
        self.network.lose(self.loop)
        self.loop.abandon()
        self.platter.is_locked = False
        if power:
            self.platter.cut_power()
        self.on_end()

    def stop(self) -> None:
        """Ask it to end, as SIGTERM does; `is_running` tells when it has."""
        handler = self.loop.signals.get(signal.SIGTERM)
        if handler is not None:
            self.world.note(self.host, "SIGTERM")
            self.loop.call_soon(handler)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the lines that it logged of an event."""
        return [line for line in self.lines if line["event"] == name]

    # -- Inside --------------------------------------------------------------------------------------------

    def _new_id(self) -> str:
        self._ids += 1
        return f"{self.host}-{self._ids}"

    def _log(self, loop: VirtualLoop, text: str) -> None:
        if loop is not self.loop or not self.disk.is_alive:
            return
        line = orjson.loads(text)
        self.lines.append(line)
        self.world.note(self.host, "log", line["event"], line["message"])
        if line["event"] == "internal_error":
            self.world.fail(f"{self.host}: internal error: {line['message']}")

    def _die(self, message: str) -> NoReturn:
        """End by the server's own decision: it met a disk that broke a promise."""
        self.world.note(self.host, "dies:", message)
        self.disk.is_alive = False
        self.network.lose(self.loop)
        # Not from within one of its own callbacks. What the kernel has dropped after a failed sync is gone.
        self.network.outside.call_soon(self._bury, self.loop)
        raise ProcessEnded

    def _bury(self, loop: VirtualLoop) -> None:
        if self.is_running and self.loop is loop:
            self.crash(power=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self.disk.is_alive and self.is_running:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                self.was_refused = f"{type(error).__name__}: {error}"
            self.network.outside.call_soon(self._left, self.loop)

    def _left(self, loop: VirtualLoop) -> None:
        """Look at what a process leaves behind that ended by itself."""
        if not self.is_running or self.loop is not loop:
            return
        self.world.note(self.host, "ended", self.was_refused or "")
        left = [] if self.was_refused else [task for task in asyncio.all_tasks(loop) if not task.done()]
        if left:
            self.world.fail(
                f"{self.host}: tasks left at the end: {sorted(str(task.get_coro()) for task in left)}"
            )
        self.is_running = False
        self.disk.is_alive = False
        self.network.lose(loop)
        loop.abandon()
        self.platter.is_locked = False
        self.on_end()


class Caller(asyncio.Protocol):
    """A client's connection. Replies come in the order of the requests, one for each."""

    def __init__(self) -> None:
        self.transport: End
        self.waiting: deque[asyncio.Future[dict[str, Any] | None]] = deque()
        self.is_lost = False
        self.surplus: list[bytes] = []
        """Replies that nobody asked for."""
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be connected."""
        self.transport = cast("End", transport)

    def data_received(self, data: bytes) -> None:
        """Take replies in."""
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        for line in lines:
            if self.waiting:
                self.waiting.popleft().set_result(orjson.loads(line))
            else:
                self.surplus.append(line)

    def eof_received(self) -> bool:
        """Close, too."""
        self.connection_lost(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Let everybody know who waits: None instead of a reply."""
        self.is_lost = True
        while self.waiting:
            self.waiting.popleft().set_result(None)

    def send(self, requests: list[bytes]) -> list[asyncio.Future[dict[str, Any] | None]]:
        """Send request lines at once; each future becomes the reply, None when the connection ends first."""
        loop = self.transport.loop
        futures = [loop.create_future() for _ in requests]
        if self.is_lost:
            for future in futures:
                future.set_result(None)
        else:
            self.waiting.extend(futures)
            self.transport.write(b"".join(requests))
        return futures


def line_of(op: str, fields: dict[str, Any]) -> bytes:
    """Return a request line."""
    # Not by the server's library, which spells no number past 64 bits.
    return json.dumps({"v": 2, "op": op, **fields}).encode() + b"\n"
