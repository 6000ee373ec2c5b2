"""What users get for their own tests: a server that starts empty, ends, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from karma_client import UnauthorizedError, UnreachableError, connect
from karma_client.testing import RunningServer, running_server

TOKEN = "s3cret-t0ken"


def command_line(server: RunningServer) -> str:
    return Path(f"/proc/{server._process.pid}/cmdline").read_text()


def test_a_server_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARMA_MAX_REQUEST_BYTES", "123")
    with running_server(read_timeout=7.5) as server:
        with server.connect() as client:
            assert client.list_series() == []
            client.increment("a", 1)
            client.create_snapshots()
            stats = client.stats()
            (snapshot,) = client.list_snapshots()
        assert (stats.max_request_bytes, stats.read_timeout_seconds) == (4096, 7.5)
    assert not Path(snapshot).parent.parent.exists()
    with connect(server.address, max_attempts=1) as client, pytest.raises(UnreachableError):
        client.ping()


def test_its_clients_have_its_token_and_its_command_line_has_not() -> None:
    with running_server(auth_token=TOKEN) as server:
        with server.connect() as client:
            assert client.increment("a", 1, 5) == 5
        with server.connect(token=None) as client, pytest.raises(UnauthorizedError):
            client.ping()
        assert "karma.toml" in command_line(server)
        assert TOKEN not in command_line(server)

        async def main() -> int:
            async with server.connect_async() as client:
                return await client.sum("a", 1)

        assert asyncio.run(main()) == 5


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)did not start.*prot"), running_server(prot=1):
        pass


def test_the_fixture_works_in_a_project_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["karma_client.pytest_plugin"]\n')
    (tmp_path / "test_it.py").write_text(
        "def test_usage(karma_server):\n"
        "    with karma_server.connect() as client:\n"
        "        client.increment('a', 1, 5)\n"
        "        assert client.sum('a', 1) == 5\n"
        "def test_every_test_starts_empty(karma_server):\n"
        "    with karma_server.connect() as client:\n"
        "        assert client.list_series() == []\n"
    )
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
