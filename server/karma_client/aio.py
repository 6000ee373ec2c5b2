"""The asyncio client. It works on any event loop, uvloop too."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Self, TypeVar

from karma_client.binding import Awaiting
from karma_client.calls import Exchange
from karma_client.network import RECEIVE_BYTES
from karma_client.nodes import Node
from karma_client.operations import Operations, Tasks
from karma_client.pipeline import AsyncPipeline
from karma_client.settings import Settings, Timeouts, Tls

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")


class AsyncClient(Awaiting, Operations, Tasks):
    """A client for asyncio. Make one with `karma_client.connect_async`.

    Many tasks of one event loop may share a client: each request under way has a connection of its own, up to
    `pool_size`.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; the client cannot be used any more."""
        self._core.close()

    def pipeline(self) -> AsyncPipeline:
        """Return a pipeline: its operations wait and leave together.

        Leaving the with block sends them. Replies come in order. An error of a single request is raised by
        its
        `result()`; if nobody asked for the outcome of a failed request, leaving the block raises its error.

            async with client.pipeline() as pipeline:
                first = pipeline.increment("api_requests", 42)
                second = pipeline.sum("api_requests", 42)
            second.result()
        """
        return AsyncPipeline(self._core, self._timeouts)

    def with_timeout(self, seconds: float) -> AsyncClient:
        """Return this client with another time limit for every call, slow ones too. It shares the
        connections.
        """
        return AsyncClient(self._core, Timeouts(seconds, seconds))


class AsyncNetwork:
    """Streams, tasks and the event loop's clock."""

    def __init__(self, settings: Settings) -> None:
        self._tls = settings.tls
        self._context: ssl.SSLContext | None = None
        self._slots = asyncio.BoundedSemaphore(settings.pool_size)

    def clock(self) -> float:
        """Return the time."""
        return asyncio.get_running_loop().time()

    def chance(self) -> float:
        """Return a random number of 0 to 1."""
        return random.random()  # noqa: S311 - spreads retries, guards nothing

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def acquire(self, timeout_seconds: float) -> bool:
        """Take a slot."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._slots.acquire()
        except TimeoutError:
            return False
        return True

    def release(self) -> None:
        """Give the slot back."""
        self._slots.release()

    async def gather(self, works: list[Coroutine[Any, Any, T]]) -> list[T]:
        """Run coroutines as tasks."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
        return [task.result() for task in tasks]

    async def open(self, node: Node, timeout_seconds: float) -> AsyncChannel:
        """Connect."""
        async with asyncio.timeout(timeout_seconds):
            if node.path is not None:
                return AsyncChannel(node, *await asyncio.open_unix_connection(node.path))
            if self._tls is not None and self._context is None:
                self._context = self._tls.context() if isinstance(self._tls, Tls) else self._tls
            name = self._tls.server_name if isinstance(self._tls, Tls) else None
            reader, writer = await asyncio.open_connection(
                node.host,
                node.port,
                ssl=self._context,
                server_hostname=(name or node.host) if self._context is not None else None,
            )
        return AsyncChannel(node, reader, writer)


class AsyncChannel:
    """A connection over asyncio's streams, which read while they write."""

    def __init__(self, node: Node, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.node = node
        self._reader = reader
        self._writer = writer

    def is_usable(self) -> bool:
        """Return whether nothing came in."""
        return not (self._writer.is_closing() or self._reader.at_eof())

    def close(self) -> None:
        """Close at once."""
        self._writer.transport.abort()

    async def exchange(self, exchange: Exchange, timeout_seconds: float) -> None:
        """Send and receive."""
        if not self.is_usable():
            raise ConnectionResetError("the other side closed it")
        async with asyncio.timeout(timeout_seconds):
            exchange.has_left = True
            # Not drained: what the transport cannot send yet it holds, and one window is not much.
            self._writer.write(exchange.data)
            while not exchange.is_complete:
                data = await self._reader.read(RECEIVE_BYTES)
                if not data:
                    raise ConnectionResetError("the other side closed it")
                exchange.feed(data)
