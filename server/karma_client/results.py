"""What typed methods return: frozen dataclasses with the protocol's field names, days as dates.

Fields that a newer server adds are ignored; objects that keep growing (stats, status) carry them in `raw`.
The classes have no slots: making a class with slots takes twice the time, and this module counts into the
start of every command line.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from typing import Any, Self

from karma_client.days import to_date

Object = Mapping[str, Any]


class Result:
    """Base of results that are objects on the wire."""

    @classmethod
    def of(cls, response: Object) -> Self:
        """Read a response. Raises TypeError when a field without a default is missing."""
        known: dict[str, Any] = {
            field.name: response[field.name]
            for field in fields(cls)  # type: ignore[arg-type]  # every subclass is a dataclass
            if field.name in response
        }
        return cls(**known)

    @classmethod
    def list_of(cls, response: list[Object]) -> list[Self]:
        """Read an array of such objects."""
        return [cls.of(element) for element in response]


class WithRaw(Result):
    """Base of results that keep the whole response in `raw`."""

    @classmethod
    def of(cls, response: Object) -> Self:
        """Read a response. Raises TypeError when a field without a default is missing."""
        return super().of({**response, "raw": response})


# -- Counters and limits ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class LimitResult(Result):
    """What `consume` did. `used` is what the window holds now, `remaining` what is left of the limit."""

    allowed: bool
    used: int
    remaining: int
    limit: int


@dataclass(frozen=True)
class LimitStatus(Result):
    """What is used of a limit. `allowed`: one more fits."""

    series: str
    key: int
    used: int
    remaining: int
    allowed: bool


@dataclass(frozen=True)
class SeriesKeyValue(Result):
    """A key's value in one of several series."""

    series: str
    key: int
    value: int


@dataclass(frozen=True)
class BatchAdded(Result):
    """`applied` items were added, `total` is the sum of their values."""

    applied: int
    total: int


@dataclass(frozen=True)
class BatchReset(Result):
    """Of the keys named, `reset` were emptied and `missing` unknown."""

    reset: int
    missing: int


@dataclass(frozen=True)
class BatchDeleted(Result):
    """Of the keys named, `deleted` had days in the range, and `missing` had no day at all."""

    deleted: int
    missing: int


# -- Series ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeriesInfo:
    """The size of a series."""

    series: str
    key_count: int
    bucket_count: int
    total: int
    total_saturated: bool = False
    """Whether the keys add up to more than `total`, which is then the largest number a reply can hold."""

    @classmethod
    def of(cls, response: Object) -> Self:
        """Read a response."""
        return cls(
            response["tree"],
            response["key_count"],
            response["bucket_count"],
            response["total"],
            response.get("total_saturated", False),
        )


@dataclass(frozen=True)
class Summary:
    """Sums over a series, of all days or of a range.

    Of all days, `active_keys` counts every known key; of a range those that used something in it.
    """

    series: str
    total: int
    active_keys: int
    bucket_count: int
    first_day: date | None = None
    last_day: date | None = None
    total_saturated: bool = False
    """Whether the keys add up to more than `total`, which is then the largest number a reply can hold."""

    @classmethod
    def of(cls, response: Object) -> Self:
        """Read a response."""
        return cls(
            response["tree"],
            response["total"],
            response["active_keys"],
            response["bucket_count"],
            to_date(response["range_from"]) if "range_from" in response else None,
            to_date(response["range_to"]) if "range_to" in response else None,
            response.get("total_saturated", False),
        )


@dataclass(frozen=True)
class KeyTotal(Result):
    """A key and the sum of all its days."""

    key: int
    total: int


@dataclass(frozen=True)
class KeysPage:
    """A page of keys, ascending. `next_cursor` asks for the next one; None at the end."""

    keys: list[KeyTotal]
    next_cursor: int | None

    @classmethod
    def of(cls, response: Object) -> Self:
        """Read a response."""
        return cls(KeyTotal.list_of(response["keys"]), response["next_cursor"])


@dataclass(frozen=True)
class KeyValue(Result):
    """A key and what it used."""

    key: int
    value: int


def top(response: Object) -> list[KeyValue]:
    """Read the response of tree.top."""
    return KeyValue.list_of(response["items"])


