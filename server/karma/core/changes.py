"""Changes to a dict of counters, of live series and of staged ones, with their inverses.

`keys` is the list of the dict's keys in the order of creation. A key is put at its end with its counter,
and taken from there again: inverses run newest first, so it is the last one by then.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from karma.core import buckets
from karma.core.buckets import DAY_BITS, DAY_MASK, Counter
from karma.errors import ErrorCode, RequestError
from karma.limits import U64_MAX

SINGLE_MAX = U64_MAX << DAY_BITS | DAY_MASK
"""The largest counter of one bucket."""
Item = Sequence[int]
"""A (key, day, value) triple, as requests and log entries hold it."""
Undo = list[tuple[Any, ...]]
"""Inverses, oldest first: each a callable and its arguments."""


def overflow(name: str, key: int) -> RequestError:
    """Return the error for a value that a key has no room for."""
    return RequestError(
        ErrorCode.VALIDATION_ERROR,
        f'Field value would carry key {key} of series "{name}" past {U64_MAX}; nothing was written',
    )


def forget_key(counters: dict[int, Counter], keys: array[int], key: int) -> None:
    """Undo the creation of a key, the newest one: inverses run newest first."""
    del counters[key]
    keys.pop()


def take_back(counters: dict[int, Counter], key: int, day: int, value: int, old: Counter) -> None:
    """Undo an addition: `old` is what the key held before, altered in place since if it is an array."""
    if isinstance(old, int):
        counters[key] = old
    else:
        # Not `old`: a later change may have shrunk that array to an integer, its inverse made another.
        new = counters[key]
        counters[key] = buckets.put(new, day, buckets.get(new, day) - value)


def _take_items_back(
    counters: dict[int, Counter], keys: array[int], items: Sequence[Item], before: Sequence[Counter | None]
) -> None:
    for (key, day, value), old in zip(reversed(items[: len(before)]), reversed(before), strict=True):
        if old is None:
            forget_key(counters, keys, key)
        else:
            take_back(counters, key, day, value, old)


def put_back(counters: dict[int, Counter], key: int, day: int, value: int) -> None:
    """Undo a change of one bucket, which held a value before."""
    counters[key] = buckets.put(counters[key], day, value)


def add_items(
    counters: dict[int, Counter],
    keys: array[int],
    items: Sequence[Item],
    undo: Undo,
    name: str,
) -> None:
    """Add each (key, day, value); all or nothing, raising `RequestError` past 2**64 - 1."""
    before: list[Counter | None] = []
    undo.append((_take_items_back, counters, keys, items, before))
    remember, find, add, total = before.append, counters.get, buckets.add, buckets.total
    for key, day, value in items:
        old = find(key)
        if old is None:
            counters[key] = buckets.single(day, value)
            keys.append(key)
        elif isinstance(old, int):
            new = old + (value << DAY_BITS)
            if old & DAY_MASK == day and new <= SINGLE_MAX:
                counters[key] = new
            elif total(old) + value > U64_MAX:
                raise overflow(name, key)
            elif value:
                counters[key] = add(old, day, value)
        elif old[-2] == day and old[0] + value <= U64_MAX:
            old[0] += value
            old[-1] += value
        elif total(old) + value > U64_MAX:
            raise overflow(name, key)
        elif value:
            counters[key] = add(old, day, value)
        remember(old)


def set_items(
    counters: dict[int, Counter],
    keys: array[int],
    items: Sequence[Item],
    undo: Undo,
    name: str,
) -> None:
    """Set each (key, day) to exactly this value; all or nothing, raising `RequestError` past 2**64 - 1."""
    for key, day, value in items:
        old = counters.get(key)
        if old is None:
            undo.append((forget_key, counters, keys, key))
            counters[key] = buckets.single(day, value)
            keys.append(key)
            continue
        before = buckets.get(old, day)
        if buckets.total(old) - before + value > U64_MAX:
            raise overflow(name, key)
        undo.append((put_back, counters, key, day, before))
        counters[key] = buckets.put(old, day, value)
