"""What all screens share: their frame, `:` and `/`, copying, exporting, and the way to the app."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.keys import key_to_character
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, TextArea

from karma_client import FetchProgress, KarmaError
from karma_client.logs import Page as LogPage
from karma_tui.actions import Action
from karma_tui.model import Fleet, screams
from karma_tui.player import Live, Player
from karma_tui.spelling import spelt
from karma_tui.statements import Place
from karma_tui.tables import Table, to_csv, to_json
from karma_tui.target import Target
from karma_tui.widgets.chrome import Banner, Heading, Hints, Prompt, Same
from karma_tui.widgets.grid import Grid
from karma_tui.widgets.plain import say

if TYPE_CHECKING:
    import karma_sql.sources


class Source(Protocol):
    """Where screens get what no tick brings: the nodes, or a recording that has none of it."""

    wants_clients: bool

    @property
    def recording(self) -> Path | None:
        """The file that is shown in place of nodes."""

    async def ask(self, node: str, op: str, **fields: Any) -> Any:
        """Return the response of an operation. Raises KarmaError."""

    async def act(self, action: Action) -> Any:
        """Do something to a node. Raises KarmaError."""

    async def fetch(
        self, node: str, file: str, folder: Path, progress: Callable[[FetchProgress], object]
    ) -> Path:
        """Download a snapshot file. Raises KarmaError, OSError."""

    def tail(
        self, node: str, entries: int, warn: Callable[[str], object]
    ) -> AsyncIterator[LogPage | KarmaError]:
        """Yield pages of a node's log, its last entries first, for ever."""

    def sql_source(
        self, place: Place, progress: Callable[[str], object]
    ) -> AbstractContextManager[karma_sql.sources.Source]:
        """Open what SQL asks, in a thread of its own."""


class Host(Protocol):
    """What screens see of the app."""

    @property
    def fleet(self) -> Fleet:
        """The newest picture of all nodes."""

    @property
    def source(self) -> Source:
        """Where to ask for more."""

    @property
    def target(self) -> Target:
        """What the dashboard is pointed at."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Words that must stand in every banner."""

    @property
    def words(self) -> Sequence[str]:
        """What `:` proposes."""

    @property
    def clock(self) -> Callable[[], float]:
        """The clock: unix seconds."""

    def jump(self, text: str) -> None:
        """Go where the words of `:` say."""

    def propose(self, action: Action) -> None:
        """Ask somebody to confirm an action, then do it."""

    def refuses(self, command: str) -> bool:
        """Say that nothing may be changed, if that is so; `command` is what karmactl would do."""

    @property
    def player(self) -> Player:
        """Who plans and runs playbooks."""

    def play(self, live: Live) -> None:
        """Carry a run out, whatever screen is shown."""

    def ask_operator(self) -> None:
        """Ask what the run under way asks."""

    def stop_run(self) -> None:
        """Ask how the run under way is to stop."""

    def folder(self) -> Path:
        """Return where exports and downloads go."""


