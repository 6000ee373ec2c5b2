"""For tests of the client: both clients behind one face, and peers that misbehave by script."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from karma_client import KarmaError, Node, connect, connect_async
from karma_client.calls import Exchange
from karma_client.network import run

Script = Callable[["PeerConnection"], None]


def success(response: Any = 1) -> bytes:
    """Return a success reply."""
    reply = {"protocol_version": 2, "success": True, "response": response, "error_code": None}
    return json.dumps(reply).encode() + b"\r\n"


def failure(code: str, message: str = "no", **detail: Any) -> bytes:
    """Return an error reply, with `error_detail` if there is any."""
    reply = {"protocol_version": 2, "success": False, "response": message, "error_code": code}
    if detail:
        reply["error_detail"] = detail
    return json.dumps(reply).encode() + b"\r\n"


class PeerConnection:
    """A connection of a peer: what its script reads and writes."""

    def __init__(self, peer: Peer, sock: socket.socket) -> None:
        self._peer = peer
        self._file = sock.makefile("rb")
        self.sock = sock

    def read(self) -> dict[str, Any]:
        """Return the next request. Raises EOFError when the client has gone."""
        line = self._file.readline()
        if not line:
            raise EOFError
        request: dict[str, Any] = json.loads(line)
        self._peer.requests.append(request)
        return request

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self, *replies: bytes) -> None:
        """Read a request for each reply."""
        for reply in replies:
            self.read()
            self.send(reply)

    def serve(self, answers: Callable[[dict[str, Any]], bytes]) -> None:
        """Answer until the client goes."""
        while True:
            self.send(answers(self.read()))

    def wait_for_end(self) -> None:
        """Wait until the client closes."""
        while self._file.readline():
            pass


class Peer:
    """A TCP server whose n-th connection runs the n-th script; further connections run the last one.

    A connection ends with its script.
    """

    def __init__(self, *scripts: Script) -> None:
        self.requests: list[dict[str, Any]] = []
        self.connections = 0
        self._scripts = scripts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def ops(self) -> list[str]:
        """The operations asked for, in order."""
        return [request["op"] for request in self.requests]

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        for sock in self._open:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join()
        for sock in self._open:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            script = self._scripts[min(self.connections, len(self._scripts) - 1)]
            self.connections += 1
            self._open.append(sock)
            thread = threading.Thread(target=self._run, args=(script, sock))
            self._threads.append(thread)
            thread.start()

    def _run(self, script: Script, sock: socket.socket) -> None:
        try:
            connection = PeerConnection(self, sock)
            script(connection)
            connection._file.close()
            sock.shutdown(socket.SHUT_RDWR)
        except (EOFError, OSError):
            pass


class Flavour:
    """Makes clients of one kind; tests call both kinds as if they blocked."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop | None) -> None:
        self.name = name
        self._loop = loop

    def connect(self, *arguments: Any, **options: Any) -> Any:
        """Return a blocking client, or an asyncio client that waits by itself."""
        if self._loop is None:
            return connect(*arguments, **options)
        return _Waiting(self._loop, connect_async(*arguments, **options))

    def start(self, client: Any, name: str, *arguments: Any) -> Callable[[], Any]:
        """Begin a call beside the test and return a function that gives its result."""
        loop = self._loop
        if loop is not None:
            task = loop.create_task(getattr(client._inner, name)(*arguments))
            return lambda: loop.run_until_complete(task)
        future: Future[Any] = Future()

        def call() -> None:
            try:
                future.set_result(getattr(client, name)(*arguments))
            except KarmaError as error:
                future.set_exception(error)

        threading.Thread(target=call).start()
        return future.result

    def exchange(self, client: Any, node: Node, exchange: Exchange) -> None:
        """Move one exchange over a connection of the client's network, past everything else of it."""

        async def move() -> None:
            channel = await client._core.network.open(node, 20.0)
            await channel.exchange(exchange, 20.0)
            channel.close()

        if self._loop is None:
            run(move())
        else:
            self._loop.run_until_complete(move())

    def idle(self) -> bool:
        """Let the asyncio client notice what happened. Returns False, to stand in a condition."""
        if self._loop is not None:
            self._loop.run_until_complete(asyncio.sleep(0.001))
        return False


class _Waiting:
    """An asyncio client or pipeline; awaitables are waited for, async iterators become iterators."""

    def __init__(self, loop: asyncio.AbstractEventLoop, inner: Any) -> None:
        self._loop = loop
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found) or name.startswith("_"):
            return found
        return lambda *arguments, **options: self._wait(found(*arguments, **options))

    def _wait(self, made: Any) -> Any:
        if asyncio.iscoroutine(made):
            return self._loop.run_until_complete(made)
        if isinstance(made, AsyncIterator):
            return self._iterate(made)
        return _Waiting(self._loop, made) if hasattr(made, "_core") else made

    def _iterate(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        while True:
            try:
                yield self._loop.run_until_complete(anext(items))
            except StopAsyncIteration:
                return

    def __len__(self) -> int:
        return len(self._inner)

    def __enter__(self) -> Self:
        self._loop.run_until_complete(self._inner.__aenter__())
        return self

    def __exit__(self, *problem: object) -> None:
        self._loop.run_until_complete(self._inner.__aexit__(*problem))


def both_flavours(name: str) -> Iterator[Flavour]:
    """Body of a fixture with the parameters "blocking" and "asyncio"."""
    loop = asyncio.new_event_loop() if name == "asyncio" else None
    yield Flavour(name, loop)
    if loop is not None:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


FLAVOURS = ["blocking", "asyncio"]
