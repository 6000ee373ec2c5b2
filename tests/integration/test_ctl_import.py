"""import and export as processes: broken off, cut, changed, piped; what comes back is what went out."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ctl
import pytest
from harness import Connection, Server

U64_MAX = 2**64 - 1
DAY = 20260505


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data", wal_fsync=False) as running:
        yield running


def environ(server: Server) -> dict[str, str]:
    return {
        "KARMACTL_NODES": f"127.0.0.1:{server.port}",
        "XDG_STATE_HOME": str(server.directory.parent / "state"),
        "XDG_CONFIG_HOME": str(server.directory.parent / "config"),
    }


def start(server: Server, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "karmactl", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ(server)},
        **options,
    )


def contents(connection: Connection) -> dict[str, dict[str, dict[str, int]]]:
    """Every key of every series, also those that hold nothing, with its days of a few years."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for name in connection.ask("tree.list"):
        found[name] = {str(one["key"]): {} for one in connection.ask("tree.keys", series=name)["keys"]}
        for key in found[name]:
            for first, last in ((10000101, 10001231), (20240101, 20241231), (20260101, 20261231)):
                span = {"from": first, "to": last}
                found[name][key] |= connection.ask("counter.series", series=name, key=int(key), range=span)
    return found


def fill(connection: Connection) -> None:
    connection.ask("series.batch_add", series="api", items=[[1, DAY, 1], [1, 20240229, 7], [2, DAY, 5]])
    connection.ask("series.batch_add", series='a,"b" ü', items=[[U64_MAX, DAY, U64_MAX]])
    # Together they are more than any number of the protocol can be, and than one chunk may bring.
    connection.ask("series.batch_add", series='a,"b" ü', items=[[0, 10000101, 3]])
    connection.ask("counter.decrement", series="api", key=9, bucket=DAY)
    connection.ask("counter.increment", series="__karma_canary", key=1, bucket=DAY)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_what_was_exported_comes_back_equal(server: Server, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"all.{ending}"
    with server.connect() as connection:
        fill(connection)
        connection.ask("tree.drop", series="__karma_canary")
        before = contents(connection)
        assert before["api"]["9"] == {}
        assert ctl.karmactl("export", str(file), environ=environ(server)).code == 0
        for name in before:
            connection.ask("tree.drop", series=name)
        ended = ctl.karmactl("import", str(file), "--mode", "replace_series", environ=environ(server))
        assert ended.code == 0, ended.stderr
        assert contents(connection) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("mode", "expected"), [("add", 16), ("set", 2), ("replace_series", 2)])
def test_of_rows_that_repeat_a_day_the_last_counts_unless_they_add(
    server: Server, tmp_path: Path, mode: str, expected: int
) -> None:
    file = tmp_path / "twice.csv"
    others = "".join(f"api,{key},2026-05-05,1\n" for key in range(2, 1500))
    # In one chunk, and in a later one.
    file.write_text(
        f"series,key,day,value\napi,1,2026-05-05,5\napi,1,2026-05-05,9\n{others}api,1,2026-05-05,2\n"
    )
    ended = ctl.karmactl("import", str(file), "--mode", mode, environ=environ(server))
    assert ended.code == 0, ended.stderr
    assert server.ask("counter.sum", series="api", key=1) == expected


