"""Hostile clients: whatever some do to a real server, the others keep their speed and nothing grows.

Each attack goes on while a client that behaves writes one request after the other. Its pace may fall, because
the server has more to do, and the machine too, but not to a standstill: it is compared with its own pace
before, with a wide tolerance. Afterwards it has as many descriptors as before, and little more memory.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import Connection, Server, request, until

MAX_CLIENTS = 300
MAX_BUFFER_BYTES = 1 << 20
IDLE_BEYOND = 10_000
"""Connections that are opened and left alone when no more are taken."""
TOLERANCE = 8
"""By how much the pace may fall: the attack runs in the same process, and others on the same cores."""
MAX_GROWTH_BYTES = 64 << 20
"""What an attack may make a server of these settings hold: it has some 20 clients, with a megabyte each."""
DAY = 20260505
_WINDOW_SECONDS = 0.25
_WINDOWS = 4
Attack = Callable[[Server, dict[str, int]], AbstractContextManager[None]]


def pace(connection: Connection) -> float:
    """Return the requests a second that a client gets answered in the best of some windows."""
    best = 0.0
    for _ in range(_WINDOWS):
        start = time.monotonic()
        count = 0
        while (now := time.monotonic()) < start + _WINDOW_SECONDS:
            assert connection.ask("counter.increment", series="good", key=1, bucket=DAY) == 1
            count += 1
        best = max(best, count / (now - start))
    return best


def open_files(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def peak_memory_bytes(server: Server) -> int:
    """Return the most that a server ever had resident."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) << 10


@contextlib.contextmanager
def behind(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let something go on in a thread that is told when to end."""
    is_over = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work(is_over)
        except BaseException as error:  # noqa: BLE001 - the test raises it
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    assert not failures, failures


def connect_raw(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), 20)


# -- Attacks ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def slow_senders(server: Server, figures: dict[str, int]) -> Iterator[None]:
    """Many send a line byte by byte; when it is whole it is answered like any other."""
    with ExitStack() as open_ones:
        senders = [open_ones.enter_context(server.connect()) for _ in range(50)]

        def drip(is_over: threading.Event) -> None:
            while not is_over.wait(0.02):
                for sender in senders:
                    # White space before the object: a line may have as much of it as it likes.
                    sender.send(b" ")

        with behind(drip):
            yield
        for sender in senders:
            sender.send(request("counter.increment", series="slow", key=1, bucket=DAY))
            assert sender.read()["response"] == 1
        figures["slow senders"] = len(senders)


@contextlib.contextmanager
def half_open_sockets(server: Server, figures: dict[str, int]) -> Iterator[None]:
    """Many end their input, with or without half a request, and never close, nor take what comes."""
    with ExitStack() as open_ones:

        def end_inputs(is_over: threading.Event) -> None:
            while not is_over.wait(0.002):
                half = open_ones.enter_context(connect_raw(server))
                half.sendall(request("system.ping") + b'{"v":2,"op":"tree.dr')
                half.shutdown(socket.SHUT_WR)
                figures["half-open sockets"] = figures.get("half-open sockets", 0) + 1

        with behind(end_inputs):
            yield
        # The server closes its side although they do not: checked by the caller, while these are open.
        until(lambda: server.ask("system.stats")["connections"] <= 2, why=lambda: "half-open sockets stay")


@contextlib.contextmanager
def idle_beyond_the_limit(server: Server, figures: dict[str, int]) -> Iterator[None]:
    """All places are taken by silent ones, and ten thousand more stand outside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = min(hard, IDLE_BEYOND + 2000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, room), hard))
    try:
        with ExitStack() as inside, ExitStack() as outside:
            for _ in range(MAX_CLIENTS - 1):
                inside.enter_context(connect_raw(server))
            until(lambda: is_full(server))
            for number in range(IDLE_BEYOND):
                if number % (room - 2000) == room - 2001:
                    # As many at once as this process may have.
                    outside.close()
                late = outside.enter_context(connect_raw(server))
                if number % 100 == 0:
                    assert json.loads(late.makefile("rb").readline())["error_code"] == "overloaded"
            figures["idle connections beyond the limit"] = IDLE_BEYOND
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_full(server: Server) -> bool:
    with server.connect() as late, contextlib.suppress(OSError):
        return b"overloaded" in late.read_line()
    return False


