"""Runs of playbooks: step by step on each target while one goes on, and all that there were."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widget import Widget

from karma_tui import run_views
from karma_tui.model import Fleet
from karma_tui.player import Live, read_run, read_runs
from karma_tui.screens.asking import Looking, Told
from karma_tui.screens.modals import Confirm
from karma_tui.spelling import printable
from karma_tui.tables import Table
from karma_tui.widgets.grid import Grid
from karma_tui.widgets.plain import Plain, say
from karma_tui.widgets.reader import Reader

if TYPE_CHECKING:
    from karma_playbooks.history import History
    from karma_playbooks.progress import Progress

"""Runs of other processes of this machine are in the same journal, and looked at so often."""


class RunPage(Looking):
    """A run: each step on each target, what it did, what was seen, what it printed.

    Leaving this screen lets the run go on.
    """

    NAME = "run"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "stop", "stop"),
        Binding("ctrl+c", "stop", "stop", show=False),
        Binding("r", "resume(False)", "resume"),
        Binding("A", "resume(True)", "take back"),
        Binding("a", "answer", "answer"),
        Binding("f", "follow", "follow what runs", show=False),
        Binding("Y", "copy_command", "copy what comes next", show=False),
        Binding("escape", "back", "back", key_display="Esc"),
    ]

    def __init__(self, run: str = "", *, live: Live | None = None) -> None:
        """`live` is a run that this process carries out; else `run` is read from the journal."""
        super().__init__()
        self._run = run
        self._live = live
        self._read: Progress | None = None
        self._problem = ""
        self._followed: str | None = run_views.WHOLE
        """The row that the cursor was put on; None once somebody moved it."""

    @property
    def progress(self) -> Progress | None:
        """What is known of the run."""
        return self._read if self._live is None else self._live.progress

    @property
    def is_live(self) -> bool:
        """Whether this process carries it out now."""
        return self._live is not None and self._live.is_under_way

    def title_words(self) -> str:
        """Return the run's id."""
        progress = self.progress
        return f"run {(progress.history.run if progress else '') or self._run}".strip()

    def body(self) -> Iterable[Widget]:
        """Return what it waits for, the steps, and the one under the cursor."""
        yield Plain(id="stake")
        yield Grid(Table(run_views.PARTS, note="reading"), id="parts")
        yield Reader(id="detail")

    def look(self) -> None:
        """Read a run of another process from the journal."""
        progress, desk = self.progress, self.host.player.desk
        run = progress.history.run if progress is not None else self._run
        is_over = progress is not None and progress.history.is_over
        if run and desk is not None and not (self.is_live or is_over):
            self.ask("run", asyncio.to_thread(read_run, desk.journal_path, run))

    def on_told(self, event: Told) -> None:
        """Show what the journal tells."""
        self._problem = event.problem
        if not event.problem and not self.is_live:
            self._take(event.response)
        self.paint()
        self.refresh_hints()

    def _take(self, read: Progress) -> None:
        """Show what the journal tells, unless what this process saw is as new, and more."""
        if self._live is None or read.history.length > self._live.progress.history.length:
            self._read, self._live = read, None

    # -- Showing -------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """Return how the run is, in a word."""
        progress = self.progress
        if progress is None or not progress.history.run:
            return "asking" if self.is_live else "refused"
        return (
            "stopping" if self.is_live and self._live and self._live.is_stopping else progress.history.state
        )

    def show(self, fleet: Fleet) -> None:
        """Draw the steps."""
        progress = self.progress
        if progress is None:
            self.query_one("#stake", Plain).update(Text(printable(self._problem)))
            return
        grid = self.query_one("#parts", Grid)
        grid.show(run_views.parts(progress, round(fleet.now * 1000), self.state))
        self._follow_along(progress, grid)
        self.query_one("#stake", Plain).update(self._words(progress))
        self._describe(progress)
        self.refresh_hints()

    def _words(self, progress: Progress) -> Text:
        """What somebody has to do, or can."""
        text = Text()
        live = self._live
        if live is not None and live.question:
            text.append(f"it asks: {printable(live.question)}", "bold")
            text.append("  a answers")
        elif live is not None and live.problem:
            text.append(printable(live.problem), "bold")
        elif self.is_live:
            text.append("under way; leaving this screen lets it go on")
        elif progress.history.is_over:
            text.append(f"{progress.history.state}  ", "bold")
            text.append(printable(progress.history.why))
        else:
            text.append(f"{progress.history.state}  ", "bold")
            text.append(f"{printable(progress.history.why)}\nnext: {self._next(progress.history)}")
        return text

    @staticmethod
    def _next(history: History) -> str:
        from karma_playbooks.control import next_words  # noqa: PLC0415  here it is loaded already

        return next_words(history.run, history)

    def _follow_along(self, progress: Progress, grid: Grid) -> None:
        if self._followed is None:
            return
        busy = next((part for part in progress.parts if part.is_busy), None)
        if busy is not None:
            self._followed = run_views.part_key(busy)
            grid.go_to(self._followed)

    def on_grid_moved(self, event: Grid.Moved) -> None:
        """Show the other row; who moves by hand is not moved any more."""
        if event.row is not None and event.row.key != self._followed:
            self._followed = None
        if (progress := self.progress) is not None:
            self._describe(progress)

    def _describe(self, progress: Progress) -> None:
        row = self.query_one("#parts", Grid).current
        part = next((one for one in progress.parts if row and run_views.part_key(one) == row.key), None)
        problem = self._live.problem if self._live is not None else ""
        lines = (
            run_views.run_lines(progress, problem) if part is None else run_views.part_lines(progress, part)
        )
        self.query_one("#detail", Reader).show(lines)

    def action_follow(self) -> None:
        """Let the cursor go along with what runs."""
        self._followed = run_views.WHOLE
        self.paint()

    def command(self) -> str:
        """Return the karmactl command that goes on with it, or that shows it."""
        progress = self.progress
        run = (progress.history.run if progress else "") or self._run
        is_open = progress is not None and progress.history.state == "paused" and not self.is_live
        return self.host.target.command(
            "playbook", "resume" if is_open else "status", *([run] if run else [])
        )

    # -- Doing ---------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only what can be done."""
        progress = self.progress
        match action:
            case "stop":
                return self.is_live
            case "answer":
                return self._live is not None and bool(self._live.question)
            case "resume":
                is_open = progress is not None and bool(progress.history.run) and not progress.history.is_over
                return is_open and not self.is_live
        return super().check_action(action, parameters)

    def action_stop(self) -> None:
        """Ask how it is to stop."""
        self.host.stop_run()

    def action_answer(self) -> None:
        """Open the question again that the run waits with."""
        self.host.ask_operator()

    def action_resume(self, abort: bool) -> None:  # noqa: FBT001 - Textual calls it so
        """Go on with a run that stopped, or take it back, after a question."""
        progress = self.progress
        if progress is None:
            return
        run = progress.history.run
        command = self.host.target.command("playbook", "abort" if abort else "resume", run)
        if self.host.refuses(command):
            return
        if self.host.player.is_busy:
            say(self, "another run is under way here", severity="warning")
            return
        effect = (
            f"take back {run}" if abort else f"go on with {run}, which looks first and does nothing twice"
        )

        def answered(is_meant: bool | None) -> None:  # noqa: FBT001 - Textual calls it so
            if is_meant:
                self._live = self.host.player.begin_again(progress, abort=abort)
                self._followed = run_views.WHOLE
                self.host.play(self._live)
                self.paint()

        self.app.push_screen(Confirm(effect, command, progress.plan.cluster, self.host.target), answered)


