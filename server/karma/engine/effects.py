"""Operations that need a disk, a clock or the network: fields are checked here, the service does the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from karma.core.ingest import STREAMS_FILE
from karma.engine.dispatch import Effect, Engine
from karma.limits import (
    CHECKPOINTS_MAX_LIMIT,
    CLIENTS_DEFAULT_LIMIT,
    CLIENTS_MAX_LIMIT,
    MAX_HOLDER_BYTES,
    MAX_LEASE_MS,
    MAX_MAINTENANCE_MS,
    MAX_PAUSE_MS,
    MAX_REASON_BYTES,
    MAX_RUN_BYTES,
    MAX_SOURCE_BYTES,
    MAX_TOKEN_BYTES,
    REPLICATION_ENTRIES_DEFAULT_LIMIT,
    REPLICATION_ENTRIES_MAX_LIMIT,
    REPLICATION_MAX_WAIT_MS,
    SNAPSHOT_CHUNK_DEFAULT_BYTES,
    SNAPSHOT_CHUNK_MAX_BYTES,
    U64_MAX,
)
from karma.ops import BY_NAME
from karma.protocol import fields, pages, replies

Request = dict[str, Any]
LeaseVerb = Literal["take", "renew", "release", "park"]
_LEASE_VERBS = ("take", "renew", "release", "park")
_PARKED_KINDS = ("scheduled", "cooldown")


@dataclass(frozen=True, slots=True)
class Order:
    """On whose behalf a role is changed: a run, under the lease of that number. `force` overrides others."""

    run: str | None = None
    lease: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """The fields of replication.lease. `lease` is the number that the caller believes to be the last."""

    do: LeaseVerb
    cluster_id: str
    run: str
    holder: str
    ttl_ms: int = 0
    lease: int | None = None
    force: bool = False
    text: str = ""
    at_unix_ms: int = 0
    kind: str = "scheduled"


def ping(_engine: Engine, _request: Request) -> bytes:
    """system.ping"""
    return replies.PONG


def plain(_engine: Engine, request: Request) -> Effect:
    """Every operation without fields."""
    return Effect(request["op"])


def snapshot_create(engine: Engine, request: Request) -> Effect:
    """snapshot.create"""
    return Effect("snapshot.create", {"series": engine.series_name(request)})


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
    file = fields.file_name(request, also=STREAMS_FILE)
    return Effect("snapshot.fetch_chunk", {"file": file, **_chunk(request)})


def snapshot_info(_engine: Engine, request: Request) -> Effect:
    """snapshot.info"""
    return Effect(
        "snapshot.info", {"with_files": fields.flag(request, "files"), "page": pages.requested(request)}
    )


def snapshot_list(_engine: Engine, request: Request) -> Effect:
    """snapshot.list"""
    return Effect("snapshot.list", {"page": pages.requested(request)})


def records_fetch_chunk(_engine: Engine, request: Request) -> Effect:
    """idempotency.snapshot_fetch_chunk"""
    return Effect("idempotency.snapshot_fetch_chunk", _chunk(request))


def recovery_checkpoint(engine: Engine, request: Request) -> Effect:
    """recovery.checkpoint"""
    checkpoint = fields.checkpoint(request)
    if checkpoint["offset"] is None and checkpoint["event_id"] is None:
        raise fields.invalid("Field offset or event_id is required")
    engine.check_writable()
    return Effect("recovery.checkpoint", checkpoint)


def recovery_status(_engine: Engine, request: Request) -> Effect:
    """recovery.status"""
    has_source = request.get("source") is not None
    has_limit, has_cursor = request.get("limit") is not None, request.get("cursor") is not None
    return Effect(
        "recovery.status",
        {
            "source": fields.text(request, "source", MAX_SOURCE_BYTES) if has_source else None,
            "limit": fields.limit(request, "limit", 1, CHECKPOINTS_MAX_LIMIT) if has_limit else None,
            "cursor": fields.text(request, "cursor", MAX_SOURCE_BYTES) if has_cursor else None,
        },
    )


def system_clients(_engine: Engine, request: Request) -> Effect:
    """system.clients"""
    return Effect(
        "system.clients",
        {
            "limit": fields.limit(request, "limit", CLIENTS_DEFAULT_LIMIT, CLIENTS_MAX_LIMIT),
            "after_id": fields.u64(request, "after_id", 0),
        },
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


# -- Replication ---------------------------------------------------------------------------------


_EXTENSIONS = frozenset(field.name for field in BY_NAME["replication.entries"].fields) - {
    "after_lsn",
    "limit",
}


def replication_entries(engine: Engine, request: Request) -> Effect:
    """replication.entries"""
    return Effect(
        "replication.entries",
        {
            "after_lsn": fields.u64(request, "after_lsn"),
            "acked_lsn": _number(request, "acked_lsn"),
            "limit": fields.limit(
                request, "limit", REPLICATION_ENTRIES_DEFAULT_LIMIT, REPLICATION_ENTRIES_MAX_LIMIT
            ),
            "wait_ms": _milliseconds(request, "wait_ms", REPLICATION_MAX_WAIT_MS, 0),
            "is_handshake": fields.flag(request, "handshake"),
            "as_lines": fields.flag(request, "lines"),
            # Who uses none of our fields is answered as Karma 1.0 answers.
            "is_plain": not any(name in request for name in _EXTENSIONS),
            "is_peer": engine.is_peer(request),
            "checkpoint": fields.position(request, "checkpoint_position"),
            "claims": {
                "node_id": fields.identifier(request, "node_id"),
                "cluster_id": fields.identifier(request, "cluster_id"),
                "epoch": _number(request, "epoch"),
                "epoch_node_id": fields.identifier(request, "epoch_node_id"),
                "after_epoch": _number(request, "after_epoch"),
                "after_epoch_node_id": fields.identifier(request, "after_epoch_node_id"),
                "after_crc": fields.identifier(request, "after_crc"),
                "port": None if request.get("port") is None else _port(request),
                "is_leaving": fields.flag(request, "leaving"),
            },
        },
    )


def replication_wait(_engine: Engine, request: Request) -> Effect:
    """replication.wait"""
    return Effect(
        "replication.wait",
        {
            "lsn": _number(request, "lsn"),
            "acks": fields.u64(request, "acks"),
            "timeout_ms": _milliseconds(request, "timeout_ms", REPLICATION_MAX_WAIT_MS),
        },
    )


def replication_follow(_engine: Engine, request: Request) -> Effect:
    """replication.follow"""
    host, port = fields.host(request, "host"), _port(request)
    tokens = {
        name: None if request.get(name) is None else fields.text(request, name, MAX_TOKEN_BYTES)
        for name in ("source_token", "token")
    }
    return Effect(
        "replication.follow",
        {
            "host": host,
            "port": port,
            **tokens,
            "rebuild": fields.flag(request, "rebuild"),
            "order": _order(request),
        },
    )


def replication_promote(_engine: Engine, request: Request) -> Effect:
    """replication.promote"""
    return Effect("replication.promote", {"epoch": _number(request, "epoch"), "order": _order(request)})


def replication_resume(_engine: Engine, request: Request) -> Effect:
    """replication.resume"""
    return Effect("replication.resume", {"order": _order(request)})


def replication_pause(_engine: Engine, request: Request) -> Effect:
    """replication.pause"""
    ttl_ms = _milliseconds(request, "ttl_ms", MAX_PAUSE_MS)
    if not ttl_ms:
        raise fields.invalid("Field ttl_ms must be at least 1")
    return Effect("replication.pause", {"ttl_ms": ttl_ms, "order": _order(request)})


def replication_fence(_engine: Engine, request: Request) -> Effect:
    """replication.fence"""
    reason = _line(request, "reason", MAX_REASON_BYTES)
    epoch = fields.u64(request, "epoch")
    return Effect("replication.fence", {"epoch": epoch, "reason": reason, "order": _order(request)})


def replication_unfence(_engine: Engine, request: Request) -> Effect:
    """replication.unfence"""
    return Effect("replication.unfence", {"epoch": fields.u64(request, "epoch"), "order": _order(request)})


def replication_lease(_engine: Engine, request: Request) -> Effect:
    """replication.lease"""
    do = fields.text(request, "do", MAX_RUN_BYTES)
    if do not in _LEASE_VERBS:
        raise fields.invalid("Field do must be take, renew, release or park")
    cluster_id = fields.identifier(request, "cluster_id")
    if cluster_id is None:
        raise fields.invalid("Field cluster_id is required")
    kind = fields.text(request, "kind", MAX_RUN_BYTES, "scheduled")
    if kind not in _PARKED_KINDS:
        raise fields.invalid("Field kind must be scheduled or cooldown")
    needs_ttl, is_parking = do in ("take", "renew"), do == "park"
    ttl_ms = _milliseconds(request, "ttl_ms", MAX_LEASE_MS, None if needs_ttl else 0)
    if needs_ttl and not ttl_ms:
        raise fields.invalid("Field ttl_ms must be at least 1")
    lease = LeaseRequest(
        do=cast("LeaseVerb", do),
        cluster_id=cluster_id,
        run=_line(request, "run", MAX_RUN_BYTES),
        holder=_line(request, "holder", MAX_HOLDER_BYTES, None if needs_ttl else "an operator"),
        ttl_ms=ttl_ms,
        lease=_number(request, "lease"),
        force=fields.flag(request, "force"),
        text=_line(request, "text", MAX_HOLDER_BYTES, None if is_parking else ""),
        at_unix_ms=fields.u64(request, "at_unix_ms", None if is_parking else 0),
        kind=kind,
    )
    return Effect("replication.lease", {"request": lease})


def replication_maintenance(_engine: Engine, request: Request) -> Effect:
    """replication.maintenance"""
    return Effect(
        "replication.maintenance",
        {
            "reason": _line(request, "reason", MAX_REASON_BYTES),
            "ttl_ms": _milliseconds(request, "ttl_ms", MAX_MAINTENANCE_MS),
            "is_durable": fields.flag(request, "durable"),
        },
    )


def _order(request: Request) -> Order:
    run = None if request.get("run") is None else _line(request, "run", MAX_RUN_BYTES)
    return Order(run, _number(request, "lease"), fields.flag(request, "force"))


def _line(request: Request, name: str, max_bytes: int, default: str | None = None) -> str:
    value = fields.text(request, name, max_bytes, default)
    if not value.isprintable():
        raise fields.invalid(f"Field {name} must be one line of text")
    return value


def _number(request: Request, name: str) -> int | None:
    return None if request.get(name) is None else fields.u64(request, name)


def _port(request: Request) -> int:
    port = fields.u64(request, "port", minimum=1)
    if port > 65_535:
        raise fields.invalid("Field port must be from 1 to 65535")
    return port


def _milliseconds(request: Request, name: str, maximum_ms: int, default: int | None = None) -> int:
    value = fields.u64(request, name, default)
    if value > maximum_ms:
        raise fields.invalid(f"Field {name} must be at most {maximum_ms}")
    return value


# -- Parts ---------------------------------------------------------------------------------------


def _chunk(request: Request) -> dict[str, int]:
    return {
        "offset": fields.u64(request, "offset", 0),
        "limit": fields.limit(request, "limit", SNAPSHOT_CHUNK_DEFAULT_BYTES, SNAPSHOT_CHUNK_MAX_BYTES),
    }
