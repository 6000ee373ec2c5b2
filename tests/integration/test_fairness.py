"""Nobody waits for what others ask for: deletions, listings, summaries and long lines, on a real server.

What is counted are the requests that one client gets answered while others have long ones under way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import Connection, Server, request

OLD, NEW = 20260101, 20260505
KEYS = 60_000
SPAN = {"from": OLD, "to": NEW}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data", wal_fsync=False, max_request_bytes=4_000_000, read_timeout=0) as running:
        yield running


def fill(connection: Connection, series: str) -> None:
    """Give every key a bucket of OLD or of NEW, every tenth one of each."""
    for first in range(0, KEYS, 10_000):
        items = [[key, NEW if key % 2 else OLD, 1] for key in range(first, first + 10_000)]
        items += [[key, NEW, 1] for key in range(first, first + 10_000, 10)]
        for at in range(0, len(items), 10_000):
            connection.ask("series.batch_add", series=series, items=items[at : at + 10_000])


def look(connection: Connection) -> list[Any]:
    """Return what can be seen of the series."""
    return [
        connection.ask("tree.info", series="s"),
        connection.ask("tree.summary", series="s"),
        connection.ask("tree.summary", series="s", range={"from": OLD, "to": OLD + 30}),
        connection.ask("tree.top", series="s", limit=5),
        connection.ask("tree.keys", series="s", limit=10),
        connection.ask("counter.batch_sum", series="s", keys=list(range(50))),
    ]


def test_a_deletion_is_seen_from_its_reply_on_and_holds_nobody_up(server: Server) -> None:
    with server.connect() as writer, server.connect() as other:
        fill(writer, "s")
        writer.send(request("series.delete_before", series="s", before=NEW))
        assert writer.read()["response"] == "OK"
        # A write into what was deleted counts, whether a sweep has come to the key or not.
        for key in (0, 2, KEYS - 2):
            assert other.ask("counter.increment", series="s", key=key, bucket=OLD, value=7) == 7
        at_once = look(other)
        kept = KEYS // 2 + KEYS // 10
        assert at_once[0] == {
            "tree": "s",
            "key_count": kept + 2,
            "bucket_count": kept + 3,
            "total": kept + 21,
            "branches": 9,
        }
        assert [item["key"] for item in at_once[3]["items"][:3]] == [0, 2, KEYS - 2]
        digest = other.ask("replication.checksum")["digest"]
        assert other.ask("snapshot.create", series="s") == 'Tree "s" saved'
        assert look(other) == at_once
    server.kill()
    server.restart()
    with server.connect() as connection:
        assert look(connection) == at_once
        assert connection.ask("replication.checksum")["digest"] == digest
        assert connection.ask("snapshot.create_all") == "OK"
    server.kill()
    server.restart()
    with server.connect() as connection:
        assert look(connection) == at_once


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("tree.info", {}),
        ("tree.summary", {"range": SPAN}),
        ("tree.top", {"range": SPAN}),
        ("tree.keys", {"limit": 10_000}),
        ("counter.multi_sum", {"items": [{"series": "s", "key": key} for key in range(10_000)]}),
    ],
)
def test_connections_do_not_multiply_what_others_wait(
    server: Server, op: str, fields: dict[str, Any]
) -> None:
    with ExitStack() as stack:
        readers = [stack.enter_context(server.connect()) for _ in range(10)]
        other = stack.enter_context(server.connect())
        fill(other, "s")
        named = fields if "items" in fields else {"series": "s", **fields}
        for reader in readers:
            reader.send(request(op, **named))
        answered = 0
        while not all(reader.has_data() for reader in readers):
            assert other.ask("system.ping") == "pong"
            answered += 1
        replies = [reader.read() for reader in readers]
        assert all(reply["success"] or reply["error_code"] == "response_too_large" for reply in replies)
        # One reply between two turns at least, and each reader needs several of them.
        assert answered > 2 * len(readers)


def test_long_lines_of_many_connections_are_executed_one_at_a_time(server: Server) -> None:
    line = b'{"v":2,"op":"no such thing","x":[%s1]}\n' % (b"[]," * 300_000)
    with ExitStack() as stack:
        senders = [stack.enter_context(server.connect()) for _ in range(6)]
        other = stack.enter_context(server.connect())
        for sender in senders:
            sender.send(line)
        answered = 0
        while not all(sender.has_data() for sender in senders):
            assert other.ask("counter.increment", series="a", key=1) == 1
            answered += 1
        assert {sender.read()["error_code"] for sender in senders} == {"unknown_command"}
        assert answered > len(senders)


def test_requests_behind_a_long_line_are_answered_in_order(server: Server) -> None:
    long = request("counter.batch_sum", series="a", keys=list(range(3_000)))
    with server.connect() as connection:
        connection.send(
            request("counter.increment", series="a", key=1, value=3)
            + long
            + request("counter.increment", series="a", key=1, value=4)
            + long
            + request("counter.sum", series="a", key=1)
        )
        assert connection.read()["response"] == 3
        assert connection.read()["response"][1] == {"key": 1, "value": 3}
        assert connection.read()["response"] == 4
        assert connection.read()["response"][1] == {"key": 1, "value": 7}
        assert connection.read()["response"] == 7


def test_a_long_line_without_an_end_is_executed_at_the_end_of_input(server: Server) -> None:
    with server.connect() as connection:
        connection.ask("tree.create", series="a")
        connection.send(request("counter.batch_sum", series="a", keys=list(range(3_000))).rstrip())
        connection.end_input()
        assert len(connection.read()["response"]) == 3_000
        assert connection.is_ended()


def test_clients_with_long_lines_are_described_by_the_ends_of_these(server: Server) -> None:
    """A look at a hundred connections must not parse a hundred times two megabytes."""
    with server.connect() as sender, server.connect() as other:
        sender.ask("tree.create", series="a")
        sender.ask("counter.batch_sum", series="a", keys=list(range(5_000)))
        before = {one["id"]: one["last_op"] for one in other.ask("system.clients")}
        assert list(before.values()) == ["counter.batch_sum", "system.clients"]
        sender.send(b'{"v":2,"x":[%s1],"op":"counter.sum"}\n' % (b"[]," * 300_000))
        assert not sender.read()["success"]
        assert other.ask("system.clients")[0]["last_op"] == "counter.sum"
