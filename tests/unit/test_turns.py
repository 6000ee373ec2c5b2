"""Turns: what takes long, in steps between which everyone else is served.

The clock of these tests stands still but for what a step says it takes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any, cast

import pytest

from karma.service.turns import LONGEST_PAUSE_SECONDS, TURN_SECONDS, TURN_STEPS, Turns, first_of, share_of


class FakeLoop:
    """An event loop by hand: `run_once` runs what is due, time passes by `call_later` alone."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def call_soon(self, callback: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now, next(self._numbers), callback))

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.pauses.append(seconds)
        heapq.heappush(self._due, (self.now + seconds, next(self._numbers), callback))

    def run_once(self) -> bool:
        """Run the next callback; returns whether there was any."""
        if not self._due:
            return False
        due, _, callback = heapq.heappop(self._due)
        self.now = max(self.now, due)
        callback()
        return True


class Bench:
    """Turns on a loop by hand."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.served = 0
        self.steps: list[str] = []
        self.turns = Turns(cast("Any", self.loop), lambda: self.loop.now, lambda: self.served)

    def add(self, share: str, name: str, steps: int, seconds: float) -> None:
        """Add a job of so many steps, each of which takes so long."""
        left = [steps]

        def step() -> bool:
            self.steps.append(name)
            self.loop.now += seconds
            left[0] -= 1
            return left[0] == 0

        self.turns.add(share, step)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_turn_ends_when_its_time_is_used_up(bench: Bench) -> None:
    bench.add("a", "x", 10, TURN_SECONDS / 4)
    lengths = []
    while bench.loop.run_once():
        lengths.append(len(bench.steps))
    assert lengths == [4, 8, 10]


def test_a_turn_ends_after_so_many_steps_where_the_clock_stands_still(bench: Bench) -> None:
    bench.add("a", "x", TURN_STEPS + 1, 0.0)
    assert bench.loop.run_once()
    assert len(bench.steps) == TURN_STEPS


def test_more_jobs_of_one_share_get_no_more_of_the_loop(bench: Bench) -> None:
    for number in range(20):
        bench.add("many", f"m{number}", 10, TURN_SECONDS)
    bench.add("one", "o", 10, TURN_SECONDS)
    while bench.steps.count("o") < 10:
        assert bench.loop.run_once()
    assert len(bench.steps) <= 21, "every other step is that of the share with one job"
    assert {bench.steps.count(f"m{number}") for number in range(20)} <= {0, 1}, "and its jobs take turns"


def test_the_next_turn_waits_as_long_as_the_last_took_when_others_were_served(bench: Bench) -> None:
    bench.add("a", "x", 3, 0.045)
    while bench.loop.run_once():
        bench.served += 1
    assert bench.loop.pauses == [pytest.approx(0.045)] * 2
    bench.loop.pauses.clear()
    bench.add("a", "x", 2, 60.0)
    while bench.loop.run_once():
        bench.served += 1
    assert bench.loop.pauses[-1] == LONGEST_PAUSE_SECONDS


def test_nothing_waits_when_nobody_else_was_served(bench: Bench) -> None:
    bench.add("a", "x", 5, 0.045)
    while bench.loop.run_once():
        pass
    assert (bench.loop.pauses, len(bench.steps)) == ([], 5)


def test_what_a_job_adds_comes_with_the_next_turn(bench: Bench) -> None:
    """A client's replies leave before its next large request is executed."""
    turns_of: list[float] = []

    def step() -> bool:
        turns_of.append(bench.loop.now)
        bench.loop.now += 1e-6
        if len(turns_of) < 3:
            bench.turns.add("a", step)
        return True

    bench.turns.add("a", step)
    ran = 0
    while bench.loop.run_once():
        ran += 1
        assert len(turns_of) == ran


def test_a_job_that_fails_does_not_stop_the_others(bench: Bench) -> None:
    def fail() -> bool:
        raise ValueError

    bench.turns.add("a", fail)
    bench.add("b", "x", 1, 0.0)
    with pytest.raises(ValueError, match=r"^$"):
        bench.loop.run_once()
    while bench.loop.run_once():
        pass
    assert bench.steps == ["x"]


def test_a_turn_takes_one_long_line_or_short_ones_of_the_same_size() -> None:
    assert first_of([b"x" * 9_000, b"y"]) == ([b"x" * 9_000], [b"y"])
    assert first_of([b"x" * 4_000, b"y" * 4_000, b"z" * 4_000]) == (
        [b"x" * 4_000, b"y" * 4_000],
        [b"z" * 4_000],
    )
    assert first_of([]) == ([], [])


def test_a_share_is_that_of_an_address_and_what_its_token_may_do() -> None:
    assert share_of("10.0.0.1:5000", "read") == share_of("10.0.0.1:5001", "read")
    assert share_of("10.0.0.1:5000", "read") != share_of("10.0.0.1:5000", "write")
    assert share_of("::1:5000", "read") != share_of("::2:5000", "read")
