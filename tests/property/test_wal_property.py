"""Whatever happens to a log file: its reader returns a true prefix or refuses, and never other entries."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from karma.errors import DamagedDataError
from karma.storage import recovery, wal
from karma.storage.disk import Disk
from karma.storage.recovery import LogScan
from karma.storage.wal import Wal

NOW_MS = 1_795_253_093_000
SERIES = st.sampled_from(["api", "é", 'quote"', "back\\slash", "line\u2028"])
ENTRY = st.builds(
    lambda series, key, value: {
        "v": 2,
        "op": "counter.increment",
        "series": series,
        "key": key,
        "value": value,
    },
    SERIES,
    st.integers(0, 2**64 - 1),
    st.integers(1, 2**64 - 1),
)
GROUP = st.tuples(st.lists(ENTRY, min_size=1, max_size=4), st.booleans(), st.booleans())
"""Entries, whether they were synced when the next group was written, whether the log was rotated then."""
HARM = st.tuples(
    st.sampled_from(["cut", "flip", "zero", "remove", "insert"]), st.integers(0, 2**20), st.integers(1, 60)
)


@contextmanager
def written(groups: list[tuple[list[dict[str, object]], bool, bool]], keep_bytes: int = 0) -> Iterator[Wal]:
    with tempfile.TemporaryDirectory() as name:
        log = Wal(Disk(), Path(name), next_lsn=1)
        for entries, is_synced, is_rotated in groups:
            log.append([orjson.dumps(entry) for entry in entries], NOW_MS)
            if is_synced:
                log.durable_lsn = log.last_lsn
            if is_rotated:
                log.rotate()()
        yield log
        log.close()


def harm(directory: Path, kind: str, at: int, size: int) -> None:
    """Do something to one byte or some bytes of the files of a log, taken as one."""
    files = [segment.path for segment in recovery.log_files(Disk(), directory)]
    at %= sum(path.stat().st_size for path in files) or 1
    for path in files:
        data = bytearray(path.read_bytes())
        if at < len(data):
            match kind:
                case "cut":
                    del data[at:]
                case "flip":
                    data[at] ^= 1 << size % 8
                case "zero":
                    data[at : at + size] = b"\0" * len(data[at : at + size])
                case "remove":
                    del data[at : at + size]
                case "insert":
                    data[at:at] = b"x\n" * size
            path.write_bytes(data)
            return
        at -= len(data)


@settings(max_examples=400, deadline=None)
@given(groups=st.lists(GROUP, min_size=1, max_size=6), harms=st.lists(HARM, max_size=2))
def test_a_harmed_log_is_a_prefix_or_refused(
    groups: list[tuple[list[dict[str, object]], bool, bool]], harms: list[tuple[str, int, int]]
) -> None:
    entries = [entry for group, _, _ in groups for entry in group]
    with written(groups) as log:
        directory = log._directory
        for kind, at, size in harms:
            harm(directory, kind, at, size)
        scan = LogScan(Disk(), recovery.log_files(Disk(), directory), 1)
        found = []
        refused_lsn = None
        try:
            for _, line in scan:
                found.append(line)
        except DamagedDataError as error:
            refused_lsn = error.lsn
        assert refused_lsn in (None, len(found) + 1)
        assert [line.lsn for line in found] == list(range(1, len(found) + 1))
        assert [line.entry for line in found] == entries[: len(found)]
        if not harms:
            assert (len(found), scan.tail, refused_lsn) == (len(entries), None, None)


@settings(max_examples=200, deadline=None)
@given(groups=st.lists(GROUP, min_size=2, max_size=6), data=st.data())
def test_what_a_later_group_knows_durable_is_never_cut(
    groups: list[tuple[list[dict[str, object]], bool, bool]], data: st.DataObject
) -> None:
    """A flipped byte in an entry: refused when a whole later line says that it was durable, else cut."""
    with written(groups) as log:
        files = recovery.log_files(Disk(), log._directory)
        lines = [found for found in recovery.scan_lines(Disk(), files, 1) if found.line is not None]
        victim = data.draw(st.sampled_from(lines))
        path, at = victim.segment.path, victim.offset_bytes + data.draw(st.integers(0, victim.size_bytes - 2))
        harmed = bytearray(path.read_bytes())
        # A newline for a byte of the line: neither the line before nor the one behind is touched.
        harmed[at] = 10
        path.write_bytes(harmed)
        later = [found.line.synced_lsn or 0 for found in lines if found.line and found.lsn > victim.lsn]
        scan = LogScan(Disk(), files, 1)
        count = 0
        refused_lsn = None
        try:
            for _ in scan:
                count += 1
        except DamagedDataError as error:
            refused_lsn = error.lsn
        assert count == victim.lsn - 1
        assert refused_lsn == (victim.lsn if max(later, default=0) >= victim.lsn else None)
        if refused_lsn is None:
            assert scan.tail is not None
            assert (
                scan.tail.cut_bytes
                == sum(segment.path.stat().st_size for segment in files[files.index(victim.segment) :])
                - victim.offset_bytes
            )


@settings(max_examples=100, deadline=None)
@given(
    groups=st.lists(GROUP, min_size=1, max_size=8),
    through=st.integers(0, 40),
    keep_bytes=st.sampled_from([0, 300, 10**6]),
)
def test_what_truncation_keeps_can_be_read_from_any_lsn(
    groups: list[tuple[list[dict[str, object]], bool, bool]], through: int, keep_bytes: int
) -> None:
    with written(groups) as log:
        through = min(through, log.last_lsn)
        entries = [entry for group, _, _ in groups for entry in group]
        log.truncate(through, keep_bytes)()
        assert log.first_lsn <= through + 1
        again = Wal(Disk(), log._directory, next_lsn=log.last_lsn + 1)
        for reader in (log, again):
            assert reader.first_lsn == log.first_lsn
            for after in range(log.first_lsn - 1, log.last_lsn + 1):
                read = list(reader.read(after))
                assert [line.lsn for line in read] == list(range(after + 1, log.last_lsn + 1))
                assert [json.loads(line.json) for line in read] == entries[after:]
        again.close()
        assert wal.read_truncated_lsn(Disk(), log._directory) == through
