"""After a book all who look agree that all is well: no former master keeps an old picture of the fleet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import until
from playbooks.fleet import Fleet
from playbooks.test_books import write
from playbooks.test_cli import Desk

from karma_client.fleet import NodeState, judge, parents_of

AGREED_SECONDS = 10.0


def test_after_a_switchover_all_agree(start_fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    fleet = start_fleet(None)
    write(fleet, "a", 5)
    assert fleet.play("switchover", to="b")[1] == "done"
    all_agree(fleet, tmp_path, master="b", children="ac")


def test_after_a_failover_and_a_rejoin_all_agree(start_fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    fleet = start_fleet(None)
    write(fleet, "a", 5)
    fleet.nodes["a"].kill()
    until(lambda: all(fleet.nodes[name].status()["replication_state"] == "connecting" for name in "bc"))
    assert fleet.play("failover", to="c")[1] == "done"
    fleet.nodes["a"].start()
    assert fleet.play("rejoin-old-master", node="a")[1] == "done", fleet.told
    all_agree(fleet, tmp_path, master="c", children="ab")


def test_a_follower_that_leaves_a_live_master_is_forgotten(
    start_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    fleet = start_fleet(None)
    write(fleet, "a", 5)
    fleet.nodes["c"].ask("replication.follow", host="127.0.0.1", port=fleet.nodes["b"].port)
    until(lambda: replicas_of(fleet, "a") == ids(fleet, "b"), AGREED_SECONDS)
    states = [state_of(fleet, name) for name in "abc"]
    a, b = (fleet.nodes[name].address for name in "ab")
    assert list(parents_of(states).values()) == [None, a, b]
    # One that merely vanishes stays known as lost, with its log.
    only_b = ids(fleet, "b")
    fleet.nodes["b"].kill()
    assert replicas_of(fleet, "a") == only_b


def test_a_fenced_node_knows_only_followers_that_stay(start_fleet: Callable[..., Fleet]) -> None:
    fleet = start_fleet(None)
    fleet.nodes["b"].kill()
    fleet.nodes["a"].ask("replication.fence", epoch=2, reason="a test")
    until(lambda: replicas_of(fleet, "a") == ids(fleet, "c"), AGREED_SECONDS)
    fleet.nodes["a"].kill()
    fleet.nodes["a"].start()
    until(lambda: replicas_of(fleet, "a") == ids(fleet, "c"), AGREED_SECONDS)


def test_an_error_is_shown_until_the_next_success(start_fleet: Callable[..., Fleet]) -> None:
    fleet = start_fleet(None)
    fleet.nodes["a"].kill()
    until(lambda: fleet.nodes["b"].status()["replication_last_poll_error"])
    fleet.nodes["a"].start()
    until(lambda: fleet.nodes["b"].status()["replication_state"] == "following")
    until(lambda: fleet.nodes["b"].status()["replication_last_poll_error"] is None, AGREED_SECONDS)
    assert fleet.nodes["b"].status()["replication_last_poll_error_unix"] > 0
    until(lambda: judge([state_of(fleet, name) for name in "abc"]).problems == (), AGREED_SECONDS)


def test_a_context_refuses_one_node_under_two_addresses(
    start_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    desk = Desk(start_fleet(None), tmp_path / "desk")
    port = desk.fleet.nodes["a"].port
    added = desk("context", "add", "twice", "--nodes", f"127.0.0.1:{port},localhost:{port}")
    assert (added.code, "is the same node as" in added.stderr) == (2, True)
    spelt = desk("context", "add", "twice", "--nodes", f"127.0.0.1:{port},127.0.0.1:{port}")
    assert (spelt.code, "has the address of node 1" in spelt.stderr) == (2, True)
    assert desk("context", "add", "once", "--nodes", f"127.0.0.1:{port}").code == 0
    config = tmp_path / "desk" / "config" / "karmactl" / "config.toml"
    config.write_text(
        config.read_text() + f'[contexts.hand]\nnodes = ["127.0.0.1:{port}", "localhost:{port}"]\n'
    )
    found = desk("context", "validate", "--output", "json")
    assert found.code == 2
    (row,) = [row for row in json.loads(found.stdout) if row["level"] == "error"]
    assert row["place"] == "contexts.hand"


@pytest.mark.parametrize(
    ("changes", "parents"),
    [
        ({}, {"a": None, "b": "a", "c": "b"}),
        # The listed address of a source is another node's by now.
        ({"c": {"source": "a"}}, {"a": None, "b": "a", "c": "b"}),
        # Each is said to follow the other.
        ({"a": {"role": "slave", "source_node_id": "id-b"}}, {"a": "b", "b": None, "c": "b"}),
        ({"b": {"source_node_id": None, "source": "nat:1"}}, {"a": None, "b": "a", "c": "b"}),
    ],
)
def test_parents_are_whose_entries_a_node_gets(changes: dict[str, Any], parents: dict[str, Any]) -> None:
    about: dict[str, dict[str, Any]] = {
        "a": {"role": "master", "replicas": [{"node_id": "id-b", "is_connected": True}]},
        "b": {"role": "slave", "source_node_id": "id-a", "source": "a"},
        "c": {"role": "slave", "source_node_id": "id-b", "source": "b"},
    }
    nodes = [
        NodeState(name, replication={"node_id": f"id-{name}", **about[name], **changes.get(name, {})})
        for name in about
    ]
    assert parents_of(nodes) == parents


# -- How it is seen ------------------------------------------------------------------------------------------


def ids(fleet: Fleet, names: str) -> set[str]:
    return {fleet.nodes[name].status()["node_id"] for name in names}


def replicas_of(fleet: Fleet, name: str) -> set[str]:
    return {replica["node_id"] for replica in fleet.nodes[name].status()["replicas"]}


def state_of(fleet: Fleet, name: str) -> NodeState:
    node = fleet.nodes[name]
    return NodeState(node.address, node.ask("system.health"), node.status(), node.ask("system.stats"))


def all_agree(fleet: Fleet, tmp_path: Path, *, master: str, children: str) -> None:
    desk = Desk(fleet, tmp_path / "desk")

    def is_agreed() -> bool:
        states = [state_of(fleet, name) for name in "abc"]
        parents = parents_of(states)
        top = fleet.nodes[master].address
        lost = "karma_replica_is_connected{" in (
            metrics := fleet.nodes[master].ask("system.metrics")
        ) and any(
            line.endswith(" 0")
            for line in metrics.splitlines()
            if line.startswith("karma_replica_is_connected{")
        )
        return (
            judge(states).problems == ()
            and replicas_of(fleet, master) == ids(fleet, children)
            and all(replicas_of(fleet, name) == set() for name in children)
            and parents == {fleet.nodes[name].address: top for name in children} | {top: None}
            and not lost
        )

    until(is_agreed, AGREED_SECONDS, why=lambda: [fleet.nodes[name].status() for name in "abc"])
    assert desk("doctor", columns=200).stdout.count("critical") == 0
    assert desk("check").code == 0
    assert "healthy" in desk("topology").stdout
