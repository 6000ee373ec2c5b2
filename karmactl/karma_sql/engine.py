"""DuckDB, loaded when it is needed: by its module in C++ alone.

`import duckdb` takes 0.1 s, nearly all of it for relations, expressions and sources in Python around that
module, of which nothing is used here. That would be a third of a question to the cache.
"""

from __future__ import annotations

from typing import Any


def duckdb() -> Any:
    """Return a module with DuckDB's `connect` and its errors. Raises ImportError without DuckDB."""
    try:
        import _duckdb  # noqa: PLC0415  whoever imports this module may never need it
    except ImportError:
        # It is nobody's promise that the module has this name; 1.4 to 2.0 call it so.
        import duckdb  # noqa: PLC0415

        return duckdb
    return _duckdb
