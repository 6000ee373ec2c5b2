"""The counters of one series as a file: MessagePack that Karma 1.0 reads too.

Format of a ``.tree`` file::

    {"branches_num": 9, "branches": [9 maps of key -> {"table": {bucket: value}, "total": sum}]}

A key lies in branch ``key % 9``; buckets are days ``YYYYMMDD``. We spell it in fixed width, which is
still plain MessagePack::

    82 ac "branches_num" 09 a8 "branches" 99            once
    df <keys:4>                                         a branch
    cf <key:8> 82 a5 "table" df <buckets:4>             a counter: 21 bytes,
    ( ce <day:4> cf <value:8> ) ...                     14 a bucket, days ascending,
    a5 "total" cf <total:8>                             and 15 bytes

Fixed width makes buckets a matrix of 14 columns, and one slice assignment moves a column of thousands
of them. Without numpy nothing else is as fast: one struct call per counter takes twice as long to
write 356 days. The price is size: the shortest spelling takes 6 to 9 bytes a bucket.

Anything else, such as the shortest spelling of the original, is read a counter at a time through
msgpack, at a third of the speed. That way also judges: the fast one only ever says that a file is not
for it.
"""

from __future__ import annotations

import io
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from mmap import mmap
from operator import lt
from typing import Any, Final

import msgpack

from karma.core import buckets
from karma.core.buckets import DAY_BITS, DAY_MASK, Counter
from karma.limits import BRANCHES

CHUNK_BYTES: Final = 1 << 20
"""About what `encode` yields at a time: large enough for the columns, small enough for the cache."""

_START = b"\x82\xacbranches_num" + bytes([BRANCHES]) + b"\xa8branches" + bytes([0x90 | BRANCHES])
_BRANCH = struct.Struct(">BI")
_HEAD = struct.Struct(">BQ8sI")
_TAIL = struct.Struct(">7sQ")
_MAP32, _UINT32, _UINT64 = 0xDF, 0xCE, 0xCF
_TABLE, _TOTAL = b"\x82\xa5table\xdf", b"\xa5total\xcf"
_BUCKET_BYTES = 14
_COUNTER_BYTES = _HEAD.size + _TAIL.size
_COLUMNS = (*zip(range(4, 8), range(1, 5), strict=True), *zip(range(8, 16), range(6, 14), strict=True))
"""Where each byte of a big-endian (day, value) pair of 16 bytes lies in a bucket of 14."""


# -- Writing -------------------------------------------------------------------------------------


def encode(counters: Mapping[int, Counter]) -> Iterator[bytes]:
    """Yield a series as the bytes of a `.tree` file, in pieces of about `CHUNK_BYTES`."""
    branches: list[list[int]] = [[] for _ in range(BRANCHES)]
    for key in counters:
        branches[key % BRANCHES].append(key)
    yield _START
    for keys in branches:
        yield _BRANCH.pack(_MAP32, len(keys))
        chunk: list[int] = []
        size_bytes = 0
        for key in keys:
            chunk.append(key)
            size_bytes += _COUNTER_BYTES + _BUCKET_BYTES * buckets.bucket_count(counters[key])
            if size_bytes >= CHUNK_BYTES:
                yield _encode_chunk(counters, chunk)
                chunk, size_bytes = [], 0
        if chunk:
            yield _encode_chunk(counters, chunk)


def _encode_chunk(counters: Mapping[int, Counter], keys: Sequence[int]) -> bytes:
    pairs = array("Q")
    for key in keys:
        counter = counters[key]
        if isinstance(counter, int):
            if counter:
                pairs.append(counter & DAY_MASK)
                pairs.append(counter >> DAY_BITS)
        else:
            pairs += counter[1:]
    columns = _to_columns(pairs)
    if columns is None:
        return b"".join(_encode_generally(key, counters[key]) for key in keys)
    parts: list[bytes | bytearray] = []
    start = 0
    for key in keys:
        counter = counters[key]
        count = buckets.bucket_count(counter)
        end = start + _BUCKET_BYTES * count
        total = buckets.total(counter)
        parts += (_HEAD.pack(_UINT64, key, _TABLE, count), columns[start:end], _TAIL.pack(_TOTAL, total))
        start = end
    return b"".join(parts)


def _encode_generally(key: int, counter: Counter) -> bytes:
    table = dict(buckets.items(counter))
    return bytes(msgpack.packb(key) + msgpack.packb({"table": table, "total": buckets.total(counter)}))


