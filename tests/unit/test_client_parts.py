"""The client's pure parts: addresses, days, errors, replies, which node is the master; what is loaded."""

from __future__ import annotations

import asyncio
import doctest
import subprocess
import sys
from datetime import UTC, date, datetime
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import karma_client
from karma.errors import ErrorCode
from karma.ops import BY_NAME
from karma_client import binding, calls, days, errors, nodes
from karma_client.calls import MAX_REPLY_BYTES, Exchange, Pending, number, read, take_reply, write
from karma_client.days import Day, day_number, to_date
from karma_client.errors import (
    ForbiddenError,
    InvalidArgumentError,
    KarmaError,
    NoMasterError,
    ProtocolError,
    ReplyError,
    SplitBrainError,
    UnauthorizedError,
    UnreachableError,
    UnsupportedError,
    error_of,
)
from karma_client.network import run
from karma_client.nodes import Node, parse_nodes
from karma_client.operations import Operations, Tasks
from karma_client.operations.transfers import split
from karma_client.policy import Answer, backoff_seconds, choose_master, sources
from karma_client.settings import TokenSource

SECRET = "s3cret-t0ken"

# -- Addresses and days ----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [nodes, days], ids=lambda module: str(module.__name__))
def test_the_examples_of_docstrings(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.failed == 0 < found.attempted


@pytest.mark.parametrize(
    ("address", "node"),
    [
        ("db1:8080", Node("db1", 8080)),
        ("db1", Node("db1", 8080)),
        ("127.0.0.1:1", Node("127.0.0.1", 1)),
        ("[::1]:9", Node("::1", 9)),
        ("[fe80::1%eth0]", Node("fe80::1%eth0", 8080)),
        ("unix:/run/k.sock", Node("", 0, "/run/k.sock")),
    ],
)
def test_addresses(address: str, node: Node) -> None:
    assert Node.parse(address) == node
    assert Node.parse(str(node)) == node


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":8080",
        "db1:",
        "db1:0",
        "db1:65536",
        "db1:x",
        "::1",
        "::1:8080",
        "[::1",
        "[::1]9",
        "unix:k.sock",
        "http://db1:8080",
        "db1/x:80",
        "me@db1:80",
        "db 1:80",
        "db1:٣",
    ],
)
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is no address of a node") as raised:
        Node.parse(address)
    assert f'"{address}"' in str(raised.value)


def test_several_nodes_count_once() -> None:
    assert parse_nodes(["a:1", Node("b", 2), "a:1"]) == (Node("a", 1), Node("b", 2))
    assert parse_nodes("a:1") == (Node("a", 1),)
    with pytest.raises(InvalidArgumentError, match="at least one address"):
        parse_nodes([])


@pytest.mark.parametrize("day", [20260505, "20260505", "2026-05-05", date(2026, 5, 5)])
def test_days(day: Day) -> None:
    assert day_number(day) == 20260505


@pytest.mark.parametrize(
    "day", [20260230, 0, -20260505, "2026-5-5", "20260505 ", "05.05.2026", "", "2026-0505", True, "٢٠٢٦٠٥٠٥"]
)
def test_what_is_no_day_is_named(day: Day) -> None:
    with pytest.raises(InvalidArgumentError, match="is no day"):
        day_number(day)


def test_a_moment_is_no_day() -> None:
    with pytest.raises(InvalidArgumentError, match="is a moment"):
        day_number(datetime(2026, 5, 5, tzinfo=UTC))


def test_days_of_responses() -> None:
    assert to_date(20260505) == to_date("20260505") == date(2026, 5, 5)


# -- Requests and replies --------------------------------------------------------------------------------


def test_fields_that_are_none_are_left_out() -> None:
    assert read("counter.sum", number, series="a", key=1, range=None).line(None) == (
        b'{"v":2,"op":"counter.sum","series":"a","key":1}\n'
    )


def test_the_token_goes_in_and_shows_nowhere() -> None:
    call = write("counter.increment", number, series="a", key=1, token=SECRET)
    assert SECRET.encode() in call.line(None)
    assert SECRET.encode() in read("system.ping", number).line(SECRET)
    assert SECRET not in repr(call) + repr(Pending(call))


@pytest.mark.parametrize("key", [2**64, -(2**63) - 1, {1}, "\ud800"])
def test_what_cannot_be_sent_is_named(key: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"counter\.increment cannot be sent"):
        write("counter.increment", number, series="a", key=key).line(SECRET)


