"""Nodes that follow each other: real processes, promoted, fenced, killed, left behind, and rebuilt."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from handmade import Node, add
from harness import Server, counters_of, free_port, until

from karma.core.epochs import Epoch, History
from karma.storage import install, node_file
from karma.storage.disk import Disk
from karma_client.fleet import problems_of
from karmactl.commands.check import look
from karmactl.fleet import NodeState

DAY = 20260505


def status(node: Server) -> dict[str, Any]:
    found: dict[str, Any] = node.ask("replication.status")
    return found


def caught_up(slave: Server, master: Server) -> None:
    """Wait until a slave has all that a master has, and compare everything they hold."""
    lsn = status(master)["wal_current_lsn"]
    until(
        lambda: status(slave)["wal_current_lsn"] == lsn and status(slave)["replication_state"] == "following"
    )
    # Recovery checkpoints come beside the entries, and may come a moment later.
    until(lambda: slave.ask("replication.checksum") == master.ask("replication.checksum"))


def write(node: Server, count: int = 10, series: str = "a") -> None:
    with node.connect() as connection:
        for key in range(count):
            connection.ask("counter.increment", series=series, key=key, bucket=DAY)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`start("b", of=a)` starts a node, a slave if it has a source. Ports stay the same over restarts."""
    nodes: list[Server] = []

    def start_node(name: str, of: Server | None = None, **options: Any) -> Server:
        options.setdefault("port", free_port())
        if of is not None:
            options |= {
                "role": "slave",
                "replication_source_host": "127.0.0.1",
                "replication_source_port": of.port,
            }
        nodes.append(Server(tmp_path / name, **options))
        return nodes[-1]

    yield start_node
    for node in nodes:
        node.kill()


Start = Callable[..., Server]


# -- Following -------------------------------------------------------------------------------------------


def test_a_slave_is_filled_once_it_has_what_its_source_had(start: Start) -> None:
    master = start("a")
    slave = start("b", of=master)
    until(lambda: status(slave)["replication_state"] == "following")
    # Nothing is all that there is.
    assert (status(master)["filled"], status(slave)["filled"]) == (True, True)
    write(master)
    caught_up(slave, master)
    master.kill()
    slave.kill()
    slave.restart()
    assert status(slave)["filled"]
    late = start("c", of=master)
    until(lambda: status(late)["replication_poll_error_count"])
    assert (status(late)["filled"], status(late)["replication_lag_entries"]) == (False, 0)
    master.restart()
    caught_up(late, master)
    assert status(late)["filled"]


