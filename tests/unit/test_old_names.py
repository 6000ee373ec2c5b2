"""Series and days that Karma 1.0 took and a client may not make here: what exists is taken by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from karma.core.replay import Replay
from karma.core.store import Store
from karma.engine import Effect, Engine
from karma.ops import OPS, Op

NOW_MS = 1_777_982_400_000
DAY = 20260505
NAMES = {
    "long": "é" * 101,
    "204 bytes": "x" * 204,
    "control": "a\x07b",
    "nul": "a\0b",
    "delete": "\x7f",
    "empty": "",
}
ODD_DAYS = (0, 20260230, 2**32 + 7, 2**63 - 1)


def engine_with(*entries: dict[str, Any]) -> Engine:
    """An engine whose store was restored from a log."""
    store = Store()
    replay = Replay(store)
    for lsn, entry in enumerate(entries, 1):
        assert replay.apply(lsn, entry, NOW_MS // 1000) is None
    engine = Engine(store)
    engine.begin_pass(NOW_MS)
    return engine


def add(series: str, key: int = 42, bucket: int = DAY, value: int = 5) -> dict[str, Any]:
    return {"op": "counter.increment", "series": series, "key": key, "bucket": bucket, "value": value}


def outcome_of(engine: Engine, op: str, **fields: Any) -> dict[str, Any] | None:
    """Return the reply to a request, None for what only a service can do."""
    outcome = engine.execute(json.dumps({"v": 2, "op": op, **fields}).encode())
    if isinstance(outcome, Effect):
        return None
    while not isinstance(outcome, bytes):
        try:
            next(outcome)
        except StopIteration as end:
            outcome = end.value
    engine.store.settle()
    reply: dict[str, Any] = json.loads(outcome)
    return reply


def ask(engine: Engine, op: str, **fields: Any) -> Any:
    reply = outcome_of(engine, op, **fields)
    assert reply is not None
    assert reply["success"], reply
    return reply["response"]


def about(op: Op, name: str) -> dict[str, Any]:
    """Return the fields of an operation's example, about a series."""
    fields = dict(op.example or {})
    for field in op.fields:
        if field.element:
            fields[field.name] = [{**element, "series": name} for element in fields[field.name]]
    return {**fields, "series": name} if "series" in fields else fields


OF_SERIES = [op for op in OPS if "series" in str(about(op, "here"))]


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
@pytest.mark.parametrize("op", OF_SERIES, ids=lambda op: op.name)
def test_a_series_that_exists_is_taken_by_its_name_and_a_new_one_is_refused(op: Op, name: str) -> None:
    begin = {"op": "ingest.begin", "stream_id": "import-1", "mode": "add"}
    reply = outcome_of(engine_with(add(name), begin), op.name, **about(op, name))
    assert reply is None or reply["success"], reply
    reply = outcome_of(engine_with(begin), op.name, **about(op, name))
    assert reply is not None
    assert reply["error_code"] == "validation_error"


def test_a_long_series_goes_on_counting_until_it_is_dropped() -> None:
    name = NAMES["204 bytes"]
    engine = engine_with(add(name))
    assert ask(engine, "counter.increment", series=name, key=42, value=2) == 2
    assert ask(engine, "counter.increment", tree=name, key=42, bucket="2026-05-05", value=3) == 3
    assert ask(engine, "counter.sum", series=name, key=42) == 10
    assert [json.loads(entry)["series"] for entry in engine.entries] == [name, name]
    ask(engine, "tree.drop", series=name)
    reply = outcome_of(engine, "counter.increment", series=name, key=42)
    assert reply is not None
    assert reply["error_code"] == "validation_error"


@pytest.mark.parametrize("day", ODD_DAYS)
def test_a_zero_removes_any_day_that_is_stored(day: int) -> None:
    engine = engine_with(add("api"), add("api", bucket=day), add("api", key=1))
    remove = {"series": "api", "items": [[42, day, 0]]}
    for key, value in ((42, 1), (1, 0)):
        reply = outcome_of(engine, "series.batch_set", series="api", items=[[key, day, value]])
        assert reply is not None
        assert reply["error_code"] == "validation_error", "only what is there, and only to remove it"
    assert ask(engine, "series.batch_set", **remove, idempotency_key="k") == {"applied": 1}
    assert ask(engine, "counter.sum", series="api", key=42) == 5
    retry = outcome_of(engine, "series.batch_set", **remove, idempotency_key="k")
    assert retry is not None
    assert retry["idempotent"] is True
