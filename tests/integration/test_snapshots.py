"""Snapshots of a running server: taking, listing, fetching, loading, and what survives them and a kill."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Connection, Server, counters_of, request, until

from karma.core import buckets
from karma.offline.check import check
from karma.storage import tree_file
from karma.storage.disk import Disk
from karma.storage.manifest import MANIFEST_NAME

DAY = 20260505
ODD_NAMES = [
    "a/b",
    "100%",
    "%2F",
    "a%2Fb/",
    "../evil",
    "..",
    ".",
    "日本 \U0001f600",
    "x" * 200,
    "é/" * 66,
    "~",
    " ",
    "a.tree",
    "CON",
    "\\",
    "a\\b",
    "..\\..\\evil",
    "C:\\x",
    "*?[x]",
    "'\"`$HOME;|&<>(){}!#",
    "-rf",
    " a ",
    ".hidden",
    "1_a.tree",
    "a.tree.meta.json",
    "a.part",
    "karma.wal",
    "a\u0301",
    "\u00e1",
    "NULL",
    "a:b",
    "a=b,c",
]


def snapshot_files(server: Server) -> list[Path]:
    return sorted(server.directory.glob("*.tree"))


def newest_of(connection: Connection, series: str) -> dict[str, Any]:
    latest: list[dict[str, Any]] = connection.ask("snapshot.info")["latest_by_tree"]
    return next(each for each in latest if each["tree"] == series)


# -- Taking and looking --------------------------------------------------------------------------------


def test_only_what_changed_is_written_again_and_all_is_as_new_as_its_set(tmp_path: Path) -> None:
    with Server(tmp_path / "data", dump_retention_per_tree=1) as server:
        with server.connect() as connection:
            for name in ("a", "b", "c/d"):
                connection.ask("counter.increment", series=name, key=1, bucket=DAY, value=5)
            connection.ask("snapshot.create_all")
            first = {each["tree"]: each for each in connection.ask("snapshot.info")["latest_by_tree"]}
            connection.ask("counter.increment", series="b", key=2, bucket=DAY)
            time.sleep(1 - time.time() % 1)
            connection.ask("snapshot.create_all")
            info = connection.ask("snapshot.info")
            second = {each["tree"]: each for each in info["latest_by_tree"]}
            assert [name for name in first if first[name]["file"] != second[name]["file"]] == ["b"]
            assert {each["last_lsn"] for each in second.values()} == {info["last_snapshot_lsn"]} == {4}
            assert len({each["timestamp"] for each in second.values()}) == 1
            assert second["a"]["timestamp"] > first["a"]["timestamp"]
            fetched = connection.ask("snapshot.fetch", file=second["a"]["file"])["metadata"]
            assert fetched["last_lsn"] == 4
            before = counters_of(connection)
        server.kill()
        assert check(Disk(), server.directory, int(time.time())).status == "ok"
        server.restart()
        with server.connect() as connection:
            assert counters_of(connection) == before
            info = connection.ask("snapshot.info")
            assert {each["tree"]: each for each in info["latest_by_tree"]} == second
            connection.ask("counter.increment", series="a", key=1, bucket=DAY)
        assert server.stop() == 0
        server.restart()
        with server.connect() as connection:
            assert connection.ask("counter.sum", series="a", key=1) == 6
            assert len(snapshot_files(server)) == 3


def test_karma_1_finds_the_right_sums_in_files_of_several_sets(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        with server.connect() as connection:
            for round_number in range(3):
                for name in ("a", "b", "c")[round_number:]:
                    connection.ask("counter.increment", series=name, key=1, bucket=DAY, value=5)
                connection.ask("snapshot.create_all")
            connection.ask("counter.increment", series="b", key=1, bucket=DAY)
        assert server.stop() == 0
        # It takes the newest file of each series, looks at no LSN, and applies the whole log.
        newest = {path.stem.partition("_")[2]: path for path in snapshot_files(server)}
        sums = {name: buckets.total(tree_file.decode(path.read_bytes())[1]) for name, path in newest.items()}
        assert sums == {"a": 5, "b": 11, "c": 15}
        assert [
            path.stat().st_size for path in server.directory.glob("karma.wal*") if path.suffix != ".lsn"
        ] == [0]


def test_a_snapshot_that_failed_leaves_what_changed_to_the_next(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        with server.connect() as connection:
            connection.ask("counter.increment", series="a", key=1, bucket=DAY, value=5)
            connection.ask("snapshot.create_all")
            connection.ask("counter.increment", series="a", key=1, bucket=DAY, value=5)
            obstacle = server.directory / f".{MANIFEST_NAME}.tmp"
            obstacle.mkdir()
            assert connection.refuse("snapshot.create_all")[0] == "storage_error"
            obstacle.rmdir()
            connection.ask("snapshot.create_all")
        server.kill()
        server.restart()
        with server.connect() as connection:
            assert connection.ask("counter.sum", series="a", key=1) == 10


def test_create_snapshots_one_series_and_leaves_the_log(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        connection.ask("counter.increment", series="a", key=1, bucket=DAY, value=5)
        connection.ask("counter.increment", series="b", key=1, bucket=DAY, value=7)
        log_bytes = connection.ask("snapshot.info")["wal_bytes"]
        assert connection.ask("snapshot.create", series="a") == 'Tree "a" saved'
        info = connection.ask("snapshot.info")
        assert (info["dump_count"], info["wal_bytes"], info["last_snapshot_lsn"]) == (1, log_bytes, 0)
        found = newest_of(connection, "a")
        path = Path(connection.ask("snapshot.list")[0])
        assert path.name == found["file"]
        assert path.parent == server.directory
        assert found["bytes"] == path.stat().st_size
        assert found["last_lsn"] == 2
        assert abs(found["timestamp"] - time.time()) < 60
        connection.ask("counter.increment", series="a", key=1, bucket=DAY, value=5)
        server.kill()
        server.restart()
    with Server(tmp_path / "data") as server, server.connect() as connection:
        assert counters_of(connection) == {"a": {"1": {str(DAY): 10}}, "b": {"1": {str(DAY): 7}}}


def test_create_all_snapshots_at_one_lsn_and_truncates_the_log(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        for series in ("a", "b", "empty"):
            connection.ask("tree.create", series=series)
        connection.ask("series.batch_add", series="a", items=[[key, DAY, key + 1] for key in range(100)])
        assert connection.ask("snapshot.create_all") == "OK"
        info = connection.ask("snapshot.info")
        assert [each["tree"] for each in info["latest_by_tree"]] == ["a", "b", "empty"]
        assert {each["last_lsn"] for each in info["latest_by_tree"]} == {4}
        assert (info["last_snapshot_lsn"], info["wal_bytes"], info["wal_current_lsn"]) == (4, 0, 4)
        assert (server.directory / "karma.wal.lsn").read_text().strip() == "4"
        connection.ask("counter.increment", series="b", key=1, bucket=DAY)
        verified = connection.ask("snapshot.verify")
        assert (verified["status"], verified["dump_count"], verified["trees"], verified["keys"]) == (
            "ok",
            3,
            3,
            101,
        )
        assert (verified["wal_entries_checked"], verified["wal_first_lsn"], verified["wal_last_lsn"]) == (
            1,
            5,
            5,
        )
        assert (verified["restore_snapshot_lsn"], verified["wal_lsn_file"]) == (4, 4)
        expected = counters_of(connection)
        server.kill()
        server.restart()
        with server.connect() as again:
            assert counters_of(again) == expected
            assert again.ask("tree.list") == ["a", "b", "empty"]


def test_a_snapshot_without_metadata_is_told_from_one_of_all_in_the_same_second(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        connection.ask("counter.increment", series="a", key=1, bucket=DAY)
        connection.ask("snapshot.create_all")
        connection.ask("counter.increment", series="b", key=1, bucket=DAY)
        connection.ask("snapshot.create", series="b")
        server.kill()
    (later,) = server.directory.glob("*_b.tree")
    (of_all,) = server.directory.glob("*_a.tree")
    now_unix = int(time.time())
    # As a power cut leaves it: nothing depends on it, and its LSN is not that of the others.
    later.with_name(f"{later.name}.meta.json").unlink()
    assert check(Disk(), server.directory, now_unix).status == "warning"
    of_all.with_name(f"{of_all.name}.meta.json").unlink()
    assert check(Disk(), server.directory, now_unix).status == "damaged"


def test_verify_names_a_damaged_file(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        connection.ask("series.batch_add", series="a", items=[[key, DAY, key + 1] for key in range(100)])
        connection.ask("snapshot.create_all")
        path = snapshot_files(server)[0]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        code, message = connection.refuse("snapshot.verify")
        assert code == "validation_error"
        assert path.name in message
        assert connection.refuse("snapshot.load", file=path.name)[0] == "validation_error"
        assert connection.ask("tree.info", series="a")["key_count"] == 100


def test_only_the_newest_snapshots_of_each_series_are_kept(tmp_path: Path) -> None:
    with Server(tmp_path / "data", dump_retention_per_tree=2) as server, server.connect() as connection:
        connection.ask("counter.increment", series="rare", key=1, bucket=DAY)
        connection.ask("snapshot.create_all")
        for value in range(4):
            connection.ask("counter.increment", series="a", key=1, bucket=DAY, value=value + 1)
            connection.ask("snapshot.create", series="a")
        names = [path.name for path in snapshot_files(server)]
        assert len([name for name in names if name.endswith("_a.tree")]) == 2
        assert len([name for name in names if name.endswith("_rare.tree")]) == 1
        assert len(list(server.directory.glob("*.meta.json"))) == 3 + 1
        # Several a second: the timestamp of a series never repeats, and the newest comes first.
        listed = [Path(path).name for path in connection.ask("snapshot.list") if path.endswith("_a.tree")]
        assert listed == sorted(listed, key=lambda name: -int(name.split("_")[0]))
        assert connection.ask("snapshot.load", file=listed[0]) == 'Tree "a" loaded'
        assert connection.ask("counter.sum", series="a", key=1) == 1 + 2 + 3 + 4


def test_every_name_of_a_series_can_be_snapshot_fetched_and_restored(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        for number, series in enumerate(ODD_NAMES):
            connection.ask("counter.increment", series=series, key=number, bucket=DAY, value=number + 1)
            assert connection.ask("snapshot.create", series=series) == f'Tree "{series}" saved'
        connection.ask("snapshot.create_all")
        expected = counters_of(connection)
        for series in ODD_NAMES:
            file = newest_of(connection, series)["file"]
            assert connection.ask("snapshot.fetch", file=file)["metadata"]["tree"] == series
            assert connection.ask("snapshot.load", file=file) == f'Tree "{series}" loaded'
        assert counters_of(connection) == expected
        assert connection.ask("snapshot.verify")["trees"] == len(ODD_NAMES)
        assert server.stop() == 0
        inside = {path for path in tmp_path.rglob("*") if path.is_file() and path != server.output}
        assert {path.parent for path in inside} == {server.directory}
        server.restart()
        with server.connect() as again:
            assert counters_of(again) == expected
            assert again.ask("tree.list") == ODD_NAMES
        source: dict[str, Any] = {
            "replication_source_host": "127.0.0.1",
            "replication_source_port": server.port,
        }
        with Server(tmp_path / "follower", role="slave", **source) as follower:
            until(lambda: follower.ask("replication.status")["replication_state"] == "following")
            with follower.connect() as reading:
                assert counters_of(reading) == expected
                assert reading.ask("tree.list") == ODD_NAMES
            assert follower.stop() == 0
            follower.restart()
            with follower.connect() as reading:
                assert counters_of(reading) == expected
        assert check(Disk(), follower.directory, int(time.time())).status == "ok"


def test_snapshots_go_on_beside_reads_and_writes(tmp_path: Path) -> None:
    with Server(tmp_path / "data", wal_fsync=False, max_request_bytes=1_000_000) as server:
        with server.connect() as busy, server.connect() as saving:
            for part in range(10):
                items = [[key, DAY, 1] for key in range(part * 10_000, (part + 1) * 10_000)]
                busy.ask("series.batch_add", series="a", items=items)
            saving.send(b'{"v":2,"op":"snapshot.create_all"}\n')
            written = 0
            while not saving.has_data():
                assert busy.ask("counter.increment", series="a", key=1, bucket=DAY) == 1
                written += 1
            assert saving.read()["response"] == "OK"
            assert written > 0
            # What came in before the fork is in the snapshot, what came later is not.
            assert 10 <= newest_of(busy, "a")["last_lsn"] < 10 + written
        server.kill()
        server.restart()
        assert server.ask("tree.summary", series="a")["total"] == 100_000 + written


# -- Fetching ------------------------------------------------------------------------------------------


def test_fetched_bytes_are_the_file_s_whole_or_in_chunks(tmp_path: Path) -> None:
    with Server(tmp_path / "data", max_request_bytes=1_000_000) as server, server.connect() as connection:
        connection.ask("series.batch_add", series="a", items=[[key, DAY, key + 1] for key in range(5000)])
        connection.ask("snapshot.create_all")
        path = snapshot_files(server)[0]
        data = path.read_bytes()
        fetched = connection.ask("snapshot.fetch", file=path.name)
        assert base64.b64decode(fetched["data_base64"], validate=True) == data
        assert fetched["metadata"]["bytes"] == len(data)
        assert fetched["metadata"]["last_lsn"] == 1
        parts, offset, done = [], 0, False
        while not done:
            chunk = connection.ask("snapshot.fetch_chunk", file=path.name, offset=offset, limit=7001)
            parts.append(base64.b64decode(chunk["data_base64"], validate=True))
            assert (chunk["bytes"], chunk["total_bytes"]) == (len(parts[-1]), len(data))
            offset, done = chunk["next_offset"], chunk["done"]
        assert b"".join(parts) == data
        assert connection.ask("snapshot.fetch_chunk", file=path.name)["done"] is True
        for beyond in (len(data), len(data) + 1, 2**64 - 1):
            chunk = connection.ask("snapshot.fetch_chunk", file=path.name, offset=beyond)
            assert (chunk["bytes"], chunk["done"], chunk["data_base64"]) == (0, True, "")


def test_the_idempotency_snapshot_is_fetched_in_chunks(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        assert connection.refuse("idempotency.snapshot_fetch_chunk")[0] == "not_found"
        connection.ask("counter.increment", series="a", key=1, bucket=DAY, idempotency_key="k")
        connection.ask("snapshot.create_all")
        chunk = connection.ask("idempotency.snapshot_fetch_chunk")
        content = json.loads(base64.b64decode(chunk["data_base64"]))
        assert [record["key"] for record in content["records"]] == ["k"]
        assert chunk["metadata"]["record_count"] == 1
        assert connection.ask("snapshot.info")["idempotency_snapshot"]["last_lsn"] == 1


def test_a_snapshot_too_large_for_one_response_says_so(tmp_path: Path) -> None:
    bounds: dict[str, Any] = {"max_request_bytes": 1_000_000, "max_response_bytes": 10_000}
    with Server(tmp_path / "data", **bounds) as server, server.connect() as connection:
        connection.ask("series.batch_add", series="a", items=[[key, DAY, key + 1] for key in range(5000)])
        connection.ask("snapshot.create_all")
        code, message = connection.refuse("snapshot.fetch", file=snapshot_files(server)[0].name)
        assert (code, "snapshot.fetch_chunk" in message) == ("response_too_large", True)


# -- Loading -------------------------------------------------------------------------------------------


def test_a_loaded_snapshot_is_in_the_log_and_survives_a_kill(tmp_path: Path) -> None:
    with Server(tmp_path / "data", max_request_bytes=1_000_000) as server:
        with server.connect() as connection:
            for part in range(3):
                items = [[key, DAY, 3] for key in range(part * 9_000, (part + 1) * 9_000)]
                connection.ask("series.batch_add", series="a", items=items)
            connection.ask("snapshot.create", series="a")
            file = newest_of(connection, "a")["file"]
            connection.ask("tree.drop", series="a")
            connection.ask("counter.increment", series="a", key=99_999, bucket=DAY, value=8)
            assert connection.ask("snapshot.load", file=file) == 'Tree "a" loaded'
            expected = {"key_count": 27_000, "bucket_count": 27_000, "total": 81_000}
            info = connection.ask("tree.info", series="a")
            assert {name: info[name] for name in expected} == expected
            ops = {
                each["entry"]["op"] for each in connection.ask("replication.entries", after_lsn=5)["entries"]
            }
            assert ops <= {"ingest.begin", "ingest.chunk", "ingest.commit"}
            assert connection.ask("system.stats")["ingest_active_streams"] == 0
        server.kill()
        server.restart()
        info = server.ask("tree.info", series="a")
        assert {name: info[name] for name in expected} == expected


def test_a_snapshot_loads_whatever_its_values_add_up_to(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        for key in range(3):
            connection.ask("counter.increment", series="a", key=key, bucket=DAY, value=2**64 - 1)
        expected = counters_of(connection)
        connection.ask("snapshot.create", series="a")
        connection.ask("tree.reset", series="a")
        connection.ask("snapshot.load", file=newest_of(connection, "a")["file"])
        assert counters_of(connection) == expected
        server.kill()
        server.restart()
        with server.connect() as again:
            assert counters_of(again) == expected


def test_a_snapshot_of_an_empty_series_loads(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        connection.ask("tree.create", series="a")
        connection.ask("snapshot.create", series="a")
        connection.ask("counter.increment", series="a", key=1)
        assert connection.ask("snapshot.load", file=newest_of(connection, "a")["file"]) == 'Tree "a" loaded'
        assert connection.ask("tree.info", series="a")["key_count"] == 0


# -- What survives -------------------------------------------------------------------------------------


def test_a_dropped_series_stays_dropped(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        for series in ("kept", "gone"):
            connection.ask("counter.increment", series=series, key=1, bucket=DAY)
        connection.ask("snapshot.create_all")
        connection.ask("tree.drop", series="gone")
        connection.ask("snapshot.create_all")
        assert not list(server.directory.glob("*_gone.tree*"))
        server.kill()
        server.restart()
        assert server.ask("tree.list") == ["kept"]
        assert server.stop() == 0
        server.restart()
        assert server.ask("tree.list") == ["kept"]
        assert server.ask("snapshot.verify")["status"] == "ok"


def test_a_dropped_series_that_came_back_has_only_its_new_counters(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        connection.ask("counter.increment", series="a", key=1, bucket=DAY, value=100)
        connection.ask("snapshot.create_all")
        connection.ask("tree.drop", series="a")
        connection.ask("counter.increment", series="a", key=2, bucket=DAY, value=5)
        expected = {"a": {"2": {str(DAY): 5}}}
        for _ in range(2):
            server.kill()
            server.restart()
            with server.connect() as again:
                assert counters_of(again) == expected
                again.ask("snapshot.create_all")


@pytest.mark.parametrize("mode", ["add", "set", "replace_series"])
def test_an_open_stream_survives_a_snapshot_and_a_kill_and_goes_on(tmp_path: Path, mode: str) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        connection.ask("counter.increment", series="a", key=1, bucket=DAY, value=100)
        connection.ask("ingest.begin", stream_id="s", mode=mode)
        connection.ask(
            "ingest.chunk", stream_id="s", series="a", chunk_seq=1, items=[[1, DAY, 5], [2, DAY, 6]]
        )
        connection.ask("snapshot.create_all")
        connection.ask("ingest.chunk", stream_id="s", series="a", chunk_seq=2, items=[[3, DAY, 7]])
        for _ in range(2):
            # First with the second chunk in the log alone, then with all of it in a snapshot.
            server.kill()
            server.restart()
            with server.connect() as again:
                begun = again.ask("ingest.begin", stream_id="s", mode=mode)
                assert (begun["status"], begun["last_chunk_seq"], begun["series"]) == ("active", 2, "a")
                skipped = again.ask(
                    "ingest.chunk", stream_id="s", series="a", chunk_seq=2, items=[[3, DAY, 7]]
                )
                assert skipped["skipped"] is True
                again.ask("snapshot.create_all")
        with server.connect() as again:
            again.ask("ingest.chunk", stream_id="s", series="a", chunk_seq=3, items=[[4, DAY, 8]])
            assert again.ask("ingest.commit", stream_id="s")["status"] == "committed"
            first = {"add": 105, "set": 5, "replace_series": 5}[mode]
            expected = {"1": {str(DAY): first}, "2": {str(DAY): 6}, "3": {str(DAY): 7}, "4": {str(DAY): 8}}
            assert counters_of(again) == {"a": expected}
        server.kill()
        server.restart()
        with server.connect() as again:
            assert counters_of(again) == {"a": expected}
            assert again.ask("ingest.commit", stream_id="s")["status"] == "already_committed"


def test_an_open_stream_survives_a_kill_in_the_first_snapshot(tmp_path: Path) -> None:
    """Nothing but the log has it then: what the snapshot has written so far must not stand in for it."""
    with Server(tmp_path / "data", max_request_bytes=1 << 20) as server, server.connect() as connection:
        for first in range(0, 200_000, 10_000):
            items = [[key, DAY, 1] for key in range(first, first + 10_000)]
            connection.ask("series.batch_add", series="large", items=items)
        connection.ask("ingest.begin", stream_id="s", mode="add")
        connection.ask("ingest.chunk", stream_id="s", series="a", chunk_seq=1, items=[[1, DAY, 5]])
        connection.send(request("snapshot.create_all"))
        deadline = time.monotonic() + 20
        while not any(".tree" in path.name for path in server.directory.iterdir()):
            assert time.monotonic() < deadline
        server.kill()
        assert not (server.directory / "karma.ingest.msgpack").exists()
        server.restart()
        with server.connect() as again:
            assert again.ask("counter.sum", series="a", key=1) == 5
            assert again.ask("ingest.begin", stream_id="s", mode="add")["last_chunk_seq"] == 1


def test_idempotency_records_survive_snapshots_and_kills(tmp_path: Path) -> None:
    def write(connection: Connection, key: str, *, is_retry: bool) -> None:
        reply = connection.call(
            "counter.increment", series="a", key=1, bucket=DAY, value=2, idempotency_key=key
        )
        assert (reply["response"], reply["idempotent"]) == (2, is_retry)
        reply = connection.call(
            "counter.batch_reset", series="a", keys=[8, 9], idempotency_key=f"reset {key}"
        )
        assert (reply["response"], reply["idempotent"]) == ({"reset": 0, "missing": 2}, is_retry)

    with Server(tmp_path / "data") as server, server.connect() as connection:
        write(connection, "before", is_retry=False)
        connection.ask("snapshot.create_all")
        write(connection, "after", is_retry=False)
        server.kill()
        server.restart()
        with server.connect() as again:
            for key in ("before", "after"):
                write(again, key, is_retry=True)
            assert again.ask("counter.sum", series="a", key=1) == 4
            assert again.ask("idempotency.prune", before=int(time.time()) + 10) == {"deleted": 4}
        server.kill()
        server.restart()
        with server.connect() as again:
            write(again, "before", is_retry=False)


def test_recovery_checkpoints_survive(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        connection.ask("recovery.checkpoint", source="export", offset="page-7")
        connection.ask("recovery.checkpoint", source="export", offset="page-8", event_id=2**64 - 1)
        connection.ask("recovery.checkpoint", source="other", event_id="e1")
        expected = connection.ask("recovery.status")
        assert expected["checkpoint_count"] == 2
        server.kill()
        server.restart()
        assert server.ask("recovery.status") == expected
        found = server.ask("recovery.status", source="export")["checkpoints"]
        assert [(each["offset"], each["event_id"]) for each in found] == [("page-8", str(2**64 - 1))], (
            "kept as text"
        )
        assert server.ask("system.stats")["recovery_checkpoint_count"] == 2


def test_a_clean_end_leaves_an_empty_log_and_its_lsn(tmp_path: Path) -> None:
    with Server(tmp_path / "data", wal_segment_bytes=2000) as server:
        with server.connect() as connection:
            for _ in range(100):
                connection.ask("counter.increment", series="a", key=1, bucket=DAY)
            assert list(server.directory.glob("karma.wal.*.segment"))
        assert server.stop() == 0
        assert (server.directory / "karma.wal").read_bytes() == b""
        assert list(server.directory.glob("karma.wal.*.segment*")) == []
        assert (server.directory / "karma.wal.lsn").read_text().strip() == "100"
        server.restart()
        assert server.ask("counter.increment", series="a", key=1, bucket=DAY) == 1
        assert server.ask("system.stats")["wal_current_lsn"] == 101


# -- By time and size ----------------------------------------------------------------------------------


def test_a_snapshot_is_taken_by_interval(tmp_path: Path) -> None:
    with Server(tmp_path / "data", snapshot_interval_seconds=1) as server:
        server.ask("counter.increment", series="a", key=1, bucket=DAY)
        assert server.wait_for_event("snapshot", 10)["lsn"] == 1
        assert len(snapshot_files(server)) >= 1


def test_a_snapshot_is_taken_by_the_log_s_size(tmp_path: Path) -> None:
    with Server(tmp_path / "data", snapshot_wal_bytes=3000) as server, server.connect() as connection:
        connection.ask("counter.increment", series="a", key=1, bucket=DAY)
        for _ in range(50):
            connection.ask("counter.increment", series="a", key=1, bucket=DAY)
        assert server.wait_for_event("snapshot", 10)["lsn"] == 51
        assert connection.ask("snapshot.info")["wal_bytes"] < 3000


# -- The log as followers see it -----------------------------------------------------------------------


def test_entries_come_in_pages_without_a_gap(tmp_path: Path) -> None:
    with Server(tmp_path / "data", wal_segment_bytes=1500) as server, server.connect() as connection:
        for value in range(1, 101):
            connection.ask("counter.increment", series="a", key=1, bucket=DAY, value=value)
        seen: list[int] = []
        after = 0
        while after < 100:
            page = connection.ask("replication.entries", after_lsn=after, limit=7)
            assert (page["after_lsn"], page["limit"], page["source_lsn"]) == (after, 7, 100)
            assert page["count"] == len(page["entries"]) <= 7
            assert [each["lsn"] for each in page["entries"]] == list(range(after + 1, page["next_lsn"] + 1))
            seen += [each["entry"]["value"] for each in page["entries"]]
            after = page["next_lsn"]
        assert seen == list(range(1, 101))
        at_end = connection.ask("replication.entries", after_lsn=100)
        assert (at_end["entries"], at_end["next_lsn"], at_end["entries_bytes"]) == ([], 100, 0)


def test_a_page_of_entries_ends_before_the_largest_response(tmp_path: Path) -> None:
    bounds: dict[str, Any] = {"max_response_bytes": 20_000, "max_request_bytes": 100_000}
    with Server(tmp_path / "data", **bounds) as server, server.connect() as connection:
        for _ in range(20):
            connection.ask("series.batch_add", series="a", items=[[key, DAY, 1] for key in range(200)])
        page = connection.ask("replication.entries", after_lsn=0)
        assert page["truncated_by_bytes"] is True
        assert 0 < page["entries_bytes"] <= page["byte_limit"] < 20_000
        assert 1 < page["count"] < 20
        whole = connection.ask("replication.entries", after_lsn=20 - page["count"] + 1)
        assert whole["truncated_by_bytes"] is False


def test_entries_that_are_gone_are_a_replication_gap(tmp_path: Path) -> None:
    with Server(tmp_path / "data", wal_keep_bytes=0) as server, server.connect() as connection:
        for _ in range(10):
            connection.ask("counter.increment", series="a", key=1, bucket=DAY)
        connection.ask("snapshot.create_all")
        connection.ask("counter.increment", series="a", key=1, bucket=DAY)
        code, message = connection.refuse("replication.entries", after_lsn=5)
        assert (code, "11" in message) == ("replication_gap", True)
        assert connection.ask("replication.entries", after_lsn=10)["count"] == 1


def test_log_is_kept_across_a_snapshot_for_a_known_follower(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        for _ in range(10):
            connection.ask("counter.increment", series="a", key=1, bucket=DAY)
        connection.ask("replication.entries", after_lsn=3)
        connection.ask("snapshot.create_all")
        assert [
            each["lsn"] for each in connection.ask("replication.entries", after_lsn=3)["entries"]
        ] == list(range(4, 11))
        server.kill()
        server.restart()
        # What is retained for followers is not replayed once more.
        assert server.ask("counter.sum", series="a", key=1) == 10
        assert server.ask("replication.entries", after_lsn=3)["count"] == 7
