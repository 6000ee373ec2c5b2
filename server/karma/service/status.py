"""What the server says about itself: health, stats, metrics, replication status.

Field and metric names up to the extensions are Karma 1.0's, in its order.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karma import __version__
from karma.config import Config
from karma.limits import STATUS_ITEMS
from karma.service.checkpoints import Checkpoints
from karma.service.latency import OpLatency, merged, summaries, summary
from karma.service.leases import Leases
from karma.service.replicas import Replicas, SyncGate
from karma.service.roles import Roles, describe_fence
from karma.service.snapshots import Snapshots
from karma.service.write_path import WritePath
from karma.storage.disk import Disk

_MS = 1000.0
_WAITING_OPS = ("replication.entries", "replication.wait")


@dataclass(slots=True, repr=False)
class Status:
    """Composes the server's descriptions of itself. Clocks: `clock` unix seconds, `monotonic` seconds."""

    config: Config
    write_path: WritePath
    snapshots: Snapshots
    checkpoints: Checkpoints
    disk: Disk
    directory: Path
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    started: float
    """The monotonic time of the start."""
    connections: Callable[[], int]
    rejected_connections: Callable[[], int]
    access: Callable[[], tuple[int, int]]
    """Returns how many tokens were refused, and how many TLS handshakes failed."""
    roles: Roles
    leases: Leases
    replicas: Replicas
    gate: SyncGate | None
    following: Callable[[], dict[str, Any]]
    """Returns what a slave says of its source: the fields of `FOLLOWING`, and ours."""
    torn_tails_cut: int = 0
    _rates: list[tuple[float, int]] = field(default_factory=list)

    # -- Operations ----------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """Return the response of system.health."""
        trouble, fence = self.write_path.storage_trouble, self.roles.node.fence
        status = "ok" if fence is None else "fenced"
        health: dict[str, Any] = {
            "status": status if trouble is None else "storage_error",
            "uptime_seconds": self.uptime_seconds,
            "role": self.roles.node.role,
            "wal_enabled": self.write_path.wal is not None,
        }
        if trouble is not None:
            health["storage_error"] = trouble
        if fence is not None:
            health["fenced_by"] = fence.describe()
        if self.is_degraded:
            health["sync_degraded"] = True
        if self.snapshots.trouble is not None:
            health["snapshot_error"] = self.snapshots.trouble
        if self.snapshots.rotation_trouble is not None:
            health["rotation_error"] = self.snapshots.rotation_trouble
        return health

    @property
    def is_degraded(self) -> bool:
        """Whether writes were answered that too few replicas hold."""
        return self.gate is not None and self.gate.is_degraded

    def unready(self) -> str | None:
        """Return why the node should get no traffic, None when it may."""
        trouble, node = self.write_path.storage_trouble, self.roles.node
        if trouble is not None:
            return f"storage trouble: {trouble}"
        if node.fence is not None:
            return describe_fence(node.fence)
        if node.role == "master":
            return None
        following = self.following()
        state, lag_entries = following["replication_state"], following["replication_lag_entries"]
        if state == "bootstrapping" or node.must_rebuild:
            return "bootstrapping"
        if node.source is not None and not self._last_lsn and state not in ("following", "polling"):
            return f"nothing received from the source yet ({state})"
        if lag_entries > self.config.ready_max_lag_entries:
            return f"{lag_entries} entries behind the source"
        if node.source is not None and state in ("diverged", "refused", "storage_error"):
            return f"{state}: {following['replication_reason']}"
        return None

    def latency(self) -> dict[str, Any]:
        """Return the response of system.latency."""
        return summaries(self.write_path.measured(), self.monotonic())

    def replication(self) -> dict[str, Any]:
        """Return the response of replication.status."""
        log_file = self.write_path.wal
        recovery = self.checkpoints.summary()
        node, epoch, following = self.roles.node, self.roles.epoch, self.following()
        own = (
            "filled",
            "lag_ms",
            "lag_bytes",
            "replication_state",
            "replication_reason",
            "master",
            "path",
            "source_node_id",
        )
        return {
            "role": node.role,
            "wal_enabled": log_file is not None,
            "wal_current_lsn": self._last_lsn,
            "wal_bytes": log_file.size_bytes if log_file else 0,
            "replayed_lsn": self._replayed_lsn,
            **{name: following[name] for name in FOLLOWING},
            "last_snapshot_lsn": self.snapshots.last_lsn,
            "latest_snapshots": self.snapshots.newest(STATUS_ITEMS),
            "recovery": recovery,
            "recovery_checkpoint_count": recovery["checkpoint_count"],
            # What Karma 1.0 does not have.
            "latest_snapshot_count": len(self.snapshots.listing.latest()),
            "node_id": node.node_id,
            "cluster_id": node.cluster_id,
            "epoch": epoch.number,
            "epoch_node_id": epoch.node_id,
            "epochs": node.history.to_json(),
            "source": None if node.source is None else str(node.source),
            **{name: following[name] for name in own},
            "must_rebuild": node.must_rebuild,
            "wal_durable_lsn": self._durable_lsn,
            "wal_first_lsn": log_file.first_lsn if log_file else 0,
            "paused_until": self.roles.paused_until_unix_ms,
            "pending_change": self.roles.pending_change,
            "paused_by": self.roles.paused_by,
            "lease": self.leases.describe() if self.leases.live else None,
            "lease_number": node.lease_number,
            "parked": self.leases.parked(),
            "maintenance": self.leases.maintenance,
            "fenced_by": node.fence.describe() if node.fence else None,
            "sync_replicas": self.config.sync_replicas,
            "sync_degraded": self.is_degraded,
            "replicas": self.replicas.describe(),
            "duplicate_node_ids": self.replicas.describe_twins(),
            **self._clocks(),
        }

    def stats(self) -> dict[str, Any]:
        """Return the response of system.stats."""
        counters = self.write_path.engine.counters
        store = self.write_path.engine.store
        log_file = self.write_path.wal
        now = self.monotonic()
        # Who waits for news by intent says nothing about how fast the server is.
        measured = [latency for op, latency in self.write_path.measured().items() if op not in _WAITING_OPS]
        every = merged(latency.total for latency in measured)
        chunks = self._total("ingest.chunk")
        free_bytes, total_bytes = self.disk.space(self.directory)
        following, fence = self.following(), self.roles.node.fence
        last_minute = merged(latency.last_minute(now) for latency in measured)
        return {
            "uptime_seconds": self.uptime_seconds,
            "trees": len(store.series),
            "keys": sum(len(series.counters) for series in store.series.values()),
            "dump_count": self.snapshots.count,
            "role": self.roles.node.role,
            "wal_enabled": log_file is not None,
            "wal_bytes": log_file.size_bytes if log_file else 0,
            "wal_current_lsn": self._last_lsn,
            "replication_replayed_lsn": self._replayed_lsn,
            **{name: following[name] for name in FOLLOWING},
            "memory_bytes": self.rss_bytes,
            "command_count": max(counters.commands - 1, 0),
            "error_count": counters.errors,
            "query_timeout_count": counters.query_timeouts,
            "batch_read_count": counters.batch_reads,
            "batch_read_key_count": counters.batch_read_keys,
            "batch_write_count": counters.batch_writes,
            "batch_write_item_count": counters.batch_write_items,
            "retention_count": counters.retentions,
            "compact_count": counters.compactions,
            "reconciliation_run_count": counters.reconciliation_runs,
            "reconciliation_checked_points": counters.reconciliation_checked_points,
            "reconciliation_mismatch_count": counters.reconciliation_mismatches,
            "reconciliation_absolute_drift": counters.reconciliation_absolute_drift,
            "reconciliation_last_run_unix": counters.reconciliation_last_run_unix,
            "reconciliation_last_checked_points": counters.reconciliation_last_checked_points,
            "reconciliation_last_mismatch_count": counters.reconciliation_last_mismatches,
            "reconciliation_last_absolute_drift": counters.reconciliation_last_absolute_drift,
            "reconciliation_last_max_abs_delta": counters.reconciliation_last_max_abs_delta,
            "recovery_checkpoint_count": len(self.checkpoints.by_source),
            "recovery_last_checkpoint_unix": self.checkpoints.last_unix,
            "latency_ms_avg": every.mean_us / _MS,
            "latency_ms_last": self.write_path.last_us / _MS,
            "ingest_active_streams": len(store.streams.active),
            "ingest_chunks_applied": counters.ingest_chunks_applied,
            "ingest_chunks_skipped": counters.ingest_chunks_skipped,
            "ingest_chunks_rejected": counters.ingest_chunks_rejected,
            "ingest_items_applied": counters.ingest_items_applied,
            "ingest_latency_ms_last": chunks.last_us / _MS,
            "ingest_latency_ms_avg": chunks.mean_us / _MS,
            "idempotency_record_count": len(store.records),
            "idempotency_hits": counters.idempotency_hits,
            "idempotency_conflicts": counters.idempotency_conflicts,
            "idempotency_pruned": store.records.pruned_count,
            "idempotency_write_count": counters.idempotency_writes,
            # Remembering is part of its write here, and takes as long as that.
            "idempotency_write_latency_ms_last": self.write_path.last_us / _MS,
            "idempotency_write_latency_ms_avg": every.mean_us / _MS,
            "idempotency_committed_stream_count": len(store.streams.committed),
            # What Karma 1.0 does not have.
            "version": __version__,
            "node_id": self.roles.node.node_id,
            "cluster_id": self.roles.node.cluster_id,
            "epoch": self.roles.epoch.number,
            "fenced_by": fence.describe() if fence else None,
            "paused_until": self.roles.paused_until_unix_ms,
            "maintenance": self.leases.maintenance,
            "forced_orders": self.roles.forced_orders,
            "replication_state": following["replication_state"],
            "replication_lag_ms": following["lag_ms"],
            "replication_lag_bytes": following["lag_bytes"],
            "sync_degraded": self.is_degraded,
            "replicas": self.replicas.describe(),
            "max_request_bytes": self.config.max_request_bytes,
            "max_response_bytes": self.config.max_response_bytes,
            "read_timeout_seconds": self.config.read_timeout_seconds,
            "server_time_unix_ms": int(self.clock() * 1000),
            "disk_free_bytes": free_bytes,
            "disk_total_bytes": total_bytes,
            "rss_bytes": self.rss_bytes,
            "connections": self.connections(),
            "connections_rejected": self.rejected_connections(),
            "token_refused_count": self.access()[0],
            "tls_failed_count": self.access()[1],
            "ops_per_second": round(self.ops_per_second(now), 1),
            "torn_tails_cut": self.torn_tails_cut,
            "log_dropped_line_count": self.write_path.log.dropped_lines,
            "idempotency_evicted": store.records.evicted_count,
            "idempotency_evicted_retries": counters.idempotency_evicted_retries,
            "storage_error_count": counters.storage_errors,
            "storage_error": self.write_path.storage_trouble,
            "out_of_memory_count": counters.out_of_memory,
            "snapshot_failure_count": self.snapshots.failures,
            "snapshot_error": self.snapshots.trouble,
            "rotation_error": self.snapshots.rotation_trouble,
            "limit_allowed_count": counters.limit_allowed,
            "limit_refused_count": counters.limit_refused,
            "unknown_field_count": counters.unknown_fields,
            "latency_last_minute": summary(last_minute),
            **self._clocks(),
        }

    # -- Parts ---------------------------------------------------------------------------------

    @property
    def uptime_seconds(self) -> float:
        """Seconds since the start."""
        return self.monotonic() - self.started

    @property
    def rss_bytes(self) -> int:
        """Resident memory of the process."""
        return self.disk.resident_bytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def sample(self) -> None:
        """Note the command count, for the rate; called about once a second."""
        self._rates.append((self.monotonic(), self.write_path.engine.counters.commands))
        del self._rates[:-11]

    def ops_per_second(self, now: float) -> float:
        """Return the rate of requests over the last ten seconds."""
        since, commands = self._rates[0] if self._rates else (self.started, 0)
        return (self.write_path.engine.counters.commands - commands) / max(now - since, 0.001)

    @property
    def _last_lsn(self) -> int:
        log_file = self.write_path.wal
        return log_file.last_lsn if log_file else 0

    @property
    def _durable_lsn(self) -> int:
        log_file = self.write_path.wal
        if log_file is None:
            return 0
        return log_file.durable_lsn if self.write_path.is_synced else log_file.last_lsn

    @property
    def _replayed_lsn(self) -> int:
        return 0 if self.roles.is_master else self._last_lsn

    def _clocks(self) -> dict[str, Any]:
        """Return what became of the wall clock, and how far the one is behind it by which records age."""
        expiry = self.write_path.engine.expiry
        return {
            "clock_step_count": expiry.step_count if expiry else 0,
            "clock_last_step_seconds": expiry.last_step_seconds if expiry else 0.0,
            "expiry_clock_behind_seconds": expiry.behind_seconds if expiry else 0,
        }

    def _total(self, op: str) -> Any:
        return self.write_path.measured().get(op, OpLatency()).total


FOLLOWING = (
    "replication_lag_entries",
    "replication_entries_applied",
    "replication_last_received_unix",
    "replication_poll_attempt_count",
    "replication_poll_success_count",
    "replication_poll_error_count",
    "replication_last_poll_attempt_unix",
    "replication_last_poll_success_unix",
    "replication_last_poll_error_unix",
    "replication_last_poll_error",
    "replication_bootstrap_attempt_count",
    "replication_bootstrap_success_count",
    "replication_bootstrap_error_count",
    "replication_last_bootstrap_attempt_unix",
    "replication_last_bootstrap_success_unix",
    "replication_last_bootstrap_error_unix",
    "replication_last_bootstrap_error",
)
"""What a slave says of its source in system.stats, in the names and the order of Karma 1.0."""
