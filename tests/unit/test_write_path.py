"""The write path on a disk that refuses: nothing shown that a crash could take back, nothing half done."""

from __future__ import annotations

import asyncio
import errno
import json
import pkgutil
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from harness import request

from karma.core import buckets
from karma.core.entries import Received, Recent
from karma.core.replay import Replay
from karma.core.store import Store
from karma.engine import Engine
from karma.errors import ErrorCode, RequestError, StorageFailedError
from karma.service.log import Log
from karma.service.write_path import INLINE_SYNC_CLIENTS, WritePath
from karma.storage.disk import AppendFile, Disk
from karma.storage.wal import Wal

DAY = 20260505
U64_MAX = 2**64 - 1


class FaultyFile(AppendFile):
    """A file on a disk whose faults are switched on and off."""

    disk: FaultyDisk

    def write(self, data: bytes) -> None:
        if self.disk.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.disk.is_stuck:
            raise StorageFailedError("cannot cut the log back")
        self.disk.writes.append(data.count(b"\n"))
        super().write(data)

    def sync(self) -> None:
        self.disk.sync_threads.append(threading.current_thread())
        self.disk.may_sync.wait(10)
        if self.disk.sync_fails:
            raise StorageFailedError("fsync failed")
        super().sync()


class FaultyDisk(Disk):
    """The disk of a test; `writes` holds how many entries each write of the log had."""

    def __init__(self) -> None:
        self.is_full = self.is_stuck = self.sync_fails = False
        self.may_sync = threading.Event()
        self.may_sync.set()
        self.writes: list[int] = []
        self.sync_threads: list[threading.Thread] = []

    def append_to(self, path: Path) -> AppendFile:
        super().append_to(path).close()
        file = FaultyFile(path)
        file.disk = self
        return file


