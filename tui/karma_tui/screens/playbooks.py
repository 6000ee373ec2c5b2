"""Playbooks: what there is, what each would do, and the commands that plan and run it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from karma_client import KarmaError
from karma_tui import views
from karma_tui.model import Fleet, laggiest
from karma_tui.screens.asking import Asking, Told
from karma_tui.spelling import printable
from karma_tui.tables import Row, Table
from karma_tui.widgets.grid import Grid

if TYPE_CHECKING:
    from karma_playbooks.format import Book


def read_books(own: Path) -> list[tuple[str, Book | str]]:
    """Return every playbook by name; in place of one that cannot be read, why. Raises KarmaError."""
    try:
        from karma_playbooks.control import book_names, load_book  # noqa: PLC0415  brings YAML and schemas in
        from karma_playbooks.errors import PlaybookError  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise KarmaError(
            f"playbooks need {error.name}, which is not installed: pip install 'karma[playbooks]'"
        ) from error
    found: list[tuple[str, Book | str]] = []
    for name in book_names(own):
        try:
            found.append((name, load_book(name, own)))
        except PlaybookError as error:
            found.append((name, error.message.partition("\n")[0]))
    return found


class PlaybooksPage(Asking):
    """Playbooks and their steps. Planning and running them is karmactl's: copy its command with Y."""

    NAME = "playbooks"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("Y", "copy_command", "copy the command that plans it"),
        Binding("R", "load", "read again", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._books: dict[str, Book | str] = {}

    def body(self) -> Iterable[Widget]:
        """Return the list and the steps of the one under the cursor."""
        yield Grid(Table(views.BOOKS, note="reading"), id="books")
        with VerticalScroll(id="detail"):
            yield Static(id="steps")
        yield Static(id="info")

    def on_screen_resume(self) -> None:
        """Read them."""
        super().on_screen_resume()
        self.action_load()

    def action_load(self) -> None:
        """Read them again."""
        self.ask("books", asyncio.to_thread(read_books, self.host.target.playbooks_path))

    def on_told(self, event: Told) -> None:
        """Show the list."""
        if event.problem:
            self.query_one("#info", Static).update(Text(printable(event.problem)))
            return
        self._books = dict(event.response)
        rows = [
            Row(name, (name, book, None), "bad")
            if isinstance(book, str)
            else Row(name, (name, book.title, book.loses))
            for name, book in self._books.items()
        ]
        self.query_one("#books", Grid).show(Table(views.BOOKS, tuple(rows)))
        self._describe()

    @property
    def book(self) -> Book | None:
        """The readable playbook under the cursor."""
        row = self.query_one("#books", Grid).current
        book = None if row is None else self._books.get(row.key)
        return None if isinstance(book, str) else book

    def on_grid_moved(self) -> None:
        """Show the other one's steps."""
        self._describe()
        self.paint()

    def _describe(self) -> None:
        text = Text()
        if (book := self.book) is not None:
            text.append(f"{book.details or book.title}\n\n")
            for param in book.params.values():
                must = "" if param.has_default else " (must be given)"
                text.append(f"--param {param.name}=…", "bold")
                text.append(f"  {param.help}{must}\n")
            for number, step in enumerate(book.steps, 1):
                text.append(f"\n{number:>3} {step.id}", "bold")
                text.append(f"  {step.title}  [{step.call.action}]")
                if step.irreversible:
                    text.append(f"\n    cannot be undone: {step.irreversible}", "italic")
        self.query_one("#steps", Static).update(text)

    def show(self, fleet: Fleet) -> None:
        """Nothing here follows from the nodes' answers to a tick, but for the command."""

    def command(self) -> str:
        """Return `karmactl playbook plan`; where a node must be named, it is the laggiest follower."""
        book = self.book
        if book is None:
            return self.host.target.command("playbook", "list")
        words = ["playbook", "plan", book.name]
        for param in book.params.values():
            if not param.has_default:
                node = laggiest(self.host.fleet) if param.kind == "node" else None
                words += ["--param", f"{param.name}={node.address if node else param.name.upper()}"]
        return self.host.target.command(*words)
