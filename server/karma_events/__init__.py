"""What happens, as events: one envelope, durable topics, and actions with their states.

    from karma_events import Action, EventLog, Source

    log = EventLog.open(directory)
    action = Action("run-7", "switchover", "prod", source=Source("karmactl", "playbooks"))
    log.append_all([action.requested(ts_ms, "run-7/-/1/requested"), …])

`envelope` is the form of an event, `log` keeps events in topics, `consumers` remember how far somebody has
read, `actions` folds events into what became of an action, `metrics` says how long it took, and `ledger` lets
SQL ask. Executors that pick requests up over the network will be consumers of `actions.requested`; here every
topic is a folder on one machine.
"""

from __future__ import annotations

from karma_events.actions import Action, ActionRecord, State, fold, step_key
from karma_events.consumers import Consumer
from karma_events.envelope import Envelope, Event, Recorded, Source
from karma_events.errors import (
    DamagedLogError,
    EventError,
    InvalidEventError,
    LogBusyError,
    LogWriteError,
)
from karma_events.log import Appended, EventLog

__all__ = [
    "Action",
    "ActionRecord",
    "Appended",
    "Consumer",
    "DamagedLogError",
    "Envelope",
    "Event",
    "EventError",
    "EventLog",
    "InvalidEventError",
    "LogBusyError",
    "LogWriteError",
    "Recorded",
    "Source",
    "State",
    "fold",
    "step_key",
]
