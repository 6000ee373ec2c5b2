"""Playbooks: what there is, what each would do, and the way to their plans and runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widget import Widget

from karma_playbooks.wording import book_lines
from karma_tui import run_views
from karma_tui.model import Fleet, laggiest
from karma_tui.player import Wish, read_books
from karma_tui.screens.asking import Asking, Told
from karma_tui.screens.plans import PlanPage
from karma_tui.screens.questions import Choice, Form
from karma_tui.screens.runs import RunPage, RunsPage
from karma_tui.spelling import count, printable
from karma_tui.tables import Table
from karma_tui.widgets.grid import Grid
from karma_tui.widgets.plain import Plain, say
from karma_tui.widgets.reader import Reader

if TYPE_CHECKING:
    from karma_playbooks.format import Book, Param


class PlaybooksPage(Asking):
    """Playbooks and their steps. Planning one changes nothing; its plan can be run from there."""

    NAME = "playbooks"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "plan", "plan it", key_display="Enter"),
        Binding("p", "plan", "plan it", show=False),
        Binding("r", "runs", "earlier runs"),
        Binding("o", "open", "the run under way"),
        Binding("Y", "copy_command", "copy the command that plans it", show=False),
        Binding("R", "load", "read again", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._books: dict[str, Book | str] = {}
        self._wishes: dict[str, Wish] = {}
        """What was filled in last, by book."""

    def body(self) -> Iterable[Widget]:
        """Return the list and the steps of the one under the cursor."""
        yield Grid(Table(run_views.BOOKS, note="reading"), id="books")
        yield Reader(id="detail")
        yield Plain(id="info")

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
            self.query_one("#info", Plain).update(Text(printable(event.problem)))
            return
        self._books = dict(event.response)
        self.query_one("#books", Grid).show(run_views.books(self._books.items()))
        self._describe()

    @property
    def book(self) -> tuple[str, Book] | None:
        """The readable playbook under the cursor, with the name it is called by."""
        row = self.query_one("#books", Grid).current
        book = None if row is None else self._books.get(row.key)
        return None if row is None or book is None or isinstance(book, str) else (row.key, book)

    def on_grid_moved(self) -> None:
        """Show the other one's steps."""
        self._describe()
        self.paint()

    def _describe(self) -> None:
        self.query_one("#detail", Reader).show(() if self.book is None else book_lines(self.book[1]))

    def show(self, fleet: Fleet) -> None:
        """Nothing here follows from the nodes' answers to a tick, but for the command."""

    def command(self) -> str:
        """Return `karmactl playbook plan`; where a node must be named, it is the laggiest follower."""
        if self.book is None:
            return self.host.target.command("playbook", "list")
        name, book = self.book
        words = ["playbook", "plan", name]
        for param in book.params.values():
            if not param.has_default:
                words += ["--param", f"{param.name}={self._proposed(param) or param.name.upper()}"]
        return self.host.target.command(*words)

    def _proposed(self, param: Param) -> str:
        """What stands in a form at first: the laggiest follower where a node must be named."""
        node = laggiest(self.host.fleet) if param.kind == "node" and not param.has_default else None
        return "" if node is None else self.host.target.node_name(node.address)

    # -- Going on ------------------------------------------------------------------------------

    def action_plan(self) -> None:
        """Ask what the playbook must know, then plan it."""
        if self.book is None:
            return
        name, book = self.book
        last = self._wishes.get(name)
        filled = {param.name: self._proposed(param) for param in book.params.values()}
        if last is not None:
            filled |= {"reason": last.reason, "ticket": last.ticket, **last.given}
        self.app.push_screen(Form(book, name, self._choices(), filled), self._planned)

    def on_grid_chosen(self) -> None:
        """Plan the one that was clicked."""
        self.action_plan()

    def _choices(self) -> list[Choice]:
        """The nodes that a parameter can name, and how each is."""
        target = self.host.target
        found = []
        for node in self.host.fleet.nodes:
            lag = node.newest.lag_entries
            about = "silent" if node.problem is not None else node.known.role
            found.append(
                Choice(target.node_name(node.address), f"{about}, {count(lag)} behind" if lag else about)
            )
        return found

    def _planned(self, wish: Wish | None) -> None:
        if wish is not None:
            self._wishes[wish.book] = wish
            self.app.push_screen(PlanPage(wish))

    def action_runs(self) -> None:
        """List the runs of this machine."""
        self.app.push_screen(RunsPage())

    def action_open(self) -> None:
        """Show the run that is under way here, or was last."""
        live = self.host.player.live
        if live is None:
            say(self, "no run was begun here; r lists earlier ones")
        else:
            self.app.push_screen(RunPage(live=live))
