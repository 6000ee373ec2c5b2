"""What requests of replication may say, and who may say it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from karma.core.store import Store
from karma.engine import Effect, Engine, Settings
from karma.limits import (
    MAX_HOLDER_BYTES,
    MAX_LEASE_MS,
    MAX_MAINTENANCE_MS,
    MAX_PAUSE_MS,
    MAX_REASON_BYTES,
    MAX_RUN_BYTES,
    REPLICATION_MAX_WAIT_MS,
)

TOKENS = Settings(auth_token="w", read_auth_token="r", admin_auth_token="a", replication_token="f")


def ask(op: str, settings: Settings | None = None, **fields: Any) -> Effect | dict[str, Any]:
    """Return what the service has to do, or the reply."""
    engine = Engine(Store(), settings)
    engine.begin_pass(1_777_982_400_000)
    outcome = engine.execute(json.dumps({"v": 2, "op": op, **fields}).encode())
    if isinstance(outcome, Effect):
        return outcome
    assert isinstance(outcome, bytes)
    reply: dict[str, Any] = json.loads(outcome)
    return reply


def code_of(op: str, settings: Settings | None = None, **fields: Any) -> str | None:
    found = ask(op, settings, **fields)
    return None if isinstance(found, Effect) else found["error_code"]


GOOD: dict[str, dict[str, Any]] = {
    "replication.status": {},
    "replication.entries": {"after_lsn": 0},
    "replication.wait": {"acks": 1, "timeout_ms": 0},
    "replication.checksum": {},
    "replication.promote": {},
    "replication.follow": {"host": "db1", "port": 8080},
    "replication.pause": {"ttl_ms": 1},
    "replication.resume": {},
    "replication.fence": {"epoch": 0, "reason": "why"},
    "replication.unfence": {"epoch": 0},
    "replication.lease": {"do": "take", "cluster_id": "c", "run": "r", "holder": "h", "ttl_ms": 1},
    "replication.maintenance": {"reason": "disks", "ttl_ms": 0},
}
ADMINS = ("promote", "follow", "pause", "resume", "fence", "unfence", "lease", "maintenance")
ORDERS = ("promote", "follow", "pause", "resume", "fence", "unfence")


@pytest.mark.parametrize("op", GOOD)
def test_readers_may_look_and_admins_may_change(op: str) -> None:
    is_admin = op.removeprefix("replication.") in ADMINS
    codes = {token: code_of(op, TOKENS, token=token, **GOOD[op]) for token in "arwfx"}
    assert codes == {
        "a": None,
        "w": "forbidden" if is_admin else None,
        "r": "forbidden" if is_admin else None,
        "f": "forbidden" if is_admin else None,
        "x": "unauthorized",
    }
    assert code_of(op, TOKENS, **GOOD[op]) == "unauthorized"
    # Without an admin token the write token may do all.
    assert code_of(op, Settings(auth_token="w", replication_token="f"), token="w", **GOOD[op]) is None


@pytest.mark.parametrize(
    ("settings", "token", "may"),
    [
        (TOKENS, "a", True),
        (TOKENS, "w", True),
        (TOKENS, "f", True),
        (TOKENS, "r", False),
        (Settings(read_auth_token="r", replication_token="r"), "r", False),
        (Settings(), None, True),
        (Settings(replication_token="f"), None, True),
    ],
)
def test_whose_word_about_epochs_counts(settings: Settings, token: str | None, may: bool) -> None:
    found = ask("replication.entries", settings, after_lsn=0, **({"token": token} if token else {}))
    assert isinstance(found, Effect)
    assert found.arguments["is_peer"] is may


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("replication.entries", {}),
        ("replication.entries", {"after_lsn": -1}),
        ("replication.entries", {"after_lsn": 0, "acked_lsn": -1}),
        ("replication.entries", {"after_lsn": 0, "limit": 0}),
        ("replication.entries", {"after_lsn": 0, "limit": 10_001}),
        ("replication.entries", {"after_lsn": 0, "wait_ms": REPLICATION_MAX_WAIT_MS + 1}),
        ("replication.entries", {"after_lsn": 0, "handshake": 1}),
        ("replication.entries", {"after_lsn": 0, "node_id": ""}),
        ("replication.entries", {"after_lsn": 0, "node_id": 7}),
        ("replication.entries", {"after_lsn": 0, "node_id": 'x"} 1\nkarma_fenced 1'}),
        ("replication.entries", {"after_lsn": 0, "node_id": "x" * 65}),
        ("replication.entries", {"after_lsn": 0, "cluster_id": "two words"}),
        ("replication.entries", {"after_lsn": 0, "epoch": "1"}),
        ("replication.entries", {"after_lsn": 0, "epoch": 2**64}),
        ("replication.entries", {"after_lsn": 0, "epoch_node_id": "\n"}),
        ("replication.entries", {"after_lsn": 0, "after_crc": "x y"}),
        ("replication.entries", {"after_lsn": 0, "port": 0}),
        ("replication.entries", {"after_lsn": 0, "port": 65_536}),
        ("replication.entries", {"after_lsn": 0, "checkpoint_position": "x"}),
        ("replication.entries", {"after_lsn": 0, "checkpoint_position": ["x"]}),
        ("replication.entries", {"after_lsn": 0, "checkpoint_position": ["x", -1]}),
        ("replication.entries", {"after_lsn": 0, "checkpoint_position": ["x", True]}),
        ("replication.entries", {"after_lsn": 0, "checkpoint_position": [1, 1]}),
        ("replication.wait", {"timeout_ms": 1}),
        ("replication.wait", {"acks": 1}),
        ("replication.wait", {"acks": 1, "timeout_ms": REPLICATION_MAX_WAIT_MS + 1}),
        ("replication.wait", {"acks": 1, "timeout_ms": 1, "lsn": "x"}),
        ("replication.follow", {"port": 1}),
        ("replication.follow", {"host": "db1"}),
        ("replication.follow", {"host": "", "port": 1}),
        ("replication.follow", {"host": "two words", "port": 1}),
        ("replication.follow", {"host": "x\u200b", "port": 1}),
        ("replication.follow", {"host": "x" * 256, "port": 1}),
        ("replication.follow", {"host": "db1", "port": 0}),
        ("replication.follow", {"host": "db1", "port": 65_536}),
        ("replication.follow", {"host": "db1", "port": 1, "rebuild": "true"}),
        ("replication.follow", {"host": "db1", "port": 1, "source_token": 7}),
        ("replication.follow", {"host": "db1", "port": 1, "source_token": ""}),
        ("replication.pause", {}),
        ("replication.pause", {"ttl_ms": 0}),
        ("replication.pause", {"ttl_ms": MAX_PAUSE_MS + 1}),
        ("replication.fence", {"epoch": 1}),
        ("replication.fence", {"reason": "why"}),
        ("replication.fence", {"epoch": 1, "reason": ""}),
        ("replication.fence", {"epoch": 1, "reason": "two\nlines"}),
        ("replication.fence", {"epoch": 1, "reason": "x" * (MAX_REASON_BYTES + 1)}),
        ("replication.unfence", {}),
        ("replication.unfence", {"epoch": -1}),
        ("replication.promote", {"epoch": -1}),
        *(
            (f"replication.{op}", {**GOOD[f"replication.{op}"], **wrong})
            for op in ORDERS
            for wrong in (
                {"run": ""},
                {"run": "x" * (MAX_RUN_BYTES + 1)},
                {"run": "two\nlines"},
                {"run": 7},
                {"lease": -1},
                {"lease": "1"},
                {"force": 1},
            )
        ),
        *(
            ("replication.lease", {**GOOD["replication.lease"], **wrong})
            for wrong in (
                {"do": "steal"},
                {"do": 7},
                {"cluster_id": "two words"},
                {"cluster_id": None},
                {"run": ""},
                {"run": "x" * (MAX_RUN_BYTES + 1)},
                {"holder": "x" * (MAX_HOLDER_BYTES + 1)},
                {"holder": None},
                {"ttl_ms": 0},
                {"ttl_ms": MAX_LEASE_MS + 1},
                {"do": "renew", "ttl_ms": None},
                {"lease": 1.5},
                {"force": "true"},
                {"do": "park", "text": "later"},
                {"do": "park", "at_unix_ms": 5},
                {"do": "park", "at_unix_ms": 5, "text": "two\nlines"},
            )
        ),
        ("replication.maintenance", {"ttl_ms": 1}),
        ("replication.maintenance", {"reason": "x"}),
        ("replication.maintenance", {"reason": "x", "ttl_ms": MAX_MAINTENANCE_MS + 1}),
        ("replication.maintenance", {"reason": "x", "ttl_ms": 1, "durable": "yes"}),
    ],
)
def test_what_is_no_field_s_value_is_refused(op: str, fields: dict[str, Any]) -> None:
    assert code_of(op, **fields) == "validation_error"


def test_who_uses_no_field_of_ours_is_answered_as_karma_1_0_answers() -> None:
    found = ask("replication.entries", after_lsn=7, limit=3)
    assert isinstance(found, Effect)
    assert found.arguments["is_plain"] is True
    for extension in ({"wait_ms": 0}, {"node_id": "x"}, {"handshake": True}, {"after_crc": "00"}):
        found = ask("replication.entries", after_lsn=7, **extension)
        assert isinstance(found, Effect)
        assert found.arguments["is_plain"] is False


def test_the_largest_values_are_taken() -> None:
    assert code_of("replication.entries", after_lsn=2**64 - 1, wait_ms=REPLICATION_MAX_WAIT_MS) is None
    assert code_of("replication.entries", after_lsn=0, port=65_535, node_id="A.b-_" * 12) is None
    assert code_of("replication.fence", epoch=2**64 - 1, reason="x" * MAX_REASON_BYTES) is None
    assert code_of("replication.follow", host="fe80::1", port=65_535, source_token="t", rebuild=True) is None
    assert code_of("replication.pause", ttl_ms=MAX_PAUSE_MS, run="x" * MAX_RUN_BYTES) is None
    lease = {**GOOD["replication.lease"], "ttl_ms": MAX_LEASE_MS, "holder": "x" * MAX_HOLDER_BYTES}
    assert code_of("replication.lease", **lease) is None
    assert code_of("replication.maintenance", reason="x", ttl_ms=MAX_MAINTENANCE_MS) is None
