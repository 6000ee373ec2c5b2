"""Runs on one node: fences and pauses of one run against another's, the lease, maintenance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma.core.epochs import Epoch, History
from karma.core.store import Store
from karma.engine import Engine
from karma.engine.effects import LeaseRequest, LeaseVerb, Order
from karma.errors import ErrorCode, RequestError
from karma.limits import MAX_LEASE_MS, MAX_PARKED_RUNS
from karma.service.leases import Leases
from karma.service.log import Log
from karma.service.roles import Roles
from karma.storage import node_file
from karma.storage.disk import Disk
from karma.storage.node_file import Address, Fence, Node

NOW_MS = 1_795_253_093_000
MASTER = Node("me", "ours", History((Epoch(1, "me", 1),)))
SLAVE = replace(MASTER, role="slave", source=Address("db1", 8080))
ONE, TWO, BY_HAND = Order("one"), Order("two"), Order()


class Bench:
    """A node with its lease, on a disk; `restart` makes both again from the file."""

    def __init__(self, folder: Path, node: Node = MASTER) -> None:
        self.folder = folder
        self.now_ms, self.now = NOW_MS, 0.0
        node_file.save(Disk(), folder, node)
        self.restart()

    def restart(self) -> None:
        node = node_file.load(Disk(), self.folder)
        assert node is not None
        self.lines: list[str] = []
        log = Log(self.lines.append, lambda: 0.0)
        self.roles = Roles(
            node,
            Disk(),
            self.folder,
            Engine(Store()),
            log,
            lambda: self.now_ms,
            lambda: "new",
            lambda: self.now,
        )
        self.leases = Leases(self.roles)

    def ask(self, do: LeaseVerb, run: str, ttl_ms: int = 1_000, **more: Any) -> dict[str, Any]:
        about = {"cluster_id": "ours", "holder": "ann", **more}
        return self.leases.order(LeaseRequest(do, run=run, ttl_ms=ttl_ms, **about))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def refused(work: Callable[[], object]) -> str:
    """Return the reason of the refusal that something must meet."""
    with pytest.raises(RequestError) as refusal:
        work()
    return str((refusal.value.detail or {}).get("reason", refusal.value.code))


# -- Fence, pause and promotion belong to a run ------------------------------------------------------------

CHANGES: dict[str, Callable[[Roles, Order], object]] = {
    "fence": lambda roles, order: roles.fence(2, "why", order),
    "pause": lambda roles, order: roles.pause(5_000, order),
    "unfence": lambda roles, order: roles.unfence(2, 20, order),
    "promote": lambda roles, order: roles.promote(20, order),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("other", [TWO, BY_HAND], ids=["another run", "no run"])
def test_a_node_fenced_for_one_run_refuses_another_s(bench: Bench, change: str, other: Order) -> None:
    bench.roles.fence(2, "why", ONE)
    before = bench.roles.node
    bench.restart()
    assert refused(lambda: CHANGES[change](bench.roles, other)) == "other_run"
    assert (bench.roles.node, bench.roles.forced_orders) == (before, 0)
    CHANGES[change](bench.roles, ONE)


@pytest.mark.parametrize("change", CHANGES)
def test_force_overrides_another_run_s_fence_and_is_counted(bench: Bench, change: str) -> None:
    bench.roles.fence(2, "why", ONE)
    CHANGES[change](bench.roles, replace(TWO, force=True))
    assert bench.roles.forced_orders == 1
    assert any('"event":"forced"' in line for line in bench.lines)


def test_a_node_paused_for_one_run_refuses_another_s_until_the_pause_ends(bench: Bench) -> None:
    bench.roles.pause(5_000, ONE)
    bench.restart()
    for other in (TWO, BY_HAND):
        for change in ("fence", "pause", "promote"):
            assert refused(lambda: CHANGES[change](bench.roles, other)) == "other_run"  # noqa: B023
        assert refused(lambda: bench.roles.resume(other)) == "other_run"  # noqa: B023
        assert refused(lambda: bench.roles.check_follow(other)) == "other_run"  # noqa: B023
    assert bench.roles.paused_by == "one"
    bench.roles.fence(2, "why", ONE)
    bench.roles.check_follow(TWO)
    bench.roles.unfence(2, 20, ONE)
    bench.now += 5
    bench.roles.pause(5_000, TWO)
    assert refused(lambda: bench.roles.resume(ONE)) == "other_run"
    bench.roles.resume(TWO)
    assert bench.roles.paused_by is None


def test_calls_without_a_run_work_where_no_run_holds_the_node(bench: Bench) -> None:
    bench.roles.pause(5_000)
    bench.roles.fence(2, "why")
    bench.roles.resume()
    bench.roles.fence(2, "a run may take over what no run set", ONE)
    bench.roles.unfence(2, 20, ONE)
    bench.roles.fence(2, "why")
    assert bench.roles.promote(20)["epoch"] == 3


@pytest.mark.parametrize(
    ("node", "right"),
    [
        pytest.param(SLAVE, 2, id="a slave opens the next"),
        pytest.param(replace(MASTER, fence=Fence(7, "", 1)), 8, id="a fenced master the one above its fence"),
        pytest.param(MASTER, 1, id="a master has its own"),
    ],
)
def test_a_promotion_to_an_epoch_that_is_not_the_next_changes_nothing(
    tmp_path: Path, node: Node, right: int
) -> None:
    bench = Bench(tmp_path, node)
    for wrong in (0, right - 1, right + 1, 2**64 - 1):
        assert refused(lambda: bench.roles.promote(20, ONE, wrong)) == "epoch"  # noqa: B023
    assert bench.roles.node == node
    assert bench.roles.promote(20, ONE, right)["epoch"] == right


def test_two_masters_of_one_epoch_are_told_apart_by_lifting_one_fence(bench: Bench) -> None:
    bench.roles.learn(1, "other")
    assert bench.roles.unfence(1, 20)["epoch"] == 2
    # A newer epoch of another node is not overruled.
    bench.roles.learn(3, "other")
    assert bench.roles.unfence(3, 20)["epoch"] == 2


# -- The lease ---------------------------------------------------------------------------------------------


def test_a_lease_holds_other_runs_off_until_it_ends(bench: Bench) -> None:
    assert bench.ask("take", "one") == {
        "number": 1,
        "run": "one",
        "holder": "ann",
        "expires_in_ms": 1_000,
        "parked": [],
    }
    bench.now += 0.9
    assert refused(lambda: bench.ask("take", "two")) == "leased"
    assert refused(lambda: bench.ask("release", "two")) == "leased"
    assert refused(lambda: bench.ask("renew", "two")) == "leased"
    assert [refused(lambda: bench.leases.check(order)) for order in (TWO, BY_HAND)] == ["leased"] * 2  # noqa: B023
    bench.leases.check(ONE)
    bench.leases.check(Order("one", 1))
    bench.now += 0.1
    bench.leases.check(TWO)
    # Late: whoever sent it may have lost the majority meanwhile.
    assert refused(lambda: bench.leases.check(Order("one", 1))) == "leased"
    assert bench.leases.describe() == {"number": 1, "run": None, "holder": None, "expires_in_ms": 0}
    assert bench.ask("take", "two")["number"] == 2
    assert refused(lambda: bench.ask("renew", "one")) == "leased"


def test_the_order_of_an_earlier_holder_is_refused_after_all_leases_have_ended(bench: Bench) -> None:
    bench.ask("take", "one")
    bench.now += 5
    bench.ask("take", "two")
    bench.ask("release", "two")
    assert refused(lambda: bench.leases.check(Order("one", 1))) == "leased"
    bench.leases.check(Order("one"))


def test_a_wall_clock_that_is_set_ends_no_lease(bench: Bench) -> None:
    bench.ask("take", "one")
    bench.now_ms += 10**9
    assert refused(lambda: bench.leases.check(TWO)) == "leased"


def test_a_lease_begins_in_full_after_a_restart_and_its_number_goes_on(bench: Bench) -> None:
    bench.ask("take", "one", ttl_ms=1_000)
    bench.now += 0.9
    bench.restart()
    assert bench.leases.describe()["expires_in_ms"] == 1_000
    bench.ask("release", "one")
    bench.restart()
    assert bench.ask("take", "two")["number"] == 2


def test_a_lease_that_ran_out_is_renewed_unless_another_was_taken(bench: Bench) -> None:
    bench.ask("take", "one")
    bench.now += 5
    assert bench.ask("renew", "one", ttl_ms=2_000)["expires_in_ms"] == 2_000
    assert bench.ask("renew", "one", ttl_ms=500)["expires_in_ms"] == 500
    assert refused(lambda: bench.ask("renew", "one", holder="bob")) == "leased"
    bench.restart()
    assert bench.leases.describe()["expires_in_ms"] == 2_000
    bench.ask("release", "one")
    assert refused(lambda: bench.ask("renew", "one")) == "leased"


def test_of_two_that_saw_the_same_number_one_takes_the_lease(bench: Bench) -> None:
    bench.ask("take", "one", lease=0)
    assert refused(lambda: bench.ask("take", "one", holder="bob", lease=0)) == "leased"
    assert bench.ask("take", "one", holder="bob", lease=1)["number"] == 2
    assert refused(lambda: bench.ask("renew", "one")) == "leased"


def test_force_breaks_a_lease_and_is_counted(bench: Bench) -> None:
    bench.ask("take", "one")
    bench.leases.check(replace(TWO, force=True))
    assert bench.ask("release", "two", force=True)["run"] is None
    bench.ask("take", "one")
    assert bench.ask("take", "two", force=True)["number"] == 3
    assert bench.roles.forced_orders == 3


def test_a_node_votes_in_its_own_cluster_only(bench: Bench) -> None:
    assert refused(lambda: bench.ask("take", "one", cluster_id="theirs")) == "cluster"
    assert bench.leases.describe()["number"] == 0


def test_what_cannot_be_made_durable_is_no_lease(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node_file, "save", full)
    assert refused(lambda: bench.ask("take", "one")) == ErrorCode.STORAGE_ERROR
    assert bench.leases.live is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "renew", "release", "check", "restart"]),
            st.sampled_from(["one", "two", "three"]),
            st.integers(0, 1_500),
        ),
        max_size=40,
    )
)
def test_never_two_runs_hold_the_lease(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[Any, str, int]]
) -> None:
    """Each holder knows until when it holds at least; those times of different runs never meet."""
    bench = Bench(tmp_path_factory.mktemp("node"))
    until: dict[str, float] = {}
    numbers = [0]
    for do, run, after_ms in story:
        bench.now += after_ms / 1000
        held_by = [name for name, end in until.items() if end > bench.now]
        assert len(held_by) <= 1
        if do == "restart":
            bench.restart()
            continue
        try:
            if do == "check":
                bench.leases.check(Order(run))
                assert not held_by or held_by == [run]
                continue
            state = bench.ask(do, run, holder=run)
        except RequestError:
            continue
        if do == "release":
            until.pop(run, None)
            continue
        assert not held_by or held_by == [run]
        until[run] = bench.now + state["expires_in_ms"] / 1000
        if do == "take":
            numbers.append(state["number"])
    assert numbers == sorted(set(numbers))


# -- Parked runs and maintenance ---------------------------------------------------------------------------


def test_a_parked_run_is_shown_until_its_time_and_holds_no_one_off(bench: Bench) -> None:
    at: dict[str, Any] = {"at_unix_ms": NOW_MS + 1_000, "text": "switchover to b"}
    record = {"run": "one", "kind": "scheduled", **at}
    assert bench.ask("park", "one", **at)["parked"] == [record]
    bench.ask("take", "two")
    bench.restart()
    assert bench.leases.parked() == [record]
    # Released by its own run, also while another one holds the lease.
    assert bench.ask("release", "one")["parked"] == []
    bench.ask("park", "one", **at)
    bench.now_ms += 1_000
    assert bench.leases.parked() == []
    for number in range(MAX_PARKED_RUNS):
        bench.ask("park", f"run-{number}", text="x", at_unix_ms=NOW_MS + 9_000)
    assert (
        refused(lambda: bench.ask("park", "more", text="x", at_unix_ms=NOW_MS + 9_000)) == "validation_error"
    )


@pytest.mark.parametrize("is_durable", [True, False])
def test_maintenance_ends_by_itself_and_lasts_through_a_restart_if_durable(
    bench: Bench, is_durable: bool
) -> None:
    found = bench.leases.maintain("new disks", 10_000, is_durable=is_durable)["maintenance"]
    assert found == {"reason": "new disks", "ends_in_ms": 10_000, "durable": is_durable}
    bench.now_ms, bench.now = bench.now_ms + 4_000, bench.now + 4
    bench.restart()
    assert (bench.leases.maintenance or {}).get("ends_in_ms") == (6_000 if is_durable else None)
    # A clock that was set back while the node was down makes it no longer than it was.
    bench.now_ms -= 10**9
    bench.restart()
    assert (bench.leases.maintenance or {}).get("ends_in_ms") == (10_000 if is_durable else None)
    bench.now += 10
    assert bench.leases.maintenance is None
    bench.leases.maintain("again", 5_000, is_durable=True)
    assert bench.leases.maintain("over", 0, is_durable=False) == {"maintenance": None}
    bench.restart()
    assert bench.leases.maintenance is None


def test_the_longest_lease_is_told_exactly(bench: Bench) -> None:
    assert bench.ask("take", "one", ttl_ms=MAX_LEASE_MS)["expires_in_ms"] == MAX_LEASE_MS
