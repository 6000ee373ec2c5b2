"""Every series and counter in memory, and the only code that changes them.

A change is given as a log entry (``{"op": …, fields resolved}``), to `Store.apply`, whether it
comes from a client, from the log at start or from a replication source. Live increments skip the
dict and call `Store.increment` and `Store.decrement`, which `apply` calls too.

Each change checks everything first, raising `RequestError` with nothing changed, and then remembers
its inverse in `Store.undo`, until `settle` says that the log holds the entry or `roll_back` takes
back all that it does not. Most inverses alter one counter; they are exact because they run newest
first. Changes that swap a whole series for another keep the old one as their inverse, which stays
exact only while nothing later touches the arrays both share: they set `Store.must_settle`, and the
write path settles before it lets the next change in. Deletions that concern every key are only noted,
and applied in steps (see `series`): those steps, and the release of what was replaced, are `Store.chores`.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from karma.core import buckets
from karma.core.buckets import DAY_BITS, DAY_MASK, Counter
from karma.core.changes import (
    SINGLE_MAX,
    Item,
    Undo,
    add_items,
    forget_key,
    overflow,
    put_back,
    set_items,
    take_back,
)
from karma.core.idempotency import Records, fingerprint
from karma.core.ingest import Stream, Streams
from karma.core.key_view import IDLE_TICKS, KeyView
from karma.core.series import Deletion, Series, compaction, everything, releasing, sweep_all, sweeping
from karma.errors import ErrorCode, RequestError
from karma.limits import U64_MAX

_ENDED = object()


def tree_not_found(name: str) -> RequestError:
    """Return the error for a series that does not exist."""
    return RequestError(ErrorCode.NOT_FOUND, f'Tree "{name}" not found')


class Store:
    """The counters, the idempotency records and the ingest streams of one node."""

    __slots__ = (
        "_deleted_from",
        "_last_ordinal",
        "_replaced",
        "changed",
        "chores",
        "inline_keys",
        "must_settle",
        "records",
        "series",
        "streams",
        "undo",
        "viewed",
    )

    def __init__(self, records: Records | None = None) -> None:
        self.series: dict[str, Series] = {}
        self.changed: set[str] = set()
        """Names of series that may differ from their newest snapshot file; whoever saves them empties it."""
        self._last_ordinal = -1
        self.records = Records() if records is None else records
        self.streams = Streams()
        self.undo: Undo = []
        """What takes back the changes that the log does not hold yet."""
        self.must_settle = False
        self.inline_keys = U64_MAX
        """A deletion from more keys is left to `chores`, and a page of more comes from a view."""
        self.chores: deque[Iterator[None]] = deque()
        """Work to be done in steps, whenever nothing is unsettled. No reply shows whether it was done."""
        self.viewed: list[Series] = []
        """Series that have a view."""
        self._deleted_from: list[Series] = []
        self._replaced: list[dict[int, Counter]] = []

    def restore(self, name: str, counters: dict[int, Counter], ordinal: int | None = None) -> None:
        """Put in a series as a snapshot holds it; `ordinal` is what the snapshot says, in rising order."""
        self._last_ordinal = max(self._last_ordinal + 1, ordinal or 0)
        self.series[name] = Series(name, counters, self._last_ordinal)

    # -- Settling ------------------------------------------------------------------------------

    def settle(self) -> None:
        """Forget the inverses: the log holds every change made so far."""
        self.undo.clear()
        self.must_settle = False
        if self._deleted_from or self._replaced:
            self._begin_chores()

    def _begin_chores(self) -> None:
        """Apply the deletions that just settled, or leave them and what was replaced to `chores`."""
        room = self.inline_keys
        for series in self._deleted_from:
            room -= len(series.keys)
            if room >= 0:
                if sweep_all(series):
                    self.changed.add(series.name)
            else:
                self.changed.add(series.name)
                self.chores.append(sweeping(series))
        self._deleted_from.clear()
        for counters in self._replaced:
            if len(counters) > self.inline_keys:
                self.chores.append(releasing(counters))
        self._replaced.clear()

    def do_chore(self) -> None:
        """Do a step of one chore; each comes in rotation."""
        chore = self.chores.popleft()
        if next(chore, _ENDED) is not _ENDED:
            self.chores.append(chore)

    def sweep(self) -> None:
        """Apply every deletion to every key at once: for a process that serves nobody."""
        for series in self.series.values():
            sweep_all(series)

    def release(self, counters: dict[int, Counter]) -> None:
        """Free counters that nothing else refers to, in steps if they are many."""
        if len(counters) > self.inline_keys:
            self.chores.append(releasing(counters))

    def roll_back(self, mark: int = 0) -> None:
        """Take back every change since the undo list was `mark` long, newest first."""
        while len(self.undo) > mark:
            inverse, *arguments = self.undo.pop()
            inverse(*arguments)
        self.must_settle = False

    def apply(self, entry: Mapping[str, Any], now_unix: int) -> Any:
        """Make the change that a log entry describes and return its response.

        Raises `RequestError` when the entry fails, with nothing changed, and `KeyError`,
        `TypeError` or `ValueError` when it is no entry that a server wrote.
        """
        mark = len(self.undo)
        try:
            return _APPLY[entry["op"]](self, entry, now_unix)
        except BaseException:
            self.roll_back(mark)
            raise

    # -- Views ---------------------------------------------------------------------------------

    def view_of(self, series: Series) -> KeyView:
        """Return a series' view for one more page."""
        view = series.view
        if view is None:
            view = series.view = KeyView()
            self.viewed.append(series)
        view.idle_ticks = 0
        return view

    def drop_idle_views(self) -> None:
        """Drop the views that nobody asked for a page of in the last minute; to be called every second."""
        for series in self.viewed:
            if series.view is not None:
                series.view.idle_ticks += 1
                if series.view.idle_ticks > IDLE_TICKS:
                    series.view = None
        self.viewed = [series for series in self.viewed if series.view is not None]

    # -- Single counters -----------------------------------------------------------------------

    def increment(self, name: str, key: int, day: int, value: int) -> int:
        """Add to one bucket, creating what is missing. Returns the value added."""
        series = self.series.get(name) or self._create(name)
        self.changed.add(name)
        if series.pending:
            series.settle_key(key, self.undo)
        counters = series.counters
        old = counters.get(key)
        if old is None:
            counters[key] = buckets.single(day, value)
            series.keys.append(key)
            self.undo.append((forget_key, counters, series.keys, key))
            return value
        if isinstance(old, int):
            if old & DAY_MASK == day:
                new = old + (value << DAY_BITS)
                if new > SINGLE_MAX:
                    raise overflow(name, key)
                counters[key] = new
            else:
                self._add(series, key, day, value, old)
        elif old[-2] == day:
            total = old[0] + value
            if total > U64_MAX:
                raise overflow(name, key)
            old[0] = total
            old[-1] += value
        else:
            self._add(series, key, day, value, old)
        self.undo.append((take_back, counters, key, day, value, old))
        return value

    def decrement(self, name: str, key: int, day: int, value: int) -> int:
        """Take from one bucket, which stops at zero; create what is missing. Returns the value asked for."""
        series = self.series.get(name) or self._create(name)
        self.changed.add(name)
        if series.pending:
            series.settle_key(key, self.undo)
        counters = series.counters
        old = counters.get(key)
        if old is None:
            counters[key] = 0
            series.keys.append(key)
            self.undo.append((forget_key, counters, series.keys, key))
            return value
        left = buckets.get(old, day)
        self.undo.append((put_back, counters, key, day, left))
        counters[key] = buckets.put(old, day, max(left - value, 0))
        return value

    def _add(self, series: Series, key: int, day: int, value: int, old: Counter) -> None:
        if buckets.total(old) + value > U64_MAX:
            raise overflow(series.name, key)
        series.counters[key] = buckets.add(old, day, value)

    # -- Batches -------------------------------------------------------------------------------

    def _batch_add(self, name: str, items: Sequence[Item]) -> dict[str, int]:
        total = _total_of(items)
        series = self._to_change(name, items)
        add_items(series.counters, series.keys, items, self.undo, name)
        return {"applied": len(items), "total": total}

    def _batch_set(self, name: str, items: Sequence[Item]) -> dict[str, int]:
        if items:
            series = self._to_change(name, items)
            set_items(series.counters, series.keys, items, self.undo, name)
        return {"applied": len(items)}

    def _to_change(self, name: str, items: Sequence[Item]) -> Series:
        """Return a series, ready for changes to the keys of items."""
        series = self.series.get(name) or self._create(name)
        self.changed.add(name)
        if series.pending:
            for key, _, _ in items:
                series.settle_key(key, self.undo)
        return series

    def _batch_reset(self, name: str, keys: Iterable[int]) -> dict[str, int]:
        series = self._existing(name)
        reset = missing = 0
        for key in keys:
            if series.find(key, 0):
                self._replace(series, key, 0)
                reset += 1
            else:
                missing += 1
        return {"reset": reset, "missing": missing}

    def _batch_delete_range(self, name: str, keys: Iterable[int], first: int, last: int) -> dict[str, int]:
        series = self._existing(name)
        deleted = missing = 0
        for key in keys:
            old = series.find(key, 0)
            if not old:
                missing += 1
                continue
            new = buckets.without(old, first, last)
            # An array that stays in use cannot be its own inverse: later changes alter it in place.
            if new is not old:
                self._replace(series, key, new)
                deleted += 1
        return {"deleted": deleted, "missing": missing}

    def _replace(self, series: Series, key: int, new: Counter) -> None:
        """Put another counter in the place of a known key's."""
        self.changed.add(series.name)
        if series.pending:
            series.settle_key(key, self.undo)
        counters = series.counters
        self.undo.append((counters.__setitem__, key, counters[key]))
        counters[key] = new

    # -- Whole series --------------------------------------------------------------------------

    def _existing(self, name: str) -> Series:
        series = self.series.get(name)
        if series is None:
            raise tree_not_found(name)
        return series

    def _create(self, name: str) -> Series:
        self._last_ordinal += 1
        series = self.series[name] = Series(name, ordinal=self._last_ordinal)
        self.changed.add(name)
        self.undo.append((self.series.pop, name))
        return series

    def _swap(self, series: Series, counters: dict[int, Counter], keys: array[int]) -> None:
        """Give a series other counters; what it held stays aside, untouched, until settled."""
        self.changed.add(series.name)
        self.undo.append((_restore, series, series.counters, series.keys, series.pending, series.sweeping))
        self._replace_all(series.counters)
        _restore(series, counters, keys)
        self.must_settle = True

    def _replace_all(self, counters: dict[int, Counter]) -> None:
        """Note counters that nobody needs any more, once this is settled."""
        self.undo.append((self._replaced.pop,))
        self._replaced.append(counters)

    def _drop(self, name: str) -> str:
        series = self._existing(name)
        self.undo.append((setattr, self, "series", self.series))
        self.series = {other: kept for other, kept in self.series.items() if other != name}
        self._swap(series, {}, array("Q"))
        return "OK"

    def _delete(self, series: Series, deletion: Deletion) -> None:
        """Delete from every key of a series, in the end; at once for whoever reads."""
        self.undo.append((setattr, series, "pending", series.pending))
        series.delete(deletion)
        self.undo.append((self._deleted_from.pop,))
        self._deleted_from.append(series)
        self.must_settle = True

    # -- Ingest streams ------------------------------------------------------------------------

    def _begin(self, entry: Mapping[str, Any]) -> dict[str, object]:
        stream_id = entry["stream_id"]
        begin_fingerprint = fingerprint(entry)
        stream = self.streams.find(stream_id)
        if stream is None:
            stream = Stream(stream_id, entry["mode"], entry.get("granularity"), begin_fingerprint)
            if stream.mode == "replace_series":
                stream.staged = {}
            self.streams.active[stream_id] = stream
            self.undo.append((self.streams.active.pop, stream_id))
        elif stream.begin_fingerprint != begin_fingerprint:
            raise RequestError(
                ErrorCode.IDEMPOTENCY_CONFLICT, "Ingest stream was already started with different parameters"
            )
        return stream.describe("active" if stream.committed_at_unix is None else "already_committed")

    def chunk(self, entry: Mapping[str, Any], *, touch_series: bool = True) -> dict[str, object]:
        """Take a stream's next chunk, or skip one that it has.

        `touch_series=False` notes the chunk without its items: a snapshot of the series holds them.
        """
        stream = self.streams.find(entry["stream_id"])
        if stream is None:
            raise stream_not_found(entry["stream_id"])
        chunk_seq, name, items = entry["chunk_seq"], entry["series"], entry["items"]
        chunk_fingerprint = fingerprint(entry)
        if chunk_fingerprint == stream.chunk_fingerprints.get(chunk_seq):
            return _skipped(stream, chunk_seq)
        if stream.committed_at_unix is not None:
            raise RequestError(
                ErrorCode.IDEMPOTENCY_CONFLICT, "Ingest stream was already committed with different chunks"
            )
        if chunk_seq in stream.chunk_fingerprints:
            raise RequestError(
                ErrorCode.IDEMPOTENCY_CONFLICT, "Ingest chunk was already used with different payload"
            )
        if chunk_seq != stream.last_chunk_seq + 1:
            raise RequestError(ErrorCode.VALIDATION_ERROR, "Field chunk_seq must be the next chunk")
        total = _total_of(items)
        if stream.series not in (None, name):
            raise RequestError(
                ErrorCode.VALIDATION_ERROR, f"Ingest stream is already bound to series {stream.series}"
            )
        if stream.staged is not None:
            set_items(stream.staged, stream.staged_keys, items, self.undo, name)
        elif touch_series:
            self.pour(stream.mode, name, items)
        self.undo.append((_forget_chunk, stream, stream.series, chunk_seq))
        stream.series = name
        stream.last_chunk_seq = chunk_seq
        stream.chunk_fingerprints[chunk_seq] = chunk_fingerprint
        return {
            "stream_id": stream.stream_id,
            "chunk_seq": chunk_seq,
            "skipped": False,
            "applied": len(items),
            "total": total,
        }

    def pour(self, mode: str, name: str, items: Sequence[Item]) -> None:
        """Bring a chunk's items into its live series, for modes add and set."""
        series = self._to_change(name, items)
        change = add_items if mode == "add" else set_items
        change(series.counters, series.keys, items, self.undo, name)

    def commit(self, stream_id: str, now_unix: int, *, touch_series: bool = True) -> dict[str, object]:
        """End a stream for good; a replace_series stream's staged counters become the series.

        `touch_series=False` leaves the series alone: a snapshot of it holds the outcome.
        """
        stream = self.streams.find(stream_id)
        if stream is None:
            raise stream_not_found(stream_id)
        if stream.committed_at_unix is not None:
            return stream.describe("already_committed")
        if stream.staged is not None:
            if stream.series is None:
                raise RequestError(ErrorCode.VALIDATION_ERROR, "Cannot commit empty replace_series stream")
            if touch_series:
                series = self.series.get(stream.series) or self._create(stream.series)
                self._swap(series, stream.staged, stream.staged_keys)
        self._end(stream)
        self.undo.append((_uncommit, self.streams, stream, stream.staged))
        stream.staged = None
        stream.committed_at_unix = now_unix
        self.streams.committed[stream_id] = stream
        return {"stream_id": stream_id, "status": "committed", "last_chunk_seq": stream.last_chunk_seq}

    def _abort(self, stream_id: str) -> dict[str, object]:
        stream = self.streams.active.get(stream_id)
        if stream is None:
            raise stream_not_found(stream_id)
        self._end(stream)
        if stream.staged is not None:
            self._replace_all(stream.staged)
        return {"stream_id": stream_id, "status": "aborted", "last_chunk_seq": stream.last_chunk_seq}

    def _end(self, stream: Stream) -> None:
        self.undo.append((setattr, self.streams, "active", self.streams.active))
        self.streams.active = {
            stream_id: other for stream_id, other in self.streams.active.items() if other is not stream
        }


