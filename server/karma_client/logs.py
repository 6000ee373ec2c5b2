"""Logs of several nodes or directories, merged: one row per epoch and LSN, naming who has it.

Entries are the same when their checksums are; without these, when their times and contents are: two
masters that both took the same increment have two entries, although they read alike.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from karma_client.days import dashed
from karma_client.errors import ReplicationGapError, advanced

RECENT_LSNS = 10_000
"""LSNs that are remembered after they were shown, to tell a late copy from another entry."""
LATE_SECONDS = 1.0
"""How long a live entry waits for the other nodes before it is given without them."""
PAGE_ENTRIES = 1000
SECRETIVE = frozenset(
    {"v", "op", "series", "fingerprint", "granularity", "idempotency_created_at_unix", "idempotency_today"}
)
"""Fields of an entry that its one line leaves out, or shows at its beginning."""


class Logged(NamedTuple):
    """A log entry as one node has it. `ts_ms` is unix milliseconds; Karma 1.0 has no time and no epoch."""

    lsn: int
    entry: Mapping[str, Any]
    ts_ms: int | None = None
    crc: str | None = None
    epoch: int | None = None

    def is_same(self, other: Logged) -> bool:
        """Return whether two nodes have the same entry here."""
        if self.crc is not None and other.crc is not None:
            return self.crc == other.crc
        is_same_time = None in (self.ts_ms, other.ts_ms) or self.ts_ms == other.ts_ms
        return is_same_time and self.entry == other.entry


class Page(NamedTuple):
    """What one place said: entries behind the last page, and the LSN up to which it has now told all."""

    entries: Sequence[Logged]
    reached_lsn: int


class Merged(NamedTuple):
    """One entry and the places that have it. `note` says what is odd about it, "" if nothing is."""

    logged: Logged
    places: tuple[str, ...]
    note: str

    def row(self) -> dict[str, Any]:
        """Return it as data."""
        lsn, entry, ts_ms, _, epoch = self.logged
        day = entry.get("bucket")
        items = entry.get("items", entry.get("keys"))
        return {
            "lsn": lsn,
            "epoch": epoch,
            "ts_ms": ts_ms,
            "op": entry.get("op"),
            "series": entry.get("series"),
            "key": entry.get("key"),
            "day": None if day is None else dashed(day),
            "value": entry.get("value"),
            "items": None if items is None else len(items),
            "nodes": list(self.places),
            "note": self.note or None,
            "entry": entry,
        }


@dataclass(slots=True)
class _Place:
    """How far one node or directory has told its log. `first_lsn` is None before its first page."""

    first_lsn: int | None = None
    reached_lsn: int = 0
    is_over: bool = False


@dataclass(slots=True)
class Merger:
    """Takes pages of several places in any order and gives merged entries by LSN."""

    places: dict[str, _Place] = field(default_factory=dict)
    is_odd: bool = False
    """Whether a gap or a difference was seen."""
    last_lsn: int | None = None
    """The last one given."""
    _waiting: dict[int, dict[str, Logged]] = field(default_factory=dict)
    _given: dict[int, list[Logged]] = field(default_factory=dict)
    _late_at_seconds: float | None = None

    def expect(self, name: str) -> None:
        """Wait for a place's word on every LSN from now on."""
        self.places[name] = _Place()

    def leave(self, name: str) -> None:
        """Wait no longer for a place, which said all or cannot be reached."""
        self.places[name].is_over = True

    def behind(self) -> str | None:
        """The place to ask next: the one that is furthest behind. None when none is left."""
        left = [name for name, place in self.places.items() if not place.is_over]
        return min(left, key=lambda name: self.places[name].reached_lsn, default=None)

    def add(self, name: str, page: Page) -> None:
        """Take a page."""
        place = self.places[name]
        place.is_over = False
        if place.first_lsn is None and page.entries:
            place.first_lsn = page.entries[0].lsn
        place.reached_lsn = page.reached_lsn
        for logged in page.entries:
            self._waiting.setdefault(logged.lsn, {})[name] = logged

    def ready(self, *, is_all: bool = False) -> Iterator[Merged]:
        """Give what every place had its say about, or with `is_all` whatever is there."""
        told = min((place.reached_lsn for place in self.places.values() if not place.is_over), default=None)
        for lsn in sorted(self._waiting):
            if not is_all and told is not None and lsn > told:
                break
            yield from self._give(lsn, self._waiting.pop(lsn))

    def due(self, now_seconds: float) -> Iterator[Merged]:
        """Give what every place had its say about, and what waited too long for those that are silent."""
        yield from self.ready()
        if not self._waiting:
            self._late_at_seconds = None
        elif self._late_at_seconds is None:
            self._late_at_seconds = now_seconds + LATE_SECONDS
        elif now_seconds >= self._late_at_seconds:
            yield from self.ready(is_all=True)
            self._late_at_seconds = None

    def _give(self, lsn: int, copies: Mapping[str, Logged]) -> Iterator[Merged]:
        given = self._given.setdefault(lsn, [])
        groups: list[tuple[Logged, list[str]]] = []
        for name, logged in ((name, copies[name]) for name in self.places if name in copies):
            for known, names in groups:
                if known.is_same(logged):
                    names.append(name)
                    break
            else:
                groups.append((logged, [name]))
        new = [group for group in groups if not any(known.is_same(group[0]) for known in given)]
        is_late = self.last_lsn is not None and lsn <= self.last_lsn
        notes = [] if is_late else self._gaps(lsn, copies)
        if len(new) + len(given) > 1:
            notes.append("differs")
        self.is_odd = self.is_odd or bool(new and notes)
        for logged, names in sorted(new, key=lambda group: group[0].epoch or 0):
            given.append(logged)
            yield Merged(logged, tuple(names), "; ".join(notes))
        if not is_late:
            self.last_lsn = lsn
        while len(self._given) > RECENT_LSNS:
            del self._given[next(iter(self._given))]

    def _gaps(self, lsn: int, copies: Mapping[str, Logged]) -> list[str]:
        notes = []
        if self.last_lsn is not None and lsn > self.last_lsn + 1:
            missing = f"{self.last_lsn + 1} to {lsn - 1}" if lsn > self.last_lsn + 2 else str(lsn - 1)
            notes.append(f"gap: {missing}")
        lacking = [
            name
            for name, place in self.places.items()
            if name not in copies and (place.first_lsn or lsn) < lsn <= place.reached_lsn
        ]
        return [*notes, f"missing on {', '.join(lacking)}"] if lacking else notes