class Page(Screen[None], inherit_bindings=False):
    """A screen of the dashboard. Subclasses give `body`, `show`, `words_of_command` and their keys."""

    NAME: ClassVar[str] = ""
    AUTO_FOCUS: ClassVar[str | None] = "Grid"
    BINDINGS: ClassVar[list[BindingType]] = [
        # With priority, so that letters typed right behind them already go to the prompt.
        Binding("colon", "ask_jump", "jump", key_display=":", priority=True),
        Binding("slash", "ask_filter", "filter", key_display="/", priority=True),
        Binding("question_mark", "app.explain", "keys", key_display="?"),
        Binding("enter", "choose", "open the row", show=False),
        Binding("escape", "back", "back", show=False),
        Binding("tab", "app.focus_next", "next pane", show=False),
        Binding("y", "copy_row", "copy the row", show=False),
        Binding("Y", "copy_command", "copy the karmactl command", show=False),
        Binding("e", "export('csv')", "export the table as CSV", show=False),
        Binding("E", "export('json')", "export the table as JSON", show=False),
    ]
    FILTER_HINT: ClassVar[str] = "words that rows must hold; Esc shows all again"

    is_ready = False
    """Whether all parts are there: a tick may come before."""

    @property
    def host(self) -> Host:
        """The app."""
        return cast("Host", self.app)

    # -- For subclasses ------------------------------------------------------------------------

    def body(self) -> Iterable[Widget]:
        """Return what stands between banner and hints."""
        raise NotImplementedError

    def show(self, fleet: Fleet) -> None:
        """Show a newer picture of the nodes."""

    def title_words(self) -> str:
        """Return what the banner calls this screen."""
        return self.NAME

    def command(self) -> str:
        """Return the karmactl command that shows the same."""
        raise NotImplementedError

    def filter(self, wanted: str) -> None:
        """Filter the table, letter by letter."""
        if (grid := self.grid) is not None:
            grid.filter(wanted)

    def filtered(self, wanted: str) -> None:
        """Somebody is done with typing a filter."""

    @property
    def grid(self) -> Grid | None:
        """The table that keys work on: the focused one, else the first."""
        focused = self.focused
        return focused if isinstance(focused, Grid) else next(iter(self.query(Grid)), None)

    # -- Frame ---------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        yield Banner()
        yield from self.body()
        yield Prompt()
        yield Same(id="same")
        yield Hints(id="hints")

    def on_mount(self) -> None:
        """Show what is known."""
        self.is_ready = True
        self.paint()

    def on_screen_resume(self) -> None:
        """Show what came while another screen was on top."""
        self.paint()
        self.refresh_hints()

    def on_resize(self) -> None:
        """Show as many hints as fit."""
        self.refresh_hints()

    def paint(self) -> None:
        """Draw everything from the newest picture."""
        # A screen that is being closed is no longer displayed, and its parts may be gone.
        if not (self.is_ready and self.display):
            return
        fleet = self.host.fleet
        self.query_one(Banner).show(self._heading(fleet))
        self.show(fleet)
        self.query_one(Same).show(self.command())

    def _heading(self, fleet: Fleet) -> Heading:
        target = self.host.target
        heard = sum(node.problem is None and node.last is not None for node in fleet.nodes)
        clock = datetime.fromtimestamp(fleet.now, UTC).strftime("%H:%M:%SZ") if fleet.now else ""
        return Heading(
            self.title_words(),
            target.name,
            fleet.verdict.health if fleet.is_heard else "asking",
            f"{heard}/{len(fleet.nodes)} nodes",
            clock,
            self.host.marks,
            target.is_production,
            tuple(screams(fleet)),
        )

    def refresh_hints(self) -> None:
        """Show the keys of this screen, its own first."""
        if self.is_ready:
            self.query_one(Hints).show(self._hints())

    def _hints(self) -> Iterable[tuple[str, str, str]]:
        for active in sorted(self.active_bindings.values(), key=lambda one: self.rank(one.node)):
            binding = active.binding
            if binding.show and active.enabled and not self._is_typed(binding.key):
                action = self._qualified(active.node, binding.action)
                yield self.app.get_key_display(binding), binding.description, action

    def _is_typed(self, key: str) -> bool:
        """Whether a key is a letter of what is being typed."""
        focused = self.focused
        return focused is not None and focused.check_consume_key(key, key_to_character(key))

    def _qualified(self, node: object, action: str) -> str:
        """An action as a click on a hint must name it."""
        if action.startswith("app."):
            return action
        place = "app" if node is self.app else "screen" if node is self else "focused"
        return f"{place}.{action}"

    def rank(self, node: object) -> int:
        """Return where the keys of a node of the screen stand: the screen's own, its widgets', the app's."""
        return 0 if node is self else 1 if node is not self.app else 2

    # -- Prompt --------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Where something is typed, : and / are letters."""
        del parameters
        return not (action in {"ask_jump", "ask_filter"} and isinstance(self.focused, Input | TextArea))

    def action_ask_jump(self) -> None:
        """Open `:`."""
        self.query_one(Prompt).ask("jump", self.host.words, hint="a screen, a node, or series NAME KEY")

    def action_ask_filter(self) -> None:
        """Open `/`."""
        grid = self.grid
        self.query_one(Prompt).ask("filter", (), grid.wanted if grid else "", self.FILTER_HINT)

    def on_prompt_typed(self, event: Prompt.Typed) -> None:
        """Filter."""
        self.filter(event.text)

    def on_prompt_done(self, event: Prompt.Done) -> None:
        """Jump, or keep the filter."""
        self._focus_content()
        if event.kind == "jump":
            self.host.jump(event.text)
        else:
            self.filter(event.text)
            self.filtered(event.text)

    def on_prompt_left(self, event: Prompt.Left) -> None:
        """Back to the table; a filter that was not finished is gone."""
        self._focus_content()
        if event.kind == "filter":
            self.filter("")

    def _focus_content(self) -> None:
        if (grid := next(iter(self.query(Grid)), None)) is not None:
            self.set_focus(grid)
        self.refresh_hints()

    def action_choose(self) -> None:
        """Open the row under the cursor."""
        if (grid := self.grid) is not None:
            grid.action_choose()

    def action_back(self) -> None:
        """Take the filter away, else go back to where this screen was opened from."""
        grid = self.grid
        if grid is not None and grid.wanted:
            self.filter("")
        elif len(self.app.screen_stack) > 2:
            self.app.pop_screen()

    # -- Taking things along -------------------------------------------------------------------

    def action_copy_row(self) -> None:
        """Copy the row under the cursor to the clipboard of the person's terminal (OSC 52)."""
        grid = self.grid
        if grid is None or grid.current is None:
            return
        named = zip(grid.shown.columns, grid.current.cells, strict=True)
        self.app.copy_to_clipboard("\t".join(spelt(value, column.kind).strip() for column, value in named))
        say(self, "row copied")

    def action_copy_command(self) -> None:
        """Copy the karmactl command that shows the same."""
        self.app.copy_to_clipboard(self.command())
        say(self, f"copied: {self.command()}")

    def action_export(self, form: str) -> None:
        """Write the table as it is shown, sorted and filtered, into a file of the working folder."""
        if (grid := self.grid) is None:
            return
        stamp = datetime.fromtimestamp(self.host.fleet.now, UTC).strftime("%Y%m%dT%H%M%SZ")
        path = self.host.folder() / f"karma-{self.NAME}-{stamp}.{form}"
        try:
            path.write_text(to_csv(grid.shown) if form == "csv" else to_json(grid.shown))
        except OSError as error:
            say(self, f"{path}: {error.strerror}", severity="error")
        else:
            say(self, f"{len(grid.shown.rows)} rows in {path}")


def as_lines(value: Any) -> str:
    """Return data as indented JSON, for a detail pane."""
    return json.dumps(value, ensure_ascii=False, indent=1, default=str)


EMPTY = Table(())
