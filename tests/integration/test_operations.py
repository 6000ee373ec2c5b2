"""Every operation of the op table: its example works, its reply has its shape, its fields are checked."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Connection, Server, counters_of

from karma.ops import OPS, Field, Op

DAY = 20260505
FETCHED = {"offset", "limit", "bytes", "total_bytes", "next_offset", "done", "data_base64", "metadata"}
STREAM = {"stream_id", "mode", "series", "granularity", "status", "last_chunk_seq"}

SHAPES: dict[str, Any] = {
    # A set: the keys of an object. A list: the same of each element. A type, or the value itself.
    "system.ping": "pong",
    "system.health": {"status", "uptime_seconds", "role", "wal_enabled"},
    "system.stats": dict,
    "system.metrics": str,
    "system.latency": {"ops"},
    "system.clients": [
        {
            "id",
            "address",
            "age_seconds",
            "idle_seconds",
            "requests",
            "last_op",
            "buffered_in_bytes",
            "buffered_out_bytes",
            "access",
        }
    ],
    "system.compact": "OK",
    "tree.create": "OK",
    "tree.drop": "OK",
    "tree.list": [str],
    "tree.info": {"tree", "key_count", "bucket_count", "total", "branches"},
    "tree.keys": {"tree", "limit", "cursor", "next_cursor", "keys"},
    "tree.summary": {"tree", "total", "active_keys", "bucket_count", "range_from", "range_to"},
    "tree.top": {"tree", "limit", "items"},
    "tree.series": {"41": {"20260504": 3}, "42": {"20260505": 10}},
    "tree.reset": "OK",
    "tree.delete_range": True,
    "series.delete_before": "OK",
    "series.compact": "OK",
    "counter.increment": 1,
    "counter.decrement": 1,
    "counter.sum": 10,
    "counter.series": {"20260505": 10},
    "counter.batch_sum": [{"key": 41, "value": 3}, {"key": 42, "value": 10}, {"key": 43, "value": 0}],
    "counter.multi_sum": [{"series": "api_requests", "key": 42, "value": 10}],
    "series.batch_add": {"applied": 1, "total": 10},
    "series.batch_set": {"applied": 1},
    "counter.reset": "OK",
    "counter.batch_reset": {"reset": 2, "missing": 0},
    "counter.delete_range": True,
    "counter.batch_delete_range": {"deleted": 2, "missing": 0},
    "limit.consume": {"allowed", "used", "remaining", "limit"},
    "limit.check": [{"series", "key", "used", "remaining", "allowed"}],
    "ingest.begin": STREAM,
    "ingest.chunk": {"stream_id", "chunk_seq", "skipped", "applied", "total"},
    "ingest.commit": {"stream_id", "status", "last_chunk_seq"},
    "ingest.abort": {"stream_id", "status", "last_chunk_seq"},
    "snapshot.create": 'Tree "api_requests" saved',
    "snapshot.create_all": "OK",
    "snapshot.list": [str],
    "snapshot.info": {
        "dump_count",
        "latest_by_tree",
        "idempotency_snapshot",
        "last_snapshot_lsn",
        "wal_enabled",
        "wal_bytes",
        "wal_current_lsn",
        "dump_retention_per_tree",
        "truncated_lsn",
        "files",
    },
    "snapshot.verify": {
        "status",
        "dump_count",
        "trees",
        "keys",
        "snapshot_metadata_checked",
        "snapshot_missing_metadata",
        "restore_snapshot_lsn",
        "wal_entries_checked",
        "wal_first_lsn",
        "wal_last_lsn",
        "wal_lsn_file",
    },
    "snapshot.load": 'Tree "api_requests" loaded',
    "snapshot.fetch": {"metadata", "data_base64"},
    "snapshot.fetch_chunk": FETCHED,
    "idempotency.prune": {"deleted"},
    "idempotency.snapshot_fetch_chunk": FETCHED,
    "recovery.checkpoint": {"source", "offset", "event_id", "updated_at_unix"},
    "recovery.status": {"checkpoint_count", "checkpoints"},
    "reconciliation.report": "OK",
    "replication.status": dict,
    "replication.entries": {
        "after_lsn",
        "limit",
        "byte_limit",
        "entries_bytes",
        "truncated_by_bytes",
        "count",
        "source_lsn",
        "entries",
        "next_lsn",
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("operations") / "data", wal_fsync=False) as running:
        yield running


@pytest.fixture
def connection(server: Server) -> Iterator[Connection]:
    """A connection to a server that holds what the examples name."""
    with server.connect() as connected:
        if "api_requests" in connected.ask("tree.list"):
            connected.ask("tree.drop", series="api_requests")
        connected.ask("series.batch_add", series="api_requests", items=[[41, DAY - 1, 3], [42, DAY, 10]])
        yield connected


def fields_of(connection: Connection, op: Op, stream_id: str) -> dict[str, Any]:
    """Return an op's example, with the stream and the snapshot file that exist here."""
    fields = dict(op.example or {})
    if "stream_id" in fields:
        fields["stream_id"] = stream_id
        if op.name != "ingest.begin":
            connection.ask("ingest.begin", stream_id=stream_id, mode="add")
    if "file" in fields or op.name == "idempotency.snapshot_fetch_chunk":
        connection.ask("snapshot.create_all")
        if "file" in fields:
            fields["file"] = connection.ask("snapshot.list")[0].rpartition("/")[2]
    if "after_lsn" in fields:
        fields["after_lsn"] = connection.ask("system.stats")["wal_current_lsn"]
    return fields


