"""How far long work got: a bar on a terminal, a plain line every few seconds anywhere else."""

from __future__ import annotations

import time

from karmactl.diagnostics import Talk
from karmactl.output import in_seconds

BAR_SECONDS = 0.1
LINE_SECONDS = 5.0
BAR_WIDTH = 20


class Progress:
    """Tells how much of `total` is done, how fast it goes and how long it will take.

    `total` is None where nobody knows. `done_before` was there when this run began, so it says nothing about
    the speed.
    """

    def __init__(self, talk: Talk, what: str, unit: str, total: int | None, done_before: int = 0) -> None:
        self._talk = talk
        self._what = what
        self._unit = unit
        self._total = total
        self._before = done_before
        self._begun = self._shown = time.monotonic()

    def show(self, done: int) -> None:
        """Say that so much is done, if the last word is old enough."""
        now = time.monotonic()
        if now - self._shown < (BAR_SECONDS if self._talk.is_terminal else LINE_SECONDS):
            return
        self._shown = now
        text = self._line(done, now - self._begun)
        if self._talk.is_terminal:
            self._talk.progress(text)
        else:
            self._talk.say(text)

    def resumed(self, done: int) -> None:
        """Say that so much was there already when this run began."""
        self._before = done

    def end(self) -> None:
        """Take the bar away."""
        self._talk.progress("")

    def _line(self, done: int, elapsed_seconds: float) -> str:
        per_second = max(done - self._before, 0) / elapsed_seconds if elapsed_seconds else 0.0
        if not self._total:
            return f"{self._what}: {done:,} {self._unit}, {per_second:,.0f}/s"
        share = min(done / self._total, 1.0)
        filled = int(share * BAR_WIDTH)
        bar = f" [{'#' * filled}{'.' * (BAR_WIDTH - filled)}]" if self._talk.is_terminal else ""
        left = f", {in_seconds((self._total - done) / per_second)} left" if per_second else ""
        return (
            f"{self._what}:{bar} {share:.0%}, {done:,} of {self._total:,} {self._unit}, "
            f"{per_second:,.0f}/s{left}"
        )
