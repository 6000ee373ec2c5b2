"""The metrics of a node as Prometheus text, for system.metrics and the HTTP sidecar.

The first part has Karma 1.0's names in its order, taken from system.stats; then come ours. The
sidecar adds latency histograms, which the operation leaves out to stay a single short reply.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from karma.service.latency import OpLatency

_RENAMED = (
    ("uptime_seconds", "gauge", "uptime_seconds"),
    ("trees", "gauge", "trees"),
    ("keys", "gauge", "keys"),
    ("dumps", "gauge", "dump_count"),
    ("role", "role", "role"),
    ("wal_bytes", "gauge", "wal_bytes"),
    ("wal_current_lsn", "gauge", "wal_current_lsn"),
    ("replication_replayed_lsn", "gauge", "replication_replayed_lsn"),
    ("replication_lag_entries", "gauge", "replication_lag_entries"),
    ("replication_entries_applied_total", "counter", "replication_entries_applied"),
    ("replication_last_received_unix", "gauge", "replication_last_received_unix"),
    ("replication_poll_attempts_total", "counter", "replication_poll_attempt_count"),
    ("replication_poll_success_total", "counter", "replication_poll_success_count"),
    ("replication_poll_errors_total", "counter", "replication_poll_error_count"),
    ("replication_last_poll_attempt_unix", "gauge", "replication_last_poll_attempt_unix"),
    ("replication_last_poll_success_unix", "gauge", "replication_last_poll_success_unix"),
    ("replication_last_poll_error_unix", "gauge", "replication_last_poll_error_unix"),
    ("replication_bootstrap_attempts_total", "counter", "replication_bootstrap_attempt_count"),
    ("replication_bootstrap_success_total", "counter", "replication_bootstrap_success_count"),
    ("replication_bootstrap_errors_total", "counter", "replication_bootstrap_error_count"),
    ("replication_last_bootstrap_attempt_unix", "gauge", "replication_last_bootstrap_attempt_unix"),
    ("replication_last_bootstrap_success_unix", "gauge", "replication_last_bootstrap_success_unix"),
    ("replication_last_bootstrap_error_unix", "gauge", "replication_last_bootstrap_error_unix"),
    ("memory_bytes", "gauge", "memory_bytes"),
    ("commands_total", "counter", "command_count"),
    ("errors_total", "counter", "error_count"),
    ("query_timeouts_total", "counter", "query_timeout_count"),
    ("batch_reads_total", "counter", "batch_read_count"),
    ("batch_read_keys_total", "counter", "batch_read_key_count"),
    ("batch_writes_total", "counter", "batch_write_count"),
    ("batch_write_items_total", "counter", "batch_write_item_count"),
    ("retention_operations_total", "counter", "retention_count"),
    ("compactions_total", "counter", "compact_count"),
    ("reconciliation_runs_total", "counter", "reconciliation_run_count"),
    ("reconciliation_checked_points_total", "counter", "reconciliation_checked_points"),
    ("reconciliation_mismatches_total", "counter", "reconciliation_mismatch_count"),
    ("reconciliation_absolute_drift_total", "counter", "reconciliation_absolute_drift"),
    ("reconciliation_last_run_unix", "gauge", "reconciliation_last_run_unix"),
    ("reconciliation_last_checked_points", "gauge", "reconciliation_last_checked_points"),
    ("reconciliation_last_mismatches", "gauge", "reconciliation_last_mismatch_count"),
    ("reconciliation_last_absolute_drift", "gauge", "reconciliation_last_absolute_drift"),
    ("reconciliation_last_max_abs_delta", "gauge", "reconciliation_last_max_abs_delta"),
    ("recovery_checkpoints", "gauge", "recovery_checkpoint_count"),
    ("recovery_last_checkpoint_unix", "gauge", "recovery_last_checkpoint_unix"),
    ("command_latency_ms", "gauge", "latency_ms_last"),
    ("command_latency_ms_average", "gauge", "latency_ms_avg"),
    ("ingest_active_streams", "gauge", "ingest_active_streams"),
    ("ingest_chunks_applied_total", "counter", "ingest_chunks_applied"),
    ("ingest_chunks_skipped_total", "counter", "ingest_chunks_skipped"),
    ("ingest_chunks_rejected_total", "counter", "ingest_chunks_rejected"),
    ("ingest_items_applied_total", "counter", "ingest_items_applied"),
    ("ingest_chunk_latency_ms", "gauge", "ingest_latency_ms_last"),
    ("ingest_chunk_latency_ms_average", "gauge", "ingest_latency_ms_avg"),
    ("idempotency_records", "gauge", "idempotency_record_count"),
    ("idempotency_hits_total", "counter", "idempotency_hits"),
    ("idempotency_conflicts_total", "counter", "idempotency_conflicts"),
    ("idempotency_pruned_total", "counter", "idempotency_pruned"),
    ("idempotency_writes_total", "counter", "idempotency_write_count"),
    ("idempotency_write_latency_ms", "gauge", "idempotency_write_latency_ms_last"),
    ("idempotency_write_latency_ms_average", "gauge", "idempotency_write_latency_ms_avg"),
    ("idempotency_committed_streams", "gauge", "idempotency_committed_stream_count"),
    # Ours.
    ("connections", "gauge", "connections"),
    ("connections_rejected_total", "counter", "connections_rejected"),
    ("tokens_refused_total", "counter", "token_refused_count"),
    ("tls_handshakes_failed_total", "counter", "tls_failed_count"),
    ("disk_free_bytes", "gauge", "disk_free_bytes"),
    ("disk_total_bytes", "gauge", "disk_total_bytes"),
    ("torn_tails_cut_total", "counter", "torn_tails_cut"),
    ("storage_errors_total", "counter", "storage_error_count"),
    ("out_of_memory_total", "counter", "out_of_memory_count"),
    ("forced_orders_total", "counter", "forced_orders"),
    ("idempotency_evicted_total", "counter", "idempotency_evicted"),
    ("idempotency_evicted_retries_total", "counter", "idempotency_evicted_retries"),
    ("snapshots_failed_total", "counter", "snapshot_failure_count"),
    ("limits_allowed_total", "counter", "limit_allowed_count"),
    ("limits_refused_total", "counter", "limit_refused_count"),
    ("requests_with_unknown_fields_total", "counter", "unknown_field_count"),
    ("epoch", "gauge", "epoch"),
    ("replication_lag_ms", "gauge", "replication_lag_ms"),
    ("replication_lag_bytes", "gauge", "replication_lag_bytes"),
    ("log_dropped_lines_total", "counter", "log_dropped_line_count"),
    ("clock_steps_total", "counter", "clock_step_count"),
    ("expiry_clock_behind_seconds", "gauge", "expiry_clock_behind_seconds"),
)

_REPLICA_GAUGES = ("acked_lsn", "lag_entries", "lag_bytes", "lag_ms", "is_connected")

_BOUNDS_US = (50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000)


def render(stats: Mapping[str, Any]) -> str:
    """Return the Prometheus text of a node, given its system.stats."""
    return "".join(_lines(stats))


def render_latencies(latencies: Mapping[str, OpLatency]) -> str:
    """Return the latency histograms per operation, in seconds."""
    name = "karma_request_duration_seconds"
    lines = [f"# TYPE {name} histogram\n"] if latencies else []
    for op, latency in sorted(latencies.items()):
        total = latency.total
        lines += [
            f'{name}_bucket{{op="{op}",le="{bound_us / 1e6:g}"}} {total.at_most(bound_us)}\n'
            for bound_us in _BOUNDS_US
        ]
        lines.append(f'{name}_bucket{{op="{op}",le="+Inf"}} {total.count}\n')
        lines.append(f'{name}_sum{{op="{op}"}} {total.sum_us / 1e6}\n')
        lines.append(f'{name}_count{{op="{op}"}} {total.count}\n')
    return "".join(lines)


def _lines(stats: Mapping[str, Any]) -> Iterator[str]:
    for name, kind, source in _RENAMED:
        if kind == "role":
            yield f'# TYPE karma_role gauge\nkarma_role{{role="{stats[source]}"}} 1\n'
        else:
            yield f"# TYPE karma_{name} {kind}\nkarma_{name} {stats[source]}\n"
    yield f"# TYPE karma_fenced gauge\nkarma_fenced{_fence_labels(stats['fenced_by'])}\n"
    for name, is_so in (
        ("paused", stats["paused_until"] is not None),
        ("maintenance", stats["maintenance"] is not None),
        ("sync_degraded", stats["sync_degraded"]),
        ("storage_failing", stats["storage_error"] is not None),
        ("snapshot_failing", stats["snapshot_error"] is not None),
        ("rotation_failing", stats["rotation_error"] is not None),
    ):
        yield f"# TYPE karma_{name} gauge\nkarma_{name} {int(is_so)}\n"
    for name in _REPLICA_GAUGES if stats["replicas"] else ():
        yield f"# TYPE karma_replica_{name} gauge\n"
        for replica in stats["replicas"]:
            labels = f'node_id="{replica["node_id"]}",address="{replica["address"]}"'
            yield f"karma_replica_{name}{{{labels}}} {int(replica[name])}\n"


def _fence_labels(fence: Mapping[str, Any] | None) -> str:
    """Return what follows the name of the fence's gauge: who set it and when, if there is one."""
    if not fence:
        return " 0"
    by = fence["node_id"] or "operator"
    return f'{{by="{by}",epoch="{fence["epoch"]}",since_unix_ms="{fence["since_unix_ms"]}"}} 1'
