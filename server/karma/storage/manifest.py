"""The last set of snapshots: one file for each series, some of them written for an earlier set.

A series that did not change since its newest file keeps that file, so a set costs what changed. What each
file's metadata say stays as it was written; the manifest adds up to which LSN the file holds::

    karma.snapshots.json    {format: 1, lsn, timestamp, files: {name: crc32}, older: {name: [crc32, lsn]},
                             self_crc32}

``files`` are the set: everything up to ``lsn`` is in them. ``older`` are files of earlier sets that were
extended in the same way and are still kept. A name counts only with its CRC-32, for Karma 1.0 or an
operator may have put another file under it; Karma 1.0 itself reads no manifest and needs none, as it looks
at no LSN of a snapshot in a directory that was shut down.

The manifest is written when all files of the set are durable, before anything relies on them: before the
log is truncated, and before old files go.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import orjson

from karma.core.series import Series
from karma.storage import snapshot
from karma.storage.checked import check_seal, damage_in, read_json, sealed, take
from karma.storage.disk import Disk
from karma.storage.snapshot import SnapshotFile

MANIFEST_NAME: Final = "karma.snapshots.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of files beyond their metadata; it is empty in a directory without a set."""

    lsn: int = 0
    timestamp_unix: int = 0
    files: dict[str, str] = field(default_factory=dict)
    """CRC-32 by name, of the set's files."""
    older: dict[str, tuple[str, int]] = field(default_factory=dict)
    """CRC-32 and last LSN by name, of files that earlier sets extended."""

    def extend(self, file: SnapshotFile) -> SnapshotFile:
        """Return a file with the LSN up to which it holds, and the time of its set."""
        if file.last_lsn is None or file.crc32 is None:
            return file
        older_crc32, lsn = self.older.get(file.file, (None, 0))
        is_current = self.files.get(file.file) == file.crc32
        if not is_current and older_crc32 != file.crc32:
            return file
        last_lsn = max(file.last_lsn, self.lsn if is_current else lsn)
        # Not dataclasses.replace, which takes ten times as long: there may be hundreds of thousands.
        return SnapshotFile(
            file.series,
            file.path,
            file.file,
            file.timestamp,
            file.bytes,
            last_lsn,
            file.crc32,
            file.ordinal,
            file.metadata_file,
            file.encoded,
            file.first_lsn if file.first_lsn < last_lsn else None,
            self.timestamp_unix if is_current and self.timestamp_unix > file.taken_unix else file.set_unix,
            is_current,
        )

    def missing(self, files: Iterable[SnapshotFile], truncated_lsn: int) -> list[str]:
        """Return the set's files that are missing or do not count, without a newer one."""
        if self.lsn < truncated_lsn:
            # Karma 1.0 ran here since, and removed what it did not need.
            return []
        newest: dict[str, int] = {}
        for file in files:
            timestamp, stem = _split(file.file)
            newest[stem] = max(timestamp, newest.get(stem, 0))
        return [name for name in self.files if newest.get(_split(name)[1], -1) < _split(name)[0]]

    def without(self, name: str) -> Manifest:
        """Return a manifest that does not name a file."""
        return replace(self, files={other: crc32 for other, crc32 in self.files.items() if other != name})


def _split(name: str) -> tuple[int, str]:
    """Return the timestamp in a file's name, and the rest."""
    timestamp, _, stem = name.partition("_")
    return int(timestamp), stem


def load(disk: Disk, directory: Path) -> Manifest:
    """Return a directory's manifest, an empty one without. Raises DamagedDataError."""
    path = directory / MANIFEST_NAME
    content = read_json(disk, path)
    if content is None:
        return Manifest()
    with damage_in(path, "repair"):
        check_seal(content, ())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r} is unknown: a newer version wrote it")
        files, older = take(content, "files", dict), take(content, "older", dict)
        for name in files:
            _split(name)
        return Manifest(
            take(content, "lsn", int),
            take(content, "timestamp", int),
            files,
            {name: (crc32, lsn) for name, (crc32, lsn) in older.items()},
        )


def save(disk: Disk, directory: Path, manifest: Manifest) -> None:
    """Replace a directory's manifest, durably. Raises OSError when the disk refuses: the old one stands."""
    content = {
        "format": _FORMAT,
        "lsn": manifest.lsn,
        "timestamp": manifest.timestamp_unix,
        "files": manifest.files,
        "older": manifest.older,
    }
    disk.write_file(directory / MANIFEST_NAME, [orjson.dumps(sealed(content))])


def list_snapshots(disk: Disk, directory: Path) -> list[SnapshotFile]:
    """Return the `.tree` files of a directory, newest first, each with the LSN up to which it holds.

    Raises DamagedDataError.
    """
    return Listing(disk, directory).read()


