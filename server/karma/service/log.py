"""The server's log: one JSON object a line with timestamp, level, event and message.

Goes to standard output, like the original's. Values that follow are facts about the event; nobody
may pass a token.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from karma.protocol.texts import spelled_out_json

THROTTLE_LINES = 5
THROTTLE_SECONDS = 10.0
"""So many warnings of one event are written in so long, whatever strangers do."""


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
        is_note = event == "log_dropped"
        if self._unreported and not is_note:
            missing = self._unreported
            self.warning(
                "log_dropped", f"{missing} lines are missing here: nothing read the log", lines=missing
            )
        if (is_note or not self._unreported) and self._is_written(level, event, message, facts):
            self._unreported = 0
        elif not is_note:
            self.dropped_lines += 1
            self._unreported += 1

    def _is_written(self, level: str, event: str, message: str, facts: dict[str, Any]) -> bool:
        timestamp = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        line = {"timestamp": timestamp, "level": level, "event": event, "message": message, **facts}
        return self._write(spelled_out_json(orjson.dumps(line, default=str).decode()) + "\n") is not False


class Throttle:
    """Warnings that strangers can cause: a few of each event in a while, and how many were left out between.

    `clock` returns monotonic seconds.
    """

    __slots__ = ("_clock", "_log", "_windows")

    def __init__(self, log: Log, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}
        """When the window of an event began, and how many came in it."""

    def warning(self, event: str, message: str, **facts: Any) -> None:
        """Say what happened, unless enough was said of it lately."""
        now = self._clock()
        begun, count = self._windows.get(event, (float("-inf"), 0))
        if now - begun >= THROTTLE_SECONDS:
            left_out = max(count - THROTTLE_LINES, 0)
            begun, count = now, 0
            facts |= {"left_out": left_out} if left_out else {}
        self._windows[event] = begun, count + 1
        if count < THROTTLE_LINES:
            self._log.warning(event, message, **facts)
