"""SQL in the dashboard: real DuckDB, real servers, statements that are cancelled, what is missing."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import Server
from stage import FAR, MASTER, NODES, Show, at_home, history, shown, stored
from textual.widgets import TextArea

from karma_client import UnreachableError
from karma_sql.sources import Asked, Directory, Picture, Source
from karma_tui import queries
from karma_tui.app import KarmaApp
from karma_tui.recording import Playback, Recorder
from karma_tui.screens.sql import SqlPage
from karma_tui.statements import Place
from karma_tui.target import Target
from karma_tui.widgets.editor import Editor
from karma_tui.widgets.grid import Grid

ENDLESS = "SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b"


def page(show: Show) -> SqlPage:
    assert isinstance(show.app.screen, SqlPage)
    return show.app.screen


async def ask(show: Show, text: str, key: str = "f5") -> None:
    """Put a statement into the editor and run it."""
    page(show).query_one(Editor).write(text)
    await show.press(key)


def rows(show: Show) -> list[tuple[Any, ...]]:
    return [row.cells for row in page(show).query_one(Grid).shown.rows]


def run(steps: Callable[[Show], Awaitable[None]], folder: Path, **options: Any) -> None:
    """Show SQL over a data directory while steps are done."""

    async def go() -> None:
        async with shown(target=at_home(folder), folder=folder, first="sql", **options) as show:
            show.stage.data = stored(folder / "data")
            await show.see("Tab completes")
            await steps(show)

    asyncio.run(go())


def test_a_statement_that_takes_long_is_cancelled_and_keys_go_on(tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        await ask(show, ENDLESS)
        await show.see("Esc cancels")
        # The editor takes letters meanwhile, and a second statement waits for nobody.
        await show.type(" x")
        assert page(show).query_one(Editor).text.endswith("b x")
        await show.press("f5")
        await show.until(lambda: any("is running" in one.message for one in show.app._notifications))
        await show.press("ctrl+c")
        await show.see("cancelled")
        assert show.app.is_running
        await ask(show, "SELECT 41 + 1 AS answer")
        await show.until(lambda: rows(show) == [(42,)])

    run(steps, tmp_path)


class Slow(Directory):
    """A source that fetches for ever."""

    def __init__(self, path: Path, progress: Callable[[str], object]) -> None:
        super().__init__(path)
        self.progress = progress

    def pictures(self, asked: Asked, note: Callable[[str], object]) -> list[Picture]:
        while True:
            self.progress("fetching 1_api.tree from db1:8080: 1 of 2 KiB")
            time.sleep(0.01)


def test_fetching_is_told_and_cancelled_between_two_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def slow(place: Place, progress: Callable[[str], object]) -> Iterator[Source]:
        yield Slow(tmp_path / "data", progress)

    async def steps(show: Show) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(show.stage, "sql_source", slow)
            await ask(show, "FROM series")
            await show.see("fetching 1_api.tree from db1:8080: 1 of 2 KiB; Esc cancels")
            await show.press("f2", "f3")
            await show.see("sql: newest snapshots")
            await show.press("escape")
            await show.see("cancelled")

    run(steps, tmp_path)


def test_leaving_ends_what_is_running(tmp_path: Path) -> None:
    threads = []

    async def steps(show: Show) -> None:
        await ask(show, ENDLESS)
        await show.see("Esc cancels")
        asker = page(show)._asker
        assert asker is not None
        threads.append(asker._thread)
        await show.press("ctrl+q")
        await show.until(lambda: not show.app.is_running)

    run(steps, tmp_path)
    threads[0].join(20)
    assert not threads[0].is_alive()
    # Also the folder in which a session writes.
    assert not list((tmp_path / "cache" / "sql").glob("scratch.*"))


def test_several_statements_show_the_last_result_and_tables_of_one_s_own_stay(tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        await ask(show, "CREATE TABLE mine AS FROM totals; SELECT count(*) AS n FROM mine; DROP TABLE mine")
        await show.until(lambda: rows(show) == [(2,)])
        await ask(show, "CREATE TABLE kept AS FROM totals")
        await show.see("done")
        await show.press("ctrl+c", "ctrl+z")
        assert page(show).query_one(Editor).text == "CREATE TABLE kept AS FROM totals"
        await show.press("ctrl+c")
        await show.type("from ke")
        await show.press("tab")
        assert page(show).query_one(Editor).text == "from kept"
        await show.press("f5")
        await show.until(lambda: len(rows(show)) == 2)
        # Read anew, it is gone; and what is marked is what runs.
        await show.press("f2")
        await show.see("kept does not exist", "next: there are")
        await ask(show, "SELECT 1 AS a; SELECT 2 AS b")
        await show.until(lambda: rows(show) == [(2,)])
        page(show).query_one(TextArea).selection = type(page(show).query_one(TextArea).selection)(
            (0, 0), (0, 14)
        )
        await show.press("f5")
        await show.until(lambda: rows(show) == [(1,)])
        await show.see("karmactl sql 'SELECT 1 AS a;'")

    run(steps, tmp_path)


def test_series_are_proposed_inside_quotes(tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        await show.type("from by_day('ex")
        await show.see("exports'")
        await show.press("tab")
        await show.type(");")
        assert page(show).query_one(Editor).text == "from by_day('exports');"
        assert (MASTER, "tree.list", {}) in show.stage.asked
        await show.press("enter")
        await show.see("no rows", "0 rows")

    run(steps, tmp_path)


def test_long_and_wide_results_say_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MOST_ROWS", 100)

    async def steps(show: Show) -> None:
        await ask(show, "SELECT range AS n FROM range(101)")
        await show.see("the first 100 rows, `--to FILE` writes all")
        assert len(rows(show)) == 100
        await ask(show, "SELECT range AS n FROM range(100)")
        await show.see(" 100 rows; read at 12:00:00Z")
        many = ", ".join(f"'{at:020}' AS column_{at}" for at in range(12))
        await ask(show, f"SELECT {many}")
        await show.see("1 row; without column_", "Enter shows a row in full")
        await show.pilot.resize_terminal(200, 40)
        await show.see(" 1 row; read at")
        # What was sorted by a column that is gone is as it came.
        await show.press("escape", "s", "s")
        await ask(show, "SELECT 3 AS z UNION ALL SELECT 1")
        await show.until(lambda: len(rows(show)) == 2)

    run(steps, tmp_path)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("SELEC 1", ["parser error: syntax error", "LINE 1: SELEC 1", "^", "did you mean SELECT?"]),
        ("COPY (SELECT 1) TO '/tmp/x.csv'", ["COPY is refused", "--to FILE writes a result"]),
        ("SET threads = 1", ["SET is refused"]),
        ("FROM read_csv('/etc/passwd')", ["next: SQL here reads its sources and touches nothing else"]),
        ("SELECT $who", ["the parameter $who has no value"]),
    ],
)
def test_mistakes_are_told_as_karmactl_tells_them(statement: str, problem: list[str], tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        await ask(show, statement)
        await show.see(*problem)
        await ask(show, "SELECT 1 AS one")
        await show.until(lambda: problem[0] not in show.frame() and rows(show) == [(1,)])

    run(steps, tmp_path)


def test_a_node_that_cannot_be_reached_is_told_and_tried_again(tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        show.stage.refusal = UnreachableError("cannot connect: connection refused", node=MASTER)
        await ask(show, "FROM series")
        await show.see(f"{MASTER}: cannot connect: connection refused")
        show.stage.refusal = None
        await show.press("f5")
        await show.see("2 rows")
        assert show.stage.places == [Place(), Place()]

    run(steps, tmp_path)


def test_a_plan_and_a_plot_of_nothing(tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        await ask(show, "EXPLAIN SELECT series FROM series")
        await show.until(lambda: page(show).is_pane_open)
        await show.see("╭─")
        await ask(show, "SELECT 'a' AS a, 'b' AS b")
        await show.press("f4")
        await show.see("there is nothing to plot", "it takes a column of days or texts")
        await show.press("escape", "escape")
        await show.until(lambda: "nothing to plot" not in show.frame())

    run(steps, tmp_path)


def test_what_was_typed_comes_back_in_the_next_dashboard(tmp_path: Path) -> None:
    async def first(show: Show) -> None:
        await ask(show, "SELECT 1 AS a,\n  2 AS b")
        await show.until(lambda: rows(show) == [(1, 2)])

    async def second(show: Show) -> None:
        await show.press("up")
        assert page(show).query_one(Editor).text == "SELECT 1 AS a,\n  2 AS b"
        await show.press("up", "up")
        assert page(show).query_one(Editor).text == "SELECT 1 AS a,\n  2 AS b"

    run(first, tmp_path)
    (tmp_path / "data").rename(tmp_path / "old")
    (tmp_path / "events").rename(tmp_path / "old events")
    run(second, tmp_path)


def test_an_export_holds_the_result(tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        await ask(show, "SELECT series, [key] AS keys FROM totals ORDER BY 1")
        await show.see("2 rows")
        await show.press("escape", "E")
        await show.until(lambda: list(tmp_path.glob("karma-sql-*.json")))

    run(steps, tmp_path)
    (path,) = tmp_path.glob("karma-sql-*.json")
    assert json.loads(path.read_text()) == [
        {"series": "api_requests", "keys": [42]},
        {"series": "mails", "keys": [7]},
    ]


@pytest.mark.parametrize("module", ["duckdb", "numpy"])
def test_what_is_not_installed_is_said_at_once(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    async def steps(show: Show) -> None:
        await show.see("SQL needs DuckDB and numpy", "next: install the extra: pip install 'karma[sql]'")
        await ask(show, "SELECT 1")
        await show.see("pip install 'karma[sql]'")

    run(steps, tmp_path)


def test_a_dashboard_without_sql_loads_no_duckdb() -> None:
    script = (
        "import sys, karma_tui.app, karmactl.commands.dashboard\n"
        "from karma_tui.screens.sql import SqlPage\n"
        "heavy = {'duckdb', '_duckdb', 'numpy', 'prompt_toolkit', 'karma_sql.session'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_a_recording_is_asked_instead_of_nodes(tmp_path: Path) -> None:
    path = tmp_path / "it's.parquet"
    with Recorder(path) as recorder:
        for answer in history():
            recorder.add(answer)
    target = Target(NODES, "recording", cache_path=tmp_path / "cache", sql_history_path=tmp_path / "history")

    async def go() -> None:
        app = KarmaApp(target, playback=Playback(path), first="sql")
        async with app.run_test(size=(150, 40)) as pilot:
            show = Show(app, pilot, None)  # type: ignore[arg-type]
            await show.see("sql: the recording", "Tab completes", "columns: unix_seconds time node role")
            await show.press("tab", "f5")
            await show.until(lambda: dict(rows(show)).get(FAR) == 2360.0)
            await show.press("f3")
            await show.see("sql: the recording", "karmactl sql --from ")
            await show.press("ctrl+c")
            await show.type("select lag")
            await show.see("lag_entries  lag_ms")

    asyncio.run(go())


# -- Over a real server -----------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "server") as server:
        with server.connect() as connection:
            for key in range(300):
                name = ("api", "mails", "it's")[key % 3]
                connection.ask("counter.increment", series=name, key=key, value=key * 7 + 1, bucket=20260505)
        yield server


def total(server: Server, name: str) -> int:
    with server.connect() as connection:
        keys = range(1000)
        return sum(
            connection.ask("counter.sum", series=name, key=key) for key in keys if key % 3 == ORDER[name]
        )


ORDER = {"api": 0, "mails": 1, "it's": 2}


def test_totals_are_those_that_the_server_answers(server: Server, tmp_path: Path) -> None:
    node = f"127.0.0.1:{server.port}"
    target = Target(
        (node,),
        tick_seconds=0.1,
        options=("--node", node),
        cache_path=tmp_path / "cache",
        sql_history_path=tmp_path / "history",
    )
    expected = {name: total(server, name) for name in ORDER}
    asked = "SELECT series, sum(value) AS used FROM counters GROUP BY 1 ORDER BY 1"

    async def go() -> None:
        app = KarmaApp(target, folder=tmp_path, first="sql")
        async with app.run_test(size=(150, 40)) as pilot:
            show = Show(app, pilot, None)  # type: ignore[arg-type]
            await show.see("● healthy")
            await ask(show, asked)
            await show.see("has no snapshot; --as-of now replays its log", "no rows")
            await show.press("f3", "f5")
            await show.until(lambda: dict(rows(show)) == expected)
            server.ask("snapshot.create_all")
            # A session stays with what it read; read anew, it is what the server answers.
            await show.press("f3", "f3", "f3")
            await show.see("sql: newest snapshots")
            await show.press("f5")
            await show.until(lambda: dict(rows(show)) == expected)
            before = app.fleet.node(node).last
            assert before is not None
            server.ask("counter.increment", series="api", key=0, value=5, bucket=20260506)
            await show.press("f2")
            await show.until(lambda: not page(show)._is_running)
            assert dict(rows(show)) == expected
            await show.press("f3", "f5")
            await show.until(lambda: dict(rows(show)) == expected | {"api": expected["api"] + 5})
            # Polls went on all the while.
            await show.until(lambda: app.fleet.node(node).last.at > before.at + 0.3)  # type: ignore[union-attr]
            # From a file of the list straight into it.
            await show.press("escape", "7")
            await show.see("_mails.tree")
            await show.press("slash")
            await show.type("mails")
            await show.press("enter", "enter")
            await show.see("_mails.tree of 127.0.0.1")
            await show.press("ctrl+c")
            await ask(show, asked)
            await show.until(lambda: dict(rows(show)) == {"mails": expected["mails"]})

    asyncio.run(go())
    # What was fetched is where `karmactl sql` looks for it.
    assert list((tmp_path / "cache" / "snapshots").glob("*/*_mails.tree"))
