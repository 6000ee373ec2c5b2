"""The dashboard's app: takes answers in, draws the newest picture each tick, goes from screen to screen."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from inspect import cleandoc
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen

from karma.errors import describe_bug
from karma_client import KarmaError
from karma_tui import model, themes
from karma_tui.actions import Action
from karma_tui.model import Answer, Fleet
from karma_tui.player import Live, Player
from karma_tui.poller import Poller
from karma_tui.recording import Playback, Recorder
from karma_tui.screens.catalog import BY_NAME, SCREENS
from karma_tui.screens.fleet import NodePage
from karma_tui.screens.measures import LatencyPage
from karma_tui.screens.modals import Confirm, Explain
from karma_tui.screens.page import Page, Source
from karma_tui.screens.questions import Approve, Stop, Stopping
from karma_tui.screens.runs import RunPage, RunsPage
from karma_tui.screens.series import KeyPage, KeysPage
from karma_tui.screens.sql import SqlPage
from karma_tui.statements import Place
from karma_tui.target import Target
from karma_tui.widgets.plain import say

REPLAY_STEPS_SECONDS = (1, 60)
PLAYED_SECONDS = 0.1
"""A run that prints much is drawn so often, and not at each line."""


class Answered(Message):
    """A node answered, or did not."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class Played(Message):
    """Something happened to a playbook: `change` takes it in."""

    def __init__(self, change: Callable[[], object]) -> None:
        super().__init__()
        self.change = change


