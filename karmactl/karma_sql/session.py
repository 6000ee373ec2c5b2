"""A DuckDB connection in which SQL reaches the sources and nothing else.

What keeps it so, from the outside in: DuckDB's access to files and the network is switched off but for the
session's scratch folder and the Parquet files that were named as sources, before any statement runs, and the
configuration is locked; statements that could write a file or change that (COPY, ATTACH, SET, …) are refused
by their kind. `unsafe` lifts both.

Statements run in a thread, so that the caller can be told of progress and Ctrl-C cancels a statement and not
the process.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from karma_sql import mistakes
from karma_sql.cache import Cache
from karma_sql.engine import duckdb
from karma_sql.errors import SqlError, check_installed
from karma_sql.loading import Loader
from karma_sql.sources import Asked, Source
from karma_sql.tables import MACROS, TABLES

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, Statement

T = TypeVar("T")

FETCH_ROWS = 5000
POLL_SECONDS = 0.1
EXPORTS = {
    "parquet": "FORMAT parquet",
    "csv": "FORMAT csv, HEADER",
    "jsonl": "FORMAT json",
    "json": "FORMAT json, ARRAY",
}
"""How DuckDB writes the formats that are no database."""

_HARMLESS = frozenset(
    {"SELECT", "CREATE", "DROP", "INSERT", "UPDATE", "DELETE", "ALTER", "TRANSACTION", "MULTI"}
)
"""What touches nothing but the session's own memory; `MULTI` is how PIVOT is parsed."""
_EXPLAIN = re.compile(r"\s*explain\b(\s+analyze\b)?(\s*\([^)]*\))?", re.IGNORECASE)
_ZONED = "TIMESTAMP WITH TIME ZONE"


class Column(NamedTuple):
    """A column of a result; `kind` is DuckDB's type."""

    name: str
    kind: str


class Result:
    """What a statement returns. Rows come in order and once, as tuples; they are not all held in memory."""

    def __init__(self, columns: Sequence[Column], rows: Iterator[tuple[Any, ...]]) -> None:
        self.columns = columns
        self.rows = rows


