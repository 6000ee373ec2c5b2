"""SQL over what is not there or does not end, in UTC, and with all digits in what is written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ctl import Ended, karmactl
from harness import FIXTURES

U64_MAX = 2**64 - 1


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "snapshot-and-wal" / "data", tmp_path / "data"))


def sql(source: Path, *words: str) -> Ended:
    environ = {"XDG_CACHE_HOME": str(source.parent / "cache")}
    return karmactl("sql", "--from", str(source), *words, columns=200, environ=environ)


def test_a_folder_without_data_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing of Karma\n")
    ended = sql(tmp_path, "SELECT count(*) FROM counters")
    assert (ended.code, "is a folder without data of Karma" in ended.stderr) == (3, True), ended.stderr
    assert ended.stdout == ""


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.tree"
    os.mkfifo(pipe)
    ended = sql(pipe, "SELECT 1")
    assert (ended.code, "is not a file" in ended.stderr) == (2, True), ended.stderr


def test_a_statement_that_takes_too_long_is_cancelled(data: Path) -> None:
    endless = "SELECT count(*) FROM range(1000000000) a, range(1000000000) b WHERE a.range % 7 = b.range % 5"
    ended = sql(data, "--timeout", "500ms", endless)
    assert (ended.code, "took longer than 0.5 s" in ended.stderr) == (6, True), ended.stderr
    assert sql(data, "--timeout", "60s", "SELECT 42 AS answer", "--output", "csv").stdout == "answer\n42\n"


def test_days_and_times_are_utc_wherever_the_operator_sits(data: Path) -> None:
    command = [sys.executable, "-m", "karmactl", "sql", "--from", str(data), "--output", "csv"]
    is_utc = "current_date = (now() AT TIME ZONE 'UTC')::DATE AS is_utc"
    query = f"SELECT current_setting('TimeZone') AS zone, {is_utc}"
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        environ = {**os.environ, "TZ": zone, "XDG_CACHE_HOME": str(data.parent / "cache")}
        ended = subprocess.run([*command, query], env=environ, capture_output=True, text=True, check=True)
        assert ended.stdout == "zone,is_utc\nUTC,true\n"


def test_sums_keep_all_their_digits_in_parquet(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "sums.parquet"
    query = f"SELECT sum(value) AS used FROM (VALUES ({U64_MAX}::UBIGINT), ({U64_MAX}::UBIGINT)) AS t(value)"
    assert sql(data, query, "--to", str(target)).code == 0
    duckdb = pytest.importorskip("duckdb")
    (row,) = duckdb.execute(f"SELECT used, typeof(used) FROM '{target}'").fetchall()
    assert (int(row[0]), row[1]) == (2 * U64_MAX, "DECIMAL(38,0)")