@pytest.mark.parametrize("mode", ["add", "set", "replace_series"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_series_that_hold_nothing_survive_export_and_import(
    server: Server, tmp_path: Path, ending: str, mode: str
) -> None:
    file = tmp_path / f"all.{ending}"
    with server.connect() as connection:
        connection.ask("series.batch_add", series="empty", items=[])
        connection.ask("counter.decrement", series="zero", key=9, bucket=DAY)
        connection.ask("counter.increment", series="api", key=1, bucket=DAY)
        assert ctl.karmactl("export", str(file), environ=environ(server)).code == 0
        connection.ask("tree.drop", series="zero")
        connection.ask("tree.drop", series="empty")
        connection.ask("counter.increment", series="other", key=1, bucket=DAY)
        if mode == "replace_series":
            connection.ask("counter.increment", series="empty", key=1, bucket=DAY)
        command = ("import", str(file), "--mode", mode, "--confirm", file.name)
        for _ in range(2):
            ended = ctl.karmactl(*command, environ=environ(server))
            assert ended.code == 0, ended.stderr
            assert set(connection.ask("tree.list")) == {"api", "empty", "zero", "other"}
            assert connection.ask("tree.keys", series="empty")["keys"] == []


@pytest.mark.parametrize("mode", ["add", "set", "replace_series"])
def test_a_file_whose_series_was_dropped_since_is_refused_until_it_is_meant(
    server: Server, tmp_path: Path, mode: str
) -> None:
    file = tmp_path / "two.csv"
    file.write_text("series,key,day,value\na,1,2026-05-05,3\nb,1,2026-05-05,4\n")
    command = ("import", str(file), "--mode", mode, "--confirm", "b", "-o", "json")
    assert ctl.karmactl(*command, environ=environ(server)).code == 0
    server.ask("tree.drop", series="a")
    ended = ctl.karmactl(*command, environ=environ(server))
    assert ended.code == 4
    assert 'series "a" was dropped since' in ended.stderr
    assert "--again" in ended.stderr
    assert server.ask("tree.list") == ["b"]
    assert ctl.karmactl(*command, "--again", "--series", "a", environ=environ(server)).code == 0
    assert server.ask("counter.sum", series="a", key=1) == 3
    assert server.ask("counter.sum", series="b", key=1) == 4
    ended = ctl.karmactl(*command, "--confirm", file.name, environ=environ(server))
    assert (ended.code, json.loads(ended.stdout)["status"]) == (0, "already imported")


def test_keys_and_days_narrow_an_export(server: Server) -> None:
    with server.connect() as connection:
        fill(connection)
    only = ("export", "-", "--series", "api", "--key", "1", "--key", "9", "--format", "jsonl")
    ended = ctl.karmactl(*only, "--from", "2026-01-01", environ=environ(server))
    assert [json.loads(line) for line in ended.stdout.splitlines()] == [
        {"series": "api", "key": 1, "day": "2026-05-05", "value": 1}
    ]
    ended = ctl.karmactl(*only, "--to", "2024-12-31", environ=environ(server))
    assert [json.loads(line)["day"] for line in ended.stdout.splitlines()] == ["2024-02-29"]


def test_an_export_that_fails_leaves_the_old_file(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "old.csv"
    file.write_text("old\n")
    ended = ctl.karmactl("export", str(file), "--series", "missing", environ=environ(server))
    assert ended.code == 3
    assert file.read_text() == "old\n"


def test_a_reader_that_goes_away_ends_an_export_in_silence(server: Server) -> None:
    with server.connect() as connection:
        items = [[key, DAY, 1] for key in range(100)]
        for _ in range(100):
            connection.ask("series.batch_add", series="api", items=items)
            items = [[item[0] + 100, DAY, 1] for item in items]
    process = start(server, "export", "-")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "series,key,day,value\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(20) == 0
    process.stderr.close()


# -- Broken off -------------------------------------------------------------------------------------------

ROWS = 300_000


def large(tmp_path: Path) -> Path:
    file = tmp_path / "large.csv"
    rows = (f"{name},{key},2026-05-05,3\n" for name in ("a", "b") for key in range(ROWS // 2))
    file.write_text("series,key,day,value\n" + "".join(rows))
    return file


def wait_for_items(server: Server, items: int) -> None:
    deadline = time.monotonic() + 30
    with server.connect() as connection:
        while connection.ask("system.stats")["ingest_items_applied"] < items:
            assert time.monotonic() < deadline


def totals(server: Server) -> list[int]:
    return [server.ask("tree.info", series=name)["total"] for name in ("a", "b")]


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(server: Server, tmp_path: Path) -> None:
    file = large(tmp_path)
    process = start(server, "import", str(file))
    wait_for_items(server, 1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "the same command goes on from there" in stderr
    assert "Traceback" not in stderr
    ended = ctl.karmactl("import", str(file), "--output", "json", environ=environ(server))
    assert ended.code == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert (said["rows"], said["status"]) == (ROWS, "imported")
    assert "going on" in ended.stderr
    # What the first run brought was not sent again, and counts once; a chunk that the server had in hand when
    # the client left is among it.
    assert 0 < said["sent"] < ROWS
    assert server.ask("system.stats")["ingest_items_applied"] == ROWS
    assert totals(server) == [ROWS // 2 * 3] * 2
    assert list((tmp_path / "state" / "karmactl" / "imports").iterdir()) == []


def test_a_server_that_dies_in_the_middle_loses_and_doubles_nothing(server: Server, tmp_path: Path) -> None:
    file = large(tmp_path)
    process = start(server, "import", str(file))
    wait_for_items(server, ROWS // 2 + 1)
    server.kill()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in {5, 6}, stderr
    assert "rows are on the server" in stderr
    server.restart(port=server.port)
    ended = ctl.karmactl("import", str(file), environ=environ(server))
    assert ended.code == 0, ended.stderr
    assert totals(server) == [ROWS // 2 * 3] * 2


def broken_off(server: Server, file: Path) -> None:
    """An import that ends because the server has no room for one of its values: after some of the chunks."""
    server.ask("counter.increment", series="a", key=2000, bucket=DAY, value=U64_MAX)
    file.write_text("key,day,value\n" + "".join(f"{key},2026-05-05,1\n" for key in range(4000)))
    ended = ctl.karmactl("import", str(file), "--series", "a", environ=environ(server))
    assert ended.code == 4, ended.stderr
    assert "count already" in ended.stderr


def test_a_file_that_was_changed_in_between_is_refused(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "some.csv"
    broken_off(server, file)
    server.ask("counter.reset", series="a", key=2000)
    whole = file.read_text()
    file.write_text(whole.replace("\n3999,2026-05-05,1", "\n3999,2026-05-05,2"))
    before = server.ask("tree.info", series="a")
    ended = ctl.karmactl("import", str(file), "--series", "a", environ=environ(server))
    assert ended.code == 4
    assert "not the file that it was" in ended.stderr
    assert server.ask("tree.info", series="a") == before
    file.write_text(whole)
    assert ctl.karmactl("import", str(file), "--series", "a", environ=environ(server)).code == 0
    assert server.ask("tree.info", series="a")["total"] == 4000


def test_restart_gives_the_first_try_up(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "some.csv"
    broken_off(server, file)
    applied = server.ask("system.stats")["ingest_items_applied"]
    server.ask("counter.reset", series="a", key=2000)
    file.write_text("key,day,value\n1,2026-05-05,1\n")
    command = ("import", str(file), "--series", "a", "--restart")
    refused = ctl.karmactl(*command, environ=environ(server))
    assert (refused.code, "counts already" in refused.stderr) == (4, True)
    assert ctl.karmactl(*command, "--yes", environ=environ(server)).code == 0
    assert server.ask("tree.info", series="a")["total"] == applied + 1
    assert server.ask("system.stats")["ingest_active_streams"] == 0


def test_no_series_is_replaced_before_all_of_the_file_is_there(server: Server, tmp_path: Path) -> None:
    for name in ("a", "b"):
        server.ask("counter.increment", series=name, key=1, bucket=DAY, value=9)
    file = large(tmp_path)
    replace = ("import", str(file), "--mode", "replace_series", "--confirm", file.name)
    process = start(server, *replace)
    # Series a is there, and a part of b.
    wait_for_items(server, ROWS // 2 + 1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, "nothing of it shows yet" in stderr) == (130, True), stderr
    assert totals(server) == [9, 9]
    assert ctl.karmactl(*replace, environ=environ(server)).code == 0
    assert totals(server) == [ROWS // 2 * 3] * 2


def test_stdin_counts_once_as_well(server: Server) -> None:
    text = "key,day,value\n7,20260505,3\n"
    for status in ("imported", "already imported"):
        process = start(server, "import", "-", "--series", "piped", "-o", "json", stdin=subprocess.PIPE)
        stdout, stderr = process.communicate(text, timeout=30)
        assert process.returncode == 0, stderr
        assert json.loads(stdout)["status"] == status
    assert server.ask("tree.info", series="piped")["total"] == 3


def test_mixed_series_need_no_sorting(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "mixed.csv"
    file.write_text("tree,key,bucket,value\n" + "b,1,20260505,1\na,1,20260505,2\n" * 500)
    assert ctl.karmactl("import", str(file), environ=environ(server)).code == 0
    assert totals(server) == [1000, 500]
    only = ctl.karmactl("import", str(file), "--series", "a", "-o", "json", environ=environ(server))
    assert json.loads(only.stdout)["rows"] == 500
    assert totals(server) == [2000, 500]
