"""From a data directory to the store it holds: snapshots, then the log on top of them.

Reading changes nothing on disk, so the offline check and snapshot.verify read the same way. What
has to change before the server may write (a torn tail cut off, snapshots of dropped series moved
aside) is found by `read` and done by `mend`.

Which entries count: `core.replay` leaves out what a snapshot holds. Which snapshots count: the newest
of each series; beside a log only those with metadata; and none that is older than the truncation
of the log, because a truncation follows snapshots of every series that existed. A series without one
had been dropped: Karma 1.0 leaves its files lying about, and brings it back. We move them aside before
we truncate, so where we truncated it is not dropped but damaged.

An original slave writes ``karma.replication.lsn`` and no log. One that was promoted starts its log at
LSN 1 again, under snapshots with the old numbers: then the whole log applies, whatever the numbers say,
but for snapshots that we have taken since, which have numbers past that file's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from karma.core.idempotency import Records
from karma.core.ingest import Stream
from karma.core.replay import Replay
from karma.core.store import Store
from karma.errors import DamagedDataError
from karma.storage import manifest, retention, snapshot, wal
from karma.storage.checked import damage
from karma.storage.disk import Disk
from karma.storage.snapshot import SnapshotFile
from karma.storage.wal import Line, Segment

NOT_AN_ENTRY = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)
"""What applying an entry raises that no version known here wrote."""
CUT_NAME = "cut"
NOT_IN_SET = "the set of snapshots at LSN {lsn} has this file, but it or its metadata is missing"
_META = ".meta.json"
_PROGRESS_LINES = 100
REPLICATION_LSN_NAME = "karma.replication.lsn"

Progress = Callable[[str, str], None]
"""Takes an event and a message about it."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the log stops being readable: `size_bytes` of the file are good, the rest was never durable."""

    path: Path
    size_bytes: int
    cut_bytes: int
    lsn: int
    """The LSN the first lost entry would have."""
    reason: str
    later: tuple[Path, ...] = ()
    """Log files behind it, which held nothing durable either."""


@dataclass(slots=True)
class Recovered:
    """What a directory holds, and what must be done about it before it is written to."""

    store: Store
    last_lsn: int = 0
    snapshot_lsn: int = 0
    """The LSN up to which every series has a snapshot."""
    snapshots: dict[str, SnapshotFile] = field(default_factory=dict)
    all_snapshots: list[SnapshotFile] = field(default_factory=list)
    without_metadata: int = 0
    dropped: list[SnapshotFile] = field(default_factory=list)
    log_entries: int = 0
    log_first_lsn: int = 0
    log_last_lsn: int = 0
    truncated_lsn: int | None = None
    """What ``karma.wal.lsn`` says."""
    tail: Tail | None = None
    must_snapshot: bool = False
    """Whether nothing may be written, and no log be truncated, before a snapshot of everything is taken."""
    warnings: list[str] = field(default_factory=list)


class Found(NamedTuple):
    """One line of a log file, good or not."""

    segment: Segment
    offset_bytes: int
    size_bytes: int
    lsn: int
    """The LSN that is due here."""
    line: Line | None
    """None when it cannot be read."""
    problem: str | None


def scan_lines(disk: Disk, segments: Iterable[Segment], first_lsn: int) -> Iterator[Found]:
    """Yield every line of log files in order, those with a problem too; LSNs must rise by one.

    `first_lsn` is due in a file whose name does not tell. Behind a line that cannot be read the count goes
    on with the next that can, behind a gap with the line that follows it.
    """
    due: int | None = None
    is_lost = False
    for segment in segments:
        offset = 0
        if due is None and not segment.size_bytes:
            # What it held was lost, but its name tells where that began.
            due = segment.first_lsn or None
        for raw in wal.read_raw_lines(disk, segment.path, 0, segment.size_bytes):
            line, problem = _read_line(raw)
            if line is None:
                lsn = due = due if due is not None else segment.first_lsn or first_lsn
                is_lost = True
            else:
                lsn = line.lsn if due is None else due
                if line.lsn < lsn or (line.lsn > lsn and not is_lost):
                    problem = f"it holds LSN {line.lsn} where {lsn} is due"
                if line.lsn >= lsn:
                    due = line.lsn + 1
                    is_lost = False
            yield Found(segment, offset, len(raw), lsn, line, problem)
            offset += len(raw)


