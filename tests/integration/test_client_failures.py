"""The client against peers that misbehave: what it sends again, what it never does, and what it says."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import Server, free_port
from peers import FLAVOURS, Flavour, Peer, PeerConnection, Script, both_flavours, failure, success

from karma_client import (
    ClosedError,
    ForbiddenError,
    InvalidArgumentError,
    Node,
    NoMasterError,
    OverloadedError,
    ProtocolError,
    ReplyError,
    RequestTimeoutError,
    RequestTooLargeError,
    SplitBrainError,
    UnauthorizedError,
    UnknownOutcomeError,
    UnreachableError,
    connect,
    connect_async,
)
from karma_client.calls import Exchange

TOKEN = "s3cret-t0ken"


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> Iterator[Flavour]:
    yield from both_flavours(request.param)


def once(*replies: bytes) -> Script:
    """A script that answers so many requests and closes."""
    return lambda connection: connection.answer(*replies)


def always(reply: bytes) -> Script:
    return lambda connection: connection.serve(lambda _: reply)


def hang_up(connection: PeerConnection) -> None:
    """Take a request and close without an answer."""
    connection.read()


# -- Frames ----------------------------------------------------------------------------------------------


def test_a_reply_may_come_in_single_bytes(flavour: Flavour) -> None:
    def dribble(connection: PeerConnection) -> None:
        connection.read()
        for byte in success(41):
            connection.send(bytes([byte]))
        connection.answer(success(42).replace(b"\r\n", b"\n"))

    with Peer(dribble) as peer, flavour.connect(peer.address) as client:
        assert client.sum("a", 1) == 41
        assert client.sum("a", 1) == 42
        assert peer.connections == 1


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n", b"\x15\x03\x03\x00\n", b"[]\n", b"\n"])
def test_what_is_no_karma_is_said_at_once(flavour: Flavour, garbage: bytes) -> None:
    with Peer(once(garbage)) as peer, flavour.connect(peer.address, token=TOKEN) as client:
        with pytest.raises(ProtocolError, match="no reply of Karma") as raised:
            client.ping()
        assert peer.address in str(raised.value)
        assert peer.connections == 1


def test_an_echo_shows_no_token(flavour: Flavour) -> None:
    def echo(connection: PeerConnection) -> None:
        connection.send(connection.sock.recv(65536))

    with Peer(echo) as peer, flavour.connect(peer.address, token=TOKEN) as client:
        with pytest.raises(ProtocolError) as raised:
            client.ping()
        assert TOKEN not in str(raised.value)


def test_a_connection_that_brought_too_much_is_not_used_again(flavour: Flavour) -> None:
    with Peer(once(success(1) + success(2)), always(success(3))) as peer:
        with flavour.connect(peer.address) as client:
            assert [client.sum("a", 1), client.sum("a", 1)] == [1, 3]
        assert peer.connections == 2


# -- Lost connections ------------------------------------------------------------------------------------


def close_mid_reply(connection: PeerConnection) -> None:
    connection.read()
    connection.send(success()[:20])


LOSSES = pytest.mark.parametrize("loss", [hang_up, close_mid_reply], ids=["hang up", "mid reply"])


@LOSSES
def test_a_read_is_sent_again(flavour: Flavour, loss: Script) -> None:
    with Peer(loss, loss, once(success(7))) as peer, flavour.connect(peer.address) as client:
        assert client.sum("a", 1) == 7
        assert peer.ops == ["counter.sum"] * 3


@LOSSES
def test_a_write_with_a_key_is_sent_again_unchanged(flavour: Flavour, loss: Script) -> None:
    with Peer(loss, once(success(7))) as peer, flavour.connect(peer.address) as client:
        assert client.increment("a", 1, 7, idempotency_key="k") == 7
        first, second = peer.requests
        assert first == second
        assert first["idempotency_key"] == "k"


@LOSSES
def test_a_write_without_a_key_leaves_once(flavour: Flavour, loss: Script) -> None:
    with Peer(loss, always(success(7))) as peer, flavour.connect(peer.address) as client:
        with pytest.raises(
            UnknownOutcomeError, match=r"may or may not have been applied.*idempotency key"
        ) as raised:
            client.increment("a", 1)
        assert peer.address in str(raised.value)
        assert (raised.value.op, len(peer.requests)) == ("counter.increment", 1)
        assert client.sum("a", 1) == 7


def test_an_unknown_operation_leaves_once(flavour: Flavour) -> None:
    with Peer(hang_up, always(success())) as peer, flavour.connect(peer.address) as client:
        with pytest.raises(UnknownOutcomeError):
            client.call("counter.frobnicate", series="a")
        assert len(peer.requests) == 1


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("tree.create", {"series": "a"}),
        ("counter.sum", {}),
        ("ingest.chunk", {}),
        ("series.points", {}),
        ("counter.reset", {"idempotency_key": 1}),
    ],
)
def test_a_known_operation_that_is_safe_is_sent_again(
    flavour: Flavour, op: str, fields: dict[str, Any]
) -> None:
    with Peer(hang_up, once(success())) as peer, flavour.connect(peer.address) as client:
        client.call(op, **fields)
        assert len(peer.requests) == 2


def test_writes_that_may_be_done_twice_are_sent_again(flavour: Flavour) -> None:
    with Peer(hang_up, once(success("OK"))) as peer, flavour.connect(peer.address) as client:
        client.create_series("a")
        assert peer.ops == ["tree.create", "tree.create"]


def test_a_key_saves_only_what_takes_one(flavour: Flavour) -> None:
    with Peer(hang_up, always(success())) as peer, flavour.connect(peer.address) as client:
        with pytest.raises(UnknownOutcomeError):
            client.call("snapshot.load", file="1_a.tree", idempotency_key="k")
        assert len(peer.requests) == 1


def test_a_connection_that_ended_while_it_rested_costs_no_write(flavour: Flavour) -> None:
    closed = threading.Event()

    def end_soon(connection: PeerConnection) -> None:
        connection.answer(success(1))
        closed.set()

    with Peer(end_soon, always(success(2))) as peer, flavour.connect(peer.address) as client:
        assert client.increment("a", 1) == 1
        closed.wait()
        # The end arrives within a moment, and until then nobody can know of it.
        wait_until(lambda: not idle_is_usable(client))
        assert client.increment("a", 1) == 2


def idle_is_usable(client: Any) -> bool:
    core = client._core
    return all(channel.is_usable() for rested in core._idle.values() for _, channel in rested)


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll; the test's timeout bounds it."""
    event = threading.Event()
    while not condition():
        event.wait(0.005)


