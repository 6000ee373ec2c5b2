"""What the engine and the service count; `system.stats` and the metrics show it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Counts since the start of the process. Times are unix seconds, latencies milliseconds."""

    commands: int = 0
    errors: int = 0
    query_timeouts: int = 0
    batch_reads: int = 0
    batch_read_keys: int = 0
    batch_writes: int = 0
    batch_write_items: int = 0
    retentions: int = 0
    compactions: int = 0
    reconciliation_runs: int = 0
    reconciliation_checked_points: int = 0
    reconciliation_mismatches: int = 0
    reconciliation_absolute_drift: int = 0
    reconciliation_last_run_unix: int = 0
    reconciliation_last_checked_points: int = 0
    reconciliation_last_mismatches: int = 0
    reconciliation_last_absolute_drift: int = 0
    reconciliation_last_max_abs_delta: int = 0
    ingest_chunks_applied: int = 0
    ingest_chunks_skipped: int = 0
    ingest_chunks_rejected: int = 0
    ingest_items_applied: int = 0
    idempotency_hits: int = 0
    idempotency_conflicts: int = 0
    idempotency_evicted_retries: int = 0
    """Keys that came again after their record went to make room: these writes counted twice."""
    idempotency_writes: int = 0
    limit_allowed: int = 0
    limit_refused: int = 0
    unknown_fields: int = 0
    """Requests with a field that their operation does not have; none while strict-fields refuses them."""
    storage_errors: int = 0
    out_of_memory: int = 0
    internal_errors: list[str] = field(default_factory=list)
    """Bugs met, as text, until the service has logged them."""
