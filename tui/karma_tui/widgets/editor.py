"""An editor for SQL: what may stand at the cursor is proposed, what was typed before comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget
from textual.widgets import TextArea

from karma_sql.completion import is_open, proposals
from karma_tui.spelling import printable
from karma_tui.statements import History

INDENT = "  "


class Editor(TextArea):
    """Lines of SQL. Enter behind the last semicolon posts `Finished`, as in the shell.

    `names` returns tables and macros, `series` the series that quotes may hold.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "complete(1)", "complete", key_display="Tab"),
        Binding("shift+tab", "complete(-1)", "the proposal before", show=False),
        Binding("escape", "screen.back", "out", key_display="Esc"),
        Binding("ctrl+c", "copy_or_clear", "copy what is marked, else clear", show=False),
    ]

    class Finished(Message):
        """Somebody ended a statement."""

    class Offers(Message):
        """These words may stand at the cursor; `taken` is the place of the one that stands there."""

        def __init__(self, words: Sequence[str], taken: int | None) -> None:
            super().__init__()
            self.words = words
            self.taken = taken

    def __init__(
        self,
        names: Callable[[], Sequence[str]],
        series: Callable[[], Sequence[str]],
        *,
        placeholder: str = "",
        id: str | None = None,  # noqa: A002
    ) -> None:
        super().__init__(id=id, placeholder=placeholder, highlight_cursor_line=False, compact=True)
        self.earlier = History()
        self._names = names
        self._series = series
        self._offers: list[tuple[str, int]] = []
        self._taken: int | None = None

    def on_mount(self) -> None:
        """Begin with what there is."""
        self.propose()

    # -- Proposals -----------------------------------------------------------------------------

    def on_text_area_changed(self) -> None:
        """Propose anew."""
        self.propose()

    def on_text_area_selection_changed(self) -> None:
        """Propose anew."""
        self.propose()

    def propose(self) -> None:
        """Say what may stand at the cursor."""
        before = self.get_text_range((0, 0), self.cursor_location)
        if self._taken is not None and before.endswith(self._offers[self._taken][0]):
            # The word at the cursor is one of them: the others stay where Tab finds them.
            pass
        else:
            self._offers = list(proposals(before, self._names, self._series))
            self._taken = None
        self.post_message(self.Offers([word for word, _ in self._offers], self._taken))

    def action_complete(self, step: int) -> None:
        """Take the next proposal, or indent where there is none; in an empty editor take the example."""
        if not self.text:
            self.write(str(self.placeholder))
            return
        # Letters typed right before may not have been seen yet.
        self.propose()
        if not self._offers:
            self.insert(INDENT)
            return
        if self._taken is None:
            at, length = (0 if step > 0 else len(self._offers) - 1), self._offers[0][1]
        else:
            at, length = (self._taken + step) % len(self._offers), len(self._offers[self._taken][0])
        row, column = self.cursor_location
        self._taken = at
        self.replace(self._offers[at][0], (row, column - length), (row, column))

    # -- Hands ---------------------------------------------------------------------------------

    async def _on_key(self, event: events.Key) -> None:
        """Do here what must come between the letters around it: a binding would come when they are done."""
        if event.key == "enter" and self._is_finished():
            self.post_message(self.Finished())
        elif event.key in {"tab", "shift+tab"}:
            self.action_complete(1 if event.key == "tab" else -1)
        elif event.key == "ctrl+c" and self.text:
            self.action_copy_or_clear()
        else:
            return
        event.stop()
        event.prevent_default()

    def _is_finished(self) -> bool:
        is_at_end = self.cursor_location == self.document.end
        return is_at_end and bool(self.text.strip()) and not is_open(self.text)

    def action_cursor_up(self, select: bool = False) -> None:  # noqa: FBT001, FBT002 - Textual calls it so
        """Go up; from the first line to what was typed before."""
        if select or not self.cursor_at_first_line:
            super().action_cursor_up(select)
        else:
            self._recall(-1)

    def action_cursor_down(self, select: bool = False) -> None:  # noqa: FBT001, FBT002 - Textual calls it so
        """Go down; from the last line to what was typed after it."""
        if select or not self.cursor_at_last_line:
            super().action_cursor_down(select)
        else:
            self._recall(1)

    def _recall(self, step: int) -> None:
        found = self.earlier.move(step, self.text)
        if found is not None:
            self.write(found)

    def write(self, text: str) -> None:
        """Put a text in place of what is there."""
        self.text = text
        self.move_cursor(self.document.end)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """In an empty editor Ctrl-C does what it does everywhere."""
        del parameters
        return bool(self.text) if action == "copy_or_clear" else True

    def action_copy_or_clear(self) -> None:
        """Copy what is marked; else give up what is typed, as in a shell (Ctrl-Z brings it back)."""
        if self.selected_text:
            self.action_copy()
        else:
            self.clear()


class Proposals(Widget):
    """What may stand at the cursor, in one line; what there is at all while nothing is begun."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"proposals--taken"}

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._words: Sequence[str] = ()
        self._taken: int | None = None
        self._else = ""

    def show(self, words: Sequence[str], taken: int | None, otherwise: str) -> None:
        """Show these words, or a text while there are none."""
        self._words, self._taken, self._else = words, taken, otherwise
        self.refresh()

    def render(self) -> Text:
        """Return as many words as fit, from the one that is taken on if need be."""
        width = self.content_size.width
        text = Text(no_wrap=True, end="")
        if not self._words:
            text.append(self._else)
            text.truncate(width, overflow="ellipsis")
            return text
        first = self._taken or 0
        if sum(len(word) + 2 for word in self._words[: first + 1]) <= width:
            first = 0
        style = self.get_component_rich_style("proposals--taken")
        for at in range(first, min(len(self._words), first + 60)):
            text.append(printable(self._words[at]), style if at == self._taken else None)
            text.append("  ")
        return text
