"""The `.tree` format: what we write, what we read, and what we refuse."""

import mmap
import tempfile
from array import array
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import pytest

from karma.core import buckets
from karma.core.buckets import Counter
from karma.limits import U64_MAX
from karma.storage import tree_file

DAY = 20260505


def counters_of(content: Mapping[int, Mapping[int, int]]) -> dict[int, Counter]:
    return {key: buckets.from_items(table.items()) for key, table in content.items()}


def encoded(counters: Mapping[int, Counter]) -> bytes:
    return b"".join(tree_file.encode(counters))


def as_karma_1_writes(content: Mapping[int, Mapping[int, int]]) -> bytes:
    """The original's spelling: the shortest, buckets in the order they were first used."""
    branches: list[dict[int, Any]] = [{} for _ in range(9)]
    for key, table in content.items():
        branches[key % 9][key] = {"table": dict(table), "total": sum(table.values())}
    return bytes(msgpack.packb({"branches_num": 9, "branches": branches}))


def file_with(*branches: bytes) -> bytes:
    """A file in our spelling whose branches hold these counters, each branch at most one."""
    start = b"\x82\xacbranches_num\x09\xa8branches\x99"
    filled = [b"\xdf\x00\x00\x00\x01" + branch if branch else b"\xdf\x00\x00\x00\x00" for branch in branches]
    return start + b"".join(filled) + b"\xdf\x00\x00\x00\x00" * (9 - len(branches))


def counter_bytes(key: int, pairs: list[tuple[int, int]], total: int | None = None) -> bytes:
    wanted = sum(value for _, value in pairs) if total is None else total
    table = b"".join(
        b"\xce" + day.to_bytes(4, "big") + b"\xcf" + value.to_bytes(8, "big") for day, value in pairs
    )
    return (
        b"\xcf" + key.to_bytes(8, "big") + b"\x82\xa5table\xdf" + len(pairs).to_bytes(4, "big") + table
        + b"\xa5total\xcf" + wanted.to_bytes(8, "big")
    )  # fmt: skip


SMALL = {
    0: {},
    1: {DAY: 7},
    10: {DAY: 1, DAY + 1: 2, DAY + 2: U64_MAX - 3},
    2**63 + 5: {DAY: 2**63},
    U64_MAX: {DAY: 1, DAY - 1: 300},
}


# -- Writing ---------------------------------------------------------------------------------------


def test_bytes_are_as_the_format_says() -> None:
    assert encoded({1: buckets.single(DAY, 7)}) == file_with(b"", counter_bytes(1, [(DAY, 7)]))
    assert encoded({}) == file_with()


def test_what_is_written_is_plain_messagepack() -> None:
    tree = msgpack.unpackb(encoded(counters_of(SMALL)), strict_map_key=False)
    assert tree["branches_num"] == 9
    for branch, entries in enumerate(tree["branches"]):
        assert all(key % 9 == branch for key in entries)
    assert {key: entry["table"] for entries in tree["branches"] for key, entry in entries.items()} == SMALL
    totals = {key: entry["total"] for entries in tree["branches"] for key, entry in entries.items()}
    assert totals == {key: sum(table.values()) for key, table in SMALL.items()}


def test_days_past_32_bits_are_kept() -> None:
    content = {1: {2**32: 5}, 10: {DAY: 1, U64_MAX: 2}, 19: {2**32 - 1: 3}}
    counters = counters_of(content)
    assert tree_file.decode(encoded(counters)) == counters
    tree = msgpack.unpackb(encoded(counters), strict_map_key=False)
    assert {key: entry["table"] for key, entry in tree["branches"][1].items()} == content


