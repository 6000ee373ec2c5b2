"""The fields of a request, checked. Every function raises RequestError (validation_error) naming the field.

Numbers are unsigned 64-bit integers and never floats: a JSON number with a fraction, an exponent or
more than 64 bits is refused, not rounded. Days are integers ``YYYYMMDD``, years 1000 to 9999.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import date
from typing import Any

from karma.errors import ErrorCode, RequestError
from karma.limits import (
    MAX_BATCH_ITEMS,
    MAX_FINGERPRINT_BYTES,
    MAX_HOST_BYTES,
    MAX_IDEMPOTENCY_KEY_BYTES,
    MAX_LSN,
    MAX_NODE_ID_BYTES,
    MAX_RANGE_DAYS,
    MAX_SERIES_NAME_BYTES,
    MAX_SOURCE_BYTES,
    U64_MAX,
)
from karma.protocol.texts import is_name

Request = Mapping[str, Any]
_IDENTIFIER = re.compile(r"[A-Za-z0-9._-]+")
_DAY_CACHE_SIZE = 4096
_KINDS = {
    str: "a string",
    int: "a number",
    float: "a number with a fraction",
    bool: "a boolean",
    list: "an array",
    dict: "an object",
    type(None): "null",
}
known_days: set[int] = set()
"""Days found to be calendar dates: a lookup here spares hot paths the call of `is_day`."""


def invalid(message: str) -> RequestError:
    """Return a validation_error."""
    return RequestError(ErrorCode.VALIDATION_ERROR, message)


# -- Numbers and texts ---------------------------------------------------------------------------


def check_u64(value: Any, name: str, minimum: int = 0) -> int:
    """Return a value that is an integer of minimum..2**64 - 1; `name` is the field's."""
    if type(value) is not int:
        if type(value) is float and value >= 2.0**64 and value.is_integer():
            raise invalid(f"Field {name} must be at most {U64_MAX}")
        raise invalid(f"Field {name} must be an unsigned integer, not {_describe(value)}")
    if value < 0:
        raise invalid(f"Field {name} must be greater than or equal to 0")
    if value < minimum:
        raise invalid(f"Field {name} must be greater than {minimum - 1}")
    return value


def u64(request: Request, name: str, default: int | None = None, minimum: int = 0) -> int:
    """Return an unsigned field; required when there is no default."""
    value = request.get(name)
    if value is None:
        if default is None:
            raise invalid(f"Field {name} is required")
        return default
    return check_u64(value, name, minimum)


def lsn(request: Request, name: str) -> int:
    """Return a required LSN that another node names."""
    value = u64(request, name)
    if value > MAX_LSN:
        raise invalid(f"Field {name} must be at most {MAX_LSN}")
    return value


def limit(request: Request, name: str, default: int, maximum: int) -> int:
    """Return a page size of 1..maximum."""
    value = u64(request, name, default, minimum=1)
    if value > maximum:
        raise invalid(f"Field {name} exceeds max size")
    return value


def text(request: Request, name: str, max_bytes: int, default: str | None = None) -> str:
    """Return a text field of 1..max_bytes bytes of UTF-8; required when there is no default."""
    value = request.get(name)
    if value is None:
        if default is None:
            raise invalid(f"Field {name} is required")
        return default
    return _check_text(value, name, max_bytes)


def text_of(request: Request, name: str, max_bytes: int) -> str | None:
    """Return a field that may be a text or an unsigned integer as text, None when it is missing."""
    value = request.get(name)
    if value is None:
        return None
    return str(check_u64(value, name)) if type(value) is int else _check_text(value, name, max_bytes)


def _check_text(value: Any, name: str, max_bytes: int) -> str:
    if type(value) is not str:
        raise invalid(f"Field {name} must be a string, not {_describe(value)}")
    if not 1 <= len(value.encode()) <= max_bytes:
        raise invalid(f"Field {name} must have 1 to {max_bytes} bytes")
    return value


def _describe(value: Any) -> str:
    return _KINDS[type(value)]


# -- Nodes ---------------------------------------------------------------------------------------


def identifier(request: Request, name: str) -> str | None:
    """Return the id of a node or a cluster, or a checksum; None without one."""
    if request.get(name) is None:
        return None
    value = text(request, name, MAX_NODE_ID_BYTES)
    if not _IDENTIFIER.fullmatch(value):
        # It is repeated in metrics and messages.
        raise invalid(f"Field {name} must be made of letters, digits, '.', '_' and '-'")
    return value


