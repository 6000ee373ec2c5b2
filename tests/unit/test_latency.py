"""Latency histograms: percentiles within an eighth, and the last minute."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma.service.latency import Histogram, OpLatency, merged, summaries, summary


@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=50), st.sampled_from([50.0, 95.0, 99.0, 100.0]))
def test_a_percentile_is_at_most_an_eighth_too_high_and_never_too_low(
    durations: list[int], percent: float
) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.record(duration, 1)
    # The smallest duration that so many percent do not exceed.
    exact = min(
        value
        for value in durations
        if sum(other <= value for other in durations) * 100 >= percent * len(durations)
    )
    assert exact <= histogram.percentile_us(percent) <= max(exact * 9 // 8 + 1, exact)
    assert histogram.percentile_us(percent) <= max(durations)


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 1000)), max_size=20))
def test_a_merge_is_what_one_histogram_would_have_recorded(records: list[tuple[int, int]]) -> None:
    one, left, right = Histogram(), Histogram(), Histogram()
    for position, (duration, count) in enumerate(records):
        one.record(duration, count)
        (left if position % 2 else right).record(duration, count)
    together = merged([left, right])
    assert summary(together) == summary(one)
    assert (together.counts, together.sum_us) == (one.counts, one.sum_us)


def test_an_empty_histogram_is_all_zeroes() -> None:
    assert summary(Histogram()) == {"count": 0, "p50_us": 0, "p95_us": 0, "p99_us": 0, "max_us": 0}
    assert Histogram().mean_us == 0.0


def test_many_requests_of_one_pass_count_as_many() -> None:
    histogram = Histogram()
    histogram.record(100, 99)
    histogram.record(10_000, 1)
    assert summary(histogram)["count"] == 100
    assert histogram.percentile_us(50) < 120
    assert histogram.percentile_us(99) < 120
    assert histogram.percentile_us(99.5) == 10_000
    assert histogram.mean_us == pytest.approx((99 * 100 + 10_000) / 100)


def test_at_most_rises_with_its_bound() -> None:
    histogram = Histogram()
    chance = random.Random(7)
    for _ in range(1000):
        histogram.record(chance.randrange(1, 1_000_000), 1)
    found = [histogram.at_most(bound) for bound in range(0, 1_200_000, 10_000)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, 1000)


def test_the_last_minute_forgets_what_is_older() -> None:
    latency = OpLatency()
    latency.record(5_000, 1, 1000.0)
    latency.record(10, 3, 1030.0)
    assert latency.last_minute(1031.0).count == 4
    assert latency.last_minute(1075.0).count == 3
    assert latency.last_minute(1200.0).count == 0
    latency.record(20, 1, 1200.0)
    assert latency.last_minute(1200.0).count == 1
    assert latency.total.count == 5
    assert latency.total.max_us == 5_000


def test_the_summary_of_all_operations_is_sorted_by_name() -> None:
    latencies = {name: OpLatency() for name in ("tree.list", "counter.sum")}
    latencies["tree.list"].record(7, 2, 10.0)
    ops = summaries(latencies, 10.0)["ops"]
    assert isinstance(ops, dict)
    assert list(ops) == ["counter.sum", "tree.list"]
    assert ops["tree.list"]["total"] == ops["tree.list"]["last_minute"]
    assert ops["tree.list"]["total"]["max_us"] == 7
