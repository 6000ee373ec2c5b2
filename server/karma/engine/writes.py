"""Writes: a request becomes a log entry with its fields resolved, which the store applies.

The same entry is what recovery and followers apply later, so a write has one meaning everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from karma.core import buckets
from karma.core.idempotency import Record, fingerprint, operation_of
from karma.core.ingest import GRANULARITY, MODES
from karma.engine.dispatch import Engine
from karma.errors import ErrorCode, RequestError
from karma.limits import MAX_PENDING_DELETIONS, MAX_STREAM_ID_BYTES, PRUNE_MAX_LIMIT
from karma.ops import BY_NAME
from karma.protocol import fields, replies
from karma.protocol.fields import known_days
from karma.protocol.replies import SMALL_NUMBERS

Request = dict[str, Any]
Entry = dict[str, Any]

_INCREMENT = b'{"v":2,"op":"counter.increment","series":%b,"key":%d,"bucket":%d,"value":%d}'


# -- The way of every write ----------------------------------------------------------------------


def write(engine: Engine, request: Request, entry: Entry) -> bytes:
    """Apply an entry once, under the request's idempotency key if it has one, and return the reply."""
    engine.check_writable()
    key = fields.idempotency_key(request)
    if key is None:
        response = engine.store.apply(entry, engine.now_unix)
        note(engine, entry)
        # Not bounded like a read's: what is written must not be answered with response_too_large.
        return replies.success(response)
    return write_once(engine, request, entry, key, lambda: engine.store.apply(entry, engine.now_unix))


def write_once(engine: Engine, request: Request, entry: Entry, key: str, apply: Callable[[], Any]) -> bytes:
    """Return what is remembered under a key, or apply, remember and log the entry.

    `apply` may return None after all: then nothing is remembered or logged, and the caller answers.
    """
    store, counters = engine.store, engine.counters
    record = store.records.get(key, engine.expiry_unix)
    if record is None:
        fields.check_new_name(key, "idempotency_key")
    if (
        record is not None
        and "bucket" in entry
        and request.get("bucket") is None
        and request.get("date") is None
    ):
        # A retry that leaves the bucket out means the day on which the first one was given it.
        entry["bucket"] = record.today or _day_of(record.created_at_unix)
    payload = fingerprint(entry)
    asserted = fields.asserted_fingerprint(request)
    if (asserted is not None and asserted != payload) or (
        record is not None and record.fingerprint != payload
    ):
        counters.idempotency_conflicts += 1
        raise RequestError(
            ErrorCode.IDEMPOTENCY_CONFLICT,
            "Idempotency key was already used with a different request"
            if record is not None
            else "Field fingerprint does not match this request",
        )
    if record is not None:
        counters.idempotency_hits += 1
        return replies.remembered(record.response, idempotent=True)
    response = apply()
    if response is None:
        return b""
    if store.records.was_evicted(key):
        counters.idempotency_evicted_retries += 1
    created_at_unix = engine.created_at_unix
    today = engine.today if engine.today != _day_of(created_at_unix) else None
    record = Record(operation_of(entry), payload, response, created_at_unix, today)
    store.records.put(key, record)
    store.undo.append((store.records.forget, key))
    store.records.trim(created_at_unix)
    counters.idempotency_writes += 1
    entry["idempotency_key"] = key
    if asserted is not None and "consume" not in entry:
        # The original checks a logged fingerprint against its own, which knows no limits.
        entry["fingerprint"] = asserted
    entry["idempotency_created_at_unix"] = created_at_unix
    if today is not None:
        entry["idempotency_today"] = today
    if entry["op"] in ("counter.batch_reset", "counter.batch_delete_range"):
        # What these answered cannot be told from the entry once a snapshot is ahead of it.
        entry["response"] = response
    note(engine, entry)
    return replies.remembered(response, idempotent=False)


def note(engine: Engine, entry: Entry) -> None:
    """Note an applied entry for the log, and count the items of a batch."""
    engine.log(entry)
    items = entry.get("items", entry.get("keys"))
    # An empty batch_set touches nothing, not even the series: the original does not count it either.
    if items is not None and (items or entry["op"] != "series.batch_set"):
        engine.counters.batch_writes += 1
        engine.counters.batch_write_items += len(items)