def test_a_large_series_comes_in_pieces() -> None:
    days = range(DAY, DAY + 100)
    counters = {key: buckets.from_items((day, key + day) for day in days) for key in range(0, 36_000, 9)}
    counters |= dict.fromkeys(range(1, 270_000, 9), buckets.single(DAY, 3))
    pieces = list(tree_file.encode(counters))
    assert len([piece for piece in pieces if len(piece) > tree_file.CHUNK_BYTES // 2]) > 5
    assert max(map(len, pieces)) < 1.1 * tree_file.CHUNK_BYTES
    assert tree_file.decode(b"".join(pieces)) == counters


# -- Reading ---------------------------------------------------------------------------------------


def test_our_own_files_take_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_file, "_decode_generally", lambda _data: pytest.fail("took the general way"))
    assert tree_file.decode(encoded(counters_of(SMALL))) == counters_of(SMALL)
    assert tree_file.decode(encoded({})) == {}


def test_counters_come_in_their_packed_shapes() -> None:
    for data in (encoded(counters_of(SMALL)), as_karma_1_writes(SMALL)):
        read = tree_file.decode(data)
        assert read[0] == 0
        assert read[1] == 7 << 32 | DAY
        assert read[U64_MAX] == array("Q", (301, DAY - 1, 300, DAY, 1))


def test_the_spelling_of_karma_1_is_read() -> None:
    unsorted = {5: {DAY: 9, DAY - 3: 1, DAY + 3: 70_000}, 14: {DAY: 2**40}}
    assert tree_file.decode(as_karma_1_writes(unsorted)) == counters_of(unsorted)


def test_fields_may_come_in_another_order() -> None:
    branches = [{}, {1: {"total": 4, "table": {DAY: 4}}}, *({} for _ in range(7))]
    data = msgpack.packb({"branches": branches, "branches_num": 9})
    assert tree_file.decode(data) == {1: buckets.single(DAY, 4)}


def test_days_that_are_no_dates_are_kept() -> None:
    content = {3: {0: 1, 20261399: 2, 5: 3}}
    for data in (encoded(counters_of(content)), as_karma_1_writes(content)):
        assert tree_file.decode(data) == counters_of(content)


def test_buckets_of_zero_are_left_out() -> None:
    table = [(DAY, 0), (DAY + 1, 4), (DAY + 2, 0)]
    assert tree_file.decode(file_with(b"", counter_bytes(1, table))) == {1: buckets.single(DAY + 1, 4)}
    assert tree_file.decode(as_karma_1_writes({1: dict(table)})) == {1: buckets.single(DAY + 1, 4)}
    assert tree_file.decode(as_karma_1_writes({1: {DAY: 0}})) == {1: 0}


def test_days_out_of_order_are_sorted_whatever_the_spelling() -> None:
    data = file_with(b"", counter_bytes(1, [(DAY + 1, 4), (DAY, 5)]))
    assert tree_file.decode(data) == counters_of({1: {DAY: 5, DAY + 1: 4}})


def test_a_mapped_file_is_read_and_let_go_even_when_it_is_damaged() -> None:
    for data in (encoded(counters_of(SMALL)), as_karma_1_writes(SMALL)):
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                mapped.seek(7)
                assert tree_file.decode(mapped) == counters_of(SMALL)
            with (
                pytest.raises(ValueError, match="ends too early"),
                mmap.mmap(file.fileno(), len(data) - 1, access=mmap.ACCESS_READ) as mapped,
            ):
                tree_file.decode(mapped)


# -- Refusing --------------------------------------------------------------------------------------


def tree_of(entry: object, key: object = 1) -> bytes:
    return bytes(msgpack.packb({"branches_num": 9, "branches": [{}, {key: entry}, *({} for _ in range(7))]}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends too early"),
        (b"hello, world", "not a sound series near byte 0"),
        (b"\x93\x01\x02\x03", "not a sound series near byte 0"),
        (b"\xc1", "not a sound series near byte 0"),
        (msgpack.packb({"records": []}), "unknown or repeated field 'records'"),
        (msgpack.packb({"branches_num": 9}), "no branches"),
        (msgpack.packb({"branches_num": 8, "branches": [{}] * 8}), "branches_num is not 9"),
        (msgpack.packb({"branches_num": 9, "branches": [{}] * 8}), "does not have 9 branches"),
        (file_with() + b"\x00", "but the file has"),
        (tree_of({"table": {DAY: 1}, "total": 2}), "key 1 has total 2, but its buckets add up to 1"),
        (tree_of({"table": {DAY: 1}, "total": True}), "key 1 does not have a table and a total"),
        (tree_of({"table": {DAY: 1}}), "key 1 does not have a table and a total"),
        (tree_of({"table": {DAY: 1}, "total": 1, "more": 1}), "key 1 does not have a table and a total"),
        (tree_of({"table": [], "total": 0}), "key 1 does not have a table and a total"),
        (tree_of([]), "key 1 does not have a table and a total"),
        (tree_of({"table": {DAY: -1}, "total": 0}), "key 1 has a bucket or a value that is not"),
        (tree_of({"table": {DAY: 1.0}, "total": 1}), "key 1 has a bucket or a value that is not"),
        (tree_of({"table": {"x": 1}, "total": 1}), "key 1 has a bucket or a value that is not"),
        (tree_of({"table": {DAY: U64_MAX, DAY + 1: U64_MAX}, "total": 1}), "add up to"),
        (tree_of({"table": {}, "total": 0}, key=2), "key 2 is in branch 1"),
        (tree_of({"table": {}, "total": 0}, key=-8), "key -8 is not an unsigned"),
        (tree_of({"table": {}, "total": 0}, key="1"), "key '1' is not an unsigned"),
        (file_with(b"", counter_bytes(1, [(DAY, 1)], total=9)), "has total 9"),
        (file_with(b"", counter_bytes(1, [], total=9)), "has total 9"),
        (file_with(b"", counter_bytes(1, [(DAY, 1), (DAY + 1, 1)], total=9)), "has total 9"),
        (file_with(b"", counter_bytes(1, [(DAY, 1), (DAY, 1)])), "key 1 has a bucket twice"),
        (file_with(counter_bytes(1, [(DAY, 1)])), "key 1 is in branch 0"),
        (
            b"\x82\xacbranches_num\x09\xa8branches\x99\xdf\x00\x00\x00\x02" + counter_bytes(0, []) * 2
            + b"\xdf\x00\x00\x00\x00" * 8,
            "comes twice",
        ),
    ],
)  # fmt: skip
def test_what_is_no_sound_series_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree_file.decode(data)


@pytest.mark.parametrize("spell", [lambda content: encoded(counters_of(content)), as_karma_1_writes])
def test_every_truncation_is_refused(spell: Any) -> None:
    data = spell(SMALL)
    for size_bytes in range(len(data)):
        with pytest.raises(ValueError, match="ends too early"):
            tree_file.decode(data[:size_bytes])


def outcome(read: Callable[[bytes], dict[int, Counter]], data: bytes) -> dict[int, Counter] | str:
    try:
        return read(data)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("spell", [lambda content: encoded(counters_of(content)), as_karma_1_writes])
def test_the_fast_way_takes_no_damage_for_sound_and_no_other_error_leaves(spell: Any) -> None:
    data = spell({1: {DAY: 3, DAY + 1: 5}, 2: {DAY: 1}, 3: {}})
    refused = 0
    for at in range(len(data)):
        for bit in range(8):
            damaged = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            judged = outcome(tree_file._decode_generally, damaged)
            assert outcome(tree_file.decode, damaged) == judged
            refused += type(judged) is str
    # A flipped day or key can make another sound series: that is what the metadata's CRC is for.
    assert refused > 6 * len(data)
