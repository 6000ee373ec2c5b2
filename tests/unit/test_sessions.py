"""Timeouts of connections on a clock made by hand: what counts as a client's silence, and what does not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from karma.net.session import SWEEP_SECONDS, Session, Sessions
from karma.service.log import Log
from karma.service.write_path import WritePath

READ_TIMEOUT, WRITE_TIMEOUT = 5.0, 3.0


class Transport:
    """Both ends of a connection, without an event loop."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.is_closed = False

    def get_extra_info(self, name: str, _default: Any = None) -> Any:
        return {"peername": ("10.0.0.1", 5), "socket": self.ours}.get(name)

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading
    abort = close


class Work:
    """A write path that answers nothing by itself."""

    def __init__(self) -> None:
        self.is_answer_due = False
        self.large_lines = 0

    def submit(self, _session: Session, _lines: list[bytes]) -> None:
        pass

    def submit_large(self, _session: Session, lines: list[bytes]) -> None:
        self.large_lines += len(lines)

    def is_waiting(self, _session: Session) -> bool:
        return self.is_answer_due


class Bench:
    """One connection and the clock of its timeouts."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.work, self.transport = Work(), Transport()
        self.said: list[str] = []
        self.sessions = Sessions(
            write_path=cast("WritePath", self.work),
            log=Log(self.said.append, lambda: 0.0),
            clock=lambda: self.now,
            max_request_bytes=16 << 20,
            max_clients=10,
            max_client_buffer_bytes=1_000,
            read_timeout_seconds=READ_TIMEOUT,
            write_timeout_seconds=WRITE_TIMEOUT,
            refuse_peer=lambda _peer: None,
        )
        self.session = Session(self.sessions)
        self.session.connection_made(cast("asyncio.BaseTransport", self.transport))
        self.sessions.sweep()

    def listen(self, seconds: float, arriving: bytes = b"") -> None:
        """Let time pass as a server that listens does: bytes are read, if any come, and it sweeps."""
        end = self.now + seconds
        while self.now < end:
            self.now += SWEEP_SECONDS
            if arriving:
                self.session.data_received(arriving)
            self.sessions.sweep()

    def stall(self, seconds: float, arriving: bytes = b"") -> None:
        """Stand still meanwhile; timers come before sockets."""
        if arriving:
            self.transport.theirs.send(arriving)
        self.now += seconds
        self.sessions.sweep()

    def read(self) -> None:
        """Read what has come."""
        self.session.data_received(self.transport.ours.recv(65_536))

    def has_closed(self) -> bool:
        """Return whether the server closed the connection."""
        return self.transport.is_closed


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.transport.ours.close()
    bench.transport.theirs.close()


def test_silence_while_the_server_listens_ends_a_connection(bench: Bench) -> None:
    bench.listen(READ_TIMEOUT)
    assert not bench.has_closed()
    bench.listen(2 * SWEEP_SECONDS)
    assert bench.has_closed()


@pytest.mark.parametrize("already_silent", [0.0, READ_TIMEOUT - 0.25, READ_TIMEOUT])
def test_a_request_that_came_during_a_stall_is_read(bench: Bench, already_silent: float) -> None:
    bench.listen(already_silent)
    bench.stall(100.0, b"request\n")
    bench.stall(100.0)
    assert not bench.has_closed()
    bench.read()
    bench.listen(READ_TIMEOUT)
    assert not bench.has_closed()


def test_a_stall_is_not_the_client_s_silence(bench: Bench) -> None:
    bench.listen(2.0)
    bench.stall(100.0)
    bench.listen(2.0)
    assert not bench.has_closed()
    bench.listen(2.0)
    assert bench.has_closed(), "its own silence counts, before and after"


def test_a_stall_is_no_time_to_take_replies(bench: Bench) -> None:
    bench.session.pause_writing()
    bench.stall(100.0)
    bench.listen(WRITE_TIMEOUT - 1)
    assert not bench.has_closed()
    bench.listen(2.0)
    assert bench.has_closed()
    assert "write_timeout" in bench.said[0]


@pytest.mark.parametrize("due", ["durable", "blocked", "backlog", "unsent"])
def test_who_waits_for_a_reply_is_not_silent(bench: Bench, due: str) -> None:
    bench.sessions.write_timeout_seconds = 0
    bench.session.data_received(b"request\n")
    if due == "durable":
        bench.work.is_answer_due = True
    elif due == "blocked":
        bench.session.is_blocked = True
    elif due == "backlog":
        bench.session.backlog = [b"request"]
    else:
        bench.session.pause_writing()
    bench.listen(20 * READ_TIMEOUT)
    assert not bench.has_closed()
    # Its silence begins with the reply.
    bench.work.is_answer_due = bench.session.is_blocked = False
    bench.session.backlog = []
    if due == "unsent":
        bench.session.resume_writing()
    bench.listen(READ_TIMEOUT - 1)
    assert not bench.has_closed()
    bench.listen(READ_TIMEOUT)
    assert bench.has_closed()


def test_a_line_has_a_deadline_from_its_first_byte(bench: Bench) -> None:
    bench.session.data_received(b"request\n")
    bench.listen(READ_TIMEOUT - 1, b"x")
    assert not bench.has_closed()
    bench.listen(2.0, b"x")
    assert bench.has_closed(), "it never was silent, and never said anything"


def test_lines_that_end_may_follow_each_other_without_end(bench: Bench) -> None:
    bench.session.data_received(b"x")
    bench.listen(4 * READ_TIMEOUT, b"x\nx")
    assert not bench.has_closed()


def test_a_long_line_has_time_by_its_length(bench: Bench) -> None:
    bench.listen(3 * READ_TIMEOUT, bytes(65_536))
    assert not bench.has_closed()
    bench.listen(30 * READ_TIMEOUT, b"x")
    assert bench.has_closed()


def test_a_line_whose_rest_came_during_a_stall_is_read(bench: Bench) -> None:
    bench.session.data_received(b"x")
    bench.listen(READ_TIMEOUT)
    bench.stall(100.0, b"x\n")
    assert not bench.has_closed()
    bench.read()
    bench.listen(READ_TIMEOUT - 1)
    assert not bench.has_closed()


def test_only_a_large_line_waits_for_a_turn_and_not_many_small_ones(bench: Bench) -> None:
    small = b'{"v":2,"op":"system.ping"}\n'
    bench.session.data_received(small * 1_000)
    assert bench.work.large_lines == 0
    bench.session.data_received(small + b'"' + b"x" * 10_000 + b'"\n' + small)
    assert bench.work.large_lines == 3
