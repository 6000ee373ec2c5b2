"""WAL: the log as it grows, of one node or of all merged by LSN."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import ModalScreen
from textual.widget import Widget

from karma_client import KarmaError
from karma_client.logs import Merged, Merger
from karma_client.logs import Page as LogPage
from karma_tui import views
from karma_tui.model import Fleet
from karma_tui.screens.detail import Detailed
from karma_tui.spelling import count
from karma_tui.tables import Row, Table
from karma_tui.widgets.grid import Grid
from karma_tui.widgets.plain import Plain, say

KEPT_ENTRIES = 2000
FIRST_ENTRIES = 50
"""Entries of the past to begin with, on each node."""
RATE_SECONDS = 10.0


class Said(Message):
    """A node sent a page of its log, or cannot."""

    def __init__(self, node: str, what: LogPage | KarmaError) -> None:
        super().__init__()
        self.node = node
        self.what = what


class WalPage(Detailed):
    """The newest entries, those that come, one of them in full."""

    NAME = "wal"
    FILTER_HINT = "words that entries must hold, as counter.increment api_requests key=42"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "pause", "pause", key_display="Space"),
        Binding("enter", "choose", "the entry in full", key_display="Enter"),
        Binding("n", "node(1)", "next node"),
        Binding("N", "node(-1)", "the node before", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._entries: deque[Merged] = deque(maxlen=KEPT_ENTRIES)
        self._merger = Merger()
        self._arrivals: deque[tuple[float, int]] = deque()
        self._silent: dict[str, str] = {}
        self._node = ""
        """The only node to show; all of them while it is empty."""
        self._begun_ms = 0.0
        """Since when entries count for the rate: those of the past are shown, but did not come now."""
        self._wanted = ""
        self._is_paused = False
        self._is_changed = False
        self._is_following = False

    def title_words(self) -> str:
        """Return whose log this is and how fast it grows."""
        state = ", paused" if self._is_paused else ""
        return f"wal of {self._node or 'all nodes'}{state}  {count(self._rate())} entries/s"

    def body(self) -> Iterable[Widget]:
        """Return the table, the pane for one entry, and who is left out."""
        yield Grid(Table(views.LOG, note="asking"), id="log", is_tail=True)
        yield self.pane()
        yield Plain(id="info")

    # -- Following -----------------------------------------------------------------------------

    def on_screen_resume(self) -> None:
        """Follow from now on."""
        super().on_screen_resume()
        if not self._is_following:
            self._begin()

    def on_screen_suspend(self) -> None:
        """Follow no longer: nobody looks, unless this shows beneath a question."""
        if not isinstance(self.app.screen, ModalScreen):
            self._is_following = False
            self.workers.cancel_group(self, "tail")

    def _begin(self) -> None:
        self._is_following = True
        self.workers.cancel_group(self, "tail")
        self._entries.clear()
        self._arrivals.clear()
        self._silent.clear()
        self._merger = Merger()
        self._is_changed = True
        self._begun_ms = self.host.fleet.now * 1000
        for node in self._followed():
            self._merger.expect(node)
            self._tail(node)

    def _followed(self) -> list[str]:
        return [self._node] if self._node else [node.address for node in self.host.fleet.nodes]

    @work(group="tail")
    async def _tail(self, node: str) -> None:
        tail = self.host.source.tail(node, FIRST_ENTRIES, lambda text: say(self, f"{node}: {text}"))
        async for what in tail:
            self.post_message(Said(node, what))

    def on_said(self, event: Said) -> None:
        """Take a page in; drawing waits for the next tick."""
        if event.node not in self._merger.places:
            return
        if isinstance(event.what, KarmaError):
            self._merger.leave(event.node)
            self._silent[event.node] = event.what.message
        else:
            self._merger.add(event.node, event.what)
            self._silent.pop(event.node, None)
        self._take()

    def _take(self) -> None:
        found = list(self._merger.due(asyncio.get_running_loop().time()))
        if found:
            new = sum((one.logged.ts_ms or self._begun_ms) >= self._begun_ms for one in found)
            self._arrivals.append((self.host.fleet.now, new))
            self._entries.extend(found)
            self._is_changed = True

    def _rate(self) -> float:
        now = self.host.fleet.now
        while self._arrivals and self._arrivals[0][0] < now - RATE_SECONDS:
            self._arrivals.popleft()
        return sum(number for _, number in self._arrivals) / RATE_SECONDS

    # -- Drawing -------------------------------------------------------------------------------

    def show(self, fleet: Fleet) -> None:
        """Draw what came since the last tick."""
        del fleet
        self._take()
        if self._is_changed and not self._is_paused:
            self._fill()
        info = "  ".join(f"{node} is left out: {reason}" for node, reason in self._silent.items())
        pane = self.query_one("#info", Plain)
        pane.display = bool(info)
        pane.update(Text(info, no_wrap=True, overflow="ellipsis"))

    def _fill(self) -> None:
        self._is_changed = False
        self.query_one("#log", Grid).show(views.log(self._entries, self._wanted, len(self._followed())))

    def command(self) -> str:
        """Return `karmactl wal tail`."""
        if self._node:
            return self.host.target.command("wal", "tail", node=self._node)
        return self.host.target.command("wal", "tail")

    def filter(self, wanted: str) -> None:
        """Keep what holds these words; the grid has only these rows, so it filters nothing itself."""
        self._wanted = wanted
        self._fill()

    def action_back(self) -> None:
        """Close the pane, else take the filter away, else go back."""
        if self._wanted and not self.is_pane_open:
            self.filter("")
        else:
            super().action_back()

    def action_pause(self) -> None:
        """Stop the picture, or let it go on; entries are taken in meanwhile."""
        self._is_paused = not self._is_paused
        self._is_changed = True
        self.paint()

    def in_full(self, row: Row) -> Any:
        """Return an entry, if it is still there."""
        found = next((one for one in reversed(self._entries) if views.log_key(one) == row.key), None)
        return None if found is None else found.row()

    def action_node(self, step: int) -> None:
        """Follow another node, or all of them."""
        names = ["", *(node.address for node in self.host.fleet.nodes)]
        self._node = names[(names.index(self._node) + step) % len(names)]
        self._begin()
        self.paint()
