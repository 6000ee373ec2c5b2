"""What every screen has around its content: banner, prompt, the command that does the same, key hints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, NamedTuple

from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.suggester import SuggestFromList
from textual.widget import Widget
from textual.widgets import Input

from karma_tui.widgets.plain import Plain

Kind = Literal["jump", "filter"]


class Heading(NamedTuple):
    """What the banner says."""

    page: str
    target: str
    health: str
    detail: str
    clock: str
    marks: tuple[str, ...] = ()
    is_production: bool = False
    screams: tuple[str, ...] = ()


class Banner(Widget):
    """Where this is, how it is, and below it whatever must not be overlooked."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "banner--good",
        "banner--warn",
        "banner--bad",
        "banner--mark",
        "banner--scream",
        "banner--dim",
    }
    _HEALTH: ClassVar[dict[str, str]] = {"healthy": "good", "degraded": "warn", "split brain": "bad"}

    def __init__(self) -> None:
        super().__init__()
        self._heading: Heading | None = None

    def show(self, heading: Heading) -> None:
        """Say something else."""
        before, self._heading = self._heading, heading
        if before is None or len(before.screams) != len(heading.screams):
            self.styles.height = 1 + len(heading.screams)
        self.set_class(heading.is_production, "production")
        if heading != before:
            self.refresh()

    def render(self) -> Text:
        """Return one line, and one for each scream."""
        text = Text(no_wrap=True, end="")
        heading = self._heading
        if heading is None:
            return text
        width = self.size.width
        left = Text(" karma ", end="")
        left.append(heading.target, "bold")
        for mark in heading.marks:
            left.append(" ")
            left.append(f" {mark} ", self._style("mark"))
        left.append(f"  {heading.page}  ")
        left.append(f"● {heading.health}", self._style(self._HEALTH.get(heading.health, "dim")))
        left.append(f"  {heading.detail}", self._style("dim"))
        left.truncate(max(0, width - len(heading.clock) - 2), overflow="ellipsis", pad=True)
        text.append_text(left)
        text.append(f" {heading.clock} ")
        for scream in heading.screams:
            line = Text(f" ⚠ {scream} ", self._style("scream"), end="")
            line.truncate(width, overflow="ellipsis", pad=True)
            text.append("\n")
            text.append_text(line)
        return text

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(f"banner--{name}", partial=True)


class Prompt(Horizontal):
    """The line for `:` and `/`; not there until somebody presses one of them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "leave", show=False),
        Binding("tab", "take", "take the proposal", show=False, priority=True),
    ]

    class Done(Message):
        """Somebody pressed Enter."""

        def __init__(self, kind: Kind, text: str) -> None:
            super().__init__()
            self.kind = kind
            self.text = text

    class Left(Message):
        """Somebody pressed Esc."""

        def __init__(self, kind: Kind) -> None:
            super().__init__()
            self.kind = kind

    class Typed(Message):
        """The text of a filter changed."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self) -> None:
        super().__init__(id="prompt")
        self._kind: Kind = "jump"
        self.display = False

    def compose(self) -> ComposeResult:
        """Lay it out."""
        yield Plain(id="prompt-mark")
        yield Input(id="prompt-text", compact=True)

    def ask(self, kind: Kind, words: Sequence[str], text: str = "", hint: str = "") -> None:
        """Show the line and take the keyboard; `words` are proposed as they are typed."""
        self._kind = kind
        self.query_one("#prompt-mark", Plain).update(":" if kind == "jump" else "/")
        line = self.query_one(Input)
        line.suggester = SuggestFromList(words, case_sensitive=False) if words else None
        line.placeholder = hint
        line.value = text
        self.display = True
        # focus() would wait for a turn of the loop, and letters typed until then would be keys of the screen.
        self.screen.set_focus(line)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Hand the text over and go."""
        event.stop()
        self.display = False
        self.post_message(self.Done(self._kind, event.value))

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while somebody types."""
        event.stop()
        if self._kind == "filter" and self.display:
            self.post_message(self.Typed(event.value))

    def action_leave(self) -> None:
        """Go without an effect."""
        self.display = False
        self.post_message(self.Left(self._kind))

    def action_take(self) -> None:
        """Take what is proposed."""
        self.query_one(Input).action_cursor_right()


class Same(Plain):
    """The karmactl command that shows the same."""

    def show(self, command: str) -> None:
        """Show another command, in one line."""
        self.update(Content(f"$ {' '.join(command.split())}"))


class Hints(Plain):
    """The keys of this screen, each a button for the mouse."""

    def show(self, hints: Iterable[tuple[str, str, str]]) -> None:
        """Show (key, what it does, action) hints, as many as fit."""
        room = self.app.size.width - 1
        parts: list[Content] = []
        for key, what, action in hints:
            room -= len(key) + len(what) + 3
            if room < 0:
                break
            parts.append(Content.from_markup(f"[@click={action}][b]$key[/b] $what[/]", key=key, what=what))
        self.update(Content("  ").join(parts))
