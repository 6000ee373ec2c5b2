"""The client's core over a simulated network: any order of refusals, losses and silences, in no time."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import failure, success

from karma_client.calls import Exchange, Pending, number, read, write
from karma_client.core import Core
from karma_client.errors import (
    ForbiddenError,
    KarmaError,
    NotFoundError,
    RequestTimeoutError,
    UnknownOutcomeError,
    UnreachableError,
)
from karma_client.network import run
from karma_client.nodes import Node
from karma_client.settings import Settings, Timeouts, TokenSource

T = TypeVar("T")
NODE = Node("a", 1)
PAUSED = failure("forbidden", "paused", reason="paused")
MISSING = failure("not_found", "missing")

# What the simulated server does with a request: applies and answers it, refuses it, fails it, applies it and
# breaks the connection before or within the answer, breaks it before applying, applies it and says nothing,
# or never gets it.
DEEDS = [
    "apply",
    "refuse",
    "fail",
    "apply and break",
    "break",
    "break within",
    "apply in silence",
    "unreachable",
]


@dataclass
class World:
    """A server that counts what it applies, behind a network that does what the script says."""

    deeds: list[str]
    seconds_per_exchange: float = 0.01
    now: float = 100.0
    applied: list[int] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    """Idempotency keys applied."""

    def clock(self) -> float:
        return self.now

    def chance(self) -> float:
        return 0.5

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def acquire(self, _timeout_seconds: float) -> bool:
        return True

    def release(self) -> None:
        pass

    async def gather(self, works: list[Coroutine[Any, Any, T]]) -> list[T]:
        return [await work for work in works]

    async def open(self, node: Node, timeout_seconds: float) -> SimulatedChannel:
        if self.deeds and self.deeds[0] == "unreachable":
            self.deeds.pop(0)
            self.now += timeout_seconds
            raise ConnectionRefusedError("connection refused")
        return SimulatedChannel(node, self)

    def apply(self, request: dict[str, Any]) -> None:
        key = request.get("idempotency_key")
        if key is None or key not in self.known:
            self.applied.append(request["key"])
        if key is not None:
            self.known.add(key)


@dataclass
class SimulatedChannel:
    node: Node
    world: World
    is_open: bool = True

    def is_usable(self) -> bool:
        return self.is_open

    def close(self) -> None:
        self.is_open = False

    async def exchange(self, exchange: Exchange, timeout_seconds: float) -> None:
        assert self.is_open, "a closed connection was used"
        world = self.world
        exchange.has_left = True
        if timeout_seconds < world.seconds_per_exchange:
            world.now += timeout_seconds
            raise TimeoutError
        world.now += world.seconds_per_exchange
        for line in exchange.data.splitlines():
            request = json.loads(line)
            deed = world.deeds.pop(0) if world.deeds else "apply"
            if deed == "fail" and request.get("idempotency_key") in world.known:
                # The server remembers how it answered the first time.
                deed = "apply"
            if deed.startswith("apply"):
                world.apply(request)
            if deed == "apply in silence":
                world.now += timeout_seconds
                raise TimeoutError
            if deed in ("apply and break", "break", "unreachable"):
                raise ConnectionResetError("broken")
            if deed == "break within":
                exchange.feed(success(1)[:9])
                raise ConnectionResetError("broken")
            exchange.feed({"refuse": PAUSED, "fail": MISSING}.get(deed) or success(request["key"]))


def core_over(world: World, **options: Any) -> Core:
    return Core(Settings((NODE,), "master", TokenSource(None, None), **options), world)


def increments(keyed: list[bool]) -> list[Pending[int]]:
    return [
        Pending(write("counter.increment", number, key=key, idempotency_key=f"k{key}" if has_key else None))
        for key, has_key in enumerate(keyed)
    ]


@settings(max_examples=400)
@given(st.lists(st.booleans(), min_size=1, max_size=6), st.lists(st.sampled_from(DEEDS), max_size=12))
def test_nothing_is_ever_applied_twice_and_every_outcome_is_true(keyed: list[bool], deeds: list[str]) -> None:
    world = World(list(deeds))
    pendings = increments(keyed)
    run(core_over(world).settle(pendings, Timeouts(60.0)))
    for key, pending in enumerate(pendings):
        count = world.applied.count(key)
        assert pending.is_done
        assert count <= 1
        if pending.error is None:
            assert (pending.result(), count) == (key, 1)
        elif isinstance(pending.error, NotFoundError):
            assert count == 0
        elif isinstance(pending.error, ForbiddenError | UnreachableError | RequestTimeoutError):
            # Not applied, or safe to send again.
            assert count == 0 or keyed[key]
        else:
            assert isinstance(pending.error, UnknownOutcomeError)
            assert not keyed[key]


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.lists(st.sampled_from(DEEDS), max_size=12))
def test_writes_take_effect_in_the_order_of_the_pipeline(keyed: list[bool], deeds: list[str]) -> None:
    # A refused request is sent again behind those that were granted: pauses do not flicker within a window.
    world = World([deed for deed in deeds if deed != "refuse"])
    run(core_over(world).settle(increments(keyed), Timeouts(60.0)))
    assert world.applied == sorted(world.applied)


@given(st.floats(0.001, 0.12), st.floats(0.5, 8.0))
def test_no_attempt_begins_that_has_no_time_to_end(part: float, timeout_seconds: float) -> None:
    world = World(["refuse"] * 10_000, part * timeout_seconds)
    (pending,) = increments([False])
    begun = world.now
    run(core_over(world).settle([pending], Timeouts(timeout_seconds)))
    assert isinstance(pending.error, ForbiddenError)
    assert world.now - begun <= timeout_seconds + 1e-6


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_attempts_are_counted(attempts: int) -> None:
    world = World(["refuse"] * 100)
    (pending,) = increments([False])
    run(core_over(world, max_attempts=attempts).settle([pending], Timeouts(60.0)))
    assert isinstance(pending.error, ForbiddenError)
    assert len(world.deeds) == 100 - attempts


def test_progress_brings_new_time() -> None:
    """Six windows of 0.4 seconds each fit a timeout of one second."""
    world = World([], seconds_per_exchange=0.4)
    pendings = increments([False] * 3000)
    run(core_over(world).settle(pendings, Timeouts(1.0)))
    assert [pending.error for pending in pendings] == [None] * 3000
    assert world.now > 102


def test_progress_brings_new_time_over_lost_connections_too() -> None:
    world = World(["apply", "break"] * 6, seconds_per_exchange=0.4)
    pendings = increments([True] * 6)
    run(core_over(world).settle(pendings, Timeouts(1.0)))
    assert [pending.error for pending in pendings] == [None] * 6
    assert world.now > 102


def test_a_read_that_never_gets_through_says_what_was_last() -> None:
    world = World(["break"] * 10_000)
    pending = Pending(read("counter.sum", number, key=1))
    run(core_over(world).settle([pending], Timeouts(5.0)))
    with pytest.raises(UnreachableError, match="a:1: the connection was lost: broken"):
        pending.result()
    assert issubclass(UnreachableError, KarmaError)