class RunsPage(Looking):
    """The runs of this machine, the newest first: who wanted them, why, and what became of them."""

    NAME = "runs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "open the run", key_display="Enter"),
        Binding("escape", "back", "back", key_display="Esc"),
    ]

    def body(self) -> Iterable[Widget]:
        """Return the table and what went wrong."""
        yield Grid(Table(run_views.RUNS, note="reading"), id="runs")
        yield Plain(id="info")

    def look(self) -> None:
        """Read this machine's journal."""
        desk = self.host.player.desk
        if desk is None:
            self.query_one("#info", Plain).update("runs are not in a recording")
        else:
            self.ask("runs", asyncio.to_thread(read_runs, desk.journal_path))

    def on_told(self, event: Told) -> None:
        """Show the runs."""
        self.query_one("#info", Plain).update(Text(printable(event.problem)))
        if not event.problem:
            self.query_one("#runs", Grid).show(run_views.runs(event.response))

    def command(self) -> str:
        """Return `karmactl playbook history`."""
        return self.host.target.command("playbook", "history")

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        """Open a run: the one under way here as it goes on, others from the journal."""
        live = self.host.player.live
        is_live = live is not None and live.progress.history.run == event.row.key
        self.app.push_screen(RunPage(live=live) if is_live else RunPage(event.row.key))
