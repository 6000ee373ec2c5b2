"""The good part of a log as blocks of whole lines, every checksum looked at, for tools that read it in bulk.

One line at a time, as recovery reads, costs four microseconds an entry, most of it for Python objects
that a bulk reader has no use for. Here the lines of a group, which share their time and what was durable
then, are checked together by functions that loop in C. Whatever fits no group is read as recovery does.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from struct import pack
from zlib import crc32

from karma.core.entries import group_seed
from karma.storage import recovery, wal
from karma.storage.disk import Disk
from karma.storage.recovery import LogScan, Tail
from karma.storage.wal import Segment

BLOCK_BYTES = 512 << 10
"""What fits a core's cache with the lines made of it; with 4 MiB they take a tenth longer."""
_LEAST_LINES = 8
"""Of a group; below, one at a time is as fast."""
_COMMON = re.compile(rb',"ts":(\d{1,20}),"synced":(\d{1,20}),"crc":"')


class LogCopy:
    """The good lines of log files; iterate `blocks` once, then look at the rest.

    `list_paths` names the files in order; it is asked again when one of them has gone meanwhile, because a
    server at work moves them.
    """

    def __init__(self, list_paths: Callable[[], Sequence[Path]], *, skip_damaged: bool = False) -> None:
        self._list_paths = list_paths
        self._skip_damaged = skip_damaged
        self._disk = Disk()
        self.first_lsn = 0
        self.last_lsn = 0
        self.tail: Tail | None = None
        """Where the log stops being readable, None where it does not."""
        self.passed_over: list[str] = []
        """What was left out because of `skip_damaged`."""

    def blocks(self) -> Iterator[bytes]:
        """Yield the lines in LSN order, up to a torn tail.

        Raises DamagedDataError where something is missing or cannot be read that had been durable, unless
        damage is to be skipped.
        """
        for _ in range(10):
            try:
                for path in self._list_paths():
                    yield from self._file_blocks(path)
            except FileNotFoundError:
                continue
            except _OddLineError:
                yield from self._behind_odd_line()
            return

    def _file_blocks(self, path: Path) -> Iterator[bytes]:
        offset, size_bytes = 0, self._disk.size_bytes(path)
        while offset < size_bytes:
            data = self._disk.read_range(path, offset, min(BLOCK_BYTES, size_bytes - offset))
            end = data.rfind(b"\n") + 1
            while not end and len(data) < size_bytes - offset:
                # A batch of 10,000 items is one line, and an import's may be longer than a block.
                data = self._disk.read_range(path, offset, min(2 * len(data), size_bytes - offset))
                end = data.rfind(b"\n") + 1
            if not end:
                raise _OddLineError
            block = data[:end]
            lines = block.split(b"\n")
            lines.pop()
            taken = self._take(lines)
            if taken == len(lines):
                yield block
            else:
                # Some were known already, or one is odd: this block holds others, too.
                yield b"".join(line + b"\n" for line in lines[:taken] if line)
                raise _OddLineError
            offset += end

    def _take(self, lines: list[bytes]) -> int:
        """Check lines; return how many are good from the first on. Known ones become empty."""
        at = 0
        while at < len(lines):
            count = self._take_group(lines, at)
            if not count:
                try:
                    line = wal.parse_line(lines[at])
                except ValueError:
                    return at
                if self.last_lsn and line.lsn <= self.last_lsn:
                    lines[at] = b""
                elif self.last_lsn and line.lsn != self.last_lsn + 1:
                    return at
                else:
                    self._reach(line.lsn, 1)
                count = 1
            at += count
        return at

    def _reach(self, lsn: int, count: int) -> None:
        self.first_lsn = self.first_lsn or lsn
        self.last_lsn = lsn + count - 1

    def _take_group(self, lines: list[bytes], at: int) -> int:
        """Check lines of one group from here on; return how many there are, 0 if that cannot be said."""
        if not self.last_lsn:
            return 0
        line = lines[at]
        cut = line.rfind(b',"ts":') - len(line)
        common = line[cut:-10]
        found = _COMMON.fullmatch(common)
        if found is None:
            return 0

        def is_alike(count: int) -> bool:
            return at + count <= len(lines) and lines[at + count - 1][cut:-10] == common

        if not is_alike(_LEAST_LINES):
            return 0
        low, high = _LEAST_LINES, 2 * _LEAST_LINES
        while is_alike(high):
            low, high = high, 2 * high
        count = low + bisect_left(range(low + 1, high), True, key=lambda more: not is_alike(more))
        # Up to the next power of ten, where the LSN gets a digit more.
        count = min(count, 10 ** len(str(self.last_lsn + 1)) - 1 - self.last_lsn)
        seed = group_seed(int(found[1]), int(found[2]))
        return count if self._are_good(lines[at : at + count], cut, common, seed) else 0

    def _are_good(self, group: list[bytes], cut: int, common: bytes, seed: int) -> bool:
        """Tell whether lines are what the log's writer makes of their entries and of the LSNs that are due.

        Entries end `cut` from the end of their lines; `common` stands between them and their checksums.
        """
        lsns = range(self.last_lsn + 1, self.last_lsn + 1 + len(group))
        head, entry = '{"v":2,"lsn":', ',"entry":'
        heads = head + (entry + head).join(map(str, lsns)) + entry
        head_bytes = len(heads) // len(group)
        bodies = map(itemgetter(slice(head_bytes, cut)), group)
        checksums = pack(f">{len(group)}I", *map(crc32, bodies, map(seed.__xor__, lsns)))
        between = common.decode()
        ends = (between + checksums.hex("|", 4) + '"}').replace("|", '"}' + between)
        is_good = (
            b"".join(map(itemgetter(slice(head_bytes)), group)) == heads.encode()
            and b"".join(map(itemgetter(slice(cut, None)), group)) == ends.encode()
        )
        if is_good:
            self._reach(lsns[0], len(group))
        return is_good

    # -- Trouble -------------------------------------------------------------------------------

    def _behind_odd_line(self) -> Iterator[bytes]:
        """Tell a torn tail from damage; go on behind it where that is wanted."""
        segments = [Segment(path, 0, self._disk.size_bytes(path)) for path in self._list_paths()]
        if not self._skip_damaged:
            scan = LogScan(self._disk, segments, 1)
            for _ in scan:
                pass
            self.tail = scan.tail
            return
        for found in recovery.scan_lines(self._disk, segments, 1):
            if found.problem is not None:
                self.passed_over.append(f"{found.segment.path}, LSN {found.lsn}: {found.problem}")
            if found.line is not None and found.line.lsn > self.last_lsn:
                self._reach(found.line.lsn, 1)
                yield self._disk.read_range(found.segment.path, found.offset_bytes, found.size_bytes)


class _OddLineError(Exception):
    """A line that is not the next good one."""
