"""Days as people read them, and ranges of them as requests carry them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

from karma_client.days import dashed, day_number, to_date
from karmactl.diagnostics import usage

RANGE_DAYS = 367
"""Days of the longest range that one request takes: both ends count, and they are at most 366 apart."""


def today() -> int:
    """Return the UTC day by this machine's clock."""
    return day_number(datetime.fromtimestamp(time.time(), UTC).date())


def days_ago(days: int) -> int:
    """Return the UTC day so many days before today. Raises OverflowError for one before the year 1."""
    return day_number(to_date(today()) - timedelta(days=days))


def day_range(first: int | None, last: int | None) -> dict[str, int] | None:
    """Return `{from,to}` of two ends, None without any.

    Without a last day it ends today, without a first it begins 366 days before the last. Raises CtlError for
    ends in the wrong order or too far apart.
    """
    if first is None and last is None:
        return None
    found = {"from": 0, "to": today() if last is None else last}
    found["from"] = _days_later(found["to"], 1 - RANGE_DAYS) if first is None else first
    if found["from"] > found["to"]:
        raise usage(f"--from {dashed(found['from'])} is after --to {dashed(found['to'])}", "exchange them")
    if (to_date(found["to"]) - to_date(found["from"])).days >= RANGE_DAYS:
        raise usage("a range is at most 366 days from its first to its last", "ask year by year")
    return found


def pieces(first: int, last: int) -> Iterator[dict[str, int]]:
    """Return ranges that requests take and that together are the days of first to last."""
    while first <= last:
        end = min(last, _days_later(first, RANGE_DAYS - 1))
        yield {"from": first, "to": end}
        if end == last:
            return
        first = _days_later(end, 1)


def _days_later(day: int, days: int) -> int:
    try:
        return day_number(to_date(day) + timedelta(days=days))
    except OverflowError:
        return day_number(date.max if days > 0 else date(1000, 1, 1))
