"""A TLS port: connections are accepted by the settings of that moment, and failed handshakes are reported."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

_RETRY_SECONDS = 1.0
"""How long nothing is accepted when the system has no descriptor left."""
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listening(Protocol):
    """What is left of a server that the event loop made, or of a `TlsListener`."""

    @property
    def sockets(self) -> Sequence[Any]:
        """The listening sockets."""

    def close(self) -> None:
        """Accept no more connections; those that are open stay."""


@dataclass(slots=True, repr=False)
class Tls:
    """The settings for connections to come, which a reload replaces."""

    context: ssl.SSLContext
    failed: Callable[[Any, str], None]
    """Called with the peer's address and the reason when a handshake fails."""


@dataclass(slots=True, repr=False)
class TlsListener:
    """Accepts connections itself: the event loop reports no failed handshake, and keeps its first context."""

    sockets: list[socket.socket]
    connect: Callable[[], asyncio.Protocol]
    tls: Tls
    timeout_seconds: float | None
    backlog: int
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _is_closed: bool = False

    def start(self) -> None:
        """Accept connections from now on."""
        for listening in self.sockets:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def close(self) -> None:
        """Accept no more connections; those that are open stay."""
        self._is_closed = True
        for listening in self.sockets:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        for task in self._tasks:
            task.cancel()

    def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(self.backlog):
            try:
                accepted, peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                # It stays readable: without a pause the loop would do nothing else.
                loop.remove_reader(listening)
                loop.call_later(_RETRY_SECONDS, self._retry, listening)
                return
            accepted.setblocking(False)
            task = loop.create_task(self._shake_hands(accepted, peer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _retry(self, listening: socket.socket) -> None:
        if not self._is_closed:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    async def _shake_hands(self, accepted: socket.socket, peer: Any) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self.connect, accepted, ssl=self.tls.context, ssl_handshake_timeout=self.timeout_seconds
            )
        except OSError as error:
            self.tls.failed(peer, getattr(error, "reason", None) or str(error) or type(error).__name__)
        except asyncio.CancelledError:
            accepted.close()
            raise


async def listen(
    connect: Callable[[], asyncio.Protocol],
    host: str,
    port: int,
    tls: Tls | None,
    *,
    timeout_seconds: float | None,
    backlog: int = 100,
) -> Listening:
    """Listen on every address of a host, with TLS if it is configured. Raises OSError."""
    loop = asyncio.get_running_loop()
    if tls is None:
        return await loop.create_server(connect, host, port, backlog=backlog, reuse_address=True)
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with contextlib.ExitStack() as opened:
        sockets = []
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listening = opened.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.listen(backlog)
            listening.setblocking(False)
            sockets.append(listening)
        opened.pop_all()
    listener = TlsListener(sockets, connect, tls, timeout_seconds, backlog)
    listener.start()
    return listener