def test_a_connection_that_rested_too_long_is_not_used(flavour: Flavour) -> None:
    with Peer(always(success(1))) as peer, flavour.connect(peer.address) as client:
        client._core.idle_seconds = -1.0
        client.increment("a", 1)
        client.increment("a", 1)
        assert peer.connections == 2
        client._core.idle_seconds = 60.0
        client.increment("a", 1)
        assert peer.connections == 2


# -- Time ------------------------------------------------------------------------------------------------


def silence(connection: PeerConnection) -> None:
    connection.read()
    connection.wait_for_end()


def test_a_silent_peer_ends_a_read_by_its_timeout(flavour: Flavour) -> None:
    with (
        Peer(silence, always(success(7))) as peer,
        flavour.connect(peer.address, timeout_seconds=0.1) as client,
    ):
        with pytest.raises(RequestTimeoutError, match="no reply in time") as raised:
            client.sum("a", 1)
        assert isinstance(raised.value, TimeoutError)
        assert client.with_timeout(20.0).sum("a", 1) == 7


def test_a_silent_peer_leaves_a_write_unknown(flavour: Flavour) -> None:
    with Peer(silence) as peer, flavour.connect(peer.address, timeout_seconds=0.1) as client:
        with pytest.raises(UnknownOutcomeError, match="no reply in time"):
            client.increment("a", 1)
        assert len(peer.requests) == 1


