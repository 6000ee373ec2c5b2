"""Judging a cluster by what its nodes say, in every state that replication will bring."""

from typing import Any

import pytest

from karma_client.fleet import judge, parents_of
from karmactl import fleet, waiting
from karmactl.commands import check, topology
from karmactl.diagnostics import CtlError, Exit
from karmactl.fleet import NodeState
from karmactl.output import Paper


def node(
    address: str, role: str = "master", lsn: int = 10, health: str = "ok", **replication: Any
) -> NodeState:
    return NodeState(
        address,
        {"status": health},
        {"role": role, "wal_current_lsn": lsn, "replication_lag_entries": 0, **replication},
        {"version": "2.0.0"},
    )


def dead(address: str, code: Exit = Exit.UNREACHABLE) -> NodeState:
    error = CtlError(code, f"{address}: cannot connect: connection refused", fault="network")
    return NodeState(address, error=error)


MASTER = node("a:1", node_id="A", cluster_id="C", epoch=3, replicas=[{"node_id": "B"}])
SLAVE = node("b:1", "slave", node_id="B", cluster_id="C", epoch=3, source="a:1")


@pytest.mark.parametrize(
    ("nodes", "health", "problem"),
    [
        ([MASTER, SLAVE], "healthy", ""),
        ([MASTER], "healthy", ""),
        ([SLAVE], "degraded", "no node takes writes as master"),
        ([MASTER, dead("b:1")], "degraded", "b:1 is unreachable: cannot connect"),
        ([MASTER, node("b:1", "slave", replication_lag_entries=10_001)], "degraded", "10001 entries behind"),
        (
            [MASTER, node("b:1", "slave", replication_last_poll_error="refused")],
            "degraded",
            "cannot read its source",
        ),
        ([node("a:1", paused_until=99)], "degraded", "a:1 is paused"),
        ([node("a:1", fenced_by="B"), node("b:1")], "degraded", "a:1 is fenced: B"),
        ([node("a:1", health="storage_error")], "degraded", "a:1 is storage_error"),
        ([MASTER, node("b:1", node_id="B", cluster_id="C", epoch=4)], "split brain", "2 nodes take writes"),
        ([node("a:1"), node("b:1")], "split brain", "2 nodes take writes"),
        ([MASTER, node("b:1", node_id="X", cluster_id="D")], "degraded", "belong to 2 clusters"),
    ],
)
def test_a_cluster_is_judged(nodes: list[NodeState], health: str, problem: str) -> None:
    verdict = judge(nodes)
    assert verdict.health == health
    assert problem in "; ".join(verdict.problems)
    assert bool(verdict.problems) == (health != "healthy")


def test_a_node_under_two_addresses_is_no_split_brain() -> None:
    twice = [MASTER, NodeState("alias:1", MASTER.health, MASTER.replication, MASTER.stats)]
    assert judge(twice).health == "healthy"


def test_the_lag_that_is_too_much_can_be_chosen() -> None:
    late = [MASTER, node("b:1", "slave", replication_lag_entries=6)]
    assert fleet.exit_code(judge(late, 5)) == Exit.UNHEALTHY
    assert fleet.exit_code(judge(late, 6)) == Exit.OK


@pytest.mark.parametrize(
    ("nodes", "parents"),
    [
        ([MASTER, SLAVE], {"a:1": None, "b:1": "a:1"}),
        # The source goes by another address; the master knows its replica by id.
        ([MASTER, node("b:1", "slave", node_id="B", source="10.0.0.1:8080")], {"a:1": None, "b:1": "a:1"}),
        ([MASTER, node("b:1", "slave", node_id="Z", source="elsewhere:1")], {"a:1": None, "b:1": None}),
        # Karma 1.0 says neither.
        ([node("a:1"), node("b:1", "slave")], {"a:1": None, "b:1": "a:1"}),
        ([node("a:1"), node("c:1"), node("b:1", "slave")], {"a:1": None, "c:1": None, "b:1": None}),
        ([MASTER, SLAVE, node("c:1", "slave", source="b:1")], {"a:1": None, "b:1": "a:1", "c:1": "b:1"}),
        ([node("a:1", "slave", source="a:1")], {"a:1": None}),
    ],
)
def test_followers_hang_on_what_they_follow(nodes: list[NodeState], parents: dict[str, str | None]) -> None:
    assert parents_of(nodes) == parents


def drawn(*nodes: NodeState) -> list[str]:
    verdict = judge(nodes)
    return list(topology.draw(nodes, parents_of(nodes), verdict, Paper(None, False)))


