"""Log entries as bytes, and their checksums: of a line, and of an entry wherever it is stored."""

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


class Lines(NamedTuple):
    """Lines of the log as they are written, each with its newline; LSNs rise by one."""

    first_lsn: int
    entries: int
    data: bytes

    def behind(self, lsn: int) -> Lines:
        """Return the lines behind an LSN."""
        skipped = lsn + 1 - self.first_lsn
        return Lines(lsn + 1, self.entries - skipped, self.data.split(b"\n", skipped)[-1])

    def first(self, count: int) -> Lines:
        """Return the first so many lines."""
        data = b"\n".join(self.data.split(b"\n", count)[:count]) + b"\n"
        return Lines(self.first_lsn, count, data)


def line_crc(body: bytes, lsn: int, seed: int) -> int:
    """Return a line's CRC-32; a seed per group and the LSN mixed in save hashing the rest of each line."""
    return crc32(body, (seed ^ lsn) & 0xFFFFFFFF)


def group_seed(ts_ms: int, synced_lsn: int) -> int:
    """Return what the lines of one group have in common."""
    return crc32(b"%d %d" % (ts_ms, synced_lsn))
