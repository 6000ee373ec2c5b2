"""Pages of tree.keys from a view: what the first one costs, what later ones do, and how long it is kept."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from karma.core import key_view
from karma.core.key_view import IDLE_TICKS
from karma.core.store import Store
from karma.engine import Engine, Settings
from karma.engine.dispatch import OWN_WORK, SHARED_WORK
from karma.engine.reads import OWN_RUNS

DAY = 20260505
RUN_KEYS = 16
KEYS = 1_000


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(key_view, "RUN_KEYS", RUN_KEYS)
    made = Engine(Store(), Settings(inline_keys=0))
    made.begin_pass(1_777_982_400_000)
    keys = list(range(KEYS))
    Random(1).shuffle(keys)
    made.store.apply({"op": "series.batch_add", "series": "a", "items": [[key, DAY, 1] for key in keys]}, 0)
    made.store.settle()
    return made


def page(engine: Engine, **fields: Any) -> tuple[list[int], int | None, list[float]]:
    """Return a page's keys, its next cursor, and what its slices yielded."""
    slices: Any = engine.execute(json.dumps({"v": 2, "op": "tree.keys", "series": "a", **fields}).encode())
    yielded = []
    while True:
        try:
            yielded.append(next(slices))
        except StopIteration as end:
            response = json.loads(end.value)["response"]
            return [entry["key"] for entry in response["keys"]], response["next_cursor"], yielded


def test_the_first_page_sorts_in_steps_and_later_ones_cost_what_they_return(engine: Engine) -> None:
    start = 0
    keys, cursor, first = page(engine, limit=10)
    assert (keys, cursor) == (list(range(10)), 9)
    assert len(first) > KEYS // RUN_KEYS
    while cursor is not None:
        start = cursor + 1
        keys, cursor, later = page(engine, limit=10, cursor=cursor)
        assert keys == list(range(start, start + 10))
        assert len(later) == 1
    assert start + 10 == KEYS


def test_the_query_timeout_ends_no_sorting_that_later_pages_use(engine: Engine) -> None:
    _, _, yielded = page(engine)
    runs = KEYS // RUN_KEYS
    assert yielded[:runs] == [OWN_WORK] * OWN_RUNS + [SHARED_WORK] * (runs - OWN_RUNS)


def test_a_page_shows_keys_that_came_since_and_none_that_went(engine: Engine) -> None:
    page(engine)
    view = engine.store.series["a"].view
    for key in (KEYS, KEYS + 500):
        engine.store.increment("a", key, DAY, 1)
    engine.store.settle()
    assert page(engine, cursor=KEYS - 2)[0] == [KEYS - 1, KEYS, KEYS + 500]
    engine.store.apply({"op": "counter.reset", "series": "a", "key": KEYS - 1}, 0)
    engine.store.apply({"op": "series.compact", "series": "a"}, 0)
    engine.store.settle()
    assert page(engine, cursor=KEYS - 2)[0] == [KEYS, KEYS + 500]
    while engine.store.chores:
        engine.store.do_chore()
    engine.store.increment("a", KEYS - 1, DAY, 1)
    engine.store.settle()
    assert page(engine, cursor=KEYS - 3)[0] == [KEYS - 2, KEYS - 1, KEYS, KEYS + 500]
    assert view is not None


def test_a_view_is_dropped_after_a_minute_without_a_page(engine: Engine) -> None:
    page(engine)
    series = engine.store.series["a"]
    for _ in range(2):
        for _ in range(IDLE_TICKS):
            engine.tick()
        assert series.view is not None
        page(engine)
    for _ in range(IDLE_TICKS + 1):
        engine.tick()
    assert (series.view, engine.store.viewed) == (None, [])
    assert page(engine, limit=2)[0] == [0, 1]


def test_a_series_that_is_replaced_has_a_view_of_its_new_keys(engine: Engine) -> None:
    page(engine)
    for op, fields in (
        ("ingest.begin", {"mode": "replace_series", "granularity": "day"}),
        ("ingest.chunk", {"series": "a", "chunk_seq": 1, "items": [[7, DAY, 1]]}),
        ("ingest.commit", {}),
    ):
        engine.store.apply({"op": op, "stream_id": "s", **fields}, 0)
        engine.store.settle()
    assert page(engine)[:2] == ([7], None)
    assert engine.store.chores, "what was replaced is freed in steps"
