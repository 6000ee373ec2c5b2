"""Logs in bulk: the good prefix, every kind of trouble, and a server that rotates meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from handmade import DAY, Node, add, flip
from harness import FIXTURES

from karma.errors import DamagedDataError
from karma.offline import pictures, read_log
from karma.offline.log_copy import LogCopy


def copied(directory: Path, *, skip_damaged: bool = False) -> tuple[list[int], LogCopy]:
    copy = LogCopy(lambda: pictures.log_files(directory), skip_damaged=skip_damaged)
    lines = b"".join(copy.blocks()).splitlines()
    return [json.loads(line)["lsn"] for line in lines], copy


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """LSN 1 to 1023: groups of every length, over three files."""
    node = Node(tmp_path / "data")
    for length in (1, 2, 7, 8, 9, 64, 65, 512, 355):
        node.write(*[add("api", key) for key in range(length)])
        if length in (9, 512):
            node.rotate()
    return node


def test_all_of_it(node: Node) -> None:
    lsns, copy = copied(node.directory)
    assert lsns == list(range(1, 1024))
    assert (copy.first_lsn, copy.last_lsn, copy.tail, copy.passed_over) == (1, 1023, None, [])


@pytest.mark.parametrize("name", ["wal-only", "wal-segments", "snapshot-and-wal"])
def test_the_original_s(name: str) -> None:
    directory = FIXTURES / name / "data"
    assert copied(directory)[0] == [line.lsn for line in read_log(directory)]


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    node.write(*[add("api", key) for key in range(9)], is_synced=False)
    log = node.directory / "karma.wal"
    # Of one line each byte, of the others a part: the first is read alone, the rest as a group.
    size_bytes = log.stat().st_size
    for offset in [*range(size_bytes // 9), *range(size_bytes // 9, size_bytes, 7)]:
        flip(log, offset)
        lsns, copy = copied(node.directory)
        assert lsns == list(range(1, len(lsns) + 1))
        assert len(lsns) < 9, offset
        assert copy.tail is not None
        flip(log, offset)
    assert copied(node.directory)[0] == list(range(1, 10))


@pytest.mark.parametrize(
    ("written", "read"), [(b'"crc"', b'"crd"'), (b'"ts":1', b'"ts":2'), (b'","key"', b'!","key"')]
)
def test_what_is_wrong_in_all_lines_of_a_group_alike_is_noticed(
    tmp_path: Path, written: bytes, read: bytes
) -> None:
    node = Node(tmp_path / "data")
    node.write(add("api", 1), is_synced=False)
    node.write(*[add("api", key) for key in range(9)], is_synced=False)
    log = node.directory / "karma.wal"
    first, rest = log.read_bytes().split(b"\n", 1)
    log.write_bytes(first + b"\n" + rest.replace(written, read))
    assert copied(node.directory)[0] == [1]


def test_a_torn_tail_is_left_out_and_told(node: Node) -> None:
    log = node.directory / "karma.wal"
    log.write_bytes(log.read_bytes()[:-20])
    lsns, copy = copied(node.directory)
    assert lsns == list(range(1, 1023))
    assert copy.tail is not None
    assert (copy.tail.path, copy.tail.lsn) == (log, 1023)


def test_damage_stops_it_unless_it_is_to_be_skipped(node: Node) -> None:
    segment = pictures.log_files(node.directory)[1]
    flip(segment, 5000)
    with pytest.raises(DamagedDataError, match="durable"):
        copied(node.directory)
    lsns, copy = copied(node.directory, skip_damaged=True)
    assert len(lsns) == 1022
    assert copy.last_lsn == 1023
    assert lsns == sorted(lsns)
    assert len(copy.passed_over) == 1
    assert segment.name in copy.passed_over[0]


def test_files_that_a_server_moves_meanwhile_are_found_again(node: Node) -> None:
    moved = [False]

    def paths() -> list[Path]:
        found = pictures.log_files(node.directory)
        if not moved[0]:
            moved[0] = True
            node.write(add("api", 1))
            node.rotate()
            node.write(add("api", 2))
            node.snapshot_all(keep_bytes=1 << 30)
        return found

    copy = LogCopy(paths)
    lsns = [json.loads(line)["lsn"] for line in b"".join(copy.blocks()).splitlines()]
    assert lsns == list(range(1, 1026))


def test_lines_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karma.offline.log_copy.BLOCK_BYTES", 256)
    node = Node(tmp_path / "data")
    batch = {"op": "series.batch_add", "series": "api", "granularity": "day"}
    node.write(add("api", 1), {**batch, "items": [[key, DAY, 1] for key in range(500)]}, add("api", 2))
    assert copied(node.directory)[0] == [1, 2, 3]


# -- Moments ---------------------------------------------------------------------------------------------


def total(directory: Path, lsn: int | None) -> dict[str, int]:
    found = pictures.as_of(directory, lsn, 1_795_253_093)
    return {
        name: sum(counter if isinstance(counter, int) else counter[0] for counter in series.counters.values())
        >> 32
        for name, series in found.store.series.items()
    }


def test_the_newest_snapshot_before_an_lsn_and_the_log_on_top(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    node.write(add("api", 1), add("api", 1))
    node.snapshot_all(keep_bytes=1 << 30)
    node.write(add("api", 1), add("mail", 1))
    node.snapshot_all(keep_bytes=1 << 30)
    node.write(add("api", 1))
    wanted: list[dict[str, int]] = [{"api": 1}, {"api": 2}, {"api": 3}, {"api": 3, "mail": 1}]
    assert [total(node.directory, lsn) for lsn in range(1, 5)] == wanted
    assert total(node.directory, 5) == total(node.directory, None) == {"api": 4, "mail": 1}
    with pytest.raises(pictures.MissingLogError, match="LSN 6"):
        total(node.directory, 6)


def test_entries_that_are_gone_are_not_guessed(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    node.write(add("api", 1))
    node.snapshot_all()
    node.write(add("api", 1), add("api", 1))
    node.snapshot_all()
    assert total(node.directory, 1) == {"api": 1}
    with pytest.raises(pictures.MissingLogError):
        total(node.directory, 2)
    assert total(node.directory, 3) == {"api": 3}


def test_a_gap_in_the_log_is_not_passed_over(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    node.write(add("api", 1), add("api", 1), add("api", 1))
    log = node.directory / "karma.wal"
    first, _, third = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(first + third)
    assert total(node.directory, 1) == {"api": 1}
    with pytest.raises(pictures.MissingLogError, match="lacks LSN 2 to 2"):
        total(node.directory, 3)


def test_what_karma_1_0_leaves_of_a_dropped_series_is_not_current(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    node.write(add("gone", 1), add("api", 1))
    node.snapshot_all()
    node.write({"op": "tree.drop", "series": "gone"}, add("api", 1))
    node.snapshot_all()
    # It leaves the files where they are.
    for path in (node.directory / "dropped").iterdir():
        path.rename(node.directory / path.name)
    shots = pictures.list_shots(node.directory)
    assert sorted(shots.current) == ["api"]
    assert {file.series for file in shots.files} == {"api", "gone"}


def test_a_series_that_was_dropped_since_was_there(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    node.write(add("gone", 1), add("api", 1))
    node.snapshot_all(keep_bytes=1 << 30)
    node.write(add("api", 1))
    node.write({"op": "tree.drop", "series": "gone"})
    node.snapshot_all(keep_bytes=1 << 30)
    assert total(node.directory, 3) == {"gone": 1, "api": 2}
    assert total(node.directory, 4) == {"api": 2}
    # Without any trace of what it held, nothing is guessed.
    for path in (node.directory / "dropped").iterdir():
        path.unlink()
    for segment in (node.directory / "retained").iterdir():
        if segment.name.startswith("karma.wal.00000000000000000001."):
            segment.unlink()
    with pytest.raises(pictures.MissingLogError, match='"gone" was dropped at LSN 4'):
        total(node.directory, 3)


def test_a_time_is_the_last_entry_before_it(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    for _ in range(3):
        node.write(add("api", 1))
        node.unix += 10
    first_ms = (node.unix - 30) * 1000
    found = [pictures.lsn_at(read_log(node.directory), first_ms + later) for later in (-1, 0, 9999, 10_000)]
    assert found == [0, 1, 1, 2]
    assert pictures.lsn_at(read_log(node.directory), first_ms + 20_000) is None


def test_a_time_does_not_end_where_the_clock_was_set_back(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    start = node.unix
    # Eight days ahead by mistake for one entry, then right again, then an hour back.
    for unix in (start, start + 10, start + 691_200, start + 30, start + 40, start - 3_600, start - 3_500):
        node.unix = unix
        node.write(add("api", 1))
    moments = (start - 3_601, start - 3_600, start, start + 35, start + 40, start + 691_199, start + 691_200)
    found = [pictures.lsn_at(read_log(node.directory), moment * 1000) for moment in moments]
    assert found == [0, 6, None, None, None, None, None]
    node.unix = start + 50
    node.write(add("api", 1))
    found = [pictures.lsn_at(read_log(node.directory), moment * 1000) for moment in moments]
    assert found == [0, 6, 7, 7, 7, None, None]
