"""Tables as values: columns, rows, sorting, filtering, fitting to a width, export. Pure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from karma_tui.spelling import spelt

Mood = Literal["", "good", "warn", "bad", "dim"]
"""How a row or a cell is meant; the theme decides on its colour."""


class Column(NamedTuple):
    """A column. The lowest `rank` is left out last when the terminal is narrow.

    Its text may be cut to `least` letters to make room for others, where that is not 0.
    """

    name: str
    title: str
    kind: str = "text"
    rank: int = 1
    widest: int = 60
    least: int = 0


class Row(NamedTuple):
    """A row: what it is about, its values by column, what it means."""

    key: str
    cells: tuple[Any, ...]
    mood: Mood = ""


class Table(NamedTuple):
    """An immutable table. `note` stands in for rows while there are none."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...] = ()
    note: str = ""

    def place_of(self, name: str) -> int:
        """Return the place of a column. Raises ValueError for an unknown one."""
        return [column.name for column in self.columns].index(name)


class Order(NamedTuple):
    """What a table is sorted by; None is the order in which it came."""

    column: str | None = None
    is_descending: bool = False


def arranged(table: Table, order: Order, wanted: str = "") -> Table:
    """Return the table with the rows that hold every word of `wanted`, in this order."""
    rows: Iterable[Row] = table.rows
    words = wanted.lower().split()
    if words:
        kinds = [column.kind for column in table.columns]
        rows = (row for row in rows if _holds(row, kinds, words))
    if order.column is not None:
        rows = _sorted(list(rows), table.place_of(order.column), is_descending=order.is_descending)
    return table._replace(rows=tuple(rows))


def _holds(row: Row, kinds: Sequence[str], words: Sequence[str]) -> bool:
    text = " ".join(spelt(value, kind) for value, kind in zip(row.cells, kinds, strict=True)).lower()
    # Digits are looked for with and without the separators that cells show.
    plain = text.replace(",", "")
    return all(word in text or word in plain for word in words)


def _sorted(rows: list[Row], at: int, *, is_descending: bool) -> list[Row]:
    """The rows by one cell; those without a value come last either way."""
    known = [row for row in rows if row.cells[at] is not None]
    unknown = [row for row in rows if row.cells[at] is None]
    rank: Callable[[Row], tuple[int, Any]] = lambda row: _rank(row.cells[at])  # noqa: E731
    return sorted(known, key=rank, reverse=is_descending) + unknown


def _rank(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, int | float) else (1, str(value).lower())


def fitted(table: Table, width: int, gap: int = 2) -> list[tuple[int, int]]:
    """Return (column, width) pairs of what fits, in order: first the lowest ranks, then as they stand.

    The first column is always there, cut to the width if it must be.
    """
    widths = [
        min(
            column.widest,
            max([len(column.title) + 1, *(len(spelt(row.cells[at], column.kind)) for row in table.rows)]),
        )
        for at, column in enumerate(table.columns)
    ]
    floors = [
        min(width, column.least) if column.least else width
        for width, column in zip(widths, table.columns, strict=True)
    ]
    by_rank = sorted(range(len(widths)), key=lambda at: (at != 0, table.columns[at].rank, at))
    chosen: list[int] = []
    room = width + gap
    for at in by_rank:
        if not chosen or floors[at] + gap <= room:
            chosen.append(at)
            room -= floors[at] + gap
    found = {at: min(floors[at], width) for at in sorted(chosen)}
    cut = []
    for at, floor in found.items():
        more = min(widths[at] - floor, max(room, 0))
        cut.append((at, floor + more))
        room -= more
    return cut


# -- Export -----------------------------------------------------------------------------------------------


def to_csv(table: Table) -> str:
    """Return all rows as CSV, raw values under the columns' names."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.name for column in table.columns])
    for row in table.rows:
        writer.writerow([_flat(value) for value in row.cells])
    return out.getvalue()


def _flat(value: Any) -> Any:
    """A cell of CSV: what is no text and no number becomes JSON."""
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list | dict) else value


def to_json(table: Table) -> str:
    """Return all rows as a JSON array of objects."""
    names = [column.name for column in table.columns]
    found = [dict(zip(names, row.cells, strict=True)) for row in table.rows]
    return json.dumps(found, ensure_ascii=False, indent=1) + "\n"
