"""recovery status, recovery checkpoint."""

from __future__ import annotations

from typing import Any

from karmactl.diagnostics import usage
from karmactl.output import Row
from karmactl.run import Run


def status(run: Run, source: str | None) -> Any:
    """List checkpoints."""
    return run.ask("recovery.status", source=source)["checkpoints"]


def checkpoint(run: Run, source: str, offset: str | None, event_id: str | None) -> Row:
    """Remember how far a pipeline got."""
    if offset is None and event_id is None:
        raise usage("a checkpoint needs --offset or --event-id", "say how far the pipeline got")
    found: Row = run.send("recovery.checkpoint", source=source, offset=offset, event_id=event_id)
    return found
