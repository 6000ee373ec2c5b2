"""When a run that stopped behind the point of no return is superseded, and what it says that it left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from karma_playbooks.cluster import Cluster, NodeFacts
from karma_playbooks.history import Attempt, History
from karma_playbooks.inventory import Entry
from karma_playbooks.library import load_book
from karma_playbooks.plan import make
from karma_playbooks.supersession import judge

EPOCHS = [{"epoch": 1, "node_id": "id-a", "start_lsn": 1}]
RULES = [*EPOCHS, {"epoch": 3, "node_id": "id-c", "start_lsn": 11}]


def status(name: str, role: str, epoch: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "role": role, "epoch": epoch, "epochs": EPOCHS, "node_id": f"id-{name}", "cluster_id": "c",
        "fenced_by": None, "wal_current_lsn": 10, "replication_lag_entries": 0, "source": None, **more,
    }  # fmt: skip


def fence(epoch: int, node_id: str | None = None, run: str | None = None) -> dict[str, Any]:
    return {"epoch": epoch, "node_id": node_id, "run": run, "reason": "x", "since_unix_ms": 1}


def plan() -> Any:
    before = {"a": status("a", "master"), "b": status("b", "slave"), "c": status("c", "slave")}
    nodes = [
        NodeFacts(Entry(name, f"10.0.0.{n}:1"), each) for n, (name, each) in enumerate(before.items(), 1)
    ]
    return make(load_book("switchover", Path("/nowhere")), {"to": "b"}, Cluster("prod", False, tuple(nodes)))


def history(*, has_promoted: bool = True) -> History:
    attempts = [Attempt("promote", "b", 1, outcome="done")] if has_promoted else []
    return History("r", attempts=attempts)


OLD = status("a", "master", fenced_by=fence(2, run="r"), paused_by="r")
STOPPED = status("b", "master", 2, fenced_by=fence(3, "id-c"), wal_current_lsn=15, epochs=[
    *EPOCHS, {"epoch": 2, "node_id": "id-b", "start_lsn": 11}
])  # fmt: skip
RULER = status("c", "master", 3, epochs=RULES, wal_current_lsn=12)


def test_another_master_of_a_newer_epoch_supersedes_and_what_is_left_is_named() -> None:
    over = judge(plan(), history(), {"a": OLD, "b": STOPPED, "c": RULER})
    assert over is not None
    assert (over.ruler, over.why) == ("c", "c is master of epoch 3, and b is not")
    assert over.left == (
        "a: fenced for epoch 2 by this run, paused by this run",
        "b: fenced for epoch 3 by node id-c, 5 entries from LSN 11 on that only it has",
    )
    assert over.rejoin == ("a", "b")


@pytest.mark.parametrize(
    "statuses",
    [
        pytest.param({"a": OLD, "b": status("b", "master", 2), "c": RULER}, id="two masters are no answer"),
        pytest.param(
            {"a": OLD, "b": status("b", "master", 2), "c": status("c", "slave")}, id="its own rules"
        ),
        pytest.param(
            {"a": status("a", "master"), "b": status("b", "slave")}, id="the old master still rules"
        ),
        pytest.param({"a": OLD, "b": STOPPED, "c": status("c", "slave")}, id="no one rules"),
        pytest.param({}, id="no one answers"),
    ],
)
def test_nothing_else_supersedes(statuses: dict[str, Any]) -> None:
    assert judge(plan(), history(), statuses) is None


def test_what_can_be_taken_back_is_not_superseded() -> None:
    assert judge(plan(), history(has_promoted=False), {"a": OLD, "b": STOPPED, "c": RULER}) is None


def test_a_run_may_be_given_up_when_another_promotion_stopped_its_own() -> None:
    split = {"a": OLD, "b": STOPPED, "c": status("c", "master", 2, fenced_by=fence(2, "id-b"))}
    assert judge(plan(), history(), split) is None
    over = judge(plan(), history(), split, gives_up=True)
    assert over is not None
    assert (over.ruler, over.rejoin) == (None, ("a", "b", "c"))
    fenced_by_hand = {**split, "b": status("b", "master", 2, fenced_by=fence(2))}
    assert judge(plan(), history(), fenced_by_hand, gives_up=True) is None
