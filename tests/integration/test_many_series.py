"""More series than one reply can name: pages of them, and a follower's first data."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from harness import Connection, Server, request, until

from karma_client import connect

DAY = 20260505
SERIES = 10_000
SERIES_FULL = 100_000


def name_of(number: int) -> str:
    """Return a name of 200 bytes."""
    return f"{number:06d}" + "é" * 97


def fill(connection: Connection, count: int) -> None:
    for first in range(0, count, 500):
        numbers = range(first, min(first + 500, count))
        connection.send(
            b"".join(
                request("counter.increment", series=name_of(number), key=7, bucket=DAY, value=number + 1)
                for number in numbers
            )
        )
        for _ in numbers:
            assert connection.read()["success"]


def pages(connection: Connection, op: str, name: str, **fields: Any) -> list[list[Any]]:
    """Return the rows of each page of a listing."""
    found = [connection.ask(op, limit=fields.pop("limit", 3), **fields)]
    while found[-1]["next_cursor"] is not None:
        found.append(connection.ask(op, limit=3, cursor=found[-1]["next_cursor"], **fields))
    return [page[name] for page in found]


@pytest.mark.timeout(1800)
def test_a_follower_takes_more_series_than_a_reply_can_name(tmp_path: Path, is_full: bool) -> None:
    count = SERIES_FULL if is_full else SERIES
    options: dict[str, Any] = {"read_timeout": 0}
    with Server(tmp_path / "master", **options) as master:
        with master.connect(timeout_seconds=600) as connection:
            fill(connection, count)
            assert connection.refuse("tree.list")[0] == "response_too_large"
            connection.ask("snapshot.create_all")
            assert connection.refuse("snapshot.info")[0] == "response_too_large"
            # Two sets, of which most files are of the first.
            connection.ask("counter.increment", series=name_of(3), key=8, bucket=DAY)
            connection.ask("snapshot.create_all")
            lsn = connection.ask("snapshot.info", limit=1)["last_snapshot_lsn"]
            status = connection.ask("replication.status")
            assert status["latest_snapshot_count"] == count
        with connect(f"127.0.0.1:{master.port}", timeout_seconds=60) as client:
            assert client.list_series() == [name_of(number) for number in range(count)]
            assert len(client.list_snapshots()) == count + 1
            assert {snapshot.last_lsn for snapshot in client.snapshot_info().snapshots} == {lsn}
        with Server(
            tmp_path / "slave",
            role="slave",
            replication_source_host="127.0.0.1",
            replication_source_port=master.port,
            **options,
        ) as slave:
            with slave.connect(timeout_seconds=600) as connection:
                until(lambda: connection.ask("replication.status")["replayed_lsn"] == lsn, seconds=1200)
                for number in (0, 3, count - 1):
                    assert connection.ask("counter.sum", series=name_of(number), key=7) == number + 1
                assert connection.ask("counter.sum", series=name_of(3), key=8) == 1
            checksums = []
            for server in (master, slave):
                with server.connect(timeout_seconds=600) as connection:
                    checksums.append(connection.ask("replication.checksum"))
            assert checksums[0] == checksums[1]


def test_pages_are_in_order_and_survive_drops_in_between(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        names = ["d", "b", "\\", "a/b", "c", "é", "z", "y"]
        for name in names:
            connection.ask("tree.create", series=name)
        connection.ask("snapshot.create_all")
        assert pages(connection, "tree.list", "series") == [names[:3], names[3:6], names[6:]]
        files = connection.ask("snapshot.list")
        assert [*chain(*pages(connection, "snapshot.list", "files"))] == files
        info = connection.ask("snapshot.info")
        latest = pages(connection, "snapshot.info", "latest_by_tree")
        assert [*chain(*latest)] == info["latest_by_tree"]
        assert [len(page) for page in latest] == [3, 3, 2]
        page = connection.ask("snapshot.info", cursor=None)
        assert {**page, "next_cursor": None} == {**info, "next_cursor": None}

        listings = {"tree.list": "series", "snapshot.list": "files", "snapshot.info": "latest_by_tree"}
        first = {op: connection.ask(op, limit=3) for op in listings}
        for name in ("\\", "a/b", "d"):
            connection.ask("tree.drop", series=name)
        connection.ask("tree.create", series="new")
        connection.ask("snapshot.create_all")
        rest = {
            op: connection.ask(op, limit=100, cursor=first[op]["next_cursor"])[rows]
            for op, rows in listings.items()
        }
        assert rest["tree.list"] == ["c", "é", "z", "y", "new"]
        stale = ("\\.tree", "a%2Fb.tree", "d.tree")
        kept = [path for path in files[3:] if not path.endswith(stale)]
        assert [path for path in rest["snapshot.list"] if not path.endswith("_new.tree")] == kept
        last = first["snapshot.info"]["latest_by_tree"][-1]["tree"]
        expected = sorted({"b", "c", "é", "z", "y", "new"})
        assert [each["tree"] for each in rest["snapshot.info"]] == [name for name in expected if name > last]


@pytest.mark.parametrize("op", ["tree.list", "snapshot.list", "snapshot.info"])
def test_pages_end_before_the_longest_reply(tmp_path: Path, op: str) -> None:
    rows = {"tree.list": "series", "snapshot.list": "files", "snapshot.info": "latest_by_tree"}[op]
    with Server(tmp_path / "data", max_response_bytes=20_000) as server, server.connect() as connection:
        fill(connection, 200)
        connection.ask("snapshot.create_all")
        cursor, seen, count = None, 0, 0
        while True:
            reply = connection.call(op, limit=10_000, cursor=cursor)
            assert reply["success"], reply
            assert len(json.dumps(reply, ensure_ascii=False).encode()) < 20_000
            seen, count = seen + len(reply["response"][rows]), count + 1
            cursor = reply["response"]["next_cursor"]
            if cursor is None:
                break
        assert (seen, count > 2) == (200, True)


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("tree.list", {"limit": 0}),
        ("tree.list", {"limit": 10_001}),
        ("tree.list", {"cursor": "b"}),
        ("tree.list", {"cursor": 5}),
        ("snapshot.list", {"cursor": "no name"}),
        ("snapshot.info", {"cursor": "x" * 2_000}),
        ("snapshot.info", {"limit": "3"}),
    ],
)
def test_pages_refuse_what_no_page_gave(tmp_path: Path, op: str, fields: dict[str, Any]) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        assert connection.refuse(op, **fields)[0] == "validation_error"