def test_a_tree_is_drawn() -> None:
    late = node("c:1", "slave", 4, epoch=3, source="b:1", replication_lag_entries=6, lag_ms=1500)
    assert drawn(MASTER, SLAVE, late, node("d:1", "slave", source="a:1"), dead("e:1")) == [
        "a:1  master  epoch 3  LSN 10",
        "├─ b:1  slave  epoch 3  LSN 10  0 behind",
        "│  └─ c:1  slave  epoch 3  LSN 4  6 behind (1.5 s)",
        "└─ d:1  slave  LSN 10  0 behind",
        "e:1  unreachable  (cannot connect: connection refused)",
        "",
        "degraded",
        "- e:1 is unreachable: cannot connect: connection refused",
    ]


def test_nodes_that_follow_each_other_are_drawn_all_the_same() -> None:
    lines = drawn(node("a:1", "slave", source="b:1"), node("b:1", "slave", source="a:1"))
    assert lines[0].startswith("b:1  slave")
    assert lines[1].startswith("└─ a:1  slave")


@pytest.mark.parametrize(
    ("state", "nodes", "missing"),
    [
        ("healthy", [MASTER, SLAVE], ""),
        ("healthy", [SLAVE], "no node takes writes"),
        ("caught-up", [MASTER, SLAVE], ""),
        ("caught-up", [MASTER, node("b:1", "slave", 7)], "b:1 is 3 entries behind"),
        ("caught-up", [MASTER, node("b:1", "slave", replication_lag_entries=2)], "b:1 is 2 entries behind"),
        ("caught-up", [MASTER, dead("b:1")], "b:1 is unreachable"),
        ("lsn=10", [MASTER, SLAVE], ""),
        ("lsn=11", [MASTER], "a:1 is at LSN 10"),
    ],
)
def test_what_is_waited_for(state: str, nodes: list[NodeState], missing: str) -> None:
    found = waiting.condition(state)(nodes)
    assert missing in found
    assert bool(found) == bool(missing)


@pytest.mark.parametrize("state", ["happy", "lsn", "lsn=", "lsn=x", "lsn=-1"])
def test_nothing_else_can_be_waited_for(state: str) -> None:
    with pytest.raises(CtlError, match="nothing to wait for"):
        waiting.condition(state)


BOUNDS = {"warn_lag": 10, "crit_lag": 100, "warn_disk": 20, "crit_disk": 10, "warn_p99": 5, "crit_p99": None}


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (node("a:1"), check.OK),
        (node("a:1", paused_until=9), check.WARNING),
        (node("a:1", health="storage_error"), check.CRITICAL),
        (node("a:1", "slave", replication_lag_entries=9), check.OK),
        (node("a:1", "slave", replication_lag_entries=10), check.WARNING),
        (node("a:1", "slave", replication_lag_entries=100), check.CRITICAL),
        (
            NodeState("a:1", {}, {"role": "master"}, {"disk_total_bytes": 100, "disk_free_bytes": 20}),
            check.OK,
        ),
        (
            NodeState("a:1", {}, {"role": "master"}, {"disk_total_bytes": 100, "disk_free_bytes": 19}),
            check.WARNING,
        ),
        (
            NodeState("a:1", {}, {"role": "master"}, {"disk_total_bytes": 100, "disk_free_bytes": 9}),
            check.CRITICAL,
        ),
        (NodeState("a:1", {}, {"role": "master"}, {"latency_last_minute": {"p99_us": 6000}}), check.WARNING),
        (dead("a:1"), check.CRITICAL),
        (dead("a:1", Exit.TIMEOUT), check.CRITICAL),
        (dead("a:1", Exit.REFUSED), check.UNKNOWN),
    ],
)
def test_a_node_is_checked_against_its_bounds(found: NodeState, level: int) -> None:
    assert max(finding.level for finding in check.look(found, BOUNDS)) == level


def test_a_bar_in_an_error_cannot_begin_the_figures() -> None:
    finding = check.Finding("a:1", "status", check.CRITICAL, "a|b\x1b")
    assert check.nagios(check.CRITICAL, [finding]) == "KARMA CRITICAL - a/b\\x1b"


def test_a_slave_that_received_nothing_is_critical_whatever_its_lag() -> None:
    empty = node("b:1", "slave", lsn=0, node_id="B", filled=False)
    bounds = dict.fromkeys(("warn_lag", "crit_lag", "warn_disk", "crit_disk", "warn_p99", "crit_p99"))
    levels = {finding.name: finding.level for finding in check.look(empty, bounds)}
    assert (levels["filled"], levels["lag_entries"]) == (check.CRITICAL, check.OK)
    verdict = judge([MASTER, empty])
    assert (verdict.health, verdict.problems) == (
        "degraded",
        ("b:1 has received nothing from its source yet",),
    )
    assert "filled" not in {finding.name for finding in check.look(SLAVE, bounds)}
