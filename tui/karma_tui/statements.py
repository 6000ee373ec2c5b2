"""SQL as the dashboard has it: what is asked, what came of it, what was typed before. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from karma_sql.confined import escaped
from karma_sql.values import is_number, plain
from karma_tui.tables import Column, Row, Table

LEAST_TEXT = 12
"""Letters to which a text may be cut so that more columns fit."""


class Place(NamedTuple):
    """What is asked, as `karmactl sql` takes it: the newest snapshots of the target's nodes, or others.

    `node` is the only node, `snapshot` one of its files. `is_now` replays the log on top of the newest ones.
    `recording` is a file that is asked instead of nodes.
    """

    node: str = ""
    snapshot: str = ""
    is_now: bool = False
    recording: Path | None = None

    def words(self) -> tuple[str, ...]:
        """Return the options that make `karmactl sql` ask the same."""
        words: tuple[str, ...] = ()
        if self.recording is not None:
            words += ("--from", str(self.recording))
        if self.node:
            words += ("--from", f"node:{self.node}")
        if self.snapshot:
            words += ("--at", self.snapshot)
        if self.is_now:
            words += ("--as-of", "now")
        return words

    def describe(self) -> str:
        """Return it in words, for the banner."""
        if self.recording is not None:
            return "the recording"
        what = self.snapshot or ("snapshots and log up to now" if self.is_now else "newest snapshots")
        return f"{what} of {self.node}" if self.node else what

    def example(self) -> str:
        """Return a statement to begin with."""
        if self.recording is not None:
            columns = "node, max(lag_ms) AS lag_ms"
            return f"SELECT {columns} FROM '{escaped(self.recording)}' GROUP BY node ORDER BY node;"  # noqa: S608
        return "SELECT series, sum(value) AS used FROM counters GROUP BY 1 ORDER BY 1;"


def command(place: Place, statement: str, *, is_plot: bool) -> tuple[str, ...]:
    """Return the words of `karmactl sql` that ask this; without a statement they open its shell."""
    plot = ("--plot",) if is_plot and statement else ()
    return ("sql", *place.words(), *plot, *((statement,) if statement else ()))


class Outcome(NamedTuple):
    """What came of a question: a result's columns (name, DuckDB type) and rows as DuckDB has them.

    `is_cut`: there are more rows. `plan` is what EXPLAIN told. `took_seconds` counts from the question on,
    `read_at` (unix seconds) is since when the sources were read. `names`: the tables and macros there are.
    `problem` and `advice` say why there is nothing.
    """

    columns: tuple[tuple[str, str], ...] = ()
    rows: Sequence[tuple[Any, ...]] = ()
    is_cut: bool = False
    plan: str = ""
    took_seconds: float = 0.0
    read_at: float = 0.0
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    problem: str = ""
    advice: str = ""


def table_of(outcome: Outcome) -> Table:
    """Return a result as a table; values as JSON has them."""
    columns = tuple(
        Column(name, name, "figure", rank=at)
        if is_number(kind)
        else Column(name, name, "datum", at, 60, LEAST_TEXT)
        for at, (name, kind) in enumerate(outcome.columns)
    )
    rows = tuple(Row(str(at), tuple(map(plain, row))) for at, row in enumerate(outcome.rows))
    note = "no rows" if columns else "" if outcome.problem or outcome.plan else "done"
    return Table(columns, rows, note)


class History:
    """What was typed before, oldest first, and the place in it; behind the last is what is being typed."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._entries = list(entries)
        self._at = len(self._entries)
        self._draft = ""

    def add(self, text: str) -> bool:
        """Remember a statement and go behind it; return whether it is another than the last one."""
        is_new = self._entries[-1:] != [text]
        if is_new:
            self._entries.append(text)
        self._at = len(self._entries)
        self._draft = ""
        return is_new

    def move(self, step: int, text: str) -> str | None:
        """Return the entry before (-1) or after (1) the present one, None at the end.

        `text` is what is in the editor: it is there again behind the last entry.
        """
        at = self._at + step
        if not 0 <= at <= len(self._entries):
            return None
        if self._at == len(self._entries):
            self._draft = text
        self._at = at
        return self._draft if at == len(self._entries) else self._entries[at]


def parsed_history(text: str) -> list[str]:
    """Return the entries of a history file, which the shells of karmactl write, too.

    The format is prompt_toolkit's: a line `# TIME` before each entry, a `+` before each of its lines.
    """
    found: list[str] = []
    lines: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.startswith("+"):
            lines.append(line[1:])
        elif lines:
            found.append("\n".join(lines))
            lines = []
    return found


def spelt_history(entry: str, time: str) -> str:
    """Return an entry as the file has it."""
    return f"\n# {time}\n" + "".join(f"+{line}\n" for line in entry.split("\n"))
