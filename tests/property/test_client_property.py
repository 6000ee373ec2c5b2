"""The client against anything: replies cut anywhere, chunks of any items, windows of any requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_client.calls import Exchange, Pending, number, read, take_reply
from karma_client.core import WINDOW_BYTES, WINDOW_REQUESTS, _windows
from karma_client.days import day_number, to_date
from karma_client.errors import InvalidArgumentError, KarmaError, ProtocolError
from karma_client.network import run
from karma_client.nodes import Node
from karma_client.operations.transfers import MAX_CHUNK_ITEMS, _chunk, split

U64_MAX = 2**64 - 1
U64 = st.integers(0, U64_MAX)
Triple = tuple[int, int, int]


@given(st.lists(U64, min_size=1, max_size=30), st.booleans(), st.data())
def test_replies_survive_any_cut(values: list[int], is_crlf: bool, data: st.DataObject) -> None:
    end = "\r\n" if is_crlf else "\n"
    stream = "".join(f'{{"success":true,"response":{value}}}{end}' for value in values).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    exchange = Exchange([b"x\n"] * len(values))
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        assert exchange.is_complete is (start == len(stream))
        exchange.feed(stream[start:stop])
    assert exchange.is_complete
    assert exchange.is_clean
    pendings = [Pending(read("counter.sum", number)) for _ in values]
    for pending, line in zip(pendings, exchange.lines, strict=True):
        assert take_reply(pending, line, "a:1") is None
    assert [pending.result() for pending in pendings] == values


@given(st.binary(max_size=200))
def test_any_line_is_a_reply_or_a_protocol_error(line: bytes) -> None:
    pending = Pending(read("counter.sum", number))
    try:
        error = take_reply(pending, line, "a:1")
    except ProtocolError:
        assert not pending.is_done
    else:
        assert pending.is_done or error is not None


@given(st.binary(min_size=1))
def test_more_than_was_asked_for_is_not_clean(extra: bytes) -> None:
    exchange = Exchange([b"x\n"])
    exchange.feed(b'{"success":true,"response":1}\n' + extra)
    assert exchange.is_complete
    assert not exchange.is_clean


async def gathered(chunks: AsyncIterator[list[Triple]]) -> list[list[Triple]]:
    return [chunk async for chunk in chunks]


ITEMS = st.lists(st.tuples(U64, st.dates(date(1000, 1, 1)).map(day_number), U64), max_size=300)


@given(ITEMS, st.integers(60, 2000))
def test_chunks_hold_every_item_in_order_and_fit(items: list[Triple], budget_bytes: int) -> None:
    chunks = run(gathered(split(items, budget_bytes)))
    assert [item for chunk in chunks for item in chunk] == items
    empty = len(_chunk("stream", "series", 1, []).line(None))
    for chunk in chunks:
        assert 0 < len(chunk) <= MAX_CHUNK_ITEMS
        assert sum(item[2] for item in chunk) <= U64_MAX
        assert len(_chunk("stream", "series", 1, chunk).line(None)) - empty <= budget_bytes
    for chunk, following in pairwise(chunks):
        longer = [*chunk, following[0]]
        size_bytes = len(_chunk("stream", "series", 1, longer).line(None)) - empty
        assert size_bytes > budget_bytes - 1 or sum(item[2] for item in longer) > U64_MAX


@given(ITEMS.filter(bool), st.integers(60, 500))
def test_a_resumed_import_cuts_the_same_chunks(items: list[Triple], budget_bytes: int) -> None:
    async def slowly() -> AsyncIterator[Triple]:
        for item in items:
            yield item

    assert run(gathered(split(slowly(), budget_bytes))) == run(gathered(split(items, budget_bytes)))


@given(st.integers(-100, 17))
def test_an_item_larger_than_a_chunk_is_refused(budget_bytes: int) -> None:
    with pytest.raises(InvalidArgumentError, match="does not fit"):
        run(gathered(split([(12345, 20260505, 10**6)], budget_bytes)))


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=1500))
def test_windows_hold_every_request_in_order_within_bounds(sizes: list[int]) -> None:
    lines = [(Pending(read("system.ping", number)), b"x" * size) for size in sizes]
    windows = list(_windows(lines))
    assert [request for window in windows for request in window] == lines
    for window in windows:
        assert 0 < len(window) <= WINDOW_REQUESTS
        assert len(window) == 1 or sum(len(line) for _, line in window) <= WINDOW_BYTES


@given(st.dates(date(1000, 1, 1)))
def test_days_come_back(day: date) -> None:
    assert to_date(day_number(day)) == to_date(str(day)) == day


@given(st.text(max_size=30))
def test_any_address_is_a_node_or_an_error_of_ours(address: str) -> None:
    try:
        node = Node.parse(address)
    except KarmaError:
        return
    assert Node.parse(str(node)) == node


@given(st.text(max_size=12))
def test_any_text_is_a_day_or_an_error_of_ours(text: str) -> None:
    try:
        number_of_day = day_number(text)
    except KarmaError:
        return
    assert day_number(to_date(number_of_day)) == number_of_day
