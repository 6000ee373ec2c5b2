"""What can go wrong, in the words of this package; front ends add exit codes and colours."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

Kind = Literal["usage", "missing", "damaged", "configuration", "gone", "cancelled", "timeout"]
"""usage: the statement or what was asked for. missing: a snapshot, an LSN, a time that is not there. damaged:
a file. configuration: a package that is not installed, a folder. gone: a source that cannot be reached.
timeout: a statement that took longer than it may."""


class SqlError(Exception):
    """A statement that is not carried out: what is wrong (perhaps several lines), and what to do next."""

    def __init__(self, kind: Kind, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.advice = advice


def check_installed() -> None:
    """Load nothing. Raises SqlError on a machine without DuckDB or numpy."""
    if not all(map(find_spec, ("duckdb", "numpy"))):
        raise SqlError(
            "configuration",
            "SQL needs DuckDB and numpy, which are not installed",
            "install the extra: pip install 'karma[sql]'",
        )
