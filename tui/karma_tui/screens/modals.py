"""Screens on top of others: the keys of a screen, a question before something is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input

from karma_tui.actions import Action
from karma_tui.spelling import printable
from karma_tui.target import Target
from karma_tui.widgets.plain import Plain, entitle, say


class Explain(ModalScreen[None]):
    """The keys of the screen below."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter", "dismiss", "close", show=False)
    ]

    def __init__(self, title: str, keys: Sequence[tuple[str, str]], text: str) -> None:
        super().__init__()
        self._title = title
        self._keys = keys
        self._text = text

    def compose(self) -> ComposeResult:
        """Lay it out."""
        text = Text()
        width = max((len(key) for key, _ in self._keys), default=0)
        if self._text:
            text.append(self._text + "\n\n")
        for key, what in self._keys:
            text.append(f"{key:>{width}}", "bold")
            text.append(f"  {what}\n")
        with VerticalScroll(classes="dialog") as dialog:
            entitle(dialog, f"keys of {self._title}", "Esc closes")
            yield Plain(text)


class Confirm(ModalScreen[bool]):
    """Asks before an action; much at stake or production wants a name to be typed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "answer(False)", "no", show=False),
        Binding("y", "yes", "yes", show=False),
    ]

    def __init__(self, effect: str, command: str, name: str, target: Target) -> None:
        """`effect` completes "this will …"; `name` must be typed, where it is not empty."""
        super().__init__()
        self._effect = effect
        self._command = command
        self._target = target
        self._name = name

    @staticmethod
    def of(action: Action, target: Target) -> Confirm:
        """Return the question before an action on a node."""
        return Confirm(action.effect, action.command(target), action.name_to_type(target), target)

    def compose(self) -> ComposeResult:
        """Lay it out."""
        text = Text()
        if self._target.is_production:
            text.append(f" PRODUCTION: {self._target.name} ", "bold reverse")
            text.append("\n\n")
        text.append(f"This will {printable(self._effect)}.\n\n")
        text.append("The same: ")
        text.append(printable(self._command), "bold")
        text.append("\n\n")
        if self._name:
            text.append(f"Type {self._name} and press Enter to go on; Esc goes back.")
        else:
            text.append("y goes on, n or Esc goes back.")
        with Vertical(classes="dialog"):
            yield Plain(text)
            if self._name:
                yield Input(id="name", compact=True, placeholder=self._name)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go on if it is the name."""
        if event.value.strip() == self._name:
            self.dismiss(result=True)
        else:
            say(self, f"that is not {self._name}; nothing was done", severity="warning")

    def action_answer(self, answer: bool) -> None:  # noqa: FBT001 - Textual calls it so
        """Answer."""
        self.dismiss(answer)

    def action_yes(self) -> None:
        """Go on, where no name must be typed."""
        if not self._name:
            self.dismiss(result=True)


class LimitPrompt(ModalScreen[int | None]):
    """Asks for a limit, to show what is used of it: the server keeps none."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "back", show=False)]

    def __init__(self, series: str, key: int) -> None:
        super().__init__()
        self._title = f"{printable(series)} {key}"

    def compose(self) -> ComposeResult:
        """Lay it out."""
        with Vertical(classes="dialog") as dialog:
            entitle(dialog, self._title)
            yield Plain(
                "How much may this key hold? What is used and left of it shows for day, month and total."
            )
            yield Input(id="limit", compact=True, type="integer", placeholder="1000")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the number."""
        if event.value.isdigit():
            self.dismiss(int(event.value))
