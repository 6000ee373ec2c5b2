"""doctor: everything that can be looked at from here, with advice for what is not as it should be."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from karma import __version__
from karma.protocol.texts import spelled_out
from karma_client.errors import KarmaError
from karma_client.fleet import judge
from karmactl import fleet, settings
from karmactl.commands import check, context, playbooks
from karmactl.commands.check import CRITICAL, OK, WARNING, WORDS, Finding
from karmactl.diagnostics import CtlError, Exit
from karmactl.fleet import NodeState
from karmactl.output import Paper, Row, Shown, in_bytes, in_seconds, state_style
from karmactl.run import Run

SKEW_WARNING_MS, SKEW_CRITICAL_MS = 2_000, 60_000
LOG_WARNING_BYTES = 1 << 30
"""A start reads such a log for a minute or so."""
BOUNDS = {
    "warn_lag": 1_000.0,
    "crit_lag": 10_000.0,
    "warn_disk": 20.0,
    "crit_disk": 10.0,
    "warn_p99": 50.0,
    "crit_p99": 500.0,
}
"""Those of `karmactl check`, and a p99 that users feel."""

ADVICE = {
    "cluster": "`karmactl topology` draws it; fence the node that must not write, nothing does it by itself",
    "clock": "let a time service (NTP, chrony) keep both clocks: days begin at midnight UTC",
    "disk_free_percent": "make room, or `karmactl snapshot create` for a shorter log",
    "filled": "`karmactl replication status` shows why; until it is filled, this slave can replace no master",
    "lag_entries": "`karmactl replication status` shows why; is the slave's disk or network slow?",
    "access": "the node's log names the peers: a client with an old token or certificate, or strangers",
    "log_lines": "look at what reads the node's standard output: it is slow or stands still",
    "memory": "ask for less at once, or give the server more memory",
    "log": "`karmactl snapshot create` shortens it; the server's --snapshot-wal-bytes does so by itself",
    "node_id": "stop the node that was made by copying, run `karma new-id --directory=PATH` there, start it",
    "p99_ms": "`karmactl latency` shows which operation; a slow disk shows in writes only",
    "rejected": "`karmactl clients` shows who is connected; --max-clients of the server allows more",
    "replication": "is the source up, and does it accept the slave's --replication-token?",
    "status": "`karmactl topology` shows every node's state",
    "upkeep": "look at the node's descriptors, disk and rights; then karmactl snapshot create",
    "storage": "the server's log says what the disk refused; `karma check` looks at the directory",
    "version": "use the same version on all nodes and here; what a server lacks, its commands say",
    "wal": "start the server with --wal=true, unless losing the last minutes is meant",
}


def doctor(run: Run, *, hosts: bool) -> Shown:
    """Look at everything. Exit code 0 when all is well, 8 when something is not, else as the cause says."""
    return shown(findings(run, hosts=hosts))


def findings(run: Run, *, hosts: bool = False) -> list[Row]:
    """Return what was found, as data, and set the exit code; with `hosts`, over SSH as well."""
    found = list(_configuration(run))
    if any(row["level"] == "critical" for row in found):
        # Without its token no node would say anything.
        run.exit_code = Exit.USAGE
        return found
    nodes = fleet.read(run)
    skews = run.each(lambda node: _skew(run, node))
    for node, skew_ms in zip(nodes, skews, strict=True):
        found += [_row(finding, node) for finding in examine(node, skew_ms)]
    found += [_row(finding, None) for finding in (*check.cluster(nodes), *_versions(nodes))]
    if hosts:
        found += playbooks.host_findings(run)
    run.exit_code = _exit_code(nodes, found)
    return found


def _exit_code(nodes: Sequence[NodeState], found: Sequence[Row]) -> Exit:
    if all(node.error is not None and node.error.code in {Exit.UNREACHABLE, Exit.TIMEOUT} for node in nodes):
        return Exit.UNREACHABLE
    if judge(nodes).health == "split brain":
        return Exit.SPLIT_BRAIN
    return Exit.OK if all(row["level"] == "ok" for row in found) else Exit.UNHEALTHY


def _row(finding: Finding, node: NodeState | None) -> Row:
    advice = None
    if finding.level != OK:
        error = node.error if node else None
        advice = error.advice if error else ADVICE[finding.name]
    return {
        "level": WORDS[finding.level].lower(),
        "place": finding.node or "cluster",
        "check": finding.name,
        "finding": finding.text,
        "advice": advice,
    }


# -- Here ------------------------------------------------------------------------------------------------


def _configuration(run: Run) -> Iterator[Row]:
    chosen = run.settings
    yield _here("ok", "target", f"{', '.join(chosen.nodes)} (from {chosen.nodes_source})")
    if chosen.context is not None:
        for problem in context.warnings_of(run, chosen.context):
            yield _here("warning", "context", f"{chosen.context.name}: {problem}", "`karmactl context edit`")
    try:
        token, source = settings.token(chosen, run.environ)
    except CtlError as error:
        yield _here("critical", "token", error.message, error.advice)
    else:
        yield _here("ok", "token", f"from {source}" if token else "none is sent")
        exposed = settings.exposed_token(chosen)
        if exposed is not None and not chosen.values["token_file"].source.startswith("context "):
            yield _here("warning", "token", exposed)


def _here(level: str, name: str, finding: str, advice: str | None = None) -> Row:
    return {"level": level, "place": "here", "check": name, "finding": finding, "advice": advice}


def _skew(run: Run, node: str) -> float | None:
    """By how many milliseconds a node's clock is ahead; as much as the answer took stays in doubt."""
    before = time.time()
    try:
        told: int | None = run.at(node, "system.stats").get("server_time_unix_ms")
    except (KarmaError, CtlError):
        return None
    after = time.time()
    if told is None:
        return None
    if told < before * 1000:
        return told - before * 1000
    return max(told - after * 1000, 0.0)