def host(request: Request, name: str, max_bytes: int = MAX_HOST_BYTES) -> str:
    """Return a host name or an address."""
    value = text(request, name, max_bytes)
    if any(character.isspace() or not character.isprintable() for character in value):
        raise invalid(f"Field {name} must be a host name or address")
    return value


def position(request: Request, name: str) -> tuple[str, int] | None:
    """Return a position among recovery checkpoints, [text, number]; None without one."""
    value = request.get(name)
    if value is None:
        return None
    if not (isinstance(value, list) and list(map(type, value)) == [str, int] and value[1] >= 0):
        raise invalid(f"Field {name} must be [text, number]")
    return _check_text(value[0], name, MAX_NODE_ID_BYTES) if value[0] else "", value[1]


def checkpoint(request: Request) -> dict[str, Any]:
    """Return source, offset and event_id of a recovery checkpoint."""
    source = text(request, "source", MAX_SOURCE_BYTES)
    offset = text_of(request, "source_offset" if "source_offset" in request else "offset", MAX_SOURCE_BYTES)
    event_id = text_of(request, "event_id", MAX_SOURCE_BYTES)
    return {"source": source, "offset": offset, "event_id": event_id}


# -- Series and keys -----------------------------------------------------------------------------


def series(request: Request, existing: Container[str] = ()) -> str:
    """Return the series name; ``tree`` is an alias of ``series`` and wins.

    A series that exists is taken by whatever name it has: Karma 1.0 took names that are refused here.
    """
    name = request.get("tree")
    if name is None:
        name = request.get("series")
        if name is None:
            raise invalid("Field tree or series is required")
    if type(name) is not str:
        raise invalid(f"Field series must be a string, not {_describe(name)}")
    if name in existing:
        return name
    if not 1 <= len(name.encode()) <= MAX_SERIES_NAME_BYTES:
        raise invalid(f"Field series must have 1 to {MAX_SERIES_NAME_BYTES} bytes")
    return check_new_name(name, "series")


def check_new_name(value: str, name: str) -> str:
    """Return a text that is about to become the name of something. Raises RequestError."""
    if not is_name(value):
        raise invalid(f"Field {name} must not hold control or format characters")
    return value


def keys(request: Request) -> list[int]:
    """Return the ``keys`` field: at most 10,000 unsigned integers."""
    found = _array(request, "keys")
    for key in found:
        if type(key) is not int or key < 0:
            check_u64(key, "keys")
    return found


def idempotency_key(request: Request) -> str | None:
    """Return the idempotency key as text, None without one. The number 7 and the text "7" are one key."""
    return text_of(request, "idempotency_key", MAX_IDEMPOTENCY_KEY_BYTES)


def asserted_fingerprint(request: Request) -> str | None:
    """Return the fingerprint that a client asserts, None without one."""
    if request.get("fingerprint") is None:
        return None
    return text(request, "fingerprint", MAX_FINGERPRINT_BYTES)


def flag(request: Request, name: str) -> bool:
    """Return a field that is true or false, and false if it is left out."""
    value = request.get(name)
    if value is None or type(value) is bool:
        return bool(value)
    raise invalid(f"Field {name} must be true or false, not {_describe(value)}")


_TIMESTAMPED = re.compile("[0-9]+_")


def file_name(request: Request, *, also: str | None = None) -> str:
    """Return a snapshot's file name, which must be no path; `also` is another name that will do."""
    name = text(request, "file", 255)
    if name == also:
        return name
    # A series' name may hold a backslash, which behind a timestamp separates nothing.
    is_path = "/" in name or "\0" in name or ("\\" in name and not _TIMESTAMPED.match(name))
    if is_path or name in {".", ".."} or not name.endswith(".tree"):
        raise invalid("Field file must be a snapshot basename")
    return name


# -- Days ----------------------------------------------------------------------------------------


