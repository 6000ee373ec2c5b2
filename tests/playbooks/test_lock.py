"""The run lock on real file systems: who has it, who may take it over, and that only one ever does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playbooks.fleet import NAMES, Fleet, approved, sitting
from playbooks.test_books import read_lock

from karma_client import AsyncClient, connect_async
from karma_playbooks.errors import PlaybookError
from karma_playbooks.inventory import Entry
from karma_playbooks.lock import Lock, LostLockError
from karma_playbooks.transports.host import Host
from karma_playbooks.transports.local import LocalShell
from karma_playbooks.transports.shell import LinkLostError, Ran
from karma_playbooks.world import World

ROUNDS = 3


def holder(epoch: int, run: str = "r", machine: str = "m") -> dict[str, Any]:
    return {"run": run, "epoch": epoch, "operator": "o", "machine": machine, "since": "now"}


class Meeting(LocalShell):
    """A host's shell that lets nobody add to the lock before everybody has read it."""

    def __init__(self, barrier: asyncio.Barrier) -> None:
        self._barrier = barrier
        self._has_waited = False

    async def script(self, text: str, on_output: Any = None) -> Ran:
        ran = await super().script(text, on_output)
        if not self._has_waited:
            self._has_waited = True
            await self._barrier.wait()
        return ran


def connect(address: str) -> AsyncClient:
    return connect_async(address, target="any", max_attempts=1)


def world(folder: Path, barrier: asyncio.Barrier | None = None) -> World:
    """Three hosts that are folders of this machine, as one operator's machine sees them."""
    entries = {
        name: Entry(name, "127.0.0.1:1", playbook_directory=str(folder / name)) for name in ("a", "b", "c")
    }
    found = World(entries, connect, lambda *_: None, approved, lambda _: None, folder / "state")
    if barrier is not None:
        found._hosts = {
            name: Host(Meeting(barrier), entry.playbook_directory) for name, entry in entries.items()
        }
    return found


async def contend(folder: Path, holders: list[dict[str, Any]], *, takeover: bool) -> list[Lock]:
    """Let several want the lock at the same time, each having read it before any of them adds; who got it."""
    barrier = asyncio.Barrier(3 * len(holders))
    locks = [Lock(world(folder, barrier), "x", each) for each in holders]

    async def want(lock: Lock) -> None:
        await lock.acquire(takeover=takeover)

    results = await asyncio.gather(*map(want, locks), return_exceptions=True)
    for result in results:
        assert result is None or isinstance(result, PlaybookError), result
    won = [lock for lock, result in zip(locks, results, strict=True) if result is None]
    for lock in won:
        await lock.check()
    return won


def held(folder: Path, name: str) -> dict[str, Any]:
    newest = max((folder / name / "locks" / "x").iterdir(), key=lambda path: int(path.name))
    found: dict[str, Any] = json.loads(newest.read_text())
    return found


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """Numbered folders, a new one for each round."""
    return (tmp_path / str(number) for number in range(ROUNDS))


def test_of_two_takeovers_at_once_exactly_one_wins(folders: Iterator[Path]) -> None:
    async def go(folder: Path) -> None:
        dead = Lock(world(folder), "x", holder(1))
        await dead.acquire()
        # Both read epoch 1, and both would open epoch 2.
        (won,) = await contend(folder, [holder(2, machine="m1"), holder(2, machine="m2")], takeover=True)
        assert [held(folder, name)["machine"] for name in "abc"] == [won.holder["machine"]] * 3
        with pytest.raises(LostLockError, match="epoch 2"):
            await dead.check()

    for folder in folders:
        asyncio.run(go(folder))


def test_of_two_new_runs_at_once_exactly_one_begins(folders: Iterator[Path]) -> None:
    async def go(folder: Path) -> None:
        (won,) = await contend(folder, [holder(1, "one"), holder(1, "two")], takeover=False)
        await won.release()
        assert [held(folder, name) for name in "abc"] == [{}] * 3

    for folder in folders:
        asyncio.run(go(folder))


def test_a_slow_taker_does_not_mistake_a_later_lock_for_the_one_it_saw(tmp_path: Path) -> None:
    async def go() -> None:
        first, slow = Lock(world(tmp_path), "x", holder(1)), Lock(world(tmp_path), "x", holder(2))
        await first.acquire()
        seen = await slow._read("a")
        await first.release()
        second = Lock(world(tmp_path), "x", holder(1, "another"))
        await second.acquire()
        assert not await slow._add("a", seen.number, slow._mine)
        await second.check()

    asyncio.run(go())


