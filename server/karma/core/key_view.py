"""The keys of a series in ascending order, for paging through millions of them.

Sorting three million keys at once would take seconds. They are sorted in **runs** instead, one after the
other between passes of the server, and a page takes the smallest keys above its cursor from all of them.
Keys that were created since are found at the end of the series' own list of keys; keys that
are gone stay in their run until the view is dropped, and each page leaves them out.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from heapq import heapify, heappop, heapreplace

RUN_KEYS = 4_096
"""Keys sorted in one step: a millisecond or two."""
IDLE_TICKS = 60
"""Seconds without a page after which a view is dropped: it takes 8 bytes a key."""


class KeyView:
    """A series' keys in sorted runs. `keys` is the series' list, in the order of creation."""

    __slots__ = ("_covered", "_runs", "idle_ticks")

    def __init__(self) -> None:
        self._runs: list[array[int]] = []
        self._covered = 0
        """How many of the series' keys the runs hold."""
        self.idle_ticks = 0

    def catch_up(self, keys: array[int]) -> bool:
        """Sort one more run; returns whether that was needed."""
        if len(keys) - self._covered < RUN_KEYS:
            return False
        self._runs.append(array("Q", sorted(keys[self._covered : self._covered + RUN_KEYS])))
        self._covered += RUN_KEYS
        return True

    def shift(self, end: int, removed: int) -> bool:
        """Follow a series whose first `end` keys became fewer; False when the view cannot."""
        if self._covered < end:
            return False
        self._covered -= removed
        return True

    def above(self, keys: array[int], cursor: int, count: int) -> tuple[list[int], bool]:
        """Return up to `count` keys above a cursor, ascending, and whether these are all.

        The view must have caught up. A key that was removed and created again may be in two runs; it is
        returned once.
        """
        runs = [*self._runs, array("Q", sorted(keys[self._covered :]))]
        heads = [
            (run[at], number, at)
            for number, run in enumerate(runs)
            if (at := bisect_right(run, cursor)) < len(run)
        ]
        heapify(heads)
        ascending: list[int] = []
        while heads and len(ascending) < count:
            key, number, at = heads[0]
            if at + 1 < len(runs[number]):
                heapreplace(heads, (runs[number][at + 1], number, at + 1))
            else:
                heappop(heads)
            if not ascending or ascending[-1] != key:
                ascending.append(key)
        return ascending, not heads
