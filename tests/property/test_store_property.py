"""The store against a model of plain dicts: every change, and every roll back to any mark."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from karma.core import buckets
from karma.core.buckets import Counter
from karma.core.idempotency import Record
from karma.core.store import Store
from karma.errors import RequestError

U64_MAX = 2**64 - 1
DAYS = (20260501, 20260502, 20260503, 20260504)
"""Few days and keys, so that changes meet each other in every shape of a counter."""

Buckets = dict[int, int]
Model = dict[str, dict[int, Buckets]]

# -- One counter ---------------------------------------------------------------------------------------

days = st.sampled_from(DAYS)
values = st.one_of(st.integers(1, 5), st.sampled_from([2**32, 2**63, U64_MAX // 2]))
ranges = st.tuples(days, days).map(sorted)
steps = st.lists(
    st.tuples(st.sampled_from(["add", "put", "without"]), days, st.one_of(st.just(0), values), days),
    max_size=12,
)


def assert_counts(counter: Counter, expected: Buckets) -> None:
    """Compare everything that can be asked of a counter, and its packed shape."""
    assert dict(buckets.items(counter)) == expected
    assert list(dict(buckets.items(counter))) == sorted(expected)
    assert buckets.total(counter) == sum(expected.values())
    assert buckets.bucket_count(counter) == len(expected)
    for first in DAYS:
        assert buckets.get(counter, first) == expected.get(first, 0)
        for last in DAYS:
            inside = {day: value for day, value in expected.items() if first <= day <= last}
            assert buckets.range_sum(counter, first, last) == sum(inside.values())
            assert dict(buckets.range_items(counter, first, last)) == inside
    if not isinstance(counter, int):
        assert len(counter) >= 5
        assert buckets.from_items(expected.items()) == counter


@given(steps)
def test_a_counter_behaves_like_a_dict_of_days(changes: list[tuple[str, int, int, int]]) -> None:
    counter: Counter = 0
    expected: Buckets = {}
    for change, day, value, last in changes:
        if change == "add" and value and sum(expected.values()) + value <= U64_MAX:
            counter = buckets.add(counter, day, value)
            expected[day] = expected.get(day, 0) + value
        elif change == "put" and sum(expected.values()) - expected.get(day, 0) + value <= U64_MAX:
            counter = buckets.put(counter, day, value)
            expected.pop(day, None)
            if value:
                expected[day] = value
        elif change == "without":
            before = counter if isinstance(counter, int) else array("Q", counter)
            given_one, counter = counter, buckets.without(counter, day, last)
            assert given_one == before, "the one given is never altered"
            expected = {each: value for each, value in expected.items() if not day <= each <= last}
        assert_counts(counter, expected)


# -- The whole store -----------------------------------------------------------------------------------

names = st.sampled_from(["a", "b"])
keys = st.integers(0, 3)
items = st.lists(st.tuples(keys, days, values).map(list), max_size=4)
settable_items = st.lists(st.tuples(keys, days, st.one_of(st.just(0), values)).map(list), max_size=4)
spans = ranges.map(lambda span: {"from": span[0], "to": span[1]})
stream_ids = st.sampled_from(["s1", "s2"])


def entry(op: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"op": st.just(op), **fields})


entries = st.one_of(
    entry("counter.increment", series=names, key=keys, bucket=days, value=values),
    entry("counter.increment", series=names, key=keys, bucket=days, value=values),
    entry("counter.decrement", series=names, key=keys, bucket=days, value=values),
    entry("counter.reset", series=names, key=keys),
    entry("counter.delete_range", series=names, key=keys, range=spans),
    entry("counter.batch_reset", series=names, keys=st.lists(keys, max_size=3)),
    entry("counter.batch_delete_range", series=names, keys=st.lists(keys, max_size=3), range=spans),
    entry("series.batch_add", series=names, items=items),
    entry("series.batch_set", series=names, items=settable_items),
    entry("series.compact", series=names),
    entry("series.delete_before", series=names, before=days),
    entry("system.compact"),
    entry("tree.create", series=names),
    entry("tree.reset", series=names),
    entry("tree.delete_range", series=names, range=spans),
    entry("tree.drop", series=names),
    entry(
        "ingest.begin",
        stream_id=stream_ids,
        mode=st.sampled_from(["add", "set", "replace_series"]),
    ),
    entry("ingest.chunk", stream_id=stream_ids, series=names, chunk_seq=st.integers(1, 3), items=items),
    entry("ingest.commit", stream_id=stream_ids),
    entry("ingest.abort", stream_id=stream_ids),
    entry("idempotency.prune", before=st.integers(0, 30), limit=st.integers(1, 3)),
)


class RefusedError(Exception):
    """The model's word for an entry that fails."""


