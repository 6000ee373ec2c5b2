"""The tables of the screens, computed from a fleet. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from karma_client.days import dashed
from karma_client.logs import Merged, described
from karma_events.actions import ActionRecord
from karma_events.envelope import Recorded
from karma_events.metrics import took_ms
from karma_tui.charts import sparkline
from karma_tui.model import Alarm, Fleet, NodeView, alarms, tree
from karma_tui.spelling import spelt
from karma_tui.tables import Column, Mood, Row, Table

SPARK_WIDTH = 12

NODES = (
    Column("node", "NODE", rank=0, widest=40),
    Column("role", "ROLE", rank=0),
    Column("epoch", "EPOCH", "number", rank=3),
    Column("lsn", "LSN", "number", rank=2),
    Column("lag_entries", "LAG", "count", rank=0),
    Column("lag_ms", "TIME", "ms", rank=1),
    Column("lag", "LAG OVER TIME", "text", rank=4),
    Column("ops_per_second", "OPS/S", "rate", rank=1),
    Column("p99_us", "P99", "us", rank=2),
    Column("rss_bytes", "MEM", "bytes", rank=4),
    Column("keys", "KEYS", "count", rank=4),
    Column("disk", "DISK", "percent", rank=5),
    Column("alarms", "ALARMS", rank=0, widest=90, least=30),
)
REPLICAS = (
    Column("follower", "FOLLOWER", rank=0, widest=40),
    Column("source", "SOURCE", rank=2, widest=40),
    Column("state", "STATE", rank=1),
    Column("acked_lsn", "HAS LSN", "number", rank=1),
    Column("lag_entries", "LAG", "count", rank=0),
    Column("lag_ms", "TIME", "ms", rank=0),
    Column("lag", "LAG OVER TIME", "text", rank=1),
    Column("first_lsn", "LOG FROM", "number", rank=3),
    Column("wal_bytes", "LOG", "bytes", rank=4),
    Column("sync", "SYNC", rank=2),
)
OPS = (
    Column("op", "OPERATION", rank=0, widest=40),
    Column("rate", "PER S", "rate", rank=0),
    Column("p50_us", "P50", "us", rank=1),
    Column("p95_us", "P95", "us", rank=1),
    Column("p99_us", "P99", "us", rank=0),
    Column("max_us", "MAX", "us", rank=2),
    Column("p99", "P99 OVER TIME", "text", rank=3),
    Column("total", "SINCE START", "count", rank=3),
)
CLIENTS = (
    Column("node", "NODE", rank=3, widest=40),
    Column("id", "ID", "number", rank=1),
    Column("address", "ADDRESS", rank=0, widest=50),
    Column("access", "ACCESS", rank=2),
    Column("age_seconds", "AGE", "age", rank=1),
    Column("idle_seconds", "IDLE", "age", rank=0),
    Column("requests", "REQUESTS", "count", rank=1),
    Column("last_op", "LAST OPERATION", rank=0),
    Column("buffered_in_bytes", "IN", "bytes", rank=4),
    Column("buffered_out_bytes", "OUT", "bytes", rank=4),
)
LOG = (
    Column("lsn", "LSN", "number", rank=0),
    Column("epoch", "EPOCH", "number", rank=4),
    Column("time", "TIME", rank=2),
    Column("op", "OPERATION", rank=0, widest=26),
    Column("series", "SERIES", rank=0, widest=30),
    Column("entry", "WHAT", rank=1, widest=70, least=24),
    Column("nodes", "NODES", rank=3, widest=60, least=9),
    Column("note", "NOTE", rank=1, widest=40, least=12),
)
SERIES = (Column("series", "SERIES", rank=0, widest=60),)
KEYS = (Column("key", "KEY", "number", rank=0), Column("total", "TOTAL", "number", rank=0))
TOP = (
    Column("rank", "RANK", "number", rank=1),
    Column("key", "KEY", "number", rank=0),
    Column("value", "VALUE", "number", rank=0),
)
DAYS = (Column("day", "DAY", rank=0), Column("value", "VALUE", "number", rank=0))
SNAPSHOTS = (
    Column("file", "FILE", rank=0, widest=60),
    Column("series", "SERIES", rank=1, widest=40),
    Column("taken_unix", "TAKEN", "time", rank=1),
    Column("age_seconds", "AGE", "age", rank=0),
    Column("bytes", "SIZE", "bytes", rank=0),
    Column("last_lsn", "LSN", "number", rank=2),
)
ACTIONS = (
    Column("requested_unix", "REQUESTED", "time", rank=1),
    Column("name", "ACTION", rank=0, widest=30),
    Column("entity_id", "OF", rank=2, widest=30),
    Column("state", "STATE", rank=0),
    Column("took_ms", "TOOK", "ms", rank=1),
    Column("unavailable_ms", "NO WRITES", "ms", rank=3),
    Column("action_id", "ID", rank=3, widest=50),
    Column("error", "ERROR", rank=2, widest=60, least=16),
)
EVENTS = (
    Column("time", "TIME", "time", rank=0),
    Column("event_type", "EVENT", rank=0, widest=30),
    Column("entity_id", "OF", rank=1, widest=30),
    Column("topic", "TOPIC", rank=3, widest=30),
    Column("attrs", "WHAT", rank=1, widest=90, least=20),
)

WORST: dict[Mood, int] = {"bad": 0, "warn": 1, "dim": 2, "good": 3, "": 3}


def mood_of(found: Sequence[Alarm]) -> Mood:
    """Return the worst mood of a node's alarms."""
    return min((alarm.mood for alarm in found), key=WORST.__getitem__, default="")


