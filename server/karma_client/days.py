"""Days as callers may write them, and as requests carry them."""

from __future__ import annotations

import contextlib
from datetime import date, datetime
from typing import Any

from karma_client.errors import InvalidArgumentError

Day = int | str | date
"""A UTC day: `20260505`, `"2026-05-05"`, `"20260505"` or a `datetime.date`."""

Days = tuple[Day, Day]
"""The first and the last day of a range, both inclusive."""


def day_number(day: Day) -> int:
    """Return a day as the integer YYYYMMDD. Raises InvalidArgumentError for what is no calendar date.

    >>> day_number("2026-05-05"), day_number(date(2026, 5, 5)), day_number(20260505)
    (20260505, 20260505, 20260505)
    """
    if isinstance(day, date):
        if isinstance(day, datetime):
            # Which UTC day a moment belongs to depends on its zone, and a naive one has none.
            raise InvalidArgumentError(
                f"a day is wanted, and {day!r} is a moment: pass moment.astimezone(UTC).date()"
            )
        return day.year * 10_000 + day.month * 100 + day.day
    return day_number(to_date(day))


def to_date(day: int | str) -> date:
    """Return a day of the protocol as a date. Raises InvalidArgumentError."""
    digits = str(day)
    if len(digits) == 10 and digits[4] == digits[7] == "-":
        digits = digits.replace("-", "")
    if len(digits) == 8 and digits.isascii() and digits.isdigit():
        with contextlib.suppress(ValueError):
            return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    raise InvalidArgumentError(f"{day!r} is no day: give YYYYMMDD, YYYY-MM-DD or a datetime.date")


def dashed(day: int | str) -> str:
    """Return a day of the protocol as 2026-05-05; one that is no date, from old files, as it is."""
    text = str(day)
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 else text


def range_fields(days: Days | None) -> dict[str, Any] | None:
    """Return a range as a request carries it, None for all days."""
    if days is None:
        return None
    first, last = days
    return {"from": day_number(first), "to": day_number(last)}
