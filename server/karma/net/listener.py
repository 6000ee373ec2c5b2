"""Listening: TCP with or without TLS, and the Unix socket; who may connect in protected mode."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from karma.config import Config
from karma.errors import ConfigError
from karma.net.session import Session, Sessions
from karma.net.tls import Listening, Tls
from karma.net.tls import listen as listen_on

_BACKLOG = 4096
"""Connections the kernel holds for us: a whole fleet of application servers may reconnect at once."""


async def listen(config: Config, sessions: Sessions, tls: Tls | None) -> list[Listening]:
    """Open the configured sockets, the TCP port with TLS if it is configured.

    Raises ConfigError naming the one that cannot be opened.
    """
    loop = asyncio.get_running_loop()

    def connect() -> Session:
        return Session(sessions)

    try:
        server = await listen_on(
            connect,
            config.bind,
            config.port,
            tls,
            # A session, with its read timeout, begins only behind the handshake; the default is a minute.
            timeout_seconds=config.read_timeout_seconds or None,
            backlog=_BACKLOG,
        )
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {config.bind}:{config.port} (--bind, --port): {error.strerror or error}"
        ) from error
    if not config.nodelay:
        for listening in server.sockets:
            with contextlib.suppress(OSError):
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    servers: list[Listening] = [server]
    if config.unix_socket is not None:
        _remove_stale_socket(config.unix_socket)
        try:
            servers.append(await loop.create_unix_server(connect, str(config.unix_socket), backlog=_BACKLOG))
            config.unix_socket.chmod(0o660)
        except OSError as error:
            server.close()
            raise ConfigError(f"cannot listen on {config.unix_socket} (--unix-socket): {error}") from error
    return servers


def tls_context(config: Config) -> ssl.SSLContext | None:
    """Return the server's TLS settings, None without a certificate. Raises ConfigError."""
    if config.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--tls-cert {config.tls_cert} with --tls-key {config.tls_key} cannot be used: {error}"
        ) from error
    if config.tls_ca is not None:
        try:
            context.load_verify_locations(config.tls_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"--tls-ca {config.tls_ca} cannot be used: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def peer_context(config: Config) -> ssl.SSLContext | None:
    """Return the settings with which this node meets other nodes, None without TLS. Raises ConfigError.

    A fleet has TLS or it has not: a node that serves it expects it of its source, shows its own
    certificate, and trusts the authority of --tls-ca, the system's without one.
    """
    if config.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=config.tls_ca)
    context.load_cert_chain(config.tls_cert, config.tls_key)
    return context


def is_protected(config: Config) -> bool:
    """Return whether only loopback peers are served: nobody chose to open up, and nothing guards the data."""
    has_token = bool(config.auth_token or config.read_auth_token or config.admin_auth_token)
    return config.protected_mode and not config.bind_explicit and not has_token


def peer_guard(config: Config) -> Callable[[Any], str | None]:
    """Return the function that says why a peer is not served, None when it is."""
    if not is_protected(config):
        return lambda _peer: None

    def refuse(peer: Any) -> str | None:
        if not isinstance(peer, tuple) or is_loopback(str(peer[0])):
            return None
        return (
            "The server is in protected mode: it has no token and no explicit --bind, so it serves only its "
            "own machine. Set --auth-token (KARMA_AUTH_TOKEN), or --bind (KARMA_HOST) to trust the network"
        )

    return refuse


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's own."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _remove_stale_socket(path: Path) -> None:
    """Remove a socket file that a killed server left; one that answers belongs to a living server."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"--unix-socket {path} exists and is no socket; choose another path")
    except FileNotFoundError:
        return
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            path.unlink(missing_ok=True)
        else:
            raise ConfigError(f"--unix-socket {path} is in use by another process; choose another path")
