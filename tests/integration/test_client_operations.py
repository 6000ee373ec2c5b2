"""Every operation of both clients against a real server; several nodes, transports, tokens, threads."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from harness import Server, free_port
from peers import FLAVOURS, Flavour, Peer, PeerConnection, both_flavours, failure

from karma import __version__
from karma_client import (
    BatchAdded,
    BatchDeleted,
    BatchReset,
    Client,
    FetchProgress,
    ForbiddenError,
    IdempotencyConflictError,
    IngestProgress,
    InvalidArgumentError,
    KeyTotal,
    KeyValue,
    LimitQuery,
    LimitResult,
    LimitStatus,
    NotFoundError,
    ReplicationGapError,
    RequestTooLargeError,
    SeriesInfo,
    SeriesKeyValue,
    Summary,
    Tls,
    UnauthorizedError,
    UnreachableError,
    UnsupportedError,
    ValidationError,
    connect,
    connect_async,
)

DAY = date(2026, 5, 5)
MAY = (date(2026, 5, 1), "2026-05-31")


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> Iterator[Flavour]:
    yield from both_flavours(request.param)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("client") / "data", wal_fsync=False) as running:
        yield running


@pytest.fixture
def client(server: Server, flavour: Flavour) -> Iterator[Any]:
    with flavour.connect(address(server)) as client:
        yield client
        for name in client.list_series():
            client.drop_series(name)


def address(server: Server) -> str:
    return f"127.0.0.1:{server.port}"


# -- Counters, limits, series ----------------------------------------------------------------------------


def test_counters(client: Any) -> None:
    assert client.increment("a", 42, 5, day=DAY) == 5
    assert client.increment("a", 42, day="2026-05-06") == 1
    assert client.decrement("a", 42, 2, day=20260505) == 2
    assert client.sum("a", 42) == 4
    assert client.sum("a", 42, (20260505, 20260505)) == 3
    assert client.sum("a", 43) == 0
    assert client.points("a", 42, MAY) == {DAY: 3, date(2026, 5, 6): 1}
    assert client.points("a", 43, MAY) == {}
    with pytest.raises(NotFoundError):
        client.sum("missing", 1)
    with pytest.raises(ValidationError):
        client.increment("", 1)
    with pytest.raises(InvalidArgumentError):
        client.increment("a", 1, day="yesterday")


def test_numbers_of_64_bits_stay_what_they_are(client: Any) -> None:
    assert client.increment("a", 2**64 - 1, 2**64 - 1) == 2**64 - 1
    assert list(client.keys("a")) == [KeyTotal(2**64 - 1, 2**64 - 1)]
    with pytest.raises(InvalidArgumentError):
        client.increment("a", 2**64)


def test_today_is_a_utc_day(client: Any) -> None:
    client.increment("a", 1, 7)
    today = datetime.now(UTC).date()  # noqa: TID251 - the real day is asked for
    points = client.points("a", 1, (today.replace(day=1), today))
    assert list(points.values()) == [7]


def test_batches(client: Any) -> None:
    assert client.batch_add("a", [(1, DAY, 10), (2, "2026-05-06", 20)]) == BatchAdded(applied=2, total=30)
    assert client.batch_set("a", [(1, DAY, 11), (3, DAY, 30)]) == 2
    assert client.batch_sum("a", [1, 2, 3, 4]) == {1: 11, 2: 20, 3: 30, 4: 0}
    assert client.batch_sum("a", [1, 2], (DAY, DAY)) == {1: 11, 2: 0}
    client.increment("b", 1, 5, day=DAY)
    assert client.multi_sum([("a", 1), ("b", 1)], MAY) == [
        SeriesKeyValue("a", 1, 11),
        SeriesKeyValue("b", 1, 5),
    ]
    assert client.batch_delete_range("a", [1, 9], (DAY, DAY)) == BatchDeleted(deleted=1, missing=1)
    assert client.batch_reset("a", [2, 9]) == BatchReset(reset=1, missing=1)
    assert client.delete_range("a", 3, MAY) is None
    assert client.batch_sum("a", [1, 2, 3]) == {1: 0, 2: 0, 3: 0}
    client.increment("a", 5, 5)
    assert client.reset("a", 5) is None
    assert client.sum("a", 5) == 0


def test_a_key_counts_once(client: Any, flavour: Flavour) -> None:
    for _ in range(3):
        assert client.increment("a", 1, 5, day=DAY, idempotency_key=flavour.name) == 5
        assert client.consume("l", 1, 10, 4, day=DAY, idempotency_key="l" + flavour.name).used == 4
    assert (client.sum("a", 1), client.sum("l", 1)) == (5, 4)
    with pytest.raises(IdempotencyConflictError):
        client.increment("a", 1, 6, day=DAY, idempotency_key=flavour.name)


def test_limits(client: Any) -> None:
    assert client.consume("e", 7, 3, 2, day=DAY) == LimitResult(True, 2, 1, 3)
    assert client.consume("e", 7, 3, 2, day=DAY) == LimitResult(False, 2, 1, 3)
    assert client.consume("e", 7, 3, day=date(2026, 5, 6), window="month").remaining == 0
    assert client.consume("e", 7, 5, day=date(2026, 5, 7), days=MAY).used == 4
    assert client.consume("e", 7, limit=9, window="total").used == 5
    queries = [("e", 7, 6, "total"), LimitQuery("e", 8, 1), ("none", 1, 0)]
    assert client.check_limits(queries) == [
        LimitStatus("e", 7, used=5, remaining=1, allowed=True),
        LimitStatus("e", 8, used=0, remaining=1, allowed=True),
        LimitStatus("none", 1, used=0, remaining=0, allowed=False),
    ]


def test_series(client: Any) -> None:
    assert client.create_series("b") is None
    client.batch_add("a", [(key, DAY, key) for key in (3, 1, 2)])
    client.create_series("a")
    assert client.list_series() == ["b", "a"]
    assert client.series_info("a") == SeriesInfo("a", key_count=3, bucket_count=3, total=6)
    assert client.summary("a") == Summary("a", total=6, active_keys=3, bucket_count=3)
    assert client.summary("a", MAY) == Summary("a", 6, 3, 3, date(2026, 5, 1), date(2026, 5, 31))
    assert client.top("a", limit=2) == [KeyValue(3, 3), KeyValue(2, 2)]
    assert client.top("a", days=("2026-06-01", "2026-06-30")) == []
    assert client.series_points("a", MAY) == {key: {DAY: key} for key in (1, 2, 3)}
    page = client.keys_page("a", limit=2)
    assert (page.keys, page.next_cursor) == ([KeyTotal(1, 1), KeyTotal(2, 2)], 2)
    assert client.keys_page("a", cursor=page.next_cursor).next_cursor is None
    assert [entry.key for entry in client.keys("a", page_size=1)] == [1, 2, 3]
    assert list(client.keys("b")) == []
    client.delete_series_range("a", (DAY, DAY))
    client.compact_series("a")
    assert client.series_info("a").key_count == 0
    client.increment("a", 1, day="2025-01-01")
    client.delete_before("a", DAY)
    assert client.summary("a").total == 0
    client.increment("a", 1)
    client.reset_series("a")
    client.compact_all()
    assert client.series_info("a").key_count == 0
    client.drop_series("a")
    with pytest.raises(NotFoundError):
        client.series_info("a")


def test_leaving_an_iteration_early_leaves_the_client_usable(client: Any) -> None:
    client.batch_add("a", [(key, DAY, 1) for key in range(100)])
    for entry in client.keys("a", page_size=10):
        if entry.key == 15:
            break
    assert client.ping() == "pong"


# -- The server ------------------------------------------------------------------------------------------


def test_what_a_server_says_of_itself(client: Any) -> None:
    assert client.ping() == "pong"
    assert (client.health().status, client.health().role) == ("ok", "master")
    stats = client.stats()
    assert (stats.version, stats.read_timeout_seconds) == (__version__, 5.0)
    assert stats.raw["command_count"] > 0
    assert client._core.idle_seconds == 2.5
    assert "karma_" in client.metrics()
    assert client.latency()["system.ping"].total.count > 0
    (connection,) = client.clients()
    assert connection.last_op == "system.clients"
    assert client.call("system.ping") == "pong"


def test_checkpoints_and_reports(client: Any) -> None:
    client.recovery_checkpoint("export", offset="row-7", event_id=12)
    (checkpoint,) = client.recovery_status("export")
    assert (checkpoint.offset, checkpoint.event_id) == ("row-7", "12")
    assert checkpoint in client.recovery_status()
    assert client.report_reconciliation(100, 2, absolute_drift=15) is None
    assert isinstance(client.prune_idempotency("2001-01-01T00:00:00Z"), int)


def test_snapshots_come_whole(client: Any, server: Server) -> None:
    client.batch_add("big", [(key, DAY, 2**40 + key) for key in range(100)])
    assert client.create_snapshot("big") == 'Tree "big" saved'
    client.create_snapshots()
    (snapshot,) = client.snapshot_info().snapshots
    assert (snapshot.series, snapshot.last_lsn) == ("big", client.snapshot_info().last_snapshot_lsn)
    assert client.list_snapshots()[0].endswith(snapshot.file)
    assert client.verify_snapshots().status == "ok"
    file = io.BytesIO()
    steps: list[FetchProgress] = []
    fetched = client.fetch_snapshot(snapshot.file, file, progress=steps.append)
    assert fetched == snapshot
    assert file.getvalue() == (server.directory / snapshot.file).read_bytes()
    assert steps[-1].done_bytes == steps[-1].total_bytes == snapshot.size_bytes
    assert client.snapshot_chunk(snapshot.file, offset=10, limit_bytes=5).data == file.getvalue()[10:15]
    assert client.idempotency_chunk().done
    client.increment("big", 1)
    assert client.load_snapshot(snapshot.file) == 'Tree "big" loaded'
    assert client.sum("big", 1) == 2**40 + 1
    with pytest.raises(NotFoundError):
        client.fetch_snapshot("1_none.tree", file)


def test_snapshots_fit_small_responses(flavour: Flavour, tmp_path: Path) -> None:
    options: dict[str, Any] = {"wal_fsync": False, "max_response_bytes": 20_000, "max_request_bytes": 100_000}
    with Server(tmp_path / "data", **options) as server, flavour.connect(address(server)) as client:
        client.batch_add("big", [(key, DAY, 1) for key in range(2000)])
        client.create_snapshots()
        (snapshot,) = client.snapshot_info().snapshots
        file = io.BytesIO()
        steps: list[FetchProgress] = []
        client.fetch_snapshot(snapshot.file, file, progress=steps.append)
        assert file.getvalue() == (server.directory / snapshot.file).read_bytes()
        assert len(steps) > 5


def test_the_log(client: Any) -> None:
    start = client.replication_status().wal_current_lsn
    for key in range(25):
        client.increment("a", key, day=DAY)
    entries = list(client.entries(start, page_size=10))
    assert [entry.lsn for entry in entries] == list(range(start + 1, start + 26))
    assert entries[7].op == "counter.increment"
    assert entries[7].entry["key"] == 7
    assert client.entries_page(start, limit=3).next_lsn == start + 3
    client.create_snapshots()
    lsn = client.snapshot_info().last_snapshot_lsn
    client.increment("a", 1)
    assert [entry.lsn for entry in client.entries(lsn)] == [lsn + 1]


def test_following_the_log_sees_what_is_written_later(client: Any, server: Server) -> None:
    tail = client.entries(client.replication_status().wal_current_lsn, follow=True)
    timer = threading.Timer(0.1, lambda: server.ask("counter.increment", series="a", key=99, bucket=20260505))
    timer.start()
    assert next(tail).entry["key"] == 99
    timer.join()


def test_entries_that_are_gone(flavour: Flavour, tmp_path: Path) -> None:
    with Server(tmp_path / "data", wal_fsync=False) as server, flavour.connect(address(server)) as client:
        client.increment("a", 1)
        client.create_snapshots()
        with pytest.raises(ReplicationGapError, match="bootstrap from a snapshot"):
            list(client.entries())


ROLES: list[tuple[str, tuple[Any, ...], str]] = [
    ("promote", (), "replication.promote"),
    ("follow", ("127.0.0.1", 1), "replication.follow"),
    ("pause", (1000,), "replication.pause"),
    ("resume", (), "replication.resume"),
    ("fence", (2, "test"), "replication.fence"),
    ("unfence", (2,), "replication.unfence"),
    ("maintenance", ("new disks", 1000), "replication.maintenance"),
    ("wait_for_replicas", (1,), "replication.wait"),
    ("checksum", (), "replication.checksum"),
]


@pytest.mark.parametrize(("method", "arguments", "op"), ROLES, ids=[op for _, _, op in ROLES])
def test_operations_that_karma_1_lacks_are_named(
    flavour: Flavour, method: str, arguments: tuple[Any, ...], op: str
) -> None:
    def original(connection: PeerConnection) -> None:
        connection.serve(lambda request: failure("unknown_command", f"Unknown op {request['op']}"))

    with Peer(original) as peer, flavour.connect(peer.address) as client:
        with pytest.raises(UnsupportedError, match=f"{op}: this server does not know the operation"):
            getattr(client, method)(*arguments)
        assert peer.ops == [op]


# -- Imports ---------------------------------------------------------------------------------------------


def items(count: int) -> Iterator[tuple[int, Any, int]]:
    return ((key, DAY if key % 2 else "2026-05-06", key + 1) for key in range(count))


def test_an_import_of_any_length(client: Any, flavour: Flavour) -> None:
    steps: list[IngestProgress] = []
    done = client.ingest(flavour.name + "i-1", "imported", items(5000), progress=steps.append)
    assert (done.status, done.items, done.resumed_items) == ("committed", 5000, 0)
    assert done.chunks > 20
    assert [step.items for step in steps] == sorted(step.items for step in steps)
    assert (steps[-1].items, steps[-1].chunk_seq) == (5000, done.chunks)
    assert client.summary("imported").total == sum(range(1, 5001))
    again = client.ingest(flavour.name + "i-1", "imported", items(5000))
    assert (again.status, again.chunks, again.items) == ("already_committed", done.chunks, 0)
    assert client.summary("imported").total == sum(range(1, 5001))


def test_an_import_goes_on_behind_a_break(client: Any, flavour: Flavour) -> None:
    def broken() -> Iterator[tuple[int, Any, int]]:
        for item in items(5000):
            if item[0] == 4000:
                raise LookupError
            yield item

    with pytest.raises(LookupError):
        client.ingest(flavour.name + "i-2", "imported", broken())
    known = client.ingest_begin(flavour.name + "i-2").last_chunk_seq
    assert known > 10
    steps: list[IngestProgress] = []
    done = client.ingest(flavour.name + "i-2", "imported", items(5000), progress=steps.append)
    assert done.items == 5000
    assert 0 < done.resumed_items < 4000
    assert steps[0].chunk_seq == known
    assert client.summary("imported").total == sum(range(1, 5001))


def test_an_import_of_other_items_is_refused(client: Any, flavour: Flavour) -> None:
    client.ingest(flavour.name + "i-3", "imported", items(1000), commit=False)
    others = ((key + 1, day, value) for key, day, value in items(1000))
    with pytest.raises(IdempotencyConflictError, match="holds other items than now"):
        client.ingest(flavour.name + "i-3", "imported", others)
    with pytest.raises(IdempotencyConflictError, match="chunk_bytes"):
        client.ingest(flavour.name + "i-3", "imported", items(1000), chunk_bytes=1000)
    with pytest.raises(InvalidArgumentError, match="these items make only"):
        client.ingest(flavour.name + "i-3", "imported", items(100))
    assert client.ingest_abort(flavour.name + "i-3").status == "aborted"


def test_a_replacement_shows_when_it_is_committed(client: Any, flavour: Flavour) -> None:
    client.increment("imported", 9, 1000, day=DAY)
    client.ingest(flavour.name + "i-4", "imported", items(3), mode="replace_series", commit=False)
    assert client.summary("imported").total == 1000
    assert client.ingest_commit(flavour.name + "i-4").status == "committed"
    assert client.summary("imported").total == 6


def test_an_import_by_hand(client: Any, flavour: Flavour) -> None:
    assert client.ingest_begin(flavour.name + "i-5", "set").status == "active"
    chunk = client.ingest_chunk(flavour.name + "i-5", "imported", 1, [(1, DAY, 5)])
    assert (chunk.skipped, chunk.applied) == (False, 1)
    assert client.ingest_chunk(flavour.name + "i-5", "imported", 1, [(1, DAY, 5)]).skipped
    assert client.ingest_commit(flavour.name + "i-5").last_chunk_seq == 1


def test_an_import_of_nothing(client: Any, flavour: Flavour) -> None:
    done = client.ingest(flavour.name + "i-6", "imported", [])
    assert (done.chunks, done.items) == (0, 0)


def test_an_import_from_an_asynchronous_source(server: Server) -> None:
    async def rows() -> AsyncIterator[tuple[int, Any, int]]:
        for item in items(1000):
            await asyncio.sleep(0)
            yield item

    async def main() -> None:
        async with connect_async(address(server)) as client:
            assert (await client.ingest("i-7", "from-rows", rows())).items == 1000
            await client.drop_series("from-rows")

    asyncio.run(main())


def test_chunks_leave_room_for_the_token(flavour: Flavour, tmp_path: Path) -> None:
    token = "t" * 1500
    with (
        Server(tmp_path / "data", wal_fsync=False, auth_token=token) as server,
        flavour.connect(address(server), token=token) as client,
    ):
        assert client.ingest(flavour.name + "i-8", "imported", items(1000)).items == 1000


# -- Pipelines -------------------------------------------------------------------------------------------


def test_a_pipeline_of_many_windows(client: Any) -> None:
    with client.pipeline() as pipeline:
        added = [pipeline.increment("a", key % 7, key + 1, day=DAY) for key in range(5000)]
        total = pipeline.summary("a")
        assert len(pipeline) == 5001
    assert [pending.result() for pending in added] == list(range(1, 5001))
    assert total.result().total == sum(range(1, 5001))


def test_a_pipeline_goes_on_behind_an_error(client: Any) -> None:
    pipeline = client.pipeline()
    wrong, right = pipeline.sum("missing", 1), pipeline.increment("a", 1)
    too_long = pipeline.batch_add("a", [(key, DAY, 1) for key in range(1000)])
    behind = pipeline.increment("a", 1, 2)
    pipeline.flush()
    assert isinstance(wrong.error, NotFoundError)
    assert isinstance(too_long.error, RequestTooLargeError)
    assert (right.result(), behind.result(), client.sum("a", 1)) == (1, 2, 3)


# -- Transports, tokens, nodes ---------------------------------------------------------------------------


def test_a_unix_socket(flavour: Flavour, tmp_path: Path) -> None:
    with (
        Server(tmp_path / "data", wal_fsync=False, unix_socket=tmp_path / "k.sock"),
        flavour.connect(f"unix:{tmp_path}/k.sock") as client,
    ):
        assert client.increment("a", 1, 5) == 5
        assert client.sum("a", 1) == 5


def test_tls(flavour: Flavour, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued, own = authority.issue_cert("127.0.0.1"), authority.issue_cert("client.example")
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key", "own_cert", "own_key")}
    authority.cert_pem.write_to_path(files["ca"])
    issued.cert_chain_pems[0].write_to_path(files["cert"])
    issued.private_key_pem.write_to_path(files["key"])
    own.cert_chain_pems[0].write_to_path(files["own_cert"])
    own.private_key_pem.write_to_path(files["own_key"])
    ours = Tls(files["ca"], files["own_cert"], files["own_key"])
    options: dict[str, Any] = {"tls_cert": files["cert"], "tls_key": files["key"], "tls_ca": files["ca"]}
    with Server(tmp_path / "data", wal_fsync=False, **options) as server:
        with flavour.connect(address(server), tls=ours) as client:
            with client.pipeline() as pipeline:
                added = [pipeline.increment("a", key, key + 1) for key in range(3000)]
            assert [pending.result() for pending in added] == list(range(1, 3001))
            assert client.sum("a", 1) == 2
            assert len(client.clients()) == 1
        with flavour.connect(address(server), tls=ours.context(), max_attempts=1) as client:
            assert client.ping() == "pong"
        for tls, reason in (
            (True, "certificate verify failed"),
            (
                Tls(files["ca"], files["own_cert"], files["own_key"], server_name="other.example"),
                "doesn't match|mismatch",
            ),
            (Tls(files["ca"]), "lost|required|alert"),
            (False, "lost"),
        ):
            with (
                flavour.connect(address(server), tls=tls, max_attempts=1) as client,
                pytest.raises(UnreachableError, match=reason),
            ):
                client.ping()
    with pytest.raises(InvalidArgumentError, match=r"none\.pem cannot be read"):
        Tls(tmp_path / "none.pem").context()


def test_tokens_decide(flavour: Flavour, tmp_path: Path) -> None:
    read, write = "the-read-s3cret", "the-write-s3cret"
    with Server(tmp_path / "data", wal_fsync=False, auth_token=write, read_auth_token=read) as server:
        with flavour.connect(address(server), token=write) as client:
            assert client.increment("a", 1, 5) == 5
        with flavour.connect(address(server), token=lambda: read) as client:
            assert client.sum("a", 1) == 5
            with pytest.raises(ForbiddenError, match="needs the write token") as raised:
                client.increment("a", 1)
            assert raised.value.reason is None
        for token in (None, "wrong-s3cret"):
            with flavour.connect([address(server), f"localhost:{server.port}"], token=token) as client:
                with pytest.raises(UnauthorizedError) as refused:
                    client.sum("a", 1)
                assert "s3cret" not in str(refused.value)


@pytest.fixture
def slave(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "slave", wal_fsync=False, role="slave") as running:
        yield running


def test_the_master_is_found_among_real_nodes(flavour: Flavour, server: Server, slave: Server) -> None:
    with flavour.connect([address(slave), address(server)]) as client:
        assert client.increment("found", 1, 5) == 5
        assert client.replication_status().role == "master"
        client.drop_series("found")
    with flavour.connect([address(slave), address(server)], target="any") as client:
        assert client.replication_status().role == "slave"


def test_a_run_holds_a_node_through_the_client(flavour: Flavour, server: Server) -> None:
    with flavour.connect(address(server), target="any") as client:
        about = {"cluster_id": client.replication_status().cluster_id, "holder": "ann"}
        taken = client.lease("take", "one", ttl_ms=60_000, **about)
        assert (taken.run, taken.holder, 0 < taken.expires_in_ms <= 60_000) == ("one", "ann", True)
        with pytest.raises(ForbiddenError) as raised:
            client.pause(1_000)
        assert raised.value.reason == "leased"
        client.pause(1_000, run="one", lease=taken.number)
        with pytest.raises(ForbiddenError):
            client.lease("renew", "two", ttl_ms=1, **about)
        assert client.lease("release", "one", **about).run is None
        with pytest.raises(ForbiddenError) as raised:
            client.resume(run="two")
        assert raised.value.reason == "other_run"
        client.resume(run="two", force=True)
        found = client.maintenance("new disks", 60_000)["maintenance"]
        assert found["reason"] == "new disks"
        assert "karma_maintenance 1\n" in client.metrics()
        assert client.maintenance("done", 0) == {"maintenance": None}


def test_a_slave_alone_says_that_it_is_one(flavour: Flavour, slave: Server) -> None:
    with flavour.connect(address(slave), timeout_seconds=0.2) as client:
        with pytest.raises(ForbiddenError, match="slave and takes no writes") as raised:
            client.increment("a", 1)
        assert raised.value.reason == "role"
        assert client.health().role == "slave"


def test_applications_follow_a_failover(flavour: Flavour, tmp_path: Path) -> None:
    """The master goes, the slave comes back as the master: writes go on, without a key too."""
    ports = free_port(), free_port()
    with (
        Server(tmp_path / "one", wal_fsync=False, port=ports[0]) as one,
        Server(tmp_path / "two", wal_fsync=False, port=ports[1], role="slave") as two,
        flavour.connect([address(one), address(two)], timeout_seconds=30.0) as client,
    ):
        assert client.increment("a", 1, 5) == 5
        one.stop()

        def promote() -> None:
            two.stop()
            two.restart(role="master")

        promotion = threading.Timer(0.1, promote)
        promotion.start()
        try:
            assert client.increment("a", 1, 6) == 6
        finally:
            promotion.join()
        assert two.ask("counter.sum", series="a", key=1) == 6
        one.restart(role="slave")
        assert client.increment("a", 1, 7) == 7


# -- Together --------------------------------------------------------------------------------------------


def test_threads_share_a_client(server: Server) -> None:
    def work(shared: Client) -> None:
        for _ in range(200):
            shared.increment("threads", 1)

    with connect(address(server), pool_size=4) as shared:
        threads = [threading.Thread(target=work, args=(shared,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert shared.sum("threads", 1) == 1600
        assert len(shared.clients()) <= 4
        shared.drop_series("threads")


def test_tasks_share_a_client(server: Server) -> None:
    async def main() -> None:
        async with connect_async(address(server), pool_size=4) as shared:
            await asyncio.gather(*(shared.increment("tasks", 1) for _ in range(500)))
            assert await shared.sum("tasks", 1) == 500
            assert len(await shared.clients()) <= 4
            await shared.drop_series("tasks")

    asyncio.run(main())


def test_uvloop_will_do(server: Server) -> None:
    async def main() -> str:
        async with connect_async(address(server)) as client:
            return await client.ping()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == "pong"
