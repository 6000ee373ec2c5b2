"""The nodes of a cluster as an operator reaches them: Karma address, host, data directory, service.

They come from a context's node tables. Secrets are never in them, only where to find them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from karma_client.nodes import Node
from karma_playbooks.errors import PlaybookError

Phase = Literal["config", "reachable", "host key", "key", "shell"]
"""The steps on the way to a host, in their order."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Entry(NamedTuple):
    """One node. `address` is its Karma address; without `ssh_host` only a node of this machine has a host."""

    name: str
    address: str
    ssh_host: str = ""
    ssh_port: int = 0
    """0 means what ssh_config says, and 22 where it says nothing."""
    ssh_user: str = ""
    ssh_identity: str = ""
    ssh_known_hosts: str = ""
    ssh_jump: str = ""
    """[USER@]HOST[:PORT], several separated by commas."""
    ssh_timeout: float = 0.0
    """Seconds for connecting, and for each short script; 0 means the usual ones."""
    directory: str = ""
    service: str = ""
    """A unit of systemd, or `process`: a plain process that `service_command` starts."""
    service_command: tuple[str, ...] = ()
    karma_command: tuple[str, ...] = ("karma",)
    """How `karma fence` is called on the host."""
    playbook_directory: str = ""
    """Where runs leave their state on the host; `~/.karma-playbook` if empty."""
    sudo: bool = False
    sudo_password_env: str = ""
    sudo_password_file: str = ""

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port of the Karma address. Raises PlaybookError for a Unix socket."""
        node = Node.parse(self.address)
        if node.path is not None:
            raise PlaybookError(
                f"{self.name} has a Unix socket ({self.address}), where no other node reaches it"
            )
        return node.host, node.port

    @property
    def words(self) -> str:
        """The node in words: its name, and its address unless that is the name."""
        return self.name if self.name == self.address else f"{self.name} ({self.address})"

    @property
    def has_host(self) -> bool:
        """Whether commands can be run on its host."""
        return bool(self.ssh_host) or self.is_local

    @property
    def is_local(self) -> bool:
        """Whether its host is this machine."""
        node = Node.parse(self.address)
        return not self.ssh_host and (node.path is not None or node.host in LOOPBACK)

    @property
    def place(self) -> str:
        """The host in words, as the context has it."""
        return self.place_at(self.ssh_host or "here") if self.has_host else "no host"

    def place_at(self, where: str) -> str:
        """The host in words when it is reached at `where`."""
        return f"ssh {where}" if self.ssh_host else where


def entries(tables: Iterable[Mapping[str, Any]]) -> tuple[Entry, ...]:
    """Return the nodes of a context's tables. Raises PlaybookError for a name that two of them have."""
    found = []
    for table in tables:
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
        }
        address = str(Node.parse(known.pop("address")))
        found.append(Entry(known.pop("name", address), address, **known))
    names = [entry.name for entry in found]
    for name in names:
        if names.count(name) > 1:
            raise PlaybookError(f"two nodes are called {name}", "give each node of the context its own name")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Desk:
    """Where an operator sits: a cluster, how its nodes are reached, and where this machine keeps runs.

    `tables` are the context's nodes, `client_options` arguments of `connect_async`, token and all; `environ`
    holds the passwords of those nodes that name a variable for it.
    """

    cluster: str
    operator: str
    tables: tuple[Mapping[str, Any], ...]
    state: Path
    is_production: bool = False
    is_read_only: bool = False
    client_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def journal_path(self) -> Path:
        """The file of the journal."""
        return self.state / "journal.db"
