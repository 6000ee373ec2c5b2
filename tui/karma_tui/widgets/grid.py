"""A table that shows an immutable `Table`: sorted, filtered, with a cursor, drawn line by line.

Textual's DataTable keeps a mutable copy of every cell; here a new picture replaces the old one whole, and
only the lines on the screen are drawn, which is what keeps a refresh each second cheap.
"""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from karma_tui.spelling import NUMERIC, spelt
from karma_tui.tables import Order, Row, Table, arranged, fitted

GAP = 2
WHEEL_ROWS = 3


class Grid(ScrollView, can_focus=True, inherit_bindings=False):
    """A sortable table with a cursor. `action_choose` or a click on the cursor's row posts `Chosen`."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "grid--header",
        "grid--cursor",
        "grid--good",
        "grid--warn",
        "grid--bad",
        "grid--dim",
        "grid--note",
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("down,j", "move(1)", "down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("pagedown", "page(1)", "page down", show=False),
        Binding("home,g", "end(0)", "first row", show=False),
        Binding("end,G", "end(-1)", "last row", show=False),
        Binding("s", "sort(1)", "sort", show=True),
        Binding("S", "sort(-1)", "sort by the column before", show=False),
        Binding("d", "turn", "turn the order round", show=False),
    ]

    class Chosen(Message):
        """Somebody pressed Enter on a row, or clicked it twice."""

        def __init__(self, grid: Grid, row: Row) -> None:
            super().__init__()
            self.grid = grid
            self.row = row

        @property
        def control(self) -> Grid:
            """The grid, for handlers that name one."""
            return self.grid

    class Moved(Message):
        """The cursor stands on another row."""

        def __init__(self, grid: Grid, row: Row | None) -> None:
            super().__init__()
            self.grid = grid
            self.row = row

        @property
        def control(self) -> Grid:
            """The grid, for handlers that name one."""
            return self.grid

    def __init__(self, table: Table, *, id: str | None = None, is_tail: bool = False) -> None:  # noqa: A002
        super().__init__(id=id)
        self._source = table
        self.shown = table
        """The table as it is sorted and filtered."""
        self.order = Order()
        self.wanted = ""
        self.cursor = 0
        self._is_tail = is_tail
        self._layout: list[tuple[int, int]] = []

    # -- Pictures ------------------------------------------------------------------------------

    def show(self, table: Table) -> None:
        """Show another table; the cursor stays on the row that it was on."""
        if table == self._source:
            return
        self._source = table
        if self.order.column not in {None, *(column.name for column in table.columns)}:
            self.order = Order()
        self._arrange()

    def filter(self, wanted: str) -> None:
        """Show only rows that hold these words."""
        self.wanted = wanted
        self._arrange()

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        return self.shown.rows[self.cursor] if self.cursor < len(self.shown.rows) else None

    @property
    def total(self) -> int:
        """Rows there are without the filter."""
        return len(self._source.rows)

    @property
    def left_out(self) -> list[str]:
        """The titles of columns for which there is no room."""
        fitting = {at for at, _ in self._layout}
        return [column.title for at, column in enumerate(self.shown.columns) if at not in fitting]

    def _arrange(self) -> None:
        before = self.current
        was_at_end = self.cursor >= len(self.shown.rows) - 1
        self.shown = arranged(self._source, self.order, self.wanted)
        rows = self.shown.rows
        if self._is_tail and was_at_end:
            self.cursor = max(0, len(rows) - 1)
        elif before is not None:
            kept = next((at for at, row in enumerate(rows) if row.key == before.key), self.cursor)
            self.cursor = max(0, min(kept, len(rows) - 1))
        else:
            self.cursor = 0
        self._fit()
        if self.current != before:
            self.post_message(self.Moved(self, self.current))

    def _fit(self) -> None:
        if self._size.width:
            self._layout = fitted(self.shown, self._size.width, GAP)
        self.virtual_size = Size(self._size.width, len(self.shown.rows) + 1)
        self._follow_cursor()
        self.refresh()

    def _follow_cursor(self) -> None:
        height = self._size.height - 1
        if height <= 0:
            return
        top = round(self.scroll_offset.y)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, force=True, immediate=True)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, force=True, immediate=True)

    def on_resize(self, _: events.Resize) -> None:
        """Fit the columns to the width."""
        self._fit()

    # -- Drawing -------------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        """Return the header, or a row."""
        width = self._size.width
        if y == 0:
            style = self.get_component_rich_style("grid--header")
            return Strip([Segment(self._header().ljust(width)[:width], style)], width)
        at = round(self.scroll_offset.y) + y - 1
        if not self.shown.rows and y == 1:
            note = self._note()
            style = self.get_component_rich_style("grid--note")
            return Strip([Segment(note.ljust(width)[:width], style)], width)
        if at >= len(self.shown.rows):
            return Strip([Segment(" " * width, self.rich_style)], width)
        return self._row_strip(self.shown.rows[at], width, is_cursor=at == self.cursor)

    def _note(self) -> str:
        if self.wanted and self._source.rows:
            return f'no row holds "{self.wanted}"; Esc shows all {len(self._source.rows)}'
        return self.shown.note

    def _header(self) -> str:
        parts = []
        for at, width in self._layout:
            column = self.shown.columns[at]
            mark = ("▼" if self.order.is_descending else "▲") if column.name == self.order.column else ""
            title = column.title + mark
            parts.append(title.rjust(width) if column.kind in NUMERIC else title.ljust(width))
        return (" " * GAP).join(parts)

    def _row_strip(self, row: Row, width: int, *, is_cursor: bool) -> Strip:
        parts = []
        for at, room in self._layout:
            column = self.shown.columns[at]
            text = spelt(row.cells[at], column.kind)
            text = text if len(text) <= room else text[: room - 1] + "…"
            parts.append(text.rjust(room) if column.kind in NUMERIC else text.ljust(room))
        style = self.get_component_rich_style(f"grid--{row.mood}") if row.mood else self.rich_style
        if is_cursor:
            cursor = self.get_component_rich_style("grid--cursor")
            style = style + (cursor if self.has_focus else Style(underline=True))
        line = Strip([Segment((" " * GAP).join(parts), style)])
        return line.adjust_cell_length(width, style)

    # -- Hands ---------------------------------------------------------------------------------

    def _move_to(self, at: int) -> None:
        self.cursor = max(0, min(at, len(self.shown.rows) - 1))
        self._follow_cursor()
        self.refresh()
        self.post_message(self.Moved(self, self.current))

    def action_move(self, rows: int) -> None:
        """Move the cursor."""
        self._move_to(self.cursor + rows)

    def action_page(self, pages: int) -> None:
        """Move the cursor by what the screen holds."""
        self._move_to(self.cursor + pages * max(1, self._size.height - 2))

    def action_end(self, which: int) -> None:
        """Move the cursor to the first (0) or the last (-1) row."""
        self._move_to(0 if which == 0 else len(self.shown.rows) - 1)

    def action_choose(self) -> None:
        """Open the row."""
        if self.current is not None:
            self.post_message(self.Chosen(self, self.current))

    def action_sort(self, step: int) -> None:
        """Sort by the next column, or the one before; past the last comes the order of the source."""
        names = [None, *(column.name for column in self.shown.columns)]
        at = (names.index(self.order.column) + step) % len(names)
        self.sort_by(names[at])

    def action_turn(self) -> None:
        """Turn the order round."""
        self.order = self.order._replace(is_descending=not self.order.is_descending)
        self._arrange()

    def sort_by(self, name: str | None) -> None:
        """Sort by a column, figures from the largest; None is the order of the source."""
        is_figure = name is not None and self.shown.columns[self.shown.place_of(name)].kind in NUMERIC
        self.order = Order(name, is_figure)
        self._arrange()

    def on_click(self, event: events.Click) -> None:
        """Sort by the column clicked at, or move to the row; a second click opens it."""
        if event.y == 0:
            self._click_header(event.x)
            return
        at = round(self.scroll_offset.y) + event.y - 1
        if at < len(self.shown.rows):
            is_again = at == self.cursor and event.chain > 1
            self._move_to(at)
            if is_again:
                self.action_choose()

    def _click_header(self, x: int) -> None:
        left = 0
        for at, width in self._layout:
            if left <= x < left + width + GAP:
                name = self.shown.columns[at].name
                if name == self.order.column:
                    self.action_turn()
                else:
                    self.sort_by(name)
                return
            left += width + GAP

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Move down."""
        event.stop()
        self._move_to(self.cursor + WHEEL_ROWS)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Move up."""
        event.stop()
        self._move_to(self.cursor - WHEEL_ROWS)

    def watch_has_focus(self, has_focus: bool) -> None:  # noqa: FBT001 - Textual calls it so
        """Draw the cursor as it is now."""
        super().watch_has_focus(has_focus)
        self.refresh(Region(0, 0, self._size.width, self._size.height))
