"""What a data directory held at a moment: its newest snapshots, named ones, or the log replayed up to an LSN.

A server may be at work on the directory. Nothing here writes, and every `.tree` is whole under its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from karma.core.idempotency import Records
from karma.core.ingest import STREAMS_FILE, Streams
from karma.core.replay import Replay
from karma.core.store import Store
from karma.errors import DamagedDataError
from karma.offline import reading
from karma.storage import manifest, recovery, snapshot, wal
from karma.storage.checked import damage
from karma.storage.disk import Disk
from karma.storage.manifest import Manifest
from karma.storage.recovery import Tail
from karma.storage.snapshot import SnapshotFile
from karma.storage.wal import Line, Segment

__all__ = ["STREAMS_FILE", "Line", "MissingLogError", "Replayed", "Shots", "SnapshotFile"]

_NAME = re.compile(r"([0-9]+)_(.*)\.tree", re.DOTALL)


@dataclass(slots=True)
class Shots:
    """The snapshot files of a directory, newest first."""

    files: list[SnapshotFile] = field(default_factory=list)
    current: dict[str, SnapshotFile] = field(default_factory=dict)
    """By series, those that a server would start from."""
    damaged: list[DamagedDataError] = field(default_factory=list)
    """Files whose metadata cannot be used, or that are described and missing."""


def list_shots(directory: Path) -> Shots:
    """Look at the names and metadata of a directory's snapshots; no counter is read."""
    disk = Disk()
    shots = Shots()
    last_set = Manifest()
    try:
        last_set = manifest.load(disk, directory)
    except DamagedDataError as error:
        shots.damaged.append(error)
    for name in disk.list_names(directory):
        if _NAME.fullmatch(name):
            try:
                shots.files.append(last_set.extend(describe(directory / name)))
            except DamagedDataError as error:
                shots.damaged.append(error)
            except FileNotFoundError:
                # A server at work removes old ones.
                continue
    shots.files.sort(key=lambda found: (-found.timestamp, found.file))
    for path in recovery.lost_trees(disk, directory):
        shots.damaged.append(damage(path, "the snapshot that it describes is missing", "repair"))
    try:
        truncated_lsn = wal.read_truncated_lsn(disk, directory)
    except ValueError as error:
        raise damage(directory / wal.LSN_NAME, str(error), "repair") from None
    has_log = bool(recovery.log_files(disk, directory)) or truncated_lsn is not None
    shots.current, _ = recovery.choose(shots.files, truncated_lsn or 0, has_log=has_log)
    return shots