def test_a_late_reply_is_nobody_s(flavour: Flavour) -> None:
    asked, gone = threading.Event(), threading.Event()

    def late(connection: PeerConnection) -> None:
        connection.read()
        asked.set()
        gone.wait()
        connection.send(success(13))

    with Peer(late, always(success(7))) as peer, flavour.connect(peer.address) as client:
        with pytest.raises(RequestTimeoutError):
            client.with_timeout(0.1).sum("a", 1)
        gone.set()
        assert client.sum("a", 1) == 7
        assert asked.is_set()


def test_slow_operations_have_their_own_time(flavour: Flavour) -> None:
    go_on = threading.Event()

    def slow(connection: PeerConnection) -> None:
        connection.read()
        go_on.wait()
        connection.send(success("OK"))

    with Peer(slow) as peer, flavour.connect(peer.address, timeout_seconds=0.05) as client:
        timer = threading.Timer(0.2, go_on.set)
        timer.start()
        assert client.create_snapshots() is None
        timer.join()


def test_a_server_that_holds_its_reply_on_purpose_gets_the_time(flavour: Flavour) -> None:
    page = {"entries": [], "next_lsn": 4, "source_lsn": 4}

    def hold(connection: PeerConnection) -> None:
        connection.read()
        threading.Event().wait(0.2)
        connection.send(success(page))

    with Peer(hold) as peer, flavour.connect(peer.address, timeout_seconds=0.05) as client:
        assert client.entries_page(4, wait_ms=5000).next_lsn == 4


def test_nobody_there(flavour: Flavour) -> None:
    address = f"127.0.0.1:{free_port()}"
    with (
        flavour.connect(address, timeout_seconds=0.2) as client,
        pytest.raises(UnreachableError, match=f"{address}: cannot connect: "),
    ):
        client.increment("a", 1)
    with (
        flavour.connect(address, max_attempts=1, timeout_seconds=60.0) as client,
        pytest.raises(UnreachableError),
    ):
        client.ping()
    with (
        flavour.connect("unix:/nonexistent/k.sock", max_attempts=1) as client,
        pytest.raises(UnreachableError, match="cannot connect: no such file"),
    ):
        client.ping()


def test_a_write_waits_for_a_server_that_is_not_up_yet(flavour: Flavour, tmp_path: Path) -> None:
    port = free_port()
    servers = ExitStack()
    starter = threading.Timer(
        0.1, lambda: servers.enter_context(Server(tmp_path / "data", port=port, wal_fsync=False))
    )
    starter.start()
    with servers:
        with flavour.connect(f"127.0.0.1:{port}", timeout_seconds=30.0) as client:
            assert client.increment("a", 1, 5) == 5
            assert client.sum("a", 1) == 5
        starter.join()


def test_only_so_many_requests_are_under_way(flavour: Flavour) -> None:
    with (
        Peer(silence) as peer,
        flavour.connect(peer.address, pool_size=1, timeout_seconds=0.2) as client,
    ):
        first = flavour.start(client.with_timeout(1.0), "increment", "a", 1)
        wait_until(lambda: bool(peer.requests) or flavour.idle())
        with pytest.raises(RequestTimeoutError, match="pool_size"):
            client.sum("a", 1)
        with pytest.raises(UnknownOutcomeError):
            first()
        assert len(peer.requests) == 1


# -- Refusals --------------------------------------------------------------------------------------------


def test_a_paused_master_is_asked_again_until_it_goes_on(flavour: Flavour) -> None:
    paused = failure("forbidden", "paused", reason="paused", retry_after_ms=1)
    with Peer(once(paused, paused, paused, success(5))) as peer, flavour.connect(peer.address) as client:
        assert client.increment("a", 1, 5) == 5
        assert (len(peer.requests), peer.connections) == (4, 1)


