"""The server's log: one JSON object a line with timestamp, level, event and message.

Goes to standard output, like the original's. Values that follow are facts about the event; nobody
may pass a token.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson


class Log:
    """Writes log lines through `write`, which may refuse one with False; `clock` returns unix seconds.

    When not enabled, warnings and errors are written all the same.
    """

    __slots__ = ("_clock", "_is_enabled", "_unreported", "_write", "dropped_lines")

    def __init__(
        self, write: Callable[[str], object], clock: Callable[[], float], *, is_enabled: bool = True
    ) -> None:
        self._write = write
        self._clock = clock
        self._is_enabled = is_enabled
        self._unreported = 0
        self.dropped_lines = 0
        """Lines that were refused, because nothing reads the log."""

    def info(self, event: str, message: str, **facts: Any) -> None:
        """Say what happened."""
        self._line("info", event, message, facts)

    def warning(self, event: str, message: str, **facts: Any) -> None:
        """Say what somebody should look at."""
        self._line("warning", event, message, facts)

    def error(self, event: str, message: str, **facts: Any) -> None:
        """Say what failed."""
        self._line("error", event, message, facts)

    def _line(self, level: str, event: str, message: str, facts: dict[str, Any]) -> None:
        if not self._is_enabled and level == "info":
            return
        if self._unreported and self._is_written(
            "warning",
            "log_dropped",
            f"{self._unreported} lines are missing here: nothing read the log meanwhile",
            {"lines": self._unreported},
        ):
            self._unreported = 0
        if self._unreported or not self._is_written(level, event, message, facts):
            self.dropped_lines += 1
            self._unreported += 1

    def _is_written(self, level: str, event: str, message: str, facts: dict[str, Any]) -> bool:
        timestamp = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        line = {"timestamp": timestamp, "level": level, "event": event, "message": message, **facts}
        return self._write(orjson.dumps(line, default=str).decode() + "\n") is not False
