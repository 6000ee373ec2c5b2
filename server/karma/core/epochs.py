"""Epochs: which master wrote which part of the log.

An epoch is a number and the id of the node that opened it. A promotion opens the next number, and so
does a start after which LSNs that somebody saw may come again. Two nodes hold the same entries up to
an LSN if the same epochs, opened at the same LSNs, lead there; where that ends, their histories
diverge. Number 0 stands for what came before: a log of Karma 1.0, which knows no epochs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from karma.limits import MAX_LSN, MAX_NODE_ID_BYTES

MAX_EPOCH = 2**53
"""The largest number an epoch may have: exact even where JSON numbers become floats, and out of reach."""
MAX_EPOCH_STEP = 1_000
"""How far ahead of its own number a node believes another one. Each promotion takes one number, so a larger
step is a typing error, or an attack that would use the numbers up."""
MAX_EPOCHS = 256
"""Epochs remembered; older ones count as equal. A history travels in one reply and one small file."""


class Epoch(NamedTuple):
    """An epoch with the LSN of its first entry."""

    number: int
    node_id: str
    start_lsn: int

    @property
    def pair(self) -> tuple[int, str]:
        """What identifies the epoch."""
        return self.number, self.node_id


_BEFORE = Epoch(0, "", 0)


def implausible(number: int, own: int, *, is_forced: bool = False) -> str | None:
    """Return why an epoch number cannot follow a node's own, None when it can.

    `is_forced` allows any step, but nothing past `MAX_EPOCH`.
    """
    if number > MAX_EPOCH:
        return f"epoch {number} is past the last one there can be ({MAX_EPOCH})"
    if number > own + MAX_EPOCH_STEP and not is_forced:
        return f"epoch {number} is more than {MAX_EPOCH_STEP} ahead of this node's own ({own})"
    return None


@dataclass(frozen=True, slots=True)
class History:
    """The epochs of a log, oldest first; LSNs never fall along it, numbers rise."""

    epochs: tuple[Epoch, ...] = ()

    @classmethod
    def from_json(cls, found: Any) -> History:
        """Read what `to_json` gave. Raises ValueError when it is no history."""
        if not isinstance(found, list) or not all(isinstance(fields, dict) for fields in found):
            raise ValueError("epochs is not a list of objects")
        epochs: list[Epoch] = []
        for fields in found:
            number, node_id, start_lsn = (fields.get(name) for name in ("epoch", "node_id", "start_lsn"))
            if type(number) is not int or type(start_lsn) is not int or not isinstance(node_id, str):
                raise ValueError("an epoch lacks its number, node_id or start_lsn")
            if not 0 <= number <= MAX_EPOCH or not 0 <= start_lsn <= MAX_LSN:
                raise ValueError(f"epoch {number} from LSN {start_lsn} on is out of bounds")
            if len(node_id.encode()) > MAX_NODE_ID_BYTES:
                raise ValueError(f"the node_id of epoch {number} is longer than {MAX_NODE_ID_BYTES} bytes")
            epoch = Epoch(number, node_id, start_lsn)
            if epochs and (epoch.number <= epochs[-1].number or epoch.start_lsn < epochs[-1].start_lsn):
                raise ValueError(f"epoch {number} does not follow epoch {epochs[-1].number}")
            epochs.append(epoch)
        return cls(tuple(epochs[-MAX_EPOCHS:]))

    def to_json(self) -> list[dict[str, object]]:
        """Return the history as files and replies hold it."""
        return [
            {"epoch": epoch.number, "node_id": epoch.node_id, "start_lsn": epoch.start_lsn}
            for epoch in self.epochs
        ]

    @property
    def current(self) -> Epoch:
        """The newest epoch, number 0 in an empty history."""
        return self.epochs[-1] if self.epochs else _BEFORE

    def at(self, lsn: int) -> Epoch:
        """Return the epoch in which an entry was written."""
        for epoch in reversed(self.epochs):
            if epoch.start_lsn <= lsn:
                return epoch
        return _BEFORE

    def opened(self, number: int, node_id: str, last_lsn: int) -> History:
        """Return the history in which a node opens an epoch behind its last entry.

        Epochs that only a source had reached are not part of it.
        """
        reached = [epoch for epoch in self.epochs if epoch.start_lsn <= last_lsn]
        return History((*reached, Epoch(number, node_id, last_lsn + 1))[-MAX_EPOCHS:])


def diverged_at(mine: History, theirs: History, last_lsn: int) -> int | None:
    """Return the first LSN up to `last_lsn`, my last, at which two logs hold different entries.

    None: mine is the beginning of theirs, as far as the histories tell.
    """
    ours, others = _aligned(mine.epochs, theirs.epochs)
    for number, epoch in enumerate(ours):
        if number == len(others) or epoch != others[number]:
            starts = [epoch.start_lsn]
            if number < len(others):
                starts.append(others[number].start_lsn)
            point = min(starts)
            return point if point <= last_lsn else None
    if len(others) > len(ours):
        point = others[len(ours)].start_lsn
        return point if point <= last_lsn else None
    return None


def _aligned(mine: Sequence[Epoch], theirs: Sequence[Epoch]) -> tuple[Sequence[Epoch], Sequence[Epoch]]:
    """Leave out the oldest epochs of the one that remembers more: nothing contradicts them."""
    if not mine or not theirs:
        return mine, theirs
    first = max(mine[0].number, theirs[0].number)
    return _since(mine, first), _since(theirs, first)


def _since(epochs: Iterable[Epoch], number: int) -> list[Epoch]:
    return [epoch for epoch in epochs if epoch.number >= number]
