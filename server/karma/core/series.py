"""One series: its counters by key, and deletions that are not applied to all of them yet.

A deletion that concerns every key (a range of days, a reset, a compact) takes seconds for millions
of them. It is only noted at first and hides what it deletes from every read. Two things apply it for
good: a write, to the one key that it is about to change, and a sweep, to the rest in small steps
between the passes of the server. Applying a deletion twice changes nothing, so the sweep keeps no
record of where it was; what a write made since is kept in `Deletion.settled`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import orjson

from karma.core import buckets
from karma.core.buckets import Counter
from karma.core.key_view import KeyView
from karma.limits import CHORE_KEYS, REBUILT_KEYS, U64_MAX

GONE: Final = -1
"""What no counter is: the default for finding out whether a key is there."""


@dataclass(slots=True)
class Deletion:
    """The buckets of first <= day <= last, of every key; with `compacts` also the keys left without any."""

    first: int
    last: int
    compacts: bool
    end: int = 0
    """How many of the series' keys there were: those behind came later."""
    settled: set[int] = field(default_factory=set)
    """Keys that writes have applied it to, or made since."""

    def applied_to(self, counter: Counter) -> Counter | None:
        """Return what it leaves of a counter, None for nothing at all. The one given is never altered."""
        if self.first <= self.last:
            counter = buckets.without(counter, self.first, self.last)
        return None if self.compacts and not buckets.total(counter) else counter


def everything() -> Deletion:
    """Return the deletion of every bucket; keys stay known."""
    return Deletion(0, U64_MAX, compacts=False)


def compaction() -> Deletion:
    """Return the deletion of keys without buckets, and of nothing else."""
    return Deletion(1, 0, compacts=True)


@dataclass(slots=True)
class _Sweep:
    """The application of the first `count` deletions to all keys, one after the other."""

    count: int
    end: int
    kept: array[int] | None
    """The keys left so far, where the deletions may remove any."""
    position: int = 0


