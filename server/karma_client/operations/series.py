"""Series as a whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from karma_client.binding import Performer, operation, stream
from karma_client.calls import Call, nothing, read, texts, write
from karma_client.days import Day, Days, day_number, range_fields
from karma_client.errors import advanced
from karma_client.lazy import LazyModule
from karma_client.operations.counters import IdempotencyKey

if TYPE_CHECKING:
    from datetime import date

    from karma_client import results
else:
    results = LazyModule("karma_client.results")


class Series:
    """Operations on series. What does not create a missing series raises NotFoundError."""

    @operation
    def create_series(self, series: str) -> Call[None]:
        """Create a series; it may exist already."""
        return write("tree.create", nothing, series=series)

    @operation
    def drop_series(self, series: str) -> Call[None]:
        """Drop a series with all it holds."""
        return write("tree.drop", nothing, series=series)

    @operation
    def list_series(self) -> Call[list[str]]:
        """Return the names of all series in creation order."""
        return read("tree.list", texts)

    @operation
    def series_info(self, series: str) -> Call[results.SeriesInfo]:
        """Return keys, buckets and total of a series."""
        return read("tree.info", results.SeriesInfo.of, series=series)

    @operation
    def keys_page(
        self, series: str, *, limit: int | None = None, cursor: int | None = None
    ) -> Call[results.KeysPage]:
        """Return a page of keys above `cursor`, ascending; `limit` is 100 if left out, at most 10,000."""
        return read("tree.keys", results.KeysPage.of, series=series, limit=limit, cursor=cursor)

    @operation
    def summary(self, series: str, days: Days | None = None) -> Call[results.Summary]:
        """Return total, active keys and buckets, of all days or a range."""
        return read("tree.summary", results.Summary.of, series=series, range=range_fields(days))

    @operation
    def top(
        self, series: str, *, limit: int | None = None, days: Days | None = None
    ) -> Call[list[results.KeyValue]]:
        """Return the keys that used most, of all days or a range; `limit` is 50 if left out, at most 1,000.

        >>> client.top("api_requests", limit=1)
        [KeyValue(key=42, value=3)]
        """
        return read("tree.top", results.top, series=series, limit=limit, range=range_fields(days))

    @operation
    def series_points(self, series: str, days: Days) -> Call[dict[int, dict[date, int]]]:
        """Return every key's days in a range. Raises ResponseTooLargeError for a large series."""
        return read("tree.series", results.points_by_key, series=series, range=range_fields(days))

    @operation
    def reset_series(self, series: str, *, idempotency_key: IdempotencyKey | None = None) -> Call[None]:
        """Empty every counter of a series."""
        return write("tree.reset", nothing, series=series, idempotency_key=idempotency_key)

    @operation
    def delete_series_range(
        self, series: str, days: Days, *, idempotency_key: IdempotencyKey | None = None
    ) -> Call[None]:
        """Delete a range of days from every counter of a series."""
        return write(
            "tree.delete_range",
            nothing,
            series=series,
            range=range_fields(days),
            idempotency_key=idempotency_key,
        )

    @operation
    def delete_before(self, series: str, day: Day) -> Call[None]:
        """Delete every day before `day`, then compact."""
        return write("series.delete_before", nothing, series=series, before=day_number(day))

    @operation
    def compact_series(self, series: str) -> Call[None]:
        """Remove the keys of a series whose total is 0."""
        return write("series.compact", nothing, series=series)


class SeriesStreams(Performer):
    """Reads of a series that take several requests."""

    @stream
    async def keys(self, series: str, *, page_size: int = 1000) -> AsyncGenerator[results.KeyTotal, None]:
        """Iterate over all keys with their totals, ascending. Keys that come or go meanwhile may be seen or
        not.

        >>> for entry in client.keys("api_requests"):
        ...     print(entry.key, entry.total)
        42 3
        """
        cursor: int | None = None
        while True:
            page = await self._perform(Series.keys_page(self, series, limit=page_size, cursor=cursor))
            for entry in page.keys:
                yield entry
            if page.next_cursor is None:
                return
            cursor = advanced(cursor, page.next_cursor)