def nodes(fleet: Fleet) -> Table:
    """Return the Fleet screen's table, followers below what they follow."""
    return Table(NODES, tuple(_node_row(fleet, branch.indent, branch.node) for branch in tree(fleet)))


def _node_row(fleet: Fleet, indent: str, node: NodeView) -> Row:
    found = alarms(fleet, node)
    state, now = node.known, node.newest
    said, stats = state.replication, state.stats
    total, free = stats.get("disk_total_bytes"), stats.get("disk_free_bytes")
    is_known = node.last is not None
    return Row(
        node.address,
        (
            indent + node.address,
            state.role if is_known else None,
            said.get("epoch"),
            state.lsn if is_known else None,
            now.lag_entries,
            now.lag_ms,
            lag_spark(node, SPARK_WIDTH) if state.role == "slave" else None,
            now.ops_per_second,
            now.p99_us,
            stats.get("rss_bytes", stats.get("memory_bytes")),
            stats.get("keys"),
            100 * (1 - free / total) if total and free is not None else None,
            "; ".join(alarm.text for alarm in found) or None,
        ),
        mood_of(found),
    )


def lag_spark(node: NodeView, width: int) -> str:
    """Return a node's lag in entries over time; silence is a gap."""
    return sparkline(node.series("lag_entries"), width)


def replicas(fleet: Fleet) -> Table:
    """Return the followers, as themselves and their sources tell of them, the laggiest first."""
    told = {
        replica.get("node_id"): (node, replica)
        for node in fleet.nodes
        for replica in node.known.replication.get("replicas") or ()
    }
    parents = fleet.parents
    rows = []
    listed = set()
    for node in fleet.nodes:
        if node.known.role != "slave":
            continue
        node_id = node.known.replication.get("node_id")
        listed.add(node_id)
        parent = parents[node.address]
        source, replica = told.get(node_id, (None if parent is None else fleet.node(parent), {}))
        rows.append(_replica_row(fleet, node, source, replica))
    for node_id, (source, replica) in told.items():
        if node_id not in listed:
            rows.append(_stranger_row(source, replica))
    rows.sort(key=lambda row: (-(row.cells[5] or 0), -(row.cells[4] or 0)))
    return Table(REPLICAS, tuple(rows), "no node of this context follows another, and none is followed")


