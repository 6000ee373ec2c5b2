"""Real servers for tests: start `karma` on a free port of this machine, talk to it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import pytest

START_SECONDS = 90.0
"""A start takes some tenths of a second, and on a machine that is busy with other things hundreds of them."""
ROOT = Path(__file__).parent.parent


def request(op: str, **fields: Any) -> bytes:
    """Return a request line."""
    return json.dumps({"v": 2, "op": op, **fields}).encode() + b"\n"


class Connection:
    """One client connection that sends lines and reads replies."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read_line(self) -> bytes:
        """Return the next reply as it came, b"" at the end of the connection."""
        return self._file.readline()

    def read(self) -> dict[str, Any]:
        line = self.read_line()
        assert line.endswith(b"\r\n"), f"the connection ended: {line!r}"
        reply: dict[str, Any] = json.loads(line)
        return reply

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request and return its whole reply."""
        self.send(request(op, **fields))
        return self.read()

    def ask(self, op: str, **fields: Any) -> Any:
        """Return the response of a request that must succeed."""
        reply = self.call(op, **fields)
        assert reply["success"], reply
        return reply["response"]

    def refuse(self, op: str, **fields: Any) -> tuple[str, str]:
        """Return the error code and message of a request that must fail."""
        reply = self.call(op, **fields)
        assert not reply["success"], reply
        return reply["error_code"], reply["response"]

    def end_input(self) -> None:
        """Say that nothing more will be sent; replies can still be read."""
        self.sock.shutdown(socket.SHUT_WR)

    def has_data(self) -> bool:
        """Return whether something can be read now. Only between replies that were read in full."""
        readable, _, _ = select.select([self.sock], [], [], 0)
        return bool(readable)

    def is_ended(self) -> bool:
        """Wait for the next line and return whether the connection ended instead, cleanly or not."""
        try:
            return self._file.readline() == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self._file.close()
        self.sock.close()


class Server:
    """A `karma` process. Options are `name="value"` with underscores for dashes.

    `prefix` is a command that becomes another one, as `ip netns exec NAME` does; `program` is how the server
    is called.
    """

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str] | None = None,
        *,
        wait: bool = True,
        prefix: Sequence[str] = (),
        program: Sequence[str] = (sys.executable, "-m", "karma.app"),
        **options: Any,
    ) -> None:
        self.directory = directory
        self.prefix = prefix
        self.program = program
        self.options = {"bind": "127.0.0.1", "port": 0, "directory": directory, **options}
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("KARMA_")
        }
        self.environment |= environment or {}
        self.process: subprocess.Popen[str]
        self.output: Path = directory.with_name(directory.name + ".out")
        self.port = 0
        self.start(wait=wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            sys.stderr.write(self.output.read_text())

    def start(self, *, wait: bool = True) -> None:
        command = [*self.prefix, *self.program]
        command += [
            f"--{name.replace('_', '-')}={_text(value)}"
            for name, value in self.options.items()
            if value is not None
        ]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, text=True, env=self.environment
            )
        if wait:
            self.port = int(self.wait_for_event("listening")["port"])

    def events(self) -> list[dict[str, Any]]:
        """Return the log lines so far."""
        lines = self.output.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_for_event(self, name: str, timeout_seconds: float = START_SECONDS) -> dict[str, Any]:
        """Return the first log line of an event, waiting for it."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            for event in self.events():
                if event["event"] == name:
                    return event
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"no event {name!r} within {timeout_seconds} s:\n{self.output.read_text()}")

    def connect(self, timeout_seconds: float = 20.0) -> Connection:
        return Connection(socket.create_connection(("127.0.0.1", self.port), timeout_seconds))

    def ask(self, op: str, **fields: Any) -> Any:
        """Return the response of one request on a connection of its own."""
        with self.connect() as connection:
            return connection.ask(op, **fields)

    def kill(self) -> None:
        """End the process as a power cut would: no signal handler runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM, timeout_seconds: float = 30.0) -> int:
        """End the process gracefully and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout_seconds)

    def restart(self, **options: Any) -> None:
        """Start again on the same directory, after kill or stop."""
        self.options |= options
        self.start()


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def counters_of(connection: Connection) -> dict[str, dict[str, dict[str, int]]]:
    """Return everything that is stored: series, key, bucket, value. Keys without buckets are left out."""
    found = {}
    for name in connection.ask("tree.list"):
        keys = connection.ask("tree.series", series=name, range={"from": 20260101, "to": 20261231})
        found[name] = {key: buckets for key, buckets in keys.items() if buckets}
    return found


FIXTURES = Path(__file__).parent / "fixtures" / "karma-1.0.1"
"""What Karma 1.0.1 answered and wrote; the README there explains each recording."""


class Refused(Exception):  # noqa: N818 - it is an answer
    """A node's reply to an operation that it did not carry out."""

    def __init__(self, reply: Mapping[str, Any]) -> None:
        super().__init__(f"{reply['error_code']}: {reply['response']}")
        self.code = reply["error_code"]
        self.detail: Mapping[str, Any] = reply.get("error_detail") or {}


def until(look: Callable[[], Any], seconds: float = 20.0, why: Callable[[], Any] = str) -> Any:
    """Wait until something holds and return it. An operation that is refused or cut off does not hold."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, Refused):
            if found := look():
                return found
        assert time.monotonic() < deadline, f"it did not come to pass: {why()}"
        time.sleep(0.01)


def missing(reason: str) -> NoReturn:
    """End a test for want of something outside: skipped here, failed in CI.

    A test that CI silently skips proves nothing; a developer need not install every tool.
    """
    if os.environ.get("KARMA_CI_STRICT") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
