"""Plans: what the hash covers and what not, who is promoted, what is lost."""

from pathlib import Path
from typing import Any

import pytest

from karma_playbooks.cluster import Branch, Cluster, NodeFacts, diverged_at
from karma_playbooks.control import cooling_seconds
from karma_playbooks.errors import PlaybookError
from karma_playbooks.format import load
from karma_playbooks.inventory import Entry, entries
from karma_playbooks.library import load_book
from karma_playbooks.plan import Plan, make

SWITCHOVER = load_book("switchover", Path("/nowhere"))
FAILOVER = load_book("failover", Path("/nowhere"))


def facts(name: str, role: str = "slave", **changes: Any) -> NodeFacts:
    epochs = [{"epoch": 1, "node_id": "id-a", "start_lsn": 1}]
    status = {
        "role": role, "epoch": 1, "epochs": epochs, "node_id": f"id-{name}", "cluster_id": "c",
        "fenced_by": None, "wal_current_lsn": 100, "replication_lag_entries": 0,
        "replication_state": "following", "path": ["id-a", name],
        "source": None if role == "master" else "10.0.0.1:8080", "must_rebuild": False,
    }  # fmt: skip
    number = ord(name) - ord("a") + 1
    entry = Entry(
        name, f"10.0.0.{number}:8080", ssh_host=f"{name}.host", directory="/data", service="karma.service"
    )
    return NodeFacts(entry, status | changes)


def dead(name: str) -> NodeFacts:
    return NodeFacts(facts(name).entry, error="no answer")


def cluster(*nodes: NodeFacts) -> Cluster:
    return Cluster("prod", True, nodes)


HEALTHY = (facts("a", "master"), facts("b"), facts("c"))


def planned(*nodes: NodeFacts, **params: str) -> Plan:
    return make(SWITCHOVER, params, cluster(*(nodes or HEALTHY)))


def test_a_plan_shows_commands_undos_and_the_point_of_no_return() -> None:
    plan = planned(to="c")
    steps = {step.id: step for step in plan.steps}
    assert steps["pause"].works[0].doing.command == 'replication.pause {"ttl_ms": 15000} at a (10.0.0.1:8080)'
    assert steps["pause"].works[0].undo[0].command == "karma.resume at a (10.0.0.1:8080)".replace(
        "karma", "replication"
    )
    assert [work.target for work in steps["repoint-others"].works] == ["b"]
    assert steps["fence"].works[0].doing.args["epoch"] == 2
    assert plan.point_of_no_return == "promote"
    assert plan.loss.entries == 0
    assert [step.id for step in plan.steps if step.in_window] == ["still", "drain", "fence", "promote"]


def test_a_plan_survives_json() -> None:
    import json  # noqa: PLC0415

    plan = planned()
    assert Plan.of_json(json.loads(json.dumps(plan.to_json()))).to_json() == plan.to_json()


def test_the_best_follower_is_the_default() -> None:
    assert planned(facts("a", "master"), facts("b"), facts("c", wal_current_lsn=101)).params["to"] == "c"
    newer = [{"epoch": 1, "node_id": "x", "start_lsn": 1}, {"epoch": 2, "node_id": "y", "start_lsn": 50}]
    ahead = facts("b", wal_current_lsn=60, epochs=newer)
    assert planned(facts("a", "master"), ahead, facts("c")).params["to"] == "b"
    assert planned(facts("a", "master"), facts("b", must_rebuild=True), facts("c")).params["to"] == "c"
    upper = facts("c", path=["id-a"])
    assert planned(facts("a", "master"), facts("b"), upper).params["to"] == "c"


def test_the_hash_covers_who_is_who_and_every_command() -> None:
    before = planned().hash
    assert planned(to="c").hash != before
    assert planned(drain_seconds="6").hash != before
    assert planned(facts("a", "master", node_id="new"), facts("b"), facts("c")).hash != before
    assert planned(facts("a", "master", epoch=2), facts("b"), facts("c")).hash != before
    assert planned(facts("a", "master"), facts("b"), dead("c")).hash != before
    other = make(load(SWITCHOVER.text + "# a remark\n", "s.yml"), {}, cluster(*HEALTHY))
    assert other.hash != before


