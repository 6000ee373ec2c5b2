"""Limits: consume atomically, or check without consuming."""

from __future__ import annotations

from typing import Any

from karma.core import buckets
from karma.core.replay import consume_response
from karma.engine.dispatch import Engine
from karma.engine.reads import count_batch_read
from karma.engine.writes import single_entry, write_once
from karma.protocol import fields, replies

Request = dict[str, Any]
_EVER = (0, 2**64 - 1)


def consume(engine: Engine, request: Request) -> bytes:
    """limit.consume"""
    entry = single_entry(engine, request, "counter.increment")
    limit = fields.u64(request, "limit")
    window, span = _window(request, entry["bucket"])
    consumed: dict[str, Any] = {"limit": limit}
    if window is None:
        consumed["range"] = {"from": span[0], "to": span[1]}
    else:
        consumed["window"] = window
    entry["consume"] = consumed
    engine.check_writable()

    def apply() -> dict[str, object] | None:
        # The bucket of a retry may have been corrected since; then its window moves with it.
        bucket = entry["bucket"]
        first, last = span if window is None else _window_of(window, bucket)
        used = used_in(engine, entry["series"], entry["key"], first, last)
        if used + entry["value"] > limit:
            return None
        engine.store.increment(entry["series"], entry["key"], bucket, entry["value"])
        consumed["used"] = used + entry["value"] if first <= bucket <= last else used
        return consume_response(limit, consumed["used"])

    key = fields.idempotency_key(request)
    if key is not None:
        reply = write_once(engine, request, entry, key, apply)
        if reply:
            engine.counters.limit_allowed += 1
            return reply
    elif (response := apply()) is not None:
        engine.counters.limit_allowed += 1
        engine.log(entry)
        return replies.success(response)
    engine.counters.limit_refused += 1
    used = used_in(engine, entry["series"], entry["key"], *span)
    refused = {"allowed": False, "used": used, "remaining": max(0, limit - used), "limit": limit}
    return engine.reply(refused) if key is None else replies.remembered(refused, idempotent=False)


def check(engine: Engine, request: Request) -> bytes:
    """limit.check"""
    answers = []
    for item in fields.objects(request, "items"):
        name, key, limit = engine.series_name(item), fields.u64(item, "key"), fields.u64(item, "limit")
        _, span = _window(item, fields.bucket(item, engine.today))
        used = used_in(engine, name, key, *span)
        answers.append(
            {
                "series": name,
                "key": key,
                "used": used,
                "remaining": max(0, limit - used),
                "allowed": used + 1 <= limit,
            }
        )
    count_batch_read(engine, len(answers))
    return engine.reply(answers)


def used_in(engine: Engine, name: str, key: int, first: int, last: int) -> int:
    """Return what a key used in a range of days; nothing in a series that does not exist."""
    series = engine.store.series.get(name)
    return 0 if series is None else buckets.range_sum(series.find(key, 0), first, last)


def _window(request: Request, day: int) -> tuple[str | None, tuple[int, int]]:
    """Return a window's name, None for a range, and its first and last day."""
    span = fields.optional_range(request)
    if span is not None:
        if request.get("window") is not None:
            raise fields.invalid("Field window and field range exclude each other")
        return None, span
    window = fields.text(request, "window", 16, "day")
    if window not in ("day", "month", "total"):
        raise fields.invalid(f'Field window must be "day", "month" or "total", not "{window}"')
    return window, _window_of(window, day)


def _window_of(window: str, day: int) -> tuple[int, int]:
    if window == "day":
        return day, day
    return fields.month_of(day) if window == "month" else _EVER
