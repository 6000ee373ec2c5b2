"""Followers as a source knows them, and the gate at which writes wait for them, on a clock made by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from karma.limits import MAX_KNOWN_REPLICAS
from karma.service.log import Log
from karma.service.replicas import MEMORY_SECONDS, Replicas, SyncGate
from karma.storage.node_file import KnownReplica

TIMEOUT_MS = 1_000


class Clock:
    """A clock, and a loop that calls what is due on it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        self.timers.append((self.now + seconds, call))
        return cast("asyncio.TimerHandle", None)

    def pass_by(self, seconds: float) -> None:
        """Let time pass, and call what falls due in it."""
        end = self.now + seconds
        while due := sorted((timer for timer in self.timers if timer[0] <= end), key=lambda timer: timer[0]):
            self.timers.remove(due[0])
            self.now = due[0][0]
            due[0][1]()
        self.now = end


class Bench:
    """Replicas and a gate, the log's end, and the replies that wait for both."""

    def __init__(self, needed: int = 1) -> None:
        self.clock = Clock()
        self.ahead_seconds = 0.0
        """How far the wall clock was set forward."""
        self.lsn = 0
        self.durable_lsn: int | None = None
        self.is_master = True
        self.waiting: list[tuple[float, int]] = []
        self.released: list[int] = []
        self.said: list[str] = []
        self.replicas = Replicas(
            self.clock,
            lambda: self.clock.now + self.ahead_seconds,
            lambda: self.lsn,
            lambda lsn: (self.lsn - lsn) * 100,
        )
        self.gate = SyncGate(
            needed,
            TIMEOUT_MS,
            self.replicas,
            Log(self.said.append, self.clock),
            cast("asyncio.AbstractEventLoop", self.clock),
            self.clock,
            is_master=lambda: self.is_master,
            oldest=lambda: self.waiting[0] if self.waiting else None,
            release=self.release,
        )
        self.replicas.on_ack = self.gate.acked

    def release(self) -> None:
        while (
            self.waiting
            and self.gate.allows(self.waiting[0][1])
            and (self.durable_lsn is None or self.durable_lsn >= self.waiting[0][1])
        ):
            self.released.append(self.waiting.pop(0)[1])

    def write(self, count: int = 1) -> None:
        """Do what a pass with so many writes does at its end."""
        self.lsn += count
        self.waiting.append((self.clock.now, self.lsn))
        self.gate.closed()
        self.release()

    def ack(self, lsn: int, node_id: str = "b") -> None:
        self.replicas.saw(node_id, f"{node_id}:1", lsn)

    @property
    def state(self) -> str:
        return self.gate.state

    @property
    def events(self) -> list[str]:
        return [event for line in self.said for event in ("sync_degraded", "sync_restored") if event in line]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- Who is known ------------------------------------------------------------------------------------------


def test_a_follower_is_described_by_what_it_last_said(bench: Bench) -> None:
    bench.lsn = 10
    bench.ack(10)
    bench.clock.pass_by(3)
    bench.lsn = 15
    (found,) = bench.replicas.describe()
    assert found == {
        "node_id": "b",
        "address": "b:1",
        "acked_lsn": 10,
        "lag_entries": 5,
        "lag_bytes": 500,
        "lag_ms": 3000,
        "last_seen_unix": 1_000_000,
        "is_connected": True,
    }
    bench.clock.pass_by(60)
    bench.ack(12)
    assert bench.replicas.describe()[0]["lag_ms"] == 63_000
    bench.ack(15)
    bench.clock.pass_by(60)
    (found,) = bench.replicas.describe()
    assert (found["lag_entries"], found["lag_ms"], found["is_connected"]) == (0, 0, False)


def test_nobody_holds_what_is_not_written_yet(bench: Bench) -> None:
    bench.lsn = 10
    bench.ack(2**64 - 1)
    assert bench.replicas.describe()[0]["acked_lsn"] == 10
    bench.lsn = 11
    assert (bench.replicas.count(10), bench.replicas.count(11)) == (1, 0)
    assert bench.replicas.needed_lsns() == [11]


def test_acknowledgements_are_counted_by_how_many_hold_an_lsn(bench: Bench) -> None:
    bench.lsn = 30
    for node_id, lsn in (("b", 10), ("c", 30), ("d", 20)):
        bench.ack(lsn, node_id)
    assert [bench.replicas.acked_lsn(count) for count in (1, 2, 3, 4)] == [30, 20, 10, 0]
    assert [bench.replicas.count(lsn) for lsn in (0, 10, 11, 21, 31)] == [3, 3, 2, 1, 0]
    assert sorted(bench.replicas.needed_lsns()) == [11, 21, 31]
    bench.replicas.forget_acks()
    assert (bench.replicas.acked_lsn(1), bench.replicas.count(0)) == (0, 0)
    assert sorted(bench.replicas.needed_lsns()) == [11, 21, 31], "log is kept for them all the same"
    bench.ack(10)
    assert bench.replicas.acked_lsn(1) == 10


