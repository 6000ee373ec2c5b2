"""karmactl sql and snapshot diff of directories made by hand: every form, and all that can be wrong."""

import os
import shutil
import sys
from pathlib import Path

import ctl
import pytest
from ctl import Step
from handmade import DAY, Node, add, flip
from harness import FIXTURES

from karmactl import cli


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A directory with two snapshots and a log, one that is damaged, one with a torn log, and odd files."""
    folder = tmp_path_factory.mktemp("sql")
    made = {name: Node(folder / name) for name in ("data", "damaged", "torn")}
    for node in made.values():
        node.write(
            add("api", 42, 500),
            add("api", 43, 7, bucket=DAY + 1),
            {
                "op": "series.batch_add",
                "series": "mail\x1b[31m",
                "items": [[7, DAY, 3], [8, DAY, 2**64 - 5]],
                "granularity": "day",
            },
        )
        node.snapshot_all(keep_bytes=1 << 30)
        node.unix += 86_400
        node.write(add("api", 42, 40), add("api", 44, 1, idempotency_key="job-7"))
        node.snapshot_all(keep_bytes=1 << 30)
        node.unix += 86_400
        node.write(
            {"op": "counter.delete_range", "series": "api", "key": 42, "range": {"from": DAY, "to": DAY}},
            add("api", 42, 1, bucket=20260601),
        )
    newest = max((folder / "damaged").glob("*_api.tree"))
    flip(newest, -3)
    log = folder / "torn" / "karma.wal"
    log.write_bytes(log.read_bytes()[:-9])
    (folder / "cut.tree").write_bytes(newest.read_bytes()[:-20])
    (folder / "foreign.tree").write_bytes(b"\x82\xa1a\x01\xa1b\x02")
    (folder / "no.parquet").write_text("PAR1 and nothing else")
    (folder / "questions.sql").write_text(
        "-- two of them\nSELECT 1 AS one;\nSELECT count(*) AS n FROM counters;\n"
    )
    (folder / "notes.txt").write_text("")
    return {
        **{name.upper(): str(folder / name) for name in made},
        **{
            name.split(".")[0].upper(): str(folder / name)
            for name in ("cut.tree", "foreign.tree", "no.parquet", "questions.sql", "notes.txt", "missing")
        },
        "LOG": str(folder / "data" / "karma.wal"),
        "OUT": str(folder / "out.parquet"),
        "ALL": str(folder / "all"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_STATE_HOME": str(folder / "state"),
    }


EVERY_KIND = (
    "SELECT key, day, value, value / 3 AS share, NULL AS nothing, [1, 2] AS list, true AS yes, ts, "
    "18446744073709551615::UBIGINT AS most FROM counters JOIN (SELECT max(ts) AS ts FROM wal) ON true "
    "WHERE series = 'api' ORDER BY ALL"
)


def test_every_form(environ: dict[str, str]) -> None:
    line = ("sql", "--from", environ["DATA"])
    ctl.compare("sql", ctl.transcript((*line, EVERY_KIND), environ))
    ctl.compare(
        "sql-plot", ctl.transcript((*line, "--plot", "FROM by_day('api')"), environ, formats=("table",))
    )
    diff = ("snapshot", "diff", "previous", "latest", "--from", environ["DATA"])
    ctl.compare("snapshot-diff", ctl.transcript(diff, environ))


def test_questions(environ: dict[str, str]) -> None:
    steps: list[str | Step] = [
        "sql --from $DATA 'FROM series'",
        "sql --from $DATA --as-of now 'FROM series'",
        "sql --from $DATA --as-of 4 'FROM totals ORDER BY ALL'",
        "sql --from $DATA --at latest --at previous 'FROM series'",
        "sql --from $DATA --at lsn:3 'FROM top_keys(1)'",
        "sql --from $DATA 'SELECT lsn, ts, op, series, key, day, value, to_day, item FROM wal ORDER BY ALL'",
        "sql --from $DATA 'SELECT * EXCLUDE (source) FROM snapshots'",
        "sql --from $DATA 'SELECT * EXCLUDE (source, fingerprint) FROM idempotency'",
        "sql --from $DATA 'FROM growth()' --output csv",
        "sql --from $DATA 'FROM heatmap()' --output jsonl",
        "sql --from $DATA --file $QUESTIONS --output csv",
        "sql --from $DATA 'SELECT value FROM counters WHERE key = $k' --param k=43",
        "sql --from $DATA 'SELECT value FROM counters WHERE day = $d' --param d=2026-05-06",
        "sql --from $DATA --plot 'SELECT series, sum(value) AS used FROM counters GROUP BY ALL ORDER BY ALL'",
        "sql --from $DATA 'SELECT 1 AS a, 2 AS a' --output json",
        "sql --from $DATA --to $OUT 'FROM counters'",
        "sql --from $OUT 'SELECT count(*) AS n, sum(value) AS used FROM counters'",
        "sql --from $DATA --to $ALL --format csv",
        "snapshot diff previous latest --from $DATA --by day --series api --output csv",
        "snapshot diff previous latest --from $DATA --by series --fields series,change",
    ]
    ctl.compare("sql-questions", ctl.story(steps, environ))


def test_what_can_be_wrong(environ: dict[str, str]) -> None:
    steps: list[str | Step] = [
        "sql --from $DATA 'SELEC 1'",
        "sql --from $DATA 'SELECT series,\n       valeu\nFROM counters'",
        Step("sql --from $DATA 'FROM counter'", columns=80),
        "sql --from $DATA 'SELECT by_month()'",
        "sql --from $DATA 'SELECT $x'",
        "sql --from $DATA \"COPY counters TO 'x.csv'\"",
        "sql --from $DATA \"FROM read_text('/etc/passwd')\"",
        "sql --from $DATA --at 2020-01-01 'FROM counters'",
        "sql --from $DATA --as-of 99 'FROM counters'",
        "sql --from $DATA --as-of 2020-01-01 'FROM counters'",
        "sql --from $DATA --as-of 4 --at latest 'FROM counters'",
        "sql --from $DATA --as-of soon 'FROM counters'",
        "snapshot diff previous yesterday --from $DATA",
        "snapshot diff latest latest --from $DATA",
        "sql --from $DAMAGED 'FROM series'",
        "sql --from $DAMAGED --skip-damaged 'SELECT series, total FROM series'",
        "sql --from $TORN 'SELECT max(lsn) AS last FROM wal'",
        "sql --from $TORN --as-of now 'SELECT sum(total) AS total FROM totals'",
        "sql --from $CUT 'FROM counters'",
        "sql --from $FOREIGN 'FROM counters'",
        "sql --from $NO 'FROM counters'",
        "sql --from $NOTES 'FROM counters'",
        "sql --from $MISSING 'FROM counters'",
        "sql --from $DATA --plot 'SELECT 1'",
        "sql --from $DATA --plot 'FROM counters' --output json",
        "sql --from $DATA --to data.txt 'FROM counters'",
        "sql --from $DATA --to $ALL --format csv",
        "sql --from $DATA --file $MISSING",
        "sql --from $DATA --memory-limit much 'SELECT 1'",
        "sql --from $LOG 'FROM counters'",
    ]
    ctl.compare("sql-wrong", ctl.story(steps, environ))


def test_the_directories_of_karma_1_0(environ: dict[str, str], tmp_path: Path) -> None:
    for name in ("wal-only", "wal-segments", "snapshot-and-wal"):
        # Where the recordings are differs from machine to machine, and messages name it.
        shutil.copytree(FIXTURES / name / "data", tmp_path / name)
        environ = {**environ, name.replace("-", "_").upper(): str(tmp_path / name)}
    steps = [
        f"sql --from ${name} {words}"
        for name in ("WAL_ONLY", "WAL_SEGMENTS", "SNAPSHOT_AND_WAL")
        for words in (
            "--as-of now 'FROM series' --output csv",
            "'SELECT op, count(DISTINCT lsn) AS entries FROM wal GROUP BY op ORDER BY ALL' --output csv",
            "'SELECT count(*) AS streams, count(series) AS bound FROM ingest_streams' --output csv",
            "'SELECT series, sum(value) AS used FROM counters GROUP BY ALL ORDER BY ALL' --output csv",
        )
    ]
    ctl.compare("sql-karma-1.0", ctl.story(steps, environ))


def test_without_the_extra_the_message_names_it(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("duckdb", "_duckdb"):
        monkeypatch.setitem(sys.modules, name, None)
    for line in (("sql", "SELECT 1"), ("snapshot", "diff", "previous", "latest")):
        ended = ctl.karmactl(*line, "--from", environ["DATA"], environ=environ)
        assert ended.code == 2
        assert "pip install 'karma[sql]'" in ended.stderr


def test_statements_come_over_stdin(environ: dict[str, str]) -> None:
    read, write = os.pipe()
    os.write(write, b"SELECT 'from a pipe' AS said;")
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as stdin, Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        out = Path(environ["XDG_CACHE_HOME"]).parent / "stdout.txt"
        with out.open("w", encoding="utf-8") as stdout:
            words = ["sql", "--from", environ["DATA"], "--output", "csv"]
            assert cli.run(words, environ, stdin, stdout, nowhere) == 0
    assert out.read_text() == "said\nfrom a pipe\n"
