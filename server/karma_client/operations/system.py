"""The server: what it says of itself, and its snapshots, records and checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from karma_client.binding import operation
from karma_client.calls import (
    ADMIN_READS,
    REPEATABLE_WRITES,
    Call,
    anything,
    nothing,
    number,
    read,
    text,
    texts,
    write,
)
from karma_client.lazy import LazyModule

if TYPE_CHECKING:
    from karma_client import results
else:
    results = LazyModule("karma_client.results")


class System:
    """Operations on the server. Which node answers depends on the client's target."""

    @operation
    def call(self, op: str, /, **fields: Any) -> Call[Any]:
        """Perform any operation of the protocol and return its response as it is.

        It is sent again only if the op table knows it as a read, or with an idempotency key where that is
        allowed.

        >>> client.call("counter.sum", series="api_requests", key=42)
        3
        """
        from karma.ops import BY_NAME  # noqa: PLC0415 - typed operations need no table

        known = BY_NAME.get(op)
        if known is None:
            # Nobody knows whether it may be sent twice.
            return Call(op, fields, anything, is_repeatable=False)
        has_key = known.idempotent and fields.get("idempotency_key") is not None
        is_repeatable = known.access == "R" or known.name in REPEATABLE_WRITES or has_key
        is_write = known.access != "R" and known.name not in ADMIN_READS
        return Call(known.name, fields, anything, is_repeatable, is_extension=True, is_write=is_write)

    @operation
    def ping(self) -> Call[str]:
        """Return "pong".

        >>> client.ping()
        'pong'
        """
        return read("system.ping", text)

    @operation
    def health(self) -> Call[results.Health]:
        """Return status, role and uptime."""
        return read("system.health", results.Health.of)

    @operation
    def stats(self) -> Call[results.Stats]:
        """Return every counter and gauge. The client learns the server's read timeout from it."""
        return read("system.stats", results.Stats.of)

    @operation
    def metrics(self) -> Call[str]:
        """Return the metrics as Prometheus text."""
        return read("system.metrics", text)

    @operation
    def latency(self) -> Call[dict[str, results.OpLatency]]:
        """Return latency percentiles by operation."""
        return read("system.latency", results.latencies, is_extension=True)

    @operation
    def clients(
        self, *, limit: int | None = None, after_id: int | None = None
    ) -> Call[list[results.Connection]]:
        """Return the server's open connections, the 1,000 oldest or `limit`, behind the one of `after_id`."""
        return read(
            "system.clients", results.Connection.list_of, is_extension=True, limit=limit, after_id=after_id
        )

    @operation
    def compact_all(self) -> Call[None]:
        """Remove keys whose total is 0 from every series."""
        return write("system.compact", nothing)

    @operation
    def create_snapshot(self, series: str) -> Call[str]:
        """Snapshot one series; returns the server's message."""
        return write("snapshot.create", text, series=series)

    @operation
    def create_snapshots(self) -> Call[None]:
        """Snapshot everything at one LSN and truncate the log."""
        return write("snapshot.create_all", nothing)

    @operation
    def list_snapshots(self) -> Call[list[str]]:
        """Return the paths of snapshot files on the server, newest first."""
        return read("snapshot.list", texts)

    @operation
    def snapshot_info(self) -> Call[results.SnapshotInfo]:
        """Return the newest snapshot of each series, and the log's position."""
        return read("snapshot.info", results.SnapshotInfo.of)

    @operation
    def verify_snapshots(self) -> Call[results.SnapshotVerification]:
        """Restore the directory aside, on the server, and check it."""
        return read("snapshot.verify", results.SnapshotVerification.of)

    @operation
    def load_snapshot(self, file: str) -> Call[str]:
        """Replace a series by a snapshot of it; `file` is a base name. Returns the server's message."""
        return write("snapshot.load", text, file=file)

    @operation
    def snapshot_chunk(
        self, file: str, *, offset: int = 0, limit_bytes: int | None = None
    ) -> Call[results.FileChunk]:
        """Return a part of a snapshot file; see `fetch_snapshot` for the whole of it."""
        return read("snapshot.fetch_chunk", results.FileChunk.of, file=file, offset=offset, limit=limit_bytes)

    @operation
    def idempotency_chunk(
        self, *, offset: int = 0, limit_bytes: int | None = None
    ) -> Call[results.FileChunk]:
        """Return a part of the snapshot of idempotency records."""
        return read(
            "idempotency.snapshot_fetch_chunk", results.FileChunk.of, offset=offset, limit=limit_bytes
        )

    @operation
    def prune_idempotency(self, before: int | str, *, limit: int | None = None) -> Call[int]:
        """Forget idempotency records from before a time (unix seconds or RFC 3339); returns how many."""
        return write("idempotency.prune", _deleted, before=before, limit=limit)

    @operation
    def recovery_checkpoint(
        self, source: str, *, offset: str | int | None = None, event_id: str | int | None = None
    ) -> Call[results.Checkpoint]:
        """Remember how far an external pipeline got."""
        return write(
            "recovery.checkpoint", results.Checkpoint.of, source=source, offset=offset, event_id=event_id
        )

    @operation
    def recovery_status(self, source: str | None = None) -> Call[list[results.Checkpoint]]:
        """Return remembered checkpoints, of all sources or one."""
        return read("recovery.status", results.checkpoints, source=source)

    @operation
    def report_reconciliation(
        self,
        checked_points: int,
        mismatch_count: int,
        *,
        absolute_drift: int | None = None,
        max_abs_delta: int | None = None,
    ) -> Call[None]:
        """Report a comparison with the system of record; it shows in the metrics."""
        return write(
            "reconciliation.report",
            nothing,
            checked_points=checked_points,
            mismatch_count=mismatch_count,
            absolute_drift=absolute_drift,
            max_abs_delta=max_abs_delta,
        )


def _deleted(response: Any) -> int:
    return number(response["deleted"])