def stream_not_found(stream_id: str) -> RequestError:
    """Return the error for a stream that was never begun, or was aborted."""
    return RequestError(ErrorCode.NOT_FOUND, f'Ingest stream "{stream_id}" not found')


def _total_of(items: Sequence[Item]) -> int:
    """Return the sum of the values. Raises RequestError past 2**64 - 1, which no reply could say."""
    total = sum([value for _, _, value in items])
    if total > U64_MAX:
        raise RequestError(
            ErrorCode.VALIDATION_ERROR,
            f"Field items adds up to more than {U64_MAX}; nothing was written",
        )
    return total


def _skipped(stream: Stream, chunk_seq: int) -> dict[str, object]:
    return {
        "stream_id": stream.stream_id,
        "chunk_seq": chunk_seq,
        "skipped": True,
        "committed": stream.committed_at_unix is not None,
        "applied": 0,
        "total": 0,
    }


# -- Inverses -----------------------------------------------------------------------------------------


def _restore(
    series: Series,
    counters: dict[int, Counter],
    keys: array[int],
    pending: tuple[Deletion, ...] = (),
    sweeping: Any = None,
) -> None:
    """Give a series all of its contents."""
    series.counters, series.keys = counters, keys
    series.pending, series.sweeping = pending, sweeping
    series.view = None


