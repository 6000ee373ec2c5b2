"""The clock by which idempotency records age, and what steps of the wall clock do to it: nothing.

A retry that is no longer recognised counts twice. So the age of a record must not depend on a clock that an
operator, a time service or a resumed machine can set: eight days forward would forget a week of retries. This
clock starts at the newest time found in the data, because downtime ages nothing, and advances with the
monotonic clock. A follower takes its source's.
"""

from __future__ import annotations

from typing import Final

STEP_SECONDS: Final = 60
"""How far the wall clock may be off before it counts as set: time services slew less than that."""


def created_at(wall_unix: int, expiry_unix: int) -> int:
    """Return the time to note for a record: the wall clock's, unless it has left the expiry clock."""
    return wall_unix if abs(wall_unix - expiry_unix) <= STEP_SECONDS else expiry_unix


class ExpiryClock:
    """Told both clocks of the machine a few times a second; see the module. All values are seconds."""

    __slots__ = (
        "_monotonic",
        "_offset",
        "_wall",
        "_wall_offset",
        "last_step_seconds",
        "now_unix",
        "step_count",
    )

    def __init__(self, wall: float, monotonic: float) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._offset = self._wall_offset = wall - monotonic
        self.step_count = 0
        """How many times the wall clock was set by more than a minute."""
        self.last_step_seconds = 0.0
        """By how much it was set last; negative when it was set back."""
        self.now_unix = int(wall)
        """The time by which records age, in unix seconds. Every keyed write reads it."""

    def _set_offset(self, offset: float) -> None:
        self._offset = offset
        self.now_unix = int(self._monotonic + offset)

    @property
    def behind_seconds(self) -> int:
        """How far this clock is behind the wall clock."""
        return round(self._wall - self._monotonic - self._offset)

    def start(self, newest_unix: int) -> None:
        """Start at the newest time in the data (0 for none), or at the wall clock's if that is close."""
        is_close = 0 <= self._wall - newest_unix <= STEP_SECONDS
        begins = self._wall if is_close or not newest_unix else newest_unix
        self._set_offset(begins - self._monotonic)

    def follow(self, source_unix: int) -> None:
        """Be as far as the source's expiry clock."""
        self._set_offset(source_unix - self._monotonic)

    def observe(self, wall: float, monotonic: float) -> float | None:
        """Advance to a reading of both clocks; return by how much the wall clock was set since, if it was."""
        self._wall, self._monotonic = wall, monotonic
        self._set_offset(self._offset)
        step = wall - monotonic - self._wall_offset
        if abs(step) <= STEP_SECONDS:
            return None
        self._wall_offset += step
        self.step_count += 1
        self.last_step_seconds = round(step, 3)
        return step
