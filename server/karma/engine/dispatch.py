"""The engine: dispatch, access and the state of one pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import date
from hmac import compare_digest
from importlib import import_module
from typing import Any, Final

from orjson import JSONDecodeError, dumps, loads

from karma.core.expiry import ExpiryClock, created_at
from karma.core.store import Store
from karma.engine.counters import Counters
from karma.engine.names import Names
from karma.errors import ErrorCode, RequestError, describe_bug
from karma.limits import INLINE_KEYS, MAX_QUOTED_CHARACTERS, U64_MAX
from karma.ops import BY_NAME, Op
from karma.protocol import fields, replies

_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_DAY_MS = 86_400_000
_PARSED_BYTES = 16
"""What the parser takes for each byte of a line. It has the same error for want of it as for a mistake."""


@dataclass(frozen=True, slots=True)
class Effect:
    """Something only the service can do: an operation by name, its fields checked."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


Slices = Generator[float, None, bytes]
"""A large read: it returns its reply line, and yields between slices the part of the slice's time that counts
against the query timeout."""
OWN_WORK: Final = 1.0
SHARED_WORK: Final = 0.0
"""Work whose result is kept for later requests: what is done once must not fail however much it is."""
Outcome = bytes | Effect | Slices
"""A reply line, an effect, or a large read."""

Handler = Callable[["Engine", dict[str, Any]], Outcome]


@dataclass(frozen=True, slots=True)
class Settings:
    """What of the configuration decides about requests. `max_response_bytes` 0 means no limit."""

    max_response_bytes: int = 1_048_576
    response_limit: str = "max-response-bytes"
    """The option that `max_response_bytes` comes from."""
    auth_token: str | None = None
    read_auth_token: str | None = None
    admin_auth_token: str | None = None
    replication_token: str | None = None
    """What this node shows its source. Its own followers may show it, too: a fleet has one."""
    legacy_protocol: bool = False
    strict_fields: bool = False
    max_value: int = 0
    """The largest value that one write, or one item of a batch, may bring; 0 means no limit."""
    inline_keys: int = INLINE_KEYS
    """As `Store.inline_keys`."""

    @property
    def needs_token(self) -> bool:
        """Whether any token is configured."""
        return bool(self.auth_token or self.read_auth_token or self.admin_auth_token)


