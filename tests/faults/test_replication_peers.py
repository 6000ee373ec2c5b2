"""Sources, links and disks that fail a follower: it says clearly what is wrong, takes in nothing wrong,
goes on serving what it has, and follows again when all is well.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.peers import Answer, FakeMaster, Original, Peer, entry, failure, success
from faults.proxy import Proxy
from harness import FIXTURES, Server, counters_of, free_port, until

DAY = 20260505
FAR_BEHIND = {"wal_keep_bytes": 0}
Start = Callable[..., Server]


def status(node: Server) -> dict[str, Any]:
    found: dict[str, Any] = node.ask("replication.status")
    return found


def state_of(node: Server) -> tuple[str, str]:
    """Return what a follower says of its source."""
    about = status(node)
    return about["replication_state"], about["replication_reason"] or ""


def write(node: Server, count: int, series: str = "a") -> None:
    with node.connect() as connection:
        for key in range(count):
            connection.ask("counter.increment", series=series, key=key, bucket=DAY)


def fill(node: Server, keys: int, series: str = "large") -> None:
    """Store so many keys, about 17 bytes of a snapshot each."""
    with node.connect() as connection:
        for first in range(0, keys, 5_000):
            items = [[key, DAY, key + 1] for key in range(first, min(first + 5_000, keys))]
            connection.ask("series.batch_add", series=series, items=items)


def has_all_of(node: Server, source: Server) -> bool:
    theirs = source.ask("replication.checksum")
    return bool(node.ask("replication.checksum") == theirs)


def increment(lsn: int, key: int = 1) -> dict[str, Any]:
    body = {"v": 2, "op": "counter.increment", "series": "a", "key": key, "bucket": DAY, "value": 1}
    return entry(lsn, body)


# -- What answers is no Karma, or none of this version ---------------------------------------------------

STRANGERS: dict[str, tuple[Answer, str, str]] = {
    "an HTTP server": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "refused", "no Karma"),
    "garbage": (b"\x00\xff\xfe\x16\x03 garbage\n", "refused", "no Karma"),
    "a list": (b"[1,2,3]\n", "refused", "no Karma"),
    "deep nesting": (b"[" * 100_000 + b"\n", "refused", "no Karma"),
    "half a reply": (b'{"protocol_version":2,"succ', "connecting", "in the middle of a reply"),
    "an end": (b"", "connecting", "closed the connection"),
    "a line without end": (b"x" * (65 << 20), "connecting", "longer than"),
    "an older protocol": (b'{"success":true,"response":"pong"}\n', "refused", "no Karma"),
    "a newer protocol": (b'{"protocol_version":3,"success":true}\n', "refused", "no Karma"),
    "a reply without fields": (success({}), "refused", "another version"),
    "a reply of text": (success("pong"), "refused", "none of this protocol"),
    "epochs of another form": (
        success({"source_lsn": 1, "node_id": "x", "epochs": [{"term": 1}], "path": []}),
        "refused",
        "another version",
    ),
    "an unknown operation": (failure("unknown_command", "Unknown command"), "refused", "refuses"),
    "a wrong token": (failure("unauthorized", "Token is wrong"), "refused", "token"),
    "a fault of its own": (failure("internal_error", "Oops"), "connecting", "internal_error"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_source_that_is_none_is_named_and_harms_nothing(start: Start, kind: str) -> None:
    answer, state, words = STRANGERS[kind]
    master, slave = start("a"), None
    write(master, 5)
    with Peer(lambda _: answer) as peer:
        with master.connect() as connection:
            code, message = connection.refuse("replication.follow", host="127.0.0.1", port=peer.port)
            assert (code, "nothing has changed" in message, words in message) == (
                "replication_error",
                True,
                True,
            ), message
            connection.ask("counter.increment", series="a", key=1)
        slave = start("b", source=peer.port)
        until(lambda: words in state_of(slave)[1], why=lambda: state_of(slave))
        assert state_of(slave)[0] == state
        assert len(peer.requests) < 30, "a failing source is not asked without a pause"
    assert slave.ask("tree.list") == []
    slave.ask("replication.follow", host="127.0.0.1", port=master.port)
    until(lambda: has_all_of(slave, master))


def test_a_source_that_keeps_silent_holds_up_nobody(start: Start) -> None:
    master = start("a")
    write(master, 5)
    with Peer(lambda _: None) as peer:
        slave = start("b", source=peer.port)
        until(lambda: peer.requests)
        assert state_of(slave)[0] == "connecting"
        slave.ask("replication.follow", host="127.0.0.1", port=master.port)
        until(lambda: has_all_of(slave, master))
        slave.ask("replication.promote")
        write(slave, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid"])
def test_a_source_that_is_not_there(start: Start, host: str) -> None:
    slave = start("a", source=free_port(), replication_source_host=host)
    until(lambda: "cannot be reached" in state_of(slave)[1], why=lambda: state_of(slave))
    assert state_of(slave)[0] == "connecting"
    slave.ask("replication.promote")
    write(slave, 1)


def test_nodes_that_follow_each_other_or_themselves_say_so(start: Start) -> None:
    ports = [free_port(), free_port()]
    one, other = (start(name, source=ports[1 - at], port=ports[at]) for at, name in enumerate("ab"))
    until(lambda: any("follows this node" in state_of(node)[1] for node in (one, other)))
    narcissus = free_port()
    lonely = start("c", source=narcissus, port=narcissus)
    until(lambda: "itself" in state_of(lonely)[1])
    assert state_of(lonely)[0] == "refused"


# -- A source whose pages are wrong ----------------------------------------------------------------------


def _without(found: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != name}


PAGES: dict[str, tuple[list[Any], str, str, int]] = {
    # The entries of the first page, the state, words of its reason, and the LSN that is right to reach.
    "a wrong crc": ([increment(1) | {"crc": "00000000"}], "connecting", "checksum of entry 1", 0),
    "a crc that is none": ([increment(1) | {"crc": "zebra"}], "connecting", "cannot be used", 0),
    "an entry changed on the way": (
        [increment(1) | {"entry": increment(1, key=2)["entry"]}],
        "connecting",
        "checksum of entry 1",
        0,
    ),
    "no LSN": ([_without(increment(1), "lsn")], "connecting", "cannot be used", 0),
    "a gap": ([increment(1), increment(3)], "connecting", "entry 2", 0),
    "an order of its own": ([increment(2), increment(1)], "connecting", "entry 1", 0),
    "the same again": ([increment(1), increment(1)], "connecting", "entry 2", 0),
    "no entry": ([_without(increment(1), "entry")], "connecting", "cannot be used", 0),
    "an entry without op": ([entry(1, {"v": 2, "series": "a"})], "connecting", "entry 1", 0),
    "a time that is none": ([increment(1) | {"ts": "noon", "crc": None}], "connecting", "entry 1", 0),
    "a time before all time": ([increment(1) | {"ts": -1, "crc": None}], "connecting", "entry 1", 0),
    "entries that are no list": (["no entry"], "connecting", "cannot be used", 0),
    "an unknown op": (
        [increment(1), entry(2, {"v": 2, "op": "counter.square", "series": "a", "key": 1})],
        "refused",
        "entry 2 is no write that this version knows",
        1,
    ),
    "an op without its fields": (
        [increment(1), entry(2, {"v": 2, "op": "counter.increment", "series": "a"})],
        "refused",
        "entry 2 is no write that this version knows",
        1,
    ),
}


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_that_is_wrong_is_not_taken_in(start: Start, kind: str) -> None:
    entries, state, words, last_lsn = PAGES[kind]
    # It goes on as it began: the rest of the page, as often as it is asked.
    script = FakeMaster(3, lambda after_lsn: script.page(after_lsn, entries[after_lsn:]))
    with Peer(script) as peer:
        slave = start("a", source=peer.port)
        until(lambda: words in state_of(slave)[1], why=lambda: state_of(slave))
        assert state_of(slave)[0] == state
        assert len(peer.requests) < 30, "a failing source is not asked without a pause"
        # What was wrong is not in the log either: neither a kill nor a stop finds it there.
        for end in (slave.kill, slave.stop):
            end()
            slave.restart()
            assert status(slave)["wal_current_lsn"] == last_lsn
            with slave.connect() as connection:
                assert counters_of(connection) == ({"a": {"1": {str(DAY): 1}}} if last_lsn else {})
        # The same source, mended, is followed on.
        script.answer = lambda after_lsn: (
            script.page(after_lsn, [increment(lsn) for lsn in range(after_lsn + 1, 4)])
            if after_lsn < 3
            else None
        )
        until(lambda: status(slave)["wal_current_lsn"] == 3, why=lambda: state_of(slave))
        assert slave.ask("counter.sum", series="a", key=1) == 3


# -- A Karma 1.0 as source -------------------------------------------------------------------------------


@pytest.mark.parametrize("recording", ["wal-only", "wal-segments", "snapshot-and-wal"])
def test_a_karma_1_0_is_followed_its_way(start: Start, recording: str) -> None:
    folder = FIXTURES / recording
    script = Original(folder / "data")
    expected = json.loads((folder / "state.json").read_text())
    if recording == "snapshot-and-wal":
        expected["api_requests"].setdefault("7001", {})[str(DAY)] = 11
        expected["emails_sent"].setdefault("7002", {})[str(DAY)] = 12
    with Peer(script) as peer:
        slave = start("a", source=peer.port, replication_poll_interval_ms=50)
        until(lambda: status(slave)["wal_current_lsn"] == script.source_lsn, why=lambda: state_of(slave))
        until(lambda: state_of(slave)[0] == "polling", why=lambda: state_of(slave))
        asked = [request for request in peer.requests if request["op"] == "replication.entries"]
        assert all(
            set(request) == {"v", "op", "after_lsn", "limit"} for request in asked if "port" not in request
        )
        with slave.connect() as connection:
            found = counters_of(connection)
            assert found == {
                name: {key: days for key, days in keys.items() if days} for name, keys in expected.items()
            }
        assert status(slave)["replication_bootstrap_success_count"] == (recording == "snapshot-and-wal")
        # A restart goes on where it was, and new entries come.
        slave.kill()
        slave.restart()
        script.entries[script.source_lsn + 1] = increment(0, key=99)["entry"]
        script.source_lsn += 1
        until(lambda: status(slave)["wal_current_lsn"] == script.source_lsn, why=lambda: state_of(slave))
        assert slave.ask("counter.sum", series="a", key=99) == 1
        assert status(slave)["epoch"] == 0
    # The way out of the old world: it becomes a master.
    promoted = slave.ask("replication.promote")
    assert (promoted["epoch"], promoted["start_lsn"]) == (1, script.source_lsn + 1)


def test_a_link_that_breaks_between_two_polls_is_made_anew(start: Start) -> None:
    script = Original(FIXTURES / "wal-only" / "data")
    with Peer(script) as peer, Proxy() as proxy:
        link = proxy.link(lambda: peer.port)
        slave = start("a", source=link.port, replication_poll_interval_ms=100)
        for _ in range(5):
            polls = len(peer.requests)
            until(lambda polls=polls: len(peer.requests) > polls + 1)  # type: ignore[misc]
            link.reset()
        until(lambda: state_of(slave)[0] == "polling", why=lambda: state_of(slave))
        assert "internal_error" not in slave.output.read_text()


def test_a_karma_1_0_that_lost_entries_is_not_followed_on(start: Start) -> None:
    script = Original(FIXTURES / "wal-only" / "data")
    with Peer(script) as peer:
        slave = start("a", source=peer.port, replication_poll_interval_ms=20)
        until(lambda: status(slave)["wal_current_lsn"] == script.source_lsn)
        last_lsn = script.source_lsn
        script.source_lsn = last_lsn - 10
        until(lambda: state_of(slave)[0] == "diverged")
        assert f"LSN {last_lsn - 10}" in state_of(slave)[1]
        # Not even a start later, when its LSNs have passed this node's: what they mean now is another thing.
        assert status(slave)["wal_current_lsn"] == last_lsn


# -- A source that came back with less -------------------------------------------------------------------


def test_a_source_that_lost_power_is_not_merged_with_what_it_had_shown(start: Start) -> None:
    master = start("a", wal_fsync=False)
    write(master, 20)
    with Proxy() as proxy:
        link = proxy.link(lambda: master.port)
        slave = start("b", source=link.port)
        until(lambda: has_all_of(slave, master))
        master.kill()
        log = master.directory / "karma.wal"
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:15]))
        master.restart()
        write(master, 30, series="anew")
        until(lambda: state_of(slave)[0] == "diverged", why=lambda: state_of(slave))
        assert "LSN 16" in state_of(slave)[1]
        assert slave.ask("tree.list") == ["a"]
        rebuilt = slave.ask("replication.follow", host="127.0.0.1", port=link.port, rebuild=True)
        assert (rebuilt["diverged_at_lsn"], rebuilt["lost_entries"]) == (16, 5)
        until(lambda: has_all_of(slave, master))


# -- Bootstraps that are disturbed -----------------------------------------------------------------------


def test_snapshots_that_change_and_vanish_while_they_are_fetched(start: Start) -> None:
    master = start("a", dump_retention_per_tree=1, max_request_bytes=1 << 20, **FAR_BEHIND)
    fill(master, 200_000)
    master.ask("snapshot.create_all")
    with Proxy() as proxy:
        link = proxy.link(lambda: master.port)
        link.set("open", delay_ms=10)
        slave = start("b", source=link.port)
        for round_ in range(6):
            write(master, 3, series=f"round {round_}")
            # Of a series that did not change the file would stay.
            write(master, 1, series="large")
            master.ask("snapshot.create_all")
            time.sleep(0.3)
        assert status(slave)["replication_bootstrap_error_count"] > 0
        link.set("open")
        # An order spares the wait that many failures have led to.
        slave.ask("replication.follow", host="127.0.0.1", port=link.port)
        until(lambda: has_all_of(slave, master), why=lambda: state_of(slave))
        slave.kill()
        slave.restart()
        until(lambda: has_all_of(slave, master), why=lambda: state_of(slave))


def test_a_bootstrap_goes_on_where_the_link_was_cut(start: Start) -> None:
    master = start("a", max_request_bytes=1 << 20, **FAR_BEHIND)
    fill(master, 150_000)
    fill(master, 20_000, series="small")
    master.ask("snapshot.create_all")
    # One series is newer than the others: the log between them is fetched, too.
    fill(master, 5_000, series="small")
    master.ask("snapshot.create", series="small")
    size_bytes = sum(path.stat().st_size for path in master.directory.glob("*.tree"))
    with Proxy() as proxy:
        link = proxy.link(lambda: master.port)
        link.break_after(300)
        slave = start("b", source=link.port)
        # Each time a little further; later by more than a chunk, so that what had arrived must count.
        cuts = 0
        for down_bytes in [3_000] * 6 + [1_000_000] * 20:
            until(lambda: not link.is_armed or state_of(slave)[0] == "following", why=lambda: state_of(slave))
            if link.is_armed:
                break
            link.break_after(down_bytes)
            cuts += 1
            slave.ask("replication.follow", host="127.0.0.1", port=link.port)
        else:
            pytest.fail("the bootstrap comes to no end")
        until(lambda: has_all_of(slave, master), why=lambda: state_of(slave))
        assert status(slave)["replication_bootstrap_success_count"] == 1
        # Base64 takes a third more, and each cut cost a chunk of half a megabyte at most.
        assert link.bytes_down < (size_bytes + cuts * 524_288) * 4 / 3 + 500_000


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_bootstrap_brings_what_no_snapshot_holds_yet(start: Start, is_alone: bool) -> None:
    master = start("a", **FAR_BEHIND)
    if not is_alone:
        write(master, 10)
        master.ask("snapshot.create_all")
    with master.connect() as connection:
        retry = {"series": "b", "key": 1, "bucket": DAY, "idempotency_key": "once"}
        connection.ask("counter.increment", **retry)
        connection.ask("ingest.begin", stream_id="open", mode="add")
    write(master, 10, series="b")
    write(master, 10)
    # Of one series alone: what the other one and the rest hold is in the log before it.
    master.ask("snapshot.create", series="a")
    slave = start("b", source=master.port)
    until(lambda: state_of(slave)[0] == "following")
    slave.ask("replication.follow", host="127.0.0.1", port=master.port, rebuild=True)
    until(lambda: status(slave)["replication_bootstrap_success_count"] == 1 + (not is_alone))
    until(lambda: has_all_of(slave, master), why=lambda: state_of(slave))


# -- Disks -----------------------------------------------------------------------------------------------


def limit_file_size(node: Server, limit_bytes: int) -> None:
    """Let the disk be full for a node: no file of it may grow beyond a size."""
    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))


def test_a_full_disk_stops_a_follower_and_nothing_else(start: Start) -> None:
    master = start("a")
    slave = start("b", source=master.port)
    write(master, 20)
    until(lambda: has_all_of(slave, master))
    limit_file_size(slave, (slave.directory / "karma.wal").stat().st_size + 100)
    write(master, 50, series="b")
    master.ask("recovery.checkpoint", source="pipeline", offset=7)
    until(lambda: state_of(slave)[0] == "storage_error", why=lambda: state_of(slave))
    assert "disk refused" in state_of(slave)[1]
    about = status(slave)
    assert about["wal_current_lsn"] < 70
    with slave.connect() as connection:
        assert counters_of(connection)["a"] == {str(key): {str(DAY): 1} for key in range(20)}
    assert "storage" in str(slave.ask("system.health"))
    limit_file_size(slave, resource.RLIM_INFINITY)
    until(lambda: has_all_of(slave, master), why=lambda: state_of(slave))
    assert state_of(slave) == ("following", "")


def test_a_disk_that_refuses_a_recovery_checkpoint_gets_it_later(start: Start) -> None:
    master = start("a")
    slave = start("b", source=master.port)
    write(master, 1)
    until(lambda: has_all_of(slave, master))
    limit_file_size(slave, 200)
    master.ask("recovery.checkpoint", source="pipeline " + "x" * 200, offset=7)
    until(lambda: state_of(slave)[0] == "storage_error", why=lambda: state_of(slave))
    limit_file_size(slave, resource.RLIM_INFINITY)
    until(lambda: has_all_of(slave, master), why=lambda: state_of(slave))


def test_a_full_disk_stops_a_bootstrap_until_there_is_room(start: Start) -> None:
    master = start("a", max_request_bytes=1 << 20, **FAR_BEHIND)
    fill(master, 60_000)
    master.ask("snapshot.create_all")
    slave = start("b", source=free_port())
    limit_file_size(slave, 500_000)
    slave.ask("replication.follow", host="127.0.0.1", port=master.port)
    until(lambda: state_of(slave)[0] == "storage_error", why=lambda: state_of(slave))
    assert slave.ask("tree.list") == []
    limit_file_size(slave, resource.RLIM_INFINITY)
    until(lambda: has_all_of(slave, master), why=lambda: state_of(slave))


def test_a_kill_at_each_step_of_a_bootstrap_leaves_the_old_data_or_the_new(
    start: Start, needs: Callable[[str], Path], is_full: bool
) -> None:
    strace = needs("strace")
    master = start("a", **FAR_BEHIND)
    write(master, 30)
    write(master, 5, series="gone")
    behind = start("behind", source=master.port, wal_segment_bytes=1_000)
    until(lambda: has_all_of(behind, master))
    behind.ask("snapshot.create_all")
    write(master, 20)
    until(lambda: has_all_of(behind, master))
    behind.kill()
    master.ask("tree.drop", series="gone")
    write(master, 30, series="b")
    master.ask("recovery.checkpoint", source="pipeline", offset=7)
    master.ask("snapshot.create_all")
    write(master, 5, series="c")
    # About 36 renames, a second each.
    steps = range(1, 100, 1 if is_full else 3)
    kills = next(step for step in steps if not _is_killed_at(step, strace, start, behind, master))
    assert kills > 20, "a bootstrap renames more files"


def _is_killed_at(step: int, strace: Path, start: Start, behind: Server, master: Server) -> bool:
    """Start a follower on a copy of what one left, and kill it right after a rename; False if it has fewer.

    Either way it is started once more, and must come to have what its master has.
    """
    name = f"killed-{step}"
    folder = behind.directory.with_name(name)
    shutil.copytree(behind.directory, folder, ignore=shutil.ignore_patterns("karma.lock"))
    renames = "rename,renameat,renameat2"
    prefix = [str(strace), "-f", "-qq", "-o", "/dev/null", "-e", f"trace={renames}"]
    prefix += ["-e", f"inject={renames}:signal=KILL:when={step}"]
    slave = start(name, source=master.port, prefix=prefix, wait=False)
    until(lambda: slave.process.poll() is not None or _is_following(slave))
    is_killed = slave.process.poll() is not None
    if not is_killed:
        # Without strace, which would leave its tracee behind.
        os.kill(slave.wait_for_event("listening")["pid"], signal.SIGKILL)
        slave.process.wait()
    slave.prefix = ()
    slave.start()
    until(lambda: has_all_of(slave, master), why=lambda: state_of(slave))
    slave.kill()
    return is_killed


def _is_following(server: Server) -> bool:
    """Return whether a server that was not waited for listens, and follows."""
    listening = [event for event in server.events() if event["event"] == "listening"]
    if not listening:
        return False
    server.port = int(listening[0]["port"])
    try:
        return state_of(server)[0] == "following"
    except (OSError, AssertionError):
        return False


def test_a_follower_with_a_damaged_log_refuses_to_start_and_can_be_rebuilt(start: Start) -> None:
    master = start("a")
    slave = start("b", source=master.port)
    write(master, 40)
    until(lambda: has_all_of(slave, master))
    slave.kill()
    log = slave.directory / "karma.wal"
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(bytes(data))
    slave.start(wait=False)
    assert slave.process.wait(20) == 1
    said = slave.output.read_text()
    assert "karma.wal" in said
    assert "repair" in said
    # Its data are its source's: without them it begins anew, under its old name.
    for path in slave.directory.glob("karma.wal*"):
        path.unlink()
    slave.start()
    until(lambda: has_all_of(slave, master), why=lambda: state_of(slave))
