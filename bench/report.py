"""What a benchmark found, judged against its target, as an aligned table or as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Target:
    """A promise: the ratio or the value is at least so much, or every run stays at or below `value`."""

    ratio: float | None = None
    value: float | None = None
    at_least: float | None = None

    def __str__(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:,.0f}"
        return f"ratio >= {self.ratio:g}" if self.ratio is not None else f"<= {self.value:g}"


@dataclass(frozen=True)
class Result:
    """One benchmark: a number per run for Karma and, if it has one, for the peer that ran in turn with it."""

    name: str
    unit: str
    better: Literal["more", "less"]
    karma: Sequence[float] = ()
    peer: Sequence[float] = ()
    peer_name: str = ""
    target: Target | None = None
    note: str = ""
    failure: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better Karma's median is than the peer's: above 1 Karma wins, whatever the unit."""
        if not self.karma or not self.peer:
            return None
        ours, theirs = statistics.median(self.karma), statistics.median(self.peer)
        return ours / theirs if self.better == "more" else theirs / ours

    @property
    def verdict(self) -> str:
        """`yes`, `NO`, `FAILED`, or empty when there is no target or no peer to hold it against.

        An upper bound on a value is judged by the worst run: "no client waits longer" has no median.
        """
        if self.failure:
            return "FAILED"
        if self.target is None or not self.karma:
            return ""
        if self.target.value is not None:
            return "yes" if max(self.karma) <= self.target.value else "NO"
        if self.target.at_least is not None:
            return "yes" if statistics.median(self.karma) >= self.target.at_least else "NO"
        if self.ratio is None or self.target.ratio is None:
            return ""
        return "yes" if self.ratio >= self.target.ratio else "NO"


def number(value: float) -> str:
    """Three or more significant digits, thousands separated."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def shortened(failure: str) -> str:
    """The end of a complaint, where a traceback says what happened; stderr and JSON carry all of it."""
    return " ".join(failure.split())[-120:]


def summary(values: Sequence[float]) -> tuple[str, str]:
    """Median, and the distance from the lowest to the highest run in percent of it."""
    if not values:
        return "", ""
    median = statistics.median(values)
    spread = f"{(max(values) - min(values)) / median:.0%}" if len(values) > 1 and median else ""
    return number(median), spread


def table(results: Sequence[Result], machine: Mapping[str, str]) -> str:
    """The report as text: a line that names the machine, then one line a benchmark."""
    heads = ["benchmark", "unit", "karma", "spread", "peer", "", "spread", "ratio", "target", "ok", "note"]
    rows = [heads]
    for result in results:
        ratio = f"{result.ratio:.2f}" if result.ratio is not None else ""
        rows.append(
            [
                result.name,
                result.unit,
                *summary(result.karma),
                result.peer_name,
                *summary(result.peer),
                ratio,
                str(result.target or ""),
                result.verdict,
                shortened(result.failure) or result.note,
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    right_aligned = {2, 3, 5, 6, 7}
    lines = ["# " + ", ".join(f"{key} {value}" for key, value in machine.items())]
    for row in rows:
        cells = [
            cell.rjust(width) if column in right_aligned else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_json(results: Sequence[Result], machine: Mapping[str, str]) -> str:
    """The report for a program: every single run, so that a reader can compute other statistics."""
    found = [
        {
            "name": result.name,
            "unit": result.unit,
            "better": result.better,
            "karma_median": statistics.median(result.karma) if result.karma else None,
            "karma_runs": list(result.karma),
            "peer": result.peer_name or None,
            "peer_median": statistics.median(result.peer) if result.peer else None,
            "peer_runs": list(result.peer),
            "ratio": result.ratio,
            "target": str(result.target) if result.target else None,
            "ok": {"yes": True, "NO": False}.get(result.verdict),
            "failure": result.failure or None,
            "note": result.note,
        }
        for result in results
    ]
    return json.dumps({"machine": dict(machine), "results": found}, indent=2)