@dataclass(eq=False)
class FakeClient:
    address = "127.0.0.1:1"

    replies: list[bytes] = field(default_factory=list)
    backlog: list[bytes] = field(default_factory=list)
    is_blocked: bool = False
    sent: list[dict[str, Any]] = field(default_factory=list)

    def send(self, data: bytes) -> None:
        self.sent += [json.loads(line) for line in data.split(b"\r\n")[:-1]]

    def resume(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def take(self) -> list[Any]:
        """Return what came since the last time: a response, or an error's code."""
        taken, self.sent = self.sent, []
        return [reply["response"] if reply["success"] else reply["error_code"] for reply in taken]


@dataclass
class Bench:
    """A write path with its engine, log and disk."""

    disk: FaultyDisk
    path: WritePath
    wal: Wal
    deaths: list[StorageFailedError]
    lines: list[str]

    @property
    def store(self) -> Store:
        return self.path.engine.store

    async def ask(self, client: FakeClient, *lines: bytes) -> list[Any]:
        self.path.submit(client, [line.rstrip() for line in lines])
        await self.path.drain()
        return client.take()

    def logged(self) -> list[tuple[int, str]]:
        return [(line.lsn, json.loads(line.json)["op"]) for line in self.wal.read(0)]


def run(tmp_path: Path, test: Callable[[Bench], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def main() -> None:
        disk, deaths, lines = FaultyDisk(), list[StorageFailedError](), list[str]()
        wal = Wal(disk, tmp_path, next_lsn=1)
        path = WritePath(
            engine=Engine(Store()),
            wal=wal,
            log=Log(lines.append, lambda: 0.0),
            clock_ms=lambda: 1_777_939_200_000,
            loop=asyncio.get_running_loop(),
            die=deaths.append,
            **options,
        )
        try:
            await test(Bench(disk, path, wal, deaths, lines))
        finally:
            wal.close()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something holds; the time-out of tests bounds it."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0)


def increment(key: int, value: int = 1, **more: Any) -> bytes:
    return request("counter.increment", series="a", key=key, bucket=DAY, value=value, **more)


def total(key: int, series: str = "a") -> bytes:
    return request("counter.sum", series=series, key=key)


def state(store: Store) -> object:
    """Return everything a store holds as plain values."""
    counters = {
        name: {key: dict(buckets.items(counter)) for key, counter in series.counters.items()}
        for name, series in store.series.items()
    }
    streams = [
        (
            stream.stream_id,
            stream.last_chunk_seq,
            stream.committed_at_unix,
            stream.staged and dict(stream.staged),
        )
        for known in (store.streams.active, store.streams.committed)
        for stream in known.values()
    ]
    return list(counters), counters, streams, list(store.records.items())


# -- A full disk -----------------------------------------------------------------------------------------


WRITES: dict[str, bytes] = {
    "increment": increment(1, 5),
    "increment of a new key": increment(77),
    "increment of a new series": request("counter.increment", series="new", key=1),
    "increment with a key": increment(1, 5, idempotency_key="new"),
    "decrement": request("counter.decrement", series="a", key=1, bucket=DAY, value=3),
    "batch_add": request("series.batch_add", series="a", items=[[1, DAY, 2], [2, DAY, 2], [9, DAY, 2]]),
    "batch_set": request(
        "series.batch_set", series="a", items=[[1, DAY, 0], [2, DAY, 9]], idempotency_key="set"
    ),
    "reset": request("counter.reset", series="a", key=1),
    "batch_reset": request("counter.batch_reset", series="a", keys=[1, 2]),
    "tree.reset": request("tree.reset", series="a", idempotency_key="reset"),
    "delete_range": request("counter.delete_range", series="a", key=1, range={"from": DAY, "to": DAY}),
    "tree.delete_range": request("tree.delete_range", series="a", range={"from": DAY, "to": DAY}),
    "delete_before": request("series.delete_before", series="a", before=DAY + 1),
    "compact": request("series.compact", series="a"),
    "compact all": request("system.compact"),
    "create": request("tree.create", series="new"),
    "drop": request("tree.drop", series="a"),
    "begin": request("ingest.begin", stream_id="new", mode="replace_series"),
    "chunk": request("ingest.chunk", stream_id="open", series="a", chunk_seq=2, items=[[1, DAY, 4]]),
    "commit": request("ingest.commit", stream_id="open"),
    "abort": request("ingest.abort", stream_id="open"),
    "prune": request("idempotency.prune", before=2**40),
    "consume": request("limit.consume", series="a", key=1, bucket=DAY, limit=100, idempotency_key="consume"),
}

PREPARATION = [
    increment(1, 10, idempotency_key="old"),
    increment(2, 20),
    increment(3),
    request("counter.reset", series="a", key=3),
    request("counter.increment", series="b", key=1, bucket=DAY, value=7),
    request("ingest.begin", stream_id="open", mode="replace_series"),
    request("ingest.chunk", stream_id="open", series="a", chunk_seq=1, items=[[5, DAY, 5]]),
]


@pytest.mark.parametrize("name", WRITES)
def test_a_refused_write_changes_nothing_and_is_answered_storage_error(tmp_path: Path, name: str) -> None:
    async def test(bench: Bench) -> None:
        client = FakeClient()
        await bench.ask(client, *PREPARATION)
        before, log = state(bench.store), bench.logged()
        bench.disk.is_full = True
        assert await bench.ask(client, WRITES[name]) == ["storage_error"]
        assert (state(bench.store), bench.logged()) == (before, log)
        assert bench.store.undo == []
        bench.disk.is_full = False
        answers = await bench.ask(client, WRITES[name])
        assert answers != ["storage_error"]
        assert state(bench.store) != before or name == "compact all"
        assert [lsn for lsn, _ in bench.logged()] == list(range(1, len(log) + 2))
        assert bench.deaths == []

    run(tmp_path, test)


def test_all_writes_of_a_refused_pass_are_taken_back_together(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        clients = [FakeClient() for _ in range(3)]
        await bench.ask(clients[0], *PREPARATION)
        before, log = state(bench.store), bench.logged()
        bench.disk.is_full = True
        for client in clients:
            bench.path.submit(client, [line.rstrip() for line in WRITES.values()])
        await bench.path.drain()
        for client in clients:
            assert client.take() == ["storage_error"] * len(WRITES)
        assert (state(bench.store), bench.logged()) == (before, log)

    run(tmp_path, test)


def test_reads_of_a_refused_pass_are_answered_from_what_is_left(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        writer, reader = FakeClient(), FakeClient()
        await bench.ask(writer, increment(1, 10))
        bench.disk.is_full = True
        lines = [
            total(1),
            increment(1, 5),
            total(1),
            request("tree.info", series="a"),
            increment(2),
            total(2),
        ]
        bench.path.submit(writer, [line.rstrip() for line in lines])
        bench.path.submit(reader, [total(1).rstrip(), request("system.ping").rstrip(), total(2).rstrip()])
        await bench.path.drain()
        answers = writer.take()
        assert answers[3]["total"] == 10
        del answers[3]
        assert answers == [10, "storage_error", 10, "storage_error", 0]
        assert reader.take() == [10, "pong", 0]

    run(tmp_path, test)


def test_a_validation_error_stays_one_on_a_full_disk(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        client = FakeClient()
        bench.disk.is_full = True
        answers = await bench.ask(
            client, request("counter.increment", series="a"), increment(1), b"{\n", total(1)
        )
        assert answers == ["validation_error", "storage_error", "invalid_json", "not_found"]

    run(tmp_path, test)


def test_the_refusal_of_a_line_behind_refused_writes_is_still_answered(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        client = FakeClient()
        bench.disk.is_full = True
        bench.path.submit(client, [increment(1).rstrip(), request("system.ping").rstrip()])
        bench.path.submit_error(client, RequestError(ErrorCode.REQUEST_TOO_LARGE, "too long"))
        await bench.path.drain()
        assert client.take() == ["storage_error", "pong", "request_too_large"]

    run(tmp_path, test)


def test_a_client_that_only_read_keeps_its_refusal_when_another_s_write_is_refused(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        writer, other = FakeClient(), FakeClient()
        bench.disk.is_full = True
        bench.path.submit(other, [request("system.ping").rstrip()])
        bench.path.submit_error(other, RequestError(ErrorCode.REQUEST_TOO_LARGE, "too long"))
        bench.path.submit(writer, [increment(1).rstrip()])
        await bench.path.drain()
        assert other.take() == ["pong", "request_too_large"]
        assert writer.take() == ["storage_error"]

    run(tmp_path, test)


def test_an_operation_behind_refused_writes_is_carried_out_once(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        calls = []

        async def slow() -> str:
            calls.append(1)
            await asyncio.sleep(0)
            return "OK"

        bench.path.effects = {"snapshot.create_all": slow, "system.health": lambda: {"status": "ok"}}
        bench.disk.is_full = True
        client = FakeClient()
        lines = [
            increment(1),
            request("snapshot.create_all"),
            increment(2),
            request("system.health"),
            request("system.ping"),
        ]
        assert await bench.ask(client, *lines) == [
            "storage_error",
            "OK",
            "storage_error",
            {"status": "ok"},
            "pong",
        ]
        assert calls == [1]

    run(tmp_path, test)


def test_trouble_is_shown_until_a_write_succeeds_and_logged_once(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        client = FakeClient()
        bench.disk.is_full = True
        for _ in range(3):
            await bench.ask(client, increment(1))
        assert bench.path.storage_trouble == "No space left on device"
        assert bench.path.engine.counters.storage_errors == 3
        bench.disk.is_full = False
        assert await bench.ask(client, increment(1)) == [1]
        assert [json.loads(line)["event"] for line in bench.lines] == ["storage_error", "storage_recovered"]
        trouble: str | None = bench.path.storage_trouble
        assert trouble is None

    run(tmp_path, test)


def test_only_the_unwritten_part_of_a_pass_is_taken_back(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        client = FakeClient()
        written = bench.wal.append

        def append(bodies: list[bytes], ts_ms: int) -> None:
            written(bodies, ts_ms)
            bench.disk.is_full = True

        bench.wal.append = append  # type: ignore[method-assign]
        # The reset ends a part of the pass, which is written before what follows.
        lines = [increment(1, 4), request("tree.reset", series="a"), increment(1, 7), total(1)]
        assert await bench.ask(client, *lines) == [4, "OK", "storage_error", 0]
        assert bench.logged() == [(1, "counter.increment"), (2, "tree.reset")]

    run(tmp_path, test)


def test_the_server_s_own_changes_are_taken_back_too(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.disk.is_full = True
        with pytest.raises(RequestError) as refused:
            bench.path.apply({"op": "tree.create", "series": "a"})
        assert refused.value.code == "storage_error"
        assert bench.store.series == {}
        bench.disk.is_full = False
        assert bench.path.apply({"op": "tree.create", "series": "a"}) == "OK"
        assert bench.logged() == [(1, "tree.create")]
        await bench.path.drain()

    run(tmp_path, test)


# -- No memory -------------------------------------------------------------------------------------------


def exhaust(monkeypatch: pytest.MonkeyPatch, place: str, after: int) -> None:
    """Let memory run out once, at the so many-th call of a function."""
    whole: Callable[..., Any] = pkgutil.resolve_name(place)
    calls = iter(range(100_000))

    def call(*arguments: Any) -> Any:
        if next(calls) == after:
            raise MemoryError
        return whole(*arguments)

    monkeypatch.setattr(place.replace(":", "."), call)


LOG_LINES = "karma.storage.wal:encode_lines"
PLACES = [LOG_LINES, "karma.engine.dispatch:dumps", "karma.protocol.replies:success"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", WRITES)
def test_a_write_without_memory_is_overloaded_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    async def test(bench: Bench) -> None:
        client = FakeClient()
        await bench.ask(client, *PREPARATION)
        before, log = state(bench.store), bench.logged()
        with monkeypatch.context() as patching:
            exhaust(patching, place, 0)
            answers = await bench.ask(client, WRITES[name])
        if answers != ["overloaded"] and place != LOG_LINES:
            return  # Answered without a call of this.
        assert (state(bench.store), bench.logged()) == (before, log)
        assert bench.store.undo == []
        assert bench.path.engine.counters.out_of_memory == 1
        assert not any("internal_error" in line for line in bench.lines), "this is no bug"
        assert await bench.ask(client, WRITES[name]) != ["overloaded"]
        assert [lsn for lsn, _ in bench.logged()] == list(range(1, len(log) + 2))

    run(tmp_path, test)


def test_what_came_with_a_write_without_memory_is_not_lost_halfway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(bench: Bench) -> None:
        client, other = FakeClient(), FakeClient()
        await bench.ask(client, increment(1))
        exhaust(monkeypatch, "karma.engine.dispatch:dumps", 1)
        batch = request("series.batch_add", series="a", items=[[1, DAY, 2], [2, DAY, 2]])
        bench.path.submit(other, [line.rstrip() for line in (increment(1, 5), total(1))])
        answers = await bench.ask(client, batch, batch, total(1))
        assert answers == ["overloaded", "overloaded", 1]
        assert other.take() == ["overloaded", 1], "of one group all or none"
        assert await bench.ask(client, batch, total(1)) == [{"applied": 2, "total": 4}, 3]
        assert [lsn for lsn, _ in bench.logged()] == [1, 2]

    run(tmp_path, test)


def test_a_source_s_entries_without_memory_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(bench: Bench) -> None:
        found = received(1, added(1), added(2), added(3))
        with monkeypatch.context() as patching:
            exhaust(patching, "karma.core.replay:_check", 1)
            with pytest.raises(RequestError) as refusal:
                replicate(bench, found)
        assert refusal.value.code == ErrorCode.OVERLOADED
        assert bench.logged() == [(1, "counter.increment")]
        assert await bench.ask(FakeClient(), total(1), total(2)) == [1, 0]
        replicate(bench, received(2, added(2), added(3)))
        assert [lsn for lsn, _ in bench.logged()] == [1, 2, 3]

    run(tmp_path, test)


def test_the_server_s_own_changes_without_memory_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(bench: Bench) -> None:
        with monkeypatch.context() as patching:
            exhaust(patching, "karma.storage.wal:encode_lines", 0)
            with pytest.raises(RequestError) as refused:
                bench.path.apply({"op": "tree.create", "series": "a"})
        assert refused.value.code == "overloaded"
        assert bench.store.series == {}
        await bench.path.drain()

    run(tmp_path, test)


# -- Syncing ---------------------------------------------------------------------------------------------


def test_no_reply_leaves_before_the_log_is_durable_reads_included(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.disk.may_sync.clear()
        clients = [FakeClient() for _ in range(INLINE_SYNC_CLIENTS + 2)]
        for client in clients:
            bench.path.submit(client, [increment(1).rstrip(), total(1).rstrip()])
        late = FakeClient()
        for _ in range(5):
            await asyncio.sleep(0)
        bench.path.submit(late, [total(1).rstrip(), request("system.ping").rstrip()])
        for _ in range(5):
            await asyncio.sleep(0)
        assert not any(client.sent for client in [*clients, late])
        assert bench.path.is_waiting(late)
        bench.disk.may_sync.set()
        await bench.path.drain()
        assert [client.take() for client in clients] == [[1, number] for number in range(1, len(clients) + 1)]
        assert late.take() == [len(clients), "pong"]
        assert threading.main_thread() not in bench.disk.sync_threads
        assert bench.wal.durable_lsn == len(clients)

    run(tmp_path, test)


def test_what_is_written_during_a_sync_waits_for_the_next(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        gates = [threading.Event(), threading.Event()]
        waiting = iter(gates)
        really_sync = bench.wal.sync

        def sync() -> None:
            assert next(waiting).wait(10)
            really_sync()

        bench.wal.sync = sync  # type: ignore[method-assign]
        clients = [FakeClient() for _ in range(INLINE_SYNC_CLIENTS + 1)]
        for client in clients:
            bench.path.submit(client, [increment(1).rstrip()])
        await asyncio.sleep(0)
        # Many again, so that the second sync is in a thread, too.
        late = [FakeClient() for _ in clients]
        for client in late:
            bench.path.submit(client, [increment(1).rstrip()])
        for _ in range(3):
            await asyncio.sleep(0)
        gates[0].set()
        await until(lambda: bool(clients[-1].sent))
        assert not any(client.sent for client in late)
        assert bench.wal.durable_lsn == len(clients)
        gates[1].set()
        await bench.path.drain()
        assert [client.take() for client in late] == [[1]] * len(late)

    run(tmp_path, test)


def test_a_few_clients_are_synced_on_the_loop_unless_a_child_writes(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        client = FakeClient()
        await bench.ask(client, increment(1))
        assert bench.disk.sync_threads == [threading.main_thread()]
        bench.path.has_child = True
        await bench.ask(client, increment(1))
        assert bench.disk.sync_threads[1] is not threading.main_thread()

    run(tmp_path, test)


@pytest.mark.parametrize("clients", [1, INLINE_SYNC_CLIENTS + 2])
def test_a_failed_sync_ends_the_process_and_no_reply_leaves(tmp_path: Path, clients: int) -> None:
    async def test(bench: Bench) -> None:
        bench.disk.sync_fails = True
        waiting = [FakeClient() for _ in range(clients)]
        for client in waiting:
            bench.path.submit(client, [increment(1).rstrip()])
        await until(lambda: bool(bench.deaths))
        assert not any(client.sent for client in waiting)

    run(tmp_path, test)


def test_a_log_that_cannot_be_cut_back_ends_the_process(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        # Ours goes on after `die`; the real one ends the process there.
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        client = FakeClient()
        bench.disk.is_stuck = True
        bench.path.submit(client, [increment(1).rstrip()])
        await until(lambda: bool(bench.deaths))
        assert client.sent == []

    run(tmp_path, test)


@pytest.mark.parametrize("is_awaited", [False, True])
def test_an_operation_that_loses_its_durability_ends_the_process(tmp_path: Path, is_awaited: bool) -> None:
    async def test(bench: Bench) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)

        def fail() -> None:
            raise StorageFailedError("fsync of the folder failed")

        async def fail_later() -> None:
            fail()

        bench.path.effects["system.health"] = fail_later if is_awaited else fail
        client = FakeClient()
        try:
            bench.path.submit(client, [request("system.health").rstrip()])
        except StorageFailedError:
            assert not is_awaited
        await until(lambda: bool(bench.deaths))
        assert client.sent == []

    run(tmp_path, test)


def test_without_fsync_nothing_is_synced_and_replies_leave_at_once(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        assert await bench.ask(FakeClient(), increment(1), total(1)) == [1, 1]
        assert bench.disk.sync_threads == []
        assert bench.path.settle() == 1

    run(tmp_path, test, is_synced=False)


def test_settling_makes_everything_executed_durable(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.path.submit(FakeClient(), [increment(1).rstrip(), increment(2).rstrip()])
        assert bench.path.settle() == 2
        assert bench.wal.durable_lsn == 2
        await bench.path.drain()

    run(tmp_path, test)


# -- Groups ------------------------------------------------------------------------------------------------


def test_a_pass_is_one_write_and_one_sync(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        for client in (first := FakeClient(), second := FakeClient()):
            bench.path.submit(client, [increment(1).rstrip()] * 10)
        await bench.path.drain()
        assert bench.disk.writes == [20]
        assert len(bench.disk.sync_threads) == 1
        assert len(first.take()) == len(second.take()) == 10

    run(tmp_path, test)


def test_a_group_has_at_most_wal_batch_size_entries(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        for client in (first := FakeClient(), second := FakeClient()):
            bench.path.submit(client, [increment(1).rstrip()] * 5)
        await bench.path.drain()
        assert sum(bench.disk.writes) == 10
        assert max(bench.disk.writes) <= 3
        assert (first.take(), second.take()) == ([1] * 5, [1] * 5)

    run(tmp_path, test, max_group_entries=3)


def test_a_group_may_wait_for_more(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        first, second = FakeClient(), FakeClient()
        bench.path.submit(first, [increment(1).rstrip()])
        for _ in range(5):
            await asyncio.sleep(0)
        assert first.sent == []
        bench.path.submit(second, [increment(1).rstrip()])
        await bench.path.drain()
        assert bench.disk.writes == [2]
        assert first.take() == second.take() == [1]

    run(tmp_path, test, group_wait_us=50_000)


def test_reads_alone_write_and_sync_nothing(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        assert await bench.ask(FakeClient(), request("system.ping"), request("tree.list")) == ["pong", []]
        assert (bench.disk.writes, bench.disk.sync_threads) == ([], [])

    run(tmp_path, test)


def test_without_a_log_writes_are_made_in_memory(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.path.wal = None
        assert await bench.ask(
            FakeClient(), increment(1, 5), request("tree.reset", series="a"), total(1)
        ) == [5, "OK", 0]
        assert bench.store.undo == []
        assert bench.path.settle() == 0

    run(tmp_path, test)


# -- Entries of a source -----------------------------------------------------------------------------------


def received(first_lsn: int, *entries: dict[str, Any]) -> Received:
    bodies = [json.dumps(entry).encode() for entry in entries]
    return Received(first_lsn, entries, bodies, [1_777_939_200_000] * len(entries))


def added(key: int, **more: Any) -> dict[str, Any]:
    return {"v": 2, "op": "counter.increment", "series": "a", "key": key, "bucket": DAY, "value": 1, **more}


def replicate(bench: Bench, found: Received) -> None:
    bench.path.replicate(found, Replay(bench.store).apply)


def test_a_source_s_entries_are_written_applied_and_made_durable(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        replicate(bench, received(1, added(1), added(1), added(2)))
        assert (bench.wal.last_lsn, bench.wal.durable_lsn, bench.disk.writes) == (3, 0, [3])
        await bench.path.sync_received()
        assert bench.wal.durable_lsn == 3
        await bench.path.sync_received()
        assert len(bench.disk.sync_threads) == 1
        assert await bench.ask(FakeClient(), total(1), total(2)) == [2, 1]
        assert (bench.store.undo, bench.lines) == ([], [])

    run(tmp_path, test)


def test_a_read_of_what_was_received_waits_until_it_is_durable(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.path.has_child = True
        bench.disk.may_sync.clear()
        replicate(bench, received(1, added(1)))
        client = FakeClient()
        bench.path.submit(client, [total(1).rstrip()])
        syncing = asyncio.ensure_future(bench.path.sync_received())
        await until(lambda: bool(bench.disk.sync_threads))
        assert (client.take(), syncing.done()) == ([], False)
        bench.disk.may_sync.set()
        await syncing
        await bench.path.drain()
        assert client.take() == [1]

    run(tmp_path, test)


def test_a_full_disk_takes_none_of_a_source_s_entries(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.disk.is_full = True
        with pytest.raises(RequestError) as refusal:
            replicate(bench, received(1, added(1)))
        assert refusal.value.code == ErrorCode.STORAGE_ERROR
        assert (bench.wal.last_lsn, bench.store.series) == (0, {})
        assert bench.path.engine.counters.storage_errors == 1
        assert bench.path.storage_trouble is not None
        bench.disk.is_full = False
        replicate(bench, received(1, added(1)))
        assert bench.wal.last_lsn == 1
        assert not bench.path.storage_trouble
        assert "storage_recovered" in bench.lines[-1]

    run(tmp_path, test)


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param({"op": "counter.multiply", "series": "a"}, id="an operation of a newer version"),
        pytest.param({"op": "counter.increment", "series": "a"}, id="fields are missing"),
        pytest.param({"op": "counter.increment", "series": 7, "key": "x"}, id="fields of other types"),
        pytest.param({"op": "ingest.begin", "stream_id": []}, id="a list for a stream"),
    ],
)
def test_an_entry_that_is_none_ends_what_is_taken_in_before_it(tmp_path: Path, odd: dict[str, Any]) -> None:
    async def test(bench: Bench) -> None:
        bench.wal.recent = Recent()
        replicate(bench, received(1, added(1)))
        with pytest.raises(RequestError) as refusal:
            replicate(bench, received(2, added(1), added(2), odd, added(3)))
        assert (refusal.value.code, "entry 4" in refusal.value.message) == (ErrorCode.REPLICATION_ERROR, True)
        assert bench.logged() == [(lsn, "counter.increment") for lsn in (1, 2, 3)]
        assert await bench.ask(FakeClient(), total(1), total(2), total(3)) == [2, 1, 0]
        replicate(bench, received(4, added(3)))
        assert [lsn for lsn, _ in bench.logged()] == [1, 2, 3, 4]
        bench.wal.close()
        again = Wal(Disk(), tmp_path, next_lsn=5)
        assert [body.lsn for body in again.read(0)] == [1, 2, 3, 4]
        again.close()
        bench.wal = bench.path.wal = Wal(bench.disk, tmp_path, next_lsn=5)

    run(tmp_path, test)


def test_an_entry_that_failed_where_it_was_written_fails_here_and_stays_in_the_log(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        failed = {"v": 2, "op": "counter.batch_reset", "series": "none", "keys": [1]}
        replicate(bench, received(1, failed, added(1)))
        assert bench.wal.last_lsn == 2
        assert "entry_skipped" in bench.lines[0]
        assert await bench.ask(FakeClient(), total(1)) == [1]

    run(tmp_path, test)


def test_a_disk_that_cannot_even_cut_back_ends_the_process(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.disk.is_stuck = True
        with pytest.raises(StorageFailedError):
            replicate(bench, received(1, added(1)))
        assert len(bench.deaths) == 1

    run(tmp_path, test)


# -- Replies that wait for replicas --------------------------------------------------------------------------


class HandGate:
    """A gate moved by hand."""

    def __init__(self) -> None:
        self.lsn = 0
        self.closings = 0

    def allows(self, lsn: int) -> bool:
        return lsn <= self.lsn

    def closed(self) -> None:
        self.closings += 1


def test_replies_wait_at_the_gate_and_leave_in_order(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        gate = bench.path.gate = HandGate()
        clients = [FakeClient() for _ in range(3)]
        for client in clients:
            bench.path.submit(client, [increment(1).rstrip()])
            await asyncio.sleep(0)
        await until(lambda: bench.wal.durable_lsn == 3)
        assert [client.take() for client in clients] == [[], [], []]
        assert gate.closings == 3
        oldest = bench.path.oldest_waiting()
        assert oldest is not None
        assert oldest[1] == 1
        gate.lsn = 2
        bench.path.release_ready()
        assert [client.take() for client in clients] == [[1], [1], []]
        reader = FakeClient()
        bench.path.submit(reader, [total(1).rstrip()])
        await asyncio.sleep(0)
        assert reader.take() == [], "a read shows what its LSN may not yet"
        gate.lsn = 3
        bench.path.release_ready()
        assert (clients[2].take(), reader.take()) == ([1], [3])
        assert bench.path.oldest_waiting() is None

    run(tmp_path, test)


def test_a_page_for_a_follower_passes_the_gate_that_it_opens(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        async def page(client: FakeClient, **_arguments: Any) -> dict[str, int]:
            await asyncio.sleep(0)
            return {"count": 1}

        gate = bench.path.gate = HandGate()
        bench.path.effects_of_client = {"replication.entries": page}
        writer, follower = FakeClient(), FakeClient()
        bench.path.submit(writer, [increment(1).rstrip()])
        bench.path.submit(follower, [request("replication.entries", after_lsn=0).rstrip()])
        await until(lambda: bool(follower.sent))
        assert (follower.take(), writer.take()) == ([{"count": 1}], [])
        # Behind a reply of its own that waits, it waits as well: replies keep their order.
        bench.path.submit(follower, [total(1).rstrip(), request("replication.entries", after_lsn=0).rstrip()])
        for _ in range(10):
            await asyncio.sleep(0)
        assert follower.take() == []
        gate.lsn = 1
        bench.path.release_ready()
        await bench.path.drain()
        assert follower.take() == [1, {"count": 1}]

    run(tmp_path, test)


@pytest.mark.parametrize("is_effect", [False, True])
def test_large_replies_leave_turn_by_turn_and_others_get_theirs_between(
    tmp_path: Path, is_effect: bool
) -> None:
    async def test(bench: Bench) -> None:
        bench.path.effects["system.metrics"] = lambda: "x" * 30_000
        large, other = FakeClient(), FakeClient()
        keys = list(range(1000))
        asked = request("counter.batch_sum", series="a", keys=keys).rstrip()
        await bench.ask(large, request("series.batch_add", series="a", items=[[key, DAY, 9] for key in keys]))
        if is_effect:
            asked = request("system.metrics").rstrip()
        bench.path.submit(large, [line for key in keys[:20] for line in (asked, increment(key).rstrip())])
        bench.path.submit(other, [total(7).rstrip()])
        await until(lambda: bool(other.sent))
        assert 3 <= len(large.sent) <= 7
        assert large.is_blocked
        assert other.take() == [9]
        await bench.path.drain()
        replies = large.take()
        assert [len(reply) for reply in replies[::2]] == [30_000 if is_effect else 1000] * 20
        assert replies[1::2] == [1] * 20
        assert [op for _, op in bench.logged()] == ["series.batch_add", *["counter.increment"] * 20]
        assert bench.path.engine.counters.commands == 42

    run(tmp_path, test)


def test_who_waits_for_a_sync_is_woken_by_that_of_a_snapshot(tmp_path: Path) -> None:
    """A follower was not: nothing else would have synced again, and it waited for ever."""

    async def test(bench: Bench) -> None:
        bench.wal.append([b'{"v":2,"op":"tree.create","series":"a"}'], 1)
        waiting = asyncio.ensure_future(bench.path.sync_received())
        await asyncio.sleep(0)
        assert bench.path.settle() == 1
        async with asyncio.timeout(20):
            await waiting

    run(tmp_path, test)
