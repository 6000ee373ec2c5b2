"""One client connection.

Everything one read brought is executed in one pass, and everything one pass answered leaves in one
write. A client that does not take its replies is not read from, and is closed after the write
timeout; what it made the server hold is bounded by max_client_buffer_bytes. Nothing here waits: the
timeouts are looked after by `Sessions.sweep`, not by a timer per request.

Silence is the client's only while the server listens: time in which the process stood still, or in which
replies were due to the client, does not count, and what the kernel holds unread is no silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

from karma.errors import ErrorCode, RequestError
from karma.limits import LARGE_REQUEST_BYTES
from karma.net.unread import has_unread
from karma.protocol import replies
from karma.protocol.framing import Framer
from karma.service.log import Log
from karma.service.write_path import WritePath

SWEEP_SECONDS = 0.25
"""How often timeouts are looked after: a silent client is closed at most this much later."""
_SLOWEST_BYTES_PER_SECOND = 65_536
"""A request line may take the read timeout, and a second more for each so many bytes of it."""
_END_BYTES = 512
"""What is remembered of each end of a long line: where an operation and a token stand."""
_PAUSE_LINES = 1024
"""Request lines waiting behind a slow operation beyond which a client is not read from."""


@dataclass(slots=True, repr=False)
class Sessions:
    """Every open connection and the limits they share. Times are those of the event loop."""

    write_path: WritePath
    log: Log
    clock: Callable[[], float]
    max_request_bytes: int
    max_clients: int
    max_client_buffer_bytes: int
    read_timeout_seconds: float
    write_timeout_seconds: float
    refuse_peer: Callable[[Any], str | None]
    """Says why a peer address is not served (protected mode), None when it is."""
    open: dict[int, Session] = field(default_factory=dict)
    """By id: in the order of arrival, as a set of objects is not."""
    next_id: int = 1
    rejected: int = 0
    is_draining: bool = False

    _swept_at: float | None = None
    _emptied: asyncio.Event = field(default_factory=asyncio.Event)

    def is_open(self, client: object) -> bool:
        """Whether a client of these may still send requests."""
        return any(session is client and not session.is_ending for session in self.open.values())

    def forget(self, session: Session) -> None:
        """Take a closed connection off the list."""
        self.open.pop(session.id, None)
        if not self.open:
            self._emptied.set()

    async def closed(self) -> None:
        """Wait until no connection is open; new ones are turned away while draining."""
        while self.open:
            self._emptied.clear()
            await self._emptied.wait()

    def sweep(self) -> None:
        """Close connections that were silent, too slow, or did not take their replies, for too long."""
        now = self.clock()
        late_seconds = 0.0 if self._swept_at is None else now - self._swept_at - SWEEP_SECONDS
        self._swept_at = now
        for session in list(self.open.values()):
            if late_seconds > SWEEP_SECONDS:
                # The process was stopped, or one request took all that time: no client could be heard.
                session.excuse(late_seconds, now)
            session.check_timeouts(now)

    def describe(self, limit: int, after_id: int) -> list[dict[str, Any]]:
        """Return the response of system.clients: so many connections behind an id, oldest first."""
        now = self.clock()
        behind = (session for session in self.open.values() if session.id > after_id)
        return [session.describe(now) for session in islice(behind, limit)]


class Session(asyncio.Protocol):
    """A connection, as asyncio's protocol and as the write path's client."""

    __slots__ = (
        "_framer",
        "_is_closing",
        "_is_read_paused",
        "_line_number",
        "_line_since",
        "_problem",
        "_sessions",
        "_transport",
        "_write_paused_at",
        "address",
        "backlog",
        "connected_at",
        "id",
        "is_blocked",
        "last_line",
        "last_read_at",
        "replies",
        "request_count",
    )

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._framer = Framer(sessions.max_request_bytes)
        self._transport: asyncio.Transport | None = None
        self._write_paused_at: float | None = None
        self._is_closing = False
        self._is_read_paused = False
        self._problem: RequestError | None = None
        self._line_number = -1
        """The count of requests before the line that is only partly here, -1 while none is."""
        self._line_since = 0.0
        self.replies: list[bytes] = []
        self.backlog: list[bytes] = []
        self.is_blocked = False
        self.id = 0
        self.address = ""
        self.connected_at = self.last_read_at = 0.0
        self.request_count = 0
        self.last_line = b""

    # -- asyncio's side ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, or turn it away with one error reply."""
        sessions = self._sessions
        # uvloop's transports have the methods but not the base class.
        self._transport = transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.address = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix"
        self.connected_at = self.last_read_at = sessions.clock()
        refusal = sessions.refuse_peer(peer)
        if refusal is not None:
            self._turn_away(RequestError(ErrorCode.UNAUTHORIZED, refusal))
        elif len(sessions.open) >= sessions.max_clients or sessions.is_draining:
            reason = "shutting down" if sessions.is_draining else f"at max-clients ({sessions.max_clients})"
            self._turn_away(RequestError(ErrorCode.OVERLOADED, f"The server is {reason}; try again later"))
        else:
            self.id = sessions.next_id
            sessions.next_id += 1
            sessions.open[self.id] = self

    def data_received(self, data: bytes) -> None:
        """Execute the requests that a read completed."""
        if self._is_closing:
            return
        self.last_read_at = self._sessions.clock()
        lines = self._framer.feed(data)
        if lines:
            # Only the first line can have begun in an earlier read. Many small requests that came in one read
            # are not large: a turn for each pass would leave the server idle between them.
            is_large = len(lines[0]) > LARGE_REQUEST_BYTES or (
                len(data) > LARGE_REQUEST_BYTES and max(map(len, lines)) > LARGE_REQUEST_BYTES
            )
            self._submit(lines, is_large=is_large)
            if is_large and self.is_blocked:
                self._pause()
        if self._framer.error is not None:
            self._fail(self._framer.error)
        elif len(self.backlog) > _PAUSE_LINES:
            self._pause()

    def eof_received(self) -> bool:
        """Execute an unterminated last line and keep the connection until its replies have left."""
        if not self._is_closing:
            lines = self._framer.end()
            if lines:
                self._submit(lines, is_large=len(lines[0]) > LARGE_REQUEST_BYTES)
            if self._framer.error is not None:
                self._fail(self._framer.error)
            self._close_when_done()
        # TLS knows no half-closed connection: its transport closes in any case, and complains of a True.
        return self._transport is not None and self._transport.get_extra_info("sslcontext") is None

    @property
    def is_ending(self) -> bool:
        """Whether the peer has ended the connection, or it is about to be closed."""
        return self._is_closing

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio calls it so
        """Forget a connection; what it sent and was executed stays executed."""
        self._is_closing = True
        self._transport = None
        self._sessions.forget(self)

    def pause_writing(self) -> None:
        """Stop reading from a client that does not take its replies."""
        self._write_paused_at = self._sessions.clock()
        self._pause()

    def resume_writing(self) -> None:
        """Go on with a client that took its replies."""
        self._write_paused_at = None
        self.resume()

    # -- the write path's side -----------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send replies."""
        transport = self._transport
        if transport is None:
            return
        transport.write(data)
        if self._write_paused_at is not None:
            buffered = transport.get_write_buffer_size()
            if buffered > self._sessions.max_client_buffer_bytes:
                self._drop(
                    "client_buffer_full", f"holds {buffered} bytes of replies that the client does not take"
                )
                return
        if self._is_closing:
            self._close_when_done()

    def resume(self) -> None:
        """Read again, unless the client's replies or its backlog still stand in the way."""
        if self._problem is not None and not self.is_blocked:
            self._fail(self._problem)
        elif self._is_closing:
            self._close_when_done()
        elif (
            self._is_read_paused and self._write_paused_at is None and not self.is_blocked and self._transport
        ):
            self._is_read_paused = False
            self._transport.resume_reading()

    # -- limits --------------------------------------------------------------------------------

    def check_timeouts(self, now: float) -> None:
        """Close the connection when it was silent, too slow, or did not take its replies, for too long."""
        sessions = self._sessions
        limit = sessions.read_timeout_seconds
        if self._write_paused_at is not None:
            self._hear(now)
            if (
                sessions.write_timeout_seconds
                and now - self._write_paused_at > sessions.write_timeout_seconds
            ):
                self._drop("write_timeout", "did not take its replies for write-timeout seconds")
        elif limit and (self._is_line_late(now, limit) or now - self.last_read_at > limit):
            if self.is_blocked or self.backlog or self.is_awaited:
                self._hear(now)
            elif self._transport is not None and not has_unread(self._transport):
                self._is_closing = True
                self._transport.close()

    def excuse(self, seconds: float, now: float) -> None:
        """Leave time out of account in which the server listened to no one."""
        self.last_read_at = min(self.last_read_at + seconds, now)
        self._line_since = min(self._line_since + seconds, now)
        if self._write_paused_at is not None:
            self._write_paused_at = min(self._write_paused_at + seconds, now)

    def close_gracefully(self) -> None:
        """Take no more requests; close once the replies of those taken have left."""
        self._pause()
        self._close_when_done()

    def abort(self) -> None:
        """Close at once, whatever is still to be sent."""
        if self._transport is not None:
            self._transport.abort()

    def describe(self, now: float) -> dict[str, Any]:
        """Return this connection's line of system.clients."""
        engine = self._sessions.write_path.engine
        op, access = engine.describe_line(self.last_line)
        return {
            "id": self.id,
            "address": self.address,
            "age_seconds": round(now - self.connected_at, 3),
            "idle_seconds": round(now - self.last_read_at, 3),
            "requests": self.request_count,
            "last_op": op,
            "buffered_in_bytes": self._framer.buffered_bytes + sum(map(len, self.backlog)),
            "buffered_out_bytes": self._transport.get_write_buffer_size() if self._transport else 0,
            "access": access,
        }

    # -- inside --------------------------------------------------------------------------------

    def _hear(self, now: float) -> None:
        """Count silence from now on: something is due to the client."""
        self.last_read_at = self._line_since = now

    def _is_line_late(self, now: float, limit: float) -> bool:
        """Whether a request line has taken too long since its first byte, however steadily it comes."""
        partial_bytes = self._framer.buffered_bytes
        if not partial_bytes:
            self._line_number = -1
        elif self._line_number != self.request_count:
            self._line_number, self._line_since = self.request_count, now
        else:
            return now - self._line_since > limit + partial_bytes / _SLOWEST_BYTES_PER_SECOND
        return False

    def _submit(self, lines: list[bytes], *, is_large: bool = False) -> None:
        self.request_count += len(lines)
        self.last_line = lines[-1]
        if is_large:
            if len(self.last_line) > LARGE_REQUEST_BYTES:
                # For system.clients, which would take as long to parse it as its execution did.
                self.last_line = self.last_line[:_END_BYTES] + self.last_line[-_END_BYTES:]
            self._sessions.write_path.submit_large(self, lines)
        else:
            self._sessions.write_path.submit(self, lines)

    def _fail(self, problem: RequestError) -> None:
        """Answer behind everything before it, then close: nothing more can be understood."""
        self._pause()
        self._problem = problem if self.is_blocked else None
        if not self.is_blocked:
            self._sessions.write_path.submit_error(self, problem)
        self._close_when_done()

    def _turn_away(self, problem: RequestError) -> None:
        assert self._transport is not None
        self._is_closing = True
        self._sessions.rejected += 1
        self._transport.write(replies.error(problem))
        self._transport.close()

    def _close_when_done(self) -> None:
        self._is_closing = True
        if self._transport is not None and not (
            self.is_blocked or self.replies or self.backlog or self.is_awaited
        ):
            self._transport.close()

    @property
    def is_awaited(self) -> bool:
        """Whether replies of this client wait for the log to be durable."""
        return self._sessions.write_path.is_waiting(self)

    def _drop(self, event: str, reason: str) -> None:
        if self._transport is not None:
            self._sessions.log.warning(
                event, f"Connection {self.id} from {self.address} {reason}; it is closed"
            )
            self._is_closing = True
            # What it asked for besides would be work for nobody.
            self.backlog.clear()
            self._transport.abort()

    def _pause(self) -> None:
        if not self._is_read_paused and self._transport is not None and not self._transport.is_closing():
            self._is_read_paused = True
            self._transport.pause_reading()
