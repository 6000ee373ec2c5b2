"""Three real nodes and the networks between them, as the fault histories use them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from faults.proxy import Link, Proxy
from harness import Connection, Refused, Server, request

NAMES = ("a", "b", "c")
CLIENT_SECONDS = 20.0
"""Longer than any reply may take: the longest, a follow through a dead link, gives up after 15."""
Fault = Literal["cut", "hole", "slow", "half towards source", "half towards follower", "torn", "reset"]
Pair = tuple[int, str]
Status = dict[str, Any]


class Network(Protocol):
    """How the nodes reach each other, and how that fails."""

    def join(self, index: int, port: Callable[[], int]) -> dict[str, Any]:
        """Take in a node, given where it listens now; returns its options for `Server`."""

    def address(self, index: int, other: int) -> tuple[str, int]:
        """Return where a node finds another one."""

    def fail(self, index: int, other: int, fault: Fault) -> None:
        """Break the way from a node to another one."""

    def isolate(self, index: int, fault: Fault) -> None:
        """Break every way from and to a node."""

    def mend(self, index: int, other: int) -> None:
        """Mend the ways between two nodes, as far as they can be mended alone."""

    def heal(self) -> None:
        """Mend everything."""


class Node:
    """One node of the cluster: a process that comes and goes on one directory."""

    def __init__(self, index: int, directory: Path, network: Network, **options: Any) -> None:
        self.name = NAMES[index]
        self.index = index
        self.is_up = False
        self._network = network
        options |= network.join(index, lambda: self.port)
        self._socket: Path | None = options.get("unix_socket")
        self.server = Server(directory, **options)
        self.is_up = True

    @property
    def port(self) -> int:
        """Where it listens now, 0 while it is down."""
        return self.server.port if self.is_up else 0

    def connect(self, timeout_seconds: float = CLIENT_SECONDS) -> Connection:
        """Connect as a client, past the network between the nodes. Raises OSError."""
        if not self.is_up:
            raise ConnectionRefusedError(f"{self.name} is down")
        if self._socket is None:
            return self.server.connect(timeout_seconds)
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout_seconds)
        sock.connect(str(self._socket))
        return Connection(sock)

    def ask(self, op: str, **fields: Any) -> Any:
        """Return the response of an operation. Raises Refused, and OSError when the node went away."""
        with self.connect() as connection:
            connection.send(request(op, **fields))
            line = connection.read_line()
        if not line:
            raise ConnectionResetError(f"{self.name} went away")
        reply = json.loads(line)
        if not reply["success"]:
            raise Refused(reply)
        return reply["response"]

    def status(self) -> Status:
        """Return replication.status."""
        found: Status = self.ask("replication.status")
        return found

    def follow(self, other: Node, *, rebuild: bool = False) -> Any:
        """Order it to follow another node. Raises as `ask` does."""
        host, port = self._network.address(self.index, other.index)
        return self.ask("replication.follow", host=host, port=port, rebuild=rebuild)

    def kill(self) -> None:
        """End it as a power cut of the machine would, but for the page cache."""
        self.is_up = False
        self._check()
        self.server.kill()

    def stop(self) -> None:
        """End it with SIGTERM."""
        self.is_up = False
        self._check()
        assert self.server.stop() == 0, self.server.output.read_text()

    def restart(self) -> None:
        """Start it again on what it left."""
        self.server.restart()
        self.is_up = True

    def lose_tail(self, entries: int) -> int:
        """Take the last entries off the log of a node that is down, as a power cut without fsync does.

        Returns how many there were.
        """
        path = self.server.directory / "karma.wal"
        lines = path.read_bytes().splitlines(keepends=True)
        kept = lines[: max(len(lines) - entries, 0)]
        path.write_bytes(b"".join(kept))
        return len(lines) - len(kept)

    def _check(self) -> None:
        """Fail if the process ended by itself, or met what no code of ours expected."""
        log = self.server.output.read_text()
        assert self.server.process.poll() is None, f"{self.name} ended by itself:\n{log}"
        assert '"internal_error"' not in log, log


class Cluster:
    """Three nodes, a the first master and b and c its followers."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes: list[Node] = []

    def start(self, folder: Path, **options: Any) -> None:
        """Start the nodes on folders of their own."""
        for index, name in enumerate(NAMES):
            source: dict[str, Any] = {}
            if index:
                host, port = self.network.address(index, 0)
                source = {
                    "role": "slave",
                    "replication_source_host": host,
                    "replication_source_port": port,
                }
            self.nodes.append(Node(index, folder / name, self.network, **options, **source))

    def close(self) -> None:
        """End every process."""
        for node in self.nodes:
            node.is_up = False
            node.server.kill()

    def others(self, node: Node) -> list[Node]:
        """Return the other two."""
        return [other for other in self.nodes if other is not node]

    def statuses(self) -> dict[str, Status]:
        """Return replication.status of every node that is up."""
        return {node.name: node.status() for node in self.nodes if node.is_up}

    def start_all(self) -> None:
        """Start those that are down."""
        for node in self.nodes:
            if not node.is_up:
                node.restart()


# -- What two histories tell ---------------------------------------------------------------------------------


