"""Karma 1.0.1's clients and data directories: the same replies, the same data.

What may differ is listed here and nowhere else: values that are volatile by nature, and the places
where the protocol document says that ours is different on purpose.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import original
import pytest
from faults import peers
from harness import FIXTURES, Server, counters_of, until
from property.model import Fields

RECORDINGS = ["wal-only", "wal-segments", "snapshot-and-wal"]

VOLATILE = {
    # Times, sizes and latencies, in stats, health, status, info and checkpoints.
    "uptime_seconds",
    "memory_bytes",
    "wal_bytes",
    "latency_ms_avg",
    "latency_ms_last",
    "ingest_latency_ms_avg",
    "ingest_latency_ms_last",
    "idempotency_write_latency_ms_avg",
    "idempotency_write_latency_ms_last",
    "reconciliation_last_run_unix",
    "recovery_last_checkpoint_unix",
    "updated_at_unix",
    "entries_bytes",
    # The original logs it only when the client gave one, ours always.
    "idempotency_created_at_unix",
}
LSN_FIELDS = {"wal_current_lsn", "source_lsn"}


def is_logged_in_vain(op: str, theirs: dict[str, Any]) -> bool:
    """Return whether the original logged what failed or changed nothing: its LSNs are ahead by these."""
    if op in ("counter.batch_reset", "counter.batch_delete_range"):
        return bool(theirs["error_code"] == "not_found")
    if op == "ingest.commit" and theirs["success"]:
        return bool(theirs["response"]["status"] == "already_committed")
    return op == "ingest.commit" and theirs["response"] == "Cannot commit empty replace_series stream"


@pytest.fixture
def recording(request: pytest.FixtureRequest) -> Path:
    return FIXTURES / str(request.param)


def lines_of(recording: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (recording / "transcript.ndjson").read_text().splitlines()]


def masked(value: Any, lsn_ahead: int) -> Any:
    """Return a reply without what is volatile, its LSNs as if no failed write had been logged."""
    if isinstance(value, dict):
        return {
            name: part - lsn_ahead if name in LSN_FIELDS else masked(part, lsn_ahead)
            for name, part in value.items()
            if name not in VOLATILE
        }
    return [masked(part, lsn_ahead) for part in value] if isinstance(value, list) else value


def samples(metrics: str) -> dict[str, str]:
    return dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))


def differences(op: str, theirs: dict[str, Any], ours: dict[str, Any], lsn_ahead: int) -> str | None:
    """Return how our reply differs where it may not, None when it does not."""
    if op == "snapshot.verify":
        # The original reports a fault of its own making on a healthy directory.
        return None if ours["success"] and ours["response"]["status"] == "ok" else "it must verify"
    if not theirs["success"]:
        leaks = "cast from" in theirs["response"] or "Unexpected char" in theirs["response"]
        if leaks:
            # Texts of the original's compiler and JSON parser: the code counts, and that ours says something.
            theirs = {**theirs, "response": bool(theirs["response"])}
            ours = {**ours, "response": bool(ours["response"])}
    elif op == "system.metrics":
        volatile = ("uptime", "latency", "memory", "bytes", "_unix")
        expected = samples(theirs["response"])
        expected = {
            name: value for name, value in expected.items() if not any(part in name for part in volatile)
        }
        expected["karma_wal_current_lsn"] = str(int(expected["karma_wal_current_lsn"]) - lsn_ahead)
        found = samples(ours["response"])
        wrong = {name: found.get(name) for name, value in expected.items() if found.get(name) != value}
        return str(wrong) if wrong else None
    elif op in ("system.stats", "replication.status"):
        # Ours may have more fields.
        ours = {**ours, "response": {name: ours["response"].get(name) for name in theirs["response"]}}
    theirs, ours = masked(theirs, lsn_ahead), masked(ours, 0)
    return None if theirs == ours else f"\n  theirs {theirs}\n  ours   {ours}"


@pytest.mark.parametrize("recording", RECORDINGS, indirect=True)
def test_every_reply_of_the_original_is_ours(recording: Path, tmp_path: Path) -> None:
    found: list[str] = []
    lsn_ahead = 0
    with Server(tmp_path / "data", max_request_bytes=100_000) as server, server.connect() as connection:
        for number, exchange in enumerate(lines_of(recording), 1):
            connection.send(exchange["request"].encode() + b"\n")
            ours, theirs = connection.read(), json.loads(exchange["reply"])
            try:
                op = json.loads(exchange["request"])["op"]
            except (ValueError, TypeError, KeyError):
                op = ""
            lsn_ahead += is_logged_in_vain(op, theirs)
            difference = differences(op, theirs, ours, lsn_ahead)
            if difference is not None:
                found.append(f"line {number}: {exchange['request'][:200]}: {difference}")
    assert not found, "\n".join(found[:20])


@pytest.mark.parametrize("recording", RECORDINGS, indirect=True)
def test_the_original_s_directory_restores(recording: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(recording / "data", data)
    expected = json.loads((recording / "state.json").read_text())
    if recording.name == "snapshot-and-wal":
        expected["api_requests"]["7001"] = {"20260505": 11}
        expected["emails_sent"]["7002"] = {"20260505": 12}
    expected = {
        name: {key: buckets for key, buckets in keys.items() if buckets} for name, keys in expected.items()
    }
    with Server(data) as server:
        for _ in range(2):
            with server.connect() as connection:
                assert counters_of(connection) == expected
                assert connection.ask("snapshot.verify")["status"] == "ok"
            # What we make of the directory holds the same, after a kill and after a clean end.
            server.kill()
            server.restart()
        assert server.stop() == 0
        server.restart()
        with server.connect() as connection:
            assert counters_of(connection) == expected


@pytest.mark.parametrize("recording", ["snapshot-and-wal"], indirect=True)
def test_an_idempotent_retry_of_the_original_s_write_is_recognised(recording: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(recording / "data", data)
    with Server(data) as server, server.connect() as connection:
        retry = connection.call(
            "counter.increment",
            series="emails_sent",
            key=7002,
            bucket=20260505,
            value=12,
            idempotency_key="after-snap",
        )
        assert retry["idempotent"] is True
        assert connection.ask("counter.sum", series="emails_sent", key=7002) == 12
        conflict, _ = connection.refuse(
            "counter.increment",
            series="emails_sent",
            key=7002,
            bucket=20260505,
            value=13,
            idempotency_key="after-snap",
        )
        assert conflict == "idempotency_conflict"


@pytest.mark.parametrize("recording", ["wal-only"], indirect=True)
def test_entries_the_original_chokes_on_are_skipped_with_a_warning(recording: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(recording / "data", data)
    with Server(data) as server:
        warnings = [event["message"] for event in server.events() if event["event"] == "restore_warning"]
    assert any("batch_delete_range" in warning and "skipped" in warning for warning in warnings), warnings


# -- What was left out --------------------------------------------------------------------------------------

BARE: list[tuple[str, Fields]] = [
    ("tree.create", {"series": "api"}),
    ("tree.create", {"series": "gone"}),
    ("tree.drop", {"series": "gone"}),
    ("counter.increment", {"series": "api", "key": 1}),
    ("counter.increment", {"series": "api", "key": 2, "idempotency_key": "add"}),
    ("counter.decrement", {"series": "api", "key": 2}),
    ("counter.reset", {"series": "api", "key": 3}),
    ("counter.batch_reset", {"series": "api", "keys": [2, 3]}),
    ("counter.delete_range", {"series": "api", "key": 3, "range": {"from": 20260101, "to": 20260131}}),
    (
        "counter.batch_delete_range",
        {"series": "api", "keys": [], "range": {"from": 20260101, "to": 20260131}},
    ),
    ("series.batch_add", {"series": "api", "items": []}),
    ("series.batch_add", {"series": "api", "items": [[4, "2026-05-05", 4], [4, 20260505, 4]]}),
    ("series.batch_set", {"series": "api", "items": []}),
    ("series.batch_set", {"series": "mails", "items": [[1, 20260505, 9], [1, 20260505, 2]]}),
    ("series.delete_before", {"series": "api", "before": 20200101}),
    ("series.compact", {"series": "api"}),
    ("system.compact", {}),
    ("tree.reset", {"series": "new"}),
    ("tree.delete_range", {"series": "new", "range": {"from": 20260101, "to": 20260131}}),
    ("idempotency.prune", {"before": 0}),
    ("ingest.begin", {"stream_id": "done", "mode": "replace_series"}),
    (
        "ingest.chunk",
        {"stream_id": "done", "series": "built", "chunk_seq": 1, "items": [[1, 20260505, 5]] * 2},
    ),
    ("ingest.chunk", {"stream_id": "done", "series": "built", "chunk_seq": 2, "items": [[1, 20260505, 3]]}),
    ("ingest.commit", {"stream_id": "done"}),
    ("ingest.begin", {"stream_id": "no chunks", "mode": "add"}),
    ("ingest.commit", {"stream_id": "no chunks"}),
    ("ingest.begin", {"stream_id": "given up", "mode": "set"}),
    ("ingest.abort", {"stream_id": "given up"}),
]
"""Every write of Karma 1.0's log without its optional fields."""


