"""What can go wrong, one class each.

Everything the client raises is a `KarmaError`. Its text says what was wrong and what to do next, and never
holds a token.

- `ReplyError`: the server answered with an error. It has a subclass for every error code of the protocol. The
  request changed nothing there; only after an `InternalError`, a bug of the server, nobody can promise that.
- `UnreachableError`, `NoMasterError`, `SplitBrainError`, `RequestTimeoutError`: nobody answered. The request
  was not applied, or it is one that may be sent again (a read, or a write with an idempotency key).
- `UnknownOutcomeError`: a write without an idempotency key left, and no reply came. It may have been applied.
- `ProtocolError`: whoever answered does not speak Karma.
- `InvalidArgumentError`, `ClosedError`, `ReadOnlyError`: the calling code. Nothing was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from karma.errors import ErrorCode


class KarmaError(Exception):
    """Base of everything the client raises.

    `node` is the address it is about and `op` the operation, None where there is none.
    """

    def __init__(self, message: str, *, node: str | None = None, op: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.node = node
        self.op = op

    @property
    def is_silence(self) -> bool:
        """Whether no reply came, in contrast to one that refuses."""
        return not isinstance(self, ReplyError)

    def __str__(self) -> str:
        return self.message if self.node is None else f"{self.node}: {self.message}"


class InvalidArgumentError(KarmaError, ValueError):
    """An argument that no request can carry, such as a day that is none; nothing was sent."""


class ClosedError(KarmaError):
    """The client was closed before; nothing was sent."""


class ReadOnlyError(KarmaError):
    """A write through a client that was made with `read_only`; nothing was sent."""


TlsCause = Literal["authority", "name", "time", "no tls", "other"]
"""authority: the certificate is of one that is not trusted here. name: it is another host's. time: it is
expired, or not valid yet. no tls: what answers does not speak TLS."""


class UnreachableError(KarmaError):
    """No node could be reached, or the connection broke before the request left; sending again is safe."""


class TlsError(UnreachableError):
    """A node was reached, but no secure connection was made. `cause` says what was wrong with it."""

    def __init__(self, message: str, cause: TlsCause, *, node: str | None = None) -> None:
        super().__init__(message, node=node)
        self.cause = cause


class RequestTimeoutError(KarmaError, TimeoutError):
    """No reply within the time given, to a request that is safe to send again."""


class NoMasterError(KarmaError):
    """Nodes were reached, but none of them is a master; nothing was sent to them."""


class SplitBrainError(KarmaError):
    """Several nodes call themselves master and their epochs do not tell which is newer; nothing was sent."""


class ProtocolError(KarmaError):
    """The peer answered something that is no reply of Karma."""


def advanced(before: int | None, after: object) -> int:
    """Return where the next page begins, behind the last one: what a server answers must come to an end.

    Raises ProtocolError.
    """
    if type(after) is not int or (before is not None and after <= before):
        raise ProtocolError("named a next page that is not behind the last one")
    return after


class UnknownOutcomeError(KarmaError):
    """A write without an idempotency key may or may not have been applied: it left, and no reply came.

    Look before sending it again (read the counter), or give writes an idempotency key: with one the client
    sends them again by itself and they count once.
    """


class ReplyError(KarmaError):
    """The server refused or failed the request. `code` is its error code, `detail` what else it said."""

    code: str = ""

    def __init__(
        self,
        message: str,
        *,
        node: str | None = None,
        op: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, node=node, op=op)
        self.detail: Mapping[str, Any] = detail or {}

    def __str__(self) -> str:
        where = f"{self.node}: " if self.node else ""
        what = f"{self.op}: " if self.op else ""
        return f"{where}{what}{self.message} ({self.code})"


class InvalidJsonError(ReplyError):
    """The request was no JSON: a bug of the client."""

    code = ErrorCode.INVALID_JSON


class UnsupportedProtocolError(ReplyError):
    """The server speaks another version of the protocol."""

    code = ErrorCode.UNSUPPORTED_PROTOCOL


class UnknownCommandError(ReplyError):
    """The server has no such operation."""

    code = ErrorCode.UNKNOWN_COMMAND


class UnsupportedError(UnknownCommandError):
    """The operation exists, but not in the server's version: Karma 1.0, say."""


class ValidationError(ReplyError):
    """A field was missing or wrong."""

    code = ErrorCode.VALIDATION_ERROR


class NotFoundError(ReplyError):
    """The series, stream or file does not exist."""

    code = ErrorCode.NOT_FOUND


class UnauthorizedError(ReplyError):
    """The token is missing or wrong."""

    code = ErrorCode.UNAUTHORIZED


class ForbiddenError(ReplyError):
    """The token may not do this, or the node takes no writes now: see `reason`."""

    code = ErrorCode.FORBIDDEN

    @property
    def reason(self) -> str | None:
        """Why the node takes no writes: "role" (a slave), "fenced" or "paused". None: the token may not."""
        reason = self.detail.get("reason")
        return reason if isinstance(reason, str) else None

    @property
    def retry_after_ms(self) -> int:
        """How long to wait before another try, in milliseconds; 0 when the server did not say."""
        wait = self.detail.get("retry_after_ms")
        return wait if isinstance(wait, int) else 0

    @property
    def master(self) -> str | None:
        """The address of the master, where the node knows it."""
        master = self.detail.get("master")
        return master if isinstance(master, str) else None


class RequestTooLargeError(ReplyError):
    """The request is longer than the server's max-request-bytes."""

    code = ErrorCode.REQUEST_TOO_LARGE


class ResponseTooLargeError(ReplyError):
    """The response would be longer than the server's max-response-bytes: ask for less at once."""

    code = ErrorCode.RESPONSE_TOO_LARGE


class QueryTimeoutError(ReplyError):
    """A large read took longer than the server's query-timeout-ms."""

    code = ErrorCode.QUERY_TIMEOUT


class IdempotencyConflictError(ReplyError):
    """The idempotency key, stream or chunk was used before with another payload."""

    code = ErrorCode.IDEMPOTENCY_CONFLICT


class ReplicationGapError(ReplyError):
    """The log entries asked for are gone."""

    code = ErrorCode.REPLICATION_GAP


class ReplicationError(ReplyError):
    """The log cannot be read or followed from there."""

    code = ErrorCode.REPLICATION_ERROR


class InternalError(ReplyError):
    """The server met a bug of its own."""

    code = ErrorCode.INTERNAL_ERROR


class StorageError(ReplyError):
    """The server's disk refused the write; nothing was applied."""

    code = ErrorCode.STORAGE_ERROR


class OverloadedError(ReplyError):
    """The server is at a limit on clients or buffers, or shutting down."""

    code = ErrorCode.OVERLOADED


_BY_CODE: Mapping[str, type[ReplyError]] = {
    kind.code: kind for kind in ReplyError.__subclasses__() if kind.code
}


def error_of(reply: Mapping[str, Any], *, node: str | None = None, op: str | None = None) -> ReplyError:
    """Return the error that an error reply spells; one with an unknown code is a plain `ReplyError`."""
    code, message, detail = reply.get("error_code"), reply.get("response"), reply.get("error_detail")
    error = _BY_CODE.get(str(code), ReplyError)(
        str(message), node=node, op=op, detail=detail if isinstance(detail, dict) else None
    )
    if type(error) is ReplyError:
        error.code = str(code)
    return error
