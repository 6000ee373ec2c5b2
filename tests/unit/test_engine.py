"""The engine without a server: time as an argument, entries, access and what a bug does."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from karma.core import series as core_series
from karma.core.store import Store
from karma.engine import Effect, Engine, Settings, dispatch
from karma.engine.dispatch import Slices
from karma.errors import ErrorCode, RequestError
from karma.ops import BY_NAME, OPS

NOON = 1_777_982_400_000
"""2026-05-05 12:00 UTC in milliseconds."""
HOUR = 3_600_000


def engine_at(now_ms: int = NOON, settings: Settings | None = None) -> Engine:
    engine = Engine(Store(), settings)
    engine.begin_pass(now_ms)
    return engine


def call(engine: Engine, op: str, **fields: Any) -> dict[str, Any]:
    outcome = engine.execute(json.dumps({"v": 2, "op": op, **fields}).encode())
    assert not isinstance(outcome, Effect)
    reply: dict[str, Any] = json.loads(outcome if isinstance(outcome, bytes) else finish(outcome)[0])
    return reply


def finish(outcome: Slices) -> tuple[bytes, int]:
    """Run a read in slices to its end; returns its reply and how often it yielded."""
    slices = 0
    while True:
        try:
            next(outcome)
        except StopIteration as end:
            return end.value, slices
        slices += 1


def entries(engine: Engine) -> list[dict[str, Any]]:
    return [json.loads(entry) for entry in engine.entries]


def test_a_pass_has_one_day_and_the_next_may_have_another() -> None:
    engine = engine_at(NOON)
    assert engine.today == 20260505
    engine.begin_pass(NOON + 12 * HOUR - 1)
    assert engine.today == 20260505
    engine.begin_pass(NOON + 12 * HOUR)
    assert engine.today == 20260506
    for now_ms, day in ((0, 19700101), (951_782_400_000, 20000229), (4_102_444_799_999, 20991231)):
        engine.begin_pass(now_ms)
        assert engine.today == day


@pytest.mark.parametrize("op", ["counter.increment", "counter.decrement", "limit.consume"])
def test_a_retry_past_midnight_is_recognised_when_it_leaves_the_bucket_out(op: str) -> None:
    engine = engine_at()
    fields = {"series": "a", "key": 1, "value": 2, "idempotency_key": "k"} | (
        {"limit": 5} if op == "limit.consume" else {}
    )
    first = call(engine, op, **fields)
    assert first["idempotent"] is False
    engine.begin_pass(NOON + 24 * HOUR)
    assert call(engine, op, **fields) == {**first, "idempotent": True}
    assert len(engine.entries) == 1
    # One that names another day is another request, and so is one that names the old one differently.
    assert call(engine, op, **fields, bucket=20260506)["error_code"] == "idempotency_conflict"
    assert call(engine, op, **fields, bucket=20260505)["idempotent"] is True
    assert call(engine, op, **fields, date=20260505)["idempotent"] is True


def test_a_retry_of_a_named_bucket_must_name_it_again() -> None:
    engine = engine_at()
    fields = {"series": "a", "key": 1, "idempotency_key": "k"}
    call(engine, "counter.increment", **fields, bucket=20200101)
    assert call(engine, "counter.increment", **fields)["error_code"] == "idempotency_conflict"
    assert call(engine, "counter.increment", **fields, bucket="2020-01-01")["idempotent"] is True


def test_a_record_is_forgotten_by_age_and_by_number() -> None:
    engine = engine_at()
    engine.store.records.max_age_seconds = 3600
    engine.store.records.max_records = 3
    fields = {"series": "a", "key": 1, "bucket": 20260505}
    call(engine, "counter.increment", **fields, idempotency_key="old")
    engine.begin_pass(NOON + HOUR - 1000)
    assert call(engine, "counter.increment", **fields, idempotency_key="old")["idempotent"] is True
    engine.begin_pass(NOON + HOUR)
    assert call(engine, "counter.increment", **fields, idempotency_key="old")["idempotent"] is False
    for number in range(3):
        call(engine, "counter.increment", **fields, idempotency_key=f"new {number}")
    assert call(engine, "counter.increment", **fields, idempotency_key="new 0")["idempotent"] is True
    assert len(engine.store.records) == 3
    assert call(engine, "counter.increment", **fields, idempotency_key="old")["idempotent"] is False


def test_the_number_7_and_the_text_7_are_one_idempotency_key() -> None:
    engine = engine_at()
    fields = {"series": "a", "key": 1, "bucket": 20260505}
    call(engine, "counter.increment", **fields, idempotency_key=7)
    assert call(engine, "counter.increment", **fields, idempotency_key="7")["idempotent"] is True


def test_entries_hold_their_fields_resolved() -> None:
    engine = engine_at()
    call(engine, "series.increment", tree="a", key=1)
    call(engine, "counter.increment", series="a", key=1, idempotency_key=9)
    call(engine, "counter.batch_increment", series="a", items=[[1, "2026-05-04", 2]])
    call(engine, "tree.delete_before", series="a", date=20260101)
    call(engine, "counter.sum", series="a", key=1)
    call(engine, "counter.increment", series="", key=1)
    assert entries(engine) == [
        {"v": 2, "op": "counter.increment", "series": "a", "key": 1, "bucket": 20260505, "value": 1},
        {
            "v": 2,
            "op": "counter.increment",
            "series": "a",
            "key": 1,
            "bucket": 20260505,
            "value": 1,
            "idempotency_key": "9",
            "idempotency_created_at_unix": NOON // 1000,
        },
        {"v": 2, "op": "series.batch_add", "series": "a", "granularity": "day", "items": [[1, 20260504, 2]]},
        {"v": 2, "op": "series.delete_before", "series": "a", "before": 20260101},
    ]


def test_the_fast_way_of_an_increment_is_the_same_as_the_long_one() -> None:
    for fields in (
        {},
        {"value": 3},
        {"bucket": 20260401},
        {"bucket": 20260401, "value": 3},
    ):
        fast, long = engine_at(), engine_at()
        for engine in (fast, long):
            # The fast way is for series that exist.
            call(engine, "tree.create", series='a"\\\u00e9')
        found = call(fast, "counter.increment", series='a"\\\u00e9', key=2**64 - 1, **fields)
        # Another field leads the long way round.
        assert (
            call(long, "counter.increment", series='a"\\\u00e9', key=2**64 - 1, **fields, unknown=1) == found
        )
        assert entries(fast) == entries(long)
        span = {"from": 20260101, "to": 20261231}
        for engine in (fast, long):
            assert len(call(engine, "tree.series", series='a"\\\u00e9', range=span)["response"]) == 1


def test_an_effect_carries_checked_fields_and_changes_nothing() -> None:
    engine = engine_at()
    outcome = engine.execute(b'{"v":2,"op":"snapshot.fetch_chunk","file":"1_a.tree","offset":5}')
    assert outcome == Effect("snapshot.fetch_chunk", {"file": "1_a.tree", "offset": 5, "limit": 262_144})
    assert engine.entries == []


def test_a_refusal_of_the_node_stops_writes_behind_their_fields() -> None:
    engine = engine_at()
    call(engine, "tree.create", series="a")
    engine.entries.clear()
    engine.refusal = lambda: RequestError(ErrorCode.FORBIDDEN, "no", {"reason": "role"})
    assert call(engine, "counter.increment", series="a", key=1)["error_detail"] == {"reason": "role"}
    assert call(engine, "counter.increment", series="a")["error_code"] == "validation_error"
    assert call(engine, "counter.sum", series="a", key=1)["response"] == 0
    assert engine.entries == []


def test_a_bug_is_an_internal_error_that_quotes_nothing_of_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_at()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("s3cret")

    monkeypatch.setattr(Store, "apply", fail)
    reply = call(engine, "tree.create", series="s3cret")
    assert reply["error_code"] == "internal_error"
    assert "s3cret" not in reply["response"]
    assert "ZeroDivisionError" in reply["response"]
    assert len(engine.counters.internal_errors) == 1
    assert engine.entries == []


def test_a_large_read_yields_and_sees_keys_that_vanish_meanwhile() -> None:
    engine = engine_at()
    for first in range(0, 20_000, 10_000):
        call(
            engine,
            "series.batch_add",
            series="a",
            items=[[key, 20260505, 1] for key in range(first, first + 10_000)],
        )
    outcome = engine.execute(b'{"v":2,"op":"tree.info","series":"a"}')
    assert not isinstance(outcome, bytes | Effect)
    next(outcome)
    call(engine, "tree.reset", series="a")
    call(engine, "series.compact", series="a")
    call(engine, "counter.increment", series="a", key=10**6)
    line, slices = finish(outcome)
    assert slices >= 1
    assert json.loads(line)["response"]["key_count"] < 20_000


def test_every_op_of_the_table_is_bound_and_every_name_is_its_own() -> None:
    engine = engine_at()
    assert set(engine._handlers) == set(BY_NAME)
    names = [name for op in OPS for name in (op.name, *op.aliases)]
    assert len(names) == len(set(names))


def test_counting_who_may_read() -> None:
    open_engine, guarded = engine_at(), engine_at(settings=Settings(auth_token="w", read_auth_token="r"))
    assert open_engine.may_read("")
    assert not guarded.may_read("")
    assert guarded.may_read("r")
    assert guarded.may_read("w")
    assert guarded.describe_line(b'{"op":"tree.list","token":"r"}') == ("tree.list", "read")
    assert guarded.describe_line(b'{"op":"series.sum","token":"w"}') == ("counter.sum", "write")
    # Of a long line only the ends are kept: to parse it again takes as long as its execution did.
    cut = b'{"v":2,"x":[[],[],],[]],"op":"series.sum","token":"w"}'
    assert guarded.describe_line(cut) == ("counter.sum", "write")
    for odd in (b"", b"[]", b"{", b'{"op":7,"token":[]}', b'{"op":"nonsense"}'):
        assert guarded.describe_line(odd) == (None, "none")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"v":2,"op":"nothing"}', "unknown_command"),
        (b'{"v":2}', "validation_error"),
        (b'{"v":1,"op":"system.ping"}', "unsupported_protocol"),
        (b"[1]", "validation_error"),
        (b"{", "invalid_json"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_line_that_is_refused_was_parsed_once(
    line: bytes, code: str, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parse of 1.9 MB holds everyone up for 45 ms, and costs its sender nothing."""
    parsed: list[bytes] = []

    def loads(text: bytes) -> Any:
        parsed.append(text)
        return orjson.loads(text)

    monkeypatch.setattr(dispatch, "loads", loads)
    engine = engine_at(settings=Settings(legacy_protocol=legacy))
    reply = engine.execute(line)
    assert isinstance(reply, bytes)
    assert (json.loads(reply)["error_code"], parsed) == (code, [line])


