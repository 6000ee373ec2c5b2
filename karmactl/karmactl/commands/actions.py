"""actions list, show, mttr: what became of playbook runs, folded from the events that they left."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from karma.protocol.texts import spelled_out
from karma_client.logs import clock
from karma_events import ActionRecord, EventLog, fold
from karma_events.actions import TOPICS, Transition
from karma_events.metrics import acknowledge_ms, recover_ms, summaries, took_ms
from karmactl.commands.events import attrs_text, event_errors, events_path, hint_if_empty, row_of
from karmactl.diagnostics import CtlError, Exit, suggestion, usage
from karmactl.moments import moment_ms
from karmactl.output import Paper, Row, Shown, record, state_style
from karmactl.run import Run


def list_(
    run: Run, state: tuple[str, ...], name: tuple[str, ...], since: str | None, limit: int | None
) -> Sequence[Row]:
    """List actions, newest first."""
    found = _actions(run)
    recoveries = recover_ms(found.values())
    wanted = [one for one in _chosen(found.values(), name, since) if not state or one.state in state]
    return [_row(one, recoveries) for one in reversed(wanted)][:limit]


def show(run: Run, id: str) -> Shown:  # noqa: A002  the argument's name
    """Show one action with its events. Exit code 3 when there is none."""
    found = _actions(run)
    action = _named(found, id)
    row = _row(action, recover_ms(found.values()))
    data = {**row, "events": [_event(one) for one in action.transitions]}

    def text(paper: Paper) -> Iterator[str]:
        kinds = {column.name: column.kind for column in run.command.shape.columns}
        yield from record({name: value for name, value in row.items() if value is not None}, kinds, paper)
        yield ""
        for one in action.transitions:
            yield _line(one, paper)

    return Shown(data, text)


def mttr(run: Run, name: tuple[str, ...], since: str | None) -> list[Row]:
    """Show how long actions took, by name."""
    found = _actions(run)
    recoveries = recover_ms(found.values())
    return [one._asdict() for one in summaries(_chosen(found.values(), name, since), recoveries)]


def _actions(run: Run) -> dict[str, ActionRecord]:
    log = EventLog.open(events_path(run.environ))
    hint_if_empty(run, log)
    with event_errors():
        return fold(log.read(TOPICS))


def _chosen(records: Iterable[ActionRecord], names: tuple[str, ...], since: str | None) -> list[ActionRecord]:
    since_ms = moment_ms(since, time.time())
    return [
        one
        for one in records
        if (not names or one.name in names) and (since_ms is None or _begun_ms(one) >= since_ms)
    ]


def _begun_ms(action: ActionRecord) -> int:
    return action.transitions[0].event.envelope.ts_ms


def _named(found: Mapping[str, ActionRecord], name: str) -> ActionRecord:
    if name in found:
        return found[name]
    beginning = [action_id for action_id in found if action_id.startswith(name)]
    if len(beginning) == 1:
        return found[beginning[0]]
    if beginning:
        raise usage(
            f'"{name}" is the beginning of {len(beginning)} ids', f"write more: {', '.join(beginning[-5:])}"
        )
    proposal = suggestion(name, found)
    raise CtlError(
        Exit.NOT_FOUND,
        f'there is no action "{name}"',
        fault="command line",
        advice=f"{proposal} `karmactl actions list` shows all".strip(),
    )


def _row(action: ActionRecord, recoveries: Mapping[str, int]) -> dict[str, Any]:
    def unix(ts_ms: int | None) -> float | None:
        return None if ts_ms is None else ts_ms / 1000

    return {
        "action_id": action.action_id,
        "name": action.name,
        "entity_id": action.entity_id,
        "correlation_id": action.correlation_id,
        "state": action.state or "unknown",
        "detected_unix": unix(action.detected_ms),
        "requested_unix": unix(action.requested_ms),
        "accepted_unix": unix(action.accepted_ms),
        "started_unix": unix(action.started_ms),
        "finished_unix": unix(action.finished_ms),
        "took_ms": took_ms(action),
        "acknowledge_ms": acknowledge_ms(action),
        "recover_ms": recoveries.get(action.action_id),
        "unavailable_ms": action.unavailable_ms,
        "writes_stopped_unix": unix(action.writes_stopped_ms),
        "retries": action.retries,
        "error": action.error,
        "is_dead_lettered": action.is_dead_lettered,
        "illegal": action.illegal,
    }


def _event(one: Transition) -> dict[str, Any]:
    return {**row_of(one.event), "before": one.before, "after": one.after, "is_legal": one.is_legal}


def _line(one: Transition, paper: Paper) -> str:
    envelope = one.event.envelope
    words = [clock(envelope.ts_ms), envelope.event_type.removeprefix("action.")]
    if one.after != one.before:
        words.append(paper.styled(one.after, state_style(one.after)))
    words.append(spelled_out(attrs_text(envelope.attrs)))
    if not one.is_legal:
        words.append(paper.styled(f"not allowed when {one.before or 'nothing was requested'}", "33"))
    return "  ".join(filter(None, words))
