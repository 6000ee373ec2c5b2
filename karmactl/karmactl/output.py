"""The sole writer of stdout: data as a table, JSON, JSON lines or CSV.

JSON is one object for a thing and an array of objects for a list, with no wrapper. JSON lines and CSV are
written row by row, so an endless list streams. A table is fitted to the terminal, and untruncated and
uncoloured anywhere else.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TextIO

from karma.protocol.texts import spelled_out, spelled_out_json
from karmactl.diagnostics import harmless, suggestion, usage
from karmactl.table.entries import Column, Shape

Row = Mapping[str, Any]
NUMERIC = frozenset({"number", "bytes", "seconds", "ms", "us", "percent", "duration"})
_GAP = "  "
_NARROWEST = 8
"""Text columns shrink no further, nor below half. A table that does not fit then has a line a field."""


class Paper(NamedTuple):
    """What text is laid out on. `width` is None where nothing limits it."""

    width: int | None
    is_coloured: bool

    def styled(self, text: str, style: str) -> str:
        """Return a text in an ANSI style such as "1" (bold) where colours are on."""
        return f"\x1b[{style}m{text}\x1b[0m" if self.is_coloured and style else text


class Shown(NamedTuple):
    """Data with a text of its own in place of the generic table: `text(paper)` returns its lines."""

    data: Any
    text: Callable[[Paper], Iterable[str]]


def said(text: str, data: Row) -> Shown:
    """Return an object that reads as one line, such as the answer `17` or `pong`."""
    return Shown(data, lambda _: [spelled_out(text)])


class Output:
    """Writes what commands return. `form` is table, json, jsonl or csv; `fields` are those asked for."""

    def __init__(self, stream: TextIO, form: str, fields: Sequence[str], paper: Paper) -> None:
        self.form = form
        self.paper = paper
        self._stream = stream
        self._fields = tuple(fields)

    def show(self, data: Any, shape: Shape) -> None:
        """Write one answer: a mapping, an iterable of mappings, a text, or a `Shown`. None writes nothing."""
        if data is None:
            return
        text = None
        if isinstance(data, Shown):
            data, text = data.data, data.text
        if isinstance(data, str):
            self.write(data if data.endswith("\n") else data + "\n")
        elif self.form == "table" and text is not None and not self._fields:
            self.lines(text(self.paper))
        elif isinstance(data, Mapping):
            self._object(data, shape)
        else:
            self._list(data, shape)

    def lines(self, lines: Iterable[str]) -> None:
        """Write lines of text."""
        for line in lines:
            self.write(line + "\n")

    def write(self, text: str) -> None:
        """Write text: as it is into a pipe, and without what steers it to a terminal. All output goes by."""
        is_terminal = self.paper.width is not None
        self._stream.write(harmless(text, with_styles=self.paper.is_coloured) if is_terminal else text)

    def clear(self) -> None:
        """Empty the terminal's screen, for what is printed again and again."""
        self._stream.write("\x1b[H\x1b[2J\x1b[3J")

    def flush(self) -> None:
        """Hand everything to the reader. Raises BrokenPipeError when there is none any more."""
        self._stream.flush()

    # -- One object ----------------------------------------------------------------------------

    def _object(self, data: Row, shape: Shape) -> None:
        data = self._chosen(data, ())
        if self.form == "json":
            self.write(as_json(data, indent=2) + "\n")
        elif self.form == "jsonl":
            self.write(as_json(data) + "\n")
        else:
            flat = dict(flatten(data))
            if self.form == "csv":
                self._csv_row(flat)
                self._csv_row(flat.values())
            else:
                kinds = {column.name: column.kind for column in shape.columns}
                self.lines(record(flat, kinds, self.paper))

    # -- A list --------------------------------------------------------------------------------

    def _list(self, rows: Iterable[Row], shape: Shape) -> None:
        known = [column.name for column in shape.columns]
        if self.form == "table":
            self._table(list(rows), shape)
        elif self.form == "json":
            # Row by row, so that a long list need not fit into memory.
            before = "[\n"
            for row in rows:
                self.write(before + as_json(self._chosen(row, known)))
                before = ",\n"
            self.write("\n]\n" if before == ",\n" else "[]\n")
        elif self.form == "jsonl":
            for row in rows:
                self.write(as_json(self._chosen(row, known)) + "\n")
                self.flush()
        else:
            names: Sequence[str] = self._fields or known
            if names:
                self._csv_row(names)
            for row in rows:
                if not names:
                    names = list(row)
                    self._csv_row(names)
                checked = self._chosen(row, known)
                self._csv_row(checked.get(name) for name in names)
                self.flush()

    def _table(self, rows: Sequence[Row], shape: Shape) -> None:
        kinds = {column.name: column.kind for column in shape.columns}
        names = self._fields or tuple(kinds) or tuple(dict.fromkeys(name for row in rows for name in row))
        for row in rows:
            self._chosen(row, kinds)
        self.lines(table(rows, [Column(name, kinds.get(name, "text")) for name in names], self.paper))

    # -- Parts ---------------------------------------------------------------------------------

    def _chosen(self, row: Row, known: Iterable[str]) -> Row:
        """The fields asked for, of one object. Raises CtlError for a field that it cannot have."""
        if not self._fields:
            return row
        have = {**dict.fromkeys(known), **row}
        for name in self._fields:
            if name not in have:
                proposal = suggestion(name, have)
                raise usage(f'there is no field "{name}"', f"{proposal} there are {', '.join(have)}".strip())
        return {name: have[name] for name in self._fields}

    def _csv_row(self, values: Iterable[Any]) -> None:
        cells = map(_csv_cell, values)
        if self.paper.width is not None:
            # Here a line break within a cell is one on the screen, too.
            cells = map(spelled_out, cells)
        self.write(",".join(cells) + "\n")


