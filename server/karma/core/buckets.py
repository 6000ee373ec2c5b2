"""One counter's day buckets, packed.

A counter takes one of two shapes:

- a plain ``int``: no bucket (``0``) or exactly one, as ``value << 32 | day``. A million keys that
  were used on one day cost about 110 bytes each this way; an array for each costs 190.
- an ``array('Q')``: ``total, day, value, day, value, …`` with days ascending. 356 days cost 17
  bytes a bucket, and adding to the newest day is four index operations. A dict of days costs 84.

Functions named after a change may alter an array in place and return it, or return another
object: the caller always stores what comes back. Days are integers ``YYYYMMDD``; no bucket is ever
stored as zero. Sums are checked against 2**64 - 1 by the caller, before anything changes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import TypeAlias

Counter: TypeAlias = "int | array[int]"

DAY_BITS = 32
DAY_MASK = (1 << DAY_BITS) - 1


def single(day: int, value: int) -> Counter:
    """Return a counter of one bucket, or of none when the value is zero."""
    if not value:
        return 0
    if day > DAY_MASK:
        # Only data restored from files can hold such a day; it is kept as it is.
        return array("Q", (value, day, value))
    return value << DAY_BITS | day


def from_items(items: Iterable[tuple[int, int]]) -> Counter:
    """Return a counter of (day, value) pairs in any order, days distinct; zero values are left out."""
    pairs = sorted((day, value) for day, value in items if value)
    if len(pairs) < 2:
        return single(*pairs[0]) if pairs else 0
    packed = array("Q", (sum(value for _, value in pairs),))
    for pair in pairs:
        packed.extend(pair)
    return packed


def total(counter: Counter) -> int:
    """Return the sum of all buckets."""
    return counter >> DAY_BITS if isinstance(counter, int) else counter[0]


def bucket_count(counter: Counter) -> int:
    """Return how many buckets are stored."""
    if isinstance(counter, int):
        return 1 if counter else 0
    return len(counter) >> 1


def items(counter: Counter) -> Iterator[tuple[int, int]]:
    """Yield (day, value), days ascending."""
    if isinstance(counter, int):
        if counter:
            yield counter & DAY_MASK, counter >> DAY_BITS
        return
    for at in range(1, len(counter), 2):
        yield counter[at], counter[at + 1]


def get(counter: Counter, day: int) -> int:
    """Return the value of one day, 0 where there is no bucket."""
    if not isinstance(counter, int) and day >= counter[-2]:
        return counter[-1] if day == counter[-2] else 0
    return range_sum(counter, day, day)


def range_sum(counter: Counter, first: int, last: int) -> int:
    """Return the sum over first <= day <= last."""
    if isinstance(counter, int):
        return counter >> DAY_BITS if first <= counter & DAY_MASK <= last else 0
    if first <= counter[1] and counter[-2] <= last:
        return counter[0]
    # Copying the days out lets bisect run in C; stepping through the pairs in Python costs ten
    # times as much at 356 days.
    days = counter[1::2]
    low = bisect_left(days, first)
    high = bisect_right(days, last, low)
    return sum(counter[2 + 2 * low : 1 + 2 * high : 2])


def range_items(counter: Counter, first: int, last: int) -> list[tuple[int, int]]:
    """Return the (day, value) pairs of first <= day <= last, days ascending."""
    if isinstance(counter, int):
        return [pair for pair in items(counter) if first <= pair[0] <= last]
    days = counter[1::2]
    low = bisect_left(days, first)
    high = bisect_right(days, last, low)
    return list(zip(days[low:high], counter[2 + 2 * low : 1 + 2 * high : 2], strict=True))


def add(counter: Counter, day: int, value: int) -> Counter:
    """Add a value above zero to a day's bucket."""
    if isinstance(counter, int):
        if counter & DAY_MASK == day and counter:
            return counter + (value << DAY_BITS)
        if not counter:
            return single(day, value)
        return from_items(((counter & DAY_MASK, counter >> DAY_BITS), (day, value)))
    newest = counter[-2]
    if day == newest:
        counter[-1] += value
    elif day > newest:
        counter.append(day)
        counter.append(value)
    else:
        at = bisect_left(counter[1::2], day) * 2 + 1
        if counter[at] == day:
            counter[at + 1] += value
        else:
            counter[at:at] = array("Q", (day, value))
    counter[0] += value
    return counter


def put(counter: Counter, day: int, value: int) -> Counter:
    """Set a day's bucket to exactly this value; zero removes the bucket."""
    if isinstance(counter, int):
        kept = [pair for pair in items(counter) if pair[0] != day]
        return from_items([*kept, (day, value)])
    if day > counter[-2]:
        return add(counter, day, value) if value else counter
    at = bisect_left(counter[1::2], day) * 2 + 1
    if at >= len(counter) or counter[at] != day:
        return add(counter, day, value) if value else counter
    counter[0] = counter[0] - counter[at + 1] + value
    if value:
        counter[at + 1] = value
        return counter
    del counter[at : at + 2]
    return counter if len(counter) > 3 else single(counter[1], counter[2])


def without(counter: Counter, first: int, last: int) -> Counter:
    """Return a counter that lacks first <= day <= last. The one given is never altered."""
    if isinstance(counter, int):
        return 0 if first <= counter & DAY_MASK <= last else counter
    days = counter[1::2]
    low = bisect_left(days, first)
    high = bisect_right(days, last, low)
    if low == high:
        return counter
    removed = sum(counter[2 + 2 * low : 1 + 2 * high : 2])
    kept = counter[: 1 + 2 * low] + counter[1 + 2 * high :]
    kept[0] -= removed
    if len(kept) > 3:
        return kept
    return single(kept[1], kept[2]) if len(kept) == 3 else 0
