"""Reply lines.

A success is ``{"protocol_version":2,"success":true,"response":…,"error_code":null}``; an eligible
write that carried an idempotency key adds ``"idempotent"`` before ``error_code``.
"""

from __future__ import annotations

from typing import Any

import orjson

from karma.errors import ErrorCode, RequestError
from karma.protocol.texts import spelled_out

_SUCCESS = b'{"protocol_version":2,"success":true,"response":'
_END = b',"error_code":null}\r\n'
OK = _SUCCESS + b'"OK"' + _END
PONG = _SUCCESS + b'"pong"' + _END
_MANY = 256
_ROOM_BYTES = 1024
"""What an item of a large reply is taken for, when the question is whether there is memory for it."""
SMALL_NUMBERS = [b"%b%d%b" % (_SUCCESS, number, _END) for number in range(1024)]
"""The replies of 0 to 1023: nearly every increment answers one of them."""


def number(value: int) -> bytes:
    """Return the success reply of a plain number."""
    return SMALL_NUMBERS[value] if value < 1024 else b"%b%d%b" % (_SUCCESS, value, _END)


def success(response: Any) -> bytes:
    """Return the success reply of any JSON value; dict keys may be numbers.

    Raises RequestError (validation_error) for a number past 2**64 - 1: a sum that no reply can say.
    """
    return success_of_json(json_of(response))


def success_of_json(body: bytes) -> bytes:
    """Return the success reply of a value that is JSON already."""
    return b"%b%b%b" % (_SUCCESS, body, _END)


def json_of(response: Any) -> bytes:
    """Return a value as JSON; see `success`. Raises MemoryError without room for it."""
    if isinstance(response, dict | list) and len(response) > _MANY:
        # The JSON library ends the process where it gets no memory; asked for at once, Python says so.
        bytes(len(response) * _ROOM_BYTES)
    try:
        return orjson.dumps(response, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:
        raise RequestError(
            ErrorCode.VALIDATION_ERROR,
            "The sum is larger than 18446744073709551615; ask for a shorter range or fewer keys",
        ) from None


def remembered(response: Any, *, idempotent: bool) -> bytes:
    """Return the reply of a write with an idempotency key; `idempotent` is true for a repeated one."""
    return b'%b%b,"idempotent":%b%b' % (
        _SUCCESS,
        orjson.dumps(response),
        b"true" if idempotent else b"false",
        _END,
    )


def error(problem: RequestError) -> bytes:
    """Return the error reply of a request that failed."""
    fields: dict[str, Any] = {
        "protocol_version": 2,
        "success": False,
        # A message may quote the request: a control character, or a lone surrogate that no JSON can carry.
        "response": spelled_out(problem.message),
        "error_code": problem.code,
    }
    if problem.detail is not None:
        fields["error_detail"] = problem.detail
    return orjson.dumps(fields) + b"\r\n"