def _read_line(raw: bytes) -> tuple[Line | None, str | None]:
    if not raw.endswith(b"\n"):
        return None, "it ends in the middle"
    try:
        return wal.parse_line(raw[:-1]), None
    except ValueError as error:
        return None, str(error)


def proof(line: Line | None, lsn: int) -> str | None:
    """Return why, by a line found behind it, an entry must once have been durable; None when it need not."""
    if line is None or line.lsn <= lsn:
        return None
    if line.synced_lsn is None:
        # The original writes no `synced`, but it syncs in order: a later line proves an earlier.
        return f"entry {line.lsn} follows it"
    if line.synced_lsn >= lsn:
        return f"entry {line.lsn} was written when all up to LSN {line.synced_lsn} was durable"
    return None


class LogScan:
    """Reads log files up to the first problem. Iterate once, then look at `tail`."""

    def __init__(self, disk: Disk, segments: list[Segment], first_lsn: int) -> None:
        self._disk = disk
        self._segments = segments
        self._first_lsn = first_lsn
        self.tail: Tail | None = None

    def __iter__(self) -> Iterator[tuple[Found, Line]]:
        """Yield the good lines. Raises DamagedDataError at a bad one that had been durable."""
        lines = scan_lines(self._disk, self._segments, self._first_lsn)
        for found in lines:
            if found.line is None or found.problem is not None:
                self._stop(found, lines)
                return
            yield found, found.line

    def _stop(self, bad: Found, rest: Iterator[Found]) -> None:
        """Tell a torn tail from damage."""
        for found in chain([bad], rest):
            why = proof(found.line, bad.lsn)
            if why is not None:
                raise log_damage(
                    bad.segment.path,
                    f"a line of the log cannot be used ({bad.problem}), but {why}, so it was durable once",
                    bad.offset_bytes,
                    bad.lsn,
                )
        self.tail = tail_at(self._segments, bad.segment, bad.offset_bytes, bad.lsn, bad.problem or "")


def tail_at(segments: list[Segment], segment: Segment, offset_bytes: int, lsn: int, reason: str) -> Tail:
    """Return the end of a log whose good part stops in one of its files."""
    later = [other for other in segments[segments.index(segment) + 1 :] if other.size_bytes]
    cut_bytes = segment.size_bytes - offset_bytes + sum(other.size_bytes for other in later)
    return Tail(segment.path, offset_bytes, cut_bytes, lsn, reason, tuple(other.path for other in later))


def log_damage(path: Path, message: str, offset_bytes: int, lsn: int) -> DamagedDataError:
    """Return the error for a place in a log file."""
    error = damage(path, message, "repair")
    error.offset_bytes, error.lsn = offset_bytes, lsn
    return error


def log_files(disk: Disk, directory: Path) -> list[Segment]:
    """Return the log files that count at a start, in order, the active one last."""
    segments = wal.list_segments(disk, directory)
    if wal.LOG_NAME in disk.list_names(directory):
        path = directory / wal.LOG_NAME
        # Nothing but its first line tells where the active file starts.
        segments.append(Segment(path, 0, disk.size_bytes(path)))
    return segments


