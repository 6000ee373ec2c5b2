"""The asyncio client. It works on any event loop, uvloop too."""

from __future__ import annotations

import asyncio
import os
import random
import select
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from karma_client.binding import Awaiting
from karma_client.calls import Exchange
from karma_client.errors import ProtocolError
from karma_client.nodes import Node
from karma_client.operations import Operations, Tasks
from karma_client.pipeline import AsyncPipeline
from karma_client.settings import Settings, Timeouts, Tls

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")


class AsyncClient(Awaiting, Tasks, Operations):
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

        Leaving the with block sends them. Replies come in order. A request's `result()` raises its error;
        if nobody asked for the outcome of a failed request, leaving the block raises it.

            async with client.pipeline() as pipeline:
                first = pipeline.increment("api_requests", 42)
                second = pipeline.sum("api_requests", 42)
            second.result()
        """
        return AsyncPipeline(self._core, self._timeouts)

    async def find_master(self) -> str:
        """Return the address of the node that writes go to now. Raises NoMasterError and others."""
        return str(await self._core.find_master(self._timeouts))

    @property
    def last_node(self) -> str | None:
        """The address of the node that answered last."""
        return None if self._core.last_node is None else str(self._core.last_node)

    def with_timeout(self, seconds: float) -> AsyncClient:
        """Return this client, connections shared, with another time limit for every call, slow ones too."""
        return AsyncClient(self._core, Timeouts(seconds, seconds))


class AsyncNetwork:
    """Transports, tasks and the event loop's clock."""

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
        if not self._slots.locked():
            return await self._slots.acquire()
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._slots.acquire()
        except TimeoutError:
            return False

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
        loop = asyncio.get_running_loop()
        channel = AsyncChannel(node)
        async with asyncio.timeout(timeout_seconds):
            if node.path is not None:
                await loop.create_unix_connection(lambda: channel, node.path)
                return channel
            if self._tls is not None and self._context is None:
                self._context = self._tls.context() if isinstance(self._tls, Tls) else self._tls
            name = self._tls.server_name if isinstance(self._tls, Tls) else None
            try:
                await loop.create_connection(
                    lambda: channel,
                    node.host,
                    node.port,
                    ssl=self._context,
                    server_hostname=(name or node.host) if self._context is not None else None,
                )
            except ConnectionError as error:
                # asyncio puts the address into strerror, as a tuple.
                raise OSError(error.errno, os.strerror(error.errno or 0)) from error
        return channel


class AsyncChannel(asyncio.Protocol):
    """A connection. What comes in goes straight to the exchange under way."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._is_usable = True
        self._poll = select.poll()

    # -- asyncio's side ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports have the methods but not the base class.
        self._transport = cast("asyncio.Transport", transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """Take replies in. What comes without an exchange is nobody's, and the connection out of step."""
        if self._exchange is None:
            self._is_usable = False
            return
        try:
            self._exchange.feed(data)
        except ProtocolError as error:
            self._finish(error)
        else:
            if self._exchange.is_complete:
                self._finish(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever waits."""
        self._is_usable = False
        self._finish(error or ConnectionResetError("the other side closed it"))

    def _finish(self, error: Exception | None) -> None:
        if self._done is None or self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)

    # -- the core's side -----------------------------------------------------------------------

    def is_usable(self) -> bool:
        """Return whether nothing came in."""
        # The loop may not have looked at the socket since: a busy one notices the end of a connection late.
        return self._is_usable and not self._poll.poll(0)

    def close(self) -> None:
        """Close at once."""
        self._is_usable = False
        if self._transport is not None:
            self._transport.abort()

    async def exchange(self, exchange: Exchange, timeout_seconds: float) -> None:
        """Send and receive."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the other side closed it")
        self._exchange = exchange
        self._done = asyncio.get_running_loop().create_future()
        try:
            exchange.has_left = True
            # The transport holds what it cannot send yet and reads meanwhile; one window is not much.
            self._transport.write(exchange.data)
            async with asyncio.timeout(timeout_seconds):
                await self._done
        finally:
            self._exchange = self._done = None
