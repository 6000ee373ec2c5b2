"""Events for tests: plain ones for logs, and those of actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from karma_events import Action, Envelope, Event, EventLog, Source, step_key

SOURCE = Source("karmactl", "playbooks")
TS_MS = 1_777_925_811_000


def event(key: str, *, ts_ms: int = TS_MS, **attrs: Any) -> Envelope:
    return Envelope(
        idempotency_key=key,
        ts_ms=ts_ms,
        event_type="test.happened",
        entity_id="prod",
        correlation_id="test",
        source=SOURCE,
        attrs=attrs,
    )


def action(action_id: str = "run-1", name: str = "switchover", correlation_id: str = "") -> Action:
    return Action(action_id, name, "prod", SOURCE, correlation_id)


def incident() -> list[Event]:
    """A failover that fails for good, the second that succeeds, a cancelled switchover and one under way."""
    events = []

    def key(phase: str, step: str = "-") -> str:
        return step_key(about.action_id, step, 1, phase)

    about = action("f1-failover", "failover")
    at = TS_MS
    events += [
        about.requested(at, key("requested"), operator="eva", reason="db1 is dead", detected_ms=at - 60_000),
        about.accepted(at + 2_100, key("accepted")),
        about.started(at + 2_200, key("started")),
        about.retrying(at + 3_000, key("retry", "fence"), step="fence", attempt=2, error="ssh: refused"),
        about.failed(at + 9_000, key("failed"), error="fence: no evidence"),
        about.dead_lettered(at + 9_001, key("dead"), attempts=2, error="fence: no evidence"),
    ]
    about = action("f2-failover", "failover", correlation_id="f1-failover")
    at = TS_MS + 240_000
    events += [
        about.requested(at, key("requested"), operator="eva", reason="fenced by hand"),
        about.accepted(at + 1_100, key("accepted")),
        about.started(at + 1_200, key("started")),
        about.progress(at + 1_500, key("done", "fence"), step="fence", phase="done", evidence={"pid": None}),
        about.writes_stopped(at - 299_000, key("stopped", "promote")),
        about.writes_resumed(at + 2_000, key("resumed", "promote")),
        about.succeeded(at + 5_000, key("succeeded")),
    ]
    about = action("s1-switchover", "switchover")
    at = TS_MS + 86_400_000
    events += [
        about.requested(at, key("requested"), operator="max"),
        about.cancelled(at + 700, key("cancelled"), reason="the plan's hash is another"),
        # A program that does not look at results.
        about.succeeded(at + 800, key("succeeded")),
    ]
    about = action("s2-switchover", "switchover")
    events += [
        about.requested(at + 5_000, key("requested"), operator="max"),
        about.accepted(at + 5_040, key("accepted")),
        about.started(at + 5_050, key("started")),
        about.writes_stopped(at + 5_500, key("stopped", "pause")),
    ]
    return events


def noted(state_home: Path, events: list[Event]) -> dict[str, str]:
    """Write events where karmactl looks for them; return the environment that makes it look there."""
    with EventLog.open(state_home / "karmactl" / "events") as log:
        # One by one: each line then says that those before it are durable.
        for topic, envelope in events:
            log.append(topic, envelope)
    return {"XDG_STATE_HOME": str(state_home), "XDG_CONFIG_HOME": str(state_home)}
