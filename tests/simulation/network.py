"""Connections in memory: bytes arrive in pieces and late, or never; connections break, links are cut.

An `End` is asyncio's transport for one side. What it is given waits in its buffer; a piece at a time reaches
the other side, as large and as late as the seed decides, and not while that side has paused reading.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any

from simulation.loop import VirtualLoop, World


class Network:
    """Who listens where, and which links are cut."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.outside = VirtualLoop(world, self, "outside")
        """The loop of everything that is no server."""
        self.listeners: dict[tuple[str, int], Listener] = {}
        self.ends: dict[End, None] = {}
        self.cut: set[frozenset[str]] = set()
        """Pairs of hosts between which nothing arrives, and nobody is told."""
        self.slowest_seconds = 0.002
        self.high_bytes = 64 << 10
        """More than this waiting to arrive, and the sender is told to pause; a quarter, and it goes on."""
        self.slowest_job_seconds = 0.01
        """How long a job in a thread may take to begin, and again to be known as done."""
        self._next_port = 40_000

    def listen(self, loop: VirtualLoop, host: str, port: int, factory: Callable[[], Any]) -> Listener:
        """Take connections for an address."""
        if (loop.host, port) in self.listeners:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        found = self.listeners[loop.host, port] = Listener(self, loop, port, factory)
        return found

    async def connect(
        self, loop: VirtualLoop, host: str, port: int, factory: Callable[[], Any]
    ) -> tuple[End, Any]:
        """Open a connection. Raises OSError when nobody listens; a cut link says nothing at all."""
        await asyncio.sleep(self.delay())
        while self.is_cut(loop.host, host):  # noqa: ASYNC110 - as a dropped packet is sent again
            await asyncio.sleep(0.5)
        listener = self.listeners.get((host, port))
        if listener is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        self._next_port += 1
        mine, theirs = End(self, loop), End(self, listener.loop)
        mine.join(theirs, (host, port), factory())
        theirs.join(mine, (loop.host, self._next_port), listener.factory())
        listener.loop.call_soon(theirs.protocol.connection_made, theirs)
        mine.protocol.connection_made(mine)
        return mine, mine.protocol

    def delay(self) -> float:
        """Return how long the next piece takes, in seconds."""
        random = self.world.random
        return random.random() * self.slowest_seconds if random.random() < 0.5 else 0.0

    def is_cut(self, one: str, other: str) -> bool:
        """Return whether nothing passes between two hosts."""
        return bool(self.cut) and frozenset((one, other)) in self.cut

    def lose(self, loop: VirtualLoop) -> None:
        """Break every connection of a process that is gone; its listeners go, too."""
        for address, listener in list(self.listeners.items()):
            if listener.loop is loop:
                del self.listeners[address]
        for end in [end for end in self.ends if end.loop is loop]:
            end.vanish()


class Listener:
    """What `loop.create_server` returns."""

    def __init__(self, network: Network, loop: VirtualLoop, port: int, factory: Callable[[], Any]) -> None:
        self.network = network
        self.loop = loop
        self.port = port
        self.factory = factory

    @property
    def sockets(self) -> list[Listener]:
        """Its one address."""
        return [self]

    def getsockname(self) -> tuple[str, int]:
        """Return where it listens."""
        return self.loop.host, self.port

    def close(self) -> None:
        """Take no more connections."""
        self.network.listeners.pop((self.loop.host, self.port), None)