def _replica_row(fleet: Fleet, node: NodeView, source: NodeView | None, replica: Mapping[str, Any]) -> Row:
    said = node.known.replication
    is_silent = node.problem is not None
    return Row(
        node.address,
        (
            node.address,
            said.get("source") or (source.address if source else None),
            "silent" if is_silent else said.get("replication_state") or node.state.state,
            replica.get("acked_lsn", node.known.lsn),
            # Of a silent follower its source still tells.
            replica.get("lag_entries") if is_silent else node.newest.lag_entries,
            replica.get("lag_ms") if is_silent else node.newest.lag_ms,
            lag_spark(node, SPARK_WIDTH * 2),
            said.get("wal_first_lsn"),
            said.get("wal_bytes"),
            _sync(source),
        ),
        mood_of(alarms(fleet, node)),
    )


def _stranger_row(source: NodeView, replica: Mapping[str, Any]) -> Row:
    """A follower that no node of the context is."""
    name = f"{replica.get('address') or '?'} ({replica.get('node_id')})"
    acked, lag, lag_ms = (replica.get(key) for key in ("acked_lsn", "lag_entries", "lag_ms"))
    cells = (name, source.address, "not in this context", acked, lag, lag_ms, None, None, None, _sync(source))
    return Row(name, cells, "dim")


def _sync(source: NodeView | None) -> str | None:
    if source is None:
        return None
    wanted = source.known.replication.get("sync_replicas") or 0
    if not wanted:
        return "off"
    return f"{'DEGRADED' if source.known.replication.get('sync_degraded') else 'ok'} ({wanted} wanted)"


def operations(node: NodeView) -> Table:
    """Return the Latency screen's table of one node, over the last minute, the most used first."""
    rows = []
    for op, samples in node.ops.items():
        now = samples[-1]
        spark = sparkline([sample.p99_us for sample in samples], SPARK_WIDTH * 2)
        figures = (now.recent / 60, now.p50_us, now.p95_us, now.p99_us, now.max_us)
        rows.append(Row(op, (op, *figures, spark, now.total), "" if now.recent else "dim"))
    rows.sort(key=lambda row: (-row.cells[1], -row.cells[7]))
    note = "this server tells no latencies (Karma 1.0)" if node.last else "waiting for the first answer"
    return Table(OPS, tuple(rows), note)


def clients(fleet: Fleet) -> Table:
    """Return the open connections of every node."""
    rows = [
        Row(
            f"{node.address} {client.get('id')}",
            (node.address, *(client.get(column.name) for column in CLIENTS[1:])),
        )
        for node in fleet.nodes
        for client in node.clients
    ]
    problems = [f"{node.address}: {node.clients_problem}" for node in fleet.nodes if node.clients_problem]
    return Table(CLIENTS, tuple(rows), "; ".join(problems) or "waiting for the first answer")


def log(entries: Sequence[Merged], wanted: str, followed: int) -> Table:
    """Return the WAL screen's table, oldest first: the entries that hold every word of `wanted`.

    Those that all of the followed nodes have say so instead of naming them.
    """
    words = wanted.lower().split()
    rows = (_log_row(merged, followed) for merged in entries)
    kept = tuple(row for row in rows if all(word in _log_text(row) for word in words))
    return Table(
        LOG, kept, "no entry fits the filter" if entries else "no entry yet: writes show here as they come"
    )


def _log_row(merged: Merged, followed: int) -> Row:
    lsn, entry, ts_ms, _, epoch = merged.logged
    time = None if ts_ms is None else spelt(ts_ms / 1000, "time")[11:] + f".{ts_ms % 1000:03d}"
    cells = (
        lsn,
        epoch,
        time,
        entry.get("op"),
        entry.get("series"),
        described(entry),
        "all" if len(merged.places) == followed > 1 else ", ".join(merged.places),
        merged.note or None,
    )
    return Row(log_key(merged), cells, "warn" if merged.note else "")


def log_key(merged: Merged) -> str:
    """Return what names an entry among all: two nodes may have different ones under one LSN."""
    return f"{merged.logged.lsn} {merged.logged.epoch} {merged.places}"


def _log_text(row: Row) -> str:
    return " ".join(str(cell) for cell in row.cells if cell is not None).lower()


