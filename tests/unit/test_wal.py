"""The log: its lines, its files, and what rotation and truncation leave of them."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import orjson
import pytest
from handmade import flip

from karma.errors import StorageFailedError
from karma.storage import wal
from karma.storage.disk import AppendFile, Disk
from karma.storage.wal import Segment, Wal

BODY = b'{"v":2,"op":"counter.increment","series":"api","key":1,"bucket":20260505,"value":1}'
NOW_MS = 1_795_253_093_000


class FullDisk(Disk):
    """A disk that refuses to open files for appending, or to rename, when told to."""

    def __init__(self) -> None:
        self.refuses: set[str] = set()

    def append_to(self, path: Path) -> AppendFile:
        """As Disk.append_to, or refuse."""
        if "append_to" in self.refuses:
            raise OSError(28, "No space left on device")
        return super().append_to(path)


@pytest.fixture
def disk() -> Disk:
    return Disk()


def open_wal(directory: Path, next_lsn: int = 1, disk: Disk | None = None, segment_bytes: int = 0) -> Wal:
    return Wal(disk or Disk(), directory, next_lsn=next_lsn, segment_bytes=segment_bytes)


def lsns(log: Wal, after_lsn: int) -> list[int]:
    return [line.lsn for line in log.read(after_lsn)]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def finished_line(**fields: object) -> bytes:
    """Return a line with these fields and something like a checksum at its end."""
    head = orjson.dumps(fields)[:-1]
    return b'%b,"crc":"%08x"}' % (head, crc32(head))


# -- Lines ---------------------------------------------------------------------------------------


def test_a_line_reads_back() -> None:
    first, second = wal.encode_lines([BODY, BODY], 7, NOW_MS, 5).splitlines()
    line = wal.parse_line(first)
    assert (line.lsn, line.ts_ms, line.synced_lsn) == (7, NOW_MS, 5)
    assert line.entry == orjson.loads(BODY)
    assert line.crc is not None
    assert len(line.crc) == 8
    assert wal.parse_line(second).lsn == 8


def test_a_line_of_karma_1_reads_as_it_is() -> None:
    line = wal.parse_line(b'{"v":2,"lsn":3,"entry":' + BODY + b"}")
    assert (line.lsn, line.ts_ms, line.synced_lsn, line.crc) == (3, None, None, None)
    assert line.entry["series"] == "api"


ENTRY = {"v": 2, "op": "tree.create", "series": "api"}


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        pytest.param(b"", "not valid JSON", id="empty"),
        pytest.param(b"\0" * 60, "not valid JSON", id="zeros, as a hole in a file reads"),
        pytest.param(b'{"v":2,"lsn":1,"entry":', "not valid JSON", id="cut short"),
        pytest.param(b"[1]", "not a log entry", id="no object"),
        pytest.param(b'{"v":1,"lsn":1,"entry":{"op":"x"}}', "not a log entry", id="another version"),
        pytest.param(b'{"lsn":1,"entry":{"op":"x"}}', "not a log entry", id="no version"),
        pytest.param(b'{"v":2,"entry":{"op":"x"}}', "no lsn", id="no lsn"),
        pytest.param(b'{"v":2,"lsn":"1","entry":{"op":"x"}}', "no lsn", id="a text for an lsn"),
        pytest.param(b'{"v":2,"lsn":true,"entry":{"op":"x"}}', "no lsn", id="a truth for an lsn"),
        pytest.param(b'{"v":2,"lsn":1.0,"entry":{"op":"x"}}', "no lsn", id="a fraction for an lsn"),
        pytest.param(b'{"v":2,"lsn":1}', "no entry", id="no entry"),
        pytest.param(b'{"v":2,"lsn":1,"entry":[]}', "no entry", id="an array for an entry"),
        pytest.param(b'{"v":2,"lsn":1,"entry":{}}', "no entry", id="no op"),
        pytest.param(b'{"v":2,"lsn":1,"entry":{"op":7}}', "no entry", id="a number for an op"),
        pytest.param(
            b'{"v":2,"lsn":1,"entry":{"op":"x"},"ts":1,"synced":0}', "checksum is missing", id="no checksum"
        ),
        pytest.param(
            b'{"v":2,"lsn":1,"entry":{"op":"x"},"ts":1,"synced":0,"crc":"00000000"}',
            "checksum does not match",
            id="another checksum",
        ),
        pytest.param(finished_line(v=2, lsn=1, entry=ENTRY, synced=0), "time", id="no time"),
        pytest.param(
            finished_line(v=2, lsn=1, entry=ENTRY, ts="x", synced=0), "time", id="a text for a time"
        ),
        pytest.param(finished_line(v=2, lsn=1, entry=ENTRY, ts=1), "time", id="nothing durable"),
    ],
)
def test_a_malformed_line_says_what_is_wrong(raw: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        wal.parse_line(raw)


def test_every_flipped_bit_of_a_line_is_noticed() -> None:
    raw = wal.encode_lines([BODY], 7, NOW_MS, 5)[:-1]
    for at in range(len(raw)):
        for bit in range(8):
            damaged = bytearray(raw)
            damaged[at] ^= 1 << bit
            with pytest.raises(ValueError, match=r"its? "):
                wal.parse_line(bytes(damaged))


def test_lines_come_whole_whatever_they_are_read_in(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\n\ntwo and more\nthe rest")
    for size in range(1, 30):
        monkeypatch.setattr(wal, "_READ_BYTES", size)
        assert list(wal.read_raw_lines(disk, path, 0, 26)) == [
            b"one\n",
            b"\n",
            b"two and more\n",
            b"the rest",
        ]
        assert list(wal.read_raw_lines(disk, path, 4, 10)) == [b"\n", b"two a"]
    assert list(wal.read_raw_lines(disk, path, 0, 1000))[-1] == b"the rest"


# -- Appending and rotating ------------------------------------------------------------------------


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    log = open_wal(tmp_path)
    log.append([BODY, BODY], NOW_MS)
    log.durable_lsn = 2
    log.append([BODY], NOW_MS)
    lines = (tmp_path / wal.LOG_NAME).read_bytes().splitlines()
    assert [wal.parse_line(line).synced_lsn for line in lines] == [0, 0, 2]
    assert lsns(log, 1) == [2, 3]
    assert lsns(log, 3) == []
    log.close()
    again = open_wal(tmp_path, next_lsn=4)
    assert (again.first_lsn, lsns(again, 0)) == (1, [1, 2, 3])
    again.close()


def test_rotation_makes_a_segment_named_after_its_first_lsn(tmp_path: Path) -> None:
    log = open_wal(tmp_path, next_lsn=5)
    log.append([BODY] * 3, NOW_MS)
    log.rotate()()
    log.append([BODY], NOW_MS)
    log.rotate()()
    assert names(tmp_path) == [
        "karma.wal",
        "karma.wal.00000000000000000005.segment",
        "karma.wal.00000000000000000005.segment.idx",
        "karma.wal.00000000000000000008.segment",
        "karma.wal.00000000000000000008.segment.idx",
    ]
    assert [lsns(log, after) for after in (4, 6, 7, 8)] == [[5, 6, 7, 8], [7, 8], [8], []]
    assert log.first_lsn == 5
    log.close()


def test_the_log_is_full_at_its_size(tmp_path: Path) -> None:
    log = open_wal(tmp_path, segment_bytes=300)
    seen = []
    for _ in range(2):
        log.append([BODY], NOW_MS)
        seen.append(log.is_full)
    log.rotate()()
    assert [*seen, log.is_full] == [False, True, False]
    assert log.size_bytes > 300
    log.close()


def test_a_rotation_that_fails_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    disk = FullDisk()
    log = open_wal(tmp_path, disk=disk)
    log.append([BODY], NOW_MS)
    disk.refuses = {"append_to"}
    with pytest.raises(OSError, match="No space"):
        log.rotate()
    disk.refuses = set()
    assert names(tmp_path) == ["karma.wal"]
    log.append([BODY], NOW_MS)
    log.rotate()()
    assert lsns(log, 0) == [1, 2]
    log.close()


def test_a_failed_sync_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_wal(tmp_path)
    log.append([BODY], NOW_MS)

    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fdatasync", fail)
    with pytest.raises(StorageFailedError, match="fsync"):
        log.sync()
    # The kernel has told it, and would say nothing the next time.
    monkeypatch.undo()
    with pytest.raises(StorageFailedError, match="fsync"):
        log.rotate()
    log.close()


# -- Truncating ------------------------------------------------------------------------------------


@pytest.fixture
def four_segments(tmp_path: Path) -> Wal:
    """Segments of LSN 1 and 2, 3 and 4, 5 and 6, and LSN 7 in the active file."""
    log = open_wal(tmp_path)
    for _ in range(3):
        log.append([BODY] * 2, NOW_MS)
        log.rotate()()
    log.append([BODY], NOW_MS)
    return log


def test_truncation_removes_what_is_covered_and_notes_the_lsn(
    four_segments: Wal, tmp_path: Path, disk: Disk
) -> None:
    four_segments.truncate(5, 0)()
    assert [name for name in names(tmp_path) if not name.endswith(".idx")] == [
        "karma.wal",
        "karma.wal.00000000000000000005.segment",
        "karma.wal.lsn",
    ]
    assert wal.read_truncated_lsn(disk, tmp_path) == 5
    assert four_segments.first_lsn == 5
    assert lsns(four_segments, 4) == [5, 6, 7]
    four_segments.close()


def test_truncation_keeps_the_newest_for_followers(four_segments: Wal, tmp_path: Path) -> None:
    size = four_segments.segments[0].size_bytes
    four_segments.truncate(6, 2 * size)()
    assert names(tmp_path / "retained") == [
        "karma.wal.00000000000000000003.segment",
        "karma.wal.00000000000000000003.segment.idx",
        "karma.wal.00000000000000000005.segment",
        "karma.wal.00000000000000000005.segment.idx",
    ]
    assert four_segments.first_lsn == 3
    assert lsns(four_segments, 2) == [3, 4, 5, 6, 7]
    four_segments.close()
    again = open_wal(tmp_path, next_lsn=8)
    assert (again.first_lsn, lsns(again, 3)) == (3, [4, 5, 6, 7])
    again.truncate(7, size)()
    assert names(tmp_path / "retained") == [
        "karma.wal.00000000000000000005.segment",
        "karma.wal.00000000000000000005.segment.idx",
    ]
    again.close()


def kept_for(directory: Path, keep_bytes: int, needed_lsns: list[int], through: int) -> list[int]:
    """Return the first LSNs of the segments kept of a log of four segments, 500 LSNs each."""
    log = open_wal(directory)
    for _ in range(4):
        for _ in range(50):
            log.append([BODY] * 10, NOW_MS)
        log.rotate()()
    log.truncate(through, keep_bytes, needed_lsns)()
    log.close()
    return [segment.first_lsn for segment in log.retained]


@pytest.mark.parametrize(
    ("keep_segments", "needed_lsns", "kept"),
    [
        pytest.param(2.0, [], [1001, 1501], id="nobody known"),
        pytest.param(2.5, [], [1001, 1501], id="half a segment is none"),
        pytest.param(2.5, [800], [501, 1001, 1501], id="within a segment"),
        pytest.param(2.5, [600], [1001, 1501], id="beyond the budget"),
        pytest.param(2.5, [3, 800], [501, 1001, 1501], id="one beyond takes nothing from one within"),
        pytest.param(2.5, [600, 800], [501, 1001, 1501], id="two in one segment"),
        pytest.param(2.5, [1900, 800, 1200], [501, 1001, 1501], id="several within"),
        pytest.param(1.5, [1900], [1501], id="what is before all of them is kept by its whole size"),
        pytest.param(1.0, [2001], [1501], id="nobody needs any"),
        pytest.param(1.0, [2000], [1501], id="the last entry of all"),
        pytest.param(0.0, [2000], [1501], id="within the step of the index"),
        pytest.param(0.0, [1999, 2001], [1501], id="the same for one of two"),
        pytest.param(0.0, [2001], [], id="there is nothing to need"),
    ],
)
def test_no_follower_within_the_budget_loses_the_log_and_nobody_else_gets_more(
    tmp_path: Path, keep_segments: float, needed_lsns: list[int], kept: list[int]
) -> None:
    segment_bytes = len(wal.encode_lines([BODY] * 500, 1500, NOW_MS, 0))
    # Positions are known to the step of the index only.
    keep_bytes = int(keep_segments * segment_bytes) + 18_000
    assert kept_for(tmp_path, keep_bytes, needed_lsns, 2000) == kept


def test_the_truncated_lsn_is_a_number(tmp_path: Path, disk: Disk) -> None:
    assert wal.read_truncated_lsn(disk, tmp_path) is None
    (tmp_path / "karma.wal.lsn").write_text("12\n")
    assert wal.read_truncated_lsn(disk, tmp_path) == 12
    for text in ("", "1x", "-1", "1.0"):
        (tmp_path / "karma.wal.lsn").write_text(text)
        with pytest.raises(ValueError, match="decimal"):
            wal.read_truncated_lsn(disk, tmp_path)


# -- The index -------------------------------------------------------------------------------------


@pytest.fixture
def long_segment(tmp_path: Path, disk: Disk) -> Segment:
    """A segment of LSN 1 to 600, about 80 kB, with its index."""
    log = open_wal(tmp_path)
    for _ in range(60):
        log.append([BODY] * 10, NOW_MS)
    log.rotate()()
    log.close()
    (segment,) = wal.list_segments(disk, tmp_path)
    return segment


def test_the_index_finds_every_lsn_from_nearby(long_segment: Segment, disk: Disk) -> None:
    points = wal.read_index(disk, long_segment)
    assert len(points) > 3
    for lsn in range(1, 601):
        offset = wal.find_offset(disk, long_segment, lsn)
        read = [
            wal.parse_line(raw[:-1]).lsn
            for raw in wal.read_raw_lines(disk, long_segment.path, offset, long_segment.size_bytes)
        ]
        assert read[0] <= lsn
        assert lsn - read[0] < 200
        assert read == list(range(read[0], 601))


def test_an_index_built_anew_has_the_same_shape(long_segment: Segment, disk: Disk) -> None:
    points = wal.index_points(disk, long_segment)
    assert points[0] == (1, 0)
    assert len(points) == len(wal.read_index(disk, long_segment))
    wal.write_index(disk, long_segment, points)
    assert wal.read_index(disk, long_segment) == points


def test_a_damaged_index_costs_time_and_no_entries(long_segment: Segment, tmp_path: Path, disk: Disk) -> None:
    index = wal.index_path(long_segment.path)
    whole = index.read_bytes()
    log = open_wal(tmp_path, next_lsn=601)
    for at in range(len(whole)):
        for mask in (1, 4, 16):
            flip(index, at, mask)
            assert lsns(log, 400) == list(range(401, 601))
            index.write_bytes(whole)
    for size in range(len(whole)):
        index.write_bytes(whole[:size])
        assert lsns(log, 590) == list(range(591, 601))
    index.unlink()
    assert lsns(log, 598) == [599, 600]
    log.close()


def test_an_index_of_another_file_is_refused(long_segment: Segment, disk: Disk) -> None:
    long_segment.size_bytes -= 1
    with pytest.raises(ValueError, match="header"):
        wal.read_index(disk, long_segment)
    assert wal.find_offset(disk, long_segment, 500) == 0