def is_day(value: int) -> bool:
    """Return whether an integer ``YYYYMMDD`` is a real calendar date."""
    if value in known_days:
        return True
    try:
        date(value // 10_000, value // 100 % 100, value % 100)
    except (ValueError, OverflowError):
        return False
    if value < 10_000_000:
        return False
    if len(known_days) >= _DAY_CACHE_SIZE:
        known_days.clear()
    known_days.add(value)
    return True


def check_day(value: Any, name: str) -> int:
    """Return a day given as an integer."""
    if type(value) is not int:
        raise invalid(f"Field {name} must be a day as an integer YYYYMMDD, not {_describe(value)}")
    if not is_day(value):
        raise invalid(f"Field {name} must be a calendar date YYYYMMDD, and {value} is none")
    return value


def check_bucket(value: Any, name: str = "bucket") -> int:
    """Return a bucket: an integer YYYYMMDD or a text "YYYY-MM-DD" or "YYYYMMDD"."""
    if type(value) is not str:
        return check_day(value, name)
    digits = value.replace("-", "") if len(value) == 10 and value[4] == value[7] == "-" else value
    if not (len(digits) == 8 and digits.isascii() and digits.isdigit()):
        raise invalid(f"Field {name} must be a day as YYYYMMDD or YYYY-MM-DD")
    return check_day(int(digits), name)


def bucket(request: Request, today: int) -> int:
    """Return the day of a single write, today when it names none; ``date`` (integer) wins over ``bucket``."""
    value = request.get("date")
    if value is not None:
        return check_day(value, "date")
    value = request.get("bucket")
    return today if value is None else check_bucket(value)


def day_range(request: Request, name: str = "range") -> tuple[int, int]:
    """Return the required range as (first, last), both inclusive."""
    span = request.get(name)
    if span is None:
        raise invalid(f"Field {name} is required")
    if type(span) is not dict:
        raise invalid(f"Field {name} must be an object with from and to, not {_describe(span)}")
    for end in ("from", "to"):
        if end not in span:
            raise invalid(f"Field {name}.{end} is required")
    first = check_day(span["from"], f"{name}.from")
    last = check_day(span["to"], f"{name}.to")
    if first > last:
        raise invalid("Bucket range start must be less than or equal to range end")
    if (_as_date(last) - _as_date(first)).days > MAX_RANGE_DAYS:
        raise invalid("Range exceeds max days")
    return first, last


def optional_range(request: Request, name: str = "range") -> tuple[int, int] | None:
    """Return the range, None when the request has none."""
    return None if request.get(name) is None else day_range(request, name)


def month_of(day: int) -> tuple[int, int]:
    """Return the first and last day of a day's calendar month."""
    first = day // 100 * 100 + 1
    # No month has a 32nd day, and ranges are compared as numbers: the 31st bounds every month.
    return first, first + 30


def _as_date(day: int) -> date:
    return date(day // 10_000, day // 100 % 100, day % 100)


# -- Arrays --------------------------------------------------------------------------------------


def _array(request: Request, name: str, max_items: int | None = MAX_BATCH_ITEMS) -> list[Any]:
    found = request.get(name)
    if found is None:
        raise invalid(f"Field {name} is required")
    if type(found) is not list:
        raise invalid(f"Field {name} must be an array, not {_describe(found)}")
    if max_items is not None and len(found) > max_items:
        raise invalid(f"Field {name} exceeds {max_items} items")
    return found


def objects(request: Request, name: str, max_items: int | None = MAX_BATCH_ITEMS) -> list[dict[str, Any]]:
    """Return an array field whose elements are objects."""
    found = _array(request, name, max_items)
    for element in found:
        if type(element) is not dict:
            raise invalid(f"Each of {name} must be an object, not {_describe(element)}")
    return found


def items(
    request: Request, *, allow_zero: bool, is_stored: Callable[[int, int], bool] | None = None
) -> Sequence[list[int]]:
    """Return the ``items`` field: [key, bucket, value] triples, buckets as integers.

    A day that is not a date is taken with value 0 where `is_stored` says that the key has it.
    """
    found = _array(request, "items")
    for item in found:
        try:
            key, day, value = item
        except (TypeError, ValueError):
            raise invalid("Each item must be [key, bucket, value]") from None
        # Everything about a plain item in one expression: this line sees millions of items a second.
        if (
            type(key) is int
            and type(value) is int
            and key >= 0 < value
            and type(day) is int
            and day in known_days
            and type(item) is list
        ):
            continue
        if type(item) is not list:
            raise invalid("Each item must be [key, bucket, value]")
        check_u64(key, "items key")
        if not (value == 0 and type(day) is int and is_stored is not None and is_stored(key, day)):
            item[1] = check_bucket(day, "items bucket")
        if check_u64(value, "items value") == 0 and not allow_zero:
            raise invalid("Batch item value must be greater than 0")
    return found
