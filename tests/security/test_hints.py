"""Requests and tokens go to the nodes that were given, and a command says where it went."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from ctl import karmactl
from faults.peers import Peer, failure, success
from harness import Server, until

TOKENS: dict[str, Any] = {"auth_token": "write", "replication_token": "peer"}
ENVIRON = {"KARMACTL_TOKEN": "write"}


class Pair(NamedTuple):
    master: str
    slave: str
    server: Server

    @property
    def value(self) -> int:
        """What the master holds."""
        with self.server.connect() as connection:
            reply = connection.call("counter.sum", series="a", key=1, token="write")
        return int(reply["response"]) if reply["success"] else 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("hints")
    with Server(folder / "master", wal_fsync=False, **TOKENS) as master:
        source: dict[str, Any] = {"replication_source_host": "127.0.0.1", "role": "slave"}
        source["replication_source_port"] = master.port
        with Server(folder / "slave", wal_fsync=False, **source, **TOKENS) as slave:
            until(lambda: slave.ask("replication.status", token="write")["replication_state"] == "following")
            yield Pair(f"127.0.0.1:{master.port}", f"127.0.0.1:{slave.port}", master)


def test_a_write_to_a_slave_is_refused_and_names_the_master(pair: Pair) -> None:
    before = pair.value
    ended = karmactl("add", "a", "1", "--node", pair.slave, environ=ENVIRON)
    assert ended.code != 0
    assert pair.master in ended.stderr
    assert "--follow-hints" in ended.stderr
    assert pair.value == before


def test_with_follow_hints_it_says_where_it_went(pair: Pair) -> None:
    before = pair.value
    ended = karmactl("add", "a", "1", "--node", pair.slave, "--follow-hints", environ=ENVIRON)
    assert (ended.code, pair.value) == (0, before + 1)
    assert f"sent to {pair.master}, which {pair.slave} named as the master" in ended.stderr


def test_verbose_names_the_node_that_answered(pair: Pair) -> None:
    nodes = ("--node", pair.slave, "--node", pair.master)
    assert (
        f"sent to {pair.master}, the master"
        in karmactl("add", "a", "1", "-v", *nodes, environ=ENVIRON).stderr
    )
    assert f"sent to {pair.slave}\n" in karmactl("sum", "a", "1", "-v", *nodes, environ=ENVIRON).stderr
    assert "sent to" not in karmactl("add", "a", "1", *nodes, environ=ENVIRON).stderr


def test_dry_run_names_the_node_that_would_get_the_write(pair: Pair) -> None:
    before = pair.value
    nodes = ("--node", pair.slave, "--node", pair.master)
    ended = karmactl("add", "a", "1", "--dry-run", *nodes, environ=ENVIRON)
    assert ended.code == 0
    assert f"to {pair.master};" in ended.stdout
    assert pair.slave not in ended.stdout
    alone = karmactl("add", "a", "1", "--dry-run", "--node", pair.slave, environ=ENVIRON)
    assert alone.code != 0
    assert pair.master in alone.stderr
    assert pair.value == before


@pytest.mark.parametrize("command", ["add a 1", "sub a 1", "series drop a --confirm a"])
def test_a_node_that_lies_gets_no_token_carried_elsewhere(command: str) -> None:
    with Peer(lambda _: success({"role": "master"})) as thief:
        address = f"127.0.0.1:{thief.port}"

        def lies(request: dict[str, Any]) -> bytes:
            if request["op"] == "replication.status":
                return success({"role": "slave", "source": address, "master": address})
            return failure("forbidden", "elsewhere", reason="role", retry_after_ms=1, master=address)

        with Peer(lies) as one, Peer(lies) as other:
            for nodes in ((one,), (one, other)):
                given = [word for node in nodes for word in ("--node", f"127.0.0.1:{node.port}")]
                ended = karmactl(*command.split(), *given, environ=ENVIRON)
                assert ended.code != 0
                assert address in ended.stderr
        assert thief.requests == []
