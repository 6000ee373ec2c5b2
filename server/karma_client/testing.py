"""A throw-away server for the tests of applications.

    from karma_client.testing import running_server

    with running_server() as server, server.connect() as client:
        client.increment("api_requests", 42)

`karma_client.pytest_plugin` has the same as a fixture.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import karma_client
from karma_client.blocking import Client

if TYPE_CHECKING:
    from karma_client.aio import AsyncClient

Option = str | int | float | bool

START_SECONDS = 30.0
STOP_SECONDS = 10.0
LOG_LINES = 1000


class RunningServer:
    """A server that runs. `address` is where; its log's last lines are in `log`."""

    def __init__(self, process: subprocess.Popen[str], token: str | None) -> None:
        self.address = ""
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._process = process
        self._token = token
        self._is_decided = threading.Event()
        # A pipe that nobody empties would stop the server once it is full.
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def connect(self, **options: Any) -> Client:
        """Return a client, with the server's token if it has one. Options are those of
        `karma_client.connect`.
        """
        return karma_client.connect(self.address, **{"token": self._token, **options})

    def connect_async(self, **options: Any) -> AsyncClient:
        """Return a client for asyncio; see `connect`."""
        return karma_client.connect_async(self.address, **{"token": self._token, **options})

    def wait_until_listening(self) -> None:
        """Raise RuntimeError with the server's last words when it does not start."""
        if not self._is_decided.wait(START_SECONDS) or not self.address:
            raise RuntimeError("the server did not start:\n" + "".join(self.log))

    def stop(self) -> None:
        """End the process, at once if it does not go by itself."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.log.append(line)
            if not self.address and '"listening"' in line:
                self.address = f"127.0.0.1:{json.loads(line)['port']}"
                self._is_decided.set()
        self._is_decided.set()


@contextmanager
def running_server(**options: Option) -> Iterator[RunningServer]:
    """Start a server on a free port of this machine, its data in a folder that is removed at the end.

    `options` are those of the `karma` command with underscores:
    `running_server(max_request_bytes=1_000_000)`. Writes are not synced unless `wal_fsync=True`. Raises
    RuntimeError when the server does not start.
    """
    settings = {"wal_fsync": False, **options}
    token = options.get("admin_auth_token") or options.get("auth_token")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KARMA_")}
    with TemporaryDirectory(prefix="karma-") as folder:
        # Options go through a file: a token in the command line would show in the process list.
        config = Path(folder, "karma.toml")
        lines = [f"{name.replace('_', '-')} = {json.dumps(value)}\n" for name, value in settings.items()]
        config.touch(mode=0o600)
        config.write_text("".join(lines))
        command = [sys.executable, "-m", "karma.app", f"--config={config}", f"--directory={folder}/data"]
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*command, "--bind=127.0.0.1", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        server = RunningServer(process, str(token) if token else None)
        try:
            server.wait_until_listening()
            yield server
        finally:
            server.stop()