def read(
    disk: Disk,
    directory: Path,
    records: Records,
    now_unix: int,
    progress: Progress = lambda _event, _message: None,
) -> Recovered:
    """Return what a directory holds, without changing it.

    `records` gets the idempotency records, as old as they were when the newest of them was made, and gives
    their limits. `now_unix` stands in for the time of entries that carry none. Raises DamagedDataError.
    """
    recovered = Recovered(Store(records))
    store = recovered.store
    files = log_files(disk, directory)
    try:
        recovered.truncated_lsn = wal.read_truncated_lsn(disk, directory)
    except ValueError as error:
        raise damage(directory / wal.LSN_NAME, str(error), "repair") from None
    for path in lost_trees(disk, directory):
        raise damage(path, "the snapshot that it describes is missing", "repair")
    _choose_snapshots(disk, directory, recovered, has_log=bool(files) or recovered.truncated_lsn is not None)

    for number, chosen in enumerate(manifest.in_creation_order(recovered.snapshots.values()), 1):
        store.restore(chosen.series, snapshot.load_tree(disk, chosen), chosen.ordinal)
        # Of thousands, not each is worth a line.
        if number % (len(recovered.snapshots) // _PROGRESS_LINES + 1) == 0:
            progress("restore_snapshot", f"{number} of {len(recovered.snapshots)} series: {chosen.series}")
    series_lsn = {name: chosen.last_lsn or 0 for name, chosen in recovered.snapshots.items()}
    records_lsn = snapshot.load_records(disk, directory, store.records, store.streams) or 0
    streams_lsn = _load_streams(disk, directory, recovered)
    if recovered.dropped and streams_lsn is not None:
        raise damage(
            recovered.dropped[0].path,
            f'it is the newest of series "{recovered.dropped[0].series}", but the log was truncated at LSN '
            f"{recovered.truncated_lsn} for a newer one, which is missing",
            "repair",
        )
    base_lsn = max([recovered.truncated_lsn or 0, *series_lsn.values()])
    recovered.snapshot_lsn = min(series_lsn.values(), default=recovered.truncated_lsn or 0)

    old_lsn = _promoted_original(disk, directory, files, recovered.snapshot_lsn)
    if old_lsn is not None:
        recovered.must_snapshot = True
        recovered.warnings.append(
            "This directory belonged to a Karma 1.0 slave that was promoted: its log starts at LSN 1 again "
            "below snapshots with older numbers. The whole log is applied and a snapshot is taken at once"
        )
        base_lsn = max(base_lsn, old_lsn + 1)
        series_lsn = {name: lsn for name, lsn in series_lsn.items() if lsn > old_lsn}
        records_lsn = records_lsn if records_lsn > old_lsn else 0
        streams_lsn = streams_lsn if streams_lsn is not None and streams_lsn > old_lsn else 0
    known: dict[str, Stream] = {}
    if streams_lsn is None:
        streams_lsn = records_lsn
        if snapshot.are_records_ours(disk, directory):
            # A kill came in the middle of our first snapshot here. The records are ahead of the streams, and
            # of the series that these fill, so the streams come from the log; from the records those that
            # Karma 1.0 had committed, and truncated.
            streams_lsn, known, store.streams.committed = 0, store.streams.committed, {}
    replay = Replay(store, series_lsn, records_lsn, streams_lsn)
    _replay(disk, files, recovered, replay, now_unix, progress)
    store.streams.committed = known | store.streams.committed
    store.records.trim(store.records.newest_unix)
    recovered.last_lsn = max(base_lsn, recovered.log_last_lsn)
    if recovered.log_entries and recovered.log_last_lsn < recovered.last_lsn:
        # A snapshot is ahead of the log (a power cut without fsync, or a repair): to append behind it would
        # leave a hole, to truncate it before every series has a snapshot would lose what only it holds.
        recovered.must_snapshot = True
    reach = [records_lsn, *(found.last_lsn or 0 for found in recovered.all_snapshots)]
    if snapshot.STREAMS_NAME not in disk.list_names(directory):
        # Nobody promised that Karma 1.0 has a snapshot of anything when it truncates.
        reach.append(recovered.log_last_lsn)
    if recovered.dropped and (recovered.truncated_lsn or 0) > max(reach):
        # Believing it would set series aside that nobody dropped.
        raise damage(
            directory / wal.LSN_NAME,
            f"it says that the log was truncated at LSN {recovered.truncated_lsn}, where no snapshot reaches",
            "repair",
        )
    if recovered.must_snapshot:
        # Numbers of two logs are mixed here, so each file is written again.
        store.changed.update(store.series)
    return recovered


def lost_trees(disk: Disk, directory: Path) -> list[Path]:
    """Return metadata without their `.tree`, where no newer snapshot of that name makes up for it.

    No kill leaves them: a `.tree` is there before its metadata and goes after it.
    """
    names = set(disk.list_names(directory))
    newest: dict[str, tuple[int, str]] = {}
    for name in names:
        timestamp, _, stem = name.removesuffix(_META).partition("_")
        if name.endswith(".tree" + _META) and timestamp.isdigit():
            newest[stem] = max(newest.get(stem, (0, "")), (int(timestamp), name))
    return [directory / name for _, name in sorted(newest.values()) if name.removesuffix(_META) not in names]


def _choose_snapshots(disk: Disk, directory: Path, recovered: Recovered, *, has_log: bool) -> None:
    last_set = manifest.load(disk, directory)
    recovered.all_snapshots = list(map(last_set.extend, snapshot.list_snapshots(disk, directory)))
    usable = [found for found in recovered.all_snapshots if found.last_lsn is not None or not has_log]
    for name in last_set.missing(usable, recovered.truncated_lsn or 0):
        raise damage(directory / name, NOT_IN_SET.format(lsn=last_set.lsn), "repair")
    recovered.without_metadata = sum(found.metadata_file is None for found in recovered.all_snapshots)
    recovered.snapshots, dropped = choose(
        recovered.all_snapshots, recovered.truncated_lsn or 0, has_log=has_log
    )
    for name in dropped:
        recovered.dropped += [found for found in recovered.all_snapshots if found.series == name]
        recovered.warnings.append(
            f'Series "{name}" was dropped before the log was truncated at LSN {recovered.truncated_lsn}; '
            f"its snapshots are moved to {snapshot.DROPPED_NAME}/"
        )


def choose(
    snapshots: Iterable[SnapshotFile], truncated_lsn: int, *, has_log: bool
) -> tuple[dict[str, SnapshotFile], list[str]]:
    """Return the snapshot of each series that counts, and the series whose snapshots are of a dropped one."""
    newest = snapshot.latest_by_series(
        found for found in snapshots if found.last_lsn is not None or not has_log
    )
    dropped = [
        name
        for name, found in newest.items()
        if has_log and found.last_lsn is not None and found.last_lsn < truncated_lsn
    ]
    return {name: found for name, found in newest.items() if name not in dropped}, dropped


def _load_streams(disk: Disk, directory: Path, recovered: Recovered) -> int | None:
    """Restore ingest streams; returns their LSN, or None when there are but the idempotency snapshot's."""
    found = snapshot.load_streams(disk, directory)
    if found is None:
        return None
    streams, lsn = found
    if lsn < (recovered.truncated_lsn or 0):
        # Karma 1.0 ran here since: it does not know this file, and truncated the entries it would need.
        if streams.active:
            recovered.warnings.append(
                f"{len(streams.active)} open ingest streams are given up: Karma 1.0 used the directory since"
            )
        return None
    recovered.store.streams = streams
    return lsn


def _promoted_original(disk: Disk, directory: Path, files: list[Segment], snapshot_lsn: int) -> int | None:
    """Return the LSN up to which the snapshots of a promoted original slave count anew; None elsewhere."""
    if REPLICATION_LSN_NAME not in disk.list_names(directory) or not snapshot_lsn:
        return None
    text = disk.read_file(directory / REPLICATION_LSN_NAME).strip()
    first = next((segment for segment in files if segment.size_bytes), None)
    if not text.isdigit() or int(text) < snapshot_lsn or first is None:
        return None
    line = next(scan_lines(disk, [first], 1)).line
    return int(text) if line is not None and line.synced_lsn is None and line.lsn == 1 else None


def _replay(
    disk: Disk,
    files: list[Segment],
    recovered: Recovered,
    replay: Replay,
    now_unix: int,
    progress: Progress,
) -> None:
    covered_lsn = recovered.snapshot_lsn if recovered.truncated_lsn is None else recovered.truncated_lsn
    scan = LogScan(disk, files, (recovered.truncated_lsn or 0) + 1)
    for found, line in scan:
        if not recovered.log_entries:
            recovered.log_first_lsn = line.lsn
            if line.lsn > covered_lsn + 1:
                raise log_damage(
                    found.segment.path,
                    f"the log starts at LSN {line.lsn}, but what was truncated ends at LSN {covered_lsn}: "
                    "the entries between them are missing",
                    0,
                    covered_lsn + 1,
                )
        recovered.log_entries += 1
        recovered.log_last_lsn = line.lsn
        try:
            warning = replay.apply(
                line.lsn, line.entry, now_unix if line.ts_ms is None else line.ts_ms // 1000
            )
        except NOT_AN_ENTRY as error:
            raise log_damage(
                found.segment.path,
                f"the entry is no write that this version knows ({line.entry['op']}: {error!r})",
                found.offset_bytes,
                line.lsn,
            ) from None
        if warning is not None:
            recovered.warnings.append(f"Log {warning}")
        if recovered.log_entries % 250_000 == 0:
            progress("restore_log", f"{recovered.log_entries} log entries, at LSN {line.lsn}")
    recovered.tail = scan.tail


# -- Mending -------------------------------------------------------------------------------------


def mend(disk: Disk, directory: Path, recovered: Recovered, now_unix: int) -> list[str]:
    """Make a directory fit to be written to; returns what was done, as sentences.

    Nothing is deleted: a torn tail moves to ``cut/``, snapshots of dropped series to ``dropped/``.
    """
    done = []
    if recovered.tail is not None:
        cut_tail(disk, recovered.tail, directory / CUT_NAME, now_unix)
        done.append(
            f"The log's torn tail was cut: {recovered.tail.cut_bytes} bytes from LSN {recovered.tail.lsn} on "
            f"({recovered.tail.reason}) are kept in {CUT_NAME}/. They were never acknowledged as durable"
        )
    if recovered.dropped:
        retention.set_aside(disk, directory, recovered.dropped)
    for name in disk.list_names(directory):
        if name.startswith(".") and name.endswith(".tmp"):
            disk.remove(directory / name)
    return done


def cut_tail(disk: Disk, tail: Tail, folder: Path, now_unix: int) -> None:
    """Copy what is behind a log's good part to a folder, and only then take it off the log."""
    disk.make_directory(folder)
    names = set(disk.list_names(tail.path.parent))
    # A disk that refused in the middle is asked again: then it may have moved already.
    size_bytes = disk.size_bytes(tail.path) if tail.path.name in names else tail.size_bytes
    rest = disk.read_range(tail.path, tail.size_bytes, size_bytes - tail.size_bytes) if size_bytes else b""
    segments = (tail.path, *tail.later)
    moved = tail.later
    if not tail.size_bytes and tail.path.name != wal.LOG_NAME:
        # An empty segment would go on naming the LSN that it was to begin with.
        moved = segments
    elif rest:
        disk.write_file(folder / f"{now_unix}-{tail.path.name}-from-lsn-{tail.lsn}", [rest])
        file = disk.append_to(tail.path)
        file.truncate(tail.size_bytes)
        file.sync()
        file.close()
    for path in (*moved, *map(wal.index_path, segments)):
        if path.name in names:
            disk.rename(path, folder / f"{now_unix}-{path.name}")
