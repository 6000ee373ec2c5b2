"""Pages with a pane that shows one row in full."""

from __future__ import annotations

from typing import Any

from rich.text import Text
from textual.containers import VerticalScroll

from karma_tui.screens.page import Page, as_lines
from karma_tui.tables import Row
from karma_tui.widgets.grid import Grid
from karma_tui.widgets.plain import Plain


class Detailed(Page):
    """Enter opens the pane, which follows the cursor; Esc closes it."""

    def in_full(self, row: Row) -> Any:
        """Return what the pane shows of a row: data, or a text; None leaves it as it is."""
        raise NotImplementedError

    def pane(self) -> VerticalScroll:
        """Return the pane, for `body`."""
        pane = VerticalScroll(Plain(id="entry"), id="detail")
        pane.display = False
        return pane

    @property
    def is_pane_open(self) -> bool:
        """Whether the pane is there."""
        return self.query_one("#detail").display

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        """Open the pane."""
        self.query_one("#detail").display = True
        self._describe(event.row)

    def on_grid_moved(self, event: Grid.Moved) -> None:
        """Show the other row, if the pane is open."""
        if event.row is not None and self.is_pane_open:
            self._describe(event.row)

    def _describe(self, row: Row) -> None:
        told = self.in_full(row)
        if told is not None:
            text = told if isinstance(told, str) else as_lines(told)
            self.query_one("#entry", Plain).update(Text(text))

    def action_back(self) -> None:
        """Close the pane, else what Esc does elsewhere."""
        if self.is_pane_open:
            self.query_one("#detail").display = False
        else:
            super().action_back()
