"""Links between nodes that break on command: a TCP proxy in a thread of the test process.

Each link is a port of its own, so that A's way to B can fail while B's way to A works. A link is open,
cut (connections are reset, new ones too) or a hole (connections stay and nothing passes); besides it can
be slow, half-closed, or break after so many bytes, which is how replies end in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Literal, Self

Mode = Literal["open", "cut", "hole"]
Streams = tuple[asyncio.StreamWriter, asyncio.StreamWriter]
_CHUNK_BYTES = 65_536


class Link:
    """One way through the proxy. `target` tells where it leads now, 0 to nobody."""

    def __init__(self, proxy: Proxy, target: Callable[[], int]) -> None:
        self._proxy = proxy
        self._target = target
        self._is_passable = asyncio.Event()
        self._is_passable.set()
        self._open: set[Streams] = set()
        self._break_after_bytes: int | None = None
        self._ended: set[asyncio.StreamWriter] = set()
        """Directions that were half-closed: what still comes for them is dropped."""
        self.mode: Mode = "open"
        self.delay_ms = 0
        self.port = 0
        self.accepted = 0
        self.bytes_down = 0
        """Bytes from the target that were passed on."""

    @property
    def is_armed(self) -> bool:
        """Whether `break_after` has still to happen."""
        return self._break_after_bytes is not None

    # -- Commands, from any thread -----------------------------------------------------------------

    def set(self, mode: Mode, delay_ms: int = 0) -> None:
        """Open, cut or block the link; what a hole held back passes when it is opened again.

        A break that was to come does not come any more.
        """
        self._proxy.run(self._set, mode, delay_ms)

    def reset(self) -> None:
        """Break the connections of this moment; new ones are welcome."""
        self._proxy.run(self._reset)

    def half_close(self, *, towards_target: bool) -> None:
        """End one direction of the connections of this moment."""
        self._proxy.run(self._half_close, towards_target)

    def break_after(self, down_bytes: int) -> None:
        """Break the connection once, when so many bytes more have come from the target."""
        self._proxy.run(self._set_break, down_bytes)

    # -- In the proxy's thread ---------------------------------------------------------------------

    def _set(self, mode: Mode, delay_ms: int) -> None:
        self.mode, self.delay_ms = mode, delay_ms
        self._break_after_bytes = None
        if mode == "hole":
            self._is_passable.clear()
        else:
            self._is_passable.set()
        if mode == "cut":
            self._reset()

    def _reset(self) -> None:
        for streams in self._open:
            for writer in streams:
                _reset(writer)

    def _half_close(self, towards_target: bool) -> None:
        for client, target in self._open:
            self._end(target if towards_target else client)

    def _end(self, writer: asyncio.StreamWriter) -> None:
        if writer not in self._ended:
            self._ended.add(writer)
            with contextlib.suppress(OSError):
                writer.write_eof()

    def _set_break(self, down_bytes: int) -> None:
        self._break_after_bytes = down_bytes

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        self.accepted += 1
        writers = [writer]
        try:
            await self._carry(reader, writers)
        except (OSError, asyncio.CancelledError):
            # Cancelled by the proxy's end only; asyncio would log that as an error.
            pass
        finally:
            self._open = {streams for streams in self._open if writer not in streams}
            self._ended.difference_update(writers)
            for each in writers:
                _reset(each)

    async def _carry(self, reader: asyncio.StreamReader, writers: list[asyncio.StreamWriter]) -> None:
        port = self._target()
        if self.mode == "cut" or not port:
            return
        target_reader, target = await asyncio.open_connection("127.0.0.1", port)
        (writer,) = writers
        writers.append(target)
        self._open.add((writer, target))
        pumps = [
            asyncio.create_task(self._pump(reader, target, is_down=False)),
            asyncio.create_task(self._pump(target_reader, writer, is_down=True)),
        ]
        try:
            await asyncio.gather(*pumps)
        finally:
            for pump in pumps:
                pump.cancel()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_down: bool
    ) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if self.delay_ms:
                await asyncio.sleep(self.delay_ms / 1000)
            await self._is_passable.wait()
            if is_down:
                data = await self._allowed(data, writer)
                self.bytes_down += len(data)
            if writer not in self._ended:
                writer.write(data)
                await writer.drain()
        await self._is_passable.wait()
        self._end(writer)

    async def _allowed(self, data: bytes, writer: asyncio.StreamWriter) -> bytes:
        """Return what may pass. Raises ConnectionResetError where the link is to break."""
        left_bytes = self._break_after_bytes
        if left_bytes is None:
            return data
        if len(data) < left_bytes:
            self._break_after_bytes = left_bytes - len(data)
            return data
        self._break_after_bytes = None
        writer.write(data[:left_bytes])
        self.bytes_down += left_bytes
        await writer.drain()
        # A reset would take what the peer has not read yet with it.
        await asyncio.sleep(0.02)
        raise ConnectionResetError


class Proxy:
    """The thread with its links; a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._servers: list[asyncio.Server] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def link(self, target: Callable[[], int]) -> Link:
        """Open a link on a port of its own."""
        found = Link(self, target)
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(found.serve, "127.0.0.1", 0), self._loop
        ).result()
        self._servers.append(server)
        found.port = server.sockets[0].getsockname()[1]
        return found

    def run(self, command: Callable[..., None], *arguments: Any) -> None:
        """Carry out a command between two events of the thread."""

        async def carry_out() -> None:
            command(*arguments)

        asyncio.run_coroutine_threadsafe(carry_out(), self._loop).result()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset instead of an end."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
