"""What becomes of an action, and how long it took, on one story with known numbers."""

from collections import defaultdict

import pytest
from events import TS_MS, action, event, incident

from karma_events import Event, InvalidEventError, Recorded, State, fold, step_key
from karma_events.actions import KINDS, TOPICS, ActionRecord, apply
from karma_events.metrics import acknowledge_ms, recover_ms, summaries, took_ms


def recorded(events: list[Event]) -> list[Recorded]:
    offsets: dict[str, int] = defaultdict(int)
    found = []
    for topic, envelope in events:
        offsets[topic] += 1
        found.append(Recorded(topic, offsets[topic], envelope))
    return found


@pytest.fixture
def records() -> dict[str, ActionRecord]:
    return fold(recorded(incident()))


def test_states_and_times_of_a_story(records: dict[str, ActionRecord]) -> None:
    assert [(record.action_id, record.state) for record in records.values()] == [
        ("f1-failover", State.FAILED),
        ("f2-failover", State.SUCCEEDED),
        ("s1-switchover", State.CANCELLED),
        ("s2-switchover", State.STARTED),
    ]
    first, second, third, fourth = records.values()
    assert (first.retries, first.error, first.is_dead_lettered) == (1, "fence: no evidence", True)
    assert (first.detected_ms, first.requested_ms) == (TS_MS - 60_000, TS_MS)
    assert (second.error, second.unavailable_ms, second.writes_stopped_ms) == (None, 301_000, None)
    assert (third.error, third.illegal) == ("the plan's hash is another", 1)
    assert third.transitions[-1].is_legal is False
    # Its writes have not been resumed yet.
    assert (fourth.unavailable_ms, fourth.writes_stopped_ms) == (None, TS_MS + 86_405_500)
    assert [acknowledge_ms(record) for record in records.values()] == [2100, 1100, None, 40]
    assert [took_ms(record) for record in records.values()] == [9000, 5000, 700, None]


def test_an_incident_recovers_once_and_from_when_it_was_known(records: dict[str, ActionRecord]) -> None:
    # Known a minute before the first failover was requested, mended by the second one.
    assert recover_ms(records.values()) == {"f2-failover": 60_000 + 245_000}
    failover, switchover = summaries(list(records.values()), recover_ms(records.values()))
    assert failover._asdict() == {
        "name": "failover",
        "actions": 2,
        "succeeded": 1,
        "failed": 1,
        "cancelled": 0,
        "under_way": 0,
        "mean_acknowledge_ms": 1600.0,
        "mean_recover_ms": 305_000.0,
        "max_recover_ms": 305_000,
        "mean_unavailable_ms": 301_000.0,
        "max_unavailable_ms": 301_000,
    }
    assert (switchover.cancelled, switchover.under_way, switchover.mean_recover_ms) == (1, 1, None)


def test_windows_without_writes_add_up_and_clocks_set_back_count_nothing() -> None:
    run = action("run")
    steps = [run.requested(5, "1"), run.accepted(3, "2"), run.started(4, "3")]
    for number, (stopped, resumed) in enumerate([(100, 150), (200, 290), (300, 250)]):
        steps += [run.writes_stopped(stopped, f"s{number}"), run.writes_resumed(resumed, f"r{number}")]
    (record,) = fold(recorded([*steps, run.succeeded(4, "4")])).values()
    assert (record.unavailable_ms, record.illegal) == (50 + 90, 0)
    assert (acknowledge_ms(record), took_ms(record)) == (0, 0)


def test_the_second_success_of_an_incident_recovers_nothing() -> None:
    events = []
    for number, finished in enumerate([70, 50]):
        run = action(f"run-{number}", correlation_id="incident")
        key = f"k{number}"
        events += [run.requested(number, f"{key}1"), run.accepted(10, f"{key}2"), run.started(11, f"{key}3")]
        events.append(run.succeeded(finished, f"{key}4"))
    assert recover_ms(fold(recorded(events)).values()) == {"run-1": 50}


def test_an_action_whose_request_is_missing_has_no_state() -> None:
    events = [one for one in recorded(incident()) if one.topic != "actions.requested"]
    record = fold(events)["f1-failover"]
    assert (record.state, record.illegal, record.requested_ms) == ("", 5, None)
    assert recover_ms([record]) == {}


def test_what_is_no_action_s_is_left_out() -> None:
    started = action().started(1, "k").envelope
    assert (
        fold([Recorded("actions.requested", 1, started), Recorded("actions.progress", 1, event("a"))]) == {}
    )
    with pytest.raises(InvalidEventError, match="no event of an action"):
        apply(ActionRecord("a", "b", "c", "d"), event("a"))


def test_every_state_can_be_reached_and_every_topic_is_used() -> None:
    assert {kind.to for kind in KINDS.values()} - {None} == set(State)
    assert {kind.topic for kind in KINDS.values()} == set(TOPICS)
    assert step_key("run-7", "drain", 2, "done") == "run-7/drain/2/done"


def test_an_action_is_its_own_incident_unless_told_otherwise() -> None:
    assert action("a").requested(1, "k").envelope.correlation_id == "a"
    assert action("a", correlation_id="b").requested(1, "k").envelope.correlation_id == "b"
    with pytest.raises(InvalidEventError, match=r"attrs\.plan is"):
        action("a").requested(1, "k", plan=object())
