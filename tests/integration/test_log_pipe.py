"""A server whose standard output is a pipe that nothing reads."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Connection, free_port, until


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that takes nothing more."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"\n" * 4_096)
    os.set_blocking(writing, True)
    yield reading, writing
    os.close(reading)
    os.close(writing)


@contextlib.contextmanager
def serving(directory: Path, output: int) -> Iterator[tuple[subprocess.Popen[bytes], Connection]]:
    """Start a server that logs to a descriptor, and connect to it."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "karma.app",
        f"--directory={directory}",
        f"--port={port}",
        "--read-timeout=0",
    ]
    process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        sock = until(lambda: socket.create_connection(("127.0.0.1", port), 20))
        with Connection(sock) as connection:
            yield process, connection
    finally:
        process.kill()
        process.wait()


def test_a_log_that_nothing_reads_holds_up_neither_start_nor_writes_nor_end(
    tmp_path: Path, full_pipe: tuple[int, int]
) -> None:
    reading, writing = full_pipe
    with serving(tmp_path / "data", writing) as (process, connection):
        for number in range(20):
            assert connection.ask("counter.increment", series="a", key=1) == 1
            # Each of these writes a line.
            connection.ask("replication.pause", ttl_ms=1_000)
            connection.ask("replication.resume")
            assert connection.ask("counter.sum", series="a", key=1) == number + 1
        process.terminate()
        assert process.wait(20) == 0
    os.set_blocking(reading, False)
    assert not os.read(reading, 1 << 20).strip(b"\n"), "nothing was read, so nothing was written"


def test_a_reader_that_comes_late_gets_every_line(tmp_path: Path, full_pipe: tuple[int, int]) -> None:
    reading, writing = full_pipe
    with serving(tmp_path / "data", writing) as (process, connection):
        for _ in range(20):
            connection.ask("replication.pause", ttl_ms=1_000)
            connection.ask("replication.resume")
        process.terminate()
        output = b""
        while b'"event":"stopped"' not in output:
            output += os.read(reading, 65_536)
        assert process.wait(20) == 0
    events = [json.loads(line)["event"] for line in output.split(b"\n") if line]
    assert events[-1] == "stopped"
    assert (events.count("paused"), events.count("resumed")) == (20, 20)