def assert_shape(response: Any, shape: Any) -> None:
    if isinstance(shape, set):
        assert set(response) == shape
    elif isinstance(shape, list) and isinstance(shape[0], set | type):
        assert isinstance(response, list)
        assert response
        for element in response:
            assert_shape(element, shape[0])
    elif isinstance(shape, type):
        assert isinstance(response, shape)
        assert response
    else:
        assert response == shape


def test_every_operation_has_a_shape_here_and_an_example() -> None:
    # Operations between nodes need more than one, and are tested with replication.
    assert set(SHAPES) >= {op.name for op in OPS if not op.name.startswith("replication.")}
    assert [op.name for op in OPS if op.example is None] == []


@pytest.mark.parametrize("op", [op for op in OPS if op.name in SHAPES], ids=lambda op: op.name)
def test_the_example_works_and_its_response_has_its_shape(connection: Connection, op: Op) -> None:
    reply = connection.call(op.name, **fields_of(connection, op, f"shape-{op.name}"))
    assert list(reply) == ["protocol_version", "success", "response", "error_code"]
    assert (reply["protocol_version"], reply["success"], reply["error_code"]) == (2, True, None), reply
    assert_shape(reply["response"], SHAPES[op.name])


@pytest.mark.parametrize(
    ("op", "alias"),
    [(op, alias) for op in OPS for alias in op.aliases],
    ids=lambda part: getattr(part, "name", part),
)
def test_an_alias_means_its_operation(connection: Connection, op: Op, alias: str) -> None:
    assert_shape(connection.ask(alias, **fields_of(connection, op, f"alias-{alias}")), SHAPES[op.name])


@pytest.mark.parametrize("op", [op for op in OPS if op.idempotent], ids=lambda op: op.name)
def test_an_idempotent_operation_is_applied_once_per_key(connection: Connection, op: Op) -> None:
    fields = {**fields_of(connection, op, ""), "idempotency_key": f"once-{op.name}"}
    first = connection.call(op.name, **fields)
    assert list(first) == ["protocol_version", "success", "response", "idempotent", "error_code"]
    assert first["idempotent"] is False
    lsn = connection.ask("system.stats")["wal_current_lsn"]
    again = connection.call(op.name, **fields)
    assert again == {**first, "idempotent": True}
    assert connection.ask("system.stats")["wal_current_lsn"] == lsn
    conflict, _ = connection.refuse(
        "counter.increment", series="api_requests", key=999, idempotency_key=fields["idempotency_key"]
    )
    assert conflict == "idempotency_conflict"


def test_only_eligible_operations_remember_an_idempotency_key(connection: Connection) -> None:
    for name in ("tree.create", "series.compact", "tree.drop"):
        reply = connection.call(name, series="api_requests", idempotency_key="not here")
        assert "idempotent" not in reply
        assert reply["success"]
    assert connection.refuse("tree.drop", series="api_requests", idempotency_key="not here")[0] == "not_found"


@pytest.mark.parametrize("key", ["", "k" * 257, "é" * 129, 1.5, -1, True, [], {}, 2**64])
def test_an_idempotency_key_is_a_text_of_1_to_256_bytes_or_a_u64(connection: Connection, key: Any) -> None:
    code, message = connection.refuse("counter.increment", series="api_requests", key=1, idempotency_key=key)
    assert (code, "idempotency_key" in message) == ("validation_error", True)


