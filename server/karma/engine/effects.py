"""Operations that need a disk, a clock or the network: fields are checked here, the service does the rest."""

from __future__ import annotations

from typing import Any

from karma.engine.dispatch import Effect, Engine
from karma.limits import (
    MAX_SOURCE_BYTES,
    REPLICATION_ENTRIES_DEFAULT_LIMIT,
    REPLICATION_ENTRIES_MAX_LIMIT,
    SNAPSHOT_CHUNK_DEFAULT_BYTES,
    SNAPSHOT_CHUNK_MAX_BYTES,
    U64_MAX,
)
from karma.protocol import fields, replies

Request = dict[str, Any]


def ping(_engine: Engine, _request: Request) -> bytes:
    """system.ping"""
    return replies.PONG


def plain(_engine: Engine, request: Request) -> Effect:
    """Every operation without fields."""
    return Effect(request["op"])


def snapshot_create(_engine: Engine, request: Request) -> Effect:
    """snapshot.create"""
    return Effect("snapshot.create", {"series": fields.series(request)})


def snapshot_load(engine: Engine, request: Request) -> Effect:
    """snapshot.load"""
    file = fields.file_name(request)
    engine.check_writable()
    return Effect("snapshot.load", {"file": file})


def snapshot_fetch(_engine: Engine, request: Request) -> Effect:
    """snapshot.fetch"""
    return Effect("snapshot.fetch", {"file": fields.file_name(request)})


def snapshot_fetch_chunk(_engine: Engine, request: Request) -> Effect:
    """snapshot.fetch_chunk"""
    return Effect("snapshot.fetch_chunk", {"file": fields.file_name(request), **_chunk(request)})


def records_fetch_chunk(_engine: Engine, request: Request) -> Effect:
    """idempotency.snapshot_fetch_chunk"""
    return Effect("idempotency.snapshot_fetch_chunk", _chunk(request))


def recovery_checkpoint(engine: Engine, request: Request) -> Effect:
    """recovery.checkpoint"""
    source = fields.text(request, "source", MAX_SOURCE_BYTES)
    offset = fields.text_or_number(request, "offset", MAX_SOURCE_BYTES)
    event_id = fields.text_or_number(request, "event_id", MAX_SOURCE_BYTES)
    if offset is None and event_id is None:
        raise fields.invalid("Field offset or event_id is required")
    engine.check_writable()
    return Effect("recovery.checkpoint", {"source": source, "offset": offset, "event_id": event_id})


def recovery_status(_engine: Engine, request: Request) -> Effect:
    """recovery.status"""
    has_source = request.get("source") is not None
    return Effect(
        "recovery.status",
        {"source": fields.text(request, "source", MAX_SOURCE_BYTES) if has_source else None},
    )


def reconciliation_report(engine: Engine, request: Request) -> bytes:
    """reconciliation.report"""
    checked = fields.u64(request, "checked_points")
    mismatches = fields.u64(request, "mismatch_count")
    drift = fields.u64(request, "absolute_drift", 0)
    delta = fields.u64(request, "max_abs_delta", 0)
    if mismatches > checked:
        raise fields.invalid("Field mismatch_count must be less than or equal to checked_points")
    counters = engine.counters
    counters.reconciliation_runs += 1
    # A sum past 64 bits would be one that no reply can say: it stays at the top.
    counters.reconciliation_checked_points = min(counters.reconciliation_checked_points + checked, U64_MAX)
    counters.reconciliation_mismatches = min(counters.reconciliation_mismatches + mismatches, U64_MAX)
    counters.reconciliation_absolute_drift = min(counters.reconciliation_absolute_drift + drift, U64_MAX)
    counters.reconciliation_last_run_unix = engine.now_unix
    counters.reconciliation_last_checked_points = checked
    counters.reconciliation_last_mismatches = mismatches
    counters.reconciliation_last_absolute_drift = drift
    counters.reconciliation_last_max_abs_delta = delta
    return replies.OK


def replication_entries(_engine: Engine, request: Request) -> Effect:
    """replication.entries"""
    return Effect(
        "replication.entries",
        {
            "after_lsn": fields.u64(request, "after_lsn"),
            "limit": fields.limit(
                request, "limit", REPLICATION_ENTRIES_DEFAULT_LIMIT, REPLICATION_ENTRIES_MAX_LIMIT
            ),
        },
    )


def _chunk(request: Request) -> dict[str, int]:
    return {
        "offset": fields.u64(request, "offset", 0),
        "limit": fields.limit(request, "limit", SNAPSHOT_CHUNK_DEFAULT_BYTES, SNAPSHOT_CHUNK_MAX_BYTES),
    }
