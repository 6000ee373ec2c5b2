"""Events for tests: plain ones for logs, and those of actions."""

from __future__ import annotations

from typing import Any

from karma_events import Action, Envelope, Source

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
