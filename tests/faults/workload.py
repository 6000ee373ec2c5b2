"""Requests of every kind for one server, drawn from a seed: what the gates of the disk write."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

DAY = 20260505
SERIES = ("a", "b", "sub/c")
Fields = dict[str, Any]


class Workload:
    """Draws requests. Each write can be told from the others by its value, its key or its stream."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._numbers = count(1)
        self._stream: tuple[str, str, int] | None = None
        """The open stream: its id, its mode, its last chunk."""
        self._keyed: list[Fields] = []
        self._kinds: list[tuple[int, Callable[[], Fields]]] = [
            (20, self._increment),
            (4, self._decrement),
            (8, self._batch_add),
            (4, self._batch_set),
            (3, self._reset),
            (2, self._batch_reset),
            (1, self._tree_reset),
            (2, self._delete_range),
            (1, lambda: {"op": "tree.drop", "series": "b"}),
            (1, lambda: {"op": "tree.create", "series": f"made {self._number() % 3}"}),
            (1, lambda: {"op": "series.delete_before", "series": "a", "before": DAY + self._number() % 9}),
            (1, lambda: {"op": "series.compact", "series": "a"}),
            (1, lambda: {"op": "system.compact"}),
            (8, self._consume),
            (12, self._ingest),
            (1, lambda: {"op": "idempotency.prune", "before": 2**40, "limit": 1}),
            (3, lambda: {"op": "recovery.checkpoint", "source": "pipeline", "offset": self._number()}),
            (5, self._retry),
            (4, lambda: {"op": "replication.status"}),
            (2, lambda: {"op": "counter.sum", "series": "a", "key": 1}),
        ]

    def next(self) -> Fields:
        """Return a request that is more than likely to succeed."""
        weights = [weight for weight, _ in self._kinds]
        (_, kind) = self._random.choices(self._kinds, weights)[0]
        return kind()

    def _number(self) -> int:
        return next(self._numbers)

    def _series(self) -> str:
        return self._random.choice(SERIES)

    def _key(self) -> int:
        return self._random.randint(1, 6)

    def _with_key(self, fields: Fields) -> Fields:
        fields["idempotency_key"] = f"k{self._number()}"
        self._keyed.append(fields)
        return fields

    def _increment(self) -> Fields:
        fields = {
            "op": "counter.increment",
            "series": self._series(),
            "key": self._key(),
            "bucket": DAY + self._random.randint(0, 3),
            "value": self._number(),
        }
        return self._with_key(fields) if self._random.random() < 0.3 else fields

    def _decrement(self) -> Fields:
        return {
            "op": "counter.decrement",
            "series": self._series(),
            "key": self._key(),
            "bucket": DAY,
            "value": self._number(),
        }

    def _items(self) -> list[list[int]]:
        return [
            [self._key(), DAY + self._random.randint(0, 3), self._number()]
            for _ in range(self._random.randint(1, 5))
        ]

    def _batch_add(self) -> Fields:
        return {"op": "series.batch_add", "series": self._series(), "items": self._items()}

    def _batch_set(self) -> Fields:
        items = self._items()
        items[0][2] = 0
        return self._with_key({"op": "series.batch_set", "series": self._series(), "items": items})

    def _reset(self) -> Fields:
        return self._with_key({"op": "counter.reset", "series": self._series(), "key": self._key()})

    def _batch_reset(self) -> Fields:
        return self._with_key({"op": "counter.batch_reset", "series": "a", "keys": [1, 2, 99]})

    def _tree_reset(self) -> Fields:
        return self._with_key({"op": "tree.reset", "series": self._series()})

    def _delete_range(self) -> Fields:
        fields = {"series": self._series(), "range": {"from": DAY, "to": DAY + self._number() % 3}}
        if self._random.random() < 0.5:
            return self._with_key({"op": "tree.delete_range", **fields})
        return self._with_key({"op": "counter.delete_range", "key": self._key(), **fields})

    def _consume(self) -> Fields:
        fields = {
            "op": "limit.consume",
            "series": self._series(),
            "key": self._key(),
            "bucket": DAY,
            "value": self._number(),
            "limit": 10**6,
        }
        return self._with_key(fields) if self._random.random() < 0.5 else fields

    def _ingest(self) -> Fields:
        if self._stream is None:
            mode = self._random.choice(("add", "set", "replace_series"))
            self._stream = f"s{self._number()}", mode, 0
            return {"op": "ingest.begin", "stream_id": self._stream[0], "mode": mode}
        stream_id, mode, last = self._stream
        if last and self._random.random() < 0.3:
            self._stream = None
            op = "ingest.abort" if self._random.random() < 0.2 else "ingest.commit"
            return {"op": op, "stream_id": stream_id}
        self._stream = stream_id, mode, last + 1
        return {
            "op": "ingest.chunk",
            "stream_id": stream_id,
            "series": SERIES[int(stream_id[1:]) % len(SERIES)],
            "chunk_seq": last + 1,
            "items": self._items(),
        }

    def _retry(self) -> Fields:
        return self._random.choice(self._keyed[-10:]) if self._keyed else self._increment()

    def refused(self, fields: Fields) -> None:
        """Take note that a request did not succeed: the stream that it was part of goes on without it."""
        if self._stream is not None and fields.get("stream_id") == self._stream[0]:
            self._stream = None
