"""What may stand where somebody types SQL: for the shell and the dashboard, without DuckDB."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from karma_sql.mistakes import KEYWORDS
from karma_sql.tables import TABLES

FUNCTIONS = (
    "count",
    "sum",
    "min",
    "max",
    "avg",
    "median",
    "quantile_cont",
    "date_trunc",
    "row_number",
    "lag",
)
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*(?:\n|$)|/\*.*?\*/", re.DOTALL)
_WORD = re.compile(r"[A-Za-z_]\w*$")


def is_open(text: str) -> bool:
    """Return whether a statement goes on below: it does not end with a semicolon, or a quote is open."""
    bare = _QUOTED.sub(lambda found: " " if found[0].startswith(("--", "/*")) else "x", text)
    return "'" in bare or '"' in bare or "/*" in bare or not bare.rstrip().endswith(";")


def words(names: Iterable[str]) -> list[str]:
    """Return what may stand outside of quotes: these names of tables and macros, then all other words."""
    columns = (name for table in TABLES for name, _ in table.columns)
    return list(dict.fromkeys([*names, *columns, "snapshot", *KEYWORDS, *FUNCTIONS]))


def proposals(
    text: str, names: Callable[[], Sequence[str]], series: Callable[[], Sequence[str]]
) -> Iterator[tuple[str, int]]:
    """Return (word, how many letters before the cursor it replaces) for the text before the cursor.

    Inside quotes that is a series with the closing quote, elsewhere one of `words(names())`.
    """
    bare = _QUOTED.sub("", text)
    if "'" in bare:
        begun = bare.rpartition("'")[2]
        found = (name.replace("'", "''") for name in series())
        yield from ((f"{name}'", len(begun)) for name in found if name.startswith(begun))
        return
    match = _WORD.search(text)
    if match is not None:
        begun = match[0]
        for name in words(names()):
            if name.lower().startswith(begun.lower()) and name != begun:
                yield name, len(begun)
