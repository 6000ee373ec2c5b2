"""Commands that change roles: what they ask, what they send, what they show of the answer.

The answers are scripted, in the shapes of the protocol, so that every state can be had at will.
"""

from collections.abc import Iterator
from typing import Any

import ctl
import pytest
from ctl import Step
from peers import Peer, failure, success

STATUS: dict[str, Any] = {
    "role": "slave",
    "node_id": "B",
    "cluster_id": "C",
    "epoch": 3,
    "source": "127.0.0.1:1",
    "wal_current_lsn": 117,
    "replayed_lsn": 117,
    "replication_lag_entries": 3,
    "lag_ms": 40,
    "paused_until": None,
    "fenced_by": None,
}

ANSWERS: dict[str, bytes] = {
    "system.health": success({"status": "ok", "uptime_seconds": 10.0, "role": "slave", "wal_enabled": True}),
    "system.stats": success({"version": "2.0.0"}),
    "replication.status": success(STATUS),
    "replication.promote": success({"role": "master", "epoch": 4, "source": None}),
    "replication.follow": success({"role": "slave", "source": "10.0.0.9:8080"}),
    "replication.pause": success({"paused_until": 1795272966}),
    "replication.resume": success({"paused_until": None}),
    "replication.fence": success({"fenced_by": "db2 takes over", "epoch": 4}),
    "replication.unfence": success({"fenced_by": None}),
    "replication.wait": success({"acks": 1, "lsn": 117}),
    "replication.checksum": success({"lsn": 117, "digest": "9f86d081"}),
    "tree.list": success(["api_requests"]),
    "counter.increment": failure(
        "forbidden", "Writes are paused", reason="paused", retry_after_ms=2500, master=None
    ),
    "counter.decrement": failure(
        "forbidden", "This node is fenced", reason="fenced", retry_after_ms=0, master="127.0.0.1:1"
    ),
}


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer(lambda connection: connection.serve(lambda request: ANSWERS[request["op"]])) as peer:
        yield peer


@pytest.fixture
def environ(peer: Peer) -> dict[str, str]:
    return {"KARMACTL_NODES": peer.address, "SOURCE_TOKEN": "secret-9"}


def test_the_story_of_roles_is_as_it_was(environ: dict[str, str]) -> None:
    steps: list[str | Step] = [
        "replication status",
        Step("replication status", ctl.NARROW),
        "topology",
        "replication promote",
        Step("replication promote", ctl.WIDE, "n\n"),
        Step("replication promote", ctl.WIDE, "y\n"),
        "replication promote --dry-run",
        "replication promote --yes --output json",
        "replication follow 10.0.0.9 --yes",
        "replication follow unix:/run/karma.sock --yes",
        "replication follow 10.0.0.9 --rebuild --yes",
        "replication follow 10.0.0.9 --yes --source-token-env SOURCE_TOKEN --dry-run",
        "replication follow 10.0.0.9 --yes --source-token-env NO_SUCH",
        "replication pause --for 10s --yes",
        "replication resume",
        "replication fence --epoch 4",
        "replication fence --epoch 4 --reason moved",
        "replication fence --epoch 4 --reason 'db2 takes over' --yes",
        "replication unfence --epoch 4 --yes",
        "replication wait",
        "replication wait --acks 2 --lsn 117 --timeout 300ms",
        "replication wait --read-only",
        "replication resume --read-only",
        "replication checksum",
        "add api_requests 1 --timeout 300ms",
        "sub api_requests 1 --timeout 300ms",
    ]
    ctl.compare("roles-story", ctl.story(steps, environ))


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ("promote --yes", {"op": "replication.promote"}),
        ("follow 10.0.0.9 --yes", {"op": "replication.follow", "host": "10.0.0.9", "port": 8080}),
        (
            "follow [::1]:9000 --yes --source-token-env SOURCE_TOKEN",
            {"op": "replication.follow", "host": "::1", "port": 9000, "source_token": "secret-9"},
        ),
        (
            "follow 10.0.0.9 --rebuild --confirm ADDRESS",
            {"op": "replication.follow", "host": "10.0.0.9", "port": 8080, "rebuild": True},
        ),
        ("pause --for 1500ms --yes", {"op": "replication.pause", "ttl_ms": 1500}),
        ("resume", {"op": "replication.resume"}),
        ("fence --epoch 4 --reason moved --yes", {"op": "replication.fence", "epoch": 4, "reason": "moved"}),
        ("unfence --epoch 4 --yes", {"op": "replication.unfence", "epoch": 4}),
        ("wait --acks 2 --lsn 5", {"op": "replication.wait", "acks": 2, "lsn": 5, "timeout_ms": 5000}),
    ],
)
def test_what_is_sent(peer: Peer, environ: dict[str, str], line: str, request_: dict[str, Any]) -> None:
    ended = ctl.karmactl("replication", *line.replace("ADDRESS", peer.address).split(), environ=environ)
    assert ended.code in {0, 6}, ended.stderr
    assert peer.requests[-1] == {"v": 2, **request_}
    assert "secret-9" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("digest", "lsn", "code", "said"),
    [
        ("9f86d081", 117, 0, ""),
        ("00000000", 117, 8, "hold different data"),
        ("00000000", 118, 0, "different LSNs"),
    ],
)
def test_data_that_differ_at_one_lsn_are_found(
    peer: Peer, digest: str, lsn: int, code: int, said: str
) -> None:
    with Peer(
        lambda connection: connection.serve(lambda _: success({"lsn": lsn, "digest": digest}))
    ) as other:
        nodes = {"KARMACTL_NODES": f"{peer.address},{other.address}"}
        ended = ctl.karmactl("replication", "checksum", environ=nodes)
        assert (ended.code, said in ended.stderr) == (code, True)