def test_a_refusal_out_of_step_ends_its_connection(flavour: Flavour) -> None:
    def too_much(connection: PeerConnection) -> None:
        connection.answer(failure("forbidden", "paused", reason="paused") + success(13))
        connection.serve(lambda _: success(14))

    with Peer(too_much, always(success(5))) as peer, flavour.connect(peer.address) as client:
        assert client.increment("a", 1, 5) == 5


def test_a_pause_that_lasts_is_told(flavour: Flavour) -> None:
    paused = failure("forbidden", "paused for a switchover", reason="paused", retry_after_ms=60_000)
    with Peer(always(paused)) as peer, flavour.connect(peer.address, timeout_seconds=0.3) as client:
        with pytest.raises(ForbiddenError, match="paused for a switchover") as raised:
            client.increment("a", 1)
        assert (raised.value.reason, raised.value.retry_after_ms) == ("paused", 60_000)


def test_an_overloaded_server_is_asked_again(flavour: Flavour) -> None:
    def turn_away(connection: PeerConnection) -> None:
        connection.answer(failure("overloaded", "at max-clients"))

    with Peer(turn_away, turn_away, always(success(5))) as peer, flavour.connect(peer.address) as client:
        assert client.increment("a", 1, 5) == 5
    with Peer(turn_away) as peer, flavour.connect(peer.address, max_attempts=2) as client:
        with pytest.raises(OverloadedError, match="max-clients"):
            client.increment("a", 1)
        assert peer.connections == 2


def test_a_token_that_may_not_is_final(flavour: Flavour) -> None:
    def answers(request: dict[str, Any]) -> bytes:
        if request["op"] == "replication.status":
            return success({"role": "master"})
        return failure("forbidden", "tree.drop needs the write token")

    with Peer(lambda connection: connection.serve(answers)) as peer, flavour.connect(peer.address) as client:
        with pytest.raises(ForbiddenError, match="needs the write token"):
            client.drop_series("a")
        assert peer.ops.count("tree.drop") == 1