class Series:
    """One series: its counters by key."""

    __slots__ = ("counters", "json_name", "keys", "name", "ordinal", "pending", "sweeping", "view")

    def __init__(self, name: str, counters: dict[int, Counter] | None = None, ordinal: int = 0) -> None:
        self.name = name
        self.ordinal = ordinal
        """Rises from each series of a store to the one created next; a dropped one leaves a gap."""
        self.json_name = orjson.dumps(name)
        """The name as the log's JSON spells it, made once instead of per entry."""
        self.counters: dict[int, Counter] = {} if counters is None else counters
        """Counters by key, without what `pending` would still change. Read by way of `find`."""
        self.keys = array("Q", self.counters)
        """Every key once, in the order of creation.

        Reads and sweeps in slices go by it: an iterator of the dict ends when a write changes its size, and a
        copy of three million keys takes 30 ms and more.
        """
        self.pending: tuple[Deletion, ...] = ()
        """Deletions that some keys still lack, oldest first."""
        self.sweeping: _Sweep | None = None
        self.view: KeyView | None = None
        """The keys in ascending order, while somebody pages through them."""

    # -- Reading -------------------------------------------------------------------------------

    @property
    def find(self) -> Callable[[int, Counter], Counter]:
        """Returns a key's counter, or the default for an unknown key: looked up once for many keys."""
        return self._find if self.pending else self.counters.get

    def _find(self, key: int, default: Counter) -> Counter:
        counter = self.counters.get(key)
        if counter is not None:
            counter = _seen(self.pending, key, counter)
        return default if counter is None else counter

    def slices(self, size: int) -> Iterator[tuple[Sequence[int], Sequence[Counter]]]:
        """Yield keys and their counters in slices: the keys of now, counters as when their slice is read."""
        parts = [(self.keys, 0, len(self.keys))]
        if self.sweeping is not None and self.sweeping.kept is not None:
            kept = self.sweeping.kept
            parts = [(kept, 0, len(kept)), (self.keys, self.sweeping.position, len(self.keys))]
        newest = self.keys
        values: Iterator[Counter] | None = None if self.pending else iter(self.counters.values())
        for keys, start, end in parts:
            for at in range(start, end, size):
                some = keys[at : min(at + size, end)]
                counters = (
                    self._next_values(values, some) if self.keys is newest and not self.pending else None
                )
                if counters is not None:
                    yield some, counters
                    continue
                values, find = None, self.find
                pairs = [(key, counter) for key in some if (counter := find(key, GONE)) != GONE]
                yield [key for key, _ in pairs], [counter for _, counter in pairs]

    def _next_values(self, values: Iterator[Counter] | None, keys: Sequence[int]) -> list[Counter] | None:
        """Return the next counters of the dict if they are those of these keys, None when it cannot be told.

        Three times as fast as looking each up, but the iterator ends when a key comes or goes.
        """
        if values is None:
            return None
        try:
            counters = list(islice(values, len(keys)))
        except RuntimeError:
            return None
        # An iterator does not see that as many keys went as came.
        return counters if counters and self.counters.get(keys[-1]) is counters[-1] else None

    def items(self) -> Iterator[tuple[int, Counter]]:
        """Yield every (key, counter)."""
        for keys, counters in self.slices(1 << 16):
            yield from zip(keys, counters, strict=True)

    # -- Deleting ------------------------------------------------------------------------------

    def delete(self, deletion: Deletion) -> None:
        """Note a deletion: from now on no read sees what it deletes."""
        deletion.end = len(self.keys)
        self.pending = (*self.pending, deletion)

    def settle_key(self, key: int, undo: list[tuple[Any, ...]]) -> None:
        """Apply what is pending to a key that is about to be written; a key deleted with it stays, empty."""
        if key in self.pending[-1].settled:
            return
        old = self.counters.get(key)
        lacking = [deletion for deletion in self.pending if key not in deletion.settled]
        undo.append((self._unsettle_key, key, old, lacking))
        if old is not None:
            new = _seen(lacking, key, old)
            self.counters[key] = 0 if new is None else new
        for deletion in lacking:
            deletion.settled.add(key)

    def _unsettle_key(self, key: int, old: Counter | None, lacking: list[Deletion]) -> None:
        if old is not None:
            self.counters[key] = old
        for deletion in lacking:
            deletion.settled.discard(key)

    def sweep(self, size: int) -> bool:
        """Apply pending deletions to the next keys, at most `size`; returns whether that changed any.

        Only what is in the log may be swept.
        """
        has_changed = False
        sweep = self.sweeping
        if sweep is None:
            sweep = self.sweeping = self._next_sweep()
        counters, deletions, kept = self.counters, self.pending[: sweep.count], sweep.kept
        stop = min(sweep.position + size, sweep.end)
        for key in self.keys[sweep.position : stop]:
            old = counters[key]
            new = _seen(deletions, key, old)
            if new is None:
                del counters[key]
                has_changed = True
                continue
            if new is not old:
                counters[key] = new
                has_changed = True
            if kept is not None:
                kept.append(key)
        sweep.position = stop
        if stop == sweep.end:
            self._end_sweep(sweep)
        return has_changed

    def _next_sweep(self) -> _Sweep:
        """Return a sweep for as many deletions as can be applied together.

        What was swept is looked at again by reads, with all of them: a compact would remove the keys that a
        later deletion left empty, but known.
        """
        count = 1
        while count < len(self.pending) and (
            self.pending[count].compacts or not self.pending[count - 1].compacts
        ):
            count += 1
        together = self.pending[:count]
        kept = array("Q") if any(deletion.compacts for deletion in together) else None
        return _Sweep(count, together[-1].end, kept)

    def _end_sweep(self, sweep: _Sweep) -> None:
        self.pending = self.pending[sweep.count :]
        self.sweeping = None
        if sweep.kept is None or len(sweep.kept) == sweep.end:
            return
        removed = sweep.end - len(sweep.kept)
        sweep.kept.extend(self.keys[sweep.end :])
        self.keys = sweep.kept
        for deletion in self.pending:
            deletion.end -= removed
        if self.view is not None and not self.view.shift(sweep.end, removed):
            self.view = None
        if removed > len(self.counters) <= REBUILT_KEYS:
            # The dict would keep the memory of all that it once held.
            self.counters = dict(self.counters)


def _seen(deletions: tuple[Deletion, ...] | list[Deletion], key: int, counter: Counter) -> Counter | None:
    """Return a key's counter as it is after deletions, None when they remove it."""
    for deletion in deletions:
        if key not in deletion.settled:
            left = deletion.applied_to(counter)
            if left is None:
                return None
            counter = left
    return counter


# -- Chores -------------------------------------------------------------------------------------------


def sweep_all(series: Series) -> bool:
    """Apply every deletion to every key; returns whether that changed anything."""
    has_changed = False
    while series.pending:
        has_changed |= series.sweep(CHORE_KEYS)
    return has_changed


def sweeping(series: Series) -> Iterator[None]:
    """Apply every deletion to every key, in steps."""
    while series.pending:
        series.sweep(CHORE_KEYS)
        yield


def releasing(counters: dict[int, Counter]) -> Iterator[None]:
    """Take a dict apart in steps: to free three million counters at once takes a tenth of a second."""
    while counters:
        for _ in range(min(len(counters), CHORE_KEYS)):
            counters.popitem()
        yield