def days(points: Mapping[str, int]) -> Table:
    """Return one key's days, newest first; `points` as the protocol has them."""
    rows = tuple(Row(day, (dashed(day), value)) for day, value in sorted(points.items(), reverse=True))
    return Table(DAYS, rows, "this key has nothing in these days")


def snapshots(info: Mapping[str, Any], paths: Sequence[str], now: float) -> Table:
    """Return the snapshot files of a node: all of `snapshot.list`, with what `snapshot.info` adds."""
    latest = {one["file"]: one for one in info.get("latest_by_tree", ())}
    rows = []
    for path in paths:
        file = path.rpartition("/")[2]
        taken, _, name = file.removesuffix(".tree").partition("_")
        known = latest.get(file, {})
        unix = int(taken) if taken.isdigit() else None
        cells = (
            file,
            known.get("tree", name),
            unix,
            None if unix is None else now - unix,
            known.get("bytes"),
            known.get("last_lsn"),
        )
        rows.append(Row(file, cells, "" if known else "dim"))
    return Table(SNAPSHOTS, tuple(rows), "no snapshot yet")


def facts(fleet: Fleet, node: NodeView) -> list[tuple[str, str]]:
    """Return what there is to know of one node, as names and texts, alarms first."""
    said, stats = node.known.replication, node.known.stats
    found = [("alarm", alarm.text) for alarm in alarms(fleet, node)]
    for name, value, kind in (
        ("role", said.get("role"), "text"),
        ("version", stats.get("version"), "text"),
        ("up for", stats.get("uptime_seconds"), "age"),
        ("node id", said.get("node_id"), "text"),
        ("cluster id", said.get("cluster_id"), "text"),
        ("epoch", said.get("epoch"), "number"),
        ("LSN", node.known.lsn, "number"),
        ("follows", said.get("source"), "text"),
        ("lag", said.get("replication_lag_entries"), "count"),
        ("lag in time", said.get("lag_ms"), "ms"),
        ("series", stats.get("trees"), "count"),
        ("keys", stats.get("keys"), "count"),
        ("memory", stats.get("rss_bytes", stats.get("memory_bytes")), "bytes"),
        ("disk free", stats.get("disk_free_bytes"), "bytes"),
        ("log", said.get("wal_bytes"), "bytes"),
        ("log from LSN", said.get("wal_first_lsn"), "number"),
        ("last snapshot LSN", said.get("last_snapshot_lsn"), "number"),
        ("connections", stats.get("connections"), "count"),
        ("round trip", node.last.rtt_ms if node.last else None, "ms"),
    ):
        if value is not None:
            found.append((name, spelt(value, kind)))
    return found


def actions(records: Sequence[ActionRecord]) -> Table:
    """Return actions, newest first; `records` are oldest first."""
    moods: dict[str, Mood] = {"FAILED": "bad", "CANCELLED": "warn", "SUCCEEDED": "good"}
    rows = [
        Row(
            one.action_id,
            (
                None if one.requested_ms is None else one.requested_ms / 1000,
                one.name,
                one.entity_id,
                one.state or "unknown",
                took_ms(one),
                one.unavailable_ms,
                one.action_id,
                one.error,
            ),
            moods.get(one.state, ""),
        )
        for one in reversed(records)
    ]
    return Table(ACTIONS, tuple(rows), "nothing happened yet: playbook runs are noted here")


def events(recorded: Sequence[Recorded]) -> Table:
    """Return events, newest first; `recorded` are oldest first."""
    rows = []
    for one in reversed(recorded):
        envelope = one.envelope
        what = " ".join(f"{name}={value}" for name, value in envelope.attrs.items())
        cells = (envelope.ts_ms / 1000, envelope.event_type, envelope.entity_id, one.topic, what or None)
        rows.append(Row(event_key(one), cells))
    return Table(EVENTS, tuple(rows), "nothing happened yet: playbook runs are noted here")


def event_key(one: Recorded) -> str:
    """Return what names an event among all."""
    return f"{one.topic} {one.offset}"
