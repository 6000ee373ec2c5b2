"""Actions as events: the states of an action, the events that change them, and the fold from these to those.

                 actions.requested   actions.progress                 actions.result         actions.dlq
    (nothing) ─► REQUESTED ────────► ACCEPTED ─► STARTED ─┬─────────► SUCCEEDED
                                                 │   ▲    ├─────────► FAILED ──────────────► (dead-lettered)
                                                 ▼   │    └─────────► CANCELLED
                                              (RETRYING)*

Events of an action carry the tags `action_id` and `action` (its kind, as `switchover`). An action may be
cancelled before it started, and fail once it was accepted; after a result nothing changes its state any more.
An event that the state does not allow is kept and marked illegal, and changes nothing.

Order: of one topic, its offsets; between topics, as in the picture. So no clock decides about a state,
and the order in which topics are read does not matter. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

from karma_events.envelope import MAX_TS_MS, Envelope, Event, Recorded, Source
from karma_events.errors import InvalidEventError

REQUESTED_TOPIC = "actions.requested"
PROGRESS_TOPIC = "actions.progress"
RESULT_TOPIC = "actions.result"
DLQ_TOPIC = "actions.dlq"
TOPICS = (REQUESTED_TOPIC, PROGRESS_TOPIC, RESULT_TOPIC, DLQ_TOPIC)
"""In the order in which an action comes through them."""


class State(StrEnum):
    """What an action is."""

    REQUESTED = "REQUESTED"
    ACCEPTED = "ACCEPTED"
    STARTED = "STARTED"
    RETRYING = "RETRYING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Kind(NamedTuple):
    """A type of event: its topic, the states that allow it ("" before the first event), and the one after it.

    `to` is None where the state stays as it is.
    """

    topic: str
    allowed: tuple[str, ...]
    to: State | None


_UNDER_WAY = (State.STARTED, State.RETRYING)
KINDS: dict[str, Kind] = {
    "action.requested": Kind(REQUESTED_TOPIC, ("",), State.REQUESTED),
    "action.accepted": Kind(PROGRESS_TOPIC, (State.REQUESTED,), State.ACCEPTED),
    "action.started": Kind(PROGRESS_TOPIC, (State.ACCEPTED,), State.STARTED),
    "action.retrying": Kind(PROGRESS_TOPIC, _UNDER_WAY, State.RETRYING),
    "action.progress": Kind(PROGRESS_TOPIC, _UNDER_WAY, None),
    "action.writes_stopped": Kind(PROGRESS_TOPIC, _UNDER_WAY, None),
    "action.writes_resumed": Kind(PROGRESS_TOPIC, _UNDER_WAY, None),
    "action.succeeded": Kind(RESULT_TOPIC, _UNDER_WAY, State.SUCCEEDED),
    "action.failed": Kind(RESULT_TOPIC, (State.ACCEPTED, *_UNDER_WAY), State.FAILED),
    "action.cancelled": Kind(RESULT_TOPIC, (State.REQUESTED, State.ACCEPTED, *_UNDER_WAY), State.CANCELLED),
    "action.dead_lettered": Kind(DLQ_TOPIC, (State.FAILED,), None),
}
"""Every type of event of an action."""
FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


def step_key(run: str, step: str, attempt: int, phase: str) -> str:
    """Return the idempotency key of what happens once: `run/step/attempt/phase`; step "-" is the run."""
    return f"{run}/{step}/{attempt}/{phase}"


# -- Making events ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Action:
    """One action, from which its events are made. `ts_ms` is always when it happened, unix milliseconds.

    `key` is the event's idempotency key (`step_key`), `attrs` whatever else is worth knowing. Methods raise
    InvalidEventError for what an envelope refuses.
    """

    action_id: str
    name: str
    """What kind of action it is: the playbook's name."""
    entity_id: str
    """What it acts on: the cluster."""
    source: Source
    correlation_id: str = ""
    """What joins the actions of one incident; the action's own id if left out."""
    tags: Mapping[str, str] = field(default_factory=dict)

    def requested(self, ts_ms: int, key: str, **attrs: Any) -> Event:
        """Somebody asked for it. `detected_ms` among attrs says since when what it is to mend was known."""
        return self._event("action.requested", ts_ms, key, attrs)

    def accepted(self, ts_ms: int, key: str, **attrs: Any) -> Event:
        """Somebody will do it: the plan holds, the lock is taken."""
        return self._event("action.accepted", ts_ms, key, attrs)

    def started(self, ts_ms: int, key: str, **attrs: Any) -> Event:
        """The first step began."""
        return self._event("action.started", ts_ms, key, attrs)

    def retrying(self, ts_ms: int, key: str, *, attempt: int, error: str, **attrs: Any) -> Event:
        """Something of it is tried again; `attempt` counts from 1, so the first retry has 2."""
        return self._event("action.retrying", ts_ms, key, {"attempt": attempt, "error": error, **attrs})

    def progress(self, ts_ms: int, key: str, *, step: str, phase: str, **attrs: Any) -> Event:
        """A step came to a phase, such as `done`."""
        return self._event("action.progress", ts_ms, key, {"step": step, "phase": phase, **attrs})

    def writes_stopped(self, ts_ms: int, key: str, **attrs: Any) -> Event:
        """The write-unavailable window opens: from `ts_ms` on perhaps no node took writes."""
        return self._event("action.writes_stopped", ts_ms, key, attrs)

    def writes_resumed(self, ts_ms: int, key: str, **attrs: Any) -> Event:
        """The window closes: at `ts_ms` a node has acknowledged that it takes writes."""
        return self._event("action.writes_resumed", ts_ms, key, attrs)

    def succeeded(self, ts_ms: int, key: str, **attrs: Any) -> Event:
        """It is done and verified."""
        return self._event("action.succeeded", ts_ms, key, attrs)

    def failed(self, ts_ms: int, key: str, *, error: str, **attrs: Any) -> Event:
        """It will not be done; what it had done is undone, or `attrs` says what is left."""
        return self._event("action.failed", ts_ms, key, {"error": error, **attrs})

    def cancelled(self, ts_ms: int, key: str, *, reason: str, **attrs: Any) -> Event:
        """Somebody, or a guard, called it off."""
        return self._event("action.cancelled", ts_ms, key, {"reason": reason, **attrs})

    def dead_lettered(self, ts_ms: int, key: str, *, attempts: int, error: str, **attrs: Any) -> Event:
        """It failed and every attempt is used up: from here on only a person helps."""
        return self._event(
            "action.dead_lettered", ts_ms, key, {"attempts": attempts, "error": error, **attrs}
        )

    def _event(self, event_type: str, ts_ms: int, key: str, attrs: dict[str, Any]) -> Event:
        envelope = Envelope(
            idempotency_key=key,
            ts_ms=ts_ms,
            event_type=event_type,
            entity_id=self.entity_id,
            correlation_id=self.correlation_id or self.action_id,
            source=self.source,
            tags={**self.tags, "action_id": self.action_id, "action": self.name},
            attrs=attrs,
        )
        return Event(KINDS[event_type].topic, envelope)