def sums(response: list[Object]) -> dict[int, int]:
    """Read the response of counter.batch_sum."""
    return {element["key"]: element["value"] for element in response}


def points(response: Mapping[str, int]) -> dict[date, int]:
    """Read the days of a counter."""
    return {to_date(day): value for day, value in response.items()}


def points_by_key(response: Mapping[str, Mapping[str, int]]) -> dict[int, dict[date, int]]:
    """Read the days of every counter of a series."""
    return {int(key): points(days) for key, days in response.items()}


# -- Ingest ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StreamStatus(Result):
    """A stream of chunks. `status`: active, committed, already_committed or aborted."""

    stream_id: str
    status: str
    last_chunk_seq: int
    mode: str | None = None
    series: str | None = None
    granularity: str | None = None


@dataclass(frozen=True)
class ChunkResult(Result):
    """What became of a chunk. `skipped`: it was known already, and nothing was applied."""

    stream_id: str
    chunk_seq: int
    skipped: bool
    applied: int
    total: int
    committed: bool = False


@dataclass(frozen=True)
class IngestProgress:
    """How far an import got: chunks and items the server has, of them items that it had before this run."""

    stream_id: str
    chunk_seq: int
    items: int
    resumed_items: int


@dataclass(frozen=True)
class IngestResult:
    """A finished import. `items` were read, `resumed_items` of them the server had before this run.

    `status`: committed, already_committed (nothing was sent), or active (commit=False).
    """

    stream_id: str
    status: str
    chunks: int
    items: int
    resumed_items: int


# -- Snapshots -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """A snapshot file of one series; what its metadata do not say is None."""

    file: str
    series: str | None
    timestamp: int | None
    size_bytes: int | None
    last_lsn: int | None

    @classmethod
    def of(cls, response: Object) -> Self:
        """Read an object of snapshot.info, or a file's metadata."""
        return cls(
            response["file"],
            response.get("tree"),
            response.get("timestamp"),
            response.get("bytes"),
            response.get("last_lsn"),
        )


@dataclass(frozen=True)
class SnapshotInfo(WithRaw):
    """The newest snapshot of each series, and the log."""

    dump_count: int
    last_snapshot_lsn: int
    wal_enabled: bool
    wal_bytes: int
    wal_current_lsn: int
    raw: Object

    @property
    def snapshots(self) -> list[Snapshot]:
        """The newest snapshot of each series."""
        return [Snapshot.of(element) for element in self.raw["latest_by_tree"]]


@dataclass(frozen=True)
class SnapshotVerification(WithRaw):
    """What restoring the directory aside found."""

    status: str
    dump_count: int
    trees: int
    keys: int
    raw: Object


@dataclass(frozen=True)
class FileChunk:
    """A part of a file on the server. `metadata` describes the whole file."""

    metadata: Object
    offset: int
    total_bytes: int
    next_offset: int
    done: bool
    data: bytes

    @classmethod
    def of(cls, response: Object) -> Self:
        """Read a response. Raises ValueError for data that are damaged or of another length than said."""
        data = b64decode(response["data_base64"], validate=True)
        if len(data) != response["bytes"] or response["next_offset"] != response["offset"] + len(data):
            raise ValueError
        return cls(
            response["metadata"],
            response["offset"],
            response["total_bytes"],
            response["next_offset"],
            response["done"],
            data,
        )


@dataclass(frozen=True)
class FetchProgress:
    """How much of a file was fetched."""

    done_bytes: int
    total_bytes: int


# -- System ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Health(Result):
    """Whether a node is well. `status` is "ok", "fenced", or "storage_error" with what the disk said.

    `snapshot_error` and `rotation_error` say why the last snapshot, or the last rotation of the log, failed.
    """

    status: str
    role: str
    uptime_seconds: float
    wal_enabled: bool
    storage_error: str | None = None
    snapshot_error: str | None = None
    rotation_error: str | None = None


