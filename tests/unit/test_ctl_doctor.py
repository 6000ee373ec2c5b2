"""doctor's judgement of any answer; what support bundles mask; the lines of progress."""

import io
from typing import Any

import pytest

from karmactl.commands.doctor import ADVICE, examine
from karmactl.commands.support import MASK, masked, scrubbed
from karmactl.diagnostics import CtlError, Exit, Talk
from karmactl.fleet import NodeState
from karmactl.progress import Progress

GOOD: dict[str, Any] = {
    "version": "2.0.0",
    "wal_enabled": True,
    "wal_bytes": 1000,
    "disk_total_bytes": 100,
    "disk_free_bytes": 50,
}


def found(
    stats: dict[str, Any] | None = None, skew_ms: float | None = 0.0, **replication: Any
) -> dict[str, str]:
    """What is not well, by the name of the check."""
    node = NodeState("a:1", {"status": "ok"}, {"role": "master", **replication}, {**GOOD, **(stats or {})})
    bad = {one.name: f"{one.level} {one.text}" for one in examine(node, skew_ms) if one.level}
    assert set(bad) <= set(ADVICE)
    return bad


def test_nothing_is_found_on_a_healthy_node() -> None:
    assert found() == {}


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("clock", "1 a:1 is 2.5 s ahead of the clock here", {"skew_ms": 2500.0}),
        ("clock", "2 a:1 is 1 m 1 s behind the clock here", {"skew_ms": -61_000.0}),
        ("disk_free_percent", "1 a:1 15 % of the disk free", {"stats": {"disk_free_bytes": 15}}),
        ("disk_free_percent", "2 a:1 5 % of the disk free", {"stats": {"disk_free_bytes": 5}}),
        (
            "log",
            "1 a:1 has a log of 2.0 GiB, 90 entries since the last snapshot",
            {"stats": {"wal_bytes": 2 << 30}, "wal_current_lsn": 100, "last_snapshot_lsn": 10},
        ),
        ("wal", "1 a:1 keeps no log: a crash", {"stats": {"wal_enabled": False}}),
        ("storage", "1 a:1 had 3 storage errors", {"stats": {"storage_error_count": 3}}),
        ("rejected", "1 a:1 turned away 7 connections", {"stats": {"connections_rejected": 7}}),
        ("lag_entries", "1 a:1 2000 entries behind", {"role": "slave", "replication_lag_entries": 2000}),
        ("replication", "2 a:1 cannot read", {"role": "slave", "replication_last_poll_error": "x"}),
        ("status", "1 a:1 fenced", {"fenced_by": "b"}),
    ],
)
def test_what_is_wrong_is_found(name: str, text: str, arguments: dict[str, Any]) -> None:
    bad = found(**arguments)
    assert list(bad) == [name]
    assert bad[name].startswith(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("snapshot_error", "1 a:1 the last snapshot failed: [Errno 24] Too many open files"),
        ("rotation_error", "1 a:1 the log cannot be rotated: [Errno 24] Too many open files"),
    ],
)
def test_upkeep_that_fails_is_found(name: str, text: str) -> None:
    health = {"status": "ok", name: "[Errno 24] Too many open files"}
    node = NodeState("a:1", health, {"role": "master"}, GOOD)
    bad = [one for one in examine(node, 0.0) if one.level]
    assert [(one.name, f"{one.level} {one.text}") for one in bad] == [("upkeep", text)]
    assert "upkeep" in ADVICE


@pytest.mark.parametrize(
    ("field", "check", "text"),
    [
        ("connections_rejected", "rejected", "a:1 turned away 3 connections"),
        ("clock_step_count", "clock", "a:1 had its clock set 3 times by more than a minute since its start"),
        ("token_refused_count", "access", "a:1 refused 3 tokens since its start"),
        ("tls_failed_count", "access", "a:1 had 3 TLS handshakes fail since its start"),
        ("log_dropped_line_count", "log_lines", "a:1 dropped 3 lines of its log, which nothing reads"),
        ("out_of_memory_count", "memory", "a:1 had no memory for 3 requests since its start"),
    ],
)
def test_what_ought_never_to_happen_is_found(field: str, check: str, text: str) -> None:
    node = NodeState("a:1", {"status": "ok"}, {"role": "master"}, {**GOOD, field: 3})
    assert [(one.name, one.level, one.text) for one in examine(node, None) if one.level] == [(check, 1, text)]
    assert check in ADVICE


def test_a_clock_that_nobody_told_is_no_finding() -> None:
    assert found(skew_ms=None) == {}


def test_an_old_server_is_found() -> None:
    node = NodeState("a:1", {"status": "ok"}, {"role": "master"}, {"wal_enabled": True})
    assert [one.name for one in examine(node, None) if one.level] == ["version"]


def test_of_a_dead_node_only_that_is_said() -> None:
    dead = NodeState("a:1", error=CtlError(Exit.UNREACHABLE, "a:1: no", fault="network"))
    assert [(one.name, one.level) for one in examine(dead, None)] == [("status", 2)]


def test_documents_are_masked_and_references_stay() -> None:
    document = {"contexts": {"prod": {"token": "s", "token_file": "/f", "token_env": "T", "nodes": ["a:1"]}}}
    assert masked(document) == {
        "contexts": {"prod": {"token": MASK, "token_file": "/f", "token_env": "T", "nodes": ["a:1"]}}
    }


def test_tokens_are_scrubbed_however_they_are_spelt() -> None:
    assert scrubbed('a "s\\"ü" s"ü "s\\"\\u00fc"', ['s"ü']) == f'a "{MASK}" {MASK} "{MASK}"'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("karmactl.progress.time.monotonic", lambda: now)
    terminal, pipe = Terminal(), io.StringIO()
    bars, lines = (
        Progress(Talk(stream, is_coloured=False), "import", "rows", 1000) for stream in (terminal, pipe)
    )
    bars.resumed(100)
    now = 102.0
    for progress in (bars, lines):
        progress.show(500)
    assert (
        terminal.getvalue()
        == "\r\x1b[Kimport: [##########..........] 50%, 500 of 1,000 rows, 200/s, 2.5 s left"
    )
    assert pipe.getvalue() == ""
    now = 105.0
    lines.show(1000)
    assert pipe.getvalue() == "import: 100%, 1,000 of 1,000 rows, 200/s, 0.0 s left\n"
    bars.end()
    assert terminal.getvalue().endswith("\r\x1b[K")
