"""The source side at work, without a network: who waits, who is woken, and what each request tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import orjson
import pytest
from handmade import add

from karma.core.epochs import Epoch, History
from karma.core.store import Store
from karma.engine import Engine
from karma.errors import RequestError
from karma.replication.feed import Claims
from karma.replication.source import Source
from karma.service.checkpoints import Checkpoints
from karma.service.log import Log
from karma.service.replicas import Replicas
from karma.service.roles import Roles
from karma.service.write_path import WritePath
from karma.storage.disk import Disk
from karma.storage.node_file import Node
from karma.storage.wal import Wal

NOW_MS = 1_795_253_093_000
MASTER = Node("me", "ours", History((Epoch(1, "me", 1),)))
MINE = Claims(node_id="b", cluster_id="ours", epoch=1, epoch_node_id="me")
MINUTE_MS = 60_000


class Asker:
    """A client as far as a source looks at one."""

    address = "10.0.0.2:4711"


class Bench:
    """A source with a real log in a directory."""

    def __init__(self, directory: Path, node: Node) -> None:
        self.disk, self.directory = Disk(), directory
        log = Log(lambda _line: None, lambda: 0.0)
        engine = Engine(Store())
        self.wal = Wal(self.disk, directory, next_lsn=1)
        self.path = WritePath(
            engine=engine,
            wal=self.wal,
            log=log,
            clock_ms=lambda: NOW_MS,
            loop=asyncio.get_running_loop(),
            die=lambda _error: None,
        )
        self.roles = Roles(node, self.disk, directory, engine, log, lambda: NOW_MS, lambda: "id")
        self.replicas = Replicas(
            lambda: 1000.0, lambda: 1000.0, lambda: self.wal.last_lsn, self.wal.bytes_behind
        )
        self.checkpoints = Checkpoints(self.disk, directory, lambda: 0.0, new_id=lambda: "boot")
        self.checkpoints.load()
        self.source = Source(
            self.path,
            self.roles,
            self.replicas,
            self.checkpoints,
            max_response_bytes=0,
            waits_for_replicas=False,
            path=lambda: ["me"],
        )
        self.replicas.on_ack = self.source.acknowledged
        self.path.on_durable = self.checkpoints.on_change = self.source.wake

    def write(self, count: int = 1) -> None:
        self.wal.append([orjson.dumps(add("api", 1))] * count, NOW_MS)

    def ask(self, after_lsn: int, claims: Claims = MINE, **more: Any) -> asyncio.Task[dict[str, Any]]:
        request: dict[str, Any] = {
            "acked_lsn": None,
            "limit": 100,
            "wait_ms": MINUTE_MS,
            "is_handshake": False,
            "is_plain": False,
            "as_lines": False,
            "is_peer": True,
            "checkpoint": None,
        }
        client: Any = Asker()
        return asyncio.ensure_future(
            self.source.entries(client, after_lsn=after_lsn, claims=claims, **request | more)
        )


def run(
    directory: Path, test: Callable[[Bench], Coroutine[Any, Any, None]], node: Node = MASTER, **options: Any
) -> None:
    async def main() -> None:
        bench = Bench(directory, node)
        for name, value in options.items():
            setattr(bench.path, name, value)
        try:
            async with asyncio.timeout(20):
                await test(bench)
        finally:
            bench.wal.close()

    asyncio.run(main())


async def pass_by() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_entries_are_served_once_they_are_durable(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        asked = bench.ask(0)
        bench.write(3)
        bench.source.wake()
        await pass_by()
        assert not asked.done()
        bench.path.settle()
        page = await asked
        assert (page["count"], page["source_lsn"]) == (3, 3)
        assert (page["epoch"], page["epoch_node_id"], page["cluster_id"]) == (1, "me", "ours")

    run(tmp_path, test)


def test_who_waits_gets_an_empty_page_in_the_end(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        assert (await bench.ask(0, wait_ms=10))["count"] == 0
        asked = bench.ask(0)
        await pass_by()
        bench.source.close()
        assert (await asked)["count"] == 0
        assert (await bench.ask(0))["count"] == 0, "nobody waits for a server that ends"
        assert bench.source._waiting == {}

    run(tmp_path, test)


def test_a_request_given_up_leaves_nobody_waiting(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        asked = bench.ask(0)
        await pass_by()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        assert bench.source._waiting == {}

    run(tmp_path, test)


def test_a_new_epoch_is_told_at_once(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        asked = bench.ask(0)
        await pass_by()
        bench.roles.promote(0)
        bench.source.wake()
        assert (await asked)["epoch"] == 2

    run(tmp_path, test, Node("me", "ours", MASTER.history, role="slave"))


def test_who_waits_for_a_log_that_is_exchanged_gets_the_other_one(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.write(5)
        bench.path.settle()
        asked = bench.ask(5)
        await pass_by()
        other = tmp_path / "other"
        other.mkdir()
        exchanged = Wal(bench.disk, other, next_lsn=1)
        exchanged.append([orjson.dumps(add("api", 1))] * 2, NOW_MS)
        exchanged.durable_lsn = 2
        bench.path.wal = exchanged
        bench.source.wake()
        assert (await asked)["source_lsn"] == 2
        exchanged.close()

    run(tmp_path, test)


def test_checkpoints_are_news_too(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        page = await bench.ask(0, checkpoint=("", 0))
        assert (page["checkpoints"], page["checkpoint_position"]) == ([], ["boot", 0])
        asked = bench.ask(0, checkpoint=("boot", 0))
        await pass_by()
        assert not asked.done()
        bench.checkpoints.put("p", "1", None)
        page = await asked
        assert [found["source"] for found in page["checkpoints"]] == ["p"]
        assert (page["count"], page["checkpoint_count"]) == (0, 1)

    run(tmp_path, test)


def test_a_request_tells_who_holds_what(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.write(5)
        bench.path.settle()
        await bench.ask(4, Claims(node_id="b", cluster_id="ours", epoch=1, epoch_node_id="me", port=8081))
        (found,) = bench.replicas.describe()
        assert (found["node_id"], found["address"], found["acked_lsn"]) == ("b", "10.0.0.2:8081", 4)
        await bench.ask(4, acked_lsn=3)
        assert bench.replicas.describe()[0]["acked_lsn"] == 3
        assert bench.replicas.tail_seen is None
        await bench.ask(4, Claims())
        assert len(bench.replicas.describe()) == 1
        assert bench.replicas.tail_seen == 1000

    run(tmp_path, test)


def test_what_was_said_in_another_epoch_acknowledges_nothing(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.write(5)
        bench.path.settle()
        other = Claims(node_id="b", cluster_id="ours", epoch=0, epoch_node_id="a")
        page = await bench.ask(5, other)
        assert (page["count"], page["epoch"], bench.replicas.describe()) == (0, 1, [])

    run(tmp_path, test)


def test_a_wait_ends_when_enough_hold_an_lsn_or_when_its_time_is_up(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.write(5)
        bench.path.settle()
        assert await bench.source.wait(None, 0, 0) == {"acks": 0, "lsn": 5}
        assert await bench.source.wait(3, 1, 1) == {"acks": 0, "lsn": 3}
        waiting = asyncio.ensure_future(bench.source.wait(None, 2, MINUTE_MS))
        await pass_by()
        await bench.ask(5, MINE, is_handshake=True)
        await pass_by()
        assert not waiting.done()
        await bench.ask(
            5, Claims(node_id="c", cluster_id="ours", epoch=1, epoch_node_id="me"), is_handshake=True
        )
        assert await waiting == {"acks": 2, "lsn": 5}
        assert bench.source._counting == 0

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        (Claims(cluster_id="theirs"), "cluster"),
        (Claims(cluster_id="ours", epoch=2, epoch_node_id="x"), "stale"),
        (Claims(after_epoch=1, after_epoch_node_id="x"), "diverged"),
    ],
)
def test_who_does_not_belong_here_is_refused_and_not_remembered(
    tmp_path: Path, claims: Claims, reason: str
) -> None:
    async def test(bench: Bench) -> None:
        bench.write(5)
        bench.path.settle()
        with pytest.raises(RequestError) as refusal:
            await bench.ask(3, claims)
        assert (refusal.value.detail or {})["reason"] == reason
        assert bench.replicas.describe() == []

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("claims", "is_peer", "is_fenced"),
    [
        (Claims(cluster_id="ours", epoch=2), True, True),
        (Claims(cluster_id="ours", epoch=1, epoch_node_id="x"), True, True),
        (Claims(cluster_id="ours", epoch=1, epoch_node_id="me"), True, False),
        (Claims(cluster_id="ours", epoch=2), False, False),
        (Claims(cluster_id="theirs", epoch=2), True, False),
        (Claims(epoch=2), True, False),
    ],
)
def test_a_newer_epoch_stops_a_master_when_one_of_its_cluster_says_so(
    tmp_path: Path, claims: Claims, is_peer: bool, is_fenced: bool
) -> None:
    async def test(bench: Bench) -> None:
        await asyncio.gather(bench.ask(0, claims, is_peer=is_peer, wait_ms=0), return_exceptions=True)
        assert (bench.roles.node.fence is not None) is is_fenced

    run(tmp_path, test)


def test_a_node_without_a_log_has_nothing_to_give(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(RequestError, match="keeps no log"):
            await bench.ask(0)

    run(tmp_path, test, wal=None)


def test_the_newest_entries_stay_in_memory_while_somebody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(bench: Bench) -> None:
        await bench.ask(0, wait_ms=0)
        bench.source.tick()
        assert bench.wal.recent is not None
        monkeypatch.setattr("karma.replication.source._RECENT_SECONDS", -1.0)
        bench.source.tick()
        assert bench.wal.recent is None

    run(tmp_path, test)
