"""Which of OpenSSH's client configuration counts: `~/.ssh/config`, then `/etc/ssh/ssh_config`.

The first value wins, as in ssh_config(5). asyncssh applies Host, Match, Include, HostName, Port, User,
IdentityFile, IdentitiesOnly, IdentityAgent, CertificateFile, ProxyJump, ProxyCommand, UserKnownHostsFile,
GlobalKnownHostsFile, HostKeyAlias and the choice of algorithms, and ignores other options.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from asyncssh.config import ConfigParseError, SSHClientConfig

from karma_playbooks.transports.shell import UnreachableError

SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
DEFAULT_PORT = 22


class Target(NamedTuple):
    """Where a host name leads. `alias` is the name as the operator gave it."""

    alias: str
    host: str
    port: int
    user: str
    jump: str
    """ProxyJump as ssh_config has it, empty if there is none."""
    identity_files: tuple[str, ...]
    agent_path: str
    """The agent's socket, empty if there is none."""
    trusts_any_host_key: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.port}"


def config_files() -> list[Path]:
    """Return the configuration files that can be read."""
    files = Path("~/.ssh/config").expanduser(), SYSTEM_CONFIG
    return [path for path in files if os.access(path, os.R_OK)]


def resolve(alias: str, port: int = 0, user: str = "") -> Target:
    """Return where a host leads; a port or user that is given wins over the files.

    Raises UnreachableError for a file that cannot be understood.
    """
    local_user = _local_user()
    files = config_files()
    # asyncssh marks what the caller left out with an empty tuple.
    left_out: Any = ()
    try:
        config = SSHClientConfig.load(
            None, cast(Any, files), False, False, False, local_user, user or left_out, alias, port or left_out
        )
    except ConfigParseError as error:
        raise UnreachableError(
            f"the SSH configuration cannot be understood: {error}; correct that line, or move it under a "
            "Host that does not match and set ssh_host, ssh_port and ssh_user of the node in its context",
            "config",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UnreachableError(f"the SSH configuration cannot be read: {reason}", "config") from error
    identity_files = cast("Sequence[str]", config.get("IdentityFile", ()))
    agent = config.get("IdentityAgent", None)
    return Target(
        alias=alias,
        host=str(config.get("Hostname", alias)),
        port=int(cast(int, config.get("Port", DEFAULT_PORT))),
        user=str(config.get("User", local_user)),
        jump=str(config.get("ProxyJump", "") or ""),
        identity_files=tuple(identity_files),
        agent_path=str(Path(str(agent)).expanduser()) if agent else os.environ.get("SSH_AUTH_SOCK", ""),
        trusts_any_host_key=config.get("UserKnownHostsFile", None) == [],
    )


def parse_jumps(text: str) -> Iterator[tuple[str, int, str]]:
    """Return host, port and user of each jump host in `[USER@]HOST[:PORT],…`; 0 and "" where left out."""
    for hop in filter(None, map(str.strip, text.split(","))):
        user, at, rest = hop.rpartition("@")
        host, colon, port = rest.rpartition(":")
        has_port = bool(colon) and port.isdigit() and (host.endswith("]") or ":" not in host)
        name = host if has_port else rest
        yield name.strip("[]"), int(port) if has_port else 0, user if at else ""


def _local_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container whose user has no entry in /etc/passwd, and no USER either.
        return str(os.getuid())
