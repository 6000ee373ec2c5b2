"""Two operators at one cluster, with other context names, machines, and inventories: never two masters."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import until
from playbooks.fleet import REASON, Fleet, Node, play, sitting
from playbooks.test_books import are_equal, read_lock, write

from karma_client import UnreachableError
from karma_playbooks import lock as locks
from karma_playbooks.control import Playbooks, Request
from karma_playbooks.errors import PlaybookError
from karma_playbooks.journal import Journal
from karma_playbooks.world import World

REQUEST = Request("tester", REASON)
UNVERIFIED = REQUEST._replace(lock_unverified=True)


class Operator:
    """One operator's machine: a state folder, a name for the cluster, and nodes that it knows."""

    def __init__(self, fleet: Fleet, name: str, world: World | None = None) -> None:
        self.told: list[str] = []
        self.journal = Journal(fleet.folder / f"state-{name}" / "journal.db")
        self.playbooks = Playbooks(world or fleet.world(), self.journal, name, False, self.told.append)

    async def play(
        self, book: str, request: Request = REQUEST, params: dict[str, str] | None = None
    ) -> tuple[str, str]:
        """Return a run and its end, `refused` where it never began."""
        try:
            return await play(self.playbooks, book, params or {}, request)
        except PlaybookError as error:
            self.told.append(error.message)
            return "", "refused"


Hire = Callable[..., Operator]


@pytest.fixture
def hire() -> Iterator[Hire]:
    """`hire(fleet, name)` returns an operator's machine, which is closed at the end of the test."""
    operators: list[Operator] = []

    def one(fleet: Fleet, name: str, world: World | None = None) -> Operator:
        operators.append(Operator(fleet, name, world))
        return operators[-1]

    yield one
    for operator in operators:
        operator.journal.close()


def together(*plays: tuple[Operator, Callable[[], Awaitable[tuple[str, str]]]]) -> list[tuple[str, str]]:
    """Let operators act at the same time; returns what each came to."""

    async def go() -> list[tuple[str, str]]:
        try:
            return list(await asyncio.gather(*(act() for _, act in plays)))
        finally:
            for operator, _ in plays:
                await operator.playbooks.world.close()

    return asyncio.run(go())


def alone(operator: Operator, *about: Any, **more: Any) -> tuple[str, str]:
    """Let one operator play a book."""
    (found,) = together((operator, lambda: operator.play(*about, **more)))
    return found


def masters(fleet: Fleet) -> list[str]:
    """The nodes that take writes."""
    found = {name: node.status() for name, node in fleet.nodes.items() if node.pid is not None}
    return [name for name, about in found.items() if about["role"] == "master" and not about["fenced_by"]]


def opened(fleet: Fleet) -> set[tuple[int, str]]:
    """Every epoch that a node knows, with who opened it."""
    statuses = [node.status() for node in fleet.nodes.values() if node.pid is not None]
    return {(each["epoch"], each["node_id"]) for status in statuses for each in status["epochs"]}


def lose_master(fleet: Fleet) -> None:
    until(lambda: are_equal(fleet))
    fleet.nodes["a"].kill()
    until(
        lambda: all(fleet.nodes[name].status()["replication_state"] == "connecting" for name in "bc"),
    )


def is_one(fleet: Fleet) -> bool:
    """Every epoch has one owner, and one node takes writes."""
    epochs = opened(fleet)
    return len({number for number, _ in epochs}) == len(epochs) and len(masters(fleet)) == 1


