"""Log entries as bytes, and the checksum by which nodes compare them."""

from __future__ import annotations

from typing import NamedTuple
from zlib import crc32


class Body(NamedTuple):
    """An entry as its JSON; `ts_ms` (unix milliseconds) is None in a log of the original."""

    lsn: int
    json: bytes
    ts_ms: int | None


def entry_crc(lsn: int, ts_ms: int | None, json: bytes) -> int:
    """Return the CRC-32 of an entry's bytes, started from LSN xor time.

    Not the one of its log line, which covers what was durable on one node at that moment.
    """
    return crc32(json, (lsn ^ (ts_ms or 0)) & 0xFFFFFFFF)
