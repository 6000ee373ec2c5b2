"""Reading in bulk beside the store's own reading: they must agree on every file, good or bad."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import msgpack
import pytest
from handmade import flip
from hypothesis import given
from hypothesis import strategies as st

from karma.core import buckets
from karma.core.buckets import Counter
from karma.errors import DamagedDataError
from karma.offline import columns, pictures
from karma.storage import snapshot
from karma.storage.disk import Disk
from karma.storage.snapshot import SnapshotFile

U64_MAX = 2**64 - 1
EPOCH = date(1970, 1, 1).toordinal()

days = st.one_of(
    st.dates(date(2025, 1, 1), date(2026, 12, 31)).map(lambda day: int(f"{day:%Y%m%d}")),
    st.sampled_from([0, 20260230, 99999999, 2**32 - 1]),
)
values = st.one_of(st.integers(1, 1000), st.sampled_from([2**63, U64_MAX - 5000]))
tables = st.dictionaries(days, values, max_size=5).filter(lambda table: sum(table.values()) <= U64_MAX)
keys = st.one_of(st.integers(0, 30), st.sampled_from([2**63, U64_MAX]))
contents = st.dictionaries(keys, tables, max_size=12)


def rows(found: columns.Columns) -> list[tuple[int, int, int]]:
    return sorted(zip(found.bucket_keys.tolist(), found.days.tolist(), found.values.tolist(), strict=True))


def since_epoch(day: int) -> int:
    try:
        return date(day // 10_000, day // 100 % 100, day % 100).toordinal() - EPOCH
    except ValueError:
        return columns.NO_DATE


def expected(content: Mapping[int, Mapping[int, int]]) -> list[tuple[int, int, int]]:
    return sorted(
        (key, since_epoch(day), value) for key, table in content.items() for day, value in table.items()
    )


def written(folder: Path, counters: dict[int, Counter]) -> SnapshotFile:
    return snapshot.write_tree(Disk(), folder, "api", counters, 7, 1_795_000_000, 0)


@given(contents)
def test_a_file_in_bulk_holds_what_the_store_held(
    tmp_path_factory: pytest.TempPathFactory, content: dict[int, dict[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    counters = {key: buckets.from_items(table.items()) for key, table in content.items()}
    for found in (columns.read_columns(written(folder, counters)), columns.columns_of(counters)):
        assert rows(found) == expected(content)
        totals = zip(found.keys.tolist(), found.totals.tolist(), found.counts.tolist(), strict=True)
        assert sorted(totals) == sorted(
            (key, sum(table.values()), len(table)) for key, table in content.items()
        )


@given(contents)
def test_the_spelling_of_karma_1_0_is_read_too(
    tmp_path_factory: pytest.TempPathFactory, content: dict[int, dict[int, int]]
) -> None:
    branches: list[dict[int, object]] = [{} for _ in range(9)]
    for key, table in content.items():
        branches[key % 9][key] = {"table": table, "total": sum(table.values())}
    path = tmp_path_factory.mktemp("tree") / "1795000000_api.tree"
    path.write_bytes(msgpack.packb({"branches_num": 9, "branches": branches}))
    assert rows(columns.read_columns(pictures.describe(path))) == expected(content)


@pytest.fixture
def file(tmp_path: Path) -> SnapshotFile:
    counters: dict[int, Counter] = {
        1: array("Q", (30, 20260504, 10, 20260505, 20)),
        2: buckets.single(20260505, 5),
        3: 0,
        10: array("Q", (3, 20260101, 1, 20260102, 2)),
    }
    return written(tmp_path, counters)


def test_every_flipped_bit_is_seen(file: SnapshotFile) -> None:
    size_bytes = file.path.stat().st_size
    for offset in range(size_bytes):
        flip(file.path, offset, 0x10)
        with pytest.raises(DamagedDataError):
            columns.read_columns(file)
        # Without a checksum the same bytes must be judged as recovery judges them.
        bare = SnapshotFile(file.series, file.path, file.file, file.timestamp, size_bytes)
        try:
            wanted = snapshot.load_tree(Disk(), bare)
        except DamagedDataError:
            with pytest.raises(DamagedDataError):
                columns.read_columns(bare)
        else:
            found = columns.read_columns(bare)
            assert rows(found) == rows(columns.columns_of(wanted))
        flip(file.path, offset, 0x10)
    assert len(rows(columns.read_columns(file))) == 5


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_truncated_file_is_damage(file: SnapshotFile, cut: int) -> None:
    data = file.path.read_bytes()
    file.path.write_bytes(data[:-cut])
    for described in (file, SnapshotFile("api", file.path, file.file, 0, len(data) - cut)):
        with pytest.raises(DamagedDataError):
            columns.read_columns(described)


def test_a_foreign_messagepack_file_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "1795000000_api.tree"
    path.write_bytes(msgpack.packb({"users": [1, 2, 3]}))
    with pytest.raises(DamagedDataError, match="unknown or repeated field"):
        columns.read_columns(pictures.describe(path))