def as_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON that no terminal acts on."""
    return spelled_out_json(json.dumps(value, ensure_ascii=False, indent=indent))


def _csv_cell(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else as_json(value)
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


def flatten(data: Row, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Return the fields of an object, those of objects in it with dots: `latency.p50_us`."""
    for name, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


# -- Text ------------------------------------------------------------------------------------------------


def width_of(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def shortened(text: str, width: int) -> str:
    """Return a text that takes at most `width` columns, its end replaced by an ellipsis if need be."""
    if width_of(text) <= width:
        return text
    while text and width_of(text) > width - 1:
        text = text[:-1]
    return text + "…"


def spelt(value: Any, kind: str) -> str:
    """Return a value as a table spells it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return spelled_out(value)
    if isinstance(value, Mapping | list | tuple):
        return spelled_out(as_json(value))
    return _SPELLINGS.get(kind, _number)(value)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}".rstrip("0").rstrip(".")


def in_bytes(value: float) -> str:
    """Return bytes as `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def in_seconds(value: float) -> str:
    """Return seconds as `4.2 s`, `3 m 20 s`, `5 h 3 m` or `2 d 4 h`."""
    if value < 60:
        return f"{value:.1f} s"
    minutes = int(value) // 60
    if minutes < 60:
        return f"{minutes} m {int(value) % 60} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} m" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def in_duration(ms: float) -> str:
    """Return milliseconds as `40 ms`, or from a second on as `in_seconds` does."""
    return in_seconds(ms / 1000) if ms >= 1000 else f"{_number(ms)} ms"


def at_time(unix_seconds: float) -> str:
    """Return a moment as `2026-05-05 12:00:00Z`, "-" for 0, which stands for never."""
    if not unix_seconds:
        return "-"
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


_SPELLINGS: dict[str, Callable[[Any], str]] = {
    "bytes": in_bytes,
    "seconds": in_seconds,
    "ms": lambda value: f"{_number(value)} ms",
    "us": lambda value: f"{_number(value)} µs",
    "duration": in_duration,
    "percent": lambda value: f"{value:.1f} %",
    "time": at_time,
}

_STATE_STYLES = {
    **dict.fromkeys(("ok", "healthy", "pong", "master", "allowed", "SUCCEEDED"), "32"),
    **dict.fromkeys(
        ("warning", "degraded", "lagging", "paused", "fenced", "unknown", "RETRYING", "CANCELLED"), "33"
    ),
    **dict.fromkeys(
        ("error", "critical", "unreachable", "storage_error", "split brain", "refused", "diverged", "FAILED"),
        "31",
    ),
}
"""Colours of the words in columns of kind `state`."""


def state_style(word: str) -> str:
    """Return the ANSI style of a state's word, "" for one that is neither good nor bad."""
    return _STATE_STYLES.get(word, "")


def table(rows: Sequence[Row], shown: Sequence[Column], paper: Paper) -> Iterator[str]:
    """Return the lines of an aligned table with a heading."""
    names = [spelled_out(column.name) for column in shown]
    cells = [[spelt(row.get(column.name), column.kind) for column in shown] for row in rows]
    widths = [max(width_of(name), *(width_of(row[at]) for row in cells), 0) for at, name in enumerate(names)]
    fitted = _fitted(widths, shown, paper.width)
    if fitted is None:
        for number, row in enumerate(rows):
            if number:
                yield ""
            named = {column.name: row.get(column.name) for column in shown}
            yield from record(named, {column.name: column.kind for column in shown}, paper)
        return
    yield paper.styled(_line(names, shown, fitted, Paper(None, False)), "1")
    for row_cells in cells:
        yield _line(row_cells, shown, fitted, paper)


def chosen_line(row: Row, fields: str) -> str:
    """Return the fields asked for of one row, for text that has no end to be aligned to. Raises CtlError."""
    names = [name.strip() for name in fields.split(",")]
    unknown = [name for name in names if name not in row]
    if unknown:
        raise usage(f'there is no field "{unknown[0]}"', f"there are {', '.join(row)}")
    return "  ".join(spelt(row[name], "number") for name in names)


def _fitted(widths: Sequence[int], shown: Sequence[Column], limit: int | None) -> list[int] | None:
    """The widths of columns that fit, numbers never cut; None if there are none."""
    fitted = list(widths)
    if limit is None:
        return fitted
    floors = {
        at: max(_NARROWEST, widths[at] // 2)
        for at, column in enumerate(shown)
        if column.kind not in NUMERIC | {"time", "state"}
    }
    room = limit - len(_GAP) * (len(fitted) - 1)
    while sum(fitted) > room:
        widest = max(
            (at for at, least in floors.items() if fitted[at] > least), key=fitted.__getitem__, default=None
        )
        if widest is None:
            return None
        # Down to the next widest at once would be faster; tables have a handful of columns.
        fitted[widest] -= 1
    return fitted


def _line(cells: Sequence[str], shown: Sequence[Column], widths: Sequence[int], paper: Paper) -> str:
    parts = []
    for cell, column, width in zip(cells, shown, widths, strict=True):
        text = shortened(cell, width)
        padding = " " * (width - width_of(text))
        if column.kind == "state":
            text = paper.styled(text, state_style(cell))
        parts.append(padding + text if column.kind in NUMERIC else text + padding)
    return _GAP.join(parts).rstrip()


def record(data: Row, kinds: Mapping[str, str], paper: Paper) -> Iterator[str]:
    """Return the lines of one object, a field each; a long value goes on below itself."""
    data = {spelled_out(name): value for name, value in data.items()}
    names_width = max(map(width_of, data), default=0)
    room = None if paper.width is None else max(paper.width - names_width - len(_GAP), _NARROWEST)
    for name, value in data.items():
        kind = kinds.get(name) or _kind_of(name)
        text = spelt(value, kind)
        heading = paper.styled(name, "1") + " " * (names_width - width_of(name))
        for number, part in enumerate(_wrapped(text, room)):
            style = state_style(part) if kind == "state" else ""
            start = " " * names_width if number else heading
            yield (start + _GAP + paper.styled(part, style)).rstrip()


def _wrapped(text: str, width: int | None) -> Iterator[str]:
    if width is None:
        yield text
        return
    while width_of(text) > width:
        head = text[:width]
        while width_of(head) > width:
            head = head[:-1]
        yield head
        text = text[len(head) :]
    yield text


def _kind_of(name: str) -> str:
    """The kind that a field's name ends in: units are in names throughout the protocol."""
    endings = {"_bytes": "bytes", "_seconds": "seconds", "_ms": "ms", "_us": "us", "_unix": "time"}
    if name in {"bytes", "status", "role"}:
        return "bytes" if name == "bytes" else "state"
    return next((kind for ending, kind in endings.items() if name.endswith(ending)), "text")
