"""Which snapshots go: beyond retention they are removed, those of dropped series move aside."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import orjson

from karma.storage import snapshot
from karma.storage.disk import Disk
from karma.storage.snapshot import SnapshotFile


def prune(disk: Disk, files: Iterable[SnapshotFile], keep_per_series: int) -> list[SnapshotFile]:
    """Remove all but the newest so many snapshots of each series; returns what was removed.

    `keep_per_series` is 1 or more. Only snapshots with metadata count: an unfinished one must not push
    out the last good one. A file of the last set stays.
    """
    files = sorted(files, key=lambda file: -file.timestamp)
    finished: dict[str, list[int]] = {}
    for file in files:
        if file.last_lsn is not None:
            finished.setdefault(file.series, []).append(file.timestamp)
    oldest_kept = {
        series: timestamps[keep_per_series - 1]
        for series, timestamps in finished.items()
        if keep_per_series <= len(timestamps)
    }
    removed = [
        file for file in files if not file.is_in_set and file.timestamp < oldest_kept.get(file.series, 0)
    ]
    for file in removed:
        disk.remove(snapshot.metadata_path(file.path))
        disk.remove(file.path)
    return removed


def set_aside(disk: Disk, directory: Path, files: Iterable[SnapshotFile]) -> None:
    """Move snapshots with their metadata to the subfolder `dropped`, where nothing is replaced."""
    aside = directory / snapshot.DROPPED_NAME
    disk.make_directory(aside)
    # A disk that refused in the middle is asked again.
    taken, names = set(disk.list_names(aside)), set(disk.list_names(directory))
    newest: list[tuple[SnapshotFile, str]] = []
    older: list[tuple[SnapshotFile, str]] = []
    series: set[str] = set()
    for file in sorted(files, key=lambda file: -file.timestamp):
        pair = [path.name for path in (file.path, file.metadata_file) if path is not None]
        present = names.intersection(pair)
        number, prefix = 1, ""
        while any(prefix + name in taken for name in present):
            number += 1
            prefix = f"{number}-"
        taken.update(prefix + name for name in present)
        (older if file.series in series else newest).append((file, prefix))
        if file.last_lsn is not None:
            series.add(file.series)
    # The newest last: with it gone, the log would seem to have been truncated for one that is missing. And
    # metadata without a file are what a lost file looks like.
    for moves in (older, newest):
        metadata = [(file, prefix) for file, prefix in moves if _metadata_name(file) in names]
        _move_metadata(disk, aside, metadata)
        disk.rename_all(
            (file.path, aside / (prefix + file.file)) for file, prefix in moves if file.file in names
        )


def _metadata_name(file: SnapshotFile) -> str | None:
    return None if file.metadata_file is None else file.metadata_file.name


def _move_metadata(disk: Disk, aside: Path, moves: Iterable[tuple[SnapshotFile, str]]) -> None:
    pairs, extended = [], []
    for file, prefix in moves:
        path = snapshot.metadata_path(file.path)
        pairs.append((path, aside / (prefix + path.name)))
        if file.written_lsn is not None:
            # No manifest will name it any more.
            extended.append((path, [orjson.dumps(file.metadata())]))
    if extended:
        disk.write_files(extended)
    disk.rename_all(pairs)