def test_a_slave_made_by_copying_a_slave_is_refused_until_it_has_an_id_of_its_own(
    start: Start, tmp_path: Path
) -> None:
    master = start("a", sync_replicas=2, sync_timeout_ms=60_000)
    slave = start("b", of=master)
    until(lambda: status(slave)["replication_state"] == "following")
    slave.stop()
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    slave.restart()
    until(lambda: status(slave)["replication_state"] == "following")
    copy = start("c", of=master)
    until(lambda: status(copy)["replication_state"] == "refused")
    assert "run karma new-id" in status(copy)["replication_reason"]
    (twin,) = status(master)["duplicate_node_ids"]
    assert twin["node_id"] == status(slave)["node_id"] == status(copy)["node_id"]
    assert twin["addresses"] == [f"127.0.0.1:{slave.port}", f"127.0.0.1:{copy.port}"]
    assert len(status(master)["replicas"]) == 1
    node = NodeState(f"127.0.0.1:{master.port}", {"status": "ok"}, status(master), {})
    assert any("karma new-id" in problem for problem in problems_of(node))
    assert "node_id" in {finding.name for finding in look(node, defaultdict(lambda: None))}
    copy.stop()
    command = [sys.executable, "-m", "karma.app", "new-id", f"--directory={tmp_path / 'c'}", "--output=json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert report["old_node_id"] == twin["node_id"]
    copy.restart()
    until(lambda: status(copy)["replication_state"] == "following")
    assert status(copy)["node_id"] == report["node_id"] != twin["node_id"]
    # Both count.
    write(master)
    assert not status(master)["sync_degraded"]
    caught_up(copy, master)


def test_a_copy_of_the_master_does_not_follow_it(start: Start, tmp_path: Path) -> None:
    master = start("a")
    write(master)
    master.stop()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    master.restart()
    copy = start("b", of=master)
    until(lambda: status(copy)["replication_state"] == "refused")
    assert "run karma new-id" in status(copy)["replication_reason"]
    copy.stop()
    subprocess.run(
        [sys.executable, "-m", "karma.app", "new-id", "-d", str(tmp_path / "b")],
        check=True,
        capture_output=True,
    )
    copy.restart()
    caught_up(copy, master)


def test_a_slave_that_comes_back_at_another_port_is_no_copy(start: Start) -> None:
    master = start("a")
    slave = start("b", of=master)
    until(lambda: status(slave)["replication_state"] == "following")
    slave.kill()
    moved = start("b", of=master)
    until(lambda: status(moved)["replication_state"] == "following")
    assert status(master)["duplicate_node_ids"] == []


def test_a_slave_has_what_its_master_has(start: Start) -> None:
    master = start("a")
    with master.connect() as connection:
        connection.ask("series.batch_add", series="a", items=[[1, DAY, 3], [2, DAY, 4]])
        connection.ask("series.batch_set", series="a", items=[[3, DAY, 2**64 - 1]])
        connection.ask("counter.increment", series="b", key=1, bucket=DAY, idempotency_key="once")
        connection.ask("limit.consume", series="c", key=1, bucket=DAY, limit=5, idempotency_key="twice")
        connection.ask("ingest.begin", stream_id="open", mode="replace_series")
        connection.ask("ingest.chunk", stream_id="open", series="d", chunk_seq=1, items=[[1, DAY, 1]])
        connection.ask("recovery.checkpoint", source="pipeline", offset="page-7")
        connection.ask("tree.create", series="empty")
        connection.ask("tree.create", series="gone")
        connection.ask("tree.drop", series="gone")
    slave = start("b", of=master)
    caught_up(slave, master)
    with slave.connect() as connection:
        assert connection.ask("tree.list") == ["a", "b", "c", "empty"]
        assert connection.ask("recovery.status")["checkpoints"][0]["offset"] == "page-7"
        code, message = connection.refuse("counter.increment", series="a", key=1)
        assert (code, "slave" in message) == ("forbidden", True)
    # A later checkpoint arrives by itself, without any entry beside it.
    master.ask("recovery.checkpoint", source="pipeline", offset="page-8")
    until(lambda: slave.ask("recovery.status")["checkpoints"][0]["offset"] == "page-8")
    # What was open goes on when the slave is promoted.
    slave.ask("replication.promote")
    assert slave.ask("ingest.commit", stream_id="open")["status"] == "committed"
    retry = {"series": "b", "key": 1, "bucket": DAY, "idempotency_key": "once"}
    with slave.connect() as connection:
        assert connection.call("counter.increment", **retry)["idempotent"] is True


def test_a_refusal_names_the_master(start: Start) -> None:
    master = start("a")
    slave = start("b", of=master)
    below = start("c", of=slave)
    until(lambda: len(status(below)["path"]) == 3)
    for node in (slave, below):
        with node.connect() as connection:
            detail = connection.call("tree.create", series="x")["error_detail"]
        assert detail["reason"] == "role"
        assert detail["master"] == f"127.0.0.1:{master.port}"


def test_a_slave_goes_on_where_it_was_after_a_kill(start: Start) -> None:
    master = start("a")
    slave = start("b", of=master)
    write(master, 50)
    caught_up(slave, master)
    slave.kill()
    write(master, 50)
    slave.restart()
    caught_up(slave, master)
    assert status(slave)["replication_bootstrap_attempt_count"] == 0
    assert slave.ask("system.stats")["replication_entries_applied"] == 50


def test_followers_of_followers_have_it_too(start: Start) -> None:
    master = start("a")
    slave = start("b", of=master)
    below = start("c", of=slave)
    write(master, 20)
    master.ask("recovery.checkpoint", source="pipeline", offset=1)
    caught_up(slave, master)
    caught_up(below, master)
    until(lambda: below.ask("recovery.status")["checkpoint_count"] == 1)
    assert status(below)["path"] == [status(node)["node_id"] for node in (master, slave, below)]


def test_a_slave_bootstraps_where_the_log_is_gone(start: Start) -> None:
    master = start("a", wal_keep_bytes=0)
    write(master, 30)
    with master.connect() as connection:
        connection.ask("ingest.begin", stream_id="open", mode="replace_series")
        connection.ask("ingest.chunk", stream_id="open", series="staged", chunk_seq=1, items=[[1, DAY, 1]])
        connection.ask("tree.create", series="with/slash")
        connection.ask("counter.increment", series="a", key=1, bucket=DAY, idempotency_key="known")
        connection.ask("recovery.checkpoint", source="pipeline", offset="page-1")
    master.ask("snapshot.create_all")
    write(master, 30, series="b")
    # A newer snapshot of one series alone: what lies between the two must reach the others.
    master.ask("snapshot.create", series="b")
    write(master, 5)
    slave = start("b", of=master)
    caught_up(slave, master)
    until(lambda: slave.ask("recovery.status")["checkpoint_count"] == 1)
    assert status(slave)["replication_bootstrap_success_count"] == 1
    # It is a data directory like any other.
    slave.kill()
    slave.restart()
    caught_up(slave, master)
    slave.ask("replication.promote")
    assert slave.ask("ingest.commit", stream_id="open")["status"] == "committed"
    assert slave.ask("snapshot.verify")["status"] == "ok"


def test_a_slave_left_far_behind_bootstraps_again_and_keeps_what_it_had(start: Start) -> None:
    master = start("a", wal_keep_bytes=0)
    write(master)
    slave = start("b", of=master)
    caught_up(slave, master)
    slave.kill()
    write(master, 100)
    master.ask("snapshot.create_all")
    slave.restart()
    caught_up(slave, master)
    assert list(slave.directory.glob("discarded-*/karma.wal*"))


def test_a_known_slave_meets_no_gap_because_of_a_snapshot(start: Start) -> None:
    master = start("a", wal_segment_bytes=2000)
    slave = start("b", of=master)
    write(master, 50)
    caught_up(slave, master)
    slave.kill()
    write(master, 50)
    master.ask("snapshot.create_all")
    # Not even a restart of the master makes it forget whom it keeps log for.
    assert master.stop() == 0
    master.restart()
    slave.restart()
    caught_up(slave, master)
    assert status(slave)["replication_bootstrap_attempt_count"] == 0


def test_a_kill_does_not_make_a_master_forget_for_whom_it_keeps_log(start: Start) -> None:
    master = start("a")
    slave = start("b", of=master)
    caught_up(slave, master)
    # A new follower is noted a moment after its first request, so that requests alone write no file.
    follower = status(slave)["node_id"]
    until(lambda: follower in (master.directory / "karma.node.json").read_text())
    slave.kill()
    write(master, 50)
    master.kill()
    master.restart()
    master.ask("snapshot.create_all")
    slave.restart()
    caught_up(slave, master)
    assert status(slave)["replication_bootstrap_attempt_count"] == 0


def exchanging(directory: Path) -> None:
    """Make the directory of a slave that was killed between its old data and its source's."""
    old = Node(directory)
    old.write(add("old", 1))
    old.wal.close()
    node = node_file.Node("me", "ours", History((Epoch(1, "a", 1),)), role="slave", must_rebuild=True)
    node_file.save(Disk(), directory, node)
    new = Node(directory / install.INCOMING_NAME)
    new.write(add("new", 1), add("new", 2))
    new.wal.close()
    history = History((Epoch(1, "a", 1), Epoch(2, "b", 2)))
    node_file.save(Disk(), new.directory, replace(node, history=history, must_rebuild=False))
    install.commit(Disk(), directory, "discarded-1")


def test_a_start_finishes_an_exchange_with_the_epochs_of_the_new_data(start: Start, tmp_path: Path) -> None:
    exchanging(tmp_path / "a")
    node = start("a", role="slave")
    found = status(node)
    assert (found["wal_current_lsn"], found["epoch"], found["must_rebuild"]) == (2, 2, False)
    assert node.ask("tree.list") == ["new"]
    assert (tmp_path / "a" / "discarded-1" / "karma.wal").stat().st_size
    node.kill()
    node.restart()
    assert status(node)["epoch"] == 2


def test_discarded_data_do_not_come_back_by_an_exchange(start: Start, tmp_path: Path) -> None:
    exchanging(tmp_path / "a")
    node = start("a", role="slave", restore=False, discard_data=True)
    assert (status(node)["wal_current_lsn"], node.ask("tree.list")) == (0, [])
    assert len(list((tmp_path / "a").glob("discarded-*/karma.wal"))) == 2


def test_lag_is_told_on_both_sides(start: Start) -> None:
    master = start("a")
    slave = start("b", of=master, http_port=free_port(), ready_max_lag_entries=5)
    write(master, 10)
    caught_up(slave, master)
    (replica,) = status(master)["replicas"]
    assert replica["node_id"] == status(slave)["node_id"]
    assert replica["address"] == f"127.0.0.1:{slave.port}"
    assert (replica["lag_entries"], replica["lag_bytes"], replica["lag_ms"]) == (0, 0, 0)
    assert replica["is_connected"] is True
    slave.kill()
    write(master, 10)
    (replica,) = status(master)["replicas"]
    assert replica["lag_entries"] == 10
    assert replica["lag_bytes"] > 0
    assert replica["lag_ms"] > 0
    metrics = master.ask("system.metrics")
    assert f'karma_replica_lag_entries{{node_id="{replica["node_id"]}"' in metrics


def test_wait_counts_the_followers_that_have_it(start: Start) -> None:
    master = start("a")
    slave = start("b", of=master)
    caught_up(slave, master)
    write(master)
    assert master.ask("replication.wait", acks=1, timeout_ms=10_000) == {"acks": 1, "lsn": 10}
    assert master.ask("replication.wait", acks=2, timeout_ms=10) == {"acks": 1, "lsn": 10}
    assert master.ask("replication.wait", lsn=99, acks=1, timeout_ms=10) == {"acks": 0, "lsn": 99}


def test_a_tail_is_no_replica(start: Start) -> None:
    master = start("a")
    write(master, 3)
    with master.connect() as connection:
        page = connection.ask("replication.entries", after_lsn=0, wait_ms=0)
        assert [entry["lsn"] for entry in page["entries"]] == [1, 2, 3]
        assert all("ts" in entry and "crc" in entry for entry in page["entries"])
        started = time.monotonic()
        assert connection.ask("replication.entries", after_lsn=3, wait_ms=200)["count"] == 0
        assert time.monotonic() - started >= 0.2
        plain = connection.ask("replication.entries", after_lsn=0, limit=1)
        assert (plain["entries"][0].keys(), "epoch" in plain) == ({"lsn", "entry"}, False)
    assert status(master)["replicas"] == []


# -- Roles -------------------------------------------------------------------------------------------------


def test_a_planned_switchover_loses_nothing_and_lsns_go_on(start: Start) -> None:
    old = start("a")
    new = start("b", of=old)
    write(old, 20)
    fenced = old.ask("replication.fence", epoch=2, reason="switchover to b")
    until(lambda: status(new)["wal_current_lsn"] == fenced["wal_current_lsn"])
    promoted = new.ask("replication.promote")
    assert (promoted["epoch"], promoted["start_lsn"]) == (2, 21)
    write(new, 5)
    assert old.ask("replication.follow", host="127.0.0.1", port=new.port)["fenced_by"] is None
    caught_up(old, new)
    assert status(new)["wal_current_lsn"] == 25
    assert status(old)["cluster_id"] == status(new)["cluster_id"]
    assert status(old)["epochs"] == status(new)["epochs"]


def test_roles_changed_at_run_time_win_over_the_command_line(start: Start) -> None:
    old = start("a")
    new = start("b", of=old)
    write(old)
    caught_up(new, old)
    new.ask("replication.promote")
    until(lambda: old.ask("system.health")["status"] == "fenced")
    old.ask("replication.follow", host="127.0.0.1", port=new.port)
    for node, role in ((new, "master"), (old, "slave")):
        node.kill()
        node.restart()
        assert status(node)["role"] == role
        assert "force-role" in node.wait_for_event("role_kept")["message"]
    caught_up(old, new)
    # Forced, the command line counts again; two masters would be the outcome, and one stops the other.
    old.kill()
    old.restart(force_role=True)
    assert "force-role" in old.wait_for_event("role_forced")["message"]
    assert status(old)["epoch"] == 3
    until(lambda: new.ask("system.health")["status"] == "fenced")


def test_the_old_master_comes_back_and_is_stopped_and_rebuilt(start: Start) -> None:
    old = start("a")
    new = start("b", of=old)
    write(old, 20)
    caught_up(new, old)
    new.kill()
    write(old, 7, series="lost")
    old.kill()
    new.restart()
    new.ask("replication.promote")
    write(new, 5, series="new")
    old.restart()
    fence = until(lambda: old.ask("system.health").get("fenced_by"))
    assert (fence["epoch"], fence["node_id"]) == (2, status(new)["node_id"])
    with old.connect() as connection:
        reply = connection.call("tree.create", series="x")
        assert (reply["error_code"], reply["error_detail"]["reason"]) == ("forbidden", "fenced")
        assert status(new)["node_id"] in reply["response"]
        code, message = connection.refuse("replication.follow", host="127.0.0.1", port=new.port)
        assert (code, "diverged_at_lsn 21" in message) == ("replication_error", True)
        assert status(old)["role"] == "master"
        rebuilt = connection.ask("replication.follow", host="127.0.0.1", port=new.port, rebuild=True)
    assert (rebuilt["lost_entries"], rebuilt["diverged_at_lsn"]) == (7, 21)
    caught_up(old, new)
    assert "lost" not in old.ask("tree.list")
    assert list(old.directory.glob("discarded-*/karma.wal*"))
    old.kill()
    old.restart()
    caught_up(old, new)


def test_a_fence_stays_until_it_is_lifted(start: Start) -> None:
    node = start("a")
    write(node)
    with node.connect() as connection:
        assert connection.refuse("replication.fence", epoch=0, reason="old")[0] == "validation_error"
        connection.ask("replication.fence", epoch=7, reason="failover to b")
    node.kill()
    node.restart()
    with node.connect() as connection:
        code, message = connection.refuse("counter.increment", series="a", key=1)
        assert (code, "failover to b" in message) == ("forbidden", True)
        assert connection.ask("counter.sum", series="a", key=1) == 1
        assert 'karma_fenced{by="operator",epoch="7",since_unix_ms="' in connection.ask("system.metrics")
        assert connection.refuse("replication.unfence", epoch=6)[0] == "validation_error"
        connection.ask("replication.unfence", epoch=7)
        connection.ask("counter.increment", series="a", key=1)


def test_a_pause_survives_a_restart_and_ends_by_itself(start: Start) -> None:
    node = start("a")
    write(node)
    node.ask("replication.pause", ttl_ms=3_000)
    node.kill()
    node.restart()
    with node.connect() as connection:
        reply = connection.call("counter.increment", series="a", key=1)
        assert reply["error_detail"]["reason"] == "paused"
        assert 0 < reply["error_detail"]["retry_after_ms"] <= 3_000
        until(lambda: connection.call("counter.increment", series="a", key=1)["success"])
        assert status(node)["paused_until"] is None
        connection.ask("replication.pause", ttl_ms=60_000)
        connection.ask("replication.resume")
        connection.ask("counter.increment", series="a", key=1)


def test_only_the_run_with_the_old_master_s_fence_promotes(start: Start) -> None:
    old = start("a")
    one, two = start("b", of=old), start("c", of=old)
    write(old)
    caught_up(one, old)
    caught_up(two, old)
    with one.connect() as b, two.connect() as c, old.connect() as a:
        early = b.call("replication.promote", run="to-b", epoch=2)
        assert (early["error_code"], early["error_detail"]["reason"]) == ("forbidden", "other_run")
        a.ask("replication.fence", epoch=2, reason="to b", run="to-b")
        late = a.call("replication.fence", epoch=2, reason="to c", run="to-c")
        assert (late["error_code"], late["error_detail"]["run"]) == ("forbidden", "to-b")
        assert c.call("replication.promote", run="to-c", epoch=2)["error_detail"]["run"] == "to-b"
        assert c.refuse("replication.promote", run="to-b", epoch=3)[0] == "validation_error"
        assert b.ask("replication.promote", run="to-b", epoch=2)["epoch"] == 2
        # Undoing another run's fence would bring a second master back.
        assert a.refuse("replication.unfence", epoch=2, run="to-c")[0] == "forbidden"
    assert status(two)["role"] == "slave"
    # A dead master guards nothing: there only a majority of leases does.
    old.kill()
    assert two.ask("replication.promote", run="to-c", epoch=2)["epoch"] == 2


def test_a_lease_lives_through_a_kill_and_a_rebuild(start: Start) -> None:
    old = start("a")
    new = start("b", of=old)
    write(old)
    caught_up(new, old)
    about = {"cluster_id": status(old)["cluster_id"], "run": "one", "holder": "ann"}
    for node in (old, new):
        assert node.ask("replication.lease", do="take", ttl_ms=600_000, **about)["number"] == 1
    new.kill()
    new.restart()
    with new.connect() as connection:
        assert connection.ask("replication.status")["lease"]["run"] == "one"
        source = {"host": "127.0.0.1", "port": old.port}
        reply = connection.call("replication.follow", **source, rebuild=True, run="two")
        assert reply["error_detail"]["reason"] == "leased"
        connection.ask("replication.follow", **source, rebuild=True, run="one", lease=1)
    caught_up(new, old)
    assert status(new)["lease"]["run"] == "one"
    assert new.ask("replication.lease", do="release", **about)["number"] == 1


def test_two_promotions_stop_each_other_at_first_contact(start: Start) -> None:
    first = start("a")
    one, two = start("b", of=first), start("c", of=first)
    write(first)
    caught_up(one, first)
    caught_up(two, first)
    first.kill()
    assert one.ask("replication.promote")["epoch"] == 2
    assert two.ask("replication.promote")["epoch"] == 2
    write(one, 4, series="one")
    write(two, 6, series="two")
    with one.connect() as connection:
        # What a node of the other half says when it comes across this one.
        about = status(two)
        contact = {"cluster_id": about["cluster_id"], "epoch": 2, "epoch_node_id": about["node_id"]}
        connection.call("replication.entries", after_lsn=0, **contact)
        assert connection.call("tree.create", series="x")["error_detail"]["reason"] == "fenced"
    with two.connect() as connection:
        code, message = connection.refuse("replication.follow", host="127.0.0.1", port=one.port)
        assert (code, "diverged_at_lsn 11" in message) == ("replication_error", True)
    # One is chosen: it opens a number of its own, and the other one gives way.
    assert one.ask("replication.promote")["epoch"] == 3
    write(one, 3, series="chosen")
    rebuilt = two.ask("replication.follow", host="127.0.0.1", port=one.port, rebuild=True)
    assert rebuilt["lost_entries"] == 6
    caught_up(two, one)


def test_a_reader_s_word_about_epochs_does_not_count(start: Start) -> None:
    node = start("a", auth_token="write", read_auth_token="read", replication_token="fleet")
    cluster_id = node.ask("replication.status", token="read")["cluster_id"]
    with node.connect() as connection:
        for token, cluster in (("read", cluster_id), ("write", "another"), ("fleet", None)):
            claims = {"epoch": 9, "epoch_node_id": "x"} | ({"cluster_id": cluster} if cluster else {})
            connection.call("replication.entries", after_lsn=0, token=token, **claims)
            connection.ask("tree.create", series="still", token="write")
        connection.call("replication.entries", after_lsn=0, token="fleet", cluster_id=cluster_id, epoch=9)
        reply = connection.call("tree.create", series="no", token="write")
        assert reply["error_detail"]["reason"] == "fenced"
        assert reply["error_detail"]["fenced_by"]["epoch"] == 9


def test_a_slave_shows_its_token(start: Start) -> None:
    master = start("a", auth_token="secret-w", read_auth_token="secret-r")
    with master.connect() as connection:
        connection.ask("tree.create", series="a", token="secret-w")
    wrong = start("b", of=master, replication_token="secret-x")
    told = until(lambda: status(wrong)["replication_reason"])
    assert "token" in told
    assert "secret" not in wrong.output.read_text() + told
    right = start("c", of=master, replication_token="secret-r")
    until(lambda: right.ask("tree.list") == ["a"])


def test_what_cannot_be_followed_is_refused_and_changes_nothing(start: Start, tmp_path: Path) -> None:
    node, stranger = start("a"), start("b")
    below = start("c", of=node)
    write(node)
    write(stranger)
    caught_up(below, node)
    nobody = free_port()
    with node.connect() as connection:
        for port, word in (
            (node.port, "itself"),
            (below.port, "follows this node"),
            (stranger.port, "cluster"),
            (nobody, "reached"),
        ):
            code, message = connection.refuse("replication.follow", host="127.0.0.1", port=port)
            assert (code, word in message) == ("replication_error", True), message
        assert connection.ask("replication.status")["role"] == "master"
        connection.ask("counter.increment", series="a", key=1)


# -- Semi-synchronous writes ---------------------------------------------------------------------------------


def test_a_write_waits_for_its_replicas_and_says_when_it_cannot(start: Start) -> None:
    master = start("a", sync_replicas=1, sync_timeout_ms=2_000)
    slave = start("b", of=master)
    until(lambda: status(master)["replicas"])
    for _ in range(20):
        write(master, 1)
        assert status(slave)["wal_current_lsn"] == status(master)["wal_current_lsn"]
    assert status(master)["sync_degraded"] is False
    slave.kill()
    write(master, 1)
    assert status(master)["sync_degraded"] is True
    assert "karma_sync_degraded 1" in master.ask("system.metrics")
    assert master.ask("system.health")["sync_degraded"] is True
    started = time.monotonic()
    write(master, 5)
    assert time.monotonic() - started < 2.0, "a degraded node waits for nobody"
    slave.restart()
    caught_up(slave, master)
    until(lambda: not status(master)["sync_degraded"])
    caught_up(slave, master)


# -- The original's way --------------------------------------------------------------------------------------


def test_a_slave_of_karma_1_0_can_follow(start: Start) -> None:
    master = start("a")
    write(master, 25)
    lsn, seen = 0, 0
    with master.connect() as connection:
        while (page := connection.ask("replication.entries", after_lsn=lsn, limit=10))["count"]:
            assert set(page) == {
                *("after_lsn", "limit", "byte_limit", "entries_bytes", "truncated_by_bytes", "count"),
                *("source_lsn", "entries", "next_lsn"),
            }
            seen += page["count"]
            lsn = page["next_lsn"]
    assert (lsn, seen) == (25, 25)


def test_the_directory_of_an_old_slave_becomes_a_master_s(start: Start, tmp_path: Path) -> None:
    """A role changed on the command line is a promotion, too."""
    master = start("a")
    slave = start("b", of=master)
    write(master)
    caught_up(slave, master)
    master.kill()
    assert slave.stop() == 0
    slave.restart(role="master", replication_source_host=None, replication_source_port=None)
    assert slave.wait_for_event("promoted")
    assert (status(slave)["epoch"], status(slave)["wal_current_lsn"]) == (2, 10)
    with slave.connect() as connection:
        assert counters_of(connection)["a"]["3"] == {str(DAY): 1}


def test_an_unclean_end_without_fsync_opens_an_epoch(start: Start) -> None:
    node = start("a", wal_fsync=False)
    write(node)
    node.kill()
    node.restart()
    assert status(node)["epoch"] == 2
    assert status(node)["epochs"][-1]["start_lsn"] == 11
    assert node.stop() == 0
    node.restart()
    assert status(node)["epoch"] == 2
