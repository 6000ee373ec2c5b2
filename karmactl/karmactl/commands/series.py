"""series list, info, keys, top, summary, create, drop, reset, compact, delete-before."""

from __future__ import annotations

from collections.abc import Iterator

from karma_client.days import dashed
from karma_client.errors import advanced
from karmactl.days import day_range
from karmactl.output import Row
from karmactl.run import Run

OF_TOOLS = "__karma_"
"""What names of series begin with that tools write to: a canary to see whether writing works, a benchmark."""
PAGE_KEYS = 1000


def visible(names: list[str], *, all_: bool) -> list[str]:
    """Return the names of series that are somebody's data, or all."""
    return names if all_ else [name for name in names if not name.startswith(OF_TOOLS)]


def list_(run: Run, *, all: bool, match: str | None) -> list[Row]:  # noqa: A002  the option's name
    """List all series."""
    names = visible(run.ask("tree.list"), all_=all)
    return [{"series": name} for name in names if match is None or match in name]


def info(run: Run, series: str) -> Row:
    """Show what a series holds."""
    found = run.ask("tree.info", series=series)
    warn_of_saturation(run, found)
    return {"series": series, **{name: found[name] for name in ("key_count", "bucket_count", "total")}}


def keys(run: Run, series: str, limit: int | None, after: int | None) -> Iterator[Row]:
    """List keys in pages, so that a series of any size streams."""
    left, cursor = limit, after
    while left is None or left > 0:
        size = PAGE_KEYS if left is None else min(left, PAGE_KEYS)
        page = run.ask("tree.keys", series=series, limit=size, cursor=cursor)
        yield from page["keys"]
        if page["next_cursor"] is None:
            return
        cursor = advanced(cursor, page["next_cursor"])
        left = None if left is None else left - size


def top(
    run: Run,
    series: str,
    limit: int,
    from_: int | None,
    to: int | None,
    min: int | None,  # noqa: A002
) -> list[Row]:
    """List the keys that used most."""
    found = run.ask("tree.top", series=series, limit=limit, range=day_range(from_, to))
    items = [item for item in found["items"] if min is None or item["value"] >= min]
    return [{"rank": rank, **item} for rank, item in enumerate(items, 1)]


def summary(run: Run, series: str, from_: int | None, to: int | None) -> Row:
    """Show a series' total, of all days or a range."""
    days = day_range(from_, to)
    found = run.ask("tree.summary", series=series, range=days)
    warn_of_saturation(run, found)
    return {
        "series": series,
        **{name: found[name] for name in ("total", "active_keys", "bucket_count")},
        "from": dashed(days["from"]) if days else None,
        "to": dashed(days["to"]) if days else None,
    }


def warn_of_saturation(run: Run, totals: Row) -> None:
    """Warn when a reply's total is the largest number that it can hold, and not the sum."""
    if totals.get("total_saturated"):
        run.talk.warn(
            f"the keys add up to more than {totals['total']}, the largest total that a reply can hold; "
            "`series top` shows the keys with absurd values"
        )


def create(run: Run, series: str) -> Row:
    """Create a series."""
    run.send("tree.create", series=series)
    return _done("created", series)


def drop(run: Run, series: str) -> Row:
    """Drop a series, after its name was typed."""
    _check_exists(run, series)
    run.confirm(f'drop series "{series}" with all its keys', typed=series)
    run.send("tree.drop", series=series)
    return _done("dropped", series)


def reset(run: Run, series: str, idempotency_key: str | None) -> Row:
    """Empty every counter of a series, after its name was typed."""
    _check_exists(run, series)
    run.confirm(f'empty every counter of series "{series}"', typed=series)
    run.send("tree.reset", series=series, idempotency_key=idempotency_key)
    return _done("reset", series)


def compact(run: Run, series: str | None) -> Row:
    """Remove keys whose total is 0."""
    if series is None:
        run.send("system.compact")
        return _done("compacted", None)
    run.send("series.compact", series=series)
    return _done("compacted", series)


def delete_before(run: Run, series: str, day: int) -> Row:
    """Delete what is older than a day, after the series' name was typed."""
    _check_exists(run, series)
    run.confirm(f'delete everything before {dashed(day)} from series "{series}"', typed=series)
    run.send("series.delete_before", series=series, before=day)
    return {"series": series, "before": dashed(day), "done": "deleted"}


def _check_exists(run: Run, series: str) -> None:
    """Raise KarmaError (not_found) before anything is asked.

    Not by `tree.info`: what a series holds takes the server a pass over every key.
    """
    run.ask("counter.sum", series=series, key=0)


def _done(what: str, series: str | None) -> Row:
    return {"series": series, "done": what}