@contextlib.contextmanager
def clients_that_never_read(server: Server, figures: dict[str, int]) -> Iterator[None]:
    """Twenty at a time ask for ten times what the server would hold for them, and take nothing of it."""
    with server.connect() as connection:
        items = [[key, DAY, 10**15] for key in range(1000)]
        connection.ask("series.batch_add", series="large", items=items)
    asked = request("tree.keys", series="large", limit=1000) * 300
    waiting: deque[socket.socket] = deque()

    def ask() -> None:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(asked)
        waiting.append(client)
        figures["clients that never read"] = figures.get("clients that never read", 0) + 1

    def come_back(is_over: threading.Event) -> None:
        # Slowly: what they ask for is work, which is not what this attack is about.
        while not is_over.wait(0.5):
            ask()
            waiting.popleft().close()

    for _ in range(20):
        ask()
    until(lambda: not any(found["buffered_in_bytes"] for found in server.ask("system.clients")), seconds=60)
    with behind(come_back):
        yield
    for client in waiting:
        client.close()


@contextlib.contextmanager
def endless_lines(server: Server, figures: dict[str, int]) -> Iterator[None]:
    """Lines without an end: refused at the first byte too many, and not a byte more is kept."""

    def flood(is_over: threading.Event) -> None:
        while not is_over.wait(0.01):
            with contextlib.suppress(ConnectionError), connect_raw(server) as client:
                for _ in range(16):
                    client.sendall(b"x" * 262_144)
            figures["endless lines"] = figures.get("endless lines", 0) + 1

    with behind(flood):
        yield


@contextlib.contextmanager
def resets(server: Server, figures: dict[str, int]) -> Iterator[None]:
    """Connections that are reset, before, in the middle of and behind a request."""
    line = request("counter.increment", series="reset", key=1, bucket=DAY)

    def reset(is_over: threading.Event) -> None:
        while not is_over.wait(0.001):
            with connect_raw(server) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                count = figures["resets"] = figures.get("resets", 0) + 1
                client.sendall((b"", line[:20], line, line * 50)[count % 4])

    with behind(reset):
        yield


ATTACKS = (
    slow_senders,
    half_open_sockets,
    idle_beyond_the_limit,
    clients_that_never_read,
    endless_lines,
    resets,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_the_others_keep_their_speed_and_nothing_grows(
    tmp_path: Path, attack: Attack, add_figures: Callable[[dict[str, int]], None]
) -> None:
    options: dict[str, Any] = {
        "max_clients": MAX_CLIENTS,
        "max_client_buffer_bytes": MAX_BUFFER_BYTES,
        "max_request_bytes": 65_536,
        "read_timeout": 0,
    }
    figures: dict[str, int] = {}
    with Server(tmp_path / "data", wal_fsync=False, **options) as server, server.connect() as good:
        before = pace(good)
        files, memory = open_files(server), peak_memory_bytes(server)
        with attack(server, figures):
            during = pace(good)
        assert during > before / TOLERANCE, (before, during)
        assert peak_memory_bytes(server) - memory < MAX_GROWTH_BYTES
        until(
            lambda: open_files(server) <= files, why=lambda: f"{open_files(server)} descriptors, not {files}"
        )
        assert server.stop() == 0
        assert "internal_error" not in server.output.read_text()
    add_figures(figures)


def test_partial_lines_do_not_hold_up_a_shutdown(tmp_path: Path) -> None:
    """They are no requests: what was acknowledged is there afterwards, and nothing of them."""
    with Server(tmp_path / "data", read_timeout=0) as server:
        with ExitStack() as open_ones:
            for number in range(50):
                client = open_ones.enter_context(server.connect())
                assert client.ask("counter.increment", series="whole", key=number, bucket=DAY) == 1
                line = request("counter.increment", series="partial", key=number, bucket=DAY)
                client.send(line[: 1 + number * (len(line) - 1) // 50])
            assert server.stop(signal.SIGTERM) == 0
        server.start()
        with server.connect() as again:
            assert again.ask("tree.list") == ["whole"]
            assert again.ask("tree.summary", series="whole")["total"] == 50
