"""Who is let in: tokens and certificates as configured, their reload, and a trace of those turned away."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from karma.config import Config
from karma.engine import Engine, Settings
from karma.errors import ConfigError, ErrorCode
from karma.net import listener
from karma.net.tls import Tls
from karma.service.log import Log, Throttle

_RELOADED = ("auth_token", "read_auth_token", "admin_auth_token", "replication_token")


def settings_of(config: Config) -> Settings:
    """Return what of the configuration decides about requests."""
    max_response_bytes, response_limit = config.largest_response
    return Settings(
        max_response_bytes=max_response_bytes,
        response_limit=response_limit,
        auth_token=config.auth_token,
        read_auth_token=config.read_auth_token,
        admin_auth_token=config.admin_auth_token,
        replication_token=config.replication_token,
        legacy_protocol=config.legacy_protocol,
        strict_fields=config.strict_fields,
        max_value=config.max_value,
    )


@dataclass(slots=True, repr=False)
class Access:
    """The lock of every door. `load` reads the configuration once more, `clock` is monotonic seconds."""

    config: Config
    log: Log
    clock: Callable[[], float]
    load: Callable[[], Config]
    tls: Tls | None = field(init=False)
    tokens_refused: int = 0
    handshakes_failed: int = 0
    _refuse_peer: Callable[[Any], str | None] = field(init=False)
    _trace: Throttle = field(init=False)

    def __post_init__(self) -> None:
        """Read the certificate. Raises ConfigError."""
        self._trace = Throttle(self.log, self.clock)
        context = listener.tls_context(self.config)
        self.tls = None if context is None else Tls(context, self._handshake_failed)
        self._refuse_peer = listener.peer_guard(self.config)

    def refuse_peer(self, peer: Any) -> str | None:
        """Say why a peer is not served, None when it is."""
        refusal = self._refuse_peer(peer)
        if refusal is not None:
            self._trace.warning(
                "peer_refused", "A peer is turned away: protected mode", peer=address_of(peer)
            )
        return refusal

    def token_refused(self, peer: str, what: str, code: str) -> None:
        """Leave a trace of a request whose token was missing, wrong, or not good for it."""
        self.tokens_refused += 1
        self._trace.warning(
            "token_refused", f"{what} from {peer} is refused: {code}", peer=peer, op=what, error_code=code
        )

    def metrics_refused(self, peer: Any) -> None:
        """Leave a trace of a scrape whose token was missing or wrong."""
        self.token_refused(address_of(peer), "GET /metrics", ErrorCode.UNAUTHORIZED)

    def announce(self) -> None:
        """Log what is unusual about who is let in."""
        config = self.config
        if listener.is_protected(config):
            self.log.info("protected_mode", "No token and no explicit --bind: only this machine is served")
        elif not settings_of(config).needs_token and not listener.is_loopback(config.bind):
            self.log.warning(
                "open_server",
                f"No token is set and {config.bind} is open to the network: anyone who reaches it may write",
            )

    def _handshake_failed(self, peer: Any, reason: str) -> None:
        self.handshakes_failed += 1
        address = address_of(peer)
        self._trace.warning(
            "tls_failed", f"The TLS handshake with {address} failed: {reason}", peer=address, reason=reason
        )

    def reload(
        self, engine: Engine, use_as_client: Callable[[str | None, ssl.SSLContext | None], None]
    ) -> None:
        """Take tokens and certificates as they are now; on any mistake all stay as they were.

        `use_as_client` gets the replication token and the TLS settings for this node's own connections.
        """
        try:
            found = self.load()
            context, peer_context = listener.tls_context(found), listener.peer_context(found)
        except (ConfigError, OSError) as error:
            self.log.error("reload_failed", f"Tokens and certificates stay as they were: {error}")
            return
        if (context is None) != (self.tls is None):
            self.log.error(
                "reload_failed", "Nothing was reloaded: --tls-cert takes a restart to appear or go"
            )
            return
        changes = {name: getattr(found, name) for name in _RELOADED}
        self.config = replace(self.config, **changes)
        self._refuse_peer = listener.peer_guard(self.config)
        engine.configure(replace(engine.settings, **changes))
        if self.tls is not None and context is not None:
            self.tls.context = context
        use_as_client(found.replication_token, peer_context)
        self.log.info(
            "reloaded", "Tokens and certificates were read again; every other option takes a restart"
        )


def address_of(peer: Any) -> str:
    """Return a peer's address as ``host:port``, or ``unix``."""
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix"