@pytest.mark.parametrize("has_hosts", [True, False], ids=["hosts", "no hosts"])
@pytest.mark.parametrize("book", ["switchover", "failover"])
def test_of_two_who_start_together_one_is_refused(
    book: str, has_hosts: bool, start_fleet: Callable[..., Fleet], sshd: Path, hire: Hire
) -> None:
    fleet = start_fleet(sshd if has_hosts else None)
    write(fleet, "a", 5)
    params = {}
    if book == "failover":
        lose_master(fleet)
        params = {"from": "a"} if has_hosts else {"from": "a", "fence_unverified": "yes"}
    worlds = [fleet.world() if has_hosts else without_hosts(fleet) for _ in "bc"]
    one, two = (hire(fleet, name, world) for name, world in zip(("prod", "berlin"), worlds, strict=True))
    endings = together(
        (one, lambda: one.play(book, params={**params, "to": "b"})),
        (two, lambda: two.play(book, params={**params, "to": "c"})),
    )
    kinds = sorted(ending for _, ending in endings)
    # Each may have got one node and given it back.
    assert kinds in (["done", "refused"], ["refused", "refused"]), (endings, one.told, two.told)
    if "done" in kinds:
        assert max(number for number, _ in opened(fleet)) == 2
        assert is_one(fleet)
    else:
        assert max(number for number, _ in opened(fleet)) == 1


def without_hosts(fleet: Fleet) -> World:
    """A world whose nodes have no host: only their leases keep runs apart."""
    world = fleet.world()
    # By a name that is not known to be this machine.
    world.entries = {
        name: entry._replace(address=f"127.1:{fleet.nodes[name].port}", ssh_host="")
        for name, entry in world.entries.items()
    }
    return world


def test_nodes_outside_the_context_count(start_fleet: Callable[..., Fleet], sshd: Path, hire: Hire) -> None:
    """Two contexts that know one node each besides the master share no majority: both are refused."""
    fleet = start_fleet(sshd)
    until(lambda: len(fleet.nodes["a"].status()["replicas"]) == 2)
    world = fleet.world()
    world.entries = {"b": world.entries["b"]}
    small = hire(fleet, "small", world)
    held = small.playbooks._lock("r", 1, "tester")

    async def go() -> None:
        with pytest.raises(PlaybookError, match=r"needs 2 of [23] nodes"):
            await held.acquire()

    sitting(small.playbooks, go)
    assert fleet.nodes["b"].status()["lease"] is None


def test_a_majority_that_cannot_be_had_takes_the_operator_s_word(
    start_fleet: Callable[..., Fleet], sshd: Path, hire: Hire
) -> None:
    fleet = start_fleet(sshd)
    fleet.nodes["a"].kill()
    fleet.nodes["c"].kill()
    for name in "ac":
        fleet.sshds[name].stop()
    one = hire(fleet, "one")
    # A book that needs nothing but the node itself.
    params = {"node": "b", "epoch": "1"}
    assert alone(one, "fence", params=params) == ("", "refused")
    assert "lock needs 2 of 3" in one.told[-1]
    about = fleet.nodes["b"].status()
    assert (about["lease"], about["fenced_by"]) == (None, None)
    run, ending = alone(one, "fence", UNVERIFIED, params)
    assert ending == "done", one.told
    notes = one.journal.history(run).notes
    assert any("by the operator's word" in note for note in notes), notes


