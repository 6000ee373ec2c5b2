"""Runs as events: what the journal holds and the event log does not have yet, sent in order.

The journal is the truth and comes first; a process that dies in between sends the same events again at its
next start,
under the same idempotency keys. That the event log cannot be written delays nothing: a failover does not wait
for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from karma_events import Action, Event, EventError, EventLog, Source, step_key
from karma_playbooks.history import Entry, History
from karma_playbooks.journal import Journal
from karma_playbooks.window import Change, Window

CONSUMER = "events"
SOURCE = Source("karmactl", "playbooks")


def publish(journal: Journal, directory: Path) -> str:
    """Send what is due; returns why some of it could not be sent, "" when all was."""
    due = journal.not_emitted(CONSUMER)
    if not due:
        return ""
    told: dict[str, tuple[History, Window]] = {}
    events: list[Event] = []
    for _, entry in due:
        if entry.run not in told:
            told[entry.run] = History(entry.run), Window()
            for earlier in journal.entries(entry.run)[: entry.number - 1]:
                _take(earlier, *told[entry.run])
        change = _take(entry, *told[entry.run])
        history, _ = told[entry.run]
        events += _events(entry, history)
        if change is not None:
            events.append(_of_window(entry, history, change))
    try:
        with EventLog.open(directory) as log:
            log.append_all(events)
    except (EventError, OSError) as error:
        return str(error)
    journal.note_emitted(CONSUMER, due[-1][0])
    return ""


def _take(entry: Entry, history: History, window: Window) -> Change | None:
    history.take(entry)
    return window.take(entry, history)


def _action(history: History) -> Action:
    return Action(history.run, history.header["plan"]["playbook"], history.header["cluster"], SOURCE)


def _of_window(entry: Entry, history: History, change: Change) -> Event:
    make = _action(history).writes_stopped if change.what == "stopped" else _action(history).writes_resumed
    key = step_key(entry.run, "-", history.epoch, f"writes-{change.what}-{entry.number}")
    return make(change.unix_ms, key, by=change.by)


def _events(entry: Entry, history: History) -> Iterator[Event]:
    header, data, at = history.header, entry.data, entry.unix_ms
    action = _action(history)
    phase = f"{entry.kind}-{entry.number}"
    match entry.kind:
        case "requested":
            about = {name: header[name] for name in ("operator", "reason", "ticket", "plan_hash")}
            yield action.requested(at, step_key(entry.run, "-", 1, "requested"), **about)
        case "accepted" if data["epoch"] == 1:
            yield action.accepted(at, step_key(entry.run, "-", 1, "accepted"), operator=data["operator"])
        case "state" if data["state"] == "running" and history.epoch == 1:
            yield action.started(at, step_key(entry.run, "-", 1, "started"))
        case "state" if data["state"] == "done":
            yield action.succeeded(at, step_key(entry.run, "-", history.epoch, "succeeded"))
        case "state" if data["state"] == "undone":
            key, why = step_key(entry.run, "-", history.epoch, "undone"), data.get("why", "")
            if history.cause == "operator":
                yield action.cancelled(at, key, reason=why)
            else:
                yield action.failed(at, key, error=why)
                dead = step_key(entry.run, "-", history.epoch, "dead-lettered")
                yield action.dead_lettered(at, dead, attempts=len(history.attempts), error=why)
        case "state" if data["state"] == "superseded":
            yield action.failed(at, step_key(entry.run, "-", history.epoch, "superseded"), error=data["why"])
        case "state" | "accepted":
            words = str(data.get("state", "resumed"))
            key = step_key(entry.run, "-", history.epoch, phase)
            yield action.progress(at, key, step="-", phase=words, why=data.get("why", ""))
        case "intent" | "outcome" | "evidence":
            yield from _of_step(action, entry, history)
        case "note":
            key = step_key(entry.run, "-", history.epoch, phase)
            yield action.progress(at, key, step="-", phase="unknown", text=data["text"])


def _of_step(action: Action, entry: Entry, history: History) -> Iterator[Event]:
    data, at = entry.data, entry.unix_ms
    is_undo = data["place"] >= 0
    step = f"undo {data['step']}" if is_undo else data["step"]
    words = {"intent": "started", "outcome": data.get("outcome", ""), "evidence": "verified"}[entry.kind]
    attempt = data["attempt"]
    # The number tells apart what one attempt comes to twice: unknown at first, then looked at.
    key = step_key(entry.run, f"{data['step']}.{data['target']}", attempt, f"{words}-{entry.number}")
    about = {"target": data["target"], "attempt": attempt}
    if entry.kind == "intent" and attempt > 1 and not is_undo:
        earlier = [each for each in history.attempts if each.step == data["step"] and each.error]
        error = earlier[-1].error if earlier else "it no longer held"
        yield action.retrying(at, f"{key}-retry", attempt=attempt, error=error, step=step)
    yield action.progress(at, key, step=step, phase=words, **about, error=data.get("error", ""))
