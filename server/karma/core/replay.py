"""Log entries applied on top of snapshots that were taken at different LSNs.

A series' snapshot, the idempotency snapshot and the ingest snapshot each hold the effect of every
entry up to their own LSN. A kill between writing them and truncating the log leaves entries that
some of them hold already: none is applied twice, and none is left out of what lacks it.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from itertools import chain
from typing import Any

from karma.core.idempotency import Record, fingerprint, operation_of
from karma.core.store import Store
from karma.errors import RequestError


class Replay:
    """Applies entries to a store in LSN order; see `apply`."""

    __slots__ = ("_records_lsn", "_series_lsn", "_store", "_streams_lsn")

    def __init__(
        self,
        store: Store,
        series_lsn: Mapping[str, int] | None = None,
        records_lsn: int = 0,
        streams_lsn: int = 0,
    ) -> None:
        self._store = store
        self._series_lsn = dict(series_lsn or {})
        self._records_lsn = records_lsn
        self._streams_lsn = streams_lsn

    def apply(self, lsn: int, entry: Mapping[str, Any], ts_unix: int) -> str | None:
        """Apply one entry where it is still missing.

        `ts_unix` (seconds) is the time the entry was written. Returns a warning when the entry fails
        as it failed for the server that wrote it: the original logs a write before it tries it, and
        skips nothing on reading. Raises `KeyError`, `TypeError` or `ValueError` when it is no entry.
        """
        _check(entry)
        try:
            response = self._apply(lsn, entry, ts_unix)
        except RequestError as error:
            self._store.roll_back()
            return f"entry {lsn} ({entry['op']}) failed at first, too, and is skipped: {error.message}"
        key = entry.get("idempotency_key")
        if key is not None and lsn > self._records_lsn and response is not None:
            created_at_unix, today = (
                entry.get("idempotency_created_at_unix", ts_unix),
                entry.get("idempotency_today"),
            )
            if type(created_at_unix) is not int or not isinstance(today, int | None):
                raise TypeError("its idempotency_created_at_unix or idempotency_today is not a number")
            record = Record(operation_of(entry), fingerprint(entry), response, created_at_unix, today)
            self._store.records.put(str(key), record)
            # At once, as where it was written: nodes at the same LSN remember the same.
            self._store.records.trim(created_at_unix)
        self._store.settle()
        return None

    def _apply(self, lsn: int, entry: Mapping[str, Any], ts_unix: int) -> Any:
        op = entry["op"]
        if op.startswith("ingest."):
            return self._apply_ingest(lsn, entry, ts_unix)
        if op == "idempotency.prune":
            return self._store.apply(entry, ts_unix) if lsn > self._records_lsn else None
        if op == "system.compact":
            for name in list(self._store.series):
                self._apply(lsn, {"op": "series.compact", "series": name}, ts_unix)
            return "OK"
        if lsn <= self._series_lsn.get(entry["series"], 0):
            return response_of(entry)
        response = self._store.apply(entry, ts_unix)
        return response_of(entry) if "consume" in entry else response

    def _apply_ingest(self, lsn: int, entry: Mapping[str, Any], ts_unix: int) -> Any:
        store, op = self._store, entry["op"]
        stream = store.streams.find(entry["stream_id"])
        name = entry.get("series") or (stream.series if stream else None)
        touch_series = lsn > self._series_lsn.get(name or "", 0)
        if lsn > self._streams_lsn:
            if op == "ingest.chunk":
                return store.chunk(entry, touch_series=touch_series)
            if op == "ingest.commit":
                return store.commit(entry["stream_id"], ts_unix, touch_series=touch_series)
            return store.apply(entry, ts_unix)
        if op == "ingest.chunk" and touch_series and stream and stream.mode != "replace_series":
            store.pour(stream.mode, entry["series"], entry["items"])
        return None


def _check(entry: Mapping[str, Any]) -> None:
    """Raise TypeError or OverflowError for numbers and names that no server wrote.

    Not all of them would be noticed when they are applied: a key that is a fraction, or a negative day, is
    counted, and only the next snapshot fails on it.
    """
    find = entry.get
    key, day, value = find("key", 0), find("bucket", 0), find("value", 0)
    if not (type(key) is type(day) is type(value) is int and key >= 0 <= day and value >= 0):
        raise TypeError("its key, bucket or value is no unsigned number")
    if type(find("series", "")) is not str:
        raise TypeError("its series is no text")
    if "items" in entry:
        # The quickest way to look at thousands of numbers.
        array("Q", chain.from_iterable(entry["items"]))


def response_of(entry: Mapping[str, Any]) -> Any:
    """Return what a write answered, from its log entry alone; None where the entry does not say."""
    if "response" in entry:
        return entry["response"]
    consume = entry.get("consume")
    if consume is not None:
        return consume_response(consume["limit"], consume["used"])
    op = entry["op"]
    if op in ("counter.increment", "counter.decrement"):
        return entry["value"]
    if op == "series.batch_add":
        return {"applied": len(entry["items"]), "total": sum(item[2] for item in entry["items"])}
    if op == "series.batch_set":
        return {"applied": len(entry["items"])}
    if op in ("counter.delete_range", "tree.delete_range"):
        return True
    if op in ("counter.batch_reset", "counter.batch_delete_range"):
        return None
    return "OK"


def consume_response(limit: int, used: int) -> dict[str, object]:
    """Return the reply of an allowed limit.consume."""
    return {"allowed": True, "used": used, "remaining": max(0, limit - used), "limit": limit}
