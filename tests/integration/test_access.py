"""Who may do what: tokens, roles, protected mode; and that no secret leaves the process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Connection, Server, missing, request

from karma.config import Config
from karma.net.listener import is_loopback, is_protected, peer_guard
from karma.ops import OPS, Op

READ, WRITE, ADMIN, PEER = "the-read-s3cret", "the-write-s3cret", "the-admin-s3cret", "the-node-s3cret"
TOKENS = {"read": READ, "write": WRITE, "admin": ADMIN, "replication": PEER}
DAY = 20260505


def options(*names: str) -> dict[str, Any]:
    known = {
        "read": "read_auth_token",
        "write": "auth_token",
        "admin": "admin_auth_token",
        "replication": "replication_token",
    }
    return {known[name]: TOKENS[name] for name in names}


@pytest.fixture(scope="module")
def all_tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("access") / "data", wal_fsync=False, **options(*TOKENS)) as running:
        yield running


@pytest.fixture(scope="module")
def two_tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(
        tmp_path_factory.mktemp("two") / "data", wal_fsync=False, **options("read", "write")
    ) as running:
        yield running


@pytest.fixture(scope="module")
def slave(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("slave") / "data", wal_fsync=False) as running:
        running.ask("series.batch_add", series="api_requests", items=[[41, DAY, 1], [42, DAY, 1]])
        running.ask("snapshot.create_all")
        assert running.stop() == 0
        running.restart(role="slave")
        yield running


def code_of(connection: Connection, op: Op, token: Any) -> str | None:
    """Return how an op with no field but the token is answered: only access decides."""
    fields = {} if token is None else {"token": token}
    code: str | None = connection.call(op.name, **fields)["error_code"]
    return code


def is_let_in(code: str | None) -> bool:
    return code not in ("unauthorized", "forbidden")


# -- Tokens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_each_token_may_do_what_its_class_allows(all_tokens: Server, op: Op) -> None:
    allowed = {"read": "R", "replication": "R", "write": "RW", "admin": "RWA"}
    with all_tokens.connect() as connection:
        for name, token in TOKENS.items():
            code = code_of(connection, op, token)
            assert is_let_in(code) is (op.access in allowed[name]), (name, code)
            if op.access not in allowed[name]:
                assert code == "forbidden"


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_without_an_admin_token_the_write_token_may_do_all(two_tokens: Server, op: Op) -> None:
    with two_tokens.connect() as connection:
        assert is_let_in(code_of(connection, op, WRITE))
        assert is_let_in(code_of(connection, op, READ)) is (op.access == "R")


@pytest.mark.parametrize(
    "token", [None, "", "wrong", READ + "x", READ[:-1], READ.upper(), 7, True, [], {}, "é"]
)
def test_a_missing_or_wrong_token_is_unauthorized_before_any_field_is_looked_at(
    all_tokens: Server, token: Any
) -> None:
    with all_tokens.connect() as connection:
        for op in OPS:
            assert code_of(connection, op, token) == "unauthorized"
        # What comes before the token: JSON, object, protocol, known op.
        for line, code in (
            (b"{\n", "invalid_json"),
            (b"[]\n", "validation_error"),
            (b'{"v":1,"op":"system.ping"}\n', "unsupported_protocol"),
            (b'{"v":2,"op":"nonsense"}\n', "unknown_command"),
        ):
            connection.send(line)
            assert connection.read()["error_code"] == code


def test_only_a_read_token_leaves_nobody_who_may_write(tmp_path: Path) -> None:
    with Server(tmp_path / "data", **options("read")) as server, server.connect() as connection:
        assert connection.ask("system.ping", token=READ) == "pong"
        assert connection.refuse("tree.create", series="a", token=READ)[0] == "forbidden"
        assert connection.refuse("tree.create", series="a")[0] == "unauthorized"


def test_without_tokens_a_token_in_the_request_does_not_matter(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, server.connect() as connection:
        assert connection.ask("tree.create", series="a", token="anything") == "OK"
        assert connection.ask("tree.create", series="b", token=7) == "OK"


def test_no_token_reaches_log_wal_snapshot_or_error_text(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Server(data, legacy_protocol=True, **options("read", "write", "admin")) as server:
        replies = b""
        with server.connect() as connection:
            lines = [
                *(request(op.name, token=token) for op in OPS for token in TOKENS.values()),
                *(
                    request(op.name, **{**(op.example or {}), "token": WRITE})
                    for op in OPS
                    if op.access == "W"
                ),
                request("counter.increment", series="a", key=1, token=WRITE, idempotency_key="k"),
                request("nonsense", token=WRITE),
                b'{"token":"%b"' % WRITE.encode() + b"\n",
                b'["%b"]' % ADMIN.encode() + b"\n",
                b'{"v":1,"op":"system.ping","token":"%b"}' % READ.encode() + b"\n",
                b'{"command":"increment","tree_name":"a","key":"x","token":"%b"}' % WRITE.encode() + b"\n",
                request("system.clients", token=ADMIN),
                request("snapshot.create_all", token=ADMIN),
            ]
            for line in lines:
                connection.send(line)
                replies += connection.read_line()
            connection.send(request("counter.increment", series="a", key=1, token=WRITE, x="y" * 5000))
            replies += connection.read_line()
        assert b"request_too_large" in replies
        files = [path for path in data.rglob("*") if path.is_file()]
        assert any(path.name == "karma.wal" for path in files)
        everything = replies + server.output.read_bytes() + b"".join(path.read_bytes() for path in files)
        server.kill()
    for token in TOKENS.values():
        assert token.encode() not in everything


def test_check_config_shows_settings_but_no_token(tmp_path: Path) -> None:
    arguments = [
        f"--{name.replace('_', '-')}={value}" for name, value in options("read", "write", "admin").items()
    ]
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "karma.app",
            "--check-config",
            f"--directory={tmp_path}",
            "--replication-token=the-s3cret",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path) in found.stdout
    assert "s3cret" not in found.stdout + found.stderr


# -- Roles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [op for op in OPS if op.access == "W"], ids=lambda op: op.name)
def test_a_slave_answers_writes_with_forbidden_because_of_its_role(slave: Server, op: Op) -> None:
    fields = dict(op.example or {})
    with slave.connect() as connection:
        reply = connection.call(op.name, **fields)
        assert reply["error_code"] == "forbidden", reply
        assert list(reply)[-1] == "error_detail"
        assert reply["error_detail"] == {"reason": "role", "retry_after_ms": 1000, "master": None}
        # Fields come before the role.
        if op.fields:
            wrong = connection.call(op.name)
            assert wrong["error_code"] == "validation_error"
            assert "error_detail" not in wrong
        assert connection.ask("tree.list") == ["api_requests"]
        assert connection.ask("counter.sum", series="api_requests", key=42) == 1


@pytest.mark.parametrize(
    "op",
    [op for op in OPS if op.access != "W" and not op.name.startswith("replication.")],
    ids=lambda op: op.name,
)
def test_a_slave_serves_reads_and_admin_operations(slave: Server, op: Op) -> None:
    fields = dict(op.example or {})
    with slave.connect() as connection:
        if "file" in fields:
            fields["file"] = connection.ask("snapshot.list")[0].rpartition("/")[2]
        connection.ask(op.name, **fields)


def test_an_idempotency_key_does_not_open_a_slave(slave: Server) -> None:
    with slave.connect() as connection:
        fields = {"series": "api_requests", "key": 42, "idempotency_key": "k"}
        for op in ("counter.increment", "limit.consume"):
            assert connection.refuse(op, **fields, limit=10)[0] == "forbidden"


# -- Protected mode ------------------------------------------------------------------------------------


def own_address() -> str:
    """Return an address of this machine that is not loopback; connecting to it stays on the machine."""
    for _, _, _, _, address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET):
        if not is_loopback(str(address[0])):
            return str(address[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: it only asks the routing table for the address it would send from.
            probe.connect(("198.51.100.1", 9))
        except OSError:
            missing("needs an address of this machine other than loopback")
        return str(probe.getsockname()[0])


def test_protected_mode_serves_loopback_only_and_says_how_to_open_up(tmp_path: Path) -> None:
    with Server(tmp_path / "data", bind=None) as server:
        server.wait_for_event("protected_mode")
        assert server.ask("system.ping") == "pong"
        with Connection(socket.create_connection((own_address(), server.port), 10)) as connection:
            reply = connection.read()
            assert reply["error_code"] == "unauthorized"
            assert "--auth-token" in reply["response"]
            assert "--bind" in reply["response"]
            assert connection.is_ended()
        assert server.ask("system.stats")["connections_rejected"] == 1


@pytest.mark.parametrize("opening", ["bind", "environment", "token", "off"])
def test_protected_mode_ends_with_a_bind_a_token_or_its_switch(tmp_path: Path, opening: str) -> None:
    address = own_address()
    opened: dict[str, dict[str, Any]] = {
        "bind": {"bind": "0.0.0.0"},
        "environment": {"bind": None, "environment": {"KARMA_HOST": "0.0.0.0"}},
        "token": {"bind": None, "auth_token": WRITE},
        "off": {"bind": None, "protected_mode": False},
    }
    with Server(tmp_path / "data", **opened[opening]) as server:
        with Connection(socket.create_connection((address, server.port), 10)) as connection:
            assert connection.ask("system.ping", token=WRITE) == "pong"
        assert all(event["event"] != "protected_mode" for event in server.events())
        if opening != "token":
            assert server.wait_for_event("open_server")["level"] == "warning"


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("192.0.2.7", False),
        ("::ffff:192.0.2.7", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", False),
        ("db1", False),
    ],
)
def test_only_loopback_addresses_are_this_machine(host: str, is_own: bool) -> None:
    assert is_loopback(host) is is_own


def test_the_peer_guard_lets_unix_sockets_in() -> None:
    config = Config()
    assert is_protected(config)
    refuse = peer_guard(config)
    assert refuse("") is None
    assert refuse(("127.0.0.1", 1)) is None
    assert "protected mode" in (refuse(("192.0.2.7", 1)) or "")


def test_tokens_from_the_environment_guard_too(tmp_path: Path) -> None:
    assert "KARMA_AUTH_TOKEN" not in os.environ
    with (
        Server(tmp_path / "data", environment={"KARMA_AUTH_TOKEN": WRITE}) as server,
        server.connect() as connection,
    ):
        assert connection.refuse("system.ping")[0] == "unauthorized"
        assert connection.ask("system.ping", token=WRITE) == "pong"
