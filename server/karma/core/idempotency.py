r"""Remembered writes: what was answered under each idempotency key, and the fingerprint of a payload.

A fingerprint is SHA-256 (hex) over lines ``name:type:value\n``. A string is
``name:s:<bytes>:<text>``, an unsigned number ``name:u:<n>``, a count ``name:i:<n>``, an absent value
``name:n``; the first line names the command. This is Karma 1.0's own recipe: its records stay
recognisable to us, and ours to it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple

_EVICTED_SLOTS = 1 << 18


class Record(NamedTuple):
    """One remembered success. ``created_at_unix`` is in seconds, as `expiry.created_at` chose it."""

    operation: str
    fingerprint: str
    response: Any
    created_at_unix: int
    today: int | None = None
    """The UTC day (YYYYMMDD) on which it was created, where that is not the day of ``created_at_unix``."""


class _Evicted:
    """Keys of records that went to make room, as 64-bit hashes; a newer key may take an older one's place.

    Two megabytes for the last quarter of a million, where the keys themselves would take thirty times that.
    """

    __slots__ = ("_hashes",)

    def __init__(self) -> None:
        self._hashes = array("q", bytes(8 * _EVICTED_SLOTS))

    def add(self, key: str) -> None:
        """Remember a key."""
        number = hash(key)
        self._hashes[number % _EVICTED_SLOTS] = number

    def has(self, key: str) -> bool:
        """Whether a key was added, as far as is known."""
        number = hash(key)
        return self._hashes[number % _EVICTED_SLOTS] == number


class Records:
    """Idempotency records by key, oldest first, bounded in number and age."""

    __slots__ = (
        "_by_key",
        "_evicted",
        "evicted_count",
        "max_age_seconds",
        "max_records",
        "newest_unix",
        "pruned_count",
    )

    def __init__(self, max_records: int = 1_000_000, max_age_seconds: int = 604_800) -> None:
        self._by_key: dict[str, Record] = {}
        self.max_records = max_records
        self.max_age_seconds = max_age_seconds
        self.pruned_count = 0
        self.evicted_count = 0
        """Records that went to make room, before their time."""
        self._evicted: _Evicted | None = None
        self.newest_unix = 0
        """The newest time that records, or the snapshot that they came from, were given; 0 without any."""

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: str, now_unix: int) -> Record | None:
        """Return what is remembered under a key, or None when it is unknown or too old."""
        record = self._by_key.get(key)
        if record is None or self._is_expired(record, now_unix):
            return None
        return record

    def put(self, key: str, record: Record) -> None:
        """Remember a success, in place of an expired record under the same key."""
        self._by_key.pop(key, None)
        self._by_key[key] = record
        self.newest_unix = max(self.newest_unix, record.created_at_unix)

    def forget(self, key: str) -> None:
        """Take back a ``put`` whose log entry could not be written."""
        self._by_key.pop(key, None)

    def trim(self, now_unix: int) -> None:
        """Drop the oldest records beyond the limits of number and age."""
        excess = max(len(self._by_key) - self.max_records, 0)
        doomed: list[str] = []
        for key, record in self._by_key.items():
            if not self._is_expired(record, now_unix):
                if len(doomed) >= excess:
                    break
                self._note_evicted(key)
            doomed.append(key)
        self._drop(doomed)

    def _note_evicted(self, key: str) -> None:
        self.evicted_count += 1
        if self._evicted is None:
            self._evicted = _Evicted()
        self._evicted.add(key)

    def was_evicted(self, key: str) -> bool:
        """Whether the record of a key went to make room for others, as far as this process knows."""
        return self._evicted is not None and self._evicted.has(key)

    def prune(self, before_unix: int, limit: int | None = None) -> dict[str, Record]:
        """Drop up to ``limit`` records created before a time; return those dropped."""
        doomed: dict[str, Record] = {}
        for key, record in self._by_key.items():
            if limit is not None and len(doomed) >= limit:
                break
            if record.created_at_unix < before_unix:
                doomed[key] = record
        self._drop(doomed)
        return doomed

    def restore(self, dropped: Mapping[str, Record]) -> None:
        """Take back a ``prune`` whose log entry could not be written."""
        self._by_key = {**dropped, **self._by_key}
        self.pruned_count -= len(dropped)

    def items(self) -> Iterable[tuple[str, Record]]:
        """Return (key, record) pairs, oldest first."""
        return self._by_key.items()

    def _is_expired(self, record: Record, now_unix: int) -> bool:
        return bool(self.max_age_seconds) and record.created_at_unix + self.max_age_seconds <= now_unix

    def _drop(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            del self._by_key[key]
            self.pruned_count += 1


def operation_of(entry: Mapping[str, Any]) -> str:
    """Return the name a log entry's operation has in records and fingerprints."""
    return "limit_consume" if "consume" in entry else _OPERATIONS[entry["op"]]


