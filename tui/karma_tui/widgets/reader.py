"""Text to read through, with the keys of a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll

from karma_playbooks.wording import Line, Style
from karma_tui.spelling import printable
from karma_tui.widgets.plain import Plain

_STYLES: dict[Style, str] = {"": "", "strong": "bold", "warn": "bold", "bad": "bold reverse"}
"""Not colours: the same text stands in every theme, on a screen and in a question."""


def as_text(lines: Iterable[Line]) -> Text:
    """Return lines as they are drawn."""
    text = Text("\n", end="").join(
        Text.assemble(*((printable(piece.text), _STYLES[piece.style]) for piece in line)) for line in lines
    )
    text.end = ""
    return text


class Reader(VerticalScroll):
    """A pane of lines. It stays where it was scrolled to when other lines are shown."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "down", show=False),
        Binding("k", "scroll_up", "up", show=False),
        Binding("g", "scroll_home", "the beginning", show=False),
        Binding("G", "scroll_end", "the end", show=False),
    ]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._lines: tuple[Line, ...] = ()

    def compose(self) -> ComposeResult:
        """Lay it out."""
        yield Plain()

    def show(self, lines: Iterable[Line]) -> None:
        """Show other lines."""
        found = tuple(lines)
        if found != self._lines:
            self._lines = found
            self.query_one(Plain).update(as_text(found))
