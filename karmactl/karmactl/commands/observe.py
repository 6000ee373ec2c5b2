"""ping, stats, metrics, clients, latency."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from karma_client.errors import KarmaError
from karmactl.diagnostics import CtlError, Exit
from karmactl.failures import translated
from karmactl.output import Row, Shown
from karmactl.run import Run


def ping(run: Run) -> list[Row]:
    """Ask every node for a sign of life. Exit code 5 when none answers, 7 when only some do."""
    rows = run.each(lambda node: _ping(run, node))
    raise_if_silent(run, [row["error"] for row in rows])
    return [{**row, "error": row["error"] and row["error"].message} for row in rows]


def _ping(run: Run, node: str) -> dict[str, Any]:
    begun = time.perf_counter()
    try:
        answer = run.at(node, "system.ping")
    except KarmaError as error:
        return {"node": node, "status": "unreachable", "took_ms": None, "error": translated(error, run)}
    took_ms = round((time.perf_counter() - begun) * 1000, 2)
    return {"node": node, "status": answer, "took_ms": took_ms, "error": None}


def raise_if_silent(run: Run, errors: Sequence[CtlError | None]) -> None:
    """Raise the first error when every node has one; when some have, the exit code becomes 7."""
    problems = [error for error in errors if error is not None]
    if len(problems) == len(errors):
        raise problems[0]
    if problems:
        run.exit_code = Exit.PARTIAL


def stats(run: Run, match: str | None) -> Row:
    """Show the counters and gauges of a node."""
    found: Row = run.ask("system.stats")
    return found if match is None else {name: value for name, value in found.items() if match in name}


def metrics(run: Run) -> Any:
    """Show the metrics of a node: the text itself, or an object a sample."""
    text: str = run.ask("system.metrics")
    return Shown(list(samples(text)), lambda _: text.splitlines())


def samples(text: str) -> Iterator[Row]:
    """Return the samples of a Prometheus text."""
    sample = re.compile(r"(?P<metric>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
    label = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
    for line in text.splitlines():
        found = sample.fullmatch(line)
        if found is not None:
            value = float(found["value"])
            yield {
                "metric": found["metric"],
                "labels": dict(label.findall(found["labels"] or "")),
                "value": int(value) if value.is_integer() else value,
            }


def clients(run: Run) -> Any:
    """List a node's open connections."""
    return run.ask("system.clients")


def latency(run: Run, *, total: bool, match: str | None) -> list[Row]:
    """Show latency percentiles of each operation, the busiest first."""
    ops: Mapping[str, Mapping[str, Row]] = run.ask("system.latency")["ops"]
    part = "total" if total else "last_minute"
    rows = [{"op": op, **figures[part]} for op, figures in ops.items() if (match or "") in op]
    return sorted(rows, key=lambda row: row["count"], reverse=True)
