"""What a file says is looked at before it is believed: checksums, fields, and damage reported in one way."""

from __future__ import annotations

import contextlib
import shlex
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from mmap import mmap
from pathlib import Path
from typing import Any, TypeVar

import orjson

from karma.errors import DamagedDataError
from karma.storage.disk import Disk

T = TypeVar("T")
_SEAL = "self_crc32"


class Checksum:
    """The CRC-32 of chunks on their way to a file."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def over(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass chunks on, counting them in."""
        for chunk in chunks:
            self.value = zlib.crc32(chunk, self.value)
            yield chunk

    def hex(self) -> str:
        """Return what `crc32_hex` would return for all the chunks."""
        return f"{self.value:08x}"


def crc32_hex(data: bytes | mmap) -> str:
    """Return a CRC-32 as metadata spell it: 8 hex digits."""
    return f"{zlib.crc32(data):08x}"


def damage(path: Path, message: str, command: str) -> DamagedDataError:
    """Return the error for a damaged file; `command` is what to run next: `check` or `repair`."""
    advice = f"karma {command} --directory {shlex.quote(str(path.parent))}"
    return DamagedDataError(path, message, advice=advice)


@contextlib.contextmanager
def damage_in(path: Path, command: str) -> Iterator[None]:
    """Turn the errors of reading what is not as it should be into `damage`."""
    try:
        yield
    except KeyError as error:
        raise damage(path, f"field {error} is missing", command) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise damage(path, str(error), command) from error


def read_json(disk: Disk, path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None without one. Raises DamagedDataError."""
    try:
        data = disk.read_file(path)
    except FileNotFoundError:
        return None
    with damage_in(path, "check"):
        content = orjson.loads(data)
        if not isinstance(content, dict):
            raise TypeError("it is not a JSON object")
        return content


def sealed(fields: Mapping[str, object]) -> dict[str, object]:
    """Return a file's fields with ``self_crc32``, the CRC-32 of the others as compact JSON in their order.

    Metadata need that as much as the data they describe: another digit in an LSN leaves entries out.
    """
    rest = _without_seal(fields)
    return {**rest, _SEAL: crc32_hex(orjson.dumps(rest))}


def check_seal(fields: Mapping[str, object], original: Collection[str]) -> None:
    """Raise ValueError for fields that are not what `sealed` returned.

    Karma 1.0 writes no seal: `original` are the fields that may be there without one.
    """
    found = fields.get(_SEAL)
    if found is None and original and fields.keys() <= set(original):
        return
    crc32 = crc32_hex(orjson.dumps(_without_seal(fields)))
    if found != crc32:
        raise ValueError(f"its fields have CRC-32 {crc32}, but it says {found or 'nothing'}")


def _without_seal(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name != _SEAL}


def take(fields: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """Return a field. Raises KeyError without it and TypeError when it is of another type."""
    value = fields[name]
    if type(value) is not kind:
        raise TypeError(f"field {name} is {value!r}, not of type {kind.__name__}")
    return value


def take_or_none(fields: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    """Return a field that may be missing or null. Raises TypeError when it is of another type."""
    return None if fields.get(name) is None else take(fields, name, kind)