def test_a_refusal_does_not_grow_with_the_word_that_it_quotes() -> None:
    reply = engine_at().execute(b'{"v":2,"op":"%b"}' % (b"x" * 1_000_000))
    assert isinstance(reply, bytes)
    assert b"Unknown op xxx" in reply
    assert len(reply) < 1_000


WRITES_OF_VALUES: list[tuple[str, dict[str, Any]]] = [
    ("counter.increment", {"key": 1, "value": 101}),
    ("counter.increment", {"key": 1, "bucket": 20260505, "value": 101}),
    ("counter.increment", {"key": 1, "value": 101, "idempotency_key": "k"}),
    ("counter.decrement", {"key": 1, "value": 101}),
    ("limit.consume", {"key": 1, "value": 101, "limit": 1000}),
    ("series.batch_add", {"items": [[1, 20260505, 1], [2, 20260505, 101]]}),
    ("series.batch_set", {"items": [[1, 20260505, 101], [2, 20260505, 0]]}),
    ("ingest.chunk", {"stream_id": "s", "chunk_seq": 1, "items": [[1, 20260505, 101]]}),
]


@pytest.mark.parametrize(("op", "fields"), WRITES_OF_VALUES)
def test_max_value_refuses_a_larger_value_or_item_and_takes_the_largest(
    op: str, fields: dict[str, Any]
) -> None:
    engine = engine_at(settings=Settings(max_value=100))
    call(engine, "tree.create", series="a")
    call(engine, "ingest.begin", stream_id="s", mode="add")
    engine.entries.clear()
    refused = call(engine, op, series="a", **fields)
    assert refused["error_code"] == "validation_error"
    assert "max-value (100)" in refused["response"]
    assert (engine.entries, engine.store.series["a"].counters) == ([], {})
    allowed = json.loads(json.dumps(fields).replace("101", "100"))
    assert call(engine, op, series="a", **allowed)["success"]


