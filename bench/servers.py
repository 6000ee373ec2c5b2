"""Servers under test and the load generator: started on a free loopback port, ended by process id.

Karma is the console script beside the interpreter that runs us, Redis is the packaged `redis-server`. Each
writes below a directory given by the caller, which must lie on a real disk: on a tmpfs fsync costs nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILD = HERE / ".build"
KARMA_REPLY = b'{"protocol_version":2,"success":true'
"""How every successful reply of Karma begins; Redis answers an increment with `:`."""

START_TIMEOUT_SECONDS = 120.0
REPLY_TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.002
"""Between two attempts to connect to a starting server: the resolution of the restart figure."""


class BenchError(Exception):
    """A server or the load generator did not do its part; the message says which and shows its last words."""


@dataclass
class Server:
    """A running server: `port` on loopback, data in `directory`, `started_seconds` until it answered."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    directory: Path
    output: Path
    started_seconds: float = 0.0

    def rss_bytes(self) -> int:
        """Resident memory now. Raises BenchError if the process is gone."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        raise BenchError(f"{self.name} ended: {last_words(self.output)}")

    def terminate(self) -> float:
        """Asks for a clean end and waits: the seconds it took. Raises BenchError if it was not clean."""
        begin = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(START_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            raise BenchError(
                f"{self.name} did not end within {START_TIMEOUT_SECONDS:.0f} s of SIGTERM"
            ) from None
        if code != 0:
            raise BenchError(f"{self.name} ended with code {code} after SIGTERM: {last_words(self.output)}")
        return time.perf_counter() - begin

    def kill(self) -> None:
        """Ends the process at once; harmless when it has ended."""
        self.process.kill()
        self.process.wait()


def last_words(output: Path) -> str:
    """The tail of what a process printed, for an error message."""
    return output.read_text(errors="replace")[-600:].strip() or "(it printed nothing)"


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def karma_command() -> list[str]:
    """The installed `karma` of this environment, or its module when only the source tree is on the path."""
    script = Path(sys.executable).parent / "karma"
    return [str(script)] if script.exists() else [sys.executable, "-m", "karma.app"]


def redis_command() -> str | None:
    """Where redis-server is, or None: every benchmark then runs without its peer."""
    return shutil.which("redis-server")


def tools_environment(bytecode: Path) -> dict[str, str]:
    """Return an environment for karmactl: without the user's settings, its modules compiled below `bytecode`.

    An installed package is compiled, too; the source tree would be at every start, where the shell has
    PYTHONDONTWRITEBYTECODE.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KARMACTL_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, "PYTHONPYCACHEPREFIX": str(bytecode)}


@contextmanager
def karma(directory: Path, *options: str, fsync: bool = False) -> Iterator[Server]:
    """A Karma on `directory`, which stays for a next start. Raises BenchError if it does not answer."""
    port = free_port()
    command = [
        *karma_command(),
        "--bind=127.0.0.1",
        f"--port={port}",
        f"--directory={directory}",
        "--log=false",
        f"--wal-fsync={str(fsync).lower()}",
        *options,
    ]
    with running("karma", command, port, directory, b'{"v":2,"op":"system.ping"}\n', b'"pong"') as server:
        yield server


@contextmanager
def redis(directory: Path, *, fsync: bool = False) -> Iterator[Server]:
    """A Redis with the same promise: append-only file, synced always or never.

    Rewrites are off, as are Karma's snapshots: neither side pays for housekeeping in a run of a few seconds.
    """
    port = free_port()
    command = [
        redis_command() or "redis-server",
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--dir",
        str(directory),
        "--save",
        "",
        "--appendonly",
        "yes",
        "--appendfsync",
        "always" if fsync else "no",
        "--auto-aof-rewrite-percentage",
        "0",
        "--io-threads",
        "1",
        "--loglevel",
        "warning",
    ]
    with running("redis", command, port, directory, b"PING\r\n", b"+PONG") as server:
        yield server


