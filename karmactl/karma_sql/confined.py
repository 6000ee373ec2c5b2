"""A DuckDB for a moment, in memory, which reaches the files it is given and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from karma_sql.engine import duckdb

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def confined(*paths: Path) -> DuckDBPyConnection:
    """Open one. Raises ImportError without DuckDB."""
    connection: DuckDBPyConnection = duckdb().connect(config={"autoinstall_known_extensions": "false"})
    allowed = ", ".join(f"'{escaped(path)}'" for path in paths)
    connection.execute(f"SET allowed_paths = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET threads = 1")
    connection.execute("SET lock_configuration = true")
    return connection


def escaped(path: Path) -> str:
    """Return a path as it stands between the quotes of a literal of SQL."""
    return str(path).replace("'", "''")
