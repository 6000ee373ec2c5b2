"""Moments of a log as people write them on a command line."""

from __future__ import annotations

from datetime import UTC, datetime

from karmactl.diagnostics import usage
from karmactl.settings import seconds


def moment_ms(text: str | None, now_unix: float) -> float | None:
    """Return the unix milliseconds of `10m` (ago), 2026-05-05, 2026-05-05T12:00:00Z or unix seconds.

    None stays None. Raises CtlError.
    """
    if text is None:
        return None
    if text.isdigit() and len(text) >= 9:
        return int(text) * 1000.0
    try:
        return (now_unix - seconds(text)) * 1000.0
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise usage(
            f'"{text}" is no time', "write 10m (ago), 2026-05-05, 2026-05-05T12:00:00Z or unix seconds"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000.0