def test_known_followers_outlive_a_restart_but_count_only_once_they_ask(bench: Bench) -> None:
    bench.lsn = 20
    bench.ack(7)
    known = bench.replicas.known()
    assert known == (KnownReplica("b", "b:1", 7, 1_000_000),)
    again = Bench()
    again.lsn = 20
    again.replicas.restore(known)
    assert again.replicas.known() == known
    assert (again.replicas.needed_lsns(), again.replicas.count(0)) == ([8], 0)
    assert again.replicas.describe()[0]["is_connected"] is False
    again.ack(9)
    assert (again.replicas.needed_lsns(), again.replicas.count(9)) == ([10], 1)


def test_who_was_not_seen_for_a_day_is_forgotten(bench: Bench) -> None:
    expected = [bench.replicas.are_expected]
    bench.ack(0)
    bench.clock.pass_by(MEMORY_SECONDS)
    expected.append(bench.replicas.are_expected)
    bench.clock.pass_by(1)
    expected.append(bench.replicas.are_expected)
    assert expected == [False, True, False]
    assert (bench.replicas.known(), bench.replicas.describe()) == ((), [])
    bench.replicas.saw_tail()
    assert bench.replicas.are_expected
    assert bench.replicas.needed_lsns() == []


@pytest.mark.parametrize("step_seconds", [8 * 86_400.0, -8 * 86_400.0])
def test_a_step_of_the_clock_makes_no_follower_look_gone(bench: Bench, step_seconds: float) -> None:
    bench.lsn = 20
    bench.ack(7)
    bench.replicas.saw_tail()
    bench.clock.pass_by(2)
    known = bench.replicas.known()
    bench.ahead_seconds = step_seconds
    (follower,) = bench.replicas.describe()
    assert (follower["is_connected"], follower["lag_ms"]) == (True, 2_000)
    assert follower["last_seen_unix"] == 1_000_000 + step_seconds, "by the clock as it is now"
    assert bench.replicas.needed_lsns() == [8]
    # And over a restart: the file has the time from before the step.
    again = Bench()
    again.lsn, again.ahead_seconds = 20, step_seconds
    again.replicas.restore(known)
    again.clock.pass_by(MEMORY_SECONDS)
    assert again.replicas.needed_lsns() == [8]
    again.clock.pass_by(1)
    assert again.replicas.needed_lsns() == []


def test_only_a_new_follower_is_news(bench: Bench) -> None:
    news = []
    for node_id in ("b", "c", "b", "c"):
        bench.ack(0, node_id)
        news.append(bench.replicas.has_new)
        bench.replicas.has_new = False
    assert news == [True, True, False, False]


def test_followers_that_ask_now_keep_their_place_and_silent_ones_lose_it(bench: Bench) -> None:
    ids = [f"real{number}" for number in range(MAX_KNOWN_REPLICAS)]
    for node_id in ids:
        bench.ack(0, node_id)
    bench.ack(0, "invented")
    assert set(bench.replicas.by_id) == set(ids)
    bench.clock.pass_by(60)
    for node_id in ids[1:]:
        bench.ack(0, node_id)
    bench.ack(0, "late")
    assert set(bench.replicas.by_id) == {*ids[1:], "late"}


def test_made_up_ids_do_not_add_up(bench: Bench) -> None:
    bench.ack(0, "real")
    for number in range(2 * MAX_KNOWN_REPLICAS):
        bench.clock.pass_by(0.01)
        bench.ack(0, f"x{number}")
        if number % 50 == 0:
            bench.ack(0, "real")
    known = {each.node_id for each in bench.replicas.known()}
    assert len(known) == MAX_KNOWN_REPLICAS
    assert "real" in known


# -- The gate ------------------------------------------------------------------------------------------------


def test_replies_leave_in_order_when_enough_hold_them() -> None:
    bench = Bench(needed=2)
    for _ in range(3):
        bench.write()
    bench.ack(3, "b")
    assert bench.released == []
    bench.ack(1, "c")
    assert bench.released == [1]
    bench.ack(3, "c")
    assert bench.released == [1, 2, 3]
    bench.clock.pass_by(10)
    assert bench.events == []
    assert not bench.gate.is_degraded


def test_past_the_timeout_replies_leave_and_the_node_says_so(bench: Bench) -> None:
    bench.write()
    bench.clock.pass_by(0.9)
    bench.write()
    assert (bench.released, bench.gate.is_degraded) == ([], False)
    bench.clock.pass_by(0.1)
    assert (bench.released, bench.gate.is_degraded) == ([1, 2], True)
    bench.write()
    assert bench.released == [1, 2, 3], "then nobody is waited for"
    assert bench.events == ["sync_degraded"]