def describe(path: Path) -> SnapshotFile:
    """Return a `.tree` file that may stand anywhere and have any name, with what its metadata say.

    Raises DamagedDataError for metadata that cannot be used, OSError without the file.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        return SnapshotFile(path.name.removesuffix(".tree"), path, path.name, 0, path.stat().st_size)
    return snapshot.describe_file(Disk(), path, int(match[1]), match[2])


# -- The log on top of snapshots -------------------------------------------------------------------


class MissingLogError(Exception):
    """What was asked for needs entries that no log holds any more; the argument says which."""


@dataclass(slots=True)
class Replayed:
    """A store brought to `lsn`, with what could not be applied on the way."""

    store: Store
    lsn: int
    tail: Tail | None = None
    warnings: list[str] = field(default_factory=list)
    """Entries that failed when they were written, too, and were skipped."""


def as_of(directory: Path, lsn: int | None, now_unix: int) -> Replayed:
    """Return what a directory held at an LSN; None is what a server would start with.

    Raises MissingLogError, DamagedDataError.
    """
    disk = Disk()
    if lsn is None:
        found = reading.load(disk, directory, now_unix)
        return Replayed(found.store, found.last_lsn, found.tail, found.warnings)
    shots = list_shots(directory)
    truncated_lsn = wal.read_truncated_lsn(disk, directory) or 0
    lines = reading.iterate_log(disk, directory)
    first = next(lines, None)
    files = [found for found in shots.files if found.series in shots.current]
    if lsn < truncated_lsn:
        # A series that was dropped since may have been there then, if the log reaches back to its snapshot.
        first_lsn = truncated_lsn + 1 if first is None else first.lsn
        gone = list_shots(directory / snapshot.DROPPED_NAME).files
        gone += [found for found in shots.files if found.series not in shots.current]
        files += [found for found in gone if (found.last_lsn or 0) >= first_lsn - 1]
    lines = lines if first is None else chain([first], lines)
    return replay(newest_before(files, lsn), lines, lsn, snapshot.load_streams(disk, directory))


def replay(
    bases: Iterable[SnapshotFile],
    lines: Iterable[Line],
    target_lsn: int,
    streams: tuple[Streams, int] | None = None,
) -> Replayed:
    """Return what there was at an LSN.

    `bases` are the newest snapshots up to it, one a series, `lines` the log from where it begins to its end:
    what came before a snapshot tells which imports were open, what comes behind the target whether a series
    was there of which no snapshot is left. `streams` are the imports of the last snapshot and its LSN. Raises
    MissingLogError when entries behind the oldest snapshot are missing, or of an import what came before the
    log, DamagedDataError for a snapshot that cannot be used.
    """
    disk = Disk()
    store = Store(Records(max_records=2**63, max_age_seconds=2**63))
    bases = manifest.in_creation_order(bases)
    series_lsn = {found.series: found.last_lsn or 0 for found in bases}
    for base in bases:
        store.restore(base.series, snapshot.load_tree(disk, base), base.ordinal)
    due_lsn = min(series_lsn.values(), default=0) + 1
    streams_lsn = 0
    if streams is not None and streams[1] <= target_lsn:
        store.streams, streams_lsn = streams
    known = Replay(store, series_lsn, streams_lsn=streams_lsn)
    found = Replayed(store, max(series_lsn.values(), default=0))
    first_lsn = last_lsn = 0
    later: set[str] = set()
    for line in lines:
        first_lsn = first_lsn or line.lsn
        if line.lsn > target_lsn:
            _check_behind(line, store, later)
            continue
        if line.lsn > due_lsn and line.lsn != last_lsn + 1:
            raise MissingLogError(
                f"the log lacks LSN {max(last_lsn + 1, due_lsn)} to {line.lsn - 1}, which no snapshot up to "
                f"LSN {target_lsn} holds"
            )
        last_lsn = line.lsn
        try:
            warning = known.apply(line.lsn, line.entry, (line.ts_ms or 0) // 1000)
        except recovery.NOT_AN_ENTRY as error:
            raise MissingLogError(
                f"entry {line.lsn} is no write that this version knows: {error!r}"
            ) from None
        if warning is not None and line.lsn >= due_lsn:
            if line.entry["op"].startswith("ingest.") and first_lsn > 1 and not streams_lsn:
                raise MissingLogError(
                    f"LSN {line.lsn} goes on with an import that began before the log, at LSN {first_lsn}"
                )
            found.warnings.append(warning)
    found.lsn = max(found.lsn, last_lsn)
    if found.lsn < target_lsn:
        raise MissingLogError(
            f"nothing here reaches LSN {target_lsn}: "
            + (f"what there is up to it ends at LSN {found.lsn}" if found.lsn else "no snapshot is that old")
            + (f", the log begins at LSN {first_lsn}" if first_lsn else ", there is no log")
        )
    return found


def _check_behind(line: Line, store: Store, later: set[str]) -> None:
    """Look for a series that must have been there; `later` collects those that entries name."""
    name = line.entry.get("series")
    if line.entry["op"] == "tree.drop" and name not in store.series and name not in later:
        raise MissingLogError(
            f'series "{name}" was dropped at LSN {line.lsn}, and no snapshot that the log reaches tells what '
            "it held before"
        )
    if name is not None:
        later.add(name)


def newest_before(files: Iterable[SnapshotFile], lsn: int) -> list[SnapshotFile]:
    """Return the newest snapshot of each series that holds nothing behind an LSN."""
    usable = [found for found in files if found.last_lsn is not None and found.first_lsn <= lsn]
    # One that later sets kept holds for each LSN in between.
    return [
        replace(found, last_lsn=min(found.last_lsn or 0, lsn))
        for found in snapshot.latest_by_series(usable).values()
    ]


def newest_until(files: Iterable[SnapshotFile], unix: int) -> list[SnapshotFile]:
    """Return the newest snapshot of each series that was taken up to a time."""
    return list(snapshot.latest_by_series(found for found in files if found.timestamp <= unix).values())


def lsn_at(lines: Iterable[Line], ts_ms: float) -> int | None:
    """Return the last LSN written up to a time (unix milliseconds); None when that is the last of the log.

    The whole log is read: where the clock was set back, entries of that time come behind later ones. Raises
    MissingLogError for a log that does not tell times, as Karma 1.0's.
    """
    first = last = at = None
    for line in lines:
        if line.ts_ms is None:
            raise MissingLogError("this log tells no times, as Karma 1.0 wrote it; name an LSN instead")
        last = line.lsn
        if first is None:
            first = last
        if line.ts_ms <= ts_ms:
            at = last
    if at is None and first is not None:
        return first - 1
    return at if at != last else None


# -- The rest --------------------------------------------------------------------------------------


def log_files(directory: Path) -> list[Path]:
    """Return a directory's log files in LSN order, those kept for followers first, the active one last."""
    disk = Disk()
    segments = wal.list_segments(disk, directory / wal.RETAINED_NAME) + recovery.log_files(disk, directory)
    return [segment.path for segment in segments]


def log_lines(paths: Iterable[Path]) -> Iterator[recovery.Found]:
    """Yield every line of log files in order, good or not; see `recovery.scan_lines`."""
    disk = Disk()
    return recovery.scan_lines(disk, [Segment(path, 0, disk.size_bytes(path)) for path in paths], 1)


def records_of(data: bytes) -> tuple[Records, Streams]:
    """Return what the bytes of an idempotency snapshot hold. Raises DamagedDataError."""
    records, streams = Records(), Streams()
    snapshot.load_records(_InMemory(snapshot.RECORDS_NAME, data), Path(), records, streams)
    return records, streams


def streams_of(data: bytes) -> tuple[Streams, int] | None:
    """Return the imports that the bytes of an ingest file hold, and its LSN. Raises DamagedDataError."""
    return snapshot.load_streams(_InMemory(STREAMS_FILE, data), Path())


class _InMemory(Disk):
    """A directory with a single file."""

    def __init__(self, name: str, data: bytes) -> None:
        self._name = name
        self._data = data

    def read_file(self, path: Path) -> bytes:
        """Return the bytes, or raise FileNotFoundError for any other file."""
        if path.name == self._name:
            return self._data
        raise FileNotFoundError(path)


def load_records(directory: Path) -> tuple[Records, Streams]:
    """Return the remembered idempotency keys and the imports of a directory's last snapshot.

    Raises DamagedDataError.
    """
    disk = Disk()
    records, streams = Records(), Streams()
    snapshot.load_records(disk, directory, records, streams)
    found = snapshot.load_streams(disk, directory)
    return records, streams if found is None else found[0]