# -- Nodes -----------------------------------------------------------------------------------------------


def examine(node: NodeState, skew_ms: float | None) -> Iterator[Finding]:
    """Return what is found on one node, whose clock is so much ahead (None: unknown). Pure."""
    yield from check.look(node, BOUNDS)
    if node.error is not None:
        return
    stats, name = node.stats, node.address

    def finding(level: int, what: str, text: str) -> Finding:
        return Finding(name, what, level, f"{name} {text}")

    if skew_ms is not None:
        level = OK
        if abs(skew_ms) >= SKEW_WARNING_MS:
            level = CRITICAL if abs(skew_ms) >= SKEW_CRITICAL_MS else WARNING
        where = "ahead of" if skew_ms > 0 else "behind"
        apart = f"{in_seconds(abs(skew_ms) / 1000)} {where} the clock here"
        yield finding(level, "clock", f"is {apart}" if level else "and this machine agree on the time")
    yield from _storage(finding, node, stats)
    if node.role == "slave" and node.replication.get("replication_last_poll_error"):
        problem = spelled_out(str(node.replication["replication_last_poll_error"]))
        yield finding(CRITICAL, "replication", f"cannot read its source: {problem}")
    for field, what, text in _COUNTS:
        if stats.get(field):
            yield finding(WARNING, what, text.format(stats[field]))
    if "version" not in stats:
        yield finding(WARNING, "version", "is Karma 1.0: limits, latency and failover commands do not work")


_COUNTS = (
    ("connections_rejected", "rejected", "turned away {} connections"),
    ("clock_step_count", "clock", "had its clock set {} times by more than a minute since its start"),
    ("token_refused_count", "access", "refused {} tokens since its start"),
    ("tls_failed_count", "access", "had {} TLS handshakes fail since its start"),
    ("log_dropped_line_count", "log_lines", "dropped {} lines of its log, which nothing reads"),
    ("out_of_memory_count", "memory", "had no memory for {} requests since its start"),
)
"""Counts that ought to be 0: the field of system.stats, the check, and what is said."""


def _storage(finding: Any, node: NodeState, stats: Mapping[str, Any]) -> Iterator[Finding]:
    if not stats.get("wal_enabled", True):
        yield finding(WARNING, "wal", "keeps no log: a crash loses what came after the last snapshot")
        return
    log_bytes = int(stats.get("wal_bytes") or 0)
    behind = node.lsn - int(node.replication.get("last_snapshot_lsn") or 0)
    level = WARNING if log_bytes >= LOG_WARNING_BYTES else OK
    yield finding(
        level, "log", f"has a log of {in_bytes(log_bytes)}, {behind} entries since the last snapshot"
    )
    if stats.get("storage_error_count"):
        yield finding(
            WARNING, "storage", f"had {stats['storage_error_count']} storage errors since its start"
        )


def _versions(nodes: Sequence[NodeState]) -> Iterator[Finding]:
    versions = {str(node.stats["version"]) for node in nodes if "version" in node.stats}
    if versions - {__version__}:
        told = ", ".join(
            f"{node.address} {node.stats.get('version', '1.0')}" for node in nodes if node.error is None
        )
        yield Finding("", "version", WARNING, f"versions differ: here {__version__}, {told}")


# -- Text ------------------------------------------------------------------------------------------------


def shown(found: Sequence[Row]) -> Shown:
    """Return findings with a text of their own: what is wrong last, where it is seen."""

    def text(paper: Paper) -> Iterator[str]:
        for row in sorted(found, key=lambda row: row["level"] != "ok"):
            level = paper.styled(row["level"], state_style(row["level"])) + " " * (8 - len(row["level"]))
            yield f"{level}  {row['check']}: {spelled_out(row['finding'])}"
            if row["advice"]:
                yield f"          next: {spelled_out(row['advice'])}"

    return Shown(list(found), text)
