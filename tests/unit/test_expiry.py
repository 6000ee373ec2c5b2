"""The clock by which retries are forgotten: no step of the wall clock and no downtime moves it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from karma.core.expiry import ExpiryClock, created_at
from karma.core.idempotency import Records
from karma.core.replay import Replay
from karma.core.store import Store
from karma.engine import Engine
from karma.service.clocks import ClockWatch
from karma.service.log import Log

NOON = 1_777_982_400
"""2026-05-05 12:00 UTC."""
DAY = 86_400
WEEK = 7 * DAY


class Bench:
    """An engine on two clocks that are set by hand."""

    def __init__(self, store: Store | None = None) -> None:
        self.wall, self.seconds = float(NOON), 1_000.0
        self.said: list[dict[str, Any]] = []
        self.watch = ClockWatch(
            lambda: self.wall,
            lambda: self.seconds,
            Log(lambda line: self.said.append(orjson.loads(line)), lambda: 0.0),
        )
        self.engine = Engine(store or Store())
        self.engine.expiry = self.watch.expiry

    def pass_by(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self.wall += seconds
        self.seconds += seconds
        self.watch.tick()

    def set(self, seconds: float) -> None:
        """Set the wall clock."""
        self.wall += seconds
        self.watch.tick()

    def add(self, key: str, **fields: Any) -> bool | str:
        """Add 1 under an idempotency key; return whether it was recognised, or the error code."""
        self.engine.begin_pass(int(self.wall * 1000))
        request = {"v": 2, "op": "counter.increment", "series": "a", "key": 1, "idempotency_key": key}
        line = self.engine.execute(orjson.dumps(request | fields))
        assert isinstance(line, bytes)
        reply = orjson.loads(line)
        outcome: bool | str = reply["idempotent"] if reply["success"] else reply["error_code"]
        return outcome

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [orjson.loads(entry) for entry in self.engine.entries]

    def restarted(self, *, down_seconds: float = 0.0) -> Bench:
        """Return the same after a restart that has replayed the log."""
        store = Store(Records())
        replay = Replay(store)
        for lsn, entry in enumerate(self.entries, 1):
            # The log's times are the wall clock's.
            assert replay.apply(lsn, entry, int(self.wall)) is None
        again = Bench(store)
        again.wall = self.wall + down_seconds
        again.watch.start(store.records.newest_unix)
        return again


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("step", [8 * DAY, -8 * DAY, 365 * DAY, -365 * DAY])
def test_a_step_of_the_clock_forgets_no_retry(bench: Bench, step: float) -> None:
    assert [bench.add(f"k{number}", bucket=20260505) for number in range(20)] == [False] * 20
    bench.set(step)
    assert [bench.add(f"k{number}", bucket=20260505) for number in range(20)] == [True] * 20
    assert bench.add("after", bucket=20260505) is False
    bench.pass_by(DAY)
    assert bench.add("k0", bucket=20260505) is True
    again = bench.restarted()
    assert [again.add(f"k{number}", bucket=20260505) for number in range(20)] == [True] * 20
    assert again.add("after", bucket=20260505) is True
    again.set(-step)
    assert again.add("k0", bucket=20260505) is True
    assert again.add("after", bucket=20260505) is True


@pytest.mark.parametrize("step", [0.0, 8 * DAY, -8 * DAY])
def test_retries_are_forgotten_after_their_time_all_the_same(bench: Bench, step: float) -> None:
    bench.add("k", bucket=20260505)
    bench.pass_by(DAY)
    bench.set(step)
    bench.pass_by(6 * DAY - 1)
    assert bench.add("k", bucket=20260505) is True
    bench.pass_by(1)
    assert bench.add("k", bucket=20260505) is False


def test_downtime_ages_nothing(bench: Bench) -> None:
    bench.add("k", bucket=20260505)
    bench.pass_by(3 * DAY)
    bench.add("l", bucket=20260505)
    again = bench.restarted(down_seconds=100 * DAY)
    assert again.watch.expiry.behind_seconds == 100 * DAY
    assert again.add("k", bucket=20260505) is True
    again.pass_by(4 * DAY)
    assert [again.add(key, bucket=20260505) for key in "kl"] == [False, True]


def test_a_clock_without_data_starts_at_the_wall_clock_s_time(bench: Bench) -> None:
    bench.watch.start(0)
    assert (bench.watch.expiry.now_unix, bench.watch.expiry.behind_seconds) == (NOON, 0)
    # A restart that takes a minute is not worth a clock of its own.
    bench.watch.start(NOON - 60)
    assert bench.watch.expiry.now_unix == NOON
    bench.watch.start(NOON - 61)
    assert bench.watch.expiry.now_unix == NOON - 61
    assert bench.said == []
    bench.watch.start(NOON + 3600)
    assert bench.watch.expiry.now_unix == NOON + 3600
    assert [(line["level"], line["event"], line["seconds"]) for line in bench.said] == [
        ("warning", "clock_behind_data", 3600)
    ]


def test_a_follower_s_clock_is_its_source_s(bench: Bench) -> None:
    bench.watch.expiry.follow(NOON - 8 * DAY)
    bench.pass_by(5)
    assert bench.watch.expiry.now_unix == NOON - 8 * DAY + 5
    assert bench.watch.expiry.behind_seconds == 8 * DAY


def test_a_step_is_logged_and_counted_once(bench: Bench) -> None:
    for slew in (60, -60, 0.5):
        bench.set(slew)
        bench.pass_by(10)
    assert bench.said == []
    for step, direction in ((8 * DAY, "forward"), (-3600, "back")):
        bench.set(step)
        bench.pass_by(10)
        assert (bench.said[-1]["event"], bench.said[-1]["seconds"]) == (
            "clock_step",
            pytest.approx(step, abs=1),
        )
        assert f"set {direction} by" in bench.said[-1]["message"]
    assert len(bench.said) == bench.watch.expiry.step_count == 2
    assert bench.watch.expiry.last_step_seconds == -3600


def test_times_noted_are_the_wall_clock_s_while_that_is_close(bench: Bench) -> None:
    assert created_at(NOON + 60, NOON) == NOON + 60
    assert created_at(NOON - 60, NOON) == NOON - 60
    assert created_at(NOON + 61, NOON) == NOON
    assert created_at(NOON - 61, NOON) == NOON
    bench.add("k")
    bench.set(8 * DAY)
    bench.add("l")
    noted = [(one["idempotency_created_at_unix"], one.get("idempotency_today")) for one in bench.entries]
    assert noted == [(NOON, None), (NOON, 20260513)]


def test_a_retry_without_a_day_means_the_day_it_was_first_given(bench: Bench) -> None:
    bench.set(8 * DAY)
    assert bench.add("k") is False
    assert bench.entries[0]["bucket"] == 20260513
    bench.pass_by(DAY)
    again = bench.restarted()
    for node in (bench, again):
        assert node.add("k") is True
        assert node.add("k", bucket=20260513) is True
        assert node.add("k", bucket=20260505) == "idempotency_conflict"


def test_an_entry_with_an_odd_day_is_refused(bench: Bench) -> None:
    bench.set(8 * DAY)
    bench.add("k")
    with pytest.raises(TypeError, match="idempotency_today"):
        Replay(Store()).apply(1, bench.entries[0] | {"idempotency_today": "x"}, NOON)


def test_the_clock_does_not_go_back(bench: Bench) -> None:
    clock = ExpiryClock(NOON, 0.0)
    readings = []
    for monotonic, wall in ((1.0, NOON), (2.0, 0), (3.0, NOON * 2), (4.0, NOON)):
        clock.observe(wall, monotonic)
        readings.append(clock.now_unix)
    assert readings == [NOON + 1, NOON + 2, NOON + 3, NOON + 4]