def found(model: Model, name: str) -> dict[int, Buckets]:
    if name not in model:
        raise RefusedError
    return model[name]


def add(counters: dict[int, Buckets], changes: list[list[int]]) -> None:
    for key, day, value in changes:
        counter = counters.setdefault(key, {})
        if sum(counter.values()) + value > U64_MAX:
            raise RefusedError
        if value:
            counter[day] = counter.get(day, 0) + value


def put(counters: dict[int, Buckets], changes: list[list[int]]) -> None:
    for key, day, value in changes:
        counter = counters.setdefault(key, {})
        if sum(counter.values()) - counter.get(day, 0) + value > U64_MAX:
            raise RefusedError
        counter[day] = value
        if not value:
            del counter[day]


def delete(counter: Buckets, first: int, last: int) -> None:
    for day in [day for day in counter if first <= day <= last]:
        del counter[day]


def change(model: Model, made: dict[str, Any]) -> None:
    """Make one change of counters to the model. Raises RefusedError, with the model spoilt."""
    op, name = made["op"], made.get("series", "")
    span = made.get("range", {"from": 0, "to": 0})
    first, last = span["from"], span["to"]
    match op:
        case "counter.increment":
            add(model.setdefault(name, {}), [[made["key"], made["bucket"], made["value"]]])
        case "counter.decrement":
            counter = model.setdefault(name, {}).setdefault(made["key"], {})
            left = counter.pop(made["bucket"], 0) - made["value"]
            if left > 0:
                counter[made["bucket"]] = left
        case "counter.reset":
            model.setdefault(name, {}).get(made["key"], {}).clear()
        case "counter.delete_range":
            delete(model.setdefault(name, {}).get(made["key"], {}), first, last)
        case "counter.batch_reset":
            for key in made["keys"]:
                found(model, name).get(key, {}).clear()
            found(model, name)
        case "counter.batch_delete_range":
            for key in made["keys"]:
                delete(found(model, name).get(key, {}), first, last)
            found(model, name)
        case "series.batch_add":
            if sum(value for _, _, value in made["items"]) > U64_MAX:
                raise RefusedError
            add(model.setdefault(name, {}), made["items"])
        case "series.batch_set":
            if made["items"]:
                put(model.setdefault(name, {}), made["items"])
        case "series.compact":
            model[name] = {key: counter for key, counter in found(model, name).items() if counter}
        case "series.delete_before":
            for counter in found(model, name).values():
                delete(counter, 0, made["before"] - 1)
            model[name] = {key: counter for key, counter in model[name].items() if counter}
        case "system.compact":
            for each in model:
                model[each] = {key: counter for key, counter in model[each].items() if counter}
        case "tree.create":
            model.setdefault(name, {})
        case "tree.reset":
            for counter in model.setdefault(name, {}).values():
                counter.clear()
        case "tree.delete_range":
            for counter in model.setdefault(name, {}).values():
                delete(counter, first, last)
        case "tree.drop":
            found(model, name)
            del model[name]


def contents(store: Store) -> Model:
    return {name: plain(series.counters) for name, series in store.series.items()}


def plain(counters: dict[int, Counter] | None) -> dict[int, Buckets]:
    return {key: dict(buckets.items(counter)) for key, counter in (counters or {}).items()}


def everything(store: Store) -> object:
    """Return all that a store holds, order included, as plain values that later changes leave alone."""
    streams = [
        (stream.describe(""), stream.chunk_fingerprints, stream.committed_at_unix, plain(stream.staged))
        for known in (store.streams.active, store.streams.committed)
        for stream in known.values()
    ]
    return deepcopy((list(contents(store).items()), streams, list(store.records.items())))


def arrays(store: Store) -> Iterator[array[int]]:
    for series in store.series.values():
        for counter in series.counters.values():
            if not isinstance(counter, int):
                yield counter


@settings(max_examples=300, deadline=None)
@given(st.lists(entries, max_size=20))
def test_every_change_is_the_model_s_and_a_failed_one_changes_nothing(made: list[dict[str, Any]]) -> None:
    store = Store()
    model: Model = {}
    streams: dict[str, tuple[str, dict[int, Buckets], str | None]] = {}
    for now, each in enumerate(made):
        before = everything(store)
        store.changed.clear()
        expected = deepcopy(model)
        expected_streams = deepcopy(streams)
        try:
            response = store.apply(each, now)
        except RequestError:
            assert everything(store) == before
            if each["op"].startswith("ingest."):
                continue
            try:
                change(expected, each)
            except RefusedError:
                continue
            raise AssertionError(f"refused, but the model takes {each}") from None
        if store.must_settle:
            store.settle()
        if each["op"].startswith("ingest."):
            ingest(expected, expected_streams, each, response)
        else:
            change(expected, each)
        # What a snapshot would have to write, and could not know otherwise.
        assert store.changed >= {name for name in expected if expected[name] != model.get(name)}
        model, streams = expected, expected_streams
        assert contents(store) == model
        assert list(store.series) == list(model)


