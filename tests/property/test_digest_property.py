"""The digest of a node's data: the same for the same data however they came, another for any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karma.core.digest import digest
from karma.core.idempotency import Record
from karma.core.store import Store

DAYS = st.integers(20260101, 20260110)
KEYS = st.one_of(st.integers(0, 4), st.just(2**64 - 1))
NAMES = st.sampled_from(["a", "b", "é", 'quote"'])
CHECKPOINT = {"source": "p", "offset": 1, "event_id": None, "updated_at_unix": 5}


def apply(store: Store, *entries: dict[str, Any]) -> Store:
    for entry in entries:
        store.apply(entry, 1000)
        store.settle()
    return store


def put(name: str, key: int, day: int, value: int) -> dict[str, Any]:
    return {"op": "series.batch_set", "series": name, "items": [[key, day, value]]}


@settings(max_examples=200, deadline=None)
@given(
    buckets=st.dictionaries(st.tuples(NAMES, KEYS, DAYS), st.integers(1, 2**40), max_size=25),
    seed=st.integers(0, 2**32),
)
def test_order_and_detours_do_not_count(buckets: dict[tuple[str, int, int], int], seed: int) -> None:
    direct = apply(Store(), *(put(*place, value) for place, value in buckets.items()))
    shuffled = list(buckets.items())
    Random(seed).shuffle(shuffled)
    detour = Store()
    for (name, key, day), value in shuffled:
        # Another bucket comes and goes, so that counters change their shape meanwhile.
        apply(detour, put(name, key, 20251231, 7), put(name, key, day, value), put(name, key, 20251231, 0))
    assert digest(detour, []) == digest(direct, [])
    for (name, key, day), value in shuffled[:3]:
        changed, seen = apply(Store(), *(put(*place, each) for place, each in shuffled)), {digest(direct, [])}
        for other in (put(name, key, day, value + 1), put(name, key, 20251231, 1), put("new", key, day, 1)):
            seen.add(digest(apply(changed, other), []))
        assert len(seen) == 4


def stream(stream_id: str, *items: Sequence[int], mode: str = "replace_series") -> list[dict[str, Any]]:
    begin = {"op": "ingest.begin", "stream_id": stream_id, "mode": mode, "granularity": "day"}
    chunk = {
        "op": "ingest.chunk",
        "stream_id": stream_id,
        "series": "s",
        "chunk_seq": 1,
        "items": [list(item) for item in items],
    }
    return [begin, chunk]


def remembering(*records: tuple[str, int]) -> Store:
    store = Store()
    for key, response in records:
        store.records.put(key, Record("increment", "f", response, 1000))
    return store


def staging(counters: dict[int, int]) -> Store:
    store = apply(Store(), *stream("x", [1, 20260101, 1]))
    store.streams.active["x"].staged = dict(counters)
    return store


PAIRS: dict[str, tuple[Callable[[], Store], Callable[[], Store]]] = {
    "an empty series": (Store, lambda: apply(Store(), {"op": "tree.create", "series": "a"})),
    "a name": (
        lambda: apply(Store(), {"op": "tree.create", "series": "a"}),
        lambda: apply(Store(), {"op": "tree.create", "series": "b"}),
    ),
    "a key without buckets": (
        lambda: apply(Store(), {"op": "tree.create", "series": "a"}),
        lambda: apply(Store(), put("a", 1, 20260101, 1), {"op": "counter.reset", "series": "a", "key": 1}),
    ),
    "a key": (
        lambda: apply(Store(), put("a", 1, 20260101, 1)),
        lambda: apply(Store(), put("a", 2, 20260101, 1)),
    ),
    "a record": (Store, lambda: remembering(("k", 1))),
    "a record's response": (lambda: remembering(("k", 1)), lambda: remembering(("k", 2))),
    "a record's key": (lambda: remembering(("k", 1)), lambda: remembering(("l", 1))),
    "staged counters alone": (lambda: staging({1: 5}), lambda: staging({1: 6})),
    "whose key it is": (
        lambda: apply(Store(), put("a", 1, 20260101, 1), {"op": "tree.create", "series": "b"}),
        lambda: apply(Store(), {"op": "tree.create", "series": "a"}, put("b", 1, 20260101, 1)),
    ),
    "an open stream": (Store, lambda: apply(Store(), *stream("x", [1, 20260101, 1])[:1])),
    "what a stream staged": (
        lambda: apply(Store(), *stream("x", [1, 20260101, 1])),
        lambda: apply(Store(), *stream("x", [1, 20260101, 2])),
    ),
    "a commit": (
        lambda: apply(Store(), *stream("x", [1, 20260101, 1], mode="add")),
        lambda: apply(
            Store(),
            *stream("x", [1, 20260101, 1], mode="add"),
            {"op": "ingest.commit", "stream_id": "x"},
        ),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_whatever_differs_is_seen(name: str) -> None:
    one, other = PAIRS[name]
    assert digest(one(), []) == digest(one(), [])
    assert digest(one(), []) != digest(other(), [])


def test_records_count_in_any_order() -> None:
    one, other = ("k", 1), ("l", 2)
    assert digest(remembering(one, other), []) == digest(remembering(other, one), [])


def test_checkpoints_count_in_any_order() -> None:
    other = CHECKPOINT | {"source": "q"}
    assert digest(Store(), [CHECKPOINT, other]) == digest(Store(), [other, CHECKPOINT])
    found = {digest(Store(), each) for each in ([], [CHECKPOINT], [other], [CHECKPOINT | {"offset": "1"}])}
    assert len(found) == 4
