"""Reads of counters and series.

Reads of a whole series may be large. They are generators that yield after every slice of keys, so
that the service can serve others in between and stop them at the query timeout. They see writes
made meanwhile: each key as it is when its slice is read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator
from heapq import nsmallest
from itertools import islice
from operator import attrgetter
from typing import Any

from karma.core import buckets
from karma.core.buckets import DAY_BITS, Counter
from karma.core.store import Series, tree_not_found
from karma.engine.dispatch import Engine
from karma.limits import (
    BRANCHES,
    READ_SLICE_KEYS,
    TREE_KEYS_DEFAULT_LIMIT,
    TREE_KEYS_MAX_LIMIT,
    TREE_TOP_DEFAULT_LIMIT,
    TREE_TOP_MAX_LIMIT,
    U64_MAX,
)
from karma.protocol import fields, pages, replies

Request = dict[str, Any]
Slices = Generator[None, None, bytes]


# -- Single counters and lists of keys -------------------------------------------------------------


def counter_sum(engine: Engine, request: Request) -> bytes:
    """counter.sum"""
    if len(request) == 4:
        # The plain request: v, op, series and key.
        name, key = request.get("series"), request.get("key")
        series = engine.store.series.get(name) if type(name) is str else None
        if series is not None and type(key) is int and key >= 0:
            return replies.number(buckets.total(series.counters.get(key, 0)))
    engine.check_names(request)
    name = engine.series_name(request)
    key = fields.u64(request, "key")
    span = fields.optional_range(request)
    counter = find(engine, name).counters.get(key, 0)
    return replies.number(buckets.total(counter) if span is None else buckets.range_sum(counter, *span))


def counter_series(engine: Engine, request: Request) -> bytes:
    """counter.series"""
    name = engine.series_name(request)
    key = fields.u64(request, "key")
    span = fields.day_range(request)
    counter = find(engine, name).counters.get(key, 0)
    return engine.reply(dict(buckets.range_items(counter, *span)))


def batch_sum(engine: Engine, request: Request) -> bytes:
    """counter.batch_sum"""
    name = engine.series_name(request)
    keys = fields.keys(request)
    span = fields.optional_range(request)
    find_counter = find(engine, name).counters.get
    counters = [find_counter(key, 0) for key in keys]
    if span is None:
        sums = [counter >> DAY_BITS if isinstance(counter, int) else counter[0] for counter in counters]
    else:
        sums = [buckets.range_sum(counter, *span) for counter in counters]
    count_batch_read(engine, len(keys))
    return engine.reply([{"key": key, "value": value} for key, value in zip(keys, sums, strict=True)])


def multi_sum(engine: Engine, request: Request) -> bytes:
    """counter.multi_sum"""
    span = fields.optional_range(request)
    wanted = [
        (engine.series_name(item), fields.u64(item, "key")) for item in fields.objects(request, "items")
    ]
    found = []
    for name, key in wanted:
        counter = find(engine, name).counters.get(key, 0)
        value = buckets.total(counter) if span is None else buckets.range_sum(counter, *span)
        found.append({"series": name, "key": key, "value": value})
    count_batch_read(engine, len(found))
    return engine.reply(found)


def count_batch_read(engine: Engine, keys: int) -> None:
    """Count a read of many keys."""
    engine.counters.batch_reads += 1
    engine.counters.batch_read_keys += keys


def find(engine: Engine, name: str) -> Series:
    """Return a series. Raises RequestError (not_found)."""
    series = engine.store.series.get(name)
    if series is None:
        raise tree_not_found(name)
    return series


# -- Whole series ------------------------------------------------------------------------------------


def tree_list(engine: Engine, request: Request) -> bytes:
    """tree.list"""
    page = pages.requested(request)
    if page is None:
        return engine.reply(list(engine.store.series))
    rows = list(engine.store.series.values())
    if page.cursor is not None:
        rows = rows[bisect_right(rows, _ordinal(page.cursor), key=attrgetter("ordinal")) :]
    maximum = engine.settings.max_response_bytes
    names, next_cursor = pages.fill(
        page, rows, attrgetter("name"), lambda series: str(series.ordinal), maximum
    )
    return engine.reply({"series": names, "next_cursor": next_cursor})


def _ordinal(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit()):
        raise fields.invalid("Field cursor must be the next_cursor of a page of tree.list")
    return int(cursor)


def tree_info(engine: Engine, request: Request) -> Slices:
    """tree.info"""
    series = find(engine, engine.series_name(request))
    return _tree_info(engine, series)


def _tree_info(engine: Engine, series: Series) -> Slices:
    key_count = bucket_count = total = 0
    for counters in _slices(series):
        key_count += len(counters)
        bucket_count += sum([buckets.bucket_count(counter) for _, counter in counters])
        total += sum([buckets.total(counter) for _, counter in counters])
        yield
    return engine.reply(
        {
            "tree": series.name,
            "key_count": key_count,
            "bucket_count": bucket_count,
            **_displayed(total),
            "branches": BRANCHES,
        }
    )


def tree_keys(engine: Engine, request: Request) -> Slices:
    """tree.keys"""
    name = engine.series_name(request)
    limit = fields.limit(request, "limit", TREE_KEYS_DEFAULT_LIMIT, TREE_KEYS_MAX_LIMIT)
    # A page without a cursor starts at the smallest key, which may be 0: nothing is above "none".
    cursor = None if request.get("cursor") is None else fields.u64(request, "cursor")
    return _tree_keys(engine, find(engine, name), limit, cursor)


def _tree_keys(engine: Engine, series: Series, limit: int, cursor: int | None) -> Slices:
    above = -1 if cursor is None else cursor
    page: list[int] = []
    for counters in _slices(series):
        worst = page[-1] if len(page) > limit else U64_MAX
        page += [key for key, _ in counters if above < key <= worst]
        if len(page) > limit:
            page = nsmallest(limit + 1, page)
        yield
    page.sort()
    found = series.counters
    keys = [{"key": key, "total": buckets.total(found.get(key, 0))} for key in page[:limit]]
    return engine.reply(
        {
            "tree": series.name,
            "limit": limit,
            "cursor": cursor,
            "next_cursor": page[limit - 1] if len(page) > limit else None,
            "keys": keys,
        }
    )


def _displayed(total: int) -> dict[str, int | bool]:
    """Return a series' total for people: one absurd key must not keep the rest from being looked at."""
    return {"total": total} if total <= U64_MAX else {"total": U64_MAX, "total_saturated": True}


