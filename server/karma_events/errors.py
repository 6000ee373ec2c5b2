"""What can go wrong with events, each with what to do next."""

from __future__ import annotations


class EventError(Exception):
    """Any trouble with events. `message` says what is wrong, `advice` what to do next ("" if nothing helps).

    A playbook's journal is the truth and emits its events again, so its runner may note this and go on.
    """

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class InvalidEventError(EventError):
    """An event, topic or consumer that is not as it must be: the fault of who made it."""


class LogBusyError(EventError):
    """Other processes did not let this one write in time."""


class LogWriteError(EventError):
    """The disk refused. Nothing of what was to be appended counts as written; try again when it can."""


class DamagedLogError(EventError):
    """Bytes in a topic that no crash explains: events behind them are not read, and none is appended."""