def _forget_chunk(stream: Stream, series: str | None, chunk_seq: int) -> None:
    stream.series = series
    stream.last_chunk_seq = chunk_seq - 1
    del stream.chunk_fingerprints[chunk_seq]


def _uncommit(streams: Streams, stream: Stream, staged: dict[int, Counter] | None) -> None:
    del streams.committed[stream.stream_id]
    stream.staged = staged
    stream.committed_at_unix = None


# -- The table of changes ------------------------------------------------------------------------------

Change = Callable[[Store, Mapping[str, Any], int], Any]


def _create_tree(store: Store, entry: Mapping[str, Any], _now: int) -> str:
    if entry["series"] not in store.series:
        store._create(entry["series"])
    return "OK"


def _reset_key(store: Store, entry: Mapping[str, Any], _now: int) -> str:
    series = store.series.get(entry["series"]) or store._create(entry["series"])
    if series.find(entry["key"], 0):
        store._replace(series, entry["key"], 0)
    return "OK"


def _reset_tree(store: Store, entry: Mapping[str, Any], _now: int) -> str:
    series = store.series.get(entry["series"]) or store._create(entry["series"])
    store._delete(series, everything())
    return "OK"


def _delete_key_range(store: Store, entry: Mapping[str, Any], _now: int) -> bool:
    name, span = entry["series"], entry["range"]
    store.series.get(name) or store._create(name)
    store._batch_delete_range(name, (entry["key"],), span["from"], span["to"])
    return True


