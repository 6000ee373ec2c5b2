"""`karma check` and `karma repair` as processes, on directories that a real server wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from handmade import flip
from harness import FIXTURES, Server, counters_of

DAY = 20260505


def karma(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "karma.app", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def check(directory: Path) -> tuple[int, dict[str, Any]]:
    done = karma("check", "--directory", directory, "--output=json")
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def repair(directory: Path, *more: str) -> tuple[int, dict[str, Any]]:
    done = karma("repair", "--directory", directory, "--output", "json", *more)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def fill(server: Server, rounds: int = 3) -> None:
    """Write to two series, with a snapshot behind each round but the last."""
    with server.connect() as connection:
        for number in range(rounds):
            for key in range(20):
                connection.ask("counter.increment", series="api", key=key, bucket=DAY, value=number + 1)
            items = [[key, DAY, 5] for key in range(10)]
            connection.ask("series.batch_add", series="mails", items=items, idempotency_key=f"batch-{number}")
            if number < rounds - 1:
                connection.ask("snapshot.create_all")


def state(directory: Path) -> dict[str, Any]:
    """Start a server on the directory, ask it for everything, and kill it."""
    with Server(directory) as server, server.connect() as connection:
        return counters_of(connection)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory of a server that was killed: snapshots at LSN 21 and 42, 21 entries behind them."""
    with Server(tmp_path / "data") as server:
        fill(server)
    return tmp_path / "data"


def test_a_stopped_server_leaves_a_directory_that_is_ok(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        fill(server)
        assert server.stop() == 0
    code, report = check(tmp_path / "data")
    assert (code, report["status"], report["series"], report["keys"], report["last_lsn"]) == (
        0,
        "ok",
        2,
        30,
        63,
    )
    assert report["log_entries"] == 0
    assert repair(tmp_path / "data")[1]["steps"] == []


def test_a_killed_server_leaves_a_directory_that_is_ok(data: Path) -> None:
    code, report = check(data)
    assert (code, report["status"], report["log_entries"]) == (0, "ok", 21)
    done = karma("check", "-d", data)
    assert done.returncode == 0
    assert done.stdout.endswith("starts on it\n")
    assert "\nok: 2 series, 30 keys, 30 buckets, last LSN 63, 21 log entries\n" in done.stdout


def test_check_agrees_with_the_server_about_damage(data: Path) -> None:
    flip(data / "karma.wal", 500)
    code, report = check(data)
    assert code == 1
    (finding,) = (file for file in report["files"] if file["status"] == "damaged")
    with Server(data, wait=False) as server:
        assert server.process.wait(30) == 1
        message = server.output.read_text()
    assert f"karma.wal, byte {finding['offset_bytes']}, LSN {finding['lsn']}" in message
    assert f"karma repair --directory {data}" in message


def test_a_repaired_directory_starts_and_the_listed_requests_bring_back_the_rest(data: Path) -> None:
    whole = state(data)
    flip(data / "karma.wal", 500)
    refused = karma("repair", "--directory", data)
    assert refused.returncode == 1
    assert "--yes=true" in refused.stdout
    assert not list(data.glob("repaired-*"))
    code, outcome = repair(data, "--yes=true")
    assert (code, outcome["status"], outcome["check"]["status"]) == (0, "ok", "ok")
    lost = Path(outcome["lost_requests"]).read_bytes()
    missing = outcome["steps"][0]["lost"]["lsns"][0][0] - 1
    with Server(data) as server, server.connect() as connection:
        connection.send(lost)
        for _ in lost.splitlines():
            assert connection.read()["success"]
        found = counters_of(connection)
    # All but the one entry that could not be read.
    assert missing == 44 + 2
    key = str(missing - 43)
    assert int(found["api"][key][str(DAY)]) == int(whole["api"][key][str(DAY)]) - 3
    found["api"][key] = whole["api"][key]
    assert found == whole


def test_a_damaged_snapshot_is_restored_from_the_one_before(data: Path) -> None:
    with Server(data) as server:
        before = {}
        with server.connect() as connection:
            connection.ask("snapshot.create", series="api")
            connection.ask("counter.increment", series="api", key=1, bucket=DAY)
            before = counters_of(connection)
    newest = max(data.glob("*_api.tree"))
    flip(newest, 100)
    code, report = check(data)
    assert (code, [file["file"] for file in report["files"] if file["status"] == "damaged"]) == (
        1,
        [newest.name],
    )
    code, outcome = repair(data)
    assert (code, outcome["status"]) == (0, "ok")
    assert (Path(outcome["folder"]) / newest.name).exists()
    assert state(data) == before


def test_a_running_server_keeps_both_away(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        fill(server, 1)
        for command in (["check"], ["repair", "--yes=true"]):
            done = karma(*command, "--directory", tmp_path / "data")
            assert done.returncode == 1
            assert done.stdout == ""
            last = done.stderr.splitlines()[-1]
            assert last.startswith("ERROR: ")
            assert "is in use by" in last
        assert "snapshot.verify" in karma("check", "-d", tmp_path / "data").stderr
        assert server.ask("snapshot.verify")["status"] == "ok"


def test_usage_errors_are_one_line(tmp_path: Path) -> None:
    done = karma("repair", "--directory", tmp_path, "--yes=maybe")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ERROR: --yes: 'maybe' is not true or false\n"


@pytest.mark.parametrize("recording", ["wal-only", "wal-segments", "snapshot-and-wal"])
def test_the_original_s_directories_are_fine(recording: str) -> None:
    directory = FIXTURES / recording / "data"
    before = sorted(directory.iterdir())
    code, report = check(directory)
    assert code == 0
    assert report["status"] in ("ok", "warning")
    assert all(file["status"] == "ok" for file in report["files"])
    assert sorted(directory.iterdir()) == before