def in_turn(
    pages: Mapping[str, Iterator[Page]], merger: Merger, failed: Callable[[str, Exception], None]
) -> Iterator[Merged]:
    """Merge places that come to an end, a page at a time, whoever is behind first.

    `failed` is told of a place that raised; the others go on.
    """
    for name in pages:
        merger.expect(name)
    while (behind := merger.behind()) is not None:
        try:
            page = next(pages[behind], None)
        except Exception as error:  # noqa: BLE001  what it is, the caller judges
            failed(behind, error)
            page = None
        if page is None:
            merger.leave(behind)
        else:
            merger.add(behind, page)
        yield from merger.ready()
    yield from merger.ready(is_all=True)


# -- Reading ----------------------------------------------------------------------------------------------

Ask = Callable[[str, Mapping[str, Any]], Awaitable[Any]]
"""Sends an operation with its fields to one node and returns the response."""


class LogReader:
    """Reads one node's log in pages, from an LSN or from where the log begins. `warn` is told what is odd.

    It awaits nothing but `ask`, so both clients can use it.
    """

    def __init__(self, ask: Ask, after_lsn: int | None, warn: Callable[[str], object]) -> None:
        self._ask = ask
        self._warn = warn
        self._after_lsn = after_lsn or 0
        self._may_skip = after_lsn is None
        self._epochs: list[tuple[int, int]] = []
        """First LSN and number of each epoch that the node knows, oldest first; none of a Karma 1.0."""

    async def read(self, *, wait_ms: int | None) -> tuple[Page, int]:
        """Return the next page and the node's last LSN. Raises KarmaError.

        The server holds its reply for `wait_ms` until there is something, if it can.
        """
        try:
            found = await self._page(wait_ms)
        except ReplicationGapError as error:
            if not self._may_skip:
                raise
            self._after_lsn = await self._first_lsn(error) - 1
            found = await self._page(wait_ms)
        self._may_skip = False
        if found["source_lsn"] < self._after_lsn:
            # A log that was cut, or rebuilt from another node's: what follows may be other entries.
            self._warn(f"its log went back to LSN {found['source_lsn']}")
            found["next_lsn"] = found["source_lsn"]
        elif found["entries"]:
            advanced(self._after_lsn, found["next_lsn"])
        self._after_lsn = found["next_lsn"]
        if "epoch" in found and (not self._epochs or self._epochs[-1][1] != found["epoch"]):
            epochs = (await self._ask("replication.status", {})).get("epochs") or ()
            self._epochs = [(one["start_lsn"], one["epoch"]) for one in epochs]
        entries = [
            Logged(one["lsn"], one["entry"], one.get("ts"), one.get("crc"), self._epoch_at(one["lsn"]))
            for one in found["entries"]
        ]
        return Page(entries, self._after_lsn), found["source_lsn"]

    def _epoch_at(self, lsn: int) -> int | None:
        """The epoch in which an entry was written; None where nobody tells."""
        at = bisect_right(self._epochs, lsn, key=lambda epoch: epoch[0])
        return self._epochs[at - 1][1] if at else None

    async def _page(self, wait_ms: int | None) -> dict[str, Any]:
        fields = {"after_lsn": self._after_lsn, "limit": PAGE_ENTRIES, "wait_ms": wait_ms}
        found: dict[str, Any] = await self._ask("replication.entries", fields)
        return found

    async def _first_lsn(self, error: ReplicationGapError) -> int:
        """Where the log begins: the refusal says it, and Karma 1.0's begins behind its last snapshot."""
        told = re.search(r"log starts at LSN (\d+)", error.message)
        if told is not None:
            return int(told[1])
        status = await self._ask("replication.status", {})
        return int(status.get("last_snapshot_lsn") or 0) + 1


