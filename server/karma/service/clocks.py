"""Both clocks of the machine, read a few times a second: the expiry clock advances, and a step is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from karma.core.expiry import STEP_SECONDS, ExpiryClock
from karma.service.log import Log


@dataclass(slots=True, repr=False)
class ClockWatch:
    """Feeds the expiry clock. `wall` returns unix seconds, `monotonic` seconds."""

    wall: Callable[[], float]
    monotonic: Callable[[], float]
    log: Log
    expiry: ExpiryClock = field(init=False)

    def __post_init__(self) -> None:
        self.expiry = ExpiryClock(self.wall(), self.monotonic())

    def start(self, newest_unix: int) -> None:
        """Let the expiry clock start where the data end, and warn when that is in the future."""
        self.tick()
        self.expiry.start(newest_unix)
        ahead_seconds = -self.expiry.behind_seconds
        if ahead_seconds > STEP_SECONDS:
            self.log.warning(
                "clock_behind_data",
                f"The clock is {ahead_seconds} s behind the newest time in the data: it was set back, or was "
                "ahead when they were written. Check the machine's time service",
                seconds=ahead_seconds,
            )

    def tick(self) -> None:
        """Read the clocks, and warn when the wall clock was set since the last time."""
        step = self.expiry.observe(self.wall(), self.monotonic())
        if step is not None:
            direction = "forward" if step > 0 else "back"
            self.log.warning(
                "clock_step",
                f"The clock was set {direction} by {abs(step):.0f} s, or the machine was suspended. Pauses, "
                "timeouts and the memory of retries are not affected; new writes get the day of the new "
                "time. Check the machine's time service",
                seconds=round(step, 3),
            )
