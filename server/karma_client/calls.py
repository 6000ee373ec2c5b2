"""A request on its way: what is asked, the line that asks it, the reply taken in.

Pure: bytes out, bytes in. Both clients and the pipeline use these and nothing else to speak the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import orjson

from karma.protocol.framing import Framer
from karma_client.errors import (
    InvalidArgumentError,
    KarmaError,
    ProtocolError,
    ReplyError,
    UnknownCommandError,
    UnsupportedError,
    error_of,
)

T = TypeVar("T")

REPEATABLE_WRITES = frozenset(
    {
        "idempotency.prune",
        "ingest.begin",
        "ingest.chunk",
        "ingest.commit",
        "replication.fence",
        "replication.pause",
        "replication.resume",
        "series.compact",
        "system.compact",
        "tree.create",
    }
)
"""Writes that end in the same state when they are done twice, by what they are or because chunks are
numbered."""

SLOW_OPS = frozenset(
    {
        "idempotency.prune",
        "ingest.commit",
        "replication.checksum",
        "replication.follow",
        "replication.promote",
        "series.compact",
        "series.delete_before",
        "snapshot.create",
        "snapshot.create_all",
        "snapshot.load",
        "snapshot.verify",
        "system.compact",
    }
)
"""Operations that take longer the more data there is: they get the longer timeout."""

ADMIN_READS = frozenset({"system.clients"})
"""Operations that change nothing, although the op table gives them to administrators only."""

MAX_REPLY_BYTES = 134_217_728
"""Longest reply line taken. Servers stop at max-response-bytes (1 MiB unless raised); what never ends is cut
here."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One operation with its fields (those that are None are left out), and how to read its response.

    `is_repeatable`: doing it twice is the same as doing it once. `is_extension`: Karma 1.0 lacks it.
    `is_write`: it changes something on the server.
    """

    op: str
    fields: Mapping[str, Any] = field(repr=False)
    parse: Callable[[Any], T]
    is_repeatable: bool
    is_extension: bool = False
    is_write: bool = True

    @property
    def is_slow(self) -> bool:
        """Whether it takes longer the more data there is."""
        return self.op in SLOW_OPS

    @property
    def held_seconds(self) -> float:
        """How long the server may hold its reply on purpose."""
        held_ms = self.fields.get("wait_ms") or self.fields.get("timeout_ms") or 0
        return held_ms / 1000 if isinstance(held_ms, int) else 0.0

    def line(self, token: str | None) -> bytes:
        """Return the request line. Raises InvalidArgumentError for what JSON or 64 bits cannot carry."""
        request: dict[str, Any] = {"v": 2, "op": self.op}
        if token is not None:
            request["token"] = token
        request.update((name, value) for name, value in self.fields.items() if value is not None)
        try:
            return orjson.dumps(request, option=orjson.OPT_APPEND_NEWLINE)
        except (orjson.JSONEncodeError, TypeError) as error:
            # The encoder names types and never values, so no token can be in its text.
            raise InvalidArgumentError(f"{self.op} cannot be sent: {error}", op=self.op) from None


def read(op: str, parse: Callable[[Any], T], /, *, is_extension: bool = False, **fields: Any) -> Call[T]:
    """Return a call that changes nothing."""
    return Call(op, fields, parse, is_repeatable=True, is_extension=is_extension, is_write=False)


def write(op: str, parse: Callable[[Any], T], /, *, is_extension: bool = False, **fields: Any) -> Call[T]:
    """Return a call that changes something; an idempotency key makes it repeatable."""
    is_repeatable = op in REPEATABLE_WRITES or fields.get("idempotency_key") is not None
    return Call(op, fields, parse, is_repeatable, is_extension)


class Pending(Generic[T]):
    """A call and, once it came, its outcome.

    Pipelines hand these out: `result()` is the response after the flush.
    """

    __slots__ = ("_error", "_value", "call", "is_done", "is_looked_at")

    def __init__(self, call: Call[T]) -> None:
        self.call = call
        self.is_done = False
        self.is_looked_at = False
        """Whether somebody asked for the outcome."""
        self._error: KarmaError | None = None
        self._value: T | None = None

    def __repr__(self) -> str:
        state = "waiting" if not self.is_done else "failed" if self._error else "done"
        return f"<Pending {self.call.op} {state}>"

    @property
    def error(self) -> KarmaError | None:
        """Why the call failed, None while it has not."""
        self.is_looked_at = True
        return self._error

    @property
    def unseen_error(self) -> KarmaError | None:
        """The error, unless somebody asked for the outcome."""
        return None if self.is_looked_at else self._error

    def result(self) -> T:
        """Return the response, or raise the error of this call. Before the flush: InvalidArgumentError."""
        self.is_looked_at = True
        if not self.is_done:
            raise InvalidArgumentError(
                f"{self.call.op} was not sent yet: flush the pipeline, or leave its with block, first",
                op=self.call.op,
            )
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def succeed(self, value: T) -> None:
        """Note the response."""
        self._value, self.is_done = value, True

    def fail(self, error: KarmaError) -> None:
        """Note the error."""
        self._error, self.is_done = error, True


class Exchange:
    """Request lines going out over one connection and the reply lines coming back.

    Whoever moves the bytes sets `has_left` before the first of them can have gone, and feeds what arrives.
    """

    __slots__ = ("_framer", "data", "expected", "has_left", "lines")

    def __init__(self, lines: list[bytes]) -> None:
        self.data = b"".join(lines)
        self.expected = len(lines)
        self.has_left = False
        self.lines: list[bytes] = []
        self._framer = Framer(MAX_REPLY_BYTES)

    @property
    def is_complete(self) -> bool:
        """Whether every request has its reply."""
        return len(self.lines) >= self.expected

    @property
    def is_clean(self) -> bool:
        """Whether exactly the expected replies came, so that the connection may be used again."""
        return len(self.lines) == self.expected and not self._framer.buffered_bytes

    def feed(self, data: bytes) -> None:
        """Take what was read. Raises ProtocolError for a line without end."""
        self.lines += self._framer.feed(data)
        if self._framer.error is not None:
            raise ProtocolError(f"a reply is longer than {MAX_REPLY_BYTES} bytes")


def take_reply(pending: Pending[Any], line: bytes, node: str) -> ReplyError | None:
    """Read a reply line: note the response, or return the error reply for the caller to judge.

    Raises ProtocolError when the line is no reply: whatever follows it cannot be trusted either.
    """
    call = pending.call
    try:
        reply = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise ProtocolError(f"answered {_describe(line)}, which is no reply of Karma", node=node) from None
    if not isinstance(reply, dict) or not isinstance(reply.get("success"), bool):
        # Not quoted: a peer that echoes what it gets would put the token into the text.
        raise ProtocolError("answered JSON that is no reply of Karma", node=node, op=call.op)
    if not reply["success"]:
        error = error_of(reply, node=node, op=call.op)
        if isinstance(error, UnknownCommandError) and call.is_extension:
            return UnsupportedError(
                "this server does not know the operation: it needs a newer version than Karma 1.0",
                node=node,
                op=call.op,
            )
        return error
    try:
        pending.succeed(call.parse(reply["response"]))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problem = ProtocolError(
            f"answered {call.op} with a response of another shape than expected ({type(error).__name__}); "
            "is it a server of another version?",
            node=node,
            op=call.op,
        )
        problem.__cause__ = error
        pending.fail(problem)
    return None


def _describe(line: bytes) -> str:
    """Say what a line that is no JSON looks like, without quoting it."""
    if line.startswith(b"HTTP/"):
        return "HTTP"
    if line[:1] in {b"\x15", b"\x16"}:
        return "TLS (connect with tls=True)"
    return f"a line of {len(line)} bytes that is no JSON"


# -- How responses are read --------------------------------------------------------------------------------


def anything(response: Any) -> Any:
    """Read any response as it is."""
    return response


def an_object(response: Any) -> Mapping[str, Any]:
    """Read an object."""
    if type(response) is not dict:
        raise TypeError
    return response


def number(response: Any) -> int:
    """Read a number."""
    if type(response) is not int:
        raise TypeError
    return response


def text(response: Any) -> str:
    """Read a text."""
    if type(response) is not str:
        raise TypeError
    return response


def nothing(_response: Any) -> None:
    """Read a response that says no more than that it worked."""


def texts(response: Any) -> list[str]:
    """Read an array of texts."""
    return [text(element) for element in response]