def outcome_of(line: bytes, *, is_extension: bool = False) -> Pending[int]:
    pending = Pending(read("counter.sum", number, is_extension=is_extension, series="a", key=1))
    error = take_reply(pending, line, "db1:8080")
    if error is not None:
        pending.fail(error)
    return pending


def test_a_success() -> None:
    assert outcome_of(b'{"protocol_version":2,"success":true,"response":7,"error_code":null}\r').result() == 7


CODES = [value for name, value in vars(ErrorCode).items() if name.isupper()]


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_class_of_its_own(code: str) -> None:
    error = error_of({"success": False, "response": "why", "error_code": code}, node="db1:1", op="tree.drop")
    assert type(error) is not ReplyError
    assert error.code == code
    assert str(error) == f"db1:1: tree.drop: why ({code})"
    others = {type(error_of({"response": "", "error_code": other})) for other in CODES if other != code}
    assert type(error) not in others
    assert getattr(karma_client, type(error).__name__) is type(error)


def test_a_code_of_tomorrow_is_kept() -> None:
    error = error_of({"response": "why", "error_code": "out_of_cheese"})
    assert (type(error), error.code) == (ReplyError, "out_of_cheese")
    assert ReplyError.code == ""


def test_what_a_refusal_says() -> None:
    detail = {"reason": "role", "retry_after_ms": 250, "master": "db2:8080"}
    error = error_of({"response": "no", "error_code": "forbidden", "error_detail": detail})
    assert isinstance(error, ForbiddenError)
    assert (error.reason, error.retry_after_ms, error.master) == ("role", 250, "db2:8080")
    bare = error_of({"response": "no", "error_code": "forbidden"})
    assert isinstance(bare, ForbiddenError)
    assert (bare.reason, bare.retry_after_ms, bare.master) == (None, 0, None)


def test_an_unknown_operation_of_ours_is_unsupported() -> None:
    line = b'{"success":false,"response":"Unknown op counter.sum","error_code":"unknown_command"}'
    with pytest.raises(UnsupportedError, match=r"db1:8080: counter\.sum: this server does not know"):
        outcome_of(line, is_extension=True).result()
    assert not isinstance(outcome_of(line).error, UnsupportedError)


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1 400 Bad Request",
        b"\x15\x03\x01",
        b"",
        b"[]",
        b"7",
        b"{}",
        b'{"success":1}',
        b'{"success":"true","response":7}',
        b'{"v":2,"op":"x","token":"' + SECRET.encode() + b'"}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_reply_is_not_quoted(line: bytes) -> None:
    with pytest.raises(ProtocolError) as raised:
        outcome_of(line)
    assert SECRET not in str(raised.value)
    assert "db1:8080" in str(raised.value)


@pytest.mark.parametrize("response", [b"null", b'"7"', b"[7]", b"true", b"7.0"])
def test_a_response_of_another_shape_fails_its_call_alone(response: bytes) -> None:
    pending = outcome_of(b'{"success":true,"response":' + response + b"}")
    with pytest.raises(ProtocolError, match=r"counter\.sum with a response of another shape"):
        pending.result()


