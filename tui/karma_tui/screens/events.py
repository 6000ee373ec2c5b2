"""Events of this machine: actions with their states, and the newest events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widget import Widget

from karma_client import KarmaError
from karma_tui import views
from karma_tui.screens.asking import Looking, Told
from karma_tui.screens.detail import Detailed
from karma_tui.spelling import printable
from karma_tui.tables import Row, Table
from karma_tui.widgets.grid import Grid
from karma_tui.widgets.plain import Plain

if TYPE_CHECKING:
    from karma_events import ActionRecord, Recorded

NEWEST_EVENTS = 500


class Happened(NamedTuple):
    """What the event log holds: actions, oldest first, and its newest events."""

    actions: Sequence[ActionRecord]
    events: Sequence[Recorded]


def read_events(folder: Path) -> Happened:
    """Read the event log of a folder; one that is not there is empty. Raises KarmaError."""
    from karma_events import EventError, EventLog, fold  # noqa: PLC0415  only this screen needs it
    from karma_events.actions import TOPICS  # noqa: PLC0415

    if not folder.is_dir():
        return Happened((), ())
    try:
        with EventLog.open(folder) as log:
            return Happened(
                list(fold(log.read(TOPICS)).values()), list(deque(log.read(), maxlen=NEWEST_EVENTS))
            )
    except EventError as error:
        raise KarmaError(error.message) from error


class EventsPage(Detailed, Looking):
    """What playbooks did, as this machine noted it: actions and their states, or every event."""

    NAME = "events"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "in full", key_display="Enter"),
        Binding("a", "turn", "actions or events"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._happened = Happened((), ())
        self._shows_events = False

    def title_words(self) -> str:
        """Return what is shown."""
        return "events" if self._shows_events else "actions"

    def body(self) -> Iterable[Widget]:
        """Return the table and the pane for one row."""
        yield Grid(Table(views.ACTIONS, note="reading"), id="happened")
        yield self.pane()
        yield Plain(id="info")

    def look(self) -> None:
        """Read this machine's event log."""
        self.ask("events", asyncio.to_thread(read_events, self.host.target.events_path))

    def on_told(self, event: Told) -> None:
        """Show what happened."""
        self.query_one("#info", Plain).update(Text(printable(event.problem)))
        if not event.problem:
            self._happened = event.response
            self._fill()

    def _fill(self) -> None:
        shown = (
            views.events(self._happened.events)
            if self._shows_events
            else views.actions(self._happened.actions)
        )
        self.query_one("#happened", Grid).show(shown)

    def command(self) -> str:
        """Return `karmactl events tail` or `actions list`."""
        words = ("events", "tail", "--follow") if self._shows_events else ("actions", "list")
        return self.host.target.command(*words)

    def in_full(self, row: Row) -> Any:
        """Return an event, or those of an action."""
        key = row.key
        envelopes = [one.envelope for one in self._happened.events if views.event_key(one) == key] or [
            transition.event.envelope
            for action in self._happened.actions
            if action.action_id == key
            for transition in action.transitions
        ]
        return [
            {
                "ts_ms": one.ts_ms,
                "event_type": one.event_type,
                "entity_id": one.entity_id,
                "tags": one.tags,
                "attrs": one.attrs,
            }
            for one in envelopes
        ]

    def action_turn(self) -> None:
        """Show events, or actions."""
        self._shows_events = not self._shows_events
        self._fill()
        self.paint()
