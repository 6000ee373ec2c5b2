"""Charts as widgets: letters from `charts`, colours from the theme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.geometry import Size
from textual.widget import Widget

from karma_sql import plots
from karma_sql.errors import SqlError
from karma_tui.charts import Line, days_chart, graph
from karma_tui.widgets.plain import entitle

COLOURS = 6


class Graph(Widget):
    """Lines over time, from what `show` was last given."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"graph--{number}" for number in range(COLOURS)}

    def __init__(self, title: str, spell: Callable[[float], str], *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        entitle(self, title)
        self._spell = spell
        self._lines: tuple[Line, ...] = ()

    def show(self, lines: Sequence[Line], title: str | None = None) -> None:
        """Draw other lines."""
        if title is not None:
            entitle(self, title)
        if tuple(lines) != self._lines:
            self._lines = tuple(lines)
            self.refresh()

    def render(self) -> Text:
        """Return the letters in the colours of their lines."""
        width, height = self.content_size
        if not self._lines:
            return Text("nothing to draw yet")
        styles = [
            self.get_component_rich_style(f"graph--{number}", partial=True) for number in range(COLOURS)
        ]
        rows = graph(self._lines, width, height, self._spell)
        text = Text(no_wrap=True, end="")
        for number, row in enumerate(rows):
            if number:
                text.append("\n")
            for piece in row:
                text.append(piece.text, None if piece.line is None else styles[piece.line % COLOURS])
        return text


class Days(Widget):
    """One key's days as bars."""

    def __init__(self, title: str, spell: Callable[[float], str], *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        entitle(self, title)
        self._spell = spell
        self._points: tuple[tuple[str, float], ...] = ()

    def show(self, points: Sequence[tuple[str, float]]) -> None:
        """Draw other days, in order, those without a value as 0."""
        self._points = tuple(points)
        self.refresh()

    def render(self) -> Text:
        """Return the bars."""
        width, height = self.content_size
        return Text("\n".join(days_chart(self._points, width, height, self._spell)), no_wrap=True, end="")


class Plot(Widget):
    """A result as `karmactl sql --plot` draws it, as wide as there is room; curves as high as there is."""

    LEAST_ROWS, MOST_ROWS = 3, 8
    AROUND_ROWS = 3
    """A curve's title, its axis and the ends of it."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._names: Sequence[str] = ()
        self._rows: Sequence[Sequence[Any]] = ()
        self._lines: list[str] = []

    def show(self, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Draw another result."""
        self._names, self._rows = names, rows
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Draw, and return how many lines that took."""
        del viewport
        height = max(self.LEAST_ROWS, min(self.MOST_ROWS, container.height - self.AROUND_ROWS))
        try:
            self._lines = plots.plot(self._names, self._rows, width, height)
        except SqlError as error:
            self._lines = [error.message, error.advice]
        return len(self._lines)

    def render(self) -> Text:
        """Return the lines."""
        return Text("\n".join(self._lines), no_wrap=True, end="")
