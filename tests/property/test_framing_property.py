"""The same lines, and the same refusal, however the bytes arrive."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from karma.protocol.framing import Framer

MAX = 12
pieces = st.lists(
    st.sampled_from([b"a", b"b" * 5, b"c" * 11, b"d" * 12, b"e" * 13, b"\r", b"\r\r", b"\n", b"\r\n"]),
    max_size=12,
)


def lines_of(chunks: list[bytes]) -> tuple[list[bytes], str | None, list[bytes]]:
    """Return the lines without their ends, the error, and the rest at the end of input."""
    framer = Framer(MAX)
    lines: list[bytes] = []
    for chunk in chunks:
        lines += framer.feed(chunk)
    ended = framer.end()
    return [line.removesuffix(b"\r") for line in lines], framer.error.code if framer.error else None, ended


@given(pieces, st.data())
def test_chunks_of_any_size_give_the_same_lines(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    chunks = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    at_once = lines_of([whole])
    assert lines_of(chunks) == at_once
    assert lines_of([whole[at : at + 1] for at in range(len(whole))]) == at_once


@given(pieces)
def test_no_line_is_longer_than_allowed_and_none_is_lost_before_the_first_that_is(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    lines, error, rest = lines_of([whole])
    expected = []
    for line in whole.split(b"\n")[:-1]:
        if len(line.removesuffix(b"\r")) > MAX:
            assert error == "request_too_large"
            break
        expected.append(line.removesuffix(b"\r"))
    else:
        tail = whole.split(b"\n")[-1]
        if error is None:
            assert b"".join(rest) == tail
            assert len(tail.removesuffix(b"\r")) <= MAX
        else:
            assert len(tail.removesuffix(b"\r")) > MAX
            assert rest == []
    assert lines == expected


def test_nothing_is_given_out_after_an_oversized_line() -> None:
    framer = Framer(MAX)
    assert framer.feed(b"ok\n" + b"x" * 13 + b"\nlater\n") == [b"ok"]
    assert framer.error is not None
    assert framer.feed(b"more\n") == []
    assert framer.end() == []
    assert framer.buffered_bytes == 0


def test_a_last_line_without_its_end_is_as_long_as_others_at_most() -> None:
    for rest, expected in (
        (b"x" * 12, [b"x" * 12]),
        (b"x" * 12 + b"\r", [b"x" * 12 + b"\r"]),
        (b"x" * 13, []),
    ):
        framer = Framer(MAX)
        assert framer.feed(rest) == []
        assert framer.end() == expected
        assert (framer.error is None) == bool(expected)


def test_a_line_that_comes_byte_by_byte_is_not_copied_for_each_byte() -> None:
    size = 1 << 20
    framer = Framer(2 * size)
    framer.feed(bytes(size))
    copies = 0
    tracemalloc.start()
    try:
        for _ in range(2_000):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            framer.feed(b"x")
            copies += tracemalloc.get_traced_memory()[1] - before > size // 2
    finally:
        tracemalloc.stop()
    assert copies <= 2, "room for it may grow now and then"
    assert [len(line) for line in framer.feed(b"\n")] == [size + 2_000]