@dataclass(frozen=True)
class Stats(WithRaw):
    """What a node counts. Karma 1.0 does not tell the fields that are None; `raw` has all there are."""

    role: str
    uptime_seconds: float
    trees: int
    keys: int
    wal_current_lsn: int
    raw: Object
    version: str | None = None
    max_request_bytes: int | None = None
    max_response_bytes: int | None = None
    read_timeout_seconds: float | None = None
    server_time_unix_ms: int | None = None
    ops_per_second: float | None = None


@dataclass(frozen=True)
class Latency(Result):
    """Times from request to reply, in microseconds."""

    count: int
    p50_us: int
    p95_us: int
    p99_us: int
    max_us: int


@dataclass(frozen=True)
class OpLatency:
    """An operation's latencies since the server's start and over the last minute."""

    total: Latency
    last_minute: Latency


def latencies(response: Object) -> dict[str, OpLatency]:
    """Read the response of system.latency."""
    return {
        op: OpLatency(Latency.of(spans["total"]), Latency.of(spans["last_minute"]))
        for op, spans in response["ops"].items()
    }


@dataclass(frozen=True)
class Connection(Result):
    """An open connection of the server. `access`: what its last token may do."""

    id: int
    address: str
    age_seconds: float
    idle_seconds: float
    requests: int
    last_op: str | None
    buffered_in_bytes: int
    buffered_out_bytes: int
    access: str


# -- Recovery --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint(Result):
    """How far an external pipeline got."""

    source: str
    offset: str | None = None
    event_id: str | None = None
    updated_at_unix: int = 0


def checkpoints(response: Object) -> list[Checkpoint]:
    """Read the response of recovery.status."""
    return Checkpoint.list_of(response["checkpoints"])


# -- Replication -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replica(Result):
    """A follower as its source sees it."""

    node_id: str
    address: str | None = None
    acked_lsn: int | None = None
    lag_entries: int | None = None
    lag_ms: int | None = None
    last_seen_unix: int | None = None


@dataclass(frozen=True)
class ReplicationStatus(WithRaw):
    """A node's role and position. Karma 1.0 does not tell the fields that are None."""

    role: str
    wal_current_lsn: int
    raw: Object
    replayed_lsn: int = 0
    replication_lag_entries: int = 0
    last_snapshot_lsn: int = 0
    node_id: str | None = None
    cluster_id: str | None = None
    epoch: int | None = None
    source: str | None = None
    filled: bool | None = None
    """Whether a slave has received anything from its source."""
    lag_ms: int | None = None
    paused_until: int | None = None
    fenced_by: Any = None

    @property
    def replicas(self) -> list[Replica]:
        """The followers of a source."""
        return Replica.list_of(self.raw.get("replicas") or [])


@dataclass(frozen=True)
class Entry:
    """A log entry: `entry` holds `op` and its fields. `ts` is unix milliseconds; None from Karma 1.0."""

    lsn: int
    entry: Object
    ts: int | None = None
    crc: str | None = None

    @classmethod
    def of(cls, response: Object) -> Self:
        """Read an element of a page."""
        return cls(response["lsn"], response["entry"], response.get("ts"), response.get("crc"))

    @property
    def op(self) -> str:
        """The operation."""
        return str(self.entry.get("op"))


@dataclass(frozen=True)
class EntriesPage:
    """A page of the log. `next_lsn` is the `after_lsn` of the next one, `source_lsn` the node's last."""

    entries: list[Entry]
    next_lsn: int
    source_lsn: int
    epoch: int | None = None
    node_id: str | None = None

    @classmethod
    def of(cls, response: Object) -> Self:
        """Read a response."""
        return cls(
            [Entry.of(element) for element in response["entries"]],
            response["next_lsn"],
            response["source_lsn"],
            response.get("epoch"),
            response.get("node_id"),
        )


@dataclass(frozen=True)
class Acknowledged(Result):
    """So many replicas hold the log up to `lsn`."""

    acks: int
    lsn: int


@dataclass(frozen=True)
class LeaseState(WithRaw):
    """A node's lease: the number of the last one, and the run that holds it, None where none does."""

    number: int
    run: str | None
    holder: str | None
    expires_in_ms: int
    raw: Object


@dataclass(frozen=True)
class Checksum(Result):
    """A digest of all data at an LSN: equal on nodes with equal data at the same LSN."""

    lsn: int
    digest: str