def test_an_exchanged_token_is_read_again(flavour: Flavour, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old\n")

    def answers(request: dict[str, Any]) -> bytes:
        return success(5) if request["token"] == "new" else failure("unauthorized", "wrong")

    with (
        Peer(lambda connection: connection.serve(answers)) as peer,
        flavour.connect(peer.address, token_file=file) as client,
    ):
        with pytest.raises(UnauthorizedError):
            client.increment("a", 1)
        file.write_text("new\n")
        assert client.increment("a", 1, 5) == 5
        assert [request["token"] for request in peer.requests] == ["old", "old", "new"]
        assert peer.connections == 1


def test_a_code_of_tomorrow(flavour: Flavour) -> None:
    with Peer(once(failure("out_of_cheese", "none left"))) as peer, flavour.connect(peer.address) as client:
        with pytest.raises(ReplyError, match="none left") as raised:
            client.ping()
        assert raised.value.code == "out_of_cheese"


def test_a_snapshot_that_changes_while_it_is_fetched(flavour: Flavour) -> None:
    def part(offset: int, last_lsn: int) -> bytes:
        metadata = {"file": "1_a.tree", "bytes": 4, "last_lsn": last_lsn}
        place = {"offset": offset, "bytes": 2, "next_offset": offset + 2, "total_bytes": 4}
        return success({"metadata": metadata, **place, "done": offset == 2, "data_base64": "AAE="})

    for last_lsn, is_same in ((7, True), (8, False)):
        with Peer(once(part(0, 7), part(2, last_lsn))) as peer, flavour.connect(peer.address) as client:
            file = io.BytesIO()
            if is_same:
                assert client.fetch_snapshot("1_a.tree", file).last_lsn == 7
                assert file.getvalue() == b"\0\1\0\1"
            else:
                with pytest.raises(ProtocolError, match="became another file"):
                    client.fetch_snapshot("1_a.tree", file)


# -- Pipelines -------------------------------------------------------------------------------------------


def test_a_broken_pipeline_settles_every_request(flavour: Flavour) -> None:
    def two_then_close(connection: PeerConnection) -> None:
        for _ in range(4):
            connection.read()
        connection.send(success(10) + success(11))

    with Peer(two_then_close, always(success(99))) as peer, flavour.connect(peer.address) as client:
        pipeline = client.pipeline()
        first, second = pipeline.increment("a", 1), pipeline.sum("a", 1)
        third, fourth = pipeline.increment("a", 1), pipeline.sum("a", 1)
        pipeline.flush()
        assert [first.result(), second.result()] == [10, 11]
        assert isinstance(third.error, UnknownOutcomeError)
        # Sent again it could overtake what the third did or did not do.
        assert isinstance(fourth.error, UnreachableError)
        assert len(peer.requests) == 4


def test_a_broken_pipeline_of_safe_requests_goes_on_where_it_was(flavour: Flavour) -> None:
    def two_then_close(connection: PeerConnection) -> None:
        for _ in range(5):
            connection.read()
        connection.send(success(0) + success(1))

    with (
        Peer(two_then_close, once(*map(success, (2, 3, 4)))) as peer,
        flavour.connect(peer.address) as client,
    ):
        with client.pipeline() as pipeline:
            results = [pipeline.increment("a", key, idempotency_key=key) for key in range(5)]
        assert [pending.result() for pending in results] == [0, 1, 2, 3, 4]
        assert [request["key"] for request in peer.requests] == [0, 1, 2, 3, 4, 2, 3, 4]


def test_refused_requests_of_a_pipeline_are_sent_again_alone(flavour: Flavour) -> None:
    paused = failure("forbidden", "paused", reason="paused")
    first_round = [success(0), paused, failure("not_found", "missing"), paused]
    with Peer(once(*first_round, success(1), success(3))) as peer, flavour.connect(peer.address) as client:
        with client.pipeline() as pipeline:
            results = [pipeline.increment("a", key) for key in range(4)]
            pipeline.flush()
            assert results[2].error is not None
            assert results[2].error.code == "not_found"
        assert [results[index].result() for index in (0, 1, 3)] == [0, 1, 3]
        assert [request["key"] for request in peer.requests] == [0, 1, 2, 3, 1, 3]


def test_what_stood_behind_a_too_long_request_is_sent_again(flavour: Flavour) -> None:
    def close_behind(connection: PeerConnection) -> None:
        for _ in range(3):
            connection.read()
        connection.send(success(0) + failure("request_too_large", "too long"))

    with Peer(close_behind, once(success(2))) as peer, flavour.connect(peer.address) as client:
        pipeline = client.pipeline()
        results = [pipeline.increment("a", key) for key in range(3)]
        pipeline.flush()
        assert (results[0].result(), results[2].result()) == (0, 2)
        assert isinstance(results[1].error, RequestTooLargeError)
        assert [request["key"] for request in peer.requests] == [0, 1, 2, 2]


def test_an_overload_of_one_request_says_nothing_of_those_behind_it(flavour: Flavour) -> None:
    def middle(connection: PeerConnection) -> None:
        for _ in range(3):
            connection.read()
        connection.send(success(0) + failure("overloaded", "buffers are full") + success(2))

    def cut(connection: PeerConnection) -> None:
        for _ in range(3):
            connection.read()
        connection.send(success(0) + failure("overloaded", "buffers are full"))

    with Peer(middle, once(success(1))) as peer, flavour.connect(peer.address) as client:
        with client.pipeline() as pipeline:
            results = [pipeline.increment("a", key) for key in range(3)]
        assert [pending.result() for pending in results] == [0, 1, 2]
        assert [request["key"] for request in peer.requests] == [0, 1, 2, 1]
    with Peer(cut, always(success(1))) as peer, flavour.connect(peer.address) as client:
        pipeline = client.pipeline()
        results = [pipeline.increment("a", key) for key in range(3)]
        pipeline.flush()
        assert isinstance(results[2].error, UnknownOutcomeError)
        assert [request["key"] for request in peer.requests] == [0, 1, 2]


def test_a_connection_out_of_step_is_left_between_windows(flavour: Flavour) -> None:
    def too_much(connection: PeerConnection) -> None:
        for _ in range(512):
            connection.read()
        connection.send(b"".join(map(success, range(513))))

    with Peer(too_much, once(success(512))) as peer, flavour.connect(peer.address) as client:
        with client.pipeline() as pipeline:
            results = [pipeline.increment("a", key) for key in range(513)]
        assert [pending.result() for pending in results] == list(range(513))
        assert [request["key"] for request in peer.requests] == list(range(513))
        assert peer.connections == 2


def test_an_error_nobody_looked_at_is_raised_at_the_end(flavour: Flavour) -> None:
    replies = [success(1), failure("not_found", "missing"), success(3)]
    with Peer(once(*replies, *replies)) as peer, flavour.connect(peer.address) as client:
        with pytest.raises(ReplyError, match="missing"), client.pipeline() as pipeline:
            results = [pipeline.sum("a", key) for key in range(3)]
        assert [results[0].result(), results[2].result()] == [1, 3]
        with client.pipeline() as pipeline:
            results = [pipeline.sum("a", key) for key in range(3)]
            pipeline.flush()
            with pytest.raises(ReplyError):
                results[1].result()


def test_a_pipeline_that_fails_inside_sends_nothing(flavour: Flavour) -> None:
    def fill() -> None:
        with client.pipeline() as pipeline:
            pipeline.increment("a", 1)
            raise LookupError

    with Peer(always(success())) as peer, flavour.connect(peer.address) as client:
        with pytest.raises(LookupError):
            fill()
        assert peer.requests == []


def test_a_request_that_cannot_be_spelt_is_found_before_anything_leaves(flavour: Flavour) -> None:
    with Peer(always(success())) as peer, flavour.connect(peer.address) as client:
        pipeline = client.pipeline()
        good, bad = pipeline.increment("a", 1), pipeline.increment("a", 2**64)
        pipeline.flush()
        assert isinstance(good.error, InvalidArgumentError)
        assert isinstance(bad.error, InvalidArgumentError)
        assert peer.requests == []


def test_neither_side_waits_for_the_other_s_buffers(flavour: Flavour) -> None:
    """The peer takes nothing more while its replies are not read, as a server does whose buffers are full."""
    exchange = Exchange([b'{"filler":"%b"}\n' % (b"y" * 4000)] * 2000)
    with Peer(always(success("x" * 20_000))) as peer, flavour.connect(peer.address) as client:
        flavour.exchange(client, Node.parse(peer.address), exchange)
        assert exchange.is_clean
        assert peer.connections == 1


def test_a_request_may_be_larger_than_all_buffers(flavour: Flavour) -> None:
    with Peer(always(success("pong"))) as peer, flavour.connect(peer.address) as client:
        assert client.call("system.ping", filler="x" * 20_000_000) == "pong"


# -- Finding the master ----------------------------------------------------------------------------------


def node(status: dict[str, Any], write_reply: bytes = success(5)) -> Script:
    """A node that tells its status, and answers writes with `write_reply`."""

    def answers(request: dict[str, Any]) -> bytes:
        return success(status) if request["op"] == "replication.status" else write_reply

    return lambda connection: connection.serve(answers)


SLAVE = failure("forbidden", "This node is a slave", reason="role", retry_after_ms=10, master=None)


def test_writes_go_to_the_master(flavour: Flavour) -> None:
    with Peer(node({"role": "slave"}, SLAVE)) as slave, Peer(node({"role": "master"})) as master:
        with flavour.connect([slave.address, master.address]) as client:
            assert client.increment("a", 1, 5) == 5
            assert client.increment("a", 1, 5) == 5
        assert slave.ops == ["replication.status"]
        assert master.ops == ["replication.status", "counter.increment", "counter.increment"]


def test_target_any_asks_nobody_and_takes_what_comes(flavour: Flavour) -> None:
    dead = f"127.0.0.1:{free_port()}"
    with Peer(node({"role": "slave"}, SLAVE)) as slave, Peer(node({"role": "master"})) as master:
        with (
            flavour.connect([dead, slave.address, master.address], target="any") as client,
            pytest.raises(ForbiddenError, match="is a slave"),
        ):
            client.increment("a", 1)
        assert slave.ops == ["counter.increment"]
        assert master.ops == []


def test_a_refusal_that_names_the_master_is_followed_where_that_is_allowed(flavour: Flavour) -> None:
    with Peer(node({"role": "master"})) as master:
        hint = failure("forbidden", "slave", reason="role", master=master.address)
        with (
            Peer(node({"role": "slave"}, hint)) as slave,
            flavour.connect(slave.address, follow_hints=True) as client,
        ):
            assert client.increment("a", 1, 5) == 5
            assert slave.ops == ["counter.increment", "replication.status"]
            assert master.ops == ["replication.status", "counter.increment"]


def test_a_slave_s_source_is_asked_when_no_node_is_a_master(flavour: Flavour) -> None:
    with Peer(node({"role": "master"})) as master:
        status = {"role": "slave", "source": master.address}
        with (
            Peer(node(status, SLAVE)) as one,
            Peer(node(status, SLAVE)) as other,
            flavour.connect([one.address, other.address], follow_hints=True) as client,
        ):
            assert client.increment("a", 1, 5) == 5
        assert master.ops.count("counter.increment") == 1


def test_a_stranger_whom_a_node_names_gets_neither_request_nor_token(flavour: Flavour) -> None:
    """A refusal and a status may name any address; only the nodes given are asked."""
    options = {"token": "s3cret", "timeout_seconds": 0.2}
    with Peer(node({"role": "master"})) as thief:
        hint = failure("forbidden", "slave", reason="role", master=thief.address)
        status = {"role": "slave", "source": thief.address, "master": thief.address}
        with Peer(node(status, hint)) as one, Peer(node(status, hint)) as other:
            with flavour.connect(one.address, **options) as client, pytest.raises(ForbiddenError) as refused:
                client.increment("a", 1)
            assert refused.value.master == thief.address
            with (
                flavour.connect([one.address, other.address], **options) as client,
                pytest.raises(NoMasterError, match="follow_hints") as raised,
            ):
                client.increment("a", 1)
            assert thief.address in str(raised.value)
        assert thief.connections == 0


def test_a_slave_of_karma_1_gives_no_reason_and_is_asked_for_its_role(flavour: Flavour) -> None:
    bare = failure("forbidden", "slave is read only")
    roles = {"first": "master", "second": "slave"}

    def original(name: str) -> Script:
        def answers(request: dict[str, Any]) -> bytes:
            if request["op"] == "replication.status":
                return success({"role": roles[name]})
            return success(5) if roles[name] == "master" else bare

        return lambda connection: connection.serve(answers)

    with Peer(original("first")) as first, Peer(original("second")) as second:
        with flavour.connect([first.address, second.address]) as client:
            assert client.increment("a", 1, 5) == 5
            roles |= {"first": "slave", "second": "master"}
            assert client.increment("a", 1, 5) == 5
        assert second.ops[-1] == "counter.increment"


def test_two_masters_are_refused_and_named(flavour: Flavour) -> None:
    with (
        Peer(node({"role": "master", "epoch": 3})) as one,
        Peer(node({"role": "master", "epoch": 3})) as other,
    ):
        with (
            flavour.connect([one.address, other.address]) as client,
            pytest.raises(SplitBrainError) as raised,
        ):
            client.increment("a", 1)
        for peer in (one, other):
            assert f"{peer.address} (epoch 3)" in str(raised.value)
            assert peer.ops == ["replication.status"]


def test_the_newer_of_two_masters_is_used(flavour: Flavour) -> None:
    with (
        Peer(node({"role": "master", "epoch": 3})) as one,
        Peer(node({"role": "master", "epoch": 4})) as other,
    ):
        with flavour.connect([one.address, other.address]) as client:
            assert client.increment("a", 1, 5) == 5
        assert "counter.increment" in other.ops
        assert one.ops == ["replication.status"]


def test_nobody_is_the_master(flavour: Flavour) -> None:
    dead = f"127.0.0.1:{free_port()}"
    with Peer(node({"role": "slave"}, SLAVE)) as slave:
        with (
            flavour.connect([slave.address, dead], timeout_seconds=0.2) as client,
            pytest.raises(NoMasterError, match="is a slave") as raised,
        ):
            client.increment("a", 1)
        assert dead in str(raised.value)
        assert "counter.increment" not in slave.ops


def test_a_silent_node_does_not_hold_up_the_search(flavour: Flavour) -> None:
    with Peer(silence) as stuck, Peer(node({"role": "master"})) as master:
        options = {"connect_timeout_seconds": 0.1, "timeout_seconds": 20.0}
        with flavour.connect([stuck.address, master.address], **options) as client:
            assert client.increment("a", 1, 5) == 5


def test_the_search_for_the_master_reads_an_exchanged_token_too(flavour: Flavour, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old\n")

    def answers(request: dict[str, Any]) -> bytes:
        if request["token"] != "new":
            file.write_text("new\n")
            return failure("unauthorized", "wrong")
        return success({"role": "master"} if request["op"] == "replication.status" else 5)

    dead = f"127.0.0.1:{free_port()}"
    with (
        Peer(lambda connection: connection.serve(answers)) as peer,
        flavour.connect([dead, peer.address], token_file=file) as client,
    ):
        assert client.increment("a", 1, 5) == 5


def test_what_is_no_status_is_no_master(flavour: Flavour) -> None:
    with Peer(always(success("pong"))) as odd, Peer(node({"role": "master"})) as master:
        with flavour.connect([odd.address, master.address]) as client:
            assert client.increment("a", 1, 5) == 5
        assert odd.ops == ["replication.status"]


def test_target_any_leaves_a_node_that_failed(flavour: Flavour) -> None:
    with (
        Peer(silence) as stuck,
        Peer(always(success(7))) as other,
        flavour.connect([stuck.address, other.address], target="any") as client,
    ):
        with pytest.raises(RequestTimeoutError):
            client.with_timeout(0.1).sum("a", 1)
        assert client.sum("a", 1) == 7
    with (
        Peer(hang_up) as broken,
        Peer(always(success(7))) as other,
        flavour.connect([broken.address, other.address], target="any") as client,
    ):
        assert client.sum("a", 1) == 7


# -- Ends ------------------------------------------------------------------------------------------------


def test_a_closed_client_says_so(flavour: Flavour) -> None:
    with Peer(always(success())) as peer:
        client = flavour.connect(peer.address)
        client.sum("a", 1)
        client.close()
        with pytest.raises(ClosedError):
            client.ping()


def test_a_cancelled_request_takes_its_connection_along() -> None:
    asked, gone = threading.Event(), threading.Event()

    def late(connection: PeerConnection) -> None:
        connection.read()
        asked.set()
        gone.wait()
        connection.send(success(13))

    async def main(address: str) -> None:
        async with connect_async(address) as client:
            task = asyncio.create_task(client.sum("a", 1))
            await asyncio.to_thread(asked.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gone.set()
            assert await client.sum("a", 1) == 7

    with Peer(late, always(success(7))) as peer:
        asyncio.run(main(peer.address))
        assert peer.connections == 2


def test_an_interrupted_pipeline_says_that_nobody_knows() -> None:
    def interrupt() -> str:
        raise KeyboardInterrupt

    client = connect("127.0.0.1:1", token=interrupt)
    pipeline = client.pipeline()
    pending = pipeline.increment("a", 1)
    with pytest.raises(KeyboardInterrupt):
        pipeline.flush()
    assert isinstance(pending.error, UnknownOutcomeError)
    client.close()
