"""Hosts over SSH. Host keys are always checked: an unknown or changed one ends the attempt, and says so."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import asyncssh

from karma_playbooks.inventory import Entry
from karma_playbooks.transports.shell import LinkLostError, OnOutput, Ran, UnreachableError

CONNECT_SECONDS = 10.0
KEEPALIVE_SECONDS = 5
KEEPALIVE_TRIES = 3
_BLOCK_CHARACTERS = 65_536


class SshShell:
    """One host over one connection, opened when first needed and again after it broke."""

    def __init__(self, entry: Entry, connect_seconds: float = CONNECT_SECONDS) -> None:
        self._entry = entry
        self._connect_seconds = connect_seconds
        self._connections: list[asyncssh.SSHClientConnection] = []
        self._opening = asyncio.Lock()

    async def script(self, text: str, on_output: OnOutput | None = None) -> Ran:
        """Run a script."""
        connection = await self._connection()
        try:
            process: asyncssh.SSHClientProcess[str] = await asyncio.wait_for(
                connection.create_process("sh -s", encoding="utf-8", errors="replace"), self._connect_seconds
            )
        except (OSError, asyncssh.Error, TimeoutError) as error:
            await self.close()
            raise UnreachableError(f"{self._name} opens no session: {_words(error)}") from error
        errors = asyncio.ensure_future(process.stderr.read())
        parts = []
        try:
            process.stdin.write(text)
            process.stdin.write_eof()
            while block := await process.stdout.read(_BLOCK_CHARACTERS):
                parts.append(block)
                if on_output is not None:
                    on_output(block)
            await process.wait_closed()
            said = await errors
        except (OSError, asyncssh.Error) as error:
            await self.close()
            raise LinkLostError(f"the connection to {self._name} broke: {_words(error)}") from error
        finally:
            errors.cancel()
            process.close()
        if process.exit_status is None:
            await self.close()
            raise LinkLostError(f"the connection to {self._name} ended before the command did")
        return Ran(process.exit_status, "".join(parts), said)

    @property
    def _name(self) -> str:
        return f"{self._entry.ssh_host}:{self._entry.ssh_port}"

    async def _connection(self) -> asyncssh.SSHClientConnection:
        async with self._opening:
            if self._connections and not self._connections[0].is_closed():
                return self._connections[0]
            entry, tunnel = self._entry, None
            try:
                async with asyncio.timeout(self._connect_seconds):
                    if entry.ssh_jump:
                        tunnel = await self._open(*_parse_jump(entry.ssh_jump), None)
                    found = await self._open(entry.ssh_host, entry.ssh_port, entry.ssh_user, tunnel)
            except asyncssh.HostKeyNotVerifiable as error:
                raise UnreachableError(
                    f"the host key of {self._name} is not the one in {self._known_hosts or 'known_hosts'}: "
                    "either the host was set up anew (then mend that file), or somebody stands in between; "
                    "nothing was sent"
                ) from error
            except asyncssh.PermissionDenied as error:
                raise UnreachableError(f"{self._name} takes none of the keys: {error.reason}") from error
            except (OSError, asyncssh.Error, TimeoutError) as error:
                raise UnreachableError(f"{self._name} cannot be reached: {_words(error)}") from error
            self._connections = [found] if tunnel is None else [found, tunnel]
            return found

    @property
    def _known_hosts(self) -> str:
        return _expanded(self._entry.ssh_known_hosts) if self._entry.ssh_known_hosts else ""

    async def _open(
        self, host: str, port: int, user: str, tunnel: asyncssh.SSHClientConnection | None
    ) -> asyncssh.SSHClientConnection:
        options: dict[str, Any] = {
            "keepalive_interval": KEEPALIVE_SECONDS,
            "keepalive_count_max": KEEPALIVE_TRIES,
        }
        # Left out, the user's own known_hosts is read; None would switch the check off.
        if self._known_hosts:
            options["known_hosts"] = self._known_hosts
        if self._entry.ssh_identity:
            options["client_keys"] = [_expanded(self._entry.ssh_identity)]
        if user:
            options["username"] = user
        if tunnel is not None:
            options["tunnel"] = tunnel
        return await asyncssh.connect(host, port, **options)

    async def close(self) -> None:
        """Close the connection."""
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.abort()
            with contextlib.suppress(OSError, asyncssh.Error):
                await connection.wait_closed()


def _expanded(path: str) -> str:
    return str(Path(path).expanduser())


def _parse_jump(text: str) -> tuple[str, int, str]:
    user, at, rest = text.rpartition("@")
    host, colon, port = rest.rpartition(":")
    return (
        (host, int(port), user if at else "") if colon and port.isdigit() else (rest, 22, user if at else "")
    )


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
    return str(reason or str(error) or type(error).__name__)