def _day_of(unix: int) -> int:
    return _date(unix // 86_400)


@lru_cache(maxsize=8)
def _date(days: int) -> int:
    """Return a number of days since 1970 as YYYYMMDD: writes of one day ask for the same one."""
    moment = datetime.fromtimestamp(days * 86_400, UTC)
    return moment.year * 10_000 + moment.month * 100 + moment.day


# -- Counters ------------------------------------------------------------------------------------


def increment(engine: Engine, request: Request) -> bytes:
    """counter.increment"""
    # The plain request that makes up nearly all traffic: v, op, series and key, with or without
    # bucket and value, nothing else. It skips the entry dict and half of the time.
    size = len(request)
    try:
        name, key = request["series"], request["key"]
        if size == 6:
            day, value = request["bucket"], request["value"]
        elif size == 5 and "value" in request:
            day, value = engine.today, request["value"]
        elif size == 5:
            day, value = request["bucket"], 1
        else:
            day, value = (engine.today, 1) if size == 4 else (0, 0)
    except KeyError:
        name = key = day = value = None
    if (
        type(name) is str
        and type(key) is type(day) is type(value) is int
        and key >= 0 < value <= engine.max_value
        and (day in known_days or day == engine.today)
        and engine.refusal is None
    ):
        store = engine.store
        series = store.series.get(name)
        if series is not None:
            store.increment(name, key, day, value)
            engine.entries.append(_INCREMENT % (series.json_name, key, day, value))
            return SMALL_NUMBERS[value] if value < 1024 else replies.number(value)
    engine.check_names(request)
    return write(engine, request, single_entry(engine, request, "counter.increment"))


def decrement(engine: Engine, request: Request) -> bytes:
    """counter.decrement"""
    return write(engine, request, single_entry(engine, request, "counter.decrement"))


def single_entry(engine: Engine, request: Request, op: str) -> Entry:
    """Return the entry of a write to one bucket."""
    entry: Entry = {
        "op": op,
        "series": engine.series_name(request),
        "key": fields.u64(request, "key"),
        "bucket": fields.bucket(request, engine.today),
        "value": fields.u64(request, "value", 1, minimum=1),
    }
    _check_amount(engine, entry["value"], "value")
    return entry


def _check_amount(engine: Engine, value: int, name: str) -> None:
    """Raise RequestError for a value that this server's operator called absurd."""
    if value > engine.max_value:
        raise fields.invalid(
            f"Field {name} exceeds max-value ({engine.max_value}), the largest value that this server takes "
            "in one write; nothing was written"
        )


def _stored_days(engine: Engine, request: Request, name: str) -> Callable[[int, int], bool]:
    """Return what tells whether a key has a bucket; a retry may name one that its first attempt removed."""
    key = fields.idempotency_key(request)
    is_retry = key is not None and engine.store.records.get(key, engine.expiry_unix) is not None
    series = engine.store.series.get(name)

    def is_stored(key: int, day: int) -> bool:
        return day >= 0 and (is_retry or (series is not None and buckets.get(series.find(key, 0), day) > 0))

    return is_stored


def _items(
    engine: Engine,
    request: Request,
    *,
    allow_zero: bool,
    is_stored: Callable[[int, int], bool] | None = None,
) -> Sequence[list[int]]:
    """Return the ``items`` of a request, none of them with an absurd value."""
    items = fields.items(request, allow_zero=allow_zero, is_stored=is_stored)
    if engine.settings.max_value:
        _check_amount(engine, max((item[2] for item in items), default=0), "items value")
    return items


def reset(engine: Engine, request: Request) -> bytes:
    """counter.reset"""
    entry = {"op": "counter.reset", "series": engine.series_name(request), "key": fields.u64(request, "key")}
    return write(engine, request, entry)


def batch_add(engine: Engine, request: Request) -> bytes:
    """series.batch_add"""
    return _batch(engine, request, "series.batch_add", allow_zero=False)


def batch_set(engine: Engine, request: Request) -> bytes:
    """series.batch_set"""
    return _batch(engine, request, "series.batch_set", allow_zero=True)


def _batch(engine: Engine, request: Request, op: str, *, allow_zero: bool) -> bytes:
    name = engine.series_name(request)
    is_stored = _stored_days(engine, request, name) if allow_zero else None
    items = _items(engine, request, allow_zero=allow_zero, is_stored=is_stored)
    return write(engine, request, {"op": op, "series": name, "granularity": GRANULARITY, "items": items})


def batch_reset(engine: Engine, request: Request) -> bytes:
    """counter.batch_reset"""
    entry = {"op": "counter.batch_reset", "series": engine.series_name(request), "keys": fields.keys(request)}
    return write(engine, request, entry)


def batch_delete_range(engine: Engine, request: Request) -> bytes:
    """counter.batch_delete_range"""
    entry = {
        "op": "counter.batch_delete_range",
        "series": engine.series_name(request),
        "keys": fields.keys(request),
        "range": _range(request),
    }
    return write(engine, request, entry)


def delete_range(engine: Engine, request: Request) -> bytes:
    """counter.delete_range and tree.delete_range"""
    entry: Entry = {"op": request["op"], "series": engine.series_name(request)}
    if request["op"] == "counter.delete_range":
        entry["key"] = fields.u64(request, "key")
    entry["range"] = _range(request)
    if request["op"] == "tree.delete_range":
        _check_room(engine, entry["series"])
    return write(engine, request, entry)


def _check_room(engine: Engine, name: str) -> None:
    """Raise RequestError when so many deletions of a series are pending that reads would take long."""
    series = engine.store.series.get(name)
    if series is not None and len(series.pending) >= MAX_PENDING_DELETIONS:
        raise RequestError(
            ErrorCode.OVERLOADED,
            f'{MAX_PENDING_DELETIONS} deletions are still being applied to the keys of series "{name}"; '
            "try again in some seconds",
        )


def _range(request: Request) -> dict[str, int]:
    first, last = fields.day_range(request)
    return {"from": first, "to": last}


# -- Series --------------------------------------------------------------------------------------


def of_series(engine: Engine, request: Request) -> bytes:
    """tree.create, tree.drop, tree.reset and series.compact: a series and nothing else."""
    op = BY_NAME[request["op"]]
    entry = {"op": op.name, "series": engine.series_name(request)}
    if op.name in ("tree.reset", "series.compact"):
        _check_room(engine, entry["series"])
    if op.name == "series.compact":
        reply = write(engine, _without_key(request), entry)
        engine.counters.compactions += 1
        return reply
    return write(engine, request if op.idempotent else _without_key(request), entry)


def delete_before(engine: Engine, request: Request) -> bytes:
    """series.delete_before"""
    name = engine.series_name(request)
    before = request.get("before")
    if before is None:
        before = request.get("date")
        if before is None:
            raise fields.invalid("Field before is required")
    entry = {"op": "series.delete_before", "series": name, "before": fields.check_day(before, "before")}
    _check_room(engine, name)
    reply = write(engine, _without_key(request), entry)
    engine.counters.retentions += 1
    return reply


def compact_all(engine: Engine, request: Request) -> bytes:
    """system.compact"""
    for name in engine.store.series:
        _check_room(engine, name)
    reply = write(engine, _without_key(request), {"op": "system.compact"})
    engine.counters.compactions += 1
    return reply


def _without_key(request: Request) -> Request:
    """Return a request whose idempotency key does not count: its op takes none."""
    return {name: value for name, value in request.items() if name != "idempotency_key"}


# -- Ingest and idempotency ----------------------------------------------------------------------


def ingest_begin(engine: Engine, request: Request) -> bytes:
    """ingest.begin"""
    stream_id = fields.text(request, "stream_id", MAX_STREAM_ID_BYTES)
    mode = fields.text(request, "mode", 64)
    if mode not in MODES:
        raise fields.invalid(f"Unsupported ingest mode {mode}")
    entry = {"op": "ingest.begin", "stream_id": stream_id, "mode": mode}
    if "granularity" in request:
        # Part of the stream's identity: Karma 1.0 takes any and stores days, ours does, too.
        entry["granularity"] = fields.text(request, "granularity", 64)
    if engine.store.streams.find(stream_id) is None:
        fields.check_new_name(stream_id, "stream_id")
        fields.check_new_name(entry.get("granularity", ""), "granularity")
        return write(engine, _without_key(request), entry)
    # Begun before: the answer changes nothing, so it adds no entry.
    engine.check_writable()
    return replies.success(engine.store.apply(entry, engine.now_unix))


def ingest_chunk(engine: Engine, request: Request) -> bytes:
    """ingest.chunk"""
    counters = engine.counters
    try:
        stream_id = fields.text(request, "stream_id", MAX_STREAM_ID_BYTES)
        stream = engine.store.streams.find(stream_id)
        entry = {
            "op": "ingest.chunk",
            "stream_id": stream_id,
            "series": engine.series_name(request),
            "chunk_seq": fields.u64(request, "chunk_seq", minimum=1),
            "items": _items(engine, request, allow_zero=stream is None or stream.mode != "add"),
        }
        engine.check_writable()
        response = engine.store.apply(entry, engine.now_unix)
    except RequestError:
        counters.ingest_chunks_rejected += 1
        raise
    if response["skipped"]:
        counters.ingest_chunks_skipped += 1
    else:
        counters.ingest_chunks_applied += 1
        counters.ingest_items_applied += response["applied"]
        note(engine, entry)
    return replies.success(response)


def ingest_end(engine: Engine, request: Request) -> bytes:
    """ingest.commit and ingest.abort"""
    entry = {"op": request["op"], "stream_id": fields.text(request, "stream_id", MAX_STREAM_ID_BYTES)}
    engine.check_writable()
    response = engine.store.apply(entry, engine.now_unix)
    if response["status"] != "already_committed":
        engine.log(entry)
    return replies.success(response)


def prune(engine: Engine, request: Request) -> bytes:
    """idempotency.prune"""
    entry: Entry = {"op": "idempotency.prune", "before": _time(request)}
    if request.get("limit") is not None:
        entry["limit"] = fields.limit(request, "limit", PRUNE_MAX_LIMIT, PRUNE_MAX_LIMIT)
    return write(engine, _without_key(request), entry)


def _time(request: Request) -> int:
    """Return the field ``before`` as unix seconds."""
    before = request.get("before")
    if type(before) is not str:
        return fields.u64(request, "before")
    try:
        moment = datetime.fromisoformat(before)
    except ValueError:
        raise fields.invalid("Field before must be unix seconds or an RFC 3339 time") from None
    if moment.tzinfo is None:
        raise fields.invalid("Field before must name its time zone, such as 2026-05-29T00:00:00Z")
    return max(int(moment.timestamp()), 0)