def test_an_endless_line_is_cut() -> None:
    exchange = Exchange([b"x\n"])
    for _ in range(MAX_REPLY_BYTES // 2**24):
        exchange.feed(b"x" * 2**24)
    with pytest.raises(ProtocolError, match="longer than"):
        exchange.feed(b"xx")


def test_a_pending_call_says_that_it_waits() -> None:
    with pytest.raises(InvalidArgumentError, match="not sent yet"):
        Pending(read("system.ping", number)).result()


def test_what_is_repeatable_and_slow_is_an_operation() -> None:
    coming = {name for name in calls.REPEATABLE_WRITES | calls.SLOW_OPS if name.startswith("replication.")}
    assert BY_NAME.keys() | coming >= calls.REPEATABLE_WRITES | calls.SLOW_OPS
    assert all(BY_NAME[name].access != "R" for name in calls.REPEATABLE_WRITES - coming)


def test_every_operation_of_the_table_has_a_method() -> None:
    def build(method: Any) -> str:
        samples: dict[str, Any] = {"int": 1, "str": "a", "Day": 20260505, "Days": (20260505, 20260505)}
        names = method.__code__.co_varnames[
            1 : method.__code__.co_argcount + method.__code__.co_kwonlyargcount
        ]
        arguments = {}
        for name in names:
            annotation = method.__annotations__[name].split(" |")[0]
            if name in (method.__kwdefaults__ or {}):
                continue
            arguments[name] = samples.get(annotation, [])
        call: calls.Call[Any] = method(None, **arguments)
        return call.op

    methods = {
        name: found.build
        for base in Operations.__mro__
        for name, found in vars(base).items()
        if isinstance(found, binding.operation)
    }
    asked = {build(method) for name, method in methods.items() if name not in ("call", "fetch_snapshot")}
    # `snapshot.fetch` has no place in a client: its one reply may be larger than a server sends.
    assert BY_NAME.keys() - asked - {alias for op in BY_NAME.values() for alias in op.aliases} == {
        "snapshot.fetch"
    }


# -- Which node is the master ----------------------------------------------------------------------------


def answer(name: str, role: str = "master", **fields: Any) -> Answer:
    return Answer(Node.parse(name), {"role": role, **fields})


def dead(name: str) -> Answer:
    return Answer(Node.parse(name), error=UnreachableError("cannot connect: refused", node=name))


OPERATIONS = [
    (name, each)
    for owner in Operations.__mro__
    for name, each in vars(owner).items()
    if isinstance(each, binding.operation)
]


class Sender(Operations, binding.Queueing):
    """Notes what would be sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def _operate(self, call: calls.Call[Any]) -> Pending[Any]:
        self.sent.append(call.op)
        return Pending(call)


@pytest.mark.parametrize(("name", "each"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_none_is_refused_where_it_does_not_mean_left_out(name: str, each: Any) -> None:
    sender = Sender()
    parameters = list(signature(each.build).parameters.values())[1:]
    for parameter in parameters:
        given = {other.name: 1 for other in parameters if other.default is other.empty}
        if parameter.default is not None:
            with pytest.raises(InvalidArgumentError, match=f"{parameter.name} must not be None"):
                getattr(sender, name)(**given | {parameter.name: None})
    assert sender.sent == []


def test_a_none_among_positions_is_named() -> None:
    sender = Sender()
    with pytest.raises(InvalidArgumentError, match="value must not be None"):
        sender.increment("api", 1, None)  # type: ignore[arg-type]
    sender.increment("api", 1, 2, day=None, idempotency_key=None)
    assert sender.sent == ["counter.increment"]


def test_the_only_master_is_chosen() -> None:
    assert choose_master([answer("a:1", "slave"), answer("b:1"), dead("c:1")]) == Node("b", 1)


def test_a_fenced_master_is_none() -> None:
    assert choose_master([answer("a:1", fenced_by={"epoch": 4}), answer("b:1")]) == Node("b", 1)
    with pytest.raises(NoMasterError, match="a:1 is fenced"):
        choose_master([answer("a:1", fenced_by={"epoch": 4})])


def test_a_paused_master_stays_the_master() -> None:
    assert choose_master([answer("a:1", paused_until=99), answer("b:1", "slave")]) == Node("a", 1)


def test_of_two_masters_the_later_promoted_is_chosen() -> None:
    first, second = answer("a:1", epoch=3, node_id="x"), answer("b:1", epoch=4, node_id="y")
    assert choose_master([first, second]) == choose_master([second, first]) == Node("b", 1)


@pytest.mark.parametrize(("one", "other"), [(3, 3), (None, None), (0, None)])
def test_of_two_masters_with_one_epoch_none_is_chosen(one: int | None, other: int | None) -> None:
    with pytest.raises(SplitBrainError) as raised:
        choose_master([answer("a:1", epoch=one), answer("b:1", epoch=other), answer("c:1", "slave")])
    assert "a:1 (epoch" in str(raised.value)
    assert "b:1 (epoch" in str(raised.value)


def test_epochs_of_different_clusters_do_not_compare() -> None:
    with pytest.raises(SplitBrainError, match="different clusters"):
        choose_master([answer("a:1", epoch=3, cluster_id="p"), answer("b:1", epoch=4, cluster_id="q")])


def test_one_node_under_two_addresses_is_one() -> None:
    assert choose_master([answer("a:1", node_id="x"), answer("b:1", node_id="x")]) == Node("a", 1)


def test_nobody_reached() -> None:
    with pytest.raises(UnreachableError, match=r"a:1: cannot connect.*b:1: cannot connect"):
        choose_master([dead("a:1"), dead("b:1")])


def test_a_wrong_token_is_told() -> None:
    with pytest.raises(UnauthorizedError):
        choose_master([dead("a:1"), Answer(Node("b", 1), error=UnauthorizedError("wrong"))])


def test_slaves_only() -> None:
    with pytest.raises(NoMasterError, match=r"a:1 is a slave of m:2; b:1 is a slave"):
        choose_master([answer("a:1", "slave", source="m:2"), answer("b:1", "slave")])
    assert sources([answer("a:1", "slave", source="m:2"), answer("b:1", "slave", source="m:2")]) == [
        Node("m", 2)
    ]
    assert sources([answer("a:1", "slave", source=":"), answer("b:1", "slave", source=None)]) == []


def test_waits_grow_up_to_a_bound_and_differ() -> None:
    assert backoff_seconds(1, 0.9) == 0
    bounds = [backoff_seconds(attempt, 1.0) for attempt in range(2, 12)]
    assert bounds == sorted(bounds)
    assert bounds[0] < 0.1
    assert bounds[-1] == 1.0
    assert backoff_seconds(9, 0.25) == 0.25
    assert backoff_seconds(10_000, 1.0) == 1.0


# -- Settings --------------------------------------------------------------------------------------------


def test_tokens_from_functions_and_files_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(" one \n")
    source = TokenSource(None, file)
    assert source.current() == "one"
    file.write_text("two")
    assert source.current() == "one"
    assert source.is_newer_than("one")
    assert source.current() == "two"
    assert not source.is_newer_than("two")
    # Another thread was refused with the old one as well.
    assert source.is_newer_than("one")
    given = iter(["a", "b"])
    function = TokenSource(lambda: next(given), None)
    assert (function.current(), function.is_newer_than("a"), function.current()) == ("a", True, "b")
    assert not TokenSource("fixed", None).is_newer_than("fixed")
    assert not TokenSource(None, None).is_newer_than(None)


def test_a_token_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for file, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InvalidArgumentError, match=reason):
            TokenSource(None, file).current()
    empty = tmp_path / "empty"
    empty.write_text("\n")
    with pytest.raises(InvalidArgumentError, match="is empty"):
        TokenSource(None, empty).current()


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": "slave"},
        {"pool_size": 0},
        {"max_attempts": 0},
        {"timeout_seconds": 0},
        {"nodes": "a:b"},
        {"connect_timeout_seconds": 0},
        {"token": "a", "token_file": "b"},
    ],
)
def test_wrong_settings_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        karma_client.connect(**wrong)


def test_no_text_of_a_client_shows_its_token() -> None:
    client = karma_client.connect(token=SECRET)
    assert SECRET not in repr(client) + repr(client._core.settings) + repr(client._core)
    client.close()


# -- The package -----------------------------------------------------------------------------------------


def loaded_by(code: str) -> set[str]:
    code += "\nimport sys; print(*sys.modules)"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_the_import_is_light() -> None:
    loaded = loaded_by("import karma_client; karma_client.connect().close()")
    assert not loaded & {
        "asyncio",
        "ssl",
        "uvloop",
        "msgpack",
        "subprocess",
        "pytest",
        "karma.app",
        "karma.ops",
    }
    assert "karma_client.results" not in loaded
    assert "asyncio" in loaded_by("import karma_client; karma_client.connect_async()")


def test_every_public_name_is_there() -> None:
    assert karma_client.__all__ == sorted(karma_client.__all__)
    for name in karma_client.__all__:
        assert getattr(karma_client, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = karma_client.nonsense


def test_every_error_is_public() -> None:
    kinds = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, KarmaError)
    }
    assert kinds <= set(karma_client.__all__)


def test_help_shows_the_parameters_of_operations() -> None:
    with karma_client.connect() as client:
        for method in (client.increment, karma_client.Client.increment, client.keys, client.ingest):
            assert method.__doc__
        assert client.increment.__name__ == "increment"


def test_a_blocking_client_refuses_what_only_asyncio_can_wait_for() -> None:
    async def items() -> Any:
        await asyncio.sleep(0)
        yield 1, 20260505, 1

    async def consume() -> None:
        async for _ in split(items(), 100):
            pass

    with pytest.raises(RuntimeError, match="only asyncio"):
        run(consume())


def test_pipelines_have_operations_and_no_tasks() -> None:
    assert issubclass(karma_client.Pipeline, Operations)
    assert not issubclass(karma_client.Pipeline, Tasks)