def _to_columns(pairs: array[int]) -> bytearray | None:
    """Return (day, value) pairs in fixed width, or None when a day does not fit in 32 bits."""
    count = len(pairs) >> 1
    if sys.byteorder == "little":
        pairs.byteswap()
    wide = pairs.tobytes()
    if any(wide[at::16].count(0) != count for at in range(4)):
        return None
    narrow = bytearray(_BUCKET_BYTES * count)
    narrow[0::_BUCKET_BYTES] = bytes([_UINT32]) * count
    narrow[5::_BUCKET_BYTES] = bytes([_UINT64]) * count
    for at_wide, at_narrow in _COLUMNS:
        narrow[at_narrow::_BUCKET_BYTES] = wide[at_wide::16]
    return narrow


# -- Reading -------------------------------------------------------------------------------------


def decode(data: bytes | mmap) -> dict[int, Counter]:
    """Return the counters by key that the bytes of a `.tree` file hold.

    Buckets of zero are left out. Days are taken as they are, real dates or not. Raises ValueError,
    saying what is wrong, when the bytes are cut short, something else, or contradict themselves.
    """
    counters = _decode_fixed(data)
    return _decode_generally(data) if counters is None else counters


def _decode_fixed(data: bytes | mmap) -> dict[int, Counter] | None:
    """Return what a file in fixed width holds, or None when it is not quite such a file."""
    counters: dict[int, Counter] = {}
    expected = 0
    for chunk in fixed_chunks(data):
        expected += 0 if chunk is None else len(chunk.keys)
        if chunk is None or not chunk.pour_into(counters, chunk.branch) or len(counters) != expected:
            return None
    return counters


def fixed_chunks(data: bytes | mmap) -> Iterator[Chunk | None]:
    """Yield the counters of a file in fixed width, cut apart, about `CHUNK_BYTES` at a time.

    Yields None, as the last, when it is not quite such a file: what came before it means nothing then.
    """
    at = len(_START)
    try:
        if data[:at] != _START:
            yield None
            return
        for branch in range(BRANCHES):
            marker, missing = _BRANCH.unpack_from(data, at)
            at += _BRANCH.size
            if marker != _MAP32:
                yield None
                return
            while missing:
                chunk, at = _read_chunk(data, at, missing, branch)
                yield chunk
                if chunk is None:
                    return
                missing -= len(chunk.keys)
    except struct.error:
        yield None
        return
    if at != len(data):
        yield None


def _read_chunk(data: bytes | mmap, at: int, limit: int, branch: int) -> tuple[Chunk | None, int]:
    """Cut up to so many counters from an offset, about `CHUNK_BYTES` of them; returns where they end."""
    chunk = Chunk(branch)
    chunk_end = at + CHUNK_BYTES
    while len(chunk.keys) < limit and at < chunk_end:
        marker, key, table, count = _HEAD.unpack_from(data, at)
        start = at + _HEAD.size
        end = start + _BUCKET_BYTES * count
        total_name, total = _TAIL.unpack_from(data, end)
        if marker != _UINT64 or table != _TABLE or total_name != _TOTAL:
            return None, at
        chunk.keys.append(key)
        chunk.counts.append(count)
        chunk.totals.append(total)
        chunk.columns.append(data[start:end])
        at = end + _TAIL.size
    return chunk, at


class Chunk:
    """Counters of a file in fixed width, cut apart but not yet checked; each list has one entry a counter."""

    __slots__ = ("branch", "columns", "counts", "keys", "totals")

    def __init__(self, branch: int) -> None:
        self.branch = branch
        self.keys: list[int] = []
        self.counts: list[int] = []
        self.totals: list[int] = []
        self.columns: list[bytes] = []
        """The buckets, of 14 bytes each: see the format above."""

    def pour_into(self, counters: dict[int, Counter], branch: int) -> bool:
        """Add the counters to others; False when something about them is odd."""
        pairs = _from_columns(b"".join(self.columns))
        if pairs is None:
            return False
        # As lists, because every look into an array makes its number anew.
        days, values = pairs[0::2].tolist(), pairs[1::2].tolist()
        is_ascending = [*map(lt, days, islice(days, 1, None)), True]
        start = 0
        for key, count, total in zip(self.keys, self.counts, self.totals, strict=True):
            end = start + count
            if key % BRANCHES != branch or sum(values[start:end]) != total:
                return False
            if count == 1:
                counters[key] = total << DAY_BITS | days[start]
            elif count:
                counters[key] = array("Q", (total,)) + pairs[2 * start : 2 * end]
            else:
                counters[key] = 0
            if count:
                # The next bucket is another counter's.
                is_ascending[end - 1] = True
            start = end
        return all(values) and all(is_ascending)


