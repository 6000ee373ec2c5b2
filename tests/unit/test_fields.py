"""The fields of a request, one function at a time."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma.errors import RequestError
from karma.protocol import fields

U64_MAX = 2**64 - 1


def is_refused(check: Any, *arguments: Any, **options: Any) -> str:
    """Return the message of a check that must refuse."""
    with pytest.raises(RequestError) as refused:
        check(*arguments, **options)
    assert refused.value.code == "validation_error"
    return refused.value.message


@given(st.integers(-5, 10**9))
def test_a_day_is_real_when_the_calendar_has_it_and_its_year_has_four_digits(value: int) -> None:
    try:
        date(value // 10_000, value // 100 % 100, value % 100)
        expected = value >= 10_000_000
    except ValueError:
        expected = False
    # Twice: the second answer comes from the cache.
    assert fields.is_day(value) is fields.is_day(value) is expected


@given(st.dates(date(1000, 1, 1)))
def test_the_three_spellings_of_a_day_are_one(day: date) -> None:
    number = day.year * 10_000 + day.month * 100 + day.day
    for spelling in (number, day.isoformat(), f"{number:08d}"):
        assert fields.check_bucket(spelling) == number
    first, last = fields.month_of(number)
    assert first <= number <= last
    assert first // 100 == last // 100 == number // 100


@pytest.mark.parametrize("value", [0, 1, 2**63, U64_MAX])
def test_every_u64_passes_as_it_is(value: int) -> None:
    assert fields.u64({"n": value}, "n") == value


@pytest.mark.parametrize("value", [-1, 1.0, 1.5, float(2**64), -(2.0**70), True, False, "1", [], {}, [1]])
def test_all_else_is_no_u64_and_the_message_names_the_field(value: Any) -> None:
    assert "Field n " in is_refused(fields.u64, {"n": value}, "n")


def test_a_missing_or_null_field_takes_its_default_or_is_required() -> None:
    for request in ({}, {"n": None}):
        assert fields.u64(request, "n", 7) == 7
        assert fields.text(request, "n", 5, "x") == "x"
        assert fields.text_of(request, "n", 5) is None
        assert fields.optional_range(request, "n") is None
        for check in (fields.u64, fields.keys, fields.objects):
            assert "required" in is_refused(check, request, *([] if check is fields.keys else ["n"]))


@pytest.mark.parametrize(
    ("text", "is_taken"), [("a", True), ("é" * 5, True), ("é" * 6, False), ("", False), ("a" * 11, False)]
)
def test_a_text_is_measured_in_bytes(text: str, is_taken: bool) -> None:
    if is_taken:
        assert fields.text({"n": text}, "n", 10) == text
    else:
        assert "10 bytes" in is_refused(fields.text, {"n": text}, "n", 10)


def test_tree_wins_over_series_and_date_over_bucket() -> None:
    assert fields.series({"tree": "t", "series": "s"}) == "t"
    assert fields.series({"tree": None, "series": "s"}) == "s"
    assert fields.bucket({"date": 20260101, "bucket": 20260102}, 20260103) == 20260101
    assert fields.bucket({"bucket": 20260102}, 20260103) == 20260102
    assert fields.bucket({}, 20260103) == 20260103


@pytest.mark.parametrize(
    ("first", "last", "is_taken"),
    [
        (20260101, 20260101, True),
        (20250101, 20260101, True),
        (20240101, 20250101, True),
        (20240101, 20250102, False),
        (20260102, 20260101, False),
        (20260101, 20260132, False),
        ("20260101", 20260101, False),
        (20260101, None, False),
    ],
)
def test_a_range_is_two_real_days_in_order_at_most_366_days_apart(
    first: Any, last: Any, is_taken: bool
) -> None:
    request = {"range": {"from": first, "to": last}}
    if is_taken:
        assert fields.day_range(request) == (first, last)
    else:
        is_refused(fields.day_range, request)


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(-1, 3), st.just(U64_MAX), st.just("1"), st.just(1.0)),
            st.sampled_from([20260505, "2026-05-05", 20260230, "x", None, True]),
            st.one_of(st.integers(-1, 2), st.just(1.5), st.none()),
        ).map(list),
        max_size=4,
    ),
    st.booleans(),
)
def test_items_are_taken_only_when_each_is_right(found: list[list[Any]], allow_zero: bool) -> None:
    are_right = all(
        type(key) is int
        and key >= 0
        and day in (20260505, "2026-05-05")
        and type(value) is int
        and value >= (0 if allow_zero else 1)
        for key, day, value in found
    )
    expected = [[key, 20260505, value] for key, _, value in found]
    if are_right:
        assert fields.items({"items": found}, allow_zero=allow_zero) == expected
    else:
        is_refused(fields.items, {"items": found}, allow_zero=allow_zero)


@pytest.mark.parametrize(
    "item", [[], [1], [1, 20260505], [1, 20260505, 1, 1], "abc", {"a": 1, "b": 2, "c": 3}, 7, None]
)
def test_an_item_is_an_array_of_three(item: Any) -> None:
    assert "[key, bucket, value]" in is_refused(
        fields.items, {"items": [[1, 20260505, 1], item]}, allow_zero=True
    )


def test_arrays_have_at_most_ten_thousand_elements() -> None:
    assert len(fields.keys({"keys": [1] * 10_000})) == 10_000
    assert "10000" in is_refused(fields.keys, {"keys": [1] * 10_001})
    is_refused(fields.items, {"items": [[1, 20260505, 1]] * 10_001}, allow_zero=True)
    is_refused(fields.objects, {"items": [{}] * 10_001}, "items")


@pytest.mark.parametrize(
    "name", ["1_a.tree", "1_a b.tree", "1_é.tree", "1_a%2Fb.tree", "1_...tree", "1_a\\b.tree"]
)
def test_a_file_name_is_a_basename(name: str) -> None:
    assert fields.file_name({"file": name}) == name


@pytest.mark.parametrize(
    "name",
    ["../1_a.tree", "a/b.tree", "a\\b.tree", "a\0.tree", "..", "1_a.json", ".tree/", "x" * 255 + ".tree"],
)
def test_a_path_is_no_file_name(name: str) -> None:
    assert "file" in is_refused(fields.file_name, {"file": name})


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (5, "a number"),
        (5.5, "a number with a fraction"),
        (None, "null"),
        (True, "a boolean"),
        ([], "an array"),
        ({}, "an object"),
    ],
)
def test_a_message_says_what_kind_of_value_came(value: Any, kind: str) -> None:
    check, wrong = (fields.check_day, value) if value is None else (fields.series, {"series": value})
    assert is_refused(check, wrong, *(["bucket"] if value is None else [])).endswith(f"not {kind}")
