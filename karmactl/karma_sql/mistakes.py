"""Where a statement is wrong: DuckDB's message with its place, and a hint in words of these tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from karma_sql.errors import SqlError
from karma_sql.tables import MACROS_BY_NAME, TABLES

_MISSING = re.compile(
    r"(?:Table|Table Function|Scalar Function|Macro) with name \"?([A-Za-z_]\w*)\"? does not exist"
)
_COLUMN = re.compile(r'(?:column|Column) "?(?:\w+\.)?([A-Za-z_]\w*)"? (?:not found|does not exist)')
_NEAR = re.compile(r'at or near "(\w+)"')
_PROPOSAL = re.compile(r"^(?:Did you mean|Candidate bindings|Candidate functions).*$", re.MULTILINE)
_ACCESS = re.compile(r"operations are disabled by configuration|configuration has been locked")
_COMMENT = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|(--[^\n]*|/\*.*?\*/)", re.DOTALL)

KEYWORDS = (  # noqa: SIM905  a list of sixty strings reads worse
    "SELECT FROM WHERE GROUP BY ORDER LIMIT HAVING QUALIFY JOIN LEFT USING ON AS AND OR NOT IN IS NULL LIKE "
    "BETWEEN CASE WHEN THEN ELSE END DISTINCT UNION ALL WITH OVER PARTITION DESC ASC DATE INTERVAL EXPLAIN "
    "DESCRIBE SUMMARIZE PIVOT FILTER VALUES"
).split()
"""What is typed most; completion proposes these, too."""


def without_comments(sql: str) -> str:
    """Return a statement without its comments."""
    return _COMMENT.sub(lambda found: " " if found[1] else found[0], sql)


def missing_name(error: Exception) -> str | None:
    """Return the table or macro that DuckDB did not find, in small letters; None for another error."""
    found = _MISSING.search(str(error))
    return None if found is None else found[1].lower()


def described(error: Exception, sql: str, names: Iterable[str]) -> SqlError:
    """Return the error of a statement: what is wrong, the line with a caret below the place, a hint."""
    text = str(error)
    told, _, place = text.partition("\nLINE ")
    kind, _, problem = told.partition(" Error: ")
    problem = _PROPOSAL.sub("", problem or kind).strip()
    lines = " ".join(problem.split("\n")).strip()
    message = f"{kind.lower()} error: {lines}" if problem else text.splitlines()[0]
    if place:
        message += "\n\n" + "\n".join(f"  {line}" for line in f"LINE {place}".rstrip().splitlines())
    return SqlError("usage", message, _hint(text, sql, names))


def _hint(text: str, sql: str, names: Iterable[str]) -> str:
    if _ACCESS.search(text):
        return "SQL here reads its sources and touches nothing else; --unsafe lifts this"
    if "Out of Memory" in text or "OutOfMemory" in text:
        return "give it more with --memory-limit, or ask for less at once"
    known = list(names)
    missing = missing_name(Exception(text))
    if missing is not None:
        close = get_close_matches(missing, known, n=2, cutoff=0.6)
        is_macro = missing in MACROS_BY_NAME
        if is_macro:
            return f"it is called like a table: FROM {MACROS_BY_NAME[missing].call}"
        return (
            f"did you mean {' or '.join(close)}? There are {', '.join(known)}"
            if close
            else (f"there are {', '.join(known)}")
        )
    word = _NEAR.search(text)
    if word is not None:
        close = get_close_matches(word[1].upper(), KEYWORDS, n=1, cutoff=0.7)
        return f"did you mean {close[0]}?" if close else ""
    column = _COLUMN.search(text)
    if column is not None:
        used = [
            table for table in TABLES if re.search(rf"\b(?:from|join)\s+{table.name}\b", sql, re.IGNORECASE)
        ]
        columns = list(dict.fromkeys(name for table in used or TABLES for name, _ in table.columns))
        close = get_close_matches(column[1], columns, n=2, cutoff=0.6)
        if close:
            return f"did you mean {' or '.join(close)}?"
        return "; ".join(f"{table.name} has {', '.join(name for name, _ in table.columns)}" for table in used)
    return ""
