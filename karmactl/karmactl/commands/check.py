"""check: one verdict for a monitoring system. The only command whose exit codes are those of Nagios."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from karma.protocol.texts import spelled_out
from karma_client.fleet import judge, masters_of
from karmactl import fleet, output
from karmactl.diagnostics import Exit
from karmactl.fleet import NodeState
from karmactl.run import Run

WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
OK, WARNING, CRITICAL, UNKNOWN = range(4)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on a figure is a warning or critical; None is never."""

    warning: float | None
    critical: float | None

    def level(self, value: float, *, is_low_bad: bool = False) -> int:
        """Return OK, WARNING or CRITICAL for a figure."""
        for level, bound in ((CRITICAL, self.critical), (WARNING, self.warning)):
            if bound is not None and (value < bound if is_low_bad else value >= bound):
                return level
        return OK


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at on one node. `value` is None where there is no figure."""

    node: str
    name: str
    level: int
    text: str
    value: float | None = None
    thresholds: Thresholds | None = None


def check(run: Run, format: str, **bounds: float | None) -> str:  # noqa: A002  the option's name
    """Look at every node and return the verdict as the monitoring system reads it."""
    nodes = fleet.read(run)
    findings = [finding for node in nodes for finding in look(node, bounds)] + list(cluster(nodes))
    level = max(finding.level for finding in findings)
    run.exit_code = level
    return {"nagios": nagios, "prometheus": prometheus, "json": as_json}[format](level, findings)


def look(node: NodeState, bounds: Mapping[str, float | None]) -> Iterator[Finding]:
    """Return what is found on one node."""
    if node.error is not None:
        # What a wrong token hides nobody knows; a dead node is a fact.
        level = CRITICAL if node.error.code in {Exit.UNREACHABLE, Exit.TIMEOUT} else UNKNOWN
        yield Finding(node.address, "status", level, f"{node.address} {node.state}: {node.reason}")
        return
    level = {"ok": OK, "paused": WARNING, "fenced": WARNING}.get(node.state, CRITICAL)
    yield Finding(node.address, "status", level, f"{node.address} {node.state}")
    for trouble in node.troubles:
        yield Finding(node.address, "upkeep", WARNING, f"{node.address} {trouble}")
    for twin in node.twins:
        yield Finding(node.address, "node_id", CRITICAL, f"{node.address} refuses a follower: {twin}")
    if not node.is_filled:
        text = f"{node.address} has received nothing from its source yet"
        yield Finding(node.address, "filled", CRITICAL, text)
    if node.lag_entries is not None:
        lag = Thresholds(bounds["warn_lag"], bounds["crit_lag"])
        text = f"{node.address} {node.lag_entries} entries behind"
        yield Finding(node.address, "lag_entries", lag.level(node.lag_entries), text, node.lag_entries, lag)
    total_bytes = node.stats.get("disk_total_bytes")
    if total_bytes:
        disk = Thresholds(bounds["warn_disk"], bounds["crit_disk"])
        free = round(100 * node.stats["disk_free_bytes"] / total_bytes, 1)
        text = f"{node.address} {free:g} % of the disk free"
        yield Finding(node.address, "disk_free_percent", disk.level(free, is_low_bad=True), text, free, disk)
    latency = node.stats.get("latency_last_minute")
    if latency:
        slow = Thresholds(bounds["warn_p99"], bounds["crit_p99"])
        p99_ms = latency["p99_us"] / 1000
        text = f"{node.address} p99 {p99_ms:g} ms"
        yield Finding(node.address, "p99_ms", slow.level(p99_ms), text, p99_ms, slow)


def cluster(nodes: Sequence[NodeState]) -> Iterator[Finding]:
    """Return what no node can say alone. Of a single slave its master is not asked for."""
    verdict = judge(nodes)
    if verdict.health == "split brain":
        yield Finding("", "cluster", CRITICAL, f"split brain: {verdict.problems[0]}")
    elif len(nodes) > 1 and not any(node.is_writable_master for node in nodes):
        yield Finding("", "cluster", CRITICAL, "no node takes writes as master")
    elif len(masters_of(nodes)) > 1:
        yield Finding("", "cluster", WARNING, verdict.problems[0])


def nagios(level: int, findings: Sequence[Finding]) -> str:
    """Return the line of a Nagios plugin: verdict, what is wrong, figures."""
    nodes = {finding.node for finding in findings if finding.node}
    wrong = [spelled_out(finding.text) for finding in findings if finding.level != OK]
    said = "; ".join(wrong) or f"{len(nodes)} node{'' if len(nodes) == 1 else 's'} well"
    figures = " ".join(
        _figure(finding, single=len(nodes) == 1) for finding in findings if finding.value is not None
    )
    # A bar begins the figures, so no text before them may have one.
    return f"KARMA {WORDS[level]} - {said.replace('|', '/')}" + (f" | {figures}" if figures else "")


def _figure(finding: Finding, *, single: bool) -> str:
    label = finding.name if single else f"{finding.node} {finding.name}"
    bounds = finding.thresholds
    assert bounds is not None
    # In Nagios' own notation `20:` means that less than 20 is bad.
    mark = ":" if finding.name == "disk_free_percent" else ""
    shown = [f"{bound:g}{mark}" if bound is not None else "" for bound in (bounds.warning, bounds.critical)]
    unit = {"disk_free_percent": "%", "p99_ms": "ms"}.get(finding.name, "")
    return f"'{label}'={finding.value:g}{unit};{shown[0]};{shown[1]}"


def prometheus(level: int, findings: Sequence[Finding]) -> str:
    """Return the findings for Prometheus' textfile collector."""
    lines = [
        "# HELP karmactl_check_level Verdict: 0 ok, 1 warning, 2 critical, 3 unknown.",
        "# TYPE karmactl_check_level gauge",
        f"karmactl_check_level {level}",
        "# HELP karmactl_check_finding_level Verdict on one thing of one node.",
        "# TYPE karmactl_check_finding_level gauge",
    ]
    lines += [
        f'karmactl_check_finding_level{{node="{_label(one.node)}",name="{one.name}"}} {one.level}'
        for one in findings
    ]
    lines += ["# HELP karmactl_check_value What was measured.", "# TYPE karmactl_check_value gauge"]
    lines += [
        f'karmactl_check_value{{node="{_label(one.node)}",name="{one.name}"}} {one.value:g}'
        for one in findings
        if one.value is not None
    ]
    return "\n".join(lines)


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def as_json(level: int, findings: Sequence[Finding]) -> str:
    """Return the verdict and the findings as one object."""
    found: list[dict[str, Any]] = [
        {
            "node": one.node or None,
            "name": one.name,
            "level": WORDS[one.level].lower(),
            "text": one.text,
            "value": one.value,
        }
        for one in findings
    ]
    return output.as_json({"status": WORDS[level].lower(), "findings": found}, indent=2)
