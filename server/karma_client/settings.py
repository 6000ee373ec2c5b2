"""What a client is told when it is made: nodes, time limits, token, TLS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from karma_client.errors import InvalidArgumentError
from karma_client.nodes import Node

if TYPE_CHECKING:
    from ssl import SSLContext

Target = Literal["master", "any"]
Token = str | Callable[[], str]


@dataclass(frozen=True)
class Tls:
    """How to speak TLS with the servers. Paths are files in PEM format.

    `ca_file`: whom to trust; the system's authorities when left out. `cert_file` and `key_file`: this
    client's own certificate. `server_name`: the one in the server's certificate; the node's host if left out.
    """

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None
    server_name: str | None = None

    def context(self) -> SSLContext:
        """Return a context that checks the server's certificate. Raises InvalidArgumentError (files)."""
        import ssl  # noqa: PLC0415 - only those who use TLS pay for it

        for file in (self.ca_file, self.cert_file, self.key_file):
            try:
                if file is not None:
                    Path(file).open("rb").close()
            except OSError as error:
                raise InvalidArgumentError(f"the TLS file {file} cannot be read: {error.strerror}") from error
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ValueError) as error:
            raise InvalidArgumentError(f"{self.ca_file} holds no certificate in PEM form") from error
        if self.cert_file is not None:
            self._load_pair(context, self.cert_file)
        return context

    def _load_pair(self, context: SSLContext, cert_file: str | Path) -> None:
        import ssl  # noqa: PLC0415  as above

        key_file = self.key_file or cert_file
        try:
            context.load_cert_chain(cert_file, self.key_file)
        except (OSError, ValueError) as error:
            if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
                problem = f"the key in {key_file} is not that of the certificate in {cert_file}"
            elif _has_certificate(ssl, cert_file):
                problem = f"{key_file} holds no private key in PEM form that can be used without a passphrase"
            else:
                problem = f"{cert_file} holds no certificate in PEM form"
            raise InvalidArgumentError(problem) from error


def _has_certificate(ssl: Any, path: str | Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (OSError, ValueError):
        return False
    return True


class TokenSource:
    """The token, read when it is first needed and once more after the server refused it.

    So a token that was exchanged, in its file or by the function that gives it, needs no restart.
    """

    __slots__ = ("_token", "read")

    def __init__(self, token: Token | None, token_file: str | Path | None) -> None:
        if token is not None and token_file is not None:
            raise InvalidArgumentError("token and token_file exclude each other: give one of them")
        self._token: str | None = None
        self.read: Callable[[], str] | None = None
        """Gives the present token; None when it never changes."""
        if token_file is not None:
            path = Path(token_file)
            self.read = lambda: _read_token(path)
        elif callable(token):
            self.read = token
        else:
            self._token = token

    def current(self) -> str | None:
        """Return the token as last read. Raises InvalidArgumentError when its file cannot be read."""
        if self._token is None and self.read is not None:
            self._token = self.read()
        return self._token

    def is_newer_than(self, refused: str | None) -> bool:
        """Return whether there is another token than the one refused, reading it again if need be."""
        if self.read is not None and self._token == refused:
            self._token = self.read()
        return self._token != refused


def _read_token(path: Path) -> str:
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidArgumentError(f"the token file {path} cannot be read: {reason}") from None
    if not token:
        raise InvalidArgumentError(f"the token file {path} is empty")
    return token


@dataclass(frozen=True)
class Timeouts:
    """Seconds a call may take, with all its retries: `call_seconds`, or `slow_seconds` for slow operations.

    Slow are those that take longer the more data there is: snapshots, compacting, verifying.
    """

    call_seconds: float = 5.0
    slow_seconds: float = 300.0

    def __post_init__(self) -> None:
        if self.call_seconds <= 0 or self.slow_seconds <= 0:
            raise InvalidArgumentError("timeouts must be more than 0 seconds")


@dataclass(frozen=True)
class Settings:
    """See `karma_client.connect`, whose arguments these are."""

    nodes: tuple[Node, ...]
    target: Target
    token: TokenSource = field(repr=False)
    tls: Tls | SSLContext | None = None
    connect_timeout_seconds: float = 2.0
    max_attempts: int | None = None
    pool_size: int = 16
    is_read_only: bool = False
    follow_hints: bool = False

    def __post_init__(self) -> None:
        if self.target not in ("master", "any"):
            raise InvalidArgumentError(f'target must be "master" or "any", not {self.target!r}')
        if self.pool_size < 1 or (self.max_attempts is not None and self.max_attempts < 1):
            raise InvalidArgumentError("pool_size and max_attempts must be at least 1")
        if self.connect_timeout_seconds <= 0:
            raise InvalidArgumentError("connect_timeout_seconds must be more than 0")