@contextmanager
def running(
    name: str, command: list[str], port: int, directory: Path, ping: bytes, pong: bytes
) -> Iterator[Server]:
    """Starts `command`, yields the server once it answers `ping` with `pong`, ends it whatever happens."""
    directory.mkdir(parents=True, exist_ok=True)
    output = directory.with_suffix(".output")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KARMA_")}
    begin = time.perf_counter()
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment
        )
    server = Server(name, process, port, directory, output)
    try:
        while not answers(port, ping, pong):
            if process.poll() is not None:
                raise BenchError(f"{name} did not start (code {process.returncode}): {last_words(output)}")
            if time.perf_counter() - begin > START_TIMEOUT_SECONDS:
                raise BenchError(
                    f"{name} did not answer within {START_TIMEOUT_SECONDS:.0f} s: {last_words(output)}"
                )
            time.sleep(POLL_SECONDS)
        server.started_seconds = time.perf_counter() - begin
        yield server
    finally:
        server.kill()


def answers(port: int, ping: bytes, pong: bytes) -> bool:
    """Whether a server on `port` answers `ping` with something that holds `pong`."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5.0) as connection:
        connection.sendall(ping)
        return pong in connection.recv(4096)
    return False


def ask(port: int, **request: Any) -> tuple[Any, float]:
    """One request to Karma on a connection of its own: response, and seconds from sending to the last byte.

    Raises BenchError when the answer is an error. Connecting and parsing are not in the time: they are ours.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=REPLY_TIMEOUT_SECONDS) as connection:
        line = bytearray()
        begin = time.perf_counter()
        connection.sendall(json.dumps({"v": 2, **request}).encode() + b"\n")
        while not line.endswith(b"\n") and (received := connection.recv(1 << 18)):
            line += received
        seconds = time.perf_counter() - begin
    if not line.endswith(b"\n"):
        raise BenchError(f"karma closed the connection instead of answering {request['op']}")
    reply = json.loads(line)
    if not reply["success"]:
        raise BenchError(f"karma refused {request['op']}: {reply['error_code']}: {reply['response']}")
    return reply["response"], seconds


def load(port: int, chunks: Iterable[tuple[bytes, int]], begins_with: bytes) -> None:
    """Sends each (bytes, reply lines) and waits for its replies before the next: fills a server, unmeasured.

    Raises BenchError if the replies to a chunk do not begin with `begins_with` or the server hangs up.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=REPLY_TIMEOUT_SECONDS) as connection:
        for request, lines in chunks:
            connection.sendall(request)
            replies = bytearray()
            while replies.count(b"\n") < lines:
                received = connection.recv(1 << 16)
                if not received:
                    raise BenchError("the server closed the connection while it was being filled")
                replies += received
            if not replies.startswith(begins_with):
                raise BenchError(f"the server refused to be filled: {bytes(replies[:100])!r}")


def build_loadgen() -> Path:
    """Compiles loadgen.c unless done since it last changed. Raises BenchError without a C compiler."""
    source, binary = HERE / "loadgen.c", BUILD / "loadgen"
    if binary.exists() and binary.stat().st_mtime >= source.stat().st_mtime:
        return binary
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BenchError("the load generator is C: install a compiler (cc) and run again")
    BUILD.mkdir(exist_ok=True)
    built = subprocess.run(
        [compiler, "-O2", "-o", str(binary), str(source)], check=False, capture_output=True, text=True
    )
    if built.returncode != 0:
        raise BenchError(f"{compiler} could not compile loadgen.c: {built.stderr.strip()}")
    return binary


@contextmanager
def loadgen(server: Server, requests: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A running load generator on `requests`, ended when the block is left. See loadgen.c for the options."""
    command = [str(build_loadgen()), "--port", str(server.port), "--requests", str(requests), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def outcome(process: subprocess.Popen[str], server: Server) -> dict[str, float]:
    """Waits for a load generator and returns what it measured. Raises BenchError with its complaint."""
    stdout, stderr = process.communicate()
    if process.returncode != 0:
        said = last_words(server.output)
        raise BenchError(f"load on {server.name} failed: {stderr.strip()}; the server said: {said}")
    measured: dict[str, float] = json.loads(stdout)
    return measured
