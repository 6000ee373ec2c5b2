"""SQL in the dashboard without a screen: places, results as tables, what was typed before, proposals."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from prompt_toolkit.history import FileHistory

from karma_sql.completion import is_open, proposals
from karma_tui import queries, spelling, statements
from karma_tui.statements import History, Outcome, Place, table_of
from karma_tui.tables import to_csv, to_json
from karma_tui.target import Target

RECORDING = Place(recording=Path("/tmp/it's.parquet"))


@pytest.mark.parametrize(
    ("place", "words", "told"),
    [
        (Place(), (), "newest snapshots"),
        (Place(is_now=True), ("--as-of", "now"), "snapshots and log up to now"),
        (Place("db1:8080"), ("--from", "node:db1:8080"), "newest snapshots of db1:8080"),
        (
            Place("db1:8080", "1_a.tree"),
            ("--from", "node:db1:8080", "--at", "1_a.tree"),
            "1_a.tree of db1:8080",
        ),
        (RECORDING, ("--from", "/tmp/it's.parquet"), "the recording"),
    ],
)
def test_a_place_is_what_karmactl_sql_is_told(place: Place, words: tuple[str, ...], told: str) -> None:
    assert place.words() == words
    assert place.describe() == told


def test_commands_have_the_statement_and_the_plot() -> None:
    assert statements.command(Place(), "", is_plot=True) == ("sql",)
    found = statements.command(Place(is_now=True), "FROM wal", is_plot=True)
    assert found == ("sql", "--as-of", "now", "--plot", "FROM wal")
    assert "'/tmp/it''s.parquet'" in RECORDING.example()


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("FROM wal", "'FROM wal'"),
        ("FROM by_day('api')", "\"FROM by_day('api')\""),
        ("SELECT '$HOME'", "'SELECT '\"'\"'$HOME'\"'\"''"),
        ("SELECT 'a' AS \"b\"", "'SELECT '\"'\"'a'\"'\"' AS \"b\"'"),
    ],
)
def test_commands_can_be_pasted_into_a_shell(statement: str, shown: str) -> None:
    assert Target(("db1:8080",)).command("sql", statement) == f"karmactl sql {shown}"


def test_results_become_tables() -> None:
    outcome = Outcome(
        (
            ("day", "DATE"),
            ("used", "HUGEINT"),
            ("share", "DOUBLE"),
            ("ok", "BOOLEAN"),
            ("items", "UBIGINT[]"),
        ),
        [
            (date(2026, 5, 5), 2**70, 0.5, True, [1, 2]),
            (None, Decimal(7), float("inf"), False, None),
        ],
    )
    table = table_of(outcome)
    assert [column.kind for column in table.columns] == ["datum", "figure", "figure", "datum", "datum"]
    assert [row.cells for row in table.rows] == [
        ("2026-05-05", 2**70, 0.5, True, [1, 2]),
        (None, 7, "inf", False, None),
    ]
    spelt = [
        [spelling.spelt(value, column.kind) for value, column in zip(row.cells, table.columns, strict=True)]
        for row in table.rows
    ]
    assert spelt == [
        ["2026-05-05", str(2**70), "0.5", "yes", "[1, 2]"],
        ["-", "7", "inf", "no", "-"],
    ]
    assert to_csv(table).splitlines()[1] == f'2026-05-05,{2**70},0.5,true,"[1, 2]"'
    assert '"items": [\n   1,' in to_json(table)


@pytest.mark.parametrize(
    ("outcome", "note"),
    [
        (Outcome((("a", "VARCHAR"),)), "no rows"),
        (Outcome(), "done"),
        (Outcome(problem="cancelled"), ""),
        (Outcome(plan="SCAN"), ""),
    ],
)
def test_what_stands_in_for_rows(outcome: Outcome, note: str) -> None:
    assert table_of(outcome).note == note


def test_history_goes_back_and_comes_back_to_what_was_being_typed() -> None:
    history = History(["one", "two"])
    assert history.move(1, "draft") is None
    assert history.move(-1, "draft") == "two"
    assert history.move(-1, "two, changed") == "one"
    assert history.move(-1, "one") is None
    assert [history.move(1, "one"), history.move(1, "two")] == ["two", "draft"]
    assert history.add("three")
    assert not history.add("three")
    assert history.move(-1, "") == "three"


ENTRIES = ["FROM wal;", "SELECT 1,\n\n  2 -- two\n;", "+odd", "# odd\n# 2", "ü"]


def test_the_shell_and_the_dashboard_read_each_other_s_history(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "state" / "ours", tmp_path / "theirs"
    shell = FileHistory(str(theirs))
    for entry in ENTRIES:
        queries.append_history(ours, entry, 1_777_982_400.0)
        shell.store_string(entry)
    assert queries.read_history(ours) == queries.read_history(theirs) == ENTRIES
    assert list(FileHistory(str(ours)).load_history_strings()) == ENTRIES[::-1]
    assert ours.stat().st_mode & 0o077 == 0
    assert queries.read_history(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("text", "goes_on"),
    [
        ("SELECT 1", True),
        ("SELECT 1;", False),
        ("SELECT 1; ", False),
        ("SELECT ';", True),
        ("SELECT ';';", False),
        ("SELECT 1; -- it's", False),
        ("SELECT 1; /* more", True),
    ],
)
def test_a_statement_ends_with_a_semicolon(text: str, goes_on: bool) -> None:
    assert is_open(text) is goes_on


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SELECT * FROM cou", [("counters", 3), ("count", 3)]),
        ("from ing", [("ingest_streams", 3)]),
        ("SELECT 1\nGRO", [("growth", 3), ("GROUP", 3)]),
        ("FROM by_day('m", [("mails'", 1), ("my ''own'''", 1)]),
        ("FROM by_day('mails') WHERE ke", [("key", 2), ("keys", 2)]),
        ("SELECT ", []),
        ("", []),
    ],
)
def test_what_may_stand_at_the_cursor(text: str, found: list[tuple[str, int]]) -> None:
    names = ("counters", "growth", "ingest_streams")
    offered = list(proposals(text, lambda: names, lambda: ["api", "mails", "my 'own'"]))
    assert offered == found
