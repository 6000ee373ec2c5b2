"""Counters and limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from karma_client.binding import operation
from karma_client.calls import Call, nothing, number, read, write
from karma_client.days import Day, Days, day_number, range_fields
from karma_client.lazy import LazyModule

if TYPE_CHECKING:
    from datetime import date

    from karma_client import results
else:
    results = LazyModule("karma_client.results")

IdempotencyKey = str | int
"""Remembered by the server with the response: the same write under the same key counts once."""

Window = Literal["day", "month", "total"]


class LimitQuery(NamedTuple):
    """One limit for `check_limits`; a plain tuple will do."""

    series: str
    key: int
    limit: int
    window: Window = "day"
    day: Day | None = None
    """The day whose window counts; today (UTC) if left out."""


class Counters:
    """Operations on keys of a series. `days` is a pair of first and last day, both inclusive.

    Writes take an `idempotency_key`: with one, the client may send them again when a connection breaks.
    """

    @operation
    def increment(
        self,
        series: str,
        key: int,
        value: int = 1,
        *,
        day: Day | None = None,
        idempotency_key: IdempotencyKey | None = None,
    ) -> Call[int]:
        """Add to a key's day (today, UTC, if left out) and return the value added. Creates the series.

        >>> client.increment("api_requests", 42, 3, day="2026-05-05")
        3
        """
        return write(
            "counter.increment",
            number,
            series=series,
            key=key,
            value=value,
            bucket=_day(day),
            idempotency_key=idempotency_key,
        )

    @operation
    def decrement(
        self,
        series: str,
        key: int,
        value: int = 1,
        *,
        day: Day | None = None,
        idempotency_key: IdempotencyKey | None = None,
    ) -> Call[int]:
        """Take from a key's day, which stops at zero, and return the value asked for.

        Without `day` that is today in UTC. Just after midnight today is empty and nothing is taken: to give
        back what was counted before, name the day on which it was.
        """
        return write(
            "counter.decrement",
            number,
            series=series,
            key=key,
            value=value,
            bucket=_day(day),
            idempotency_key=idempotency_key,
        )

    @operation
    def sum(self, series: str, key: int, days: Days | None = None) -> Call[int]:
        """Return a key's sum, of all days or a range. Raises NotFoundError for a missing series, not for a
        key.

        >>> client.sum("api_requests", 42)
        3
        >>> client.sum("api_requests", 42, ("2026-05-01", "2026-05-31"))
        3
        """
        return read("counter.sum", number, series=series, key=key, range=range_fields(days))

    @operation
    def points(self, series: str, key: int, days: Days) -> Call[dict[date, int]]:
        """Return a key's days that hold something, in a range of at most 366 days.

        >>> client.points("api_requests", 42, (20260501, 20260531))
        {datetime.date(2026, 5, 5): 3}
        """
        return read("counter.series", results.points, series=series, key=key, range=range_fields(days))

    @operation
    def batch_sum(self, series: str, keys: Sequence[int], days: Days | None = None) -> Call[dict[int, int]]:
        """Return the sums of up to 10,000 keys of one series."""
        return read(
            "counter.batch_sum", results.sums, series=series, keys=list(keys), range=range_fields(days)
        )

    @operation
    def multi_sum(
        self, pairs: Iterable[tuple[str, int]], days: Days | None = None
    ) -> Call[list[results.SeriesKeyValue]]:
        """Return the sums of (series, key) pairs, in order. One missing series: NotFoundError for all."""
        items = [{"series": series, "key": key} for series, key in pairs]
        return read(
            "counter.multi_sum", results.SeriesKeyValue.list_of, items=items, range=range_fields(days)
        )

    @operation
    def batch_add(
        self,
        series: str,
        items: Iterable[tuple[int, Day, int]],
        *,
        idempotency_key: IdempotencyKey | None = None,
    ) -> Call[results.BatchAdded]:
        """Add (key, day, value) items, at most 10,000, all or nothing. More of them: see `ingest`."""
        return write(
            "series.batch_add",
            results.BatchAdded.of,
            series=series,
            items=_items(items),
            idempotency_key=idempotency_key,
        )

    @operation
    def batch_set(
        self,
        series: str,
        items: Iterable[tuple[int, Day, int]],
        *,
        idempotency_key: IdempotencyKey | None = None,
    ) -> Call[int]:
        """Set (key, day, value) items exactly, all or nothing, and return how many; 0 deletes a day."""
        return write(
            "series.batch_set", _applied, series=series, items=_items(items), idempotency_key=idempotency_key
        )

    @operation
    def reset(self, series: str, key: int, *, idempotency_key: IdempotencyKey | None = None) -> Call[None]:
        """Empty one counter."""
        return write("counter.reset", nothing, series=series, key=key, idempotency_key=idempotency_key)

    @operation
    def batch_reset(
        self, series: str, keys: Sequence[int], *, idempotency_key: IdempotencyKey | None = None
    ) -> Call[results.BatchReset]:
        """Empty up to 10,000 counters."""
        return write(
            "counter.batch_reset",
            results.BatchReset.of,
            series=series,
            keys=list(keys),
            idempotency_key=idempotency_key,
        )

    @operation
    def delete_range(
        self, series: str, key: int, days: Days, *, idempotency_key: IdempotencyKey | None = None
    ) -> Call[None]:
        """Delete a range of days from one counter."""
        return write(
            "counter.delete_range",
            nothing,
            series=series,
            key=key,
            range=range_fields(days),
            idempotency_key=idempotency_key,
        )

    @operation
    def batch_delete_range(
        self, series: str, keys: Sequence[int], days: Days, *, idempotency_key: IdempotencyKey | None = None
    ) -> Call[results.BatchDeleted]:
        """Delete a range of days from up to 10,000 counters."""
        return write(
            "counter.batch_delete_range",
            results.BatchDeleted.of,
            series=series,
            keys=list(keys),
            range=range_fields(days),
            idempotency_key=idempotency_key,
        )

    @operation
    def consume(
        self,
        series: str,
        key: int,
        limit: int,
        value: int = 1,
        *,
        window: Window | None = None,
        days: Days | None = None,
        day: Day | None = None,
        idempotency_key: IdempotencyKey | None = None,
    ) -> Call[results.LimitResult]:
        """Add `value` unless the window would then hold more than `limit`; atomic.

        `window` is "day" (the default), "month" or "total"; `days` is a window of your own. A refusal is a
        result (`allowed` is False), and nothing was written. Raises UnsupportedError from Karma 1.0.

        >>> client.consume("emails", 7, limit=3, value=2, window="month")
        LimitResult(allowed=True, used=2, remaining=1, limit=3)
        >>> client.consume("emails", 7, limit=3, value=2, window="month").allowed
        False
        """
        return write(
            "limit.consume",
            results.LimitResult.of,
            is_extension=True,
            series=series,
            key=key,
            limit=limit,
            value=value,
            window=window,
            range=range_fields(days),
            bucket=_day(day),
            idempotency_key=idempotency_key,
        )

    @operation
    def check_limits(
        self,
        queries: Iterable[
            LimitQuery
            | tuple[str, int, int]
            | tuple[str, int, int, Window]
            | tuple[str, int, int, Window, Day | None]
        ],
    ) -> Call[list[results.LimitStatus]]:
        """Return what is used and left of up to 10,000 limits, without consuming. A missing series counts as
        0.

        >>> client.check_limits([("emails", 7, 3, "month")])
        [LimitStatus(series='emails', key=7, used=2, remaining=1, allowed=True)]
        """
        items = [_limit_item(LimitQuery(*query)) for query in queries]
        return read("limit.check", results.LimitStatus.list_of, is_extension=True, items=items)


def _day(day: Day | None) -> int | None:
    return None if day is None else day_number(day)


def _limit_item(query: LimitQuery) -> dict[str, Any]:
    item = query._asdict()
    day = _day(item.pop("day"))
    return item if day is None else {**item, "bucket": day}


def _items(items: Iterable[tuple[int, Day, int]]) -> list[tuple[int, int, int]]:
    return [(key, day if type(day) is int else day_number(day), value) for key, day, value in items]


def _applied(response: Any) -> int:
    return number(response["applied"])
