"""The `.tree` format over any series: both spellings hold the same, and both ways of reading agree."""

import random
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from karma.core import buckets
from karma.core.buckets import Counter
from karma.limits import U64_MAX
from karma.storage import tree_file

keys = st.one_of(st.integers(0, 40), st.integers(0, U64_MAX))
days = st.one_of(st.integers(20260501, 20260509), st.integers(0, 2**32 - 1), st.integers(0, U64_MAX))
values = st.one_of(st.integers(1, 300), st.integers(1, U64_MAX // 16))
contents = st.dictionaries(keys, st.dictionaries(days, values, max_size=15), max_size=30)
Content = dict[int, dict[int, int]]


def counters_of(content: Content) -> dict[int, Counter]:
    return {key: buckets.from_items(table.items()) for key, table in content.items()}


def tree_of(content: Content) -> dict[str, Any]:
    branches: list[dict[int, Any]] = [{} for _ in range(9)]
    for key, table in content.items():
        branches[key % 9][key] = {"table": dict(table), "total": sum(table.values())}
    return {"branches_num": 9, "branches": branches}


@given(contents)
def test_what_is_written_is_read_back(content: Content) -> None:
    counters = counters_of(content)
    read = tree_file.decode(b"".join(tree_file.encode(counters)))
    assert read == counters
    assert {key: type(counter) for key, counter in read.items()} == {
        key: type(counter) for key, counter in counters.items()
    }


@given(contents)
def test_any_messagepack_reader_sees_the_same(content: Content) -> None:
    data = b"".join(tree_file.encode(counters_of(content)))
    assert msgpack.unpackb(data, strict_map_key=False) == tree_of(content)


@given(contents, st.randoms(use_true_random=False))
def test_the_shortest_spelling_in_any_order_is_read_alike(content: Content, chance: random.Random) -> None:
    shuffled = {
        key: dict(chance.sample(sorted(content[key].items()), len(content[key])))
        for key in chance.sample(sorted(content), len(content))
    }
    assert tree_file.decode(msgpack.packb(tree_of(shuffled))) == counters_of(content)


@given(contents)
def test_both_ways_of_reading_agree(content: Content) -> None:
    data = b"".join(tree_file.encode(counters_of(content)))
    assert tree_file._decode_generally(data) == tree_file.decode(data)


@given(contents, st.data())
def test_damage_is_refused_or_read_as_a_sound_series(content: Content, data: st.DataObject) -> None:
    damaged = bytearray(b"".join(tree_file.encode(counters_of(content))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        if not damaged:
            break
    try:
        read = tree_file.decode(bytes(damaged))
    except ValueError:
        return
    for counter in read.values():
        pairs = list(buckets.items(counter))
        assert buckets.total(counter) == sum(value for _, value in pairs) <= U64_MAX
        assert [day for day, _ in pairs] == sorted({day for day, _ in pairs})
        assert all(value for _, value in pairs)