def tree_summary(engine: Engine, request: Request) -> Slices:
    """tree.summary"""
    name = engine.series_name(request)
    span = fields.optional_range(request)
    return _tree_summary(engine, find(engine, name), span)


def _tree_summary(engine: Engine, series: Series, span: tuple[int, int] | None) -> Slices:
    total = active_keys = bucket_count = 0
    for counters in _slices(series):
        for _, counter in counters:
            if span is None:
                used, count = buckets.total(counter), buckets.bucket_count(counter)
            else:
                inside = buckets.range_items(counter, *span)
                used, count = sum([value for _, value in inside]), len(inside)
            total += used
            # Of all days every known key counts, of a range those that used something in it: as the original.
            active_keys += span is None or used > 0
            bucket_count += count
        yield
    summary: dict[str, Any] = {
        "tree": series.name,
        **_displayed(total),
        "active_keys": active_keys,
        "bucket_count": bucket_count,
    }
    if span is not None:
        summary |= {"range_from": span[0], "range_to": span[1]}
    return engine.reply(summary)


def tree_top(engine: Engine, request: Request) -> Slices:
    """tree.top"""
    name = engine.series_name(request)
    limit = fields.limit(request, "limit", TREE_TOP_DEFAULT_LIMIT, TREE_TOP_MAX_LIMIT)
    span = fields.optional_range(request)
    return _tree_top(engine, find(engine, name), limit, span)


def _tree_top(engine: Engine, series: Series, limit: int, span: tuple[int, int] | None) -> Slices:
    if span is None:
        value_of: Callable[[Counter], int] = buckets.total
    else:
        first, last = span

        def value_of(counter: Counter) -> int:
            return buckets.range_sum(counter, first, last)

    top: list[tuple[int, int]] = []
    for counters in _slices(series):
        values = [(-value_of(counter), key) for key, counter in counters]
        top = nsmallest(limit, top + [pair for pair in values if pair[0]])
        yield
    items = [{"key": key, "value": -negated} for negated, key in top]
    return engine.reply({"tree": series.name, "limit": limit, "items": items})


def tree_series(engine: Engine, request: Request) -> Slices:
    """tree.series"""
    name = engine.series_name(request)
    span = fields.day_range(request)
    return _tree_series(engine, find(engine, name), span)


def _tree_series(engine: Engine, series: Series, span: tuple[int, int]) -> Slices:
    parts: list[bytes] = []
    size_bytes = 0
    for counters in _slices(series):
        found = {key: dict(buckets.range_items(counter, *span)) for key, counter in counters}
        part = replies.json_of(found)[1:-1]
        size_bytes += len(part) + 1
        if engine.settings.max_response_bytes and size_bytes > engine.settings.max_response_bytes:
            engine.bounded(b" " * size_bytes)
        parts.append(part)
        yield
    return engine.bounded(replies.success_of_json(b"{%b}" % b",".join(parts)))


def _slices(series: Series) -> Iterator[list[tuple[int, Counter]]]:
    """Yield a series' (key, counter) pairs in slices, keys as they were at the start."""
    if len(series.counters) <= READ_SLICE_KEYS:
        yield list(series.counters.items())
        return
    # A copy of the keys, because writes between slices may change the dict's size.
    keys = iter(list(series.counters))
    while slice_of_keys := list(islice(keys, READ_SLICE_KEYS)):
        found = series.counters
        yield [(key, found[key]) for key in slice_of_keys if key in found]
