"""Counters as columns of numbers, for tools that count in bulk. Needs numpy, which the server does without.

A `.tree` file in fixed width becomes columns without a Python object per bucket: 17.8 million buckets take
about a second, where the store's own decoding and a loop over it would take ten. Any other spelling, and
whatever looks odd, goes through `snapshot.load_tree`, which alone judges.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from mmap import mmap
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from karma.core import buckets
from karma.core.buckets import DAY_BITS, DAY_MASK, Counter
from karma.limits import BRANCHES
from karma.storage import snapshot, tree_file
from karma.storage.checked import crc32_hex, damage
from karma.storage.disk import Disk
from karma.storage.snapshot import SnapshotFile

U64: TypeAlias = NDArray[np.uint64]
I32: TypeAlias = NDArray[np.int32]

NO_DATE = -(2**31)
"""Stands in `Columns.days` for a day that is no date, which only files made elsewhere can hold."""

_BUCKET = np.dtype([("uint32", "u1"), ("day", ">u4"), ("uint64", "u1"), ("value", ">u8")])
_EPOCH = date(1970, 1, 1).toordinal()
_WIDEST = 10_000_000
"""Numbers of days that are looked up in a table; a file with days further apart is sorted instead."""


@dataclass(frozen=True, slots=True)
class Columns:
    """One series. `keys`, `counts` (of buckets) and `totals` have an entry a key, `days` and `values` one a
    bucket, key by key. `days` count from 1970-01-01.
    """

    keys: U64
    counts: U64
    totals: U64
    days: I32
    values: U64

    @property
    def bucket_keys(self) -> U64:
        """The key of each bucket."""
        return np.repeat(self.keys, self.counts.astype(np.intp))

    @property
    def bad_days(self) -> int:
        """How many buckets have a day that is no date."""
        return int(np.count_nonzero(self.days == NO_DATE))


def read_columns(file: SnapshotFile) -> Columns:
    """Return what a `.tree` file holds. Raises DamagedDataError as `snapshot.load_tree` does, and OSError."""
    disk = Disk()
    with disk.map_file(file.path) as data:
        found = None if len(data) != file.bytes else _fixed(data)
        if found is not None:
            if file.crc32 is not None and crc32_hex(data) != file.crc32:
                raise damage(
                    file.path,
                    f"its CRC-32 is {crc32_hex(data)}, but its metadata says {file.crc32}",
                    "repair",
                )
            return found
    return columns_of(snapshot.load_tree(disk, file))


def columns_of(counters: Mapping[int, Counter]) -> Columns:
    """Return counters of a store as columns."""
    pairs = array("Q")
    counts, totals = array("Q"), array("Q")
    for counter in counters.values():
        counts.append(buckets.bucket_count(counter))
        totals.append(buckets.total(counter))
        if not isinstance(counter, int):
            pairs += counter[1:]
        elif counter:
            pairs.append(counter & DAY_MASK)
            pairs.append(counter >> DAY_BITS)
    flat = np.array(pairs, dtype=np.uint64)
    return Columns(
        np.fromiter(counters, dtype=np.uint64, count=len(counters)),
        np.array(counts, dtype=np.uint64),
        np.array(totals, dtype=np.uint64),
        _since_epoch(flat[0::2]),
        flat[1::2].copy(),
    )


def _fixed(data: bytes | mmap) -> Columns | None:
    """The columns of a file in fixed width, None when it is not quite such a file."""
    keys, counts, totals = array("Q"), array("Q"), array("Q")
    days: list[NDArray[np.uint32]] = []
    values: list[U64] = []
    for chunk in tree_file.fixed_chunks(data):
        found = None if chunk is None else _checked(chunk)
        if chunk is None or found is None:
            return None
        keys.extend(chunk.keys)
        counts.extend(chunk.counts)
        totals.extend(chunk.totals)
        days.append(found["day"].astype(np.uint32))
        values.append(found["value"].astype(np.uint64))
    every_key = np.array(keys, dtype=np.uint64)
    if len(np.unique(every_key)) != len(every_key):
        return None
    return Columns(
        every_key,
        np.array(counts, dtype=np.uint64),
        np.array(totals, dtype=np.uint64),
        _since_epoch(_joined(days, np.uint32)),
        _joined(values, np.uint64),
    )


def _joined(parts: list[Any], kind: Any) -> Any:
    """One array of many, which are let go of one by one: both at once would be the peak of the memory."""
    whole = np.empty(sum(map(len, parts)), dtype=kind)
    at = len(whole)
    while parts:
        part = parts.pop()
        at -= len(part)
        whole[at : at + len(part)] = part
    return whole


def _checked(chunk: tree_file.Chunk) -> Any:
    """The buckets of a chunk, None when something about them is odd."""
    found = np.frombuffer(b"".join(chunk.columns), dtype=_BUCKET)
    if any(key % BRANCHES != chunk.branch for key in chunk.keys):
        return None
    if not (np.all(found["uint32"] == 0xCE) and np.all(found["uint64"] == 0xCF) and np.all(found["value"])):
        return None
    counts = np.array(chunk.counts, dtype=np.intp)
    totals = np.array(chunk.totals, dtype=np.uint64)
    ends = np.cumsum(counts)
    rises = np.diff(found["day"].astype(np.int64)) > 0
    # Between the last bucket of a counter and the first of the next one anything goes.
    rises[ends[(ends > 0) & (ends < len(found))] - 1] = True
    has_some = counts > 0
    if len(found) and int(found["value"].max()) * len(found) >= 2**64:
        # A sum might wrap around: the way that counts with Python's numbers judges.
        return None
    sums = np.zeros(len(counts), dtype=np.uint64)
    if len(found):
        sums[has_some] = np.add.reduceat(found["value"].astype(np.uint64), (ends - counts)[has_some])
    return found if np.all(rises) and np.array_equal(sums, totals) else None


def _since_epoch(days: NDArray[Any]) -> I32:
    """Days YYYYMMDD as days since 1970-01-01."""
    if not len(days):
        return np.empty(0, dtype=np.int32)
    low, high = int(days.min()), int(days.max())
    if high - low > _WIDEST:
        distinct, places = np.unique(days, return_inverse=True)
        spelt = np.fromiter(map(_day_since_epoch, distinct.tolist()), dtype=np.int32, count=len(distinct))
        return np.asarray(spelt[places], dtype=np.int32)
    places = (days - days.dtype.type(low)).astype(np.int32)
    is_there = np.zeros(high - low + 1, dtype=bool)
    is_there[places] = True
    found = np.full(high - low + 1, NO_DATE, dtype=np.int32)
    for place in np.flatnonzero(is_there).tolist():
        found[place] = _day_since_epoch(low + place)
    by_place: I32 = found[places]
    return by_place


def _day_since_epoch(day: int) -> int:
    # Karma 1.0 took days up to 2^63 - 1, whose year no date can hold.
    with suppress(ValueError, OverflowError):
        return date(day // 10_000, day // 100 % 100, day % 100).toordinal() - _EPOCH
    return NO_DATE