def in_creation_order(snapshots: Iterable[SnapshotFile]) -> list[SnapshotFile]:
    """Return snapshots of several series in the order in which these were created, as far as it is known."""
    return sorted(snapshots, key=lambda found: (found.ordinal is None, found.ordinal or 0, found.series))


class Listing:
    """The snapshots of a directory as `list_snapshots` returns them, without reading metadata twice."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self._directory = directory
        self.forget()

    def forget(self) -> None:
        """Read everything again next time: other files may be there under the same names."""
        self._by_metadata: dict[str, SnapshotFile] = {}
        self._files: list[SnapshotFile] = []
        self._by_name: dict[str, SnapshotFile] = {}
        self._latest: dict[str, SnapshotFile] = {}
        self._finished: list[SnapshotFile] = []
        self._names: list[str] | None = None
        self._changed_ns = -1

    def read(self) -> list[SnapshotFile]:
        """Return the files as they are now, newest first. Raises DamagedDataError."""
        changed_ns, names = self._disk.changed_ns(self._directory), self._list_names()
        # The manifest first: a server at work may write another while the names are listed, and a newer file
        # by an older manifest is only taken for less than it is.
        manifest = load(self._disk, self._directory)
        described = snapshot.list_snapshots(self._disk, self._directory, self._by_metadata)
        files = [manifest.extend(file) for file in described]
        self._by_metadata = {file.file: file for file in described if file.metadata_file is not None}
        self._by_name = {file.file: file for file in files}
        self._latest = dict(sorted(snapshot.latest_by_series(files).items()))
        finished = snapshot.latest_by_series(file for file in files if file.last_lsn is not None)
        self._finished = [file for _, file in sorted(finished.items())]
        self._files, self._changed_ns, self._names = files, changed_ns, names
        return files

    def _list_names(self) -> list[str]:
        return [name for name in self._disk.list_names(self._directory) if ".tree" in name]

    def files(self) -> list[SnapshotFile]:
        """Return the files, newest first, read again only when a name came or went.

        Without a descriptor to read them with, those that were read last stand in for them.
        """
        # Dashboards ask every second, and other files of the folder are replaced as often. What leaves the
        # names as they are, a set in which nothing changed, is followed by `read`.
        changed_ns = self._disk.changed_ns(self._directory)
        if changed_ns != self._changed_ns:
            try:
                if self._list_names() == self._names:
                    self._changed_ns = changed_ns
                else:
                    self.read()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or self._changed_ns < 0:
                    raise
        return self._files

    @property
    def count(self) -> int:
        """How many files there were when they were last listed."""
        return len(self._files)

    def find(self, name: str) -> SnapshotFile | None:
        """Return a file by its name, None without it."""
        self.files()
        return self._by_name.get(name)

    def latest(self) -> dict[str, SnapshotFile]:
        """Return the newest file of each series, sorted by series."""
        self.files()
        return self._latest

    def finished(self) -> list[SnapshotFile]:
        """Return the newest file of each series that has metadata, sorted by series."""
        self.files()
        return self._finished


def take_set(
    disk: Disk,
    directory: Path,
    all_series: Iterable[Series],
    changed: Collection[str],
    lsn: int,
    timestamp_unix: int,
    files: Collection[SnapshotFile],
    before_each: Callable[[], None] = lambda: None,
) -> list[SnapshotFile]:
    """Write the series that changed, and a manifest of all; `before_each` file may raise to give up.

    `files` are the directory's, as `list_snapshots` returns them; returns them with those written, and with
    `is_in_set` as it is now. Raises OSError when the disk refuses: the last set stands.
    """
    usable = snapshot.latest_by_series(file for file in files if file.last_lsn is not None)
    members: dict[str, SnapshotFile | None] = {}
    due = []
    for series in all_series:
        file = members[series.name] = usable.get(series.name)
        if series.name in changed or file is None or not _is_whole(disk, file, series):
            due.append(series)
    written = snapshot.write_trees(disk, directory, due, lsn, timestamp_unix, before_each) if due else []
    members |= {file.series: file for file in written}
    names = {file.file: file.crc32 for file in members.values() if file is not None and file.crc32}
    older = {
        file.file: (file.crc32, file.last_lsn)
        for file in files
        if file.written_lsn is not None and file.file not in names and file.crc32 and file.last_lsn
    }
    save(disk, directory, Manifest(lsn, timestamp_unix, names, older))
    return [
        file if file.is_in_set == (file.file in names) else replace(file, is_in_set=not file.is_in_set)
        for file in (*written, *files)
    ]


def _is_whole(disk: Disk, file: SnapshotFile, series: Series) -> bool:
    """Whether a series' newest file can stay in a set: Karma 1.0's lack a checksum and a place in order."""
    try:
        return (
            file.crc32 is not None
            and file.ordinal == series.ordinal
            and disk.size_bytes(file.path) == file.bytes
        )
    except FileNotFoundError:
        return False