def _delete_tree_range(store: Store, entry: Mapping[str, Any], _now: int) -> bool:
    series = store.series.get(entry["series"]) or store._create(entry["series"])
    store._delete(series, Deletion(entry["range"]["from"], entry["range"]["to"], compacts=False))
    return True


def _delete_before(store: Store, entry: Mapping[str, Any], _now: int) -> str:
    store._delete(store._existing(entry["series"]), Deletion(0, entry["before"] - 1, compacts=True))
    return "OK"


def _compact_tree(store: Store, entry: Mapping[str, Any], _now: int) -> str:
    store._delete(store._existing(entry["series"]), compaction())
    return "OK"


def _compact_all(store: Store, _entry: Mapping[str, Any], _now: int) -> str:
    for series in store.series.values():
        store._delete(series, compaction())
    return "OK"


def _prune(store: Store, entry: Mapping[str, Any], _now: int) -> dict[str, int]:
    dropped = store.records.prune(entry["before"], entry.get("limit"))
    store.undo.append((store.records.restore, dropped))
    return {"deleted": len(dropped)}


_APPLY: dict[str, Change] = {
    "counter.increment": lambda store, entry, _: store.increment(
        entry["series"], entry["key"], entry["bucket"], entry["value"]
    ),
    "counter.decrement": lambda store, entry, _: store.decrement(
        entry["series"], entry["key"], entry["bucket"], entry["value"]
    ),
    "counter.reset": _reset_key,
    "counter.delete_range": _delete_key_range,
    "counter.batch_reset": lambda store, entry, _: store._batch_reset(entry["series"], entry["keys"]),
    "counter.batch_delete_range": lambda store, entry, _: store._batch_delete_range(
        entry["series"], entry["keys"], entry["range"]["from"], entry["range"]["to"]
    ),
    "series.batch_add": lambda store, entry, _: store._batch_add(entry["series"], entry["items"]),
    "series.batch_set": lambda store, entry, _: store._batch_set(entry["series"], entry["items"]),
    "series.compact": _compact_tree,
    "series.delete_before": _delete_before,
    "system.compact": _compact_all,
    "tree.create": _create_tree,
    "tree.delete_range": _delete_tree_range,
    "tree.drop": lambda store, entry, _: store._drop(entry["series"]),
    "tree.reset": _reset_tree,
    "ingest.begin": lambda store, entry, _: store._begin(entry),
    "ingest.chunk": lambda store, entry, _: store.chunk(entry),
    "ingest.commit": lambda store, entry, now_unix: store.commit(entry["stream_id"], now_unix),
    "ingest.abort": lambda store, entry, _: store._abort(entry["stream_id"]),
    "idempotency.prune": _prune,
}