def fingerprint(entry: Mapping[str, Any]) -> str:
    """Return the fingerprint of a write, given as a log entry with its fields resolved."""
    lines = [_command(operation_of(entry))]
    lines += _LINES[entry["op"]](entry)
    return sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


@cache
def _command(operation: str) -> str:
    return _text("command", operation)


def _text(name: str, value: str | None) -> str:
    if value is None:
        return f"{name}:n\n"
    size_bytes = len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    return f"{name}:s:{size_bytes}:{value}\n"


def _number(name: str, value: int | None) -> str:
    return f"{name}:n\n" if value is None else f"{name}:u:{value}\n"


def _one_bucket(entry: Mapping[str, Any]) -> list[str]:
    # All three are there, and most keyed writes come this way: one text instead of four.
    numbers = f"key:u:{entry['key']}\nbucket:u:{entry['bucket']}\nvalue:u:{entry['value']}\n"
    lines = [_text("series", entry["series"]), numbers]
    consume = entry.get("consume")
    if consume is not None:
        lines += [_number("limit", consume["limit"]), _text("window", consume.get("window"))]
        lines += _range(consume)
    return lines


def _items(entry: Mapping[str, Any]) -> list[str]:
    lines = [f"items_count:i:{len(entry['items'])}\n"]
    for key, bucket, value in entry["items"]:
        lines += [_number("item_key", key), _number("item_bucket", bucket), _number("item_value", value)]
    return lines


def _keys(entry: Mapping[str, Any]) -> list[str]:
    return [f"keys_count:i:{len(entry['keys'])}\n", *(_number("key_value", key) for key in entry["keys"])]


def _range(entry: Mapping[str, Any]) -> list[str]:
    span = entry.get("range") or {}
    return [_number("range_from", span.get("from")), _number("range_to", span.get("to"))]


def _series(entry: Mapping[str, Any]) -> str:
    return _text("series", entry["series"])


def _key(entry: Mapping[str, Any]) -> str:
    return _number("key", entry.get("key"))


_OPERATIONS = {
    "counter.increment": "increment",
    "counter.decrement": "decrement",
    "series.batch_add": "batch_add",
    "series.batch_set": "batch_set",
    "counter.reset": "reset",
    "tree.reset": "reset",
    "counter.batch_reset": "batch_reset",
    "counter.delete_range": "delete",
    "tree.delete_range": "delete",
    "counter.batch_delete_range": "batch_delete_range",
    "ingest.begin": "ingest_begin",
    "ingest.chunk": "ingest_chunk",
}

_LINES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "counter.increment": _one_bucket,
    "counter.decrement": _one_bucket,
    "series.batch_add": lambda entry: [_series(entry), *_items(entry)],
    "series.batch_set": lambda entry: [_series(entry), *_items(entry)],
    "counter.reset": lambda entry: [_series(entry), _key(entry)],
    "tree.reset": lambda entry: [_series(entry), _key(entry)],
    "counter.batch_reset": lambda entry: [_series(entry), *_keys(entry)],
    "counter.delete_range": lambda entry: [_series(entry), _key(entry), *_range(entry)],
    "tree.delete_range": lambda entry: [_series(entry), _key(entry), *_range(entry)],
    "counter.batch_delete_range": lambda entry: [_series(entry), *_keys(entry), *_range(entry)],
    "ingest.begin": lambda entry: [
        _text("stream_id", entry["stream_id"]),
        _text("mode", entry["mode"]),
        _text("granularity", entry.get("granularity")),
    ],
    "ingest.chunk": lambda entry: [
        _text("stream_id", entry["stream_id"]),
        _series(entry),
        _number("chunk_seq", entry["chunk_seq"]),
        *_items(entry),
    ],
}
