"""limit consume, limit check."""

from __future__ import annotations

from typing import Any

from karmactl.diagnostics import Exit
from karmactl.output import Row
from karmactl.run import Run


def consume(
    run: Run,
    series: str,
    key: int,
    value: int | None,
    limit: int,
    window: str,
    day: int | None,
    idempotency_key: str | None,
) -> Row:
    """Consume a limit. A refusal is an answer, with exit code 4."""
    found: dict[str, Any] = run.send(
        "limit.consume",
        series=series,
        key=key,
        value=value,
        limit=limit,
        window=window,
        bucket=day,
        idempotency_key=idempotency_key,
    )
    if not found["allowed"]:
        run.exit_code = Exit.REFUSED
    return {"series": series, "key": key, **found}


def check(
    run: Run, series: str, key: tuple[int, ...], limit: int, window: str, day: int | None = None
) -> Any:
    """Show what is used and left."""
    item = {"series": series, "limit": limit, "window": window}
    if day is not None:
        item["bucket"] = day
    items = [{**item, "key": one} for one in key]
    return run.ask("limit.check", items=items)
