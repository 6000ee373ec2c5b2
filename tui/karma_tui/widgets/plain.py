"""Texts for people, which Textual would read as markup: a series may be called `x[/red]`."""

from __future__ import annotations

from typing import Any, Literal

from rich.text import Text
from textual.app import App
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from karma_tui.spelling import printable


class Plain(Static):
    """A text that is shown as it is, but for what could steer a terminal."""

    def __init__(self, content: str | Text | Content = "", *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(_harmless(content), id=id, markup=False)

    def update(self, content: Any = "", *, layout: bool = True) -> None:
        """Show another text."""
        super().update(_harmless(content), layout=layout)


def _harmless(content: Any) -> Any:
    if isinstance(content, str):
        return _lines(content)
    if isinstance(content, Text):
        # Letter by letter, so that styles stay where they are.
        content.plain = _lines(content.plain)
    return content


def say(
    where: App[Any] | Widget,
    text: str,
    *,
    title: str = "",
    severity: Literal["information", "warning", "error"] = "information",
) -> None:
    """Show a notice. Nothing else calls `notify`."""
    where.notify(_lines(text), title=printable(title), severity=severity, markup=False)


def entitle(widget: Widget, title: str, subtitle: str = "") -> None:
    """Write into a widget's border. Nothing else sets its titles."""
    widget.border_title = Content(printable(title))
    if subtitle:
        widget.border_subtitle = Content(printable(subtitle))


def _lines(text: str) -> str:
    return "\n".join(printable(line.replace("\t", " ")) for line in text.split("\n"))
