"""karmactl sql as a person has it: its shell on a pseudo-terminal, and a remote node as its source."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ctl
import pytest
from ctl import PROMPT, Shell, Terminal
from harness import Server

KARMACTL = str(Path(sys.executable).parent / "karmactl")
CTRL_C, CTRL_D, TAB, UP = "\x03", "\x04", "\t", "\x1b[A"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("sql") / "data") as running:
        running.ask("counter.increment", series="api_requests", key=42, bucket=20260505, value=17)
        running.ask("counter.increment", series="emails", key=7, bucket=20260506, value=3)
        running.ask("snapshot.create_all")
        running.ask("counter.increment", series="api_requests", key=42, bucket=20260507, value=5)
        yield running


@pytest.fixture
def environ(server: Server, tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KARMA", "COLUMNS"))}
    return {
        **kept,
        "TERM": "xterm",
        "KARMACTL_NODES": f"127.0.0.1:{server.port}",
        **{f"XDG_{name}_HOME": str(tmp_path / name) for name in ("CACHE", "CONFIG", "STATE")},
    }


def until_filled(path: Path) -> None:
    """Wait until something is in a file."""
    deadline = time.monotonic() + ctl.SECONDS
    while not path.stat().st_size:
        assert time.monotonic() < deadline, f"nothing is written to {path}"
        time.sleep(0.01)


def test_statements_and_words_of_the_shell(environ: dict[str, str], tmp_path: Path) -> None:
    shell = Shell(environ, KARMACTL, "sql")
    shell.command("SELECT sum(value) AS used FROM counters;", "20")
    # A statement goes on until its semicolon, which does not count inside quotes.
    shell.run("SELECT ';'\r", "...>")
    shell.run("AS semicolon,\r", "...>")
    shell.command("7 AS n;", "(1 row)")
    shell.command("SELECT valeu FROM counters;", "did you mean value?")
    shell.command("\\d", "top_keys")
    shell.command("\\d wal", "to_day")
    shell.command("\\dt", "ingest_streams")
    shell.command("\\timing", "timing is on")
    shell.command("CREATE TABLE mine AS SELECT 1 AS x;", "took ")
    shell.command("\\d", "made in this session")
    shell.command("\\plot", "plotting is on")
    shell.command("SELECT series, sum(value) AS v FROM counters GROUP BY ALL;", "█")
    shell.command("\\plot", "plotting is off")
    shell.command(f"\\o {tmp_path}/out.csv", "results go to")
    shell.command("SELECT key FROM counters ORDER BY key;", "2 rows to")
    shell.command("\\o", "results come here")
    (tmp_path / "questions.sql").write_text("SELECT 40 + 2 AS answer;")
    shell.command(f"\\i {tmp_path}/questions.sql", "42")
    shell.command("\\plto", "did you mean \\plot?")
    shell.command("\\?", "carry out a file")
    shell.leave()
    assert (tmp_path / "out.csv").read_text() == "key\n7\n42\n"
    assert (tmp_path / "STATE" / "karmactl" / "sql_history").stat().st_mode & 0o077 == 0


def test_ctrl_c_cancels_the_statement_and_not_the_shell(environ: dict[str, str], tmp_path: Path) -> None:
    shell = Shell(environ, KARMACTL, "sql")
    shell.command("SELECT sum(value) AS used FROM counters;", "20")
    shell.type("SELECT sum(a.range * b.range) FROM range(100_000_000) a, range(100_000_000) b;\r")
    # Progress shows that it runs.
    shell.next("running")
    shell.run(CTRL_C, "cancelled")
    shell.next(PROMPT)
    shell.run(f"SELECT 1{CTRL_C}", PROMPT)
    # Rows that are being printed are cancelled, too.
    shell.type(f"\\o {tmp_path}/endless.jsonl\r")
    shell.next("results go to")
    shell.next(PROMPT)
    shell.type("SELECT range FROM range(1_000_000_000);\r")
    until_filled(tmp_path / "endless.jsonl")
    shell.run(CTRL_C, "cancelled")
    shell.next(PROMPT)
    shell.command("\\o", "results come here")
    shell.command("SELECT sum(value) + 1 AS used FROM counters;", "21")
    shell.leave(CTRL_D)


def test_ctrl_c_ends_a_single_statement(environ: dict[str, str]) -> None:
    endless = "SELECT sum(a.range * b.range) FROM range(100_000_000) a, range(100_000_000) b"
    terminal = Terminal(environ, KARMACTL, "sql", endless)
    terminal.wait_for("running")
    terminal.type(CTRL_C)
    terminal.wait_for("interrupted")
    assert terminal.end() == 130


def test_a_node_that_is_gone_ends_the_statement_and_not_the_shell(environ: dict[str, str]) -> None:
    shell = Shell(environ, KARMACTL, "sql", "--from", "node:127.0.0.1:1")
    shell.command("FROM counters;", "is karma running there")
    shell.command("SELECT 41 + 1 AS answer;", "42")
    shell.leave()


def test_names_and_series_are_completed_and_history_is_kept(environ: dict[str, str]) -> None:
    shell = Shell(environ, KARMACTL, "sql")
    shell.run(f"SELECT sum(value) FROM coun{TAB}", "ters")
    shell.command(";", "20")
    shell.run(f"SELECT value FROM counters WHERE series = 'em{TAB}", "ails'")
    shell.command(";", "3")
    shell.leave()
    shell = Shell(environ, KARMACTL, "sql")
    shell.run(f"{UP}{UP}", "emails")
    shell.command("", "3")
    shell.leave("exit\r")


def test_without_a_terminal_statements_come_from_stdin(environ: dict[str, str]) -> None:
    ended = ctl.karmactl("sql", environ=environ)
    assert (ended.code, ended.stdout) == (0, "")


def test_a_node_s_snapshots_are_fetched_once(environ: dict[str, str], server: Server, tmp_path: Path) -> None:
    query = "SELECT series, key, value FROM counters ORDER BY ALL"
    line = ("sql", query, "--output", "csv")
    wanted = "series,key,value\napi_requests,42,17\nemails,7,3\n"
    assert ctl.karmactl(*line, environ=environ).stdout == wanted
    mirror = tmp_path / "CACHE" / "karmactl" / "snapshots" / f"127.0.0.1_{server.port}"
    first = {path.name: path.read_bytes() for path in mirror.glob("*.tree")}
    assert len(first) == 2
    before = [path.stat().st_ino for path in sorted(mirror.glob("*.tree"))]
    assert ctl.karmactl(*line, environ=environ).stdout == wanted
    assert [path.stat().st_ino for path in sorted(mirror.glob("*.tree"))] == before
    # One that is not what the server describes is fetched again.
    damaged = next(mirror.glob("*.tree"))
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    assert ctl.karmactl(*line, environ=environ).stdout == wanted
    assert {path.name: path.read_bytes() for path in mirror.glob("*.tree")} == first


def test_every_table_of_a_node(environ: dict[str, str], server: Server, tmp_path: Path) -> None:
    server.ask("counter.increment", series="emails", key=7, bucket=20260506, value=1, idempotency_key="once")
    node, context = f"node:127.0.0.1:{server.port}", "context:dev"
    folder = tmp_path / "CONFIG" / "karmactl"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'[contexts.dev]\nnodes = ["127.0.0.1:{server.port}"]\n')

    def ask(source: str, sql: str, *options: str) -> list[dict[str, object]]:
        ended = ctl.karmactl("sql", "--from", source, sql, "--output", "json", *options, environ=environ)
        assert ended.code == 0, ended.stderr
        found: list[dict[str, object]] = json.loads(ended.stdout)
        return found

    for source in (node, context, str(server.directory)):
        assert ask(source, "SELECT sum(value) AS v FROM counters") == [{"v": 20}]
        assert ask(source, "SELECT sum(value) AS v FROM counters", "--as-of", "now") == [{"v": 26}]
        assert ask(source, "SELECT sum(value) AS v FROM counters", "--as-of", "lsn:3") == [{"v": 25}]
        assert ask(source, "SELECT sum(value) AS v FROM counters", "--as-of", "0.001s") == [{"v": 26}]
        assert ask(source, "SELECT lsn, idempotency_key AS k FROM wal ORDER BY lsn")[-2:] == [
            {"lsn": 3, "k": None},
            {"lsn": 4, "k": "once"},
        ]
        assert ask(source, "SELECT count(*) AS n FROM snapshots WHERE used") == [{"n": 2}]
        assert ask(source, "SELECT count(*) AS n FROM idempotency") == [{"n": 0}]
        assert ask(source, "SELECT count(*) AS n FROM ingest_streams") == [{"n": 0}]
    found = ask(node, "SELECT DISTINCT snapshot FROM counters", "--from", str(server.directory))
    assert len(found) == 2


def test_a_node_that_is_not_there(environ: dict[str, str]) -> None:
    ended = ctl.karmactl("sql", "--from", "node:127.0.0.1:1", "FROM counters", environ=environ)
    assert ended.code == 5
    assert "127.0.0.1:1" in ended.stderr
    ended = ctl.karmactl("sql", "--from", "node:127.0.0.1:1", "SELECT 1 AS one", environ=environ)
    assert (ended.code, ended.stdout) == (0, "one\n  1\n")
