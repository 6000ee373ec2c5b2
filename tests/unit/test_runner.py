"""A runner whose link is a script: what breaks on this side while it follows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any, cast

import orjson
import pytest
from handmade import Node, add, flip, read

from karma.core.entries import Received, entry_crc
from karma.core.epochs import Epoch, History
from karma.core.replay import Replay
from karma.engine import Engine
from karma.errors import RequestError, StorageFailedError
from karma.replication import runner as running
from karma.replication.bootstrap import BootstrapError
from karma.replication.link import LinkError
from karma.replication.runner import Runner
from karma.service.checkpoints import Checkpoints
from karma.service.log import Log
from karma.service.roles import Roles
from karma.service.write_path import WritePath
from karma.storage import install, node_file, wal
from karma.storage.disk import Disk
from karma.storage.node_file import Address
from karma.storage.recovery import Recovered
from karma.storage.wal import Wal

NOW_MS = 1_795_253_093_000
HISTORY = History((Epoch(1, "a", 1),))
SLAVE = node_file.Node("me", "ours", HISTORY, role="slave", source=Address("db1", 8080))
SECONDS = 10


class Bench:
    """A runner with a real log in a directory; `replies` is what its source says, in order."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.disk = directory, Disk()
        self.lines: list[str] = []
        self.deaths: list[StorageFailedError] = []
        self.replies: list[Any] = []
        self.exchanged: list[Recovered] = []
        recovered = read(directory)
        log = Log(self.lines.append, lambda: 0.0)
        engine = Engine(recovered.store)
        self.path = WritePath(
            engine=engine,
            wal=Wal(self.disk, directory, next_lsn=recovered.last_lsn + 1),
            log=log,
            clock_ms=lambda: NOW_MS,
            loop=asyncio.get_running_loop(),
            die=self.deaths.append,
        )
        self.roles = Roles(SLAVE, self.disk, directory, engine, log, lambda: NOW_MS, lambda: "id")
        self.checkpoints = Checkpoints(self.disk, directory, lambda: 0.0)
        self.runner = Runner(
            write_path=self.path,
            roles=self.roles,
            checkpoints=self.checkpoints,
            disk=self.disk,
            log=log,
            clock_ms=lambda: NOW_MS,
            monotonic=lambda: 0.0,
            random=Random(1),
            tls=None,
            token=None,
            poll_interval_ms=1,
            batch_entries=100,
            port=lambda: 8081,
            restore=self.restore,
            busy=asyncio.Lock(),
            exchange=self.exchanged.append,
        )

    async def restore(self, folder: Path) -> Recovered:
        return read(folder)

    def send(self, _request: dict[str, Any]) -> None:
        pass

    async def receive(self) -> Any:
        if not self.replies:
            await asyncio.sleep(3600)
        reply = self.replies.pop(0)
        if isinstance(reply, BaseException):
            raise reply
        return reply

    async def ask(self, request: dict[str, Any]) -> Any:
        self.send(request)
        return await self.receive()

    def close(self) -> None:
        pass

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0)

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in map(orjson.loads, self.lines) if line["event"] == event]


def run(
    directory: Path, monkeypatch: pytest.MonkeyPatch, test: Callable[[Bench], Coroutine[Any, Any, None]]
) -> None:
    async def main() -> None:
        bench = Bench(directory)

        async def connect(*_arguments: object) -> Bench:
            return bench

        monkeypatch.setattr("karma.replication.link.connect", connect)
        monkeypatch.setattr(running, "_REFUSED_SECONDS", 0.0)
        try:
            await test(bench)
        finally:
            await bench.runner.stop()
            if bench.path.wal is not None:
                bench.path.wal.close()

    asyncio.run(main())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A slave's directory with two entries."""
    node = Node(tmp_path / "data")
    node.write(add("api", 1), add("api", 2))
    node.wal.close()
    return node.directory


