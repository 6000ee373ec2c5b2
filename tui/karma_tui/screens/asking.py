"""Pages that ask a node for what no tick brings."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, ClassVar

from textual.message import Message

from karma_client import KarmaError
from karma_tui.screens.page import Page


class Told(Message):
    """A question of this screen is answered, or `problem` says why not."""

    def __init__(self, what: str, response: Any = None, problem: str = "") -> None:
        super().__init__()
        self.what = what
        self.response = response
        self.problem = problem


class Asking(Page):
    """Asks in workers; answers come as `Told` messages. Of one kind of question the newest wins."""

    def question(self, op: str, **fields: Any) -> Awaitable[Any]:
        """Return a question to the node that data is read from."""
        return self.host.source.ask(self.host.fleet.reader, op, **fields)

    def ask(self, what: str, question: Awaitable[Any]) -> None:
        """Wait for an answer and post it."""
        self.run_worker(self._ask(what, question), exclusive=True, group=what)

    async def _ask(self, what: str, question: Awaitable[Any]) -> None:
        try:
            response = await question
        except (KarmaError, OSError) as error:
            self.post_message(Told(what, problem=str(error)))
        else:
            self.post_message(Told(what, response))


class Looking(Asking):
    """Looks when it comes to the front, and again and again while it is there."""

    LOOK_SECONDS: ClassVar[float] = 2.0

    def on_mount(self) -> None:
        """Look now and then."""
        super().on_mount()
        self.set_interval(self.LOOK_SECONDS, self._look_if_shown)

    def on_screen_resume(self) -> None:
        """Look."""
        super().on_screen_resume()
        self._look_if_shown()

    def _look_if_shown(self) -> None:
        if self.is_current:
            self.look()

    def look(self) -> None:
        """Ask for what is shown."""
        raise NotImplementedError
