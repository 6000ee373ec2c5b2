"""The fleet as a value: what answers make of it, alarms, topology, tables. No clock, no network."""

from typing import Any

import pytest
from stage import DEAD, FAR, MASTER, NEAR, NODES, NOON, answer, dead, fleet_of, history

from karma_client.logs import Logged, Merged
from karma_tui import actions, model, views
from karma_tui.model import HISTORY, Answer, Problem
from karma_tui.target import Target

FENCE = {"epoch": 4, "node_id": "b2", "reason": "a newer epoch"}


def alarms_of(address: str, *answers: Answer, nodes: tuple[str, ...] = NODES[:2]) -> list[str]:
    fleet = fleet_of(answers, nodes)
    return [alarm.text for alarm in model.alarms(fleet, fleet.node(address))]


def test_nothing_is_judged_before_every_node_was_heard() -> None:
    fleet = fleet_of([answer(MASTER)], (MASTER, NEAR))
    assert not fleet.is_heard
    assert model.screams(fleet) == []
    assert [alarm.text for alarm in model.alarms(fleet, fleet.node(NEAR))] == ["waiting for its first answer"]
    assert fleet_of([answer(MASTER), dead(address=NEAR)], (MASTER, NEAR)).is_heard


def test_an_answer_of_a_stranger_changes_nothing() -> None:
    fleet = fleet_of([answer(MASTER)], (MASTER,))
    assert model.observe(fleet, answer("else:1")) is fleet


def test_a_fleet_is_never_changed() -> None:
    before = fleet_of([answer(MASTER), answer(NEAR)], (MASTER, NEAR))
    after = model.observe(before, answer(NEAR, NOON + 1, 50))
    assert before.node(NEAR).newest.lag_entries == 0
    assert after.node(NEAR).newest.lag_entries == 50
    assert after.node(MASTER) is before.node(MASTER)


def test_history_is_bounded_and_silence_is_a_gap_in_it() -> None:
    fleet = fleet_of([answer(NEAR, NOON + at, at) for at in range(HISTORY + 50)], (NEAR,))
    node = fleet.node(NEAR)
    assert len(node.samples) == len(node.ops["counter.sum"]) == HISTORY
    assert node.series("lag_entries")[-1] == HISTORY + 49
    node = model.observe(fleet, dead(NOON + 999, NEAR)).node(NEAR)
    assert node.series("lag_entries")[-1] is None
    assert len(node.samples) == HISTORY


def test_a_silent_node_keeps_what_it_said_and_since_when() -> None:
    fleet = fleet_of([answer(NEAR, NOON, 7), dead(NOON + 1, NEAR), dead(NOON + 11, NEAR)], (NEAR,))
    node = fleet.node(NEAR)
    assert node.known.role == "slave"
    assert node.state.role == "unreachable"
    assert node.problem_since == NOON + 1
    assert alarms_of(NEAR, *[answer(NEAR), dead(NOON + 1, NEAR), dead(NOON + 11, NEAR)], nodes=(NEAR,)) == [
        "silent for 10s: cannot connect: connection refused"
    ]
    back = model.observe(fleet, answer(NEAR, NOON + 12)).node(NEAR)
    assert back.problem is None
    assert back.problem_since is None


def test_a_node_that_refuses_is_not_called_silent() -> None:
    refused = Answer(
        NEAR, NOON, 1.0, problem=Problem(f"{NEAR}: wrong token (unauthorized)", is_silence=False)
    )
    assert alarms_of(NEAR, refused, nodes=(NEAR,)) == ["refused for 0.0s: wrong token (unauthorized)"]
    assert fleet_of([refused], (NEAR,)).node(NEAR).state.state == "refused"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ({}, ""),
        ({"paused_until": int(NOON * 1000) + 5000}, "writes go on in 5.0s"),
        ({"fenced_by": FENCE}, "fenced: for epoch 4 by node b2: a newer epoch"),
        ({"replication_state": "diverged", "replication_reason": "at LSN 7"}, "diverged: at LSN 7"),
        ({"lag": 10_001}, "10001 entries behind, more than 10000"),
        ({"sync_degraded": True}, "too few replicas hold its writes"),
    ],
)
def test_what_is_odd_is_an_alarm(status: dict[str, Any], text: str) -> None:
    found = alarms_of(NEAR, answer(MASTER), answer(NEAR, **status))
    assert text in found if text else not found


