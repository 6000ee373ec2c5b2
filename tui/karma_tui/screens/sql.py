"""SQL: an editor, what came of the statement, a plot of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widget import Widget

from karma_sql.errors import SqlError, check_installed
from karma_sql.tables import MACROS, TABLES
from karma_tui import queries, statements
from karma_tui.queries import Asker, Broken, Progress, Question
from karma_tui.recording import COLUMNS
from karma_tui.screens.asking import Asking, Told
from karma_tui.screens.detail import Detailed
from karma_tui.spelling import age, moment, printable
from karma_tui.statements import History, Outcome, Place
from karma_tui.tables import Row, Table
from karma_tui.widgets.chart import Plot
from karma_tui.widgets.chrome import Same
from karma_tui.widgets.editor import Editor, Proposals
from karma_tui.widgets.grid import Grid
from karma_tui.widgets.plain import Plain, entitle, say

NAMES = (*(table.name for table in TABLES), *(macro.name for macro in MACROS))
THERE_IS = (
    "tables: "
    + " ".join(table.name for table in TABLES)
    + "  macros: "
    + " ".join(f"{macro.name}()" for macro in MACROS)
)
SLOW_SECONDS = 1.0
"""What took longer is told."""
NOTHING = Table((), note="F5 runs the statement, Tab completes what is begun")


class Came(Message):
    """The thread that asks has something to tell."""

    def __init__(self, what: Progress | Outcome | Broken) -> None:
        super().__init__()
        self.what = what


class SqlPage(Detailed, Asking):
    """Questions in SQL about snapshots and logs, as karmactl sql asks them: sources are only read.

    Esc leaves the editor, i goes back. There, Enter behind the last semicolon runs, too, and the arrows go on
    beyond the first and the last line to what was typed before.
    """

    NAME = "sql"
    AUTO_FOCUS = "Editor"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "edit", "edit"),
        Binding("f5", "run", "run", key_display="F5"),
        Binding("ctrl+j,ctrl+enter", "run", "run", show=False),
        Binding("f4", "plot", "plot", key_display="F4"),
        Binding("f3", "source", "other source", key_display="F3"),
        Binding("f2", "read", "read anew", key_display="F2"),
        Binding("f1", "app.explain", "keys", show=False),
        Binding("ctrl+c", "cancel", "cancel what is running", show=False, priority=True),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._asker: Asker | None = None
        self._chosen: Place | None = None
        """A place that somebody came with, beside those that are always there."""
        self._place = Place()
        self._outcome: Outcome | None = None
        self._names: Sequence[str] = NAMES
        self._series: Sequence[str] | None = None
        self._is_running = False
        self._is_anew = False
        self._shows_plot = False

    def title_words(self) -> str:
        """Return what is asked."""
        return f"sql: {printable(self._place.describe())}"

    def body(self) -> Iterable[Widget]:
        """Return editor, result, plot, the pane for one row, and what there is to say."""
        editor = Editor(self._known_names, self._series_names, placeholder=self._place.example(), id="editor")
        entitle(editor, "SQL")
        yield editor
        yield Proposals(id="proposals")
        yield Plain(id="problems")
        yield Grid(NOTHING, id="result")
        yield VerticalScroll(Plot(), id="plot")
        yield self.pane()
        yield Plain(id="info")

    def on_mount(self) -> None:
        """Remember what was typed before; say at once what is missing."""
        super().on_mount()
        self._fill()
        self.query_one(Editor).earlier = History(queries.read_history(self.host.target.sql_history_path))
        if (recording := self.host.source.recording) is not None:
            self.turn_to(Place(recording=recording))
        try:
            check_installed()
        except SqlError as error:
            self._complain(error.message, error.advice)

    def on_unmount(self) -> None:
        """Let what is running end."""
        if self._asker is not None:
            self._asker.close()

    def command(self) -> str:
        """Return `karmactl sql` with the statement in the editor."""
        words = statements.command(self._place, self._statement(), is_plot=self._shows_plot)
        return self.host.target.command(*words)

    def _statement(self) -> str:
        """What is marked, else all."""
        editor = self.query_one(Editor)
        return (editor.selected_text or editor.text).strip()

    # -- Where ---------------------------------------------------------------------------------

    def turn_to(self, place: Place) -> None:
        """Ask there from now on; F3 comes back to it."""
        self._chosen = place
        self._ask_at(place)
        if self.is_ready:
            self.action_edit()

    def _ask_at(self, place: Place) -> None:
        if place == self._place:
            return
        if self._is_running:
            self.action_cancel()
        self._place = place
        self._outcome = None
        if self.is_ready:
            self.query_one(Editor).propose()
            self.query_one(Editor).placeholder = place.example()
            self._fill()

    def action_source(self) -> None:
        """Ask the newest snapshots, or these and the log up to now, or what somebody came with."""
        places = [Place(), Place(is_now=True)]
        if self._chosen is not None and self._chosen not in places:
            places = [self._chosen] if self._chosen.recording is not None else [self._chosen, *places]
        if not self._is_busy():
            self._ask_at(places[(places.index(self._place) + 1) % len(places)])

    def action_read(self) -> None:
        """Read the sources anew with the next statement, and carry it out."""
        self._is_anew = True
        self.action_run()

    # -- Asking --------------------------------------------------------------------------------

    def action_run(self) -> None:
        """Carry out what is marked in the editor, else all of it."""
        text = self._statement()
        if self._is_busy():
            return
        if not text:
            say(self, "there is no statement yet; Tab takes the one that is proposed")
            return
        target, clock = self.host.target, self.host.clock
        if self.query_one(Editor).earlier.add(text):
            # A home that cannot be written to is no reason not to ask.
            with suppress(OSError):
                queries.append_history(target.sql_history_path, text, clock())
        if self._asker is None:
            loop = asyncio.get_running_loop()

            def report(what: Progress | Outcome | Broken) -> None:
                # The loop may be gone: nobody looks any more.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self.post_message, Came(what))

            self._asker = Asker(self.host.source.sql_source, target.cache_path, report, clock)
        self._is_running = True
        self._asker.ask(Question(self._place, text, self._is_anew))
        self._is_anew = False
        self._say("running; Esc cancels")

    def _is_busy(self) -> bool:
        if self._is_running:
            say(self, "a statement is running; Esc cancels it")
        return self._is_running

    def action_cancel(self) -> None:
        """Cancel the statement."""
        if self._asker is not None:
            self._asker.cancel()
            self._say("cancelling")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Ctrl-C cancels while there is something to cancel."""
        return self._is_running if action == "cancel" else super().check_action(action, parameters)

    def on_came(self, event: Came) -> None:
        """Show how far it is, or what came of it."""
        what = event.what
        if isinstance(what, Broken):
            raise what.error
        if isinstance(what, Outcome):
            self._is_running = False
            self._outcome = what
            self._names = what.names or self._names
            self._fill()
        elif self._is_running:
            share = "" if what.share is None else f", {what.share:.0%}"
            self._say(f"{what.text}{share}; Esc cancels")

    # -- Showing -------------------------------------------------------------------------------

    def _fill(self) -> None:
        outcome = self._outcome or Outcome()
        grid = self.query_one("#result", Grid)
        grid.filter("")
        grid.show(NOTHING if self._outcome is None else statements.table_of(outcome))
        self.query_one(Plot).show([name for name, _ in outcome.columns], outcome.rows)
        self.query_one("#entry", Plain).update(Text(outcome.plan))
        self._complain(outcome.problem, outcome.advice)
        self._open(is_pane=bool(outcome.plan), is_plot=self._shows_plot and not outcome.plan)
        self._say(self._told())

    def _open(self, *, is_pane: bool, is_plot: bool) -> None:
        """There is room for one of them."""
        self._shows_plot = is_plot
        self.query_one("#plot").display = is_plot and bool(self._outcome and self._outcome.rows)
        self.query_one("#detail").display = is_pane
        self.paint()

    def _complain(self, problem: str, advice: str) -> None:
        lines = problem.splitlines() + ([f"next: {advice}"] if advice else [])
        pane = self.query_one("#problems", Plain)
        pane.display = bool(lines)
        pane.update(Text("\n".join(map(printable, lines))))

    def _told(self) -> str:
        """What there is to say about the result."""
        outcome = self._outcome or Outcome()
        told = []
        if outcome.columns:
            count = len(outcome.rows)
            rows = f"{count:,} row{'' if count == 1 else 's'}"
            told.append(f"the first {rows}, `--to FILE` writes all" if outcome.is_cut else rows)
            if left_out := self.query_one("#result", Grid).left_out:
                told.append(f"without {', '.join(left_out)}: Enter shows a row in full")
        if outcome.took_seconds > SLOW_SECONDS:
            told.append(f"in {age(outcome.took_seconds)}")
        if outcome.columns:
            told.append(f"read at {moment(outcome.read_at)[11:]}Z")
        return "\n".join(["; ".join(told), *outcome.notes]).strip()

    def _say(self, text: str) -> None:
        pane = self.query_one("#info", Plain)
        pane.display = bool(text)
        pane.update(Text("\n".join(map(printable, text.splitlines()))))

    def in_full(self, row: Row) -> Any:
        """Return a row as an object."""
        columns = self.query_one("#result", Grid).shown.columns
        return dict(zip((column.name for column in columns), row.cells, strict=True))

    def on_resize(self) -> None:
        """Say which columns fit now."""
        super().on_resize()
        if self.is_ready and not self._is_running:
            self.call_after_refresh(lambda: self._say(self._told()))

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        """Make room for the row in full."""
        self._open(is_pane=True, is_plot=False)
        super().on_grid_chosen(event)

    def action_plot(self) -> None:
        """Draw the result, or no longer."""
        self._open(is_pane=False, is_plot=not self._shows_plot)

    # -- The editor ----------------------------------------------------------------------------

    def on_editor_finished(self) -> None:
        """Carry it out."""
        self.action_run()

    def on_editor_offers(self, event: Editor.Offers) -> None:
        """Show what may stand at the cursor."""
        there_is = THERE_IS if self._place.recording is None else f"columns: {' '.join(COLUMNS)}"
        self.query_one(Proposals).show(event.words, event.taken, there_is)
        self.query_one(Same).show(self.command())

    def _known_names(self) -> Sequence[str]:
        return self._names if self._place.recording is None else tuple(COLUMNS)

    def _series_names(self) -> Sequence[str]:
        """The series that quotes may hold; they are asked for when somebody first types a quote."""
        if self._series is None:
            self._series = ()
            self.ask("series", self.question("tree.list"))
        return self._series

    def on_told(self, event: Told) -> None:
        """Propose series; who cannot be asked proposes none."""
        if not event.problem:
            self._series = event.response
            self.query_one(Editor).propose()

    def on_descendant_focus(self) -> None:
        """Show other keys: letters are keys again outside of the editor."""
        self.refresh_hints()

    def action_edit(self) -> None:
        """Back to the editor."""
        self.query_one(Editor).focus()

    def action_back(self) -> None:
        """Cancel what is running; from the editor to the result; else close plot or pane, or go back."""
        if self._is_running:
            self.action_cancel()
        elif isinstance(self.focused, Editor):
            self.query_one("#result", Grid).focus()
        elif self._shows_plot:
            self._open(is_pane=False, is_plot=False)
        else:
            super().action_back()
