"""Questions about playbooks: what a run needs to know, what it asks, how it is to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.events import DescendantFocus
from textual.screen import ModalScreen
from textual.widgets import Input

from karma_playbooks.wording import spelt
from karma_tui.player import Wish
from karma_tui.spelling import printable
from karma_tui.target import Target
from karma_tui.widgets.plain import Plain, entitle, say

if TYPE_CHECKING:
    from karma_playbooks.format import Book

Stopping = Literal["undo", "pause"]


class Choice(NamedTuple):
    """A value that a parameter can have, and what it is."""

    value: str
    about: str = ""

    @property
    def words(self) -> str:
        """Both in words."""
        return f"{self.value} ({self.about})" if self.about else self.value


class Field(NamedTuple):
    """A line of a form. Left empty, a field that need not be given has what `default` says."""

    name: str
    help: str
    must_be_given: bool
    default: str = ""
    choices: Sequence[Choice] = ()


def fields_of(book: Book, nodes: Sequence[Choice]) -> list[Field]:
    """Return what a form for a book asks: its parameters, why, and for which ticket."""
    choices: Mapping[str, Sequence[Choice]] = {"node": nodes, "flag": (Choice("yes"), Choice("no"))}
    found = [
        Field(
            param.name,
            param.help,
            not param.has_default,
            spelt(param.default) if param.has_default else "",
            choices.get(param.kind, ()),
        )
        for param in book.params.values()
    ]
    return [
        *found,
        Field("reason", "why, for the journal and whoever finds what it left", must_be_given=True),
        Field("ticket", "a ticket it belongs to", must_be_given=False, default="none"),
    ]


class Form(ModalScreen[Wish | None]):
    """Asks what a playbook must know before it can be planned."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "back", show=False),
        # Before the dialog scrolls by them.
        Binding("up", "choose(-1)", "the choice before", show=False, priority=True),
        Binding("down", "choose(1)", "the next choice", show=False, priority=True),
    ]

    def __init__(self, book: Book, name: str, nodes: Sequence[Choice], filled: Mapping[str, str]) -> None:
        """`name` is what the book is called by, `filled` what stands in the fields at first."""
        super().__init__()
        self._book = book
        self._called = name
        self._fields = fields_of(book, nodes)
        self._filled = filled

    def compose(self) -> ComposeResult:
        """Lay it out."""
        with VerticalScroll(classes="dialog form", can_focus=False) as dialog:
            entitle(dialog, f"plan {self._called}", "Enter plans it, Esc leaves; nothing is changed by that")
            yield Plain(Text(self._book.title))
            for field in self._fields:
                label = Text("\n")
                label.append(field.name, "bold")
                label.append(f"  {field.help}")
                yield Plain(label)
                yield Input(
                    self._filled.get(field.name, ""),
                    id=f"field-{field.name}",
                    compact=True,
                    placeholder="must be given" if field.must_be_given else field.default,
                )
            yield Plain(id="choices")

    def on_mount(self) -> None:
        """Begin where something must be filled in."""
        self.set_focus(self._line(self._missing() or self._fields[0]))

    def _line(self, field: Field) -> Input:
        return self.query_one(f"#field-{field.name}", Input)

    def _missing(self) -> Field | None:
        return next(
            (field for field in self._fields if field.must_be_given and not self._line(field).value.strip()),
            None,
        )

    @property
    def _current(self) -> Field | None:
        return next((field for field in self._fields if self._line(field).has_focus), None)

    def on_descendant_focus(self, _: DescendantFocus) -> None:
        """Show what there is to choose from."""
        field = self._current
        words = ", ".join(choice.words for choice in field.choices) if field is not None else ""
        self.query_one("#choices", Plain).update(Text(f"\n↑ ↓ choose: {words}" if words else ""))

    def action_choose(self, step: int) -> None:
        """Put the next choice into the line."""
        field = self._current
        if field is None or not field.choices:
            return
        values = [*([] if field.must_be_given else [""]), *(choice.value for choice in field.choices)]
        line = self._line(field)
        at = values.index(line.value) + step if line.value in values else 0
        line.value = values[at % len(values)]

    def on_input_submitted(self) -> None:
        """Plan, unless something is missing or makes no sense."""
        missing = self._missing()
        if missing is not None:
            is_here = self._current is missing
            self.set_focus(self._line(missing))
            if is_here:
                say(self, f"{missing.name} must be given: {missing.help}", severity="warning")
            return
        typed = {field.name: self._line(field).value.strip() for field in self._fields}
        given = {name: typed[name] for name in self._book.params if typed[name]}
        if (problem := self._problem(given)) is not None:
            say(self, problem, severity="warning")
            return
        self.dismiss(Wish(self._called, given, typed["reason"], typed["ticket"]))

    def _problem(self, given: Mapping[str, str]) -> str | None:
        from karma_playbooks.errors import PlaybookError  # noqa: PLC0415
        from karma_playbooks.plan import parse  # noqa: PLC0415  here it is loaded already, with the book

        for name, text in given.items():
            try:
                parse(self._book.params[name], text)
            except PlaybookError as error:
                self.set_focus(self.query_one(f"#field-{name}", Input))
                return error.message
        return None


class Approve(ModalScreen[bool | None]):
    """A question of a run that waits. A word must be typed: the question comes while somebody types."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "later", show=False)]

    def __init__(self, question: str, target: Target) -> None:
        super().__init__()
        self._question = question
        self._target = target
        self._word = target.name if target.is_production else "yes"

    def compose(self) -> ComposeResult:
        """Lay it out."""
        text = Text()
        if self._target.is_production:
            text.append(f" PRODUCTION: {self._target.name} ", "bold reverse")
            text.append("\n\n")
        text.append(f"{printable(self._question)}\n\n", "bold")
        text.append(
            f"Type {self._word} and press Enter to go on, or no to refuse, which takes back what was done. "
        )
        text.append("Esc leaves it waiting.")
        with Vertical(classes="dialog") as dialog:
            entitle(dialog, "the run asks")
            yield Plain(text)
            yield Input(id="word", compact=True, placeholder=self._word)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answer."""
        word = event.value.strip()
        if word in {self._word, "no"}:
            self.dismiss(word == self._word)
        else:
            say(self, f"that is neither {self._word} nor no", severity="warning")


class Stop(ModalScreen[Stopping | None]):
    """How is a run to stop?"""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "go on", show=False),
        Binding("p", "answer('pause')", "pause it", show=False),
        Binding("u", "answer('undo')", "take it back", show=False),
    ]

    def __init__(self, run: str, resume: str, *, is_leaving: bool) -> None:
        super().__init__()
        self._run = run
        self._resume = resume
        self._is_leaving = is_leaving

    def compose(self) -> ComposeResult:
        """Lay it out."""
        then = ", then leaves" if self._is_leaving else ""
        text = Text(f"{self._run or 'A run'} is under way.\n\n")
        text.append("p", "bold")
        text.append(f" pauses it where it is{then}: nothing is taken back, and ")
        text.append(self._resume, "bold")
        text.append(" goes on, here or on another machine.\n\n")
        text.append("u", "bold")
        text.append(
            f" lets the step under way end and takes back what was done{then}, as Ctrl-C does with karmactl; "
            "behind the point of no return it pauses instead.\n\n"
        )
        text.append("Esc", "bold")
        text.append(" lets it go on.")
        with Vertical(classes="dialog") as dialog:
            entitle(dialog, "leave the dashboard?" if self._is_leaving else "stop the run?")
            yield Plain(text)

    def action_answer(self, answer: Stopping) -> None:
        """Answer."""
        self.dismiss(answer)