def test_each_reply_has_the_whole_timeout(bench: Bench) -> None:
    bench.write()
    bench.clock.pass_by(0.5)
    bench.write()
    bench.clock.pass_by(0.4)
    bench.ack(1)
    bench.clock.pass_by(0.5)
    assert (bench.released, bench.gate.is_degraded) == ([1], False)
    bench.clock.pass_by(0.2)
    assert (bench.released, bench.gate.is_degraded) == ([1, 2], True)


def test_a_reply_behind_one_that_waits_for_the_disk_has_its_timeout_too(bench: Bench) -> None:
    bench.durable_lsn = 0
    bench.write()
    bench.ack(1)
    bench.write()
    bench.clock.pass_by(1.5)
    assert bench.released == []
    bench.durable_lsn = 2
    bench.release()
    assert bench.released == [1]
    bench.clock.pass_by(2)
    assert (bench.released, bench.gate.is_degraded) == ([1, 2], True)


def degrade(bench: Bench) -> None:
    bench.write(10)
    bench.clock.pass_by(1)
    assert bench.state == "degraded"


def test_degraded_ends_when_every_write_that_was_answered_is_held(bench: Bench) -> None:
    degrade(bench)
    bench.ack(9)
    assert bench.state == "degraded"
    bench.ack(10)
    assert bench.state == "ok"
    assert bench.events == ["sync_degraded", "sync_restored"]
    bench.write()
    assert bench.released == [10]


def test_a_busy_node_recovers_with_a_follower_that_keeps_up(bench: Bench) -> None:
    """Its acknowledgements are always a little behind the log's end."""
    degrade(bench)
    for _ in range(4):
        bench.write(100)
        bench.gate.tick()
    assert bench.lsn == 410
    bench.ack(309)
    assert bench.state == "degraded"
    bench.ack(310)
    assert bench.state == "recovering"
    assert bench.gate.is_degraded, "what was answered alone is not held yet"
    bench.write(5)
    assert bench.released[-1] == 410, "but replies wait again"
    bench.ack(410)
    assert bench.state == "ok"
    bench.ack(415)
    assert bench.released[-1] == 415


def test_who_dies_while_recovering_degrades_again(bench: Bench) -> None:
    degrade(bench)
    bench.write(100)
    bench.gate.tick()
    bench.write(100)
    bench.gate.tick()
    bench.ack(110)
    bench.write()
    assert (bench.state, bench.released[-1]) == ("recovering", 210)
    bench.clock.pass_by(1)
    assert (bench.state, bench.released[-1]) == ("degraded", 211)


def test_a_slave_waits_for_nobody(bench: Bench) -> None:
    bench.is_master = False
    bench.write()
    assert bench.released == [1]
    bench.clock.pass_by(5)
    assert (bench.state, bench.gate.is_degraded, bench.events) == ("ok", False, [])


def test_a_change_of_role_trusts_no_earlier_acknowledgement(bench: Bench) -> None:
    bench.lsn = 50
    bench.ack(50)
    assert bench.gate.allows(50)
    bench.replicas.forget_acks()
    bench.gate.role_changed()
    assert not bench.gate.allows(50)
    bench.write()
    bench.ack(51)
    assert bench.released == [51]


def test_random_runs_never_let_an_unheld_reply_leave_unless_degraded() -> None:
    """The promise itself, over seeded runs of writes, acknowledgements and time."""
    from random import Random  # noqa: PLC0415 - seeded: a run can be repeated

    for seed in range(200):
        random, bench = Random(seed), Bench(needed=1 + seed % 2)
        held: dict[str, int] = {}
        for _ in range(60):
            match random.randrange(5):
                case 0 | 1:
                    bench.write(random.randrange(1, 5))
                case 2:
                    node_id = random.choice("bcd")
                    held[node_id] = random.randrange(held.get(node_id, 0), bench.lsn + 1)
                    before = len(bench.released)
                    was_degraded = bench.state == "degraded"
                    bench.ack(held[node_id], node_id)
                    check(bench, held, before, was_degraded=was_degraded)
                case 3:
                    bench.clock.pass_by(random.random())
                case _:
                    bench.gate.tick()
        bench.clock.pass_by(3)
        assert bench.waiting == [], "nobody waits for ever"


def check(bench: Bench, held: dict[str, int], before: int, *, was_degraded: bool) -> None:
    for lsn in bench.released[before:]:
        assert was_degraded or sum(each >= lsn for each in held.values()) >= bench.gate.needed
