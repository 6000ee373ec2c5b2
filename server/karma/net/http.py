"""The HTTP sidecar: ``GET /metrics``, ``/healthz`` and ``/readyz`` for Prometheus and orchestrators.

One request a connection, no bodies, no keep-alive: a scrape every few seconds needs no web framework,
and the server stays lean. With a token configured, ``/metrics`` wants it as ``Authorization: Bearer``. With
a certificate configured the sidecar speaks TLS like the other port, client certificates included.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from karma.net.tls import Listening, Tls
from karma.net.tls import listen as listen_on
from karma.net.unread import has_unread

_MAX_HEADER_BYTES = 8192
_TIMEOUT_SECONDS = 5.0
_MAX_CONNECTIONS = 64
"""Of more at once the oldest is closed, which kept its request back for the longest time: scrapes are few,
and descriptors are what snapshots need, too."""
_REQUEST_LINE = re.compile(r"([!-~]+) ([!-~]+) HTTP/1\.[01]")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Pages:
    """Where the answers come from; the functions are called once per request."""

    metrics: Callable[[], str]
    health: Callable[[], dict[str, Any]]
    unready: Callable[[], str | None]
    """Says why the node should get no traffic, None when it may."""
    may_read: Callable[[str], bool]
    """Says whether a bearer token ("" without one) may read metrics."""
    refuse_peer: Callable[[Any], str | None]
    token_refused: Callable[[Any], None]
    """Called with the peer's address when its token may not read metrics."""


@dataclass(slots=True)
class Sidecar:
    """The connections of the sidecar, and what they are answered from."""

    pages: Pages
    open: dict[HttpSession, None] = field(default_factory=dict)
    """In the order of arrival."""
    rejected: int = 0

    def admit(self, session: HttpSession) -> None:
        """Count a connection in, and the oldest one out if there are too many."""
        if len(self.open) >= _MAX_CONNECTIONS:
            self.rejected += 1
            oldest = next(iter(self.open))
            del self.open[oldest]
            oldest.abort()
        self.open[session] = None


class HttpSession(asyncio.Protocol):
    """One HTTP connection."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._pages = sidecar.pages
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request, not for ever."""
        # uvloop's transports have the methods but not the base class.
        self._transport = transport = cast("asyncio.Transport", transport)
        self._sidecar.admit(self)
        self._timer = asyncio.get_running_loop().call_later(_TIMEOUT_SECONDS, self._expire)

    def data_received(self, data: bytes) -> None:
        """Answer once the header is complete."""
        self._received += data
        if b"\r\n\r\n" in self._received:
            self._answer(*self._page())
        elif len(self._received) > _MAX_HEADER_BYTES:
            self._answer(400, "text/plain", b"The header is too long\n")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio calls it so
        """Forget the connection."""
        if self._timer is not None:
            self._timer.cancel()
        self._sidecar.open.pop(self, None)
        self._transport = None

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _expire(self) -> None:
        """Give up on a peer that has not sent its header in time, unless the server was what stood still."""
        if self._transport is None:
            return
        if has_unread(self._transport):
            self._timer = asyncio.get_running_loop().call_later(_TIMEOUT_SECONDS, self._expire)
        else:
            self._transport.abort()

    def _page(self) -> tuple[int, str, bytes]:
        assert self._transport is not None
        refusal = self._pages.refuse_peer(self._transport.get_extra_info("peername"))
        if refusal is not None:
            return 403, "text/plain", refusal.encode() + b"\n"
        head, *header_lines = self._received.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        request, headers = _REQUEST_LINE.fullmatch(head), _headers(header_lines)
        if request is None or headers is None or len(headers.get("authorization", ())) > 1:
            return 400, "text/plain", b"malformed HTTP request\n"
        if request[1] not in ("GET", "HEAD"):
            return 405, "text/plain", b"Only GET is served here\n"
        path = request[2].partition("?")[0]
        if path == "/metrics":
            token = _bearer_token(headers.get("authorization", ()))
            if token is None or not self._pages.may_read(token):
                self._pages.token_refused(self._transport.get_extra_info("peername"))
                return 401, "text/plain", b"/metrics needs a token: Authorization: Bearer TOKEN\n"
            return 200, "text/plain; version=0.0.4; charset=utf-8", self._pages.metrics().encode()
        if path == "/healthz":
            health = self._pages.health()
            return 200, "application/json", orjson.dumps(health) + b"\n"
        if path == "/readyz":
            reason = self._pages.unready()
            return (
                (200, "text/plain", b"ready\n")
                if reason is None
                else (503, "text/plain", reason.encode() + b"\n")
            )
        return 404, "text/plain", b"There is /metrics, /healthz and /readyz\n"

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        if self._transport is None:
            return
        challenge = "WWW-Authenticate: Bearer\r\n" if status == 401 else ""
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n{challenge}"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        is_head = self._received.startswith(b"HEAD ")
        self._transport.write(head.encode() + (b"" if is_head else body))
        self._transport.close()


def _headers(lines: Sequence[str]) -> dict[str, list[str]] | None:
    """Return the values of each header, by its name in lower case; None when a line is malformed."""
    headers: dict[str, list[str]] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _HEADER_NAME.fullmatch(name):
            return None
        headers.setdefault(name.lower(), []).append(value.strip(" \t"))
    return headers


def _bearer_token(values: Sequence[str]) -> str | None:
    """Return the token of an Authorization header, "" without the header, None for any other scheme."""
    if not values:
        return ""
    scheme, _, token = values[0].partition(" ")
    return token.strip(" ") or None if scheme.lower() == "bearer" else None


async def listen(host: str, port: int, sidecar: Sidecar, tls: Tls | None) -> Listening:
    """Open the sidecar's port. Raises OSError."""
    return await listen_on(lambda: HttpSession(sidecar), host, port, tls, timeout_seconds=_TIMEOUT_SECONDS)