# -- From events to actions -------------------------------------------------------------------------------


class Transition(NamedTuple):
    """What one event did to an action. "" is the state before the first; an illegal event changes none."""

    event: Recorded
    before: str
    after: str
    is_legal: bool


@dataclass(frozen=True, slots=True)
class ActionRecord:
    """What became of an action. Times are unix milliseconds, None for what has not happened."""

    action_id: str
    name: str
    entity_id: str
    correlation_id: str
    state: str = ""
    """A `State`; "" when its first events are missing."""
    detected_ms: int | None = None
    """Since when it was known what the action is to mend, if its request says so."""
    requested_ms: int | None = None
    accepted_ms: int | None = None
    started_ms: int | None = None
    finished_ms: int | None = None
    retries: int = 0
    error: str | None = None
    """What the last retry, failure or cancellation gave as its cause."""
    is_dead_lettered: bool = False
    writes_stopped_ms: int | None = None
    """Since when nothing takes writes; None while something does."""
    unavailable_ms: int | None = None
    """How long nothing took writes, all closed windows together; None without one."""
    illegal: int = 0
    """Events that its state did not allow."""
    transitions: tuple[Transition, ...] = ()

    @property
    def is_final(self) -> bool:
        """Whether it has a result."""
        return self.state in FINAL


