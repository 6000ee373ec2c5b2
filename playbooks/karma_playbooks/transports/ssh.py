"""Hosts over SSH. Host keys are always checked: an unknown or changed one ends the attempt, and says so."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

import asyncssh

from karma_playbooks.inventory import Entry
from karma_playbooks.transports.framing import Framing
from karma_playbooks.transports.identities import Identities, identities
from karma_playbooks.transports.shell import LinkLostError, OnOutput, Ran, UnreachableError
from karma_playbooks.transports.ssh_config import Target, config_files, parse_jumps, resolve

CONNECT_SECONDS = 10.0
KEEPALIVE_SECONDS = 5
KEEPALIVE_TRIES = 3
_BLOCK_CHARACTERS = 65_536
_NOISE_CHARACTERS = 200
"""How much of what a login shell printed is quoted in an error."""


class SshShell:
    """One host over one connection, opened when first needed and again after it broke."""

    def __init__(self, entry: Entry, connect_seconds: float = CONNECT_SECONDS) -> None:
        self._entry = entry
        self._connect_seconds = entry.ssh_timeout or connect_seconds
        self._connections: list[asyncssh.SSHClientConnection] = []
        self._opening = asyncio.Lock()
        self._stuck: asyncssh.SSHClientProcess[str] | None = None
        """A login shell that was given a script and had not started it when it was given up."""

    def where(self) -> str:
        """Return `USER@HOST:PORT` as context and ssh_config have it. Raises UnreachableError."""
        return str(self.resolve())

    async def open(self) -> None:
        """Connect if there is no connection. Raises UnreachableError."""
        await self._connection()

    async def script(self, text: str, on_output: OnOutput | None = None) -> Ran:
        """Run a script."""
        connection = await self._connection()
        if self._stuck is not None and self._stuck.exit_status is None:
            raise UnreachableError(
                f"the login shell at {self._name} hangs before it runs anything; no second one is started: "
                "look at the startup files of that login",
                "shell",
            )
        try:
            process: asyncssh.SSHClientProcess[str] = await asyncio.wait_for(
                connection.create_process("sh -s", encoding="utf-8", errors="replace"), self._connect_seconds
            )
        except (OSError, asyncssh.Error, TimeoutError) as error:
            await self.close()
            raise UnreachableError(f"{self._name} opens no session: {_reason(error)}", "shell") from error
        errors = asyncio.ensure_future(process.stderr.read())
        framing = Framing(secrets.token_hex(8))
        parts = []

        def take(output: str) -> None:
            if output:
                parts.append(output)
                if on_output is not None:
                    on_output(output)

        try:
            process.stdin.write(framing.wrap(text))
            process.stdin.write_eof()
            while block := await process.stdout.read(_BLOCK_CHARACTERS):
                take(framing.feed(block))
            take(framing.rest())
            await process.wait_closed()
            printed = await errors
        except (OSError, asyncssh.Error) as error:
            await self.close()
            raise LinkLostError(f"the connection to {self._name} broke: {_reason(error)}") from error
        finally:
            errors.cancel()
            if process.exit_status is None:
                with contextlib.suppress(OSError, asyncssh.Error):
                    process.kill()
            if process.exit_status is None and not framing.has_begun:
                # sshd ignores the kill for some logins, root's among them: then this one is the only one.
                self._stuck = process
            else:
                process.close()
        if process.exit_status is None:
            await self.close()
            raise LinkLostError(f"the connection to {self._name} ended before the command did")
        if not framing.has_begun:
            noise = " ".join(f"{framing.noise} {printed}".split())[:_NOISE_CHARACTERS]
            raise UnreachableError(
                f"the login shell at {self._name} did not run sh: it ended with exit code "
                f"{process.exit_status}" + (f" and printed: {noise}" if noise else ""),
                "shell",
            )
        code = process.exit_status if framing.code is None else framing.code
        return Ran(code, "".join(parts), framing.errors(printed))

    def resolve(self) -> Target:
        """Return where the entry leads once ssh_config was asked. Raises UnreachableError."""
        entry = self._entry
        return resolve(entry.ssh_host, entry.ssh_port, entry.ssh_user)

    @property
    def _name(self) -> str:
        port = f":{self._entry.ssh_port}" if self._entry.ssh_port else ""
        return f"{self._entry.ssh_host}{port}"

    async def _connection(self) -> asyncssh.SSHClientConnection:
        async with self._opening:
            if self._connections and not self._connections[0].is_closed():
                return self._connections[0]
            try:
                async with asyncio.timeout(self._connect_seconds):
                    self._connections = await self._connect()
                self._stuck = None
            except (OSError, ValueError, asyncssh.Error, TimeoutError) as error:
                raise UnreachableError(f"{self._name} cannot be reached: {_reason(error)}") from error
            return self._connections[0]

    async def _connect(self) -> list[asyncssh.SSHClientConnection]:
        """Return the connection to the host and, after it, those to the jump hosts it goes through."""
        entry, target = self._entry, self.resolve()
        opened: list[asyncssh.SSHClientConnection] = []
        try:
            for host, port, user in parse_jumps(entry.ssh_jump or target.jump):
                tunnel = opened[0] if opened else None
                opened.insert(0, await self._open(resolve(host, port, user), user, port, tunnel))
            tunnel = opened[0] if opened else None
            opened.insert(0, await self._open(target, entry.ssh_user, entry.ssh_port, tunnel))
        except BaseException:
            for connection in opened:
                connection.abort()
            raise
        return opened

    async def _open(
        self, target: Target, user: str, port: int, tunnel: asyncssh.SSHClientConnection | None
    ) -> asyncssh.SSHClientConnection:
        keys = await self._identities(target)
        options: dict[str, Any] = {
            "config": config_files(),
            "keepalive_interval": KEEPALIVE_SECONDS,
            "keepalive_count_max": KEEPALIVE_TRIES,
            "tunnel": tunnel,
        }
        if keys is not None:
            options["client_keys"] = list(keys.files)
            if keys.agent_keys:
                options["agent_identities"] = list(keys.agent_keys)
        # Left out, known_hosts is what ssh_config says; None would switch the check off.
        if self._known_hosts:
            options["known_hosts"] = self._known_hosts
        elif target.trusts_any_host_key:
            raise UnreachableError(
                f"ssh_config switches the check of host keys off for {target.alias} (UserKnownHostsFile "
                "none); name a file there, or give the node ssh_known_hosts in its context; nothing was sent",
                "host key",
            )
        if user:
            options["username"] = user
        if port:
            options["port"] = port
        try:
            return await asyncssh.connect(target.alias, **options)
        except asyncssh.HostKeyNotVerifiable as error:
            raise UnreachableError(
                f"the host key of {target} is not in {self._known_hosts or 'known_hosts'}: either the "
                "host was reinstalled (then update that file) or someone is intercepting the connection; "
                "nothing was sent",
                "host key",
            ) from error
        except asyncssh.PermissionDenied as error:
            raise UnreachableError(
                f"{target} accepts none of the keys: {_refusal(error, keys)}", "key"
            ) from error

    async def _identities(self, target: Target) -> Identities | None:
        """Return the keys that context or ssh_config name; None where neither does and the defaults count."""
        if self._entry.ssh_identity:
            return await identities([self._entry.ssh_identity], target.agent_path, must_exist=True)
        if target.identity_files:
            return await identities(target.identity_files, target.agent_path, must_exist=False)
        return None

    @property
    def _known_hosts(self) -> str:
        known_hosts = self._entry.ssh_known_hosts
        return str(Path(known_hosts).expanduser()) if known_hosts else ""

    async def close(self) -> None:
        """Close the connection."""
        connections, self._connections = self._connections, []
        self._stuck = None
        for connection in connections:
            connection.abort()
            with contextlib.suppress(OSError, asyncssh.Error):
                await connection.wait_closed()


def _refusal(error: asyncssh.PermissionDenied, keys: Identities | None) -> str:
    if keys is not None and keys.locked:
        names = ", ".join(keys.locked)
        return f"{names} has a passphrase and no agent holds it; run `ssh-add {keys.locked[0]}` first"
    return error.reason


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time (ssh_timeout in the context allows more)"
    if isinstance(error, OSError) and error.errno:
        # asyncio puts the address into strerror, as a tuple.
        return os.strerror(error.errno)
    return str(getattr(error, "reason", None) or str(error) or type(error).__name__)