class Session:
    """One connection over sources. Not for several threads at once, but for `cancel`.

    `note` is told what a person should know, `progress` what is being done, every tenth of a second (with
    the share of the statement that is done, None where that is not known).
    """

    def __init__(
        self,
        sources: Sequence[Source],
        cache: Cache,
        asked: Asked = Asked(),  # noqa: B008  it cannot be changed
        *,
        memory_limit: str | None = None,
        threads: int | None = None,
        timeout_seconds: float | None = None,
        unsafe: bool = False,
        note: Callable[[str], object] = lambda _: None,
        progress: Callable[[str, float | None], object] = lambda _text, _share: None,
    ) -> None:
        self._cache = cache
        self._unsafe = unsafe
        self._timeout_seconds = timeout_seconds
        self._deadline = math.inf
        self._progress = progress
        self._doing = ""
        self._duckdb = _duckdb()
        self._connection = self._open(sources, memory_limit, threads)
        self._loader = Loader(self._connection, sources, asked, cache, note, self.doing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session and remove its scratch folder."""
        self._connection.close()
        self._cache.close()

    def _open(self, sources: Sequence[Source], memory_limit: str | None, threads: int | None) -> Any:
        config = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
        connection = self._duckdb.connect(config=config if not self._unsafe else {})
        settings = {
            "temp_directory": str(self._cache.scratch / "spill"),
            "allowed_directories": [str(self._cache.scratch)],
            "allowed_paths": [str(path) for source in sources for path in source.files()],
            "enable_progress_bar": True,
            "enable_progress_bar_print": False,
            "preserve_insertion_order": True,
            # Days are UTC everywhere else, and so is current_date here.
            "TimeZone": "UTC",
        }
        if memory_limit is not None:
            settings["memory_limit"] = memory_limit
        if threads is not None:
            settings["threads"] = threads
        try:
            for name, value in settings.items():
                connection.execute(f"SET {name} = {_literal(value)}")
        except self._duckdb.Error as error:
            raise SqlError("usage", str(error).splitlines()[0], "--memory-limit takes 500MB, 2GB") from error
        if not self._unsafe:
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
        return connection

    # -- Statements ----------------------------------------------------------------------------

    def run(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Iterator[Result]:
        """Carry out statements one after another; yield what each returns, to be read before the next one.

        A parameter `$name` of a statement takes its value from `parameters`. Raises SqlError.
        """
        for statement in self._statements(sql):
            yield self._run(statement, parameters)

    def _statements(self, sql: str) -> list[Statement]:
        try:
            found: list[Statement] = self._connection.extract_statements(sql)
        except self._duckdb.Error as error:
            raise mistakes.described(error, sql, self.names()) from error
        for statement in found:
            self._guard(statement)
        return found

    def _guard(self, statement: Statement) -> None:
        if self._unsafe:
            return
        kind = statement.type.name
        if kind == "EXPLAIN":
            explained = _EXPLAIN.sub("", mistakes.without_comments(statement.query), count=1)
            try:
                inner = self._connection.extract_statements(explained)
            except self._duckdb.Error:
                inner = []
            kinds = {each.type.name for each in inner}
            kind = "SELECT" if kinds == {"SELECT"} else "EXPLAIN of anything but a query"
        if kind not in _HARMLESS:
            raise SqlError(
                "usage",
                f"{kind} is refused: SQL here reads its sources and touches nothing else",
                "--to FILE writes a result, --from adds a source; --unsafe lifts this",
            )

    def _run(self, statement: Statement, parameters: Mapping[str, Any] | None) -> Result:
        wanted = {name: (parameters or {}).get(name) for name in statement.named_parameters}
        unknown = [name for name in wanted if name not in (parameters or {})]
        if unknown:
            raise SqlError(
                "usage", f"the parameter ${unknown[0]} has no value", f"--param {unknown[0]}=VALUE gives one"
            )
        text = statement.query
        self._set_deadline()
        connection = self._execute(text, wanted)
        columns = self._columns(connection)
        if any(column.kind == _ZONED for column in columns) and statement.type.name == "SELECT":
            # Python's DuckDB needs another package for these.
            casts = ", ".join(
                f"CAST({_name(column.name)} AS VARCHAR) AS {_name(column.name)}"
                for column in columns
                if column.kind == _ZONED
            )
            connection = self._execute(
                f"SELECT * REPLACE ({casts}) FROM ({text.rstrip().rstrip(';')})", wanted
            )
        return Result(columns, self._rows(connection, text))

    def _execute(self, text: str, parameters: Mapping[str, Any]) -> DuckDBPyConnection:
        def work() -> DuckDBPyConnection:
            while True:
                try:
                    found: DuckDBPyConnection = self._connection.execute(text, dict(parameters) or None)
                    return found
                except (self._duckdb.CatalogException, self._duckdb.BinderException) as error:
                    name = mistakes.missing_name(error)
                    if name is None or not self._loader.can_make(name):
                        raise
                    self._loader.make(name)

        return self._in_thread(work, text)

    @staticmethod
    def _columns(connection: DuckDBPyConnection) -> list[Column]:
        names: dict[str, int] = {}
        columns = []
        for name, kind, *_ in connection.description or ():
            # A row is an object with fields: two of one name would be one.
            names[name] = names.get(name, 0) + 1
            columns.append(Column(name if names[name] == 1 else f"{name}_{names[name] - 1}", str(kind)))
        return columns

    def _rows(self, connection: DuckDBPyConnection, text: str) -> Iterator[tuple[Any, ...]]:
        while rows := self._in_thread(lambda: connection.fetchmany(FETCH_ROWS), text):
            yield from rows

    def _in_thread(self, work: Callable[[], T], text: str) -> T:
        """Return what `work` returns. Ctrl-C cancels it. Raises SqlError."""
        outcome: list[T] = []
        problem: list[BaseException] = []
        is_done = threading.Event()

        def carry_out() -> None:
            try:
                outcome.append(work())
            except BaseException as error:  # noqa: BLE001  raised again by who waits
                problem.append(error)
            is_done.set()

        self._loader.is_stopped.clear()
        thread = threading.Thread(target=carry_out, daemon=True)
        thread.start()
        try:
            while not is_done.wait(POLL_SECONDS):
                if monotonic() > self._deadline:
                    self.cancel()
                    thread.join()
                    raise SqlError(
                        "timeout",
                        f"the statement took longer than {self._timeout_seconds:g} s and was cancelled",
                        "--timeout 5m allows more; fewer days or series, or --explain, may show why",
                    )
                share = self._connection.query_progress()
                self._progress(self._doing or "running", share / 100 if share > 0 else None)
        except KeyboardInterrupt:
            self.cancel()
            thread.join()
            raise SqlError("cancelled", "cancelled") from None
        finally:
            self._doing = ""
        if not problem:
            return outcome[0]
        (error,) = problem
        if isinstance(error, self._duckdb.InterruptException):
            raise SqlError("cancelled", "cancelled") from error
        if isinstance(error, self._duckdb.Error):
            raise mistakes.described(error, text, self.names()) from error
        raise error

    def _set_deadline(self) -> None:
        """Begin to count the time that a statement may take."""
        if self._timeout_seconds is not None:
            self._deadline = monotonic() + self._timeout_seconds

    def cancel(self) -> None:
        """Stop what another thread runs here."""
        self._loader.is_stopped.set()
        self._connection.interrupt()

    def doing(self, text: str) -> None:
        """Take note of what is being done, for `progress`: sources say what they fetch."""
        self._doing = text

    def keep(self) -> None:
        """Write what was decoded into the cache, for the next session. Ctrl-C ends it early."""
        try:
            self._in_thread(self._loader.keep, "")
        except SqlError as error:
            if error.kind != "cancelled":
                raise

    # -- What there is -------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of all tables and macros, the user's own, too."""
        own = (
            self._connection.cursor()
            .execute("SELECT table_name FROM information_schema.tables WHERE table_catalog = 'memory'")
            .fetchall()
        )
        hidden = ("all_", "arrays_", "small_parts", "raw_entries", "pictures")
        return list(
            dict.fromkeys(
                [
                    *(table.name for table in TABLES),
                    *(macro.name for macro in MACROS),
                    *(name for (name,) in own if not name.startswith(hidden)),
                ]
            )
        )

    @property
    def has_snapshot_column(self) -> bool:
        """Whether counters, totals and series begin with the column `snapshot`."""
        return self._loader.has_snapshot_column

    def labels(self) -> list[str]:
        """Return what the column `snapshot` holds. Raises SqlError."""
        return [picture.label for picture in self._in_thread(lambda: self._loader.pictures, "")]

    # -- Exports -------------------------------------------------------------------------------

    def export(self, sql: str, parameters: Mapping[str, Any], target: Path, form: str) -> int:
        """Write the result of one query into a file, which appears whole or not at all; return its rows.

        `form` is parquet, csv, json, jsonl or duckdb (a database with a table `result`). Raises SqlError.
        """
        statements = self._statements(sql)
        if len(statements) != 1 or statements[0].type.name != "SELECT":
            raise SqlError(
                "usage", "only the result of one query can be written to a file", "leave the rest out"
            )
        (query,) = statements
        self._set_deadline()
        self._execute("DROP TABLE IF EXISTS temp.exported", {})
        wanted = {name: parameters.get(name) for name in query.named_parameters}
        self._execute(f"CREATE TEMP TABLE exported AS {query.query}", wanted)
        try:
            return self._write({"result": "temp.exported"}, target, form)
        finally:
            self._execute("DROP TABLE temp.exported", {})

    def export_all(self, target: Path, form: str) -> int:
        """Write every table: into one database, or into a folder with a file for each. Return the rows."""
        for table in TABLES:
            self._execute(f"SELECT 1 FROM {table.name} LIMIT 0", {})
        return self._write({table.name: table.name for table in TABLES}, target, form)

    def _write(self, tables: Mapping[str, str], target: Path, form: str) -> int:
        made = self._cache.scratch / "export"
        rows = 0
        if form == "duckdb":
            self._execute(f"ATTACH {_literal(str(made))} AS export", {})
        elif len(tables) > 1:
            made.mkdir()
        try:
            for name, relation in tables.items():
                if form == "duckdb":
                    sql = f"CREATE TABLE export.{name} AS FROM {relation}"
                else:
                    file = made / f"{name}.{form}" if len(tables) > 1 else made
                    exact = self._exact_columns(relation) if form == "parquet" else ""
                    sql = f"COPY (SELECT *{exact} FROM {relation}) TO {_literal(str(file))} ({EXPORTS[form]})"
                self._doing = f"writing {name}"
                rows += sum(row[0] for row in self._execute(sql, {}).fetchall())
        finally:
            if form == "duckdb":
                self._execute("DETACH export", {})
        _move(made, target)
        return rows

    def _exact_columns(self, relation: str) -> str:
        """Return how sums keep all their digits in Parquet, which DuckDB writes as doubles otherwise."""
        columns = self._columns(self._execute(f"FROM {relation} LIMIT 0", {}))
        casts = [
            f"CAST({_name(column.name)} AS DECIMAL(38, 0)) AS {_name(column.name)}"
            for column in columns
            if column.kind in {"HUGEINT", "UHUGEINT"}
        ]
        return f" REPLACE ({', '.join(casts)})" if casts else ""


def _move(made: Path, target: Path) -> None:
    """Bring what was written to where it is wanted, which may be another disk."""
    import os  # noqa: PLC0415  few statements export
    import shutil  # noqa: PLC0415

    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.move(made, aside)
        aside.replace(target)
    except OSError as error:
        raise SqlError(
            "configuration",
            f"{target} cannot be written: {error.strerror}",
            "the target is as it was; name a new folder, or a file in one with room that you may write to",
        ) from error
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


def _duckdb() -> Any:
    check_installed()
    return duckdb()


def _literal(value: object) -> str:
    if isinstance(value, bool | int):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return "'" + str(value).replace("'", "''") + "'"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
