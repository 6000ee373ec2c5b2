"""How long requests took, per operation: since the start and over the last minute.

A histogram has eight buckets for each power of two of microseconds, so a percentile is at most 12 %
too high. Whole passes are recorded at once: every request of a pass waited for the same release.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

_SUB_BITS = 3
_BUCKETS = 40 << _SUB_BITS
_SLICES = 6
_SLICE_SECONDS = 10


def _bucket_of(microseconds: int) -> int:
    if microseconds < 1 << _SUB_BITS:
        return microseconds
    exponent = microseconds.bit_length() - 1 - _SUB_BITS
    return min(((exponent + 1) << _SUB_BITS) + (microseconds >> exponent) - (1 << _SUB_BITS), _BUCKETS - 1)


def _upper_bound_us(bucket: int) -> int:
    if bucket < 1 << _SUB_BITS:
        return bucket
    exponent = (bucket >> _SUB_BITS) - 1
    return ((1 << _SUB_BITS) + (bucket & ((1 << _SUB_BITS) - 1)) + 1 << exponent) - 1


class Histogram:
    """Counts of durations in microseconds."""

    __slots__ = ("count", "counts", "last_us", "max_us", "sum_us")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.count = 0
        self.sum_us = 0
        self.max_us = 0
        self.last_us = 0

    @property
    def mean_us(self) -> float:
        """The mean duration; 0 when nothing was recorded."""
        return self.sum_us / self.count if self.count else 0.0

    def record(self, microseconds: int, count: int) -> None:
        """Count requests that took equally long."""
        bucket = _bucket_of(microseconds)
        self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.count += count
        self.sum_us += microseconds * count
        self.max_us = max(self.max_us, microseconds)
        self.last_us = microseconds

    def at_most(self, bound_us: int) -> int:
        """Return how many took no longer than a bound, as far as the buckets tell."""
        return sum(count for bucket, count in self.counts.items() if _upper_bound_us(bucket) <= bound_us)

    def percentile_us(self, percent: float) -> int:
        """Return the duration that so many percent did not exceed; 0 when nothing was recorded."""
        rank, seen = self.count * percent / 100, 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return min(_upper_bound_us(bucket), self.max_us)
        return 0


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """Return one histogram of all that several recorded."""
    result = Histogram()
    for histogram in histograms:
        for bucket, count in histogram.counts.items():
            result.counts[bucket] = result.counts.get(bucket, 0) + count
        result.count += histogram.count
        result.sum_us += histogram.sum_us
        result.max_us = max(result.max_us, histogram.max_us)
    return result


class OpLatency:
    """One operation's durations. Seconds are those of a monotonic clock."""

    __slots__ = ("_slices", "total")

    def __init__(self) -> None:
        self.total = Histogram()
        self._slices: dict[int, Histogram] = {}

    def record(self, microseconds: int, count: int, now_seconds: float) -> None:
        """Count requests that took equally long and ended now."""
        self.total.record(microseconds, count)
        number = int(now_seconds) // _SLICE_SECONDS
        current = self._slices.get(number)
        if current is None:
            current = self._slices[number] = Histogram()
            for old in [slice_ for slice_ in self._slices if slice_ <= number - _SLICES]:
                del self._slices[old]
        current.record(microseconds, count)

    def last_minute(self, now_seconds: float) -> Histogram:
        """Return what was recorded over the last minute, to ten seconds."""
        oldest = int(now_seconds) // _SLICE_SECONDS - _SLICES
        return merged(part for number, part in self._slices.items() if number > oldest)


class Durations:
    """The durations of all requests, per operation.

    Noted as counts and sorted into histograms when asked for: a pass of one request is too short for that.
    """

    __slots__ = ("_by_op", "_noted")

    def __init__(self) -> None:
        self._noted: dict[tuple[str, int], int] = {}
        self._by_op: dict[str, OpLatency] = {}

    def add(self, executed: Sequence[str], microseconds: int) -> None:
        """Note operations that took equally long."""
        noted = self._noted
        if len(executed) == 1:
            spent = (executed[0], microseconds)
            noted[spent] = noted.get(spent, 0) + 1
        else:
            for op, count in Counter(executed).items():
                spent = (op, microseconds)
                noted[spent] = noted.get(spent, 0) + count

    def measured(self, now_seconds: float) -> dict[str, OpLatency]:
        """Return what was noted so far; call it about once a second."""
        noted, self._noted = self._noted, {}
        for (op, microseconds), count in noted.items():
            latency = self._by_op.get(op)
            if latency is None:
                latency = self._by_op[op] = OpLatency()
            latency.record(microseconds, count, now_seconds)
        return self._by_op


def summary(histogram: Histogram) -> dict[str, int]:
    """Return count, percentiles and maximum as system.latency shows them."""
    return {
        "count": histogram.count,
        "p50_us": histogram.percentile_us(50),
        "p95_us": histogram.percentile_us(95),
        "p99_us": histogram.percentile_us(99),
        "max_us": histogram.max_us,
    }


def summaries(latencies: Mapping[str, OpLatency], now_seconds: float) -> dict[str, object]:
    """Return the response of system.latency."""
    return {
        "ops": {
            op: {"total": summary(latency.total), "last_minute": summary(latency.last_minute(now_seconds))}
            for op, latency in sorted(latencies.items())
        }
    }
