"""idempotency status, idempotency prune."""

from __future__ import annotations

from karmactl.output import Row
from karmactl.run import Run

PREFIX = "idempotency_"


def status(run: Run) -> Row:
    """Show how many keys are remembered."""
    found = run.ask("system.stats")
    return {name.removeprefix(PREFIX): value for name, value in found.items() if name.startswith(PREFIX)}


def prune(run: Run, before: str, limit: int | None) -> Row:
    """Forget keys from before a time, after a question."""
    moment: str | int = int(before) if before.isascii() and before.isdigit() else before
    if isinstance(moment, str) and "T" not in moment:
        moment += "T00:00:00Z"
    run.confirm(f"forget idempotency keys from before {before}; repeating such a write counts it again")
    found: Row = run.send("idempotency.prune", before=moment, limit=limit)
    return found
