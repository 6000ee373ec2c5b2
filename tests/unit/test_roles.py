"""What a node is: at a start, by an operator's order, and by what others tell it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from karma import config as configuration
from karma.core.epochs import Epoch, History
from karma.core.store import Store
from karma.engine import Engine
from karma.errors import ConfigError, ErrorCode, RequestError
from karma.limits import MAX_FORMER_SOURCES, MAX_PAUSE_MS
from karma.service.log import Log
from karma.service.roles import Roles, promoted, settle_role
from karma.storage import node_file
from karma.storage.disk import Disk
from karma.storage.node_file import Address, Fence, KnownReplica, Node

NOW_MS = 1_795_253_093_000
ONE = History((Epoch(1, "me", 1),))
THEIRS = History((Epoch(1, "a", 1), Epoch(2, "b", 11)))
FENCE = Fence(7, "failover", NOW_MS)
DB1, DB2 = Address("db1", 8080), Address("db2", 8080)
MASTER = Node("me", "ours", ONE)
SLAVE = Node("me", "ours", THEIRS, role="slave", source=DB1)


def settle(
    found: Node | None, *options: str, last_lsn: int = 20, lost_tail: bool = False
) -> tuple[Node, list[str]]:
    """Return what a node with a file and options is at its start, and the events that it logs."""
    config = configuration.load([f"--{option}" for option in options], {}, Path.read_bytes)
    said: list[str] = []
    ids = iter(("new-1", "new-2"))
    node = settle_role(
        config, found, last_lsn, Log(said.append, lambda: 0.0), ids.__next__, lost_tail=lost_tail
    )
    return node, [line.partition('"event":"')[2].partition('"')[0] for line in said]


OF_DB1 = ("role=slave", "replication-source-host=db1")
OF_DB2 = ("role=slave", "replication-source-host=db2")


# -- At a start --------------------------------------------------------------------------------------------


def test_a_first_start_makes_a_master_of_a_cluster_of_its_own() -> None:
    node, events = settle(None, last_lsn=0)
    assert node == Node("new-1", "new-2", History((Epoch(1, "new-1", 1),)))
    assert events == []
    # Data of Karma 1.0 are of before its first epoch.
    assert settle(None, last_lsn=20)[0].history.current.start_lsn == 21


def test_a_first_start_as_slave_leaves_cluster_and_epochs_to_its_source() -> None:
    assert settle(None, *OF_DB1)[0] == Node("new-1", role="slave", source=DB1)
    assert settle(None, "role=slave")[0] == Node("new-1", role="slave")


TABLE: list[Any] = [
    # what the file says, the options, what becomes of it
    pytest.param(MASTER, (), MASTER, [], id="a master stays one"),
    pytest.param(SLAVE, OF_DB1, SLAVE, [], id="a slave stays one"),
    pytest.param(SLAVE, OF_DB2, replace(SLAVE, source=DB2), [], id="another source"),
    pytest.param(SLAVE, ("role=slave",), replace(SLAVE, source=None), [], id="no source"),
    pytest.param(
        MASTER, OF_DB1, replace(MASTER, role="slave", source=DB1), [], id="a master becomes a slave"
    ),
    pytest.param(
        replace(MASTER, fence=FENCE),
        OF_DB1,
        replace(MASTER, role="slave", source=DB1),
        ["unfenced"],
        id="a fenced master that follows is fenced no more",
    ),
    pytest.param(
        replace(MASTER, fence=FENCE),
        ("role=slave",),
        replace(MASTER, role="slave", fence=FENCE),
        [],
        id="one that follows nobody stays fenced",
    ),
    pytest.param(
        replace(SLAVE, fence=FENCE), OF_DB1, replace(SLAVE, fence=FENCE), [], id="a fenced slave stays fenced"
    ),
    pytest.param(
        replace(MASTER, fence=FENCE), (), replace(MASTER, fence=FENCE), [], id="a fenced master stays fenced"
    ),
    pytest.param(
        SLAVE,
        (),
        replace(
            SLAVE,
            role="master",
            source=None,
            former_sources=(DB1,),
            history=THEIRS.opened(3, "me", 20),
        ),
        ["promoted"],
        id="a slave becomes master by its options",
    ),
    pytest.param(
        replace(SLAVE, fence=FENCE, paused_until_unix_ms=1, epoch_due=True),
        (),
        replace(
            SLAVE,
            role="master",
            source=None,
            former_sources=(DB1,),
            history=THEIRS.opened(8, "me", 20),
        ),
        ["promoted"],
        id="above the number that it was fenced for",
    ),
    # Changed at run time: that wins over the options, and says so.
    pytest.param(
        replace(MASTER, is_runtime=True),
        (),
        replace(MASTER, is_runtime=True),
        [],
        id="run time says the same",
    ),
    pytest.param(
        replace(MASTER, is_runtime=True),
        OF_DB1,
        replace(MASTER, is_runtime=True),
        ["role_kept"],
        id="master by promotion",
    ),
    pytest.param(
        replace(SLAVE, is_runtime=True),
        (),
        replace(SLAVE, is_runtime=True),
        ["role_kept"],
        id="slave by an order",
    ),
    pytest.param(
        replace(SLAVE, is_runtime=True, source=Address("db1", 8080, "s3cret")),
        OF_DB2,
        replace(SLAVE, is_runtime=True, source=Address("db1", 8080, "s3cret")),
        ["role_kept"],
        id="of another source by an order, with its token",
    ),
    # Forced, the options count again.
    pytest.param(
        replace(MASTER, is_runtime=True),
        (*OF_DB1, "force-role=true"),
        replace(MASTER, role="slave", source=DB1),
        ["role_forced"],
        id="forced to be a slave",
    ),
    pytest.param(
        replace(SLAVE, is_runtime=True),
        ("force-role=true",),
        replace(SLAVE, role="master", source=None, former_sources=(DB1,), history=THEIRS.opened(3, "me", 20)),
        ["role_forced", "promoted"],
        id="forced to be master",
    ),
    pytest.param(MASTER, ("force-role=true",), MASTER, [], id="nothing to force"),
    # LSNs that somebody saw may come again: a master opens an epoch.
    pytest.param(
        replace(MASTER, running="unsynced"),
        (),
        replace(MASTER, running="unsynced", history=ONE.opened(2, "me", 20)),
        ["epoch_opened"],
        id="an unclean end without fsync",
    ),
    pytest.param(
        replace(MASTER, running="synced"),
        (),
        replace(MASTER, running="synced"),
        [],
        id="an unclean end with fsync",
    ),
    pytest.param(
        replace(MASTER, epoch_due=True),
        (),
        replace(MASTER, history=ONE.opened(2, "me", 20)),
        ["epoch_opened"],
        id="one that was due",
    ),
    pytest.param(
        replace(MASTER, running="unsynced", fence=FENCE),
        (),
        replace(MASTER, running="unsynced", fence=FENCE, epoch_due=True),
        [],
        id="due once the fence is lifted",
    ),
    pytest.param(
        replace(SLAVE, running="unsynced"),
        OF_DB1,
        replace(SLAVE, running="unsynced"),
        [],
        id="a slave's LSNs are its source's",
    ),
    pytest.param(
        Node("me", fence=FENCE),
        (),
        Node("me", "new-1", fence=FENCE, epoch_due=True),
        [],
        id="a directory that had nothing but a fence",
    ),
    pytest.param(
        replace(SLAVE, must_rebuild=True), OF_DB1, replace(SLAVE, must_rebuild=True), [], id="being rebuilt"
    ),
]


@pytest.mark.parametrize(("found", "options", "node", "events"), TABLE)
def test_a_start_settles_the_role(
    found: Node, options: tuple[str, ...], node: Node, events: list[str]
) -> None:
    assert settle(found, *options) == (node, events)


def test_a_lost_tail_opens_an_epoch_on_a_master_only() -> None:
    assert settle(MASTER, lost_tail=True)[0].history.current == Epoch(2, "me", 21)
    assert settle(SLAVE, *OF_DB1, lost_tail=True)[0] == SLAVE


@pytest.mark.parametrize("options", [(), ("force-role=true",)])
def test_half_a_rebuild_is_no_master(options: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="rebuilt"):
        settle(replace(SLAVE, must_rebuild=True), *options)


def test_a_promotion_remembers_the_latest_former_masters_once_each() -> None:
    node = SLAVE
    for number in [*range(MAX_FORMER_SOURCES + 2), 5]:
        node = promoted(replace(node, source=Address(f"db{number}", 1, f"t{number}")), 20, str)
    ports = [each.host for each in node.former_sources]
    assert len(ports) == MAX_FORMER_SOURCES
    assert (ports[-1], ports.count("db5")) == ("db5", 1)


# -- While running -----------------------------------------------------------------------------------------


class FullDisk(Disk):
    """A disk that is full when told so."""

    is_full = False

    def write_file(self, path: Path, chunks: Iterable[bytes]) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write_file(path, chunks)


class Bench:
    """Roles of a node, its disk, its clock and what it logs."""

    def __init__(self, directory: Path, node: Node) -> None:
        self.now_ms = NOW_MS
        self.seconds = 0.0
        """The monotonic clock."""
        self.disk, self.directory = FullDisk(), directory
        self.said: list[str] = []
        self.engine = Engine(Store())
        self.restart(node)
        self.roles.save(node)

    def restart(self, node: Node) -> None:
        """Be what a file says."""
        self.roles = Roles(
            node,
            self.disk,
            self.directory,
            self.engine,
            Log(self.said.append, lambda: 0.0),
            lambda: self.now_ms,
            lambda: "new",
            lambda: self.seconds,
        )

    @property
    def on_disk(self) -> Node | None:
        return node_file.load(self.disk, self.directory)

    @property
    def reason(self) -> str | None:
        """Why a write is refused now, None when it is taken."""
        detail = self.detail
        return None if detail is None else str(detail["reason"])

    @property
    def detail(self) -> dict[str, Any] | None:
        try:
            self.engine.check_writable()
        except RequestError as refusal:
            return {} if refusal.code != ErrorCode.FORBIDDEN else dict(refusal.detail or {})
        return None


@pytest.fixture
def bench(tmp_path: Path) -> Callable[[Node], Bench]:
    return lambda node: Bench(tmp_path, node)


MakeBench = Callable[[Node], Bench]


def test_what_stops_writes_is_named(bench: MakeBench) -> None:
    assert bench(MASTER).detail is None
    assert bench(replace(MASTER, fence=FENCE)).detail == {
        "reason": "fenced",
        "retry_after_ms": None,
        "master": None,
        "fenced_by": FENCE.describe(),
    }
    slave = bench(SLAVE)
    slave.roles.master_hint = lambda: "db1:8080"
    assert slave.detail == {"reason": "role", "retry_after_ms": 1000, "master": "db1:8080"}
    # The gravest first: a fenced slave that is paused is fenced.
    assert bench(replace(SLAVE, fence=FENCE, paused_until_unix_ms=NOW_MS + 1)).reason == "fenced"


def test_a_pause_is_kept_and_ends_by_itself(bench: MakeBench) -> None:
    node = bench(MASTER)
    assert node.roles.pause(5_000) == {"paused_until": NOW_MS + 5_000}
    assert node.on_disk == replace(MASTER, paused_until_unix_ms=NOW_MS + 5_000, pause_ttl_ms=5_000)
    node.seconds += 4
    assert node.detail == {"reason": "paused", "retry_after_ms": 1_000, "master": None}
    node.seconds += 1
    assert (node.reason, node.roles.paused_until_unix_ms) == (None, None)
    node.roles.pause(5_000)
    assert node.roles.resume() == {"paused_until": None}
    assert (node.reason, node.on_disk) == (None, MASTER)


@pytest.mark.parametrize("step_ms", [-31_536_000_000, -4_000, 4_000, 31_536_000_000])
def test_a_step_of_the_clock_moves_no_pause(bench: MakeBench, step_ms: int) -> None:
    node = bench(MASTER)
    node.roles.pause(5_000)
    node.now_ms += step_ms
    node.seconds += 4
    assert node.detail == {"reason": "paused", "retry_after_ms": 1_000, "master": None}
    assert node.roles.paused_until_unix_ms == node.now_ms + 1_000, "by the clock as it is now"
    node.seconds += 1
    assert node.reason is None
    assert node.roles.paused_until_unix_ms is None


@pytest.mark.parametrize(
    ("ttl_ms", "step_ms", "left_ms"),
    [
        (5_000, 1_000, 4_000),
        (5_000, -31_536_000_000, 5_000),
        (5_000, 5_000, None),
        # Written by a version that did not keep the length.
        (None, -31_536_000_000, MAX_PAUSE_MS),
    ],
)
def test_a_pause_found_at_a_start_lasts_no_longer_than_it_was_to_last(
    bench: MakeBench, ttl_ms: int | None, step_ms: int, left_ms: int | None
) -> None:
    paused = replace(MASTER, paused_until_unix_ms=NOW_MS + 5_000, pause_ttl_ms=ttl_ms)
    node = bench(MASTER)
    node.now_ms += step_ms
    for start in (lambda: node.roles.exchanged(paused), lambda: node.restart(paused)):
        start()
        assert node.roles.paused_until_unix_ms == (None if left_ms is None else node.now_ms + left_ms)
        if left_ms is not None:
            node.seconds += left_ms / 1000
            assert node.reason is None


def test_a_fence_is_kept_until_its_epoch_is_named(bench: MakeBench) -> None:
    node = bench(MASTER)
    for epoch, is_enough in ((0, False), (1, True)):
        if is_enough:
            assert node.roles.fence(epoch, "why")["fenced_by"]["reason"] == "why"
        else:
            with pytest.raises(RequestError, match="below"):
                node.roles.fence(epoch, "why")
    reasons = [node.reason]
    assert node.on_disk == replace(MASTER, fence=Fence(1, "why", NOW_MS))
    with pytest.raises(RequestError, match="look again"):
        node.roles.unfence(2, 20)
    assert node.roles.unfence(1, 20) == {"fenced_by": None, "epoch": 1}
    assert [*reasons, node.reason] == ["fenced", None]
    assert node.on_disk == MASTER
    with pytest.raises(RequestError, match="not fenced"):
        node.roles.unfence(1, 20)


def test_lifting_a_fence_opens_the_epoch_that_was_due(bench: MakeBench) -> None:
    node = bench(replace(MASTER, fence=FENCE, epoch_due=True))
    assert node.roles.unfence(7, 20)["epoch"] == 2
    assert node.on_disk == replace(MASTER, history=ONE.opened(2, "me", 20))
    slave = bench(replace(SLAVE, fence=FENCE, epoch_due=True))
    assert slave.roles.unfence(7, 20)["epoch"] == 2
    assert slave.roles.node.history == THEIRS


def test_a_promotion_opens_the_next_epoch(bench: MakeBench) -> None:
    node = bench(replace(SLAVE, paused_until_unix_ms=NOW_MS + 9_000))
    assert node.roles.promote(20) == {
        "role": "master",
        "epoch": 3,
        "start_lsn": 21,
        "source": None,
        "cluster_id": "ours",
        "fenced_by": None,
        "paused_until": None,
    }
    assert node.reason is None
    assert node.on_disk == replace(
        SLAVE,
        role="master",
        source=None,
        is_runtime=True,
        former_sources=(DB1,),
        history=THEIRS.opened(3, "me", 20),
    )
    # Once more changes nothing.
    before = node.on_disk
    assert node.roles.promote(25) == {"role": "master", "epoch": 3}
    assert node.on_disk == before


def test_a_fenced_master_that_is_promoted_rules_above_its_fence(bench: MakeBench) -> None:
    node = bench(replace(MASTER, fence=FENCE))
    assert node.roles.promote(20)["epoch"] == 8
    assert node.reason is None


def test_half_a_rebuild_is_not_promoted(bench: MakeBench) -> None:
    node = bench(replace(SLAVE, must_rebuild=True))
    with pytest.raises(RequestError, match="not complete"):
        node.roles.promote(20)
    assert node.on_disk == replace(SLAVE, must_rebuild=True)


def test_following_is_kept_and_lifts_fence_and_pause(bench: MakeBench) -> None:
    known = (KnownReplica("c", "c:1", 5, 1),)
    node = bench(
        replace(
            MASTER,
            fence=FENCE,
            paused_until_unix_ms=NOW_MS + 1,
            former_sources=(DB1,),
            replicas=known,
        )
    )
    node.roles.follow(DB2, must_rebuild=True)
    assert node.reason == "role"
    assert node.on_disk == replace(
        MASTER, role="slave", source=DB2, is_runtime=True, must_rebuild=True, replicas=()
    )


def test_writes_are_held_while_a_role_is_being_decided(bench: MakeBench) -> None:
    node = bench(MASTER)
    with node.roles.held("This node is about to follow db2:8080"):
        reasons = [node.reason]
    assert [*reasons, node.reason] == ["role", None]


@pytest.mark.parametrize(
    ("node", "order"),
    [
        pytest.param(MASTER, lambda roles: roles.pause(5), id="pause"),
        pytest.param(MASTER, lambda roles: roles.fence(5, "why"), id="fence"),
        pytest.param(replace(MASTER, fence=FENCE), lambda roles: roles.unfence(7, 20), id="unfence"),
        pytest.param(SLAVE, lambda roles: roles.promote(20), id="promote"),
        pytest.param(MASTER, lambda roles: roles.follow(DB1, must_rebuild=False), id="follow"),
        pytest.param(SLAVE, lambda roles: roles.adopt("ours", ONE), id="adopt"),
    ],
)
def test_what_cannot_be_made_durable_does_not_count(
    bench: MakeBench, node: Node, order: Callable[[Roles], object]
) -> None:
    found = bench(node)
    reason = found.reason
    found.disk.is_full = True
    with pytest.raises(RequestError) as refusal:
        order(found.roles)
    assert refusal.value.code == ErrorCode.STORAGE_ERROR
    assert found.roles.node == node
    assert (found.on_disk, found.reason) == (node, reason)


# -- What others tell --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "number", "opener", "fence_epoch"),
    [
        pytest.param(MASTER, 0, None, None, id="an older one"),
        pytest.param(MASTER, 1, "me", None, id="its own"),
        pytest.param(MASTER, 1, None, None, id="its own number, of nobody said"),
        pytest.param(MASTER, 1, "", None, id="its own number, of no node"),
        pytest.param(MASTER, 1, "other", 1, id="its own number of another node"),
        pytest.param(MASTER, 2, "other", 2, id="a newer one"),
        pytest.param(MASTER, 2, None, 2, id="a newer one of nobody said"),
        pytest.param(SLAVE, 9, "other", None, id="a slave has nothing to stop"),
        pytest.param(replace(MASTER, fence=FENCE), 7, "other", 7, id="what it is fenced for"),
        pytest.param(replace(MASTER, fence=FENCE), 6, "other", 7, id="older than that"),
        pytest.param(replace(MASTER, fence=FENCE), 8, "other", 8, id="newer than that"),
    ],
)
def test_a_master_stops_at_an_epoch_that_is_not_below_its_own(
    bench: MakeBench, node: Node, number: int, opener: str | None, fence_epoch: int | None
) -> None:
    found = bench(node)
    found.roles.learn(number, opener)
    fence = found.roles.node.fence
    assert (fence.epoch if fence else None) == fence_epoch
    assert found.on_disk == found.roles.node
    if fence is not None and node.fence is None:
        assert (fence.node_id, fence.since_unix_ms, found.reason) == (opener, NOW_MS, "fenced")


def test_a_master_left_behind_stops_even_when_that_cannot_be_noted(bench: MakeBench) -> None:
    node = bench(MASTER)
    node.disk.is_full = True
    node.roles.learn(2, "other")
    assert (node.reason, node.on_disk) == ("fenced", MASTER)
    node.disk.is_full = False
    node.roles.pause(5)
    assert node.on_disk is not None
    assert node.on_disk.fence is not None


def test_the_file_is_written_for_news_only(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    node = bench(SLAVE)
    known = (KnownReplica("c", "c:1", 5, 1),)
    for _ in range(2):
        node.roles.adopt("ours", ONE)
        node.roles.remember_replicas(known)
        node.disk.is_full = True
    assert node.on_disk == replace(SLAVE, history=ONE, replicas=known)


def test_an_end_that_was_clean_is_told_from_any_other(bench: MakeBench) -> None:
    node = bench(MASTER)
    for is_synced, running in ((True, "synced"), (False, "unsynced")):
        node.roles.note_running(is_synced=is_synced)
        assert node.on_disk is not None
        assert node.on_disk.running == running
    node.roles.note_stopped(())
    assert node.on_disk == MASTER