def test_a_slave_that_received_nothing_is_a_bad_alarm() -> None:
    empty = answer(NEAR)
    empty = empty._replace(status={**empty.status, "filled": False})
    fleet = fleet_of([answer(MASTER), empty], (MASTER, NEAR))
    (alarm,) = model.alarms(fleet, fleet.node(NEAR))
    assert (alarm.mood, alarm.text) == ("bad", "has received nothing from its source yet")


def test_a_full_disk_and_a_late_answer_are_alarms() -> None:
    full = answer(NEAR)
    full = full._replace(stats={**full.stats, "disk_free_bytes": 1, "disk_total_bytes": 100})
    assert alarms_of(NEAR, full, answer(MASTER, NOON + 4)) == ["disk 1% free", "slow: last answer 4.0s ago"]


def test_two_writers_scream() -> None:
    fleet = fleet_of([answer(MASTER), answer(NEAR, role="master", epoch=4)], NODES[:2])
    assert model.screams(fleet) == [
        "SPLIT BRAIN: 2 nodes take writes as master: db1:8080 (epoch 3), db2:8080 (epoch 4)"
    ]
    assert alarms_of(NEAR, answer(MASTER), answer(NEAR, role="master"))[0] == "SPLIT BRAIN"


@pytest.mark.parametrize(
    ("master", "other", "is_stale"),
    [
        # The old master was left behind by a promotion: the fence holds it back as it should.
        (answer(MASTER, fenced_by=FENCE), answer(NEAR, role="master", epoch=4), False),
        (answer(MASTER, fenced_by=FENCE), answer(NEAR, role="master", epoch=5), False),
        # The promotion that it was set for never came.
        (answer(MASTER, fenced_by=FENCE), answer(NEAR), True),
        (answer(MASTER, fenced_by=FENCE), answer(NEAR, role="master", epoch=3), True),
        # Its master has gone.
        (answer(MASTER, fenced_by=FENCE), dead(address=NEAR), True),
        (answer(MASTER), answer(NEAR), False),
    ],
)
def test_a_fence_that_guards_nothing_screams(master: Answer, other: Answer, is_stale: bool) -> None:
    fleet = fleet_of([master, other], NODES[:2])
    assert any("STALE FENCE" in text for text in model.screams(fleet)) == is_stale
    assert ("STALE FENCE" in alarms_of(MASTER, master, other)) == is_stale


def test_the_tree_hangs_followers_on_what_they_follow() -> None:
    chain = [answer(MASTER), answer(NEAR), answer(FAR, source=NEAR), dead()]
    assert [(one.indent, one.node.address) for one in model.tree(fleet_of(chain))] == [
        ("", MASTER),
        ("└─ ", NEAR),
        ("   └─ ", FAR),
        ("", DEAD),
    ]
    circle = fleet_of([answer(NEAR, source=FAR), answer(FAR, source=NEAR)], (NEAR, FAR))
    # A link that would make a circle is out of date: the other one stays.
    assert [one.node.address for one in model.tree(circle)] == [FAR, NEAR]


def test_the_laggiest_follower_is_found_by_time_first() -> None:
    fleet = fleet_of(history())
    found = model.laggiest(fleet)
    assert found is not None
    assert found.address == FAR
    assert model.laggiest(fleet_of([answer(MASTER)], (MASTER,))) is None


def test_data_is_read_from_the_master_or_who_is_left() -> None:
    assert fleet_of([answer(MASTER), answer(NEAR)], NODES[:2]).reader == MASTER
    assert fleet_of([dead(address=MASTER), answer(NEAR)], NODES[:2]).reader == NEAR
    assert fleet_of([], NODES[:2]).reader == MASTER


