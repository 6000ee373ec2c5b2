"""Numbers from outside at their bounds: none uses up what a node needs, and none ends as a bug's message."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.peers import Peer, failure, success
from harness import Connection, Server, until

from karma.core.epochs import Epoch, History
from karma.ops import OPS, Field, Op
from karma.storage import node_file
from karma.storage.disk import Disk
from karma.storage.node_file import Fence, Node

U64_MAX = 2**64 - 1
MAX_EPOCH, MAX_EPOCH_STEP = 2**53, 1_000
BEYOND = (1 + MAX_EPOCH_STEP + 1, MAX_EPOCH + 1, 2**63, U64_MAX - 1, U64_MAX)
"""Epochs that no node of epoch 1 believes."""
EXTREMES = (0, -1, 2**31, MAX_EPOCH, MAX_EPOCH + 1, 2**63 - 1, 2**63, U64_MAX, 2**64, 10**30, 1.5, 1e300)
DAY = 20260505


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data", wal_fsync=False) as running:
        yield running


def epoch_of(connection: Connection) -> int:
    epoch: int = connection.ask("replication.status")["epoch"]
    return epoch


# -- Epochs, at each entrance ----------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", BEYOND)
def test_a_fence_far_above_needs_force_and_none_is_past_the_last_number(server: Server, epoch: int) -> None:
    with server.connect() as connection:
        code, message = connection.refuse("replication.fence", epoch=epoch, reason="a typing error")
        assert (code, str(epoch) in message) == ("validation_error", True)
        reply = connection.call("replication.fence", epoch=epoch, reason="meant", force=True)
        assert reply["success"] is (epoch <= MAX_EPOCH)
        if reply["success"]:
            assert connection.ask("replication.promote")["epoch"] == epoch + 1


def test_after_a_fence_for_the_last_number_a_node_can_still_be_promoted(server: Server) -> None:
    with server.connect() as connection:
        connection.ask("replication.fence", epoch=MAX_EPOCH, reason="forced", force=True)
        code, message = connection.refuse("replication.promote")
        assert (code, "replication.unfence" in message) == ("validation_error", True)
        connection.ask("replication.unfence", epoch=MAX_EPOCH)
        connection.ask("replication.fence", epoch=2, reason="a failover")
        assert connection.ask("replication.promote")["epoch"] == 3
        connection.ask("counter.increment", series="a", key=1)


@pytest.mark.parametrize("epoch", BEYOND)
def test_a_follower_s_claim_far_above_is_refused_and_stops_nothing(server: Server, epoch: int) -> None:
    with server.connect() as connection:
        cluster_id = connection.ask("replication.status")["cluster_id"]
        claims = {"node_id": "b", "cluster_id": cluster_id, "epoch": epoch, "epoch_node_id": "b"}
        for is_handshake in (True, False):
            reply = connection.call("replication.entries", after_lsn=0, handshake=is_handshake, **claims)
            assert reply["error_code"] == "replication_error"
            assert reply["error_detail"]["reason"] == "epoch"
        connection.ask("counter.increment", series="a", key=1)
        connection.ask("replication.fence", epoch=1 + MAX_EPOCH_STEP, reason="the last that is believed")
        assert connection.ask("replication.promote")["epoch"] == 2 + MAX_EPOCH_STEP


@pytest.mark.parametrize("epoch", BEYOND)
def test_a_source_s_history_far_above_is_not_taken_over(tmp_path: Path, epoch: int) -> None:
    about = {"node_id": "fake", "epoch": epoch, "epoch_node_id": "fake", "role": "master", "master": None}

    def script(request: dict[str, Any]) -> bytes:
        history = [{"epoch": 1, "node_id": node_id, "start_lsn": 1}] if node_id else []
        history.append({"epoch": epoch, "node_id": "fake", "start_lsn": 2})
        known = {**about, "cluster_id": cluster_id, "epochs": history, "path": ["fake"]}
        if request["op"] == "replication.entries":
            return success({**known, "source_lsn": 1, "entries": [], "next_lsn": 1, "count": 0})
        return failure("not_found", "there is nothing here") if "file" in request else success(known)

    node_id = cluster_id = ""
    with Peer(script) as peer, Server(tmp_path / "data") as slave, slave.connect() as connection:
        found = connection.ask("replication.status")
        node_id, cluster_id = found["node_id"], found["cluster_id"]
        connection.ask("counter.increment", series="a", key=1)
        code, message = connection.refuse("replication.follow", host="127.0.0.1", port=peer.port)
        assert (code, "nothing has changed" in message) == ("replication_error", True), message
        assert epoch_of(connection) == 1
        assert connection.ask("system.health")["status"] == "ok"
        connection.ask("counter.increment", series="a", key=1)


@pytest.mark.parametrize("epoch", BEYOND)
def test_karma_fence_has_the_same_bound(tmp_path: Path, epoch: int) -> None:
    with Server(tmp_path / "data") as server:
        assert server.stop() == 0

    def fence(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "karma.app", "fence", f"--directory={server.directory}"]
        return subprocess.run(
            [*command, f"--epoch={epoch}", "--reason=x", *more], capture_output=True, text=True, check=False
        )

    refused = fence()
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.startswith("ERROR: --epoch: ")
    assert fence("--force=true").returncode == int(epoch > MAX_EPOCH)


@pytest.mark.parametrize(
    "node",
    [
        Node("me", "ours", History((Epoch(U64_MAX, "me", 1),))),
        Node("me", "ours", History((Epoch(1, "me", 1),)), fence=Fence(U64_MAX, "x", 0)),
        Node("me", "ours", History((Epoch(1, "m" * 65, 1),))),
    ],
)
def test_a_node_s_file_with_such_a_number_is_named_as_damaged(tmp_path: Path, node: Node) -> None:
    node_file.save(Disk(), tmp_path, node)
    server = Server(tmp_path, wait=False)
    assert server.process.wait(60) == 1
    said = server.output.read_text()
    assert said.startswith("ERROR: damaged data in")
    assert node_file.NODE_NAME in said
    assert said.count("\n") == 1


# -- Every number of every operation ---------------------------------------------------------------------

KINDS = {"u64", "number", "day", "time", "text or number"}


def _numbers(op: Op) -> list[Field]:
    return [field for field in op.fields if field.kind in KINDS]


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("numbers") / "data", wal_fsync=False) as running:
        running.ask("counter.increment", series="api_requests", key=42, bucket=DAY)
        running.ask("snapshot.create_all")
        yield running


@pytest.mark.parametrize("op", [op for op in OPS if _numbers(op)], ids=lambda op: op.name)
def test_no_number_is_an_internal_error(victim: Server, op: Op) -> None:
    with victim.connect() as connection:
        for field in _numbers(op):
            for value in EXTREMES:
                fields = {**(op.example or {}), field.name: value}
                if op.name == "replication.follow":
                    # A port that can be: nobody listens on this machine's discard port.
                    fields |= {"host": "127.0.0.1", "port": 9} if field.name != "port" else {}
                if op.name == "replication.wait":
                    fields |= {"timeout_ms": 0} if field.name != "timeout_ms" else {}
                reply = connection.call(op.name, **fields)
                assert reply["error_code"] != "internal_error", (fields, reply)
        # Whatever that did to the node, its next reply and its next write are in order.
        for undo in ("replication.resume", "replication.promote"):
            connection.call(undo)
        fence = connection.ask("replication.status")["fenced_by"]
        if fence is not None:
            connection.ask("replication.unfence", epoch=fence["epoch"])
        connection.ask("system.stats")
        connection.ask("counter.increment", series="other", key=1, bucket=DAY)


def test_the_last_lsns_are_out_of_a_source_s_reach(tmp_path: Path) -> None:
    about = {"node_id": "fake", "cluster_id": "ours", "epoch": 1, "epoch_node_id": "fake", "master": None}
    history = [{"epoch": 1, "node_id": "fake", "start_lsn": 1}]

    def script(request: dict[str, Any]) -> bytes:
        if request["op"] == "replication.entries" and request.get("handshake"):
            return failure("replication_gap", "gone", reason="gap", first_lsn=U64_MAX)
        if request["op"] == "snapshot.info":
            return success({"truncated_lsn": U64_MAX, "files": []})
        return success({**about, "epochs": history, "path": ["fake"], "source_lsn": U64_MAX, "entries": []})

    options: dict[str, Any] = {"role": "slave", "replication_source_host": "127.0.0.1"}
    with Peer(script) as peer, Server(tmp_path / "a", replication_source_port=peer.port, **options) as slave:
        until(lambda: "truncated_lsn" in (slave.ask("replication.status")["replication_reason"] or ""))
        slave.ask("replication.promote")
        slave.ask("counter.increment", series="a", key=1)
        assert slave.ask("replication.status")["wal_current_lsn"] == 1