@pytest.mark.parametrize("has_snapshot", [False, True], ids=["log", "snapshot and log"])
def test_nothing_that_may_be_left_out_is_missed(tmp_path: Path, has_snapshot: bool) -> None:
    writer = original.Original(int(time.time()))
    for op, fields in BARE:
        writer.execute(op, fields)
    if has_snapshot:
        assert writer.snapshot_all()
    writer.execute("ingest.begin", {"stream_id": "open", "mode": "add"})
    data = tmp_path / "data"
    writer.write(data)
    for command in ("check", "repair"):
        words = [sys.executable, "-m", "karma.app", command, "--directory", str(data), "--output=json"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        report = json.loads(done.stdout)
        assert (done.returncode, report["status"]) == (0, "ok"), done.stdout
    expected = {
        name: {
            str(key): {str(day): value for day, value in days.items()} for key, days in keys.items() if days
        }
        for name, keys in writer.model.series.items()
    }
    with Server(data) as server, server.connect() as connection:
        assert counters_of(connection) == expected
        assert connection.call("counter.increment", **dict(BARE)["counter.increment"])["idempotent"] is True
        for stream_id, status in (("open", "active"), ("no chunks", "already_committed")):
            begun = connection.ask("ingest.begin", stream_id=stream_id, mode="add")
            assert (begun["granularity"], begun["status"]) == (None, status)
    source = peers.Original(data)
    with peers.Peer(source) as peer:
        slave = Server(
            tmp_path / "slave",
            role="slave",
            replication_source_host="127.0.0.1",
            replication_source_port=peer.port,
            replication_poll_interval_ms=50,
        )
        with slave, slave.connect() as connection:
            lsn = source.source_lsn
            until(
                lambda: connection.ask("replication.status")["wal_current_lsn"] == lsn,
                why=slave.output.read_text,
            )
            assert counters_of(connection) == expected


# -- Names that are refused here -----------------------------------------------------------------------------


def test_series_that_only_the_original_took_go_on_whatever_their_names(tmp_path: Path) -> None:
    names = ["x" * 204, "é" * 101, "a\x07b", "a\0b", ""]
    data = tmp_path / "data"
    data.mkdir()
    entries = [
        {"v": 2, "op": "counter.increment", "series": name, "key": 1, "bucket": 20260505, "value": 5}
        for name in names
    ]
    lines = [json.dumps({"v": 2, "lsn": lsn, "entry": entry}) for lsn, entry in enumerate(entries, 1)]
    (data / "karma.wal").write_text("".join(line + "\n" for line in lines))
    with Server(data) as server:
        for expected in (6, 7):
            with server.connect() as connection:
                for name in names:
                    connection.ask("counter.increment", series=name, key=1, bucket=20260505)
                    assert connection.ask("counter.sum", series=name, key=1) == expected
                connection.ask("snapshot.create", series=names[0])
            assert server.stop() == 0
            server.restart()
        file = tmp_path / "export.jsonl"
        words = [sys.executable, "-m", "karmactl", "--node", f"127.0.0.1:{server.port}", "export", str(file)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        exported = [json.loads(line) for line in file.read_text().splitlines()]
        assert {(line["series"], line["value"]) for line in exported} == {(name, 7) for name in names}
        with server.connect() as connection:
            assert connection.ask("tree.list") == names
            for name in names:
                connection.ask("counter.reset", series=name, key=1)
                connection.ask("tree.drop", series=name)
                assert connection.refuse("tree.create", series=name)[0] == "validation_error"
            assert connection.ask("tree.list") == []
