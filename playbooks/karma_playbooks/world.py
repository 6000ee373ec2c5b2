"""What a run meets of the world: nodes over the protocol, hosts, the operator, folders of this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from karma_client import AsyncClient
from karma_playbooks.errors import PlaybookError
from karma_playbooks.inventory import Entry
from karma_playbooks.transports.host import Host
from karma_playbooks.transports.local import LocalShell
from karma_playbooks.transports.shell import LinkLostError, Ran, Shell, UnreachableError

MAX_HOSTS = 8
"""Hosts that commands run on at once, unless told otherwise."""
HOST_SECONDS = 5.0
"""What a host has for a short script that locks, or copies the journal."""
SILENT_HOST_SECONDS = 1.0
"""What it has when it gave no answer the last time: a dead master's host must not hold up every step."""


class RoleGuard(Protocol):
    """What holds the cluster for a run: the lock."""

    def order(self, name: str) -> dict[str, Any]:
        """Return what an order to a node carries, so that it counts under this lock only."""

    async def bind(self, name: str) -> str:
        """Let a promotion count only while the lock is surely held; returns why it cannot, or ""."""


def _unwatched(step: str, target: str) -> None:
    """Whoever does not show steps as they begin."""
    del step, target


@dataclass(slots=True)
class World:
    """Connections, made when first needed. `connect` returns a client of one address.

    `say(step, place, text)` shows output as it comes, `approve(question)` asks the operator, `secret` reads a
    password by what the inventory says of it; `begin(step, target)` hears of each step as it is begun, or
    undone, on a target.
    """

    entries: Mapping[str, Entry]
    connect: Callable[[str], AsyncClient]
    say: Callable[[str, str, str], None]
    approve: Callable[[str], Awaitable[bool]]
    secret: Callable[[Entry], str | None]
    folder: Path
    max_hosts: int = MAX_HOSTS
    now: Callable[[], float] = time.time
    begin: Callable[[str, str], None] = _unwatched
    guard: RoleGuard | None = None
    """Whose orders change roles now; None while no run holds the lock."""
    _clients: dict[str, AsyncClient] = field(default_factory=dict)
    _hosts: dict[str, Host] = field(default_factory=dict)
    _slots: asyncio.Semaphore | None = None
    _silent: set[str] = field(default_factory=set)
    """Hosts that gave no answer the last time."""

    def client(self, name: str) -> AsyncClient:
        """Return the client of a node."""
        if name not in self._clients:
            self._clients[name] = self.connect(self.entries[name].address)
        return self._clients[name]

    def host(self, name: str) -> Host:
        """Return the host of a node."""
        entry = self.entries[name]
        if name not in self._hosts:
            self._hosts[name] = Host(self.shell(entry), entry.playbook_directory)
        return self._hosts[name]

    async def ask_host(self, name: str, script: str, seconds: float = HOST_SECONDS) -> Ran:
        """Run a short script on a host: bookkeeping of the run's own, or a look.

        Raises UnreachableError and LinkLostError; that there is no answer in time is the latter.
        """
        patience = SILENT_HOST_SECONDS / HOST_SECONDS if name in self._silent else 1.0
        slow_link = self.entries[name].ssh_timeout
        try:
            host = self.host(name)
            # A slow handshake is no reason to give the script less time.
            await asyncio.wait_for(host.shell.open(), (slow_link or HOST_SECONDS) * patience)
            ran = await asyncio.wait_for(host.script(script), max(slow_link, seconds) * patience)
        except TimeoutError as error:
            self._silent.add(name)
            raise LinkLostError("no answer in time") from error
        except (UnreachableError, LinkLostError):
            self._silent.add(name)
            raise
        self._silent.discard(name)
        return ran

    def shell(self, entry: Entry) -> Shell:
        """Return the way to a node's host."""
        if not entry.ssh_host:
            return LocalShell()
        # Whoever only asks nodes need not have the SSH library.
        try:
            from karma_playbooks.transports.ssh import SshShell  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise PlaybookError(
                f"{entry.name} is reached over SSH, which needs {error.name}, and that is not installed",
                "pip install 'karma[playbooks]'",
            ) from error

        return SshShell(entry)

    @property
    def slots(self) -> asyncio.Semaphore:
        """One for each host that may be busy at the same time."""
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.max_hosts)
        return self._slots

    def hosts(self) -> list[str]:
        """Return a node of each host that can be reached in principle: several nodes may share one."""
        found: dict[tuple[str, int, str, str], str] = {}
        for name, entry in self.entries.items():
            if entry.has_host:
                place = entry.ssh_host, entry.ssh_port, entry.ssh_user, entry.playbook_directory
                found.setdefault(place, name)
        return list(found.values())

    async def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.close()
        for host in self._hosts.values():
            await host.shell.close()
        self._clients.clear()
        self._hosts.clear()

    async def ask(self, name: str, op: str, **fields: Any) -> Any:
        """Return a node's response. Raises KarmaError."""
        return await self.client(name).call_paged(op, **fields)
