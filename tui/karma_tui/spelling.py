"""Values in few letters, as cells of a dashboard need them. Pure.

karmactl spells the same values for reading at leisure (`1.5 MiB`, `3 m 20 s`); here a column has six letters.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

NUMERIC = frozenset({"number", "figure", "count", "bytes", "ms", "us", "percent", "age", "rate"})
"""Kinds that stand at the right of their column."""


def spelt(value: Any, kind: str = "text") -> str:
    """Return a value as a cell shows it; "-" for one that nobody knows."""
    if value is None or value == "":
        return "-"
    spell = _SPELLINGS.get(kind)
    return printable(str(value)) if spell is None else spell(value)


def printable(text: str) -> str:
    """Return a text without what could move a terminal's cursor: control characters become `?`."""
    if text.isprintable():
        return text
    return "".join("?" if unicodedata.category(letter) in _UNSAFE else letter for letter in text)


_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def count(value: float) -> str:
    """Return a number in at most five letters: `999`, `12.3k`, `4.56M`."""
    for limit, divisor, unit in ((1e5, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M"), (1e12, 1e9, "G")):
        if abs(value) < limit:
            return _short(value / divisor, unit)
    return _short(value / 1e12, "T")


def _short(value: float, unit: str) -> str:
    if not unit:
        return f"{value:.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.1f}"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}{unit}"


def in_bytes(value: float) -> str:
    """Return bytes as `512B`, `1.5K`, `20M`, powers of 1024."""
    for unit in ("B", "K", "M", "G"):
        if abs(value) < 1000:
            return f"{value:.0f}{unit}" if unit == "B" or value >= 10 else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}T"


def in_ms(value: float) -> str:
    """Return milliseconds as `0`, `15ms`, `4.2s`, `3m20s`."""
    if value < 1000:
        return f"{value:.0f}ms" if value else "0"
    return age(value / 1000)


def in_us(value: float) -> str:
    """Return microseconds as `80µs`, `1.5ms`, `20ms`, `1.2s`."""
    if value < 1000:
        return f"{value:.0f}µs"
    if value < 10_000:
        return f"{value / 1000:.1f}ms"
    return in_ms(value / 1000)


def age(seconds: float) -> str:
    """Return seconds as `4.2s`, `42s`, `3m20s`, `5h03m`, `2d4h`."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 24 else f"{hours // 24}d{hours % 24}h"


def datum(value: Any) -> str:
    """Return a value of a query's result as `karmactl sql` prints it: numbers without separators."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False)
    return printable(str(value))


def moment(unix_seconds: float) -> str:
    """Return a UTC moment as `2026-05-05 12:00:00`; "-" for 0, which stands for never."""
    if not unix_seconds:
        return "-"
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


_SPELLINGS: dict[str, Callable[[Any], str]] = {
    "number": lambda value: f"{value:,}",
    "figure": datum,
    "datum": datum,
    "count": count,
    "rate": count,
    "bytes": in_bytes,
    "ms": in_ms,
    "us": in_us,
    "percent": lambda value: f"{value:.0f}%",
    "age": age,
    "time": moment,
}