def ingest(
    model: Model,
    streams: dict[str, tuple[str, dict[int, Buckets], str | None]],
    made: dict[str, Any],
    response: dict[str, Any],
) -> None:
    """Follow an ingest op that succeeded: what it may do to the counters depends on its mode."""
    stream_id = made["stream_id"]
    match made["op"]:
        case "ingest.begin":
            if response["status"] == "active":
                streams.setdefault(stream_id, (made["mode"], {}, None))
        case "ingest.chunk":
            mode, staged, _ = streams[stream_id]
            streams[stream_id] = (mode, staged, made["series"])
            if not response["skipped"]:
                counters = staged if mode == "replace_series" else model.setdefault(made["series"], {})
                (add if mode == "add" else put)(counters, made["items"])
        case "ingest.commit":
            mode, staged, series = streams[stream_id]
            if response["status"] == "committed" and mode == "replace_series":
                assert series is not None
                model[series] = deepcopy(staged)
        case "ingest.abort":
            del streams[stream_id]


@settings(max_examples=400, deadline=None)
@given(st.lists(entries, max_size=8), st.lists(entries, max_size=14))
def test_a_roll_back_gives_exactly_the_state_at_its_mark(
    settled: list[dict[str, Any]], unsettled: list[dict[str, Any]]
) -> None:
    store = Store()
    for number in range(4):
        store.records.put(f"k{number}", Record("increment", "f", 1, number * 10))
    for now, each in enumerate(settled):
        try_apply(store, each, now)
        store.settle()
    roll_back_each(store, unsettled)


one_counter = {"series": st.just("a"), "key": st.just(1)}
small = st.integers(1, 2)
changes_of_one_counter = st.one_of(
    entry("counter.increment", **one_counter, bucket=days, value=small),
    entry("counter.decrement", **one_counter, bucket=days, value=small),
    entry("counter.reset", **one_counter),
    entry("counter.delete_range", **one_counter, range=spans),
    entry("counter.batch_reset", series=st.just("a"), keys=st.just([1])),
    entry("counter.batch_delete_range", series=st.just("a"), keys=st.just([1]), range=spans),
    entry(
        "series.batch_add",
        series=st.just("a"),
        items=st.lists(st.tuples(st.just(1), days, small), max_size=3),
    ),
    entry(
        "series.batch_set",
        series=st.just("a"),
        items=st.lists(st.tuples(st.just(1), days, st.integers(0, 2)), max_size=3),
    ),
)


def increment(day: int, value: int = 1) -> dict[str, Any]:
    return {"op": "counter.increment", "series": "a", "key": 1, "bucket": day, "value": value}


def set_to(day: int, value: int) -> dict[str, Any]:
    return {"op": "series.batch_set", "series": "a", "items": [(1, day, value)]}


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(days, small, max_size=3), st.lists(changes_of_one_counter, max_size=8))
# The array of two days shrinks to an integer and comes back as another array.
@example({DAYS[0]: 1, DAYS[1]: 1}, [increment(DAYS[1]), set_to(DAYS[1], 0)])
@example(
    {DAYS[0]: 1, DAYS[1]: 1}, [set_to(DAYS[2], 1), increment(DAYS[0]), set_to(DAYS[2], 0), set_to(DAYS[1], 0)]
)
@example(
    {DAYS[0]: 1, DAYS[1]: 1},
    [
        {"op": "counter.delete_range", "series": "a", "key": 1, "range": {"from": DAYS[3], "to": DAYS[3]}},
        set_to(DAYS[1], 0),
    ],
)
def test_changes_that_reshape_one_counter_roll_back_to_each_mark(
    settled: dict[int, int], unsettled: list[dict[str, Any]]
) -> None:
    store = Store()
    for day, value in settled.items():
        store.apply(increment(day, value), 0)
    store.settle()
    roll_back_each(store, unsettled)


def roll_back_each(store: Store, unsettled: list[dict[str, Any]]) -> None:
    """Make changes, then take them back one by one, comparing with what was there before each."""
    marks = []
    for now, each in enumerate(unsettled, 100):
        marks.append((len(store.undo), everything(store)))
        try_apply(store, each, now)
        if store.must_settle:
            # The write path lets nothing in behind such a change before the log has it.
            break
    for mark, state in reversed(marks):
        store.roll_back(mark)
        assert everything(store) == state
        assert all(len(packed) >= 5 and packed[0] == sum(packed[2::2]) for packed in arrays(store))
    assert not store.must_settle


def try_apply(store: Store, made: dict[str, Any], now: int) -> None:
    with suppress(RequestError):
        store.apply(deepcopy(made), now)
