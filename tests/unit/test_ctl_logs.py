"""Logs of several places, merged; filters and times."""

import pytest

from karma_client.logs import LATE_SECONDS, Filter, Logged, Merger, Page, described, in_turn
from karmactl.diagnostics import CtlError
from karmactl.moments import moment_ms


def entry(lsn: int, value: int = 1, **more: int | str | None) -> Logged:
    return Logged(
        lsn,
        {"v": 2, "op": "counter.increment", "series": "api", "key": lsn, "value": value},
        **more,  # type: ignore[arg-type]
    )


def page(*entries: Logged, reached: int | None = None) -> Page:
    return Page(entries, entries[-1].lsn if reached is None else reached)


def merged(**places: list[Page]) -> list[tuple[int, tuple[str, ...], str]]:
    pages = {name: iter(said) for name, said in places.items()}
    errors: dict[str, Exception] = {}
    found = [(one.logged.lsn, one.places, one.note) for one in in_turn(pages, Merger(), errors.__setitem__)]
    assert errors == {}
    return found


def test_equal_entries_are_one_row_that_names_its_nodes() -> None:
    a = [page(entry(1), entry(2)), page(entry(3))]
    b = [page(entry(1)), page(entry(2), entry(3))]
    assert merged(a=a, b=b) == [(1, ("a", "b"), ""), (2, ("a", "b"), ""), (3, ("a", "b"), "")]


def test_entries_that_differ_are_two_rows() -> None:
    found = merged(a=[page(entry(1), entry(2, 5))], b=[page(entry(1), entry(2, 6))])
    assert found == [(1, ("a", "b"), ""), (2, ("a",), "differs"), (2, ("b",), "differs")]


@pytest.mark.parametrize("name", ["crc", "ts_ms"])
def test_entries_that_read_alike_differ_by_their_checksum_or_time(name: str) -> None:
    found = merged(a=[page(entry(1, **{name: 1}))], b=[page(entry(1, **{name: 2}))])
    assert [note for _, _, note in found] == ["differs", "differs"]
    assert len(merged(a=[page(entry(1, **{name: 1}))], b=[page(entry(1))])) == 1


def test_an_older_epoch_comes_first() -> None:
    found = merged(a=[page(entry(1, 5, epoch=4))], b=[page(entry(1, 6, epoch=3))])
    assert [places for _, places, _ in found] == [("b",), ("a",)]


def test_gaps_are_noted_and_what_a_node_has_no_more_or_not_yet_is_none() -> None:
    found = merged(a=[page(entry(1), entry(2), entry(5), entry(6))], b=[page(entry(2), entry(6))])
    assert found == [
        (1, ("a",), ""),
        (2, ("a", "b"), ""),
        (5, ("a",), "gap: 3 to 4; missing on b"),
        (6, ("a", "b"), ""),
    ]
    assert merged(a=[page(entry(1), entry(2))], b=[page(entry(1))])[1] == (2, ("a",), "")


def test_live_entries_wait_for_the_slower_node_until_they_must_not() -> None:
    merger = Merger()
    merger.expect("a")
    merger.expect("b")
    merger.add("a", page(entry(1), entry(2, 5)))
    merger.add("b", page(entry(1)))
    assert [one.logged.lsn for one in merger.due(10.0)] == [1]
    assert list(merger.due(10.0 + LATE_SECONDS / 2)) == []
    assert [(one.places, one.note) for one in merger.due(10.0 + LATE_SECONDS)] == [(("a",), "")]
    # A copy that comes late is no news; another entry under the same LSN is.
    merger.add("b", page(entry(2, 5)))
    assert list(merger.ready()) == []
    merger.add("b", page(entry(2, 6), reached=2))
    assert [(one.places, one.note) for one in merger.ready()] == [(("b",), "differs")]
    assert merger.is_odd


def test_a_place_that_fails_holds_nobody_up() -> None:
    def broken() -> object:
        yield page(entry(1))
        raise OSError("gone")

    errors: dict[str, Exception] = {}
    pages = {"a": iter([page(entry(1), entry(2))]), "b": broken()}
    found = list(in_turn(pages, Merger(), errors.__setitem__))  # type: ignore[arg-type]
    assert [one.logged.lsn for one in found] == [1, 2]
    assert list(errors) == ["b"]


BATCH = Logged(
    7, {"op": "series.batch_add", "series": "api", "items": [[1, 20260505, 2], [2, 20260505, 3]]}, 5000
)
KEYS = Logged(8, {"op": "counter.batch_reset", "series": "api", "keys": [4, 5]})


@pytest.mark.parametrize(
    ("wanted", "batch", "keys"),
    [
        (Filter(), True, True),
        (Filter(series=("api", "x")), True, True),
        (Filter(series=("x",)), False, False),
        (Filter(ops=("series.*",)), True, False),
        (Filter(ops=("counter.batch_reset",)), False, True),
        (Filter(keys=frozenset({2})), True, False),
        (Filter(keys=frozenset({5, 9})), False, True),
        (Filter(from_lsn=8), False, True),
        (Filter(to_lsn=7), True, False),
        (Filter(since_ms=5000), True, False),
        (Filter(since_ms=5001), False, False),
        (Filter(until_ms=5000), True, False),
        (Filter(until_ms=4999), False, False),
    ],
)
def test_filters(wanted: Filter, batch: bool, keys: bool) -> None:
    assert (wanted.takes(BATCH), wanted.takes(KEYS)) == (batch, keys)


def test_an_entry_in_a_line() -> None:
    assert described(BATCH.entry) == "items=2 sum=5"
    assert described(KEYS.entry) == "keys=2"
    deletion = {"op": "x", "key": 3, "range": {"from": 20260501, "to": 20260505}, "fingerprint": "f"}
    assert described(deletion) == "key=3 range=2026-05-01..2026-05-05"


@pytest.mark.parametrize(
    ("text", "unix"),
    [
        ("10m", 1_000_000_000 - 600),
        ("1970-01-02", 86400),
        ("1970-01-01T01:00:00+01:00", 0),
        ("100000000", 1e8),
    ],
)
def test_times(text: str, unix: float) -> None:
    assert moment_ms(text, 1_000_000_000) == unix * 1000
    assert moment_ms(None, 0) is None


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(CtlError, match="is no time"):
        moment_ms("yesterday", 0)