def greeting(source_lsn: int = 3) -> dict[str, Any]:
    about = {"node_id": "a", "cluster_id": "ours", "epochs": HISTORY.to_json(), "path": ["a"]}
    return success(**about, source_lsn=source_lsn)


def page(*lsns: int, **more: Any) -> dict[str, Any]:
    entries = []
    for lsn in lsns:
        entry = add("api", lsn)
        crc = entry_crc(lsn, NOW_MS, orjson.dumps(entry))
        entries.append({"lsn": lsn, "entry": entry, "ts": NOW_MS, "crc": f"{crc:08x}"})
    return success(**{"source_lsn": 3, "epoch": 1, "epoch_node_id": "a", "entries": entries} | more)


def success(**response: Any) -> dict[str, Any]:
    return {"protocol_version": 2, "success": True, "response": response, "error_code": None}


def test_it_follows_from_where_its_log_ends(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        bench.replies = [greeting(), page(3)]
        bench.runner.start()
        assert bench.path.wal is not None
        await bench.until(lambda: bench.path.wal is not None and bench.path.wal.durable_lsn == 3)
        assert bench.runner.describe()["replication_state"] == "following"
        assert bench.runner.path == ["a", "me"]

    run(directory, monkeypatch, test)


def test_a_bug_is_told_and_the_next_try_may_succeed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        bench.replies = [greeting(), ZeroDivisionError("s3cret"), greeting(), page(3)]
        bench.runner.start()
        await bench.until(lambda: bench.runner.counts.entries_applied == 1)
        (line,) = bench.logged("internal_error")
        assert "ZeroDivisionError" in line["message"]
        assert "s3cret" not in "".join(bench.lines)
        assert any("a bug" in line["message"] for line in bench.logged("replication"))

    run(directory, monkeypatch, test)


def test_a_promise_that_the_disk_broke_ends_the_process(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(bench: Bench) -> None:
        def fail(*_arguments: object) -> None:
            raise StorageFailedError("fsync failed")

        bench.replies = [greeting(), page(source_lsn=2, checkpoints=[], checkpoint_position=["x", 0])]
        monkeypatch.setattr(Checkpoints, "receive", fail)
        bench.runner.start()
        await bench.until(lambda: bool(bench.deaths))

    run(directory, monkeypatch, test)


def test_checkpoints_that_the_disk_refused_are_asked_for_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(bench: Bench) -> None:
        found = {"source": "p", "offset": 7, "event_id": None, "updated_at_unix": 5}
        told = page(checkpoints=[found], checkpoint_position=["boot", 1], checkpoint_count=1, source_lsn=2)
        (directory / "recovery.json").mkdir()
        bench.replies = [greeting(2), told]
        bench.runner.start()
        await bench.until(lambda: bench.runner.describe()["replication_state"] == "storage_error")
        assert bench.runner.follower.checkpoint_position == ("", 0)
        (directory / "recovery.json").rmdir()
        bench.replies += [greeting(2), told]
        await bench.until(lambda: "p" in bench.checkpoints.by_source)
        await bench.until(lambda: bench.runner.follower.checkpoint_position == ("boot", 1))

    run(directory, monkeypatch, test)


def test_damage_in_log_kept_for_followers_does_not_keep_a_slave_from_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path / "data")
    node.write(add("api", 1), add("api", 2))
    node.snapshot_all(keep_bytes=10**6)
    node.wal.close()
    flip(node.directory / wal.RETAINED_NAME / wal.segment_name(1), -20)

    async def test(bench: Bench) -> None:
        bench.replies = [greeting(), page(3)]
        bench.runner.start()
        assert bench.runner.here().last_crc is None
        await bench.until(lambda: bench.runner.counts.entries_applied == 1)

    run(node.directory, monkeypatch, test)


# -- Exchanging data -----------------------------------------------------------------------------------------


def fetched(bench: Bench, *, is_whole: bool = True) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return what stands for fetching a source's data: three entries of series `new`."""

    async def fetch(_link: object, folder: Path) -> tuple[str, History]:
        new = Node(folder)
        new.write(add("new", 1), add("new", 2), add("new", 3))
        new.wal.close()
        if not is_whole:
            with (folder / wal.LOG_NAME).open("ab") as file:
                file.write(b"half a line")
        return "ours", HISTORY

    return fetch


async def bootstrap(bench: Bench) -> None:
    await bench.runner._bootstrap(cast("Any", bench), "a gap")


def test_what_was_fetched_takes_its_place_with_the_epochs_it_has(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(bench: Bench) -> None:
        monkeypatch.setattr(Runner, "_fetch", staticmethod(fetched(bench)))
        await bootstrap(bench)
        assert [found.last_lsn for found in bench.exchanged] == [3]
        incoming = directory / install.INCOMING_NAME
        assert node_file.load(bench.disk, incoming) == bench.roles.node
        assert install.read_manifest(bench.disk, directory) == (f"discarded-{NOW_MS // 1000}", False)
        assert bench.runner.counts.bootstraps_succeeded == 1

    run(directory, monkeypatch, test)


def test_what_does_not_reach_its_end_takes_no_place(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        monkeypatch.setattr(Runner, "_fetch", staticmethod(fetched(bench, is_whole=False)))
        with pytest.raises(BootstrapError, match="cannot be restored"):
            await bootstrap(bench)
        assert bench.exchanged == []
        assert install.read_manifest(bench.disk, directory) is None
        assert bench.disk.list_names(directory / install.INCOMING_NAME) == []
        assert bench.runner.counts.bootstraps_failed == 1

    run(directory, monkeypatch, test)


def test_logs_are_not_exchanged_under_a_sync_that_is_on_its_way(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end would be taken for one of the new log: writes would count as durable that are not."""

    async def test(bench: Bench) -> None:
        log_file = bench.path.wal
        assert log_file is not None
        may_sync, syncs = threading.Event(), []

        def sync() -> None:
            syncs.append(1)
            assert may_sync.wait(SECONDS)

        monkeypatch.setattr(log_file, "sync", sync)
        monkeypatch.setattr(Runner, "_fetch", staticmethod(fetched(bench)))
        bench.path.has_child = True
        entry = add("api", 3)
        found = Received(3, [entry], [orjson.dumps(entry)], [NOW_MS])
        bench.path.replicate(found, Replay(bench.path.engine.store).apply)
        task = asyncio.ensure_future(bootstrap(bench))
        await bench.until(lambda: bool(syncs))
        for _ in range(20):
            await asyncio.sleep(0)
        assert bench.exchanged == []
        may_sync.set()
        await task
        assert len(bench.exchanged) == 1
        assert not bench.path._is_syncing

    run(directory, monkeypatch, test)


def test_a_disk_that_refuses_leaves_everything_in_place(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(bench: Bench) -> None:
        def refuse(*_arguments: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Runner, "_fetch", staticmethod(fetched(bench)))
        monkeypatch.setattr(node_file, "save", refuse)
        with pytest.raises(OSError, match="No space"):
            await bootstrap(bench)
        assert (bench.exchanged, bench.roles.node) == ([], SLAVE)
        assert install.read_manifest(bench.disk, directory) is None

    run(directory, monkeypatch, test)


def test_errors_of_its_own_are_told_apart(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        states = []
        for error in (
            LinkError("away"),
            RequestError("storage_error", "full"),
            RequestError("replication_error", "odd"),
            OSError(5, "broken"),
        ):
            bench.replies = [error]
            bench.runner.start()
            await bench.until(lambda: bench.runner.follower.failures > 0)
            states.append(bench.runner.follower.state)
            await bench.runner.stop()
        assert states == ["connecting", "storage_error", "refused", "storage_error"]

    run(directory, monkeypatch, test)