def _from_columns(narrow: bytes) -> array[int] | None:
    """Return the (day, value) pairs of buckets in fixed width, or None when they are spelt otherwise."""
    count = len(narrow) // _BUCKET_BYTES
    if narrow[0::_BUCKET_BYTES].count(_UINT32) != count or narrow[5::_BUCKET_BYTES].count(_UINT64) != count:
        return None
    wide = bytearray(16 * count)
    for at_wide, at_narrow in _COLUMNS:
        wide[at_wide::16] = narrow[at_narrow::_BUCKET_BYTES]
    pairs = array("Q")
    pairs.frombytes(wide)
    if sys.byteorder == "little":
        pairs.byteswap()
    return pairs


def _decode_generally(data: bytes | mmap) -> dict[int, Counter]:
    if isinstance(data, mmap):
        data.seek(0)
    size_bytes = len(data)
    unpacker = msgpack.Unpacker(
        io.BytesIO(data) if isinstance(data, bytes) else data,
        # Maps become tuples of pairs: a dict would hide a key that comes twice.
        object_pairs_hook=tuple,
        strict_map_key=False,
        max_buffer_size=max(size_bytes, 1),
    )
    try:
        counters = _read_tree(unpacker)
    except msgpack.OutOfData:
        raise ValueError(f"the file ends too early, after {size_bytes} bytes") from None
    except (msgpack.UnpackException, ValueError, TypeError) as error:
        problem = str(error) or type(error).__name__
        raise ValueError(f"not a sound series near byte {unpacker.tell()}: {problem}") from None
    if unpacker.tell() != size_bytes:
        raise ValueError(f"the series ends at byte {unpacker.tell()}, but the file has {size_bytes} bytes")
    return counters


def _read_tree(unpacker: Any) -> dict[int, Counter]:
    counters: dict[int, Counter] | None = None
    for _ in range(unpacker.read_map_header()):
        name = unpacker.unpack()
        if name == "branches_num":
            if unpacker.unpack() != BRANCHES:
                raise ValueError(f"branches_num is not {BRANCHES}")
        elif name == "branches" and counters is None:
            counters = _read_branches(unpacker)
        else:
            raise ValueError(f"unknown or repeated field {name!r}")
    if counters is None:
        raise ValueError("it has no branches")
    return counters


def _read_branches(unpacker: Any) -> dict[int, Counter]:
    if unpacker.read_array_header() != BRANCHES:
        raise ValueError(f"it does not have {BRANCHES} branches")
    counters: dict[int, Counter] = {}
    for branch in range(BRANCHES):
        for _ in range(unpacker.read_map_header()):
            key = unpacker.unpack()
            if not _is_u64(key):
                raise ValueError(f"key {key!r} is not an unsigned 64-bit number")
            if key % BRANCHES != branch or key in counters:
                raise ValueError(f"key {key} is in branch {branch}, where it does not belong, or comes twice")
            counters[key] = _to_counter(key, unpacker.unpack())
    return counters


def _to_counter(key: int, value: object) -> Counter:
    """Check a counter that msgpack read, its maps as tuples of pairs."""
    fields = dict(value) if isinstance(value, tuple) else {}
    table, total = fields.get("table"), fields.get("total")
    if len(fields) != 2 or not isinstance(table, tuple) or not _is_u64(total):
        raise ValueError(f"key {key} does not have a table and a total")
    if not all(_is_u64(part) for pair in table for part in pair):
        raise ValueError(f"key {key} has a bucket or a value that is not an unsigned 64-bit number")
    if len(dict(table)) != len(table):
        raise ValueError(f"key {key} has a bucket twice")
    values_sum = sum(value for _, value in table)
    if values_sum != total:
        raise ValueError(f"key {key} has total {total}, but its buckets add up to {values_sum}")
    return buckets.from_items(table)


def _is_u64(number: object) -> bool:
    """Say whether msgpack read an unsigned number; it reads none beyond 64 bits."""
    return type(number) is int and number >= 0
