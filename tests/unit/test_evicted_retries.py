"""Retries whose record went to make room for others: they count again, and that is seen."""

from __future__ import annotations

import json
from typing import Any

from karma.core.idempotency import Record, Records
from karma.core.store import Store
from karma.engine import Engine

NOW = 1_795_253_093
DAY = 20260505


class Bench:
    def __init__(self, max_records: int, max_age_seconds: int = 1000) -> None:
        self.engine = Engine(Store(Records(max_records, max_age_seconds)))
        self.now_unix = NOW

    def write(self, key: str, op: str = "counter.increment", **fields: Any) -> dict[str, Any]:
        request = {"v": 2, "op": op, "series": "a", "key": 1, "bucket": DAY, "idempotency_key": key, **fields}
        self.engine.begin_pass(self.now_unix * 1000)
        outcome = self.engine.execute(json.dumps(request).encode())
        assert isinstance(outcome, bytes)
        self.engine.store.settle()
        reply: dict[str, Any] = json.loads(outcome)
        return reply

    @property
    def retries(self) -> int:
        return self.engine.counters.idempotency_evicted_retries

    @property
    def evicted(self) -> int:
        return self.engine.store.records.evicted_count


def test_a_retry_whose_record_went_to_make_room_is_counted() -> None:
    bench = Bench(max_records=3)
    for number in range(5):
        assert bench.write(f"k{number}")["idempotent"] is False
    assert (bench.evicted, bench.retries) == (2, 0)
    # Those that are remembered are not new, and counted as what they are.
    assert bench.write("k4")["idempotent"] is True
    assert bench.retries == 0
    assert bench.write("k0")["idempotent"] is False
    assert bench.retries == 1
    limit = {"limit": 1000, "window": "day"}
    assert bench.write("k1", "limit.consume", **limit)["idempotent"] is False
    assert bench.retries == 2
    assert bench.write("k0")["idempotent"] is True


def test_new_keys_and_old_age_are_no_such_retries() -> None:
    bench = Bench(max_records=100, max_age_seconds=10)
    for number in range(100):
        bench.write(f"k{number}")
    bench.now_unix += 100
    for number in range(100):
        assert bench.write(f"k{number}")["idempotent"] is False
    assert (bench.evicted, bench.retries) == (0, 0)
    for number in range(1000):
        bench.write(f"other{number}")
    assert bench.evicted > 900
    assert bench.retries == 0


def test_what_an_operator_prunes_is_not_evicted() -> None:
    records = Records(max_records=10)
    for number in range(10):
        records.put(f"k{number}", Record("increment", "f", 1, NOW))
    records.prune(NOW + 1)
    assert not records.was_evicted("k0")
    assert records.evicted_count == 0
