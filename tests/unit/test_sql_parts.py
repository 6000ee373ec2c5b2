"""What SQL reaches, what it is refused, its cache, its mistakes and its plots."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest
from handmade import DAY, Node, add
from hypothesis import given, settings
from hypothesis import strategies as st

from karma_sql import cache as cached
from karma_sql import plots
from karma_sql.cache import Cache
from karma_sql.errors import SqlError
from karma_sql.session import Session
from karma_sql.sources import Asked, Part, local
from karma_sql.tables import BY_NAME, MACROS, TABLES
from karmactl.output import width_of


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path / "data")
    node.write(
        add("api", 1, 5),
        add("api", 2**64 - 1, 2**64 - 1),
        add("mail's", 1),
        {"op": "tree.create", "series": "empty"},
    )
    node.snapshot_all(keep_bytes=1 << 30)
    node.write(add("api", 1, 7, bucket=DAY + 1))
    return node


@pytest.fixture
def session(node: Node, tmp_path: Path) -> Iterator[Session]:
    with Session(local([node.directory]), Cache(tmp_path / "cache")) as session:
        yield session


def ask(session: Session, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
    return [row for result in session.run(sql, parameters) for row in result.rows]


@pytest.mark.parametrize("day", [0, 20260230, 2**32 + 7, 2**63 - 1])
@pytest.mark.parametrize("in_log", [False, True], ids=["snapshot", "log"])
def test_a_day_that_is_not_a_date_is_null_and_told(tmp_path: Path, day: int, in_log: bool) -> None:
    node = Node(tmp_path / "data")
    node.write(add("api", 1, 5))
    node.snapshot_all(keep_bytes=1 << 30)
    node.write(
        add("api", 1, 7, bucket=day), {"op": "series.batch_add", "series": "api", "items": [[2, day, 3]]}
    )
    if not in_log:
        node.snapshot_all(keep_bytes=1 << 30)
    notes: list[str] = []
    asked = Asked(is_now=in_log)
    with Session(local([node.directory]), Cache(tmp_path / "cache"), asked, note=notes.append) as session:
        rows = ask(session, "SELECT key, day, value FROM counters ORDER BY ALL")
        assert rows == [(1, date(2026, 5, 5), 5), (1, None, 7), (2, None, 3)]
        assert ask(session, "SELECT day, value FROM wal WHERE lsn > 1 ORDER BY ALL") == [(None, 3), (None, 7)]
    assert "2 buckets have a day that is no date; their day is NULL" in notes


# -- Tables and macros ------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_table_has_the_columns_that_are_told(session: Session, table: Any) -> None:
    described = ask(session, f"SELECT column_name, column_type FROM (DESCRIBE {table.name})")
    assert tuple(described) == table.columns


@pytest.mark.parametrize("macro", MACROS, ids=lambda macro: macro.name)
def test_every_macro_works_alone_and_with_several_snapshots(node: Node, tmp_path: Path, macro: Any) -> None:
    node.snapshot_all(keep_bytes=1 << 30)
    for at in ((), ("latest", "previous")):
        with Session(local([node.directory]), Cache(tmp_path / "cache"), Asked(at)) as session:
            (result,) = session.run(f"FROM {macro.name}()")
            assert (result.columns[0].name == "snapshot") == bool(at)
            assert {row[len(at) // 2] for row in result.rows} == {"api", "mail's"}
            (one,) = session.run(f"FROM {macro.name}(name := 'api')")
            assert {row[len(at) // 2] for row in one.rows} == {"api"}


def test_numbers_past_63_bits_are_exact(session: Session) -> None:
    assert ask(session, "SELECT key, total FROM totals WHERE key > 1") == [(2**64 - 1, 2**64 - 1)]
    assert ask(session, "SELECT sum(value) FROM counters") == [(2**64 + 5,)]


def test_a_series_without_keys_is_one(session: Session) -> None:
    assert ask(session, "SELECT series, keys, total FROM series") == [
        ("api", 2, 2**64 + 4),
        ("empty", 0, 0),
        ("mail's", 1, 1),
    ]


def test_parameters_and_several_statements(session: Session) -> None:
    found = ask(session, "CREATE TABLE t AS SELECT $a AS x; SELECT x + $b FROM t", a=1, b=2)
    assert found[-1] == (3,)


def test_large_results_come_in_parts(session: Session) -> None:
    (result,) = session.run("SELECT range FROM range(12345)")
    assert sum(1 for _ in result.rows) == 12345


# -- What is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "COPY counters TO '{file}'",
        "EXPLAIN COPY (SELECT 1) TO '{file}'",
        "EXPLAIN ANALYZE /* x */ COPY (SELECT 1) TO '{file}'",
        "PREPARE p AS COPY (SELECT 1) TO '{file}'",
        "ATTACH '{file}' AS other",
        "EXPORT DATABASE '{file}'",
        "SET enable_external_access = true",
        "SET threads = 1",
        "PRAGMA enable_profiling",
        "INSTALL httpfs",
        "LOAD '{file}'",
        "CALL pragma_version()",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM read_csv('{file}')",
        "SELECT * FROM '{file}'",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM sniff_csv('{file}')",
        "SELECT * FROM 'http://127.0.0.1:1/x.csv'",
        "CREATE TABLE t AS FROM read_blob('{file}')",
        "CREATE VIEW v AS FROM read_text('{file}'); FROM v",
        "CREATE MACRO m() AS TABLE FROM read_text('{file}'); FROM m()",
        "WITH x AS (FROM read_text('{file}')) FROM x",
        "SELECT (SELECT content FROM read_text('{file}'))",
        "FROM (VALUES (1)) v, LATERAL (FROM read_text('{file}'))",
        "INSERT INTO counters FROM read_csv('{file}')",
        "CREATE TABLE t(a VARCHAR); COPY t FROM '{file}'",
        "COPY (FROM counters) TO '{file}' (FORMAT parquet)",
        "COPY (FROM counters) TO '{file}' (FORMAT json)",
        "COPY (FROM counters) TO '/dev/stdout'",
        "copy/**/counters/**/to '{file}'",
        "  ;; COPY counters TO '{file}'",
        "EXECUTE IMMEDIATE 'COPY counters TO x'",
        "EXPORT DATABASE '{file}' (FORMAT parquet)",
        "IMPORT DATABASE '{file}'",
        "ATTACH ':memory:' AS other; COPY FROM DATABASE memory TO other",
        "ATTACH '{file}' (READ_ONLY)",
        "ATTACH 'http://127.0.0.1:1/x.duckdb' AS other",
        "USE '{file}'",
        "DETACH memory",
        "SELECT * FROM read_json('{file}')",
        "SELECT * FROM read_parquet('{file}')",
        "SELECT * FROM parquet_metadata('{file}')",
        "SELECT * FROM read_text(['{file}'])",
        "SELECT * FROM query('FROM read_text(''{file}'')')",
        "SELECT * FROM query_table('{file}')",
        "SELECT * FROM read_ndjson_auto('{file}')",
        "SET home_directory = '/'",
        "SET temp_directory = '/'",
        "SET allowed_paths = ['{file}']",
        "RESET lock_configuration",
        "PRAGMA database_list; SET GLOBAL lock_configuration = false",
    ],
)
def test_nothing_but_the_sources_is_reached(session: Session, tmp_path: Path, sql: str) -> None:
    there, new = tmp_path / "there.csv", tmp_path / "new.csv"
    there.write_text("secret\n")
    for file in (there, new):
        with pytest.raises(SqlError) as caught:
            ask(session, sql.format(file=file))
        assert "secret" not in caught.value.message
    assert there.read_text() == "secret\n"
    assert not new.exists()


def test_the_configuration_is_locked_behind_the_words_that_are_refused(session: Session) -> None:
    with pytest.raises(duckdb.Error, match="locked"):
        session._connection.execute("SET enable_external_access = true")


def test_what_is_refused_can_be_allowed(node: Node, tmp_path: Path) -> None:
    with Session(local([node.directory]), Cache(tmp_path / "cache"), unsafe=True) as session:
        ask(session, f"COPY counters TO '{tmp_path / 'out.csv'}'")
    assert "api,1,2026-05-05,5" in (tmp_path / "out.csv").read_text()


def test_a_source_is_left_as_it_was(node: Node, tmp_path: Path) -> None:
    def stat() -> dict[str, tuple[int, int, int]]:
        paths = sorted(node.directory.rglob("*"))
        return {
            str(path): (path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_nlink) for path in paths
        }

    before = stat()
    for wanted in (Asked(), Asked(is_now=True), Asked(as_of_lsn=5)):
        with Session(local([node.directory]), Cache(tmp_path / "cache"), wanted) as session:
            session.export_all(tmp_path / "all.duckdb", "duckdb")
    assert stat() == before


def test_limits_hold_and_are_named(node: Node, tmp_path: Path) -> None:
    sources, cache = local([node.directory]), Cache(tmp_path / "cache")
    with Session(sources, cache, memory_limit="20MB", threads=1) as session:
        assert ask(session, "SELECT current_setting('threads')") == [(1,)]
        with pytest.raises(SqlError) as caught:
            ask(session, "SELECT list(range) FROM range(100_000_000)")
    assert "--memory-limit" in caught.value.advice
    with pytest.raises(SqlError):
        Session([], Cache(tmp_path / "cache"), memory_limit="much")


def test_a_statement_is_cancelled_from_another_thread(session: Session) -> None:
    def cancel() -> None:
        time.sleep(0.3)
        session.cancel()

    threading.Thread(target=cancel, daemon=True).start()
    with pytest.raises(SqlError) as caught:
        ask(session, "SELECT sum(a.range * b.range) FROM range(10_000_000) a, range(10_000_000) b")
    assert caught.value.kind == "cancelled"
    assert ask(session, "SELECT count(*) FROM counters") == [(3,)]


# -- The cache --------------------------------------------------------------------------------------------


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "LEAST_BUCKETS", 1)
    monkeypatch.setattr("karma_sql.loading.OWN_RELATION_BUCKETS", 1)


def decoded(folder: Path) -> list[Path]:
    return sorted(folder.glob("sql/*.duckdb"))


def counters(node: Node, cache: Cache) -> list[tuple[Any, ...]]:
    with Session(local([node.directory]), cache) as session:
        found = ask(session, "FROM counters ORDER BY ALL")
        assert ask(session, "SELECT sum(total) FROM totals") == [(sum(row[3] for row in found),)]
        session.keep()
    return found


@pytest.mark.usefixtures("small_cache")
def test_a_cache_that_is_damaged_or_old_is_not_believed(node: Node, tmp_path: Path) -> None:
    first = counters(node, Cache(tmp_path / "cache"))
    assert len(decoded(tmp_path / "cache")) == 2  # the empty series has nothing to keep
    assert list((tmp_path / "cache" / "sql").glob("scratch.*")) == []
    for path in decoded(tmp_path / "cache"):
        path.write_bytes(b"not a database")
    assert counters(node, Cache(tmp_path / "cache")) == first
    node.snapshot_all()
    assert counters(node, Cache(tmp_path / "cache")) != first
    kept = len(decoded(tmp_path / "cache"))
    assert counters(node, Cache(tmp_path / "cache", is_kept=False)) != first
    assert len(decoded(tmp_path / "cache")) == kept


@pytest.mark.usefixtures("small_cache")
def test_a_kept_snapshot_is_not_decoded_again(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = counters(node, Cache(tmp_path / "cache"))
    read: list[str] = []
    columns = Part.columns

    def noted(part: Part) -> Any:
        read.append(part.series)
        return columns(part)

    monkeypatch.setattr(Part, "columns", noted)
    assert counters(node, Cache(tmp_path / "cache")) == first
    assert read == ["empty"]


def test_the_oldest_go_when_there_is_too_much(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=250)
    mirror = tmp_path / "snapshots" / "node"
    mirror.mkdir(parents=True)
    for age, path in enumerate((tmp_path / "sql/a.duckdb", mirror / "1_x.tree", tmp_path / "sql/b.duckdb")):
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    (mirror / "1_x.tree.meta.json").write_text("{}")
    cache.prune()
    assert [path.name for path in decoded(tmp_path)] == ["a.duckdb"]
    assert (mirror / "1_x.tree").exists()
    Cache(tmp_path, limit_bytes=150).prune()
    assert list(mirror.iterdir()) == []


def test_scratch_folders_of_dead_sessions_go(tmp_path: Path) -> None:
    (tmp_path / "sql").mkdir()
    dead, alive = tmp_path / "sql" / "scratch.999999999.x", tmp_path / "sql" / f"scratch.{os.getpid()}.x"
    dead.mkdir()
    alive.mkdir()
    Cache(tmp_path).close()
    assert [path.name for path in (tmp_path / "sql").iterdir()] == [alive.name]


def test_without_a_folder_to_write_to_everything_works(node: Node, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert len(counters(node, Cache(tmp_path / "file"))) == 3


# -- Exports ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["parquet", "csv", "json", "jsonl"])
def test_a_result_in_a_file(session: Session, tmp_path: Path, form: str) -> None:
    target = tmp_path / f"it's.{form}"
    target.write_text("older")
    rows = session.export(
        "SELECT * FROM counters WHERE value < $most ORDER BY ALL", {"most": 100}, target, form
    )
    assert rows == 2
    read = {"parquet": "read_parquet", "csv": "read_csv"}.get(form, "read_json")
    found = duckdb.connect().execute(f"SELECT series, key, value FROM {read}(?)", [str(target)]).fetchall()
    assert found == [("api", 1, 5), ("mail's", 1, 1)]


def test_everything_in_a_database(session: Session, tmp_path: Path) -> None:
    session.export_all(tmp_path / "all.duckdb", "duckdb")
    with duckdb.connect(str(tmp_path / "all.duckdb"), read_only=True) as found:
        assert {name for (name,) in found.execute("SHOW TABLES").fetchall()} == set(BY_NAME)
        assert found.execute("SELECT sum(value) FROM counters").fetchone() == (2**64 + 5,)
        assert found.execute("SELECT count(*) FROM wal").fetchone() == (5,)


def test_an_export_comes_back_as_a_source(session: Session, tmp_path: Path) -> None:
    session.export("FROM counters", {}, tmp_path / "x.parquet", "parquet")
    with Session(local([tmp_path / "x.parquet"]), Cache(tmp_path / "cache")) as again:
        assert sorted(ask(again, "FROM counters")) == sorted(ask(session, "FROM counters"))
        assert sorted(ask(again, "FROM totals")) == sorted(ask(session, "FROM totals"))
        with pytest.raises(SqlError):
            ask(again, f"COPY (SELECT 1 AS series) TO '{tmp_path / 'x.parquet'}'")


def test_what_is_no_query_is_not_written(session: Session, tmp_path: Path) -> None:
    for sql in ("SELECT 1; SELECT 2", "CREATE TABLE t (a INTEGER)"):
        with pytest.raises(SqlError, match="one query"):
            session.export(sql, {}, tmp_path / "x.csv", "csv")
    with pytest.raises(SqlError, match="cannot be written"):
        session.export("SELECT 1", {}, tmp_path / "missing" / "x.csv", "csv")


# -- Plots ------------------------------------------------------------------------------------------------


def test_a_curve() -> None:
    rows = [(date(2026, 5, day), day * day) for day in range(1, 11)]
    assert plots.plot(["day", "value"], rows, 30, 4) == [
        "value",
        "100 ┤                     ⢀⡠⠔⠊",
        "    │                 ⣀⠤⠒⠉⠁",
        "    │          ⢀⣀⡠⠤⠔⠒⠉",
        "  0 ┤⣀⡠⠤⠤⠤⠤⠤⠒⠒⠉⠁",
        "    └─────────────────────────",
        "     2026-05-01     2026-05-10",
    ]


def test_each_text_has_a_curve_of_its_own() -> None:
    rows = [(date(2026, 5, day), name, day) for day in range(1, 4) for name in ("api", "mail")]
    found = plots.plot(["day", "series", "value"], rows, 30, 3)
    assert [line for line in found if line in {"api", "mail"}] == ["api", "mail"]
    assert found[1:4] == found[5:8]


names = st.lists(st.sampled_from(["day", "text", "n", "m"]), min_size=1, max_size=4, unique=True)


@settings(deadline=None)
@given(names, st.data())
def test_any_result_fits_or_is_refused(columns: list[str], data: st.DataObject) -> None:
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "day": st.dates(date(2020, 1, 1), date(2030, 1, 1)),
        "text": st.text(max_size=12),
        "n": st.integers(-5, 2**64),
        "m": st.floats(-1e6, 1e6),
    }
    cells = st.tuples(*(st.one_of(kinds[name], st.none()) for name in columns))
    rows = data.draw(st.lists(cells, max_size=30))
    width = data.draw(st.integers(20, 100))
    try:
        lines = plots.plot(columns, rows, width)
    except SqlError:
        return
    assert lines
    assert all("\n" not in line and line.replace("\u2800", " ").isprintable() for line in lines)
    assert all(width_of(line) <= max(width, 60) for line in lines)


def test_bars_are_as_long_as_their_values() -> None:
    assert plots.plot(["series", "value"], [("api", 8), ("mail", 4), ("web", 0)], 40) == [
        "value",
        "api  █████████████████████████████████ 8",
        "mail ████████████████▌ 4",
        "web  0",
    ]


@pytest.mark.parametrize("columns", [["n"], ["day"], ["text"], ["day", "text"]])
def test_what_has_no_axis_or_no_numbers_is_refused(columns: list[str]) -> None:
    row = {"n": 1, "day": date(2026, 5, 5), "text": "x"}
    with pytest.raises(SqlError, match="nothing to plot"):
        plots.plot(columns, [tuple(row[name] for name in columns)], 40)
