"""Every command against servers that are none, or lie: whose fault it is, and never "please report"."""

from __future__ import annotations

import json
import shlex
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from ctl import Ended, karmactl
from harness import Server
from peers import Peer, PeerConnection

from karmactl.diagnostics import Exit
from karmactl.table import COMMANDS

Answer = Callable[[Any], Any]
"""From what a real server answers to what the lying one does."""

ENDLESS = {"tui", "record", "shell", "bench", "wal tail", "replication watch"}
"""What only a person ends."""
OTHER = {
    "health": "health",
    "clients": "clients",
    "latency": "latency",
    "metrics": "metrics",
    "replication status": "replication status",
    "series drop": "series drop api_requests --confirm api_requests",
    "snapshot diff": "snapshot diff now latest",
    "replication wait": "replication wait --acks 2 --timeout 1",
    "sql": "sql 'SELECT count(*) FROM counters'",
    "snapshot fetch": "snapshot fetch --to here",
    "playbook unlock": "playbook unlock --yes",
    "doctor": "doctor --fields worst",
}
"""Command lines in place of the table's first example."""
WITH_VALUE = {"--node", "--context"}


def line_of(name: str, example: str) -> list[str]:
    words = iter(shlex.split(OTHER.get(name, example).partition(" > ")[0].partition(" | ")[0]))
    kept = [word for word in words if word not in WITH_VALUE or not next(words)]
    return [word for word in kept if word not in {"--dry-run", "--read-only"}]


LINES = {
    command.name: line_of(command.name, command.examples[0][0])
    for command in COMMANDS
    if command.effect != "local" and command.name not in ENDLESS
}


def run(line: list[str], address: str, folder: Path) -> Ended:
    environ = {
        "KARMACTL_NODES": address,
        "HOME": str(folder),
        **{f"XDG_{kind}_HOME": str(folder / kind) for kind in ("CONFIG", "STATE", "CACHE")},
    }
    return karmactl(*line, "--timeout", "2", environ=environ)


def judge(name: str, ended: Ended, *, must_fail: bool) -> None:
    told = ended.stdout + ended.stderr
    assert "please report" not in told, f"{name}: {told}"
    assert "Traceback" not in told, f"{name}: {told}"
    assert ended.code in set(Exit), name
    assert ended.code != Exit.INTERNAL or name == "check", f"{name}: {told}"
    if must_fail and name not in {"playbook unlock", "playbook abort", "playbook resume"}:
        assert ended.code != Exit.OK, f"{name}: {told}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "usage.csv").write_text("key,day,value\n1,2026-05-05,1\n")
    return tmp_path


# -- What is no server of Karma at all -----------------------------------------------------------------------


def garbage(connection: PeerConnection) -> None:
    random = Random(7)
    while True:
        connection.sock.recv(65536)
        connection.send(random.randbytes(200) + b"\n")


def of_text(text: bytes) -> Callable[[PeerConnection], None]:
    def speak(connection: PeerConnection) -> None:
        while connection.sock.recv(65536):
            connection.send(text)

    return speak


def endless(connection: PeerConnection) -> None:
    connection.sock.recv(65536)
    while True:
        connection.send(b"x" * 1_000_000)


def with_tls(connection: PeerConnection) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.wrap_socket(connection.sock, server_side=True)


STRANGERS: dict[str, Callable[[PeerConnection], None]] = {
    "random bytes": garbage,
    "http": of_text(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "json": of_text(b'{"ok":true}\n'),
    "null": of_text(b"null\n"),
    "nested": of_text(b"[" * 100_000 + b"\n"),
    "numbers": of_text(b'{"protocol_version":2,"success":1e999,"response":NaN,"error_code":7}\n'),
    "no utf-8": of_text(b'{"protocol_version":2,"success":true,"response":"\xff","error_code":null}\n'),
    "odd errors": of_text(b'{"protocol_version":2,"success":false,"response":{"a":1},"error_code":["x"]}\n'),
    "ssh": of_text(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "closes": lambda _: None,
    "endless": endless,
    "tls": with_tls,
}


def bearing(script: Callable[[PeerConnection], None]) -> Callable[[PeerConnection], None]:
    """A script whose client may go at any time."""

    def speak(connection: PeerConnection) -> None:
        try:
            script(connection)
        except (OSError, ssl.SSLError):
            return

    return speak


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_is_told_from_a_server(stranger: str, folder: Path) -> None:
    with Peer(bearing(STRANGERS[stranger])) as peer:
        for name, line in LINES.items():
            judge(name, run(line, peer.address, folder), must_fail=True)


# -- What answers, and lies ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("lies") / "data", max_request_bytes=1_000_000) as server:
        server.ask("counter.increment", series="api_requests", key=42, value=1)
        server.ask("snapshot.create_all")
        server.ask("recovery.checkpoint", source="usage-export", offset="1")
        yield server


def leaves(to: Any) -> Answer:
    def change(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: change(item) for name, item in value.items()}
        return [change(item) for item in value] if isinstance(value, list) else to

    return change


def every_second(value: Any) -> Any:
    """Leave out every second field."""
    if isinstance(value, dict):
        return {name: every_second(item) for name, item in list(value.items())[::2]}
    return [every_second(item) for item in value] if isinstance(value, list) else value


def first_level(to: Any) -> Answer:
    return lambda value: dict.fromkeys(value, to) if isinstance(value, dict) else to


def constant(to: Any) -> Answer:
    return lambda _: to


LIES: dict[str, Answer] = {
    **{f"leaves are {to!r}": leaves(to) for to in (None, "x", 2**70, {"a": 1})},
    **{f"everything is {to!r}": constant(to) for to in (7, [None])},
    "fields are 'x'": first_level("x"),
    "every second field is missing": every_second,
}


def lying(server: Server, lie: Answer) -> Callable[[PeerConnection], None]:
    def speak(connection: PeerConnection) -> None:
        with server.connect() as real:
            try:
                while True:
                    request = connection.read()
                    reply = real.call(request.pop("op"), **{k: v for k, v in request.items() if k != "v"})
                    if reply["success"]:
                        reply["response"] = lie(reply["response"])
                    connection.send(json.dumps(reply).encode() + b"\r\n")
            except (EOFError, OSError):
                return

    return speak


@pytest.mark.timeout(300)
@pytest.mark.parametrize("lie", LIES)
def test_a_lying_server_is_never_karmactl_s_fault(server: Server, lie: str, folder: Path) -> None:
    with Peer(lying(server, LIES[lie])) as peer:
        for name, line in LINES.items():
            # No command may go on for ever: the time limit of this test is the check of that.
            judge(name, run(line, peer.address, folder), must_fail=False)


def test_every_command_that_talks_to_a_node_is_here() -> None:
    names = {command.name for command in COMMANDS if command.effect != "local"}
    assert names == set(LINES) | ENDLESS
    assert {"latency", "metrics", "snapshot fetch", "sql"} <= set(LINES)
