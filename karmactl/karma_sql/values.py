"""Values and columns of DuckDB's results as front ends show them, without DuckDB."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL")


def is_number(kind: str) -> bool:
    """Return whether a column of this DuckDB type holds numbers."""
    return kind.lstrip("U").startswith(_NUMBERS) and "[" not in kind


def is_plan(names: Sequence[str]) -> bool:
    """Return whether a result with these columns is DuckDB's plan: texts of many lines in the second one."""
    return list(names[:2]) == ["explain_key", "explain_value"]


def is_data(names: Sequence[str]) -> bool:
    """Return whether these are columns of a query; other statements return a success or a count."""
    return bool(names) and not (len(names) == 1 and names[0] in {"Success", "Count"})


def plain(value: Any) -> Any:
    """Return a value of DuckDB as JSON has it: days and times as text, whole numbers exactly."""
    if value is None or isinstance(value, bool | int | str):
        return value
    spell = _PLAIN.get(type(value))
    return str(value) if spell is None else spell(value)


def _float(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


_PLAIN: dict[type, Callable[[Any], Any]] = {
    float: _float,
    Decimal: lambda value: int(value) if value == value.to_integral_value() else float(value),
    date: date.isoformat,
    datetime: lambda value: value.isoformat(" ", "milliseconds" if value.microsecond else "seconds") + "Z",
    time: time.isoformat,
    timedelta: str,
    bytes: bytes.hex,
    list: lambda value: [plain(one) for one in value],
    tuple: lambda value: [plain(one) for one in value],
    dict: lambda value: {str(name): plain(one) for name, one in value.items()},
}
