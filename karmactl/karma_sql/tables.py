"""The tables and macros that statements find, as data: help, completion and the loader read this.

With several snapshots at once `counters`, `totals` and `series` begin with a column `snapshot`, and so does
what the macros return.
"""

from __future__ import annotations

from typing import NamedTuple


class Table(NamedTuple):
    """A table: its columns (name, type) and a line about it."""

    name: str
    columns: tuple[tuple[str, str], ...]
    help: str


def _columns(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, kind) for name, _, kind in (part.strip().partition(" ") for part in text.split(",")))


TABLES: tuple[Table, ...] = (
    Table(
        "counters",
        _columns("series VARCHAR, key UBIGINT, day DATE, value UBIGINT"),
        "every bucket",
    ),
    Table(
        "totals",
        _columns("series VARCHAR, key UBIGINT, total UBIGINT, buckets UBIGINT"),
        "every key with what it holds; keys that hold nothing, too",
    ),
    Table(
        "series",
        _columns(
            "series VARCHAR, keys BIGINT, buckets HUGEINT, total HUGEINT, first_day DATE, last_day DATE"
        ),
        "every series",
    ),
    Table(
        "snapshots",
        _columns(
            "source VARCHAR, series VARCHAR, file VARCHAR, taken TIMESTAMP, bytes UBIGINT, last_lsn UBIGINT, "
            "crc32 VARCHAR, used BOOLEAN, problem VARCHAR"
        ),
        "every snapshot file; `used` says which ones counters shows",
    ),
    Table(
        "wal",
        _columns(
            "source VARCHAR, lsn UBIGINT, ts TIMESTAMP, op VARCHAR, series VARCHAR, key UBIGINT, day DATE, "
            "value UBIGINT, to_day DATE, item BIGINT, stream_id VARCHAR, chunk_seq UBIGINT, "
            "idempotency_key VARCHAR"
        ),
        "the log, a row for each bucket or key that an entry names",
    ),
    Table(
        "entries",
        _columns(
            "source VARCHAR, lsn UBIGINT, ts TIMESTAMP, op VARCHAR, series VARCHAR, key UBIGINT, day DATE, "
            "value UBIGINT, to_day DATE, items UBIGINT[][], keys UBIGINT[], stream_id VARCHAR, "
            "chunk_seq UBIGINT, idempotency_key VARCHAR"
        ),
        "the log, a row for each entry",
    ),
    Table(
        "idempotency",
        _columns(
            "source VARCHAR, key VARCHAR, operation VARCHAR, fingerprint VARCHAR, response JSON, "
            "created TIMESTAMP"
        ),
        "remembered idempotency keys",
    ),
    Table(
        "ingest_streams",
        _columns(
            "source VARCHAR, stream_id VARCHAR, mode VARCHAR, series VARCHAR, status VARCHAR, "
            "last_chunk_seq UBIGINT, committed TIMESTAMP"
        ),
        "imports, open and committed",
    ),
)
BY_NAME = {table.name: table for table in TABLES}


class Macro(NamedTuple):
    """A macro that is called like a table. `{s}` in its SQL is the column `snapshot` where there is one."""

    name: str
    arguments: str
    help: str
    needs: str
    sql: str

    @property
    def call(self) -> str:
        """How it is called."""
        return f"{self.name}({self.arguments.replace(' := NULL', '').replace(' :=', ' =')})"


def _by(period: str, unit: str) -> Macro:
    # By aliases: `series` alone would be the parameter's own name in some positions.
    return Macro(
        f"by_{period}",
        "name := NULL",
        f"what each series used {unit}, of one series if named",
        "counters",
        f"SELECT {{s}}series, date_trunc('{period}', day)::DATE AS {period}, sum(value) AS value, "
        "count(DISTINCT key) AS keys FROM counters WHERE name IS NULL OR series = name "
        "GROUP BY ALL ORDER BY ALL",
    )


_WEEKDAYS = ", ".join(
    f"coalesce(sum(value) FILTER (isodow(day) = {number}), 0) AS {name}"
    for number, name in enumerate(("mon", "tue", "wed", "thu", "fri", "sat", "sun"), 1)
)

MACROS: tuple[Macro, ...] = (
    _by("day", "day by day"),
    _by("week", "week by week (from Monday)"),
    _by("month", "month by month"),
    Macro(
        "top_keys",
        "n := 10, name := NULL",
        "the n keys of each series that used most",
        "totals",
        "SELECT {s}series, row_number() OVER w AS rank, key, total FROM totals "
        "WHERE total > 0 AND (name IS NULL OR series = name) "
        "WINDOW w AS (PARTITION BY {s}series ORDER BY total DESC, key) QUALIFY rank <= n ORDER BY ALL",
    ),
    Macro(
        "growth",
        "name := NULL",
        "each month beside the one before it",
        "counters",
        "SELECT {s}series, month, value, lag(value) OVER w AS before, value - before AS change, "
        "round(100 * (value - before) / before, 1) AS percent FROM (SELECT {s}series, "
        "date_trunc('month', day)::DATE AS month, sum(value) AS value FROM counters "
        "WHERE name IS NULL OR series = name GROUP BY ALL) "
        "WINDOW w AS (PARTITION BY {s}series ORDER BY month) ORDER BY ALL",
    ),
    Macro(
        "heatmap",
        "name := NULL",
        "what was used on each weekday, week by week",
        "counters",
        f"SELECT {{s}}series, date_trunc('week', day)::DATE AS week, {_WEEKDAYS} FROM counters "
        "WHERE name IS NULL OR series = name GROUP BY ALL ORDER BY ALL",
    ),
)
MACROS_BY_NAME = {macro.name: macro for macro in MACROS}


def diff_sql(by: str) -> str:
    """Return the query of what changed between two snapshots, parameters $a and $b, by `series`, `key` or
    `day`.
    """
    groups = {"series": "series", "key": "series, key", "day": "series, key, day"}[by]
    return (
        f"SELECT {groups}, before, after, after - before AS change FROM (SELECT {groups}, "
        "coalesce(sum(value) FILTER (snapshot = $a), 0) AS before, "
        "coalesce(sum(value) FILTER (snapshot = $b), 0) AS after FROM counters GROUP BY ALL) "
        "WHERE before <> after ORDER BY ALL"
    )
