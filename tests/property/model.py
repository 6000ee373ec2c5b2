"""What a server may answer, as plain dicts: the protocol's page in Python, sharing no code with the server.

`Model.execute` takes an operation with its fields and returns what the response is, or raises `Refused`. Only
what needs a disk or other nodes is left to others: `EFFECTS` names these operations.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

U64_MAX = 2**64 - 1
"""How long a retry is recognised, by default."""
Buckets = dict[int, int]
Fields = dict[str, Any]


class Refused(Exception):  # noqa: N818 - it is an answer
    """The error code that a request gets."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Stream:
    mode: str
    granularity: str | None = None
    series: str | None = None
    chunks: list[Any] = field(default_factory=list)
    staged: dict[int, Buckets] = field(default_factory=dict)
    is_committed: bool = False


@dataclass
class Record:
    payload: Any
    response: Any
    created_unix: int


# -- Fields ----------------------------------------------------------------------------------------------


def u64(value: Any, minimum: int = 0) -> int:
    if type(value) is not int or not minimum <= value <= U64_MAX:
        raise Refused("validation_error")
    return value


def day(value: Any) -> int:
    if type(value) is str:
        value = int(value.replace("-", ""))
    u64(value)
    try:
        date(value // 10_000, value // 100 % 100, value % 100)
    except (ValueError, OverflowError):
        raise Refused("validation_error") from None
    if value < 10_000_000:
        raise Refused("validation_error")
    return int(value)


def span(fields: Fields, name: str = "range") -> tuple[int, int]:
    first, last = day(fields[name]["from"]), day(fields[name]["to"])
    if first > last or (_date(last) - _date(first)).days > 366:
        raise Refused("validation_error")
    return first, last


def optional_span(fields: Fields) -> tuple[int, int]:
    return span(fields) if fields.get("range") is not None else (0, U64_MAX)


def _date(value: int) -> date:
    return date(value // 10_000, value // 100 % 100, value % 100)


def day_at(unix: float) -> int:
    return int(datetime.fromtimestamp(unix, UTC).strftime("%Y%m%d"))


def items_of(fields: Fields, *, allow_zero: bool) -> list[tuple[int, int, int]]:
    return [
        (u64(key), day(bucket), u64(value, 0 if allow_zero else 1)) for key, bucket, value in fields["items"]
    ]


def inside(buckets: Buckets, first: int, last: int) -> Buckets:
    return {each: value for each, value in sorted(buckets.items()) if first <= each <= last}


def displayed(total: int) -> dict[str, Any]:
    """Return a series' total as `tree.info` and `tree.summary` show it."""
    return {"total": total} if total <= U64_MAX else {"total": U64_MAX, "total_saturated": True}


def said(number: int) -> int:
    """Return a sum, if a reply can say it."""
    if number > U64_MAX:
        raise Refused("validation_error")
    return number


# -- The model ---------------------------------------------------------------------------------------------


class Model:
    """Everything that clients can see of one master."""

    def __init__(self) -> None:
        self.series: dict[str, dict[int, Buckets]] = {}
        self.records: dict[str, Record] = {}
        self.streams: dict[str, Stream] = {}
        self.checkpoints: dict[str, dict[str, Any]] = {}
        self.is_fenced = False
        self.paused_until = 0.0
        self.now = 0.0
        self.was_idempotent: bool | None = None
        """What the last reply says of idempotency, None when it says nothing."""

    def copy(self) -> Model:
        return deepcopy(self)

    def execute(self, op: str, fields: Fields, now: float) -> Any:
        """Return the response of a request at a time in unix seconds; a refused one changes nothing."""
        self.now = now
        self.was_idempotent = None
        before = deepcopy((self.series, self.streams))
        try:
            return _OPS[op](self, fields)
        except Refused:
            self.series, self.streams = before
            raise

    # -- Parts -----------------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self.is_fenced or self.now < self.paused_until:
            raise Refused("forbidden")

    def _existing(self, name: str) -> dict[int, Buckets]:
        if name not in self.series:
            raise Refused("not_found")
        return self.series[name]

    def _made(self, name: str) -> dict[int, Buckets]:
        return self.series.setdefault(name, {})

    def _name(self, fields: Fields) -> str:
        name = fields["series"]
        if not 1 <= len(name.encode()) <= 200 or any(
            ord(char) < 32 or 127 <= ord(char) < 160 for char in name
        ):
            raise Refused("validation_error")
        return str(name)

    def _once(self, fields: Fields, payload: Callable[[int], Any], apply: Callable[[int], Any]) -> Any:
        """Apply a write, or answer what is remembered. Both take the bucket that the request means."""
        bucket = day(fields["bucket"]) if fields.get("bucket") is not None else day_at(self.now)
        self._check_writable()
        if fields.get("idempotency_key") is None:
            return apply(bucket)
        key = str(fields["idempotency_key"])
        record = self.records.get(key)
        if record is not None and fields.get("bucket") is None:
            bucket = day_at(record.created_unix)
        if record is not None:
            if record.payload != payload(bucket):
                raise Refused("idempotency_conflict")
            self.was_idempotent = True
            return record.response
        response = apply(bucket)
        self.was_idempotent = False
        if not (isinstance(response, dict) and response.get("allowed") is False):
            self.records[key] = Record(payload(bucket), response, int(self.now))
        return response

    @staticmethod
    def _add(counters: dict[int, Buckets], items: list[tuple[int, int, int]]) -> None:
        for key, bucket, value in items:
            buckets = counters.setdefault(key, {})
            said(sum(buckets.values()) + value)
            if value:
                buckets[bucket] = buckets.get(bucket, 0) + value

    @staticmethod
    def _set(counters: dict[int, Buckets], items: list[tuple[int, int, int]]) -> None:
        for key, bucket, value in items:
            buckets = counters.setdefault(key, {})
            said(sum(buckets.values()) - buckets.get(bucket, 0) + value)
            buckets[bucket] = value
            if not value:
                del buckets[bucket]

    @staticmethod
    def _delete(buckets: Buckets, first: int, last: int) -> None:
        for bucket in [bucket for bucket in buckets if first <= bucket <= last]:
            del buckets[bucket]

    def _compact(self, name: str) -> None:
        self.series[name] = {key: buckets for key, buckets in self.series[name].items() if buckets}

    # -- Counters --------------------------------------------------------------------------------------

    def increment(self, fields: Fields) -> int:
        name, key, value = self._name(fields), u64(fields["key"]), u64(fields.get("value", 1), 1)

        def apply(bucket: int) -> int:
            self._add(self._made(name), [(key, bucket, value)])
            return value

        return int(self._once(fields, lambda bucket: ("increment", name, key, bucket, value), apply))

    def decrement(self, fields: Fields) -> int:
        name, key, value = self._name(fields), u64(fields["key"]), u64(fields.get("value", 1), 1)

        def apply(bucket: int) -> int:
            left = self._made(name).get(key, {}).get(bucket, 0) - value
            self._set(self._made(name), [(key, bucket, max(left, 0))])
            return value

        return int(self._once(fields, lambda bucket: ("decrement", name, key, bucket, value), apply))

    def counter_sum(self, fields: Fields) -> int:
        key, (first, last) = u64(fields["key"]), optional_span(fields)
        return sum(inside(self._existing(self._name(fields)).get(key, {}), first, last).values())

    def counter_series(self, fields: Fields) -> dict[str, int]:
        key, (first, last) = u64(fields["key"]), span(fields)
        found = inside(self._existing(self._name(fields)).get(key, {}), first, last)
        return {str(each): value for each, value in found.items()}

    def batch_sum(self, fields: Fields) -> list[dict[str, int]]:
        keys, (first, last) = [u64(key) for key in fields["keys"]], optional_span(fields)
        counters = self._existing(self._name(fields))
        return [
            {"key": key, "value": sum(inside(counters.get(key, {}), first, last).values())} for key in keys
        ]

    def multi_sum(self, fields: Fields) -> list[dict[str, Any]]:
        first, last = optional_span(fields)
        wanted = [(self._name(item), u64(item["key"])) for item in fields["items"]]
        return [
            {
                "series": name,
                "key": key,
                "value": sum(inside(self._existing(name).get(key, {}), first, last).values()),
            }
            for name, key in wanted
        ]

    def batch_add(self, fields: Fields) -> Any:
        name, items = self._name(fields), items_of(fields, allow_zero=False)

        def apply(_bucket: int) -> dict[str, int]:
            total = said(sum(value for _, _, value in items))
            self._add(self._made(name), items)
            return {"applied": len(items), "total": total}

        return self._once(fields, lambda _bucket: ("batch_add", name, items), apply)

    def batch_set(self, fields: Fields) -> Any:
        name, items = self._name(fields), items_of(fields, allow_zero=True)

        def apply(_bucket: int) -> dict[str, int]:
            if items:
                self._set(self._made(name), items)
            return {"applied": len(items)}

        return self._once(fields, lambda _bucket: ("batch_set", name, items), apply)

    def reset(self, fields: Fields) -> Any:
        name, key = self._name(fields), u64(fields["key"])

        def apply(_bucket: int) -> str:
            if key in self._made(name):
                self.series[name][key] = {}
            return "OK"

        return self._once(fields, lambda _bucket: ("reset", name, key), apply)

    def batch_reset(self, fields: Fields) -> Any:
        name, keys = self._name(fields), [u64(key) for key in fields["keys"]]

        def apply(_bucket: int) -> dict[str, int]:
            counters, reset = self._existing(name), 0
            for key in keys:
                if counters.get(key):
                    counters[key] = {}
                    reset += 1
            return {"reset": reset, "missing": len(keys) - reset}

        return self._once(fields, lambda _bucket: ("batch_reset", name, keys), apply)

    def delete_range(self, fields: Fields) -> Any:
        name, key, (first, last) = self._name(fields), u64(fields["key"]), span(fields)

        def apply(_bucket: int) -> bool:
            self._delete(self._made(name).get(key, {}), first, last)
            return True

        return self._once(fields, lambda _bucket: ("delete", name, key, first, last), apply)

    def batch_delete_range(self, fields: Fields) -> Any:
        name, keys, (first, last) = self._name(fields), [u64(key) for key in fields["keys"]], span(fields)

        def apply(_bucket: int) -> dict[str, int]:
            counters, deleted, missing = self._existing(name), 0, 0
            for key in keys:
                buckets = counters.get(key)
                if not buckets:
                    missing += 1
                elif inside(buckets, first, last):
                    self._delete(buckets, first, last)
                    deleted += 1
            return {"deleted": deleted, "missing": missing}

        return self._once(fields, lambda _bucket: ("batch_delete_range", name, keys, first, last), apply)

    # -- Series ----------------------------------------------------------------------------------------

    def create(self, fields: Fields) -> str:
        name = self._name(fields)
        self._check_writable()
        self._made(name)
        return "OK"

    def drop(self, fields: Fields) -> str:
        name = self._name(fields)
        self._check_writable()
        self._existing(name)
        del self.series[name]
        return "OK"

    def tree_list(self, _fields: Fields) -> list[str]:
        return list(self.series)

    def info(self, fields: Fields) -> dict[str, Any]:
        name = self._name(fields)
        counters = self._existing(name)
        return {
            "tree": name,
            "key_count": len(counters),
            "bucket_count": sum(map(len, counters.values())),
            **displayed(sum(sum(buckets.values()) for buckets in counters.values())),
            "branches": 9,
        }

    def keys(self, fields: Fields) -> dict[str, Any]:
        name, limit = self._name(fields), u64(fields.get("limit", 100), 1)
        if limit > 10_000:
            raise Refused("validation_error")
        cursor = fields.get("cursor")
        above = -1 if cursor is None else u64(cursor)
        counters = self._existing(name)
        found = sorted(key for key in counters if key > above)
        page = found[:limit]
        return {
            "tree": name,
            "limit": limit,
            "cursor": cursor,
            "next_cursor": page[-1] if len(found) > limit else None,
            "keys": [{"key": key, "total": sum(counters[key].values())} for key in page],
        }

    def summary(self, fields: Fields) -> dict[str, Any]:
        name, (first, last) = self._name(fields), optional_span(fields)
        found = [inside(buckets, first, last) for buckets in self._existing(name).values()]
        has_range = fields.get("range") is not None
        return {
            "tree": name,
            **displayed(sum(sum(buckets.values()) for buckets in found)),
            "active_keys": sum(bool(buckets) or not has_range for buckets in found),
            "bucket_count": sum(map(len, found)),
            **({"range_from": first, "range_to": last} if has_range else {}),
        }

    def top(self, fields: Fields) -> dict[str, Any]:
        name, limit = self._name(fields), u64(fields.get("limit", 50), 1)
        first, last = optional_span(fields)
        if limit > 1_000:
            raise Refused("validation_error")
        sums = {
            key: sum(inside(buckets, first, last).values()) for key, buckets in self._existing(name).items()
        }
        ranked = sorted((-value, key) for key, value in sums.items() if value)[:limit]
        return {
            "tree": name,
            "limit": limit,
            "items": [{"key": key, "value": -value} for value, key in ranked],
        }

    def tree_series(self, fields: Fields) -> dict[str, dict[str, int]]:
        name, (first, last) = self._name(fields), span(fields)
        return {
            str(key): {str(each): value for each, value in inside(buckets, first, last).items()}
            for key, buckets in self._existing(name).items()
        }

    def tree_reset(self, fields: Fields) -> Any:
        name = self._name(fields)

        def apply(_bucket: int) -> str:
            self.series[name] = {key: {} for key in self._made(name)}
            return "OK"

        return self._once(fields, lambda _bucket: ("reset", name, None), apply)

    def tree_delete_range(self, fields: Fields) -> Any:
        name, (first, last) = self._name(fields), span(fields)

        def apply(_bucket: int) -> bool:
            for buckets in self._made(name).values():
                self._delete(buckets, first, last)
            return True

        return self._once(fields, lambda _bucket: ("delete", name, None, first, last), apply)

    def delete_before(self, fields: Fields) -> str:
        name, before = self._name(fields), fields["before"]
        if type(before) is not int:
            raise Refused("validation_error")
        before = day(before)
        self._check_writable()
        for buckets in self._existing(name).values():
            self._delete(buckets, 0, before - 1)
        self._compact(name)
        return "OK"

    def compact(self, fields: Fields) -> str:
        name = self._name(fields)
        self._check_writable()
        self._existing(name)
        self._compact(name)
        return "OK"

    def compact_all(self, _fields: Fields) -> str:
        self._check_writable()
        for name in self.series:
            self._compact(name)
        return "OK"

    # -- Limits ----------------------------------------------------------------------------------------

    def _window(self, fields: Fields, bucket: int) -> tuple[int, int]:
        if fields.get("range") is not None:
            return span(fields)
        match fields.get("window") or "day":
            case "day":
                return bucket, bucket
            case "month":
                return bucket // 100 * 100, bucket // 100 * 100 + 99
            case "total":
                return 0, U64_MAX
        raise Refused("validation_error")

    def _limit(self, fields: Fields) -> tuple[Any, ...]:
        if fields.get("range") is not None and fields.get("window") is not None:
            raise Refused("validation_error")
        window = span(fields) if fields.get("range") is not None else fields.get("window") or "day"
        return (u64(fields["limit"]), window)

    def consume(self, fields: Fields) -> Any:
        name, key, value = self._name(fields), u64(fields["key"]), u64(fields.get("value", 1), 1)
        day(fields["bucket"]) if fields.get("bucket") is not None else None
        limit, window = self._limit(fields)
        self._window(fields, 20260101)

        def apply(bucket: int) -> dict[str, Any]:
            first, last = self._window(fields, bucket)
            used = sum(inside(self.series.get(name, {}).get(key, {}), first, last).values())
            allowed = used + value <= limit
            if allowed:
                self._add(self._made(name), [(key, bucket, value)])
                used += value if first <= bucket <= last else 0
            return {"allowed": allowed, "used": used, "remaining": max(0, limit - used), "limit": limit}

        return self._once(fields, lambda bucket: ("consume", name, key, bucket, value, limit, window), apply)

    def check(self, fields: Fields) -> list[dict[str, Any]]:
        answers = []
        for item in fields["items"]:
            name, key, (limit, _) = self._name(item), u64(item["key"]), self._limit(item)
            first, last = self._window(item, day(item.get("bucket", day_at(self.now))))
            used = sum(inside(self.series.get(name, {}).get(key, {}), first, last).values())
            answers.append(
                {
                    "series": name,
                    "key": key,
                    "used": used,
                    "remaining": max(0, limit - used),
                    "allowed": used < limit,
                }
            )
        return answers

    # -- Ingest ----------------------------------------------------------------------------------------

    def begin(self, fields: Fields) -> dict[str, Any]:
        stream_id, mode, granularity = fields["stream_id"], fields["mode"], fields.get("granularity")
        if mode not in ("add", "set", "replace_series"):
            raise Refused("validation_error")
        self._check_writable()
        stream = self.streams.get(stream_id)
        if stream is None:
            stream = self.streams[stream_id] = Stream(mode, granularity)
        if (stream.mode, stream.granularity) != (mode, granularity):
            raise Refused("idempotency_conflict")
        return {
            "stream_id": stream_id,
            "mode": mode,
            "series": stream.series,
            "granularity": granularity,
            "status": "already_committed" if stream.is_committed else "active",
            "last_chunk_seq": len(stream.chunks),
        }

    def chunk(self, fields: Fields) -> dict[str, Any]:
        stream_id, name, chunk_seq = fields["stream_id"], self._name(fields), u64(fields["chunk_seq"], 1)
        stream = self.streams.get(stream_id)
        items = items_of(fields, allow_zero=stream is None or stream.mode != "add")
        self._check_writable()
        if stream is None:
            raise Refused("not_found")
        about = {"stream_id": stream_id, "chunk_seq": chunk_seq}
        if chunk_seq <= len(stream.chunks):
            if stream.chunks[chunk_seq - 1] != (name, items):
                raise Refused("idempotency_conflict")
            return {**about, "skipped": True, "committed": stream.is_committed, "applied": 0, "total": 0}
        if stream.is_committed:
            raise Refused("idempotency_conflict")
        if chunk_seq != len(stream.chunks) + 1 or stream.series not in (None, name):
            raise Refused("validation_error")
        total = said(sum(value for _, _, value in items))
        if stream.mode == "replace_series":
            self._set(stream.staged, items)
        elif stream.mode == "add":
            self._add(self._made(name), items)
        else:
            self._set(self._made(name), items)
        stream.series = name
        stream.chunks.append((name, items))
        return {**about, "skipped": False, "applied": len(items), "total": total}

    def commit(self, fields: Fields) -> dict[str, Any]:
        stream_id = fields["stream_id"]
        self._check_writable()
        stream = self.streams.get(stream_id)
        if stream is None:
            raise Refused("not_found")
        if stream.is_committed:
            return self.begin(
                {"stream_id": stream_id, "mode": stream.mode, "granularity": stream.granularity}
            )
        if stream.mode == "replace_series":
            if stream.series is None:
                raise Refused("validation_error")
            self._made(stream.series)
            self.series[stream.series] = stream.staged
        stream.is_committed = True
        return {"stream_id": stream_id, "status": "committed", "last_chunk_seq": len(stream.chunks)}

    def abort(self, fields: Fields) -> dict[str, Any]:
        stream_id = fields["stream_id"]
        self._check_writable()
        stream = self.streams.get(stream_id)
        if stream is None or stream.is_committed:
            raise Refused("not_found")
        del self.streams[stream_id]
        return {"stream_id": stream_id, "status": "aborted", "last_chunk_seq": len(stream.chunks)}

    # -- The rest ----------------------------------------------------------------------------------------

    def prune(self, fields: Fields) -> dict[str, int]:
        before = fields["before"]
        if type(before) is str:
            before = int(datetime.fromisoformat(before).timestamp())
        u64(before)
        limit = u64(fields.get("limit", U64_MAX), 1)
        self._check_writable()
        doomed = [key for key, record in self.records.items() if record.created_unix < before][:limit]
        for key in doomed:
            del self.records[key]
        return {"deleted": len(doomed)}

    def checkpoint(self, fields: Fields) -> dict[str, Any]:
        source, event_id = fields["source"], fields.get("event_id")
        offset = fields.get("source_offset", fields.get("offset"))
        if offset is None and event_id is None:
            raise Refused("validation_error")
        self._check_writable()
        self.checkpoints[source] = {
            "source": source,
            "offset": None if offset is None else str(offset),
            "event_id": None if event_id is None else str(event_id),
            "updated_at_unix": int(self.now),
        }
        return self.checkpoints[source]

    def status(self, fields: Fields) -> dict[str, Any]:
        found = [each for name, each in self.checkpoints.items() if fields.get("source") in (None, name)]
        return {"checkpoint_count": len(found), "checkpoints": found}

    def report(self, fields: Fields) -> str:
        if u64(fields["mismatch_count"]) > u64(fields["checked_points"]):
            raise Refused("validation_error")
        return "OK"

    def ping(self, _fields: Fields) -> str:
        return "pong"


_OPS: dict[str, Callable[[Model, Fields], Any]] = {
    "counter.batch_delete_range": Model.batch_delete_range,
    "counter.batch_reset": Model.batch_reset,
    "counter.batch_sum": Model.batch_sum,
    "counter.decrement": Model.decrement,
    "counter.delete_range": Model.delete_range,
    "counter.increment": Model.increment,
    "counter.multi_sum": Model.multi_sum,
    "counter.reset": Model.reset,
    "counter.series": Model.counter_series,
    "counter.sum": Model.counter_sum,
    "idempotency.prune": Model.prune,
    "ingest.abort": Model.abort,
    "ingest.begin": Model.begin,
    "ingest.chunk": Model.chunk,
    "ingest.commit": Model.commit,
    "limit.check": Model.check,
    "limit.consume": Model.consume,
    "reconciliation.report": Model.report,
    "recovery.checkpoint": Model.checkpoint,
    "recovery.status": Model.status,
    "series.batch_add": Model.batch_add,
    "series.batch_set": Model.batch_set,
    "series.compact": Model.compact,
    "series.delete_before": Model.delete_before,
    "system.compact": Model.compact_all,
    "system.ping": Model.ping,
    "tree.create": Model.create,
    "tree.delete_range": Model.tree_delete_range,
    "tree.drop": Model.drop,
    "tree.info": Model.info,
    "tree.keys": Model.keys,
    "tree.list": Model.tree_list,
    "tree.reset": Model.tree_reset,
    "tree.series": Model.tree_series,
    "tree.summary": Model.summary,
    "tree.top": Model.top,
}

MODELLED = frozenset(_OPS)
"""The operations that `Model.execute` knows."""
