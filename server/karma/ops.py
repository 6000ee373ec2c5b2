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


def _may(name: str, kind: str, help_: str) -> Field:
    return Field(name, kind, help_, required=False)


def _optional(field: Field) -> Field:
    return _may(field.name, field.kind, field.help)


SERIES = Field("series", "name", "limit name, 1 to 200 bytes; tree is an alias and wins")
KEY = Field("key", "u64", "subject id")
KEYS = Field("keys", "[u64]", "subject ids, at most 10,000")
BUCKET = _may("bucket", "day", "YYYYMMDD or YYYY-MM-DD; today (UTC) if left out")
VALUE = _may("value", "u64", "amount; 1 if left out")
RANGE = Field("range", "{from,to}", "days as YYYYMMDD, both inclusive, at most 366 days apart")
ITEMS = Field("items", "[[key,bucket,value]]", "at most 10,000")
LIMIT = _may("limit", "number", "page size")
PRUNE_LIMIT = _may("limit", "number", "records at most, up to 100,000")
STREAM = Field("stream_id", "text", "the importer's name for the stream, 1 to 256 bytes")
FILE = Field("file", "name", "snapshot file name, as snapshot.list ends it")
CHUNK_BYTES = _may("limit", "number", "bytes at most; 262,144 if left out, 524,288 at most")
OFFSET = _may("offset", "number", "byte offset; 0 if left out")
SOURCE = Field("source", "text", "the external pipeline's name")
ORDER = (
    _may("run", "text", "the run that orders it: refused where another run fenced or paused the node"),
    _may("lease", "number", "number of that run's lease: refused when it is not the last"),
    _may("force", "true|false", "override another run; logged and counted"),
)
"""On whose behalf a role is changed."""

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
        (SERIES, LIMIT, _may("cursor", "u64", "the last page's next_cursor")),
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
            _may("window", "day|month|total", "what counts; the bucket's day if left out"),
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
            _may("granularity", "text", "a label of the stream; days are stored whatever it is"),
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
        (_may("files", "true|false", "add the files that a follower fetches"),),
        {"files": True},
    ),
    Op("snapshot.verify", "R", "effects.plain", "Restore the directory aside and check it.", example={}),
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
            _may("offset", "text or number", "the pipeline's position"),
            _may("event_id", "text or number", "its last event"),
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
            _may("absolute_drift", "number", "sum of differences"),
            _may("max_abs_delta", "number", "largest difference"),
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
            _may("wait_ms", "number", "wait so long for entries; 30,000 at most"),
            _may("node_id", "text", "the follower's id; others leave it out"),
            _may("port", "number", "where the follower itself listens"),
            _may("acked_lsn", "u64", "up to where its log is durable; after_lsn if left out"),
            _may("cluster_id", "text", "the cluster it belongs to"),
            _may("epoch", "number", "the newest epoch it knows"),
            _may("epoch_node_id", "text", "the node that opened it"),
            _may("lines", "true|false", "log lines as they are will do"),
            _may("handshake", "true|false", "ask for the epochs, do not wait"),
            _may("after_epoch", "number", "the epoch of its last entry"),
            _may("after_epoch_node_id", "text", "the node that opened that"),
            _may("after_crc", "text", "the crc of its last entry"),
            _may("checkpoint_position", "[text,number]", "ask for newer recovery checkpoints"),
        ),
        {"after_lsn": 120, "limit": 1000},
    ),
    Op(
        "replication.wait",
        "R",
        "effects.replication_wait",
        "Wait until followers hold the log up to an LSN; answers how many do.",
        (
            _may("lsn", "u64", "the log's end if left out"),
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
        "effects.replication_promote",
        "Become master of a new epoch; LSNs go on.",
        (
            _may("epoch", "number", "the epoch to open; refused when another one is next"),
            *ORDER,
        ),
        {},
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
            _may("source_token", "text", "the token for it; replication-token if left out"),
            _may("rebuild", "true|false", "give up entries that the source does not have"),
            *ORDER,
        ),
        {"host": "10.0.0.2", "port": 8080},
        extension=True,
    ),
    Op(
        "replication.pause",
        "A",
        "effects.replication_pause",
        "Refuse writes for a while, at most an hour.",
        (Field("ttl_ms", "number", "when the pause ends by itself"), *ORDER),
        {"ttl_ms": 10000},
        extension=True,
    ),
    Op("replication.resume", "A", "effects.replication_resume", "End a pause.", ORDER, {}, extension=True),
    Op(
        "replication.fence",
        "A",
        "effects.replication_fence",
        "Refuse writes until unfenced, followed or promoted.",
        (
            Field("epoch", "number", "the epoch that rules now; not below this node's own"),
            Field("reason", "text", "why; it is in every refusal"),
            *ORDER,
        ),
        {"epoch": 7, "reason": "failover to db2"},
        extension=True,
    ),
    Op(
        "replication.unfence",
        "A",
        "effects.replication_unfence",
        "Lift a fence.",
        (Field("epoch", "number", "the epoch of the fence"), *ORDER),
        {"epoch": 7},
        extension=True,
    ),
    Op(
        "replication.lease",
        "A",
        "effects.replication_lease",
        "Let one run change roles, until it releases the lease or lets it run out.",
        (
            Field("do", "take|renew|release|park", "park only notes a run that is to begin later"),
            Field("cluster_id", "text", "the cluster that the node must belong to"),
            Field("run", "text", "the run, 1 to 64 bytes"),
            _may("holder", "text", "who carries it out; needed to take and renew"),
            _may("ttl_ms", "number", "when it ends by itself; 600,000 at most"),
            _may("lease", "number", "the last number the caller knows; refused when it is not"),
            _may("force", "true|false", "take or release another run's lease"),
            _may("text", "text", "of a parked run: what it will do"),
            _may("at_unix_ms", "number", "of a parked run: when; the record is kept until then"),
        ),
        {"do": "take", "cluster_id": "4f1c2a9be0d35768", "run": "r1", "holder": "ann", "ttl_ms": 60000},
        extension=True,
    ),
    Op(
        "replication.maintenance",
        "A",
        "effects.replication_maintenance",
        "Say that planned work is going on; it ends by itself.",
        (
            Field("reason", "text", "what is done"),
            Field("ttl_ms", "number", "for how long, a week at most; 0 ends it"),
            _may("durable", "true|false", "last through a restart"),
        ),
        {"reason": "new disks", "ttl_ms": 3600000, "durable": True},
        extension=True,
    ),
)

BY_NAME: dict[str, Op] = {name: op for op in OPS for name in (op.name, *op.aliases)}
"""Every operation by its name and by each alias."""