def test_a_fingerprint_that_is_asserted_must_be_ours(connection: Connection) -> None:
    fields = {"series": "api_requests", "key": 7, "bucket": DAY, "value": 1, "idempotency_key": "asserted"}
    assert connection.refuse("counter.increment", **fields, fingerprint="0" * 64)[0] == "idempotency_conflict"
    assert connection.ask("counter.sum", series="api_requests", key=7) == 0
    for wrong in ("", "f" * 513, 7):
        assert connection.refuse("counter.increment", **fields, fingerprint=wrong)[0] == "validation_error"


# -- Fields ----------------------------------------------------------------------------------------------

WRONG: dict[str, list[Any]] = {
    "name": ["", 7, True, [], {}, 1.5],
    "text": ["", 7, True, [], {}, 1.5],
    "u64": ["7", "", -1, 1.5, 2**64, True, [], {}],
    "number": ["7", -1, 1.5, 2**64, True, [], {}],
    "day": ["x", -1, 20260230, 1.5, True, [], {}],
    "[u64]": ["x", 7, True, {}, [-1], ["x"], [1.5], [None], [[]], [2**64]],
    "{from,to}": [
        *[
            "x",
            7,
            True,
            [],
            {},
            {"from": DAY},
            {"to": DAY},
            {"from": "x", "to": DAY},
            {"from": DAY, "to": DAY - 1},
        ],
        {"from": 20240101, "to": 20260101},
    ],
    "true|false": ["true", 1, [], {}],
    "[text,number]": ["x", 7, {}, [], ["x"], ["x", "x"], [1, 1], ["x", -1], ["x", 1, 1]],
    "[[key,bucket,value]]": [
        *[
            "x",
            7,
            True,
            {},
            [7],
            [None],
            ["abc"],
            [{"a": 1, "b": 2, "c": 3}],
            [[]],
            [[1, DAY]],
            [[1, DAY, 1, 1]],
        ],
        *[
            [["1", DAY, 1]],
            [[1, None, 1]],
            [[1, DAY, None]],
            [[-1, DAY, 1]],
            [[1, 20260230, 1]],
            [[1, DAY, 2**64]],
        ],
    ],
    "[{series,key}]": [
        "x",
        7,
        True,
        {},
        [7],
        [[]],
        [{}],
        [{"series": "a"}],
        [{"key": 1}],
        [{"series": 7, "key": 1}],
    ],
    "[{series,key,limit,window?,bucket?,range?}]": [
        *["x", 7, {}, [7], [{}], [{"series": "a", "key": 1}], [{"series": "a", "limit": 1}]],
        [{"series": "a", "key": 1, "limit": 1, "window": "year"}],
        [{"series": "a", "key": 1, "limit": -1}],
        [{"series": "a", "key": 1, "limit": 1, "bucket": 20260230}],
        [{"series": "a", "key": 1, "limit": 1, "window": "day", "range": {"from": DAY, "to": DAY}}],
    ],
    "add|set|replace_series": ["", "replace", 7, True, [], {}],
    "day|month|total": ["", "year", 7, True, [], {}],
    "text or number": ["", -1, 1.5, True, [], {}],
    "time": ["", "yesterday", "2026-05-29T00:00:00", -1, 1.5, True, [], {}],
}
"""By the kind of a field in the op table: values that no field of the kind takes."""

NAMED = {"items": ("items", "item", "series", "key", "limit", "window", "bucket")}
"""A field of objects may name what is wrong inside."""


def assert_refused(connection: Connection, op: Op, field: Field, fields: dict[str, Any]) -> None:
    reply = connection.call(op.name, **fields)
    assert reply["success"] is False, (op.name, fields, reply)
    assert reply["error_code"] == "validation_error", (op.name, fields, reply)
    names = NAMED.get(field.name, (field.name,))
    assert any(name in reply["response"].lower() for name in names), (op.name, fields, reply)


def test_every_kind_of_field_has_wrong_values_here() -> None:
    assert {field.kind for op in OPS if op.name in SHAPES for field in op.fields} <= set(WRONG)


@pytest.mark.parametrize("op", [op for op in OPS if op.name in SHAPES and op.fields], ids=lambda op: op.name)
def test_missing_and_wrong_fields_are_named_and_change_nothing(connection: Connection, op: Op) -> None:
    fields = fields_of(connection, op, f"wrong-{op.name}")
    before = counters_of(connection), connection.ask("system.stats")["wal_current_lsn"]
    for field in op.fields:
        rest = {name: value for name, value in fields.items() if name != field.name}
        if field.required:
            assert_refused(connection, op, field, rest)
        if field.name != "cursor":
            assert_refused(connection, op, field, {**rest, field.name: None})
        for wrong in WRONG[field.kind]:
            assert_refused(connection, op, field, {**rest, field.name: wrong})
    assert (counters_of(connection), connection.ask("system.stats")["wal_current_lsn"]) == before
    assert connection.ask("system.ping") == "pong"