# -- Filters ----------------------------------------------------------------------------------------------


class Filter(NamedTuple):
    """What to show. Empty or None is no condition; `ops` may have wildcards, as ``ingest.*``."""

    series: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    keys: frozenset[int] = frozenset()
    from_lsn: int | None = None
    to_lsn: int | None = None
    since_ms: float | None = None
    until_ms: float | None = None

    def takes(self, logged: Logged) -> bool:
        """Return whether an entry is to be shown. One without a time passes no bound on it."""
        entry = logged.entry
        return (
            (not self.series or entry.get("series") in self.series)
            and (not self.ops or any(fnmatchcase(str(entry.get("op")), op) for op in self.ops))
            and (not self.keys or not self.keys.isdisjoint(_keys(entry)))
            and (self.from_lsn is None or logged.lsn >= self.from_lsn)
            and (self.to_lsn is None or logged.lsn <= self.to_lsn)
            and (self.since_ms is None or (logged.ts_ms is not None and logged.ts_ms >= self.since_ms))
            and (self.until_ms is None or (logged.ts_ms is not None and logged.ts_ms <= self.until_ms))
        )


def _keys(entry: Mapping[str, Any]) -> Iterable[int]:
    if "key" in entry:
        return (entry["key"],)
    if "items" in entry:
        return (item[0] for item in entry["items"])
    keys: Iterable[int] = entry.get("keys", ())
    return keys


# -- Text -------------------------------------------------------------------------------------------------


def described(entry: Mapping[str, Any]) -> str:
    """Return the fields of an entry in one line, those of many items as a count."""
    return " ".join(
        _spelt(name, value) for name, value in entry.items() if name not in SECRETIVE and value is not None
    )


def _spelt(name: str, value: Any) -> str:
    if name in {"bucket", "before"}:
        return f"{'day' if name == 'bucket' else name}={dashed(value)}"
    if name == "items":
        return f"items={len(value)} sum={sum(item[2] for item in value)}"
    if name == "keys":
        return f"keys={len(value)}"
    if name == "range":
        return f"range={dashed(value['from'])}..{dashed(value['to'])}"
    return f"{name}={value}"


def clock(ts_ms: int | None) -> str:
    """Return a moment to the millisecond, "-" where it is not known."""
    if ts_ms is None:
        return "-"
    return datetime.fromtimestamp(ts_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"
