"""THE op table: every operation of the protocol, its aliases, access, fields, handler, help and an example.

Dispatch, access control, help, completion and documentation all read this table. A handler is named
by string, ``module.function`` within `karma.engine`, which binds it: whoever only reads the table
never loads the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Access = Literal["R", "W", "A"]
"""R: every token, every role. W: the write token, role master. A: the write (or admin) token, every role."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request; `kind` is how help spells its type."""

    name: str
    kind: str
    help: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. `example` lacks ``v`` and ``op``; `idempotent` ops accept an idempotency key."""

    name: str
    access: Access
    handler: str
    help: str
    fields: tuple[Field, ...] = ()
    example: Mapping[str, Any] | None = None
    aliases: tuple[str, ...] = ()
    idempotent: bool = False
    extension: bool = False
    """Whether Karma 1.0 lacks it."""


def _optional(field: Field) -> Field:
    return Field(field.name, field.kind, field.help, required=False)


SERIES = Field("series", "name", "limit name, 1 to 200 bytes; tree is an alias and wins")
KEY = Field("key", "u64", "subject id")
KEYS = Field("keys", "[u64]", "subject ids, at most 10,000")
BUCKET = Field("bucket", "day", "YYYYMMDD or YYYY-MM-DD; today (UTC) if left out", required=False)
VALUE = Field("value", "u64", "amount; 1 if left out", required=False)
RANGE = Field("range", "{from,to}", "days as YYYYMMDD, both inclusive, at most 366 days apart")
ITEMS = Field("items", "[[key,bucket,value]]", "at most 10,000")
LIMIT = Field("limit", "number", "page size", required=False)
PRUNE_LIMIT = Field("limit", "number", "records at most, up to 100,000", required=False)
STREAM = Field("stream_id", "text", "the importer's name for the stream, 1 to 256 bytes")
FILE = Field("file", "name", "snapshot file name, as snapshot.list ends it")
CHUNK_BYTES = Field("limit", "number", "bytes at most; 262,144 if left out, 524,288 at most", required=False)
OFFSET = Field("offset", "number", "byte offset; 0 if left out", required=False)
SOURCE = Field("source", "text", "the external pipeline's name")

_MAY = {"from": 20260501, "to": 20260531}

OPS: tuple[Op, ...] = (
    # -- system --------------------------------------------------------------------------------
    Op("system.ping", "R", "effects.ping", "Answer pong.", example={}),
    Op("system.health", "R", "effects.plain", "Status, uptime and role.", example={}),
    Op("system.stats", "R", "effects.plain", "Every counter and gauge as one flat object.", example={}),
    Op("system.metrics", "R", "effects.plain", "Prometheus text.", example={}),
    Op(
        "system.latency",
        "R",
        "effects.plain",
        "Latency percentiles per operation.",
        example={},
        extension=True,
    ),
    Op("system.clients", "A", "effects.plain", "Open connections.", example={}, extension=True),
    Op(
        "system.compact",
        "W",
        "writes.compact_all",
        "Remove keys whose total is 0 from every series.",
        example={},
    ),
    # -- tree ----------------------------------------------------------------------------------
    Op("tree.create", "W", "writes.of_series", "Create a series.", (SERIES,), {"series": "api_requests"}),
    Op(
        "tree.drop",
        "W",
        "writes.of_series",
        "Drop a series with all it holds.",
        (SERIES,),
        {"series": "api_requests"},
    ),
    Op("tree.list", "R", "reads.tree_list", "Names of all series in creation order.", example={}),
    Op(
        "tree.info",
        "R",
        "reads.tree_info",
        "Keys, buckets and total of a series.",
        (SERIES,),
        {"series": "api_requests"},
    ),
    Op(
        "tree.keys",
        "R",
        "reads.tree_keys",
        "A page of keys with their totals, ascending.",
        (SERIES, LIMIT, Field("cursor", "u64", "the last page's next_cursor", required=False)),
        {"series": "api_requests", "limit": 100},
    ),
    Op(
        "tree.summary",
        "R",
        "reads.tree_summary",
        "Total, active keys and buckets, of all days or a range.",
        (SERIES, _optional(RANGE)),
        {"series": "api_requests", "range": _MAY},
    ),
    Op(
        "tree.top",
        "R",
        "reads.tree_top",
        "The keys that used most.",
        (SERIES, LIMIT, _optional(RANGE)),
        {"series": "api_requests", "limit": 10},
    ),
    Op(
        "tree.series",
        "R",
        "reads.tree_series",
        "Every key's buckets in a range.",
        (SERIES, RANGE),
        {"series": "api_requests", "range": _MAY},
    ),
    Op(
        "tree.reset",
        "W",
        "writes.of_series",
        "Empty every counter of a series.",
        (SERIES,),
        {"series": "api_requests"},
        idempotent=True,
    ),
    Op(
        "tree.delete_range",
        "W",
        "writes.delete_range",
        "Delete a range of days from every counter of a series.",
        (SERIES, RANGE),
        {"series": "api_requests", "range": _MAY},
        idempotent=True,
    ),
    Op(
        "series.delete_before",
        "W",
        "writes.delete_before",
        "Delete every bucket before a day, then compact.",
        (SERIES, Field("before", "day", "YYYYMMDD; date is an alias")),
        {"series": "api_requests", "before": 20250101},
        aliases=("tree.delete_before",),
    ),
    Op(
        "series.compact",
        "W",
        "writes.of_series",
        "Remove keys whose total is 0.",
        (SERIES,),
        {"series": "api_requests"},
        aliases=("tree.compact",),
    ),
    # -- counters ------------------------------------------------------------------------------
    Op(
        "counter.increment",
        "W",
        "writes.increment",
        "Add to a key's bucket; answers the value added.",
        (SERIES, KEY, BUCKET, VALUE),
        {"series": "api_requests", "key": 42, "bucket": 20260505, "value": 1},
        aliases=("series.increment",),
        idempotent=True,
    ),
    Op(
        "counter.decrement",
        "W",
        "writes.decrement",
        "Take from a key's bucket, which stops at zero.",
        (SERIES, KEY, BUCKET, VALUE),
        {"series": "api_requests", "key": 42, "bucket": 20260505, "value": 1},
        idempotent=True,
    ),
    Op(
        "counter.sum",
        "R",
        "reads.counter_sum",
        "A key's total, of all days or a range.",
        (SERIES, KEY, _optional(RANGE)),
        {"series": "api_requests", "key": 42},
        aliases=("series.sum",),
    ),
    Op(
        "counter.series",
        "R",
        "reads.counter_series",
        "A key's buckets in a range.",
        (SERIES, KEY, RANGE),
        {"series": "api_requests", "key": 42, "range": _MAY},
        aliases=("series.points",),
    ),
    Op(
        "counter.batch_sum",
        "R",
        "reads.batch_sum",
        "The totals of many keys of one series.",
        (SERIES, KEYS, _optional(RANGE)),
        {"series": "api_requests", "keys": [41, 42, 43]},
        aliases=("series.batch_sum",),
    ),
    Op(
        "counter.multi_sum",
        "R",
        "reads.multi_sum",
        "The totals of keys of several series.",
        (Field("items", "[{series,key}]", "at most 10,000"), _optional(RANGE)),
        {"items": [{"series": "api_requests", "key": 42}]},
    ),
    Op(
        "series.batch_add",
        "W",
        "writes.batch_add",
        "Add many values to one series; all or nothing.",
        (SERIES, ITEMS),
        {"series": "api_requests", "items": [[42, 20260505, 10]]},
        aliases=("counter.batch_increment",),
        idempotent=True,
    ),
    Op(
        "series.batch_set",
        "W",
        "writes.batch_set",
        "Set many buckets exactly, 0 deletes one; all or nothing.",
        (SERIES, ITEMS),
        {"series": "api_requests", "items": [[42, 20260505, 10]]},
        idempotent=True,
    ),
    Op(
        "counter.reset",
        "W",
        "writes.reset",
        "Empty one counter.",
        (SERIES, KEY),
        {"series": "api_requests", "key": 42},
        idempotent=True,
    ),
    Op(
        "counter.batch_reset",
        "W",
        "writes.batch_reset",
        "Empty many counters.",
        (SERIES, KEYS),
        {"series": "api_requests", "keys": [41, 42]},
        idempotent=True,
    ),
    Op(
        "counter.delete_range",
        "W",
        "writes.delete_range",
        "Delete a range of days from one counter.",
        (SERIES, KEY, RANGE),
        {"series": "api_requests", "key": 42, "range": _MAY},
        idempotent=True,
    ),
    Op(
        "counter.batch_delete_range",
        "W",
        "writes.batch_delete_range",
        "Delete a range of days from many counters.",
        (SERIES, KEYS, RANGE),
        {"series": "api_requests", "keys": [41, 42], "range": _MAY},
        idempotent=True,
    ),
    # -- limits --------------------------------------------------------------------------------
    Op(
        "limit.consume",
        "W",
        "limits.consume",
        "Add to a key's bucket unless its window would pass the limit.",
        (
            SERIES,
            KEY,
            VALUE,
            BUCKET,
            Field("limit", "u64", "most the window may hold"),
            Field("window", "day|month|total", "what counts; the bucket's day if left out", required=False),
            _optional(RANGE),
        ),
        {"series": "api_requests", "key": 42, "limit": 1000, "window": "month"},
        idempotent=True,
        extension=True,
    ),
    Op(
        "limit.check",
        "R",
        "limits.check",
        "What is used and left of many limits.",
        (Field("items", "[{series,key,limit,window?,range?}]", "at most 10,000"),),
        {"items": [{"series": "api_requests", "key": 42, "limit": 1000}]},
        extension=True,
    ),
    # -- ingest --------------------------------------------------------------------------------
    Op(
        "ingest.begin",
        "W",
        "writes.ingest_begin",
        "Begin a stream of chunks.",
        (
            STREAM,
            Field("mode", "add|set|replace_series", "what chunks do"),
            Field("granularity", "day", "day", required=False),
        ),
        {"stream_id": "import-1", "mode": "add"},
    ),
    Op(
        "ingest.chunk",
        "W",
        "writes.ingest_chunk",
        "Bring a stream's next items; a repeated chunk is skipped.",
        (STREAM, SERIES, Field("chunk_seq", "number", "1, 2, 3, …"), ITEMS),
        {"stream_id": "import-1", "series": "api_requests", "chunk_seq": 1, "items": [[42, 20260505, 10]]},
    ),
    Op(
        "ingest.commit",
        "W",
        "writes.ingest_end",
        "End a stream; a replacement takes effect.",
        (STREAM,),
        {"stream_id": "import-1"},
    ),
    Op(
        "ingest.abort",
        "W",
        "writes.ingest_end",
        "Give a stream up; staged data is dropped.",
        (STREAM,),
        {"stream_id": "import-1"},
    ),
    # -- snapshots -----------------------------------------------------------------------------
    Op(
        "snapshot.create",
        "A",
        "effects.snapshot_create",
        "Snapshot one series.",
        (SERIES,),
        {"series": "api_requests"},
    ),
    Op(
        "snapshot.create_all",
        "A",
        "effects.plain",
        "Snapshot everything at one LSN and truncate the log.",
        example={},
    ),
    Op("snapshot.list", "R", "effects.plain", "Snapshot files, newest first.", example={}),
    Op(
        "snapshot.info",
        "R",
        "effects.snapshot_info",
        "The newest snapshot of each series, and the log.",
        (Field("files", "true|false", "add the files that a follower fetches", required=False),),
        {"files": True},
    ),
    Op(
        "snapshot.verify",
        "R",
        "effects.plain",
        "Restore the directory aside and check it.",
        example={},
    ),
    Op(
        "snapshot.load",
        "W",
        "effects.snapshot_load",
        "Replace a series by a snapshot of it.",
        (FILE,),
        {"file": "1777925811_api_requests.tree"},
    ),
    Op(
        "snapshot.fetch",
        "R",
        "effects.snapshot_fetch",
        "A whole snapshot file.",
        (FILE,),
        {"file": "1777925811_api_requests.tree"},
    ),
    Op(
        "snapshot.fetch_chunk",
        "R",
        "effects.snapshot_fetch_chunk",
        "A part of a snapshot file.",
        (FILE, OFFSET, CHUNK_BYTES),
        {"file": "1777925811_api_requests.tree", "offset": 0},
    ),
    # -- idempotency, recovery, reconciliation -----------------------------------------------------
    Op(
        "idempotency.prune",
        "W",
        "writes.prune",
        "Forget idempotency records from before a time.",
        (Field("before", "time", "unix seconds or RFC 3339"), PRUNE_LIMIT),
        {"before": "2026-05-29T00:00:00Z", "limit": 10000},
    ),
    Op(
        "idempotency.snapshot_fetch_chunk",
        "R",
        "effects.records_fetch_chunk",
        "A part of the idempotency snapshot.",
        (OFFSET, CHUNK_BYTES),
        {"offset": 0},
    ),
    Op(
        "recovery.checkpoint",
        "W",
        "effects.recovery_checkpoint",
        "Remember how far an external pipeline got.",
        (
            SOURCE,
            Field("offset", "text or number", "the pipeline's position", required=False),
            Field("event_id", "text or number", "its last event", required=False),
        ),
        {"source": "usage-export", "offset": "export-2026-05-05"},
    ),
    Op(
        "recovery.status", "R", "effects.recovery_status", "Remembered checkpoints.", (_optional(SOURCE),), {}
    ),
    Op(
        "reconciliation.report",
        "A",
        "effects.reconciliation_report",
        "Report a comparison with the system of record; feeds metrics.",
        (
            Field("checked_points", "number", "points compared"),
            Field("mismatch_count", "number", "points that differed"),
            Field("absolute_drift", "number", "sum of differences", required=False),
            Field("max_abs_delta", "number", "largest difference", required=False),
        ),
        {"checked_points": 1000, "mismatch_count": 2, "absolute_drift": 15},
    ),
    # -- replication ---------------------------------------------------------------------------
    Op("replication.status", "R", "effects.plain", "Role, LSNs, lag and snapshots.", example={}),
    Op(
        "replication.entries",
        "R",
        "effects.replication_entries",
        "A page of log entries behind an LSN.",
        (
            Field("after_lsn", "u64", "the last LSN the follower has"),
            LIMIT,
            Field("wait_ms", "number", "wait so long for entries; 30,000 at most", required=False),
            Field("node_id", "text", "the follower's id; others leave it out", required=False),
            Field("port", "number", "where the follower itself listens", required=False),
            Field(
                "acked_lsn", "u64", "up to where its log is durable; after_lsn if left out", required=False
            ),
            Field("cluster_id", "text", "the cluster it belongs to", required=False),
            Field("epoch", "number", "the newest epoch it knows", required=False),
            Field("epoch_node_id", "text", "the node that opened it", required=False),
            Field("lines", "true|false", "log lines as they are will do", required=False),
            Field("handshake", "true|false", "ask for the epochs, do not wait", required=False),
            Field("after_epoch", "number", "the epoch of its last entry", required=False),
            Field("after_epoch_node_id", "text", "the node that opened that", required=False),
            Field("after_crc", "text", "the crc of its last entry", required=False),
            Field(
                "checkpoint_position", "[text,number]", "ask for newer recovery checkpoints", required=False
            ),
        ),
        {"after_lsn": 120, "limit": 1000},
    ),
    Op(
        "replication.wait",
        "R",
        "effects.replication_wait",
        "Wait until followers hold the log up to an LSN; answers how many do.",
        (
            Field("lsn", "u64", "the log's end if left out", required=False),
            Field("acks", "number", "how many followers"),
            Field("timeout_ms", "number", "30,000 at most"),
        ),
        {"acks": 1, "timeout_ms": 1000},
        extension=True,
    ),
    Op(
        "replication.checksum",
        "R",
        "effects.plain",
        "A digest of everything stored: equal on nodes with equal data at equal LSN.",
        example={},
        extension=True,
    ),
    Op(
        "replication.promote",
        "A",
        "effects.plain",
        "Become master of a new epoch; LSNs go on.",
        example={},
        extension=True,
    ),
    Op(
        "replication.follow",
        "A",
        "effects.replication_follow",
        "Become a slave of a node.",
        (
            Field("host", "text", "where the source listens"),
            Field("port", "number", "its port"),
            Field("source_token", "text", "the token for it; replication-token if left out", required=False),
            Field("rebuild", "true|false", "give up entries that the source does not have", required=False),
        ),
        {"host": "10.0.0.2", "port": 8080},
        extension=True,
    ),
    Op(
        "replication.pause",
        "A",
        "effects.replication_pause",
        "Refuse writes for a while, at most an hour.",
        (Field("ttl_ms", "number", "when the pause ends by itself"),),
        {"ttl_ms": 10000},
        extension=True,
    ),
    Op(
        "replication.resume",
        "A",
        "effects.plain",
        "End a pause.",
        example={},
        extension=True,
    ),
    Op(
        "replication.fence",
        "A",
        "effects.replication_fence",
        "Refuse writes until unfenced, followed or promoted.",
        (
            Field("epoch", "number", "the epoch that rules now; not below this node's own"),
            Field("reason", "text", "why; it is in every refusal"),
        ),
        {"epoch": 7, "reason": "failover to db2"},
        extension=True,
    ),
    Op(
        "replication.unfence",
        "A",
        "effects.replication_unfence",
        "Lift a fence.",
        (Field("epoch", "number", "the epoch of the fence"),),
        {"epoch": 7},
        extension=True,
    ),
)

BY_NAME: dict[str, Op] = {name: op for op in OPS for name in (op.name, *op.aliases)}
"""Every operation by its name and by each alias."""
