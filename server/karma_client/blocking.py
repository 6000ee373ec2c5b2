"""The blocking client, over plain sockets."""

from __future__ import annotations

import random
import select
import socket
import threading
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from karma_client.binding import Blocking
from karma_client.calls import Exchange
from karma_client.network import RECEIVE_BYTES, run
from karma_client.nodes import Node
from karma_client.operations import Operations, Tasks
from karma_client.pipeline import Pipeline
from karma_client.settings import Settings, Timeouts, Tls

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")


class Client(Blocking, Tasks, Operations):
    """A client whose methods block until the reply is there. Make one with `karma_client.connect`.

    Several threads may share a client: each request under way has a connection of its own, up to `pool_size`.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; the client cannot be used any more."""
        self._core.close()

    def pipeline(self) -> Pipeline:
        """Return a pipeline: its operations wait and leave together.

        Leaving the with block sends them. Replies come in order. A request's `result()` raises its error;
        if nobody asked for the outcome of a failed request, leaving the block raises it.

            with client.pipeline() as pipeline:
                first = pipeline.increment("api_requests", 42)
                second = pipeline.sum("api_requests", 42)
            second.result()
        """
        return Pipeline(self._core, self._timeouts)

    def find_master(self) -> str:
        """Return the address of the node that writes go to now. Raises NoMasterError and others."""
        return str(run(self._core.find_master(self._timeouts)))

    @property
    def last_node(self) -> str | None:
        """The address of the node that answered last."""
        return None if self._core.last_node is None else str(self._core.last_node)

    def with_timeout(self, seconds: float) -> Client:
        """Return this client, connections shared, with another time limit for every call, slow ones too."""
        return Client(self._core, Timeouts(seconds, seconds))


class BlockingNetwork:
    """Sockets, threads and the clock."""

    def __init__(self, settings: Settings) -> None:
        self._tls = settings.tls
        self._context: ssl.SSLContext | None = None
        self._slots = threading.BoundedSemaphore(settings.pool_size)

    def clock(self) -> float:
        """Return the time."""
        return time.monotonic()

    def chance(self) -> float:
        """Return a random number of 0 to 1."""
        return random.random()  # noqa: S311 - spreads retries, guards nothing

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    async def acquire(self, timeout_seconds: float) -> bool:
        """Take a slot."""
        return self._slots.acquire(timeout=timeout_seconds)

    def release(self) -> None:
        """Give the slot back."""
        self._slots.release()

    async def gather(self, works: list[Coroutine[Any, Any, T]]) -> list[T]:
        """Run coroutines in threads, so that a dead node's timeout is waited for once and not in turn."""
        results: list[T | BaseException] = [RuntimeError("not run")] * len(works)

        def work(index: int) -> None:
            try:
                results[index] = run(works[index])
            except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
                results[index] = error

        threads = [threading.Thread(target=work, args=(index,)) for index in range(1, len(works))]
        for thread in threads:
            thread.start()
        work(0)
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return cast("list[T]", results)

    async def open(self, node: Node, timeout_seconds: float) -> BlockingChannel:
        """Connect."""
        if node.path is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(timeout_seconds)
                sock.connect(node.path)
            except OSError:
                sock.close()
                raise
            return BlockingChannel(node, sock)
        if self._tls is not None and self._context is None:
            # Before there is a socket: files that cannot be used must not leave one open.
            self._context = self._tls.context() if isinstance(self._tls, Tls) else self._tls
        sock = socket.create_connection((node.host, node.port), timeout_seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is None:
            return BlockingChannel(node, sock)
        name = self._tls.server_name if isinstance(self._tls, Tls) else None
        try:
            return TlsChannel(node, self._context.wrap_socket(sock, server_hostname=name or node.host))
        except OSError:
            sock.close()
            raise


class BlockingChannel:
    """A connection over a non-blocking socket and `poll`, so that it reads while it writes."""

    def __init__(self, node: Node, sock: socket.socket) -> None:
        self.node = node
        self._socket = sock
        sock.setblocking(False)
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)

    def is_usable(self) -> bool:
        """Return whether nothing came in."""
        return not self._poll.poll(0)

    def close(self) -> None:
        """Close at once."""
        self._socket.close()

    async def exchange(self, exchange: Exchange, timeout_seconds: float) -> None:
        """Send and receive."""
        deadline = time.monotonic() + timeout_seconds
        rest = memoryview(exchange.data)
        while not exchange.is_complete:
            if rest:
                sent = self._send(exchange, rest)
                rest = rest[sent:]
            self._wait(deadline, is_writing=bool(rest))
            data = self._receive()
            if data is not None:
                if not data:
                    raise ConnectionResetError("the other side closed it")
                exchange.feed(data)

    def _send(self, exchange: Exchange, data: memoryview) -> int:
        """Send what fits without waiting and return how much that was."""
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            return 0
        exchange.has_left = True
        return sent

    def _receive(self) -> bytes | None:
        """Return what came, b"" at the end of the connection, None for nothing yet."""
        try:
            return self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None

    def _wait(self, deadline: float, *, is_writing: bool) -> None:
        remaining_ms = (deadline - time.monotonic()) * 1000
        if is_writing:
            self._poll.modify(self._socket.fileno(), select.POLLIN | select.POLLOUT)
        try:
            ready = self._poll.poll(max(0.0, remaining_ms))
        finally:
            if is_writing:
                self._poll.modify(self._socket.fileno(), select.POLLIN)
        if not ready:
            raise TimeoutError("timed out")


class TlsChannel(BlockingChannel):
    """The same over TLS.

    Nothing waits where `poll` does not see it: OpenSSL takes single records from the kernel, and a read takes
    a whole one.
    """

    _socket: ssl.SSLSocket

    def _send(self, exchange: Exchange, data: memoryview) -> int:
        import ssl  # noqa: PLC0415 - loaded with the context already

        # Part of a record may have left when this raises: nobody can tell how much of it counts.
        exchange.has_left = True
        try:
            return self._socket.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def _receive(self) -> bytes | None:
        import ssl  # noqa: PLC0415 - loaded with the context already

        try:
            return self._socket.recv(RECEIVE_BYTES)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
