"""The write-ahead log: every accepted write, one JSON object a line, LSN rising by one.

    {"v":2,"lsn":N,"entry":{"v":2,"op":…},"ts":T,"synced":S,"crc":"xxxxxxxx"}

`ts` is the time of writing (unix milliseconds), `synced` the last LSN known durable when the line's
group was written, `crc` the CRC-32 of the entry's bytes, started from the CRC-32 of ``T S`` xor N.
Karma 1.0 writes neither of the three and ignores them on reading; a line that has one of them has
them all, in this layout to the byte.

Files:

- ``karma.wal`` is appended to. At `segment_bytes` it is renamed to
  ``karma.wal.<first LSN, 20 digits>.segment`` and a new one begins.
- ``<segment>.idx`` maps some LSNs to byte offsets: a line ``KARMA_WAL_INDEX_V1 size=<bytes>``, then
  lines ``<lsn> <offset>``. Optional; the original writes every entry, we one each 16 KiB.
- ``retained/`` holds segments that snapshots cover already, kept for followers. They are not beside
  ``karma.wal`` because the original replays every ``karma.wal*`` it sees.
- ``karma.wal.lsn`` holds, in decimal, the LSN up to which the log was last truncated.

Damage: a line that cannot be read is a torn tail, to be cut, when no later line's `synced` reaches
it: one unsynced group may persist out of order and leave a hole. Otherwise the line was durable
once, and cutting it would lose writes that were acknowledged.
"""

from __future__ import annotations

import errno
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson

from karma.core.entries import Body, Lines, Recent, group_seed, line_crc
from karma.errors import StorageFailedError
from karma.storage.disk import AppendFile, Disk

LOG_NAME = "karma.wal"
LSN_NAME = "karma.wal.lsn"
RETAINED_NAME = "retained"
_LINE = re.compile(
    rb'\{"v":2,"lsn":(\d{1,20}),"entry":(\{.*\}),"ts":(\d{1,20}),"synced":(\d{1,20}),"crc":"([0-9a-f]{8})"\}',
    re.DOTALL,
)
_SEGMENT = re.compile(r"karma\.wal\.(\d{20})\.segment")
_INDEX_HEADER = "KARMA_WAL_INDEX_V1 size="
_INDEX_STEP_BYTES = 16_384
"""How far apart two index points are: what a cold read parses in vain, about 100 lines."""
_READ_BYTES = 262_144


# -- Lines ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One log line. Lines of the original have neither `ts_ms` nor `synced_lsn` nor `crc`."""

    lsn: int
    entry: dict[str, Any]
    ts_ms: int | None = None
    synced_lsn: int | None = None
    crc: str | None = None


def encode_lines(bodies: Sequence[bytes], first_lsn: int, ts_ms: int, synced_lsn: int) -> bytes:
    """Return the lines of one group, given their entries as JSON."""
    seed = group_seed(ts_ms, synced_lsn)
    middle = b',"ts":%d,"synced":%d,"crc":"' % (ts_ms, synced_lsn)
    return b"".join(
        [
            b'{"v":2,"lsn":%d,"entry":%b%b%08x"}\n'
            % (lsn, body, middle, crc32(body, (seed ^ lsn) & 0xFFFFFFFF))
            for lsn, body in enumerate(bodies, first_lsn)
        ]
    )


def parse_line(raw: bytes) -> Line:
    """Read a line without its newline. Raises ValueError saying what is wrong with it."""
    match = _LINE.fullmatch(raw)
    if match is not None:
        lsn, ts_ms, synced_lsn = int(match[1]), int(match[3]), int(match[4])
        if line_crc(match[2], lsn, group_seed(ts_ms, synced_lsn)) != int(match[5], 16):
            raise ValueError("its checksum does not match")
        return Line(lsn, _checked_entry(_json(match[2])), ts_ms, synced_lsn, match[5].decode())
    fields = _json(raw)
    if not isinstance(fields, dict) or fields.get("v") != 2:
        raise ValueError("it is not a log entry of protocol 2")
    if type(fields.get("lsn")) is not int:
        raise ValueError("it has no lsn")
    if len(fields) > 3:
        # Only we write more than v, lsn and entry, and always in the layout above.
        raise ValueError("its time or its checksum is missing")
    return Line(fields["lsn"], _checked_entry(fields.get("entry")))