@pytest.mark.parametrize(("op", "fields"), WRITES_OF_VALUES)
def test_without_max_value_the_largest_number_is_taken(op: str, fields: dict[str, Any]) -> None:
    engine = engine_at()
    call(engine, "ingest.begin", stream_id="s", mode="add")
    largest = json.loads(json.dumps(fields).replace("101", str(2**64 - 1)))
    if op in ("series.batch_add", "limit.consume"):
        largest = json.loads(json.dumps(fields).replace("101", str(2**64 - 2)))
        largest |= {"limit": 2**64 - 1} if op == "limit.consume" else {}
    assert call(engine, op, series="a", **largest)["success"]


SPAN = {"from": 20260501, "to": 20260531}
READS: list[tuple[str, dict[str, Any]]] = [
    ("tree.info", {}),
    ("tree.keys", {}),
    ("tree.keys", {"limit": 2, "cursor": 1}),
    ("tree.summary", {}),
    ("tree.summary", {"range": SPAN}),
    ("tree.top", {}),
    ("tree.top", {"range": SPAN, "limit": 2}),
    ("tree.series", {"range": SPAN}),
    *[("counter.sum", {"key": key}) for key in range(7)],
    *[("counter.sum", {"key": key, "range": SPAN}) for key in range(7)],
    *[("counter.series", {"key": key, "range": SPAN}) for key in range(7)],
    ("counter.batch_sum", {"keys": list(range(7))}),
    ("counter.batch_sum", {"keys": list(range(7)), "range": SPAN}),
    ("counter.multi_sum", {"items": [{"series": "a", "key": key} for key in range(7)]}),
    ("limit.check", {"items": [{"series": "a", "key": 1, "limit": 5, "window": "total"}]}),
    ("counter.batch_sum", {"keys": list(range(7)) * 400}),
    ("counter.multi_sum", {"items": [{"series": "a", "key": key % 7} for key in range(3000)]}),
]
WRITES_AFTER: list[tuple[str, dict[str, Any]]] = [
    ("limit.consume", {"key": 0, "limit": 4, "window": "total"}),
    ("counter.decrement", {"key": 1, "bucket": 20260501}),
    ("counter.batch_delete_range", {"keys": [0, 1, 2], "range": SPAN}),
    ("counter.batch_reset", {"keys": [0, 1, 2, 99]}),
    ("counter.reset", {"key": 3}),
    ("series.batch_set", {"items": [[4, 20260501, 0], [0, 20260501, 2]]}),
    ("series.batch_set", {"items": [[4, 20200101, 0]]}),
]
DELETIONS: list[tuple[str, dict[str, Any]]] = [
    ("series.delete_before", {"before": 20260502}),
    ("tree.delete_range", {"range": {"from": 20260501, "to": 20260502}}),
    ("tree.reset", {}),
    ("series.compact", {}),
]


@pytest.mark.parametrize("deletion", DELETIONS, ids=[op for op, _ in DELETIONS])
@pytest.mark.parametrize("swept", [0, 1])
def test_no_request_sees_how_far_a_deletion_is_applied(
    deletion: tuple[str, dict[str, Any]], swept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_series, "CHORE_KEYS", 2)
    engines = [engine_at(settings=Settings(inline_keys=keys)) for keys in (0, 1_000_000)]
    for engine in engines:
        items = [[key, 20260501 + at, 1 + key] for key in range(5) for at in range(key % 3 + 1)]
        call(engine, "series.batch_add", series="a", items=items)
        call(engine, "counter.reset", series="a", key=4)
        engine.store.settle()
        op, fields = deletion
        assert call(engine, op, series="a", **fields)["success"]
        engine.store.settle()
    for _ in range(swept):
        engines[0].store.do_chore()
    assert engines[0].store.chores
    assert not engines[1].store.chores
    for op, fields in READS + WRITES_AFTER + READS:
        named = fields if op in ("counter.multi_sum", "limit.check") else {"series": "a", **fields}
        replies = [call(engine, op, **named) for engine in engines]
        assert replies[0] == replies[1], (op, fields)