def test_the_node_table_says_what_nodes_said() -> None:
    table = views.nodes(fleet_of(history()))
    far = next(row for row in table.rows if row.key == FAR)
    values = dict(zip((column.name for column in table.columns), far.cells, strict=True))
    assert values["node"] == f"├─ {FAR}"
    assert (values["role"], values["epoch"], values["lsn"]) == ("slave", 3, 118_820)
    assert (values["lag_entries"], values["lag_ms"]) == (1180, 2360)
    assert values["lag"].endswith("█")
    assert values["disk"] == 60
    gone = next(row for row in table.rows if row.key == DEAD)
    assert gone.mood == "bad"
    assert gone.cells[table.place_of("lag_entries")] is None


def test_followers_are_listed_laggiest_first_with_strangers() -> None:
    table = views.replicas(fleet_of(history()))
    assert [row.cells[0] for row in table.rows] == [DEAD, FAR, "10.0.0.5 (e5)", NEAR]
    # Of a silent one its source tells.
    assert table.rows[0].cells[2:6] == ("silent", 119_000, 1000, 90_000)
    assert table.rows[1].cells[-1] == "ok (1 wanted)"
    assert views.replicas(fleet_of([answer(MASTER, replicas=[])], (MASTER,))).rows == ()


def test_operations_are_listed_by_use() -> None:
    table = views.operations(fleet_of(history()).node(MASTER))
    assert [row.key for row in table.rows] == ["counter.increment", "counter.sum", "tree.top"]
    assert table.rows[0].cells[1] == 900
    assert table.rows[2].mood == "dim"


def test_clients_say_why_there_are_none() -> None:
    refused = answer(NEAR)._replace(clients=None, clients_problem="needs an admin token")
    table = views.clients(fleet_of([answer(MASTER), refused], NODES[:2]))
    assert len(table.rows) == 4
    assert "needs an admin token" in table.note


def test_log_rows_hold_every_word_and_name_who_has_them() -> None:
    entry = {"op": "counter.increment", "series": "hits", "key": 42, "bucket": 20260505, "value": 3}
    both = Merged(Logged(7, entry, 1000, "aa", 1), ("a", "b"), "")
    one = Merged(Logged(8, entry | {"key": 43}, None, "bb", 1), ("a",), "missing on b")
    table = views.log([both, one], "", 2)
    assert [row.cells[table.place_of("nodes")] for row in table.rows] == ["all", "a"]
    assert [row.mood for row in table.rows] == ["", "warn"]
    assert len(views.log([both, one], "HITS key=42", 2).rows) == 1
    assert views.log([both, one], "mails", 2).note == "no entry fits the filter"


def test_snapshots_are_listed_with_what_is_known_of_them() -> None:
    info = {"latest_by_tree": [{"tree": "a/b", "file": "100_a%2Fb.tree", "bytes": 5, "last_lsn": 3}]}
    table = views.snapshots(info, ["/d/100_a%2Fb.tree", "/d/90_a%2Fb.tree"], 160.0)
    assert table.rows[0].cells == ("100_a%2Fb.tree", "a/b", 100, 60.0, 5, 3)
    assert table.rows[1].mood == "dim"


# -- Commands and actions ---------------------------------------------------------------------------------

PROD = Target(NODES, "prod", is_production=True, options=("--context", "prod"))
BARE = Target((MASTER,), options=("--node", MASTER))


def test_every_action_names_the_command_that_does_the_same() -> None:
    assert actions.promote(NEAR).command(PROD) == f"karmactl replication promote --context prod --node {NEAR}"
    assert actions.pause(NEAR).command(BARE) == f"karmactl replication pause --for 30s --node {NEAR}"
    assert BARE.command("series", "top", "a b; rm") == f"karmactl series top 'a b; rm' --node {MASTER}"


@pytest.mark.parametrize(
    ("action", "target", "name"),
    [
        (actions.pause(NEAR), BARE, ""),
        (actions.promote(NEAR), BARE, NEAR),
        (actions.unfence(NEAR, 4), BARE, NEAR),
        (actions.save_all(NEAR), PROD, "prod"),
        (actions.promote(NEAR), PROD, "prod"),
    ],
)
def test_much_at_stake_and_production_want_a_name(action: actions.Action, target: Target, name: str) -> None:
    assert action.name_to_type(target) == name


def test_no_token_is_in_what_a_target_shows() -> None:
    assert "secret" not in repr(Target(NODES, client_options={"token": "secret"}))