def parse_body(raw: bytes) -> Body:
    """Read a line as `parse_line` does, but leave the entry as it is. Raises ValueError."""
    match = _LINE.fullmatch(raw)
    if match is None:
        line = parse_line(raw)
        return Body(line.lsn, orjson.dumps(line.entry), None)
    lsn, ts_ms = int(match[1]), int(match[3])
    if line_crc(match[2], lsn, group_seed(ts_ms, int(match[4]))) != int(match[5], 16):
        raise ValueError("its checksum does not match")
    return Body(lsn, match[2], ts_ms)


def _json(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise ValueError("it is not valid JSON") from None


def _checked_entry(entry: Any) -> dict[str, Any]:
    if isinstance(entry, dict) and isinstance(entry.get("op"), str):
        return entry
    raise ValueError("it has no entry")


# -- Files ---------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Segment:
    """A log file and, for one that this process wrote, its index points (LSN, byte offset)."""

    path: Path
    first_lsn: int
    size_bytes: int
    index: list[tuple[int, int]] | None = field(default=None, repr=False)


def segment_name(first_lsn: int) -> str:
    """Return the name of the segment that starts at an LSN."""
    return f"{LOG_NAME}.{first_lsn:020d}.segment"


def list_segments(disk: Disk, directory: Path) -> list[Segment]:
    """Return a folder's segments in LSN order."""
    found = []
    for name in disk.list_names(directory):
        if match := _SEGMENT.fullmatch(name):
            path = directory / name
            found.append(Segment(path, int(match[1]), disk.size_bytes(path)))
    return sorted(found, key=lambda segment: segment.first_lsn)


def read_truncated_lsn(disk: Disk, directory: Path) -> int | None:
    """Return what ``karma.wal.lsn`` says, None when it is missing. Raises ValueError when it is no number."""
    # Not by a look at the names: a follower asks with each page of a folder of many files.
    try:
        text = disk.read_file(directory / LSN_NAME).strip()
    except FileNotFoundError:
        return None
    if not text.isdigit():
        raise ValueError("it does not hold a decimal LSN")
    return int(text)


def write_index(disk: Disk, segment: Segment, points: list[tuple[int, int]]) -> None:
    """Write a segment's index sidecar."""
    lines = [f"{_INDEX_HEADER}{segment.size_bytes}\n", *(f"{lsn} {offset}\n" for lsn, offset in points)]
    disk.write_file(index_path(segment.path), ["".join(lines).encode()])


def read_index(disk: Disk, segment: Segment) -> list[tuple[int, int]]:
    """Return a segment's index points from its sidecar. Raises ValueError when it is none of this file."""
    header, *lines = disk.read_file(index_path(segment.path)).splitlines()
    if header != f"{_INDEX_HEADER}{segment.size_bytes}".encode():
        raise ValueError(f"its header is not that of an index of {segment.size_bytes} bytes")
    points = []
    for line in lines:
        lsn, offset = line.split()
        points.append((int(lsn), int(offset)))
    return points


def index_points(disk: Disk, segment: Segment) -> list[tuple[int, int]]:
    """Return the index points of a segment that can be read to its end. Raises ValueError."""
    points: list[tuple[int, int]] = []
    offset = 0
    for raw in read_raw_lines(disk, segment.path, 0, segment.size_bytes):
        if not points or offset - points[-1][1] >= _INDEX_STEP_BYTES:
            points.append((parse_line(raw[:-1]).lsn, offset))
        offset += len(raw)
    return points


def find_offset(disk: Disk, segment: Segment, lsn: int) -> int:
    """Return a byte offset at or before an LSN's line, from the index sidecar; 0 without a usable one."""
    offset = _look_up(disk, segment, lsn)
    # A damaged sidecar must cost time, not entries.
    raw = next(read_raw_lines(disk, segment.path, offset, segment.size_bytes), b"")
    try:
        return offset if parse_line(raw[:-1]).lsn <= lsn else 0
    except ValueError:
        return 0


def _look_up(disk: Disk, segment: Segment, lsn: int) -> int:
    path = index_path(segment.path)
    if path.name not in disk.list_names(path.parent):
        return 0
    with disk.map_file(path) as data:
        header_bytes = data.find(b"\n") + 1
        if data[:header_bytes] != f"{_INDEX_HEADER}{segment.size_bytes}\n".encode():
            return 0
        # Bisect the text itself: the original's index has a line for each entry, a page needs one.
        low, high = header_bytes, len(data)
        offset = 0
        while low < high:
            middle = data.rfind(b"\n", 0, (low + high) // 2) + 1
            end = data.find(b"\n", middle) + 1
            fields = data[middle:end].split()
            if len(fields) != 2 or not (fields[0].isdigit() and fields[1].isdigit()):
                return 0
            if int(fields[0]) <= lsn:
                offset, low = int(fields[1]), end
            else:
                high = middle
        return offset


def index_path(path: Path) -> Path:
    """Return the name of a segment's index sidecar."""
    return path.with_name(path.name + ".idx")


def read_raw_lines(disk: Disk, path: Path, offset_bytes: int, end_bytes: int) -> Iterator[bytes]:
    """Yield a file's lines between two offsets, with their newline; the last one may lack it."""
    # A list, because a hole without any newline may be as long as the file.
    rest: list[bytes] = []
    while offset_bytes < end_bytes:
        data = disk.read_range(path, offset_bytes, min(_READ_BYTES, end_bytes - offset_bytes))
        if not data:
            break
        offset_bytes += len(data)
        first, *lines = data.split(b"\n")
        rest.append(first)
        for line in lines:
            yield b"".join(rest) + b"\n"
            rest = [line]
    if last := b"".join(rest):
        yield last


# -- Writing -------------------------------------------------------------------------------------


class Wal:
    """The log of a running server. Not thread-safe but for `sync` and the jobs of `rotate`."""

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        *,
        next_lsn: int,
        segment_bytes: int = 0,
        is_synced: bool = True,
        file: AppendFile | None = None,
    ) -> None:
        """Open the log for appending at `next_lsn`; recovery has read it and cut its torn tail.

        `file` is the active file, opened here if it is None.

        `segment_bytes` 0 never rotates by size. `is_synced` says whether the owner syncs each
        group, so that a rotation must leave nothing undurable behind.
        """
        self._disk = disk
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._is_synced = is_synced
        self._file: AppendFile = disk.append_to(directory / LOG_NAME) if file is None else file
        self.last_lsn = next_lsn - 1
        """The last LSN written."""
        self.durable_lsn = 0
        """The last LSN known to survive a power cut. Recovery does not know any."""
        self.segments = list_segments(disk, directory)
        here = {segment.first_lsn for segment in self.segments}
        # A power cut may leave a segment that was being moved in both folders.
        self.retained = [
            segment
            for segment in list_segments(disk, directory / RETAINED_NAME)
            if segment.first_lsn not in here
        ]
        self._doomed: list[Segment] = []
        """Segments that were let go of and may still be on disk, because that failed: oldest first."""
        self._first_lsn = self._read_first_lsn()
        self._index: list[tuple[int, int]] = [(self._first_lsn, 0)]
        self.recent: Recent | None = None
        """The newest entries in memory, kept while somebody follows the end of the log."""
        self._last_received: tuple[int, int, bytes] = (0, 0, b"")
        """The last write of `append_received`: its offset, the LSN before it, its lines."""
        self._closing = threading.Lock()
        """Held while a thread syncs the file it found active: a rotation must not close it meanwhile."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the log that a restart would read."""
        return self._file.size_bytes + sum(segment.size_bytes for segment in self.segments)

    @property
    def active_bytes(self) -> int:
        """Bytes of the active file."""
        return self._file.size_bytes

    @property
    def first_lsn(self) -> int:
        """The first LSN that can still be read here, retained segments included."""
        oldest = self.retained or self.segments
        return oldest[0].first_lsn if oldest else self._first_lsn

    @property
    def is_in_place(self) -> bool:
        """Whether the active file is still what its name stands for."""
        return self._file.fd < 0 or self._disk.is_named(self._file.fd, self._directory / LOG_NAME)

    @property
    def is_full(self) -> bool:
        """Whether the active file has reached the size at which it is rotated."""
        return 0 < self._segment_bytes <= self._file.size_bytes

    def append(self, bodies: list[bytes], ts_ms: int) -> None:
        """Write a group of entries, given as JSON, with one write.

        Raises OSError with nothing of it in the log, StorageFailedError when that is not certain.
        """
        data = encode_lines(bodies, self.last_lsn + 1, ts_ms, self.durable_lsn)
        self._write(data, len(bodies))
        if self.recent is not None:
            self.recent.add(Lines(self.last_lsn - len(bodies) + 1, len(bodies), data))

    def append_received(self, bodies: Sequence[bytes], times_ms: Sequence[int]) -> None:
        """Write entries that a source wrote at these times, with one write. Raises as `append` does."""
        runs: list[tuple[int, Sequence[bytes]]] = []
        start = 0
        for end in range(1, len(bodies) + 1):
            if end == len(bodies) or times_ms[end] != times_ms[start]:
                runs.append((times_ms[start], bodies[start:end]))
                start = end
        lines, lsn = [], self.last_lsn
        for ts_ms, run in runs:
            lines.append(encode_lines(run, lsn + 1, ts_ms, self.durable_lsn))
            lsn += len(run)
        data = b"".join(lines)
        self._last_received = (self._file.size_bytes, self.last_lsn, data)
        self._write(data, len(bodies))
        if self.recent is not None:
            self.recent.add(Lines(self.last_lsn - len(bodies) + 1, len(bodies), data))

    def take_back(self, lsn: int) -> None:
        """Cut what the last `append_received` wrote behind an LSN off, durably. Raises StorageFailedError."""
        offset, before_lsn, data = self._last_received
        position = 0
        for _ in range(lsn - before_lsn):
            position = data.index(b"\n", position) + 1
        self._file.truncate(offset + position)
        if self._is_synced:
            self._file.sync()
        self.last_lsn = lsn
        while len(self._index) > 1 and self._index[-1][0] > lsn:
            self._index.pop()
        if self.recent is not None:
            self.recent = Recent()

    def _write(self, data: bytes, entries: int) -> None:
        offset = self._file.size_bytes
        try:
            self._file.write(data)
        except OSError:
            if self._is_synced:
                # Who hears that nothing was written will write it again: no power cut may undo the cut.
                self.sync()
            raise
        if offset - self._index[-1][1] >= _INDEX_STEP_BYTES:
            self._index.append((self.last_lsn + 1, offset))
        self.last_lsn += entries

    def sync(self) -> None:
        """Make all that was written so far durable. Raises StorageFailedError; see `AppendFile.sync`.

        Threads may call it; the caller then sets `durable_lsn`, which must not change mid-append.
        """
        with self._closing:
            self._file.sync()

    @property
    def fd(self) -> int:
        """The descriptor of the active file, for a child that calls `sync_files`."""
        return self._file.fd

    def sync_files(self) -> None:
        """Make every entry durable, those in segments too. Slow; for a forked child. Raises as `sync`."""
        for segment in self.segments:
            file = self._disk.append_to(segment.path)
            file.sync()
            file.close()
        self._file.sync()

    def rotate(self) -> Callable[[], None]:
        """Close the active file as a segment and begin a new one.

        Returns the rest of the work, which is slow and may run in a thread: the index sidecar and,
        where groups are not synced, the sync of what was written. Raises OSError with the log as it was,
        StorageFailedError when that is not certain.
        """
        old = self._file
        if not self.is_in_place:
            # A rename would give the segment's name to whatever has the log's name now.
            raise FileNotFoundError(errno.ENOENT, "it was moved or removed", str(self._directory / LOG_NAME))
        if self._is_synced:
            old.sync()
        segment = Segment(
            self._directory / segment_name(self._first_lsn),
            self._first_lsn,
            old.size_bytes,
            index=self._index,
        )
        self._disk.rename(self._directory / LOG_NAME, segment.path)
        try:
            self._file = self._disk.append_to(self._directory / LOG_NAME)
        except OSError:
            # The old file is still open and still the log; the next attempt finds it as it was.
            try:
                self._disk.rename(segment.path, self._directory / LOG_NAME)
            except OSError as error:
                raise StorageFailedError(
                    f"cannot rename {segment.path} back after a failed rotation: {error.strerror}"
                ) from error
            raise
        self.segments.append(segment)
        self._first_lsn = self.last_lsn + 1
        self._index = [(self._first_lsn, 0)]
        points = segment.index or []

        def finish() -> None:
            if not self._is_synced:
                old.sync()
            with self._closing:
                old.close()
            if segment in self.segments:
                write_index(self._disk, segment, points)

        return finish

    def truncate(
        self, through_lsn: int, keep_bytes: int, needed_lsns: Collection[int] = ()
    ) -> Callable[[], None]:
        """Let go of segments that snapshots cover, up to an LSN; keep the newest `keep_bytes` for followers.

        `needed_lsns` are the first that each known follower lacks: of the segment with one of them only the
        bytes from there on count, so that no follower within `keep_bytes` loses the log. Returns the
        work on disk, which may run in a thread and raises OSError: the kept ones move to ``retained/``, the
        others are removed, oldest first.
        """
        firsts = [segment.first_lsn for segment in self.segments] + [self._first_lsn]
        covered = [
            segment for segment, end in zip(self.segments, firsts[1:], strict=True) if end - 1 <= through_lsn
        ]
        self.segments = self.segments[len(covered) :]
        candidates = self.retained + covered
        kept_bytes = 0
        kept: list[Segment] = []
        end_lsn = firsts[len(covered)]
        for segment in reversed(candidates):
            wanted_bytes = segment.size_bytes
            inside = [lsn for lsn in needed_lsns if segment.first_lsn <= lsn < end_lsn]
            if inside:
                wanted_bytes -= self._offset(segment, max(inside))
            if kept_bytes + wanted_bytes > keep_bytes:
                break
            kept_bytes += segment.size_bytes
            kept.insert(0, segment)
            end_lsn = segment.first_lsn
        self.retained = kept
        self._doomed += candidates[: len(candidates) - len(kept)]

        def finish() -> None:
            self._disk.write_file(self._directory / LSN_NAME, [b"%d\n" % through_lsn])
            for segment in self._doomed:
                self._remove(segment)
            self._doomed.clear()
            if kept:
                self._disk.make_directory(self._directory / RETAINED_NAME)
            for segment in kept:
                if segment.path.parent == self._directory:
                    self._move(segment, self._directory / RETAINED_NAME)

        return finish

    def close(self) -> None:
        """Close the active file; an empty one stays, as the original leaves it."""
        self._file.close()

    # -- Reading back ----------------------------------------------------------------------------

    def read(self, after_lsn: int) -> Iterator[Body]:
        """Yield the entries behind an LSN that were written when the reading began.

        The caller has checked that `after_lsn` is not before `first_lsn`. Raises ValueError at a line that
        cannot be read.
        """
        recent = self.read_recent(after_lsn)
        if recent is None:
            return self._read_files(after_lsn)
        return (parse_body(raw) for lines in recent for raw in lines.data.splitlines())

    def read_recent(self, after_lsn: int) -> list[Lines] | None:
        """Return the lines behind an LSN as they are in the log, None when they are not in memory."""
        return self.recent.read(after_lsn) if self.recent is not None else None

    def bytes_behind(self, lsn: int) -> int:
        """Return about how many bytes of log are behind an LSN, to the step of the index."""
        active = self._active()
        size_bytes = 0
        for segment, following in _pairs([*self.retained, *self.segments, active]):
            if following is not None and following.first_lsn <= lsn + 1:
                continue
            is_inside = segment.first_lsn <= lsn
            size_bytes += segment.size_bytes - (self._offset(segment, lsn + 1) if is_inside else 0)
        return size_bytes if lsn < self.last_lsn else 0

    def _active(self) -> Segment:
        return Segment(self._directory / LOG_NAME, self._first_lsn, self._file.size_bytes, index=self._index)

    def _read_files(self, after_lsn: int) -> Iterator[Body]:
        for segment, following in _pairs([*self.retained, *self.segments, self._active()]):
            if following is not None and following.first_lsn <= after_lsn + 1:
                continue
            offset = self._offset(segment, after_lsn + 1) if segment.first_lsn <= after_lsn else 0
            for raw in read_raw_lines(self._disk, segment.path, offset, segment.size_bytes):
                body = parse_body(raw[:-1])
                if body.lsn > after_lsn:
                    yield body

    def _offset(self, segment: Segment, lsn: int) -> int:
        if segment.index is None:
            return find_offset(self._disk, segment, lsn)
        return segment.index[bisect_right(segment.index, lsn, key=lambda point: point[0]) - 1][1]

    def _read_first_lsn(self) -> int:
        for raw in read_raw_lines(self._disk, self._directory / LOG_NAME, 0, self._file.size_bytes):
            return parse_line(raw[:-1]).lsn
        return self.last_lsn + 1

    def _move(self, segment: Segment, directory: Path) -> None:
        # The segment last: its name changes here in the same moment, whatever else the disk refuses.
        index = index_path(segment.path)
        if index.name in self._disk.list_names(index.parent):
            self._disk.rename(index, directory / index.name)
        self._disk.rename(segment.path, directory / segment.path.name)
        segment.path = directory / segment.path.name

    def _remove(self, segment: Segment) -> None:
        self._disk.remove(index_path(segment.path))
        self._disk.remove(segment.path)
        # One after the other: a power cut that undid the removal of an older one alone would leave a hole.
        self._disk.sync_directory(segment.path.parent)


def _pairs(segments: list[Segment]) -> Iterator[tuple[Segment, Segment | None]]:
    yield from zip(segments, [*segments[1:], None], strict=True)
