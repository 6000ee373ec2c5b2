"""What a repair would lose, counted from what can still be read."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from karma.storage.wal import Line

_INTERNAL = ("consume", "response", "fingerprint", "idempotency_created_at_unix", "idempotency_today")
"""Fields of an entry that no request has."""


@dataclass(slots=True)
class SeriesLoss:
    """What one series loses."""

    entries: int = 0
    keys: set[int] = field(default_factory=set)
    added: int = 0
    subtracted: int = 0


@dataclass(slots=True)
class Losses:
    """Entries that a repair takes out of the log and no snapshot holds."""

    entries: int = 0
    ops: Counter[str] = field(default_factory=Counter)
    series: dict[str, SeriesLoss] = field(default_factory=dict)
    lsns: list[tuple[int, int]] = field(default_factory=list)
    """Ranges (first, last) of the entries that can still be read."""

    def add(self, lsn: int, entry: Mapping[str, Any]) -> None:
        """Count one entry."""
        self.entries += 1
        self.ops[entry["op"]] += 1
        add_lsn(self.lsns, lsn)
        if isinstance(entry.get("series"), str):
            # An entry that this version does not know may have fields of another shape.
            with contextlib.suppress(LookupError, TypeError):
                _count(self.series.setdefault(entry["series"], SeriesLoss()), entry)

    def as_json(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        return {
            "entries": self.entries,
            "lsns": self.lsns,
            "ops": dict(self.ops),
            "series": {
                name: {
                    "entries": loss.entries,
                    "keys": len(loss.keys),
                    "added": loss.added,
                    "subtracted": loss.subtracted,
                }
                for name, loss in self.series.items()
            },
        }

    def sentences(self) -> Iterator[str]:
        """Yield the counts as text, one line each."""
        if not self.entries:
            return
        ops = ", ".join(f"{count} {op}" for op, count in self.ops.most_common())
        yield f"{many(self.entries, 'entry')} that can still be read, LSN {spell(self.lsns)}: {ops}"
        for name, loss in self.series.items():
            sums = f", +{loss.added}" if loss.added else ""
            sums += f", -{loss.subtracted}" if loss.subtracted else ""
            yield f'series "{name}": {many(loss.entries, "entry")}, {many(len(loss.keys), "key")}{sums}'


def count(lines: Iterable[Line]) -> Losses:
    """Count entries."""
    losses = Losses()
    for line in lines:
        losses.add(line.lsn, line.entry)
    return losses


def requests(lines: Iterable[Line]) -> Iterator[bytes]:
    """Yield entries as requests, one a line, each with the `lsn` that it had, which a server passes over."""
    for line in lines:
        fields = {name: value for name, value in line.entry.items() if name not in _INTERNAL}
        yield orjson.dumps({**fields, "v": 2, "lsn": line.lsn}) + b"\n"


def many(number: int, noun: str) -> str:
    """Return a number of things as text: `1 entry`, `2 entries`, `3 keys`."""
    plural = noun[:-1] + "ies" if noun.endswith("y") and noun != "key" else noun + "s"
    return f"{number} {noun if number == 1 else plural}"


def spell(ranges: Iterable[tuple[int, int]]) -> str:
    """Return LSN ranges as text: `3, 5 to 9`."""
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in ranges)


def add_lsn(ranges: list[tuple[int, int]], lsn: int) -> None:
    """Add an LSN to ranges (first, last); LSNs come rising."""
    if ranges and ranges[-1][1] == lsn - 1:
        ranges[-1] = (ranges[-1][0], lsn)
    else:
        ranges.append((lsn, lsn))


def missing_in(ranges: Iterable[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """Return the ranges of first..last that rising ranges leave out."""
    missing = []
    due = first
    for start, end in [*ranges, (last + 1, last + 1)]:
        if start > due:
            missing.append((due, start - 1))
        due = end + 1
    return missing


def _count(loss: SeriesLoss, entry: Mapping[str, Any]) -> None:
    loss.entries += 1
    items = entry.get("items")
    if isinstance(items, list):
        loss.keys.update(item[0] for item in items)
        if entry["op"] == "series.batch_add":
            loss.added += sum(item[2] for item in items)
        return
    loss.keys.update(entry.get("keys") or ([entry["key"]] if "key" in entry else []))
    if entry["op"] == "counter.increment":
        loss.added += entry["value"]
    elif entry["op"] == "counter.decrement":
        loss.subtracted += entry["value"]
