"""How long actions took, from their events alone. Milliseconds, None where something has not happened. Pure.

- *acknowledge*: from the request to its acceptance;
- *recover*: of an incident (the actions of one `correlation_id`), from when it was known (`detected_ms` of a
  request, else the first request) to the first success. It is that action's: a mean has each incident once;
- *unavailable*: from the first moment at which no node may have taken writes to when one acknowledged that it
  does. Whoever emits the events says how it knows (`by`); windows of one action add up.

MTTA and MTTR are means of the first two. A clock that was set back in between counts as 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from karma_events.actions import ActionRecord, State


class Summary(NamedTuple):
    """Actions of one name, counted by result, and means and maxima of their times."""

    name: str
    actions: int
    succeeded: int
    failed: int
    cancelled: int
    under_way: int
    mean_acknowledge_ms: float | None
    mean_recover_ms: float | None
    max_recover_ms: int | None
    mean_unavailable_ms: float | None
    max_unavailable_ms: int | None


def acknowledge_ms(record: ActionRecord) -> int | None:
    """Return the time to acknowledge."""
    return _between(record.requested_ms, record.accepted_ms)


def took_ms(record: ActionRecord) -> int | None:
    """Return the time from the request to the result."""
    return _between(record.requested_ms, record.finished_ms)


def recover_ms(records: Iterable[ActionRecord]) -> dict[str, int]:
    """Return the time to recover of each incident that was, by the id of the action that ended it."""
    incidents: dict[str, list[ActionRecord]] = defaultdict(list)
    for record in records:
        incidents[record.correlation_id].append(record)
    found = {}
    for actions in incidents.values():
        begins = [
            record.requested_ms if record.detected_ms is None else record.detected_ms for record in actions
        ]
        ends = [
            (record.finished_ms, record.action_id)
            for record in actions
            if record.state == State.SUCCEEDED and record.finished_ms is not None
        ]
        known_ms = min((begin for begin in begins if begin is not None), default=None)
        if ends and known_ms is not None:
            finished_ms, action_id = min(ends)
            found[action_id] = max(finished_ms - known_ms, 0)
    return found


def summaries(records: Collection[ActionRecord], recoveries: Mapping[str, int]) -> list[Summary]:
    """Return a summary of each name of actions, by name, given `recover_ms` of all actions."""
    by_name: dict[str, list[ActionRecord]] = defaultdict(list)
    for record in records:
        by_name[record.name].append(record)
    return [_summary(name, by_name[name], recoveries) for name in sorted(by_name)]


def _summary(name: str, records: list[ActionRecord], recoveries: Mapping[str, int]) -> Summary:
    acknowledged = [took for record in records if (took := acknowledge_ms(record)) is not None]
    recovered = [recoveries[record.action_id] for record in records if record.action_id in recoveries]
    unavailable = [record.unavailable_ms for record in records if record.unavailable_ms is not None]
    states = [record.state for record in records]
    return Summary(
        name,
        len(records),
        states.count(State.SUCCEEDED),
        states.count(State.FAILED),
        states.count(State.CANCELLED),
        sum(not record.is_final for record in records),
        _mean(acknowledged),
        _mean(recovered),
        max(recovered, default=None),
        _mean(unavailable),
        max(unavailable, default=None),
    )


def _between(begin_ms: int | None, end_ms: int | None) -> int | None:
    return None if begin_ms is None or end_ms is None else max(end_ms - begin_ms, 0)


def _mean(values: Collection[int]) -> float | None:
    return sum(values) / len(values) if values else None
