"""Tables as values, spelling, charts: what screens are made of, without a screen."""

import json

import pytest

from karma_tui import charts, spelling
from karma_tui.charts import Line
from karma_tui.tables import Column, Order, Row, Table, arranged, fitted, to_csv, to_json

TABLE = Table(
    (
        Column("name", "NAME", rank=0),
        Column("size", "SIZE", "number", rank=1),
        Column("note", "NOTE", rank=2),
    ),
    (
        Row("a", ("alpha", 1500, None)),
        Row("b", ("Beta", 20, "late")),
        Row("c", ("gamma", None, "x" * 40)),
    ),
)


def keys(table: Table) -> list[str]:
    return [row.key for row in table.rows]


@pytest.mark.parametrize(
    ("order", "wanted", "found"),
    [
        (Order(), "", ["a", "b", "c"]),
        (Order("size"), "", ["b", "a", "c"]),
        (Order("size", is_descending=True), "", ["a", "b", "c"]),
        (Order("name"), "", ["a", "b", "c"]),
        (Order("name", is_descending=True), "", ["c", "b", "a"]),
        (Order("note"), "", ["b", "c", "a"]),
        (Order(), "BETA", ["b"]),
        (Order(), "a", ["a", "b", "c"]),
        (Order(), "a late", ["b"]),
        (Order(), "1500", ["a"]),
        (Order(), "1,500", ["a"]),
        (Order(), "nothing", []),
    ],
)
def test_rows_are_sorted_and_filtered(order: Order, wanted: str, found: list[str]) -> None:
    assert keys(arranged(TABLE, order, wanted)) == found


@pytest.mark.parametrize(
    ("width", "names"),
    [(200, ["name", "size", "note"]), (30, ["name", "size"]), (8, ["name"]), (3, ["name"])],
)
def test_columns_that_do_not_fit_are_left_out_by_rank(width: int, names: list[str]) -> None:
    found = fitted(TABLE, width)
    assert [TABLE.columns[at].name for at, _ in found] == names
    assert sum(width for _, width in found) + 2 * (len(found) - 1) <= width


def test_a_column_that_may_be_cut_makes_room_and_takes_what_is_left() -> None:
    table = TABLE._replace(columns=(*TABLE.columns[:2], Column("note", "NOTE", rank=2, least=8)))
    assert fitted(table, 21) == [(0, 5), (1, 5)]
    assert fitted(table, 30) == [(0, 5), (1, 5), (2, 16)]
    assert fitted(table, 200) == [(0, 5), (1, 5), (2, 40)]


def test_exports_hold_raw_values_of_all_rows() -> None:
    assert to_csv(TABLE).splitlines() == [
        "name,size,note",
        "alpha,1500,",
        "Beta,20,late",
        f"gamma,,{'x' * 40}",
    ]
    assert json.loads(to_json(TABLE))[0] == {"name": "alpha", "size": 1500, "note": None}


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, "number", "-"),
        ("", "text", "-"),
        (0, "number", "0"),
        (1234567, "number", "1,234,567"),
        (999, "count", "999"),
        (16.44, "count", "16.4"),
        (99_999, "count", "99999"),
        (123_456, "count", "123k"),
        (1_234_567, "count", "1.23M"),
        (12_345_678, "count", "12.3M"),
        (5e9, "count", "5.00G"),
        (2**64, "count", "18446744T"),
        (512, "bytes", "512B"),
        (1536, "bytes", "1.5K"),
        (412 << 20, "bytes", "412M"),
        (3 << 40, "bytes", "3.0T"),
        (0, "ms", "0"),
        (15, "ms", "15ms"),
        (4200, "ms", "4.2s"),
        (200_000, "ms", "3m20s"),
        (80, "us", "80µs"),
        (1250, "us", "1.2ms"),
        (20_000, "us", "20ms"),
        (2_100_000, "us", "2.1s"),
        (-3.0, "age", "0.0s"),
        (42, "age", "42s"),
        (18_180, "age", "5h03m"),
        (187_200, "age", "2d4h"),
        (71.4, "percent", "71%"),
        (1_777_982_400, "time", "2026-05-05 12:00:00"),
        (0, "time", "-"),
        ("a\x1b[2Jb\u202e", "text", "a?[2Jb?"),
    ],
)
def test_values_are_spelt_in_few_letters(value: object, kind: str, text: str) -> None:
    assert spelling.spelt(value, kind) == text


def test_sparklines_show_the_newest_at_the_right_and_gaps_blank() -> None:
    assert charts.sparkline([0, 7, None, 14], 6) == "  ▁▅ █"
    assert charts.sparkline(range(100), 4) == "████"
    assert charts.sparkline([0, 0], 3) == " ▁▁"
    assert charts.sparkline([], 3) == "   "
    assert charts.sparkline([5], 1, top=10) == "▅"


def test_bars_are_scaled_to_the_largest_and_nothing_is_no_bar() -> None:
    assert charts.bars([0, 4, 8], 2) == ["  █", " ██"]
    assert charts.bars([1, 1000], 1) == ["▁█"]
    assert charts.bars([], 2) == ["", ""]


def test_many_days_become_sums_side_by_side() -> None:
    assert charts.spread([1, 2, 3, 4, None, None], 3) == [3, 7, None]
    assert charts.spread([1, 2], 3) == [1, 2]
    lines = charts.days_chart([(f"day{at}", 1.0) for at in range(100)], 30, 6, str)
    assert all(len(line) <= 30 for line in lines)
    assert len(lines) == 6
    assert lines[-1].split() == ["day0", "4", "days", "a", "bar", "day99"]
    assert charts.days_chart([], 30, 6, str) == ["nothing in these days"]


@pytest.mark.parametrize(("width", "height"), [(80, 10), (20, 3), (5, 1), (200, 40)])
def test_graphs_keep_to_their_room(width: int, height: int) -> None:
    lines = [Line("one", (0.0, 5.0, None, 10.0)), Line("two", tuple(map(float, range(500))))]
    rows = charts.graph(lines, width, height, spelling.count)
    texts = ["".join(piece.text for piece in row) for row in rows]
    assert len(texts) == max(2, height)
    assert all(len(text) <= max(width, 6) for text in texts)


def test_a_line_rises_from_the_left_bottom_to_the_right_top() -> None:
    rows = charts.braille([Line("x", (0.0, 1.0, 2.0, 3.0))], 2, 1, top=3.0)
    assert [piece.text for piece in rows[0]] == ["⡠⠊"]
    # A gap is a gap, and a jump is one stroke.
    assert charts.braille([Line("x", (0.0, None))], 1, 1, top=3.0)[0][0].text == "⡀"
    assert charts.braille([Line("x", (0.0, 3.0))], 1, 1, top=3.0)[0][0].text == "⡸"


def test_lines_that_meet_have_the_colour_of_the_last() -> None:
    rows = charts.braille([Line("a", (1.0, 1.0)), Line("b", (1.0, 1.0))], 1, 1, top=1.0)
    assert [piece.line for piece in rows[0]] == [1]
