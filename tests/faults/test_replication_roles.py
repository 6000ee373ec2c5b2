"""What the histories brought to light, each as a case of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from faults.proxy import Link, Proxy
from harness import Server, free_port, request, until

DAY = 20260505
Start = Callable[..., Server]


def status(node: Server) -> dict[str, Any]:
    found: dict[str, Any] = node.ask("replication.status")
    return found


def write(node: Server, count: int, series: str = "a") -> None:
    with node.connect() as connection:
        for key in range(count):
            connection.ask("counter.increment", series=series, key=key, bucket=DAY)


def are_equal(*nodes: Server) -> bool:
    found = [node.ask("replication.checksum") for node in nodes]
    return all(each == found[0] for each in found)


def follow(node: Server, other: Server, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = node.ask("replication.follow", host="127.0.0.1", port=other.port, **fields)
    return found


@pytest.fixture
def proxy() -> Any:
    with Proxy() as found:
        yield found


def promoted_behind_a_cut(start: Start, name: str, link: Link, old: Server) -> Server:
    """Return a follower that was promoted while nobody could tell its master."""
    node = start(name, source=link.port)
    until(lambda: are_equal(node, old))
    link.set("cut")
    node.ask("replication.promote")
    write(node, 3, series=name)
    return node


@pytest.mark.parametrize("is_asker_older", [True, False])
def test_a_master_that_meets_a_newer_one_stops_whoever_asks(
    start: Start, proxy: Proxy, is_asker_older: bool
) -> None:
    old = start("a")
    write(old, 10)
    new = promoted_behind_a_cut(start, "b", proxy.link(lambda: old.port), old)
    write(old, 1)
    asker, asked = (old, new) if is_asker_older else (new, old)
    with asker.connect() as connection:
        code, message = connection.refuse("replication.follow", host="127.0.0.1", port=asked.port)
        assert code == "replication_error"
        assert ("is fenced" in message) == is_asker_older
    assert status(old)["fenced_by"]["node_id"] == status(new)["node_id"]
    assert status(new)["fenced_by"] is None
    write(new, 1)


def test_masters_of_the_same_number_both_stop_at_one_question(start: Start, proxy: Proxy) -> None:
    old = start("a")
    write(old, 10)
    nodes = [promoted_behind_a_cut(start, name, proxy.link(lambda: old.port), old) for name in "bc"]
    with nodes[0].connect() as connection:
        connection.refuse("replication.follow", host="127.0.0.1", port=nodes[1].port)
    for node, other in (nodes, reversed(nodes)):
        fence = status(node)["fenced_by"]
        assert (fence["epoch"], fence["node_id"]) == (2, status(other)["node_id"])


def test_a_master_that_was_a_slave_follows_again_without_a_rebuild(start: Start) -> None:
    one, two = start("a"), None
    two = start("b", source=one.port)
    for old, new in ((one, two), (two, one), (one, two)):
        write(old, 10)
        end = old.ask("replication.fence", epoch=status(old)["epoch"] + 1, reason="switchover")
        until(lambda new=new, lsn=end["wal_current_lsn"]: status(new)["wal_current_lsn"] == lsn)  # type: ignore[misc]
        new.ask("replication.promote")
        follow(old, new)
        until(lambda: are_equal(one, two))


def test_what_was_acknowledged_before_a_promotion_does_not_count_after_it(start: Start) -> None:
    node = start("a")
    write(node, 5)
    about = status(node)
    claims = {
        "node_id": "follower",
        "cluster_id": about["cluster_id"],
        "epoch": about["epoch"],
        "epoch_node_id": about["node_id"],
    }
    with node.connect() as connection:
        connection.ask("replication.entries", after_lsn=5, handshake=True, **claims)
        node.ask("replication.fence", epoch=2, reason="test")
        node.ask("replication.promote")
        # On its way while the node was promoted, from one that followed a branch which has ended.
        page = connection.ask("replication.entries", after_lsn=100, acked_lsn=100, wait_ms=30_000, **claims)
        assert page["epoch"] == 3
        write(node, 1)
        assert node.ask("replication.wait", lsn=6, acks=1, timeout_ms=100)["acks"] == 0


def test_followers_that_wait_learn_of_a_promotion_at_once(start: Start) -> None:
    node = start("a")
    with node.connect() as connection:
        connection.send(b'{"v":2,"op":"replication.entries","after_lsn":0,"node_id":"f","wait_ms":30000}\n')
        until(lambda: status(node)["replicas"])
        node.ask("replication.fence", epoch=2, reason="test")
        node.ask("replication.promote")
        # The connection's own patience ends before the 30 seconds do.
        assert connection.read()["response"]["epoch"] == 3


@pytest.mark.parametrize("is_synced", [True, False])
@pytest.mark.parametrize("op", ["replication.status", "replication.fence"])
def test_what_is_written_just_before_an_operation_reaches_followers_at_once(
    start: Start, op: str, is_synced: bool
) -> None:
    master = start("a", wal_fsync=is_synced)
    slave = start("b", source=master.port)
    write(master, 1)
    until(lambda: are_equal(master, slave))
    with master.connect() as connection:
        write_it = request("counter.increment", series="a", key=1, bucket=DAY)
        connection.send(write_it + request(op, **({"epoch": 2, "reason": "test"} if "fence" in op else {})))
        connection.read()
        assert connection.read()["response"]["wal_current_lsn"] == 2
    # Before the request that waits ends by itself, after 5 seconds.
    until(lambda: status(slave)["wal_current_lsn"] == 2, seconds=3)


def test_an_order_that_is_refused_or_changes_nothing_leaves_replicas_trusted(start: Start) -> None:
    master = start("a", sync_replicas=1, sync_timeout_ms=500)
    slave = start("b", source=master.port)
    until(lambda: status(master)["replicas"])
    write(master, 5)
    until(lambda: are_equal(master, slave))
    with master.connect() as connection:
        connection.refuse("replication.follow", host="127.0.0.1", port=free_port())
        connection.ask("tree.list")
        assert status(master)["sync_degraded"] is False
        connection.ask("replication.promote")
        connection.ask("tree.list")
        assert status(master)["sync_degraded"] is False


def test_who_waits_for_replicas_is_not_told_of_success_when_the_branch_is_given_up(
    start: Start, proxy: Proxy
) -> None:
    old = start("a", sync_replicas=1, sync_timeout_ms=60_000)
    link = proxy.link(lambda: old.port)
    new = start("b", source=link.port)
    until(lambda: status(old)["replicas"])
    write(old, 5)
    until(lambda: are_equal(old, new))
    link.set("cut")
    new.ask("replication.promote")
    write(new, 3, series="new")
    with old.connect() as connection:
        connection.send(b'{"v":2,"op":"counter.increment","series":"lost","key":1}\n')
        until(lambda: "lost" in (old.directory / "karma.wal").read_text())
        assert follow(old, new, rebuild=True)["lost_entries"] == 1
        assert connection.is_ended()
    until(lambda: are_equal(old, new))


def test_a_recovery_checkpoint_of_a_branch_that_ended_goes_with_it(start: Start, proxy: Proxy) -> None:
    old = start("a")
    link = proxy.link(lambda: old.port)
    new = start("b", source=link.port)
    below = start("c", source=old.port)
    write(old, 5)
    old.ask("recovery.checkpoint", source="kept", offset=1)
    until(lambda: are_equal(old, new, below))
    link.set("cut")
    old.ask("recovery.checkpoint", source="lost", offset=1)
    old.ask("recovery.checkpoint", source="kept", offset=2)
    until(lambda: are_equal(old, below))
    new.ask("replication.promote")
    # No entry tells the two histories apart: it may follow as it is.
    follow(old, new)
    until(lambda: are_equal(old, new, below))
    assert [mark["offset"] for mark in below.ask("recovery.status")["checkpoints"]] == ["1"]
    # Later ones still arrive, on the whole way down.
    for offset in range(2, 5):
        new.ask("recovery.checkpoint", source="kept", offset=offset)
        until(lambda: are_equal(old, new, below))


def test_entries_that_come_while_another_source_is_asked_are_compared_with_it_too(
    start: Start, proxy: Proxy
) -> None:
    old = start("a")
    write(old, 10)
    slave = start("c", source=old.port)
    new = promoted_behind_a_cut(start, "b", proxy.link(lambda: old.port), old)
    until(lambda: are_equal(slave, old))
    slow = proxy.link(lambda: new.port)
    slow.set("open", delay_ms=300)
    with slave.connect() as connection:
        connection.send(request("replication.follow", host="127.0.0.1", port=slow.port))
        # What is written now, the slave receives before the new source has answered it.
        time.sleep(0.1)
        write(old, 1, series="late")
        reply = json.loads(connection.read_line())
    assert reply["error_code"] == "replication_error"
    assert reply["error_detail"] == {"reason": "diverged", "diverged_at_lsn": 11, "lost_entries": 1}
    until(lambda: status(slave)["replication_state"] == "following")
    assert status(slave)["source"].endswith(f":{old.port}")
    until(lambda: are_equal(slave, old))
