"""Tables that fit, text that cannot steer a terminal, values as they are spelt."""

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karmactl import output
from karmactl.diagnostics import CtlError
from karmactl.output import Output, Paper, Shown
from karmactl.table.entries import TEXT, columns, listing, thing

ROWS = [
    {"name": "a", "value": 1, "state": "ok"},
    {"name": "größer und länger", "value": 22, "state": "paused"},
]
SHAPE = listing("name", "value:number", "state:state")


def shown(
    data: Any, form: str = "table", width: int | None = None, fields: tuple[str, ...] = (), shape: Any = SHAPE
) -> str:
    stream = io.StringIO()
    Output(stream, form, fields, Paper(width, False)).show(data, shape)
    return stream.getvalue()


def test_a_table_is_aligned_and_numbers_are_to_the_right() -> None:
    assert shown(ROWS).splitlines() == [
        "name               value  state",
        "a                      1  ok",
        "größer und länger     22  paused",
    ]


def test_text_gives_way_before_numbers_and_states() -> None:
    assert shown(ROWS, width=25).splitlines() == [
        "name        value  state",
        "a               1  ok",
        "größer un…     22  paused",
    ]


def test_what_cannot_fit_is_shown_a_field_a_line() -> None:
    assert shown(ROWS[1:], width=20).splitlines() == [
        "name   größer und lä",
        "       nger",
        "value  22",
        "state  paused",
    ]


@given(st.lists(st.dictionaries(st.just("name"), st.text(), min_size=1)), st.integers(20, 200))
def test_no_line_is_wider_than_the_terminal_nor_holds_a_control_character(
    rows: list[dict[str, str]], width: int
) -> None:
    text = shown(rows, width=width, shape=listing("name"))
    for line in text.split("\n"):
        assert output.width_of(line) <= width
        assert line.isprintable()


@given(st.lists(st.fixed_dictionaries({"name": st.text(), "value": st.integers()})))
def test_csv_and_json_lines_can_be_read_back(rows: list[dict[str, Any]]) -> None:
    shape = listing("name", "value:number")
    read = list(csv.reader(io.StringIO(shown(rows, "csv", shape=shape), newline="")))
    assert read[1:] == [[row["name"], str(row["value"])] for row in rows]
    lines = shown(rows, "jsonl", shape=shape).split("\n")[:-1]
    assert [json.loads(line) for line in lines] == rows
    assert json.loads(shown(rows, "json", shape=shape)) == rows


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_a_long_list_is_streamed(form: str) -> None:
    pipe = io.BytesIO()
    stream = io.TextIOWrapper(pipe, encoding="utf-8")

    def rows() -> Any:
        yield {"name": "first"}
        if form == "json":
            # An array is no use before its end, but must not pile up either.
            stream.flush()
        assert b"first" in pipe.getvalue()
        yield {"name": "second"}

    Output(stream, form, (), Paper(None, False)).show(rows(), listing("name"))


def test_chosen_fields_come_in_the_order_asked_for() -> None:
    assert shown(ROWS[:1], "csv", fields=("value", "name")) == "value,name\n1,a\n"
    assert json.loads(shown(ROWS[0], "json", fields=("state",))) == {"state": "ok"}
    assert shown(ROWS[:1], fields=("value",)) == "value\n    1\n"


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
@pytest.mark.parametrize("data", [ROWS, ROWS[0]])
def test_an_unknown_field_is_refused_with_a_proposal(form: str, data: Any) -> None:
    with pytest.raises(CtlError, match='no field "valeu"') as caught:
        shown(data, form, fields=("valeu",))
    assert "did you mean value?" in caught.value.advice


def test_objects_in_objects_are_flat_in_tables_and_csv() -> None:
    data = {"latency": {"p50_us": 5}, "nodes": [1, 2]}
    assert shown(data, shape=thing()) == "latency.p50_us  5 µs\nnodes           [1, 2]\n"
    assert shown(data, "csv", shape=thing()) == 'latency.p50_us,nodes\n5,"[1, 2]"\n'


def test_a_text_of_its_own_is_for_tables_only() -> None:
    data = Shown({"value": 17}, lambda _: ["17"])
    assert shown(data, shape=thing()) == "17\n"
    assert json.loads(shown(data, "json", shape=thing())) == {"value": 17}
    assert shown(data, fields=("value",), shape=thing()) == "value  17\n"
    assert shown("text", "json", shape=TEXT) == "text\n"


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, "number", "-"),
        (True, "text", "yes"),
        (2**64 - 1, "number", "18446744073709551615"),
        (0, "bytes", "0 B"),
        (1536, "bytes", "1.5 KiB"),
        (2**50, "bytes", "1024.0 TiB"),
        (59.94, "seconds", "59.9 s"),
        (200, "seconds", "3 m 20 s"),
        (3 * 3600 + 60, "seconds", "3 h 1 m"),
        (90_000, "seconds", "1 d 1 h"),
        (0, "time", "-"),
        (1777925811, "time", "2026-05-04 20:16:51Z"),
        (1.5, "ms", "1.5 ms"),
        (0.1239, "number", "0.124"),
        ([1], "text", "[1]"),
        ("a\x1b[2Jb\n", "text", "a\\x1b[2Jb\\n"),
    ],
)
def test_values_are_spelt(value: Any, kind: str, text: str) -> None:
    assert output.spelt(value, kind) == text


def test_wide_and_combining_characters_take_their_room() -> None:
    assert output.width_of("漢字") == 4
    assert output.width_of("e\u0301") == 1
    assert output.shortened("漢字漢字", 5) == "漢字…"


def test_columns_are_read() -> None:
    assert [tuple(column) for column in columns("a", "b:number")] == [("a", "text"), ("b", "number")]
