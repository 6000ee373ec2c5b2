"""Three real nodes with real OpenSSH daemons as their hosts, and an operator's machine that plays books on
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from harness import Server, free_port, until

from karma_client import AsyncClient, connect_async
from karma_playbooks.control import Playbooks, Request
from karma_playbooks.inventory import Entry
from karma_playbooks.journal import Journal
from karma_playbooks.library import load_book
from karma_playbooks.plan import Plan
from karma_playbooks.runner import Ending
from karma_playbooks.world import World

NAMES = ("a", "b", "c")
REASON = "a test wants it"
T = TypeVar("T")
KARMA = [sys.executable, "-m", "karma.app"]


async def approved(question: str) -> bool:
    """An operator who says yes to everything."""
    del question
    return True


class Sshd:
    """An OpenSSH daemon of this user on a loopback port, with a home of its own and a host key of its own.

    With `address` and `prefix` (a command that becomes another one) it is in a network namespace instead.
    """

    def __init__(
        self,
        binary: Path,
        folder: Path,
        client_key: Path,
        address: str = "127.0.0.1",
        prefix: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.address = address
        self._prefix = prefix
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.port = free_port()
        self._binary = binary
        keygen(folder / "host_key")
        (folder / "authorized_keys").write_text(client_key.with_suffix(".pub").read_text())
        for path in (folder / "authorized_keys", folder / "host_key"):
            path.chmod(0o600)
        config = [
            f"Port {self.port}",
            f"ListenAddress {address}",
            f"HostKey {folder}/host_key",
            f"AuthorizedKeysFile {folder}/authorized_keys",
            f"PidFile {folder}/pid",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            f"SetEnv HOME={self.home} PATH={folder}/bin:{os.environ['PATH']}",
            "MaxStartups 100",
        ]
        (folder / "sshd_config").write_text("\n".join(config) + "\n")
        self.process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            # Debian's daemon wants it when root starts it; its service unit would make it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.start()

    @property
    def known_host(self) -> str:
        """The line of a known_hosts file."""
        key = (self.folder / "host_key.pub").read_text().split()
        return f"[{self.address}]:{self.port} {key[0]} {key[1]}\n"

    def start(self) -> None:
        log = self.folder / "sshd.log"
        command = [
            *self._prefix,
            str(self._binary),
            "-D",
            "-f",
            str(self.folder / "sshd_config"),
            "-E",
            str(log),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(
            lambda: "Server listening" in log.read_text() if log.exists() else False,
            why=lambda: log.read_text() if log.exists() else "no log",
        )

    def stop(self) -> None:
        pid = self.folder / "pid"
        # What a tracer started outlives the tracer.
        if pid.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid.read_text()), signal.SIGKILL)
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


class Node:
    """A node with its host."""

    def __init__(self, name: str, folder: Path, port: int, options: Mapping[str, Any]) -> None:
        self.name = name
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self.directory = folder / name
        self.options = {"bind": "127.0.0.1", "port": port, "directory": self.directory, **options}
        self.server = Server(self.directory, **options, port=port)

    @property
    def service_command(self) -> tuple[str, ...]:
        """How its service starts it. Runtime roles win over these options."""
        words = [f"--{key.replace('_', '-')}={str(value).lower() if isinstance(value, bool) else value}"
                 for key, value in self.options.items()]  # fmt: skip
        return (*KARMA, *words)

    def ask(self, op: str, **fields: Any) -> Any:
        return self.server.ask(op, **fields)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("replication.status")
        return found

    @property
    def pid(self) -> int | None:
        """Of the server that has the directory now."""
        words = (self.directory / "karma.lock").read_text().split()
        if len(words) < 2:
            # A server that starts has opened the file and not written to it yet.
            return None
        folder = Path(f"/proc/{words[1]}/fd")
        try:
            opened = [str(path.readlink()) for path in folder.iterdir()]
        except OSError:
            return None
        return int(words[1]) if str(self.directory / "karma.lock") in opened else None

    def kill(self) -> None:
        """End whatever serves the directory, and what its service may have begun to start meanwhile."""
        self.server.kill()
        until(self._is_gone)

    def start(self) -> None:
        """Serve the directory again. A service that was slow to start may come first: it ends, too."""
        while True:
            self.kill()
            try:
                return self.server.start()
            except AssertionError:
                if "is in use by process" not in self.server.output.read_text():
                    raise

    def _is_gone(self) -> bool:
        if (pid := self.pid) is None:
            return True
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return False


class Fleet:
    """Nodes a (the first master), b and c, and the operator's folder."""

    def __init__(self, folder: Path, sshd: Path | None, **options: Any) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.sshds: dict[str, Sshd] = {}
        self.nodes: dict[str, Node] = {}
        self.told: list[str] = []
        ports = {name: free_port() for name in NAMES}
        folder.mkdir(exist_ok=True)
        if sshd is not None:
            keygen(folder / "id")
            self.sshds = {name: Sshd(sshd, folder / f"host-{name}", folder / "id") for name in NAMES}
            (folder / "known_hosts").write_text("".join(each.known_host for each in self.sshds.values()))
        for name in NAMES:
            source = (
                {}
                if name == "a"
                else {
                    "role": "slave",
                    "replication_source_host": "127.0.0.1",
                    "replication_source_port": ports["a"],
                }
            )
            self.nodes[name] = Node(name, folder, ports[name], {"read_timeout": 0, **options, **source})
        until(lambda: all(self.nodes[name].status()["replication_state"] == "following" for name in "bc"))

    def entries(self, **changes: Any) -> dict[str, Entry]:
        """The inventory; `changes` go into every entry."""
        found = {}
        for name, node in self.nodes.items():
            host: dict[str, Any] = {"playbook_directory": str(self.folder / f"local-{name}")}
            if name in self.sshds:
                host = {
                    "ssh_host": "127.0.0.1",
                    "ssh_port": self.sshds[name].port,
                    "ssh_user": getpass.getuser(),
                    "ssh_identity": str(self.folder / "id"),
                    "ssh_known_hosts": str(self.folder / "known_hosts"),
                }
            about = {
                "directory": str(node.directory),
                "service": "process",
                "service_command": node.service_command,
                "karma_command": tuple(KARMA),
                **host,
                **changes,
            }
            found[name] = Entry(name, node.address, **about)
        return found

    def world(self, **changes: Any) -> World:
        def connect(address: str) -> AsyncClient:
            return connect_async(address, target="any", timeout_seconds=3.0, max_attempts=1)

        return World(
            self.entries(**changes),
            connect,
            lambda step, place, text: None,
            approved,
            lambda entry: None,
            self.state,
        )

    @contextmanager
    def playbooks(self, world: World | None = None, state: Path | None = None) -> Iterator[Playbooks]:
        journal = Journal((state or self.state) / "journal.db")
        try:
            yield Playbooks(
                world or self.world(), journal, "test", False, self.told.append, self.folder / "events"
            )
        finally:
            journal.close()

    def play(self, book: str, **params: str) -> tuple[str, Ending]:
        """Plan a book and run it."""
        with self.playbooks() as playbooks:
            return sitting(playbooks, lambda: play(playbooks, book, params))

    def close(self) -> None:
        for node in self.nodes.values():
            node.kill()
        for each in self.sshds.values():
            each.stop()


async def play(
    playbooks: Playbooks, book: str, params: Mapping[str, str], request: Request | None = None
) -> tuple[str, Ending]:
    found = load_book(book, Path("/nowhere"))
    shown: Plan = await playbooks.plan(found, params)
    return await playbooks.run(found, params, shown, request or Request("tester", REASON))


def sitting(playbooks: Playbooks, work: Callable[[], Awaitable[T]]) -> T:
    """Run something against a fleet, and close its connections."""

    async def go() -> T:
        try:
            return await work()
        finally:
            await playbooks.world.close()

    return asyncio.run(go())


def events(node: Node) -> list[str]:
    """The log events of a node's server, for counting what happened to it."""
    return [event["event"] for event in node.server.events()]


def journal_text(fleet: Fleet) -> str:
    with fleet.playbooks() as playbooks:
        return json.dumps(
            [entry.data for run in playbooks.journal.runs() for entry in playbooks.journal.entries(run)]
        )
