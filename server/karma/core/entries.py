"""Log entries as bytes, entries of a source, and their checksums: of a line, and of an entry anywhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple
from zlib import crc32

import orjson

from karma.limits import MAX_RECEIVED_TEXT_BYTES

_RECENT_BYTES = 8 << 20
"""Entries kept in memory for followers: a second or two of a busy master."""


class Body(NamedTuple):
    """An entry as its JSON; `ts_ms` (unix milliseconds) is None in a log of the original."""

    lsn: int
    json: bytes
    ts_ms: int | None


@dataclass(frozen=True, slots=True)
class Received:
    """Entries of a source, the first with `first_lsn`: as objects, as JSON, and when each was written."""

    first_lsn: int
    entries: Sequence[Mapping[str, Any]] = ()
    bodies: Sequence[bytes] = ()
    times_ms: Sequence[int] = ()

    @property
    def last_lsn(self) -> int:
        """The LSN of the last entry; without any, the one before `first_lsn`."""
        return self.first_lsn + len(self.entries) - 1


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


class Recent:
    """The newest writes of the log, so that followers at its end cost no reading and no formatting."""

    __slots__ = ("_bytes", "_groups")

    def __init__(self) -> None:
        self._groups: deque[Lines] = deque()
        self._bytes = 0

    def add(self, lines: Lines) -> None:
        """Take in what was just written, and let go of the oldest beyond `_RECENT_BYTES`."""
        self._groups.append(lines)
        self._bytes += len(lines.data)
        while self._bytes > _RECENT_BYTES:
            self._bytes -= len(self._groups.popleft().data)

    def read(self, after_lsn: int) -> list[Lines] | None:
        """Return the lines behind an LSN, None when the first of them is not here."""
        groups = self._groups
        if not groups or after_lsn + 1 < groups[0].first_lsn:
            return None
        # A follower lacks the last few groups only: they are found from the end.
        wanted = list(
            takewhile(lambda group: group.first_lsn + group.entries > after_lsn + 1, reversed(groups))
        )
        wanted.reverse()
        if wanted and wanted[0].first_lsn <= after_lsn:
            wanted[0] = wanted[0].behind(after_lsn)
        return wanted


def line_crc(body: bytes, lsn: int, seed: int) -> int:
    """Return a line's CRC-32; a seed per group and the LSN mixed in save hashing the rest of each line."""
    return crc32(body, (seed ^ lsn) & 0xFFFFFFFF)


def group_seed(ts_ms: int, synced_lsn: int) -> int:
    """Return what the lines of one group have in common."""
    return crc32(b"%d %d" % (ts_ms, synced_lsn))


def comparable_crc(epoch_number: int, body: Body) -> str:
    """Return what tells whether two nodes hold the same entry of an epoch: its checksum, 8 hex digits.

    An entry of Karma 1.0 (epoch 0) has no time: each node that received it noted one of its own.
    """
    return f"{entry_crc(body.lsn, body.ts_ms if epoch_number else None, body.json):08x}"


def read_entries(found: Iterable[Any], after_lsn: int, now_ms: int) -> Received:
    """Return the entries of a source's page, the first behind `after_lsn`; `now_ms` for one without a time.

    Raises ValueError, KeyError, TypeError or AttributeError when they are not what this log may hold.
    """
    lsn = after_lsn
    entries: list[Mapping[str, Any]] = []
    bodies: list[bytes] = []
    times_ms: list[int] = []
    dumps = orjson.dumps
    group: tuple[Any, Any] | None = None
    seed = 0
    for each in found:
        lsn += 1
        entry, ts_ms, crc = each["entry"], each.get("ts"), each.get("crc")
        if each["lsn"] != lsn or not isinstance(entry, dict) or not isinstance(entry.get("op"), str):
            raise ValueError(f"entry {lsn} is missing or none")
        if ts_ms is not None and (type(ts_ms) is not int or ts_ms < 0):
            # Written to the log it would be a line that cannot be read.
            raise ValueError(f"the time of entry {lsn} is none")
        body = dumps(entry)
        if len(body) > MAX_RECEIVED_TEXT_BYTES:
            _check_texts(entry, lsn)
        if crc is not None:
            if "synced" not in each:
                expected = entry_crc(lsn, ts_ms, body)
            else:
                # A line of the source's log, with that line's checksum.
                if group != (ts_ms, each["synced"]):
                    group = ts_ms, each["synced"]
                    seed = group_seed(ts_ms or 0, each["synced"])
                expected = line_crc(body, lsn, seed)
            if int(crc, 16) != expected:
                raise ValueError(f"the checksum of entry {lsn} does not match")
        entries.append(entry)
        bodies.append(body)
        times_ms.append(now_ms if ts_ms is None else ts_ms)
    return Received(after_lsn + 1, entries, bodies, times_ms)


def _check_texts(entry: Mapping[str, Any], lsn: int) -> None:
    """Raise ValueError for a name that no client could have sent."""
    for name, value in entry.items():
        if type(value) is str and len(value.encode()) > MAX_RECEIVED_TEXT_BYTES:
            raise ValueError(f"{name} of entry {lsn} has {len(value.encode())} bytes")
