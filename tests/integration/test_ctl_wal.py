"""wal tail as a process: live, of several nodes, ended with Ctrl-C; a server's log from its directory."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import ctl
import pytest
from harness import Server

DAY = 20260505


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data") as running:
        yield running


class Tail:
    """A `wal tail` process, read line by line."""

    def __init__(self, *nodes: Server, options: tuple[str, ...] = ("--output", "jsonl")) -> None:
        names = [word for node in nodes for word in ("--node", f"127.0.0.1:{node.port}")]
        command = [sys.executable, "-m", "karmactl", "wal", "tail", *names, *options]
        environ = {**os.environ, "XDG_CONFIG_HOME": "/nowhere"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def row(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def interrupt(self) -> tuple[str, str]:
        """Press Ctrl-C and return what was left to read."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        # Not communicate(), which would miss what readline() has read ahead.
        stdout, stderr = self.process.stdout.read(), self.process.stderr.read()
        self.process.wait(20)
        assert self.process.returncode == 130, stderr
        return stdout, stderr


def add(server: Server, key: int) -> None:
    server.ask("counter.increment", series="api", key=key, bucket=DAY)


def test_a_tail_shows_what_was_and_what_comes_and_ends_in_order(server: Server) -> None:
    for key in range(5):
        add(server, key)
    with Tail(server, options=("--output", "json", "-n", "2", "--key", "4", "--key", "7")) as tail:
        assert tail.process.stdout is not None
        assert tail.process.stdout.readline() == "[\n"
        for key in (6, 7):
            add(server, key)
        # A row's line ends where the next row begins.
        first = tail.process.stdout.readline()
        rest, stderr = tail.interrupt()
    # An array that Ctrl-C ended is still an array.
    rows = json.loads("[" + first + rest)
    assert [(row["lsn"], row["key"]) for row in rows] == [(5, 4), (7, 7)]
    assert stderr == ""
    # A tail is no replica.
    assert not server.ask("replication.status").get("replicas")


def test_nodes_are_merged_while_one_comes_and_goes(server: Server, tmp_path: Path) -> None:
    add(server, 1)
    with Server(tmp_path / "other") as other, Tail(server, other) as tail:
        assert tail.row()["key"] == 1
        add(other, 2)
        row = tail.row()
        while row["key"] != 2:
            row = tail.row()
        assert row["nodes"] == [f"127.0.0.1:{other.port}"]
        other.kill()
        for key in (3, 4):
            add(server, key)
        while row["key"] != 4:
            row = tail.row()
        assert row["nodes"] == [f"127.0.0.1:{server.port}"]
        _, stderr = tail.interrupt()
    assert "is left out until it is back" in stderr


def test_a_tail_begins_and_ends_where_it_is_told(server: Server) -> None:
    add(server, 1)
    with Tail(server, options=("--output", "jsonl", "--from-lsn", "2", "--to-lsn", "2")) as tail:
        add(server, 2)
        assert tail.row()["key"] == 2
        # The last LSN that was wanted ends it.
        assert tail.process.wait(20) == 0


def test_no_node_to_tail(server: Server) -> None:
    server.kill()
    ended = ctl.karmactl("wal", "tail", environ={"KARMACTL_NODES": f"127.0.0.1:{server.port}"})
    assert ended.code == 5


def test_a_directory_tells_what_the_server_told(server: Server) -> None:
    for key in range(3):
        add(server, key)
    fields = ("--output", "jsonl", "--fields", "lsn,op,series,key,day,value,entry")
    live = ctl.karmactl("wal", "cat", *fields, environ={"KARMACTL_NODES": f"127.0.0.1:{server.port}"})
    assert live.stdout.count("\n") == 3
    before = sorted(path.stat().st_mtime_ns for path in server.directory.iterdir())
    offline = ctl.karmactl("wal", "cat", *fields, "--from", str(server.directory), environ={})
    assert offline.stdout == live.stdout
    assert sorted(path.stat().st_mtime_ns for path in server.directory.iterdir()) == before
