"""limit.consume and limit.check: windows, refusals, retries, and many clients at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness import Connection, Server, request

DAY = 20260505
U64_MAX = 2**64 - 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("limits") / "data", wal_fsync=False) as running:
        yield running


@pytest.fixture
def connection(server: Server) -> Iterator[Connection]:
    with server.connect() as connected:
        if "quota" in connected.ask("tree.list"):
            connected.ask("tree.drop", series="quota")
        yield connected


def consume(
    connection: Connection, value: int, limit: int, bucket: int = DAY, **more: Any
) -> tuple[bool, int, int]:
    found = connection.ask(
        "limit.consume", series="quota", key=7, bucket=bucket, value=value, limit=limit, **more
    )
    assert set(found) == {"allowed", "used", "remaining", "limit"}
    assert found["limit"] == limit
    return found["allowed"], found["used"], found["remaining"]


def test_a_consume_counts_until_the_limit_and_then_writes_nothing(connection: Connection) -> None:
    assert consume(connection, 4, 10) == (True, 4, 6)
    assert consume(connection, 6, 10) == (True, 10, 0)
    lsn = connection.ask("system.stats")["wal_current_lsn"]
    assert consume(connection, 1, 10) == (False, 10, 0)
    assert consume(connection, 1, 5) == (False, 10, 0)
    assert connection.ask("counter.sum", series="quota", key=7) == 10
    assert connection.ask("system.stats")["wal_current_lsn"] == lsn


def test_the_value_is_one_and_the_day_today_if_left_out(connection: Connection) -> None:
    today = time.strftime("%Y%m%d", time.gmtime())
    for used in (1, 2):
        found = connection.ask("limit.consume", series="quota", key=1, limit=2)
        assert (found["allowed"], found["used"]) == (True, used)
    assert connection.ask("limit.consume", series="quota", key=1, limit=2)["allowed"] is False
    if time.strftime("%Y%m%d", time.gmtime()) == today:
        day = int(today)
        assert connection.ask("counter.sum", series="quota", key=1, range={"from": day, "to": day}) == 2


def test_each_window_counts_its_own_days(connection: Connection) -> None:
    for bucket in (20260430, 20260501, 20260505, 20260531, 20260601):
        connection.ask("counter.increment", series="quota", key=7, bucket=bucket, value=10)
    assert consume(connection, 1, 100) == (True, 11, 89)
    assert consume(connection, 1, 100, window="day") == (True, 12, 88)
    assert consume(connection, 1, 100, window="month") == (True, 33, 67)
    assert consume(connection, 1, 100, window="total") == (True, 54, 46)
    assert consume(connection, 1, 100, range={"from": 20260501, "to": 20260505}) == (True, 25, 75)
    # A bucket outside the range takes from it nothing, and is counted where it lies.
    assert consume(connection, 1, 100, range={"from": 20260501, "to": 20260501}) == (True, 10, 90)
    assert consume(connection, 1, 56, window="total") == (False, 56, 0)
    assert consume(connection, 1, 35, bucket=20260531, window="month") == (False, 36, 0)
    assert consume(connection, 1, 100, bucket=20240229, window="month") == (True, 1, 99)


def test_a_missing_series_counts_as_zero_and_only_an_allowed_write_creates_it(connection: Connection) -> None:
    assert consume(connection, 2, 1) == (False, 0, 1)
    assert "quota" not in connection.ask("tree.list")
    assert consume(connection, 1, 1) == (True, 1, 0)
    assert "quota" in connection.ask("tree.list")


def test_limits_reach_to_the_end_of_u64(connection: Connection) -> None:
    assert consume(connection, U64_MAX, U64_MAX) == (True, U64_MAX, 0)
    assert consume(connection, 1, U64_MAX) == (False, U64_MAX, 0)
    assert consume(connection, U64_MAX, U64_MAX) == (False, U64_MAX, 0)
    # Another day has room below its limit, but the key's total has none.
    code, _ = connection.refuse("limit.consume", series="quota", key=7, bucket=DAY + 1, value=1, limit=10)
    assert code == "validation_error"
    assert connection.ask("counter.sum", series="quota", key=7) == U64_MAX


def test_a_window_and_a_range_exclude_each_other(connection: Connection) -> None:
    span = {"from": DAY, "to": DAY}
    code, message = connection.refuse(
        "limit.consume", series="quota", key=7, limit=1, window="day", range=span
    )
    assert (code, "window" in message) == ("validation_error", True)


def test_a_refusal_is_not_remembered_and_an_allowed_consume_is(connection: Connection) -> None:
    fields = {
        "series": "quota",
        "key": 7,
        "bucket": DAY,
        "value": 5,
        "limit": 8,
        "idempotency_key": "consume-1",
    }
    connection.ask("counter.increment", series="quota", key=7, bucket=DAY, value=4)
    refused = connection.call("limit.consume", **fields)
    assert (refused["response"]["allowed"], refused["idempotent"]) == (False, False)
    connection.ask("counter.decrement", series="quota", key=7, bucket=DAY, value=3)
    first = connection.call("limit.consume", **fields)
    assert first["response"] == {"allowed": True, "used": 6, "remaining": 2, "limit": 8}
    assert first["idempotent"] is False
    connection.ask("counter.increment", series="quota", key=7, bucket=DAY, value=100)
    again = connection.call("limit.consume", **fields)
    assert again == {**first, "idempotent": True}
    assert connection.ask("counter.sum", series="quota", key=7) == 106
    for other in ({"limit": 9}, {"value": 4}, {"window": "month"}, {"key": 8}):
        assert connection.refuse("limit.consume", **{**fields, **other})[0] == "idempotency_conflict"
    conflict, _ = connection.refuse(
        "counter.increment", series="quota", key=7, bucket=DAY, value=5, idempotency_key="consume-1"
    )
    assert conflict == "idempotency_conflict"


def test_a_retry_gets_the_same_answer_after_a_kill_and_after_a_snapshot(tmp_path: Path) -> None:
    def answers(connection: Connection) -> list[dict[str, Any]]:
        fields = {"series": "quota", "key": 7, "bucket": DAY, "value": 3, "limit": 100}
        windows: list[dict[str, Any]] = [
            {},
            {"window": "month"},
            {"window": "total"},
            {"range": {"from": DAY, "to": DAY}},
        ]
        return [
            connection.call("limit.consume", **fields, **window, idempotency_key=f"k{number}")
            for number, window in enumerate(windows)
        ]

    with Server(tmp_path / "data") as server, server.connect() as connection:
        first = answers(connection)
        assert [each["response"]["used"] for each in first] == [3, 6, 9, 12]
        expected = [{**each, "idempotent": True} for each in first]
        for snapshot in (False, True, True):
            server.kill()
            server.restart()
            with server.connect() as again:
                assert answers(again) == expected
                assert again.ask("counter.sum", series="quota", key=7) == 12
                if snapshot:
                    again.ask("snapshot.create_all")
        assert server.stop() == 0
        server.restart()
        with server.connect() as again:
            assert answers(again) == expected


def test_a_consume_is_an_increment_in_the_log_and_never_a_fingerprint(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        consume(connection, 3, 10, window="month", idempotency_key="k")
        entry = connection.ask("replication.entries", after_lsn=0)["entries"][0]["entry"]
        assert entry["op"] == "counter.increment"
        assert {name: entry[name] for name in ("series", "key", "bucket", "value")} == {
            "series": "quota",
            "key": 7,
            "bucket": DAY,
            "value": 3,
        }
        assert entry["consume"] == {"limit": 10, "window": "month", "used": 3}
        assert "fingerprint" not in entry


def test_check_says_whether_one_more_fits_and_writes_nothing(connection: Connection) -> None:
    today = connection.ask("limit.consume", series="quota", key=7, value=5, limit=100)["used"]
    assert today == 5
    lsn = connection.ask("system.stats")["wal_current_lsn"]
    items = [
        {"series": "quota", "key": 7, "limit": 6},
        {"series": "quota", "key": 7, "limit": 5, "window": "month"},
        {"series": "quota", "key": 7, "limit": 3, "window": "total"},
        {"series": "quota", "key": 8, "limit": 0},
        {"tree": "none", "key": 7, "limit": U64_MAX},
    ]
    found = connection.ask("limit.check", items=items)
    assert [(each["series"], each["used"], each["remaining"], each["allowed"]) for each in found] == [
        ("quota", 5, 1, True),
        ("quota", 5, 0, False),
        ("quota", 5, 0, False),
        ("quota", 0, 0, False),
        ("none", 0, U64_MAX, True),
    ]
    assert connection.ask("system.stats")["wal_current_lsn"] == lsn
    assert connection.ask("limit.check", items=[]) == []


def test_check_takes_a_range_as_consume_does(connection: Connection) -> None:
    connection.ask("series.batch_add", series="quota", items=[[7, DAY, 4], [7, DAY + 1, 8]])
    for last, used in ((DAY, 4), (DAY + 1, 12)):
        item = {"series": "quota", "key": 7, "limit": 12, "range": {"from": DAY, "to": last}}
        found = connection.ask("limit.check", items=[item])[0]
        assert (found["used"], found["remaining"], found["allowed"]) == (used, 12 - used, used < 12)


def test_many_clients_at_once_never_pass_the_limit(server: Server) -> None:
    limit, clients, requests = 500, 8, 200

    def work(number: int) -> int:
        with server.connect() as connection:
            line = request(
                "limit.consume", series="shared", key=1, bucket=DAY, value=1 + number % 3, limit=limit
            )
            connection.send(line * requests)
            allowed = [connection.read()["response"]["allowed"] for _ in range(requests)]
            return allowed.count(True) * (1 + number % 3)

    with ThreadPoolExecutor(clients) as pool:
        consumed = sum(pool.map(work, range(clients)))
    assert consumed == server.ask("counter.sum", series="shared", key=1)
    assert limit - 2 <= consumed <= limit
    stats = server.ask("system.stats")
    assert stats["limit_refused_count"] > 0


# -- What is remembered ----------------------------------------------------------------------------------


def test_only_so_many_retries_are_remembered_and_for_so_long(tmp_path: Path) -> None:
    options: dict[str, Any] = {"idempotency_max_records": 3, "idempotency_max_age_seconds": 3}
    with Server(tmp_path / "data", **options) as server, server.connect() as connection:

        def add(key: str) -> int:
            connection.ask("counter.increment", series="a", key=1, bucket=DAY, idempotency_key=key)
            found: int = connection.ask("counter.sum", series="a", key=1)
            return found

        def remembered() -> int:
            found: int = connection.ask("system.stats")["idempotency_record_count"]
            return found

        assert [add(f"k{number}") for number in range(5)] == [1, 2, 3, 4, 5]
        assert remembered() <= 3
        # The oldest goes first, and counts again.
        assert add("k0") == 6
        metrics = connection.ask("system.metrics")
        assert "karma_idempotency_evicted_retries_total 1\n" in metrics
        assert "karma_idempotency_evicted_total 3\n" in metrics
        server.kill()
        server.restart()
    with Server(tmp_path / "data", **options) as server, server.connect() as connection:
        deadline = time.monotonic() + 30
        while connection.ask("system.stats")["idempotency_record_count"]:
            assert time.monotonic() < deadline, "the records never grow old"
            time.sleep(0.1)