def test_after_an_unverified_lock_they_stop_each_other_at_first_contact(
    start_fleet: Callable[..., Fleet], sshd: Path, hire: Hire
) -> None:
    fleet = start_fleet(sshd)
    lose_master(fleet)
    sides = []
    for name in "bc":
        world = fleet.world()
        # Each side of a network that is cut in two reaches one follower only.
        gone = {other: f"127.0.0.1:{1}" for other in "abc" if other != name}
        world.entries = {
            each: entry._replace(
                address=gone.get(each, entry.address), ssh_port=entry.ssh_port if each == name else 1
            )
            for each, entry in world.entries.items()
        }
        sides.append(hire(fleet, f"side-{name}", world))
    held = []

    async def go() -> None:
        for side, name in zip(sides, "bc", strict=True):
            lock = side.playbooks._lock(f"run-{name}", 1, "tester", is_unverified=True)
            await lock.acquire()
            held.append(lock)
            assert "needs 2 of 3" in lock.doubt
            about = lock.order(name)
            await side.playbooks.world.ask(name, "replication.promote", epoch=2, **about)
        # The cut heals for one of them.
        await sides[0].playbooks.world.close()
        sides[0].playbooks.world.entries = dict(fleet.entries())
        await held[0].look_around()
        with pytest.raises(locks.LostLockError, match="run-c"):
            await held[0].check()
        for side, lock in zip(sides, held, strict=True):
            await lock.release()
            await side.playbooks.world.close()

    asyncio.run(go())
    nodes = [fleet.nodes[name] for name in "bc"]
    assert [node.status()["epoch"] for node in nodes] == [2, 2]
    # The nodes do the same as soon as one hears of the other.
    tell(nodes[0], nodes[1])
    tell(nodes[1], nodes[0])
    until(lambda: all(node.status()["fenced_by"] is not None for node in nodes))
    # The way out: one is chosen, opens an epoch of its own, and the other follows with its tail saved.
    third = hire(fleet, "third")
    assert alone(third, "unfence", params={"node": "b"})[1] == "done", third.told
    assert alone(third, "rejoin-old-master", params={"node": "c"})[1] == "done", third.told
    assert (masters(fleet), nodes[1].status()["epoch"]) == (["b"], 3)


def tell(node: Node, of: Node) -> None:
    about = of.status()
    contact = {"cluster_id": about["cluster_id"], "epoch": about["epoch"], "epoch_node_id": about["node_id"]}
    with node.server.connect() as connection:
        connection.call("replication.entries", after_lsn=0, **contact)


def test_a_run_that_another_master_overtook_ends_as_superseded(
    start_fleet: Callable[..., Fleet], sshd: Path, hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = start_fleet(sshd)
    write(fleet, "a", 5)
    one = hire(fleet, "one")
    real = World.ask

    async def ask(world: World, name: str, op: str, **fields: Any) -> Any:
        if op == "replication.follow":
            raise UnreachableError("no way there")
        return await real(world, name, op, **fields)

    monkeypatch.setattr(World, "ask", ask)
    run, ending = alone(one, "switchover", params={"to": "b"})
    assert ending == "paused", one.told
    monkeypatch.setattr(World, "ask", real)
    assert masters(fleet) == ["b"]
    # Meanwhile another node is made master by hand, twice, so that its epoch rules.
    c = fleet.nodes["c"]
    c.ask("replication.promote", force=True)
    tell(c, fleet.nodes["b"])
    c.ask("replication.promote", force=True)
    tell(fleet.nodes["b"], c)
    until(lambda: masters(fleet) == ["c"])

    async def again() -> tuple[str, str]:
        return run, await one.playbooks.resume(run, "tester")

    ((_, ending),) = together((one, again))
    history = one.journal.history(run)
    assert (ending, history.state) == ("superseded", "superseded"), one.told
    assert history.rejoin == ("a", "b")
    assert "a: fenced for epoch" in history.why
    assert "paused by this run" in history.why
    assert "c is master of epoch 3" in history.why
    # Followers were not led to a node that is no longer master, and the lock is free.
    assert masters(fleet) == ["c"]
    assert read_lock(fleet, "c") == {}
    assert alone(one, "rejoin-old-master", params={"node": "a"})[1] == "done", one.told[-6:]


def test_the_cooldown_counts_another_machine_s_failover(fleet: Fleet, hire: Hire) -> None:
    lose_master(fleet)
    one, two = hire(fleet, "one"), hire(fleet, "two")
    assert alone(one, "failover", params={"from": "a", "to": "b"})[1] == "done", one.told
    fleet.nodes["b"].kill()
    until(lambda: fleet.nodes["c"].status()["replication_state"] == "connecting")
    params = {"from": "b", "to": "c"}
    assert alone(two, "failover", params=params)[1] == "refused"
    assert "the last failover" in two.told[-1]
    request = REQUEST._replace(ignores_cooldown=True)
    assert alone(two, "failover", request, params)[1] == "done", two.told
