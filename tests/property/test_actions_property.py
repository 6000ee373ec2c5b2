"""Actions folded from random events: whatever order they are read in, and the same in SQL."""

from collections import defaultdict
from dataclasses import asdict
from typing import Any

import pytest
from events import action
from hypothesis import given, settings
from hypothesis import strategies as st

from karma_events import Envelope, Event, Recorded, State, fold
from karma_events.actions import FINAL, KINDS
from karma_events.ledger import Ledger
from karma_events.metrics import acknowledge_ms, recover_ms, took_ms

LIKELY = (
    "requested",
    "accepted",
    "started",
    "progress",
    "writes_stopped",
    "retrying",
    "writes_resumed",
    "succeeded",
)

odd_attrs = st.dictionaries(
    st.sampled_from(["detected_ms", "error", "reason", "note"]),
    st.none()
    | st.integers(-5, 2**64 - 1)
    | st.floats(0, 1e12)
    | st.text("ab", max_size=3)
    | st.lists(st.just(1)),
)


def made(kind: str, action_id: str, incident: str, ts_ms: int, attrs: dict[str, Any]) -> Event:
    """An event of any kind; attrs as they come, since other programs write events, too."""
    about = action(action_id, correlation_id=incident)
    template = about.progress(ts_ms, f"{action_id}/{kind}/{ts_ms}", step="s", phase="p").envelope
    envelope = Envelope(
        idempotency_key=template.idempotency_key,
        ts_ms=ts_ms,
        event_type=f"action.{kind}",
        entity_id=template.entity_id,
        correlation_id=template.correlation_id,
        source=template.source,
        tags=template.tags,
        attrs=attrs,
    )
    return Event(KINDS[envelope.event_type].topic, envelope)


@st.composite
def histories(draw: st.DrawFn) -> list[Recorded]:
    """Events of a few actions, mostly as they should come, some not; in the order of their offsets."""
    offsets: dict[str, int] = defaultdict(int)
    found = []
    for number in range(draw(st.integers(1, 4))):
        kinds = list(LIKELY[: draw(st.integers(0, len(LIKELY)))])
        for _ in range(draw(st.integers(0, 3))):
            kinds.insert(
                draw(st.integers(0, len(kinds))), draw(st.sampled_from(sorted(KINDS)))[len("action.") :]
            )
        for kind in kinds:
            incident = draw(st.sampled_from(["i1", "i2"]))
            ts_ms = draw(st.integers(0, 10_000))
            topic, envelope = made(kind, f"run-{number}", incident, ts_ms, draw(odd_attrs))
            offsets[topic] += 1
            found.append(Recorded(topic, offsets[topic], envelope))
    return found


@given(histories(), st.randoms(use_true_random=False))
def test_the_order_of_reading_does_not_matter(events: list[Recorded], random: Any) -> None:
    shuffled = list(events)
    random.shuffle(shuffled)
    assert fold(shuffled) == fold(events)


@given(histories())
def test_states_change_only_as_they_may(events: list[Recorded]) -> None:
    for record in fold(events).values():
        state = ""
        for one in record.transitions:
            kind = KINDS[one.event.envelope.event_type]
            assert one.before == state
            if one.is_legal:
                assert state in kind.allowed
                assert one.after == (kind.to or state)
            else:
                assert one.after == state
            if state in FINAL:
                assert one.after == state
            state = one.after
        assert record.state == state
        assert record.illegal == sum(not one.is_legal for one in record.transitions)
        assert (record.finished_ms is not None) == record.is_final
        assert (record.requested_ms is not None) == (record.state != "")
    assert sum(len(record.transitions) for record in fold(events).values()) == len(events)


@given(st.integers(0, 5), st.sampled_from(["succeeded", "failed", "cancelled"]))
def test_a_life_as_it_should_be_is_legal(retries: int, result: str) -> None:
    kinds = ["requested", "accepted", "started", *["retrying"] * retries, "progress", result]
    offsets: dict[str, int] = defaultdict(int)
    events = []
    for number, kind in enumerate([*kinds, *(["dead_lettered"] if result == "failed" else [])]):
        topic, envelope = made(kind, "run", "i", number, {})
        offsets[topic] += 1
        events.append(Recorded(topic, offsets[topic], envelope))
    record = fold(events)["run"]
    assert (record.state, record.illegal, record.retries) == (State(result.upper()), 0, retries)
    assert record.is_dead_lettered == (result == "failed")


@settings(max_examples=40, deadline=None)
@given(histories())
def test_the_ledger_says_what_the_fold_says(events: list[Recorded]) -> None:
    check_ledger(events)


ODD = (
    (2, "requested accepted started writes_stopped writes_stopped writes_resumed writes_resumed"),
    (1, "requested accepted started writes_resumed writes_stopped writes_resumed succeeded"),
    (1, "requested accepted failed dead_lettered dead_lettered"),
    (3, "requested requested cancelled failed dead_lettered"),
    (3, "accepted started succeeded"),
)


@pytest.mark.parametrize(("illegal", "kinds"), ODD)
def test_what_hardly_ever_comes_is_the_same_in_sql(illegal: int, kinds: str) -> None:
    offsets: dict[str, int] = defaultdict(int)
    events = []
    for number, kind in enumerate(kinds.split()):
        topic, envelope = made(kind, "run", "i", number * number, {})
        offsets[topic] += 1
        events.append(Recorded(topic, offsets[topic], envelope))
    assert fold(events)["run"].illegal == illegal
    check_ledger(events)


def check_ledger(events: list[Recorded]) -> None:
    """Hold the actions and transitions of the ledger against the fold."""
    records = fold(events)
    recoveries = recover_ms(records.values())
    expected = []
    for record in records.values():
        row = asdict(record)
        del row["transitions"]
        row |= {"acknowledge_ms": acknowledge_ms(record), "took_ms": took_ms(record)}
        expected.append(row | {"recover_ms": recoveries.get(record.action_id)})
    with Ledger(events) as ledger:
        found = list(ledger.query("SELECT * FROM actions ORDER BY action_id").rows)
        steps = list(
            ledger.query("SELECT action_id, before, after, is_legal FROM transitions ORDER BY ALL").rows
        )
    assert found == sorted(expected, key=lambda row: row["action_id"])
    folded = [
        {"action_id": name, "before": one.before, "after": one.after, "is_legal": one.is_legal}
        for name, record in records.items()
        for one in record.transitions
    ]
    assert steps == sorted(folded, key=lambda row: tuple(row.values()))
