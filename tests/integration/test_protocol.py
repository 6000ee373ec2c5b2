"""Framing, the order of checks, numbers, days and bounds, as bytes on a socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Connection, Server, counters_of, request, until

from karma_client import LimitQuery, connect

U64_MAX = 2**64 - 1
DAY = 20260505


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(
        tmp_path_factory.mktemp("protocol") / "data", wal_fsync=False, max_request_bytes=2_000_000
    ) as running:
        yield running


@pytest.fixture
def connection(server: Server) -> Iterator[Connection]:
    with server.connect() as connected:
        yield connected


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(
        tmp_path_factory.mktemp("narrow") / "data", wal_fsync=False, max_request_bytes=100
    ) as running:
        yield running


def code_of(connection: Connection, line: bytes) -> str:
    """Return the error code of a line that must fail, and see that the connection goes on."""
    connection.send(line + b"\n" + request("system.ping"))
    reply = connection.read()
    assert set(reply) == {"protocol_version", "success", "response", "error_code"}
    assert (reply["protocol_version"], reply["success"]) == (2, False)
    assert isinstance(reply["response"], str)
    assert reply["response"]
    assert connection.read()["response"] == "pong"
    return str(reply["error_code"])


# -- Framing ---------------------------------------------------------------------------------------


def test_replies_are_json_objects_that_end_in_cr_lf(connection: Connection) -> None:
    connection.send(request("system.ping"))
    assert (
        connection.read_line()
        == b'{"protocol_version":2,"success":true,"response":"pong","error_code":null}\r\n'
    )


def test_requests_may_end_in_cr_lf(connection: Connection) -> None:
    connection.send(
        request("system.ping").rstrip() + b"\r\n" + request("tree.create", series="crlf").rstrip() + b"\r\n"
    )
    assert [connection.read()["response"] for _ in range(2)] == ["pong", "OK"]


@pytest.mark.parametrize("line", [b"", b"\r", b" ", b"\t \r"])
def test_a_blank_line_is_invalid_json(connection: Connection, line: bytes) -> None:
    assert code_of(connection, line) == "invalid_json"


def test_thousands_of_pipelined_lines_are_answered_in_order(connection: Connection) -> None:
    lines = b"".join(
        request("counter.increment", series="pipe", key=number, bucket=DAY, value=number + 1)
        for number in range(5000)
    )
    connection.send(lines + request("tree.summary", series="pipe"))
    assert [connection.read()["response"] for _ in range(5000)] == list(range(1, 5001))
    assert connection.read()["response"]["total"] == 5000 * 5001 // 2


def test_a_request_may_come_one_byte_at_a_time(connection: Connection) -> None:
    for byte in request("counter.increment", series="bytewise", key=1, bucket=DAY, value=7):
        connection.send(bytes([byte]))
    assert connection.read()["response"] == 7
    assert connection.ask("counter.sum", series="bytewise", key=1) == 7


def test_an_unterminated_last_line_is_executed_at_end_of_input(server: Server) -> None:
    with server.connect() as connection:
        connection.send(
            request("system.ping") + request("counter.increment", series="eof", key=1, value=3).rstrip()
        )
        connection.end_input()
        assert [connection.read()["response"] for _ in range(2)] == ["pong", 3]
        assert connection.read_line() == b""
    assert server.ask("counter.sum", series="eof", key=1) == 3


def test_an_end_of_input_without_a_rest_closes_the_connection(server: Server) -> None:
    with server.connect() as connection:
        connection.send(request("system.ping"))
        connection.end_input()
        assert connection.read()["response"] == "pong"
        assert connection.read_line() == b""


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_of_exactly_max_request_bytes_is_taken(narrow: Server, end: bytes) -> None:
    with narrow.connect() as connection:
        connection.send(request("system.ping").rstrip().ljust(100) + end)
        assert connection.read()["response"] == "pong"


@pytest.mark.parametrize("rest", [b"x" * 101 + b"\n", b"x" * 102, b"x" * 50_000 + b"\n" + b"y" * 50_000])
def test_an_oversized_line_is_refused_behind_the_replies_before_it(narrow: Server, rest: bytes) -> None:
    with narrow.connect() as connection:
        connection.send(request("system.ping") + request("tree.list") + rest)
        assert connection.read()["response"] == "pong"
        assert connection.read()["success"]
        refused = connection.read()
        assert (refused["success"], refused["error_code"]) == (False, "request_too_large")
        assert "max-request-bytes" in refused["response"]
        assert connection.is_ended()
    assert narrow.ask("system.ping") == "pong"


def test_a_last_line_without_its_end_has_the_same_bound(narrow: Server) -> None:
    for size, expected in ((100, None), (101, "request_too_large")):
        with narrow.connect() as connection:
            connection.send(request("system.ping").rstrip().ljust(size))
            connection.end_input()
            assert connection.read()["error_code"] == expected
            assert connection.is_ended()


def test_an_oversized_line_behind_a_slow_operation_is_refused_behind_its_reply(narrow: Server) -> None:
    with narrow.connect() as connection:
        connection.send(request("snapshot.create_all") + request("system.ping") + b"x" * 200)
        assert [connection.read()["response"] for _ in range(2)] == ["OK", "pong"]
        assert connection.read()["error_code"] == "request_too_large"
        assert connection.is_ended()


def test_requests_behind_a_slow_operation_of_the_connection_wait_for_it(connection: Connection) -> None:
    connection.ask("tree.create", series="before_snapshot")
    connection.send(
        request("snapshot.create", series="before_snapshot") + request("tree.list") + request("system.ping")
    )
    assert connection.read()["response"] == 'Tree "before_snapshot" saved'
    assert "before_snapshot" in connection.read()["response"]
    assert connection.read()["response"] == "pong"


# -- The order of checks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "invalid_json"),
        (b'{"v":2,"op":"system.ping"} {}', "invalid_json"),
        (b"{'v':2}", "invalid_json"),
        (b'{"v":2,"op":NaN}', "invalid_json"),
        (b'{"v":2,"op":"system.ping","x":"\xff"}', "invalid_json"),
        (b'{"v":2,"op":"system.ping","x":"\xed\xa0\x80"}', "invalid_json"),
        (b'{"v":2,"op":"tree.create","series":"\\ud800"}', "invalid_json"),
        (b'{"v":2,"op":"system.ping","x":"\x00"}', "invalid_json"),
        (b"\x00\x01\x02", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"v":2,"op":"system.ping","x":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, "invalid_json"),
        (b"[]", "validation_error"),
        (b'"system.ping"', "validation_error"),
        (b"null", "validation_error"),
        (b"2", "validation_error"),
        (b"[" * 500 + b"]" * 500, "validation_error"),
        (b"{}", "unsupported_protocol"),
        (b'{"v":1,"op":"system.ping"}', "unsupported_protocol"),
        (b'{"v":"2","op":"system.ping"}', "unsupported_protocol"),
        (b'{"v":null,"op":"nonsense"}', "unsupported_protocol"),
        (b'{"v":3,"op":7}', "unsupported_protocol"),
        (b'{"op":"nonsense"}', "unsupported_protocol"),
        (b'{"command":"ping"}', "unsupported_protocol"),
        (b'{"v":2}', "validation_error"),
        (b'{"v":2,"op":null}', "validation_error"),
        (b'{"v":2,"op":7}', "validation_error"),
        (b'{"v":2,"op":["system.ping"]}', "validation_error"),
        (b'{"v":2,"op":{"a":1}}', "validation_error"),
        (b'{"v":2,"op":""}', "unknown_command"),
        (b'{"v":2,"op":"system.Ping"}', "unknown_command"),
        (b'{"v":2,"op":"counter.nonsense","series":7}', "unknown_command"),
        (b'{"v":2,"op":"counter.increment"}', "validation_error"),
        (b'{"v":2,"op":"counter.sum","series":"no such","key":-1}', "validation_error"),
        (b'{"v":2,"op":"counter.sum","series":"no such","key":1}', "not_found"),
    ],
)
def test_checks_come_in_the_protocol_s_order(connection: Connection, line: bytes, code: str) -> None:
    assert code_of(connection, line) == code


def test_of_duplicate_json_keys_the_last_one_counts(connection: Connection) -> None:
    connection.send(b'{"v":1,"op":"tree.list","op":"system.ping","v":2}\n')
    assert connection.read()["response"] == "pong"


# -- Numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2**53 + 1, 2**63 - 1, 2**63, U64_MAX])
def test_keys_and_values_take_every_u64_without_rounding(connection: Connection, number: int) -> None:
    series = f"edge_{number}"
    value = max(number, 1)
    assert connection.ask("counter.increment", series=series, key=number, bucket=DAY, value=value) == value
    assert connection.ask("counter.sum", series=series, key=number) == value
    assert connection.ask("tree.keys", series=series)["keys"] == [{"key": number, "total": value}]
    assert connection.ask("counter.batch_sum", series=series, keys=[number]) == [
        {"key": number, "value": value}
    ]
    assert connection.ask("tree.top", series=series)["items"] == [{"key": number, "value": value}]
    span = {"from": DAY, "to": DAY}
    assert connection.ask("tree.series", series=series, range=span) == {str(number): {str(DAY): value}}
    assert connection.ask("series.batch_set", series=series, items=[[number, DAY, number]]) == {"applied": 1}
    assert connection.ask("counter.sum", series=series, key=number) == number


@pytest.mark.parametrize(
    "number", ["18446744073709551616", "1e30", "-1", "-0.0", "1.5", "1.0", "1e3", '"1"', "true", "[]", "{}"]
)
@pytest.mark.parametrize("field", ["key", "value"])
def test_what_is_no_u64_is_refused_and_never_rounded(connection: Connection, field: str, number: str) -> None:
    fields = {"key": "1", "value": "1"} | {field: number}
    line = (
        '{"v":2,"op":"counter.increment","series":"refused","bucket":20260505,'
        f'"key":{fields["key"]},"value":{fields["value"]}}}\n'
    )
    connection.send(line.encode())
    reply = connection.read()
    assert reply["error_code"] == "validation_error"
    assert f"Field {field} " in reply["response"]
    assert "refused" not in connection.ask("tree.list")


def test_an_increment_or_decrement_by_zero_is_refused(connection: Connection) -> None:
    for op in ("counter.increment", "counter.decrement"):
        code, message = connection.refuse(op, series="zero", key=1, value=0)
        assert (code, "value" in message) == ("validation_error", True)
    assert "zero" not in connection.ask("tree.list")


def unchanged(connection: Connection, series: str, op: str, **fields: Any) -> None:
    """A request that must be refused as too large a number, changing neither data nor log."""
    before = counters_of(connection), connection.ask("system.stats")["wal_current_lsn"]
    code, message = connection.refuse(op, series=series, **fields)
    assert code == "validation_error"
    assert "18446744073709551615" in message
    assert (counters_of(connection), connection.ask("system.stats")["wal_current_lsn"]) == before


def test_an_overflow_of_a_bucket_changes_nothing(connection: Connection) -> None:
    connection.ask("counter.increment", series="over", key=1, bucket=DAY, value=U64_MAX)
    unchanged(connection, "over", "counter.increment", key=1, bucket=DAY)
    unchanged(connection, "over", "series.batch_add", items=[[2, DAY, 1], [1, DAY, 1]])


def test_an_overflow_of_a_total_over_days_changes_nothing(connection: Connection) -> None:
    connection.ask("counter.increment", series="total", key=1, bucket=DAY, value=U64_MAX - 5)
    connection.ask("counter.increment", series="total", key=1, bucket=DAY + 1, value=5)
    for day in (DAY - 1, DAY, DAY + 1, DAY + 2):
        unchanged(connection, "total", "counter.increment", key=1, bucket=day)
        unchanged(connection, "total", "series.batch_add", items=[[9, day, 1], [1, day, 1]])
        unchanged(connection, "total", "limit.consume", key=1, bucket=day, limit=U64_MAX, window="day")
    unchanged(connection, "total", "series.batch_set", items=[[2, DAY, 1], [1, DAY + 1, 6]])
    assert connection.ask("series.batch_set", series="total", items=[[1, DAY, 0], [1, DAY + 1, U64_MAX]]) == {
        "applied": 2
    }


def test_a_batch_or_chunk_whose_values_add_up_past_u64_changes_nothing(connection: Connection) -> None:
    items = [[1, DAY, U64_MAX], [2, DAY, U64_MAX]]
    connection.ask("tree.create", series="adds_up")
    unchanged(connection, "adds_up", "series.batch_add", items=items)
    for mode in ("add", "set", "replace_series"):
        connection.ask("ingest.begin", stream_id=f"adds-up-{mode}", mode=mode)
        unchanged(
            connection, "adds_up", "ingest.chunk", stream_id=f"adds-up-{mode}", chunk_seq=1, items=items
        )
        assert connection.ask("ingest.abort", stream_id=f"adds-up-{mode}")["last_chunk_seq"] == 0


def test_a_display_total_past_u64_is_saturated_and_says_so(connection: Connection) -> None:
    """One absurd key must not keep a series from being looked at, nor from being dropped after a look."""
    connection.ask("counter.increment", series="wide", key=1, bucket=DAY, value=U64_MAX)
    looks: tuple[tuple[str, dict[str, Any]], ...] = (
        ("tree.info", {}),
        ("tree.summary", {}),
        ("tree.summary", {"range": {"from": DAY, "to": DAY}}),
    )
    for op, fields in looks:
        found = connection.ask(op, series="wide", **fields)
        assert (found["total"], "total_saturated" in found) == (U64_MAX, False), "exactly 2^64-1 is no guess"
    connection.ask("counter.increment", series="wide", key=2, bucket=DAY, value=1)
    for op, fields in looks:
        found = connection.ask(op, series="wide", **fields)
        assert (found["total"], found["total_saturated"], found["bucket_count"]) == (U64_MAX, True, 2)
    assert connection.ask("tree.top", series="wide")["items"][0]["value"] == U64_MAX
    assert connection.ask("tree.drop", series="wide") == "OK"


def test_reports_past_u64_leave_the_stats_readable(connection: Connection) -> None:
    for _ in range(2):
        connection.ask(
            "reconciliation.report", checked_points=U64_MAX, mismatch_count=U64_MAX, absolute_drift=U64_MAX
        )
    assert connection.ask("system.stats")["reconciliation_absolute_drift"] == U64_MAX
    assert f"karma_reconciliation_mismatches_total {U64_MAX}" in connection.ask("system.metrics")


# -- Batches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [[3, DAY, -1], [3, 20260230, 1], [3, DAY], [-3, DAY, 1], [3, DAY, 1.5], "abc", None]
)
@pytest.mark.parametrize("op", ["series.batch_add", "series.batch_set"])
def test_a_batch_is_all_or_nothing(connection: Connection, op: str, bad: Any) -> None:
    connection.ask("series.batch_set", series="whole", items=[[1, DAY, 5]])
    before = connection.ask("system.stats")["wal_current_lsn"]
    code, message = connection.refuse(op, series="whole", items=[[1, DAY, 7], [2, DAY, 7], bad])
    assert (code, "item" in message) == ("validation_error", True)
    assert connection.ask("tree.keys", series="whole")["keys"] == [{"key": 1, "total": 5}]
    assert connection.ask("system.stats")["wal_current_lsn"] == before


def test_a_batch_add_of_zero_is_refused_and_a_batch_set_of_zero_deletes(connection: Connection) -> None:
    connection.ask("series.batch_add", series="zeroes", items=[[1, DAY, 5], [1, DAY + 1, 6]])
    assert (
        connection.refuse("series.batch_add", series="zeroes", items=[[1, DAY, 1], [1, DAY, 0]])[0]
        == "validation_error"
    )
    connection.ask("series.batch_set", series="zeroes", items=[[1, DAY, 0]])
    assert connection.ask("counter.series", series="zeroes", key=1, range={"from": DAY, "to": DAY + 1}) == {
        str(DAY + 1): 6
    }


def test_ten_thousand_items_fit_and_one_more_does_not(connection: Connection) -> None:
    items = [[key, DAY, 1] for key in range(10_001)]
    keys = list(range(10_001))
    assert connection.ask("series.batch_add", series="many", items=items[:-1]) == {
        "applied": 10_000,
        "total": 10_000,
    }
    assert len(connection.ask("counter.batch_sum", series="many", keys=keys[:-1])) == 10_000
    for op, fields in (
        ("series.batch_add", {"items": items}),
        ("series.batch_set", {"items": items}),
        ("counter.batch_sum", {"keys": keys}),
        ("counter.batch_reset", {"keys": keys}),
        ("counter.batch_delete_range", {"keys": keys, "range": {"from": DAY, "to": DAY}}),
        ("counter.multi_sum", {"items": [{"series": "many", "key": key} for key in keys]}),
        ("limit.check", {"items": [{"series": "many", "key": key, "limit": 1} for key in keys]}),
    ):
        code, message = connection.refuse(op, series="many", **fields)
        assert (code, "exceeds" in message) == ("validation_error", True)
    assert connection.ask("tree.info", series="many")["total"] == 10_000


# -- Days and ranges ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bucket", [20240229, "2024-02-29", "20240229"])
def test_a_bucket_is_a_day_in_three_spellings(connection: Connection, bucket: int | str) -> None:
    span = {"from": 20240229, "to": 20240229}
    connection.ask("tree.create", series="spelt")
    before = connection.ask("counter.sum", series="spelt", key=1, range=span)
    connection.ask("counter.increment", series="spelt", key=1, bucket=bucket)
    connection.ask("series.batch_add", series="spelt", items=[[1, bucket, 1]])
    assert connection.ask("counter.sum", series="spelt", key=1, range=span) == before + 2


@pytest.mark.parametrize(
    "bucket",
    [0, 1, 20260230, 20250229, 20260100, 20261301, 20260431, 202605, 99999999, 202605050, -20260505, U64_MAX,
     "2026-02-30", "2026-5-5", "20260505 ", "2026/05/05", "²0260505", "", "today", 20260505.0, True, [], {}],
)  # fmt: skip
def test_what_is_no_calendar_date_is_refused(connection: Connection, bucket: Any) -> None:
    for op, fields in (
        ("counter.increment", {"key": 1, "bucket": bucket}),
        ("counter.decrement", {"key": 1, "bucket": bucket}),
        ("limit.consume", {"key": 1, "bucket": bucket, "limit": 5}),
        ("series.batch_add", {"items": [[1, bucket, 1]]}),
        ("counter.sum", {"key": 1, "range": {"from": bucket, "to": DAY}}),
        ("counter.sum", {"key": 1, "range": {"from": DAY, "to": bucket}}),
        ("series.delete_before", {"before": bucket}),
    ):
        assert connection.refuse(op, series="dates", **fields)[0] == "validation_error", op
    assert "dates" not in connection.ask("tree.list")


def test_only_bucket_takes_a_day_as_text(connection: Connection) -> None:
    connection.ask("tree.create", series="texts")
    day = "2026-05-05"
    for op, fields in (
        ("counter.increment", {"key": 1, "date": day}),
        ("counter.sum", {"key": 1, "range": {"from": day, "to": DAY}}),
        ("series.delete_before", {"before": day}),
    ):
        assert connection.refuse(op, series="texts", **fields)[0] == "validation_error"


def test_a_range_spans_at_most_366_days_both_inclusive(connection: Connection) -> None:
    for day in (20240101, 20250101, 20250102):
        connection.ask("counter.increment", series="span", key=1, bucket=day)
    assert connection.ask("counter.sum", series="span", key=1, range={"from": 20240101, "to": 20250101}) == 2
    too_long = {"from": 20240101, "to": 20250102}
    for op in (
        "counter.sum",
        "counter.series",
        "tree.series",
        "tree.summary",
        "tree.top",
        "tree.delete_range",
    ):
        assert connection.refuse(op, series="span", key=1, range=too_long)[0] == "validation_error"
    code, message = connection.refuse(
        "counter.sum", series="span", key=1, range={"from": 20250102, "to": 20250101}
    )
    assert (code, "range" in message) == ("validation_error", True)


def test_date_wins_over_bucket_and_tree_over_series(connection: Connection) -> None:
    connection.ask(
        "counter.increment", tree="alias_tree", series="alias_series", key=1, date=DAY, bucket=20200101
    )
    assert connection.ask("counter.sum", tree="alias_tree", key=1, range={"from": DAY, "to": DAY}) == 1
    assert "alias_series" not in connection.ask("tree.list")
    assert (
        connection.ask("counter.multi_sum", items=[{"tree": "alias_tree", "series": "x", "key": 1}])[0][
            "value"
        ]
        == 1
    )
    assert connection.ask("series.delete_before", tree="alias_tree", date=DAY + 1) == "OK"
    assert connection.ask("tree.info", tree="alias_tree")["key_count"] == 0


# -- Names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "x" * 201, "é" * 101, "a\nb", "a\tb", "a\0b", "\x7f", "\x85", "a\r"])
def test_series_names_without_length_or_with_control_characters_are_refused(
    connection: Connection, name: str
) -> None:
    code, message = connection.refuse("tree.create", series=name)
    assert (code, "series" in message) == ("validation_error", True)


@pytest.mark.parametrize(
    "name", ["x" * 200, "é" * 100, "../evil", "/", "%2F", "日本 \U0001f600", '"\\', " ", "\xa0"]
)
def test_every_other_name_of_1_to_200_bytes_is_a_series(connection: Connection, name: str) -> None:
    assert connection.ask("counter.increment", series=name, key=1, bucket=DAY, value=2) == 2
    assert connection.ask("tree.info", series=name)["tree"] == name
    assert name in connection.ask("tree.list")
    assert connection.ask("tree.drop", series=name) == "OK"


@pytest.mark.parametrize(
    "file",
    [
        "../1_a.tree",
        "/etc/passwd",
        "a/1_a.tree",
        "..",
        ".",
        "1_a",
        "1_a.tree\0",
        "1_a.tree.meta.json",
        "..\\1_a.tree",
        "x" * 251 + ".tree",
    ],
)
@pytest.mark.parametrize("op", ["snapshot.load", "snapshot.fetch", "snapshot.fetch_chunk"])
def test_a_snapshot_file_name_is_no_path(connection: Connection, op: str, file: str) -> None:
    code, message = connection.refuse(op, file=file)
    assert (code, "file" in message) == ("validation_error", True)


def test_an_unknown_snapshot_file_is_not_found(connection: Connection) -> None:
    for op in ("snapshot.load", "snapshot.fetch", "snapshot.fetch_chunk"):
        assert connection.refuse(op, file="1_none.tree")[0] == "not_found"


# -- Large answers -----------------------------------------------------------------------------------


def test_a_response_that_is_too_large_is_refused_and_writes_are_still_answered(tmp_path: Path) -> None:
    bounds: dict[str, Any] = {"max_response_bytes": 200, "max_request_bytes": 100_000}
    with Server(tmp_path / "data", wal_fsync=False, **bounds) as server, server.connect() as connection:
        connection.ask("series.batch_add", series="large", items=[[key, DAY, 1] for key in range(1000)])
        for op, fields in (
            ("tree.keys", {}),
            ("tree.top", {}),
            ("tree.series", {"range": {"from": DAY, "to": DAY}}),
            ("counter.batch_sum", {"keys": list(range(100))}),
            ("system.stats", {}),
        ):
            assert connection.refuse(op, series="large", **fields)[0] == "response_too_large"
        stream = "s" * 256
        # A write that was made is never reported as failed, however long its answer.
        assert connection.ask("ingest.begin", stream_id=stream, mode="add")["status"] == "active"
        assert (
            connection.ask("ingest.chunk", stream_id=stream, series="large", chunk_seq=1, items=[])["applied"]
            == 0
        )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("large") / "data"
    with Server(
        directory, wal_fsync=False, max_request_bytes=2_000_000, max_response_bytes=0, query_timeout_ms=60_000
    ) as running:
        with running.connect() as connection:
            for part in range(30):
                first = part * 10_000
                connection.ask(
                    "series.batch_add",
                    series="huge",
                    items=[[key, DAY, 1] for key in range(first, first + 10_000)],
                )
        yield running


def test_pings_are_answered_while_a_large_read_runs(large: Server) -> None:
    with large.connect() as reader, large.connect() as other:
        reader.send(request("tree.series", series="huge", range={"from": DAY, "to": DAY}))
        answered = 0
        while not reader.has_data():
            assert other.ask("system.ping") == "pong"
            # Writes go on, too; a read in slices sees each key as it is when its slice is read.
            assert other.ask("counter.increment", series="huge", key=10**6 + answered, bucket=DAY) == 1
            answered += 1
        assert answered > 5
        found = reader.read()["response"]
        assert len([key for key in found if int(key) < 300_000]) == 300_000


def test_whole_series_reads_are_right_across_slices(large: Server) -> None:
    with large.connect() as connection:
        assert connection.ask("counter.increment", series="huge", key=150_000, bucket=DAY, value=9) == 9
        top = connection.ask("tree.top", series="huge", limit=3)
        assert top["items"] == [{"key": 150_000, "value": 10}, {"key": 0, "value": 1}, {"key": 1, "value": 1}]
        page = connection.ask("tree.keys", series="huge", limit=2, cursor=149_999)
        assert page["keys"] == [{"key": 150_000, "total": 10}, {"key": 150_001, "total": 1}]
        assert page["next_cursor"] == 150_001


def test_a_read_past_the_query_timeout_ends_with_query_timeout(large: Server) -> None:
    assert large.stop() == 0
    large.restart(query_timeout_ms=1)
    with large.connect() as connection:
        for op in ("tree.info", "tree.keys", "tree.summary", "tree.top"):
            assert connection.refuse(op, series="huge")[0] == "query_timeout"
        assert (
            connection.refuse("tree.series", series="huge", range={"from": DAY, "to": DAY})[0]
            == "query_timeout"
        )
        assert connection.ask("counter.sum", series="huge", key=1) == 1
        assert connection.ask("system.stats")["query_timeout_count"] == 5


def test_json_of_the_reply_is_the_same_for_a_pipelined_and_a_single_request(connection: Connection) -> None:
    lines = [
        request("system.ping"),
        b"nonsense\n",
        request("tree.info", series="no such"),
        request("tree.create", series="same"),
    ]
    single = []
    for line in lines:
        connection.send(line)
        single.append(json.loads(connection.read_line()))
    connection.send(b"".join(lines))
    assert [json.loads(connection.read_line()) for _ in lines] == single


def test_nothing_of_ours_sends_a_field_that_is_unknown(tmp_path: Path) -> None:
    with Server(tmp_path / "master", strict_fields=True) as master, master.connect() as connection:
        code, message = connection.refuse("counter.increment", series="a", key=1, valu=5)
        assert (code, message) == (
            "validation_error",
            "Field valu is unknown to counter.increment; did you mean value?",
        )
        source: dict[str, Any] = {
            "replication_source_host": "127.0.0.1",
            "replication_source_port": master.port,
        }
        with (
            Server(tmp_path / "slave", role="slave", strict_fields=True, **source) as slave,
            slave.connect() as other,
            connect(f"127.0.0.1:{master.port}") as client,
        ):
            client.increment("a", 1, 5)
            client.ingest("s", "a", [(2, 20260505, 1)])
            assert client.check_limits([LimitQuery("a", 2, 3, day=20260505)])[0].used == 1
            client.create_snapshots()
            until(lambda: other.ask("replication.checksum") == connection.ask("replication.checksum"))
            assert other.ask("system.stats")["replication_state"] == "following"
        errors = connection.ask("system.stats")["error_count"]
        assert errors == 1, "the one that was refused above"


def test_requests_with_unknown_fields_are_counted(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        connection.ask("counter.increment", series="a", key=1, valu=5)
        assert connection.ask("counter.sum", series="a", key=1) == 1
        assert "karma_requests_with_unknown_fields_total 1\n" in connection.ask("system.metrics")
