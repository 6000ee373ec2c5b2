"""Random histories as Karma 1.0 would have seen them: we read its directory, and reply and log as it does."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from handmade import read, state_of
from harness import FIXTURES
from hypothesis import given, settings
from hypothesis import strategies as st
from original import Original, entry_of, fingerprint
from property.model import Fields, Refused

from karma.core import idempotency
from karma.core.store import Store
from karma.engine import Engine
from karma.ops import OPS

NOW = 1_795_253_093
"""2026-11-21."""
DAYS = (20261119, 20261120, 20261121)

names = st.sampled_from(["a", "b"])
keys = st.integers(0, 2)
days = st.sampled_from(DAYS)
some_days = st.sampled_from([*DAYS, "20261121", "2026-11-20"])
values = st.integers(1, 4)
spans = st.tuples(days, days).map(lambda ends: {"from": min(ends), "to": max(ends)})
once = st.sampled_from(["one", "two", "three"])
streams = st.sampled_from(["s1", "s2"])
items = st.lists(st.tuples(keys, some_days, values).map(list), max_size=5)
settable_items = st.lists(st.tuples(keys, some_days, st.integers(0, 4)).map(list), max_size=5)
"""Few keys and days: most lists have one of them twice."""

NEXT = 0
"""Stands for the number that the next chunk of a stream must have."""

WRITES: dict[str, tuple[dict[str, st.SearchStrategy[Any]], dict[str, st.SearchStrategy[Any]]]] = {
    "counter.increment": (
        {"series": names, "key": keys},
        {"bucket": some_days, "value": values, "idempotency_key": once},
    ),
    "counter.decrement": (
        {"series": names, "key": keys},
        {"bucket": some_days, "value": values, "idempotency_key": once},
    ),
    "counter.reset": ({"series": names, "key": keys}, {"idempotency_key": once}),
    "counter.batch_reset": ({"series": names, "keys": st.lists(keys, max_size=3)}, {"idempotency_key": once}),
    "counter.delete_range": ({"series": names, "key": keys, "range": spans}, {"idempotency_key": once}),
    "counter.batch_delete_range": (
        {"series": names, "keys": st.lists(keys, max_size=3), "range": spans},
        {"idempotency_key": once},
    ),
    "series.batch_add": ({"series": names, "items": items}, {"idempotency_key": once}),
    "series.batch_set": ({"series": names, "items": settable_items}, {"idempotency_key": once}),
    "series.delete_before": ({"series": names, "before": days}, {}),
    "series.compact": ({"series": names}, {}),
    "system.compact": ({}, {}),
    "tree.create": ({"series": names}, {}),
    "tree.drop": ({"series": names}, {}),
    "tree.reset": ({"series": names}, {"idempotency_key": once}),
    "tree.delete_range": ({"series": names, "range": spans}, {"idempotency_key": once}),
    "idempotency.prune": ({"before": st.sampled_from([0, 2**33])}, {"limit": st.integers(1, 2)}),
    "ingest.begin": (
        {"stream_id": streams, "mode": st.sampled_from(["add", "set", "replace_series", "replace_series"])},
        {"granularity": st.sampled_from(["day", "hour"])},
    ),
    "ingest.chunk": (
        {
            "stream_id": streams,
            "series": st.sampled_from(["a", "a", "a", "b"]),
            "chunk_seq": st.sampled_from([NEXT, NEXT, NEXT, 1, 2]),
            "items": settable_items,
        },
        {},
    ),
    "ingest.commit": ({"stream_id": streams}, {}),
    "ingest.abort": ({"stream_id": streams}, {}),
}
"""Every write of Karma 1.0 that its log holds: the fields it needs, and those that may be left out."""

NOT_IN_THE_LOG = {"recovery.checkpoint", "snapshot.load"}
Request = tuple[str, Fields]
SNAPSHOT: Request = ("snapshot.create_all", {})


def requests_of(op: str) -> st.SearchStrategy[Request]:
    required, optional = WRITES[op]
    return st.tuples(st.just(op), st.fixed_dictionaries(required, optional=optional))


@st.composite
def imports(draw: st.DrawFn) -> list[Request]:
    """A stream from its beginning on, mostly to its end."""
    fields = {"stream_id": draw(streams)}
    op, begin = draw(requests_of("ingest.begin"))
    of_chunk = fields | {"series": draw(names), "chunk_seq": NEXT}
    chunks = draw(st.lists(settable_items, min_size=1, max_size=3))
    commits = draw(st.sampled_from([0, 1, 1]))
    return [
        (op, begin | fields),
        *(("ingest.chunk", of_chunk | {"items": items}) for items in chunks),
        *[("ingest.commit", fields)] * commits,
    ]


requests = st.sampled_from(list(WRITES)).flatmap(requests_of)
scripts = st.lists(requests.map(lambda request: [request]) | imports(), max_size=15).map(
    lambda parts: [request for part in parts for request in part]
)
histories = st.lists(scripts | st.just([SNAPSHOT]), max_size=4).map(
    lambda parts: [request for part in parts for request in part]
)


def test_every_write_and_every_optional_field_is_played() -> None:
    of_original = {op.name: op for op in OPS if op.access == "W" and not op.extension}
    assert set(WRITES) == set(of_original) - NOT_IN_THE_LOG
    for name, (required, optional) in WRITES.items():
        op = of_original[name]
        assert set(required) == {field.name for field in op.fields if field.required}
        left_out = {field.name for field in op.fields if not field.required}
        assert set(optional) == left_out | ({"idempotency_key"} if op.idempotent else set())


def numbered(original: Original, fields: Fields) -> Fields:
    """Return the fields of a request, its chunk in the order of its stream."""
    if fields.get("chunk_seq") != NEXT:
        return fields
    stream = original.model.streams.get(fields["stream_id"])
    return {**fields, "chunk_seq": 1 + len(stream.chunks if stream else ())}


def play(history: list[Request]) -> Original:
    original = Original(NOW)
    for op, scripted in history:
        fields = numbered(original, scripted)
        if op == "snapshot.create_all":
            original.snapshot_all()
            continue
        try:
            original.execute(op, fields)
        except Refused:
            continue
    return original


@settings(max_examples=60, deadline=None)
@given(histories)
def test_a_directory_of_the_original_restores(history: list[Request]) -> None:
    original = play(history)
    with TemporaryDirectory() as folder:
        original.write(Path(folder))
        restored = read(Path(folder)).store
    assert state_of(restored) == original.model.series
    assert {
        key: (record.operation, record.fingerprint, record.response)
        for key, record in restored.records.items()
    } == {
        key: (saved["operation"], saved["fingerprint"], saved["response"])
        for key, saved in original.records.items()
    }
    assert {
        (stream_id, stream.mode, stream.granularity, stream.series, stream.begin_fingerprint)
        for stream_id, stream in restored.streams.committed.items()
    } == {
        (
            saved["stream_id"],
            saved["mode"],
            saved.get("granularity"),
            saved.get("series_name"),
            saved["begin_fingerprint"],
        )
        for saved in original.committed
    }


@settings(max_examples=120, deadline=None)
@given(scripts)
def test_replies_and_log_are_the_original_s(history: list[Request]) -> None:
    original = Original(NOW)
    engine = Engine(Store())
    engine.begin_pass(NOW * 1000)
    logged: list[dict[str, Any]] = []
    for op, scripted in history:
        fields = numbered(original, scripted)
        before = len(original.entries)
        try:
            expected, code = original.execute(op, fields), None
            logged += original.entries[before:]
        except Refused as refusal:
            expected, code = None, refusal.code
        outcome = engine.execute(json.dumps({"v": 2, "op": op, **fields}).encode())
        assert isinstance(outcome, bytes)
        reply = json.loads(outcome)
        assert reply["error_code"] == code, (op, fields, reply)
        if code is None:
            assert reply["response"] == expected, (op, fields)
            assert reply.get("idempotent") == original.model.was_idempotent
        if op == "ingest.commit" and code is None and expected["status"] != "committed":
            # Karma 1.0 logs a commit that is repeated, ours does not.
            logged.pop()
        engine.store.settle()
    ours = ("idempotency_created_at_unix", "response")
    assert [
        {name: value for name, value in json.loads(entry).items() if name not in ours}
        for entry in engine.entries
    ] == logged
    assert state_of(engine.store) == original.model.series


def test_these_rules_are_those_of_the_recordings() -> None:
    """Hold the writer against what Karma 1.0.1 really wrote, and the server's fingerprints against both."""
    logs = [path for path in FIXTURES.glob("*/data/karma.wal*") if path.suffix in ("", ".wal", ".segment")]
    fingerprints = {
        record["key"]: record["fingerprint"]
        for record in json.loads((FIXTURES / "snapshot-and-wal/data/karma.idempotency.json").read_text())[
            "records"
        ]
    }
    entries = [json.loads(line)["entry"] for path in logs for line in path.read_text().splitlines()]
    assert len(entries) > 1000
    for entry in entries:
        op = entry["op"]
        assert entry_of(op, entry, 0) == entry
        if "idempotency_key" in entry or op in ("ingest.begin", "ingest.chunk"):
            assert fingerprint(entry) == idempotency.fingerprint(entry)
    transcript = (FIXTURES / "snapshot-and-wal" / "transcript.ndjson").read_text().splitlines()
    proven = set()
    for line in transcript:
        exchange = json.loads(line)
        if '"idempotent":false' in exchange["reply"]:
            request = json.loads(exchange["request"])
            request["series"] = request.pop("tree", request.get("series"))
            op = next(op.name for op in OPS if request["op"] in (op.name, *op.aliases))
            entry = entry_of(op, request, 0)
            # Some were pruned in between.
            if request["idempotency_key"] in fingerprints:
                assert fingerprint(entry) == fingerprints[request["idempotency_key"]]
                proven.add(op)
    assert proven == {"counter.decrement", "counter.increment", "series.batch_add", "tree.reset"}


@pytest.mark.parametrize("mode", ["add", "set", "replace_series"])
def test_a_repeated_item_counts_once_unless_the_stream_adds(mode: str) -> None:
    chunks = [[[1, 20261121, 5], [1, 20261121, 7]], [[1, 20261121, 2], [2, 20261121, 0]]]
    history: list[Request] = [("ingest.begin", {"stream_id": "s", "mode": mode})]
    for chunk_seq, chunk in enumerate(chunks, 1):
        added = [item for item in chunk if item[2] or mode != "add"]
        fields = {"stream_id": "s", "series": "a", "chunk_seq": chunk_seq, "items": added}
        # The second time it is recognised, and changes nothing.
        history += [("ingest.chunk", fields), ("ingest.chunk", fields)]
    history.append(("ingest.commit", {"stream_id": "s"}))
    original = play(history)
    expected = {1: {20261121: 14}} if mode == "add" else {1: {20261121: 2}, 2: {}}
    assert original.model.series == {"a": expected}
    with TemporaryDirectory() as folder:
        original.write(Path(folder))
        assert state_of(read(Path(folder)).store) == {"a": expected}