class End(asyncio.Transport):
    """One side of a connection."""

    def __init__(self, network: Network, loop: VirtualLoop) -> None:
        super().__init__()
        self.network = network
        self.loop = loop
        self.protocol: Any = None
        self.peer: End
        self._buffer = bytearray()
        self._is_closing = self._is_lost = self._must_end = self._has_ended = False
        self._is_reading = True
        self._is_moving = False
        self._is_write_paused = False

    def join(self, peer: End, address: tuple[str, int], protocol: Any) -> None:
        """Take the other side's end, its address and this side's protocol."""
        self.peer, self.protocol = peer, protocol
        self._extra = {"peername": address}
        self.network.ends[self] = None

    # -- The protocol's side -------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the peer's address."""
        return self._extra.get(name, default)

    def write(self, data: Any) -> None:
        """Send bytes."""
        if self._is_lost or self._must_end or self._is_closing:
            return
        self._buffer += data
        self._move()
        if len(self._buffer) > self.network.high_bytes and not self._is_write_paused:
            self._is_write_paused = True
            self.protocol.pause_writing()

    def write_eof(self) -> None:
        """Say that nothing more comes."""
        self._must_end = True
        self._move()

    def can_write_eof(self) -> bool:
        """Return True: half-closed connections exist here."""
        return True

    def get_write_buffer_size(self) -> int:
        """Return how many bytes have not arrived."""
        return len(self._buffer)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Ignore the limits; they are everybody's here."""

    def is_closing(self) -> bool:
        """Return whether it was closed."""
        return self._is_closing

    def is_reading(self) -> bool:
        """Return whether bytes are wanted."""
        return self._is_reading

    def pause_reading(self) -> None:
        """Want no more bytes for now."""
        self._is_reading = False

    def resume_reading(self) -> None:
        """Want bytes again."""
        self._is_reading = True
        self.peer._move()

    def close(self) -> None:
        """Close when everything has arrived."""
        if not self._is_closing:
            self._is_closing = True
            self._move()

    def abort(self) -> None:
        """Close at once."""
        if not self._is_lost:
            self._is_closing = True
            self._buffer.clear()
            self._lose(None)
            self._lose_peer(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))

    # -- The way --------------------------------------------------------------------------------------------

    def vanish(self) -> None:
        """Break, as when this side's process is gone: nobody here is told."""
        self._is_lost = self._is_closing = True
        self.network.ends.pop(self, None)
        self._lose_peer(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))

    def _lose(self, error: Exception | None) -> None:
        if not self._is_lost:
            self._is_lost = self._is_closing = True
            self.network.ends.pop(self, None)
            self.loop.call_soon(self.protocol.connection_lost, error)

    def _lose_peer(self, error: Exception | None) -> None:
        peer = self.peer
        if not peer._is_lost and not peer.loop.is_closed():
            if self.network.is_cut(self.loop.host, peer.loop.host):
                # It finds out when the link is mended, or by its own timeouts.
                peer.loop.call_later(0.5, self._lose_peer, error)
            else:
                peer._lose(error)

    def _move(self) -> None:
        """See that what waits here moves on."""
        if not self._is_moving and not self._is_lost:
            self._is_moving = True
            self.loop.call_later(self.network.delay(), self._deliver)

    def _deliver(self) -> None:
        self._is_moving = False
        peer, random = self.peer, self.network.world.random
        if self._is_lost or peer.loop.is_closed():
            return
        if self.network.is_cut(self.loop.host, peer.loop.host):
            self._is_moving = True
            self.loop.call_later(0.5, self._deliver)
            return
        if self._buffer and not peer._is_lost:
            if not peer._is_reading:
                # It moves on with the other side's `resume_reading`.
                return
            size = len(self._buffer)
            if random.random() < 0.3:
                size = random.randint(1, size)
            data = bytes(self._buffer[:size])
            del self._buffer[:size]
            peer.loop.call_soon(peer._arrive, data)
            if self._is_write_paused and len(self._buffer) <= self.network.high_bytes // 4:
                self._is_write_paused = False
                self.protocol.resume_writing()
        if self._buffer and peer._is_lost:
            self._lose(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
        elif self._buffer:
            self._move()
        elif self._is_closing:
            self._lose(None)
            peer.loop.call_soon(peer._end)
        elif self._must_end and not self._has_ended:
            self._has_ended = True
            peer.loop.call_soon(peer._end)

    def _arrive(self, data: bytes) -> None:
        if not self._is_lost and not self._is_closing:
            self.protocol.data_received(data)

    def _end(self) -> None:
        if self._is_closing:
            self._lose(None)
        elif not self._is_lost and not self.protocol.eof_received():
            self.close()
