"""A plan: made in the background, read in full, and run once somebody has typed what it runs on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget

from karma_playbooks.wording import Line, Piece, consent, plain, plan_lines
from karma_tui import run_views
from karma_tui.model import Fleet
from karma_tui.player import Planned, Wish
from karma_tui.screens.asking import Asking, Told
from karma_tui.screens.modals import Confirm
from karma_tui.screens.runs import RunPage
from karma_tui.spelling import age
from karma_tui.widgets.plain import Plain, say
from karma_tui.widgets.reader import Reader, as_text

if TYPE_CHECKING:
    from karma_playbooks.cluster import NodeFacts


class PlanPage(Asking):
    """What a playbook would do now: every step with its commands and undo. Nothing was done yet."""

    NAME = "plan"
    AUTO_FOCUS = "#plan"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "run", "run it"),
        Binding("p", "plan", "plan again"),
        Binding("Y", "copy_command", "copy the command that runs it", show=False),
        Binding("y", "copy_plan", "copy the plan", show=False),
        Binding("e", "export('txt')", "export as text"),
        Binding("E", "export('json')", "export as JSON", show=False),
        Binding("escape", "back", "back", key_display="Esc"),
    ]

    def __init__(self, wish: Wish) -> None:
        super().__init__()
        self.wish = wish
        self._planned: Planned | None = None
        self._begun = 0.0
        self._heard: list[Line] = []
        self._is_planning = False

    def title_words(self) -> str:
        """Return whose plan it is."""
        return f"plan of {self.wish.book}"

    def body(self) -> Iterable[Widget]:
        """Return what is at stake, the plan, and what is going on."""
        yield Plain(id="stake")
        yield Reader(id="plan")
        yield Plain(id="info")

    def on_mount(self) -> None:
        """Plan."""
        super().on_mount()
        self.action_plan()

    def action_plan(self) -> None:
        """Ask all nodes and plan, again."""
        self._planned, self._heard, self._begun = None, [], time.monotonic()
        self._is_planning = True
        self.ask("plan", self.host.player.plan(self.wish, partial(self._hear, self._begun)))
        self.paint()

    def _hear(self, begun: float, facts: NodeFacts) -> None:
        if begun != self._begun:
            # Of a plan that was begun anew meanwhile.
            return
        seconds = time.monotonic() - self._begun
        problem = facts.error or facts.host_error
        self._heard.append(run_views.heard(facts.name, facts.role, facts.epoch, problem, seconds))
        self.paint()

    def on_told(self, event: Told) -> None:
        """Show the plan, or why there is none."""
        self._is_planning = False
        self._planned = event.response
        if event.problem:
            self._heard.append((Piece(event.problem, "bad"),))
        self.paint()

    def show(self, fleet: Fleet) -> None:
        """Draw the plan, or how far it has come."""
        del fleet
        planned = self._planned
        stake, info = self.query_one("#stake", Plain), self.query_one("#info", Plain)
        stake.display = planned is not None
        if planned is not None:
            stake.update(as_text(run_views.plan_summary(planned.plan)))
            self.query_one("#plan", Reader).show(plan_lines(planned.plan))
            info.update("nothing was done yet; r asks, then runs it")
            return
        self.query_one("#plan", Reader).show(self._heard)
        waited = age(time.monotonic() - self._begun)
        asking = f"asking all nodes and their hosts, {waited}"
        info.update(asking if self._is_planning else "there is no plan; p tries again, Esc goes back")

    def command(self) -> str:
        """Return the karmactl command that runs exactly this plan, or that plans."""
        if self._planned is not None:
            return self.host.target.command(*self._planned.words)
        params = [word for name, value in self.wish.given.items() for word in ("--param", f"{name}={value}")]
        return self.host.target.command("playbook", "plan", self.wish.book, *params)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A plan has no rows to filter."""
        return action != "ask_filter" and super().check_action(action, parameters)

    # -- Doing ---------------------------------------------------------------------------------

    def action_run(self) -> None:
        """Ask, then carry it out."""
        planned = self._planned
        if planned is None:
            say(self, "there is no plan yet")
            return
        if self.host.refuses(self.command()):
            return
        if self.host.player.is_busy:
            say(self, "a run is under way; o on the playbooks' screen shows it", severity="warning")
            return
        self.app.push_screen(
            Confirm(consent(planned.plan), self.command(), planned.plan.cluster, self.host.target),
            self._agreed,
        )

    def _agreed(self, is_meant: bool | None) -> None:  # noqa: FBT001 - Textual calls it so
        if is_meant and self._planned is not None:
            live = self.host.player.begin(self._planned)
            self.host.play(live)
            self.app.push_screen(RunPage(live=live))

    # -- Taking things along -------------------------------------------------------------------

    def action_copy_plan(self) -> None:
        """Copy the plan as text."""
        if self._planned is not None:
            self.app.copy_to_clipboard(self._text())
            say(self, "plan copied")

    def _text(self) -> str:
        return "" if self._planned is None else "\n".join(map(plain, plan_lines(self._planned.plan))) + "\n"

    def action_export(self, form: str) -> None:
        """Write the plan into a file of the working folder."""
        planned = self._planned
        if planned is None:
            say(self, "there is no plan yet")
            return
        stamp = datetime.fromtimestamp(self.host.fleet.now, UTC).strftime("%Y%m%dT%H%M%SZ")
        path = self.host.folder() / f"karma-plan-{planned.plan.playbook}-{stamp}.{form}"
        text = self._text() if form == "txt" else json.dumps(planned.plan.to_json(), indent=1) + "\n"
        try:
            path.write_text(text)
        except OSError as error:
            say(self, f"{path}: {error.strerror}", severity="error")
        else:
            say(self, f"plan in {path}")