class Engine:
    """Executes request lines against a store. One pass is what runs between two writes of the log."""

    def __init__(self, store: Store, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.adopt(store)
        self._needs_token = self.settings.needs_token
        self.peer = "unknown"
        """Whose requests are executed, as ``host:port`` or ``unix``."""
        self.on_refused_token: Callable[[str, str, str], None] = lambda _peer, _op, _code: None
        """Called with peer, operation and error code when a token is not good for a request."""
        self.shown_access = ""
        """What the token of the last request may do, where tokens are needed."""
        self.max_value = self.settings.max_value or U64_MAX
        self.counters = Counters()
        self.must_take_back = False
        """Whether memory ran out in the middle of a change: what is not in the log yet must not get there."""
        self.entries: list[bytes] = []
        """The pass's log entries as JSON, not written yet."""
        self.executed: list[str] = []
        """The pass's operations by name, one per request that reached a handler."""
        self.refusal: Callable[[], RequestError | None] | None = None
        """Makes the error for a write when none is taken now (role, pause, fence, storage).

        Not the error itself: one that is raised again and again keeps every traceback.
        """
        self.expiry: ExpiryClock | None = None
        """Set by the service; without it idempotency records age by the time of the pass."""
        self.now_ms = 0
        self.now_unix = 0
        self.today = 0
        """The UTC day of the pass, YYYYMMDD."""
        self._midnight_ms = -_DAY_MS
        self._names = {name: Names.of(op) for name, op in BY_NAME.items()}
        self._handlers: dict[str, tuple[Handler, Op, str]] = {
            name: (_bind(op.handler), op, op.name) for name, op in BY_NAME.items()
        }
        self._legacy: Callable[[Engine, dict[str, Any]], Outcome] | None = (
            _bind("legacy.execute") if self.settings.legacy_protocol else None
        )

    def configure(self, settings: Settings) -> None:
        """Decide about requests to come by other settings."""
        self.settings = settings
        self._needs_token = settings.needs_token

    def adopt(self, store: Store) -> None:
        """Execute requests against a store, whose long work is left to its chores from now on."""
        self.store = store
        store.inline_keys = self.settings.inline_keys

    def tick(self) -> None:
        """Forget what nobody needs any more; to be called about once a second."""
        self.store.records.trim(self.expiry_unix)
        self.store.drop_idle_views()

    def begin_pass(self, now_ms: int) -> None:
        """Set the time of a pass, in unix milliseconds."""
        self.now_ms = now_ms
        self.now_unix = now_ms // 1000
        if not self._midnight_ms <= now_ms < self._midnight_ms + _DAY_MS:
            day_number = now_ms // _DAY_MS
            self._midnight_ms = day_number * _DAY_MS
            day = date.fromordinal(_EPOCH_ORDINAL + day_number)
            self.today = day.year * 10_000 + day.month * 100 + day.day

    @property
    def expiry_unix(self) -> int:
        """The time by which idempotency records age."""
        return self.now_unix if self.expiry is None else self.expiry.now_unix

    @property
    def created_at_unix(self) -> int:
        """The time to note for a record that is made in this pass."""
        return created_at(self.now_unix, self.expiry_unix)

    def execute(self, line: bytes) -> Outcome:
        """Execute one request line. Never raises for anything a client can send."""
        try:
            request = loads(line)
        except JSONDecodeError as error:
            return self._unparsed(line, error)
        try:
            handler, op, name = self._handlers[request["op"]]
            if request["v"] != 2:
                return self._fail(_diagnose(request))
        except (KeyError, TypeError):
            return self._odd(request)
        self.executed.append(name)
        try:
            if self._needs_token:
                self._authorize(request, op)
            if not op.checks_names:
                self.check_names(request)
            return handler(self, request)
        except RequestError as problem:
            return self._fail(problem)
        except Exception as error:  # noqa: BLE001 - a bug must not take the other clients down
            return self.internal_error(error)

    def reply(self, response: Any) -> bytes:
        """Return a success reply, or raise RequestError when it is larger than a client may get."""
        return self.bounded(replies.success(response))

    def bounded(self, line: bytes) -> bytes:
        """Return a reply line that is not too long, or raise RequestError (response_too_large)."""
        maximum = self.settings.max_response_bytes
        if maximum and len(line) > maximum:
            raise RequestError(
                ErrorCode.RESPONSE_TOO_LARGE,
                f"The response has {len(line)} bytes, more than {self.settings.response_limit} "
                f"allows ({maximum}); "
                "ask for less at once",
            )
        return line

    def check_writable(self) -> None:
        """Raise RequestError when this node takes no writes now."""
        if self.refusal is not None and (refusal := self.refusal()) is not None:
            raise refusal

    def check_names(self, request: Mapping[str, Any]) -> None:
        """Raise RequestError for a null, and with strict-fields for an unknown field; without, count it."""
        names = self._names[request["op"]]
        unknown = names.check(request)
        if unknown is not None:
            if self.settings.strict_fields:
                raise RequestError(ErrorCode.VALIDATION_ERROR, names.unknown(unknown))
            self.counters.unknown_fields += 1

    def series_name(self, request: Mapping[str, Any]) -> str:
        """Return the name of the series that a request, or an object within it, is about."""
        return fields.series(request, self.store.series)

    def log(self, entry: Mapping[str, Any]) -> None:
        """Note an applied change for the log."""
        self.entries.append(dumps({"v": 2, **entry}))

    def fail(self, problem: RequestError) -> bytes:
        """Count an error and return its reply."""
        return self._fail(problem)

    def internal_error(self, error: Exception) -> bytes:
        """Count and report a bug of ours; the reply names its kind and nothing of the request."""
        if isinstance(error, MemoryError):
            return self._out_of_memory()
        self.counters.internal_errors.append(describe_bug(error))
        return self._fail(
            RequestError(
                ErrorCode.INTERNAL_ERROR,
                f"The server failed on this request ({type(error).__name__}), a bug: please report it",
            )
        )

    def _out_of_memory(self) -> bytes:
        """Answer a request for which there is no memory, with what it has changed to be taken back."""
        self.counters.out_of_memory += 1
        if self.store.undo or self.entries:
            # Changed and not noted, or noted and not whole: nobody knows how far it came.
            self.must_take_back = self.store.must_settle = True
        return self._fail(
            RequestError(
                ErrorCode.OVERLOADED,
                "The server has not enough memory for this request; nothing was written. Ask for less, or "
                "give the server more memory",
            )
        )

    # -- The uncommon ways ---------------------------------------------------------------------

    def _fail(self, problem: RequestError) -> bytes:
        self.counters.errors += 1
        return replies.error(problem)

    def _unparsed(self, line: bytes, error: JSONDecodeError) -> bytes:
        """Answer a line that cannot be parsed: is it the line, or is it memory?"""
        try:
            bytes(len(line) * _PARSED_BYTES)
        except MemoryError:
            return self._out_of_memory()
        # The parser quotes nothing of the line, so no token can leak into the message.
        return self._fail(RequestError(ErrorCode.INVALID_JSON, f"Request is not valid JSON: {error}"))

    def _odd(self, request: Any) -> Outcome:
        """Answer JSON that is not a request of protocol 2."""
        if (
            self._legacy is not None
            and isinstance(request, dict)
            and "command" in request
            and "v" not in request
        ):
            return self._legacy(self, request)
        return self._fail(_diagnose(request))

    def _authorize(self, request: Mapping[str, Any], op: Op) -> None:
        settings = self.settings
        token = request.get("token")
        if type(token) is str:
            given = token.encode()
            is_admin = _matches(given, settings.admin_auth_token)
            is_writer = _matches(given, settings.auth_token)
            is_reader = _matches(given, settings.read_auth_token)
            self.shown_access = "admin" if is_admin else "write" if is_writer else "read" if is_reader else ""
            if is_admin or (is_writer and not (op.access == "A" and settings.admin_auth_token)):
                return
            if op.access == "R" and (is_writer or is_reader or _matches(given, settings.replication_token)):
                return
            if is_writer or is_reader or _matches(given, settings.replication_token):
                kind = "an admin" if op.access == "A" and settings.admin_auth_token else "the write"
                self.on_refused_token(self.peer, op.name, ErrorCode.FORBIDDEN)
                raise RequestError(
                    ErrorCode.FORBIDDEN, f"{op.name} needs {kind} token; this token may not run it"
                )
        self.on_refused_token(self.peer, op.name, ErrorCode.UNAUTHORIZED)
        raise RequestError(ErrorCode.UNAUTHORIZED, "Field token is missing or wrong")

    def describe_line(self, line: bytes) -> tuple[str | None, str]:
        """Return a request line's op and what its token may do: admin, write, read or none."""
        try:
            request = loads(line)
            op, token = request.get("op"), request.get("token")
        except (JSONDecodeError, AttributeError):
            op, token = _text_field(line, b"op"), _text_field(line, b"token")
        known = BY_NAME.get(op) if isinstance(op, str) else None
        return known.name if known else None, self._access_of(token if isinstance(token, str) else "")

    def may_read(self, token: str) -> bool:
        """Return whether a token ("" for none) may read."""
        return self._access_of(token) != "none"

    def is_peer(self, request: Mapping[str, Any]) -> bool:
        """Return whether a request's claims about its sender count: a reader's do not."""
        token = request.get("token")
        return self._access_of(token if isinstance(token, str) else "") not in ("none", "read")

    def _access_of(self, token: str) -> str:
        settings = self.settings
        if not settings.needs_token:
            return "admin"
        given = token.encode()
        for name, expected in (
            ("admin", settings.admin_auth_token),
            ("write", settings.auth_token),
            ("read", settings.read_auth_token),
            ("replication", settings.replication_token),
        ):
            if _matches(given, expected):
                return name
        return "none"


def _diagnose(request: Any) -> RequestError:
    """Return what is wrong with JSON that names no known operation, in the protocol's order of checks."""
    if not isinstance(request, dict):
        return RequestError(ErrorCode.VALIDATION_ERROR, "Request must be a JSON object")
    if request.get("v") != 2:
        return RequestError(
            ErrorCode.UNSUPPORTED_PROTOCOL, "Karma 1.0 accepts only protocol v2 requests with field v=2"
        )
    op = request.get("op")
    if op is None:
        return RequestError(ErrorCode.VALIDATION_ERROR, "Field op is required")
    if not isinstance(op, str):
        return RequestError(ErrorCode.VALIDATION_ERROR, "Field op must be a string")
    quoted = op if len(op) <= MAX_QUOTED_CHARACTERS else f"{op[:MAX_QUOTED_CHARACTERS]}…"
    return RequestError(ErrorCode.UNKNOWN_COMMAND, f"Unknown op {quoted}")


def _text_field(line: bytes, name: bytes) -> str | None:
    """Return what looks like a field of a line of which only the ends are left."""
    match = re.search(rb'"%b"\s*:\s*"([^"\\]*)"' % name, line)
    return match[1].decode(errors="replace") if match else None


def _matches(given: bytes, expected: str | None) -> bool:
    return expected is not None and compare_digest(given, expected.encode())


def _bind(handler: str) -> Handler:
    module_name, function_name = handler.split(".")
    bound: Handler = getattr(import_module(f"karma.engine.{module_name}"), function_name)
    return bound