def test_the_hash_leaves_out_what_moves_all_the_time() -> None:
    moved = planned(
        facts("a", "master", wal_current_lsn=999),
        facts("b", wal_current_lsn=990, replication_lag_entries=9),
        facts("c", wal_current_lsn=980, lag_ms=700),
    )
    assert moved.hash == planned().hash


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ((facts("a"), facts("b")), "no node takes writes"),
        ((facts("a", "master"), facts("b", "master"), facts("c")), "split brain"),
        ((facts("a", "master"),), "no reachable follower"),
    ],
)
def test_what_cannot_be_planned_says_why(nodes: tuple[NodeFacts, ...], words: str) -> None:
    with pytest.raises(PlaybookError, match=words):
        planned(*nodes)


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(PlaybookError, match="no parameter two"):
        planned(two="b")
    with pytest.raises(PlaybookError, match="none of the nodes"):
        planned(to="z")
    with pytest.raises(PlaybookError, match="a number"):
        planned(pause_ms="soon")


def test_a_failover_finds_the_dead_master_and_tells_what_is_lost() -> None:
    late = facts("c", wal_current_lsn=90, replication_lag_entries=17)
    plan = make(FAILOVER, {}, cluster(dead("a"), facts("b"), late))
    assert plan.params["from"] == "a"
    assert plan.params["to"] == "b"
    assert (plan.loss.entries, plan.loss.is_exact) == (7, False)
    assert "unknown" in plan.loss.text
    assert plan.loss.series_text == "unknown (7), and of the rest unknown"
    commands = [work.doing.command for step in plan.steps for work in step.works]
    assert "ssh a.host: systemctl stop karma.service" in commands
    assert any("karma fence --directory /data --epoch 2" in command for command in commands)
    assert plan.point_of_no_return == "fence"


def test_an_unverified_fence_is_a_note_and_no_command() -> None:
    plan = make(FAILOVER, {"fence_unverified": "yes"}, cluster(dead("a"), facts("b"), facts("c")))
    left_out = [step.id for step in plan.steps if step.skipped]
    assert left_out == ["stop", "fence"]
    assert next(step for step in plan.steps if step.id == "unverified").works[0].doing.action == "note"


def test_a_branch_is_counted_by_series() -> None:
    text = "playbook: p\ntitle: t\nloses: the branch\nparams: {node: {kind: node, help: h}}\nsteps:\n"
    text += "  - {id: w, action: wait, args: {seconds: 1}}\n"
    lost = NodeFacts(facts("b").entry, facts("b").status, branch=Branch(90, 11, {"s": 11}))
    plan = make(load(text, "p.yml"), {"node": "b"}, cluster(facts("a", "master"), lost))
    assert (plan.loss.entries, plan.loss.series) == (11, {"s": 11})


def test_a_loss_tells_by_series_what_is_known_and_calls_the_rest_unknown() -> None:
    late = NodeFacts(
        facts("c").entry,
        {**facts("c").status, "wal_current_lsn": 90},
        missing={"s": 6, "mails": 2},
    )
    nodes = dead("a"), facts("b", wal_current_lsn=100, replication_lag_entries=3), late
    loss = make(FAILOVER, {"to": "c"}, cluster(*nodes)).loss
    assert (loss.entries, loss.of_unknown_series) == (13, 5)
    assert loss.series_text == "mails (2), s (6), unknown (5), and of the rest unknown"
    alive = facts("a", "master", wal_current_lsn=98, fenced_by={"epoch": 2})
    exact = make(FAILOVER, {"to": "c"}, cluster(alive, facts("b", wal_current_lsn=98), late)).loss
    assert (exact.is_exact, exact.series_text) == (True, "mails (2), s (6)")
    assert (
        make(FAILOVER, {"to": "b"}, cluster(dead("a"), facts("b"), facts("c"))).loss.series_text == "unknown"
    )


def test_where_histories_part() -> None:
    old = {"wal_current_lsn": 20, "epochs": [{"epoch": 1, "node_id": "a", "start_lsn": 1}]}
    new_epochs = [*old["epochs"], {"epoch": 2, "node_id": "b", "start_lsn": 15}]  # type: ignore[misc]
    new = {"wal_current_lsn": 30, "epochs": new_epochs}
    assert diverged_at(old, new) == 15
    assert diverged_at({**old, "wal_current_lsn": 14}, new) is None
    assert diverged_at(new, new) is None


def test_two_nodes_of_one_name_are_refused() -> None:
    with pytest.raises(PlaybookError, match="two nodes are called x"):
        entries([{"address": "h:1", "name": "x"}, {"address": "h:2", "name": "x"}])


@pytest.mark.parametrize(
    ("left_seconds", "cooling"), [(-1, 0), (0, 0), (0.5, 0.5), (300, 300), (301, 0), (31_536_000, 0)]
)
def test_a_cooldown_lasts_no_longer_than_one_wherever_a_clock_has_gone(
    left_seconds: float, cooling: float
) -> None:
    assert cooling_seconds(left_seconds) == cooling