def test_a_lock_whose_answer_was_lost_is_given_back_all_the_same(tmp_path: Path) -> None:
    class Deaf(LocalShell):
        async def script(self, text: str, on_output: Any = None) -> Ran:
            ran = await super().script(text, on_output)
            if "ln " in text:
                raise LinkLostError("the answer was lost")
            return ran

    async def go() -> None:
        found = world(tmp_path)
        found._hosts["a"] = Host(Deaf(), str(tmp_path / "a"))
        lock = Lock(found, "x", holder(1))
        (problem,) = await lock.acquire()
        assert problem == "a: the answer was lost"
        assert held(tmp_path, "a")["run"] == "r"
        await lock.release()
        assert held(tmp_path, "a") == {}

    asyncio.run(go())


def test_a_host_that_nobody_could_tell_of_the_end_keeps_no_one_out(tmp_path: Path) -> None:
    class Deaf(LocalShell):
        async def script(self, text: str, on_output: Any = None) -> Ran:
            raise LinkLostError("its cable is out")

    async def go() -> None:
        away = world(tmp_path)
        first = Lock(away, "x", holder(1))
        await first.acquire()
        away._hosts["c"] = Host(Deaf(), str(tmp_path / "c"))
        await first.park()
        assert "is_parked" not in held(tmp_path, "c")
        # A majority knows that nobody is at it. One host alone would not do for that.
        again = Lock(world(tmp_path), "x", holder(2))
        assert await again.acquire() == []
        assert [held(tmp_path, name)["epoch"] for name in "abc"] == [2] * 3
        with pytest.raises(PlaybookError, match="under way"):
            await Lock(world(tmp_path), "x", holder(1, "another")).acquire()

    asyncio.run(go())


def test_a_lock_that_was_broken_stops_its_run(tmp_path: Path) -> None:
    async def go() -> None:
        lock = Lock(world(tmp_path), "x", holder(1))
        await lock.acquire()
        found = await Lock(world(tmp_path), "x", holder(0, "unlock")).break_()
        assert {each["run"] for each in found} == {"r"}
        with pytest.raises(LostLockError, match="nobody"):
            await lock.check()

    asyncio.run(go())


def test_who_lost_the_lock_stops(fleet: Fleet) -> None:
    with fleet.playbooks() as playbooks:

        async def go() -> None:
            first, second = (Lock(playbooks.world, "x", holder(epoch)) for epoch in (1, 2))
            await first.acquire()
            await first.check()
            # Whether the first machine is dead, only a person can tell.
            with pytest.raises(PlaybookError, match="under way") as refused:
                await second.acquire()
            assert "--takeover" in refused.value.advice
            await second.acquire(takeover=True)
            await second.check()
            with pytest.raises(LostLockError, match="epoch 2"):
                await first.check()
            # Giving back what is not held any more must not free it for others.
            await first.release()
            await second.check()

            await second.park()
            other = Lock(playbooks.world, "x", holder(1, "another"))
            for takeover in (False, True):
                with pytest.raises(PlaybookError, match="half-way"):
                    await other.acquire(takeover=takeover)
            # The run itself may go on: nobody is at it.
            await Lock(playbooks.world, "x", holder(3)).acquire()

        sitting(playbooks, go)
    assert all(read_lock(fleet, name)["epoch"] == 3 for name in NAMES)
    assert all(node.status()["lease"]["run"] == "r" for node in fleet.nodes.values())


def test_a_node_that_was_down_when_its_run_ended_holds_no_one_off(fleet: Fleet) -> None:
    with fleet.playbooks() as playbooks:

        async def go() -> None:
            first = Lock(playbooks.world, "x", holder(1))
            await first.acquire()
            fleet.nodes["c"].kill()
            await first.release()
            fleet.nodes["c"].start()
            assert fleet.nodes["c"].status()["lease"]["run"] == "r"
            # The other nodes know that it is over.
            other = Lock(playbooks.world, "x", holder(1, "another"))
            await other.acquire()
            assert [node.status()["lease"]["run"] for node in fleet.nodes.values()] == ["another"] * 3
            with pytest.raises(PlaybookError, match="under way"):
                await Lock(playbooks.world, "x", holder(1, "third")).acquire()
            await other.release()

        sitting(playbooks, go)