class KarmaApp(App[None], inherit_bindings=False):
    """The dashboard over one target, or over a recording.

    `clock` gives unix seconds. `recorder` keeps what is shown; `playback` shows what was kept, in place of
    the nodes. `folder` is where exports, downloads and screenshots go.
    """

    TITLE = "karma"
    CSS_PATH = "karma.tcss"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(entry.key, f"goto('{entry.name}')", entry.name, show=False) for entry in SCREENS),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c,ctrl+q", "quit", "quit", show=False, system=True),
        Binding("ctrl+p", "command_palette", "palette", show=False),
        Binding("T", "turn_theme", "theme: dark, light, high contrast", show=False),
        Binding("V", "picture", "save this screen as an SVG picture", show=False),
        Binding("comma", "scrub(-1, 0)", "a second back", show=False),
        Binding("full_stop", "scrub(1, 0)", "a second on", show=False),
        Binding("less_than_sign", "scrub(-1, 1)", "a minute back", show=False),
        Binding("greater_than_sign", "scrub(1, 1)", "a minute on", show=False),
        Binding("equals_sign", "play", "play or stop", show=False),
    ]

    def __init__(
        self,
        target: Target,
        *,
        clock: Callable[[], float] = time.time,
        recorder: Recorder | None = None,
        playback: Playback | None = None,
        first: str = "fleet",
        theme: str = "dark",
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.target = target
        self.fleet: Fleet = model.empty(target.nodes, target.tick_seconds)
        self.clock = clock
        self._recorder = recorder
        self._playback = playback
        self._poller = Poller(target, lambda answer: self.post_message(Answered(answer)), clock)
        self.player = Player(
            None if playback is not None else target.desk,
            target.playbooks_path,
            lambda change: self.post_message(Played(change)),
        )
        self._is_drawing_late = False
        self._question_shown = ""
        self._is_leaving = False
        self._first = first
        self._folder = folder or Path.cwd()
        self._pages: dict[str, Page] = {}
        self._is_painted_complete = False
        for one in themes.THEMES:
            self.register_theme(one)
        self.theme = theme

    # -- What screens see ----------------------------------------------------------------------

    @property
    def source(self) -> Source:
        """Where screens ask for more: the nodes, or the recording."""
        return self._poller if self._playback is None else self._playback

    @property
    def marks(self) -> tuple[str, ...]:
        """Words that must stand in every banner."""
        marks = []
        if self.target.is_production:
            marks.append("PRODUCTION")
        if self.target.is_read_only:
            marks.append("READ-ONLY")
        if self._recorder is not None:
            marks.append("REC")
        if self.player.is_busy:
            marks.append("RUN ASKS" if self._question_shown else "RUN")
        if self._playback is not None:
            marks.append(self._playback.describe())
        return tuple(marks)

    @property
    def words(self) -> Sequence[str]:
        """What `:` proposes."""
        return [*BY_NAME, *(node.address for node in self.fleet.nodes), "quit"]

    def folder(self) -> Path:
        """Return where exports and downloads go."""
        return self._folder

    # -- Life ----------------------------------------------------------------------------------

    async def on_mount(self) -> None:
        """Show the first screen and begin to ask."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            # By default they would end the process and leave the terminal as the screen needs it.
            asyncio.get_running_loop().add_signal_handler(number, self.exit)
        self.jump(self._first)
        if self._playback is None:
            self.run_worker(self._poll(), group="poll")
        else:
            self.fleet = self._playback.fleet
        self.set_interval(self.target.tick_seconds, self._tick)

    async def _poll(self) -> None:
        async with self._poller as poller:
            await poller.run()

    def on_answered(self, event: Answered) -> None:
        """Take an answer in. Drawing waits for the tick, but for the first answers of all nodes."""
        self.fleet = model.observe(self.fleet, event.answer)
        if self._recorder is not None:
            self._recorder.add(event.answer)
        if self.fleet.is_heard and not self._is_painted_complete:
            self._is_painted_complete = True
            self.paint()

    def _tick(self) -> None:
        if self._playback is None:
            self.fleet = replace(self.fleet, now=self.clock())
        else:
            self.fleet = self._playback.tick(self.target.tick_seconds)
        self.paint()

    def paint(self) -> None:
        """Draw the page on top, also beneath a question."""
        page = next((screen for screen in reversed(self.screen_stack) if isinstance(screen, Page)), None)
        if page is not None:
            page.paint()

    # -- Going ---------------------------------------------------------------------------------

    def jump(self, text: str) -> None:
        """Go where the words of `:` say: a screen, a node, `quit`, `series NAME KEY`, `latency NODE`,
        `sql NODE SNAPSHOT`, `playbooks runs`, `playbooks RUN`.
        """
        # A snapshot's file may have blanks in its name.
        words = text.strip().split(maxsplit=2)
        if not words:
            return
        name, rest = words[0].lower(), words[1:]
        if name in {"q", "quit", "exit"}:
            self.leave()
            return
        found = [known for known in BY_NAME if known.startswith(name)]
        if found:
            self._goto(found[0])
            self._go_deeper(found[0], rest)
        elif any(node.address == words[0] for node in self.fleet.nodes):
            self._goto("fleet")
            self.push_screen(NodePage(words[0]))
        else:
            screens = ", ".join(BY_NAME)
            say(self, f'"{text}" is no screen and no node; there are {screens}')

    def _go_deeper(self, name: str, rest: Sequence[str]) -> None:
        if name == "series" and rest:
            self.push_screen(KeysPage(rest[0]))
            if len(rest) > 1 and rest[1].isdigit():
                self.push_screen(KeyPage(rest[0], int(rest[1])))
        if name == "playbooks" and rest:
            self.push_screen(RunsPage() if rest[0] == "runs" else RunPage(rest[0]))
        page = self._pages[name]
        if isinstance(page, LatencyPage) and rest and rest[0] in self.target.nodes:
            page.address = rest[0]
        if isinstance(page, SqlPage) and rest and rest[0] in self.target.nodes:
            page.turn_to(Place(rest[0], "".join(rest[1:])))

    def _goto(self, name: str) -> None:
        """Show a screen of the catalogue; what was opened from another one is closed."""
        while len(self.screen_stack) > 2:
            self.pop_screen()
        if name not in self._pages:
            self._pages[name] = BY_NAME[name].make()
            self.install_screen(self._pages[name], name)
        if self.screen is self._pages[name]:
            return
        if len(self.screen_stack) > 1:
            self.switch_screen(name)
        else:
            self.push_screen(name)

    def action_goto(self, name: str) -> None:
        """Show a screen of the catalogue."""
        self._goto(name)

    def action_explain(self) -> None:
        """Show the keys of this screen."""
        page = self.screen
        if not isinstance(page, Page):
            return
        keys: dict[str, list[str]] = {}
        for active in sorted(page.active_bindings.values(), key=lambda one: page.rank(one.node)):
            if active.enabled and not active.binding.system:
                keys.setdefault(active.binding.description, []).append(self.get_key_display(active.binding))
        listed = [(" ".join(names), what) for what, names in keys.items()]
        self.push_screen(Explain(page.NAME, listed, cleandoc(type(page).__doc__ or "")))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Return what the command palette offers."""
        for entry in SCREENS:
            yield SystemCommand(f"Go to {entry.name}", entry.help, lambda name=entry.name: self._goto(name))
        for name in themes.NAMES:
            yield SystemCommand(f"Theme {name}", "colours", lambda name=name: self._set_theme(name))
        yield SystemCommand("Keys", "the keys of this screen", self.action_explain)
        yield SystemCommand("Picture", "save this screen as SVG", self.action_picture)
        if isinstance(screen, Page):
            yield SystemCommand(
                "Copy command", "the karmactl command that shows the same", screen.action_copy_command
            )
        yield SystemCommand("Quit", "leave the dashboard", self.leave)

    def _set_theme(self, name: str) -> None:
        self.theme = name

    def action_turn_theme(self) -> None:
        """Use the next theme."""
        self.theme = themes.NAMES[(themes.NAMES.index(self.theme) + 1) % len(themes.NAMES)]

    def picture(self) -> str:
        """Return the screen as SVG, which loads nothing from anywhere: letters are the reader's own."""
        foreign = r"\s*@font-face \{.*?\}|\s*<!--.*?-->"
        return re.sub(foreign, "", self.export_screenshot(), flags=re.DOTALL)

    def action_picture(self) -> None:
        """Save the screen as SVG."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.fleet.now))
        path = self._folder / f"karma-{stamp}.svg"
        try:
            path.write_text(self.picture())
        except OSError as error:
            say(self, f"no picture: {error.strerror}", severity="error")
        else:
            say(self, f"picture in {path}")

    # -- Doing ---------------------------------------------------------------------------------

    def propose(self, action: Action) -> None:
        """Ask somebody to confirm an action, then do it."""
        if self.refuses(action.command(self.target)):
            return

        def answered(is_meant: bool | None) -> None:  # noqa: FBT001 - Textual calls it so
            if is_meant:
                self.run_worker(self._act(action))

        self.push_screen(Confirm.of(action, self.target), answered)

    def refuses(self, command: str) -> bool:
        """Say that nothing may be changed, if that is so; `command` is what karmactl would do."""
        if self.target.is_read_only:
            say(self, f"read-only: nothing is sent. The same: {command}", severity="warning")
        return self.target.is_read_only

    async def _act(self, action: Action) -> None:
        try:
            await self.source.act(action)
        except KarmaError as error:
            say(self, str(error), title=f"{action.title}: refused", severity="error")
        else:
            say(self, action.command(self.target), title=f"{action.title}: done")

    # -- Playbooks -----------------------------------------------------------------------------

    def play(self, live: Live) -> None:
        """Carry a run out, whatever screen is shown."""
        self.run_worker(self.player.carry_out(live), group="play")

    def on_played(self, event: Played) -> None:
        """Take in what happened; a run's question opens by itself, once."""
        event.change()
        live = self.player.live
        question = "" if live is None else live.question
        if question != self._question_shown:
            self._question_shown = question
            self.ask_operator()
        if self._is_leaving and not self.player.is_busy:
            self.exit()
        elif not self._is_drawing_late:
            self._is_drawing_late = True
            self.set_timer(PLAYED_SECONDS, self._draw_played)

    def _draw_played(self) -> None:
        self._is_drawing_late = False
        self.paint()

    def ask_operator(self) -> None:
        """Ask what the run under way asks."""
        live = self.player.live
        if live is None or not live.question:
            return

        def answered(is_approved: bool | None) -> None:  # noqa: FBT001 - Textual calls it so
            if is_approved is not None:
                self.player.answer(is_approved=is_approved)

        self.push_screen(Approve(live.question, self.target), answered)

    def stop_run(self) -> None:
        """Ask how the run under way is to stop."""
        self._ask_to_stop(is_leaving=False)

    async def action_quit(self) -> None:
        """Leave, but not a run that is under way without a question."""
        self.leave()

    def leave(self) -> None:
        """Leave, but not a run that is under way without a question."""
        if self.player.is_busy:
            self._ask_to_stop(is_leaving=True)
        else:
            self.exit()

    def _ask_to_stop(self, *, is_leaving: bool) -> None:
        run = self.player.run
        resume = self.target.command("playbook", "resume", run or "RUN")

        def answered(how: Stopping | None) -> None:
            if how is None:
                return
            self._is_leaving = is_leaving
            if how == "undo":
                self.player.undo()
            else:
                self.player.pause()

        self.push_screen(Stop(run, resume, is_leaving=is_leaving), answered)

    def _fatal_error(self) -> None:
        """End after a bug. Textual's own report shows local variables, and a token may be among them."""
        error = sys.exc_info()[1]
        self._exit_renderables.append(Text("error: " + describe_bug(error) if error else "error"))
        self._close_messages_no_wait()

    # -- Recordings ----------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys for recordings do nothing elsewhere."""
        del parameters
        return self._playback is not None if action in {"scrub", "play"} else True

    def action_scrub(self, direction: int, step: int) -> None:
        """Go back or on in a recording."""
        if self._playback is not None:
            self.fleet = self._playback.move(direction * REPLAY_STEPS_SECONDS[step])
            self.paint()

    def action_play(self) -> None:
        """Let a recording run, or stop it."""
        if self._playback is not None:
            self._playback.is_playing = not self._playback.is_playing
            self.paint()