def pair_at(status: Status, lsn: int) -> Pair:
    """Return the epoch (number, node id) in which a node's log has an entry."""
    for epoch in reversed(status["epochs"]):
        if epoch["start_lsn"] <= lsn:
            return epoch["epoch"], epoch["node_id"]
    return 0, ""


def first_difference(mine: Status, theirs: Status) -> int | None:
    """Return the first LSN of my log whose entry the other one has not and will not get, None without one."""
    for lsn in range(1, mine["wal_current_lsn"] + 1):
        if pair_at(mine, lsn) != pair_at(theirs, lsn):
            return lsn
    return None


# -- Networks ------------------------------------------------------------------------------------------------


class ProxyNetwork:
    """Every way from one node to another is a link of the proxy. Nodes listen wherever they like."""

    def __init__(self, proxy: Proxy) -> None:
        self._ports: dict[int, Callable[[], int]] = {}
        everybody = range(len(NAMES))
        self.links: dict[tuple[int, int], Link] = {
            (index, other): proxy.link(partial(self._port, other))
            for index in everybody
            for other in everybody
            if index != other
        }

    def _port(self, index: int) -> int:
        return self._ports[index]() if index in self._ports else 0

    def join(self, index: int, port: Callable[[], int]) -> dict[str, Any]:
        self._ports[index] = port
        return {}

    def address(self, index: int, other: int) -> tuple[str, int]:
        return "127.0.0.1", self.links[index, other].port

    def fail(self, index: int, other: int, fault: Fault) -> None:
        link = self.links[index, other]
        match fault:
            case "cut" | "hole":
                link.set(fault)
            case "slow":
                link.set("open", delay_ms=40)
            case "half towards source":
                link.half_close(towards_target=True)
            case "half towards follower":
                link.half_close(towards_target=False)
            case "torn":
                link.break_after(500)
            case "reset":
                link.reset()

    def isolate(self, index: int, fault: Fault) -> None:
        for ends in self.links:
            if index in ends:
                self.fail(*ends, fault)

    def mend(self, index: int, other: int) -> None:
        for ends in ((index, other), (other, index)):
            self.links[ends].set("open")

    def heal(self) -> None:
        for link in self.links.values():
            link.set("open")


class NamespaceNetwork:
    """Every node in a network namespace of its own, all on one bridge; a partition is a cable pulled out.

    Clients reach the nodes by Unix socket, which no partition touches. `others` are more machines on it.
    """

    PORT = 7000

    def __init__(self, folder: Path, others: Sequence[str] = ()) -> None:
        self._folder = folder
        self._names = (*NAMES, *others)
        self._tag = f"karma{os.getpid()}"
        self._bridge = f"{self._tag}-br"

    def __enter__(self) -> Self:
        self._ip("netns", "add", self._bridge)
        self._ip("link", "add", "br0", "type", "bridge", inside=self._bridge)
        self._ip("link", "set", "br0", "up", inside=self._bridge)
        for index, name in enumerate(self._names):
            space = self.space(index)
            self._ip("netns", "add", space)
            self._ip(
                "link",
                "add",
                f"to-{name}",
                "type",
                "veth",
                "peer",
                "eth0",
                "netns",
                space,
                inside=self._bridge,
            )
            self._ip("link", "set", f"to-{name}", "master", "br0", "up", inside=self._bridge)
            self._ip("addr", "add", f"{self.host(index)}/24", "dev", "eth0", inside=space)
            self._ip("link", "set", "eth0", "up", inside=space)
            self._ip("link", "set", "lo", "up", inside=space)
        return self

    def __exit__(self, *_: object) -> None:
        for index in range(len(self._names)):
            subprocess.run(["ip", "netns", "del", self.space(index)], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", self._bridge], check=False, capture_output=True)

    def join(self, index: int, port: Callable[[], int]) -> dict[str, Any]:
        return {
            "prefix": self.prefix(index),
            "bind": self.host(index),
            "port": self.PORT,
            "unix_socket": self._folder / f"{NAMES[index]}.sock",
        }

    def address(self, index: int, other: int) -> tuple[str, int]:
        return self.host(other), self.PORT

    def fail(self, index: int, other: int, fault: Fault) -> None:
        self.isolate(index, fault)

    def isolate(self, index: int, fault: Fault) -> None:
        self._ip("link", "set", f"to-{self._names[index]}", "down", inside=self._bridge)

    def mend(self, index: int, other: int) -> None:
        for each in (index, other):
            self._ip("link", "set", f"to-{self._names[each]}", "up", inside=self._bridge)
        # Until the bridge forwards again.
        time.sleep(0.05)

    def heal(self) -> None:
        for index in range(len(self._names)):
            self.mend(index, index)

    def space(self, index: int) -> str:
        """Return the name of a machine's namespace."""
        return f"{self._tag}-{self._names[index]}"

    def prefix(self, index: int) -> list[str]:
        """Return what lets a command run on a machine."""
        return ["ip", "netns", "exec", self.space(index)]

    @staticmethod
    def host(index: int) -> str:
        """Return a machine's address."""
        return f"10.77.0.{index + 1}"

    @staticmethod
    def _ip(*arguments: str, inside: str | None = None) -> None:
        command: Sequence[str] = ["ip", *([] if inside is None else ["-n", inside]), *arguments]
        subprocess.run(command, check=True, capture_output=True, text=True)