def fold(events: Iterable[Recorded]) -> dict[str, ActionRecord]:
    """Return what became of each action, by id in the order of their first events.

    Events may come in any order. Those that belong to no action are left out.
    """
    by_action: dict[str, list[Recorded]] = defaultdict(list)
    for event in events:
        kind = KINDS.get(event.envelope.event_type)
        action_id = event.envelope.tags.get("action_id")
        if kind is not None and kind.topic == event.topic and action_id is not None:
            by_action[action_id].append(event)
    records = [_fold_one(action_id, found) for action_id, found in by_action.items()]
    records.sort(key=lambda record: (record.transitions[0].event.envelope.ts_ms, record.action_id))
    return {record.action_id: record for record in records}


def _fold_one(action_id: str, events: list[Recorded]) -> ActionRecord:
    events.sort(key=lambda event: (TOPICS.index(event.topic), event.offset))
    first = events[0].envelope
    record = ActionRecord(action_id, first.tags.get("action", ""), first.entity_id, first.correlation_id)
    transitions = []
    for event in events:
        changed = apply(record, event.envelope)
        after = record if changed is None else changed
        transitions.append(Transition(event, record.state, after.state, changed is not None))
        record = replace(record, illegal=record.illegal + 1) if changed is None else changed
    return replace(record, transitions=tuple(transitions))


def apply(record: ActionRecord, event: Envelope) -> ActionRecord | None:
    """Return an action after one more event; None when its state does not allow it.

    Raises InvalidEventError for an event that is no action's.
    """
    kind = KINDS.get(event.event_type)
    if kind is None:
        raise InvalidEventError(f"{event.event_type} is no event of an action")
    if record.state not in kind.allowed:
        return None
    changes: dict[str, Any] = {} if kind.to is None else {"state": kind.to.value}
    match event.event_type:
        case "action.requested":
            changes |= {"requested_ms": event.ts_ms, "detected_ms": _time(event, "detected_ms")}
        case "action.accepted":
            changes["accepted_ms"] = event.ts_ms
        case "action.started":
            changes["started_ms"] = event.ts_ms
        case "action.retrying":
            changes |= {"retries": record.retries + 1, "error": _text(event, "error")}
        case "action.failed":
            changes |= {"finished_ms": event.ts_ms, "error": _text(event, "error")}
        case "action.cancelled":
            changes |= {"finished_ms": event.ts_ms, "error": _text(event, "reason")}
        case "action.succeeded":
            changes |= {"finished_ms": event.ts_ms, "error": None}
        case "action.dead_lettered":
            if record.is_dead_lettered:
                return None
            changes["is_dead_lettered"] = True
        case "action.writes_stopped":
            if record.writes_stopped_ms is not None:
                return None
            changes["writes_stopped_ms"] = event.ts_ms
        case "action.writes_resumed":
            if record.writes_stopped_ms is None:
                return None
            window_ms = max(event.ts_ms - record.writes_stopped_ms, 0)
            changes |= {
                "writes_stopped_ms": None,
                "unavailable_ms": (record.unavailable_ms or 0) + window_ms,
            }
    return replace(record, **changes)


def _time(event: Envelope, name: str) -> int | None:
    value = event.attrs.get(name)
    return value if type(value) is int and 0 <= value <= MAX_TS_MS else None


def _text(event: Envelope, name: str) -> str | None:
    value = event.attrs.get(name)
    return value if isinstance(value, str) else None
