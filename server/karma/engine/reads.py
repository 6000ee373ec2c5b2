"""Reads of counters and series.

Reads of a whole series, or of a long list of keys, may be large. They are generators that yield after
every slice of keys, so that the service can serve others in between and stop them at the query timeout.
They see writes made meanwhile: each key as it is when its slice is read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from heapq import nsmallest
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

from karma.core import buckets
from karma.core.buckets import DAY_BITS, Counter
from karma.core.series import GONE, Series
from karma.core.store import tree_not_found
from karma.engine.dispatch import OWN_WORK, SHARED_WORK, Engine, Outcome, Slices
from karma.limits import (
    BRANCHES,
    LIST_SLICE_ITEMS,
    PAGE_SLICE_KEYS,
    READ_SLICE_KEYS,
    TREE_KEYS_DEFAULT_LIMIT,
    TREE_KEYS_MAX_LIMIT,
    TREE_TOP_DEFAULT_LIMIT,
    TREE_TOP_MAX_LIMIT,
    U64_MAX,
)
from karma.protocol import fields, pages, replies

Request = dict[str, Any]
Item = TypeVar("Item")
PageSlices = Generator[float, None, list[tuple[int, Counter]]]
PageOf = Callable[[Engine, Series, int, int], PageSlices]
OWN_RUNS = 32
"""Runs that a page sorts for itself. Where there are more, it is the work of all pages that come after it."""


# -- Single counters and lists of keys -------------------------------------------------------------


def counter_sum(engine: Engine, request: Request) -> bytes:
    """counter.sum"""
    if len(request) == 4:
        # The plain request: v, op, series and key.
        name, key = request.get("series"), request.get("key")
        series = engine.store.series.get(name) if type(name) is str else None
        if series is not None and not series.pending and type(key) is int and key >= 0:
            return replies.number(buckets.total(series.counters.get(key, 0)))
    engine.check_names(request)
    name = engine.series_name(request)
    key = fields.u64(request, "key")
    span = fields.optional_range(request)
    counter = find(engine, name).find(key, 0)
    return replies.number(buckets.total(counter) if span is None else buckets.range_sum(counter, *span))


def counter_series(engine: Engine, request: Request) -> bytes:
    """counter.series"""
    name = engine.series_name(request)
    key = fields.u64(request, "key")
    span = fields.day_range(request)
    counter = find(engine, name).find(key, 0)
    return engine.reply(dict(buckets.range_items(counter, *span)))


def batch_sum(engine: Engine, request: Request) -> Outcome:
    """counter.batch_sum"""
    name = engine.series_name(request)
    keys = fields.keys(request)
    span = fields.optional_range(request)
    series = find(engine, name)
    count_batch_read(engine, len(keys))

    def part(some: Sequence[int]) -> list[Any]:
        find_counter = series.find
        counters = [find_counter(key, 0) for key in some]
        if span is None:
            sums = [counter >> DAY_BITS if isinstance(counter, int) else counter[0] for counter in counters]
        else:
            sums = [buckets.range_sum(counter, *span) for counter in counters]
        return [{"key": key, "value": value} for key, value in zip(some, sums, strict=True)]

    return in_parts(engine, keys, part)


def multi_sum(engine: Engine, request: Request) -> Outcome:
    """counter.multi_sum"""
    span = fields.optional_range(request)
    items = fields.objects(request, "items")

    def part(some: Sequence[dict[str, Any]]) -> list[Any]:
        sums = []
        for name, key in [(engine.series_name(item), fields.u64(item, "key")) for item in some]:
            counter = find(engine, name).find(key, 0)
            value = buckets.total(counter) if span is None else buckets.range_sum(counter, *span)
            sums.append({"series": name, "key": key, "value": value})
        return sums

    count_batch_read(engine, len(items))
    return in_parts(engine, items, part)


def in_parts(engine: Engine, items: Sequence[Item], part: Callable[[Sequence[Item]], list[Any]]) -> Outcome:
    """Answer a list with what `part` makes of it, at once if it is short."""
    if len(items) <= LIST_SLICE_ITEMS:
        return engine.reply(part(items))
    return _in_slices(engine, items, part)


def _in_slices(engine: Engine, items: Sequence[Item], part: Callable[[Sequence[Item]], list[Any]]) -> Slices:
    lines = []
    for at in range(0, len(items), LIST_SLICE_ITEMS):
        lines.append(replies.json_of(part(items[at : at + LIST_SLICE_ITEMS]))[1:-1])
        yield OWN_WORK
    return engine.bounded(replies.success_of_json(b"[%b]" % b",".join(lines)))


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
    for keys, counters in series.slices(READ_SLICE_KEYS):
        key_count += len(keys)
        slice_buckets, slice_total = _size_of(counters)
        bucket_count += slice_buckets
        total += slice_total
        yield OWN_WORK
    return engine.reply(
        {
            "tree": series.name,
            "key_count": key_count,
            "bucket_count": bucket_count,
            **_displayed(total),
            "branches": BRANCHES,
        }
    )


def _size_of(counters: Sequence[Counter]) -> tuple[int, int]:
    """Return how many buckets counters have, and what they add up to. Nearly all may be integers."""
    total = sum([counter >> DAY_BITS if isinstance(counter, int) else counter[0] for counter in counters])
    return sum(
        [1 if isinstance(counter, int) else len(counter) >> 1 for counter in counters if counter]
    ), total


def tree_keys(engine: Engine, request: Request) -> Slices:
    """tree.keys"""
    name = engine.series_name(request)
    limit = fields.limit(request, "limit", TREE_KEYS_DEFAULT_LIMIT, TREE_KEYS_MAX_LIMIT)
    # A page without a cursor starts at the smallest key, which may be 0: nothing is above "none".
    cursor = None if request.get("cursor") is None else fields.u64(request, "cursor")
    series = find(engine, name)
    page = _few_keys if len(series.keys) <= engine.store.inline_keys else _many_keys
    return _tree_keys(engine, series, limit, cursor, page)


def _tree_keys(engine: Engine, series: Series, limit: int, cursor: int | None, page_of: PageOf) -> Slices:
    page = yield from page_of(engine, series, limit, -1 if cursor is None else cursor)
    keys = [{"key": key, "total": buckets.total(counter)} for key, counter in page[:limit]]
    return engine.reply(
        {
            "tree": series.name,
            "limit": limit,
            "cursor": cursor,
            "next_cursor": keys[-1]["key"] if len(page) > limit else None,
            "keys": keys,
        }
    )


def _few_keys(_engine: Engine, series: Series, limit: int, above: int) -> PageSlices:
    """Return the first keys above one, and one more, from a series that is sorted in no time."""
    yield OWN_WORK
    return nsmallest(limit + 1, (pair for pair in series.items() if pair[0] > above), key=itemgetter(0))


def _many_keys(engine: Engine, series: Series, limit: int, above: int) -> PageSlices:
    """Return the first keys above one, and one more, from a view that pages after this one will use, too."""
    page: list[tuple[int, Counter]] = []
    is_last = False
    runs = 0
    while not is_last and len(page) <= limit:
        view = engine.store.view_of(series)
        if view.catch_up(series.keys):
            runs += 1
            yield OWN_WORK if runs <= OWN_RUNS else SHARED_WORK
            continue
        keys, is_last = view.above(series.keys, above, min(limit + 1 - len(page), PAGE_SLICE_KEYS))
        find_counter = series.find
        for key in keys:
            counter = find_counter(key, GONE)
            if counter != GONE:
                page.append((key, counter))
        above = keys[-1] if keys else above
        yield OWN_WORK
    return page


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
    for _, counters in series.slices(READ_SLICE_KEYS):
        if span is None:
            # Of all days every known key counts, of a range those that used something in it: as the original.
            active_keys += len(counters)
            count, used = _size_of(counters)
        else:
            inside = [buckets.range_items(counter, *span) for counter in counters]
            sums = [sum([value for _, value in pairs]) for pairs in inside if pairs]
            active_keys += len(sums)
            count, used = sum(map(len, inside)), sum(sums)
        bucket_count += count
        total += used
        yield OWN_WORK
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
    least = 0
    for keys, counters in series.slices(READ_SLICE_KEYS):
        values = [(-value_of(counter), key) for key, counter in zip(keys, counters, strict=True)]
        top += [pair for pair in values if pair[0] < 0 and pair[0] <= least]
        if len(top) > 2 * limit + READ_SLICE_KEYS:
            top = nsmallest(limit, top)
            least = top[-1][0]
        yield OWN_WORK
    items = [{"key": key, "value": -negated} for negated, key in nsmallest(limit, top)]
    return engine.reply({"tree": series.name, "limit": limit, "items": items})


def tree_series(engine: Engine, request: Request) -> Slices:
    """tree.series"""
    name = engine.series_name(request)
    span = fields.day_range(request)
    return _tree_series(engine, find(engine, name), span)


def _tree_series(engine: Engine, series: Series, span: tuple[int, int]) -> Slices:
    parts: list[bytes] = []
    size_bytes = 0
    for keys, counters in series.slices(READ_SLICE_KEYS):
        days = [dict(buckets.range_items(counter, *span)) for counter in counters]
        by_key = dict(zip(keys, days, strict=True))
        part = replies.json_of(by_key)[1:-1]
        if not part:
            yield OWN_WORK
            continue
        size_bytes += len(part) + 1
        if engine.settings.max_response_bytes and size_bytes > engine.settings.max_response_bytes:
            engine.bounded(b" " * size_bytes)
        parts.append(part)
        yield OWN_WORK
    return engine.bounded(replies.success_of_json(b"{%b}" % b",".join(parts)))
