"""Epoch histories: where an entry was written, and where two logs part."""

from __future__ import annotations

from typing import Any

import pytest

from karma.core.epochs import MAX_EPOCHS, Epoch, History, diverged_at

A1, B2, C2, C3 = Epoch(1, "a", 1), Epoch(2, "b", 11), Epoch(2, "c", 16), Epoch(3, "c", 21)


def history(*epochs: Epoch) -> History:
    return History(epochs)


def test_an_entry_belongs_to_the_epoch_that_began_last_before_it() -> None:
    found = history(A1, B2, C3)
    assert [found.at(lsn).number for lsn in (0, 1, 10, 11, 20, 21, 10**9)] == [0, 1, 1, 2, 2, 3, 3]
    assert found.current == C3
    assert (History().current.pair, History().at(5).pair) == ((0, ""), (0, ""))


def test_an_epoch_without_entries_takes_the_place_of_one_that_began_where_it_does() -> None:
    # The source had opened epoch 3, but nothing of it arrived before the promotion.
    assert history(A1, B2, C3).opened(4, "d", 20) == history(A1, B2, Epoch(4, "d", 21))
    assert history(A1, B2, C3).opened(4, "d", 21) == history(A1, B2, C3, Epoch(4, "d", 22))
    assert History().opened(1, "a", 0) == history(A1)


def test_the_oldest_epochs_are_forgotten_beyond_the_bound() -> None:
    found = History()
    for number in range(1, MAX_EPOCHS + 11):
        found = found.opened(number, "a", number)
    assert [found.epochs[0].number, len(found.epochs)] == [11, MAX_EPOCHS]
    long = [{"epoch": number, "node_id": "a", "start_lsn": number} for number in range(1, MAX_EPOCHS + 3)]
    assert History.from_json(long).epochs[0].number == 3
    # One remembers more than the other: nothing contradicts the rest.
    whole = History(tuple(Epoch(number, "a", number + 1) for number in range(1, MAX_EPOCHS + 11)))
    assert diverged_at(whole, found, 10**6) is diverged_at(found, whole, 10**6) is None


def test_a_history_reads_back_as_it_was_written() -> None:
    assert History.from_json(history(A1, B2, C3).to_json()) == history(A1, B2, C3)
    assert History.from_json([]) == History()


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(None, id="nothing"),
        pytest.param({}, id="an object"),
        pytest.param([1], id="a number for an epoch"),
        pytest.param([{"epoch": 1, "node_id": "a"}], id="no start"),
        pytest.param([{"epoch": True, "node_id": "a", "start_lsn": 1}], id="a truth for a number"),
        pytest.param([{"epoch": 1.0, "node_id": "a", "start_lsn": 1}], id="a fraction"),
        pytest.param([{"epoch": 1, "node_id": None, "start_lsn": 1}], id="opened by nobody"),
        pytest.param(history(B2, A1).to_json(), id="numbers fall"),
        pytest.param(history(B2, C2).to_json(), id="a number twice"),
        pytest.param(history(C2, Epoch(3, "b", 11)).to_json(), id="starts fall"),
    ],
)
def test_what_is_no_history_is_refused(found: Any) -> None:
    with pytest.raises(ValueError, match="epoch"):
        History.from_json(found)


@pytest.mark.parametrize(
    ("mine", "theirs", "last_lsn", "lsn"),
    [
        pytest.param((A1,), (A1,), 99, None, id="the same"),
        pytest.param((A1,), (A1, B2), 10, None, id="the beginning of theirs"),
        pytest.param((A1,), (A1, B2), 11, 11, id="one entry too many"),
        pytest.param((A1,), (A1, B2), 15, 11, id="an old master that wrote on"),
        pytest.param((A1, B2), (A1,), 10, None, id="an epoch of which I have nothing"),
        pytest.param((A1, B2), (A1,), 15, 11, id="an epoch they do not know"),
        pytest.param((A1, B2), (A1, C2), 10, None, id="two promotions, nothing written by mine"),
        pytest.param((A1, B2), (A1, C2), 12, 11, id="two promotions, mine at a lower LSN"),
        pytest.param((A1, C2), (A1, B2), 15, 11, id="two promotions, mine at a higher LSN"),
        pytest.param((A1, C2), (A1, B2), 16, 11, id="the same with an entry of its own"),
        pytest.param((A1, C3), (A1, B2, C3), 30, 11, id="they had one in between"),
        pytest.param((A1, B2), (A1, Epoch(2, "b", 12)), 11, 11, id="the same epoch elsewhere"),
        pytest.param((), (), 50, None, id="both from before epochs"),
        pytest.param((), (Epoch(1, "a", 51),), 50, None, id="theirs was upgraded behind my end"),
        pytest.param((), (A1,), 50, 1, id="theirs was never Karma 1.0's"),
        pytest.param((A1,), (), 50, 1, id="theirs has no epochs"),
        pytest.param((A1,), (Epoch(1, "x", 1),), 50, 1, id="strangers"),
        pytest.param((A1,), (), 0, None, id="nothing at all here"),
    ],
)
def test_the_first_entry_that_differs_is_found(
    mine: tuple[Epoch, ...], theirs: tuple[Epoch, ...], last_lsn: int, lsn: int | None
) -> None:
    assert diverged_at(History(mine), History(theirs), last_lsn) == lsn