def test_pages_have_a_default_and_a_largest_size(connection: Connection) -> None:
    connection.ask("ingest.begin", stream_id="pages", mode="add")
    for seq in (1, 2):
        connection.ask(
            "ingest.chunk",
            stream_id="pages",
            series="pages",
            chunk_seq=seq,
            items=[[key + seq * 100, DAY, 1] for key in range(100)],
        )
    assert len(connection.ask("tree.keys", series="pages")["keys"]) == 100
    assert len(connection.ask("tree.top", series="pages")["items"]) == 50
    for op, largest in (("tree.keys", 10_000), ("tree.top", 1_000)):
        assert connection.ask(op, series="pages", limit=largest)["limit"] == largest
        for limit in (0, largest + 1):
            assert connection.refuse(op, series="pages", limit=limit)[0] == "validation_error"
    for op, largest, fields in (
        ("replication.entries", 10_000, {"after_lsn": 10**6}),
        ("idempotency.prune", 100_000, {"before": 0}),
        ("snapshot.fetch_chunk", 524_288, {"file": "1_none.tree"}),
    ):
        for limit in (0, largest + 1):
            assert connection.refuse(op, **fields, limit=limit)[0] == "validation_error"


def test_the_pages_of_a_series_hold_each_key_once_in_order(connection: Connection) -> None:
    connection.ask(
        "series.batch_add", series="paged", items=[[key, DAY, 1] for key in (0, 1, 2**64 - 1, 5, 2**63)]
    )
    seen: list[int] = []
    cursor = None
    while True:
        page = connection.ask(
            "tree.keys", series="paged", limit=2, **({} if cursor is None else {"cursor": cursor})
        )
        assert page["cursor"] == cursor
        seen += [each["key"] for each in page["keys"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [0, 1, 5, 2**63, 2**64 - 1]


# -- What creates a series, and what a missing one answers ------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [op for op in OPS if op.access == "R" and "series" in {field.name for field in op.fields}],
    ids=lambda op: op.name,
)
def test_reads_never_create_a_series(connection: Connection, op: Op) -> None:
    assert connection.refuse(op.name, **{**(op.example or {}), "series": "absent"})[0] == "not_found"
    assert "absent" not in connection.ask("tree.list")


SPAN = {"from": DAY, "to": DAY}


@pytest.mark.parametrize(
    ("op", "fields", "is_created"),
    [
        ("counter.increment", {"key": 1}, True),
        ("counter.decrement", {"key": 1}, True),
        ("series.batch_add", {"items": []}, True),
        ("series.batch_set", {"items": []}, False),
        ("series.batch_set", {"items": [[1, DAY, 0]]}, True),
        ("counter.reset", {"key": 1}, True),
        ("tree.reset", {}, True),
        ("counter.delete_range", {"key": 1, "range": SPAN}, True),
        ("tree.delete_range", {"range": SPAN}, True),
        ("limit.consume", {"key": 1, "limit": 5}, True),
        ("limit.consume", {"key": 1, "limit": 0}, False),
    ],
)
def test_these_writes_find_or_create_their_series(
    connection: Connection, op: str, fields: dict[str, Any], is_created: bool
) -> None:
    if "created" in connection.ask("tree.list"):
        connection.ask("tree.drop", series="created")
    connection.ask(op, series="created", **fields)
    assert ("created" in connection.ask("tree.list")) is is_created


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("tree.drop", {}),
        ("series.compact", {}),
        ("series.delete_before", {"before": DAY}),
        ("counter.batch_reset", {"keys": [1]}),
        ("counter.batch_delete_range", {"keys": [1], "range": SPAN}),
        ("snapshot.create", {}),
    ],
)
def test_these_writes_need_their_series(connection: Connection, op: str, fields: dict[str, Any]) -> None:
    lsn = connection.ask("system.stats")["wal_current_lsn"]
    assert connection.refuse(op, series="absent", **fields)[0] == "not_found"
    assert connection.ask("system.stats")["wal_current_lsn"] == lsn


def test_a_fetched_chunk_is_base64_of_the_bytes_it_counts(connection: Connection) -> None:
    connection.ask("snapshot.create_all")
    chunk = connection.ask("idempotency.snapshot_fetch_chunk", offset=2, limit=5)
    assert (chunk["offset"], chunk["limit"], chunk["bytes"], chunk["next_offset"]) == (2, 5, 5, 7)
    assert base64.b64decode(chunk["data_base64"], validate=True) == b"recor"
