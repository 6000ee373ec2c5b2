"""get, sum, points, add, sub, set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from karma_client.days import dashed
from karmactl.commands.series import warn_of_saturation
from karmactl.days import day_range, pieces, today
from karmactl.diagnostics import usage
from karmactl.output import Row, Shown, said
from karmactl.run import Run


def get(run: Run, series: str, key: int, from_: int | None, to: int | None, day: int | None) -> Shown:
    """Print what a key holds; a long range is asked for in pieces."""
    if day is not None:
        if from_ is not None or to is not None:
            raise usage("--day and --from or --to exclude each other", "leave one of them out")
        from_ = to = day
    ranges = _ranges(from_, to)
    value = sum(run.ask("counter.sum", series=series, key=key, range=one) for one in ranges)
    first, last = ranges[0], ranges[-1]
    data = {
        "series": series,
        "key": key,
        "value": value,
        "from": dashed(first["from"]) if first else None,
        "to": dashed(last["to"]) if last else None,
    }
    return said(str(value), data)


def _ranges(first: int | None, last: int | None) -> list[dict[str, int] | None]:
    """The ranges of requests that cover the days asked for; [None] for all days."""
    if first is None:
        return [day_range(None, last)]
    end = today() if last is None else last
    if first > end:
        # Worded in one place.
        day_range(first, end)
    return list(pieces(first, end))


def sum_(run: Run, series: str, key: tuple[int, ...], from_: int | None, to: int | None) -> list[Row]:
    """Print what keys hold, and their sum; or what the whole series does."""
    days = day_range(from_, to)
    if not key:
        found = run.ask("tree.summary", series=series, range=days)
        warn_of_saturation(run, found)
        return [{"key": "all", "value": found["total"]}]
    rows: list[Row] = run.ask("counter.batch_sum", series=series, keys=list(key), range=days)
    return [*rows, {"key": "all", "value": sum(row["value"] for row in rows)}] if len(rows) > 1 else rows


def points(run: Run, series: str, key: int, from_: int | None, to: int | None) -> Iterator[Row]:
    """List a key's buckets; without --from it is the days that one request takes."""
    ranges = _ranges(from_, to if from_ is not None or to is not None else today())
    for days in ranges:
        found: dict[str, Any] = run.ask("counter.series", series=series, key=key, range=days)
        for day, value in sorted(found.items()):
            yield {"day": dashed(day), "value": value}


def add(
    run: Run, series: str, key: int, value: int | None, day: int | None, idempotency_key: str | None
) -> Shown:
    """Add to a key's day."""
    added = run.send(
        "counter.increment", series=series, key=key, value=value, bucket=day, idempotency_key=idempotency_key
    )
    return said(str(added), {"series": series, "key": key, "added": added})


def sub(
    run: Run, series: str, key: int, value: int | None, day: int | None, idempotency_key: str | None
) -> Shown:
    """Take from a key's day."""
    taken = run.send(
        "counter.decrement", series=series, key=key, value=value, bucket=day, idempotency_key=idempotency_key
    )
    return said(str(taken), {"series": series, "key": key, "taken": taken})


def set_(run: Run, series: str, key: int, value: int, day: int, idempotency_key: str | None) -> Shown:
    """Set a key's day to exactly a value."""
    run.send("series.batch_set", series=series, items=[[key, day, value]], idempotency_key=idempotency_key)
    return said(str(value), {"series": series, "key": key, "value": value, "day": dashed(day)})
